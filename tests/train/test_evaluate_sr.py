"""``evaluate-sr``: figures that others get too, the page, the JSON, and every kind of bad input."""

import base64
import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from topcoat.train import (
    Checkpoint,
    CheckpointError,
    ContentError,
    RecipeError,
    metrics,
    save_checkpoint,
)
from topcoat.train._evaluation_page import choose_crop
from topcoat.train.cli.evaluate_sr import main, parser
from topcoat.train.degradation import degrade
from topcoat.train.evaluation import (
    PictureSet,
    bicubic_method,
    evaluate,
    find_originals,
    network_method,
)
from topcoat.train.metrics import Picture, psnr_y
from topcoat.train.networks import FrameNetwork, build_network
from topcoat.train.networks._base import SCALES
from topcoat.train.pictures import file_sha256, open_rgb, sample_photographs, to_array

Saver = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same columns on every machine; tests/train/test_metrics.py looks at LPIPS."""
    monkeypatch.setitem(sys.modules, "lpips", None)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sharp photographs, 96 by 64 and (not a multiple of 4) 67 by 90."""
    folder = tmp_path_factory.mktemp("Two")
    first, second = (open_rgb(path) for path in sample_photographs()[:2])
    first.crop((180, 60, 276, 124)).save(folder / "a.png")
    second.crop((150, 90, 217, 180)).save(folder / "b.png")
    return folder


