"""Recipes of optimising one picture."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from topcoat.train._errors import RecipeError
from topcoat.train.recipes._base import check_count, check_learning_rate, check_seed, setting
from topcoat.train.recipes.perceptual import PerceptualRecipe

_SIZES = (32, 8192)
STARTS = ("content", "style", "noise")
"""What an optimisation can start from besides a file."""


@dataclass(frozen=True, kw_only=True)
class OptimizeRecipe(PerceptualRecipe):
    """Everything that decides what becomes of one picture."""

    title: ClassVar[str] = "optimisation"

    size: int = setting(512, "longer side of the result in pixels")
    steps: tuple[int, ...] = setting(
        (200, 100),
        "iterations at each size, the smallest first; as many sizes as numbers, the last is --size",
    )
    size_ratio: float = setting(2.0, "from one size to the next")
    style_size: int = setting(
        0, "longer side of the style pictures at --size: sets the stroke size; 0: as --size"
    )
    start: str = setting(
        "content", "what to start from: content, style, noise (white), or a picture file"
    )
    optimizer: Literal["lbfgs", "adam"] = setting(
        "lbfgs", "both are kept to valid pixels; adam needs less memory and more iterations"
    )
    history: int = setting(10, "pairs of differences that L-BFGS remembers")
    learning_rate: float = setting(0.02, "Adam's step size; pixels go from 0 to 1")
    colours: Literal["style", "luminance", "histogram"] = setting(
        "style",
        "style: taken from the style; luminance: only lightness is repainted, the content's colour "
        "put back; histogram: the style is recoloured like the content first",
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "fp32",
        "of the loss network; L-BFGS compares losses that differ by less than bf16 can tell; auto: "
        "bf16 where the processor computes in it",
    )
    seed: int = setting(0, "seeds the noise to start from and the ties of the histogram loss")

    def __post_init__(self) -> None:
        self.check("content_weight", "style_weight", "strength", "histogram_weight", "tv_weight")
        self.check_objective()
        if not self.steps:
            raise RecipeError("steps must have at least one number; try 300, or 200,100")
        for count in self.steps:
            check_count("steps", count)
        least, most = _SIZES
        if not least <= self.size <= most:
            raise RecipeError(f"size must be {least} to {most} pixels, got {self.size}; try 512")
        if self.style_size and not least <= self.style_size <= most:
            raise RecipeError(
                f"style_size must be 0 or {least} to {most} pixels, got {self.style_size}; "
                "try 512, or 0 for the size of the result"
            )
        if not 1.1 <= self.size_ratio <= 8:
            raise RecipeError(f"size_ratio must be 1.1 to 8, got {self.size_ratio}; try 2")
        if self.sizes()[0] < least:
            raise RecipeError(
                f"{len(self.steps)} sizes begin at {self.sizes()[0]} pixels, below {least}; "
                "give fewer numbers to --steps or a larger --size"
            )
        check_count("history", self.history)
        check_seed(self.seed)
        check_learning_rate(self.learning_rate)
        if not (self.content_weight or self.uses_style() or self.uses_histogram()):
            raise RecipeError(
                "content_weight, style_weight and histogram_weight are all 0: nothing would be "
                "asked of the picture; give one of them"
            )

    def sizes(self) -> tuple[int, ...]:
        """Longer sides in pixels, one for each number of ``steps``."""
        last = len(self.steps) - 1
        return tuple(round(self.size / self.size_ratio ** (last - i)) for i in range(last + 1))

    def idle_fields(self) -> set[str]:
        """Fields that this recipe has no use for."""
        idle = super().idle_fields()
        if len(self.steps) == 1:
            idle |= {"size_ratio"}
        return idle | ({"history"} if self.optimizer == "adam" else {"learning_rate"})


_VGG19 = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

OPTIMIZE_RECIPES: dict[str, OptimizeRecipe] = {
    "modern": OptimizeRecipe(name="modern", tv_weight=25.0),
    "gatys2015": OptimizeRecipe(
        name="gatys2015",
        loss_network="vgg19",
        loss_pooling="average",
        loss_activations="unit-mean",
        loss_scale="gatys2015",
        content_layer="relu4_2",
        style_layers=_VGG19,
        style_layer_weights=(0.2,) * 5,
        style_weight=1e3,
        steps=(500,),
        start="noise",
        history=100,
    ),
    "johnson2016": OptimizeRecipe(
        name="johnson2016",
        loss_scale="absolute",
        style_layers=("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        style_weight=5.0,
        tv_weight=1e-6,
        tv_form="paper",
        steps=(500,),
        start="noise",
        history=100,
    ),
    "risser2017": OptimizeRecipe(
        name="risser2017",
        loss_network="vgg19",
        content_layer="relu4_1",
        style_layers=_VGG19,
        histogram_layers=("relu1_1", "relu4_1"),
        histogram_weight=10.0,
        tv_weight=25.0,
        steps=(300, 200, 100),
        start="noise",
    ),
}
"""Name -> recipe."""
