"""Measuring, judging, and that the gate can close."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

import topcoat.runtime
from tests.export.conftest import ExportedBundle, tiny_checkpoint
from topcoat.export import (
    Engine,
    ParityError,
    ParityReport,
    ParityRow,
    ProbeFrame,
    engines_for,
    measure_parity,
)
from topcoat.export.onnx_from_checkpoint import FrameGraph
from topcoat.export.parity import reference_frame, summary
from topcoat.export.probes import bundled_photographs

ORT = Engine(
    file="model.fp32.onnx",
    precision="fp32",
    backend="onnxruntime-cpu",
    compute="fp32",
    required=True,
)


@pytest.fixture(scope="module")
def photograph() -> ProbeFrame:
    whole = bundled_photographs()[0]
    return ProbeFrame(
        name="part", group="photographs", frame=np.ascontiguousarray(whole.frame[:131, :190])
    )


def test_comparing_nothing_is_an_error(exported: ExportedBundle, photograph: ProbeFrame) -> None:
    network = tiny_checkpoint().build_network()
    with pytest.raises(ParityError, match="no frames"):
        summary([])
    with pytest.raises(ParityError, match="no engines"):
        measure_parity(exported.bundle, network, [photograph], [])
    with pytest.raises(ParityError, match="no photographs"):
        measure_parity(exported.bundle, network, [], [ORT])
    with pytest.raises(ParityError, match="no required engine"):
        ParityReport(rows=[])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (8, 8), (33, 50)])
def test_the_reference_pads_with_the_last_row_and_column_and_crops(height: int, width: int) -> None:
    network = tiny_checkpoint().build_network()
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    down, right = (max(8, -(-side // 4) * 4) - side for side in (height, width))
    padded = np.pad(frame, ((0, down), (0, right), (0, 0)), mode="edge")
    with torch.no_grad():
        styled = FrameGraph(network)(torch.from_numpy(padded)[None])[0]
    wanted = styled.numpy()[:height, :width]
    # Two ways to the same picture: a value just at a rounding edge may fall to either side.
    assert np.abs(reference_frame(network, frame).astype(int) - wanted).max() <= 1
    assert np.mean(reference_frame(network, frame) != wanted) < 0.01


def test_every_engine_that_the_runtime_may_choose_has_a_row(exported: ExportedBundle) -> None:
    rows = {
        (v["file"], r["backend"], r["compute"])
        for v in exported.manifest["variants"]
        for r in (*v["parity"], *v["parity_not_run"])
    }
    with topcoat.runtime.open(exported.bundle) as model:
        offered = {
            (c.variant, c.backend, c.compute)
            for c in model.explain().candidates
            if c.compute is not None
        }
    assert offered <= rows


def changed_bundle(exported: ExportedBundle, to: Path, by: float) -> Path:
    """Copy a bundle and move every weight of its last convolution; hashes fit again."""
    shutil.copytree(exported.bundle, to)
    path = to / ORT.file
    model = onnx.load(path)
    last = [n for n in model.graph.node if n.op_type == "Conv"][-1]
    (weight,) = (t for t in model.graph.initializer if t.name == last.input[1])
    moved = onnx.numpy_helper.to_array(weight) + np.float32(by)
    weight.CopyFrom(onnx.numpy_helper.from_array(moved, weight.name))
    onnx.save(model, path)
    manifest = json.loads((to / "manifest.json").read_text(encoding="utf-8"))
    manifest["variants"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["variants"][0]["bytes"] = path.stat().st_size
    (to / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return to


@pytest.mark.parametrize(("by", "passes"), [(0.0, True), (0.001, False), (0.1, False)])
def test_parity_passes_for_the_same_weights_and_fails_for_slightly_others(
    exported: ExportedBundle, photograph: ProbeFrame, tmp_path: Path, by: float, passes: bool
) -> None:
    bundle = changed_bundle(exported, tmp_path / "changed.topcoat", by)
    report = measure_parity(bundle, tiny_checkpoint().build_network(), [photograph], [ORT])
    assert bool(report) is passes
    (row,) = report.rows
    assert row.status == ("passed" if passes else "failed")
    assert bool(row.failures) is not passes


def test_an_engine_that_breaks_down_has_failed_and_says_why(
    exported: ExportedBundle, photograph: ProbeFrame, tmp_path: Path
) -> None:
    bundle = shutil.copytree(exported.bundle, tmp_path / "broken.topcoat")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["variants"][0]["output"]["name"] = "painted"
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    network = tiny_checkpoint().build_network()
    (row,) = measure_parity(bundle, network, [photograph], [ORT]).rows
    assert row.status == "failed"
    assert "painted" in row.failures[0]


def test_an_engine_that_this_machine_lacks_is_not_run_and_does_not_pass(
    exported: ExportedBundle, photograph: ProbeFrame
) -> None:
    # The bundle's fp32 file cannot be computed in bf16 by ONNX Runtime, on any machine.
    engine = Engine(
        file=ORT.file, precision="fp32", backend="onnxruntime-cpu", compute="bf16", required=True
    )
    network = tiny_checkpoint().build_network()
    report = measure_parity(exported.bundle, network, [photograph], [engine])
    (row,) = report.rows
    assert row.status == "not run"
    assert row.reason
    assert not row
    assert not report


def test_a_report_stands_on_its_required_rows_alone(exported: ExportedBundle) -> None:
    passed = ParityRow(engine=ORT, status="passed")
    engines = engines_for(topcoat.runtime.read_manifest(exported.bundle).variants)
    optional = [engine for engine in engines if not engine.required]
    failed = ParityRow(engine=optional[0], status="failed", reason="fragile")
    assert ParityReport(rows=[passed, failed])
    assert not ParityReport(rows=[ParityRow(engine=ORT, status="failed"), passed])
