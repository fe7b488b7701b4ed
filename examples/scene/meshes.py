"""The scene's geometry, made with numpy: every function returns triangles ready for a buffer.

A mesh is float32, (3 * triangles, 10): position (3), normal (3), colour (3; linear light, 0..1) and
ambient light (1; 0 in a corner, 1 under the open sky).
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Mesh = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Colour = tuple[float, float, float]

STONE, GRASS, SAND = (0.27, 0.23, 0.21), (0.16, 0.27, 0.05), (0.62, 0.47, 0.27)
WHITE, RED, SLATE = (0.90, 0.86, 0.78), (0.62, 0.07, 0.05), (0.07, 0.09, 0.13)
ROOF, WOOD, LEAVES = (0.55, 0.14, 0.06), (0.23, 0.11, 0.05), (0.04, 0.15, 0.06)
LAMP, GLASS = (2.6, 2.0, 0.9), (0.05, 0.08, 0.10)


def triangles(
    points: Points,
    colours: npt.ArrayLike,
    ambient: npt.ArrayLike = 1.0,
    normals: Points | None = None,
) -> Mesh:
    """Return the mesh of corners (N, 3), three a triangle; facets are flat without normals."""
    mesh = np.empty((len(points), 10), np.float32)
    if normals is None:
        a, b, c = points[0::3], points[1::3], points[2::3]
        facets = np.cross(b - a, c - a)
        length = np.linalg.norm(facets, axis=1, keepdims=True)
        normals = np.repeat(facets / np.maximum(length, 1e-9), 3, axis=0)
    mesh[:, :3], mesh[:, 3:6], mesh[:, 6:9], mesh[:, 9] = points, normals, colours, ambient
    return mesh


def lathe(
    profile: list[tuple[float, float, Colour]], segments: int, ambient: tuple[float, float]
) -> Mesh:
    """Turn a profile of (radius, height, colour of the ring above) about the y axis.

    ``ambient`` goes from its first value at the lowest height to its second at the highest.
    """
    angles = np.linspace(0, 2 * np.pi, segments + 1)
    ring = np.stack([np.cos(angles), np.zeros(segments + 1), np.sin(angles)], axis=1)
    low, high = profile[0][1], profile[-1][1]
    parts = []
    for (r0, y0, colour), (r1, y1, _) in pairwise(profile):
        lower, upper = ring * [r0, 1, r0] + [0, y0, 0], ring * [r1, 1, r1] + [0, y1, 0]
        corners = np.stack(
            [lower[:-1], upper[1:], lower[1:], lower[:-1], upper[:-1], upper[1:]], axis=1
        ).reshape(-1, 3)
        slope = np.array([y1 - y0, r0 - r1])
        slope /= np.linalg.norm(slope)
        outward = ring * [slope[0], 0, slope[0]] + [0, slope[1], 0]
        normals = np.stack(
            [outward[:-1], outward[1:], outward[1:], outward[:-1], outward[:-1], outward[1:]],
            axis=1,
        ).reshape(-1, 3)
        height = (corners[:, 1] - low) / max(high - low, 1e-9)
        light = ambient[0] + (ambient[1] - ambient[0]) * height
        parts.append(triangles(corners, colour, light, normals))
    return np.concatenate(parts)


def box(size: Colour, colour: Colour, ambient: tuple[float, float] = (0.7, 1.0)) -> Mesh:
    """Return a box of (x, y, z) metres that stands on the ground about the origin."""
    x, y, z = size[0] / 2, size[1], size[2] / 2
    c = np.array([(i * x, j * y, k * z) for i in (-1, 1) for j in (0, 1) for k in (-1, 1)])
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    corners = np.array([c[q[i]] for q in faces for i in (0, 1, 2, 0, 2, 3)])
    return triangles(corners, colour, np.where(corners[:, 1] > 0, ambient[1], ambient[0]))


def moved(mesh: Mesh, x: float, y: float, z: float, *, turn: float = 0.0, size: float = 1) -> Mesh:
    """Return the mesh enlarged, turned about y by radians, and moved."""
    c, s = np.cos(turn), np.sin(turn)
    matrix = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    result = mesh.copy()
    result[:, :3] = mesh[:, :3] * size @ matrix.T + [x, y, z]
    result[:, 3:6] = mesh[:, 3:6] @ matrix.T
    return result


# ------------------------------------------------------------------------------------------ noise


def noise(x: Points, y: Points, seed: int, period: int = 64) -> Points:
    """Return smooth noise in 0..1 that repeats after ``period``."""
    lattice = np.random.default_rng(seed).random((period, period))
    left, low = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = x - left, y - low
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    x0, x1, y0, y1 = left % period, (left + 1) % period, low % period, (low + 1) % period
    near = lattice[y0, x0] * (1 - u) + lattice[y0, x1] * u
    far = lattice[y1, x0] * (1 - u) + lattice[y1, x1] * u
    result: Points = near * (1 - v) + far * v
    return result


def fractal(x: Points, y: Points, octaves: int, seed: int, period: int = 64) -> Points:
    """Return noise summed over octaves, each half as strong, in 0..1."""
    total = sum(
        noise(x * 2**k, y * 2**k, seed + k, period * 2**k) / 2 ** (k + 1) for k in range(octaves)
    )
    return np.asarray(total / (1 - 0.5**octaves))


# ------------------------------------------------------------------------------------------ things


def ground_height(x: Points, z: Points) -> Points:
    """Return the island's height above the sea; negative under water."""
    reach = np.hypot(x / 1.35, z) + 1.3 * (noise(x * 0.55 + 20, z * 0.55 + 20, 5) - 0.5)
    land = 1 - reach / 5.2
    hill = np.clip(1 - np.hypot(x + 1.8, z + 0.6) / 4.0, 0, 1)
    cliffs = np.clip(land * 5, -1.5, 1) * 0.95
    rough = fractal(x * 0.7 + 9, z * 0.7 + 9, 3, 11) - 0.5
    height: Points = cliffs + 2.2 * hill * hill * (3 - 2 * hill) + 1.5 * rough * (land > 0)
    # The keeper built his house, and the tower, on level ground.
    for px, pz, level, radius in ((-1.8, -0.6, 2.75, 1.5), (2.4, 0.3, 1.2, 1.9)):
        near = np.clip(1.6 - np.hypot(x - px, z - pz) / radius, 0, 1)
        height = height * (1 - near) + level * near
    return height


