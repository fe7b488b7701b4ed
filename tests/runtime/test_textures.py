"""Texture bundles: noise of a seed in, a picture out that repeats; sizes are never padded."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import topcoat.runtime as tr
from tests.runtime.conftest import DATA
from topcoat.runtime.cli import bench_latency
from topcoat.runtime.cli.topcoat import main
from topcoat.runtime.frames import Frame

ENGINE = ["--backend", "onnxruntime-cpu", "--threads", "1"]
WOVEN = DATA / "woven.topcoat"


def pixels(path: Path) -> Frame:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    with image.open(path) as picture:
        return np.asarray(picture)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with one line and code 2; return the line."""
    pytest.importorskip("PIL", reason="Pillow is not installed")
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.fixture
def model(backend: str) -> Any:  # noqa: ANN401 - a generator fixture
    with tr.open(WOVEN, backend=backend, precision="fp32", threads=1) as opened:
        yield opened


# ------------------------------------------------------------------------------------ in a program


def test_a_seed_says_the_noise_that_the_document_says() -> None:
    wanted = np.random.default_rng(7).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(tr.noise_frame(12, 20, 7), wanted)
    assert not np.array_equal(tr.noise_frame(12, 20, 8), wanted)
    np.testing.assert_array_equal(tr.noise_frame(12, 20), tr.noise_frame(12, 20, 0))


def test_a_sample_is_what_the_network_makes_of_that_noise(
    model: tr.Model, make_bundles: ModuleType
) -> None:
    assert model.task == "texture"
    texture = model.sample(24, 40, seed=3)
    wanted = make_bundles.woven(tr.noise_frame(24, 40, 3)[None])[0]
    assert np.abs(texture.astype(int) - wanted).max() <= 1
    np.testing.assert_array_equal(texture, model.process(tr.noise_frame(24, 40, 3)))
    assert not np.array_equal(texture, model.sample(24, 40, seed=4))


def test_a_sample_goes_where_it_is_wanted(model: tr.Model) -> None:
    out = np.zeros((16, 32, 3), np.uint8)
    assert model.sample(16, 32, 5, out) is out
    np.testing.assert_array_equal(out, model.sample(16, 32, 5))
    with pytest.raises(tr.FrameError, match=re.escape("out has shape (16, 32, 3)")):
        model.sample(32, 16, out=out)


def test_repeated_noise_gives_the_repeated_texture(model: tr.Model) -> None:
    noise = tr.noise_frame(24, 32, 1)
    repeated = model.process(np.tile(noise, (2, 2, 1)))
    np.testing.assert_array_equal(repeated, np.tile(model.process(noise), (2, 2, 1)))


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((250, 100), "100x252"), ((3, 8), "8x8"), ((1, 1), "8x8"), ((30, 32), "32x32")],
)
def test_a_size_that_does_not_fit_is_refused_and_the_nearest_named(
    model: tr.Model, size: tuple[int, int], nearest: str
) -> None:
    height, width = size
    for attempt in (
        lambda: model.sample(height, width),
        lambda: model.process(np.zeros((height, width, 3), np.uint8)),
        lambda: model.tiles(height, width),
    ):
        with pytest.raises(tr.FrameError, match=f"the nearest size is {nearest}") as caught:
            attempt()
        assert f"cannot have {width}x{height} pixels" in str(caught.value)
        assert "multiples of 4, at least 8, for padding would break" in str(caught.value)


def test_the_nearest_size_keeps_to_the_largest(
    tmp_path: Path,
) -> None:
    import shutil

    bundle = Path(shutil.copytree(WOVEN, tmp_path / "woven.topcoat"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["size"]["max"] = 30
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with (
        tr.open(bundle, backend="onnxruntime-cpu", threads=1) as model,
        pytest.raises(tr.FrameError, match=r"at least 8 and at most 30.*nearest size is 28x12"),
    ):
        model.sample(12, 200)
    manifest["scale"] = 2
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(tr.BundleError, match="a texture is as large as its noise"):
        tr.read_manifest(bundle)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True, None])
def test_a_seed_is_a_whole_number_from_zero(seed: Any) -> None:  # noqa: ANN401
    with pytest.raises(tr.TextureError, match=r"seed is .*, wanted a whole number of at least 0"):
        tr.noise_frame(4, 4, seed)


@pytest.mark.parametrize("size", [(0, 4), (4.0, 4), (4, -4), ("4", 4)])
def test_a_side_is_a_whole_number_from_one(size: tuple[Any, Any]) -> None:
    with pytest.raises(tr.FrameError, match="wanted whole numbers of at least 1"):
        tr.noise_frame(*size)


def test_noise_that_no_memory_holds_is_one_line() -> None:
    with pytest.raises(tr.FrameMemoryError, match="more memory than this process can get"):
        tr.noise_frame(1 << 40, 1 << 40)


def test_numpys_integers_are_whole_numbers() -> None:
    size, seed = np.int64(8), np.uint8(3)
    np.testing.assert_array_equal(
        tr.noise_frame(size, size, seed),  # type: ignore[arg-type]
        tr.noise_frame(8, 8, 3),
    )


def test_a_bundle_for_pictures_makes_no_texture(blocks: Path) -> None:
    with (
        tr.open(blocks, backend="onnxruntime-cpu", threads=1) as model,
        pytest.raises(tr.TextureError, match="blocks is for the task style and makes no textures"),
    ):
        model.sample(16, 16)


