"""The built-in models: what their pictures promise, and the script that makes them."""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import topcoat.runtime as tr
from topcoat.export import bundle_writer
from topcoat.runtime.parity import ProbeFrame
from topcoat.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from topcoat.train.cli import train_sr, train_style
from topcoat.train.networks import NETWORKS, build_network
from topcoat.train.pictures import open_rgb, sample_photographs
from topcoat.train.recipes import SR_RECIPES, STYLE_RECIPES, StyleRecipe, SuperResolutionRecipe

ROOT = Path(__file__).resolve().parents[2]
REALTIME = [name for name in tr.builtin_models() if name.endswith(("-light", "-realtime"))]

Repaint = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "builtin_models", ROOT / "benchmarks" / "builtin_models.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# -------------------------------------------------------------------------------------- the models


@pytest.mark.parametrize("name", REALTIME)
def test_a_model_for_real_time_repaints_and_keeps_flat_areas_flat(name: str) -> None:
    folder = tr.builtin_models()[name]
    with tr.open(name, backend="onnxruntime-cpu", threads=1) as model:
        given, wanted = (
            np.asarray(open_rgb(folder / f"golden_{end}.png")) for end in ("in", "out")
        )
        # Far from the frame that it was given, and in more than one colour.
        assert np.abs(wanted.astype(int) - given).mean() > 10
        assert wanted.std((0, 1)).min() > 10
        for colour in itertools.product((0, 90, 255), repeat=3):
            frame = np.full((60, 144, 3), colour, dtype=np.uint8)
            frame[:, :80] = given
            area = model.process(frame)[:, -32:]  # 32 pixels away from the picture
            assert np.ptp(area, (0, 1)).max() == 0, colour


@pytest.mark.parametrize("name", REALTIME)
def test_a_model_for_real_time_prints_no_grid_into_a_sky(name: str) -> None:
    down, right = np.mgrid[0:160, 0:240][..., None]
    sky = np.array([80, 120, 200]) + down * np.array([0.4, 0.3, 0.2]) + right * 0.1
    with tr.open(name, backend="onnxruntime-cpu", threads=1) as model:
        styled = model.process(np.rint(sky).astype(np.uint8)).astype(float)
    inner = styled[32:-32, 32:-32]
    # The mean of every phase of four by four, less the plane that the gradient makes of them.
    phases = inner.reshape(24, 4, 44, 4, 3).mean((0, 2)).reshape(16, 3)
    plane = np.stack([np.ones(16), np.repeat(np.arange(4), 4), np.tile(np.arange(4), 4)], axis=1)
    rest = phases - plane @ np.linalg.lstsq(plane, phases, rcond=None)[0]
    assert np.abs(rest).max() < 0.3  # 8-bit steps; what rounding the sky itself leaves is 0.1
    assert np.ptp(inner, (0, 1)).max() > 5


@pytest.mark.parametrize("name", REALTIME)
def test_a_model_for_real_time_changes_hardly_more_than_its_frames_do(name: str) -> None:
    assert _flicker_gain_of(name) < 1.2  # starry-night, whose strokes cover everything: 1.56


@functools.cache
def _flicker_gain_of(name: str) -> float:
    with tr.open(name, backend="onnxruntime-cpu", precision="fp32", threads=1) as model:
        return _flicker_gain(model.process)


def _flicker_gain(repaint: Repaint) -> float:
    """Change of the output over change of the input when the camera moves by half a pixel.

    The camera is real: a photograph of twice the size, whose pixels are averaged two by two.
    """
    large = np.asarray(open_rgb(sample_photographs()[0]), dtype=np.float64)[:386, :386]

    def seen(top: int, left: int) -> NDArray[np.uint8]:
        window = large[top : top + 384, left : left + 384]
        means = window.reshape(192, 2, 192, 2, 3).mean((1, 3))
        pixels: NDArray[np.uint8] = np.rint(means).astype(np.uint8)
        return pixels

    frame = seen(0, 0)
    answer = repaint(frame).astype(float)
    changes = [
        (
            np.abs(repaint(moved).astype(float) - answer).mean(),
            np.abs(moved - frame.astype(float)).mean(),
        )
        for moved in (seen(0, 1), seen(1, 0), seen(1, 1))
    ]
    return float(sum(out for out, _ in changes) / sum(given for _, given in changes))


