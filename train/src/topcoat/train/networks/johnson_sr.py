"""The super-resolution network of Johnson, Alahi and Fei-Fei 2016, as published."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.networks._base import FrameNetwork, check_scale
from topcoat.train.networks._layers import TANH_RANGE, Residual, conv, up


@dataclass(frozen=True, slots=True, kw_only=True)
class JohnsonSRSettings:
    """Settings of :class:`JohnsonSR`."""

    scale: Literal[2, 4, 8] = 4
    """Output pixels per input pixel, along each axis."""
    width: int = 64
    """Channels of every layer but the last."""
    blocks: int = 4
    """Residual blocks at the size of the input."""
    norm: Literal["batch", "none"] = "batch"
    """The paper used batch; instance would make every output depend on the whole frame."""

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.norm not in ("batch", "none"):
            raise RecipeError(f"norm must be batch or none, got {self.norm!r}")
        if not 1 <= self.width <= 512:
            raise RecipeError(f"width must be 1 to 512 channels, got {self.width}; try 64")
        if not 0 <= self.blocks <= 64:
            raise RecipeError(f"blocks must be 0 to 64, got {self.blocks}; try 4")


class JohnsonSR(FrameNetwork):
    """9×9, residual blocks at low resolution, doublings by transposed convolution, 9×9, tanh.

    ``forward``: (B, 3, H, W) RGB in [0, 1] -> (B, 3, H*scale, W*scale) RGB in [1/2 ± 150/255].

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155) §3.1 and its supplement. As in
    :class:`~topcoat.train.networks.johnson.Johnson`, the input is RGB in [0, 1] instead of
    mean-subtracted 0-255 BGR. A third of its arithmetic at ×4 is the 9×9 output convolution.

    >>> JohnsonSR(JohnsonSRSettings(scale=4, width=4))(torch.rand(1, 3, 9, 7)).shape
    torch.Size([1, 3, 36, 28])
    """

    def __init__(self, settings: JohnsonSRSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        width, norm = settings.width, settings.norm
        doublings = settings.scale.bit_length() - 1
        self.body = nn.Sequential(
            conv(3, width, 9, 1, norm, pad="zero"),
            *(Residual(width, norm, pad="zero") for _ in range(settings.blocks)),
            *(up(width, width, norm, "transposed") for _ in range(doublings)),
            nn.Conv2d(width, 3, 9, padding=4),
        )
        # In input pixels: 4 for the first 9×9, 2 a block; a transposed convolution reads one
        # neighbour at its own input size, which halves each time; the last 9×9 reads 4 outputs.
        self.halo = 4 + 2 * settings.blocks + 2 + -(-4 // settings.scale)

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H*scale, W*scale), clipped by the caller."""
        body: Tensor = self.body(2 * frame - 1)
        return 0.5 + TANH_RANGE * torch.tanh(body)
