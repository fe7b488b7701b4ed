"""The image transform network of Johnson, Alahi and Fei-Fei 2016, as published and modernised."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.networks._base import FrameNetwork
from topcoat.train.networks._norm import InstanceNorm2d

TANH_RANGE = 150 / 255
"""Half-width of the scaled tanh: a little over 1/2, so that black and white do not saturate it."""


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
        layers: list[nn.Module] = [nn.ReflectionPad2d(start)] if start else []
        layers += [
            _conv(3, width, 9, 1, norm, zero_pad=paper),
            _conv(width, 2 * width, 3, 2, norm, zero_pad=paper),
            _conv(2 * width, 4 * width, 3, 2, norm, zero_pad=paper),
            *(_Residual(4 * width, norm, valid=paper) for _ in range(settings.blocks)),
            _up(4 * width, 2 * width, norm, "transposed" if paper else settings.upsampling),
            _up(2 * width, width, norm, "transposed" if paper else settings.upsampling),
            nn.Conv2d(width, 3, 9, padding=4)
            if paper
            else nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(width, 3, 9)),
        ]
        self.body = nn.Sequential(*layers)

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W), clipped by the caller."""
        body: Tensor = self.body(2 * frame - 1)
        return 0.5 + TANH_RANGE * torch.tanh(body)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "instance":
        return InstanceNorm2d(channels, affine=True)
    return nn.BatchNorm2d(channels)


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    norm: str,
    *,
    zero_pad: bool,
) -> nn.Sequential:
    """Pad, convolve, normalise, ReLU."""
    pad = kernel // 2
    conv: list[nn.Module] = (
        [nn.Conv2d(inputs, outputs, kernel, stride, padding=pad)]
        if zero_pad
        else [nn.ReflectionPad2d(pad), nn.Conv2d(inputs, outputs, kernel, stride)]
    )
    return nn.Sequential(*conv, _norm(norm, outputs), nn.ReLU())


def _up(inputs: int, outputs: int, norm: str, how: str) -> nn.Sequential:
    """Double the size."""
    if how == "transposed":
        return nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
            _norm(norm, outputs),
            nn.ReLU(),
        )
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=how),
        *_conv(inputs, outputs, 3, 1, norm, zero_pad=False),
    )


class _Residual(nn.Module):
    """Two 3×3 convolutions around which the input passes; no ReLU after the sum, as published."""

    def __init__(self, channels: int, norm: str, *, valid: bool) -> None:
        super().__init__()
        self.valid = valid
        first, second = (
            [nn.Conv2d(channels, channels, 3)]
            if valid
            else [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)]
            for _ in range(2)
        )
        self.body = nn.Sequential(
            *first, _norm(norm, channels), nn.ReLU(), *second, _norm(norm, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, or (B, C, H-4, W-4) for valid convolutions."""
        skip = x[:, :, 2:-2, 2:-2] if self.valid else x
        residual: Tensor = self.body(x)
        return skip + residual
