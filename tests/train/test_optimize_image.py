"""``optimize-image``: what it writes, how it goes on, what it refuses."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from topcoat.train import optimize as optimize_module
from topcoat.train._optimize_sources import Sources
from topcoat.train.cli.optimize_image import main
from topcoat.train.colours import luminance, recoloured, with_colours_of
from topcoat.train.frames import frame_tensor
from topcoat.train.losses import LossNetwork, PerceptualLoss
from topcoat.train.optimize_batch import unique_names
from topcoat.train.recipes import OPTIMIZE_RECIPES
from topcoat.train.sweeps import axis, draw_sheet

from .conftest import Refused, answers_without_torch

TINY = (
    *("--size", "32", "--steps", "3", "--precision", "fp32", "--quiet"),
    *("--style-layers", "relu1_2,relu2_2", "--content-layer", "relu2_2"),
)
Optimized = Callable[..., Any]


@pytest.fixture
def optimized(
    loss_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Optimized:
    """Run the command with --json in this process, in a folder of its own; what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOPCOAT_VGG16_WEIGHTS", str(loss_weights))
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")

    def run(*arguments: object, code: int = 0, tiny: bool = True) -> Any:  # noqa: ANN401 - JSON
        given = [*map(str, arguments), *(TINY if tiny else ("--quiet",)), "--json"]
        assert main(given) == code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture(scope="session")
def cat(photographs: Path) -> Path:
    return photographs / "chelsea.jpg"


@pytest.fixture(scope="session")
def cup(photographs: Path) -> Path:
    return photographs / "coffee.jpg"


def _flat(path: Path, colour: Any, size: tuple[int, int] = (96, 80)) -> Path:  # noqa: ANN401
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)
    return path


