"""Where an evaluation's results go; nothing that it reads, or writes twice, is replaced.

Nothing here imports torch: mistakes are answered at once.
"""

import os
import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from topcoat.train._errors import OutputError
from topcoat.train._files import written_whole

if TYPE_CHECKING:
    from topcoat.train.evaluation import PictureSet

ORIGINAL, LOW_RESOLUTION = "original", "low-resolution"
"""Folders of pictures, beside those of the methods."""


def check_file(option: str, path: Path, endings: tuple[str, ...], advice: str, force: bool) -> None:
    """Refuse a result file by its name alone.

    Raises:
        OutputError: a folder, another ending, or it exists and ``force`` is not given.
    """
    with _looking(option):
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name with {option}")
        if not path.name.lower().endswith(endings):
            raise OutputError(f"{option} {path} does not end in {endings[0]}; {advice}")
        if path.exists() and not force:
            raise OutputError(f"{path} exists; replace it with --force, or give another {option}")


def check_folder(path: Path, originals: Path, kinds: Iterable[str], force: bool) -> None:
    """Refuse a folder of pictures that lies below the originals, or they below what it will hold.

    Raises:
        OutputError: it does, or it is a file, or not empty and ``force`` is not given.
    """
    with _looking("--output"):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file; give a folder with --output")
        if _lies_in(path, originals):
            raise OutputError(
                f"{path} lies below {originals}, where the next run would take outputs for "
                "originals; give another --output"
            )
        for kind in kinds:
            if _lies_in(originals, path / kind):
                raise OutputError(
                    f"the originals lie in {path / kind}, where this run would write its own "
                    "pictures; give another --output"
                )
        if path.is_dir() and any(path.iterdir()) and not force:
            raise OutputError(
                f"{path} is not empty; write into it with --force, or give another --output"
            )


def picture_file(folder: Path, kind: str, name: str) -> Path:
    """``a/b.jpg`` becomes ``KIND/a/b.jpg.png``; what is a PNG already keeps its name."""
    return folder / kind / (name if name.lower().endswith(".png") else f"{name}.png")


def picture_files(
    folder: Path, kinds: Iterable[str], names: Collection[str]
) -> Iterator[tuple[str, Path]]:
    """Yield what :func:`save_pictures` will write for these pictures, each with a name."""
    for kind in kinds:
        for name in names:
            yield f"{kind} of {name}", picture_file(folder, kind, name)


def check_targets(targets: Collection[tuple[str, Path]], inputs: Iterable[Path]) -> None:
    """Make sure that all results can stand side by side, and that none takes an input's place.

    Args:
        targets: of every file that will be written, what it is and its path.
        inputs: files that the run reads.

    Raises:
        OutputError: one of them is an input, under whatever name; two are the same file, also on
            a disk where upper and lower case are the same; one would lie in another; or something
            stands where it should go.
    """
    taken: dict[str, tuple[str, Path]] = {}
    for what, path in targets:
        other = taken.setdefault(_key(path), (what, path))
        if other[0] != what:
            same = "" if other[1] == path else f", which some disks take for {other[1]}"
            raise OutputError(
                f"{other[0]} and {what} would meet in one file, {path}{same}; rename one of them, "
                "a model with --model NAME=FILE"
            )
    read = {}
    with _looking("--output, --page or --json"):
        for path in inputs:
            found = path.stat()
            read[found.st_dev, found.st_ino] = path
        for what, path in targets:
            if path.is_dir():
                raise OutputError(f"{path}, where {what} should go, is a folder; remove it")
            if path.exists():
                found = path.stat()
                if source := read.get((found.st_dev, found.st_ino)):
                    raise OutputError(
                        f"{what} would replace {source}, which this run reads; write it elsewhere"
                    )
        for parent in {path.parent for _, path in targets}:
            for above in (parent, *parent.parents):
                if clash := taken.get(_key(above)):
                    raise OutputError(f"{above} cannot be both {clash[0]} and a folder; rename one")
                if above.exists() and not above.is_dir():
                    raise OutputError(f"cannot write to {parent}: {above} is a file; remove it")


def make_folder(path: Path, option: str) -> None:
    """Make a folder and make sure that it can be written to.

    Raises:
        OutputError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {path}: {error.strerror}; give another place with {option}"
        ) from None


def save_pictures(folder: Path, name: str, pictures: "PictureSet") -> None:
    """Write one picture of every kind as PNG.

    Raises:
        OutputError: it cannot be written.
    """
    from PIL import Image

    everything = {
        ORIGINAL: pictures.original,
        LOW_RESOLUTION: pictures.low_resolution,
        **pictures.outputs,
    }
    for kind, picture in everything.items():
        path = picture_file(folder, kind, name)
        with _writing(path), written_whole(path) as file:
            Image.fromarray(picture).save(file, format="png")


def save_text(path: Path, text: str) -> None:
    """Write a file of text, UTF-8.

    Raises:
        OutputError: it cannot be written.
    """
    with _writing(path), written_whole(path) as file:
        file.write(text.encode())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _looking(option: str) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot look at {error.filename}: {error.strerror}; give another place with {option}"
        ) from None


def _lies_in(inner: Path, outer: Path) -> bool:
    """Also where links lead there, or another spelling on a disk that ignores case."""
    if not outer.exists():
        return False
    inner = inner.resolve()
    return any(above.exists() and above.samefile(outer) for above in (inner, *inner.parents))


def _key(path: Path) -> str:
    """The same for all spellings that some disk takes for one file."""
    return unicodedata.normalize("NFC", os.path.abspath(path)).casefold()  # noqa: PTH100
