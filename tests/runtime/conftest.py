"""The two fixture bundles, what numpy says they must return, and fresh interpreters."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from topcoat.runtime.backends import all_backends

DATA = Path(__file__).parent / "data"
Frame = npt.NDArray[np.uint8]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def make_bundles() -> ModuleType:
    """The script that made the fixture bundles; importing it needs numpy only."""
    spec = importlib.util.spec_from_file_location("make_bundles", DATA / "make_bundles.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def blocks() -> Path:
    """Scale 1, multiple 4, min 8, fp32 and fp16."""
    return DATA / "blocks.topcoat"


@pytest.fixture(scope="session")
def double() -> Path:
    """Scale 2, any size up to 512: the negative, every pixel four times."""
    return DATA / "double.topcoat"


@pytest.fixture
def bundle(tmp_path: Path, blocks: Path) -> Path:
    """A copy of blocks.topcoat that a test may damage."""
    return Path(shutil.copytree(blocks, tmp_path / "blocks.topcoat"))


@pytest.fixture
def edit_manifest(bundle: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Change the copy's manifest by a function of the parsed JSON; return the copy."""

    def edit(change: Callable[[dict[str, Any]], object]) -> Path:
        path = bundle / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
        return bundle

    return edit


@pytest.fixture(scope="session")
def photograph() -> Frame:
    """A smooth picture with edges, 70x90: neither side fits blocks.topcoat's multiple."""
    y, x = np.mgrid[0:70, 0:90]
    planes = [127 + 90 * np.sin(x / (9 + c)) + 30 * np.cos(y / (4 + c)) for c in range(3)]
    picture = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    picture[20:40, 30:60] = (255, 0, 40)
    return picture


@pytest.fixture
def run_python(tmp_path: Path) -> Run:
    """Run code or arguments in a fresh interpreter whose home is an empty folder."""

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"} | environment,
        )

    return run


def installed_backends() -> list[str]:
    return [backend.name for backend in all_backends() if backend.missing() is None]


@pytest.fixture(params=["onnxruntime-cpu", "openvino-cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend by name; skipped where it is not installed."""
    name: str = request.param
    if name not in installed_backends():
        pytest.skip(f"{name} is not installed")
    return name
