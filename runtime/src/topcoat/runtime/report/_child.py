"""Measure one cell of the latency report in this fresh process; started as a script by _measure.

Only the standard library is imported at the top: importing the runtime is part of what is timed.
Reads its task as JSON from the first argument and prints its result as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Import, load, run a first frame, warm up, run frames for the given time; print the times."""
    began = time.perf_counter_ns()
    task: dict[str, Any] = json.loads(sys.argv[1])
    sys.path += [entry for entry in task["path"] if entry not in sys.path]

    import topcoat.runtime as tr

    imported = time.perf_counter_ns()
    from topcoat.runtime.backends import find_backend

    find_backend(task["backend"]).start()
    started = time.perf_counter_ns()
    model = tr.open(
        task["bundle"],
        backend=task["backend"],
        precision=task["compute"],
        variant=task["variant"],
        threads=task["threads"],
        allow_unverified=task["allow_unverified"],
    )
    loaded = time.perf_counter_ns()

    frames = _frames(task["width"], task["height"], noise=model.task == "texture")
    scale = model.manifest.scale
    import numpy as np

    out = np.empty((task["height"] * scale, task["width"] * scale, 3), np.uint8)
    before_first = time.perf_counter_ns()
    model.process(frames[0], out=out)
    after_first = time.perf_counter_ns()

    # Warm-up: what the first frame did not compile or allocate, the next few do.
    warm_until = time.perf_counter_ns() + int(task["seconds"] * 0.15e9)
    warm = 0
    while warm < 1 or (warm < 50 and time.perf_counter_ns() < warm_until):
        model.process(frames[warm % len(frames)], out=out)
        warm += 1

    latencies: list[int] = []
    until = time.perf_counter_ns() + int(task["seconds"] * 1e9)
    count = 0
    while count < task["least_frames"] or time.perf_counter_ns() < until:
        frame = frames[count % len(frames)]
        start = time.perf_counter_ns()
        model.process(frame, out=out)
        latencies.append(time.perf_counter_ns() - start)
        count += 1
    model.close()
    ran = model.explain().candidate_for(task["height"], task["width"])
    assert ran is not None
    result = {
        "ran": {"backend": ran.backend, "compute": ran.compute, "variant": ran.variant},
        "cold_ms": {
            # perf_counter is one clock for all processes of a machine.
            "interpreter": (began - task["spawned_ns"]) / 1e6,
            "import": (imported - began) / 1e6,
            "engine": (started - imported) / 1e6,
            "load": (loaded - started) / 1e6,
            "first_frame": (after_first - before_first) / 1e6,
        },
        "latencies_ms": [nanoseconds / 1e6 for nanoseconds in latencies],
        "warm_up_frames": 1 + warm,
        "peak_memory_mb": _peak_memory_mb(),
    }
    print(json.dumps(result))


def _frames(width: int, height: int, *, noise: bool) -> list[Any]:
    """Return four different frames, smooth with some detail: no cache can know the next one.

    Of noise instead for a texture, which is made from it.
    """
    import numpy as np

    if noise:
        from topcoat.runtime import noise_frame

        return [noise_frame(height, width, seed) for seed in range(4)]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    frames = []
    for turn in range(4):
        planes = [
            127 + 90 * np.sin(x / (31 + 7 * c) + turn) + 30 * np.cos(y / (5 + c) + turn)
            for c in range(3)
        ]
        frames.append(np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8))
    return frames


def _peak_memory_mb() -> float | None:
    """Return the most memory this process had resident, in MB, or None where nobody says."""
    try:
        # Not ru_maxrss: on Linux a child inherits its parent's value.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        if type(error).__module__ != "topcoat.runtime._errors":
            raise
        sys.exit(str(error))  # one line for the report, without Python's
