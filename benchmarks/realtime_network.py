"""What a frame of the real-time style network costs, by width, blocks, engine and threads.

    python benchmarks/realtime_network.py                                  the recipe's own size
    python benchmarks/realtime_network.py --widths 16,32,48 --blocks 2,4,6
    python benchmarks/realtime_network.py --widths 32 --blocks 4 --threads 1,2 --json realtime.json

Weights are random: time does not depend on them. Every network is exported as export-engine does it
and run as uint8 frames by the engine's own session, on arrays bound once, with the runtime's
settings. The cases take turns, a frame each, so a busy moment of the machine falls on all of them.
"cpu" is the median of the processor time of a frame, of all threads together: what a renderer on
the same cores goes without. It depends far less on what else is running than the latencies do.
A trained bundle, in fresh processes and with the runtime around it: bench-latency.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library loads

WARM_UP = 5
"""Frames of each case that are not counted."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=_counts, default=[32], metavar="N,…")
    parser.add_argument("--blocks", type=_counts, default=[4], metavar="N,…")
    parser.add_argument("--norm", choices=("instance", "batch"), default="instance")
    parser.add_argument("--sizes", type=_sizes, default="640x360,1280x720", metavar="WxH,…")
    parser.add_argument("--threads", type=_counts, default=[1, 2], metavar="N,…")
    parser.add_argument("--frames", type=int, default=100, help="per case (default: 100)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.frames < 1:
        parser.error(f"--frames must be at least 1, got {arguments.frames}")
    rows = measure(arguments)
    from topcoat.runtime._machine import processor

    result = {
        "machine": {"processor": processor(), "logical": os.cpu_count()},
        "python": platform.python_version(),
        "norm": arguments.norm,
        "frames": arguments.frames,
        "rows": rows,
    }
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    from topcoat.export.onnx_from_checkpoint import onnx_from_network
    from topcoat.train import RecipeError
    from topcoat.train.networks import build_network

    rows: list[dict[str, Any]] = []
    calls: list[Callable[[], object]] = []
    rng = np.random.default_rng(0)
    frames = {
        size: rng.integers(0, 256, (1, size[1], size[0], 3), np.uint8) for size in arguments.sizes
    }
    for width in arguments.widths:
        for blocks in arguments.blocks:
            settings = {"width": width, "blocks": blocks, "norm": arguments.norm}
            torch.manual_seed(0)
            try:
                network = build_network("realtime", settings)
            except RecipeError as error:
                print(f"realtime_network: {error}", file=sys.stderr)
                raise SystemExit(2) from None
            graph = onnx_from_network(network).SerializeToString()
            for size, frame in frames.items():
                for threads in arguments.threads:
                    for backend, prepare in (("onnxruntime-cpu", _ort), ("openvino-cpu", _ov)):
                        try:
                            calls.append(prepare(graph, frame, threads))
                        except ModuleNotFoundError as error:
                            print(f"left out: {backend}: {error}", file=sys.stderr)
                            continue
                        rows.append(
                            {
                                **settings,
                                "parameters": sum(p.numel() for p in network.parameters()),
                                "model_kb": len(graph) / 1e3,
                                "size": f"{size[0]}x{size[1]}",
                                "backend": backend,
                                "version": version(backend.split("-")[0]),
                                "threads": threads,
                            }
                        )
    took: list[list[tuple[int, int]]] = [[] for _ in calls]
    for turn in range(WARM_UP + arguments.frames):
        for call, mine in zip(calls, took, strict=True):
            cpu, start = time.process_time_ns(), time.perf_counter_ns()
            call()
            passed = time.perf_counter_ns() - start
            if turn >= WARM_UP:
                mine.append((passed, time.process_time_ns() - cpu))
    for row, mine in zip(rows, took, strict=True):
        passed_ms, cpu_ms = np.array(mine).T / 1e6
        for share in (50, 95, 99):
            row[f"p{share}_ms"] = float(np.percentile(passed_ms, share))
        row["cpu_ms"] = float(np.median(cpu_ms))
    return rows


def _ort(graph: bytes, frame: Any, threads: int) -> Callable[[], object]:  # noqa: ANN401
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Cases take turns: threads that spin for their next frame would take the others' cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    result = np.empty_like(frame)
    binding.bind_ortvalue_input(
        session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(frame)
    )
    binding.bind_output(
        name=session.get_outputs()[0].name,
        device_type="cpu",
        element_type=np.uint8,
        shape=result.shape,
        buffer_ptr=result.ctypes.data,
    )
    return partial(_run_bound, session, binding, result)


def _run_bound(session: Any, binding: Any, _: Any) -> None:  # noqa: ANN401 - keeps the result alive
    session.run_with_iobinding(binding)


def _ov(graph: bytes, frame: Any, threads: int) -> Callable[[], object]:  # noqa: ANN401
    import openvino

    core = openvino.Core()
    model = core.read_model(graph)
    model.reshape(list(frame.shape))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(frame, shared_memory=True))
    return request.infer  # type: ignore[no-any-return]


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['logical']} logical, Python {result['python']}")
    print(f"norm {result['norm']}, {result['frames']} frames each, in turns, fp32")
    head = f"{'width':>5}{'blocks':>7}{'weights':>9}{'model':>9}  {'size':<10}{'engine':<16}"
    print(f"{head}{'threads':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'cpu ms':>9}")
    for row in result["rows"]:
        print(
            f"{row['width']:>5}{row['blocks']:>7}{row['parameters']:>9}"
            f"{row['model_kb']:>6.0f} kB  {row['size']:<10}{row['backend']:<16}"
            f"{row['threads']:>8}{row['p50_ms']:>9.2f}{row['p95_ms']:>9.2f}{row['p99_ms']:>9.2f}"
            f"{row['cpu_ms']:>9.2f}"
        )


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 16,32")
    return counts


def _sizes(text: str) -> list[tuple[int, int]]:
    try:
        sizes = [tuple(map(int, part.split("x"))) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or any(
        len(size) != 2 or min(size) < 4 or size[0] % 4 or size[1] % 4 for size in sizes
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of sizes such as 640x360, whose sides are multiples of 4"
        )
    return [(width, height) for width, height in sizes]


if __name__ == "__main__":
    sys.exit(main())
