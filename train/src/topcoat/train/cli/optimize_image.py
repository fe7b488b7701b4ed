"""``optimize-image``: a photograph and a style picture in, the optimised picture out."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topcoat.train._errors import RecipeError
from topcoat.train.cli import _shared
from topcoat.train.recipes import OPTIMIZE_RECIPES, STARTS, OptimizeRecipe

if TYPE_CHECKING:
    from topcoat.train._optimize_sources import StyleInput
    from topcoat.train.optimize import OptimizeOutcome, OptimizeRun

_LARGE = 1024
"""Pixels of the longer side above which freed memory is given back, unless --memory fast."""

_EPILOG = """\
examples:
  optimize-image photo.jpg candy.jpg
      repaint one photograph; writes photo_candy.png
  optimize-image photo.jpg candy.jpg --strength 3 --size 1024 --steps 200,100,50
      more style; three sizes, 256, 512 and 1024 pixels, each from the one before
  optimize-image photo.jpg candy.jpg --colours luminance
      keep the photograph's colours
  optimize-image photo.jpg candy.jpg mosaic --shares 2,1
      a mixture of two styles, the second one built in
  optimize-image photo.jpg candy.jpg mosaic --mask sky.png --mask ground.png
      each style where its mask is white
  optimize-image photo.jpg candy.jpg --histogram-weight 10
      values of the features as well as their correlations: fewer washed-out areas
  optimize-image photo.jpg candy.jpg --sweep strength=0.1,1,10 --sweep content_layer=relu2_2,relu3_3
      one sheet with labelled axes, and a JSON file of the losses
  optimize-image --reconstruct content photo.jpg --content-layer relu3_3
      what a layer knows of a photograph, from white noise; style: what Gram matrices know
  optimize-image --batch photos/ candy.jpg -o pairs/ --size 384
      pairs for train-style --targets pairs/
  optimize-image --resume photo_candy.optimize.pt
      go on after Ctrl-C, a crash or a kill
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser; every recipe field has an option of its own."""
    top = argparse.ArgumentParser(
        prog="optimize-image",
        usage="optimize-image CONTENT STYLE [STYLE …] [-o OUT] [options]",
        description="Optimise a picture towards a photograph's content and a style (Gatys et al.): "
        "slow, and the best that the losses of training can give.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = top.add_argument_group("run")
    run.add_argument(
        "pictures",
        nargs="*",
        metavar="CONTENT STYLE",
        help="the photograph, then style pictures: files, or names from --list-styles",
    )
    run.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="picture to write (default: CONTENT_STYLE.png)",
    )
    run.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"named set of settings: {', '.join(OPTIMIZE_RECIPES)} (default: modern)",
    )
    run.add_argument(
        "--shares",
        metavar="A,B,…",
        help="how much each style counts, in their order (default: alike)",
    )
    run.add_argument(
        "--mask",
        action="append",
        metavar="FILE",
        default=[],
        help="white where the style goes on the photograph; once for each style, - for everywhere",
    )
    run.add_argument(
        "--style-mask",
        action="append",
        metavar="FILE",
        default=[],
        help="white where the style picture counts; once for each style, - for all of it",
    )
    run.add_argument(
        "--reconstruct",
        choices=("content", "style"),
        help="one picture only: what its features, or its style statistics, say of it",
    )
    run.add_argument(
        "--sweep",
        action="append",
        metavar="FIELD=A,B,…",
        default=[],
        help="optimise for every value of a recipe field, twice for rows and columns: one sheet",
    )
    run.add_argument(
        "--batch", type=Path, metavar="DIR", help="optimise every photograph below DIR into pairs"
    )
    run.add_argument("--resume", type=Path, metavar="FILE", help="continue this .optimize.pt file")
    run.add_argument("--force", action="store_true", help="replace what is there")
    run.add_argument(
        "--loss-weights",
        type=Path,
        metavar="FILE",
        help=_shared.LOSS_WEIGHTS_HELP,
    )
    run.add_argument(
        "--memory",
        choices=("auto", "fast", "low"),
        default="auto",
        help="low: compute activations again instead of keeping them, a third more time; auto: "
        "where they would not fit (default: auto)",
    )
    run.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    run.add_argument(
        "--checkpoint-every", type=int, default=50, metavar="N", help="iterations (default: 50)"
    )
    run.add_argument(
        "--preview-every",
        type=int,
        default=50,
        metavar="N",
        help="iterations between pictures in OUT.preview/; 0 for none (default: 50)",
    )
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.add_argument(
        "--json", action="store_true", help="print outcome and losses as JSON on standard output"
    )
    look = top.add_argument_group("look")
    _shared.add_look_options(look)
    look.add_argument("--list-styles", action="store_true", help="show the built-in styles")
    _shared.add_recipe_fields(top, OPTIMIZE_RECIPES["modern"])
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return _shared.recipe_command(
        "optimize-image",
        parser(),
        OPTIMIZE_RECIPES,
        _optimize,
        argv,
        imply=_imply,
        interrupted="nothing was written but what it said",
    )


def _imply(args: argparse.Namespace) -> None:
    """Leave out of the recipe what a reconstruction leaves out.

    Raises:
        RecipeError: an option asks for it.
    """
    if args.reconstruct is not None and args.resume is None:
        dropped = {"content": ("style_weight", "histogram_weight"), "style": ("content_weight",)}
        for name in dropped[args.reconstruct]:
            if getattr(args, name):
                raise RecipeError(
                    f"--reconstruct {args.reconstruct} leaves --{name.replace('_', '-')} out; "
                    "give one or the other"
                )
            if getattr(OPTIMIZE_RECIPES.get(args.recipe or "modern"), name, 0):
                setattr(args, name, 0.0)
        args.start = args.start or "noise"


def _optimize(args: argparse.Namespace, resolved: OptimizeRecipe) -> int:
    _check(args)
    from topcoat.train._allocator import keep_freed_memory

    # Keeping what is freed saves time and doubles the peak: not where memory is what is short.
    if args.memory == "fast" or (args.memory == "auto" and resolved.size <= _LARGE):
        keep_freed_memory()
    import torch

    from topcoat.train.optimize import optimize_image

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.resume is not None:
        return _resume(args)

    def act(recipe: OptimizeRecipe) -> int:
        run = _run(args, recipe)
        if args.batch is not None:
            return _batch(args, run)
        if args.sweep:
            return _sweep(args, run)
        return _report(args, optimize_image(run))

    return _shared.with_stand_in(args, [resolved, *_swept(args, resolved)], act)


def _swept(args: argparse.Namespace, recipe: OptimizeRecipe) -> list[OptimizeRecipe]:
    """The recipes of a sheet's cells."""
    from topcoat.train.sweeps import axis, cells

    if not args.sweep:
        return []
    return [cell for row in cells(recipe, [axis(text) for text in args.sweep]) for cell in row]


