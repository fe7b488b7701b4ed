"""The loss network that topcoat-train carries, and when it stands in for VGG16."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from topcoat.train import LossWeightsError, RecipeError, load_checkpoint
from topcoat.train.checkpoint import save_checkpoint
from topcoat.train.cli.optimize_image import main as optimize_image
from topcoat.train.cli.train_sr import main as train_sr
from topcoat.train.cli.train_style import main as train_style
from topcoat.train.cli.train_texture import main as train_texture
from topcoat.train.frames import frame_tensor
from topcoat.train.losses import (
    LossNetwork,
    PerceptualLoss,
    find_loss_weights,
    load_loss_network,
    perceptual_network,
    style_target,
)
from topcoat.train.losses import _loss_weights as files
from topcoat.train.losses.features import layer_index, layer_names
from topcoat.train.pictures import open_rgb, resize_shorter_side, sample_photographs
from topcoat.train.recipes import OPTIMIZE_RECIPES, STYLE_RECIPES

from .conftest import TINY, Refused

ROOT = Path(__file__).parents[2]
LAYERS = ["relu1_2", "relu2_2", "relu3_3"]
FILE = find_loss_weights("embedded").path
SHIPPED = ("embedded.safetensors", "embedded.json", "embedded.md")
Main = Callable[[Sequence[str]], int]


@pytest.fixture(scope="session")
def picture(photographs: Path) -> str:
    """A small picture to take as the style: drawing a built-in one takes a second."""
    return str(photographs / "coffee.jpg")


def _frame(height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


# The network


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("size", [(32, 32), (37, 51)])
def test_its_layers_have_the_shapes_of_vgg16_s(
    pooling: Literal["max", "average"], size: tuple[int, int]
) -> None:
    vgg = LossNetwork("vgg16", LAYERS, pooling=pooling)(_frame(*size))
    ours = load_loss_network("embedded", LAYERS, FILE, pooling=pooling)(_frame(*size))
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in vgg.items()
    }


def test_its_layers_sit_where_vgg16_s_do_and_there_are_no_others() -> None:
    assert layer_names("embedded") == {name: layer_index("vgg16", name) for name in LAYERS}


def test_it_has_the_weights_of_its_file_in_single_precision() -> None:
    stored = load_file(FILE)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    state = load_loss_network("embedded", LAYERS, FILE).state_dict()
    assert set(state) == set(stored)
    for name, value in state.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float())


def test_it_is_as_wide_as_its_file_says_and_no_deeper_than_asked_for() -> None:
    widths = json.loads(FILE.with_suffix(".json").read_text())["widths"]
    for network in (
        LossNetwork("embedded", LAYERS[:2]),
        load_loss_network("embedded", LAYERS[:2], FILE),
    ):
        convs = [m for m in network.features if isinstance(m, torch.nn.Conv2d)]
        assert [conv.out_channels for conv in convs] == widths[:4]


def test_a_student_of_any_widths_is_built_in_vgg16_s_layout() -> None:
    student = LossNetwork("vgg16", ["relu1_2", "relu2_2"], widths=(4, 64, 8, 128))
    found = student(_frame())
    assert [tuple(value.shape) for value in found.values()] == [(1, 64, 32, 32), (1, 128, 16, 16)]
    with pytest.raises(RecipeError, match="each of the 4 convolutions up to relu2_2, got 3"):
        LossNetwork("vgg16", ["relu2_2"], widths=(4, 64, 8))


def test_its_description_is_of_its_file() -> None:
    described = json.loads(FILE.with_suffix(".json").read_text())
    content = FILE.read_bytes()
    assert described["sha256"] == hashlib.sha256(content).hexdigest()
    assert described["bytes"] == len(content) <= 1_500_000
    state = load_file(FILE)
    assert described["parameters"] == sum(value.numel() for value in state.values())
    assert described["layers"] == LAYERS


def test_its_features_are_as_near_vgg16_s_as_its_description_says() -> None:
    weights = os.environ.get("TOPCOAT_VGG16_WEIGHTS")
    if not weights:
        pytest.skip("TOPCOAT_VGG16_WEIGHTS is not set: the student is not held against VGG16")
    stated = json.loads(FILE.with_suffix(".json").read_text())["errors"]["photographs"]
    vgg, ours = (
        load_loss_network(*of)
        for of in (("vgg16", LAYERS, weights), ("embedded", LAYERS, str(FILE)))
    )
    errors: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    for path in sample_photographs():
        frame = frame_tensor(resize_shorter_side(open_rgb(path), 128))
        with torch.no_grad():
            wanted, found = vgg(frame), ours(frame)
        for layer in LAYERS:
            energy = wanted[layer].square().mean()
            errors[layer].append(float((found[layer] - wanted[layer]).square().mean() / energy))
    for layer, values in errors.items():
        # Other photographs than those of the description, and few: within a factor of two.
        assert sum(values) / len(values) < 2 * stated[layer]["features"]


def test_activations_computed_again_give_the_same_losses_and_gradients() -> None:
    recipe = replace(OPTIMIZE_RECIPES["modern"], loss_network="embedded")
    network, path = perceptual_network(recipe)
    assert path == FILE
    objective = PerceptualLoss(network, [style_target(network, _frame(seed=1), recipe)], recipe)
    found = []
    for network.checkpointing in (False, True):
        frame = _frame(seed=2).requires_grad_()
        losses = objective(frame, _frame(seed=3))
        (gradient,) = torch.autograd.grad(losses["total"], frame)
        found.append((losses, gradient))
    assert float(found[0][1].abs().max()) > 0
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_unit_mean_scales_the_narrow_layers_too() -> None:
    recipe = replace(OPTIMIZE_RECIPES["modern"], loss_network="embedded")
    plain, scaled = (
        perceptual_network(replace(recipe, loss_activations=name))[0]
        for name in ("plain", "unit-mean")
    )
    frame = frame_tensor(resize_shorter_side(open_rgb(sample_photographs()[0]), 64))
    for layer in LAYERS:
        before, after = plain(frame)[layer], scaled(frame)[layer]
        # What the network computes is the same but for one positive factor for each channel.
        factor = after.sum((0, 2, 3)) / before.sum((0, 2, 3)).clamp_min(1e-12)
        torch.testing.assert_close(
            after, before * factor[None, :, None, None], rtol=1e-3, atol=1e-4
        )
        assert 0.2 < float(after.mean()) < 5


# What it has not


@pytest.mark.parametrize("layer", ["relu1_1", "relu3_2", "relu4_3", "conv5_1"])
def test_another_layer_is_answered_with_those_it_has_and_with_who_has_the_others(
    layer: str,
) -> None:
    with pytest.raises(RecipeError) as caught:
        layer_index("embedded", layer)
    assert str(caught.value) == (
        f"embedded has no layer {layer!r}; choose among relu1_2, relu2_2, relu3_3; "
        "--loss-network vgg16 has the others"
    )


def test_a_layer_that_vgg16_has_not_is_not_looked_for_there() -> None:
    with pytest.raises(RecipeError, match=r"'relu9_9'; choose among relu1_2, relu2_2, relu3_3$"):
        layer_index("embedded", "relu9_9")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "johnson2016"], "embedded has no layer 'relu4_3'; choose among relu1_2"),
        (["--histogram-weight", "1"], "embedded has no layer 'relu1_1'"),
        (["--loss-weights", "vgg.pth"], "--loss-weights would change nothing"),
        (["--loss-input", "imagenet"], "loss_input must be oxford for the embedded loss network"),
        (["--loss-pooling", "average"], "got average; pass --loss-pooling max, or --loss-network"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    refused: Refused, photographs: Path, picture: str, options: list[str], said: str
) -> None:
    command = ["--style", picture, "--content", str(photographs), *TINY]
    assert said in refused(train_style, [*command, "--loss-network", "embedded", *options])


# Its files


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the weights and their description, which is then the one that is used."""
    for name in SHIPPED[:2]:
        shutil.copy(FILE.with_name(name), tmp_path)
    monkeypatch.setattr(files, "_EMBEDDED_FILE", tmp_path / FILE.name)
    return tmp_path / FILE.name


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _description(text: str) -> Callable[[Path], Any]:
    return lambda path: path.with_suffix(".json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_cut, r"embedded\.safetensors is missing or damaged \(its SHA-256 is another\)"),
        (_one_bit, r"embedded\.safetensors is missing or damaged \(its SHA-256 is another\)"),
        (Path.unlink, r"embedded\.safetensors is missing or damaged \(No such file"),
        (lambda path: path.with_suffix(".json").unlink(), r"embedded\.json is missing or damaged"),
        (_description("{"), r"embedded\.json is missing or damaged \(it cannot be read\)"),
        (_description("[]"), r"embedded\.json is missing or damaged \(it cannot be read\)"),
        (_description('{"sha256": 1, "layers": []}'), r"embedded\.json is missing or damaged"),
    ],
)
def test_files_that_are_not_as_shipped_are_refused(
    elsewhere: Path, damage: Callable[[Path], Any], why: str
) -> None:
    damage(elsewhere)
    with pytest.raises(LossWeightsError, match=f"{why}.*; install topcoat-train again$"):
        perceptual_network(replace(STYLE_RECIPES["modern"], loss_network="embedded"))


