"""A clock that is turned by hand, and engines that do what a script says, for render passes."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from topcoat.runtime import BackendError, DeviceLostError, Event, ModelClosedError
from topcoat.runtime.bundle import SizeRule
from topcoat.runtime.render_pass import Pass
from topcoat.runtime.render_pass._engines import Seat

Frame = npt.NDArray[np.uint8]

_PATIENCE = 20.0
"""Seconds of real time after which a test fails instead of hanging."""


class FakeClock:
    """Time that passes when a test says so.

    Engines sleep by it on the pass's own threads. :meth:`advance` turns it step by step, from one
    thing that is due to the next, and goes on only when every thread has come to rest: it sleeps
    here, or waits for work. So the order of everything is the same in every run.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._condition = threading.Condition()
        self._sleepers: list[float] = []
        self._passes: list[Pass] = []

    def watch(self, subject: Pass) -> None:
        """Wait for this pass's threads, too."""
        self._passes.append(subject)

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        """Sleep, on a thread of the pass."""
        until = self._now + seconds
        with self._condition:
            self._sleepers.append(until)
            self._condition.notify_all()
            deadline = time.monotonic() + _PATIENCE
            while self._now < until:
                assert time.monotonic() < deadline, "nobody turned the clock"
                self._condition.wait(0.5)
            self._sleepers.remove(until)

    def hang(self, released: threading.Event) -> None:
        """Sleep until somebody sets the event, whatever the time."""
        with self._condition:
            self._sleepers.append(math.inf)
        released.wait(_PATIENCE)
        with self._condition:
            self._sleepers.remove(math.inf)

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Let time pass, on the thread that presents, until somebody wakes or the time is over."""
        before = self._progress()
        condition.release()
        try:
            self._settle()
            if self._progress() != before:
                return  # what is waited for may have happened without any time passing
            due = [at for at in self._sleepers if self._now < at < math.inf]
            until = None if timeout is None else self._now + timeout
            nearest = min(due, default=None)
            if nearest is not None and (until is None or nearest <= until):
                self._turn(nearest)
            elif until is not None:
                self._turn(until)
        finally:
            condition.acquire()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until = self._now + seconds
        self._settle()
        while due := [at for at in self._sleepers if self._now < at <= until]:
            self._turn(min(due))
        self._turn(until)

    def _turn(self, to: float) -> None:
        with self._condition:
            self._now = max(self._now, to)
            self._condition.notify_all()
        self._settle()

    def _settle(self) -> None:
        """Return when every thread sleeps by this clock or waits for work."""
        deadline = time.monotonic() + _PATIENCE
        while not all(self._rests(one) for one in self._passes):
            assert time.monotonic() < deadline, "a thread of the pass does not come to rest"
            time.sleep(1e-4)

    def _progress(self) -> list[object]:
        """Return what changes when a thread of a pass gets something done."""
        seen: list[object] = []
        for one in self._passes:
            worker, loader = one._lane._worker, one._loader
            if worker is not None:
                seen += [len(worker._queue), len(worker._done), worker.busy, worker.running]
            seen += [
                None if at is None else at.done for at in (loader._preparation, loader._swapping)
            ]
            seen += [one._lane.trying, loader.at_work]
        return seen

    def _rests(self, subject: Pass) -> bool:
        lane, loader = subject._lane, subject._loader
        worker = lane._worker
        with self._condition:
            if any(at <= self._now for at in self._sleepers):
                return False  # one is waking up
            asleep = len(self._sleepers)
        busy = worker is not None and worker.busy
        return asleep >= busy + loader.at_work + lane.hanging + lane.trying


Step = float | BaseException | str | Callable[[], None]
"""What an engine does to a frame: a time in seconds; an exception; a call; "nothing", "half",
"nan", "float nan" or "shape": a result that is none; "hang": it does not come back until
``Script.release``, and then with a result. Of these, loading knows a time, an exception, a hang."""


@dataclass
class Script:
    """What a scripted engine does, frame by frame; the last step is repeated for ever."""

    clock: FakeClock
    steps: Iterable[Step] = (0.0,)
    load: Step = 0.0
    shift: int = 40
    """Results are the frame plus this, so that it is known which engine made them."""
    released: threading.Event = field(default_factory=threading.Event)
    opened: int = 0
    closed: int = 0
    ran_at: list[float] = field(default_factory=list)
    """When each run began, in s of the clock."""

    @property
    def runs(self) -> int:
        return len(self.ran_at)

    def open(self) -> ScriptedRunner:
        self.opened += 1
        if isinstance(self.load, BaseException):
            raise self.load
        if self.load == "hang":
            self.clock.hang(self.released)
        elif isinstance(self.load, float) and self.load:
            self.clock.sleep(self.load)
        return ScriptedRunner(self)

    def release(self) -> None:
        """Let what hangs come back, now; what hangs later does so again."""
        released, self.released = self.released, threading.Event()
        released.set()

    def __post_init__(self) -> None:
        steps = list(self.steps)
        self._next: Iterator[Step] = itertools.chain(steps, itertools.repeat(steps[-1]))

    def endless(self, steps: Iterator[Step]) -> None:
        """Take what comes from now on from an iterator without an end."""
        self._next = steps

    def then(self, *steps: Step) -> None:
        """Change what comes from now on."""
        self._next = itertools.chain(steps, itertools.repeat(steps[-1]))


class ScriptedRunner:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.closed = False

    def run(self, source: Frame, result: Frame) -> object:
        script = self.script
        if self.closed:
            raise ModelClosedError("this model was closed")
        script.ran_at.append(script.clock.now())
        step = next(script._next)
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, float):
            if step:
                script.clock.sleep(step)
        elif step == "hang":
            script.clock.hang(script.released)
        elif callable(step):
            step()
        scale = result.shape[0] // source.shape[0]
        made = styled(source, script.shift, scale)
        if step == "nothing":
            return result
        if step == "half":
            result[: len(result) // 2] = made[: len(made) // 2]
            return result
        if step == "nan":
            result[...] = 0
            return result
        if step == "float nan":
            return np.full(result.shape, np.nan, np.float32)
        if step == "shape":
            return made[1:]
        result[...] = made
        return result

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.script.closed += 1


def styled(frame: Frame, shift: int = 40, scale: int = 1) -> Frame:
    """Return what a scripted engine makes of a frame."""
    return (frame + np.uint8(shift)).repeat(scale, axis=0).repeat(scale, axis=1)


class ScriptedSource:
    """A bundle whose engines are scripts, best first."""

    def __init__(
        self, *scripts: Script, name: str = "scripted", scale: int = 1, multiple: int = 1
    ) -> None:
        self.scripts = scripts
        self.name = name
        self.scale = scale
        self.size = SizeRule(multiple=multiple, min=1, max=None, pad="edge")
        self.memory_per_pixel: int | None = None

    def open(self) -> list[Seat]:
        seats = self.seats()
        seats[0].runner = seats[0].open()
        return seats

    def seats(self) -> list[Seat]:
        return [Seat(f"{self.name}-{n}", script.open) for n, script in enumerate(self.scripts)]

    def explain(self) -> str:
        return f"engines of {self.name}"


def picture(seed: int = 0, height: int = 24, width: int = 32, channels: int = 3) -> Frame:
    """Return a frame that no other seed gives."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def lost() -> Exception:
    return DeviceLostError("the device is lost")


def broken() -> Exception:
    return BackendError("it broke")


def listener(events: list[Event]) -> Callable[[Event], None]:
    return events.append
