"""``topcoat-demo``: the whole path, from nothing to a repainted photograph, offline."""

import argparse
import contextlib
import io
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topcoat.export.probes import Frame

PROG = "topcoat-demo"
LONGEST_SIDE = 1280
"""A larger photograph is reduced to this: the demo is to end soon on any processor."""
STYLE = "swirls"
"""Of the styles that the project draws, the one that looks best after so few steps."""
STEPS = 500
CROP = 192
HELD_OUT = "astronaut"
"""The photograph that is repainted, and which the network is therefore not trained on."""

_EPILOG = """\
examples:
  topcoat-demo
      train a small network for real time on photographs of scikit-image's, then use it
  topcoat-demo --steps 2000 --style mosaic
      another drawn style (train-style --list-styles), trained for longer
  topcoat-demo --photo holiday.jpg --output /tmp/demo
      your photograph, another folder
  topcoat-demo --checkpoint candy.pt
      train nothing: a network that train-style trained for you

what it leaves in the folder:
  photographs/         what the network is trained on
  STYLE.pt             the network; STYLE.preview/ has pictures of how it learns
  STYLE.topcoat/       the bundle: engines, parity report, card
  styled.png           a photograph that it was not trained on, repainted
  before_after.png     both, side by side
  latency.html, .json  how long a frame takes here
Files of an earlier demo are replaced, others in the folder are left alone; a network that is there
is trained on from where it is, or used if it has its steps. Nothing is downloaded.
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser."""
    top = argparse.ArgumentParser(
        prog=PROG,
        description="Train a style network, prove that the engines equal it, repaint a photograph "
        "and measure the latency: the whole path, step by step, in minutes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("topcoat-demo"),
        metavar="DIR",
        help="folder for everything the demo makes (default: topcoat-demo)",
    )
    top.add_argument(
        "--style",
        metavar="PICTURE",
        help=f"a picture file, or a name from train-style --list-styles (default: {STYLE})",
    )
    top.add_argument(
        "--steps", type=_steps, metavar="N", help=f"training steps, in all (default: {STEPS})"
    )
    top.add_argument(
        "--photo", type=Path, metavar="FILE", help="repaint this (default: one of scikit-image's)"
    )
    top.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="a network of train-style; nothing is trained",
    )
    top.add_argument(
        "--bench-seconds",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="measured time per engine and size in the latency report (default: 2)",
    )
    return top


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    from topcoat.runtime.cli.bench_latency import seconds

    return seconds(text)  # which is given them after minutes of training


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    if args.checkpoint is not None and (args.style, args.steps) != (None, None):
        return _say("--checkpoint is a network that is trained; leave out --style and --steps", 2)
    import topcoat.export._errors as ours
    import topcoat.runtime
    import topcoat.train
    from topcoat.export.cli.export_engine import reader_gone

    try:
        return _demo(args)
    except BrokenPipeError:
        return reader_gone()
    except _TrainingEndedError as ended:
        if ended.code != 130:
            return ended.code
        return _say("interrupted; run the same command again to go on from there", 130)
    except KeyboardInterrupt:
        return _say("interrupted; run it again: what is trained is not trained anew", 130)
    except (ours.GraphError, topcoat.runtime.TopcoatError) as error:
        return _say(str(error), 1)
    except (ours.TopcoatError, topcoat.train.TopcoatError) as error:
        return _say(str(error), 2)


def _demo(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    from topcoat.export._errors import OutputError
    from topcoat.export.bundle_writer import checked_name, export_bundle
    from topcoat.export.cli.export_engine import failure_line, report_text
    from topcoat.export.precision import PrecisionPlan
    from topcoat.export.sources import open_source
    from topcoat.train.style_pictures import load_style

    # What can be refused is refused before minutes of training, and before anything is written.
    photo = _photo(args.photo)
    folder: Path = args.output
    style = args.style or STYLE
    checkpoint: Path = args.checkpoint or folder / f"{Path(style).stem}.pt"
    name = checked_name(checkpoint.stem)
    if args.checkpoint is not None:
        open_source(checkpoint)
    else:
        sha256 = load_style(style).sha256
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {folder}: {error.strerror}; give another with --output"
        ) from None
    if args.checkpoint is None:
        with _step("1/5", "train a network"):
            _train(checkpoint, style, sha256, args.steps)
    else:
        print(f"[1/5] nothing to train: {checkpoint} is given", flush=True)

    source = open_source(checkpoint)
    bundle = folder / f"{name}.topcoat"
    with _step("2/5", "export engines and compare each with the network"):
        exported = export_bundle(
            source,
            bundle,
            name=name,
            plan=PrecisionPlan(precisions=("fp32", "fp16")),
            force=True,
            progress=lambda what: print(f"        {what}", flush=True),
        )
    print(report_text(exported), flush=True)
    if not exported:
        return _say(failure_line(exported), 1)

    print()
    with _step("3/5", "open the bundle on the fastest engine here"):
        import topcoat.runtime

        model = topcoat.runtime.open(bundle)
    with model:
        print(_indented(str(model.explain())), flush=True)
        with _step("4/5", f"repaint the photograph ({photo.shape[1]}×{photo.shape[0]})"):
            styled = model.process(photo)
            _save(styled, folder / "styled.png")
            _save(_side_by_side(photo, styled), folder / "before_after.png")

    with _step("5/5", "measure the latency of every engine, in fresh processes"):
        code, table = _bench(bundle, folder, args.bench_seconds)
    print(_indented(table), flush=True)
    if code:
        return _say("the latency report failed, the line above says why", code)

    print(f"\nDone in {time.perf_counter() - started:.0f} s. Look at:")
    for made, what in (
        (folder / "before_after.png", "the photograph and the repainted one"),
        (folder / "latency.html", "latency, with plots; open it in a browser"),
        (bundle / "card.md", "what the bundle is, and its parity table"),
    ):
        print(f"  {made!s:44} {what}")
    print("Next:")
    print(f"  topcoat run YOUR.jpg styled.jpg --model {bundle}")
    print("  topcoat run YOUR.jpg styled.jpg --model starry-night   a model that comes along")
    print("  train-style --style PICTURE --content FOLDER       train a style of your own")
    return 0


