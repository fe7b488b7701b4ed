"""--teacher: a network learns from the pictures that a trained one makes of the photographs."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from topcoat.train import Checkpoint, CheckpointError, ContentError, RecipeError, load_checkpoint
from topcoat.train.checkpoint import save_checkpoint
from topcoat.train.cli.train_style import main
from topcoat.train.frames import frame_tensor, run_network
from topcoat.train.loop import Outcome, RunSettings
from topcoat.train.networks import Realtime, build_network
from topcoat.train.networks.realtime import PhaseConv2d
from topcoat.train.recipes import STYLE_RECIPES, StyleRecipe
from topcoat.train.style import StyleRun, train_style
from topcoat.train.style_pictures import load_style

Refused = Callable[[Callable[[Sequence[str]], int], Sequence[str]], str]

TAUGHT = replace(
    STYLE_RECIPES["realtime"],
    supervision="targets",
    width=12,
    blocks=2,
    crop=64,
    batch=2,
    stability_weight=0.0,
    precision="fp32",
)


def _checkpoint(task: str = "style") -> Checkpoint:
    """A network that turns pictures into something bright, as a trained one might."""
    torch.manual_seed(3)
    settings = {"width": 8, "blocks": 1, "norm": "batch"}
    network = build_network("realtime", settings)
    assert isinstance(network, Realtime)
    assert isinstance(network.tail, PhaseConv2d)
    torch.nn.init.normal_(network.tail.colour, std=0.4)
    picture = load_style("poster")
    style = {"name": picture.name, "sha256": picture.sha256, "size": list(picture.image.size)}
    return Checkpoint(
        task=task,
        network={"name": "realtime", "settings": settings},
        weights=network.state_dict(),
        recipe=STYLE_RECIPES["modern"].to_dict(),
        step=1,
        style=style,
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "full.pt"
    save_checkpoint(_checkpoint(), path)
    return path


@pytest.fixture(autouse=True)
def _keep_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")


def _train(
    recipe: StyleRecipe,
    output: Path,
    **more: Any,  # noqa: ANN401 - fields of StyleRun
) -> Outcome:
    settings = RunSettings(
        output=output, workers=0, quiet=True, preview_every=0, log_every=1, checkpoint_every=4
    )
    return train_style(StyleRun(**{"style": None, "recipe": recipe, "settings": settings, **more}))


def _apart(checkpoint: Path, teacher: Path, photographs: Path) -> float:
    """Mean difference of two networks' pictures in 8-bit steps."""
    pair = [load_checkpoint(path).build_network() for path in (checkpoint, teacher)]
    differences = []
    for path in sorted(photographs.iterdir()):
        with Image.open(path) as photo:
            cut = photo.convert("RGB").crop((0, 0, 96, 96))
        one, two = (np.asarray(run_network(each, cut)).astype(float) for each in pair)
        differences.append(np.abs(one - two).mean())
    return float(np.mean(differences))


