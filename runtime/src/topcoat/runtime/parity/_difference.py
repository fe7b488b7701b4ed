"""How far two frames are from each other, in 8-bit steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import ParityError
from topcoat.runtime.frames import Frame
from topcoat.runtime.parity._flat import Flatness, together

TILE = 32
"""Side of the tiles among which the worst one is looked for: an error that hides in one corner."""

Steps: TypeAlias = NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The 32×32 tile with the largest mean difference."""

    frame: int
    """Index in the batch; 0 for a single frame."""
    top: int
    left: int
    mean_steps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far one frame, or batch, is from its reference, in 8-bit steps."""

    values: int
    """How many values were compared."""
    max_steps: int
    mean_steps: float
    mean_squared: float
    """In squared steps; what the PSNR is made of."""
    changed: float
    """Share of values that differ at all, 0 to 1."""
    within_4_steps: float
    """Share of values that differ by at most 4 steps, 0 to 1."""
    tone_steps: float
    """Largest difference between the mean colours (R, G or B) of a 32×32 tile."""
    worst_tile: Tile
    flat: Flatness | None = None
    """How flat it is; only of a batch of frames of one colour each."""

    @property
    def psnr_db(self) -> float:
        """Infinite for equal frames; null in JSON."""
        return _psnr_db(self.mean_squared)

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        tile = self.worst_tile
        return {
            "values": self.values,
            "max_steps": self.max_steps,
            "mean_steps": self.mean_steps,
            "changed": self.changed,
            "within_4_steps": self.within_4_steps,
            "psnr_db": _finite(self.psnr_db),
            "tone_steps": self.tone_steps,
            "worst_tile": {
                "frame": tile.frame,
                "top": tile.top,
                "left": tile.left,
                "mean_steps": tile.mean_steps,
            },
            **_flat_json(self.flat),
        }


def difference(reference: Frame, candidate: Frame) -> Difference:
    """Measure how far a frame is from its reference.

    Args:
        reference: (H, W, 3) or (N, H, W, 3), uint8.
        candidate: of the same shape, uint8.

    Raises:
        ParityError: shapes or types differ, or there is nothing to compare.

    >>> flat = np.zeros((8, 8, 3), np.uint8)
    >>> difference(flat, flat + np.uint8(2)).max_steps
    2
    """
    if reference.dtype != np.uint8 or candidate.dtype != np.uint8:
        raise ParityError(
            f"frames must be uint8, got {reference.dtype} and {candidate.dtype}; round both first"
        )
    if reference.shape != candidate.shape:
        raise ParityError(
            f"frames of {reference.shape} and {candidate.shape} cannot be compared; "
            "they must have one shape"
        )
    if reference.ndim not in (3, 4) or reference.size == 0:
        raise ParityError(
            f"a frame of shape {reference.shape} compares nothing; give (H, W, 3) or (N, H, W, 3)"
        )
    signed = reference.astype(np.int16) - candidate
    steps = np.abs(signed)  # at most 255
    return Difference(
        values=steps.size,
        max_steps=int(steps.max()),
        mean_steps=float(steps.mean(dtype=np.float64)),
        mean_squared=float(np.mean(np.square(steps, dtype=np.int32), dtype=np.float64)),
        changed=float(np.mean(steps > 0)),
        within_4_steps=float(np.mean(steps <= 4)),
        tone_steps=float(np.abs(_tile_means(signed)).max()),
        worst_tile=_worst_tile(steps),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A group of frames: the worst of each measure, and the PSNR of all together."""

    frames: int
    max_steps: int
    changed: float
    within_4_steps: float
    psnr_db: float
    """Of all frames taken together, each value counting once."""
    worst_psnr_db: float
    """Of the worst frame."""
    tone_steps: float
    flat: Flatness | None = None
    """Of all its flat areas; None if it has none."""

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "frames": self.frames,
            "max_steps": self.max_steps,
            "changed": self.changed,
            "within_4_steps": self.within_4_steps,
            "psnr_db": _finite(self.psnr_db),
            "worst_psnr_db": _finite(self.worst_psnr_db),
            "tone_steps": self.tone_steps,
            **_flat_json(self.flat),
        }


def summary(differences: Iterable[Difference]) -> Summary:
    """Summarise frames by their worst values, and by the PSNR of all of them together.

    Raises:
        ParityError: there are none; nothing compared is nothing proved.
    """
    found = list(differences)
    if not found:
        raise ParityError("no frames were compared; give at least one")
    return Summary(
        frames=len(found),
        max_steps=max(d.max_steps for d in found),
        changed=max(d.changed for d in found),
        within_4_steps=min(d.within_4_steps for d in found),
        psnr_db=_psnr_db(
            sum(d.mean_squared * d.values for d in found) / sum(d.values for d in found)
        ),
        worst_psnr_db=min(d.psnr_db for d in found),
        tone_steps=max(d.tone_steps for d in found),
        flat=together(d.flat for d in found if d.flat is not None),
    )


def _tile_means(values: Steps) -> NDArray[np.float64]:
    """(H, W, 3) or (N, H, W, 3) -> (N, tiles down, tiles across, 3); border tiles are smaller."""
    batch = values if values.ndim == 4 else values[None]
    rows, columns = (np.arange(0, side, TILE) for side in batch.shape[1:3])
    sums = np.add.reduceat(batch, rows, axis=1, dtype=np.int64)
    sums = np.add.reduceat(sums, columns, axis=2)
    heights = np.diff(rows, append=batch.shape[1])
    widths = np.diff(columns, append=batch.shape[2])
    means: NDArray[np.float64] = sums / (heights[:, None] * widths)[..., None]
    return means


def _worst_tile(steps: Steps) -> Tile:
    means = _tile_means(steps).mean(axis=3)
    frame, row, column = np.unravel_index(int(means.argmax()), means.shape)
    return Tile(
        frame=int(frame),
        top=TILE * int(row),
        left=TILE * int(column),
        mean_steps=float(means[frame, row, column]),
    )


def _psnr_db(mean_squared: float) -> float:
    return 10 * math.log10(255**2 / mean_squared) if mean_squared else math.inf


def _flat_json(flat: Flatness | None) -> dict[str, Any]:
    return {} if flat is None else {"flat": flat.to_json()}


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
