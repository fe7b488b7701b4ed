"""SRCNN, the baseline of Johnson et al.'s table: three convolutions after a bicubic enlargement."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.networks._base import FrameNetwork, check_scale
from topcoat.train.networks._bicubic import BicubicUpsampling

_LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the Y of YCbCr (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SRCNNSettings:
    """Settings of :class:`SRCNN`."""

    scale: Literal[2, 4, 8] = 4
    """Output pixels per input pixel, along each axis."""
    width: int = 64
    """Filters of the first convolution; the second has half as many."""
    kernels: Literal["9-1-5", "9-3-5", "9-5-5"] = "9-5-5"
    """Sides of the three convolutions' filters."""

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.kernels not in ("9-1-5", "9-3-5", "9-5-5"):
            raise RecipeError(f"kernels must be 9-1-5, 9-3-5 or 9-5-5, got {self.kernels!r}")
        if not 2 <= self.width <= 512 or self.width % 2:
            raise RecipeError(
                f"width must be an even number of 2 to 512 channels, got {self.width}; try 64"
            )


class SRCNN(FrameNetwork):
    """Bicubic enlargement, then three convolutions on the brightness; colour stays bicubic.

    ``forward``: (B, 3, H, W) RGB in [0, 1] -> (B, 3, H*scale, W*scale) RGB, nominally in [0, 1].
    The published network works on the Y of YCbCr alone; changing Y by d with Cb and Cr kept is
    adding d to R, G and B. Its valid convolutions are kept, after repeating the edges once.

    Source: Dong, Loy, He, Tang 2016 (arXiv:1501.00092) §3, §4.3.

    >>> SRCNN(SRCNNSettings(scale=2))(torch.rand(1, 3, 9, 7)).shape
    torch.Size([1, 3, 18, 14])
    """

    def __init__(self, settings: SRCNNSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        self.bicubic = BicubicUpsampling(settings.scale)
        first, second, third = map(int, settings.kernels.split("-"))
        width = settings.width
        self.body = nn.Sequential(
            nn.Conv2d(1, width, first),
            nn.ReLU(),
            nn.Conv2d(width, width // 2, second),
            nn.ReLU(),
            nn.Conv2d(width // 2, 1, third),
        )
        self.pad = sum(side // 2 for side in (first, second, third))
        self.halo = -(-self.pad // settings.scale) + self.bicubic.reach

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H*scale, W*scale), clipped by the caller."""
        large = self.bicubic(frame)
        red, green, blue = large.split(1, dim=1)
        y = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
        better: Tensor = self.body(F.pad(y, (self.pad,) * 4, mode="replicate"))
        result: Tensor = large + (better - y)
        return result
