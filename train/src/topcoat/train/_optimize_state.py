"""The state of a half-done optimisation: written, read and compared; nothing in it is executed."""

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from topcoat.train._errors import CheckpointError, OutputError
from topcoat.train._files import written_whole
from topcoat.train.recipes import OptimizeRecipe

FORMAT = "topcoat-optimisation"
FORMAT_VERSION = 1
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError)


@dataclass(kw_only=True)
class State:
    """A half-done optimisation, as its file holds it."""

    path: Path
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    level: int
    """Index of the size that was being worked on."""
    minimiser: dict[str, Any]
    history: list[dict[str, float]]
    output: str
    seconds: float


def state_path(output: Path) -> Path:
    """Where the state of an optimisation lies until it is finished."""
    return output.with_suffix(".optimize.pt")


def save_state(
    output: Path,
    recipe: OptimizeRecipe,
    inputs: dict[str, Any],
    level: int,
    minimiser: dict[str, Any],
    history: list[dict[str, float]],
    seconds: float,
) -> Path:
    """Write the state of an optimisation beside its output; returns where.

    Raises:
        OutputError: it cannot be written; an earlier state there is kept.
    """
    path = state_path(output)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_dict(),
        "inputs": inputs,
        "level": level,
        "minimiser": minimiser,
        "history": history,
        "output": os.fspath(output.resolve()),
        "seconds": seconds,
    }
    try:
        with written_whole(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the disk is full or went away"
        raise OutputError(f"cannot write {path}: {reason}; free space or choose --output") from None
    return path


def load_state(path: Path) -> State:
    """Read a half-done optimisation; nothing in the file is executed.

    Raises:
        CheckpointError: it is not one, or damaged, or of a newer version.
    """
    wanted = "give the .optimize.pt file that optimize-image left"
    if not path.is_file():
        raise CheckpointError(f"nothing to resume at {path}; {wanted}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_UNREADABLE):
        raise CheckpointError(f"{path} cannot be resumed; {wanted}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a half-done optimisation; {wanted}")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {content.get('format_version')!r}, this version reads "
            f"{FORMAT_VERSION}; update topcoat-train"
        )
    try:
        return State(
            path=path,
            recipe=dict(content["recipe"]),
            inputs=dict(content["inputs"]),
            level=int(content["level"]),
            minimiser=dict(content["minimiser"]),
            history=list(content["history"]),
            output=str(content["output"]),
            seconds=float(content["seconds"]),
        )
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} is damaged; start again") from None


def check_same(state: State, inputs: dict[str, Any]) -> None:
    """Check that pictures and loss weights are those that a state was made from.

    Args:
        state: to be resumed.
        inputs: of the files as they are now.

    Raises:
        CheckpointError: a file changed.
    """
    try:
        files = zip(_files(state.inputs), _files(inputs), strict=True)
        changed = [now["path"] for known, now in files if known["sha256"] != now["sha256"]]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{state.path} is damaged; start again") from None
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)} is not what {state.path} was made with, so going on would "
            "not be the same optimisation; put it back, or start again"
        )


def _files(inputs: dict[str, Any]) -> Iterator[dict[str, str]]:
    for style in inputs["styles"]:
        yield {"path": style["source"], "sha256": style["sha256"]}
        yield from (style[name] for name in ("where", "part") if style[name])
    yield from (inputs[name] for name in ("content", "start", "loss_weights") if inputs[name])
