"""Keep a pass within its budget: down the ladder when frames take too long, up when there is room.

Frames are the only clock, so the same times always lead to the same levels.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from topcoat.runtime._errors import PassError
from topcoat.runtime.render_pass._types import Policy

_LONGEST = 32
"""Failed climbs lengthen the wait before the next to at most this many times ``up_after``."""
_PROVEN = 4
"""A level that holds for so many waits has proved itself."""
_BELIEVED = 32
"""For so many times ``up_after`` frames a ratio of costs is believed that pixels do not explain;
twice as long after each failed climb."""
_ALIKE = 1.25
"""Costs that differ by no more than this factor are of the same load."""


@dataclass(frozen=True, slots=True)
class _Ratio:
    """Of a level's cost to that of the next lower one, as it was measured."""

    value: float
    confirmed: bool
    """Whether the lower level cost the same before and after, so that no load made the ratio."""
    until: int
    """The frame up to which it is believed against what pixels say."""


class LadderGovernor:
    """Goes one step down or up a ladder at a time, by what frames took.

    Down: when ``down_after`` of the last ``window`` frames at this level took longer than the
    budget, times ``every_n`` where only every n-th frame is run. One slow frame, or one now and
    then, changes nothing.

    Up: when the level above is expected to stay within ``headroom`` of the budget for ``up_after``
    frames in a row. What is expected is what the present level takes now (the ``down_after``-th
    longest of the window, by which it would be judged) times the ratio of the two levels' costs
    when they last followed each other, since whatever else the machine does slows both. The load
    may have changed just then, so of one network's levels that ratio is taken for no more than the
    ratio of their pixels, unless a failed climb has confirmed it; and of another network's it is
    forgotten after some thousand frames, and the network tried again.

    A climb that does not hold was a mistake, and doubles the wait before the next, up to 32 times
    ``up_after``. A level that holds for four such waits halves it. So a load that stays the same
    does not move a pass to and fro.

    Args:
        budget_ms: what a frame may take, in ms; None: the level is 0 for ever.
        policy: the ladder, ``window``, ``down_after``, ``up_after`` and ``headroom``.
    """

    def __init__(self, budget_ms: float | None, policy: Policy) -> None:
        if budget_ms is not None and not (math.isfinite(budget_ms) and budget_ms > 0):
            raise PassError(f"budget_ms is {budget_ms}, wanted more than 0, or None for no budget")
        self._budget = budget_ms
        self._policy = policy
        self._ladder = policy.ladder
        self._level = 0
        self._recent: deque[float] = deque(maxlen=policy.window)
        self._missed: deque[bool] = deque(maxlen=policy.window)
        self.reset()

    @property
    def level(self) -> int:
        """Of the next frame: 0 is full quality."""
        return self._level

    def reset(self) -> None:
        """Forget what frames cost: another bundle or frame size begins. The level stays."""
        self._ratios: dict[int, _Ratio] = {}
        self._failed: dict[int, int] = {}
        """How many climbs to each level failed since one held."""
        self._frames = 0
        self._wait = self._policy.up_after
        self._begin_level(None)

    def _begin_level(
        self,
        left: tuple[int, float] | None,
        *,
        below: float | None = None,
        climbed: bool = False,
    ) -> None:
        self._left = left
        """The level before this one, and its cost, until this one's is known."""
        self._below = below
        """The cost of the level below a climb: the one that began this level, or, if that failed,
        the one that ended with it."""
        self._climbed = climbed
        """Whether a climb began this level, and it has not proved itself yet."""
        self._held = 0
        """Frames since this level began, or proved itself the last time."""
        self._fitting = 0
        """Frames in a row for which the level above was expected to fit."""
        self._recent.clear()
        self._missed.clear()

    def observe(self, work_ms: float, level: int) -> str | None:
        """Take note of a frame that was run, in the order in which they were.

        Args:
            work_ms: what it took the worker, in ms; what is no time at all is left out of account.
            level: at which it was run. Frames of another level than the present one, which were
                under way when it changed, are left out of account.

        Returns:
            One line that says why, if ``level`` has changed.
        """
        if self._budget is None or level != self._level:
            return None
        if not (math.isfinite(work_ms) and work_ms >= 0):
            return None
        allowed = self._budget * self._ladder[level].every_n
        self._recent.append(work_ms)
        self._missed.append(work_ms > allowed)
        self._frames += 1
        self._held += 1
        if level + 1 < len(self._ladder) and sum(self._missed) >= self._policy.down_after:
            return self._down(allowed)
        if len(self._recent) < self._policy.window:
            return None
        self._compare()
        if self._held >= _PROVEN * self._wait:
            self._wait = max(self._wait // 2, self._policy.up_after)
            self._held = 0
            self._climbed = False
            self._failed.pop(level, None)
        if level == 0:
            return None
        expected = self._expected()
        room = self._policy.headroom * self._budget * self._ladder[level - 1].every_n
        self._fitting = self._fitting + 1 if expected <= room else 0
        return self._up(expected) if self._fitting >= self._wait else None

    def _cost(self) -> float:
        """Return what the last frames took, as the rule for going down would see it."""
        longest_first = sorted(self._recent, reverse=True)
        return longest_first[min(self._policy.down_after, len(longest_first)) - 1]

    def _compare(self) -> None:
        """Once this level's cost is known, note its ratio to that of the level before."""
        if self._left is None:
            return
        (other, cost), self._left = self._left, None
        here = self._cost()
        upper, lower = (here, cost) if other > self._level else (cost, here)
        if lower <= 0:
            return
        above = min(other, self._level)
        before = self._below if other < self._level else None
        alike = before is not None and before <= _ALIKE * here and here <= _ALIKE * before
        patience = 1 << min(self._failed.get(above, 0), 5)
        until = self._frames + _BELIEVED * patience * self._policy.up_after
        self._ratios[above] = _Ratio(upper / lower, alike, until)

    def _expected(self) -> float:
        """Return what a frame would take one level up, in ms."""
        here, above = self._ladder[self._level], self._ladder[self._level - 1]
        pixels = (above.scale / here.scale) ** 2
        known = self._ratios.get(self._level - 1)
        if known is None:
            return self._cost() * pixels
        believed = self._frames <= known.until
        if above.bundle != here.bundle:
            # How the networks compare is not known otherwise, but that is worth a try.
            return self._cost() * (known.value if believed else pixels)
        if believed and known.confirmed:
            return self._cost() * known.value
        return self._cost() * min(known.value, pixels)

    def _down(self, allowed: float) -> str:
        line = (
            f"work took {self._cost():.1f} ms or more of {allowed:.1f} for {sum(self._missed)} of"
            f" {len(self._missed)} frames: {self._step(1)}"
        )
        below = None
        if self._climbed:
            self._wait = min(2 * self._wait, _LONGEST * self._policy.up_after)
            self._failed[self._level] = self._failed.get(self._level, 0) + 1
            below = self._below
        self._begin_level((self._level, self._cost()), below=below)
        self._level += 1
        return line

    def _up(self, expected: float) -> str:
        assert self._budget is not None
        allowed = self._budget * self._ladder[self._level - 1].every_n
        line = (
            f"work is expected to take {expected:.1f} ms of {allowed:.1f}, for {self._fitting}"
            f" frames now: {self._step(-1)}"
        )
        cost = self._cost()
        self._begin_level((self._level, cost), below=cost, climbed=True)
        self._level -= 1
        return line

    def _step(self, by: int) -> str:
        before, after = self._ladder[self._level], self._ladder[self._level + by]
        return f"level {self._level} ({before}) -> {self._level + by} ({after})"
