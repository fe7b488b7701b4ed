"""Which bundle a pass runs: loading it, warming it, and changing over to another one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from topcoat.runtime._errors import BackendError, FrameError, PassError, TopcoatError
from topcoat.runtime.render_pass._engines import (
    EnginesRestError,
    Roster,
    Rosters,
    Runner,
    Seat,
    Source,
    close_all,
    load_seat,
    one_line,
    open_seat,
    without_frames,
)
from topcoat.runtime.render_pass._estate import Estate
from topcoat.runtime.render_pass._preparation import Preparation, at_low_priority
from topcoat.runtime.render_pass._resample import internal_size
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._types import Level, Policy
from topcoat.runtime.render_pass._worker import Clock

Size = tuple[int, int]

_WARM_FRAMES = 2


class _StoppedError(BaseException):
    """A preparation is not wanted any more, or another thread does it. Nobody is told."""


@dataclass(eq=False)
class _Attempt:
    """One thread that prepares something. Where it hangs, another one takes its place."""

    preparation: Preparation
    sizes: tuple[Size, ...]
    since: float
    """When it began what it is doing, in s of the clock."""
    before: Preparation | None = None
    """Another one that must be over first."""
    source: Source | None = None
    """The bundle that is to take over; None: the pass's own is prepared."""
    waiting: bool = False
    """For ``before``."""
    fresh: bool = True
    """Nothing of the bundle is in use yet."""
    listed: bool = False
    """Engines are loaded one by one, so that it is known which of them hangs."""
    rosters: Rosters | None = None
    inside: tuple[Roster, Seat, Size] | None = None
    """The engine that it loads, or runs frames of a size on; None: it is elsewhere."""
    given_up: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def waits(self) -> bool:
        """Whether it has nothing to do before another one is over."""
        return self.waiting and self.before is not None and not self.before.settled

    def check(self) -> None:
        """Go no further if nobody wants it.

        Raises:
            _StoppedError: it was cancelled or given up.
        """
        if self.given_up or self.preparation.cancelled:
            raise _StoppedError


def check_sizes(sizes: Iterable[object]) -> tuple[Size, ...]:
    """Return frame sizes as pairs of whole numbers.

    Raises:
        PassError: one of them is none.
    """
    found = []
    for size in sizes:
        pair = size if isinstance(size, (tuple, list)) else ()
        whole = all(isinstance(side, (int, np.integer)) for side in pair)
        if len(pair) != 2 or not whole or min(pair) < 1:
            raise PassError(
                f"a frame size is {size!r}, wanted (height, width) in whole pixels from 1 up, each"
                " size a pair of its own: prepare((720, 1280)), swap(..., sizes=((720, 1280),))"
            )
        found.append((int(pair[0]), int(pair[1])))
    return tuple(found)


