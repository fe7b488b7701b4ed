"""Pixels that another library holds, as numpy arrays of the same memory."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import FrameError
from topcoat.runtime.render_pass._layout import Layout

# DLDeviceType
_HOST = (1, 3, 11)  # also memory of the host that CUDA or ROCm has pinned
_CUDA = (2, 13)

_DEFAULT = Layout()


def from_buffer(
    buffer: object,
    width: int,
    height: int,
    layout: Layout = _DEFAULT,
    row_pitch: int | None = None,
    offset: int = 0,
) -> NDArray[Any]:
    """Look at a block of memory as pixels, without a copy.

    Args:
        buffer: bytes, bytearray, memoryview, mmap, a ctypes array, ``pygame.Surface.get_buffer()``,
            anything that has the buffer protocol and lies in one piece.
        width: columns of pixels, an extent's surroundings included.
        height: rows of pixels, likewise.
        layout: their format; the rest of it does not matter here.
        row_pitch: bytes from the start of one row to that of the next; None: rows without gaps.
        offset: bytes before the first pixel.

    Returns:
        (height, width, C) of the layout's type. Writeable if the buffer is, which it keeps alive.

    Raises:
        FrameError: it is no such buffer, or holds fewer bytes, or the numbers do not fit each
            other.

    >>> from_buffer(bytes(24), 2, 2, Layout(format="bgra8"), row_pitch=12).strides
    (12, 4, 1)
    """
    width = _whole("width", width, 1)
    height = _whole("height", height, 1)
    offset = _whole("offset", offset, 0)
    item = layout.dtype.itemsize
    row = width * layout.channels * item
    pitch = row if row_pitch is None else _whole("row_pitch", row_pitch, 1)
    if pitch < row:
        raise FrameError(
            f"row_pitch is {pitch} bytes, but {width} pixels of {layout.format} take {row}; pass"
            " the bytes from one row to the next, or leave it out if there are no gaps"
        )
    if pitch % item or offset % item:
        name, value = ("row_pitch", pitch) if pitch % item else ("offset", offset)
        raise FrameError(
            f"{name} is {value} bytes, wanted a multiple of {item}, the size of a channel of"
            f" {layout.format}; check the format, or copy the pixels"
        )
    try:
        memory = np.frombuffer(buffer, np.uint8)  # type: ignore[call-overload]
    except TypeError as error:
        raise FrameError(
            f"buffer is a {_kind(buffer)}, wanted bytes, a memoryview, mmap, ctypes array or"
            " another object with the buffer protocol; use from_dlpack for tensors"
        ) from error
    except (ValueError, BufferError) as error:
        raise FrameError(
            f"buffer is a {_kind(buffer)} that does not lie in memory in one piece; pass the whole"
            " block that it is a part of, with row_pitch and offset"
        ) from error
    needed = offset + (height - 1) * pitch + row
    if memory.size < needed:
        raise FrameError(
            f"buffer holds {memory.size} bytes, but {width}x{height} pixels of {layout.format} with"
            f" row_pitch {pitch} and offset {offset} take {needed}; check width, height and format"
        )
    shape = (height, width, layout.channels)
    strides = (pitch, layout.channels * item, item)
    pixels: NDArray[Any] = np.ndarray(shape, layout.dtype, memory, offset, strides)
    if not pixels.flags.aligned:
        raise FrameError(
            f"buffer begins at an address that is no multiple of {item}, the size of a channel of"
            f" {layout.format}; copy the pixels into memory of their own"
        )
    return pixels


def from_dlpack(array: object) -> NDArray[Any]:
    """Look at another library's array in the host's memory as a numpy array, without a copy.

    Args:
        array: has ``__dlpack__`` and ``__dlpack_device__`` (DLPack): a PyTorch, JAX or CuPy array,
            an OrtValue of ONNX Runtime.

    Returns:
        An array of the same shape, type and strides. Read-only where its library says so, and
        always with numpy before 2.1.

    Raises:
        FrameError: it is not in the host's memory, its type is one that numpy does not have, or its
            library refuses to hand it over.

    Source: DLPack 1.1, Python specification.
    """
    if not (hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__")):
        if hasattr(array, "__cuda_array_interface__"):
            raise _on_gpu(array)
        raise FrameError(
            f"array is a {_kind(array)}, wanted one that speaks DLPack; pass numpy.asarray(array),"
            " or use from_buffer for plain memory"
        )
    try:
        device = int(array.__dlpack_device__()[0])
        if device in _CUDA:
            raise _on_gpu(array)
        if device not in _HOST:
            raise FrameError(
                f"array, a {_kind(array)}, is on a device of another kind (DLPack's number"
                f" {device}), wanted the host's memory; copy it to the host first"
            )
        return np.from_dlpack(array)
    except FrameError:
        raise
    except Exception as error:  # it is another library's code
        said = " ".join(str(error).split()) or type(error).__name__
        raise FrameError(
            f"array, a {_kind(array)}, cannot be shared with numpy ({said.rstrip('.')}); pass a"
            " plain array of uint8, float16 or float32 that needs no gradient and may be written to"
        ) from error


def _on_gpu(array: object) -> FrameError:
    return FrameError(
        f"array, a {_kind(array)}, is in a CUDA device's memory, wanted the host's; pass it to"
        " Pass.present_device or Model.process_device as it is, or copy it to the host"
    )


def _whole(name: str, value: object, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        unit = "" if name in ("width", "height") else " of bytes"
        raise FrameError(f"{name} is {value!r}, wanted a whole number{unit} from {least} up")
    return number


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
