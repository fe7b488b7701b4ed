"""Frames as apps have them: checked once per layout and array, then moved to RGB bytes and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import FrameError
from topcoat.runtime.frames import Frame, allocate
from topcoat.runtime.render_pass._layout import Layout, PixelFormat, format_of
from topcoat.runtime.render_pass._pixel_conversions import Pixels, conversion

__all__ = ["Copy", "Layout", "PixelFormat", "PixelPlan", "Pixels"]

_OVERLAP_WORK = 10_000  # of numpy's exact search for a shared byte; a few microseconds


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy that every frame costs."""

    what: str
    """From what to what."""
    bytes: int
    """How many are written, for each frame."""
    reason: str
    """Why it cannot be done without."""

    def __str__(self) -> str:
        return f"{self.what}: {self.bytes / 1e6:.2f} MB ({self.reason})"


class PixelPlan:
    """How arrays of one layout, shape and strides become RGB bytes and back.

    It is made once and holds scratch memory: one thread at a time may use it, and after the first
    calls it allocates nothing. Make one with `of`.
    """

    __slots__ = ("_conversion", "_dtype", "_known_out", "_layout", "_shape", "_strides", "_window")

    def __init__(self, layout: Layout, color: Pixels) -> None:
        self._layout = layout
        self._shape = color.shape
        self._strides = color.strides
        self._dtype: np.dtype[Any] = layout.dtype
        self._window = layout.extent or (0, 0, color.shape[1], color.shape[0])
        self._conversion = conversion(layout)
        self._known_out: tuple[object, ...] | None = None

    @classmethod
    def of(cls, layout: Layout, color: object) -> PixelPlan:
        """Check a frame's array and plan for it and all that are alike.

        Args:
            layout: what its pixels are.
            color: (H, W, C) of the layout's type and channels, any strides.

        Raises:
            FrameError: the array is anything else; the text says what came and what to do.
        """
        return cls(layout, _checked_color(layout, color))

    @property
    def layout(self) -> Layout:
        """What the plan was made for."""
        return self._layout

    @property
    def height(self) -> int:
        """Rows of the picture."""
        return self._window[3]

    @property
    def width(self) -> int:
        """Columns of the picture."""
        return self._window[2]

    @property
    def is_native(self) -> bool:
        """Whether an engine can read the frame where it lies: C-contiguous RGB bytes, whole."""
        layout, contiguous = self._layout, (3 * self.width, 3, 1)
        return (
            layout.format == "rgb8"
            and layout.color_space == "srgb"
            and layout.origin == "top-left"
            and self._shape == (self.height, self.width, 3)
            and all(
                side == 1 or stride == wanted
                for side, stride, wanted in zip(self._shape, self._strides, contiguous, strict=True)
            )
        )

    @property
    def needs_color(self) -> bool:
        """Whether `store` reads the frame: its alpha goes into the result."""
        return self._layout.has_alpha and self._layout.alpha != "drop"

    def accepts(self, color: object) -> bool:
        """Tell whether an array has the type, shape and strides that this was made for."""
        return (
            isinstance(color, np.ndarray)
            and color.strides == self._strides
            and color.shape == self._shape
            and color.dtype == self._dtype
        )

    def adopt(self, layout: Layout) -> bool:
        """Take over a layout that differs in nothing but exposure, which costs far less than anew.

        Returns:
            Whether it did: False leaves all as it was, and another plan is wanted.
        """
        mine = self._layout
        if (
            layout.format != mine.format
            or layout.color_space != mine.color_space
            or layout.origin != mine.origin
            or layout.alpha != mine.alpha
            or layout.extent != mine.extent
        ):
            return False
        if layout.exposure != mine.exposure:
            self._conversion.set_exposure(layout.exposure)
        self._layout = layout
        return True

    def load(self, color: Pixels, rgb: Frame) -> None:
        """Make RGB bytes of a frame.

        Args:
            color: an array that `accepts` accepts.
            rgb: (height, width, 3), C-contiguous; written, top row first.
        """
        with np.errstate(all="ignore"):
            self._conversion.load(self._picture(color, 1), rgb)

    def store(self, rgb: Frame, color: Pixels | None, out: Pixels) -> None:
        """Write a result the way the app wants it.

        Args:
            rgb: (height * scale, width * scale, 3), C-contiguous, top row first.
            color: the frame, whose alpha the result takes, each pixel of it for scale * scale of
                the result's; None where `needs_color` is False.
            out: what `check_out` accepts for this scale. Outside the extent it is left as it is.
        """
        scale = rgb.shape[0] // self.height
        picture = self._picture(out, scale)
        layout = self._layout
        with np.errstate(all="ignore"):
            if not self.needs_color:
                self._conversion.store(rgb, picture, keeps_alpha=False)
                if layout.has_alpha:
                    picture[..., 3] = _opaque(self._dtype)
                return
            if color is None:
                raise FrameError(
                    f"the result takes its alpha from the frame, and None came; pass the frame, or"
                    f' use alpha="drop" for {layout.format}'
                )
            alpha = self._picture(color, 1)[..., 3]
            premultiplied = layout.alpha == "premultiplied"
            if premultiplied:
                _enlarge(alpha, picture[..., 3], scale)
            in_place = np.may_share_memory(color, out)
            self._conversion.store(rgb, picture, keeps_alpha=premultiplied or in_place)
            if not premultiplied:
                _enlarge(alpha, picture[..., 3], scale)

    def copy(self, color: Pixels, out: Pixels, scale: int = 1) -> None:
        """Write the frame itself, bit for bit but for alpha that the layout drops.

        Args:
            color: an array that `accepts` accepts.
            out: what `check_out` accepts for this scale.
            scale: each pixel of the frame fills scale * scale of ``out``.
        """
        source, target = self._picture(color, 1), self._picture(out, scale)
        if scale == 1:
            np.copyto(target, source)
        else:
            for channel in range(source.shape[2]):
                _enlarge(source[..., channel], target[..., channel], scale)
        if self._layout.has_alpha and self._layout.alpha == "drop":
            target[..., 3] = _opaque(self._dtype)

    def new_out(self, scale: int = 1) -> Pixels:
        """Return an array for results: the picture's size alone, whatever the extent; values unset.

        Args:
            scale: of the network.

        Raises:
            FrameMemoryError: there is not enough memory.
        """
        size = (self.height * scale, self.width * scale)
        pixel = self._layout.channels * self._dtype.itemsize
        return allocate((*size, pixel), "the result").view(self._dtype)

    def check_out(self, out: object, scale: int = 1, color: Pixels | None = None) -> None:
        """Refuse what results cannot be written into.

        It must be of the layout's type and channels, writeable, with any strides; as large as the
        picture or, where the layout has an extent, as the whole frame; both times the scale. It
        must not overlap the frame, except that at scale 1 it may be the frame's own array.

        Args:
            out: the app's array.
            scale: of the network.
            color: the frame, if it is at hand: overlap is looked for.

        Raises:
            FrameError: the array is anything else.
        """
        if not isinstance(out, np.ndarray):
            raise self._wrong_out(f"is a {_kind(out)}", scale)
        look = (out.shape, out.strides, out.dtype, out.flags.writeable, scale)
        if look != self._known_out:
            self._check_look(out, scale)
            self._known_out = look
        if color is not None and np.may_share_memory(out, color):
            self._check_overlap(out, scale, color)

    @property
    def load_copies(self) -> tuple[Copy, ...]:
        """What `load` copies; who hands a native frame to the engine where it lies copies none."""
        layout = self._layout
        reasons = []
        if layout.format.startswith("bgr"):
            reasons.append("networks take RGB")
        if layout.has_alpha:
            reasons.append("networks take three channels")
        if self._dtype != np.uint8:
            reasons.append("networks take bytes")
        if layout.color_space == "linear":
            reasons.append("networks take display-encoded values")
        if layout.alpha == "premultiplied":
            reasons.append("networks take colour that is not multiplied by alpha")
        if layout.origin == "bottom-left":
            reasons.append("networks take the top row first")
        if not reasons and not self.is_native:
            reasons.append("networks take rows without gaps")
        if not reasons:
            reasons.append("the app may change its frame while the network reads it")
        size = 3 * self.height * self.width
        return (Copy(f"frame ({layout.format}) to the network's RGB", size, "; ".join(reasons)),)

    def store_copies(self, scale: int = 1) -> tuple[Copy, ...]:
        """Return what `store` copies, for results of a network of this scale."""
        layout = self._layout
        channel = self.height * self.width * scale * scale * self._dtype.itemsize
        reasons = ["the app wants it in an array of its own"]
        if layout.format != "rgb8":
            reasons[0] = f"the app wants {layout.format}"
        if layout.color_space == "linear":
            reasons.append("and linear light")
        if layout.origin == "bottom-left":
            reasons.append("and the bottom row first")
        copies = [Copy(f"result to {layout.format}", 3 * channel, ", ".join(reasons))]
        if self.needs_color:
            copies.append(Copy("alpha of the frame to the result", channel, "the app keeps alpha"))
        elif layout.has_alpha:
            copies.append(Copy("opaque alpha to the result", channel, "the app drops alpha"))
        return tuple(copies)

    # --- helpers

    def _picture(self, array: Pixels, scale: int) -> Pixels:
        """Return the picture in a frame or an output, top row first: a view."""
        x, y, width, height = self._window
        size = (height * scale, width * scale)
        if array.shape[:2] != size:
            x, y = x * scale, y * scale
            array = array[y : y + size[0], x : x + size[1]]
        return array[::-1] if self._layout.origin == "bottom-left" else array

    def _out_shapes(self, scale: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        channels = self._layout.channels
        height, width = self._shape[:2]
        return (
            (self.height * scale, self.width * scale, channels),
            (height * scale, width * scale, channels),
        )

    def _check_look(self, out: NDArray[Any], scale: int) -> None:
        if out.dtype != self._dtype:
            raise self._wrong_out(f"has dtype {out.dtype}", scale)
        if out.shape not in self._out_shapes(scale):
            raise self._wrong_out(f"has shape {out.shape}", scale)
        if not out.flags.writeable:
            raise self._wrong_out("is read-only", scale)

    def _check_overlap(self, out: Pixels, scale: int, color: Pixels) -> None:
        mine = self._picture(color, 1)
        theirs = self._picture(out, scale)
        if (
            scale == 1
            and theirs.strides == mine.strides
            and theirs.__array_interface__["data"] == mine.__array_interface__["data"]
        ):
            return
        # Exact, or True if that takes too long; numpy's stub knows two of the numbers.
        if np.may_share_memory(theirs, mine, max_work=_OVERLAP_WORK):  # type: ignore[arg-type]
            raise self._wrong_out(
                "overlaps the frame in memory (only the frame's own array may, at scale 1)", scale
            )

    def _wrong_out(self, came: str, scale: int) -> FrameError:
        shape, whole = self._out_shapes(scale)
        either = "" if whole == shape else f" or {whole}"
        return FrameError(
            f"out {came}, wanted a writeable array of {self._dtype}, {shape}{either}; make one with"
            f" numpy.empty({shape}, numpy.{self._dtype})"
        )


def _enlarge(plane: Pixels, out: Pixels, scale: int) -> None:
    """Repeat each value of (H, W) scale * scale times."""
    for row in range(scale):
        for column in range(scale):
            np.copyto(out[row::scale, column::scale], plane)


def _opaque(dtype: np.dtype[Any]) -> int:
    return 255 if dtype == np.uint8 else 1


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


# --- what is wrong with a frame


def _checked_color(layout: Layout, color: object) -> Pixels:
    name = layout.format
    want = f"layout {name} wants {layout.dtype}, (H, W, {layout.channels})"
    if not isinstance(color, np.ndarray):
        how = "numpy.asarray(frame)"
        if hasattr(color, "__dlpack__"):
            how = "topcoat.runtime.from_dlpack(frame)"
        elif _is_buffer(color):
            how = "topcoat.runtime.from_buffer(frame, width, height, layout)"
        raise FrameError(f"frame is a {_kind(color)}, {want} in a numpy array; pass {how}")
    if color.dtype != layout.dtype:
        raise FrameError(f"frame is {color.dtype}, {want}; {_dtype_advice(layout, color)}")
    if color.ndim != 3 or color.shape[2] != layout.channels:
        raise FrameError(f"frame has shape {color.shape}, {want}; {_shape_advice(layout, color)}")
    if 0 in color.shape:
        raise FrameError(
            f"frame has shape {color.shape}, which holds no pixel, {want}; pass a real frame"
        )
    if layout.extent is not None:
        x, y, width, height = layout.extent
        rows, columns = color.shape[:2]
        if x + width > columns or y + height > rows:
            raise FrameError(
                f"the layout's extent is {width}x{height} pixels at ({x}, {y}), but the frame is"
                f" {columns}x{rows}; pass an extent inside of it (x, y, width, height)"
            )
    return color


def _is_buffer(value: object) -> bool:
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _dtype_advice(layout: Layout, color: NDArray[Any]) -> str:
    wanted, came = layout.dtype, color.dtype
    if known := format_of(layout.channel_order, came):
        return f'pass Layout(format="{known}")'
    if came.kind in "ui" and came.itemsize == 4 and color.ndim == 2 and layout.format[3:] == "a8":
        return "if they are packed pixels pass frame.view(numpy.uint8).reshape(*frame.shape, 4)"
    if came.kind == "f":
        if wanted.kind == "f":
            return f"pass frame.astype(numpy.{wanted})"
        return f'pass frame.astype(numpy.float32) and Layout(format="{layout.channel_order}32f")'
    if came.kind == "u" and came.itemsize == 2:
        if wanted == np.float16:
            return "if they are the bits of float16 pass frame.view(numpy.float16)"
        if wanted == np.uint8:
            return "pass (frame >> 8).astype(numpy.uint8)"
    if came == np.bool_:
        one = " * 255" if wanted == np.uint8 else ""
        return f"pass frame.astype(numpy.{wanted}){one}"
    return f"pass frame.astype(numpy.{wanted}) if its values are in the range of {layout.format}"


def _shape_advice(layout: Layout, color: NDArray[Any]) -> str:
    if color.ndim == 2:
        return "pass numpy.repeat(frame[..., None], 3, axis=-1) for grey, without alpha"
    if color.ndim == 4:
        return "pass the frames of a batch one by one"
    if color.ndim == 3:
        colours = layout.channel_order[:3]
        for order in (colours, colours + "a"):
            if len(order) == color.shape[2] and (known := format_of(order, color.dtype)):
                return f'pass Layout(format="{known}")'
        if color.shape[0] == layout.channels:
            return "its channels come first: pass numpy.moveaxis(frame, 0, -1)"
    return f"pass it with {layout.channels} channels last"
