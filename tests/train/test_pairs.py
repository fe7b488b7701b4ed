"""Training from prepared pairs: photographs and what optimising them made of each."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from topcoat.train import ContentError, RecipeError, load_checkpoint
from topcoat.train.cli.train_style import main
from topcoat.train.loop import RunSettings
from topcoat.train.pairs import PairedPhotographs, pairs_style, read_pairs
from topcoat.train.pictures import open_rgb
from topcoat.train.recipes import STYLE_RECIPES, StyleRecipe
from topcoat.train.style import StyleRun, train_style
from topcoat.train.styles import draw_style

from .conftest import Refused

STYLE = {
    "name": "mosaic",
    "sha256": hashlib.sha256(draw_style("mosaic").tobytes()).hexdigest(),
    "size": [512, 512],
}
TARGETS = replace(
    STYLE_RECIPES["modern"],
    supervision="targets",
    width=4,
    blocks=1,
    crop=32,
    batch=2,
    steps=6,
    precision="fp32",
)


def _describe(folder: Path, names: list[Any], **changes: object) -> None:
    content = {
        "format": "topcoat-pairs",
        "format_version": 1,
        "style": STYLE,
        "recipe": {},
        "pairs": [{"name": name, "photo_sha256": "", "losses": {}} for name in names],
    }
    (folder / "pairs.json").write_text(json.dumps({**content, **changes}))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """Three pairs; the target of each is its photograph's negative."""
    folder = tmp_path_factory.mktemp("pairs")
    for kind in ("photo", "target"):
        (folder / kind).mkdir()
    names = []
    for path in sorted(photographs.iterdir())[:3]:
        photo = np.asarray(open_rgb(path))
        Image.fromarray(photo).save(folder / "photo" / f"{path.stem}.png")
        Image.fromarray(255 - photo).save(folder / "target" / f"{path.stem}.png")
        names.append(path.stem)
    _describe(folder, names)
    return folder


@pytest.fixture
def train(tmp_path: Path, loss_weights: Path) -> Callable[..., Path]:
    """Train in this process; returns the checkpoint."""

    def run(recipe: StyleRecipe, name: str = "a.pt", **more: Any) -> Path:  # noqa: ANN401
        settings = RunSettings(
            output=tmp_path / name, preview_every=0, log_every=1, workers=0, quiet=True
        )
        given = None if recipe.supervision == "targets" else loss_weights
        fields = {"style": None, "content": None, "loss_weights": given, **more}
        return train_style(StyleRun(recipe=recipe, settings=settings, **fields)).checkpoint

    return run


def test_photo_and_target_get_the_same_crop_and_mirror(made: Path) -> None:
    samples = PairedPhotographs(read_pairs(made, 32).pairs, 32, seed=3)
    whole = {p.name: np.asarray(open_rgb(p.photo)) for p in read_pairs(made, 32).pairs}
    mirrored = set()
    for number in range(12):
        pixels = samples[number].pixels.numpy()
        assert pixels.shape == (32, 32, 6)
        np.testing.assert_array_equal(pixels[..., 3:], 255 - pixels[..., :3])
        for photo in whole.values():  # never scaled: the crop is somewhere in the photograph
            for flip, cut in ((False, pixels[..., :3]), (True, pixels[:, ::-1, :3])):
                views = np.lib.stride_tricks.sliding_window_view(photo, (1, 32, 3))[:, :, 0, 0]
                if (views == cut[0]).all((2, 3)).any():
                    mirrored.add(flip)
    assert mirrored == {False, True}
    again = PairedPhotographs(read_pairs(made, 32).pairs, 32, seed=3)
    assert torch.equal(samples[5].pixels, again[5].pixels)


