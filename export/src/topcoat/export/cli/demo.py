"""``topcoat-demo``: the whole path after training, on what the package carries."""

import argparse
import contextlib
import importlib.resources
import io
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

_EPILOG = """\
examples:
  topcoat-demo
      use the small network that the package carries, and a photograph of scikit-image's
  topcoat-demo --photo holiday.jpg --output /tmp/demo
      your photograph, another folder
  topcoat-demo --checkpoint candy.pt
      a network that train-style trained for you

what it leaves in the folder:
  NAME.topcoat/        the bundle: engines, parity report, card
  styled.png           the photograph, repainted
  before_after.png     both, side by side
  latency.html, .json  how long a frame takes here
Files of an earlier demo are replaced, others in the folder are left alone. Nothing is downloaded.
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser."""
    top = argparse.ArgumentParser(
        prog=PROG,
        description="Export a trained network, prove that the engines equal it, repaint a "
        "photograph and measure the latency: the whole path after training, step by step.",
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
        "--photo", type=Path, metavar="FILE", help="repaint this (default: one of scikit-image's)"
    )
    top.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="a network of train-style (default: the small one in the package)",
    )
    top.add_argument(
        "--bench-seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="measured time per engine and size in the latency report (default: 2)",
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    import topcoat.export._errors as ours
    import topcoat.runtime
    import topcoat.train
    from topcoat.export.cli.export_engine import reader_gone

    try:
        return _demo(args)
    except BrokenPipeError:
        return reader_gone()
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except (ours.GraphError, topcoat.runtime.TopcoatError) as error:
        return _say(str(error), 1)
    except (ours.TopcoatError, topcoat.train.TopcoatError) as error:
        return _say(str(error), 2)


def _demo(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        checkpoint_file = args.checkpoint or stack.enter_context(_packaged_checkpoint())
        with _step("1/5", f"read the checkpoint {checkpoint_file.name} and a photograph"):
            from topcoat.export._errors import OutputError
            from topcoat.export.bundle_writer import checked_name, export_bundle
            from topcoat.export.cli.export_engine import failure_line, report_text
            from topcoat.export.precision import PrecisionPlan
            from topcoat.export.sources import open_source

            source = open_source(checkpoint_file)
            photo = _photo(args.photo)
            name = checked_name(checkpoint_file.stem)
            folder: Path = args.output
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"cannot make the folder {folder}: {error.strerror}; give another with --output"
                ) from None
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
    print("  train-style --style PICTURE --content FOLDER       train a style of your own")
    return 0


@contextlib.contextmanager
def _packaged_checkpoint() -> Iterator[Path]:
    """Find the trained network that the package carries, as a file.

    Raises:
        WeightsError: the installation lacks it.
    """
    from topcoat.export._errors import WeightsError

    data = importlib.resources.files("topcoat.export") / "data"
    found = sorted(
        (entry for entry in (data.iterdir() if data.is_dir() else ()) if entry.name[-3:] == ".pt"),
        key=lambda entry: entry.name,
    )
    if not found:
        raise WeightsError(
            "this installation carries no demo network; install topcoat-export again, or give a "
            "network with --checkpoint FILE"
        )
    with importlib.resources.as_file(found[0]) as path:
        yield path


def _photo(path: Path | None) -> "Frame":
    from topcoat.export.probes import bundled_photographs, read_photograph

    if path is not None:
        return read_photograph(path, LONGEST_SIDE)
    found = {probe.name: probe.frame for probe in bundled_photographs()}
    return found.get("astronaut", next(iter(found.values())))


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
