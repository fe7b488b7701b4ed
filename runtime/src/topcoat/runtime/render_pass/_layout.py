"""How an app's pixels lie in memory and what their values mean."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from topcoat.runtime._errors import FrameError

PixelFormat = Literal[
    "rgb8", "bgr8", "rgba8", "bgra8",
    "rgb16f", "bgr16f", "rgba16f", "bgra16f",
    "rgb32f", "bgr32f", "rgba32f", "bgra32f",
]  # fmt: skip
ColorSpace = Literal["srgb", "linear"]
Origin = Literal["top-left", "bottom-left"]
Alpha = Literal["keep", "premultiplied", "drop"]

_DTYPES: dict[str, type[np.uint8 | np.float16 | np.float32]] = {
    "8": np.uint8,
    "16f": np.float16,
    "32f": np.float32,
}
_EXPOSURES = (1e-9, 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What an app's pixels are; the default is what networks take: RGB bytes, top row first.

    Row pitch is no part of it: an array has it in its strides.

    Raises:
        FrameError: a field is not as described, or two of them contradict each other.

    >>> Layout(format="bgra16f", color_space="linear", exposure=0.5).channels
    4
    """

    format: PixelFormat = "rgb8"
    """Order of the channels, and 8-bit, float16 or float32 for each; floats are 0..1."""
    color_space: ColorSpace = "srgb"
    """"srgb": display-encoded values. "linear": linear light, which is encoded by the sRGB transfer
    function (IEC 61966-2-1) for the network and decoded after it."""
    exposure: float = 1.0
    """What linear light is multiplied by before it is encoded, and divided by after it is decoded;
    what lies outside 0..1 in between is clipped. From 1e-9 to 1e9."""
    origin: Origin = "top-left"
    """Which corner of the picture the first row of the array has; "bottom-left" in OpenGL."""
    alpha: Alpha = "keep"
    """Formats with alpha. "keep": straight alpha, copied from the frame bit for bit.
    "premultiplied": copied likewise; colour, in its own colour space, is divided by alpha for the
    network and multiplied after it, and is 0 where alpha is 0. "drop": the result is opaque."""
    extent: tuple[int, int, int, int] | None = None
    """(x, y, width, height) of the picture in columns and rows of the array as it lies in memory;
    None: all of it."""

    def __post_init__(self) -> None:
        _check_choice("format", self.format, get_args(PixelFormat))
        _check_choice("color_space", self.color_space, get_args(ColorSpace))
        _check_choice("origin", self.origin, get_args(Origin))
        _check_choice("alpha", self.alpha, get_args(Alpha))
        low, high = _EXPOSURES
        if isinstance(self.exposure, bool) or not isinstance(
            self.exposure, int | float | np.floating
        ):
            raise FrameError(
                f"Layout's exposure is {self.exposure!r}, wanted a number; pass 1.0 for none"
            )
        if not (math.isfinite(self.exposure) and low <= self.exposure <= high):
            raise FrameError(
                f"Layout's exposure is {self.exposure}, wanted {low:g} to {high:g}; pass the factor"
                " that brings the frame's white to 1.0"
            )
        object.__setattr__(self, "exposure", float(self.exposure))
        if self.color_space == "srgb" and self.exposure != 1.0:
            raise FrameError(
                f"Layout has exposure {self.exposure:g} for display-encoded values, which have"
                ' none; pass color_space="linear", or leave exposure out'
            )
        if self.alpha == "premultiplied" and not self.has_alpha:
            raise FrameError(
                f'Layout says alpha="premultiplied", but {self.format} has no alpha; pass'
                f' format="{_with_alpha(self.format)}", or leave alpha out'
            )
        if self.extent is not None:
            object.__setattr__(self, "extent", _checked_extent(self.extent))

    @property
    def has_alpha(self) -> bool:
        """Whether pixels have a fourth channel."""
        return "a" in self.format

    @property
    def channels(self) -> int:
        """3, or 4 with alpha."""
        return 4 if self.has_alpha else 3

    @property
    def dtype(self) -> np.dtype[np.uint8 | np.float16 | np.float32]:
        """The type of one channel."""
        return np.dtype(_DTYPES[self.format.removeprefix(self.channel_order)])

    @property
    def channel_order(self) -> str:
        """Names of a pixel's channels in memory, "bgra" for example."""
        return self.format.rstrip("0123456789f")

    @property
    def order(self) -> tuple[int, int, int]:
        """Which channel of a pixel is red, which green and which blue."""
        return (2, 1, 0) if self.format.startswith("bgr") else (0, 1, 2)


def format_of(order: str, dtype: np.dtype[np.generic]) -> PixelFormat | None:
    """Return the format whose channels are ``order`` ("bgra") and of this type, if there is one."""
    for suffix, kind in _DTYPES.items():
        if dtype == kind:
            for known in get_args(PixelFormat):
                if known == order + suffix:
                    return known  # type: ignore[no-any-return]
    return None


def _with_alpha(name: str) -> str:
    return name.replace("rgb", "rgba").replace("bgr", "bgra")


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise FrameError(
            f"Layout's {field} is {value!r}, wanted one of {', '.join(choices)}; pass"
            f' {field}="{choices[0]}" or another of them'
        )


def _checked_extent(extent: object) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (operator.index(side) for side in extent)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        x = y = width = height = -1
    if x < 0 or y < 0 or width < 1 or height < 1:
        raise FrameError(
            f"Layout's extent is {extent!r}, wanted four whole numbers (x, y, width, height), x and"
            " y from 0, width and height from 1; leave it out for the whole frame"
        )
    return x, y, width, height
