"""What topcoat.runtime adds: process() against the engine's own session, and the import.

    python benchmarks/runtime_overhead.py                       the tests' tiny model: the hard case
    python benchmarks/runtime_overhead.py --bundle candy.topcoat --json overhead.json

The engine's session is built here, with the engine's own API and the runtime's settings, and runs
on arrays that were bound once, which is the least a caller can do. The two take turns, so a busy
moment of the machine falls on both; the figure is the ratio of the medians. The promise is at most
1.05 at 1280x720, and an import of at most 300 ms that loads neither torch, onnx, PIL nor an engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = ("torch", "onnx", "PIL", "onnxruntime", "openvino", "matplotlib", "av")
PROMISED_RATIO = 1.05
PROMISED_IMPORT_MS = 300.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bundle", type=Path, default=ROOT / "tests" / "runtime" / "data" / "blocks.topcoat"
    )
    parser.add_argument("--frames", type=int, default=200, help="per case (default: 200)")
    parser.add_argument("--threads", type=int, default=None, help="default: as the runtime chooses")
    parser.add_argument("--imports", type=int, default=15, help="fresh interpreters (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    imports = measure_import(arguments.imports)
    rows = measure_process(arguments.bundle, arguments.frames, arguments.threads)
    kept = imports["median_ms"] <= PROMISED_IMPORT_MS and not imports["loaded"]
    kept = kept and all(r["ratio"] <= PROMISED_RATIO for r in rows if r["promised"])
    from topcoat.runtime._machine import processor

    result = {
        "machine": {"processor": processor(), "logical": os.cpu_count()},
        "python": platform.python_version(),
        "bundle": arguments.bundle.name,
        "import": imports,
        "process": rows,
        "promises_kept": kept,
    }
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure_import(times: int) -> dict[str, Any]:
    code = (
        "import time; t = time.perf_counter_ns(); import topcoat.runtime, sys;"
        f" print((time.perf_counter_ns() - t) / 1e6, *({set(FORBIDDEN)!r} & set(sys.modules)))"
    )
    took: list[float] = []
    loaded: set[str] = set()
    for turn in range(times + 1):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        if turn:  # the first one fills the system's file cache
            took.append(float(out[0]))
        loaded |= set(out[1:])
    return {
        "median_ms": statistics.median(took),
        "worst_ms": max(took),
        "times": times,
        "not_loaded": sorted(set(FORBIDDEN) - loaded),
        "loaded": sorted(loaded),
    }


def measure_process(bundle: Path, frames: int, threads: int | None) -> list[dict[str, Any]]:
    import numpy as np

    import topcoat.runtime as tr
    from topcoat.runtime.backends import all_backends, default_threads

    manifest = tr.read_manifest(bundle)
    scale = manifest.scale
    threads = default_threads() if threads is None else threads
    rng = np.random.default_rng(0)
    rows = []
    for backend in all_backends():
        if backend.missing():
            print(f"{backend.name}: left out: {backend.missing()}", file=sys.stderr)
            continue
        frame = rng.integers(0, 256, (720, 1280, 3), np.uint8)
        odd = np.ascontiguousarray(frame[:-1, :-1])
        out = np.empty((720 * scale, 1280 * scale, 3), np.uint8)
        odd_out = np.empty((719 * scale, 1279 * scale, 3), np.uint8)
        own_in, own_out = frame[None].copy(), out[None].copy()
        bound, fresh = own_session(backend.name, manifest, threads, own_in, own_out)
        with tr.open(bundle, backend=backend.name, precision="fp32", threads=threads) as model:
            # Like with like: where process() makes a new array, so does the engine's own call.
            cases: list[tuple[str, bool, Callable[[], object], Callable[[], object]]] = [
                ("process(frame, out=buffer)", True, bound, partial(model.process, frame, out)),
                ("process(frame)", True, fresh, partial(model.process, frame)),
                ("1279x719, out=buffer", False, bound, partial(model.process, odd, odd_out)),
            ]
            for name, promised, own, call in cases:
                own_ms, call_ms = take_turns(own, call, frames)
                rows.append(
                    {
                        "backend": backend.name,
                        "version": backend.version(),
                        "compute": "fp32",
                        "threads": threads,
                        "case": name,
                        "promised": promised,
                        "frames": frames,
                        "session_ms": own_ms,
                        "process_ms": call_ms,
                        "ratio": call_ms / own_ms,
                    }
                )
        if not np.array_equal(out, own_out[0]):
            raise SystemExit(f"{backend.name}: process() and the session disagree; fix that first")
    return rows


def own_session(
    name: str,
    manifest: Any,  # noqa: ANN401 - topcoat.runtime loads in main
    threads: int,
    source: Any,  # noqa: ANN401
    result: Any,  # noqa: ANN401
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two calls of the engine's own API: on arrays bound once, and into a new array."""
    variant = next(v for v in manifest.variants if v.precision == "fp32")
    path = str(manifest.folder / variant.file)
    if name == "onnxruntime-cpu":
        from topcoat.runtime.backends.onnxruntime import import_onnxruntime

        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input(variant.input.name, source)
        binding.bind_output(
            variant.output.name, "cpu", 0, result.dtype, result.shape, result.ctypes.data
        )
        return (
            lambda: session.run_with_iobinding(binding),
            lambda: session.run(None, {variant.input.name: source})[0],
        )
    import numpy as np

    from topcoat.runtime.backends.openvino import import_openvino

    ov = import_openvino()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": False,
    }
    core = ov.Core()
    network = core.read_model(path)
    network.reshape(list(source.shape))
    compiled = core.compile_model(network, "CPU", settings)
    request, fresh_request = compiled.create_infer_request(), compiled.create_infer_request()
    for each in (request, fresh_request):
        each.set_input_tensor(ov.Tensor(source, shared_memory=True))
    request.set_output_tensor(ov.Tensor(result, shared_memory=True))

    def fresh() -> object:
        array = np.empty_like(result)
        fresh_request.set_output_tensor(ov.Tensor(array, shared_memory=True))
        fresh_request.infer()
        return array

    return request.infer, fresh


