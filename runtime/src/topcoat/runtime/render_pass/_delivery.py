"""Which picture the application gets for a frame, and in which form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.render_pass._engines import failed_because
from topcoat.runtime.render_pass._frame import RenderFrame
from topcoat.runtime.render_pass._inputs import Inputs
from topcoat.runtime.render_pass._layout import Layout
from topcoat.runtime.render_pass._pixels import PixelPlan
from topcoat.runtime.render_pass._types import Policy, Result, Status, Timings
from topcoat.runtime.render_pass._warp import Warper
from topcoat.runtime.render_pass._worker import Clock, Slot


@dataclass(slots=True)
class Call:
    """One call of ``present`` or ``collect``."""

    began: float
    out: NDArray[Any] | None
    load: float = 0.0
    wait: float = 0.0
    copied: int = 0


class Delivery:
    """What is shown, and how it gets into the application's layout.

    Args:
        scale: of the pass.
        policy: of the pass.
        clock: of the pass.
        inputs: of the pass.
        budget_ms: of the pass; a result is not moved where that would take a third of it.
        release: takes back a slot that is not shown any more.
    """

    def __init__(
        self,
        scale: int,
        policy: Policy,
        clock: Clock,
        inputs: Inputs,
        budget_ms: float | None,
        release: Callable[[Slot], None],
    ) -> None:
        self._scale = scale
        self._policy = policy
        self._clock = clock
        self._inputs = inputs
        self._budget_ms = budget_ms
        self._release = release
        self._shown: Slot | None = None
        self._before: Slot | None = None
        self._layout: Layout | None = None
        self._outs: list[NDArray[Any]] = []
        self._warper: Warper | None = None
        self._way: NDArray[np.float32] | None = None
        self._warped: list[NDArray[np.uint8]] = []
        self._move_ms = 0.0
        """What moving a result takes, lately."""
        self._frame_is_result = False
        self.store_bytes = 0
        """Copied for each result that is not handed out where it lies."""

    @property
    def shown(self) -> Slot | None:
        """The slot whose result was shown last, or is to be."""
        return self._shown

    def use(self, plan: PixelPlan, *, keep: bool) -> None:
        """Deliver in this plan's layout from now on.

        Args:
            plan: of the layout and size.
            keep: what is shown can be delivered by it, too.
        """
        if not keep:
            self.forget()
        elif plan.layout != self._layout:
            self._outs = []
        self._layout = plan.layout
        self.store_bytes = sum(copy.bytes for copy in plan.store_copies(self._scale))
        # An extent is cut out, and alpha that the layout drops is opaque in a result.
        self._frame_is_result = (
            self._scale == 1
            and plan.layout.extent is None
            and (plan.needs_color or not plan.layout.has_alpha)
        )

    def forget(self) -> None:
        """Free what belongs to a size or layout."""
        self._shown = self._before = None
        self._outs = []
        self._warper = self._way = None
        self._warped = []
        self._move_ms = 0.0

    def hide(self) -> None:
        """Show no result again that was shown so far."""
        for slot in (self._shown, self._before):
            if slot is not None:
                self._release(slot)
        self._shown = self._before = None

    def show(self, slot: Slot) -> None:
        """Make a finished frame the one to be shown; the one before it holds for one more call."""
        if self._before is not None:
            self._release(self._before)
        self._before, self._shown = self._shown, slot

    def best(
        self, frame: RenderFrame, plan: PixelPlan, call: Call, *, new: bool, reason: str
    ) -> Result:
        """Return the best picture that there is for a frame.

        Args:
            frame: the present one.
            plan: of its layout.
            call: what has happened in it.
            new: what is to be shown has not been shown before.
            reason: why there is nothing new, if so.
        """
        shown, policy = self._shown, self._policy
        if shown is None:
            return self.passed_through(frame, plan, call, reason)
        age = self._inputs.sequence - shown.sequence
        if age > policy.max_age:
            if new:
                reason = f"the newest result is {age} frames old, and max_age {policy.max_age}"
            return self.passed_through(frame, plan, call, reason)
        # After a cut an older result shows what is not there any more.
        if not new and (
            policy.late in ("passthrough", "wait") or self._inputs.cut_at > shown.sequence
        ):
            return self.passed_through(frame, plan, call, reason)
        start = self._clock.now()
        picture, color = shown.result, frame.color if shown.color is None else shown.color
        moved = None
        if age and (policy.align or (not new and policy.late == "warp")):
            moved = self._move(shown, call)
        if moved is not None:
            # What was moved lies where the present frame has it, and so does that frame's alpha.
            picture, color = moved, frame.color
        if new:
            status, reason = self._quality(shown)
            if moved is not None:
                reason = reason or "moved to this frame by its motion vectors"
        else:
            status = Status.REUSED if moved is None else Status.WARPED
        image = self._store(picture, shown, color, plan, call)
        timings = self._timings(call, start, shown if new else None)
        return Result(image, status, age, shown.index, shown.engine, reason, timings, shown.level)

    def own(self, slot: Slot, frame: RenderFrame | None, plan: PixelPlan, call: Call) -> Result:
        """Return a frame's own result, or the frame itself if its engine failed.

        Args:
            slot: finished, of ``file`` mode.
            frame: the frame, if the caller still has it.
            plan: of its layout.
            call: what has happened in it.
        """
        start = self._clock.now()
        age = self._inputs.sequence - slot.sequence
        if slot.error is None and not slot.skipped:
            color = slot.color if frame is None else frame.color
            image = self._store(slot.result, slot, color, plan, call)
            status, reason = self._quality(slot)
            engine = slot.engine
        else:
            reason = slot.skipped if slot.error is None else failed_because(slot.error)
            if frame is not None:
                self._release(slot)
                return self.passed_through(frame, plan, call, reason)
            image = self._out(plan) if call.out is None else call.out
            assert slot.color is not None  # kept for this
            plan.copy(slot.color, image, self._scale)
            status, engine = Status.PASSTHROUGH, ""
        self.show(slot)
        timings = self._timings(call, start, slot)
        return Result(image, status, age, slot.index, engine, reason, timings, slot.level)

    def newest(self, plan: PixelPlan, call: Call) -> Result:
        """Return the result that is to be shown, for an application that presents by itself."""
        shown = self._shown
        assert shown is not None
        start = self._clock.now()
        age = self._inputs.sequence - shown.sequence
        image = self._store(shown.result, shown, shown.color, plan, call)
        status, reason = self._quality(shown)
        timings = self._timings(call, start, shown)
        return Result(image, status, age, shown.index, shown.engine, reason, timings, shown.level)

    def _quality(self, slot: Slot) -> tuple[Status, str]:
        """Return the status of a new result, and why it is no better."""
        if slot.level:
            return Status.DEGRADED, slot.quality or str(self._policy.ladder[slot.level])
        return Status.FRESH, ""

    def passed_through(
        self, frame: RenderFrame, plan: PixelPlan, call: Call, reason: str
    ) -> Result:
        """Return the frame itself, enlarged if the pass enlarges."""
        start = self._clock.now()
        if call.out is None and self._frame_is_result:
            image = frame.color
        else:
            image = self._out(plan) if call.out is None else call.out
            if image is not frame.color or not self._frame_is_result:
                plan.copy(frame.color, image, self._scale)
                call.copied += self.store_bytes
        timings = self._timings(call, start, None)
        return Result(image, Status.PASSTHROUGH, 0, self._inputs.index, "", reason, timings)

    def _timings(self, call: Call, start: float, slot: Slot | None) -> Timings:
        end = self._clock.now()
        call_times = (call.load, call.wait, (end - start) * 1e3, (end - call.began) * 1e3)
        if slot is None:
            return Timings(*call_times)
        return Timings(
            *call_times,
            slot.queue,
            slot.resample,
            slot.infer,
            slot.stabilise,
            slot.composite,
            slot.work,
        )

    def _move(self, shown: Slot, call: Call) -> NDArray[np.uint8] | None:
        """Return a result moved to where things are in the present frame.

        None if that is unknown, or would take so long that the call came too late itself.
        """
        if self._budget_ms is not None:
            spent = (self._clock.now() - call.began) * 1e3
            if spent + self._move_ms > self._budget_ms / 3:
                self._move_ms *= 0.98  # a busy moment is no verdict for ever
                return None
        begin = self._clock.now()
        moved = self._moved(shown)
        if moved is not None:
            took = (self._clock.now() - begin) * 1e3
            self._move_ms = took if not self._move_ms else 0.75 * self._move_ms + 0.25 * took
        return moved

    def _moved(self, shown: Slot) -> NDArray[np.uint8] | None:
        motions, sequence = self._inputs.motions, self._inputs.sequence
        if motions is None or self._scale != 1 or self._inputs.cut_at > shown.sequence:
            return None
        if self._warper is None or self._way is None:
            self._warper = Warper(shown.height, shown.width)
            self._way = np.empty((shown.height, shown.width, 2), np.float32)
            self._warped = [np.empty_like(shown.result) for _ in range(2)]
        way = motions.latest(sequence)
        if way is None or not motions.reaches(sequence, shown.sequence):
            return None
        age = sequence - shown.sequence
        if age > 1:
            # As if everything had gone on evenly: following each frame's motion would take twice
            # the time on the thread that is late already.
            way = np.multiply(way, np.float32(age), out=self._way)
        self._warped.reverse()
        self._warper.warp(shown.result, way, self._warped[0], nearest=True)
        return self._warped[0]

    def _store(
        self,
        picture: NDArray[np.uint8],
        slot: Slot,
        color: NDArray[Any] | None,
        plan: PixelPlan,
        call: Call,
    ) -> NDArray[Any]:
        """Bring a result into the application's layout."""
        out = call.out
        if out is None:
            if plan.is_native:
                # It may be shown again, so nobody draws into it.
                view = picture.view()
                view.flags.writeable = False
                return view
            out = self._out(plan)
        present = plan.layout
        if slot.exposure != present.exposure:
            # Light is what it was in the result's own frame.
            plan.adopt(dataclasses.replace(present, exposure=slot.exposure))
        plan.store(picture, color, out)
        if slot.exposure != present.exposure:
            plan.adopt(present)
        call.copied += self.store_bytes
        return out

    def _out(self, plan: PixelPlan) -> NDArray[Any]:
        """Return memory for a picture, in turns, so that the last one still holds."""
        if not self._outs:
            self._outs = [plan.new_out(self._scale) for _ in range(2)]
        self._outs.reverse()
        return self._outs[0]
