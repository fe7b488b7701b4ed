"""Memory that networks need for large pictures, and the word that it is not there."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topcoat.train._errors import OutOfMemoryError
from topcoat.train.networks import FrameNetwork

_SIDE = 64
"""Of the frame on which the need is found; it then grows with the number of pixels."""
_SIGNS = ("allocate memory", "not enough memory", "out of memory", "bad_alloc")
"""How allocators say it, most of them in a plain RuntimeError."""


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that can still be had, swap included; None where the system does not say (Linux does).

    Args:
        meminfo: another file for tests.
    """
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if line)
        return sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024
    except (OSError, KeyError, ValueError):
        return None


def least_memory_per_pixel(network: FrameNetwork) -> float | None:
    """Bytes per input pixel that a network cannot do without, in float32.

    That is what the input and the output of its hungriest layer take; others may be alive at the
    same time, so it is a lower bound. Nothing is computed: shapes alone pass through a copy.

    Returns:
        None if the network cannot be run on shapes alone.
    """
    side = -(-max(_SIDE, network.size_min) // network.size_multiple) * network.size_multiple
    most = 0

    def see(_: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        nonlocal most
        alive = {id(t): t for t in (*inputs, output) if isinstance(t, Tensor)}  # in place: one
        most = max(most, sum(t.numel() * t.element_size() for t in alive.values()))

    try:
        shapes = copy.deepcopy(network).to("meta").float().eval()
        for module in shapes.modules():
            if next(module.children(), None) is None:
                module.register_forward_hook(see)
        with torch.inference_mode():
            output: Tensor = shapes(torch.empty(1, 3, side, side, device="meta"))
    except (NotImplementedError, RuntimeError):  # it looks at values, or has no forward
        return None
    return max(most, output.numel() * output.element_size()) / side**2


@contextlib.contextmanager
def memory_for(what: str, instead: str = "leave that picture out") -> Iterator[None]:
    """Turn the many ways in which memory runs out into one line.

    Args:
        what: for what it was wanted.
        instead: what would need less.

    Raises:
        OutOfMemoryError: the body ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(s in str(error) for s in _SIGNS):
            raise
        raise OutOfMemoryError(
            f"not enough memory {what}; {instead}, scale it down or cut it, or use a "
            "machine with more memory"
        ) from None
