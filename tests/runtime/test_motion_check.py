"""Motion vectors and depth against the pictures: mistakes are told, and nothing else is."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from topcoat.runtime.render_pass._motion_check import check_depth, check_motion
from topcoat.runtime.stability import CAMERAS, Scene, View, halton_jitter, sensor_noise

WIDTH, HEIGHT = 320, 180


@cache
def pair(camera: str, t: int, speed: float = 2.0, jittered: bool = False) -> tuple[View, View]:
    """Two frames in a row."""
    scene = Scene(camera=camera, speed=speed)  # type: ignore[arg-type]
    before, now = (
        scene.render(n, WIDTH, HEIGHT, halton_jitter(n) if jittered else (0.0, 0.0))
        for n in (t - 1, t)
    )
    return before, now


def read_wrongly(mistake: str, motion: NDArray[np.float32]) -> NDArray[np.float32]:
    """What reaches the check when the application says nothing and its vectors are these."""
    factors: dict[str, tuple[float, float]] = {
        "negated": (-1, -1),
        "upside down": (1, -1),
        "texture coordinates": (1 / WIDTH, 1 / HEIGHT),
        "texture coordinates, negated": (-1 / WIDTH, -1 / HEIGHT),
        "device coordinates": (2 / WIDTH, 2 / HEIGHT),
        "scaled twice": (WIDTH, HEIGHT),
    }
    return motion * np.array(factors[mistake], np.float32)


@pytest.mark.parametrize(
    ("mistake", "told", "cure"),
    [
        ("negated", "look negated:", "Motion(direction=...)"),
        ("upside down", "look upside down in y:", "Motion(y=...)"),
        ("texture coordinates", "look in texture coordinates:", "Motion(scale=(320, 180))"),
        (
            "texture coordinates, negated",
            "look in texture coordinates and negated:",
            "Motion(scale=(320, 180)) and the other Motion(direction=...)",
        ),
        (
            "device coordinates",
            "look in normalised device coordinates:",
            "Motion(scale=(160, 90))",
        ),
        ("scaled twice", "look scaled once too often:", "Motion(scale=(1, 1))"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_its_cure(mistake: str, told: str, cure: str) -> None:
    before, now = pair("walk", 6)
    line = check_motion(now.colour, before.colour, read_wrongly(mistake, now.motion))
    assert line is not None
    assert told in line
    assert line.endswith(f"pass {cure}" if cure.startswith("Motion(s") else f"the other {cure}")
    assert "\n" not in line


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("jittered", [False, True])
def test_correct_vectors_raise_no_alarm(camera: str, jittered: bool) -> None:
    for t, speed in ((3, 0.5), (6, 2.0), (14, 2.0)):
        before, now = pair(camera, t, speed, jittered)
        assert check_motion(now.colour, before.colour, now.motion) is None
        noisy = [sensor_noise(view.colour, 6.0, t + n) for n, view in enumerate((before, now))]
        assert check_motion(noisy[1], noisy[0], now.motion) is None


@pytest.mark.parametrize("camera", CAMERAS)
def test_vectors_that_are_left_at_zero_raise_no_alarm(camera: str) -> None:
    before, now = pair(camera, 6)
    assert check_motion(now.colour, before.colour, np.zeros_like(now.motion)) is None


def test_a_cut_and_noise_raise_no_alarm() -> None:
    _, now = pair("walk", 6)
    other = np.random.default_rng(0).integers(0, 256, now.colour.shape, np.uint8)
    for motion in (now.motion, -now.motion, now.motion / np.float32(WIDTH)):
        assert check_motion(now.colour, other, motion) is None
        assert check_motion(now.colour, now.colour[::-1].copy(), motion) is None


def test_a_picture_without_contrast_proves_nothing() -> None:
    grey = np.full((HEIGHT, WIDTH, 3), 99, np.uint8)
    assert check_motion(grey, grey, np.full((HEIGHT, WIDTH, 2), 5.0, np.float32)) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_vectors_that_are_no_use_at_all_neither_fail_nor_warn(value: float) -> None:
    before, now = pair("walk", 6)
    motion = np.full_like(now.motion, value)
    assert check_motion(now.colour, before.colour, motion) is None
    assert check_depth(now.depth, motion, False) is None
    assert check_depth(np.full_like(now.depth, value), now.motion, False) is None


def test_tiny_pictures_are_let_pass() -> None:
    tiny = np.zeros((4, 4, 3), np.uint8)
    motion = np.zeros((4, 4, 2), np.float32)
    assert check_motion(tiny, tiny, motion) is None
    assert check_depth(motion[..., 0], motion, True) is None


def depth_of(kind: str, distance: NDArray[np.float32]) -> tuple[NDArray[np.float32], bool]:
    """Depth as renderers hold it, and whether greater is nearer in it. The near plane is at 0.1."""
    if kind == "distance":
        return distance, False
    if kind == "inverse distance":
        return np.float32(1) / distance, True
    if kind == "depth buffer":
        return 1 - np.float32(0.1) / distance, False
    assert kind == "reversed depth buffer"
    return np.float32(0.1) / distance, True


KINDS = ["distance", "inverse distance", "depth buffer", "reversed depth buffer"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("camera", CAMERAS)
def test_correct_depth_raises_no_alarm(kind: str, camera: str) -> None:
    for t in (6, 14):
        _, now = pair(camera, t)
        depth, inverted = depth_of(kind, now.depth)
        assert check_depth(depth, now.motion, inverted) is None


def test_a_camera_that_circles_what_is_near_raises_no_alarm() -> None:
    # What it circles stands still and the distance flies by: the opposite of a sideways move.
    _, now = pair("truck", 6)
    motion = np.zeros_like(now.motion)
    nearest = now.depth.min()
    motion[..., 0] = 12 * (1 / now.depth - 1 / nearest) * nearest
    assert np.abs(motion).max() > 5
    for kind in KINDS:
        depth, inverted = depth_of(kind, now.depth)
        assert check_depth(depth, motion, inverted) is None


@pytest.mark.parametrize("kind", ["depth buffer", "reversed depth buffer"])
def test_a_depth_buffer_that_is_upside_down_is_told(kind: str) -> None:
    _, now = pair("truck", 6)
    depth, inverted = depth_of(kind, now.depth)
    line = check_depth(depth, now.motion, not inverted)
    assert line is not None
    assert line.startswith("depth looks inverted:")
    assert "Depth(inverted=...)" in line
    assert "\n" not in line


def test_distances_that_are_upside_down_are_told() -> None:
    # Unevenly deep, as a floor or a wall alone fits either reading of its depth.
    rng = np.random.default_rng(0)
    distance = np.repeat(np.repeat(rng.uniform(2, 9, (18, 32)), 10, 0), 10, 1).astype(np.float32)
    motion = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    inverse = np.float32(1) / distance
    motion[..., 0] = 3 + 20 * inverse
    assert check_depth(distance, motion, False) is None
    assert check_depth(inverse, motion, True) is None
    assert check_depth(distance, motion, True) is not None
    assert check_depth(10 * inverse, motion, False) is not None
