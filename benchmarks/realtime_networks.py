"""What the real-time networks cost, what they are worth, and how steady they are, in one table.

    python benchmarks/realtime_networks.py --style mosaic --content photos/ --json table.json
    python benchmarks/realtime_networks.py --latency-only
    python benchmarks/realtime_networks.py --style mosaic --checkpoint realtime=mosaic.pt
    python benchmarks/realtime_networks.py --networks realtime,realtime:width=16,realtime:blocks=6

A network is a recipe's name, or one with settings of its own. Each is trained (or given with
--checkpoint), exported as export-engine does it, and run by the runtime on every engine and
precision that proves usable here:

  ms          median and 95th percentile of process(), uint8 frames in and out, into the same array
              every time; the cases of a size take turns, a frame each, so that a busy moment of the
              machine falls on all of them
  cpu         median processor time of such a frame, of all threads together: what it costs on a
              machine that does other things, too
  objective   content, style and total variation as the recipe weighs them, the mean over
              photographs that the network was not trained on, by the loss network that is named
              (the picture is rounded to 8 bits first: what counts is what is seen)
  jitter      flicker gain: mean |change of the output| / mean |change of the input| while the
              camera of topcoat.runtime.stability.Scene is jittered by up to half a pixel
  noise       the same, camera still, with a sensor's noise
  warp        warp error of a walking camera, over that of the frames themselves

train-style --budget picks from such a table: --budget-table table.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library loads

import numpy as np
from numpy.typing import NDArray

import topcoat.runtime as tr
from topcoat.runtime._machine import processor
from topcoat.runtime.stability import (
    Scene,
    flicker_gain,
    halton_jitter,
    sensor_noise,
    warp_error,
)
from topcoat.train import RecipeError, TopcoatError
from topcoat.train._files import written_whole
from topcoat.train.budget import TABLE_FORMAT, TABLE_VERSION
from topcoat.train.recipes import STYLE_RECIPES, StyleRecipe

if TYPE_CHECKING:
    from topcoat.train import Checkpoint

WARM_UP = 3
"""Frames of each case that are not counted."""
SCENE = (320, 180)
TEACHER_WEIGHT = 10.0
"""Of the pixel loss beside the style's: makes a quarter of the whole by the end of a run
(docs/realtime.md)."""
Frame = NDArray[np.uint8]


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.frames < 1:
        parser.error(f"--frames must be at least 1, got {arguments.frames}")
    try:
        check_outputs(arguments)
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.folder or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            result = make(arguments, folder)
    except (TopcoatError, tr.TopcoatError, *_export_errors(), OSError) as error:
        print(f"realtime_networks: {error}", file=sys.stderr)
        return 2
    print(markdown(result))
    if arguments.json:
        with written_whole(arguments.json) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
    if arguments.markdown:
        with written_whole(arguments.markdown) as file:
            file.write((markdown(result) + "\n").encode())
    return 0


def check_outputs(arguments: argparse.Namespace) -> None:
    """Find out before hours of work whether the tables can be written.

    Raises:
        topcoat.train.OutputError: one cannot.
    """
    from topcoat.train.checkpoint import check_writable

    for option in ("json", "markdown"):
        if path := getattr(arguments, option):
            check_writable(path, f"--{option}")


def _export_errors() -> tuple[type[Exception], ...]:
    from topcoat.export import TopcoatError as ExportError

    return (ExportError,)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    realtime = [name for name, recipe in STYLE_RECIPES.items() if recipe.network == "realtime"]
    what = parser.add_argument_group("what")
    what.add_argument(
        "--networks",
        type=lambda text: text.split(","),
        default=realtime,
        metavar="NAME,…",
        help=f"recipes, each with or without settings, NAME:FIELD=VALUE:… "
        f"(default: {','.join(realtime)})",
    )
    what.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a network that is trained already; may be given several times",
    )
    what.add_argument(
        "--reference", type=Path, metavar="FILE", help="checkpoint of a full network, for ratios"
    )
    what.add_argument(
        "--latency-only", action="store_true", help="random weights, no objective, no flicker"
    )
    training = parser.add_argument_group("training")
    training.add_argument("--style", help="a picture, or a built-in style's name")
    training.add_argument("--content", type=Path, metavar="DIR", help="photographs to train on")
    training.add_argument("--steps", type=int, help="default: the recipe's")
    training.add_argument("--batch", type=int, help="default: the recipe's")
    training.add_argument("--crop", type=int, help="default: the recipe's")
    training.add_argument(
        "--train-loss-network", metavar="NAME", help="default: the one that judges"
    )
    training.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="checkpoint of a full network: train each network a second time, on its pictures and "
        "on the style, and keep the better",
    )
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--held-out",
        type=Path,
        metavar="DIR",
        help="photographs for the objective (default: the six of scikit-image)",
    )
    judging.add_argument(
        "--loss-network",
        metavar="NAME",
        help="that judges (default: vgg16 where its weights are at hand, else embedded)",
    )
    judging.add_argument("--loss-weights", type=Path, metavar="FILE")
    judging.add_argument("--side", type=int, default=512, help="of the photographs (default: 512)")
    timing = parser.add_argument_group("timing")
    timing.add_argument(
        "--sizes", type=_sizes, default="640x360,1280x720,1920x1080", metavar="WxH,…"
    )
    timing.add_argument("--threads", type=int, help="default: one per core")
    timing.add_argument("--frames", type=int, default=50, help="of every case (default: 50)")
    timing.add_argument(
        "--backends", type=lambda text: text.split(","), metavar="NAME,…", help="default: all"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--folder", type=Path, help="keeps checkpoints, bundles and pictures")
    output.add_argument("--json", type=Path, metavar="FILE", help="the table, for --budget-table")
    output.add_argument("--markdown", type=Path, metavar="FILE")
    return parser


def make(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the table; checkpoints, bundles and pictures are left in a folder."""
    import torch

    from topcoat.train import load_checkpoint
    from topcoat.train._allocator import keep_freed_memory

    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    given = _given(arguments.checkpoint)
    recipes = {name: _recipe(name, arguments) for name in arguments.networks}
    if unknown := sorted(set(given) - set(recipes)):
        raise RecipeError(
            f"--checkpoint names {', '.join(unknown)}, the networks are {', '.join(recipes)}"
        )
    if not arguments.latency_only and arguments.style is None:
        raise RecipeError("no style given; pass --style PICTURE, or --latency-only")
    judge = None if arguments.latency_only else Judge(arguments)
    checkpoints: dict[str, Checkpoint] = {}
    origins: dict[str, str] = {}
    for name, recipe in recipes.items():
        if name in given:
            checkpoints[name], origins[name] = load_checkpoint(given[name]), "given"
            _check_given(checkpoints[name], recipe, given[name])
        elif arguments.latency_only:
            checkpoints[name], origins[name] = _untrained(recipe), "random"
        else:
            assert judge is not None
            checkpoints[name], origins[name] = _trained(name, recipe, arguments, folder, judge)
    if arguments.reference:
        checkpoints["reference"] = load_checkpoint(arguments.reference)
    bundles = {
        name: _exported(name, checkpoint, folder) for name, checkpoint in checkpoints.items()
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # before this adds to it
    latency = measure_latency(bundles, arguments)
    worth: dict[str, dict[str, Any]] = {}
    for name, bundle in bundles.items():
        worth[name] = {"objective": None, "flicker": None}
        if judge is not None:
            with tr.open(bundle, backend="onnxruntime-cpu", threads=arguments.threads) as model:
                worth[name] = {
                    "objective": judge(model.process, folder / f"{name}.png"),
                    "flicker": flicker(model.process),
                }

    def about(name: str) -> dict[str, Any]:
        checkpoint = checkpoints[name]
        network = checkpoint.build_network()
        seconds = checkpoint.history[-1]["seconds"] if checkpoint.history else None
        return {
            "parameters": sum(p.numel() for p in network.parameters()),
            "model_kb": round((bundles[name] / "model.fp32.onnx").stat().st_size / 1e3, 1),
            "steps": checkpoint.step,
            "train_seconds": seconds,
            "train_loss_network": checkpoint.recipe.get("loss_network"),
            **worth[name],
        }

    reference = None
    if "reference" in checkpoints:
        reference = {"file": arguments.reference.name, **about("reference")}
        reference["latency"] = [row for row in latency if row["network"] == "reference"]
    return {
        "format": TABLE_FORMAT,
        "version": TABLE_VERSION,
        "machine": {"processor": processor(), "logical": os.cpu_count(), "load": load},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnxruntime", "numpy")},
            **_optional_version("openvino"),
        },
        "frames": arguments.frames,
        "style": arguments.style and Path(arguments.style).stem,
        "judge": judge and judge.described(),
        "networks": [
            {
                "name": name,
                "recipe": recipe.name,
                "settings": recipe.network_settings(),
                "origin": origins[name],
                **about(name),
            }
            for name, recipe in recipes.items()
        ],
        "latency": [row for row in latency if row["network"] != "reference"],
        "reference": reference,
    }


