"""What one relative style weight is worth in absolute weights, style by style.

    python benchmarks/style_weights.py styles/*.jpg [--style-weight 10] [--style-size 512]

Prints, for every picture given and every built-in style, the absolute style weight (content weight
1, losses averaged over entries) that weighs alike, and the relative weight that the 5.0 of Johnson
et al.'s code amounts to there. Photographs: scikit-image's, 256x256 from the top left after scaling
the shorter side. Loss network and layers: those of the recipe ``modern``.
"""

import argparse
import sys
from pathlib import Path

import torch

from topcoat.train import TopcoatError
from topcoat.train.frames import frame_tensor
from topcoat.train.losses import perceptual_network, relative_style_weight, style_target
from topcoat.train.pictures import (
    open_rgb,
    resize_longer_side,
    resize_shorter_side,
    sample_photographs,
)
from topcoat.train.recipes import STYLE_RECIPES
from topcoat.train.style_pictures import load_style
from topcoat.train.styles import STYLES

SIDE = 256


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--style-weight", type=float, default=10.0)
    parser.add_argument("--style-size", type=int, default=512)
    parser.add_argument("--loss-weights", type=Path)
    args = parser.parse_args()
    recipe = STYLE_RECIPES["modern"]
    try:
        network, _ = perceptual_network(recipe, args.loss_weights)
        styles = [load_style(path) for path in [*args.pictures, *STYLES]]
    except TopcoatError as error:
        print(f"style_weights: {error}", file=sys.stderr)
        return 2
    photographs = [resize_shorter_side(open_rgb(p), SIDE) for p in sample_photographs()]
    frames = torch.cat([frame_tensor(p.crop((0, 0, SIDE, SIDE))) for p in photographs])
    content = network(frames)[recipe.content_layer]
    print(f"| style | absolute weight for {args.style_weight:g} | relative weight for 5.0 |")
    print("|---|---|---|")
    found = []
    for style in styles:
        scaled = frame_tensor(resize_longer_side(style.image, args.style_size))
        grams = style_target(network, scaled, recipe).grams
        one = relative_style_weight(1.0, 1.0, grams, content)
        found.append(args.style_weight / one)
        print(f"| {style.name} | {found[-1]:.3g} | {5 * one:.3g} |")
    print(f"largest / smallest: {max(found) / min(found):.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
