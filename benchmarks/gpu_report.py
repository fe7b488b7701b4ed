"""What a run found: the machine, the promises held against the figures, and a table of them."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu_bundles import STYLE

PROMISED_RATIO = 2.0
PROMISED_OVERHEAD_US = 50.0

ENGINES: Mapping[str, str] = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
"""Backend -> what the exporter calls its library."""


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    import numpy as np

    from topcoat.runtime.backends._cuda import Device, probe
    from topcoat.runtime.parity import machine as processor

    found = probe()
    gpu: dict[str, Any] = {"name": None, "missing": found}
    if isinstance(found, Device):
        gpu = {
            "name": found.name,
            "sm": found.sm,
            "memory_bytes": found.memory,
            "driver": found.driver,
            "cuda": ".".join(map(str, found.cuda)),
        }
    return {
        "gpu": gpu,
        "clocks before": clocks(),
        **processor(),
        "logical": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


_ASKED = (
    ("sm_mhz", "clocks.sm"),
    ("sm_mhz_most", "clocks.max.sm"),
    ("memory_mhz", "clocks.mem"),
    ("watts", "power.draw"),
    ("watts_most", "power.limit"),
    ("celsius", "temperature.gpu"),
)


def clocks() -> dict[str, float] | None:
    """Ask nvidia-smi for clocks and power; None where it is not installed."""
    command = [
        "nvidia-smi",
        "--id=0",
        f"--query-gpu={','.join(name for _, name in _ASKED)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = {}
    for (key, _), text in zip(_ASKED, out.strip().splitlines()[0].split(","), strict=False):
        with contextlib.suppress(ValueError):  # "[N/A]"
            found[key] = float(text)
    return found


def device_ms(row: Mapping[str, Any]) -> float | None:
    """Return the time of a frame that stays on the GPU, by its own clock if that was measured."""
    for found in (row.get("graph"), row.get("no_graph"), row):
        if isinstance(found, Mapping) and found.get("device_ms") is not None:
            return float(found["device_ms"])
    bare = [
        entry["device_frames_ms"]["p50"]
        for name, entry in row.items()
        if name.startswith("bare") and isinstance(entry, Mapping) and "device_frames_ms" in entry
    ]
    return min(bare, default=None)


def host_ms(row: Mapping[str, Any]) -> float | None:
    """Return the median time of a frame that comes from the host and goes back there."""
    for found in (row.get("graph"), row):
        if isinstance(found, Mapping) and "host_frames_ms" in found:
            return float(found["host_frames_ms"]["p50"])
    return None


def verdicts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Hold the promises against what was measured; None where nothing was."""
    rows = [
        row
        for row in result["measurements"]
        if (row["bundle"], row["size"], row["precision"]) == (STYLE, "1080p", "fp16")
        and row["backend"] in ENGINES
        and "failed" not in row
    ]
    floor = result.get("floors", {}).get(STYLE, {}).get("fp16", {}).get("1080p")
    best = min(rows, key=lambda row: row["graph"]["device_ms"], default=None)
    found: dict[str, Any] = dict.fromkeys(("floor", "overhead", "host_overhead", "parity"))
    if best is not None and floor is not None:
        ratio = best["graph"]["device_ms"] / floor["larger_ms"]
        found["floor"] = {
            "what": f"{STYLE} fp16 1080p on {best['backend']} ({best['profile']})",
            "measured_ms": best["graph"]["device_ms"],
            "floor_ms": floor["larger_ms"],
            "bound": floor["bound"],
            "ratio": ratio,
            "promised": PROMISED_RATIO,
            "kept": ratio <= PROMISED_RATIO,
        }
    for name, what, key in (
        ("overhead", "host time per frame that stays on the GPU", "device_frames_overhead_us"),
        (
            "host_overhead",
            "host time per frame from the host and back, copies apart",
            "host_frames_overhead_us",
        ),
    ):
        times = [
            row["graph"][key]
            for row in result["measurements"]
            if row["backend"] in ENGINES and "failed" not in row
        ]
        if times:
            found[name] = {
                "what": f"{what}, over {len(times)} engines and sizes",
                "median_us": statistics.median(times),
                "worst_us": max(times),
                "promised": PROMISED_OVERHEAD_US,
                "kept": max(times) <= PROMISED_OVERHEAD_US,
            }
    compared = [
        row
        for row in result["parity"]
        if row["status"] != "not run" and row["compute"] == "fp16" and row["backend"] in ENGINES
    ]
    if compared:
        failed = [f"{row['bundle']} {row['file']}" for row in compared if row["status"] == "failed"]
        found["parity"] = {
            "what": "fp16 engines within the gates of their networks",
            "compared": len(compared),
            "failed": failed,
            "kept": not failed,
        }
    return found


