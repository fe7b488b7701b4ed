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

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._textures import noise_frame
from topcoat.runtime.bundle import Profile
from topcoat.runtime.frames import Frame

Group: TypeAlias = Literal["photographs", "sizes", "tiny", "synthetic", "flat", "noise", "tiling"]

LONGEST_SIDE = 1024
"""A user's larger photographs are reduced to this, or to what a network enlarges to this: the
reference runs on a processor, in float32."""
MOST_PHOTOGRAPHS = 16
"""Of a larger folder, this many are taken, evenly spaced through the sorted names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeFrame:
    """One frame, or one batch of frames, to compare on."""

    name: str
    group: Group
    frame: Frame


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
            name=f"{shape_words(frame)}, seed{'s' * (len(seeds) > 1)} {names}",
            group=group,
            frame=frame,
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


def size_probes(photographs: Sequence[ProbeFrame], least: int, scale: int) -> list[ProbeFrame]:
    """Cut photographs to awkward sizes: cut, not scaled, so that they keep their sharpness.

    Args:
        photographs: at least one, (H, W, 3) each; a smaller one is continued by its mirror image.
        least: the smallest side that the network itself takes.
        scale: output pixels per input pixel, along each axis; from 4 on, pieces are smaller.

    Returns:
        Frames and batches of the groups ``sizes`` and ``tiny``.
    """

    def cut(index: int, height: int, width: int) -> Frame:
        return cut_frame(photographs[index % len(photographs)].frame, height, width)

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
        ProbeFrame(name=shape_words(frame), group=group, frame=frame)
        for group, frames in groups
        for frame in frames
    ]


def synthetic_probes(least: int, scale: int) -> list[ProbeFrame]:
    """Draw :func:`synthetic_frames` at two odd sizes and at the smallest, and as a batch."""
    found = []
    sizes = [tuple(_reduced(side, scale) for side in size) for size in ((128, 192), (67, 89))]
    for height, width in (*sizes, (least, least)):
        kinds = synthetic_frames(height, width)
        found += [
            ProbeFrame(name=f"{kind} {shape_words(frame)}", group="synthetic", frame=frame)
            for kind, frame in kinds.items()
        ]
    side = _reduced(64, scale)
    batch = np.stack(list(synthetic_frames(side, side).values()))
    found.append(ProbeFrame(name=f"all {shape_words(batch)}", group="synthetic", frame=batch))
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


def flat_probes(scale: int) -> list[ProbeFrame]:
    """Many colours in small frames; and a few in larger ones, which engines may cut up in blocks.

    Each colour has a frame of its own, so that no border between two of them needs to be left out.
    """
    found = []
    for colours, side in ((flat_colours(), 24), (flat_colours()[5::32], 96)):
        side = max(1, side // scale)
        frame = colours[:, None, None].repeat(side, axis=1).repeat(side, axis=2)
        found.append(ProbeFrame(name=f"flat {shape_words(frame)}", group="flat", frame=frame))
    return found


def picture_probes(name: str, picture: Frame) -> list[ProbeFrame]:
    """Make photographs of one: mirrored and turned, it is another frame to a network.

    Args:
        name: what the picture is called.
        picture: (H, W, 3).
    """
    turned = {
        "mirrored": picture[:, ::-1],
        "upside down": picture[::-1],
        "on its side": picture.swapaxes(0, 1),
    }
    return [
        ProbeFrame(name=f"{name} {how}", group="photographs", frame=np.ascontiguousarray(frame))
        for how, frame in turned.items()
    ]


def profile_probes(
    profiles: Iterable[Profile],
    photographs: Sequence[ProbeFrame],
    possible: Callable[[int, int], bool],
) -> list[ProbeFrame]:
    """Make frames of the sizes that a built engine was made for.

    Args:
        profiles: of the engine.
        photographs: at least one, (H, W, 3); none for a network that makes textures.
        possible: says whether the network takes frames of this height and width, and the reference
            can be had for them.

    Returns:
        Of every profile's best, smallest and largest size that is possible: photographs, of the
        best size also synthetic frames, but for the checker: over millions of equal pixels a
        normalisation divides by a variance that is rounding alone, in honest engines too.
        For textures noise.
    """
    sizes: dict[tuple[int, int], bool] = {}
    for profile in profiles:
        for size in (profile.opt, profile.min, profile.max):
            sizes[size] = sizes.get(size, False) or size == profile.opt
    found = []
    for index, ((height, width), best) in enumerate(sizes.items()):
        if not possible(height, width):
            continue
        words = f"{height}x{width}"
        if not photographs:
            frame = noise_frame(height, width, index)
            found.append(ProbeFrame(name=f"{words}, seed {index}", group="noise", frame=frame))
            continue
        for probe in photographs[: 2 if best else 1]:
            frame = cut_frame(probe.frame, height, width)
            found.append(ProbeFrame(name=f"{probe.name} {words}", group="photographs", frame=frame))
        if best:
            found += [
                ProbeFrame(name=f"{kind} {words}", group="synthetic", frame=frame)
                for kind, frame in synthetic_frames(height, width).items()
                if kind != "checker"
            ]
    return found


def cut_frame(whole: Frame, height: int, width: int) -> Frame:
    """Cut the middle out of a frame; a smaller one is continued by its mirror image.

    Args:
        whole: (H, W, 3).
        height: of the piece, at least 1.
        width: likewise.

    Returns:
        (height, width, 3), C-contiguous.
    """
    missing = [max(0, side - has) for side, has in zip((height, width), whole.shape, strict=False)]
    if any(missing):
        around = [(short // 2, short - short // 2) for short in missing]
        whole = np.pad(whole, [*around, (0, 0)], mode="symmetric")
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


def shape_words(frame: Frame) -> str:
    """Say the size of a frame or batch, height first.

    >>> shape_words(np.zeros((2, 5, 9, 3), np.uint8))
    '5x9, batch 2'
    """
    *batch, height, width, _ = frame.shape
    return f"{height}x{width}" + (f", batch {batch[0]}" if batch else "")


def _reduced(side: int, scale: int) -> int:
    """A probe's side: from x4 on, the output is about as large as it is at x2."""
    return math.ceil(side / max(1, scale // 2))
