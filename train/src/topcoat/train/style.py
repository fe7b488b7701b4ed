"""Style training: what the shared loop needs to know about repainting photographs."""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from topcoat.train._errors import CheckpointError, PictureError, RecipeError
from topcoat.train.checkpoint import Checkpoint
from topcoat.train.data import Photographs, require_usable
from topcoat.train.frames import frame_tensor, run_network
from topcoat.train.loop import Outcome, RunSettings, Task, train
from topcoat.train.losses import LossNetwork, PerceptualLoss, find_loss_weights, load_loss_network
from topcoat.train.networks import FrameNetwork, build_network
from topcoat.train.pictures import file_sha256, open_rgb, resize_longer_side
from topcoat.train.recipes import StyleRecipe
from topcoat.train.runs import (
    check_objective,
    check_resume,
    content_pictures,
    probe_pictures,
    run_state,
    stored_recipe,
)
from topcoat.train.styles import STYLES, draw_style

_MIN_STYLE_SIDE = 64
_MAX_STYLE_ASPECT = 8
_PREVIEW_SIDE = 256


@dataclass(frozen=True)
class StylePicture:
    """A style picture, read and checked."""

    name: str
    image: Image.Image
    sha256: str
    """Of the file, or of the pixels for a built-in style."""


def load_style(style: str | os.PathLike[str]) -> StylePicture:
    """Read a style picture, or draw a built-in one.

    A path wins over a built-in name: a file called ``mosaic`` in this folder is that file.

    Raises:
        PictureError: no such file or name, not a usable picture, too small or too long.
    """
    text = os.fspath(style)
    path = Path(text)
    if not path.exists() and text in STYLES:
        image = draw_style(text)
        return StylePicture(text, image, hashlib.sha256(image.tobytes()).hexdigest())
    if not path.exists() and path.suffix == "" and path.parent == Path():
        raise PictureError(
            f"no picture at {text!r} and no built-in style of that name; "
            f"give a file, or one of {', '.join(STYLES)}"
        )
    image = open_rgb(path)
    short, long = sorted(image.size)
    if short < _MIN_STYLE_SIDE or long > _MAX_STYLE_ASPECT * short:
        raise PictureError(
            f"style picture {path} is {image.width}x{image.height}; wanted: at least "
            f"{_MIN_STYLE_SIDE} pixels on the short side and at most {_MAX_STYLE_ASPECT} times as "
            "long as wide; crop or choose another"
        )
    return StylePicture(path.stem, image, file_sha256(path))


@dataclass(kw_only=True)
class StyleRun:
    """What the user asks for."""

    style: str | None
    """Path or built-in name; None when resuming, which keeps the picture's Gram matrices."""
    content: Path | None
    """Folder of photographs; None for scikit-image's, to try things out."""
    recipe: StyleRecipe
    loss_weights: Path | None = None
    resume: Checkpoint | None = None
    settings: RunSettings = field(default_factory=lambda: RunSettings(output=Path("style.pt")))


def train_style(run: StyleRun) -> Outcome:
    """Train a style network, from the start or from a checkpoint.

    Raises:
        TopcoatError: any of its leaves; see :func:`topcoat.train.loop.train` and the readers.
    """
    recipe = stored_recipe(run.resume, run.recipe, "style")
    picture = None if run.style is None else load_style(run.style)
    if picture is None and run.resume is None:
        raise RecipeError("no style given; pass --style PICTURE or a name from --list-styles")
    pictures, folder = content_pictures(run.content, run.resume)
    require_usable(pictures, recipe.batch)
    if run.resume is not None:
        check_resume(run.resume, recipe.steps, pictures)
        _check_style(run.resume, picture)

    weights = find_loss_weights(recipe.loss_network, run.loss_weights)
    loss_network = load_loss_network(
        recipe.loss_network, recipe.layers(), weights.path, recipe.loss_convention()
    )
    check_objective(run.resume, loss_network, weights.path)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network, recipe.network_settings())
    grams = _style_grams(run.resume, loss_network, picture, recipe)
    objective = PerceptualLoss(loss_network, grams, recipe)
    task = Task(
        kind="style",
        network=network,
        loss=lambda net, frames: objective(net(frames), frames),
        modules=[objective],
        preview=_Preview(picture, pictures if run.content else None),
        style=_describe(run.resume, picture),
        state={**run_state(folder, pictures, loss_network), "style_grams": grams},
    )
    dataset = Photographs(pictures, recipe.crop, recipe.fit, recipe.seed)
    return train(task, dataset, run.settings, recipe, resume=run.resume)


def _check_style(resume: Checkpoint, picture: StylePicture | None) -> None:
    if picture is not None and picture.sha256 != resume.style.get("sha256"):
        raise CheckpointError(
            f"the checkpoint was trained on another style picture "
            f"({resume.style.get('name')!r}) than {picture.name!r}; "
            "leave --style away to go on, or --resume to start afresh"
        )


def _style_grams(
    resume: Checkpoint | None,
    loss_network: LossNetwork,
    picture: StylePicture | None,
    recipe: StyleRecipe,
) -> dict[str, Tensor]:
    if resume is not None and resume.state is not None:
        grams = resume.state.get("style_grams")
        if not isinstance(grams, dict) or set(grams) != set(recipe.style_layers):
            raise CheckpointError(
                "the checkpoint lacks the style's Gram matrices; "
                "resume an earlier copy, or start again with --style"
            )
        return grams
    if picture is None:  # a shipped checkpoint: the loop refuses it with the reason
        return {layer: torch.zeros(1, 1) for layer in recipe.style_layers}
    scaled = resize_longer_side(picture.image, recipe.style_size)
    return PerceptualLoss.style_targets(loss_network, frame_tensor(scaled), recipe)


def _describe(resume: Checkpoint | None, picture: StylePicture | None) -> dict[str, Any]:
    if picture is None:
        assert resume is not None
        return resume.style
    return {
        "name": re.sub(r"[^\w.-]+", "-", picture.name),
        "sha256": picture.sha256,
        "size": list(picture.image.size),
    }


class _Preview:
    """A strip: the style, then probe photographs above what the network makes of them."""

    def __init__(self, picture: StylePicture | None, pictures: list[Path] | None) -> None:
        self.probes = probe_pictures(pictures, _PREVIEW_SIDE)
        self.style = None if picture is None else picture.image

    def __call__(self, network: FrameNetwork) -> Image.Image:
        side, gap = _PREVIEW_SIDE, 8
        columns = len(self.probes) + (self.style is not None)
        sheet = Image.new("RGB", (columns * (side + gap) - gap, 2 * side + gap), "white")
        left = 0
        if self.style is not None:
            thumbnail = self.style.copy()
            thumbnail.thumbnail((side, side))
            sheet.paste(thumbnail, (0, (2 * side + gap - thumbnail.height) // 2))
            ImageDraw.Draw(sheet).text(
                (2, (2 * side + gap + thumbnail.height) // 2 + 4), "style", "black"
            )
            left = side + gap
        for probe in self.probes:
            sheet.paste(probe, (left, 0))
            sheet.paste(run_network(network, probe), (left, side + gap))
            left += side + gap
        return sheet
