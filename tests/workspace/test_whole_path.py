"""The main job, small, through the commands that a user types: train, export, run, report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from topcoat.train.losses import LossNetwork
from topcoat.train.pictures import sample_photographs

MODULES = {
    "train-style": "topcoat.train.cli.train_style",
    "export-engine": "topcoat.export.cli.export_engine",
    "topcoat": "topcoat.runtime.cli.topcoat",
    "bench-latency": "topcoat.runtime.cli.bench_latency",
}


def _command(folder: Path, name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", MODULES[name], *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_style_picture_becomes_a_stylised_frame_and_a_latency_report(tmp_path: Path) -> None:
    # Real weights and photographs where the machine names them, as CI's does.
    weights = os.environ.get("TOPCOAT_VGG16_WEIGHTS")
    if not weights:
        weights = str(tmp_path / "random.pth")
        torch.save(LossNetwork("vgg16", ["relu3_3"]).state_dict(), weights)
    content = os.environ.get("TOPCOAT_CONTENT") or sample_photographs()[0].parent

    _command(
        *(tmp_path, "train-style", "--style", "swirls", "--content", content),
        *("--loss-weights", weights, "--steps", 12, "--width", 8, "--blocks", 1, "--crop", 96),
        # A network of twelve steps whose instance norms add up flat areas is as far from float32
        # as the gate allows; export's own tests cover those.
        *("--norm", "batch", "--workers", 0, "--preview-every", 6),
    )
    assert (tmp_path / "swirls.preview" / "step_000012.jpg").exists()

    said = _command(tmp_path, "export-engine", "swirls.pt", "--fp16")
    assert "topcoat run" in said
    report = json.loads((tmp_path / "swirls.topcoat" / "parity.json").read_text())
    assert report["passed"]
    measured = {row["compute"] for row in report["rows"] if row["status"] == "passed"}
    assert {"fp32", "fp16"} <= measured

    photograph = next(path for path in sample_photographs() if path.stem == "coffee")
    _command(tmp_path, "topcoat", "run", photograph, "styled.png", "--model", "swirls.topcoat")
    with Image.open(photograph) as before, Image.open(tmp_path / "styled.png") as after:
        assert before.size == after.size
        assert np.abs(np.asarray(before, float) - np.asarray(after, float)).mean() > 5

    pytest.importorskip("matplotlib")
    table = _command(
        *(tmp_path, "bench-latency", "swirls.topcoat", "--sizes", "160x90", "--seconds", "0.2"),
        *("--rounds", 1, "--json", "latency.json", "--html", "latency.html"),
    )
    assert "p99" in table
    assert json.loads((tmp_path / "latency.json").read_text())
    assert "<svg" in (tmp_path / "latency.html").read_text()
