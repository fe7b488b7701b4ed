"""Lay a styled picture over the frame that it was made of: strength, mask and blend.

Integer arithmetic throughout, so that the ends are exact: strength 0 is the frame bit for bit,
strength 1 the blended picture, and where the two are equal nothing changes at any strength.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import FrameError, PassError
from topcoat.runtime.frames import Frame

Blend = Literal["normal", "luminance", "colour"]
"""What of the styled picture is shown: all of it; its luma on the frame's own colours; or its
colours at the frame's own luma."""

BLENDS: tuple[Blend, ...] = ("normal", "luminance", "colour")

_WHOLE = 256  # The weight of the blended picture is counted in 256ths.
_PIXELS = 8192  # Of one block: 48 KiB as 16-bit RGB, so that a block's passes stay in the L2 cache.
# BT.601's 0.299, 0.587 and 0.114 in 128ths: a weighted difference of two pixels fits in 16 bits.
_LUMA = (np.int16(38), np.int16(75), np.int16(15))
_LUMA_SHIFT = np.int16(7)
_LUMA_HALF = np.int16(64)


class Compositor:
    """Composites pictures of one size; owns the memory for it, so only one thread may use it.

    Args:
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        if height < 1 or width < 1:
            raise FrameError(f"pictures of {width}x{height} hold no pixel; pass real sizes")
        self._shape = (height, width)
        self._count = height * width
        size = min(_PIXELS, self._count)
        self._frame = np.empty((size, 3), np.int16)
        self._styled = np.empty((size, 3), np.int16)
        self._weights = np.empty((size, 3), np.uint16)
        self._wide = np.empty(size, np.uint32)
        self._luma = np.empty(size, np.int16)
        self._term = np.empty(size, np.int16)

    def compose(
        self,
        frame: Frame,
        styled: Frame,
        out: Frame,
        *,
        strength: float,
        mask: NDArray[np.uint8] | None = None,
        blend: Blend = "normal",
    ) -> None:
        """Write ``frame + (blended - frame) * strength * mask / 255`` into ``out``, rounded.

        ``blended`` is ``styled``; or, with d the difference of the pictures' BT.601 lumas (styled
        less frame, rounded), ``frame + d`` for "luminance" and ``styled - d`` for "colour", on
        all three channels and clipped to 0..255.

        Args:
            frame: uint8, (H, W, 3), RGB, C-contiguous; enlarged to the size of ``styled`` already.
            styled: likewise.
            out: likewise; may be ``styled`` or ``frame`` itself, but not overlap them otherwise.
            strength: 0 to 1; strength and mask together are rounded to whole 256ths, which keeps
                every value within one step of the exact one (two and a half where lumas are
                compared: their weights are 128ths).
            mask: uint8, (H, W), C-contiguous: 0 shows the frame, 255 all of ``strength``. None is
                255 everywhere.
            blend: "normal", "luminance" or "colour".

        Raises:
            FrameError: an array has a wrong shape, type or layout; ``out`` is untouched.
            PassError: ``strength`` or ``blend`` is none of those; ``out`` is untouched.
        """
        if not 0 <= strength <= 1:  # also NaN
            raise PassError(f"strength is {strength}, wanted 0 (the frame) to 1 (all styled)")
        if blend not in BLENDS:
            raise PassError(f"blend is {blend!r}, wanted one of {', '.join(BLENDS)}")
        height, width = self._shape
        for name, array in (("frame", frame), ("styled", styled), ("out", out)):
            _check(name, array, (height, width, 3))
        if mask is not None:
            _check("mask", mask, self._shape)
        whole = round(strength * _WHOLE)
        if whole == 0:
            if out is not frame:
                np.copyto(out, frame)
            return
        if whole == _WHOLE and mask is None and blend == "normal":
            if out is not styled:
                np.copyto(out, styled)
            return
        frames = frame.reshape(-1, 3)
        styles = styled.reshape(-1, 3)
        outs = out.reshape(-1, 3)
        masks = None if mask is None else mask.reshape(-1)
        for start in range(0, self._count, _PIXELS):
            stop = min(start + _PIXELS, self._count)
            size = stop - start
            below = self._frame[:size]
            above = self._styled[:size]
            np.copyto(below, frames[start:stop])
            np.copyto(above, styles[start:stop])
            if blend != "normal":
                self._blend(below, above, blend)
            if masks is not None:
                _mix(below, above, self._masked(masks[start:stop], strength))
            elif whole < _WHOLE:
                _mix(below, above, np.uint16(whole))
            np.copyto(outs[start:stop], above, casting="unsafe")

    def _blend(self, below: NDArray[np.int16], above: NDArray[np.int16], blend: Blend) -> None:
        """Turn the styled picture in ``above`` into the blended one."""
        size = len(below)
        luma = self._luma[:size]
        term = self._term[:size]
        # The weights are not needed yet, so their memory holds the difference.
        difference = self._weights.view(np.int16)[:size]
        np.subtract(above, below, out=difference)
        np.multiply(difference[:, 0], _LUMA[0], out=luma)
        for channel in (1, 2):
            np.multiply(difference[:, channel], _LUMA[channel], out=term)
            np.add(luma, term, out=luma)
        np.add(luma, _LUMA_HALF, out=luma)
        np.right_shift(luma, _LUMA_SHIFT, out=luma)
        # Written out for three channels: an inner loop of length three is far slower than a copy.
        for channel in range(3):
            np.copyto(difference[:, channel], luma)
        if blend == "luminance":
            np.add(below, difference, out=above)
        else:
            np.subtract(above, difference, out=above)
        np.clip(above, np.int16(0), np.int16(255), out=above)

    def _masked(self, mask: NDArray[np.uint8], strength: float) -> NDArray[np.uint16]:
        """Return strength times mask in 256ths, rounded once, for every channel."""
        size = len(mask)
        one = self._wide[:size]
        weights = self._weights[:size]
        np.copyto(one, mask)
        np.multiply(one, np.uint32(round(strength * _WHOLE / 255 * 65536)), out=one)
        np.add(one, np.uint32(32768), out=one)
        np.right_shift(one, np.uint32(16), out=one)
        for channel in range(3):
            np.copyto(weights[:, channel], one, casting="unsafe")
        return weights


def _mix(
    below: NDArray[np.int16], above: NDArray[np.int16], weight: NDArray[np.uint16] | np.uint16
) -> None:
    """Replace ``above`` by ``below + (above - below) * weight / 256``, rounded.

    In arithmetic modulo 65536: the difference may be negative, but the sum that is shifted back
    lies within 0..65408.
    """
    low = below.view(np.uint16)
    high = above.view(np.uint16)
    np.subtract(high, low, out=high)
    np.multiply(high, weight, out=high)
    np.left_shift(low, np.uint16(8), out=low)
    np.add(low, np.uint16(128), out=low)
    np.add(high, low, out=high)
    np.right_shift(high, np.uint16(8), out=high)


def _check(name: str, array: object, shape: tuple[int, ...]) -> None:
    if (
        isinstance(array, np.ndarray)
        and array.shape == shape
        and array.dtype == np.uint8
        and array.flags.c_contiguous
    ):
        return
    if isinstance(array, np.ndarray):
        layout = "" if array.flags.c_contiguous else ", not C-contiguous"
        came = f"{array.dtype} of shape {array.shape}{layout}"
    else:
        came = f"a {type(array).__name__}"
    raise FrameError(f"{name} is {came}, wanted C-contiguous uint8 of shape {shape}")
