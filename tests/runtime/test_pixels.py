"""Frames as apps have them: what goes to the network, what comes back, what is refused."""

import dataclasses
import tracemalloc
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.runtime import FrameError
from topcoat.runtime.render_pass._layout import Alpha, ColorSpace
from topcoat.runtime.render_pass._pixels import Layout, PixelFormat, PixelPlan

Array = npt.NDArray[Any]
Frame = npt.NDArray[np.uint8]
FORMATS: tuple[PixelFormat, ...] = get_args(PixelFormat)
BYTES: tuple[PixelFormat, ...] = tuple(name for name in FORMATS if name.endswith("8"))
FLOATS: tuple[PixelFormat, ...] = tuple(name for name in FORMATS if name.endswith("f"))


def layouts() -> list[Layout]:
    """Every combination of format, colour space and alpha; a linear one has an exposure."""
    made = []
    for name in FORMATS:
        for alpha in ("keep", "premultiplied", "drop") if "a" in name else ("keep",):
            made.append(Layout(format=name, alpha=alpha))
            made.append(Layout(format=name, alpha=alpha, color_space="linear", exposure=0.5))
    return made


def name_of(layout: Layout) -> str:
    return f"{layout.format}-{layout.color_space}-{layout.alpha}"


# --------------------------------------------------- the standard, once more, and in float64


def encode(linear: Array) -> Array:
    """IEC 61966-2-1."""
    low = linear <= 0.0031308
    return np.where(low, linear * 12.92, 1.055 * np.where(low, 1, linear) ** (1 / 2.4) - 0.055)


def decode(encoded: Array) -> Array:
    low = encoded <= 0.04045
    return np.where(low, encoded / 12.92, ((np.where(low, 1, encoded) + 0.055) / 1.055) ** 2.4)


def units(array: Array) -> Array:
    """The values that an array's numbers stand for, in float64, not-a-number as 0."""
    if array.dtype == np.uint8:
        return array.astype(np.float64) / 255
    with np.errstate(invalid="ignore"):  # which a signalling not-a-number is
        values = array.astype(np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)


def expected_load(layout: Layout, picture: Array) -> Array:
    """What the network should see, in steps of a byte, before rounding."""
    values = units(picture)
    colour = values[..., list(layout.order)]
    if layout.alpha == "premultiplied":
        alpha = values[..., 3:].clip(0, 1)
        colour = np.where(alpha > 0, colour / np.where(alpha > 0, alpha, 1), 0)
    colour = (colour * layout.exposure).clip(0, 1)
    return (encode(colour) if layout.color_space == "linear" else colour) * 255


def expected_store(layout: Layout, rgb: Frame, alpha: Array) -> Array:
    """What the app should get for the three colours, in the order of RGB."""
    values = rgb / 255
    if layout.color_space == "linear":
        values = decode(values) / layout.exposure
    if layout.alpha == "premultiplied":
        values = values * units(alpha)[..., None].clip(0, 1)
    return values


# ----------------------------------------------------------------- arrays that lie in odd places


@dataclass
class Held:
    """An array inside a larger memory, whose other bytes must not change."""

    memory: Frame
    array: Array
    inside: npt.NDArray[np.bool_]
    """Which bytes of the memory belong to the picture."""


def held(
    layout: Layout, height: int, width: int, gap: int, seed: int = 0, scale: int = 1
) -> tuple[Held, Array]:
    """An array of random bytes with a gap after each row; also its picture, top row first."""
    dtype, channels = layout.dtype, layout.channels
    row = width * channels * dtype.itemsize
    pitch = row + gap * dtype.itemsize
    start = 16
    memory = np.random.default_rng(seed).integers(0, 256, start + height * pitch + 16, np.uint8)

    def view(of: Frame) -> Array:
        shape, strides = (height, width, channels), (pitch, channels * dtype.itemsize)
        return np.ndarray(shape, dtype, of, start, (*strides, dtype.itemsize))

    array = view(memory)
    if dtype != np.uint8:
        array[...] = np.random.default_rng(seed).random(array.shape)
    marks = np.zeros(memory.size, np.uint8)
    picture_of(layout, view(marks), scale).view(np.uint8)[...] = 255
    return Held(memory, array, marks > 0), picture_of(layout, array, scale)


