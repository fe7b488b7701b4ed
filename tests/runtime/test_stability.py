"""Measures of temporal stability, and the scene that they are taken on."""

import doctest

import numpy as np
import pytest

from topcoat.runtime.frames import Frame
from topcoat.runtime.stability import (
    CAMERAS,
    Scene,
    StabilityError,
    View,
    _metrics,
    _scene,
    flicker_gain,
    frozen_variance,
    halton_jitter,
    lag_frames,
    return_drift,
    sensor_noise,
    warp_error,
)

WIDTH, HEIGHT = 96, 54


def still(level: int) -> Frame:
    return np.full((6, 8, 3), level, np.uint8)


def error_of(views: list[View], outputs: list[Frame]) -> "_metrics.WarpError":
    return warp_error(
        outputs,
        [view.colour for view in views],
        [view.motion for view in views],
        [view.occluded for view in views],
    )


def test_the_documentation_is_right() -> None:
    results = doctest.testmod(_scene)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_scenes_motion_is_exact(camera: str) -> None:
    scene = Scene(camera=camera, speed=1.5)  # type: ignore[arg-type]
    views = [scene.render(t, 320, 180) for t in (12, 13)]
    told = error_of(views, [view.colour for view in views]).floor
    views[1] = views[1]._replace(motion=np.zeros_like(views[1].motion))
    assert told < 0.2 * error_of(views, [view.colour for view in views]).floor


def test_a_scene_in_which_nothing_moves_says_exactly_that() -> None:
    scene = Scene(camera="static", moving=False)
    first, later = scene.render(0, WIDTH, HEIGHT), scene.render(7, WIDTH, HEIGHT)
    assert not later.motion.any()
    np.testing.assert_array_equal(first.colour, later.colour)
    np.testing.assert_array_equal(first.depth, later.depth)


def test_a_scene_knows_what_was_covered() -> None:
    # Depth says it independently: where a visible point was, the last frame was as far away.
    scene = Scene(camera="static")
    before, now = scene.render(9, 320, 180), scene.render(10, 320, 180)
    y, x = np.mgrid[0:180, 0:320]
    at_x = np.rint(x + now.motion[..., 0]).astype(int).clip(0, 319)
    at_y = np.rint(y + now.motion[..., 1]).astype(int).clip(0, 179)
    same = np.abs(before.depth[at_y, at_x] / now.depth - 1) < 0.05
    assert same[~now.occluded].all()
    assert (~same & now.occluded).sum() > 200


def test_jitter_moves_the_picture_by_what_it_says_and_leaves_the_motion_out() -> None:
    scene = Scene(camera="static", moving=False)
    jittered = scene.render(0, WIDTH, HEIGHT, (1.0, 0.0))
    plain = scene.render(0, WIDTH, HEIGHT)
    np.testing.assert_array_equal(jittered.colour[:, :-1], plain.colour[:, 1:])
    assert not jittered.motion.any()


def test_halton_jitter_covers_the_pixel_evenly() -> None:
    points = np.array([halton_jitter(n) for n in range(144)])
    assert np.abs(points).max() <= 0.5
    assert np.abs(points.mean(axis=0)).max() < 0.02
    cells = np.floor((points + 0.5) * 4).astype(int)
    counts = np.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    assert counts.min() >= 7


def test_a_scene_is_periodic_and_repeats_bit_for_bit() -> None:
    scene = Scene(period=30.0)
    np.testing.assert_array_equal(
        scene.render(2, WIDTH, HEIGHT).colour, scene.render(2, WIDTH, HEIGHT).colour
    )
    first, again = (scene.render(t, WIDTH, HEIGHT).colour.astype(int) for t in (0, 30))
    assert np.abs(first - again).max() <= 1


def test_sensor_noise_is_as_strong_as_it_says_and_repeats_with_its_seed() -> None:
    grey = np.full((80, 80, 3), 128, np.uint8)
    noisy = sensor_noise(grey, 4.0, 7)
    assert abs(noisy.astype(float).std() - 4.0) < 0.1
    np.testing.assert_array_equal(noisy, sensor_noise(grey, 4.0, 7))
    assert (noisy != sensor_noise(grey, 4.0, 8)).any()


