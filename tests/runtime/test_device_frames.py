"""Frames that are on the GPU already: both protocols, streams, and what is refused."""

import ctypes
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import topcoat.runtime as tr
from tests.runtime.fake_cuda import INVALID_VALUE, OUT_OF_MEMORY, FakeCuda
from tests.runtime.fake_tensorrt import Rig, make_engine_bundle
from topcoat.runtime.backends import _device_padding
from topcoat.runtime.backends._device_arrays import device_array
from topcoat.runtime.backends.tensorrt import TensorRtSession

Frame = npt.NDArray[np.uint8]
SHAPE = (16, 24, 3)
BYTES = 16 * 24 * 3


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.check()


@pytest.fixture
def session(rig: Rig, tmp_path: Path, blocks: Path) -> Iterator[TensorRtSession]:
    made = rig.session(make_engine_bundle(blocks, tmp_path))
    yield made
    made.close()


def noise(seed: int = 0, *batch: int) -> Frame:
    values = np.random.default_rng(seed).integers(0, 256, (*batch, *SHAPE))
    return values.astype(np.uint8)


def expected(blocks: Path, frame: Frame) -> Frame:
    with tr.open(blocks, "onnxruntime-cpu", "fp32", threads=1) as model:
        return model.process(frame)


# ------------------------------------------------------------- arrays of two imaginary libraries


@dataclass
class CudaArray:
    """What Numba and CuPy hand over: ``__cuda_array_interface__``."""

    pointer: int
    shape: tuple[int, ...] = SHAPE
    typestr: str = "|u1"
    version: int = 3
    read_only: bool = False
    strides: tuple[int, ...] | None = None
    stream: int | None = None
    extra: dict[str, object] = field(default_factory=dict)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {
            "shape": self.shape,
            "typestr": self.typestr,
            "data": (self.pointer, self.read_only),
            "version": self.version,
            "strides": self.strides,
            "stream": self.stream,
        } | self.extra


class DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ubyte), ("bits", ctypes.c_ubyte), ("lanes", ctypes.c_ushort))


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", DLDevice),
        ("ndim", ctypes.c_int),
        ("dtype", DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_longlong)),
        ("strides", ctypes.POINTER(ctypes.c_longlong)),
        ("byte_offset", ctypes.c_ulonglong),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", Deleter))


class DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint),
        ("minor", ctypes.c_uint),
        ("context", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_ulonglong),
        ("tensor", DLTensor),
    )


api = ctypes.pythonapi
api.PyCapsule_New.restype = ctypes.py_object
api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", api)
)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", api)
)


def _destroy(capsule: int) -> None:
    """Free a tensor that nobody consumed, as every producer's capsules do."""
    for name, kind in ((b"dltensor", DLManagedTensor), (b"dltensor_versioned", None)):
        if _is_valid(capsule, name):
            address = _get_pointer(capsule, name)
            structure = (kind or DLManagedTensorVersioned).from_address(address)
            structure.deleter(address)


destroy_capsule = Destructor(_destroy)


class DlpackArray:
    """What PyTorch, JAX and CuPy hand over: ``__dlpack__``, before and since DLPack 1.0."""

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...] = SHAPE,
        *,
        versioned: bool = True,
        device: tuple[int, int] = (2, 0),
        dtype: tuple[int, int, int] = (1, 8, 1),
        strides: tuple[int, ...] | None = None,
        offset: int = 0,
        read_only: bool = False,
        major: int = 1,
    ) -> None:
        self.pointer, self.shape, self.versioned = pointer, shape, versioned
        self.device, self.dtype, self.strides = device, dtype, strides
        self.offset, self.read_only, self.major = offset, read_only, major
        self.streams: list[object] = []
        """Which streams consumers asked it to have wait."""
        self.freed = 0
        self._alive: list[object] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int | None = None, **more: object) -> object:
        if more and not self.versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        count = len(self.shape)
        tensor = DLTensor(
            self.pointer,
            DLDevice(*self.device),
            count,
            DLDataType(*self.dtype),
            (ctypes.c_longlong * count)(*self.shape),
            (ctypes.c_longlong * count)(*self.strides) if self.strides else None,
            self.offset,
        )
        deleter = Deleter(self._free)
        managed: ctypes.Structure
        if self.versioned:
            name = b"dltensor_versioned"
            managed = DLManagedTensorVersioned(
                self.major, 0, None, deleter, int(self.read_only), tensor
            )
        else:
            name = b"dltensor"
            managed = DLManagedTensor(tensor, None, deleter)
        self._alive += [managed, deleter, tensor]
        destructor = ctypes.cast(destroy_capsule, ctypes.c_void_p)
        return api.PyCapsule_New(ctypes.addressof(managed), name, destructor)

    def _free(self, address: int) -> None:
        self.freed += 1


