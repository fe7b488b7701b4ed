"""Style training: what the shared loop needs to know about repainting photographs."""

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from topcoat.train._errors import (
    CheckpointError,
    ContentError,
    LossWeightsError,
    PictureError,
    RecipeError,
)
from topcoat.train.checkpoint import Checkpoint
from topcoat.train.data import Photographs, find_pictures, fingerprint, require_usable
from topcoat.train.loop import Outcome, RunSettings, Task, train
from topcoat.train.losses import LossNetwork, PerceptualLoss, find_loss_weights, load_loss_network
from topcoat.train.networks import FrameNetwork, build_network
from topcoat.train.pictures import (
    file_sha256,
    open_photograph,
    open_rgb,
    resize_longer_side,
    resize_shorter_side,
    sample_photographs,
    to_array,
)
from topcoat.train.recipes import StyleRecipe
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


def prepare_recipe(run: StyleRun) -> StyleRecipe:
    """The recipe to run: the checkpoint's when resuming, with only ``steps`` from the call."""
    if run.resume is None:
        return run.recipe
    try:
        stored = StyleRecipe.from_dict(run.resume.recipe)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's recipe cannot be used ({error}); start again with --style"
        ) from None
    return replace(stored, steps=run.recipe.steps)


def train_style(run: StyleRun) -> Outcome:
    """Train a style network, from the start or from a checkpoint.

    Raises:
        TopcoatError: any of its leaves; see :func:`topcoat.train.loop.train` and the readers.
    """
    recipe = prepare_recipe(run)
    picture = None if run.style is None else load_style(run.style)
    if picture is None and run.resume is None:
        raise RecipeError("no style given; pass --style PICTURE or a name from --list-styles")
    pictures, folder = _content(run)
    require_usable(pictures, recipe.batch)
    _check_resume(run, recipe, picture, pictures)

    weights = find_loss_weights(recipe.loss_network, run.loss_weights)
    loss_network = load_loss_network(
        recipe.loss_network, recipe.layers(), weights.path, recipe.loss_convention()
    )
    _check_objective(run, loss_network, weights.path)
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
        recipe=recipe.to_dict(),
        network_entry={"name": recipe.network, "settings": recipe.network_settings()},
        style=_describe(run.resume, picture),
        state={
            "content": folder,
            "content_fingerprint": fingerprint(pictures),
            "style_grams": grams,
            "loss_weights_sha256": loss_network.sha256(),
        },
    )
    return train(
        task,
        Photographs(pictures, recipe.crop, recipe.fit, recipe.seed),
        run.settings,
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        schedule=recipe.schedule,
        precision=recipe.precision,
        seed=recipe.seed,
        resume=run.resume,
    )


def _content(run: StyleRun) -> tuple[list[Path], str | None]:
    folder = run.content
    if folder is None and run.resume is not None and run.resume.state is not None:
        stored = run.resume.state.get("content")
        folder = Path(stored) if stored else None
    if folder is None:
        return sample_photographs(), None
    return find_pictures(folder), str(folder.resolve())


def _check_resume(
    run: StyleRun, recipe: StyleRecipe, picture: StylePicture | None, pictures: list[Path]
) -> None:
    if run.resume is None:
        return
    if run.resume.task != "style":
        raise CheckpointError(
            f"the checkpoint is of task {run.resume.task!r}, train-style resumes 'style'; "
            "use the command that made it"
        )
    if picture is not None and picture.sha256 != run.resume.style.get("sha256"):
        raise CheckpointError(
            f"the checkpoint was trained on another style picture "
            f"({run.resume.style.get('name')!r}) than {picture.name!r}; "
            "leave --style away to go on, or --resume to start afresh"
        )
    if run.resume.step >= recipe.steps:
        raise CheckpointError(
            f"the checkpoint has {run.resume.step} steps already, {recipe.steps} are asked for; "
            f"pass --steps {run.resume.step + 1000} to go on"
        )
    state = run.resume.state or {}
    known = state.get("content_fingerprint")
    if known is not None and known != fingerprint(pictures):
        raise ContentError(
            "the content folder holds other photographs than when the checkpoint was written, so "
            "the run would not be the same one; pass the original folder with --content"
        )


def _check_objective(run: StyleRun, loss_network: LossNetwork, path: Path) -> None:
    if run.resume is None or run.resume.state is None:
        return
    if run.resume.state.get("loss_weights_sha256") != loss_network.sha256():
        raise LossWeightsError(
            f"{path} holds other weights than the run began with, so its objective would change; "
            "pass the same file with --loss-weights"
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


def frame_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(to_array(image).copy()).permute(2, 0, 1)[None].float() / 255


def frame_image(frame: Tensor) -> Image.Image:
    """(1, 3, H, W) nominally in [0, 1] -> a picture, clipped and rounded to 8 bits."""
    pixels = (frame[0].detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy()), "RGB")


def stylise(network: FrameNetwork | nn.Module, image: Image.Image) -> Image.Image:
    """Run a network on a picture cropped to its multiple: for previews and evaluation."""
    multiple = int(getattr(network, "size_multiple", 1))
    width, height = (side // multiple * multiple for side in image.size)
    frame = frame_tensor(image.crop((0, 0, width, height)))
    device = next(network.parameters()).device
    with torch.no_grad():
        return frame_image(network(frame.to(device)))


class _Preview:
    """A strip: the style, then probe photographs above what the network makes of them."""

    def __init__(self, picture: StylePicture | None, pictures: list[Path] | None) -> None:
        probes = sample_photographs()[:2]
        for path in (pictures or [])[:3]:
            try:
                open_photograph(path)
            except PictureError:
                continue
            probes.append(path)
            break
        self.probes = [
            resize_shorter_side(open_photograph(path), _PREVIEW_SIDE).crop(
                (0, 0, _PREVIEW_SIDE, _PREVIEW_SIDE)
            )
            for path in probes
        ]
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
            sheet.paste(stylise(network, probe), (left, side + gap))
            left += side + gap
        return sheet
