"""``evaluate-sr``: figures that others get too, the page, the JSON, and every kind of bad input."""

import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from topcoat.train import (
    Checkpoint,
    CheckpointError,
    ContentError,
    PictureError,
    RecipeError,
    _memory,
    metrics,
    save_checkpoint,
)
from topcoat.train._evaluation_page import choose_crop
from topcoat.train._memory import available_memory, least_memory_per_pixel
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
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same columns on every machine; tests/train/test_metrics.py looks at LPIPS."""
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setenv("COLUMNS", "100")


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


def _failure(capsys: Capture, *arguments: object) -> str:
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
    originals: Path, capsys: Capture
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
    originals: Path, tmp_path: Path, save_model: Saver, capsys: Capture
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
    capsys: Capture,
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


def test_json_on_standard_output_takes_the_table_s_place(originals: Path, capsys: Capture) -> None:
    assert main([str(originals), "--scale", "8", "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["protocol"]["scale"] == 8
    assert list(figures["mean"]) == ["bicubic"]


def test_a_half_trained_network_is_said_to_be_one(
    originals: Path, save_model: Saver, capsys: Capture
) -> None:
    half, whole = save_model("half", steps=20), save_model("whole", steps=7)
    assert main([str(originals), "--model", str(half), "--model", str(whole)]) == 0
    table = capsys.readouterr().out
    assert "warning: half stands at step 7 of 20" in table
    assert table.count("warning") == 1


def test_the_table_s_columns_stand_below_each_other(
    originals: Path, save_model: Saver, capsys: Capture
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


def test_on_a_narrow_screen_the_methods_stand_below_each_other(
    originals: Path, save_model: Saver, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    net = save_model("net")
    models = [f"--model=a network with a name, {number}={net}" for number in range(5)]
    tables = {}
    for columns in (300, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([str(originals), *models]) == 0
        tables[columns] = capsys.readouterr().out
        assert max(map(len, tables[columns].splitlines())) <= columns
    wide, narrow = (table.splitlines()[2:] for table in tables.values())
    mean = [float(cell) for cell in wide[5].split()[1:]]
    assert [line.split()[-2:] for line in narrow[1:7]] == [
        [f"{psnr:.2f}", f"{ssim:.4f}"] for psnr, ssim in zip(mean[::2], mean[1::2], strict=True)
    ]
    assert narrow[1].split()[:2] == ["1", "bicubic"]
    assert narrow[6].startswith("6  a network with a name, 4  ")
    assert narrow[8].split() == ["PSNR", "by", "picture", *"123456"]
    for line, full in zip(narrow[9:11], wide[2:4], strict=True):
        assert line.split() == [full.split()[0], *full.split()[1::2]]
    for block in (narrow[:7], narrow[8:11]):
        assert len({len(line) for line in block}) == 1


def test_a_long_name_of_a_picture_is_shown_by_its_end(
    originals: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "set" / ("long" * 20)
    folder.mkdir(parents=True)
    shutil.copy(originals / "a.png", folder / "the-end.png")
    assert main([str(tmp_path / "set"), "--scale", "4"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "the-end" in line)
    assert line.startswith("…onglonglonglonglonglonglong/the-end.png  ")


def test_pictures_are_named_by_their_path_below_the_folder(originals: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / "set" / name).mkdir(parents=True)
        open_rgb(originals / "a.png").save(tmp_path / "set" / name / "same.bmp")
    result = evaluate(find_originals(tmp_path / "set"), {}, scale=4)
    assert [picture.name for picture in result.pictures] == ["x/same.bmp", "y/same.bmp"]
    output = tmp_path / "out"
    assert main([str(tmp_path / "set"), "--scale", "4", "--output", str(output), "--quiet"]) == 0
    assert (output / "bicubic" / "y" / "same.bmp.png").is_file()


def test_a_picture_s_name_does_not_depend_on_the_others(
    originals: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "set" / "x").mkdir(parents=True)
    shutil.copy(originals / "a.png", tmp_path / "set" / "x" / "a.png")
    (tmp_path / "set" / "broken.png").write_bytes(b"")
    (tmp_path / "other").mkdir()
    common = [f"{tmp_path}/other/../set", "--scale", "4", "--json", "-"]
    for more in (["--skip-broken"], ["--only", "a*"]):
        assert main([*common, *more, "--quiet"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["pictures"]
        assert row["name"] == "x/a.png"
    paths = find_originals(tmp_path / "set")
    assert evaluate(paths, {}, scale=4, skip_broken=True).pictures[0].name == "x/a.png"
    with pytest.raises(ValueError, match="is not in the subpath"):
        evaluate(paths, {}, scale=4, folder=tmp_path / "other")


def test_only_keeps_the_files_that_fit(originals: Path) -> None:
    assert [path.name for path in find_originals(originals, "b*")] == ["b.png"]
    with pytest.raises(ContentError, match=r"no .* that fits '\*_HR.png' below"):
        find_originals(originals, "*_HR.png")


def test_files_that_exist_are_replaced_only_when_told(
    originals: Path, tmp_path: Path, capsys: Capture
) -> None:
    page = tmp_path / "e.html"
    page.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    common = (originals, "--scale", 4, "--quiet")
    assert "e.html exists; replace it with --force" in _failure(capsys, *common, "--page", page)
    (tmp_path / "e.json").write_text("mine")
    assert "e.json exists" in _failure(capsys, *common, "--json", tmp_path / "e.json")
    assert "not empty" in _failure(capsys, *common, "--output", tmp_path / "out")
    assert page.read_text() == "mine"
    arguments = [*common, "--page", page, "--output", tmp_path / "out", "--force"]
    assert main([str(argument) for argument in arguments]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_outputs_are_kept_apart_from_originals_and_from_each_other(
    originals: Path, tmp_path: Path, capsys: Capture
) -> None:
    said = _failure(capsys, originals, "--scale", 4, "--output", originals / "out")
    assert "the next run would take outputs for originals" in said
    assert not (originals / "out").exists()


def _bytes(folder: Path) -> dict[str, bytes]:
    """Everything in a folder tree."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("below", ["original", "low-resolution/set", "bicubic", "net"])
