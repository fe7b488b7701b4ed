"""NVIDIA's driver through ctypes: probe it, and own memory, streams, events and graphs on it.

Only the driver library is used (libcuda.so.1, nvcuda.dll), which every NVIDIA driver installs: the
few dozen calls that a frame needs are no reason to make users install a CUDA toolkit or a binding.
Nothing here is loaded before :func:`probe` or :func:`installed_driver` is called.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from topcoat.runtime._errors import (
    BackendError,
    BackendUnavailableError,
    DeviceLostError,
    DeviceMemoryError,
)

LEGACY_STREAM = 1
"""Handle of the stream that synchronises with all others; both array protocols call it 1."""
PER_THREAD_STREAM = 2

_OUT_OF_MEMORY = 2
_NOT_INITIALIZED = 3
_DEVICE_UNAVAILABLE = 46
_NO_DEVICE = 100
_NOT_READY = 600
# After one of these the driver answers every call of the process with an error.
_STICKY = frozenset({4, 46, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999})

_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1  # calls of the host application's other threads do not end a capture
_EVENT_DEFAULT, _EVENT_DISABLE_TIMING = 0, 2
_POINTER_MEMORY_TYPE, _POINTER_DEVICE_ORDINAL = 2, 9
_MEMORY_HOST, _MEMORY_DEVICE, _MEMORY_UNIFIED = 1, 2, 4
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 75, 76

_handle = POINTER(c_void_p)
# Names as the library exports them: cuda.h maps the plain names to these.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (_handle, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (_handle,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_handle, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemcpy2DAsync_v2": (c_void_p, c_void_p),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuStreamCreate": (_handle, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _handle),
    "cuGraphInstantiateWithFlags": (_handle, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuEventCreate": (_handle, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
}

_log = logging.getLogger("topcoat.runtime")


class Library(Protocol):
    """Where the driver's functions are: the installed library, or a stand-in in tests."""

    def address(self, name: str) -> int | None:
        """Return the address of an exported function, or None if there is none of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU and the driver that runs it."""

    ordinal: int
    """Its number among the devices that CUDA_VISIBLE_DEVICES leaves to this process."""
    name: str
    sm: str
    """Its generation, e.g. "sm89" for compute capability 8.9."""
    memory: int
    """Bytes of device memory."""
    cuda: tuple[int, int]
    """The newest version of CUDA that the driver supports, e.g. (13, 0)."""
    driver: str | None
    """Version of the driver itself, e.g. "580.95.05"; None where the system does not tell."""

    @property
    def driver_family(self) -> str | None:
        """The driver's major version, e.g. "580", or None like ``driver``."""
        return None if self.driver is None else self.driver.split(".", 1)[0]


