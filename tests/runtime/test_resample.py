"""Smaller for the network and larger again: flat stays flat, nothing shifts, nothing flickers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.runtime.allocations import peak_growth
from topcoat.runtime._errors import FrameError, PassError
from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._resample import (
    Downscaler,
    Upscaler,
    internal_size,
    replicate,
    triangle,
)

Floats = NDArray[np.float64]


def noise(height: int, width: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def down(frame: Frame, scale: float, multiple: int = 2) -> Frame:
    scaler = Downscaler(frame.shape[0], frame.shape[1], scale, multiple=multiple)
    out = np.empty((*scaler.size, 3), np.uint8)
    scaler.resize(frame, out)
    return out


def up(picture: Frame, height: int, width: int) -> Frame:
    out = np.empty((height, width, 3), np.uint8)
    Upscaler((picture.shape[0], picture.shape[1]), (height, width)).resize(picture, out)
    return out


def reference(picture: NDArray[Any], height: int, width: int) -> Floats:
    """The definition: triangles two pixels of the smaller picture wide, borders repeated."""
    result = picture.astype(np.float64)
    for axis, new in ((0, height), (1, width)):
        old = picture.shape[axis]
        reach = max(old / new, 1)
        padding = int(reach) + 2
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        places = np.arange(-padding, old + padding)
        weights = np.maximum(0, 1 - np.abs(places - centres[:, None]) / reach)
        weights /= weights.sum(axis=1, keepdims=True)
        lines = np.take(result, places.clip(0, old - 1), axis=axis)
        result = np.moveaxis(np.tensordot(weights, lines, (1, axis)), 0, axis)
    return result


def test_sides_of_the_internal_size_are_the_nearest_multiples() -> None:
    assert internal_size(360, 640, 0.5) == (180, 320)
    assert internal_size(360, 640, 0.75, multiple=4) == (272, 480)
    assert internal_size(359, 641, 0.75) == (270, 480)
    assert internal_size(359, 641, 1.0, multiple=8) == (359, 641)
    assert internal_size(3, 100, 0.9, multiple=4) == (3, 92)
    assert internal_size(9, 9, 0.01, multiple=4) == (4, 4)


@given(
    side=st.integers(1, 5000), scale=st.floats(0.001, 1), multiple=st.sampled_from([1, 2, 4, 16])
)
def test_an_internal_side_fits_the_network_and_the_frame(
    side: int, scale: float, multiple: int
) -> None:
    small, _ = internal_size(side, 64, scale, multiple)
    assert 1 <= small <= side
    assert small == side or small % multiple == 0
    if multiple <= side * scale <= side - multiple:
        assert abs(small - side * scale) <= multiple / 2 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(36, 64), (30, 50), (17, 23)])
@pytest.mark.parametrize("scale", [0.9, 0.75, 2 / 3, 0.5, 0.25, 0.1])
def test_a_flat_picture_stays_exactly_as_it_is(height: int, width: int, scale: float) -> None:
    frame = np.empty((height, width, 3), np.uint8)
    for value in range(0, 256, 5):
        frame[:] = value, 255 - value, value // 2
        small = down(frame, scale)
        assert (small == frame[0, 0]).all()
        assert (up(small, height, width) == frame[0, 0]).all()


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    scale=st.floats(0.05, 1),
    multiple=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_every_pixel_lies_within_two_steps_of_the_definition(
    height: int, width: int, scale: float, multiple: int, seed: int
) -> None:
    frame = noise(height, width, seed)
    small = down(frame, scale, multiple)
    assert np.abs(small - reference(frame, *small.shape[:2])).max() <= 2.01
    large = up(small, height, width)
    # Two roundings of half a step and two of weights to 256ths, each again half a step at most.
    assert np.abs(large - reference(small, height, width)).max() <= 2.01


@pytest.mark.parametrize(("height", "width"), [(2, 2), (36, 64), (134, 2050), (1080, 62)])
def test_half_and_double_are_rounded_only_once(height: int, width: int) -> None:
    frame = noise(height, width)
    np.testing.assert_array_equal(
        down(frame, 0.5, 1), np.floor(reference(frame, height // 2, width // 2) + 0.5)
    )
    np.testing.assert_array_equal(
        up(frame, 2 * height, 2 * width), np.floor(reference(frame, 2 * height, 2 * width) + 0.5)
    )


@pytest.mark.parametrize("scale", [0.75, 0.5])
def test_shrinking_agrees_with_pillows_antialiased_bilinear_filter(scale: float) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow, the reference, is not installed")
    frame = noise(90, 160)
    small = down(frame, scale)
    theirs = image.fromarray(frame).resize(small.shape[1::-1], image.Resampling.BILINEAR)
    # The border is another: Pillow leaves out what lies beyond it.
    inner = (slice(3, -3), slice(3, -3))
    assert np.abs(small.astype(int) - np.asarray(theirs))[inner].max() <= 2


@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    scale=st.sampled_from([0.9, 0.75, 0.5, 0.3]),
)
@settings(max_examples=40, deadline=None)
def test_a_mirrored_picture_gives_the_mirrored_result(
    height: int, width: int, scale: float
) -> None:
    frame = noise(height, width)
    mirrored = np.ascontiguousarray(frame[::-1, ::-1])
    small = down(frame, scale)
    np.testing.assert_array_equal(down(mirrored, scale), small[::-1, ::-1])
    back = up(small, height, width)
    other = up(np.ascontiguousarray(small[::-1, ::-1]), height, width)
    np.testing.assert_array_equal(other, back[::-1, ::-1])


@pytest.mark.parametrize("scale", [0.9, 0.75, 2 / 3, 0.5, 0.25])
def test_a_smooth_ramp_comes_back_where_it_was(scale: float) -> None:
    # A shift by half a pixel of the small picture would show as a constant difference.
    height, width = 120, 200
    y, x = np.mgrid[:height, :width]
    frame = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / 320], axis=-1).astype(
        np.uint8
    )
    back = up(down(frame, scale), height, width).astype(int)
    margin = 8
    difference = (back - frame)[margin:-margin, margin:-margin]
    assert np.abs(difference).max() <= 2
    assert np.abs(difference.mean(axis=(0, 1))).max() <= 0.5


@pytest.mark.parametrize("scale", [0.9, 0.75, 0.5, 0.25])
def test_the_mean_is_preserved(scale: float) -> None:
    frame = noise(144, 256)
    frame[:, :100] //= 3
    small = down(frame, scale)
    large = up(small, 144, 256)
    for picture in (small, large):
        assert np.abs(picture.mean(axis=(0, 1)) - frame.mean(axis=(0, 1))).max() <= 1


@pytest.mark.parametrize(
    ("scale", "frequency", "most"),
    [(0.5, 0.4, 0.05), (0.5, 0.45, 0.02), (0.25, 0.3, 0.1), (0.75, 0.5, 0.3)],
)
def test_a_moving_grating_too_fine_for_the_small_picture_does_not_flicker(
    scale: float, frequency: float, most: float
) -> None:
    x = np.arange(200)
    pictures = []
    for time in range(16):  # it moves by a third of a pixel from one frame to the next
        line = 128 + 100 * np.cos(2 * np.pi * frequency * (x - time / 3))
        frame = np.repeat(line.round().astype(np.uint8)[None, :, None], 40, 0).repeat(3, 2)
        pictures.append(np.ascontiguousarray(frame))

    def swing(frames: list[Frame]) -> float:
        values = np.array([f[4:-4, 4:-4, 0] for f in frames], np.float64)
        return float(np.ptp(values, axis=0).max())

    assert swing(pictures) > 190
    assert swing([down(p, scale) for p in pictures]) <= most * 200 + 1
    step = round(1 / scale)
    if step == 1 / scale:
        # What a filter is for: picking pixels keeps the whole swing.
        assert swing([np.ascontiguousarray(p[::step, ::step]) for p in pictures]) > 190


@given(old=st.integers(1, 300), new=st.integers(1, 300))
def test_weights_sum_to_one_and_stay_within_the_line(old: int, new: int) -> None:
    indices, weights = triangle(old, new)
    assert (weights.astype(int).sum(axis=0) == 256).all()
    assert indices.min() >= 0
    assert indices.max() < old
    assert len(indices) <= 2 * max(old / new, 1) + 1


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_replication_repeats_every_pixel(scale: int) -> None:
    picture = noise(13, 17)
    out = np.empty((13 * scale, 17 * scale, 3), np.uint8)
    replicate(picture, scale, out)
    np.testing.assert_array_equal(out, picture.repeat(scale, 0).repeat(scale, 1))


@pytest.mark.parametrize(
    ("small", "large"), [((8, 8), (8, 12)), ((8, 8), (12, 8)), ((8, 8), (8, 8)), ((3, 5), (6, 11))]
)
def test_a_side_may_keep_its_length(small: tuple[int, int], large: tuple[int, int]) -> None:
    picture = noise(*small)
    assert np.abs(up(picture, *large) - reference(picture, *large)).max() <= 2
    frame = noise(*large)
    out = np.empty((*small, 3), np.uint8)
    scaler = Downscaler(*large, 1.0)
    assert scaler.size == large
    copy = np.empty_like(frame)
    scaler.resize(frame, copy)
    np.testing.assert_array_equal(copy, frame)
    assert out.shape[:2] == small


def test_resampling_allocates_nothing_per_frame() -> None:
    frame = noise(90, 160)
    calls = []
    for scale in (0.75, 0.5):
        shrink = Downscaler(90, 160, scale)
        small = np.empty((*shrink.size, 3), np.uint8)
        enlarge = Upscaler(shrink.size, (90, 160))
        calls.append((shrink, small, enlarge))
    back = np.empty_like(frame)
    twice = np.empty((180, 320, 3), np.uint8)

    def every_way() -> None:
        for shrink, small, enlarge in calls:
            shrink.resize(frame, small)
            enlarge.resize(small, back)
        replicate(frame, 2, twice)

    assert peak_growth(every_way) < 16 * 1024


def test_what_cannot_be_resampled_is_refused_in_one_line() -> None:
    frame = noise(8, 8)
    out = np.full((4, 4, 3), 9, np.uint8)
    with pytest.raises(PassError, match=r"internal scale is 1\.5, wanted above 0"):
        Downscaler(8, 8, 1.5)
    with pytest.raises(PassError, match="multiple is 0, wanted"):
        Downscaler(8, 8, 0.5, multiple=0)
    with pytest.raises(FrameError, match=r"from 8x8 to 4x16 would make a side smaller"):
        Upscaler((8, 8), (16, 4))
    scaler = Downscaler(8, 8, 0.5)
    with pytest.raises(FrameError, match=r"out is uint8 of shape \(8, 8, 3\).*wanted"):
        scaler.resize(frame, frame.copy())
    with pytest.raises(FrameError, match="frame is float32"):
        scaler.resize(frame.astype(np.float32), out)
    with pytest.raises(FrameError, match=r"frame is .*not C-contiguous"):
        scaler.resize(noise(8, 16)[:, ::2], out)
    with pytest.raises(FrameError, match="replication scale is 0"):
        replicate(frame, 0, out)
    assert (out == 9).all()


def test_numpys_own_buffers_are_as_they_were_afterwards() -> None:
    # The application's thread presents, and its arithmetic is its own business.
    before = np.getbufsize()
    down(noise(8, 8), 0.5)
    up(noise(8, 8), 11, 13)
    assert np.getbufsize() == before
