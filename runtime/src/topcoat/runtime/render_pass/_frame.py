"""One frame as the application has it, and its side inputs as the pass uses them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.render_pass._layout import Layout
from topcoat.runtime.render_pass._warp import expand

FieldOf = NDArray[np.float32]

COARSEST = 8
"""A motion field may have this many times fewer vectors than pixels on each side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Where the content of every pixel was in the frame before."""

    data: NDArray[Any]
    """(h, w, 2) float16 or float32, x then y, for every pixel or one vector for 2x2 up to 8x8 of
    them. Rows in the same order as those of the colour; of a layout with an ``extent``, the field
    is that of the extent."""
    scale: tuple[float, float] = (1.0, 1.0)
    """What x and y are multiplied by to become pixels of the colour: (width, height) for vectors in
    texture coordinates, (width / 2, height / 2) for normalised device coordinates."""
    direction: Literal["to-previous", "from-previous"] = "to-previous"
    """``to-previous``: previous position minus present one. ``from-previous``: the opposite, how
    far things have moved, which engines often call velocity."""
    y: Literal["up", "down"] | None = None
    """Where positive y points. None: as the rows of the colour go, which is up for the origin
    ``bottom-left`` and down for ``top-left``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How far away the content of every pixel is."""

    data: NDArray[Any]
    """(H, W) or (H, W, 1) float16 or float32, for every pixel; rows as those of the colour."""
    inverted: bool = False
    """Reversed z: 1 at the near plane, 0 at the far one. False: the other way round."""
    linear: bool = False
    """Distance from the camera in any unit, greater than 0, instead of a depth buffer's 0..1."""


@dataclass(slots=True, kw_only=True)
class RenderFrame:
    """One frame and what the renderer knows about it. It may be changed and given again."""

    color: NDArray[Any]
    """(H, W, C), in the ``layout``. It is read during the call alone."""
    layout: Layout = Layout()  # noqa: RUF009 - frozen
    motion: Motion | None = None
    depth: Depth | None = None
    mask: NDArray[np.uint8] | None = None
    """(H, W): how strongly each pixel is styled, 0 to 255; rows as those of the colour. It goes
    before the mask of ``Pass.set``."""
    index: int | None = None
    """The application's number of this frame, one more than the last. None: counted here."""
    reset: bool = False
    """This frame has nothing to do with the last one: a camera cut."""