def picture_of(layout: Layout, array: Array, scale: int = 1) -> Array:
    if layout.extent is not None:
        x, y, width, height = (side * scale for side in layout.extent)
        array = array[y : y + height, x : x + width]
    return array[::-1] if layout.origin == "bottom-left" else array


def loaded(layout: Layout, color: Array) -> tuple[PixelPlan, Frame]:
    plan = PixelPlan.of(layout, color)
    rgb = np.full((plan.height, plan.width, 3), 99, np.uint8)
    plan.load(color, rgb)
    return plan, rgb


@st.composite
def places(
    draw: st.DrawFn, formats: tuple[PixelFormat, ...], space: ColorSpace, *alphas: Alpha
) -> tuple[Layout, int, int, int]:
    """A layout, and the height, width and gap of an array; ``alphas``: for formats that have it."""
    name = draw(st.sampled_from(formats))
    height, width = draw(st.integers(1, 33)), draw(st.integers(1, 33))
    extent = None
    if draw(st.booleans()):
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        extent = (x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))
    layout = Layout(
        format=name,
        color_space=space,
        origin=draw(st.sampled_from(["top-left", "bottom-left"])),
        alpha=draw(st.sampled_from(alphas)) if "a" in name else "keep",
        extent=extent,
    )
    return layout, height, width, draw(st.integers(0, 9))


# ------------------------------------------------------------------------------- round trips


@settings(max_examples=200, deadline=None)
@given(place=places(BYTES, "srgb", "keep", "premultiplied", "drop"), seed=st.integers(0, 9))
def test_bytes_come_back_as_they_were_and_nothing_else_changes(
    place: tuple[Layout, int, int, int], seed: int
) -> None:
    layout, height, width, gap = place
    frame, picture = held(layout, height, width, gap, seed)
    if layout.alpha == "premultiplied":  # as it is only where no colour is above alpha
        np.minimum(picture[..., :3], picture[..., 3:], out=picture[..., :3])
    before = frame.memory.copy()
    plan, rgb = loaded(layout, frame.array)
    if layout.alpha != "premultiplied":
        np.testing.assert_array_equal(rgb, picture[..., list(layout.order)])

    target, result = held(layout, height, width, (gap + 3) % 8, seed + 1)
    untouched = target.memory.copy()
    plan.check_out(target.array, 1, frame.array)
    plan.store(rgb, frame.array, target.array)
    wanted = picture.copy()
    if layout.alpha == "drop":
        wanted[..., 3] = 255
    np.testing.assert_array_equal(result, wanted)
    np.testing.assert_array_equal(target.memory[~target.inside], untouched[~target.inside])
    np.testing.assert_array_equal(frame.memory, before)


@settings(max_examples=120, deadline=None)
@given(
    # Premultiplied floats are never exact; their bounds are tested below.
    place=st.one_of(
        places(FLOATS, "srgb", "keep", "drop"), places(FLOATS, "linear", "keep", "drop")
    )
)
def test_floats_that_a_byte_stands_for_come_back_as_they_were(
    place: tuple[Layout, int, int, int],
) -> None:
    layout, height, width, gap = place
    frame, picture = held(layout, height, width, gap)
    steps = np.random.default_rng(1).integers(0, 256, (*picture.shape[:2], 3), np.uint8)
    picture[..., list(layout.order)] = expected_store(layout, steps, picture[..., -1])
    plan, rgb = loaded(layout, frame.array)
    np.testing.assert_array_equal(rgb, steps)

    target, result = held(layout, height, width, (gap + 3) % 8, 2)
    untouched = target.memory.copy()
    plan.store(rgb, frame.array, target.array)
    wanted = picture.copy()
    if layout.alpha == "drop":
        wanted[..., 3] = 1
    np.testing.assert_array_equal(result, wanted)
    np.testing.assert_array_equal(target.memory[~target.inside], untouched[~target.inside])


