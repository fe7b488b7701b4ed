"""What the package exports, what importing it loads, and what it costs to ask for help."""

import doctest
import importlib
import inspect
import json
import pkgutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import topcoat
import topcoat.runtime as tr

HEAVY = ("torch", "onnx", "PIL", "onnxruntime", "openvino", "matplotlib", "av", "psutil")


def test_all_lists_exactly_what_is_public() -> None:
    public = {
        name
        for name, value in vars(tr).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    public |= tr._OF_RENDER_PASS  # loaded when they are asked for
    assert set(tr.__all__) == public
    assert tr.__all__ == sorted(tr.__all__, key=lambda name: (name[0].islower(), name))


@pytest.mark.parametrize("name", sorted(set(tr.__all__) - {"Frame"}))
def test_everything_public_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(tr, name)), f"{name} has no docstring"


def test_every_error_is_one_of_ours_and_the_builtin_it_is_like() -> None:
    likes = {"BundleError": ValueError, "FrameError": ValueError, "BackendError": RuntimeError}
    likes |= {"MediaError": ValueError, "ModelClosedError": RuntimeError}
    for name, builtin in likes.items():
        error = getattr(tr, name)
        assert issubclass(error, tr.TopcoatError)
        assert issubclass(error, builtin)


def test_the_namespace_has_no_init_that_would_hide_the_other_parts() -> None:
    assert not hasattr(topcoat, "__file__") or topcoat.__file__ is None


def test_importing_the_runtime_loads_no_engine_and_no_framework(
    run_python: Callable[..., Any],
) -> None:
    unneeded = [*HEAVY, "topcoat.runtime.backends._cuda", "topcoat.runtime.parity"]
    code = f"import sys, topcoat.runtime; print(sorted(set({unneeded!r}) & set(sys.modules)))"
    assert run_python("-c", code).stdout.strip() == "[]"


def test_running_a_bundle_loads_no_training_framework(
    run_python: Callable[..., Any], blocks: Path
) -> None:
    code = (
        "import sys, numpy as np, topcoat.runtime as tr;"
        f" m = tr.open({str(blocks)!r}, backend='onnxruntime-cpu');"
        " m.process(np.zeros((8, 8, 3), np.uint8));"
        " print(sorted({'torch', 'onnx', 'PIL', 'openvino', 'matplotlib'} & set(sys.modules)))"
    )
    done = run_python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "topcoat --help",
        "topcoat run --help",
        "topcoat texture --help",
        "topcoat info --help",
        "topcoat explain --help",
        "topcoat verify --help",
        "bench-latency --help",
        "topcoat run a.png b.png --modle x",
        "bench-latency b --sizes 12",
    ],
)
def test_help_and_typos_load_neither_numpy_nor_an_engine(
    run_python: Callable[..., Any], arguments: str
) -> None:
    program, *rest = arguments.split()
    module = "topcoat.runtime.cli." + program.replace("-", "_")
    code = (
        f"import sys, importlib\n"
        f"main = importlib.import_module({module!r}).main\n"
        f"try: main({rest!r})\n"
        f"except SystemExit as stop: code = stop.code\n"
        f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = run_python("-c", code)
    wanted = "0 []" if "--help" in arguments else "2 []"
    assert done.stderr.strip().splitlines()[-1] == wanted
    if "--help" in arguments:
        assert "example" in done.stdout


def test_the_examples_in_docstrings_hold() -> None:
    tried = 0
    for info in pkgutil.walk_packages(tr.__path__, "topcoat.runtime."):
        if info.name.endswith(("_plots", "_html")):  # need matplotlib, have no examples
            continue
        module = importlib.import_module(info.name)
        result = doctest.testmod(module)
        assert result.failed == 0, info.name
        tried += result.attempted
    assert tried >= 3


def test_the_overhead_benchmark_runs(run_python: Callable[..., Any], tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "runtime_overhead.py"
    if not script.exists():
        pytest.skip("the benchmarks are not part of this checkout")
    out = tmp_path / "o.json"
    done = run_python(
        str(script), "--frames", "2", "--imports", "1", "--threads", "1", "--json", str(out)
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["import"]["loaded"] == []
    assert {row["case"] for row in result["process"]} >= {"process(frame, out=buffer)"}
