"""Keep a stylised picture still where its frame is still: a history that the input gates.

A network that sees frames one by one draws its texture anew whenever the frame changes by noise or
by a fraction of a pixel. The stabiliser mixes the last output, moved along the motion vectors, into
the new result wherever the frame itself says that nothing else has changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._warp import (
    Field,
    Grid,
    Texels,
    copy_padded,
    expand,
    new_texels,
    pack,
    pad,
    unpack,
)

_WEIGHT = np.uint8(230)
"""Of the history where nothing has changed, in 256ths: a memory of about ten frames. Less than 256,
so that a difference shrinks every frame."""
_LARGEST_REACH = 32
"""Differences of up to so many levels are kept whole at strength 1, of larger ones a part. Small
ones are a network's unrest; large ones are outlines and brush strokes that have moved, and keeping
those costs the style its sharpness."""
_TOLERATED = np.uint8(10)
"""By so many levels a pixel may leave the range of its new surroundings: noise of a sensor."""
_DOUBT = np.uint8(12)
"""Over so many levels more the history's weight falls to nothing."""
_SLOPE = np.uint8(-(-int(_WEIGHT) // int(_DOUBT)))
_WIDENING = np.uint8(8)
"""By so many levels the history may leave the range of the new result's surroundings."""
_NEARER, _FARTHER = np.float32(1 / 1.1), np.float32(1.1)
"""Surfaces whose distances differ by less than a tenth are taken for the same one."""
_FARTHEST = np.float32(1e30)
_CUT_SHARE = 0.7
"""When the history is of no use in more than this share of the picture, the camera was cut."""

_LANES = np.uint32(0x00FF00FF)
_UPPER_BYTES = np.uint32(0xFF00FF00)
_8 = np.uint32(8)
Bytes = NDArray[np.uint8]


class Stabiliser:
    """Steadies the results of one stream of frames; holds its last output and its last frame.

    With s the new result and h the last output moved along the motion vectors, a pixel becomes ::

        s + trunc(soften(clamp(h) - s) * 0.9 * valid)

    - clamp(h) lies within the range of s over 3x3 pixels, widened by a few levels: what the
      history remembers of a place that changed cannot glow on.
    - valid, 0 to 1, is 0 where the pixel came from outside the picture, where depth says that it
      shows another surface, and where the moved last frame leaves the range of the new frame over
      3x3 pixels by more than noise does. A picture that moves by less than a pixel, as a jittered
      camera's does, stays in that range.
    - soften() leaves differences of up to ``reach(strength)`` levels, 8 at half strength, and of
      what a larger one has more than that the square of the strength.
    - The cut is towards s, so with a frozen input the output reaches s exactly and stays: nothing
      drifts, and 8 bits are enough.

    Not for use from two threads at once.

    Args:
        height: of the frames, h.
        width: of the frames, w.
        scale: how many times larger a result is than its frame on each side: H = scale * h.

    Raises:
        ValueError: a scale below 1, or results with a side of more than 16383.
    """

    def __init__(self, height: int, width: int, *, scale: int = 1) -> None:
        if scale < 1:
            raise ValueError(f"scale must be a whole number from 1 up, got {scale}")
        small = (height, width)
        height, width = height * scale, width * scale
        self._scale = scale
        self._shape = (height, width)
        self._grid = Grid(*small)
        self._frame, self._last_frame = np.zeros(small, np.uint32), new_texels(*small)
        self._moved_frame = np.empty(small, np.uint32)
        self._doubt, self._usable = np.empty(small, np.uint8), np.empty(small, np.uint8)
        self._frame_scratch = _Range(self._grid.rows, small[1])
        self._large = self._grid if scale == 1 else Grid(height, width)
        self._large_motion = None if scale == 1 else np.empty((height, width, 2), np.float32)
        self._styled, self._history = np.zeros(self._shape, np.uint32), new_texels(height, width)
        self._moved = np.empty(self._shape, np.uint32)
        rows = self._large.rows
        self._scratch = _Range(rows, width, _WIDENING)
        self._reach = np.empty((rows, width * 4), np.uint8)
        self._blend = tuple(np.empty((rows, width), np.uint32) for _ in range(4))
        self._vertical = np.empty((self._grid.rows, small[1]), np.uint8)
        self._small_weight = np.empty(small, np.uint8)
        self._weight = self._small_weight if scale == 1 else np.empty(self._shape, np.uint8)
        self._depth: _DepthGate | None = None
        self._has_depth = False
        self._has_history = False
        self._cut_detected = False

    @property
    def cut_detected(self) -> bool:
        """Whether the last step found another scene and began anew."""
        return self._cut_detected

    @property
    def history_weight(self) -> Bytes:
        """(H, W) uint8 of the result's size: how much of each pixel of the last step was history.

        In 256ths; a view that the next step writes into.
        """
        return self._weight

    def reset(self) -> None:
        """Forget the past: the next output is its result."""
        self._has_history = False
        self._has_depth = False

    def step(
        self,
        frame: Frame,
        styled: Frame,
        motion: Field | None,
        depth: Field | None,
        strength: float,
        out: Frame,
    ) -> None:
        """Write the steadied result into ``out``.

        Args:
            frame: (h, w, 3) uint8 RGB: what the network was given.
            styled: (H, W, 3) uint8 RGB: what it made of it.
            motion: (h, w, 2) float32, C-contiguous, in the frame's pixels, to the frame of the
                last step. None: nothing moves, or it is not known; changes of the frame alone then
                say where the history ends.
            depth: (h, w) float32 in which ratios are ratios of distances: the distance, or its
                inverse as a reversed depth buffer holds it. None: not known.
            strength: 0 to 1, how much to steady. At 0 the output is the result, bit for bit, and
                the past is forgotten.
            out: (H, W, 3) uint8; may be ``styled``.
        """
        self._cut_detected = False
        limit = reach(strength)
        if limit == 0:
            self.reset()
            self._weight.fill(0)
            if out is not styled:
                np.copyto(out, styled)
            return
        pack(frame, self._frame)
        pack(styled, self._styled)
        if depth is not None:
            if self._depth is None:
                self._depth = _DepthGate(self._grid)
            self._depth.take(depth)
        if self._has_history:
            self._move(motion, self._depth if depth is not None and self._has_depth else None)
            self._find_doubt()
            useless = self._count_useless()
            self._cut_detected = useless > _CUT_SHARE * self._doubt.size
        if self._has_history and not self._cut_detected:
            self._weigh()
            self._reach.fill(limit)
            self._mix(_share(strength), out)
        else:
            self._weight.fill(0)
            copy_padded(self._styled, self._history)
            if out is not styled:
                np.copyto(out, styled)
        self._has_history = True
        copy_padded(self._frame, self._last_frame)
        self._has_depth = depth is not None
        if self._depth is not None and depth is not None:
            self._depth.keep()

    def _move(self, motion: Field | None, depth: _DepthGate | None) -> None:
        """Move the last frame and the history to where things are now; mark what is of no use."""
        if motion is None:
            for top, bottom in self._grid.blocks():
                self._hold(top, bottom, depth)
            return
        for top, bottom in self._grid.blocks():
            if self._scale == 1 and not motion[top:bottom].view(np.uint32).max():
                self._hold(top, bottom, depth)  # a camera that stands still: half of all the work
                continue
            inside = self._grid.locate(motion[top:bottom], top)
            np.copyto(self._usable[top:bottom].reshape(-1), inside.view(np.uint8))
            # Of the frame the nearest pixel will do: it is held against a range over 3x3 pixels.
            self._grid.gather_nearest(
                self._last_frame.reshape(-1), self._moved_frame[top:bottom].reshape(-1)
            )
            if self._scale == 1:
                self._grid.gather(self._history.reshape(-1), self._moved[top:bottom].reshape(-1))
            if depth is not None:
                depth.mark(self._grid, top, bottom, self._usable)
        if self._large_motion is not None:
            expand(motion, self._large_motion)
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(self._large_motion, np.float32(self._scale), out=self._large_motion)
            for top, bottom in self._large.blocks():
                self._large.locate(self._large_motion[top:bottom], top)
                self._large.gather(self._history.reshape(-1), self._moved[top:bottom].reshape(-1))

    def _hold(self, top: int, bottom: int, depth: _DepthGate | None) -> None:
        """Do for rows of a frame in which nothing moves what ``_move`` does."""
        np.copyto(self._moved_frame[top:bottom], self._last_frame[top:bottom, :-1])
        first, last = top * self._scale, bottom * self._scale
        np.copyto(self._moved[first:last], self._history[first:last, :-1])
        self._usable[top:bottom].fill(1)
        if depth is not None:
            depth.mark(None, top, bottom, self._usable)

    def _find_doubt(self) -> None:
        """By how many levels each pixel of the moved frame leaves the range of the new one."""
        width = self._moved_frame.shape[1]
        for top, bottom in self._grid.blocks():
            low, high = self._frame_scratch.of(self._frame, top, bottom)
            moved = self._moved_frame[top:bottom].view(np.uint8)
            above = self._frame_scratch.spare[: bottom - top]
            np.maximum(moved, high, out=above)
            np.subtract(above, high, out=above)
            np.maximum(low, moved, out=low)
            np.subtract(low, moved, out=low)
            np.bitwise_or(above, low, out=above)  # at most one of the two is not 0
            channels = above.reshape(bottom - top, width, 4)
            doubt = self._doubt[top:bottom]
            np.maximum(channels[..., 0], channels[..., 1], out=doubt)
            np.maximum(doubt, channels[..., 2], out=doubt)

    def _count_useless(self) -> int:
        weight = self._small_weight.view(np.bool_)
        np.less(self._doubt, _TOLERATED + _DOUBT, out=weight)
        np.logical_and(weight, self._usable.view(np.bool_), out=weight)
        return int(weight.size - np.count_nonzero(weight))

    def _weigh(self) -> None:
        """Write the history's weight, 0 to ``_WEIGHT``."""
        for top, bottom in self._grid.blocks():
            weight, tall = self._small_weight[top:bottom], self._vertical[: bottom - top]
            _reduce_lines(np.maximum, self._doubt, top, bottom, tall)
            _reduce_columns(np.maximum, tall, weight, 1)
            np.maximum(weight, _TOLERATED, out=weight)
            np.subtract(weight, _TOLERATED, out=weight)
            np.minimum(weight, _DOUBT, out=weight)
            np.multiply(weight, _SLOPE, out=weight)
            np.minimum(weight, _WEIGHT, out=weight)
            np.subtract(_WEIGHT, weight, out=weight)
            np.multiply(weight, self._usable[top:bottom], out=weight)
        if self._weight is not self._small_weight:
            for row in range(self._scale):
                for column in range(self._scale):
                    np.copyto(
                        self._weight[row :: self._scale, column :: self._scale], self._small_weight
                    )

    def _mix(self, share: np.uint32, out: Frame) -> None:
        width = self._shape[1]
        for top, bottom in self._large.blocks():
            n = bottom - top
            low, high = self._scratch.of(self._styled, top, bottom)
            weight, magnitude, lane, result = (each[:n] for each in self._blend)
            np.copyto(result, self._styled[top:bottom])
            styled = result.view(np.uint8)
            history = self._moved[top:bottom].view(np.uint8)
            np.maximum(history, low, out=history)
            np.minimum(history, high, out=history)
            darker = low  # done with the range: its memory says where history is below styled
            np.less(history, styled, out=darker.view(np.bool_))
            np.subtract(np.uint8(0), darker, out=darker)
            difference = magnitude.view(np.uint8)
            np.minimum(history, styled, out=high)
            np.maximum(history, styled, out=difference)
            np.subtract(difference, high, out=difference)
            np.minimum(difference, self._reach[:n], out=high)
            np.subtract(difference, high, out=difference)
            _scale_bytes(magnitude, share, lane)
            np.add(difference, high, out=difference)
            np.copyto(weight, self._weight[top:bottom])
            _scale_bytes(magnitude, weight, lane)
            # -x is (x ^ 255) + 1, and 1 is -255 in a byte.
            np.bitwise_xor(difference, darker, out=difference)
            np.subtract(difference, darker, out=difference)
            np.add(styled, difference, out=styled)
            np.copyto(self._history[top:bottom, :width], result)
            unpack(result, out[top:bottom])
        pad(self._history)


def reach(strength: float) -> int:
    """Return up to how many levels (of 255) a difference from the result is kept as it is.

    32 times the square of the strength, rounded: 0 at 0, 8 at a half, 32 from 1 on.

    >>> [reach(strength) for strength in (0, 0.25, 0.5, 0.75, 1)]
    [0, 2, 8, 18, 32]
    """
    return round(_LARGEST_REACH * _square(strength))


def _share(strength: float) -> np.uint32:
    """Return how much is kept of what a difference has beyond the reach, in 256ths."""
    return np.uint32(round(256 * _square(strength)))


def _square(strength: float) -> float:
    return min(1.0, max(0.0, strength)) ** 2


def _scale_bytes(values: Texels, weight: Texels | np.uint32, scratch: Texels) -> None:
    """Multiply each byte by the pixel's weight in 256ths, at most 256, rounding down."""
    np.bitwise_and(values, _LANES, out=scratch)
    np.multiply(scratch, weight, out=scratch)
    np.right_shift(scratch, _8, out=scratch)
    np.bitwise_and(scratch, _LANES, out=scratch)
    np.right_shift(values, _8, out=values)
    np.bitwise_and(values, _LANES, out=values)
    np.multiply(values, weight, out=values)
    np.bitwise_and(values, _UPPER_BYTES, out=values)
    np.bitwise_or(values, scratch, out=values)


class _Range:
    """Scratch for the range of each byte of a block over 3x3 pixels."""

    def __init__(self, rows: int, width: int, widening: np.uint8 | None = None) -> None:
        self._low, self._high, self._tall, self.spare = (
            np.empty((rows, width * 4), np.uint8) for _ in range(4)
        )
        # Of bytes numpy takes the larger many at once, but not with a scalar.
        self._widening = None if widening is None else np.full_like(self._low, widening)
        self._most = None if widening is None else np.full_like(self._low, 255 - int(widening))

    def of(self, texels: Texels, top: int, bottom: int) -> tuple[Bytes, Bytes]:
        """Return the smallest and the largest bytes, (rows, 4 * W) each."""
        n = bottom - top
        source = texels.view(np.uint8)
        low, high, tall = self._low[:n], self._high[:n], self._tall[:n]
        for edge, function in ((low, np.minimum), (high, np.maximum)):
            _reduce_lines(function, source, top, bottom, tall)
            _reduce_columns(function, tall, edge, 4)
        if self._widening is not None and self._most is not None:
            np.maximum(low, self._widening[:n], out=low)
            np.subtract(low, self._widening[:n], out=low)
            np.minimum(high, self._most[:n], out=high)
            np.add(high, self._widening[:n], out=high)
        return low, high


class _DepthGate:
    """Says where the last frame showed another surface, by its distance."""

    def __init__(self, grid: Grid) -> None:
        height, width = grid.height, grid.width
        self._new = np.empty((height, width), np.float32)
        self._last = np.empty((height + 1, width + 1), np.float32)
        self._scratch = tuple(np.empty((grid.rows, width), np.float32) for _ in range(4))
        self._same = np.empty((grid.rows, width), np.bool_)

    def take(self, depth: Field) -> None:
        """Begin with a frame's depth (H, W); an infinite one, or no number, is very far away."""
        with np.errstate(invalid="ignore"):
            np.fmin(depth, _FARTHEST, out=self._new)
            np.maximum(self._new, np.float32(0), out=self._new)

    def mark(self, moving: Grid | None, top: int, bottom: int, usable: Bytes) -> None:
        """Clear ``usable`` where the moved last depth leaves the new one's range over 3x3 pixels.

        The range, not the pixel: at an outline a jittered camera sees now one surface, now the
        other. ``moving`` has located the block; None: nothing moves.
        """
        low, high, tall, moved = (each[: bottom - top] for each in self._scratch)
        if moving is None:
            np.copyto(moved, self._last[top:bottom, : moved.shape[1]])
        else:
            moving.gather_nearest(self._last.reshape(-1), moved.reshape(-1))
        for edge, function in ((low, np.minimum), (high, np.maximum)):
            _reduce_lines(function, self._new, top, bottom, tall)
            _reduce_columns(function, tall, edge, 1)
        np.multiply(low, _NEARER, out=low)
        np.multiply(high, _FARTHER, out=high)
        same, still = self._same[: bottom - top], usable[top:bottom].view(np.bool_)
        np.greater_equal(moved, low, out=same)
        np.logical_and(still, same, out=still)
        np.less_equal(moved, high, out=same)
        np.logical_and(still, same, out=still)

    def keep(self) -> None:
        """Make the depth that was taken the last one."""
        copy_padded(self._new, self._last)


def _reduce_lines(
    function: np.ufunc, source: NDArray[Any], top: int, bottom: int, out: NDArray[Any]
) -> None:
    """Reduce each row of a block with those above and below it."""
    n = bottom - top
    first, last = int(top == 0), int(bottom == len(source))
    np.copyto(out[:first], source[:first])
    function(source[top + first : bottom], source[top + first - 1 : bottom - 1], out=out[first:n])
    function(out[: n - last], source[top + 1 : bottom + 1 - last], out=out[: n - last])


def _reduce_columns(function: np.ufunc, source: NDArray[Any], out: NDArray[Any], step: int) -> None:
    """Reduce each value with those ``step`` places before and after it in its row.

    The rows are gone through as one: numpy takes buffers of its own for a loop over short rows.
    The ends of rows, which then met their neighbours', are done again.
    """
    flat, reduced = source.reshape(-1), out.reshape(-1)
    np.copyto(reduced[:step], flat[:step])
    function(flat[step:], flat[:-step], out=reduced[step:])
    np.copyto(out[:, :step], source[:, :step])
    function(reduced[:-step], flat[step:], out=reduced[:-step])
    if source.shape[1] > step:
        function(source[:, -step:], source[:, -2 * step : -step], out=out[:, -step:])
    else:
        np.copyto(out, source)
