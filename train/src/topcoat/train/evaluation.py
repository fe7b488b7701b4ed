"""Shrink high-resolution pictures, let every method enlarge them, compare with the originals."""

import fnmatch
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from topcoat.train import _memory, metrics
from topcoat.train._errors import CheckpointError, ContentError, RecipeError
from topcoat.train._evaluation_check import check_pictures, complaint, least_side, open_cut
from topcoat.train.degradation import degrade, imresize
from topcoat.train.frames import array_tensor, tensor_array
from topcoat.train.metrics import Picture
from topcoat.train.networks import FrameNetwork
from topcoat.train.pictures import SUFFIXES
from topcoat.train.recipes import check_blur

Method = Callable[[Picture], Picture]
"""Enlarges: (H, W, 3) uint8 RGB -> (H*scale, W*scale, 3) uint8 RGB."""

BICUBIC = "bicubic"
"""Name of the method that every evaluation has."""
EVALUATION_SUFFIXES = (*SUFFIXES, ".bmp", ".tif", ".tiff")
"""What counts as a picture: published test sets also come as bmp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How pictures were made small, and how the results were compared."""

    scale: int
    """Output pixels per input pixel, along each axis."""
    blur: float
    """σ in pixels of the Gaussian before shrinking; 0 is the plain bicubic protocol."""
    border: int
    """Pixels that are left out on each side of both pictures."""
    match_histogram: bool
    """The methods' outputs, bicubic aside, were given the histogram of the small picture."""
    lpips: str | None
    """What measured LPIPS, or None."""
    lpips_missing: str
    """Why LPIPS was not measured; empty if it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How close one output, or the mean of many, is to its original."""

    psnr_y: float
    """dB; infinity for a picture that was restored exactly."""
    ssim_y: float
    lpips: float | None
    """None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureScores:
    """One picture's row."""

    name: str
    """Path below the folder: the one given, or that which holds all the pictures given."""
    file_size: tuple[int, int]
    """Width and height of the file."""
    size: tuple[int, int]
    """Width and height that were evaluated: cut at the right and the bottom to multiples of the
    scale."""
    scores: dict[str, Scores]
    """By method, bicubic first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSet:
    """The pixels behind a row, handed out while they are there; all (H, W, 3) uint8."""

    original: Picture
    low_resolution: Picture
    outputs: dict[str, Picture]
    """By method, bicubic first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came out."""

    protocol: Protocol
    methods: tuple[str, ...]
    """Names, bicubic first."""
    pictures: tuple[PictureScores, ...]
    skipped: tuple[str, ...]
    """Pictures that were to be left out if they cannot be used: ``path: reason``."""
    versions: dict[str, str]
    """Of the packages that the figures depend on."""

    def mean(self, method: str) -> Scores:
        """Average over the pictures: of their PSNRs, as published tables do, not of their errors.

        Raises:
            KeyError: no such method.
        """
        rows = [picture.scores[method] for picture in self.pictures]
        lpips = [row.lpips for row in rows if row.lpips is not None]
        return Scores(
            psnr_y=sum(row.psnr_y for row in rows) / len(rows),
            ssim_y=sum(row.ssim_y for row in rows) / len(rows),
            lpips=sum(lpips) / len(lpips) if lpips else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; an infinite PSNR becomes None."""
        return {
            "protocol": asdict(self.protocol) | {"measured_on": "Y of YCbCr (BT.601)"},
            "mean": {method: _plain(self.mean(method)) for method in self.methods},
            "pictures": [
                {
                    "name": picture.name,
                    "file_size": list(picture.file_size),
                    "size": list(picture.size),
                    "scores": {name: _plain(row) for name, row in picture.scores.items()},
                }
                for picture in self.pictures
            ],
            "skipped": list(self.skipped),
            "versions": dict(self.versions),
        }


