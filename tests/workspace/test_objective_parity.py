"""The pure parts of the benchmark that compares a network with optimising."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from topcoat.train.losses import LossNetwork, PerceptualLoss, style_target
from topcoat.train.optimization import minimise
from topcoat.train.recipes import STYLE_RECIPES

FOLDER = Path(__file__).parents[2] / "benchmarks"


def _module(name: str) -> ModuleType:
    if not (FOLDER / f"{name}.py").exists():
        pytest.skip("the benchmarks are not part of this checkout")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return _module("objective_parity")


def _row(name: str, network: float, **curves: list[float]) -> dict[str, Any]:
    return {
        "name": name,
        "photograph": {"total": 6.0},
        "network": {"total": network},
        "lbfgs": {start: {"asked": len(c) - 1, "total": c} for start, c in curves.items()},
    }


def test_the_crossing_lies_between_two_iterations(parity: ModuleType) -> None:
    assert parity.passing([8.0, 4.0, 2.0, 1.0], 3.0) == 1.5
    assert parity.passing([8.0, 4.0], 4.0) == 1.0
    assert parity.passing([8.0, 4.0], 9.0) == 0.0
    assert parity.passing([8.0, 4.0], 3.9) is None


def test_means_go_as_far_as_every_photograph_does(parity: ModuleType) -> None:
    assert parity.mean_curve([[4.0, 2.0, 1.0], [8.0, 4.0]]) == [6.0, 3.0]


def test_the_table_has_a_row_per_size_and_start(parity: ModuleType) -> None:
    falling = [10.0 - i / 20 for i in range(121)]
    rows = [_row("a", 6.5, noise=falling), _row("b", 4.5, noise=falling, content=falling)]
    text = parity.table({"256": rows}).splitlines()
    assert len(text) == 4
    assert "| 10 it. | 20 it. | 50 it. | 100 it. | passed after |" in text[0]
    # Mean of the network 5.5, which the curve is at after 90; one of two is below 5 = after 100.
    assert text[2].endswith("| 9.500 | 9.000 | 7.500 | 5.000 | 90 | 1 of 2 |")
    assert text[3].startswith("| 256² | content | 1 | 6.000 | 4.500 |")
    assert text[3].endswith("| 110 | 1 of 1 |")
    short = parity.table({"64": [_row("a", 1.0, noise=[5.0, 4.0])]})
    assert short.endswith("| more than 1 |  |")


def test_the_plot_is_written(parity: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [_row("a", 2.0, noise=[10.0, 3.0, 1.0])]
    parity.draw({"64": rows}, "title", tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "L-BFGS iterations" in text
    assert "objective, log scale" in text


def test_the_json_keeps_curves_on_one_line(parity: ModuleType, tmp_path: Path) -> None:
    values = {"rows": [{"total": [1.5, -2e-05, 3], "words": ["a", "b"], "none": []}]}
    parity.write(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text()
    assert '"total": [1.5, -2e-05, 3]' in text
    assert json.loads(text) == values


def test_optimising_gets_the_objective_that_the_network_was_trained_for(
    parity: ModuleType,
) -> None:
    trained = STYLE_RECIPES["modern"]
    recipe = parity.optimise_recipe(trained, 64, 2, "noise")
    assert (recipe.steps, recipe.size, recipe.tv_weight) == ((2,), 64, trained.tv_weight)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LossNetwork("vgg16", trained.layers())
        photograph, picture = torch.rand(2, 1, 3, 32, 32)
    target = style_target(network, picture, trained)
    with torch.no_grad():
        as_trained = PerceptualLoss(network, [target], trained)(picture, photograph)["total"]
    objective = PerceptualLoss(network, [target], recipe, seed=0)
    best = minimise(lambda frame: objective(frame, photograph), picture, recipe, 2)
    assert best.history[0]["total"] == pytest.approx(float(as_trained), rel=1e-5)
    assert best.history[2]["total"] < best.history[0]["total"]


def test_the_cost_tables_have_the_papers_figures_beside_ours() -> None:
    cost = _module("optimization_cost")
    sizes = {"256": {"iteration": 0.1, "forward": {"PyTorch": 0.02, "openvino-cpu": 0.01}}}
    text = cost.seconds_table({"timed": 8, "engines": {}, "sizes": sizes})
    assert (
        "| 256² | 10.0 | 30.0 | 50.0 | 0.02 | 0.01 | 3000× | 3.17, 9.52, 15.86, 0.015, 635× |"
        in text
    )
    row = {"seconds_per_iteration": 1.0, "peak_mib": 700, "before_mib": 300}
    low = {**row, "size": 2048}
    text = cost.memory_table(
        {"size": 512, "plain": row, "ours": row, "low": low, "time_ratio": 1.0}
    )
    assert "| topcoat, --memory low | 2048² | 1 | 700 | 300 |" in text
    assert cost.peak_mib() > 20
