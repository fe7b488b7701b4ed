"""Measuring how far frames are apart, and judging it."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from topcoat.runtime.parity import (
    GATES,
    Difference,
    Engine,
    Flatness,
    Gate,
    ParityError,
    ParityRow,
    ProbeFrame,
    areas_to_judge,
    difference,
    flatness,
    parity_table,
    summary,
    together,
)

ORT = Engine(
    file="model.fp32.onnx",
    precision="fp32",
    backend="onnxruntime-cpu",
    compute="fp32",
    required=True,
)


def flat(value: int, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((*shape, 3), value, dtype=np.uint8)


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


# ------------------------------------------------------------------------------------- flat areas


def colours(*found: tuple[int, int, int], side: int = 4) -> NDArray[np.uint8]:
    frames = np.array(found, dtype=np.uint8)[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(frames, (len(found), side, side, 3)))


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
    frames = colours((1, 2, 3), (128, 128, 128), (255, 0, 255))
    answers = colours((1, 2, 3), (128, 128, 128), (255, 0, 255), side=8)
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
    found = flatness(colours((9, 9, 9)), colours((99, 9, 9), side=8), np.array([True]))
    assert (found.uneven, found.max_steps) == ({}, 0)


def test_what_cannot_be_judged_is_an_error() -> None:
    frames = colours((1, 2, 3), (4, 5, 6))
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
    frames = colours((9, 9, 9))
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
    without = summary([difference(colours((9, 9, 9)), colours((9, 9, 9)))])
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
    probe = ProbeFrame(name="flat", group="flat", frame=colours((9, 9, 9)))
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