@pytest.mark.parametrize("layout", layouts(), ids=name_of)
@pytest.mark.parametrize("scale", [1, 3])
def test_every_layout_agrees_with_the_standard_in_both_directions(
    layout: Layout, scale: int
) -> None:
    frame, picture = held(layout, 41, 333, 2)  # more than one block of rows
    if layout.dtype != np.uint8:
        picture[..., :3] *= 3  # brighter than white, at whichever exposure
    if layout.alpha == "premultiplied":
        if layout.dtype != np.uint8:
            picture[..., :3] *= picture[..., 3:]
        picture[0, :, 3] = 0
        picture[1, :, 3] = 255 if layout.dtype == np.uint8 else 1
    plan, rgb = loaded(layout, frame.array)
    wanted = expected_load(layout, picture)
    assert np.abs(rgb - wanted).max() <= (0.5001 if layout.dtype == np.uint8 else 0.53)

    rng = np.random.default_rng(5)
    result = rng.integers(0, 256, (41 * scale, 333 * scale, 3), np.uint8)
    target, out = held(layout, 41 * scale, 333 * scale, 1, 3, scale)
    plan.check_out(target.array, scale, frame.array)
    untouched = target.memory.copy()
    plan.store(result, frame.array, target.array)
    alpha = picture[..., -1].repeat(scale, 0).repeat(scale, 1)
    values = expected_store(layout, result, alpha)
    got = out[..., list(layout.order)]
    if layout.dtype == np.uint8:
        assert np.abs(got - (values * 255).clip(0, 255)).max() <= 0.5001
    else:
        precision = {2: 2**-10, 4: 2**-22}[layout.dtype.itemsize]
        np.testing.assert_allclose(got.astype(np.float64), values, rtol=precision, atol=1e-7)
    if layout.has_alpha:
        opaque = 255 if layout.dtype == np.uint8 else 1
        np.testing.assert_array_equal(out[..., 3], opaque if layout.alpha == "drop" else alpha)
    np.testing.assert_array_equal(target.memory[~target.inside], untouched[~target.inside])


def test_mid_grey_of_linear_light_is_what_the_standard_says() -> None:
    for dtype, name in ((np.float16, "rgb16f"), (np.float32, "rgb32f")):
        color = np.array([[[0.0, 0.18, 0.5], [0.0031308, 1.0, 7.0]]], dtype)
        _, rgb = loaded(Layout(format=name, color_space="linear"), color)  # type: ignore[arg-type]
        assert rgb.tolist() == [[[0, 118, 188], [10, 255, 255]]]


# ------------------------------------------------------------ every value that a format can hold

CURVES = [(False, 1.0), *((True, exposure) for exposure in (1.0, 0.037, 900.0, 1e-9, 1e9))]
"""Whether values are linear light, and their exposure."""


@pytest.mark.parametrize(("linear", "exposure"), CURVES)
def test_every_half_is_rounded_to_the_nearest_step(linear: bool, exposure: float) -> None:
    layout = Layout(format="rgb16f", color_space="linear" if linear else "srgb", exposure=exposure)
    bits = np.arange(65536, dtype=np.uint16).view(np.float16)
    color = np.stack([bits, bits[::-1], bits], axis=-1).reshape(256, 256, 3)
    _, rgb = loaded(layout, color)
    wanted = expected_load(layout, color)
    assert np.abs(rgb - wanted).max() <= 0.5 + 1e-9
    red = rgb[..., 0].reshape(-1)
    assert (red[np.isnan(bits)] == 0).all()
    assert (red[bits == np.inf] == 255).all()
    assert (red[bits <= 0] == 0).all()


@pytest.mark.parametrize(("linear", "exposure"), CURVES)
def test_every_kind_of_single_is_within_0_53_steps_of_its_exact_value(
    linear: bool, exposure: float
) -> None:
    layout = Layout(format="rgb32f", color_space="linear" if linear else "srgb", exposure=exposure)
    # All bit patterns by a stride, which covers every exponent and sign; and what is near an edge.
    spread = np.arange(0, 2**32, 5001, dtype=np.uint64).astype(np.uint32).view(np.float32)
    steps = np.arange(255) + 0.5
    edges = ((decode(steps / 255) if linear else steps / 255) / exposure).astype(np.float32)
    near = [np.nextafter(edges, np.float32(side)) for side in (0, np.inf)]
    inside = np.linspace(0, 1.01, 400_000) / exposure
    values = np.concatenate([spread, edges, *near, inside.astype(np.float32)])
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0, -0.0, 1e-45, 3e38], np.float32)
    values = np.concatenate([values, special, np.zeros(-(values.size + 8) % 3072, np.float32)])
    color = values.reshape(-1, 1024, 3)
    _, rgb = loaded(layout, color)
    assert np.abs(rgb - expected_load(layout, color)).max() <= 0.53
    flat = rgb.reshape(-1)
    assert (flat[np.isnan(values)] == 0).all()
    assert (flat[values == np.inf] == 255).all()
    assert (flat[values <= 0] == 0).all()


