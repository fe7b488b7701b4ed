"""``train-style``: a style picture and photographs in, a checkpoint out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from topcoat.train.cli import _shared
from topcoat.train.recipes import STYLE_RECIPES, StyleRecipe, check_supervision

_EPILOG = """\
examples:
  train-style --style candy.jpg --content photos/
      train on every picture below photos/, write candy.pt
  train-style --style mosaic --content photos/ --steps 1500 --width 16
      a built-in style, a narrower network (a quarter of the time per frame)
  train-style --style candy.jpg --content photos/ --strength 2 --style-size 768
      more style than content; larger strokes
  train-style --targets pairs/
      fit a network to photographs that optimize-image --batch has repainted
  train-style --targets pairs/ --supervision both --style candy.jpg
      hold it to those and to the style
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
    run.add_argument(
        "--targets",
        type=Path,
        metavar="PAIRS",
        help="folder that optimize-image --batch made, to fit the network to, instead of --content "
        "and, unless --supervision both is given, of --style",
    )
    _shared.add_run_options(run, STYLE_RECIPES, output="STYLE.pt")
    look = top.add_argument_group("look")
    _shared.add_look_options(look)
    look.add_argument("--list-styles", action="store_true", help="show the built-in styles")
    _shared.add_recipe_fields(top, STYLE_RECIPES["modern"])
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return _shared.training_command("train-style", parser(), STYLE_RECIPES, _train, argv, _imply)


def _imply(args: argparse.Namespace) -> None:
    if args.targets is not None and args.supervision is None and args.resume is None:
        args.supervision = "targets"


def _train(args: argparse.Namespace, resolved: StyleRecipe) -> int:
    name = Path(args.style or "").stem
    if args.resume is None:
        check_supervision(
            resolved,
            style=args.style is not None,
            content=args.content is not None,
            targets=args.targets is not None,
            resuming=False,
        )
        if args.style is None:
            from topcoat.train.pairs import pairs_style

            name = pairs_style(args.targets)["name"]
    output = _shared.check_output(args, f"{name}.pt")
    checkpoint, resolved, settings = _shared.begin(args, resolved, output)

    from topcoat.train.style import StyleRun, train_style

    outcome = train_style(
        StyleRun(
            style=args.style,
            content=args.content,
            targets=args.targets,
            recipe=resolved,
            loss_weights=args.loss_weights,
            resume=checkpoint,
            settings=settings,
        )
    )
    return _shared.report(args, outcome, "train-style", ["export-engine {}"])


if __name__ == "__main__":
    _shared.leave(main())
