"""Recipes: named, frozen sets of every number that decides what a training run produces."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from topcoat.train._errors import RecipeError


def _setting(default: Any, reason: str) -> Any:  # noqa: ANN401 - a dataclass field of any type
    """A field with the reason for its existence, which --help and the docs print."""
    return field(default=default, metadata={"reason": reason})


def _choices(cls: type) -> dict[str, tuple[str, ...]]:
    """Fields whose value is one of a few words, read off their Literal type."""
    return {
        name: get_args(hint)
        for name, hint in get_type_hints(cls).items()
        if getattr(hint, "__origin__", None) is Literal
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleRecipe:
    """Everything that decides a style network; stored whole in its checkpoint."""

    name: str = _setting("modern", "name of the recipe that the run started from")

    network: str = _setting("johnson", "transform network")
    form: Literal["modern", "paper"] = _setting(
        "modern", "modern: pad per convolution, nearest upsampling; paper: as published in 2016"
    )
    width: int = _setting(32, "channels at full size; time grows with its square")
    blocks: int = _setting(5, "residual blocks at quarter size")
    upsampling: Literal["nearest", "bilinear"] = _setting(
        "bilinear", "before a convolution, in the modern form; nearest leaves a 4-pixel grid"
    )
    norm: Literal["instance", "batch"] = _setting("instance", "normalisation layers")

    loss_network: Literal["vgg16", "vgg19"] = _setting(
        "vgg16", "network whose features are compared"
    )
    loss_input: Literal["auto", "oxford", "imagenet"] = _setting(
        "auto",
        "input that the loss weights want: oxford (0-255, mean subtracted; auto for vgg16) or "
        "imagenet (torchvision's own; auto for vgg19)",
    )
    content_layer: str = _setting("relu3_3", "layer whose features the output keeps")
    style_layers: tuple[str, ...] = _setting(
        ("relu1_2", "relu2_2", "relu3_3"), "layers whose Gram matrices the output takes on"
    )
    loss_scale: Literal["relative", "absolute"] = _setting(
        "relative",
        "relative: errors as shares of the target's energy, so weights carry over between styles",
    )
    content_weight: float = _setting(1.0, "weight of the content loss")
    style_weight: float = _setting(10.0, "weight of the style loss")
    strength: float = _setting(1.0, "multiplies the style weight: the knob to turn per picture")
    tv_weight: float = _setting(25.0, "weight of total variation")
    tv_form: Literal["mean", "paper"] = _setting("mean", "how total variation is summed")

    style_size: int = _setting(
        512, "longer side of the style picture in pixels: sets the stroke size"
    )
    crop: int = _setting(256, "side of the square training pictures in pixels; a multiple of 4")
    fit: Literal["crop", "squash"] = _setting(
        "crop",
        "crop: random crop and mirror, aspect kept; squash: whole picture to a square, as in 2016",
    )

    steps: int = _setting(4000, "optimiser steps")
    batch: int = _setting(4, "pictures per step, over all processes")
    learning_rate: float = _setting(2e-3, "Adam's step size at its highest")
    schedule: Literal["constant", "cosine"] = _setting(
        "cosine", "cosine: short warm-up, then down to zero by the last step"
    )
    precision: Literal["auto", "fp32", "bf16"] = _setting(
        "auto", "auto: bf16 autocast where the processor computes in it, else fp32"
    )
    seed: int = _setting(0, "seeds the weights, the order of pictures and their crops")

    def __post_init__(self) -> None:
        for name, allowed in _choices(type(self)).items():
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.crop % 4 or self.crop < 16:
            raise RecipeError(
                f"crop must be a multiple of 4 of at least 16, got {self.crop}; "
                f"try {max(16, self.crop & ~3)}"
            )
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 64 <= self.style_size <= 4096:
            raise RecipeError(
                f"style_size must be 64 to 4096 pixels, got {self.style_size}; try 512"
            )
        if not 0 <= self.seed < 2**63:
            raise RecipeError(f"seed must be 0 or more and below 2**63, got {self.seed}")
        if self.form == "paper" and self.crop <= 8 * self.blocks:
            raise RecipeError(
                f"crop must exceed 8 times the blocks in the paper's form, which pads by that, "
                f"got {self.crop} for {self.blocks} blocks; try {8 * self.blocks + 24 & ~3}"
            )
        if not 0 < self.learning_rate < 1:
            raise RecipeError(
                f"learning_rate must lie in (0, 1), got {self.learning_rate}; try 1e-3"
            )
        for name in ("content_weight", "style_weight", "strength", "tv_weight"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise RecipeError(f"{name} must be 0 or more and finite, got {value}")
        if not self.style_layers:
            raise RecipeError("style_layers must name at least one layer, such as relu2_2")
        if len(set(self.style_layers)) != len(self.style_layers):
            raise RecipeError(f"style_layers names a layer twice: {', '.join(self.style_layers)}")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint or JSON."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StyleRecipe":
        """Undo :meth:`to_dict`.

        Raises:
            RecipeError: a field that this version does not know, or a value out of range.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise RecipeError(f"unknown recipe field {', '.join(unknown)}; update topcoat-train")
        plain: dict[str, Any]
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def network_settings(self) -> dict[str, Any]:
        """The part that :func:`topcoat.train.networks.build_network` takes."""
        return {name: getattr(self, name) for name in _NETWORK_FIELDS}

    def loss_convention(self) -> Literal["oxford", "imagenet"]:
        """``loss_input`` with ``auto`` resolved."""
        if self.loss_input == "auto":
            return "oxford" if self.loss_network == "vgg16" else "imagenet"
        return self.loss_input

    def layers(self) -> tuple[str, ...]:
        """Every layer of the loss network that the objective reads."""
        return tuple(dict.fromkeys((*self.style_layers, self.content_layer)))


_NETWORK_FIELDS = ("form", "width", "blocks", "upsampling", "norm")

RECIPES: dict[str, StyleRecipe] = {
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
:func:`difference` lists."""


def recipe(name: str) -> StyleRecipe:
    """Look a recipe up.

    Raises:
        RecipeError: no recipe of that name; the message lists them.
    """
    if name not in RECIPES:
        raise RecipeError(f"no recipe {name!r}; choose among {', '.join(RECIPES)}")
    return RECIPES[name]


def difference(a: StyleRecipe, b: StyleRecipe) -> dict[str, tuple[Any, Any]]:
    """Fields in which two recipes differ, with both values, ``name`` aside.

    >>> from dataclasses import replace
    >>> difference(RECIPES["modern"], replace(RECIPES["modern"], width=16))
    {'width': (32, 16)}
    """
    first, second = a.to_dict(), b.to_dict()
    return {
        name: (first[name], second[name])
        for name in first
        if name != "name" and first[name] != second[name]
    }
