"""Style training: what the shared loop needs to know about repainting photographs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from topcoat.train._errors import CheckpointError, ContentError, PictureError, RecipeError
from topcoat.train.checkpoint import Checkpoint, load_checkpoint
from topcoat.train.data import Photographs, fingerprint, require_usable
from topcoat.train.frames import frame_tensor, run_network
from topcoat.train.loop import Outcome, RunSettings, Task, train
from topcoat.train.losses import (
    PerceptualLoss,
    perceptual_network,
    pixel_loss,
    stability_loss,
    style_target,
)
from topcoat.train.networks import FrameNetwork, build_network
from topcoat.train.pairs import (
    PairedPhotographs,
    Pairs,
    check_pairs,
    read_pairs,
    require_decodable,
)
from topcoat.train.pictures import open_rgb, resize_longer_side
from topcoat.train.recipes import StyleRecipe, check_supervision
from topcoat.train.runs import (
    check_objective,
    check_picture,
    check_resume,
    content_pictures,
    describe_picture,
    probe_pictures,
    resumed_target,
    stored_recipe,
    target_state,
)
from topcoat.train.style_pictures import StylePicture, load_style

_PREVIEW_SIDE = 256


@dataclass(kw_only=True)
class StyleRun:
    """What the user asks for."""

    style: str | None
    """Path or built-in name; None when resuming, which keeps the picture's Gram matrices, or if
    targets alone are learnt."""
    content: Path | None
    """Folder of photographs; None for scikit-image's, to try things out."""
    recipe: StyleRecipe
    targets: Path | None = None
    """Folder of pairs, instead of ``content``, if the recipe's supervision is not the style alone;
    None when resuming, which remembers it."""
    teacher: Path | None = None
    """Checkpoint of a style network whose pictures of ``content`` are the targets, instead of
    pairs; None when resuming, which remembers it."""
    loss_weights: Path | None = None
    resume: Checkpoint | None = None
    settings: RunSettings = field(default_factory=lambda: RunSettings(output=Path("style.pt")))


