"""What a frame is, and how one of any size is made to fit a network's size rule.

A frame is uint8, (H, W, 3) or (N, H, W, 3), RGB, C-contiguous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import FrameError, FrameMemoryError
from topcoat.runtime.bundle import SizeRule

Frame = NDArray[np.uint8]


def check_frame(frame: object, channels: int = 3) -> Frame:
    """Return the frame as a batch (N, H, W, channels), without a copy.

    Args:
        frame: uint8, (H, W, channels) or (N, H, W, channels), C-contiguous, nothing zero-sized.
        channels: how many channels the model takes.

    Returns:
        A view of the same memory with 4 dimensions.

    Raises:
        FrameError: the frame is anything else; the text says what came and what to do.

    >>> check_frame(np.zeros((4, 6, 3), np.uint8)).shape
    (1, 4, 6, 3)
    """
    if not isinstance(frame, np.ndarray):
        raise FrameError(
            f"frame is a {type(frame).__module__}.{type(frame).__name__}, wanted a numpy array of"
            " uint8, (H, W, 3) or (N, H, W, 3); convert it with numpy.asarray(frame)"
        )
    if frame.dtype != np.uint8:
        raise FrameError(
            f"frame has dtype {frame.dtype}, wanted uint8 (0..255); {_dtype_advice(frame.dtype)}"
        )
    if frame.ndim not in {3, 4}:
        raise FrameError(
            f"frame has shape {frame.shape}, wanted (H, W, {channels}) or (N, H, W, {channels});"
            + (
                " make a grey frame RGB with numpy.repeat(frame[..., None], 3, axis=-1)"
                if frame.ndim == 2
                else " reshape it"
            )
        )
    if 0 in frame.shape:
        raise FrameError(f"frame has shape {frame.shape}, which holds no pixel; pass a real frame")
    if frame.shape[-1] != channels:
        raise FrameError(
            f"frame has shape {frame.shape}, {frame.shape[-1]} channels where {channels} (RGB, last"
            f" axis) are wanted; {_channel_advice(frame, channels)}"
        )
    if not frame.flags.c_contiguous:
        raise FrameError(
            f"frame of shape {frame.shape} is not C-contiguous (strides {frame.strides}); pass"
            " numpy.ascontiguousarray(frame)"
        )
    return frame if frame.ndim == 4 else frame[None]


def check_out(out: object, shape: tuple[int, ...], frame: Frame) -> Frame:
    """Return the caller's output buffer as a batch, without a copy.

    Args:
        out: uint8 array of exactly ``shape``, C-contiguous, writeable, apart from ``frame``.
        shape: the shape of the output for this frame, with as many dimensions as the frame has.
        frame: the input; its memory must not overlap the buffer's.

    Raises:
        FrameError: the buffer is anything else.
    """
    want = f"wanted a writeable C-contiguous uint8 array of shape {shape}"
    make = f"make one with numpy.empty({shape}, numpy.uint8)"
    if not isinstance(out, np.ndarray):
        raise FrameError(f"out is a {type(out).__name__}, {want}; {make}")
    if out.dtype != np.uint8:
        raise FrameError(f"out has dtype {out.dtype}, {want}; {make}")
    if out.shape != shape:
        raise FrameError(f"out has shape {out.shape}, {want}; {make}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        what = "read-only" if out.flags.c_contiguous else "not C-contiguous"
        raise FrameError(f"out is {what}, {want}; {make}")
    if np.may_share_memory(out, frame):
        # The engine may write its output while it still reads its input.
        raise FrameError(f"out overlaps the frame in memory, wanted a buffer of its own; {make}")
    return out if out.ndim == 4 else out[None]


def allocate(shape: tuple[int, ...], what: str) -> Frame:
    """Return a new uint8 array whose values are not set.

    Args:
        shape: (..., H, W, C).
        what: what it is for, as an error begins.

    Raises:
        FrameMemoryError: there is not enough memory.
    """
    try:
        return np.empty(shape, np.uint8)
    # A shape beyond what an address can reach is a ValueError.
    except (MemoryError, ValueError) as error:
        size = math.prod(shape) / 1e9
        raise FrameMemoryError(
            f"{what} of {shape[-2]}x{shape[-3]} pixels"
            + (f", {shape[0]} of them," if len(shape) == 4 and shape[0] > 1 else "")
            + f" would take {size:.1f} GB, more memory than this process can get; give a smaller"
            " frame, or cut it into parts"
        ) from error


def fit_size(height: int, width: int, rule: SizeRule) -> tuple[int, int]:
    """Return the height and width that the engine is given for a frame of this size.

    Raises:
        FrameError: the frame is larger than the network takes.

    >>> fit_size(5, 30, SizeRule(multiple=4, min=16, max=None, pad="edge"))
    (16, 32)
    """
    fitted = (
        max(rule.min, -(-height // rule.multiple) * rule.multiple),
        max(rule.min, -(-width // rule.multiple) * rule.multiple),
    )
    if rule.max is not None and max(fitted) > rule.max:
        raise FrameError(
            f"frame is {width}x{height} pixels, this network takes at most {rule.max} on each side;"
            " scale the frame down"
        )
    return fitted


@dataclass(slots=True)
class PadBuffers:
    """The two arrays between a frame that does not fit and the engine; made once per frame size."""

    source: Frame
    """(N, fitted H, fitted W, C): the frame and its repeated last row and column."""
    result: Frame
    """(N, fitted H * scale, fitted W * scale, C): what the engine writes."""

    @classmethod
    def allocate(cls, batch: int, size: tuple[int, int], channels: int, scale: int) -> PadBuffers:
        """Make the buffers for a batch of frames whose fitted (height, width) is ``size``."""
        height, width = size
        return cls(
            source=allocate((batch, height, width, channels), "the engine's input"),
            result=allocate(
                (batch, height * scale, width * scale, channels), "the engine's output"
            ),
        )

    def fill(self, frames: Frame) -> None:
        """Copy the frames in and repeat the last column and row to the right and below.

        Args:
            frames: (N, H, W, C), not larger than the buffer.
        """
        height, width = frames.shape[1:3]
        self.source[:, :height, :width] = frames
        self.source[:, :height, width:] = frames[:, :, -1:]
        # Rows last, from the buffer: the corner then repeats the last pixel.
        self.source[:, height:] = self.source[:, height - 1 : height]

    def crop_into(self, out: Frame, top: int = 0, left: int = 0) -> None:
        """Copy a part of the result into ``out``, (N, H * scale, W * scale, C).

        Args:
            out: where to; its size is that of the part.
            top: the first row of the part, in output pixels.
            left: its first column.
        """
        height, width = out.shape[1:3]
        out[...] = self.result[:, top : top + height, left : left + width]


def _dtype_advice(dtype: np.dtype) -> str:
    if dtype.kind == "f":
        return "for values in 0..1 pass (frame * 255).round().clip(0, 255).astype(numpy.uint8)"
    if dtype == np.uint16:
        return "pass (frame >> 8).astype(numpy.uint8)"
    if dtype == np.bool_:
        return "pass frame.astype(numpy.uint8) * 255"
    return "pass frame.astype(numpy.uint8) if its values are 0..255"


def _channel_advice(frame: Frame, channels: int) -> str:
    last = frame.shape[-1]
    if last == 4:
        return "drop alpha with numpy.ascontiguousarray(frame[..., :3])"
    if last == 1:
        return "make a grey frame RGB with numpy.repeat(frame, 3, axis=-1)"
    if frame.shape[-3] == channels:
        return (
            "the channels come first: pass numpy.ascontiguousarray(numpy.moveaxis(frame, -3, -1))"
        )
    return "pass an RGB frame"
