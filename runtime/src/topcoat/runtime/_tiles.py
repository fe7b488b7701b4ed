"""Cut a frame into windows that a local network can run one by one, without a seam.

Pure geometry: nothing here looks at pixels. An output pixel of a local network depends on input
pixels at most ``halo`` away. A window therefore carries that much context on each side that lies
inside the frame, and what the network makes of the context is thrown away. On a side that is the
frame's own border the window ends there too, so that the network's own padding acts exactly where
it would without windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from topcoat.runtime._errors import TileError
from topcoat.runtime.bundle import SizeRule


@dataclass(frozen=True, slots=True)
class Span:
    """One window along one axis, in input pixels."""

    start: int
    """Where the window begins; a multiple of the size rule's."""
    keep_from: int
    keep_to: int
    """The part of the frame that is taken from this window: start <= keep_from < keep_to."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The windows of one frame; all have the same size."""

    height: int
    width: int
    """Of every window."""
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.rows) * len(self.columns)

    def windows(self) -> Iterator[tuple[Span, Span]]:
        """Yield (rows, columns) of each window, row by row: as a picture is read."""
        for row in self.rows:
            for column in self.columns:
                yield row, column


def smallest_tile(rule: SizeRule) -> int:
    """Return the smallest side of a window that still yields something beside its context.

    Raises:
        TileError: the network looks at the whole frame, or its largest size is below that side.

    >>> smallest_tile(SizeRule(multiple=4, min=4, max=None, pad="edge", halo=6))
    16
    """
    if rule.halo is None:
        raise TileError(
            "this bundle cannot be run in tiles: its network looks at the whole frame (instance"
            " normalisation), or the bundle does not say how far it looks (size.halo); leave out"
            " the tile, or scale the frame down"
        )
    least = max(rule.min, _up(2 * rule.halo, rule.multiple) + rule.multiple)
    if rule.max is not None and least > rule.max:
        raise TileError(
            f"this bundle cannot be run in tiles: they would need {least} pixels on each side"
            f" ({rule.halo} of context around them), its network takes at most {rule.max}"
        )
    return least


def can_tile(rule: SizeRule) -> bool:
    """Return whether a network of this rule can be run in windows at all."""
    try:
        smallest_tile(rule)
    except TileError:
        return False
    return True


def fitting_tile(tile: int, rule: SizeRule) -> int:
    """Return the largest side of a window that the size rule allows and that is at most ``tile``.

    Raises:
        TileError: ``tile`` is below the smallest side that works, or none works.

    >>> fitting_tile(100, SizeRule(multiple=8, min=8, max=None, pad="edge", halo=6))
    96
    """
    least = smallest_tile(rule)
    if tile < least:
        raise TileError(
            f"tile is {tile}, too small for a network that needs {rule.halo} pixels of context on"
            f" each side; the smallest that works is {least}"
        )
    return (tile if rule.max is None else min(tile, rule.max)) // rule.multiple * rule.multiple


def tile_within(height: int, width: int, pixels: float, rule: SizeRule) -> int:
    """Return the side of the largest windows of which none has more than ``pixels`` pixels.

    Args:
        height: of the frame; windows are never higher than it, which lets them be wider.
        width: of the frame.
        pixels: how many the engine may be given at once. Fewer than the smallest window has are
            taken for as many: it is what there is.
        rule: the network's size rule.

    Raises:
        TileError: see :func:`smallest_tile`.

    >>> tile_within(1000, 2000, 90_000, SizeRule(multiple=4, min=4, max=None, pad="edge", halo=6))
    300
    """
    short = min(height, width)
    side = math.isqrt(max(0, int(pixels)))
    if side > short:
        side = int(pixels) // short
    return fitting_tile(max(side, smallest_tile(rule)), rule)


def plan(height: int, width: int, tile: int, rule: SizeRule) -> Tiling:
    """Cut a frame into as few windows of at most ``tile`` as cover it, of the least size for that.

    Args:
        height: of the frame, before it is padded to the size rule.
        width: of the frame.
        tile: the largest side of a window; a result of :func:`fitting_tile`.
        rule: the network's size rule; ``halo`` is not None.

    Returns:
        Windows over the padded frame. What they keep covers the frame itself, each pixel once.
        Neighbours part in the middle of what they share: as far from their edges as can be.
    """
    rows_side, rows = _spans(height, tile, rule)
    columns_side, columns = _spans(width, tile, rule)
    return Tiling(rows_side, columns_side, rows, columns)


def _spans(length: int, tile: int, rule: SizeRule) -> tuple[int, tuple[Span, ...]]:
    """Return the windows' side along one axis, and the windows."""
    assert rule.halo is not None
    unit = rule.multiple
    padded = max(rule.min, _up(length, unit))
    if padded <= tile:
        return padded, (Span(0, 0, length),)
    context = _up(2 * rule.halo, unit)
    count = 1 + math.ceil((padded - tile) / (tile - context))
    # As many windows as that, of the least side that still covers: less is computed twice.
    side = max(rule.min, _up(math.ceil((padded + (count - 1) * context) / count), unit))
    steps = (padded - side) // unit
    starts = [steps * i // (count - 1) * unit for i in range(count)]
    # The last cut stays inside the frame: what is padded must not make up a window of its own.
    cuts = [
        min((left + side + right) // 2, length - 1) for left, right in itertools.pairwise(starts)
    ]
    ends = zip(starts, [0, *cuts], [*cuts, length], strict=True)
    return side, tuple(Span(start, first, last) for start, first, last in ends)


def _up(value: int, unit: int) -> int:
    """Round up to a multiple of ``unit``."""
    return -(-value // unit) * unit