def _check(args: argparse.Namespace) -> None:
    """Check what argparse cannot.

    Raises:
        RecipeError: a number that makes no sense, or options that do not go together.
    """
    for name, least in (("checkpoint_every", 0), ("preview_every", 0), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            wanted = f"at least {least}" if least else "0 or more"
            raise RecipeError(f"--{name.replace('_', '-')} must be {wanted}, got {value}")
    modes = [f"--{n}" for n in ("resume", "batch", "sweep", "reconstruct") if getattr(args, n)]
    if len(modes) > 1 and modes != ["--sweep", "--reconstruct"]:
        raise RecipeError(f"{' and '.join(modes)} do not go together; give one of them")
    if args.resume is not None:
        if args.pictures or args.mask or args.style_mask or args.shares:
            raise RecipeError(
                "pictures, masks and shares cannot change when resuming: the file knows them; "
                "give --resume FILE alone"
            )
        return
    count = len(args.pictures)
    if args.batch is not None:
        if not count:
            raise RecipeError("no style given; optimize-image --batch DIR STYLE -o PAIRS")
        if args.output is None:
            raise RecipeError("no folder for the pairs given; add -o PAIRS")
    elif args.reconstruct is not None:
        if count != 1:
            raise RecipeError(
                f"--reconstruct takes one picture, got {count}; "
                f"optimize-image --reconstruct {args.reconstruct} PICTURE"
            )
    elif count < 2:
        raise RecipeError(
            f"a photograph and a style are wanted, got {count} picture{'s' * (count != 1)}; "
            "optimize-image CONTENT STYLE"
        )


def _run(args: argparse.Namespace, recipe: OptimizeRecipe) -> "OptimizeRun":
    from topcoat.train._optimize_sources import read_style
    from topcoat.train.optimize import OptimizeRun, OptimizeSettings, check_output

    names: list[str] = args.pictures
    content = None
    if args.batch is None and args.reconstruct != "style":
        content, names = Path(names[0]), names[1:]
    shares = _shares(args.shares, len(names))
    places = [_one_for_each(args.mask, "--mask", names)]
    places.append(_one_for_each(args.style_mask, "--style-mask", names))
    styles: list[StyleInput] = [
        read_style(name, share, where, part)
        for name, share, where, part in zip(names, shares, *places, strict=True)
    ]
    output = args.output
    if output is None:
        stems = [path.stem for path in [content, *map(Path, names)] if path is not None]
        stems += [args.reconstruct] if args.reconstruct else []
        stems += ["sweep"] if args.sweep else []
        output = Path("_".join(stems) + ".png")
    if args.batch is None:
        start = [] if recipe.start in STARTS else [Path(recipe.start)]
        read = [path for path in (content, *map(Path, names), *places[0], *places[1]) if path]
        check_output(output, force=args.force, inputs=[*read, *start])
    settings = OptimizeSettings(
        output=output,
        checkpoint_every=args.checkpoint_every,
        preview_every=args.preview_every,
        memory=args.memory,
        quiet=args.quiet,
    )
    return OptimizeRun(
        content=content,
        styles=styles,
        recipe=recipe,
        settings=settings,
        loss_weights=args.loss_weights,
    )


def _shares(given: str | None, styles: int) -> list[float]:
    if given is None:
        return [1.0] * styles
    try:
        shares = [float(part) for part in given.split(",")]
    except ValueError:
        raise RecipeError(f"--shares must be numbers such as 2,1, got {given!r}") from None
    if len(shares) != styles:
        raise RecipeError(
            f"--shares has {len(shares)} numbers for {styles} style pictures; give one for each"
        )
    return shares


def _one_for_each(given: list[str], option: str, names: list[str]) -> list[Path | None]:
    if not given:
        return [None] * len(names)
    if len(given) != len(names):
        raise RecipeError(
            f"{option} was given {len(given)} times for {len(names)} style pictures; give it once "
            "for each in their order, - where there is none"
        )
    return [None if text == "-" else Path(text) for text in given]


def _resume(args: argparse.Namespace) -> int:
    from topcoat.train._optimize_state import load_state
    from topcoat.train.optimize import (
        OptimizeSettings,
        check_output,
        optimize_image,
        resumed_run,
    )

    state = load_state(args.resume)
    if args.output is not None:
        check_output(args.output, force=args.force)
    output = args.output or Path(state.output)
    settings = OptimizeSettings(
        output=output,
        checkpoint_every=args.checkpoint_every,
        preview_every=args.preview_every,
        memory=args.memory,
        quiet=args.quiet,
    )
    run = resumed_run(state, settings, args.loss_weights, args.steps)
    return _report(args, optimize_image(run))


def _sweep(args: argparse.Namespace, run: "OptimizeRun") -> int:
    from topcoat.train.sweeps import axis, sweep

    def on_cell(label: str, outcome: "OptimizeOutcome | None") -> None:
        if outcome is not None and not args.quiet:
            print(f"{label}: {_losses(outcome)}", file=sys.stderr)

    output = run.settings.output
    try:
        found = sweep(run, [axis(text) for text in args.sweep], on_cell)
    except KeyboardInterrupt:
        out = sys.stderr if args.json else sys.stdout
        print(f"interrupted; finished cells are in {output.with_suffix('.sweep')}", file=out)
        print("to go on: the same command again", file=out)
        return 130
    if args.json:
        print(output.with_suffix(".json").read_text(), end="")
        return 0
    print(f"sheet: {output} ({sum(map(len, found))} cells)")
    print(f"losses: {output.with_suffix('.json')}; cells: {output.with_suffix('.sweep')}")
    return 0


def _batch(args: argparse.Namespace, run: "OptimizeRun") -> int:
    from topcoat.train.optimize_batch import optimize_batch

    def on_picture(number: int, count: int, path: Path) -> None:
        if not args.quiet:
            print(f"{number}/{count}: {path}", file=sys.stderr)

    outcome = optimize_batch(run, args.batch, on_picture)
    code = 0 if outcome.finished else 130
    if args.json:
        print(json.dumps(dataclasses.asdict(outcome), default=str, indent=2))
        return code
    for reason in outcome.skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    print(f"pairs: {outcome.folder} ({outcome.done} of {outcome.asked} photographs)")
    if outcome.finished:
        # The default crop is 256; every pair has to hold one.
        crop = f" --crop {outcome.least_side // 32 * 32}" if 32 <= outcome.least_side < 256 else ""
        print(f"next: train-style --targets {outcome.folder}{crop}")
    else:
        print("to go on: the same command again")
    return code


def _losses(outcome: "OptimizeOutcome") -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in outcome.losses.items())


def _report(args: argparse.Namespace, outcome: "OptimizeOutcome") -> int:
    code = 0 if outcome.finished else 130
    if args.json:
        print(json.dumps(dataclasses.asdict(outcome), default=str, indent=2))
        return code
    if not outcome.finished:
        print(f"interrupted after {outcome.steps} iterations ({_losses(outcome)})")
        print(f"to go on: optimize-image --resume {outcome.state}")
        return code
    width, height = outcome.size
    early = ", stopped early: no step helps any more" if outcome.stalled else ""
    print(f"picture: {outcome.output} ({width}x{height}; {_losses(outcome)})")
    print(f"took {outcome.seconds / 60:.1f} min for {outcome.steps} iterations{early}")
    return code


if __name__ == "__main__":
    _shared.leave(main())
