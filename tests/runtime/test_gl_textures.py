"""OpenGL textures to a pass and back, byte for byte, on any OpenGL: Mesa's on the CPU will do."""

from __future__ import annotations

import logging
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

import topcoat.runtime as tr
from topcoat.runtime import (
    BackendError,
    BackendUnavailableError,
    DeviceLostError,
    FrameError,
    TopcoatError,
)
from topcoat.runtime.gl import GLTarget, Transport
from topcoat.runtime.render_pass._frame import RenderFrame
from topcoat.runtime.render_pass._types import Result, Status, Timings

if TYPE_CHECKING:
    import moderngl

DTYPES: dict[str, Any] = {"f1": np.uint8, "f2": np.float16, "f4": np.float32}
WAYS: tuple[Transport, ...] = ("read", "pbo")
SRGB8_ALPHA8 = 0x8C43


@pytest.fixture(scope="module")
def ctx() -> Iterator[moderngl.Context]:
    context = make_context()
    yield context
    context.release()


def make_context() -> moderngl.Context:
    gl = pytest.importorskip("moderngl", reason="moderngl is not installed")
    errors = []
    for names in ({}, {"libgl": "libGL.so.1", "libegl": "libEGL.so.1"}):
        try:
            made: moderngl.Context = gl.create_context(
                standalone=True, require=330, backend="egl", **names
            )
        except Exception as error:
            errors.append(str(error))
        else:
            return made
    pytest.skip(f"no OpenGL context without a window can be made here: {errors[0]}")


def pixels(
    height: int, width: int, components: int = 4, dtype: str = "f1", seed: int = 0
) -> NDArray[Any]:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, components), np.uint8)
    return values if dtype == "f1" else (values / np.float32(16) - 4).astype(DTYPES[dtype])


def texture(ctx: moderngl.Context, array: NDArray[Any], **options: int) -> moderngl.Texture:
    height, width, components = array.shape
    dtype = next(name for name, kind in DTYPES.items() if kind == array.dtype)
    return ctx.texture(
        (width, height), components, array.tobytes(), dtype=dtype, alignment=1, **options
    )


def held(of: moderngl.Texture) -> NDArray[Any]:
    array = np.empty((of.height, of.width, of.components), DTYPES[of.dtype])
    of.read_into(array, alignment=1)
    return array


class Negative:
    """A pass that makes negatives, at once, and keeps what it was given."""

    def __init__(self, scale: int = 1) -> None:
        self.scale = scale
        self.frames: list[dict[str, Any]] = []
        self.keep = True

    def present(self, frame: RenderFrame, out: NDArray[Any] | None = None) -> Result:
        assert out is not None
        if self.keep:
            self.frames.append(
                {
                    "color": frame.color.copy(),
                    "layout": frame.layout,
                    "motion": None if frame.motion is None else frame.motion.data.copy(),
                    "depth": None if frame.depth is None else frame.depth.data.copy(),
                    "mask": None if frame.mask is None else frame.mask.copy(),
                    "index": frame.index,
                    "reset": frame.reset,
                    "options": frame.motion,
                    "inverted": None if frame.depth is None else frame.depth.inverted,
                }
            )
        for row in range(self.scale):
            for column in range(self.scale):
                part = out[row :: self.scale, column :: self.scale]
                np.subtract(255, frame.color, out=part, casting="unsafe")
        return Result(out, Status.FRESH, 0, frame.index or 0, "negative", "", Timings())


# ---------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["f1", "f2", "f4"])
@pytest.mark.parametrize("components", [3, 4])
@pytest.mark.parametrize("size", [(16, 16), (13, 31), (1, 1), (5, 3)])
def test_what_is_read_and_written_is_what_the_texture_holds(
    ctx: moderngl.Context,
    size: tuple[int, int],
    components: int,
    dtype: str,
    way: Transport,
) -> None:
    array = pixels(*size, components, dtype)
    source, target = texture(ctx, array), texture(ctx, np.zeros_like(array))
    with GLTarget(ctx, source, target, transport=way) as gl:
        assert gl.layout.format == f"rgb{'a' * (components - 3)}" + {"f1": "8"}.get(
            dtype, f"{int(dtype[1]) * 8}f"
        )
        assert gl.layout.origin == "bottom-left"
        assert gl.size == size
        read = gl.read()
        assert read.tobytes() == array.tobytes()
        gl.write(read)
        assert held(target).tobytes() == array.tobytes()
        assert held(source).tobytes() == array.tobytes()


