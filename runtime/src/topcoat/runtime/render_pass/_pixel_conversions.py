"""From each kind of an app's pixels to RGB bytes and back, a few rows at a time.

All scratch memory is made by the first call for a size; later ones allocate nothing.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._layout import Layout
from topcoat.runtime.render_pass._srgb import (
    STEPS,
    PairTable,
    encode,
    fill_half_table,
    fill_unit_table,
    step_edges,
    step_values,
)

Pixels = NDArray[Any]
"""(H, W, C) of a format's type, any strides, top row first."""

_BLOCK_PIXELS = 8192
"""128 KiB of float32 RGBA: a block's passes then stay in the second-level cache."""
_RGB = (0, 1, 2)
_UNITS = 65535
_LITTLE = sys.byteorder == "little"
_ZERO, _ONE = np.float32(0), np.float32(1)
# x + 2**23 has x, rounded to nearest even, in the low bits of its float32: cheaper than a cast.
_ROUND = np.float32(2**23)
_LEAST_ALPHA = np.float32(1e-20)
_LARGEST_HALF = np.float32(np.finfo(np.float16).max)


def conversion(layout: Layout) -> Conversion:
    """Return the one for this kind of pixels."""
    premultiplied = layout.alpha == "premultiplied"
    if layout.dtype == np.uint8:
        if premultiplied:
            return _PremultipliedBytes(layout)
        return _LinearBytes(layout) if layout.color_space == "linear" else _Bytes(layout)
    if premultiplied:
        return _PremultipliedFloats(layout)
    return _Halves(layout) if layout.dtype == np.float16 else _StraightFloats(layout)


class Conversion(abc.ABC):
    """Converts colour between an app's pixels and RGB; leaves alpha to its caller.

    Args:
        layout: all of it counts but origin and extent.
    """

    def __init__(self, layout: Layout) -> None:
        self._order = layout.order
        self._linear = layout.color_space == "linear"
        self._scratch: dict[tuple[str, tuple[int, ...]], Pixels] = {}
        self.set_exposure(layout.exposure)

    @abc.abstractmethod
    def set_exposure(self, exposure: float) -> None:
        """Fill the tables that depend on it anew."""

    @abc.abstractmethod
    def load(self, picture: Pixels, rgb: Frame) -> None:
        """Write ``rgb``, (H, W, 3), C-contiguous."""

    @abc.abstractmethod
    def store(self, rgb: Frame, picture: Pixels, *, keeps_alpha: bool) -> None:
        """Write the colours of ``picture``, whose alpha is there already if it is premultiplied.

        Args:
            rgb: (H, W, 3), C-contiguous.
            picture: of the same height and width.
            keeps_alpha: alpha must be left as it is; else it may be overwritten.
        """

    def _array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Pixels:
        known = self._scratch.get((name, shape))
        if known is None:
            known = self._scratch[name, shape] = np.empty(shape, dtype)
        return known


class _Bytes(Conversion):
    """Display-encoded bytes: nothing but the order changes."""

    def set_exposure(self, exposure: float) -> None:
        pass

    def load(self, picture: Pixels, rgb: Frame) -> None:
        if picture.shape[2] == 3 and self._order == _RGB:
            np.copyto(rgb, picture)
            return
        # Plane by plane: as whole pixels, numpy's inner loop would be 3 bytes long.
        for channel, place in enumerate(self._order):
            np.copyto(rgb[..., channel], picture[..., place])

    def store(self, rgb: Frame, picture: Pixels, *, keeps_alpha: bool) -> None:
        if picture.shape[2] == 3 and self._order == _RGB:
            np.copyto(picture, rgb)
        elif picture.shape[2] == 4 and picture.strides[2] == 1 and not keeps_alpha:
            self._store_words(rgb, picture)
        else:
            self._store_planes(rgb, picture)

    def _store_planes(self, rgb: Frame, picture: Pixels) -> None:
        for channel, place in enumerate(self._order):
            np.copyto(picture[..., place], rgb[..., channel])

    def _store_words(self, rgb: Frame, picture: Pixels) -> None:
        """Copy each pixel as one word of 4 bytes, one of which is a neighbour's: half the time.

        R G B and the next pixel's R make RGBA; the last pixel's B and R G B, read backwards, BGRA.
        The one pixel that has no such neighbour in ``rgb`` is copied by itself.
        """
        height, width = picture.shape[:2]
        words = picture.view(np.uint32)[..., 0]
        pitch = 3 * width
        if self._order == _RGB:
            whole, rest, edge = slice(0, -1), slice(0, -1), -1
            start, edge_start, dtype = 0, (height - 1) * pitch, "=u4"
        else:
            whole, rest, edge = slice(1, None), slice(1, None), 0
            start, edge_start, dtype = pitch - 1, 2, ">u4" if _LITTLE else "<u4"
        if height > 1:
            source = np.ndarray((height - 1, width), dtype, rgb, start, (pitch, 3))
            np.copyto(words[whole], source)
        if width > 1:
            source = np.ndarray((width - 1,), dtype, rgb, edge_start, (3,))
            np.copyto(words[edge, rest], source)
        self._store_planes(rgb[edge, edge], picture[edge, edge])


