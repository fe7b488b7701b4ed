"""The sRGB transfer function (IEC 61966-2-1), and look-up tables that are made of it."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

STEPS = 255
_FIRST_NAN_HALF = 0x7C01  # the bit pattern after that of float16's +inf


def encode(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return display-encoded values for linear light, both 0..1.

    >>> encode(np.array([0.0, 0.5, 1.0])).round(4).tolist()
    [0.0, 0.7354, 1.0]
    """
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode(encoded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return linear light for display-encoded values, both 0..1.

    >>> decode(np.array([0.0, 0.5, 1.0])).round(4).tolist()
    [0.0, 0.214, 1.0]
    """
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def step_values(*, linear: bool, exposure: float) -> NDArray[np.float64]:
    """Return what each of the 256 steps of a display-encoded byte is worth in the app's values.

    Args:
        linear: the app's values are linear light, else display-encoded.
        exposure: what the app's values are multiplied by before they are encoded.

    Returns:
        (256,), from 0 to 1 / exposure.
    """
    encoded = np.arange(STEPS + 1) / STEPS
    return (decode(encoded) if linear else encoded) / exposure


def step_edges(*, linear: bool, exposure: float) -> NDArray[np.float64]:
    """Return the least of the app's values that rounds to step 1, 2, ... 255: (255,)."""
    encoded = (np.arange(STEPS) + 0.5) / STEPS
    return (decode(encoded) if linear else encoded) / exposure


def fill_half_table(table: NDArray[np.uint8], edges: NDArray[np.float64]) -> None:
    """Make a table from the 16 bits of a float16 to the byte that its value rounds to.

    Not-a-number and everything below 0 become 0, everything above the range 255.

    Args:
        table: (65536,), written.
        edges: what `step_edges` returns.
    """
    with np.errstate(over="ignore", under="ignore"):
        halves = edges.astype(np.float16)
    # Up to the next float16 where the conversion rounded down; +inf follows the largest one.
    starts = halves.view(np.uint16).astype(np.int64) + (halves.astype(np.float64) < edges)
    _fill_steps(table[:_FIRST_NAN_HALF], starts)
    table[_FIRST_NAN_HALF:] = 0


def fill_unit_table(table: NDArray[np.uint8], edges: NDArray[np.float64]) -> None:
    """Make a table from ``round(x * (table.size - 1))``, x in 0..1, to the byte of x.

    Args:
        table: (N,), written.
        edges: what `step_edges` returns for exposure 1.
    """
    _fill_steps(table, np.ceil(edges * (table.size - 1)).astype(np.int64))


def _fill_steps(table: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
    first = 0
    for step, start in enumerate([*starts.tolist(), table.size]):
        table[first:start] = step
        first = start


class PairTable:
    """Maps bytes to 256 values of one type, two bytes a look-up.

    numpy's take costs as much for an entry of 8 bytes as for one of 1, so pairs halve the time.

    Args:
        dtype: of the values: uint8, float16 or float32.
    """

    __slots__ = ("_entries", "_packed", "_values")

    def __init__(self, dtype: type[np.uint8 | np.float16 | np.float32]) -> None:
        self._values = np.zeros(256, dtype)
        self._entries = np.zeros((256, 256, 2), dtype)
        packed = np.dtype(f"u{2 * self._values.itemsize}")
        self._packed = self._entries.reshape(-1, 2).view(packed)[:, 0]

    def fill(self, values: NDArray[np.float64]) -> None:
        """Set the 256 values; what the type cannot hold becomes the nearest that it can.

        Integers are rounded.
        """
        dtype = self._values.dtype
        if dtype == np.uint8:
            values = np.rint(values).clip(0, STEPS)
        elif dtype == np.float16:
            values = values.clip(None, float(np.finfo(np.float16).max))
        with np.errstate(under="ignore"):
            self._values[:] = values
        # The index is two bytes read as one number: whose second byte is the high one, or the low.
        first, second = (1, 0) if sys.byteorder == "little" else (0, 1)
        self._entries[..., 0] = np.expand_dims(self._values, 1 - first)
        self._entries[..., 1] = np.expand_dims(self._values, 1 - second)

    def look_up(
        self,
        source: NDArray[np.uint8],
        index: NDArray[np.intp],
        out: NDArray[np.uint8 | np.float16 | np.float32],
    ) -> None:
        """Write the value of each byte.

        Args:
            source: (N,), C-contiguous.
            index: scratch, at least N / 2.
            out: (N,) of the table's type, C-contiguous, at an even address; may be ``source``.
        """
        pairs = source.size // 2
        np.copyto(index[:pairs], source[: 2 * pairs].view(np.uint16))
        last = self._values[source[-1]]
        packed = out[: 2 * pairs].view(self._packed.dtype)
        self._packed.take(index[:pairs], out=packed, mode="clip")
        if source.size % 2:
            out[-1] = last
