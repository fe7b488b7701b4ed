"""Engines are built for real, with TensorRT for RTX, which needs no GPU for that."""

import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import topcoat.runtime
from tests.export.conftest import (
    ExportedBundle,
    export_engine_main,
    sr_checkpoint,
    tiny_checkpoint,
)
from topcoat.export._errors import (
    EngineBuildError,
    EngineLibraryError,
    EngineRequestError,
    OutputError,
)
from topcoat.export.bundle_writer import export_bundle
from topcoat.export.engines import (
    BuiltEngine,
    EngineRequest,
    Library,
    _worker,
    build_engine,
    find_library,
    key_of,
    parse_profile,
)
from topcoat.export.engines.reuse import Earlier, earlier_bundle
from topcoat.export.onnx_from_checkpoint import Precision, onnx_from_network
from topcoat.export.precision import PrecisionPlan
from topcoat.export.sources import open_source
from topcoat.runtime import Profile
from topcoat.runtime.cli.topcoat import main as topcoat_main
from topcoat.train import Checkpoint, save_checkpoint

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX is not installed: pip install 'topcoat-export[rtx]'"
)

RTX = Library(engine="rtx", version="1.7.1.116", device=None, driver=None)
STATIC, DYNAMIC = parse_profile("64x48"), parse_profile("16x16:64x48:256x256")


def model_of(checkpoint: Checkpoint, precision: Precision) -> bytes:
    graph = onnx_from_network(checkpoint.build_network(), precision, task=checkpoint.task)
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, Precision], bytes]:
    """Johnson's network and a super-resolution network, in every precision of an engine."""
    networks = {"johnson": tiny_checkpoint(), "residual-sr": sr_checkpoint("residual-sr", 2)}
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    return {(n, p): model_of(c, p) for n, c in networks.items() for p in precisions}


@pytest.fixture(scope="module")
def twice(models: dict[tuple[str, Precision], bytes]) -> dict[tuple[str, str, str], Any]:
    """Every engine built two times, two builders at a time as two users would."""
    jobs = {
        (name, precision, shape): EngineRequest(
            engine="rtx", precision=precision, profiles=(profile,), targets=("sm89",)
        )
        for name, precision in models
        for shape, profile in (("static", STATIC), ("dynamic", DYNAMIC))
    }
    with ThreadPoolExecutor(2) as pool:
        futures = {
            job: [pool.submit(build_engine, models[job[0], job[1]], request) for _ in range(2)]
            for job, request in jobs.items()
        }
        return {job: [future.result() for future in pair] for job, pair in futures.items()}


