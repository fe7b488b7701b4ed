"""L-BFGS within bounds, and the minimisation of any objective over one picture."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from topcoat.train import DivergenceError
from topcoat.train.lbfgs import Evaluate, ProjectedLBFGS
from topcoat.train.optimization import Minimiser, iterations, minimise
from topcoat.train.recipes import OPTIMIZE_RECIPES

Function = Callable[[Tensor], Tensor]
MODERN = replace(OPTIMIZE_RECIPES["modern"], precision="fp32")


def _evaluated(function: Function) -> Evaluate:
    def evaluate(frame: Tensor) -> tuple[dict[str, float], Tensor]:
        leaf = frame.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        return {"total": float(value.detach())}, gradient

    return evaluate


def _run(optimiser: ProjectedLBFGS, function: Function, steps: int) -> list[float]:
    """Totals of the steps, which are checked to go down and to stay within the bounds."""
    evaluate, totals = _evaluated(function), [float(function(optimiser.frame))]
    for _ in range(steps):
        totals.append(optimiser.step(evaluate)["total"])
        assert totals[-1] <= totals[-2]
        assert optimiser.frame.min() >= optimiser.low
        assert optimiser.frame.max() <= optimiser.high
        assert totals[-1] == float(function(optimiser.frame))
    return totals


def _bowl(wanted: Tensor, stiffness: Tensor) -> Function:
    return lambda x: 0.5 * (stiffness * (x - wanted).square()).sum()


def _ill_conditioned(seed: int) -> tuple[Tensor, Tensor]:
    """A start and stiffnesses from 1 to 100."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=generator)
    return start, torch.logspace(0, 2, 48, dtype=torch.float64).reshape(1, 3, 4, 4)


def test_the_minimum_of_a_bowl_within_the_bounds_is_found() -> None:
    start, stiffness = _ill_conditioned(0)
    wanted = 0.25 + 0.5 * start.flip(3)
    optimiser = ProjectedLBFGS(start)
    _run(optimiser, _bowl(wanted, stiffness), 150)
    torch.testing.assert_close(optimiser.frame, wanted, rtol=0, atol=1e-6)


def test_the_minimum_of_a_bowl_beyond_the_bounds_is_at_the_bounds() -> None:
    start, stiffness = _ill_conditioned(1)
    wanted = 4 * start.flip(3) - 1.5
    optimiser = ProjectedLBFGS(start)
    _run(optimiser, _bowl(wanted, stiffness), 150)
    torch.testing.assert_close(optimiser.frame, wanted.clamp(0, 1), rtol=0, atol=1e-6)


def test_coupled_values_at_a_bound_are_held_there_and_the_others_go_on() -> None:
    # Without bounds the minimum of (x + y - 1)² + (x - 4)² / 10 is at x = 4, y = -3; with them, at
    # x = 1, y = 0: both at a bound, the second only because of the first.
    def function(x: Tensor) -> Tensor:
        return (x[0] + x[1] - 1).square() + (x[0] - 4).square() / 10

    optimiser = ProjectedLBFGS(torch.tensor([0.3, 0.9], dtype=torch.float64))
    _run(optimiser, function, 40)
    torch.testing.assert_close(
        optimiser.frame, torch.tensor([1.0, 0.0]).double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("high", "minimum"), [(2.0, (1.0, 1.0)), (0.5, (0.5, 0.25))])
def test_rosenbrock_s_valley_is_followed_to_its_end_or_to_the_bound(
    high: float, minimum: tuple[float, float]
) -> None:
    def rosenbrock(x: Tensor) -> Tensor:
        return 100 * (x[1] - x[0].square()).square() + (1 - x[0]).square()

    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    optimiser = ProjectedLBFGS(start, low=-1.5, high=high)
    _run(optimiser, rosenbrock, 80)
    torch.testing.assert_close(
        optimiser.frame, torch.tensor(minimum, dtype=torch.float64), rtol=0, atol=1e-4
    )