def island() -> Mesh:
    side = np.linspace(-7.6, 7.6, 36)
    x, z = np.meshgrid(side, side * 0.8)
    # Corners off their grid make rocks of what would be stairs.
    jitter = np.random.default_rng(3).uniform(-0.11, 0.11, (2, *x.shape))
    x, z = x + jitter[0], z + jitter[1]
    y = ground_height(x, z)
    points = np.stack([x, y, z], axis=-1)
    corners = _quads(points.transpose(1, 0, 2)).reshape(-1, 3, 3)
    corners = corners[corners[:, :, 1].max(axis=1) > -0.25]
    middle = corners.mean(axis=1)
    facets = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat = facets[:, 1] / np.linalg.norm(facets, axis=1)
    shade = 0.75 + 0.5 * np.random.default_rng(4).random((len(middle), 1))
    grass = ((flat > 0.74) & (middle[:, 1] > 0.75))[:, None]
    sand = ((flat > 0.72) & (middle[:, 1] <= 0.75))[:, None]
    colours = np.where(grass, GRASS, np.where(sand, SAND, STONE)) * shade
    # A corner below its surroundings sees less of the sky.
    around = sum(ground_height(corners[..., 0] + u, corners[..., 2] + v) for u, v in _RING) / 8
    ambient = np.clip(1 - 0.75 * np.maximum(around - corners[..., 1], 0), 0.25, 1)
    flat_points = corners.reshape(-1, 3)
    return triangles(flat_points, np.repeat(colours, 3, axis=0), ambient.reshape(-1))


_RING = [(0.8 * np.cos(a), 0.8 * np.sin(a)) for a in np.arange(8) * np.pi / 4]


def lighthouse() -> Mesh:
    """The tower, 6 m high, with its lamp."""
    bands = [(0.95 - 0.07 * k, 0.75 * k, RED if k % 2 else WHITE) for k in range(7)]
    gallery: list[tuple[float, float, Colour]] = [
        (0.46, 4.9, SLATE), (0.74, 4.95, SLATE), (0.74, 5.1, SLATE), (0.36, 5.1, LAMP),
        (0.36, 5.65, ROOF), (0.52, 5.65, ROOF), (0.06, 6.2, SLATE), (0.04, 6.6, SLATE),
        (0.0, 6.6, SLATE),
    ]  # fmt: skip
    tower = lathe([*bands, *gallery], 16, (0.75, 1.0))
    windows = [
        moved(box((0.24, 0.42, 0.2), GLASS), 0.80 * np.sin(a), h, 0.80 * np.cos(a), turn=a)
        for a, h in ((0.7, 1.0), (0.7, 3.2), (2.3, 2.0), (-0.6, 2.2))
    ]
    return moved(np.concatenate([tower, *windows]), -1.8, 2.65, -0.6)


