"""The pixel loss."""

from typing import Literal

import torch
from torch import Tensor


def pixel_loss(output: Tensor, target: Tensor, form: Literal["l1", "l2"]) -> Tensor:
    """Distance between two pictures, pixel by pixel.

    Args:
        output: (B, 3, H, W), nominally in [0, 1].
        target: (B, 3, H, W) in [0, 1]; treated as a constant.
        form: ``l2``: mean squared difference, as published; ``l1``: mean absolute difference,
            which is less ruled by the few worst pixels.

    Returns:
        scalar float32 (float64 for float64).

    Raises:
        ValueError: the shapes differ.

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155) §3.2, "Pixel Loss".

    >>> pixel_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5), "l2").item()
    0.25
    """
    if output.shape != target.shape:
        raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} differ")
    with torch.autocast(output.device.type, enabled=False):
        wide = torch.promote_types(output.dtype, torch.float32)
        difference = output.to(wide) - target.detach().to(wide)
        return difference.abs().mean() if form == "l1" else difference.square().mean()
