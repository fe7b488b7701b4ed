"""Many photographs optimised towards one style: pairs that a network can be fitted to."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topcoat.train._errors import (
    ContentError,
    DivergenceError,
    OutOfMemoryError,
    OutputError,
    PictureError,
)
from topcoat.train._files import written_whole
from topcoat.train.data import find_pictures
from topcoat.train.losses import perceptual_network
from topcoat.train.optimize import OptimizeRun, optimize_image
from topcoat.train.pictures import file_sha256, open_photograph, resize_longer_side
from topcoat.train.recipes import STARTS, OptimizeRecipe

FORMAT = "topcoat-pairs"
FORMAT_VERSION = 1


@dataclass(kw_only=True)
class BatchOutcome:
    """What a batch left behind."""

    folder: Path
    done: int
    """Pairs in the folder now."""
    asked: int
    """Photographs there were."""
    finished: bool
    """False if it was interrupted; the same command goes on."""
    least_side: int = 0
    """Shorter side of the smallest pair, in pixels: the largest crop to train on."""
    skipped: list[str] = field(default_factory=list)
    """Photographs that could not be used, with reasons."""


def optimize_batch(
    run: OptimizeRun,
    photographs: Path,
    on_picture: Callable[[int, int, Path], None] = lambda *_: None,
) -> BatchOutcome:
    """Optimise every photograph of a folder tree into a folder of pairs.

    ``photo/NAME.png`` is the photograph at the size worked at, ``target/NAME.png`` what became of
    it, ``pairs.json`` lists them with style, recipe and losses. It is written after every picture:
    an interrupted batch goes on where it was when the same command is given again.

    Args:
        run: as for one picture, without its photograph; its output is the folder.
        photographs: folder of the photographs.
        on_picture: is told number, count and path of what is about to be done.

    Raises:
        ContentError: no photographs there, or none that can be used.
        OutputError: the folder holds pairs of another style or recipe, or cannot be written.
        TopcoatError: see :func:`optimize_image`.
    """
    folder, recipe = run.settings.output, run.recipe
    paths = find_pictures(photographs)
    names = unique_names([path.relative_to(photographs) for path in paths])
    network = run.network
    weights = None
    if network is None:
        network, found = perceptual_network(recipe, run.loss_weights)
        weights = file_sha256(found)
    head = _head(run, weights)
    listing = folder / "pairs.json"
    pairs = _pairs_so_far(listing, head)
    _check_folder(folder)
    outcome = BatchOutcome(folder=folder, done=0, asked=len(paths), finished=True)
    for number, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
        digest = file_sha256(path)
        target = folder / "target" / f"{name}.png"
        if name in pairs and pairs[name].get("photo_sha256") == digest and target.is_file():
            continue
        on_picture(number, len(paths), path)
        # No states between: one picture is short, and begins again.
        settings = dataclasses.replace(
            run.settings,
            output=target,
            preview_every=0,
            checkpoint_every=0,
            prefix=f"{number}/{len(paths)} ",
        )
        if pairs.pop(name, None) is not None:  # a kill must not leave a new target by an old photo
            _write(listing, {**head, "pairs": list(pairs.values())})
        try:
            result = optimize_image(
                dataclasses.replace(run, content=path, settings=settings, network=network)
            )
        except OutOfMemoryError:  # the next is no smaller
            raise
        except PictureError as error:
            outcome.skipped.append(str(error))
            continue
        except DivergenceError as error:
            target.unlink(missing_ok=True)
            outcome.skipped.append(f"{path}: diverged at {str(error).split(';')[0]}")
            continue
        if not result.finished:
            if result.state is not None:
                result.state.unlink()
            outcome.finished = False
            break
        _write_photo(path, recipe, result.size, folder / "photo" / f"{name}.png")
        pairs[name] = {
            "name": name,
            "photo_sha256": digest,
            "size": list(result.size),
            "losses": result.losses,
        }
        _write(listing, {**head, "pairs": list(pairs.values())})
    outcome.done = len(pairs)
    outcome.least_side = min((min(pair.get("size", [0])) for pair in pairs.values()), default=0)
    if outcome.finished and not pairs:
        raise ContentError(
            f"none of the {len(paths)} photographs below {photographs} could be used; of the first "
            f"it was said: {outcome.skipped[0]}"
        )
    return outcome


def _head(run: OptimizeRun, weights: str | None) -> dict[str, Any]:
    """What all pairs of a folder share: anything else would be another objective."""
    styles = [
        {
            "name": style.picture.name,
            "sha256": style.picture.sha256,
            "size": list(style.picture.image.size),
            "share": style.weight,
            "where_sha256": None if style.where is None else file_sha256(style.where),
            "part_sha256": None if style.part is None else file_sha256(style.part),
        }
        for style in run.styles
    ]
    whole = {name: styles[0][name] for name in ("name", "sha256", "size")}
    if len(styles) > 1:  # a mixture is none of its pictures
        digest = hashlib.sha256(json.dumps(styles).encode()).hexdigest()
        whole |= {"name": "-".join(str(style["name"]) for style in styles), "sha256": digest}
    start = Path(run.recipe.start)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "style": whole,
        "styles": styles,
        "recipe": run.recipe.to_dict(),
        "start_sha256": None if run.recipe.start in STARTS else file_sha256(start),
        "loss_weights_sha256": weights,
    }


def unique_names(paths: list[Path]) -> list[str]:
    """Names for pictures of a folder tree, without suffix, all different.

    >>> unique_names([Path("a.jpg"), Path("b/a.jpg"), Path("a.png")])
    ['a', 'b-a', 'a-2']
    """
    names: list[str] = []
    for path in paths:
        stem = "-".join(path.with_suffix("").parts)
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def _check_folder(folder: Path) -> None:
    """Find out before minutes of work whether the pairs can be written."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise OutputError(f"{existing} is not a folder; give a folder for the pairs with --output")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"cannot write to {existing}; give another folder with --output")


def _pairs_so_far(listing: Path, head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if not listing.exists():
        return {}
    try:
        content = json.loads(listing.read_text())
        same = all(content[key] == head[key] for key in head)
        pairs = {str(pair["name"]): dict(pair) for pair in content["pairs"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(
            f"{listing} is there and cannot be read; give another folder with --output"
        ) from None
    if not same:
        raise OutputError(
            f"{listing.parent} holds pairs of another style or recipe; give another folder with "
            "--output, or the same style and settings to go on"
        )
    return pairs


def _write_photo(path: Path, recipe: OptimizeRecipe, size: tuple[int, int], to: Path) -> None:
    photo = resize_longer_side(open_photograph(path), recipe.size)
    assert photo.size == size
    try:
        with written_whole(to) as file:
            photo.save(file, "PNG")
    except OSError as error:
        raise OutputError(f"cannot write {to}: {error.strerror}; free space") from None


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        with written_whole(path) as file:
            file.write((json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; free space") from None
