"""Train networks that repaint frames: networks, losses, recipes, data, one training loop."""

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
