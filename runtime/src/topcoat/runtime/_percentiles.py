"""Percentiles as every report of this project has them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def nearest_rank(values: NDArray[np.float64], percent: float) -> float:
    """Return a percentile by nearest rank: always one of the values.

    It is the smallest value that at least ``percent`` % of all are no greater than. With fewer than
    1000 values the 99.9th is the greatest, likewise the 99th with fewer than 100.

    Args:
        values: at least one, in any order.
        percent: 0 to 100.

    >>> nearest_rank(np.array([4.0, 1.0, 3.0, 2.0]), 50)
    2.0
    """
    # 99.9 % of 1000 is 999; in binary it is a little more, which must not become 1000.
    rank = math.ceil(round(percent * len(values) / 100, 6))
    return float(np.sort(values)[max(rank, 1) - 1])
