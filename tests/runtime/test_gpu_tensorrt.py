"""TensorRT for RTX on a real GPU: the same promises as on the fake driver, kept by the hardware."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import topcoat.runtime as tr
from tests.runtime.fake_tensorrt import Sizes, make_engine_bundle
from topcoat.runtime.backends._cuda import Context, Device, DeviceMemory, installed_driver, probe
from topcoat.runtime.backends.tensorrt import EngineSettings, TensorRt, TensorRtSession

Frame = npt.NDArray[np.uint8]
PROFILES: tuple[Sizes, ...] = (((8, 8), (64, 64), (128, 128)), ((8, 8), (512, 512), (1080, 1920)))


def build(trt: Any, model: bytes, profiles: tuple[Sizes, ...]) -> bytes:  # noqa: ANN401 - no types
    """Build an engine of a bundle's model with the library itself; needs no GPU."""

    class Silent(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None: ...

    logger = Silent()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, *((1, *size, 3) for size in sizes))
        config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


def real_bundle(source: Path, folder: Path, gpu: str) -> Path:
    """Return a copy of a test bundle with an engine that TensorRT for RTX built of its model."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    data = build(trt, (source / "model.fp32.onnx").read_bytes(), PROFILES)
    return make_engine_bundle(
        source,
        folder,
        version=trt.__version__,
        targets=("sm80", "sm86", "sm89", "sm120"),
        profiles=PROFILES,
        verified_on=gpu,
        engine=lambda _: data,
    )


def load(bundle: Path, settings: EngineSettings) -> TensorRtSession:
    variant = tr.read_manifest(bundle).variants[-1]
    data = (bundle / variant.file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == variant.sha256
    backend = TensorRt("tensorrt-rtx", settings=settings)
    return backend.load(variant, data, compute="fp32", threads=1)


def noise(*shape: int) -> Frame:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def expected(bundle: Path, frame: Frame) -> Frame:
    with tr.open(bundle, "onnxruntime-cpu", "fp32", threads=1) as model:
        return model.process(frame)


def assert_close(made: Frame, wanted: Frame) -> None:
    """Hold a picture to one step: the GPU sums in another order."""
    assert np.abs(made.astype(int) - wanted).max() <= 1


def test_without_a_gpu_the_real_engine_is_refused_in_one_line(tmp_path: Path, blocks: Path) -> None:
    found = probe()
    if isinstance(found, Device):
        pytest.skip(f"here is a GPU: {found.name}")
    bundle = real_bundle(blocks, tmp_path, "sm89")
    with pytest.raises(tr.BackendUnavailableError) as caught:
        tr.open(bundle, backend="tensorrt-rtx")
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ on the GPU


@pytest.fixture(scope="module")
def device() -> Device:
    found = probe(least=(13, 0))
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="module")
def bundle(device: Device, blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = real_bundle(blocks, tmp_path_factory.mktemp("engine"), device.sm)
    try:
        load(made, EngineSettings(cache_folder=None)).close()
    except tr.BackendError as error:
        if "it was not built for" in str(error):
            pytest.skip(str(error))
        raise
    return made


@pytest.fixture
def session(bundle: Path) -> Iterator[TensorRtSession]:
    made = load(bundle, EngineSettings(cache_folder=None))
    yield made
    made.close()


@pytest.mark.gpu
@pytest.mark.parametrize("use_graph", [True, False])
def test_the_gpu_makes_the_models_picture(bundle: Path, use_graph: bool) -> None:
    session = load(bundle, EngineSettings(use_graph=use_graph, cache_folder=None))
    for height, width in ((8, 8), (72, 92), (1080, 1920)):
        frame = noise(2, height, width, 3)
        wanted = expected(bundle, frame)
        for _ in range(3):
            made = np.zeros_like(frame)
            session.run(frame, made)
            assert_close(made, wanted)
    session.close()


@pytest.mark.gpu
def test_a_model_on_the_gpu_pads_and_crops(bundle: Path) -> None:
    frame = noise(70, 90, 3)
    with tr.open(bundle, backend="tensorrt-rtx") as model:
        assert_close(model.process(frame), expected(bundle, frame))


@pytest.mark.gpu
def test_many_frame_sizes_leave_the_gpus_memory_as_it_was(bundle: Path, device: Device) -> None:
    context = Context(installed_driver(), device)
    with context:
        load(bundle, EngineSettings(cache_folder=None)).close()  # what the driver keeps for itself
        before, _ = context.memory()
        session = load(bundle, EngineSettings(cache_folder=None, specialisation="none"))
        for i in range(100):
            frame = noise(1, 8 + 4 * (i % 10), 8 + 4 * (i // 10), 3)
            for _ in range(2):
                session.run(frame, np.zeros_like(frame))
        session.close()
        after, _ = context.memory()
    context.close()
    assert before - after < 64 << 20


@pytest.mark.gpu
def test_stages_are_timed_and_the_host_costs_little(session: TensorRtSession) -> None:
    frame, made = session.pinned((1, 1080, 1920, 3)), session.pinned((1, 1080, 1920, 3))
    frame[...] = noise(1, 1080, 1920, 3)
    times = [session.timed_run(frame, made) for _ in range(50)][10:]
    for stage in ("upload", "compute", "download"):
        assert min(getattr(entry, stage) for entry in times) > 0
    assert min(entry.overhead for entry in times) < 0.05, "ms"


@pytest.mark.gpu
@pytest.mark.parametrize("stream", [None, 1, 2])
def test_frames_of_the_gpu_stay_there(
    session: TensorRtSession, bundle: Path, device: Device, stream: int | None
) -> None:
    frame = noise(70, 90, 3)
    wanted = expected(bundle, frame)
    driver = installed_driver()
    context = Context(driver, device)
    with context:
        memory = [DeviceMemory(driver, frame.nbytes) for _ in range(2)]
        for _ in range(3):
            made = np.zeros_like(frame)
            queue = stream or 1
            driver.call(
                "cuMemcpyHtoDAsync_v2", memory[0].handle, frame.ctypes.data, frame.nbytes, queue
            )
            given, out = (_Array(entry.handle, frame.shape) for entry in memory)
            session.run_device(given, out, stream=stream, padded=(72, 92))
            driver.call(
                "cuMemcpyDtoHAsync_v2", made.ctypes.data, memory[1].handle, made.nbytes, queue
            )
            driver.call("cuStreamSynchronize", queue)
            assert_close(made, wanted)
        for entry in memory:
            entry.close()
    context.close()


@pytest.mark.gpu
def test_graphs_of_rotating_buffers_do_not_disturb_each_other(
    session: TensorRtSession, bundle: Path, device: Device
) -> None:
    # Each pair of buffers has a graph of its own, all of one execution context.
    frames = [noise(64, 64, 3) ^ np.uint8(seed * 37) for seed in range(3)]
    wanted = [expected(bundle, frame) for frame in frames]
    driver = installed_driver()
    context = Context(driver, device)
    with context:
        pairs = [[DeviceMemory(driver, frames[0].nbytes) for _ in "io"] for _ in frames]
        for turn in range(12):
            frame, (given, out) = frames[turn % 3], pairs[turn % 3]
            made = np.zeros_like(frame)
            size = frame.nbytes
            driver.call("cuMemcpyHtoDAsync_v2", given.handle, frame.ctypes.data, size, 1)
            session.run_device(
                _Array(given.handle, frame.shape), _Array(out.handle, frame.shape), stream=1
            )
            driver.call("cuMemcpyDtoHAsync_v2", made.ctypes.data, out.handle, size, 1)
            driver.call("cuStreamSynchronize", 1)
            assert_close(made, wanted[turn % 3])
            host = np.zeros((1, 64, 64, 3), np.uint8)
            session.run(frame[None], host)
            assert_close(host[0], wanted[turn % 3])
        for entry in (memory for pair in pairs for memory in pair):
            entry.close()
    context.close()


class _Array:
    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "stream": 1,
        }


@pytest.mark.gpu
def test_compiled_kernels_are_found_again(bundle: Path, tmp_path: Path) -> None:
    settings = EngineSettings(cache_folder=tmp_path)
    frame = noise(1, 64, 64, 3)
    for _ in range(2):
        session = load(bundle, settings)
        session.run(frame, np.zeros_like(frame))
        session.close()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size > 64
