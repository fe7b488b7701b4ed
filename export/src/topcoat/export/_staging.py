"""Put a bundle in its place: staged aside under a hidden name, and there complete or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from topcoat.export._errors import OutputError
from topcoat.export.manifest import FORMAT


def check_place(place: Path, *, force: bool) -> None:
    """Refuse early, before minutes of work, what would be refused at the end."""
    if not place.exists():
        return
    if not place.is_dir():
        raise OutputError(f"{place} is a file; give a folder name such as {place.stem}.topcoat")
    present = {path.name for path in place.iterdir()}
    if not present:
        return
    own = _files_of_bundle(place)
    if own is None:
        raise OutputError(
            f"{place} exists and is not a bundle, so it is left alone; "
            f"give another name, such as {place / 'NAME.topcoat'}"
        )
    if foreign := sorted(present - own):
        raise OutputError(
            f"{place} holds {', '.join(foreign[:3])}, which no export wrote, so it is left alone; "
            "move that away or give another name"
        )
    if not force:
        raise OutputError(f"{place} is there already; replace it with --force, or give -o")


def _files_of_bundle(folder: Path) -> set[str] | None:
    """Names that a bundle's manifest lists, or None if the folder is no bundle."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        models = {variant["file"] for variant in manifest["variants"]}
        return {"manifest.json", *models, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def staged(place: Path) -> Iterator[Path]:
    """A folder beside ``place``, on the same file system, that disappears if it is not used."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
    except OSError as error:
        raise OutputError(
            f"cannot write to {place.parent}: {error.strerror}; give another place with -o"
        ) from None
    try:
        yield stage
    except OSError as error:
        # A broken pipe comes from whoever is told of the progress, not from the disk.
        if isinstance(error, OutputError | BrokenPipeError) or error.errno is None:
            raise
        raise OutputError(
            f"cannot write {place}: {error.strerror}; make room or give another place with -o"
        ) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def put_in_place(stage: Path, place: Path, *, force: bool) -> None:
    for path in stage.iterdir():
        path.chmod(0o644)
        _sync(path)
    stage.chmod(0o755)  # mkdtemp's folders are private
    _sync(stage)
    check_place(place, force=force)  # minutes have passed
    if not place.exists() or not any(place.iterdir()):
        stage.replace(place)
    else:
        # No system renames over a folder that holds something. Killed between the two renames,
        # the old bundle is whole under its hidden name.
        old = stage.with_suffix(".old")
        place.replace(old)
        try:
            stage.replace(place)
        except BaseException:
            old.replace(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(place.parent)


def _sync(path: Path) -> None:
    # Some file systems cannot flush a folder; the files themselves are safe then all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: Mapping[str, Any]) -> str:
    """JSON as this project writes it: indented, strict (no NaN), ending in a newline."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_atomically(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(json_text(content), encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
