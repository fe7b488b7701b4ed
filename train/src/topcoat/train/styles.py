"""Built-in style pictures, drawn by this module: no file, the same pixels every time."""

import colorsys
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from topcoat.train._errors import RecipeError

SIZE = 512
_OVERSAMPLE = 2
"""Drawn at twice the size and averaged down, so that edges are smooth."""

_Array = NDArray[np.float64]


def draw_style(name: str) -> Image.Image:
    """Draw a built-in style, 512×512 RGB.

    Raises:
        RecipeError: no style of that name; the message lists them.
    """
    if name not in STYLES:
        raise RecipeError(f"no built-in style {name!r}; choose among {', '.join(STYLES)}")
    draw, _ = STYLES[name]
    return draw().resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _noise(rng: np.random.Generator, sigma: float, side: int) -> _Array:
    """Smooth noise of (side, side), mean 0, scaled to about [-1, 1]; wraps around."""
    field = gaussian_filter(rng.standard_normal((side, side)), sigma, mode="wrap")
    return np.asarray(field / (np.abs(field).max() + 1e-12))


def _ramp(colours: list[tuple[int, int, int]], where: _Array) -> _Array:
    """Interpolate along a list of colours; ``where`` in [0, 1] -> (…, 3) in 0-255."""
    table = np.asarray(colours, dtype=np.float64)
    at = np.linspace(0, 1, len(table))
    return np.stack([np.interp(where, at, table[:, i]) for i in range(3)], axis=-1)


def _image(pixels: _Array) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), "RGB")


def _mosaic() -> Image.Image:
    """Glazed tiles with dark grout, warm fading into turquoise along a wave."""
    rng = np.random.default_rng(11)
    side, pitch = SIZE * _OVERSAMPLE, 44
    count = side // pitch + 2
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2) * pitch
    points = grid + rng.uniform(-0.34, 0.34, grid.shape) * pitch
    ys, xs = np.mgrid[0:side, 0:side]
    found = cKDTree(points).query(np.stack([xs, ys], -1).reshape(-1, 2), k=2)
    distance, nearest = np.asarray(found[0]), np.asarray(found[1])
    tile = nearest[:, 0].reshape(side, side)
    border = (distance[:, 1] - distance[:, 0]).reshape(side, side)
    tone = 0.5 + 0.5 * np.sin(points[:, 0] / 170 + 1.3 * np.sin(points[:, 1] / 210))
    palette = _ramp(
        [(196, 62, 34), (233, 152, 46), (246, 222, 150), (64, 160, 152), (22, 78, 120)],
        np.clip(tone + rng.normal(0, 0.10, len(points)), 0, 1),
    )
    palette *= rng.uniform(0.82, 1.12, (len(points), 1))
    # Each tile is a little domed: lit from the upper left, darker towards its rim.
    offset = (xs - points[tile, 0] + ys - points[tile, 1]) / pitch
    shade = 1 - 0.16 * offset - 0.18 * np.exp(-border / 7)
    pixels = palette[tile] * shade[..., None]
    grout = 1 / (1 + np.exp((border - 5) * 1.2))
    return _image(pixels * (1 - grout[..., None]) + np.array([34, 30, 32]) * grout[..., None])


def _swirls() -> Image.Image:
    """Short curved brush strokes that follow the streamlines of a few vortices."""
    rng = np.random.default_rng(5)
    side = SIZE * _OVERSAMPLE
    image = Image.new("RGB", (side, side), (20, 36, 88))
    draw = ImageDraw.Draw(image)
    centres = rng.uniform(0.1, 0.9, (7, 2)) * side
    spins = rng.choice([-1.0, 1.0], 7) * rng.uniform(0.7, 1.3, 7)
    reach = rng.uniform(0.12, 0.24, 7) * side
    tone = _noise(rng, 60, side)
    for _ in range(9000):
        x, y = rng.uniform(-20, side + 20, 2)
        points = []
        for _ in range(int(rng.integers(9, 18))):
            points.append((x, y))
            dx, dy = x - centres[:, 0], y - centres[:, 1]
            weight = spins * np.exp(-(dx**2 + dy**2) / (2 * reach**2))
            flow = np.array([(-dy * weight).sum() + 24, (dx * weight).sum() + 9 * math.sin(x / 90)])
            x, y = np.array([x, y]) + 5.0 * flow / (np.linalg.norm(flow) + 1e-9)
        px, py = (int(np.clip(value, 0, side - 1)) for value in points[0])
        glow = np.exp(
            -((px - centres[:, 0]) ** 2 + (py - centres[:, 1]) ** 2) / (0.5 * reach**2)
        ).max()
        light = np.clip(0.38 + 0.25 * tone[py, px] + 0.55 * glow + rng.normal(0, 0.10), 0, 1)
        colour = _ramp(
            [(14, 24, 66), (32, 74, 150), (92, 150, 196), (196, 206, 150), (248, 214, 92)],
            np.asarray(light),
        )
        draw.line(
            points,
            fill=tuple(int(c) for c in colour),
            width=int(rng.integers(5, 11)),
            joint="curve",
        )
    return image


