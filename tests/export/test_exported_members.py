"""What ``topcoat.export`` says it offers is what it offers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import topcoat.export
import topcoat.runtime
from topcoat.export import _errors


def test_every_public_name_loads_and_nothing_is_listed_twice() -> None:
    names = topcoat.export.__all__
    assert len(set(names)) == len(names)
    assert set(names) <= set(dir(topcoat.export))
    for name in names:
        assert callable(getattr(topcoat.export, name)) or name == "GATES"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = topcoat.export.nonsense


def test_the_lazy_names_are_those_that_type_checkers_see() -> None:
    path = Path(topcoat.export.__file__)
    blocks = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    ]
    seen = {
        alias.name
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(topcoat.export.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, topcoat.export; print({'torch', 'onnx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_error_is_ours_and_a_built_in_one() -> None:
    errors = [
        value
        for name in topcoat.export.__all__
        if isinstance(value := getattr(topcoat.export, name), type)
        and issubclass(value, Exception)
        and name != "TopcoatError"
    ]
    defined = {value for value in vars(_errors).values() if isinstance(value, type)}
    # Frames are compared by the runtime, whose error it is when there is nothing to compare.
    assert set(errors) == defined - {_errors.TopcoatError} | {topcoat.export.ParityError}
    for error in errors:
        ours = topcoat.runtime if error is topcoat.export.ParityError else topcoat.export
        assert issubclass(error, ours.TopcoatError)
        assert issubclass(error, (ValueError, RuntimeError, OSError))