def test_the_first_row_is_the_bottom_one(ctx: moderngl.Context) -> None:
    framebuffer = ctx.simple_framebuffer((4, 6), 4)
    framebuffer.clear(0, 0, 0, 1)
    framebuffer.clear(1, 0, 0, 1, viewport=(0, 0, 4, 1))  # OpenGL's y goes up
    with GLTarget(ctx, framebuffer) as gl:
        assert gl.read()[0].tolist() == [[255, 0, 0, 255]] * 4
        assert gl.read()[1:].max(axis=(0, 1)).tolist() == [0, 0, 0, 255]


def test_a_texture_that_holds_bgra_is_taken_so(ctx: moderngl.Context) -> None:
    array = pixels(3, 5)
    source, target = texture(ctx, array), texture(ctx, np.zeros_like(array))
    source.swizzle = target.swizzle = "BGRA"
    with GLTarget(ctx, source, target) as gl:
        assert gl.layout.format == "bgra8"
        assert np.array_equal(gl.read(), array)
        gl.write(gl.read())
        assert np.array_equal(held(target), array)
    three = texture(ctx, pixels(3, 5, 3))
    three.swizzle = "BGR1"
    with GLTarget(ctx, three) as gl:
        assert gl.layout.format == "bgr8"


def test_bytes_of_an_srgb_texture_are_read_and_written_as_they_are(ctx: moderngl.Context) -> None:
    array = np.arange(256, dtype=np.uint8).repeat(4).reshape(16, 16, 4)
    source = texture(ctx, array, internal_format=SRGB8_ALPHA8)
    target = texture(ctx, array * 0, internal_format=SRGB8_ALPHA8)
    with GLTarget(ctx, source, target) as gl:
        assert np.array_equal(gl.read(), array)
        gl.write(array)
    assert np.array_equal(held(target), array)


@pytest.mark.parametrize("way", WAYS)
def test_a_region_alone_is_read_and_written(ctx: moderngl.Context, way: Transport) -> None:
    array, before = pixels(11, 17), pixels(11, 17, seed=1)
    source, target = texture(ctx, array), texture(ctx, before)
    with GLTarget(ctx, source, target, region=(3, 2, 7, 5), transport=way) as gl:
        assert gl.size == (5, 7)
        assert np.array_equal(gl.read(), array[2:7, 3:10])
        gl.write(gl.read())
    want = before.copy()
    want[2:7, 3:10] = array[2:7, 3:10]
    assert np.array_equal(held(target), want)


def test_a_region_of_a_larger_target_is_enlarged_with_it(ctx: moderngl.Context) -> None:
    array = pixels(6, 8, 3)
    source, target = texture(ctx, array), texture(ctx, np.zeros((12, 16, 3), np.uint8))
    with GLTarget(ctx, source, target, region=(2, 1, 4, 3)) as gl:
        gl.present(Negative(scale=2))
    want = np.zeros((12, 16, 3), np.uint8)
    want[2:8, 4:12] = (255 - array[1:4, 2:6]).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(held(target), want)


# -------------------------------------------------------------------------------- present


