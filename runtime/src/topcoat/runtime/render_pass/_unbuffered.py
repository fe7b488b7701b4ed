"""Keep numpy from passing rows that do not lie end to end through buffers of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def unbuffered() -> Iterator[None]:
    """Let element-wise operations work on their operands directly, in this thread.

    Where an operand of two or more dimensions is not one stretch of memory (every other row, a row
    without its last column, one weight per row), numpy gathers it into a buffer as long as it can
    fill, 8192 elements, although no conversion needs one. That allocates 16 KiB per such operand
    and call and takes up to half as long again. With the smallest buffers it works row by row.

    Not for operations that convert types, which do need their buffers.
    """
    before = np.setbufsize(16)
    try:
        yield
    finally:
        np.setbufsize(before)
