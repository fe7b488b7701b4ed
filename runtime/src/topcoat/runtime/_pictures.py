"""Pictures on disk to frames and back: orientation, grey, alpha, 16 bits. Needs Pillow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import MediaError
from topcoat.runtime._files import written_whole
from topcoat.runtime.frames import Frame

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_ALPHA_SUFFIXES = (".png", ".webp", ".tif", ".tiff")
_LARGEST_SIDES = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""The most pixels that a side may have; the other formats hold more than memory does."""
_ROWS = 256
"""Rows that are widened to 4 bytes together; even, so that pairs of rows stay together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A decoded picture."""

    frame: Frame
    """(H, W, 3), RGB, upright."""
    alpha: Frame | None = None
    """(H, W), or None if the picture is opaque."""
    icc_profile: bytes | None = None
    """The colour profile of an RGB picture, which stays valid for the result."""


def require_pillow() -> None:
    """Raise an error that names the extra if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MediaError(
            "pictures need Pillow, which is not installed; pip install 'topcoat-runtime[images]'"
        ) from error


def read_picture(path: Path) -> Picture:
    """Decode a picture file; the first frame of an animated one.

    Grey, palette and CMYK pictures become RGB, 16-bit ones 8-bit, EXIF orientation is applied.

    Raises:
        MediaError: there is no such file, it is empty, cut off or not a picture.
    """
    require_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.exists():
        raise MediaError(f"{path} does not exist; give a picture, a folder or a video")
    if path.is_dir():
        raise MediaError(f"{path} is a folder; give a picture file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes); give a picture file")
    try:
        with warnings.catch_warnings():
            # Large photographs are the point here; Pillow still refuses decompression bombs.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                # A broken EXIF block must not cost the picture.
                try:
                    upright = ImageOps.exif_transpose(image)
                except Exception:
                    upright = image
                return _picture(upright)
    except UnidentifiedImageError as error:
        raise MediaError(
            f"{path} is not a picture that Pillow knows; give png, jpg or webp"
        ) from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path} has too many pixels ({error}); scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(
            f"{path} is damaged or cut off ({' '.join(str(error).split())}); get the file again"
        ) from error


def _picture(image: Any) -> Picture:  # noqa: ANN401 - a PIL.Image.Image, of a package not required
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        values = np.asarray(image)
        # Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
        if image.mode == "F":
            top = float(values.max()) or 1.0
            grey = (values / (1.0 if top <= 1 else top) * 255).clip(0, 255).round()
        else:
            grey = values.astype(np.int64).clip(0, 65535) >> 8
        frame = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
        return Picture(frame=np.ascontiguousarray(frame))
    profile = image.info.get("icc_profile") if image.mode in {"RGB", "RGBA"} else None
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        alpha = np.ascontiguousarray(rgba[..., 3])
        return Picture(frame=np.ascontiguousarray(rgba[..., :3]), alpha=alpha, icc_profile=profile)
    return Picture(frame=np.ascontiguousarray(image.convert("RGB")), icc_profile=profile)


def check_picture_target(path: Path, picture: Picture | None = None) -> None:
    """Raise if a picture cannot be written to a file of this name.

    Raises:
        MediaError: the ending is unknown, or the format cannot hold the picture's alpha.
    """
    suffix = path.suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise MediaError(
            f"{path} ends in {suffix or 'nothing'!r}, wanted one of {' '.join(PICTURE_SUFFIXES)}"
        )
    if picture is not None and picture.alpha is not None and suffix not in _ALPHA_SUFFIXES:
        raise MediaError(
            f"{path}: the input is partly transparent and {suffix} cannot hold that; give an OUT"
            f" that ends in one of {' '.join(_ALPHA_SUFFIXES)}"
        )


def check_picture_size(path: Path, height: int, width: int) -> None:
    """Raise if a file of this name cannot hold a picture of this size.

    Raises:
        MediaError: a side is longer than the format allows.
    """
    most = _LARGEST_SIDES.get(path.suffix.lower())
    if most is not None and max(height, width) > most:
        raise MediaError(
            f"{path}: the result has {width}x{height} pixels, {path.suffix} holds at most {most} on"
            " each side; give an OUT that ends in .png or .tif"
        )


def write_picture(path: Path, picture: Picture) -> None:
    """Encode a picture by its ending, whole or not at all.

    Raises:
        MediaError: see :func:`check_picture_target`; or it cannot be written.
    """
    require_pillow()
    from PIL import Image

    check_picture_target(path, picture)
    pixels = picture.frame
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, picture.alpha[..., None]], axis=-1)
    image = Image.fromarray(pixels)
    options: dict[str, Any] = {}
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        # Strokes are fine coloured detail: the default of 75 with halved colour smears them.
        options = {"quality": 95, "subsampling": 0}
    elif path.suffix.lower() == ".webp":
        options = {"quality": 95}
    if picture.icc_profile:
        options["icc_profile"] = picture.icc_profile
    with written_whole(path) as partial:
        image.save(partial, **options)


def fill_transparent(frame: Frame, alpha: Frame) -> Frame:
    """Give pixels that cannot be seen the colours of visible ones near them.

    Programs store anything under alpha 0, mostly black or white. A network would mix it into the
    visible pixels along the edge, as a fringe; with the neighbours' colours there is nothing to
    mix in. Pixels that are seen, however faintly, keep their colours.

    Args:
        frame: (H, W, 3) uint8.
        alpha: (H, W) uint8.

    Returns:
        The frame itself if nothing or everything is hidden, else a new one.

    Source: pull and push over a pyramid of halved pictures, as in Gortler et al. 1996, "The
    Lumigraph", section 3.4.2; without its blending between levels, for only edges matter here.
    """
    if alpha.all() or not alpha.any():
        return frame
    filled = frame.copy()
    _fill(filled, alpha)
    return filled


def _fill(colours: Frame, weights: Frame) -> None:
    """Change pixels of weight 0 in place to the mean of the weighted ones around them."""
    if weights.all():
        return
    coarse, sums = _halve(colours, weights)
    _fill(coarse, sums)
    for top in range(0, len(colours), _ROWS):
        hidden = weights[top : top + _ROWS] == 0
        wide = coarse[top // 2 : (top + _ROWS) // 2].repeat(2, axis=0).repeat(2, axis=1)
        colours[top : top + _ROWS][hidden] = wide[: hidden.shape[0], : hidden.shape[1]][hidden]


def _halve(colours: Frame, weights: Frame) -> tuple[Frame, Frame]:
    """Return the weighted mean and the sum of the weights, at most 255, around each 2x2 pixels.

    Each 2x2 pixels look one further: so whoever is filled beside a visible pixel takes its colour,
    not only that of others which happen to lie in the same 2x2.
    """
    height, width = ((side + 1) // 2 for side in weights.shape)
    coarse = np.empty((height, width, 3), np.uint8)
    sums = np.empty((height, width), np.uint8)
    for top in range(0, len(weights), _ROWS):
        first, last = max(0, top - 1), min(len(weights), top + _ROWS + 1)
        here = slice(top // 2, min(height, (top + _ROWS) // 2))
        # One row before, and as many after as the last pair of rows wants.
        rows = (1 - (top - first), 2 * (here.stop - here.start) + 1 - (last - top))
        around = (rows, (1, 2 * width + 1 - weights.shape[1]))
        part = weights[first:last].astype(np.uint32)
        total = _sums_of_pairs(np.pad(part, around))
        weighted = colours[first:last] * part[..., None]
        weighted = _sums_of_pairs(np.pad(weighted, (*around, (0, 0))))
        most = np.maximum(total, 1)[..., None]
        coarse[here] = (weighted + most // 2) // most
        sums[here] = np.minimum(total, 255)
    return coarse, sums


def _sums_of_pairs(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Add up pairs of rows and columns and, with a third of the weight, their neighbours.

    Args:
        values: (2h + 2, 2w + 2, ...).

    Returns:
        (h, w, ...).
    """
    for axis in (0, 1):
        length = values.shape[axis] - 2
        a, b, c, d = (values.swapaxes(0, axis)[i : i + length : 2] for i in range(4))
        values = (a + 3 * (b + c) + d).swapaxes(0, axis)
    return values


def resize_alpha(alpha: Frame, height: int, width: int) -> Frame:
    """Return an alpha channel (H, W) at the size of the result, bicubic, clamped to 0..255."""
    if alpha.shape == (height, width):
        return alpha
    from PIL import Image

    return np.asarray(Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC))


def find_pictures(folder: Path) -> Iterator[Path]:
    """Yield the picture files below a folder, sorted, without following links to folders."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith("."):
                yield Path(where) / name