class Driver:
    """The driver's functions with their types, and their failures as errors.

    Args:
        library: where they are.
        driver_version: returns the version of the kernel's driver, or None.

    Raises:
        BackendUnavailableError: the driver lacks one of them, so it is too old.
    """

    def __init__(
        self, library: Library, driver_version: Callable[[], str | None] | None = None
    ) -> None:
        self._library = library
        self._driver_version = driver_version or installed_driver_version
        self._functions: dict[str, Callable[..., int]] = {}
        for name, arguments in _SIGNATURES.items():
            address = library.address(name)
            if address is None:
                raise BackendUnavailableError(
                    f"the NVIDIA driver is too old: it has no {name}; install a newer driver"
                )
            self._functions[name] = ctypes.CFUNCTYPE(c_int, *arguments)(address)
        self._found: Device | str | None = None

    def add(self, signatures: dict[str, tuple[Any, ...]]) -> str | None:
        """Make further functions callable; return the first that the driver lacks, or None."""
        for name, arguments in signatures.items():
            if name not in self._functions:
                address = self._library.address(name)
                if address is None:
                    return name
                self._functions[name] = ctypes.CFUNCTYPE(c_int, *arguments)(address)
        return None

    def call(self, name: str, *arguments: object) -> None:
        """Call a driver function.

        Raises:
            DeviceMemoryError: the device has too little free memory.
            DeviceLostError: the device stopped working; nothing works in this process any more.
            BackendError: the driver refused the call.
        """
        code = self._functions[name](*arguments)
        if code:
            raise self.error(code, name)

    def attempt(self, name: str, *arguments: object) -> int:
        """Call a driver function and return its code: for freeing, where nobody can do more."""
        return self._functions[name](*arguments)

    def error(self, code: int, name: str) -> BackendError:
        """Return the error that a code other than 0 stands for."""
        what = f"{name} failed with {self.describe(code)}"
        if code == _OUT_OF_MEMORY:
            return DeviceMemoryError(
                f"the GPU is out of memory ({what}); close other programs that use it, or run"
                " smaller frames or tiles"
            )
        if code in _STICKY:
            return DeviceLostError(
                f"the GPU stopped working ({what}); restart the program, and the machine if it"
                " happens again"
            )
        advice = "report this"
        if code == _NOT_INITIALIZED:
            advice = "open the bundle after the process was forked, or start processes with 'spawn'"
        return BackendError(f"the NVIDIA driver refused a call ({what}); {advice}")

    def describe(self, code: int) -> str:
        """Return a code's name, e.g. "CUDA_ERROR_INVALID_VALUE"."""
        text = c_char_p()
        self._functions["cuGetErrorName"](code, byref(text))
        return text.value.decode() if text.value else f"error {code}"

    def probe(self) -> Device | str:
        """Return the first device, or why there is none; asked once, then remembered."""
        if self._found is None:
            self._found = self._probe()
        return self._found

    def _probe(self) -> Device | str:
        code = self.attempt("cuInit", 0)
        if code == _NO_DEVICE:
            return (
                "the NVIDIA driver sees no GPU; check CUDA_VISIBLE_DEVICES, and that a container"
                " was started with access to the GPU"
            )
        if code:
            return (
                f"the NVIDIA driver did not start ({self.describe(code)}); install the driver anew"
                " or restart the machine, as after an update of the driver"
            )
        count, handle, number, memory = c_int(), c_int(), c_int(), c_size_t()
        name = ctypes.create_string_buffer(256)
        try:
            self.call("cuDriverGetVersion", byref(number))
            cuda = (number.value // 1000, number.value % 1000 // 10)
            self.call("cuDeviceGetCount", byref(count))
            if count.value < 1:
                return "the NVIDIA driver sees no GPU; check CUDA_VISIBLE_DEVICES"
            self.call("cuDeviceGet", byref(handle), 0)
            self.call("cuDeviceGetName", name, len(name), handle)
            self.call("cuDeviceTotalMem_v2", byref(memory), handle)
            self.call("cuDeviceGetAttribute", byref(number), _ATTRIBUTE_MAJOR, handle)
            sm = f"sm{number.value}"
            self.call("cuDeviceGetAttribute", byref(number), _ATTRIBUTE_MINOR, handle)
            sm += str(number.value)
        except BackendError as error:
            return f"the GPU cannot be asked what it is: {error}"
        return Device(
            ordinal=handle.value,
            name=name.value.decode(errors="replace"),
            sm=sm,
            memory=memory.value,
            cuda=cuda,
            driver=self._driver_version(),
        )


def probe(
    driver: Callable[[], Driver] | None = None, *, least: tuple[int, int] = (12, 0)
) -> Device | str:
    """Return the GPU that frames would run on, or one sentence why there is none.

    Never raises. Costs a failed look-up where no driver is installed, and starts the driver (about
    as long as any CUDA program takes to start) where one is; the answer is remembered.

    Args:
        driver: returns the driver; None takes the installed one.
        least: the oldest version of CUDA that the driver must support.
    """
    try:
        found = (driver or installed_driver)().probe()
    except BackendUnavailableError as error:
        return str(error)
    if isinstance(found, Device) and found.cuda < least:
        return (
            f"the NVIDIA driver is too old: it supports CUDA {_dotted(found.cuda)}, wanted at"
            f" least {_dotted(least)}; install a newer driver"
        )
    return found


@functools.cache
def installed_driver() -> Driver:
    """Return the driver of this machine; the same one for everybody.

    Raises:
        BackendUnavailableError: there is none, or it is too old.
    """
    return Driver(_SharedLibrary.open())


class _SharedLibrary:
    """The driver's library as the system's loader finds it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @classmethod
    def open(cls) -> _SharedLibrary:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            return cls(ctypes.CDLL(name))
        except OSError as error:
            # A missing file and one that cannot be loaded are told apart by the text alone.
            absent = "No such file" in str(error) or "Could not find" in str(error)
            what = f"{name} is missing" if absent else f"{name}: {error}"
            raise BackendUnavailableError(
                f"no NVIDIA driver was found ({what}); install NVIDIA's driver, or start the"
                " container with access to the GPU"
            ) from error

    def address(self, name: str) -> int | None:
        function = getattr(self._library, name, None)
        return None if function is None else ctypes.cast(function, c_void_p).value


# ------------------------------------------------------------------------------------------ owners


class Context:
    """The device's primary context, which every CUDA library in the process shares.

    It is current inside ``with`` only: a host application that drives the GPU itself finds its own
    context as it left it. May be entered again while entered.

    Raises:
        BackendError: the driver cannot make it.
    """

    def __init__(self, driver: Driver, device: Device) -> None:
        self.driver = driver
        self.device = device
        handle = c_void_p()
        code = driver.attempt("cuDevicePrimaryCtxRetain", byref(handle), device.ordinal)
        if code == _DEVICE_UNAVAILABLE:
            raise BackendError(
                f"the {device.name} cannot be used now ({driver.describe(code)}); another program"
                " may hold it for itself: close that, or set its compute mode to default"
            )
        if code:
            raise driver.error(code, "cuDevicePrimaryCtxRetain")
        self._handle: c_void_p | None = handle
        self._popped = byref(c_void_p())

    def __enter__(self) -> Self:
        self.driver.call("cuCtxPushCurrent_v2", self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.driver.attempt("cuCtxPopCurrent_v2", self._popped)

    def memory(self) -> tuple[int, int]:
        """Return how many bytes of device memory are free, and how many there are."""
        free, total = c_size_t(), c_size_t()
        self.driver.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def pointer_device(self, address: int) -> int | None:
        """Return the ordinal of the device whose memory an address is in; None: no device's."""
        if self._pointer(address, _POINTER_MEMORY_TYPE) not in {_MEMORY_DEVICE, _MEMORY_UNIFIED}:
            return None
        return self._pointer(address, _POINTER_DEVICE_ORDINAL)

    def is_pinned(self, address: int) -> bool:
        """Return whether an address is host memory that the device reads and writes itself."""
        return self._pointer(address, _POINTER_MEMORY_TYPE) == _MEMORY_HOST

    def _pointer(self, address: int, attribute: int) -> int | None:
        value = c_uint(0)
        # The driver refuses addresses that it does not know, such as ordinary memory.
        code = self.driver.attempt("cuPointerGetAttribute", byref(value), attribute, address)
        if code in _STICKY:
            raise self.driver.error(code, "cuPointerGetAttribute")
        return None if code else value.value

    def close(self) -> None:
        """Give the context back. It must not be current, nor own anything any more."""
        if self._handle is not None:
            self.driver.attempt("cuDevicePrimaryCtxRelease_v2", self.device.ordinal)
        self._handle = None


class _Owned:
    """Something of the driver's that is freed once; freeing a lost device's things is no error."""

    _free: str

    def __init__(self, driver: Driver, handle: int) -> None:
        self.driver = driver
        self.handle = handle

    def close(self) -> None:
        """Free it; its context must be current."""
        handle, self.handle = self.handle, 0
        if handle and (code := self.driver.attempt(self._free, handle)):
            _log.debug("%s: %s", self._free, self.driver.describe(code))


class DeviceMemory(_Owned):
    """Bytes on the device; ``handle`` is their address, aligned to 256 bytes or more.

    Raises:
        DeviceMemoryError: there is too little free memory.
    """

    _free = "cuMemFree_v2"

    def __init__(self, driver: Driver, size: int) -> None:
        address = c_uint64()
        driver.call("cuMemAlloc_v2", byref(address), size)
        super().__init__(driver, address.value)
        self.size = size


class PinnedMemory(_Owned):
    """Bytes on the host that the device copies by itself, at full speed.

    Raises:
        DeviceMemoryError: the host has too little memory for it.
    """

    _free = "cuMemFreeHost"

    def __init__(self, driver: Driver, size: int) -> None:
        address = c_void_p()
        driver.call("cuMemHostAlloc", byref(address), size, 0)
        super().__init__(driver, address.value or 0)
        self.size = size


class PinnedArray:
    """An array in pinned memory that is freed with the last array that views it.

    It holds on to the device's context by itself, and so outlives whatever made it.

    Args:
        context: of the device; it stays the caller's.
        shape: of the array.

    Raises:
        DeviceMemoryError: the host has too little memory for it.
    """

    def __init__(self, context: Context, shape: tuple[int, ...]) -> None:
        self._context = Context(context.driver, context.device)
        try:
            with self._context:
                self._memory = PinnedMemory(context.driver, math.prod(shape))
        except BaseException:
            self._context.close()
            raise
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": shape,
            "data": (self._memory.handle, False),
        }

    def __del__(self) -> None:
        # At the program's end the driver, which frees it, may be gone already.
        if hasattr(self, "_memory") and not sys.is_finalizing():
            with suppress(BackendError), self._context:
                self._memory.close()
            self._context.close()


