"""``train-texture`` and what it is made of: noise frames, the diversity term, its recipes."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from topcoat.train import RecipeError, load_checkpoint
from topcoat.train.cli import train_style as style_command
from topcoat.train.cli.train_texture import main
from topcoat.train.data import batches
from topcoat.train.frames import array_tensor
from topcoat.train.loop import _schedule
from topcoat.train.losses import diversity
from topcoat.train.noise import NoiseFrames, noise_frame
from topcoat.train.recipes import TEXTURE_RECIPES, TextureRecipe
from topcoat.train.texture import as_shown

from .conftest import Refused, answers_without_torch

TINY = (
    *("--scales", "3", "--width", "2", "--sample-size", "32", "--batch", "2"),
    *("--texture-size", "64", "--preview-every", "0", "--precision", "fp32", "--quiet"),
    *("--style-layers", "relu1_1,relu2_1"),
)
Trained = Callable[..., Path]


@pytest.fixture
def trained(loss_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Run the command in this process, in a folder with two pictures; the checkpoint it wrote."""
    for number, name in enumerate(("dots", "rings")):
        Image.fromarray(noise_frame(64, 64, number)).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOPCOAT_VGG16_WEIGHTS", str(loss_weights))
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")

    def run(output: str, *arguments: str) -> Path:
        assert main([*arguments, "--output", output]) == 0
        return tmp_path / output

    return run


# Noise


def test_a_seed_s_noise_frame_is_numpy_s_default_generator() -> None:
    expected = np.random.default_rng(7).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(noise_frame(4, 6, seed=7), expected)


def test_noise_samples_depend_on_seed_and_number_alone() -> None:
    frames = NoiseFrames(16, seed=3)
    assert frames[5].pixels.shape == (16, 16, 3)
    assert frames[5].pixels.dtype == torch.uint8
    assert torch.equal(frames[5].pixels, NoiseFrames(16, seed=3)[5].pixels)
    for other in (frames[6], NoiseFrames(16, seed=4)[5]):
        assert not torch.equal(frames[5].pixels, other.pixels)


def test_two_processes_share_the_noise_that_one_would_get() -> None:
    frames = NoiseFrames(8, seed=0)
    (whole, _), *_ = batches(frames, range(2, 3), 4, workers=0)
    parts = [next(batches(frames, range(2, 3), 4, workers=0, rank=r, processes=2)) for r in (0, 1)]
    assert whole.shape == (4, 3, 8, 8)
    assert torch.equal(whole, torch.cat([pixels for pixels, _ in parts]))


# Diversity


def test_diversity_is_the_mean_log_distance_to_the_nearest_other_picture() -> None:
    # RMS distances: 1 - 0 apart by 3, 1 - 2 by 1, 0 - 2 by 4 (all values of a picture alike).
    levels = torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64)
    pictures = levels.reshape(3, 1, 1, 1).expand(3, 3, 4, 5)
    expected = (math.log(3) + math.log(1) + math.log(1)) / 3
    assert diversity(pictures).item() == pytest.approx(expected, abs=1e-6)


def test_diversity_does_not_depend_on_the_size_and_gains_ln_2_where_distances_double() -> None:
    small = torch.rand(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(diversity(small.repeat_interleave(2, 3)), diversity(small))
    gained = diversity(2 * small) - diversity(small)
    assert gained.item() == pytest.approx(math.log(2), abs=1e-4)


def test_diversity_gradient_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(diversity, outputs)


def test_equal_pictures_have_a_finite_diversity_and_gradient() -> None:
    outputs = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    value = diversity(outputs)
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(math.log(1e-3), abs=1e-4)
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_diversity_of_one_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two pictures, got 1"):
        diversity(torch.zeros(1, 3, 4, 4))


# Clipping


def test_a_clipped_value_has_the_gradient_that_leads_back_and_no_other() -> None:
    values = torch.tensor([-0.5, -0.5, 0.5, 0.5, 1.5, 1.5], requires_grad=True)
    shown = as_shown(values)
    assert shown.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    # A step goes against the gradient: -1 raises a value, 1 lowers it.
    torch.autograd.backward(shown, torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]))
    assert values.grad is not None
    assert values.grad.tolist() == [-1.0, 0.0, -1.0, 1.0, 0.0, 1.0]


