"""Where a network to export comes from: one class for all of them, and what recognises a file.

The exporter proves engines equal to a *source*: a network that answers frames, a way to make ONNX
of it, and what is known of its origin. A further kind of file is one module that makes a
:class:`Source` of it and one line in :func:`open_source`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from topcoat.export.onnx_from_checkpoint import Precision, onnx_from_network
from topcoat.train import Checkpoint, load_checkpoint
from topcoat.train.networks import FrameNetwork
from topcoat.train.pictures import file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A network, and what the bundle's manifest and card say of it."""

    network: FrameNetwork
    """The reference that every engine is compared with: float32, evaluation mode, on the CPU."""
    task: str
    """``style``, ``super-resolution`` or ``texture``."""
    name: str
    """Of the network's architecture, e.g. ``johnson``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """... and what it was built with."""
    parameters: int
    """Number of trained values."""
    to_onnx: Callable[[Precision], onnx.ModelProto]
    """Make the graph of the frame contract, as :func:`onnx_from_network` does."""
    sha256: str | None = None
    """Of the file that it was read from."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, as the checkpoint says; empty for a network from elsewhere."""
    step: int | None = None
    style: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    notes: Sequence[str] = ()
    """Sentences for the card, e.g. where a network from elsewhere comes from."""

    def origin(self) -> dict[str, Any]:
        """What the manifest's ``checkpoint`` holds."""
        origin: dict[str, Any] = {
            "network": {"name": self.name, "settings": dict(self.settings)},
        }
        if self.step is not None:
            origin = {"step": self.step, "recipe": self.recipe.get("name"), **origin}
        if self.sha256 is not None:
            origin["sha256"] = self.sha256
        return origin


def source_from_checkpoint(checkpoint: Checkpoint, sha256: str | None = None) -> Source:
    """Take a network that Topcoat trained.

    Args:
        checkpoint: what ``train-style``, ``train-sr`` or ``train-texture`` wrote.
        sha256: of its file.

    Raises:
        topcoat.train.CheckpointError: the weights do not fit the network.
    """
    network = checkpoint.build_network()
    return Source(
        network=network,
        task=checkpoint.task,
        name=str(checkpoint.network["name"]),
        settings=dict(checkpoint.network["settings"]),
        parameters=sum(tensor.numel() for tensor in checkpoint.weights.values()),
        to_onnx=lambda precision: onnx_from_network(network, precision, task=checkpoint.task),
        sha256=sha256,
        recipe=checkpoint.recipe,
        step=checkpoint.step,
        style=checkpoint.style,
        history=checkpoint.history,
    )


def open_source(path: str | os.PathLike[str]) -> Source:
    """Read a file that holds a network; nothing in it is executed.

    Raises:
        topcoat.train.CheckpointError: it holds no network that is known, and the text says why.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path)
    return source_from_checkpoint(checkpoint, file_sha256(path))
