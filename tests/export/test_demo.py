"""``topcoat-demo``: the whole path, small."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import topcoat.runtime
from tests.export.conftest import Outcome
from topcoat.export import bundle_writer
from topcoat.export.bundle_writer import Exported
from topcoat.export.cli import demo
from topcoat.export.sources import Source
from topcoat.train import load_checkpoint
from topcoat.train.pictures import sample_photographs
from topcoat.train.style_pictures import load_style


def demo_main(*arguments: object) -> Outcome:
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = demo.main([str(argument) for argument in arguments])
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops as small as they may be, on a machine that has no network and no other weights."""
    monkeypatch.setattr(demo, "CROP", 32)
    # Whatever looked for something outside would fail here.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("TOPCOAT_VGG16_WEIGHTS", raising=False)


def test_the_whole_path_runs_offline_and_everything_is_where_it_says(
    small: None, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the latency report's plots need matplotlib")
    folder = tmp_path / "made" / "here"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("keep me")

    outcome = demo_main(
        "--style", "poster", "--steps", 2, "--output", folder, "--bench-seconds", 0.05
    )
    assert outcome.code == 0, outcome.stderr
    for number in range(1, 6):
        assert f"[{number}/5] done in" in outcome.stdout

    checkpoint = load_checkpoint(folder / "poster.pt")
    assert (checkpoint.step, checkpoint.recipe["name"]) == (2, "realtime")
    assert checkpoint.recipe["loss_network"] == "embedded"
    # The photograph that is shown is none of those that it was trained on.
    trained_on = {path.stem for path in (folder / "photographs").iterdir()}
    assert trained_on == {path.stem for path in sample_photographs()} - {"astronaut"}
    bundle = folder / "poster.topcoat"
    assert {v.precision for v in topcoat.runtime.verify_files(bundle).variants} == {"fp32", "fp16"}
    astronaut = np.asarray(Image.open(sample_photographs()[0]).convert("RGB"))
    with Image.open(folder / "styled.png") as picture:
        styled = np.array(picture)
    with Image.open(folder / "before_after.png") as picture:
        both = np.array(picture)
    np.testing.assert_array_equal(both[:, : astronaut.shape[1]], astronaut)
    np.testing.assert_array_equal(both[:, -astronaut.shape[1] :], styled)
    assert np.mean(styled != astronaut) > 0.5  # it was repainted
    assert json.loads((folder / "latency.json").read_text(encoding="utf-8"))
    assert "<svg" in (folder / "latency.html").read_text(encoding="utf-8")
    assert (folder / "mine.txt").read_text() == "keep me"


def test_with_a_network_nothing_is_trained_and_a_photograph_of_one_s_own_is_repainted(
    small: None, checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = Path(__file__).parents[1] / "runtime" / "data" / "double.topcoat"

    def export_bundle(source: Source, bundle: Path, **_: object) -> Exported:
        assert source.step == load_checkpoint(checkpoint_file).step
        shutil.copytree(double, bundle)
        return Exported(
            bundle=bundle,
            report_file=bundle / "parity.json",
            report=None,
            name="tiny",
            task="super-resolution",
            scale=2,
        )

    monkeypatch.setattr(bundle_writer, "export_bundle", export_bundle)
    monkeypatch.setattr(demo, "_bench", lambda *_: (0, "a table"))
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    folder = tmp_path / "made"
    outcome = demo_main("--checkpoint", checkpoint_file, "--photo", photo, "-o", folder)
    assert outcome.code == 0, outcome.stderr
    assert "[1/5] nothing to train" in outcome.stdout
    assert sorted(path.name for path in folder.iterdir()) == [
        *("before_after.png", "styled.png", "tiny.topcoat"),
    ]
    with Image.open(folder / "styled.png") as picture:
        np.testing.assert_array_equal(
            np.array(picture), (255 - pixels).repeat(2, axis=0).repeat(2, axis=1)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--photo", "none.jpg"), "no picture at"),
        (("--output", "file/inner"), "cannot make the folder"),
        (("--output", "file"), "cannot make the folder"),
        (("--checkpoint", "none.pt"), "no checkpoint at"),
        (("--style", "mosaic"), "leave out --style and --steps"),
        (("--steps", "3"), "leave out --style and --steps"),
    ],
)
def test_what_the_user_can_fix_is_one_line_before_any_work(
    checkpoint_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    outcome = demo_main("--checkpoint", checkpoint_file, *arguments)
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("topcoat-demo: ")
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_trained_is_used_again_or_trained_on_but_never_mixed(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "poster.pt"
    picture = load_style("poster")
    demo._train(checkpoint, "poster", picture.sha256, 2)
    written = checkpoint.read_bytes()
    demo._train(checkpoint, "poster", picture.sha256, None)
    assert "poster.pt has 2 steps" in capsys.readouterr().out
    assert checkpoint.read_bytes() == written
    demo._train(checkpoint, "poster", picture.sha256, 3)
    assert load_checkpoint(checkpoint).step == 3
    other = tmp_path / "other" / "poster.png"
    other.parent.mkdir()
    Image.new("RGB", (64, 64), "red").save(other)
    outcome = demo_main("--style", other, "-o", tmp_path)
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert "was trained on another picture" in line
    assert load_checkpoint(checkpoint).step == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--style", "nothing-such"), "nothing-such"),
        (("--steps", "0"), "is not a whole number of at least 1"),
        (("--bench-seconds", "0"), "'0' is not a number of seconds above 0"),
        (("--bench-seconds", "-1"), "'-1' is not a number of seconds above 0"),
        (("--bench-seconds", "nan"), "'nan' is not a number of seconds above 0"),
    ],
)
def test_a_style_or_number_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, str],
    message: str,
) -> None:
    folder = tmp_path / "demo"
    try:
        code = demo.main([*arguments, "-o", str(folder)])
    except SystemExit as ended:  # of argparse
        code = int(ended.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not folder.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a console, not to a process")
def test_ctrl_c_leaves_a_checkpoint_from_which_the_same_command_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; from topcoat.export.cli import demo; demo.CROP = 32;"
        "sys.exit(demo.main(['--style', 'poster', '--steps', '100000', '-o', sys.argv[1]]))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "step 25/" in line:
                process.send_signal(signal.SIGINT)
                break
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert "run the same command again" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert load_checkpoint(tmp_path / "poster.pt").step >= 25
    assert load_checkpoint(tmp_path / "poster.pt").state is not None
    assert "[1/5] done" not in stdout
