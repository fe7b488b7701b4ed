"""``topcoat run`` and ``info`` with networks that enlarge: pictures, folders, videos, tiles."""

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import topcoat.runtime as tr
from topcoat.runtime import _pictures
from topcoat.runtime._histogram import match_histogram
from topcoat.runtime._pictures import fill_transparent
from topcoat.runtime.cli.topcoat import main
from topcoat.runtime.frames import Frame

DATA = Path(__file__).parent / "data"
LOCAL4 = DATA / "local4.topcoat"
ENGINE = ["--backend", "onnxruntime-cpu", "--precision", "fp32", "--threads", "1"]


@pytest.fixture
def image() -> ModuleType:
    """PIL.Image."""
    module: ModuleType = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    return module


def pixels(path: Path) -> npt.NDArray[Any]:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture)


def run(source: Path, target: Path, *options: str, bundle: Path = LOCAL4) -> int:
    arguments = [str(source), str(target), "--model", str(bundle), *options]
    return main(["run", *arguments, *ENGINE])


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:  # noqa: ANN401
    """Run a picture; it must end with one line and code 2, and leave nothing; return the line."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert not [path for path in Path(arguments[1]).parent.glob("*") if "partial" in path.name]
    assert not Path(arguments[1]).exists()
    return lines[0]


def enlarged(frame: Frame, bundle: Path = LOCAL4, **options: Any) -> Frame:  # noqa: ANN401
    with tr.open(bundle, "onnxruntime-cpu", precision="fp32", threads=1, **options) as model:
        return model.process(np.ascontiguousarray(frame))


# ---------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("bundle", ["local2", "local4", "local8"])
def test_tiles_and_matched_histograms_reach_the_file(
    image: ModuleType, tmp_path: Path, photograph: Frame, bundle: str
) -> None:
    image.fromarray(photograph).save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    options = ["--tile", "40", "--match-histogram", "--quiet"]
    model = DATA / f"{bundle}.topcoat"
    assert run(tmp_path / "in.png", out, *options, bundle=model) == 0
    wanted = enlarged(photograph, model)
    match_histogram(wanted, photograph)
    assert np.abs(pixels(out).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(("tile", "count"), [("off", 1), ("auto", 1), ("40", 6), ("24", 20)])
def test_the_summary_says_how_many_tiles(
    image: ModuleType,
    tmp_path: Path,
    photograph: Frame,
    capsys: pytest.CaptureFixture[str],
    tile: str,
    count: int,
) -> None:
    image.fromarray(photograph).save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", tmp_path / "o.png", "--tile", tile, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["width"], summary["height"], summary["tiles"]) == (360, 280, count)
    assert run(tmp_path / "in.png", tmp_path / "o2.png", "--tile", tile) == 0
    assert (f"{count} tiles" in capsys.readouterr().err) == (count > 1)


def test_tiles_are_counted_on_a_terminal(
    image: ModuleType,
    tmp_path: Path,
    photograph: Frame,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    image.fromarray(photograph).save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", tmp_path / "o.png", "--tile", "40") == 0
    assert "1/6 tiles" in capsys.readouterr().err
    assert run(tmp_path / "in.png", tmp_path / "o2.png") == 0
    assert " tiles" not in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "I;16", "RGBA", "P with alpha"])
def test_every_kind_of_picture_is_enlarged_as_its_rgb_is(
    image: ModuleType, tmp_path: Path, photograph: Frame, mode: str
) -> None:
    options: dict[str, Any] = {}
    if mode == "I;16":
        picture = image.fromarray(photograph[..., 0].astype(np.uint16) * 257)
        wanted = np.repeat(photograph[..., :1], 3, axis=-1)
    else:
        picture = image.fromarray(photograph).convert(mode.split()[0])
        wanted = np.asarray(picture.convert("RGB"))
    if mode == "P with alpha":
        index = int(np.asarray(picture)[0, 0])
        options["transparency"] = index
        rgba = np.asarray(picture.convert("RGBA")).copy()
        rgba[np.asarray(picture) == index, 3] = 0
        wanted = fill_transparent(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3])
        assert not np.array_equal(wanted, rgba[..., :3])
    path = tmp_path / ("in.tif" if mode == "CMYK" else "in.png")
    picture.save(path, **options)
    assert run(path, tmp_path / "o.png", "--quiet") == 0
    came = pixels(tmp_path / "o.png")
    assert came.shape == (280, 360, 4 if mode in {"LA", "RGBA", "P with alpha"} else 3)
    np.testing.assert_array_equal(came[..., :3], enlarged(wanted))


def test_a_turned_photograph_is_enlarged_upright(
    image: ModuleType, tmp_path: Path, photograph: Frame
) -> None:
    turned = image.fromarray(np.rot90(photograph))  # as a camera held on its side stores it
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "camera.png", exif=exif)
    assert run(tmp_path / "camera.png", tmp_path / "o.png", "--tile", "40", "--quiet") == 0
    came = pixels(tmp_path / "o.png")
    assert np.abs(came.astype(int) - enlarged(photograph)).max() <= 1
    with image.open(tmp_path / "o.png") as picture:
        assert picture.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("name", ["double", "local2", "local4"])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (255, 0, 255)])
def test_colours_that_nobody_sees_do_not_show_at_edges(
    image: ModuleType, tmp_path: Path, name: str, hidden: tuple[int, int, int]
) -> None:
    # A flat disc on nothing: whatever is stored under the nothing must not change the result.
    y, x = np.mgrid[0:48, 0:48]
    alpha = (255 * np.clip(16.5 - np.hypot(y - 23.5, x - 23.5), 0, 1)).round().astype(np.uint8)
    outputs = []
    for number, colour in enumerate((hidden, (90, 140, 60))):
        rgba = np.dstack([np.full((48, 48, 3), (90, 140, 60), np.uint8), alpha])
        rgba[alpha == 0, :3] = colour
        image.fromarray(rgba).save(tmp_path / f"{number}.png")
        out = tmp_path / f"o{number}.png"
        bundle = DATA / f"{name}.topcoat"
        assert run(tmp_path / f"{number}.png", out, "--quiet", bundle=bundle) == 0
        outputs.append(pixels(out).astype(int))
    scale = outputs[0].shape[0] // 48
    np.testing.assert_array_equal(outputs[0], outputs[1])
    # The edge is where it was: its area is the disc's.
    assert outputs[0][..., 3].sum() / 255 / scale**2 == pytest.approx(alpha.sum() / 255, rel=0.01)


def test_filling_takes_the_colours_of_what_is_near_and_leaves_what_is_seen() -> None:
    frame = np.zeros((600, 301, 3), np.uint8)
    alpha = np.zeros((600, 301), np.uint8)
    frame[:, :100], alpha[:, :100] = (200, 10, 30), 255
    frame[:, 200:], alpha[:, 200:] = (20, 90, 250), 1
    before = frame.copy()
    filled = fill_transparent(frame, alpha)
    np.testing.assert_array_equal(frame, before)
    np.testing.assert_array_equal(filled[alpha > 0], frame[alpha > 0])
    assert (filled[:, 100:104] == (200, 10, 30)).all()
    assert (filled[:, 196:200] == (20, 90, 250)).all()


@pytest.mark.parametrize("side", [1, 2, 3, 7, 64, 65, 255, 256, 257, 515])
def test_whoever_is_filled_beside_a_visible_pixel_takes_after_it(side: int) -> None:
    # Narrow stripes of colour, every other hidden: no colour may come from beyond a neighbour.
    frame = np.random.default_rng(side).integers(0, 256, (side, 9, 3), np.uint8)
    alpha = np.zeros((side, 9), np.uint8)
    alpha[:, 1::4] = 200
    filled = fill_transparent(frame, alpha)
    seen = np.pad(frame[:, 1::4], ((2, 2), (0, 0), (0, 0)), mode="edge").astype(int)
    near = np.stack([seen[i : i + side] for i in range(5)])  # up to two rows away, (5, side, 2, 3)
    for column, stripe in ((0, 0), (2, 0), (4, 1), (6, 1)):
        assert (filled[:, column] >= near.min(axis=0)[:, stripe]).all()
        assert (filled[:, column] <= near.max(axis=0)[:, stripe]).all()


@pytest.mark.parametrize("size", [(1, 5), (13, 8), (40, 31)])
def test_filling_does_not_depend_on_how_many_rows_are_looked_at_together(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    frame = rng.integers(0, 256, (*size, 3), np.uint8)
    alpha = rng.integers(0, 256, size, np.uint8) * (rng.random(size) < 0.1)
    alpha[0, 0] = 9
    results = []
    for rows in (2, 8, 1024):
        monkeypatch.setattr(_pictures, "_ROWS", rows)
        results.append(fill_transparent(frame, alpha))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("value", [0, 1, 255])
def test_filling_changes_nothing_where_nothing_or_all_is_hidden(value: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert fill_transparent(frame, np.full((5, 7), value, np.uint8)) is frame


@pytest.mark.parametrize(
    ("suffix", "width", "says"),
    [
        (".webp", 4100, "the result has 16400x8 pixels, .webp holds at most 16383 on each side"),
        (".jpg", 16400, "the result has 65600x8 pixels, .jpg holds at most 65500 on each side"),
    ],
)
def test_a_result_that_its_format_cannot_hold_is_refused_before_it_is_made(
    image: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    width: int,
    says: str,
) -> None:
    image.new("RGB", (width, 2)).save(tmp_path / "in.png")
    text = fails(capsys, tmp_path / "in.png", tmp_path / "new" / f"o{suffix}")
    assert says in text
    assert "give an OUT that ends in .png" in text
    assert not (tmp_path / "new").exists()
    # In a folder it is one picture that is skipped.
    folder = tmp_path / "in"
    folder.mkdir()
    image.new("RGB", (width, 2)).save(folder / f"wide{suffix}")
    image.new("RGB", (8, 8)).save(folder / f"small{suffix}")
    assert run(folder, tmp_path / "out") == 0
    errors = capsys.readouterr().err
    assert "1 of 2 pictures" in errors
    assert says in errors


def test_a_folder_counts_its_tiles(
    image: ModuleType, tmp_path: Path, photograph: Frame, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    image.fromarray(photograph).save(tmp_path / "in" / "a.png")
    image.fromarray(photograph[:40, :40]).save(tmp_path / "in" / "b.png")
    assert run(tmp_path / "in", tmp_path / "out", "--tile", "40", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["pictures"], summary["tiles"]) == (2, 7)


# ------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("bundle", "tile", "says"),
    [
        ("local2", "8", "tile is 8, too small for a network that needs 5 pixels of context"),
        ("local2", "8", "the smallest that works is 12"),
        ("blocks", "64", "its network looks at the whole frame (instance normalisation)"),
    ],
)
def test_a_tile_that_cannot_work_gives_one_line(
    image: ModuleType,
    tmp_path: Path,
    photograph: Frame,
    capsys: pytest.CaptureFixture[str],
    bundle: str,
    tile: str,
    says: str,
) -> None:
    image.fromarray(photograph).save(tmp_path / "in.png")
    arguments = [tmp_path / "in.png", tmp_path / "o.png", "--tile", tile]
    assert run(*arguments, bundle=DATA / f"{bundle}.topcoat") == 2  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.parametrize("tile", ["0", "-4", "2.5", "big", ""])
def test_a_mistyped_tile_says_what_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tile: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "in.png", tmp_path / "o.png", f"--tile={tile}")
    assert stop.value.code == 2
    assert "is not auto, off or a whole number of pixels" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to whole consoles")
def test_ctrl_c_works_between_tiles(image: ModuleType, tmp_path: Path) -> None:
    image.new("RGB", (700, 700)).save(tmp_path / "in.png")
    out = tmp_path / "o.png"
    # 482 thousand tiles of one pixel and its context: minutes.
    arguments = ["run", str(tmp_path / "in.png"), str(out), "--model", str(LOCAL4)]
    code = (
        "import sys; from topcoat.runtime.cli import topcoat; from topcoat.runtime import Model\n"
        "real = Model.process\n"
        "def process(*arguments, **options):\n"
        "    print('running', flush=True); return real(*arguments, **options)\n"
        "Model.process = process\n"
        f"sys.exit(topcoat.main({[*arguments, '--tile', '5', *ENGINE]!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "\ntopcoat: interrupted; no half-written file was left\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


# ------------------------------------------------------------------------------------------ videos


def write_clip(path: Path, size: tuple[int, int], times: tuple[int, ...], *, sound: bool) -> None:
    import av

    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=24)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        audio: Any = output.add_stream("aac", rate=44100) if sound else None
        if sound:
            audio.layout = "mono"
        for number, moment in enumerate(times):
            rgb = np.full((size[1], size[0], 3), 40 + 20 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound:
            for start in range(0, 8192, 1024):
                wave = np.sin(np.arange(start, start + 1024) * 0.06).astype(np.float32)[None] * 0.3
                piece: Any = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                piece.rate, piece.pts, piece.time_base = 44100, start, Fraction(1, 44100)
                output.mux(audio.encode(piece))
            output.mux(audio.encode(None))


def read_clip(path: Path) -> tuple[list[tuple[int, int]], list[float], list[bytes]]:
    """Return sizes, times in seconds and the packets of the sound."""
    import av

    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(path)) as container:
        tracks = container.streams.audio
        sound = [bytes(packet) for packet in container.demux(audio=0)] if tracks else []
    return (
        [(frame.width, frame.height) for frame in frames],
        [float(frame.time or 0) for frame in frames],
        [packet for packet in sound if packet],
    )


@pytest.mark.parametrize(
    ("bundle", "size", "result"),
    [
        ("local4", (64, 48), (256, 192)),
        ("local4", (33, 25), (132, 100)),
        ("blocks", (33, 25), (34, 26)),
    ],
)
def test_a_video_is_enlarged_with_its_times_and_sound(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bundle: str,
    size: tuple[int, int],
    result: tuple[int, int],
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    clip, out = tmp_path / "clip.mkv", tmp_path / "o.mp4"
    times = (0, 1, 5, 6)
    write_clip(clip, size, times, sound=True)
    options = ["--json", *(["--tile", "24"] if bundle == "local4" else [])]
    assert run(clip, out, *options, bundle=DATA / f"{bundle}.topcoat") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["width"], summary["height"], summary["frames"]) == (*result, 4)
    assert (summary["tiles_per_frame"] > 1) == (bundle == "local4")
    sizes, came, sound = read_clip(out)
    assert sizes == [result] * 4
    np.testing.assert_allclose(came, np.array(times) / 24, atol=2e-3)
    assert sound == read_clip(clip)[2]
    assert len(sound) >= 8


def test_a_size_that_the_encoder_refuses_is_said_before_a_frame_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    clip, out = tmp_path / "clip.mp4", tmp_path / "o.mp4"
    write_clip(clip, (4112, 16), (0,), sound=False)

    def process(*_: object, **__: object) -> None:
        raise AssertionError("a frame was run")

    with monkeypatch.context() as patch:
        patch.setattr(tr.Model, "process", process)
        text = fails(capsys, clip, out)
    assert "the encoder libx264 refuses frames of 16448x64 pixels" in text
    assert "give an OUT that ends in .webm, or a smaller video" in text
    # What the line advises works.
    assert run(clip, tmp_path / "o.webm", "--quiet") == 0
    assert read_clip(tmp_path / "o.webm")[0] == [(16448, 64)]


# -------------------------------------------------------------------------------------------- info


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "local4",
            [
                "local4: super-resolution, output 4x the input's size",
                "can be tiled: context 2 px, tiles of 5 px or more",
                "about 576 bytes per input pixel: 531 MB for 1280x720",
            ],
        ),
        ("local2", ["can be tiled: context 5 px, tiles of 12 px or more"]),
        ("blocks", ["output 1x", "no: the network looks at the whole frame"]),
    ],
)
def test_info_says_whether_it_can_be_tiled_and_what_it_takes(
    capsys: pytest.CaptureFixture[str], name: str, lines: list[str]
) -> None:
    assert main(["info", str(DATA / f"{name}.topcoat")]) == 0
    text = capsys.readouterr().out
    for line in lines:
        assert line in text
    assert ("memory" in text) == (name == "local4")


def test_running_out_of_memory_anywhere_is_one_line(
    image: ModuleType,
    tmp_path: Path,
    photograph: Frame,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save(*_: object, **__: object) -> None:
        raise MemoryError

    image.fromarray(photograph).save(tmp_path / "in.png")
    monkeypatch.setattr(image.Image, "save", save)
    text = fails(capsys, tmp_path / "in.png", tmp_path / "o.png")
    assert text == "topcoat: not enough memory; give a smaller picture, or close other programs"
