"""A pass in words: engines, levels, copies, complaints."""

from __future__ import annotations

from dataclasses import dataclass

from topcoat.runtime.render_pass._engines import Rosters, Source
from topcoat.runtime.render_pass._pixels import Copy, PixelPlan
from topcoat.runtime.render_pass._types import Level, Mode

_MODES: dict[Mode, str] = {
    "live": "present never waits; results are usually of the frame before",
    "sync": "present waits for the frame's own result",
    "file": "no frame is lost, and the order is kept",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to say about a pass."""

    source: Source
    mode: Mode
    budget_ms: float | None
    not_ready: str | None
    rosters: Rosters | None
    now: float
    ladder: tuple[Level, ...]
    level: int
    plan: PixelPlan | None
    copies: tuple[Copy, ...]
    device: tuple[str, ...]
    """Lines about frames on the GPU; () if none has come."""
    told: tuple[str, ...]


def explain(facts: Facts) -> str:
    """Return lines about a pass; see :meth:`Pass.explain`."""
    budget = "no budget" if facts.budget_ms is None else f"budget {facts.budget_ms:g} ms"
    lines = [
        f"render pass of {facts.source.name}: {facts.mode} ({_MODES[facts.mode]}), {budget}",
    ]
    if facts.not_ready is not None:
        lines.append(f"  not ready: {facts.not_ready}")
    lines += ["  " + line for line in facts.source.explain().splitlines()]
    if facts.rosters is not None:
        lines.append("engines of this pass, in the order in which they stand in for each other:")
        for key, roster in facts.rosters.items():
            what = "" if key is None else f" [{roster.source.name}]"
            for seat in roster.seats:
                lines.append(f"  {seat.name}{what}: {seat.state(facts.now)}")
    lines.append("levels that the governor may choose from:")
    for number, level in enumerate(facts.ladder):
        lines.append(f"  {'->' if number == facts.level else '  '} {number}: {level}")
    lines += facts.device
    if facts.plan is None:
        if not facts.device:
            lines.append("copies per frame: no frame has come yet")
    else:
        copies = facts.copies
        total = sum(copy.bytes for copy in copies)
        lines.append(
            f"copies per frame of {facts.plan.width}x{facts.plan.height}, {total / 1e6:.2f} MB:"
        )
        lines += [f"  {copy}" for copy in copies] or ["  none"]
    lines += [f"told: {text}" for text in facts.told]
    return "\n".join(lines)
