"""Which engine a render pass uses and when: trials beside frames, loading that hangs, leftovers."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.fake_pass import (
    FakeClock,
    Script,
    ScriptedSource,
    Step,
    broken,
    picture,
    styled,
)
from topcoat.runtime import BackendError, PassError
from topcoat.runtime.render_pass import (
    Event,
    Level,
    Motion,
    Pass,
    Policy,
    RenderFrame,
    Result,
    Status,
)
from topcoat.runtime.render_pass._preparation import at_low_priority
from topcoat.runtime.render_pass._stabiliser import Stabiliser

PERIOD = 1 / 30


class Stage:
    """Makes passes on one clock, shows frames, and ends what hangs."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []
        self.scripts: list[Script] = []
        self.passes: list[Pass] = []
        self._number = itertools.count()

    def script(self, *steps: Step, **options: object) -> Script:
        made = Script(self.clock, steps or (0.001,), **options)  # type: ignore[arg-type]
        self.scripts.append(made)
        return made

    def open(self, *scripts: Script, ready: bool = True, **options: object) -> Pass:
        policy = {"ladder": (Level(),)} | dict(options.pop("policy", {}))  # type: ignore[call-overload]
        subject = Pass(
            ScriptedSource(*scripts),
            policy=Policy(**policy),
            clock=self.clock,
            on_event=options.pop("on_event", self.events.append),  # type: ignore[arg-type]
            **options,  # type: ignore[arg-type]
        )
        self.clock.watch(subject)
        self.passes.append(subject)
        if ready:
            subject.prepare().wait()
        return subject

    def show(self, subject: Pass, frames: int, size: tuple[int, int] = (24, 32)) -> list[Result]:
        """Present frames, one each 1/30 s, and check that no picture is of another frame."""
        seen = []
        for _ in range(frames):
            result = subject.present(picture(next(self._number) % 7, *size))
            seen.append(result)
            self.clock.advance(PERIOD)
        return seen

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]

    def end(self) -> None:
        for script in self.scripts:
            script.release()
        for subject in self.passes:
            subject.close()
        for script in self.scripts:
            script.release()
        self.clock.advance(1e6)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.end()


def statuses(seen: list[Result]) -> set[str]:
    return {result.status.name for result in seen}


def wait_for(what: Callable[[], bool]) -> None:
    """Give real threads real time."""
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- trials -------------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", ["hang", 3.0])
def test_a_trial_of_a_failed_engine_costs_the_stand_in_no_frame(stage: Stage, trial: Step) -> None:
    best, spare = stage.script(broken(), trial, trial, 0.001), stage.script(shift=90)
    subject = stage.open(best, spare)
    stage.show(subject, 3)
    seen = stage.show(subject, 30 * 20)  # beyond the first rest of 5 s
    assert statuses(seen) == {"FRESH"}
    assert {result.engine for result in seen} == {"scripted-1"}
    assert max(result.age_frames for result in seen) == 1
    assert best.runs == (2 if trial == "hang" else 3)  # only the first frame may take 3 s
    assert len(stage.told("demoted")) == 1


def test_an_engine_whose_loading_takes_long_comes_back_without_a_gap(stage: Stage) -> None:
    best, spare = stage.script(broken(), 0.001), stage.script(shift=90)
    subject = stage.open(best, spare)
    best.load = 3.0
    stage.show(subject, 3)
    seen = stage.show(subject, 30 * 12)
    assert statuses(seen) == {"FRESH"}
    engines = [name for name, _ in itertools.groupby(result.engine for result in seen)]
    assert engines == ["scripted-1", "scripted-0"]
    assert stage.told("recovered") == ["scripted-0 works again"]


def test_while_the_only_engine_is_tried_frames_pass_through_and_say_so(stage: Stage) -> None:
    script = stage.script(broken(), "hang", 0.001)
    subject = stage.open(script, policy={"start_ms": 10_000})
    stage.show(subject, 30 * 6)
    seen = stage.show(subject, 30 * 20)
    assert statuses(seen) == {"PASSTHROUGH"}
    assert {result.reason for result in seen} == {
        "every engine that there is has failed: scripted-0 is being tried again"
    }
    assert "failed; it is being tried again" in subject.explain()
    assert subject._lane.hanging == 0  # the worker has nothing to do with it
    script.release()
    seen = stage.show(subject, 30 * 30)  # so late a return is a failure; after another rest it runs
    assert seen[-1].status is Status.FRESH
    assert (len(stage.told("demoted")), len(stage.told("recovered"))) == (1, 1)


