"""``topcoat-demo``: the whole path, small."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import topcoat.export
import topcoat.runtime
from tests.export.conftest import Outcome
from topcoat.export.cli import demo
from topcoat.train import load_checkpoint


def demo_main(*arguments: object) -> Outcome:
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = demo.main([str(argument) for argument in arguments])
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def test_the_whole_path_runs_and_everything_is_where_it_says(
    checkpoint_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the latency report's plots need matplotlib")
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    folder = tmp_path / "made" / "here"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("keep me")

    outcome = demo_main(
        *("--checkpoint", checkpoint_file, "--photo", photo, "--output", folder),
        *("--bench-seconds", 0.05),
    )
    assert outcome.code == 0, outcome.stderr
    for number in range(1, 6):
        assert f"[{number}/5] done in" in outcome.stdout

    bundle = folder / "tiny.topcoat"
    assert {v.precision for v in topcoat.runtime.verify_files(bundle).variants} == {"fp32", "fp16"}
    with Image.open(folder / "styled.png") as picture:
        styled = np.array(picture)
    with Image.open(folder / "before_after.png") as picture:
        both = np.array(picture)
    np.testing.assert_array_equal(both[:, :90], pixels)
    np.testing.assert_array_equal(both[:, -90:], styled)
    assert np.mean(styled != pixels) > 0.5  # it was repainted
    assert json.loads((folder / "latency.json").read_text(encoding="utf-8"))
    assert "<svg" in (folder / "latency.html").read_text(encoding="utf-8")
    assert (folder / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--photo", "none.jpg"), "no picture at"),
        (("--output", "file/inner"), "cannot make the folder"),
        (("--output", "file"), "cannot make the folder"),
        (("--checkpoint", "none.pt"), "no checkpoint at"),
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


def test_the_packaged_network_is_small_and_loads() -> None:
    data = Path(topcoat.export.__file__).parent / "data"
    if not list(data.glob("*.pt")):
        pytest.skip("this checkout carries no trained demo network yet")
    with demo._packaged_checkpoint() as path:
        assert path.stat().st_size <= 2_000_000
        checkpoint = load_checkpoint(path)
    assert checkpoint.step > 0
    assert checkpoint.state is None  # nothing that only --resume would need
    assert checkpoint.build_network().scale == 1
