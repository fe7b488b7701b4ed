"""Render passes whose engines fail in every way: no error reaches the caller, no picture is wrong.

Every picture is compared with what the engine that is said to have made it makes of the frame that
it is said to show, or with the frame itself, bit for bit. Time is turned by hand, threads are real.
"""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.runtime.fake_pass import (
    FakeClock,
    Frame,
    Script,
    ScriptedSource,
    Step,
    broken,
    lost,
    picture,
    styled,
)
from topcoat.runtime import BackendError, PassClosedError, PassThreadError
from topcoat.runtime.render_pass import (
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

PERIOD = 0.016
RGB, BGRA = Layout(), Layout(format="bgra8")

FAULTS: dict[str, Callable[[], Step]] = {
    "an exception of the runtime": broken,
    "a lost device": lost,
    "an exception of Python": lambda: ValueError("no\nsuch\nthing"),
    "no memory": lambda: MemoryError("out of memory"),
    "a panic that is no Exception": lambda: BaseException("panicked"),
    "sys.exit": lambda: SystemExit(1),
    "nothing written": lambda: "nothing",
    "half a picture": lambda: "half",
    "one colour": lambda: "nan",
    "an array of NaN": lambda: "float nan",
    "a wrong shape": lambda: "shape",
}
BAD_RESULTS = (
    "nothing written",
    "half a picture",
    "one colour",
    "an array of NaN",
    "a wrong shape",
)
MODES = ("live", "sync", "sync in time", "file")


@dataclass
class Viewer:
    """An application that looks closely at every picture that it gets."""

    subject: Pass
    clock: FakeClock
    shifts: dict[str, int]
    """What each engine adds to a frame."""
    max_age: int = 8
    size: tuple[int, int] = (24, 32)
    layout: Layout = RGB
    moving: bool = False
    seen: list[Result] = field(default_factory=list)
    _frames: list[Frame] = field(default_factory=list)
    _delivered: set[int] = field(default_factory=set)

    def frame(self) -> RenderFrame:
        """Return the next frame, like no other."""
        index = len(self._frames)
        color = picture(index, *self.size, self.layout.channels)
        self._frames.append(color.copy())
        motion = Motion(data=np.zeros((*self.size, 2), np.float32)) if self.moving else None
        return RenderFrame(color=color, layout=self.layout, motion=motion, index=index)

    def present(self, frames: int = 1) -> Result:
        """Show so many frames, one each 16 ms, and return the last result."""
        for _ in range(frames):
            frame = self.frame()
            result = self.subject.present(frame)
            self.check(result, frame)
            self.clock.advance(PERIOD)
        return result

    def until(self, status: Status, frames: int = 500) -> Result:
        """Show frames until one has this status."""
        for _ in range(frames):
            if (result := self.present()).status is status:
                return result
        raise AssertionError(f"no {status} in {frames} frames")

    def check(self, result: Result, frame: RenderFrame) -> None:
        assert frame.index is not None
        self.seen.append(result)
        assert np.array_equal(frame.color, self._frames[frame.index]), "the frame was written to"
        assert result.image.shape == frame.color.shape
        assert result.age_frames == frame.index - result.index >= 0
        own = self._frames[result.index]
        if result.status is Status.PASSTHROUGH:
            assert result.index == frame.index
            assert np.array_equal(result.image, own)
            assert result.engine == ""
            assert result.reason
            return
        wanted = own.copy()
        wanted[..., :3] = styled(own[..., :3], self.shifts[result.engine])
        assert np.array_equal(result.image, wanted), f"a wrong picture: {result}"
        if result.status in (Status.FRESH, Status.DEGRADED):
            assert result.index not in self._delivered, "not new"
            assert bool(result.reason) == (result.status is Status.DEGRADED)
            self._delivered.add(result.index)
        else:
            assert result.index in self._delivered, "never shown before"
            assert result.age_frames <= self.max_age
            assert result.reason

    @property
    def statuses(self) -> list[str]:
        return [result.status.name for result in self.seen]


@dataclass
class Stage:
    """Makes passes on one clock, and ends what hangs."""

    clock: FakeClock = field(default_factory=FakeClock)
    events: list[Event] = field(default_factory=list)
    _passes: list[Pass] = field(default_factory=list)
    _scripts: list[Script] = field(default_factory=list)

    def script(self, *steps: Step, **options: object) -> Script:
        made = Script(self.clock, steps or (0.002,), **options)  # type: ignore[arg-type]
        self._scripts.append(made)
        return made

    def source(self, *scripts: Script, name: str = "scripted") -> ScriptedSource:
        return ScriptedSource(*scripts, name=name)

    def open(
        self,
        *scripts: Script,
        mode: str = "live",
        ready: bool = True,
        on_event: Callable[[Event], None] | None = None,
        **policy: object,
    ) -> Pass:
        """Make a pass; "sync in time" is the mode ``sync`` with a budget of one period."""
        policy = {
            "retry_s": 0.16,
            "retry_max_s": 0.4,
            "hang_ms": 100,
            "ladder": (Level(),),
        } | policy
        subject = Pass(
            self.source(*scripts),
            mode=mode.split()[0],  # type: ignore[arg-type]
            budget_ms=PERIOD * 1e3 if mode == "sync in time" else None,
            policy=Policy(**policy),  # type: ignore[arg-type]
            clock=self.clock,
            on_event=self.events.append if on_event is None else on_event,
        )
        self.clock.watch(subject)
        self._passes.append(subject)
        if ready:
            subject.prepare().wait()
        return subject

    def viewer(self, subject: Pass, *scripts: Script, **options: object) -> Viewer:
        shifts = {f"scripted-{n}": script.shift for n, script in enumerate(scripts)}
        return Viewer(subject, self.clock, shifts, **options)  # type: ignore[arg-type]

    def told(self, *kinds: str) -> list[str]:
        return [event.text for event in self.events if event.kind in kinds]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def end(self) -> None:
        for script in self._scripts:
            script.release()
        for subject in self._passes:
            subject.close()
        for script in self._scripts:
            script.release()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.end()


def pass_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("topcoat ")]


