"""An audit in words: the table of its layers, and a line for each precision."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from topcoat.runtime.parity import Summary

if TYPE_CHECKING:
    from topcoat.export.precision._findings import Effect, HalfAudit, LayerAudit

_HEADINGS = (
    "layer",
    "kind",
    "output",
    "below fp16",
    "variance",
    "mean²/var",
    "alone fp16",
    "alone bf16",
    "others fp16",
    "others bf16",
)


def table(layers: "Sequence[LayerAudit]") -> list[str]:
    """Lay out the layers that compute or are in danger, a line each."""
    rows = [list(_HEADINGS)]
    for layer in layers:
        if not layer.alone and layer.norm is None and layer.beyond_fp16() is None:
            continue
        norm = layer.norm
        rows.append(
            [
                layer.name,
                layer.kind,
                f"{number(layer.low)} to {number(layer.high)}",
                f"{layer.subnormal:.2%}" if layer.subnormal else "",
                "" if norm is None else number(norm.variance),
                "" if norm is None else number(norm.offset),
                *(
                    effect_words(effects[half]) if half in effects else ""
                    for effects in (layer.alone, layer.others)
                    for half in ("fp16", "bf16")
                ),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def conclusions(found: "Iterable[HalfAudit]") -> list[str]:
    """Say of each precision whether it holds, how well, and which layers stay float32."""
    lines = []
    for half in found:
        if half and not half.keep_fp32:
            lines.append(f"{half.precision} holds as it is: {_summary_words(half.after)}")
        elif half:
            lines.append(
                f"{half.precision} holds with {len(half.keep_fp32)} "
                f"layer{'s' * (len(half.keep_fp32) > 1)} in fp32: {_summary_words(half.after)}; "
                f"without: {_summary_words(half.before)}"
            )
        else:
            lines.append(f"{half.precision} does not hold: {'; '.join(half.failures)}")
        lines += [f"  {'stays' if half else 'tried in'} fp32: {why}" for why in half.reasons]
    return lines


def _summary_words(found: Mapping[str, Summary]) -> str:
    group = next((name for name in ("photographs", "noise") if name in found), next(iter(found)))
    measured = found[group]
    if math.isinf(measured.psnr_db):
        return f"{group} equal"
    return (
        f"{group} within {measured.max_steps} step{'s' * (measured.max_steps != 1)}, "
        f"{measured.psnr_db:.1f} dB"
    )


def effect_words(effect: "Effect") -> str:
    """Say what rounding does to the picture."""
    if math.isinf(effect.max_steps):
        return "no number"
    if math.isinf(effect.psnr_db):
        return "0"
    return f"{effect.max_steps:.2g} steps, {effect.psnr_db:.0f} dB"


def number(value: float) -> str:
    """Three digits are enough to compare with a limit."""
    return f"{value:.3g}"


def finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
