"""L-BFGS within bounds, for pictures: the optimiser of Gatys et al. kept to valid pixels.

PyTorch's has neither bounds nor a line search that stays inside them: clipping between its steps
makes the differences that it learns the curvature from wrong. SciPy's L-BFGS-B has both but keeps
everything in float64 on the CPU, twice the memory, and a run of it cannot be saved half way.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from topcoat.train._errors import DivergenceError

Evaluate = Callable[[Tensor], tuple[dict[str, float], Tensor]]
"""Frame -> losses, ``total`` among them, and the gradient of the total."""

_FIRST_MOVE = 0.02
"""Root mean square of the first step, in the unit of the values: nothing is known of the scale yet,
and five grey levels are neither lost in rounding nor far."""
_SUFFICIENT = 1e-4
"""Share of the decrease that the gradient promises which a step has to bring (Armijo)."""
_MOST_TRIES = 12
_LEAST_LENGTH = 1e-3
"""Shortest step along a direction that remembered curvature gave; no use in trusting it beyond."""


class ProjectedLBFGS:
    """Limited-memory BFGS with every iterate projected onto [low, high].

    Values that lie at a bound and are pushed outwards are held there for a step; the direction is
    found for the others. Step lengths start from 1 and are shortened, at least by half, until the
    objective decreases: it never increases, and NaN is walked back from. A direction of which no
    length helps is given up for the plain gradient, before the search is. Usually a step costs one
    evaluation.

    Args:
        frame: start, any shape, float32 or float64; clipped to the bounds.
        history: pairs of differences to remember; each takes twice the frame's memory.
        low: least value.
        high: greatest value.

    Source: Nocedal 1980 (the two-loop recursion); Bertsekas 1982 (the projected step).
    """

    def __init__(
        self, frame: Tensor, *, history: int = 10, low: float = 0.0, high: float = 1.0
    ) -> None:
        self.frame = frame.detach().clamp(low, high).contiguous()
        self.history, self.low, self.high = history, low, high
        self.losses: dict[str, float] = {}
        self.evaluations = 0
        self.stalled = False
        """No step decreases the objective any more: a minimum, as far as the arithmetic goes."""
        self._gradient: Tensor | None = None
        self._moves: list[Tensor] = []
        self._changes: list[Tensor] = []

    def begin(self, evaluate: Evaluate) -> dict[str, float]:
        """Losses at the start, finite or not, unless they are known already."""
        if self._gradient is None:
            self.losses, self._gradient = self._evaluated(evaluate, self.frame)
        return self.losses

    def step(self, evaluate: Evaluate) -> dict[str, float]:
        """Take one step; returns the losses there, or the old ones if it is stalled.

        Raises:
            DivergenceError: the objective is not finite where it starts, or wherever a step leads.
        """
        self.begin(evaluate)
        assert self._gradient is not None
        if self.evaluations == 1 and not self._finite(self.losses, self._gradient):
            raise DivergenceError("the losses or their gradient are not finite at the start")
        if self.stalled:
            return self.losses
        blocked = ((self.frame <= self.low) & (self._gradient > 0)) | (
            (self.frame >= self.high) & (self._gradient < 0)
        )
        free = self._gradient.masked_fill(blocked, 0)
        if not bool(free.any()):
            self.stalled = True
            return self.losses
        direction, plain = self._direction(free, blocked)
        found = self._search(evaluate, direction, plain)
        if found != "lower" and not plain:
            # What is remembered of the curvature no longer holds: begin afresh, downhill.
            self._moves.clear()
            self._changes.clear()
            found = self._search(evaluate, -free, plain=True)
        if found == "not finite":
            raise DivergenceError("the losses are not finite wherever a step leads")
        self.stalled = found != "lower"
        return self.losses

    def _search(
        self, evaluate: Evaluate, direction: Tensor, plain: bool
    ) -> Literal["lower", "higher", "not finite"]:
        """Go along a direction as far as the objective decreases enough.

        Args:
            evaluate: of :meth:`step`.
            direction: from the frame, of no length in particular if it is ``plain``.
            plain: nothing is known of the scale: the first step is a small one.

        Returns:
            ``lower`` if a step was taken; else what the last one that was tried led to.
        """
        assert self._gradient is not None
        length = 1.0
        if plain:
            length = _FIRST_MOVE / float(direction.square().mean().sqrt().clamp_min(1e-30))
        least = 0.0 if plain else _LEAST_LENGTH
        ended: Literal["higher", "not finite"] = "higher"
        for _ in range(_MOST_TRIES):
            there = (self.frame + length * direction).clamp_(self.low, self.high)
            move = there - self.frame
            promised = float((self._gradient * move).sum())
            if promised >= 0:
                # The bounds bent it uphill, or it is shorter than the values' rounding.
                length *= 0.5
                continue
            losses, new = self._evaluated(evaluate, there)
            if self._finite(losses, new):
                if losses["total"] <= self.losses["total"] + _SUFFICIENT * promised:
                    self._remember(move, new - self._gradient)
                    self.frame, self.losses, self._gradient = there, losses, new
                    return "lower"
                # Minimum of the parabola through both values and the slope.
                excess = losses["total"] - self.losses["total"] - promised
                best = -promised / (2 * excess) if excess > 0 else 0.5
                length *= min(0.5, max(0.1, best))
                ended = "higher"
            else:
                length *= 0.1
                ended = "not finite"
            del new, there, move  # pictures: the next try needs their memory
            if length < least:
                break
        return ended

    def state(self) -> dict[str, Any]:
        """Everything that going on from here needs."""
        return {
            "frame": self.frame,
            "losses": self.losses,
            "gradient": self._gradient,
            "moves": list(self._moves),
            "changes": list(self._changes),
            "evaluations": self.evaluations,
            "stalled": self.stalled,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`: the next step is the one that would have followed, bit for bit.

        Raises:
            ValueError: it is the state of another frame.
        """
        if state["frame"].shape != self.frame.shape:
            raise ValueError(
                f"the state is of a frame {tuple(state['frame'].shape)}, this one is "
                f"{tuple(self.frame.shape)}"
            )
        device = self.frame.device
        self.frame, self._gradient = state["frame"].to(device), state["gradient"]
        if self._gradient is not None:
            self._gradient = self._gradient.to(device)
        self._moves = [move.to(device) for move in state["moves"]]
        self._changes = [change.to(device) for change in state["changes"]]
        self.losses, self.evaluations = dict(state["losses"]), int(state["evaluations"])
        self.stalled = bool(state["stalled"])

    def _direction(self, free: Tensor, blocked: Tensor) -> tuple[Tensor, bool]:
        """Where to go, and whether that is plainly downhill, of unknown length."""
        if not self._moves:
            return -free, True
        scales = [
            1 / float((move * change).sum())
            for move, change in zip(self._moves, self._changes, strict=True)
        ]
        q, parts = free.clone(), []
        pairs = list(zip(self._moves, self._changes, scales, strict=True))
        for move, change, scale in reversed(pairs):
            part = scale * float((move * q).sum())
            parts.append(part)
            q.add_(change, alpha=-part)
        q.div_(scales[-1] * float(self._changes[-1].square().sum()))
        for (move, change, scale), part in zip(pairs, reversed(parts), strict=True):
            q.add_(move, alpha=part - scale * float((change * q).sum()))
        direction = q.neg_().masked_fill_(blocked, 0)
        if float((direction * free).sum()) >= 0:  # not downhill: the curvature is out of date
            self._moves.clear()
            self._changes.clear()
            return -free, True
        return direction, False

    def _remember(self, move: Tensor, change: Tensor) -> None:
        if float((move * change).sum()) <= 1e-10 * float(change.square().sum()):
            return  # curvature that is not positive would turn the direction uphill
        if len(self._moves) == self.history:
            self._moves.pop(0)
            self._changes.pop(0)
        self._moves.append(move)
        self._changes.append(change)

    def _evaluated(self, evaluate: Evaluate, frame: Tensor) -> tuple[dict[str, float], Tensor]:
        self.evaluations += 1
        return evaluate(frame)

    @staticmethod
    def _finite(losses: dict[str, float], gradient: Tensor) -> bool:
        return all(map(math.isfinite, losses.values())) and bool(torch.isfinite(gradient).all())