def wait_for(what: Callable[[], bool]) -> None:
    """Give real threads real time."""
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- engines that fail --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_fails_rests_longer_each_time_and_is_welcome_back(
    stage: Stage, mode: str, fault: str
) -> None:
    fail = FAULTS[fault]
    script = stage.script(*[0.002] * 5, fail(), fail(), fail(), 0.002)
    viewer = stage.viewer(stage.open(script, mode=mode), script)
    viewer.present(85)
    assert stage.kinds() == ["ready", "demoted", "recovered"]
    (line,) = stage.told("demoted")
    assert "scripted-0 failed and is tried again in 0.16 s" in line
    assert "\n" not in line
    at = script.ran_at
    rests = [after - before for before, after in itertools.pairwise(at[5:9])]
    for rest, wanted in zip(rests, (0.16, 0.32, 0.4), strict=True):
        assert wanted <= rest < wanted + 2 * PERIOD
    reloaded = 0 if fault in BAD_RESULTS else 3
    assert (script.opened, script.closed) == (1 + reloaded, reloaded)
    first = viewer.statuses.index("FRESH")
    failed = viewer.statuses.index("PASSTHROUGH", first)
    again = viewer.statuses.index("FRESH", failed)
    assert set(viewer.statuses[failed:again]) == {"PASSTHROUGH"}
    assert set(viewer.statuses[again:]) == {"FRESH"}
    assert len(viewer.statuses[again:]) > 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_another_engine_takes_over_at_the_next_frame(stage: Stage, mode: str, fault: str) -> None:
    fail = FAULTS[fault]
    best = stage.script(*[0.002] * 5, fail(), fail(), 0.002)
    spare = stage.script(shift=90)
    viewer = stage.viewer(stage.open(best, spare, mode=mode), best, spare)
    viewer.present(50)
    wanted = ["PASSTHROUGH"] if mode == "live" else []
    wanted += ["FRESH"] * 5 + ["PASSTHROUGH"]
    assert viewer.statuses == wanted + ["FRESH"] * (50 - len(wanted))
    engines = [result.engine for result in viewer.seen if result.engine]
    there, back = engines.index("scripted-1"), engines.index("scripted-0", 5)
    assert there == 5
    assert set(engines[:there]) == set(engines[back:]) == {"scripted-0"}
    assert set(engines[there:back]) == {"scripted-1"}
    assert stage.kinds() == ["ready", "demoted", "recovered"]
    assert spare.opened == 1
    stats = viewer.subject.stats()
    assert (stats.failures, stats.demotions) == (1, 1)


