"""``topcoat verify``: what this machine can run is compared with the network and recorded."""

import errno
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import topcoat.runtime as tr
from tests.runtime import golden
from tests.runtime.conftest import DATA, installed_backends
from tests.runtime.fake_tensorrt import Rig, make_engine_bundle
from topcoat.runtime.backends import Compute, Session
from topcoat.runtime.backends.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeSession
from topcoat.runtime.bundle import Variant
from topcoat.runtime.cli.topcoat import main
from topcoat.runtime.frames import Frame
from topcoat.runtime.parity import ParityRow, ProbeFrame, engines_for, flat_colours
from topcoat.runtime.parity._measure import Answer, Answers
from topcoat.runtime.parity._png import frame_from_png
from topcoat.runtime.parity._record import check_recordable, record_row

Rows = dict[tuple[str, str, str, str | None], dict[str, Any]]
CPU = (OnnxRuntimeCpu(),)


def smooth(height: int, width: int) -> Frame:
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 90 * np.sin(x / (9 + c)) + 30 * np.cos(y / (4 + c)) for c in range(3)]
    picture = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    picture[height // 4 : height // 2, width // 3 : width // 2] = (255, 0, 40)
    return picture


def manifest_of(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return content


def rows_of(bundle: Path) -> Rows:
    """(file, backend, compute, device) -> row."""
    return {
        (variant["file"], row["backend"], row["compute"], row.get("device")): row
        for variant in manifest_of(bundle)["variants"]
        for row in variant["parity"]
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def enlarging(tmp_path: Path, make_bundles: ModuleType) -> Path:
    """A copy of local4.topcoat, x4, with a golden pair and without parity rows."""
    return golden.golden_bundle(
        DATA / "local4.topcoat",
        tmp_path / "local4.topcoat",
        lambda frame: make_bundles.local("local4", frame),
        smooth(48, 64),
    )


@pytest.fixture
def doubling(tmp_path: Path, make_bundles: ModuleType) -> Path:
    """A copy of double.topcoat, x2, with a golden pair and without parity rows."""
    return golden.golden_bundle(
        DATA / "double.topcoat", tmp_path / "double.topcoat", make_bundles.double, smooth(70, 90)
    )


def add_variant(bundle: Path, file: str, data: bytes, **keys: object) -> None:
    """Add a model file beside the first one, which it resembles but for ``keys``."""
    (bundle / file).write_bytes(data)

    def change(manifest: dict[str, Any]) -> None:
        first = manifest["variants"][0]
        own = {"file": file, **golden.identity(data), "parity": []}
        manifest["variants"].append({**first, **own, **keys})

    golden.edit(bundle, change)


def leave_to_onnxruntime(bundle: Path) -> None:
    """Say that OpenVINO's rows had passed: compiling for every size takes it longer than a test."""

    def change(manifest: dict[str, Any]) -> None:
        for variant in manifest["variants"]:
            for compute in ("fp32", "bf16", "fp16"):
                row = {"backend": "openvino-cpu", "compute": compute, "passed": True}
                variant["parity"].append(row)

    golden.edit(bundle, change)


def another_network(bundle: Path, make_bundles: ModuleType) -> bytes:
    """The fp32 model of local4 with other weights in its last convolution."""
    data = (bundle / "model.fp32.onnx").read_bytes()
    weights = make_bundles._local_weights("local4")["last"]
    assert data.count(weights.tobytes()) == 1
    return data.replace(weights.tobytes(), (weights * np.float32(1.3)).tobytes())


# ------------------------------------------------------------------------------------- what is done


def test_rows_that_are_missing_are_measured_and_recorded(enlarging: Path) -> None:
    with pytest.raises(tr.BackendError, match="no parity check"):
        tr.open(enlarging, backend="onnxruntime-cpu")
    found = tr.verify(enlarging, threads=1)
    assert found
    assert found.recorded
    rows = rows_of(enlarging)
    assert {backend for _, backend, _, _ in rows} >= set(installed_backends())
    for (_, backend, compute, device), row in rows.items():
        assert row["passed"] is True
        assert (device is None) is backend.endswith("-cpu")
        alone = (backend, compute) == ("onnxruntime-cpu", "fp32")
        assert row["reference"] == ("golden pair" if alone else "golden pair, onnxruntime-cpu fp32")
        assert row["photographs"]["max_steps"] <= (1 if compute == "fp32" else 16)
    for backend in installed_backends():
        with tr.open(enlarging, backend=backend) as model:
            chosen = model.explain().chosen
            assert chosen is not None
            assert chosen.verified


def test_what_is_measured_is_what_is_recorded(enlarging: Path) -> None:
    """The figure in the manifest, computed here a second time."""
    found = tr.verify(enlarging, threads=1, backends=CPU)
    (row,) = found.measured
    ((probe, measured),) = row.frames
    assert probe.name == "golden_in.png"
    frame = frame_from_png((enlarging / "golden_in.png").read_bytes())
    wanted = frame_from_png((enlarging / "golden_out.png").read_bytes())
    with tr.open(enlarging, backend="onnxruntime-cpu", threads=1) as model:
        steps = np.abs(model.process(frame).astype(int) - wanted)
    assert measured.max_steps == steps.max()
    (recorded,) = rows_of(enlarging).values()
    assert recorded["photographs"]["changed"] == pytest.approx(float(np.mean(steps > 0)))
    assert recorded["photographs"].get("psnr_db", 99) > 75


def test_every_kind_of_frame_is_compared(enlarging: Path) -> None:
    add_variant(
        enlarging,
        "model.fp16.onnx",
        (enlarging / "model.fp32.onnx").read_bytes(),
        precision="fp16",
    )
    _, row = tr.verify(enlarging, threads=1, backends=CPU).measured
    assert set(row.groups) == {"photographs", "sizes", "tiny", "synthetic", "flat"}
    shapes = {probe.frame.shape for probe, _ in row.frames}
    assert any(len(shape) == 4 for shape in shapes)
    assert (1, 1, 3) in shapes
    assert row.groups["photographs"].frames == 4  # the golden picture, and three made of it


def test_what_has_passed_is_measured_again_only_when_asked(enlarging: Path) -> None:
    first = tr.verify(enlarging, threads=1, backends=CPU)
    before = contents(enlarging)
    second = tr.verify(enlarging, backends=CPU)
    assert (second.rows, second.earlier) == ([], [first.measured[0].engine])
    assert contents(enlarging) == before
    third = tr.verify(enlarging, threads=1, backends=CPU, everything=True)
    assert [row.engine for row in third.measured] == [first.measured[0].engine]
    assert contents(enlarging) == before  # the same figures


def test_another_network_fails_is_recorded_as_failed_and_is_not_run(
    enlarging: Path, make_bundles: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    other = another_network(enlarging, make_bundles)
    add_variant(enlarging, "model.fp16.onnx", other, precision="fp16")
    leave_to_onnxruntime(enlarging)
    assert main(["verify", str(enlarging), "--threads", "1", "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "failed, will not be used here: onnxruntime-cpu fp16 (model.fp16.onnx): phot" in said
    rows = rows_of(enlarging)
    assert rows["model.fp32.onnx", "onnxruntime-cpu", "fp32", None]["passed"] is True
    assert rows["model.fp16.onnx", "onnxruntime-cpu", "fp16", None]["passed"] is False
    with pytest.raises(tr.BackendError, match="parity check failed"):
        tr.open(enlarging, backend="onnxruntime-cpu", precision="fp16")


def test_a_file_that_no_engine_loads_has_failed(enlarging: Path) -> None:
    # Protobuf, but no graph.
    add_variant(enlarging, "model.fp16.onnx", b"\x08\x0a", precision="fp16")
    found = tr.verify(enlarging, threads=1, backends=CPU)
    assert not found
    row = found.measured[1]
    assert "cannot load model.fp16.onnx" in row.failures[0]
    assert rows_of(enlarging)["model.fp16.onnx", "onnxruntime-cpu", "fp16", None] == {
        "backend": "onnxruntime-cpu",
        "compute": "fp16",
        "passed": False,
        "photographs": {},
    }


def test_a_texture_is_compared_on_noise_and_with_itself(
    tmp_path: Path, make_bundles: ModuleType
) -> None:
    def woven(noise: Frame) -> Frame:
        # In float32 and in the model's order: half of its sums end in .25, .5 or .75.
        x = noise.astype(np.float32) * np.float32(1 / 255)
        wide = x[:, 2::4, 2::4].repeat(4, axis=1).repeat(4, axis=2)
        total = wide + x + np.roll(x, 1, axis=1) + np.roll(x, 1, axis=2)
        texture: Frame = (total * np.float32(0.25) * np.float32(255)).round().astype(np.uint8)
        return texture

    bundle = golden.golden_bundle(
        DATA / "woven.topcoat", tmp_path / "w.topcoat", woven, tr.noise_frame(64, 96, 0)
    )
    model = (bundle / "model.fp32.onnx").read_bytes()
    add_variant(bundle, "model.fp16.onnx", model, precision="fp16")
    found = tr.verify(bundle, threads=1, backends=CPU)
    assert found
    first, second = found.measured
    assert set(first.groups) == {"noise", "tiling"}
    assert first.reference == "golden pair"
    assert set(second.groups) == {"noise", "tiny", "tiling"}
    for row in rows_of(bundle).values():
        assert row["noise"]["max_steps"] <= 1
        assert "photographs" not in row
    with pytest.raises(tr.TextureError, match="leave them out"):
        tr.verify(bundle, photos=tmp_path)


def test_a_users_photographs_are_compared_as_well(doubling: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    photos = tmp_path / "photos"
    photos.mkdir()
    image.fromarray(smooth(60, 2000)).save(photos / "wide.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    add_variant(
        doubling, "model.fp16.onnx", (doubling / "model.fp32.onnx").read_bytes(), precision="fp16"
    )
    said: list[str] = []
    found = tr.verify(doubling, photos=photos, threads=1, backends=CPU, progress=said.append)
    assert "skipped: " in said[0]
    assert "broken.jpg" in said[0]
    shapes = {probe.name: probe.frame.shape for probe, _ in found.measured[1].frames}
    assert shapes["wide.png"] == (15, 512, 3)


@pytest.mark.parametrize("make", ["missing", "a file", "empty"])
def test_a_folder_without_photographs_is_refused(doubling: Path, tmp_path: Path, make: str) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    photos = tmp_path / "photos"
    if make == "a file":
        photos.write_text("no folder")
    elif make == "empty":
        photos.mkdir()
    with pytest.raises(tr.MediaError, match="photos"):
        tr.verify(doubling, photos=photos)


# ---------------------------------------------------------------------------- what is written down


def test_unknown_keys_survive_and_so_does_what_cannot_run_here(enlarging: Path) -> None:
    tr.verify(enlarging, threads=1, backends=CPU)

    def change(manifest: dict[str, Any]) -> None:
        manifest["later"] = {"versions": [1, 2.5, None, "ü"]}
        variant = manifest["variants"][0]
        variant["hint"] = "keep"
        (row,) = variant["parity"]
        row["seen"] = "twice"
        variant["parity"].append({"backend": "of tomorrow", "compute": "fp4", "passed": True})
        variant["parity_not_run"] = [
            {"backend": "onnxruntime-cpu", "compute": "fp32", "reason": "was away"},
            {"backend": "of tomorrow", "compute": "fp8", "reason": "no such device"},
        ]

    golden.edit(enlarging, change)
    before = manifest_of(enlarging)
    assert tr.verify(enlarging, threads=1, backends=CPU, everything=True).measured
    after = manifest_of(enlarging)
    variant = before["variants"][0]
    variant["parity_not_run"] = variant["parity_not_run"][1:]
    assert after == before
    assert list(after) == list(before)
    text = (enlarging / "manifest.json").read_text(encoding="utf-8")
    assert text.startswith('{\n "format"')
    assert "ü" in text


def test_a_row_is_replaced_and_not_doubled(enlarging: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        failed = {"backend": "onnxruntime-cpu", "compute": "fp32", "passed": False}
        manifest["variants"][0]["parity"] = [{**failed, "photographs": {"max_steps": 200}}] * 2

    golden.edit(enlarging, change)
    tr.verify(enlarging, threads=1, backends=CPU)
    (row,) = manifest_of(enlarging)["variants"][0]["parity"]
    assert row["passed"] is True
    assert row["photographs"]["max_steps"] <= 1


def test_a_dry_run_measures_and_changes_nothing(
    enlarging: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_to_onnxruntime(enlarging)
    before = contents(enlarging)
    assert main(["verify", str(enlarging), "--dry-run", "--json", "--threads", "1"]) == 0
    assert contents(enlarging) == before
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["recorded"]) == (True, False)
    assert {row["status"] for row in found["rows"]} >= {"passed"}


@pytest.mark.parametrize("what", ["manifest.json", "."])
def test_a_bundle_that_is_read_only_is_left_alone(
    enlarging: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = enlarging / what
    mode = place.stat().st_mode
    before = contents(enlarging)
    place.chmod(mode & ~0o222)
    try:
        assert main(["verify", str(enlarging)]) == 2
        captured = capsys.readouterr()
        assert tr.verify(enlarging, record=False, threads=1, backends=CPU)
    finally:
        place.chmod(mode)
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "it is read-only" in line
    assert "--dry-run" in line
    assert contents(enlarging) == before


def test_a_disk_that_fills_up_leaves_the_old_manifest(
    enlarging: Path, run_python: Callable[..., Any]
) -> None:
    pytest.importorskip("resource", reason="the system has no limits on file sizes")
    before = contents(enlarging)
    code = (
        "import resource, sys\n"
        "from topcoat.runtime.cli.topcoat import main\n"
        "_, most = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, most))\n"
        f"sys.exit(main(['verify', {str(enlarging)!r}, '--quiet', '--threads', '1']))\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 2, done.stderr
    assert "manifest.json cannot be written (File too large)" in done.stderr
    assert contents(enlarging) == before


def test_an_interruption_keeps_the_rows_that_were_complete(enlarging: Path) -> None:
    model = (enlarging / "model.fp32.onnx").read_bytes()
    add_variant(enlarging, "model.fp16.onnx", model, precision="fp16")

    def stop(what: str) -> None:
        if "fp16" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tr.verify(enlarging, threads=1, backends=CPU, progress=stop)
    assert list(rows_of(enlarging)) == [("model.fp32.onnx", "onnxruntime-cpu", "fp32", None)]
    assert not [name for name in contents(enlarging) if name.endswith(".part")]
    assert tr.read_manifest(enlarging)


RECORDING = """
import sys
from topcoat.runtime.bundle import read_manifest
from topcoat.runtime.parity import ParityRow, engines_for
from topcoat.runtime.parity._record import record_row

manifest = read_manifest(sys.argv[1])
engine = engines_for(manifest.variants)[0]
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    device = f"{sys.argv[2]}-{number}"
    record_row(manifest, ParityRow(engine=engine, status="passed", device=device))
"""


def test_processes_that_record_at_once_keep_each_others_rows(enlarging: Path) -> None:
    rows = 25
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RECORDING, str(enlarging), name, str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=60)
    assert [process.returncode for process in running] == [0, 0]
    devices = {key[3] for key in rows_of(enlarging)}
    assert devices == {f"{name}-{number}" for name in ("one", "two") for number in range(rows)}
    assert not [name for name in contents(enlarging) if name.startswith(".")]


def test_threads_that_record_at_once_keep_each_others_rows(enlarging: Path) -> None:
    manifest = tr.read_manifest(enlarging)
    engine = engines_for(manifest.variants)[0]
    together = threading.Barrier(4)

    def record(name: int) -> None:
        together.wait(timeout=30)
        for number in range(10):
            check_recordable(manifest)
            row = ParityRow(engine=engine, status="passed", device=f"{name}-{number}")
            record_row(manifest, row)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(record, range(4)))
    assert len(rows_of(enlarging)) == 40
    assert not [name for name in contents(enlarging) if name.startswith(".")]


def test_a_file_system_without_locks_is_told_of(
    enlarging: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("topcoat.runtime.parity._record._lock", refuse)
    assert tr.verify(enlarging, threads=1, backends=CPU)
    assert len(rows_of(enlarging)) == 1
    assert "cannot be locked (No locks available); let no other" in caplog.text


def test_a_bundle_that_is_replaced_meanwhile_is_not_written_to(enlarging: Path) -> None:
    def replace(_: str) -> None:
        golden.edit(enlarging, lambda m: m["variants"][0].update(sha256="0" * 64))

    with pytest.raises(tr.BundleIntegrityError, match="replaced meanwhile"):
        tr.verify(enlarging, threads=1, backends=CPU, progress=replace)
    assert rows_of(enlarging) == {}


# -------------------------------------------------------------------------------------- references


def test_a_wrong_golden_picture_is_no_reference(
    enlarging: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tr.verify(enlarging, threads=1, backends=CPU)
    model = (enlarging / "model.fp32.onnx").read_bytes()
    add_variant(enlarging, "model.fp16.onnx", model, precision="fp16")
    answer = frame_from_png((enlarging / "golden_out.png").read_bytes())
    golden.put_file(enlarging, "golden_out.png", golden.png(255 - answer))
    leave_to_onnxruntime(enlarging)
    before = contents(enlarging)
    with pytest.raises(tr.ParityError, match=r"golden_out\.png is not what onnxruntime-cpu fp32"):
        tr.verify(enlarging, threads=1, backends=CPU)
    assert main(["verify", str(enlarging), "--quiet", "--threads", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(enlarging) == before


def test_without_a_reference_nothing_is_marked_as_measured(enlarging: Path) -> None:
    answer = frame_from_png((enlarging / "golden_out.png").read_bytes())
    golden.put_file(enlarging, "golden_out.png", golden.png(255 - answer))
    model = (enlarging / "model.fp32.onnx").read_bytes()
    add_variant(enlarging, "model.fp16.onnx", model, precision="fp16")
    found = tr.verify(enlarging, threads=1, backends=CPU)
    assert not found
    assert [row.status for row in found.rows] == ["failed", "not run"]
    assert "failed here" in found.rows[1].reason
    ((key, row),) = rows_of(enlarging).items()
    assert (key[2], row["passed"]) == ("fp32", False)


def test_a_reference_that_has_failed_before_must_pass_first(
    enlarging: Path, make_bundles: ModuleType
) -> None:
    """The fp32 file is another network, and somebody says that it had passed."""
    other = another_network(enlarging, make_bundles)
    (enlarging / "model.fp32.onnx").write_bytes(other)
    golden.edit(enlarging, lambda m: m["variants"][0].update(golden.identity(other)))
    passed = {"backend": "onnxruntime-cpu", "compute": "fp32", "passed": True, "photographs": {}}
    golden.edit(enlarging, lambda m: m["variants"][0].update(parity=[passed]))
    add_variant(enlarging, "model.fp16.onnx", other, precision="fp16")
    with pytest.raises(tr.ParityError, match="nothing can be compared with either"):
        tr.verify(enlarging, threads=1, backends=CPU)
    assert list(rows_of(enlarging)) == [("model.fp32.onnx", "onnxruntime-cpu", "fp32", None)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("golden_in.png", b"GIF89a", r"golden_in\.png is no PNG"),
        ("golden_out.png", golden.png(smooth(40, 50)), "has 50x40 pixels, wanted 256x192"),
        ("golden_out.png", golden.png(smooth(192, 256))[:-30], "is cut off"),
        ("parity.json", b"[]", r"parity\.json is not the JSON of an export"),
    ],
)
def test_golden_pictures_that_are_none_are_refused(
    enlarging: Path, name: str, data: bytes, message: str
) -> None:
    golden.put_file(enlarging, name, data)
    model = (enlarging / "model.fp32.onnx").read_bytes()
    add_variant(enlarging, "model.fp16.onnx", model, precision="fp16")
    with pytest.raises(tr.BundleError, match=message):
        tr.verify(enlarging, threads=1, backends=CPU)


def test_golden_pictures_that_are_missing_or_were_changed_are_refused(enlarging: Path) -> None:
    bare = shutil.copytree(enlarging, enlarging.with_name("bare.topcoat"))
    golden.edit(bare, lambda manifest: manifest["files"].pop("golden_in.png"))
    with pytest.raises(tr.BundleError, match=r"lists no golden_in\.png"):
        tr.verify(bare)
    with (enlarging / "golden_out.png").open("r+b") as file:
        file.seek(60)
        file.write(b"?")
    with pytest.raises(tr.BundleIntegrityError, match=r"golden_out\.png"):
        tr.verify(enlarging)
    assert rows_of(enlarging) == {}


# --------------------------------------------------------------------------------- engines for GPUs


class PretendedGpu:
    """A GPU of one generation; its engines are ONNX models, which ONNX Runtime's CPU computes."""

    name = "tensorrt-rtx"

    def __init__(
        self, sm: str, *, grid: int = 0, largest: int | None = None, deadly: str | None = None
    ) -> None:
        self._sm = sm
        self._grid = grid
        self._largest = largest
        self._deadly = deadly
        self._lost: list[str] = []

    def missing(self) -> str | None:
        return None

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        if variant.engine is None:
            return ()
        targets = variant.engine.targets
        obstacle = None if self._sm in targets else f"built for {targets}, this is {self._sm}"
        return (Compute(compute=variant.precision, device=self._sm, obstacle=obstacle),)

    def version(self) -> str:
        return "1.7"

    def start(self) -> None:
        pass

    def load(self, variant: Variant, model: bytes, *, compute: str, threads: int) -> Session:
        if self._lost:
            raise tr.DeviceLostError(f"the GPU stopped working since {self._lost[0]}")
        deadly = self._lost if variant.file == self._deadly else None
        return _PretendedEngine(variant, model, self._grid, self._largest, deadly)


class _PretendedEngine:
    def __init__(
        self,
        variant: Variant,
        model: bytes,
        grid: int,
        largest: int | None,
        deadly: list[str] | None,
    ) -> None:
        self._session = OnnxRuntimeSession(variant, model, threads=1)
        self._file = variant.file
        self._deadly = deadly
        assert variant.engine is not None
        self._profiles = variant.engine.profiles
        self._grid = grid
        self._largest = largest

    def run(self, source: Frame, result: Frame) -> None:
        height, width = source.shape[1:3]
        if not any(profile.holds(height, width) for profile in self._profiles):
            raise tr.FrameOutsideProfileError(f"built for other sizes than {width}x{height}")
        if self._deadly is not None:
            self._deadly.append(self._file)
            raise tr.DeviceLostError("the GPU stopped working (CUDA_ERROR_ILLEGAL_ADDRESS)")
        if self._largest is not None and height * width > self._largest:
            raise tr.DeviceMemoryError(f"no memory for {width}x{height}")
        self._session.run(source, result)
        columns = result[:, :, ::2]
        np.add(columns, self._grid, out=columns, where=columns < 255, casting="unsafe")

    def close(self) -> None:
        self._session.close()


def add_engine(
    bundle: Path,
    file: str = "rtx.fp16.engine",
    sizes: tuple[tuple[int, int], ...] = ((1, 1), (64, 64), (512, 512)),
    targets: tuple[str, ...] = ("sm89",),
) -> None:
    least, best, most = (list(size) for size in sizes)
    add_variant(
        bundle,
        file,
        (bundle / "model.fp32.onnx").read_bytes(),
        kind="tensorrt-rtx",
        precision="fp16",
        opset=None,
        engine={
            "library": "tensorrt_rtx",
            "version": "1.7",
            "targets": list(targets),
            "profiles": [{"min": least, "opt": best, "max": most}],
            "key": "a" * 64,
        },
        parity_not_run=[
            {"backend": "tensorrt-rtx", "compute": "fp16", "reason": "built, not run here: no GPU"}
        ],
    )


def test_an_engine_that_was_built_elsewhere_is_completed_here(doubling: Path) -> None:
    add_engine(doubling, targets=("sm89", "sm120"))
    found = tr.verify(doubling, threads=1, backends=(*CPU, PretendedGpu("sm89")))
    assert found
    engine = manifest_of(doubling)["variants"][1]
    (read,) = tr.read_manifest(doubling).variants[1].parity
    assert (read.device, read.reference) == ("sm89", "golden pair, onnxruntime-cpu fp32")
    assert read.where["library"] == "tensorrt-rtx 1.7"
    assert engine["parity_not_run"] == []
    (row,) = engine["parity"]
    assert (row["device"], row["passed"]) == ("sm89", True)
    assert row["where"]["library"] == "tensorrt-rtx 1.7"
    assert row["reference"] == "golden pair, onnxruntime-cpu fp32"
    # Another generation of GPU is another engine to the gates: it is measured by itself.
    manifest = tr.read_manifest(doubling)
    assert manifest.variants[1].parity_row("tensorrt-rtx", "fp16", "sm120") is None
    tr.verify(doubling, threads=1, backends=(*CPU, PretendedGpu("sm120")))
    assert [row["device"] for row in manifest_of(doubling)["variants"][1]["parity"]] == [
        "sm89",
        "sm120",
    ]
    again = tr.verify(doubling, threads=1, backends=(*CPU, PretendedGpu("sm89")))
    assert again.measured == []


def test_an_engine_for_another_gpu_is_not_run_and_nothing_is_written_of_it(
    enlarging: Path,
) -> None:
    add_engine(enlarging)
    before = manifest_of(enlarging)["variants"][1]
    found = tr.verify(enlarging, threads=1, backends=(*CPU, PretendedGpu("sm75")))
    row = found.rows[0]
    assert row.status == "not run"
    assert row.reason.startswith("built, not run here: built for ('sm89',), this is sm75")
    assert found
    assert manifest_of(enlarging)["variants"][1] == before


def test_an_engine_of_one_size_is_compared_at_that_size(doubling: Path) -> None:
    add_engine(doubling, sizes=((96, 160),) * 3)
    found = tr.verify(doubling, threads=1, backends=(*CPU, PretendedGpu("sm89")))
    row = found.measured[1]
    assert row
    assert {probe.frame.shape for probe, _ in row.frames} == {(96, 160, 3)}
    assert set(row.groups) == {"photographs", "synthetic"}
    assert row.reference == "onnxruntime-cpu fp32"  # the golden picture has another size


def test_an_engine_that_prints_a_grid_is_found_by_the_colours_that_the_export_judged(
    doubling: Path,
) -> None:
    add_engine(doubling)
    honest, printing = PretendedGpu("sm89"), PretendedGpu("sm89", grid=1)
    # Nobody says which colours the network leaves flat: a step more is what fp16 may be off.
    unjudged = tr.verify(doubling, threads=1, record=False, backends=(*CPU, printing))
    assert unjudged
    judged = [f"#{bytes(colour).hex()}" for colour in flat_colours()]
    golden.put_file(doubling, "parity.json", json.dumps({"flat_judged": judged}).encode())
    found = tr.verify(doubling, threads=1, record=False, backends=(*CPU, printing))
    assert not found
    (failure,) = found.measured[1].failures
    assert "flat areas uneven, by up to 1 step, allowed 0" in failure
    assert tr.verify(doubling, threads=1, backends=(*CPU, honest))


@pytest.mark.parametrize("name", ["doubling", "enlarging"])
def test_too_little_device_memory_is_no_verdict(name: str, request: pytest.FixtureRequest) -> None:
    """Nor is what comes out in tiles, which the second bundle can be cut into."""
    bundle: Path = request.getfixturevalue(name)
    add_engine(bundle)
    gpu = PretendedGpu("sm89", largest=3000)
    found = tr.verify(bundle, threads=1, backends=(*CPU, gpu))
    assert [row.status for row in found.rows] == ["passed", "not run"]
    assert "no memory for" in found.rows[1].reason
    assert manifest_of(bundle)["variants"][1]["parity"] == []


def test_an_engine_that_takes_the_gpu_down_has_failed_on_it(doubling: Path) -> None:
    add_engine(doubling, file="a.engine")
    add_engine(doubling, file="b.engine")
    gpu = PretendedGpu("sm89", deadly="a.engine")
    found = tr.verify(doubling, threads=1, backends=(*CPU, gpu))
    assert not found
    assert [row.status for row in found.rows] == ["passed", "failed", "not run"]
    assert found.rows[1].failures == ["the GPU stopped working (CUDA_ERROR_ILLEGAL_ADDRESS)"]
    rows = rows_of(doubling)
    assert rows["a.engine", "tensorrt-rtx", "fp16", "sm89"]["passed"] is False
    # The other one is not to blame: it never ran.
    assert found.undecided == [found.rows[2]]
    assert "since a.engine" in found.rows[2].reason
    assert ("b.engine", "tensorrt-rtx", "fp16", "sm89") not in rows


def test_an_engine_of_this_device_that_is_left_undecided_is_no_success(
    doubling: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_engine(doubling)
    gpu = PretendedGpu("sm89", largest=3000)
    monkeypatch.setattr("topcoat.runtime.parity._verify.all_backends", lambda: (*CPU, gpu))
    for _ in range(2):  # also when nothing else is left to measure
        assert main(["verify", str(doubling), "--threads", "1", "--quiet"]) == 1
        out = capsys.readouterr().out
        assert "still unproved here: tensorrt-rtx fp16 (rtx.fp16.engine): " in out
        assert "cannot run here" not in out
        assert "nothing to measure" not in out
    elsewhere = PretendedGpu("sm75")
    monkeypatch.setattr("topcoat.runtime.parity._verify.all_backends", lambda: (*CPU, elsewhere))
    assert main(["verify", str(doubling), "--threads", "1", "--quiet"]) == 0
    assert "cannot run here: tensorrt-rtx fp16" in capsys.readouterr().out


def test_too_little_memory_for_the_largest_size_is_noted_and_the_rest_decides(
    doubling: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_engine(doubling, sizes=((1, 1), (64, 64), (192, 192)))
    gpu = PretendedGpu("sm89", largest=20_000)
    monkeypatch.setattr("topcoat.runtime.parity._verify.all_backends", lambda: (*CPU, gpu))
    assert main(["verify", str(doubling), "--threads", "1", "--quiet"]) == 0
    said = "not compared at 192x192: tensorrt-rtx fp16 (rtx.fp16.engine): out of memory: no memory"
    assert said in capsys.readouterr().out
    row = rows_of(doubling)["rtx.fp16.engine", "tensorrt-rtx", "fp16", "sm89"]
    assert row["passed"] is True
    assert row["sizes"]["64x64"] == "compared"
    assert row["sizes"]["192x192"].startswith("out of memory: no memory for 192x192")
    (read,) = tr.read_manifest(doubling).variants[1].parity
    assert dict(read.sizes) == row["sizes"]
    # With room for it, the row is replaced by one that says so.
    assert tr.verify(doubling, threads=1, everything=True, backends=(*CPU, PretendedGpu("sm89")))
    row = rows_of(doubling)["rtx.fp16.engine", "tensorrt-rtx", "fp16", "sm89"]
    assert set(row["sizes"].values()) == {"compared"}


@pytest.mark.parametrize("short", ["device", "host"])
def test_an_engine_passes_only_at_the_size_that_it_was_tuned_for(
    short: str, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engine(doubling, sizes=((1, 1), (128, 128), (256, 256)))
    gpu = PretendedGpu("sm89", largest=64 * 200 if short == "device" else None)
    if short == "host":
        monkeypatch.setattr(
            "topcoat.runtime.parity._measure.affordable", lambda _, height, width: height < 100
        )
    found = tr.verify(doubling, threads=1, backends=(*CPU, gpu))
    assert not found
    row = found.rows[-1]
    assert (row.status, row.undecided) == ("not run", True)
    wanted = {
        "device": "no memory for 128x128",
        "host": "not compared at 128x128, which it was tuned for: too little memory for the",
    }
    assert wanted[short] in row.reason
    assert manifest_of(doubling)["variants"][1]["parity"] == []


def test_an_engine_is_never_compared_with_itself_for_want_of_a_reference(doubling: Path) -> None:
    """Of a bundle without a model, only the golden pair can be a reference."""
    add_engine(doubling)
    add_engine(doubling, file="golden.engine", sizes=((70, 90),) * 3)
    golden.edit(doubling, lambda manifest: manifest["variants"].pop(0))
    found = tr.verify(doubling, threads=1, backends=(*CPU, PretendedGpu("sm89")))
    assert [row.status for row in found.rows] == ["not run", "passed"]
    assert "at 64x64, which it was tuned for: nothing here can be" in found.rows[0].reason
    assert [probe.name for probe, _ in found.rows[1].frames] == ["golden_in.png"]


def test_engines_of_the_same_size_share_the_answers_of_the_reference(doubling: Path) -> None:
    add_engine(doubling, file="a.engine", sizes=((96, 160),) * 3)
    add_engine(doubling, file="b.engine", sizes=((96, 160),) * 3)
    found = tr.verify(doubling, threads=1, backends=(*CPU, PretendedGpu("sm89")))
    first, second = found.measured[1:]
    names = [[probe.name for probe, _ in row.frames] for row in (first, second)]
    assert names[0] == names[1]
    asked: list[ProbeFrame] = []

    def ask(probe: ProbeFrame) -> Answer:
        asked.append(probe)
        return Answer(frame=probe.frame)

    answers = Answers(ask)
    for row in (first, second):
        for probe, _ in row.frames:
            np.testing.assert_array_equal(np.asarray(answers(probe).frame), probe.frame)
    assert len(asked) == len(first.frames)


def test_two_engines_of_one_backend_are_told_apart(
    doubling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_engine(doubling)
    add_engine(doubling, file="rtx.hd.engine", sizes=((96, 160),) * 3)
    found = tr.verify(doubling, threads=1, backends=(*CPU, PretendedGpu("sm89")))
    assert [row.engine.file for row in found.measured] == [
        "model.fp32.onnx",
        "rtx.fp16.engine",
        "rtx.hd.engine",
    ]
    rows = rows_of(doubling)
    assert ("rtx.fp16.engine", "tensorrt-rtx", "fp16", "sm89") in rows
    assert ("rtx.hd.engine", "tensorrt-rtx", "fp16", "sm89") in rows


# ------------------------------------------------------------------------------------- the command


def test_the_command_says_what_it_did_in_a_table(
    enlarging: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_to_onnxruntime(enlarging)
    assert main(["verify", str(enlarging), "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert "onnxruntime-cpu fp32 (model.fp32.onnx)" in captured.err
    lines = captured.out.splitlines()
    assert lines[0].startswith("| Engine ")
    assert any(line.startswith("| onnxruntime-cpu fp32 | passed ") for line in lines)
    assert lines[-1] == "local4: recorded in manifest.json"
    assert main(["verify", str(enlarging), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "passed before, not measured again: onnxruntime-cpu fp32 (model.fp32.onnx)" in lines
    assert lines[-1] == "local4: nothing to measure on this machine"


def test_a_folder_that_is_no_bundle_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_verified_through_the_tensorrt_backend(
    tmp_path: Path, make_bundles: ModuleType
) -> None:
    """The driver and the library are pretended; staging, streams and graphs are the backend's."""
    plain = golden.golden_bundle(
        DATA / "double.topcoat", tmp_path / "double.topcoat", make_bundles.double, smooth(70, 90)
    )
    (tmp_path / "built").mkdir()
    bundle = make_engine_bundle(
        plain, tmp_path / "built", precision="fp16", verified_on=None, targets=("sm89", "sm120")
    )
    rig = Rig()
    found = tr.verify(bundle, threads=1, backends=(rig.backend, *CPU))
    rig.check()
    assert found
    row = found.measured[-1]
    assert (row.engine.backend, row.device) == ("tensorrt-rtx", "sm89")
    assert row.where["library"].startswith("tensorrt-rtx 1.7")
    assert set(row.groups) >= {"photographs", "sizes", "synthetic"}
    assert not {"memory", "pinned", "streams", "graphs"} & set(rig.cuda.live())
    key = ("tensorrt-rtx.fp16.engine", "tensorrt-rtx", "fp16", "sm89")
    assert rows_of(bundle)[key]["passed"] is True
    with rig.open(bundle, backend="tensorrt-rtx") as model:
        chosen = model.explain().chosen
        assert chosen is not None
        assert chosen.verified