def write(cuda: FakeCuda, address: int, frame: Frame) -> None:
    cuda.view(address, frame.nbytes)[...] = frame.reshape(-1)


def put(cuda: FakeCuda, frame: Frame) -> int:
    """Copy a frame into new memory of the GPU and return its address."""
    address = cuda.allocate(frame.nbytes)
    write(cuda, address, frame)
    return address


# ----------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("versioned", [False, True])
def test_a_dlpack_tensor_is_read_and_given_back_once(versioned: bool) -> None:
    array = DlpackArray(4096, (2, *SHAPE), versioned=versioned, offset=512, device=(2, 1))
    found = device_array(array, stream=77)
    assert (found.pointer, found.shape, found.nbytes) == (4608, (2, *SHAPE), 2 * BYTES)
    assert (found.device, found.read_only, found.stream) == (1, False, None)
    assert array.streams == [77]
    assert array.freed == 0  # held as long as the description is
    del found
    gc.collect()
    assert array.freed == 1


@pytest.mark.parametrize("versions", [{}, {"max_version": (1, 0)}])
@pytest.mark.parametrize("writeable", [True, False])
def test_tensors_that_numpy_makes_are_understood(versions: dict[str, Any], writeable: bool) -> None:
    class OnDevice:
        """numpy's tensor with a GPU's address, as far as anybody can tell."""

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **settings: object) -> object:
            return frame.__dlpack__(**versions)

    frame = noise(0, 2)[1:]
    frame.flags.writeable = writeable
    if not (writeable or versions):
        with pytest.raises(tr.FrameError, match="cannot be taken over"):  # numpy's own refusal
            device_array(OnDevice())
        return
    found = device_array(OnDevice())
    assert (found.pointer, found.shape) == (frame.ctypes.data, (1, *SHAPE))
    assert found.read_only is not writeable


def test_without_a_stream_the_producer_has_nothing_to_wait_for() -> None:
    array = DlpackArray(4096)
    device_array(array)
    assert array.streams == [-1]


def test_a_cuda_array_is_read() -> None:
    found = device_array(CudaArray(4096, read_only=True, stream=9), stream=77)
    assert (found.pointer, found.shape, found.device) == (4096, SHAPE, None)
    assert (found.read_only, found.stream) == (True, 9)
    assert device_array(CudaArray(4096, stream=9)).stream is None
    assert device_array(CudaArray(4096), stream=77).stream is None
    # Before version 3 there was no word about streams.
    assert device_array(CudaArray(4096, version=2), stream=77).stream == 1


def test_dlpack_is_preferred_because_it_synchronises() -> None:
    class Both(DlpackArray):
        __cuda_array_interface__ = CudaArray(8192).__cuda_array_interface__

    assert device_array(Both(4096)).pointer == 4096