@pytest.mark.parametrize("mode", ["live", "sync", "sync in time"])
@pytest.mark.parametrize("late", ["warp", "reuse"])
def test_an_older_result_may_stand_in_for_a_failed_frame_for_a_while(
    stage: Stage, mode: str, late: str
) -> None:
    script = stage.script(*[0.002] * 5, broken())
    subject = stage.open(script, mode=mode, on_error="reuse", late=late, max_age=4, retry_s=300)
    viewer = stage.viewer(subject, script, max_age=4, moving=True)
    viewer.present(30)
    old = "WARPED" if late == "warp" else "REUSED"
    first = viewer.statuses.index(old)
    assert viewer.statuses[first : first + 5] == [old] * (4 - (mode == "live")) + [
        "PASSTHROUGH"
    ] * (1 + (mode == "live"))
    assert set(viewer.statuses[first + 5 :]) == {"PASSTHROUGH"}
    assert "scripted-0 is tried again in" in viewer.seen[-1].reason


@pytest.mark.parametrize("mode", MODES)
def test_a_slow_engine_is_not_a_failed_one(stage: Stage, mode: str) -> None:
    script = stage.script(0.070)
    viewer = stage.viewer(stage.open(script, mode=mode), script)
    viewer.present(40)
    assert stage.kinds() == ["ready"]
    assert viewer.statuses.count("FRESH") >= 8
    assert viewer.subject.stats().failures == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_raising_is_for_the_frame_that_failed_alone(stage: Stage, fault: str) -> None:
    script = stage.script(0.002, FAULTS[fault](), 0.002)
    subject = stage.open(script, mode="sync", on_error="raise")
    viewer = stage.viewer(subject, script)
    viewer.present()
    with pytest.raises(BackendError) as raised:
        viewer.present()
    assert "\n" not in str(raised.value)
    stage.clock.advance(PERIOD)
    viewer.present(20)
    assert viewer.statuses[1] == "PASSTHROUGH"
    assert "is tried again in" in viewer.seen[1].reason
    assert viewer.statuses[-1] == "FRESH"


def test_raising_in_file_mode_is_at_the_place_of_the_frame_that_failed(stage: Stage) -> None:
    script = stage.script(0.002, broken(), 0.002)
    subject = stage.open(script, stage.script(shift=90), mode="file", on_error="raise")
    for seed in range(3):
        subject.submit(picture(seed))
    first = subject.collect()
    assert first is not None
    assert np.array_equal(first.image, styled(picture(0), 40))
    with pytest.raises(BackendError, match="it broke"):
        subject.collect()
    last = subject.collect()
    assert last is not None
    assert last.index == 2
    assert np.array_equal(last.image, styled(picture(2), 90))
    assert subject.collect() is None


# --- engines that hang --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engines", [1, 2])
def test_an_engine_that_hangs_is_given_up_and_tried_again_when_it_has_come_back(
    stage: Stage, mode: str, engines: int
) -> None:
    best = stage.script(*[0.002] * 5, "hang", 0.002)
    scripts = [best, stage.script(shift=90)][:engines]
    viewer = stage.viewer(stage.open(*scripts, mode=mode, hang_ms=100), *scripts)
    viewer.present(5)
    waited = {"live": 0.0, "sync in time": PERIOD}.get(mode, 0.1)
    before = stage.clock.now()
    viewer.present()
    assert stage.clock.now() - before == pytest.approx(waited + PERIOD)
    viewer.present(40)  # far beyond the end of its rest
    assert best.runs == 6, "it was tried again while it hung"
    (line,) = stage.told("demoted")
    assert "it has not come back for 0.1 s and is given up" in line
    assert len(pass_threads()) == 2
    if engines == 1:
        assert viewer.statuses[-1] == "PASSTHROUGH"
        assert "scripted-0: hangs" in viewer.subject.explain()
    else:
        assert (viewer.statuses[-1], viewer.seen[-1].engine) == ("FRESH", "scripted-1")
    assert best.closed == 0
    best.release()
    stage.clock.advance(0)
    wait_for(lambda: len(pass_threads()) == 1)
    assert best.closed == 1
    viewer.present(40)
    assert (viewer.statuses[-1], viewer.seen[-1].engine) == ("FRESH", "scripted-0")
    assert best.opened == 2
    assert stage.kinds() == ["ready", "demoted", "recovered"]
    hung = 5
    assert all(one.index != hung or one.status is Status.PASSTHROUGH for one in viewer.seen)
    assert viewer.subject.stats().failures == 1


def test_while_an_engine_hangs_a_live_pass_shows_the_last_result_for_a_while(stage: Stage) -> None:
    script = stage.script(*[0.002] * 5, "hang")
    viewer = stage.viewer(stage.open(script, hang_ms=1000, late="reuse"), script)
    viewer.present(30)
    assert (
        viewer.statuses == ["PASSTHROUGH"] + ["FRESH"] * 5 + ["REUSED"] * 7 + ["PASSTHROUGH"] * 17
    )