def _hatching() -> Image.Image:
    """Pen and ink: layers of hatching, one more direction for each darker tone."""
    rng = np.random.default_rng(23)
    side = SIZE * _OVERSAMPLE
    tone = 0.5 + 0.5 * _noise(rng, 52, side)
    paper = np.array([242, 234, 214]) + 5 * _noise(rng, 3, side)[..., None]
    image = _image(paper)
    draw = ImageDraw.Draw(image)
    for threshold, angle, spacing in (
        (0.72, 38, 13),
        (0.55, -48, 13),
        (0.42, 4, 12),
        (0.30, 82, 11),
    ):
        direction = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
        normal = np.array([-direction[1], direction[0]])
        for shift in np.arange(-side, side, spacing):
            start = np.array([side / 2, side / 2]) + normal * (shift + rng.normal(0, 1.2))
            wobble = rng.normal(0, 0.9, 2 * side // 12 + 2).cumsum() * 0.35
            run: list[tuple[float, float]] = []
            for index, along in enumerate(np.arange(-side, side, 12)):
                x, y = start + direction * along + normal * wobble[index]
                inside = 0 <= x < side and 0 <= y < side
                if inside and tone[int(y), int(x)] < threshold + rng.normal(0, 0.035):
                    run.append((x, y))
                    continue
                if len(run) > 1:
                    ink = int(rng.integers(22, 58))
                    draw.line(run, fill=(ink, ink, ink + 14), width=int(rng.integers(2, 5)))
                run = []
            if len(run) > 1:
                draw.line(run, fill=(34, 34, 48), width=3)
    return image


def _dots() -> Image.Image:
    """Pointillism: pure colours side by side, their mixture drifting across the sheet."""
    rng = np.random.default_rng(31)
    side = SIZE * _OVERSAMPLE
    image = Image.new("RGB", (side, side), (250, 244, 228))
    draw = ImageDraw.Draw(image)
    hue, light = _noise(rng, 75, side), _noise(rng, 55, side)
    pitch = 15
    spots = [
        (x, y) for y in range(0, side + pitch, pitch) for x in range(0, side + pitch, pitch)
    ] * 2
    for number in rng.permutation(len(spots)):
        x, y = np.array(spots[number]) + rng.normal(0, 4, 2)
        px, py = int(np.clip(x, 0, side - 1)), int(np.clip(y, 0, side - 1))
        # From ochre through rose to ultramarine, past the greens that would drown the rest.
        base = 0.12 - 0.54 * np.clip(0.5 + 0.7 * hue[py, px], 0, 1)
        # One dot in five is of the complementary hue: what makes the surface shimmer.
        turn = 0.5 if rng.random() < 0.2 else 0.0
        shade = np.clip(0.58 + 0.34 * light[py, px] + rng.normal(0, 0.07), 0.25, 0.9)
        rgb = colorsys.hls_to_rgb((base + turn + rng.normal(0, 0.02)) % 1, shade * 0.85, 0.62)
        radius = rng.uniform(5.0, 8.5)
        fill = tuple(int(255 * channel) for channel in rgb)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    return image


def _poster() -> Image.Image:
    """Screen print: a few flat inks in overlapping shapes with hard edges."""
    rng = np.random.default_rng(47)
    side = SIZE * _OVERSAMPLE
    inks = np.array(
        [(240, 226, 196), (222, 72, 48), (26, 62, 92), (240, 172, 52), (70, 148, 136), (28, 26, 32)]
    )
    ys, xs = np.mgrid[0:side, 0:side] / side
    sheet = np.zeros((side, side), dtype=np.int64)
    for ink in rng.permutation(np.repeat(np.arange(len(inks)), 6)):
        cx, cy, size, turn = *rng.uniform(0, 1, 2), rng.uniform(0.05, 0.20), rng.uniform(0, math.pi)
        u = (xs - cx) * math.cos(turn) + (ys - cy) * math.sin(turn)
        v = -(xs - cx) * math.sin(turn) + (ys - cy) * math.cos(turn)
        kind = rng.integers(0, 4)
        shape = (
            u**2 + v**2 < size**2,
            np.maximum(np.abs(u) / 1.8, np.abs(v)) < size * 0.6,
            (np.abs(np.hypot(u, v) - size) < size * 0.22),
            (np.abs(v + 0.03 * np.sin(u * 40)) < size * 0.16) & (np.abs(u) < 2.2 * size),
        )[kind]
        sheet[shape] = ink
    return _image(inks[sheet].astype(np.float64))


STYLES: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "mosaic": (_mosaic, "glazed tiles with dark grout, rust to turquoise"),
    "swirls": (_swirls, "curved brush strokes around vortices, night blue and gold"),
    "hatching": (_hatching, "pen and ink, layers of hatching on cream paper"),
    "dots": (_dots, "pointillism in pure colours"),
    "poster": (_poster, "flat screen-print shapes in six inks"),
}
"""Name -> (function that draws it, one line about it)."""