def test_closing_while_a_trial_hangs_waits_for_nothing_and_leaves_nothing(stage: Stage) -> None:
    best, spare = stage.script(broken(), "hang", 0.0), stage.script(shift=90)
    subject = stage.open(best, spare)
    stage.show(subject, 30 * 7)
    before = stage.clock.now()
    subject.close()
    assert stage.clock.now() == before
    assert (spare.opened, spare.closed) == (1, 1)
    best.release()
    wait_for(lambda: best.closed == best.opened == 2)


def test_an_engine_that_fails_time_and_again_rests_longer_and_longer(stage: Stage) -> None:
    def flapping() -> Iterator[Step]:
        while True:
            yield from (0.001, 0.001, 0.001, 0.001, broken())

    best, spare = stage.script(), stage.script(shift=90)
    subject = stage.open(best, spare)
    best.endless(flapping())
    stage.show(subject, 30 * 120)
    demoted = stage.told("demoted")
    rests = [float(line.split(" in ")[1].split(" s ")[0]) for line in demoted]
    assert rests == [5, 10, 20, 40, 80]
    assert len(stage.told("recovered")) == 4


def test_an_engine_that_has_run_well_for_long_is_forgiven(stage: Stage) -> None:
    script = stage.script(broken(), 0.001)
    subject = stage.open(script)
    stage.show(subject, 30 * 20)
    script.then(broken(), 0.001)
    stage.show(subject, 10)
    assert [line.count("tried again in 5 s") for line in stage.told("demoted")] == [1, 1]


# --- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["load", "warm-up"])
def test_a_stand_in_serves_where_the_first_engine_never_gets_ready(
    stage: Stage, where: str
) -> None:
    best = stage.script(load="hang") if where == "load" else stage.script("hang")
    spare = stage.script(shift=90)
    subject = stage.open(best, spare, ready=False, policy={"start_ms": 10_000})
    seen = stage.show(subject, 30 * 25)
    assert (seen[-1].status, seen[-1].engine) == (Status.FRESH, "scripted-1")
    (line,) = stage.told("demoted")
    assert line.startswith("scripted-0 failed and is tried again in 5 s")
    assert "getting it ready has not come back for 10 s" in line
    assert stage.told("ready") == ["scripted is ready on scripted-1"]
    assert "scripted-0: hangs" in subject.explain()
    best.load = 0.0
    best.then(0.001)
    best.release()
    assert stage.show(subject, 30 * 10)[-1].engine == "scripted-0"


def test_who_waits_for_a_preparation_gets_the_stand_in_too(stage: Stage) -> None:
    best, spare = stage.script("hang"), stage.script(0.0, shift=90)
    subject = stage.open(best, spare, ready=False, policy={"start_ms": 1000})
    preparation = subject.prepare((24, 32))
    stage.clock.advance(1.5)
    assert preparation.wait(10).state == "ready"
    assert stage.told("ready") == ["scripted is ready on scripted-1"]


def test_loading_that_is_late_and_not_lost_is_used_after_all(stage: Stage) -> None:
    script = stage.script(load="hang")
    subject = stage.open(script, ready=False, policy={"start_ms": 1000})
    stage.show(subject, 45)
    script.load = 100.0
    script.release()
    stage.clock.advance(0)
    seen = stage.show(subject, 30)
    assert seen[-1].status is Status.FRESH


def test_another_size_is_warmed_beside_the_frames_that_run(stage: Stage) -> None:
    script = stage.script(0.001)
    subject = stage.open(script)
    stage.show(subject, 5)
    script.load = 3.0
    preparation = subject.prepare((90, 160))
    seen = stage.show(subject, 120)
    assert preparation.state == "ready"
    assert statuses(seen) == {"FRESH"}
    assert stage.told("demoted") == []
    wait_for(lambda: (script.opened, script.closed) == (2, 1))  # the warm one has taken over
    before = script.runs
    stage.show(subject, 3, (90, 160))
    assert script.runs == before + 3


