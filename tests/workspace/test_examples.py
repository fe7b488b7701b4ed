"""The examples run as their own first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests" / "runtime" / "data" / "blocks.topcoat"


def test_the_frame_loop_runs_and_saves_its_last_frame(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    command = [sys.executable, str(ROOT / "examples" / "frame_loop.py"), str(BUNDLE)]
    command += ["--frames", "3", "--size", "66x46", "--save", str(tmp_path / "last.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3 frames of 66x46" in done.stdout
    with image.open(tmp_path / "last.png") as picture:
        assert picture.size == (66, 46)


def test_the_frame_loop_says_what_is_wrong_with_a_bundle(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "frame_loop.py"), str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("frame_loop: ")
    assert done.stderr.count("\n") == 1
