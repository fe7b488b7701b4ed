"""Draw frames of the scene: colour, depth and motion vectors in one pass, three render targets."""

import ctypes.util
import os
from typing import Any, NamedTuple

import moderngl
import numpy as np
import numpy.typing as npt

from scene import camera, meshes, shaders
from scene.options import ExampleError

SHADOW_MAP = 512
"""Side of the shadow map in texels; it covers 25 m."""


class GBuffer(NamedTuple):
    """A frame as a renderer has it; rows from the bottom up, as OpenGL counts them."""

    colour: npt.NDArray[np.uint8]
    """(H, W, 4) RGBA, encoded for the display."""
    motion: npt.NDArray[np.float16]
    """(H, W, 2) pixels, x to the right and y up: where this was a frame ago, minus where it is."""
    depth: npt.NDArray[np.float32]
    """(H, W) of OpenGL's depth buffer: 0 at the near plane, 1 at the far one and in the sky."""

    @classmethod
    def of(cls, width: int, height: int) -> "GBuffer":
        """Return the buffers of a frame, to be made once."""
        return cls(
            np.zeros((height, width, 4), np.uint8),
            np.zeros((height, width, 2), np.float16),
            np.zeros((height, width), np.float32),
        )


def create_context() -> moderngl.Context:
    """Return an OpenGL 3.3 context without a window.

    Raises:
        ExampleError: there is no OpenGL here; one line says what to install.
    """
    # Mesa's software renderer would draw on every core, and the network needs one. Other drivers
    # know nothing of this.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    attempts: list[dict[str, Any]] = [{}]
    if ctypes.util.find_library("EGL") or not ctypes.util.find_library("X11"):
        # EGL needs no display; the names are given since find_library depends on ldconfig.
        names = {"libgl": "libGL.so.1", "libegl": "libEGL.so.1"}
        attempts = [{"backend": "egl"}, {"backend": "egl", **names}, {}]
    errors = []
    for options in attempts:
        try:
            return moderngl.create_context(standalone=True, require=330, **options)
        except Exception as error:  # glcontext raises plain Exception
            errors.append(" ".join(str(error).split()))
    raise ExampleError(
        f"no OpenGL 3.3 context can be made here ({errors[0]}); on Debian or Ubuntu: apt install"
        " libegl1 libgl1 libgl1-mesa-dri"
    )


