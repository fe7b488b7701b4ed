"""``train-sr``: a scale factor and photographs in, a checkpoint out."""

import argparse
from collections.abc import Sequence

from topcoat.train.cli import _shared
from topcoat.train.recipes import SR_RECIPES, SuperResolutionRecipe

_EPILOG = """\
examples:
  train-sr --scale 4 --content photos/
      pixels and VGG features, a network that runs in a seventh of the paper's time;
      writes residual-sr-x4-mix.pt
  train-sr --scale 4 --content photos/ --loss pixel -o soft.pt
      closest to the original pixel by pixel: highest PSNR, soft texture, needs no loss network
  train-sr --scale 4 --content photos/ --recipe johnson2016-sr --steps 20000
      the network, data and objective of Johnson, Alahi and Fei-Fei 2016
  train-sr --scale 2 --content photos/ --recipe srcnn
      the three-layer baseline of their table
  train-sr --resume residual-sr-x4-mix.pt
      go on after Ctrl-C, a crash or a kill
afterwards:
  evaluate-sr set5/ --model residual-sr-x4-mix.pt --page set5.html
  export-engine residual-sr-x4-mix.pt
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser; every recipe field has an option of its own."""
    top = argparse.ArgumentParser(
        prog="train-sr",
        usage="train-sr --content DIR [--scale {2,4,8}] [-o FILE] [options]",
        description="Train a network that enlarges pictures 2, 4 or 8 times.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = top.add_argument_group("run")
    _shared.add_run_options(run, SR_RECIPES, output="NETWORK-xSCALE-LOSS.pt")
    _shared.add_look_options(top.add_argument_group("look"))
    _shared.add_recipe_fields(top, SR_RECIPES["modern"])
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return _shared.training_command("train-sr", parser(), SR_RECIPES, _train, argv)


def _train(args: argparse.Namespace, resolved: SuperResolutionRecipe) -> int:
    name = f"{resolved.network}-x{resolved.scale}-{resolved.loss}.pt"
    output = _shared.check_output(args, name)
    checkpoint, resolved, settings = _shared.begin(args, resolved, output)

    if resolved.loss == "pixel" and resolved.tv_form == "paper" and resolved.tv_weight:
        note = (
            f"note: beside a pixel loss, total variation of {resolved.tv_weight:g} is not small "
            "and blurs; --tv-weight 0 leaves it out"
        )
        settings.opening = f"{settings.opening}\n{note}".lstrip("\n")

    from topcoat.train.super_resolution import SuperResolutionRun, train_super_resolution

    outcome = train_super_resolution(
        SuperResolutionRun(
            content=args.content,
            recipe=resolved,
            loss_weights=args.loss_weights,
            resume=checkpoint,
            settings=settings,
        )
    )
    afterwards = ["evaluate-sr FOLDER --model {} --page page.html", "export-engine {}"]
    return _shared.report(args, outcome, "train-sr", afterwards)


if __name__ == "__main__":
    _shared.leave(main())
