"""What every method needs to begin or resume a run: its photographs, recipe and checks."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from topcoat.train._errors import (
    CheckpointError,
    ContentError,
    LossWeightsError,
    PictureError,
)
from topcoat.train.checkpoint import Checkpoint
from topcoat.train.data import find_pictures, fingerprint
from topcoat.train.losses import LossNetwork, StyleTarget
from topcoat.train.pictures import open_photograph, resize_shorter_side, sample_photographs
from topcoat.train.recipes import PerceptualRecipe, TrainingRecipe
from topcoat.train.style_pictures import StylePicture

R = TypeVar("R", bound=TrainingRecipe)

COMMANDS = {"style": "train-style", "super-resolution": "train-sr", "texture": "train-texture"}
"""Task of a checkpoint -> the command that made it and resumes it."""


def stored_recipe(resume: Checkpoint | None, asked: R, kind: str) -> R:
    """The recipe to run: the checkpoint's when resuming, with only ``steps`` from the call.

    Raises:
        CheckpointError: it is another method's, or its recipe is of another version or damaged.
    """
    if resume is None:
        return asked
    check_task(resume, kind)
    try:
        stored = type(asked).from_dict(resume.recipe)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's recipe cannot be used ({error}); start again without --resume"
        ) from None
    return replace(stored, steps=asked.steps)


def check_task(checkpoint: Checkpoint, kind: str) -> None:
    """Refuse another method's checkpoint.

    Raises:
        CheckpointError: it is.
    """
    if checkpoint.task != kind:
        right = COMMANDS.get(checkpoint.task)
        advice = f"use {right}" if right else "update topcoat-train"
        raise CheckpointError(
            f"the checkpoint is of task {checkpoint.task!r}, {COMMANDS[kind]} resumes {kind!r}; "
            f"{advice}"
        )


def content_pictures(
    content: Path | None, resume: Checkpoint | None
) -> tuple[list[Path], str | None]:
    """The photographs to train on, and their folder; None for those that scikit-image carries.

    Raises:
        ContentError: no such folder, or nothing in it.
    """
    if content is None and resume is not None and resume.state is not None:
        stored = resume.state.get("content")
        content = Path(stored) if stored else None
    if content is None:
        return sample_photographs(), None
    return find_pictures(content), str(content.resolve())


def check_resume(checkpoint: Checkpoint, steps: int, pictures: Sequence[Path]) -> None:
    """Check that going on from a checkpoint would be the same run.

    Raises:
        CheckpointError: it has all the steps already.
        ContentError: the photographs are others than at the start.
    """
    if checkpoint.step >= steps:
        raise CheckpointError(
            f"the checkpoint has {checkpoint.step} steps already, {steps} are asked for; "
            f"pass --steps {checkpoint.step + 1000} to go on"
        )
    known = (checkpoint.state or {}).get("content_fingerprint")
    if known is not None and known != fingerprint(pictures):
        raise ContentError(
            "the content folder holds other photographs than when the checkpoint was written, so "
            "the run would not be the same one; pass the original folder with --content"
        )


def check_objective(resume: Checkpoint | None, loss_network: LossNetwork, path: Path) -> None:
    """Check that the loss network is the one that the run began with.

    Raises:
        LossWeightsError: it is not.
    """
    if resume is None or resume.state is None:
        return
    if resume.state.get("loss_weights_sha256") != loss_network.sha256():
        if loss_network.network == "embedded":
            raise LossWeightsError(
                f"{path} is another version of the embedded loss network than the run began with, "
                "so its objective would change; go on with the topcoat-train that began it, or "
                "start again without --resume"
            )
        raise LossWeightsError(
            f"{path} holds other weights than the run began with, so its objective would change; "
            "pass the same file with --loss-weights"
        )


def check_picture(resume: Checkpoint, picture: StylePicture | None) -> None:
    """Check that a style or texture picture is the one that the run began with.

    Raises:
        CheckpointError: it is another.
    """
    if picture is not None and picture.sha256 != resume.style.get("sha256"):
        kind = resume.task if resume.task in ("style", "texture") else "style"
        raise CheckpointError(
            f"the checkpoint was trained on another {kind} picture "
            f"({resume.style.get('name')!r}) than {picture.name!r}; "
            f"leave --{kind} away to go on, or --resume to start afresh"
        )


def describe_picture(resume: Checkpoint | None, picture: StylePicture | None) -> dict[str, Any]:
    """What a checkpoint says of the picture that it was trained on."""
    if picture is None:
        assert resume is not None
        return resume.style
    return {
        "name": picture_name(picture.name),
        "sha256": picture.sha256,
        "size": list(picture.image.size),
    }


def picture_name(name: str) -> str:
    """A picture's name, made safe as a file's."""
    return re.sub(r"[^\w.-]+", "-", name)


def target_state(target: StyleTarget) -> dict[str, Any]:
    """What a checkpoint keeps of the style, so that resuming does not need the picture."""
    return {"style_grams": dict(target.grams), "style_histograms": dict(target.histograms)}


def resumed_target(resume: Checkpoint | None, recipe: PerceptualRecipe) -> StyleTarget | None:
    """Undo :func:`target_state`; None when not resuming.

    Raises:
        CheckpointError: the style's statistics are not in the checkpoint.
    """
    if resume is None:
        return None
    grams = recipe.style_layers if recipe.uses_style() else ()
    histograms = recipe.histogram_layers if recipe.uses_histogram() else ()
    if resume.state is None:  # a shipped checkpoint: the loop refuses it with the reason
        return StyleTarget(
            {layer: torch.zeros(1, 1) for layer in grams},
            {layer: torch.zeros(1, 1) for layer in histograms},
        )
    stored = [resume.state.get(name) or {} for name in ("style_grams", "style_histograms")]
    if any(
        not isinstance(tensors, dict) or set(tensors) != set(layers)
        for tensors, layers in zip(stored, (grams, histograms), strict=True)
    ):
        raise CheckpointError(
            "the checkpoint lacks the statistics of its style picture; "
            "resume an earlier copy, or start again without --resume"
        )
    return StyleTarget(stored[0], stored[1])


def run_state(
    folder: str | None, pictures: Sequence[Path], loss_network: LossNetwork | None
) -> dict[str, Any]:
    """What a checkpoint keeps for the checks above."""
    return {
        "content": folder,
        "content_fingerprint": fingerprint(pictures),
        "loss_weights_sha256": None if loss_network is None else loss_network.sha256(),
    }


def probe_pictures(pictures: Sequence[Path] | None, side: int) -> list[Image.Image]:
    """Two well-known photographs and one of the run's own as squares, for previews.

    Args:
        pictures: the run's photographs; None if they are the well-known ones.
        side: of the squares in pixels.
    """
    probes = sample_photographs()[:2]
    for path in (pictures or [])[:3]:
        try:
            open_photograph(path)
        except PictureError:
            continue
        probes.append(path)
        break
    return [
        resize_shorter_side(open_photograph(path), side).crop((0, 0, side, side)) for path in probes
    ]