def test_originals_among_the_outputs_are_not_replaced(
    below: str, originals: Path, tmp_path: Path, save_model: Saver, capsys: Capture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(originals, out / below)
    before = _bytes(out)
    arguments = ("--model", save_model("net"), "--output", out, "--force")
    kind = out / below.split("/")[0]
    wanted = f"the originals lie in {kind}, where this run would write its own pictures"
    assert wanted in _failure(capsys, out / below, *arguments)
    (tmp_path / "link").symlink_to(out / below)
    assert wanted in _failure(capsys, tmp_path / "link", *arguments)
    assert _bytes(out) == before
    assert main([str(a) for a in (originals, *arguments, "--quiet")]) == 0  # from elsewhere it may


def test_no_result_takes_the_place_of_what_the_run_reads(
    originals: Path, tmp_path: Path, save_model: Saver, capsys: Capture
) -> None:
    folder, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(originals, folder)
    model = save_model("net").rename(tmp_path / "net.json")
    common = (folder, "--model", model, "--force")
    before = _bytes(tmp_path)
    said = _failure(capsys, *common, "--page", folder / "a.png")
    assert "a.png does not end in .html; give --page FILE.html" in said
    said = _failure(capsys, *common, "--json", model)
    assert f"--json would replace {model}, which this run reads; write it elsewhere" in said
    assert _bytes(tmp_path) == before
    (out / "bicubic").mkdir(parents=True)
    (out / "bicubic" / "a.png").hardlink_to(folder / "a.png")  # another name of the same file
    said = _failure(capsys, *common, "--output", out)
    assert f"bicubic of a.png would replace {folder / 'a.png'}, which this run reads" in said
    assert _bytes(folder) == {name: before[f"set/{name}"] for name in ("a.png", "b.png")}


@pytest.mark.parametrize("second", ["a.jpg.png", "A.JPG"])
def test_two_pictures_that_would_meet_in_one_file_are_refused(
    second: str, tmp_path: Path, capsys: Capture
) -> None:
    folder, out = tmp_path / "set", tmp_path / "out"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.jpg")
    if (folder / second).exists():
        pytest.skip("this disk does not tell a.jpg from A.JPG")
    Image.new("RGB", (32, 32), "white").save(folder / second)
    common = (folder, "--scale", 4, "--quiet")
    said = _failure(capsys, *common, "--output", out)
    assert f"bicubic of {second}" in said
    assert re.search(r"bicubic of a.jpg\b(?!\.png)", said)
    assert "would meet in one file" in said
    assert not out.exists()
    assert main([str(a) for a in common]) == 0  # a table has room for both


def test_models_whose_folders_would_meet_are_refused(
    originals: Path, tmp_path: Path, save_model: Saver, capsys: Capture
) -> None:
    net = save_model("net")
    arguments = (originals, "--model", f"A={net}", "--model", f"a={net}")
    said = _failure(capsys, *arguments, "--output", tmp_path / "out")
    assert "A of a.png and a of a.png would meet in one file" in said
    assert "which some disks take for" in said
    assert main([str(a) for a in (*arguments, "--quiet")]) == 0


def test_a_result_that_stands_in_another_s_way_is_found_before_the_work(
    originals: Path, tmp_path: Path, capsys: Capture
) -> None:
    common = (originals, "--scale", 4, "--force")
    said = _failure(capsys, *common, "--json", tmp_path / "r.json", "--output", tmp_path / "r.json")
    assert "r.json cannot be both --json and a folder; rename one" in said
    (tmp_path / "out" / "bicubic" / "b.png").mkdir(parents=True)
    said = _failure(capsys, *common, "--output", tmp_path / "out")
    assert "b.png, where bicubic of b.png should go, is a folder; remove it" in said
    (tmp_path / "new" / "bicubic").parent.mkdir()
    (tmp_path / "new" / "bicubic").write_text("mine")
    said = _failure(capsys, *common, "--output", tmp_path / "new")
    assert "bicubic is a file; remove it" in said
    assert _bytes(tmp_path) == {"new/bicubic": b"mine"}


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
    partly_broken: Path, capsys: Capture
) -> None:
    said = _failure(capsys, partly_broken, "--scale", 4, "--page", partly_broken / "e.html")
    assert "3 of 4 pictures cannot be used" in said
    assert "--skip-broken" in said
    assert "cut.png cannot be decoded" in said
    assert "deep.png has more than 8 bits a channel" in said
    assert "thin.png is 200x19; wanted: at least 20 pixels a side" in said
    assert not (partly_broken / "e.html").exists()


