"""The diversity term: what keeps a texture network from making one texture of every noise."""

import torch
from torch import Tensor

_EPSILON = 1e-3
"""Distances well below this, a quarter of an 8-bit step, count as this: their logarithm and its
gradient stay finite for equal pictures."""


def diversity(outputs: Tensor) -> Tensor:
    """Mean logarithm of the distance from each picture to the nearest other one.

    An estimate of the entropy of what a generator makes, up to a constant and a factor: to be made
    larger. The published distance is the Euclidean norm and the estimate D times as large, D being
    the number of values; here the distance is the root mean square over values, so that neither the
    size of the pictures nor the batch changes what a weight means: doubling all distances adds
    ln 2.

    Args:
        outputs: (B, …), pictures in [0, 1]; B at least 2.

    Returns:
        scalar float32 (float64 for float64), from ln 0.001 for equal pictures.

    Raises:
        ValueError: fewer than two pictures.

    Source: Ulyanov, Vedaldi, Lempitsky 2017 (arXiv:1701.02096), the Kozachenko-Leonenko estimator.

    >>> round(diversity(torch.tensor([[0.0, 0.0], [0.0, 1.0]])).exp().item(), 3)  # sqrt(1/2)
    0.707
    """
    if len(outputs) < 2:
        raise ValueError(f"diversity needs at least two pictures, got {len(outputs)}")
    values = outputs.flatten(1)
    values = values if values.dtype == torch.float64 else values.float()
    with torch.no_grad():
        squares = torch.stack([(values - one).square().mean(1) for one in values])
        nearest = squares.fill_diagonal_(torch.inf).argmin(1)
    # Only the nearest one has a gradient: by index, so that nothing is kept for all the pairs.
    distances = (values - values[nearest]).square().mean(1)
    return 0.5 * (distances + _EPSILON**2).log().mean()