@pytest.mark.parametrize(("linear", "exposure"), CURVES)
def test_every_premultiplied_byte_pair_is_right_in_both_directions(
    linear: bool, exposure: float
) -> None:
    layout = Layout(
        format="rgba8",
        alpha="premultiplied",
        color_space="linear" if linear else "srgb",
        exposure=exposure,
    )
    first, second = np.mgrid[0:256, 0:256].astype(np.uint8)
    color = np.stack([second, 255 - second, second, first], axis=-1)
    plan, rgb = loaded(layout, color)
    assert np.abs(rgb - expected_load(layout, color)).max() <= 0.5 + 1e-9
    assert (rgb[0] == 0).all()  # alpha 0
    out = plan.new_out()
    plan.store(color[..., :3].copy(), color, out)
    wanted = expected_store(layout, color[..., :3], color[..., 3]) * 255
    assert np.abs(out[..., :3] - wanted.clip(0, 255)).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(out[..., 3], color[..., 3])


@pytest.mark.parametrize("name", ["rgba16f", "rgba32f"])
def test_hostile_floats_reach_the_network_as_something_harmless(name: PixelFormat) -> None:
    dtype = Layout(format=name).dtype
    least = np.nextafter(dtype.type(0), dtype.type(1))
    hostile = [np.nan, np.inf, -np.inf, least, 0, -1, 6e4, 1e-7, 0.5]
    values = np.array(hostile, dtype)
    color = np.stack(np.meshgrid(values, values, values, values), axis=-1).reshape(81, 81, 4)
    for alpha in ("keep", "premultiplied"):
        for exposure in (1e-9, 1.0, 1e9):
            layout = Layout(format=name, alpha=alpha, color_space="linear", exposure=exposure)
            with np.errstate(all="raise"):
                plan, rgb = loaded(layout, color)
                out = plan.new_out()
                plan.store(rgb, color, out)
            assert np.isfinite(out[..., :3]).all()
            assert out[..., 3].tobytes() == color[..., 3].tobytes()
            if alpha == "premultiplied":
                empty = np.isnan(color[..., 3]) | (color[..., 3] <= 0)
                assert not rgb[empty].any()
                assert not out[empty][:, :3].any()


def test_alpha_that_is_kept_is_kept_bit_for_bit_even_if_it_is_no_number() -> None:
    color = np.zeros((4, 8, 4), np.float32)
    bits = np.random.default_rng(0).integers(0, 2**32, (4, 8), np.uint32)
    bits[0, 0] = 0x7FA00001  # a signalling not-a-number
    color.view(np.uint32)[..., 3] = bits
    plan, rgb = loaded(Layout(format="rgba32f"), color)
    out = plan.new_out()
    plan.store(rgb, color, out)
    np.testing.assert_array_equal(out.view(np.uint32)[..., 3], bits)


# ---------------------------------------------------------------------------- unusual arrays


@pytest.mark.parametrize("name", FORMATS)
def test_planar_mirrored_and_transposed_arrays_are_read_and_written(name: PixelFormat) -> None:
    layout = Layout(format=name)
    _, plain = held(layout, 12, 20, 0)
    planar = np.ascontiguousarray(plain.transpose(2, 0, 1)).transpose(1, 2, 0)
    columns = np.ascontiguousarray(plain.transpose(1, 0, 2)).transpose(1, 0, 2)
    reversed_channels = np.ascontiguousarray(plain[..., ::-1])[..., ::-1]
    mirrored = np.ascontiguousarray(plain[::-1, ::-1])[::-1, ::-1]
    spaced = np.repeat(np.repeat(plain, 2, axis=1), 2, axis=2)[:, ::2, ::2]
    _, wanted = loaded(layout, plain)
    for color in (planar, columns, reversed_channels, mirrored, spaced):
        plan, rgb = loaded(layout, color)
        np.testing.assert_array_equal(rgb, wanted)
        out = np.zeros_like(color, subok=False)
        plan.check_out(out, 1, color)
        plan.store(rgb, color, out)
        again = PixelPlan.of(layout, out)
        back = np.empty_like(rgb)
        again.load(out, back)
        np.testing.assert_array_equal(back, wanted)
    still = np.broadcast_to(plain[:1, :1], plain.shape)
    _, rgb = loaded(layout, still)
    assert (rgb == wanted[0, 0]).all()


