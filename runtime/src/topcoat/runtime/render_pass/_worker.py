"""One thread that runs frames, and the slots in which they wait. Latest wins, or none is lost."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._composite import Blend
from topcoat.runtime.render_pass._engines import Rosters, Seat
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._types import EventKind


class Clock(Protocol):
    """Time, and waiting for things; tests have one that they turn by hand."""

    def now(self) -> float:
        """Return seconds since some moment, never less than before."""

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait for a notification of a condition that is held, for ``timeout`` s at most."""


class MonotonicClock:
    """The machine's."""

    def now(self) -> float:
        """Return ``time.perf_counter()``."""
        return time.perf_counter()

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait on the condition."""
        condition.wait(timeout)


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``Pass.set`` sets; a frame keeps those of the call that submitted it."""

    strength: float = 1.0
    stabilise: float = 0.0
    blend: Blend = "normal"
    mask: NDArray[np.uint8] | None = None
    """(H, W), rows as those of the colour."""


@dataclass(slots=True, eq=False)
class Slot:
    """A frame on its way through the worker, with all the memory that it needs."""

    height: int
    width: int
    scale: int
    own_input: Frame
    """(H, W, 3) RGB."""
    result: Frame
    """(H * scale, W * scale, 3) RGB."""
    color: NDArray[Any] | None = None
    """The application's own pixels, where the result takes its alpha from them."""
    motion: NDArray[np.float32] | None = None
    depth: NDArray[np.float32] | None = None
    mask: NDArray[np.uint8] | None = None

    source: Frame = field(init=False)
    """What is run: ``own_input``, or the application's memory while it waits."""
    has_motion: bool = False
    base: int = -1
    """The frame to which ``motion`` leads, by its ``sequence``."""
    has_depth: bool = False
    has_mask: bool = False
    reset: bool = False
    check: bool = False
    """Compare motion and depth with the pictures."""
    sequence: int = 0
    """How many frames were presented before it."""
    generation: int = 0
    """Of the pass's layout; slots of former ones are thrown away."""
    index: int = 0
    exposure: float = 1.0
    """Of the frame's layout."""
    level: int = 0
    settings: Settings = field(default_factory=Settings)
    rosters: Rosters | None = None
    """The engines that run it; None when it has been run."""

    loaded: bool = False
    """Whether ``own_input`` holds the frame."""
    skipped: str = ""
    """Why it is passed through without being run; "" otherwise."""
    finished: bool = False
    submitted: float = 0.0
    load: float = 0.0
    queue: float = 0.0
    resample: float = 0.0
    infer: float = 0.0
    stabilise: float = 0.0
    composite: float = 0.0
    work: float = 0.0
    """ms, all of them, except for ``submitted`` (s of the clock)."""
    engine: str = ""
    quality: str = ""
    """What its level came to, where that is not what the ladder says; "" otherwise."""
    error: Exception | None = None
    """Why there is no result."""
    notes: list[tuple[EventKind, str]] = field(default_factory=list)
    """(kind, line): what the worker has to tell."""

    def __post_init__(self) -> None:
        self.source = self.own_input


@dataclass(frozen=True, slots=True)
class Left:
    """What a thread that was given up leaves undone."""

    slot: Slot | None
    """The frame that it was at."""
    seat: Seat | None
    """The engine that it was in."""
    limit: float
    """How long that might have taken, in s."""
    queued: tuple[Slot, ...]
    done: tuple[Slot, ...]


class Here(Protocol):
    """Something that works on the worker's thread, or on the application's."""

    here: bool


