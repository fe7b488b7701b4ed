"""How a texture is laid out to see whether it repeats without a seam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from topcoat.runtime.frames import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """A way to lay out a frame, and its texture likewise."""

    name: str
    arrange: Callable[[Frame], Frame]
    """(H, W, 3) or (N, H, W, 3) -> the same, rolled, or larger."""


def arrangements(multiple: int) -> tuple[Arrangement, ...]:
    """List the layouts that noise and texture must have in common.

    Args:
        multiple: the network's ``size_multiple``; its coarsest noise moves by whole values only
            when the frame moves by a multiple of this.
    """

    def rolled(down: int, right: int) -> Callable[[Frame], Frame]:
        return lambda frame: np.roll(frame, (down * multiple, right * multiple), axis=(-3, -2))

    def repeated(frame: Frame) -> Frame:
        return np.tile(frame, (2, 2, 1))

    return (
        Arrangement(name=f"rolled {multiple} down", arrange=rolled(1, 0)),
        Arrangement(name=f"rolled {2 * multiple} left", arrange=rolled(0, -2)),
        Arrangement(name="2x2", arrange=repeated),
    )