def train_style(run: StyleRun) -> Outcome:
    """Train a style network, from the start or from a checkpoint.

    Raises:
        TopcoatError: any of its leaves; see :func:`topcoat.train.loop.train` and the readers.
    """
    recipe = stored_recipe(run.resume, run.recipe, "style")
    check_supervision(
        recipe,
        style=run.style is not None,
        content=run.content is not None,
        targets=run.targets is not None,
        teacher=run.teacher is not None,
        resuming=run.resume is not None,
    )
    if run.loss_weights is not None and recipe.supervision == "targets":
        raise RecipeError(
            "--loss-weights would change nothing: the targets' loss compares pixels, no features; "
            "leave it out"
        )
    picture = None if run.style is None else load_style(run.style)
    teacher = None if recipe.supervision == "style" else _teacher(run, recipe)
    taught_by_pairs = recipe.supervision != "style" and teacher is None
    data = (_pairs if taught_by_pairs else _photographs)(run, recipe, picture, teacher)
    if run.resume is not None:
        check_picture(run.resume, picture)
    objective: PerceptualLoss | None = None
    state: dict[str, Any] = {"loss_weights_sha256": None}
    if recipe.supervision != "targets":
        loss_network, weights = perceptual_network(recipe, run.loss_weights)
        check_objective(run.resume, loss_network, weights)
        target = resumed_target(run.resume, recipe)
        if target is None:
            assert picture is not None
            scaled = frame_tensor(resize_longer_side(picture.image, recipe.style_size))
            target = style_target(loss_network, scaled, recipe)
        objective = PerceptualLoss(loss_network, [target], recipe, batch=recipe.batch)
        state = {"loss_weights_sha256": loss_network.sha256(), **target_state(target)}
    torch.manual_seed(recipe.seed)
    task = Task(
        kind="style",
        network=build_network(recipe.network, recipe.network_settings()),
        loss=_loss(objective, recipe, None if teacher is None else teacher.network),
        modules=[
            *([] if objective is None else [objective]),
            *([] if teacher is None else [teacher.network]),
        ],
        preview=data.preview,
        style=data.style,
        state={**data.state, **state},
    )
    return train(task, data.samples, run.settings, recipe, resume=run.resume)


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What a run is trained on."""

    samples: Photographs
    style: dict[str, Any]
    """What the checkpoint says of the style picture."""
    state: dict[str, Any]
    """What the checkpoint keeps to tell whether a resumed run is the same."""
    preview: Callable[[FrameNetwork], Image.Image]


@dataclass(frozen=True, kw_only=True)
class _Teacher:
    """A trained network whose pictures are the targets."""

    path: Path
    network: FrameNetwork
    """Frozen."""
    style: dict[str, Any]
    """What its checkpoint says of the style picture."""
    sha256: str
    """Of its weights: a shipped copy without the optimiser is the same teacher."""


def _teacher(run: StyleRun, recipe: StyleRecipe) -> _Teacher | None:
    """Load the network that teaches; None if pairs do.

    Raises:
        CheckpointError: it is no style network, or not the one that the run began with.
        RecipeError: the training pictures are of a size that it does not take.
    """
    stored = (run.resume.state or {}) if run.resume is not None else {}
    path = run.teacher
    if run.resume is not None and "teacher" not in stored:
        if path is not None:
            raise CheckpointError(
                "the checkpoint was not trained with a teacher, --teacher would change the run; "
                "leave it out"
            )
        return None
    if path is None:
        if run.resume is None:
            return None
        path = Path(stored["teacher"])
        if not path.exists():
            raise CheckpointError(
                f"the teacher that the run began with is no longer at {path}; "
                "pass it with --teacher"
            )
    checkpoint = load_checkpoint(path)
    if checkpoint.task != "style":
        raise CheckpointError(
            f"{path} is of task {checkpoint.task!r} and cannot teach a style; "
            "give a checkpoint that train-style wrote"
        )
    network = checkpoint.build_network().requires_grad_(False)
    if recipe.crop % network.size_multiple or recipe.crop < network.size_min:
        raise RecipeError(
            f"crop is {recipe.crop}, the teacher {path} takes multiples of "
            f"{network.size_multiple} from {network.size_min} on; pass --crop "
            f"{max(network.size_min, recipe.crop // network.size_multiple * network.size_multiple)}"
        )
    sha256 = _weights_sha256(checkpoint)
    if run.resume is not None and stored.get("teacher_sha256") != sha256:
        raise CheckpointError(
            f"{path} holds other weights than the teacher that the run began with, so the run "
            "would not be the same one; pass the original with --teacher"
        )
    return _Teacher(path=path, network=network, style=checkpoint.style, sha256=sha256)


def _weights_sha256(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(repr(sorted(checkpoint.network["settings"].items())).encode())
    for name, value in sorted(checkpoint.weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        # As bytes, for numpy has no bfloat16; flat, for a single number cannot be seen so.
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _photographs(
    run: StyleRun, recipe: StyleRecipe, picture: StylePicture | None, teacher: _Teacher | None
) -> _Data:
    pictures, folder = content_pictures(run.content, run.resume)
    require_usable(pictures, recipe.batch)
    if run.resume is not None:
        check_resume(run.resume, recipe.steps, pictures)
    state: dict[str, Any] = {"content": folder, "content_fingerprint": fingerprint(pictures)}
    if teacher is not None:
        state |= {"teacher": str(teacher.path.resolve()), "teacher_sha256": teacher.sha256}
        if picture is not None and picture.sha256 != teacher.style.get("sha256"):
            raise ContentError(
                f"the teacher {teacher.path} was trained on another style picture "
                f"({teacher.style.get('name')!r}) than {picture.name!r}; pass that one with --style"
            )
    # What a network alone teaches is the style that it was trained on.
    style = (
        teacher.style
        if teacher is not None and picture is None and run.resume is None
        else describe_picture(run.resume, picture)
    )
    return _Data(
        samples=Photographs(pictures, recipe.crop, recipe.fit, recipe.seed),
        style=style,
        state=state,
        preview=_Preview(picture, pictures if run.content else None),
    )


def _pairs(
    run: StyleRun, recipe: StyleRecipe, picture: StylePicture | None, _: _Teacher | None
) -> _Data:
    if run.content is not None:
        raise RecipeError("pairs bring their own photographs, --content would change nothing")
    folder = run.targets
    if folder is None:
        assert run.resume is not None
        stored = (run.resume.state or {}).get("targets")
        if not stored:
            raise CheckpointError(
                "the checkpoint does not say where its pairs are; pass the folder with --targets"
            )
        folder = Path(stored)
    pairs = read_pairs(folder, recipe.crop)
    require_decodable(pairs)
    if run.resume is not None:
        check_resume(run.resume, recipe.steps, [])
        check_pairs(run.resume, pairs)
    elif picture is not None and picture.sha256 != pairs.style["sha256"]:
        raise ContentError(
            f"the pairs in {folder} were made with another style picture "
            f"({pairs.style['name']!r}) than {picture.name!r}; pass that one with --style"
        )
    return _Data(
        samples=PairedPhotographs(pairs.pairs, recipe.crop, recipe.seed),
        style=pairs.style if picture is None else describe_picture(run.resume, picture),
        state={"targets": str(folder.resolve()), "targets_fingerprint": pairs.fingerprint()},
        preview=_PairsPreview(pairs),
    )


def _loss(
    objective: PerceptualLoss | None, recipe: StyleRecipe, teacher: FrameNetwork | None
) -> Callable[[FrameNetwork | nn.Module, Tensor], dict[str, Tensor]]:
    """(network, batch) -> losses.

    A batch of pairs has the targets in channels 3 to 5; of photographs alone, the teacher makes
    them.
    """

    def style(network: FrameNetwork | nn.Module, frames: Tensor) -> dict[str, Tensor]:
        assert objective is not None
        output = network(frames)
        return stable(network, frames, output, objective(output, frames))

    def pair(frames: Tensor) -> tuple[Tensor, Tensor]:
        if teacher is None:
            photos, wanted = (
                part.contiguous(memory_format=torch.channels_last)
                for part in (frames[:, :3], frames[:, 3:])
            )
            return photos, wanted
        with torch.no_grad():  # clipped: a picture is what is learnt
            return frames, teacher(frames).float().clamp(0, 1)

    def targets(network: FrameNetwork | nn.Module, frames: Tensor) -> dict[str, Tensor]:
        photos, wanted = pair(frames)
        output = network(photos)
        pixel = pixel_loss(output, wanted, recipe.target_form)
        parts = {"total": pixel, "pixel": pixel}
        if objective is not None:
            parts = objective(output, photos)
            total = parts.pop("total") + recipe.target_weight * pixel
            parts = {"total": total, **parts, "pixel": pixel}
        return stable(network, photos, output, parts)

    def stable(
        network: FrameNetwork | nn.Module, photos: Tensor, output: Tensor, parts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if not recipe.stability_weight:
            return parts
        change = stability_loss(network, photos, output)
        total = parts["total"] + recipe.stability_weight * change
        return {**parts, "total": total, "stability": change}

    return style if recipe.supervision == "style" else targets


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


class _PairsPreview:
    """Per probe pair a column: the photograph, what the network makes of it, the target."""

    def __init__(self, pairs: Pairs) -> None:
        self.probes: list[tuple[Image.Image, Image.Image]] = []
        for pair in pairs.pairs:
            try:
                photo, target = open_rgb(pair.photo), open_rgb(pair.target)
            except PictureError:
                continue
            width, height = (min(_PREVIEW_SIDE, side // 4 * 4) for side in photo.size)
            left, top = (photo.width - width) // 2, (photo.height - height) // 2
            box = (left, top, left + width, top + height)
            self.probes.append((photo.crop(box), target.crop(box)))
            if len(self.probes) == 3:
                break

    def __call__(self, network: FrameNetwork) -> Image.Image:
        side, gap, margin = _PREVIEW_SIDE, 8, 56
        line = max(photo.height for photo, _ in self.probes) + gap
        size = (margin + len(self.probes) * (side + gap) - gap, 3 * line - gap)
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        for row, name in enumerate(("photo", "network", "target")):
            draw.text((4, row * line + line // 2), name, "black")
        for column, (photo, target) in enumerate(self.probes):
            left = margin + column * (side + gap)
            for row, picture in enumerate((photo, run_network(network, photo), target)):
                sheet.paste(picture, (left, row * line))
        return sheet
