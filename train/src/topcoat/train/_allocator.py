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


class PageFaults:
    """Finds out whether a run's steps get their memory from the kernel, time and again.

    Where :func:`keep_freed_memory` took effect, a step that has been made before maps next to
    nothing. Elsewhere it depends on the C library.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._before: tuple[int, float, float] | None = None

    def after_step(self) -> str | None:
        """Count a step; once, after enough of them: what to do, if there is something to do."""
        self._steps += 1
        if self._steps == _SETTLED:
            self._before = _usage()
        if self._steps != _SETTLED + _WATCHED or self._before is None:
            return None
        now = _usage()
        assert now is not None
        faults, system, user = (b - a for a, b in zip(self._before, now, strict=True))
        share = system / max(1e-9, system + user)
        if faults / _WATCHED < _MANY or share < _COSTLY:
            return None
        remedy = (
            "unset TOPCOAT_KEEP_MALLOC"
            if os.environ.get("TOPCOAT_KEEP_MALLOC") == "1"
            else "preload an allocator that keeps memory, such as jemalloc or mimalloc"
        )
        return (
            f"{100 * share:.0f} % of the processor time goes into mapping memory, "
            f"{faults / _WATCHED:.0f} page faults a step; {remedy}"
        )


_SETTLED, _WATCHED = 8, 8
"""Steps until memory use has settled, and steps that are then looked at."""
_MANY = 5000
"""Page faults a step, 20 MB, from which they may matter."""
_COSTLY = 0.1
"""Share of the processor time spent in the kernel from which they do."""


def _usage() -> tuple[int, float, float] | None:
    """Page faults without disk access, and seconds in the kernel and in the program."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt, used.ru_stime, used.ru_utime
