"""``evaluate-sr``: a folder of high-resolution pictures and checkpoints in, a table out."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topcoat.train import _evaluation_files as files
from topcoat.train._errors import ContentError, RecipeError
from topcoat.train._evaluation_table import table
from topcoat.train.cli import _shared
from topcoat.train.recipes import check_blur

if TYPE_CHECKING:
    from topcoat.train._evaluation_models import Model
    from topcoat.train.evaluation import Evaluation, PictureScores, PictureSet

_COLUMNS = 100
"""Width of the table where there is no terminal that has one."""
_DESCRIPTION = """\
Shrink pictures, enlarge them again with bicubic and with trained networks, and compare with the
originals: PSNR and SSIM on the Y of YCbCr, without a border as wide as the scale, as published
tables do; LPIPS where its package and its weights are on this machine.
"""
_EPILOG = """\
examples:
  evaluate-sr Set5 --scale 4
      bicubic alone: 28.43 dB on the five pictures of Set5
  evaluate-sr Set5 --model pixel.pt --model feature.pt --page set5.html
      two networks beside bicubic, and a page of crops side by side
  evaluate-sr Set14 --model SRCNN=srcnn_x4.pt --blur 1 --json set14.json
      another name for a column; small pictures made as Johnson et al. made theirs for training
  evaluate-sr BSD100 --model feature.pt --match-histogram --output pictures/
      outputs with the colours of their inputs; every picture as PNG
  evaluate-sr Set5 --scale 4 --json - | jq .mean.bicubic
      every figure as JSON on standard output, in place of the table
  evaluate-sr Set5/image_SRF_4 --only '*_HR.png' --scale 4
      a folder that holds other pictures as well
