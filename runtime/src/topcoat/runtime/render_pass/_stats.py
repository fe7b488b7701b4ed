"""How the last frames went: a record per frame, and its summary."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from topcoat.runtime._errors import PassError
from topcoat.runtime._percentiles import nearest_rank
from topcoat.runtime.render_pass._types import Result, Status, Timings

_STAGES = tuple(field.name for field in fields(Timings))
_OF_THE_WORKER = frozenset({"queue", "resample", "infer", "stabilise", "composite", "work"})
_STATUSES = tuple(Status)
_CODES = {status: code for code, status in enumerate(_STATUSES)}


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Times in ms, by nearest rank: each occurred."""

    frames: int
    """How many frames have this stage."""
    p50: float
    p95: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Summary of the last frames of a pass; ``str()`` is a table for people."""

    frames: int
    """How many frames this is about."""
    statuses: Mapping[Status, int]
    """How many frames had each status; every status is there."""
    within_budget: float
    """The share of frames whose call of ``present`` took no longer than the budget, 0 to 1. Without
    a budget, or a frame, 1."""
    stages: Mapping[str, Percentiles]
    """By field of :class:`Timings`: over all frames; of the worker's stages (queue, resample,
    infer, stabilise, composite, work) over those that showed a new result. Stages that no frame
    has are left out."""
    ages: Mapping[int, int]
    """How many frames showed a picture of the network of each age, in frames; those that were
    passed through are left out."""
    levels: Mapping[int, int]
    """How many of the same frames were made at each level of the ladder."""
    copied_bytes: float
    """Per frame, on average: what the pass copied between the application's memory and its own."""
    failures: int
    """Since the pass was opened: frames on which an engine failed."""
    demotions: int
    """Since the pass was opened: how often an engine was put aside."""
    dropped: int
    """Since the pass was opened: submitted frames, or results, that newer ones overtook."""

    def to_json(self) -> dict[str, Any]:
        """Return everything in types that JSON has."""
        return {
            "frames": self.frames,
            "statuses": {status.value: count for status, count in self.statuses.items()},
            "within_budget": self.within_budget,
            "stages_ms": {name: asdict(times) for name, times in self.stages.items()},
            "ages": {str(age): count for age, count in self.ages.items()},
            "levels": {str(level): count for level, count in self.levels.items()},
            "copied_bytes_per_frame": self.copied_bytes,
            "failures": self.failures,
            "demotions": self.demotions,
            "dropped": self.dropped,
        }

    def __str__(self) -> str:
        if not self.frames:
            return "no frame yet"
        seen = ", ".join(f"{n} {status.value}" for status, n in self.statuses.items() if n)
        lines = [f"{_count(self.frames)}: {seen}; {_percent(self.within_budget)} within budget"]
        if self.ages:
            ages = ", ".join(f"{n} of age {age}" for age, n in self.ages.items())
            lines.append(f"pictures of the network: {ages}")
        if any(self.levels):
            levels = ", ".join(f"{n} at level {level}" for level, n in self.levels.items())
            lines.append(f"made: {levels}")
        lines.append(
            f"{'ms':<10}" + "".join(f"{name:>9}" for name in ("p50", "p95", "p99", "p99.9", "max"))
        )
        for name, times in self.stages.items():
            if times.max > 0:
                figures = (times.p50, times.p95, times.p99, times.p99_9, times.max)
                lines.append(f"{name:<10}" + "".join(f"{value:9.2f}" for value in figures))
        lines.append(
            f"{self.failures} failures, {self.demotions} demotions, {self.dropped} dropped;"
            f" {self.copied_bytes / 1e6:.2f} MB copied per frame"
        )
        return "\n".join(lines)


class FrameLog:
    """Remembers the last frames of a pass. Any thread may add and ask.

    Args:
        capacity: how many frames.
    """

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise PassError(f"capacity is {capacity}, wanted at least 1 frame")
        self._capacity = capacity
        self._lock = threading.Lock()
        self._count = 0
        self._status = np.zeros(capacity, np.int8)
        self._within = np.zeros(capacity, np.bool_)
        self._age = np.zeros(capacity, np.int64)
        self._level = np.zeros(capacity, np.int64)
        self._copied = np.zeros(capacity, np.int64)
        self._times = np.zeros((capacity, len(_STAGES)), np.float64)

    def add(self, result: Result, *, within: bool, copied: int) -> None:
        """Remember a frame in the place of the oldest; its picture is not kept.

        Args:
            result: what ``present`` returned.
            within: whether that call took no longer than the budget.
            copied: bytes that the pass copied for it.
        """
        times = result.timings
        with self._lock:
            place = self._count % self._capacity
            self._status[place] = _CODES[result.status]
            self._within[place] = within
            self._age[place] = result.age_frames
            self._level[place] = result.level
            self._copied[place] = copied
            row = self._times[place]
            for column, name in enumerate(_STAGES):
                row[column] = getattr(times, name)
            self._count += 1

    def summary(
        self,
        window: int | None = None,
        *,
        failures: int = 0,
        demotions: int = 0,
        dropped: int = 0,
    ) -> Stats:
        """Summarise the last frames.

        Args:
            window: how many frames at most; None: all that are remembered.
            failures: counted by the pass, handed on.
            demotions: likewise.
            dropped: likewise.

        Raises:
            PassError: ``window`` is below 1.
        """
        if window is not None and window < 1:
            raise PassError(
                f"window is {window}, wanted at least 1 frame, or None for all that are remembered"
            )
        with self._lock:
            known = min(self._count, self._capacity)
            frames = known if window is None else min(window, known)
            places = np.arange(self._count - frames, self._count) % self._capacity
            status, age, level = self._status[places], self._age[places], self._level[places]
            within, copied = self._within[places], self._copied[places]
            times = self._times[places]
        styled = status != _CODES[Status.PASSTHROUGH]
        new = (status == _CODES[Status.FRESH]) | (status == _CODES[Status.DEGRADED])
        stages = {}
        for column, name in enumerate(_STAGES):
            values = times[new, column] if name in _OF_THE_WORKER else times[:, column]
            if len(values):
                stages[name] = Percentiles(
                    len(values), *(nearest_rank(values, p) for p in (50, 95, 99, 99.9, 100))
                )
        return Stats(
            frames=frames,
            statuses={s: int((status == code).sum()) for s, code in _CODES.items()},
            within_budget=float(within.mean()) if frames else 1.0,
            stages=stages,
            ages=_histogram(age[styled]),
            levels=_histogram(level[styled]),
            copied_bytes=float(copied.mean()) if frames else 0.0,
            failures=failures,
            demotions=demotions,
            dropped=dropped,
        )


def _histogram(values: np.ndarray[Any, np.dtype[np.int64]]) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return {int(value): int(count) for value, count in zip(found, counts, strict=True)}


def _count(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"


def _percent(share: float) -> str:
    """Return a share in per cent, rounded down: 100 % means every frame."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:g} %"
