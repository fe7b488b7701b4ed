"""How a low-resolution picture is made from a high-resolution one, for training and evaluation.

The convention is that of the published results: the cubic kernel with a = -1/2, stretched by the
factor when shrinking (antialiased), sample positions at pixel centres, and the picture mirrored at
its borders, the edge pixel included, as MATLAB's ``imresize`` does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from topcoat.train.recipes import check_blur


def imresize(frame: Tensor, *, shrink: int = 1, enlarge: int = 1) -> Tensor:
    """Resize by a whole factor with antialiased bicubic, in MATLAB's convention.

    Args:
        frame: (B, C, H, W) floating point, any range; H and W multiples of ``shrink``.
        shrink: factor by which the picture gets smaller, or 1.
        enlarge: factor by which it gets larger, or 1; one of the two is 1.

    Returns:
        (B, C, H*enlarge/shrink, W*enlarge/shrink), same type; bicubic overshoots, so values may
        lie outside the input's range.

    Raises:
        ValueError: both factors given, or the size is not a multiple of ``shrink``.

    >>> imresize(torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4), shrink=2)[0, 0, 0]
    tensor([0.4609, 2.5391])
    """
    height, width = frame.shape[-2:]
    if shrink < 1 or enlarge < 1 or (shrink > 1 and enlarge > 1):
        raise ValueError(f"give one of shrink and enlarge, got {shrink} and {enlarge}")
    if height % shrink or width % shrink:
        raise ValueError(f"{width}x{height} is not a multiple of {shrink}; crop it first")
    # The kernel reaches 2 input pixels, 2 * shrink when shrinking. Rounded up to a multiple of
    # shrink, so that the sample positions stay where they are.
    border = -(-(2 * shrink + 1) // shrink) * shrink
    mirrored = _symmetric(_symmetric(frame, border, -1), border, -2)
    size = tuple(side * enlarge // shrink for side in mirrored.shape[-2:])
    resized = F.interpolate(mirrored, size=size, mode="bicubic", antialias=True)
    cut = border * enlarge // shrink
    return resized[..., cut : resized.shape[-2] - cut, cut : resized.shape[-1] - cut]


def gaussian_blur(frame: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian, mirrored at the borders.

    Args:
        frame: (B, C, H, W) floating point.
        sigma: standard deviation in pixels; 0 returns the frame itself. The kernel is cut at 3 σ,
            7×7 for σ = 1.
    """
    if sigma == 0:
        return frame
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=frame.dtype, device=frame.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(frame.shape[1], 1, 1, -1)
    across = F.conv2d(_symmetric(frame, reach, -1), kernel, groups=frame.shape[1])
    return F.conv2d(_symmetric(across, reach, -2), kernel.transpose(-1, -2), groups=frame.shape[1])


def degrade(frame: Tensor, scale: int, blur: float = 0.0) -> Tensor:
    """Make the low-resolution picture that a network is to enlarge again.

    Args:
        frame: (B, 3, H, W) in [0, 1], H and W multiples of ``scale``.
        scale: 2, 4 or 8.
        blur: σ in pixels of a Gaussian before shrinking: 0 for the plain bicubic protocol of most
            published tables, 1.0 for the training data of Johnson et al. (§4.2).

    Returns:
        (B, 3, H/scale, W/scale) in [0, 1], rounded to 8 bits as a picture file would be.

    Raises:
        RecipeError: ``blur`` is neither 0 nor a σ that can be meant.
        ValueError: the size is not a multiple of ``scale``.
    """
    check_blur(blur)
    with torch.no_grad(), torch.autocast(frame.device.type, enabled=False):
        small = imresize(gaussian_blur(frame.float(), blur), shrink=scale)
        return (small.clamp(0, 1) * 255).round() / 255


def _symmetric(frame: Tensor, border: int, axis: int) -> Tensor:
    """Mirror at both ends of an axis with the edge pixel repeated; ``border`` may exceed it."""
    length = frame.shape[axis]
    position = torch.arange(-border, length + border, device=frame.device) % (2 * length)
    return frame.index_select(axis, torch.minimum(position, 2 * length - 1 - position))
