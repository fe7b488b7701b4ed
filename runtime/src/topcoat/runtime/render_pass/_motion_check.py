"""Whether motion vectors and depth fit the pictures: the usual mistakes, told in one line.

Both checks look at a coarse grid of points and take a few milliseconds; they are for one frame in
many. They stay silent unless one mistake explains what is seen clearly better than no mistake: what
they do not say is no proof.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._warp import Field

_Array = NDArray[np.float32]

_POINTS = 2400
"""About so many points of the picture are looked at."""
_CONTRAST = 6.0
"""Levels by which a point's neighbours must differ; plain surfaces look alike everywhere."""
_FEWEST = 80
"""Points that move, below which nothing is said."""
_MOVES = 1.0
"""Pixels of motion that count."""
_DIFFERS = 3.0
"""Pixels by which two readings of a vector must differ to be told apart: the jitter of two frames,
which the vectors leave out, may move the picture by more than one."""
_CAP = 48.0
"""Levels at which a difference counts no further; what came from outside counts that much."""
_MISFIT = 6.0
"""Levels by which the vectors as given must miss."""
_BETTER = 0.4
"""A mistake is named if undoing it leaves at most this share of the difference."""

_SIGNS = {
    (1, 1): "",
    (-1, -1): "negated",
    (1, -1): "upside down in y",
    (-1, 1): "mirrored in x",
}
_CURES = {
    (-1, -1): "the other Motion(direction=...)",
    (1, -1): "the other Motion(y=...)",
    (-1, 1): "the other Motion(direction=...) and the other Motion(y=...)",
}

_SMALLEST_MISFIT = 0.1
"""Pixels by which a depth must fail to explain the motion before it is doubted,"""
_SMALLEST_SHARE = 0.02
"""and the share of the motion."""


def check_motion(frame: Frame, previous: Frame, motion: Field) -> str | None:
    """Say whether another reading of the motion vectors explains the pictures much better.

    A photometric test: the mean of |frame(p) - previous(p + motion(p))| over points with contrast,
    against the same with the vectors negated, mirrored, or scaled as texture coordinates or
    normalised device coordinates would be. A reading is named if it leaves at most 0.4 of the
    difference that the vectors as given leave, and of that without any motion.

    Args:
        frame: (H, W, 3) uint8.
        previous: (H, W, 3) uint8, the frame before.
        motion: (H, W, 2) float32 in pixels, to the previous frame.

    Returns:
        One line that says what looks wrong and what to pass, or None.
    """
    height, width = motion.shape[:2]
    if height < 8 or width < 8:
        return None
    x, y = _points(height, width)
    contrast = np.abs(_grey(frame, x + 1, y) - _grey(frame, x - 1, y))
    contrast += np.abs(_grey(frame, x, y + 1) - _grey(frame, x, y - 1))
    vectors = motion[y, x].astype(np.float32)
    # np.square of a huge value must not warn; such vectors miss the picture anyhow.
    np.clip(vectors, -1e6, 1e6, out=vectors)
    use = (contrast > _CONTRAST) & np.isfinite(vectors).all(axis=-1)
    x, y, vectors = x[use], y[use], vectors[use]
    if len(x) < _FEWEST:
        return None
    now = _grey(frame, x, y)
    still = np.minimum(np.abs(now - _grey(previous, x, y)), _CAP)
    given = _differences(now, previous, x, y, vectors)

    least, best, line = float(given.mean()), np.inf, None
    for (unit, factor), signs in product(_units(vectors, width, height), _SIGNS):
        if unit == "" and signs == (1, 1):
            continue
        read = vectors * (np.float32(signs[0] * factor[0]), np.float32(signs[1] * factor[1]))
        otherwise = _differences(now, previous, x, y, read)
        overall = float(otherwise.mean())
        least = min(least, overall)
        differs = np.square(read - vectors).sum(axis=-1) > _DIFFERS**2
        if np.count_nonzero(differs) < max(_FEWEST, 0.1 * len(x)):
            continue
        told, left = float(given[differs].mean()), float(otherwise[differs].mean())
        if told < _MISFIT or left > _BETTER * min(told, float(still[differs].mean())):
            continue
        if overall < 0.75 * best:  # of those that are about as good, the commonest mistake
            best, line = overall, _line(unit, factor, signs, told, left)
    # Where a reading that is not clear enough explains even more, none is named.
    return line if best <= 1.5 * least else None


def check_depth(depth: Field, motion: Field, inverted: bool) -> str | None:
    """Say whether the depth looks upside down: near where it should be far.

    When the camera moves, a point's motion is a part that its place in the picture alone decides
    (the camera's turning) plus a part in proportion to the inverse of its distance. The depth is
    doubted if that holds clearly better with its inverse; or, of a depth buffer, if nearly all of
    the picture would lie at the near plane and what is near moves less than what is far.

    Args:
        depth: (H, W) float32: 0 to 1 is taken for a depth buffer, else for distances.
        motion: (H, W, 2) float32 in pixels, to the previous frame.
        inverted: whether greater is said to be nearer (reversed z, or inverse distance).

    Returns:
        One line that says what looks wrong and what to pass, or None.

    Source: Longuet-Higgins and Prazdny 1980, "The interpretation of a moving retinal image", for
    the motion field; the coefficients of turning are fitted freely, as the focal length is unknown.
    """
    height, width = depth.shape
    if height < 8 or width < 8:
        return None
    x, y = _points(height, width)
    values, vectors = depth[y, x].astype(np.float64), motion[y, x].astype(np.float64)
    use = np.isfinite(values) & np.isfinite(vectors).all(axis=-1) & (values >= 0)
    use &= np.abs(vectors).max(axis=-1) < max(height, width)
    x, y, values, vectors = x[use], y[use], values[use], vectors[use]
    if len(values) < _FEWEST:
        return None
    speeds = np.hypot(vectors[:, 0], vectors[:, 1])
    speed = float(np.median(speeds))
    if speed < _MOVES:
        return None
    buffer = bool(values.max() <= 1.0)
    if buffer and not inverted:
        values = 1 - values
    line = (
        "depth looks inverted: what it calls near moves as what is far does; pass the other"
        " Depth(inverted=...), or, with linear=True, distances that grow with distance"
    )
    if buffer and np.median(values) > 0.9:
        # 1 - n/Z for a nearness of n/Z: no fit can tell, as the sign of the camera's path is free.
        return line if _rank_correlation(values, speeds) < -0.6 else None
    if values.max() <= 0:
        return None
    values = np.maximum(values, values.max() * 1e-3)  # a sky's nearness is 0
    nearness = values if buffer or inverted else 1 / values
    across, down = (x - width / 2) / width, (y - height / 2) / width
    told = _misfit(across, down, nearness, vectors)
    otherwise = _misfit(across, down, 1 / nearness, vectors)
    least = max(_SMALLEST_MISFIT, _SMALLEST_SHARE * speed)
    return line if told > least and otherwise < 0.3 * told else None