def test_a_taught_network_paints_as_its_teacher_does(
    teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    for steps in (1, 60):
        recipe = replace(TAUGHT, steps=steps, learning_rate=2e-2)
        _train(recipe, tmp_path / f"{steps}.pt", teacher=teacher, content=photographs)
    before, after = (_apart(tmp_path / f"{n}.pt", teacher, photographs) for n in (1, 60))
    assert after < 0.4 * before
    checkpoint = load_checkpoint(tmp_path / "60.pt")
    assert checkpoint.style == load_checkpoint(teacher).style
    assert set(checkpoint.history[-1]) >= {"total", "pixel"}
    assert "style" not in checkpoint.history[-1]


def test_what_is_learnt_is_the_teacher_s_picture_and_the_teacher_learns_nothing(
    teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    from topcoat.train.style import _loss

    network = load_checkpoint(teacher).build_network().requires_grad_(False)
    student = build_network("realtime", {"width": 4, "blocks": 0})
    with Image.open(next(iter(sorted(photographs.iterdir())))) as photo:
        frames = frame_tensor(photo.convert("RGB").crop((0, 0, 64, 64)))
    parts = _loss(None, TAUGHT, network)(student, frames)
    expected = (student(frames) - network(frames).clamp(0, 1)).abs().mean()
    torch.testing.assert_close(parts["total"], expected)
    parts["total"].backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is None for weight in network.parameters())
    assert all(weight.grad is not None for weight in student.parameters())


def test_a_resumed_run_goes_on_with_its_teacher_bit_for_bit(
    teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    whole, parted = tmp_path / "whole.pt", tmp_path / "parted.pt"
    recipe = replace(TAUGHT, schedule="constant")
    _train(replace(recipe, steps=6), whole, teacher=teacher, content=photographs)
    _train(replace(recipe, steps=4), parted, teacher=teacher, content=photographs)
    half = load_checkpoint(parted)
    assert half.state is not None
    assert half.state["teacher"] == str(teacher)
    _train(replace(recipe, steps=6), parted, content=None, resume=half)
    one, two = (load_checkpoint(path) for path in (whole, parted))
    assert two.step == 6
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_a_resumed_run_refuses_another_teacher(
    teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.pt"
    shutil.copy(teacher, mine)
    output = tmp_path / "out.pt"
    _train(replace(TAUGHT, steps=2), output, teacher=mine, content=photographs)
    resume, more = load_checkpoint(output), replace(TAUGHT, steps=4)
    # A shipped copy, elsewhere, is the same teacher.
    _train(more, tmp_path / "on.pt", content=photographs, resume=resume, teacher=teacher)
    changed = _checkpoint()
    next(iter(changed.weights.values()))[0] += 0.1
    save_checkpoint(changed, mine)
    for given in (None, mine):
        with pytest.raises(CheckpointError, match="other weights than the teacher that the run be"):
            _train(more, output, content=photographs, resume=resume, teacher=given)
    mine.unlink()
    with pytest.raises(CheckpointError, match=r"no longer at .*mine.pt; pass it with --teacher$"):
        _train(more, output, content=photographs, resume=resume)


def test_a_teacher_in_bfloat16_is_told_from_another_one(photographs: Path, tmp_path: Path) -> None:
    half = _checkpoint()
    half.weights = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in half.weights.items()
    }
    path, output = tmp_path / "half.pt", tmp_path / "out.pt"
    save_checkpoint(half, path)
    _train(replace(TAUGHT, steps=1), output, teacher=path, content=photographs)
    resume, more = load_checkpoint(output), replace(TAUGHT, steps=2)
    assert _train(more, output, content=photographs, resume=resume).step == 2
    next(iter(half.weights.values()))[0] += 0.1
    save_checkpoint(half, path)
    with pytest.raises(CheckpointError, match="other weights than the teacher that the run be"):
        _train(more, output, content=photographs, resume=resume)


def test_a_run_without_a_teacher_does_not_resume_with_one(
    teacher: Path, photographs: Path, loss_weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.pt"
    alone = replace(TAUGHT, supervision="style", style_size=64, steps=1)
    given: dict[str, Any] = {"content": photographs, "loss_weights": loss_weights}
    _train(alone, output, style="poster", **given)
    resume = load_checkpoint(output)
    with pytest.raises(RecipeError, match="--teacher would change nothing"):
        _train(replace(alone, steps=2), output, teacher=teacher, resume=resume, **given)


def test_the_style_counts_beside_the_teacher_and_must_be_the_teacher_s(
    teacher: Path, photographs: Path, loss_weights: Path, tmp_path: Path
) -> None:
    both = replace(TAUGHT, supervision="both", style_size=64, steps=1)
    given: dict[str, Any] = {
        "teacher": teacher,
        "content": photographs,
        "loss_weights": loss_weights,
    }
    _train(both, tmp_path / "both.pt", style="poster", **given)
    entry = load_checkpoint(tmp_path / "both.pt").history[-1]
    assert {"style", "content", "pixel"} <= set(entry)
    with pytest.raises(ContentError, match=r"trained on another style picture \('poster'\) than"):
        _train(both, tmp_path / "other.pt", style="mosaic", **given)


def test_a_crop_that_the_teacher_does_not_take_is_refused(
    photographs: Path, tmp_path: Path
) -> None:
    settings = {"scales": 6, "width": 4, "content": True}
    network = build_network("ulyanov", settings)
    pyramid = replace(
        _checkpoint(),
        network={"name": "ulyanov", "settings": settings},
        weights=network.state_dict(),
    )
    save_checkpoint(pyramid, tmp_path / "pyramid.pt")
    recipe = replace(TAUGHT, crop=72, steps=1)
    with pytest.raises(RecipeError, match=r"crop is 72, the teacher .* multiples of 32 .* 64$"):
        _train(recipe, tmp_path / "o.pt", teacher=tmp_path / "pyramid.pt", content=photographs)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--teacher", "gone.pt"), "no checkpoint at gone.pt"),
        (("--teacher", "SR"), "is of task 'super-resolution' and cannot teach a style"),
        (("--teacher", "NEWER"), "has checkpoint format 99, this version reads 1"),
        (("--teacher", "NOISE"), "is not a checkpoint, or was cut short"),
        (("--teacher", "FULL", "--targets", "pairs"), "both say what the output is to be"),
        (("--teacher", "FULL", "--style", "poster"), "--style would change nothing"),
        (("--teacher", "FULL", "--supervision", "style"), "--teacher would change nothing"),
        (("--teacher", "FULL", "--supervision", "both"), "needs the picture that the targets were"),
        (("--teacher", "FULL", "--style-weight", "3"), "--style-weight would change nothing"),
    ],
)
def test_a_teacher_that_cannot_teach_is_answered_in_one_line(
    refused: Refused,
    tmp_path_factory: pytest.TempPathFactory,
    teacher: Path,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    folder = tmp_path_factory.mktemp("bad")
    save_checkpoint(_checkpoint("super-resolution"), folder / "SR")
    content = torch.load(teacher, weights_only=True)
    torch.save({**content, "format_version": 99}, folder / "NEWER")
    (folder / "NOISE").write_bytes(np.random.default_rng(0).bytes(300))
    shutil.copy(teacher, folder / "FULL")
    places = {path.name: str(path) for path in folder.iterdir()}
    command = [places.get(part, part) for part in arguments]
    assert complaint in refused(main, ["--recipe", "realtime", *command])
