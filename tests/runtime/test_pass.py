"""Render passes on a fake clock: which picture comes for which frame, and what it is said to be."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from tests.runtime.fake_pass import FakeClock, Script, ScriptedSource, picture, styled
from topcoat.runtime import FrameError, PassClosedError, PassError
from topcoat.runtime.render_pass import (
    Depth,
    Event,
    Layout,
    Level,
    Motion,
    Pass,
    Policy,
    RenderFrame,
    Result,
    Status,
)
from topcoat.runtime.render_pass._warp import Warper
from topcoat.runtime.stability import Scene

CameraMove = Literal["static", "pan", "tilt", "truck", "pedestal", "dolly", "walk"]

MakePass = Callable[..., Pass]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(clock: FakeClock) -> Iterator[MakePass]:
    """Make passes that are ready for pictures of 24x32, on the fake clock."""
    made: list[Pass] = []

    def build(*scripts: Script, scale: int = 1, ready: bool = True, **options: object) -> Pass:
        subject = Pass(ScriptedSource(*scripts, scale=scale), clock=clock, **options)  # type: ignore[arg-type]
        clock.watch(subject)
        made.append(subject)
        if ready:
            subject.prepare().wait()
        return subject

    yield build
    clock.advance(1e6)
    for subject in made:
        for script in subject._loader.source.scripts:  # type: ignore[attr-defined]
            script.release()
        subject.close()


def test_a_live_pass_gives_the_result_of_the_frame_before(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [0.005]))
    frames = [picture(seed) for seed in range(5)]
    seen = []
    for frame in frames:
        seen.append(subject.present(frame))
        clock.advance(0.016)
    assert [one.status for one in seen] == [Status.PASSTHROUGH] + [Status.FRESH] * 4
    assert [one.age_frames for one in seen] == [0, 1, 1, 1, 1]
    assert [one.index for one in seen] == [0, 0, 1, 2, 3]
    assert np.array_equal(seen[-1].image, styled(frames[3]))


def test_present_never_waits_for_the_network_in_live_mode(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [10.0]), policy=Policy(hang_ms=60_000))
    for seed in range(20):
        before = clock.now()
        subject.present(picture(seed))
        assert clock.now() == before
        clock.advance(0.016)


def test_of_frames_that_wait_only_the_newest_is_run(make: MakePass, clock: FakeClock) -> None:
    script = Script(clock, [0.040])
    subject = make(script)
    seen = []
    for seed in range(12):
        seen.append(subject.present(picture(seed)))
        clock.advance(0.016)
    fresh = [one.index for one in seen if one.status is Status.FRESH]
    assert fresh == sorted(set(fresh))
    assert script.runs < 7
    assert subject.stats().dropped >= 4
    assert max(one.age_frames for one in seen) <= 6  # one is run, the next waits for it


def test_while_the_network_works_the_last_result_is_shown_again(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, [0.001, 10.0]), policy=Policy(max_age=3, hang_ms=60_000))
    frames = [picture(seed) for seed in range(8)]
    seen = []
    for frame in frames:
        result = subject.present(frame)
        seen.append((result, result.image.copy()))
        clock.advance(0.016)
    names = [result.status.name for result, _ in seen]
    assert names == ["PASSTHROUGH", "FRESH", "REUSED", "REUSED"] + ["PASSTHROUGH"] * 4
    assert [result.age_frames for result, _ in seen[1:4]] == [1, 2, 3]
    for _, image in seen[1:4]:
        assert np.array_equal(image, styled(frames[0]))
    assert np.array_equal(seen[5][1], frames[5])
    assert "still at work" in seen[2][0].reason


def test_an_older_result_is_moved_by_the_motion_vectors(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [0.001, 10.0]), policy=Policy(hang_ms=60_000))
    still = picture()
    moves = np.zeros((24, 32, 2), np.float32)
    moves[..., 0] = -2  # everything goes two pixels to the right each frame
    seen = []
    for number in range(4):
        frame = RenderFrame(
            color=np.roll(still, 2 * number, axis=1), motion=Motion(data=moves), index=number
        )
        seen.append(subject.present(frame))
        image = seen[-1].image
        if number >= 2:
            assert seen[-1].status is Status.WARPED
            shift = 2 * number
            assert np.array_equal(
                image[:, shift:], np.roll(styled(still), shift, axis=1)[:, shift:]
            )
        clock.advance(0.016)


def test_motion_of_the_other_direction_and_scale_moves_the_same_way(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, [0.001, 10.0]), policy=Policy(hang_ms=60_000))
    still = picture()
    moves = np.zeros((24, 32, 2), np.float16)
    moves[..., 0] = 2 / 32  # in texture coordinates, forwards
    motion = Motion(data=moves, scale=(32, 24), direction="from-previous")
    for number in range(3):
        result = subject.present(
            RenderFrame(color=np.roll(still, 2 * number, axis=1), motion=motion)
        )
        clock.advance(0.016)
    assert result.status is Status.WARPED
    assert np.array_equal(result.image[:, 4:], np.roll(styled(still), 4, axis=1)[:, 4:])


def test_nothing_is_moved_across_a_camera_cut(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [0.001, 10.0]), policy=Policy(hang_ms=60_000))
    motion = Motion(data=np.zeros((24, 32, 2), np.float32))
    for number in range(3):
        result = subject.present(
            RenderFrame(color=picture(number), motion=motion, reset=number == 2)
        )
        clock.advance(0.016)
    assert result.status is Status.PASSTHROUGH  # what was made shows what is not there any more


def test_a_sync_pass_gives_every_frame_its_own_result(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [0.020]), mode="sync")
    for seed in range(4):
        result = subject.present(picture(seed))
        assert (result.status, result.age_frames, result.index) == (Status.FRESH, 0, seed)
        assert np.array_equal(result.image, styled(picture(seed)))
    assert clock.now() == pytest.approx(0.080)


def test_a_sync_pass_waits_no_longer_than_its_budget(make: MakePass, clock: FakeClock) -> None:
    policy = Policy(ladder=(Level(),))
    subject = make(Script(clock, [0.005, 0.050, 0.005]), mode="sync", budget_ms=16, policy=policy)
    first = subject.present(picture(0))
    begin = clock.now()
    late = subject.present(picture(1))
    assert clock.now() - begin == pytest.approx(0.016)
    assert (first.status, late.status, late.index) == (Status.FRESH, Status.REUSED, 0)
    clock.advance(0.1)
    after = subject.present(picture(2))
    assert (after.status, after.index, after.age_frames) == (Status.FRESH, 2, 0)


def test_a_sync_pass_may_be_told_to_wait_however_late(make: MakePass, clock: FakeClock) -> None:
    policy = Policy(late="wait", ladder=(Level(),))
    subject = make(Script(clock, [0.050]), mode="sync", budget_ms=16, policy=policy)
    result = subject.present(picture(3))
    assert (result.status, result.index) == (Status.FRESH, 0)
    assert np.array_equal(result.image, styled(picture(3)))


def test_file_mode_loses_nothing_and_keeps_the_order(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [0.030, 0.001, 0.020, 0.0]), mode="file", policy=Policy(queue=3))
    seen: list[Result] = []
    for seed in range(9):
        if seed >= 3:
            result = subject.collect()
            assert result is not None
            assert np.array_equal(result.image, styled(picture(seed - 3)))
            seen.append(result)
        assert subject.submit(picture(seed))
    with pytest.raises(PassError, match="3 frames are submitted and not collected"):
        subject.submit(picture(9))
    while (result := subject.collect()) is not None:
        seen.append(result)
    assert [one.index for one in seen] == list(range(9))
    assert {one.status for one in seen} == {Status.FRESH}
    assert subject.stats().dropped == 0


def test_file_mode_can_look_whether_a_frame_is_finished(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [0.030]), mode="file")
    assert subject.collect() is None
    subject.submit(picture())
    assert subject.collect(wait=False) is None
    with pytest.raises(PassError, match="not collected"):
        subject.present(picture(1))
    clock.advance(0.031)
    result = subject.collect(wait=False)
    assert result is not None
    assert np.array_equal(result.image, styled(picture()))


def test_strength_zero_is_the_frame_bit_for_bit_and_runs_nothing(
    make: MakePass, clock: FakeClock
) -> None:
    script = Script(clock)
    subject = make(script)
    subject.set(strength=0)
    frame = picture()
    result = subject.present(frame)
    out = np.empty_like(frame)
    copied = subject.present(frame, out)
    clock.advance(1)
    assert result.image is frame
    assert np.array_equal(copied.image, frame)
    assert copied.image is out
    assert (result.status, script.runs) == (Status.PASSTHROUGH, 0)


def test_strength_mask_and_blend_count_from_the_next_frame_on(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, shift=100), mode="sync")
    dark = np.zeros((24, 32, 3), np.uint8)
    assert (subject.present(dark).image == 100).all()
    subject.set(strength=0.5)
    assert (subject.present(dark).image == 50).all()
    mask = np.zeros((24, 32), np.uint8)
    mask[:, :16] = 255
    subject.set(strength=1.0, mask=mask)
    image = subject.present(dark).image
    assert (image[:, :16] == 100).all()
    assert not image[:, 16:].any()
    mask[...] = 0  # it was copied
    assert (subject.present(dark).image[:, :16] == 100).all()
    subject.set(mask="none", blend="colour")
    assert not subject.present(dark).image.any()  # grey has no colour to give
    with pytest.raises(PassError, match=r"strength is 1\.5"):
        subject.set(strength=1.5, blend="normal")
    assert not subject.present(dark).image.any()  # nothing has changed


def test_a_mask_of_a_bottom_up_frame_is_bottom_up(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, shift=100), mode="sync")
    mask = np.zeros((24, 32), np.uint8)
    mask[:8] = 255
    frame = np.zeros((24, 32, 4), np.uint8)
    layout = Layout(format="rgba8", origin="bottom-left")
    image = subject.present(RenderFrame(color=frame, layout=layout, mask=mask)).image
    assert (image[:8, :, :3] == 100).all()
    assert not image[8:, :, :3].any()


def test_results_come_in_the_layout_of_the_frame_with_its_alpha(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock), mode="live")
    layout = Layout(format="bgra8")
    frames = [picture(seed, channels=4) for seed in range(3)]
    for frame in frames:
        result = subject.present(RenderFrame(color=frame.copy(), layout=layout))
        clock.advance(0.01)
    assert result.status is Status.FRESH
    assert np.array_equal(result.image[..., 3], frames[1][..., 3])  # of its own frame
    assert np.array_equal(result.image[..., :3], styled(frames[1][..., :3]))


def test_the_picture_may_be_written_over_the_frame(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock), mode="sync")
    frame = picture()
    result = subject.present(frame, frame)
    assert result.image is frame
    assert np.array_equal(frame, styled(picture()))


def test_a_picture_holds_until_the_call_after_the_next(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock))
    held: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = []
    for seed in range(10):
        image = subject.present(picture(seed)).image
        clock.advance(0.01)
        for before, copied in held[-1:]:
            assert np.array_equal(before, copied)
        held.append((image, image.copy()))


def test_without_a_budget_the_quality_stays(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [0.5]), mode="sync")
    assert {subject.present(picture(seed)).level for seed in range(30)} == {0}


def test_over_budget_results_are_made_more_cheaply_and_said_to_be(
    make: MakePass, clock: FakeClock
) -> None:
    events: list[Event] = []
    policy = Policy(ladder=(Level(), Level(scale=0.5)), up_after=10, late="wait")
    script = Script(clock, [0.040])
    subject = make(script, mode="sync", budget_ms=30, policy=policy, on_event=events.append)
    seen = [subject.present(picture(seed)) for seed in range(10)]
    assert seen[0].status is Status.FRESH
    assert (seen[-1].status, seen[-1].level) == (Status.DEGRADED, 1)
    assert "internal scale 0.5" in seen[-1].reason
    script.then(0.001)
    for seed in range(40):
        last = subject.present(picture(seed))
    assert (last.status, last.level) == (Status.FRESH, 0)
    assert [event.kind for event in events if event.kind == "level"] == ["level", "level"]


def test_at_a_level_of_every_second_frame_the_others_show_an_older_result(
    make: MakePass, clock: FakeClock
) -> None:
    script = Script(clock, [0.001])
    policy = Policy(ladder=(Level(every_n=2),))
    subject = make(script, budget_ms=16, policy=policy)
    seen = []
    for seed in range(8):
        seen.append(subject.present(picture(seed)))
        clock.advance(0.016)
    assert script.runs == 4
    assert [one.status.name for one in seen[2:]] == ["REUSED", "FRESH"] * 3
    assert {one.reason for one in seen[2::2]} == {"one frame in 2 is run"}


def test_frames_pass_through_until_the_engine_is_loaded(make: MakePass, clock: FakeClock) -> None:
    events: list[Event] = []
    subject = make(Script(clock, load=0.1), ready=False, on_event=events.append)
    seen = []
    for seed in range(10):
        seen.append(subject.present(picture(seed)))
        clock.advance(0.016)
    first = seen[0]
    assert first.status is Status.PASSTHROUGH
    assert "is being prepared" in first.reason
    assert np.array_equal(first.image, picture(0))
    assert seen[-1].status is Status.FRESH
    assert [event.kind for event in events] == ["ready"]


def test_a_preparation_says_how_far_it_is_and_can_be_given_up(
    make: MakePass, clock: FakeClock
) -> None:
    script = Script(clock, load=0.1)
    subject = make(script, ready=False)
    preparation = subject.prepare((24, 32))
    clock.advance(0)
    states = [preparation.state]
    assert 0 < preparation.progress < 1
    preparation.cancel()
    clock.advance(0.2)
    states.append(preparation.state)
    assert states == ["loading", "cancelled"]
    assert script.closed == 1


def test_what_cannot_be_loaded_is_tried_again_later(make: MakePass, clock: FakeClock) -> None:
    script = Script(clock, load=ValueError("no such engine"))
    events: list[Event] = []
    policy = Policy(retry_s=1.0)
    subject = make(script, ready=False, policy=policy, on_event=events.append)
    for seed in range(5):
        result = subject.present(picture(seed))
        clock.advance(0.016)
    assert result.status is Status.PASSTHROUGH
    assert "no such engine" in result.reason
    assert script.opened == 1
    script.load = 0.0
    clock.advance(1.0)
    for seed in range(5):
        result = subject.present(picture(seed))
        clock.advance(0.016)
    assert result.status is Status.FRESH
    assert [event.kind for event in events] == ["failed", "ready"]


def test_a_swap_shows_the_old_picture_until_the_first_new_one(
    make: MakePass, clock: FakeClock
) -> None:
    old = Script(clock, [0.002])
    new = Script(clock, [0.002], load=0.1, shift=90)
    events: list[Event] = []
    subject = make(old, on_event=events.append)
    shifts = []
    preparation = None
    for seed in range(20):
        if seed == 4:
            preparation = subject.swap_source(ScriptedSource(new, name="other"))
        result = subject.present(picture(seed))
        if seed:
            assert result.status is Status.FRESH
            assert result.age_frames == 1
            shifts.append((int(result.image[0, 0, 0]) - int(picture(seed - 1)[0, 0, 0])) % 256)
        clock.advance(0.016)
    assert preparation is not None
    assert preparation.state == "ready"
    assert sorted(shifts) == shifts
    assert set(shifts) == {40, 90}
    assert (old.closed, new.closed) == (1, 0)
    assert [event.kind for event in events] == ["ready", "swapped"]


def test_a_bundle_of_another_scale_cannot_be_swapped_in(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock))
    with pytest.raises(PassError, match="2 times as large"):
        subject.swap_source(ScriptedSource(Script(clock), name="larger", scale=2))
    subject.present(picture())
    clock.advance(0.01)
    assert subject.present(picture(1)).status is Status.FRESH


def test_a_swap_that_fails_changes_nothing(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock))
    preparation = subject.swap_source(
        ScriptedSource(Script(clock, load=ValueError("damaged")), name="other")
    )
    with pytest.raises(RuntimeError, match="damaged"):
        preparation.wait(10)
    for seed in range(3):
        result = subject.present(picture(seed))
        clock.advance(0.01)
    assert np.array_equal(result.image, styled(picture(1)))


def test_of_two_swaps_the_later_one_counts(make: MakePass, clock: FakeClock) -> None:
    scripts = [Script(clock, load=0.1 * n, shift=60 + n) for n in (3, 1)]
    subject = make(Script(clock))
    first, second = (subject.swap_source(ScriptedSource(one)) for one in scripts)
    clock.advance(1)
    for seed in range(3):
        result = subject.present(picture(seed))
        clock.advance(0.01)
    assert (first.state, second.state) == ("cancelled", "ready")
    assert np.array_equal(result.image, styled(picture(1), 61))
    assert scripts[0].closed == 1


def test_a_frame_of_another_size_never_shows_a_picture_of_the_old_one(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, [0.004]))
    rng = np.random.default_rng(0)
    for seed in range(60):
        height, width = (24, 32) if rng.random() < 0.5 else (30, 18)
        frame = picture(seed, height, width)
        result = subject.present(frame)
        assert result.image.shape == frame.shape
        clock.advance(0.003)
    assert subject.stats().frames == 60


def test_what_enlarges_passes_frames_through_enlarged(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock), scale=2, ready=False)
    result = subject.present(picture())
    assert result.status is Status.PASSTHROUGH
    assert np.array_equal(result.image, styled(picture(), 0, 2))
    clock.advance(0.01)
    subject.present(picture(1))
    clock.advance(0.01)
    result = subject.present(picture(2))
    assert np.array_equal(result.image, styled(picture(1), 40, 2))


def test_an_index_that_goes_back_is_told_once_and_drops_the_history(
    make: MakePass, clock: FakeClock
) -> None:
    events: list[Event] = []
    subject = make(Script(clock), on_event=events.append)
    for index in (10, 11, 5, 6, 2, 3):
        result = subject.present(RenderFrame(color=picture(index), index=index))
        clock.advance(0.01)
    told = [event.text for event in events if event.kind == "input"]
    assert len(told) == 1
    assert "from 11 to 5" in told[0]
    assert result.index == 2


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (np.zeros((25, 32, 2), np.float32), "32x25 vectors for a frame of 32x24"),
        (np.zeros((24, 32, 2)), "dtype float64"),
        (np.zeros((24, 32), np.float32), "wanted \\(h, w, 2\\)"),
        ("no array", "motion is str"),
    ],
)
def test_motion_that_does_not_fit_is_told_once_and_left_out(
    make: MakePass, clock: FakeClock, data: object, told: str
) -> None:
    events: list[Event] = []
    subject = make(Script(clock), on_event=events.append)
    subject.set(stabilise=0.5)
    motion = Motion(data=data)  # type: ignore[arg-type]
    for seed in range(5):
        result = subject.present(RenderFrame(color=picture(seed), motion=motion))
        clock.advance(0.01)
    assert result.status is Status.FRESH
    lines = [event.text for event in events if event.kind == "input"]
    assert len(lines) == 1
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(lines[0])


def test_a_closed_pass_says_so_and_has_freed_its_engines(make: MakePass, clock: FakeClock) -> None:
    script = Script(clock)
    subject = make(script)
    subject.present(picture())
    clock.advance(0.01)
    subject.close()
    subject.close()
    assert script.closed == 1
    for call in (
        lambda: subject.present(picture()),
        lambda: subject.submit(picture()),
        subject.reset,
        subject.prepare,
    ):
        with pytest.raises(PassClosedError, match="was closed"):
            call()


def test_a_frame_whose_colour_cannot_be_used_is_refused(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock))
    with pytest.raises(FrameError, match="float64"):
        subject.present(np.zeros((24, 32, 3)))  # type: ignore[arg-type]
    with pytest.raises(FrameError, match="out"):
        subject.present(picture(), np.empty((24, 31, 3), np.uint8))
    subject.present(picture())
    clock.advance(0.01)
    assert subject.present(picture()).status is Status.FRESH


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"budget_ms": 0}, "budget_ms is 0"),
        ({"budget_ms": "16"}, "budget_ms is '16'"),
        ({"policy": Policy(late="wait")}, "never waits"),
    ],
)
def test_wrong_settings_are_refused(clock: FakeClock, wrong: dict[str, object], told: str) -> None:
    with pytest.raises(PassError, match=told):
        Pass(ScriptedSource(Script(clock)), clock=clock, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"late": "never"},
        {"max_age": -1},
        {"hang_ms": 0},
        {"start_ms": None},
        {"ladder": ()},
        {"headroom": 1.5},
        {"down_after": 9, "window": 8},
    ],
)
def test_a_wrong_policy_is_refused(wrong: dict[str, object]) -> None:
    (name, *_) = wrong
    with pytest.raises(PassError, match=name):
        Policy(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"scale": "1"}, {"scale": 0}, {"every_n": 1.5}, {"every_n": 0}])
def test_a_wrong_level_is_refused(wrong: dict[str, object]) -> None:
    (name, *_) = wrong
    with pytest.raises(PassError, match=name):
        Level(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"strength": "0.5"}, {"stabilise": 2}, {"blend": "add"}, {"mask": "all"}, {"mask": [[1]]}],
)
def test_a_wrong_setting_is_refused_and_changes_nothing(
    make: MakePass, clock: FakeClock, wrong: dict[str, Any]
) -> None:
    subject = make(Script(clock), mode="sync")
    (name, *_) = wrong
    with pytest.raises(PassError, match=name):
        subject.set(**{"strength": 0.0, **wrong})
    assert subject.present(picture()).status is Status.FRESH


def test_the_stages_of_a_frame_add_up_to_its_work(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock, [0.007]), mode="sync")
    timings = subject.present(picture()).timings
    assert timings.infer == pytest.approx(7.0)
    assert timings.work == pytest.approx(7.0)
    assert timings.wait == pytest.approx(7.0)
    assert timings.present == pytest.approx(7.0)


def test_explain_names_engines_levels_copies_and_complaints(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock), Script(clock), budget_ms=16)
    assert "no frame has come yet" in subject.explain()
    motion = Motion(data=np.zeros((3, 3, 2), np.float32))
    subject.set(stabilise=1)
    layout = Layout(format="bgra8")
    subject.present(RenderFrame(color=picture(channels=4), layout=layout, motion=motion))
    clock.advance(0.01)
    text = subject.explain()
    for part in (
        "scripted-0: loaded",
        "scripted-1: loaded when it is needed",
        "-> 0: internal scale 1",
        "frame (bgra8) to the network's RGB",
        "3x3 vectors for a frame of 32x24",
    ):
        assert part in text


def test_an_engine_that_fails_while_it_is_warmed_makes_room_for_the_next(
    make: MakePass, clock: FakeClock
) -> None:
    events: list[Event] = []
    bad, good = Script(clock, [ValueError("no kernel")]), Script(clock, shift=90)
    subject = make(bad, good, ready=False, on_event=events.append)
    assert subject.prepare((24, 32)).wait(10).state == "ready"
    subject.present(picture())
    clock.advance(0.01)
    result = subject.present(picture(1))
    assert result.status is Status.FRESH
    assert np.array_equal(result.image, styled(picture(), 90))
    assert [event.kind for event in events] == ["demoted", "ready"]


def test_a_program_that_ends_while_an_engine_loads_waits_for_it(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    # Ended inside an engine's own code, the thread would abort the process.
    program = """
