"""Frames that never leave the GPU: OpenGL's pixel buffers as CUDA's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, TypeVar

from topcoat.runtime._errors import BackendError, BackendUnavailableError
from topcoat.runtime.backends._cuda import Context, Driver, Stream
from topcoat.runtime.gl._textures import Attachment, check_alive

if TYPE_CHECKING:
    import moderngl

T = TypeVar("T")

FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuGLGetDevices_v2": (c_void_p, c_void_p, c_uint, c_uint),
    "cuGraphicsGLRegisterBuffer": (c_void_p, c_uint, c_uint),
    "cuGraphicsMapResources": (c_uint, c_void_p, c_void_p),
    "cuGraphicsResourceGetMappedPointer_v2": (c_void_p, c_void_p, c_void_p),
    "cuGraphicsUnmapResources": (c_uint, c_void_p, c_void_p),
    "cuGraphicsUnregisterResource": (c_void_p,),
}
"""What the driver needs beside what engines need; old ones, and macOS, have none of it."""
_ALL_DEVICES = 1
_READ_ONLY, _WRITE_DISCARD = 1, 2

_VERTEX = """
#version 330 core
void main() {
    gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}
"""
# Rows are turned round, since networks begin at the top; channels are put into the order wanted.
_PACK = """
#version 330 core
uniform sampler2D frame;
out vec4 rgb;
void main() {
    ivec2 at = ivec2(gl_FragCoord.xy);
    rgb = vec4(texelFetch(frame, ivec2(at.x, textureSize(frame, 0).y - 1 - at.y), 0).ORDER, 1.0);
}
"""
_UNPACK = """
#version 330 core
uniform sampler2D styled;
uniform sampler2D frame;
uniform ivec2 size;  // of what is drawn, a multiple of both
out vec4 pixel;
void main() {
    ivec2 at = ivec2(gl_FragCoord.xy);
    ivec2 turned = ivec2(at.x, size.y - 1 - at.y);
    float alpha = texelFetch(frame, at * textureSize(frame, 0) / size, 0).a;
    pixel = vec4(texelFetch(styled, turned * textureSize(styled, 0) / size, 0).ORDER, alpha);
}
"""


class MappedArray:
    """RGB bytes that a pixel buffer and CUDA share, as ``__cuda_array_interface__`` has it."""

    def __init__(self, shape: tuple[int, int, int], *, read_only: bool) -> None:
        self.shape = shape
        self.pointer = 0
        self._read_only = read_only

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.pointer, self._read_only),
            "strides": None,
            "stream": None,
        }


class CudaBridge:
    """A source and a target texture, with what it takes to run a model between them on the GPU.

    The source is copied into a texture of this object's own, packed into RGB bytes from the top row
    down, and read into a pixel buffer, which CUDA maps. The result comes back the same way, with
    the alpha of the source. All of that is queued; the CPU waits for none of it.

    Args:
        ctx: the current OpenGL context.
        source: 8 bits a channel.
        target: likewise, ``scale`` times as large.
        scale: of the model.
        driver: NVIDIA's.

    Raises:
        BackendUnavailableError: the driver or the context cannot do it; the text says why.
        BackendError: the driver refused a call.
    """

    def __init__(
        self,
        ctx: moderngl.Context,
        source: Attachment,
        target: Attachment,
        scale: int,
        driver: Driver,
    ) -> None:
        self._ctx = ctx
        self._driver = driver
        self._source = source
        self._target = target
        self._made: list[Any] = []
        """What is OpenGL's, to be released."""
        self._registered: list[c_void_p] = []
        self._stream: Stream | None = None
        device = driver.probe()
        if isinstance(device, str):
            raise BackendUnavailableError(device)
        if lacking := driver.add(FUNCTIONS):
            raise BackendUnavailableError(
                f"the NVIDIA driver has no {lacking}; install a newer one, of Linux or Windows"
            )
        self._context = Context(driver, device)
        try:
            with self._context:
                self._check_device(device.ordinal)
                self._stream = Stream(driver)
                self._make_textures(scale)
                self._frame_id = self._register(self._frame_buffer, _READ_ONLY)
                self._styled_id = self._register(self._styled_buffer, _WRITE_DISCARD)
        except BaseException:
            self.close()
            raise

    @property
    def bytes_moved(self) -> tuple[int, int]:
        """How many bytes of a frame and of a picture CUDA is given, for each frame."""
        return self._frame_buffer.size, self._styled_buffer.size

    def run(self, style: Callable[[MappedArray, MappedArray, int], T]) -> T:
        """Style the source into the target; queued on the GPU when this returns.

        Args:
            style: is given the frame and the array for its picture, RGB from the top row down, and
                the CUDA stream on which both are used; it queues the work there. If it returns
                something whose ``image`` is the frame itself, that is the picture.

        Returns:
            What ``style`` returned.

        Raises:
            FrameError: a texture was released.
            TopcoatError: what ``style`` raises; the target is as it was.
        """
        ctx = self._ctx
        for thing, what in ((self._source, "source"), (self._target, "target")):
            for part in (thing.texture, thing.framebuffer):
                if part is not None:
                    check_alive(ctx, part, what)
        assert self._stream is not None
        # A plain copy, so that no swizzle or sRGB decoding of the application's comes between.
        ctx.copy_framebuffer(self._raw, self._source_framebuffer)
        self._draw(self._packed, self._pack, self._raw_texture)
        self._packed.read_into(self._frame_buffer, components=3, alignment=1)
        stream = self._stream.handle
        with self._mapped(stream):
            result = style(self._frame, self._styled, stream)
        if getattr(result, "image", None) is self._frame:
            picture = self._packed_texture
        else:
            picture = self._styled_texture
            picture.write(self._styled_buffer, alignment=1)
        self._draw(self._composed, self._unpack, picture, self._raw_texture)
        ctx.copy_framebuffer(self._target_framebuffer, self._composed)
        return result

    def close(self) -> None:
        """Free everything. Closing twice is fine."""
        if self._context is None:
            return
        context, self._context = self._context, None  # type: ignore[assignment]
        with suppress(BackendError), context:  # of a lost device nothing is left to free
            for resource in self._registered:
                self._driver.attempt("cuGraphicsUnregisterResource", resource)
            if self._stream is not None:
                self._stream.close()
        context.close()
        for thing in reversed(self._made):
            thing.release()
        self._registered, self._made = [], []

    # --- the inside ------------------------------------------------------------------------------

    def _check_device(self, ordinal: int) -> None:
        """Refuse a context of another GPU than the one that engines run on, or of none."""
        count, devices = c_uint(), (c_int * 16)()
        code = self._driver.attempt(
            "cuGLGetDevices_v2", byref(count), devices, len(devices), _ALL_DEVICES
        )
        renderer = str(self._ctx.info.get("GL_RENDERER", "unknown"))
        if code:
            raise BackendUnavailableError(
                f"the OpenGL context is on no NVIDIA GPU (its renderer is {renderer};"
                f" {self._driver.describe(code)}); choose the NVIDIA GPU for this program"
            )
        if ordinal not in devices[: count.value]:
            raise BackendUnavailableError(
                f"the OpenGL context is on another GPU ({renderer}) than the engine; set"
                " CUDA_VISIBLE_DEVICES to that one"
            )

    def _make_textures(self, scale: int) -> None:
        source, ctx = self._source, self._ctx
        size = source.size
        large = size[0] * scale, size[1] * scale
        self._raw_texture, self._raw = self._target_of(size, source.components)
        self._packed_texture, self._packed = self._target_of(size, 3)
        _, self._composed = self._target_of(large, source.components)
        self._styled_texture = self._keep(ctx.texture(large, 3))
        self._source_framebuffer = self._framebuffer(source)
        self._target_framebuffer = self._framebuffer(self._target)
        order = source.order[:3]  # "bgr" turns one into the other both ways
        self._pack = self._program(_PACK.replace("ORDER", order))
        self._unpack = self._program(_UNPACK.replace("ORDER", order))
        self._frame_buffer = self._keep(ctx.buffer(reserve=size[0] * size[1] * 3))
        self._styled_buffer = self._keep(ctx.buffer(reserve=large[0] * large[1] * 3))
        self._frame = MappedArray((size[1], size[0], 3), read_only=True)
        self._styled = MappedArray((large[1], large[0], 3), read_only=False)

    def _target_of(
        self, size: tuple[int, int], components: int
    ) -> tuple[moderngl.Texture, moderngl.Framebuffer]:
        texture = self._keep(self._ctx.texture(size, components))
        return texture, self._keep(self._ctx.framebuffer([texture]))

    def _framebuffer(self, of: Attachment) -> moderngl.Framebuffer:
        if of.texture is None:
            assert of.framebuffer is not None
            return of.framebuffer
        # One of its own, since the application's may have further attachments.
        made: moderngl.Framebuffer = self._keep(self._ctx.framebuffer([of.texture]))
        return made

    def _program(self, fragment: str) -> moderngl.VertexArray:
        program = self._keep(self._ctx.program(_VERTEX, fragment))
        for unit, name in enumerate(("styled", "frame") if "styled" in fragment else ("frame",)):
            if name in program:  # without alpha the frame is not needed
                program[name] = unit
        if "size" in program:
            program["size"] = self._target.size
        array: moderngl.VertexArray = self._keep(self._ctx.vertex_array(program, []))
        return array

    def _keep(self, thing: Any) -> Any:  # noqa: ANN401 - any of moderngl's objects
        self._made.append(thing)
        return thing

    def _draw(
        self,
        into: moderngl.Framebuffer,
        what: moderngl.VertexArray,
        *textures: moderngl.Texture,
    ) -> None:
        """Cover a framebuffer; framebuffer and flags are the application's again afterwards.

        Texture units 0 and 1 are not: moderngl's applications bind theirs before they draw.
        """
        with self._ctx.scope(into, 0):
            for unit, texture in enumerate(textures):
                texture.use(unit)
            what.render(vertices=3)

    def _register(self, buffer: moderngl.Buffer, flags: int) -> c_void_p:
        resource = c_void_p()
        self._driver.call("cuGraphicsGLRegisterBuffer", byref(resource), buffer.glo, flags)
        self._registered.append(resource)
        return resource

    @contextmanager
    def _mapped(self, stream: int) -> Iterator[None]:
        """Lend both buffers to CUDA: behind what OpenGL was told, and before what it will be."""
        driver, context = self._driver, self._context
        both = (c_void_p * 2)(self._frame_id, self._styled_id)
        with context:
            driver.call("cuGraphicsMapResources", 2, both, stream)
        try:
            with context:
                for resource, array in ((both[0], self._frame), (both[1], self._styled)):
                    pointer, size = c_uint64(), c_size_t()
                    driver.call(
                        "cuGraphicsResourceGetMappedPointer_v2",
                        byref(pointer),
                        byref(size),
                        resource,
                    )
                    array.pointer = pointer.value
            yield
        finally:
            with context:
                driver.call("cuGraphicsUnmapResources", 2, both, stream)
