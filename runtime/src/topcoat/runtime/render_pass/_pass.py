"""A network as the last pass of a renderer: a picture for every call, and what it is."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import PassClosedError, PassError, PassThreadError
from topcoat.runtime.backends import default_threads
from topcoat.runtime.render_pass._composite import Blend
from topcoat.runtime.render_pass._debug import debug_view
from topcoat.runtime.render_pass._delivery import Call, Delivery
from topcoat.runtime.render_pass._engines import (
    BundleSource,
    EnginesRestError,
    Rosters,
    Source,
    engine_size,
    failed_because,
)
from topcoat.runtime.render_pass._estate import Estate
from topcoat.runtime.render_pass._explain import Facts, explain
from topcoat.runtime.render_pass._frame import RenderFrame
from topcoat.runtime.render_pass._governor import LadderGovernor
from topcoat.runtime.render_pass._inputs import Inputs
from topcoat.runtime.render_pass._lane import Lane
from topcoat.runtime.render_pass._loading import Loader, check_sizes
from topcoat.runtime.render_pass._pixels import Copy, PixelPlan
from topcoat.runtime.render_pass._preparation import Preparation
from topcoat.runtime.render_pass._settings import changed
from topcoat.runtime.render_pass._stats import FrameLog, Stats
from topcoat.runtime.render_pass._telling import Teller
from topcoat.runtime.render_pass._types import (
    MODES,
    Event,
    Mode,
    Policy,
    Requirements,
    Result,
    is_number,
)
from topcoat.runtime.render_pass._worker import Clock, MonotonicClock, Settings, Slot

if TYPE_CHECKING:
    from topcoat.runtime.backends._cuda import Driver
    from topcoat.runtime.render_pass._device_frames import DeviceFrames

BLENDS = ("normal", "luminance", "colour")

_SLOTS = 5
"""One is run, one waits, one is finished, two are shown (the last call's picture still holds)."""

_log = logging.getLogger("topcoat.runtime")


class Pass:
    """One bundle on the frames of one view; made by :meth:`open`.

    ``present`` gives a picture for every frame, whatever becomes of the network, and its status
    says what the picture is. The network runs on a thread of the pass.

    Threads: ``present``, ``present_device``, ``submit``, ``collect``, ``reset`` and ``close``
    belong to one thread at a time, which may change; two at once are a PassThreadError. ``set``,
    ``swap``, ``prepare``, ``stats`` and ``explain`` may be called from any thread at any time.
    """

    def __init__(
        self,
        source: Source,
        *,
        mode: Mode = "live",
        budget_ms: float | None = None,
        policy: Policy | None = None,
        on_event: Callable[[Event], None] | None = None,
        level_sources: dict[str, Source] | None = None,
        clock: Clock | None = None,
        driver: Callable[[], Driver] | None = None,
    ) -> None:
        if mode not in MODES:
            raise PassError(f"mode is {mode!r}, wanted one of {', '.join(MODES)}")
        if budget_ms is not None and not (is_number(budget_ms) and budget_ms > 0):
            raise PassError(
                f"budget_ms is {budget_ms!r}, wanted more than 0 (16.7 for 60 frames a second), or"
                " None for no budget"
            )
        self._policy = Policy() if policy is None else policy
        if mode == "live" and self._policy.late == "wait":
            raise PassError(
                "a live pass never waits, and Policy late is wait; choose warp, reuse or"
                " passthrough, or mode sync"
            )
        self._mode = mode
        self._budget_ms = budget_ms
        self._tell = Teller(lambda: self._loader.source.name, lambda: self._inputs.index, on_event)
        self._clock: Clock = MonotonicClock() if clock is None else clock
        self._scale = source.scale
        ladder = self._policy.ladder if budget_ms is not None else self._policy.ladder[:1]
        self._estate = Estate(source.name)
        self._loader = Loader(
            source,
            level_sources or {},
            self._policy,
            ladder,
            self._clock,
            self._tell,
            self._estate,
        )
        self._governor = LadderGovernor(budget_ms, self._policy)
        self._inputs = Inputs(self._policy, self._tell, keeps_color=mode == "file")
        self._lane = Lane(
            mode,
            self._scale,
            self._policy,
            self._clock,
            self._tell,
            self._observe,
            self._estate,
        )
        self._delivery = Delivery(
            self._scale,
            self._policy,
            self._clock,
            self._inputs,
            budget_ms,
            self._lane.release,
        )
        self._uncollected: list[Slot] = []
        self._settings = Settings()
        self._settings_lock = threading.Lock()
        self._options: dict[str, Any] = {}
        self._entry = threading.Lock()
        self._entered_by: int | None = None
        self._closed = False
        self._unseen = False
        """What is to be shown has not been shown yet."""
        self._submitted: int | None = None
        """The number of the present frame, if it came by ``submit`` alone."""
        self._off_at = -1
        """The latest frame at strength 0, by its sequence."""
        self._log = FrameLog()
        self._driver = driver
        self._device: DeviceFrames | None = None
        self._dropped = weakref.finalize(self, self._estate.settle)
        self._dropped.atexit = False

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        mode: Mode = "live",
        budget_ms: float | None = None,
        policy: Policy | None = None,
        on_event: Callable[[Event], None] | None = None,
        backend: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        allow_unverified: bool = False,
        variant: str | None = None,
    ) -> Pass:
        """Make a pass of a bundle. It reads the manifest and returns; engines load in ``prepare``.

        Args:
            bundle: the folder, of a network that repaints or enlarges frames.
            mode: ``live``: ``present`` never waits for the network; it gives the newest finished
                result, usually of the frame before, and of frames that wait only the newest is
                kept. ``sync``: it waits for the frame's own result, but no longer than the budget.
                ``file``: it waits however long, and no frame is lost.
            budget_ms: how long a frame may take the network: the time between two frames. It is
                what the governor keeps to by the ladder of ``policy``, and in ``sync`` mode how
                long ``present`` waits. None: neither.
            policy: what to do when time or an engine runs out.
            on_event: called with every :class:`Event`, on a thread of the pass or the caller's;
                what it raises is logged. The log ``topcoat.runtime`` has the same lines.
            backend: see :func:`topcoat.runtime.open`; the engines that passed their parity check
                stand in for each other with "auto" alone.
            precision: likewise.
            threads: for engines on the CPU; None: one less than the physical cores, since the
                application needs one.
            allow_unverified: likewise.
            variant: likewise.

        Raises:
            BundleError: it cannot be read, or one of the ladder's cannot.
            PassError: it is a texture's, a setting is wrong, or a ladder's bundle has another
                scale.
        """
        options: dict[str, Any] = {
            "backend": backend,
            "precision": precision,
            "threads": max(1, default_threads() - 1) if threads is None else threads,
            "allow_unverified": allow_unverified,
            "variant": variant,
        }
        levels = (Policy() if policy is None else policy).ladder
        others = {
            str(level.bundle): BundleSource(
                level.bundle, **{**options, "precision": None, "variant": None}
            )
            for level in levels
            if level.bundle is not None
        }
        made = cls(
            BundleSource(bundle, **options),
            mode=mode,
            budget_ms=budget_ms,
            policy=policy,
            on_event=on_event,
            level_sources=dict(others),
        )
        made._options = options
        return made

    @staticmethod
    def requirements(
        bundle: str | Path, result_size: tuple[int, int], *, policy: Policy | None = None
    ) -> Requirements:
        """Return what a pass would need for pictures of this size; nothing is loaded.

        Args:
            bundle: the folder.
            result_size: (height, width) of the pictures for the screen.
            policy: as of :meth:`open`.

        Raises:
            BundleError: it cannot be read.
            PassError: the size is no multiple of the scale.
            FrameError: the network does not take frames of that size.
        """
        source = BundleSource(bundle)
        ((height, width),) = check_sizes((result_size,))
        scale = source.scale
        if min(height, width) < 1 or height % scale or width % scale:
            raise PassError(
                f"result size {width}x{height} is no multiple of the scale {scale} of"
                f" {source.name}, wanted sides of at least {scale} that are"
            )
        size = (height // scale, width // scale)
        fitted = engine_size(source, *size)
        frame = size[0] * size[1]
        slot = frame * (3 + 8 + 4 + 1) + height * width * 3
        per_pixel = source.memory_per_pixel
        return Requirements(
            input_size=size,
            result_size=(height, width),
            engine_size=fitted,
            buffer_bytes=_SLOTS * slot + 2 * height * width * 3,
            engine_bytes=None if per_pixel is None else per_pixel * fitted[0] * fitted[1],
            levels=tuple(str(level) for level in (policy or Policy()).ladder),
        )

    @property
    def scale(self) -> int:
        """Pixels of the result for each pixel of the frame, on each side."""
        return self._scale

    @property
    def mode(self) -> Mode:
        """How frames wait."""
        return self._mode

    # --- getting ready ---------------------------------------------------------------------------

    def prepare(
        self, *sizes: tuple[int, int], background: bool = True, timeout: float | None = None
    ) -> Preparation:
        """Load the engines and run a few frames of each size, so that the first real one is fast.

        Without it the first ``present`` begins this by itself; until it has ended, frames pass
        through.

        Args:
            sizes: (height, width) of frames to come.
            background: return at once. Else when it has ended.
            timeout: then, for so many seconds at most.

        Returns:
            The preparation: its ``progress``, ``wait`` and ``cancel``.

        Raises:
            PassClosedError: the pass was closed.
            TopcoatError: without ``background``: nothing can run the bundle.
        """
        self._check_open()
        preparation = self._loader.prepare(sizes)
        if not background:
            preparation.wait(timeout)
        return preparation

    def swap(
        self, bundle: str | Path, *, sizes: tuple[tuple[int, int], ...] | None = None
    ) -> Preparation:
        """Change to another bundle without a hitch: load and warm it aside, then change over.

        Frames are run with the old one until the new one is ready, and the last picture of the old
        one is shown until the first of the new one. If it cannot be loaded, nothing changes.

        Args:
            bundle: of the same scale. Levels of the ladder that name bundles of their own run this
                one from then on.
            sizes: (height, width) to warm it for; None: that of the last frame.

        Returns:
            Its preparation; ``cancel`` keeps the old bundle.

        Raises:
            BundleError: it cannot be read.
            PassError: it has another scale, or makes textures.
            PassClosedError: the pass was closed.
        """
        self._check_open()
        options = {**self._options, "precision": None, "variant": None}
        return self.swap_source(BundleSource(bundle, **options), sizes=sizes)

    def swap_source(
        self, source: Source, *, sizes: tuple[tuple[int, int], ...] | None = None
    ) -> Preparation:
        """Do what :meth:`swap` does with engines from somewhere else."""
        self._check_open()
        if sizes is None:
            plan = self._inputs.plan
            sizes = () if plan is None else ((plan.height, plan.width),)
        return self._loader.swap(source, sizes)

    # --- frames ----------------------------------------------------------------------------------

    def present(
        self, frame: RenderFrame | NDArray[np.uint8], out: NDArray[Any] | None = None
    ) -> Result:
        """Submit a frame, and return the best picture there is for it now.

        Whatever happens to the network, there is a picture: see :class:`Status`. Errors are for
        frames whose colour cannot be used, for a closed pass and for use from two threads.

        Args:
            frame: a :class:`RenderFrame`, or just its colour, (H, W, 3) uint8 RGB.
            out: where to write the picture, in the frame's layout, ``scale`` times as large; it
                may be the frame's own colour if the scale is 1. None: into memory of the pass.

        Raises:
            FrameError: the colour, the layout or ``out`` is not as described.
            PassClosedError: the pass was closed.
            PassThreadError: another thread is inside the pass.
            BackendError: an engine failed and ``policy.on_error`` is "raise".
        """
        self._enter()
        try:
            return self._present(_as_frame(frame), out)
        finally:
            self._leave()

    def present_device(
        self, color: object, out: object, stream: int | None = None, *, index: int | None = None
    ) -> Result:
        """Do what :meth:`present` does with a frame in an NVIDIA GPU's memory, and leave it there.

        The work is queued on the GPU by the calling thread, and the result is of this frame
        (age 0): FRESH, or PASSTHROUGH with the frame copied to ``out`` on the GPU. That is so while
        an engine is loaded or sees frames of a size for the first time (``prepare`` those sizes),
        while a frame of the host is being run, after a failure, and where no engine takes frames on
        the GPU: ``reason`` says which would. Engines that fail are demoted and tried again as those
        of ``present``, whose calls may alternate with these.

        Frames are styled whole, at full quality: strength (other than 0), mask, blend, stabiliser
        and ladder are for frames of the host, and what is set of them is told once and left out.
        The result is not looked at, which would wait for the GPU, and an engine that hangs inside
        the call is waited for. A bundle that enlarges frames writes fresh results to ``out`` alone:
        passed through, ``Result.image`` is ``color`` itself, to be drawn larger by the application.

        Args:
            color: (H, W, 3) uint8, RGB, C-contiguous, first row on top, on the GPU that the engine
                is on, of any library that speaks DLPack or ``__cuda_array_interface__``.
            out: where to write the picture: (H * scale, W * scale, 3), likewise; writeable, not
                overlapping ``color``.
            stream: handle of the CUDA stream on which ``color`` is made and ``out`` is used: the
                call returns at once, and both must stay alive until the stream has got there.
                None: the arrays are asked what to wait for, and the call returns when ``out`` is
                written.
            index: as of :class:`RenderFrame`.

        Returns:
            The result. Its ``image`` is ``out``, but for frames of another size, see above; of its
            timings, ``load`` (looking at the arrays), ``store`` (queueing the copy) and ``present``
            are measured, on the host.

        Raises:
            FrameError: an array or the stream is not as described; nothing was written.
            BackendUnavailableError: there is no NVIDIA driver or GPU here that could be used.
            DeviceLostError: the GPU stopped working, and what was in its memory is lost with it.
            BackendError: the driver refuses even to copy the frame; or an engine failed and
                ``policy.on_error`` is "raise".
            PassClosedError: the pass was closed.
            PassThreadError: another thread is inside the pass.
            PassError: submitted frames are not collected.
        """
        self._enter()
        try:
            return self._present_device(color, out, stream, index)
        finally:
            self._leave()

    def submit(self, frame: RenderFrame | NDArray[np.uint8]) -> bool:
        """Give a frame to the network, and come back for its result later.

        In ``file`` mode every frame comes out of :meth:`collect`, in order, run or not. Otherwise a
        newer frame takes the place of one that waits; :meth:`present` of the same index then only
        delivers, and :meth:`collect` gives new results alone.

        Returns:
            Whether it is going to be run.

        Raises:
            As :meth:`present`; PassError in ``file`` mode if ``policy.queue`` frames are to be
            collected first.
        """
        self._enter()
        try:
            known = _as_frame(frame)
            if self._mode == "file" and len(self._uncollected) >= self._policy.queue:
                raise PassError(
                    f"{len(self._uncollected)} frames are submitted and not collected, and"
                    f" Policy queue is {self._policy.queue}; collect() first, or allow for more"
                )
            plan = self._begin(known, None)
            settings = self._settings
            self._submitted = self._inputs.index
            skipped = ""
            if settings.strength == 0:
                skipped = "the strength is 0"
                self._switch_off()
            elif not self._ready(plan, wait=self._mode == "file"):
                skipped = self._loader.not_ready()
            if skipped:
                if self._mode == "file":
                    self._uncollected.append(self._inputs.skipped(known, self._scale, skipped))
                return False
            self._take()
            self._inputs.load_motion(known, settings)
            if self._mode != "file" and self._inputs.sequence % self._every_n:
                return False
            call = Call(self._clock.now(), None)
            slot = self._submit(known, plan, settings, call, borrow=False)
            if self._mode == "file":
                self._uncollected.append(slot)
            return True
        finally:
            self._leave()

    def collect(self, out: NDArray[Any] | None = None, *, wait: bool = True) -> Result | None:
        """Return the result of what was submitted.

        In ``file`` mode the next one in order; a frame that was not run, or on which the engine
        failed, comes passed through. Otherwise the newest one, if it was not given out before.

        Args:
            out: as of :meth:`present`.
            wait: wait for it if it is not finished.

        Returns:
            The result; None if nothing is under way, or it is not finished and ``wait`` is False.

        Raises:
            As :meth:`present`.
        """
        self._enter()
        try:
            call = Call(self._clock.now(), out)
            plan = self._inputs.plan
            if plan is None:
                return None
            if out is not None:
                plan.check_out(out, self._scale)
            if self._mode == "file":
                if not self._uncollected:
                    return None
                slot = self._uncollected[0]
                if not self._wait_for(slot, None if wait else 0.0):
                    return None
                del self._uncollected[0]
                call.wait = (self._clock.now() - call.began) * 1e3
                return self._own(slot, None, plan, call)
            self._take()
            while wait and not self._unseen and self._lane.busy:
                self._wait_once(None)
            call.wait = (self._clock.now() - call.began) * 1e3
            if not self._unseen:
                return None
            self._unseen = False
            return self._logged(self._delivery.newest(plan, call), call)
        finally:
            self._leave()

    def reset(self) -> None:
        """Say that the next frame has nothing to do with the last: a camera cut."""
        self._enter()
        self._inputs.reset()
        self._leave()

    def set(
        self,
        *,
        strength: float | None = None,
        stabilise: float | None = None,
        blend: Blend | None = None,
        mask: NDArray[np.uint8] | Literal["none"] | None = None,
    ) -> None:
        """Change how results are laid over frames, from the next submitted frame on, all at once.

        Args:
            strength: 0 (the frame itself, bit for bit; the network does not run) to 1.
            stabilise: 0 (every result as it is) to 1 (as steady as it gets).
            blend: "normal"; "luminance": the strokes, in the frame's own colours; "colour": the
                result's colours on the frame's own brightness.
            mask: (H, W) uint8: how strongly each pixel is styled; "none" takes it away. It is
                copied.

        What is left out stays as it is.

        Raises:
            PassError: a value is outside its range; nothing has changed then.
        """
        with self._settings_lock:
            self._settings = changed(
                self._settings, strength=strength, stabilise=stabilise, blend=blend, mask=mask
            )

    def close(self) -> None:
        """Stop the thread and free the engines. Closing twice is fine.

        An engine that hangs is left to itself, which one line in the log says.
        """
        if self._closed:
            return
        self._enter()
        try:
            self._closed = True
            self._loader.cancel()  # first, or it would take engines that are freed for broken ones
            self._lane.close()
            self._loader.close()
            self._dropped.detach()
            if self._device is not None:
                self._device.close()
            self._delivery.forget()
            self._inputs.forget()
            self._uncollected.clear()
            if self._lane.hanging:
                self._tell("closed", "an engine still hangs; its thread is left to itself")
        finally:
            self._leave()

    def __enter__(self) -> Pass:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- telling ---------------------------------------------------------------------------------

    def stats(self, window: int | None = None) -> Stats:
        """Return how the last frames went: ``print`` it, or read its fields.

        Args:
            window: how many frames; None: all that are remembered (4096).
        """
        device = self._device
        return self._log.summary(
            window,
            failures=self._lane.failures + (0 if device is None else device.failures),
            demotions=self._lane.demotions
            + self._loader.demotions
            + (0 if device is None else device.demotions),
            dropped=self._lane.dropped,
        )

    def explain(self) -> str:
        """Return, in lines: engines, levels, copies per frame with their reasons, what was told."""
        plan = self._inputs.plan
        return explain(
            Facts(
                source=self._loader.source,
                mode=self._mode,
                budget_ms=self._budget_ms,
                not_ready=None if self._loader.in_use is not None else self._loader.not_ready(),
                rosters=self._loader.in_use,
                now=self._clock.now(),
                ladder=self._policy.ladder,
                level=self._governor.level,
                plan=plan,
                copies=() if plan is None else self._copies(plan),
                device=() if self._device is None else self._device.explain(),
                told=self._tell.told,
            )
        )

    def _copies(self, plan: PixelPlan) -> tuple[Copy, ...]:
        """Return what is copied for each frame that is run."""
        borrow = self._mode != "live" and (
            self._mode == "file" or self._budget_ms is None or self._policy.late == "wait"
        )
        copies = () if borrow and plan.is_native else plan.load_copies
        if plan.needs_color:
            size = plan.height * plan.width * plan.layout.channels * plan.layout.dtype.itemsize
            copies += (Copy("the frame as it is", size, "results take their alpha from it"),)
        if plan.is_native:
            size = 3 * plan.height * plan.width * self._scale**2
            why = "only where out is given: without, the result is handed out where it lies"
            return (*copies, Copy("result to out", size, why))
        return (*copies, *plan.store_copies(self._scale))

    def debug_view(self, what: Literal["input", "motion", "history"]) -> NDArray[np.uint8]:
        """Return a picture of what the pass works with, (H, W, 3) RGB, for looking for mistakes.

        Args:
            what: "input": what the network was given last; "motion": the vectors of the last frame
                as colours, direction as hue and length as brightness; "history": how much of the
                stabiliser's history went into each pixel, white is all.

        Raises:
            PassError: there is none yet.
        """
        return debug_view(what, self._inputs, self._delivery.shown, self._lane.pipeline)

    # --- the inside ------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise PassClosedError(
                f"this pass of {self._loader.source.name} was closed; open another one"
            )

    def _enter(self) -> None:
        self._check_open()
        if not self._entry.acquire(blocking=False):
            if self._entered_by == threading.get_ident():
                raise PassThreadError(
                    f"on_event of this pass of {self._loader.source.name} was called inside a call"
                    " of the pass and makes another one; note what is to be done, and do it when"
                    " the call has returned"
                )
            raise PassThreadError(
                f"two threads use this pass of {self._loader.source.name} at once; present,"
                " submit, collect, reset and close belong to one thread at a time: use a lock, or"
                " a pass for each thread"
            )
        self._entered_by = threading.get_ident()
        if self._closed:
            self._leave()
            self._check_open()

    def _leave(self) -> None:
        self._entered_by = None
        self._entry.release()

    def _begin(self, frame: RenderFrame, out: NDArray[Any] | None) -> PixelPlan:
        """Look at a frame: its layout, its number, whether it follows the last one.

        What is refused has not been counted.
        """
        inputs = self._inputs
        new = inputs.plan_for(frame)
        plan = inputs.plan if new is None else new
        assert plan is not None
        inputs.check_index(frame.index)
        if out is not None:
            plan.check_out(out, self._scale, frame.color)
        if new is not None:
            alike = inputs.is_alike(new)
            if self._uncollected and not alike:
                raise PassError(
                    f"{len(self._uncollected)} frames of another size or layout are submitted and"
                    " not collected; collect() them first"
                )
            engine_size(self._loader.source, plan.height, plan.width)  # refuses what is too large
            inputs.use(new)
            self._delivery.use(new, keep=alike)
            if not alike:
                self._lane.drop_slots()
                self._governor.reset()
                self._unseen = False
        inputs.begin(frame)
        return plan

    def _switch_off(self) -> None:
        """Show nothing again that was made before the strength was 0."""
        self._off_at, self._unseen = self._inputs.sequence, False
        self._delivery.hide()

    @property
    def _every_n(self) -> int:
        return self._policy.ladder[self._governor.level].every_n

    def _engines(self, size: tuple[int, int], *, wait: bool) -> Rosters | None:
        """Return what can run frames; change over to a bundle that is to take over."""
        successor = self._loader.take_over()
        if successor is not None:
            self._lane.change_to(*successor)
            self._governor.reset()
        return self._loader.rosters(size, wait=wait)

    def _ready(self, plan: PixelPlan, *, wait: bool) -> bool:
        """Return whether frames can be run."""
        rosters = self._engines((plan.height, plan.width), wait=wait)
        if rosters is None:
            return False
        self._lane.start(rosters)
        self._lane.look_for_hang(rosters)
        return True

    @property
    def _waits(self) -> bool:
        """Whether a call goes on until the frame's own result is there."""
        return self._mode == "file" or (
            self._mode == "sync" and (self._budget_ms is None or self._policy.late == "wait")
        )

    def _observe(self, slot: Slot) -> None:
        """Let the governor know what a frame took."""
        if self._budget_ms is None:
            return
        line = self._governor.observe(slot.work, slot.level)
        if line is not None:
            self._tell("level", line)

    def _submit(
        self, frame: RenderFrame, plan: PixelPlan, settings: Settings, call: Call, *, borrow: bool
    ) -> Slot:
        began = self._clock.now()
        slot = self._lane.slot(plan)
        call.copied += self._inputs.fill(
            slot, frame, settings, before=self._lane.before, borrow=borrow
        )
        slot.level = self._governor.level
        self._lane.give(slot, began, here=borrow and self._policy.hang_ms is None)
        call.load = slot.load
        return slot

    def _take(self) -> None:
        """Let the newest finished frame be shown, unless the pass has been off since."""
        newest = self._lane.take_finished()
        if newest is None:
            return
        if newest.sequence < self._off_at:
            self._lane.release(newest)
            return
        self._delivery.show(newest)
        self._unseen = True

    def _wait_for(self, slot: Slot, timeout: float | None) -> bool:
        """Wait until a slot is finished or given up; return whether it is."""
        until = None if timeout is None else self._clock.now() + timeout
        while True:
            self._take()
            if slot.finished:
                return True
            left = None if until is None else until - self._clock.now()
            if left is not None and left <= 0:
                return False
            self._wait_once(left)

    def _wait_once(self, timeout: float | None) -> None:
        """Wait until something is finished, or hangs and is given up."""
        self._lane.wait(timeout)
        rosters = self._loader.in_use
        assert rosters is not None
        self._lane.look_for_hang(rosters)
        self._take()

    def _present(self, frame: RenderFrame, out: NDArray[Any] | None) -> Result:
        call = Call(self._clock.now(), out)
        if self._uncollected:
            raise PassError(
                f"{len(self._uncollected)} submitted frames are not collected; collect() them"
                " before present()"
            )
        submitted, self._submitted = self._submitted, None
        plan = self._inputs.plan
        again = frame.index is not None and frame.index == submitted and self._mode != "file"
        if not again or plan is None or self._inputs.plan_for(frame) is not None:
            again = False
            plan = self._begin(frame, out)
        elif out is not None:
            plan.check_out(out, self._scale, frame.color)
        settings, delivery, lane = self._settings, self._delivery, self._lane
        if settings.strength == 0:
            self._switch_off()
            return self._logged(
                delivery.passed_through(frame, plan, call, "the strength is 0"), call
            )
        waits = self._waits
        if not self._ready(plan, wait=waits):
            reason = self._loader.not_ready()
            return self._logged(delivery.passed_through(frame, plan, call, reason), call)
        self._take()
        reason = "the network is still at work on an earlier frame"
        if self._every_n > 1:
            reason = f"one frame in {self._every_n} is run"
        if not again:
            self._inputs.load_motion(frame, settings)
        if not again and (self._mode == "file" or self._inputs.sequence % self._every_n == 0):
            slot = self._submit(frame, plan, settings, call, borrow=waits)
            if self._mode != "live":
                start = self._clock.now()
                left = None
                if not waits and self._budget_ms is not None:
                    left = max(0.0, self._budget_ms / 1e3 - (start - call.began))
                self._wait_for(slot, left)
                slot.source = slot.own_input  # the application's memory is its own again
                call.wait = (self._clock.now() - start) * 1e3
                if self._mode == "file":
                    return self._own(slot, frame, plan, call)
        failure, lane.failure = lane.failure, None
        new, self._unseen = self._unseen, False
        if failure is not None:
            reason = failed_because(failure)
            if self._policy.on_error == "raise" and not isinstance(failure, EnginesRestError):
                raise failure
            if not new and self._policy.on_error != "reuse":
                return self._logged(delivery.passed_through(frame, plan, call, reason), call)
        return self._logged(delivery.best(frame, plan, call, new=new, reason=reason), call)

    def _present_device(
        self, color: object, out: object, stream: int | None, index: int | None
    ) -> Result:
        call = Call(self._clock.now(), None)
        device = self._device
        if device is None:
            # Here, for it loads ctypes and the driver's functions, which most passes never need.
            from topcoat.runtime.render_pass._device_frames import DeviceFrames

            device = self._device = DeviceFrames(
                self._scale, self._policy, self._budget_ms, self._clock, self._tell, self._driver
            )
        pair = device.look_at(color, out, stream)
        engine_size(self._loader.source, *pair.size)  # refuses what is too large
        if self._uncollected:
            raise PassError(
                f"{len(self._uncollected)} submitted frames are not collected; collect() them"
                " before present_device()"
            )
        self._inputs.count(index)
        number = self._inputs.index
        call.load = (self._clock.now() - call.began) * 1e3
        settings = self._settings
        if settings.strength == 0:
            self._switch_off()
            result = device.passed_through(pair, call, number, "the strength is 0")
            return self._logged(result, call)
        rosters = self._engines(pair.size, wait=self._waits)
        if rosters is None:
            reason = self._loader.not_ready()
            return self._logged(device.passed_through(pair, call, number, reason), call)
        self._lane.look_for_hang(rosters)
        if self._lane.busy:
            reason = "the network is still at work on a frame of the host"
            return self._logged(device.passed_through(pair, call, number, reason), call)
        self._lane.free_unused()
        result = device.run(pair, call, number, rosters[None], settings, waits=self._waits)
        return self._logged(result, call)

    def _own(self, slot: Slot, frame: RenderFrame | None, plan: PixelPlan, call: Call) -> Result:
        """Return what has become of a frame in ``file`` mode."""
        self._lane.failure = None
        failed = slot.error is not None and not isinstance(slot.error, EnginesRestError)
        if failed and self._policy.on_error == "raise":
            self._lane.release(slot)
            assert slot.error is not None
            raise slot.error
        return self._logged(self._delivery.own(slot, frame, plan, call), call)

    def _logged(self, result: Result, call: Call) -> Result:
        within = self._budget_ms is None or result.timings.present <= self._budget_ms
        self._log.add(result, within=within, copied=call.copied)
        return result


def _as_frame(frame: RenderFrame | NDArray[np.uint8]) -> RenderFrame:
    return frame if isinstance(frame, RenderFrame) else RenderFrame(color=frame)
