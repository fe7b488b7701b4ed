"""TensorRT engines on a driver without a GPU: real pictures, refusals, memory, graphs, caches."""

import functools
import gc
import hashlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import topcoat.runtime as tr
from tests.runtime import fake_tensorrt
from tests.runtime.fake_cuda import LAUNCH_FAILED, OUT_OF_MEMORY, FakeCuda
from tests.runtime.fake_tensorrt import (
    VERSIONS,
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    FakeInstallation,
    Rig,
    make_engine_bundle,
)
from topcoat.runtime.backends._cuda import Driver
from topcoat.runtime.backends._kernel_cache import default_cache_folder
from topcoat.runtime.backends._trt_engine import Specialisation
from topcoat.runtime.backends.onnxruntime import OnnxRuntimeCpu
from topcoat.runtime.backends.tensorrt import EngineSettings, TensorRt, TensorRtSession
from topcoat.runtime.bundle import this_platform

Frame = npt.NDArray[np.uint8]
MakeRig = Callable[..., Rig]
SMALL = ((8, 8), (32, 32), (64, 64))
LARGE = ((64, 64), (256, 256), (512, 512))


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Makes rigs; at the end, nothing may have been misused on any of them."""
    rigs: list[Rig] = []

    def make(*arguments: Any, **settings: Any) -> Rig:  # noqa: ANN401 - Rig's
        rigs.append(Rig(*arguments, **settings))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.check()


@pytest.fixture
def engines(tmp_path: Path, blocks: Path) -> Path:
    """blocks.topcoat with an engine for TensorRT-RTX on sm89."""
    return make_engine_bundle(blocks, tmp_path)


def noise(height: int, width: int, seed: int = 0, batch: int = 1) -> Frame:
    values = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3))
    return values.astype(np.uint8)


@functools.cache
def reference(bundle: Path, tile: int | None) -> tr.Model:
    return tr.open(bundle, "onnxruntime-cpu", "fp32", threads=1, tile=tile)


def on_onnxruntime(bundle: Path, frame: Frame, tile: int | None = None) -> Frame:
    """Return what ONNX Runtime makes of a frame with the bundle's own model."""
    return reference(bundle, tile).process(frame)


def run(session: TensorRtSession, source: Frame, scale: int = 1) -> Frame:
    batch, height, width, channels = source.shape
    result = np.zeros((batch, height * scale, width * scale, channels), np.uint8)
    session.run(source, result)
    return result


# --------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", ["tensorrt-rtx", "tensorrt"])
def test_an_engine_gives_the_models_picture_padded_and_cropped(
    kind: str, tmp_path: Path, blocks: Path, photograph: Frame, make_rig: MakeRig
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, kind=kind)
    with make_rig(kind).open(bundle, backend=kind) as model:
        chosen = model.explain().chosen
        assert chosen is not None
        assert (chosen.backend, chosen.compute, chosen.verified) == (kind, "fp32", True)
        for picture in (photograph, photograph[::-1].copy(), photograph[:, :64].copy()):
            np.testing.assert_array_equal(model.process(picture), on_onnxruntime(blocks, picture))


def test_an_engine_that_enlarges_gives_the_models_picture(
    tmp_path: Path, double: Path, photograph: Frame, make_rig: MakeRig
) -> None:
    bundle = make_engine_bundle(double, tmp_path)
    with make_rig().open(bundle, backend="tensorrt-rtx") as model:
        np.testing.assert_array_equal(model.process(photograph), on_onnxruntime(double, photograph))


def test_an_engine_runs_tiles(tmp_path: Path, photograph: Frame, make_rig: MakeRig) -> None:
    source = Path(__file__).parent / "data" / "local4.topcoat"
    bundle = make_engine_bundle(source, tmp_path)
    with make_rig().open(bundle, backend="tensorrt-rtx", tile=48) as model:
        assert model.tiles(70, 90) > 1
        np.testing.assert_array_equal(
            model.process(photograph), on_onnxruntime(source, photograph, tile=48)
        )


