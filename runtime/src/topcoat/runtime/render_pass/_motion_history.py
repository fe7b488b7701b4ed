"""The motion vectors of the last few frames, and how far things have moved over several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.render_pass._warp import Warper

Field = NDArray[np.float32]

KEPT = 4
"""A result that is older than this cannot be moved to the present frame any more."""


class MotionHistory:
    """A ring of fields, each leading from one frame to the one before.

    Args:
        height: of the picture.
        width: likewise.
    """

    def __init__(self, height: int, width: int) -> None:
        shape = (height, width, 2)
        self._fields = [np.empty(shape, np.float32) for _ in range(KEPT)]
        self._sequences = [-1] * KEPT
        self._scratch = np.empty(shape, np.float32)
        self._warper = Warper(height, width)

    def field(self, sequence: int) -> Field:
        """Return the buffer for this frame's motion, which counts once :meth:`keep` was called."""
        place = sequence % KEPT
        self._sequences[place] = -1
        return self._fields[place]

    def keep(self, sequence: int) -> None:
        """Say that the buffer holds this frame's motion now."""
        self._sequences[sequence % KEPT] = sequence

    def latest(self, sequence: int) -> Field | None:
        """Return this frame's motion, or None if it had none."""
        place = sequence % KEPT
        return self._fields[place] if self._sequences[place] == sequence else None

    def chain(self, newest: int, oldest: int, out: Field) -> bool:
        """Write where the content of frame ``newest`` was in frame ``oldest``.

        Args:
            newest: sequence number.
            oldest: likewise, smaller.
            out: (H, W, 2) float32.

        Returns:
            Whether the motion of every frame in between is known; if not, ``out`` is undefined.
        """
        if not 0 < newest - oldest <= KEPT:
            return False
        steps = range(newest, oldest, -1)
        if any(self._sequences[step % KEPT] != step for step in steps):
            return False
        fields = [self._fields[step % KEPT] for step in steps]
        if len(fields) == 1:
            np.copyto(out, fields[0])
            return True
        # To and fro between two buffers, so that the last step writes into ``out``.
        source = fields[0]
        for number, older in enumerate(fields[1:], start=2):
            target = out if (len(fields) - number) % 2 == 0 else self._scratch
            self._warper.compose(source, older, target)
            source = target
        return True
