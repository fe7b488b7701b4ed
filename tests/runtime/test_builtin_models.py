"""The models that come with the package: found by name, listed, proved where code is read-only."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import topcoat.runtime as tr
from tests.runtime import golden
from tests.runtime.conftest import DATA
from topcoat.runtime import _builtin
from topcoat.runtime.backends.onnxruntime import OnnxRuntimeCpu
from topcoat.runtime.cli import bench_latency
from topcoat.runtime.cli.topcoat import main

CPU = (OnnxRuntimeCpu(),)
LIMIT = 15_000_000
"""Bytes that all built-in models may take together."""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with the two fixture bundles, a home of its own, and a place to work in."""
    folder = tmp_path / "site-packages" / "models"
    folder.mkdir(parents=True)
    shutil.copytree(DATA / "blocks.topcoat", folder / "blocks.topcoat")
    shutil.copytree(DATA / "double.topcoat", folder / "double.topcoat")
    (folder / ".hidden").mkdir()
    (folder / "unfinished.topcoat").mkdir()
    monkeypatch.setattr(_builtin, "MODELS", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return folder


@pytest.fixture
def unproved(models: Path, make_bundles: Any) -> Path:  # noqa: ANN401 - a module
    """A built-in model with a golden pair, of which nothing is proved."""
    y, x = np.mgrid[0:48, 0:64]
    planes = [127 + 90 * np.sin(x / (9 + c)) + 30 * np.cos(y / (4 + c)) for c in range(3)]
    return golden.golden_bundle(
        DATA / "local4.topcoat",
        models / "sharpen.topcoat",
        lambda frame: make_bundles.local("local4", frame),
        np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------- being found


def test_only_whole_bundles_are_models_in_the_order_of_their_names(models: Path) -> None:
    assert tr.builtin_models() == {
        "blocks": models / "blocks.topcoat",
        "double": models / "double.topcoat",
    }


def test_a_name_does_wherever_a_bundle_is_asked_for(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = np.zeros((16, 24, 3), np.uint8)
    with tr.open("blocks", backend="onnxruntime-cpu", threads=1) as model:
        assert model.manifest.folder == models / "blocks.topcoat"
        assert model.process(frame).shape == frame.shape
    assert tr.read_manifest("double").scale == 2
    assert tr.verify_files(Path("double")).name == "double"
    with tr.Pass.open("blocks", mode="sync", backend="onnxruntime-cpu", threads=1) as pass_:
        result = pass_.present(tr.RenderFrame(color=frame, index=0))
        assert result.status is tr.Status.FRESH
    assert tr.Pass.requirements("double", (64, 64)).engine_size == (32, 32)
    assert main(["info", "double"]) == 0
    assert main(["explain", "blocks", "--backend", "onnxruntime-cpu"]) == 0
    short = ["--sizes", "16x16", "--seconds", "0.01", "--rounds", "1", "--threads", "1"]
    assert bench_latency.main(["blocks", *short, "--backend", "onnxruntime-cpu"]) == 0
    assert "blocks" in capsys.readouterr().out


def test_a_picture_is_run_through_a_model_by_its_name(models: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save("photo.png")
    engine = ["--backend", "onnxruntime-cpu", "--threads", "1"]
    assert main(["run", "photo.png", "out.png", "--model", "double", *engine]) == 0
    with image.open("out.png") as made:
        assert made.size == (60, 40)


def test_a_path_comes_before_a_name(models: Path) -> None:
    shutil.copytree(DATA / "local2.topcoat", "blocks")
    assert tr.read_manifest("blocks").name == "local2"
    assert tr.read_manifest(models / "blocks.topcoat").name == "blocks"


def test_a_folder_that_hides_a_model_is_told_apart_from_it(models: Path) -> None:
    Path("blocks").mkdir()
    with pytest.raises(tr.BundleError, match=r"is empty; .*rename it .* built-in model blocks"):
        tr.read_manifest("blocks")


def test_a_file_that_hides_a_model_is_told_apart_from_it(models: Path) -> None:
    Path("blocks").write_text("notes")
    Path("other").write_text("notes")
    with pytest.raises(tr.BundleError, match=r"is a file; .*rename it .* built-in model blocks$"):
        tr.read_manifest("blocks")
    with pytest.raises(tr.BundleError, match=r"is a file; .*, which is a folder$"):
        tr.read_manifest("other")


@pytest.mark.parametrize("name", ["wave", "Blocks", "blocks.topcoat", "./wave", "models/blocks"])
def test_a_name_that_nobody_knows_is_one_line_with_the_names(
    models: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["info", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not exist; give the folder NAME.topcoat of a bundle" in line
    assert line.endswith("or a built-in model: blocks, double")


def test_a_name_that_no_file_system_takes_is_one_line(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "b" * 300]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    # Which of the two it is depends on the Python version.
    assert "cannot be looked up: " in line or "does not exist; " in line
    assert line.endswith("or a built-in model: blocks, double")


def test_without_models_bundles_are_opened_as_ever_and_the_list_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_builtin, "MODELS", tmp_path / "none")
    assert tr.builtin_models() == {}
    assert tr.read_manifest(DATA / "blocks.topcoat").name == "blocks"
    with pytest.raises(tr.BundleError, match=r"give the folder NAME\.topcoat of a bundle$"):
        tr.read_manifest("starry-night")
    assert main(["models"]) == 2
    assert "install topcoat-runtime again" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- being listed


def test_the_list_says_what_each_model_is(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = models / "double.topcoat" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "description": "every pixel four times"}))
    assert main(["models"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["blocks", "style"]
    assert second.split()[:3] == ["double", "super-resolution", "x2"]
    assert second.endswith("every pixel four times")
    assert main(["models", "--json"]) == 0
    (_, listed) = json.loads(capsys.readouterr().out)
    assert listed == {
        "name": "double",
        "task": "super-resolution",
        "scale": 2,
        "bytes": sum(len(data) for data in contents(models / "double.topcoat").values()),
        "description": "every pixel four times",
        "folder": str(models / "double.topcoat"),
    }
    assert main(["info", "double"]) == 0
    assert "  about         every pixel four times\n" in capsys.readouterr().out


def test_a_description_that_is_no_text_is_refused(models: Path) -> None:
    manifest = models / "double.topcoat" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "description": 7}))
    with pytest.raises(tr.BundleError, match="description is 7, wanted a text"):
        tr.read_manifest("double")


# ----------------------------------------------------------------------------------- being proved


def test_what_is_proved_of_a_model_is_kept_in_the_user_s_folder(
    unproved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(tr.BackendError, match="no parity check"):
        tr.open("sharpen", backend="onnxruntime-cpu")
    before = contents(unproved)
    found = tr.verify("sharpen", threads=1, backends=CPU)
    assert found
    assert found.record == tmp_path / "cache" / "topcoat" / "verified" / "sharpen.json"
    assert found.record.is_file()
    assert contents(unproved) == before
    with tr.open("sharpen", backend="onnxruntime-cpu", threads=1) as model:
        chosen = model.explain().chosen
        assert chosen is not None
        assert chosen.verified
    # Nor is it measured again, and by its path it is the same model.
    assert not tr.verify(unproved, threads=1, backends=CPU).measured
    assert main(["verify", "sharpen", "--quiet", "--threads", "1"]) in (0, 1)
    capsys.readouterr()
    # A copy is nobody's built-in: what was proved of it goes with it.
    copy = Path(shutil.copytree(unproved, "sharpen.topcoat"))
    with pytest.raises(tr.BackendError, match="no parity check"):
        tr.open(copy, backend="onnxruntime-cpu")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_model_in_a_read_only_place_is_verified_all_the_same(unproved: Path) -> None:
    for path in (*unproved.iterdir(), unproved):
        path.chmod(path.stat().st_mode & 0o555)
    assert tr.verify("sharpen", threads=1, backends=CPU)


def test_a_row_does_not_outlive_the_file_that_it_was_measured_on(
    unproved: Path,
    make_bundles: Any,  # noqa: ANN401 - a module
) -> None:
    assert tr.verify("sharpen", threads=1, backends=CPU)
    model = unproved / "model.fp32.onnx"
    weights = make_bundles._local_weights("local4")["last"]
    other = model.read_bytes().replace(weights.tobytes(), (weights * np.float32(1.3)).tobytes())
    model.write_bytes(other)
    golden.edit(unproved, lambda content: content["variants"][0].update(golden.identity(other)))
    with pytest.raises(tr.BackendError, match="no parity check"):
        tr.open("sharpen", backend="onnxruntime-cpu")


def test_rows_of_another_version_s_file_are_kept_beside(unproved: Path) -> None:
    found = tr.verify("sharpen", threads=1, backends=CPU)
    assert found.record is not None
    content = json.loads(found.record.read_text())
    (entry,) = content["variants"]
    content["variants"] = [{**entry, "sha256": "0" * 64}]
    found.record.write_text(json.dumps(content))
    assert tr.verify("sharpen", threads=1, backends=CPU).measured
    hashes = [v["sha256"] for v in json.loads(found.record.read_text())["variants"]]
    assert hashes == ["0" * 64, entry["sha256"]]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"variants": 5}',
        '{"variants": [{"file": "model.fp32.onnx"}]}',
        "row without a verdict",
    ],
)
def test_a_damaged_record_is_told_ignored_and_written_anew(
    unproved: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    found = tr.verify("sharpen", threads=1, backends=CPU)
    assert found.record is not None
    content = json.loads(found.record.read_text())
    del content["variants"][0]["parity"][0]["passed"]
    found.record.write_text(json.dumps(content) if text.startswith("row") else text)
    assert not tr.read_manifest("sharpen").variants[0].parity
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(found.record) in said
    assert "verify again" in said
    assert tr.verify("sharpen", threads=1, backends=CPU).measured
    assert tr.read_manifest("sharpen").variants[0].parity


def test_without_a_home_nothing_is_measured_that_could_not_be_kept(
    unproved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_builtin, "cache_folder", lambda part: None)
    with pytest.raises(tr.BundleWriteError, match="there is no home folder"):
        tr.verify("sharpen", backends=CPU)
    assert tr.verify("sharpen", record=False, threads=1, backends=CPU)
    assert not tr.read_manifest("sharpen").variants[0].parity


def test_a_folder_for_records_that_cannot_be_made_is_one_line(
    unproved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    assert main(["verify", "sharpen", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line


# ------------------------------------------------------------------------- those that really come


def test_all_models_together_stay_small_and_hold_nothing_but_what_they_list() -> None:
    models = tr.builtin_models()
    assert models
    total = 0
    for name, folder in models.items():
        manifest = tr.verify_files(folder)
        assert manifest.name == name
        assert manifest.description
        assert "\n" not in manifest.description
        listed = {"manifest.json", *manifest.files, *(v.file for v in manifest.variants)}
        assert {path.name for path in folder.iterdir()} == listed
        total += sum(path.stat().st_size for path in folder.iterdir())
    assert total <= LIMIT
    # A folder that is there but not among them would be shipped and never found.
    assert {path.name for path in _builtin.MODELS.iterdir()} == {f.name for f in models.values()}


@pytest.mark.parametrize("name", sorted(tr.builtin_models()))
def test_a_model_is_proved_and_gives_its_golden_picture(name: str) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = tr.builtin_models()[name]
    passed = {
        row.backend for v in tr.read_manifest(name).variants for row in v.parity if row.passed
    }
    assert {"onnxruntime-cpu", "openvino-cpu"} <= passed
    with tr.open(name, backend="onnxruntime-cpu", precision="fp32", threads=1) as model:
        given, wanted = (
            np.asarray(image.open(folder / f"golden_{end}.png").convert("RGB"))
            for end in ("in", "out")
        )
        steps = np.abs(model.process(np.ascontiguousarray(given)).astype(int) - wanted)
    assert steps.max() <= 1
    assert (steps > 0).mean() < 0.001


def test_listing_the_models_loads_no_engine(run_python: Callable[..., Any]) -> None:
    code = (
        "import sys; from topcoat.runtime.cli.topcoat import main; main(['models']);"
        "print(sorted({'onnxruntime', 'openvino', 'PIL', 'torch'} & set(sys.modules)))"
    )
    out = run_python("-c", code).stdout
    assert out.splitlines()[-1] == "[]"
    assert {line.split()[0] for line in out.splitlines()[:-1]} == set(tr.builtin_models())