def test_a_warm_up_of_another_size_that_hangs_costs_no_frame(stage: Stage) -> None:
    script = stage.script(0.001)
    subject = stage.open(script, policy={"start_ms": 5000})
    stage.show(subject, 5)
    script.load = "hang"
    preparation = subject.prepare((90, 160))
    seen = stage.show(subject, 30 * 10)
    assert statuses(seen) == {"FRESH"}
    assert preparation.state == "failed"
    assert len(stage.told("failed")) == 1
    assert "loading it aside has not come back for 5 s" in stage.told("failed")[0]
    assert stage.told("demoted") == []
    script.release()
    wait_for(lambda: (script.opened, script.closed) == (2, 1))


@pytest.mark.parametrize("size", [(24, 32), (48, 64)])
def test_closing_during_a_warm_up_blames_no_engine_and_loads_none(
    stage: Stage, size: tuple[int, int]
) -> None:
    best, spare = stage.script(1.0), stage.script(shift=90)
    subject = stage.open(best, spare, ready=size != (24, 32))
    preparation = subject.prepare(size)
    stage.clock.advance(0.5)
    before = stage.clock.now()
    subject.close()
    assert stage.clock.now() == before
    stage.clock.advance(10.0)
    wait_for(lambda: preparation.done)
    assert preparation.state == "cancelled"
    assert stage.told("demoted") == []
    wait_for(lambda: best.opened == best.closed)
    assert spare.opened == 0


def test_closing_while_a_warm_up_hangs_waits_for_nothing(stage: Stage) -> None:
    script = stage.script("hang")
    subject = stage.open(script, ready=False)
    subject.prepare((24, 32))
    stage.clock.advance(1.0)
    before = time.monotonic()
    subject.close()
    assert time.monotonic() - before < 2
    assert script.closed == 0
    script.release()
    script.then(0.0)
    wait_for(lambda: script.closed == 1)


# --- changes ------------------------------------------------------------------------------------


def test_in_file_mode_a_frame_is_run_by_the_bundle_of_its_submission(stage: Stage) -> None:
    old, new = stage.script(0.01), stage.script(0.01, shift=90)
    subject = stage.open(old, mode="file")
    for seed in range(3):
        subject.submit(picture(seed))
    subject.swap_source(ScriptedSource(new, name="other"), sizes=()).wait()
    subject.submit(picture(3))
    for seed, (engine, shift) in enumerate([("scripted-0", 40)] * 3 + [("other-0", 90)]):
        result = subject.collect()
        assert result is not None
        assert result.engine == engine
        assert np.array_equal(result.image, styled(picture(seed), shift))
    subject.present(picture(4))
    wait_for(lambda: old.closed == 1)
    assert new.closed == 0


def test_a_swap_before_the_one_before_was_used_frees_all_but_the_last(stage: Stage) -> None:
    scripts = [stage.script(shift=10 * n) for n in range(4)]
    subject = stage.open(scripts[0])
    stage.show(subject, 3)
    for number, script in enumerate(scripts[1:]):
        source = ScriptedSource(script, name=f"other{number}")
        subject.swap_source(source, sizes=()).wait()
        subject.prepare()
    assert stage.show(subject, 3)[-1].engine == "other2-0"
    wait_for(lambda: [one.closed for one in scripts] == [1, 1, 1, 0])


@pytest.mark.parametrize("on_error", ["passthrough", "raise"])
def test_what_fails_on_a_frame_of_the_old_size_is_no_news_of_the_new_one(
    stage: Stage, on_error: str
) -> None:
    script, spare = stage.script(0.001, broken(), 0.001), stage.script(shift=90)
    subject = stage.open(script, spare, policy={"on_error": on_error})
    stage.show(subject, 1)
    subject.present(picture(1))
    stage.clock.advance(0.001)
    seen = stage.show(subject, 5, (30, 18))
    assert "it broke" not in "".join(result.reason for result in seen)
    assert seen[-1].engine == "scripted-1"
    assert len(stage.told("demoted")) == 1
    assert subject.stats().failures == 1


# --- frames that are queued ---------------------------------------------------------------------