def house() -> Mesh:
    walls = box((2.3, 1.05, 1.4), WHITE)
    ridge, eaves = 1.85, 1.0
    x, z = 1.28, 0.86
    a, b, c, d = [(i, eaves, k) for i, k in ((-x, -z), (x, -z), (x, z), (-x, z))]
    e, f = (-x, ridge, 0.0), (x, ridge, 0.0)
    roof = triangles(np.array([a, e, f, a, f, b, c, f, e, c, e, d], float), ROOF)
    gables = triangles(np.array([a, d, e, b, f, c], float), WHITE)
    parts = [walls, roof, gables, moved(box((0.3, 0.7, 0.3), STONE), 0.7, 1.45, 0.1)]
    parts += [moved(box((0.32, 0.42, 0.1), GLASS), u, 0.4, 0.68) for u in (-0.75, 0.75)]
    parts += [moved(box((0.36, 0.75, 0.1), WOOD), 0, 0, 0.68)]
    return moved(np.concatenate(parts), 2.3, 1.15, 0.3, turn=0.35)


def trees() -> Mesh:
    tree = [moved(lathe([(0.1, 0, WOOD), (0.08, 0.5, WOOD)], 5, (0.6, 0.8)), 0, 0, 0)]
    for k in range(3):
        cone = [(0.62 - 0.16 * k, 0.4 + 0.45 * k, LEAVES), (0.0, 1.25 + 0.45 * k, LEAVES)]
        tree.append(lathe(cone, 8, (0.45, 1.0)))
    whole = np.concatenate(tree)
    where = np.array(
        [(0.3, -1.9), (1.1, -2.3), (3.8, -1.6), (-0.2, 2.2), (4.6, -0.6), (-3.9, 1.0), (0.6, -2.9)]
    )
    heights = ground_height(where[:, 0], where[:, 1]) - 0.1
    return np.concatenate(
        [
            moved(whole, x, y, z, turn=x, size=0.8 + 0.12 * (k % 4))
            for k, ((x, z), y) in enumerate(zip(where, heights, strict=True))
        ]
    )


def jetty() -> Mesh:
    posts = [moved(box((0.12, 1.3, 0.12), WOOD), x, -0.9, z) for x in (0, 1, 2) for z in (0, 0.7)]
    planks = [moved(box((0.34, 0.06, 0.95), WOOD), 0.37 * k - 0.4, 0.36, 0.35) for k in range(8)]
    return moved(np.concatenate([*posts, *planks]), 3.4, 0, 3.9, turn=-1.2)


def static() -> Mesh:
    """Everything that stands still, on land."""
    return np.concatenate([island(), lighthouse(), house(), trees(), jetty()])


def boat() -> Mesh:
    """A sailing boat that goes along x."""
    keel, rim = 0.0, 0.42
    stern, bow = -0.9, 1.25
    outline = [(stern, -0.36), (0.2, -0.46), (bow, 0.0), (0.2, 0.46), (stern, 0.36)]
    hull = []
    for (x0, z0), (x1, z1) in zip(outline, [*outline[1:], outline[0]], strict=True):
        low0, low1 = (x0 * 0.8, keel, z0 * 0.5), (x1 * 0.8, keel, z1 * 0.5)
        top0, top1 = (x0, rim, z0), (x1, rim, z1)
        hull += [low0, top1, top0, low0, low1, top1, top0, top1, (0.0, rim - 0.08, 0.0)]
    sails = [(0.18, 0.55, 0), (0.18, 3.0, 0), (-0.95, 0.6, 0.22)]
    sails += [(0.28, 0.6, 0), (1.15, 0.5, -0.12), (0.28, 2.5, 0)]
    # Each sail has two sides, a little apart lest they fight for the same depth.
    both = [(x, y, z + 0.02) for x, y, z in sails]
    both += [(x, y, z - 0.02) for x, y, z in (sails[i] for i in (0, 2, 1, 3, 5, 4))]
    mast = lathe([(0.04, 0.3, WOOD), (0.03, 3.1, WOOD)], 5, (1, 1))
    cloth = triangles(np.array(both, float), (0.95, 0.80, 0.52))
    return np.concatenate(
        [triangles(np.array(hull, float), (0.10, 0.16, 0.33)), moved(mast, 0.23, 0, 0), cloth]
    )


