"""Frames through an engine: from the host and back, or from the GPU to the GPU."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError, DeviceLostError, DeviceMemoryError, FrameError
from topcoat.runtime.backends._cuda import Context, Event, PinnedArray
from topcoat.runtime.backends._device_arrays import (
    DeviceArray,
    check_apart,
    check_device,
    check_stream,
    device_array,
)
from topcoat.runtime.backends._device_padding import crop_on_device, pad_on_device
from topcoat.runtime.backends._trt_engine import Engine, EngineSettings
from topcoat.runtime.backends._trt_plan import Plan
from topcoat.runtime.bundle import EngineInfo, Variant
from topcoat.runtime.frames import Frame

_log = logging.getLogger("topcoat.runtime")

_open: weakref.WeakSet[TensorRtSession] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Free engines while there is an interpreter: TensorRT still calls our logger then."""
    for session in list(_open):
        session.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Where the time of one run went, in milliseconds."""

    host_in: float
    """Copying frames into pinned memory; 0 for frames that lie in pinned memory."""
    upload: float
    """Copying them to the GPU, on its clock like the next two."""
    compute: float
    download: float
    host_out: float
    """Copying results out of pinned memory; 0 for results that lie in pinned memory."""
    wall: float
    """The whole call on the host's clock."""

    @property
    def overhead(self) -> float:
        """What the call took beyond its stages: launching, waiting and Python."""
        stages = self.host_in + self.upload + self.compute + self.download + self.host_out
        return self.wall - stages


