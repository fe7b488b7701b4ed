"""Recipes of super-resolution."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from topcoat.train._errors import RecipeError
from topcoat.train.recipes._base import TrainingRecipe, setting

_NETWORK_FIELDS = {
    "residual-sr": ("scale", "width", "blocks"),
    "johnson-sr": ("scale", "width", "blocks", "norm"),
    "srcnn": ("scale", "width", "kernels"),
}


def check_blur(blur: float) -> None:
    """Check the σ of the Gaussian before shrinking, in pixels.

    Raises:
        RecipeError: it is neither 0, which means no blur, nor from 0.1 to 16.
    """
    if blur != 0 and not 0.1 <= blur <= 16:
        raise RecipeError(f"blur must be 0 or from 0.1 to 16 pixels, got {blur}; try 0 or 1")


@dataclass(frozen=True, kw_only=True)
class SuperResolutionRecipe(TrainingRecipe):
    """Everything that decides a super-resolution network; stored whole in its checkpoint."""

    title: ClassVar[str] = "network and data"

    network_fields: ClassVar[Mapping[str, Sequence[str]]] = _NETWORK_FIELDS

    network: Literal["residual-sr", "johnson-sr", "srcnn"] = setting(
        "residual-sr",
        "residual-sr: detail over a bicubic enlargement; johnson-sr: as published in 2016; "
        "srcnn: the three-layer baseline",
    )
    scale: Literal[2, 4, 8] = setting(4, "output pixels per input pixel, along each axis")
    width: int = setting(48, "channels (of SRCNN's first layer); time grows with its square")
    blocks: int = setting(5, "residual blocks; not for srcnn")
    norm: Literal["batch", "none"] = setting("batch", "normalisation layers of johnson-sr")
    kernels: Literal["9-1-5", "9-3-5", "9-5-5"] = setting("9-5-5", "filter sides of srcnn")

    loss: Literal["pixel", "feature", "mix"] = setting(
        "mix",
        "pixel: closest picture, soft; feature: closest VGG features, sharp; mix: both",
    )
    pixel_form: Literal["l1", "l2"] = setting(
        "l1", "pixel loss: mean absolute or mean squared difference"
    )
    pixel_weight: float = setting(1.0, "weight of the pixel loss")
    feature_weight: float = setting(1.0, "weight of the feature loss")
    feature_layer: str = setting("relu2_2", "layer of the loss network whose features are compared")
    feature_filter: Literal["none", "binomial"] = setting(
        "none",
        "binomial: compare features of pictures less their highest frequency, where max pooling "
        "would reward a grid; none: as published",
    )
    loss_scale: Literal["relative", "absolute"] = setting(
        "relative",
        "relative: pixels in [0, 1], feature errors as shares of the target's energy; absolute: "
        "pixels in 0-255, feature errors as they are, as published",
    )

    blur: float = setting(
        0.0,
        "sigma in pixels of the Gaussian before shrinking: 0 as most tables, 1 as Johnson et al.",
    )
    patch: int = setting(192, "side of the training patches at high resolution, in pixels")

    steps: int = setting(6000, "optimiser steps")
    batch: int = setting(8, "patches per step, over all processes")
    learning_rate: float = setting(1e-3, "Adam's step size at its highest")
    seed: int = setting(0, "seeds the weights, the order of pictures and their patches")

    def __post_init__(self) -> None:
        self.check("pixel_weight", "feature_weight", "tv_weight")
        if self.patch % self.scale or self.patch < 8 * self.scale:
            least = 8 * self.scale
            raise RecipeError(
                f"patch must be a multiple of the scale, {self.scale}, of at least {least} pixels, "
                f"got {self.patch}; try {max(least, self.patch // self.scale * self.scale)}"
            )
        check_blur(self.blur)
        terms = {"pixel": ("pixel",), "feature": ("feature",), "mix": ("pixel", "feature")}
        weights = [f"{term}_weight" for term in terms[self.loss]]
        if not any(getattr(self, weight) for weight in weights):
            raise RecipeError(
                f"{' and '.join(weights)} must not be zero for loss {self.loss}: nothing would be "
                "learnt; leave the option out"
            )

    def idle_fields(self) -> set[str]:
        """Fields that this recipe's network or loss has no use for."""
        idle = super().idle_fields()
        if self.loss == "pixel":
            idle |= {
                "feature_weight",
                "feature_layer",
                "feature_filter",
                "loss_network",
                "loss_input",
            }
        if self.loss == "feature":
            idle |= {"pixel_form", "pixel_weight"}
        return idle if self.tv_weight else idle | {"tv_form"}

    def layers(self) -> tuple[str, ...]:
        """Every layer of the loss network that the objective reads: none for a pixel loss."""
        return () if self.loss == "pixel" else (self.feature_layer,)


SR_RECIPES: dict[str, SuperResolutionRecipe] = {
    "modern": SuperResolutionRecipe(name="modern", feature_weight=0.1, feature_filter="binomial"),
    "johnson2016-sr": SuperResolutionRecipe(
        name="johnson2016-sr",
        network="johnson-sr",
        width=64,
        blocks=4,
        loss="feature",
        pixel_form="l2",
        loss_scale="absolute",
        tv_weight=1e-6,
        tv_form="paper",
        blur=1.0,
        patch=288,
        steps=200_000,
        batch=4,
        learning_rate=1e-3,
        schedule="constant",
        precision="fp32",
    ),
    "srcnn": SuperResolutionRecipe(
        name="srcnn",
        network="srcnn",
        width=64,
        loss="pixel",
        pixel_form="l2",
        patch=96,
        batch=16,
        steps=10_000,
        precision="fp32",
    ),
}
"""Name -> recipe."""
