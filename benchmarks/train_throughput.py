"""Images per second of style training: Topcoat's step against a plain loop, in one run.

    python benchmarks/train_throughput.py --content DIR [--width 32] [--rounds 3] [--json FILE]

The plain loop does what pytorch/examples' fast_neural_style does: float32, NCHW, pictures decoded
in the training process, Gram matrices by bmm on NCHW views, the system's allocator as it is. Both
run the same network, losses, photographs and batch. Each measurement is a fresh process, because
the allocator's settings last as long as the process; the two take turns, so that a busy machine
slows both. VGG16's weights are those of --loss-weights or TOPCOAT_VGG16_WEIGHTS; without any,
seeded random ones stand in, which cost the same time.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM_UP = 2


def plain(args: argparse.Namespace) -> list[float]:
    """Seconds per step of the plain loop."""
    import torch
    import torch.nn.functional as F

    from topcoat.train.data import Photographs, find_pictures
    from topcoat.train.losses import load_loss_network, total_variation
    from topcoat.train.networks import build_network
    from topcoat.train.networks._norm import InstanceNorm2d
    from topcoat.train.pictures import sample_photographs
    from topcoat.train.recipes import STYLE_RECIPES

    recipe = STYLE_RECIPES["modern"]
    network = build_network("johnson", {"width": args.width, "upsampling": recipe.upsampling})
    network.train()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm2d):
                own = torch.nn.InstanceNorm2d(child.num_features, affine=True)
                own.load_state_dict(child.state_dict())
                setattr(module, name, own)
    vgg = load_loss_network("vgg16", recipe.layers(), args.loss_weights)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def gram(features: torch.Tensor) -> torch.Tensor:
        b, c, h, w = features.shape
        flat = features.view(b, c, h * w)
        return flat.bmm(flat.transpose(1, 2)) / (c * h * w)

    pictures = find_pictures(args.content) if args.content else sample_photographs()
    photographs = Photographs(pictures, args.crop, "crop", 0)
    with torch.no_grad():
        style = vgg(torch.rand(1, 3, args.crop, args.crop))
        targets = {layer: gram(style[layer]) for layer in recipe.style_layers}
    seconds = []
    for step in range(WARM_UP + args.steps):
        tick = time.perf_counter()
        samples = [photographs[step * args.batch + i].pixels for i in range(args.batch)]
        frames = torch.stack([s.permute(2, 0, 1).float() / 255 for s in samples])
        optimizer.zero_grad()
        output = network(frames)
        found, wanted = vgg(output), vgg(frames)
        content = F.mse_loss(found[recipe.content_layer], wanted[recipe.content_layer])
        style = sum(
            F.mse_loss(gram(found[k]), target.expand(args.batch, -1, -1))
            for k, target in targets.items()
        )
        # The absolute losses of the plain loop and the relative ones of the recipe are the same
        # sums up to constants.
        loss = 1e-5 * content + style + total_variation(output)
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - tick)
    return seconds[WARM_UP:]


def topcoat(args: argparse.Namespace) -> list[float]:
    """Seconds per step of ``train-style``: its own loop, loader and settings."""
    from topcoat.train._allocator import keep_freed_memory

    keep_freed_memory()
    from dataclasses import replace

    from topcoat.train import loop
    from topcoat.train.recipes import STYLE_RECIPES
    from topcoat.train.style import StyleRun, train_style

    seconds: list[float] = []
    # One step is from one schedule look-up to the next: the wait for the batch is in it.
    ticks: list[float] = []
    schedule = loop._schedule

    def timed(kind: str, step: int, steps: int) -> float:
        ticks.append(time.perf_counter())
        return schedule(kind, step, steps)

    loop._schedule = timed
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(
            STYLE_RECIPES["modern"],
            width=args.width,
            crop=args.crop,
            batch=args.batch,
            # Some more than are timed: the worker must not run out of work meanwhile.
            steps=WARM_UP + args.steps + 8,
        )
        settings = loop.RunSettings(output=Path(folder, "x.pt"), preview_every=0, quiet=True)
        train_style(
            StyleRun(
                style="mosaic",
                content=args.content,
                recipe=recipe,
                loss_weights=args.loss_weights,
                settings=settings,
            )
        )
    seconds = [after - before for before, after in itertools.pairwise(ticks)]
    return seconds[WARM_UP : WARM_UP + args.steps]


def _loss_weights(folder: Path, given: Path | None) -> tuple[Path, str]:
    """The real weights if they were named, else random ones of the same shapes."""
    import torch

    from topcoat.train.losses import LossNetwork, find_loss_weights

    if given is not None or os.environ.get("TOPCOAT_VGG16_WEIGHTS"):
        return find_loss_weights("vgg16", given).path, "VGG16"
    torch.manual_seed(0)
    path = folder / "random.pth"
    torch.save(LossNetwork("vgg16", ["relu3_3"]).state_dict(), path)
    return path, "VGG16's shapes, random weights"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--content", type=Path, help="folder of photographs (default: scikit-image's)"
    )
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loss-weights", type=Path, help="VGG16's weights")
    parser.add_argument("--only", choices=["plain", "topcoat"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps({"plain": plain, "topcoat": topcoat}[args.only](args)))
        return 0

    import torch

    from topcoat.train.loop import resolve_precision

    with tempfile.TemporaryDirectory() as folder:
        weights, described = _loss_weights(Path(folder), args.loss_weights)
        seconds: dict[str, list[float]] = {"plain": [], "topcoat": []}
        for _ in range(args.rounds):
            for name, collected in seconds.items():
                command = [
                    *(sys.executable, __file__, "--only", name, "--loss-weights", str(weights)),
                    *(f"--{k}={getattr(args, k)}" for k in ("width", "crop", "batch", "steps")),
                    *([f"--content={args.content}"] if args.content else []),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(done.stderr, file=sys.stderr)
                    return 1
                collected += json.loads(done.stdout.splitlines()[-1])
    rates = {name: args.batch / statistics.median(s) for name, s in seconds.items()}
    result = {
        "images_per_second": rates,
        "ratio": rates["topcoat"] / rates["plain"],
        "seconds_per_step": seconds,
        "settings": {k: getattr(args, k) for k in ("width", "crop", "batch", "steps", "rounds")},
        "loss_network": described,
        "precision": {"plain": "fp32", "topcoat": resolve_precision("auto", torch.device("cpu"))},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
    print(
        f"width {args.width}, {args.crop}x{args.crop}, batch {args.batch}, {described}, "
        f"{torch.get_num_threads()} threads"
    )
    for name, rate in rates.items():
        spread = f"{min(seconds[name]):.2f}-{max(seconds[name]):.2f} s a step"
        print(f"{name:8} {rate:6.2f} images/s   (median of {len(seconds[name])}; {spread})")
    print(f"ratio    {result['ratio']:6.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