def table(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    gpu = result["machine"]["gpu"]
    lines = [
        f"{gpu.get('name')} ({gpu.get('sm')}), driver {gpu.get('driver')},"
        f" CUDA {gpu.get('cuda')}; {result['machine'].get('processor')}",
    ]
    if result["peaks"] is not None:
        peaks = result["peaks"]
        rates = ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in peaks["tflops"].items())
        lines.append(
            f"Peaks: {rates}, {peaks['gigabytes_per_second']:.0f} GB/s ({peaks['source']})."
        )
    names = [
        name for name in ("720p", "1080p", "1440p", "4K") if name in result["settings"]["sizes"]
    ]
    for bundle in dict.fromkeys(row["bundle"] for row in result["measurements"]):
        rows = [row for row in result["measurements"] if row["bundle"] == bundle]
        lines += [
            "",
            f"**{bundle}**: milliseconds per frame on the GPU / from the host and back",
            "",
            f"| engine | {' | '.join(names)} |",
            f"|---|{'---|' * len(names)}",
        ]
        ways: dict[str, dict[str, str]] = {}
        for row in rows:
            ways.setdefault(_label(row), {})[row["size"]] = _cell(row)
        floors = result.get("floors", {}).get(bundle, {})
        for precision, entries in floors.items():
            ways[f"floor {precision}"] = {
                size: f"{entry['larger_ms']:.2f} ({entry['bound']})"
                for size, entry in entries.items()
            }
        for label, cells in ways.items():
            lines.append(f"| {label} | {' | '.join(cells.get(n, '–') for n in names)} |")
        lines += _stage_lines(rows)
    if result["engines"]:
        lines += ["", "Engines, built in s: " + "; ".join(map(_built, result["engines"])) + "."]
    lines += ["", *_verdict_lines(result.get("verdicts", {}))]
    missing = [(entry["part"], entry["reason"]) for entry in result["failures"]]
    missing += [
        (f"{row['backend']} {row['precision']} of {row['bundle']}", row["failed"])
        for row in result["measurements"]
        if "failed" in row
    ]
    if missing:
        lines += ["", "Not measured:", ""]
        lines += dict.fromkeys(f"- {what}: {why}" for what, why in missing)
    return "\n".join(lines)


_STAGES = ("host_in", "upload", "compute", "download", "host_out")


def _stage_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say where the time of built engines goes; medians in ms, of frames from the host and back."""
    rows = [row for row in rows if "graph" in row and "failed" not in row]
    if not rows:
        return
    yield ""
    yield (
        "| engine | size | copy in | upload | compute | download | copy out | host adds, us"
        " | no graph | pinned | first frame | again | MiB |"
    )
    yield f"|---|{'---|' * 12}"
    for row in rows:
        graph = row["graph"]
        stages = " | ".join(f"{graph['stages_ms'][stage]['p50']:.3f}" for stage in _STAGES)
        yield (
            f"| {_label(row)} | {row['size']} | {stages} | {graph['host_frames_overhead_us']:.0f}"
            f" | {row['no_graph']['device_ms']:.3f} | {graph['pinned_frames_ms']['p50']:.3f}"
            f" | {row['first_frame_ms']:.0f} | {row['first_frame_again_ms']:.0f}"
            f" | {graph['device_bytes'] / 2**20:.0f} |"
        )


def _built(entry: Mapping[str, Any]) -> str:
    size = f"{entry['profile']} for {', '.join(entry['targets'])}"
    megabytes = entry["bytes"] / 1e6
    return (
        f"{entry['bundle']} {entry['kind']} {entry['precision']} {size} {entry['seconds']:.1f}"
        f" ({megabytes:.1f} MB)"
    )


def _label(row: Mapping[str, Any]) -> str:
    backend = str(row["backend"])
    label = backend if backend.startswith("torch") else f"{backend} {row['precision']}"
    return label + (", one size" if ":" not in row.get("profile", ":") else "")


def _cell(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return "failed"
    figures = (device_ms(row), host_ms(row))
    return " / ".join("–" if value is None else f"{value:.2f}" for value in figures)


def _verdict_lines(found: Mapping[str, Any]) -> Iterator[str]:
    def kept(entry: Mapping[str, Any]) -> str:
        return "kept" if entry["kept"] else "NOT KEPT"

    if (entry := found.get("floor")) is not None:
        yield (
            f"{entry['what']}: {entry['measured_ms']:.3f} ms, {entry['ratio']:.2f} times its"
            f" {entry['bound']} floor (promise: {entry['promised']:g}, {kept(entry)})"
        )
    for name in ("overhead", "host_overhead"):
        if (entry := found.get(name)) is not None:
            yield (
                f"{entry['what']}: median {entry['median_us']:.0f} us, worst"
                f" {entry['worst_us']:.0f} us (promise: {entry['promised']:g}, {kept(entry)})"
            )
    if (entry := found.get("parity")) is not None:
        failed = f"; failed: {', '.join(entry['failed'])}" if entry["failed"] else ""
        yield f"{entry['what']}: {entry['compared']} compared ({kept(entry)}){failed}"
