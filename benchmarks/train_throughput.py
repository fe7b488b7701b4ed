"""Images per second of style training: Topcoat's step against a plain loop, in one run.

    python benchmarks/train_throughput.py --content DIR [--width 32] [--rounds 3] [--json FILE]
    python benchmarks/train_throughput.py --device cuda --recipe johnson2016 [--cuda-graphs]

The plain loop does what pytorch/examples' fast_neural_style does: float32, NCHW, pictures decoded
in the training process, Gram matrices by bmm on NCHW views, the system's allocator as it is. Both
run the same network, losses, photographs and batch. Each measurement is a fresh process, because
the allocator's settings last as long as the process; the two take turns, so that a busy machine
slows both. The weights of the loss network are those of --loss-weights or TOPCOAT_VGG16_WEIGHTS;
without any, and where they end before the recipe's layers, seeded random ones stand in, which cost
the same time.

TFLOP/s are those of the plain loop's products and sums, as torch.utils.flop_counter counts them, in
the time that each loop takes: what gives the same result with fewer of them counts as faster. They
are set beside a square matrix product measured in the same run.
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from topcoat.train.losses import LossNetwork
    from topcoat.train.recipes import StyleRecipe

WARM_UP = 2
WARM_UP_COMPILED = 8


def recipe_of(args: argparse.Namespace) -> "StyleRecipe":
    """The recipe that is measured."""
    from topcoat.train.recipes import STYLE_RECIPES

    given = {name: getattr(args, name) for name in ("width", "crop", "batch", "loss_network")}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(STYLE_RECIPES[args.recipe], **changes)


def plain_step(
    network: "nn.Module", vgg: "LossNetwork", recipe: "StyleRecipe", style: "torch.Tensor"
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """(B, 3, H, W) float in [0, 1] -> the loss of a step, as a plain loop computes it."""
    import torch
    import torch.nn.functional as F

    from topcoat.train.losses import total_variation

    def features(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        x, found = (frames - vgg.mean) / vgg.std, {}
        for index, module in enumerate(vgg.features):
            x = module(x)
            if index in vgg.taps:
                found[vgg.taps[index]] = x
        return found

    def gram(features: torch.Tensor) -> torch.Tensor:
        b, c, h, w = features.shape
        flat = features.view(b, c, h * w)
        return flat.bmm(flat.transpose(1, 2)) / (c * h * w)

    with torch.no_grad():
        drawn = features(style)
        targets = {layer: gram(drawn[layer]) for layer in recipe.style_layers}

    def step(frames: torch.Tensor) -> torch.Tensor:
        output = network(frames)
        found, wanted = features(output), features(frames)
        content = F.mse_loss(found[recipe.content_layer], wanted[recipe.content_layer])
        distances = [
            F.mse_loss(gram(found[k]), target.expand(len(frames), -1, -1))
            for k, target in targets.items()
        ]
        # The absolute losses of the plain loop and the relative ones of the recipe are the same
        # sums up to constants.
        return 1e-5 * content + torch.stack(distances).sum() + total_variation(output)

    return step


def plain_network(recipe: "StyleRecipe") -> "nn.Module":
    """The recipe's network with PyTorch's own layers instead of those that train faster."""
    import torch

    from topcoat.train.networks import build_network

    network = build_network(recipe.network, recipe.network_settings()).train()
    for module in list(network.modules()):
        for name, child in module.named_children():
            own: torch.nn.Module
            if isinstance(child, torch.nn.InstanceNorm2d):
                own = torch.nn.InstanceNorm2d(child.num_features, affine=True)
            elif type(child) is not torch.nn.Conv2d and isinstance(child, torch.nn.Conv2d):
                own = torch.nn.Conv2d(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,  # type: ignore[arg-type]
                    padding=child.padding,  # type: ignore[arg-type]
                )
            else:
                continue
            own.load_state_dict(child.state_dict())
            setattr(module, name, own)
    return network


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of the plain loop."""
    import torch

    from topcoat.train.data import Photographs, find_pictures
    from topcoat.train.losses import load_loss_network
    from topcoat.train.pictures import sample_photographs

    recipe, device = recipe_of(args), torch.device(args.device)
    network = plain_network(recipe).to(device)
    layers = recipe.layers()
    vgg = load_loss_network(recipe.loss_network, layers, args.loss_weights).to(device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    pictures = find_pictures(args.content) if args.content else sample_photographs()
    photographs = Photographs(pictures, recipe.crop, recipe.fit, 0)
    style = torch.rand(1, 3, recipe.crop, recipe.crop, device=device)
    step_of = plain_step(network, vgg, recipe, style)
    seconds = []
    for step in range(WARM_UP + args.steps):
        tick = time.perf_counter()
        samples = [photographs[step * recipe.batch + i].pixels for i in range(recipe.batch)]
        frames = torch.stack([s.permute(2, 0, 1).float() / 255 for s in samples]).to(device)
        optimizer.zero_grad()
        loss = step_of(frames)
        torch.autograd.backward(loss)
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - tick)
    return {"seconds": seconds[WARM_UP:]}


