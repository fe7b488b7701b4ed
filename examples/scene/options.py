"""What the examples' command lines have in common: values, the styles that come along, errors."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


class ExampleError(ValueError):
    """Something that the user of an example can put right; its text is one line."""


def bundles() -> list[Path]:
    """Return the built-in styles that keep up with a renderer, in the order of their names.

    Raises:
        ExampleError: there is none.
    """
    from topcoat.runtime import builtin_models

    models = builtin_models()
    found = [models[name] for name in models if name.endswith(("-light", "-realtime"))]
    if not found:
        raise ExampleError("topcoat-runtime has no built-in style; give one with --model BUNDLE")
    return found


def check_scale(bundle: Path, scale: int) -> None:
    """Refuse what enlarges frames: windows and videos here are as large as what is styled.

    Raises:
        ExampleError: ``scale`` is not 1.
    """
    if scale != 1:
        raise ExampleError(f"{bundle} enlarges frames {scale} times, wanted a style")


def size(text: str) -> tuple[int, int]:
    """Parse a width and a height such as 640x360."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 640x360")
    if not (16 <= int(width) <= 4096 and 16 <= int(height) <= 4096):
        raise argparse.ArgumentTypeError(f"{text} is outside of 16x16 to 4096x4096")
    return int(width), int(height)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the program's own first lines."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(program: str, action: Callable[[], None]) -> int:
    """Run an example; say in one line what its user can put right. Returns the exit code."""
    from topcoat.runtime import TopcoatError

    try:
        action()
    except ModuleNotFoundError as error:
        needs = {
            "av": "'topcoat-runtime[video]'",
            "moderngl": "'topcoat-runtime[gl]'",
            "PIL": "'topcoat-runtime[images]'",
            "pygame": "pygame-ce",
        }
        name = (error.name or "").partition(".")[0]
        if name not in needs:
            raise
        print(f"{program}: {name} is missing; pip install {needs[name]}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has what it wanted
        return 0
    except (TopcoatError, ExampleError, OSError, MemoryError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return 130
    return 0