def evaluate(
    pictures: Sequence[Path],
    methods: Mapping[str, Method | FrameNetwork],
    *,
    scale: int,
    folder: Path | None = None,
    blur: float = 0.0,
    border: int | None = None,
    match_histogram: bool = False,
    lpips: bool = True,
    skip_broken: bool = False,
    quiet: bool = True,
    on_picture: Callable[[PictureScores, PictureSet], None] | None = None,
) -> Evaluation:
    """Measure methods of enlarging on pictures that serve as their own solutions.

    Every picture is looked at before the first one is enlarged, so that a broken one does not cost
    the work on the others.

    Args:
        pictures: high-resolution files; see :func:`find_originals`.
        methods: name -> a function, or a network, which runs in float32 on one whole picture at a
            time; its output is rounded to 8 bits as a file would be. Bicubic is always measured.
        scale: the factor of all methods.
        folder: pictures are named by their paths below it; None: below the innermost folder that
            holds all of them, those that cannot be used among them.
        blur: σ in pixels of a Gaussian before shrinking; 0 for the protocol of published tables.
        border: pixels to leave out on each side; None: ``scale``, as published tables do.
        match_histogram: give each method's output, bicubic aside, the histogram of the small
            picture (Johnson et al. 2016, §4.2).
        lpips: also measure LPIPS, if its package and its weights are there; nothing is downloaded.
        skip_broken: leave out pictures that cannot be used and say so in the result.
        quiet: no progress bar.
        on_picture: called after each picture with its row and its pixels.

    Raises:
        ContentError: no picture, or one that cannot be used; the message names all of them.
        RecipeError: a network's scale is not ``scale``, or a setting is out of range.
        CheckpointError: a network computes NaN or infinity.
        PictureError: a method, or a measure, ran out of memory on a picture.
        ValueError: a picture does not lie below ``folder``.

    >>> from topcoat.train.pictures import sample_photographs
    >>> result = evaluate(sample_photographs()[1:2], {}, scale=4, lpips=False)
    >>> result.pictures[0].name, result.pictures[0].size
    ('chelsea.png', (448, 300))
    """
    border = scale if border is None else border
    if scale < 2:
        raise RecipeError(f"scale must be 2 or more, got {scale}")
    check_blur(blur)
    if border < 0:
        raise RecipeError(f"border must be 0 or more pixels, got {border}; the usual is {scale}")
    if BICUBIC in methods:
        raise RecipeError(f"{BICUBIC!r} is always measured; give the method another name")
    for name, method in methods.items():
        if isinstance(method, FrameNetwork) and method.scale != scale:
            raise RecipeError(f"{name} enlarges by {method.scale}, not by {scale}")
    if not pictures:
        raise ContentError("no pictures given; give at least one")
    distance, described = metrics.find_lpips() if lpips else (None, "LPIPS left out: not asked for")

    names = names_below(pictures, folder)
    networks = {name: m for name, m in methods.items() if isinstance(m, FrameNetwork)}
    least = least_side(networks, scale, border, lpips=distance is not None)
    usable, problems = check_pictures(pictures, scale, least, networks, quiet)
    if problems and not (skip_broken and usable):
        raise ContentError(complaint(problems, len(pictures), skip_broken))

    enlarge: dict[str, Method] = {BICUBIC: bicubic_method(scale)}
    for name, method in methods.items():
        enlarge[name] = network_method(method, name) if isinstance(method, FrameNetwork) else method
    rows = []
    # A large network takes seconds a picture. None: no bar where nobody looks.
    for path in tqdm(usable, unit="picture", desc="evaluating", disable=quiet or None):
        file_size, original = open_cut(path, scale)
        height, width = original.shape[:2]
        on_this = f"{path} of {width}x{height}"
        with _memory.memory_for(f"to shrink {on_this}"):
            low = tensor_array(degrade(array_tensor(original), scale, blur))
        outputs: dict[str, Picture] = {}
        for name, method in enlarge.items():
            with _memory.memory_for(f"for {name} on {on_this}"):
                output = method(low)
            if output.shape != original.shape or output.dtype != np.uint8:
                raise ValueError(
                    f"{name} returned {output.dtype} {output.shape}, wanted uint8 {original.shape}"
                )
            if match_histogram and name != BICUBIC:
                output = metrics.match_histogram(output, low)
            outputs[name] = output
        with _memory.memory_for(f"to measure {on_this}"):
            scores = {
                name: Scores(
                    psnr_y=metrics.psnr_y(output, original, border),
                    ssim_y=metrics.ssim_y(output, original, border),
                    lpips=distance(output, original, border) if distance else None,
                )
                for name, output in outputs.items()
            }
        row = PictureScores(
            name=names[path], file_size=file_size, size=(width, height), scores=scores
        )
        rows.append(row)
        if on_picture is not None:
            with _memory.memory_for(f"to show {on_this}"):
                on_picture(row, PictureSet(original=original, low_resolution=low, outputs=outputs))
    return Evaluation(
        protocol=Protocol(
            scale=scale,
            blur=blur,
            border=border,
            match_histogram=match_histogram,
            lpips=described if distance else None,
            lpips_missing="" if distance else described,
        ),
        methods=tuple(enlarge),
        pictures=tuple(rows),
        skipped=tuple(problems),
        versions=versions(),
    )