def topcoat(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of ``train-style``: its own loop, loader and settings."""
    from topcoat.train._allocator import keep_freed_memory

    keep_freed_memory()
    from topcoat.train import loop
    from topcoat.train.style import StyleRun, train_style

    # One step is from one schedule look-up to the next: the wait for the batch is in it.
    ticks: list[float] = []
    schedule = loop._schedule

    def timed(kind: str, step: int, steps: int) -> float:
        ticks.append(time.perf_counter())
        return schedule(kind, step, steps)

    loop._schedule = timed
    warm_up = WARM_UP if args.device == "cpu" else WARM_UP_COMPILED
    with tempfile.TemporaryDirectory() as folder:
        # Some more steps than are timed: the worker must not run out of work meanwhile.
        recipe = dataclasses.replace(recipe_of(args), steps=warm_up + args.steps + 8)
        settings = loop.RunSettings(
            output=Path(folder, "x.pt"),
            preview_every=0,
            quiet=True,
            compile=None if args.device == "cpu" else True,
            cuda_graphs=args.cuda_graphs,
        )
        outcome = train_style(
            StyleRun(
                style="mosaic",
                content=args.content,
                recipe=recipe,
                loss_weights=None if recipe.loss_network == "embedded" else args.loss_weights,
                settings=settings,
            )
        )
    seconds = [after - before for before, after in itertools.pairwise(ticks)]
    return {
        "seconds": seconds[warm_up : warm_up + args.steps],
        "waited": outcome.waited,
        "workers": outcome.workers,
    }


def flop_per_step(recipe: "StyleRecipe") -> int:
    """Products and sums of the plain loop's step, counted on shapes alone."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from topcoat.train.losses import LossNetwork

    network = plain_network(recipe).to("meta")
    vgg = LossNetwork(recipe.loss_network, recipe.layers()).to("meta")
    style = torch.empty(1, 3, recipe.crop, recipe.crop, device="meta")
    step = plain_step(network, vgg, recipe, style)
    frames = torch.empty(recipe.batch, 3, recipe.crop, recipe.crop, device="meta")
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(step(frames))
    return int(counter.get_total_flops())


def measured_peak(device: str, dtype: "torch.dtype") -> float:
    """TFLOP/s of a square matrix product: the median of ten."""
    import torch

    side = 8192 if device == "cuda" else 2048
    a = torch.rand(side, side, device=device).to(dtype)
    seconds = []
    for _ in range(13):
        if device == "cuda":
            torch.cuda.synchronize()
        tick = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - tick)
    return 2 * side**3 / statistics.median(seconds[3:]) / 1e12


