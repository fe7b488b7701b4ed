"""What the runtime's command lines have in common: model options, exit codes, warnings."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from topcoat.runtime._errors import FallbackWarning, TopcoatError, UnverifiedWarning

if TYPE_CHECKING:
    from topcoat.runtime.model import Model, Tile

# Written out: to ask for them would load numpy before --help is printed.
BACKEND_NAMES = (
    "auto",
    "tensorrt-rtx",
    "tensorrt",
    "onnxruntime-cuda",
    "openvino-gpu",
    "openvino-cpu",
    "onnxruntime-cpu",
    "onnxruntime-webgpu",
)
BUNDLE_HELP = "bundle NAME.topcoat, or a built-in model (topcoat models lists them)"
PRECISION_NAMES = ("fp32", "bf16", "fp16", "int8")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a bundle is opened."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--backend",
        default="auto",
        choices=BACKEND_NAMES,
        help="engine; auto times the usable ones and takes the fastest (default: auto)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISION_NAMES,
        help="allow only this compute precision (default: all, but for fp16 on a CPU)",
    )
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="CPU threads (default: one per physical core)",
    )
    group.add_argument(
        "--allow-unverified",
        action="store_true",
        help="also use an engine whose parity with the trained network was not checked or failed",
    )
    group.add_argument(
        "--fallback",
        action=argparse.BooleanOptionalAction,
        help="go on with the next engine, and say so, where the chosen one fails on a frame, or"
        " cut frames up where a GPU has too little memory (default: only with --backend auto)",
    )


def open_model(
    arguments: argparse.Namespace, *, tile: Tile = None, match_histogram: bool = False
) -> Model:
    """Open ``arguments.bundle`` as the model options say."""
    from topcoat.runtime.model import open_model

    return open_model(
        arguments.bundle,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        allow_unverified=arguments.allow_unverified,
        tile=tile,
        match_histogram=match_histogram,
        fallback=arguments.fallback,
    )


def positive(text: str) -> int:
    """Parse a whole number of at least 1 for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def whole(text: str) -> int:
    """Parse a whole number of at least 0 for argparse."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """Parse a width and a height, such as 1280x720, for argparse."""
    width, cross, height = text.strip().lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) * int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1280x720")
    return int(width), int(height)


def tile(text: str) -> int | str:
    """Parse "auto", "off" or the side of a tile for argparse."""
    if text in {"auto", "off"}:
        return text
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not auto, off or a whole number of pixels"
        ) from error


def run(program: str, action: Callable[[], int]) -> int:
    """Run a command; turn what the user can fix into one line and exit code 2.

    Ctrl-C gives 130, as shells have it. Anything else is our mistake: Python prints where, and the
    exit code is 1.
    """

    def show(message: Warning | str, *_: object) -> None:
        # On a terminal a line of progress may stand where this goes.
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{clear}{program}: warning: {message}", file=sys.stderr)

    class Log(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    log, handler = logging.getLogger("topcoat.runtime"), Log(logging.WARNING)
    with warnings.catch_warnings():
        # Said every time, and never turned into an exception by the environment's filters.
        warnings.simplefilter("always", UnverifiedWarning)
        warnings.simplefilter("ignore", FallbackWarning)  # the log says the same
        warnings.showwarning = show  # type: ignore[assignment]  # the rest of its arguments is unused
        log.addHandler(handler)
        try:
            return action()
        except TopcoatError as error:
            print(f"{program}: {error}", file=sys.stderr)
            return 2
        except MemoryError as error:
            why = " ".join(str(error).split())
            print(
                f"{program}: not enough memory" + (f" ({why})" if why else "") + "; give a smaller"
                " picture, or close other programs",
                file=sys.stderr,
            )
            return 2
        except KeyboardInterrupt:
            print(f"\n{program}: interrupted; no half-written file was left", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader (head, less) has what it wanted; keep Python from complaining at exit.
            sys.stderr.close()
            return 0
        finally:
            log.removeHandler(handler)
