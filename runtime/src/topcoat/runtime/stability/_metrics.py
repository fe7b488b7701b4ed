"""Measures of temporal stability: 8-bit pictures in, shares of the full range out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import TopcoatError
from topcoat.runtime.frames import Frame


class StabilityError(TopcoatError, ValueError):
    """Sequences that cannot be measured: too short, of different sizes, or without any change."""


@dataclass(frozen=True, slots=True)
class WarpError:
    """What :func:`warp_error` found."""

    value: float
    """Of the outputs, 0 to 1."""
    floor: float
    """Of the inputs: what resampling, shading and edges cost where nothing flickers."""


def warp_error(
    outputs: Sequence[Frame],
    inputs: Sequence[Frame],
    motions: Sequence[NDArray[np.float32]],
    occluded: Sequence[NDArray[np.bool_]],
) -> WarpError:
    """Compare every picture with the one before it, moved along the motion vectors.

    For each t from 1 on, over the pixels that are not occluded and their three channels ::

        E(t) = sum |O(t) - warp(O(t-1), motion(t))|² / their number,   values 0 to 1

    and the mean over t, once of the outputs and once of the inputs. Steps without a single visible
    pixel are left out. Errors of sequences with different scenes or motion do not compare; errors
    above the floor of the same scene do.

    Args:
        outputs: at least 2, (H, W, 3) uint8.
        inputs: as many, (H, W, 3) uint8.
        motions: as many, (H, W, 2) float32 in pixels, to the previous frame; the first is not read.
        occluded: as many, (H, W) bool: not seen in the previous frame, or at an outline of either,
            where a bilinear lookup mixes two surfaces. The first is not read.

    Raises:
        StabilityError: fewer than 2 pictures, sizes that differ, or nothing visible at all.

    Source: Lai et al. 2018 (arXiv:1808.00449), section 4.3, with a scene's exact motion and
    occlusion in place of an estimated flow; the mean is over visible values, not over all.
    """
    _check(outputs, inputs)
    if not len(outputs) == len(motions) == len(occluded):
        raise StabilityError(
            f"{len(outputs)} outputs came with {len(motions)} motion fields and {len(occluded)}"
            " occlusion masks, wanted as many of each"
        )
    errors: list[tuple[float, float]] = []
    for t in range(1, len(outputs)):
        visible = ~occluded[t]
        if not visible.any():
            continue
        where = _Positions(motions[t])
        value, floor = (
            float(np.mean(np.square(_unit(now)[visible] - where.look_up(_unit(before))[visible])))
            for before, now in ((outputs[t - 1], outputs[t]), (inputs[t - 1], inputs[t]))
        )
        errors.append((value, floor))
    if not errors:
        raise StabilityError(
            "no pixel of any frame is visible in the one before; use slower motion"
        )
    value, floor = np.mean(errors, axis=0)
    return WarpError(float(value), float(floor))


def flicker_gain(inputs: Sequence[Frame], outputs: Sequence[Frame]) -> float:
    """Return how much more the outputs change from frame to frame than their inputs do.

    ``mean |O(t) - O(t-1)| / mean |I(t) - I(t-1)|`` over all t, pixels and channels: 1 for a copy.
    For sequences whose content stands still: a jittered camera, or a sensor's noise.

    Args:
        inputs: at least 2, (h, w, 3) uint8.
        outputs: as many, (H, W, 3) uint8; their size may be another.

    Raises:
        StabilityError: fewer than 2, not as many of each, or inputs that never change.
    """
    _check(outputs)
    _check(inputs)
    if len(outputs) != len(inputs):
        raise StabilityError(
            f"{len(outputs)} outputs came with {len(inputs)} inputs, wanted as many of each"
        )
    change = _mean_change(inputs)
    if change == 0:
        raise StabilityError("the inputs never change; add jitter or noise, or use frozen_variance")
    return _mean_change(outputs) / change


def frozen_variance(outputs: Sequence[Frame]) -> float:
    """Return the variance over time of outputs whose input is frozen, averaged over all values.

    In shares of the full range, squared; exactly 0 if, and only if, no value ever changes.

    Args:
        outputs: at least 2, (H, W, 3) uint8.

    Raises:
        StabilityError: fewer than 2 pictures, or sizes that differ.
    """
    _check(outputs)
    levels = np.stack(outputs).astype(np.float64)  # of equal whole numbers the mean is exact
    return float(levels.var(axis=0).mean() / 255**2)


def lag_frames(before: Frame, outputs: Sequence[Frame], remaining: float = 0.1) -> int:
    """Return after how many frames the outputs have followed a sudden change of the input.

    0: the picture of the change itself is there. It is the first k from which on ::

        mean |O(k) - settled| <= remaining * mean |before - settled|

    with the last output as the settled one.

    Args:
        before: (H, W, 3) uint8, the last output before the change.
        outputs: (H, W, 3) uint8, at least 2, of the changed frame and of those after it, long
            enough to settle.
        remaining: the share of the change that may be left.

    Raises:
        StabilityError: fewer than 2 outputs, sizes that differ, or an output that never changed.
    """
    _check([before, *outputs])
    _check(outputs)
    settled = _unit(outputs[-1])
    whole = float(np.abs(_unit(before) - settled).mean())
    if whole == 0:
        raise StabilityError("the last output is the one before the change; change the input more")
    lag = 0
    for k, output in enumerate(outputs):
        if float(np.abs(_unit(output) - settled).mean()) > remaining * whole:
            lag = k + 1
    return lag


def return_drift(first: Frame, last: Frame) -> float:
    """Return how far an output is from the one of the same input long before: mean |O(n) - O(0)|.

    Args:
        first: (H, W, 3) uint8.
        last: likewise.

    Returns:
        0 to 1.

    Raises:
        StabilityError: the sizes differ.
    """
    _check([first, last])
    return float(np.abs(_unit(last) - _unit(first)).mean())


class _Positions:
    """Where the pixels of a frame were in the one before, for bilinear lookups there."""

    def __init__(self, motion: NDArray[np.float32]) -> None:
        height, width = motion.shape[:2]
        y, x = np.mgrid[0:height, 0:width]
        at_x = np.clip(x + motion[..., 0].astype(np.float64), 0, width - 1)
        at_y = np.clip(y + motion[..., 1].astype(np.float64), 0, height - 1)
        self._left, self._top = at_x.astype(np.intp), at_y.astype(np.intp)
        self._right = np.minimum(self._left + 1, width - 1)
        self._bottom = np.minimum(self._top + 1, height - 1)
        self._to_right = (at_x - self._left)[..., None]
        self._to_bottom = (at_y - self._top)[..., None]

    def look_up(self, picture: NDArray[np.float64]) -> NDArray[np.float64]:
        top, bottom = (
            picture[line, self._left] * (1 - self._to_right)
            + picture[line, self._right] * self._to_right
            for line in (self._top, self._bottom)
        )
        found: NDArray[np.float64] = top * (1 - self._to_bottom) + bottom * self._to_bottom
        return found


def _unit(picture: Frame) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = picture / np.float64(255)
    return unit


def _mean_change(pictures: Sequence[Frame]) -> float:
    return float(
        np.mean(
            [np.abs(now.astype(np.int16) - before).mean() for before, now in pairwise(pictures)]
        )
    )


def _check(*sequences: Sequence[Frame]) -> None:
    for pictures in sequences:
        if len(pictures) < 2:
            raise StabilityError(f"{len(pictures)} pictures came, wanted at least 2 in a row")
    if len({len(pictures) for pictures in sequences}) > 1:
        raise StabilityError(
            f"sequences of {' and '.join(str(len(each)) for each in sequences)} pictures came,"
            " wanted as many of each"
        )
    for picture in (picture for pictures in sequences for picture in pictures):
        if picture.shape != sequences[0][0].shape or picture.dtype != np.uint8:
            raise StabilityError(
                f"a picture is {picture.dtype} {picture.shape}, wanted uint8"
                f" {sequences[0][0].shape} like the first"
            )
