"""Measure what an engine really takes: ``python -m tests.export.engine_memory BUNDLE WxH …``.

Prints, for every size and every engine of the fp32 model, the bytes per input pixel and their share
of the estimate in the bundle's manifest. Linux only; docs/export.md shows what came out.
"""

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

ENGINES = ("onnxruntime-cpu", "openvino-cpu")


def working_memory(bundle: Path, engine: str, height: int, width: int, threads: int) -> int:
    """Run frames of one size through an engine in a fresh process.

    Returns:
        The most memory that the process held, in bytes, above what it held after the engine had
        been loaded and had run on a frame of 64×64.
    """
    command = [sys.executable, "-m", "tests.export.engine_memory", "--child", engine]
    command += ["--threads", str(threads), str(bundle), f"{width}x{height}"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def _child(bundle: Path, engine: str, height: int, width: int, threads: int) -> int:
    import topcoat.runtime

    warnings.simplefilter("ignore", topcoat.runtime.UnverifiedWarning)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with topcoat.runtime.open(
        bundle, backend=engine, precision="fp32", threads=threads, allow_unverified=True
    ) as model:
        model.process(frame[:64, :64].copy())
        before = _status("VmRSS:")
        for _ in range(3):  # ONNX Runtime plans its memory after the first
            model.process(frame)
    return _status("VmHWM:") - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status says nothing of {key}")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sizes", nargs="+", metavar="WxH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    if args.child:
        print(_child(args.bundle, args.child, sizes[0][1], sizes[0][0], args.threads))
        return
    import topcoat.runtime

    estimate = topcoat.runtime.read_manifest(args.bundle).memory_per_pixel
    if estimate is None:
        raise SystemExit(f"{args.bundle} holds no estimate; export it again")
    print(f"{args.bundle.name}: {estimate} bytes per input pixel estimated")
    for width, height in sizes:
        for engine in ENGINES:
            taken = working_memory(args.bundle, engine, height, width, args.threads)
            each = taken / (width * height)
            share = each / estimate
            print(f"  {width}x{height} {engine}: {each:.0f}, {share:.2f} of that", flush=True)


if __name__ == "__main__":
    main()
