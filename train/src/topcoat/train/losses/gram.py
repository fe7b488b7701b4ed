"""Gram matrices and the style loss on them."""

from typing import Any

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
        ctx.save_for_backward(features)
        return gram_forward(features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (features,) = ctx.saved_tensors
        return gram_backward(features, grad)


def gram_forward(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, C): :func:`gram_matrix` without a gradient."""
    _, c, h, w = features.shape
    pixels = _pixels(features)
    exact = pixels if pixels.dtype == torch.float64 else pixels.float()
    return torch.bmm(exact.transpose(1, 2), exact) / (c * h * w)


def gram_backward(features: Tensor, grad: Tensor, onto: Tensor | None = None) -> Tensor:
    """The gradient of :func:`gram_matrix`.

    Args:
        features: (B, C, H, W), what it was computed of.
        grad: (B, C, C), the gradient of what it gave.
        onto: (B, C, H, W) of the features' type, channels-last in memory: another gradient of the
            features, to which this one is added in place and in the same product.

    Returns:
        (B, C, H, W) of the features' type, channels-last in memory: ``onto``, if it was given.
    """
    b, c, h, w = features.shape
    both_factors = ((grad + grad.transpose(1, 2)) / (c * h * w)).to(features.dtype)
    pixels = _pixels(features)
    if onto is not None:
        onto.permute(0, 2, 3, 1).view(b, h * w, c).baddbmm_(pixels, both_factors)
        return onto
    return torch.bmm(pixels, both_factors).reshape(b, h, w, c).permute(0, 3, 1, 2)


def _pixels(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), a view if channels-last in memory."""
    b, c, h, w = features.shape
    return features.permute(0, 2, 3, 1).reshape(b, h * w, c)


GRAM_FORMS: dict[str, str] = {
    "relative": "Σ(G-A)² / ΣA²: the share of the style's energy that the output gets wrong",
    "johnson2016": "G = FFᵀ/(CHW), summed over entries: eq. 4 of Johnson et al. 2016",
    "johnson2016-code": "G = FFᵀ/(CHW), mean over entries: their code, neural-style, texture_nets",
    "gatys2015": "G = FFᵀ, Σ(G-A)² / (4N²M²): eq. 4 of Gatys et al. 2015",
    "gatys-notebook": "G = FFᵀ/(HW), mean over entries: Gatys's PyTorch notebook, Dumoulin 2017",
    "unnormalised": "G = FFᵀ, mean over entries: code of Risser et al. 2017",
}
"""Every normalisation of the Gram loss that the literature uses, by source. N or C: channels, M or
HW: positions. Other sources' weights carry over when the form does."""


def style_loss(
    gram: Tensor,
    target: Tensor,
    form: str,
    positions: int | None = None,
) -> Tensor:
    """Distance between the Gram matrices of a batch and that of a style picture.

    Args:
        gram: (B, C, C), from :func:`gram_matrix`.
        target: (C, C) or (1, C, C), likewise: divided by its own picture's number of positions, so
            that pictures of two sizes compare.
        form: a key of :data:`GRAM_FORMS`; ``absolute`` is ``johnson2016-code``. ``relative`` is 0
            for the style itself and 1 for a black picture's worth of difference whatever the
            style: one weight then serves a starry night and a flat poster.
        positions: H*W of the features, which ``unnormalised`` needs; the target then counts as if
            its picture had as many.

    Returns:
        scalar, mean over the batch.

    Raises:
        ValueError: no such form, or ``unnormalised`` without ``positions``.

    >>> style_loss(torch.zeros(3, 2, 2), torch.ones(2, 2), "relative").item()
    1.0
    >>> style_loss(torch.zeros(1, 2, 2), torch.ones(2, 2), "gatys2015").item()
    1.0
    """
    target = target.reshape(1, *target.shape[-2:])
    squares = (gram - target).square().sum((1, 2)).mean()
    channels = gram.shape[-1]
    # With G = FFᵀ/(CHW) in hand every form is a factor: (4N²M²)⁻¹Σ(NM·ΔG)² is a quarter of ΣΔG².
    if form == "relative":
        return squares / target.square().sum().clamp_min(1e-20)  # a silent layer has no energy
    if form in ("absolute", "johnson2016-code"):
        return squares / channels**2
    if form in ("johnson2016", "gatys-notebook"):
        return squares
    if form == "gatys2015":
        return squares / 4
    if form == "unnormalised":
        if positions is None:
            raise ValueError("the unnormalised form needs the number of positions, H*W")
        return squares * positions**2
    raise ValueError(f"no Gram form {form!r}; choose among {', '.join(GRAM_FORMS)}")
