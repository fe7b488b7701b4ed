"""Engines that failed are tried again here, beside the worker, so that no frame waits for them."""

from __future__ import annotations

import threading

import numpy as np

from topcoat.runtime._errors import BackendError
from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._engines import Roster, Seat, load_seat
from topcoat.runtime.render_pass._guard import ResultGuard
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._types import Policy
from topcoat.runtime.render_pass._worker import Clock

_FRAMES = 2
"""The first frame may take as long as a first frame may, the last one no longer than any other."""


class Trials:
    """Loads engines whose rest is over and runs a frame on them, each on a thread of its own.

    One that works is used from the next frame on. Methods may be called from any thread.

    Args:
        policy: of the pass.
        clock: of the pass.
    """

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._began: dict[Seat, float] = {}

    @property
    def running(self) -> int:
        """How many threads are at it, those that hang among them."""
        with self._lock:
            return len(self._began)

    def begin(self, roster: Roster, seat: Seat, frame: Frame, *, urgent: bool) -> None:
        """Try an engine on a copy of this frame, unless it is being tried.

        Args:
            roster: to which it belongs.
            seat: the engine.
            frame: (H, W, 3) uint8, what it is to be given.
            urgent: no other engine works: do not wait until the trial of another one is over.
        """
        now = self._clock.now()
        with self._lock:
            at_work = any(now - at < self._policy.start_ms / 1e3 for at in self._began.values())
            if (at_work and not urgent) or not seat.begin_trial():
                return
            self._began[seat] = now
        own = frame.copy()
        start(lambda: self._run(roster, seat, own, now), "trial")

    def _run(self, roster: Roster, seat: Seat, frame: Frame, began: float) -> None:
        size = (frame.shape[0], frame.shape[1])
        try:
            try:
                self._try(seat, frame, roster.source.scale, began)
            except BaseException as error:  # of any class: engines are other people's code
                roster.add_news("demoted", roster.failed(seat, error, size, self._clock.now()))
            else:
                roster.add_news("recovered", roster.worked(seat, size))
        finally:
            seat.end_trial()
            with self._lock:
                del self._began[seat]

    def _try(self, seat: Seat, frame: Frame, scale: int, began: float) -> None:
        height, width = frame.shape[:2]
        result = np.empty((height * scale, width * scale, 3), np.uint8)
        guard = ResultGuard(height, width, scale)
        runner = load_seat(seat)
        for number in range(_FRAMES):
            at = self._clock.now()
            guard.mark(result)
            made = runner.run(frame, result)
            self._check_time(began, self._policy.start_ms)
            if number > 0:
                self._check_time(at, self._policy.hang_s * 1e3)
            guard.check(frame, result, made)

    def _check_time(self, since: float, limit_ms: float) -> None:
        took, limit = self._clock.now() - since, limit_ms / 1e3
        if took >= limit:
            raise BackendError(f"it has taken {took:.3g} s, wanted less than {limit:g} s")
