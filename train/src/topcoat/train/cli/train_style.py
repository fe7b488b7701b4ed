"""``train-style``: a style picture and photographs in, a checkpoint out."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from topcoat.train._errors import DivergenceError, OutputError, RecipeError, TopcoatError
from topcoat.train.recipes import RECIPES, StyleRecipe, difference, recipe

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
    run.add_argument(
        "--content",
        type=Path,
        metavar="DIR",
        help="folder tree of photographs (jpg, png, webp); without it, the six photographs that "
        "scikit-image carries: for trying out",
    )
    run.add_argument(
        "--recipe", default=None, metavar="NAME", help="named set of settings (default: modern)"
    )
    run.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="checkpoint to write (default: STYLE.pt)"
    )
    run.add_argument(
        "--resume", type=Path, metavar="FILE", help="continue this checkpoint, bit for bit on a CPU"
    )
    run.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    run.add_argument(
        "--loss-weights",
        type=Path,
        metavar="FILE",
        help="weights of the loss network; else TOPCOAT_VGG16_WEIGHTS, torch's hub cache, download",
    )
    run.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="picture-decoding processes (default: 1)",
    )
    run.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    run.add_argument(
        "--checkpoint-every", type=int, default=250, metavar="N", help="steps (default: 250)"
    )
    run.add_argument(
        "--preview-every",
        type=int,
        default=250,
        metavar="N",
        help="steps between pictures in OUTPUT.preview/; 0 for none (default: 250)",
    )
    run.add_argument("--log-every", type=int, default=25, metavar="N", help="steps (default: 25)")
    run.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write scalars for TensorBoard"
    )
    run.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="torch.compile; by default only where it pays: on a GPU, for long runs",
    )
    run.add_argument(
        "--drop-state",
        action="store_true",
        help="leave the optimiser out of the finished checkpoint: a third of the size, no --resume",
    )
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.add_argument(
        "--json", action="store_true", help="print the outcome as JSON on standard output"
    )

    show = top.add_argument_group("look")
    show.add_argument(
        "--list-recipes", action="store_true", help="show the recipes and how they differ"
    )
    show.add_argument("--list-styles", action="store_true", help="show the built-in styles")
    show.add_argument(
        "--show-recipe", action="store_true", help="print the resolved recipe as JSON and stop"
    )

    group = top.add_argument_group("recipe fields", "override single settings of the recipe")
    hints = get_type_hints(StyleRecipe)
    base = RECIPES["modern"]
    for entry in dataclasses.fields(StyleRecipe):
        if entry.name == "name":
            continue
        hint, reason = hints[entry.name], entry.metadata["reason"]
        default = getattr(base, entry.name)
        shown = ",".join(default) if isinstance(default, tuple) else default
        kwargs: dict[str, Any] = {"help": f"{reason} (modern: {shown})".replace("%", "%%")}
        if get_args(hint) and not isinstance(default, tuple):
            kwargs["choices"] = get_args(hint)
        elif isinstance(default, tuple):
            kwargs |= {
                "type": lambda text: tuple(filter(None, text.split(","))),
                "metavar": "A,B,…",
            }
        else:
            kwargs |= {
                "type": type(default),
                "metavar": {int: "N", float: "X", str: "NAME"}[type(default)],
            }
        group.add_argument("--" + entry.name.replace("_", "-"), **kwargs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    top = parser()
    args = top.parse_args(argv)
    if args.list_recipes:
        print(_recipe_table())
        return 0
    if args.list_styles:
        # One line each, without drawing them.
        from topcoat.train.styles import STYLES

        print("\n".join(f"{name:10} {text}" for name, (_, text) in STYLES.items()))
        return 0
    try:
        resolved = _resolve(args)
        if args.show_recipe:
            print(json.dumps(resolved.to_dict(), indent=2))
            return 0
        return _train(args, resolved)
    except DivergenceError as error:
        print(f"train-style: {error}", file=sys.stderr)
        return 1
    except TopcoatError as error:
        print(f"train-style: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train-style: interrupted; checkpoints written so far are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open until exit
        return 0


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    names = [entry.name for entry in dataclasses.fields(StyleRecipe) if entry.name != "name"]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _resolve(args: argparse.Namespace) -> StyleRecipe:
    overrides = _overrides(args)
    if args.resume is not None:
        refused = sorted(set(overrides) - {"steps"})
        if args.recipe or refused:
            came = ["--recipe"] * bool(args.recipe) + ["--" + n.replace("_", "-") for n in refused]
            raise RecipeError(
                f"{', '.join(came)} cannot change when resuming: the checkpoint's recipe goes on; "
                "only --steps may"
            )
        return dataclasses.replace(RECIPES["modern"], **overrides)
    return dataclasses.replace(recipe(args.recipe or "modern"), **overrides)


def _train(args: argparse.Namespace, resolved: StyleRecipe) -> int:
    if args.style is None and args.resume is None:
        raise RecipeError("no style given; pass --style PICTURE or a name from --list-styles")
    for name in ("checkpoint_every", "log_every"):
        if getattr(args, name) < 1:
            raise RecipeError(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}"
            )
    for name in ("workers", "preview_every"):
        if getattr(args, name) < 0:
            raise RecipeError(
                f"--{name.replace('_', '-')} must be 0 or more, got {getattr(args, name)}"
            )
    if args.threads is not None and args.threads < 1:
        raise RecipeError(f"--threads must be at least 1, got {args.threads}")
    output = args.output or args.resume or Path(Path(args.style).stem + ".pt")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give the checkpoint's file name with --output")
    if output.exists() and output != args.resume and not args.force:
        raise OutputError(
            f"{output} exists; go on with --resume {output}, replace it with --force, "
            "or choose another --output"
        )

    from topcoat.train._allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from topcoat.train.checkpoint import check_writable, load_checkpoint
    from topcoat.train.loop import RunSettings
    from topcoat.train.style import StyleRun, train_style

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    checkpoint = None if args.resume is None else load_checkpoint(args.resume)
    check_writable(output)
    if checkpoint is not None and args.steps is None:
        steps = int(checkpoint.recipe.get("steps", resolved.steps))
        resolved = dataclasses.replace(resolved, steps=steps)
    trying_out = (
        "no --content: training on the six photographs of scikit-image, which is enough to try "
        "things out and too few for a good network"
    )
    outcome = train_style(
        StyleRun(
            style=args.style,
            content=args.content,
            recipe=resolved,
            loss_weights=args.loss_weights,
            resume=checkpoint,
            settings=RunSettings(
                output=output,
                checkpoint_every=args.checkpoint_every,
                preview_every=args.preview_every,
                log_every=args.log_every,
                workers=args.workers,
                compile=args.compile,
                tensorboard=args.tensorboard,
                keep_state=not args.drop_state,
                quiet=args.quiet,
                opening=trying_out if args.content is None and checkpoint is None else "",
            ),
        )
    )
    return _report(args, outcome)


def _report(args: argparse.Namespace, outcome: Any) -> int:  # noqa: ANN401 - loop.Outcome; torch is not imported here
    if not _is_main_process():
        return 0 if outcome.finished else 130
    if args.json:
        print(json.dumps(dataclasses.asdict(outcome), default=str, indent=2))
        return 0 if outcome.finished else 130
    if outcome.broken:
        count = len(outcome.broken)
        print(f"{count} picture{'s' * (count > 1)} could not be used:", file=sys.stderr)
        for message in outcome.broken[:20]:
            print(f"  {message}", file=sys.stderr)
        if len(outcome.broken) > 20:
            print(f"  and {len(outcome.broken) - 20} more", file=sys.stderr)
    parts = ", ".join(f"{name} {value:.4g}" for name, value in outcome.losses.items())
    what = "checkpoint" if outcome.finished else "interrupted; checkpoint"
    print(f"{what}: {outcome.checkpoint} (step {outcome.step}; {parts})")
    print(f"took {outcome.seconds / 60:.1f} min, {outcome.images_per_second:.1f} images/s")
    if outcome.finished:
        print(f"next: export-engine {outcome.checkpoint}")
        return 0
    same = f" --loss-weights {args.loss_weights}" if args.loss_weights else ""
    print(f"to go on: train-style --resume {outcome.checkpoint}{same}")
    return 130


def _is_main_process() -> bool:
    """Of those that torchrun started; without it there is only one."""
    return os.environ.get("RANK", "0") == "0"


def _recipe_table() -> str:
    """Every field of every recipe, and a mark where they differ."""
    names = list(RECIPES)
    rows = {name: values.to_dict() for name, values in RECIPES.items()}
    differing = difference(RECIPES[names[0]], RECIPES[names[1]])
    lines = [f"  {'':16}" + "".join(f"{name:32}" for name in names)]
    for field_name in rows[names[0]]:
        if field_name == "name":
            continue
        cells = []
        for name in names:
            value = rows[name][field_name]
            cells.append(f"{','.join(value) if isinstance(value, list) else value!s:32}")
        lines.append(
            f"{'*' if field_name in differing else ' '} {field_name:16}"
            + "".join(f"{c:32}" for c in cells).rstrip()
        )
    lines.append("* differs; any field can be overridden, --style-weight 20 for example")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Under torchrun: everything is saved and said. Threads of the process group are still
        # winding down, and the ordinary exit aborts on them once in a while (torch 2.13, gloo).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