# Recipes


def test_ulyanov2016_holds_the_paper_s_numbers() -> None:
    paper = TEXTURE_RECIPES["ulyanov2016"]
    assert paper.style_layers == ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    assert (paper.loss_network, paper.resolved_gram_form()) == ("vgg19", "johnson2016-code")
    assert (paper.learning_rate, paper.batch, paper.sample_size, paper.steps) == (
        0.1,
        16,
        256,
        2000,
    )
    assert paper.network_settings() == {
        **{"scales": 5, "width": 8, "norm": "batch", "activation": "leaky"},
        **{"upsampling": "nearest", "content": False, "padding": "circular"},
    }


def test_ulyanov2016_decays_by_0_7_at_step_1000_and_every_200_after() -> None:
    shares = [_schedule("ulyanov2016", step, 2000) for step in (0, 999, 1000, 1199, 1200, 1999)]
    assert shares == pytest.approx([1, 1, 0.7, 0.7, 0.49, 0.7**5])
    later = [_schedule("ulyanov2017", step, 9) for step in (0, 1999, 2000, 4000)]
    assert later == pytest.approx([1, 1, 0.8, 0.64])


def test_every_recipe_survives_a_checkpoint() -> None:
    for name, entry in TEXTURE_RECIPES.items():
        assert TextureRecipe.from_dict(entry.to_dict()) == entry
        assert entry.name == name


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sample_size": 100}, "sample_size must be a multiple of 8 .* got 100; try 96"),
        ({"sample_size": 16, "scales": 5}, "of at least 32 for 5 scales, got 16; try 32"),
        ({"scales": 9}, "scales must be 1 to 7, got 9"),
        ({"texture_size": 8}, "texture_size must be 64 to 4096 pixels"),
        ({"style_weight": 0.0}, "both 0: nothing would be learnt"),
        ({"content_weight": 1.0}, "content_weight must be 0 for a texture"),
        ({"diversity_weight": -1.0}, "diversity_weight must be 0 or more"),
        ({"diversity_weight": 1.0, "batch": 1}, "batch must be at least 2 for the diversity term"),
    ],
)
def test_a_field_out_of_range_says_what_is_wanted(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        replace(TEXTURE_RECIPES["modern"], **changes)


# The command


def test_a_picture_becomes_a_checkpoint_whose_textures_tile(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained(
        "dots.pt", "--texture", "dots.png", "--steps", "4", *TINY, "--preview-every", "2"
    )
    assert "next: export-engine dots.pt" in capsys.readouterr().out
    previews = sorted(entry.name for entry in path.with_suffix(".preview").iterdir())
    assert previews == ["step_000002.jpg", "step_000004.jpg"]
    with Image.open(path.with_suffix(".preview") / previews[0]) as sheet:
        assert sheet.size == (4 * 256 + 3 * 8, 256 + 14)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.task, checkpoint.step, checkpoint.style["name"]) == ("texture", 4, "dots")
    network = checkpoint.build_network().eval()
    noise = array_tensor(noise_frame(16, 24, seed=0))
    with torch.no_grad():
        once, tiled = network(noise), network(noise.tile(1, 1, 2, 2))
        other = network(array_tensor(noise_frame(16, 24, seed=1)))
    torch.testing.assert_close(tiled, once.tile(1, 1, 2, 2), rtol=0, atol=1e-4)
    assert (once - other).abs().max() > 1e-3


def test_a_resumed_run_arrives_at_the_same_weights_bit_for_bit(trained: Trained) -> None:
    common = (
        *("--texture", "rings.png", *TINY, "--schedule", "constant", "--histogram-weight", "1"),
        *("--histogram-samples", "100", "--diversity-weight", "0.1"),
    )
    straight = load_checkpoint(trained("straight.pt", *common, "--steps", "6"))
    trained("stopped.pt", *common, "--steps", "3")
    resumed = load_checkpoint(
        trained("stopped.pt", "--resume", "stopped.pt", "--steps", "6", "--quiet")
    )
    assert resumed.step == straight.step == 6
    for name, values in straight.weights.items():
        assert torch.equal(values, resumed.weights[name]), name
    assert {"total", "style", "histogram", "diversity"} <= set(resumed.history[-1])


def test_training_brings_the_gram_matrices_nearer(trained: Trained) -> None:
    path = trained("t.pt", "--texture", "dots.png", "--steps", "30", *TINY, "--log-every", "1")
    losses = [entry["style"] for entry in load_checkpoint(path).history]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_another_texture_than_the_run_began_with_is_refused(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    trained("dots.pt", "--texture", "dots.png", "--steps", "2", *TINY)
    assert main(["--resume", "dots.pt", "--texture", "rings.png", "--steps", "4", "--quiet"]) == 2
    assert "trained on another texture picture ('dots') than 'rings'" in capsys.readouterr().err


def test_a_texture_checkpoint_is_not_resumed_as_a_style(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    trained("dots.pt", "--texture", "dots.png", "--steps", "2", *TINY)
    assert style_command.main(["--resume", "dots.pt", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "is of task 'texture', train-style resumes 'style'; use train-texture" in error


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "no texture given; pass --texture PICTURE"),
        (("--texture", "bark"), "no picture at 'bark' and no built-in"),
        (("--texture", "dots", "--recipe", "gatys"), "no recipe 'gatys'; choose among modern"),
        (("--texture", "dots", "--sample-size", "100"), "try 96"),
        (("--texture", "dots", "--histogram-samples", "9"), "would change nothing here"),
        (("--texture", "dots", "--style-layers", "relu9_1"), "relu9_1"),
        (("--resume", "missing.pt"), "missing.pt"),
        (("--texture", "dots", "--batch", "1", "--diversity-weight", "1"), "at least 2"),
        (("--texture", "dots", "--threads", "0"), "--threads must be at least 1"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: Sequence[str], complaint: str, refused: Refused
) -> None:
    error = refused(main, arguments)
    assert error.startswith("train-texture: ")
    assert complaint in error


def test_every_other_recipe_field_is_an_option_with_a_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for entry in dataclasses.fields(TextureRecipe):
        if entry.name not in ("name", *TextureRecipe.without):
            assert "--" + entry.name.replace("_", "-") in text
            assert " ".join(entry.metadata["reason"].split()[:4]) in text


@pytest.mark.parametrize("option", ["--content", "--content-weight", "--workers"])
def test_what_a_texture_has_no_use_for_is_no_option(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["--texture", "dots", option, "1"])
    assert refusal.value.code == 2
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_the_recipe_is_shown_without_torch(environment: dict[str, str]) -> None:
    shown = answers_without_torch("topcoat.train.cli.train_texture", "--show-recipe", environment)
    assert json.loads(shown.rsplit("}", 1)[0] + "}")["network"] == "ulyanov"


def test_a_style_can_be_learnt_by_the_same_network(
    loss_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOPCOAT_VGG16_WEIGHTS", str(loss_weights))
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")
    Image.fromarray(noise_frame(64, 64, 0)).save("dots.png")
    arguments = ["--style", "dots.png", "--content", str(photographs), "--network", "ulyanov"]
    arguments += ["--scales", "3", "--scale-width", "2", "--noise", "on", "--schedule", "constant"]
    arguments += ["--crop", "32", "--batch", "2", "--style-size", "64", "--precision", "fp32"]
    arguments += ["--preview-every", "0", "--workers", "0", "--quiet"]
    assert style_command.main([*arguments, "--steps", "4", "--output", "a.pt"]) == 0
    assert style_command.main([*arguments, "--steps", "2", "--output", "b.pt"]) == 0
    assert (
        style_command.main(["--resume", "b.pt", "--steps", "4", "--quiet", "--workers", "0"]) == 0
    )
    straight, resumed = load_checkpoint(Path("a.pt")), load_checkpoint(Path("b.pt"))
    # The noise of every step comes from the generator whose state the checkpoint holds.
    for name, values in straight.weights.items():
        assert torch.equal(values, resumed.weights[name]), name
    network = straight.build_network().eval()
    assert network.takes == "frame"
    assert network(torch.rand(1, 3, 16, 24)).shape == (1, 3, 16, 24)
