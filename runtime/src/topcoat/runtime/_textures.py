"""Textures: noise in, a picture out that continues itself on every side.

What the task ``texture`` changes: frames are noise, which a seed says, and sizes are taken as they
are. Padding or cropping would cut through the seam, so a size that does not fit is refused.
"""

from __future__ import annotations

import math
import operator

import numpy as np

from topcoat.runtime._errors import FrameError, FrameMemoryError, TextureError
from topcoat.runtime.bundle import TEXTURE, Manifest, SizeRule
from topcoat.runtime.frames import Frame

SIDE = 512
"""Of a texture when nobody says a size: about this, as the size rule allows."""


def noise_frame(height: int, width: int, seed: int = 0) -> Frame:
    """Return the noise that a texture of this seed is made from.

    Uniform over 0..255, ``numpy.random.default_rng(seed).integers(0, 256, (height, width, 3),
    dtype=numpy.uint8)``, as docs/bundle.md says: the same on every system. Another width is another
    noise, not more of the same.

    Args:
        height: at least 1.
        width: at least 1.
        seed: a whole number of at least 0.

    Returns:
        (height, width, 3) uint8.

    Raises:
        FrameError: a side is no whole number of at least 1.
        FrameMemoryError: there is not enough memory for it.
        TextureError: the seed is no whole number of at least 0.

    >>> noise_frame(1, 2, seed=0).tolist()
    [[[95, 130, 194], [217, 207, 235]]]
    """
    shape = (*_whole(height, width), 3)
    random = np.random.default_rng(_seed(seed))
    try:
        return random.integers(0, 256, shape, dtype=np.uint8)
    # A shape beyond what an address can reach is a ValueError.
    except (MemoryError, ValueError) as error:
        raise FrameMemoryError(
            f"noise of {width}x{height} pixels would take {math.prod(shape) / 1e9:.1f} GB, more"
            " memory than this process can get; make a smaller texture and repeat it"
        ) from error


def check_texture_size(height: int, width: int, rule: SizeRule) -> None:
    """Refuse a size that a texture cannot have.

    Raises:
        FrameError: a side is no whole number, no multiple of the rule's, too small or too large;
            the text names the nearest size that works.
    """
    nearest = nearest_texture_size(*_whole(height, width), rule)
    if nearest == (height, width):
        return
    wanted = f"multiples of {rule.multiple}, at least {rule.min}"
    wanted += f" and at most {rule.max}" if rule.max is not None else ""
    raise FrameError(
        f"a texture cannot have {width}x{height} pixels: width and height must be {wanted}, for"
        f" padding would break its seam; the nearest size is {nearest[1]}x{nearest[0]}"
    )


def nearest_texture_size(height: int, width: int, rule: SizeRule) -> tuple[int, int]:
    """Return the height and width nearest to these that a texture can have.

    >>> nearest_texture_size(250, 7, SizeRule(multiple=16, min=32, max=None, pad="edge"))
    (256, 32)
    """

    def nearest(side: int) -> int:
        fitted = max(rule.min, (side + rule.multiple // 2) // rule.multiple * rule.multiple)
        if rule.max is not None:
            fitted = min(fitted, rule.max // rule.multiple * rule.multiple)
        return fitted

    return nearest(height), nearest(width)


def check_is_texture(manifest: Manifest) -> None:
    """Refuse a bundle that takes frames and not noise.

    Raises:
        TextureError: it is for another task.
    """
    if manifest.task != TEXTURE:
        raise TextureError(
            f"{manifest.name} is for the task {manifest.task} and makes no textures; give it frames"
            " with process(), or a picture with `topcoat run`"
        )


def check_is_no_texture(manifest: Manifest, what: str) -> None:
    """Refuse a bundle that takes noise.

    Args:
        manifest: of the bundle.
        what: what is meant for bundles that take pictures, as an error begins.

    Raises:
        TextureError: it is a texture.
    """
    if manifest.task == TEXTURE:
        raise TextureError(
            f"{what}, but {manifest.name} is a texture, which is made from noise; make one with"
            f" `topcoat texture {manifest.folder.name} OUT.png` or model.sample()"
        )


def _whole(height: int, width: int) -> tuple[int, int]:
    try:
        sides = operator.index(height), operator.index(width)
    except TypeError:
        sides = (0, 0)
    if min(sides) < 1:
        raise FrameError(
            f"height is {height!r} and width {width!r}, wanted whole numbers of at least 1"
        )
    return sides


def _seed(seed: int) -> int:
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # numpy's integers, too
    except TypeError:
        number = -1
    if number < 0:
        raise TextureError(f"seed is {seed!r}, wanted a whole number of at least 0")
    return number