@pytest.mark.parametrize("layout", layouts(), ids=name_of)
def test_a_result_may_be_written_over_its_own_frame(layout: Layout) -> None:
    layout = dataclasses.replace(layout, origin="bottom-left", extent=(1, 1, 9, 7))
    frame, picture = held(layout, 9, 11, 3)
    before = picture.copy()
    plan, rgb = loaded(layout, frame.array)
    apart = np.zeros_like(frame.array)
    plan.store(255 - rgb, frame.array, apart)
    plan.check_out(frame.array, 1, frame.array)
    plan.store(255 - rgb, frame.array, frame.array)
    np.testing.assert_array_equal(picture, picture_of(layout, apart))
    if layout.has_alpha and layout.alpha != "drop":
        np.testing.assert_array_equal(picture[..., 3], before[..., 3])


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("layout", layouts(), ids=name_of)
def test_a_frame_that_passes_through_is_the_apps_own(layout: Layout, scale: int) -> None:
    layout = dataclasses.replace(layout, origin="bottom-left", extent=(2, 1, 5, 4))
    frame, picture = held(layout, 6, 8, 2)
    plan = PixelPlan.of(layout, frame.array)
    wanted = picture.repeat(scale, 0).repeat(scale, 1)
    if layout.alpha == "drop":
        wanted[..., 3] = 255 if layout.dtype == np.uint8 else 1
    target, result = held(layout, 6 * scale, 8 * scale, 1, 7, scale)
    untouched = target.memory.copy()
    plan.copy(frame.array, target.array, scale)
    assert result.tobytes() == wanted.tobytes()
    np.testing.assert_array_equal(target.memory[~target.inside], untouched[~target.inside])
    own = plan.new_out(scale)
    plan.copy(frame.array, own, scale)
    assert own.shape == (4 * scale, 5 * scale, layout.channels)
    assert picture_of(Layout(origin="bottom-left"), own).tobytes() == wanted.tobytes()


def test_an_array_as_large_as_the_picture_is_not_taken_for_a_whole_frame() -> None:
    # The frame is twice as large as its extent: an output of its size fits in two ways.
    layout = Layout(extent=(1, 1, 4, 4))
    color = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    plan, rgb = loaded(layout, color)
    same = np.zeros((8, 8, 3), np.uint8)
    plan.store(rgb, None, same)
    np.testing.assert_array_equal(same[1:5, 1:5], rgb)
    assert same.sum() == rgb.sum(dtype=np.int64)
    large = np.zeros((8, 8, 3), np.uint8)
    plan.store(rgb.repeat(2, 0).repeat(2, 1), None, large)
    np.testing.assert_array_equal(large, rgb.repeat(2, 0).repeat(2, 1))


def test_a_photograph_survives_linear_light(photograph: Frame) -> None:
    for name, bound in (("rgb32f", 0), ("rgb16f", 0), ("rgb8", 13)):
        layout = Layout(format=name, color_space="linear")  # type: ignore[arg-type]
        linear = decode(photograph / 255)
        color = linear.astype(layout.dtype)
        if layout.dtype == np.uint8:
            color = np.rint(linear * 255).astype(np.uint8)
        plan, rgb = loaded(layout, color)
        # Bytes of linear light are that coarse in the dark: half a step is 6 of the others.
        assert np.abs(rgb.astype(int) - photograph).max() <= bound
        out = plan.new_out()
        plan.store(rgb, None, out)
        tolerance = 1 if layout.dtype == np.uint8 else 0
        assert np.abs(out.astype(np.float64) - color).max() <= tolerance


# --------------------------------------------------------------------------- looking per frame


def test_a_plan_knows_the_arrays_that_it_was_made_for() -> None:
    color = np.zeros((6, 8, 4), np.uint8)
    plan = PixelPlan.of(Layout(format="bgra8"), color)
    assert (plan.height, plan.width) == (6, 8)
    assert plan.accepts(color)
    assert plan.accepts(color.copy())
    wider = np.zeros((6, 9, 4), np.uint8)
    for other in (wider, wider[:, :8], color[::-1], color.view(np.int8), color.tolist(), None):
        assert not plan.accepts(other)