@pytest.mark.parametrize("way", WAYS)
def test_present_reads_styles_and_writes_each_frame(ctx: moderngl.Context, way: Transport) -> None:
    source = texture(ctx, pixels(9, 12))
    target = texture(ctx, np.zeros((9, 12, 4), np.uint8))
    negative = Negative()
    with GLTarget(ctx, source, target, transport=way) as gl:
        for index in range(4):
            array = pixels(9, 12, seed=index)
            source.write(array, alignment=1)
            result = gl.present(negative, index=index, reset=index == 2)
            assert np.array_equal(held(target), 255 - array)
            assert np.array_equal(result.image, 255 - array)
            assert (result.age_frames, result.index) == (0, index)
    assert [(f["index"], f["reset"]) for f in negative.frames] == [
        (0, False), (1, False), (2, True), (3, False),
    ]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_real_pass_paints_the_target_and_keeps_its_alpha(
    ctx: moderngl.Context, way: Transport, blocks: Path
) -> None:
    array = pixels(24, 32)
    source, target = texture(ctx, array), texture(ctx, np.zeros_like(array))
    motion, depth = texture(ctx, np.zeros((24, 32, 2), np.float16)), ctx.depth_texture((32, 24))
    rgb = np.ascontiguousarray(array[::-1, :, :3])
    with tr.open(blocks, "onnxruntime-cpu", "fp32", threads=1) as model:
        want = model.process(rgb)
    options: dict[str, Any] = {"backend": "onnxruntime-cpu", "precision": "fp32", "threads": 1}
    with (
        tr.Pass.open(blocks, mode="file", **options) as pass_,
        GLTarget(ctx, source, target, transport=way) as gl,
    ):
        pass_.prepare(gl.size, background=False)
        result = gl.present(pass_, motion=motion, depth=depth, index=0)
        assert result.status is Status.FRESH
        assert np.array_equal(held(target)[::-1, :, :3], want)
        assert np.array_equal(held(target)[..., 3], array[..., 3])
        pass_.set(strength=0.0)
        assert gl.present(pass_, index=1).status is Status.PASSTHROUGH
        assert np.array_equal(held(target), array)
    with tr.open(blocks, "onnxruntime-cpu", "fp32", threads=1) as model:
        target.write(bytes(array.nbytes))
        with GLTarget(ctx, source, target, transport=way) as gl:
            gl.process(model)
        assert np.array_equal(held(target)[::-1, :, :3], want)
        assert np.array_equal(held(target)[..., 3], array[..., 3])


def test_a_texture_may_be_styled_in_place(ctx: moderngl.Context) -> None:
    array = pixels(7, 9)
    source = texture(ctx, array)
    with GLTarget(ctx, source, source) as gl:
        gl.present(Negative())
    assert np.array_equal(held(source), 255 - array)


@pytest.mark.parametrize("way", WAYS)
def test_motion_and_depth_come_with_their_meaning(ctx: moderngl.Context, way: Transport) -> None:
    source = texture(ctx, pixels(6, 10))
    vectors = pixels(6, 10, 2, "f2")
    motion = texture(ctx, vectors)
    depth = ctx.depth_texture((10, 6))
    drawn = ctx.framebuffer(depth_attachment=depth)
    drawn.clear(depth=1.0)
    drawn.clear(depth=0.25, viewport=(0, 0, 10, 2))
    negative = Negative()
    with GLTarget(
        ctx, source, transport=way, motion_scale=(10, 6), motion_direction="from-previous",
        depth_inverted=True,
    ) as gl:  # fmt: skip
        gl.present(negative, motion=motion, depth=depth)
        gl.present(negative, depth=depth)
    first, second = negative.frames
    assert np.array_equal(first["motion"], vectors)
    assert (first["options"].scale, first["options"].direction) == ((10, 6), "from-previous")
    assert first["inverted"] is True
    assert first["depth"][:2].max() == pytest.approx(0.25, abs=1e-6)
    assert first["depth"][2:].min() == pytest.approx(1.0, abs=1e-6)
    assert second["motion"] is None
    assert second["depth"] is not None


def test_side_inputs_follow_the_region_or_are_coarse(ctx: moderngl.Context) -> None:
    source = texture(ctx, pixels(8, 12))
    fine, coarse = pixels(8, 12, 2, "f4"), pixels(2, 3, 4, "f4")
    negative = Negative()
    with GLTarget(ctx, source, region=(2, 4, 6, 4)) as gl:
        gl.present(negative, motion=texture(ctx, fine))
        gl.present(negative, motion=texture(ctx, coarse))
    assert np.array_equal(negative.frames[0]["motion"], fine[4:8, 2:8])
    assert np.array_equal(negative.frames[1]["motion"], coarse[..., :2])


def test_two_textures_in_turn_are_each_read(ctx: moderngl.Context) -> None:
    source = texture(ctx, pixels(4, 4))
    arrays = [pixels(4, 4, 2, "f2", seed=seed) for seed in range(6)]
    textures = [texture(ctx, array) for array in arrays]
    negative = Negative()
    with GLTarget(ctx, source) as gl:
        for one in (*textures, *textures[::-1]):
            gl.present(negative, motion=one)
    for frame, array in zip(negative.frames, (*arrays, *arrays[::-1]), strict=True):
        assert np.array_equal(frame["motion"], array)


