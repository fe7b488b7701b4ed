r"""What a network learns from the embedded loss network, judged by VGG16.

    python benchmarks/loss_networks.py --style starry_night.jpg --content photos/ --held-out more/
    python benchmarks/loss_networks.py --held-out more/ --style starry_night.jpg \
        --checkpoints vgg16.pt embedded.pt

Trains the same network on the same photographs three times: against VGG16, against the embedded
network for as many steps, and against the embedded network for as long as VGG16 took. Then every
one is judged by both loss networks on photographs that none has seen. What counts is VGG16's
verdict; the embedded network's own beside it shows how far a generator exploits what the student
gets wrong. One training follows the other, so their seconds compare as far as the machine is quiet.
What was trained is kept in --folder: the same command goes on from there.

VGG16's weights: --loss-weights FILE or TOPCOAT_VGG16_WEIGHTS.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from topcoat.train import Checkpoint
    from topcoat.train.recipes import StyleRecipe

PHOTOGRAPHS = ("chelsea", "coffee", "astronaut")
"""scikit-image's photographs for the picture."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    from topcoat.train._allocator import keep_freed_memory

    keep_freed_memory()
    from topcoat.train import TopcoatError, load_checkpoint
    from topcoat.train._files import written_whole
    from topcoat.train.checkpoint import check_writable

    try:
        for option in ("picture", "json"):  # before hours of work
            if path := getattr(arguments, option):
                check_writable(path, f"--{option}")
        if arguments.checkpoints:
            paths = {path.stem: path for path in arguments.checkpoints}
        else:
            paths = train(arguments)
        checkpoints = {name: load_checkpoint(path) for name, path in paths.items()}
        result = compare(checkpoints, arguments)
        show(result)
        if arguments.picture:
            with written_whole(arguments.picture) as file:
                sheet(checkpoints).save(file, "JPEG", quality=88)
    except TopcoatError as error:
        print(f"loss_networks: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        with written_whole(arguments.json) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
    return 0


def train(arguments: argparse.Namespace) -> dict[str, Path]:
    """Train what is not there yet; {name: checkpoint}."""
    from topcoat.train import RecipeError, load_checkpoint

    if arguments.content is None:
        raise RecipeError("nothing to train on: give --content DIR, or --checkpoints")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    common = ["--recipe", arguments.recipe, "--style", str(arguments.style)]
    common += ["--content", str(arguments.content), *shlex.split(arguments.options)]

    def once(name: str, loss_network: str, steps: int) -> Path:
        path: Path = arguments.folder / f"{name}.pt"
        begun = path.is_file()
        if begun and load_checkpoint(path).step >= steps:
            return path
        options = ["--resume", str(path), "--steps", str(steps)]
        if not begun:
            options = [*common, "--loss-network", loss_network, "--steps", str(steps)]
            options += ["-o", str(path)]
        if arguments.loss_weights and loss_network == "vgg16":
            options += ["--loss-weights", str(arguments.loss_weights)]
        command = [sys.executable, "-m", "topcoat.train.cli.train_style", *options]
        if subprocess.run(command, check=False).returncode:
            raise RecipeError(f"the training of {name} failed; the line above says why")
        return path

    def seconds(path: Path) -> float:
        return float(load_checkpoint(path).history[-1]["seconds"])

    steps = arguments.steps
    paths = {"vgg16": once("vgg16", "vgg16", steps)}
    paths["embedded"] = once("embedded", "embedded", steps)
    more = round(steps * seconds(paths["vgg16"]) / seconds(paths["embedded"]))
    paths["embedded, equal time"] = once("embedded-equal-time", "embedded", more)
    return paths


def compare(checkpoints: dict[str, Checkpoint], arguments: argparse.Namespace) -> dict[str, Any]:
    """The objective's parts of every network by both loss networks, means over photographs."""
    import torch

    from topcoat.train.data import find_pictures
    from topcoat.train.frames import array_tensor, frame_tensor
    from topcoat.train.losses import PerceptualLoss, perceptual_network, style_target
    from topcoat.train.pictures import open_rgb, resize_longer_side, resize_shorter_side, to_array
    from topcoat.train.recipes import StyleRecipe
    from topcoat.train.style_pictures import load_style

    style = load_style(arguments.style)
    photos = []
    for path in find_pictures(arguments.held_out)[: arguments.photographs]:
        picture = resize_shorter_side(open_rgb(path), arguments.size)
        left, top = ((side - arguments.size) // 2 for side in picture.size)
        box = (left, top, left + arguments.size, top + arguments.size)
        photos.append(array_tensor(to_array(picture.crop(box))))
    rows = []
    for name, checkpoint in checkpoints.items():
        recipe = StyleRecipe.from_dict(checkpoint.recipe)
        network = checkpoint.build_network()
        verdicts: dict[str, dict[str, float]] = {}
        for judge in ("vgg16", "embedded"):
            asked = _judged_by(recipe, judge)
            weights = arguments.loss_weights if judge == "vgg16" else None
            loss_network, _ = perceptual_network(asked, weights)
            scaled = frame_tensor(resize_longer_side(style.image, asked.style_size))
            objective = PerceptualLoss(
                loss_network, [style_target(loss_network, scaled, asked)], asked
            )
            sums: dict[str, float] = {}
            with torch.no_grad():
                for photo in photos:
                    for part, value in objective(network(photo).clamp(0, 1), photo).items():
                        sums[part] = sums.get(part, 0.0) + float(value) / len(photos)
            verdicts[judge] = sums
        rows.append(
            {
                "name": name,
                "network": checkpoint.network,
                "loss_network": recipe.loss_network,
                "steps": checkpoint.step,
                "batch": recipe.batch,
                "crop": recipe.crop,
                "seconds": checkpoint.history[-1]["seconds"],
                "verdicts": verdicts,
            }
        )
    from topcoat.train.budget import processor

    return {
        "machine": {"processor": processor(), "logical": os.cpu_count()},
        "style": style.name,
        "photographs": len(photos),
        "size": arguments.size,
        "rows": rows,
    }


def _judged_by(recipe: StyleRecipe, network: str) -> StyleRecipe:
    from dataclasses import replace

    return replace(recipe, loss_network=network, loss_input="auto")  # type: ignore[arg-type]


def show(result: dict[str, Any]) -> None:
    """Print the table as Markdown; ratios are to the first row."""
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['logical']} logical; style {result['style']}")
    print(f"means over {result['photographs']} photographs of {result['size']}²\n")
    print(
        "| trained against | steps | s | VGG16: style | ratio | content | objective | ratio |",
        end="",
    )
    print(" embedded: style | content |\n|---|---|---|---|---|---|---|---|---|---|")
    first = result["rows"][0]["verdicts"]["vgg16"]
    for row in result["rows"]:
        true, own = row["verdicts"]["vgg16"], row["verdicts"]["embedded"]
        cells = [row["name"], str(row["steps"]), f"{row['seconds']:.0f}", f"{true['style']:.4f}"]
        cells += [f"{true['style'] / first['style']:.2f}", f"{true['content']:.3f}"]
        cells += [f"{true['total']:.3f}", f"{true['total'] / first['total']:.2f}"]
        cells += [f"{own['style']:.4f}", f"{own['content']:.3f}"]
        print(f"| {' | '.join(cells)} |")


def sheet(checkpoints: dict[str, Checkpoint]) -> Image.Image:
    """Photographs above; below them what each network makes of them."""
    from PIL import Image

    from topcoat.train.frames import run_network
    from topcoat.train.pictures import open_rgb, resize_shorter_side, sample_photographs

    found = {path.stem: path for path in sample_photographs()}
    photos = []
    for name in PHOTOGRAPHS:
        picture = resize_shorter_side(open_rgb(found[name]), 256)
        photos.append(picture.crop((0, 0, min(picture.width, 384) // 4 * 4, 256)))
    rows = [photos]
    rows += [[run_network(c.build_network(), p) for p in photos] for c in checkpoints.values()]
    width = sum(photo.width for photo in photos) + 6 * (len(photos) - 1)
    page = Image.new("RGB", (width, len(rows) * 262 - 6), "white")
    for number, row in enumerate(rows):
        left = 0
        for picture in row:
            page.paste(picture, (left, number * 262))
            left += picture.width + 6
    return page


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--style", required=True, help="a picture, or a drawn style's name")
    parser.add_argument("--content", type=Path, help="folder of photographs to train on")
    parser.add_argument(
        "--held-out", type=Path, required=True, help="folder of others, to judge on"
    )
    parser.add_argument("--recipe", default="realtime")
    parser.add_argument("--options", default="", help="more options of train-style, quoted")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--checkpoints", type=Path, nargs="+", help="judge these, train nothing")
    parser.add_argument("--photographs", type=int, default=24)
    parser.add_argument("--size", type=int, default=256, help="side of the squares judged on")
    parser.add_argument("--loss-weights", type=Path, help="VGG16's weights")
    parser.add_argument("--folder", type=Path, default=Path("loss_networks"))
    parser.add_argument("--picture", type=Path, metavar="FILE.jpg", help="pictures side by side")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
