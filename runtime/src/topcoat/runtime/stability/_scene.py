"""A small scene that is drawn from formulas: colour, exact motion, depth and occlusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime.frames import Frame

Camera = Literal["static", "pan", "tilt", "truck", "pedestal", "dolly", "walk"]
CAMERAS: tuple[Camera, ...] = get_args(Camera)
"""How a scene's camera moves: not at all, turning sideways or up and down, going sideways, up and
down or forth and back, or several of these at once."""

_Array: TypeAlias = NDArray[np.float64]
_FLOOR, _WALL, _SPHERE = 0, 1, 2
_WALL_Z = 11.0
_SAMPLES = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
"""Of a pixel, from its centre: a rotated grid."""
_AROUND = ((-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0))
_LIGHT = (-0.45, 0.75, -0.48)
_FOCAL = 0.9
"""Focal length as a share of the picture's width."""


class View(NamedTuple):
    """One frame of a :class:`Scene`, with what a renderer knows about it."""

    colour: Frame
    """(H, W, 3) uint8, sRGB, each pixel the mean of 4 samples of a filtered texture."""
    motion: NDArray[np.float32]
    """(H, W, 2), in pixels, x then y, to the previous frame: what is at p now was at p + motion at
    time t - 1, the jitter of either frame left out. Exact, at the pixel's centre."""
    depth: NDArray[np.float32]
    """(H, W): distance along the camera's axis, above 0."""
    occluded: NDArray[np.bool_]
    """(H, W): at time t - 1 it was covered or outside the picture, or it lies so near an outline of
    either frame that a bilinear lookup would mix two surfaces."""


