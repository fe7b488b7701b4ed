"""Style and texture pictures: read and checked, or drawn."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from topcoat.train._errors import PictureError
from topcoat.train.pictures import file_sha256, open_rgb
from topcoat.train.styles import STYLES, draw_style

_MIN_STYLE_SIDE = 64
_MAX_STYLE_ASPECT = 8


@dataclass(frozen=True)
class StylePicture:
    """A style picture, read and checked."""

    name: str
    image: Image.Image
    sha256: str
    """Of the file, or of the pixels for a built-in style."""


def load_style(style: str | os.PathLike[str]) -> StylePicture:
    """Read a style picture, or draw a built-in one.

    A path wins over a built-in name: a file called ``mosaic`` in this folder is that file.

    Raises:
        PictureError: no such file or name, not a usable picture, too small or too long.
    """
    text = os.fspath(style)
    path = Path(text)
    if not path.exists() and text in STYLES:
        image = draw_style(text)
        return StylePicture(text, image, hashlib.sha256(image.tobytes()).hexdigest())
    if not path.exists() and path.suffix == "" and path.parent == Path():
        raise PictureError(
            f"no picture at {text!r} and no built-in style of that name; "
            f"give a file, or one of {', '.join(STYLES)}"
        )
    image = open_rgb(path)
    short, long = sorted(image.size)
    if short < _MIN_STYLE_SIDE or long > _MAX_STYLE_ASPECT * short:
        raise PictureError(
            f"style picture {path} is {image.width}x{image.height}; wanted: at least "
            f"{_MIN_STYLE_SIDE} pixels on the short side and at most {_MAX_STYLE_ASPECT} times as "
            "long as wide; crop or choose another"
        )
    return StylePicture(path.stem, image, file_sha256(path))
