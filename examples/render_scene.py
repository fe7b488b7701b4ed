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

import topcoat.runtime as tr

LARGEST_RUN = 3 << 30
"""Bytes of frames that are kept until the end, so that no encoder disturbs the timing."""


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        report = run(args)
    except (tr.TopcoatError, RuntimeError, ValueError, MemoryError) as error:
        print(f"render_scene: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"render_scene: {error.name} is missing; pip install"
            " 'topcoat-runtime[gl,images,video]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\nrender_scene: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(table(report))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="BUNDLE", help="a style (default: one of examples/models)")
    add("--size", type=size, default=(640, 360), metavar="WxH", help="default: 640x360")
    add("--frames", type=positive, default=240, metavar="N", help="how many (default: 240)")
    add("--fps", type=positive, default=30, metavar="N", help="their pace (default: 30)")
    add("--mode", choices=("live", "sync", "file"), default="live",
        help="live: never wait for the network (default); sync: each frame's own result, at most"
        " for the budget; file: as fast as it goes, nothing dropped")  # fmt: skip
    add("--budget-ms", type=float, metavar="MS", help="of a frame (default: 1000 / fps)")
    add("--strength", type=share, default=1.0, help="how much of the style: 0 to 1 (default: 1)")
    add("--stabilise", type=share, default=0.0, help="against flicker: 0 to 1 (default: 0)")
    add("--jitter", action="store_true", help="move the camera by up to half a pixel, as TAA does")
    add("--compare", action="store_true", help="the left half stays as it was rendered")
    add("--no-hud", action="store_true", help="leave the strip with the status out")
    add("--out", type=Path, metavar="VIDEO", help="write .mp4, .mov, .mkv or .webm")
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
    from scene import GBuffer, Hud, SceneRenderer, create_context, default_bundle, media

    for path, endings in (
        (args.out, media.ENCODERS),
        (args.still, (".png",)),
        (args.json, (".json",)),
    ):
        if path is not None:
            media.check_target(path, endings)
    if args.out is not None:
        import av  # noqa: F401 - a missing package is said now, not after the run
    width, height = args.size
    bundle = args.model or default_bundle()
    with tr.Pass.open(bundle, mode=args.mode, budget_ms=args.budget_ms) as pass_:
        if pass_.scale != 1:
            raise ValueError(f"{bundle} enlarges frames, wanted a style of the frame's own size")
        kept = args.frames if args.out is not None else 1
        if kept * width * height * 3 > LARGEST_RUN:
            raise ValueError(
                f"{args.frames} frames of {width}x{height} take more than 3 GiB until they are"
                " encoded; give fewer --frames or a smaller --size"
            )
        video = np.empty((kept, height, width, 3), np.uint8)
        pass_.set(strength=args.strength, stabilise=args.stabilise)
        scene = SceneRenderer(create_context(), width, height)
        buffers = GBuffer.of(width, height)
        frame = tr.RenderFrame(
            color=buffers.colour,
            layout=tr.Layout(format="rgba8", origin="bottom-left"),
            motion=tr.Motion(data=buffers.motion, direction="to-previous"),
            depth=tr.Depth(data=buffers.depth),
        )
        hud = Hud(width, args.budget_ms)
        scene.draw(0)  # drivers compile shaders when they are first used
        pass_.prepare((height, width)).wait()

        styled = np.empty_like(buffers.colour)
        results, times = [], []
        period = 1 / args.fps
        due = time.perf_counter()
        for index in range(args.frames):
            begin = time.perf_counter()
            scene.draw(index, halton(index) if args.jitter else (0.0, 0.0))
            scene.read(buffers)
            rendered = time.perf_counter()
            frame.index = index
            result = pass_.present(frame, out=styled)
            presented = time.perf_counter()
            results.append((result.status.name, result.age_frames, result.timings.work))
            picture = video[index % kept]
            for channel in range(3):  # of four: several times faster than all at once
                picture[..., channel] = result.image[::-1, :, channel]
            if args.compare:
                picture[:, : width // 2] = buffers.colour[::-1, : width // 2, :3]
                picture[:, width // 2 - 1 : width // 2 + 1] = 255
            if not args.no_hud:
                hud.draw(picture, result)
            end = time.perf_counter()
            times.append((rendered - begin, presented - rendered, end - begin))
            if args.mode != "file":
                # As a display would: the next frame begins at the next tick that is still to come.
                due += period
                due += period * max(0, int((end - due) / period) + 1) if end > due else 0
                time.sleep(max(0.0, due - time.perf_counter()))
        explanation, engine = str(pass_.explain()), result.engine
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


def size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 640x360")
    if not (16 <= int(width) <= 4096 and 16 <= int(height) <= 4096):
        raise argparse.ArgumentTypeError(f"{text} is outside of 16x16 to 4096x4096")
    return int(width), int(height)


def positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
