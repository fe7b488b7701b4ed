"""A CUDA driver without a GPU: C functions over host memory, with queues that really are queues.

Its functions are called through ctypes at C addresses, like those of the installed driver, and
declare their own types. Work is done when a stream is waited for, not when it is queued, so that a
missing synchronisation reads old bytes here, too. Wrong use that a real driver would answer with a
crash, or not at all, is kept in :attr:`FakeCuda.faults`.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter, deque
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char_p,
    c_float,
    c_int,
    c_size_t,
    c_uint,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
INVALID_CONTEXT = 201
NOT_MAPPED = 211
INVALID_GRAPHICS_CONTEXT = 219
INVALID_HANDLE = 400
NOT_READY = 600
ILLEGAL_ADDRESS = 700
LAUNCH_FAILED = 719
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901
UNKNOWN = 999

NAMES = {
    0: "CUDA_SUCCESS",
    1: "CUDA_ERROR_INVALID_VALUE",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    46: "CUDA_ERROR_DEVICE_UNAVAILABLE",
    100: "CUDA_ERROR_NO_DEVICE",
    201: "CUDA_ERROR_INVALID_CONTEXT",
    211: "CUDA_ERROR_NOT_MAPPED",
    219: "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT",
    400: "CUDA_ERROR_INVALID_HANDLE",
    600: "CUDA_ERROR_NOT_READY",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    719: "CUDA_ERROR_LAUNCH_FAILED",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    900: "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
    901: "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
    999: "CUDA_ERROR_UNKNOWN",
}
STICKY = {46, 700, 719, 999}
READ_ONLY, WRITE_DISCARD = 1, 2

_EXPORTED: dict[str, tuple[str, tuple[Any, ...]]] = {}


def exported(name: str, *types: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - ctypes' types
    """Mark a method as the C function of this name."""

    def mark(method: Any) -> Any:  # noqa: ANN401 - any of them
        _EXPORTED[name] = (method.__name__, types)
        return method

    return mark


class Memcpy2D(ctypes.Structure):
    """CUDA_MEMCPY2D, with the names of cuda.h."""

    _fields_ = (
        ("srcXInBytes", c_size_t),
        ("srcY", c_size_t),
        ("srcMemoryType", c_uint),
        ("srcHost", c_void_p),
        ("srcDevice", c_uint64),
        ("srcArray", c_void_p),
        ("srcPitch", c_size_t),
        ("dstXInBytes", c_size_t),
        ("dstY", c_size_t),
        ("dstMemoryType", c_uint),
        ("dstHost", c_void_p),
        ("dstDevice", c_uint64),
        ("dstArray", c_void_p),
        ("dstPitch", c_size_t),
        ("WidthInBytes", c_size_t),
        ("Height", c_size_t),
    )


class MisuseError(Exception):
    """Wrong use of the driver."""


class RefusalError(Exception):
    """A call is answered with a code."""

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass
class Allocation:
    array: Bytes
    address: int
    size: int
    on_device: bool
    ordinal: int = 0


@dataclass
class Mark:
    """One recording of an event."""

    stream: int
    done: bool = False
    time: float = 0.0


@dataclass
class FakeEvent:
    timing: bool
    mark: Mark | None = None


@dataclass
class FakeStream:
    queue: deque[Callable[[], None]] = field(default_factory=deque)
    recording: list[Callable[[], None]] | None = None
    invalidated: bool = False


@dataclass
class GlResource:
    """A buffer of OpenGL's that was registered."""

    name: int
    flags: int
    address: int = 0
    """Where it is mapped; 0: it is not."""


def _no_opengl(*_: object) -> Any:  # noqa: ANN401 - never returns
    raise MisuseError("there is no OpenGL on this driver")