def test_a_frame_is_native_only_if_an_engine_can_read_it_where_it_lies() -> None:
    color = np.zeros((6, 8, 3), np.uint8)
    assert PixelPlan.of(Layout(), color).is_native
    assert PixelPlan.of(Layout(extent=(0, 0, 8, 6)), color).is_native
    assert PixelPlan.of(Layout(), color[:1]).is_native
    for layout in (
        Layout(format="bgr8"),
        Layout(color_space="linear"),
        Layout(origin="bottom-left"),
        Layout(extent=(0, 0, 8, 5)),
    ):
        assert not PixelPlan.of(layout, color).is_native
    assert not PixelPlan.of(Layout(), color[:, ::-1]).is_native
    assert not PixelPlan.of(Layout(), color[:, :4]).is_native
    assert not PixelPlan.of(Layout(format="rgb16f"), color.astype(np.float16)).is_native


@pytest.mark.parametrize(
    "layout", [one for one in layouts() if one.color_space == "linear"], ids=name_of
)
def test_a_new_exposure_is_taken_over_as_if_the_plan_were_new(layout: Layout) -> None:
    frame, _ = held(layout, 9, 13, 0)
    plan, _ = loaded(layout, frame.array)
    new = dataclasses.replace(layout, exposure=2.0)
    assert plan.adopt(new)
    assert plan.layout is new
    fresh, wanted = loaded(new, frame.array)
    rgb = np.empty_like(wanted)
    plan.load(frame.array, rgb)
    np.testing.assert_array_equal(rgb, wanted)
    out, same = plan.new_out(), fresh.new_out()
    plan.store(rgb, frame.array, out)
    fresh.store(rgb, frame.array, same)
    assert out.tobytes() == same.tobytes()
    for other in (
        dataclasses.replace(new, origin="bottom-left"),
        dataclasses.replace(new, extent=(0, 0, 2, 2)),
        dataclasses.replace(new, format="bgra8" if layout.format != "bgra8" else "rgba8"),
        dataclasses.replace(new, color_space="srgb", exposure=1.0),
        dataclasses.replace(new, alpha="drop" if layout.alpha != "drop" else "keep"),
    ):
        assert not plan.adopt(other)
        assert plan.layout is new


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("layout", layouts(), ids=name_of)
def test_nothing_is_allocated_per_frame(layout: Layout, scale: int) -> None:
    color = held(layout, 30, 333, 3)[0].array  # more than one block of rows
    plan, rgb = loaded(layout, color)
    large = rgb.repeat(scale, 0).repeat(scale, 1)
    out = plan.new_out(scale)

    def frame() -> None:
        assert plan.accepts(color)
        plan.check_out(out, scale, color)
        plan.load(color, rgb)
        plan.store(large, color, out)
        plan.copy(color, out, scale)

    frame()
    tracemalloc.start()
    try:
        frame()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            frame()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < 16 * 1024


# ------------------------------------------------------------------------------------- copies


