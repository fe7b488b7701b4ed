"""``export-engine`` from checkpoint to bundle, and everything that can be wrong on the way."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import topcoat.runtime
from tests.export.conftest import ExportedBundle, export_engine_main, tiny_checkpoint
from topcoat.export import BundleNameError
from topcoat.export.bundle_writer import checked_name
from topcoat.export.parity import reference_frame
from topcoat.export.probes import bundled_photographs
from topcoat.train import Checkpoint, save_checkpoint
from topcoat.train.pictures import file_sha256


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_holds_what_the_format_says_and_nothing_else(exported: ExportedBundle) -> None:
    names = {"card.md", "golden_in.png", "golden_out.png", "parity.json"}
    assert set(contents(exported.bundle)) == {
        *names,
        *("manifest.json", "model.fp32.onnx", "model.fp16.onnx"),
    }
    manifest = exported.manifest
    assert set(manifest["files"]) == names
    assert {k: manifest[k] for k in ("format", "format_version", "name", "task")} == {
        "format": "topcoat-bundle",
        "format_version": 1,
        "name": "tiny",
        "task": "style",
    }
    assert manifest["size"] == {
        **{"multiple": 4, "min": 8, "max": None, "pad": "edge"},
        "halo": None,  # instance norm: every pixel depends on all of them
    }
    assert manifest["checkpoint"] == {
        "sha256": file_sha256(exported.checkpoint_file),
        "step": 7,
        "recipe": "modern",
        "network": {"name": "johnson", "settings": {"width": 4, "blocks": 1}},
    }
    assert list(exported.bundle.parent.iterdir()) == [exported.bundle]  # no stage left behind
    assert exported.bundle.stat().st_mode & 0o777 == 0o755


def test_the_runtime_takes_the_bundle_without_being_told_to_trust_it(
    exported: ExportedBundle,
) -> None:
    topcoat.runtime.verify_files(exported.bundle)
    photograph = bundled_photographs()[0].frame[:211, :303]
    frame = np.ascontiguousarray(photograph)
    with topcoat.runtime.open(exported.bundle, backend="onnxruntime-cpu") as model:
        styled = model.process(frame)
    wanted = reference_frame(tiny_checkpoint().build_network(), frame)
    assert styled.shape == frame.shape
    assert np.abs(styled.astype(int) - wanted).max() <= 1


def test_the_golden_pair_is_a_frame_and_its_answer(exported: ExportedBundle) -> None:
    with Image.open(exported.bundle / "golden_in.png") as picture:
        frame = np.array(picture)
    with Image.open(exported.bundle / "golden_out.png") as picture:
        wanted = np.array(picture)
    assert frame.shape == wanted.shape == (192, 256, 3)
    with topcoat.runtime.open(exported.bundle, backend="onnxruntime-cpu") as model:
        assert np.abs(model.process(frame).astype(int) - wanted).max() <= 1


def test_every_required_engine_has_a_passed_row_with_figures(exported: ExportedBundle) -> None:
    for variant in exported.manifest["variants"]:
        rows = {(row["backend"], row["compute"]): row for row in variant["parity"]}
        row = rows["onnxruntime-cpu", variant["precision"]]
        assert row["passed"] is True
        figures = row["photographs"]
        assert set(figures) == {"max_steps", "psnr_db", "changed", "within_4_steps"}
        assert 0 <= figures["changed"] < 0.2
        assert figures["within_4_steps"] == 1.0


def test_parity_json_holds_every_number(exported: ExportedBundle) -> None:
    report = exported.parity
    assert (report["format"], report["format_version"], report["passed"]) == (
        "topcoat-parity",
        1,
        True,
    )
    row = report["rows"][0]
    frame = row["frames"][0]
    assert {f["group"] for f in row["frames"]} == {"photographs", "sizes", "tiny", "synthetic"}
    assert set(frame) == {
        *("name", "group", "shape", "values", "max_steps", "mean_steps", "changed"),
        *("within_4_steps", "psnr_db", "tone_steps", "worst_tile"),
    }
    worst = max(f["max_steps"] for f in row["frames"] if f["group"] == "photographs")
    assert row["groups"]["photographs"]["max_steps"] == worst


def test_the_card_says_what_it_is_and_how_well_it_agrees(exported: ExportedBundle) -> None:
    card = (exported.bundle / "card.md").read_text(encoding="utf-8")
    for words in (
        *(
            "# tiny",
            "swirls",
            "modern, 7 steps",
            "total 3.5",
            "| Task | style |",
            "depends on the whole frame",
            "](golden_in.png) | ![",
            "onnxruntime-cpu fp32",
            "multiple of 4",
        ),
        "topcoat run photo.jpg styled.jpg --model tiny.topcoat",
    ):
        assert words in card


def test_json_on_standard_output_and_nothing_besides(exported: ExportedBundle) -> None:
    outcome = exported.outcome.json
    assert outcome["bundle"] == str(exported.bundle)
    assert outcome["passed"] is True
    assert outcome["rows"][0]["status"] == "passed"
    assert "PyTorch fp32 on" in exported.outcome.stderr


def test_the_papers_form_replaces_a_bundle_with_force_and_says_what_to_run_next(
    exported: ExportedBundle, tmp_path: Path
) -> None:
    save_checkpoint(tiny_checkpoint(form="paper"), tmp_path / "paper.pt")
    old = shutil.copytree(exported.bundle, tmp_path / "paper.topcoat")
    refused = export_engine_main(tmp_path / "paper.pt")
    assert refused.code == 2
    assert "--force" in refused.stderr
    assert contents(old) == contents(exported.bundle)

    (tmp_path / "photos").mkdir()
    Image.effect_noise((90, 70), 60).save(tmp_path / "photos" / "mine.png")
    done = export_engine_main(tmp_path / "paper.pt", "--force", "--photos", tmp_path / "photos")
    assert done.code == 0, done.stderr
    assert f"topcoat run photo.jpg styled.jpg --model {old}" in done.stdout
    assert f"bench-latency {old}" in done.stdout
    assert "| onnxruntime-cpu fp32 | passed |" in " ".join(done.stdout.split())
    assert topcoat.runtime.verify_files(old).name == "paper"
    assert not (old / "model.fp16.onnx").exists()
    report = json.loads((old / "parity.json").read_text(encoding="utf-8"))
    assert "mine.png" in [f["name"] for f in report["rows"][0]["frames"]]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["paper.pt", "paper.topcoat", "photos"]


def test_a_network_that_no_engine_can_match_leaves_only_a_report(
    exported: ExportedBundle, tmp_path: Path
) -> None:
    fragile = tiny_checkpoint()
    # So steep that float32's own noise decides which of two colours a pixel gets.
    last = [name for name in fragile.weights if name.endswith("weight")][-1]
    fragile.weights[last] *= 1e6
    save_checkpoint(fragile, tmp_path / "fragile.pt")
    before = shutil.copytree(exported.bundle, tmp_path / "fragile.topcoat")

    outcome = export_engine_main(tmp_path / "fragile.pt", "--force")
    assert outcome.code == 1
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("export-engine: fragile differs from its network (onnxruntime-cpu fp32")
    assert "fragile.parity.json" in line
    assert contents(before) == contents(exported.bundle)
    report = json.loads((tmp_path / "fragile.parity.json").read_text(encoding="utf-8"))
    assert report["passed"] is False
    assert report["rows"][0]["failures"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("fragile.parity.json", "fragile.pt", "fragile.topcoat"),
    ]


def saved(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A checkpoint file whose content was changed after it was written."""

    def make(path: Path) -> None:
        save_checkpoint(tiny_checkpoint(), path)
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return make


