"""Measure whether an engine leaves flat areas flat where the network does.

A network that enlarges computes each of the ``scale``² pixels within an input pixel on its own way.
Where the picture has one colour they must all come out alike: a single 8-bit step between them is a
grid, and on a wall or a sky people see it. How many steps an engine is off says nothing of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import ParityError
from topcoat.runtime.frames import Frame

_SPREAD = 0.01
"""In 8-bit steps: where the network's own pixels lie this near to each other, they are one colour.
What float32 rounds away is a thousandth of that."""
_CLEARANCE = 0.25
"""In 8-bit steps, from the nearest rounding edge: nearer to it, an honest engine of half
precision may round its pixels to both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatness:
    """How flat an engine leaves frames of one colour each, in 8-bit steps."""

    areas: int
    """How many frames there were."""
    judged: int
    """... and to how many of them the network itself gives one colour, clear of rounding edges."""
    uneven: Mapping[str, int]
    """Of those judged, the ones that the engine does not leave flat: colour of the frame, as
    ``#rrggbb`` -> largest difference between two pixels, in R, G or B."""

    @property
    def max_steps(self) -> int:
        """Of the worst area that was judged; 0 is flat."""
        return max(self.uneven.values(), default=0)

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "areas": self.areas,
            "judged": self.judged,
            "max_steps": self.max_steps,
            "uneven": dict(self.uneven),
        }


def areas_to_judge(answer: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the frames that a network itself answers with one colour.

    Args:
        answer: (N, H, W, 3), what the network gives for N frames of one colour each, in 8-bit
            steps, clipped to 0 to 255, not rounded.

    Returns:
        (N,); False also where the colour lies so near to a rounding edge that the last bits decide.
    """
    low, high = answer.min(axis=(1, 2)), answer.max(axis=(1, 2))  # (N, 3)
    off_centre = np.maximum(np.abs(low - low.round()), np.abs(high - high.round()))
    clear = (high - low <= _SPREAD) & (off_centre <= 0.5 - _CLEARANCE)
    judged: NDArray[np.bool_] = clear.all(axis=1)
    return judged


def flatness(frames: Frame, answers: Frame, judged: NDArray[np.bool_]) -> Flatness:
    """Measure how flat an engine left frames of one colour each.

    Args:
        frames: (N, H, W, 3), what it was given.
        answers: (N, H*scale, W*scale, 3), what it gave.
        judged: (N,), from :func:`areas_to_judge`.

    Raises:
        ParityError: a frame has more than one colour, or the batches do not belong together.

    >>> frames = np.full((1, 2, 2, 3), 9, np.uint8)
    >>> answers = frames.copy()
    >>> answers[0, 0, 1, 2] = 7
    >>> flatness(frames, answers, np.array([True])).uneven
    {'#090909': 2}
    """
    if not len(frames) == len(answers) == len(judged):
        raise ParityError(
            f"{len(frames)} frames, {len(answers)} answers and {len(judged)} to judge; "
            "there must be as many of each"
        )
    colours = frames[:, 0, 0]  # (N, 3)
    if (frames != colours[:, None, None]).any():
        raise ParityError("a frame of more than one colour cannot be left flat; give flat frames")
    # At most 255, which uint8 holds.
    steps = (answers.max(axis=(1, 2)) - answers.min(axis=(1, 2))).max(axis=1)
    return Flatness(
        areas=len(frames),
        judged=int(judged.sum()),
        uneven={
            f"#{bytes(colour).hex()}": int(off)
            for colour, off, counts in zip(colours, steps, judged, strict=True)
            if counts and off
        },
    )


def together(found: Iterable[Flatness]) -> Flatness | None:
    """Sum up several batches; None if there are none."""
    parts = list(found)
    if not parts:
        return None
    uneven: dict[str, int] = {}
    for part in parts:
        for colour, steps in part.uneven.items():
            uneven[colour] = max(steps, uneven.get(colour, 0))
    return Flatness(
        areas=sum(part.areas for part in parts),
        judged=sum(part.judged for part in parts),
        uneven=uneven,
    )