def test_queued_frames_are_made_steady_as_those_that_are_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    base = np.kron(rng.integers(40, 200, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    data = np.zeros((48, 64, 2), np.float32)
    data[..., 0] = -3
    frames = [
        RenderFrame(
            color=np.ascontiguousarray(np.roll(base, 3 * n, axis=1)),
            motion=Motion(data=data),
            index=n,
            reset=n == 7,
        )
        for n in range(16)
    ]
    calls: list[str] = []
    step = Stabiliser.step

    def look(self: Stabiliser, *args: object) -> object:
        calls.append("motion" if args[2] is not None else "none")
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Stabiliser, "step", look)
    images: list[list[np.ndarray]] = []
    ways: list[list[str]] = []
    for queued in (False, True):
        calls.clear()
        subject = stage.open(stage.script(0.004), mode="file")
        subject.set(stabilise=0.5)
        results: list[Result | None] = []
        made = images[len(images) :] = [[]]
        for number, frame in enumerate(frames):
            if not queued:
                made[0].append(subject.present(frame).image.copy())
                continue
            if number >= 4:
                results.append(subject.collect())
                assert results[-1] is not None
                made[0].append(results[-1].image.copy())
            subject.submit(frame)
        while (result := subject.collect()) is not None:
            made[0].append(result.image.copy())
        ways.append(list(calls))
    assert ways[0] == ways[1]
    assert ways[0].count("motion") >= 14
    for waited, other in zip(*images, strict=True):
        assert np.array_equal(waited, other)


def test_a_strobe_is_told_a_few_times(stage: Stage) -> None:
    subject = stage.open(stage.script())
    subject.set(stabilise=0.5)
    for number in range(100):
        subject.present(np.full((24, 32, 3), 255 * (number % 2), np.uint8))
        stage.clock.advance(PERIOD)
    assert len(stage.told("cut")) == 3
    assert stage.told("cut")[-1].endswith("further cuts are not told")


@pytest.mark.parametrize(("low", "high"), [(0, 8), (0, 40), (120, 130)])
def test_numbers_that_are_not_finite_are_found_on_dark_and_flat_frames_too(
    stage: Stage, low: int, high: int
) -> None:
    subject = stage.open(stage.script("nan"))
    frame = np.random.default_rng(0).integers(low, high + 1, (24, 32, 3), np.uint8)
    for _ in range(20):
        assert subject.present(frame).status is Status.PASSTHROUGH
        stage.clock.advance(PERIOD)
    assert "the network's numbers are not finite" in stage.told("demoted")[0]


def test_a_network_may_paint_a_black_frame_in_one_colour(stage: Stage) -> None:
    subject = stage.open(stage.script())
    for _ in range(5):
        result = subject.present(np.zeros((24, 32, 3), np.uint8))
        stage.clock.advance(PERIOD)
    assert result.status is Status.FRESH


# --- what is left behind ------------------------------------------------------------------------


def test_a_pass_that_is_dropped_without_close_is_told_and_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    script = Script(clock)
    noticed: list[str] = []
    monkeypatch.setattr(warnings, "warn", lambda text, kind, **_: noticed.append(str(text)))
    before = threading.active_count()
    for _ in range(10):
        subject = Pass(ScriptedSource(script), clock=clock)
        clock.watch(subject)
        subject.prepare().wait()
        subject.present(picture())
        clock.advance(PERIOD)
        clock._passes.clear()
    del subject
    gc.collect()
    wait_for(lambda: script.closed == script.opened == 10)
    wait_for(lambda: threading.active_count() <= before)
    assert noticed == ["a render pass of scripted was dropped without close()"] * 10


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux alone")
@pytest.mark.parametrize("now", [0, 15])
def test_warm_ups_are_never_made_more_important(now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(os, "getpriority", lambda *_: now)

    def set_priority(which: int, who: int, value: int) -> None:
        given.append(value)
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", set_priority)

    def fail() -> None:
        raise broken()

    done: list[int] = []
    at_low_priority(lambda: done.append(threading.get_native_id()))
    assert given == [max(now, 10)]
    assert done != [threading.get_native_id()]
    with pytest.raises(BackendError, match="it broke"):
        at_low_priority(fail)


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(90, 160), ((-1, 5),), ([(24, 32)],), ((2.5, 3),), ("720p",)])
def test_sizes_that_are_none_are_refused_at_once(stage: Stage, sizes: tuple[object, ...]) -> None:
    subject = stage.open(stage.script())
    other = ScriptedSource(stage.script(), name="other")
    calls: tuple[Callable[[], object], ...] = (
        lambda: subject.prepare(*sizes),  # type: ignore[arg-type]
        lambda: subject.swap_source(other, sizes=sizes),  # type: ignore[arg-type]
    )
    for call in calls:
        with pytest.raises(PassError, match=r"wanted \(height, width\) in whole pixels"):
            call()
    assert stage.show(subject, 2)[-1].status is Status.FRESH


