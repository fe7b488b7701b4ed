"""The motion vectors of the last few frames, and how far things have moved over several."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.render_pass._frame import Motion, SideInputs
from topcoat.runtime.render_pass._warp import Warper

Field = NDArray[np.float32]

KEPT = 4
"""A result that is older than this cannot be moved to the present frame any more."""


class MotionHistory:
    """A ring of fields, each leading from one frame to the one before.

    They are kept as the application gave them and brought into the pass's form when somebody asks:
    most frames of a pass that keeps up are never moved.

    Args:
        height: of the picture.
        width: likewise.
        side: knows the pass's form.
    """

    def __init__(self, height: int, width: int, side: SideInputs) -> None:
        shape = (height, width, 2)
        self._side = side
        self._given: list[Motion | None] = [None] * KEPT
        self._fields = [np.empty(shape, np.float32) for _ in range(KEPT)]
        self._sequences = [-1] * KEPT
        self._converted = [False] * KEPT
        self._scratch = np.empty(shape, np.float32)
        self._warper = Warper(height, width)

    def keep(self, sequence: int, motion: Motion) -> str | None:
        """Keep a frame's motion; return why it cannot be used, if so."""
        place = sequence % KEPT
        self._sequences[place] = -1
        problem = self._side.motion_problem(motion)
        if problem is not None:
            return problem
        before = self._given[place]
        data: NDArray[Any] | None = None if before is None else before.data
        if data is None or data.shape != motion.data.shape or data.dtype != motion.data.dtype:
            data = np.empty(motion.data.shape, motion.data.dtype)
        np.copyto(data, motion.data)
        self._given[place] = dataclasses.replace(motion, data=data)
        self._converted[place] = False
        self._sequences[place] = sequence
        return None

    def latest(self, sequence: int) -> Field | None:
        """Return this frame's motion, or None if it had none."""
        place = sequence % KEPT
        return self._field(place) if self._sequences[place] == sequence else None

    def reaches(self, newest: int, oldest: int) -> bool:
        """Return whether the motion of every frame between these two is known."""
        return 0 < newest - oldest <= KEPT and all(
            self._sequences[step % KEPT] == step for step in range(newest, oldest, -1)
        )

    def chain(self, newest: int, oldest: int, out: Field) -> bool:
        """Write where the content of frame ``newest`` was in frame ``oldest``.

        Args:
            newest: sequence number.
            oldest: likewise, smaller.
            out: (H, W, 2) float32.

        Returns:
            Whether the motion of every frame in between is known; if not, ``out`` is undefined.
        """
        if not self.reaches(newest, oldest):
            return False
        fields = [self._field(step % KEPT) for step in range(newest, oldest, -1)]
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

    def _field(self, place: int) -> Field:
        if not self._converted[place]:
            given = self._given[place]
            assert given is not None
            self._side.load_motion(given, self._fields[place])
            self._converted[place] = True
        return self._fields[place]
