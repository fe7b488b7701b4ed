"""Gram matrices and the style loss on them."""

from typing import Any, Literal

import torch
from torch import Tensor


def gram_matrix(features: Tensor) -> Tensor:
    """Correlate every pair of channels of a feature map, averaged over pixels and channels.

    Computed in float32 whatever the features' type: in bfloat16 a sum over 65 536 pixels loses
    the differences that training is after.

    Args:
        features: (B, C, H, W), floating point; activations, so unbounded.

    Returns:
        (B, C, C) float32 (float64 for float64), symmetric, divided by C*H*W so that the style
        weight does not depend on the picture's size.

    Raises:
        ValueError: ``features`` is not 4-D.

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155), "Style Reconstruction Loss", eq. 3.

    >>> gram_matrix(torch.ones(1, 2, 4, 4)).tolist()
    [[[0.5, 0.5], [0.5, 0.5]]]
    """
    if features.dim() != 4:
        raise ValueError(f"features must be (B, C, H, W), got {tuple(features.shape)}")
    with torch.autocast(features.device.type, enabled=False):
        gram: Tensor = _Gram.apply(features)  # type: ignore[no-untyped-call]
    return gram


class _Gram(torch.autograd.Function):
    """The product with itself, differentiated by hand.

    Autograd would see two different factors and multiply twice, in float32, and hand back a
    gradient in another layout than the channels-last features have. By hand it is one product in
    the features' own type and layout (measured in docs/training.md, "Where the time goes").
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:  # noqa: ANN401 - autograd's own type
        b, c, h, w = features.shape
        pixels = features.permute(0, 2, 3, 1).reshape(b, h * w, c)  # a view if channels-last
        ctx.save_for_backward(pixels)
        ctx.spatial = (h, w)
        exact = pixels if pixels.dtype == torch.float64 else pixels.float()
        return torch.bmm(exact.transpose(1, 2), exact) / (c * h * w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (pixels,) = ctx.saved_tensors  # (B, H*W, C)
        h, w = ctx.spatial
        b, _, c = pixels.shape
        both_factors = ((grad + grad.transpose(1, 2)) / (c * h * w)).to(pixels.dtype)
        return torch.bmm(pixels, both_factors).reshape(b, h, w, c).permute(0, 3, 1, 2)


def style_loss(gram: Tensor, target: Tensor, scale: Literal["relative", "absolute"]) -> Tensor:
    """Distance between the Gram matrices of a batch and that of a style picture.

    Args:
        gram: (B, C, C).
        target: (C, C) or (1, C, C).
        scale: ``absolute``: mean of the squared differences over the C*C entries, what the
            published weights refer to. ``relative``: sum of the squared differences over the sum
            of the target's squares, so 0 is the style itself and 1 is a black picture's worth of
            difference whatever the style: one weight then serves a starry night and a flat poster.

    Returns:
        scalar, mean over the batch.

    Source: eq. 4 of the paper sums over entries; its code averages (a factor of C*C).

    >>> style_loss(torch.zeros(3, 2, 2), torch.ones(2, 2), "relative").item()
    1.0
    """
    target = target.reshape(1, *target.shape[-2:])
    squares = (gram - target).square()
    if scale == "absolute":
        return squares.mean()
    return squares.sum((1, 2)).mean() / target.square().sum()