def test_a_crooked_function_never_gets_worse_and_stays_within_bounds() -> None:
    # Neither convex nor smooth in scale: directions from old curvature mislead here.
    generator = torch.Generator().manual_seed(5)
    waves = 40 * torch.rand(64, generator=generator)
    tilt = torch.randn(64, 64, generator=generator)

    def function(x: Tensor) -> Tensor:
        return (waves * x).sin().sum() + (tilt @ x).abs().sum() + (8 * x[:8]).exp().mean()

    optimiser = ProjectedLBFGS(torch.rand(64, generator=generator), history=5)
    totals = _run(optimiser, function, 60)
    assert totals[-1] < totals[0] / 2


def test_a_minimum_is_recognised_and_costs_no_more_evaluations() -> None:
    optimiser = ProjectedLBFGS(torch.rand(3, 5))
    evaluate = _evaluated(_bowl(torch.full((3, 5), 2.0), torch.ones(3, 5)))
    for _ in range(5):
        optimiser.step(evaluate)
    assert optimiser.stalled
    assert torch.equal(optimiser.frame, torch.ones(3, 5))
    before = optimiser.evaluations
    optimiser.step(evaluate)
    assert optimiser.evaluations == before


def test_a_constant_stalls_at_once() -> None:
    optimiser = ProjectedLBFGS(torch.rand(4))
    assert optimiser.step(_evaluated(lambda x: (0 * x).sum() + 3)) == {"total": 3.0}
    assert optimiser.stalled
    assert optimiser.evaluations == 1


def test_a_step_that_rounding_swallows_is_a_stall_and_not_progress() -> None:
    # The slope is there, but no value of float32 lies between: 1 + 1e-9 is 1.
    optimiser = ProjectedLBFGS(torch.ones(2), low=0, high=2)
    centre = 1 + 1e-9

    def evaluate(frame: Tensor) -> tuple[dict[str, float], Tensor]:
        away = frame.double() - centre
        return {"total": float(1e9 * away.square().sum())}, (2e9 * away).float()

    for _ in range(3):
        optimiser.step(evaluate)
    assert optimiser.stalled
    assert torch.equal(optimiser.frame, torch.ones(2))


def test_not_a_number_is_walked_back_from() -> None:
    # The root's domain ends right where a full step leads.
    def function(x: Tensor) -> Tensor:
        return (x - 0.999).square().sum() - 1e-4 * (0.504 - x).sqrt().sum()

    optimiser = ProjectedLBFGS(torch.full((4,), 0.5))
    totals = _run(optimiser, function, 10)
    assert all(map(math.isfinite, totals))
    assert totals[-1] < totals[0]
    assert optimiser.evaluations > 11


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_objective_that_is_not_finite_at_the_start_is_an_error(bad: float) -> None:
    optimiser = ProjectedLBFGS(torch.rand(4))
    with pytest.raises(DivergenceError, match="at the start"):
        optimiser.step(_evaluated(lambda x: (x * bad).sum()))


def test_an_objective_that_is_finite_nowhere_else_is_an_error_and_keeps_the_frame() -> None:
    start = torch.rand(4)

    def evaluate(frame: Tensor) -> tuple[dict[str, float], Tensor]:
        return {"total": 1.0 if torch.equal(frame, start) else math.nan}, torch.ones(4)

    optimiser = ProjectedLBFGS(start)
    with pytest.raises(DivergenceError, match="wherever a step leads"):
        optimiser.step(evaluate)
    assert torch.equal(optimiser.frame, start)


def test_no_more_differences_are_remembered_than_asked_for() -> None:
    start, stiffness = _ill_conditioned(2)
    optimiser = ProjectedLBFGS(start, history=3)
    _run(optimiser, _bowl(start.flip(3), stiffness), 10)
    assert len(optimiser.state()["moves"]) == 3


def test_a_restored_optimiser_takes_the_very_same_steps() -> None:
    start, stiffness = _ill_conditioned(3)
    function = _bowl(2 * start.flip(3) - 0.5, stiffness)
    optimiser = ProjectedLBFGS(start)
    _run(optimiser, function, 7)
    other = ProjectedLBFGS(torch.zeros_like(start))
    other.restore(_through_a_file(optimiser.state()))
    assert _run(optimiser, function, 7) == _run(other, function, 7)
    assert torch.equal(optimiser.frame, other.frame)
    assert optimiser.evaluations == other.evaluations


