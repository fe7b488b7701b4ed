"""The checkpoint file: what training leaves behind, and what export reads.

One dictionary of plain values and tensors, so that ``torch.load(weights_only=True)`` reads it and
nothing in it can run. Written to a temporary name, flushed to the disk and renamed: a kill, a
power cut or a full disk at any moment leaves the last complete file.
"""

import errno
import os
import pickle
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topcoat.train._errors import CheckpointError, OutputError
from topcoat.train._files import written_whole
from topcoat.train.networks import NETWORKS, FrameNetwork, build_network

FORMAT = "topcoat-checkpoint"
FORMAT_VERSION = 1
_REQUIRED = {
    "task": str,
    "network": dict,
    "weights": dict,
    "recipe": dict,
    "step": int,
    "history": list,
    "style": dict,
    "versions": dict,
}


_WANTED = "give a file that train-style or train-sr wrote"


@dataclass(kw_only=True)
class Checkpoint:
    """A trained, or half-trained, network and everything needed to repeat or continue its run."""

    task: str
    """``style`` or ``super-resolution``."""
    network: dict[str, Any]
    """``{"name": "johnson", "settings": {...}}``."""
    weights: dict[str, Tensor]
    """The network's state dict, float32, on the CPU."""
    recipe: dict[str, Any]
    """The resolved recipe: every field, whether it came from the recipe or the command line."""
    step: int
    """Training steps done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per logged step: ``step``, ``total`` and the parts of the loss, ``learning_rate``,
    and ``seconds`` of training so far."""
    style: dict[str, Any] = field(default_factory=dict)
    """``name``, ``sha256`` and pixel ``size`` of the style picture."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of topcoat-train, torch and Python that wrote the file."""
    state: dict[str, Any] | None = None
    """Optimiser, random state and targets that only ``--resume`` needs; None in a file to ship."""

    def build_network(self) -> FrameNetwork:
        """Build the trained network: float32, evaluation mode, on the CPU.

        Raises:
            CheckpointError: the weights are not those of the network that the file names.
        """
        try:
            network = build_network(self.network["name"], self.network["settings"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's network settings cannot be used ({error}); train again"
            ) from None
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1:2]
            raise CheckpointError(
                f"the checkpoint's weights do not fit its network {self.network['name']!r} "
                f"({''.join(first).strip()}); train or export it again"
            ) from None
        return network.eval()


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint so that ``path`` holds either the old file or the complete new one.

    Raises:
        OutputError: it could not be written (disk full, no permission); ``path`` is untouched.
    """
    path = Path(path)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{name: getattr(checkpoint, name) for name in (*_REQUIRED, "state")},
    }
    try:
        with written_whole(path) as file:
            torch.save(content, file)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch's zip writer raises RuntimeError on a full disk
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        kept = "; the earlier checkpoint there is kept" if path.exists() else ""
        reason = getattr(error, "strerror", None) or "the disk is full or went away"
        raise OutputError(f"cannot write {path}: {reason}{kept}") from None


def check_writable(path: str | os.PathLike[str], option: str = "--output") -> None:
    """Find out before hours of work whether a file can be written to ``path``.

    Also removes what a killed process left of an unfinished write to the same name.

    Args:
        path: of the file; folders on the way are made.
        option: that another place is given with, for the message.

    Raises:
        OutputError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file's name with {option}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.*.part"):
            stale.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; give another place with {option}"
        ) from None


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed.

    Raises:
        CheckpointError: no such file, or not a checkpoint of Topcoat's, or one cut short, or one
            of a newer format.
    """
    path = Path(path)
    if path.is_dir():
        hint = "; a bundle is already exported" if path.suffix == ".topcoat" else ""
        raise CheckpointError(f"{path} is a folder, not a checkpoint; give a .pt file{hint}")
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; train one with train-style or train-sr")
    content = _read(path)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        kind = "another project's weights" if isinstance(content, Mapping) else "something else"
        raise CheckpointError(f"{path} is not a Topcoat checkpoint but {kind}; {_WANTED}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version!r}, this version reads {FORMAT_VERSION}; "
            "update topcoat-train"
        )
    for name, kind_wanted in _REQUIRED.items():
        if not isinstance(content.get(name), kind_wanted):
            raise CheckpointError(
                f"{path} is damaged: {name!r} is missing or not a {kind_wanted.__name__}; "
                "use an earlier copy or train again"
            )
    entries: dict[str, Any] = {name: content.get(name) for name in (*_REQUIRED, "state")}
    checkpoint = Checkpoint(**entries)
    network = checkpoint.network
    if str(network.get("name")) not in NETWORKS or not isinstance(network.get("settings"), dict):
        raise CheckpointError(
            f"{path} names the network {network.get('name')!r}, which this version does not have; "
            "update topcoat-train"
        )
    if not all(isinstance(value, Tensor) for value in checkpoint.weights.values()):
        raise CheckpointError(f"{path} is damaged: its weights are not tensors; train again")
    return checkpoint


def _read(path: Path) -> object:
    wanted = _WANTED
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to programmers about foreign files
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            is_pickle = file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if is_pickle or "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds Python objects that would run code when loaded; nothing was run; "
                f"{wanted}"
            ) from None
        raise CheckpointError(f"{path} is not a checkpoint, or was cut short; {wanted}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        # What torch raises for a truncated zip, for text, for noise: many types, one meaning.
        raise CheckpointError(f"{path} is not a checkpoint, or was cut short; {wanted}") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to before the start: the end of the zip is gone
            raise CheckpointError(f"{path} was cut short; {wanted}") from None
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the file") from None