class SideInputs:
    """Motion, depth and mask of frames of one size, brought into the pass's own form.

    What does not fit costs nobody the picture: ``load_*`` then returns why as one line, and the
    frame goes without. Looking at shape and type is all that is done per frame.

    Args:
        height: of the picture.
        width: likewise.
        bottom_up: whether the first row in memory is the lowest.
    """

    def __init__(self, height: int, width: int, *, bottom_up: bool) -> None:
        self._height = height
        self._width = width
        self._bottom_up = bottom_up
        self._coarse: FieldOf | None = None

    def load_motion(self, motion: Motion, out: FieldOf) -> None:
        """Write the motion in pixels, to-previous, y down, first row on top.

        Args:
            motion: with which :meth:`motion_problem` finds nothing wrong.
            out: (H, W, 2) float32.
        """
        data = motion.data
        rows, columns = data.shape[:2]
        target = out
        if (rows, columns) != (self._height, self._width):
            if self._coarse is None or self._coarse.shape[:2] != (rows, columns):
                self._coarse = np.empty((rows, columns, 2), np.float32)
            target = self._coarse
        sign = 1.0 if motion.direction == "to-previous" else -1.0
        y_up = self._bottom_up if motion.y is None else motion.y == "up"
        source = data[::-1] if self._bottom_up else data
        # Huge and tiny vectors are looked at where they are used, whatever the application's own
        # settings for such numbers are.
        with np.errstate(all="ignore"):
            for axis, factor in ((0, sign), (1, -sign if y_up else sign)):
                np.multiply(
                    source[..., axis],
                    np.float32(motion.scale[axis] * factor),
                    out=target[..., axis],
                    dtype=np.float32,
                )
        if target is not out:
            expand(target, out)

    def load_depth(self, depth: Depth, out: FieldOf) -> str | None:
        """Write nearness: greater is nearer, and its ratios mean ratios of distance.

        Args:
            depth: of the application.
            out: (H, W) float32.

        Returns:
            None, or why it cannot be used; ``out`` is then undefined.
        """
        if problem := self._depth_problem(depth):
            return problem
        data = depth.data
        flat = data[..., 0] if data.ndim == 3 else data
        source = flat[::-1] if self._bottom_up else flat
        with np.errstate(all="ignore"):
            if depth.linear:
                np.divide(np.float32(1.0), source, out=out, dtype=np.float32)
            elif depth.inverted:
                np.copyto(out, source)
            else:
                np.subtract(np.float32(1.0), source, out=out, dtype=np.float32)
        return None

    def load_mask(self, mask: object, out: NDArray[np.uint8]) -> str | None:
        """Write the mask, first row on top; ``out`` is (H, W) uint8."""
        want = f"wanted uint8 of shape ({self._height}, {self._width}), as large as the picture"
        if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8:
            came = f"dtype {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
            return f"the mask is {came}, {want}; for 0..1 pass (mask * 255).astype(numpy.uint8)"
        if mask.shape != (self._height, self._width):
            return f"the mask has shape {mask.shape}, {want}; frames go without it"
        np.copyto(out, mask[::-1] if self._bottom_up else mask)
        return None

    def motion_problem(self, motion: object) -> str | None:
        """Return why a frame's motion cannot be used, or None."""
        if not isinstance(motion, Motion):
            return (
                f"motion is {type(motion).__name__}, wanted Motion(data=array); frames go without"
            )
        data = motion.data
        if not isinstance(data, np.ndarray) or data.dtype not in (np.float16, np.float32):
            came = f"dtype {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
            return (
                f"motion is {came}, wanted a numpy array of float16 or float32, (h, w, 2); frames"
                " go without it"
            )
        if data.ndim != 3 or data.shape[2] != 2 or 0 in data.shape:
            return (
                f"motion has shape {data.shape}, wanted (h, w, 2), x then y, for frames of"
                f" {self._width}x{self._height}; frames go without it"
            )
        rows, columns = data.shape[:2]
        if not any(
            rows in (self._height // k, -(-self._height // k))
            and columns in (self._width // k, -(-self._width // k))
            for k in range(1, COARSEST + 1)
        ):
            return (
                f"motion is {columns}x{rows} vectors for a frame of {self._width}x{self._height}"
                " pixels, wanted one for each pixel or for each block of 2x2 to 8x8; resize it, or"
                " leave it out (frames go without it)"
            )
        if motion.direction not in ("to-previous", "from-previous"):
            return (
                f"motion direction is {motion.direction!r}, wanted to-previous or from-previous;"
                " frames go without it"
            )
        if motion.y not in (None, "up", "down"):
            return f"motion y is {motion.y!r}, wanted up, down or None; frames go without it"
        if not _is_scale(motion.scale):
            return (
                f"motion scale is {motion.scale}, wanted two numbers other than 0 that make pixels"
                " of the vectors; frames go without it"
            )
        return None

    def _depth_problem(self, depth: object) -> str | None:
        if not isinstance(depth, Depth):
            return f"depth is {type(depth).__name__}, wanted Depth(data=array); frames go without"
        data = depth.data
        if not isinstance(data, np.ndarray) or data.dtype not in (np.float16, np.float32):
            came = f"dtype {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
            return (
                f"depth is {came}, wanted a numpy array of float16 or float32, (H, W); frames go"
                " without it"
            )
        shape = data.shape[:2] if data.ndim == 3 and data.shape[2] == 1 else data.shape
        if shape != (self._height, self._width):
            return (
                f"depth has shape {data.shape}, wanted ({self._height}, {self._width}), as large"
                " as the picture; frames go without it"
            )
        return None


def _is_scale(scale: object) -> bool:
    """Whether it is two finite numbers other than 0."""
    try:
        numbers = [float(value) for value in scale]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return False
    return len(numbers) == 2 and all(math.isfinite(one) and one != 0 for one in numbers)
