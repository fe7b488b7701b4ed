"""What a render pass is told once, :class:`Policy`, and says about each frame, :class:`Result`."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import PassError

Mode = Literal["live", "sync", "file"]
"""How frames wait: ``live`` never waits for the network and drops what is overtaken; ``sync`` waits
for each frame's own result, at most for the budget; ``file`` loses nothing and keeps the order."""

MODES: tuple[Mode, ...] = ("live", "sync", "file")


def is_number(value: object) -> bool:
    """Whether it is a finite number, of Python or numpy."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return math.isfinite(value)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise PassError(f"{name} is {value!r}, wanted a whole number from {least} up")


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PassError(f"Policy {name} is {value!r}, wanted one of {', '.join(known)}")


class Status(enum.Enum):
    """What the picture of a :class:`Result` is."""

    FRESH = "fresh"
    """A new result of the network, at full quality."""
    REUSED = "reused"
    """The result that was shown before, once more."""
    WARPED = "warped"
    """An older result, moved to where things are in this frame by its motion vectors."""
    DEGRADED = "degraded"
    """A new result, made more cheaply than wanted, to stay within the budget."""
    PASSTHROUGH = "passthrough"
    """The frame itself, not styled."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a frame's time went, in ms. Stages that did not happen are 0."""

    load: float = 0.0
    """From the application's pixels to the network's, on the thread that presents."""
    wait: float = 0.0
    """``present`` waited for the worker."""
    store: float = 0.0
    """From the result to the application's pixels, warping included."""
    present: float = 0.0
    """The whole call of ``present``, which is what the application's frame loses."""
    queue: float = 0.0
    """From the call that submitted the frame to the worker's start on it."""
    resample: float = 0.0
    """To a smaller internal size and back."""
    infer: float = 0.0
    """The engine."""
    stabilise: float = 0.0
    composite: float = 0.0
    """Strength, mask and blend."""
    work: float = 0.0
    """All of the worker's stages; 0 if no new result was delivered."""


@dataclass(frozen=True, slots=True)
class Result:
    """One picture for the screen, and what it is."""

    image: NDArray[Any]
    """In the layout of the frame; ``out`` where it was given, else memory of the pass (or, passed
    through, of the application), which holds this picture until the call after the next one. Of
    ``present_device`` it is the application's own array on the GPU."""
    status: Status
    age_frames: int
    """How many frames ago the picture's own frame was submitted; 0: it is of this frame."""
    index: int
    """Of the frame that the picture shows, as the application counts."""
    engine: str
    """What made it, e.g. "openvino-cpu bf16"; "" where it was passed through."""
    reason: str
    """Why the picture is not a fresh one; "" if it is."""
    timings: Timings
    level: int = 0
    """Of the ladder: 0 is full quality."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One step of the ladder that the governor goes down when frames take too long."""

    scale: float = 1.0
    """The network sees frames this much smaller on each side, and results are enlarged again;
    0 < scale <= 1."""
    every_n: int = 1
    """Only every n-th frame is run; in between, results are warped or shown again."""
    bundle: str | Path | None = None
    """Another bundle of the same kind and scale, of a smaller network; None: the pass's own."""

    def __post_init__(self) -> None:
        if not (is_number(self.scale) and 0 < self.scale <= 1):
            raise PassError(f"Level scale is {self.scale!r}, wanted above 0 and at most 1")
        _whole("Level every_n", self.every_n, 1)

    def __str__(self) -> str:
        parts = [] if self.bundle is None else [Path(self.bundle).name]
        parts.append(f"internal scale {self.scale:g}")
        if self.every_n > 1:
            parts.append(f"one frame in {self.every_n}")
        return ", ".join(parts)


