"""Make docs/gallery again from checkpoints: one sheet a style, and the table of how it was trained.

    python benchmarks/gallery.py runs/*.pt --output docs/gallery

The photographs are scikit-image's, which no run above trained on; each is shown above what the
network makes of it, at the size it was repainted. Prints the table in Markdown.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from topcoat.train import Checkpoint, TopcoatError, load_checkpoint
from topcoat.train.frames import run_network
from topcoat.train.networks import FrameNetwork
from topcoat.train.pictures import open_rgb, resize_shorter_side, sample_photographs
from topcoat.train.recipes import STYLE_RECIPES, StyleRecipe, difference

SIDE = 320
GAP = 6
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")


def sheet(network: FrameNetwork, photographs: list[Image.Image]) -> Image.Image:
    """Photographs above, repainted below."""
    styled = [run_network(network, photograph) for photograph in photographs]
    width = sum(p.width for p in photographs) + GAP * (len(photographs) - 1)
    page = Image.new("RGB", (width, 2 * SIDE + GAP), "white")
    left = 0
    for before, after in zip(photographs, styled, strict=True):
        page.paste(before, (left, 0))
        page.paste(after, (left, SIDE + GAP))
        left += before.width + GAP
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/gallery"))
    args = parser.parse_args()
    found = {path.stem: path for path in sample_photographs()}
    photographs = []
    for name in PHOTOGRAPHS:
        picture = resize_shorter_side(open_rgb(found[name]), SIDE)
        photographs.append(picture.crop((0, 0, picture.width // 4 * 4, SIDE)))
    args.output.mkdir(parents=True, exist_ok=True)
    print("| style | recipe, changed fields | steps | min | content | style | total variation |")
    print("|---|---|---|---|---|---|---|")
    for path in args.checkpoints:
        try:
            checkpoint = load_checkpoint(path)
        except TopcoatError as error:
            print(f"gallery: {error}", file=sys.stderr)
            return 2
        page = sheet(checkpoint.build_network(), photographs)
        page.save(args.output / f"{path.stem}.jpg", quality=88, optimize=True)
        print(_row(path.stem, checkpoint))
    return 0


def _row(name: str, checkpoint: Checkpoint) -> str:
    """One line of the table: the last 20 logged steps, averaged, because single steps scatter."""
    own = StyleRecipe.from_dict(checkpoint.recipe)
    changed = difference(STYLE_RECIPES[own.name], own)
    fields = ", ".join(f"{k} {v[1]}" for k, v in changed.items() if k not in {"steps", "precision"})
    recent = checkpoint.history[-20:]
    mean = {
        part: sum(entry[part] for entry in recent) / len(recent)
        for part in ("content", "style", "tv")
    }
    losses = " | ".join(f"{value:.3f}" for value in mean.values())
    minutes = f"{recent[-1]['seconds'] / 60:.0f}" if "seconds" in recent[-1] else "?"
    fields = fields or "none"
    return f"| {name} | {own.name}; {fields} | {checkpoint.step} | {minutes} | {losses} |"


if __name__ == "__main__":
    sys.exit(main())