def test_frames_that_wait_behind_one_that_hangs_are_run_by_the_next_engine(stage: Stage) -> None:
    best, spare = stage.script(0.002, "hang"), stage.script(shift=90)
    subject = stage.open(best, spare, mode="file", hang_ms=100)
    viewer = stage.viewer(subject, best, spare)
    frames = [viewer.frame() for _ in range(4)]
    for frame in frames:
        assert subject.submit(frame)
    seen = []
    for frame in frames:
        result = subject.collect()
        assert result is not None
        image = styled(frame.color, {"": 0, "scripted-0": 40, "scripted-1": 90}[result.engine])
        assert np.array_equal(result.image, image)
        seen.append((result.index, result.status.name, result.engine))
    assert seen == [
        (0, "FRESH", "scripted-0"),
        (1, "PASSTHROUGH", ""),
        (2, "FRESH", "scripted-1"),
        (3, "FRESH", "scripted-1"),
    ]


def test_what_was_finished_before_a_hang_is_not_lost(stage: Stage) -> None:
    script = stage.script(0.002, "hang")
    subject = stage.open(script, mode="file", hang_ms=100)
    subject.submit(picture(0))
    subject.submit(picture(1))
    stage.clock.advance(1.0)
    subject.submit(picture(2))  # here the hang is noticed
    for index, status in enumerate((Status.FRESH, Status.PASSTHROUGH, Status.PASSTHROUGH)):
        result = subject.collect()
        assert result is not None
        assert (result.index, result.status) == (index, status)
        shift = 40 if status is Status.FRESH else 0
        assert np.array_equal(result.image, styled(picture(index), shift))


def test_fifty_hangs_leave_no_thread_and_no_engine_behind(stage: Stage) -> None:
    script = stage.script("hang")
    viewer = stage.viewer(stage.open(script, hang_ms=50, start_ms=50), script)
    base = len(pass_threads())
    for turn in range(1, 51):
        while script.runs < turn:
            viewer.present()
        viewer.present(6)
        assert len(pass_threads()) <= base + 2
        script.release()
        wait_for(lambda turn=turn: script.closed == turn)  # type: ignore[misc]
    viewer.present()
    wait_for(lambda: len(pass_threads()) <= base + 1)
    assert set(viewer.statuses) == {"PASSTHROUGH"}
    assert (script.opened, script.closed) == (50, 50)
    assert len(stage.told("demoted")) == 1
    assert viewer.subject.stats().failures == 1  # the others cost no frame


def test_an_engine_that_never_comes_back_costs_one_thread(stage: Stage) -> None:
    script = stage.script("hang")
    viewer = stage.viewer(stage.open(script, hang_ms=50, start_ms=50, retry_max_s=0.2), script)
    viewer.present(200)
    assert script.runs == 1
    assert len(pass_threads()) == 2
    assert len(stage.told("demoted")) == 1


@pytest.mark.parametrize("mode", ["live", "sync in time", "file"])
def test_closing_waits_for_an_engine_that_hangs_as_long_as_for_a_frame(
    stage: Stage, mode: str
) -> None:
    script = stage.script("hang")
    subject = stage.open(script, mode=mode, hang_ms=100, start_ms=1000)
    if mode == "file":
        subject.submit(picture())
    else:
        subject.present(picture())
    stage.clock.advance(0)
    before = stage.clock.now()
    subject.close()
    assert stage.clock.now() - before == pytest.approx(0.1)
    assert stage.told("closed") == ["an engine still hangs; its thread is left to itself"]
    assert script.closed == 0
    script.release()
    wait_for(lambda: script.closed == 1)
    wait_for(lambda: not pass_threads())


def test_a_given_up_engine_is_freed_even_if_it_comes_back_after_the_end(stage: Stage) -> None:
    script = stage.script(0.002, "hang")
    viewer = stage.viewer(stage.open(script, hang_ms=50), script)
    viewer.present(20)
    viewer.subject.close()
    assert script.closed == 0
    script.release()
    wait_for(lambda: script.closed == 1)
    wait_for(lambda: not pass_threads())