def find_originals(folder: str | os.PathLike[str], only: str | None = None) -> list[Path]:
    """Every jpg, png, webp, bmp and tif in a folder tree, sorted by path.

    Args:
        folder: of high-resolution pictures.
        only: keep files whose name fits this pattern, ``*_HR.png`` for example: some copies of the
            published sets hold the small pictures and others' results as well.

    Raises:
        ContentError: not a folder, nothing in it, or a folder below it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ContentError(
            f"cannot read {error.filename}: {error.strerror}; change its permissions"
        )

    folder = Path(folder)
    if not folder.is_dir():
        came = "a file" if folder.exists() else "not there"
        raise ContentError(f"{folder} is {came}; give a folder of high-resolution pictures")
    found = sorted(
        Path(root, name)
        for root, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if name.lower().endswith(EVALUATION_SUFFIXES) and not name.startswith(".")
        if only is None or fnmatch.fnmatch(name, only)
    )
    if not found:
        which = f" that fits {only!r}" if only else ""
        raise ContentError(
            f"no jpg, png, webp, bmp or tif{which} below {folder}; give a folder of "
            "high-resolution pictures"
        )
    return found


def names_below(pictures: Sequence[Path], folder: Path | None = None) -> dict[Path, str]:
    """Name pictures by their paths below a folder, with ``/`` between the parts.

    Args:
        pictures: files.
        folder: None: the innermost that holds all of them.

    Raises:
        ValueError: a picture does not lie below ``folder``.

    >>> list(names_below([Path("set/x/a.png"), Path("set/y/a.png")]).values())
    ['x/a.png', 'y/a.png']
    """
    # abspath takes the .. out, absolute() does not.
    paths = {path: Path(os.path.abspath(path)) for path in pictures}  # noqa: PTH100
    if folder is None:
        root = Path(os.path.commonpath([path.parent for path in paths.values()]))
    else:
        root = Path(os.path.abspath(folder))  # noqa: PTH100
    return {path: full.relative_to(root).as_posix() for path, full in paths.items()}


def bicubic_method(scale: int) -> Method:
    """MATLAB's bicubic enlargement, rounded to 8 bits."""

    def enlarge(low: Picture) -> Picture:
        return tensor_array(imresize(array_tensor(low), enlarge=scale))

    return enlarge


def network_method(network: FrameNetwork, name: str = "the network") -> Method:
    """Run a network, which stays in float32 and evaluation mode, on one picture at a time."""
    network = network.float().eval()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))

    def enlarge(low: Picture) -> Picture:
        with torch.inference_mode():
            output = network(array_tensor(low).to(device)).cpu()
        if not torch.isfinite(output).all():
            raise CheckpointError(
                f"{name} computes NaN or infinity on a picture of {low.shape[1]}x{low.shape[0]}; "
                "train it again"
            )
        return tensor_array(output)

    return enlarge


def versions() -> dict[str, str]:
    """What the figures depend on."""
    packages = ("topcoat-train", "torch", "numpy", "scikit-image", "pillow")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def _plain(scores: Scores) -> dict[str, float | None]:
    psnr = scores.psnr_y if np.isfinite(scores.psnr_y) else None
    return {"psnr_y": psnr, "ssim_y": scores.ssim_y, "lpips": scores.lpips}
