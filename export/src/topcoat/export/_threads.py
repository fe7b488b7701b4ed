"""How many threads PyTorch may use while an export runs."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def half_the_cores() -> Iterator[None]:
    """Leave PyTorch fewer threads than there are cores.

    Its threads spin while they wait for each other; where another program holds one of the cores,
    the same frames take thirty times as long on all cores as on half of them (measured on two).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)