def test_each_copy_is_listed_with_its_bytes_and_its_reason() -> None:
    plan = PixelPlan.of(
        Layout(format="bgra16f", color_space="linear", origin="bottom-left"),
        np.zeros((10, 20, 4), np.float16),
    )
    (load,) = plan.load_copies
    assert load.bytes == 10 * 20 * 3
    for reason in ("RGB", "three channels", "bytes", "display-encoded", "top row first"):
        assert reason in load.reason
    colour, alpha = plan.store_copies(2)
    assert colour.bytes == 10 * 20 * 4 * 3 * 2
    assert alpha.bytes == 10 * 20 * 4 * 2
    assert "bgra16f" in colour.reason
    assert "alpha" in alpha.what
    assert "0.00 MB" in str(load)
    (only,) = PixelPlan.of(Layout(), np.zeros((10, 20, 3), np.uint8)).load_copies
    assert "while the network reads it" in only.reason


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("fields", "came", "advice"),
    [
        ({"format": "rgb10a2"}, "'rgb10a2'", "rgba8"),
        ({"color_space": "hdr"}, "'hdr'", "linear"),
        ({"origin": "top"}, "'top'", "bottom-left"),
        ({"alpha": "straight"}, "'straight'", "keep"),
        ({"color_space": "linear", "exposure": 0.0}, "0.0", "1e-09"),
        ({"color_space": "linear", "exposure": float("nan")}, "nan", "1e+09"),
        ({"color_space": "linear", "exposure": "1"}, "'1'", "1.0"),
        ({"exposure": 2.0}, "exposure 2", 'color_space="linear"'),
        ({"format": "bgr8", "alpha": "premultiplied"}, "bgr8", 'format="bgra8"'),
        ({"extent": (0, 0, 0, 4)}, "(0, 0, 0, 4)", "width and height from 1"),
        ({"extent": (-1, 0, 4, 4)}, "(-1, 0, 4, 4)", "x and y from 0"),
        ({"extent": (0, 0, 4)}, "(0, 0, 4)", "four whole numbers"),
        ({"extent": (0, 0, 4.5, 4)}, "4.5", "four whole numbers"),
        ({"extent": 7}, "7", "leave it out"),
    ],
)
def test_a_wrong_layout_says_what_came_and_what_to_do(
    fields: dict[str, Any], came: str, advice: str
) -> None:
    with pytest.raises(FrameError) as caught:
        Layout(**fields)
    assert "\n" not in str(caught.value)
    assert came in str(caught.value)
    assert advice in str(caught.value)


class Tensor:
    def __dlpack__(self) -> object:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("layout", "color", "came", "advice"),
    [
        (Layout(format="rgb32f"), np.zeros((4, 6, 3)), "float64", "frame.astype(numpy.float32)"),
        (Layout(), np.zeros((4, 6, 3)), "float64", 'Layout(format="rgb32f")'),
        (Layout(), np.zeros((4, 6, 3), np.float32), "float32", 'Layout(format="rgb32f")'),
        (
            Layout(format="bgra16f"),
            np.zeros((4, 6, 4), np.uint8),
            "uint8",
            'Layout(format="bgra8")',
        ),
        (Layout(), np.zeros((4, 6, 3), np.uint16), "uint16", "(frame >> 8)"),
        (Layout(format="rgb16f"), np.zeros((4, 6, 3), np.uint16), "uint16", "numpy.float16)"),
        (Layout(), np.zeros((4, 6, 3), bool), "bool", "* 255"),
        (Layout(), np.zeros((4, 6, 3), np.int32), "int32", "frame.astype(numpy.uint8)"),
        (Layout(format="rgb32f"), np.zeros((4, 6, 3), ">f4"), ">f4", "astype(numpy.float32)"),
        (Layout(format="rgba8"), np.zeros((4, 6), np.uint32), "uint32", "view(numpy.uint8)"),
        (Layout(), np.zeros((4, 6), np.uint8), "(4, 6)", "numpy.repeat(frame[..., None]"),
        (Layout(), np.zeros((2, 4, 6, 3), np.uint8), "(2, 4, 6, 3)", "one by one"),
        (Layout(), np.zeros((4, 6, 4), np.uint8), "(4, 6, 4)", 'Layout(format="rgba8")'),
        (Layout(format="bgra8"), np.zeros((4, 6, 3), np.uint8), "(4, 6, 3)", '"bgr8"'),
        (Layout(), np.zeros((3, 4, 6), np.uint8), "(3, 4, 6)", "numpy.moveaxis(frame, 0, -1)"),
        (Layout(), np.zeros((4, 6, 2), np.uint8), "(4, 6, 2)", "3 channels last"),
        (Layout(), np.zeros(6, np.uint8), "(6,)", "3 channels last"),
        (Layout(), np.zeros((0, 6, 3), np.uint8), "(0, 6, 3)", "real frame"),
        (Layout(extent=(1, 0, 6, 4)), np.zeros((4, 6, 3), np.uint8), "6x4", "inside"),
        (Layout(extent=(0, 1, 6, 4)), np.zeros((4, 6, 3), np.uint8), "(0, 1)", "inside"),
        (Layout(), [[[1, 2, 3]]], "builtins.list", "numpy.asarray(frame)"),
        (Layout(), None, "NoneType", "numpy.asarray(frame)"),
        (Layout(), bytes(72), "builtins.bytes", "from_buffer"),
        (Layout(), Tensor(), "Tensor", "from_dlpack"),
    ],
)
def test_a_wrong_frame_says_what_came_and_what_to_do(
    layout: Layout, color: object, came: str, advice: str
) -> None:
    with pytest.raises(FrameError) as caught:
        PixelPlan.of(layout, color)
    assert "\n" not in str(caught.value)
    assert came in str(caught.value)
    assert layout.format in str(caught.value) or layout.extent is not None
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("out", "came"),
    [
        ([1], "builtins.list"),
        (np.zeros((6, 10, 4), np.float32), "float32"),
        (np.zeros((12, 10, 4), np.uint8), "(12, 10, 4)"),
        (np.zeros((6, 10, 3), np.uint8), "(6, 10, 3)"),
        (np.broadcast_to(np.uint8(0), (6, 10, 4)), "read-only"),
    ],
)
def test_a_wrong_buffer_says_how_to_make_one(out: object, came: str) -> None:
    color = np.zeros((6, 10, 4), np.uint8)
    plan = PixelPlan.of(Layout(format="rgba8", extent=(1, 1, 4, 3)), color)
    for _ in range(2):  # the second time is not waved through
        with pytest.raises(FrameError) as caught:
            plan.check_out(out)
        assert "\n" not in str(caught.value)
        assert came in str(caught.value)
        assert "(3, 4, 4) or (6, 10, 4)" in str(caught.value)
        assert "numpy.empty((3, 4, 4), numpy.uint8)" in str(caught.value)


