"""Measure latencies: every cell in several fresh processes that take turns."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError
from topcoat.runtime._machine import processor
from topcoat.runtime._percentiles import nearest_rank
from topcoat.runtime._textures import nearest_texture_size
from topcoat.runtime.backends import all_backends
from topcoat.runtime.bundle import TEXTURE, Manifest

BUDGETS_MS = {"60 Hz": 1000 / 60, "120 Hz": 1000 / 120}
LEAST_FRAMES = 2
"""Frames per process however long one takes."""
RESULT_SIZES = ((640, 360), (1280, 720), (1920, 1080))
"""(width, height) of the results that are measured by default."""
TEXTURE_SIDES = (256, 512, 1024)
"""Of the square textures that are measured by default, or the nearest that the bundle makes."""
COLD_PARTS = ("interpreter", "import", "engine", "load", "first_frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one report measures and how."""

    bundle: Path
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of each frame."""
    engines: tuple[tuple[str, str, str, bool], ...]
    """(backend, compute, model file, parity passed) of each engine that is measured."""
    threads: int
    seconds: float = 6.0
    """Measured time per cell, all rounds together."""
    rounds: int = 3
    """Fresh processes per cell; each gives one cold start and a part of the steady frames."""
    allow_unverified: bool = False


@dataclass(slots=True)
class Cell:
    """Everything measured for one engine at one frame size."""

    backend: str
    compute: str
    variant: str
    width: int
    height: int
    """Of the frame; its result is ``scale`` times as wide and high."""
    scale: int = 1
    verified: bool = True
    """Whether the bundle holds a passed parity check for this engine."""
    ran: dict[str, str] | None = None
    """backend, compute and variant that ran the frames, as the measuring process says; None if
    none ran."""
    names_file: bool = False
    """Whether reports name the model file, because several are measured on one backend."""
    latencies_ms: list[list[float]] = field(default_factory=list)
    """Steady frames, one list per round, in order."""
    cold_ms: list[dict[str, float]] = field(default_factory=list)
    """One per round: interpreter, import, engine, load, first_frame."""
    peak_memory_mb: float | None = None
    warm_up_frames: int = 0
    error: str | None = None
    """Why the cell could not be measured; the other fields are then empty or partial."""

    @property
    def engine(self) -> str:
        """The engine as reports name it."""
        file = f" [{self.variant}]" if self.names_file else ""
        verdict = "" if self.verified else " (not verified)"
        return f"{self.backend} {self.compute}{file}{verdict}"

    @property
    def size(self) -> str:
        """The frame size as reports name it, with the result's where that is another."""
        given = f"{self.width}x{self.height}"
        if self.scale == 1:
            return given
        return f"{given} to {self.width * self.scale}x{self.height * self.scale}"

    def steady(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return all steady latencies in ms, in order."""
        return np.array([value for part in self.latencies_ms for value in part])

    def percentile(self, percent: float) -> float:
        """Return a percentile by nearest rank: always a latency that really occurred."""
        return nearest_rank(self.steady(), percent)

    def share_within(self, budget_ms: float) -> float:
        """Return the share of steady frames that took at most this long, 0..1."""
        return float(np.mean(self.steady() <= budget_ms))

    def cold(self) -> dict[str, float]:
        """Return the median over rounds of each part of the cold start, and of their sum."""
        parts = {name: float(np.median([c[name] for c in self.cold_ms])) for name in COLD_PARTS}
        total = float(np.median([sum(c.values()) for c in self.cold_ms]))
        return {**parts, "total": total}

    def to_json(self) -> dict[str, Any]:
        """Return all figures and every single latency."""
        result: dict[str, Any] = {
            "backend": self.backend,
            "compute": self.compute,
            "variant": self.variant,
            "verified": self.verified,
            "width": self.width,
            "height": self.height,
            "ran": self.ran,
            "output_width": self.width * self.scale,
            "output_height": self.height * self.scale,
            "error": self.error,
        }
        if self.error is None:
            result |= {
                "frames": len(self.steady()),
                "p50_ms": self.percentile(50),
                "p95_ms": self.percentile(95),
                "p99_ms": self.percentile(99),
                "max_ms": self.percentile(100),
                "mean_ms": float(self.steady().mean()),
                "within": {name: self.share_within(ms) for name, ms in BUDGETS_MS.items()},
                "peak_memory_mb": self.peak_memory_mb,
                "warm_up_frames_per_round": self.warm_up_frames,
                "cold_median_ms": self.cold(),
                "cold_ms": self.cold_ms,
                "latencies_ms": self.latencies_ms,
            }
        return result


def percent(share: float) -> str:
    """Return a share as whole per cent, rounded down: 100 % means every frame.

    >>> percent(0.996)
    '99 %'
    """
    return f"{int(share * 100 + 1e-9)} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A finished measurement."""

    manifest: Manifest
    settings: Settings
    machine: dict[str, str]
    versions: dict[str, str]
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]
    """Engines that were not measured, each with its reason."""
    began: str
    """Local time, ISO 8601."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as ``--json`` writes it."""
        return {
            "format": "topcoat-latency",
            "format_version": 1,
            "bundle": self.manifest.name,
            "scale": self.manifest.scale,
            "began": self.began,
            "machine": self.machine,
            "versions": self.versions,
            "settings": {
                "threads": self.settings.threads,
                "seconds_per_cell": self.settings.seconds,
                "rounds": self.settings.rounds,
                "order": "rounds; in each, every cell once in a fresh process",
            },
            "models": [
                {"file": v.file, "precision": v.precision, "sha256": v.sha256, "bytes": v.bytes}
                for v in self.manifest.variants
            ],
            "left_out": list(self.left_out),
            "cells": [cell.to_json() for cell in self.cells],
        }