class FakeCuda:
    """The driver's library and one GPU; pass it to :class:`Driver` as the library."""

    def __init__(
        self,
        *,
        devices: int = 1,
        version: int = 13000,
        capability: tuple[int, int] = (8, 9),
        name: str = "Fake RTX",
        memory: int = 1 << 30,
        init: int = SUCCESS,
        lacking: tuple[str, ...] = (),
    ) -> None:
        self.devices = devices
        self.version = version
        self.capability = capability
        self.name = name
        self.memory = memory
        self.init = init
        self.lacking = lacking
        self.calls: Counter[str] = Counter()
        self.faults: list[str] = []
        self.lost: int | None = None
        self.clock = 0.0
        """Milliseconds of the device; copies take 1 per million bytes."""
        self.allocations: dict[int, Allocation] = {}
        self.streams: dict[int, FakeStream] = {1: FakeStream(), 2: FakeStream()}
        self.events: dict[int, FakeEvent] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.gl_device: int | None = None
        """The number of the device that draws, if there is OpenGL on one."""
        self.gl_resources: dict[int, GlResource] = {}
        self.gl_read: Callable[[int], bytes] = _no_opengl
        """Returns the bytes of OpenGL's buffer of this name."""
        self.gl_write: Callable[[int, bytes], None] = _no_opengl
        self.retained = 0
        self.peak = 0
        self._started = False
        self._failures: dict[str, list[tuple[int, int]]] = {}
        self._contexts = threading.local()
        self._next = 0x1000
        self._callbacks: dict[str, Any] = {}

    # ------------------------------------------------------------------------- for tests

    def address(self, name: str) -> int | None:
        if name not in _EXPORTED or name in self.lacking:
            return None
        if name not in self._callbacks:
            method, types = _EXPORTED[name]
            prototype = CFUNCTYPE(c_int, *types)
            self._callbacks[name] = prototype(self._guarded(name, getattr(self, method)))
        address: int | None = ctypes.cast(self._callbacks[name], c_void_p).value
        return address

    def fail(self, name: str, code: int, after: int = 0) -> None:
        """Have the call of this name that follows ``after`` more good ones return a code."""
        self._failures.setdefault(name, []).append((self.calls[name] + after, code))

    def live(self) -> dict[str, int]:
        """Return how many of everything were made and not freed; only what there is of."""
        found = {
            "memory": sum(entry.on_device for entry in self.allocations.values()),
            "pinned": sum(not entry.on_device for entry in self.allocations.values()),
            "streams": len(self.streams) - 2,
            "events": len(self.events),
            "graphs": len(self.graphs),
            "executables": len(self.executables),
            "contexts": self.retained,
            "current": len(self.stack),
        }
        return {name: count for name, count in found.items() if count}

    @property
    def stack(self) -> list[int]:
        """The calling thread's current contexts."""
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        stack: list[int] = self._contexts.stack
        return stack

    @property
    def used(self) -> int:
        return sum(entry.size for entry in self.allocations.values() if entry.on_device)

    def allocate(self, size: int, *, on_device: bool = True, ordinal: int = 0) -> int:
        """Return the address of new memory, as an application would have it."""
        array = np.full(size + 512, 0xCD, np.uint8)  # what was never written is visible
        start = array.__array_interface__["data"][0]
        address = int(start + 511) // 512 * 512
        self.allocations[address] = Allocation(
            array[address - start : address - start + size], address, size, on_device, ordinal
        )
        self.peak = max(self.peak, self.used)
        return address

    def view(self, address: int, size: int) -> Bytes:
        """Return the bytes at an address; reaching outside of what is allocated is a fault."""
        entry = self._holding(address)
        if entry is None or address + size > entry.address + entry.size:
            raise MisuseError(f"{size} bytes at {address:#x} are not allocated")
        start = address - entry.address
        return entry.array[start : start + size]

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Queue work on a stream, or record it where a capture is going on."""
        queue = self._stream(stream)
        if queue.recording is not None:
            queue.recording.append(work)
        else:
            queue.queue.append(work)

    def synchronize(self, stream: int) -> None:
        """Do everything that is queued on a stream."""
        while self._stream(stream).queue:
            self._step(stream)

    # -------------------------------------------------------------------- starting, devices

    @exported("cuInit", c_uint)
    def cu_init(self, flags: int) -> None:
        if flags:
            raise RefusalError(INVALID_VALUE)
        if self.init:
            raise RefusalError(self.init)
        if not self.devices:
            raise RefusalError(NO_DEVICE)
        self._started = True

    @exported("cuDriverGetVersion", POINTER(c_int))
    def driver_get_version(self, version: Any) -> None:  # noqa: ANN401 - a ctypes pointer
        version[0] = self.version

    @exported("cuGetErrorName", c_int, POINTER(c_char_p))
    def get_error_name(self, code: int, text: Any) -> None:  # noqa: ANN401 - a ctypes pointer
        if code not in NAMES:
            text[0] = None
            raise RefusalError(INVALID_VALUE)
        text[0] = NAMES[code].encode()

    @exported("cuGetErrorString", c_int, POINTER(c_char_p))
    def get_error_string(self, code: int, text: Any) -> None:  # noqa: ANN401 - a ctypes pointer
        text[0] = f"description of {code}".encode()

    @exported("cuDeviceGetCount", POINTER(c_int))
    def device_get_count(self, count: Any) -> None:  # noqa: ANN401 - a ctypes pointer
        self._need_start()
        count[0] = self.devices

    @exported("cuDeviceGet", POINTER(c_int), c_int)
    def device_get(self, device: Any, ordinal: int) -> None:  # noqa: ANN401 - a ctypes pointer
        self._need_start()
        if not 0 <= ordinal < self.devices:
            raise RefusalError(101)
        device[0] = ordinal

    @exported("cuDeviceGetName", c_void_p, c_int, c_int)
    def device_get_name(self, text: int, length: int, device: int) -> None:
        data = self.name.encode()[: length - 1] + b"\0"
        ctypes.memmove(text, data, len(data))

    @exported("cuDeviceGetAttribute", POINTER(c_int), c_int, c_int)
    def device_get_attribute(self, value: Any, attribute: int, device: int) -> None:  # noqa: ANN401
        value[0] = self.capability[{75: 0, 76: 1}[attribute]]

    @exported("cuDeviceTotalMem_v2", POINTER(c_size_t), c_int)
    def device_total_mem(self, size: Any, device: int) -> None:  # noqa: ANN401 - a ctypes pointer
        size[0] = self.memory

    @exported("cuDevicePrimaryCtxRetain", POINTER(c_void_p), c_int)
    def primary_ctx_retain(self, context: Any, device: int) -> None:  # noqa: ANN401
        self._need_start()
        self.retained += 1
        context[0] = 0xC0

    @exported("cuDevicePrimaryCtxRelease_v2", c_int)
    def primary_ctx_release(self, device: int) -> None:
        if not self.retained:
            raise MisuseError("the primary context was released more often than retained")
        self.retained -= 1

    @exported("cuCtxPushCurrent_v2", c_void_p)
    def ctx_push(self, context: int | None) -> None:
        if context != 0xC0 or not self.retained:
            raise RefusalError(INVALID_CONTEXT)
        self.stack.append(context)

    @exported("cuCtxPopCurrent_v2", POINTER(c_void_p))
    def ctx_pop(self, context: Any) -> None:  # noqa: ANN401 - a ctypes pointer
        if not self.stack:
            raise RefusalError(INVALID_CONTEXT)
        context[0] = self.stack.pop()

    # ------------------------------------------------------------------------------ memory

    @exported("cuMemGetInfo_v2", POINTER(c_size_t), POINTER(c_size_t))
    def mem_get_info(self, free: Any, total: Any) -> None:  # noqa: ANN401 - ctypes pointers
        self._need_context()
        free[0], total[0] = self.memory - self.used, self.memory

    @exported("cuMemAlloc_v2", POINTER(c_uint64), c_size_t)
    def mem_alloc(self, address: Any, size: int) -> None:  # noqa: ANN401 - a ctypes pointer
        self._need_context()
        self._need_no_capture()
        if not size:
            raise RefusalError(INVALID_VALUE)
        if self.used + size > self.memory:
            raise RefusalError(OUT_OF_MEMORY)
        address[0] = self.allocate(size)

    @exported("cuMemFree_v2", c_uint64)
    def mem_free(self, address: int) -> None:
        self._free(address, on_device=True)

    @exported("cuMemHostAlloc", POINTER(c_void_p), c_size_t, c_uint)
    def mem_host_alloc(self, address: Any, size: int, flags: int) -> None:  # noqa: ANN401
        self._need_context()
        self._need_no_capture()
        address[0] = self.allocate(size, on_device=False)

    @exported("cuMemFreeHost", c_void_p)
    def mem_free_host(self, address: int) -> None:
        self._free(address, on_device=False)

    @exported("cuMemcpyHtoDAsync_v2", c_uint64, c_void_p, c_size_t, c_void_p)
    def copy_in(self, target: int, source: int, size: int, stream: int | None) -> None:
        self._need_context()
        if self._pinned(source):
            self.enqueue(stream or 1, lambda: self._copy(target, source, size))
            return
        data = ctypes.string_at(source, size)  # ordinary memory is read before the call returns
        self.enqueue(stream or 1, lambda: self._fill(target, data))

    @exported("cuMemcpyDtoHAsync_v2", c_void_p, c_uint64, c_size_t, c_void_p)
    def copy_out(self, target: int, source: int, size: int, stream: int | None) -> None:
        self._need_context()
        if self._pinned(target):
            self.enqueue(stream or 1, lambda: self._copy(target, source, size))
            return
        self.synchronize(stream or 1)
        ctypes.memmove(target, self.view(source, size).ctypes.data, size)

    @exported("cuMemcpyDtoDAsync_v2", c_uint64, c_uint64, c_size_t, c_void_p)
    def copy_within(self, target: int, source: int, size: int, stream: int | None) -> None:
        self._need_context()
        self.enqueue(stream or 1, lambda: self._copy(target, source, size))

    @exported("cuMemcpy2DAsync_v2", c_void_p, c_void_p)
    def copy_2d(self, description: int, stream: int | None) -> None:
        self._need_context()
        # The driver reads the description before the call returns.
        how = Memcpy2D.from_buffer_copy(ctypes.string_at(description, ctypes.sizeof(Memcpy2D)))
        if (how.srcMemoryType, how.dstMemoryType) != (2, 2) or how.WidthInBytes > min(
            how.srcPitch, how.dstPitch
        ):
            raise RefusalError(INVALID_VALUE)

        def work() -> None:
            for row in range(how.srcY, how.srcY + how.Height):
                source = how.srcDevice + row * how.srcPitch + how.srcXInBytes
                target = how.dstDevice + (row - how.srcY + how.dstY) * how.dstPitch
                self._copy(target + how.dstXInBytes, source, how.WidthInBytes)

        self.enqueue(stream or 1, work)

    @exported("cuPointerGetAttribute", c_void_p, c_int, c_uint64)
    def pointer_get_attribute(self, value: int, attribute: int, address: int) -> None:
        self._need_context()
        entry = self._holding(address)
        if entry is None:
            raise RefusalError(INVALID_VALUE)
        answer = {2: 2 if entry.on_device else 1, 9: entry.ordinal}[attribute]
        c_uint.from_address(value).value = answer

    # ------------------------------------------------------------------------------ OpenGL

    @exported("cuGLGetDevices_v2", POINTER(c_uint), POINTER(c_int), c_uint, c_uint)
    def gl_get_devices(self, count: Any, devices: Any, most: int, which: int) -> None:  # noqa: ANN401
        self._need_context()
        if self.gl_device is None:
            raise RefusalError(INVALID_GRAPHICS_CONTEXT)
        if which != 1 or not most:
            raise RefusalError(INVALID_VALUE)
        count[0], devices[0] = 1, self.gl_device

    @exported("cuGraphicsGLRegisterBuffer", POINTER(c_void_p), c_uint, c_uint)
    def gl_register(self, resource: Any, name: int, flags: int) -> None:  # noqa: ANN401
        self._need_context()
        handle = self._new_handle()
        self.gl_resources[handle] = GlResource(name, flags)
        resource[0] = handle

    @exported("cuGraphicsUnregisterResource", c_void_p)
    def gl_unregister(self, resource: int) -> None:
        if self.gl_resources.pop(resource).address:
            raise MisuseError("a mapped resource was unregistered")

    @exported("cuGraphicsMapResources", c_uint, POINTER(c_void_p), c_void_p)
    def gl_map(self, count: int, resources: Any, stream: int | None) -> None:  # noqa: ANN401
        self._need_context()
        for number in range(count):
            entry = self.gl_resources[resources[number]]
            if entry.address:
                raise MisuseError("a resource was mapped twice")
            data = self.gl_read(entry.name)
            entry.address = self.allocate(len(data))
            if entry.flags != WRITE_DISCARD:
                self.view(entry.address, len(data))[:] = np.frombuffer(data, np.uint8)

    @exported(
        "cuGraphicsResourceGetMappedPointer_v2", POINTER(c_uint64), POINTER(c_size_t), c_void_p
    )
    def gl_pointer(self, pointer: Any, size: Any, resource: int) -> None:  # noqa: ANN401
        self._need_context()
        entry = self.gl_resources[resource]
        if not entry.address:
            raise RefusalError(NOT_MAPPED)
        pointer[0], size[0] = entry.address, self.allocations[entry.address].size

    @exported("cuGraphicsUnmapResources", c_uint, POINTER(c_void_p), c_void_p)
    def gl_unmap(self, count: int, resources: Any, stream: int | None) -> None:  # noqa: ANN401
        """What OpenGL is told afterwards comes after what is queued on the stream."""
        self._need_context()
        self.synchronize(stream or 1)
        for number in range(count):
            entry = self.gl_resources[resources[number]]
            address, entry.address = entry.address, 0
            allocation = self.allocations.pop(address)
            if entry.flags != READ_ONLY:
                self.gl_write(entry.name, allocation.array.tobytes())

    # --------------------------------------------------------------------- streams, events

    @exported("cuStreamCreate", POINTER(c_void_p), c_uint)
    def stream_create(self, stream: Any, flags: int) -> None:  # noqa: ANN401 - a ctypes pointer
        self._need_context()
        stream[0] = self._new_handle()
        self.streams[stream[0]] = FakeStream()

    @exported("cuStreamDestroy_v2", c_void_p)
    def stream_destroy(self, stream: int) -> None:
        self.synchronize(stream)
        del self.streams[stream]

    @exported("cuStreamSynchronize", c_void_p)
    def stream_synchronize(self, stream: int | None) -> None:
        self._need_context()
        queue = self._stream(stream or 1)
        if queue.recording is not None:
            queue.invalidated = True
            raise RefusalError(CAPTURE_UNSUPPORTED)
        self.synchronize(stream or 1)

    @exported("cuStreamWaitEvent", c_void_p, c_void_p, c_uint)
    def stream_wait_event(self, stream: int | None, event: int, flags: int) -> None:
        mark = self._event(event).mark
        if mark is not None:
            awaited = mark

            def wait() -> None:
                while not awaited.done:
                    self._step(awaited.stream)

            self.enqueue(stream or 1, wait)

    @exported("cuStreamBeginCapture_v2", c_void_p, c_int)
    def begin_capture(self, stream: int, mode: int) -> None:
        self._need_context()
        queue = self._stream(stream)
        if queue.recording is not None or stream == 1:
            raise RefusalError(CAPTURE_UNSUPPORTED)
        queue.recording, queue.invalidated = [], False

    @exported("cuStreamEndCapture", c_void_p, POINTER(c_void_p))
    def end_capture(self, stream: int, graph: Any) -> None:  # noqa: ANN401 - a ctypes pointer
        queue = self._stream(stream)
        if queue.recording is None:
            raise RefusalError(INVALID_VALUE)
        recorded, queue.recording = queue.recording, None
        if queue.invalidated:
            graph[0] = None
            raise RefusalError(CAPTURE_INVALIDATED)
        graph[0] = self._new_handle()
        self.graphs[graph[0]] = recorded

    @exported("cuGraphInstantiateWithFlags", POINTER(c_void_p), c_void_p, c_uint64)
    def graph_instantiate(self, executable: Any, graph: int, flags: int) -> None:  # noqa: ANN401
        executable[0] = self._new_handle()
        self.executables[executable[0]] = list(self.graphs[graph])

    @exported("cuGraphLaunch", c_void_p, c_void_p)
    def graph_launch(self, executable: int, stream: int) -> None:
        self._need_context()
        for work in self.executables[executable]:
            self.enqueue(stream, work)

    @exported("cuGraphExecDestroy", c_void_p)
    def graph_exec_destroy(self, executable: int) -> None:
        del self.executables[executable]

    @exported("cuGraphDestroy", c_void_p)
    def graph_destroy(self, graph: int) -> None:
        del self.graphs[graph]

    @exported("cuEventCreate", POINTER(c_void_p), c_uint)
    def event_create(self, event: Any, flags: int) -> None:  # noqa: ANN401 - a ctypes pointer
        self._need_context()
        event[0] = self._new_handle()
        self.events[event[0]] = FakeEvent(timing=not flags & 2)

    @exported("cuEventRecord", c_void_p, c_void_p)
    def event_record(self, event: int, stream: int | None) -> None:
        mark = Mark(stream or 1)
        self._event(event).mark = mark

        def pass_by() -> None:
            mark.done, mark.time = True, self.clock

        self.enqueue(stream or 1, pass_by)

    @exported("cuEventQuery", c_void_p)
    def event_query(self, event: int) -> None:
        mark = self._event(event).mark
        if mark is not None and not mark.done:
            raise RefusalError(NOT_READY)

    @exported("cuEventSynchronize", c_void_p)
    def event_synchronize(self, event: int) -> None:
        mark = self._event(event).mark
        while mark is not None and not mark.done:
            self._step(mark.stream)

    @exported("cuEventElapsedTime", POINTER(c_float), c_void_p, c_void_p)
    def event_elapsed_time(self, milliseconds: Any, start: int, end: int) -> None:  # noqa: ANN401
        first, last = self._event(start), self._event(end)
        if not (first.timing and last.timing and first.mark and last.mark):
            raise RefusalError(INVALID_HANDLE)
        if not (first.mark.done and last.mark.done):
            raise RefusalError(NOT_READY)
        milliseconds[0] = last.mark.time - first.mark.time

    @exported("cuEventDestroy_v2", c_void_p)
    def event_destroy(self, event: int) -> None:
        del self.events[event]

    # ----------------------------------------------------------------------------- inside

    def _guarded(self, name: str, method: Callable[..., None]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:  # noqa: ANN401 - of every function
            number = self.calls[name]
            self.calls[name] += 1
            if self.lost is not None and not name.startswith("cuGetError"):
                if name == "cuCtxPopCurrent_v2" and self.stack:
                    self.stack.pop()
                return self.lost
            for entry in self._failures.get(name, []):
                if entry[0] == number:
                    self.lost = entry[1] if entry[1] in STICKY else None
                    return entry[1]
            try:
                method(*arguments)
            except RefusalError as refusal:
                return refusal.code
            except Exception as error:
                self.faults.append(f"{name}: {error!r}")
                return UNKNOWN
            return SUCCESS

        return call

    def _new_handle(self) -> int:
        self._next += 16
        return self._next

    def _need_start(self) -> None:
        if not self._started:
            raise RefusalError(NOT_INITIALIZED)

    def _need_context(self) -> None:
        if not self.stack:
            raise RefusalError(INVALID_CONTEXT)

    def _need_no_capture(self) -> None:
        for queue in list(self.streams.values()):
            if queue.recording is not None:
                queue.invalidated = True
                raise RefusalError(CAPTURE_UNSUPPORTED)

    def _stream(self, handle: int) -> FakeStream:
        if handle not in self.streams:
            raise RefusalError(INVALID_HANDLE)
        return self.streams[handle]

    def _event(self, handle: int) -> FakeEvent:
        if handle not in self.events:
            raise RefusalError(INVALID_HANDLE)
        return self.events[handle]

    def _step(self, stream: int) -> None:
        self._stream(stream).queue.popleft()()

    def _holding(self, address: int) -> Allocation | None:
        for entry in list(self.allocations.values()):  # other threads allocate meanwhile
            if entry.address <= address < entry.address + entry.size:
                return entry
        return None

    def _pinned(self, address: int) -> bool:
        entry = self._holding(address)
        return entry is not None and not entry.on_device

    def _copy(self, target: int, source: int, size: int) -> None:
        np.copyto(self.view(target, size), self.view(source, size))
        self.clock += size / 1e6

    def _fill(self, target: int, data: bytes) -> None:
        np.copyto(self.view(target, len(data)), np.frombuffer(data, np.uint8))
        self.clock += len(data) / 1e6

    def _free(self, address: int, *, on_device: bool) -> None:
        self._need_context()
        entry = self.allocations.get(address)
        if entry is None or entry.on_device is not on_device:
            raise MisuseError(f"{address:#x} was freed twice, or was never allocated there")
        del self.allocations[address]
