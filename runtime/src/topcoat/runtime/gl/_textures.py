"""OpenGL's textures, checked; and how their pixels get to the host and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import FrameError

if TYPE_CHECKING:
    import moderngl

DTYPES: dict[str, type[np.uint8 | np.float16 | np.float32]] = {
    "f1": np.uint8,
    "f2": np.float16,
    "f4": np.float32,
}
_FRAMEBUFFERS_KEPT = 4
"""An application that renders into two textures in turn gives two of them."""


# ------------------------------------------------------------------------------------- attachments


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """A texture, or what a framebuffer draws into, checked."""

    size: tuple[int, int]
    components: int
    dtype: str
    order: str
    """Of the bytes: "rgb", "rgba", "bgr" or "bgra"; "" for what is no colour."""
    texture: moderngl.Texture | None
    framebuffer: moderngl.Framebuffer | None = None
    """Of the application; None: one is made for the texture."""
    depth: bool = False

    @classmethod
    def of(
        cls, ctx: moderngl.Context, thing: moderngl.Texture | moderngl.Framebuffer, what: str
    ) -> Attachment:
        """Check a colour texture or framebuffer."""
        import moderngl

        if isinstance(thing, moderngl.Framebuffer):
            check_alive(ctx, thing, what)
            attached = thing.color_attachments
            if not attached:
                return cls(thing.size, 4, "f1", "rgba", None, thing)
            first = attached[0]
            order = _order(first, what)
            texture = first if isinstance(first, moderngl.Texture) else None
            return cls(first.size, first.components, first.dtype, order, texture, thing)
        if not isinstance(thing, moderngl.Texture):
            raise FrameError(
                f"the {what} is {type(thing).__name__}, wanted a moderngl.Texture or Framebuffer"
            )
        check_alive(ctx, thing, what)
        order = _order(thing, what)
        return cls(thing.size, thing.components, thing.dtype, order, thing)

    @classmethod
    def side(
        cls, ctx: moderngl.Context, texture: moderngl.Texture, what: str, *, least: int
    ) -> Attachment:
        """Check a motion or depth texture."""
        import moderngl

        if not isinstance(texture, moderngl.Texture):
            raise FrameError(
                f"the {what} texture is {type(texture).__name__}, wanted a moderngl.Texture"
            )
        check_alive(ctx, texture, f"{what} texture")
        if texture.samples or texture.dtype not in ("f2", "f4") or texture.components < least:
            raise FrameError(
                f"the {what} texture has {texture.components} components of {texture.dtype!r} and"
                f" {texture.samples} samples, wanted at least {least} of 'f2' or 'f4' and one"
                " sample"
            )
        return cls(
            texture.size, texture.components, texture.dtype, "", texture, depth=bool(texture.depth)
        )


def check_alive(
    ctx: moderngl.Context, thing: moderngl.Texture | moderngl.Framebuffer, what: str
) -> None:
    if type(thing.mglo).__name__ == "InvalidObject":
        raise FrameError(f"the {what} was released; make another GLTarget")
    if thing.ctx is not ctx:
        raise FrameError(
            f"the {what} is of another OpenGL context; give the context that it was made in"
        )


def _order(thing: Any, what: str) -> str:  # noqa: ANN401 - a texture or renderbuffer
    if getattr(thing, "depth", False):
        raise FrameError(f"the {what} is a depth texture, wanted a colour")
    if thing.samples:
        raise FrameError(
            f"the {what} has {thing.samples} samples a pixel, wanted one; resolve it with"
            " ctx.copy_framebuffer first"
        )
    if thing.dtype not in DTYPES or thing.components not in (3, 4):
        raise FrameError(
            f"the {what} has {thing.components} components of {thing.dtype!r}, wanted 3 or 4 of"
            " 'f1', 'f2' or 'f4'"
        )
    # What shaders see as red is said by the swizzle; what lies first in memory is the first.
    swizzle = str(getattr(thing, "swizzle", "RGBA"))
    known = {"RGB": "rgb", "BGR": "bgr"}.get(swizzle[:3])
    if known is None or (thing.components == 4 and swizzle[3:] not in ("A", "1")):
        raise FrameError(f"the {what} has the swizzle {swizzle!r}, wanted RGBA or BGRA")
    return known if thing.components == 3 else known + "a"


def checked_region(
    region: tuple[int, int, int, int] | None, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    if region is None:
        return 0, 0, *size
    x, y, width, height = region
    if min(x, y) < 0 or min(width, height) < 1 or x + width > size[0] or y + height > size[1]:
        raise FrameError(
            f"region {region} is not within the source of {size[0]}x{size[1]}; give (x, y, width,"
            " height) in pixels"
        )
    return x, y, width, height


# ------------------------------------------------------------------------------------- both ways


class Reader:
    """Reads one kind of texture into one array."""

    def __init__(
        self,
        ctx: moderngl.Context,
        like: Attachment,
        region: tuple[int, int, int, int],
        transport: Literal["pbo", "read"],
        delay: int,
    ) -> None:
        self._ctx = ctx
        self._like = like
        self._region = region
        self.delay = delay
        shape = (region[3], region[2], like.components)
        self.array: NDArray[Any] = np.zeros(shape, DTYPES[like.dtype])
        self._framebuffers: list[tuple[moderngl.Texture, moderngl.Framebuffer]] = []
        count = 0 if transport == "read" else 1 + delay
        self._buffers = [ctx.buffer(reserve=self.array.nbytes, dynamic=True) for _ in range(count)]
        self.started = 0
        """How many copies through buffers were begun."""
        self.last = 0
        """The frame for which that was done last, where the caller keeps count."""
        self._options: dict[str, Any] = {
            "viewport": region,
            "components": like.components,
            "attachment": -1 if like.depth else 0,
            "alignment": 1,
            "dtype": like.dtype,
        }

    def fits(self, other: Attachment) -> bool:
        """Return whether another texture can be read by this one."""
        mine = self._like
        return (other.size, other.components, other.dtype, other.depth) == (
            mine.size,
            mine.components,
            mine.dtype,
            mine.depth,
        )

    def read(self, at: Attachment) -> NDArray[Any]:
        """Return the array, filled; with a delay, with what the call before began to copy."""
        framebuffer = self._framebuffer(at)
        if not self._buffers:
            framebuffer.read_into(self.array, **self._options)
            return self.array
        count = len(self._buffers)
        framebuffer.read_into(self._buffers[self.started % count], **self._options)
        self.started += 1
        # The very first has nothing before it.
        ready = self.started if self.started >= count else 0
        self._buffers[ready % count].read_into(self.array)
        return self.array

    def _framebuffer(self, at: Attachment) -> moderngl.Framebuffer:
        texture = at.texture
        if texture is not None:
            check_alive(self._ctx, texture, "texture")
        if at.framebuffer is not None:
            check_alive(self._ctx, at.framebuffer, "framebuffer")
            return at.framebuffer
        assert texture is not None
        for known, framebuffer in self._framebuffers:
            if known is texture:
                return framebuffer
        if len(self._framebuffers) >= _FRAMEBUFFERS_KEPT:
            self._framebuffers.pop(0)[1].release()
        made = (
            self._ctx.framebuffer(depth_attachment=texture)
            if at.depth
            else self._ctx.framebuffer([texture])
        )
        self._framebuffers.append((texture, made))
        return made

    def release(self) -> None:
        """Free what is OpenGL's."""
        for _, framebuffer in self._framebuffers:
            framebuffer.release()
        for buffer in self._buffers:
            buffer.release()
        self._framebuffers, self._buffers = [], []


class Uploads:
    """Writes pictures into a texture, through two buffers in turn or directly."""

    def __init__(self, ctx: moderngl.Context, size: int, transport: Literal["pbo", "read"]) -> None:
        self._ctx = ctx
        count = 2 if transport == "pbo" else 0
        self._buffers = [ctx.buffer(reserve=size, dynamic=True) for _ in range(count)]
        self._next = 0

    def write(
        self, at: Attachment, picture: NDArray[Any], viewport: tuple[int, int, int, int]
    ) -> None:
        texture = at.texture
        assert texture is not None
        check_alive(self._ctx, texture, "target")
        if not self._buffers:
            texture.write(picture, viewport=viewport, alignment=1)
            return
        buffer = self._buffers[self._next]
        self._next = 1 - self._next
        buffer.orphan()  # the GPU may still read what was in it
        buffer.write(picture)
        texture.write(buffer, viewport=viewport, alignment=1)

    def release(self) -> None:
        """Free what is OpenGL's."""
        for buffer in self._buffers:
            buffer.release()
        self._buffers = []
