"""``train-style``: a style picture and photographs in, a checkpoint out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from topcoat.train._errors import RecipeError
from topcoat.train.cli import _shared
from topcoat.train.recipes import STYLE_RECIPES, StyleRecipe

_EPILOG = """\
examples:
  train-style --style candy.jpg --content photos/
      train on every picture below photos/, write candy.pt
  train-style --style mosaic --content photos/ --steps 1500 --width 16
      a built-in style, a narrower network (a quarter of the time per frame)
  train-style --style candy.jpg --content photos/ --strength 2 --style-size 768
      more style than content; larger strokes
  train-style --resume candy.pt
      go on after Ctrl-C, a crash or a kill
  torchrun --nproc-per-node 2 -m topcoat.train.cli.train_style --style candy.jpg --content photos/
      one process per device
afterwards:
  export-engine candy.pt
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser; every recipe field has an option of its own."""
    top = argparse.ArgumentParser(
        prog="train-style",
        usage="train-style --style PICTURE --content DIR [-o FILE] [options]",
        description="Train a network that repaints photographs in the style of one picture.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = top.add_argument_group("run")
    run.add_argument(
        "--style", metavar="PICTURE", help="a picture file, or a name from --list-styles"
    )
    _shared.add_run_options(run, STYLE_RECIPES, output="STYLE.pt")
    look = top.add_argument_group("look")
    _shared.add_look_options(look)
    look.add_argument("--list-styles", action="store_true", help="show the built-in styles")
    _shared.add_recipe_fields(top, STYLE_RECIPES["modern"])
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return _shared.training_command("train-style", parser(), STYLE_RECIPES, _train, argv)


def _train(args: argparse.Namespace, resolved: StyleRecipe) -> int:
    if args.style is None and args.resume is None:
        raise RecipeError("no style given; pass --style PICTURE or a name from --list-styles")
    output = _shared.check_output(args, Path(args.style or "").stem + ".pt")
    checkpoint, resolved, settings = _shared.begin(args, resolved, output)

    from topcoat.train.style import StyleRun, train_style

    outcome = train_style(
        StyleRun(
            style=args.style,
            content=args.content,
            recipe=resolved,
            loss_weights=args.loss_weights,
            resume=checkpoint,
            settings=settings,
        )
    )
    return _shared.report(args, outcome, "train-style", ["export-engine {}"])


if __name__ == "__main__":
    _shared.leave(main())