def _points(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return x and y, flat, of a grid that keeps off the edges."""
    step = max(1, round((height * width / _POINTS) ** 0.5))
    y, x = np.mgrid[1 + step // 2 : height - 1 : step, 1 + step // 2 : width - 1 : step]
    return x.ravel(), y.ravel()


def _grey(picture: Frame, x: NDArray[np.intp], y: NDArray[np.intp]) -> _Array:
    grey: _Array = picture[y, x].mean(axis=-1, dtype=np.float32)
    return grey


def _units(vectors: _Array, width: int, height: int) -> list[tuple[str, tuple[float, float]]]:
    """Return the units that the vectors could be in, by their size, with factors to pixels."""
    largest = np.abs(vectors).max(axis=0)
    units = [("", (1.0, 1.0))]
    if largest.max() <= 2.0:
        units += [
            ("texture coordinates", (float(width), float(height))),
            ("normalised device coordinates", (width / 2, height / 2)),
        ]
    # Pixels that were scaled as if they were fractions of the picture.
    if float(np.median(np.abs(vectors).max(axis=-1))) > max(width, height):
        units += [
            ("pixels already", (1 / width, 1 / height)),
            ("pixels already", (2 / width, 2 / height)),
        ]
    return units


def _differences(
    now: _Array, before: Frame, x: NDArray[np.intp], y: NDArray[np.intp], vectors: _Array
) -> _Array:
    """Return by how many levels each point differs from a bilinear lookup, at most ``_CAP``."""
    height, width = before.shape[:2]
    at_x, at_y = x + vectors[:, 0], y + vectors[:, 1]
    outside = (at_x < 0) | (at_x > width - 1) | (at_y < 0) | (at_y > height - 1)
    at_x, at_y = np.clip(at_x, 0, width - 1.01), np.clip(at_y, 0, height - 1.01)
    left, top = at_x.astype(np.intp), at_y.astype(np.intp)
    part_x, part_y = at_x - left, at_y - top
    upper = _grey(before, left, top) * (1 - part_x) + _grey(before, left + 1, top) * part_x
    top += 1
    lower = _grey(before, left, top) * (1 - part_x) + _grey(before, left + 1, top) * part_x
    difference: _Array = np.abs(now - (upper * (1 - part_y) + lower * part_y))
    np.minimum(difference, _CAP, out=difference)
    difference[outside] = _CAP
    return difference


def _line(
    unit: str, factor: tuple[float, float], signs: tuple[int, int], given: float, otherwise: float
) -> str:
    looks, cures = [], []
    if unit:
        looks.append(f"in {unit}" if unit != "pixels already" else "scaled once too often")
        cures.append(
            f"Motion(scale=({factor[0]:g}, {factor[1]:g}))"
            if unit != "pixels already"
            else "Motion(scale=(1, 1))"
        )
    if _SIGNS[signs]:
        looks.append(_SIGNS[signs])
        cures.append(_CURES[signs])
    return (
        f"motion vectors look {' and '.join(looks)}: read so, they miss the previous frame by"
        f" {otherwise:.1f} levels instead of {given:.1f}; pass {' and '.join(cures)}"
    )


def _misfit(across: Any, down: Any, nearness: Any, vectors: Any) -> float:  # noqa: ANN401
    """Return the median distance in pixels between the motion and the best camera's."""
    one, zero = np.ones_like(across), np.zeros_like(across)
    nearness = nearness / np.median(nearness)
    rows_x = [one, down, across * down, across**2, zero, zero, zero, zero]
    rows_y = [zero, zero, zero, zero, one, across, across * down, down**2]
    rows_x += [nearness, zero, nearness * across]
    rows_y += [zero, nearness, nearness * down]
    system = np.stack([np.stack(rows_x, -1), np.stack(rows_y, -1)], axis=1)  # (N, 2, 11)
    keep = np.ones(len(across), np.bool_)
    error = np.zeros(len(across))
    for _ in range(4):  # what moves by itself drops out
        solution = np.linalg.lstsq(
            system[keep].reshape(-1, system.shape[-1]), vectors[keep].reshape(-1), rcond=None
        )[0]
        error = np.hypot(*(system @ solution - vectors).T)
        keep = error <= np.quantile(error, 0.7)
    return float(np.median(error))


def _rank_correlation(first: Any, second: Any) -> float:  # noqa: ANN401
    one, other = (np.argsort(np.argsort(each)).astype(np.float64) for each in (first, second))
    return float(np.corrcoef(one, other)[0, 1])
