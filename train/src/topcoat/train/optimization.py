"""Optimising a picture itself: the problem that feed-forward networks are trained to solve.

Source: Gatys, Ecker, Bethge 2015 (arXiv:1508.06576). The losses are those of training.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topcoat.train._errors import DivergenceError
from topcoat.train.lbfgs import ProjectedLBFGS
from topcoat.train.loop import resolve_precision
from topcoat.train.recipes import OptimizeRecipe

Objective = Callable[[Tensor], dict[str, Tensor]]
"""(1, 3, H, W) in [0, 1] -> scalars, ``total`` among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterate:
    """One iteration's result."""

    number: int
    """Iterations done."""
    losses: dict[str, float]
    """At ``frame``: ``total`` (weighted) and its parts (unweighted)."""
    frame: Tensor
    """(1, 3, H, W) in [0, 1]."""


@dataclass(kw_only=True)
class Minimum:
    """Where a minimisation ended."""

    frame: Tensor
    """(1, 3, H, W) in [0, 1]: the last iterate whose losses were finite."""
    losses: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)
    """Losses before the first iteration and after each: ``step``, ``total``, its parts."""
    evaluations: int
    """Passes through the loss network, there and back."""
    seconds: float
    stalled: bool = False
    """Stopped early: no step decreases the objective any more."""
    diverged: str = ""
    """Why it stopped early, if losses were no longer finite."""


class Minimiser:
    """Iterations of one objective from one start; each can be stopped after, saved and resumed.

    Args:
        objective: what to make small; its modules on the frame's device.
        start: (1, 3, H, W); clipped to [0, 1].
        recipe: optimizer, its settings, precision.
    """

    def __init__(self, objective: Objective, start: Tensor, recipe: OptimizeRecipe) -> None:
        self.objective = objective
        self.precision = resolve_precision(recipe.precision, start.device)
        self.done = 0
        self._adam: torch.optim.Adam | None = None
        self._lbfgs: ProjectedLBFGS | None = None
        self._frame = start.detach().clamp(0, 1).contiguous()
        self._losses: dict[str, float] = {}
        self._gradient: Tensor | None = None
        self._evaluations = 0
        if recipe.optimizer == "lbfgs":
            self._lbfgs = ProjectedLBFGS(self._frame, history=recipe.history)
        else:
            self._frame = self._frame.clone().requires_grad_()
            self._adam = torch.optim.Adam([self._frame], recipe.learning_rate)
        self._good = self._frame.detach()

    @property
    def frame(self) -> Tensor:
        """(1, 3, H, W) in [0, 1]: the last iterate whose losses were finite."""
        return self._good

    @property
    def evaluations(self) -> int:
        """Passes through the objective so far, there and back."""
        return self._evaluations if self._lbfgs is None else self._lbfgs.evaluations

    @property
    def stalled(self) -> bool:
        """Whether no step decreases the objective any more."""
        return self._lbfgs is not None and self._lbfgs.stalled

    def evaluate(self, frame: Tensor) -> tuple[dict[str, float], Tensor]:
        """Losses at a frame and the gradient of their total."""
        leaf = frame.detach().requires_grad_()
        with torch.autocast(leaf.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            parts = self.objective(leaf)
        (gradient,) = torch.autograd.grad(parts["total"], leaf)
        values = torch.stack([part.detach().float() for part in parts.values()]).tolist()
        return dict(zip(parts, values, strict=True)), gradient.contiguous()

    def start_losses(self) -> dict[str, float]:
        """Losses of the frame as it is now, without a step; they may be NaN."""
        if self._lbfgs is not None:
            return self._lbfgs.begin(self.evaluate)
        if self._gradient is None:
            self._evaluations += 1
            self._losses, self._gradient = self.evaluate(self._frame)
        return self._losses

    def step(self) -> dict[str, float]:
        """Do one iteration; returns the losses of :attr:`frame` after it.

        Raises:
            DivergenceError: losses or gradient are not finite; :attr:`frame` is the last good one.
        """
        if self._lbfgs is not None:
            losses = self._lbfgs.step(self.evaluate)
            self._good = self._lbfgs.frame
            self.done += 1
            return losses
        assert self._adam is not None
        self.start_losses()
        self._check_finite()
        self._frame.grad = self._gradient
        self._adam.step()
        with torch.no_grad():
            self._frame.clamp_(0, 1)
        self._gradient = None
        self.start_losses()
        self._check_finite()
        self._good = self._frame.detach().clone()
        self.done += 1
        return self._losses

    def _check_finite(self) -> None:
        assert self._gradient is not None
        numbers = all(map(math.isfinite, self._losses.values()))
        if not numbers or not bool(torch.isfinite(self._gradient).all()):
            raise DivergenceError("the losses or their gradient are not finite")

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs, as tensors and plain values.

        To be written before the next step: Adam's tensors are those that it goes on with.
        """
        return {
            "done": self.done,
            "frame": self.frame,
            "evaluations": self._evaluations,
            "lbfgs": None if self._lbfgs is None else self._lbfgs.state(),
            "adam": None
            if self._adam is None
            else {
                "optimizer": self._adam.state_dict(),
                "losses": self._losses,
                "gradient": self._gradient,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`.

        Raises:
            ValueError: it is the state of another frame, or of another optimizer.
        """
        own = state["adam"] if self._lbfgs is None else state["lbfgs"]
        if own is None:
            raise ValueError("the state is another optimizer's")
        if state["frame"].shape != self._frame.shape:
            raise ValueError("the state is of another frame")
        self.done, self._evaluations = int(state["done"]), int(state["evaluations"])
        self._good = state["frame"].to(self._frame.device)
        if self._lbfgs is not None:
            self._lbfgs.restore(own)
        if self._adam is not None:
            with torch.no_grad():
                self._frame.copy_(state["frame"])
            self._adam.load_state_dict(own["optimizer"])
            self._losses, self._gradient = dict(own["losses"]), own["gradient"]
            if self._gradient is not None:
                self._gradient = self._gradient.to(self._frame.device)


def iterations(minimiser: Minimiser, steps: int) -> Iterator[Iterate]:
    """Iterate until ``steps`` are done, those before a resume included, or none helps any more.

    Raises:
        DivergenceError: from :meth:`Minimiser.step`.
    """
    while minimiser.done < steps and not minimiser.stalled:
        losses = minimiser.step()
        yield Iterate(number=minimiser.done, losses=losses, frame=minimiser.frame)


def minimise(
    objective: Objective,
    start: Tensor,
    recipe: OptimizeRecipe,
    steps: int,
    on_step: Callable[[Iterate], None] = lambda _: None,
) -> Minimum:
    """Minimise an objective over one picture, without files, progress or a ladder of sizes.

    Args:
        objective: what to make small; its modules on the start's device.
        start: (1, 3, H, W); clipped to [0, 1].
        recipe: optimizer, its settings, precision.
        steps: iterations.
        on_step: is told of each.
    """
    minimiser = Minimiser(objective, start, recipe)
    began = time.perf_counter()
    history: list[dict[str, float]] = [{"step": 0, **minimiser.start_losses()}]
    diverged = ""
    try:
        for iterate in iterations(minimiser, steps):
            history.append({"step": iterate.number, **iterate.losses})
            on_step(iterate)
    except DivergenceError as error:
        diverged = str(error)
    return Minimum(
        frame=minimiser.frame,
        losses={name: value for name, value in history[-1].items() if name != "step"},
        history=history,
        evaluations=minimiser.evaluations,
        seconds=time.perf_counter() - began,
        stalled=minimiser.stalled,
        diverged=diverged,
    )
