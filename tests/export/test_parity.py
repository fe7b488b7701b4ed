"""Measuring, judging, and that the gate can close."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import topcoat.runtime
from tests.export.conftest import ExportedBundle, tiny_checkpoint
from topcoat.export import (
    GATES,
    Engine,
    Gate,
    ParityError,
    ParityReport,
    ParityRow,
    ProbeFrame,
    difference,
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


def flat(value: int, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((*shape, 3), value, dtype=np.uint8)


@pytest.fixture(scope="module")
def photograph() -> ProbeFrame:
    whole = bundled_photographs()[0]
    return ProbeFrame(
        name="part", group="photographs", frame=np.ascontiguousarray(whole.frame[:131, :190])
    )


def test_equal_frames_differ_by_nothing_and_json_can_say_so() -> None:
    same = difference(flat(9, 40, 50), flat(9, 40, 50))
    assert (same.max_steps, same.changed, same.within_4_steps) == (0, 0.0, 1.0)
    assert same.psnr_db == math.inf
    assert json.loads(json.dumps(same.to_json(), allow_nan=False))["psnr_db"] is None


def test_difference_counts_steps_both_ways_without_wrapping() -> None:
    found = difference(flat(0, 8, 8), flat(255, 8, 8))
    assert (found.max_steps, found.changed, found.within_4_steps) == (255, 1.0, 0.0)
    assert found.psnr_db == pytest.approx(0.0)
    assert difference(flat(255, 8, 8), flat(0, 8, 8)).max_steps == 255


def test_psnr_of_one_step_everywhere_is_that_of_one_255th() -> None:
    assert difference(flat(10, 8, 8), flat(11, 8, 8)).psnr_db == pytest.approx(48.13, abs=0.01)


@given(
    frame=st.integers(0, 1), top=st.integers(0, 2), left=st.integers(0, 3), steps=st.integers(1, 9)
)
def test_the_worst_tile_is_found_where_it_is(frame: int, top: int, left: int, steps: int) -> None:
    reference = flat(100, 2, 70, 101)  # border tiles of 6 rows and 5 columns
    candidate = reference.copy()
    candidate[frame, 32 * top : 32 * top + 32, 32 * left : 32 * left + 32] += np.uint8(steps)
    tile = difference(reference, candidate).worst_tile
    assert (tile.frame, tile.top, tile.left) == (frame, 32 * top, 32 * left)
    assert tile.mean_steps == pytest.approx(steps)


def test_an_error_in_one_corner_is_not_averaged_away() -> None:
    candidate = flat(100, 512, 512)
    candidate[-16:, -16:] = 130
    found = difference(flat(100, 512, 512), candidate)
    assert found.changed < 0.001
    assert found.worst_tile.mean_steps == pytest.approx(30 / 4)


def test_tone_ignores_strokes_that_cancel_out_and_sees_a_shift_of_one_channel() -> None:
    rows, columns = np.indices((64, 70))
    strokes = np.where((rows + columns) % 2, 140, 60).astype(np.uint8)
    drawn = np.repeat(strokes[..., None], 3, axis=-1)
    elsewhere = difference(drawn, np.uint8(200) - drawn)
    assert (elsewhere.max_steps, elsewhere.tone_steps) == (80, 0.0)
    redder = drawn.copy()
    redder[32:, :32, 0] += 5
    assert difference(drawn, redder).tone_steps == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        (flat(0, 8, 8), flat(0, 8, 9), "one shape"),
        (flat(0, 8, 8), np.zeros((8, 8, 3), np.float32), "uint8"),
        (flat(0, 0, 8), flat(0, 0, 8), "compares nothing"),
        (flat(0, 0, 8, 8), flat(0, 0, 8, 8), "compares nothing"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    reference: np.ndarray,
    candidate: np.ndarray,
    message: str,
) -> None:
    with pytest.raises(ParityError, match=message):
        difference(reference, candidate)


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


def test_a_gate_says_in_numbers_what_was_missed() -> None:
    found = summary([difference(flat(10, 8, 8), flat(16, 8, 8))])
    gate = Gate(max_steps=4, psnr_db=50, worst_psnr_db=45, within_4_steps=0.99, tone_steps=2)
    missed = gate.failures(found)
    assert missed == [
        "off by 6 steps, allowed 4",
        "PSNR 32.6 dB, wanted 50",
        "PSNR 32.6 dB in one frame, wanted 45",
        "0.00% of values within 4 steps, wanted 99%",
        "a tile's mean colour off by 6.0 steps, allowed 2",
    ]
    assert Gate(max_steps=6, psnr_db=30).failures(found) == []


def test_the_psnr_of_a_group_counts_every_value_once_and_its_worst_frame_is_kept() -> None:
    small = difference(flat(10, 8, 8), flat(14, 8, 8))
    large = difference(flat(10, 24, 8), flat(10, 24, 8))
    both = summary([small, large])
    assert both.psnr_db == pytest.approx(10 * math.log10(255**2 / (16 / 4)))
    assert both.worst_psnr_db == small.psnr_db
    assert (both.frames, both.max_steps, both.changed) == (2, 4, 1.0)


def test_the_gates_on_photographs_are_those_that_were_agreed() -> None:
    agreed = {compute: groups["photographs"] for compute, groups in GATES.items()}
    assert (agreed["fp32"].max_steps, agreed["fp32"].psnr_db) == (1, 75)
    assert (agreed["fp16"].max_steps, agreed["fp16"].psnr_db) == (4, 50)
    assert (agreed["bf16"].psnr_db, agreed["bf16"].within_4_steps) == (45, 0.99)
    assert all(set(groups) == set(GATES["fp32"]) for groups in GATES.values())


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


def test_a_report_stands_on_its_required_rows_alone() -> None:
    passed = ParityRow(engine=ORT, status="passed")
    optional = [e for e in engines_for({"fp32": "model.fp32.onnx"}) if not e.required]
    failed = ParityRow(engine=optional[0], status="failed", reason="fragile")
    assert ParityReport(rows=[passed, failed])
    assert not ParityReport(rows=[ParityRow(engine=ORT, status="failed"), passed])
