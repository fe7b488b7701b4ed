"""Recipes of style training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from topcoat.train._errors import RecipeError
from topcoat.train.recipes._base import Recipe, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleRecipe(Recipe):
    """Everything that decides a style network; stored whole in its checkpoint."""

    network_fields: ClassVar[Mapping[str, Sequence[str]]] = {
        "johnson": ("form", "width", "blocks", "upsampling", "norm")
    }

    name: str = setting("modern", "name of the recipe that the run started from")

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

    loss_network: Literal["vgg16", "vgg19"] = setting(
        "vgg16", "network whose features are compared"
    )
    loss_input: Literal["auto", "oxford", "imagenet"] = setting(
        "auto",
        "input that the loss weights want: oxford (0-255, mean subtracted; auto for vgg16) or "
        "imagenet (torchvision's own; auto for vgg19)",
    )
    content_layer: str = setting("relu3_3", "layer whose features the output keeps")
    style_layers: tuple[str, ...] = setting(
        ("relu1_2", "relu2_2", "relu3_3"), "layers whose Gram matrices the output takes on"
    )
    loss_scale: Literal["relative", "absolute"] = setting(
        "relative",
        "relative: errors as shares of the target's energy, so weights carry over between styles",
    )
    content_weight: float = setting(1.0, "weight of the content loss")
    style_weight: float = setting(10.0, "weight of the style loss")
    strength: float = setting(1.0, "multiplies the style weight: the knob to turn per picture")
    tv_weight: float = setting(25.0, "weight of total variation")
    tv_form: Literal["mean", "paper"] = setting("mean", "how total variation is summed")

    style_size: int = setting(
        512, "longer side of the style picture in pixels: sets the stroke size"
    )
    crop: int = setting(256, "side of the square training pictures in pixels; a multiple of 4")
    fit: Literal["crop", "squash"] = setting(
        "crop",
        "crop: random crop and mirror, aspect kept; squash: whole picture to a square, as in 2016",
    )

    steps: int = setting(4000, "optimiser steps")
    batch: int = setting(4, "pictures per step, over all processes")
    learning_rate: float = setting(2e-3, "Adam's step size at its highest")
    schedule: Literal["constant", "cosine"] = setting(
        "cosine", "cosine: short warm-up, then down to zero by the last step"
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "auto: bf16 autocast where the processor computes in it, else fp32"
    )
    seed: int = setting(0, "seeds the weights, the order of pictures and their crops")

    def __post_init__(self) -> None:
        self.check("content_weight", "style_weight", "strength", "tv_weight")
        if self.crop % 4 or self.crop < 16:
            raise RecipeError(
                f"crop must be a multiple of 4 of at least 16, got {self.crop}; "
                f"try {max(16, self.crop & ~3)}"
            )
        if not 64 <= self.style_size <= 4096:
            raise RecipeError(
                f"style_size must be 64 to 4096 pixels, got {self.style_size}; try 512"
            )
        if self.form == "paper" and self.crop <= 8 * self.blocks:
            raise RecipeError(
                f"crop must exceed 8 times the blocks in the paper's form, which pads by that, "
                f"got {self.crop} for {self.blocks} blocks; try {8 * self.blocks + 24 & ~3}"
            )
        if not self.style_layers:
            raise RecipeError("style_layers must name at least one layer, such as relu2_2")
        if len(set(self.style_layers)) != len(self.style_layers):
            raise RecipeError(f"style_layers names a layer twice: {', '.join(self.style_layers)}")

    def layers(self) -> tuple[str, ...]:
        """Every layer of the loss network that the objective reads."""
        return tuple(dict.fromkeys((*self.style_layers, self.content_layer)))


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
