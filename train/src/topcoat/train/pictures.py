"""Reading pictures of every kind into RGB."""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from topcoat.train._errors import PictureError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""What counts as a picture in a folder, in any case."""


MIN_SIDE = 16
MAX_ASPECT = 8
"""A photograph thinner than this would be scaled up to gigabytes to fill a square crop."""


def open_photograph(path: str | os.PathLike[str], at_least: int | None = None) -> Image.Image:
    """Read a photograph to train on: :func:`open_rgb`, and its shape is checked.

    Raises:
        PictureError: as :func:`open_rgb`, or too small or too thin to cut squares from.
    """
    image = open_rgb(path, at_least)
    short, long = sorted(image.size)
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise PictureError(
            f"{path} is {image.width}x{image.height}; wanted: at least {MIN_SIDE} pixels on the "
            f"short side and at most {MAX_ASPECT} times as long as wide"
        )
    return image


def open_rgb(path: str | os.PathLike[str], at_least: int | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB, upright.

    EXIF orientation is applied; grey, palette and CMYK are converted; transparency is laid over
    white, as most viewers show it.

    Args:
        path: a picture file.
        at_least: a JPEG may be decoded at a fraction of its size, with neither side below this
            many pixels: several times faster for training crops.

    Raises:
        PictureError: missing, empty, not a picture, cut short, more than 8 bits a channel, or
            large enough to be an attack on the memory.
    """
    path = Path(path)
    wanted = "give an 8-bit jpg, png or webp file"
    if path.is_dir():
        raise PictureError(f"{path} is a folder, not a picture; {wanted}")
    if not path.exists():
        raise PictureError(f"no picture at {path}; {wanted}")
    if path.stat().st_size == 0:
        raise PictureError(f"{path} is empty (0 bytes); {wanted}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and large sizes that still decode
            with Image.open(path) as image:
                # 16-bit colour PNGs claim mode RGB; how they are packed tells them apart.
                deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
                if deep or image.mode.startswith("I") or image.mode == "F":
                    raise PictureError(
                        f"{path} has more than 8 bits a channel; save it as an 8-bit picture"
                    )
                if at_least is not None:
                    image.draft("RGB", (at_least, at_least))
                upright = ImageOps.exif_transpose(image)
                if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or (
                    "transparency" in upright.info
                ):
                    rgba = upright.convert("RGBA")
                    white = Image.new("RGBA", rgba.size, "white")
                    return Image.alpha_composite(white, rgba).convert("RGB")
                return upright.convert("RGB")
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{path} is not a picture; {wanted}") from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; scale it down first"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PictureError(f"{path} cannot be decoded ({reason}); {wanted}") from None


def resize_longer_side(image: Image.Image, size: int) -> Image.Image:
    """Scale so that the longer side has ``size`` pixels, aspect kept."""
    factor = size / max(image.size)
    return image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))),
        Image.Resampling.LANCZOS,
    )


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Scale so that the shorter side has ``size`` pixels, aspect kept."""
    factor = size / min(image.size)
    return image.resize(
        (max(size, round(image.width * factor)), max(size, round(image.height * factor))),
        Image.Resampling.BICUBIC,
    )


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """As (H, W, 3) uint8."""
    return np.asarray(image, dtype=np.uint8)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hash of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_photographs() -> list[Path]:
    """Colour photographs that scikit-image's wheel carries: for trying things out, and tests."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    names = (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "rocket.jpg",
    )
    return [folder / name for name in names if (folder / name).is_file()]