def _given(texts: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise RecipeError(f"--checkpoint is {text!r}, wanted NAME=FILE such as realtime=my.pt")
        found[name] = Path(path)
    return found


def _recipe(text: str, arguments: argparse.Namespace) -> StyleRecipe:
    """``NAME`` or ``NAME:FIELD=VALUE:…`` -> a recipe."""
    name, *settings = text.split(":")
    base = STYLE_RECIPES.get(name)
    if base is None or base.network != "realtime":
        known = [each for each, recipe in STYLE_RECIPES.items() if recipe.network == "realtime"]
        raise RecipeError(f"no real-time recipe {name!r}; choose among {', '.join(known)}")
    changes: dict[str, Any] = {}
    for setting in settings:
        field, _, value = setting.partition("=")
        if field not in base.network_settings():
            raise RecipeError(
                f"{text!r} sets {field!r}; a network's settings are "
                f"{', '.join(base.network_settings())}"
            )
        try:
            changes[field] = type(getattr(base, field))(value)
        except ValueError:
            raise RecipeError(f"{text!r} sets {field} to {value!r}, wanted a number") from None
    changes |= {
        field: value
        for field in ("steps", "batch", "crop")
        if (value := getattr(arguments, field)) is not None
    }
    return dataclasses.replace(base, **changes)


def _check_given(checkpoint: Checkpoint, recipe: StyleRecipe, path: Path) -> None:
    from topcoat.train import CheckpointError

    network = checkpoint.network
    wanted = recipe.network_settings()
    if network["name"] != recipe.network or {**wanted, **network["settings"]} != wanted:
        raise CheckpointError(
            f"{path} holds the network {network['name']} {network['settings']}, wanted "
            f"{recipe.network} {wanted}; name it with its settings, as --help shows"
        )


def _untrained(recipe: StyleRecipe) -> Checkpoint:
    import torch

    from topcoat.train import Checkpoint
    from topcoat.train.networks import build_network

    torch.manual_seed(0)
    settings = recipe.network_settings()
    return Checkpoint(
        task="style",
        network={"name": recipe.network, "settings": settings},
        weights=build_network(recipe.network, settings).state_dict(),
        recipe=recipe.to_dict(),
        step=0,
    )


def _trained(
    name: str, recipe: StyleRecipe, arguments: argparse.Namespace, folder: Path, judge: Judge
) -> tuple[Checkpoint, str]:
    """Train on the style, with a teacher once more on its pictures; give the better and which."""
    from topcoat.train import load_checkpoint
    from topcoat.train.loop import RunSettings
    from topcoat.train.style import StyleRun, train_style

    loss_network = arguments.train_loss_network or judge.recipe.loss_network
    recipe = dataclasses.replace(recipe, loss_network=loss_network)
    runs: dict[str, tuple[StyleRecipe, Path | None]] = {"style": (recipe, None)}
    if arguments.teacher:
        both = dataclasses.replace(recipe, supervision="both", target_weight=TEACHER_WEIGHT)
        runs["teacher"] = (both, arguments.teacher)
    made: dict[str, tuple[float, Checkpoint]] = {}
    for origin, (each, teacher) in runs.items():
        output = folder / f"{name.replace(':', '-')}.{origin}.pt"
        print(f"training {name} ({origin}), {each.steps} steps", file=sys.stderr)
        train_style(
            StyleRun(
                style=arguments.style,
                content=arguments.content,
                recipe=each,
                teacher=teacher,
                loss_weights=arguments.loss_weights
                if loss_network == judge.recipe.loss_network
                else None,
                settings=RunSettings(output=output, preview_every=0, quiet=True),
            )
        )
        checkpoint = load_checkpoint(output)
        made[origin] = (judge.of(checkpoint), checkpoint)
    for origin, (total, _) in made.items():
        print(f"{name} ({origin}): objective {total:.4f}", file=sys.stderr)
    best = min(made, key=lambda origin: made[origin][0])
    return made[best][1], best


def _exported(name: str, checkpoint: Checkpoint, folder: Path) -> Path:
    from topcoat.export import export_bundle

    place = folder / f"{name.replace(':', '-').replace('=', '')}.topcoat"
    exported = export_bundle(checkpoint, place, force=True)
    if not exported:
        raise RecipeError(
            f"{name}: an engine differs from the network, see {exported.report_file}; "
            "train another, or leave the engine out with --backends"
        )
    assert exported.bundle is not None
    return exported.bundle


def _optional_version(name: str) -> dict[str, str]:
    try:
        return {name: version(name)}
    except ModuleNotFoundError:
        return {}


def measure_latency(
    bundles: Mapping[str, Path], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time every network on every engine and precision that is usable here."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for width, height in arguments.sizes:
        frame = rng.integers(0, 256, (height, width, 3), np.uint8)
        cases: list[tuple[dict[str, Any], tr.Model, Frame]] = []
        try:
            for name, bundle in bundles.items():
                with tr.open(bundle, threads=arguments.threads) as model:
                    explanation = model.explain()
                for candidate in explanation.candidates:
                    backend = candidate.backend
                    if not candidate.usable or candidate.compute is None:
                        continue
                    if arguments.backends and backend not in arguments.backends:
                        continue
                    row = {
                        "network": name,
                        "width": width,
                        "height": height,
                        "engine": backend,
                        "precision": candidate.compute,
                        "threads": explanation.threads,
                    }
                    opened = tr.open(
                        bundle, backend, candidate.compute, arguments.threads, fallback=False
                    )
                    cases.append((row, opened, np.empty_like(frame)))
            took: list[list[tuple[int, int]]] = [[] for _ in cases]
            for turn in range(WARM_UP + arguments.frames):
                for (_, model, result), mine in zip(cases, took, strict=True):
                    cpu, start = time.process_time_ns(), time.perf_counter_ns()
                    model.process(frame, out=result)
                    passed = time.perf_counter_ns() - start
                    if turn >= WARM_UP:
                        mine.append((passed, time.process_time_ns() - cpu))
        finally:
            for _, model, _ in cases:
                model.close()
        for (row, _, _), mine in zip(cases, took, strict=True):
            passed_ms, cpu_ms = np.array(mine).T / 1e6
            for share in (50, 95):
                row[f"p{share}_ms"] = round(float(np.percentile(passed_ms, share)), 3)
            row["cpu_ms"] = round(float(np.median(cpu_ms)), 3)
            rows.append(row)
    if not rows:
        raise RecipeError(
            "no engine is usable here"
            + (f" among {', '.join(arguments.backends)}" if arguments.backends else "")
        )
    return rows


class Judge:
    """Scores what a network makes of photographs, by the objective of the recipe realtime."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from topcoat.train.data import find_pictures
        from topcoat.train.frames import frame_tensor
        from topcoat.train.losses import PerceptualLoss, perceptual_network, style_target
        from topcoat.train.pictures import (
            open_photograph,
            resize_longer_side,
            resize_shorter_side,
            sample_photographs,
        )
        from topcoat.train.style_pictures import load_style

        self.recipe = dataclasses.replace(
            STYLE_RECIPES["realtime"], loss_network=arguments.loss_network or "vgg16"
        )
        try:
            network, self.weights = perceptual_network(self.recipe, arguments.loss_weights)
        except TopcoatError as error:
            if arguments.loss_network or arguments.loss_weights:
                raise
            print(f"judged by the embedded loss network: {error}", file=sys.stderr)
            self.recipe = dataclasses.replace(self.recipe, loss_network="embedded")
            network, self.weights = perceptual_network(self.recipe, None)
        picture = load_style(arguments.style)
        scaled = frame_tensor(resize_longer_side(picture.image, self.recipe.style_size))
        target = style_target(network, scaled, self.recipe)
        self.loss = PerceptualLoss(network, [target], self.recipe)
        paths = find_pictures(arguments.held_out) if arguments.held_out else sample_photographs()
        self.photographs: list[Frame] = []
        for path in paths:
            photo = resize_shorter_side(open_photograph(path), arguments.side)
            side = arguments.side // 16 * 16
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            cut = photo.crop((left, top, left + side, top + side))
            self.photographs.append(np.asarray(cut))
        self.sha256 = network.sha256()

    def described(self) -> dict[str, Any]:
        """What the objective was measured with."""
        return {
            "loss_network": self.recipe.loss_network,
            "loss_weights_sha256": self.sha256,
            "style_size": self.recipe.style_size,
            "photographs": len(self.photographs),
            "side": int(self.photographs[0].shape[0]),
        }

    def __call__(
        self, process: Callable[[Frame], Frame], strip: Path | None = None
    ) -> dict[str, float]:
        """Score a network, and write what it makes of three photographs below them."""
        import torch

        from topcoat.train.frames import frame_tensor

        outputs = [process(photo) for photo in self.photographs]
        totals: dict[str, list[float]] = {}
        for photo, output in zip(self.photographs, outputs, strict=True):
            with torch.no_grad():
                parts = self.loss(frame_tensor(_image(output)), frame_tensor(_image(photo)))
            for name, value in parts.items():
                totals.setdefault(name, []).append(float(value))
        if strip is not None:
            rows = [np.hstack(each[:3]) for each in (self.photographs, outputs)]
            _image(np.vstack(rows)).save(strip)
        return {name: round(float(np.mean(values)), 5) for name, values in totals.items()}

    def of(self, checkpoint: Checkpoint) -> float:
        """The objective of a checkpoint's network."""
        from topcoat.train.frames import run_network

        network = checkpoint.build_network()
        return self(lambda frame: np.asarray(run_network(network, _image(frame))))["total"]


def _image(frame: Frame) -> Any:  # noqa: ANN401 - PIL loads when it is needed
    from PIL import Image

    return Image.fromarray(frame)


def flicker(process: Callable[[Frame], Frame], frames: int = 12) -> dict[str, float]:
    """Measure on the drawn scene how much of the input's change comes out, and what is added."""
    width, height = SCENE
    still = Scene(camera="static", moving=False)
    first = still.render(0, width, height).colour
    jitter = [still.render(0, width, height, halton_jitter(n)).colour for n in range(frames)]
    noise = [sensor_noise(first, 3.0, n) for n in range(frames)]
    walk = Scene(period=4.0 * frames)
    views = [walk.render(t, width, height) for t in range(frames)]
    error = warp_error(
        [process(view.colour) for view in views],
        [view.colour for view in views],
        [view.motion for view in views],
        [view.occluded for view in views],
    )
    return {
        "jitter": round(flicker_gain(jitter, [process(frame) for frame in jitter]), 4),
        "noise": round(flicker_gain(noise, [process(frame) for frame in noise]), 4),
        "warp": round(error.value / error.floor, 4),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table for people: a row for each network, its fastest engine at every size."""
    sizes = list(dict.fromkeys((row["width"], row["height"]) for row in result["latency"]))
    machine, judge = result["machine"], result["judge"]
    head = ["network", "weights", *(f"{width}x{height}" for width, height in sizes)]
    if judge:
        head += ["objective", "content", "style", "jitter", "noise", "warp"]
    lines = [
        f"{machine['processor']}, {machine['logical']} logical processors; milliseconds: median "
        f"(95th percentile; processor time) of {result['frames']} frames, fastest engine"
        + (f"; load average before: {load:.1f}" if (load := machine.get("load")) else "")
        + (f"; objective by {judge['loss_network']}" if judge else ""),
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    entries = [(row["name"], row, result["latency"]) for row in result["networks"]]
    if reference := result["reference"]:
        entries.append((f"full: {reference['file']}", reference, reference["latency"]))
    for name, row, latency in entries:
        key = row.get("name", "reference")
        cells = [f"`{name}`", str(row["parameters"])]
        for size in sizes:
            here = [
                each
                for each in latency
                if each["network"] == key and (each["width"], each["height"]) == size
            ]
            best = min(here, key=lambda each: each["p50_ms"])
            cells.append(
                f"{best['p50_ms']:.1f} ({best['p95_ms']:.1f}; {best['cpu_ms']:.1f}) "
                f"{best['engine']} {best['precision']}"
            )
        if judge:
            objective, steady = row["objective"], row["flicker"]
            times = ""
            if reference and row is not reference:
                times = f" ({objective['total'] / reference['objective']['total']:.2f}x)"
            cells += [f"{objective['total']:.3f}{times}"]
            cells += [f"{objective.get(part, 0):.3f}" for part in ("content", "style")]
            cells += [f"{steady[part]:.2f}" for part in ("jitter", "noise", "warp")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _sizes(text: str) -> list[tuple[int, int]]:
    try:
        sizes = [tuple(map(int, part.split("x"))) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or any(len(size) != 2 or min(size) < 16 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 640x360")
    return [(width, height) for width, height in sizes]


if __name__ == "__main__":
    sys.exit(main())
