from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from topcoat.train import DivergenceError, load_checkpoint
from topcoat.train.data import Photographs, find_pictures
from topcoat.train.loop import MAX_ROLLBACKS, Outcome, RunSettings, Task, _Run, train
from topcoat.train.networks import build_network
from topcoat.train.recipes import StyleRecipe

RECIPE = StyleRecipe(
    width=4,
    blocks=1,
    steps=8,
    batch=2,
    learning_rate=1e-3,
    schedule="constant",
    precision="fp32",
)


def _train(folder: Path, photographs: Path, bad_calls: set[int], steps: int = 8) -> Outcome:
    """Train towards grey, with a loss that is NaN at the given calls."""
    calls = iter(range(10_000))

    def loss(network: nn.Module, frames: Tensor) -> dict[str, Tensor]:
        error = (network(frames) - 0.5).square().mean()
        if next(calls) in bad_calls:
            error = error * float("nan")
        return {"total": error, "grey": error.detach()}

    torch.manual_seed(0)
    task = Task(
        kind="style",
        network=build_network(RECIPE.network, RECIPE.network_settings()),
        loss=loss,
        modules=[],
        preview=None,
        style={"name": "grey"},
        state={},
    )
    return train(
        task,
        Photographs(find_pictures(photographs), 32, "crop", 0),
        RunSettings(output=folder / "out.pt", workers=0, quiet=True, log_every=1, preview_every=0),
        replace(RECIPE, steps=steps),
    )


def test_training_lowers_the_loss(tmp_path: Path, photographs: Path) -> None:
    outcome = _train(tmp_path, photographs, set(), steps=20)
    history = load_checkpoint(outcome.checkpoint).history
    assert outcome.finished
    assert [entry["step"] for entry in history] == list(range(1, 21))
    assert history[-1]["total"] < 0.5 * history[0]["total"]


def test_a_nan_rolls_back_with_half_the_learning_rate_and_goes_on(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = _train(tmp_path, photographs, {3})
    checkpoint = load_checkpoint(outcome.checkpoint)
    assert (outcome.finished, outcome.rollbacks) == (True, 1)
    assert checkpoint.step == 8
    assert [entry["learning_rate"] for entry in checkpoint.history][2:5] == [1e-3, 5e-4, 5e-4]
    assert all(torch.isfinite(value).all() for value in checkpoint.weights.values())
    assert "roll-back 1 of at most 3" in capsys.readouterr().err


def test_after_three_roll_backs_it_stops_and_leaves_the_last_good_weights(
    tmp_path: Path, photographs: Path
) -> None:
    with pytest.raises(DivergenceError, match=r"after 3 roll-backs.*out\.pt holds the last good"):
        _train(tmp_path, photographs, set(range(2, 3 + MAX_ROLLBACKS)))
    checkpoint = load_checkpoint(tmp_path / "out.pt")
    assert checkpoint.step == 0
    assert all(torch.isfinite(value).all() for value in checkpoint.weights.values())


def test_every_roll_back_restores_weights_and_moments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(RECIPE.network, RECIPE.network_settings())
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    task = Task(
        kind="style",
        network=network,
        loss=lambda _network, _frames: {},
        modules=[],
        preview=None,
        state={},
    )
    settings = RunSettings(output=tmp_path / "x.pt")
    accelerator = Accelerator(cpu=True)
    run = _Run(task, settings, RECIPE, RECIPE.to_dict(), network, optimizer, accelerator)

    def step() -> None:
        torch.autograd.backward(network(torch.rand(1, 3, 16, 16)).square().mean())
        optimizer.step()

    def moments() -> list[Tensor]:
        return [state["exp_avg"].clone() for state in optimizer.state.values()]

    step()
    run.snapshot()
    weights, averages = [p.detach().clone() for p in network.parameters()], moments()
    for _ in range(2):
        step()
        assert not all(map(torch.equal, network.parameters(), weights))
        run.roll_back({"total": float("nan")}, 0.1)
        assert all(map(torch.equal, network.parameters(), weights))
        assert all(map(torch.equal, moments(), averages))
    assert run.lr_factor == 0.25
