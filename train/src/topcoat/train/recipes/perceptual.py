"""Fields of every objective that compares features: content, style, histograms."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from topcoat.train._errors import RecipeError
from topcoat.train.recipes._base import LossRecipe, setting


@dataclass(frozen=True, kw_only=True)
class PerceptualRecipe(LossRecipe):
    """The objective that optimisation, style training and texture training share."""

    title: ClassVar[str] = "objective"

    loss_pooling: Literal["max", "average"] = setting(
        "max", "pooling of the loss network; Gatys et al. prefer average"
    )
    loss_activations: Literal["plain", "unit-mean"] = setting(
        "plain",
        "unit-mean: every filter of the loss network scaled to a mean activation of 1 on "
        "photographs, as Gatys et al.; the papers after them take it as it is",
    )
    loss_scale: Literal["relative", "absolute", "gatys2015"] = setting(
        "relative",
        "relative: errors as shares of the target's energy, so weights carry over between styles; "
        "absolute: means over entries, as the code of Johnson et al.; gatys2015: sums, as there",
    )
    gram_form: Literal[
        "auto",
        "relative",
        "johnson2016",
        "johnson2016-code",
        "gatys2015",
        "gatys-notebook",
        "unnormalised",
    ] = setting("auto", "normalisation of the Gram loss by source; auto: that of loss_scale")
    content_layer: str = setting("relu3_3", "layer whose features the output keeps")
    content_weight: float = setting(1.0, "weight of the content loss")
    style_layers: tuple[str, ...] = setting(
        ("relu1_2", "relu2_2", "relu3_3"), "layers whose Gram matrices the output takes on"
    )
    style_layer_weights: tuple[float, ...] = setting(
        (),
        "weight of each style layer; none: all alike, their mean if loss_scale is relative, else "
        "their sum",
    )
    style_weight: float = setting(10.0, "weight of the style loss")
    strength: float = setting(
        1.0, "multiplies the style and histogram weights: the knob to turn per picture"
    )
    histogram_layers: tuple[str, ...] = setting(
        ("relu1_1", "relu3_1"), "layers whose histograms the output takes on"
    )
    histogram_weight: float = setting(0.0, "weight of the histogram loss")
    histogram_samples: int = setting(
        0,
        "pixels per layer and step that the histogram loss looks at, drawn anew, but always the "
        "same ones in optimize-image; 0: all",
    )

    def check_objective(self) -> None:
        """Check the fields of the objective.

        Raises:
            RecipeError: a field is out of range, or two do not go together.
        """
        for field, example in (("style_layers", "relu2_2"), ("histogram_layers", "relu1_1")):
            layers = getattr(self, field)
            if not layers:
                raise RecipeError(f"{field} must name at least one layer, such as {example}")
            if len(set(layers)) != len(layers):
                raise RecipeError(f"{field} names a layer twice: {', '.join(layers)}")
        weights = self.style_layer_weights
        if weights and len(weights) != len(self.style_layers):
            raise RecipeError(
                f"style_layer_weights has {len(weights)} numbers for {len(self.style_layers)} "
                "layers; give one for each of style_layers, or none"
            )
        if not all(0 <= weight < float("inf") for weight in weights) or (
            weights and not any(weights)
        ):
            raise RecipeError(
                f"style_layer_weights must be 0 or more, finite and not all 0, "
                f"got {', '.join(map(str, weights))}"
            )
        if self.loss_network == "embedded" and self.loss_pooling != "max":
            raise RecipeError(
                f"loss_pooling must be max for the embedded loss network, which learnt from VGG16 "
                f"with that, got {self.loss_pooling}; pass --loss-pooling max, or --loss-network "
                "vgg16"
            )
        if self.histogram_samples < 0:
            raise RecipeError(
                f"histogram_samples must be 0 or more, got {self.histogram_samples}; "
                "0 takes all pixels"
            )

    def resolved_gram_form(self) -> str:
        """``gram_form`` with ``auto`` resolved."""
        if self.gram_form != "auto":
            return self.gram_form
        return {"absolute": "johnson2016-code"}.get(self.loss_scale, self.loss_scale)

    def layer_weights(self) -> dict[str, float]:
        """Style layer -> its weight in the style loss."""
        count = len(self.style_layers)
        even = 1 / count if self.loss_scale == "relative" else 1.0
        return dict(
            zip(self.style_layers, self.style_layer_weights or (even,) * count, strict=True)
        )

    def uses_style(self) -> bool:
        """Whether Gram matrices count."""
        return self.style_weight * self.strength > 0

    def uses_histogram(self) -> bool:
        """Whether histograms count."""
        return self.histogram_weight * self.strength > 0

    def idle_fields(self) -> set[str]:
        """Fields that this recipe has no use for."""
        idle = super().idle_fields()
        if not self.uses_histogram():
            idle |= {"histogram_layers", "histogram_samples"}
        if not self.uses_style():
            idle |= {"style_layers", "style_layer_weights", "gram_form"}
        if not self.content_weight:
            idle |= {"content_layer"}
        if not self.uses_histogram() and not self.uses_style():
            idle |= {"strength"}
        return idle if self.tv_weight else idle | {"tv_form"}

    def layers(self) -> tuple[str, ...]:
        """Every layer of the loss network that the objective reads."""
        names: dict[str, None] = {}
        if self.uses_style():
            names |= dict.fromkeys(self.style_layers)
        if self.uses_histogram():
            names |= dict.fromkeys(self.histogram_layers)
        if self.content_weight:
            names[self.content_layer] = None
        return tuple(names)
