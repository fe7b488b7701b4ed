"""``train-texture``: a picture of a texture in, a checkpoint that makes more of it out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from topcoat.train._errors import RecipeError
from topcoat.train.cli import _shared
from topcoat.train.recipes import TEXTURE_RECIPES, TextureRecipe

_EPILOG = """\
examples:
  train-texture --texture bark.jpg
      learn the texture, write bark.pt
  train-texture --texture mosaic --steps 300
      a built-in picture, a shorter run: for trying out
  train-texture --texture bark.jpg --texture-size 512 --scales 5
      larger features
  train-texture --texture bark.jpg --histogram-weight 1
      the colours and contrasts of the picture more exactly; slower
  train-texture --resume bark.pt
      go on after Ctrl-C, a crash or a kill
  torchrun --nproc-per-node 2 -m topcoat.train.cli.train_texture --texture bark.jpg --batch 2
      one process per device
afterwards:
  export-engine bark.pt
  topcoat texture bark.topcoat wall.png --size 1024x1024
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser; every recipe field has an option of its own."""
    top = argparse.ArgumentParser(
        prog="train-texture",
        usage="train-texture --texture PICTURE [-o FILE] [options]",
        description="Train a network that makes textures like one picture, of any size, which "
        "tile without a seam.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = top.add_argument_group("run")
    run.add_argument(
        "--texture", metavar="PICTURE", help="a picture file, or a name from --list-styles"
    )
    _shared.add_run_options(run, TEXTURE_RECIPES, output="TEXTURE.pt", photographs=False)
    look = top.add_argument_group("look")
    _shared.add_look_options(look)
    look.add_argument("--list-styles", action="store_true", help="show the built-in pictures")
    _shared.add_recipe_fields(top, TEXTURE_RECIPES["modern"])
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return _shared.training_command("train-texture", parser(), TEXTURE_RECIPES, _train, argv)


def _train(args: argparse.Namespace, resolved: TextureRecipe) -> int:
    if args.texture is None and args.resume is None:
        raise RecipeError("no texture given; pass --texture PICTURE or a name from --list-styles")
    output = _shared.check_output(args, Path(args.texture or "").stem + ".pt")
    checkpoint, resolved, settings = _shared.begin(args, resolved, output)

    from topcoat.train.texture import TextureRun, train_texture

    outcome = train_texture(
        TextureRun(
            texture=args.texture,
            recipe=resolved,
            loss_weights=args.loss_weights,
            resume=checkpoint,
            settings=settings,
        )
    )
    return _shared.report(args, outcome, "train-texture", ["export-engine {}"])


if __name__ == "__main__":
    _shared.leave(main())
