"""Style training: what the shared loop needs to know about repainting photographs."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from topcoat.train._errors import RecipeError
from topcoat.train.checkpoint import Checkpoint
from topcoat.train.data import Photographs, require_usable
from topcoat.train.frames import frame_tensor, run_network
from topcoat.train.loop import Outcome, RunSettings, Task, train
from topcoat.train.losses import PerceptualLoss, perceptual_network, style_target
from topcoat.train.networks import FrameNetwork, build_network
from topcoat.train.pictures import resize_longer_side
from topcoat.train.recipes import StyleRecipe
from topcoat.train.runs import (
    check_objective,
    check_picture,
    check_resume,
    content_pictures,
    describe_picture,
    probe_pictures,
    resumed_target,
    run_state,
    stored_recipe,
    target_state,
)
from topcoat.train.style_pictures import StylePicture, load_style

_PREVIEW_SIDE = 256


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
        check_picture(run.resume, picture)

    loss_network, weights = perceptual_network(recipe, run.loss_weights)
    check_objective(run.resume, loss_network, weights)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network, recipe.network_settings())
    target = resumed_target(run.resume, recipe)
    if target is None:
        assert picture is not None
        scaled = frame_tensor(resize_longer_side(picture.image, recipe.style_size))
        target = style_target(loss_network, [(scaled, 1.0)], recipe)
    objective = PerceptualLoss(loss_network, [target], recipe, batch=recipe.batch)
    task = Task(
        kind="style",
        network=network,
        loss=lambda net, frames: objective(net(frames), frames),
        modules=[objective],
        preview=_Preview(picture, pictures if run.content else None),
        style=describe_picture(run.resume, picture),
        state={**run_state(folder, pictures, loss_network), **target_state(target)},
    )
    dataset = Photographs(pictures, recipe.crop, recipe.fit, recipe.seed)
    return train(task, dataset, run.settings, recipe, resume=run.resume)


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
