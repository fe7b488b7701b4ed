"""How much memory calls take beyond what they give back: for code that runs once per frame."""

import tracemalloc
from collections.abc import Callable


def peak_growth(call: Callable[[], None], times: int = 50) -> int:
    """Return by how many bytes memory was above its start at most, after one warm-up call."""
    tracemalloc.start()
    try:
        call()
        tracemalloc.reset_peak()
        start, _ = tracemalloc.get_traced_memory()
        for _ in range(times):
            call()
        return tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