def test_the_state_of_another_frame_is_refused() -> None:
    optimiser = ProjectedLBFGS(torch.rand(4))
    with pytest.raises(ValueError, match="the state is of a frame"):
        ProjectedLBFGS(torch.rand(5)).restore(optimiser.state())


def _through_a_file(state: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return dict(torch.load(file, weights_only=True))


# Minimiser


def _objective(frame: Tensor) -> dict[str, Tensor]:
    grey = (frame - 0.4).square().sum()
    edges = (frame[..., 1:] - frame[..., :-1] - 0.3).square().sum()
    return {"total": grey + edges, "grey": grey, "edges": edges}


def _start() -> Tensor:
    return torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_every_iteration_s_losses_are_those_of_its_frame(
    optimizer: Literal["lbfgs", "adam"],
) -> None:
    recipe = replace(MODERN, optimizer=optimizer)
    minimiser = Minimiser(_objective, _start(), recipe)
    at_start = minimiser.start_losses()
    seen = []
    for iterate in iterations(minimiser, 5):
        expected = {name: float(part) for name, part in _objective(iterate.frame).items()}
        assert iterate.losses == pytest.approx(expected)
        assert iterate.frame.min() >= 0
        assert iterate.frame.max() <= 1
        seen.append(iterate.losses["total"])
    assert len(seen) == 5
    assert at_start["total"] > seen[0] > seen[-1]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_start_is_evaluated_once_and_iterations_once_each(
    optimizer: Literal["lbfgs", "adam"],
) -> None:
    found = minimise(_objective, _start(), replace(MODERN, optimizer=optimizer), 4)
    assert [entry["step"] for entry in found.history] == [0, 1, 2, 3, 4]
    assert found.evaluations <= 6
    assert found.losses["total"] == found.history[-1]["total"] < found.history[0]["total"]
    assert found.diverged == ""


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_restored_minimiser_goes_on_bit_for_bit(optimizer: Literal["lbfgs", "adam"]) -> None:
    recipe = replace(MODERN, optimizer=optimizer)
    whole = Minimiser(_objective, _start(), recipe)
    list(iterations(whole, 8))
    first = Minimiser(_objective, _start(), recipe)
    list(iterations(first, 3))
    second = Minimiser(_objective, torch.zeros(1, 3, 6, 6), recipe)
    second.restore(_through_a_file(first.state()))
    assert [iterate.number for iterate in iterations(second, 8)] == [4, 5, 6, 7, 8]
    assert torch.equal(second.frame, whole.frame)
    assert second.evaluations == whole.evaluations


def test_the_state_of_another_optimizer_or_frame_is_refused() -> None:
    state = Minimiser(_objective, _start(), MODERN).state()
    with pytest.raises(ValueError, match="another optimizer"):
        Minimiser(_objective, _start(), replace(MODERN, optimizer="adam")).restore(state)
    with pytest.raises(ValueError, match="another frame"):
        Minimiser(_objective, torch.zeros(1, 3, 8, 8), MODERN).restore(state)


def test_adam_that_runs_into_infinity_keeps_the_last_good_frame() -> None:
    def objective(frame: Tensor) -> dict[str, Tensor]:
        return {"total": frame.sum() / (frame.mean() > 0.45)}  # infinite once it is dark

    found = minimise(objective, torch.full((1, 3, 4, 4), 0.5), replace(MODERN, optimizer="adam"), 9)
    assert "not finite" in found.diverged
    assert len(found.history) == 3
    assert found.frame.mean() > 0.45
    assert math.isfinite(found.losses["total"])


def test_a_start_that_is_already_infinite_is_told_and_left_as_it_is() -> None:
    for optimizer in ("lbfgs", "adam"):
        recipe = replace(MODERN, optimizer=optimizer)
        found = minimise(lambda x: {"total": x.sum() * math.inf}, _start(), recipe, 3)
        assert "not finite" in found.diverged
        assert torch.equal(found.frame, _start())
