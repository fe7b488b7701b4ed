"""A render pass for some time on a real engine and a real clock: nothing is left behind.

benchmarks/soak.py does the same for as long as one likes, and measures times, which nothing here
depends on.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.runtime.allocations import peak_growth
from tests.runtime.conftest import installed_backends
from topcoat.runtime.render_pass import Depth, Layout, Motion, Pass, Policy, RenderFrame, Status

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"
LIMIT = 64 * 1024
"""Bytes that a frame may take and give back: less than a tenth of its pixels."""

SLOTS = 5
"""A live pass makes buffers for so many frames, some of them when they first happen to be needed at
the same time: so often at most a measurement may be spoilt."""

pytestmark = pytest.mark.skipif(
    "onnxruntime-cpu" not in installed_backends(), reason="onnxruntime-cpu is not installed"
)


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of this checkout")
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say how much memory a process has")
    spec = importlib.util.spec_from_file_location("topcoat_soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mode", ["live", "sync", "file"])
def test_nothing_is_left_behind_by_changes_and_faults(soak: ModuleType, mode: str) -> None:
    sizes = ((72, 128), (36, 64), (50, 90))
    report = soak.soak(
        soak.Settings(), mode, 600, sizes=sizes, period=0.001, trace=True, often=20, rest=0.005
    )
    assert sum(report.statuses.values()) == 600
    assert report.statuses["fresh"] > 100
    assert set(report.changes) == set(soak.CHANGES)
    assert sum(report.faults.values()) >= 5
    assert report.failures >= 3
    assert report.engines_opened == report.engines_closed > 5
    assert report.threads_left <= 0
    assert report.descriptors_left <= 0
    assert report.threads_most <= 6
    # A frame that was kept for each swap, change or fault would be 27 KB and more each time.
    assert report.traced_growth < 100_000
    if mode != "live":
        assert report.checked_pictures >= 3


def test_the_floor_of_readings_shows_a_leak_through_the_noise(soak: ModuleType) -> None:
    rng = np.random.default_rng(0)
    noise = rng.exponential(5e6, 2000)
    frames = np.arange(2000) * 10
    for leak in (0, 2000):
        readings = [
            (int(n), int(1e8 + extra + leak * n)) for n, extra in zip(frames, noise, strict=True)
        ]
        slope, error = soak.fit(readings)
        assert abs(slope - leak) < error + 20
        assert error < 100


class Everything:
    """Frames of 640x360 with all that a pass can use, made once."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.motion = Motion(data=rng.normal(0, 1, (360, 640, 2)).astype(np.float32))
        self.depth = Depth(data=rng.random((360, 640), np.float32))
        self.colors = [rng.integers(0, 256, (360, 640, 4), np.uint8) for _ in range(2)]
        self.frame = RenderFrame(
            color=self.colors[0],
            layout=Layout(format="bgra8"),
            motion=self.motion,
            depth=self.depth,
            mask=rng.integers(0, 256, (360, 640), np.uint8),
        )

    def next(self) -> RenderFrame:
        self.colors.reverse()
        self.frame.color = self.colors[0]
        return self.frame


@pytest.mark.parametrize("everything", [False, True], ids=["plain", "everything on"])
@pytest.mark.parametrize("mode", ["live", "sync", "file", "file, queued"])
def test_a_frame_allocates_no_arrays(blocks: Path, mode: str, everything: bool) -> None:
    frames = Everything()
    plain = np.ascontiguousarray(frames.colors[0][..., :3])
    out = np.empty_like(frames.colors[0])
    # Results that are older than their frame are moved along its motion, late or not.
    policy = Policy(align=True, late="warp")
    with Pass.open(
        blocks,
        mode=mode.split(",")[0],  # type: ignore[arg-type]
        policy=policy,
        backend="onnxruntime-cpu",
        threads=1,
    ) as subject:
        subject.prepare((360, 640)).wait(60)
        if everything:
            subject.set(strength=0.7, stabilise=0.5)

        def present() -> None:
            frame = frames.next() if everything else plain
            if mode == "file, queued":
                for _ in range(3):
                    subject.submit(frame)
                for _ in range(3):
                    subject.collect(out if everything else None)
                return
            subject.present(frame)
            subject.present(frame, out if everything else plain)

        for _ in range(4):
            present()
            time.sleep(0.01)
        growths: list[int] = []
        while len(growths) < SLOTS + 1:
            growths.append(peak_growth(present, times=8))
            if growths[-1] < LIMIT:
                break
        seen = subject.stats().statuses
        assert seen[Status.FRESH] > (0 if mode == "live" else 20)
    assert growths[-1] < LIMIT, growths