@pytest.mark.parametrize("shape", [SHAPE, (1, *SHAPE), (1, 1, 24, 3)])
def test_strides_that_say_contiguous_are_contiguous(shape: tuple[int, ...]) -> None:
    strides = list(np.empty(shape, np.uint8).strides)
    if shape[0] == 1:
        strides[0] = 12345  # of an axis of length 1, libraries say anything
    device_array(CudaArray(4096, shape, strides=tuple(strides)))
    device_array(DlpackArray(4096, shape, strides=tuple(strides)))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (object(), "frame is a builtins.object, wanted an array on a GPU"),
        (noise(), "frame is in host memory, wanted an array on an NVIDIA GPU; use process()"),
        (DlpackArray(4096, device=(10, 0)), "on a device of type 10"),
        (DlpackArray(4096, dtype=(2, 32, 1)), "elements of type float32, wanted uint8"),
        (DlpackArray(4096, strides=(72, 3, 2)), "is not C-contiguous"),
        (DlpackArray(4096, major=2), "speaks DLPack 2.0, wanted 1.x"),
        (CudaArray(4096, typestr="<f4"), "elements of type <f4, wanted uint8"),
        (CudaArray(4096, strides=(144, 3, 1)), "is not C-contiguous (strides (144, 3, 1))"),
        (CudaArray(4096, version=1), "version 1, wanted 2 or 3"),
        (CudaArray(4096, stream=0), "has stream 0"),
        (CudaArray(4096, extra={"mask": object()}), "is masked"),
        (CudaArray(4096, extra={"data": None}), "is not as specified"),
    ],
)
def test_an_array_that_cannot_be_used_is_one_line(array: object, said: str) -> None:
    with pytest.raises(tr.FrameError) as caught:
        device_array(array)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_another_library_raises_is_in_the_error() -> None:
    class Refusing(DlpackArray):
        def __dlpack__(self, **settings: object) -> object:
            raise RuntimeError("Can't export\ntensors that require gradient")

    with pytest.raises(tr.FrameError, match="Can't export tensors that require gradient"):
        device_array(Refusing(4096))


def test_something_else_than_a_capsule_is_refused() -> None:
    class Odd(DlpackArray):
        def __dlpack__(self, **settings: object) -> object:
            return 4096

    with pytest.raises(tr.FrameError, match="returned no DLPack capsule"):
        device_array(Odd(4096))


# ----------------------------------------------------------------------------------------- running


@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
def test_frames_of_the_gpu_are_run_where_they_lie(
    kind: type[CudaArray | DlpackArray], rig: Rig, session: TensorRtSession, blocks: Path
) -> None:
    source = rig.cuda.allocate(BYTES)
    result = rig.cuda.allocate(BYTES)
    for seed in range(4):  # kernel by kernel, then as a graph
        frame = noise(seed)
        rig.cuda.view(source, BYTES)[...] = frame.reshape(-1)
        session.run_device(kind(source), kind(result))
        made = rig.cuda.view(result, BYTES).reshape(SHAPE)
        np.testing.assert_array_equal(made, expected(blocks, frame))
    assert rig.cuda.calls["cuGraphLaunch"] == 3
    for copy in ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2"):
        assert rig.cuda.calls[copy] == 0
    assert rig.cuda.calls["cuMemHostAlloc"] == 0


def test_a_batch_is_run_frame_by_frame(rig: Rig, session: TensorRtSession, blocks: Path) -> None:
    # A frame takes 1152 bytes, so that the second one is not aligned to 256.
    frames = noise(0, 3)
    source, result = put(rig.cuda, frames), rig.cuda.allocate(3 * BYTES)
    for _ in range(3):
        rig.cuda.view(result, 3 * BYTES)[...] = 0
        session.run_device(DlpackArray(source, (3, *SHAPE)), CudaArray(result, (3, *SHAPE)))
        made = rig.cuda.view(result, 3 * BYTES).reshape(3, *SHAPE)
        np.testing.assert_array_equal(made, expected(blocks, frames))
    assert rig.cuda.calls["cuMemcpyDtoHAsync_v2"] == 0


