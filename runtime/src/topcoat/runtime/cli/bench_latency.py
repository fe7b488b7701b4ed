"""The ``bench-latency`` command: how long a bundle takes per frame on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topcoat.runtime._errors import BackendError, MediaError, UnverifiedWarning
from topcoat.runtime.cli import _shared

if TYPE_CHECKING:
    from topcoat.runtime._explanation import Candidate
    from topcoat.runtime.report._measure import Report

_DESCRIPTION = """\
Measure how long a bundle takes per frame on this machine: cold start (import, load, first frame)
and steady latency (p50, p95, p99, max), per engine and frame size, with the share of frames within
the budgets of 60 and 120 Hz and the peak memory.

Every cell is measured in several fresh processes, and the cells take turns, so that a busy moment
of the machine falls on all of them. Close other programs for figures worth publishing.
"""
_EPILOG = """\
examples:
  bench-latency candy.topcoat                                    a table in the terminal
  bench-latency poster-realtime                                  a built-in model
  bench-latency candy.topcoat --html latency.html                and one page with plots
  bench-latency candy.topcoat --sizes 960x540 --backend onnxruntime-cpu --threads 1
  bench-latency candy.topcoat --seconds 30 --json latency.json   longer, and every single latency

Reports that exist are replaced. Plots need: pip install 'topcoat-runtime[report]'
exit codes: 0 done, 2 something you can fix (one line says what), 1 our mistake, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``bench-latency``."""
    parser = argparse.ArgumentParser(
        prog="bench-latency",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="B", type=Path, help=_shared.BUNDLE_HELP)
    parser.add_argument(
        "--sizes",
        type=_sizes,
        metavar="WxH,...",
        help="sizes of the frames that go in (default: those whose results are 640x360, 1280x720"
        " and 1920x1080; for a bundle of scale 4 these are 160x90,320x180,480x270; for a texture"
        " 256x256,512x512,1024x1024)",
    )
    parser.add_argument(
        "--backend",
        action="append",
        choices=_shared.BACKEND_NAMES[1:],
        help="measure only this engine; may be given again (default: every usable one)",
    )
    parser.add_argument(
        "--precision",
        action="append",
        choices=_shared.PRECISION_NAMES,
        help="measure only this compute precision; may be given again (default: all, but for fp16"
        " on a CPU)",
    )
    parser.add_argument(
        "--threads",
        type=_shared.positive,
        metavar="N",
        help="CPU threads (default: one per physical core)",
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=6.0,
        metavar="S",
        help="measured time per engine and size; slow networks take longer, for they run at least"
        " two frames per round (default: 6)",
    )
    parser.add_argument(
        "--rounds",
        type=_shared.positive,
        default=3,
        metavar="N",
        help="fresh processes per engine and size (default: 3)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with plots")
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="also measure engines whose parity with the trained network was not checked or failed",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``bench-latency --help``."""
    arguments = build_parser().parse_args(argv)
    return _shared.run("bench-latency", lambda: _bench(arguments))


def _bench(arguments: argparse.Namespace) -> int:
    from topcoat.runtime import _files

    # Everything that can be refused is refused before minutes of measuring.
    for path in (arguments.json, arguments.html):
        if path is not None and path.is_dir():
            raise MediaError(f"{path} is a folder; give a file name")
    if arguments.html is not None:
        _require_matplotlib()
    for path in (arguments.json, arguments.html):
        if path is not None:
            _files.make_folder(path.absolute().parent)
    report = _measure(arguments)
    if arguments.json is not None:
        with _files.written_whole(arguments.json) as partial:
            text = json.dumps(report.to_json(), indent=1, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")
    if arguments.html is not None:
        from topcoat.runtime.report._html import render as render_html

        page = render_html(report)
        with _files.written_whole(arguments.html) as partial:
            partial.write_text(page, encoding="utf-8")
    if not arguments.quiet:
        from topcoat.runtime.report._terminal import render

        print(render(report))
        for path in (arguments.json, arguments.html):
            if path is not None:
                print(f"wrote {path}", file=sys.stderr)
    return 0


def _measure(arguments: argparse.Namespace) -> Report:
    from topcoat.runtime._choice import list_candidates
    from topcoat.runtime._textures import check_texture_size
    from topcoat.runtime.backends import all_backends, default_threads
    from topcoat.runtime.bundle import TEXTURE, verify_files
    from topcoat.runtime.frames import fit_size
    from topcoat.runtime.report._measure import Settings, default_sizes, measure

    manifest = verify_files(arguments.bundle)
    sizes = arguments.sizes or default_sizes(manifest)
    for width, height in sizes:
        if manifest.task == TEXTURE:
            check_texture_size(height, width, manifest.size)
        else:
            fit_size(height, width, manifest.size)
    candidates: list[Candidate] = []
    for precision in arguments.precision or [None]:
        for backend in arguments.backend or ["auto"]:
            candidates += list_candidates(
                manifest,
                all_backends(),
                backend=backend,
                precision=precision,
                allow_unverified=arguments.allow_unverified,
            )
    usable = [c for c in candidates if c.usable]
    left_out = [
        " ".join(part for part in (c.backend, c.compute) if part) + f": {c.reason}"
        for c in candidates
        if not c.usable and not c.reason.startswith("not asked for")
    ]
    if not usable:
        raise BackendError(
            f"no engine can run {manifest.name} as asked: "
            + ("; ".join(left_out) or "leave out --backend or --precision")
        )
    for candidate in usable:
        if not candidate.verified:
            warnings.warn(
                f"{candidate.backend} {candidate.compute} has no passed parity check in the bundle:"
                " its pictures may differ from the trained network's",
                UnverifiedWarning,
                stacklevel=2,
            )
    settings = Settings(
        bundle=manifest.folder,
        sizes=sizes,
        engines=tuple((c.backend, c.compute or "", c.variant or "", c.verified) for c in usable),
        threads=default_threads() if arguments.threads is None else arguments.threads,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        allow_unverified=arguments.allow_unverified,
    )
    live = not arguments.quiet and sys.stderr.isatty()

    def advanced(what: str) -> None:
        if live:
            print(f"\r{what}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        return measure(manifest, settings, left_out, advanced=advanced)
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _require_matplotlib() -> None:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise MediaError(
            "--html needs matplotlib, which is not installed; pip install 'topcoat-runtime[report]'"
        )


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(dict.fromkeys(_shared.size(part) for part in text.split(",")))


def seconds(text: str) -> float:
    """Read the value of ``--seconds``.

    Raises:
        argparse.ArgumentTypeError: it is no number between 0 and 1e5, both excluded.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
