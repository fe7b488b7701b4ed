"""What every kind of file becomes: a network, and what is known of its origin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx

from topcoat.export._errors import SourceError
from topcoat.export.onnx_from_checkpoint import Precision, onnx_from_network
from topcoat.train.networks import FrameNetwork

__all__ = ["Source", "SourceError", "ToOnnx", "to_onnx_of"]


class ToOnnx(Protocol):
    """Makes the graph of the frame contract, as :func:`onnx_from_network` does."""

    def __call__(
        self, precision: Precision = "fp32", *, keep_fp32: Sequence[str] = ()
    ) -> onnx.ModelProto:
        """Make it in a precision, but for the layers that are to stay float32.

        Raises:
            SourceError: this source has no such graph.
        """


def to_onnx_of(network: FrameNetwork, task: str) -> ToOnnx:
    """Export a network of PyTorch's."""

    def to_onnx(precision: Precision = "fp32", *, keep_fp32: Sequence[str] = ()) -> onnx.ModelProto:
        return onnx_from_network(network, precision, task=task, keep_fp32=keep_fp32)

    return to_onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A network, and what the bundle's manifest and card say of it."""

    network: FrameNetwork
    """The reference that every engine is compared with: float32, evaluation mode, on the CPU."""
    task: str
    """``style``, ``super-resolution``, ``texture``, ``restoration``, or ``image-to-image`` where
    nobody said what is done to a picture of unchanged size."""
    name: str
    """Of the network's architecture, e.g. ``johnson``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """... and what it was built with."""
    parameters: int
    """Number of trained values."""
    to_onnx: ToOnnx
    sha256: str | None = None
    """Of the file that it was read from."""
    kind: str | None = None
    """Whose file it is, if not Topcoat's: ``fast-neural-style``, ``spandrel`` or ``onnx``."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, as the checkpoint says; empty for a network from elsewhere."""
    step: int | None = None
    style: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    notes: Sequence[str] = ()
    """Sentences for the card, e.g. where a network from elsewhere comes from."""

    @property
    def in_torch(self) -> bool:
        """Whether the network is one of PyTorch's, whose layers can be looked into and typed."""
        return self.kind != "onnx"

    def origin(self) -> dict[str, Any]:
        """What the manifest's ``checkpoint`` holds."""
        origin: dict[str, Any] = {
            "network": {"name": self.name, "settings": dict(self.settings)},
        }
        if self.kind is not None:
            origin = {"kind": self.kind, **origin, "notes": list(self.notes)}
        if self.step is not None:
            origin = {"step": self.step, "recipe": self.recipe.get("name"), **origin}
        if self.sha256 is not None:
            origin["sha256"] = self.sha256
        return origin
