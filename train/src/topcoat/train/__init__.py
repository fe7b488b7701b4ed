"""Train networks that repaint frames: networks, losses, recipes, data, one training loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from topcoat.train._errors import (
    CheckpointError,
    ContentError,
    DivergenceError,
    LossWeightsError,
    OutputError,
    PictureError,
    RecipeError,
    TopcoatError,
)

if TYPE_CHECKING:
    from topcoat.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ContentError",
    "DivergenceError",
    "LossWeightsError",
    "OutputError",
    "PictureError",
    "RecipeError",
    "TopcoatError",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module holds
    """Load what needs torch on first use: a command's ``--help`` must not wait for it."""
    if name in ("Checkpoint", "load_checkpoint", "save_checkpoint"):
        return getattr(import_module("topcoat.train.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
