"""Arrays in the memory of a pass's GPU: what they are, what must be waited for, and copies."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from topcoat.runtime._errors import (
    BackendError,
    BackendUnavailableError,
    DeviceLostError,
    DeviceMemoryError,
    FrameError,
)
from topcoat.runtime.backends._cuda import Context, Device, Driver, Event, Stream
from topcoat.runtime.backends._device_arrays import (
    DeviceArray,
    check_apart,
    check_device,
    device_array,
)

_PAIRS_KEPT = 64
"""Pairs of addresses that are known to be the GPU's: asking the driver for each frame is slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A frame and the place of its result, both in the memory of the pass's GPU."""

    given: object
    """As the application gave it."""
    target: object
    """Likewise."""
    color: DeviceArray
    """(H, W, 3)."""
    out: DeviceArray
    """(H * scale, W * scale, 3)."""
    stream: int | None
    """Of the application; None: the call returns when ``out`` is written."""
    lent: int | None
    """The stream behind which both are ready, if the application named none."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frame."""
        return self.color.shape[0], self.color.shape[1]


@dataclass(slots=True)
class Lent:
    """An array that was looked at already: its library is asked once for each frame."""

    array: DeviceArray
    stream: int | None
    """Behind which it is ready."""
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.shape = self.array.shape

    @classmethod
    def at(cls, address: int, shape: tuple[int, ...]) -> Lent:
        """Return an array of our own memory."""
        array = DeviceArray(
            pointer=address, shape=shape, read_only=False, device=None, stream=None, owner=None
        )
        return cls(array, None)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.array.pointer, self.array.read_only),
            "strides": None,
            "stream": self.stream,
        }


class Gpu:
    """The GPU on which the pass's frames are, and a stream there for callers that have none.

    Raises:
        BackendUnavailableError: there is no GPU.
        BackendError: the driver cannot use it now.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._context = Context(driver, usable_device(driver))
        self._pairs: set[tuple[int, int, int, int]] = set()
        self._checked: int | None = None
        """The stream that was used last, which exists."""
        try:
            with self._context:
                self._stream = Stream(driver)
                try:
                    self._event = Event(driver)
                except BaseException:
                    self._stream.close()
                    raise
        except BaseException:
            self._context.close()
            raise

    def look_at(self, color: object, out: object, stream: int | None, scale: int) -> Pair:
        """Find out where a frame and its result lie; they are ready behind ``Pair.lent``.

        Raises:
            FrameError: they or the stream are not as :meth:`Pass.present_device` wants them.
            DeviceLostError: the GPU stopped working.
        """
        with self._context:
            own = self._stream.handle if stream is None else None
            given = device_array(color, own, "color", host="present()")
            made = device_array(out, own, "out", host="present()")
            shape = given.shape
            if len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
                raise FrameError(
                    f"color has shape {shape}, wanted (H, W, 3), RGB, with H and W of at least 1"
                )
            wanted = (shape[0] * scale, shape[1] * scale, 3)
            if made.shape != wanted:
                raise FrameError(
                    f"out has shape {made.shape}, wanted {wanted}: {scale} times the sides of the"
                    f" frame {shape}"
                    if scale > 1
                    else f"out has shape {made.shape}, wanted {wanted}, as the frame"
                )
            check_apart(given, made)
            key = (given.pointer, given.nbytes, made.pointer, made.nbytes)
            if key not in self._pairs:
                check_device(self._context, given, "color")
                check_device(self._context, made, "out")
                if len(self._pairs) >= _PAIRS_KEPT:
                    self._pairs.clear()
                self._pairs.add(key)
            if stream is not None:
                self._check_stream(stream)
            else:
                for awaited in {given.stream, made.stream} - {None, own}:
                    assert awaited is not None
                    self._event.record(awaited)
                    self._stream.wait(self._event)
        return Pair(given=color, target=out, color=given, out=made, stream=stream, lent=own)

    def copy(self, pair: Pair) -> None:
        """Queue a copy of a frame to its place; wait for it if the caller has no stream."""
        stream = self._stream.handle if pair.stream is None else pair.stream
        color, out = pair.color, pair.out
        with self._context:
            self._driver.call(
                "cuMemcpyDtoDAsync_v2", out.pointer, color.pointer, color.nbytes, stream
            )
            if pair.stream is None:
                self._stream.synchronize()

    def check(self) -> None:
        """Raise DeviceLostError if the GPU stopped working, as far as the driver knows."""
        with self._context:
            self._event.is_over()

    def close(self) -> None:
        """Free what is ours on it."""
        with suppress(BackendError), self._context:  # a lost one cannot be made current
            self._event.close()
            self._stream.close()
        self._context.close()

    def _check_stream(self, stream: int) -> None:
        """Refuse a handle that is no stream's: an engine's failure would be laid to the engine."""
        if stream == self._checked:
            return
        try:
            self._event.record(stream)
        except (DeviceLostError, DeviceMemoryError):
            raise
        except BackendError as error:
            raise FrameError(
                f"stream is {stream:#x}, which the driver does not know as a stream of this GPU"
                f" ({error}); pass the handle of a CUDA stream that exists"
            ) from error
        self._checked = stream


def usable_device(driver: Driver) -> Device:
    """Return the GPU that engines run on.

    Raises:
        BackendUnavailableError: there is none.
    """
    found = driver.probe()
    if isinstance(found, str):
        raise BackendUnavailableError(found)
    return found