@pytest.fixture
def save_model(tmp_path: Path) -> Saver:
    """Write a checkpoint of a small network with fresh weights."""

    def save(
        name: str, network: str = "residual-sr", scale: int = 4, **recipe: str | float
    ) -> Path:
        settings: dict[str, Any] = {"width": 4}
        settings |= {"blocks": 1} if network != "srcnn" else {}
        settings |= {"scale": scale} if network != "johnson" else {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = build_network(network, settings).state_dict()
        path = tmp_path / f"{name}.pt"
        save_checkpoint(
            Checkpoint(
                task="style" if network == "johnson" else "super-resolution",
                network={"name": network, "settings": settings},
                weights=weights,
                recipe={"name": "modern", "loss": "pixel", "blur": 0.0} | recipe,
                step=7,
            ),
            path,
        )
        return path

    return save


def _failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says when it refuses: on standard error, with nothing else."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    return captured.err.strip()


# The figures


def test_bicubic_agrees_with_pillow_s_own(originals: Path) -> None:
    # Pillow has the same kernel, but cuts it off at the picture's edge, and rounds in between.
    def pillow(low: Picture) -> Picture:
        size = (low.shape[1] * 4, low.shape[0] * 4)
        return np.asarray(Image.fromarray(low).resize(size, Image.Resampling.BICUBIC))

    mean = evaluate(find_originals(originals), {"pillow": pillow}, scale=4, border=16).mean
    assert mean("bicubic").psnr_y == pytest.approx(mean("pillow").psnr_y, abs=0.02)
    assert mean("bicubic").ssim_y == pytest.approx(mean("pillow").ssim_y, abs=0.001)


def test_the_small_picture_is_that_of_the_degradation(originals: Path) -> None:
    seen = []

    def spy(low: Picture) -> Picture:
        seen.append(low)
        return low.repeat(2, 0).repeat(2, 1)

    path = originals / "a.png"
    for blur in (0.0, 1.0):
        evaluate([path], {"spy": spy}, scale=2, blur=blur)
        frame = torch.from_numpy(to_array(open_rgb(path)).copy()).permute(2, 0, 1)[None] / 255
        wanted = (degrade(frame, 2, blur)[0].permute(1, 2, 0).numpy() * 255).round()
        np.testing.assert_array_equal(seen[-1], wanted)
    assert (seen[0] != seen[1]).any()


def test_a_method_that_knows_the_original_is_perfect(originals: Path) -> None:
    path = originals / "a.png"
    original = to_array(open_rgb(path)).copy()
    result = evaluate([path], {"oracle": lambda low: original}, scale=4)
    assert result.mean("oracle").psnr_y == math.inf
    assert result.mean("oracle").ssim_y == pytest.approx(1)
    assert result.to_dict()["mean"]["oracle"]["psnr_y"] is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_mean_is_that_of_the_pictures_decibels(originals: Path) -> None:
    result = evaluate(find_originals(originals), {}, scale=4)
    rows = [picture.scores["bicubic"].psnr_y for picture in result.pictures]
    assert len(set(rows)) == 2
    assert result.mean("bicubic").psnr_y == pytest.approx(sum(rows) / 2)


def test_sizes_are_cut_to_multiples_of_the_scale_and_it_is_said(
    originals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(find_originals(originals), {}, scale=4)
    assert [(p.name, p.file_size, p.size) for p in result.pictures] == [
        ("a.png", (96, 64), (96, 64)),
        ("b.png", (67, 90), (64, 88)),
    ]
    assert main([str(originals), "--scale", "4", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main([str(originals), "--scale", "4"]) == 0
    assert "1 of 2 were cut" in capsys.readouterr().out


def test_matching_the_histogram_undoes_a_method_s_colour_shift(originals: Path) -> None:
    def shifted(low: Picture) -> Picture:
        cast = bicubic_method(4)(low) + np.array([25, 10, -5])
        clipped: Picture = cast.clip(0, 255).astype(np.uint8)
        return clipped

    paths = find_originals(originals)
    without = evaluate(paths, {"shifted": shifted}, scale=4)
    matched = evaluate(paths, {"shifted": shifted}, scale=4, match_histogram=True)
    assert matched.mean("shifted").psnr_y > without.mean("shifted").psnr_y + 2
    assert matched.mean("bicubic") == without.mean("bicubic")
    assert matched.protocol.match_histogram


def test_a_network_runs_in_evaluation_mode_and_full_precision(originals: Path) -> None:
    torch.manual_seed(0)
    network = build_network("johnson-sr", {"scale": 2, "width": 4, "blocks": 1}).train()
    paths = [originals / "a.png"]
    first = evaluate(paths, {"net": network.bfloat16()}, scale=2)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training
    assert evaluate(paths, {"net": network}, scale=2) == first  # batch norm has learnt nothing


def test_a_network_that_computes_nan_is_named() -> None:
    network = build_network("srcnn", {"scale": 2, "width": 2})
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="blown computes NaN or infinity on a picture of 9x8"):
        network_method(network, "blown")(np.zeros((8, 9, 3), np.uint8))


@pytest.mark.skipif(
    not os.environ.get("TOPCOAT_SR_EVAL"), reason="TOPCOAT_SR_EVAL names no copy of Set5"
)
@pytest.mark.parametrize(("scale", "psnr"), [(2, 33.66), (4, 28.42)])
def test_bicubic_on_set5_is_the_published_number(scale: int, psnr: float) -> None:
    result = evaluate(find_originals(os.environ["TOPCOAT_SR_EVAL"]), {}, scale=scale)
    assert len(result.pictures) == 5
    assert result.mean("bicubic").psnr_y == pytest.approx(psnr, abs=0.05)


# What the command writes


def test_the_command_s_json_page_and_pictures_agree(
    originals: Path, tmp_path: Path, save_model: Saver, capsys: pytest.CaptureFixture[str]
) -> None:
    feature = save_model("x", loss="feature", blur=1.0)
    baseline = save_model("srcnn", "srcnn")
    out = tmp_path / "out"
    code = main(
        [
            *(str(originals), "--model", f"feature={feature}"),
            *("--model", str(baseline), "--json", str(tmp_path / "e.json")),
            *("--page", str(tmp_path / "e.html"), "--output", str(out), "--crop-size", "34"),
        ]
    )
    table = capsys.readouterr().out
    assert code == 0
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["set"] == originals.name
    assert figures["protocol"]["scale"] == figures["protocol"]["border"] == 4
    assert figures["protocol"]["blur"] == 0
    assert "lpips cannot be imported" in figures["protocol"]["lpips_missing"]
    assert [model["name"] for model in figures["models"]] == ["feature", "srcnn"]
    described = figures["models"][0]
    assert described["sha256"] == file_sha256(feature)
    assert (described["loss"], described["blur"], described["steps"]) == ("feature", 1.0, 7)
    assert figures["warnings"] == ["feature was trained with sigma 1, tested with sigma 0"]
    assert {"torch", "topcoat-train", "scikit-image"} <= set(figures["versions"])

    # The pictures that were written are those that were measured.
    page = (tmp_path / "e.html").read_text()
    for row in figures["pictures"]:
        original = to_array(open_rgb(out / "original" / row["name"]))
        assert original.shape == (row["size"][1], row["size"][0], 3)
        small = to_array(open_rgb(out / "low-resolution" / row["name"]))
        assert small.shape == (row["size"][1] // 4, row["size"][0] // 4, 3)
        for method, scores in row["scores"].items():
            output = to_array(open_rgb(out / method / row["name"]))
            psnr = psnr_y(output, original, 4)
            assert psnr == pytest.approx(scores["psnr_y"], abs=1e-9)
            assert f"{psnr:.2f} dB" in page
    for method in ("bicubic", "feature", "srcnn"):
        mean = figures["mean"][method]
        rows = [row["scores"][method]["ssim_y"] for row in figures["pictures"]]
        assert mean["ssim_y"] == pytest.approx(sum(rows) / 2)
        assert f"{mean['psnr_y']:.2f}" in table
        assert f"{mean['ssim_y']:.4f}" in page
    assert "warning: feature was trained with sigma 1, tested with sigma 0" in table
    assert "feature was trained with sigma 1, tested with sigma 0" in page


def test_the_page_holds_the_same_crop_of_every_method_and_asks_for_nothing(
    originals: Path, tmp_path: Path, save_model: Saver
) -> None:
    page_file, out = tmp_path / "e.html", tmp_path / "out"
    arguments = [originals, "--model", save_model("net"), "--page", page_file, "--output", out]
    assert main([*map(str, arguments), "--quiet"]) == 0
    page = page_file.read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/)", page)
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    titles = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert titles == ["low resolution", "bicubic", "net", "original"] * 2
    crops = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    ]
    places = re.findall(r"crop (\d+)×(\d+) at \((\d+), (\d+)\)", page)
    assert [place[:2] for place in places] == [("80", "64"), ("64", "80")]
    kinds = ("low-resolution", "bicubic", "net", "original")
    for number, (name, place) in enumerate(zip(("a.png", "b.png"), places, strict=True)):
        width, height, left, top = map(int, place)
        for crop, kind in zip(crops[4 * number :], kinds, strict=False):
            shrink = 4 if kind == "low-resolution" else 1
            whole = to_array(open_rgb(out / kind / name))
            rows = slice(top // shrink, (top + height) // shrink)
            columns = slice(left // shrink, (left + width) // shrink)
            np.testing.assert_array_equal(crop, whole[rows, columns])
    assert "image-rendering: pixelated" in page


def test_the_page_escapes_what_comes_from_names(tmp_path: Path, save_model: Saver) -> None:
    folder = tmp_path / "<b>set&"
    folder.mkdir()
    sample = open_rgb(sample_photographs()[0]).crop((180, 60, 244, 124))
    sample.save(folder / "<script>alert(1)<.png")
    model = save_model("net", loss="<i>pixel")
    page = tmp_path / "e.html"
    assert main([str(folder), "--model", str(model), "--page", str(page), "--quiet"]) == 0
    text = page.read_text()
    assert "<script" not in text
    assert "<i>pixel" not in text
    assert "&lt;script&gt;alert(1)&lt;.png" in text
    assert "&lt;b&gt;set&amp;" in text


def test_lpips_gets_its_column_where_it_can_be_measured(
    originals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def far(output: Picture, original: Picture, border: int) -> float:
        return float(output.shape[0] * border)

    monkeypatch.setattr(metrics, "find_lpips", lambda: (far, "lpips of the test"))
    page = tmp_path / "e.html"
    assert main([str(originals), "--scale", "2", "--page", str(page)]) == 0
    table = capsys.readouterr().out
    assert "LPIPS: lpips of the test" in table
    assert [line.split()[-1] for line in table.splitlines() if line.endswith("0000")] == [
        *("128.0000", "180.0000", "154.0000")
    ]
    assert "<th>LPIPS" in page.read_text()
    assert "154.0000" in page.read_text()
    assert main([str(originals), "--scale", "2", "--no-lpips"]) == 0
    assert "LPIPS left out: not asked for" in capsys.readouterr().out


def test_the_crop_is_where_the_methods_differ() -> None:
    original = np.full((64, 96, 3), 128, np.uint8)
    bicubic, method = original.copy(), original.copy()
    method[40:52, 70:82] = 200
    shown = PictureSet(
        original=original,
        low_resolution=original[::4, ::4],
        outputs={"bicubic": bicubic, "net": method},
    )
    crop = choose_crop(shown, scale=4, side=19)
    assert (crop.height, crop.width) == (16, 16)
    assert crop.top % 4 == crop.left % 4 == 0
    assert crop.top <= 40 < 52 <= crop.top + 16
    assert crop.left <= 70 < 82 <= crop.left + 16
    assert crop.of(shown.low_resolution, 4).shape == (4, 4, 3)
    assert choose_crop(shown, scale=4, side=19) == crop


def test_the_crop_of_a_picture_without_differences_is_its_corner() -> None:
    flat = np.zeros((16, 24, 3), np.uint8)
    shown = PictureSet(original=flat, low_resolution=flat[::8, ::8], outputs={"bicubic": flat})
    crop = choose_crop(shown, scale=8, side=100)
    assert (crop.top, crop.left, crop.height, crop.width) == (0, 0, 16, 24)


def test_json_on_standard_output_takes_the_table_s_place(
    originals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(originals), "--scale", "8", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["protocol"]["scale"] == 8
    assert list(figures["mean"]) == ["bicubic"]


def test_a_half_trained_network_is_said_to_be_one(
    originals: Path, save_model: Saver, capsys: pytest.CaptureFixture[str]
) -> None:
    half, whole = save_model("half", steps=20), save_model("whole", steps=7)
    assert main([str(originals), "--model", str(half), "--model", str(whole)]) == 0
    table = capsys.readouterr().out
    assert "warning: half stands at step 7 of 20" in table
    assert table.count("warning") == 1


def test_the_table_s_columns_stand_below_each_other(
    originals: Path, save_model: Saver, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model("m")
    main([str(originals), "--model", f"a_rather_long_name={model}", "--model", str(model)])
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("") + 1 : len(lines) - lines[::-1].index("")][:-1]
    assert len({len(line) for line in table}) == 1
    assert table[0].split() == ["bicubic", "a_rather_long_name", "m"]
    assert [line.split()[0] for line in table[2:]] == [
        "a.png",
        "b.png",
        "-" * len(table[0]),
        "mean",
    ]


def test_pictures_are_named_by_their_path_below_the_folder(originals: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / "set" / name).mkdir(parents=True)
        open_rgb(originals / "a.png").save(tmp_path / "set" / name / "same.bmp")
    result = evaluate(find_originals(tmp_path / "set"), {}, scale=4)
    assert [picture.name for picture in result.pictures] == ["x/same.bmp", "y/same.bmp"]
    output = tmp_path / "out"
    assert main([str(tmp_path / "set"), "--scale", "4", "--output", str(output), "--quiet"]) == 0
    assert (output / "bicubic" / "y" / "same.bmp.png").is_file()


def test_only_keeps_the_files_that_fit(originals: Path) -> None:
    assert [path.name for path in find_originals(originals, "b*")] == ["b.png"]
    with pytest.raises(ContentError, match=r"no .* that fits '\*_HR.png' below"):
        find_originals(originals, "*_HR.png")


def test_files_that_exist_are_replaced_only_when_told(
    originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "e.html"
    page.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    common = (originals, "--scale", 4, "--quiet")
    assert "e.html exists; replace it with --force" in _failure(capsys, *common, "--page", page)
    assert "e.html exists" in _failure(capsys, *common, "--json", page)
    assert "not empty" in _failure(capsys, *common, "--output", tmp_path / "out")
    assert page.read_text() == "mine"
    arguments = [*common, "--page", page, "--output", tmp_path / "out", "--force"]
    assert main([str(argument) for argument in arguments]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_outputs_are_kept_apart_from_originals_and_from_each_other(
    originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _failure(capsys, originals, "--scale", 4, "--output", originals / "out")
    assert "the next run would take outputs for originals" in said
    assert not (originals / "out").exists()
    both = tmp_path / "both"
    said = _failure(capsys, originals, "--scale", 4, "--json", both, "--page", both)
    assert "--json and --page both name" in said


# Bad input


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:  # permissions do not stop an administrator
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ContentError, match=r"cannot read .*locked: Permission denied"):
        find_originals(tmp_path)


def test_pictures_of_other_kinds_are_converted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = {"grey": (32, 40), "alpha": (32, 40, 4)}
    for name, shape in kinds.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    result = evaluate(find_originals(tmp_path), {}, scale=4)
    assert [picture.name for picture in result.pictures] == ["alpha.png", "grey.png"]


@pytest.fixture
def partly_broken(originals: Path, tmp_path: Path) -> Path:
    """One good picture among three that cannot be used."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = (originals / "a.png").read_bytes()
    (folder / "good.png").write_bytes(good)
    (folder / "cut.png").write_bytes(good[:2000])
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (200, 19)).save(folder / "thin.png")
    return folder


def test_a_mean_over_fewer_pictures_than_asked_for_is_refused(
    partly_broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _failure(capsys, partly_broken, "--scale", 4, "--page", partly_broken / "e.html")
    assert "3 of 4 pictures cannot be used" in said
    assert "--skip-broken" in said
    assert "cut.png cannot be decoded" in said
    assert "deep.png has more than 8 bits a channel" in said
    assert "thin.png is 200x19; wanted: at least 20 pixels a side" in said
    assert not (partly_broken / "e.html").exists()


def test_told_to_skip_them_it_names_what_is_left_out(
    partly_broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "e.html"
    arguments = [str(partly_broken), "--scale", "4", "--skip-broken", "--page", str(page)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "warning: 3 of 4 pictures are not in the mean" in captured.out
    assert captured.err.count("left out: ") == 3
    assert "deep.png has more than 8 bits" in page.read_text()


def test_with_nothing_usable_there_is_nothing_to_skip(
    partly_broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (partly_broken / "good.png").unlink()
    said = _failure(capsys, partly_broken, "--scale", 4, "--skip-broken")
    assert "none of 3 pictures can be used" in said


def test_a_picture_smaller_than_a_network_takes_is_refused(originals: Path) -> None:
    class Large(FrameNetwork):
        scale = 4
        size_min = 20

    with pytest.raises(ContentError, match="at least 80 pixels a side, for the network's 20"):
        evaluate(find_originals(originals), {"large": Large()}, scale=4)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("{empty}", "--scale", 4), "no jpg, png, webp, bmp or tif below"),
        (("{empty}/none", "--scale", 4), "is not there; give a folder"),
        (("{set}/a.png", "--scale", 4), "is a file; give a folder"),
        (("{set}",), "no factor given; pass --scale 4"),
        (("{set}", "--scale", 3), "invalid choice: 3 (choose from 2, 4, 8)"),
        (("{set}", "--scale", 4, "--blur", -1), "--blur must be 0 to 16 pixels, got -1"),
        (("{set}", "--scale", 4, "--blur", "nan"), "--blur must be 0 to 16 pixels, got nan"),
        (("{set}", "--scale", 4, "--border", -1), "border must be 0 or more pixels, got -1"),
        (("{set}", "--scale", 4, "--border", 30), "for the 11 pixels of SSIM within the border"),
        (("{set}", "--scale", 4, "--crop-size", 2), "--crop-size must be 16 to 512 pixels, got 2"),
        (("{set}", "--scale", 4, "--threads", 0), "--threads must be at least 1, got 0"),
        (("{set}", "--scale", 4, "--page", "{set}"), "is a folder; give a file name with --page"),
        (("{set}", "--scale", 4, "--output", "{set}/a.png"), "is a file; give a folder"),
        (("{set}", "--scale", 4, "--page", "{set}/a.png/e.html"), "cannot write to"),
        (("{set}", "--model", "{empty}/none.pt"), "no checkpoint at"),
        (("{set}", "--model", "{empty}"), "is a folder, not a checkpoint; give the .pt file"),
        (("{set}", "--model", "{set}/a.png"), "is not a checkpoint"),
        (("{set}", "--model", "x="), "'x=' is half a model; give FILE or NAME=FILE"),
        (("{set}", "--model", "original=x.pt"), "cannot be called 'original'"),
        (("{set}", "--model", "../x=x.pt"), "cannot be called '../x'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: tuple[object, ...],
    wanted: str,
    originals: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [str(a).format(empty=tmp_path / "empty", set=originals) for a in arguments]
    said = _failure(capsys, *filled)
    assert wanted in said
    assert said.splitlines()[-1].startswith(("evaluate-sr: ", "  "))


def test_models_that_do_not_belong_here_are_refused(
    originals: Path, tmp_path: Path, save_model: Saver, capsys: pytest.CaptureFixture[str]
) -> None:
    style, two, four = (
        save_model("style", "johnson"),
        save_model("two", scale=2),
        save_model("four"),
    )
    said = _failure(capsys, originals, "--model", style)
    assert "was trained for 'style' and does not enlarge; give a .pt file that train-sr" in said
    bundle = tmp_path / "candy.topcoat"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    assert "is an exported bundle, not a checkpoint" in _failure(
        capsys, originals, "--model", bundle
    )
    said = _failure(capsys, originals, "--model", two, "--model", four)
    assert "different factors (two by 2, four by 4)" in said
    said = _failure(capsys, originals, "--model", two, "--scale", 4)
    assert "--scale 4 does not fit two, which enlarges by 2" in said
    said = _failure(capsys, originals, "--model", two, "--model", f"two={two}")
    assert "2 models are called 'two'" in said


def test_a_file_name_with_an_equals_sign_is_a_file(
    originals: Path, save_model: Saver, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model("width=4")
    assert main([str(originals), "--model", str(model)]) == 0
    assert "width=4" in capsys.readouterr().out


def test_evaluate_refuses_what_does_not_fit(originals: Path) -> None:
    paths = find_originals(originals)
    with pytest.raises(RecipeError, match="'bicubic' is always measured"):
        evaluate(paths, {"bicubic": lambda low: low}, scale=4)
    with pytest.raises(RecipeError, match="net enlarges by 2, not by 4"):
        evaluate(paths, {"net": build_network("srcnn", {"scale": 2, "width": 2})}, scale=4)
    with pytest.raises(ValueError, match=r"same returned uint8 \(16, 24, 3\), wanted uint8"):
        evaluate(paths, {"same": lambda low: low}, scale=4)
    with pytest.raises(ContentError, match="no pictures given"):
        evaluate([], {}, scale=4)


def test_the_scales_offered_are_those_of_the_networks() -> None:
    (action,) = (a for a in parser()._actions if a.dest == "scale")
    assert tuple(action.choices or ()) == SCALES


def test_help_shows_examples_before_torch_loads() -> None:
    code = (
        "import sys; from topcoat.train.cli.evaluate_sr import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules, 'skimage' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "evaluate-sr Set5 --scale 4" in done.stdout
    assert done.stdout.endswith("False False\n")
