"""Flat areas: what a network promises of them, and engines that print a grid into them."""

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import onnx.numpy_helper
import pytest

from tests.export.conftest import ExportedBundle, sr_checkpoint
from topcoat.export import (
    Engine,
    measure_parity,
    probe_frames,
)

ORT = Engine(
    file="model.fp32.onnx",
    precision="fp32",
    backend="onnxruntime-cpu",
    compute="fp32",
    required=True,
)


def flat_groups(exported: ExportedBundle) -> dict[tuple[str, str], dict[str, object]]:
    return {
        (row["backend"], row["compute"]): row["groups"]["flat"]["flat"]
        for row in exported.parity["rows"]
        if row["status"] != "not run"
    }


def test_a_network_that_leaves_areas_flat_is_held_to_it_in_every_engine(
    enlarging: ExportedBundle,
) -> None:
    found = flat_groups(enlarging)
    count = sum(len(probe.frame) for probe in probe_frames(1, scale=4) if probe.group == "flat")
    assert all((flat["areas"], flat["judged"]) == (count, count) for flat in found.values())
    for (_, compute), flat in found.items():
        if compute == "fp32":
            assert (flat["max_steps"], flat["uneven"]) == (0, {})
    assert ("onnxruntime-cpu", "fp32") in found
    assert "| flat " in (enlarging.bundle / "card.md").read_text(encoding="utf-8")


def test_a_network_that_prints_into_flat_areas_itself_is_not_held_to_them(
    published: ExportedBundle,
) -> None:
    found = flat_groups(published)["onnxruntime-cpu", "fp32"]
    assert found["judged"] == 0
    assert published.parity["passed"] is True


def test_a_network_that_keeps_the_size_is_not_asked(exported: ExportedBundle) -> None:
    for row in exported.parity["rows"]:
        assert "flat" not in row["groups"]
    assert "Flat areas" not in (exported.bundle / "card.md").read_text(encoding="utf-8")


def with_one_phase_brighter(bundle: Path, to: Path, by: float) -> Path:
    """Copy a bundle of residual-sr, and brighten one of the pixels that each pixel becomes."""
    shutil.copytree(bundle, to)
    path = to / ORT.file
    model = onnx.load(path)
    (weight,) = (t for t in model.graph.initializer if list(t.dims)[1:] == [1, 5, 5])
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[3::16] *= 1 + by  # in R, G and B
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(model, path)
    manifest = json.loads((to / "manifest.json").read_text(encoding="utf-8"))
    manifest["variants"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["variants"][0]["bytes"] = path.stat().st_size
    (to / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return to


@pytest.mark.parametrize("by", [0.0, 0.003])
def test_an_engine_that_prints_a_grid_is_found_out_and_the_greys_are_named(
    enlarging: ExportedBundle, tmp_path: Path, by: float
) -> None:
    bundle = with_one_phase_brighter(enlarging.bundle, tmp_path / "grid.topcoat", by)
    network = sr_checkpoint("residual-sr", 4).build_network()
    probes = [p for p in probe_frames(1, scale=4) if p.group == "flat" or p.name == "chelsea"]
    (row,) = measure_parity(bundle, network, probes, [ORT]).rows
    found = row.groups["flat"]
    assert found.flat is not None
    if not by:
        assert row
        assert found.flat.uneven == {}
        return
    # A step is half a step rounded up: from 167 on, 0.003 of a value is as much.
    assert found.flat.max_steps == 1
    assert "#ffffff" not in found.flat.uneven  # clipped
    brightest = [max(bytes.fromhex(colour[1:])) for colour in found.flat.uneven]
    assert len(brightest) > 20
    assert min(brightest) >= 166
    assert any("flat areas uneven, by up to 1 step, allowed 0" in missed for missed in row.failures)