# ---------------------------------------------------------------------------------- delay


def test_a_delayed_read_gives_all_of_the_frame_before(ctx: moderngl.Context) -> None:
    size = (5, 7)
    source, target = texture(ctx, pixels(*size)), texture(ctx, pixels(*size))
    motion = texture(ctx, pixels(*size, 2, "f2"))
    negative = Negative()
    ages = []
    with GLTarget(ctx, source, target, transport="pbo", delay=1) as gl:
        for index in range(5):
            source.write(pixels(*size, seed=index), alignment=1)
            motion.write(pixels(*size, 2, "f2", seed=100 + index), alignment=1)
            mask = np.full(size, index, np.uint8)
            result = gl.present(
                negative, motion=motion, index=10 + index, mask=mask, reset=index == 3
            )
            mask[:] = 99  # the application's own, which it may change after the call
            ages.append(result.age_frames)
            shown = max(index - 1, 0)
            assert np.array_equal(held(target), 255 - pixels(*size, seed=shown))
    assert ages == [0, 1, 1, 1, 1]
    # The first call has no frame before it and shows its own, under the number before it.
    assert [f["index"] for f in negative.frames] == [9, 10, 11, 12, 13]
    assert [f["reset"] for f in negative.frames] == [False, True, False, False, True]
    assert [int(f["mask"].max()) for f in negative.frames] == [0, 0, 1, 2, 3]
    for index, frame in enumerate(negative.frames):
        shown = max(index - 1, 0)
        assert np.array_equal(frame["motion"], pixels(*size, 2, "f2", seed=100 + shown))


