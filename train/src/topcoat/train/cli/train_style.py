"""``train-style``: a style picture and photographs in, a checkpoint out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from topcoat.train._errors import RecipeError
from topcoat.train.budget import Budget, BudgetTable, describe, pick, processor
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
  train-style --style candy.jpg --content photos/ --budget "1080p 16ms"
      the best real-time network whose frame takes no longer, by a table of measured ones
  train-style --recipe realtime --teacher candy.pt --content photos/
      a real-time network that paints as a trained network does
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
    run.add_argument(
        "--teacher",
        type=Path,
        metavar="CHECKPOINT",
        help="a trained style network, whose pictures of the photographs of --content are the "
        "targets; with --supervision both, --style counts beside them",
    )
    run.add_argument(
        "--budget",
        metavar="SIZE TIME",
        help='picks the real-time network: the best whose frame fits, "1080p 16ms" or "720p 60fps"',
    )
    run.add_argument(
        "--budget-table",
        type=Path,
        metavar="FILE",
        help="what --budget picks from: a table that benchmarks/realtime_networks.py wrote "
        "(default: the one that ships)",
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
    if args.budget is not None:
        _apply_budget(args)
    elif args.budget_table is not None:
        raise RecipeError("--budget-table has a meaning with --budget alone; pass both")
    learns_from_pictures = args.targets is not None or args.teacher is not None
    if learns_from_pictures and args.supervision is None and args.resume is None:
        args.supervision = "targets"


def _apply_budget(args: argparse.Namespace) -> None:
    """Set the recipe, and the settings in which the measured network differs from it."""
    budget = Budget.parse(args.budget)
    settings = StyleRecipe.network_fields["realtime"]
    taken = [name for name in ("resume", "recipe", "network", *settings) if getattr(args, name)]
    if taken:
        options = ", ".join(f"--{name}" for name in taken)
        raise RecipeError(f"--budget decides the network: leave out {options}, or --budget")
    table = BudgetTable.load(args.budget_table)
    bf16 = False
    if any(row.precision == "bf16" for row in table.timings):
        import torch

        from topcoat.train.loop import bf16_pays

        bf16 = bf16_pays(torch.device("cpu"))
    chosen = pick(budget, table, bf16=bf16)
    print(describe(chosen, budget, table, processor()), file=sys.stderr)
    args.recipe = chosen.network.recipe
    for name, value in chosen.network.settings.items():
        setattr(args, name, value)


def _train(args: argparse.Namespace, resolved: StyleRecipe) -> int:
    name = Path(args.style or "").stem
    if args.resume is None:
        check_supervision(
            resolved,
            style=args.style is not None,
            content=args.content is not None,
            targets=args.targets is not None,
            teacher=args.teacher is not None,
            resuming=False,
        )
        if args.style is None:
            if args.teacher is not None:
                name = f"{args.teacher.stem}-{resolved.network}"
            else:
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
            teacher=args.teacher,
            recipe=resolved,
            loss_weights=args.loss_weights,
            resume=checkpoint,
            settings=settings,
        )
    )
    return _shared.report(args, outcome, "train-style", ["export-engine {}"])


if __name__ == "__main__":
    _shared.leave(main())
