"""From what the application gives to what the worker takes: layouts, frame numbers, motion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.render_pass._frame import RenderFrame, SideInputs
from topcoat.runtime.render_pass._layout import Layout
from topcoat.runtime.render_pass._motion_history import MotionHistory
from topcoat.runtime.render_pass._pixels import PixelPlan
from topcoat.runtime.render_pass._types import Policy
from topcoat.runtime.render_pass._worker import Settings, Slot


class Inputs:
    """The frames of a pass as they come in. Belongs to the thread that presents.

    Args:
        policy: of the pass.
        tell: ``tell(kind, text, key=...)`` tells a line once per key.
    """

    def __init__(self, policy: Policy, tell: Callable[..., None]) -> None:
        self._policy = policy
        self._tell = tell
        self._plan: PixelPlan | None = None
        self._layout: Layout | None = None
        self._side: SideInputs | None = None
        self._motions: MotionHistory | None = None
        self._reset_next = True
        self.load_bytes = 0
        """Copied for each frame that is not read where it lies."""
        self.sequence = -1
        """How many frames came before the present one."""
        self.index = -1
        """The present frame as the application counts."""
        self.cut_at = 0
        """The latest frame that has nothing to do with those before it, by its sequence."""

    @property
    def plan(self) -> PixelPlan | None:
        """Of the present layout and size; None before the first frame."""
        return self._plan

    @property
    def motions(self) -> MotionHistory | None:
        """The motion of the last frames; None if none had any."""
        return self._motions

    def reset(self) -> None:
        """Say that the next frame has nothing to do with the last."""
        self._reset_next = True

    def forget(self) -> None:
        """Free what belongs to the present size."""
        self._motions = None
        self._side = None

    def plan_for(self, frame: RenderFrame) -> PixelPlan | None:
        """Return a new plan if this frame's layout or size is another one; it is not used yet.

        Raises:
            FrameError: the colour is not as its layout says.
        """
        plan = self._plan
        if plan is not None and plan.accepts(frame.color):
            if frame.layout is self._layout or frame.layout == self._layout:
                return None
            if plan.adopt(frame.layout):  # another exposure
                self._layout = frame.layout
                return None
        return PixelPlan.of(frame.layout, frame.color)

    def use(self, plan: PixelPlan) -> None:
        """Take frames of this plan from now on."""
        old, self._plan, self._layout = self._plan, plan, plan.layout
        self._side = SideInputs(
            plan.height, plan.width, bottom_up=plan.layout.origin == "bottom-left"
        )
        self.load_bytes = sum(copy.bytes for copy in plan.load_copies)
        self._reset_next = True
        if old is None or (old.height, old.width) != (plan.height, plan.width):
            self._motions = None

    def begin(self, frame: RenderFrame) -> None:
        """Count a frame, and find out whether it follows the last one."""
        self.count(frame.index, reset=frame.reset)

    def count(self, index: int | None, *, reset: bool = False) -> None:
        """Count a frame by its number; None: one more than the last."""
        self.sequence += 1
        if index is None:
            index = self.index + 1
        if reset:
            self._reset_next = True
        if index <= self.index and self.sequence > 0:
            self._reset_next = True
            self._tell(
                "input",
                f"the frame index went from {self.index} to {index}, wanted a greater one each"
                " time; the history is dropped (pass reset=True where time jumps)",
                key="index",
            )
        self.index = index
        if self._reset_next:
            self._reset_next = False
            self.cut_at = self.sequence

    def load_motion(self, frame: RenderFrame, settings: Settings) -> None:
        """Bring the frame's motion into the pass's form, if anything is going to use it."""
        plan, side = self._plan, self._side
        if frame.motion is None or plan is None or side is None:
            return
        if settings.stabilise == 0 and self._policy.late != "warp" and not self._policy.align:
            return
        if self._motions is None:
            self._motions = MotionHistory(plan.height, plan.width)
        problem = side.load_motion(frame.motion, self._motions.field(self.sequence))
        if problem is None:
            self._motions.keep(self.sequence)
        else:
            self._tell("input", problem, key=problem)

    def fill(
        self, slot: Slot, frame: RenderFrame, settings: Settings, *, before: int, borrow: bool
    ) -> int:
        """Fill a slot with a frame whose motion is loaded; return how many bytes were copied.

        Args:
            slot: of the present size.
            frame: the frame.
            settings: that it keeps.
            before: the frame that the worker runs before it, by its sequence; -1: none.
            borrow: the caller waits until the frame is finished, so that it may be read where it
                lies.
        """
        plan = self._plan
        assert plan is not None
        copied = 0
        if borrow and plan.is_native:
            slot.source = frame.color
        else:
            plan.load(frame.color, slot.own_input)
            slot.source = slot.own_input
            copied += self.load_bytes
        if plan.needs_color:
            if slot.color is None:
                slot.color = np.empty_like(frame.color, order="C")
            np.copyto(slot.color, frame.color)
            copied += slot.color.nbytes
        slot.base = before
        slot.has_motion = slot.has_depth = False
        if settings.stabilise > 0 or self._near_check():
            slot.has_motion = self._load_way(slot)
            slot.has_depth = self._load_depth(frame, slot)
        slot.has_mask = self._load_mask(settings.mask if frame.mask is None else frame.mask, slot)
        # Also if the frame with the cut was overtaken by this one.
        slot.reset = self.cut_at > before
        every = self._policy.check_every
        slot.check = every > 0 and self.sequence % every == 0
        slot.settings = settings
        slot.sequence = self.sequence
        slot.index = self.index
        return copied

    def _near_check(self) -> bool:
        """Whether this frame, or the one after it, has its motion looked at."""
        every = self._policy.check_every
        return every > 0 and self.sequence % every in (0, every - 1)

    def _load_way(self, slot: Slot) -> bool:
        """Write the motion from the present frame to the one that the worker ran before."""
        if self._motions is None or self.cut_at > slot.base:
            return False
        if slot.motion is None:
            slot.motion = np.empty((slot.height, slot.width, 2), np.float32)
        return self._motions.chain(self.sequence, slot.base, slot.motion)

    def _load_depth(self, frame: RenderFrame, slot: Slot) -> bool:
        if frame.depth is None or self._side is None:
            return False
        if slot.depth is None:
            slot.depth = np.empty((slot.height, slot.width), np.float32)
        problem = self._side.load_depth(frame.depth, slot.depth)
        if problem is not None:
            self._tell("input", problem, key=problem)
        return problem is None

    def _load_mask(self, mask: NDArray[np.uint8] | None, slot: Slot) -> bool:
        if mask is None or self._side is None:
            return False
        if slot.mask is None:
            slot.mask = np.empty((slot.height, slot.width), np.uint8)
        problem = self._side.load_mask(mask, slot.mask)
        if problem is not None:
            self._tell("input", problem, key=problem)
        return problem is None
