"""How steady a bundle's results are, and what the stabiliser makes of them at each strength.

    python benchmarks/stability.py candy.topcoat
    python benchmarks/stability.py candy.topcoat --style candy.jpg --loss-weights vgg16.pth

Frames are drawn by topcoat.runtime.stability.Scene, whose motion and occlusion are exact. Printed
and written as JSON, for strengths from 0 (the results as they are) to 1:

  jitter, noise   flicker gain: mean |change of the output| / mean |change of the input|, camera
                  still, jittered by up to half a pixel (Halton 2, 3) or with a sensor's noise
  warp            warp error (Lai et al. 2018) of a walking camera, with the frames' own as floor
  frozen          variance over time after everything has stopped, and after how many frames it ends
  drift           mean |difference| to the first output when the camera is back where it began
  lag             frames until a tenth is left of a sudden change of 60 % of the picture
  style           with --style: distance of the jittered and of the walking outputs to the style
                  picture (relative Gram losses over VGG16's layers of the recipe "modern", summed)
  ms              of the stabiliser per frame of the walking camera, 50th and 99th percentile
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import topcoat.runtime as tr
from topcoat.runtime._machine import processor
from topcoat.runtime.render_pass._stabiliser import Stabiliser
from topcoat.runtime.stability import (
    Scene,
    View,
    flicker_gain,
    frozen_variance,
    halton_jitter,
    lag_frames,
    return_drift,
    sensor_noise,
    warp_error,
)

ROOT = Path(__file__).resolve().parents[1]
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTLED = 4
"""Frames at the start of a sequence that flicker gains leave out: the history fills."""
FROZEN = 80
Frame = NDArray[np.uint8]
Sequence_ = list[tuple[View, Frame]]
"""Views and what the network makes of them."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--size", type=parse_size, default=(320, 180), metavar="WxH")
    parser.add_argument("--frames", type=int, default=24, help="per sequence (default: 24)")
    parser.add_argument("--noise", type=float, default=3.0, help="in levels (default: 3)")
    parser.add_argument("--style", help="the style picture: a file, or a built-in style's name")
    parser.add_argument("--loss-weights", type=Path, help="of VGG16; default: as train-style")
    parser.add_argument("--out", type=Path, help="write a strip of pictures (PNG)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "stability.json"
    )
    arguments = parser.parse_args(argv)
    if arguments.frames < 2 * SETTLED:
        print(f"stability: --frames is {arguments.frames}, wanted at least 8", file=sys.stderr)
        return 2
    try:
        with tr.open(arguments.bundle, backend=arguments.backend) as model:
            if model.task != "style" or model.manifest.scale != 1:
                raise tr.BundleError(
                    f"{arguments.bundle} is a bundle for {model.task} of scale"
                    f" {model.manifest.scale}, wanted a style bundle of scale 1"
                )
            chosen = model.explain().chosen
            began = time.perf_counter()
            sequences = draw(model.process, arguments.size, arguments.frames, arguments.noise)
            took = time.perf_counter() - began
    except tr.TopcoatError as error:
        print(f"stability: {error}", file=sys.stderr)
        return 2
    distance = style_distance(arguments.style, arguments.loss_weights) if arguments.style else None
    rows = [measure(sequences, strength, distance) for strength in STRENGTHS]
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "logical": os.cpu_count()},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "bundle": arguments.bundle.name,
        "engine": chosen and f"{chosen.backend} {chosen.compute}",
        "size": list(arguments.size),
        "frames": arguments.frames,
        "noise": arguments.noise,
        "style": arguments.style and Path(arguments.style).stem,
        "style_of_frames": distance([v.colour for v, _ in sequences["walk"]]) if distance else None,
        "strengths": rows,
    }
    show(result, took)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.out:
        write_strip(arguments.out, sequences["walk"])
    return 0


def draw(
    process: Callable[[Frame], Frame], size: tuple[int, int], frames: int, noise: float
) -> dict[str, Sequence_]:
    """Draw every sequence and run the network over it, once for all strengths."""
    width, height = size
    still = Scene(camera="static", moving=False)
    first = still.render(0, width, height)
    changed = first.colour.copy()
    part = slice(0, round(0.6 * width))
    changed[:, part] = 255 - changed[:, part] // 2
    # Slow enough for motion of a few pixels although the walk is over in so few frames.
    walk = Scene(period=4.0 * frames)
    there = [walk.render(t, width, height) for t in range(frames)]
    back = Scene(period=float(frames), speed=frames / 96)
    views = {
        "jitter": [still.render(0, width, height, halton_jitter(n)) for n in range(frames)],
        "noise": [
            first._replace(colour=sensor_noise(first.colour, noise, n)) for n in range(frames)
        ],
        "walk": there,
        "return": [back.render(t, width, height) for t in range(frames + 1)],
        "step": [first] * SETTLED + [first._replace(colour=changed)] * 30,
        "frozen": [
            *there[:SETTLED],
            *[there[SETTLED]._replace(motion=np.zeros_like(there[0].motion))] * FROZEN,
        ],
    }
    made: dict[bytes, Frame] = {}
    sequences: dict[str, Sequence_] = {}
    for name, each in views.items():
        sequences[name] = []
        for view in each:
            key = view.colour.tobytes()
            if key not in made:
                made[key] = process(view.colour)
            sequences[name].append((view, made[key]))
    return sequences


