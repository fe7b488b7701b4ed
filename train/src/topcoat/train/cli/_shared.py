"""What the training commands have in common: options, the recipe's fields, the outcome, exit codes.

Nothing here imports torch: ``--help`` and mistakes are answered at once.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from topcoat.train._errors import (
    DivergenceError,
    LossWeightsError,
    MissingLossWeightsError,
    OutputError,
    RecipeError,
    TopcoatError,
)
from topcoat.train.recipes import LossRecipe, Recipe, TrainingRecipe, difference, recipe

if TYPE_CHECKING:
    from topcoat.train.checkpoint import Checkpoint
    from topcoat.train.loop import Outcome, RunSettings

R = TypeVar("R", bound=Recipe)
L = TypeVar("L", bound=LossRecipe)
T = TypeVar("T", bound=TrainingRecipe)

TRYING_OUT = (
    "no --content: training on the six photographs of scikit-image, which is enough to try "
    "things out and too few for a good network"
)

LOSS_WEIGHTS_HELP = (
    "weights of the loss network; else TOPCOAT_VGG16_WEIGHTS, torch's hub cache, download; where "
    "vgg16 is not asked for with --loss-network and cannot be had, the embedded one stands in"
)


def add_run_options(
    run: argparse._ArgumentGroup,
    recipes: Mapping[str, Recipe],
    *,
    output: str,
    photographs: bool = True,
) -> None:
    """Add the options of every training run.

    Args:
        run: the group to add to.
        recipes: that ``--recipe`` can name.
        output: how help names the default file.
        photographs: whether it trains on photographs, which have to be found and decoded.
    """
    if photographs:
        run.add_argument(
            "--content",
            type=Path,
            metavar="DIR",
            help="folder tree of photographs (jpg, png, webp); without it, the six photographs "
            "that scikit-image carries: for trying out",
        )
        run.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help="picture-decoding processes (default: as many as the training does not wait for)",
        )
    else:
        run.set_defaults(workers=0)
    run.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"named set of settings: {', '.join(recipes)} (default: modern)",
    )
    run.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help=f"checkpoint to write (default: {output})",
    )
    run.add_argument(
        "--resume", type=Path, metavar="FILE", help="continue this checkpoint, bit for bit on a CPU"
    )
    run.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    run.add_argument(
        "--loss-weights",
        type=Path,
        metavar="FILE",
        help=LOSS_WEIGHTS_HELP,
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


def add_look_options(look: argparse._ArgumentGroup) -> None:
    """Add the options that print recipes instead of training."""
    look.add_argument(
        "--list-recipes", action="store_true", help="show the recipes and how they differ"
    )
    look.add_argument(
        "--show-recipe", action="store_true", help="print the resolved recipe as JSON and stop"
    )


def add_recipe_fields(top: argparse.ArgumentParser, base: Recipe) -> None:
    """Add an option for every field of a recipe, with its reason and ``base``'s value as help.

    In groups by the class that adds the field, the recipe's own first.
    """
    hints = get_type_hints(type(base))
    fields = _fields(type(base))
    about = f"override single settings of the recipe ({base.name}'s are shown; --list-recipes: all)"
    for owner in type(base).__mro__:
        own = [entry for entry in fields if _owner(type(base), entry.name) is owner]
        if not own:
            continue
        group = top.add_argument_group(f"recipe: {vars(owner)['title']}", about)
        for entry in own:
            hint, reason = hints[entry.name], entry.metadata["reason"]
            default = getattr(base, entry.name)
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            kwargs: dict[str, Any] = {
                "help": f"{reason} ({base.name}: {shown})".replace("%", "%%").replace(
                    ": )", ": none)"
                )
            }
            if isinstance(default, tuple):
                kwargs |= {"type": _list_of(get_args(hint)[0]), "metavar": "A,B,…"}
            elif get_args(hint):
                kwargs |= {"type": type(default), "choices": get_args(hint)}
            else:
                kwargs |= {
                    "type": type(default),
                    "metavar": {int: "N", float: "X", str: "NAME"}[type(default)],
                }
            group.add_argument(_option(entry.name), **kwargs)


def _owner(cls: type, field: str) -> type:
    """The class that first brought a field, of those that a recipe is built from."""
    return [base for base in cls.__mro__ if field in vars(base).get("__annotations__", {})][-1]


def _list_of(kind: type) -> Callable[[str], tuple[Any, ...]]:
    def values(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(",") if part)

    # argparse says "invalid … value".
    values.__name__ = "names such as A,B" if kind is str else "numbers such as 1,2"
    return values


def resolve(args: argparse.Namespace, among: Mapping[str, R]) -> R:
    """The recipe that the command line asks for; when resuming, only its ``steps`` count.

    Raises:
        RecipeError: no such recipe, a value out of range, a field that the recipe's network has
            no use for, or one that cannot change when resuming.
    """
    base = among["modern"]
    names = [entry.name for entry in _fields(type(base))]
    overrides = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.resume is not None:
        refused = sorted(set(overrides) - {"steps"})
        if args.recipe or refused:
            came = ["--recipe"] * bool(args.recipe) + [_option(name) for name in refused]
            raise RecipeError(
                f"{', '.join(came)} cannot change when resuming: the checkpoint's recipe goes on; "
                "only --steps may"
            )
        return dataclasses.replace(base, **overrides)
    chosen = recipe(args.recipe or "modern", among)
    resolved = dataclasses.replace(chosen, **overrides)
    if idle := sorted(resolved.idle_fields() & set(overrides)):
        options = ", ".join(map(_option, idle))
        users = resolved.owners(idle)
        who = f"; it belongs to {' and '.join(users)}" if users else ""
        raise RecipeError(
            f"{options} would change nothing here, see --show-recipe{who}: leave it out"
        )
    return resolved


def recipe_command(
    command: str,
    parser: argparse.ArgumentParser,
    recipes: Mapping[str, R],
    act: Callable[[argparse.Namespace, R], int],
    argv: Sequence[str] | None,
    *,
    imply: Callable[[argparse.Namespace], None] = lambda _: None,
    interrupted: str = "checkpoints written so far are kept",
) -> int:
    """What the ``main`` of every command with recipes does; returns the exit code.

    Args:
        command: its name.
        parser: with the options of this module, ``--list-styles`` being optional.
        recipes: that ``--recipe`` can name.
        act: what is left to do with the resolved recipe.
        argv: the command line; None: the process's.
        imply: sets recipe fields that other options imply, before the recipe is resolved.
        interrupted: what Ctrl-C leaves behind.
    """
    args = parser.parse_args(argv)

    def action() -> int:
        if args.list_recipes:
            print(recipe_table(recipes))
            return 0
        if getattr(args, "list_styles", False):
            # One line each, without drawing them.
            from topcoat.train.styles import STYLES

            print("\n".join(f"{name:10} {text}" for name, (_, text) in STYLES.items()))
            return 0
        imply(args)
        resolved = resolve(args, recipes)
        if args.show_recipe:
            print(json.dumps(resolved.to_dict(), indent=2))
            return 0
        return act(args, resolved)

    return run(command, action, interrupted)


def training_command(
    command: str,
    parser: argparse.ArgumentParser,
    recipes: Mapping[str, T],
    train: Callable[[argparse.Namespace, T], int],
    argv: Sequence[str] | None,
    imply: Callable[[argparse.Namespace], None] = lambda _: None,
) -> int:
    """What the ``main`` of every training command does; see :func:`recipe_command`."""

    def act(args: argparse.Namespace, resolved: T) -> int:
        check_run_options(args)
        return with_stand_in(args, [resolved], lambda recipe: train(args, recipe))

    return recipe_command(command, parser, recipes, act, argv, imply=imply)


def with_stand_in(args: argparse.Namespace, recipes: Sequence[L], act: Callable[[L], int]) -> int:
    """Act; once more, with the embedded loss network, if nobody chose VGG16 and it cannot be had.

    Args:
        args: of the command line.
        recipes: the command's; behind it others that ``act`` derives from it, if any.
        act: takes the recipe; must not have written anything when it raises
            MissingLossWeightsError.

    Returns:
        What ``act`` returns. That another loss network is used is said on standard error.

    Raises:
        LossWeightsError: VGG16 was chosen, a run goes on that began with it, or the embedded
            network has not all layers.
        TopcoatError: as ``act``.
    """
    try:
        return act(recipes[0])
    except MissingLossWeightsError as error:
        missing = error
    from topcoat.train.losses.features import layer_names

    stands_in = all(
        entry.loss_network == "vgg16" and entry.loss_convention() == "oxford" for entry in recipes
    )
    if args.resume is not None or not stands_in:
        raise missing
    layers = dict.fromkeys(layer for entry in recipes for layer in entry.layers())
    if lacking := [layer for layer in layers if layer not in layer_names("embedded")]:
        raise LossWeightsError(
            f"{missing}; the embedded loss network cannot stand in: it has no {', '.join(lacking)}"
        )
    try:
        standing_in = [dataclasses.replace(entry, loss_network="embedded") for entry in recipes]
    except RecipeError as error:
        raise LossWeightsError(
            f"{missing}; the embedded loss network cannot stand in: {error}"
        ) from None
    # Of several processes each would decide for itself.
    if args.loss_network is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LossWeightsError(f"{missing}, or use --loss-network embedded")
    print(
        f"no weights of VGG16 here, and the download failed ({missing.reason}): the embedded loss "
        "network stands in; --loss-network vgg16 insists on VGG16",
        file=sys.stderr,
    )
    return act(standing_in[0])


def check_run_options(args: argparse.Namespace) -> None:
    """Check what argparse cannot.

    Raises:
        RecipeError: a number that makes no sense.
    """
    for name, least in (
        ("checkpoint_every", 1),
        ("log_every", 1),
        ("workers", 0),
        ("preview_every", 0),
        ("threads", 1),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            wanted = f"at least {least}" if least else "0 or more"
            raise RecipeError(f"{_option(name)} must be {wanted}, got {value}")


def check_output(args: argparse.Namespace, default: str) -> Path:
    """The checkpoint to write: ``--output``, that which is resumed, or the default.

    Raises:
        OutputError: it is a folder, or would be replaced without ``--force``.
    """
    output: Path = args.output or args.resume or Path(default)
    if output.is_dir() and output != args.resume:  # of that one, what reads it says what is wrong
        raise OutputError(f"{output} is a folder; give the checkpoint's file name with --output")
    if output.exists() and output != args.resume and not args.force:
        raise OutputError(
            f"{output} exists; go on with --resume {output}, replace it with --force, "
            "or choose another --output"
        )
    return output


def begin(
    args: argparse.Namespace, resolved: T, output: Path
) -> "tuple[Checkpoint | None, T, RunSettings]":
    """Import torch, read what is resumed, make sure that the result can be written.

    Returns:
        The checkpoint to resume or None, the recipe with that checkpoint's steps where none were
        asked for, and the settings of the run.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        OutputError: the result cannot be written.
    """
    from topcoat.train._allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from topcoat.train.checkpoint import check_writable, load_checkpoint
    from topcoat.train.loop import RunSettings

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    checkpoint = None if args.resume is None else load_checkpoint(args.resume)
    check_writable(output)
    if checkpoint is not None and args.steps is None:
        steps = int(checkpoint.recipe.get("steps", resolved.steps))
        resolved = dataclasses.replace(resolved, steps=steps)
    own = getattr(args, "content", None) or getattr(args, "targets", None)
    trying_out = "content" in args and own is None and checkpoint is None
    settings = RunSettings(
        output=output,
        checkpoint_every=args.checkpoint_every,
        preview_every=args.preview_every,
        log_every=args.log_every,
        workers=args.workers,
        compile=args.compile,
        tensorboard=args.tensorboard,
        keep_state=not args.drop_state,
        quiet=args.quiet,
        opening=TRYING_OUT if trying_out else "",
    )
    return checkpoint, resolved, settings


def report(
    args: argparse.Namespace, outcome: "Outcome", command: str, afterwards: Sequence[str]
) -> int:
    """Say what a run left behind and what to do next; returns the exit code.

    Args:
        args: of the command line.
        outcome: of the run.
        command: what resumes it.
        afterwards: commands to suggest, with ``{}`` for the checkpoint.
    """
    code = 0 if outcome.finished else 130
    if os.environ.get("RANK", "0") != "0":  # of the processes that torchrun started, one speaks
        return code
    if args.json:
        print(json.dumps(dataclasses.asdict(outcome), default=str, indent=2))
        return code
    if outcome.broken:
        count = len(outcome.broken)
        print(f"{count} picture{'s' * (count > 1)} could not be used:", file=sys.stderr)
        for message in outcome.broken[:20]:
            print(f"  {message}", file=sys.stderr)
        if count > 20:
            print(f"  and {count - 20} more", file=sys.stderr)
    parts = ", ".join(f"{name} {value:.4g}" for name, value in outcome.losses.items())
    what = "checkpoint" if outcome.finished else "interrupted; checkpoint"
    print(f"{what}: {outcome.checkpoint} (step {outcome.step}; {parts})")
    print(f"took {outcome.seconds / 60:.1f} min, {outcome.images_per_second:.1f} images/s")
    if "content" in args and outcome.waited >= 0.1:
        print(
            f"{100 * outcome.waited:.0f} % of that went by waiting for pictures from "
            f"{outcome.workers or 'no'} decoding process{'es' * (outcome.workers != 1)}; smaller "
            "files, or more with --workers, make it faster"
        )
    if outcome.finished:
        for head, line in zip(("next: ", *("      ",) * len(afterwards)), afterwards, strict=False):
            print(head + line.format(outcome.checkpoint))
        return code
    same = f" --loss-weights {args.loss_weights}" if args.loss_weights else ""
    print(f"to go on: {command} --resume {outcome.checkpoint}{same}")
    return code


def recipe_table(recipes: Mapping[str, Recipe]) -> str:
    """Every field of every recipe, and a mark where they differ.

    A recipe that differs from one of its name, but for an ending, in a few fields has a line of its
    own instead of a column.
    """
    changes: dict[str, str] = {}
    for base, name in itertools.permutations(recipes, 2):
        changed = difference(recipes[base], recipes[name])
        if name.startswith(f"{base}-") and len(changed) <= 3:
            other = ", ".join(f"{field} {value}" for field, (_, value) in changed.items())
            changes[name] = f"{base}, but {other}"
    names = [name for name in recipes if name not in changes]
    rows = {name: recipes[name].to_dict() for name in names}
    first = recipes[names[0]]
    differing = {field for name in names[1:] for field in difference(first, recipes[name])}
    wide = max(map(len, rows[names[0]])) + 1
    fields = [field for field in rows[names[0]] if field not in ("name", *first.without)]
    columns = []
    for name in names:
        values = ["-" if f in recipes[name].idle_fields() else rows[name][f] for f in fields]
        shown = [",".join(map(str, v)) or "none" if isinstance(v, list) else str(v) for v in values]
        columns.append([name, *shown])
    widths = [2 + max(map(len, column)) for column in columns]
    lines = []
    for field, *cells in zip(["", *fields], *columns, strict=True):
        mark = "*" if field in differing else " "
        row = "".join(f"{c:{width}}" for c, width in zip(cells, widths, strict=True))
        lines.append(f"{mark} {field:{wide}}{row}".rstrip())
    lines += [f"  {name:{wide}}{change}" for name, change in changes.items()]
    lines.append(f"* differs; any field can be overridden, {_option('batch')} 2 for example")
    return "\n".join(lines)


def run(
    command: str,
    action: Callable[[], int],
    interrupted: str = "checkpoints written so far are kept",
) -> int:
    """Run a command's action; returns the exit code: 2 for what the user can mend.

    ``interrupted`` says what Ctrl-C leaves behind.
    """
    try:
        return action()
    except DivergenceError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except TopcoatError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted; {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open until exit
        return 0


def leave(code: int) -> None:
    """End the process of ``python -m``, also under torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Everything is saved and said. Threads of the process group are still winding down, and
        # the ordinary exit aborts on them once in a while (torch 2.13, gloo).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _fields(cls: type[Recipe]) -> "list[dataclasses.Field[Any]]":
    """All but the name, which ``--recipe`` decides, and what this kind of recipe has no use for."""
    hidden = {"name", *cls.without}
    return [entry for entry in dataclasses.fields(cls) if entry.name not in hidden]


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
