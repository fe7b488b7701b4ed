"""Frames from OpenGL to CUDA and back: real OpenGL on the CPU, and a driver that is not there.

The driver's mapped memory is a copy of OpenGL's buffer, made when it is mapped and written back
when it is unmapped, so that a missing map, a wrong order and a wrong buffer give a wrong picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

import topcoat.runtime as tr
from tests.runtime.fake_cuda import INVALID_VALUE, OUT_OF_MEMORY, UNKNOWN, FakeCuda
from tests.runtime.fake_tensorrt import Rig, make_engine_bundle
from tests.runtime.test_gl_textures import Negative, held, make_context, one_line, pixels, texture
from topcoat.runtime.gl import GLTarget, Transport

if TYPE_CHECKING:
    import moderngl


@pytest.fixture(scope="module")
def ctx() -> Iterator[moderngl.Context]:
    context = make_context()
    yield context
    context.release()


@pytest.fixture
def rig(ctx: moderngl.Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A driver that shares the buffers of this context."""
    import moderngl

    made = Rig(cuda=FakeCuda())
    buffers: dict[int, moderngl.Buffer] = {}
    plain = moderngl.Context.buffer

    def recorded(self: moderngl.Context, *data: Any, **options: Any) -> moderngl.Buffer:  # noqa: ANN401
        buffer: moderngl.Buffer = plain(self, *data, **options)
        buffers[buffer.glo] = buffer
        return buffer

    monkeypatch.setattr(moderngl.Context, "buffer", recorded)
    made.cuda.gl_device = 0
    made.cuda.gl_read = lambda name: buffers[name].read()
    made.cuda.gl_write = lambda name, data: buffers[name].write(data)
    yield made
    made.check()
    assert not made.cuda.gl_resources, "everything registered is given back"
    assert not made.cuda.live()


def bridged(
    rig: Rig,
    ctx: moderngl.Context,
    source: moderngl.Texture | moderngl.Framebuffer,
    target: moderngl.Texture | moderngl.Framebuffer | None,
    transport: Transport = "cuda",
    **options: Any,  # noqa: ANN401 - as GLTarget
) -> GLTarget:
    gl = GLTarget(ctx, source, target, transport=transport, **options)
    gl._driver = lambda: rig.driver
    return gl


def on_the_host(
    ctx: moderngl.Context, source: moderngl.Texture, scale: int, bundle: Path
) -> NDArray[Any]:
    """Return what the plain way makes of a texture."""
    height, width, components = source.height * scale, source.width * scale, source.components
    target = texture(ctx, np.zeros((height, width, components), np.uint8))
    target.swizzle = source.swizzle
    with (
        tr.open(bundle, "onnxruntime-cpu", "fp32", threads=1) as model,
        GLTarget(ctx, source, target, transport="read") as gl,
    ):
        gl.process(model)
    return held(target)


@pytest.mark.parametrize(
    ("components", "swizzle"), [(3, "RGB1"), (4, "RGBA"), (4, "BGRA"), (3, "BGR1")]
)
@pytest.mark.parametrize("size", [(16, 24), (17, 23)])
def test_frames_that_stay_on_the_gpu_come_out_as_those_of_the_host(
    ctx: moderngl.Context,
    rig: Rig,
    tmp_path: Path,
    blocks: Path,
    size: tuple[int, int],
    components: int,
    swizzle: str,
) -> None:
    source = texture(ctx, pixels(*size, components))
    target = texture(ctx, pixels(*size, components, seed=9))
    source.swizzle = target.swizzle = swizzle
    with (
        rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model,
        bridged(rig, ctx, source, target) as gl,
    ):
        for seed in range(3):
            source.write(pixels(*size, components, seed=seed), alignment=1)
            gl.process(model)
            assert gl.transport == "cuda"
            assert np.array_equal(held(target), on_the_host(ctx, source, 1, blocks))
    assert rig.cuda.calls["cuMemcpyDtoHAsync_v2"] == 0
    assert rig.cuda.calls["cuMemcpyHtoDAsync_v2"] == 0
    assert rig.cuda.calls["cuGraphicsGLRegisterBuffer"] == 2, "once, not for every frame"


