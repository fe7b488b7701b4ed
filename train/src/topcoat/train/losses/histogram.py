"""The histogram loss: features take on the style's values, not only their correlations."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILES = 16384
"""Most values per channel that a target keeps: exact for a picture of 128² positions; of a larger
one the order statistics between are interpolated. A checkpoint has to carry it."""


def sorted_values(features: Tensor, quantiles: int | None = QUANTILES) -> Tensor:
    """Order statistics of every channel: what the histogram loss needs to know of a style.

    Args:
        features: (1, C, H, W) of the style picture.
        quantiles: keep at most this many per channel, from the least to the greatest; None: all.

    Returns:
        (C, K) float, ascending.

    Raises:
        ValueError: ``features`` is not of one picture.
    """
    if features.dim() != 4 or len(features) != 1:
        raise ValueError(f"features must be (1, C, H, W), got {tuple(features.shape)}")
    values = features[0].flatten(1)  # (C, H*W)
    ascending = (values if values.dtype == torch.float64 else values.float()).sort(dim=1).values
    if quantiles is None or ascending.shape[1] <= quantiles:
        return ascending
    return _resampled(ascending, quantiles)


def histogram_loss(
    features: Tensor,
    target: Tensor,
    scale: Literal["relative", "absolute", "gatys2015"] = "relative",
    *,
    samples: int = 0,
    generator: torch.Generator | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """Squared distance between features and the same features with the style's histogram.

    L = ‖O - R(O)‖², R the match of each channel's histogram to the style's, a constant in the
    backward pass. Matched exactly, by rank: the k-th smallest value of a channel is to become the
    style's k-th smallest (linear in between where the pictures' sizes differ). Positions of equal
    value are ranked at random, so that a flat area is not matched from top to bottom.

    Args:
        features: (B, C, H, W), of the output.
        target: (C, K) ascending, from :func:`sorted_values`.
        scale: ``relative``: over the sum of squares of what is to be matched, picture by picture;
            ``absolute``: mean over entries; ``gatys2015``: sum over entries, as published.
        samples: compare only so many positions, drawn anew at each call and the same for every
            channel: sorting is what this loss costs; 0 takes all.
        generator: draws positions and breaks ties; None: torch's global one.
        where: (H, W) bool: positions that count; the others get no gradient. None: all.

    Returns:
        scalar float32 (float64 for float64), mean over the batch; 0 if no position counts.

    Raises:
        ValueError: the channels differ.

    Source: Risser, Wilmot, Barnes 2017 (arXiv:1701.08893) §4.1, without its binning.

    >>> histogram_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[1.0, 3.0]]), "absolute").item()
    5.0
    """
    if features.dim() != 4 or features.shape[1] != target.shape[0]:
        raise ValueError(
            f"features {tuple(features.shape)} and target {tuple(target.shape)} differ in channels"
        )
    with torch.autocast(features.device.type, enabled=False):
        b = len(features)
        values = features.flatten(2)  # (B, C, H*W)
        values = values if values.dtype == torch.float64 else values.float()
        order = _random_order(features, samples, generator, where)
        if not len(order):
            return values.sum() * 0
        # One shuffle and a stable sort: equal values keep the shuffled, so a random, order.
        ascending = values[:, :, order].sort(dim=2, stable=True).values
        wanted = _resampled(target.to(ascending), len(order))[None]  # (1, C, n)
        squares = (ascending - wanted).square()
        if scale == "absolute":
            return squares.mean()
        if scale == "gatys2015":
            every = values.shape[2] if where is None else int(where.sum())
            return squares.sum() / b * (every / len(order))
        return squares.sum() / b / wanted.square().sum().clamp_min(1e-8)


def match_histogram(
    features: Tensor, target: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """R(O): the features with every channel's values replaced, rank by rank, by the target's.

    Args:
        features: (B, C, H, W).
        target: (C, K) ascending.
        generator: breaks ties; None: torch's global one.

    Returns:
        (B, C, H, W), without gradient.
    """
    with torch.no_grad():
        order = _random_order(features, 0, generator, None)
        values = features.flatten(2)[:, :, order]  # (B, C, n)
        places = values.argsort(dim=2, stable=True)
        wanted = _resampled(target.to(values), len(order)).expand_as(values)
        matched = torch.empty_like(values).scatter_(2, places, wanted)
        unshuffled = torch.empty_like(matched)
        unshuffled[:, :, order] = matched
        return unshuffled.reshape(features.shape)


def _random_order(
    features: Tensor, samples: int, generator: torch.Generator | None, where: Tensor | None
) -> Tensor:
    """Numbers of the positions that count, shuffled, at most ``samples`` of them."""
    count = features.shape[2] * features.shape[3]
    order = torch.randperm(count, generator=generator).to(features.device)
    if where is not None:
        order = order[where.flatten()[order]]
    return order[:samples] if samples else order


def _resampled(ascending: Tensor, count: int) -> Tensor:
    """(C, K) -> (C, count): order statistics interpolated linearly, extremes kept."""
    if ascending.shape[1] == count:
        return ascending
    if count == 1:  # of one value there are no two extremes
        return ascending.mean(1, keepdim=True)
    return F.interpolate(ascending[None], size=count, mode="linear", align_corners=True)[0]
