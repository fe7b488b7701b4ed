"""What was measured, as a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from topcoat.runtime.parity._difference import Summary
from topcoat.runtime.parity._flat import Flatness
from topcoat.runtime.parity._report import ParityRow


def parity_table(rows: Sequence[ParityRow]) -> list[str]:
    """Lines of a Markdown table that is readable in a terminal too.

    Flat areas have a column where they were compared: for networks that enlarge. Textures were
    compared on noise, and with themselves: whether they repeat without a seam.
    """
    texture = any("noise" in row.groups for row in rows)
    columns = (
        {"noise": "Noise", "tiny": "Tiny", "tiling": "Repeated"}
        if texture
        else {
            "photographs": "Photographs",
            "sizes": "Odd sizes",
            "tiny": "Tiny",
            "synthetic": "Synthetic",
        }
    )
    head = ["Engine", "Result", *columns.values()]
    names = [f"{row.engine.backend} {row.engine.compute}" for row in rows]
    body = [
        [
            # Only where a bundle holds several files for one backend and precision.
            name if names.count(name) == 1 else str(row.engine),
            row.status,
            *(_numbers(row.groups.get(group)) for group in columns),
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    flat = [row.groups.get("flat") for row in rows]
    if any(flat):
        head.append("Flat areas")
        for line, found in zip(body, flat, strict=True):
            line.append(_flat(None if found is None else found.flat))
    cells = [head, *body]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def reasons_not_run(rows: Sequence[ParityRow]) -> list[str]:
    """Say which engines were not run and why, each reason once."""
    engines: dict[str, list[str]] = {}
    for row in rows:
        if row.status == "not run":
            engines.setdefault(row.reason, []).append(str(row.engine))
    return [f"{', '.join(found)}: {reason}" for reason, found in engines.items()]


def _numbers(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    if not math.isfinite(summary.psnr_db):
        return "equal"
    return f"max {summary.max_steps}, {summary.psnr_db:.1f} dB"


def _flat(flat: Flatness | None) -> str:
    if flat is None:
        return "–"
    if not flat.judged:
        return "not judged"
    if not flat.uneven:
        return "flat"
    return f"up to {flat.max_steps} step{'s' * (flat.max_steps > 1)}"