def default_sizes(manifest: Manifest) -> tuple[tuple[int, int], ...]:
    """Return the frame sizes (width, height) that are measured when nobody says which.

    Results of 640x360, 1280x720 and 1920x1080 at every scale: what is shown has to be ready 60 or
    120 times a second, and 1080p through a x4 network would be 8K, which few displays show. Frames
    that are larger than the network takes are left out, but for the smallest. Of textures, squares.
    """
    if manifest.task == TEXTURE:
        squares = (nearest_texture_size(side, side, manifest.size) for side in TEXTURE_SIDES)
        return tuple(dict.fromkeys(squares))
    sizes = [(width // manifest.scale, height // manifest.scale) for width, height in RESULT_SIZES]
    most = manifest.size.max
    return tuple(size for size in sizes if most is None or max(size) <= most) or (sizes[0],)


def measure(
    manifest: Manifest,
    settings: Settings,
    left_out: Sequence[str],
    *,
    advanced: Callable[[str], None] = lambda what: None,
) -> Report:
    """Measure every engine at every size.

    Args:
        manifest: the bundle.
        settings: what to measure.
        left_out: lines about engines that are not measured, for the report.
        advanced: called before each process with what it measures.

    Raises:
        BackendError: not one cell could be measured.
    """
    began = time.strftime("%Y-%m-%d %H:%M:%S %z")
    machine = _machine()  # before the measurement itself loads the machine
    names = [(backend, compute) for backend, compute, _, _ in settings.engines]
    cells = [
        Cell(
            backend=backend,
            compute=compute,
            variant=variant,
            verified=verified,
            width=width,
            height=height,
            scale=manifest.scale,
            names_file=names.count((backend, compute)) > 1,
        )
        for width, height in settings.sizes
        for backend, compute, variant, verified in settings.engines
    ]
    for turn in range(settings.rounds):
        for cell in cells:
            advanced(f"round {turn + 1} of {settings.rounds}: {cell.size} {cell.engine}")
            if cell.error is None:
                _measure_once(cell, settings)
    if all(cell.error is not None for cell in cells):
        raise BackendError(f"nothing could be measured: {cells[0].engine}: {cells[0].error}")
    return Report(
        manifest=manifest,
        settings=settings,
        machine=machine,
        versions=_versions(settings),
        cells=tuple(cells),
        left_out=tuple(left_out),
        began=began,
    )


def _measure_once(cell: Cell, settings: Settings) -> None:
    task = {
        "path": sys.path,
        "bundle": str(settings.bundle),
        "backend": cell.backend,
        "compute": cell.compute,
        "variant": cell.variant,
        "threads": settings.threads,
        "allow_unverified": settings.allow_unverified,
        "width": cell.width,
        "height": cell.height,
        "seconds": settings.seconds / settings.rounds,
        "least_frames": LEAST_FRAMES,
        "spawned_ns": 0,
    }
    script = Path(__file__).with_name("_child.py")
    task["spawned_ns"] = time.perf_counter_ns()
    # -P: the script's folder must not be searched for modules.
    done = subprocess.run(
        [sys.executable, "-P", str(script), json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        killed = f"its process ended with code {done.returncode} (out of memory?)"
        cell.error = lines[-1] if lines else killed
        return
    result = json.loads(done.stdout.splitlines()[-1])
    cell.latencies_ms.append(result["latencies_ms"])
    cell.cold_ms.append(result["cold_ms"])
    cell.ran = result["ran"]
    cell.warm_up_frames = result["warm_up_frames"]
    if result["peak_memory_mb"] is not None:
        cell.peak_memory_mb = max(cell.peak_memory_mb or 0.0, result["peak_memory_mb"])


def _machine() -> dict[str, str]:
    facts = {"processor": processor(), "logical processors": str(os.cpu_count() or "unknown")}
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory"] = f"{pages / 2**30:.0f} GiB"
    except (AttributeError, OSError, ValueError):
        pass
    facts["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    with contextlib.suppress(AttributeError, OSError):
        facts["load before"] = f"{os.getloadavg()[0]:.2f} (1 minute average)"
    return facts


def _versions(settings: Settings) -> dict[str, str]:
    import importlib.metadata

    measured = {engine[0] for engine in settings.engines}
    versions = {
        "topcoat-runtime": importlib.metadata.version("topcoat-runtime"),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    for backend in all_backends():
        if backend.name in measured:
            versions[backend.name] = backend.version()
    return versions
