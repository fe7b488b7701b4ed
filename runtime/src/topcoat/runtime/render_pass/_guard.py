"""Is what an engine gave back a picture of the frame? Cheap checks after every frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import InvalidResultError
from topcoat.runtime.frames import Frame

_MARKS = 64
_SPREAD = 8
"""A network that paints one colour over frames with less than this much in them may mean it."""


class ResultGuard:
    """Checks results of one size, at 64 places that are spread over the picture.

    Before the engine runs, a colour that differs from place to place and from frame to frame is
    written there. Where two or more are still there afterwards, the engine has not written the
    whole picture (a natural picture would be taken for that once in 10^11 frames). And where all
    64 have become the same colour, although the frame differs there by 8 steps or more in a
    channel, and so has every other pixel, the network's numbers were NaN or infinite: rounding to
    bytes makes one colour of them.

    What is not found: numbers that are not finite on a frame that is nearly one colour itself (a
    fade to black), whose result may be one colour for good reasons; and a NaN that a network
    without normalisation over the frame spreads over a part of the picture alone.

    Args:
        height: of the frame.
        width: likewise.
        scale: the result is so many times larger.
    """

    def __init__(self, height: int, width: int, scale: int) -> None:
        marks = min(_MARKS, height * width)
        rng = np.random.default_rng(0)
        # Stratified, so that no large part of the picture goes without a mark.
        flat = (np.arange(marks) + rng.random(marks)) * (height * width / marks)
        pixels: NDArray[np.int64] = np.minimum(flat.astype(np.int64), height * width - 1)
        self._source_places = pixels
        rows, columns = np.divmod(pixels, width)
        places: NDArray[np.int64] = (rows * scale) * (width * scale) + columns * scale
        self._places = places
        self._marks = rng.integers(0, 256, (marks, 3), np.uint8)
        self._seen = np.empty((marks, 3), np.uint8)
        self._given = np.empty((marks, 3), np.uint8)
        self._same = np.empty((marks, 3), np.bool_)
        self._shape = (height * scale, width * scale, 3)

    def mark(self, result: Frame) -> None:
        """Write the colours into the buffer that the engine is going to fill."""
        np.add(self._marks, np.uint8(97), out=self._marks)
        result.reshape(-1, 3)[self._places] = self._marks

    def check(self, frame: Frame, result: Frame, made: object) -> None:
        """Raise if the engine's answer is none.

        Args:
            frame: (H, W, 3) uint8, what it was given.
            result: what it should have filled.
            made: what it returned.

        Raises:
            InvalidResultError: with the reason.
        """
        if made is not result:
            self._check_other(made)
        seen = np.take(result.reshape(-1, 3), self._places, axis=0, out=self._seen, mode="clip")
        np.equal(seen, self._marks, out=self._same)
        left = int(np.count_nonzero(self._same.all(axis=1)))
        if left >= 2 or left == len(self._marks):
            raise InvalidResultError(
                f"it has not written the whole picture: {left} of {len(self._marks)} marks are"
                " untouched"
            )
        if seen[0].tolist() != seen[-1].tolist() or (seen != seen[0]).any():
            return
        given = np.take(
            frame.reshape(-1, 3), self._source_places, axis=0, out=self._given, mode="clip"
        )
        if int(given.max()) - int(given.min()) < _SPREAD or _spread(given) < _SPREAD:
            return
        if all(int(result[..., c].min()) == int(result[..., c].max()) for c in range(3)):
            raise InvalidResultError(
                f"the whole picture is one colour, {tuple(seen[0].tolist())}, and the frame is not:"
                " the network's numbers are not finite"
            )

    def _check_other(self, made: object) -> None:
        if not isinstance(made, np.ndarray):
            raise InvalidResultError(f"it returned {type(made).__name__}, wanted its result")
        if made.shape != self._shape:
            raise InvalidResultError(
                f"it returned a picture of shape {made.shape}, wanted {self._shape}"
            )
        if made.dtype.kind == "f" and not np.isfinite(made).all():
            raise InvalidResultError("it returned numbers that are not finite")
        raise InvalidResultError(
            f"it returned another array, of {made.dtype}, wanted the buffer that it was given"
        )


def _spread(colours: NDArray[np.uint8]) -> int:
    """Return the widest range that any channel spans."""
    return int((colours.max(axis=0).astype(np.int16) - colours.min(axis=0)).max())
