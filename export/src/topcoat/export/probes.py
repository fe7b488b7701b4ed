"""The frames on which an engine is compared with its network.

For a network that takes frames, photographs come first, those that scikit-image carries and the
user's. What is cut from them, drawn and made of noise is :mod:`topcoat.runtime.parity`'s.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from topcoat.export._errors import PhotographError
from topcoat.runtime.frames import Frame
from topcoat.runtime.parity import (
    LONGEST_SIDE,
    MOST_PHOTOGRAPHS,
    ProbeFrame,
    flat_probes,
    noise_probes,
    size_probes,
    synthetic_probes,
)

__all__ = [
    "LONGEST_SIDE",
    "MOST_PHOTOGRAPHS",
    "Frame",
    "ProbeFrame",
    "bundled_photographs",
    "noise_probes",
    "probe_frames",
    "read_photograph",
    "user_photographs",
]

BUNDLED = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
"""Photographs that lie inside scikit-image's package: no download. Three have an odd side."""
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


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
    made = [*size_probes(bundled, size_min, scale), *synthetic_probes(size_min, scale)]
    return [*small, *own, *made, *(flat_probes(scale) if scale > 1 else ())]


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