class Burglar:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("burgled"),)


def cut_in_half(path: Path) -> None:
    save_checkpoint(tiny_checkpoint(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_weights(path: Path) -> None:
    checkpoint: Checkpoint = tiny_checkpoint()
    next(iter(checkpoint.weights.values())).view(-1)[0] = float("nan")
    save_checkpoint(checkpoint, path)


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no checkpoint at"),
    "a folder": (Path.mkdir, "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "train-style"),
    "a random file": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "train-style",
    ),
    "a pickle with code in it": (
        lambda path: path.write_bytes(pickle.dumps(Burglar())),
        "train-style",
    ),
    "a torch file with code in it": (lambda path: torch.save(Burglar(), path), "nothing was run"),
    "another project's weights": (
        lambda path: torch.save({"conv1.weight": torch.zeros(3, 3)}, path),
        "another project's weights",
    ),
    "cut in half": (cut_in_half, "cut short"),
    "of a newer format": (
        saved(lambda content: content.update(format_version=99)),
        "update topcoat-train",
    ),
    "weights of another size": (
        saved(lambda content: content["network"]["settings"].update(width=8)),
        "do not fit",
    ),
    "a setting that is unknown": (
        saved(lambda content: content["network"]["settings"].update(depth=8)),
        "depth",
    ),
    "not a number": (nan_weights, "NaN"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_one_line_exit_2_and_nothing_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BAD_CHECKPOINTS[kind]
    make(tmp_path / "bad.pt")
    before = contents(tmp_path)
    outcome = export_engine_main("bad.pt")
    assert outcome.code == 2, outcome.stderr
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("export-engine: ")
    assert message in line
    assert contents(tmp_path) == before  # nothing written, and nothing was burgled


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: out.write_text("a file"), "is a file"),
        (lambda out: (out.mkdir(), (out / "thesis.txt").write_text("years")), "not a bundle"),
    ],
)
def test_what_is_no_bundle_is_never_replaced(
    checkpoint_file: Path, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "place")
    before = contents(tmp_path)
    outcome = export_engine_main(checkpoint_file, "-o", tmp_path / "place", "--force")
    assert outcome.code == 2
    assert message in outcome.stderr
    assert contents(tmp_path) == before


