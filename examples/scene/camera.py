"""Matrices, and where everything is in frame ``index``: the scene's only notion of time.

Matrices are float64 (4, 4) that multiply column vectors; OpenGL wants them transposed as float32.
The world is in metres, y up, and turns 30 frames into one second.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

NEAR, FAR = 1.0, 260.0
FIELD_OF_VIEW = math.radians(40)
"""Vertical."""
SUN = np.array([0.86, 0.42, 0.04]) / math.hypot(0.86, 0.42, 0.04)
"""Direction towards the sun; the shaders have it, too."""
CLOUD_DRIFT = 0.012
"""Radians a second that the sky turns by."""


def translation(x: float, y: float, z: float) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def rotation(axis: int, angle: float) -> Matrix:
    """Return the rotation about axis 0, 1 or 2 (x, y, z) by an angle in radians."""
    matrix = np.eye(4)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[b, a] = math.sin(angle)
    matrix[a, b] = -matrix[b, a]
    return matrix


def scaling(factor: float) -> Matrix:
    return np.diag([factor, factor, factor, 1.0])


def look_at(eye: npt.ArrayLike, centre: npt.ArrayLike) -> Matrix:
    """Return world to view, for a camera at ``eye`` that looks at ``centre``."""
    position = np.asarray(eye, float)
    back = position - np.asarray(centre, float)
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = right, np.cross(back, right), back
    matrix[:3, 3] = -matrix[:3, :3] @ position
    return matrix


def perspective(aspect: float) -> Matrix:
    f = 1 / math.tan(FIELD_OF_VIEW / 2)
    matrix = np.zeros((4, 4))
    matrix[0, 0], matrix[1, 1] = f / aspect, f
    matrix[2, 2] = (NEAR + FAR) / (NEAR - FAR)
    matrix[2, 3] = 2 * NEAR * FAR / (NEAR - FAR)
    matrix[3, 2] = -1
    return matrix


def sun_view() -> Matrix:
    """Return world to the clip space of the shadow map, which holds the island and its water."""
    away = 20.0
    box = np.diag([1 / 12.5, 1 / 9.5, -1 / 24, 1.0])
    box[2, 3] = -away / 24
    return box @ look_at(SUN * away + [0, 1.8, 0], [0, 1.8, 0])


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the camera and everything that moves are."""

    eye: npt.NDArray[np.float64]
    view_projection: Matrix
    seconds: float
    sky: Matrix
    """Turns the sky's dome."""
    boat: Matrix
    wings: tuple[Matrix, ...]
    """Right and left wing of every gull in turn."""


def moment(index: int, aspect: float) -> Moment:
    """Return the state of the world in frame ``index``, which may be any whole number."""
    t = index / 30
    turn = 0.55 + 0.42 * math.sin(t * 0.30)
    distance = 18.5 - 2.5 * math.sin(t * 0.21)
    eye = np.array(
        [
            distance * math.sin(turn),
            3.4 + 1.0 * math.sin(t * 0.37 + 0.4),
            distance * math.cos(turn),
        ]
    )
    centre = [1.0, 3.6, 0.0]
    course = 0.9 + t * 0.11
    boat = (
        translation(9.4 * math.sin(course), 0.05 + 0.08 * math.sin(t * 1.9), 9.4 * math.cos(course))
        @ rotation(1, course)
        @ rotation(0, 0.06 * math.sin(t * 1.5))
        @ rotation(2, 0.08 * math.sin(t * 1.2 + 1))
    )
    wings = []
    for gull in range(4):
        phase = t * (0.42 + 0.05 * gull) + 1.7 * gull
        radius = 3.4 + 0.9 * gull
        body = (
            translation(
                radius * math.sin(phase),
                6.2 + 0.7 * gull + 0.4 * math.sin(t * 0.8 + gull),
                radius * math.cos(phase),
            )
            @ rotation(1, phase)
            @ rotation(0, 0.25)
        )
        flap = 0.25 + 0.5 * math.sin(t * 7.5 + 2 * gull)
        wings += [body @ rotation(0, flap), body @ rotation(1, math.pi) @ rotation(0, flap)]
    return Moment(
        eye,
        perspective(aspect) @ look_at(eye, centre),
        t,
        rotation(1, CLOUD_DRIFT * t),
        boat,
        tuple(wings),
    )
