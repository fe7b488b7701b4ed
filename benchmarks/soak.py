"""A render pass for a long time: memory, threads, descriptors, rhythm and a busy machine.

    python benchmarks/soak.py --frames 20000 --json soak.json       all of it: some minutes
    python benchmarks/soak.py --sections soak --modes live          a part

soak        Frames of changing size and layout go through a pass of a real bundle on a real engine,
            while its settings, its bundle, motion vectors and camera change and its engine fails,
            gives back nothing, is slow or hangs now and then. Every picture's shape is checked, and
            every fifth's pixels, where it is a plain result of its own frame, against the engine
            asked directly.
steady      As many frames of one size with the stabiliser, a mask and motion, and nothing changes.
cadence     The same frames back to back, every 33 ms and after 2 s of idling: what a pause costs.
contention  The same with another process that keeps a core busy.

How memory is judged: resident memory is read every few frames. Buffers of two sizes, or two
engines during a swap, come and go, which only ever adds to it; a leak raises its floor. So the
second half of the run is cut into blocks, each block gives its lowest reading, and a straight line
is fitted through these by least squares: its slope is the bytes that a frame leaves behind, and
twice its standard error says how sure that is. Engines that come and go leave holes in the heap of
the C library, which keeps them: resident memory grows for that, too, and so the bytes that are in
use, by glibc's own count of all its heaps (mallinfo2), are judged in the same way. Python's own
count of memory, which knows numpy's arrays, is compared between two moments at which the pass is in
the same state.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import topcoat.runtime as tr
from topcoat.runtime._machine import processor
from topcoat.runtime.render_pass._engines import BundleSource, Runner, Seat

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "tests" / "runtime" / "data" / "blocks.topcoat"
SIZES = ((360, 640), (180, 320), (238, 426))
LAYOUTS = (
    tr.Layout(),
    tr.Layout(format="bgra8"),
    tr.Layout(format="rgba16f", color_space="linear", alpha="premultiplied"),
    tr.Layout(format="rgba8", origin="bottom-left", alpha="drop"),
)
CHANGES = ("size", "layout", "swap", "set", "motion", "mask", "cut", "reset", "plain")
BLENDS = ("normal", "luminance", "colour")
MODES = ("live", "sync", "file")
SECTIONS = ("soak", "steady", "cadence", "contention")
LEAST = 200
"""Frames of a soak: with fewer there is no second half to speak of."""
BLOCKS = 40
Array = npt.NDArray[Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=20_000, help="per mode (default: 20000)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--backend", default="onnxruntime-cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.frames < LEAST:
        print(f"soak: --frames is {arguments.frames}, wanted {LEAST} or more", file=sys.stderr)
        return 2
    settings = Settings(arguments.bundle, arguments.backend, arguments.threads)
    try:
        BundleSource(arguments.bundle)
    except tr.TopcoatError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "logical": os.cpu_count()},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "bundle": arguments.bundle.name,
        "backend": arguments.backend,
        "threads": arguments.threads,
    }
    if "soak" in arguments.sections:
        result["soak"] = []
        for mode in arguments.modes:
            report = soak(settings, mode, arguments.frames, arguments.seed)
            show_soak(report)
            result["soak"].append(asdict(report))
    if "steady" in arguments.sections:
        result["steady"] = []
        for mode in arguments.modes:
            steadily = steady(settings, mode, arguments.frames)
            print(
                f"steady, {mode}: {steadily['frames']} frames, floor of resident memory"
                f" {steadily['slope']:+.1f} ± {steadily['slope_error']:.1f} bytes per frame,"
                f" {steadily['rss_start'] / 1e6:.1f} -> {steadily['rss_end'] / 1e6:.1f} MB"
            )
            result["steady"].append(steadily)
    if "cadence" in arguments.sections:
        result["cadence"] = cadence(settings)
        show_rhythms("cadence", result["cadence"])
    if "contention" in arguments.sections:
        result["contention"] = contention(settings)
        show_rhythms("contention", result["contention"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


@dataclass(frozen=True)
class Settings:
    """Of the engine."""

    bundle: Path = BUNDLE
    backend: str = "onnxruntime-cpu"
    threads: int = 1

    def options(self) -> dict[str, Any]:
        """Return what opens it."""
        return {"backend": self.backend, "threads": self.threads, "allow_unverified": True}


# --- faults -------------------------------------------------------------------------------------


@dataclass
class Faults:
    """What goes wrong with an engine, and how often: one run in so many."""

    rng: np.random.Generator
    one_in: dict[str, int]
    happened: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    closed: int = 0

    def next(self) -> str:
        """Return what goes wrong with the next run; "" if nothing does."""
        for name, often in self.one_in.items():
            if self.rng.integers(often) == 0:
                self.happened[name] += 1
                return name
        return ""


FAULTS = {"error": 400, "lost": 900, "nothing written": 500, "slow": 200, "hang": 1500}
SLOW, HANG = 0.02, 0.4
"""Seconds."""


class FaultyRunner:
    """A real engine that fails now and then, unless it is the sound one that stands in."""

    def __init__(self, runner: Runner, faults: Faults, *, sound: bool = False) -> None:
        self._runner = runner
        self._faults = faults
        self._sound = sound
        faults.opened += 1

    def run(self, source: tr.Frame, result: tr.Frame) -> object:
        """Run the engine, or fail."""
        fault = "" if self._sound else self._faults.next()
        if fault == "error":
            raise tr.BackendError("an error on purpose")
        if fault == "lost":
            raise tr.DeviceLostError("a lost device on purpose")
        if fault == "nothing written":
            return result
        if fault in ("slow", "hang"):
            time.sleep(SLOW if fault == "slow" else HANG)
        return self._runner.run(source, result)

    def close(self) -> None:
        """Free the engine."""
        self._faults.closed += 1
        self._runner.close()


class FaultySource(BundleSource):
    """A bundle whose engine fails now and then, and a sound one that stands in meanwhile."""

    def __init__(self, settings: Settings, faults: Faults) -> None:
        super().__init__(settings.bundle, **settings.options())
        self._faults = faults

    def open(self) -> list[Seat]:
        """Load the first one."""
        seats = super().open()
        assert seats[0].runner is not None
        runner = FaultyRunner(seats[0].runner, self._faults)
        made = self._pair(seats[0].open)
        made[0].runner = runner
        return made

    def seats(self) -> list[Seat]:
        """Load none."""
        return self._pair(super().seats()[0].open)

    def _pair(self, load: Callable[[], Runner]) -> list[Seat]:
        return [
            Seat("faulty", lambda: FaultyRunner(load(), self._faults)),
            Seat("sound", lambda: FaultyRunner(load(), self._faults, sound=True)),
        ]


# --- soak ---------------------------------------------------------------------------------------


@dataclass
class Soak:
    """How a run went. Bytes and counts; ``slope`` in bytes per frame."""

    mode: str
    frames: int
    seconds: float
    statuses: dict[str, int]
    changes: dict[str, int]
    faults: dict[str, int]
    engines_opened: int
    engines_closed: int
    checked_pictures: int
    rss_start: int
    rss_end: int
    slope: float
    slope_error: float
    """Twice the standard error."""
    in_use_start: int | None
    """Of the C library's heaps; None: it does not say."""
    in_use_end: int | None
    in_use_slope: float | None
    in_use_slope_error: float | None
    traced_growth: int
    """Of Python's own count between two moments of the same state, half a run apart."""
    threads_most: int
    threads_left: int
    """After the end, beyond those before the start."""
    descriptors_most: int
    descriptors_left: int
    present_p50_ms: float
    present_p99_ms: float
    failures: int
    demotions: int
    dropped: int


