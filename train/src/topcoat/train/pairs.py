"""Folders of prepared pairs: photographs, and what optimising them in a style made of each.

``optimize-image --batch`` makes such a folder: ``photo/NAME.png``, ``target/NAME.png`` of the same
size, and ``pairs.json``, which names them, the style and the recipe.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from topcoat.train._errors import ContentError, PictureError
from topcoat.train.checkpoint import Checkpoint
from topcoat.train.data import Photographs, fingerprint
from topcoat.train.pictures import open_rgb, to_array
from topcoat.train.runs import picture_name

FORMAT = "topcoat-pairs"
FORMAT_VERSION = 1
_MAKE = "make it with optimize-image --batch PHOTOS STYLE -o PAIRS"


@dataclass(frozen=True)
class Pair:
    """A photograph and what its optimisation ended at; files of the same size in pixels."""

    name: str
    photo: Path
    target: Path


@dataclass(frozen=True)
class Pairs:
    """A folder of pairs, looked through."""

    folder: Path
    style: dict[str, Any]
    """``name``, ``sha256`` and pixel ``size`` of the style picture that the targets were made in;
    the name is safe as a file's."""
    pairs: tuple[Pair, ...]

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes: tells whether a run goes on with the same ones."""
        return fingerprint([path for pair in self.pairs for path in (pair.photo, pair.target)])


def pairs_style(folder: Path) -> dict[str, Any]:
    """The style of a folder of pairs: ``name``, safe as a file's, ``sha256`` and ``size``.

    Raises:
        ContentError: as :func:`read_pairs`, of ``pairs.json`` alone.
    """
    return _style(_description(folder), folder)


def read_pairs(folder: Path, crop: int) -> Pairs:
    """Read ``pairs.json`` and check every pair's files, without decoding them.

    Args:
        folder: the folder of pairs.
        crop: side in pixels of the squares that are to be cut.

    Raises:
        ContentError: no such folder, ``pairs.json`` is missing or not one, a name leads out of the
            folder, a file is missing or no picture, the two of a pair differ in size, a pair is
            smaller than ``crop``, or there is none.
    """
    content = _description(folder)
    listed = content.get("pairs")
    names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in listed or ()]
    if not names:
        raise ContentError(f"{folder}/pairs.json lists no pairs; {_MAKE}")
    found = [_pair(folder, name) for name in names]
    pair, (width, height) = min(found, key=lambda entry: min(entry[1]))
    side = min(width, height)
    if side < crop:
        # A multiple that every network takes, where there is one.
        fitting = side // 32 * 32 if side >= 64 else side // 4 * 4
        raise ContentError(
            f"pair {pair.name!r} of {folder} is {width}x{height}, smaller than the crop of "
            f"{crop}x{crop}; pass --crop {max(16, fitting)}, or make the pairs larger"
        )
    return Pairs(folder, _style(content, folder), tuple(pair for pair, _ in found))


def check_pairs(resume: Checkpoint, pairs: Pairs) -> None:
    """Check that pairs are those that a run began with.

    Raises:
        ContentError: they are others.
    """
    known = (resume.state or {}).get("targets_fingerprint")
    if known is not None and known != pairs.fingerprint():
        raise ContentError(
            f"{pairs.folder} holds other pairs than when the checkpoint was written, so the run "
            "would not be the same one; pass the original folder with --targets"
        )


def require_decodable(pairs: Pairs) -> None:
    """Check that there is a pair to cut from; of one, any number of crops can be cut.

    Raises:
        ContentError: none can be decoded.
    """
    first = ""
    for pair in pairs.pairs:
        try:
            for path in (pair.photo, pair.target):
                open_rgb(path)
        except PictureError as error:
            first = first or str(error)
        else:
            return
    raise ContentError(f"none of {len(pairs.pairs)} pairs can be used (first problem: {first})")


class PairedPhotographs(Photographs):
    """Squares cut from pairs: the same crop and mirror of the photograph and of its target.

    Never scaled: at another size the target would not be what optimisation makes of the photograph.

    Args:
        pairs: the files.
        crop: side of the square in pixels.
        seed: of the run.

    Samples are (crop, crop, 6) uint8: RGB of the photograph, then of the target.
    """

    def __init__(self, pairs: Sequence[Pair], crop: int, seed: int) -> None:
        super().__init__([pair.photo for pair in pairs], crop, "crop", seed)
        self._targets = {pair.photo: pair.target for pair in pairs}

    def _pixels(self, path: Path, rng: np.random.Generator) -> NDArray[np.uint8]:
        photo, target = to_array(open_rgb(path)), to_array(open_rgb(self._targets[path]))
        side = self.crop
        if photo.shape != target.shape or min(photo.shape[:2]) < side:
            raise PictureError(f"{path} or its target was changed since the run began")
        top = int(rng.integers(0, photo.shape[0] - side + 1))
        left = int(rng.integers(0, photo.shape[1] - side + 1))
        both = np.concatenate(
            [whole[top : top + side, left : left + side] for whole in (photo, target)], axis=2
        )
        return both[:, ::-1] if rng.random() < 0.5 else both


def _description(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        came = "a file" if folder.exists() else "not there"
        raise ContentError(f"folder of pairs {folder} is {came}; {_MAKE}")
    path = folder / "pairs.json"
    if not path.is_file():
        raise ContentError(f"{folder} has no pairs.json, so it is no folder of pairs; {_MAKE}")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ContentError(f"{path} cannot be read ({reason}); {_MAKE}") from None
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ContentError(f"{path} does not describe pairs; {_MAKE}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ContentError(
            f"{path} has format version {version!r}, this version reads {FORMAT_VERSION}; "
            "update topcoat-train or make the pairs again"
        )
    if not isinstance(content.get("pairs"), list):
        raise ContentError(f"{path} is damaged: it has no list of pairs; {_MAKE}")
    return content


def _style(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    style = content.get("style")
    style = style if isinstance(style, Mapping) else {}
    name, sha256, size = (style.get(key) for key in ("name", "sha256", "size"))
    if (
        not (isinstance(name, str) and name and isinstance(sha256, str) and isinstance(size, list))
        or len(size) != 2
        or not all(isinstance(side, int) for side in size)
    ):
        raise ContentError(
            f"{folder}/pairs.json is damaged: its style lacks name, sha256 or size; {_MAKE}"
        )
    return {"name": picture_name(name), "sha256": sha256, "size": size}


def _pair(folder: Path, name: object) -> tuple[Pair, tuple[int, int]]:
    """A pair by its name, and its width and height."""
    if not isinstance(name, str) or not name or Path(name).name != name or set(name) & set("\\\0"):
        raise ContentError(
            f"{folder}/pairs.json names a pair {name!r}, which is not the plain name of a file in "
            f"the folder; {_MAKE}"
        )
    pair = Pair(name, folder / "photo" / f"{name}.png", folder / "target" / f"{name}.png")
    sizes = [_size(path) for path in (pair.photo, pair.target)]
    (width, height), (other_width, other_height) = sizes
    if sizes[0] != sizes[1]:
        raise ContentError(
            f"pair {name!r} of {folder}: the photo is {width}x{height}, its target "
            f"{other_width}x{other_height}; they must be of one size: make that pair again"
        )
    return pair, sizes[0]


def _size(path: Path) -> tuple[int, int]:
    """Width and height from the file's head."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise ContentError(f"{path} is missing; make the pairs again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ContentError(f"{path} is not a usable picture; make the pairs again") from None