def test_told_to_skip_them_it_names_what_is_left_out(
    partly_broken: Path, tmp_path: Path, capsys: Capture
) -> None:
    page = tmp_path / "e.html"
    arguments = [str(partly_broken), "--scale", "4", "--skip-broken", "--page", str(page)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "warning: 3 of 4 pictures are not in the mean" in captured.out
    assert captured.err.count("left out: ") == 3
    assert "deep.png has more than 8 bits" in page.read_text()


def test_with_nothing_usable_there_is_nothing_to_skip(partly_broken: Path, capsys: Capture) -> None:
    (partly_broken / "good.png").unlink()
    said = _failure(capsys, partly_broken, "--scale", 4, "--skip-broken")
    assert "none of 3 pictures can be used" in said


def test_a_picture_smaller_than_a_network_takes_is_refused(originals: Path) -> None:
    class Large(FrameNetwork):
        scale = 4
        size_min = 20

    with pytest.raises(ContentError, match="at least 80 pixels a side, for the network's 20"):
        evaluate(find_originals(originals), {"large": Large()}, scale=4)


class Greedy(FrameNetwork):
    """Fails as torch's allocator does, or another way."""

    scale = 4

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, frame: Tensor) -> Tensor:
        if frame.is_meta:
            raise NotImplementedError
        raise self.error


def _refused_by_the_allocator() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [_refused_by_the_allocator(), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")],
)
def test_a_network_that_runs_out_of_memory_is_told_in_a_line(
    error: Exception, originals: Path
) -> None:
    wanted = r"not enough memory for greedy on .*a\.png of 96x64; leave that picture out"
    with pytest.raises(PictureError, match=wanted) as caught:
        evaluate([originals / "a.png"], {"greedy": Greedy(error)}, scale=4)
    assert "\n" not in str(caught.value)