def steady(sequence: Sequence_, strength: float) -> tuple[list[Frame], list[float]]:
    """Return the outputs, and the milliseconds of each step."""
    stabiliser = Stabiliser(*sequence[0][1].shape[:2])
    outputs, took = [], []
    for view, styled in sequence:
        out = np.empty_like(styled)
        began = time.perf_counter_ns()
        stabiliser.step(view.colour, styled, view.motion, None, strength, out)
        took.append((time.perf_counter_ns() - began) / 1e6)
        outputs.append(out)
    return outputs, took


def measure(
    sequences: dict[str, Sequence_],
    strength: float,
    distance: Callable[[list[Frame]], float] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"strength": strength}
    outputs = {name: steady(sequence, strength)[0] for name, sequence in sequences.items()}
    for name in ("jitter", "noise"):
        inputs = [view.colour for view, _ in sequences[name]]
        row[name] = flicker_gain(inputs[SETTLED:], outputs[name][SETTLED:])
    views = [view for view, _ in sequences["walk"]]
    error = warp_error(
        outputs["walk"],
        [view.colour for view in views],
        [view.motion for view in views],
        [view.occluded for view in views],
    )
    row["warp"], row["warp_floor"] = error.value, error.floor
    row["frozen"] = frozen_variance(outputs["frozen"][-10:])
    row["frames_to_rest"] = 1 + max(
        (
            n - SETTLED
            for n, (one, next_) in enumerate(pairwise(outputs["frozen"]))
            if n >= SETTLED and (one != next_).any()
        ),
        default=-1,
    )
    row["drift"] = return_drift(outputs["return"][0], outputs["return"][-1])
    row["lag"] = lag_frames(outputs["step"][SETTLED - 1], outputs["step"][SETTLED:])
    if distance is not None:
        row["style_jitter"] = distance(outputs["jitter"][SETTLED:])
        row["style_walk"] = distance(outputs["walk"][SETTLED:])
    took = [ms for _ in range(4) for ms in steady(sequences["walk"], strength)[1][1:]]
    row["ms_p50"], row["ms_p99"] = (float(each) for each in np.percentile(took, (50, 99)))
    return row


def style_distance(style: str, weights: Path | None) -> Callable[[list[Frame]], float]:
    """Return a function that measures how far pictures are from a style; loads torch."""
    import torch

    from topcoat.train import TopcoatError
    from topcoat.train.frames import frame_tensor
    from topcoat.train.losses import perceptual_network, style_target
    from topcoat.train.losses.gram import gram_matrix, style_loss
    from topcoat.train.pictures import resize_longer_side
    from topcoat.train.recipes import STYLE_RECIPES
    from topcoat.train.style_pictures import load_style

    recipe = STYLE_RECIPES["modern"]
    try:
        network, _ = perceptual_network(recipe, weights)
        picture = frame_tensor(resize_longer_side(load_style(style).image, 512))
    except TopcoatError as error:
        print(f"stability: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    grams = style_target(network, picture, recipe).grams

    def distance(frames: list[Frame]) -> float:
        losses = []
        for frame in frames:
            pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                features = network(pixels)
            losses.append(
                sum(
                    style_loss(gram_matrix(features[layer]), gram, "relative").item()
                    for layer, gram in grams.items()
                )
            )
        return float(np.mean(losses))

    return distance


def show(result: dict[str, Any], took: float) -> None:
    width, height = result["size"]
    print(f"{result['bundle']}, {result['engine']}, {width}x{height}, drawn in {took:.0f} s")
    first = result["strengths"][0]
    print(f"warp error of the frames themselves: {first['warp_floor']:.2e}")
    if result["style"]:
        print(f"style distance of the frames themselves: {result['style_of_frames']:.3f}")
    print(
        f"\n{'strength':>8}{'jitter':>14}{'noise':>14}{'warp':>10}{'frozen':>8}{'rest':>6}"
        f"{'drift':>9}{'lag':>5}{'p50 ms':>8}{'p99 ms':>8}"
        + ("   style jitter    style walk" if result["style"] else "")
    )
    for row in result["strengths"]:
        line = f"{row['strength']:>8.2f}"
        for name in ("jitter", "noise"):
            line += f"{row[name]:>7.2f} {row[name] / first[name] - 1:>+6.0%}"
        line += (
            f"{row['warp']:>10.2e}{row['frozen']:>8.0e}{row['frames_to_rest']:>6}"
            f"{row['drift']:>9.4f}{row['lag']:>5}{row['ms_p50']:>8.2f}{row['ms_p99']:>8.2f}"
        )
        if result["style"]:
            for name in ("style_jitter", "style_walk"):
                line += f"{row[name]:>8.4f} {row[name] / first[name] - 1:>+6.1%}"
        print(line)


def write_strip(path: Path, sequence: Sequence_) -> None:
    """Write four moments of the walk: frame, result, and the output at strengths 0.5 and 1."""
    from PIL import Image

    columns = np.linspace(SETTLED, len(sequence) - 1, 4).round().astype(int)
    outputs = [steady(sequence, strength)[0] for strength in (0.5, 1.0)]
    rows = [
        [sequence[n][0].colour for n in columns],
        [sequence[n][1] for n in columns],
        *([each[n] for n in columns] for each in outputs),
    ]
    Image.fromarray(np.vstack([np.hstack(row) for row in rows])).save(path)


def parse_size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted WIDTHxHEIGHT like 320x180") from None
    if min(width, height) < 16:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted at least 16x16")
    return width, height


if __name__ == "__main__":
    sys.exit(main())
