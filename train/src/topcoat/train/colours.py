"""Keeping a photograph's colours while its texture is repainted.

Source: Gatys, Bethge, Hertzmann, Shechtman 2016, "Preserving Color in Neural Artistic Style
Transfer" (arXiv:1606.05897).
"""

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
"""Of R, G and B, as in the YIQ space of the source."""
_LEAST_VARIANCE = 1e-6
"""Added to the colours' covariance: a picture of one colour has none, and dividing by nothing would
turn rounding noise into colour. A quarter of a grey level, squared."""


def luminance(frame: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] -> (B, 1, H, W)."""
    weights = frame.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (frame * weights).sum(1, keepdim=True)


def grey(frame: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] -> the same without colour, three equal channels."""
    return luminance(frame).expand_as(frame).contiguous()


def matched_luminance(style: Tensor, content: Tensor) -> Tensor:
    """Grey style picture with the mean and the spread of the content's lightness.

    Args:
        style: (1, 3, H, W) RGB in [0, 1].
        content: (1, 3, H', W') RGB in [0, 1].

    Returns:
        (1, 3, H, W), three equal channels, clipped to [0, 1].

    Source: §5 of the paper: L' = σ_C/σ_S (L_S - μ_S) + μ_C.
    """
    light, wanted = luminance(style), luminance(content)
    spread = light.std().clamp_min(_LEAST_VARIANCE**0.5)
    matched = (light - light.mean()) * (wanted.std() / spread) + wanted.mean()
    return matched.clamp(0, 1).expand_as(style).contiguous()


def with_colours_of(result: Tensor, content: Tensor) -> Tensor:
    """The lightness of one picture with the colour of another of the same size.

    Args:
        result: (1, 3, H, W) in [0, 1]: gives the lightness.
        content: (1, 3, H, W) in [0, 1]: gives I and Q of YIQ, that is R, G and B less lightness.

    Returns:
        (1, 3, H, W), clipped to [0, 1].
    """
    return (content - luminance(content) + luminance(result)).clamp(0, 1)


def recoloured(style: Tensor, content: Tensor) -> Tensor:
    """Style picture with the mean and covariance of the content's colours.

    The linear map Σ_C^½ Σ_S^-½, which the source calls the image analogies variant: of all that
    match the covariance it moves colours least.

    Args:
        style: (1, 3, H, W) RGB in [0, 1].
        content: (1, 3, H', W') RGB in [0, 1].

    Returns:
        (1, 3, H, W), clipped to [0, 1].

    Source: §4 of the paper, eq. 1 and 2.
    """
    points, wanted = (picture[0].flatten(1).double() for picture in (style, content))
    mean = points.mean(1, keepdim=True)
    there = _root(torch.cov(wanted)) @ _root(torch.cov(points), inverse=True)
    moved = there @ (points - mean) + wanted.mean(1, keepdim=True)
    return moved.clamp(0, 1).reshape(style.shape).to(style.dtype)


def _root(covariance: Tensor, *, inverse: bool = False) -> Tensor:
    """Symmetric square root of a (3, 3) covariance, or of its inverse."""
    values, vectors = torch.linalg.eigh(covariance + _LEAST_VARIANCE * torch.eye(3).to(covariance))
    power = -0.5 if inverse else 0.5
    root: Tensor = vectors @ torch.diag(values.clamp_min(_LEAST_VARIANCE) ** power) @ vectors.T
    return root
