"""The adapter between OpenGL's textures and a pass or a model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import (
    BackendError,
    BackendUnavailableError,
    DeviceLostError,
    FrameError,
    PassClosedError,
    PassError,
    TextureError,
    TileError,
)
from topcoat.runtime.backends._cuda import Driver, installed_driver
from topcoat.runtime.frames import Frame
from topcoat.runtime.gl._cuda_bridge import CudaBridge
from topcoat.runtime.gl._textures import Attachment, Reader, Uploads, checked_region
from topcoat.runtime.render_pass._frame import Depth, Motion, RenderFrame
from topcoat.runtime.render_pass._layout import Alpha, ColorSpace, Layout
from topcoat.runtime.render_pass._pixels import Copy, PixelPlan
from topcoat.runtime.render_pass._types import Result

if TYPE_CHECKING:
    import moderngl

    from topcoat.runtime.model import Model

Transport = Literal["auto", "cuda", "pbo", "read"]
"""How pixels get from OpenGL to the network and back, see :class:`GLTarget`."""

_SUFFIXES = {"f1": "8", "f2": "16f", "f4": "32f"}
_ROUNDS = 7
"""How often a way is timed before one is chosen; the best of them counts."""
_SLOWER = 1.05
"""Ways whose times differ by less are the same, and the plainer one is taken."""
_log = logging.getLogger("topcoat.runtime")


class Presents(Protocol):
    """What a target needs of a :class:`topcoat.runtime.Pass`."""

    @property
    def scale(self) -> int:
        """Pixels of the result for each pixel of the frame, on each side."""

    def present(self, frame: RenderFrame, out: NDArray[Any] | None = None) -> Result:
        """Give the best picture there is for a frame."""


class PresentsDevice(Protocol):
    """What a target with transport "cuda" needs of it."""

    @property
    def scale(self) -> int:
        """As above."""

    def present_device(
        self, color: object, out: object, stream: int | None = None, *, index: int | None = None
    ) -> Result:
        """Give the best picture there is for a frame in the GPU's memory."""