@pytest.mark.parametrize("given_up", [False, True])
def test_a_swap_while_an_engine_hangs_takes_over(stage: Stage, given_up: bool) -> None:
    old, new = stage.script(0.002, "hang"), stage.script(shift=90)
    viewer = stage.viewer(stage.open(old, hang_ms=100), old)
    viewer.present(20 if given_up else 3)
    viewer.subject.swap_source(stage.source(new, name="other"))
    viewer.shifts["other-0"] = 90
    viewer.seen.clear()
    viewer.present(20)
    assert (viewer.seen[-1].engine, viewer.statuses[-1]) == ("other-0", "FRESH")
    old.release()
    wait_for(lambda: old.closed == 1)
    viewer.present(5)
    assert viewer.statuses[-5:] == ["FRESH"] * 5
    assert new.closed == 0


def test_sizes_layouts_and_strength_may_change_while_an_engine_hangs(stage: Stage) -> None:
    best, spare = stage.script(*[0.002] * 5, "hang", 0.002), stage.script(shift=90)
    viewer = stage.viewer(stage.open(best, spare, hang_ms=100), best, spare)
    viewer.present(6)
    viewer.size = (30, 18)
    viewer.present(2)
    viewer.layout = BGRA
    viewer.present(2)
    viewer.subject.set(strength=0)
    viewer.present(2)
    viewer.subject.set(strength=1)
    viewer.size, viewer.layout = (24, 32), RGB
    viewer.present(12)
    assert viewer.seen[-1].engine == "scripted-1"
    best.release()
    viewer.present(30)
    assert (viewer.statuses[-1], viewer.seen[-1].engine) == ("FRESH", "scripted-0")


# --- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_that_cannot_be_loaded_is_told_once_and_tried_ever_more_rarely(
    stage: Stage, mode: str
) -> None:
    script = stage.script(load=BaseException("panicked"))
    viewer = stage.viewer(stage.open(script, mode=mode, ready=False), script)
    viewer.present(100)  # 1.6 s: rests of 0.16, 0.32, 0.4, 0.4, ...
    assert 4 <= script.opened <= 6
    assert set(viewer.statuses) == {"PASSTHROUGH"}
    assert "panicked" in viewer.seen[-1].reason
    assert stage.told("failed") == ["scripted cannot be run: BaseException: panicked"]
    script.load = 0.0
    viewer.until(Status.FRESH)
    assert stage.kinds() == ["failed", "ready"]


@pytest.mark.parametrize("mode", MODES)
def test_loading_that_hangs_keeps_nobody_waiting_longer_than_a_first_frame_may_take(
    stage: Stage, mode: str
) -> None:
    script = stage.script(load="hang")
    viewer = stage.viewer(stage.open(script, mode=mode, ready=False, start_ms=200), script)
    viewer.present()
    waits = mode in ("sync", "file")
    assert stage.clock.now() == pytest.approx(PERIOD + 0.2 * waits)
    before = stage.clock.now()
    viewer.present(50)
    assert stage.clock.now() - before == pytest.approx(50 * PERIOD)
    assert len(stage.told("failed")) == 1
    assert "has been loading for 0.2 s" in stage.told("failed")[0]
    script.release()
    viewer.until(Status.FRESH)


def test_a_pass_may_be_closed_while_it_is_loading(stage: Stage) -> None:
    for load in (0.5, "hang"):
        script = stage.script(load=load)
        subject = stage.open(script, ready=False)
        subject.present(picture())
        before = stage.clock.now()
        subject.close()
        assert stage.clock.now() == before
        script.release()
        stage.clock.advance(1.0)
        wait_for(lambda script=script: script.closed == script.opened == 1)  # type: ignore[misc]
    wait_for(lambda: not pass_threads())
    assert stage.kinds() == []


def test_an_engine_that_fails_while_it_is_warmed_gives_way_to_the_next(stage: Stage) -> None:
    best, spare = stage.script(broken(), 0.002), stage.script(shift=90)
    viewer = stage.viewer(stage.open(best, spare, ready=False, retry_s=0.3), best, spare)
    preparation = viewer.subject.prepare(viewer.size)
    stage.clock.advance(0.1)
    assert preparation.state == "ready"
    assert stage.kinds() == ["demoted", "ready"]
    assert stage.told("ready") == ["scripted is ready on scripted-1"]
    viewer.present(30)
    assert {one.engine for one in viewer.seen[1:6]} == {"scripted-1"}
    assert viewer.seen[-1].engine == "scripted-0"
    assert viewer.subject.stats().demotions == 1


