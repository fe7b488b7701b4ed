"""What the worker does to a frame: engine, stabiliser, strength; and which engine it takes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from topcoat.runtime._errors import BackendError, FrameError, TopcoatError
from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._composite import Compositor
from topcoat.runtime.render_pass._engines import (
    EnginesRestError,
    Roster,
    Rosters,
    Seat,
    load_seat,
    one_line,
    without_frames,
)
from topcoat.runtime.render_pass._guard import ResultGuard
from topcoat.runtime.render_pass._motion_check import check_depth, check_motion
from topcoat.runtime.render_pass._resample import (
    Downscaler,
    Upscaler,
    internal_size,
    replicate,
)
from topcoat.runtime.render_pass._stabiliser import Stabiliser
from topcoat.runtime.render_pass._trials import Trials
from topcoat.runtime.render_pass._types import Level, Policy
from topcoat.runtime.render_pass._worker import Clock, Slot

_SIZES_KEPT = 2
"""Frame sizes whose buffers stay: a window that is resized to and fro."""


@dataclass
class _Reduced:
    """Buffers for one internal scale."""

    down: Downscaler
    up: Upscaler
    source: Frame
    result: Frame
    guard: ResultGuard


@dataclass
class _Size:
    """What is made once per frame size."""

    height: int
    width: int
    scale: int
    guard: ResultGuard
    styled: Frame
    """What the engine, and the stabiliser, write; ``slot.result`` comes after."""
    stabiliser: Stabiliser | None = None
    compositor: Compositor | None = None
    enlarged: Frame | None = None
    """The frame at the size of the result."""
    enlarged_mask: np.ndarray | None = None
    steady: Frame | None = None
    previous: Frame | None = None
    """The last frame, for looking at motion vectors."""
    has_previous: bool = False
    history_of: int = -1
    """The frame that the stabiliser, and ``previous``, saw last."""
    reduced: dict[tuple[float, int], _Reduced] = field(default_factory=dict)
    """By internal scale and the multiple that the network's sizes are of."""


