"""The benchmark of the real-time networks: a small run from nothing to a table, and its errors."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from topcoat.train import Checkpoint
from topcoat.train.budget import Budget, BudgetTable, pick
from topcoat.train.checkpoint import save_checkpoint
from topcoat.train.networks import build_network
from topcoat.train.pictures import open_rgb, resize_shorter_side, sample_photographs
from topcoat.train.recipes import STYLE_RECIPES
from topcoat.train.style_pictures import load_style

PLACE = Path(__file__).parents[2] / "benchmarks" / "realtime_networks.py"
SMALL = "realtime:width=4:blocks=1"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if not PLACE.exists():
        pytest.skip("the benchmarks are not part of this checkout")
    pytest.importorskip("topcoat.export")
    spec = importlib.util.spec_from_file_location("realtime_networks", PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in sample_photographs()[:2]:
        resize_shorter_side(open_rgb(path), 64).save(folder / f"{path.stem}.jpg")
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full network's checkpoint."""
    torch.manual_seed(0)
    settings = {"width": 4, "blocks": 1}
    picture = load_style("poster")
    checkpoint = Checkpoint(
        task="style",
        network={"name": "johnson", "settings": settings},
        weights=build_network("johnson", settings).state_dict(),
        recipe=STYLE_RECIPES["modern"].to_dict(),
        step=7,
        style={
            "name": picture.name,
            "sha256": picture.sha256,
            "size": list(picture.image.size),
        },
    )
    path = tmp_path_factory.mktemp("reference") / "full.pt"
    save_checkpoint(checkpoint, path)
    return path


def test_one_command_trains_measures_and_writes_a_table_that_budgets_are_picked_from(
    benchmark: ModuleType,
    photographs: Path,
    full: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")
    table, page, folder = tmp_path / "table.json", tmp_path / "table.md", tmp_path / "made"
    command = ["--networks", SMALL, "--style", "poster", "--content", str(photographs)]
    command += ["--loss-network", "embedded", "--held-out", str(photographs), "--side", "64"]
    command += ["--steps", "2", "--batch", "1", "--crop", "32", "--teacher", str(full)]
    command += ["--sizes", "64x48,128x96", "--frames", "2", "--threads", "1"]
    command += ["--folder", str(folder), "--json", str(table), "--markdown", str(page)]
    assert benchmark.main(command) == 0

    content: dict[str, Any] = json.loads(table.read_text())
    (network,) = content["networks"]
    assert network["settings"] == {"width": 4, "blocks": 1, "norm": "instance", "dilation": 2}
    assert network["origin"] in ("style", "teacher")
    assert network["steps"] == 2
    assert network["train_loss_network"] == "embedded"
    assert content["judge"]["loss_network"] == "embedded"
    assert {"total", "content", "style"} <= set(network["objective"])
    assert all(value > 0 for value in network["flicker"].values())
    sizes = {(row["width"], row["height"]) for row in content["latency"]}
    assert sizes == {(64, 48), (128, 96)}
    assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in content["latency"])
    assert {row["engine"] for row in content["latency"]} >= {"onnxruntime-cpu"}
    # The better of the two was kept, and both stayed to be looked at.
    assert len(list(folder.glob("*.pt"))) == 2
    assert (folder / f"{SMALL}.png").is_file()

    line = f"| `{SMALL}` | {network['parameters']} |"
    assert line in page.read_text()
    assert line in capsys.readouterr().out
    chosen = pick(Budget.parse("64x48 1000ms"), BudgetTable.load(table), bf16=False)
    assert chosen.network.settings == network["settings"]
    assert chosen.network.objective == network["objective"]["total"]


def test_the_page_sets_a_reference_beside_the_networks(benchmark: ModuleType) -> None:
    def about(total: float) -> dict[str, Any]:
        objective = {"total": total, "content": 1.0, "style": 0.1}
        flicker = {"jitter": 0.5, "noise": 0.4, "warp": 1.2}
        return {"parameters": 9, "objective": objective, "flicker": flicker}

    def timed(name: str, engine: str, ms: float) -> dict[str, Any]:
        row = {"network": name, "width": 64, "height": 48, "engine": engine, "precision": "fp32"}
        return {**row, "p50_ms": ms, "p95_ms": 2 * ms, "cpu_ms": ms}

    page = benchmark.markdown(
        {
            "machine": {"processor": "A Processor", "logical": 2},
            "frames": 5,
            "judge": {"loss_network": "vgg16"},
            "networks": [{"name": "one", **about(2.5)}],
            "latency": [timed("one", "slow", 3.0), timed("one", "fast", 1.0)],
            "reference": {
                "file": "full.pt",
                **about(2.0),
                "latency": [timed("reference", "fast", 9.0)],
            },
        }
    )
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `one` | 9 | 1.0 (2.0; 1.0) fast fp32 | 2.500 (1.25x) | 1.000 | 0.100 | 0.50 | 0.40 "
        "| 1.20 |",
        "| `full: full.pt` | 9 | 9.0 (18.0; 9.0) fast fp32 | 2.000 | 1.000 | 0.100 | 0.50 | 0.40 "
        "| 1.20 |",
    ]
    assert "objective by vgg16" in page


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--networks", "modern", "--latency-only"], "no real-time recipe 'modern'; choose among"),
        (["--networks", "realtime:form=paper", "--latency-only"], "sets 'form'; a network's sett"),
        (["--networks", "realtime:width=x", "--latency-only"], "width to 'x', wanted a number"),
        (["--networks", "realtime:width=0", "--latency-only"], "width must be 1 to 512 channels"),
        (["--checkpoint", "realtime", "--latency-only"], "wanted NAME=FILE such as realtime=my"),
        (["--checkpoint", "x=gone.pt", "--latency-only"], "--checkpoint names x, the networks are"),
        (["--checkpoint", "realtime=gone.pt", "--latency-only"], "no checkpoint at gone.pt"),
        (["--checkpoint", "realtime=FULL", "--latency-only"], "holds the network johnson"),
        ([], "no style given; pass --style PICTURE, or --latency-only"),
    ],
)
def test_what_cannot_be_measured_is_answered_in_one_line(
    benchmark: ModuleType,
    full: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert benchmark.main([part.replace("FULL", str(full)) for part in arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert set(tmp_path.iterdir()) == before
