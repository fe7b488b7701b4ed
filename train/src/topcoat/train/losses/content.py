"""The content (feature reconstruction) loss."""

from typing import Literal

import torch
from torch import Tensor


def content_loss(
    features: Tensor, target: Tensor, scale: Literal["relative", "absolute", "gatys2015"]
) -> Tensor:
    """Squared distance between two feature maps.

    Args:
        features: (B, C, H, W), of the output.
        target: (B, C, H, W), of the photograph; treated as a constant.
        scale: ``absolute``: mean over C*H*W. ``relative``: sum of squares over the sum of the
            target's squares, picture by picture: the share of the photograph's feature energy
            that the output gets wrong. It weighs a hazy picture as much as a contrasty one.
            ``gatys2015``: half the sum over C*H*W.

    Returns:
        scalar float32 (float64 for float64), mean over the batch.

    Raises:
        ValueError: the shapes differ.

    Source: ``absolute``: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155), eq. 2; ``gatys2015``:
    Gatys, Ecker, Bethge 2015 (arXiv:1508.06576), eq. 1.

    >>> content_loss(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2), "relative").item()
    1.0
    """
    if features.shape != target.shape:
        raise ValueError(
            f"features {tuple(features.shape)} and target {tuple(target.shape)} differ"
        )
    with torch.autocast(features.device.type, enabled=False):
        # The difference is taken in the features' own type: the sum over it needs the range.
        squares = (features - target.detach()).square()
        wide = torch.promote_types(squares.dtype, torch.float32)
        if scale == "absolute":
            return squares.mean(dtype=wide)
        if scale == "gatys2015":
            return 0.5 * squares.sum(dtype=wide) / len(features)
        energy = target.detach().square().sum((1, 2, 3), dtype=wide)
        return (squares.sum((1, 2, 3), dtype=wide) / energy.clamp_min(1e-8)).mean()