def test_vgg16_can_be_given_as_safetensors_too(tmp_path: Path) -> None:
    state = LossNetwork("vgg16", ["relu1_2"]).state_dict()
    save_file(state, tmp_path / "vgg.safetensors")
    network = load_loss_network("vgg16", ["relu1_2"], tmp_path / "vgg.safetensors")
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(LossWeightsError, match=r"shape \(16, 3, 3, 3\), vgg16 wants \(64, 3, 3, 3"):
        load_loss_network("vgg16", ["relu1_2"], FILE)
    (tmp_path / "cut.safetensors").write_bytes(FILE.read_bytes()[:1000])
    with pytest.raises(LossWeightsError, match=r"cut\.safetensors is not a readable weight file"):
        load_loss_network("vgg16", ["relu1_2"], tmp_path / "cut.safetensors")


def test_no_ignored_file_is_needed() -> None:
    # What git ignores is left out of the wheel.
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is ignored is unknown")
    paths = [str(FILE.with_name(name)) for name in SHIPPED]
    done = subprocess.run(
        ["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_the_wheel_holds_the_files(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: no wheel is built")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=ROOT / "train",
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in SHIPPED:
            assert archive.read(f"topcoat/train/losses/{name}") == FILE.with_name(name).read_bytes()


# When it stands in


@pytest.fixture
def no_vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where VGG's weights are nowhere and the network is down."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("TOPCOAT_VGG16_WEIGHTS", "TOPCOAT_VGG19_WEIGHTS", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens on this port
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")
    return folder


STOOD_IN = (
    "no weights of VGG16 here, and the download failed (Connection refused): the embedded loss "
    "network stands in; --loss-network vgg16 insists on VGG16\n"
)
SMALL = ("--steps", "2", "--precision", "fp32", "--quiet")
SR = ("--scale", "2", "--width", "4", "--blocks", "1", "--patch", "32", "--batch", "2")


def test_a_style_is_trained_where_there_is_neither_a_network_nor_anything_else(
    no_vgg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_style(["--style", "mosaic", *SMALL, *TINY]) == 0
    assert capsys.readouterr().err == STOOD_IN
    checkpoint = load_checkpoint(no_vgg / "mosaic.pt")
    assert checkpoint.recipe == {
        **checkpoint.recipe,
        "name": "modern",
        "loss_network": "embedded",
        "loss_input": "auto",
    }
    # Resuming looks for nothing: what was begun with it goes on with it.
    assert train_style(["--resume", "mosaic.pt", "--steps", "3", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert load_checkpoint(no_vgg / "mosaic.pt").step == 3


@pytest.mark.parametrize(
    ("main", "options", "output"),
    [
        (train_sr, ("--workers", "0", "--preview-every", "0", *SR), "residual-sr-x2-mix.pt"),
        (
            train_texture,
            (
                *(
                    "--texture",
                    "coffee.jpg",
                    "--scales",
                    "3",
                    "--width",
                    "2",
                    "--sample-size",
                    "32",
                ),
                *("--batch", "2", "--texture-size", "64", "--preview-every", "0"),
                *("--style-layers", "relu1_2,relu2_2", "--loss-pooling", "max"),
            ),
            "coffee.pt",
        ),
    ],
)
def test_it_stands_in_when_other_networks_are_trained(
    no_vgg: Path,
    capsys: pytest.CaptureFixture[str],
    photographs: Path,
    picture: str,
    main: Main,
    options: tuple[str, ...],
    output: str,
) -> None:
    given = [option.replace("coffee.jpg", picture) for option in options]
    content = ["--content", str(photographs)] if main is train_sr else []
    assert main([*given, *SMALL, *content]) == 0
    assert capsys.readouterr().err == STOOD_IN
    assert load_checkpoint(no_vgg / output).recipe["loss_network"] == "embedded"


OPTIMIZE = ("--size", "32", "--steps", "2", "--precision", "fp32", "--quiet")


def test_it_stands_in_when_a_picture_is_optimised(
    no_vgg: Path, capsys: pytest.CaptureFixture[str], photographs: Path, picture: str
) -> None:
    photograph = str(photographs / "chelsea.jpg")
    chosen = ["--loss-network", "embedded"]
    assert optimize_image([photograph, picture, *OPTIMIZE, "-o", "chosen.png", *chosen]) == 0
    assert capsys.readouterr().err == ""
    assert optimize_image([photograph, picture, *OPTIMIZE, "-o", "out.png"]) == 0
    assert capsys.readouterr().err == STOOD_IN
    assert (no_vgg / "out.png").read_bytes() == (no_vgg / "chosen.png").read_bytes()


def test_a_sheet_says_in_its_json_which_network_stood_in(
    no_vgg: Path, capsys: pytest.CaptureFixture[str], photographs: Path, picture: str
) -> None:
    command = [str(photographs / "chelsea.jpg"), picture, *OPTIMIZE, "-o", "sheet.png", "--sweep"]
    assert optimize_image([*command, "strength=1,2"]) == 0
    assert capsys.readouterr().err == STOOD_IN
    written = json.loads((no_vgg / "sheet.json").read_text())
    assert written["recipe"]["loss_network"] == "embedded"


# When it does not


def _refused(main: Main, arguments: Sequence[str], folder: Path) -> None:
    assert main([*arguments]) == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        # VGG16 was chosen.
        (["--loss-network", "vgg16"], "--loss-weights FILE, or use --loss-network embedded\n"),
        # It has not all layers.
        (
            ["--recipe", "johnson2016"],
            "the embedded loss network cannot stand in: it has no relu4_3\n",
        ),
        # It learnt with another pooling.
        (
            ["--loss-pooling", "average"],
            "cannot stand in: loss_pooling must be max for the embedded loss network, which learnt "
            "from VGG16 with that, got average; pass --loss-pooling max, or --loss-network vgg16\n",
        ),
        # It is no student of VGG19, nor of VGG16 with another input.
        (["--loss-network", "vgg19"], "elsewhere and pass --loss-weights FILE\n"),
        (["--loss-input", "imagenet"], "elsewhere and pass --loss-weights FILE\n"),
    ],
)
def test_it_does_not_stand_in_where_it_cannot_or_another_was_chosen(
    no_vgg: Path,
    capsys: pytest.CaptureFixture[str],
    photographs: Path,
    picture: str,
    options: list[str],
    said: str,
) -> None:
    command = ["--style", picture, "--content", str(photographs), *TINY, "--batch", "2"]
    _refused(train_style, [*command, *options], no_vgg)
    error = capsys.readouterr().err
    assert error.startswith("train-style: no vgg1")
    assert "the download failed (Connection refused)" in error
    assert error.endswith(said)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("main", "options"),
    [
        (train_style, ("--style", "STYLE", "--content", "PHOTOGRAPHS")),
        (train_sr, ("--content", "PHOTOGRAPHS", *SR)),
        (train_texture, ("--texture", "STYLE", "--texture-size", "64")),
        (optimize_image, ("PHOTOGRAPH", "STYLE", "-o", "out.png")),
        (optimize_image, ("PHOTOGRAPH", "STYLE", "-o", "out.png", "--sweep", "strength=1,2")),
        (optimize_image, ("STYLE", "--batch", "PHOTOGRAPHS", "-o", "pairs")),
    ],
)
def test_no_command_leaves_a_file_before_it_has_the_weights(
    no_vgg: Path,
    capsys: pytest.CaptureFixture[str],
    photographs: Path,
    picture: str,
    main: Main,
    options: tuple[str, ...],
) -> None:
    places = {
        "STYLE": picture,
        "PHOTOGRAPHS": str(photographs),
        "PHOTOGRAPH": str(photographs / "chelsea.jpg"),
    }
    command = [places.get(option, option) for option in options]
    _refused(main, [*command, "--loss-network", "vgg16"], no_vgg)
    assert "no vgg16 weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "options"),
    [
        ({"TOPCOAT_VGG16_WEIGHTS": "gone.pth"}, []),
        ({}, ["--loss-weights", "gone.pth"]),
    ],
)
def test_a_file_that_is_named_and_missing_is_no_reason_to_stand_in(
    no_vgg: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    photographs: Path,
    picture: str,
    variable: dict[str, str],
    options: list[str],
) -> None:
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    command = ["--style", picture, "--content", str(photographs), *TINY, *options]
    _refused(train_style, command, no_vgg)
    error = capsys.readouterr().err
    assert "names gone.pth, which is not a file" in error
    assert "embedded" not in error


