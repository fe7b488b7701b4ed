"""Threads that may be inside an engine when the interpreter ends, and how they are seen off.

Python ends a daemon thread where it next wants the interpreter, which may be a place in an
engine's code that does not bear it: the process is then aborted. A thread that is none would keep
the process alive for as long as an engine hangs. So these are daemons, and at exit they are asked
to stop and waited for, for a few seconds.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable

AT_EXIT_S = 5.0
"""All of them together are waited for so long."""

_lock = threading.Lock()
_live: dict[threading.Thread, Callable[[], None] | None] = {}


def start(work: Callable[[], None], name: str, stop: Callable[[], None] | None = None) -> None:
    """Run ``work`` on a thread of its own.

    Args:
        work: what it does.
        name: for debuggers.
        stop: asks it to end soon; None: it ends by itself.
    """

    def body() -> None:
        try:
            work()
        finally:
            with _lock:
                _live.pop(thread, None)

    thread = threading.Thread(target=body, name=f"topcoat {name}", daemon=True)
    with _lock:
        _live[thread] = stop
    thread.start()


def see_off() -> None:
    """Ask every thread to end, and wait a little."""
    with _lock:
        threads = list(_live.items())
    for _, stop in threads:
        if stop is not None:
            stop()
    until = time.monotonic() + AT_EXIT_S
    for thread, _ in threads:
        thread.join(max(0.0, until - time.monotonic()))


atexit.register(see_off)
