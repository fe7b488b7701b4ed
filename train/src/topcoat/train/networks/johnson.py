"""The image transform network of Johnson, Alahi and Fei-Fei 2016, as published and modernised."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.networks._base import FrameNetwork
from topcoat.train.networks._layers import (
    TANH_RANGE,
    LastConv2d,
    ReflectionPad2d,
    Residual,
    conv,
    up,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JohnsonSettings:
    """Settings of :class:`Johnson`."""

    form: Literal["modern", "paper"] = "modern"
    """``paper``: one reflect pad at the start, valid residual blocks, transposed convolutions;
    ``modern``: reflect pad per convolution, nearest upsampling + convolution (no checkerboard)."""
    width: int = 32
    """Channels at full size; twice that at half size, four times at quarter size."""
    blocks: int = 5
    """Residual blocks at quarter size."""
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    """How the modern form doubles the size before a convolution. ``nearest`` leaves steps at fixed
    places, and a network learns to draw on that grid; ``bilinear`` leaves none."""
    norm: Literal["instance", "batch"] = "instance"
    """The paper used batch; its authors' later models, and everybody since, instance."""

    def __post_init__(self) -> None:
        if self.form not in ("modern", "paper"):
            raise RecipeError(f"form must be modern or paper, got {self.form!r}")
        if self.upsampling not in ("nearest", "bilinear"):
            raise RecipeError(f"upsampling must be nearest or bilinear, got {self.upsampling!r}")
        if self.norm not in ("instance", "batch"):
            raise RecipeError(f"norm must be instance or batch, got {self.norm!r}")
        if not 1 <= self.width <= 512:
            raise RecipeError(f"width must be 1 to 512 channels, got {self.width}; try 32")
        if not 0 <= self.blocks <= 64:
            raise RecipeError(f"blocks must be 0 to 64, got {self.blocks}; try 5")


class Johnson(FrameNetwork):
    """Down by four, residual blocks, up by four, scaled tanh.

    ``forward``: (B, 3, H, W) RGB in [0, 1] -> (B, 3, H, W) RGB in [1/2 ± 150/255]; H and W are
    multiples of 4 and at least ``size_min``.

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155) §3.1 and its supplement. The
    published network works on mean-subtracted 0-255 BGR; this one on RGB in [0, 1], which it
    centres itself; the tanh's range is that of the authors' code.

    >>> Johnson(JohnsonSettings(form="paper", width=4))(torch.rand(1, 3, 64, 48)).shape
    torch.Size([1, 3, 64, 48])
    """

    size_multiple = 4

    def __init__(self, settings: JohnsonSettings) -> None:
        super().__init__()
        self.settings = settings
        paper = settings.form == "paper"
        width, norm = settings.width, settings.norm
        # Each valid block eats 2 px a side at quarter size, 8 at full size: 40 for five blocks.
        start = 8 * settings.blocks if paper else 0
        self.size_min = start + 4 if paper else 8
        layers: list[nn.Module] = [ReflectionPad2d(start)] if start else []
        pad: Literal["zero", "reflect"] = "zero" if paper else "reflect"
        upsampling: Literal["transposed", "nearest", "bilinear"]
        upsampling = "transposed" if paper else settings.upsampling
        layers += [
            conv(3, width, 9, 1, norm, pad=pad),
            conv(width, 2 * width, 3, 2, norm, pad=pad),
            conv(2 * width, 4 * width, 3, 2, norm, pad=pad),
            *(
                Residual(4 * width, norm, pad="valid" if paper else "reflect")
                for _ in range(settings.blocks)
            ),
            up(4 * width, 2 * width, norm, upsampling),
            up(2 * width, width, norm, upsampling),
            LastConv2d(width, 3, 9, padding=4)
            if paper
            else nn.Sequential(ReflectionPad2d(4), LastConv2d(width, 3, 9)),
        ]
        self.body = nn.Sequential(*layers)

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W), clipped by the caller."""
        body: Tensor = self.body(2 * frame - 1)
        return 0.5 + TANH_RANGE * torch.tanh(body)
