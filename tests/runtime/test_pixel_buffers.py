"""Memory of other libraries, seen as pixels without a copy."""

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topcoat.runtime import FrameError
from topcoat.runtime.render_pass._buffers import from_buffer, from_dlpack
from topcoat.runtime.render_pass._pixels import Layout, PixelPlan

BGRA = Layout(format="bgra8")
HALF = Layout(format="rgba16f")


# -------------------------------------------------------------------------- the buffer protocol


def test_a_bytearray_is_seen_as_pixels_and_changes_with_them() -> None:
    memory = bytearray(range(48))
    pixels = from_buffer(memory, 3, 2, BGRA, row_pitch=20, offset=4)
    assert pixels.shape == (2, 3, 4)
    assert pixels.strides == (20, 4, 1)
    assert pixels[1, 2].tolist() == [32, 33, 34, 35]
    memory[32] = 200
    assert pixels[1, 2, 0] == 200
    pixels[0, 0] = 7
    assert memory[3:9] == bytes([3, 7, 7, 7, 7, 8])


def test_memory_that_may_only_be_read_stays_so() -> None:
    for buffer in (bytes(24), memoryview(bytearray(24)).toreadonly()):
        pixels = from_buffer(buffer, 4, 2)
        assert not pixels.flags.writeable
        with pytest.raises(FrameError, match="read-only"):
            PixelPlan.of(Layout(), pixels).check_out(pixels)
    assert from_buffer(bytearray(24), 4, 2).flags.writeable


def test_ctypes_arrays_and_structures_are_seen_as_pixels() -> None:
    class Pixel(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_uint8) for name in "bgra")

    pixels = (Pixel * 6)()
    pixels[4] = Pixel(1, 2, 3, 4)
    assert from_buffer(pixels, 3, 2, BGRA)[1, 1].tolist() == [1, 2, 3, 4]
    floats = (ctypes.c_float * 12)(*range(12))
    seen = from_buffer(floats, 2, 2, Layout(format="rgb32f"))
    assert seen.dtype == np.float32
    assert seen[1, 1].tolist() == [9, 10, 11]
    seen[0, 0, 0] = 0.5
    assert floats[0] == 0.5


def test_a_mapped_file_is_written_through(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pixels = from_buffer(mapped, 4, 3, HALF, row_pitch=64, offset=128)
        pixels[2, 3] = (0.0, 0.5, 1.0, 2.0)
        mapped.flush()
        stored = np.frombuffer(path.read_bytes(), np.float16, 4, 128 + 2 * 64 + 3 * 8)
        assert stored.tolist() == [0, 0.5, 1, 2]
        del pixels  # a mapping cannot be closed while anything looks at it


def test_the_array_keeps_the_buffer_alive() -> None:
    buffer = bytearray(b"\x05" * 24)
    counted = sys.getrefcount(buffer)
    pixels = from_buffer(buffer, 4, 2)
    assert sys.getrefcount(buffer) > counted
    del buffer
    assert (pixels == 5).all()


def test_a_pitched_surface_goes_to_the_network_and_back() -> None:
    rng = np.random.default_rng(0)
    memory = bytearray(rng.integers(0, 256, 11 * 96 + 8, np.uint8).tobytes())
    before = bytes(memory)
    surface = from_buffer(memory, 23, 11, BGRA, row_pitch=96, offset=8)
    plan = PixelPlan.of(BGRA, surface)
    rgb = np.empty((11, 23, 3), np.uint8)
    plan.load(surface, rgb)
    assert rgb[0, 0].tolist() == [memory[10], memory[9], memory[8]]
    plan.store(255 - rgb, surface, surface)
    changed = np.frombuffer(memory, np.uint8) != np.frombuffer(before, np.uint8)
    kept = np.ones((11, 96), bool)
    kept[:, : 23 * 4] = [False, False, False, True] * 23
    assert changed[:8].sum() == 0
    np.testing.assert_array_equal(changed[8:].reshape(11, 96), ~kept)


@pytest.mark.parametrize(
    ("arguments", "came", "advice"),
    [
        ((bytes(23), 4, 2), "holds 23 bytes", "take 24"),
        ((b"", 4, 2), "holds 0 bytes", "take 24"),
        ((bytes(48), 4, 2, Layout(), 40), "holds 48 bytes", "take 52"),
        ((bytes(24), 4, 2, Layout(), None, 1), "offset 1", "take 25"),
        ((bytes(24), 4, 2, Layout(), 11), "row_pitch is 11 bytes", "take 12"),
        ((bytes(99), 2, 2, HALF, 17), "row_pitch is 17 bytes", "multiple of 2"),
        ((bytes(99), 2, 2, HALF, 16, 3), "offset is 3 bytes", "multiple of 2"),
        ((memoryview(bytes(99))[1:], 2, 2, Layout(format="rgb32f")), "begins at", "copy"),
        ((bytes(24), 0, 2), "width is 0", "from 1 up"),
        ((bytes(24), 4, 2.5), "height is 2.5", "whole number"),
        ((bytes(24), 4, 2, Layout(), -12), "row_pitch is -12", "from 1 up"),
        ((bytes(24), 4, 2, Layout(), None, -1), "offset is -1", "from 0 up"),
        (("pixels", 4, 2), "builtins.str", "buffer protocol"),
        (([1, 2, 3], 1, 1), "builtins.list", "buffer protocol"),
        ((memoryview(bytes(99))[::2], 4, 2), "one piece", "row_pitch"),
        ((np.zeros((9, 9), np.uint8)[:, ::2], 4, 2), "one piece", "row_pitch"),
    ],
)
def test_a_wrong_buffer_says_what_came_and_what_to_do(
    arguments: tuple[Any, ...], came: str, advice: str
) -> None:
    with pytest.raises(FrameError) as caught:
        from_buffer(*arguments)
    assert "\n" not in str(caught.value)
    assert came in str(caught.value)
    assert advice in str(caught.value)


def test_the_last_row_needs_no_gap_after_it() -> None:
    assert from_buffer(bytes(3 * 16 + 12), 3, 4, BGRA, row_pitch=16).shape == (4, 3, 4)


# ----------------------------------------------------------------------------------- DLPack


class Elsewhere:
    """An array of an imaginary library on a device that is not the host."""

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.kind, 0)

    def __dlpack__(self, **_: object) -> object:
        raise AssertionError("nobody should ask for its memory")


