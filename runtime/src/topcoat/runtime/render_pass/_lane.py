"""The way of frames through the worker and back: slots, what is finished, what hangs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from topcoat.runtime._errors import BackendError
from topcoat.runtime.render_pass._engines import EnginesRestError, Seat, close_all
from topcoat.runtime.render_pass._loading import Rosters
from topcoat.runtime.render_pass._pipeline import Pipeline
from topcoat.runtime.render_pass._pixels import PixelPlan
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._types import Mode, Policy
from topcoat.runtime.render_pass._worker import Clock, Slot, Worker

_LOST = -1
"""The generation of a slot into which a thread that was given up may still write."""


class Lane:
    """One worker and the slots that travel to it. Belongs to the thread that presents.

    Args:
        mode: of the pass.
        scale: of the pass.
        policy: of the pass.
        clock: of the pass.
        tell: ``tell(kind, text, key=...)``.
        observe: called with every slot that was run without an error.
    """

    def __init__(
        self,
        mode: Mode,
        scale: int,
        policy: Policy,
        clock: Clock,
        tell: Callable[..., None],
        observe: Callable[[Slot], None],
    ) -> None:
        self._mode = mode
        self._scale = scale
        self._policy = policy
        self._clock = clock
        self._tell = tell
        self._observe = observe
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
        return -1 if self._worker is None else self._worker.last_taken

    @property
    def hanging(self) -> int:
        """How many threads were given up and have not come back."""
        self._given_up = [one for one in self._given_up if not one.ended.is_set()]
        return len(self._given_up)

    def start(
        self, rosters: Rosters, queued: tuple[Slot, ...] = (), done: tuple[Slot, ...] = ()
    ) -> None:
        """Start the worker, if there is none; ``queued`` and ``done`` are of the one before."""
        if self._worker is not None:
            return
        # The pipeline asks its worker, which is made of it.
        pipeline = Pipeline(
            rosters,
            self._policy,
            self._clock,
            extend=lambda limit: worker.extend(limit),
            abandoned=lambda: worker.abandoned,
        )
        worker = Worker(
            pipeline.work, self._clock, self._policy.hang_ms / 1e3, queued=queued, done=done
        )
        self._pipeline, self._worker = pipeline, worker
        worker.start()

    def change_to(self, rosters: Rosters, unused: Rosters | None) -> None:
        """Let the next frame be run by other engines; ``unused`` are freed before it."""
        if self._pipeline is not None:
            self._pipeline.change_to(rosters)
        elif unused is not None:
            _close_aside(unused)

    def free_unused(self) -> None:
        """Free engines that were changed for others, if no frame of the host is being run."""
        if self._pipeline is not None and not self.busy:
            unused = self._pipeline.take_over()
            if unused is not None:
                _close_aside(unused)

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

    def give(self, slot: Slot, began: float) -> None:
        """Queue a slot that was filled since ``began``."""
        assert self._worker is not None
        slot.error = None
        slot.finished = False
        slot.submitted = self._clock.now()
        slot.load = (slot.submitted - began) * 1e3
        self._worker.put(slot)

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
            for kind, line in slot.notes:
                self.demotions += kind == "demoted"
                self._tell(kind, line, key=line.partition(":")[0] if kind == "input" else None)
            slot.notes.clear()
            slot.finished = True
            self.failure = slot.error
            if slot.error is not None:
                self.failures += not isinstance(slot.error, EnginesRestError)
            else:
                self._observe(slot)
            if self._mode == "file" or slot.generation != self._generation:
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
        worker, pipeline = self._worker, self._pipeline
        if worker is None or pipeline is None or not worker.overdue():
            return
        seat = pipeline.seat
        slot, queued, done = worker.abandon()
        if slot is not None:  # else it has come back at the last moment
            self._lose(slot, seat, worker, pipeline)
        if pipeline.rosters is not in_use:
            close_all(pipeline.rosters)
        self._worker = self._pipeline = None
        self.start(in_use, queued, done)

    def _lose(self, slot: Slot, seat: Seat | None, worker: Worker, pipeline: Pipeline) -> None:
        """Account for a frame in which a thread hangs, and for the engine that it hangs in."""
        self._given_up.append(worker)
        self.failures += 1
        text = f"it has not come back for {worker.limit:g} s and is given up"
        if seat is not None:
            seat.busy = worker.ended
            line = pipeline.demote(seat, BackendError(text), (slot.height, slot.width))
            if line is not None:
                self.demotions += 1
                self._tell("demoted", line)
            text = f"{seat.name}: {text}"
        else:
            self._tell("failed", f"the thread of the pass hangs: {text}")
        self.failure = BackendError(text)
        slot.error = self.failure
        slot.finished = True
        slot.generation = _LOST

    def close(self) -> None:
        """Stop the worker and free the engines that do not hang."""
        worker, pipeline = self._worker, self._pipeline
        if worker is not None and pipeline is not None:
            if not worker.stop(self._policy.hang_ms / 1e3):
                worker.abandon()
                self._given_up.append(worker)
                if pipeline.seat is not None:
                    pipeline.seat.busy = worker.ended
            pipeline.close()
        self._worker = self._pipeline = None
        self.drop_slots()


def _close_aside(rosters: Rosters) -> None:
    """Free engines on a thread of their own: it may take long, and the caller presents."""
    start(lambda: close_all(rosters), "closing")