exit codes: 0 done, 2 something you can fix (one line says what), 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser."""
    top = argparse.ArgumentParser(
        prog="evaluate-sr",
        usage="evaluate-sr FOLDER [--model [NAME=]FILE.pt ...] [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="folder tree of high-resolution pictures (jpg, png, webp, bmp, tif)",
    )
    what = top.add_argument_group("what is measured")
    what.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="checkpoint of train-sr; may be given again; NAME heads its column (default: the "
        "file's)",
    )
    what.add_argument(
        "--scale", type=int, choices=(2, 4, 8), help="factor (default: that of the models)"
    )
    what.add_argument(
        "--blur",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="Gaussian before shrinking, in pixels (default: 0, the protocol of published tables)",
    )
    what.add_argument(
        "--border", type=int, metavar="N", help="pixels left out on each side (default: the scale)"
    )
    what.add_argument(
        "--match-histogram",
        action="store_true",
        help="give the models' outputs the histogram of the small picture, as Johnson et al. did",
    )
    what.add_argument(
        "--no-lpips",
        dest="lpips",
        action="store_false",
        help="leave LPIPS out even where it could be measured",
    )
    what.add_argument(
        "--only", metavar="PATTERN", help="only files whose name fits, '*_HR.png' for example"
    )
    what.add_argument(
        "--skip-broken",
        action="store_true",
        help="average over the pictures that can be used; without it, one that cannot ends the run",
    )
    results = top.add_argument_group("results")
    results.add_argument(
        "--json",
        metavar="FILE.json",
        help="every figure as JSON; - for standard output, in place of the table",
    )
    results.add_argument(
        "--page", type=Path, metavar="FILE.html", help="one page: crops side by side"
    )
    results.add_argument(
        "--crop-size",
        type=int,
        default=80,
        metavar="N",
        help="side of the page's crops in pixels (default: 80)",
    )
    results.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the originals, the small pictures and every output as PNG, a folder each",
    )
    results.add_argument("--force", action="store_true", help="replace files that exist")
    results.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    results.add_argument("--quiet", action="store_true", help="no progress, no table")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    return _shared.run("evaluate-sr", lambda: _evaluate(args), "no figures were written")


def _evaluate(args: argparse.Namespace) -> int:
    # Everything that can be refused is refused before the first picture is enlarged.
    json_file = Path(args.json) if args.json not in (None, "-") else None
    _check_options(args, json_file)

    import torch

    from topcoat.train._evaluation_models import RESERVED, load_models, parse_model
    from topcoat.train._evaluation_page import Page
    from topcoat.train.evaluation import evaluate, find_originals, names_below

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    given = [parse_model(text) for text in args.model]
    kinds = [*RESERVED, *(name for name, _ in given)]
    if args.output is not None:
        files.check_folder(args.output, args.folder, kinds, args.force)
    loaded = load_models(given)
    models = [model for model, _ in loaded]
    scale = _scale(args.scale, models)
    pictures = find_originals(args.folder, args.only)
    targets = [(o, path) for o, path in (("--json", json_file), ("--page", args.page)) if path]
    if args.output is not None:
        names = names_below(pictures, args.folder).values()
        targets += files.picture_files(args.output, kinds, names)
    files.check_targets(targets, [*pictures, *(path for _, path in given)])
    for option, folder in (
        ("--json", json_file and json_file.absolute().parent),
        ("--page", args.page and args.page.absolute().parent),
        ("--output", args.output),
    ):
        if folder is not None:
            files.make_folder(folder, option)
    page = Page(scale, args.crop_size)

    def keep(row: PictureScores, shown: PictureSet) -> None:
        if args.page is not None:
            page.add(row, shown)
        if args.output is not None:
            files.save_pictures(args.output, row.name, shown)

    evaluation = evaluate(
        pictures,
        {model.name: network for model, network in loaded},
        scale=scale,
        folder=args.folder,
        blur=args.blur,
        border=args.border,
        match_histogram=args.match_histogram,
        lpips=args.lpips,
        skip_broken=args.skip_broken,
        quiet=args.quiet,
        on_picture=keep,
    )
    title = args.folder.resolve().name
    figures = json.dumps(_figures(title, evaluation, models), indent=2, allow_nan=False)
    if json_file is not None:
        files.save_text(json_file, figures + "\n")
    if args.page is not None:
        files.save_text(args.page, page.render(title, evaluation, models))
    if args.json == "-":
        print(figures)
    elif not args.quiet:
        columns = shutil.get_terminal_size((_COLUMNS, 0)).columns
        print(table(title, evaluation, models, columns))
    for line in evaluation.skipped:
        print(f"left out: {line}", file=sys.stderr)
    if not args.quiet:
        for written in (json_file, args.page, args.output):
            if written is not None:
                print(f"wrote {written}", file=sys.stderr)
    return 0


def _check_options(args: argparse.Namespace, json_file: Path | None) -> None:
    """Check what argparse cannot, and what needs no look at pictures and models."""
    if args.folder is None:
        swallowed = args.json is not None and Path(args.json).is_dir()
        hint = f"; --json took {args.json}: give --json - for standard output" * swallowed
        raise ContentError(f"no FOLDER of high-resolution pictures given{hint}")
    if not 16 <= args.crop_size <= 512:
        raise RecipeError(f"--crop-size must be 16 to 512 pixels, got {args.crop_size}; try 80")
    if args.threads is not None and args.threads < 1:
        raise RecipeError(f"--threads must be at least 1, got {args.threads}")
    check_blur(args.blur)
    if json_file is not None:
        advice = "give --json FILE.json, or --json - for standard output"
        files.check_file("--json", json_file, (".json",), advice, args.force)
    if args.page is not None:
        advice = "give --page FILE.html"
        files.check_file("--page", args.page, (".html", ".htm"), advice, args.force)


def _scale(given: int | None, models: Sequence[Model]) -> int:
    if not models:
        if given is None:
            raise RecipeError("no factor given; pass --scale 4, or a --model to take it from")
        return given
    if given is not None and given != models[0].scale:
        raise RecipeError(
            f"--scale {given} does not fit {models[0].name}, which enlarges by {models[0].scale}; "
            "leave --scale out"
        )
    return models[0].scale


def _figures(title: str, evaluation: Evaluation, models: Sequence[Model]) -> dict[str, Any]:
    from dataclasses import asdict

    blur = evaluation.protocol.blur
    return {
        "set": title,
        **evaluation.to_dict(),
        "models": [asdict(model) for model in models],
        "warnings": [line for model in models for line in model.warnings(blur)],
    }


if __name__ == "__main__":
    sys.exit(main())
