"""Moving pictures along motion vectors."""

import doctest
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass import _warp
from topcoat.runtime.render_pass._warp import Field, Warper, expand


def noise(height: int, width: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def wander(height: int, width: int, by: float, seed: int = 1) -> Field:
    return np.random.default_rng(seed).normal(0, by, (height, width, 2)).astype(np.float32)


def bilinear(picture: Frame, motion: Field) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What a warp must come to, in plain float64, and where the source lay inside."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    at_x, at_y = x + motion[..., 0].astype(np.float64), y + motion[..., 1].astype(np.float64)
    inside = (abs(at_x - (width - 1) / 2) <= width / 2) & (
        abs(at_y - (height - 1) / 2) <= height / 2
    )
    at_x, at_y = at_x.clip(0, width - 1), at_y.clip(0, height - 1)
    left, top = at_x.astype(int), at_y.astype(int)
    right, bottom = (left + 1).clip(max=width - 1), (top + 1).clip(max=height - 1)
    fx, fy = (at_x - left)[..., None], (at_y - top)[..., None]
    levels = picture.astype(np.float64)
    upper = levels[top, left] * (1 - fx) + levels[top, right] * fx
    lower = levels[bottom, left] * (1 - fx) + levels[bottom, right] * fx
    return upper * (1 - fy) + lower * fy, inside


def test_the_documentation_is_right() -> None:
    results = doctest.testmod(_warp)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (33, 1), (37, 53), (300, 411)])
def test_a_warp_is_bilinear_to_within_two_levels(height: int, width: int) -> None:
    picture, motion = noise(height, width), wander(height, width, 4.0)
    out, valid = np.empty_like(picture), np.empty((height, width), np.uint8)
    Warper(height, width).warp(picture, motion, out, valid)
    wanted, inside = bilinear(picture, motion)
    # Half a 256th of a pixel in x and in y on noise of 255 levels, half a level of rounding.
    assert np.abs(out - wanted).max() < 2.1
    np.testing.assert_array_equal(valid, inside)


def test_rounding_neither_brightens_nor_darkens() -> None:
    picture = noise(200, 300)
    for motion in (wander(200, 300, 4.0), np.full((200, 300, 2), 0.5, np.float32)):
        out = np.empty_like(picture)
        Warper(200, 300).warp(picture, motion, out)
        assert abs((out - bilinear(picture, motion)[0]).mean()) < 0.01


@pytest.mark.parametrize("by", [(0, 0), (3, 0), (0, -2), (-5, 7), (1000, 0)])
def test_motion_by_whole_pixels_is_exact(by: tuple[int, int]) -> None:
    picture = noise(60, 90)
    motion = np.tile(np.array(by, np.float32), (60, 90, 1))
    out, valid = np.empty_like(picture), np.empty((60, 90), np.uint8)
    Warper(60, 90).warp(picture, motion, out, valid)
    rows, columns = np.arange(60) + by[1], np.arange(90) + by[0]
    np.testing.assert_array_equal(
        out, picture[rows.clip(0, 59)[:, None], columns.clip(0, 89)[None]]
    )
    inside = ((rows >= 0) & (rows < 60))[:, None] & ((columns >= 0) & (columns < 90))[None]
    np.testing.assert_array_equal(valid, inside)


def test_no_motion_is_a_copy_and_all_of_it_valid() -> None:
    picture = noise(20, 30)
    out, valid = np.zeros_like(picture), np.zeros((20, 30), np.uint8)
    Warper(20, 30).warp(picture, None, out, valid)
    np.testing.assert_array_equal(out, picture)
    assert valid.all()


def test_motion_that_is_no_number_holds_its_pixel_and_huge_motion_takes_the_edge() -> None:
    picture = noise(40, 50)
    motion = np.zeros((40, 50, 2), np.float32)
    odd = [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38]
    for place, value in enumerate(odd):
        motion[10, place] = value
    motion[20, :, 1] = np.nan  # one component is enough
    motion.view(np.uint32)[30, 0] = 0x7F800001  # a signalling not-a-number
    out, valid = np.empty_like(picture), np.empty((40, 50), np.uint8)
    Warper(40, 50).warp(picture, motion, out, valid)
    assert not valid[10, :5].any()
    assert not valid[20].any()
    assert valid.sum() == 40 * 50 - 5 - 50 - 1
    np.testing.assert_array_equal(out[20], picture[20])
    np.testing.assert_array_equal(out[10, 0], picture[10, 0])
    np.testing.assert_array_equal(out[10, 1], picture[39, 49])
    np.testing.assert_array_equal(out[10, 4], picture[0, 0])
    np.testing.assert_array_equal(out[valid == 1], picture[valid == 1])