def test_a_model_that_enlarges_fills_a_larger_target(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path
) -> None:
    double = Path(__file__).parent / "data" / "double.topcoat"
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(32, 48))
    with (
        rig.open(make_engine_bundle(double, tmp_path), backend="tensorrt-rtx") as model,
        bridged(rig, ctx, source, target) as gl,
    ):
        gl.process(model)
        assert [copy.bytes for copy in gl.copies] == [16 * 24 * 3, 32 * 48 * 3]
        with pytest.raises(tr.FrameError, match=r"2 times as large .* enlarges 1 times"):
            gl.process(tr.open(double.with_name("blocks.topcoat"), "onnxruntime-cpu"))
    assert np.array_equal(held(target), on_the_host(ctx, source, 2, double))


def test_framebuffers_and_styling_in_place_work_too(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    first, second = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24, seed=1))
    want = on_the_host(ctx, first, 1, blocks)
    several = ctx.framebuffer([first, second], ctx.depth_texture((24, 16)))
    with (
        rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model,
        bridged(rig, ctx, several, several) as gl,
    ):
        gl.process(model)
    assert np.array_equal(held(first), want)
    assert np.array_equal(held(second), pixels(16, 24, seed=1)), "further attachments are left"


def test_the_applications_framebuffer_and_flags_are_as_they_were(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    import moderngl

    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    mine = ctx.simple_framebuffer((8, 8), 4)
    red = ctx.program(
        "#version 330 core\nvoid main() { gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0,"
        " gl_VertexID == 2 ? 3.0 : -1.0, 0.5, 1.0); }",
        "#version 330 core\nout vec4 c; void main() { c = vec4(1.0, 0.0, 0.0, 1.0); }",
    )
    triangle = ctx.vertex_array(red, [])
    mine.use()
    mine.clear(depth=0.25)  # nearer than the triangle
    ctx.enable_only(moderngl.DEPTH_TEST)
    with (
        rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model,
        bridged(rig, ctx, source, target) as gl,
    ):
        gl.process(model)
        want = held(target)
        triangle.render(vertices=3)
        assert not np.frombuffer(mine.read(components=3), np.uint8).any(), "the depth test is on"
        ctx.enable_only(moderngl.NOTHING)
        triangle.render(vertices=3)
        drawn = np.frombuffer(mine.read(components=3), np.uint8).reshape(8, 8, 3)
        assert drawn[..., 0].min() == 255, "drawing goes to the application's framebuffer"
    assert np.array_equal(held(target), want)


def test_where_it_cannot_be_frames_go_by_the_host_and_explain_says_why(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    bundle = make_engine_bundle(blocks, tmp_path)
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    floats = texture(ctx, pixels(16, 24, dtype="f2")), texture(ctx, pixels(16, 24, dtype="f2"))
    want = on_the_host(ctx, source, 1, blocks)

    def reason(source: Any, target: Any, **options: Any) -> str:  # noqa: ANN401
        with (
            rig.open(bundle, backend="tensorrt-rtx") as model,
            bridged(rig, ctx, source, target, "auto", **options) as gl,
        ):
            gl.process(model)
            assert gl.transport in ("read", "pbo")
            line = next(line for line in gl.explain().splitlines() if "cuda" in line)
        with (
            rig.open(bundle, backend="tensorrt-rtx") as model,
            bridged(rig, ctx, source, target, "cuda", **options) as gl,
            pytest.raises(tr.BackendUnavailableError) as error,
        ):
            gl.process(model)
        assert one_line(error).startswith("frames cannot stay on the GPU: ")
        assert one_line(error).partition(": ")[2] in line
        return line

    assert "not rgba16f" in reason(*floats)
    assert "whole textures" in reason(source, target, region=(0, 0, 8, 8))
    assert "display-encoded" in reason(source, target, color_space="linear")
    target.write(bytes(16 * 24 * 4))
    rig.cuda.gl_device = 1
    assert "is on another GPU" in reason(source, target)
    assert np.array_equal(held(target), want)
    rig.cuda.gl_device = None
    line = reason(source, target)
    assert "is on no NVIDIA GPU" in line
    assert "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT" in line


def test_a_driver_without_opengl_is_named_by_what_it_lacks(
    ctx: moderngl.Context, tmp_path: Path, blocks: Path
) -> None:
    old = Rig(cuda=FakeCuda(lacking=("cuGraphicsMapResources",)))
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    with (
        old.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model,
        bridged(old, ctx, source, target) as gl,
        pytest.raises(tr.BackendUnavailableError) as error,
    ):
        gl.process(model)
    assert "the NVIDIA driver has no cuGraphicsMapResources; install a newer" in one_line(error)
    old.check()


def test_an_engine_of_the_host_is_served_by_the_host(
    ctx: moderngl.Context, rig: Rig, blocks: Path
) -> None:
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    with (
        tr.open(blocks, "onnxruntime-cpu", "fp32", threads=1) as model,
        bridged(rig, ctx, source, target, "auto") as gl,
    ):
        gl.process(model)
        gl.process(model)
        assert gl.transport in ("read", "pbo")
        assert "runs frames of the host's memory alone" in gl.explain()
    assert np.array_equal(held(target), on_the_host(ctx, source, 1, blocks))
    assert rig.cuda.calls["cuGraphicsGLRegisterBuffer"] == 2, "tried once"


def test_without_a_driver_frames_go_by_the_host(ctx: moderngl.Context, blocks: Path) -> None:
    driver = Rig(cuda=FakeCuda(devices=0)).driver
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    with (
        tr.open(blocks, "onnxruntime-cpu", "fp32", threads=1) as model,
        GLTarget(ctx, source, target) as gl,
    ):
        gl._driver = lambda: driver
        gl.process(model)
        assert "the NVIDIA driver sees no GPU" in gl.explain()
    assert np.array_equal(held(target), on_the_host(ctx, source, 1, blocks))


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("cuGraphicsGLRegisterBuffer", 0),
        ("cuGraphicsGLRegisterBuffer", 1),
        ("cuGraphicsMapResources", 0),
        ("cuGraphicsResourceGetMappedPointer_v2", 1),
        ("cuStreamCreate", 0),
    ],
)
def test_what_the_driver_refuses_leaves_nothing_behind(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, blocks: Path, name: str, after: int
) -> None:
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    with rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model:
        rig.cuda.fail(name, OUT_OF_MEMORY, after)
        with bridged(rig, ctx, source, target, "auto") as gl:
            gl.process(model)
            assert name in gl.explain()
            assert gl.transport in ("read", "pbo")
    assert np.array_equal(held(target), on_the_host(ctx, source, 1, blocks))


