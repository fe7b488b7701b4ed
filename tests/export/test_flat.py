"""Flat areas: what a network promises of them, and engines that print a grid into them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray

from tests.export.conftest import ExportedBundle, sr_checkpoint
from topcoat.export import (
    Difference,
    Engine,
    Flatness,
    Gate,
    ParityError,
    ParityRow,
    ProbeFrame,
    difference,
    measure_parity,
    probe_frames,
)
from topcoat.export.card import parity_table
from topcoat.export.flat import areas_to_judge, flatness, together
from topcoat.export.parity import summary

ORT = Engine(
    file="model.fp32.onnx",
    precision="fp32",
    backend="onnxruntime-cpu",
    compute="fp32",
    required=True,
)


def flat(*colours: tuple[int, int, int], side: int = 4) -> NDArray[np.uint8]:
    frames = np.array(colours, dtype=np.uint8)[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(frames, (len(colours), side, side, 3)))


@pytest.mark.parametrize(
    ("value", "spread", "judged"),
    [
        (128.0, 0.0, True),
        (0.0, 0.0, True),
        (255.0, 0.005, True),
        (128.2, 0.005, True),
        (127.8, 0.005, True),
        (128.4, 0.0, False),  # an engine of half precision may give 128 and 129
        (128.5, 0.0, False),
        (128.0, 0.1, False),  # the network prints a grid, though none that 8 bits show
        (128.0, 1.0, False),  # exactly on two steps: nothing is near an edge
    ],
)
def test_an_area_is_judged_where_the_network_gives_one_colour_clear_of_rounding_edges(
    value: float, spread: float, judged: bool
) -> None:
    answer = np.full((2, 6, 6, 3), 7.0, dtype=np.float32)
    answer[1, ..., 1] = value
    answer[1, 2, 3, 1] -= spread
    assert areas_to_judge(answer).tolist() == [True, judged]


def test_the_worst_channel_of_every_area_is_found() -> None:
    frames = flat((1, 2, 3), (128, 128, 128), (255, 0, 255))
    answers = flat((1, 2, 3), (128, 128, 128), (255, 0, 255), side=8)
    answers[1, 0, 0] = (127, 128, 129)
    answers[1, 5, 5] = (128, 128, 131)
    answers[2, 7, 7, 0] = 0  # 255 steps do not wrap around
    everything = flatness(frames, answers, np.array([True, True, True]))
    assert (everything.areas, everything.judged) == (3, 3)
    assert everything.uneven == {"#808080": 3, "#ff00ff": 255}
    assert everything.max_steps == 255
    some = flatness(frames, answers, np.array([True, True, False]))
    assert (some.judged, some.uneven, some.max_steps) == (2, {"#808080": 3}, 3)


def test_an_even_area_of_another_colour_is_flat() -> None:
    found = flatness(flat((9, 9, 9)), flat((99, 9, 9), side=8), np.array([True]))
    assert (found.uneven, found.max_steps) == ({}, 0)


def test_what_cannot_be_judged_is_an_error() -> None:
    frames = flat((1, 2, 3), (4, 5, 6))
    with pytest.raises(ParityError, match="as many of each"):
        flatness(frames, frames[:1], np.array([True, True]))
    frames[1, 0, 0] = 0
    with pytest.raises(ParityError, match="more than one colour"):
        flatness(frames, frames, np.array([True, True]))


def test_batches_are_summed_up_and_a_colour_counts_by_its_worst() -> None:
    assert together([]) is None
    parts = [
        Flatness(areas=5, judged=4, uneven={"#010101": 1, "#020202": 3}),
        Flatness(areas=2, judged=2, uneven={"#010101": 2}),
    ]
    assert together(parts) == Flatness(areas=7, judged=6, uneven={"#010101": 2, "#020202": 3})


def measured(found: Flatness) -> Difference:
    frames = flat((9, 9, 9))
    plain = difference(frames, frames)
    return Difference(
        **{name: getattr(plain, name) for name in plain.__dataclass_fields__ if name != "flat"},
        flat=found,
    )


def test_a_gate_on_flat_areas_closes_although_nothing_else_is_missed() -> None:
    found = summary([measured(Flatness(areas=9, judged=8, uneven={"#010101": 1, "#020202": 2}))])
    assert Gate(max_steps=0, flat_steps=1).failures(found) == [
        "2 of 8 flat areas uneven, by up to 2 steps, allowed 1"
    ]
    assert Gate(max_steps=0, flat_steps=2).failures(found) == []
    without = summary([difference(flat((9, 9, 9)), flat((9, 9, 9)))])
    assert Gate(flat_steps=0).failures(without) == []


@pytest.mark.parametrize(
    ("judged", "uneven", "words"),
    [
        (3, {}, "flat"),
        (3, {"#010101": 1}, "up to 1 step"),
        (3, {"#010101": 1, "#020202": 2}, "up to 2 steps"),
        (0, {}, "not judged"),
    ],
)
def test_the_table_says_how_flat_areas_come_out(
    judged: int, uneven: dict[str, int], words: str
) -> None:
    probe = ProbeFrame(name="flat", group="flat", frame=flat((9, 9, 9)))
    found = measured(Flatness(areas=3, judged=judged, uneven=uneven))
    rows = [
        ParityRow(engine=ORT, status="passed", frames=[(probe, found)]),
        ParityRow(engine=ORT, status="not run", reason="no such engine"),
    ]
    head, _, compared, not_run = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in parity_table(rows)
    )
    assert (head[-1], compared[-1], not_run[-1]) == ("Flat areas", words, "–")
    assert "Flat areas" not in parity_table(rows[1:])[0]


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
