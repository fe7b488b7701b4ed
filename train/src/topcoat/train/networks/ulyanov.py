"""The texture and style network of Ulyanov et al. 2016, as published and improved in 2017."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.networks._base import FrameNetwork
from topcoat.train.networks._norm import InstanceNorm2d

_TILE = 256
"""Side of the noise that a style network is used with, in pixels; it repeats over the frame."""
_TILE_SEED = 0
_MOST_SCALES = 7
"""The tile must be a multiple of what the coarsest scale needs, 2**6 pixels, and hold a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UlyanovSettings:
    """Settings of :class:`Ulyanov`."""

    content: bool = False
    """Whether the input is a photograph to repaint; if not, it is noise to make a texture of."""
    noise: bool = True
    """Whether three channels of noise go beside the photograph at every scale, as in 2016; the
    authors' later code leaves them out. A texture is made of noise alone."""
    scales: int = 5
    """Sizes the input is looked at in, each half the one before; 5 for textures, 6 for styles."""
    width: int = 8
    """Channels that each scale brings: the layers at full size have ``scales`` times as many."""
    norm: Literal["batch", "instance"] = "batch"
    """The paper of 2016 used batch, that of 2017 instance."""
    activation: Literal["leaky", "relu"] = "leaky"
    """``leaky``: slope 0.01 below zero, as in 2016; ``relu``: the later code."""
    padding: Literal["circular", "replicate"] = "circular"
    """``circular``: opposite edges meet, so that textures tile; ``replicate``: the later code,
    for photographs, whose opposite edges have nothing to do with each other."""
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    """How a coarser scale is doubled. ``nearest`` is the papers'; ``bilinear`` leaves no steps."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("norm", ("batch", "instance")),
            ("activation", ("leaky", "relu")),
            ("padding", ("circular", "replicate")),
            ("upsampling", ("nearest", "bilinear")),
        ):
            if (value := getattr(self, name)) not in choices:
                raise RecipeError(f"{name} must be {' or '.join(choices)}, got {value!r}")
        if not 1 <= self.scales <= _MOST_SCALES:
            raise RecipeError(f"scales must be 1 to {_MOST_SCALES}, got {self.scales}; try 5")
        if not 1 <= self.width <= 64:
            raise RecipeError(f"width must be 1 to 64 channels, got {self.width}; try 8")
        if not self.content and not self.noise:
            raise RecipeError("noise must be on for a texture, which is made of nothing else")
        if not self.content and self.padding != "circular":
            raise RecipeError(
                f"padding must be circular for a texture, so that it tiles, got {self.padding!r}"
            )


class Ulyanov(FrameNetwork):
    """A pyramid: each scale convolves its own view of the input and joins the coarser ones.

    ``forward``: (B, 3, H, W) in [0, 1] -> (B, 3, H, W) RGB, nominally in [0, 1]; H and W are
    multiples of ``size_multiple`` and at least ``size_min``.

    - Without ``content`` the input is a *noise frame*, uniform in [0, 1], and the output a texture
      that tiles: rolling the noise by ``size_multiple`` rolls the texture, and tiled noise gives
      the tiled texture. Scale k reads every 2**k-th pixel of the frame, from 2**(k-1) on. No two
      scales from the first on share a pixel, so their noises are independent; only scale 0, the
      frame itself, holds them all. The paper draws a tensor per scale; one frame of bytes is what
      every engine here takes and a test can compare.
    - With ``content`` the input is a photograph, and scale k sees it averaged over 2**k x 2**k
      pixels, beside noise read as above. In training the noise is drawn anew from torch's global
      generator; in use it is a fixed tile of 256 x 256, repeated, so that a frame always gives the
      same picture, and a still scene a still film.

    The head is linear around one half. A sigmoid would bound the output, but at the paper's step
    size of 0.1 it saturates within a few steps and then has no gradient to come back by; beyond
    [0, 1] the losses themselves pull a linear head back.

    Source: Ulyanov, Lebedev, Vedaldi, Lempitsky 2016 (arXiv:1603.03417) §4.1 and its supplement;
    instance normalisation: Ulyanov, Vedaldi, Lempitsky 2017 (arXiv:1701.02096). Convolutions that
    a normalisation follows have no biases, which it would remove.

    >>> Ulyanov(UlyanovSettings(scales=3, width=4))(torch.rand(1, 3, 16, 24)).shape
    torch.Size([1, 3, 16, 24])
    """

    tile: Tensor

    def __init__(self, settings: UlyanovSettings) -> None:
        super().__init__()
        self.settings = settings
        self.takes = "frame" if settings.content else "noise"
        self.size_multiple = 2 ** (settings.scales - 1)
        # Instance norm needs two values, and a mean of a few is a poor one: 2 x 2 at the coarsest.
        self.size_min = 2**settings.scales
        inputs = 6 if settings.content and settings.noise else 3
        width = settings.width
        self.views = nn.ModuleList(
            _convolutions(inputs, width, settings) for _ in range(settings.scales)
        )
        # joins[i] takes what the i + 1 coarsest scales made and the next finer one.
        self.joins = nn.ModuleList(
            _Join((i + 1) * width, width, settings) for i in range(settings.scales - 1)
        )
        self.head = nn.Conv2d(settings.scales * width, 3, 1)
        if settings.content and settings.noise:
            generator = torch.Generator().manual_seed(_TILE_SEED)
            tile = torch.rand(1, 3, _TILE, _TILE, generator=generator)
            self.register_buffer("tile", tile)

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W), clipped by the caller."""
        views = self._views(frame)
        x: Tensor = self.views[-1](views[-1])
        for i, join in enumerate(self.joins):
            scale = self.settings.scales - 2 - i
            x = join(x, self.views[scale](views[scale]))
        head: Tensor = self.head(x)
        return 0.5 + head

    def _views(self, frame: Tensor) -> list[Tensor]:
        """What each scale looks at, finest first: (B, 3 or 6, H / 2**k, W / 2**k) in [-1, 1]."""
        scales = range(self.settings.scales)
        centred = 2 * frame - 1
        if not self.settings.content:
            return [_every(centred, k) for k in scales]
        pooled = [centred]
        for _ in scales[1:]:
            pooled.append(F.avg_pool2d(pooled[-1], 2))
        if not self.settings.noise:
            return pooled
        noise = 2 * self._noise(frame) - 1
        return [torch.cat([pooled[k], _every(noise, k)], 1) for k in scales]

    def _noise(self, frame: Tensor) -> Tensor:
        """Noise for a photograph: (B, 3, H, W), uniform in [0, 1]."""
        if self.training:
            return torch.rand_like(frame)
        rows, columns = (
            torch.arange(side, device=frame.device) % _TILE for side in frame.shape[2:]
        )
        noise = self.tile.to(frame.dtype).index_select(2, rows).index_select(3, columns)
        return noise.expand(frame.shape[0], -1, -1, -1)


