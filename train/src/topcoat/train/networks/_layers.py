"""Layers that the networks of Johnson, Alahi and Fei-Fei 2016 share."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train.networks._norm import InstanceNorm2d

TANH_RANGE = 150 / 255
"""Half-width of the scaled tanh: a little over 1/2, so that black and white do not saturate it."""


def norm_layers(kind: str, channels: int) -> list[nn.Module]:
    """No layer, or one: ``instance``, ``batch`` or ``none``."""
    if kind == "none":
        return []
    if kind == "instance":
        return [InstanceNorm2d(channels, affine=True)]
    return [nn.BatchNorm2d(channels)]


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    norm: str,
    *,
    pad: Literal["zero", "reflect"],
) -> nn.Sequential:
    """Pad, convolve, normalise, ReLU."""
    return nn.Sequential(
        *_padded(inputs, outputs, kernel, stride, pad), *norm_layers(norm, outputs), nn.ReLU()
    )


def up(
    inputs: int, outputs: int, norm: str, how: Literal["transposed", "nearest", "bilinear"]
) -> nn.Sequential:
    """Double the size: a 3×3 convolution of stride 1/2, or a resize and a convolution."""
    if how == "transposed":
        return nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
            *norm_layers(norm, outputs),
            nn.ReLU(),
        )
    return nn.Sequential(
        Upsample(scale_factor=2, mode=how),
        *conv(inputs, outputs, 3, 1, norm, pad="reflect"),
    )


class Residual(nn.Module):
    """Two 3×3 convolutions around which the input passes; no ReLU after the sum, as published."""

    def __init__(
        self, channels: int, norm: str, *, pad: Literal["zero", "reflect", "valid"]
    ) -> None:
        super().__init__()
        self.valid = pad == "valid"
        self.body = nn.Sequential(
            *_padded(channels, channels, 3, 1, pad),
            *norm_layers(norm, channels),
            nn.ReLU(),
            *_padded(channels, channels, 3, 1, pad),
            *norm_layers(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, or (B, C, H-4, W-4) for valid convolutions."""
        skip = x[:, :, 2:-2, 2:-2] if self.valid else x
        residual: Tensor = self.body(x)
        return skip + residual


def _padded(
    inputs: int, outputs: int, kernel: int, stride: int, pad: Literal["zero", "reflect", "valid"]
) -> list[nn.Module]:
    border = kernel // 2
    if pad == "zero":
        return [nn.Conv2d(inputs, outputs, kernel, stride, padding=border)]
    plain = nn.Conv2d(inputs, outputs, kernel, stride)
    return [plain] if pad == "valid" else [ReflectionPad2d(border), plain]


class LastConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` to a few channels, trained on a CPU as one to four times as many.

    A vector register holds 16 channels or more; of three, most of it is idle. The outputs of 2×2
    pixels are those of one kernel in four places, so four times as many channels at half the size,
    for a quarter more products: the same sums in half the time (docs/training.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        learning = self.weight.requires_grad and torch.is_grad_enabled()
        if not learning or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        borders = self.padding
        assert not isinstance(borders, str)
        sides = [
            length + 2 * border - kernel + 1
            for length, border, kernel in zip(x.shape[2:], borders, self.kernel_size, strict=True)
        ]
        if any(side % 2 for side in sides):
            return super().forward(x)
        four = torch.stack(
            [F.pad(self.weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)], dim=1
        ).flatten(0, 1)
        four = four.contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        return F.pixel_shuffle(F.conv2d(x, four, bias, stride=2, padding=borders), 2)


class ReflectionPad2d(nn.ReflectionPad2d):
    """``torch.nn.ReflectionPad2d``, which autocast leaves in the type that comes.

    On a CPU autocast pads in float32: the frame is converted, padded at twice the size, and
    converted back for the convolution. A pad only copies, so the numbers are the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same with a border of reflected pixels."""
        if not _narrowed(x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


class Upsample(nn.Upsample):
    """``torch.nn.Upsample``, which autocast leaves in the type that comes.

    The next layer is a convolution in that type, so float32 would be rounded to it at once.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H * scale_factor, W * scale_factor)."""
        if not _narrowed(x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


def _narrowed(x: Tensor) -> bool:
    """Whether autocast is on, on a CPU, and would widen this; never while a graph is traced."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