def _half(path: Path, like: Path, *, left: bool = True) -> Path:
    """A mask over a picture, white in one half."""
    with Image.open(like) as picture:
        mask = np.zeros((picture.height, picture.width), np.uint8)
    mask[:, : mask.shape[1] // 2] = 255
    Image.fromarray(mask if left else 255 - mask).save(path)
    return path


def _pixels(path: Path | str) -> torch.Tensor:
    with Image.open(path) as picture:
        return frame_tensor(picture.convert("RGB"))


# What is written


def test_a_photograph_becomes_a_picture_of_its_shape(
    optimized: Optimized, cat: Path, cup: Path, tmp_path: Path
) -> None:
    outcome = optimized(cat, cup)
    assert [path.name for path in tmp_path.iterdir()] == ["chelsea_coffee.png"]
    with Image.open(cat) as photograph, Image.open("chelsea_coffee.png") as picture:
        assert picture.size == (32, round(32 * photograph.height / photograph.width))
        assert outcome["size"] == list(picture.size)
    assert outcome["finished"]
    assert outcome["steps"] == 3
    assert [entry["step"] for entry in outcome["history"]] == [0, 1, 2, 3]
    totals = [entry["total"] for entry in outcome["history"]]
    assert totals == sorted(totals, reverse=True)
    assert set(outcome["losses"]) == {"total", "content", "style", "tv"}


def test_the_same_command_makes_the_same_picture(
    optimized: Optimized, cat: Path, cup: Path
) -> None:
    for name in ("a.png", "b.png"):
        optimized(cat, cup, "-o", name, "--start", "noise", "--histogram-weight", 1)
    assert torch.equal(_pixels("a.png"), _pixels("b.png"))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_every_optimizer_lowers_the_objective(
    optimized: Optimized, cat: Path, cup: Path, optimizer: str
) -> None:
    history = optimized(cat, cup, "--optimizer", optimizer)["history"]
    assert history[-1]["total"] < history[0]["total"]


def test_a_picture_starts_from_what_it_is_told_to(
    optimized: Optimized, cat: Path, cup: Path, tmp_path: Path
) -> None:
    _flat(tmp_path / "start.png", (250, 10, 10))
    first = {}
    for start in ("content", "style", "noise", "start.png"):
        outcome = optimized(cat, cup, "--start", start, "-o", f"from_{start}.png", "--force")
        first[start] = outcome["history"][0]
        assert outcome["losses"]["total"] < first[start]["total"]
    assert first["content"]["content"] < 1e-6
    assert first["style"]["style"] < first["noise"]["style"]
    assert first["start.png"]["tv"] < 1e-6 < first["noise"]["tv"]


def test_a_ladder_of_sizes_works_up_to_the_last(optimized: Optimized, cat: Path, cup: Path) -> None:
    arguments = ("--size", 72, "--steps", "3,2,2", "--size-ratio", 1.5)
    outcome = optimized(cat, cup, *TINY, *arguments, tiny=False)
    sizes = [entry["size"] for entry in outcome["history"]]
    assert sizes == [32] * 4 + [48] * 3 + [72] * 3
    assert outcome["steps"] == 7
    assert outcome["size"][0] == 72
    with Image.open("chelsea_coffee.png") as picture:
        assert picture.width == 72


def test_names_end_as_the_picture_is_written(optimized: Optimized, cat: Path, cup: Path) -> None:
    for name, kind in (("a.webp", "WEBP"), ("new/folder/a.JPG", "JPEG")):
        optimized(cat, cup, "-o", name)
        with Image.open(name) as picture:
            assert picture.format == kind


def test_previews_lie_in_a_folder_of_their_own(
    optimized: Optimized, cat: Path, cup: Path, tmp_path: Path
) -> None:
    optimized(cat, cup, "-o", "x.png", "--preview-every", 2)
    assert [path.name for path in (tmp_path / "x.preview").iterdir()] == ["step_000002.jpg"]


def test_shares_are_relative_and_a_share_of_all_is_that_style_alone(
    optimized: Optimized, cat: Path, cup: Path, photographs: Path
) -> None:
    rocket = photographs / "rocket.jpg"
    runs = {"one": "2,1", "same": "20,10", "cup": "1e9,1"}
    for name, shares in runs.items():
        optimized(cat, cup, rocket, "--shares", shares, "-o", f"{name}.png")
    optimized(cat, cup, "-o", "alone.png")
    found = {name: _pixels(f"{name}.png") for name in (*runs, "alone")}
    assert (found["one"] - found["same"]).abs().max() < 0.01
    assert (found["cup"] - found["alone"]).abs().max() < 0.02
    assert (found["one"] - found["alone"]).abs().max() > 0.02


def test_a_style_goes_where_its_mask_is_white(
    optimized: Optimized, cat: Path, cup: Path, photographs: Path, tmp_path: Path
) -> None:
    left = _half(tmp_path / "left.png", cat)
    right = _half(tmp_path / "right.png", cat, left=False)
    rocket = photographs / "rocket.jpg"
    more = ("--content-weight", 0, "--tv-weight", 0, "--style-layers", "relu1_2")
    tiny = (*("--size", 48, "--steps", 3, "--precision", "fp32"), *more)
    optimized(cat, cup, "--mask", left, *tiny, "-o", "one.png", tiny=False)
    photograph = _pixels(cat)
    size = _pixels("one.png").shape[2:]
    with Image.open(cat) as picture:
        small = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    photograph = frame_tensor(small)
    changed = (_pixels("one.png") - photograph).abs().mean((0, 1, 2))
    assert changed[:20].min() > 0
    assert changed[28:].max() == 0
    both = ("--mask", left, "--mask", right, "--histogram-weight", 1)
    optimized(cat, cup, rocket, *both, *tiny, "-o", "two.png", tiny=False)
    assert (_pixels("two.png") - photograph).abs().mean((0, 1, 2)).min() > 0
    optimized(cat, cup, rocket, "--mask", "-", "--mask", right, "-o", "everywhere.png")


def test_a_style_mask_says_which_part_of_the_style_picture_counts(
    optimized: Optimized, cat: Path, cup: Path, tmp_path: Path
) -> None:
    part = _half(tmp_path / "part_mask.png", cup)
    whole = tmp_path / "whole_mask.png"
    with Image.open(cup) as picture:
        _flat(whole, 255, picture.size)
    for name, mask in (("none", "-"), ("all", whole), ("part", part)):
        optimized(
            *(cat, cup, "--style-mask", mask, "--histogram-weight", 1, "-o", f"{name}.png"),
        )
    none, every, some = (_pixels(f"{name}.png") for name in ("none", "all", "part"))
    assert (none - every).abs().max() < 0.01
    assert (none - some).abs().max() > 0.02


def test_lightness_alone_is_repainted_if_the_colours_are_to_stay(
    optimized: Optimized, cat: Path, cup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[tuple[torch.Tensor, Any]] = []
    original = Sources.finished

    def finished(self: Sources, frame: torch.Tensor, scene: Any) -> Image.Image:  # noqa: ANN401
        frames.append((frame, scene))
        return original(self, frame, scene)

    monkeypatch.setattr(Sources, "finished", finished)
    for start in ("content", "noise"):
        optimized(cat, cup, "--colours", "luminance", "--start", start, "-o", f"{start}.png")
        (frame, scene) = frames.pop()
        assert (frame - frame.mean(1, keepdim=True)).abs().max() < 1e-6  # it stayed grey
        picture, colours = _pixels(f"{start}.png"), scene.colours
        inside = ((picture > 0.01) & (picture < 0.99)).all(1, keepdim=True).expand_as(picture)
        away = (picture - luminance(picture)) - (colours - luminance(colours))
        assert away[inside].abs().max() < 0.01
        assert inside.float().mean() > 0.5


def test_colours_by_histogram_recolour_the_style_first(
    optimized: Optimized, cat: Path, cup: Path
) -> None:
    moved = recoloured(_pixels(cup).clamp(0.3, 0.6), _pixels(cat))
    wanted = _pixels(cat)[0].flatten(1)
    torch.testing.assert_close(moved[0].flatten(1).mean(1), wanted.mean(1), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(moved[0].flatten(1)), torch.cov(wanted), rtol=0, atol=0.01)
    for colours in ("style", "histogram"):
        optimized(cat, cup, "--colours", colours, "--start", "style", "-o", f"{colours}.png")
    means = {name: _pixels(f"{name}.png").mean((0, 2, 3)) for name in ("style", "histogram")}
    wanted = _pixels(cat).mean((0, 2, 3))
    assert (means["histogram"] - wanted).norm() < (means["style"] - wanted).norm() / 2


def test_putting_colours_back_on_the_picture_itself_changes_nothing() -> None:
    picture = torch.rand(1, 3, 5, 6)
    torch.testing.assert_close(with_colours_of(picture, picture), picture)


def test_a_reconstruction_needs_one_picture_and_starts_from_noise(
    optimized: Optimized, cat: Path
) -> None:
    content = optimized("--reconstruct", "content", cat, *TINY[:-4], "--tv-weight", 0, tiny=False)
    assert set(content["losses"]) == {"total", "content"}
    assert content["history"][0]["content"] > 0.01
    assert content["output"] == "chelsea_content.png"
    options = (*TINY[:-2], "--tv-weight", 0, "--histogram-weight", 1)
    style = optimized("--reconstruct", "style", cat, *options, tiny=False)
    assert set(style["losses"]) == {"total", "style", "histogram"}
    assert style["losses"]["total"] < style["history"][0]["total"]
    assert style["output"] == "chelsea_style.png"


@pytest.mark.parametrize("colours", ["style", "luminance", "histogram"])
def test_pictures_of_one_colour_stay_finite(
    optimized: Optimized, cat: Path, tmp_path: Path, colours: str
) -> None:
    flat, black = _flat(tmp_path / "flat.png", (90, 140, 30)), _flat(tmp_path / "black.png", 0)
    pairs = ((flat, cat), (cat, flat), (flat, black))
    for number, (content, style) in enumerate(pairs):
        outcome = optimized(
            *(content, style, "--colours", colours, "--histogram-weight", 1),
            *("-o", f"{number}.png", "--start", "noise" if number % 2 else "content"),
        )
        assert np.isfinite([*outcome["losses"].values()]).all()
        assert (tmp_path / f"{number}.png").is_file()


# Going on


@pytest.fixture
def interrupted_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make Ctrl-C happen once, during the iteration of that number."""

    def at(step: int) -> None:
        original = optimize_module._due_preview

        def preview(settings: Any, number: int, *rest: Any) -> None:  # noqa: ANN401
            if number == step:
                monkeypatch.setattr(optimize_module, "_due_preview", original)
                os.kill(os.getpid(), signal.SIGINT)
            original(settings, number, *rest)

        monkeypatch.setattr(optimize_module, "_due_preview", preview)

    return at


@pytest.mark.parametrize("options", [(), ("--optimizer", "adam"), ("--colours", "luminance")])
def test_an_interrupted_run_goes_on_to_the_same_picture_bit_for_bit(
    optimized: Optimized,
    cat: Path,
    cup: Path,
    tmp_path: Path,
    interrupted_at: Callable[[int], None],
    options: tuple[str, ...],
) -> None:
    sizes = ("--size", 40, "--size-ratio", 1.25, "--steps", "2,4")
    ladder = (*TINY, *sizes, "--start", "noise", *options)
    whole = optimized(cat, cup, *ladder, "-o", "whole.png", tiny=False)
    interrupted_at(4)
    half = optimized(cat, cup, *ladder, "-o", "half.png", tiny=False, code=130)
    assert not half["finished"]
    assert half["state"] == "half.optimize.pt"
    assert not (tmp_path / "half.png").exists()
    rest = optimized("--resume", "half.optimize.pt", tiny=False)
    assert rest["finished"]
    assert rest["history"] == whole["history"]
    assert (tmp_path / "half.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert not (tmp_path / "half.optimize.pt").exists()


def test_a_killed_run_goes_on_from_its_last_state(
    optimized: Optimized, cat: Path, cup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (cat, cup, *TINY, "--steps", 5, "--checkpoint-every", 2)
    whole = optimized(*command, "-o", "whole.png", tiny=False)

    def killed(_: object, step: int, *__: object) -> None:
        if step == 4:
            raise MemoryError  # stands for a kill: nothing of it is caught and saved

    with monkeypatch.context() as patch:
        patch.setattr(optimize_module, "_due_preview", killed)
        assert main([*map(str, command), "-o", "x.png"]) == 2
    assert (tmp_path / "x.optimize.pt").is_file()
    rest = optimized("--resume", "x.optimize.pt", tiny=False)
    assert rest["history"] == whole["history"]
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_a_resumed_run_may_have_more_iterations_and_another_place(
    optimized: Optimized,
    cat: Path,
    cup: Path,
    tmp_path: Path,
    interrupted_at: Callable[[int], None],
) -> None:
    interrupted_at(2)
    _flat(tmp_path / "start.png", (10, 20, 200))
    optimized(cat, cup, "-o", "x.png", "--start", "start.png", code=130)
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")  # relative paths of then are not those of now
    rest = optimized("--resume", "../x.optimize.pt", "--steps", 5, "-o", "y.png", tiny=False)
    assert rest["steps"] == 5
    assert (tmp_path / "elsewhere" / "y.png").is_file()


@pytest.fixture
def state(
    optimized: Optimized, cat: Path, tmp_path: Path, interrupted_at: Callable[[int], None]
) -> Path:
    """The state of an interrupted run of two sizes, of pictures in its folder."""
    for name in ("photo.png", "paint.png"):
        with Image.open(cat) as picture:
            picture.save(tmp_path / name)
    interrupted_at(1)
    optimized("photo.png", "paint.png", "-o", "x.png", code=130)
    return tmp_path / "x.optimize.pt"


def test_a_state_is_not_run_over_and_not_resumed_with_other_files(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*arguments: object) -> str:
        assert main([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    before = sorted(tmp_path.iterdir())
    resume = ("--resume", state)
    assert "go on with --resume" in complaint("photo.png", "paint.png", "-o", "x.png")
    assert "--steps has 2 numbers" in complaint(*resume, "--steps", "5,6")
    assert "cannot change when resuming" in complaint(*resume, "--size", 64)
    assert "cannot change when resuming" in complaint(*resume, "photo.png")
    assert "exists" in complaint(*resume, "-o", "photo.png")
    assert "must end in" in complaint(*resume, "-o", "y.tiff")
    torch.manual_seed(9)
    torch.save(LossNetwork("vgg16", ["relu3_3"]).state_dict(), tmp_path.parent / "other.pth")
    assert "other.pth is not what" in complaint(
        *resume, "--loss-weights", tmp_path.parent / "other.pth"
    )
    assert sorted(tmp_path.iterdir()) == before
    _flat(tmp_path / "photo.png", (1, 2, 3))
    assert "photo.png is not what" in complaint(*resume)
    (tmp_path / "photo.png").unlink()
    assert "no picture at" in complaint(*resume)
    assert not (tmp_path / "x.png").exists()


def test_damaged_states_are_refused(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(state, weights_only=True)
    damages: list[dict[str, Any]] = [
        {"level": 7},
        {"format_version": 99},
        {"format": "checkpoint"},
        {"minimiser": {"done": 1}},
        {"minimiser": {**content["minimiser"], "frame": torch.zeros(1, 3, 4, 4)}},
        {"inputs": {}},
        {"recipe": {"strange": 1}},
        {"history": 3},
    ]
    for damage in damages:
        torch.save({**content, **damage}, tmp_path / "bad.pt")
        assert main(["--resume", str(tmp_path / "bad.pt")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert any(advice in error for advice in ("give the", "start again", "update")), error
    assert not (tmp_path / "x.png").exists()


def test_ctrl_c_says_how_to_go_on(
    optimized: Optimized,
    cat: Path,
    cup: Path,
    capsys: pytest.CaptureFixture[str],
    interrupted_at: Callable[[int], None],
) -> None:
    interrupted_at(2)
    assert main([str(cat), str(cup), *TINY, "-o", "x.png"]) == 130
    shown = capsys.readouterr().out
    assert "interrupted after 2 iterations" in shown
    assert "optimize-image --resume x.optimize.pt" in shown


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_divergence_keeps_the_last_good_picture(
    optimized: Optimized,
    cat: Path,
    cup: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
) -> None:
    calls = 0
    original = PerceptualLoss.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
        nonlocal calls
        calls += 1
        parts = original(self, *args, **kwargs)
        return {name: part * (float("nan") if calls > 2 else 1) for name, part in parts.items()}

    monkeypatch.setattr(PerceptualLoss, "forward", forward)
    command = [str(cat), str(cup), *TINY, "--optimizer", optimizer, "-o", "x.png"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "iteration 2 at 32 pixels" in error
    assert "x.png holds the last good picture" in error
    assert _pixels("x.png").std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_weights_beyond_all_measure_are_told_before_anything_is_written(
    optimized: Optimized, cat: Path, cup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(cat), str(cup), *TINY, "--optimizer", "adam", "-o", "x.png"]
    assert main([*command, "--style-weight", "1e38", "--strength", "1e30"]) == 1
    error = capsys.readouterr().err
    assert "not finite" in error
    assert "nothing was done; lower the weights" in error
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_never_replaced(
    optimized: Optimized, cat: Path, cup: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = cat.read_bytes()
    assert main([str(cat), str(cup), *TINY, "--force", "-o", str(cat)]) == 2
    assert "is one of the pictures to read; choose another --output" in capsys.readouterr().err
    assert cat.read_bytes() == before


def test_a_batch_goes_on_where_one_picture_diverges_and_says_which(
    optimized: Optimized,
    photographs: Path,
    cup: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0
    original = PerceptualLoss.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
        nonlocal calls
        calls += 1
        parts = original(self, *args, **kwargs)
        return {name: part * (float("nan") if calls == 1 else 1) for name, part in parts.items()}

    monkeypatch.setattr(PerceptualLoss, "forward", forward)
    assert main(["--batch", str(photographs), str(cup), *TINY, "-o", "pairs"]) == 0
    told = capsys.readouterr()
    assert "diverged at iteration 1" in told.err
    assert "5 of 6 photographs" in told.out
    assert "--crop" in told.out or "train-style --targets pairs" in told.out
    names = {pair["name"] for pair in json.loads(Path("pairs/pairs.json").read_text())["pairs"]}
    assert {path.stem for path in Path("pairs/target").iterdir()} == names


# Sweeps


def test_a_sweep_is_one_sheet_and_a_list_of_losses(
    optimized: Optimized, cat: Path, cup: Path, tmp_path: Path
) -> None:
    axes = ("--sweep", "strength=0.1,10", "--sweep", "content_layer=relu1_2,relu2_2")
    listing = optimized(cat, cup, *axes, *TINY[:-2], tiny=False)
    assert [(cell["strength"], cell["content_layer"]) for cell in listing["cells"]] == [
        (0.1, "relu1_2"),
        (10.0, "relu1_2"),
        (0.1, "relu2_2"),
        (10.0, "relu2_2"),
    ]
    for cell in listing["cells"]:
        assert cell["losses"]["total"] > 0
        assert cell["cell_recipe"]["size"] == 32
    assert json.loads((tmp_path / "chelsea_coffee_sweep.json").read_text()) == listing
    assert len(list((tmp_path / "chelsea_coffee_sweep.sweep").glob("*.png"))) == 4
    with (
        Image.open("chelsea_coffee_sweep.png") as sheet,
        Image.open("chelsea_coffee_sweep.sweep/row1_column1.png") as cell,
    ):
        assert sheet.width > 2 * cell.width
        assert sheet.height > 2 * cell.height


def test_an_interrupted_sweep_goes_on_and_another_style_begins_anew(
    optimized: Optimized,
    cat: Path,
    cup: Path,
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Path] = []
    original = optimize_module.optimize_image

    def counted(run: Any) -> Any:  # noqa: ANN401
        if len(done) == 1 and not done[0].with_suffix(".again").exists():
            done[0].with_suffix(".again").touch()
            raise KeyboardInterrupt
        done.append(run.settings.output)
        return original(run)

    monkeypatch.setattr("topcoat.train.sweeps.optimize_image", counted)
    command = [*map(str, (cat, cup)), *TINY, "--sweep", "start=content,style", "-o", "s.webp"]
    assert main(command) == 130
    assert "the same command again" in capsys.readouterr().out
    assert not (tmp_path / "s.webp").exists()
    assert main(command) == 0
    assert len(done) == 2
    with Image.open("s.webp") as sheet:
        assert sheet.format == "WEBP"
    command[1] = str(photographs / "rocket.jpg")
    assert main([*command, "--force"]) == 0
    assert len(done) == 4


def test_axes_are_read_as_the_fields_types() -> None:
    assert axis("steps=10/20,10").values == ((10,), (20, 10))
    assert axis("--content-layer=relu1_1,relu2_1").field == "content_layer"
    assert axis("seed=1,2").values == (1, 2)


def test_a_sheet_has_room_for_its_labels_and_pictures() -> None:
    pictures = [[Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]] * 2
    axes = [axis("strength=0.1,10"), axis("start=content,style")]
    sheet = np.asarray(draw_sheet(pictures, axes))
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (sheet == colour).all(2).sum() == 2 * 40 * 30
    assert (sheet[:40] == 0).all(2).any()


# Batches


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    """Two photographs and a picture that is too thin."""
    (tmp_path / "photos").mkdir()
    for name in ("chelsea", "rocket"):
        with Image.open(photographs / f"{name}.jpg") as picture:
            picture.save(tmp_path / "photos" / f"{name}.jpg")
    _flat(tmp_path / "photos" / "thin.png", (1, 2, 3), (400, 20))
    return tmp_path / "photos"


def test_a_batch_becomes_pairs_and_goes_on_where_it_was(
    optimized: Optimized,
    cup: Path,
    folder: Path,
    tmp_path: Path,
    interrupted_at: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted_at(2)
    command = ("--batch", folder, cup, "-o", "pairs")
    assert not optimized(*command, code=130)["finished"]
    assert not (tmp_path / "pairs" / "pairs.json").exists()
    outcome = optimized(*command)
    assert (outcome["done"], outcome["asked"]) == (2, 3)
    assert "thin.png is 400x20" in outcome["skipped"][0]
    listing = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert [pair["name"] for pair in listing["pairs"]] == ["chelsea", "rocket"]
    for pair in listing["pairs"]:
        sizes = set()
        for part in ("photo", "target"):
            with Image.open(tmp_path / "pairs" / part / f"{pair['name']}.png") as picture:
                sizes.add(picture.size)
        assert len(sizes) == 1
        assert pair["losses"]["total"] > 0
    assert not list((tmp_path / "pairs").glob("**/*.pt"))
    target = tmp_path / "pairs" / "target" / "rocket.png"
    target.unlink()
    kept = (tmp_path / "pairs" / "target" / "chelsea.png").stat().st_mtime_ns
    optimized(*command)
    assert target.is_file()
    assert (tmp_path / "pairs" / "target" / "chelsea.png").stat().st_mtime_ns == kept
    other = ["--batch", str(folder), str(folder / "rocket.jpg"), *TINY, "-o", "pairs"]
    assert main(other) == 2
    assert "pairs of another style or recipe" in capsys.readouterr().err
    assert main([*map(str, command), *TINY, "--strength", "2"]) == 2
    assert "pairs of another style or recipe" in capsys.readouterr().err


def test_pictures_of_one_name_get_names_of_their_own() -> None:
    paths = [Path("a.jpg"), Path("b/a.jpg"), Path("b-a.png"), Path("a.png")]
    assert unique_names(paths) == ["a", "b-a", "b-a-2", "a-2"]


def test_a_batch_that_can_do_nothing_is_refused(
    optimized: Optimized, cup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    command = ["--batch", "photos", str(cup), *TINY, "-o"]
    assert main([*command, "pairs"]) == 2
    assert "no jpg, png or webp below photos" in capsys.readouterr().err
    _flat(tmp_path / "photos" / "thin.png", (1, 2, 3), (400, 20))
    assert main([*command, "photos/thin.png"]) == 2
    assert "thin.png is not a folder" in capsys.readouterr().err
    assert main([*command, "pairs"]) == 2
    assert "none of the 1 photographs below photos could be used" in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()


# What it answers without work


def test_recipes_styles_and_help_are_shown_without_torch(environment: dict[str, str]) -> None:
    module = "topcoat.train.cli.optimize_image"
    assert "gatys2015" in answers_without_torch(module, "--list-recipes", environment)
    assert "mosaic" in answers_without_torch(module, "--list-styles", environment)
    shown = answers_without_torch(module, "--show-recipe", environment)
    assert json.loads(shown.rsplit("False", 1)[0])["steps"] == [200, 100]
    assert "--reconstruct" in answers_without_torch(module, "--help", environment)


def test_gatys2015_holds_the_paper_s_numbers() -> None:
    recipe = OPTIMIZE_RECIPES["gatys2015"]
    assert recipe.loss_network == "vgg19"
    assert (recipe.loss_pooling, recipe.loss_activations) == ("average", "unit-mean")
    assert recipe.resolved_gram_form() == "gatys2015"
    assert recipe.content_layer == "relu4_2"
    assert recipe.layer_weights() == dict.fromkeys([f"relu{n}_1" for n in range(1, 6)], 0.2)
    assert recipe.style_weight == 1e3 * recipe.content_weight
    assert (recipe.start, recipe.tv_weight) == ("noise", 0)


@pytest.mark.parametrize("name", OPTIMIZE_RECIPES)
def test_a_recipe_is_stored_whole(name: str) -> None:
    recipe = OPTIMIZE_RECIPES[name]
    assert type(recipe).from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


# What it refuses


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """Pictures and files of which every one is wrong for something."""
    folder = tmp_path_factory.mktemp("odd")
    _flat(folder / "thin.png", (9, 9, 9), (900, 64))
    _flat(folder / "long.png", (9, 9, 9), (512, 64))
    _flat(folder / "tiny.png", (9, 9, 9), (32, 32))
    with Image.open(photographs / "chelsea.jpg") as picture:
        _flat(folder / "black.png", 0, picture.size)
        _flat(folder / "turned.png", 255, (picture.height, picture.width))
        _flat(folder / "white.png", 255, picture.size)
        dot = Image.new("L", (picture.width * 8, picture.height * 8))
        dot.putpixel((9, 9), 255)
        dot.save(folder / "dot.png")
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    torch.save({"step": 3}, folder / "other.optimize.pt")
    (folder / "cut.optimize.pt").write_bytes(b"PK")
    return folder


BOTH = ("CAT", "CUP")
MISTAKES: list[tuple[Sequence[str], str]] = [
    # pictures
    ((), "a photograph and a style are wanted, got 0 pictures"),
    (("CAT",), "got 1 picture;"),
    (("CAT", "nowhere.jpg"), "no picture at nowhere.jpg"),
    (("nowhere.jpg", "CUP"), "no picture at nowhere.jpg"),
    (("CAT", "mosaiic"), "no built-in style of that name"),
    (("ODD/text.png", "CUP"), "text.png"),
    (("CAT", "ODD/empty.png"), "empty.png is empty"),
    (("ODD/folder.png", "CUP"), "is a folder, not a picture"),
    (("ODD/thin.png", "CUP"), "thin.png is 900x64"),
    (("CAT", "ODD/thin.png"), "thin.png is 900x64"),
    (("ODD/long.png", "CUP"), "would be 32x4 at the smallest size"),
    (("CAT", "ODD/long.png"), "would be 32x4 at the smallest size"),
    (("CAT", "ODD/tiny.png"), "tiny.png is 32x32"),
    # output
    ((*BOTH, "-o", "x.tiff"), "must end in .png"),
    ((*BOTH, "-o", "x"), "must end in .png"),
    ((*BOTH, "-o", "ODD/folder.png"), "is a folder"),
    ((*BOTH, "-o", "ODD/white.png"), "exists; replace it with --force"),
    ((*BOTH, "-o", "ODD/white.png/x.png"), "cannot write to"),
    # masks and shares
    ((*BOTH, "--mask", "ODD/black.png"), "black.png is empty"),
    ((*BOTH, "--mask", "ODD/dot.png"), "dot.png has next to nothing left at 32x"),
    ((*BOTH, "--mask", "ODD/turned.png"), "they differ in shape"),
    ((*BOTH, "--mask", "nowhere.png"), "no picture at nowhere.png"),
    ((*BOTH, "--style-mask", "ODD/black.png"), "black.png"),
    ((*BOTH, "--mask", "-", "--mask", "-"), "--mask was given 2 times for 1 style pictures"),
    ((*BOTH, "CUP", "--style-mask", "-"), "--style-mask was given 1 times for 2"),
    ((*BOTH, "--shares", "1,2"), "--shares has 2 numbers for 1 style"),
    ((*BOTH, "--shares", "a"), "--shares must be numbers"),
    ((*BOTH, "--shares", "0"), "must be positive"),
    ((*BOTH, "--shares", "nan"), "must be positive"),
    # layers and weights
    ((*BOTH, "--content-layer", "relu9_9"), "choose among relu1_1, relu1_2"),
    ((*BOTH, "--content-layer", "conv4_2"), "relu4_2 is what comes out of it"),
    ((*BOTH, "--style-layers", "relu1_1,pool4"), "no layer 'pool4'"),
    ((*BOTH, "--content-layer", "relu4_2"), "lacks the vgg16 layers relu4_1, relu4_2"),
    ((*BOTH, "--histogram-weight", "1", "--histogram-layers", "relu4_1"), "--histogram-layers"),
    ((*BOTH, "--loss-weights", "nowhere.pth"), "--loss-weights names nowhere.pth"),
    ((*BOTH, "--loss-weights", "ODD/text.png"), "not a readable weight file"),
    ((*BOTH, "--recipe", "gatys1789"), "choose among modern, gatys2015"),
    # recipe
    ((*BOTH, "--size", "16"), "size must be 32"),
    ((*BOTH, "--steps", "0"), "steps must be at least 1"),
    ((*BOTH, "--steps", "1,1,1"), "begin at"),
    ((*BOTH, "--start", "nosuch"), "start must be content, style, noise or a picture file"),
    ((*BOTH, "--start", "nowhere.png"), "no picture at nowhere.png"),
    ((*BOTH, "--learning-rate", "0.1"), "--learning-rate would change nothing"),
    ((*BOTH, "--strength", "-1"), "strength must be 0 or more"),
    ((*BOTH, "--histogram-samples", "5"), "would change nothing"),
    ((*BOTH, "--checkpoint-every", "-1"), "--checkpoint-every must be 0 or more"),
    ((*BOTH, "--threads", "0"), "--threads must be at least 1"),
    ((*BOTH, "--content-weight", "0", "--style-weight", "0"), "nothing would be asked"),
    # reconstructions
    (("--reconstruct", "content", *BOTH), "takes one picture, got 2"),
    (("--reconstruct", "style"), "takes one picture, got 0"),
    (("--reconstruct", "style", "CAT", "--content-weight", "1"), "leaves --content-weight out"),
    (("--reconstruct", "style", "CAT", "--start", "content"), "no photograph to start from"),
    (("--reconstruct", "style", "CAT", "--mask", "ODD/white.png"), "give one, or no --mask"),
    (("--reconstruct", "content", "CAT", "--start", "style"), "no style picture to start from"),
    (("--reconstruct", "content", "CAT", "--colours", "luminance"), "needs a photograph and a st"),
    # sweeps
    ((*BOTH, "--sweep", "nothing=1,2"), "no field 'nothing'"),
    ((*BOTH, "--sweep", "strength=1"), "give two values or more"),
    ((*BOTH, "--sweep", "strength=1,b"), "the values of strength are numbers"),
    ((*BOTH, "--sweep", "strength=1,-1"), "strength must be 0 or more"),
    ((*BOTH, "--sweep", "learning_rate=0.1,0.2"), "would change nothing"),
    ((*BOTH, "--sweep", "strength=1,2", "--sweep", "strength=3,4"), "names strength twice"),
    ((*BOTH, *("--sweep", "strength=1,2", "--sweep", "seed=3,4") * 2), "two axes at most"),
    ((*BOTH, "--sweep", "seed=" + ",".join(map(str, range(65)))), "more than 64"),
    ((*BOTH, "--sweep", "content_layer=relu2_2,relu9_9"), "no layer 'relu9_9'"),
    ((*BOTH, "--sweep", "content_layer=relu2_2,relu4_2"), "lacks the vgg16 layers"),
    ((*BOTH, "--sweep", "start=content,nowhere.png"), "no picture at nowhere.png"),
    ((*BOTH, "--sweep", "optimizer=lbfgs,sgd"), "optimizer must be one of"),
    # batches
    (("--batch", "nowhere", "CUP", "-o", "pairs"), "nowhere is not there"),
    (("--batch", "ODD/folder.png", "-o", "pairs"), "no style given"),
    (("--batch", "ODD/folder.png", "CUP"), "no folder for the pairs given"),
    (("--batch", "ODD/folder.png", "CUP", "-o", "pairs", "--sweep", "seed=1,2"), "do not go to"),
    # resuming
    (("--resume", "nowhere.optimize.pt"), "nothing to resume at"),
    (("--resume", "ODD/folder.png"), "nothing to resume at"),
    (("--resume", "ODD/white.png"), "cannot be resumed"),
    (("--resume", "ODD/cut.optimize.pt"), "cannot be resumed"),
    (("--resume", "ODD/other.optimize.pt"), "is not a half-done optimisation"),
    (("--resume", "ODD/other.optimize.pt", "CAT"), "cannot change when resuming"),
    (("--resume", "ODD/other.optimize.pt", "--recipe", "modern"), "cannot change when resuming"),
]


@pytest.mark.parametrize(
    ("arguments", "complaint"), MISTAKES, ids=[" ".join(words)[:60] for words, _ in MISTAKES]
)
def test_mistakes_are_answered_in_one_line(
    refused: Refused, cat: Path, cup: Path, odd: Path, arguments: Sequence[str], complaint: str
) -> None:
    names = {"CAT": str(cat), "CUP": str(cup)}
    given = [names.get(word, word.replace("ODD", str(odd))) for word in arguments]
    if "--resume" not in arguments:
        options = [TINY[i : i + 2] for i in (0, 2)]
        given += [word for option in options if option[0] not in arguments for word in option]
    error = refused(main, [*given, "--quiet"])
    assert complaint in error


def test_a_vgg16_file_for_a_vgg19_recipe_is_answered_with_what_it_lacks(
    refused: Refused, cat: Path, cup: Path, loss_weights: Path
) -> None:
    command = [str(cat), str(cup), "--recipe", "gatys2015", "--loss-weights", str(loss_weights)]
    assert "lacks the vgg19 layers relu3_4, relu4_1" in refused(main, command)