class Pipeline:
    """Everything between a frame and its result. Belongs to one worker thread.

    Args:
        policy: of the pass.
        clock: of the pass.
        trials: where engines that failed are tried again.
        extend: tells the worker how long the next step may take, in s, and in which engine it is.
        abandoned: whether the worker was given up meanwhile.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        trials: Trials,
        extend: Callable[[float, Seat | None], None],
        abandoned: Callable[[], bool],
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._trials = trials
        self._extend = extend
        self._abandoned = abandoned
        self._sizes: OrderedDict[tuple[int, int, int], _Size] = OrderedDict()
        self._used: Roster | None = None
        self.here = False
        """Whether it works on the application's thread, which Ctrl-C interrupts."""
        self._suspected: set[str] = set()
        """What checks of motion and depth have found, without its numbers."""

    @property
    def history_weight(self) -> np.ndarray | None:
        """How much history the stabiliser used, (H, W) uint8; None if it does not run."""
        for size in reversed(list(self._sizes.values())):
            if size.stabiliser is not None:
                return size.stabiliser.history_weight.copy()
        return None

    def work(self, slot: Slot) -> None:
        """Make ``slot.result``, or set ``slot.error``."""
        begin = self._clock.now()
        slot.engine = slot.quality = ""
        slot.resample = slot.infer = slot.stabilise = slot.composite = 0.0
        try:
            self._work(slot)
        except TopcoatError as error:
            without_frames(error)
            slot.error = error
        # Of an engine or a number nobody thought of, and what derives from BaseException alone: a
        # library's panic, or its sys.exit(). What the user presses comes to the application's
        # thread alone, see `here`.
        except BaseException as error:
            if self.here and isinstance(error, KeyboardInterrupt):
                raise
            without_frames(error)
            slot.error = BackendError(f"{type(error).__name__}: {one_line(error)}")
        slot.work = (self._clock.now() - begin) * 1e3

    def _work(self, slot: Slot) -> None:
        size = self._size(slot)
        level = self._policy.ladder[slot.level]
        assert slot.rosters is not None
        roster = _roster(slot.rosters, level)
        if level.bundle is not None and roster is slot.rosters[None]:
            own = replace(level, bundle=None)
            slot.quality = f"{own}; {roster.source.name} has no smaller network for this level"
        if roster is not self._used:
            # Another network's strokes are no history of this one's.
            if size.stabiliser is not None:
                size.stabiliser.reset()
            self._used = roster
        if slot.reset and size.stabiliser is not None:
            size.stabiliser.reset()  # now, for the engine may fail on this frame
        settings = slot.settings
        mask = slot.mask if slot.has_mask else None
        plain = settings.strength == 1.0 and mask is None and settings.blend == "normal"
        steady = settings.stabilise > 0
        styled = slot.result if plain and not steady else size.styled
        self._run(slot, size, level, roster, styled)
        if steady:
            self._go_on()
            begin = self._clock.now()
            out = slot.result if plain else self._steady(size)
            self._stabilise(slot, size, styled, out)
            styled = out
            slot.stabilise = (self._clock.now() - begin) * 1e3
        elif size.stabiliser is not None:
            size.stabiliser.reset()
        if not plain:
            self._go_on()
            begin = self._clock.now()
            if size.compositor is None:
                size.compositor = Compositor(*slot.result.shape[:2])
            size.compositor.compose(
                self._enlarged(slot, size),
                styled,
                slot.result,
                strength=settings.strength,
                mask=self._enlarged_mask(mask, size),
                blend=settings.blend,
            )
            slot.composite = (self._clock.now() - begin) * 1e3
        self._check(slot, size)
        size.history_of = slot.sequence

    def _go_on(self) -> None:
        """Begin a step of the pass's own."""
        self._extend(self._policy.hang_s, None)

    def _size(self, slot: Slot) -> _Size:
        key = (slot.height, slot.width, slot.scale)
        size = self._sizes.get(key)
        if size is None:
            while len(self._sizes) >= _SIZES_KEPT:
                self._sizes.popitem(last=False)
            size = _Size(
                *key,
                guard=ResultGuard(*key),
                styled=np.empty_like(slot.result),
            )
            self._sizes[key] = size
        elif next(reversed(self._sizes)) != key:
            self._sizes.move_to_end(key)
            if size.stabiliser is not None:
                size.stabiliser.reset()
            size.has_previous = False
        return size

    def _run(self, slot: Slot, size: _Size, level: Level, roster: Roster, styled: Frame) -> None:
        """Run the engine, at a smaller size if the level says so."""
        if level.scale == 1.0:
            self._infer(slot, roster, slot.source, styled, size.guard)
            return
        rule = roster.source.size
        reduced = size.reduced.get((level.scale, rule.multiple))
        if reduced is None:
            height, width = internal_size(slot.height, slot.width, level.scale, rule.multiple)
            small = (height * slot.scale, width * slot.scale)
            reduced = _Reduced(
                down=Downscaler(slot.height, slot.width, level.scale, multiple=rule.multiple),
                up=Upscaler(small, (slot.height * slot.scale, slot.width * slot.scale)),
                source=np.empty((height, width, 3), np.uint8),
                result=np.empty((*small, 3), np.uint8),
                guard=ResultGuard(height, width, slot.scale),
            )
            size.reduced[level.scale, rule.multiple] = reduced
        begin = self._clock.now()
        reduced.down.resize(slot.source, reduced.source)
        middle = self._clock.now()
        self._infer(slot, roster, reduced.source, reduced.result, reduced.guard)
        self._go_on()
        after = self._clock.now()
        reduced.up.resize(reduced.result, styled)
        slot.resample = (middle - begin + self._clock.now() - after) * 1e3

    def _infer(
        self, slot: Slot, roster: Roster, source: Frame, result: Frame, guard: ResultGuard
    ) -> None:
        """Run the best engine that works, and let those above it be tried again beside."""
        shape = (source.shape[0], source.shape[1])
        slot.notes += roster.take_news()
        while True:
            now = self._clock.now()
            seat: Seat | None = None
            failed = []
            for one in roster.candidates(shape, now):
                if one.demoted:
                    failed.append(one)
                else:
                    seat = one
            for one in failed:
                self._trials.begin(roster, one, source, urgent=seat is None)
            if seat is None:
                raise EnginesRestError(roster.outlook(now))
            try:
                seat.change_over()
                policy = self._policy
                new = seat.runner is None or shape not in seat.sizes or seat.warming
                self._extend(policy.start_ms / 1e3 if new else policy.hang_s, seat)
                runner = load_seat(seat)
                guard.mark(result)
                begin = self._clock.now()
                made = runner.run(source, result)
                self._stay(seat)
                guard.check(source, result, made)
            except BaseException as error:
                if self.here and isinstance(error, KeyboardInterrupt):
                    raise
                self._stay(seat)
                # Of any class: engines are other people's code.
                if isinstance(error, FrameError):
                    raise  # no other engine would take it either
                line = roster.failed(seat, error, shape, self._clock.now())
                if line is not None:
                    slot.notes.append(("demoted", line))
                if shape not in seat.unfit:
                    raise
                continue
            slot.infer = (self._clock.now() - begin) * 1e3
            slot.engine = seat.name
            line = roster.worked(seat, shape)
            if line is not None:
                slot.notes.append(("recovered", line))
            return

    def _stay(self, seat: Seat) -> None:
        """Leave a thread that was given up, and its engine with it, so that it can be tried anew.

        Raises:
            BackendError: the thread was given up.
        """
        if self._abandoned():
            seat.free()
            raise BackendError(f"{seat.name} came back after it had been given up")

    def _stabilise(self, slot: Slot, size: _Size, styled: Frame, out: Frame) -> None:
        if size.stabiliser is None:
            size.stabiliser = Stabiliser(slot.height, slot.width, scale=slot.scale)
        size.stabiliser.step(
            slot.source,
            styled,
            slot.motion if slot.has_motion and slot.base == size.history_of else None,
            slot.depth if slot.has_depth else None,
            slot.settings.stabilise,
            out,
        )
        if size.stabiliser.cut_detected:
            slot.notes.append(("cut", "the picture has changed altogether; the history is dropped"))

    @staticmethod
    def _steady(size: _Size) -> Frame:
        if size.steady is None:
            size.steady = np.empty_like(size.styled)
        return size.steady

    @staticmethod
    def _enlarged(slot: Slot, size: _Size) -> Frame:
        if slot.scale == 1:
            return slot.source
        if size.enlarged is None:
            size.enlarged = np.empty_like(slot.result)
        replicate(slot.source, slot.scale, size.enlarged)
        return size.enlarged

    @staticmethod
    def _enlarged_mask(mask: np.ndarray | None, size: _Size) -> np.ndarray | None:
        if mask is None or size.scale == 1:
            return mask
        if size.enlarged_mask is None:
            shape = (size.height * size.scale, size.width * size.scale)
            size.enlarged_mask = np.empty(shape, np.uint8)
        for row in range(size.scale):
            for column in range(size.scale):
                np.copyto(size.enlarged_mask[row :: size.scale, column :: size.scale], mask)
        return size.enlarged_mask

    def _check(self, slot: Slot, size: _Size) -> None:
        """Compare motion and depth with the pictures every so often; tell what looks wrong.

        Not before a second check has found the same: one pair of pictures may mislead.
        """
        if not self._policy.check_every:
            return
        fits = slot.has_motion and slot.base == size.history_of and not slot.reset
        previous = size.previous if size.has_previous else None
        if slot.check and fits and slot.motion is not None and previous is not None:
            line = check_motion(slot.source, previous, slot.motion)
            if line is None and slot.has_depth and slot.depth is not None:
                line = check_depth(slot.depth, slot.motion, True)  # nearness is reversed z
            if line is not None:
                kind = line.partition(":")[0]
                if kind in self._suspected:
                    slot.notes.append(("input", line))
                self._suspected.add(kind)
        # Of the frame before a check alone, which is when it is needed.
        size.has_previous = False
        if (slot.sequence + 1) % self._policy.check_every == 0 and slot.has_motion:
            if size.previous is None:
                size.previous = np.empty_like(slot.own_input)
            np.copyto(size.previous, slot.source)
            size.has_previous = True


def _roster(rosters: Rosters, level: Level) -> Roster:
    """Return the engines of a level, or where it has none, those of the pass's bundle."""
    return rosters.get(None if level.bundle is None else str(level.bundle)) or rosters[None]
