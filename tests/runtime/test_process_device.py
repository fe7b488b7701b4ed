"""Frames on the GPU through a model: what engine runs them, padding, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import topcoat.runtime as tr
from tests.runtime.fake_tensorrt import Rig, make_engine_bundle
from tests.runtime.test_device_frames import CudaArray, DlpackArray, put
from topcoat.runtime.backends.onnxruntime import OnnxRuntimeCpu

Frame = npt.NDArray[np.uint8]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.check()


def on_the_cpu(bundle: Path, frame: Frame) -> Frame:
    with tr.open(bundle, "onnxruntime-cpu", "fp32", threads=1) as model:
        return model.process(frame)


@pytest.mark.parametrize("shape", [(16, 24, 3), (17, 23, 3), (2, 30, 20, 3)])
def test_a_frame_on_the_gpu_gives_the_picture_of_one_on_the_host(
    shape: tuple[int, ...], rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    source, result = put(rig.cuda, frame), rig.cuda.allocate(frame.nbytes)
    with rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model:
        model.process_device(CudaArray(source, shape), CudaArray(result, shape))
        styled = rig.cuda.view(result, frame.nbytes).reshape(shape)
        np.testing.assert_array_equal(styled, on_the_cpu(blocks, frame))
    assert rig.cuda.calls["cuMemcpyDtoHAsync_v2"] == 0
    assert rig.cuda.calls["cuMemcpyHtoDAsync_v2"] == 0


class OnlyInterface:
    """What an application hands over that knows its memory and nothing else."""

    def __init__(self, array: CudaArray) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__


class OnlyDlpack:
    def __init__(self, array: DlpackArray) -> None:
        self.__dlpack__ = array.__dlpack__
        self.__dlpack_device__ = array.__dlpack_device__


@pytest.mark.parametrize("how", ["interface", "dlpack"])
def test_an_array_that_speaks_its_protocol_alone_is_enough(
    how: str, rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    shape = (17, 23, 3)
    frame = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    source, result = put(rig.cuda, frame), rig.cuda.allocate(frame.nbytes)
    given, made = (
        OnlyInterface(CudaArray(address, shape))
        if how == "interface"
        else OnlyDlpack(DlpackArray(address, shape))
        for address in (source, result)
    )
    assert not hasattr(given, "shape")
    with rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model:
        model.process_device(given, made)
        styled = rig.cuda.view(result, frame.nbytes).reshape(shape)
        np.testing.assert_array_equal(styled, on_the_cpu(blocks, frame))


def test_an_engine_of_the_host_says_that_it_cannot(blocks: Path) -> None:
    with (
        tr.open(blocks, "onnxruntime-cpu") as model,
        pytest.raises(tr.BackendError, match=r"onnxruntime-cpu fp32 .* copy the frame there"),
    ):
        model.process_device(CudaArray(4096, (16, 24, 3)), CudaArray(8192, (16, 24, 3)))


# Which of the two engines wins the race at the start is not what is tested.
@pytest.mark.filterwarnings("ignore::topcoat.runtime.FallbackWarning")
def test_no_frame_on_the_gpu_wanders_to_the_host_in_silence(
    rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path)
    shape = (1200, 8, 3)  # outside the engine's profile
    source, result = rig.cuda.allocate(28800), rig.cuda.allocate(28800)
    with (
        rig.open(bundle, (OnnxRuntimeCpu(),), backend="auto") as model,
        pytest.raises(tr.BackendError, match="runs frames of the host's memory alone"),
    ):
        model.process_device(CudaArray(source, shape), CudaArray(result, shape))


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 4), (0, 24, 3), (2, 2, 16, 24, 3)])
def test_a_frame_of_another_shape_is_refused(
    shape: tuple[int, ...], rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    with (
        rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model,
        pytest.raises(tr.FrameError, match="wanted \\(H, W, 3\\)"),
    ):
        model.process_device(CudaArray(4096, shape), CudaArray(8192, shape))


def test_something_without_a_shape_is_refused(rig: Rig, tmp_path: Path, blocks: Path) -> None:
    with (
        rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model,
        pytest.raises(tr.FrameError, match=r"the frame is bytes of no known shape: .* use pro"),
    ):
        model.process_device(b"pixels", CudaArray(8192))


def test_tiles_and_histograms_are_for_frames_of_the_host(rig: Rig, tmp_path: Path) -> None:
    source = Path(__file__).parent / "data" / "local4.topcoat"
    bundle = make_engine_bundle(source, tmp_path)
    frame, out = CudaArray(4096, (8, 8, 3)), CudaArray(8192, (32, 32, 3))
    with (
        rig.open(bundle, backend="tensorrt-rtx", tile=48) as model,
        pytest.raises(tr.TileError, match="tiles of 48"),
    ):
        model.process_device(frame, out)
    with (
        rig.open(bundle, backend="tensorrt-rtx", match_histogram=True) as model,
        pytest.raises(tr.TextureError, match="histograms are matched on the host"),
    ):
        model.process_device(frame, out)


def test_a_closed_model_runs_nothing(rig: Rig, tmp_path: Path, blocks: Path) -> None:
    model = rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx")
    model.close()
    with pytest.raises(tr.ModelClosedError):
        model.process_device(CudaArray(4096), CudaArray(8192))