def test_a_listener_that_waits_for_a_preparation_on_its_own_thread_is_refused(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    best, spare = stage.script(broken(), 0.0), stage.script(0.0, shift=90)

    def listen(event: Event) -> None:
        stage.events.append(event)
        if event.kind == "demoted":
            made[0].prepare((24, 32), background=False)

    made: list[Pass] = []
    made.append(stage.open(best, spare, ready=False, on_event=listen))
    made[0].prepare((24, 32)).wait(10)
    (record,) = [one for one in caplog.records if one.getMessage() == "on_event raised"]
    assert record.exc_info
    assert "would wait for itself" in str(record.exc_info[1])
    assert [event.kind for event in stage.events] == ["demoted", "ready"]


def test_after_a_swap_no_result_is_said_to_be_of_the_ladders_other_bundle(stage: Stage) -> None:
    small, other = stage.script(0.03), stage.script(0.03, shift=90)
    subject = Pass(
        ScriptedSource(stage.script(0.03)),
        budget_ms=20,
        policy=Policy(ladder=(Level(), Level(bundle="small.topcoat"))),
        clock=stage.clock,
        level_sources={"small.topcoat": ScriptedSource(small, name="small")},
    )
    stage.clock.watch(subject)
    stage.passes.append(subject)
    subject.prepare().wait()
    seen = stage.show(subject, 30)
    assert (seen[-1].engine, seen[-1].reason) == ("small-0", "small.topcoat, internal scale 1")
    subject.swap_source(ScriptedSource(other, name="other"), sizes=()).wait()
    last = stage.show(subject, 5)[-1]
    assert (last.engine, last.status) == ("other-0", Status.DEGRADED)
    assert last.reason == "internal scale 1; other has no smaller network for this level"


# --- everything at once -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_ladder_a_swap_and_faults_at_once_show_no_wrong_picture(stage: Stage, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def steps() -> Iterator[Step]:
        while True:
            yield broken() if rng.random() < 0.03 else float(rng.choice([0.001, 0.04]))

    shifts = {"scripted-0": 40, "scripted-1": 90, "small-0": 20}
    scripts = [stage.script(shift=shift) for shift in shifts.values()]
    for script in scripts:
        script.endless(steps())
    subject = Pass(
        ScriptedSource(*scripts[:2]),
        budget_ms=20,
        policy=Policy(
            ladder=(Level(), Level(bundle="small.topcoat")),
            window=4,
            down_after=2,
            up_after=8,
            retry_s=0.2,
            retry_max_s=1.0,
        ),
        clock=stage.clock,
        level_sources={"small.topcoat": ScriptedSource(scripts[2], name="small")},
    )
    stage.clock.watch(subject)
    stage.passes.append(subject)
    subject.prepare().wait()
    seen: Counter[str] = Counter()
    for number in range(240):
        if number and number % 60 == 0:
            fresh = stage.script(shift=100 + number // 60)
            fresh.endless(steps())
            name = f"other{number}"
            shifts[f"{name}-0"] = fresh.shift
            subject.swap_source(ScriptedSource(fresh, name=name))
        result = subject.present(RenderFrame(color=picture(number), index=number))
        seen[result.status.name] += 1
        shift = shifts[result.engine] if result.engine else 0
        assert np.array_equal(result.image, styled(picture(result.index), shift))
        assert (result.status is Status.PASSTHROUGH) == (not result.engine)
        stage.clock.advance(PERIOD)
    assert min(seen["FRESH"], seen["DEGRADED"], seen["PASSTHROUGH"]) > 0