def test_what_fails_later_is_an_error_and_buffers_are_given_back(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    with (
        rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model,
        bridged(rig, ctx, source, target, "auto") as gl,
    ):
        gl.process(model)
        for name, after in (
            ("cuGraphicsMapResources", 0),
            ("cuGraphicsResourceGetMappedPointer_v2", 1),
        ):
            rig.cuda.fail(name, INVALID_VALUE, after)
            with pytest.raises(tr.BackendError) as error:
                gl.process(model)
            assert name in one_line(error)
        gl.process(model)  # nothing was left mapped
        assert gl.transport == "cuda"
    assert np.array_equal(held(target), on_the_host(ctx, source, 1, blocks))


def test_a_gpu_that_stops_working_is_an_error_and_closing_is_none(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    model = rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx")
    gl = bridged(rig, ctx, source, target, "auto")
    gl.process(model)
    rig.cuda.fail("cuGraphicsMapResources", UNKNOWN)
    with pytest.raises(tr.DeviceLostError) as error:
        gl.process(model)
    assert "cuGraphicsMapResources" in one_line(error)
    gl.close()
    model.close()
    # What a lost device held is lost with it.
    rig.cuda.__dict__.update(FakeCuda().__dict__)


class OnTheGpu:
    """A pass that runs a model on frames of the GPU, or gives them back as they came."""

    def __init__(self, model: tr.Model, *, passes: bool = False) -> None:
        self.scale = model.manifest.scale
        self.passes = passes
        self.indices: list[int | None] = []
        self._model = model

    def present_device(
        self, color: object, out: object, stream: int | None = None, *, index: int | None = None
    ) -> tr.Result:
        self.indices.append(index)
        if self.passes:
            return tr.Result(color, tr.Status.PASSTHROUGH, 0, index or 0, "", "", tr.Timings())  # type: ignore[arg-type]
        self._model.process_device(color, out, stream)
        return tr.Result(out, tr.Status.FRESH, 0, index or 0, "gpu", "", tr.Timings())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["blocks", "double"])
def test_a_pass_is_given_frames_of_the_gpu(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, name: str
) -> None:
    bundle = Path(__file__).parent / "data" / f"{name}.topcoat"
    scale = 2 if name == "double" else 1
    array = pixels(16, 24)
    source = texture(ctx, array)
    target = texture(ctx, pixels(16 * scale, 24 * scale, seed=1))
    want = on_the_host(ctx, source, scale, bundle)
    with (
        rig.open(make_engine_bundle(bundle, tmp_path), backend="tensorrt-rtx") as model,
        bridged(rig, ctx, source, target) as gl,
    ):
        pass_ = OnTheGpu(model)
        result = gl.present(pass_, index=7)
        assert (result.status, result.index, gl.transport) == (tr.Status.FRESH, 7, "cuda")
        image: object = result.image
        assert image is target, "and not memory that was unmapped"
        assert np.array_equal(held(target), want)
        # A frame that is passed through, enlarged by OpenGL if need be.
        pass_.passes = True
        assert gl.present(pass_, index=8).status is tr.Status.PASSTHROUGH
        assert np.array_equal(held(target), array.repeat(scale, axis=0).repeat(scale, axis=1))
        assert pass_.indices == [7, 8]


def test_a_pass_on_a_machine_without_such_a_gpu_is_told_why(
    ctx: moderngl.Context, rig: Rig, blocks: Path
) -> None:
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    rig.cuda.gl_device = None
    with (
        tr.open(blocks, "onnxruntime-cpu") as model,
        bridged(rig, ctx, source, target) as gl,
        pytest.raises(tr.BackendUnavailableError) as error,
    ):
        gl.present(OnTheGpu(model))
    assert "frames cannot stay on the GPU: the OpenGL context is on no NVIDIA" in one_line(error)


def test_wrong_use_is_one_line(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    with rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as model:
        with bridged(rig, ctx, source, None) as gl, pytest.raises(tr.PassError) as error:
            gl.present(Negative())
        assert "writes to a target; give one" in one_line(error)
        with bridged(rig, ctx, source, None) as gl, pytest.raises(tr.PassError) as error:
            gl.process(model)
        assert "there is no target" in one_line(error)
        with bridged(rig, ctx, source, target) as gl:
            gl.process(model)
            target.release()
            with pytest.raises(tr.FrameError, match="the target was released"):
                gl.process(model)
    with pytest.raises(tr.PassClosedError):
        gl.process(model)


def test_another_model_is_tried_anew(
    ctx: moderngl.Context, rig: Rig, tmp_path: Path, blocks: Path
) -> None:
    source, target = texture(ctx, pixels(16, 24)), texture(ctx, pixels(16, 24))
    with (
        rig.open(make_engine_bundle(blocks, tmp_path), backend="tensorrt-rtx") as gpu,
        tr.open(blocks, "onnxruntime-cpu", "fp32", threads=1) as host,
        bridged(rig, ctx, source, target, "auto") as gl,
    ):
        found = []
        for model in (gpu, host, gpu):
            gl.process(model)
            found.append(gl.transport == "cuda")
        assert found == [True, False, True]
