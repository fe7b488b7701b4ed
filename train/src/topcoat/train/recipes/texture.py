"""Recipes of texture training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from topcoat.train._errors import RecipeError
from topcoat.train.recipes._base import TrainingRecipe, setting
from topcoat.train.recipes.perceptual import PerceptualRecipe


@dataclass(frozen=True, kw_only=True)
class TextureRecipe(TrainingRecipe, PerceptualRecipe):
    """Everything that decides a texture network; stored whole in its checkpoint."""

    title: ClassVar[str] = "network and data"

    without: ClassVar[tuple[str, ...]] = ("content_layer", "content_weight")

    network_fields: ClassVar[Mapping[str, Sequence[str]]] = {
        "ulyanov": ("scales", "width", "norm", "activation", "upsampling")
    }

    network: Literal["ulyanov"] = setting("ulyanov", "texture network")
    scales: int = setting(
        4, "sizes the noise is read at, each half the one before: decides the largest features"
    )
    width: int = setting(8, "channels per scale; time grows with its square")
    norm: Literal["batch", "instance"] = setting(
        "batch", "normalisation layers; batch makes a texture whose every part is its noise's alone"
    )
    activation: Literal["leaky", "relu"] = setting("leaky", "leaky: slope 0.01 below zero")
    upsampling: Literal["nearest", "bilinear"] = setting(
        "nearest", "from a coarser scale to the next; nearest as published"
    )

    loss_pooling: Literal["max", "average"] = setting(
        "average", "pooling of the loss network; max rewards a dither in flat areas"
    )
    content_weight: float = setting(0.0, "weight of the content loss: a texture has none")
    style_layers: tuple[str, ...] = setting(
        ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu3_3"),
        "layers whose Gram matrices the texture takes on",
    )
    histogram_samples: int = setting(
        16384, "pixels per layer and step that the histogram loss looks at, drawn anew; 0: all"
    )
    diversity_weight: float = setting(
        0.0,
        "weight of the mean log distance to the nearest other texture of the batch, to be made "
        "larger; 0: leave it to the noise",
    )

    texture_size: int = setting(
        256, "longer side of the texture picture in pixels: sets the size of its features"
    )
    sample_size: int = setting(
        128, "side of the textures made in training, in pixels; a multiple of 2**(scales-1)"
    )

    steps: int = setting(1000, "optimiser steps")
    batch: int = setting(1, "textures per step, over all processes")
    learning_rate: float = setting(3e-2, "Adam's step size at its highest")
    seed: int = setting(0, "seeds the weights and the noise")

    def __post_init__(self) -> None:
        self.check(
            "content_weight",
            "style_weight",
            "strength",
            "histogram_weight",
            "tv_weight",
            "diversity_weight",
        )
        self.check_objective()
        if self.content_weight:
            raise RecipeError(
                f"content_weight must be 0 for a texture, which has no photograph, "
                f"got {self.content_weight}"
            )
        if not (self.uses_style() or self.uses_histogram()):
            raise RecipeError(
                "style_weight and histogram_weight are both 0: nothing would be learnt; "
                "give one of them"
            )
        check_scales("sample_size", self.sample_size, self.scales)
        if not 64 <= self.texture_size <= 4096:
            raise RecipeError(
                f"texture_size must be 64 to 4096 pixels, got {self.texture_size}; try 256"
            )
        if self.diversity_weight and self.batch < 2:
            raise RecipeError(
                f"batch must be at least 2 for the diversity term, which compares the textures of "
                f"a batch, got {self.batch}; try 4, or diversity_weight 0"
            )

    def network_settings(self) -> dict[str, Any]:
        """The part that :func:`topcoat.train.networks.build_network` takes."""
        return {**super().network_settings(), "content": False, "padding": "circular"}


def check_scales(name: str, size: int, scales: int) -> None:
    """Check the number of scales of a pyramid, and a side in pixels against what it takes.

    Raises:
        RecipeError: not 1 to 7 scales; or no multiple of 2**(scales-1), below 2**scales or 16.
    """
    if not 1 <= scales <= 7:
        raise RecipeError(f"scales must be 1 to 7, got {scales}; try 5")
    multiple, least = 2 ** (scales - 1), max(16, 2**scales)
    if size % multiple or size < least:
        raise RecipeError(
            f"{name} must be a multiple of {multiple} of at least {least} for {scales} scales, "
            f"got {size}; try {max(least, size // multiple * multiple)}"
        )


_PAPER_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

TEXTURE_RECIPES: dict[str, TextureRecipe] = {
    "modern": TextureRecipe(name="modern"),
    "ulyanov2016": TextureRecipe(
        name="ulyanov2016",
        scales=5,
        sample_size=256,
        loss_pooling="max",
        loss_network="vgg19",
        style_layers=_PAPER_LAYERS,
        loss_scale="absolute",
        style_weight=1.0,
        batch=16,
        steps=2000,
        learning_rate=0.1,
        schedule="ulyanov2016",
        precision="fp32",
    ),
    "ulyanov2017": TextureRecipe(
        name="ulyanov2017",
        scales=5,
        sample_size=256,
        loss_pooling="max",
        norm="instance",
        activation="relu",
        loss_network="vgg19",
        style_layers=_PAPER_LAYERS,
        diversity_weight=0.1,
        batch=4,
        steps=10_000,
        learning_rate=1e-3,
        schedule="ulyanov2017",
        precision="fp32",
    ),
}
"""Name -> recipe. Data, not code."""
