"""Texture training: what the shared loop needs to know about making textures of noise."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from topcoat.train._errors import RecipeError
from topcoat.train.checkpoint import Checkpoint
from topcoat.train.frames import array_tensor, frame_image, frame_tensor
from topcoat.train.loop import Outcome, RunSettings, Task, train
from topcoat.train.losses import PerceptualLoss, diversity, perceptual_network, style_target
from topcoat.train.networks import FrameNetwork, build_network
from topcoat.train.noise import NoiseFrames, noise_frame
from topcoat.train.pictures import resize_longer_side
from topcoat.train.recipes import TextureRecipe
from topcoat.train.runs import (
    check_objective,
    check_picture,
    check_resume,
    describe_picture,
    resumed_target,
    run_state,
    stored_recipe,
    target_state,
)
from topcoat.train.style_pictures import load_style

_PREVIEW_SIDE = 256
"""Of the preview's pictures; what is tiled has half of it. Multiples that every network takes."""


@dataclass(kw_only=True)
class TextureRun:
    """What the user asks for."""

    texture: str | None
    """Path or built-in name; None when resuming, which keeps the picture's statistics."""
    recipe: TextureRecipe
    loss_weights: Path | None = None
    resume: Checkpoint | None = None
    settings: RunSettings = field(default_factory=lambda: RunSettings(output=Path("texture.pt")))


def train_texture(run: TextureRun) -> Outcome:
    """Train a texture network, from the start or from a checkpoint.

    Raises:
        TopcoatError: any of its leaves; see :func:`topcoat.train.loop.train` and the readers.
    """
    recipe = stored_recipe(run.resume, run.recipe, "texture")
    picture = None if run.texture is None else load_style(run.texture)
    if picture is None and run.resume is None:
        raise RecipeError("no texture given; pass --texture PICTURE or a name from --list-styles")
    if run.resume is not None:
        check_resume(run.resume, recipe.steps, [])
        check_picture(run.resume, picture)

    loss_network, weights = perceptual_network(recipe, run.loss_weights)
    check_objective(run.resume, loss_network, weights)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network, recipe.network_settings())
    target = resumed_target(run.resume, recipe)
    if target is None:
        assert picture is not None
        scaled = frame_tensor(resize_longer_side(picture.image, recipe.texture_size))
        target = style_target(loss_network, scaled, recipe)
    objective = PerceptualLoss(loss_network, [target], recipe, batch=recipe.batch)

    def loss(net: FrameNetwork | nn.Module, noise: Tensor) -> dict[str, Tensor]:
        textures = as_shown(net(noise))
        parts: dict[str, Tensor] = objective(textures)
        if not recipe.diversity_weight:
            return parts
        if len(textures) < 2:
            raise RecipeError(
                "the diversity term compares the textures of a process's share of the batch, which "
                f"is {len(textures)}; pass a larger --batch, or --diversity-weight 0"
            )
        spread = diversity(textures)
        return {**parts, "total": parts["total"] - recipe.diversity_weight * spread} | {
            "diversity": spread
        }

    task = Task(
        kind="texture",
        network=network,
        loss=loss,
        modules=[objective],
        preview=_Preview(None if picture is None else picture.image),
        style=describe_picture(run.resume, picture),
        state={**run_state(None, [], loss_network), **target_state(target)},
    )
    dataset = NoiseFrames(recipe.sample_size, recipe.seed)
    return train(task, dataset, run.settings, recipe, resume=run.resume)


def as_shown(textures: Tensor) -> Tensor:
    """Clip to [0, 1], as whoever makes a picture of them does, and still learn from there.

    Gram matrices are content with a few spots far brighter than white in place of wide areas of a
    colour. The losses are to see what is shown, so here such spots count as white. The gradient of
    a clipped value passes if it leads back into the range, and stops if it leads further out:
    where that of a plain clamp is zero, and nothing comes back.

    Args:
        textures: any shape, nominally in [0, 1].
    """
    shown: Tensor = _Shown.apply(textures)  # type: ignore[no-untyped-call]
    return shown


class _Shown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401 - autograd's own type
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (values,) = ctx.saved_tensors
        further = ((values < 0) & (grad > 0)) | ((values > 1) & (grad < 0))  # a step goes against
        return grad.masked_fill(further, 0.0)


class _Preview:
    """The picture, the textures of two seeds, and a small one tiled twice each way."""

    def __init__(self, picture: Image.Image | None) -> None:
        self.picture = picture

    def __call__(self, network: FrameNetwork) -> Image.Image:
        side, gap, line = _PREVIEW_SIDE, 8, 14
        cells: list[tuple[str, Image.Image]] = []
        if self.picture is not None:
            thumbnail = self.picture.copy()
            thumbnail.thumbnail((side, side))
            cells.append(("texture", thumbnail))
        cells += [(f"seed {seed}", _sample(network, side, seed)) for seed in (0, 1)]
        small = _sample(network, side // 2, 2)
        tiled = Image.new("RGB", (side, side))
        for left in (0, side // 2):
            for top in (0, side // 2):
                tiled.paste(small, (left, top))
        cells.append(("seed 2, tiled", tiled))
        sheet = Image.new("RGB", (len(cells) * (side + gap) - gap, side + line), "white")
        draw = ImageDraw.Draw(sheet)
        for column, (name, cell) in enumerate(cells):
            sheet.paste(cell, (column * (side + gap), 0))
            draw.text((column * (side + gap) + 2, side), name, "black")
        return sheet


def _sample(network: FrameNetwork, side: int, seed: int) -> Image.Image:
    device = next(network.parameters()).device
    return frame_image(network(array_tensor(noise_frame(side, side, seed)).to(device)))
