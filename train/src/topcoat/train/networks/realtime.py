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
    """3×3 convolutions at quarter size, each with a skip around it; one adds 4 pixels to how far
    the network sees on every side."""
    norm: Literal["instance", "batch"] = "instance"
    """``instance``: each channel of each frame scaled by its own statistics, so that a dim frame is
    painted like a bright one; learns a style in a fraction of the steps (docs/training.md).
    ``batch``: constants once it is trained, folded into the convolutions by every engine: an eighth
    less time, and a pixel depends on its neighbourhood alone, so that what moves in one corner
    changes nothing in another and tiles join."""

    def __post_init__(self) -> None:
        if self.norm not in ("instance", "batch"):
            raise RecipeError(f"norm must be instance or batch, got {self.norm!r}")
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
    four times as long on the rearrangement as on the convolution. Nothing has more than ``width``
    channels and all of it a sixteenth of the frame's pixels, because layers at full size cost more
    than their products say: they wait for memory.

    A pixel shuffle prints a grid of its own period into smooth areas, because nothing ties its 16
    phases to each other. :class:`PhaseConv2d` ties them.

    Edges are repeated, at full size and before every convolution: a flat frame gives a flat frame
    up to its border.

    Source: the sub-pixel convolution and its inverse: Shi et al. 2016 (arXiv:1609.05158);
    residual layers: He et al. 2016 (arXiv:1512.03385), here around one convolution, not two.

    >>> Realtime(RealtimeSettings(width=8, blocks=1))(torch.rand(1, 3, 24, 36)).shape
    torch.Size([1, 3, 24, 36])
    """

    size_multiple = _STEP

    def __init__(self, settings: RealtimeSettings) -> None:
        super().__init__()
        self.settings = settings
        # An instance norm needs several values, and the mean of a few is a poor one.
        self.size_min = 4 * _STEP if settings.norm == "instance" else _STEP
        self.centre = 0.5
        width, norm = settings.width, settings.norm
        border = (_HEAD - _STEP) // 2
        if norm == "batch":  # the head's window, its step, and a step for each layer behind it
            self.halo = border + _STEP - 1 + _STEP * (settings.blocks + 1)
        self.head = nn.Sequential(
            nn.ReplicationPad2d(border),
            nn.Conv2d(3, width, _HEAD, _STEP, bias=False),
            *norm_layers(norm, width),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReplicationPad2d(1),
                nn.Conv2d(width, width, 3, bias=False),
                *norm_layers(norm, width),
            )
            for _ in range(settings.blocks)
        )
        self.edge = nn.ReplicationPad2d(1)
        self.tail: PhaseConv2d | nn.Conv2d = PhaseConv2d(width, 3, _STEP)

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W), clipped by the caller."""
        x = torch.relu(self.head(frame - self.centre if self.centre else frame))  # (B, C, H/4, W/4)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return F.pixel_shuffle(self.tail(self.edge(x)), _STEP)

    def fold(self) -> Self:
        """Make the last layer plain, and let the first one's bias do the centring of the frame."""
        if isinstance(self.tail, PhaseConv2d):
            self.tail = self.tail.plain()
            head = self.head[1]
            assert isinstance(head, nn.Conv2d)
            # Edges are repeated, so that a constant added to the frame is one everywhere.
            head.bias = nn.Parameter(-self.centre * head.weight.sum((1, 2, 3)))
            self.centre = 0.0
        return self


class PhaseConv2d(nn.Module):
    """A 3×3 convolution before a pixel shuffle that prints no grid where its input is smooth.

    What it computes is a bilinear enlargement of a few planes, mixed from the channels, plus
    detail. The kernels of the detail sum to zero and so do their first moments: on features that
    are flat, or a linear gradient, the detail is zero and the enlargement smooth. Both parts are
    one convolution, whose weights are put together from ``colour`` and ``detail``; :meth:`plain` is
    what is left of it in an exported graph.

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
        self.planes, self.step = planes, step
        self.colour = nn.Parameter(torch.empty(planes, inputs))
        self.bias = nn.Parameter(torch.full((planes,), 0.5))  # training starts at grey
        self.detail = nn.Parameter(torch.empty(planes * step**2, inputs, 3, 3))
        nn.init.normal_(self.colour, std=0.1 / inputs**0.5)
        nn.init.normal_(self.detail, std=0.1 / (9 * inputs) ** 0.5)
        # Centres of the output pixels, seen from the centre of the position that holds them.
        offsets = (torch.arange(step) + 0.5) / step - 0.5
        row = (1 - (offsets[:, None] - torch.arange(-1.0, 2.0)).abs()).clamp_min(0)  # (step, 3)
        bilinear = torch.einsum("ay,bx->abyx", row, row).reshape(step**2, 3, 3)
        self.register_buffer("bilinear", bilinear, persistent=False)
        # Orthonormal: the mean of nine taps, and their slopes along both axes.
        taps = torch.arange(-1.0, 2.0)
        one, across = torch.full((3, 3), 1 / 3), taps.expand(3, 3) / 6**0.5
        moments = torch.stack([one, across, across.T]).reshape(3, 9)
        self.register_buffer("moments", moments, persistent=False)

    def weight(self) -> Tensor:
        """The weights of the one convolution: (planes * step², inputs, 3, 3)."""
        detail = self.detail.flatten(2)  # (planes * step², inputs, 9)
        detail = detail - detail @ self.moments.T @ self.moments
        base = torch.einsum("ci,pyx->cpiyx", self.colour, self.bilinear)
        return base.reshape(self.detail.shape) + detail.view_as(self.detail)

    def plain(self) -> nn.Conv2d:
        """The same as an ordinary convolution, with weights of its own."""
        conv = nn.Conv2d(self.detail.shape[1], self.detail.shape[0], 3)
        with torch.no_grad():
            conv.weight.copy_(self.weight())
            assert conv.bias is not None
            conv.bias.copy_(self.bias.repeat_interleave(self.step**2))
        return conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H+2, W+2), padded -> (B, planes * step², H, W), for ``F.pixel_shuffle``."""
        kind = x.device.type
        # In bfloat16 the moments would only be zero to three digits.
        with torch.autocast(kind, enabled=False):
            weight = self.weight()
        return F.conv2d(x, weight, self.bias.repeat_interleave(self.step**2))