def test_other_failures_of_a_network_are_not_blamed_on_memory(originals: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluate(
            [originals / "a.png"],
            {"net": Greedy(RuntimeError("shapes cannot be multiplied"))},
            scale=4,
        )


def test_a_picture_that_cannot_fit_into_the_memory_is_found_before_the_work(
    originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Layers at full size of 4 channels: 8 bytes twice for each of 5 632 pixels of the larger one.
    net = build_network("johnson-sr", {"scale": 4, "width": 4, "blocks": 0})
    per_pixel = least_memory_per_pixel(net)
    assert per_pixel == 16 * 4 * (4 + 4)
    paths = find_originals(originals)
    need = per_pixel * 96 * 64 / 16
    monkeypatch.setattr(_memory, "available_memory", lambda: need - 1)
    result = evaluate(paths, {"net": net}, scale=4, skip_broken=True)
    assert [picture.name for picture in result.pictures] == ["b.png"]
    assert "a.png is 96x64, and net needs 0.0 GiB of memory" in result.skipped[0]
    monkeypatch.setattr(_memory, "available_memory", lambda: need)
    assert len(evaluate(paths, {"net": net}, scale=4).pictures) == 2


def test_free_memory_is_read_where_the_system_tells_it(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  5 kB\nSwapFree:  2 kB\nHugePages: 0\n")
    assert available_memory(meminfo) == 7 * 1024
    meminfo.write_text("MemTotal: 9 kB\n")
    assert available_memory(meminfo) is None
    assert available_memory(tmp_path / "none") is None


def test_an_interrupted_evaluation_says_so(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics, "psnr_y", interrupt)
    page = tmp_path / "e.html"
    assert main([str(originals), "--scale", "4", "--page", str(page)]) == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "evaluate-sr: interrupted; no figures were written"
    assert not page.exists()


def test_a_result_is_on_the_disk_before_it_gets_its_name(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, flushed, sync = tmp_path / "e.html", [], os.fsync

    def record(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_size, page.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    assert main([str(originals), "--scale", "4", "--page", str(page), "--quiet"]) == 0
    assert flushed[0] == (page.stat().st_size, False)
    assert page.stat().st_mode & 0o777 == 0o644 or sys.platform == "win32"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file size")
def test_a_full_disk_leaves_the_earlier_result(originals: Path, tmp_path: Path) -> None:
    page = tmp_path / "e.html"
    page.write_text("mine")
    code = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
from topcoat.train.cli.evaluate_sr import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main([{str(originals)!r}, "--scale", "4", "--page", {str(page)!r}, "--force"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"evaluate-sr: cannot write {page}: File too large" in done.stderr
    assert page.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["e.html"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("{empty}", "--scale", 4), "no jpg, png, webp, bmp or tif below"),
        (("{empty}/none", "--scale", 4), "is not there; give a folder"),
        (("{set}/a.png", "--scale", 4), "is a file; give a folder"),
        (("{set}",), "no factor given; pass --scale 4"),
        (("--scale", 4), "no FOLDER of high-resolution pictures given"),
        (
            ("--scale", 4, "--json", "{set}"),
            "given; --json took {set}: give --json - for standard output",
        ),
        (
            ("{set}", "--scale", 4, "--json", "{empty}/e.html"),
            "e.html does not end in .json; give --json FILE.json, or --json - for standard output",
        ),
        (
            ("{set}", "--scale", 4, "--page", "{empty}/e.json"),
            "e.json does not end in .html; give --page FILE.html",
        ),
        (("{set}", "--scale", 3), "invalid choice: 3 (choose from 2, 4, 8)"),
        (("{set}", "--scale", 4, "--blur", -1), "blur must be 0 or from 0.1 to 16 pixels, got -1"),
        (("{set}", "--scale", 4, "--blur", "nan"), "blur must be 0 or from 0.1 to 16 pixels"),
        (("{set}", "--scale", 4, "--blur", "1e-30"), "pixels, got 1e-30; try 0 or 1"),
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
    capsys: Capture,
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [str(a).format(empty=tmp_path / "empty", set=originals) for a in arguments]
    said = _failure(capsys, *filled)
    assert wanted.replace("{set}", str(originals)) in said
    assert not any((tmp_path / "empty").iterdir())
    assert said.splitlines()[-1].startswith(("evaluate-sr: ", "  "))


def test_models_that_do_not_belong_here_are_refused(
    originals: Path, tmp_path: Path, save_model: Saver, capsys: Capture
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
    originals: Path, save_model: Saver, capsys: Capture
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