def test_a_buffer_is_looked_at_again_when_it_or_the_scale_changes() -> None:
    color = np.zeros((6, 10, 3), np.uint8)
    plan = PixelPlan.of(Layout(), color)
    out = np.zeros((6, 10, 3), np.uint8)
    plan.check_out(out)
    out.flags.writeable = False
    with pytest.raises(FrameError, match="read-only"):
        plan.check_out(out)
    out.flags.writeable = True
    with pytest.raises(FrameError, match=r"\(12, 20, 3\)"):
        plan.check_out(out, 2)
    plan.check_out(np.zeros((12, 20, 3), np.uint8), 2)


def test_a_buffer_may_overlap_the_frame_only_if_it_is_the_frame() -> None:
    memory = np.zeros((8, 12, 4), np.uint8)
    color = memory[:6, :10]
    plan = PixelPlan.of(Layout(format="rgba8"), color)
    plan.check_out(color, 1, color)
    plan.check_out(memory[:6, :10], 1, color)
    for shifted in (memory[1:7, :10], memory[:6, 1:11], memory[:6, :10][::-1]):
        with pytest.raises(FrameError, match="only the frame's own array may, at scale 1"):
            plan.check_out(shifted, 1, color)
    square = memory[:, :8]
    plan = PixelPlan.of(Layout(format="rgba8"), square)
    with pytest.raises(FrameError, match="overlaps the frame"):
        plan.check_out(square.transpose(1, 0, 2), 1, square)
    small = memory[:4, :6]
    with pytest.raises(FrameError, match="overlaps the frame"):
        PixelPlan.of(Layout(format="rgba8"), small).check_out(memory, 2, small)
    # Side by side in one atlas, they share addresses' range but no byte.
    left, right = memory[:, :6], memory[:, 6:]
    PixelPlan.of(Layout(format="rgba8"), left).check_out(right, 1, left)
    planes = np.zeros((8, 12, 8), np.uint8)
    PixelPlan.of(Layout(format="rgba8"), planes[..., :4]).check_out(
        planes[..., 4:], 1, planes[..., :4]
    )


def test_a_result_that_needs_the_frames_alpha_says_so() -> None:
    color = np.zeros((6, 10, 4), np.uint8)
    keeping = PixelPlan.of(Layout(format="rgba8"), color)
    dropping = PixelPlan.of(Layout(format="rgba8", alpha="drop"), color)
    assert keeping.needs_color
    assert not dropping.needs_color
    rgb, out = np.ones((6, 10, 3), np.uint8), np.zeros((6, 10, 4), np.uint8)
    dropping.store(rgb, None, out)
    assert out[0, 0].tolist() == [1, 1, 1, 255]
    with pytest.raises(FrameError, match='alpha="drop"'):
        keeping.store(rgb, None, out)