def test_a_network_fitted_to_pairs_needs_neither_style_nor_loss_network(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPCOAT_VGG16_WEIGHTS", "/nowhere.pth")
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")
    monkeypatch.chdir(tmp_path)
    options = "--width 4 --blocks 1 --crop 32 --batch 2 --steps 4 --workers 0 --quiet"
    assert main(["--targets", str(made), *options.split(), "--preview-every", "2"]) == 0
    checkpoint = load_checkpoint("mosaic.pt")
    assert checkpoint.style == STYLE
    assert checkpoint.recipe["supervision"] == "targets"
    assert sorted(path.name for path in Path("mosaic.preview").iterdir()) == [
        "step_000002.jpg",
        "step_000004.jpg",
    ]


def test_the_loss_of_targets_falls(made: Path, train: Callable[..., Path]) -> None:
    recipe = replace(TARGETS, steps=80, learning_rate=0.01)
    history = load_checkpoint(train(recipe, targets=made)).history
    assert all(entry["pixel"] == entry["total"] for entry in history)
    losses = [entry["total"] for entry in history]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


@pytest.mark.parametrize("supervision", ["targets", "both"])
def test_resuming_arrives_at_the_same_weights_bit_for_bit(
    supervision: Literal["targets", "both"], made: Path, train: Callable[..., Path]
) -> None:
    recipe = replace(TARGETS, supervision=supervision, schedule="constant", style_size=64)
    style = "mosaic" if supervision == "both" else None
    straight = load_checkpoint(train(recipe, "straight.pt", targets=made, style=style))
    half = train(replace(recipe, steps=3), "half.pt", targets=made, style=style)
    resumed = load_checkpoint(train(recipe, "half.pt", resume=load_checkpoint(half)))
    assert (straight.step, resumed.step) == (6, 6)
    for name, value in straight.weights.items():
        assert torch.equal(value, resumed.weights[name]), name


def test_both_adds_the_weighted_pixel_loss_to_the_perceptual_one(
    made: Path, train: Callable[..., Path]
) -> None:
    recipe = replace(
        TARGETS, supervision="both", target_weight=3.0, target_form="l2", style_size=64, steps=1
    )
    last = load_checkpoint(train(recipe, targets=made, style="mosaic")).history[-1]
    assert last["total"] == pytest.approx(
        last["content"] + 10 * last["style"] + 25 * last["tv"] + 3 * last["pixel"], rel=1e-5
    )


def test_resuming_with_other_pairs_is_refused(
    made: Path, train: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(train(replace(TARGETS, steps=1), targets=made))
    other = Path(shutil.copytree(made, tmp_path / "other"))
    first = sorted((other / "target").iterdir())[0]
    Image.new("RGB", open_rgb(first).size).save(first)
    with pytest.raises(ContentError, match="holds other pairs than when the checkpoint"):
        train(TARGETS, "b.pt", resume=checkpoint, targets=other)
    moved = Path(shutil.copytree(made, tmp_path / "moved"))
    assert load_checkpoint(train(TARGETS, "b.pt", resume=checkpoint, targets=moved)).step == 6


def test_both_wants_the_style_that_the_pairs_were_made_with(
    made: Path, train: Callable[..., Path]
) -> None:
    recipe = replace(TARGETS, supervision="both")
    with pytest.raises(ContentError, match="made with another style picture"):
        train(recipe, targets=made, style="dots")
    with pytest.raises(RecipeError, match="--supervision both needs the picture"):
        train(recipe, targets=made)


def _small(folder: Path) -> None:
    for kind in ("photo", "target"):
        path = sorted((folder / kind).iterdir())[1]
        open_rgb(path).resize((28, 90)).save(path)


def _unequal(folder: Path) -> None:
    path = sorted((folder / "target").iterdir())[1]
    open_rgb(path).resize((90, 96)).save(path)


def _break_all(folder: Path) -> None:
    for path in (folder / "target").iterdir():
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (shutil.rmtree, "is not there"),
        (lambda f: (f / "pairs.json").unlink(), "has no pairs.json"),
        (lambda f: (f / "pairs.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "pairs.json").write_text("[]"), "does not describe pairs"),
        (lambda f: _describe(f, ["chelsea"], format="other"), "does not describe pairs"),
        (lambda f: _describe(f, ["chelsea"], format_version=2), "format version 2, this version"),
        (lambda f: _describe(f, []), "lists no pairs"),
        (lambda f: _describe(f, [], pairs={}), "no list of pairs"),
        (lambda f: _describe(f, ["chelsea"], style={"name": "x"}), "lacks name, sha256 or size"),
        (lambda f: _describe(f, ["../../etc/passwd"]), "not the plain name of a file"),
        (lambda f: _describe(f, [None]), "not the plain name of a file"),
        (lambda f: _describe(f, ["gone"]), "gone.png is missing"),
        (lambda f: (f / "photo" / "chelsea.png").write_bytes(b"x"), "is not a usable picture"),
        (_unequal, "pair 'chelsea' of pairs: the photo is "),
        (_small, "is 28x90, smaller than the crop of 32x32; pass --crop 28"),
        (_break_all, "none of 3 pairs can be used"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused(
    damage: Callable[[Path], Any],
    complaint: str,
    made: Path,
    tmp_path_factory: pytest.TempPathFactory,
    train: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path_factory.mktemp("damaged")
    monkeypatch.chdir(place)
    shutil.copytree(made, "pairs")
    damage(Path("pairs"))
    with pytest.raises(ContentError, match=complaint) as caught:
        train(TARGETS, targets=Path("pairs"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--targets", "gone"), "folder of pairs gone is not there"),
        (("--targets", "MADE", "--content", "photos"), "pairs bring their own photographs"),
        (("--targets", "MADE", "--style", "mosaic"), "--style would change nothing"),
        (("--targets", "MADE", "--supervision", "style"), "--targets would change nothing"),
        (("--targets", "MADE", "--supervision", "both"), "--supervision both needs the picture"),
        (("--targets", "MADE", "--style-weight", "3"), "--style-weight would change nothing"),
        (("--targets", "MADE", "--loss-weights", "x"), "--loss-weights would change nothing"),
        (("--targets", "MADE", "--crop", "512"), "smaller than the crop of 512x512"),
        (("--supervision", "targets"), "needs pairs; pass --targets PAIRS"),
        (("--style", "mosaic", "--target-weight", "2"), "--target-weight would change nothing"),
    ],
)
def test_options_that_do_not_go_together_are_answered_in_one_line(
    refused: Refused, arguments: tuple[str, ...], complaint: str, made: Path
) -> None:
    assert complaint in refused(main, [str(made) if a == "MADE" else a for a in arguments])


def test_the_style_s_name_is_safe_as_a_file_s(tmp_path: Path) -> None:
    _describe(tmp_path, [], style={**STYLE, "name": "../a b/c"})
    assert pairs_style(tmp_path)["name"] == "..-a-b-c"
