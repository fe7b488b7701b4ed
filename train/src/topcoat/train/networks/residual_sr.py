"""A super-resolution network that adds detail to a bicubic enlargement."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.networks._base import FrameNetwork, check_scale
from topcoat.train.networks._bicubic import BicubicUpsampling

_MEAN_SIDE = 7
"""Side of the window whose mean is taken off the input, in pixels; odd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualSRSettings:
    """Settings of :class:`ResidualSR`."""

    scale: Literal[2, 4, 8] = 4
    """Output pixels per input pixel, along each axis."""
    width: int = 48
    """Channels; time grows with its square."""
    blocks: int = 5
    """Residual blocks."""

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if not 1 <= self.width <= 512:
            raise RecipeError(f"width must be 1 to 512 channels, got {self.width}; try 48")
        if not 0 <= self.blocks <= 64:
            raise RecipeError(f"blocks must be 0 to 64, got {self.blocks}; try 5")


class ResidualSR(FrameNetwork):
    """Bicubic enlargement plus detail from 3×3 convolutions at low resolution and a pixel shuffle.

    ``forward``: (B, 3, H, W) RGB in [0, 1] -> (B, 3, H*scale, W*scale) RGB, nominally in [0, 1].

    A pixel shuffle prints a grid of its own period into smooth areas, because nothing ties its
    phases to each other. Here nothing can be printed there: the convolutions have no biases and
    see the input less its local mean, which is zero on a flat area and on a linear gradient, so
    the detail is zero too and what remains is the bicubic enlargement. (In bfloat16, on a gradient,
    up to rounding.) It also follows that the
    detail scales with the contrast of the input (Mohan et al. 2020, arXiv:1906.05478, on networks
    without biases). Nothing is normalised: the output depends on the neighbourhood alone, and
    tiles of a large frame join without a seam.

    With the default width and blocks it computes 31 % of :class:`JohnsonSR`'s products at ×4.

    >>> ResidualSR(ResidualSRSettings(scale=2, width=4, blocks=1))(torch.rand(1, 3, 9, 7)).shape
    torch.Size([1, 3, 18, 14])
    """

    def __init__(self, settings: ResidualSRSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        self.bicubic = BicubicUpsampling(settings.scale)
        width = settings.width
        self.head = _conv(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))
            for _ in range(settings.blocks)
        )
        self.tail = _conv(width, 3 * settings.scale**2)
        for block in self.blocks:
            nn.init.zeros_(block[2].weight)  # type: ignore[index] # every block starts as identity
        nn.init.normal_(self.tail.weight, std=1e-3)  # training starts at the bicubic enlargement
        self.halo = _MEAN_SIDE // 2 + 2 + 2 * settings.blocks

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H*scale, W*scale), clipped by the caller."""
        padded = F.pad(frame, (_MEAN_SIDE // 2,) * 4, mode="replicate")
        x = self.head(frame - F.avg_pool2d(padded, _MEAN_SIDE, stride=1))
        for block in self.blocks:
            x = x + block(x)
        detail = self.tail(torch.relu(x))
        return F.pixel_shuffle(self.bicubic.phases(frame) + detail, self.scale)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    # Zeros around the features are what a flat continuation of the picture would give.
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
