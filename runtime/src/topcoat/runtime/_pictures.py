"""Pictures on disk to frames and back: orientation, grey, alpha, 16 bits. Needs Pillow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topcoat.runtime._errors import MediaError
from topcoat.runtime._files import written_whole
from topcoat.runtime.frames import Frame

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_ALPHA_SUFFIXES = (".png", ".webp", ".tif", ".tiff")


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


def resize_alpha(alpha: Frame, height: int, width: int) -> Frame:
    """Return an alpha channel (H, W) at the size of the result."""
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
