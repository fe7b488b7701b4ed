"""What the engines take for a frame on this machine's GPU, against what they could take at least.

    python benchmarks/gpu.py                          everything, in less than ten minutes
    python benchmarks/gpu.py --quick                  one network at 1080p, in about two
    python benchmarks/gpu.py --prepare DIR            make the bundles; needs no GPU
    python benchmarks/gpu.py --bundles DIR            measure bundles that were made elsewhere
    python benchmarks/gpu.py --floors BUNDLE --gpu "RTX 4090"
                                                      only count and divide; needs no GPU

One call exports the networks (or takes them from --bundles), builds TensorRT engines with every
library that is installed, compares them with their networks (topcoat.runtime.verify), and measures
every backend at 720p, 1080p, 1440p and 4K (sizes of the result): stage by stage with events on the
device, with CUDA graphs and without, frames of the host and frames that stay on the GPU, the first
frame for itself. In the same run PyTorch (eager in three forms, torch.compile) and ONNX Runtime's
CUDA provider do the same work. The promises: fp16 at 1080p in at most twice the larger of the
arithmetic and the memory floor of the network (benchmarks/gpu_floors.py says how they are counted),
and at most 50 us of host time per frame.

Every part runs in a process of its own: what crashes, hangs or is missing is recorded with its
reason, and the rest goes on. The JSON file is written anew after every part.

Where ten minutes do not hold all networks, measure some (--networks johnson-32), and add the others
to the same file with --append.

A machine that reaches no package index: prepare the bundles elsewhere with --prepare, unpack the
wheels of the libraries it lacks into a folder there (pip install --target FOLDER on a machine of
the same kind), copy both, and run with --bundles DIR --pack FOLDER. Topcoat itself need not be
installed: without it, the sources beside this file are used. ONNX Runtime finds cuBLAS and cuDNN in
the torch that is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROG = "gpu"


def find_parts() -> None:
    """Make topcoat importable where it is not installed: from the sources beside this file."""
    for part in ("runtime", "export", "train"):
        try:
            found = importlib.util.find_spec(f"topcoat.{part}")
        except ModuleNotFoundError:
            found = None
        if found is None:
            sys.path.insert(0, str(ROOT / part / "src"))
            importlib.invalidate_caches()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--quick", action="store_true", help="johnson-32 at 1080p, no torch.compile")
    top.add_argument(
        "--sizes", default="", metavar="LIST", help="e.g. 720p,1080p (default: all four)"
    )
    top.add_argument(
        "--networks",
        default="",
        metavar="LIST",
        help="names of bundles, e.g. johnson-32,sr-x2 (default: all; quick: the first)",
    )
    top.add_argument(
        "--seconds", type=float, metavar="S", help="for each figure (default: 0.25; quick: 0.2)"
    )
    top.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="no part starts or goes on after this (default: 9.5; quick: 2)",
    )
    top.add_argument("--bundles", type=Path, metavar="DIR", help="bundles that were prepared")
    top.add_argument(
        "--pack",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of unpacked wheels to import from; may be given several times",
    )
    top.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="measure this network, too, not the demo's"
    )
    top.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=ROOT / "benchmarks" / "results" / "gpu.json",
        help="default: benchmarks/results/gpu.json",
    )
    top.add_argument(
        "--append",
        action="store_true",
        help="keep what the JSON file holds of other networks, measured on the same GPU and driver",
    )
    other = top.add_argument_group("without a GPU")
    other.add_argument("--prepare", type=Path, metavar="DIR", help="make the bundles, then end")
    other.add_argument(
        "--floors", type=Path, metavar="MODEL", help="print the floors of a bundle or a .onnx file"
    )
    other.add_argument("--gpu", metavar="NAME", help="--floors: a GPU whose data sheet is known")
    other.add_argument("--tflops", type=float, metavar="T", help="--floors: peak of its precision")
    other.add_argument("--bandwidth", type=float, metavar="GB/s", help="--floors: of its memory")
    top.add_argument("--part", help=argparse.SUPPRESS)
    top.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if missing := [str(folder) for folder in args.pack if not folder.is_dir()]:
        return _say(f"--pack {missing[0]} is not a folder; give one of unpacked wheels", 2)
    for option in ("seconds", "minutes", "tflops", "bandwidth"):
        value = getattr(args, option)
        if value is not None and not value > 0:
            return _say(f"--{option} is {value:g}; give a number above 0", 2)
    sys.path[:0] = [str(folder.resolve()) for folder in args.pack]
    find_parts()
    if args.part:
        from gpu_parts import run_part

        return run_part(args.part, json.loads(args.job.read_text(encoding="utf-8")))
    from gpu_bundles import PrepareError
    from gpu_floors import FloorError

    import topcoat.runtime

    try:
        if args.floors is not None:
            return _floors(args)
        sizes = _sizes(args.sizes, quick=args.quick)
        if args.prepare is not None:
            return _prepare(args)
        return _measure(args, sizes)
    except (FloorError, PrepareError) as error:
        return _say(str(error), 2)
    except (topcoat.runtime.TopcoatError, OSError) as error:
        return _say(" ".join(str(error).split()), 2)
    except ValueError as error:
        if not type(error).__module__.startswith("topcoat."):  # of the exporter or the trainer
            raise
        return _say(" ".join(str(error).split()), 2)
    except KeyboardInterrupt:
        return _say("interrupted; the JSON file holds what was measured until then", 130)


def _sizes(text: str, *, quick: bool) -> list[str]:
    from gpu_bundles import SIZES, PrepareError

    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SIZES]:
        raise PrepareError(f"--sizes names {', '.join(unknown)}; choose from {', '.join(SIZES)}")
    return names or (["1080p"] if quick else list(SIZES))


def _prepare(args: argparse.Namespace) -> int:
    from gpu_bundles import prepare, wanted_names

    _check_checkpoint(args.checkpoint)
    started = time.perf_counter()
    made = prepare(
        args.prepare,
        args.checkpoint,
        lambda what: print(f"{time.perf_counter() - started:6.1f} s  {what}", flush=True),
        names=wanted_names(args.networks, quick=args.quick),
    )
    for bundle in made:
        print(bundle)
    print(f"next, where the GPU is: python benchmarks/gpu.py --bundles {args.prepare}")
    return 0


def _check_checkpoint(path: Path | None) -> None:
    from gpu_bundles import PrepareError

    if path is not None and not path.is_file():
        raise PrepareError(f"--checkpoint {path} is not a file; give what a trainer wrote")


# ----------------------------------------------------------------------------------------- floors


def _floors(args: argparse.Namespace) -> int:
    from gpu_bundles import SIZES, PrepareError, input_size
    from gpu_floors import FloorError, Peaks, floor_of, known_peaks, work_of

    if (args.tflops is None) != (args.bandwidth is None) or (args.gpu is None) == (
        args.tflops is None
    ):
        raise FloorError("--floors needs --gpu NAME, or --tflops T with --bandwidth GB/s")
    if importlib.util.find_spec("onnx") is None:
        raise FloorError("counting needs onnx, which is not installed: pip install onnx")
    models: dict[str, tuple[bytes, Callable[[str], tuple[int, int] | None]]] = {}
    if args.floors.is_dir():
        from topcoat.runtime import read_manifest
        from topcoat.runtime.bundle import read_model

        manifest = read_manifest(args.floors)
        for variant in manifest.variants:
            if variant.kind == "onnx":
                data = read_model(manifest, variant)
                models[variant.precision] = (data, lambda name: input_size(manifest, name))
    elif args.floors.is_file():
        models[args.floors.name] = (args.floors.read_bytes(), lambda name: SIZES[name])
    else:
        raise PrepareError(f"--floors {args.floors} does not exist; give a bundle or a .onnx file")
    for label, (data, sized) in models.items():
        for name in sorted(SIZES, key=lambda name: SIZES[name]):
            size = sized(name)
            if size is None:
                continue
            work = work_of(data, *size)
            if args.gpu is not None:
                peaks = known_peaks(args.gpu)
            else:
                flops = dict.fromkeys(work.macs, args.tflops * 1e12)
                peaks = Peaks(flops=flops, bandwidth=args.bandwidth * 1e9, source="given")
            floor = floor_of(work, peaks)
            print(
                f"{label:8} {name:6} {size[1]}x{size[0]} in: {work.total_macs / 1e9:.1f} GMAC,"
                f" arithmetic {floor.arithmetic_ms:.3f} ms; {work.fused_bytes / 1e6:.0f} MB,"
                f" memory {floor.memory_ms:.3f} ms (unfused {floor.unfused_memory_ms:.3f} ms)"
            )
    return 0


# ---------------------------------------------------------------------------------------- measure


def _measure(args: argparse.Namespace, sizes: Sequence[str]) -> int:
    from gpu_bundles import bundles_in, wanted_names
    from gpu_report import table
    from gpu_run import Run, earlier_run

    from topcoat.runtime.backends._cuda import probe

    _check_checkpoint(args.checkpoint)
    device = probe()
    if isinstance(device, str):
        return _say(f"{device} (--prepare and --floors need no GPU)", 2)
    if args.bundles is not None:
        bundles_in(
            args.bundles, wanted_names(args.networks, quick=args.quick)
        )  # before minutes are spent
    if not args.json.parent.is_dir():
        return _say(f"--json {args.json}: its folder does not exist; make it", 2)
    earlier = earlier_run(args.json, device) if args.append else None
    minutes = args.minutes or (2.0 if args.quick else 9.5)
    seconds = args.seconds or (0.2 if args.quick else 0.25)
    with tempfile.TemporaryDirectory(prefix="topcoat-gpu-") as folder:
        run = Run(args, Path(folder), sizes, seconds, time.monotonic() + 60 * minutes, earlier)
        measured = run.everything()
    print(table(run.result))
    print(f"\n{args.json}")
    return 0 if measured else _say("nothing could be measured; the JSON file says why", 1)


def _say(line: str, code: int) -> int:
    print(f"{PROG}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
