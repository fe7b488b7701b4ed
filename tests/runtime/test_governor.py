"""The governor on scripted loads: which level, at which frame, and why. No clock is involved."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.allocations import peak_growth
from topcoat.runtime._errors import PassError
from topcoat.runtime.render_pass._governor import LadderGovernor
from topcoat.runtime.render_pass._types import Level, Policy

BUDGET = 33.3
POLICY = Policy()  # 4 of 8 frames down; 120 frames within 0.8 of the budget up
FULL, THREE_QUARTERS, HALF, HALF_EVERY_SECOND = range(4)
SCALES = [level.scale for level in POLICY.ladder]

Load = Callable[[int, int], float]
Changes = list[tuple[int, int]]


def changes(governor: LadderGovernor, frames: int, load: Load) -> Changes:
    """Run frames at the level that the governor says; return (frames run, new level) of each."""
    found: Changes = []
    for frame in range(1, frames + 1):
        before = governor.level
        line = governor.observe(load(frame, before), before)
        assert (line is not None) == (governor.level != before)
        if line is not None:
            assert "\n" not in line
            found.append((frame, governor.level))
    return found


def network(full_ms: float, load: Callable[[int], float] = lambda frame: 1.0) -> Load:
    """A network that takes ``full_ms`` at full size, an eighth of it however small the frame is."""

    def work(frame: int, level: int) -> float:
        return load(frame) * full_ms * (1 / 8 + 7 / 8 * SCALES[level] ** 2)

    return work


def at_every_level(milliseconds: float) -> Load:
    return lambda frame, level: milliseconds


def ladder() -> LadderGovernor:
    return LadderGovernor(BUDGET, POLICY)


def test_work_within_the_budget_stays_at_full_quality() -> None:
    assert changes(ladder(), 5000, network(33.0)) == []


def test_work_over_the_budget_goes_down_as_far_as_it_takes_and_stays_there() -> None:
    assert changes(ladder(), 20_000, network(41.0)) == [(4, THREE_QUARTERS)]
    assert changes(ladder(), 20_000, network(70.0)) == [(4, THREE_QUARTERS), (8, HALF)]
    everything = [(4, THREE_QUARTERS), (8, HALF), (12, HALF_EVERY_SECOND)]
    assert changes(ladder(), 20_000, network(150.0)) == everything
    assert changes(ladder(), 20_000, network(900.0)) == everything


@given(full_ms=st.floats(0, 1000), overhead=st.floats(0, 1), budget=st.floats(1, 100))
@settings(max_examples=150, deadline=None)
def test_a_constant_load_never_makes_it_go_to_and_fro(
    full_ms: float, overhead: float, budget: float
) -> None:
    governor = LadderGovernor(budget, POLICY)

    def load(frame: int, level: int) -> float:
        return full_ms * (overhead + (1 - overhead) * SCALES[level] ** 2)

    levels = [level for _, level in changes(governor, 700, load)]
    assert levels == list(range(1, len(levels) + 1))


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_30_per_cent_does_not_make_it_go_to_and_fro(seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(0.7, 1.3, 20_001)

    def noisy(full_ms: float) -> Load:
        return network(full_ms, lambda frame: float(noise[frame]))

    assert changes(ladder(), 20_000, noisy(25.0)) == []  # 32.5 at most
    # Too much at full size for half of the frames, or all; 33.3 at most at three quarters.
    for full_ms in (33.0, 37.0, 41.0):
        assert [level for _, level in changes(ladder(), 20_000, noisy(full_ms))] == [THREE_QUARTERS]
    # In between it may take the cheaper level, but stays there.
    for full_ms in (29.0, 43.0, 50.0, 60.0, 75.0):
        levels = [level for _, level in changes(ladder(), 20_000, noisy(full_ms))]
        assert levels == sorted(set(levels))


def test_one_frame_of_twenty_times_the_work_changes_nothing() -> None:
    for at in (1, 2, 500):
        load = [20.0 if frame == at else 1.0 for frame in range(1001)]
        assert changes(ladder(), 1000, network(25.0, load.__getitem__)) == []


@pytest.mark.parametrize("period", [3, 4, 10, 60])
def test_periodic_spikes_change_nothing_while_most_frames_fit(period: int) -> None:
    load = network(25.0, lambda frame: 20.0 if frame % period == 0 else 1.0)
    assert changes(ladder(), 5000, load) == []


def test_spikes_of_every_second_frame_are_no_spikes() -> None:
    load = network(25.0, lambda frame: 20.0 if frame % 2 == 0 else 1.0)
    assert changes(ladder(), 100, load)[0] == (8, THREE_QUARTERS)


def test_spikes_do_not_keep_it_from_going_up_again() -> None:
    # Down by a load of 100 frames; then every tenth frame is late for some reason of its own.
    load = network(18.0, lambda frame: 3.0 if frame <= 100 else 20.0 if frame % 10 == 0 else 1.0)
    governor = ladder()
    assert changes(governor, 2000, load)[-1][1] == FULL
    assert governor.level == FULL


def test_a_step_of_load_goes_down_at_once_and_up_when_it_is_over() -> None:
    # 20 ms, then 60 for 400 frames: 37 at three quarters, 21 at half.
    governor = ladder()
    load = network(20.0, lambda frame: 3.0 if 200 < frame <= 600 else 1.0)
    found = changes(governor, 3000, load)
    # Four late frames each; up after 120 frames from the one on which four of the last eight
    # frames show that the load is over (600 + 5), and eight to see what the next level takes.
    assert found == [
        (204, THREE_QUARTERS),
        (208, HALF),
        (724, THREE_QUARTERS),
        (851, FULL),
    ]


def test_a_slow_ramp_takes_every_level_once_each_way() -> None:
    # From 20 ms to 140 within 4000 frames, and back.
    def load(frame: int) -> float:
        return 1 + 6 * (1 - abs(frame - 4000) / 4000)

    found = changes(ladder(), 9000, network(20.0, load))
    assert [level for _, level in found] == [1, 2, 3, 2, 1, 0]
    down, up = found[:3], found[3:]
    for frame, level in down:
        before = network(20.0, load)(frame, level - 1)
        assert BUDGET <= before <= BUDGET * 1.02  # four frames after it began not to fit
    for frame, level in up:
        # It began to fit 120 frames ago, as four of the last eight frames showed.
        began = network(20.0, load)(frame - 123, level)
        assert 0.79 * BUDGET <= began <= 0.81 * BUDGET
    # The load is the same on both ways, the levels are not: that is the hysteresis.
    assert found == [(447, 1), (1135, 2), (2566, 3), (6200, 2), (7345, 1), (7896, 0)]


def test_what_the_machine_does_besides_is_part_of_what_is_expected() -> None:
    # Full size takes 24 ms, which would fit; with half of the machine's time gone it takes 36.
    governor = ladder()
    load = network(24.0, lambda frame: 1.5 if frame > 100 else 1.0)
    assert changes(governor, 5000, load) == [(104, THREE_QUARTERS)]
    # The rest of the load goes away: up again.
    assert changes(governor, 300, network(24.0)) == [(124, FULL)]


def dearer_than_its_pixels(frame: int, level: int) -> float:
    """Full size does not fit some cache: by its pixels it would take 25 ms, which would fit."""
    return 45.0 if level == FULL else 14.0


def test_a_failed_climb_is_not_repeated_until_thousands_of_frames_later() -> None:
    found = changes(ladder(), 60_000, dearer_than_its_pixels)
    # 127 frames to the first climb; then 32 * 120 frames, twice, four and eight times as many, for
    # which it is believed what the climb has shown, each with the wait before a climb.
    assert found == [(4, 1)] + [
        change
        for climb in (131, 7943, 23435, 54287)
        for change in ((climb, FULL), (climb + 4, THREE_QUARTERS))
    ]


def test_a_failed_climb_proves_nothing_if_the_load_changed_with_it() -> None:
    # The same, but all work takes a third from the frame on which it has gone down again: full size
    # would take 15 ms. Nobody may conclude that it takes nine times what three quarters take.
    def load(frame: int, level: int) -> float:
        return dearer_than_its_pixels(frame, level) / (1 if frame <= 135 else 3)

    found = changes(ladder(), 5000, load)
    assert found == [(4, THREE_QUARTERS), (131, FULL), (135, THREE_QUARTERS), (135 + 247, FULL)]


def test_after_a_failed_climb_a_load_that_is_gone_is_noticed_all_the_same() -> None:
    governor = ladder()
    changes(governor, 1000, dearer_than_its_pixels)
    assert governor.level == THREE_QUARTERS
    # Half of all work is gone, and 7 ms times what was measured is 22.5.
    half = changes(governor, 1000, lambda frame, level: dearer_than_its_pixels(frame, level) / 2)
    assert [level for _, level in half] == [FULL]


def test_each_failed_climb_doubles_the_wait_and_a_level_that_holds_halves_it() -> None:
    policy = Policy(up_after=10)
    governor = LadderGovernor(BUDGET, policy)

    def until(level: int, load: Load) -> int:
        """Return how many frames it takes to get to a level."""
        for frame in range(1, 100_000):
            if governor.observe(load(frame, governor.level), governor.level) is not None:
                assert governor.level == level
                return frame
        raise AssertionError(f"level {level} is never chosen")

    busy, idle = network(60.0), network(20.0)  # 37 at three quarters, 21 at half; all within 20
    until(THREE_QUARTERS, busy)
    until(HALF, busy)
    waits = []
    for _ in range(8):
        # The load goes away, and comes back as soon as it has gone up a step.
        changes(governor, 8, busy)
        waits.append(until(THREE_QUARTERS, idle))
        assert until(HALF, busy) == 4
    # Four frames until most of the window shows that the load is gone; then 10, doubled up to 32
    # times.
    assert waits == [14, 24, 44, 84, 164, 324, 324, 324]
    assert changes(governor, 4 * 320, busy) == []
    assert until(THREE_QUARTERS, idle) == 164
    assert changes(governor, 4 * 160, network(30.0)) == []  # 19 here, 30 above
    assert until(HALF, busy) == 4  # that is no failed climb any more
    changes(governor, 8, busy)
    assert until(THREE_QUARTERS, idle) == 84


def test_frames_that_were_under_way_when_the_level_changed_do_not_count() -> None:
    governor = ladder()
    for _ in range(4):
        governor.observe(50.0, FULL)
    assert governor.level == THREE_QUARTERS
    for _ in range(20):
        assert governor.observe(50.0, FULL) is None
    assert governor.level == THREE_QUARTERS


def test_every_nth_frame_has_n_times_the_budget() -> None:
    policy = Policy(ladder=(Level(), Level(every_n=2)))
    governor = LadderGovernor(BUDGET, policy)
    assert changes(governor, 2000, at_every_level(50.0)) == [(4, 1)]
    # One network at one size: it costs above what it costs here.
    assert changes(governor, 2000, at_every_level(30.0)) == []
    assert changes(governor, 2000, at_every_level(26.0)) == [(124, 0)]


def test_with_n_times_the_budget_there_is_no_need_to_go_further_down() -> None:
    policy = Policy(ladder=(Level(), Level(every_n=2), Level(scale=0.5, every_n=2)))
    for work, levels in ((66.0, [1]), (67.0, [1, 2])):
        governor = LadderGovernor(BUDGET, policy)
        found = changes(governor, 500, at_every_level(work))
        assert [level for _, level in found] == levels


def test_without_a_budget_or_a_ladder_the_level_is_0_for_ever() -> None:
    assert changes(LadderGovernor(None, POLICY), 100, network(1e6)) == []
    alone = LadderGovernor(BUDGET, Policy(ladder=(Level(),)))
    assert changes(alone, 100, network(1e6)) == []


def test_what_is_no_time_is_left_out() -> None:
    governor = ladder()
    for _ in range(10):
        for nonsense in (float("nan"), float("inf"), -1.0):
            assert governor.observe(nonsense, FULL) is None
    assert governor.level == FULL


def test_reasons_name_times_frames_and_both_levels() -> None:
    governor = ladder()
    lines = [governor.observe(work, FULL) for work in (20.0, 41.0, 42.0, 21.0, 43.0, 44.0)]
    assert lines[:-1] == [None] * 5
    assert lines[-1] == (
        "work took 41.0 ms or more of 33.3 for 4 of 6 frames: level 0 (internal scale 1) -> 1"
        " (internal scale 0.75)"
    )
    up = None
    while up is None:
        up = governor.observe(10.0, THREE_QUARTERS)
    assert up == (
        "work is expected to take 17.8 ms of 33.3, for 120 frames now: level 1 (internal scale"
        " 0.75) -> 0 (internal scale 1)"
    )


SMALLER = Policy(ladder=(Level(), Level(bundle="small.topcoat")))


def test_another_networks_cost_is_what_was_measured() -> None:
    governor = LadderGovernor(BUDGET, SMALLER)

    def load(frame: int, level: int) -> float:
        busy = 2.0 if 300 < frame <= 700 else 1.0
        return busy * (24.0, 6.0)[level]

    # 48 ms, so down; 12 of 6 says that the machine is still busy, 6 that it is not.
    assert changes(LadderGovernor(BUDGET, SMALLER), 3000, load) == [(304, 1), (824, 0)]
    assert governor.level == 0


def test_a_slow_start_does_not_hold_another_network_down_for_ever() -> None:
    # Eight slow frames of a network that has room enough otherwise: its ratio is a wrong one.
    governor = LadderGovernor(BUDGET, SMALLER)

    def load(frame: int, level: int) -> float:
        return 60.0 if frame <= 8 and level == 0 else (20.0, 5.0)[level]

    found = changes(governor, 10_000, load)
    assert found == [(4, 1), (12 + 32 * 120 + 120, 0)]


def test_another_network_that_does_not_fit_is_tried_ever_more_rarely() -> None:
    governor = LadderGovernor(BUDGET, SMALLER)
    found = changes(governor, 30_000, lambda frame, level: (60.0, 5.0)[level])
    ups = [frame for frame, level in found if level == 0]
    assert ups == [3972, 11784, 27276]
    assert all((up + 4, 1) in found for up in ups)  # four late frames each


def test_after_it_has_held_another_network_is_tried_as_soon_as_at_first() -> None:
    governor = LadderGovernor(BUDGET, SMALLER)

    def busy(frame: int, level: int) -> float:
        return (60.0, 5.0)[level]

    failed = changes(governor, 20_000, busy)
    assert [frame for frame, level in failed if level == 0] == [3972, 11784]
    held = changes(governor, 10_000, lambda frame, level: (20.0, 5.0)[level])
    assert held == [(27276 - 20_000, 0)]
    again = changes(governor, 10_000, busy)
    assert again[:2] == [(4, 1), (3972, 0)]


def test_after_a_reset_costs_are_unknown_again() -> None:
    governor = ladder()
    changes(governor, 200, network(41.0))
    assert governor.level == THREE_QUARTERS
    governor.reset()
    assert governor.level == THREE_QUARTERS
    # The new network takes 12 ms here, so by its pixels 21 above.
    assert changes(governor, 200, at_every_level(12.0)) == [(127, FULL)]


@pytest.mark.parametrize("seed", range(4))
def test_a_wandering_load_stays_within_the_budget_without_restlessness(seed: int) -> None:
    rng = np.random.default_rng(seed)
    load = np.zeros(20_001)
    for frame in range(1, 20_001):  # half as much to twice as much, over some hundred frames
        load[frame] = load[frame - 1] * 0.998 + rng.normal(0, 0.03)
    load = np.exp(load) * rng.uniform(0.9, 1.1, 20_001)
    work = network(30.0, lambda frame: float(load[frame]))
    governor = ladder()
    late = moves = 0
    for frame in range(1, 20_001):
        level = governor.level
        took = work(frame, level)
        late += took > BUDGET * POLICY.ladder[level].every_n
        moves += governor.observe(took, level) is not None
    alone = sum(work(frame, FULL) > BUDGET for frame in range(1, 20_001))
    assert alone > 5000
    assert late < 0.01 * 20_000
    assert moves < 60


@given(st.lists(st.floats(0, 200), max_size=400), st.integers(1, 8), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_any_work_moves_it_by_one_level_at_a_time(
    works: list[float], down_after: int, up_after: int
) -> None:
    governor = LadderGovernor(BUDGET, Policy(down_after=down_after, up_after=up_after))
    for work in works:
        before = governor.level
        line = governor.observe(work, before)
        assert abs(governor.level - before) == (line is not None)
        assert 0 <= governor.level < len(POLICY.ladder)


def test_observing_takes_microseconds_and_keeps_no_memory() -> None:
    governor = ladder()
    works = network(41.0)
    begin = time.perf_counter()
    changes(governor, 2000, works)
    assert (time.perf_counter() - begin) / 2000 < 1e-4  # about 3 µs on an idle core

    def observe() -> None:
        governor.observe(20.0, governor.level)

    assert peak_growth(observe, 5000) < 2048


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_budgets_that_are_none_are_refused(budget: float) -> None:
    with pytest.raises(PassError, match=r"budget_ms is .*, wanted more than 0"):
        LadderGovernor(budget, POLICY)
