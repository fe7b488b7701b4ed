"""A style network for frames that must be ready in time: everything happens at quarter size."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.networks._base import FrameNetwork
from topcoat.train.networks._layers import norm_layers

_STEP = 4
"""Pixels along each axis that one position of the features stands for."""
_HEAD = 8
"""Side of the first kernel in pixels: twice the step, so that neighbouring windows overlap and a
scene that moves by a pixel changes the features by a little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealtimeSettings:
    """Settings of :class:`Realtime`."""

    width: int = 32
    """Channels; time grows with its square. Multiples of 16 fill the vector registers of CPUs, 24
    costs there what 32 does."""
    blocks: int = 4
    """3×3 convolutions at quarter size, each with a skip around it; one adds 4 pixels, times its
    spacing, to how far the network sees on every side."""
    norm: Literal["instance", "batch"] = "instance"
    """``instance``: each channel of each frame scaled by its own statistics, so that a dim frame is
    painted like a bright one; learns a style in a fraction of the steps (docs/realtime.md).
    ``batch``: constants once it is trained, folded into the convolutions by every engine: an eighth
    less time, and a pixel depends on its neighbourhood alone, so that what moves in one corner
    changes nothing in another and tiles join."""
    dilation: int = 1
    """Spacing of the taps in every second block, in positions: 2 lets four blocks see half as far
    again in the same time, and a style is learnt better (docs/realtime.md)."""

    def __post_init__(self) -> None:
        if self.norm not in ("instance", "batch"):
            raise RecipeError(f"norm must be instance or batch, got {self.norm!r}")
        if not 1 <= self.dilation <= 8:
            raise RecipeError(f"dilation must be 1 to 8, got {self.dilation}; try 2")
        if not 1 <= self.width <= 512:
            raise RecipeError(f"width must be 1 to 512 channels, got {self.width}; try 32")
        if not 0 <= self.blocks <= 64:
            raise RecipeError(f"blocks must be 0 to 64, got {self.blocks}; try 4")


