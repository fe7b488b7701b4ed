"""``topcoat verify``: complete a bundle's parity on the machine that is to run it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from topcoat.runtime.cli import _shared

if TYPE_CHECKING:
    from topcoat.runtime.parity import Verification

_DESCRIPTION = """\
Compare every engine of a bundle that can run on this machine with the trained network, and record
the result in the bundle; of a built-in model, in your cache folder.

An engine for a GPU is often built on a machine without that GPU. The export then says "built, not
run here", and the runtime does not use it. Run this once where it is to work: it compares the
engine, by the limits of the export, with PyTorch's own answer to the bundle's golden picture, and,
on many more frames, with the fp32 model on ONNX Runtime's CPU, which must give that answer first.
Neither PyTorch nor a network connection is needed.

What has passed before for this kind of device is not measured again, unless --all is given. What
fails is recorded as failed: the runtime then does not use it on this kind of device. An engine that
takes the device down has failed; one for which memory is short is left as it was.
"""

_EPILOG = """\
examples:
  topcoat verify candy.topcoat                    measure what is missing, and record it
  topcoat verify candy.topcoat --photos shots/    compare on your pictures as well
  topcoat verify candy.topcoat --all --dry-run    measure everything again, change nothing

exit codes: 0 all that can run here has passed, 1 an engine failed or is still unproved,
2 something you can fix
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``topcoat``."""
    parser = commands.add_parser(
        "verify",
        help="compare engines with the network on this machine, and record it in the bundle",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="B", type=Path, help=_shared.BUNDLE_HELP)
    parser.add_argument(
        "--all",
        dest="everything",
        action="store_true",
        help="measure also what has passed for this kind of device before",
    )
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="compare on these pictures too (at most 16, reduced to 1024 pixels; not for a"
        " texture); needs Pillow",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="measure, but do not record it in the bundle"
    )
    parser.add_argument(
        "--threads",
        type=_shared.positive,
        metavar="N",
        help="CPU threads (default: one per physical core)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print every number as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from topcoat.runtime import verify

    def progress(what: str) -> None:
        if not arguments.quiet:
            print(what, file=sys.stderr, flush=True)

    found = verify(
        arguments.bundle,
        arguments.photos,
        not arguments.dry_run,
        everything=arguments.everything,
        threads=arguments.threads,
        progress=progress,
    )
    if arguments.json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(_lines(found)))
    return 0 if found else 1


def _lines(found: Verification) -> list[str]:
    from topcoat.runtime.parity import parity_table, reasons_not_run

    lines = []
    if found.measured:
        lines += [*parity_table(found.measured), ""]
    for row in found.measured:
        if not row:
            lines.append(f"failed, will not be used here: {row.engine}: {'; '.join(row.failures)}")
        for size, why in row.omitted.items():
            lines.append(f"not compared at {size}: {row.engine}: {why}")
    lines += [f"passed before, not measured again: {engine}" for engine in found.earlier]
    absent = [row for row in found.rows if not row.undecided]
    lines += [f"cannot run here: {reason}" for reason in reasons_not_run(absent)]
    lines += [f"still unproved here: {reason}" for reason in reasons_not_run(found.undecided)]
    if not found.measured and not found.undecided:
        lines.append(f"{found.bundle}: nothing to measure on this machine")
    elif not found.measured:
        lines.append(f"{found.bundle}: nothing was proved, manifest.json is as it was")
    elif found.record is not None:
        builtin = found.record.name != "manifest.json"
        lines.append(f"{found.bundle}: recorded in {found.record if builtin else 'manifest.json'}")
    else:
        lines.append(f"{found.bundle}: not recorded (--dry-run)")
    return lines
