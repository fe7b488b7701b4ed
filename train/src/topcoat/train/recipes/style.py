"""Recipes of style training."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from topcoat.train._errors import RecipeError
from topcoat.train.recipes._base import TrainingRecipe, setting
from topcoat.train.recipes.perceptual import PerceptualRecipe
from topcoat.train.recipes.texture import check_scales


@dataclass(frozen=True, kw_only=True)
class StyleRecipe(TrainingRecipe, PerceptualRecipe):
    """Everything that decides a style network; stored whole in its checkpoint."""

    title: ClassVar[str] = "network and data"

    network_fields: ClassVar[Mapping[str, Sequence[str]]] = {
        "johnson": ("form", "width", "blocks", "upsampling", "norm"),
        "realtime": ("width", "blocks", "norm", "dilation"),
        "ulyanov": (
            *("scales", "scale_width", "upsampling", "norm", "activation", "padding", "noise"),
        ),
    }

    network: Literal["johnson", "realtime", "ulyanov"] = setting(
        "johnson",
        "transform network; johnson: residual blocks at quarter size; realtime: nothing but a few "
        "convolutions there, for CPUs and games; ulyanov: a pyramid, a third of the products, as "
        "published for textures and styles in 2016",
    )
    form: Literal["modern", "paper"] = setting(
        "modern", "modern: pad per convolution, nearest upsampling; paper: as published in 2016"
    )
    width: int = setting(32, "channels at full size, or of realtime; time grows with its square")
    blocks: int = setting(5, "residual blocks at quarter size")
    upsampling: Literal["nearest", "bilinear"] = setting(
        "bilinear", "before a convolution, in the modern form; nearest leaves a 4-pixel grid"
    )
    norm: Literal["instance", "batch"] = setting("instance", "normalisation layers")
    dilation: int = setting(
        1, "spacing of the taps in every second block of realtime, in positions of 4 pixels"
    )
    scales: int = setting(
        6, "sizes that ulyanov looks at the photograph in, each half the one before"
    )
    scale_width: int = setting(8, "channels per scale of ulyanov; time grows with its square")
    activation: Literal["leaky", "relu"] = setting(
        "relu", "of ulyanov; leaky: slope 0.01 below zero, as in 2016"
    )
    padding: Literal["circular", "replicate"] = setting(
        "replicate", "of ulyanov; circular: opposite edges meet, as in 2016"
    )
    noise: Literal["off", "on"] = setting(
        "off", "on: noise beside the photograph at every scale of ulyanov, as in 2016"
    )

    tv_weight: float = setting(25.0, "weight of total variation")
    histogram_samples: int = setting(
        16384, "pixels per layer and step that the histogram loss looks at, drawn anew; 0: all"
    )

    style_size: int = setting(
        512, "longer side of the style picture in pixels: sets the stroke size"
    )
    crop: int = setting(
        256,
        "side of the square training pictures in pixels; a multiple of 4, or of 2**(scales-1)",
    )
    fit: Literal["crop", "squash"] = setting(
        "crop",
        "crop: random crop and mirror, aspect kept; squash: whole picture to a square, as in 2016",
    )

    stability_weight: float = setting(
        0.0,
        "weight of the change in the output, mean square, when the photograph is moved by a few "
        "pixels and grain is added: less of it flickers less",
    )

    supervision: Literal["style", "targets", "both"] = setting(
        "style",
        "what the output is held to: the style and the photograph through the loss network; "
        "targets: pairs made before, or a teacher's pictures, pixel by pixel; both: their sum",
    )
    target_weight: float = setting(1.0, "weight of the targets' pixel loss beside the style's")
    target_form: Literal["l1", "l2"] = setting(
        "l1", "the targets' pixel loss: mean absolute or mean squared difference"
    )

    def __post_init__(self) -> None:
        self.check(
            *("content_weight", "style_weight", "strength", "histogram_weight", "tv_weight"),
            *("target_weight", "stability_weight"),
        )
        self.check_objective()
        if self.network == "ulyanov":
            check_scales("crop", self.crop, self.scales)
        elif self.crop % 4 or self.crop < 16:
            raise RecipeError(
                f"crop must be a multiple of 4 of at least 16, got {self.crop}; "
                f"try {max(16, self.crop & ~3)}"
            )
        check_style_size(self.style_size)
        in_paper_s_form = self.network == "johnson" and self.form == "paper"
        if in_paper_s_form and self.crop <= 8 * self.blocks:
            raise RecipeError(
                f"crop must exceed 8 times the blocks in the paper's form, which pads by that, "
                f"got {self.crop} for {self.blocks} blocks; try {8 * self.blocks + 24 & ~3}"
            )

    def network_settings(self) -> dict[str, Any]:
        """The part that :func:`topcoat.train.networks.build_network` takes."""
        settings = super().network_settings()
        if self.network == "ulyanov":
            settings["width"] = settings.pop("scale_width")
            settings |= {"noise": self.noise == "on", "content": True}
        return settings

    def idle_fields(self) -> set[str]:
        """Fields that this recipe has no use for."""
        idle = super().idle_fields()
        if self.supervision == "style":
            return idle | {"target_weight", "target_form"}
        idle |= {"fit"}  # pairs are cut, never scaled, and a teacher's photographs with them
        if self.supervision == "both":
            return idle
        objective = {entry.name for entry in dataclasses.fields(PerceptualRecipe)} - {"name"}
        return idle | objective | {"style_size", "target_weight"}


def check_supervision(
    recipe: StyleRecipe,
    *,
    style: bool,
    content: bool,
    targets: bool,
    resuming: bool,
    teacher: bool = False,
) -> None:
    """Check that a run is given what its supervision needs, and nothing that it has no use for.

    Args:
        recipe: of the run.
        style: whether a style picture is given.
        content: whether a folder of photographs is.
        targets: whether a folder of pairs is.
        resuming: a checkpoint remembers all of them.
        teacher: whether a network is whose pictures are the targets.

    Raises:
        RecipeError: something is missing, or would change nothing.
    """
    supervision = recipe.supervision
    if targets and teacher:
        raise RecipeError(
            "--targets and --teacher both say what the output is to be; pass one of them"
        )
    if content and targets:
        raise RecipeError(
            "pairs bring their own photographs, --content would change nothing: "
            "leave it out, or train without --targets"
        )
    if supervision == "style" and (targets or teacher):
        raise RecipeError(
            f"this run is held to the style alone, --{'targets' if targets else 'teacher'} would "
            "change nothing: leave it out, or start one with --supervision targets or both"
        )
    if not (targets or teacher or resuming) and supervision != "style":
        raise RecipeError(
            f"--supervision {supervision} needs pairs; pass --targets PAIRS, a folder that "
            "optimize-image --batch made, or --teacher CHECKPOINT, a network that makes them"
        )
    if style and supervision == "targets":
        raise RecipeError(
            "the targets alone decide here, --style would change nothing: leave it "
            "out, or pass --supervision both"
        )
    if not style and supervision != "targets" and not resuming:
        hint = (
            "pass --style PICTURE or a name from --list-styles"
            if supervision == "style"
            else "--supervision both needs the picture that the targets were made with: pass "
            "--style"
        )
        raise RecipeError(f"no style given; {hint}")


def check_style_size(size: int) -> None:
    """Check the longer side of a style picture in pixels.

    Raises:
        RecipeError: it is not from 64 to 4096.
    """
    if not 64 <= size <= 4096:
        raise RecipeError(f"style_size must be 64 to 4096 pixels, got {size}; try 512")


_REALTIME = StyleRecipe(
    name="realtime",
    network="realtime",
    blocks=4,
    dilation=2,
    style_size=384,
    crop=224,
    stability_weight=40.0,
    steps=1000,
    batch=2,
    learning_rate=5e-3,
)

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
    "realtime": _REALTIME,
    "realtime-small": replace(_REALTIME, name="realtime-small", width=16),
    "realtime-large": replace(_REALTIME, name="realtime-large", width=48, blocks=6),
    "ulyanov2016": StyleRecipe(
        name="ulyanov2016",
        network="ulyanov",
        upsampling="nearest",
        norm="batch",
        activation="leaky",
        padding="circular",
        noise="on",
        loss_network="vgg19",
        content_layer="relu4_2",
        content_weight=0.6,
        style_layers=("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
        loss_scale="absolute",
        style_weight=1e3,
        tv_weight=0.0,
        style_size=256,
        steps=3000,
        learning_rate=0.1,
        schedule="ulyanov2016",
        precision="fp32",
    ),
    "ulyanov2017": StyleRecipe(
        name="ulyanov2017",
        network="ulyanov",
        upsampling="nearest",
        loss_network="vgg19",
        content_layer="relu4_2",
        style_layers=("relu1_2", "relu2_2", "relu3_2", "relu4_2"),
        loss_scale="absolute",
        style_weight=10.0,
        tv_weight=0.0,
        style_size=600,
        crop=512,
        steps=50_000,
        batch=1,
        learning_rate=1e-3,
        schedule="ulyanov2017",
        precision="fp32",
    ),
}
"""Name -> recipe. Data, not code: two recipes differ in exactly the fields that
:func:`topcoat.train.recipes.difference` lists."""
