"""Loading and warming up, in the background, with its progress."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

from topcoat.runtime._errors import PassError, TopcoatError
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._worker import Clock

_NICE = 10
_LOOK_S = 0.25
"""Somebody who waits looks so often whether the thread that is waited for hangs."""
_inside = threading.local()

State = Literal["waiting", "loading", "warming", "ready", "failed", "cancelled"]


class Preparation:
    """Something that is being got ready; made by ``Pass.prepare`` and ``Pass.swap``."""

    def __init__(
        self, what: str, began: float = 0.0, look: Callable[[], None] | None = None
    ) -> None:
        self._what = what
        self._look = look
        self.began = began
        """When it was asked for, in s of the pass's clock."""
        self._state: State = "waiting"
        self._progress = 0.0
        self._error: TopcoatError | None = None
        self._cancelled = threading.Event()
        self._settled = threading.Event()
        self._done = threading.Event()
        self._condition = threading.Condition()

    @property
    def state(self) -> State:
        """``waiting``, ``loading``, ``warming``, then ``ready``, ``failed`` or ``cancelled``."""
        return self._state

    @property
    def progress(self) -> float:
        """From 0 to 1; 1 when it is ready."""
        return self._progress

    @property
    def error(self) -> TopcoatError | None:
        """Why it failed."""
        return self._error

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> Preparation:
        """Return when it has ended, or after ``timeout`` s; look at ``state`` then.

        Raises:
            TopcoatError: it failed.
            PassError: it is called from ``on_event``, on the thread that prepares.
        """
        if not self.done and getattr(_inside, "preparing", False):
            raise PassError(
                "on_event is called by the thread that prepares, which would wait for itself for"
                " ever; wait for a preparation elsewhere"
            )
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if self._done.wait(_LOOK_S if left is None else min(left, _LOOK_S)):
                break
            if left is not None and left <= _LOOK_S:
                break
            if self._look is not None:
                self._look()
        if self._error is not None:
            raise self._error
        return self

    def cancel(self) -> None:
        """Give it up at the next step; a swap then does not happen. Nothing if it has ended."""
        self._cancelled.set()

    def __repr__(self) -> str:
        return f"<Preparation of {self._what}: {self._state}, {self._progress:.0%}>"

    # What follows is for the thread that does the work.

    def wait_done(self, clock: Clock, until: float) -> None:
        """Return when it has ended, or at that time of the clock; raise nothing."""
        with self._condition:
            while not self._done.is_set() and (left := until - clock.now()) > 0:
                clock.wait(self._condition, left)

    def wait_settled(self) -> None:
        """Return when nothing is loaded or warmed any more, if it has not ended for all that."""
        self._settled.wait()

    @property
    def settled(self) -> bool:
        """Whether nothing is loaded or warmed any more."""
        return self._settled.is_set()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Refuse to wait, on this thread, for any preparation until this one is settled."""
        _inside.preparing = True
        try:
            yield
        finally:
            _inside.preparing = False

    def settle(self) -> None:
        """Say that nothing is loaded or warmed any more; what was done is going to be told."""
        _inside.preparing = False
        self._settled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it is to be given up."""
        return self._cancelled.is_set()

    def step(self, state: State, progress: float) -> None:
        """Say how far it is."""
        self._state, self._progress = state, progress

    def end(self, state: State, error: TopcoatError | None = None) -> None:
        """Say that it is over. Only the first time counts."""
        with self._condition:
            if self._done.is_set():
                return
            self._state, self._error = state, error
            if state == "ready":
                self._progress = 1.0
            self._settled.set()
            self._done.set()
            self._condition.notify_all()


def at_low_priority(work: Callable[[], None]) -> None:
    """Do something on a thread that the scheduler makes wait for others; return when it is done.

    Linux alone can do that. Threads inherit the priority of the one that starts them, so engines,
    which have threads of their own, are to be loaded elsewhere.

    Raises:
        BaseException: what ``work`` raises.
    """
    failures: list[BaseException] = []
    ended = threading.Event()

    def body() -> None:
        try:
            _lower_priority()
            work()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    start(body, "warm-up")
    ended.wait()
    if failures:
        raise failures.pop()


def _lower_priority() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and it is a courtesy
            now = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, max(now, _NICE))
