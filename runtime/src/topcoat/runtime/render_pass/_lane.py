"""The way of frames through the worker and back: slots, what is finished, what hangs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from topcoat.runtime._errors import BackendError
from topcoat.runtime.render_pass._engines import EnginesRestError, Rosters, close_all
from topcoat.runtime.render_pass._estate import Estate
from topcoat.runtime.render_pass._pipeline import Pipeline
from topcoat.runtime.render_pass._pixels import PixelPlan
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._trials import Trials
from topcoat.runtime.render_pass._types import Mode, Policy
from topcoat.runtime.render_pass._worker import Clock, Left, Slot, Worker

_LOST = -1
"""The generation of a slot into which a thread that was given up may still write."""
_CUTS_TOLD = 3
"""A strobe makes one with every flash."""


_CLOSE_S = 2.0
"""Closing waits for a frame under way so long at most, where frames may take however long."""


class Lane:
    """One worker and the slots that travel to it. Belongs to the thread that presents.

    Args:
        mode: of the pass.
        scale: of the pass.
        policy: of the pass.
        clock: of the pass.
        tell: ``tell(kind, text, key=...)``.
        observe: called with every slot of the present size and engines that was run without an
            error.
        estate: is told which thread and engines there are.
    """

    def __init__(
        self,
        mode: Mode,
        scale: int,
        policy: Policy,
        clock: Clock,
        tell: Callable[..., None],
        observe: Callable[[Slot], None],
        estate: Estate,
    ) -> None:
        self._mode = mode
        self._scale = scale
        self._policy = policy
        self._clock = clock
        self._tell = tell
        self._observe = observe
        self._estate = estate
        self._trials = Trials(policy, clock)
        self._rosters: Rosters | None = None
        """Those that frames are given to."""
        self._left: list[Rosters] = []
        """Those before, which frames on their way may still need."""
        self._last_given = -1
        self._cuts = 0
        self._worker: Worker | None = None
        self._pipeline: Pipeline | None = None
        self._given_up: list[Worker] = []
        self._free: list[Slot] = []
        self._generation = 0
        self.failure: Exception | None = None
        """Why the latest frame that came back has no result; whoever has read it clears it."""
        self.failures = 0
        """Frames on which an engine failed; not those for which none was left."""
        self.demotions = 0
        self.dropped = 0
        """Frames that were overtaken: not run, or not shown."""

    @property
    def pipeline(self) -> Pipeline | None:
        """What the worker does; None before the first frame."""
        return self._pipeline

    @property
    def busy(self) -> bool:
        """Whether a frame waits for the worker, or is being run."""
        return self._worker is not None and self._worker.busy

    @property
    def before(self) -> int:
        """The frame that is run before the next one, by its sequence; -1: none."""
        if self._worker is None:
            return -1
        return self._last_given if self._mode == "file" else self._worker.last_taken

    @property
    def hanging(self) -> int:
        """How many threads were given up and have not come back."""
        self._given_up = [one for one in self._given_up if not one.ended.is_set()]
        return len(self._given_up)

    @property
    def trying(self) -> int:
        """How many threads try an engine again that failed."""
        return self._trials.running

    def start(
        self, rosters: Rosters, queued: tuple[Slot, ...] = (), done: tuple[Slot, ...] = ()
    ) -> None:
        """Start the worker, if there is none; ``queued`` and ``done`` are of the one before."""
        if self._worker is not None:
            return
        self._rosters = rosters
        self._last_given = -1 if not queued else queued[-1].sequence
        # The pipeline asks its worker, which is made of it.
        pipeline = Pipeline(
            self._policy,
            self._clock,
            self._trials,
            extend=lambda limit, seat: worker.extend(limit, seat),
            abandoned=lambda: worker.abandoned,
        )
        worker = Worker(pipeline.work, self._clock, self._policy.hang_s, queued=queued, done=done)
        self._pipeline, self._worker = pipeline, worker
        self._estate.worker = worker
        worker.start()

    def change_to(self, rosters: Rosters, unused: Rosters | None) -> None:
        """Let frames be run by other engines from now on.

        Args:
            rosters: those.
            unused: those before, which are freed when no frame on its way needs them any more.
        """
        if unused is not None:
            self._left.append(unused)
        if self._worker is not None:
            self._rosters = rosters
        self.free_unused()

    def free_unused(self) -> None:
        """Free engines that were changed for others and that no frame needs any more."""
        for rosters in self._left.copy():
            if self._worker is None or not self._worker.needs(rosters):
                self._left = [one for one in self._left if one is not rosters]
                self._estate.forget(rosters)
                _close_aside(rosters)

    def slot(self, plan: PixelPlan) -> Slot:
        """Return a slot to be filled: the one that waits (not in ``file`` mode) or a free one."""
        assert self._worker is not None
        waiting = self._worker.take_back() if self._mode != "file" else None
        if waiting is not None:
            self.dropped += 1
            return waiting
        if self._free:
            return self._free.pop()
        height, width, scale = plan.height, plan.width, self._scale
        return Slot(
            height,
            width,
            scale,
            own_input=np.empty((height, width, 3), np.uint8),
            result=np.empty((height * scale, width * scale, 3), np.uint8),
            generation=self._generation,
        )

    def give(self, slot: Slot, began: float, *, here: bool = False) -> None:
        """Queue a slot that was filled since ``began``, or run it on this thread if it is idle."""
        assert self._worker is not None
        slot.error = None
        slot.finished = False
        slot.rosters = self._rosters
        self._last_given = slot.sequence
        slot.submitted = self._clock.now()
        slot.load = (slot.submitted - began) * 1e3
        if here and self._pipeline is not None:
            self._worker.run_here(slot, self._pipeline)
        else:
            self._worker.put(slot)
        if self._left:
            self.free_unused()

    def release(self, slot: Slot) -> None:
        """Take a slot back that is not shown any more."""
        if slot.generation == self._generation:
            self._free.append(slot)

    def drop_slots(self) -> None:
        """Forget every slot; those that are under way are thrown away when they come back."""
        self._generation += 1
        self._free = []
        if self._worker is not None:
            while self._worker.take_back() is not None:
                self.dropped += 1

    def take_finished(self) -> Slot | None:
        """Return the newest result for the present size, if a new one has come.

        In ``file`` mode None: whoever waits for a slot looks at ``slot.finished``.
        """
        newest = None
        while self._worker is not None and (slot := self._worker.take_done()) is not None:
            current = slot.rosters is self._rosters
            slot.rosters = None
            self._tell_notes(slot)
            slot.finished = True
            failed = slot.error is not None and not isinstance(slot.error, EnginesRestError)
            self.failures += failed
            # What happened to a frame of another size is no news of those of this one.
            if slot.generation != self._generation:
                continue
            self.failure = slot.error
            if slot.error is None and current:
                self._observe(slot)
            if self._mode == "file":
                continue
            if slot.error is not None:
                self._free.append(slot)
                continue
            if newest is not None:
                self._free.append(newest)
                self.dropped += 1
            newest = slot
        return newest

    def wait(self, timeout: float | None) -> None:
        """Wait for a finished frame, for ``timeout`` s at most, or until the worker hangs."""
        if self._worker is not None:
            self._worker.wait(timeout)

    def look_for_hang(self, in_use: Rosters) -> None:
        """Give the worker up if its frame takes too long, and start another one.

        Args:
            in_use: the engines that the other one gets.
        """
        worker = self._worker
        left = None if worker is None else worker.abandon(if_overdue=True)
        if worker is None or left is None:
            return
        self._lose(left, worker)
        self._worker = self._pipeline = None
        self.start(in_use, left.queued, left.done)
        self.free_unused()

    def _lose(self, left: Left, worker: Worker) -> None:
        """Account for a frame in which a thread hangs, and for the engine that it hangs in."""
        slot, seat = left.slot, left.seat
        assert slot is not None
        self._given_up = [one for one in self._given_up if not one.ended.is_set()]
        self._given_up.append(worker)
        self.failures += 1
        text = f"it has not come back for {left.limit:g} s and is given up"
        if seat is not None:
            seat.busy = worker.ended
            for roster in () if slot.rosters is None else slot.rosters.values():
                if seat in roster.seats:
                    size = (slot.height, slot.width)
                    line = roster.failed(seat, BackendError(text), size, self._clock.now())
                    if line is not None:
                        self.demotions += 1
                        self._tell("demoted", line)
            text = f"{seat.name}: {text}"
        else:
            self._tell("failed", f"the thread of the pass hangs: {text}")
        slot.error = BackendError(text)
        slot.finished = True
        if slot.generation == self._generation:
            self.failure = slot.error
        slot.generation = _LOST

    def _tell_notes(self, slot: Slot) -> None:
        for kind, line in slot.notes:
            text, key = line, line.partition(":")[0] if kind == "input" else None
            self.demotions += kind == "demoted"
            if kind == "cut":
                self._cuts += 1
                if self._cuts > _CUTS_TOLD:
                    continue
                if self._cuts == _CUTS_TOLD:
                    text = f"{line}; further cuts are not told"
            self._tell(kind, text, key=key)
        slot.notes.clear()

    def close(self) -> None:
        """Stop the worker and free the engines that do not hang."""
        worker = self._worker
        if worker is not None and not worker.stop(min(self._policy.hang_s, _CLOSE_S)):
            left = worker.abandon()
            self._given_up.append(worker)
            if left is not None and left.seat is not None:
                left.seat.busy = worker.ended
        self._worker = self._pipeline = None
        for rosters in (*self._left, *([] if self._rosters is None else [self._rosters])):
            close_all(rosters)
        self._left, self._rosters = [], None
        self.drop_slots()


def _close_aside(rosters: Rosters) -> None:
    """Free engines on a thread of their own: it may take long, and the caller presents."""
    start(lambda: close_all(rosters), "closing")
