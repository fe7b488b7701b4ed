"""What frames of one size need on the GPU: working memory, buffers, and graphs of the work."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from ctypes import c_uint8
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError, DeviceLostError, DeviceMemoryError
from topcoat.runtime.backends._cuda import (
    Context,
    DeviceMemory,
    Driver,
    Event,
    Graph,
    PinnedMemory,
)
from topcoat.runtime.backends._trt_engine import Engine
from topcoat.runtime.frames import Frame

ALIGNMENT = 256
"""TensorRT reads and writes tensors at multiples of this many bytes."""

_GRAPHS_KEPT = 8
"""Pairs of addresses whose graph a frame size keeps: an application rotates a few buffers. What
comes from more of them is copied into the one pair of :class:`Staging`, which has its graph."""

_UNKNOWN = object()
"""Stands for a pair of addresses that was never run."""

_log = logging.getLogger("topcoat.runtime")


class Plan:
    """An execution context for frames of one shape, with everything that it works in.

    Args:
        engine: whose context it is; the GPU's must be current, as for every method.
        profile: the number of the profile that holds the shape.
        source_shape: (1, H, W, C).
        use_graph: whether to launch the work as a graph once it was run.

    Raises:
        DeviceMemoryError: the GPU has too little free memory; nothing is left allocated.
        BackendError: the library refuses the shape.
    """

    def __init__(
        self, engine: Engine, profile: int, source_shape: tuple[int, ...], *, use_graph: bool
    ) -> None:
        self._engine = engine
        self._driver = engine.context.driver
        self._stream = engine.stream.handle
        self._scratch: DeviceMemory | None = None
        self._staging: Staging | None = None
        self._graphs: OrderedDict[tuple[int, int], Graph | None] = OrderedDict()
        self._retired: list[tuple[Graph, Event]] = []
        """Graphs that may be running for the last time, each with the moment when it is over."""
        self._strangers = 0
        """Pairs that made room for others before they came a second time."""
        self._bound = (0, 0)
        self._capture = use_graph and not engine.captures_itself
        self.source_shape = source_shape
        self.fresh = True
        """Whether no frame was run yet."""
        self._execution: Any = None
        try:
            self._execution, self.result_shape = engine.new_execution(profile, source_shape)
            self.source_bytes = math.prod(self.source_shape)
            self.result_bytes = math.prod(self.result_shape)
            # Of this shape, not of the profile's largest. Both calls say in the log alone that they
            # failed, the first beside a size of 0, with which the engine would write anywhere.
            what = f"cannot set up its working memory for frames of shape {source_shape}"
            with engine.library(what, silent=True):
                size = int(self._execution.update_device_memory_size_for_shapes())
            size = max(size, ALIGNMENT)  # even for none, an address is wanted
            self._scratch = DeviceMemory(self._driver, size)
            with engine.library(what, silent=True):
                self._execution.set_device_memory(self._scratch.handle, size)
        except BaseException:
            self.close()
            raise

    @property
    def staging(self) -> Staging:
        """The buffers that frames of host memory pass through; made when first wanted."""
        if self._staging is None:
            self._staging = Staging(self._driver, self.source_shape[1:], self.result_shape[1:])
        return self._staging

    @property
    def uses_graph(self) -> bool:
        """Whether any work is launched as a graph."""
        return any(graph is not None for graph in self._graphs.values())

    def knows(self, source: int, result: int) -> bool:
        """Return whether this pair of addresses was run lately."""
        return (source, result) in self._graphs

    def takes(self, source: int, result: int, batch: int) -> bool:
        """Return whether a frame is best run where it lies; if not, in the staging buffers.

        Args:
            source: address of the frame on the GPU.
            result: likewise.
            batch: how many frames were given at once, each with a pair of addresses of its own.
        """
        if source % ALIGNMENT or result % ALIGNMENT:
            return False
        if not self._capture:
            return True
        # Two batches that take turns must find their graphs again.
        return 2 * batch <= _GRAPHS_KEPT and (
            self._strangers < _GRAPHS_KEPT or self.knows(source, result)
        )

    def enqueue(self, source: int, result: int) -> None:
        """Queue the engine's work on one frame: kernel by kernel at first, then as a graph.

        Args:
            source: address of the frame on the GPU, a multiple of 256.
            result: likewise.
        """
        key = (source, result)
        known = self._graphs.get(key, _UNKNOWN)
        if isinstance(known, Graph):
            self._graphs.move_to_end(key)
            known.launch(self._stream)
            return
        self._free_retired()
        self._bind(source, result)
        if known is _UNKNOWN or not self._capture:
            # TensorRT finishes setting up while it runs; only then can its work be captured.
            self._execute()
            if known is _UNKNOWN:
                self._remember(key, None)
            return
        if not self._may_be_captured():
            self._execute()
            return
        try:
            graph = Graph.capture(self._engine.stream, self._execute)
        except (DeviceLostError, DeviceMemoryError):
            raise
        except BackendError as error:
            self._capture = False
            self._warn(f"it could not be captured as a CUDA graph ({error})")
            self._execute()
            return
        self._remember(key, graph)
        graph.launch(self._stream)

    def close(self) -> None:
        """Free everything; nothing of it may be running."""
        for graph in self._graphs.values():
            if graph is not None:
                graph.close()
        self._graphs.clear()
        for graph, over in self._retired:
            graph.close()
            over.close()
        self._retired.clear()
        self._execution = None  # before the memory that it works in
        for owned in (self._scratch, self._staging):
            if owned is not None:
                owned.close()
        self._staging = None

    def _execute(self) -> None:
        what = f"failed on a frame of shape {self.source_shape}"
        with self._engine.library(what):
            if not self._execution.execute_async_v3(self._stream):
                raise self._engine.failure(what)

    def _bind(self, source: int, result: int) -> None:
        if self._bound == (source, result):
            return
        self._bound = (0, 0)
        variant = self._engine.variant
        for name, address in ((variant.input.name, source), (variant.output.name, result)):
            with self._engine.library(f"refused the address of {name!r}"):
                if not self._execution.set_tensor_address(name, address):
                    raise self._engine.failure(f"refused the address of {name!r}")
        self._bound = (source, result)

    def _remember(self, key: tuple[int, int], graph: Graph | None) -> None:
        self._graphs[key] = graph
        if len(self._graphs) > _GRAPHS_KEPT:
            oldest, running = next(iter(self._graphs.items()))
            if running is not None:
                over = Event(self._driver)  # before anything is given up
                self._retired.append((running, over))
                del self._graphs[oldest]
                over.record(self._stream)
                return
            del self._graphs[oldest]
            self._strangers += 1
            if self._strangers == _GRAPHS_KEPT and self._capture:
                _log.warning(
                    "%s: frames of shape %s come from ever other buffers on the GPU, and a CUDA"
                    " graph is kept for %d pairs of them; from now on they are copied into buffers"
                    " of the engine first: use a few buffers again and again to avoid that",
                    self._engine.name,
                    self.source_shape,
                    _GRAPHS_KEPT,
                )

    def _free_retired(self) -> None:
        """Free the graphs that are not running any more, without waiting for the others."""
        while self._retired and self._retired[0][1].is_over():
            graph, over = self._retired.pop(0)
            graph.close()
            over.close()

    def _may_be_captured(self) -> bool:
        asked = getattr(self._execution, "is_stream_capturable", None)
        with self._engine.library("cannot say whether it may be captured"):
            self._capture = asked is None or bool(asked(self._stream))
        if not self._capture:
            self._warn("the engine says that it cannot be captured as a CUDA graph")
        return self._capture

    def _warn(self, why: str) -> None:
        _log.warning(
            "%s: %s is launched kernel by kernel, which takes the host longer: %s",
            self._engine.name,
            self._engine.variant.file,
            why,
        )


class Staging:
    """A frame and its result on the GPU, and pinned memory beside the caller's arrays.

    Args:
        driver: the driver.
        source: (H, W, C) of the frame.
        result: (H, W, C) of the result.
    """

    def __init__(self, driver: Driver, source: tuple[int, ...], result: tuple[int, ...]) -> None:
        self._owned: list[DeviceMemory | PinnedMemory] = []
        self._last = self._direct = (0, 0)
        try:
            self.source = DeviceMemory(driver, math.prod(source))
            self._owned.append(self.source)
            self.result = DeviceMemory(driver, math.prod(result))
            self._owned.append(self.result)
            self.pinned_source = PinnedMemory(driver, math.prod(source))
            self._owned.append(self.pinned_source)
            self.pinned_result = PinnedMemory(driver, math.prod(result))
            self._owned.append(self.pinned_result)
        except BaseException:
            self.close()
            raise
        self.source_view = _view(self.pinned_source, source)
        self.result_view = _view(self.pinned_result, result)

    def direct(self, context: Context, source: Frame, result: Frame) -> tuple[int, int]:
        """Return where the GPU reads and writes the caller's arrays by itself; 0: it cannot."""
        given = source.__array_interface__["data"][0]
        made = result.__array_interface__["data"][0]
        if (given, made) != self._last:  # asking the driver costs more than comparing
            self._direct = (
                given if context.is_pinned(given) else 0,
                made if context.is_pinned(made) else 0,
            )
            self._last = (given, made)
        return self._direct

    def close(self) -> None:
        """Free it; the views must not be used after this."""
        while self._owned:
            self._owned.pop().close()


def _view(memory: PinnedMemory, shape: tuple[int, ...]) -> Frame:
    array = (c_uint8 * memory.size).from_address(memory.handle)
    return np.frombuffer(memoryview(array), np.uint8).reshape(shape)