def test_a_bundle_whose_every_engine_fails_while_it_is_warmed_is_tried_again(stage: Stage) -> None:
    script = stage.script(broken(), broken(), 0.002)
    viewer = stage.viewer(stage.open(script, ready=False), script)
    viewer.until(Status.FRESH)
    assert script.opened == 3
    assert script.closed == 2
    assert stage.told("failed") == ["scripted cannot be run: it broke"]


@pytest.mark.parametrize("load", ["hang", 0.3, broken()])
def test_a_swap_that_cannot_be_loaded_leaves_the_old_engine_at_work(
    stage: Stage, load: Step
) -> None:
    old, new = stage.script(), stage.script(load=load, shift=90)
    viewer = stage.viewer(stage.open(old), old)
    viewer.present(3)
    preparation = viewer.subject.swap_source(stage.source(new, name="other"))
    viewer.present(10)
    preparation.cancel()
    new.release()
    viewer.present(20)
    assert set(viewer.statuses[1:]) == {"FRESH"}
    assert {one.engine for one in viewer.seen[1:]} == {"scripted-0"}
    wait_for(lambda: new.closed == new.opened - isinstance(load, Exception))


def test_a_swap_may_overtake_the_first_loading(stage: Stage) -> None:
    slow, quick = stage.script(load=0.5), stage.script(shift=90)
    viewer = stage.viewer(stage.open(slow, ready=False), slow)
    viewer.shifts["other-0"] = 90
    viewer.present(2)
    viewer.subject.swap_source(stage.source(quick, name="other"))
    viewer.present(60)
    assert {one.engine for one in viewer.seen[4:]} == {"other-0"}
    assert (slow.opened, slow.closed) == (1, 1)
    assert "render pass of other" in viewer.subject.explain()


def test_a_swap_before_the_first_frame_frees_what_was_prepared(stage: Stage) -> None:
    first, second = stage.script(), stage.script(shift=90)
    viewer = stage.viewer(stage.open(first), first)
    viewer.shifts["other-0"] = 90
    viewer.subject.swap_source(stage.source(second, name="other")).wait(10)
    viewer.present(3)
    assert viewer.seen[-1].engine == "other-0"
    assert first.closed == 1


# --- while an engine rests ----------------------------------------------------------------------


def test_a_swap_ends_the_rest_of_a_failed_engine(stage: Stage) -> None:
    script, other = stage.script(0.002, broken()), stage.script(shift=90)
    viewer = stage.viewer(stage.open(script, retry_s=300), script)
    viewer.present(10)
    assert viewer.statuses[-1] == "PASSTHROUGH"
    viewer.subject.swap_source(stage.source(other, name="other"))
    viewer.shifts["other-0"] = 90
    viewer.present(5)
    assert (viewer.statuses[-1], viewer.seen[-1].engine) == ("FRESH", "other-0")


def test_sizes_layouts_and_strength_may_change_while_an_engine_rests(stage: Stage) -> None:
    script = stage.script(0.002, lost(), 0.002)
    viewer = stage.viewer(stage.open(script, retry_s=1), script)
    viewer.present(4)
    for size, layout, strength in (((30, 18), RGB, 1), ((24, 32), BGRA, 0), ((9, 8), BGRA, 1)):
        viewer.size, viewer.layout = size, layout
        viewer.subject.set(strength=strength)
        last = viewer.present(4)
        assert last.status is Status.PASSTHROUGH
        assert ("strength is 0" in last.reason) == (strength == 0)
    viewer.until(Status.FRESH)
    assert stage.kinds() == ["ready", "demoted", "recovered"]


def test_a_pass_may_be_closed_while_an_engine_rests(stage: Stage) -> None:
    script = stage.script(broken())
    viewer = stage.viewer(stage.open(script), script)
    viewer.present(3)
    viewer.subject.close()
    assert script.opened == script.closed
    wait_for(lambda: not pass_threads())


def test_after_strength_zero_no_result_of_before_is_shown(stage: Stage) -> None:
    script = stage.script(0.002)
    viewer = stage.viewer(stage.open(script), script)
    viewer.present(5)
    viewer.subject.set(strength=0)
    viewer.present(100)
    viewer.subject.set(strength=1)
    viewer.present(5)
    assert max(one.age_frames for one in viewer.seen) == 1
    assert viewer.statuses[-5:] == ["PASSTHROUGH"] + ["FRESH"] * 4