class _TrainingEndedError(Exception):
    """``train-style`` has said why it ended; ``code`` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _train(checkpoint: Path, style: str, sha256: str, steps: int | None) -> None:
    """Train a network as a user would, from nothing or from where an earlier demo left it.

    Args:
        checkpoint: to write, or to go on from.
        style: picture file or name of a drawn style.
        sha256: of that picture.
        steps: that the network is to have in the end; None: those of the checkpoint's own recipe,
            or the demo's.

    Raises:
        OutputError: the checkpoint that is there is of another style, or the photographs cannot be
            copied.
        topcoat.train.CheckpointError: it cannot be read.
        _TrainingEndedError: the training failed or was interrupted.
    """
    from topcoat.export._errors import OutputError
    from topcoat.train import load_checkpoint
    from topcoat.train.cli.train_style import main as train_style

    options = ["--style", style]
    if checkpoint.exists():
        found = load_checkpoint(checkpoint)
        if found.style.get("sha256") != sha256:
            raise OutputError(
                f"{checkpoint} was trained on another picture than {style}; remove it, or give "
                "another folder with --output"
            )
        wanted = int(found.recipe.get("steps", STEPS)) if steps is None else steps
        if found.step >= wanted:
            print(f"        {checkpoint} has {found.step} steps; --steps trains more", flush=True)
            return
        options += ["--resume", str(checkpoint), "--steps", str(wanted)]
    else:
        options += [
            *("--recipe", "realtime", "--loss-network", "embedded", "--crop", str(CROP)),
            *("--steps", str(STEPS if steps is None else steps), "-o", str(checkpoint)),
        ]
    options += ["--content", str(_photographs(checkpoint.parent / "photographs"))]
    print(f"      $ {shlex.join(['train-style', *options])}", flush=True)
    said = io.StringIO()
    options += ["--checkpoint-every", "50", "--preview-every", "100", "--json"]
    with contextlib.redirect_stdout(said):
        code = train_style(options)
    if code:
        raise _TrainingEndedError(code)
    outcome = json.loads(said.getvalue())
    losses = ", ".join(f"{part} {value:.3g}" for part, value in outcome["losses"].items())
    rate = outcome["images_per_second"]
    print(f"        step {outcome['step']}, {rate:.1f} images/s; {losses}", flush=True)


def _photographs(folder: Path) -> Path:
    """Copy scikit-image's photographs, but the one that is repainted, to where one can see them.

    Raises:
        OutputError: they cannot be written.
    """
    from topcoat.export._errors import OutputError
    from topcoat.train.pictures import sample_photographs

    try:
        folder.mkdir(exist_ok=True)
        for path in sample_photographs():
            if path.stem != HELD_OUT:
                shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise OutputError(
            f"cannot copy photographs to {folder}: {error.strerror}; make room or give --output"
        ) from None
    return folder


def _photo(path: Path | None) -> "Frame":
    from topcoat.export.probes import bundled_photographs, read_photograph

    if path is not None:
        return read_photograph(path, LONGEST_SIDE)
    found = {probe.name: probe.frame for probe in bundled_photographs()}
    return found.get(HELD_OUT, next(iter(found.values())))


def _bench(bundle: Path, folder: Path, seconds: float) -> tuple[int, str]:
    """Run ``bench-latency`` as a user would; returns its exit code and its table."""
    from topcoat.runtime.cli.bench_latency import main as bench_latency

    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        code = bench_latency(
            [
                str(bundle),
                *("--sizes", "640x360,1280x720"),
                *("--seconds", str(seconds)),
                *("--rounds", "2"),
                *("--json", str(folder / "latency.json")),
                *("--html", str(folder / "latency.html")),
            ]
        )
    return code, table.getvalue()


def _side_by_side(before: "Frame", after: "Frame") -> "Frame":
    """Both frames beside each other, a white strip between them."""
    import numpy as np

    height, width = before.shape[:2]
    if after.shape != before.shape:  # a bundle that enlarges: show both at the larger size
        from PIL import Image

        height, width = after.shape[:2]
        before = np.array(Image.fromarray(before).resize((width, height)))
    strip = np.full((height, max(4, width // 100), 3), 255, dtype=np.uint8)
    return np.concatenate([before, strip, after], axis=1)


def _save(frame: "Frame", path: Path) -> None:
    from PIL import Image

    from topcoat.export._errors import OutputError

    temporary = path.with_name(f".{path.stem}.part.png")
    try:
        Image.fromarray(frame).save(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; make room or give --output"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _step(number: str, what: str) -> Iterator[None]:
    print(f"[{number}] {what} …", flush=True)
    started = time.perf_counter()
    yield
    print(f"[{number}] done in {time.perf_counter() - started:.1f} s", flush=True)


def _indented(text: str) -> str:
    return "\n".join(f"      {line}".rstrip() for line in text.strip().splitlines())


def _say(line: str, code: int) -> int:
    print(f"{PROG}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