class Stream(_Owned):
    """A queue of the device; it does not wait for the legacy stream, nor that for it."""

    _free = "cuStreamDestroy_v2"

    def __init__(self, driver: Driver) -> None:
        handle = c_void_p()
        driver.call("cuStreamCreate", byref(handle), _NON_BLOCKING)
        super().__init__(driver, handle.value or 0)

    def synchronize(self) -> None:
        """Wait until everything in the queue is done; other Python threads go on."""
        self.driver.call("cuStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """Have what is queued from now on wait for an event."""
        self.driver.call("cuStreamWaitEvent", self.handle, event.handle, 0)


class Event(_Owned):
    """A moment in a queue."""

    _free = "cuEventDestroy_v2"

    def __init__(self, driver: Driver, *, timing: bool = False) -> None:
        handle = c_void_p()
        flags = _EVENT_DEFAULT if timing else _EVENT_DISABLE_TIMING
        driver.call("cuEventCreate", byref(handle), flags)
        super().__init__(driver, handle.value or 0)

    def record(self, stream: int) -> None:
        """Put the event into a queue, given by its handle."""
        self.driver.call("cuEventRecord", self.handle, stream)

    def is_over(self) -> bool:
        """Return whether the queue has got past it; does not wait."""
        code = self.driver.attempt("cuEventQuery", self.handle)
        if code not in {0, _NOT_READY}:
            raise self.driver.error(code, "cuEventQuery")
        return code == 0

    def milliseconds_since(self, earlier: Event) -> float:
        """Return the time between two events that are over and were made with ``timing``."""
        milliseconds = c_float()
        self.driver.call("cuEventElapsedTime", byref(milliseconds), earlier.handle, self.handle)
        return milliseconds.value


class Graph(_Owned):
    """What was queued once, to be queued again in one call."""

    _free = "cuGraphExecDestroy"

    @classmethod
    def capture(cls, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` queues on the stream; nothing of it runs.

        Raises:
            BackendError: something that ``enqueue`` does cannot be captured, or it raised this.
        """
        driver = stream.driver
        graph, executable = c_void_p(), c_void_p()
        driver.call("cuStreamBeginCapture_v2", stream.handle, _CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            # A stream is unusable until its capture has ended, however it ends.
            driver.attempt("cuStreamEndCapture", stream.handle, byref(graph))
            if graph:
                driver.attempt("cuGraphDestroy", graph)
            raise
        driver.call("cuStreamEndCapture", stream.handle, byref(graph))
        try:
            driver.call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            driver.attempt("cuGraphDestroy", graph)
        return cls(driver, executable.value or 0)

    def launch(self, stream: int) -> None:
        """Queue it on a stream, given by its handle."""
        self.driver.call("cuGraphLaunch", self.handle, stream)


# --------------------------------------------------------------------------------- driver version


def installed_driver_version(
    report: Path = Path("/proc/driver/nvidia/version"),
) -> str | None:
    """Return the version of the kernel's driver: as Linux reports it, else from NVML."""
    try:
        text = report.read_text()
    except OSError:  # Windows, WSL, or not mounted in a container
        return _nvml_driver_version()
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)*)\b", text)
    return found.group(1) if found else _nvml_driver_version()


def _nvml_driver_version() -> str | None:
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    with suppress(OSError, AttributeError):  # no such library, or none of these functions
        nvml = ctypes.CDLL(name)
        if nvml.nvmlInit_v2() == 0:
            text = ctypes.create_string_buffer(96)
            code = nvml.nvmlSystemGetDriverVersion(text, len(text))
            nvml.nvmlShutdown()
            return text.value.decode(errors="replace") if code == 0 else None
    return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