# --- telling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 2])
def test_five_thousand_frames_of_a_broken_engine_write_a_handful_of_lines(
    stage: Stage, engines: int, caplog: pytest.LogCaptureFixture
) -> None:
    scripts = [stage.script(broken()) for _ in range(engines)]
    subject = stage.open(*scripts, retry_s=0.16, retry_max_s=1.0)
    frame = picture()
    with caplog.at_level(logging.INFO, "topcoat.runtime"):
        for _ in range(5000):
            assert subject.present(frame).image is frame
            stage.clock.advance(PERIOD)
    assert scripts[0].runs > 50  # tried again and again, in silence
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == engines
    assert all("failed and is tried again in 0.16 s" in line for line in lines)
    assert stage.kinds() == ["ready"] + ["demoted"] * engines


def test_a_listener_that_raises_harms_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError(f"cannot take {event.kind}")

    script = stage.script(0.002, broken(), 0.002)
    viewer = stage.viewer(stage.open(script, on_event=fail), script)
    viewer.present(30)
    assert viewer.statuses[-1] == "FRESH"
    raised = [one for one in caplog.records if one.getMessage() == "on_event raised"]
    assert [str(one.exc_info and one.exc_info[1]) for one in raised] == [
        f"cannot take {kind}" for kind in ("ready", "demoted", "recovered")
    ]


def test_a_listener_may_call_what_any_thread_may_call(stage: Stage) -> None:
    answers: dict[str, list[str]] = {}

    def call(event: Event) -> None:
        subject = made[0]
        subject.set(strength=0.5)
        subject.stats()
        before = len(stage.events)
        stage.events.append(event)
        if event.kind == "ready" and not before:
            # On the thread that has just prepared it: waiting for itself would be for ever.
            answers["prepare"] = [subject.prepare((24, 32)).wait(10).state]
        answers.setdefault(event.kind, []).append(subject.explain().split(":")[0])

    script = stage.script(*[0.002] * 8, broken(), 0.002)  # four of them while it is warmed
    made: list[Pass] = []
    made.append(stage.open(script, ready=False, on_event=call))
    for seed in range(30):
        result = made[0].present(picture(seed))
        stage.clock.advance(PERIOD)
    assert result.status is Status.FRESH
    assert answers["prepare"] == ["ready"]
    assert set(answers) == {"prepare", "ready", "demoted", "recovered"}