class GLTarget:
    """Reads frames from an OpenGL texture, and writes the pictures of a pass or model into another.

    Ways there and back (``transport``):

    - ``"read"``: ``glReadPixels`` into an array, and ``glTexSubImage2D`` from one.
    - ``"pbo"``: through pixel buffer objects. With ``delay=0`` they are mapped at once, which some
      drivers do faster than the plain way. With ``delay=1`` two are used in turn: a call starts the
      copy of its frame and returns that of the call before, so that the CPU never waits for the
      GPU to finish a frame. That costs one frame of age, which ``Result.age_frames`` includes.
    - ``"cuda"``: pixel buffers that OpenGL and CUDA share; the frame never leaves the GPU. It needs
      an NVIDIA GPU that draws and runs the engine, and 8 bits a channel. Of a pass, it takes what
      ``Pass.present_device`` offers: no strength, mask, blend or stabiliser.
    - ``"auto"``: for a pass, ``"read"`` and ``"pbo"`` are timed when this object is made, and
      ``"read"`` is taken unless ``"pbo"`` is faster; with ``delay=1``, ``"pbo"`` unless it is
      slower. For a model, ``"cuda"`` where it works, else the same. :meth:`explain` says which, and
      why not the others.

    Buffers are made once, for textures of one size: make another one when a window is resized. It
    belongs to the thread on which the context is current, and leaves OpenGL's bindings as moderngl
    keeps them.

    Args:
        ctx: the moderngl context of the textures.
        source: what is read: a texture, or a framebuffer's first colour attachment. RGB or RGBA,
            dtype "f1" (8 bits; also with an sRGB internal format, whose bytes are read as they
            are), "f2" or "f4", one sample. A texture whose ``swizzle`` is "BGRA" holds its bytes in
            that order, and they are taken so.
        target: what is written: a texture like the source, or a framebuffer with one. Its size is
            the source's times the pass's scale. It may be the source itself. None: nothing; the
            pictures are in ``Result.image``.
        transport: as above.
        delay: how many frames a read may be late: 0 or 1. A plain read is never late.
        region: (x, y, width, height) in pixels, y up: the part that is the picture. The same part
            of the target is written. None: all of it.
        color_space: of the pixels, see :class:`topcoat.runtime.Layout`.
        exposure: likewise.
        alpha: likewise.
        motion_scale: what the motion texture's values are multiplied by to become pixels, see
            :class:`topcoat.runtime.Motion`.
        motion_direction: likewise.
        motion_y: likewise; None: up, as OpenGL counts.
        depth_inverted: see :class:`topcoat.runtime.Depth`.
        depth_linear: likewise.

    Raises:
        FrameError: a texture is not as described.
        PassError: an option is not as described.
        BackendUnavailableError: moderngl is not installed, or a transport that was asked for does
            not work on this driver.
        DeviceLostError: the context was lost.
    """

    def __init__(
        self,
        ctx: moderngl.Context,
        source: moderngl.Texture | moderngl.Framebuffer,
        target: moderngl.Texture | moderngl.Framebuffer | None = None,
        *,
        transport: Transport = "auto",
        delay: int = 0,
        region: tuple[int, int, int, int] | None = None,
        color_space: ColorSpace = "srgb",
        exposure: float = 1.0,
        alpha: Alpha = "keep",
        motion_scale: tuple[float, float] = (1.0, 1.0),
        motion_direction: Literal["to-previous", "from-previous"] = "to-previous",
        motion_y: Literal["up", "down"] | None = None,
        depth_inverted: bool = False,
        depth_linear: bool = False,
    ) -> None:
        _require_moderngl()
        if transport not in ("auto", "cuda", "pbo", "read"):
            raise PassError(f"transport is {transport!r}, wanted auto, cuda, pbo or read")
        if delay not in (0, 1) or isinstance(delay, bool):
            raise PassError(f"delay is {delay!r}, wanted 0 or 1 frames")
        if delay and transport == "read":
            raise PassError("a plain read has no delay, wanted delay=0 or another transport")
        self._ctx = ctx
        self._delay = delay
        self._closed = False
        self._told = False
        self._source = Attachment.of(ctx, source, "source")
        self._region = checked_region(region, self._source.size)
        self._given_target: Any = target
        self._target = None if target is None else Attachment.of(ctx, target, "target")
        self._scale = self._target_scale()
        order = self._source.order
        self._layout = Layout(
            format=f"{order}{_SUFFIXES[self._source.dtype]}",  # type: ignore[arg-type]
            color_space=color_space,
            exposure=exposure,
            origin="bottom-left",
            alpha=alpha,
        )
        self._motion_options: dict[str, Any] = {
            "scale": motion_scale,
            "direction": motion_direction,
            "y": motion_y,
        }
        self._depth_options = {"inverted": depth_inverted, "linear": depth_linear}
        self._reasons = {"cuda": "not tried: a pass has to ask for it, process tries it by itself"}
        self._colour = Reader(ctx, self._source, self._region, "read", 0)
        self._wanted: Transport = transport
        self._transport = self._choose("auto" if transport == "cuda" else transport)
        if self._transport == "pbo":
            self._colour.release()
            self._colour = Reader(ctx, self._source, self._region, "pbo", delay)
        else:
            self._delay = 0
        self._motion: Reader | None = None
        self._depth: Reader | None = None
        self._uploads: Uploads | None = None
        if self._target is not None:
            self._uploads = Uploads(ctx, self._picture_bytes, self._transport)
        self._frame = RenderFrame(color=self._colour.array, layout=self._layout)
        self._out: NDArray[Any] | None = None
        self._before: tuple[int | None, bool, NDArray[np.uint8] | None] | None = None
        """Index, reset and mask of the frame that is being copied."""
        self._masks: list[NDArray[np.uint8]] = []
        self._driver: Callable[[], Driver] = installed_driver
        self._bridge: CudaBridge | None = None
        self._bridged: Model | None = None
        """The model for which the GPU was tried."""
        self._plan: PixelPlan | None = None
        self._rgb: tuple[Frame, Frame] | None = None

    # --- what it is ------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """Of the arrays that :meth:`read` returns and :meth:`write` takes: rows from the bottom."""
        return self._layout

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames, as ``Pass.prepare`` wants it."""
        return self._region[3], self._region[2]

    @property
    def transport(self) -> Literal["cuda", "pbo", "read"]:
        """The way that was chosen; ``"cuda"`` once a frame has gone that way."""
        return self._transport if self._bridge is None else "cuda"

    @property
    def copies(self) -> tuple[Copy, ...]:
        """What is copied for each frame between OpenGL and the host; the pass adds its own."""
        if self._bridge is not None:
            frame, picture = self._bridge.bytes_moved
            why = "CUDA cannot read textures as networks want them; none of it leaves the GPU"
            return (
                Copy("source texture to a buffer that CUDA shares", frame, why),
                Copy("such a buffer to the target texture", picture, why),
            )
        through = " through a pixel buffer object" if self._transport == "pbo" else ""
        why = "the network's input is prepared on the host"
        found = [
            Copy(f"{name} texture to the host{through}", reader.array.nbytes, why)
            for name, reader in (
                ("source", self._colour),
                ("motion", self._motion),
                ("depth", self._depth),
            )
            if reader is not None
        ]
        if self._target is not None:
            found.append(
                Copy(
                    f"picture to the target texture{through}",
                    self._picture_bytes,
                    "the picture is composed on the host",
                )
            )
        return tuple(found)

    def explain(self) -> str:
        """Return, in lines: the way that was chosen, why not the others, and copies per frame."""
        height, width = self.size
        lines = [f"OpenGL: {self._layout.format} {width}x{height}, first row at the bottom"]
        for name in ("read", "pbo", "cuda"):
            mark = "->" if name == self.transport else "--"
            lines.append(f"  {mark} {name:5} {self._reasons[name]}")
        return "\n".join([*lines, *(f"  copy: {copy}" for copy in self.copies)])

    # --- pixels ----------------------------------------------------------------------------------

    def read(self) -> NDArray[Any]:
        """Return the source's pixels: (H, W, 3 or 4), first row at the bottom.

        The array belongs to this object, and the next read writes into it. With ``delay=1`` it
        holds the frame of the call before.

        Raises:
            FrameError: the texture was released.
            DeviceLostError: the context was lost.
            PassClosedError: this object was closed.
        """
        self._check_open()
        self._guarded(lambda: self._colour.read(self._source))
        self._look_for_errors()
        return self._colour.array

    def write(self, array: NDArray[Any]) -> None:
        """Write pixels into the target texture, all of it or its part that is the region.

        Args:
            array: (H * scale, W * scale, C) of the source's type and order of channels,
                C-contiguous, first row at the bottom.

        Raises:
            FrameError: the array is not as described, or the texture was released.
            PassError: there is no target.
            DeviceLostError: the context was lost.
            PassClosedError: this object was closed.
        """
        self._check_open()
        target, uploads = self._target, self._uploads
        if target is None or uploads is None:
            raise PassError("there is no target to write to; give one to GLTarget")
        shape = self._picture_shape
        if array.shape != shape or array.dtype != self._layout.dtype:
            raise FrameError(
                f"the picture is {array.dtype} of shape {array.shape}, wanted"
                f" {self._layout.dtype} of shape {shape}"
            )
        if not array.flags.c_contiguous:
            raise FrameError(
                "the picture is not C-contiguous; pass numpy.ascontiguousarray(picture)"
            )
        self._guarded(lambda: uploads.write(target, array, self._viewport))
        self._look_for_errors()

    def present(
        self,
        pass_: Presents | PresentsDevice,
        *,
        motion: moderngl.Texture | None = None,
        depth: moderngl.Texture | None = None,
        mask: NDArray[np.uint8] | None = None,
        index: int | None = None,
        reset: bool = False,
    ) -> Result:
        """Read the frame, present it to the pass, and write what it gives into the target.

        Args:
            pass_: whose ``present``, or ``present_device``, is called, on this thread.
            motion: two components, or more of which the first two are taken, "f2" or "f4"; of the
                source's size, or coarser as :class:`topcoat.runtime.Motion` allows.
            depth: a depth texture, or one component of "f2" or "f4", of the source's size.
            mask: (H, W) uint8, first row at the bottom.
            index: the application's number of this frame.
            reset: a camera cut.

        Returns:
            What the pass returned. With ``delay=1`` its ``age_frames`` is one more, and ``index``
            is still that of the frame which the picture shows. ``image`` is an array of this
            object, and holds the picture until the next call; with transport "cuda" it is the
            target as it was given, and motion, depth, mask and reset are left out.

        Raises:
            FrameError: a texture is not as described, or was released.
            DeviceLostError: the context was lost.
            PassClosedError: this object, or the pass, was closed.
            TopcoatError: what ``Pass.present`` raises.
        """
        self._check_open()
        frame = self._frame
        if self._target is not None and pass_.scale != self._scale:
            raise FrameError(
                f"the target is {self._scale} times as large as the source, and the pass enlarges"
                f" {pass_.scale} times; give a target of the size that it makes"
            )
        if self._wanted == "cuda":
            return self._present_on_the_gpu(cast(PresentsDevice, pass_), index)
        frame.color = self.read()
        frame.motion = self._read_motion(motion)
        frame.depth = self._read_depth(depth)
        late = 0
        if self._delay:
            # What was read is the frame of the call before, and so has to be the rest of it.
            now = index, reset, None if mask is None else self._kept(mask)
            before, self._before = self._before, now
            if before is not None:
                late = 1
                index, reset, mask = before
                # The first frame comes twice, and nothing moved in between.
                reset = reset or self._colour.started == 2
            elif index is not None:
                index -= 1
        frame.index, frame.reset, frame.mask = index, reset, mask
        if self._out is None or pass_.scale * self.size[0] != self._out.shape[0]:
            height, width = self.size
            scale = pass_.scale
            self._out = np.zeros(
                (height * scale, width * scale, self._layout.channels), self._layout.dtype
            )
        result = cast(Presents, pass_).present(frame, out=self._out)
        if self._target is not None:
            self.write(self._out)
        return replace(result, age_frames=result.age_frames + late) if late else result

    def process(self, model: Model) -> None:
        """Style the source into the target with a model: this frame, now, without a pass.

        Where the model's engine is on the GPU that draws, the frame stays there, and the work is
        queued when this returns; else it goes by the host. Which is found out with the first frame.

        Args:
            model: from :func:`topcoat.runtime.open`; the target is ``model.manifest.scale`` times
                as large as the source.

        Raises:
            FrameError: a texture was released, or the sizes do not fit.
            PassError: there is no target.
            BackendUnavailableError: transport "cuda" was asked for, and does not work here.
            DeviceLostError: the context, or CUDA's device, was lost.
            TopcoatError: what ``Model.process`` and ``Model.process_device`` raise.
            PassClosedError: this object was closed.
        """
        self._check_open()
        if self._target is None:
            raise PassError("there is no target to write to; give one to GLTarget")
        if model.manifest.scale != self._scale:
            raise FrameError(
                f"the target is {self._scale} times as large as the source, and the model enlarges"
                f" {model.manifest.scale} times; give a target of the size that it makes"
            )
        if self._bridged is not model:
            if self._wanted in ("auto", "cuda"):
                self._open_bridge(model)
            self._bridged = model
            if self._bridge is not None:
                return  # that frame was the trial
        if self._bridge is not None:
            bridge = self._bridge
            self._guarded(lambda: bridge.run(model.process_device))
            self._look_for_errors()
            return
        color = self.read()
        if self._plan is None or self._rgb is None or self._out is None:
            height, width, _ = self._picture_shape
            self._plan = PixelPlan.of(self._layout, color)
            self._rgb = (
                np.empty((*self.size, 3), np.uint8),
                np.empty((height, width, 3), np.uint8),
            )
            self._out = np.zeros(self._picture_shape, self._layout.dtype)
        rgb, styled = self._rgb
        self._plan.load(color, rgb)
        model.process(rgb, out=styled)
        self._plan.store(styled, color, self._out)
        self.write(self._out)

    def close(self) -> None:
        """Free the buffers. The textures are the application's and stay. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        for part in (self._colour, self._motion, self._depth, self._uploads):
            if part is not None:
                part.release()
        if self._bridge is not None:
            self._bridge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- the inside ------------------------------------------------------------------------------

    @property
    def _picture_shape(self) -> tuple[int, int, int]:
        height, width = self.size
        return height * self._scale, width * self._scale, self._layout.channels

    @property
    def _picture_bytes(self) -> int:
        height, width, channels = self._picture_shape
        return height * width * channels * self._layout.dtype.itemsize

    @property
    def _viewport(self) -> tuple[int, int, int, int]:
        """The region of the target."""
        x, y, width, height = (value * self._scale for value in self._region)
        return x, y, width, height

    def _target_scale(self) -> int:
        target, source = self._target, self._source
        if target is None:
            return 1
        if target.texture is None:
            raise FrameError(
                "the target is a framebuffer without a colour texture, such as a window's; give a"
                " texture, and copy or draw that into the window"
            )
        if (target.order, target.dtype) != (source.order, source.dtype):
            raise FrameError(
                f"the target is {target.order}{_SUFFIXES[target.dtype]}, the source"
                f" {source.order}{_SUFFIXES[source.dtype]}; give a target like the source"
            )
        scale = max(1, target.size[0] // source.size[0])
        if target.size != (source.size[0] * scale, source.size[1] * scale):
            raise FrameError(
                f"the target is {target.size[0]}x{target.size[1]}, wanted the source's"
                f" {source.size[0]}x{source.size[1]}, or that times the scale of the pass"
            )
        return scale

    def _choose(self, wanted: Literal["auto", "pbo", "read"]) -> Literal["pbo", "read"]:
        """Time both ways, and keep why one was taken."""
        import moderngl

        # A frame that is still being drawn would be waited for by whichever way comes first.
        self._ctx.finish()
        read_ms = _best_ms(lambda: self._colour.read(self._source))
        trial: Reader | None = None
        try:
            trial = Reader(self._ctx, self._source, self._region, "pbo", self._delay)
            pbo = trial
            pbo_ms = _best_ms(lambda: pbo.read(self._source))
        except moderngl.Error as error:
            pbo_ms = float("inf")
            self._reasons["pbo"] = f"does not work on this driver ({_one_line(error)})"
            if wanted == "pbo":
                raise BackendUnavailableError(
                    f"pixel buffer objects do not work on this driver ({_one_line(error)}); use"
                    " transport='read'"
                ) from error
        finally:
            if trial is not None:
                trial.release()
        self._look_for_errors()
        self._reasons["read"] = f"{read_ms:.2f} ms to read a frame"
        self._reasons.setdefault("pbo", f"{pbo_ms:.2f} ms to read a frame")
        if wanted != "auto":
            self._reasons[wanted] += ", asked for"
            return wanted
        if self._delay:
            faster = pbo_ms <= read_ms * _SLOWER
            self._reasons["pbo"] += ", waiting for the GPU left out; one frame late"
        else:
            faster = pbo_ms * _SLOWER < read_ms
        return "pbo" if faster else "read"

    def _kept(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a copy that holds until the call after the next one."""
        if len(self._masks) != 2 or self._masks[0].shape != mask.shape:
            self._masks = [np.empty_like(mask), np.empty_like(mask)]
        self._masks.reverse()
        np.copyto(self._masks[0], mask)
        return self._masks[0]

    def _present_on_the_gpu(self, pass_: PresentsDevice, index: int | None) -> Result:
        if self._target is None:
            raise PassError('transport "cuda" writes to a target; give one to GLTarget')
        if self._bridge is None:
            self._open_bridge(None)
        bridge = self._bridge
        assert bridge is not None
        result: Result = self._guarded(
            lambda: bridge.run(
                lambda color, out, stream: pass_.present_device(color, out, stream, index=index)
            )
        )
        self._look_for_errors()
        # Its own image is memory that OpenGL has taken back.
        return replace(result, image=self._given_target)

    def _open_bridge(self, model: Model | None) -> None:
        """Share buffers with CUDA, and run a model's frame; keep why not where that fails.

        Raises:
            BackendUnavailableError: it fails, and transport "cuda" was asked for.
            DeviceLostError: the GPU stopped working.
        """
        import moderngl

        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None
        bridge: CudaBridge | None = None
        try:
            bridge = self._new_bridge()
            if model is not None:
                bridge.run(model.process_device)
        except DeviceLostError:
            if bridge is not None:
                bridge.close()
            raise
        except (BackendError, TextureError, TileError, moderngl.Error) as error:
            if bridge is not None:
                bridge.close()
            self._reasons["cuda"] = _one_line(error)
            if self._wanted == "cuda":
                raise BackendUnavailableError(
                    f"frames cannot stay on the GPU: {_one_line(error)}"
                ) from error
            return
        self._look_for_errors()
        self._reasons["cuda"] = "frames stay on the GPU"
        self._bridge = bridge

    def _new_bridge(self) -> CudaBridge:
        assert self._target is not None
        if self._layout.format not in ("rgb8", "bgr8", "rgba8", "bgra8"):
            raise BackendUnavailableError(f"it takes 8 bits a channel, not {self._layout.format}")
        if self._layout.color_space != "srgb" or self._layout.alpha != "keep":
            raise BackendUnavailableError("it takes display-encoded colour and straight alpha")
        if self._region != (0, 0, *self._source.size):
            raise BackendUnavailableError("it takes whole textures, not a region")
        if self._delay:
            raise BackendUnavailableError("it has no delay, and a delay was asked for")
        return CudaBridge(self._ctx, self._source, self._target, self._scale, self._driver())

    def _read_motion(self, texture: moderngl.Texture | None) -> Motion | None:
        if texture is None:
            return None
        at = Attachment.side(self._ctx, texture, "motion", least=2)
        reader = self._motion
        if reader is None or not reader.fits(at):
            reader = self._motion = self._side_reader(at, reader)
            self._motion_given = Motion(data=reader.array[..., :2], **self._motion_options)
        return self._motion_given if self._read_side(reader, at) else None

    def _read_depth(self, texture: moderngl.Texture | None) -> Depth | None:
        if texture is None:
            return None
        at = Attachment.side(self._ctx, texture, "depth", least=1)
        reader = self._depth
        if reader is None or not reader.fits(at):
            reader = self._depth = self._side_reader(at, reader)
            self._depth_given = Depth(data=reader.array[..., 0], **self._depth_options)
        return self._depth_given if self._read_side(reader, at) else None

    def _read_side(self, reader: Reader, at: Attachment) -> bool:
        """Read a side input; return whether it is of the same frame as the colour."""
        self._guarded(lambda: reader.read(at))
        frame, before = self._colour.started, reader.last
        reader.last = frame
        # A copy that was not begun with the call before is of some other frame.
        return not self._delay or frame == 1 or before == frame - 1

    def _side_reader(self, at: Attachment, old: Reader | None) -> Reader:
        if old is not None:
            old.release()
        whole = (0, 0, *at.size)
        region = self._region if at.size == self._source.size else whole
        return Reader(self._ctx, at, region, self._transport, self._colour.delay)

    def _guarded(self, action: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the action returns
        import moderngl

        try:
            return action()
        except moderngl.Error as error:
            self._look_for_errors()
            raise BackendError(
                f"OpenGL refused to move a frame ({_one_line(error)}); make another GLTarget"
            ) from error

    def _look_for_errors(self) -> None:
        error = self._ctx.error
        if error == "GL_NO_ERROR":
            return
        if error == "GL_CONTEXT_LOST":
            raise DeviceLostError(
                "the OpenGL context was lost (the GPU was reset); make a new context and its"
                " textures, then another GLTarget"
            )
        if not self._told:
            # It may well be the application's own: asking for it is what clears it.
            self._told = True
            _log.warning("OpenGL reports %s, of a call up to now; said once", error)

    def _check_open(self) -> None:
        if self._closed:
            raise PassClosedError("this GLTarget was closed; make another one")


def _best_ms(action: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begin)
    return best * 1e3


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _require_moderngl() -> None:
    try:
        import moderngl  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise BackendUnavailableError(
            "moderngl is not installed; pip install 'topcoat-runtime[gl]'"
        ) from error
