"""Keep the C library from handing memory back to the kernel between training steps."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_TOP_PAD = 1 << 28


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep what is freed, for this process from now on.

    By default glibc maps every large tensor afresh and unmaps it when it is freed, so a step on
    the CPU page-faults through gigabytes: nearly half of its time (docs/training.md). Must be
    called before large tensors exist; memory use stays at the highest point reached.

    Returns:
        Whether it took effect: False on other systems and C libraries, and where
        ``TOPCOAT_KEEP_MALLOC=1`` asks to leave the allocator alone.
    """
    if not sys.platform.startswith("linux") or os.environ.get("TOPCOAT_KEEP_MALLOC") == "1":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no mallopt
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # One arena that grows by brk and never shrinks: no mmap for large blocks (threads' arenas
    # could not hold them), no trimming at the top.
    settings = (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, -1),
        (_M_ARENA_MAX, 1),
        (_M_TOP_PAD, _TOP_PAD),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
