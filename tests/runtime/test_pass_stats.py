"""What a pass remembers of its frames, and how it sums them up."""

import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.allocations import peak_growth
from topcoat.runtime._errors import PassError
from topcoat.runtime._percentiles import nearest_rank
from topcoat.runtime.render_pass._stats import FrameLog
from topcoat.runtime.render_pass._types import Result, Status, Timings

PICTURE = np.zeros((1, 1, 3), np.uint8)


def result(
    status: Status = Status.FRESH, *, age: int = 0, level: int = 0, **times: float
) -> Result:
    return Result(PICTURE, status, age, 0, "fake", "", Timings(**times), level)


def test_the_summary_counts_every_status_age_and_level() -> None:
    log = FrameLog()
    for index in range(10):
        log.add(result(age=1), within=index != 3, copied=100)
    log.add(result(Status.DEGRADED, age=1, level=2), within=True, copied=200)
    log.add(result(Status.WARPED, age=3, level=2), within=False, copied=0)
    log.add(result(Status.PASSTHROUGH), within=True, copied=40)
    stats = log.summary(failures=1, demotions=2, dropped=3)
    assert stats.frames == 13
    assert stats.statuses == {
        Status.FRESH: 10,
        Status.REUSED: 0,
        Status.WARPED: 1,
        Status.DEGRADED: 1,
        Status.PASSTHROUGH: 1,
    }
    assert stats.within_budget == pytest.approx(11 / 13)
    assert stats.ages == {1: 11, 3: 1}  # what was passed through is no picture of the network
    assert stats.levels == {0: 10, 2: 2}
    assert stats.copied_bytes == pytest.approx(1240 / 13)
    assert (stats.failures, stats.demotions, stats.dropped) == (1, 2, 3)


def test_percentiles_are_times_that_occurred() -> None:
    log = FrameLog()
    for milliseconds in np.random.default_rng(0).permutation(1000) + 1:
        log.add(result(present=float(milliseconds)), within=True, copied=0)
    times = log.summary().stages["present"]
    assert (times.p50, times.p95, times.p99, times.p99_9, times.max) == (500, 950, 990, 999, 1000)
    assert times.frames == 1000


@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=300),
    percent=st.sampled_from([0, 5, 50, 95, 99, 99.9, 100]),
)
def test_nearest_rank_is_the_smallest_value_that_enough_others_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = nearest_rank(np.array(values), percent)
    assert found in values
    assert 1000 * sum(v <= found for v in values) >= round(percent * 10) * len(values)
    below = [v for v in values if v < found]
    assert not below or 1000 * len(below) < round(percent * 10) * len(values)


def test_stages_of_the_worker_are_those_of_new_results_alone() -> None:
    log = FrameLog()
    for _ in range(5):
        log.add(result(present=1.0, infer=20.0, work=22.0), within=True, copied=0)
        log.add(result(Status.REUSED, present=3.0), within=True, copied=0)
    stages = log.summary().stages
    assert (
        stages["infer"].p50 == 20.0
    )  # not 0, as it would be with the frames that were shown again
    assert stages["infer"].frames == 5
    assert stages["present"].frames == 10
    assert stages["present"].p50 == 1.0
    only_shown_again = FrameLog()
    only_shown_again.add(result(Status.REUSED, present=3.0), within=True, copied=0)
    assert "infer" not in only_shown_again.summary().stages


def test_the_oldest_frames_make_room_for_new_ones() -> None:
    log = FrameLog(capacity=8)
    for index in range(21):
        log.add(result(present=float(index)), within=index >= 20, copied=index)
    stats = log.summary()
    assert stats.frames == 8
    assert stats.stages["present"].max == 20
    assert stats.copied_bytes == np.mean(range(13, 21))
    last = log.summary(3)
    assert last.frames == 3
    assert last.stages["present"].p50 == 19
    assert last.within_budget == pytest.approx(1 / 3)
    assert log.summary(100).frames == 8


def test_before_the_first_frame_there_is_nothing_to_say() -> None:
    stats = FrameLog().summary()
    assert str(stats) == "no frame yet"
    assert stats.within_budget == 1.0
    assert stats.stages == {}
    assert json.loads(json.dumps(stats.to_json()))["frames"] == 0


def test_the_table_has_a_line_per_stage_that_took_time() -> None:
    log = FrameLog()
    for index in range(400):
        log.add(
            result(age=1, present=2.5, load=0.25, infer=12.0, work=13.0),
            within=index != 0,
            copied=1_500_000,
        )
    lines = str(log.summary(dropped=7)).splitlines()
    assert lines[0] == "400 frames: 400 fresh; 99.7 % within budget"  # 99.75, rounded down
    assert lines[1] == "pictures of the network: 400 of age 1"
    assert lines[2].split() == ["ms", "p50", "p95", "p99", "p99.9", "max"]
    assert [line.split()[0] for line in lines[3:-1]] == ["load", "present", "infer", "work"]
    assert "     12.00" in lines[5]
    assert lines[-1] == "0 failures, 0 demotions, 7 dropped; 1.50 MB copied per frame"
    assert len({len(line) for line in lines[2:-1]}) == 1


def test_the_summary_as_json_has_the_same_figures() -> None:
    log = FrameLog()
    log.add(result(Status.DEGRADED, age=2, level=1, present=4.0), within=True, copied=10)
    stats = log.summary()
    data = json.loads(json.dumps(stats.to_json()))
    assert data["statuses"]["degraded"] == 1
    assert data["ages"] == {"2": 1}
    assert data["levels"] == {"1": 1}
    assert data["stages_ms"]["present"]["p99_9"] == 4.0
    assert data["within_budget"] == 1.0
    assert data["copied_bytes_per_frame"] == 10.0


def test_remembering_a_frame_allocates_nothing() -> None:
    log = FrameLog(capacity=64)
    frame = result(age=1, present=1.0, work=2.0)

    def add() -> None:
        log.add(frame, within=True, copied=1)

    assert peak_growth(add, 5000) < 2048


def test_remembering_a_frame_takes_microseconds() -> None:
    log = FrameLog()
    frame = result(age=1, present=1.0, work=2.0)
    times = []
    for _ in range(300):
        begin = time.perf_counter_ns()
        log.add(frame, within=True, copied=1)
        times.append(time.perf_counter_ns() - begin)
    assert np.median(times) < 100_000  # about 3 µs on an idle core


def test_a_summary_taken_meanwhile_holds_whole_records() -> None:
    log = FrameLog(capacity=16)
    stop = threading.Event()

    def present() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            log.add(
                result(age=number % 5, level=number % 5, present=float(number % 5)),
                within=True,
                copied=number % 5,
            )

    thread = threading.Thread(target=present)
    thread.start()
    try:
        for _ in range(200):
            stats = log.summary(1)
            if stats.frames:
                (age,) = stats.ages
                assert stats.ages == stats.levels
                assert stats.stages["present"].max == age == stats.copied_bytes
    finally:
        stop.set()
        thread.join()


def test_windows_of_no_frame_are_refused() -> None:
    with pytest.raises(PassError, match="window is 0, wanted at least 1 frame"):
        FrameLog().summary(0)
    with pytest.raises(PassError, match="capacity is 0"):
        FrameLog(0)