class _LinearBytes(_Bytes):
    """Bytes of linear light."""

    def __init__(self, layout: Layout) -> None:
        self._encode = PairTable(np.uint8)
        self._decode = PairTable(np.uint8)
        super().__init__(layout)

    def set_exposure(self, exposure: float) -> None:
        linear = np.arange(STEPS + 1) / STEPS * exposure
        self._encode.fill(encode(linear.clip(0, 1)) * STEPS)
        self._decode.fill(step_values(linear=True, exposure=exposure) * STEPS)

    def load(self, picture: Pixels, rgb: Frame) -> None:
        super().load(picture, rgb)
        self._convert(self._encode, rgb, rgb)

    def store(self, rgb: Frame, picture: Pixels, *, keeps_alpha: bool) -> None:
        decoded = self._array("decoded", rgb.shape, np.uint8)
        self._convert(self._decode, rgb, decoded)
        super().store(decoded, picture, keeps_alpha=keeps_alpha)

    def _convert(self, table: PairTable, source: Frame, out: Frame) -> None:
        rows = _block_rows(source)
        index = self._array("pairs", (rows * 3 * source.shape[1] // 2,), np.intp)
        for block in _blocks(source):
            table.look_up(source[block].reshape(-1), index, out[block].reshape(-1))


class _PremultipliedBytes(Conversion):
    """Bytes whose colour, linear or not, was multiplied by alpha."""

    def __init__(self, layout: Layout) -> None:
        # By alpha * 256 + colour.
        self._divide = np.empty(65536, np.uint8)
        self._multiply = np.empty(65536, np.uint8)
        super().__init__(layout)

    def set_exposure(self, exposure: float) -> None:
        alpha = np.arange(256.0)[:, None]
        straight = (np.arange(256.0) / np.maximum(alpha, 1) * exposure).clip(0, 1)
        straight[0] = 0
        encoded = encode(straight) if self._linear else straight
        self._divide.reshape(256, 256)[:] = np.rint(encoded * STEPS)
        values = step_values(linear=self._linear, exposure=exposure)
        self._multiply.reshape(256, 256)[:] = np.rint(values * alpha).clip(0, STEPS)

    def load(self, picture: Pixels, rgb: Frame) -> None:
        for block in _blocks(rgb):
            source = picture[block]
            self._look_up(self._divide, source, source, self._order, rgb[block], _RGB)

    def store(self, rgb: Frame, picture: Pixels, *, keeps_alpha: bool) -> None:
        for block in _blocks(rgb):
            out = picture[block]
            self._look_up(self._multiply, out, rgb[block], _RGB, out, self._order)

    def _look_up(
        self,
        table: NDArray[np.uint8],
        alpha: Pixels,
        source: Pixels,
        places: tuple[int, int, int],
        out: Pixels,
        targets: tuple[int, int, int],
    ) -> None:
        shape = source.shape[:2]
        high = self._array("alpha", shape, np.intp)
        index = self._array("index", shape, np.intp)
        plane = self._array("plane", shape, np.uint8)
        np.copyto(high, alpha[..., 3])
        np.left_shift(high, 8, out=high)
        for place, target in zip(places, targets, strict=True):
            np.copyto(index, source[..., place])
            np.bitwise_or(index, high, out=index)
            table.take(index, out=plane, mode="clip")
            np.copyto(out[..., target], plane)


class _Decoding(Conversion):
    """What all floats have in common: a table makes values of RGB bytes."""

    def __init__(self, layout: Layout, dtype: type[np.float16 | np.float32]) -> None:
        self._type = dtype
        self._values = PairTable(dtype)
        super().__init__(layout)

    def set_exposure(self, exposure: float) -> None:
        self._values.fill(step_values(linear=self._linear, exposure=exposure))

    def store(self, rgb: Frame, picture: Pixels, *, keeps_alpha: bool) -> None:
        rows, width = _block_rows(rgb), rgb.shape[1]
        index = self._array("pairs", (rows * 3 * width // 2,), np.intp)
        for block in _blocks(rgb):
            source = rgb[block]
            values = self._array("values", source.shape, self._type)
            self._values.look_up(source.reshape(-1), index, values.reshape(-1))
            self._write_values(values, picture[block])

    def _write_values(self, values: Pixels, out: Pixels) -> None:
        for channel, place in enumerate(self._order):
            np.copyto(out[..., place], values[..., channel])


class _Halves(_Decoding):
    """float16, straight: a table says the byte for each of the 65536 bit patterns."""

    def __init__(self, layout: Layout) -> None:
        self._bytes = np.empty(65536, np.uint8)
        super().__init__(layout, np.float16)

    def set_exposure(self, exposure: float) -> None:
        super().set_exposure(exposure)
        fill_half_table(self._bytes, step_edges(linear=self._linear, exposure=exposure))

    def load(self, picture: Pixels, rgb: Frame) -> None:
        for block in _blocks(rgb):
            source, out = picture[block], rgb[block]
            index = self._array("index", out.shape, np.intp)
            for channel, place in enumerate(self._order):
                np.copyto(index[..., channel], source[..., place].view(np.uint16))
            self._bytes.take(index, out=out, mode="clip")


class _Floats(_Decoding):
    """Values are brought to 0..255 or, linear ones, to 0..65535, and rounded by an addition.

    A table encodes the 65536 linear ones: at most 0.53 of a byte's steps from the exact value.
    """

    def __init__(self, layout: Layout) -> None:
        self._bytes = np.empty(_UNITS + 1, np.uint8)
        if layout.color_space == "linear":
            fill_unit_table(self._bytes, step_edges(linear=True, exposure=1.0))
        self._most = self._factor = _ONE
        super().__init__(layout, np.float32)

    def set_exposure(self, exposure: float) -> None:
        super().set_exposure(exposure)
        self._most = np.float32(1 / exposure)
        self._factor = np.float32(exposure * (_UNITS if self._linear else STEPS))

    def _low_bits(self, rounded: Pixels) -> Pixels:
        """Return the whole numbers in values that `_ROUND` was added to: a view."""
        dtype = np.dtype(np.uint16 if self._linear else np.uint8)
        step = rounded.itemsize // dtype.itemsize
        return rounded.view(dtype)[..., 0 if _LITTLE else step - 1 :: step]

    def _write_bytes(self, numbers: Pixels, places: tuple[int, int, int], out: Frame) -> None:
        """Write (rows, W, 3) for what `_low_bits` returns, (rows, W, C)."""
        target = self._array("index", out.shape, np.intp) if self._linear else out
        for channel, place in enumerate(places):
            np.copyto(target[..., channel], numbers[..., place])
        if self._linear:
            self._bytes.take(target, out=out, mode="clip")


class _StraightFloats(_Floats):
    """float32, straight."""

    def load(self, picture: Pixels, rgb: Frame) -> None:
        for block in _blocks(rgb):
            source, out = picture[block], rgb[block]
            work = self._array("work", source.shape, np.float32)
            if not source.flags.c_contiguous:  # which makes arithmetic allocate a buffer
                np.copyto(work, source)
                source = work
            np.fmax(source, _ZERO, out=work)  # of x and not-a-number: x
            np.fmin(work, self._most, out=work)
            np.multiply(work, self._factor, out=work)
            np.add(work, _ROUND, out=work)
            self._write_bytes(self._low_bits(work), self._order, out)


class _PremultipliedFloats(_Floats):
    """float16 or float32 whose colour was multiplied by alpha; computed in float32."""

    def load(self, picture: Pixels, rgb: Frame) -> None:
        for block in _blocks(rgb):
            source, out = picture[block], rgb[block]
            alpha = self._clipped_alpha(source)
            most = self._array("most", alpha.shape, np.float32)
            factor = self._array("factor", alpha.shape, np.float32)
            planes = self._array("planes", (3, *alpha.shape), np.float32)
            # Colour is clipped to what white is at this alpha before it is divided: nothing can
            # overflow, and where alpha is 0 colour is, too.
            np.multiply(alpha, self._most, out=most)
            np.fmax(alpha, _LEAST_ALPHA, out=factor)
            np.divide(self._factor, factor, out=factor)
            for plane, place in zip(planes, self._order, strict=True):
                np.copyto(plane, source[..., place])
                np.fmax(plane, _ZERO, out=plane)
                np.fmin(plane, most, out=plane)
                np.multiply(plane, factor, out=plane)
            np.add(planes, _ROUND, out=planes)
            self._write_bytes(self._low_bits(planes).transpose(1, 2, 0), _RGB, out)

    def _write_values(self, values: Pixels, out: Pixels) -> None:
        alpha = self._clipped_alpha(out)
        plane = self._array("plane", alpha.shape, np.float32)
        for channel, place in enumerate(self._order):
            np.multiply(values[..., channel], alpha, out=plane)
            if out.dtype == np.float16:
                np.fmin(plane, _LARGEST_HALF, out=plane)
            np.copyto(out[..., place], plane, casting="same_kind")

    def _clipped_alpha(self, picture: Pixels) -> Pixels:
        alpha = self._array("alpha", picture.shape[:2], np.float32)
        np.copyto(alpha, picture[..., 3])
        np.fmax(alpha, _ZERO, out=alpha)
        np.fmin(alpha, _ONE, out=alpha)
        return alpha


def _block_rows(rgb: Frame) -> int:
    """Return how many rows a block has; an even number, for what goes by pairs of bytes."""
    rows: int = _BLOCK_PIXELS // rgb.shape[1] & ~1
    return max(2, rows)


def _blocks(rgb: Frame) -> Iterator[slice]:
    rows = _block_rows(rgb)
    for top in range(0, rgb.shape[0], rows):
        yield slice(top, top + rows)
