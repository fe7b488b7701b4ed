"""What one engine takes for a frame on a GPU, by the device's clock and by the host's."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topcoat.runtime import BackendError, Frame, Manifest, Model, Variant
from topcoat.runtime.backends import Compute
from topcoat.runtime.backends._cuda import Context, Device, DeviceMemory, Driver, Event, Stream
from topcoat.runtime.backends._trt_engine import Specialisation
from topcoat.runtime.backends.tensorrt import EngineSettings, TensorRt, TensorRtSession
from topcoat.runtime.bundle import read_model
from topcoat.runtime.parity import Engine
from topcoat.runtime.parity._measure import open_engine

WARM_UP = 10
LEAST, MOST = 30, 1000
"""Frames per figure."""
IN_FLIGHT = 20
"""Frames that are queued before the first is waited for, to time the device without the host."""

SPECIALISATION: Specialisation = "eager"
"""Kernels are compiled for a size before its first frame: nothing slower is measured in between."""

Seconds = float


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 of some times, in the unit in which they came, and their number."""
    p50, p95, p99 = (float(v) for v in np.percentile(values, (50, 95, 99)))
    return {"p50": p50, "p95": p95, "p99": p99, "frames": len(values)}


def repeat(call: Callable[[], float], seconds: Seconds) -> list[float]:
    """Call something that returns its own time in ms, after a warm-up, for about some seconds."""
    for _ in range(WARM_UP):
        typical = call()
    count = int(min(max(seconds * 1e3 / max(typical, 1e-3), LEAST), MOST))
    return [call() for _ in range(count)]


def clocked(call: Callable[[], object]) -> float:
    """Return how many milliseconds a call took on the host's clock."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


def frame_of(height: int, width: int) -> Frame:
    """Return a frame that looks like a picture to the arithmetic: smooth, with grain.

    What a kernel is given decides what the device's power allows: zeros run faster than pictures.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [127 + 80 * np.sin(x / (60 + 9 * c)) * np.cos(y / (45 + 7 * c)) for c in range(3)]
    grain = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    frame: Frame = (np.stack(planes, axis=-1) + grain).clip(0, 255).astype(np.uint8)
    return frame


class DeviceFrames:
    """A frame and the place of its result in the GPU's memory, as another library would have them.

    They are handed over by ``__cuda_array_interface__``, and freed with :meth:`close`.
    """

    def __init__(self, context: Context, source: Frame, result: tuple[int, ...]) -> None:
        self._context = context
        with context:
            self._memory = [DeviceMemory(context.driver, source.size)]
            try:
                self._memory.append(DeviceMemory(context.driver, int(np.prod(result))))
                stream = Stream(context.driver)
                try:
                    context.driver.call(
                        "cuMemcpyHtoDAsync_v2",
                        self._memory[0].handle,
                        source.ctypes.data_as(ctypes.c_void_p),
                        source.size,
                        stream.handle,
                    )
                    stream.synchronize()
                finally:
                    stream.close()
            except BaseException:
                self.close()
                raise
        self.source = _Interface(self._memory[0].handle, source.shape)
        self.result = _Interface(self._memory[1].handle, result)

    def close(self) -> None:
        """Free both."""
        with self._context:
            while self._memory:
                self._memory.pop().close()