def test_a_delay_that_brings_nothing_is_none(
    ctx: moderngl.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    import moderngl

    plain = moderngl.Buffer.read_into

    def slow(self: moderngl.Buffer, *where: Any, **options: Any) -> None:  # noqa: ANN401
        time.sleep(0.005)
        plain(self, *where, **options)

    monkeypatch.setattr(moderngl.Buffer, "read_into", slow)
    source = texture(ctx, pixels(5, 7))
    negative = Negative()
    with GLTarget(ctx, source, delay=1) as gl:
        assert gl.transport == "read"
        for index in range(3):
            source.write(pixels(5, 7, seed=index), alignment=1)
            result = gl.present(negative, index=index)
            assert (result.age_frames, result.index) == (0, index)
            assert np.array_equal(result.image, 255 - pixels(5, 7, seed=index))


def test_a_side_input_of_another_frame_than_the_colour_is_left_out(ctx: moderngl.Context) -> None:
    size = (5, 7)
    source = texture(ctx, pixels(*size))
    motion = texture(ctx, pixels(*size, 2, "f2"))
    negative = Negative()
    with GLTarget(ctx, source, transport="pbo", delay=1) as gl:
        for index in range(7):
            motion.write(pixels(*size, 2, "f2", seed=index), alignment=1)
            gl.present(negative, motion=motion if index in (2, 3, 5, 6) else None)
    given = [frame["motion"] for frame in negative.frames]
    assert [one is not None for one in given] == [False] * 3 + [True, False, False, True]
    assert np.array_equal(given[3], pixels(*size, 2, "f2", seed=2))
    assert np.array_equal(given[6], pixels(*size, 2, "f2", seed=5))


# --------------------------------------------------------------------------------- choice


def test_auto_chooses_by_time_and_explain_says_why(ctx: moderngl.Context) -> None:
    source, target = texture(ctx, pixels(36, 64)), texture(ctx, pixels(36, 64))
    with GLTarget(ctx, source, target) as gl:
        text = gl.explain()
        assert f"-> {gl.transport}" in text
        other = "pbo" if gl.transport == "read" else "read"
        assert f"-- {other}" in text
        assert text.count(" ms to read a frame") == 2
        sizes = [copy.bytes for copy in gl.copies]
        assert sizes == [36 * 64 * 4] * 2
        gl.present(Negative(), motion=texture(ctx, pixels(36, 64, 2, "f2")))
        assert [copy.bytes for copy in gl.copies] == [36 * 64 * 4] * 3
        assert gl.explain().count("copy: ") == 3


def test_auto_takes_what_works_where_buffers_do_not(
    ctx: moderngl.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    import moderngl

    def refuse(*_: object, **__: object) -> None:
        raise moderngl.Error("cannot map\n the buffer")

    source = texture(ctx, pixels(4, 4))
    monkeypatch.setattr(moderngl.Buffer, "read_into", refuse)
    with GLTarget(ctx, source) as gl:
        assert gl.transport == "read"
        assert "does not work on this driver (cannot map the buffer)" in gl.explain()
    with pytest.raises(BackendUnavailableError, match="use transport='read'"):
        GLTarget(ctx, source, transport="pbo")


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_allocated_per_frame(ctx: moderngl.Context, way: Transport) -> None:
    source, target = texture(ctx, pixels(90, 160)), texture(ctx, pixels(90, 160))
    motion, depth = texture(ctx, pixels(90, 160, 2, "f2")), ctx.depth_texture((160, 90))
    negative = Negative()
    negative.keep = False
    with GLTarget(ctx, source, target, transport=way) as gl:
        for index in range(5):
            gl.present(negative, motion=motion, depth=depth, index=index)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            for index in range(5, 55):
                gl.present(negative, motion=motion, depth=depth, index=index)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    assert peak < 16 * 1024


# ------------------------------------------------------------------------------ wrong use


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert isinstance(error.value, TopcoatError)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_textures_that_hold_no_frames_are_refused_in_one_line(ctx: moderngl.Context) -> None:
    good = texture(ctx, pixels(4, 6))
    odd = texture(ctx, pixels(4, 6))
    odd.swizzle = "GGGA"
    cases: list[tuple[Any, Any, str]] = [
        (ctx.texture((6, 4), 2), None, "2 components of 'f1', wanted 3 or 4"),
        (ctx.texture((6, 4), 4, dtype="u1"), None, "components of 'u1'"),
        (ctx.texture((6, 4), 4, samples=4), None, "resolve it with ctx.copy_framebuffer"),
        (ctx.depth_texture((6, 4)), None, "depth texture, wanted a colour"),
        (odd, None, "swizzle 'GGGA', wanted RGBA or BGRA"),
        (np.zeros((4, 6, 4), np.uint8), None, "is ndarray, wanted a moderngl.Texture"),
        (good, ctx.texture((6, 4), 3), "target is rgb8, the source rgba8"),
        (good, ctx.texture((6, 4), 4, dtype="f2"), "target is rgba16f, the source rgba8"),
        (good, ctx.texture((7, 4), 4), "target is 7x4, wanted the source's 6x4"),
        (good, ctx.texture((12, 4), 4), "target is 12x4"),
        (good, ctx.texture((3, 2), 4), "target is 3x2"),
    ]
    for source, target, text in cases:
        with pytest.raises(FrameError) as error:
            GLTarget(ctx, source, target)
        assert text in one_line(error)


def test_wrong_options_are_refused_in_one_line(ctx: moderngl.Context) -> None:
    source = texture(ctx, pixels(4, 6))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"transport": "dma"}, "transport is 'dma', wanted auto, cuda, pbo or read"),
        ({"delay": 2}, "delay is 2, wanted 0 or 1"),
        ({"delay": 1, "transport": "read"}, "a plain read has no delay"),
        ({"region": (0, 0, 7, 4)}, "not within the source of 6x4"),
        ({"region": (-1, 0, 2, 2)}, "not within the source"),
        ({"region": (0, 0, 0, 2)}, "not within the source"),
        ({"color_space": "srgb", "exposure": 2.0}, "exposure"),
    ]
    for options, text in cases:
        with pytest.raises(TopcoatError) as error:
            GLTarget(ctx, source, **options)
        assert text in one_line(error)


@pytest.fixture
def foreign(ctx: moderngl.Context) -> Iterator[moderngl.Texture]:
    """A texture of another context, which is left alone then: its end would end EGL for all."""
    other = make_context()
    KEPT.append(other)
    made = other.texture((4, 4), 4)
    ctx.__enter__()  # type: ignore[no-untyped-call]  # makes it the current one again
    yield made
    assert ctx.error == "GL_NO_ERROR"


KEPT: list[moderngl.Context] = []


