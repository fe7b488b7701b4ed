"""The examples run as their own first lines say, and the scene tells the truth about itself."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import topcoat.runtime as tr

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
Array = NDArray[np.float64]
BUNDLE = ROOT / "tests" / "runtime" / "data" / "blocks.topcoat"


def test_the_frame_loop_runs_and_saves_its_last_frame(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    command = [sys.executable, str(ROOT / "examples" / "frame_loop.py"), str(BUNDLE)]
    command += ["--frames", "3", "--size", "66x46", "--save", str(tmp_path / "last.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3 frames of 66x46" in done.stdout
    with image.open(tmp_path / "last.png") as picture:
        assert picture.size == (66, 46)


def test_the_frame_loop_says_what_is_wrong_with_a_bundle(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "frame_loop.py"), str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("frame_loop: ")
    assert done.stderr.count("\n") == 1


Importer = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def example() -> Iterator[Importer]:
    """Return a function that imports an example, or a part of the scene."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setenv("SDL_VIDEODRIVER", "dummy")
        patch.setenv("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        patch.setenv("LP_NUM_THREADS", "1")
        yield importlib.import_module


class Buffers(NamedTuple):
    """A frame of the scene, as float64."""

    colour: Array
    motion: Array
    depth: Array


SIZE = (192, 108)
Drawn = dict[tuple[float, ...], Buffers]


@pytest.fixture(scope="module")
def drawn(example: Importer) -> Drawn:
    """Return frames of the scene by index, or index and jitter; skip where there is no OpenGL."""
    pytest.importorskip("moderngl", reason="moderngl is not installed")
    renderer = example("scene.renderer")
    try:
        context = renderer.create_context()
    except ValueError as error:
        pytest.skip(str(error))
    scene = renderer.SceneRenderer(context, *SIZE)
    frames = {}
    # 40 once more, with its own key, after another one.
    for key in [(0,), (2,), (5,), (12,), (40,), (100,), (333,), (12, 3.0, 2.0), (40, 0.0, 0.0)]:
        scene.draw(int(key[0]), key[1:] or (0.0, 0.0))
        buffers = scene.read(renderer.GBuffer.of(*SIZE))
        frames[key] = Buffers(*(np.array(part, np.float64) for part in buffers))
    context.release()
    return frames


# ------------------------------------------------------------------------------------- the scene


def test_motion_vectors_lead_to_where_the_surface_was(drawn: Drawn, example: Importer) -> None:
    camera = example("scene.camera")
    width, height = SIZE
    for index in (5, 100, 333):
        buffers = drawn[index,]
        now = camera.moment(index, width / height)
        before = camera.moment(index - 1, width / height)
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        clip = np.stack(
            [2 * x / width - 1, 2 * y / height - 1, 2 * buffers.depth - 1, np.ones_like(x)], axis=-1
        )
        world = clip @ np.linalg.inv(now.view_projection).T
        world /= world[..., 3:]
        sky = buffers.depth == 1
        # The sky is a direction, which its own turning moves, too.
        towards = np.concatenate([world[sky][:, :3] - now.eye, np.zeros((sky.sum(), 1))], axis=1)
        world[sky] = towards @ (before.sky @ np.linalg.inv(now.sky)).T
        was = world @ before.view_projection.T
        places = (was[..., :2] / was[..., 3:] + 1) / 2 * (width, height)
        error = np.abs(places - np.stack([x, y], axis=-1) - buffers.motion).max(axis=-1)
        assert np.abs(buffers.motion).max() > 0.5, "the camera does not move"
        assert error[sky].max() < 0.02, "half floats are good to a hundredth of a pixel here"
        # A boat and gulls move by themselves, and cover little.
        still = np.mean(error[~sky] < 0.02)
        assert 0.90 < still < 1, f"{still:.3f} of the land and sea move as the camera does"


def test_a_frame_depends_on_its_index_alone(drawn: Drawn) -> None:
    first, other, again = drawn[40,], drawn[100,], drawn[40, 0.0, 0.0]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first.colour, other.colour)