def test_processes_of_one_run_do_not_decide_each_for_itself(
    no_vgg: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    photographs: Path,
    picture: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    _refused(train_style, ["--style", picture, "--content", str(photographs), *TINY], no_vgg)
    assert capsys.readouterr().err.endswith("or use --loss-network embedded\n")


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ("style_layers=relu1_2/relu4_3", "cannot stand in: it has no relu4_3\n"),
        ("loss_network=vgg16,embedded", "elsewhere and pass --loss-weights FILE\n"),
    ],
)
def test_it_does_not_stand_in_for_a_part_of_a_sheet(
    no_vgg: Path,
    capsys: pytest.CaptureFixture[str],
    photographs: Path,
    picture: str,
    axis: str,
    said: str,
) -> None:
    command = [str(photographs / "chelsea.jpg"), picture, *OPTIMIZE, "--sweep", axis]
    _refused(optimize_image, command, no_vgg)
    assert capsys.readouterr().err.endswith(said)


def test_a_run_that_began_with_vgg16_does_not_go_on_with_its_student(
    no_vgg: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    photographs: Path,
    picture: str,
    loss_weights: Path,
) -> None:
    with monkeypatch.context() as found:
        found.setenv("TOPCOAT_VGG16_WEIGHTS", str(loss_weights))
        command = ["--style", picture, "--content", str(photographs), *SMALL, *TINY]
        assert train_style(command) == 0
    before = (no_vgg / "coffee.pt").read_bytes()
    capsys.readouterr()
    assert train_style(["--resume", "coffee.pt", "--steps", "3", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train-style: no vgg16 weights")
    assert "embedded" not in error
    assert (no_vgg / "coffee.pt").read_bytes() == before


def test_a_run_does_not_go_on_with_another_student(
    no_vgg: Path, capsys: pytest.CaptureFixture[str], photographs: Path, picture: str
) -> None:
    command = ["--style", picture, "--content", str(photographs), *SMALL, *TINY]
    assert train_style([*command, "--loss-network", "embedded"]) == 0
    assert capsys.readouterr().err == ""
    checkpoint = load_checkpoint(no_vgg / "coffee.pt")
    assert checkpoint.state is not None
    checkpoint.state["loss_weights_sha256"] = "0" * 64
    save_checkpoint(checkpoint, no_vgg / "coffee.pt")
    assert train_style(["--resume", "coffee.pt", "--steps", "3", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "another version of the embedded loss network than the run began with" in error
    assert error.count("\n") == 1