def test_the_frames_of_a_batch_are_run_one_by_one(
    engines: Path, blocks: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    frames = noise(16, 24, batch=3)
    with rig.open(engines, backend="tensorrt-rtx") as model:
        np.testing.assert_array_equal(model.process(frames), on_onnxruntime(blocks, frames))
    assert rig.trt.computed == [(1, 16, 24, 3)] * 3


def test_frames_run_from_any_thread(engines: Path, blocks: Path, make_rig: MakeRig) -> None:
    frame = noise(16, 16)[0]
    made: list[Frame] = []
    with make_rig().open(engines, backend="tensorrt-rtx") as model:
        model.process(frame)
        thread = threading.Thread(target=lambda: made.append(model.process(frame)))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(made[0], on_onnxruntime(blocks, frame))


def test_pinned_arrays_are_read_and_written_where_they_lie(
    engines: Path, blocks: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    source, result = session.pinned((1, 16, 16, 3)), session.pinned((1, 16, 16, 3))
    for seed in range(3):
        source[...] = noise(16, 16, seed)
        session.run(source, result)
        np.testing.assert_array_equal(result[0], on_onnxruntime(blocks, source[0]))
    staging = {entry.address for entry in rig.cuda.allocations.values() if not entry.on_device}
    staging -= {array.ctypes.data for array in (source, result)}
    assert len(staging) == 2
    assert all((rig.cuda.view(address, 768) == 0xCD).all() for address in staging)  # never used
    session.close()


def test_pinned_arrays_outlive_the_session_and_are_freed_with_their_last_view(
    engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    row = session.pinned((4, 8, 3))[1]
    session.close()
    assert rig.cuda.live() == {"pinned": 1, "contexts": 1}
    row[...] = 7
    assert row.sum() == 7 * 8 * 3
    del row
    assert rig.cuda.live() == {}


# ----------------------------------------------------------------------------------------- graphs


def test_from_the_second_frame_on_the_work_is_one_graph(
    engines: Path, blocks: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    for seed in range(4):  # new pixels in the same buffers
        frame = noise(16, 16, seed)
        np.testing.assert_array_equal(run(session, frame)[0], on_onnxruntime(blocks, frame[0]))
    assert len(rig.trt.executions) == 1
    assert rig.cuda.calls["cuGraphLaunch"] == 3
    assert len(rig.trt.computed) == 4
    session.close()


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ({"capturable": False}, "the engine says that it cannot be captured"),
        ({"capture_fails": True}, "operation not permitted when stream is capturing"),
    ],
)
def test_an_engine_that_cannot_be_captured_runs_without_a_graph_and_says_so(
    library: dict[str, bool],
    said: str,
    engines: Path,
    blocks: Path,
    make_rig: MakeRig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = make_rig(**library)
    session = rig.session(engines)
    for seed in range(3):
        frame = noise(16, 16, seed)
        np.testing.assert_array_equal(run(session, frame)[0], on_onnxruntime(blocks, frame[0]))
    session.close()
    assert len(rig.trt.executions) == 3
    assert rig.cuda.calls["cuGraphLaunch"] == 0
    assert [said in record.message for record in caplog.records] == [True]


def test_graphs_can_be_left_out(engines: Path, make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(use_graph=False, cache_folder=None))
    session = rig.session(engines)
    for _ in range(3):
        run(session, noise(16, 16))
    session.close()
    assert len(rig.trt.executions) == 3
    assert rig.cuda.calls["cuStreamBeginCapture_v2"] == 0


def test_lazily_compiled_kernels_are_left_to_the_librarys_own_graphs(
    engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig(settings=EngineSettings(specialisation="lazy", cache_folder=None))
    session = rig.session(engines)
    for _ in range(3):
        run(session, noise(16, 16))
    session.close()
    (config,) = rig.trt.configs
    assert config.cuda_graph_strategy == CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert rig.cuda.calls["cuStreamBeginCapture_v2"] == 0


@pytest.mark.parametrize("how", ["eager", "none"])
def test_settled_kernels_are_captured_here_and_not_by_the_library(
    how: Specialisation, engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig(settings=EngineSettings(specialisation=how, cache_folder=None))
    rig.session(engines).close()
    (config,) = rig.trt.configs
    assert config.cuda_graph_strategy == CudaGraphStrategy.DISABLED
    assert (
        config.dynamic_shapes_kernel_specialization_strategy
        == DynamicShapesKernelSpecializationStrategy[how.upper()]
    )


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(tr.BackendError, match="wanted eager, lazy or none"):
        EngineSettings(specialisation="often")  # type: ignore[arg-type]
    with pytest.raises(tr.BackendError, match="wanted at least 1"):
        EngineSettings(shapes_kept=0)


# --------------------------------------------------------------------------------------- profiles


def test_the_smallest_profile_that_holds_a_frame_runs_it(
    tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    # The fake refuses shapes outside of the profile that was chosen.
    bundle = make_engine_bundle(blocks, tmp_path, profiles=(LARGE, SMALL))
    rig = make_rig()
    session = rig.session(bundle)
    for side in (8, 64, 68, 512):
        run(session, noise(side, side))
    session.close()
    assert rig.trt.profiles_used == [1, 1, 0, 0]


def test_a_frame_outside_the_profile_is_refused_with_the_profiles_sizes(
    tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    fixed = ((16, 24), (16, 24), (16, 24))
    bundle = make_engine_bundle(blocks, tmp_path, profiles=(fixed, SMALL))
    session = make_rig().session(bundle)
    with pytest.raises(tr.FrameOutsideProfileError) as caught:
        run(session, noise(128, 64))
    text = str(caught.value)
    assert "24x16, 8x8:32x32:64x64 (width x height), not of 64x128" in text
    assert "\n" not in text
    run(session, noise(16, 24))  # goes on
    session.close()


def test_a_model_runs_frames_outside_the_profile_on_the_next_engine(
    tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, profiles=(SMALL,))
    frame = noise(128, 128)[0]
    rig = make_rig()
    with rig.open(bundle, (OnnxRuntimeCpu(),), backend="tensorrt-rtx", fallback=True) as model:
        small = noise(16, 16)[0]
        np.testing.assert_array_equal(model.process(small), on_onnxruntime(blocks, small))
        with pytest.warns(tr.FallbackWarning, match="built for frames of 8x8:32x32:64x64"):
            styled = model.process(frame)
        np.testing.assert_array_equal(styled, on_onnxruntime(blocks, frame))
        np.testing.assert_array_equal(model.process(small), on_onnxruntime(blocks, small))
    assert rig.trt.computed == [(1, 16, 16, 3)] * 2


# ----------------------------------------------------------------------------------- missing parts


def test_a_library_that_is_not_installed_names_its_extra() -> None:
    for name, extra in (("tensorrt-rtx", "rtx"), ("tensorrt", "tensorrt")):
        backend = TensorRt(name, installation=FakeInstallation())
        reason = backend.missing()
        assert reason is not None
        assert f"pip install 'topcoat-runtime[{extra}]'" in reason


def test_the_driver_is_asked_before_the_library_is_imported() -> None:
    installation = FakeInstallation(module=object())
    backend = TensorRt(
        "tensorrt-rtx", driver=lambda: Driver(FakeCuda(devices=0)), installation=installation
    )
    reason = backend.missing()
    assert reason is not None
    assert "sees no GPU" in reason
    assert installation.loads == 0
    with pytest.raises(tr.BackendUnavailableError, match="sees no GPU"):
        backend.start()


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_bindings_without_their_libraries_say_which_is_missing(
    kind: type[ImportError | OSError], make_rig: MakeRig
) -> None:
    rig = make_rig()
    rig.installation.error = kind("libnvonnxparser.so.11: cannot open\nshared object file")
    reason = rig.backend.missing()
    assert reason is not None
    assert "libnvonnxparser.so.11: cannot open shared object file" in reason
    assert "pip install 'topcoat-runtime[rtx]'" in reason


def test_a_driver_that_is_too_old_for_the_library_is_named(make_rig: MakeRig) -> None:
    reason = make_rig(cuda=FakeCuda(version=12040)).backend.missing()
    assert reason is not None
    assert "CUDA 12.4, wanted at least 13.0" in reason


@pytest.mark.parametrize(
    ("name", "version", "least"), [("tensorrt-rtx", "1.6.9", "1.7"), ("tensorrt", "9.3", "10.12")]
)
def test_a_library_that_is_too_old_is_named(
    name: str, version: str, least: str, make_rig: MakeRig
) -> None:
    reason = make_rig(name, version=version).backend.missing()
    assert reason is not None
    assert f"{version} is too old, wanted at least {least}" in reason


def test_a_backend_with_everything_says_its_version(make_rig: MakeRig) -> None:
    rig = make_rig()
    assert rig.backend.missing() is None
    assert rig.backend.version() == VERSIONS["tensorrt-rtx"]


def test_importing_the_backend_loads_no_library(run_python: Callable[..., Any]) -> None:
    code = (
        "import sys, topcoat.runtime.backends.tensorrt, topcoat.runtime.backends as b;"
        " b.all_backends();"
        " print({'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch'} & set(sys.modules))"
    )
    assert run_python("-c", code).stdout.strip() == "set()"


# -------------------------------------------------------------------- engines that cannot run here


def obstacle(rig: Rig, bundle: Path) -> str | None:
    manifest = tr.read_manifest(bundle)
    (offer,) = [o for variant in manifest.variants for o in rig.backend.computes(variant)]
    assert offer.device == "sm{}{}".format(*rig.cuda.capability)
    return offer.obstacle


def test_an_engine_for_this_machine_has_no_obstacle(engines: Path, make_rig: MakeRig) -> None:
    assert obstacle(make_rig(), engines) is None


@pytest.mark.parametrize(
    ("kind", "bundle", "rig", "said"),
    [
        (
            "tensorrt-rtx",
            {"version": "1.7.0"},
            {},
            "built by TensorRT-RTX 1.7.0, here is 1.7.1.116; build it for this machine with"
            " `export-engine CHECKPOINT --engine rtx`",
        ),
        (
            "tensorrt-rtx",
            {"targets": ("sm89", "sm120")},
            {"cuda": FakeCuda(capability=(8, 6))},
            "it was built for sm89, sm120, the Fake RTX is sm86; build it",
        ),
        (
            "tensorrt",
            {"targets": ("sm89",)},
            {"cuda": FakeCuda(capability=(9, 0))},
            "it was built for sm89, the Fake RTX is sm90; build it for this machine with"
            " `export-engine CHECKPOINT --engine tensorrt`",
        ),
        (
            "tensorrt",
            {"driver": "570"},
            {},
            "it was built with driver 570, here is 580.95.05; build it",
        ),
        (
            "tensorrt",
            {"platform": "plan9-mips"},
            {},
            f"it was built for plan9-mips, here is {this_platform()}; build it for this machine",
        ),
        (
            "tensorrt-rtx",
            {"precision": "bf16", "targets": ("sm75",)},
            {"cuda": FakeCuda(capability=(7, 5))},
            "the Fake RTX (sm75) has no bf16 arithmetic",
        ),
    ],
)
def test_an_engine_of_elsewhere_is_refused_with_what_to_do(
    kind: str,
    bundle: dict[str, Any],
    rig: dict[str, Any],
    said: str,
    tmp_path: Path,
    blocks: Path,
    make_rig: MakeRig,
) -> None:
    made = make_engine_bundle(blocks, tmp_path, kind=kind, **bundle)
    fakes = make_rig(kind, **rig)
    reason = obstacle(fakes, made)
    assert reason is not None
    assert said in reason
    with pytest.raises(tr.BackendError) as caught:
        fakes.session(made)
    assert said in str(caught.value)
    assert fakes.cuda.live() == {}


@pytest.mark.parametrize("platform", [None, this_platform()])
def test_an_engine_for_this_system_or_for_any_has_no_obstacle(
    platform: str | None, tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    made = make_engine_bundle(blocks, tmp_path, kind="tensorrt", platform=platform)
    assert obstacle(make_rig("tensorrt"), made) is None


@pytest.mark.parametrize(("driver", "here"), [(None, "580.95.05"), ("580", None), ("580", "580.1")])
def test_a_driver_that_is_not_known_to_differ_is_no_obstacle(
    driver: str | None, here: str | None, tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, kind="tensorrt", driver=driver)
    assert obstacle(make_rig("tensorrt", driver_version=here), bundle) is None


def test_tensorrt_rtx_engines_survive_another_driver(
    tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, driver="570")
    assert obstacle(make_rig(), bundle) is None


def test_a_later_gpu_is_left_to_the_library_which_may_accept(
    tmp_path: Path, blocks: Path, make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, targets=("sm89", "sm120"), verified_on="sm121")
    rig = make_rig(cuda=FakeCuda(capability=(12, 1)))
    assert obstacle(rig, bundle) is None
    session = rig.session(bundle)
    frame = noise(16, 16)
    np.testing.assert_array_equal(run(session, frame)[0], on_onnxruntime(blocks, frame[0]))
    session.close()
    assert "was not built for the Fake RTX and may be slow on it" in caplog.text


def test_a_later_gpu_is_left_to_the_library_which_may_refuse(
    tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, targets=("sm86", "sm89"), verified_on="sm90")
    rig = make_rig(cuda=FakeCuda(capability=(9, 0)))
    assert obstacle(rig, bundle) is None
    with pytest.raises(tr.BackendError) as caught:
        rig.session(bundle)
    assert "it was not built for the Fake RTX (sm90); export the bundle" in str(caught.value)
    assert rig.cuda.live() == {}


def test_parity_of_another_gpu_generation_does_not_count(
    tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, verified_on="sm120")
    with pytest.raises(tr.BackendError, match="no parity check for it on sm89"):
        make_rig().open(bundle, backend="tensorrt-rtx")


@pytest.mark.parametrize("kind", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: b"garbage", lambda data: data[:40]]
)
def test_a_damaged_engine_gives_one_line_and_leaves_nothing(
    kind: str,
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    blocks: Path,
    make_rig: MakeRig,
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, kind=kind, engine=damage)
    rig = make_rig(kind)
    with pytest.raises(tr.BackendError) as caught:
        rig.session(bundle)
    assert f"{kind} cannot load {kind}.fp32.engine: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert rig.cuda.live() == {}


@pytest.mark.parametrize(
    ("built", "said"),
    [
        ({"ports": ("image", "styled")}, "has input 'image' of UINT8 LINEAR, output 'styled'"),
        ({"dtype": "FLOAT"}, "has input 'frame' of FLOAT LINEAR"),
        ({"profiles": (SMALL,)}, "was built for frames of 8x8:32x32:64x64, manifest.json says"),
    ],
)
def test_an_engine_that_is_not_what_the_manifest_says_is_refused(
    built: dict[str, Any], said: str, tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    with pytest.raises(tr.BackendError) as caught:
        rig.session(make_engine_bundle(blocks, tmp_path, built=built))
    assert said in str(caught.value)
    assert rig.cuda.live() == {}


def test_an_engine_of_another_scale_writes_nothing(
    tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    session = make_rig().session(make_engine_bundle(blocks, tmp_path, built={"scale": 2}))
    result = np.full((1, 16, 16, 3), 7, np.uint8)
    with pytest.raises(tr.BackendError, match=r"makes \(1, 32, 32, 3\) of it, not \(1, 16, 16, 3"):
        session.run(noise(16, 16), result)
    assert (result == 7).all()
    session.close()


def test_an_engine_is_run_at_its_own_precision_only(engines: Path, make_rig: MakeRig) -> None:
    variant = tr.read_manifest(engines).variants[-1]
    with pytest.raises(tr.BackendError, match="at fp32, not at fp16"):
        make_rig().backend.load(variant, b"", compute="fp16", threads=1)


def test_other_kinds_of_files_are_left_alone(engines: Path, make_rig: MakeRig) -> None:
    offers = [make_rig("tensorrt").backend.computes(v) for v in tr.read_manifest(engines).variants]
    assert offers == [()] * len(offers)


# ----------------------------------------------------------------------------------------- memory


def test_a_thousand_frame_sizes_leak_nothing(engines: Path, make_rig: MakeRig) -> None:
    rig = make_rig(bytes_per_pixel=1)
    session = rig.session(engines)
    after: list[dict[str, int]] = []
    for number in range(1000):
        frame = np.zeros((1, 8 + 4 * (number % 32), 8 + 4 * (number // 32), 3), np.uint8)
        result = np.empty_like(frame)
        for _ in range(2 if number % 4 == 3 else 1):  # the second run makes a graph
            session.run(frame, result)
        after.append(rig.cuda.live())
    assert after[-1] == after[11]
    assert after[-1]["executables"] == 1  # of the four sizes that are kept
    assert rig.trt.contexts == 4
    session.close()
    assert rig.cuda.live() == {}
    assert rig.trt.contexts == 0


def test_the_sizes_used_last_are_kept(engines: Path, make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(shapes_kept=2, cache_folder=None))
    session = rig.session(engines)
    for side in (8, 12, 8, 16, 8):  # 12 makes room for 16
        run(session, noise(side, side))
    assert len(rig.trt.executions) == 3
    run(session, noise(12, 12))
    assert len(rig.trt.executions) == 4
    session.close()


def test_many_buffers_of_an_application_keep_a_bounded_number_of_graphs(
    engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    run(session, noise(16, 16))
    for _ in range(20):
        given, made = (FakeArray(rig, rig.cuda.allocate(768)) for _ in range(2))
        for _ in range(2):
            session.run_device(given, made)
    assert rig.cuda.live()["executables"] <= 8 + 1  # the last to go may still be running
    session.close()
    assert rig.cuda.live() == {"memory": 40}


def test_buffers_in_constant_use_keep_their_graph(engines: Path, make_rig: MakeRig) -> None:
    rig = make_rig()
    session = rig.session(engines)
    for _ in range(2):
        run(session, noise(16, 16))
    for _ in range(30):
        given, made = (FakeArray(rig, rig.cuda.allocate(768)) for _ in range(2))
        session.run_device(given, made)  # never seen again
        run(session, noise(16, 16))
    assert rig.cuda.calls["cuStreamBeginCapture_v2"] == 1
    session.close()


class FakeArray:
    """(16, 16, 3) uint8 in the fake's memory."""

    def __init__(self, rig: Rig, address: int) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (16, 16, 3),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
        }


def test_other_sizes_are_freed_when_the_memory_runs_out(
    engines: Path, blocks: Path, make_rig: MakeRig
) -> None:
    # Three quarters of a MiB hold one frame size of 64x64 with 128 bytes per pixel, not two.
    rig = make_rig(cuda=FakeCuda(memory=3 << 18), bytes_per_pixel=128)
    session = rig.session(engines)
    for side in (64, 60, 64):
        frame = noise(side, side)
        for _ in range(3):
            np.testing.assert_array_equal(run(session, frame)[0], on_onnxruntime(blocks, frame[0]))
    session.close()
    assert rig.cuda.live() == {}


def test_a_frame_that_never_fits_says_how_much_memory_there_is(
    engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig(cuda=FakeCuda(memory=2 << 20), bytes_per_pixel=128)
    session = rig.session(engines)
    run(session, noise(64, 64))
    with pytest.raises(tr.DeviceMemoryError) as caught:
        run(session, noise(256, 256))
    text = str(caught.value)
    assert "a frame of shape (1, 256, 256, 3), with 2 of 2 MiB free" in text
    assert "run smaller frames or tiles" in text
    assert "\n" not in text
    run(session, noise(64, 64))  # goes on
    session.close()
    assert rig.cuda.live() == {}


@pytest.mark.parametrize(
    "where",
    ["cuMemAlloc_v2", "cuMemHostAlloc", "cuGraphInstantiateWithFlags", "cuGraphLaunch"],
)
def test_memory_that_runs_out_once_is_no_error_wherever_it_does(
    where: str, engines: Path, blocks: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    frame = noise(16, 16)
    rig.cuda.fail(where, OUT_OF_MEMORY)
    for _ in range(4):
        np.testing.assert_array_equal(run(session, frame)[0], on_onnxruntime(blocks, frame[0]))
    session.close()
    assert rig.cuda.live() == {}


@pytest.mark.parametrize("what", ["create_context", "execute_async_v3"])
def test_memory_that_the_library_lacks_is_a_memory_error_too(
    what: str, engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    message = "[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)"
    rig.trt.refusals[what] = message
    run(session, noise(16, 16))  # the second attempt has room
    rig.trt.refusals[what] = message
    rig.cuda.memory = rig.cuda.used
    with pytest.raises(tr.DeviceMemoryError):
        run(session, noise(20, 20))
    session.close()


def test_an_engine_that_does_not_fit_is_a_memory_error(engines: Path, make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.trt.refusals["deserialize"] = "Error Code 2: OutOfMemory (Requested size was 9 bytes.)"
    with pytest.raises(tr.DeviceMemoryError, match="OutOfMemory"):
        rig.session(engines)
    assert rig.cuda.live() == {}


# --------------------------------------------------------------------------------------- failures


def test_what_the_library_logs_is_in_the_error_and_not_on_the_screen(
    engines: Path, make_rig: MakeRig, capfd: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    rig.trt.refusals["execute_async_v3"] = "Error Code 7:\n  Internal Error (no tactic)"
    with pytest.raises(tr.BackendError) as caught:
        run(session, noise(16, 16))
    assert (
        "failed on a frame of shape (1, 16, 16, 3): Error Code 7: Internal Error (no tactic)"
        in (str(caught.value))
    )
    assert type(caught.value) is tr.BackendError
    run(session, noise(16, 16))  # goes on
    session.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("what", ["create_context", "set_input_shape", "execute_async_v3"])
def test_an_error_that_is_kept_keeps_nothing_on_the_gpu(
    what: str, engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    rig.trt.refusals[what] = "Error Code 3: API Usage Error"
    with pytest.raises(tr.BackendError, match="API Usage Error") as caught:
        run(session, noise(16, 16))
    session.close()
    assert rig.trt.contexts == 0
    assert rig.cuda.live() == {}
    assert caught.value.__traceback__ is not None  # it is still held, with every frame


LOADING = ("runtime", "deserialize", "create_runtime_config")
RUNNING = (
    *("create_context", "set_input_shape", "device_memory_size", "set_device_memory"),
    "execute_async_v3",
)


@pytest.mark.parametrize("what", LOADING)
def test_what_the_library_refuses_or_raises_while_loading_leaves_nothing(
    what: str, engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    rig.trt.refusals[what] = "Error Code 1:\n  Cuda Runtime (initialization error)"
    with pytest.raises(tr.BackendError, match=r"tensorrt-rtx .*: Cuda Runtime \(initializat"):
        rig.session(engines)
    rig.trt.raised[what] = RuntimeError("no such\nsymbol")
    with pytest.raises(tr.BackendError, match=r"tensorrt-rtx .*: no such symbol; exp") as caught:
        rig.session(engines)
    assert type(caught.value) is tr.BackendError
    rig.trt.raised[what] = RuntimeError("CUDA error: out of memory")
    with pytest.raises(tr.DeviceMemoryError, match="out of memory; close other programs"):
        rig.session(engines)
    assert rig.cuda.live() == {}
    rig.session(engines).close()


def test_a_library_that_does_not_start_leaves_the_frames_to_the_next_backend(
    engines: Path, blocks: Path, make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    rig.trt.refusals["runtime"] = "CUDA initialization failure with error: 999"
    frame = noise(16, 16)[0]
    with rig.open(engines, (OnnxRuntimeCpu(),)) as model:
        np.testing.assert_array_equal(model.process(frame), on_onnxruntime(blocks, frame))
        reasons = [c.reason for c in model.explain().candidates if c.backend == "tensorrt-rtx"]
    assert "did not start: CUDA initialization failure with error: 999; pybind11" in reasons[0]
    assert "failed in the race" in caplog.text


@pytest.mark.parametrize("what", RUNNING)
def test_what_the_library_raises_on_a_frame_is_an_error_of_that_frame(
    what: str, engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    rig.trt.raised[what] = ValueError("Unable to cast\nthe argument")
    with pytest.raises(tr.BackendError, match="Unable to cast the argument; export the") as caught:
        run(session, noise(16, 16))
    assert type(caught.value) is tr.BackendError
    run(session, noise(16, 16))  # goes on
    session.close()
    assert rig.cuda.live() == {}


@pytest.mark.parametrize("what", ["device_memory_size", "set_device_memory"])
def test_working_memory_that_could_not_be_set_up_is_never_run_in(
    what: str, engines: Path, blocks: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    rig.trt.refusals[what] = "IExecutionContext: Error Code 3: API Usage Error"
    with pytest.raises(tr.BackendError, match="cannot set up its working memory for frames of"):
        run(session, noise(16, 16))
    assert rig.trt.computed == []
    frame = noise(16, 16)
    np.testing.assert_array_equal(run(session, frame)[0], on_onnxruntime(blocks, frame[0]))
    session.close()


def test_an_engine_that_needs_no_working_memory_runs(
    engines: Path, blocks: Path, make_rig: MakeRig
) -> None:
    rig = make_rig(bytes_per_pixel=0)
    session = rig.session(engines)
    frame = noise(16, 16)
    np.testing.assert_array_equal(run(session, frame)[0], on_onnxruntime(blocks, frame[0]))
    session.close()


def test_a_lost_gpu_is_lost_for_good_and_closed_in_peace(engines: Path, make_rig: MakeRig) -> None:
    rig = make_rig()
    session = rig.session(engines)
    run(session, noise(16, 16))
    rig.cuda.fail("cuMemcpyHtoDAsync_v2", LAUNCH_FAILED)
    for _ in range(2):
        with pytest.raises(tr.DeviceLostError, match="CUDA_ERROR_LAUNCH_FAILED"):
            run(session, noise(16, 16))
    calls = rig.cuda.calls.copy()
    with pytest.raises(tr.DeviceLostError):
        run(session, noise(16, 16))
    assert rig.cuda.calls == calls  # a lost device is not asked again
    session.close()
    session.close()
    rig.cuda.faults.clear()  # of a lost device, contexts are destroyed as they can be


def test_a_gpu_that_is_lost_inside_the_library_is_recognised(
    engines: Path, make_rig: MakeRig
) -> None:
    rig = make_rig()
    session = rig.session(engines)
    rig.trt.refusals["execute_async_v3"] = "Error Code 1: Cuda Runtime (unspecified launch failure)"
    rig.cuda.fail("cuStreamSynchronize", LAUNCH_FAILED, after=1)
    with pytest.raises(tr.DeviceLostError, match="unspecified launch failure"):
        run(session, noise(16, 16))
    session.close()
    rig.cuda.faults.clear()


def test_a_closed_session_runs_nothing(engines: Path, make_rig: MakeRig) -> None:
    rig = make_rig()
    session = rig.session(engines)
    session.close()
    session.close()
    with pytest.raises(tr.BackendError, match="was closed"):
        run(session, noise(16, 16))
    assert rig.cuda.live() == {}


def test_a_forgotten_session_frees_the_gpu(engines: Path, make_rig: MakeRig) -> None:
    rig = make_rig()
    session = rig.session(engines)
    run(session, noise(16, 16))
    del session
    gc.collect()
    assert rig.cuda.live() == {}


LEFT_OPEN = """
import sys
from pathlib import Path
import numpy as np
from tests.runtime.fake_tensorrt import Rig
rig = Rig()
session = rig.session(Path(sys.argv[1]))
session.run(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 16, 16, 3), np.uint8))
import atexit
from topcoat.runtime.backends import _trt_session
atexit.unregister(_trt_session._close_all)
atexit.register(lambda: print(rig.cuda.live(), rig.cuda.faults))
atexit.register(_trt_session._close_all)  # the last one registered runs first
"""


def test_a_program_that_ends_without_closing_frees_its_engines_first(
    engines: Path, run_python: Callable[..., Any]
) -> None:
    root = str(Path(__file__).parents[2])
    done = run_python("-c", LEFT_OPEN, str(engines), PYTHONPATH=root)
    assert (done.stdout.strip(), done.stderr) == ("{} []", "")


# ------------------------------------------------------------------------------ compiled kernels


def test_kernels_are_compiled_once_per_machine(
    engines: Path, tmp_path: Path, make_rig: MakeRig
) -> None:
    folder = tmp_path / "cache" / "deep"
    settings = EngineSettings(cache_folder=folder)
    first = make_rig(settings=settings)
    session = first.session(engines)
    for side in (16, 20):
        run(session, noise(side, side))
    # Written at once: a program may never get to close().
    (file,) = folder.iterdir()
    session.close()
    assert [path.name for path in folder.iterdir()] == [file.name]
    key = tr.read_manifest(engines).variants[-1].engine
    assert key is not None
    assert file.name == f"{key.key[:16]}-sm89-580.95.05-1.7.1.116.cache"
    assert first.trt.compiled == [(1, 16, 16, 3), (1, 20, 20, 3)]
    second = make_rig(settings=settings)
    session = second.session(engines)
    for side in (16, 20, 24):
        run(session, noise(side, side))
    session.close()
    assert second.trt.compiled == [(1, 24, 24, 3)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data.replace(b"16, 3]", b"16, 3 ]"),  # the library would accept it
    ],
)
def test_a_damaged_cache_is_written_again(
    damage: Callable[[bytes], bytes], engines: Path, tmp_path: Path, make_rig: MakeRig
) -> None:
    settings = EngineSettings(cache_folder=tmp_path / "cache")

    def compiled() -> int:
        rig = make_rig(settings=settings)
        session = rig.session(engines)
        run(session, noise(16, 16))
        session.close()
        return len(rig.trt.compiled)

    assert compiled() == 1
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert [compiled(), compiled()] == [1, 0]


def test_a_cache_that_the_library_does_not_accept_is_written_again(
    engines: Path, tmp_path: Path, make_rig: MakeRig
) -> None:
    settings = EngineSettings(cache_folder=tmp_path / "cache")
    rig = make_rig(settings=settings)
    session = rig.session(engines)
    run(session, noise(16, 16))
    session.close()
    (file,) = (tmp_path / "cache").iterdir()
    for foreign in (b'["another GPU", []]', b"\xff"):
        file.write_bytes(hashlib.sha256(foreign).digest() + foreign)
        rig = make_rig(settings=settings)
        session = rig.session(engines)
        run(session, noise(16, 16))
        session.close()
        assert len(rig.trt.compiled) == 1
        assert b"16, 16" in file.read_bytes()


def test_another_drivers_kernels_are_replaced(
    engines: Path, tmp_path: Path, make_rig: MakeRig
) -> None:
    folder = tmp_path / "cache"
    settings = EngineSettings(cache_folder=folder)
    for driver in ("570.1", "580.2"):
        session = make_rig(settings=settings, driver_version=driver).session(engines)
        run(session, noise(16, 16))
        session.close()
    (file,) = folder.iterdir()
    assert "-580.2-" in file.name


def test_a_folder_that_cannot_be_written_costs_time_only(
    engines: Path, tmp_path: Path, blocks: Path, make_rig: MakeRig
) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = EngineSettings(cache_folder=tmp_path / "file" / "cache")
    session = make_rig(settings=settings).session(engines)
    frame = noise(16, 16)
    np.testing.assert_array_equal(run(session, frame)[0], on_onnxruntime(blocks, frame[0]))
    session.close()


def test_full_tensorrt_keeps_no_kernels(tmp_path: Path, blocks: Path, make_rig: MakeRig) -> None:
    bundle = make_engine_bundle(blocks, tmp_path, kind="tensorrt")
    rig = make_rig("tensorrt", settings=EngineSettings(cache_folder=tmp_path / "cache"))
    session = rig.session(bundle)
    run(session, noise(16, 16))
    session.close()
    assert not (tmp_path / "cache").exists()


def test_kernels_are_kept_in_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "topcoat" / "tensorrt-rtx"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_folder() == tmp_path / "home" / ".cache" / "topcoat" / "tensorrt-rtx"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_cache_folder() == tmp_path / "local" / "topcoat" / "tensorrt-rtx"
    monkeypatch.delenv("LOCALAPPDATA")
    assert default_cache_folder() is None


# ------------------------------------------------------------------------------------------ times


def test_a_timed_run_says_where_the_time_went(
    tmp_path: Path, double: Path, make_rig: MakeRig
) -> None:
    rig = make_rig(milliseconds=2.5)
    session = rig.session(make_engine_bundle(double, tmp_path))
    source, result = noise(100, 200), np.zeros((1, 200, 400, 3), np.uint8)
    for _ in range(3):  # without a graph, with a new one, with an old one
        times = session.timed_run(source, result)
        # The fake's clock: 1 ms per million bytes copied.
        assert times.upload == pytest.approx(0.06, abs=1e-3)
        assert times.compute == pytest.approx(2.5, abs=1e-3)
        assert times.download == pytest.approx(0.24, abs=1e-3)
        assert times.host_in > 0
        assert times.host_out > 0
        stages = times.host_in + times.upload + times.compute + times.download + times.host_out
        assert times.overhead == pytest.approx(times.wall - stages)
    np.testing.assert_array_equal(result[0], on_onnxruntime(double, source[0]))
    session.close()
    assert rig.cuda.live() == {}


def test_a_timed_batch_is_the_sum_of_its_frames(engines: Path, make_rig: MakeRig) -> None:
    session = make_rig(milliseconds=2.0).session(engines)
    times = session.timed_run(noise(16, 16, batch=3), np.zeros((3, 16, 16, 3), np.uint8))
    assert times.compute == pytest.approx(6.0, abs=1e-3)
    session.close()


def test_a_frame_is_six_calls_of_the_driver(engines: Path, make_rig: MakeRig) -> None:
    """What it costs the host: benchmarks/gpu_host_overhead.py measures the time."""
    rig = make_rig()
    session = rig.session(engines)
    source, result = noise(8, 8), np.zeros((1, 8, 8, 3), np.uint8)
    for _ in range(3):  # until a graph is launched
        session.run(source, result)
    before = dict(rig.cuda.calls)
    for _ in range(10):
        session.run(source, result)
    made = {name: n - before.get(name, 0) for name, n in rig.cuda.calls.items()}
    assert {name: n for name, n in made.items() if n} == dict.fromkeys(
        (
            "cuCtxPushCurrent_v2",
            "cuMemcpyHtoDAsync_v2",
            "cuGraphLaunch",
            "cuMemcpyDtoHAsync_v2",
            "cuStreamSynchronize",
            "cuCtxPopCurrent_v2",
        ),
        10,
    )
    session.close()


# ------------------------------------------------------------------------------- the real library


@pytest.mark.parametrize(
    "name",
    [
        "ExecutionContextAllocationStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "CudaGraphStrategy",
        "EngineValidity",
        "EngineInvalidityDiagnostics",
        "TensorIOMode",
    ],
)
def test_the_fakes_enumerations_are_the_real_ones(name: str) -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    theirs = {key: int(member.value) for key, member in getattr(real, name).__members__.items()}
    assert {member.name: member.value for member in getattr(fake_tensorrt, name)} == theirs


@pytest.mark.parametrize(
    ("fake", "name"),
    [
        (fake_tensorrt.FakeRuntime, "Runtime"),
        (fake_tensorrt.FakeEngine, "ICudaEngine"),
        (fake_tensorrt.FakeRuntimeConfig, "IRuntimeConfig"),
        (fake_tensorrt.FakeRuntimeCache, "IRuntimeCache"),
        (fake_tensorrt.FakeContext, "IExecutionContext"),
    ],
)
def test_the_fake_has_no_method_that_the_real_library_lacks(fake: type, name: str) -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    ours = {method for method in vars(fake) if not method.startswith("_")}
    ours -= {"trt", "logger", "shapes"}  # the fake's own
    assert ours <= set(dir(getattr(real, name)))


def test_the_real_library_reports_through_our_logger(capfd: pytest.CaptureFixture[str]) -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    from topcoat.runtime.backends._trt_engine import _new_logger

    messages = _new_logger(real)
    runtime = real.Runtime(messages)
    assert runtime.deserialize_cuda_engine(b"no engine at all") is None
    said = messages.drain()
    assert "rror" in said
    assert "\n" not in said
    assert messages.drain() == ""
    assert capfd.readouterr() == ("", "")


def test_logged_warnings_are_for_those_who_ask(caplog: pytest.LogCaptureFixture) -> None:
    from topcoat.runtime.backends._trt_engine import _new_logger

    caplog.set_level(logging.DEBUG, "topcoat.runtime")
    module = fake_tensorrt.FakeTensorRt(FakeCuda())
    messages = _new_logger(module)
    messages.log(fake_tensorrt.Severity.WARNING, "slow")
    messages.log(fake_tensorrt.Severity.INFO, "chatter")
    assert messages.drain() == ""
    assert [record.message for record in caplog.records] == ["fake_tensorrt: slow"]
