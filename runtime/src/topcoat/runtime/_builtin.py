"""The models that come with the package: bundles known by a name, and what was proved of them here.

They lie among the installed code, which may be read-only and belongs to the package manager. What
`topcoat verify` finds out about them is therefore kept apart, in the user's cache folder: a file
per model with the rows that docs/bundle.md calls ``parity``, each for one file hash, so that a row
never outlives the file that it was measured on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topcoat.runtime._files import cache_folder

MODELS = Path(__file__).absolute().parent / "models"

_SUFFIX = ".topcoat"

_log = logging.getLogger("topcoat.runtime")


def builtin_models() -> dict[str, Path]:
    """Return the models that come with the package: name -> folder of its bundle, sorted by name.

    Wherever a bundle is asked for, such a name does as well. A file or folder of that name in the
    working directory comes first.
    """
    if not MODELS.is_dir():  # an installation without them is none of ours, yet bundles still run
        return {}
    found = {
        path.name.removesuffix(_SUFFIX): path
        for path in MODELS.iterdir()
        if path.name.endswith(_SUFFIX) and (path / "manifest.json").is_file()
    }
    return dict(sorted(found.items()))


def find_bundle(path: Path) -> Path:
    """Return the path if there is anything, else the built-in model of that name, else the path."""
    if path.exists() or len(path.parts) != 1:
        return path
    return builtin_models().get(path.name, path)


def is_builtin(folder: Path) -> bool:
    """Return whether a bundle's folder is that of a built-in model."""
    return folder.name.endswith(_SUFFIX) and folder.parent.resolve() == MODELS.resolve()


def record_file(folder: Path) -> Path | None:
    """Return where what is proved here of a built-in model is kept; None without a home folder."""
    cache = cache_folder("verified")
    return None if cache is None else cache / f"{folder.name.removesuffix(_SUFFIX)}.json"


def with_record(folder: Path, raw: Mapping[str, Any]) -> tuple[Path, Mapping[str, Any]] | None:
    """Put what was proved here of a built-in model into the values of its manifest.

    Args:
        folder: of any bundle.
        raw: the values of its manifest.json, checked.

    Returns:
        The record's path, and the same values with its rows for files of these hashes; None if
        there is no record.
    """
    path = record_file(folder) if is_builtin(folder) else None
    if path is None or not path.is_file():
        return None
    try:
        recorded = {
            (variant["file"], variant["sha256"]): list(variant["parity"])
            for variant in json.loads(path.read_bytes())["variants"]
        }
    # RecursionError: thousands of nested brackets; UnicodeDecodeError is a ValueError.
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        tell_unreadable(path, error)
        return None
    variants = []
    for variant in raw["variants"]:
        rows = variant["parity"]
        for row in recorded.get((variant["file"], variant["sha256"]), ()):
            rows = [other for other in rows if not _same(other, row)] + [row]
        variants.append({**variant, "parity": rows})
    return path, {**raw, "variants": variants}


def tell_unreadable(path: Path, error: BaseException) -> None:
    """Log that a record is left out: the model itself is whole, and runs without it."""
    _log.warning(
        "%s is not what `topcoat verify` wrote (%s) and is ignored; delete it and verify again",
        path,
        " ".join(str(error).split()) or type(error).__name__,
    )


def _same(row: object, other: object) -> bool:
    keys = ("backend", "compute", "device")
    return (
        isinstance(row, dict)
        and isinstance(other, dict)
        and all(row.get(key) == other.get(key) for key in keys)
    )