@pytest.mark.parametrize("buffers", [3, 8, 9, 40])
def test_however_many_buffers_take_turns_their_frames_end_in_graphs(
    buffers: int,
    rig: Rig,
    session: TensorRtSession,
    blocks: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = [(put(rig.cuda, noise(i)), rig.cuda.allocate(BYTES)) for i in range(buffers)]
    for _ in range(6):
        for source, result in pairs:
            session.run_device(CudaArray(source), CudaArray(result))
    for number, (_, result) in enumerate(pairs):
        made = rig.cuda.view(result, BYTES).reshape(SHAPE)
        np.testing.assert_array_equal(made, expected(blocks, noise(number)))
    before = len(rig.trt.executions)
    for source, result in pairs:
        session.run_device(CudaArray(source), CudaArray(result))
    assert len(rig.trt.executions) == before  # nothing kernel by kernel any more
    said = ["come from ever other buffers" in record.message for record in caplog.records]
    assert said == ([True] if buffers > 8 else [])
    assert rig.cuda.live()["executables"] <= 8


@pytest.mark.parametrize("batch", [2, 4, 5, 12])
def test_a_batch_of_any_size_ends_in_graphs(
    batch: int, rig: Rig, session: TensorRtSession, tmp_path: Path, blocks: Path
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (batch, 16, 16, 3)).astype(np.uint8)
    shape = frames.shape  # each frame takes 768 bytes, so that all are aligned
    pairs = [(put(rig.cuda, frames), rig.cuda.allocate(frames.nbytes)) for _ in range(2)]
    for _ in range(3):
        before = len(rig.trt.executions)
        for source, result in pairs:
            session.run_device(CudaArray(source, shape), CudaArray(result, shape))
            made = rig.cuda.view(result, frames.nbytes).reshape(shape)
            np.testing.assert_array_equal(made, expected(blocks, frames))
    assert len(rig.trt.executions) == before


def test_a_call_that_returns_at_once_never_waits_for_a_graph_that_has_to_go(
    rig: Rig, session: TensorRtSession
) -> None:
    mine = user_stream(rig)
    pairs = [(rig.cuda.allocate(BYTES), rig.cuda.allocate(BYTES)) for _ in range(20)]
    session.run_device(CudaArray(pairs[0][0]), CudaArray(pairs[0][1]))
    waited = rig.cuda.calls["cuStreamSynchronize"]
    for source, result in pairs:
        for _ in range(2):  # the second time makes a graph
            session.run_device(CudaArray(source), CudaArray(result), mine)
    assert rig.cuda.calls["cuStreamSynchronize"] == waited
    assert rig.trt.computed == [(1, *SHAPE)]  # all the rest, graphs included, is yet to run
    assert rig.cuda.live()["executables"] == 20
    rig.cuda.synchronize(mine)
    assert len(rig.trt.computed) == 41
    source, result = rig.cuda.allocate(BYTES), rig.cuda.allocate(BYTES)
    session.run_device(CudaArray(source), CudaArray(result))
    assert rig.cuda.live()["executables"] <= 9
    del rig.cuda.streams[mine]


def test_device_and_host_frames_take_turns(
    rig: Rig, session: TensorRtSession, blocks: Path
) -> None:
    source, result = put(rig.cuda, noise(1)), rig.cuda.allocate(BYTES)
    for seed in range(3):
        host = np.empty((1, *SHAPE), np.uint8)
        session.run(noise(seed, 1), host)
        np.testing.assert_array_equal(host[0], expected(blocks, noise(seed)))
        session.run_device(CudaArray(source), CudaArray(result))
        made = rig.cuda.view(result, BYTES).reshape(SHAPE)
        np.testing.assert_array_equal(made, expected(blocks, noise(1)))


def user_stream(rig: Rig) -> int:
    handle = 0xABC0
    rig.cuda.streams[handle] = type(rig.cuda.streams[1])()
    return handle


def test_with_a_stream_the_work_is_ordered_and_the_call_does_not_wait(
    rig: Rig, session: TensorRtSession, blocks: Path
) -> None:
    cuda, stream = rig.cuda, user_stream(rig)
    source, result, copy = (cuda.allocate(BYTES) for _ in range(3))
    given, made = DlpackArray(source), DlpackArray(result)
    for seed in range(3):
        frame = noise(seed)
        # The frame is made late, and its result is taken away right behind the work.
        cuda.enqueue(stream, functools.partial(write, cuda, source, frame))
        done = len(rig.trt.computed)
        session.run_device(given, made, stream=stream)
        assert len(rig.trt.computed) == done  # only queued so far
        cuda.enqueue(stream, lambda: write(cuda, copy, cuda.view(result, BYTES)))
        cuda.synchronize(stream)
        styled = cuda.view(copy, BYTES).reshape(SHAPE)
        np.testing.assert_array_equal(styled, expected(blocks, frame))
    assert set(given.streams) == {-1}  # the caller's stream says it all
    del cuda.streams[stream]


def test_without_a_stream_the_arrays_say_what_to_wait_for(
    rig: Rig, session: TensorRtSession, blocks: Path
) -> None:
    cuda, stream, frame = rig.cuda, user_stream(rig), noise()
    source, result = cuda.allocate(BYTES), cuda.allocate(BYTES)
    cuda.enqueue(stream, lambda: write(cuda, source, frame))
    made = DlpackArray(result)
    session.run_device(CudaArray(source, stream=stream), made)
    styled = cuda.view(result, BYTES).reshape(SHAPE)  # done when the call returns
    np.testing.assert_array_equal(styled, expected(blocks, frame))
    assert made.streams[0] not in {-1, stream}  # it was told our stream
    assert made.streams[0] in cuda.streams
    del cuda.streams[stream]


@pytest.mark.parametrize("stream", [0, -1, 1.0, True, "1"])
def test_a_stream_that_is_none_is_refused(stream: object, session: TensorRtSession) -> None:
    with pytest.raises(tr.FrameError, match="wanted the handle of a CUDA stream, 1 for the legacy"):
        session.run_device(CudaArray(4096), CudaArray(8192), stream=stream)  # type: ignore[arg-type]


def test_the_default_streams_can_be_named(rig: Rig, session: TensorRtSession, blocks: Path) -> None:
    frame = noise()
    source, result = put(rig.cuda, frame), rig.cuda.allocate(BYTES)
    for stream in (1, 2):
        rig.cuda.view(result, BYTES)[...] = 0
        session.run_device(CudaArray(source), CudaArray(result), stream=stream)
        rig.cuda.synchronize(stream)
        made = rig.cuda.view(result, BYTES).reshape(SHAPE)
        np.testing.assert_array_equal(made, expected(blocks, frame))


def test_arrays_that_do_not_fit_the_engine_are_refused(rig: Rig, session: TensorRtSession) -> None:
    cuda = rig.cuda
    here, there = cuda.allocate(2 * BYTES), cuda.allocate(2 * BYTES)
    other, host = cuda.allocate(BYTES, ordinal=1), cuda.allocate(BYTES, on_device=False)
    table = [
        (CudaArray(here), CudaArray(there, read_only=True), tr.FrameError, "out is read-only"),
        (CudaArray(here), DlpackArray(there, read_only=True), tr.FrameError, "out is read-only"),
        (CudaArray(here), CudaArray(here), tr.FrameError, "out overlaps the frame"),
        (CudaArray(here), CudaArray(here + BYTES - 1), tr.FrameError, "out overlaps the frame"),
        (CudaArray(other), CudaArray(there), tr.FrameError, "frame is in the memory of GPU 1"),
        (CudaArray(here), CudaArray(host), tr.FrameError, "out is not in a GPU's memory"),
        (CudaArray(here, (24, 3)), CudaArray(there), tr.FrameError, "frame has shape (24, 3)"),
        (CudaArray(here, (16, 24, 4)), CudaArray(there), tr.FrameError, "wanted (H, W, 3)"),
        (CudaArray(here, (0, 24, 3)), CudaArray(there), tr.FrameError, "has shape (0, 24, 3)"),
        (CudaArray(here), CudaArray(there, (24, 16, 3)), tr.FrameError, "wanted (16, 24, 3)"),
        (CudaArray(here), CudaArray(there, (2, *SHAPE)), tr.FrameError, "wanted (1, 16, 24, 3)"),
        (CudaArray(here, (4, 4, 3)), CudaArray(there, (4, 4, 3)), tr.BackendError, "not of 4x4"),
    ]
    for given, made, kind, said in table:
        with pytest.raises(kind) as caught:
            session.run_device(given, made)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert rig.trt.computed == []


@pytest.mark.parametrize(("height", "width"), [(70, 90), (72, 89), (71, 92), (1, 1), (72, 92)])
def test_frames_of_any_size_are_padded_and_cropped_on_the_gpu(
    height: int, width: int, rig: Rig, session: TensorRtSession, blocks: Path
) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    source, result = put(rig.cuda, frames), rig.cuda.allocate(frames.nbytes + 64)
    padded = (max(8, -(-height // 4) * 4), max(8, -(-width // 4) * 4))
    given, made = CudaArray(source, frames.shape), CudaArray(result, frames.shape)
    for _ in range(3):
        write(rig.cuda, result, np.zeros(frames.nbytes, np.uint8))
        session.run_device(given, made, padded=padded)
        styled = rig.cuda.view(result, frames.nbytes).reshape(frames.shape)
        np.testing.assert_array_equal(styled, expected(blocks, frames))
    assert (rig.cuda.view(result + frames.nbytes, 64) == 0xCD).all()  # nothing beyond the result
    assert rig.cuda.calls["cuMemcpyDtoHAsync_v2"] == 0


def test_a_driver_that_refuses_the_pitch_is_given_the_rows_one_by_one(
    rig: Rig, session: TensorRtSession, blocks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _device_padding._tell_once.cache_clear()
    frame = np.random.default_rng(0).integers(0, 256, (15, 22, 3)).astype(np.uint8)
    source, result = put(rig.cuda, frame), rig.cuda.allocate(frame.nbytes)
    given, made = CudaArray(source, frame.shape), CudaArray(result, frame.shape)
    for call in range(4):  # the frame, two columns beside it, and the result
        rig.cuda.fail("cuMemcpy2DAsync_v2", INVALID_VALUE, after=call)
    session.run_device(given, made, padded=(16, 24))
    assert rig.cuda.calls["cuMemcpy2DAsync_v2"] == 4
    assert ["one by one" in record.message for record in caplog.records] == [True]
    styled = rig.cuda.view(result, frame.nbytes).reshape(frame.shape)
    np.testing.assert_array_equal(styled, expected(blocks, frame))
    rig.cuda.fail("cuMemcpy2DAsync_v2", OUT_OF_MEMORY)
    rig.cuda.fail("cuMemcpy2DAsync_v2", OUT_OF_MEMORY, after=1)
    with pytest.raises(tr.DeviceMemoryError):  # any other error is one
        session.run_device(given, made, padded=(16, 24))


def test_enlarged_frames_are_cropped_at_their_own_scale(tmp_path: Path, rig: Rig) -> None:
    bundle = make_engine_bundle(Path(__file__).parent / "data" / "local2.topcoat", tmp_path)
    frame = np.random.default_rng(0).integers(0, 256, (21, 33, 3)).astype(np.uint8)
    source, result = put(rig.cuda, frame), rig.cuda.allocate(4 * frame.nbytes)
    session = rig.session(bundle)
    made = CudaArray(result, (42, 66, 3))
    session.run_device(CudaArray(source, frame.shape), made, padded=(22, 34))
    styled = rig.cuda.view(result, 4 * frame.nbytes).reshape(42, 66, 3)
    np.testing.assert_array_equal(styled, expected(bundle, frame))
    session.close()


def test_padding_never_makes_a_frame_smaller(rig: Rig, session: TensorRtSession) -> None:
    here, there = rig.cuda.allocate(BYTES), rig.cuda.allocate(BYTES)
    with pytest.raises(tr.FrameError, match=r"padding to \(16, 20\) cuts"):
        session.run_device(CudaArray(here), CudaArray(there), padded=(16, 20))


def test_the_same_addresses_are_checked_again_when_they_hold_more_frames(
    rig: Rig, session: TensorRtSession
) -> None:
    memory = rig.cuda.allocate(8 * BYTES)
    session.run_device(CudaArray(memory), CudaArray(memory + 2 * BYTES))
    batch = (3, *SHAPE)
    with pytest.raises(tr.FrameError, match="out overlaps the frame"):
        session.run_device(CudaArray(memory, batch), CudaArray(memory + 2 * BYTES, batch))


def test_memory_that_runs_out_once_is_no_error(
    rig: Rig, session: TensorRtSession, blocks: Path
) -> None:
    frame = noise()
    source, result = put(rig.cuda, frame), rig.cuda.allocate(BYTES)
    rig.cuda.fail("cuMemAlloc_v2", OUT_OF_MEMORY)
    session.run_device(CudaArray(source), CudaArray(result))
    made = rig.cuda.view(result, BYTES).reshape(SHAPE)
    np.testing.assert_array_equal(made, expected(blocks, frame))


def test_every_tensor_is_given_back(rig: Rig, session: TensorRtSession) -> None:
    given = DlpackArray(rig.cuda.allocate(BYTES), versioned=False)
    made = DlpackArray(rig.cuda.allocate(BYTES))
    for _ in range(5):
        session.run_device(given, made)
    with pytest.raises(tr.FrameError):
        session.run_device(given, given)
    gc.collect()
    assert (given.freed, made.freed) == (len(given.streams), len(made.streams)) == (7, 5)