class Realtime(FrameNetwork):
    """Down by four in one convolution, residual 3×3 convolutions there, up by a pixel shuffle.

    ``forward``: (B, 3, H, W) RGB in [0, 1] -> (B, 3, H, W) RGB, nominally in [0, 1]; H and W are
    multiples of 4.

    The first layer is an 8×8 convolution of stride 4. That is a pixel unshuffle by four and a
    convolution of the 48 channels that come out, but no pixel is moved for it: ONNX Runtime spends
    more on the rearrangement than on the convolution. All layers but the first see a sixteenth of
    the frame's pixels, because those at full size cost more than their products say: they wait for
    memory.

    What a pixel shuffle makes has two faults: it prints a grid of its own period into smooth areas,
    because nothing ties its 16 phases to each other, and teeth along edges, because a few channels
    at quarter size do not know where between its positions an edge lies. :class:`PhaseConv2d` ties
    the phases. And edges are not made, they are taken from the frame: every pixel's
    :class:`LocalContrast` is added to the output, times a gain for each colour that the network
    gives out at quarter size and that is enlarged bilinearly. So a style decides how strong, how
    dark and in which colours an edge is drawn, and the frame where.

    Edges of the frame are repeated, at full size and before every convolution: a flat frame gives a
    flat frame up to its border.

    Source: the sub-pixel convolution and its inverse: Shi et al. 2016 (arXiv:1609.05158);
    residual layers: He et al. 2016 (arXiv:1512.03385), here around one convolution, not two;
    coefficients at low resolution for a frame at full: He, Sun 2015 (arXiv:1505.00996), Gharbi et
    al. 2017 (arXiv:1707.02880), here for what lies above the mean alone.

    >>> Realtime(RealtimeSettings(width=8, blocks=1))(torch.rand(1, 3, 24, 36)).shape
    torch.Size([1, 3, 24, 36])
    """

    size_multiple = _STEP

    def __init__(self, settings: RealtimeSettings) -> None:
        super().__init__()
        self.settings = settings
        # An instance norm needs several values, and the mean of a few is a poor one.
        self.size_min = 4 * _STEP if settings.norm == "instance" else _STEP
        width, norm = settings.width, settings.norm
        spacings = [settings.dilation if block % 2 else 1 for block in range(settings.blocks)]
        border = (_HEAD - _STEP) // 2
        if norm == "batch":  # the head's window, its step, and the steps of each layer behind it
            self.halo = border + _STEP - 1 + _STEP * (sum(spacings) + 1)
        self.rim, self.edge = nn.ReplicationPad2d(border), nn.ReplicationPad2d(1)
        # Biases before a normalisation would be taken off again, and so would any centring.
        self.head = nn.Sequential(
            nn.Conv2d(3, width, _HEAD, _STEP, bias=False), *norm_layers(norm, width)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReplicationPad2d(spacing),
                nn.Conv2d(width, width, 3, dilation=spacing, bias=False),
                *norm_layers(norm, width),
            )
            for spacing in spacings
        )
        self.tail: PhaseConv2d | nn.Conv2d = PhaseConv2d(width, 3, _STEP)
        self.contrast: LocalContrast | nn.Conv2d = LocalContrast()
        self.gain = nn.Conv2d(width, 3, 1)
        self.enlarge: Enlarge | nn.Conv2d = Enlarge(3, _STEP)

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W), clipped by the caller."""
        padded = self.rim(frame)
        x = torch.relu(self.head(padded))  # (B, C, H/4, W/4)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        x = self.edge(x)
        contrast = self.contrast(padded)  # (B, 16, H/4, W/4)
        gain = self.enlarge(self.gain(x))  # (B, 48, H/4, W/4)
        phases = self.tail(x) + gain * torch.cat([contrast] * 3, 1)
        return F.pixel_shuffle(phases, _STEP)

    def fold(self) -> Self:
        """Make the layers whose weights are computed the plain convolutions that they amount to."""
        for name in ("tail", "contrast", "enlarge"):
            layer = getattr(self, name)
            if not isinstance(layer, nn.Conv2d):
                setattr(self, name, _plain(layer.weight(), layer.offset(), layer.stride))
        return self


def _plain(weight: Tensor, bias: Tensor | None, stride: int) -> nn.Conv2d:
    outputs, inputs, side, _ = weight.shape
    conv = nn.Conv2d(inputs, outputs, side, stride, bias=bias is not None)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
    return conv


class _Computed(nn.Module):
    """A convolution whose weights are computed from others."""

    stride = 1

    def weight(self) -> Tensor:
        """(outputs, inputs, side, side)."""
        raise NotImplementedError

    def offset(self) -> Tensor | None:
        """(outputs,), or nothing."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W), padded by the caller -> (B, outputs, …)."""
        # In bfloat16 what sums to zero would do so to three digits.
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight()
        return F.conv2d(x, weight, self.offset(), self.stride)


class LocalContrast(_Computed):
    """By how much every pixel is brighter than the mean of the 5×5 pixels around it.

    ``forward``: (B, 3, H+4, W+4) RGB, padded by 2 -> (B, 16, H/4, W/4), the phases of a frame of
    one plane as channels, as ``F.pixel_shuffle`` takes them. Zero on flat areas and on linear
    gradients. How much each primary counts for brightness is learnt, from Rec. 601's luma on.

    >>> ramp = torch.arange(12.0).expand(1, 3, 12, 12)
    >>> bool(LocalContrast()(ramp).abs().max() < 1e-5)
    True
    """

    kernel: Tensor
    stride = _STEP

    def __init__(self) -> None:
        super().__init__()
        self.primaries = nn.Parameter(torch.tensor([0.299, 0.587, 0.114]))
        kernel = torch.zeros(_STEP, _STEP, _HEAD, _HEAD)
        for top in range(_STEP):
            for left in range(_STEP):
                kernel[top, left, top : top + 5, left : left + 5] = -1 / 25
                kernel[top, left, top + 2, left + 2] += 1
        self.register_buffer("kernel", kernel.reshape(_STEP**2, _HEAD, _HEAD), persistent=False)

    def weight(self) -> Tensor:
        """(16, 3, 8, 8)."""
        return torch.einsum("pyx,c->pcyx", self.kernel, self.primaries)


