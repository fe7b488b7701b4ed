"""Move a picture along motion vectors: bilinear, in integers, without memory of its own per frame.

A motion field is float32 (H, W, 2), C-contiguous, in pixels, x then y, origin top left, and points
to the previous frame: the content of pixel (x, y) was at (x, y) + motion. Pictures are uint8
(H, W, 3). Inside, a pixel is one uint32 (a texel), so that one lookup moves it and one
multiplication weighs two of its channels; rows go through in blocks that stay in the second-level
cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame

Field: TypeAlias = NDArray[np.float32]
"""A motion field (H, W, 2) or a depth map (H, W)."""
Texels: TypeAlias = NDArray[np.uint32]

_BLOCK = 1 << 14
"""Pixels of a block: 64 KiB of each operand."""
_MAGIC = np.float32(49152.0)
"""1.5 * 2**15: between 2**15 and 2**16 a float32 counts in 256ths, so adding this rounds a position
to 8 fractional bits and leaves it as an integer in the mantissa. It holds from -16384 to 16383."""
_MAGIC_BITS = np.int32(_MAGIC.view(np.int32))
_LARGEST_SIDE = 16383

_LANES = np.uint32(0x00FF00FF)
_ONE = np.uint32(256)
_HALF = np.uint32(128)
_UPPER_BYTES = np.uint32(0xFF00FF00)
_BYTE = np.uint32(0xFF)
_7, _8 = np.uint32(7), np.uint32(8)


class Grid:
    """Where the pixels of one block of rows come from: indices and weights, made once per motion.

    Positions are rounded to 1/256 pixel, beyond the outer pixel centres they are those centres.
    The four weights of a pixel are whole 256ths and sum to 256.

    Args:
        height: of the picture, 1 to 16383.
        width: of the picture, 1 to 16383.

    Raises:
        ValueError: a side is out of range.
    """

    def __init__(self, height: int, width: int) -> None:
        if not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE):
            raise ValueError(
                f"height and width must be 1 to {_LARGEST_SIDE}, got {height}x{width}; warp a"
                " smaller picture"
            )
        self.height, self.width = height, width
        self.pitch = width + 1
        self.rows = max(1, min(height, _BLOCK // width))
        n = self.rows * width
        self._columns = np.tile(np.arange(width, dtype=np.float32), self.rows)
        self._lines = np.repeat(np.arange(self.rows, dtype=np.float32), width)
        # Exact halves go up on the white squares of a chessboard and down on the black ones: a
        # history that is moved half a pixel again and again grows neither brighter nor darker.
        squares = (self._columns.astype(np.uint32) + self._lines.astype(np.uint32)) & np.uint32(1)
        self._rounding = np.uint32(0x00800080) - squares * np.uint32(0x00010001)
        self._x, self._y = np.empty(n, np.float32), np.empty(n, np.float32)
        self._position = np.empty(n, np.float32)
        self._inside, self._inside_y = np.empty(n, np.bool_), np.empty(n, np.bool_)
        self._fraction_x, self._fraction_y = np.empty(n, np.uint32), np.empty(n, np.uint32)
        self._index, self._nearest = np.empty(n, np.intp), np.empty(n, np.intp)
        self._weights = tuple(np.empty(n, np.uint32) for _ in range(4))
        self._texel, self._lane = np.empty(n, np.uint32), np.empty(n, np.uint32)
        self._even, self._odd = np.empty(n, np.uint32), np.empty(n, np.uint32)
        self._n = 0
        self._has_nearest = False

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield (top, bottom) of every block of rows."""
        for top in range(0, self.height, self.rows):
            yield top, min(top + self.rows, self.height)

    def locate(self, motion: Field, top: int, *, nearest: bool = False) -> NDArray[np.bool_]:
        """Find where the rows from ``top`` on come from.

        Args:
            motion: (rows, W, 2), the block's part of the field. Where it is not a number, the pixel
                stays where it is.
            top: the block's first row.
            nearest: leave out what only :meth:`gather` needs.

        Returns:
            (rows * W), whether the source lies inside the picture, pixels being squares around
            their centres; good until the next call.
        """
        n = self._n = motion.shape[0] * self.width
        self._has_nearest = False
        flat = motion.reshape(n, 2)
        x, y, inside, inside_y = self._x[:n], self._y[:n], self._inside[:n], self._inside_y[:n]
        with np.errstate(invalid="ignore"):  # an app's field may hold any bits
            np.add(self._columns[:n], flat[:, 0], out=x)
            np.add(self._lines[:n], np.float32(top), out=y)
            np.add(y, flat[:, 1], out=y)
            self._mark_inside(x, self.width, inside)
            self._mark_inside(y, self.height, inside_y)
            np.logical_and(inside, inside_y, out=inside)
            # The largest value is not a number as soon as one is not.
            if np.isnan(x.max()) or np.isnan(y.max()):
                self._hold_unknown(top)
        np.maximum(x, np.float32(0), out=x)
        np.minimum(x, np.float32(self.width - 1), out=x)
        np.maximum(y, np.float32(0), out=y)
        np.minimum(y, np.float32(self.height - 1), out=y)
        self._split(n)
        if not nearest:
            self._weigh(n)
        return inside

    def gather(self, texels: Texels, out: Texels) -> None:
        """Look the block up in a picture, between pixels.

        Args:
            texels: (H + 1) * (W + 1), flat, from :func:`pack`.
            out: (rows * W), becomes the moved texels.
        """
        n = self._n
        index, texel, lane = self._index[:n], self._texel[:n], self._lane[:n]
        even, odd = self._even[:n], self._odd[:n]
        for tap, offset in enumerate((0, 1, self.pitch, self.pitch + 1)):
            weight = self._weights[tap][:n]
            # Every index is inside; "wrap" is the mode that checks with the least work.
            np.take(texels[offset:], index, out=texel, mode="wrap")
            if tap == 0:
                np.bitwise_and(texel, _LANES, out=even)
                np.multiply(even, weight, out=even)
                np.right_shift(texel, _8, out=odd)
                np.bitwise_and(odd, _LANES, out=odd)
                np.multiply(odd, weight, out=odd)
                continue
            np.bitwise_and(texel, _LANES, out=lane)
            np.multiply(lane, weight, out=lane)
            np.add(even, lane, out=even)
            np.right_shift(texel, _8, out=texel)
            np.bitwise_and(texel, _LANES, out=texel)
            np.multiply(texel, weight, out=texel)
            np.add(odd, texel, out=odd)
        rounding = self._rounding[:n]
        np.add(even, rounding, out=even)
        np.right_shift(even, _8, out=even)
        np.bitwise_and(even, _LANES, out=even)
        np.add(odd, rounding, out=odd)
        np.bitwise_and(odd, _UPPER_BYTES, out=odd)
        np.bitwise_or(even, odd, out=out)

    def gather_nearest(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        """Look the block up in a map of (H + 1) * (W + 1) values, flat: the nearest one."""
        n = self._n
        index = self._nearest[:n]
        if not self._has_nearest:
            step, place = self._texel[:n], self._lane[:n]
            np.right_shift(self._fraction_x[:n], _7, out=place)  # 1 from half a pixel on
            np.right_shift(self._fraction_y[:n], _7, out=step)
            np.multiply(step, np.uint32(self.pitch), out=step)
            np.add(place, step, out=place)
            np.add(place, self._y[:n].view(np.uint32), out=place)  # where _split left the index
            np.copyto(index, place)
            self._has_nearest = True
        np.take(values, index, out=out, mode="wrap")

    def _mark_inside(
        self, position: NDArray[np.float32], side: int, inside: NDArray[np.bool_]
    ) -> None:
        nearest = self._position[: len(position)]
        np.maximum(position, np.float32(-0.5), out=nearest)
        np.minimum(nearest, np.float32(side - 0.5), out=nearest)
        np.equal(position, nearest, out=inside)  # false for what is not a number

    def _hold_unknown(self, top: int) -> None:
        n = self._n
        x, y, unknown = self._x[:n], self._y[:n], self._inside_y[:n]
        line = self._position[:n]
        for position in (x, y):
            np.isnan(position, out=unknown)
            np.copyto(x, self._columns[:n], where=unknown)
            np.add(self._lines[:n], np.float32(top), out=line)
            np.copyto(y, line, where=unknown)

    def _split(self, n: int) -> None:
        x, y = self._x[:n], self._y[:n]
        np.add(x, _MAGIC, out=x)
        np.add(y, _MAGIC, out=y)
        column, line = x.view(np.int32), y.view(np.int32)
        np.subtract(column, _MAGIC_BITS, out=column)
        np.subtract(line, _MAGIC_BITS, out=line)
        fraction_x, fraction_y = self._fraction_x[:n], self._fraction_y[:n]
        np.bitwise_and(column.view(np.uint32), _BYTE, out=fraction_x)
        np.bitwise_and(line.view(np.uint32), _BYTE, out=fraction_y)
        np.right_shift(column, np.int32(8), out=column)
        np.right_shift(line, np.int32(8), out=line)
        np.multiply(line, np.int32(self.pitch), out=line)
        np.add(line, column, out=line)

    def _weigh(self, n: int) -> None:
        np.copyto(self._index[:n], self._y[:n].view(np.int32))
        fraction_x, fraction_y = self._fraction_x[:n], self._fraction_y[:n]
        here, right, below, across = (weight[:n] for weight in self._weights)
        np.multiply(fraction_x, fraction_y, out=across)
        np.add(across, _HALF, out=across)
        np.right_shift(across, _8, out=across)
        np.subtract(fraction_x, across, out=right)
        np.subtract(fraction_y, across, out=below)
        np.subtract(_ONE, fraction_x, out=here)
        np.subtract(here, below, out=here)


class Warper:
    """Moves pictures of one size along motion fields; owns every array that it needs.

    Not for use from two threads at once.

    Args:
        height: of the pictures, 1 to 16383.
        width: of the pictures, 1 to 16383.

    Raises:
        ValueError: a side is out of range.

    >>> picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> motion = np.zeros((2, 2, 2), np.float32)
    >>> motion[:, 0, 0] = 0.5  # the left pixels were half a pixel to the right
    >>> out = np.empty_like(picture)
    >>> Warper(2, 2).warp(picture, motion, out)
    >>> out[:, 0].tolist()
    [[2, 3, 4], [7, 8, 9]]
    """

    def __init__(self, height: int, width: int) -> None:
        self._grid = Grid(height, width)
        self._texels = new_texels(height, width)
        self._moved = np.empty(self._grid.rows * width, np.uint32)
        self._vectors: NDArray[np.uint64] | None = None
        self._found = np.empty(0, np.uint64)

    def warp(
        self,
        picture: Frame,
        motion: Field | None,
        out: Frame,
        valid: NDArray[np.uint8] | None = None,
        *,
        nearest: bool = False,
    ) -> None:
        """Write into ``out`` what ``picture`` shows, each pixel taken from where it was.

        Bilinear, with positions in 256ths of a pixel, rounded to the nearest level; motion by whole
        pixels, and none, is exact. What lies outside takes the colour of the edge. Where motion is
        not a number, the pixel stays.

        Args:
            picture: (H, W, 3) uint8, of the previous frame.
            motion: (H, W, 2) float32, C-contiguous, in pixels, to the previous frame; any values.
                None is no motion: a copy.
            out: (H, W, 3) uint8; may be ``picture``.
            valid: (H, W) uint8, C-contiguous, becomes 1 where the source lay inside the picture,
                else 0.
            nearest: take the nearest pixel instead, in half the time: for a picture that is shown
                once, not for one that is moved again and again.
        """
        if motion is None:
            if out is not picture:
                np.copyto(out, picture)
            if valid is not None:
                valid.fill(1)
            return
        grid = self._grid
        pack(picture, self._texels[: grid.height, : grid.width])
        pad(self._texels)
        flat = self._texels.reshape(-1)
        for top, bottom in grid.blocks():
            inside = grid.locate(motion[top:bottom], top, nearest=nearest)
            moved = self._moved[: inside.size]
            (grid.gather_nearest if nearest else grid.gather)(flat, moved)
            unpack(moved.reshape(bottom - top, grid.width), out[top:bottom])
            if valid is not None:
                np.copyto(valid[top:bottom].reshape(-1), inside.view(np.uint8))

    def compose(self, newer: Field, older: Field, out: Field) -> None:
        """Chain the motion of two frames, for when the frame between them was dropped.

        out(p) = newer(p) + older(p + newer(p)), ``older`` at the nearest pixel, beyond the edge at
        the edge. Where ``newer`` is not a number, so is ``out``.

        Args:
            newer: (H, W, 2) float32, C-contiguous, from the newest frame to the one before.
            older: likewise, from that frame to the one before it.
            out: likewise; may be ``newer``, must not be ``older``.
        """
        grid = self._grid
        if self._vectors is None:  # most passes drop no frame
            self._vectors = np.empty((grid.height + 1, grid.width + 1), np.uint64)
            self._found = np.empty(grid.rows * grid.width, np.uint64)
        copy_padded(older.view(np.uint64)[..., 0], self._vectors)
        flat = self._vectors.reshape(-1)
        for top, bottom in grid.blocks():
            grid.locate(newer[top:bottom], top, nearest=True)
            found = self._found[: (bottom - top) * grid.width]
            grid.gather_nearest(flat, found)
            with np.errstate(invalid="ignore", over="ignore"):
                np.add(
                    newer[top:bottom].reshape(-1, 2),
                    found.view(np.float32).reshape(-1, 2),
                    out=out[top:bottom].reshape(-1, 2),
                )


def new_texels(height: int, width: int) -> Texels:
    """Return (H + 1, W + 1) uint32 of zeros: a picture with its last row and column twice."""
    return np.zeros((height + 1, width + 1), np.uint32)


def pack(picture: Frame, texels: Texels) -> None:
    """Write an RGB picture (H, W, 3) into texels (H, W): bytes R, G, B, and one left alone."""
    planes = texels.view(np.uint8).reshape(*texels.shape, 4)
    for channel in range(3):  # plane by plane is five times as fast as all at once
        np.copyto(planes[..., channel], picture[..., channel])


def copy_padded(values: NDArray[Any], padded: NDArray[Any]) -> None:
    """Copy a map (H, W) into one with its last row and column twice (H + 1, W + 1)."""
    height, width = values.shape
    np.copyto(padded[:height, :width], values)
    pad(padded)


def pad(padded: NDArray[Any]) -> None:
    """Write a map's last row and column (H + 1, W + 1) from those before."""
    np.copyto(padded[:-1, -1], padded[:-1, -2])
    np.copyto(padded[-1], padded[-2])


def unpack(texels: Texels, picture: Frame) -> None:
    """Write texels (rows, W), C-contiguous, into an RGB picture (rows, W, 3)."""
    rows, width = texels.shape
    planes = texels.view(np.uint8).reshape(rows, width, 4)
    for channel in range(3):
        np.copyto(picture[..., channel], planes[..., channel])


def expand(field: Field, out: Field) -> None:
    """Enlarge a motion field or depth map to the size of the picture: each pixel takes the nearest.

    The values stay as they are: motion must already be in pixels of the larger picture.

    Args:
        field: (h, w, 2) or (h, w) float32, C-contiguous.
        out: (H, W, 2) or (H, W) float32, C-contiguous, H and W of any ratio to h and w.
    """
    # A vector moves as one value of 8 bytes.
    source: NDArray[Any] = field.view(np.uint64)[..., 0] if field.ndim == 3 else field
    target: NDArray[Any] = out.view(np.uint64)[..., 0] if field.ndim == 3 else out
    columns = _nearest(source.shape[1], target.shape[1])
    last = -1
    for row, line in enumerate(_nearest_list(len(source), len(target))):
        if line == last:
            np.copyto(target[row], target[row - 1])
        else:
            np.take(source[line], columns, out=target[row], mode="wrap")
        last = line


@lru_cache(maxsize=16)
def _nearest(small: int, large: int) -> NDArray[np.intp]:
    """Return (large,): under which of ``small`` pixels the centre of each larger one lies."""
    return (np.arange(large, dtype=np.intp) * 2 + 1) * small // (2 * large)


@lru_cache(maxsize=16)
def _nearest_list(small: int, large: int) -> list[int]:
    return list(map(int, _nearest(small, large)))