def soak(
    settings: Settings,
    mode: str,
    frames: int,
    seed: int = 0,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    period: float = 0.004,
    often: int = 1,
    rest: float = 0.05,
    trace: bool = False,
) -> Soak:
    """Run so many frames through a pass of which something changes every few frames.

    Args:
        settings: the bundle and its engine.
        mode: of the pass.
        frames: how many.
        seed: of what changes and fails.
        sizes: (height, width) of frames, among which the size changes.
        period: s between two frames in the mode ``live``; the others wait anyway.
        often: how many times as often as usual something fails, for short runs.
        rest: s for which a failed engine rests.
        trace: count Python's memory, too; it slows all of it down.

    Raises:
        AssertionError: a picture, a status or a count is wrong.
    """
    rng = np.random.default_rng(seed)
    faults = Faults(
        np.random.default_rng(seed + 1), {k: max(2, v // often) for k, v in FAULTS.items()}
    )
    changes: Counter[str] = Counter()
    threads_before, files_before = threading.active_count(), descriptors()
    policy = tr.Policy(hang_ms=200, retry_s=rest, retry_max_s=4 * rest, queue=3)
    rss: list[tuple[int, int]] = []
    used: list[tuple[int, int]] = []
    traced: list[int] = []
    most = Counter[str]()
    statuses: Counter[str] = Counter()
    checked = 0
    model = tr.open(settings.bundle, **settings.options())
    subject = tr.Pass(FaultySource(settings, faults), mode=mode, policy=policy)  # type: ignore[arg-type]
    app = Application(rng, sizes)
    began = time.perf_counter()
    if trace:
        tracemalloc.start()
    try:
        preparation = subject.prepare(*sizes)
        settle(lambda: preparation.done, 60)  # it may fail, and is then tried again
        for number in range(frames):
            if rng.integers(25) == 0:
                changes[app.change(subject, settings, faults)] += 1
            frame = app.frame()
            out = app.out() if rng.integers(2) else None
            result = subject.present(frame, out)
            statuses[result.status.value] += 1
            assert result.image.shape == frame.color.shape, "a picture of a wrong size"
            assert result.image.dtype == frame.color.dtype
            assert out is None or result.image is out
            assert result.age_frames == app.count - 1 - result.index
            own = result.status is tr.Status.FRESH and result.age_frames == 0
            if number % 5 == 0 and own and app.plain:
                assert np.array_equal(result.image, model.process(frame.color)), "a wrong picture"
                checked += 1
            if mode == "live":
                time.sleep(period)
            if number % 10 == 0:
                most["threads"] = max(most["threads"], threading.active_count())
                most["files"] = max(most["files"], descriptors())
                rss.append((number, resident()))
                if (now := in_use()) is not None:
                    used.append((number, now))
            if trace and number in (frames // 2, frames - 1):
                traced.append(calm(subject, app))
        stats = subject.stats()
        assert sum(stats.statuses.values()) == stats.frames
    finally:
        if trace:
            tracemalloc.stop()
        subject.close()
        model.close()
    assert sum(statuses.values()) == frames
    seconds = time.perf_counter() - began
    settle(lambda: faults.opened == faults.closed and threading.active_count() <= threads_before)
    slope, error = fit([reading for reading in rss if reading[0] >= frames // 2])
    used_fit = fit([reading for reading in used if reading[0] >= frames // 2]) if used else None
    return Soak(
        mode=mode,
        frames=frames,
        seconds=seconds,
        statuses=dict(statuses),
        changes=dict(changes),
        faults=dict(faults.happened),
        engines_opened=faults.opened,
        engines_closed=faults.closed,
        checked_pictures=checked,
        rss_start=rss[0][1],
        rss_end=rss[-1][1],
        slope=slope,
        slope_error=error,
        in_use_start=used[0][1] if used else None,
        in_use_end=used[-1][1] if used else None,
        in_use_slope=used_fit[0] if used_fit else None,
        in_use_slope_error=used_fit[1] if used_fit else None,
        traced_growth=traced[1] - traced[0] if trace else 0,
        threads_most=most["threads"] - threads_before,
        threads_left=threading.active_count() - threads_before,
        descriptors_most=most["files"] - files_before,
        descriptors_left=descriptors() - files_before,
        present_p50_ms=stats.stages["present"].p50,
        present_p99_ms=stats.stages["present"].p99,
        failures=stats.failures,
        demotions=stats.demotions,
        dropped=stats.dropped,
    )


def steady(
    settings: Settings, mode: str, frames: int, size: tuple[int, int] = (180, 320)
) -> dict[str, Any]:
    """Run frames with everything on and nothing changing; return how memory behaved."""
    app = Application(np.random.default_rng(0), [size])
    app.everything()
    rss = []
    with tr.Pass(BundleSource(settings.bundle, **settings.options()), mode=mode) as subject:  # type: ignore[arg-type]
        subject.prepare(size).wait(60)
        app.apply(subject)
        for number in range(frames):
            subject.present(app.frame())
            if mode == "live":
                time.sleep(0.003)
            if number % 10 == 0:
                rss.append((number, resident()))
    slope, error = fit([reading for reading in rss if reading[0] >= frames // 2])
    return {
        "mode": mode,
        "frames": frames,
        "size": size,
        "slope": slope,
        "slope_error": error,
        "rss_start": rss[len(rss) // 2][1],
        "rss_end": rss[-1][1],
    }


class Application:
    """Frames as an application gives them, out of memory that is made once."""

    def __init__(self, rng: np.random.Generator, sizes: Sequence[tuple[int, int]]) -> None:
        self._rng = rng
        self._sizes = tuple(sizes)
        self._frames: dict[tuple[tuple[int, int], int], tr.RenderFrame] = {}
        self._outs: dict[tuple[tuple[int, int], int], Array] = {}
        self._motion = {
            size: tr.Motion(data=rng.normal(0, 1, (*size, 2)).astype(np.float32)) for size in sizes
        }
        self._depth = {size: tr.Depth(data=rng.random(size, np.float32)) for size in sizes}
        self._masks = {size: rng.integers(0, 256, size, np.uint8) for size in sizes}
        for size in self._sizes:
            for number, layout in enumerate(LAYOUTS):
                color = rng.integers(0, 256, (*size, layout.channels), np.uint8)
                if layout.dtype != np.uint8:
                    color = (color / 255).astype(layout.dtype)
                self._frames[size, number] = tr.RenderFrame(color=color, layout=layout)
                self._outs[size, number] = np.empty_like(color)
        self.count = 0
        self._size, self._layout = self._sizes[0], 0
        self._moving = self._masked = self._cut = False
        self._strength, self._stabilise, self._blend = 1.0, 0.0, "normal"

    @property
    def plain(self) -> bool:
        """Whether results are what the engine makes, in a layout that it can compare."""
        return (
            self._layout == 0
            and not self._masked
            and (self._strength, self._stabilise, self._blend) == (1.0, 0.0, "normal")
        )

    def frame(self) -> tr.RenderFrame:
        """Return the next frame; a line of it is new."""
        frame = self._frames[self._size, self._layout]
        row = self.count % self._size[0]
        frame.color[row] = frame.color[row - 7]
        frame.motion = self._motion[self._size] if self._moving else None
        frame.depth = self._depth[self._size] if self._moving else None
        frame.mask = self._masks[self._size] if self._masked else None
        frame.index, frame.reset = self.count, self._cut
        self.count, self._cut = self.count + 1, False
        return frame

    def out(self) -> Array:
        """Return an array for the next picture."""
        return self._outs[self._size, self._layout]

    def change(self, subject: tr.Pass, settings: Settings, faults: Faults) -> str:
        """Change one thing; return which."""
        rng = self._rng
        what = rng.choice(list(CHANGES))
        if what == "size":
            self._size = self._sizes[rng.integers(len(self._sizes))]
        elif what == "layout":
            self._layout = int(rng.integers(len(LAYOUTS)))
        elif what == "swap":
            subject.swap_source(FaultySource(settings, faults))
        elif what == "set":
            self._strength = float(rng.choice([0, 0.6, 1, 1, 1, 1]))
            self._stabilise = float(rng.choice([0, 0, 0.5, 1]))
            self._blend = str(rng.choice(BLENDS)) if rng.integers(2) else "normal"
            self.apply(subject)
        elif what == "motion":
            self._moving = not self._moving
        elif what == "mask":
            self._masked = not self._masked
        elif what == "cut":
            self._cut = True
        elif what == "plain":
            size = self._size
            self.calm()
            self._size = size
            self.apply(subject)
        else:
            subject.reset()
        return str(what)

    def everything(self) -> None:
        """Give frames of another layout all that there is, and let all of it be used."""
        self._layout, self._moving, self._masked = 1, True, True
        self._strength, self._stabilise, self._blend = 0.7, 0.5, "normal"

    def calm(self) -> None:
        """Go back to the state of the beginning."""
        self._size, self._layout = self._sizes[0], 0
        self._moving = self._masked = self._cut = False
        self._strength, self._stabilise, self._blend = 1.0, 0.0, "normal"

    def apply(self, subject: tr.Pass) -> None:
        """Tell the pass."""
        subject.set(
            strength=self._strength,
            stabilise=self._stabilise,
            blend=self._blend,  # type: ignore[arg-type]
        )


def calm(subject: tr.Pass, app: Application) -> int:
    """Bring a pass into one certain state and return how much memory Python then counts."""
    app.calm()
    app.apply(subject)
    loader, lane = subject._loader, subject._lane
    for preparation in (loader._preparation, loader._swapping):
        if preparation is not None:
            settle(lambda preparation=preparation: preparation.done)  # type: ignore[misc]
    for size in (*reversed(app._sizes), app._sizes[0]):
        # The worker keeps buffers of the last sizes: the same ones each time.
        app._size = size
        for _ in range(4):
            subject.present(app.frame())
            time.sleep(0.01)
    settle(
        lambda: (
            lane.hanging == lane.trying == subject._loader.at_work == 0
            and not (lane._worker is not None and lane._worker.busy)
        )
    )
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def fit(readings: Sequence[tuple[int, int]], blocks: int = BLOCKS) -> tuple[float, float]:
    """Return the slope of the floor of readings, and twice its standard error.

    Args:
        readings: (frame, bytes), in order, at least three.
        blocks: into which they are cut; the lowest reading of each counts.
    """
    blocks = max(3, min(blocks, len(readings) // 3))
    places = np.array_split(np.arange(len(readings)), blocks)
    at = np.array([np.mean([readings[n][0] for n in block]) for block in places])
    floor = np.array([min(readings[n][1] for n in block) for block in places], np.float64)
    x = at - at.mean()
    spread = float((x * x).sum())
    slope = float((x * floor).sum()) / spread
    rest = floor - floor.mean() - slope * x
    error = math.sqrt(float((rest * rest).sum()) / max(1, blocks - 2) / spread)
    return slope, 2 * error


def resident() -> int:
    """Return this process's resident memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _HeapCounts(ctypes.Structure):
    """``struct mallinfo2`` of glibc's malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _heap_counts() -> Callable[[], _HeapCounts] | None:
    counts = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if counts is not None:
        counts.restype = _HeapCounts
    return counts


_counts = _heap_counts()


def in_use() -> int | None:
    """Return how many bytes the C library has given out; None if it does not say."""
    if _counts is None:
        return None
    counts: Any = _counts()
    return int(counts.uordblks + counts.hblkhd)


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted ten times as fast


def settle(done: Callable[[], bool], patience: float = 10.0) -> None:
    """Wait until something is so, or patience ends: whoever looks then sees that it is not."""
    until = time.monotonic() + patience
    while not done() and time.monotonic() < until:
        time.sleep(0.01)


# --- rhythm -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rhythm:
    """Times of frames at one rhythm, in ms."""

    name: str
    mode: str
    frames: int
    infer_p50: float
    infer_p99: float
    present_p50: float
    present_p99: float
    fresh: int


def rhythm(
    settings: Settings, name: str, mode: str, frames: int, gap: float, size: tuple[int, int]
) -> Rhythm:
    """Present frames with a pause after each, and sum up what they took."""
    rng = np.random.default_rng(0)
    colors = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(4)]
    with tr.Pass(BundleSource(settings.bundle, **settings.options()), mode=mode) as subject:  # type: ignore[arg-type]
        subject.prepare(size).wait(60)
        for number in range(8):
            subject.present(colors[number % 4])
            time.sleep(0.02)
        infer, present, fresh = [], [], 0
        for number in range(frames):
            result = subject.present(colors[number % 4])
            present.append(result.timings.present)
            if result.status is tr.Status.FRESH:
                infer.append(result.timings.infer)
                fresh += 1
            if gap:
                time.sleep(gap)
    return Rhythm(
        name=name,
        mode=mode,
        frames=frames,
        infer_p50=nearest_rank(infer, 50),
        infer_p99=nearest_rank(infer, 99),
        present_p50=nearest_rank(present, 50),
        present_p99=nearest_rank(present, 99),
        fresh=fresh,
    )


def nearest_rank(values: Sequence[float], percent: float) -> float:
    """Return the percentile of which each value is one that occurred."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def cadence(settings: Settings, size: tuple[int, int] = (360, 640)) -> dict[str, Any]:
    rows = [
        rhythm(settings, name, mode, frames, gap, size)
        for mode in ("sync", "live")
        for name, frames, gap in (
            ("back to back", 600, 0.0),
            ("every 33 ms", 300, 0.033),
            ("after 2 s idle", 20, 2.0),
        )
        # Back to back a live pass shows hardly a new result: nothing waits for the network.
        if not (mode == "live" and gap == 0)
    ]
    return {"size": size, "rows": [asdict(row) for row in rows]}


def contention(settings: Settings, size: tuple[int, int] = (360, 640)) -> dict[str, Any]:
    rows = []
    for busy in (0, 1, os.cpu_count() or 1):
        context = multiprocessing.get_context("spawn")
        hogs = [context.Process(target=spin, daemon=True) for _ in range(busy)]
        for hog in hogs:
            hog.start()
        try:
            if hogs:
                time.sleep(1.0)  # an interpreter has to start
            name = f"{busy} busy {'process' if busy == 1 else 'processes'}"
            rows += [
                rhythm(settings, name, mode, frames, gap, size)
                for mode, frames, gap in (("sync", 300, 0.0), ("live", 300, 0.033))
            ]
        finally:
            for hog in hogs:
                hog.kill()
                hog.join()
    return {"size": size, "rows": [asdict(row) for row in rows]}


def spin() -> None:
    """Keep a core busy."""
    while True:
        sum(range(10_000))


# --- showing ------------------------------------------------------------------------------------


def show_soak(report: Soak) -> None:
    print(f"soak, {report.mode}: {report.frames} frames in {report.seconds:.0f} s")
    for name, counts in (
        ("statuses", report.statuses),
        ("changes", report.changes),
        ("faults", report.faults),
    ):
        seen = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        print(f"  {name:<22} {seen}")
    rows = (
        ("pictures compared", f"{report.checked_pictures}"),
        ("engines", f"{report.engines_opened} opened, {report.engines_closed} closed"),
        ("resident memory", f"{report.rss_start / 1e6:.1f} -> {report.rss_end / 1e6:.1f} MB"),
        ("its floor's slope", f"{report.slope:+.1f} ± {report.slope_error:.1f} bytes per frame"),
        (
            "in use",
            "the C library does not say"
            if report.in_use_start is None or report.in_use_end is None
            else f"{report.in_use_start / 1e6:.1f} -> {report.in_use_end / 1e6:.1f} MB",
        ),
        (
            "its floor's slope",
            "-"
            if report.in_use_slope is None
            else f"{report.in_use_slope:+.1f} ± {report.in_use_slope_error:.1f} bytes per frame",
        ),
        ("threads", f"{report.threads_most} at most, {report.threads_left} left"),
        ("descriptors", f"{report.descriptors_most} at most, {report.descriptors_left} left"),
        ("present", f"p50 {report.present_p50_ms:.2f} ms, p99 {report.present_p99_ms:.2f} ms"),
        ("counted", f"{report.failures} failures, {report.demotions} demotions"),
        ("", f"{report.dropped} frames overtaken"),
    )
    for what, text in rows:
        print(f"  {what:<22} {text}")


def show_rhythms(title: str, report: dict[str, Any]) -> None:
    height, width = report["size"]
    print(f"{title}, {width}x{height}, ms")
    print(f"  {'':<18}{'mode':<6}{'frames':>7}{'fresh':>7}", end="")
    print(f"{'infer p50':>11}{'p99':>8}{'present p50':>13}{'p99':>8}")
    for row in report["rows"]:
        print(
            f"  {row['name']:<18}{row['mode']:<6}{row['frames']:>7}{row['fresh']:>7}"
            f"{row['infer_p50']:>11.2f}{row['infer_p99']:>8.2f}"
            f"{row['present_p50']:>13.2f}{row['present_p99']:>8.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
