"""The frames on which an engine is compared with its network.

For a network that takes frames, five groups, because they ask five questions. ``photographs``: does
the engine look the same on what people feed it? ``sizes``: do padding, cropping and batching work
at odd sizes? ``tiny``: and at the smallest size that the network takes, and below it, where a
normalisation layer sees a handful of values? ``synthetic``: and on frames that are flat, saturated,
smooth or as rough as can be? ``flat``, only for a network that enlarges: does a frame of one colour
stay one, whatever colour?

A network that makes textures is never given anything but noise: ``noise`` are frames and batches of
several sizes, all multiples of what the network takes, ``tiny`` those of its smallest size, and
``tiling`` asks whether the engine's textures repeat without a seam.
"""

import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from topcoat.export._errors import PhotographError
from topcoat.runtime import noise_frame

Frame: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) or (N, H, W, 3), RGB."""
Group: TypeAlias = Literal["photographs", "sizes", "tiny", "synthetic", "flat", "noise", "tiling"]

BUNDLED = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
"""Photographs that lie inside scikit-image's package: no download. Three have an odd side."""
LONGEST_SIDE = 1024
"""A user's larger photographs are reduced to this, or to what a network enlarges to this: the
reference runs in PyTorch, in float32."""
MOST_PHOTOGRAPHS = 16
"""Of a larger folder, this many are taken, evenly spaced through the sorted names."""
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeFrame:
    """One frame, or one batch of frames, to compare on."""

    name: str
    group: Group
    frame: Frame


def probe_frames(
    size_min: int,
    photos: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    *,
    scale: int = 1,
) -> list[ProbeFrame]:
    """Collect the frames for one network.

    A network that enlarges is given smaller frames, so that its output is about as large as that of
    one that does not: photographs are shrunk by its scale, which is also what it was trained on.

    Args:
        size_min: the smallest side that the network itself takes; smaller frames are padded to it.
        photos: a folder of the user's photographs, compared on besides the bundled ones.
        progress: is told of every photograph that cannot be read and is skipped.
        scale: output pixels per input pixel, along each axis.

    Raises:
        PhotographError: ``photos`` is not a folder with at least one readable photograph, or
            scikit-image carries none.
    """
    longest = LONGEST_SIDE // scale
    own = user_photographs(photos, progress, longest=longest) if photos is not None else []
    bundled = bundled_photographs()
    small = [replace(probe, frame=_shrunk(probe.frame, scale)) for probe in bundled]
    made = [*_sizes(bundled, size_min, scale), *_synthetic(size_min, scale)]
    return [*small, *own, *made, *(_flat(scale) if scale > 1 else ())]


def noise_probes(multiple: int, least: int) -> list[ProbeFrame]:
    """Collect the frames for one network that makes textures.

    Args:
        multiple: the sides of its noise must be multiples of this.
        least: ... and at least this; a multiple of ``multiple``.
    """

    def up(side: int) -> int:
        return max(least, multiple * math.ceil(side / multiple))

    def probe(group: Group, height: int, width: int, *seeds: int) -> ProbeFrame:
        frames = [noise_frame(height, width, seed) for seed in seeds]
        frame = frames[0] if len(frames) == 1 else np.stack(frames)
        names = ", ".join(str(seed) for seed in seeds)
        return ProbeFrame(
            name=f"{_shape(frame)}, seed{'s' * (len(seeds) > 1)} {names}", group=group, frame=frame
        )

    whole = [
        probe("noise", up(height), up(width), seed)
        for seed, (height, width) in enumerate(
            ((256, 256), (256, 256), (256, 512), (512, 256), (512, 512))
        )
    ]
    unit = up(16)  # multiples of what is least are multiples of what is wanted
    sizes = [
        probe("noise", 5 * unit, 8 * unit, 5),
        probe("noise", 7 * unit, 3 * unit, 6),
        probe("noise", 4 * unit + multiple, 4 * unit, 7),
        probe("noise", 4 * unit, 6 * unit, 8, 9),
        probe("noise", 6 * unit, 4 * unit, 10, 11, 12),
    ]
    tiny = [
        probe("tiny", least, least, 13),
        probe("tiny", least, least + multiple, 14),
        probe("tiny", 4 * least, least, 15),
        probe("tiny", least, least, 16, 17),
    ]
    tiling = [
        probe("tiling", up(128), up(192), 18),
        probe("tiling", 3 * unit, 2 * unit, 19, 20),
        probe("tiling", least, least, 21),
    ]
    return [*whole, *sizes, *tiny, *tiling]