def _loss_weights(folder: Path, args: argparse.Namespace) -> tuple[Path, str]:
    """The real weights if they were named and suffice, else random ones of the same shapes."""
    import torch

    from topcoat.train import LossWeightsError
    from topcoat.train.losses import LossNetwork, find_loss_weights, load_loss_network

    recipe = recipe_of(args)
    name = recipe.loss_network
    if name == "embedded":
        return find_loss_weights(name).path, name
    if args.loss_weights is not None or os.environ.get(f"TOPCOAT_{name.upper()}_WEIGHTS"):
        found = find_loss_weights(name, args.loss_weights).path
        try:
            load_loss_network(name, recipe.layers(), found)
        except LossWeightsError as error:
            print(f"{error}: random weights stand in", file=sys.stderr)
        else:
            return found, name
    torch.manual_seed(0)
    path = folder / "random.pth"
    torch.save(LossNetwork(name, recipe.layers()).state_dict(), path)
    return path, f"{name}'s shapes, random weights"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--content", type=Path, help="folder of photographs (default: scikit-image's)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--recipe", choices=["modern", "johnson2016", "realtime"], default="modern")
    parser.add_argument("--loss-network", choices=["vgg16", "vgg19", "embedded"])
    parser.add_argument("--width", type=int, help="of the network (default: the recipe's)")
    parser.add_argument("--crop", type=int, help="side of the pictures (default: the recipe's)")
    parser.add_argument("--batch", type=int, help="default: the recipe's")
    parser.add_argument("--steps", type=int, default=8, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="with --device cuda: record and replay"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loss-weights", type=Path, help="the loss network's weights")
    parser.add_argument("--only", choices=["plain", "topcoat"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps({"plain": plain, "topcoat": topcoat}[args.only](args)))
        return 0

    import torch

    from topcoat.train import OutputError
    from topcoat.train._files import written_whole
    from topcoat.train.checkpoint import check_writable

    if args.json:
        try:
            check_writable(args.json, "--json")
        except OutputError as error:
            parser.error(str(error))

    from topcoat.train.loop import resolve_precision

    if args.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: no CUDA device here; leave it out", file=sys.stderr)
        return 2
    recipe = recipe_of(args)
    with tempfile.TemporaryDirectory() as folder:
        weights, described = _loss_weights(Path(folder), args)
        seconds: dict[str, list[float]] = {"plain": [], "topcoat": []}
        feeding: list[dict[str, float]] = []
        environment = dict(os.environ) | (
            {"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}
        )
        for _ in range(args.rounds):
            for name, collected in seconds.items():
                options = ("device", "recipe", "steps", "loss_network", "width", "crop", "batch")
                command = [
                    *(sys.executable, __file__, "--only", name, f"--loss-weights={weights}"),
                    *(
                        f"--{option.replace('_', '-')}={getattr(args, option)}"
                        for option in options
                        if getattr(args, option) is not None
                    ),
                    *([f"--content={args.content}"] if args.content else []),
                    *(["--cuda-graphs"] if args.cuda_graphs else []),
                ]
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, env=environment
                )
                if done.returncode:
                    print(done.stderr, file=sys.stderr)
                    return 1
                result = json.loads(done.stdout.splitlines()[-1])
                collected += result.pop("seconds")
                if result:
                    feeding.append(result)
    precision = resolve_precision(recipe.precision, torch.device(args.device))
    flop = flop_per_step(recipe)
    typical = {name: statistics.median(s) for name, s in seconds.items()}
    rates = {name: recipe.batch / s for name, s in typical.items()}
    types = {"fp32": torch.float32, **({"bf16": torch.bfloat16} if precision == "bf16" else {})}
    result = {
        "images_per_second": rates,
        "ratio": rates["topcoat"] / rates["plain"],
        "seconds_per_step": seconds,
        "flop_per_step": flop,
        "tflop_per_second": {name: flop / s / 1e12 for name, s in typical.items()},
        "matrix_product_tflop_per_second": {
            name: measured_peak(args.device, dtype) for name, dtype in types.items()
        },
        "minutes": {
            "steps": recipe.steps,
            **{name: recipe.steps * s / 60 for name, s in typical.items()},
        },
        "feeding": feeding,
        "settings": {
            **{name: getattr(recipe, name) for name in ("name", "width", "crop", "batch")},
            **{name: getattr(args, name) for name in ("steps", "rounds", "cuda_graphs")},
        },
        "loss_network": described,
        "precision": {"plain": "fp32", "topcoat": precision},
        "machine": {
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            "processor": platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
    print(
        f"{recipe.name}, width {recipe.width}, {recipe.crop}x{recipe.crop}, batch {recipe.batch}, "
        f"{described}, {result['machine']['device']}, {torch.get_num_threads()} threads, "
        f"{precision}"
    )
    for name, rate in rates.items():
        spread = f"{min(seconds[name]):.3g}-{max(seconds[name]):.3g} s a step"
        print(
            f"{name:8} {rate:7.2f} images/s  {result['tflop_per_second'][name]:7.3f} TFLOP/s  "
            f"{recipe.steps} steps: {result['minutes'][name]:.1f} min  "
            f"(median of {len(seconds[name])}; {spread})"
        )
    peaks = result["matrix_product_tflop_per_second"].items()
    print("matrix product: " + ", ".join(f"{name} {peak:.3f} TFLOP/s" for name, peak in peaks))
    print(f"ratio    {result['ratio']:7.2f}")
    if args.json:
        with written_whole(args.json) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
