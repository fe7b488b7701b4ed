"""The examples in docstrings are run."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import topcoat.export
import topcoat.runtime
import topcoat.train


def _modules() -> Iterator[str]:
    for part in (topcoat.train, topcoat.export, topcoat.runtime):
        yield part.__name__
        for found in pkgutil.walk_packages(part.__path__, part.__name__ + "."):
            yield found.name


@pytest.mark.parametrize("name", list(_modules()))
def test_docstring_examples_hold(name: str) -> None:
    module = importlib.import_module(name)
    torch.manual_seed(0)
    failed, _ = doctest.testmod(
        module,
        extraglobs={"torch": torch, "np": np},
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert failed == 0


def test_there_are_examples_to_run() -> None:
    finder = doctest.DocTestFinder()
    examples = sum(
        len(case.examples)
        for name in _modules()
        for case in finder.find(importlib.import_module(name))
    )
    assert examples >= 10