def test_what_only_makes_sense_for_pictures_is_refused() -> None:
    with pytest.raises(tr.TextureError, match="but woven is a texture, which is made from noise"):
        tr.open(WOVEN, match_histogram=True)
    with pytest.raises(tr.TileError, match="woven is a texture, whose edges meet"):
        tr.open(WOVEN, tile=64)
    with tr.open(WOVEN, backend="onnxruntime-cpu", threads=1, tile="auto") as model:
        assert model.tiles(64, 64) == 1


# ------------------------------------------------------------------------------ on the command line


def test_texture_writes_the_sample_of_the_seed(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    out = tmp_path / "new" / "wall.png"
    assert main(["texture", str(WOVEN), str(out), "--size", "40x24", "--seed", "9", *ENGINE]) == 0
    with tr.open(WOVEN, backend="onnxruntime-cpu", threads=1) as model:
        np.testing.assert_array_equal(pixels(out), model.sample(24, 40, 9))
    assert [path.name for path in out.parent.iterdir()] == ["wall.png"]


def test_repeat_lays_it_beside_and_below_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    out = tmp_path / "look.png"
    command = ["texture", str(WOVEN), str(out), "--size", "16x8", "--repeat", "3x2", *ENGINE]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "output": str(out),
        "width": 48,
        "height": 16,
        "texture_width": 16,
        "texture_height": 8,
        "columns": 3,
        "rows": 2,
        "seed": 0,
        "backend": "onnxruntime-cpu",
        "compute": "fp32",
        "verified": True,
        "histogram_matched": False,
        "fallbacks": [],
    }
    picture = pixels(out)
    np.testing.assert_array_equal(picture, np.tile(picture[:8, :16], (2, 3, 1)))
    assert main([*command, "--force"]) == 0
    assert "look.png  texture 16x8, 3x2 times  seed 0" in capsys.readouterr().err


def test_without_a_size_it_is_about_512_pixels_wide(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    assert main(["texture", str(WOVEN), str(tmp_path / "t.png"), "--quiet", *ENGINE]) == 0
    assert pixels(tmp_path / "t.png").shape == (512, 512, 3)


def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
    tmp_path: Path, blocks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, there = tmp_path / "folder" / "t.png", tmp_path / "there.png"
    there.write_bytes(b"mine")
    said: dict[str, list[object]] = {
        "the nearest size is 252x8": [WOVEN, new, "--size", "250x3"],
        "blocks is for the task style and makes no textures": [blocks, new],
        "there.png exists; pass --force": [WOVEN, there],
        "is a folder; give a file name such as": [WOVEN, tmp_path],
        "wanted one of .png": [WOVEN, tmp_path / "t.gif"],
        "holds at most 65500": [WOVEN, tmp_path / "t.jpg", "--repeat", "200x1"],
        "does not exist": [tmp_path / "no.topcoat", new],
    }
    for part, arguments in said.items():
        assert part in fails(capsys, "texture", *arguments, *ENGINE)
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]
    assert there.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seed", "-1"), ("--seed", "x"), ("--size", "12"), ("--size", "0x4"), ("--repeat", "3")],
)
def test_options_that_are_no_numbers_are_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["texture", "b", "o.png", option, value])
    assert stopped.value.code == 2
    assert f"argument {option}: '{value}' is not" in capsys.readouterr().err


def test_run_points_to_texture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    photo, folder = tmp_path / "photos" / "a.png", tmp_path / "photos"
    folder.mkdir()
    image.fromarray(tr.noise_frame(16, 16)).save(photo)
    for source, target in ((photo, tmp_path / "o.png"), (folder, tmp_path / "styled")):
        line = fails(capsys, "run", source, target, "--model", WOVEN, *ENGINE)
        assert "woven is a texture" in line
        assert "`topcoat texture woven.topcoat OUT.png`" in line
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_info_says_which_sizes_it_makes_and_what_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", str(WOVEN)]) == 0
    text = capsys.readouterr().out
    for part in (
        "woven: texture, made from noise; repeats without a seam",
        "multiples of 4, 8 or more; others are refused",
        "no: the edges of a texture meet",
        "passed  off by at most 1 of 255",
    ):
        assert part in text
    assert main(["info", str(WOVEN), "--json"]) == 0
    wanted = json.loads((WOVEN / "manifest.json").read_text())
    came = json.loads(capsys.readouterr().out)
    assert came["task"] == "texture"
    assert came["variants"] == wanted["variants"]


def test_explain_races_on_noise_it_can_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(WOVEN), "--threads", "1"]) == 0
    assert "-> " in capsys.readouterr().out


def test_latency_is_measured_on_squares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from topcoat.runtime.report import _measure

    monkeypatch.setattr(_measure, "TEXTURE_SIDES", (30, 64))
    out = tmp_path / "latency.json"
    quick = ["--seconds", "0.05", "--rounds", "1", "--threads", "1", "--json", str(out)]
    assert bench_latency.main([str(WOVEN), *quick, "--backend", "onnxruntime-cpu"]) == 0
    cells = json.loads(out.read_text())["cells"]
    assert [(cell["width"], cell["height"], cell["error"]) for cell in cells] == [
        (32, 32, None),
        (64, 64, None),
    ]
    capsys.readouterr()
    assert bench_latency.main([str(WOVEN), "--sizes", "640x362"]) == 2
    assert "the nearest size is 640x364" in capsys.readouterr().err


def test_help_teaches(run_python: Callable[..., Any]) -> None:
    shown = run_python("-m", "topcoat.runtime.cli.topcoat", "texture", "--help").stdout
    assert "examples:" in shown
    assert "--repeat 3x3" in shown
    assert "the\nsame seed, size and engine give the same one" in shown
