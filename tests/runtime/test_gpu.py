"""Models on a real NVIDIA GPU: torch's frames, several models at once, engines that do not fit.

What one session does on its own is in test_gpu_tensorrt.py.
"""

import gc
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import topcoat.runtime as tr
from tests.runtime.test_gpu_tensorrt import assert_close, expected, load, noise, real_bundle
from topcoat.runtime.backends._cuda import Context, Device, installed_driver, probe
from topcoat.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda
from topcoat.runtime.backends.tensorrt import EngineSettings, TensorRt
from topcoat.runtime.frames import Frame

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> Device:
    found = probe()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="module")
def bundle(device: Device, blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine for frames of 8x8 to 1920x1080, verified for this GPU, and the ONNX models."""
    made = real_bundle(blocks, tmp_path_factory.mktemp("engine"), device.sm)
    if (missing := TensorRt("tensorrt-rtx").missing()) is not None:
        pytest.skip(missing)
    try:
        load(made, EngineSettings(cache_folder=None)).close()
    except tr.BackendError as error:
        if "it was not built for" in str(error):
            pytest.skip(str(error))
        raise
    return made


@pytest.fixture
def model(bundle: Path) -> Iterator[tr.Model]:
    with tr.open(bundle, backend="tensorrt-rtx") as opened:
        yield opened


# ---------------------------------------------------------------------------------- torch's frames


class InterfaceOnly:
    """A tensor as a library shows it that speaks ``__cuda_array_interface__`` and not DLPack."""

    def __init__(self, tensor: Any) -> None:  # noqa: ANN401 - torch may be absent
        self.shape = tuple(tensor.shape)
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__


def as_it_is(tensor: Any) -> Any:  # noqa: ANN401 - torch may be absent
    return tensor


@pytest.fixture
def torch() -> Any:  # noqa: ANN401 - torch may be absent
    module = pytest.importorskip("torch", reason="torch is not installed")
    if not module.cuda.is_available():
        pytest.skip("the torch that is installed cannot use the GPU")
    return module


@pytest.mark.parametrize("shown", [as_it_is, InterfaceOnly], ids=["DLPack", "CUDA array interface"])
@pytest.mark.parametrize("shape", [(64, 64, 3), (70, 90, 3), (2, 72, 92, 3)])
def test_tensors_of_torch_give_the_picture_of_the_host(
    model: tr.Model,
    torch: Any,  # noqa: ANN401
    shown: Callable[[Any], Any],
    shape: tuple[int, ...],
) -> None:
    frame = noise(*shape)
    wanted = model.process(frame)
    source = torch.from_numpy(frame).cuda()
    out = torch.zeros_like(source)
    for _ in range(3):  # kernel by kernel, captured, replayed
        out.zero_()
        torch.cuda.synchronize()
        model.process_device(shown(source), shown(out))
        np.testing.assert_array_equal(out.cpu().numpy(), wanted)


def test_frames_are_ordered_on_the_stream_of_torch_without_waiting(
    model: tr.Model,
    torch: Any,  # noqa: ANN401
) -> None:
    pictures = [noise(512, 512, 3) ^ np.uint8(turn) for turn in range(8)]
    wanted = [model.process(picture) for picture in pictures]
    stream = torch.cuda.Stream()
    made = []
    with torch.cuda.stream(stream):
        source = torch.empty((512, 512, 3), dtype=torch.uint8, device="cuda")
        out = torch.empty_like(source)
        busy = torch.randn(2048, 2048, device="cuda")
        for picture in pictures:
            busy = (busy @ busy).clamp(-1, 1)  # so that nothing is ready when it is asked for
            source.copy_(torch.from_numpy(picture).pin_memory(), non_blocking=True)
            model.process_device(source, out, stream.cuda_stream)
            made.append(out.clone())
    stream.synchronize()
    for found, right in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(found.cpu().numpy(), right)


def test_a_tensor_of_the_host_is_refused(model: tr.Model, torch: Any) -> None:  # noqa: ANN401
    frame = torch.zeros((64, 64, 3), dtype=torch.uint8)
    with pytest.raises(tr.FrameError, match="GPU"):
        model.process_device(frame, torch.zeros_like(frame))


# ------------------------------------------------------------------------------------- one engine


def test_graphs_change_no_bit_of_a_picture(bundle: Path) -> None:
    frame = noise(1, 540, 960, 3)
    pictures = []
    for use_graph in (True, False):
        session = load(bundle, EngineSettings(use_graph=use_graph, cache_folder=None))
        for _ in range(4):
            made = np.zeros_like(frame)
            session.run(frame, made)
            pictures.append(made)
        session.close()
    for made in pictures[1:]:
        np.testing.assert_array_equal(made, pictures[0])


@pytest.mark.parametrize("specialisation", ["eager", "lazy", "none"])
def test_every_specialisation_makes_the_same_picture(bundle: Path, specialisation: Any) -> None:  # noqa: ANN401
    frame = noise(1, 72, 92, 3)
    settings = EngineSettings(specialisation=specialisation, cache_folder=None)
    session = load(bundle, settings)
    wanted, made = expected(bundle, frame), np.zeros_like(frame)
    for _ in range(20):
        session.run(frame, made)
        assert_close(made, wanted)
    session.close()


def test_what_the_host_adds_to_a_frame_is_reported(
    bundle: Path, record_property: Callable[[str, object], None]
) -> None:
    frame = noise(1, 1080, 1920, 3)
    made = np.empty_like(frame)
    session = load(bundle, EngineSettings(cache_folder=None))
    times = [session.timed_run(frame, made) for _ in range(60)][10:]
    session.close()
    for entry in times:
        # Stages of the device's clock lie one after the other within the call.
        assert 0 < entry.upload + entry.compute + entry.download < entry.wall
    overhead = float(np.median([entry.overhead for entry in times])) * 1e3
    record_property("host overhead per 1080p frame, us", round(overhead, 1))
    print(f"host overhead per 1080p frame: {overhead:.0f} us")


def test_closing_gives_the_memory_of_large_frames_back(bundle: Path, device: Device) -> None:
    context = Context(installed_driver(), device)
    try:
        with context:
            load(bundle, EngineSettings(cache_folder=None)).close()  # what the driver keeps
            before, _ = context.memory()
            session = load(bundle, EngineSettings(cache_folder=None, shapes_kept=4))
            frames = [noise(1, 1080, width, 3) for width in (1920, 1900, 1880, 1860)]
            for frame in frames:
                session.run(frame, np.empty_like(frame))
            during, _ = context.memory()
            session.close()
            after, _ = context.memory()
    finally:
        context.close()
    # A frame and its result lie on the GPU for every size that is kept.
    assert before - during >= sum(2 * frame.nbytes for frame in frames)
    assert before - after < 16 << 20


# ------------------------------------------------------------------------------- several at once


def test_two_models_side_by_side_do_not_disturb_each_other(bundle: Path) -> None:
    frames = [noise(256, 256, 3), 255 - noise(256, 256, 3)]
    wanted = [expected(bundle, frame) for frame in frames]
    failures: list[str] = []

    def work(number: int, model: tr.Model) -> None:
        try:
            for _ in range(50):
                assert_close(model.process(frames[number]), wanted[number])
        except BaseException as error:
            failures.append(f"{number}: {error!r}")

    with tr.open(bundle, "tensorrt-rtx") as one, tr.open(bundle, "tensorrt-rtx") as other:
        threads = [threading.Thread(target=work, args=job) for job in enumerate((one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert failures == []


def test_closing_one_model_leaves_the_other_running(bundle: Path) -> None:
    frame = noise(64, 64, 3)
    with tr.open(bundle, "tensorrt-rtx") as lasting:
        before = lasting.process(frame)
        with tr.open(bundle, "tensorrt-rtx") as short:
            short.process(frame)
        gc.collect()
        np.testing.assert_array_equal(lasting.process(frame), before)


# ------------------------------------------------------------------------- engines that do not fit


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999], ids=["empty", "half", "almost whole"])
def test_a_truncated_engine_is_refused_in_one_line(bundle: Path, part: float) -> None:
    variant = tr.read_manifest(bundle).variants[-1]
    data = (bundle / variant.file).read_bytes()
    backend = TensorRt("tensorrt-rtx", settings=EngineSettings(cache_folder=None))
    with pytest.raises(tr.BackendError) as caught:
        backend.load(variant, data[: int(part * len(data))], compute="fp32", threads=1)
    assert variant.file in str(caught.value)
    assert "\n" not in str(caught.value)
    # ... and the process can go on with the whole one.
    load(bundle, EngineSettings(cache_folder=None)).close()


def test_a_frame_outside_the_profile_falls_to_the_next_engine_and_says_so(bundle: Path) -> None:
    frame = noise(1084, 1920, 3)
    with tr.open(bundle, backend="tensorrt-rtx", fallback=True, threads=1) as model:
        with pytest.warns(tr.FallbackWarning, match="1920x1080"):
            made = model.process(frame)
        (fallback,) = model.explain().fallbacks
        assert fallback.failed.backend == "tensorrt-rtx"
        assert fallback.used.backend != "tensorrt-rtx"
        # Frames that it was built for stay with it.
        model.process(frame[:64, :64].copy())
        assert len(model.explain().fallbacks) == 1
    assert_close(made, expected(bundle, frame))


def test_a_frame_outside_the_profile_is_an_error_where_no_other_engine_may_run(
    bundle: Path,
) -> None:
    with tr.open(bundle, backend="tensorrt-rtx") as model:  # a named backend does not fall back
        with pytest.raises(tr.FrameOutsideProfileError, match="1920x1080"):
            model.process(noise(1084, 1920, 3))
        model.process(noise(64, 64, 3))


def test_an_engine_of_another_version_is_refused_before_it_is_loaded(
    bundle: Path, tmp_path: Path
) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    content["variants"][-1]["engine"]["version"] = "1.0.0.1"
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(tr.BackendError, match=r"built by TensorRT-RTX 1\.0\.0\.1, here is"):
        tr.open(tmp_path, backend="tensorrt-rtx")


# -------------------------------------------------------------------------------- the other backend


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_on_the_gpu_makes_the_model_s_picture(
    device: Device, blocks: Path, precision: str
) -> None:
    backend = OnnxRuntimeCuda()
    if (missing := backend.missing()) is not None:
        pytest.skip(missing)
    manifest = tr.read_manifest(blocks)
    variant = next(v for v in manifest.variants if v.precision == precision)
    session = backend.load(
        variant, (blocks / variant.file).read_bytes(), compute=precision, threads=1
    )
    for height, width in ((8, 8), (64, 96), (1080, 1920), (64, 96)):
        frame = noise(1, height, width, 3)
        made: Frame = np.zeros_like(frame)
        session.run(frame, made)
        assert_close(made, expected(blocks, frame))
    session.close()
