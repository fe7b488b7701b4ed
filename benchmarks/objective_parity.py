r"""How good a trained style network is at the problem it was trained to solve.

    python benchmarks/objective_parity.py --network starry.pt --style starry_night.jpg \
        --held-out photos/ --sizes 256,512,1024 --iterations 500

For every photograph (its centre square, scaled to each size) the objective of the checkpoint's own
recipe is taken of the photograph itself, of the network's output (clipped to valid pixels) and of
L-BFGS after every iteration, from white noise or from the photograph. Everything goes into one
JSON, picture by picture: the same command goes on where it was stopped, and does more photographs,
sizes, starts or iterations when asked. From the JSON come a table (means over the photographs, and
the iteration at which L-BFGS passes the network) and a plot.

Besides, each on request, into the same JSON:

--seconds   Table 1 of Johnson et al. 2016: seconds per picture of 100, 300 and 500 iterations
            against one forward pass, in PyTorch and in the engines of topcoat.runtime.
--memory    time and peak memory of an iteration at 512x512 against a plain loop with the same
            losses, and of 2048x2048 with activations computed again instead of kept.
--texture   a trained texture network against optimising its objective: seconds and memory.

``--show`` computes nothing: table and plot of what the JSON holds.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topcoat.train import Checkpoint
    from topcoat.train.losses import LossNetwork, PerceptualLoss
    from topcoat.train.recipes import OptimizeRecipe, PerceptualRecipe

ROOT = Path(__file__).resolve().parents[1]
MARKS = (10, 20, 50, 100, 200, 300, 500)
"""Iterations that the table shows."""
_COLOURS = {"noise": "#0072b2", "content": "#d55e00"}
_NAMES = {"noise": "L-BFGS from white noise", "content": "L-BFGS from the photograph"}


def passing(curve: Sequence[float], level: float) -> float | None:
    """After how many iterations a curve first comes down to a level, interpolated linearly.

    Args:
        curve: values after 0, 1, 2, … iterations.
        level: to come down to.

    Returns:
        None if it never does.
    """
    for number, value in enumerate(curve):
        if value <= level:
            if number == 0:
                return 0.0
            before = curve[number - 1]
            return number - 1 + (before - level) / (before - value)
    return None


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """Mean over photographs after every iteration that all of them have."""
    return [sum(values) / len(values) for values in zip(*curves, strict=False)]


def summary(photographs: Sequence[dict[str, Any]], start: str) -> dict[str, Any] | None:
    """What the table and the plot show of one size and one start.

    Args:
        photographs: records of the JSON, one per photograph.
        start: ``noise`` or ``content``.

    Returns:
        Means, and where L-BFGS passes the network; None if no photograph has that start.
    """
    rows = [row for row in photographs if start in row["lbfgs"]]
    if not rows:
        return None
    curves = [row["lbfgs"][start]["total"] for row in rows]
    networks = [row["network"]["total"] for row in rows]
    curve, network = mean_curve(curves), sum(networks) / len(networks)
    hundred = [(n, c[100]) for n, c in zip(networks, curves, strict=True) if len(c) > 100]
    return {
        "photographs": len(rows),
        "photograph": sum(row["photograph"]["total"] for row in rows) / len(rows),
        "network": network,
        "curve": curve,
        "lowest": [min(values) for values in zip(*curves, strict=False)],
        "highest": [max(values) for values in zip(*curves, strict=False)],
        "passes": passing(curve, network),
        "no_worse_than_100": sum(n <= c for n, c in hundred) if hundred else None,
        "with_100": len(hundred),
    }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Rows of sizes and starts as Markdown.

    Args:
        results: size -> records of photographs.
    """
    longest = max(
        (len(c["total"]) for rows in results.values() for r in rows for c in r["lbfgs"].values()),
        default=1,
    )
    marks = [mark for mark in MARKS if mark < longest]
    head = ["size", "start", "photographs", "photograph", "network"]
    head += [f"{mark} it." for mark in marks] + ["passed after", "no worse than 100 it."]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for size, rows in results.items():
        for start in _NAMES:
            found = summary(rows, start)
            if found is None:
                continue
            curve = found["curve"]
            cells = [f"{size}²", start, str(found["photographs"])]
            cells += [f"{found['photograph']:.3f}", f"{found['network']:.3f}"]
            cells += [f"{curve[mark]:.3f}" if mark < len(curve) else "" for mark in marks]
            passes = found["passes"]
            cells.append(f"more than {len(curve) - 1}" if passes is None else f"{passes:.0f}")
            of = found["no_worse_than_100"]
            cells.append("" if of is None else f"{of} of {found['with_100']}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Plot mean objective against iterations, a panel per size; PNG or SVG by the suffix."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    style: Any = {
        **{"svg.fonttype": "none", "svg.hashsalt": "topcoat", "font.size": 10},
        **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
        **{"axes.grid": True, "grid.color": "#e4e8ec", "axes.axisbelow": True},
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(2.0 + 3.7 * len(results), 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for axes, (size, rows) in zip(panels, results.items(), strict=True):
            level = None
            for start, colour in _COLOURS.items():
                found = summary(rows, start)
                if found is None:
                    continue
                steps = range(len(found["curve"]))
                axes.plot(steps, found["curve"], color=colour, label=_NAMES[start])
                axes.fill_between(
                    steps, found["lowest"], found["highest"], color=colour, alpha=0.15, linewidth=0
                )
                level = found
                if found["passes"] is not None:
                    axes.plot(found["passes"], found["network"], "o", color=colour, markersize=5)
                    axes.annotate(
                        f"{found['passes']:.0f}",
                        (found["passes"], found["network"]),
                        xytext=(5, 6),
                        textcoords="offset points",
                        color=colour,
                    )
            if level is None:
                continue
            axes.axhline(level["network"], color="#009e73", linewidth=1.6, label="the network")
            axes.axhline(
                level["photograph"],
                **{"color": "#8a94a0", "linestyle": "--", "linewidth": 1.2},
                label="the photograph itself",
            )
            axes.set_yscale("log")
            axes.set_xlim(0, None)
            axes.set_xlabel("L-BFGS iterations")
            axes.set_title(f"{size} × {size}, {len(rows)} photographs", fontsize=10, loc="left")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        panels[0].set_ylabel("objective, log scale: mean and range")
        panels[0].legend(loc="upper right")
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)


def optimise_recipe(
    trained: "PerceptualRecipe", size: int, steps: int, start: str
) -> "OptimizeRecipe":
    """The objective of a trained network's recipe, as a recipe of optimising one picture."""
    from topcoat.train.recipes import OptimizeRecipe, PerceptualRecipe

    shared = {f.name: getattr(trained, f.name) for f in fields(PerceptualRecipe)}
    return OptimizeRecipe(
        **shared, size=size, steps=(max(1, steps),), start=start, precision="fp32"
    )


def style_objective(
    checkpoint: "Checkpoint", style: Path, loss_weights: Path | None
) -> "tuple[PerceptualLoss, LossNetwork]":
    """The objective that a style network was trained for, as one fixed function.

    Raises:
        CheckpointError: the picture is not the checkpoint's style, or it is no style network's.
    """
    from topcoat.train import CheckpointError
    from topcoat.train.frames import frame_tensor
    from topcoat.train.losses import PerceptualLoss, perceptual_network, style_target
    from topcoat.train.pictures import resize_longer_side
    from topcoat.train.recipes import StyleRecipe
    from topcoat.train.runs import check_task
    from topcoat.train.style_pictures import load_style

    check_task(checkpoint, "style")
    trained = StyleRecipe.from_dict(checkpoint.recipe)
    picture = load_style(style)
    if picture.sha256 != checkpoint.style.get("sha256"):
        raise CheckpointError(
            f"the network was trained on {checkpoint.style.get('name')!r}, {style} is another "
            "picture; give that one with --style"
        )
    network, _ = perceptual_network(trained, loss_weights)
    scaled = frame_tensor(resize_longer_side(picture.image, trained.style_size))
    target = style_target(network, scaled, trained)
    # The batch counts where total variation is summed over it, as published.
    return PerceptualLoss(network, [target], trained, batch=trained.batch, seed=0), network


def square(path: Path, size: int) -> Any:  # noqa: ANN401 - a Tensor, without importing torch
    """The centre square of a photograph as (1, 3, size, size) in [0, 1]."""
    from PIL import Image

    from topcoat.train.frames import frame_tensor
    from topcoat.train.pictures import open_photograph

    image = open_photograph(path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.crop((left, top, left + side, top + side))
    return frame_tensor(cut.resize((size, size), Image.Resampling.LANCZOS))


def start_frame(start: str, photograph: Any, number: int) -> Any:  # noqa: ANN401
    """White noise of its own for every photograph, or the photograph."""
    import torch

    if start == "content":
        return photograph
    generator = torch.Generator().manual_seed(number)
    return torch.rand(photograph.shape, generator=generator)


def measure(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Bring the JSON's curves to what is asked for, photograph by photograph."""
    import torch

    from topcoat.train import load_checkpoint
    from topcoat.train.data import find_pictures
    from topcoat.train.optimization import minimise
    from topcoat.train.pictures import file_sha256, open_photograph

    checkpoint = load_checkpoint(args.network)
    objective, _ = style_objective(checkpoint, args.style, args.loss_weights)
    network = checkpoint.build_network()
    paths = find_pictures(args.held_out)[: args.photos]
    _check_held_out(checkpoint, args.held_out, paths)
    hashes = {path: file_sha256(path) for path in paths}
    found["photographs"] = {
        "shorter_sides": sorted({min(open_photograph(path).size) for path in paths}),
        "note": "centre squares, scaled; sizes above the shorter side are enlargements",
    }
    for size in args.sizes:
        rows = found["objective"].setdefault(str(size), [])
        if strangers := [row["name"] for row in rows if row["sha256"] not in hashes.values()]:
            sys.exit(
                f"objective_parity: {args.json} has other photographs at {size} pixels "
                f"({', '.join(strangers[:3])}, …); give the same --held-out and at least as many "
                "--photos, or another --json"
            )
        for number, path in enumerate(paths):
            row = next((r for r in rows if r["sha256"] == hashes[path]), None)
            wanted = [
                start
                for start in args.start
                if row is None or row["lbfgs"].get(start, {}).get("asked", -1) < args.iterations
            ]
            if not wanted:
                continue
            photograph = square(path, size)
            content = objective.content_target(photograph)
            if row is None:
                with torch.no_grad():
                    output = network(photograph).clamp(0, 1)
                    row = {
                        "name": path.name,
                        "sha256": hashes[path],
                        "photograph": _rounded(objective(photograph, content=content)),
                        "network": _rounded(objective(output, content=content)),
                        "lbfgs": {},
                    }
                rows.append(row)
            for start in wanted:
                recipe = optimise_recipe(objective.recipe, size, args.iterations, start)
                best = minimise(
                    lambda frame, content=content: objective(frame, content=content),  # type: ignore[misc]
                    start_frame(start, photograph, number),
                    recipe,
                    args.iterations,
                )
                curve = [float(f"{entry['total']:.5g}") for entry in best.history]
                # Where it stalled the rest is the last value: it would stay there.
                curve += curve[-1:] * (args.iterations + 1 - len(curve))
                row["lbfgs"][start] = {
                    "asked": args.iterations,
                    "total": curve,
                    "evaluations": best.evaluations,
                    **({"stalled": True} if best.stalled else {}),
                    **({"diverged": best.diverged} if best.diverged else {}),
                }
                _say(
                    f"{size} {path.name} from {start}: network {row['network']['total']:.3f}, "
                    f"L-BFGS {curve[-1]:.3f} after {args.iterations} iterations, passed after "
                    f"{passing(curve, row['network']['total'])}, {best.seconds:.0f} s"
                )
                write(args.json, found)


def _check_held_out(checkpoint: "Checkpoint", folder: Path, paths: list[Path]) -> None:
    """Stop if a photograph lies in the folder that the network was trained on."""
    trained = (checkpoint.state or {}).get("content")
    if not trained or not Path(trained).is_dir():
        _say("the folder that the network was trained on is not known: photographs are not checked")
        return
    from topcoat.train.data import find_pictures
    from topcoat.train.pictures import file_sha256

    seen = {file_sha256(path) for path in find_pictures(trained)}
    known = [path.name for path in paths if file_sha256(path) in seen]
    if known:
        sys.exit(
            f"objective_parity: {len(known)} photographs of {folder} were trained on "
            f"({', '.join(known[:3])}, …); give others with --held-out"
        )


def _rounded(losses: dict[str, Any]) -> dict[str, float]:
    return {name: float(f"{float(value):.5g}") for name, value in losses.items()}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the JSON whole or not at all; curves on one line each."""
    import re

    from topcoat.train._files import written_whole

    text = json.dumps(found, indent=1)
    text = re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    with written_whole(path) as file:
        file.write((text + "\n").encode())


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return {
        "processor": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The JSON so far; stops where it is of another network."""
    from topcoat.train import load_checkpoint
    from topcoat.train.losses import find_loss_weights
    from topcoat.train.pictures import file_sha256

    checkpoint = load_checkpoint(args.network)
    weights = find_loss_weights(str(checkpoint.recipe["loss_network"]), args.loss_weights)
    settings = {
        "checkpoint_sha256": file_sha256(args.network),
        "step": checkpoint.step,
        "network": checkpoint.network,
        "recipe": checkpoint.recipe,
        "style": checkpoint.style,
        "loss_weights_sha256": file_sha256(weights.path),
    }
    found: dict[str, Any] = {"objective": {}}
    if args.json.exists():
        found = json.loads(args.json.read_text())
        other = [key for key in settings if found["settings"].get(key) != settings[key]]
        if other:
            sys.exit(
                f"objective_parity: {args.json} was made with another {', '.join(other)}; remove "
                "it, or give another --json"
            )
    return {**found, "settings": settings, "machine": machine()}


def show(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print the tables and draw the plot."""
    results = {size: rows for size, rows in found["objective"].items() if rows}
    if results:
        print(table(results))
        plot = args.plot or args.json.with_suffix(".png")
        name = found["settings"]["style"].get("name", "")
        title = f"A network ({name}) against optimising: photographs not seen"
        draw(results, title, plot)
        _say(f"plot: {plot}")
    sys.path.insert(0, str(Path(__file__).parent))
    import optimization_cost as cost

    for part, text in (
        ("seconds", cost.seconds_table),
        ("memory", cost.memory_table),
        ("texture", cost.texture_table),
    ):
        if part in found:
            print("\n" + text(found[part]))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", type=Path, help="checkpoint of train-style")
    parser.add_argument("--style", type=Path, help="the picture that it was trained on")
    parser.add_argument("--held-out", type=Path, help="photographs that it has not seen")
    parser.add_argument("--photos", type=int, default=20, help="the first so many (default: 20)")
    parser.add_argument("--sizes", type=_numbers, default=[256, 512, 1024], metavar="N,N,…")
    parser.add_argument("--iterations", type=int, default=100, help="at most 500 (default: 100)")
    parser.add_argument(
        "--start", nargs="+", choices=list(_NAMES), default=["noise"], help="(default: noise)"
    )
    parser.add_argument("--loss-weights", type=Path, help="VGG's weights")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "objective_parity.json"
    )
    parser.add_argument("--plot", type=Path, help="PNG or SVG (default: beside the JSON)")
    parser.add_argument("--show", action="store_true", help="compute nothing")
    parser.add_argument("--no-curves", action="store_true", help="only what is asked for below")
    parser.add_argument("--seconds", action="store_true", help="Table 1 of the paper")
    parser.add_argument(
        "--bundle", type=Path, help="the network's, for --seconds (default: export it)"
    )
    parser.add_argument("--memory", action="store_true", help="against a plain loop; 2048x2048")
    parser.add_argument("--memory-size", type=int, default=512, help="(default: 512)")
    parser.add_argument("--low-size", type=int, default=2048, help="0: leave out (default: 2048)")
    parser.add_argument("--texture", type=Path, help="checkpoint of train-texture")
    parser.add_argument("--timed", type=int, default=8, help="timed iterations (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    args = parser.parse_args()
    if args.show:
        show(args, json.loads(args.json.read_text()))
        return 0
    if not 0 < args.iterations <= 500:
        parser.error("--iterations must be 1 to 500")
    missing = [n for n in ("network", "style", "held_out") if getattr(args, n) is None]
    if missing:
        parser.error(f"give {', '.join('--' + n.replace('_', '-') for n in missing)}")
    from topcoat.train import TopcoatError

    sys.path.insert(0, str(Path(__file__).parent))
    import optimization_cost as cost

    try:
        import torch

        from topcoat.train._allocator import keep_freed_memory

        keep_freed_memory()
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        found = begin(args)
        for part, wanted in (
            ("memory", args.memory),
            ("texture", args.texture is not None),
            ("seconds", args.seconds),
        ):
            if wanted:
                found[part] = getattr(cost, part)(args)
                write(args.json, found)
        if not args.no_curves:
            measure(args, found)
    except TopcoatError as error:
        print(f"objective_parity: {error}", file=sys.stderr)
        return 2
    show(args, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