def wing() -> Mesh:
    """Half a gull: the wing along z of a bird that flies along x."""
    body = [(0.28, 0, 0), (-0.3, 0, 0), (0.0, 0, 0.09)]
    arm = [(0.12, 0, 0.06), (-0.12, 0, 0.06), (0.02, 0.06, 0.42)]
    hand = [(0.07, 0.045, 0.32), (-0.05, 0.045, 0.32), (-0.12, 0.0, 0.85)]
    one = np.array([*body, *arm, *hand], float)
    up = np.tile([0.0, 1.0, 0.0], (9, 1))
    return triangles(one, (0.92, 0.92, 0.95), 1.0, up)


def sea() -> Mesh:
    """The water around the island, finer near the shore; ``ambient`` is its depth, 0..1."""
    shore, open_sea = np.linspace(3.6, 7.6, 11), 7.6 * 30 ** np.linspace(0, 1, 8)[1:]
    radius, angle = np.meshgrid(np.concatenate([shore, open_sea]), np.linspace(0, 2 * np.pi, 45))
    # Rings follow the island's outline, and become circles further out.
    x, z = radius * np.sin(angle) * (1 + 0.35 * np.minimum(7.6 / radius, 1)), radius * np.cos(angle)
    depth = np.clip(-ground_height(x, z) / 1.4, 0, 1)
    corners = _quads(np.stack([x, np.zeros_like(x), z, depth], axis=-1))
    up = np.tile([0.0, 1.0, 0.0], (len(corners), 1))
    return triangles(corners[:, :3], (0.0, 0.0, 0.0), corners[:, 3], up)


def _quads(grid: Points) -> Points:
    """Cut a grid of points (rows, columns, K) into triangles: (6 * quads, K)."""
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    return np.stack([a, b, c, a, c, d], axis=2).reshape(-1, grid.shape[-1])


# -------------------------------------------------------------------------------------------- sky

SKY_TOP = 0.72
"""Height of the panorama's last row, as the sine of its elevation; its first row is at -0.06."""


def sky_dome() -> Mesh:
    """Directions (3) and their place in the panorama (2), both of the whole sky; float32 (N, 5)."""
    up, turn = np.meshgrid(np.linspace(-0.06, 1, 9), np.linspace(0, 2 * np.pi, 37))
    level = np.sqrt(1 - up**2)
    place = turn / (2 * np.pi), (up + 0.06) / (SKY_TOP + 0.06)
    dome = np.stack([level * np.sin(turn), up, level * np.cos(turn), *place], axis=-1)
    return _quads(dome).astype(np.float32)


def sky_panorama(
    sun: npt.NDArray[np.float64], width: int = 1024, height: int = 256
) -> npt.NDArray[np.uint8]:
    """Paint the sky, encoded for the display: (height, width, 4) uint8, its first row the lowest.

    Its left and right edges meet.
    """
    turn, up = np.meshgrid(np.arange(width) / width, np.linspace(-0.06, SKY_TOP, height))
    level = np.sqrt(1 - up**2)
    towards = np.stack([level * np.sin(2 * np.pi * turn), up, level * np.cos(2 * np.pi * turn)], -1)
    glow = np.maximum(towards @ sun, 0)[..., None]
    climb = 1 - np.exp2(-8.5 * np.maximum(up, 0))[..., None]
    light = np.array([0.86, 0.62, 0.42]) * (1 - climb) + np.array([0.03, 0.15, 0.50]) * climb
    light = light + np.array([0.7, 0.38, 0.12]) * glow**4
    # Clouds lie in a layer: they flatten towards the horizon.
    far = 1 / (np.maximum(up, 0) + 0.16)
    thick = fractal(turn * 14, far * 1.7, 5, 21, period=14)[..., None]
    edge = fractal(turn * 14 + 0.35 * glow[..., 0], far * 1.7 - 0.3, 5, 21, period=14)[..., None]
    cover = np.clip((thick - 0.47) * 4.5, 0, 1) * np.clip(up * 14 - 0.2, 0, 1)[..., None]
    bright = np.clip(0.62 + 2.2 * (thick - edge) + 0.5 * glow**2, 0, 1.3)
    cloud = np.array([0.42, 0.40, 0.52]) + bright * np.array([0.80, 0.56, 0.34])
    light = light + (cloud - light) * cover * 0.9
    painted = np.full((height, width, 4), 255, np.uint8)
    painted[..., :3] = np.clip(np.sqrt(light / (0.65 + 0.45 * light)) * 255 + 0.5, 0, 255)
    return painted