def _every(frame: Tensor, k: int) -> Tensor:
    """Every 2**k-th pixel from 2**(k-1) on; the whole frame for k = 0."""
    offset = 2**k // 2
    return frame[:, :, offset :: 2**k, offset :: 2**k]


class _Join(nn.Module):
    """Double the coarser features, normalise both branches, put them together and convolve."""

    def __init__(self, coarser: int, finer: int, settings: UlyanovSettings) -> None:
        super().__init__()
        self.bilinear = settings.upsampling == "bilinear"
        self.pad = _Pad(settings.padding)
        self.coarser = _norm(coarser, settings)
        self.finer = _norm(finer, settings)
        self.body = _convolutions(coarser + finer, coarser + finer, settings)

    def forward(self, coarser: Tensor, finer: Tensor) -> Tensor:
        """(B, C, H/2, W/2) and (B, D, H, W) -> (B, C+D, H, W)."""
        if self.bilinear:
            # Over the edges as a convolution sees them, so that what is periodic stays so.
            large = F.interpolate(self.pad(coarser), scale_factor=2, mode="bilinear")
            large = large[:, :, 2:-2, 2:-2]
        else:
            large = F.interpolate(coarser, scale_factor=2, mode="nearest")
        joined: Tensor = self.body(torch.cat([self.coarser(large), self.finer(finer)], 1))
        return joined


class _Pad(nn.Module):
    """One pixel around the frame: of the opposite edge (``circular``) or of the same one.

    Circular by slices and concatenation, which every engine has; ONNX's ``wrap`` padding is newer
    than some.
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.circular = mode == "circular"

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H+2, W+2)."""
        if not self.circular:
            return F.pad(x, (1, 1, 1, 1), mode="replicate")
        x = torch.cat([x[:, :, -1:], x, x[:, :, :1]], 2)
        return torch.cat([x[:, :, :, -1:], x, x[:, :, :, :1]], 3)


def _norm(channels: int, settings: UlyanovSettings) -> nn.Module:
    if settings.norm == "batch":
        return nn.BatchNorm2d(channels)
    return InstanceNorm2d(channels, affine=True)


def _convolutions(inputs: int, outputs: int, settings: UlyanovSettings) -> nn.Sequential:
    """3×3, 3×3, 1×1, each normalised and activated, as at every scale and every join."""
    layers: list[nn.Module] = []
    for kernel in (3, 3, 1):
        if kernel == 3:
            layers.append(_Pad(settings.padding))
        layers += [
            nn.Conv2d(inputs, outputs, kernel, bias=False),
            _norm(outputs, settings),
            nn.LeakyReLU(0.01) if settings.activation == "leaky" else nn.ReLU(),
        ]
        inputs = outputs
    return nn.Sequential(*layers)
