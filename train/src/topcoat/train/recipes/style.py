"""Recipes of style training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from topcoat.train._errors import RecipeError
from topcoat.train.recipes._base import TrainingRecipe, setting
from topcoat.train.recipes.perceptual import PerceptualRecipe


@dataclass(frozen=True, kw_only=True)
class StyleRecipe(TrainingRecipe, PerceptualRecipe):
    """Everything that decides a style network; stored whole in its checkpoint."""

    title: ClassVar[str] = "network and data"

    network_fields: ClassVar[Mapping[str, Sequence[str]]] = {
        "johnson": ("form", "width", "blocks", "upsampling", "norm")
    }

    network: Literal["johnson"] = setting("johnson", "transform network")
    form: Literal["modern", "paper"] = setting(
        "modern", "modern: pad per convolution, nearest upsampling; paper: as published in 2016"
    )
    width: int = setting(32, "channels at full size; time grows with its square")
    blocks: int = setting(5, "residual blocks at quarter size")
    upsampling: Literal["nearest", "bilinear"] = setting(
        "bilinear", "before a convolution, in the modern form; nearest leaves a 4-pixel grid"
    )
    norm: Literal["instance", "batch"] = setting("instance", "normalisation layers")

    tv_weight: float = setting(25.0, "weight of total variation")
    histogram_samples: int = setting(
        16384, "pixels per layer and step that the histogram loss looks at, drawn anew; 0: all"
    )

    style_size: int = setting(
        512, "longer side of the style picture in pixels: sets the stroke size"
    )
    crop: int = setting(256, "side of the square training pictures in pixels; a multiple of 4")
    fit: Literal["crop", "squash"] = setting(
        "crop",
        "crop: random crop and mirror, aspect kept; squash: whole picture to a square, as in 2016",
    )

    def __post_init__(self) -> None:
        self.check("content_weight", "style_weight", "strength", "histogram_weight", "tv_weight")
        self.check_objective()
        if self.crop % 4 or self.crop < 16:
            raise RecipeError(
                f"crop must be a multiple of 4 of at least 16, got {self.crop}; "
                f"try {max(16, self.crop & ~3)}"
            )
        check_style_size(self.style_size)
        if self.form == "paper" and self.crop <= 8 * self.blocks:
            raise RecipeError(
                f"crop must exceed 8 times the blocks in the paper's form, which pads by that, "
                f"got {self.crop} for {self.blocks} blocks; try {8 * self.blocks + 24 & ~3}"
            )


def check_style_size(size: int) -> None:
    """Check the longer side of a style picture in pixels.

    Raises:
        RecipeError: it is not from 64 to 4096.
    """
    if not 64 <= size <= 4096:
        raise RecipeError(f"style_size must be 64 to 4096 pixels, got {size}; try 512")


STYLE_RECIPES: dict[str, StyleRecipe] = {
    "modern": StyleRecipe(name="modern"),
    "johnson2016": StyleRecipe(
        name="johnson2016",
        form="paper",
        norm="batch",
        style_layers=("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        loss_scale="absolute",
        content_weight=1.0,
        style_weight=5.0,
        tv_weight=1e-6,
        tv_form="paper",
        style_size=256,
        fit="squash",
        steps=40_000,
        learning_rate=1e-3,
        schedule="constant",
        precision="fp32",
    ),
}
"""Name -> recipe. Data, not code: two recipes differ in exactly the fields that
:func:`topcoat.train.recipes.difference` lists."""