@pytest.mark.parametrize("network", ["johnson", "residual-sr"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", ["static", "dynamic"])
class TestEveryEngine:
    def test_is_the_same_byte_for_byte_when_it_is_built_again(
        self, twice: dict[tuple[str, str, str], Any], network: str, precision: str, shape: str
    ) -> None:
        first, second = twice[network, precision, shape]
        if not (first.reproducible and second.reproducible):
            pytest.skip("address space randomisation cannot be switched off here")
        assert first.data == second.data
        assert first.info == second.info

    def test_takes_and_gives_bytes_and_computes_in_what_was_asked(
        self, twice: dict[tuple[str, str, str], Any], network: str, precision: str, shape: str
    ) -> None:
        built: BuiltEngine = twice[network, precision, shape][0]
        dtype = {"fp32": "float", "fp16": "half", "bf16": "bf16"}[precision]
        convolutions = [e for e in built.layers if e["kind"] == "convolution"]
        assert {e["dtype"] for e in convolutions} == {dtype}
        # Bytes come in and go out through one cast each, and nothing between is another float.
        casts = {e["dtype"]: e["count"] for e in built.layers if e["kind"] == "cast"}
        assert casts[dtype] == casts["uint8"] == 1
        floats = {e["dtype"] for e in built.layers} & {"float", "half", "bf16"}
        assert floats == {dtype}
        assert built.kind == "tensorrt-rtx"
        assert built.info.targets == ("sm89",)
        assert built.info.profiles == ((STATIC,) if shape == "static" else (DYNAMIC,))


def test_the_convolutions_of_the_engine_are_those_of_the_network(
    twice: dict[tuple[str, str, str], Any], models: dict[tuple[str, Precision], bytes]
) -> None:
    for network in ("johnson", "residual-sr"):
        graph = onnx.load_from_string(models[network, "fp16"]).graph
        wanted = sum(node.op_type == "Conv" for node in graph.node)
        layers = twice[network, "fp16", "dynamic"][0].layers
        assert sum(e["count"] for e in layers if e["kind"] == "convolution") == wanted


def test_an_engine_may_hold_several_profiles_and_targets(
    models: dict[tuple[str, Precision], bytes],
) -> None:
    request = EngineRequest(
        engine="rtx", precision="fp16", profiles=(STATIC, DYNAMIC), targets=("sm86", "sm120")
    )
    built = build_engine(models["residual-sr", "fp16"], request)
    assert built.info.profiles == (STATIC, DYNAMIC)
    assert built.info.targets == ("sm86", "sm120")


def test_a_key_changes_with_everything_that_an_engine_is_made_from() -> None:
    base = EngineRequest(engine="rtx", precision="fp16", profiles=(STATIC,), targets=("sm89",))
    model = hashlib.sha256(b"a model").hexdigest()
    keys = [key_of(base, model, RTX), key_of(base, hashlib.sha256(b"other").hexdigest(), RTX)]
    keys += [
        key_of(changed, model, RTX)
        for changed in (
            replace(base, precision="bf16"),
            replace(base, profiles=(DYNAMIC,)),
            replace(base, profiles=(STATIC, DYNAMIC)),
            replace(base, targets=("sm86",)),
            replace(base, workspace=1 << 28),
        )
    ]
    newer = Library(engine="rtx", version="1.8.0.1", device=None, driver=None)
    keys.append(key_of(base, model, newer))
    here = EngineRequest(engine="tensorrt", precision="fp16", profiles=(STATIC,))
    for device, driver in (("sm90", "580"), ("sm90", "590"), ("sm80", "580")):
        keys.append(
            key_of(
                here,
                model,
                Library(engine="tensorrt", version="11.4", device=device, driver=driver),
            )
        )
    assert len(set(keys)) == len(keys)
    assert key_of(base, model, RTX) == keys[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1920", "write WxH for one size"),
        ("1920x1080:3840x2160", "MIN:OPT:MAX"),
        ("0x16", "write WxH"),
        ("64x64:32x32:128x128", "neither side may shrink"),
        ("64x64:128x128:96x256", "neither side may shrink"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(EngineRequestError, match=words):
        parse_profile(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "trt"}, "choose one of rtx, tensorrt"),
        ({"engine": "rtx", "precision": "fp8"}, "cannot compute in 'fp8'"),
        ({"engine": "rtx", "targets": ("sm90",)}, "does not build for sm90"),
        ({"engine": "rtx", "targets": ("sm75", "sm89")}, "can only be built alone"),
        ({"engine": "rtx", "targets": ("sm89", "sm89")}, "at least and at most once"),
        ({"engine": "rtx", "workspace": 5}, "give at least 1, or none"),
        ({"engine": "tensorrt", "targets": ("sm89",)}, "build with --engine rtx"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineRequestError, match=words):
        EngineRequest(**settings)


def test_the_default_profile_reaches_from_the_smallest_frame_to_a_4k_result() -> None:
    style = EngineRequest(engine="rtx").settled(tiny_checkpoint().build_network())
    assert [str(profile) for profile in style.profiles] == ["8x8:1920x1080:3840x2160"]
    assert style.targets == ("sm80", "sm86", "sm89", "sm120")
    larger = EngineRequest(engine="rtx").settled(sr_checkpoint("residual-sr", 4).build_network())
    assert [str(profile) for profile in larger.profiles] == ["1x1:480x270:960x540"]


def test_a_profile_of_sizes_that_never_reach_an_engine_is_refused() -> None:
    request = EngineRequest(engine="rtx", profiles=(parse_profile("1366x766"),))
    with pytest.raises(EngineRequestError, match="write 1368x768"):
        request.settled(tiny_checkpoint().build_network())


def test_an_absent_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineLibraryError, match=r"pip install 'topcoat-export\[tensorrt\]'"):
        find_library("tensorrt")


def test_bindings_without_their_library_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "tensorrt.py"
    broken.write_text("raise ImportError('libnvonnxparser.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineLibraryError, match=r"libnvonnxparser.*install it whole"):
        find_library("tensorrt")


def graph_with(*nodes: onnx.NodeProto, initializers: list[Any] | None = None) -> bytes:
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, ["n", "h", "w", 3])
    styled = helper.make_tensor_value_info("styled", TensorProto.UINT8, ["n", "h", "w", 3])
    graph = helper.make_graph(list(nodes), "g", [frame], [styled], initializers or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def test_every_operator_that_tensorrt_does_not_know_is_named() -> None:
    model = graph_with(
        helper.make_node("Cast", ["frame"], ["a"], to=TensorProto.FLOAT, name="first"),
        helper.make_node("StringNormalizer", ["a"], ["b"], name="second"),
        helper.make_node("Cast", ["b"], ["styled"], to=TensorProto.UINT8, name="third"),
    )
    request = EngineRequest(engine="rtx", precision="fp32", profiles=(STATIC,), targets=("sm89",))
    with pytest.raises(EngineBuildError, match=r"second \(StringNormalizer\)"):
        build_engine(model, request)


def test_a_model_of_another_precision_than_asked_for_is_refused(
    models: dict[tuple[str, Precision], bytes],
) -> None:
    request = EngineRequest(engine="rtx", precision="fp16", profiles=(STATIC,), targets=("sm89",))
    with pytest.raises(EngineBuildError, match="convolutions compute in float, not in half"):
        build_engine(models["residual-sr", "fp32"], request)


# The library that is here takes a timing cache and does nothing with it.
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_a_builder_with_a_timing_cache_tells_its_progress_and_keeps_the_cache(
    models: dict[tuple[str, Precision], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What only ``tensorrt`` asks of the builder, asked of the library that is here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(models["residual-sr", "fp16"])
    job = {
        **{"library": "tensorrt_rtx", "profiles": [[[16, 16], [48, 64], [256, 256]]]},
        **{"targets": None, "workspace": 1 << 28, "timing_cache": True, "progress": True},
        "path": "",
    }
    assert _worker._build(job)["errors"] == []
    assert "Building engine" in capfd.readouterr().out
    assert (tmp_path / "engine").stat().st_size > 0
    assert (tmp_path / "timing.cache").exists()
    assert _worker._build(job)["errors"] == []  # from the cache that it wrote itself


def test_float32_stays_float32_and_scratch_memory_is_the_runtime_s() -> None:
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)  # what it would be
    job = {"library": "tensorrt_rtx", "workspace": 1 << 28}
    config = _worker._configured(trt, builder, job)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28


def test_something_that_is_no_model_is_refused() -> None:
    request = EngineRequest(engine="rtx", precision="fp16", profiles=(STATIC,), targets=("sm89",))
    with pytest.raises(EngineBuildError, match="cannot parse the model"):
        build_engine(b"not a model", request)


def test_an_interrupted_build_leaves_no_builder_behind(
    models: dict[tuple[str, Precision], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    started: list[subprocess.Popen[str]] = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            super().__init__(*args, **kwargs)
            started.append(self)

        def wait(self, timeout: float | None = None) -> int:
            if self.returncode is None and not stopped.is_set():
                stopped.set()
                raise KeyboardInterrupt
            return super().wait(timeout)

    stopped = threading.Event()
    monkeypatch.setattr("subprocess.Popen", Watched)
    request = EngineRequest(engine="rtx", precision="fp16", profiles=(STATIC,), targets=("sm89",))
    with pytest.raises(KeyboardInterrupt):
        build_engine(models["residual-sr", "fp16"], request)
    assert [process.poll() is not None for process in started] == [True]


# ------------------------------------------------------------------------------- in a bundle


@pytest.fixture(scope="module")
def with_engine(tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    """A bundle with an engine. Copy it, never change it."""
    folder = tmp_path_factory.mktemp("engine")
    save_checkpoint(sr_checkpoint("residual-sr", 2), folder / "sharp.pt")
    outcome = export_engine_main(
        *(folder / "sharp.pt", "--fp16", "--engine", "rtx", "--target", "sm89", "--json"),
        *("--profile", "16x16:64x48:256x256"),
    )
    assert outcome.code == 0, outcome.stderr
    return ExportedBundle(outcome, folder / "sharp.topcoat", folder / "sharp.pt")


def copied(bundle: ExportedBundle, folder: Path) -> Path:
    shutil.copytree(bundle.bundle, folder / "sharp.topcoat")
    shutil.copy(bundle.checkpoint_file, folder / "sharp.pt")
    return folder / "sharp.topcoat"


def engines_in(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.glob("*.engine")}


def test_a_bundle_says_what_its_engine_is_for(with_engine: ExportedBundle) -> None:
    manifest = topcoat.runtime.verify_files(with_engine.bundle)
    (variant,) = [v for v in manifest.variants if v.kind == "tensorrt-rtx"]
    assert variant.engine is not None
    assert variant.engine.library == "tensorrt_rtx"
    assert variant.engine.targets == ("sm89",)
    assert variant.engine.driver is None
    assert variant.engine.profiles == (Profile(min=(16, 16), opt=(48, 64), max=(256, 256)),)
    assert variant.precision == "fp16"
    (entry,) = with_engine.outcome.json["engines"]
    assert entry["key"] == variant.engine.key
    assert not entry["reused"]


def test_an_engine_that_cannot_run_here_is_built_and_said_not_to_be_run(
    with_engine: ExportedBundle,
) -> None:
    (entry,) = [v for v in with_engine.manifest["variants"] if v["kind"] == "tensorrt-rtx"]
    rows = {row["backend"]: row["reason"] for row in entry["parity_not_run"]}
    if "tensorrt-rtx" not in rows:
        pytest.skip("there is a GPU here: the engine was run")
    assert rows["tensorrt-rtx"].startswith("built, not run here")
    assert entry["parity"] == []


def test_a_bundle_with_an_engine_still_runs_on_the_cpu(with_engine: ExportedBundle) -> None:
    with topcoat.runtime.open(with_engine.bundle, backend="onnxruntime-cpu") as model:
        assert model.process(np.zeros((20, 30, 3), np.uint8)).shape == (40, 60, 3)


def test_asking_again_builds_nothing(with_engine: ExportedBundle, tmp_path: Path) -> None:
    bundle = copied(with_engine, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()}
    outcome = export_engine_main(
        *(tmp_path / "sharp.pt", "--fp16", "--engine", "rtx", "--target", "sm89", "--json"),
        *("--profile", "16x16:64x48:256x256"),
    )
    assert outcome.code == 0, outcome.stderr
    assert "nothing to do" in outcome.stderr
    assert outcome.json["changed"] is False
    assert {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()} == before


def test_another_profile_is_added_and_the_first_engine_is_not_built_again(
    with_engine: ExportedBundle, tmp_path: Path
) -> None:
    bundle = copied(with_engine, tmp_path)
    measured = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (variant,) = [v for v in measured["variants"] if v["kind"] == "tensorrt-rtx"]
    row = {"backend": "tensorrt-rtx", "compute": "fp16", "passed": True, "device": "sm89"}
    variant["parity"].append(row)  # as `topcoat verify` leaves it on another machine
    elsewhere = {
        "backend": "onnxruntime-cuda",
        "compute": "fp32",
        "passed": False,
        "device": "sm89",
    }
    measured["variants"][0]["parity"].append(elsewhere)
    (bundle / "manifest.json").write_text(json.dumps(measured), encoding="utf-8")
    before = engines_in(bundle)

    outcome = export_engine_main(
        *(tmp_path / "sharp.pt", "--fp16", "--engine", "rtx", "--target", "sm89", "--json"),
        *("--profile", "64x48"),
    )
    assert outcome.code == 0, outcome.stderr
    after = engines_in(bundle)
    assert len(after) == 2
    assert before.items() <= after.items()
    assert [entry["reused"] for entry in outcome.json["engines"]] == [False, True]
    manifest = topcoat.runtime.verify_files(bundle)
    kept = [v.parity for v in manifest.variants if v.file in before]
    assert [(r.backend, r.passed, r.device) for r in kept[0]] == [("tensorrt-rtx", True, "sm89")]
    of_the_model = manifest.variants[0].parity_row("onnxruntime-cuda", "fp32", "sm89")
    assert of_the_model is not None
    assert not of_the_model.passed
    assert (
        "tensorrt-rtx fp16 (" + next(iter(before)) not in outcome.stderr.split("not run here")[-1]
    )


def test_what_another_program_records_meanwhile_is_not_lost(
    with_engine: ExportedBundle, tmp_path: Path
) -> None:
    bundle = copied(with_engine, tmp_path)
    manifest = bundle / "manifest.json"
    found: list[str] = []

    def progress(what: str) -> None:
        if what.startswith("PyTorch") and not found:  # minutes of comparing begin
            found.append(
                manifest.read_text(encoding="utf-8").replace('"passed": true', '"passed":  true')
            )
            manifest.write_text(found[0], encoding="utf-8")

    request = EngineRequest(engine="rtx", profiles=(STATIC,), targets=("sm89",))
    with pytest.raises(OutputError, match="changed by another program"):
        export_bundle(
            open_source(tmp_path / "sharp.pt"),
            bundle,
            plan=PrecisionPlan(precisions=("fp32", "fp16")),
            engines=[request],
            progress=progress,
        )
    assert manifest.read_text(encoding="utf-8") == found[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sharp.pt", "sharp.topcoat"]


def test_a_bundle_of_another_checkpoint_is_not_added_to(
    with_engine: ExportedBundle, tmp_path: Path
) -> None:
    bundle = copied(with_engine, tmp_path)
    save_checkpoint(sr_checkpoint("residual-sr", 2, width=6), tmp_path / "sharp.pt")
    before = engines_in(bundle)
    outcome = export_engine_main(tmp_path / "sharp.pt", "--fp16", "--engine", "rtx")
    assert outcome.code == 2
    assert "--force" in outcome.stderr
    assert engines_in(bundle) == before


def test_a_damaged_engine_is_refused_by_its_hash(
    with_engine: ExportedBundle, tmp_path: Path
) -> None:
    bundle = copied(with_engine, tmp_path)
    (engine,) = bundle.glob("*.engine")
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    with pytest.raises(topcoat.runtime.BundleIntegrityError):
        topcoat.runtime.verify_files(bundle)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "sm89"), "none was asked for"),
        (("--profile", "64x64"), "none was asked for"),
        (("--engine", "rtx", "--profile", "10x10"), "write 12x12"),
        (("--engine", "rtx", "--target", "sm90"), "does not build for sm90"),
        (("--engine", "rtx", "--timing-cache", "x"), "times nothing"),
        (("--engine", "rtx", "--workspace", "0"), "give at least 1, or none"),
    ],
)
def test_wrong_engine_options_end_in_one_line_and_nothing_written(
    checkpoint_file: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = export_engine_main(checkpoint_file, "-o", tmp_path / "x.topcoat", *arguments)
    assert outcome.code == 2
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert words in outcome.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------- what an addition keeps


@pytest.fixture
def with_islands(with_engine: ExportedBundle) -> Earlier:
    """A bundle whose fp16 model keeps a layer in float32, and an engine that was built from it."""
    found = earlier_bundle(with_engine.bundle)
    assert found is not None
    raw = json.loads(json.dumps(found.raw))
    for variant in raw["variants"]:
        if variant["precision"] == "fp16":
            variant["keep_fp32"] = ["head"]
    return replace(found, raw=raw)


def test_half_precision_that_was_measured_once_stays_as_it_is(with_islands: Earlier) -> None:
    plan = with_islands.united(PrecisionPlan(precisions=("fp32", "fp16")), measured=False)
    assert plan.keep_fp32 == {"fp16": ("head",)}
    assert with_islands.model("fp16", ("head",)) == with_islands.models["fp16"]


def test_half_precision_that_is_measured_again_is_made_again(with_islands: Earlier) -> None:
    plan = with_islands.united(PrecisionPlan(precisions=("fp32", "fp16")), measured=True)
    assert plan.keep_fp32 == {}
    assert with_islands.model("fp16", ()) is None
    assert with_islands.model("fp32", ()) == with_islands.models["fp32"]


def test_engines_of_a_model_that_changed_are_named_as_outdated(with_islands: Earlier) -> None:
    (engine,) = with_islands.engines.values()
    same = {"fp16": engine.model_sha256}
    assert with_islands.others([], same) == ([engine], [])
    assert with_islands.others([], {"fp16": "another"}) == ([], [engine])
    assert with_islands.others([engine], {"fp16": "another"}) == ([], [])


def test_int8_that_is_there_is_not_lost_when_something_else_is_asked_for(
    with_islands: Earlier,
) -> None:
    held = replace(with_islands, models={**with_islands.models, "int8": b"a model"})
    assert held.united(PrecisionPlan(precisions=("fp32",)), measured=False).int8


def test_topcoat_info_says_what_an_engine_is_for(
    with_engine: ExportedBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert topcoat_main(["info", str(with_engine.bundle)]) == 0
    text = capsys.readouterr().out
    assert "built by tensorrt_rtx 1." in text
    assert "for sm89; frames of 16x16:64x48:256x256" in text
