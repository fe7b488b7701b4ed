"""What holds between the three parts."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("train", "export", "runtime")
ALLOWED_AT_THE_TOP = {
    *PARTS,
    *("tests", "benchmarks", "docs", "examples"),
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
}


def _toml(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text())


def _tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the project is unknown")
    return listed.stdout.split("\n")[:-1]


def test_the_top_level_holds_what_it_should_and_nothing_else() -> None:
    top = {name.split("/")[0] for name in _tracked()}
    assert {name for name in top if not name.startswith(".")} == ALLOWED_AT_THE_TOP


def test_the_namespace_has_no_init_file() -> None:
    assert [
        part for part in PARTS if (ROOT / part / "src" / "topcoat" / "__init__.py").exists()
    ] == []


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_typed_and_imports(part: str) -> None:
    assert (ROOT / part / "src" / "topcoat" / part / "py.typed").exists()
    module = importlib.import_module(f"topcoat.{part}")
    assert module.__doc__
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


def test_the_parts_have_one_version_and_ask_for_each_other_at_it() -> None:
    versions = {part: _toml(f"{part}/pyproject.toml")["project"]["version"] for part in PARTS}
    assert len(set(versions.values())) == 1
    for part in PARTS:
        assert version(f"topcoat-{part}") == versions[part]
    needed = [
        d for d in _toml("export/pyproject.toml")["project"]["dependencies"] if "topcoat" in d
    ]
    assert len(needed) == 2
    assert all(d.endswith(f"=={versions['export']}") for d in needed)


def test_arrows_between_the_parts_point_one_way() -> None:
    may_import = {"train": {"train"}, "runtime": {"runtime"}, "export": set(PARTS)}
    for part in PARTS:
        for path in (ROOT / part / "src").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                used = {n.split(".")[1] for n in names if n.startswith("topcoat.")}
                assert used <= may_import[part], f"{path} imports {used}"


def test_the_runtime_needs_numpy_and_onnxruntime_and_nothing_else() -> None:
    needed = _toml("runtime/pyproject.toml")["project"]["dependencies"]
    assert {re.match(r"[\w-]+", entry).group() for entry in needed} == {"numpy", "onnxruntime"}  # type: ignore[union-attr]


def test_pip_and_uv_are_given_the_same_pins() -> None:
    uv = _toml("pyproject.toml")["tool"]["uv"]["constraint-dependencies"]
    pip = (ROOT / "tests" / "constraints.txt").read_text().split()
    assert sorted(uv) == sorted(pip)


def test_no_package_index_and_no_lock_file_is_in_the_repository() -> None:
    forbidden = re.compile(r"https?://[^ )\"']*/(simple|packages|-)/")
    for name in _tracked():
        assert Path(name).name not in ("uv.lock", "package-lock.json")
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".yaml", ".html")
            and path.exists()
        ):
            assert not forbidden.search(path.read_text(encoding="utf-8")), name


def test_nothing_large_is_tracked() -> None:
    large = [
        n for n in _tracked() if (ROOT / n).is_file() and (ROOT / n).stat().st_size > 2 * 2**20
    ]
    assert large == []


@pytest.mark.parametrize(
    "command",
    [
        "evaluate_sr:train",
        "optimize_image:train",
        "train_sr:train",
        "train_texture:train",
        "train_style:train",
        "export_engine:export",
        "demo:export",
        "topcoat:runtime",
        "bench_latency:runtime",
    ],
)
def test_help_teaches_and_answers_before_anything_heavy_loads(command: str) -> None:
    module, part = command.split(":")
    code = (
        f"import sys; from topcoat.{part}.cli.{module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'PIL', 'skimage', 'matplotlib'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded: []\n"), done.stdout[-200:]
    assert "example" in done.stdout.lower()
