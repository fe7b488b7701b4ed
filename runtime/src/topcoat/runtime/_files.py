"""Write a file whole or not at all, and keep outputs from landing on inputs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from topcoat.runtime._errors import MediaError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it when the block ends well, else remove it.

    The temporary name ends like ``path``, because encoders choose the format by the ending. Removed
    on every exception, Ctrl-C included.
    """
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise MediaError(
            f"{path} cannot be written ({error.strerror or error}); check the folder and free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def prepare_output(source: Path | None, target: Path, *, force: bool) -> Path:
    """Make the folder of an output file.

    Args:
        source: the input file; None if there is none.
        target: the output file, or an existing folder that is to hold one of the input's name.
        force: whether an existing file may be replaced.

    Returns:
        The output file's path.

    Raises:
        MediaError: the output is the input, exists and ``force`` is not set, or its folder cannot
            be made; or it is a folder, and there is no input to be named after.
    """
    if target.is_dir():
        if source is None:
            raise MediaError(f"{target} is a folder; give a file name such as {target / 'OUT.png'}")
        target = target / source.name
    if target.exists():
        if source is not None and target.samefile(source):
            raise MediaError(f"{target} is the input itself; give another OUT")
        if not force:
            raise MediaError(f"{target} exists; pass --force to replace it, or give another OUT")
    make_folder(target.parent)
    return target


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        MediaError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(
            f"the folder {path} cannot be made ({error.strerror}); give another OUT"
        ) from error


def cache_folder(part: str) -> Path | None:
    """Return where a part keeps what it can make again, or None if the user has no such folder."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA")
        return Path(root) / "topcoat" / part if root else None
    root = os.environ.get("XDG_CACHE_HOME")
    if root and Path(root).is_absolute():  # the specification has relative ones ignored
        return Path(root) / "topcoat" / part
    try:
        return Path.home() / ".cache" / "topcoat" / part
    except RuntimeError:  # the user has no home
        return None