def take_turns(
    first: Callable[[], object], second: Callable[[], object], times: int
) -> tuple[float, float]:
    """Return the median milliseconds of both, called alternately, after a warm-up."""
    took: tuple[list[int], list[int]] = ([], [])
    calls = (first, second)
    for turn in range(times + 10):
        # Who goes second may find the caches warm: change the order every time.
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter_ns()
            calls[which]()
            if turn >= 10:
                took[which].append(time.perf_counter_ns() - start)
    return statistics.median(took[0]) / 1e6, statistics.median(took[1]) / 1e6


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['logical']} logical, Python {result['python']}")
    took = result["import"]
    print(
        f"\nimport topcoat.runtime: median {took['median_ms']:.0f} ms, worst"
        f" {took['worst_ms']:.0f} ms of {took['times']} fresh interpreters"
        f" (promise: {PROMISED_IMPORT_MS:.0f})"
    )
    print(f"  not loaded by it: {', '.join(took['not_loaded'])}")
    if took["loaded"]:
        print(f"  LOADED, AND SHOULD NOT BE: {', '.join(took['loaded'])}")
    print(
        f"\n{result['bundle']} at 1280x720, fp32, medians of {result['process'][0]['frames']}"
        f" alternating frames (promise: {PROMISED_RATIO})"
    )
    print(f"{'engine':<18}{'case':<30}{'session ms':>12}{'process ms':>12}{'ratio':>8}")
    for row in result["process"]:
        mark = "" if row["promised"] else "  padded: two copies, no promise"
        print(
            f"{row['backend']:<18}{row['case']:<30}{row['session_ms']:>12.3f}"
            f"{row['process_ms']:>12.3f}{row['ratio']:>8.3f}{mark}"
        )
    print("\npromises kept" if result["promises_kept"] else "\nPROMISES NOT KEPT")


if __name__ == "__main__":
    sys.exit(main())