import sys, time
from pathlib import Path
from typing import Any, Literal
from topcoat.runtime.bundle import SizeRule
from topcoat.runtime.render_pass import Pass

class Slow:
    name, scale, memory_per_pixel = "slow", 1, None
    size = SizeRule(multiple=1, min=1, max=None, pad="edge")
    def open(self):
        time.sleep(0.3)
        Path(sys.argv[1]).write_text("came back")
        return []

Pass(Slow()).prepare()
"""
    marker = tmp_path / "marker"
    done = run_python("-c", program, str(marker))
    assert done.returncode == 0, done.stderr
    assert marker.read_text() == "came back"


@pytest.mark.parametrize(
    ("camera", "motion_scale", "inverted", "told"),
    [
        ("walk", (1, 1), False, None),
        ("walk", (-1, -1), False, "motion vectors look negated"),
        ("walk", (1, -1), False, "motion vectors look upside down"),
        ("truck", (1, 1), True, "depth looks inverted"),
    ],
)
def test_motion_and_depth_that_the_pictures_contradict_are_told_in_one_line(
    make: MakePass,
    clock: FakeClock,
    camera: CameraMove,
    motion_scale: tuple[float, float],
    inverted: bool,
    told: str | None,
) -> None:
    events: list[Event] = []
    subject = make(Script(clock), on_event=events.append, policy=Policy(check_every=2))
    scene = Scene(camera=camera, speed=2.0)
    for number in range(10, 16):
        view = scene.render(number, 320, 180)
        near = np.float32(0.1) / view.depth  # reversed z
        frame = RenderFrame(
            color=view.colour,
            motion=Motion(data=view.motion, scale=motion_scale),
            depth=Depth(data=near, inverted=not inverted),
        )
        assert subject.present(frame).image.shape == (180, 320, 3)
        clock.advance(0.01)
    lines = [event.text for event in events if event.kind == "input"]
    assert len(lines) == (told is not None)
    assert told is None or lines[0].startswith(told)


def test_a_result_that_is_too_old_is_not_shown_although_it_is_new(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, [0.3]), policy=Policy(max_age=4))
    seen = []
    for seed in range(60):
        seen.append(subject.present(picture(seed)))
        clock.advance(0.016)
    assert {one.status for one in seen} == {Status.PASSTHROUGH}
    assert any("frames old, and max_age 4" in one.reason for one in seen)


def test_a_moved_picture_has_the_alpha_of_the_present_frame(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, [0.001, 10.0]), policy=Policy(hang_ms=60_000))
    still = picture(channels=4)
    moves = np.zeros((24, 32, 2), np.float32)
    moves[..., 0] = -2
    for number in range(3):
        color = np.roll(still, 2 * number, axis=1)
        result = subject.present(
            RenderFrame(color=color, layout=Layout(format="rgba8"), motion=Motion(data=moves))
        )
        clock.advance(0.016)
    assert result.status is Status.WARPED
    assert np.array_equal(result.image[..., 3], color[..., 3])
    assert np.array_equal(result.image[:, 4:, :3], styled(color[..., :3])[:, 4:])


def test_a_picture_of_the_pass_cannot_be_drawn_into(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock), mode="sync")
    image = subject.present(picture()).image
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0] = 0  # it would be in the picture when that is shown again


def test_a_result_is_decoded_with_the_exposure_of_its_own_frame(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, shift=0))
    light = np.full((24, 32, 3), 0.1, np.float32)
    for exposure in (1.0, 4.0, 0.5, 2.0):
        layout = Layout(format="rgb32f", color_space="linear", exposure=exposure)
        result = subject.present(RenderFrame(color=light, layout=layout))
        assert np.allclose(result.image, 0.1, rtol=0.03)
        clock.advance(0.016)
    assert result.status is Status.FRESH


@pytest.mark.parametrize("off", [1, 3, 100])
def test_after_strength_zero_nothing_older_is_shown(
    make: MakePass, clock: FakeClock, off: int
) -> None:
    subject = make(Script(clock, [0.010]))
    for seed in range(12 + off):
        subject.set(strength=0 if 4 <= seed < 4 + off else 1)
        result = subject.present(picture(seed))
        if seed >= 4 + off:
            assert result.index >= 4 + off
        clock.advance(0.004)
    assert result.status is Status.REUSED or result.status is Status.FRESH


def test_frames_that_were_left_out_break_the_chain_of_motion_and_are_told_once(
    make: MakePass, clock: FakeClock
) -> None:
    events: list[Event] = []
    script = Script(clock, [0.001, 10.0])
    subject = make(script, policy=Policy(hang_ms=60_000), on_event=events.append)
    motion = Motion(data=np.zeros((24, 32, 2), np.float32))
    seen = []
    for index in (0, 1, 2, 6, 9):
        seen.append(subject.present(RenderFrame(color=picture(), motion=motion, index=index)))
        clock.advance(0.016)
    assert [one.status.name for one in seen[2:]] == ["WARPED", "REUSED", "REUSED"]
    told = [event.text for event in events if event.kind == "input"]
    assert len(told) == 1
    assert "from 2 to 6" in told[0]


def test_frames_of_two_pitches_in_turns_are_styled_like_others(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock))
    padded = np.zeros((24, 40, 3), np.uint8)
    seen = []
    for seed in range(12):
        color = picture(seed)
        if seed % 2:
            padded[:, :32] = color
            color = padded[:, :32]
        seen.append(subject.present(color))
        clock.advance(0.01)
    assert {one.status for one in seen[1:]} == {Status.FRESH}
    assert np.array_equal(seen[-1].image, styled(picture(10)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"motion": np.zeros((24, 32, 2), np.float32)},
        {"motion": {}},
        {"motion": Motion(data=np.zeros((24, 32, 2), np.float32), scale=3.0)},  # type: ignore[arg-type]
        {"motion": Motion(data=np.zeros((24, 32, 2), np.float32), scale=("a", "b"))},  # type: ignore[arg-type]
        {"depth": np.zeros((24, 32), np.float32)},
        {"depth": [1.0]},
        {"mask": "all"},
        {"mask": np.zeros((24, 31), np.uint8)},
    ],
)
def test_side_inputs_that_are_none_cost_no_picture_and_are_told_once(
    make: MakePass, clock: FakeClock, wrong: dict[str, Any]
) -> None:
    events: list[Event] = []
    subject = make(Script(clock), mode="sync", on_event=events.append)
    subject.set(stabilise=0.5)
    for seed in range(4):
        result = subject.present(RenderFrame(color=picture(seed), **wrong))
        assert result.status is Status.FRESH
    assert [event.kind for event in events] == ["ready", "input"]


def test_side_inputs_of_changing_wrong_sizes_are_told_once(
    make: MakePass, clock: FakeClock
) -> None:
    events: list[Event] = []
    subject = make(Script(clock), on_event=events.append)
    for rows in range(100, 400):
        motion = Motion(data=np.zeros((rows, 7, 2), np.float32))
        subject.present(RenderFrame(color=picture(), motion=motion))
    assert len([event for event in events if event.kind == "input"]) == 1


@pytest.mark.parametrize("values", [3e38, 1e-42, np.inf, np.nan])
def test_hostile_motion_obeys_no_error_state_of_the_application(
    make: MakePass, clock: FakeClock, values: float
) -> None:
    subject = make(Script(clock, [0.001, 10.0]), policy=Policy(hang_ms=60_000))
    subject.set(stabilise=0.5)
    motion = Motion(data=np.full((24, 32, 2), values, np.float32), scale=(32, 24))
    with np.errstate(all="raise"):
        for seed in range(4):
            result = subject.present(RenderFrame(color=picture(seed), motion=motion))
            assert result.image.shape == (24, 32, 3)
            clock.advance(0.016)


def test_a_refused_frame_is_not_counted(make: MakePass, clock: FakeClock) -> None:
    events: list[Event] = []
    subject = make(Script(clock), on_event=events.append)
    for index in range(3):
        frame = RenderFrame(color=picture(index), index=index)
        with pytest.raises(FrameError):
            subject.present(frame, np.empty((1, 1, 3), np.uint8))
        result = subject.present(frame)
        clock.advance(0.01)
    assert (result.status, result.index, result.age_frames) == (Status.FRESH, 1, 1)
    assert [event.kind for event in events] == ["ready"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"layout": "rgb8"}, "wanted Layout"), ({"index": "3"}, "index"), ({"index": 1.5}, "index")],
)
def test_a_layout_or_index_that_is_none_is_refused(
    make: MakePass, clock: FakeClock, wrong: dict[str, Any], told: str
) -> None:
    subject = make(Script(clock))
    with pytest.raises(FrameError, match=told):
        subject.present(RenderFrame(color=picture(), **wrong))


def test_file_mode_gives_frames_that_were_not_run_in_their_turn(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, [0.01]), mode="file")
    assert subject.submit(picture(0))
    subject.set(strength=0)
    assert not subject.submit(picture(1))
    subject.set(strength=1)
    assert subject.submit(picture(2))
    seen = []
    while (result := subject.collect()) is not None:
        seen.append((result.index, result.status.name, result.image.copy()))
    assert [one[:2] for one in seen] == [(0, "FRESH"), (1, "PASSTHROUGH"), (2, "FRESH")]
    assert np.array_equal(seen[1][2], picture(1))


def test_what_fails_in_file_mode_is_the_application_s_own_pixels(
    make: MakePass, clock: FakeClock
) -> None:
    subject = make(Script(clock, [ValueError("broken")]), mode="file")
    light = np.linspace(0, 3.5, 24 * 32 * 3, dtype=np.float32).reshape(24, 32, 3)
    subject.submit(RenderFrame(color=light, layout=Layout(format="rgb32f", color_space="linear")))
    result = subject.collect()
    assert result is not None
    assert result.status is Status.PASSTHROUGH
    assert np.array_equal(result.image, light)


def test_submit_and_collect_give_new_results_alone_in_live_mode(
    make: MakePass, clock: FakeClock
) -> None:
    script = Script(clock, [0.005])
    subject = make(script)
    assert subject.collect() is None
    seen = []
    for seed in range(4):
        subject.submit(RenderFrame(color=picture(seed), index=seed))
        clock.advance(0.006)
        result = subject.collect()
        assert result is not None
        seen.append((result.index, result.age_frames))
        assert subject.collect(wait=False) is None
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_present_of_a_submitted_frame_only_delivers(make: MakePass, clock: FakeClock) -> None:
    events: list[Event] = []
    script = Script(clock, [0.005])
    subject = make(script, on_event=events.append)
    for seed in range(4):
        frame = RenderFrame(color=picture(seed), index=seed)
        subject.submit(frame)
        clock.advance(0.006)
        result = subject.present(frame)
        assert (result.status, result.index, result.age_frames) == (Status.FRESH, seed, 0)
    assert script.runs == 4
    assert [event.kind for event in events] == ["ready"]


def test_debug_views_show_input_motion_and_history(make: MakePass, clock: FakeClock) -> None:
    subject = make(Script(clock))
    for what in ("input", "motion", "history"):
        with pytest.raises(PassError, match="no frame has come"):
            subject.debug_view(what)
    subject.set(stabilise=1)
    moves = np.zeros((24, 32, 2), np.float32)
    moves[..., 0] = -16
    for _ in range(3):
        subject.present(RenderFrame(color=picture(), motion=Motion(data=moves)))
        clock.advance(0.01)
    assert np.array_equal(subject.debug_view("input"), picture())
    red = subject.debug_view("motion")
    assert (red == (255, 0, 0)).all()
    assert subject.debug_view("history").shape == (24, 32, 3)
    with pytest.raises(PassError, match="wanted input"):
        subject.debug_view("depth")  # type: ignore[arg-type]


def test_a_result_is_not_moved_where_that_would_cost_a_third_of_the_budget(
    make: MakePass, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> None:
        clock.advance(0.011)

    monkeypatch.setattr(Warper, "warp", slow)
    policy = Policy(hang_ms=60_000, max_age=100, ladder=(Level(),))
    subject = make(Script(clock, [0.001, 100.0]), budget_ms=30, policy=policy)
    motion = Motion(data=np.zeros((24, 32, 2), np.float32))
    names = []
    for _ in range(5):
        names.append(subject.present(RenderFrame(color=picture(), motion=motion)).status.name)
        clock.advance(0.010)
    # The first one tells what it costs.
    assert names == ["PASSTHROUGH", "FRESH", "WARPED", "REUSED", "REUSED"]


@pytest.mark.parametrize("mode", ["sync", "file"])
def test_engines_that_are_trusted_run_on_the_calling_thread(
    make: MakePass, clock: FakeClock, mode: str
) -> None:
    threads: list[int] = []

    def note() -> None:
        threads.append(threading.get_ident())

    script = Script(clock, [note])
    subject = make(script, mode=mode, policy=Policy(hang_ms=None))
    for seed in range(5):
        result = subject.present(picture(seed))
        assert (result.status, result.index, result.age_frames) == (Status.FRESH, seed, 0)
        assert np.array_equal(result.image, styled(picture(seed)))
    assert set(threads) == {threading.get_ident()}


def test_a_trusted_engine_that_fails_is_demoted_like_any_other(
    make: MakePass, clock: FakeClock
) -> None:
    policy = Policy(hang_ms=None)
    subject = make(
        Script(clock, [ValueError("broken")]), Script(clock, shift=90), mode="sync", policy=policy
    )
    first, second = (subject.present(picture(seed)) for seed in range(2))
    assert (first.status, second.status) == (Status.PASSTHROUGH, Status.FRESH)
    assert np.array_equal(second.image, styled(picture(1), 90))


def test_ctrl_c_interrupts_a_frame_on_the_calling_thread_and_the_pass_goes_on(
    make: MakePass, clock: FakeClock
) -> None:
    script = Script(clock, [KeyboardInterrupt(), 0.0])
    subject = make(script, mode="sync", policy=Policy(hang_ms=None))
    with pytest.raises(KeyboardInterrupt):
        subject.present(picture())
    result = subject.present(picture(1))
    assert (result.status, result.index) == (Status.FRESH, 1)