@pytest.mark.parametrize("name", sorted(tr.builtin_models()))
def test_a_model_s_card_says_whose_it_is(name: str, maker: ModuleType) -> None:
    folder = tr.builtin_models()[name]
    card = (folder / "card.md").read_text(encoding="utf-8")
    source = maker.MODELS[name].source
    assert f"--model {name}\n" in card or f'open("{name}")' in card
    assert "Licence | Apache-2.0" in card
    if isinstance(source, maker.Painting):
        assert str(source) in card
        assert "public domain" in card
        assert source.died < 1930


@pytest.mark.parametrize("name", sorted(tr.builtin_models()))
def test_the_command_that_a_model_states_makes_its_network(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tr.builtin_models()[name]
    stated = tr.read_manifest(folder).checkpoint
    assert f"`{stated['command']}`" in (folder / "card.md").read_text(encoding="utf-8")
    program, *options = shlex.split(stated["command"])
    mains = {"train-style": train_style.main, "train-sr": train_sr.main}
    kinds: dict[str, Any] = {"train-style": StyleRecipe, "train-sr": SuperResolutionRecipe}
    assert mains[program]([*options, "--show-recipe"]) == 0
    recipe = kinds[program].from_dict(json.loads(capsys.readouterr().out))
    network = stated["network"]
    assert recipe.network == network["name"]
    # Compared as a network takes them: one that a model does not state has its default.
    settings, _ = NETWORKS[network["name"]]
    assert settings(**recipe.network_settings()) == settings(**network["settings"])
    assert (recipe.name, recipe.steps) == (stated["recipe"], stated["step"])


def test_every_model_is_in_the_table_and_may_not_be_there_otherwise(maker: ModuleType) -> None:
    assert set(tr.builtin_models()) <= set(maker.MODELS)


def test_the_gallery_says_what_the_bundles_say(maker: ModuleType) -> None:
    text = (ROOT / "docs" / "gallery" / "README.md").read_text(encoding="utf-8")
    names = [name for name in maker.MODELS if name in tr.builtin_models()]
    manifests = {
        name: maker.read_json(tr.builtin_models()[name] / "manifest.json") for name in names
    }
    shown = text.split(maker.BEGIN)[1].split(maker.END)[0].strip().splitlines()
    wanted = "\n".join(maker.table_lines(maker.PACKAGE, manifests)).strip().splitlines()
    assert shown == wanted, "run: python benchmarks/builtin_models.py --gallery"
    for style in dict.fromkeys(map(maker.style_name, names)):
        assert (ROOT / "docs" / "gallery" / f"{style}.jpg").is_file()


# -------------------------------------------------------------------------------------- the script


@pytest.fixture
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity itself is tested elsewhere: here two frames are enough to have a bundle."""

    def frames(size_min: int, *_: object, **__: object) -> list[ProbeFrame]:
        picture = np.asarray(open_rgb(sample_photographs()[1]).resize((96, 64)))
        return [ProbeFrame(name="cat", group="photographs", frame=picture)]

    monkeypatch.setattr(bundle_writer, "probe_frames", frames)


def checkpoint(folder: Path, name: str, step: int = 2) -> None:
    """What training leaves behind, of a network with random weights."""
    torch.manual_seed(0)
    if name.startswith("sharpen"):
        recipe: Any = SR_RECIPES["modern"]
        fields = {**recipe.to_dict(), "scale": 2, "width": 8, "blocks": 1, "steps": 2}
        settings: dict[str, Any] = {"scale": 2, "width": 8, "blocks": 1}
        network, task, style = "residual-sr", "super-resolution", {}
    else:
        recipe = STYLE_RECIPES["realtime"]
        fields = {**recipe.to_dict(), "width": 8, "blocks": 1, "steps": 2, "precision": "fp32"}
        settings = {"width": 8, "blocks": 1, "norm": "instance"}
        network, task, style = "realtime", "style", {"name": "wave", "sha256": "0" * 64}
    save_checkpoint(
        Checkpoint(
            task=task,
            network={"name": network, "settings": settings},
            weights=build_network(network, settings).state_dict(),
            recipe=fields,
            step=step,
            history=[
                {"step": 1, "total": 3.0, "style": 1.0, "learning_rate": 0.1, "seconds": 30.0},
                {"step": 2, "total": 2.0, "style": 0.5, "learning_rate": 0.1, "seconds": 60.0},
            ],
            style=style,
            versions={},
        ),
        folder / f"{name}.pt",
    )


def test_checkpoints_become_models_cards_and_a_gallery(
    maker: ModuleType, few_frames: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["great-wave-realtime", "sharpen-x2"]
    runs, package, pictures = tmp_path / "runs", tmp_path / "package", tmp_path / "gallery"
    runs.mkdir()
    for name in names:
        checkpoint(runs, name)
    pictures.mkdir()
    (pictures / "README.md").write_text(f"before\n{maker.BEGIN}\nold\n{maker.END}\nafter\n")
    where = ["--checkpoints", str(runs), "--package", str(package), "--pictures", str(pictures)]
    assert maker.main(["--only", *names, *where]) == 0, capsys.readouterr().err

    for name in names:
        manifest = tr.verify_files(package / f"{name}.topcoat")
        assert (manifest.name, manifest.description) == (name, maker.MODELS[name].about)
        listed = {"manifest.json", *manifest.files, *(v.file for v in manifest.variants)}
        assert {path.name for path in manifest.folder.iterdir()} == listed
        assert manifest.checkpoint["seconds"] == 60
        assert manifest.checkpoint["losses"] == {"style": 0.75}
    wave = tr.read_manifest(package / "great-wave-realtime.topcoat")
    command = wave.checkpoint["command"]
    assert command.startswith("train-style --recipe realtime --style wave.jpg --content photos/ --")
    assert sorted(command.split(" --")[4:]) == ["blocks 1", "steps 2", "width 8"]
    card = (wave.folder / "card.md").read_text(encoding="utf-8")
    assert "Katsushika Hokusai, about 1831; the painter died in 1849" in card
    assert f"`{command}`" in card
    assert "topcoat run photo.jpg styled.jpg --model great-wave-realtime\n" in card

    for style, rows, height in (
        ("great-wave", 2, maker.SIDE),
        ("sharpen-x2", 3, 2 * maker.DETAIL[1]),
    ):
        with Image.open(pictures / f"{style}.jpg") as page:
            assert page.height == rows * (height + maker.GAP) - maker.GAP
    text = (pictures / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"before\n{maker.BEGIN}\n| model |")
    assert text.endswith(f"{maker.END}\nafter\n")
    assert "old" not in text
    for name in names:
        assert f"topcoat run photo.jpg out.png --model {name}\n" in text
    # Written again it stays the same: what it says comes from the bundles alone.
    assert maker.main(["--gallery", "--only", "sharpen-x2", *where[2:]]) == 0
    assert (pictures / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("name", "step", "arguments", "message"),
    [
        ("mosaic", None, (), "is not there; give photographs to train on with --content"),
        ("mosaic", 1, (), "is not finished; give photographs"),
        ("great-wave", None, ("--content", "photos"), "Katsushika Hokusai, about 1831 is needed"),
        (
            "great-wave",
            None,
            ("--content", "photos", "--styles", "."),
            "holds no wave.jpg, a picture of The Great Wave",
        ),
        ("mosaic", None, ("--content", "gone"), "train-style ended with 2"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_the_package_alone(
    maker: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    step: int | None,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    if step is not None:
        checkpoint(tmp_path, name, step)
    package = tmp_path / "package"
    options = ["--only", name, "--checkpoints", ".", "--package", str(package)]
    assert maker.main([*options, "--pictures", str(tmp_path / "gallery"), *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("builtin_models: ")
    assert message in last
    assert not package.exists()


@pytest.mark.parametrize("failing", ["copying", "renaming"])
def test_a_model_that_cannot_be_put_into_the_package_leaves_the_one_that_is_there(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    made, place = tmp_path / "made", tmp_path / "package" / "wave.topcoat"
    for folder, text in ((made, "new"), (place, "old")):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(text)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if failing == "copying":
            patched.setattr(maker.shutil, "copytree", fail)
        else:
            renamed = Path.rename

            def rename(self: Path, target: Path) -> Path:
                return fail() if self.name == "new" else renamed(self, target)  # type: ignore[return-value, func-returns-value]

            patched.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="No space left"):
            maker.install(made, place)
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert (place / "manifest.json").read_text() == "old"
    maker.install(made, place)
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert (place / "manifest.json").read_text() == "new"


def test_a_checkpoint_of_another_style_does_not_become_the_model(
    maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path, "great-wave")
    (tmp_path / "great-wave.pt").rename(tmp_path / "mosaic.pt")
    package = tmp_path / "package"
    options = ["--only", "mosaic", "--checkpoints", str(tmp_path), "--package", str(package)]
    assert maker.main([*options, "--pictures", str(tmp_path)]) == 2
    assert "is for style wave, wanted style mosaic" in capsys.readouterr().err
    assert not package.exists()


def test_what_a_teacher_teaches_comes_after_it_and_says_so(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = dataclasses.replace(
        maker.MODELS["great-wave-realtime"],
        options="train-style --recipe realtime",
        teacher="great-wave",
    )
    monkeypatch.setitem(maker.MODELS, "great-wave-realtime", taught)
    arguments = argparse.Namespace(checkpoints=tmp_path, content=tmp_path, styles=None, threads=1)
    file = tmp_path / "great-wave-realtime.pt"
    with pytest.raises(maker.MakerError, match=r"learns from great-wave, .* make that one first"):
        maker.train("great-wave-realtime", file, arguments)
    given: list[list[str]] = []

    def train(options: list[str]) -> int:
        given.append(options)
        return 0

    monkeypatch.setattr(train_style, "main", train)
    checkpoint(tmp_path, "great-wave")
    maker.train("great-wave-realtime", file, arguments)
    (options,) = given
    assert options[options.index("--teacher") + 1] == str(tmp_path / "great-wave.pt")
    assert "--style" not in options
    checkpoint(tmp_path, "great-wave-realtime")
    learnt = load_checkpoint(file)
    learnt.recipe = {**learnt.recipe, "supervision": "targets"}
    command = maker.command_of(learnt, taught)
    assert command.startswith("train-style --recipe realtime --teacher great-wave.pt --content")


def test_a_gallery_without_a_place_for_the_table_is_one_line(
    maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("no marks")
    folder = tr.builtin_models()["poster-light"]
    options = ["--gallery", "--only", "poster-light", "--package", str(folder.parent)]
    assert maker.main([*options, "--pictures", str(tmp_path)]) == 2
    assert "lacks the lines" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "no marks"


def test_every_entry_of_the_table_is_a_command_that_resolves(
    maker: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    mains = {"train-style": train_style.main, "train-sr": train_sr.main}
    for name, entry in maker.MODELS.items():
        program, *options = shlex.split(entry.options)
        assert mains[program]([*options, "--show-recipe"]) == 0, name
        recipe = json.loads(capsys.readouterr().out)
        assert recipe["loss_network"] in {"vgg16", "embedded"}
        assert (entry.source is None) == (program == "train-sr")