class Worker:
    """A daemon thread that takes slots from a queue, works on them and puts them on another.

    Args:
        work: what it does to a slot. It must not raise.
        clock: for waiting.
        limit: how long a frame may take unless :meth:`extend` says otherwise, in s.
        queued: what another worker left undone.
        done: what another worker had finished and nobody has taken.
    """

    def __init__(
        self,
        work: Callable[[Slot], None],
        clock: Clock,
        limit: float,
        *,
        queued: Iterable[Slot] = (),
        done: Iterable[Slot] = (),
    ) -> None:
        self._work = work
        self._clock = clock
        self._limit = limit
        self._condition = threading.Condition()
        self._queue: deque[Slot] = deque(queued)
        self._done: deque[Slot] = deque(done)
        self._running: Slot | None = None
        self._stopping = False
        self._abandoned = False
        self.started = 0.0
        """When the running frame was begun, or went on to another engine: s of the clock."""
        self.limit = limit
        """How long that may take, in s."""
        self._at: Seat | None = None
        self.last_taken = -1
        """Sequence number of the latest frame that was begun."""
        self.ended = threading.Event()
        """Set when the thread has come to its end."""

    def start(self) -> None:
        """Begin with what is queued: the work may ask for the worker, which is there now."""
        start(self._loop, "pass", self.ask_to_stop)

    def put(self, slot: Slot) -> None:
        """Queue a frame."""
        with self._condition:
            self._queue.append(slot)
            self._condition.notify_all()

    def run_here(self, slot: Slot, pipeline: Here) -> None:
        """Run a frame on the calling thread, if the worker is idle; else queue it.

        Args:
            slot: the frame.
            pipeline: what works; it is told that it does so here.

        Raises:
            KeyboardInterrupt: the user wants to end; the frame is finished without a result.
        """
        with self._condition:
            if self._queue or self._running is not None:
                self._queue.append(slot)
                self._condition.notify_all()
                return
            self._take(slot)
        pipeline.here = True
        try:
            self._work(slot)
        finally:
            pipeline.here = False
            self._finish(slot)

    def take_back(self) -> Slot | None:
        """Return the latest queued frame, which is not run then; None if none waits."""
        with self._condition:
            return self._queue.pop() if self._queue else None

    def take_done(self) -> Slot | None:
        """Return the earliest finished frame; None if there is none."""
        with self._condition:
            return self._done.popleft() if self._done else None

    @property
    def running(self) -> Slot | None:
        """The frame that is being run."""
        return self._running

    @property
    def busy(self) -> bool:
        """Whether a frame is queued or being run."""
        with self._condition:
            return bool(self._queue) or self._running is not None

    def wait(self, timeout: float | None) -> bool:
        """Wait until a frame is finished, nothing is being run, or the running one is overdue.

        Args:
            timeout: in s; None: without an end.

        Returns:
            Whether there is a finished frame.
        """
        until = None if timeout is None else self._clock.now() + timeout
        with self._condition:
            while not self._done and (self._queue or self._running is not None):
                now = self._clock.now()
                ends = [] if until is None else [until]
                if self._running is not None:
                    ends.append(self.started + self.limit)
                left = min(ends) - now if ends else math.inf
                if left <= 0:
                    break
                self._clock.wait(self._condition, None if math.isinf(left) else left)
            return bool(self._done)

    def extend(self, limit: float, at: Seat | None = None) -> None:
        """Begin the running frame's time anew: it goes on to something else.

        Args:
            limit: how long that may take, in s.
            at: the engine that it goes on to; None: it is the pass's own work.
        """
        with self._condition:
            self.started = self._clock.now()
            self.limit = limit
            self._at = at
            self._condition.notify_all()

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for this thread any more."""
        return self._abandoned

    def abandon(self, *, if_overdue: bool = False) -> Left | None:
        """Give the thread up: what it does has no consequence any more, and it ends when it can.

        Args:
            if_overdue: only if the running frame has taken longer than it may.

        Returns:
            What it leaves undone; None if it is not given up.
        """
        with self._condition:
            # The same sum as in wait(), or the two might disagree by a rounding for ever.
            if if_overdue and (
                self._running is None or self._clock.now() < self.started + self.limit
            ):
                return None
            self._abandoned = True
            self._stopping = True
            left = Left(self._running, self._at, self.limit, tuple(self._queue), tuple(self._done))
            self._queue.clear()
            self._done.clear()
            self._condition.notify_all()
            return left

    def needs(self, rosters: object) -> bool:
        """Whether a frame that is queued or being run belongs to these engines."""
        with self._condition:
            return any(
                slot is not None and slot.rosters is rosters
                for slot in (*self._queue, self._running)
            )

    def ask_to_stop(self) -> None:
        """Let the thread end after the frame that it is at."""
        with self._condition:
            self._stopping = True
            self._queue.clear()
            self._condition.notify_all()

    def stop(self, timeout: float) -> bool:
        """End the thread after the frame that it is at; return whether it ended in time."""
        until = self._clock.now() + timeout
        self.ask_to_stop()
        with self._condition:
            while self._running is not None and (left := until - self._clock.now()) > 0:
                self._clock.wait(self._condition, left)
            if self._running is not None:
                return False
        self.ended.wait()
        return True

    def _loop(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._stopping:
                    self._condition.wait()
                if self._stopping:
                    break
                slot = self._queue.popleft()
                self._take(slot)
            self._work(slot)
            self._finish(slot)
            del slot  # an idle thread keeps no picture
        self._work = _nothing  # else the two keep each other, and all buffers, alive for a while
        self.ended.set()

    def _take(self, slot: Slot) -> None:
        """Begin a frame; the condition is held."""
        self._running = slot
        self.started = self._clock.now()
        self.limit = self._limit
        self._at = None
        self.last_taken = slot.sequence
        slot.queue = (self.started - slot.submitted) * 1e3

    def _finish(self, slot: Slot) -> None:
        with self._condition:
            self._running = None
            if not self._abandoned:
                self._done.append(slot)
            self._condition.notify_all()


def _nothing(slot: Slot) -> None:
    """Work of a thread that has ended."""
