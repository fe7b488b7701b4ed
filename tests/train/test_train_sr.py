"""``train-sr`` as a user meets it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from topcoat.train import ContentError, DivergenceError, load_checkpoint
from topcoat.train.cli.train_sr import main
from topcoat.train.data import Photographs, require_patchable
from topcoat.train.degradation import degrade, imresize
from topcoat.train.frames import frame_tensor
from topcoat.train.loop import RunSettings
from topcoat.train.losses import SuperResolutionLoss
from topcoat.train.networks import build_network
from topcoat.train.networks._bicubic import BicubicUpsampling
from topcoat.train.pictures import open_rgb, sample_photographs
from topcoat.train.recipes import SR_RECIPES
from topcoat.train.super_resolution import SuperResolutionRun, train_super_resolution

from .conftest import Refused, Run, answers_without_torch

TINY = (
    *("--width", "4", "--patch", "32", "--batch", "2"),
    *("--preview-every", "0", "--workers", "0", "--precision", "fp32"),
)


@pytest.mark.parametrize(
    ("scale", "arguments", "parts"),
    [
        (2, ("--recipe", "srcnn"), {"pixel"}),
        (4, ("--blocks", "1"), {"pixel", "feature"}),
        (4, ("--recipe", "johnson2016-sr", "--blocks", "1"), {"feature", "tv"}),
        (8, ("--recipe", "johnson2016-sr", "--loss", "pixel", "--patch", "64"), {"pixel", "tv"}),
    ],
)
def test_a_scale_and_a_folder_become_a_checkpoint(
    train_sr: Run,
    tmp_path: Path,
    photographs: Path,
    scale: int,
    arguments: tuple[str, ...],
    parts: set[str],
) -> None:
    done = train_sr(
        *("--scale", scale, "--content", photographs, "--steps", 4, "--log-every", 2),
        *TINY,
        *("--preview-every", 4, "--output", "sr.pt"),
        *arguments,
    )
    assert done.returncode == 0, done.stderr
    assert "next: evaluate-sr FOLDER --model sr.pt" in done.stdout
    assert "      export-engine sr.pt" in done.stdout
    checkpoint = load_checkpoint(tmp_path / "sr.pt")
    assert (checkpoint.task, checkpoint.step) == ("super-resolution", 4)
    assert checkpoint.build_network().scale == checkpoint.recipe["scale"] == scale
    assert set(checkpoint.history[-1]) == {"step", "total", "learning_rate", "seconds", *parts}
    with Image.open(tmp_path / "sr.preview" / "step_000004.jpg") as strip:
        assert strip.size == (3 * 256 + 2 * 8, 3 * (256 + 14 + 8))


def test_a_pixel_loss_needs_no_loss_network(
    train_sr: Run, tmp_path: Path, photographs: Path
) -> None:
    done = train_sr(
        *("--content", photographs, "--loss", "pixel", "--steps", 1, *TINY),
        TOPCOAT_VGG16_WEIGHTS="gone.pth",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "residual-sr-x4-pixel.pt").is_file()


def test_a_resumed_run_arrives_at_the_same_weights_bit_for_bit(
    train_sr: Run, tmp_path: Path, photographs: Path
) -> None:
    # The paper's network: batch norm's running means must come back too. A constant rate, because
    # the cosine depends on the number of steps.
    common = ("--content", photographs, "--recipe", "johnson2016-sr", "--blocks", "1", *TINY)
    assert train_sr(*common, "--steps", 8, "--output", "straight.pt").returncode == 0
    assert train_sr(*common, "--steps", 4, "--output", "halved.pt").returncode == 0
    resumed = train_sr("--resume", "halved.pt", "--steps", 8)
    assert resumed.returncode == 0, resumed.stderr
    a, b = (load_checkpoint(tmp_path / name) for name in ("straight.pt", "halved.pt"))
    assert a.step == b.step == 8
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert any("running_mean" in name for name in a.weights)


def test_training_brings_a_network_closer_to_an_unseen_original_than_bicubic(
    tmp_path: Path, photographs: Path
) -> None:
    seen = tmp_path / "seen"
    shutil.copytree(photographs, seen)
    unseen = Photographs([(seen / "chelsea.jpg").rename(tmp_path / "unseen.jpg")], 64, "native", 1)
    changes: dict[str, Any] = {
        **{"scale": 2, "loss": "pixel", "pixel_form": "l2", "width": 16, "blocks": 1},
        **{"patch": 64, "batch": 4, "steps": 60, "learning_rate": 3e-3, "precision": "fp32"},
    }
    recipe = replace(SR_RECIPES["modern"], **changes)
    settings = RunSettings(output=tmp_path / "x.pt", workers=0, quiet=True, preview_every=0)
    outcome = train_super_resolution(
        SuperResolutionRun(content=seen, recipe=recipe, settings=settings)
    )
    network = load_checkpoint(outcome.checkpoint).build_network()
    originals = torch.stack([unseen[i].pixels for i in range(6)]).permute(0, 3, 1, 2) / 255
    small = degrade(originals, 2)
    with torch.no_grad():
        ours = (network(small) - originals).square().mean()
    bicubic = (imresize(small, enlarge=2) - originals).square().mean()
    assert ours < 0.85 * bicubic  # 0.7 dB


@pytest.mark.parametrize("name", SR_RECIPES)
def test_a_step_in_bfloat16_is_close_to_one_in_float32(name: str) -> None:
    """Autocast is the default where the processor computes in it."""
    recipe = replace(SR_RECIPES[name], width=8, loss="pixel", pixel_form="l1", tv_weight=0.0)
    torch.manual_seed(0)
    network = build_network(recipe.network, recipe.network_settings()).train()
    objective = SuperResolutionLoss(None, recipe)
    original = frame_tensor(open_rgb(sample_photographs()[0]).crop((0, 0, 64, 64)))
    small = degrade(original, recipe.scale, recipe.blur)
    gradients, losses = [], []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total = objective(network(small), original)["total"]
        found = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
        gradients.append(torch.cat([g.float().flatten() for g in found if g is not None]))
        losses.append(total.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.98


def test_the_bicubic_base_is_float32_under_autocast() -> None:
    frame = torch.rand(1, 3, 8, 8, generator=torch.manual_seed(0))
    bicubic = BicubicUpsampling(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bicubic(frame), bicubic(frame.float()))
    assert torch.equal(bicubic(frame), bicubic(frame))


def test_a_run_in_which_nothing_was_learnt_is_no_success(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_finite(frame: Tensor, scale: int, blur: float) -> Tensor:
        return degrade(frame, scale, blur) * float("nan")

    monkeypatch.setattr("topcoat.train.super_resolution.degrade", nothing_finite)
    recipe = replace(SR_RECIPES["modern"], loss="pixel", width=4, patch=32, batch=1, steps=2)
    settings = RunSettings(output=tmp_path / "x.pt", workers=0, quiet=True, preview_every=0)
    with pytest.raises(DivergenceError, match="none of its 2 steps gave finite losses"):
        train_super_resolution(
            SuperResolutionRun(content=photographs, recipe=recipe, settings=settings)
        )
    assert not (tmp_path / "x.pt").exists()


def test_patches_are_cut_unscaled_mirrored_and_turned(tmp_path: Path) -> None:
    picture = Image.effect_noise((40, 40), 100).convert("RGB")
    picture.save(tmp_path / "a.png")
    dataset = Photographs([tmp_path / "a.png"], 40, "native", seed=0)
    seen = {dataset[i].pixels.numpy().tobytes() for i in range(60)}
    turns = [picture.rotate(90 * i) for i in range(4)]
    every = {p.tobytes() for p in turns}
    every |= {p.transpose(Image.Transpose.TRANSPOSE).tobytes() for p in turns}
    assert seen == every
    assert len(every) == 8


def test_pictures_smaller_than_a_patch_are_replaced_and_named(
    tmp_path: Path, photographs: Path
) -> None:
    shutil.copytree(photographs, tmp_path, dirs_exist_ok=True)
    Image.new("RGB", (60, 200)).save(tmp_path / "small.png")
    dataset = Photographs([tmp_path / "small.png", tmp_path / "coffee.jpg"], 64, "native", seed=0)
    samples = [dataset[i] for i in range(2)]
    assert all(sample.pixels.shape == (64, 64, 3) for sample in samples)
    (message,) = {message for sample in samples for message in sample.broken}
    assert "small.png is 60x200, smaller than a patch of 64x64" in message
    require_patchable(dataset.pictures, 64)  # one that is large enough is enough
    with pytest.raises(ContentError, match=r"none of 1 pictures .*small\.png is 60x200.*larger pi"):
        require_patchable([tmp_path / "small.png"], 64)


def test_a_panorama_is_good_enough_for_patches(tmp_path: Path) -> None:
    Image.new("RGB", (900, 70)).save(tmp_path / "panorama.png")
    dataset = Photographs([tmp_path / "panorama.png"], 64, "native", seed=0)
    assert dataset[0].pixels.shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--content", "gone"), "content folder gone is not there"),
        (("--recipe", "johnson2016"), "no recipe 'johnson2016'; choose among modern"),
        (("--patch", "190"), "patch must be a multiple of the scale, 4"),
        (("--patch", "16"), "of at least 32 pixels"),
        (("--patch", "2048"), "smaller than a patch of 2048x2048"),
        (("--blur", "-1"), "blur must be 0 or from 0.1 to 16 pixels"),
        (("--blur", "1e-30"), "blur must be 0 or from 0.1 to 16 pixels"),
        (("--loss", "feature", "--feature-weight", "0"), "feature_weight must not be zero"),
        (("--loss", "pixel", "--loss-weights", "x.pth"), "--loss-weights would change nothing"),
        (
            ("--recipe", "srcnn", "--blocks", "2"),
            "--blocks would change nothing here, see --show-recipe; it belongs to residual-sr",
        ),
        (("--loss", "pixel", "--feature-layer", "relu1_2"), "--feature-layer would change nothing"),
        (("--feature-layer", "relu4_3"), "choose layers up to there with --feature-layer"),
        (("--resume", "gone.pt"), "no checkpoint at gone.pt"),
        (("--resume", "gone.pt", "--scale", "2"), "--scale cannot change when resuming"),
    ],
)
def test_a_mistake_is_answered_in_one_line_with_exit_code_2(
    refused: Refused, arguments: tuple[str, ...], complaint: str
) -> None:
    error = refused(main, arguments)
    assert error.startswith("train-sr: ")
    assert complaint in error


def test_the_paper_s_total_variation_beside_a_pixel_loss_is_remarked_upon(
    train_sr: Run, photographs: Path
) -> None:
    done = train_sr("--recipe", "johnson2016-sr", "--loss", "pixel", "--steps", 1, *TINY)
    assert done.returncode == 0, done.stderr
    assert "note: beside a pixel loss, total variation of 1e-06" in done.stderr
    assert "training on the six photographs" in done.stderr


def test_a_bundle_cannot_be_resumed_and_is_called_a_bundle(train_sr: Run, tmp_path: Path) -> None:
    (tmp_path / "x4.topcoat").mkdir()
    done = train_sr("--resume", "x4.topcoat")
    assert done.returncode == 2
    assert "x4.topcoat is a folder, not a checkpoint; give a .pt file; a bundle is" in done.stderr


def test_a_scale_that_no_network_has_is_answered_with_those_there_are(train_sr: Run) -> None:
    done = train_sr("--scale", "3")
    assert done.returncode == 2
    assert "--scale: invalid choice: 3 (choose from 2, 4, 8)" in done.stderr


def test_each_command_names_the_other_for_its_checkpoints(
    train_sr: Run, train_style: Run, photographs: Path, tiny: tuple[str, ...]
) -> None:
    content = ("--content", photographs, "--steps", 1)
    assert train_style("--style", "dots", *content, *tiny).returncode == 0
    assert train_sr(*content, *TINY, "--loss", "pixel", "--output", "sr.pt").returncode == 0
    refused = train_sr("--resume", "dots.pt")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "is of task 'style', train-sr resumes 'super-resolution'; use train-style" in (
        refused.stderr
    )
    refused = train_style("--resume", "sr.pt")
    assert refused.returncode == 2
    assert "use train-sr" in refused.stderr


def test_help_and_lists_answer_without_loading_torch(environment: dict[str, str]) -> None:
    for option, expected in (("--help", "--feature-weight"), ("--list-recipes", "johnson2016-sr")):
        assert expected in answers_without_torch("topcoat.train.cli.train_sr", option, environment)


def test_the_paper_s_recipe_holds_the_paper_s_numbers(train_sr: Run) -> None:
    shown = json.loads(train_sr("--show-recipe", "--recipe", "johnson2016-sr").stdout)
    assert (shown["network"], shown["width"], shown["blocks"]) == ("johnson-sr", 64, 4)
    assert (shown["loss"], shown["feature_layer"], shown["blur"]) == ("feature", "relu2_2", 1.0)
    assert (shown["patch"], shown["batch"], shown["steps"]) == (288, 4, 200_000)
    assert (shown["learning_rate"], shown["schedule"]) == (1e-3, "constant")
