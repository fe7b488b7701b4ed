"""Style a rendered 3D scene as its last pass, frame after frame, and say how it kept the pace.

    python examples/render_scene.py --out styled.mp4
    python examples/render_scene.py --model candy.topcoat --still last.png --json run.json

A lighthouse by the sea is drawn with OpenGL, without a window. Every frame goes through the pass
with its motion vectors and depth, at the pace of --fps as a game would, and comes out with a strip
that says what the pass did. In --mode live nothing ever waits for the network.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scene import options

import topcoat.runtime as tr

LARGEST_RUN = 3 << 30
"""Bytes of frames that are kept until the end, so that no encoder disturbs the timing."""


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return options.run("render_scene", lambda: print(table(run(args))))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, metavar="BUNDLE", help="a style (default: a built-in one)")
    add("--size", type=options.size, default=(640, 360), metavar="WxH", help="default: 640x360")
    add("--frames", type=options.positive, default=240, metavar="N", help="default: 240")
    add("--fps", type=options.positive, default=30, metavar="N", help="the pace (default: 30)")
    add("--mode", choices=("live", "sync", "file"), default="live",
        help="live: never wait for the network (default); sync: each frame's own result, at most"
        " for the budget; file: as fast as it goes, nothing dropped")  # fmt: skip
    add("--budget-ms", type=float, metavar="MS", help="of a frame (default: 1000 / fps)")
    add("--strength", type=options.share, default=1.0, help="of the style, 0 to 1 (default: 1)")
    add("--stabilise", type=options.share, default=0.0, help="against flicker, 0 to 1 (default: 0)")
    add("--jitter", action="store_true", help="move the camera by up to half a pixel, as TAA does")
    add("--transport", choices=("auto", "read", "pbo"), default="auto",
        help="how pixels leave OpenGL and come back (default: whichever is faster)")  # fmt: skip
    add("--compare", action="store_true", help="the left half stays as it was rendered")
    add("--no-hud", action="store_true", help="leave the strip with the status out")
    add("--out", type=Path, metavar="VIDEO", help="write .mp4, .mov, .mkv, .webm or .webp")
    add("--still", type=Path, metavar="PNG", help="write the last frame")
    add("--json", type=Path, metavar="FILE", help="write the figures, with machine and settings")
    args = parser.parse_args(argv)
    if args.budget_ms is None:
        args.budget_ms = 1000 / args.fps
    elif not 0 < args.budget_ms < float("inf"):
        parser.error(f"--budget-ms is {args.budget_ms}, wanted more than 0")
    if args.out is not None and (args.size[0] % 2 or args.size[1] % 2):
        parser.error(f"a video wants even sides, and --size is {args.size[0]}x{args.size[1]}")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Render, style and write; return the figures."""
    from scene import media
    from scene.hud import Hud
    from scene.renderer import SceneRenderer, create_context

    from topcoat.runtime.gl import GLTarget

    for path, endings in (
        (args.out, media.VIDEOS),
        (args.still, (".png",)),
        (args.json, (".json",)),
    ):
        if path is not None:
            media.check_target(path, endings)
    if args.out is not None and args.out.suffix.lower() in media.ENCODERS:
        import av  # noqa: F401 - a missing package is said now, not after the run
    width, height = args.size
    bundle = args.model or options.bundles()[0]
    # A file is waited for; then no quality is given up for time, which is only reported.
    budget_ms = None if args.mode == "file" else args.budget_ms
    with tr.Pass.open(bundle, mode=args.mode, budget_ms=budget_ms) as pass_:
        options.check_scale(bundle, pass_.scale)
        kept = args.frames if args.out is not None else 1
        if kept * width * height * 3 > LARGEST_RUN:
            raise options.ExampleError(
                f"{args.frames} frames of {width}x{height} take more than 3 GiB until they are"
                " encoded; give fewer --frames or a smaller --size"
            )
        video = np.empty((kept, height, width, 3), np.uint8)
        pass_.set(strength=args.strength, stabilise=args.stabilise)
        scene = SceneRenderer(create_context(), width, height)
        screen = scene.context.texture((width, height), 4)  # what a window would show
        hud = Hud(width, args.budget_ms)
        untouched = np.empty((height, width, 4), np.uint8)
        scene.draw(0)  # drivers compile shaders when they are first used
        pass_.prepare((height, width)).wait()
        gl = GLTarget(scene.context, scene.colour, screen, transport=args.transport)

        results, times = [], []
        period = 1 / args.fps
        due = time.perf_counter()
        for index in range(args.frames):
            begin = time.perf_counter()
            scene.draw(index, halton(index) if args.jitter else (0.0, 0.0))
            scene.context.finish()  # so that present is not charged with the rendering
            rendered = time.perf_counter()
            result = gl.present(pass_, motion=scene.motion, depth=scene.depth, index=index)
            presented = time.perf_counter()
            results.append((result.status.name, result.age_frames, result.timings.work))

            picture = video[index % kept]
            media.to_rgb(result.image, picture)
            if args.compare:
                scene.colour.read_into(untouched)
                media.to_rgb(untouched, picture, columns=width // 2)
            if not args.no_hud:
                hud.draw(picture, result)
            end = time.perf_counter()
            times.append((rendered - begin, presented - rendered, end - begin))
            if args.mode != "file":
                # As a display would: the next frame begins at the next tick that is still to come.
                due += period
                while due < end:
                    due += period
                time.sleep(max(0.0, due - time.perf_counter()))
        explanation, engine = f"{pass_.explain()}\n{gl.explain()}", result.engine
        gl.close()
    print(explanation)
    if args.out is not None:
        media.write_video(args.out, video, args.fps)
    if args.still is not None:
        media.write_png(args.still, video[(args.frames - 1) % kept])
    report = figures(args, np.array(times) * 1e3, results)
    report["machine"] |= {"renderer": scene.context.info["GL_RENDERER"], "engine": engine}
    report["settings"]["bundle"] = bundle.name
    if args.json is not None:
        media.write_text(args.json, json.dumps(report, indent=2) + "\n")
    return report


def halton(index: int) -> tuple[float, float]:
    """Return where in its pixel the camera looks in this frame: -0.5 to 0.5 for x and y."""

    def radical_inverse(base: int) -> float:
        value, part, left = 0.0, 1.0, index % 16 + 1
        while left:
            part /= base
            left, digit = divmod(left, base)
            value += digit * part
        return value

    return radical_inverse(2) - 0.5, radical_inverse(3) - 0.5


def figures(
    args: argparse.Namespace,
    times: np.ndarray,
    results: list[tuple[str, int, float]],
) -> dict[str, Any]:
    """Return what the run cost. ``times`` is (frames, 3) ms: rendering, ``present``, all."""
    stages = {"render": times[:, 0], "present": times[:, 1], "frame": times[:, 2]}
    work = np.array([ms for _, _, ms in results if ms > 0])
    if work.size:
        stages["network"] = work
    budget = args.budget_ms
    return {
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "python": platform.python_version(),
        },
        "settings": {
            "size": "{}x{}".format(*args.size),
            "frames": args.frames,
            "fps": args.fps,
            "mode": args.mode,
            "budget_ms": round(budget, 3),
            "strength": args.strength,
            "stabilise": args.stabilise,
            "jitter": args.jitter,
        },
        "ms": {name: distribution(values) for name, values in stages.items()},
        "present_within_budget": float(np.mean(times[:, 1] <= budget)),
        "frame_within_budget": float(np.mean(times[:, 2] <= budget)),
        "statuses": dict(Counter(status for status, _, _ in results)),
        "ages": dict(sorted(Counter(age for _, age, _ in results).items())),
    }


def distribution(values: np.ndarray) -> dict[str, float]:
    """Return percentiles by nearest rank, and the worst."""
    marks = {"p50": 50, "p95": 95, "p99": 99}
    ranks = {
        name: float(np.percentile(values, q, method="inverted_cdf")) for name, q in marks.items()
    }
    return {name: round(value, 3) for name, value in {**ranks, "max": float(values.max())}.items()}


def table(report: dict[str, Any]) -> str:
    """Return the figures for people."""
    settings = report["settings"]
    lines = ["", f"{'ms':10}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}"]
    for name, row in report["ms"].items():
        lines.append(f"{name:10}" + "".join(f"{value:8.2f}" for value in row.values()))
    lines += [
        "",
        f"{settings['frames']} frames of {settings['size']}, {settings['mode']},"
        f" budget {settings['budget_ms']:.1f} ms",
        f"presented within the budget: {report['present_within_budget']:.1%};"
        f" whole frame within it: {report['frame_within_budget']:.1%}",
        "status: " + ", ".join(f"{name} {count}" for name, count in report["statuses"].items()),
        "age in frames: " + ", ".join(f"{age}: {count}" for age, count in report["ages"].items()),
    ]
    return "\n".join(lines)


def processor() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