def test_a_picture_may_be_warped_in_place() -> None:
    picture, motion = noise(70, 900), wander(70, 900, 30.0)
    out = np.empty_like(picture)
    warper = Warper(70, 900)
    warper.warp(picture, motion, out)
    warper.warp(picture, motion, picture)
    np.testing.assert_array_equal(picture, out)


def test_composed_motion_moves_as_both_do_one_after_the_other() -> None:
    picture = noise(50, 60)
    older = np.random.default_rng(2).integers(-3, 4, (50, 60, 2)).astype(np.float32)
    newer = np.random.default_rng(3).integers(-3, 4, (50, 60, 2)).astype(np.float32)
    between, twice, once = (np.empty_like(picture) for _ in range(3))
    both = np.empty_like(newer)
    warper = Warper(50, 60)
    warper.warp(picture, older, between)
    warper.warp(between, newer, twice)
    warper.compose(newer, older, both)
    valid = np.empty((50, 60), np.uint8)
    warper.warp(picture, both, once, valid)
    y, x = np.mgrid[0:50, 0:60]
    x, y = x + newer[..., 0], y + newer[..., 1]
    stayed = (valid == 1) & (x >= 0) & (x < 60) & (y >= 0) & (y < 50)
    assert stayed.mean() > 0.8
    np.testing.assert_array_equal(once[stayed], twice[stayed])
    warper.compose(newer, older, newer)
    np.testing.assert_array_equal(newer, both)


def test_composing_takes_the_older_motion_at_the_nearest_pixel() -> None:
    older = np.zeros((1, 4, 2), np.float32)
    older[0, :, 0] = [10, 20, 30, 40]
    newer = np.zeros((1, 4, 2), np.float32)
    newer[0, :, 0] = [0.25, 0.75, 9, np.nan]
    out = np.empty_like(newer)
    Warper(1, 4).compose(newer, older, out)
    np.testing.assert_array_equal(out[0, :, 0], np.array([10.25, 30.75, 49, np.nan], np.float32))


@pytest.mark.parametrize("small", [(20, 30), (10, 15), (7, 11), (1, 1)])
def test_a_small_field_is_enlarged_with_its_values_kept(small: tuple[int, int]) -> None:
    field = wander(*small, 5.0)
    field[0, 0] = np.nan
    out = np.empty((20, 30, 2), np.float32)
    expand(field, out)
    y = ((np.arange(20) + 0.5) * small[0] / 20).astype(int)
    x = ((np.arange(30) + 0.5) * small[1] / 30).astype(int)
    np.testing.assert_array_equal(out, field[y[:, None], x[None]])
    depth = np.empty((20, 30), np.float32)
    expand(np.ascontiguousarray(field[..., 0]), depth)
    np.testing.assert_array_equal(depth, out[..., 0])


def test_a_side_that_positions_cannot_count_is_refused() -> None:
    with pytest.raises(ValueError, match="got 4x16384; warp a smaller picture"):
        Warper(4, 16384)


def test_warping_takes_no_memory_of_its_own() -> None:
    picture, motion = noise(90, 160), wander(90, 160, 2.0)
    small = np.ascontiguousarray(motion[:45, :80])
    out, both = np.empty_like(picture), np.empty_like(motion)
    valid = np.empty((90, 160), np.uint8)
    warper = Warper(90, 160)

    def frame() -> None:
        warper.warp(picture, motion, out, valid)
        warper.warp(picture, None, out, valid)
        warper.compose(motion, motion, both)
        expand(small, both)

    frame()
    assert peak_growth(frame) < 16 * 1024


def peak_growth(frame: Callable[[], None]) -> int:
    """Bytes of Python and numpy memory that 50 frames need beyond what is there before."""
    tracemalloc.start()
    try:
        frame()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(50):
            frame()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_the_nearest_pixel_is_taken_where_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 60, 3), np.uint8)
    motion = rng.uniform(-9, 9, (40, 60, 2)).astype(np.float32)
    out = np.empty_like(picture)
    Warper(40, 60).warp(picture, motion, out, nearest=True)
    y, x = np.mgrid[:40, :60]
    # Positions are rounded to 256ths first, halves go up.
    places = np.round((np.stack([x, y], -1) + motion) * 256) / 256
    columns = np.clip(np.floor(places[..., 0] + 0.5).astype(int), 0, 59)
    rows = np.clip(np.floor(places[..., 1] + 0.5).astype(int), 0, 39)
    assert np.array_equal(out, picture[rows, columns])
