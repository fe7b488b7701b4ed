"""Loading and warming up, in the background, with its progress."""

from __future__ import annotations

import os
import sys
import threading
from typing import Literal

from topcoat.runtime._errors import TopcoatError
from topcoat.runtime.render_pass._worker import Clock

State = Literal["waiting", "loading", "warming", "ready", "failed", "cancelled"]


class Preparation:
    """Something that is being got ready; made by ``Pass.prepare`` and ``Pass.swap``."""

    def __init__(self, what: str, began: float = 0.0) -> None:
        self._what = what
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
        """
        self._done.wait(timeout)
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

    def settle(self) -> None:
        """Say that nothing is loaded or warmed any more; what was done is going to be told."""
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


def lower_priority() -> None:
    """Let the scheduler prefer the other threads of the process; Linux alone can do that.

    Threads that this one starts inherit it, so engines must have been loaded before.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