class SceneRenderer:
    """The scene at one size; a frame depends on its index alone.

    Args:
        context: the OpenGL context; everything made here belongs to it.
        width: of the frames, in pixels.
        height: of the frames, in pixels.
    """

    def __init__(self, context: moderngl.Context, width: int, height: int) -> None:
        self.context = context
        self.size = width, height
        self.colour = context.texture(self.size, 4)
        self.motion = context.texture(self.size, 2, dtype="f2")
        self.depth = context.depth_texture(self.size)
        self.target = context.framebuffer([self.colour, self.motion], self.depth)

        solid = context.program(shaders.SOLID_VERTEX, shaders.SOLID_FRAGMENT)
        sea = context.program(shaders.SEA_VERTEX, shaders.SEA_FRAGMENT)
        sky = context.program(shaders.SKY_VERTEX, shaders.SKY_FRAGMENT)
        shadow = context.program(shaders.SHADOW_VERTEX, shaders.SHADOW_FRAGMENT)
        self._programs = {"solid": solid, "sea": sea, "sky": sky, "shadow": shadow}
        self._frame = context.buffer(reserve=3 * 64 + 2 * 16)
        for program in (solid, sea, sky):
            program["Frame"].binding = 0  # type: ignore[union-attr]  # a block of uniforms
        form = "3f 3f 3f f", "position", "normal", "albedo", "ambient"
        self._land = self._array(solid, meshes.static(), *form)
        self._boat = self._array(solid, meshes.boat(), *form)
        self._wing = self._array(solid, meshes.wing(), *form)
        self._sea = self._array(sea, meshes.sea(), "3f 6x4 f", "position", "ambient")
        self._sky = self._array(sky, meshes.sky_dome(), "3f 2f", "position", "panorama")
        panorama = meshes.sky_panorama(camera.SUN)
        self._panorama = context.texture(panorama.shape[1::-1], 4, panorama)
        self._panorama.repeat_y = False

        # The land and the sun stand still, so the land's shadow is drawn once; what moves is drawn
        # into a copy of it.
        place = "3f 7x4", "position"
        self._boat_shadow = self._array(shadow, meshes.boat(), *place)
        self._shadow_map, self._shadow_target = self._shadow_buffer()
        _, self._land_shadow_target = self._shadow_buffer()
        self._to_sun = camera.sun_view()
        _write(shadow, "to_sun", self._to_sun)
        _write(shadow, "model", np.eye(4))
        context.enable_only(moderngl.DEPTH_TEST)
        self._land_shadow_target.use()
        self._land_shadow_target.clear()
        self._array(shadow, meshes.static(), *place).render()

    def draw(self, index: int, jitter: tuple[float, float] = (0.0, 0.0)) -> None:
        """Draw frame ``index``; the picture is moved by ``jitter`` pixels, motion vectors not."""
        gl, programs = self.context, self._programs
        width, height = self.size
        now = camera.moment(index, width / height)
        before = camera.moment(index - 1, width / height)
        gl.enable_only(moderngl.DEPTH_TEST)
        gl.copy_framebuffer(self._shadow_target, self._land_shadow_target)
        self._shadow_target.use()
        _write(programs["shadow"], "model", now.boat)
        self._boat_shadow.render()

        self._write_frame(now, before, jitter)
        self.target.use()
        self.target.clear()
        self._frame.bind_to_uniform_block(0)
        self._shadow_map.use(0)
        self._panorama.use(1)
        programs["solid"]["shadows"] = programs["sea"]["shadows"] = 0
        programs["sky"]["sky"] = 1
        # Wings and sails are thin: both of their sides are seen.
        for model, previous in zip(now.wings, before.wings, strict=True):
            self._draw("solid", self._wing, model, previous)
        self._draw("solid", self._boat, now.boat, before.boat)
        gl.enable(moderngl.CULL_FACE)
        self._draw("solid", self._land, np.eye(4), np.eye(4))
        programs["sea"]["seconds"] = now.seconds
        self._draw("sea", self._sea, np.eye(4), np.eye(4))
        gl.disable(moderngl.CULL_FACE)
        gl.depth_func = "<="  # the sky is exactly as far away as a cleared depth buffer
        self._draw("sky", self._sky, now.sky, before.sky)
        gl.depth_func = "<"

    def read(self, into: GBuffer) -> GBuffer:
        """Copy the frame that was drawn last to the host."""
        self.colour.read_into(into.colour)
        self.motion.read_into(into.motion)
        self.depth.read_into(into.depth)
        return into

    def _draw(
        self,
        program: str,
        array: moderngl.VertexArray,
        model: camera.Matrix,
        previous: camera.Matrix,
    ) -> None:
        _write(self._programs[program], "model", model)
        _write(self._programs[program], "previous_model", previous)
        array.render()

    def _array(
        self, program: moderngl.Program, mesh: meshes.Mesh, form: str, *names: str
    ) -> moderngl.VertexArray:
        """Put a mesh into buffers; corners that triangles share are stored, and shaded, once."""
        corners, index = np.unique(mesh, axis=0, return_inverse=True)
        return self.context.vertex_array(
            program,
            [(self.context.buffer(corners.tobytes()), form, *names)],
            index_buffer=self.context.buffer(index.astype(np.int32).tobytes()),
        )

    def _shadow_buffer(self) -> tuple[moderngl.Texture, moderngl.Framebuffer]:
        size = SHADOW_MAP, SHADOW_MAP
        depth = self.context.depth_texture(size)
        depth.compare_func = "<="
        depth.repeat_x = depth.repeat_y = False
        # moderngl copies the depth of framebuffers that have a colour to copy.
        return depth, self.context.framebuffer([self.context.texture(size, 1)], depth)

    def _write_frame(
        self, now: camera.Moment, before: camera.Moment, jitter: tuple[float, float]
    ) -> None:
        """Write the uniforms that all shaders share."""
        # From clip space to texture coordinates, a little nearer to the sun than the surface is.
        to_map = camera.translation(0.5, 0.5, 0.497) @ camera.scaling(0.5)
        matrices = now.view_projection, before.view_projection, to_map @ self._to_sun
        vectors = [*now.eye, now.seconds, *self.size, *jitter]
        self._frame.write(b"".join(map(_gl, matrices)) + np.array(vectors, np.float32).tobytes())


def _write(program: moderngl.Program, name: str, matrix: camera.Matrix) -> None:
    program[name].write(_gl(matrix))  # type: ignore[union-attr]  # a uniform


def _gl(matrix: camera.Matrix) -> bytes:
    """Return a matrix as OpenGL reads it: float32, column after column."""
    return matrix.T.astype(np.float32).tobytes()
