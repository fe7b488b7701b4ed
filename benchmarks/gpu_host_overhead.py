"""What a frame on TensorRT's backend costs the host beside the driver: our own time, and Python's.

    python benchmarks/gpu_host_overhead.py                     needs no GPU; Linux

The backend runs over the stand-ins of tests/runtime for the driver and the library. Once a frame is
one CUDA graph, the driver's functions of a frame are replaced by a C function that does nothing and
returns 0; what is left is Python, ctypes and two copies of an 8x8 frame. On a GPU the driver's own
time comes on top, which benchmarks/gpu.py measures. The promise there is 50 us in all.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PER_FRAME = (
    "cuCtxPushCurrent_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuGraphLaunch",
    "cuMemcpyDtoHAsync_v2",
    "cuStreamSynchronize",
    "cuCtxPopCurrent_v2",
)
"""What the backend calls for a frame of ordinary memory; a test holds it to these."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200, help="of 50 frames (default: 200)")
    arguments = parser.parse_args(argv)
    if sys.platform != "linux":
        print("gpu_host_overhead: needs Linux, for a C function that does nothing", file=sys.stderr)
        return 2
    rounds = measure(arguments.rounds)
    result = {
        "python": platform.python_version(),
        "rounds": len(rounds),
        "best_us": round(min(rounds), 1),
        "median_us": round(statistics.median(rounds), 1),
    }
    print(json.dumps(result))
    return 0


def measure(rounds: int) -> list[float]:
    """Return the time of a frame in microseconds, one mean of 50 frames per round."""
    from tests.runtime.fake_cuda import FakeCuda
    from tests.runtime.fake_tensorrt import Rig, make_engine_bundle

    from topcoat.runtime.backends._cuda import Driver

    nothing = ctypes.cast(ctypes.CDLL(None).pthread_mutexattr_destroy, ctypes.c_void_p).value

    class Idle:
        """The driver whose functions of a frame do nothing: that one ignores what it is given."""

        def __init__(self, cuda: FakeCuda) -> None:
            self._cuda = cuda

        def address(self, name: str) -> int | None:
            return nothing if name in PER_FRAME else self._cuda.address(name)

    rig = Rig()
    with tempfile.TemporaryDirectory() as folder:
        bundle = ROOT / "tests" / "runtime" / "data" / "blocks.topcoat"
        session = rig.session(make_engine_bundle(bundle, Path(folder)))
        source = np.full((1, 8, 8, 3), 90, np.uint8)
        result = np.zeros_like(source)
        for _ in range(3):  # until a graph is launched
            session.run(source, result)
        real = dict(rig.driver._functions)
        rig.driver._functions.update(Driver(Idle(rig.cuda))._functions)
        times = []
        for _ in range(rounds):
            began = time.perf_counter_ns()
            for _ in range(50):
                session.run(source, result)
            times.append((time.perf_counter_ns() - began) / 50e3)
        rig.driver._functions.update(real)
        session.close()
    return times


if __name__ == "__main__":
    sys.exit(main())
