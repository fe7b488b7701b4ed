"""Write measured rows into a bundle's manifest, or into the record of a built-in model."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from topcoat.runtime._builtin import is_builtin, record_file
from topcoat.runtime._errors import BundleError, BundleIntegrityError, BundleWriteError
from topcoat.runtime.bundle import Manifest
from topcoat.runtime.parity._report import ParityRow

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


_log = logging.getLogger("topcoat.runtime")

_ROW_KEYS = frozenset(
    {
        *("backend", "compute", "device", "passed", "photographs", "noise"),
        *("where", "reference", "sizes"),
    }
)


def check_recordable(manifest: Manifest) -> None:
    """Refuse early, before minutes of work, what could not be recorded at the end.

    Raises:
        BundleWriteError: the folder or its manifest.json is read-only; of a built-in model, its
            record cannot be written.
        BundleError: the manifest holds what JSON cannot say, such as NaN.
    """
    path = record_path(manifest)
    if is_builtin(manifest.folder):
        _make_folder(path)
        with _beside(path) as temporary:
            temporary.write_bytes(b"")
        return
    # The file is replaced, which its own mode would not prevent: who made it read-only meant it.
    for place in (path, path.parent):
        if not place.stat().st_mode & 0o222:
            raise _cannot_write(place, "it is read-only")
    _text(path, *_content(path))
    with _beside(path) as temporary:
        temporary.write_bytes(b"")
        temporary.unlink()


def record_row(manifest: Manifest, row: ParityRow) -> None:
    """Replace or add a row, in one step: the file is the old one or the new one, whole.

    Whoever else records in the bundle meanwhile waits, so that no row is lost. Everything that this
    version does not know stays as it is. An entry of ``parity_not_run`` for
    the same backend and compute precision is removed.

    Args:
        manifest: of the bundle, as it was when the row was measured.
        row: what was measured; one that was not run is not recorded.

    Raises:
        BundleIntegrityError: the bundle was replaced while it was measured.
        BundleWriteError: the manifest cannot be written; it is as it was.
    """
    if row.status == "not run":
        return
    path = record_path(manifest)
    builtin = is_builtin(manifest.folder)
    if builtin:
        _make_folder(path)
    with _alone(path):
        _replace(path, manifest, row, builtin=builtin)


def record_path(manifest: Manifest) -> Path:
    """Return the file that rows go into.

    Raises:
        BundleWriteError: it is a built-in model, and there is no home folder to keep them in.
    """
    if not is_builtin(manifest.folder):
        return (manifest.folder / "manifest.json").resolve()
    path = record_file(manifest.folder)
    if path is None:
        raise _cannot_write(manifest.folder, "there is no home folder to keep the record in")
    return path


def _make_folder(path: Path) -> None:
    try:
        # Others must not be able to declare an engine proved.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from error


def _replace(path: Path, manifest: Manifest, row: ParityRow, *, builtin: bool) -> None:
    content, indent = _record_content(path) if builtin else _content(path)
    measured = next(v for v in manifest.variants if v.file == row.engine.file)
    for variant in content["variants"]:
        if (variant.get("file"), variant.get("sha256")) == (measured.file, measured.sha256):
            break
    else:
        if not builtin:
            raise BundleIntegrityError(
                f"{path} no longer describes the {measured.file} that was measured; the bundle was"
                " replaced meanwhile: verify it again"
            )
        # Those of other hashes stay: another environment of this user may have another version.
        variant = {"file": measured.file, "sha256": measured.sha256, "parity": []}
        content["variants"].append(variant)
    entry = row.to_manifest()
    variant["parity"] = _with_row(variant["parity"], entry)
    if isinstance(variant.get("parity_not_run"), list):
        variant["parity_not_run"] = [
            other for other in variant["parity_not_run"] if not _same(other, entry, ())
        ]
    text = _text(path, content, indent)
    with _beside(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    # Some file systems cannot flush a folder; the file itself is safe then all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _with_row(rows: list[Any], entry: dict[str, Any]) -> list[Any]:
    """Put an entry in the place of the one that it replaces, or at the end."""
    places = [i for i, row in enumerate(rows) if _same(row, entry, ("device",))]
    if not places:
        return [*rows, entry]
    first = places[0]
    unknown = {key: value for key, value in rows[first].items() if key not in _ROW_KEYS}
    changed = list(rows)
    changed[first] = entry | unknown
    return [row for i, row in enumerate(changed) if i not in places[1:]]


def _same(row: object, entry: dict[str, Any], besides: tuple[str, ...]) -> bool:
    keys = ("backend", "compute", *besides)
    return isinstance(row, dict) and all(row.get(key) == entry.get(key) for key in keys)


def _content(path: Path) -> tuple[dict[str, Any], int]:
    """Return the manifest's values, which were checked when it was read, and its indentation."""
    try:
        text = path.read_text(encoding="utf-8")
        found = re.match(r"\s*\{\s*?\n( *)", text)
        content: dict[str, Any] = json.loads(text)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} cannot be read any more ({' '.join(str(error).split())}); verify it again"
        ) from error
    return content, len(found.group(1)) if found else 1


def _record_content(path: Path) -> tuple[dict[str, Any], int]:
    """Return the values of a record; of one that is missing or damaged, those of an empty one."""
    try:
        content = json.loads(path.read_bytes())
        variants = content["variants"]
        if isinstance(variants, list) and all(
            isinstance(v, dict) and isinstance(v.get("parity"), list) for v in variants
        ):
            return content, 1
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        _log.info("%s is damaged and will be written again", path)
    return {"format": "topcoat-verified", "format_version": 1, "variants": []}, 1


def _text(path: Path, content: dict[str, Any], indent: int) -> str:
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
        text.encode()
    except ValueError as error:  # NaN, or half a character
        raise BundleError(
            f"{path} holds what JSON cannot say ({error}); export the bundle again"
        ) from error
    return text


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process or thread changes the file, and keep them waiting.

    The system gives the lock back when a process ends, however it ends.
    """
    if sys.platform == "win32":  # folders cannot be locked; this file goes with its last handle
        flags, place = os.O_CREAT | os.O_RDWR | os.O_TEMPORARY, path.with_name(".manifest.lock")
    else:
        flags, place = os.O_RDONLY, path.parent
    try:
        descriptor = os.open(place, flags)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from error
    try:
        try:
            _lock(descriptor)
        except OSError as error:  # some network file systems have no locks
            _log.warning(
                "%s cannot be locked (%s); let no other `topcoat verify` record in it meanwhile",
                path,
                error.strerror or error,
            )
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a name beside a file; whatever is there in the end is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield temporary
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _cannot_write(path: Path, why: str) -> BundleWriteError:
    return BundleWriteError(
        f"{path} cannot be written ({why}), so nothing was recorded; copy the bundle to where it"
        " can be, or measure without recording (--dry-run, record=False)"
    )
