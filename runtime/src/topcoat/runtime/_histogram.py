"""Give a picture the colours of another: the histogram of each channel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame

_STRIPE = 1 << 17
"""Pixels that are looked at together."""


def match_histogram(picture: Frame, reference: Frame) -> None:
    """Change a picture in place so that each channel has the reference's histogram.

    A value is replaced by the one below which the same share of the reference's pixels lies,
    interpolated between the values that occur there. Equal values stay equal, so a histogram with
    few bars keeps few.

    Args:
        picture: (H, W, C) uint8, changed.
        reference: (h, w, C) uint8 of any size.

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155), section 4.2, who match super-resolved
    pictures to the low-resolution input; the rule is the one of scikit-image's
    ``match_histograms`` for uint8, here rounded instead of cut off.

    >>> dark, bright = np.full((2, 2, 1), 7, np.uint8), np.full((1, 3, 1), 200, np.uint8)
    >>> match_histogram(dark, bright)
    >>> dark[0, 0].tolist()
    [200]
    """
    for channel in range(picture.shape[-1]):
        table = matching_table(picture[..., channel], reference[..., channel])
        for stripe in _stripes(picture[..., channel]):
            stripe[...] = np.take(table, stripe)


def matching_table(plane: Frame, reference: Frame) -> NDArray[np.uint8]:
    """Return (256,) uint8: what each value of ``plane`` (H, W) becomes to match ``reference``."""
    share = np.cumsum(_counts(plane)) / plane.size
    counts = _counts(reference)
    values = np.flatnonzero(counts)
    wanted = np.cumsum(counts[values]) / reference.size
    return np.interp(share, wanted, values).round().astype(np.uint8)


def _counts(plane: Frame) -> NDArray[np.intp]:
    return sum(
        (np.bincount(stripe.ravel(), minlength=256) for stripe in _stripes(plane)),
        start=np.zeros(256, np.intp),
    )


def _stripes(plane: Frame) -> Iterator[Frame]:
    """Yield some rows after the other, as views.

    numpy widens values to 8 bytes before it counts them or looks them up: for a whole picture that
    would be eight times its memory.
    """
    rows = max(1, _STRIPE // plane.shape[1])
    for top in range(0, len(plane), rows):
        yield plane[top : top + rows]