class _Pose(NamedTuple):
    eye: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    ahead: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A tiled floor, a painted wall and three textured spheres, seen through a perspective camera.

    The same arguments give the same picture, bit for bit. All motion is periodic: at time
    ``period`` everything is back where it was at 0.

    >>> view = Scene(camera="static", moving=False).render(3, 64, 36)
    >>> view.colour.shape, float(np.abs(view.motion).max())
    ((36, 64, 3), 0.0)
    """

    camera: Camera = "walk"
    moving: bool = True
    """Whether two of the spheres move."""
    period: float = 96.0
    """In frames."""
    speed: float = 1.0
    """Of the camera, as a multiple of the usual, which moves things by 0.5 % of the width."""

    def render(
        self, t: float, width: int, height: int, jitter: tuple[float, float] = (0.0, 0.0)
    ) -> View:
        """Draw one frame.

        Args:
            t: time in frames.
            width: of the picture in pixels.
            height: of the picture in pixels.
            jitter: (x, y) in pixels, by how much the sampling positions are moved, as a temporal
                antialiasing renderer does.
        """
        now, before = self._pose(t), self._pose(t - 1)
        spheres, spheres_before = self._spheres(t), self._spheres(t - 1)
        y, x = (each.astype(np.float64) for each in np.mgrid[0:height, 0:width])
        x += 0.5 + jitter[0]
        y += 0.5 + jitter[1]
        focal = _FOCAL * width

        def look(
            pose: _Pose, balls: _Array, px: _Array, py: _Array
        ) -> tuple[tuple[_Array, _Array, _Array], _Array, NDArray[np.int8]]:
            ray = _ray(pose, (px - width / 2) / focal, (height / 2 - py) / focal)
            return ray, *_trace(pose.eye, ray, balls)

        ray, depth, surface = look(now, spheres, x, y)
        point = tuple(eye + depth * part for eye, part in zip(now.eye, ray, strict=True))
        shift = np.zeros((_SPHERE + len(spheres), 3))
        shift[_SPHERE:] = spheres_before[:, :3] - spheres[:, :3]
        point_before = tuple(p + shift[surface, axis] for axis, p in enumerate(point))
        was_x, was_y = _project(before, point_before, focal, width, height)
        is_x, is_y = _project(now, point, focal, width, height)
        motion = np.stack([was_x - is_x, was_y - is_y], axis=-1).astype(np.float32)
        at_x, at_y = x - jitter[0] + (was_x - is_x), y - jitter[1] + (was_y - is_y)
        occluded = (at_x < 0.5) | (at_x > width - 0.5) | (at_y < 0.5) | (at_y > height - 0.5)
        for dx, dy in _AROUND:
            occluded |= look(before, spheres_before, at_x + dx, at_y + dy)[2] != surface
        light = np.zeros((height, width, 3))
        for dx, dy in _SAMPLES:
            ray, far, seen = look(now, spheres, x + dx, y + dy)
            occluded |= seen != surface
            light += _shade(now.eye, ray, far, seen, spheres, 1 / focal)
        light /= len(_SAMPLES)
        colour = np.clip(255 * np.clip(light, 0, 1) ** (1 / 2.2) + 0.5, 0, 255).astype(np.uint8)
        return View(colour, motion, depth.astype(np.float32), occluded)

    def _pose(self, t: float) -> _Pose:
        angle = 2 * math.pi * t / self.period
        swing = self.speed * math.sin(angle)
        x, y, z, yaw, pitch = 0.0, 1.7, 0.0, 0.0, -0.12
        if self.camera in ("pan", "walk"):
            yaw += 0.12 * swing
        if self.camera == "tilt":
            pitch += 0.07 * swing
        if self.camera in ("truck", "walk"):
            x += 0.6 * swing
        if self.camera == "pedestal":
            y += 0.45 * swing
        if self.camera in ("dolly", "walk"):
            z += 0.5 * self.speed * (1 - math.cos(angle))
        sin_yaw, cos_yaw = math.sin(yaw), math.cos(yaw)
        sin_pitch, cos_pitch = math.sin(pitch), math.cos(pitch)
        return _Pose(
            eye=(x, y, z),
            right=(cos_yaw, 0.0, -sin_yaw),
            up=(-sin_yaw * sin_pitch, cos_pitch, -cos_yaw * sin_pitch),
            ahead=(sin_yaw * cos_pitch, sin_pitch, cos_yaw * cos_pitch),
        )

    def _spheres(self, t: float) -> _Array:
        """Return (3, 4): centre and radius of each."""
        angle = 2 * math.pi * t / self.period if self.moving else 0.7
        return np.array(
            [
                (-1.7 + 0.9 * math.sin(2 * angle), 0.9, 6.2, 0.9),
                (1.5, 1.1 + 0.5 * math.sin(3 * angle), 5.0 + 0.6 * math.cos(angle), 0.7),
                (0.4, 1.2, 8.4, 1.2),
            ]
        )


def halton_jitter(n: int) -> tuple[float, float]:
    """Return the n-th (from 0) camera jitter in pixels, both within ±0.5: Halton bases 2 and 3.

    >>> [halton_jitter(n) for n in range(2)]
    [(0.0, -0.16666666666666669), (-0.25, 0.16666666666666663)]
    """

    def inverse(index: int, base: int) -> float:
        value, share = 0.0, 1 / base
        while index:
            index, digit = divmod(index, base)
            value += digit * share
            share /= base
        return value

    return inverse(n + 1, 2) - 0.5, inverse(n + 1, 3) - 0.5


def sensor_noise(picture: Frame, sigma: float, seed: int) -> Frame:
    """Return the picture with normal noise of ``sigma`` levels on every value, as a camera adds."""
    noise = np.random.default_rng(seed).normal(0.0, sigma, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def _ray(pose: _Pose, x: _Array, y: _Array) -> tuple[_Array, _Array, _Array]:
    """Return directions whose part along the camera's axis is 1: lengths are depths."""
    dx, dy, dz = (
        r * x + u * y + a for r, u, a in zip(pose.right, pose.up, pose.ahead, strict=True)
    )
    return dx, dy, dz


def _project(
    pose: _Pose, point: tuple[_Array, ...], focal: float, width: int, height: int
) -> tuple[_Array, _Array]:
    x, y, z = (p - eye for p, eye in zip(point, pose.eye, strict=True))
    along, across, above = (
        axis[0] * x + axis[1] * y + axis[2] * z for axis in (pose.ahead, pose.right, pose.up)
    )
    return width / 2 + focal * across / along, height / 2 - focal * above / along