class Loader:
    """The engines of a pass: none yet, those in use, and those that are to take over.

    Methods may be called from any thread.

    Args:
        source: of the pass's bundle.
        levels: of the ladder's other bundles.
        policy: of the pass.
        ladder: the levels that may be used.
        clock: of the pass.
        tell: logs a line.
        estate: is told which engines there are.

    Raises:
        PassError: a bundle of the ladder has another scale.
    """

    def __init__(
        self,
        source: Source,
        levels: Mapping[str, Source],
        policy: Policy,
        ladder: tuple[Level, ...],
        clock: Clock,
        tell: Callable[..., None],
        estate: Estate,
    ) -> None:
        self.source = source
        """Of what is in use, or going to be."""
        self._levels = dict(levels)
        self._policy = policy
        self._ladder = ladder
        self._clock = clock
        self._tell = tell
        self._estate = estate
        self._attempts: list[_Attempt] = []
        self._listed: Rosters | None = None
        """Of a bundle that is not ready, because an engine hangs."""
        self._lock = threading.Lock()
        self._closed = False
        self._ready: Rosters | None = None
        self._successor: tuple[Source, Rosters] | None = None
        self._preparation: Preparation | None = None
        self._swapping: Preparation | None = None
        self._wait_s = 0.0
        self._again_at = 0.0
        self.demotions = 0
        """Engines that failed while they were warmed."""
        for name, other in self._levels.items():
            self.check_scale(other, f"the ladder's bundle {name}")

    @property
    def in_use(self) -> Rosters | None:
        """The engines in use; None before they are loaded."""
        return self._ready

    def check_scale(self, source: Source, what: str) -> None:
        """Refuse a bundle of another scale than the pass's.

        Raises:
            PassError: it has another one.
        """
        if source.scale != self.source.scale:
            raise PassError(
                f"{what} makes pictures {source.scale} times as large, this pass of"
                f" {self.source.name} {self.source.scale} times, wanted the same; open another pass"
            )

    @property
    def at_work(self) -> int:
        """How many threads load or warm engines, those that hang among them."""
        with self._lock:
            return sum(not attempt.waits for attempt in self._attempts)

    def prepare(self, sizes: tuple[Size, ...]) -> Preparation:
        """Load what is in use and warm it for these sizes, on a thread of its own.

        Raises:
            PassError: a size is none.
        """
        sizes = check_sizes(sizes)
        now = self._clock.now()
        preparation = Preparation(self.source.name, now, self.look_for_hang)
        with self._lock:
            before, self._preparation = self._preparation, preparation
        self._begin(_Attempt(preparation, sizes, now, before, waiting=before is not None))
        return preparation

    def swap(self, source: Source, sizes: tuple[Size, ...]) -> Preparation:
        """Load another bundle aside; :meth:`take_over` changes to it when it is ready.

        Raises:
            PassError: it has another scale, or a size is none.
        """
        self.check_scale(source, source.name)
        sizes = check_sizes(sizes)
        now = self._clock.now()
        preparation = Preparation(source.name, now, self.look_for_hang)
        with self._lock:
            if self._swapping is not None:
                self._swapping.cancel()  # the latest wish counts
            self._swapping = preparation
        self._begin(_Attempt(preparation, sizes, now, source=source))
        return preparation

    def _begin(self, attempt: _Attempt) -> None:
        with self._lock:
            self._attempts.append(attempt)

        def body() -> None:
            try:
                with attempt.preparation.inside():
                    if attempt.source is None:
                        self._prepare(attempt)
                    else:
                        self._swap(attempt, attempt.source)
            finally:
                with self._lock:
                    self._attempts.remove(attempt)
                attempt.ended.set()

        name = "preparation" if attempt.source is None else "swap"
        start(body, name, attempt.preparation.cancel)

    def look_for_hang(self) -> None:
        """Give up what takes longer than an engine may for its first frame; go on without it."""
        limit, now = self._policy.start_ms / 1e3, self._clock.now()
        for attempt in tuple(self._attempts):
            with self._lock:
                late = (
                    not attempt.given_up
                    and not attempt.waiting
                    and not attempt.preparation.done
                    and not attempt.preparation.cancelled
                    and now - attempt.since >= limit
                )
                # With no engine to blame, a second thread would hang where the first one does.
                if not late or (attempt.listed and attempt.inside is None):
                    continue
                attempt.given_up = True
                if attempt.fresh and attempt.source is None:
                    self._listed = attempt.rosters
            self._give_up(attempt, now, limit)

    def _give_up(self, attempt: _Attempt, now: float, limit: float) -> None:
        text = f"has not come back for {limit:g} s"
        name = (self.source if attempt.source is None else attempt.source).name
        if attempt.inside is not None:
            roster, seat, size = attempt.inside
            seat.busy = attempt.ended
            line = roster.failed(seat, BackendError(f"getting it ready {text}"), size, now)
            text = f"{seat.name} {text}"
            self._tell_demoted(line)
        if attempt.source is None and attempt.fresh:
            if attempt.inside is None:
                self._tell(
                    "failed",
                    f"{name} has been loading for {limit:g} s and more; its engines are loaded one"
                    " by one now, and frames pass through until one is ready",
                    once=True,
                )
            preparation, sizes = attempt.preparation, attempt.sizes
            self._begin(_Attempt(preparation, sizes, now, listed=True))
            return
        what = "cannot take over" if attempt.source is not None else "is not warm for these frames"
        if attempt.inside is None:
            text = f"loading it aside {text}"
        self._tell("failed", f"{name} {what}: {text}")
        attempt.preparation.end("failed", BackendError(f"{name} {what}: {text}"))

    def rosters(self, size: Size, *, wait: bool) -> Rosters | None:
        """Return the engines in use; None before they are loaded, which this begins if need be.

        Args:
            size: of the frame that wants them.
            wait: until they are loaded, or cannot be, or have taken longer than an engine may for
                its first frame.
        """
        if self._attempts:
            self.look_for_hang()
        if self._ready is not None:
            return self._ready
        preparation = self._preparation
        if preparation is None or (
            preparation.state in ("failed", "cancelled") and self._clock.now() >= self._again_at
        ):
            preparation = self.prepare((size,))
        limit = self._policy.start_ms / 1e3
        if wait:
            preparation.wait_done(self._clock, preparation.began + limit)
        self.look_for_hang()
        return self._ready

    def take_over(self) -> tuple[Rosters, Rosters | None] | None:
        """Return the engines to be used from now on and those before, if a bundle is ready."""
        if self._successor is None:
            return None
        with self._lock:
            if self._successor is None:
                return None
            (source, rosters), self._successor = self._successor, None
            unused = self._ready
            before, self.source = self.source, source
            self._ready = rosters
            if self._preparation is not None:
                self._preparation.cancel()  # it is of the bundle that is left
            listed, self._listed = self._listed, None
        if listed is not None:
            close_all(listed)
        self._tell("swapped", f"{source.name} has taken over from {before.name}")
        return rosters, unused

    def not_ready(self) -> str:
        """Return why frames cannot be run yet."""
        preparation = self._preparation
        if preparation is None:
            return "nothing is loaded"
        if preparation.error is not None:
            return f"{self.source.name} cannot be run: {one_line(preparation.error)}"
        return f"{self.source.name} is being prepared ({preparation.progress:.0%})"

    def cancel(self) -> None:
        """Let nothing be loaded any more; what is being loaded is freed by the thread that does."""
        with self._lock:
            self._closed = True
            for attempt in self._attempts:
                attempt.preparation.cancel()

    def close(self) -> None:
        """Free what there is, and let what is being loaded be freed."""
        self.cancel()
        with self._lock:
            ready, self._ready = self._ready, None
            successor, self._successor = self._successor, None
            listed, self._listed = self._listed, None
        for rosters in (ready, listed, None if successor is None else successor[1]):
            if rosters is not None:
                close_all(rosters)

    def _open(self, source: Source, *, listed: bool = False) -> Roster:
        policy = self._policy
        seats = source.seats() if listed else source.open()
        return Roster(source, seats, retry_s=policy.retry_s, retry_max_s=policy.retry_max_s)

    def _prepare(self, attempt: _Attempt) -> None:
        preparation = attempt.preparation
        if attempt.before is not None:
            attempt.before.wait_settled()
        attempt.since = self._clock.now()
        attempt.waiting = False
        with self._lock:
            source, rosters = self.source, self._ready
            attempt.fresh = rosters is None
            if rosters is None:
                rosters, self._listed = self._listed, None
                attempt.listed |= rosters is not None
        attempt.rosters = rosters
        fresh = attempt.fresh
        try:
            if rosters is None:
                preparation.step("loading", 0.05)
                rosters = {None: self._open(source, listed=attempt.listed)}
                for name, level in self._levels.items():
                    rosters[name] = self._open(level, listed=attempt.listed)
                attempt.rosters = rosters
                self._welcome_back(attempt, source)
            self._warm(attempt, rosters)
        except BaseException as error:  # an engine's, or ours: the application goes on without
            kept = fresh and attempt.listed and not attempt.given_up and not preparation.cancelled
            if kept:
                with self._lock:
                    self._listed = rosters  # it is known there which of them hangs
            elif fresh and rosters is not None and rosters is not self._listed:
                self._drop(attempt, rosters)
            if attempt.given_up:
                return
            if preparation.cancelled or isinstance(error, _StoppedError):
                preparation.end("cancelled")
                return
            policy = self._policy
            self._wait_s = min(policy.retry_max_s, max(policy.retry_s, 2 * self._wait_s))
            self._again_at = self._clock.now() + self._wait_s
            known = _known(without_frames(error))
            preparation.settle()
            if not isinstance(known, EnginesRestError):  # that they do was told
                self._tell("failed", f"{source.name} cannot be run: {one_line(known)}", once=True)
            preparation.end("failed", known)
            return
        seats = rosters[None].seats
        best = next((seat for seat in seats if not seat.demoted), seats[0])
        listed: Rosters | None = None
        with self._lock:
            given_up = attempt.given_up
            stop = preparation.cancelled or self._closed or given_up
            if fresh and not stop:
                self._ready = rosters
                self._estate.keep(rosters)
                listed, self._listed = self._listed, None
        if stop:
            if fresh:
                self._drop(attempt, rosters)
            if not given_up:
                preparation.end("cancelled")
            return
        if listed is not None:
            close_all(listed)
        preparation.settle()
        if fresh:
            self._tell("ready", f"{source.name} is ready on {best.name}")
        preparation.end("ready")

    def _welcome_back(self, attempt: _Attempt, source: Source) -> None:
        """Go on with engines that were given up while they were loaded, if no others are ready.

        Raises:
            _StoppedError: they are not wanted any more.
        """
        with self._lock:
            missing = self._ready is None and not self._closed
            if attempt.given_up and missing and source is self.source:
                for other in self._attempts:
                    other.given_up |= other.source is None
                attempt.given_up = False
                attempt.since = self._clock.now()
        attempt.check()

    def _drop(self, attempt: _Attempt, rosters: Rosters) -> None:
        """Free what was loaded, unless the thread that goes on with it has it now."""
        with self._lock:
            shared = any(
                other is not attempt and other.rosters is rosters for other in self._attempts
            )
            shared |= rosters is self._listed or rosters is self._ready
        if not shared:
            close_all(rosters)

    def _swap(self, attempt: _Attempt, source: Source) -> None:
        preparation = attempt.preparation
        rosters: Rosters | None = None
        try:
            preparation.step("loading", 0.05)
            # Without the ladder's other bundles: they are of the style that is left.
            rosters = {None: self._open(source)}
            self._warm(attempt, rosters)
        except BaseException as error:  # as above
            if rosters is not None:
                close_all(rosters)
            if preparation.cancelled or isinstance(error, _StoppedError):
                preparation.end("cancelled")
                return
            known = _known(without_frames(error))
            self._tell("failed", f"{source.name} cannot take over: {one_line(known)}")
            preparation.end("failed", known)
            return
        unused: Rosters | None = rosters
        with self._lock:
            stop = preparation.cancelled or self._closed or attempt.given_up
            if not stop:
                unused = None if self._successor is None else self._successor[1]
                self._successor = (source, rosters)
                self._estate.keep(rosters)
                if unused is not None:
                    self._estate.forget(unused)
        if unused is not None:
            close_all(unused)
        preparation.end("cancelled" if stop else "ready")

    def _warm(self, attempt: _Attempt, rosters: Rosters) -> None:
        """Run frames of every size on the best engine of every bundle.

        Engines compile on them, and the first frame after loading is slow everywhere.
        """
        jobs: dict[Roster, list[Size]] = {}
        for size in attempt.sizes:
            for level in self._ladder:
                key = None if level.bundle is None else str(level.bundle)
                roster = rosters.get(key) or rosters[None]
                small = size
                if level.scale < 1:
                    multiple = roster.source.size.multiple
                    small = internal_size(*size, level.scale, multiple)
                found = jobs.setdefault(roster, [])
                if small not in found:
                    found.append(small)
        if attempt.listed:
            for roster in rosters.values():
                jobs.setdefault(roster, [(0, 0)])  # nothing but loading
        number, total = 0, sum(len(sizes) for sizes in jobs.values())
        for roster, sizes in jobs.items():
            if not attempt.fresh and self._warm_beside(attempt, roster, sizes):
                number += len(sizes)
                continue
            for size in sizes:
                attempt.check()
                attempt.preparation.step("warming", 0.4 + 0.6 * number / total)
                self._warm_one(attempt, roster, size)
                number += 1

    def _warm_one(self, attempt: _Attempt, roster: Roster, size: Size) -> None:
        """Run frames of one size on the best engine; where it fails, on the next best one.

        Args:
            attempt: what this belongs to.
            roster: the engines.
            size: of the frames; (0, 0): nothing but loading.
        """
        failure: BaseException | None = None
        while True:
            attempt.check()
            seats = roster.candidates(size, self._clock.now())
            if not attempt.fresh:  # those that failed are tried again beside frames
                seats = [seat for seat in seats if not seat.demoted]
            if not seats:
                if failure is None:
                    raise EnginesRestError(roster.outlook(self._clock.now()))
                raise failure
            seat = seats[0]
            with seat.held():
                attempt.since = self._clock.now()
                attempt.inside = (roster, seat, size)
                seat.warming = True
                try:
                    runner = load_seat(seat)
                    attempt.check()
                    self._run_frames(attempt, runner, roster.source.scale, size)
                    attempt.check()
                except _StoppedError:
                    if attempt.given_up:
                        seat.close()  # it is loaded anew when it is tried again
                    raise
                except BaseException as error:
                    if attempt.given_up:
                        seat.close()
                    attempt.check()
                    if isinstance(error, FrameError):
                        raise  # no other engine would take it either
                    failure = error
                    self._tell_demoted(roster.failed(seat, error, size, self._clock.now()))
                    continue
                finally:
                    seat.warming = False
                    attempt.inside = None
                if size != (0, 0):
                    seat.sizes.add(size)
                if seat.demoted:
                    roster.worked(seat, size)
                return

    def _warm_beside(self, attempt: _Attempt, roster: Roster, sizes: list[Size]) -> bool:
        """Warm a second session of an engine at work, so that frames need not wait for it.

        Returns:
            Whether that was all; not if no engine is at work yet.
        """
        now = self._clock.now()
        seats = [seat for seat in roster.candidates(sizes[0], now) if not seat.demoted]
        if not seats or seats[0].runner is None:
            return False
        seat = seats[0]
        new = [size for size in sizes if size not in seat.known_sizes()]
        if not new:
            return True
        attempt.since = now
        attempt.check()
        runner = open_seat(seat)
        try:
            known = seat.known_sizes()
            for size in (*known, *new):
                attempt.since = self._clock.now()
                attempt.check()
                self._run_frames(attempt, runner, roster.source.scale, size)
            attempt.check()
        except BaseException:
            with contextlib.suppress(Exception):
                runner.close()
            raise
        seat.offer(runner, known | set(new))
        return True

    def _run_frames(self, attempt: _Attempt, runner: Runner, scale: int, size: Size) -> None:
        if size == (0, 0):
            return
        height, width = size
        frame = np.zeros((height, width, 3), np.uint8)
        result = np.empty((height * scale, width * scale, 3), np.uint8)

        def run() -> None:
            for _ in range(_WARM_FRAMES):
                attempt.check()
                runner.run(frame, result)

        at_low_priority(run)

    def _tell_demoted(self, line: str | None) -> None:
        if line is not None:
            self.demotions += 1
            self._tell("demoted", line)


def _known(error: BaseException) -> TopcoatError:
    if isinstance(error, TopcoatError):
        return error
    return BackendError(f"{type(error).__name__}: {one_line(error)}")