class TensorRtSession:
    """One engine on the GPU, with buffers, working memory and graphs for the last frame sizes.

    It frees the context that it is given when it is closed.

    Raises:
        BackendError: the library refuses the engine, or it is not what the manifest says.
        DeviceMemoryError: the GPU has too little free memory for it.
    """

    def __init__(
        self,
        name: str,
        module: Any,  # noqa: ANN401 - a module without types
        context: Context,
        variant: Variant,
        info: EngineInfo,
        model: bytes,
        settings: EngineSettings,
    ) -> None:
        self._closed = True  # until everything is there
        self._lock = threading.Lock()  # a thread may still run a frame when the program ends
        self._name = name
        self._settings = settings
        self._context = context
        self._driver = context.driver
        self._lost: DeviceLostError | None = None
        self._plans: OrderedDict[tuple[int, ...], Plan] = OrderedDict()
        self._timing: list[Event] = []
        with context:
            self._engine = Engine(name, module, context, variant, info, model, settings)
            self._stream = self._engine.stream
            try:
                self._ready, self._done = Event(self._driver), Event(self._driver)
            except BaseException:
                self._engine.close()
                raise
        self._closed = False
        _open.add(self)

    def run(self, source: Frame, result: Frame) -> None:
        """Run the engine on each frame; see :class:`topcoat.runtime.backends.Session`.

        Raises:
            DeviceLostError: the GPU stopped working, now or in an earlier call.
        """

        def frames(plan: Plan) -> None:
            self._check_result(plan, source.shape, result.shape)
            for number in range(len(source)):
                self._run_frame(plan, source[number], result[number])

        with self._on_device():
            self._with_room(source.shape, frames)

    def timed_run(self, source: Frame, result: Frame) -> StageTimes:
        """Run the engine like :meth:`run`, with events between the stages.

        Returns:
            The times of all frames together.
        """
        times = _Times()

        def frames(plan: Plan) -> None:
            self._check_result(plan, source.shape, result.shape)
            times.reset()
            for given, made in zip(source, result, strict=True):
                self._run_frame(plan, given, made, times, self._timing)
                times.read(self._timing)

        began = time.perf_counter_ns()
        with self._on_device():
            while len(self._timing) < 4:
                self._timing.append(Event(self._driver, timing=True))
            self._with_room(source.shape, frames)
        wall = (time.perf_counter_ns() - began) / 1e6
        upload, compute, download = times.device
        return StageTimes(
            host_in=times.host_in,
            upload=upload,
            compute=compute,
            download=download,
            host_out=times.host_out,
            wall=wall,
        )

    def run_device(
        self,
        source: object,
        result: object,
        stream: int | None = None,
        *,
        padded: tuple[int, int] | None = None,
    ) -> None:
        """Run the engine on frames that are on the GPU; no byte of them passes through the host.

        Args:
            source: (H, W, C) or (N, H, W, C) uint8, C-contiguous, on this session's GPU, of any
                library that speaks DLPack or ``__cuda_array_interface__``.
            result: (H * scale, W * scale, C), or with N in front like ``source``; likewise, and
                writeable. It must not overlap ``source``.
            stream: handle of the CUDA stream on which ``source`` is made and ``result`` is used; 1
                is the legacy default stream and 2 the per-thread one. The work is ordered behind
                what is queued there now, and what is queued there later behind the work; the call
                returns at once, and both arrays must stay alive until the stream has got there.
                None: the arrays are asked what to wait for, as their protocols define it, and the
                call returns when ``result`` is done.
            padded: (height, width) of what the engine is given, at least those of ``source``: the
                last column and row are repeated, and the result is cropped, all on the GPU. None:
                frames go in as they are.

        Raises:
            FrameError: an array or the stream is not as described; nothing was written.
            FrameOutsideProfileError: the engine was not built for frames of this size.
            DeviceMemoryError: the GPU has too little free memory for it.
            DeviceLostError: the GPU stopped working, now or in an earlier call.
            BackendError: the engine failed; ``result`` then holds nothing useful.
        """
        check_stream(stream)
        with self._on_device():
            # With a stream, the caller says what is ready; without, the arrays are asked.
            user = self._stream.handle if stream is None else None
            given = device_array(source, user, "frame")
            made = device_array(result, user, "out")
            shape, result_shape = _batched(given, "frame"), _batched(made, "out")
            fitted = shape if padded is None else (shape[0], *padded, shape[3])
            if fitted[1] < shape[1] or fitted[2] < shape[2]:
                raise FrameError(f"frame has shape {given.shape}, which padding to {padded} cuts")
            self._check_device_arrays(given, made, fitted)

            def frames(plan: Plan) -> None:
                wanted = _cropped(plan, shape, fitted)
                if result_shape != wanted:
                    raise FrameError(
                        f"out has shape {made.shape}, wanted {wanted[-len(made.shape) :]}"
                    )
                for number in range(shape[0]):
                    self._run_device_frame(
                        plan,
                        given.pointer + number * math.prod(shape[1:]),
                        made.pointer + number * math.prod(wanted[1:]),
                        (shape[1], shape[2]),
                        (wanted[1], wanted[2]),
                        shape[0],
                    )

            for awaited in {stream, given.stream, made.stream}:
                if awaited is not None:
                    self._ready.record(awaited)
                    self._stream.wait(self._ready)
            self._with_room(fitted, frames)
            if stream is None:
                self._stream.synchronize()
            else:
                self._done.record(self._stream.handle)
                self._driver.call("cuStreamWaitEvent", stream, self._done.handle, 0)

    def pinned(self, shape: tuple[int, ...]) -> Frame:
        """Return a new array of uint8 that the GPU reads and writes by itself.

        Frames and results in such arrays are not copied on the host. The memory is freed with the
        last array that views it, which may be after ``close``; it is scarce, so make a few and use
        them again.

        Raises:
            DeviceMemoryError: the host has too little memory for it.
            DeviceLostError: the GPU stopped working in an earlier call.
        """
        with self._on_device():
            return np.asarray(PinnedArray(self._context, shape))

    def close(self) -> None:
        """Free everything on the GPU. Closing twice is fine, also after the GPU was lost."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            entered = False
            try:
                with self._context:
                    entered = True
                    if self._lost is None:
                        self._driver.attempt("cuStreamSynchronize", self._stream.handle)
                        self._engine.save_kernels()
                    self._free()
            except BackendError as error:  # a lost device cannot even be made current
                _log.debug("%s: closing: %s", self._name, error)
                if not entered:
                    self._free()
            self._context.close()

    def __del__(self) -> None:
        # A program that forgets close() must not keep the memory; at its end the driver frees it.
        if not sys.is_finalizing() and hasattr(self, "_closed"):
            self.close()

    # ---------------------------------------------------------------------------------- one frame

    def _run_frame(
        self,
        plan: Plan,
        source: Frame,
        result: Frame,
        times: _Times | None = None,
        events: list[Event] | None = None,
    ) -> None:
        """Run one frame of host memory and wait for its result."""
        call, stream, staging = self._driver.call, self._stream.handle, plan.staging
        given, made = staging.direct(self._context, source, result)
        began = time.perf_counter_ns()
        if not given:
            np.copyto(staging.source_view, source)
            given = staging.pinned_source.handle
        copied = time.perf_counter_ns()
        if events:
            events[0].record(stream)
        call("cuMemcpyHtoDAsync_v2", staging.source.handle, given, plan.source_bytes, stream)
        if events:
            events[1].record(stream)
        plan.enqueue(staging.source.handle, staging.result.handle)
        if events:
            events[2].record(stream)
        target = made or staging.pinned_result.handle
        call("cuMemcpyDtoHAsync_v2", target, staging.result.handle, plan.result_bytes, stream)
        if events:
            events[3].record(stream)
        self._stream.synchronize()
        done = time.perf_counter_ns()
        if not made:
            np.copyto(result, staging.result_view)
        if times is not None:
            times.host_in += (copied - began) / 1e6
            times.host_out += (time.perf_counter_ns() - done) / 1e6

    def _run_device_frame(
        self,
        plan: Plan,
        source: int,
        result: int,
        size: tuple[int, int],
        result_size: tuple[int, int],
        batch: int,
    ) -> None:
        """Queue one frame of the GPU's memory, of a batch of so many."""
        _, height, width, channels = plan.source_shape
        _, made_height, made_width, _ = plan.result_shape
        fits = size == (height, width)
        if fits and plan.takes(source, result, batch):
            plan.enqueue(source, result)
            return
        driver, stream, staging = self._driver, self._stream.handle, plan.staging
        given, made = staging.source.handle, staging.result.handle
        if fits:
            driver.call("cuMemcpyDtoDAsync_v2", given, source, plan.source_bytes, stream)
            plan.enqueue(given, made)
            driver.call("cuMemcpyDtoDAsync_v2", result, made, plan.result_bytes, stream)
            return
        pad_on_device(driver, source, size, given, (height, width), channels, stream)
        plan.enqueue(given, made)
        whole = (made_height, made_width)
        crop_on_device(driver, made, whole, result, result_size, channels, stream)

    def _check_device_arrays(
        self, source: DeviceArray, result: DeviceArray, shape: tuple[int, ...]
    ) -> None:
        check_apart(source, result)
        plan = self._plans.get(shape[1:])
        if plan is not None and plan.knows(source.pointer, result.pointer):
            return  # asking the driver costs more than comparing
        check_device(self._context, source, "frame")
        check_device(self._context, result, "out")

    # -------------------------------------------------------------------------------- frame sizes

    def _with_room(self, source: tuple[int, ...], frames: Callable[[Plan], None]) -> None:
        """Run frames; if the GPU's memory runs out, free what is kept and run them once more."""
        for attempt in (1, 2):
            try:
                plan = self._plan_for(source)
                frames(plan)
                break
            except DeviceMemoryError as error:
                if attempt == 2:
                    self._shrink(0)
                    raise self._out_of_memory(source, error) from error
            # Out here, where the error holds on to nothing of the first attempt any more.
            self._shrink(0)
        if plan.fresh:
            plan.fresh = False
            self._engine.save_kernels()

    def _plan_for(self, source: tuple[int, ...]) -> Plan:
        """Return what frames of this shape need, kept from earlier or made now."""
        key = source[1:]
        plan = self._plans.get(key)
        if plan is None:
            profile = self._engine.profile_for(source[1], source[2])
            self._shrink(self._settings.shapes_kept - 1)
            plan = Plan(self._engine, profile, (1, *key), use_graph=self._settings.use_graph)
            self._plans[key] = plan
        elif len(self._plans) > 1:
            self._plans.move_to_end(key)
        return plan

    def _check_result(self, plan: Plan, source: tuple[int, ...], result: tuple[int, ...]) -> None:
        if plan.result_shape[1:] != result[1:] or source[0] != result[0]:
            raise BackendError(
                f"{self._name} failed on a frame of shape {source}: the engine makes"
                f" {(source[0], *plan.result_shape[1:])} of it, not {result}; export the bundle"
                " again"
            )

    def _shrink(self, most: int) -> None:
        """Keep at most this many frame sizes, the last used."""
        if len(self._plans) > most:
            self._stream.synchronize()  # an earlier frame may still be running
        while len(self._plans) > most:
            self._plans.popitem(last=False)[1].close()

    def _out_of_memory(self, source: tuple[int, ...], error: BackendError) -> DeviceMemoryError:
        free, total = self._context.memory()
        return DeviceMemoryError(
            f"{self._name} has too little GPU memory for a frame of shape {source}, with"
            f" {free >> 20} of {total >> 20} MiB free: {error}"
        )

    # ------------------------------------------------------------------------------------- device

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        with self._lock:
            if self._lost is not None:
                raise DeviceLostError(str(self._lost)) from self._lost
            if self._closed:
                raise BackendError(f"{self._name}: this session was closed; open the bundle again")
            try:
                with self._context:
                    yield
            except DeviceLostError as error:
                self._lost = error
                raise

    def _free(self) -> None:
        while self._plans:
            self._plans.popitem()[1].close()
        for event in (self._ready, self._done, *self._timing):
            event.close()
        self._engine.close()


class _Times:
    """Sums over the frames of one run, in milliseconds."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.host_in = self.host_out = 0.0
        self.device = [0.0, 0.0, 0.0]

    def read(self, events: list[Event]) -> None:
        for i in range(3):
            self.device[i] += events[i + 1].milliseconds_since(events[i])


def _cropped(plan: Plan, source: tuple[int, ...], fitted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the results of frames that were padded from ``source`` to ``fitted``."""
    sides = (
        side * made // given
        for side, made, given in zip(source[1:3], plan.result_shape[1:3], fitted[1:3], strict=True)
    )
    return (source[0], *sides, plan.result_shape[3])


def _batched(array: DeviceArray, what: str) -> tuple[int, ...]:
    shape = array.shape if len(array.shape) == 4 else (1, *array.shape)
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise FrameError(f"{what} has shape {array.shape}, wanted (H, W, 3) or (N, H, W, 3)")
    return shape
