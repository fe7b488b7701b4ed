"""Open a bundle and run frames through it."""

from __future__ import annotations

import dataclasses
import operator
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

from topcoat.runtime import _tiles
from topcoat.runtime._choice import choose
from topcoat.runtime._errors import (
    BackendError,
    DeviceMemoryError,
    FrameError,
    ModelClosedError,
    TextureError,
    TileError,
)
from topcoat.runtime._explanation import Explanation
from topcoat.runtime._fallback import Engines, FrameSize
from topcoat.runtime._histogram import match_histogram as match_colours
from topcoat.runtime._memory import available_memory
from topcoat.runtime._textures import (
    check_is_no_texture,
    check_is_texture,
    check_texture_size,
    noise_frame,
)
from topcoat.runtime.backends import DeviceSession, Session, all_backends, default_threads
from topcoat.runtime.bundle import TEXTURE, Manifest, read_manifest
from topcoat.runtime.frames import Frame, PadBuffers, allocate, check_frame, check_out, fit_size

Tile = int | Literal["auto"] | None

_PLANS_KEPT = 64
"""Frame sizes whose tiling a model remembers; a folder of photographs has a few."""


class Model:
    """A bundle that is loaded and ready for frames; made by :func:`topcoat.runtime.open`.

    Threads: every method may be called from any thread. ``process`` calls on one model run one
    after the other, because the engine's buffers belong to the model; open the bundle once per
    thread to run frames side by side. The engine releases the GIL while it computes, so other
    Python threads go on.
    """

    def __init__(
        self,
        manifest: Manifest,
        explanation: Explanation,
        session: Session | Engines,
        *,
        tile: Tile = None,
        match_histogram: bool = False,
        available: Callable[[], int | None] = available_memory,
    ) -> None:
        self._manifest = manifest
        self._engines = (
            session if isinstance(session, Engines) else Engines.only(explanation, session)
        )
        self._closed = False
        self._lock = threading.Lock()
        self._pad: PadBuffers | None = None
        self._tile = check_tile(tile, manifest)
        check_histogram(match_histogram, manifest)
        self._match_histogram = match_histogram
        self._available = available
        self._plans: dict[tuple[int, int, int], _tiles.Tiling | None] = {}

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._manifest

    @property
    def task(self) -> str:
        """What the bundle is for: ``style``, ``super-resolution`` or ``texture``."""
        return self._manifest.task

    @property
    def match_histogram(self) -> bool:
        """Whether results take the histograms of their frames."""
        return self._match_histogram

    def explain(self) -> Explanation:
        """Return which backend and precision run, and why not the others; readable after close.

        Its ``fallbacks`` say which frame sizes run otherwise since, because the chosen way failed.
        """
        return self._engines.explanation

    def tiles(self, height: int, width: int, batch: int = 1) -> int:
        """Return how many tiles each frame of this size is run in; 1 is the frame as a whole.

        With ``tile="auto"`` the first question about a size, from here or from :meth:`process`,
        decides: the same size then always runs the same way, unless the device runs out of memory
        on it.

        Raises:
            FrameError: the network does not take frames of this size.
        """
        with self._lock:
            plan = self._plan(batch, height, width)
        return 1 if plan is None else plan.count

    def process(
        self,
        frame: Frame,
        out: Frame | None = None,
        *,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> Frame:
        """Run one frame, or a batch of frames, through the network.

        A frame whose size follows the bundle's size rule is read by the engine where it lies, and
        the result is written where it is wanted: nothing is copied here. Other sizes, and tiles,
        pass through two buffers that are kept for the next frame of that size. A texture's frame
        is noise, and a size that does not follow the rule is refused: padding and cropping would
        break the seam. :meth:`sample` makes the noise, too.

        If the engine fails on the frame, another way takes over as :func:`topcoat.runtime.open`
        says under ``fallback``, and frames of this size go on that way.

        Args:
            frame: uint8, (H, W, 3) or (N, H, W, 3), RGB, C-contiguous, any H and W of at least 1;
                of a texture, noise whose sides follow the size rule. It may be read-only.
            out: where to write the result: uint8, (H * scale, W * scale, 3) or with N in front
                like the frame, C-contiguous, writeable, not overlapping the frame. Giving the
                same one for every frame saves an allocation per frame.
            on_tile: called after every tile with how many are done and how many there are, those
                of the whole batch; also for a frame that is run as a whole, as its only tile. The
                count begins anew where another way takes over. What it raises ends the call, and
                ``out`` then holds nothing useful. It must not call the model.

        Returns:
            ``out`` if it was given, else a new array.

        Raises:
            FrameError: the frame or ``out`` is not as described; nothing was written.
            FrameMemoryError: there is not enough memory for the result; a FrameError, too.
            BackendError: every engine that may run it failed; ``out`` then holds nothing useful.
                It is a FrameOutsideProfileError, DeviceMemoryError or DeviceLostError where that
                is why.
            ModelClosedError: the model was closed.
        """
        with self._lock:
            if self._closed:
                raise ModelClosedError(
                    f"this model of {self._manifest.name} was closed; open the bundle again"
                )
            scale = self._manifest.scale
            source = check_frame(frame, self._manifest.channels)
            batch, height, width, channels = source.shape
            plan = self._plan(batch, height, width)
            shape = (*frame.shape[:-3], height * scale, width * scale, channels)
            if out is None:
                out = allocate(shape, "the result")
                result = out if out.ndim == 4 else out[None]
            else:
                result = check_out(out, shape, frame)
            self._run(source, result, plan, on_tile)
            if self._match_histogram:
                for given, made in zip(source, result, strict=True):
                    match_colours(made, given)
            return out

    def process_device(self, frame: object, out: object, stream: int | None = None) -> None:
        """Run frames that are in the GPU's memory; no byte of them passes through the host.

        Frames of other sizes than the network takes are padded and cropped on the GPU. They are run
        whole: what does not fit the GPU's memory is an error, and so is a frame that only an engine
        of the host could run.

        Args:
            frame: (H, W, 3) or (N, H, W, 3), uint8, RGB, C-contiguous, on the GPU that the engine
                is on, of any library that speaks DLPack or ``__cuda_array_interface__``: PyTorch,
                CuPy, JAX, Numba, Warp.
            out: where to write the result: (H * scale, W * scale, 3) or with N in front like the
                frame; likewise, writeable, not overlapping the frame.
            stream: handle of the CUDA stream on which ``frame`` is made and ``out`` is used. The
                work is ordered between what is queued there before and after this call, which
                returns at once: keep both arrays alive until the stream has got there. None: the
                arrays are asked what to wait for, and the call returns when ``out`` is written.

        Raises:
            FrameError: an array or the stream is not as described; nothing was written.
            TileError: the model was opened to run frames in tiles.
            TextureError: it was opened to match histograms, which is done on the host.
            BackendError: the engine that runs frames of this size takes those of the host alone,
                or failed; ``out`` then holds nothing useful.
            ModelClosedError: the model was closed.
        """
        with self._lock:
            if self._closed:
                raise ModelClosedError(
                    f"this model of {self._manifest.name} was closed; open the bundle again"
                )
            if self._match_histogram:
                raise TextureError(
                    "histograms are matched on the host, and the frame is on the GPU; open the "
                    "bundle without match_histogram, or use process"
                )
            size = _device_size(frame)
            if self._manifest.task == TEXTURE:
                check_texture_size(*size[1:], self._manifest.size)
            if isinstance(self._tile, int):
                raise TileError(
                    f"frames on the GPU are run whole, and the model was opened with tiles of "
                    f"{self._tile}; open it without, or use process"
                )
            fitted = fit_size(*size[1:], self._manifest.size)
            while True:
                session = self._engines.loaded(size) or self._engines.load(size, fitted)
                if not isinstance(session, DeviceSession):
                    batch, height, width = size
                    runs = self._engines.explanation.candidate_for(height, width, batch)
                    raise BackendError(
                        f"{runs.engine if runs else 'the engine'} runs frames of the host's memory"
                        " alone; copy the frame there and use process, or open the bundle on a"
                        " backend of the GPU"
                    )
                try:
                    padded = None if fitted == size[1:] else fitted
                    session.run_device(frame, out, stream, padded=padded)
                except BackendError as error:
                    self._engines.failed(size, fitted, error)
                else:
                    return

    def sample(self, height: int, width: int, seed: int = 0, out: Frame | None = None) -> Frame:
        """Make one texture, which continues itself on every side: right of it comes its left edge.

        Args:
            height: a multiple of ``manifest.size.multiple``, at least ``manifest.size.min``.
            width: likewise.
            seed: a whole number of at least 0; another seed gives another texture of the same kind.
            out: where to write it: uint8, (height, width, 3), C-contiguous, writeable.

        Returns:
            ``out`` if it was given, else a new array: (height, width, 3) uint8, RGB. The same seed,
            size and engine give the same texture.

        Raises:
            TextureError: the bundle is for another task, or the seed is not as described.
            FrameError: the network makes no textures of this size, and the text says the nearest
                that it makes; or ``out`` is not as described.
            BackendError: the engine failed; ``out`` then holds nothing useful.
            ModelClosedError: the model was closed.
        """
        check_is_texture(self._manifest)
        check_texture_size(height, width, self._manifest.size)
        return self.process(noise_frame(height, width, seed), out)

    def _plan(self, batch: int, height: int, width: int) -> _tiles.Tiling | None:
        """Return how to cut frames of this size, or None to give them to the engine at once.

        A plan of one tile gives it the frames of a batch one by one.
        """
        key = (batch, height, width)
        if key not in self._plans:
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = self._new_plan(batch, height, width)
        return self._plans[key]

    def _new_plan(self, batch: int, height: int, width: int) -> _tiles.Tiling | None:
        rule = self._manifest.size
        if self._manifest.task == TEXTURE:
            check_texture_size(height, width, rule)
            return None
        if self._tile is None or not _tiles.can_tile(rule):
            fit_size(height, width, rule)
            return None
        # Tiles are never larger than the network takes, so a frame may be.
        fitted = fit_size(height, width, dataclasses.replace(rule, max=None))
        most = max(fitted) if rule.max is None else rule.max
        if self._tile == "auto":
            pixels = self._pixels_in_memory()
            if max(fitted) <= most and (pixels is None or batch * fitted[0] * fitted[1] <= pixels):
                return None
            side = (
                _tiles.fitting_tile(most, rule)
                if pixels is None
                else _tiles.tile_within(height, width, pixels, rule)
            )
            return _tiles.plan(height, width, side, rule)
        if max(fitted) <= self._tile:
            return None
        return _tiles.plan(height, width, self._tile, rule)

    def _pixels_in_memory(self) -> int | None:
        """Return how many input pixels half of the available memory holds; None: nobody says."""
        per_pixel = self._manifest.memory_per_pixel
        available = None if per_pixel is None else self._available()
        return None if per_pixel is None or available is None else available // 2 // per_pixel

    def _run(
        self,
        source: Frame,
        result: Frame,
        plan: _tiles.Tiling | None,
        on_tile: Callable[[int, int], None] | None,
    ) -> None:
        """Run frames on the engine that is for their size; if it fails, as it says what is next."""
        batch, height, width, _ = source.shape
        size = (batch, height, width)
        while True:
            session = self._engines.loaded(size) or self._engines.load(
                size, self._given(size, plan)
            )
            try:
                if plan is None:
                    self._run_whole(session, source, result)
                    if on_tile is not None:
                        on_tile(1, 1)
                else:
                    self._run_tiled(session, source, result, plan, on_tile)
            except DeviceMemoryError as error:
                smaller = self._smaller_plan(size, plan)
                if smaller is None:
                    self._engines.failed(size, self._given(size, plan), error)
                    smaller = self._new_plan(*size)  # the next engine may take more at once
                else:
                    self._engines.cut(size, smaller.count, error)
                plan = self._plans[size] = smaller
            except BackendError as error:
                self._engines.failed(size, self._given(size, plan), error)
            else:
                return

    def _given(self, size: FrameSize, plan: _tiles.Tiling | None) -> tuple[int, int]:
        """Return the height and width that the engine is given for frames of this size."""
        if plan is not None and plan.count > 1:
            return plan.height, plan.width
        return fit_size(*size[1:], self._manifest.size)

    def _smaller_plan(self, size: FrameSize, plan: _tiles.Tiling | None) -> _tiles.Tiling | None:
        """Return how to give the engine less at once than this plan does; None: not at all.

        First the frames of a batch one by one, then tiles of half the side.
        """
        if self._tile is None and not self._engines.fallback:
            return None  # the caller wants it whole, or the error
        rule = self._manifest.size
        batch, height, width = size
        given = self._given(size, plan)
        if plan is None and batch > 1:
            return _tiles.Tiling(
                *given, rows=(_tiles.Span(0, 0, height),), columns=(_tiles.Span(0, 0, width),)
            )
        if self._manifest.task == TEXTURE or not _tiles.can_tile(rule):
            return None
        side = max(max(given) // 2, _tiles.smallest_tile(rule))
        if side >= max(given):
            return None
        return _tiles.plan(height, width, _tiles.fitting_tile(side, rule), rule)

    def _run_whole(self, session: Session, source: Frame, result: Frame) -> None:
        batch, height, width, _ = source.shape
        fitted = fit_size(height, width, self._manifest.size)
        if fitted == (height, width):
            session.run(source, result)
            return
        pad = self._buffers(batch, fitted)
        pad.fill(source)
        session.run(pad.source, pad.result)
        pad.crop_into(result)

    def _run_tiled(
        self,
        session: Session,
        source: Frame,
        result: Frame,
        plan: _tiles.Tiling,
        on_tile: Callable[[int, int], None] | None,
    ) -> None:
        """Run frames one by one, tile by tile: neither is the engine ever given more at once."""
        scale = self._manifest.scale
        total = len(source) * plan.count
        done = 0
        for number in range(len(source)):
            frame, styled = source[number : number + 1], result[number : number + 1]
            for rows, columns in plan.windows():
                if plan.count == 1:
                    self._run_whole(session, frame, styled)
                else:
                    pad = self._buffers(1, (plan.height, plan.width))
                    top, left = rows.start, columns.start
                    pad.fill(frame[:, top : top + plan.height, left : left + plan.width])
                    session.run(pad.source, pad.result)
                    pad.crop_into(
                        styled[
                            :,
                            rows.keep_from * scale : rows.keep_to * scale,
                            columns.keep_from * scale : columns.keep_to * scale,
                        ],
                        (rows.keep_from - top) * scale,
                        (columns.keep_from - left) * scale,
                    )
                done += 1
                if on_tile is not None:
                    on_tile(done, total)

    def _buffers(self, batch: int, fitted: tuple[int, int]) -> PadBuffers:
        """Return the buffers for this size; kept until another size comes."""
        channels = self._manifest.channels
        pad = self._pad
        if pad is None or pad.source.shape != (batch, *fitted, channels):
            self._pad = None  # the old pair is freed before the new one is made
            pad = PadBuffers.allocate(batch, fitted, channels, self._manifest.scale)
            self._pad = pad
        return pad

    def close(self) -> None:
        """Free the engine and the buffers. Closing twice is fine."""
        with self._lock:
            self._engines.close()
            self._closed = True
            self._pad = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        chosen = self.explain().chosen
        how = f"{chosen.backend} {chosen.compute}" if chosen else "nothing"
        state = " (closed)" if self._closed else ""
        return f"<topcoat.runtime.Model {self._manifest.name} on {how}{state}>"


def _device_size(frame: object) -> FrameSize:
    """Return (batch, height, width) of a frame in device memory, which engines check further."""
    shape = getattr(frame, "shape", None)
    if shape is None:
        # Here, for it loads ctypes and the driver's functions, which most programs never need.
        from topcoat.runtime.backends._device_arrays import device_array

        try:
            shape = device_array(frame).shape
        except FrameError as error:
            raise FrameError(
                f"the frame is {type(frame).__name__} of no known shape: {error}"
            ) from error
    try:
        sides = tuple(operator.index(side) for side in shape or ())
    except TypeError:
        sides = ()
    if len(sides) not in (3, 4) or min(sides) < 1 or sides[-1] != 3:
        raise FrameError(
            f"the frame is {type(frame).__name__} of shape {shape}, wanted (H, W, 3) or (N, H, W,"
            " 3) in the GPU's memory, of a library that speaks DLPack or __cuda_array_interface__"
        )
    return (1 if len(sides) == 3 else sides[0], sides[-3], sides[-2])


def open_model(
    bundle: str | Path,
    backend: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
    tile: Tile = None,
    match_histogram: bool = False,
    fallback: bool | None = None,
    variant: str | None = None,
) -> Model:
    """Open a bundle on the backend that runs it fastest here, or on the one that is named.

    With ``backend="auto"``, every backend and precision that is installed, that the machine offers
    and whose parity check passed is timed on one frame, and the fastest stays loaded. There is no
    silent fallback: :meth:`Model.explain` says what was chosen and why not the others, and a named
    backend that cannot run the bundle is an error.

    Args:
        bundle: the folder NAME.topcoat.
        backend: "auto", or one of "tensorrt-rtx", "tensorrt", "onnxruntime-cuda", "openvino-gpu",
            "openvino-cpu", "onnxruntime-cpu" and "onnxruntime-webgpu".
        precision: "fp32", "bf16", "fp16" or "int8" to allow only this compute precision; None
            allows all, but for fp16 on a CPU, where it is not faster and only used when named.
        threads: how many CPU threads the engine uses; None takes one per physical core that this
            process may use. A renderer beside it is better off with fewer.
        allow_unverified: also accept a backend and precision without a passed parity check; an
            UnverifiedWarning then says so.
        tile: the largest side, in input pixels, of what the engine is given at once. Larger frames
            are cut into tiles that overlap by what the network needs for a result without seams:
            within 1 step of the untiled one at fp32. None never cuts. "auto" cuts only what would
            take more than half of the memory that is available when a frame of that size first
            comes, by the bundle's estimate, or what is larger than the network takes; where the
            bundle or the system says too little, it does not cut.
        match_histogram: give the red, green and blue of every result the histograms that they have
            in its frame. It undoes colour shifts of feature losses in super-resolution, and lets a
            style keep a photograph's colours. Not for textures, whose frames are noise.
        fallback: what happens when the chosen engine fails on a frame. True: on a frame size that
            it was not built for, on an error and on a device that is lost, the next usable engine
            takes over; where the device has too little memory, the frames of a batch are run one
            by one, then in tiles of half the side as far as the bundle allows it (whatever
            ``tile`` says), and only then on the next engine. Each change is remembered for its
            frame size, warned about (FallbackWarning), logged, and in :meth:`Model.explain`.
            False: the error is raised; only another file of the same backend may take a frame size
            that the first was not built for, and only a ``tile`` other than None lets tiles become
            smaller. None is True for "auto" and False for a named backend. Engines that fail to
            load with ``open`` are not its matter.
        variant: allow only this model file of the bundle, e.g. "model.fp32.onnx".

    Returns:
        The loaded model; close it, or use it as a context manager.

    Raises:
        BundleError: the bundle cannot be read, is damaged or of another format version.
        BackendError: no backend can run it, with every reason in the text; its ``explanation``
            attribute holds them one by one.
        BackendUnavailableError: the named backend is not installed.
        TileError: ``tile`` is not one of these, or the bundle cannot be run in such tiles.
        TextureError: histograms are to be matched to the noise of a texture.
    """
    manifest = read_manifest(bundle)
    check_tile(tile, manifest)  # before an engine is loaded
    check_histogram(match_histogram, manifest)
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}, wanted at least 1 (or None for the default)")
    explanation, engines = choose(
        manifest,
        all_backends(),
        backend=backend,
        precision=precision,
        threads=default_threads() if threads is None else threads,
        allow_unverified=allow_unverified,
        variant=variant,
        fallback=fallback,
    )
    return Model(manifest, explanation, engines, tile=tile, match_histogram=match_histogram)


def check_tile(tile: Tile, manifest: Manifest) -> Tile:
    """Return the tile as the bundle's size rule allows it.

    Raises:
        TileError: it is not a side, "auto" or None, or the bundle cannot be run in such tiles.
    """
    if tile is None or tile == "auto":
        return tile
    try:
        side = 0 if isinstance(tile, bool) else operator.index(tile)  # numpy's integers, too
    except TypeError:
        side = 0
    if side < 1:
        raise TileError(
            f"tile is {tile!r}, wanted the largest side of a tile in pixels, 'auto' or None"
        )
    if manifest.task == TEXTURE:
        raise TileError(
            f"{manifest.name} is a texture, whose edges meet, so it cannot be cut into tiles; leave"
            " out the tile, or make a smaller texture and repeat it"
        )
    return _tiles.fitting_tile(side, manifest.size)


def check_histogram(match_histogram: bool, manifest: Manifest) -> None:
    """Refuse to match a texture's colours to those of its noise.

    Raises:
        TextureError: that was asked for.
    """
    if match_histogram:
        check_is_no_texture(manifest, "match_histogram gives results the colours of their frames")
