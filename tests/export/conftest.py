"""Tiny seeded networks, and one bundle exported through the command line that most tests share."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from topcoat.export.cli import export_engine
from topcoat.train import Checkpoint, save_checkpoint
from topcoat.train.networks import build_network


def tiny_checkpoint(**settings: Any) -> Checkpoint:  # noqa: ANN401 - network settings are of many types
    """A checkpoint as training leaves it, of a network of 4 channels with seeded random weights."""
    settings = {"width": 4, "blocks": 1, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("johnson", settings)
    return Checkpoint(
        task="style",
        network={"name": "johnson", "settings": settings},
        weights=network.state_dict(),
        recipe={"name": "modern"},
        step=7,
        history=[{"step": 7, "total": 3.5, "content": 2.0, "style": 1.5}],
        style={"name": "swirls", "sha256": "ab" * 32, "size": [64, 64]},
        versions={"torch": str(torch.__version__)},
    )


def sr_checkpoint(name: str, scale: int, **settings: Any) -> Checkpoint:  # noqa: ANN401
    """A checkpoint as train-sr leaves it, of a narrow network with seeded random weights."""
    settings = {
        "scale": scale,
        "width": 4,
        **({} if name == "srcnn" else {"blocks": 1}),
        **settings,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(name, settings)
        for weight in network.parameters():
            if weight.ndim == 4:  # some start at zero: the network would be the enlargement alone
                torch.nn.init.normal_(weight, std=0.5 * weight[0].numel() ** -0.5)
    return Checkpoint(
        task="super-resolution",
        network={"name": name, "settings": settings},
        weights=network.state_dict(),
        recipe={
            **{"name": "modern", "network": name, "scale": scale, "blur": 1.0, "loss": "mix"},
            **{"pixel_form": "l1", "feature_layer": "relu2_2", "loss_network": "vgg16"},
        },
        step=9,
        history=[{"step": 9, "total": 0.25, "pixel": 0.125, "learning_rate": 0.5, "seconds": 3.0}],
        versions={"torch": str(torch.__version__)},
    )


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever was printed
        return json.loads(self.stdout)


def export_engine_main(*arguments: object) -> Outcome:
    """Run ``export-engine`` in this process: importing torch once is enough."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = export_engine.main([str(argument) for argument in arguments])
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(tiny_checkpoint(), path)
    return path


@dataclass(frozen=True)
class ExportedBundle:
    outcome: Outcome
    bundle: Path
    checkpoint_file: Path

    @property
    def manifest(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads((self.bundle / "manifest.json").read_text(encoding="utf-8"))

    @property
    def parity(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads((self.bundle / "parity.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def exported(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    """The modern form in both precisions. Read it, copy it, never change it."""
    bundle = tmp_path_factory.mktemp("exported") / "tiny.topcoat"
    outcome = export_engine_main(checkpoint_file, "--fp16", "--json", "-o", bundle)
    assert outcome.code == 0, outcome.stderr
    return ExportedBundle(outcome, bundle, checkpoint_file)


@pytest.fixture(scope="session")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    """residual-sr x4 through the command line. Read it, copy it, never change it."""
    folder = tmp_path_factory.mktemp("enlarging")
    save_checkpoint(sr_checkpoint("residual-sr", 4), folder / "sharp.pt")
    outcome = export_engine_main(folder / "sharp.pt")
    assert outcome.code == 0, outcome.stderr
    return ExportedBundle(outcome, folder / "sharp.topcoat", folder / "sharp.pt")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    """johnson-sr x8 through the command line, with ``--json``. Read it, never change it."""
    folder = tmp_path_factory.mktemp("published")
    save_checkpoint(sr_checkpoint("johnson-sr", 8), folder / "other.pt")
    outcome = export_engine_main(folder / "other.pt", "--json")
    assert outcome.code == 0, outcome.stderr
    return ExportedBundle(outcome, folder / "other.topcoat", folder / "other.pt")
