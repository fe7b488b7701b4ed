"""The stabiliser: steady where the frame is, exact where it is frozen, and never far from it."""

import doctest
import tracemalloc
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass import _stabiliser
from topcoat.runtime.render_pass._stabiliser import Stabiliser, reach
from topcoat.runtime.stability import (
    Scene,
    View,
    flicker_gain,
    frozen_variance,
    halton_jitter,
    lag_frames,
    return_drift,
    sensor_noise,
    warp_error,
)

WIDTH, HEIGHT = 160, 90
Field = NDArray[np.float32]


@cache
def view(t: float, camera: str = "walk", jitter: int = -1, moving: bool = True) -> View:
    scene = Scene(camera=camera, moving=moving)  # type: ignore[arg-type]
    return scene.render(t, WIDTH, HEIGHT, halton_jitter(jitter) if jitter >= 0 else (0.0, 0.0))


def paint(frame: Frame) -> Frame:
    """A style that overdoes every change of its frame, as networks do: 3 times its detail."""
    levels = frame.astype(np.float32)
    padded = np.pad(levels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = frame.shape[:2]
    around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    smooth: NDArray[np.float32] = np.mean(around, axis=0)
    return np.clip(smooth + 3 * (levels - smooth) + 0.5, 0, 255).astype(np.uint8)


def steady(
    views: list[View],
    strength: float,
    *,
    motion: bool = True,
    depth: bool = False,
    style: Callable[[Frame], Frame] = paint,
) -> list[Frame]:
    stabiliser = Stabiliser(HEIGHT, WIDTH)
    outputs = []
    for each in views:
        out = np.empty_like(each.colour)
        stabiliser.step(
            each.colour,
            style(each.colour),
            each.motion if motion else None,
            each.depth if depth else None,
            strength,
            out,
        )
        outputs.append(out)
    return outputs


def noisy(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_the_documentation_is_right() -> None:
    results = doctest.testmod(_stabiliser)
    assert results.attempted > 0
    assert results.failed == 0


def test_strength_zero_is_the_result_bit_for_bit_and_forgets() -> None:
    stabiliser = Stabiliser(HEIGHT, WIDTH)
    frame, out = noisy(0), np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for seed in range(1, 4):
        stabiliser.step(frame, noisy(seed), None, None, 0.0, out)
        np.testing.assert_array_equal(out, noisy(seed))
        assert not stabiliser.history_weight.any()
    stabiliser.step(frame, noisy(4), None, None, 1.0, out)
    np.testing.assert_array_equal(out, noisy(4))  # there was no past


def test_the_first_output_is_its_result_and_so_is_that_after_a_reset() -> None:
    stabiliser = Stabiliser(HEIGHT, WIDTH)
    frame, out = noisy(0), np.empty((HEIGHT, WIDTH, 3), np.uint8)
    stabiliser.step(frame, noisy(1), None, None, 1.0, out)
    np.testing.assert_array_equal(out, noisy(1))
    stabiliser.step(frame, noisy(2), None, None, 1.0, out)
    assert (out != noisy(2)).any()
    stabiliser.reset()
    stabiliser.step(frame, noisy(3), None, None, 1.0, out)
    np.testing.assert_array_equal(out, noisy(3))
    assert not stabiliser.cut_detected


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("with_motion", [False, True])
def test_a_frozen_frame_gives_no_variance_at_all(strength: float, with_motion: bool) -> None:
    frozen = [view(5, "static", moving=False)] * 6
    outputs = steady(frozen, strength, motion=with_motion)
    assert frozen_variance(outputs) == 0
    np.testing.assert_array_equal(outputs[0], paint(frozen[0].colour))


def test_after_motion_stops_the_output_becomes_the_result_exactly_and_stays() -> None:
    moving = [view(t) for t in range(4)]
    frozen = view(4)._replace(motion=np.zeros_like(view(4).motion))
    outputs = steady([*moving, *[frozen] * 60], 1.0)
    wanted = paint(frozen.colour)
    assert (outputs[len(moving)] != wanted).any()
    np.testing.assert_array_equal(outputs[-20], wanted)
    assert frozen_variance(outputs[-20:]) == 0


def neighbours(values: Frame) -> NDArray[np.uint8]:
    """(9, ...): each pixel's surroundings; beyond the edge, the edge."""
    margins = ((1, 1), (1, 1)) + ((0, 0),) * (values.ndim - 2)
    padded = np.pad(values, margins, mode="edge")
    height, width = values.shape[:2]
    return np.stack([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])


def by_the_formula(
    frame: Frame, last: Frame, styled: Frame, history: Frame, strength: float
) -> tuple[Frame, NDArray[np.int64]]:
    """One step without motion, in plain whole numbers; and the history's weight."""
    new, around = last.astype(int), neighbours(frame).astype(int)
    outside = np.maximum(new - around.max(axis=0), around.min(axis=0) - new).max(axis=-1)
    doubt = neighbours(outside.clip(0, 255).astype(np.uint8)).max(axis=0).astype(int)
    weight = 230 - np.minimum(230, 20 * (doubt - 10).clip(0, 12))
    around = neighbours(styled).astype(int)
    limited = history.astype(int).clip(
        (around.min(axis=0) - 8).clip(0), (around.max(axis=0) + 8).clip(max=255)
    )
    difference = limited - styled
    size = np.abs(difference)
    kept = np.minimum(size, reach(strength))
    kept += (size - kept) * round(256 * strength**2) >> 8
    change = np.sign(difference) * (kept * weight[..., None] >> 8)
    return (styled + change).astype(np.uint8), weight


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("height", "width"), [(90, 160), (33, 700), (5, 3)])
def test_a_step_is_what_the_formula_says(strength: float, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(100, 130, (height, width, 3), np.uint8)]
    for _ in range(4):
        frames.append((frames[-1] + rng.integers(-9, 10, frames[-1].shape)).astype(np.uint8))
    frames[-1][: height // 3] = 255 - frames[-1][: height // 3]
    stabiliser = Stabiliser(height, width)
    out = np.empty((height, width, 3), np.uint8)
    wanted = noisy(0, height, width)
    stabiliser.step(frames[0], wanted, None, None, strength, out)
    for n in range(1, 5):
        styled = noisy(n, height, width) // 2 + 60
        wanted, weight = by_the_formula(frames[n], frames[n - 1], styled, wanted, strength)
        stabiliser.step(frames[n], styled, None, None, strength, out)
        assert not stabiliser.cut_detected
        np.testing.assert_array_equal(stabiliser.history_weight, weight)
        np.testing.assert_array_equal(out, wanted)
    if height > 10:
        assert set(np.unique(weight)) >= {0, 230}


@pytest.mark.parametrize("source", ["jitter", "noise"])
def test_half_strength_halves_the_flicker(source: str) -> None:
    plain = view(0, "static", moving=False)
    if source == "jitter":
        views = [view(0, "static", n, moving=False) for n in range(16)]
    else:
        views = [plain._replace(colour=sensor_noise(plain.colour, 3.0, n)) for n in range(16)]
    inputs = [each.colour for each in views]
    gains = [flicker_gain(inputs[4:], steady(views, strength)[4:]) for strength in (0.0, 0.5, 1.0)]
    assert gains[0] > 1.5  # the style flickers more than its frames
    assert gains[1] < 0.5 * gains[0]
    assert gains[2] < gains[1]


def test_motion_vectors_keep_a_moving_picture_steadier_than_none() -> None:
    views = [view(t) for t in range(12)]
    inputs = [each.colour for each in views]
    motions, occluded = [each.motion for each in views], [each.occluded for each in views]

    def error(outputs: list[Frame]) -> float:
        return warp_error(outputs, inputs, motions, occluded).value

    fresh = error([paint(each) for each in inputs])
    followed, unguided = error(steady(views, 0.5)), error(steady(views, 0.5, motion=False))
    assert followed < 0.75 * fresh
    assert followed < unguided <= fresh


def test_what_comes_into_view_is_not_haunted() -> None:
    # Where the frame itself is new, no history is used, so the output is the result.
    views = [view(t, "static") for t in range(0, 12, 3)]  # the spheres jump three frames at a time
    stabiliser = Stabiliser(HEIGHT, WIDTH)
    out = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for each in views:
        stabiliser.step(each.colour, paint(each.colour), None, None, 1.0, out)
    changed = np.abs(views[-1].colour.astype(int) - views[-2].colour).max(axis=-1) > 60
    assert changed.sum() > 100
    weight = stabiliser.history_weight
    assert (weight[changed] == 0).mean() > 0.8
    assert (weight[~changed] > 200).mean() > 0.8


def test_depth_tells_surfaces_of_one_colour_apart() -> None:
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    near, far = np.full((HEIGHT, WIDTH), 2, np.float32), np.full((HEIGHT, WIDTH), 5, np.float32)
    far[:, :40] = np.inf  # sky
    stabiliser = Stabiliser(HEIGHT, WIDTH)
    out = np.empty_like(grey)
    before, now = far.copy(), far.copy()
    before[20:60, 60:120] = near[20:60, 60:120]
    for motion in (None, np.full((HEIGHT, WIDTH, 2), 0.25, np.float32)):
        stabiliser.reset()
        stabiliser.step(grey, noisy(1), motion, before, 1.0, out)
        stabiliser.step(grey, noisy(2), motion, now, 1.0, out)
        weight = stabiliser.history_weight
        assert not weight[22:58, 62:118].any()
        assert weight[2:18, 2:-2].all()
        stabiliser.step(grey, noisy(3), motion, (1.05 * now).astype(np.float32), 1.0, out)
        assert stabiliser.history_weight[2:-2, 2:-2].all()  # the camera drew back a little
    broken = now.copy()
    broken[:] = np.nan
    stabiliser.step(grey, noisy(4), None, broken, 1.0, out)


def test_correct_depth_takes_no_history_from_what_stays_in_view() -> None:
    views = [view(t, "dolly", moving=False) for t in (20, 21, 22)]
    plain, deep = Stabiliser(HEIGHT, WIDTH), Stabiliser(HEIGHT, WIDTH)
    out = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for each in views:
        plain.step(each.colour, paint(each.colour), each.motion, None, 0.5, out)
        deep.step(
            each.colour, paint(each.colour), each.motion, np.float32(1) / each.depth, 0.5, out
        )
    visible = ~views[-1].occluded
    kept = deep.history_weight[visible].mean() / plain.history_weight[visible].mean()
    assert kept > 0.98


def test_pixels_from_outside_have_no_history() -> None:
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    motion = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    motion[..., 0] = 7
    motion[10:20, 10:20] = np.nan
    stabiliser = Stabiliser(HEIGHT, WIDTH)
    out = np.empty_like(grey)
    for seed in range(2):
        stabiliser.step(grey, noisy(seed), motion, None, 1.0, out)
    weight = stabiliser.history_weight
    assert not weight[:, -7:].any()
    assert not weight[10:20, 10:20].any()
    assert weight[30:, :-7].all()
    np.testing.assert_array_equal(out[:, -7:], noisy(1)[:, -7:])


def test_another_scene_is_found_out_and_begins_anew() -> None:
    stabiliser = Stabiliser(HEIGHT, WIDTH)
    out = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for t in range(3):
        frame = view(t).colour
        stabiliser.step(frame, paint(frame), view(t).motion, None, 1.0, out)
        assert not stabiliser.cut_detected
    other = 255 - view(3).colour
    stabiliser.step(other, paint(other), view(3).motion, None, 1.0, out)
    assert stabiliser.cut_detected
    np.testing.assert_array_equal(out, paint(other))
    stabiliser.step(other, paint(other), None, None, 1.0, out)
    assert not stabiliser.cut_detected


def test_it_follows_a_change_within_three_frames() -> None:
    dark = view(0, "static", moving=False)
    bright = dark._replace(colour=(dark.colour // 2 + 110).astype(np.uint8))
    # A part of the picture that changes, so that it is no cut.
    mixed = dark.colour.copy()
    mixed[:, :60] = bright.colour[:, :60]
    outputs = steady([dark] * 4 + [dark._replace(colour=mixed)] * 30, 0.5)
    assert lag_frames(outputs[3], outputs[4:]) <= 3
    # A change of the result alone, as when another style is set, is not sudden, but followed.
    stabiliser = Stabiliser(HEIGHT, WIDTH)
    outputs = []
    for n in range(34):
        out = np.empty_like(dark.colour)
        styled = paint(dark.colour if n < 4 else bright.colour)
        stabiliser.step(dark.colour, styled, None, None, 0.5, out)
        outputs.append(out)
    assert lag_frames(outputs[3], outputs[4:]) <= 6


def test_coming_back_to_the_start_shows_the_first_output_again() -> None:
    there = [view(t) for t in range(8)]
    back = [
        view(t)._replace(motion=-view(t + 1).motion, occluded=view(t).occluded)
        for t in range(6, -1, -1)
    ]
    rest = [there[0]._replace(motion=np.zeros_like(there[0].motion))] * 15
    outputs = steady([*there, *back, *rest], 0.5)
    assert return_drift(outputs[0], outputs[-1]) == 0
    # Even before the rest it is near, and neither brighter nor darker.
    before_rest = outputs[len(there) + len(back) - 1].astype(float) - outputs[0]
    assert abs(before_rest.mean()) < 0.5


@pytest.mark.parametrize("scale", [2, 3])
def test_results_may_be_larger_than_their_frames(scale: int) -> None:
    views = [view(t) for t in range(3)]
    stabiliser = Stabiliser(HEIGHT, WIDTH, scale=scale)
    out = np.empty((HEIGHT * scale, WIDTH * scale, 3), np.uint8)
    for each in views:
        styled = paint(each.colour).repeat(scale, axis=0).repeat(scale, axis=1)
        stabiliser.step(each.colour, styled, each.motion, each.depth, 1.0, out)
    assert (out != styled).mean() > 0.2
    assert stabiliser.history_weight.shape == out.shape[:2]
    for _ in range(60):
        stabiliser.step(each.colour, styled, None, None, 1.0, out)
    np.testing.assert_array_equal(out, styled)


def test_the_output_may_replace_the_result() -> None:
    apart, within = Stabiliser(HEIGHT, WIDTH), Stabiliser(HEIGHT, WIDTH)
    out = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for t in range(3):
        styled = paint(view(t).colour)
        apart.step(view(t).colour, styled, view(t).motion, None, 0.7, out)
        within.step(view(t).colour, styled, view(t).motion, None, 0.7, styled)
        np.testing.assert_array_equal(styled, out)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (2, 2), (301, 67)])
def test_every_size_works(height: int, width: int) -> None:
    stabiliser = Stabiliser(height, width)
    frame, out = noisy(0, height, width), np.empty((height, width, 3), np.uint8)
    motion = np.full((height, width, 2), 0.25, np.float32)
    depth = np.ones((height, width), np.float32)
    for seed in range(30):
        stabiliser.step(frame, noisy(min(seed, 3), height, width), motion * 0, depth, 0.5, out)
    np.testing.assert_array_equal(out, noisy(3, height, width))
    stabiliser.step(frame, noisy(4, height, width), motion, depth, 0.5, out)


@pytest.mark.parametrize("scale", [0, -1])
def test_a_scale_that_is_none_is_refused(scale: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 up, got {scale}"):
        Stabiliser(4, 4, scale=scale)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_step_takes_no_memory_of_its_own(scale: int) -> None:
    stabiliser = Stabiliser(HEIGHT, WIDTH, scale=scale)
    first, second = view(1), view(2)
    styled = np.ascontiguousarray(first.colour.repeat(scale, axis=0).repeat(scale, axis=1))
    out = np.empty_like(styled)
    depth = np.float32(1) / second.depth

    def frame() -> None:
        stabiliser.step(first.colour, styled, second.motion, depth, 0.5, out)
        stabiliser.step(second.colour, styled, None, depth, 0.5, out)
        stabiliser.step(second.colour, styled, second.motion, None, 0.0, out)

    for _ in range(2):
        frame()
    tracemalloc.start()
    try:
        frame()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(50):
            frame()
        assert tracemalloc.get_traced_memory()[1] - before < 16 * 1024
    finally:
        tracemalloc.stop()