class Failing(Elsewhere):
    def __dlpack__(self, **_: object) -> object:
        raise RuntimeError("a message\nof two lines.")


class Numba:
    __cuda_array_interface__: dict[str, object] = {}  # noqa: RUF012


class Numpy:
    """A library that has DLPack and nothing else; it hands numpy's memory over."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **arguments: Any) -> Any:  # noqa: ANN401
        return self.array.__dlpack__(**arguments)


def test_an_array_that_speaks_dlpack_is_seen_without_a_copy() -> None:
    array = np.arange(96, dtype=np.float32).reshape(4, 8, 3)
    seen = from_dlpack(Numpy(array[::2, 2:]))
    assert np.shares_memory(seen, array)
    np.testing.assert_array_equal(seen, array[::2, 2:])
    assert seen.strides == array[::2, 2:].strides
    array[0, 2, 0] = 99
    assert seen[0, 0, 0] == 99


@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0",
    reason="numpy before 2.1 sees all arrays of DLPack as read-only, and hands no such array over",
)
def test_what_its_library_protects_stays_protected() -> None:
    array = np.zeros((4, 8, 3), np.uint8)
    assert from_dlpack(Numpy(array)).flags.writeable
    array.flags.writeable = False
    assert not from_dlpack(Numpy(array)).flags.writeable


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (Elsewhere(2), "Pass.present_device or Model.process_device"),
        (Elsewhere(13), "Pass.present_device or Model.process_device"),
        (Numba(), "Pass.present_device or Model.process_device"),
        (Elsewhere(8), "number 8"),
        (Failing(1), "a message of two lines"),
        (Numpy(np.zeros((4, 8, 3), ">f4")), "byte order"),
        ([[1, 2, 3]], "numpy.asarray(array)"),
        (None, "NoneType"),
    ],
)
def test_an_array_that_cannot_be_seen_says_why(array: object, says: str) -> None:
    with pytest.raises(FrameError) as caught:
        from_dlpack(array)
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)


def test_onnx_runtimes_values_are_seen_without_a_copy() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    array = np.random.default_rng(0).random((4, 8, 3), np.float32)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    if not hasattr(value, "__dlpack__"):
        pytest.skip("this onnxruntime's values do not speak DLPack")
    seen = from_dlpack(value)
    np.testing.assert_array_equal(seen, array)
    assert seen.__array_interface__["data"][0] == value.data_ptr()


def test_torchs_tensors_are_seen_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    planar = torch.rand(3, 5, 7)
    frame = planar.permute(1, 2, 0)
    seen = from_dlpack(frame)
    assert seen.__array_interface__["data"][0] == frame.data_ptr()
    plan = PixelPlan.of(Layout(format="rgb32f"), seen)
    rgb = np.empty((5, 7, 3), np.uint8)
    plan.load(seen, rgb)
    np.testing.assert_array_equal(rgb, (frame * 255).round().byte().numpy())
    for wrong, says in (
        (torch.zeros(4, 8, 3, dtype=torch.bfloat16), "dtype"),
        (torch.zeros(4, 8, 3, requires_grad=True), "needs no gradient"),
        (torch.zeros(4, 8, 3, device="meta"), "meta"),
    ):
        with pytest.raises(FrameError, match=says):
            from_dlpack(wrong)
