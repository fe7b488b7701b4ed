"""Small photographs, a loss network with seeded random weights, and a way to run the command."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from topcoat.train.losses import LossNetwork
from topcoat.train.pictures import open_rgb, resize_shorter_side, sample_photographs

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real photographs, 96 pixels on the short side."""
    folder = tmp_path_factory.mktemp("photographs")
    for path in sample_photographs():
        resize_shorter_side(open_rgb(path), 96).save(folder / f"{path.stem}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def loss_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16 up to relu3_3 with random weights: as good as real ones for how the code behaves."""
    path = tmp_path_factory.mktemp("weights") / "random_vgg16.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(LossNetwork("vgg16", ["relu3_3"]).state_dict(), path)
    return path


@pytest.fixture
def environment(loss_weights: Path) -> dict[str, str]:
    return {
        **os.environ,
        "TOPCOAT_VGG16_WEIGHTS": str(loss_weights),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "default",
    }


@pytest.fixture
def train_style(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run ``train-style`` as a user does, in a folder of its own."""
    return _runner("topcoat.train.cli.train_style", environment, tmp_path)


def _runner(module: str, environment: dict[str, str], folder: Path) -> Run:
    def run(*arguments: object, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=folder,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    return run


Refused = Callable[[Callable[[Sequence[str]], int], Sequence[str]], str]


@pytest.fixture
def refused(
    loss_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refused:
    """Run a command that is to refuse its arguments: its one line, exit code 2, nothing written.

    In this process: a start of PyTorch for every mistake would take half a minute a command.
    """

    def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TOPCOAT_VGG16_WEIGHTS", str(loss_weights))
        monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert list(tmp_path.iterdir()) == []
        return error

    return run


def answers_without_torch(module: str, option: str, environment: dict[str, str]) -> str:
    """What a command prints for an option; fails if it imported torch for that."""
    code = (
        f"import sys; from {module} import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, option],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("False\n")
    return done.stdout


TINY = (
    *("--width", "4", "--blocks", "1", "--crop", "32", "--batch", "2", "--style-size", "64"),
    *("--preview-every", "0", "--workers", "0", "--precision", "fp32"),
)
"""Options of a run whose steps take milliseconds."""


@pytest.fixture
def tiny() -> tuple[str, ...]:
    return TINY


@pytest.fixture
def train_sr(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run ``train-sr`` as a user does, in a folder of its own."""
    return _runner("topcoat.train.cli.train_sr", environment, tmp_path)