DEFAULT_LADDER = (Level(), Level(scale=0.75), Level(scale=0.5), Level(scale=0.5, every_n=2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a pass does when time or an engine runs out. The defaults suit a live view."""

    late: Literal["warp", "reuse", "passthrough", "wait"] = "warp"
    """What is shown while a frame's result is not there: an older result, moved by the motion
    vectors where the frame has them; an older result as it is; the frame itself; or nothing before
    the result is there (``sync`` and ``file`` only), however late."""
    max_age: int = 8
    """A result is shown for this many frames at most, then the frame itself. The motion of four
    frames is remembered: what is older is shown unmoved."""
    align: bool = False
    """Move every result that is older than its frame by the motion vectors, not only late ones:
    what is drawn over it later (a HUD, a cursor) then fits, for the time that a warp takes."""
    on_error: Literal["passthrough", "reuse", "raise"] = "passthrough"
    """When an engine fails on a frame: show the frame itself; do as ``late`` says; or raise what
    happened (the engine is demoted in any case)."""
    hang_ms: float | None = 2000.0
    """An engine that takes longer than this for a frame is given up. None: engines are trusted to
    come back, and frames for which ``present`` waits anyway (``file``, and ``sync`` without a
    budget) are run on the calling thread, which saves two changes of thread."""
    start_ms: float = 120_000.0
    """The same for the first frame of each size, on which engines compile."""
    retry_s: float = 5.0
    """A failed engine is tried again after this many seconds, beside the frames. The time doubles
    with each failure, also after it has worked in between, and halves after 300 good frames."""
    retry_max_s: float = 300.0
    """It doubles up to this."""
    ladder: tuple[Level, ...] = DEFAULT_LADDER
    """What the governor may choose from, best first. With no budget only the first is used."""
    window: int = 8
    """The governor looks at this many frames at a time,"""
    down_after: int = 4
    """goes down if this many of them took longer than the budget,"""
    up_after: int = 120
    """and up after this many frames in a row whose cost at the higher level is expected to be"""
    headroom: float = 0.8
    """at most this share of the budget."""
    queue: int = 4
    """In ``file`` mode: how many frames may be submitted before one must be collected."""
    check_every: int = 120
    """Motion vectors and depth are checked against the pictures every so many frames; 0: never."""

    @property
    def hang_s(self) -> float:
        """``hang_ms`` in s; infinite if an engine may take however long."""
        return math.inf if self.hang_ms is None else self.hang_ms / 1e3

    def __post_init__(self) -> None:
        _one_of("late", self.late, ("warp", "reuse", "passthrough", "wait"))
        _one_of("on_error", self.on_error, ("passthrough", "reuse", "raise"))
        for name in ("hang_ms", "start_ms", "retry_s", "retry_max_s"):
            value = getattr(self, name)
            if name == "hang_ms" and value is None:
                continue
            if not (is_number(value) and value > 0):
                raise PassError(f"Policy {name} is {value!r}, wanted a number above 0")
        for name, least in (
            ("max_age", 0),
            ("window", 1),
            ("down_after", 1),
            ("up_after", 1),
            ("queue", 1),
            ("check_every", 0),
        ):
            _whole(f"Policy {name}", getattr(self, name), least)
        if self.down_after > self.window:
            raise PassError(
                f"Policy down_after is {self.down_after} of a window of {self.window} frames,"
                " wanted at most the window"
            )
        if not (is_number(self.headroom) and 0 < self.headroom <= 1):
            raise PassError(f"Policy headroom is {self.headroom!r}, wanted above 0 and at most 1")
        if not self.ladder or not all(isinstance(level, Level) for level in self.ladder):
            raise PassError(
                "Policy ladder is empty or holds something else than Level, wanted at least one"
                " Level; leave it out for the default"
            )


EventKind = Literal[
    "ready", "demoted", "recovered", "level", "swapped", "input", "cut", "failed", "closed"
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a pass, told once: to ``on_event`` and to the log."""

    kind: EventKind
    text: str
    """One line."""
    index: int
    """The latest frame at that time, as the application counts; -1 before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a pass will need, known before anything is loaded."""

    input_size: tuple[int, int]
    """(height, width) of the frames that it wants."""
    result_size: tuple[int, int]
    """(height, width) of the pictures that it gives."""
    engine_size: tuple[int, int]
    """(height, width) that the network is given: padded to its size rule."""
    buffer_bytes: int
    """Of the host's memory for frames and results between the threads."""
    engine_bytes: int | None
    """Working memory of the engine by the bundle's estimate; None: the bundle does not say."""
    levels: tuple[str, ...] = field(default=())
    """The ladder in words."""