def test_a_bundle_with_a_strangers_file_in_it_is_never_replaced(
    exported: ExportedBundle, tmp_path: Path
) -> None:
    place = shutil.copytree(exported.bundle, tmp_path / "mine.topcoat")
    (place / "notes.txt").write_text("keep me")
    outcome = export_engine_main(exported.checkpoint_file, "-o", place, "--force")
    assert outcome.code == 2
    assert "notes.txt" in outcome.stderr
    assert (place / "notes.txt").read_text() == "keep me"


def test_a_place_that_cannot_be_made_and_photos_that_are_none_are_one_line(
    checkpoint_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (("-o", tmp_path / "file" / "x.topcoat"), "cannot write"),
        (("-o", tmp_path / "x.topcoat", "--photos", tmp_path), "no readable photograph"),
        (("-o", tmp_path / "x.topcoat", "--name", "../x"), "cannot be called"),
    ):
        outcome = export_engine_main(checkpoint_file, *arguments)
        assert outcome.code == 2
        (line,) = outcome.stderr.splitlines()
        assert message in line
    assert list(contents(tmp_path)) == ["file"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "c:", "a\n", " a", "x" * 101])
def test_a_name_that_is_no_file_name_everywhere_is_refused(name: str) -> None:
    with pytest.raises(BundleNameError, match="cannot be called"):
        checked_name(name)
    assert checked_name("starry-night v2") == "starry-night v2"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_export_that_is_stopped_midway_leaves_no_bundle(
    checkpoint_file: Path, tmp_path: Path, how: signal.Signals
) -> None:
    place = tmp_path / "out" / "tiny.topcoat"
    command = [sys.executable, "-m", "topcoat.export.cli.export_engine"]
    with subprocess.Popen(
        [*command, str(checkpoint_file), "-o", str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "ONNX, fp32" in process.stdout.readline()  # it has begun to write
        process.send_signal(how)
        stderr = process.stderr.read()
    assert not place.exists()
    left = list(place.parent.iterdir())
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert stderr.splitlines() == ["export-engine: interrupted; nothing was written"]
        assert left == []
    else:  # what it was working on stays under a hidden name that nobody takes for a bundle
        assert [path.name[:1] + path.suffix for path in left] == [f".{'.part'}"]


def test_a_reader_that_goes_away_stops_the_export_without_a_word(
    checkpoint_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "topcoat.export.cli.export_engine", str(checkpoint_file)]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "tiny.topcoat")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
    assert (process.returncode, stderr) == (1, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="limits on file sizes are POSIX's")
    # To the program a file that may not grow looks like a disk that is full.
    code = (
        "import resource, sys; from topcoat.export.cli.export_engine import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, checkpoint_file, "-o", tmp_path / "full.topcoat"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "make room" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["export_engine", "demo"])
def test_help_teaches_and_needs_no_torch(module: str) -> None:
    code = (
        f"import sys; from topcoat.export.cli.{module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: print(end.code)\n"
        "print(sorted({'torch', 'onnx', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0\n[]\n")
    assert "examples:" in done.stdout


def test_a_mistyped_option_is_exit_2() -> None:
    with pytest.raises(SystemExit) as caught:
        export_engine_main("tiny.pt", "--fp32")
    assert caught.value.code == 2
