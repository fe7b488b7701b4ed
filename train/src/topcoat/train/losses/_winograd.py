"""3×3 convolutions in float32 with a quarter of the products, as matrix products."""

import functools

import torch
from torch import Tensor

_TILE = 4
"""Output pixels per tile, along each axis; a tile reads two more."""
_READ = _TILE + 2
_LEAST_PRODUCTS = 64 * 128
_LEAST_CHANNELS = 64
_LEAST_TILES = 16
_CHUNK = 3 << 17
"""Values of a transformed strip per thread, 1.5 MB: it stays in a core's cache."""

# Interpolation at 0, 1, -1, 2, -2 and infinity: Lavin, Gray 2016 (arXiv:1509.09308), F(4x4, 3x3).
_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_WEIGHT = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
_ONES = _READ + 1
"""The plane, of 36, that counts once in each of a tile's outputs: there a bias can be added."""


def kernel(weight: Tensor, *, mirrored: bool = False) -> "Kernel | None":
    """Weights for :class:`Kernel`, or None where the layer is so narrow that it would cost time.

    Args:
        weight: (O, C, 3, 3), of any floating type.
        mirrored: see :class:`Kernel`.
    """
    return Kernel(weight, mirrored=mirrored) if _serves(weight) else None


def planes_bytes(weight: Tensor) -> int:
    """What :class:`Kernel` holds of (O, C, 3, 3) once it was called; 0 where it does not serve."""
    return _READ**2 * weight.shape[0] * weight.shape[1] * 4 if _serves(weight) else 0


def _serves(weight: Tensor) -> bool:
    outputs, inputs = weight.shape[:2]
    return min(outputs, inputs) >= _LEAST_CHANNELS and outputs * inputs >= _LEAST_PRODUCTS


class Kernel:
    """A convolution of stride 1 and padding 1 with given weights, by Winograd's minimal filtering.

    Tiles of 6×6 pixels and the kernels are transformed so that 36 products per channel pair give 16
    output pixels, which directly takes 144. Rounding errors are those of float32 times about 5
    (relative to the largest output: a test holds them to 1e-5).

    Args:
        weight: (O, C, 3, 3), of any floating type; not copied, transformed at the first call.
        mirrored: whether it is the convolution that carries the gradient back, from O channels to
            C.

    Source: Lavin, Gray 2016 (arXiv:1509.09308).
    """

    def __init__(self, weight: Tensor, *, mirrored: bool = False) -> None:
        self._weight, self._mirrored = weight.detach(), mirrored
        self._input = torch.kron(torch.tensor(_INPUT), torch.tensor(_INPUT))
        self._output = torch.kron(torch.tensor(_OUTPUT), torch.tensor(_OUTPUT))

    @functools.cached_property
    def planes(self) -> Tensor:
        """(36, C, O) float32; mirrored (36, O, C): four times the weights."""
        weight = self._weight
        if self._mirrored:
            weight = weight.flip(2, 3).transpose(0, 1)
        once = torch.tensor(_WEIGHT, dtype=torch.float64)
        planes = torch.einsum("ia,ocab,jb->ijco", once, weight.double(), once)
        return planes.flatten(0, 1).float().contiguous()

    def pays(self, x: Tensor) -> bool:
        """Whether (B, C, H, W) is large enough, and in the type, for this to be faster."""
        tiles = -(-x.shape[2] // _TILE) * -(-x.shape[3] // _TILE)
        return x.dtype == torch.float32 and tiles >= _LEAST_TILES

    def __call__(self, x: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        """Convolve, add the bias, and cut at zero if asked to.

        Args:
            x: (B, C, H, W) float32, channels-last in memory.
            bias: (O,) or None.
            relu: whether negative results become 0.

        Returns:
            (B, O, H, W) float32, channels-last in memory. No gradient.
        """
        batch, inputs, height, width = x.shape
        outputs = self.planes.shape[2]
        down, across = -(-height // _TILE), -(-width // _TILE)
        most = _CHUNK * torch.get_num_threads() // (_READ**2 * across * max(inputs, outputs))
        most = min(down, max(1, most))
        pixels = x.detach().permute(0, 2, 3, 1)
        result = x.new_empty(batch, _TILE * down, _TILE * across, outputs)
        # One strip of tiles after the other, in the same few buffers, which stay in the cache.
        strip = x.new_zeros(_TILE * most + 2, _TILE * across + 2, inputs)
        line, column, _ = strip.stride()
        tiles, turned = x.new_empty(2, _READ**2 * most * across * inputs)
        product, written = x.new_empty(2, _READ**2 * most * across * outputs)
        for picture, target in zip(pixels, result, strict=True):
            for first in range(0, down, most):
                rows = min(most, down - first)
                count = rows * across
                _fill(strip[: _TILE * rows + 2], picture, _TILE * first - 1)
                read = tiles[: _READ**2 * count * inputs].view(_READ, _READ, rows, across, inputs)
                read.copy_(
                    strip.as_strided(read.shape, (line, column, _TILE * line, _TILE * column, 1))
                )
                planes = turned[: read.numel()].view(_READ**2, -1)
                torch.mm(self._input, read.view(_READ**2, -1), out=planes)
                sums = product[: _READ**2 * count * outputs].view(_READ**2, count, outputs)
                torch.bmm(planes.view(_READ**2, count, inputs), self.planes, out=sums)
                if bias is not None:
                    sums[_ONES] += bias
                back = written[: _TILE**2 * count * outputs].view(_TILE**2, -1)
                torch.mm(self._output, sums.view(_READ**2, -1), out=back)
                if relu:
                    back.clamp_min_(0)
                target[_TILE * first : _TILE * (first + rows)].view(
                    rows, _TILE, across, _TILE, outputs
                ).copy_(back.view(_TILE, _TILE, rows, across, outputs).permute(2, 0, 3, 1, 4))
        return result[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def _fill(strip: Tensor, picture: Tensor, top: int) -> None:
    """Copy the rows from ``top`` on, zeros above and below the picture; columns from 1 on."""
    height, width, _ = picture.shape
    begin, end = max(0, top), min(height, top + len(strip))
    strip[: begin - top].zero_()
    strip[begin - top : end - top, 1 : 1 + width].copy_(picture[begin:end])
    strip[end - top :].zero_()
