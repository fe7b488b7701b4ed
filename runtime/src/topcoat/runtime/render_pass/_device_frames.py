"""Frames in an NVIDIA GPU's memory through a pass: run where they lie, or copied there.

Everything here happens on the thread that presents, and only queues work on the GPU. What takes
long, loading an engine and running the first frames of a size, is done on a thread beside it while
frames pass through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from topcoat.runtime._errors import BackendError, FrameError
from topcoat.runtime.backends._cuda import Context, DeviceMemory, Driver, installed_driver
from topcoat.runtime.backends._device_arrays import check_stream, device_array
from topcoat.runtime.render_pass._delivery import Call
from topcoat.runtime.render_pass._device_memory import Gpu, Lent, Pair, usable_device
from topcoat.runtime.render_pass._engines import (
    DEVICE_BACKENDS,
    DeviceRunner,
    EnginesRestError,
    Roster,
    Seat,
    Source,
    engine_size,
    failed_because,
    load_seat,
)
from topcoat.runtime.render_pass._pixels import Copy
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._types import Policy, Result, Status, Timings
from topcoat.runtime.render_pass._worker import Clock, Settings

_ALIGNMENT = 256
"""Engines read and write at multiples of this many bytes; other frames pass through a buffer."""
_WARM_FRAMES = 2
_Kind = tuple[tuple[int, int], str, bool, Source]
"""Size, engine, alignment and bundle: what the copies of a frame depend on."""


class DeviceFrames:
    """What a pass does with frames in an NVIDIA GPU's memory.

    Methods belong to the thread that presents; :meth:`explain` may be called from any.

    Args:
        scale: of the pass.
        policy: of the pass.
        budget_ms: of the pass.
        clock: of the pass.
        tell: ``tell(kind, text, key=...)``.
        driver: returns NVIDIA's driver; None takes the installed one.
    """

    def __init__(
        self,
        scale: int,
        policy: Policy,
        budget_ms: float | None,
        clock: Clock,
        tell: Callable[..., None],
        driver: Callable[[], Driver] | None = None,
    ) -> None:
        self._scale = scale
        self._policy = policy
        self._budget_ms = budget_ms
        self._clock = clock
        self._tell = tell
        self._driver = driver or installed_driver
        self._gpu: Gpu | None = None
        self._lock = threading.Lock()  # of _jobs, _closed and demotions
        self._jobs: dict[Seat, _Job] = {}
        self._closed = False
        self._settings: Settings | None = None
        self._roster: Roster | None = None
        self._copied: tuple[_Kind, tuple[Copy, ...]] | None = None
        self.failures = 0
        """Frames on which an engine failed."""
        self.demotions = 0

    def look_at(self, color: object, out: object, stream: int | None) -> Pair:
        """Find out where a frame and its result lie.

        Raises:
            FrameError: they or the stream are not as :meth:`Pass.present_device` wants them.
            BackendUnavailableError: here is no NVIDIA driver, or no GPU that it could use.
            DeviceLostError: the GPU stopped working.
        """
        check_stream(stream)
        gpu = self._gpu
        if gpu is None:
            # Of arrays on the host it is said that they are, also where there is no driver.
            for array, what in ((color, "color"), (out, "out")):
                device_array(array, None, what, host="present()")
            gpu = self._gpu = Gpu(self._driver())
        return gpu.look_at(color, out, stream, self._scale)

    def passed_through(self, pair: Pair, call: Call, index: int, reason: str) -> Result:
        """Copy a frame to its place on the GPU, and return it; enlarged, it cannot be.

        Raises:
            DeviceLostError: the GPU stopped working: there is no picture any more.
            BackendError: the driver refuses to copy the frame.
        """
        gpu = self._gpu
        assert gpu is not None
        start = self._clock.now()
        image = pair.target
        if self._scale == 1:
            gpu.copy(pair)
            call.copied += pair.color.nbytes
        else:
            gpu.check()
            image = pair.given
            self._tell(
                "input",
                f"a frame on the GPU cannot be made {self._scale} times as large there without the"
                " network: when it passes through, Result.image is the frame itself and out is not"
                " written; draw Result.image at the size of the screen",
                key="device scale",
            )
        timings = self._timings(call, store=self._clock.now() - start)
        return Result(cast(Any, image), Status.PASSTHROUGH, 0, index, "", reason, timings)

    def run(
        self,
        pair: Pair,
        call: Call,
        index: int,
        roster: Roster,
        settings: Settings,
        *,
        waits: bool,
    ) -> Result:
        """Run a frame on the best engine that takes it, or pass it through.

        Args:
            pair: the frame.
            call: what has happened in it.
            index: of the frame.
            roster: the engines.
            settings: of the pass; those that need the host are told and left out.
            waits: get an engine ready on this thread if need be, however long it takes.

        Raises:
            As :meth:`passed_through`; BackendError if an engine failed and ``policy.on_error`` is
            "raise".
        """
        if roster is not self._roster:
            self._roster = roster
            with self._lock:
                for job in self._jobs.values():
                    job.unwanted = True  # it is of a bundle that was swapped
        if settings is not self._settings:
            self._settings = settings
            self._tell_left_out(settings)
        if not any(seat.takes_device for seat in roster.seats):
            reason = _host_only(roster)
            self._tell("input", reason, key="device engine")
            return self.passed_through(pair, call, index, reason)
        size, skipped, reason = pair.size, [], ""
        failure: Exception | None = None
        for kind, text in roster.take_news():
            self._tell(kind, text)
        while True:
            now = self._clock.now()
            seats = roster.candidates(size, now, device=True)
            seat = next((one for one in seats if one not in skipped), None)
            if seat is None:
                break
            trial = seat.demoted
            seat.change_over()
            runner = self._at_hand(roster, seat, size, waits=waits)
            if runner is None:
                skipped.append(seat)
                reason = f"{seat.name} is being made ready"
                continue
            try:
                runner.run_device(
                    Lent(pair.color, pair.lent), Lent(pair.out, pair.lent), pair.stream
                )
            except FrameError:
                raise  # no other engine would take it either
            except Exception as error:  # of any class: engines are other people's code
                failure = error
                # It is freed here, not aside, which waits for what it may still write to ``out``.
                self._demote(roster, seat, error, size)
                if trial:
                    continue
                break
            line = roster.worked(seat, size)
            if line is not None:
                self._tell("recovered", line)
            call.copied += sum(
                copy.bytes for copy in self._copies_for(pair, roster.source, seat.name)
            )
            timings = self._timings(call)
            image = cast(Any, pair.target)
            return Result(image, Status.FRESH, 0, index, seat.name, "", timings)
        if failure is not None:
            self.failures += 1
            reason = failed_because(failure)
        elif not reason:
            reason = failed_because(EnginesRestError(roster.outlook(now, device=True)))
        if failure is not None and self._policy.on_error == "raise":
            raise failure
        return self.passed_through(pair, call, index, reason)

    def explain(self) -> tuple[str, ...]:
        """Return, in lines, what is copied for each frame; () before the first."""
        if self._gpu is None:
            return ()
        if self._copied is None:
            return ("copies per frame on the GPU: no frame there was styled yet",)
        kind, copies = self._copied
        (height, width), name = kind[:2]
        total = sum(copy.bytes for copy in copies)
        head = f"copies per frame on the GPU of {width}x{height} by {name}, {total / 1e6:.2f} MB:"
        return (head, *([f"  {copy}" for copy in copies] or ["  none"]))

    def close(self) -> None:
        """Free what is on the GPU; an engine that is being made ready is freed when it is."""
        with self._lock:
            self._closed = True
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            gpu.close()

    # ------------------------------------------------------------------------------ engines

    def _at_hand(
        self, roster: Roster, seat: Seat, size: tuple[int, int], *, waits: bool
    ) -> DeviceRunner | None:
        """Return an engine that runs frames of this size at once; if it cannot, see that it will.

        Args:
            roster: that it belongs to.
            seat: the engine.
            size: of the frame.
            waits: return when it can.
        """
        with self._lock:
            job = self._jobs.get(seat)
        if job is not None:
            self._look_for_hang(roster, seat, size, job)
            return None
        if seat.runner is None or size not in seat.sizes:
            if seat.warming:
                return None
            job = _Job(self._clock.now())
            with self._lock:
                self._jobs[seat] = job
            if not waits:
                start(lambda: self._make_ready(roster, seat, size, aside=True), "device warm-up")
                return None
            self._make_ready(roster, seat, size, aside=False)
            if seat.runner is None or size not in seat.sizes:
                return None
        elif seat.warming:
            return None
        return cast(DeviceRunner, seat.runner)

    def _make_ready(
        self, roster: Roster, seat: Seat, size: tuple[int, int], *, aside: bool
    ) -> None:
        """Load an engine if need be and run frames of this size, on which it compiles.

        Args:
            roster: that it belongs to.
            seat: the engine.
            size: (height, width) of the frames.
            aside: this is a thread of its own, so that nobody could catch what is raised.
        """
        try:
            with seat.held():
                seat.warming = True
                try:
                    runner = cast(DeviceRunner, load_seat(seat))
                    self._warm(runner, size)
                finally:
                    seat.warming = False
                seat.sizes.add(size)
        except BaseException as error:  # of any class, as above: a library's panic, too
            self._demote(roster, seat, error, size)
            if not aside and not isinstance(error, Exception):
                raise  # the user has pressed Ctrl-C
        finally:
            with self._lock:
                job = self._jobs.pop(seat)
                unwanted = self._closed or job.unwanted
            if unwanted:
                seat.close()

    def _warm(self, runner: DeviceRunner, size: tuple[int, int]) -> None:
        driver = self._driver()
        context = Context(driver, usable_device(driver))
        (height, width), scale = size, self._scale
        shapes = ((height, width, 3), (height * scale, width * scale, 3))
        memory: list[DeviceMemory] = []
        try:
            with context:
                try:
                    memory += [DeviceMemory(driver, h * w * c) for h, w, c in shapes]
                    frame, result = (
                        Lent.at(one.handle, shape)
                        for one, shape in zip(memory, shapes, strict=True)
                    )
                    for _ in range(_WARM_FRAMES):
                        runner.run_device(frame, result, None)
                finally:
                    for one in memory:
                        one.close()
        finally:
            context.close()

    def _look_for_hang(self, roster: Roster, seat: Seat, size: tuple[int, int], job: _Job) -> None:
        """Demote an engine that is not ready for longer than the first frame of a size may take."""
        limit = self._policy.start_ms / 1e3
        if not job.late and self._clock.now() - job.began >= limit:
            job.late = True
            error = BackendError(f"it has not been ready for {limit:g} s")
            self._demote(roster, seat, error, size)

    def _demote(
        self, roster: Roster, seat: Seat, error: BaseException, size: tuple[int, int]
    ) -> None:
        line = roster.failed(seat, error, size, self._clock.now())
        if line is not None:
            with self._lock:
                self.demotions += 1
            self._tell("demoted", line)

    # -------------------------------------------------------------------------------- words

    def _tell_left_out(self, settings: Settings) -> None:
        """Tell once of each setting that it is for frames of the host."""
        budget, wanted = self._budget_ms, settings
        for key, applies, text in (
            ("strength", wanted.strength != 1, f"strength {wanted.strength:g} is taken as 1"),
            ("mask", wanted.mask is not None, "the mask is left out"),
            ("blend", wanted.blend != "normal", f"blend {wanted.blend} is taken as normal"),
            ("stabilise", wanted.stabilise > 0, f"stabilise {wanted.stabilise:g} is taken as 0"),
            ("budget", budget is not None, f"the budget of {budget or 0:g} ms changes no level"),
        ):
            if applies:
                self._tell(
                    "input",
                    f"on the GPU, frames are styled whole and at full quality: {text}; use present"
                    " for frames of the host",
                    key=f"device {key}",
                )

    def _copies_for(self, pair: Pair, source: Source, name: str) -> tuple[Copy, ...]:
        """Return what an engine copies on the GPU for a frame like this one."""
        aligned = not (pair.color.pointer % _ALIGNMENT or pair.out.pointer % _ALIGNMENT)
        kind = (pair.size, name, aligned, source)
        if self._copied is not None and self._copied[0] == kind:
            return self._copied[1]
        height, width = pair.size
        fitted = engine_size(source, height, width)
        copies: tuple[Copy, ...] = ()
        if fitted != pair.size:
            why = f"the network takes frames of {fitted[1]}x{fitted[0]}"
            copies = (
                Copy("frame, padded on the GPU", 3 * fitted[0] * fitted[1], why),
                Copy("result, cropped on the GPU", pair.out.nbytes, why),
            )
        elif not aligned:
            why = f"an address is no multiple of {_ALIGNMENT} bytes"
            copies = (
                Copy("frame to the engine's buffer on the GPU", pair.color.nbytes, why),
                Copy("result from the engine's buffer on the GPU", pair.out.nbytes, why),
            )
        self._copied = (kind, copies)
        return copies

    def _timings(self, call: Call, store: float = 0.0) -> Timings:
        return Timings(
            load=call.load, store=store * 1e3, present=(self._clock.now() - call.began) * 1e3
        )


@dataclass(slots=True)
class _Job:
    """An engine that is being made ready."""

    began: float
    """s of the clock."""
    late: bool = False
    """It has taken too long, which was told."""
    unwanted: bool = False
    """Nobody is going to use it."""


def _host_only(roster: Roster) -> str:
    names = ", ".join(seat.name for seat in roster.seats)
    runs = "runs" if len(roster.seats) == 1 else "run"
    return (
        f"{names} {runs} frames of the host's memory alone; open the bundle with backend"
        f" {' or '.join(DEVICE_BACKENDS)}, whose engines export-engine builds, or use present"
    )