def test_a_listener_inside_a_call_cannot_begin_another_and_is_told_so(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def call(event: Event) -> None:
        if event.kind == "demoted":
            made[0].present(picture())

    script = stage.script(0.002, broken(), 0.002)
    made: list[Pass] = []
    made.append(stage.open(script, on_event=call))
    viewer = stage.viewer(made[0], script)
    viewer.present(30)
    assert viewer.statuses[-1] == "FRESH"
    (record,) = [one for one in caplog.records if one.getMessage() == "on_event raised"]
    assert record.exc_info
    assert isinstance(record.exc_info[1], PassThreadError)
    assert "was called inside a call of the pass" in str(record.exc_info[1])


# --- wrong use ----------------------------------------------------------------------------------


def test_two_threads_at_once_are_told_apart(stage: Stage) -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        leave.wait(10)

    subject = stage.open(stage.script(stay, 0.0), mode="sync")
    seen: list[Result] = []
    other = threading.Thread(target=lambda: seen.append(subject.present(picture(0))))
    other.start()
    assert inside.wait(10)
    calls = (
        lambda: subject.present(picture(1)),
        lambda: subject.submit(picture(1)),
        subject.reset,
        subject.close,
    )
    for call in calls:
        with pytest.raises(PassThreadError, match="two threads use this pass of scripted at once"):
            call()
    subject.set(strength=1)
    assert subject.stats().frames == 0
    leave.set()
    other.join(10)
    assert np.array_equal(seen[0].image, styled(picture(0)))
    result = subject.present(picture(1))  # the other thread has left
    assert np.array_equal(result.image, styled(picture(1)))


@pytest.mark.parametrize("mode", ["live", "sync", "file"])
def test_nothing_can_be_done_with_a_closed_pass(stage: Stage, mode: str) -> None:
    subject = stage.open(stage.script(), mode=mode)
    subject.present(picture())
    subject.close()
    calls = [
        lambda: subject.present(picture()),
        lambda: subject.submit(picture()),
        lambda: subject.prepare(),
        lambda: subject.swap_source(stage.source(stage.script(), name="other")),
        subject.reset,
    ]
    if mode == "file":
        calls.append(subject.collect)
    for call in calls:
        with pytest.raises(PassClosedError, match="this pass of scripted was closed"):
            call()
    assert subject.stats().frames == 1  # what it did can still be read
    assert "render pass of scripted" in subject.explain()


# --- everything at once -------------------------------------------------------------------------


def test_every_status_comes_with_the_picture_that_it_says(stage: Stage) -> None:
    script = stage.script(0.002)
    subject = Pass(
        stage.source(script),
        budget_ms=PERIOD * 1e3,
        policy=Policy(ladder=(Level(), Level(every_n=2)), up_after=10, window=4, down_after=2),
        clock=stage.clock,
        on_event=stage.events.append,
    )
    stage.clock.watch(subject)
    stage._passes.append(subject)
    subject.prepare().wait()
    viewer = stage.viewer(subject, script, moving=True)
    viewer.present(10)
    script.then(0.025)
    viewer.present(30)
    viewer.moving = False
    viewer.present(10)
    script.then(broken(), 0.002)
    viewer.present(10)
    assert set(viewer.statuses) == {"FRESH", "DEGRADED", "WARPED", "REUSED", "PASSTHROUGH"}
    seen = subject.stats().statuses
    assert {status.name: count for status, count in seen.items()} == {
        name: viewer.statuses.count(name) for name in set(viewer.statuses)
    }


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_every_frame_has_its_picture(stage: Stage, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mode = MODES[seed % 4]
    good = 0.003

    def steps() -> Iterator[Step]:
        while True:
            if rng.random() < 0.85:
                yield good if rng.random() < 0.8 else 0.030
            elif rng.random() < 0.3:
                yield "hang"
            else:
                yield list(FAULTS.values())[rng.integers(len(FAULTS))]()

    scripts = [stage.script(shift=40), stage.script(shift=90)]
    for script in scripts:
        script.endless(steps())
    subject = stage.open(*scripts, mode=mode, ready=bool(seed % 3), hang_ms=60, start_ms=80)
    viewer = stage.viewer(subject, *scripts, moving=bool(seed % 2))
    swapped = 0
    for _ in range(200):
        what = rng.integers(40)
        if what == 0:
            viewer.size = (24, 32) if viewer.size[0] == 30 else (30, 18)
        elif what == 1:
            viewer.layout = BGRA if viewer.layout is RGB else RGB
        elif what == 2:
            subject.set(strength=int(rng.integers(2)))
        elif what == 3:
            swapped += 1
            fresh = stage.script(shift=100 + swapped, load=0.02)
            fresh.endless(steps())
            scripts.append(fresh)
            viewer.shifts[f"other{swapped}-0"] = fresh.shift
            subject.swap_source(stage.source(fresh, name=f"other{swapped}"))
        elif what == 4:
            subject.reset()
        elif what < 8:
            scripts[rng.integers(len(scripts))].release()
        viewer.present()
        assert len(pass_threads()) <= 3 + len(scripts)
    for script in scripts:
        script.then(good)
        script.release()
    subject.set(strength=1)
    viewer.until(Status.FRESH, 60)  # the longest rest, and then some
    subject.close()

    def ended() -> bool:
        for script in scripts:  # one that a swap of before was just beginning to hang in
            script.release()
        stage.clock.advance(0.01)  # and one that was just being loaded, beside the frames
        return not pass_threads()

    wait_for(ended)
    assert [one.opened for one in scripts] == [one.closed for one in scripts]
    stats = subject.stats()
    assert sum(stats.statuses.values()) == stats.frames == len(viewer.seen)


@pytest.mark.parametrize("fault", ["an exception of Python", "nothing written", "a hang"])
def test_failures_keep_no_pictures_alive(stage: Stage, fault: str) -> None:
    fail = FAULTS.get(fault, lambda: "hang")
    script = stage.script()
    subject = stage.open(script, hang_ms=50, start_ms=50, retry_s=0.001, retry_max_s=0.001)
    kept = []
    gc.collect()
    gc.disable()  # it would free rings of objects some day, but counts objects and not bytes
    tracemalloc.start()
    try:
        for turn in range(24):
            script.then(0.002, fail(), 0.002)
            for seed in range(8):  # of another size each time, so that no buffer is used again
                subject.present(picture(seed, 120, 160 + turn))
                stage.clock.advance(PERIOD)
            script.release()
            stage.clock.advance(PERIOD)
            wait_for(lambda: len(pass_threads()) == 1)
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        gc.enable()
    assert max(subject.stats().failures, script.closed) >= 24  # in frames, or tried beside them
    # A frame and its result are 115 KB, of which a pass has a few, and buffers of two sizes.
    assert kept[-1] - kept[3] < 300_000