def _trace(
    eye: tuple[float, float, float], ray: tuple[_Array, _Array, _Array], spheres: _Array
) -> tuple[_Array, NDArray[np.int8]]:
    """Return depth and surface of the first hit; the wall has no end, so there always is one."""
    dx, dy, dz = ray
    depth = (_WALL_Z - eye[2]) / dz
    surface = np.full(depth.shape, _WALL, np.int8)
    floor = -eye[1] / np.minimum(dy, -1e-9)
    nearer = floor < depth
    np.copyto(depth, floor, where=nearer)
    surface[nearer] = _FLOOR
    squared = dx * dx + dy * dy + dz * dz
    for number, (cx, cy, cz, radius) in enumerate(spheres, _SPHERE):
        ox, oy, oz = eye[0] - cx, eye[1] - cy, eye[2] - cz
        half = ox * dx + oy * dy + oz * dz
        root = half * half - squared * (ox * ox + oy * oy + oz * oz - radius * radius)
        hit = np.flatnonzero(root > 0)  # most rays pass by
        near = (-half.flat[hit] - np.sqrt(root.flat[hit])) / squared.flat[hit]
        first = (near > 0) & (near < depth.flat[hit])
        depth.flat[hit[first]] = near[first]
        surface.flat[hit[first]] = number
    return depth, surface


def _shade(
    eye: tuple[float, float, float],
    ray: tuple[_Array, _Array, _Array],
    depth: _Array,
    surface: NDArray[np.int8],
    spheres: _Array,
    pixel: float,
) -> _Array:
    """Return (H, W, 3) linear light; ``pixel`` is the width of a pixel at depth 1."""
    light = np.empty((*depth.shape, 3))
    for number in range(_SPHERE + len(spheres)):
        here = np.nonzero(surface == number)
        far = depth[here]
        x, y, z = (e + far * part[here] for e, part in zip(eye, ray, strict=True))
        wide = far * pixel
        if number == _FLOOR:
            steep = np.maximum(-ray[1][here], 1e-3)
            squares = _tiles(x * 1.5, z * 1.5, 1.5 * wide, 1.5 * wide / steep)
            veins = 0.5 + 0.5 * np.sin(2.1 * x + 1.3 * np.sin(1.7 * z))
            grey = 0.12 + 0.5 * squares + 0.16 * veins
            colour = grey[:, None] * (0.95, 0.85, 0.7)
        elif number == _WALL:
            stripes = 0.5 + 0.5 * np.sin(2.3 * x + 1.1 * np.sin(1.9 * y))
            bricks = _tiles(x * 0.9, y * 1.3, 0.9 * wide, 1.3 * wide)
            colour = (
                stripes[:, None] * (0.10, 0.22, 0.38)
                + bricks[:, None] * (0.20, 0.14, 0.08)
                + (0.08, 0.10, 0.14)
            )
        else:
            cx, cy, cz, radius = spheres[number - _SPHERE]
            nx, ny, nz = (x - cx) / radius, (y - cy) / radius, (z - cz) / radius
            lit = 0.25 + 0.75 * np.maximum(nx * _LIGHT[0] + ny * _LIGHT[1] + nz * _LIGHT[2], 0)
            waves = 0.5 + 0.5 * np.sin(9 * nx + 2 * number) * np.sin(8 * ny + number)
            base = np.array([(0.85, 0.22, 0.12), (0.15, 0.6, 0.25), (0.9, 0.75, 0.2)])
            colour = (lit * (0.35 + 0.65 * waves))[:, None] * base[number - _SPHERE]
        light[here] = colour
    return light


def _tiles(x: _Array, y: _Array, wide_x: _Array, wide_y: _Array) -> _Array:
    """Return a chessboard of unit squares, 0 and 1, averaged over a box.

    The mean of a square wave over a box is a difference of its integral, a triangle wave.
    """

    def wave(at: _Array, wide: _Array) -> _Array:
        end = (at + wide / 2) * 0.5
        start = (at - wide / 2) * 0.5
        return (
            2 * (np.abs(start - np.floor(start) - 0.5) - np.abs(end - np.floor(end) - 0.5)) / wide
        )

    return 0.5 - 0.5 * wave(x, wide_x) * wave(y, wide_y)
