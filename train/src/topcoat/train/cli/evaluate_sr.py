"""``evaluate-sr``: a folder of high-resolution pictures and checkpoints in, a table out."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topcoat.train._errors import OutputError, RecipeError, TopcoatError

if TYPE_CHECKING:
    from topcoat.train._evaluation_models import Model
    from topcoat.train.evaluation import Evaluation, PictureScores, PictureSet

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
        nargs="?",
        const="-",
        metavar="FILE",
        help="every figure as JSON, into FILE or in place of the table on standard output",
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
    try:
        return _evaluate(args)
    except TopcoatError as error:
        print(f"evaluate-sr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate-sr: interrupted; no figures were written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open until exit
        return 0


def _evaluate(args: argparse.Namespace) -> int:
    # Everything that can be refused is refused before the first picture is enlarged.
    if not 16 <= args.crop_size <= 512:
        raise RecipeError(f"--crop-size must be 16 to 512 pixels, got {args.crop_size}; try 80")
    if args.threads is not None and args.threads < 1:
        raise RecipeError(f"--threads must be at least 1, got {args.threads}")
    if not 0 <= args.blur <= 16:
        raise RecipeError(f"--blur must be 0 to 16 pixels, got {args.blur:g}; try 0 or 1")
    json_file = Path(args.json) if args.json not in (None, "-") else None
    for option, path in (("--json", json_file), ("--page", args.page)):
        if path is not None:
            _check_file(option, path, args.force)
    if (
        json_file is not None
        and args.page is not None
        and json_file.resolve() == args.page.resolve()
    ):
        raise OutputError(f"--json and --page both name {args.page}; give two files")
    if args.output is not None:
        _check_folder(args.output, args.folder, args.force)

    import torch

    from topcoat.train._evaluation_models import load_models, parse_model
    from topcoat.train._evaluation_page import Page
    from topcoat.train.evaluation import evaluate, find_originals

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    loaded = load_models([parse_model(text) for text in args.model])
    models = [model for model, _ in loaded]
    scale = _scale(args.scale, models)
    pictures = find_originals(args.folder, args.only)
    for option, folder in (
        ("--json", json_file and json_file.absolute().parent),
        ("--page", args.page and args.page.absolute().parent),
        ("--output", args.output),
    ):
        if folder is not None:
            _make_folder(folder, option)
    page = Page(scale, args.crop_size)

    def keep(row: PictureScores, shown: PictureSet) -> None:
        if args.page is not None:
            page.add(row, shown)
        if args.output is not None:
            _save(args.output, row.name, shown)

    evaluation = evaluate(
        pictures,
        {model.name: network for model, network in loaded},
        scale=scale,
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
        _write(json_file, figures + "\n")
    if args.page is not None:
        _write(args.page, page.render(title, evaluation, models))
    if args.json == "-":
        print(figures)
    elif not args.quiet:
        print(_table(title, evaluation, models))
    for line in evaluation.skipped:
        print(f"left out: {line}", file=sys.stderr)
    if not args.quiet:
        for written in (json_file, args.page, args.output):
            if written is not None:
                print(f"wrote {written}", file=sys.stderr)
    return 0


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


def _table(title: str, evaluation: Evaluation, models: Sequence[Model]) -> str:
    """A row per picture and one for the mean, a group of columns per method; then what to know."""
    protocol = evaluation.protocol
    shrunk = f"blurred with sigma {protocol.blur:g}, " if protocol.blur else ""
    count = len(evaluation.pictures)
    lines = [
        f"{title}, {count} picture{'s' * (count != 1)}, ×{protocol.scale}: {shrunk}shrunk by "
        f"bicubic; Y, border {protocol.border}",
        "",
    ]
    measures: list[tuple[str, str, Callable[[Any], str]]] = [
        ("PSNR", "psnr_y", lambda value: f"{value:6.2f}"),
        ("SSIM", "ssim_y", lambda value: f"{value:6.4f}"),
    ]
    if protocol.lpips:
        measures.append(("LPIPS", "lpips", lambda value: f"{value:6.4f}"))
    rows = [(picture.name, picture.scores) for picture in evaluation.pictures]
    rows.append(("mean", {name: evaluation.mean(name) for name in evaluation.methods}))
    cells = {
        method: [[show(getattr(row[method], m)) for _, m, show in measures] for _, row in rows]
        for method in evaluation.methods
    }
    first = max(len(name) for name, _ in rows)
    width = {m: max(len(m), len(measures) * 6 + 2 * len(measures) - 2) for m in evaluation.methods}
    head = "  ".join(f"{title:>6}" for title, _, _ in measures)
    lines.append(" " * first + "".join("   " + f"{m:>{width[m]}}" for m in evaluation.methods))
    lines.append(" " * first + "".join("   " + f"{head:>{width[m]}}" for m in evaluation.methods))
    for number, (name, _) in enumerate(rows):
        if number == count:
            lines.append("-" * len(lines[-1]))
        texts = {m: "  ".join(f"{c:>6}" for c in cells[m][number]) for m in evaluation.methods}
        lines.append(f"{name:{first}}" + "".join("   " + f"{texts[m]:>{width[m]}}" for m in texts))
    notes = [f"warning: {line}" for model in models for line in model.warnings(protocol.blur)]
    cut = sum(picture.file_size != picture.size for picture in evaluation.pictures)
    if cut:
        notes.append(
            f"{cut} of {count} were cut at the right or bottom to multiples of {protocol.scale}"
        )
    if evaluation.skipped:
        left_out = len(evaluation.skipped)
        notes.append(f"warning: {left_out} of {count + left_out} pictures are not in the mean")
    if protocol.match_histogram:
        notes.append("outputs of models have the histogram of the small picture")
    notes.append(f"LPIPS: {protocol.lpips}" if protocol.lpips else protocol.lpips_missing)
    return "\n".join([*lines, "", *notes])


def _check_file(option: str, path: Path, force: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file name with {option}")
    if path.exists() and not force:
        raise OutputError(f"{path} exists; replace it with --force, or give another {option}")


def _check_folder(path: Path, originals: Path, force: bool) -> None:
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; give a folder with --output")
    if path.resolve().is_relative_to(originals.resolve()):
        raise OutputError(
            f"{path} lies below {originals}, where the next run would take outputs for originals; "
            "give another --output"
        )
    if path.is_dir() and any(path.iterdir()) and not force:
        raise OutputError(
            f"{path} is not empty; write into it with --force, or give another --output"
        )


def _make_folder(path: Path, option: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {path}: {error.strerror}; give another place with {option}"
        ) from None


def _save(folder: Path, name: str, pictures: PictureSet) -> None:
    """``a/b.jpg`` becomes ``METHOD/a/b.jpg.png``: no two pictures meet in one file."""
    from PIL import Image

    everything = {
        "original": pictures.original,
        "low-resolution": pictures.low_resolution,
        **pictures.outputs,
    }
    for kind, picture in everything.items():
        target = folder / kind / (name if name.lower().endswith(".png") else f"{name}.png")
        image = Image.fromarray(picture)
        _written_whole(target, partial(image.save, format="png"))


def _write(path: Path, text: str) -> None:
    _written_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def _written_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Leave either what was at ``path`` or the complete new file."""
    unfinished: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        unfinished = Path(made)
        write(unfinished)
        unfinished.chmod(0o644)
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
