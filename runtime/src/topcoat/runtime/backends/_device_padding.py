"""Make frames on the GPU fit a network's size rule, and cut their results, with copies alone."""

from __future__ import annotations

import ctypes
import functools
import logging
from ctypes import Structure, byref, c_int, c_size_t, c_uint64, c_void_p

from topcoat.runtime.backends._cuda import Driver

_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_INVALID_VALUE = 1

_log = logging.getLogger("topcoat.runtime")


class _Copy2D(Structure):
    """CUDA_MEMCPY2D of cuda.h."""

    _fields_ = (
        ("source_x", c_size_t),
        ("source_y", c_size_t),
        ("source_kind", c_int),
        ("source_host", c_void_p),
        ("source", c_uint64),
        ("source_array", c_void_p),
        ("source_pitch", c_size_t),
        ("target_x", c_size_t),
        ("target_y", c_size_t),
        ("target_kind", c_int),
        ("target_host", c_void_p),
        ("target", c_uint64),
        ("target_array", c_void_p),
        ("target_pitch", c_size_t),
        ("width", c_size_t),
        ("height", c_size_t),
    )


assert ctypes.sizeof(_Copy2D) == 16 * 8  # as the driver's, on every 64-bit system


def pad_on_device(
    driver: Driver,
    source: int,
    size: tuple[int, int],
    target: int,
    padded: tuple[int, int],
    channels: int,
    stream: int,
) -> None:
    """Queue a copy of a frame that repeats its last column and row as often as is missing.

    Args:
        driver: the driver.
        source: address of (height, width, channels) uint8.
        size: its (height, width).
        target: address of the padded frame; other memory.
        padded: its (height, width), at least ``size``.
        channels: bytes of a pixel.
        stream: handle of the stream.
    """
    (height, width), row, padded_row = size, size[1] * channels, padded[1] * channels
    _copy(driver, source, row, target, padded_row, row, height, stream)
    last = target + row - channels
    for column in range(width, padded[1]):
        beside = target + column * channels
        _copy(driver, last, padded_row, beside, padded_row, channels, height, stream)
    bottom = target + (height - 1) * padded_row
    for below in range(height, padded[0]):
        address = target + below * padded_row
        driver.call("cuMemcpyDtoDAsync_v2", address, bottom, padded_row, stream)


def crop_on_device(
    driver: Driver,
    source: int,
    padded: tuple[int, int],
    target: int,
    size: tuple[int, int],
    channels: int,
    stream: int,
) -> None:
    """Queue a copy of the top left (height, width) of a picture; as :func:`pad_on_device`."""
    row = size[1] * channels
    _copy(driver, source, padded[1] * channels, target, row, row, size[0], stream)


def _copy(
    driver: Driver,
    source: int,
    source_pitch: int,
    target: int,
    target_pitch: int,
    width: int,
    height: int,
    stream: int,
) -> None:
    """Queue a copy of ``height`` rows of ``width`` bytes each."""
    copy = _Copy2D(
        source_kind=_DEVICE,
        source=source,
        source_pitch=source_pitch,
        target_kind=_DEVICE,
        target=target,
        target_pitch=target_pitch,
        width=width,
        height=height,
    )
    code = driver.attempt("cuMemcpy2DAsync_v2", byref(copy), stream)
    if code == _INVALID_VALUE:
        # The driver may refuse pitches that are not those of its own cuMemAllocPitch.
        _tell_once()
        for row in range(height):
            to, of = target + row * target_pitch, source + row * source_pitch
            driver.call("cuMemcpyDtoDAsync_v2", to, of, width, stream)
    elif code:
        raise driver.error(code, "cuMemcpy2DAsync_v2")


@functools.cache
def _tell_once() -> None:
    _log.warning(
        "the NVIDIA driver refuses to copy several rows of a frame at once; they are copied one by"
        " one, which takes the host longer: give frames of a size that the network takes"
    )