def test_jitter_moves_the_picture_and_not_the_motion_vectors(drawn: Drawn) -> None:
    plain, moved = drawn[12,], drawn[12, 3.0, 2.0]
    same = np.abs(moved.colour[2:, 3:] - plain.colour[:-2, :-3]).max(axis=-1) <= 2
    assert same.mean() > 0.97
    assert np.abs(moved.motion[2:, 3:] - plain.motion[:-2, :-3])[same].max() < 0.02


def test_the_picture_is_lit_and_full_of_things(drawn: Drawn) -> None:
    buffers = drawn[0,]
    assert (buffers.colour[..., 3] == 255).all()
    assert np.unique(buffers.colour[..., :3].reshape(-1, 3), axis=0).shape[0] > 2000
    assert 0.2 < np.mean(buffers.depth == 1) < 0.7, "sky above"
    up, down = buffers.colour[-10:, :, :3].mean(axis=(0, 1)), buffers.colour[:10].mean(axis=(0, 1))
    assert up[2] > up[0], "the sky is blue, and on top"
    assert down[1] > down[0], "the sea is green, and below"


# ---------------------------------------------------------------------------------- render_scene


def test_the_scene_is_rendered_styled_and_written(
    drawn: Drawn, example: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av")
    image = pytest.importorskip("PIL.Image")
    files = {name: tmp_path / name for name in ("run.mp4", "last.png", "run.json")}
    code = example("render_scene").main(
        [
            "--model",
            str(BUNDLE),
            "--frames",
            "7",
            "--size",
            "320x180",
            "--mode",
            "file",
            "--stabilise",
            "0.5",
            "--jitter",
            "--compare",
            "--fps",
            "25",
            "--out",
            str(files["run.mp4"]),
            "--still",
            str(files["last.png"]),
            "--json",
            str(files["run.json"]),
        ]
    )
    assert code == 0
    report = json.loads(files["run.json"].read_text())
    assert report["statuses"] == {"FRESH": 7}
    assert report["ages"] == {"0": 7}
    assert report["settings"]["size"] == "320x180"
    assert set(report["ms"]) == {"render", "present", "frame", "network"}
    for row in report["ms"].values():
        assert 0 < row["p50"] <= row["p95"] <= row["p99"] <= row["max"]
    text = capsys.readouterr().out
    assert "presented within the budget" in text
    assert "-> read" in text or "-> pbo" in text
    with av.open(str(files["run.mp4"])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert video.streams.video[0].average_rate == 25
    assert [frame.shape for frame in frames] == [(180, 320, 3)] * 7
    last = np.asarray(image.open(files["last.png"]))
    assert np.abs(last.astype(int) - frames[-1]).mean() < 12
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_a_passed_through_scene_is_the_rendered_one(
    drawn: Drawn, example: Importer, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    still = tmp_path / "last.png"
    code = example("render_scene").main(
        [
            "--model",
            str(BUNDLE),
            "--frames",
            "3",
            "--size",
            "192x108",
            "--strength",
            "0",
            "--no-hud",
            "--fps",
            "120",
            "--still",
            str(still),
        ]
    )
    assert code == 0
    assert np.array_equal(np.asarray(image.open(still)), drawn[2,].colour[::-1, :, :3])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "640"], "'640' is not a size such as 640x360"),
        (["--size", "9x9"], "outside of 16x16 to 4096x4096"),
        (["--frames", "0"], "'0' is not a whole number of at least 1"),
        (["--strength", "2"], "'2' is not a number from 0 to 1"),
        (["--budget-ms", "-1"], "--budget-ms is -1.0, wanted more than 0"),
        (["--size", "641x361", "--out", "a.mp4"], "a video wants even sides"),
    ],
)
def test_wrong_options_end_with_what_is_wanted(
    example: Importer, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        example("render_scene").main(arguments)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_what_cannot_be_read_or_written_is_said_before_anything_is_rendered(
    example: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("moderngl")
    pytest.importorskip("PIL")
    cases = [
        (["--model", str(tmp_path / "gone.topcoat")], "gone.topcoat"),
        (["--model", str(ROOT / "tests/runtime/data/double.topcoat")], "enlarges frames"),
        (["--still", str(tmp_path / "a.gif")], "ends in '.gif', wanted .png"),
        (["--out", str(tmp_path / "a.txt")], "wanted .mp4 or .mov or .mkv or .webm or .webp"),
        (["--json", str(tmp_path / "no" / "a.json")], "does not exist; make it first"),
    ]
    for arguments, text in cases:
        assert example("render_scene").main(["--model", str(BUNDLE), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("render_scene: ")
        assert text in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------- windows


def test_the_window_shows_the_scene_and_takes_a_picture(
    drawn: Drawn, example: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame")
    image = pytest.importorskip("PIL.Image")
    still = tmp_path / "window.png"
    code = example("pygame_window").main(
        ["--model", str(BUNDLE), "--frames", "4", "--size", "320x180", "--still", str(still)]
    )
    assert code == 0
    assert "4 frames" in capsys.readouterr().out
    picture = np.asarray(image.open(still))
    assert picture.shape == (180, 320, 3)
    assert picture.std() > 20


def test_keys_set_the_pass_and_swap_its_style(example: Importer) -> None:
    pygame = pytest.importorskip("pygame")

    class Told:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def set(self, **values: float) -> None:
            self.calls.append(values)

        def swap(self, style: str) -> None:
            self.calls.append(style)

    told = Told()
    keys = example("pygame_window").Keys(told, ["one", "two"])

    def typed(key: int) -> bool:
        return bool(keys.handle([pygame.event.Event(pygame.KEYDOWN, key=key)]))

    assert typed(pygame.K_SPACE)
    assert typed(pygame.K_3)
    assert typed(pygame.K_0)
    assert typed(pygame.K_s)
    assert typed(pygame.K_m)
    assert told.calls == [
        {"strength": 0.0, "stabilise": 0.0},
        {"strength": 0.3, "stabilise": 0.0},
        {"strength": 1.0, "stabilise": 0.0},
        {"strength": 1.0, "stabilise": 0.5},
        "two",
        {"strength": 1.0, "stabilise": 0.5},
    ]
    assert typed(pygame.K_h)
    assert not keys.hud
    assert not typed(pygame.K_ESCAPE)
    assert not keys.handle([pygame.event.Event(pygame.QUIT)])


MINIMAL_LINES = 20


def test_the_minimal_window_is_as_short_as_promised_and_runs(example: Importer) -> None:
    pytest.importorskip("pygame")
    path = EXAMPLES / "minimal_window.py"
    lines = path.read_text().splitlines()
    end = ast.parse(path.read_text()).body[0].end_lineno or 0
    code = [line for line in lines[end:] if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= MINIMAL_LINES
    # Closing the window is the only way out of it, which is done here when a picture is styled.
    script = f"""
import runpy, sys, pygame

def set_caption(text):
    if text.startswith("FRESH"):
        pygame.event.post(pygame.event.Event(pygame.QUIT))

pygame.display.set_caption = set_caption
sys.argv = ["minimal_window.py", {str(BUNDLE)!r}]
runpy.run_path({str(path)!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    helped = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, check=False
    )
    assert "python examples/minimal_window.py" in helped.stderr


# ---------------------------------------------------------------------------------------- webcam


def test_a_video_may_be_a_loop_that_documents_show(example: Importer, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "loop.webp"
    frames = [np.full((32, 48, 3), 40 * n, np.uint8) for n in range(6)]
    example("scene.media").write_video(path, iter(frames), 30)
    with image.open(path) as loop:
        assert (loop.n_frames, loop.size) == (6, (48, 32))
        shown = 0
        for n, frame in enumerate(frames):
            loop.seek(n)
            assert np.abs(np.asarray(loop.convert("RGB")).astype(int) - frame).max() <= 6
            shown += loop.info["duration"]
    assert shown == 200, "six thirtieths of a second"


@pytest.fixture
def clip(example: Importer, tmp_path: Path) -> Path:
    """A short video that stands in for a camera."""
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    frames = (np.full((96, 128, 3), (200, 20 * n, 30), np.uint8) for n in range(8))
    example("scene.media").write_video(path, frames, 60)
    return path


def test_a_video_stands_in_for_the_camera(
    example: Importer, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame")
    image = pytest.importorskip("PIL.Image")
    still = tmp_path / "last.png"
    code = example("webcam").main(
        [
            "--model",
            str(BUNDLE),
            "--input",
            str(clip),
            "--size",
            "128x96",
            "--mirror",
            "--loop",
            "--frames",
            "12",
            "--still",
            str(still),
        ]
    )
    assert code == 0
    assert "12 frames" in capsys.readouterr().out
    picture = np.asarray(image.open(still))
    assert picture.shape == (96, 128, 3)
    red, _, blue = picture.mean(axis=(0, 1))
    assert red > 150 > 80 > blue


def test_a_camera_that_is_not_there_is_one_line(
    example: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(bytes(range(256)) * 8)
    cases = [
        (["--input", "/dev/video97"], "there is no camera /dev/video97; plug one in"),
        (["--input", str(tmp_path / "gone.mp4")], "there is no file"),
        (["--input", str(noise)], "is not a video that FFmpeg knows"),
        (["--still", str(tmp_path / "a.gif")], "wanted .png"),
    ]
    if not sys.platform.startswith("linux"):
        cases = cases[1:]
    for arguments, text in cases:
        assert example("webcam").main(["--model", str(BUNDLE), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("webcam: ")
        assert text in error
        assert error.count("\n") == 1


def test_the_camera_may_be_closed_to_us_or_in_use(example: Importer) -> None:
    why_not = example("webcam").why_not
    assert "group video" in why_not("/dev/video0", False, PermissionError(13, "denied"))
    assert "is in use" in why_not("/dev/video0", False, OSError(16, "busy"))
    assert "cannot be read (odd); try" in why_not("/dev/video0", False, OSError(5, "odd"))


def test_without_a_virtual_camera_one_line_says_what_to_install(
    example: Importer,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    arguments = ["--model", str(BUNDLE), "--input", str(clip), "--output", "virtual"]
    assert example("webcam").main(arguments) == 2
    assert "pip install pyvirtualcam, or use --output window" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["render_scene", "pygame_window", "webcam"])
def test_help_needs_nothing_but_the_runtime(name: str) -> None:
    script = (
        "import sys, runpy\n"
        f"sys.path.insert(0, {str(EXAMPLES)!r}); sys.argv = ['{name}.py', '--help']\n"
        "for part in ('moderngl', 'pygame', 'av', 'PIL', 'onnxruntime'): sys.modules[part] = None\n"
        f"runpy.run_path({str(EXAMPLES / name) + '.py'!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"python examples/{name}.py" in done.stdout


def test_what_is_missing_is_named_with_its_command(
    example: Importer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = example("scene.options")

    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'av'", name="av")

    assert options.run("webcam", lacking) == 2
    assert "av is missing; pip install 'topcoat-runtime[video]'" in capsys.readouterr().err


def test_the_strip_says_what_the_pass_did(example: Importer) -> None:
    pytest.importorskip("PIL")
    hud = example("scene.hud")
    strip = hud.Hud(320, 20.0)
    picture = np.zeros((90, 320, 3), np.uint8)
    for status in tr.Status:
        result = tr.Result(picture, status, 3, 0, "engine", "", tr.Timings(present=10.0))
        strip.draw(picture, result)
        assert tuple(picture[8, 14]) == hud.COLOURS[status.name]
    bar = picture[strip.height - 5, 320 - hud.HISTORY - 8 :]
    found = [tuple(bar[column]) for column in range(len(tr.Status))]
    assert found == [hud.COLOURS[status.name] for status in tr.Status]
    assert not picture[strip.height :].any(), "nothing is drawn below"
