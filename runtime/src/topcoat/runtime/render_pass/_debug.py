"""Pictures of what a pass works with, for looking for mistakes in motion vectors and gating."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import PassError
from topcoat.runtime.render_pass._inputs import Inputs
from topcoat.runtime.render_pass._pipeline import Pipeline
from topcoat.runtime.render_pass._worker import Slot

LONGEST = 16.0
"""Motion of so many pixels, and more, is drawn at full brightness."""


def debug_view(
    what: str, inputs: Inputs, shown: Slot | None, pipeline: Pipeline | None
) -> NDArray[np.uint8]:
    """Return a picture; see :meth:`Pass.debug_view`.

    Raises:
        PassError: there is none yet, or no such one.
    """
    if what == "input":
        if shown is not None and shown.source is shown.own_input and shown.loaded:
            return shown.own_input.copy()
        if shown is not None:
            raise PassError(
                "the input was read in the application's own memory, and nothing was kept of it;"
                " look at the frame that was presented"
            )
    elif what == "motion":
        motions = inputs.motions
        field = None if motions is None else motions.latest(inputs.sequence)
        if field is not None:
            return motion_picture(field)
    elif what == "history":
        weight = None if pipeline is None else pipeline.history_weight
        if weight is not None:
            return weight_picture(weight)
    else:
        raise PassError(f"debug_view of {what!r}, wanted input, motion or history")
    raise PassError(f"no frame has come yet of which the {what} could be shown")


def motion_picture(field: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw a motion field: where content goes is the hue, how far the brightness.

    Args:
        field: (H, W, 2) float32, pixels, to-previous.

    Returns:
        (H, W, 3) uint8. Still is black; to the right is red, up is yellow-green, to the left cyan,
        down violet.
    """
    with np.errstate(all="ignore"):
        x, y = -field[..., 0], field[..., 1]  # forwards, and y up
        hue = np.nan_to_num(np.arctan2(y, x) / (2 * np.pi)) % 1.0
        length = np.nan_to_num(np.hypot(x, y), posinf=LONGEST)
    value = np.minimum(length / LONGEST, 1.0) ** 0.5
    phase = (hue[..., None] + np.array([0.0, 2 / 3, 1 / 3])) % 1.0
    rgb = np.clip(np.abs(phase * 6 - 3) - 1, 0, 1) * value[..., None]
    picture: NDArray[np.uint8] = (rgb * 255 + 0.5).astype(np.uint8)
    return picture


def weight_picture(weight: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw how much history went into each pixel: (H, W) to (H, W, 3), white is all."""
    return np.repeat(weight[..., None], 3, axis=-1)