def bundled_photographs() -> list[ProbeFrame]:
    """Read the photographs that scikit-image carries.

    They are read by path: scikit-image's own functions may download what its package lacks.

    Raises:
        PhotographError: the installed scikit-image has none of them.
    """
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else None
    paths = [folder / name for name in BUNDLED if (folder / name).is_file()] if folder else []
    if not paths:
        raise PhotographError(
            f"scikit-image carries none of {', '.join(BUNDLED)}; install scikit-image>=0.22 again"
        )
    return [
        ProbeFrame(name=path.stem, group="photographs", frame=read_photograph(path))
        for path in paths
    ]


def user_photographs(
    folder: str | os.PathLike[str],
    progress: Callable[[str], None] = lambda _: None,
    *,
    longest: int = LONGEST_SIDE,
) -> list[ProbeFrame]:
    """Read a user's photographs, at most :data:`MOST_PHOTOGRAPHS`, from a folder tree.

    A file that cannot be read is skipped, and ``progress`` is told its name. Larger ones are
    reduced until no side is above ``longest`` pixels.

    Raises:
        PhotographError: no such folder, or no readable photograph in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PhotographError(f"{folder} is not a folder; give a folder of jpg, png or webp files")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if len(paths) > MOST_PHOTOGRAPHS:
        spaced = np.linspace(0, len(paths) - 1, MOST_PHOTOGRAPHS).astype(int)
        paths = [paths[i] for i in spaced]
    found = []
    for path in paths:
        try:
            frame = read_photograph(path, longest)
        except PhotographError as error:
            progress(f"skipped: {error}")
            continue
        name = path.relative_to(folder).as_posix()
        found.append(ProbeFrame(name=name, group="photographs", frame=frame))
    if not found:
        raise PhotographError(
            f"{folder} holds no readable photograph; give a folder of jpg, png or webp files"
        )
    return found


def read_photograph(path: str | os.PathLike[str], longest: int | None = None) -> Frame:
    """Read a picture as (H, W, 3) uint8 RGB, upright, reduced to ``longest`` if it is larger.

    Raises:
        PhotographError: missing, damaged, or no picture.
    """
    try:
        # Pillow warns of very large pictures and refuses enormous ones; the warning alone would
        # be noise here, where they are reduced anyway.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise PhotographError(f"no picture at {path}; give a jpg, png or webp file") from None
    except Exception as error:  # Pillow's readers raise many types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PhotographError(
            f"cannot read the picture {path} ({reason}); give a jpg, png or webp file"
        ) from None
    if longest is not None and max(picture.size) > longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.array(picture, dtype=np.uint8)


def _shrunk(frame: Frame, scale: int) -> Frame:
    if scale == 1:
        return frame
    height, width = (max(1, round(side / scale)) for side in frame.shape[:2])
    small = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(small, dtype=np.uint8)


def _reduced(side: int, scale: int) -> int:
    """A probe's side: from x4 on, the output is about as large as it is at x2."""
    return math.ceil(side / max(1, scale // 2))


def _sizes(photographs: Sequence[ProbeFrame], least: int, scale: int) -> list[ProbeFrame]:
    """Cut photographs to awkward sizes: cut, not scaled, so that they keep their sharpness."""

    def cut(index: int, height: int, width: int) -> Frame:
        whole = photographs[index % len(photographs)].frame
        top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
        return np.ascontiguousarray(whole[top : top + height, left : left + width])

    def batch(count: int, height: int, width: int) -> Frame:
        return np.stack([cut(i, height, width) for i in range(count)])

    # Sides that differ from a multiple of 4 by 1, 2 and 3, at every scale.
    single, batches = ((97, 131), (130, 98), (99, 256)), ((61, 83), (120, 160), (75, 101))
    odd = [
        *(cut(i, *(_reduced(side, scale) for side in size)) for i, size in enumerate(single)),
        *(
            batch(i, *(_reduced(side, scale) for side in size))
            for i, size in enumerate(batches, start=1)
        ),
    ]
    # A set: for a network that takes single pixels, some of these are one.
    sides = {
        (least, least),
        (least, 2 * least + 1),
        (max(least - 1, 1), least + 3),
        (max(least // 2, 1), 4 * least),
        (1, 1),
    }
    if scale > 1:  # such networks mostly take single pixels; these are smaller than any padding
        sides |= {(2, 2), (5, 9)}
    tiny = [cut(i, *sizes) for i, sizes in enumerate(sorted(sides, reverse=True))]
    groups: list[tuple[Group, list[Frame]]] = [("sizes", odd), ("tiny", tiny)]
    return [
        ProbeFrame(name=_shape(frame), group=group, frame=frame)
        for group, frames in groups
        for frame in frames
    ]


def _synthetic(least: int, scale: int) -> list[ProbeFrame]:
    found = []
    sizes = [tuple(_reduced(side, scale) for side in size) for size in ((128, 192), (67, 89))]
    for height, width in (*sizes, (least, least)):
        kinds = synthetic_frames(height, width)
        found += [
            ProbeFrame(name=f"{kind} {_shape(frame)}", group="synthetic", frame=frame)
            for kind, frame in kinds.items()
        ]
    side = _reduced(64, scale)
    batch = np.stack(list(synthetic_frames(side, side).values()))
    found.append(ProbeFrame(name=f"all {_shape(batch)}", group="synthetic", frame=batch))
    return found


def synthetic_frames(height: int, width: int) -> dict[str, Frame]:
    """Draw black, white, noise, a checker of single pixels and a gradient, (H, W, 3) each."""
    rows, columns = np.indices((height, width))
    checker = ((rows + columns) % 2 * 255).astype(np.uint8)
    across = columns * 255 // max(width - 1, 1)
    down = rows * 255 // max(height - 1, 1)
    gradient = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {
        "black": np.zeros((height, width, 3), dtype=np.uint8),
        "white": np.full((height, width, 3), 255, dtype=np.uint8),
        "noise": noise,
        "checker": np.repeat(checker[..., None], 3, axis=-1),
        "gradient": gradient,
    }


def flat_colours() -> NDArray[np.uint8]:
    """Choose 96 greys and 32 colours, no two alike, (128, 3).

    Many, because bits decide: an engine that prints a grid into one grey leaves the next one flat.
    """
    greys = np.linspace(0, 255, 96).round().astype(np.uint8)[:, None].repeat(3, axis=1)
    colours = np.random.default_rng(0).integers(0, 256, (32, 3), dtype=np.uint8)
    return np.concatenate([greys, colours])


def _flat(scale: int) -> list[ProbeFrame]:
    """Many colours in small frames; and a few in larger ones, which engines may cut up in blocks.

    Each colour has a frame of its own, so that no border between two of them needs to be left out.
    """
    found = []
    for colours, side in ((flat_colours(), 24), (flat_colours()[5::32], 96)):
        side = max(1, side // scale)
        frame = colours[:, None, None].repeat(side, axis=1).repeat(side, axis=2)
        found.append(ProbeFrame(name=f"flat {_shape(frame)}", group="flat", frame=frame))
    return found


def _shape(frame: Frame) -> str:
    *batch, height, width, _ = frame.shape
    return f"{height}x{width}" + (f", batch {batch[0]}" if batch else "")
