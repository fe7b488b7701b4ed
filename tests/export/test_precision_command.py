"""``--precision``, ``--audit`` and ``--calibration`` of export-engine, from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest

import topcoat.runtime
from tests.export.conftest import ExportedBundle, export_engine_main, sr_checkpoint
from topcoat.export import QuantisationError
from topcoat.train import save_checkpoint


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    """A network with every layer measured; its frames are small. Read it, never change it."""
    folder = tmp_path_factory.mktemp("audited")
    save_checkpoint(sr_checkpoint("residual-sr", 8), folder / "tiny.pt")
    outcome = export_engine_main(folder / "tiny.pt", "--precision", "auto", "--audit")
    assert outcome.code == 0, outcome.stderr
    return ExportedBundle(outcome, folder / "tiny.topcoat", folder / "tiny.pt")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    """A super-resolution network in int8. Read it, never change it."""
    folder = tmp_path_factory.mktemp("quantised")
    save_checkpoint(sr_checkpoint("residual-sr", 2), folder / "sharp.pt")
    outcome = export_engine_main(folder / "sharp.pt", "--precision", "int8")
    assert outcome.code == 0, outcome.stderr
    return ExportedBundle(outcome, folder / "sharp.topcoat", folder / "sharp.pt")


def test_auto_says_what_holds_and_why(audited: ExportedBundle) -> None:
    assert "fp16 holds as it is" in audited.outcome.stdout
    assert [v["precision"] for v in audited.manifest["variants"]] == ["fp32", "fp16"]


def test_the_audit_is_printed_and_kept_in_the_bundle(audited: ExportedBundle) -> None:
    kept = json.loads((audited.bundle / "precision.json").read_text(encoding="utf-8"))
    assert kept["format"] == "topcoat-precision"
    assert {"head", "blocks.0.1", "tail"} <= {layer["name"] for layer in kept["layers"]}
    printed = {line.split()[0] for line in audited.outcome.stdout.splitlines() if line.strip()}
    assert {"head", "tail"} <= printed  # a ReLU loses nothing by itself, and has no line
    assert "precision.json" in audited.manifest["files"]
    topcoat.runtime.verify_files(audited.bundle)


def test_int8_runs_and_passes_its_gate(quantised: ExportedBundle) -> None:
    (entry,) = [v for v in quantised.manifest["variants"] if v["precision"] == "int8"]
    rows = {(row["backend"], row["compute"]): row["passed"] for row in entry["parity"]}
    assert rows["onnxruntime-cpu", "int8"] is True
    kept = json.loads((quantised.bundle / "quantisation.json").read_text(encoding="utf-8"))
    assert 0.5 <= kept["share"] <= 1
    frame = np.full((20, 30, 3), 90, np.uint8)
    with topcoat.runtime.open(
        quantised.bundle, backend="onnxruntime-cpu", precision="int8"
    ) as model:
        assert model.process(frame).shape == (40, 60, 3)


def test_int8_that_the_picture_does_not_bear_is_refused_with_its_numbers(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tests/export/test_quantisation.py refuses a real one, which takes long.
    def refuse(*_: object, **__: object) -> None:
        raise QuantisationError("int8 does not hold: 30 dB; take --precision fp16 or fp32")

    monkeypatch.setattr("topcoat.export.bundle_writer.quantise", refuse)
    outcome = export_engine_main(
        checkpoint_file, "--precision", "int8", "-o", tmp_path / "x.topcoat"
    )
    assert outcome.code == 2
    (line,) = outcome.stderr.strip().splitlines()
    assert line == "export-engine: int8 does not hold: 30 dB; take --precision fp16 or fp32"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--calibration", "photos"), "add --precision int8"),
        (("--precision", "int8", "--calibration", "nowhere"), "is not a folder"),
        (("--range", "255"), "is no ONNX file"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    checkpoint_file: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = export_engine_main(checkpoint_file, "-o", tmp_path / "x.topcoat", *arguments)
    assert outcome.code == 2
    (line,) = outcome.stderr.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_layers_of_an_onnx_file_cannot_be_measured(
    quantised: ExportedBundle, tmp_path: Path
) -> None:
    model = quantised.bundle / "model.fp32.onnx"
    outcome = export_engine_main(model, "--precision", "auto", "-o", tmp_path / "x.topcoat")
    assert outcome.code == 2
    assert "an ONNX file has none" in outcome.stderr