class _Interface:
    """An array on a GPU, as far as the protocol shows it."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def measure_engine(
    name: str,
    manifest: Manifest,
    variant: Variant,
    size: tuple[int, int],
    *,
    driver: Driver,
    device: Device,
    cache: Path,
    seconds: Seconds,
    make: Callable[[EngineSettings], TensorRt] | None = None,
) -> dict[str, Any]:
    """Measure a built engine at one frame size, as programs call it: with CUDA graphs and without.

    Args:
        name: "tensorrt-rtx" or "tensorrt".
        manifest: of the bundle.
        variant: the engine.
        size: (height, width) of the frame that goes in.
        driver: NVIDIA's.
        device: the GPU.
        cache: an empty folder for compiled kernels, so that the first frame pays for compiling.
        seconds: for each figure.
        make: makes the backend; None makes the installed one.

    Raises:
        BackendError: the engine cannot run here, or not frames of this size.
    """
    make = make or (lambda settings: TensorRt(name, settings=settings))
    source = frame_of(*size)
    result = np.empty((size[0] * manifest.scale, size[1] * manifest.scale, 3), np.uint8)
    engine = Engine(
        file=variant.file,
        precision=variant.precision,
        backend=name,
        compute=variant.precision,
        required=False,
    )
    row: dict[str, Any] = {}
    pictures = {}
    context = Context(driver, device)
    try:
        for graph in (True, False):
            with context:
                free = context.memory()[0]
            settings = EngineSettings(
                use_graph=graph, specialisation=SPECIALISATION, cache_folder=cache
            )
            backend = _Keeper(make(settings))
            began = time.perf_counter_ns()
            model = open_engine(manifest, engine, [backend])
            loaded = (time.perf_counter_ns() - began) / 1e6
            with model:
                first = clocked(lambda m=model: m.process(source, result))  # type: ignore[misc]
                session = backend.session
                assert session is not None
                found = _measure_model(model, session, context, source, result, seconds)
                with context:
                    found["device_bytes"] = free - context.memory()[0]
            pictures[graph] = result.copy()
            if graph:
                row |= {"load_ms": loaded, "first_frame_ms": first}
            else:  # what was compiled the first time is in the cache now
                row |= {"load_again_ms": loaded, "first_frame_again_ms": first}
            row["graph" if graph else "no_graph"] = found
    finally:
        context.close()
    if not np.array_equal(pictures[True], pictures[False]):
        raise BackendError(
            f"{name} makes other pictures of {variant.file} with CUDA graphs than without; report"
            " this"
        )
    return row


class _Keeper:
    """A backend that keeps the session that it loaded, whose stages a model does not show."""

    def __init__(self, backend: TensorRt) -> None:
        self._backend = backend
        self.session: TensorRtSession | None = None

    @property
    def name(self) -> str:
        return self._backend.name

    def missing(self) -> str | None:
        return self._backend.missing()

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        return self._backend.computes(variant)

    def version(self) -> str:
        return self._backend.version()

    def start(self) -> None:
        self._backend.start()

    def load(
        self, variant: Variant, model: bytes, *, compute: str, threads: int
    ) -> TensorRtSession:
        self.session = self._backend.load(variant, model, compute=compute, threads=threads)
        return self.session


def _measure_model(
    model: Model,
    session: TensorRtSession,
    context: Context,
    source: Frame,
    result: Frame,
    seconds: Seconds,
) -> dict[str, Any]:
    """Measure frames of host memory stage by stage, then frames that stay on the GPU."""
    times = []

    def timed() -> float:
        times.append(session.timed_run(source[None], result[None]))
        return times[-1].wall

    repeat(timed, seconds)
    times = times[WARM_UP:]
    stages = ("host_in", "upload", "compute", "download", "host_out", "wall", "overhead")
    found: dict[str, Any] = {
        "stages_ms": {
            stage: percentiles([getattr(entry, stage) for entry in times]) for stage in stages
        },
        "host_frames_ms": percentiles(
            repeat(lambda: clocked(lambda: model.process(source, result)), seconds)
        ),
    }
    found["host_frames_overhead_us"] = found["stages_ms"]["overhead"]["p50"] * 1e3
    found["pinned_frames_ms"] = percentiles(_pinned_times(model, session, source, result, seconds))
    frames = DeviceFrames(context, source, result.shape)
    try:
        found |= _measure_device_frames(model, context, frames, seconds)
    finally:
        frames.close()
    return found


def _pinned_times(
    model: Model, session: TensorRtSession, source: Frame, result: Frame, seconds: Seconds
) -> list[float]:
    """Measure frames in host memory that the GPU reads by itself, as an application may hold them.

    The arrays are freed with this call, while the session still is.
    """
    frame, place = session.pinned(source.shape), session.pinned(result.shape)
    frame[...] = source
    return repeat(lambda: clocked(lambda: model.process(frame, place)), seconds)


def _measure_device_frames(
    model: Model, context: Context, frames: DeviceFrames, seconds: Seconds
) -> dict[str, Any]:
    """Measure frames on the GPU: one that is waited for, and many in a row.

    Queued in a row, the device is never without work, so their time by its clock is the device's
    alone; what one frame takes longer by the host's clock is what the host adds to it.
    """
    one = repeat(
        lambda: clocked(lambda: model.process_device(frames.source, frames.result)), seconds
    )
    submits: list[float] = []
    per_frame: list[float] = []
    with context:
        stream = Stream(context.driver)
        before, after = (Event(context.driver, timing=True) for _ in range(2))

    def batch() -> float:
        with context:
            before.record(stream.handle)
        for _ in range(IN_FLIGHT):
            submits.append(
                clocked(lambda: model.process_device(frames.source, frames.result, stream.handle))
            )
        with context:
            after.record(stream.handle)
            stream.synchronize()
            per_frame.append(after.milliseconds_since(before) / IN_FLIGHT)
        return per_frame[-1]

    try:
        batch()
        submits.clear()
        per_frame.clear()
        began = time.perf_counter()
        while len(per_frame) < 3 or (
            time.perf_counter() - began < seconds and len(per_frame) * IN_FLIGHT < MOST
        ):
            batch()
    finally:
        with context:
            stream.synchronize()
            for owned in (before, after, stream):
                owned.close()
    device = statistics.median(per_frame)
    return {
        "device_frames_ms": percentiles(one),
        "device_ms": device,
        "device_batches": {"frames_each": IN_FLIGHT, "batches": len(per_frame)},
        "submit_us": {
            k: v * (1 if k == "frames" else 1e3) for k, v in percentiles(submits).items()
        },
        # A queue that the host cannot fill runs dry; the device's time then holds the host's.
        "host_bound": statistics.median(submits) > 0.9 * device,
        "device_frames_overhead_us": (statistics.median(one) - device) * 1e3,
    }


def measure_onnxruntime(
    manifest: Manifest, variant: Variant, size: tuple[int, int], *, seconds: Seconds
) -> dict[str, Any]:
    """Measure the runtime's ONNX Runtime CUDA backend, and the provider used bare on device arrays.

    Raises:
        BackendError: the backend cannot work here, or refuses the model.
    """
    from topcoat.runtime.backends.onnxruntime import import_onnxruntime
    from topcoat.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda

    backend = OnnxRuntimeCuda()
    backend.start()
    source = frame_of(*size)[None]
    result = np.empty((1, size[0] * manifest.scale, size[1] * manifest.scale, 3), np.uint8)
    model = read_model(manifest, variant)
    began = time.perf_counter_ns()
    session = backend.load(variant, model, compute=variant.precision, threads=1)
    loaded = (time.perf_counter_ns() - began) / 1e6
    try:
        first = clocked(lambda: session.run(source, result))
        walls = repeat(lambda: clocked(lambda: session.run(source, result)), seconds)
    finally:
        session.close()
    row: dict[str, Any] = {
        "load_ms": loaded,
        "first_frame_ms": first,
        "host_frames_ms": percentiles(walls),
    }
    ort = import_onnxruntime()
    ways: dict[str, dict[str, str]] = {"bare": {}}
    if variant.precision == "fp16":  # what a user would ship; each way searches for kernels anew
        ways |= {"bare_nhwc": {"prefer_nhwc": "1"}, "bare_graph": {"enable_cuda_graph": "1"}}
    for name, options in ways.items():
        try:
            row[name] = _bare_onnxruntime(ort, model, variant, source, result, options, seconds)
        except Exception as error:  # its exceptions share no base; the other ways still count
            row[name] = {"failed": " ".join(str(error).split())[:300]}
    return row


def _bare_onnxruntime(
    ort: Any,  # noqa: ANN401 - the package has no types
    model: bytes,
    variant: Variant,
    source: Frame,
    result: Frame,
    options: dict[str, str],
    seconds: Seconds,
) -> dict[str, Any]:
    """Measure a session of the provider's own, bound to arrays on the GPU once."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    given = {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0", **options}
    session = ort.InferenceSession(model, settings, providers=[("CUDAExecutionProvider", given)])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise BackendError("ONNX Runtime gave the model to its CPU")
    binding = session.io_binding()
    frame = ort.OrtValue.ortvalue_from_numpy(source, "cuda", 0)
    place = ort.OrtValue.ortvalue_from_shape_and_type(list(result.shape), np.uint8, "cuda", 0)
    binding.bind_ortvalue_input(variant.input.name, frame)
    binding.bind_ortvalue_output(variant.output.name, place)

    def run() -> None:
        session.run_with_iobinding(binding)  # returns when the provider's stream is done
        binding.synchronize_outputs()

    first = clocked(run)
    return {
        "first_frame_ms": first,
        "device_frames_ms": percentiles(repeat(lambda: clocked(run), seconds)),
    }
