"""Super-resolution training: what the shared loop needs to know about enlarging photographs."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.checkpoint import Checkpoint
from topcoat.train.data import Photographs, require_patchable
from topcoat.train.degradation import degrade, imresize
from topcoat.train.frames import frame_image, frame_tensor
from topcoat.train.loop import Outcome, RunSettings, Task, train
from topcoat.train.losses import (
    LossNetwork,
    SuperResolutionLoss,
    find_loss_weights,
    load_loss_network,
)
from topcoat.train.metrics import psnr_y
from topcoat.train.networks import FrameNetwork, build_network
from topcoat.train.recipes import SuperResolutionRecipe
from topcoat.train.runs import (
    check_objective,
    check_resume,
    content_pictures,
    probe_pictures,
    run_state,
    stored_recipe,
)

_PREVIEW_SIDE = 256


@dataclass(kw_only=True)
class SuperResolutionRun:
    """What the user asks for."""

    content: Path | None
    """Folder of photographs; None for scikit-image's, to try things out."""
    recipe: SuperResolutionRecipe
    loss_weights: Path | None = None
    """Of the loss network; a pixel loss needs none."""
    resume: Checkpoint | None = None
    settings: RunSettings = field(default_factory=lambda: RunSettings(output=Path("sr.pt")))


def train_super_resolution(run: SuperResolutionRun) -> Outcome:
    """Train a super-resolution network, from the start or from a checkpoint.

    Raises:
        TopcoatError: any of its leaves; see :func:`topcoat.train.loop.train` and the readers.
    """
    recipe = stored_recipe(run.resume, run.recipe, "super-resolution")
    pictures, folder = content_pictures(run.content, run.resume)
    if run.resume is not None:
        check_resume(run.resume, recipe.steps, pictures)
    require_patchable(pictures, recipe.patch)
    if run.loss_weights is not None and not recipe.layers():
        raise RecipeError(
            "--loss-weights would change nothing: a pixel loss compares no features; leave it out"
        )

    loss_network: LossNetwork | None = None
    if recipe.layers():
        weights = find_loss_weights(recipe.loss_network, run.loss_weights)
        loss_network = load_loss_network(
            recipe.loss_network,
            recipe.layers(),
            weights.path,
            recipe.loss_convention(),
            recipe_fields="--feature-layer",
        )
        check_objective(run.resume, loss_network, weights.path)
    torch.manual_seed(recipe.seed)
    objective = SuperResolutionLoss(loss_network, recipe)

    def loss(network: FrameNetwork | nn.Module, original: Tensor) -> dict[str, Tensor]:
        return objective(network(degrade(original, recipe.scale, recipe.blur)), original)  # type: ignore[no-any-return]

    task = Task(
        kind="super-resolution",
        network=build_network(recipe.network, recipe.network_settings()),
        loss=loss,
        modules=[objective],
        preview=_Preview(recipe, pictures if folder else None),
        state=run_state(folder, pictures, loss_network),
    )
    dataset = Photographs(pictures, recipe.patch, "native", recipe.seed)
    return train(task, dataset, run.settings, recipe, resume=run.resume)


class _Preview:
    """Per probe photograph a row: bicubic enlargement, the network's, the original."""

    def __init__(self, recipe: SuperResolutionRecipe, pictures: list[Path] | None) -> None:
        self.scale = recipe.scale
        self.rows = []
        for probe in probe_pictures(pictures, _PREVIEW_SIDE):
            small = degrade(frame_tensor(probe), recipe.scale, recipe.blur)
            bicubic = frame_image(imresize(small, enlarge=recipe.scale))
            self.rows.append((small, bicubic, probe))

    def __call__(self, network: FrameNetwork) -> Image.Image:
        side, gap, line = _PREVIEW_SIDE, 8, 14
        height = len(self.rows) * (side + line + gap)
        sheet = Image.new("RGB", (3 * side + 2 * gap, height), "white")
        draw = ImageDraw.Draw(sheet)
        device = next(network.parameters()).device
        for row, (small, bicubic, original) in enumerate(self.rows):
            ours = frame_image(network(small.to(device)))
            top = row * (side + line + gap)
            for column, (name, picture) in enumerate(
                (("bicubic", bicubic), ("network", ours), ("original", original))
            ):
                left = column * (side + gap)
                sheet.paste(picture, (left, top))
                if picture is not original:
                    decibels = psnr_y(np.asarray(picture), np.asarray(original), border=self.scale)
                    name = f"{name}, {decibels:.2f} dB (Y)"
                draw.text((left + 2, top + side), name, "black")
        return sheet
