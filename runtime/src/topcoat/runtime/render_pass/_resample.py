"""Make frames smaller for the network and its results larger again, without a shift or an alias.

Both directions filter with a triangle: as wide as two pixels of the smaller picture, which is
bilinear interpolation when enlarging and its low-pass counterpart when shrinking. Point sampling
would be cheaper, but details finer than the smaller picture's pixels would flicker as they move.
Pixels are squares whose centres lie at half-integers, so neither direction shifts the picture;
beyond its border a picture goes on as its border pixel. Weights are integers that sum to a power
of two: a flat area stays exactly as it is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import FrameError, PassError
from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._unbuffered import unbuffered

_ELEMENTS = 65536
"""Of one block: 128 KiB as 16-bit numbers. Its passes stay in the L2 cache, and there are so few
blocks that calling numpy costs little."""


def internal_size(height: int, width: int, scale: float, multiple: int = 2) -> tuple[int, int]:
    """Return the (height, width) at which a network runs at an internal scale.

    Each side is the multiple nearest to ``side * scale``, at least one multiple and at most the
    side; a side below the multiple, and every side at scale 1, stays as it is.

    >>> internal_size(360, 640, 0.75, multiple=4)
    (272, 480)
    """
    if not (math.isfinite(scale) and 0 < scale <= 1):
        raise PassError(f"internal scale is {scale}, wanted above 0 and at most 1")
    if multiple < 1:
        raise PassError(f"multiple is {multiple}, wanted a whole number from 1 up")
    return _scaled(height, scale, multiple), _scaled(width, scale, multiple)


def _scaled(side: int, scale: float, multiple: int) -> int:
    if scale == 1 or side <= multiple:
        return side
    nearest = math.floor(side * scale / multiple + 0.5) * multiple
    return min(max(nearest, multiple), side // multiple * multiple)


class Downscaler:
    """Makes frames of one size smaller; owns the memory for it, so only one thread may use it.

    Args:
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        scale: of each side, 0 < scale <= 1.
        multiple: of the small frames' sides; see :func:`internal_size`.
    """

    def __init__(self, height: int, width: int, scale: float, *, multiple: int = 2) -> None:
        self.size = internal_size(height, width, scale, multiple)
        """(height, width) of the small frames."""
        self._large = (height, width)
        halved = (2 * self.size[0], 2 * self.size[1]) == self._large
        self._resize = _Half(height, width) if halved else _Separable(self._large, self.size)

    def resize(self, frame: Frame, out: Frame) -> None:
        """Write the smaller frame into ``out``.

        Args:
            frame: uint8, (height, width, 3), C-contiguous.
            out: uint8, ``(*size, 3)``, C-contiguous; apart from ``frame``.

        Raises:
            FrameError: an array is anything else; ``out`` is untouched.
        """
        _check("frame", frame, self._large)
        _check("out", out, self.size)
        with unbuffered():
            self._resize(frame, out)


class Upscaler:
    """Makes pictures of one size larger; owns the memory for it, so only one thread may use it.

    Args:
        small: (height, width) of the pictures that come.
        large: (height, width) of those that are wanted; neither side smaller.
    """

    def __init__(self, small: tuple[int, int], large: tuple[int, int]) -> None:
        if large[0] < small[0] or large[1] < small[1]:
            raise FrameError(
                f"an upscaler from {small[1]}x{small[0]} to {large[1]}x{large[0]} would make a"
                " side smaller; use Downscaler for that"
            )
        self._small, self._large = small, large
        doubled = (2 * small[0], 2 * small[1]) == large
        self._resize = _Double(*small) if doubled else _Separable(small, large)

    def resize(self, picture: Frame, out: Frame) -> None:
        """Write the larger picture into ``out``.

        Args:
            picture: uint8, ``(*small, 3)``, C-contiguous.
            out: uint8, ``(*large, 3)``, C-contiguous; apart from ``picture``.

        Raises:
            FrameError: an array is anything else; ``out`` is untouched.
        """
        _check("picture", picture, self._small)
        _check("out", out, self._large)
        with unbuffered():
            self._resize(picture, out)


def replicate(picture: Frame, scale: int, out: Frame) -> None:
    """Enlarge by a whole factor: every pixel becomes ``scale`` by ``scale`` of the same.

    Args:
        picture: uint8, (H, W, 3), C-contiguous.
        scale: from 1 up.
        out: uint8, (H * scale, W * scale, 3), C-contiguous; apart from ``picture``.

    Raises:
        FrameError: an array is anything else; ``out`` is untouched.
    """
    if scale < 1:
        raise FrameError(f"replication scale is {scale}, wanted a whole number from 1 up")
    if picture.ndim != 3:
        raise FrameError(f"picture has shape {picture.shape}, wanted (H, W, 3)")
    height, width, _ = picture.shape
    _check("picture", picture, (height, width))
    _check("out", out, (height * scale, width * scale))
    if scale == 1:
        np.copyto(out, picture)
        return
    cells = out.reshape(height, scale, width, scale, 3)
    for column in range(scale):
        for channel in range(3):
            np.copyto(cells[:, 0, :, column, channel], picture[..., channel])
    # Row by row: for all of them at once numpy would copy to be safe, as they share an array.
    for rows in out.reshape(height, scale, width * scale * 3):
        np.copyto(rows[1:], rows[0])


class _Half:
    """Exactly half on both sides: the triangle is (1, 3, 3, 1) / 8, rounded once for both."""

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._step = max(1, _ELEMENTS // (width * 6))  # small rows in a block
        step = min(self._step, height // 2)
        self._rows = np.empty((2 * step + 2, width * 3), np.uint16)
        self._tall = np.empty((step, width * 3), np.uint16)
        # The columns' part runs on whole pixels, four lanes of 16 bits, as what it adds up lies
        # two pixels apart. One pixel of border on each side; the fourth lane stays 0.
        self._packed = np.zeros((step, width + 2, 4), np.uint16)
        self._inner = np.empty((step, width // 2), np.uint64)
        self._total = np.empty((step, width // 2), np.uint64)

    def __call__(self, frame: Frame, out: Frame) -> None:
        height, width = self._height, self._width
        source = frame.reshape(height, width * 3)
        for start in range(0, height // 2, self._step):
            count = min(self._step, height // 2 - start)
            rows = self._rows[: 2 * count + 2]
            _copy_rows(source, 2 * start - 1, rows)
            tall = self._tall[:count]
            np.add(rows[1:-1:2], rows[2::2], out=tall)
            np.multiply(tall, np.uint16(3), out=tall)
            np.add(tall, rows[0:-2:2], out=tall)
            np.add(tall, rows[3::2], out=tall)
            packed = self._packed[:count]
            for channel in range(3):
                np.copyto(packed[:, 1:-1, channel], tall[:, channel::3])
            pixels = packed.view(np.uint64)[..., 0]
            pixels[:, 0] = pixels[:, 1]
            pixels[:, -1] = pixels[:, -2]
            inner = self._inner[:count]
            total = self._total[:count]
            np.add(pixels[:, 1:-1:2], pixels[:, 2::2], out=inner)
            np.add(pixels[:, 0:-2:2], pixels[:, 3::2], out=total)
            np.add(total, inner, out=total)
            np.left_shift(inner, np.uint64(1), out=inner)
            np.add(total, inner, out=total)  # at most 64 * 255 in a lane
            lanes = total.view(np.uint16)
            np.add(lanes, np.uint16(32), out=lanes)
            np.right_shift(lanes, np.uint16(6), out=lanes)
            small = out[start : start + count]
            for channel in range(3):
                np.copyto(small[..., channel], lanes[:, channel::4], casting="unsafe")


class _Double:
    """Exactly twice on both sides: the triangle is (1, 3) / 4 and (3, 1) / 4, rounded once."""

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._step = max(1, _ELEMENTS // (width * 6))  # small rows in a block
        step = min(self._step, height)
        self._rows = np.empty((step + 2, width + 2, 3), np.uint16)  # one pixel of border around
        self._triple = np.empty((step + 2, width * 3), np.uint16)
        self._side = np.empty((step + 2, width, 3), np.uint16)
        self._wide = np.empty((step + 2, 2 * width, 3), np.uint16)
        self._thrice = np.empty((step, width * 6), np.uint16)
        self._line = np.empty((step, width * 6), np.uint16)

    def __call__(self, picture: Frame, out: Frame) -> None:
        height, width = self._height, self._width
        pairs = out.reshape(height, 2, width * 6)
        for start in range(0, height, self._step):
            count = min(self._step, height - start)
            rows = self._rows[: count + 2]
            _copy_rows(picture, start - 1, rows[:, 1:-1])
            rows[:, 0] = rows[:, 1]
            rows[:, -1] = rows[:, -2]
            flat = rows.reshape(count + 2, (width + 2) * 3)
            triple = self._triple[: count + 2]
            np.multiply(flat[:, 3:-3], np.uint16(3), out=triple)
            side = self._side[: count + 2]
            wide = self._wide[: count + 2]
            for column, neighbour in ((0, flat[:, :-6]), (1, flat[:, 6:])):
                np.add(triple, neighbour, out=side.reshape(count + 2, width * 3))
                for channel in range(3):
                    np.copyto(wide[:, column::2, channel], side[..., channel])
            lines = wide.reshape(count + 2, width * 6)
            thrice = self._thrice[:count]
            line = self._line[:count]
            np.multiply(lines[1:-1], np.uint16(3), out=thrice)
            np.add(thrice, np.uint16(8), out=thrice)
            for row, neighbour in ((0, lines[:-2]), (1, lines[2:])):
                np.add(thrice, neighbour, out=line)
                np.right_shift(line, np.uint16(4), out=line)
                np.copyto(pairs[start : start + count, row], line, casting="unsafe")


class _Separable:
    """Any other ratio: rows, then columns as rows of the transposed picture, each rounded."""

    def __init__(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        (old_height, old_width), (new_height, new_width) = old, new
        # The columns' part is dearer: it is done where the picture has fewer rows.
        self._rows_first = new_height < old_height
        width = old_width if self._rows_first else new_width
        height = min(old_height, new_height)
        self._rows = _Axis(old_height, new_height, width * 3)
        self._columns = _Axis(old_width, new_width, height * 3)
        self._between = np.empty((height, width, 3), np.uint8)
        self._before = np.empty((old_width, height, 3), np.uint8)
        self._after = np.empty((new_width, height, 3), np.uint8)

    def __call__(self, picture: Frame, out: Frame) -> None:
        if self._columns.same:
            self._rows(picture, out)
        elif self._rows.same:
            self._widths(picture, out)
        elif self._rows_first:
            self._rows(picture, self._between)
            self._widths(self._between, out)
        else:
            self._widths(picture, self._between)
            self._rows(self._between, out)

    def _widths(self, picture: Frame, out: Frame) -> None:
        _transpose(picture, self._before)
        self._columns(self._before, self._after)
        _transpose(self._after, out)


class _Axis:
    """Resamples the first axis, by rows of ``length`` bytes."""

    def __init__(self, old: int, new: int, length: int) -> None:
        self.same = old == new
        self._indices, self._weights = triangle(old, new)
        self._step = max(1, _ELEMENTS // length)  # new rows in a block
        step = min(self._step, new)
        self._bytes = np.empty((step, length), np.uint8)
        self._term = np.empty((step, length), np.uint16)
        self._total = np.empty((step, length), np.uint16)

    def __call__(self, picture: Frame, out: Frame) -> None:
        if self.same:
            np.copyto(out, picture)
            return
        source = picture.reshape(len(picture), -1)
        target = out.reshape(len(out), -1)
        for start in range(0, len(out), self._step):
            stop = min(start + self._step, len(out))
            part = self._bytes[: stop - start]
            term = self._term[: stop - start]
            total = self._total[: stop - start]
            total.fill(128)
            for indices, weights in zip(self._indices, self._weights, strict=True):
                # mode: "raise" would go through a buffer; the indices are in range.
                np.take(source, indices[start:stop], axis=0, out=part, mode="clip")
                np.copyto(term, part)
                np.multiply(term, weights[start:stop], out=term)
                np.add(total, term, out=total)
            np.right_shift(total, np.uint16(8), out=total)
            np.copyto(target[start:stop], total, casting="unsafe")


def triangle(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.uint16]]:
    """Return which pixels of a line make each pixel of a resampled one, and their weights.

    Args:
        old: pixels of the line that is given.
        new: pixels of the line that is wanted.

    Returns:
        Indices (T, new), within the line, and weights (T, new, 1) in 256ths, which sum to 256 over
        T. Read backwards, both are those of the mirrored line.
    """
    # Distances in units of 1 / (2 * new) of an old pixel, so that everything is a whole number.
    support = 2 * max(old, new)
    centres = (2 * np.arange(new) + 1) * old - new  # of new pixels, from the first old centre
    taps = -(-support // new) + 1
    first = -((support - centres) // (2 * new))  # the first old pixel that may lie in the triangle
    indices = first + np.arange(taps)[:, None]
    weights = np.maximum(support - np.abs(2 * new * indices - centres), 0)
    # Running sums are rounded, half to even, so that each line of weights sums to 256 and its
    # mirror image is rounded alike.
    sums = np.rint(np.cumsum(weights, axis=0) * 256 / weights.sum(axis=0))
    rounded = np.diff(sums, axis=0, prepend=0).astype(np.uint16)
    used = rounded.any(axis=1)
    return (
        np.ascontiguousarray(indices.clip(0, old - 1)[used], np.intp),
        np.ascontiguousarray(rounded[used])[..., None],
    )


def _copy_rows(source: NDArray[np.uint8], first: int, out: NDArray[np.uint16]) -> None:
    """Copy the rows from ``first`` on, those beyond the border as the border's."""
    last = first + len(out) - 1
    above = max(0, -first)
    below = max(0, last - len(source) + 1)
    np.copyto(out[above : len(out) - below], source[max(first, 0) : last + 1])
    for row in range(above):
        out[row] = out[above]
    for row in range(len(out) - below, len(out)):
        out[row] = out[row - 1]


def _transpose(picture: Frame, out: Frame) -> None:
    # Per channel: an inner loop of length three is far slower than a strided one.
    for start in range(0, len(picture), 32):
        part = picture[start : start + 32]
        for channel in range(3):
            np.copyto(out[:, start : start + 32, channel], part[..., channel].T)


def _check(name: str, array: object, size: tuple[int, int]) -> None:
    shape = (*size, 3)
    if not isinstance(array, np.ndarray):
        raise FrameError(f"{name} is a {type(array).__name__}, wanted a uint8 array of {shape}")
    if array.shape != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
        layout = "" if array.flags.c_contiguous else ", not C-contiguous"
        raise FrameError(
            f"{name} is {array.dtype} of shape {array.shape}{layout}, wanted C-contiguous uint8 of"
            f" shape {shape}"
        )