def _bilinear(step: int) -> Tensor:
    """What each of the step² pixels of a position takes from 3×3 positions: (step², 3, 3)."""
    # Centres of the output pixels, seen from the centre of the position that holds them.
    offsets = (torch.arange(step) + 0.5) / step - 0.5
    row = (1 - (offsets[:, None] - torch.arange(-1.0, 2.0)).abs()).clamp_min(0)  # (step, 3)
    return torch.einsum("ay,bx->abyx", row, row).reshape(step**2, 3, 3)


class Enlarge(_Computed):
    """Bilinear enlargement before the pixel shuffle.

    ``forward``: (B, planes, H+2, W+2), padded by 1 -> (B, planes * step², H, W).
    """

    kernel: Tensor

    def __init__(self, planes: int, step: int) -> None:
        super().__init__()
        # Dense though two thirds are zeros: engines are slow at convolutions of few groups.
        kernel = torch.einsum("ci,pyx->cpiyx", torch.eye(planes), _bilinear(step))
        self.register_buffer("kernel", kernel.flatten(0, 1), persistent=False)

    def weight(self) -> Tensor:
        """(planes * step², planes, 3, 3)."""
        return self.kernel


class PhaseConv2d(_Computed):
    """A 3×3 convolution before a pixel shuffle that prints no grid where its input is smooth.

    ``forward``: (B, inputs, H+2, W+2), padded by 1 -> (B, planes * step², H, W).

    What it computes is a bilinear enlargement of a few planes, mixed from the channels, plus
    detail. The kernels of the detail sum to zero and so do their first moments: on features that
    are flat, or a linear gradient, the detail is zero and the enlargement smooth. Both parts are
    one convolution, whose weights are put together from ``colour`` and ``detail``.

    That all phases must have one gain if flat areas are to stay flat is from Sugawara, Shiota, Kiya
    2018 (arXiv:1806.02658); that they agree on gradients, too, is added here.

    Args:
        inputs: channels that come in.
        planes: channels that leave after the shuffle.
        step: the shuffle's factor, at least 2.

    >>> layer = PhaseConv2d(5, 3, 4)
    >>> flat = F.pixel_shuffle(layer(torch.ones(1, 5, 3, 3)), 4)
    >>> bool((flat - flat[..., :1, :1]).abs().max() < 1e-6)
    True
    """

    bilinear: Tensor
    moments: Tensor

    def __init__(self, inputs: int, planes: int, step: int) -> None:
        super().__init__()
        self.phases = step**2
        self.colour = nn.Parameter(torch.empty(planes, inputs))
        self.bias = nn.Parameter(torch.full((planes,), 0.5))  # training starts at grey
        self.detail = nn.Parameter(torch.empty(planes * step**2, inputs, 3, 3))
        nn.init.normal_(self.colour, std=0.1 / inputs**0.5)
        nn.init.normal_(self.detail, std=0.1 / (9 * inputs) ** 0.5)
        self.register_buffer("bilinear", _bilinear(step), persistent=False)
        # Orthonormal: the mean of nine taps, and their slopes along both axes.
        taps = torch.arange(-1.0, 2.0)
        one, across = torch.full((3, 3), 1 / 3), taps.expand(3, 3) / 6**0.5
        moments = torch.stack([one, across, across.T]).reshape(3, 9)
        self.register_buffer("moments", moments, persistent=False)

    def weight(self) -> Tensor:
        """(planes * step², inputs, 3, 3)."""
        detail = self.detail.flatten(2)  # (planes * step², inputs, 9)
        detail = detail - detail @ self.moments.T @ self.moments
        base = torch.einsum("ci,pyx->cpiyx", self.colour, self.bilinear)
        return base.reshape(self.detail.shape) + detail.view_as(self.detail)

    def offset(self) -> Tensor:
        """(planes * step²,)."""
        return self.bias.repeat_interleave(self.phases)