def test_a_texture_of_another_context_is_refused(
    ctx: moderngl.Context, foreign: moderngl.Texture
) -> None:
    with pytest.raises(FrameError) as error:
        GLTarget(ctx, foreign)
    assert "another OpenGL context" in one_line(error)


def test_a_released_texture_is_noticed(ctx: moderngl.Context) -> None:
    source, target = texture(ctx, pixels(4, 4)), texture(ctx, pixels(4, 4))
    motion = texture(ctx, pixels(4, 4, 2, "f2"))
    gl = GLTarget(ctx, source, target)
    gl.present(Negative(), motion=motion)
    for gone in (motion, target, source):
        gone.release()
        with pytest.raises(FrameError) as error:
            gl.present(Negative(), motion=motion)
        assert "was released" in one_line(error)
        motion = texture(ctx, pixels(4, 4, 2, "f2"))
    gl.close()
    gl.close()
    with pytest.raises(TopcoatError, match="this GLTarget was closed"):
        gl.read()


def test_pictures_and_passes_that_do_not_fit_are_refused(ctx: moderngl.Context) -> None:
    source, target = texture(ctx, pixels(4, 6)), texture(ctx, pixels(4, 6))
    with GLTarget(ctx, source) as gl, pytest.raises(TopcoatError, match="there is no target"):
        gl.write(pixels(4, 6))
    with GLTarget(ctx, source, target) as gl:
        for array, text in (
            (pixels(6, 4), r"wanted uint8 of shape \(4, 6, 4\)"),
            (pixels(4, 6, 4, "f4"), "the picture is float32"),
            (pixels(4, 6)[::-1], "not C-contiguous"),
        ):
            with pytest.raises(FrameError, match=text):
                gl.write(array)
        with pytest.raises(FrameError, match=r"1 times as large .* enlarges 2 times"):
            gl.present(Negative(scale=2))
        with pytest.raises(FrameError, match="motion texture has 4 components of 'f1'"):
            gl.present(Negative(), motion=source)
        with pytest.raises(FrameError, match="depth texture is str"):
            gl.present(Negative(), depth="near")  # type: ignore[arg-type]


class Faulty:
    """A context whose next error is known; everything else is the real one's."""

    def __init__(self, ctx: moderngl.Context, *errors: str) -> None:
        self._ctx = ctx
        self._errors = list(errors)

    @property
    def error(self) -> str:
        return self._errors.pop(0) if self._errors else "GL_NO_ERROR"

    def __getattr__(self, name: str) -> object:
        return getattr(self._ctx, name)


def test_a_lost_context_is_an_error_and_other_errors_are_told_once(
    ctx: moderngl.Context, caplog: pytest.LogCaptureFixture
) -> None:
    source = texture(ctx, pixels(4, 4))
    gl = GLTarget(ctx, source)
    gl._ctx = Faulty(ctx, "GL_INVALID_ENUM", "GL_INVALID_VALUE", "GL_CONTEXT_LOST")  # type: ignore[assignment]
    gl._colour._framebuffer(gl._source)  # made before the context is replaced
    with caplog.at_level(logging.WARNING, "topcoat.runtime"):
        gl.read()
        gl.read()
        assert [record.getMessage() for record in caplog.records] == [
            "OpenGL reports GL_INVALID_ENUM, of a call up to now; said once"
        ]
        with pytest.raises(DeviceLostError) as error:
            gl.read()
    assert "context was lost" in one_line(error)
    gl.close()


def test_what_opengl_refuses_is_one_line(
    ctx: moderngl.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    import moderngl

    gl = GLTarget(ctx, texture(ctx, pixels(4, 4)), transport="pbo")

    def refuse(*_: object, **__: object) -> None:
        raise moderngl.Error("cannot map the buffer")

    monkeypatch.setattr(moderngl.Buffer, "read_into", refuse)
    with pytest.raises(BackendError) as error:
        gl.read()
    assert "OpenGL refused to move a frame (cannot map the buffer)" in one_line(error)


def test_without_moderngl_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moderngl", None)
    nothing: Any = None
    with pytest.raises(BackendUnavailableError) as error:
        GLTarget(nothing, nothing)
    assert "pip install 'topcoat-runtime[gl]'" in one_line(error)
