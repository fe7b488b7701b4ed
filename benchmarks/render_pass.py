"""What a render pass costs beside its engine, and what it costs the thread that renders.

    python benchmarks/render_pass.py --json benchmarks/results/render_pass.json
    python benchmarks/render_pass.py --bundle poster-realtime --frames 60

overhead  ``present`` in the mode ``sync`` against ``Model.process`` of the same engine on the same
          arrays, in turns, so that a busy moment of the machine falls on both: the medians, and the
          median of the differences of neighbours. An engine's own time varies by more than that,
          so ``outside the engine`` is what ``present`` took less the engine's time in the same
          call: loading, the way to the worker's thread and back, checks, and the copy into ``out``.
          The promise is 0.3 ms at 1280x720.
live      ``present`` in the mode ``live``, where it never waits: what a frame of the application
          loses, with and without a conversion of its pixels. A pause of the frame's period lies
          between two calls, or there would be no new results to deliver.
extras    What the stabiliser, a mask, and moving a result along motion vectors add; on the worker
          (``stabilise``, ``composite``) or to the call (``store``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import topcoat.runtime as tr
from topcoat.runtime._machine import processor
from topcoat.runtime.bundle import SizeRule
from topcoat.runtime.render_pass._engines import Seat

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "tests" / "runtime" / "data" / "blocks.topcoat"
MODELS = ("poster-light", "poster-realtime")
SIZES = ((360, 640), (720, 1280), (1080, 1920))
PROMISED_MS = 0.3
SECTIONS = ("overhead", "live", "extras")
POLICIES = {"guarded": tr.Policy(), "trusted": tr.Policy(hang_ms=None)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        nargs="+",
        help="default: the tests' tiny model, and two built-in styles",
    )
    parser.add_argument("--backend", default="onnxruntime-cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=200, help="per case (default: 200)")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.frames < 10:
        print(f"render_pass: --frames is {arguments.frames}, wanted 10 or more", file=sys.stderr)
        return 2
    bundles = arguments.bundle or [BUNDLE, *map(Path, MODELS)]
    options = {
        "backend": arguments.backend,
        "threads": arguments.threads,
        "allow_unverified": True,
    }
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "logical": os.cpu_count()},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "backend": arguments.backend,
        "threads": arguments.threads,
        "frames_per_case": arguments.frames,
        "bundles": [],
    }
    try:
        if "overhead" in arguments.sections:
            rows = overhead_of_copying(arguments.frames)
            copying = {"bundle": "an engine that copies", "overhead": rows}
            show(copying)
            result["bundles"].append(copying)
        for bundle in bundles:
            manifest = tr.read_manifest(bundle)
            if manifest.scale != 1:
                print(f"{bundle.name}: left out: it enlarges", file=sys.stderr)
                continue
            measures = {
                "overhead": measure_overhead,
                "live": measure_live,
                "extras": measure_extras,
            }
            measured = {"bundle": bundle.name} | {
                name: measures[name](bundle, options, arguments.frames)
                for name in arguments.sections
            }
            show(measured)
            result["bundles"].append(measured)
    except tr.TopcoatError as error:
        print(f"render_pass: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


class Copying:
    """An engine that copies: what the pass adds where the caches are warm."""

    name, scale, memory_per_pixel = "copying", 1, None
    size = SizeRule(multiple=1, min=1, max=None, pad="edge")

    def open(self) -> list[Seat]:
        """Return it, loaded."""
        return [Seat("copying", Copying, self)]

    seats = open

    def explain(self) -> str:
        """Return nothing: there is no choice."""
        return ""

    def run(self, source: tr.Frame, result: tr.Frame) -> object:
        """Copy."""
        np.copyto(result, source)
        return result

    def close(self) -> None:
        """Do nothing."""


def measure_overhead(bundle: Path, options: dict[str, Any], frames: int) -> list[dict[str, Any]]:
    with tr.open(bundle, **options) as model:

        def bare(out: tr.Frame, frame: tr.Frame) -> object:
            return model.process(frame, out)

        return [
            row
            for policy in POLICIES
            for row in overhead(
                bare,
                lambda: tr.Pass.open(bundle, mode="sync", policy=POLICIES[policy], **options),  # noqa: B023
                policy,
                frames,
            )
        ]


def overhead_of_copying(frames: int) -> list[dict[str, Any]]:
    return [
        row
        for policy, values in POLICIES.items()
        for row in overhead(
            lambda out, frame: Copying().run(frame, out),
            lambda: tr.Pass(Copying(), mode="sync", policy=values),  # noqa: B023
            policy,
            frames,
        )
    ]


def overhead(
    bare: Callable[[tr.Frame, tr.Frame], object],
    opened: Callable[[], tr.Pass],
    policy: str,
    frames: int,
) -> list[dict[str, Any]]:
    rows = []
    rng = np.random.default_rng(0)
    for height, width in SIZES[:2]:
        colors = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(2)]
        out, own = np.empty_like(colors[0]), np.empty_like(colors[0])
        with opened() as subject:
            subject.prepare((height, width)).wait(600)
            for name, target in (("out=None", None), ("out=array", out)):
                results: list[tr.Timings] = []
                bare_ms, present_ms = in_turns(
                    partial(bare, own),
                    partial(_present, subject, target, results),
                    colors,
                    frames,
                )
                kept = results[-frames:]
                outside = [ms - one.infer for ms, one in zip(present_ms, kept, strict=True)]
                added = [b - a for a, b in zip(bare_ms, present_ms, strict=True)]
                rows.append(
                    {
                        "size": [height, width],
                        "case": name,
                        "policy": policy,
                        "bare_ms": statistics.median(bare_ms),
                        "present_ms": statistics.median(present_ms),
                        "added_ms": statistics.median(present_ms) - statistics.median(bare_ms),
                        "added_median_of_differences_ms": statistics.median(added),
                        "outside_engine_ms": statistics.median(outside),
                        "of_which_ms": {
                            "load": statistics.median(one.load for one in kept),
                            "to the worker": statistics.median(one.queue for one in kept),
                            "worker": statistics.median(one.work - one.infer for one in kept),
                            "back": statistics.median(
                                one.wait - one.queue - one.work for one in kept
                            ),
                            "store": statistics.median(one.store for one in kept),
                        },
                        "promised_ms": PROMISED_MS if (height, width) == (720, 1280) else None,
                    }
                )
                bare(own, colors[0])
                assert np.array_equal(subject.present(colors[0]).image, own)
    return rows


def _present(
    subject: tr.Pass, out: tr.Frame | None, results: list[tr.Timings], frame: tr.Frame
) -> None:
    results.append(subject.present(frame, out).timings)


def in_turns(
    first: Callable[[Any], object],
    second: Callable[[Any], object],
    arguments: Sequence[Any],
    times: int,
) -> tuple[list[float], list[float]]:
    """Return how long each took, in ms; which of them goes first changes every time."""
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(times + 5):
        argument = arguments[turn % len(arguments)]
        order = ((0, first), (1, second)) if turn % 2 else ((1, second), (0, first))
        for which, call in order:
            begin = time.perf_counter_ns()
            call(argument)
            elapsed = (time.perf_counter_ns() - begin) / 1e6
            if turn >= 5:
                took[which].append(elapsed)
    return took


def measure_live(bundle: Path, options: dict[str, Any], frames: int) -> list[dict[str, Any]]:
    layouts = {
        "rgb8": tr.Layout(),
        "bgra8": tr.Layout(format="bgra8"),
        "rgba16f linear": tr.Layout(format="rgba16f", color_space="linear"),
    }
    rows = []
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        for name, layout in layouts.items():
            colors = [frame_of(rng, height, width, layout) for _ in range(2)]
            with tr.Pass.open(bundle, mode="live", **options) as subject:
                subject.prepare((height, width)).wait(600)
                given = [tr.RenderFrame(color=color, layout=layout) for color in colors]
                stats = paced(subject, given, frames)
            rows.append({"size": [height, width], "layout": name, **stats})
    return rows


def measure_extras(bundle: Path, options: dict[str, Any], frames: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for height, width in SIZES[:2]:
        color = frame_of(rng, height, width, tr.Layout())
        motion = tr.Motion(data=rng.normal(0, 2, (height, width, 2)).astype(np.float32))
        depth = tr.Depth(data=rng.random((height, width), np.float32))
        mask = rng.integers(0, 256, (height, width), np.uint8)
        still, moving = tr.RenderFrame(color=color), tr.RenderFrame(color=color, motion=motion)
        full = tr.RenderFrame(color=color, motion=motion, depth=depth)
        masked = tr.RenderFrame(color=color, mask=mask)
        cases: list[tuple[str, tr.RenderFrame, dict[str, Any], tr.Policy]] = [
            ("plain", still, {}, tr.Policy()),
            ("strength 0.5", still, {"strength": 0.5}, tr.Policy()),
            ("mask", masked, {}, tr.Policy()),
            ("stabiliser", still, {"stabilise": 0.5}, tr.Policy()),
            ("stabiliser, motion and depth", full, {"stabilise": 0.5}, tr.Policy()),
            ("every result moved", moving, {}, tr.Policy(align=True)),
        ]
        for name, frame, settings, policy in cases:
            with tr.Pass.open(bundle, mode="live", policy=policy, **options) as subject:
                subject.prepare((height, width)).wait(600)
                subject.set(**settings)
                rows.append(
                    {"size": [height, width], "case": name, **paced(subject, [frame], frames)}
                )
    return rows


def paced(subject: tr.Pass, frames: Sequence[tr.RenderFrame], times: int) -> dict[str, Any]:
    """Present frames, each when the one before it is finished, and return the medians in ms."""
    for number in range(times + 5):
        subject.present(frames[number % len(frames)])
        worker = subject._lane._worker
        until = time.monotonic() + 5
        while worker is not None and worker.busy and time.monotonic() < until:
            time.sleep(0.0005)
        time.sleep(0.001)
    stats = subject.stats(times)
    stages = {
        name: stats.stages[name].p50 if name in stats.stages else 0.0
        for name in ("present", "load", "store", "infer", "stabilise", "composite", "work")
    }
    return {
        "p50_ms": stages,
        "present_p99_ms": stats.stages["present"].p99,
        "fresh": stats.statuses[tr.Status.FRESH],
        "copied_bytes": stats.copied_bytes,
    }


def frame_of(
    rng: np.random.Generator, height: int, width: int, layout: tr.Layout
) -> np.ndarray[Any, Any]:
    color = rng.integers(0, 256, (height, width, layout.channels), np.uint8)
    return color if layout.dtype == np.uint8 else (color / 255).astype(layout.dtype)


def show(measured: dict[str, Any]) -> None:
    if "overhead" in measured:
        print(f"{measured['bundle']}: overhead in sync mode, ms")
    for row in measured.get("overhead", ()):
        height, width = row["size"]
        promise = "" if row["promised_ms"] is None else f"   (promised {row['promised_ms']})"
        what = f"{row['policy']}, {row['case']}"
        print(
            f"  {width}x{height:<6}{what:<20} bare {row['bare_ms']:7.2f}  present"
            f" {row['present_ms']:7.2f}  added {row['added_ms']:+.3f}, of neighbours"
            f" {row['added_median_of_differences_ms']:+.3f}, outside the engine"
            f" {row['outside_engine_ms']:.3f}{promise}"
        )
        shares = ", ".join(f"{name} {ms:.3f}" for name, ms in row["of_which_ms"].items())
        print(f"  {'':<24}of which {shares}")
    for part in ("live", "extras"):
        if part not in measured:
            continue
        print(f"{measured['bundle']}: {part}, medians in ms")
        for row in measured[part]:
            height, width = row["size"]
            times = row["p50_ms"]
            shown = "  ".join(f"{name} {value:6.2f}" for name, value in times.items())
            what = row.get("layout") or row.get("case")
            print(f"  {width}x{height:<6}{what:<30}{shown}  p99 {row['present_p99_ms']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