def test_warp_error_is_the_mean_square_over_visible_values() -> None:
    zero, open_ = np.zeros((6, 8, 2), np.float32), np.zeros((6, 8), np.bool_)
    covered = open_.copy()
    covered[:, :4] = True
    flash = still(0)
    flash[:, :4] = 255  # unseen, so it must not count
    flash[:, 4:] = 51
    inputs = [still(0)] * 2
    measured = warp_error([still(0), flash], inputs, [zero, zero], [open_, covered])
    assert measured.value == pytest.approx(0.2**2)
    assert measured.floor == 0
    nothing = np.ones((6, 8), np.bool_)
    skipped = warp_error(
        [still(0), still(9), still(60)], [still(0)] * 3, [zero] * 3, [open_, nothing, open_]
    )
    assert skipped.value == pytest.approx(0.2**2)


def test_warp_error_follows_the_motion() -> None:
    before = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    now = np.roll(before, 2, axis=1)
    motion = np.zeros((20, 30, 2), np.float32)
    motion[..., 0] = -2
    hidden = np.zeros((20, 30), np.bool_)
    hidden[:, :2] = True
    pair = [before, now]
    assert warp_error(pair, pair, [motion] * 2, [hidden] * 2).value == 0
    assert warp_error(pair, pair, [-motion] * 2, [hidden] * 2).value > 0.1


def test_flicker_gain_of_a_copy_is_one_and_of_twice_the_change_two() -> None:
    inputs = [still(10), still(20), still(10)]
    assert flicker_gain(inputs, inputs) == 1
    assert flicker_gain(inputs, [still(10), still(30), still(10)]) == 2
    assert flicker_gain(inputs, [np.full((12, 16, 3), 7, np.uint8)] * 3) == 0


def test_frozen_variance_is_zero_for_equal_pictures_alone() -> None:
    assert frozen_variance([sensor_noise(still(77), 20, 0)] * 7) == 0
    assert frozen_variance([still(0), still(255)]) == pytest.approx(0.25)
    one = still(5)
    one[0, 0, 0] += 1
    assert frozen_variance([still(5), one, still(5)]) > 0


def test_lag_counts_the_frames_until_a_tenth_is_left() -> None:
    assert lag_frames(still(0), [still(100)] * 5) == 0
    assert lag_frames(still(0), [still(v) for v in (50, 75, 89, 90, 100, 100)]) == 3
    assert lag_frames(still(0), [still(v) for v in (100, 50, 100, 100)]) == 2  # it swung back
    assert lag_frames(still(0), [still(v) for v in (50, 60, 100)], remaining=0.5) == 0


def test_return_drift_is_the_mean_difference() -> None:
    assert return_drift(still(9), still(9)) == 0
    assert return_drift(still(60), still(9)) == pytest.approx(0.2)


def test_what_cannot_be_measured_is_refused_in_one_line() -> None:
    two, other = [still(1), still(2)], [np.zeros((5, 8, 3), np.uint8)] * 2
    motion, mask = [np.zeros((6, 8, 2), np.float32)] * 2, [np.zeros((6, 8), np.bool_)] * 2
    cases = [
        (lambda: flicker_gain(two[:1], two[:1]), "1 pictures came, wanted at least 2"),
        (lambda: flicker_gain([still(1)] * 2, two), "inputs never change"),
        (lambda: flicker_gain(two, [*two, still(1)]), "3 outputs came with 2 inputs"),
        (lambda: frozen_variance([still(1), other[0]]), r"uint8 \(5, 8, 3\), wanted uint8 \(6, 8"),
        (lambda: lag_frames(still(1), [still(1)] * 2), "change the input more"),
        (lambda: return_drift(still(1), other[0]), "wanted uint8"),
        (lambda: warp_error(two, two, motion[:1], mask), "1 motion fields and 2 occlusion masks"),
        (lambda: warp_error(two, two, motion, [~each for each in mask]), "use slower motion"),
    ]
    for call, text in cases:
        with pytest.raises(StabilityError, match=text) as caught:
            call()  # type: ignore[no-untyped-call]
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, ValueError)
