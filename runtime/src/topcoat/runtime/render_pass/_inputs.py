"""From what the application gives to what the worker takes: layouts, frame numbers, motion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import FrameError
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
        keeps_color: every frame's own pixels are kept, to be passed through later.
        tell: ``tell(kind, text, once=True)`` tells a line once.
    """

    def __init__(
        self, policy: Policy, tell: Callable[..., None], *, keeps_color: bool = False
    ) -> None:
        self._policy = policy
        self._keeps_color = keeps_color
        self._tell = tell
        self._plan: PixelPlan | None = None
        self._spare: PixelPlan | None = None
        self._layout: Layout | None = None
        self._side: SideInputs | None = None
        self._motions: MotionHistory | None = None
        self._reset_next = True
        self._follows = False
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
        spare = self._spare
        # Two arrays of different pitch in turns, as cameras and swap chains give them.
        if spare is not None and spare.accepts(frame.color) and spare.layout == frame.layout:
            return spare
        if not isinstance(frame.layout, Layout):
            raise FrameError(
                f"layout is {frame.layout!r}, wanted Layout(...); pass"
                ' Layout(format="rgba8") or the like'
            )
        return PixelPlan.of(frame.layout, frame.color)

    def is_alike(self, plan: PixelPlan) -> bool:
        """Whether results made so far can be delivered by this plan, too."""
        old = self._plan
        if old is None or (old.height, old.width) != (plan.height, plan.width):
            return False
        return plan.layout == old.layout or not (
            plan.needs_color or old.needs_color or self._keeps_color
        )

    def use(self, plan: PixelPlan) -> None:
        """Take frames of this plan from now on."""
        alike = self.is_alike(plan)
        if alike and plan.layout == self._layout:
            self._spare, self._plan = self._plan, plan
            return
        self._plan, self._layout, self._spare = plan, plan.layout, None
        self._side = SideInputs(
            plan.height, plan.width, bottom_up=plan.layout.origin == "bottom-left"
        )
        self.load_bytes = sum(copy.bytes for copy in plan.load_copies)
        self._motions = None  # its rows may be the other way round
        if not alike:
            self._reset_next = True

    @staticmethod
    def check_index(index: object) -> None:
        """Refuse what is no number of a frame.

        Raises:
            FrameError: it is none.
        """
        if index is not None and (isinstance(index, bool) or not hasattr(index, "__index__")):
            raise FrameError(
                f"the frame's index is {index!r}, wanted a whole number, one more than the last, or"
                " None"
            )

    def begin(self, frame: RenderFrame) -> None:
        """Count a frame, and find out whether it follows the last one."""
        self.count(frame.index, reset=bool(frame.reset))

    def count(self, index: int | None, *, reset: bool = False) -> None:
        """Count a frame by its number; None: one more than the last."""
        if index is None:
            index = self.index + 1
        self.sequence += 1
        if reset:
            self._reset_next = True
        if index <= self.index and self.sequence > 0:
            self._reset_next = True
            self._tell(
                "input",
                f"the frame index went from {self.index} to {index}, wanted a greater one each"
                " time; the history is dropped (pass reset=True where time jumps)",
                once=True,
            )
        self._follows = index == self.index + 1
        if index > self.index + 1 and self.sequence > 0 and not self._reset_next:
            self._tell(
                "input",
                f"the frame index went from {self.index} to {index}, wanted one more each time;"
                " motion vectors of such a frame are left out, for they lead to one that was not"
                " presented",
                once=True,
            )
        self.index = index
        if self._reset_next:
            self._reset_next = False
            self.cut_at = self.sequence

    def load_motion(self, frame: RenderFrame, settings: Settings) -> None:
        """Keep the frame's motion, if anything may use it."""
        plan, side = self._plan, self._side
        if frame.motion is None or plan is None or side is None or not self._follows:
            return
        if settings.stabilise == 0 and self._policy.late != "warp" and not self._policy.align:
            return
        if self._motions is None:
            self._motions = MotionHistory(plan.height, plan.width, side)
        problem = self._motions.keep(self.sequence, frame.motion)
        if problem is not None:
            self._tell("input", problem, once=True)

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
            slot.loaded = False
        else:
            plan.load(frame.color, slot.own_input)
            slot.source = slot.own_input
            slot.loaded = True
            copied += self.load_bytes
        if plan.needs_color or (self._keeps_color and not borrow):
            if slot.color is None or slot.color.shape != frame.color.shape:
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
        slot.exposure = plan.layout.exposure
        slot.settings = settings
        slot.sequence = self.sequence
        slot.index = self.index
        return copied

    def skipped(self, frame: RenderFrame, scale: int, reason: str) -> Slot:
        """Return a slot of a frame that is passed through in its turn."""
        nothing = np.empty((0, 0, 3), np.uint8)
        plan = self._plan
        assert plan is not None
        slot = Slot(plan.height, plan.width, scale, own_input=nothing, result=nothing)
        slot.generation = -1  # it is not used again
        slot.color = frame.color.copy()
        slot.sequence, slot.index = self.sequence, self.index
        slot.skipped, slot.finished = reason, True
        return slot

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
            self._tell("input", problem, once=True)
        return problem is None

    def _load_mask(self, mask: NDArray[np.uint8] | None, slot: Slot) -> bool:
        if mask is None or self._side is None:
            return False
        if slot.mask is None:
            slot.mask = np.empty((slot.height, slot.width), np.uint8)
        problem = self._side.load_mask(mask, slot.mask)
        if problem is not None:
            self._tell("input", problem, once=True)
        return problem is None
