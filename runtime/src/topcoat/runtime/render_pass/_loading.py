"""Which bundle a pass runs: loading it, warming it, and changing over to another one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from topcoat.runtime._errors import BackendError, FrameError, PassError, TopcoatError
from topcoat.runtime.render_pass._engines import (
    Roster,
    Source,
    close_all,
    load_seat,
    one_line,
    without_frames,
)
from topcoat.runtime.render_pass._preparation import (
    Preparation,
    lower_priority,
)
from topcoat.runtime.render_pass._resample import internal_size
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._types import Level, Policy
from topcoat.runtime.render_pass._worker import Clock

Rosters = dict[str | None, Roster]
"""Of the ladder's bundles, by their path; None is the bundle of the pass."""
Size = tuple[int, int]

_WARM_FRAMES = 2


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
    ) -> None:
        self.source = source
        """Of what is in use, or going to be."""
        self._levels = dict(levels)
        self._policy = policy
        self._ladder = ladder
        self._clock = clock
        self._tell = tell
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

    def prepare(self, sizes: tuple[Size, ...]) -> Preparation:
        """Load what is in use and warm it for these sizes, on a thread of its own."""
        preparation = Preparation(self.source.name, self._clock.now())
        with self._lock:
            before, self._preparation = self._preparation, preparation
        start(lambda: self._prepare(preparation, before, sizes), "preparation", preparation.cancel)
        return preparation

    def swap(self, source: Source, sizes: tuple[Size, ...]) -> Preparation:
        """Load another bundle aside; :meth:`take_over` changes to it when it is ready."""
        self.check_scale(source, source.name)
        preparation = Preparation(source.name, self._clock.now())
        with self._lock:
            if self._swapping is not None:
                self._swapping.cancel()  # the latest wish counts
            self._swapping = preparation
        start(lambda: self._swap(preparation, source, sizes), "swap", preparation.cancel)
        return preparation

    def rosters(self, size: Size, *, wait: bool) -> Rosters | None:
        """Return the engines in use; None before they are loaded, which this begins if need be.

        Args:
            size: of the frame that wants them.
            wait: until they are loaded, or cannot be, or have taken longer than an engine may for
                its first frame.
        """
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
        if not preparation.done and self._clock.now() - preparation.began >= limit:
            self._tell(
                "failed",
                f"{self.source.name} has been loading for {limit:g} s and more; frames pass through"
                " until it is ready",
                once=True,
            )
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

    def close(self) -> None:
        """Free what no worker has been given, and let what is being loaded be freed."""
        with self._lock:
            self._closed = True
            for preparation in (self._preparation, self._swapping):
                if preparation is not None:
                    preparation.cancel()
            ready, self._ready = self._ready, None
            successor, self._successor = self._successor, None
        if ready is not None:
            close_all(ready)
        if successor is not None:
            close_all(successor[1])

    def _open(self, source: Source) -> Roster:
        policy = self._policy
        return Roster(source, source.open(), retry_s=policy.retry_s, retry_max_s=policy.retry_max_s)

    def _prepare(
        self, preparation: Preparation, before: Preparation | None, sizes: tuple[Size, ...]
    ) -> None:
        if before is not None:
            before.wait_settled()
        with self._lock:
            source, rosters = self.source, self._ready
        fresh = rosters is None
        try:
            if rosters is None:
                preparation.step("loading", 0.05)
                rosters = {None: self._open(source)}
                for name, level in self._levels.items():
                    rosters[name] = self._open(level)
            self._warm(preparation, rosters, sizes)
        except BaseException as error:  # an engine's, or ours: the application goes on without
            if fresh and rosters is not None:
                close_all(rosters)
            if preparation.cancelled:
                preparation.end("cancelled")
                return
            policy = self._policy
            self._wait_s = min(policy.retry_max_s, max(policy.retry_s, 2 * self._wait_s))
            self._again_at = self._clock.now() + self._wait_s
            known = _known(without_frames(error))
            preparation.settle()
            self._tell("failed", f"{source.name} cannot be run: {one_line(known)}", once=True)
            preparation.end("failed", known)
            return
        seats = rosters[None].seats
        best = next((seat for seat in seats if not seat.demoted), seats[0])
        with self._lock:
            stop = preparation.cancelled or self._closed
            if fresh and not stop:
                self._ready = rosters
        if stop:
            if fresh:
                close_all(rosters)
            preparation.end("cancelled")
            return
        preparation.settle()
        if fresh:
            self._tell("ready", f"{source.name} is ready on {best.name}")
        preparation.end("ready")

    def _swap(self, preparation: Preparation, source: Source, sizes: tuple[Size, ...]) -> None:
        rosters: Rosters | None = None
        try:
            preparation.step("loading", 0.05)
            # Without the ladder's other bundles: they are of the style that is left.
            rosters = {None: self._open(source)}
            self._warm(preparation, rosters, sizes)
        except BaseException as error:  # as above
            if rosters is not None:
                close_all(rosters)
            if preparation.cancelled:
                preparation.end("cancelled")
                return
            known = _known(without_frames(error))
            self._tell("failed", f"{source.name} cannot take over: {one_line(known)}")
            preparation.end("failed", known)
            return
        unused: Rosters | None = rosters
        with self._lock:
            stop = preparation.cancelled or self._closed
            if not stop:
                unused = None if self._successor is None else self._successor[1]
                self._successor = (source, rosters)
        if unused is not None:
            close_all(unused)
        preparation.end("cancelled" if stop else "ready")

    def _warm(self, preparation: Preparation, rosters: Rosters, sizes: tuple[Size, ...]) -> None:
        """Run frames of every size on the best engine of every bundle.

        Engines compile on them, and the first frame after loading is slow everywhere.
        """
        jobs: list[tuple[Roster, Size]] = []
        for size in sizes:
            for level in self._ladder:
                key = None if level.bundle is None else str(level.bundle)
                roster = rosters.get(key) or rosters[None]
                small = size
                if level.scale < 1:
                    multiple = roster.source.size.multiple
                    small = internal_size(*size, level.scale, multiple)
                if (roster, small) not in jobs:
                    jobs.append((roster, small))
        lower_priority()
        for number, (roster, (height, width)) in enumerate(jobs):
            if preparation.cancelled:
                return
            preparation.step("warming", 0.4 + 0.6 * number / len(jobs))
            self._warm_one(roster, (height, width))

    def _warm_one(self, roster: Roster, size: Size) -> None:
        """Run frames of one size on the best engine; where it fails, on the next best one."""
        height, width = size
        scale = roster.source.scale
        frame = np.zeros((height, width, 3), np.uint8)
        result = np.empty((height * scale, width * scale, 3), np.uint8)
        failure: BaseException | None = None
        while seats := roster.candidates(size, self._clock.now()):
            seat = seats[0]
            seat.warming = True
            try:
                runner = load_seat(seat)
                for _ in range(_WARM_FRAMES):
                    runner.run(frame, result)
            except BaseException as error:
                if isinstance(error, FrameError):
                    raise  # no other engine would take it either
                failure = error
                line = roster.failed(seat, error, size, self._clock.now())
                if size not in seat.unfit:
                    seat.close()
                if line is not None:
                    self.demotions += 1
                    self._tell("demoted", line)
                without_frames(error)
                continue
            finally:
                seat.warming = False
            seat.sizes.add(size)
            return
        raise BackendError(roster.outlook(self._clock.now())) if failure is None else failure


def _known(error: BaseException) -> TopcoatError:
    if isinstance(error, TopcoatError):
        return error
    return BackendError(f"{type(error).__name__}: {one_line(error)}")
