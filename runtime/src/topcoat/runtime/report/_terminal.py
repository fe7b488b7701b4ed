"""A latency report as text."""

from __future__ import annotations

from topcoat.runtime.report._measure import BUDGETS_MS, COLD_PARTS, Report, percent


def render(report: Report) -> str:
    """Return the report as tables for a terminal."""
    engine_width = max(len(cell.engine) for cell in report.cells)
    size_width = max(len(cell.size) for cell in report.cells)
    machine = report.machine
    lines = [
        f"{report.manifest.name} on {machine['processor']}"
        f" ({machine['logical processors']} logical processors),"
        f" {report.settings.threads} threads",
        "",
        f"{'steady, ms per frame':<{size_width + engine_width + 2}}"
        f"{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}{'frames':>8}"
        + "".join(f"{name:>8}" for name in BUDGETS_MS)
        + f"{'peak MB':>9}",
    ]
    for cell in report.cells:
        label = f"{cell.size:<{size_width}}  {cell.engine:<{engine_width}}"
        if cell.error is not None:
            lines.append(f"{label}  not measured: {cell.error}")
            continue
        figures = "".join(f"{cell.percentile(p):9.2f}" for p in (50, 95, 99, 100))
        shares = "".join(f"{percent(cell.share_within(ms)):>8}" for ms in BUDGETS_MS.values())
        memory = f"{cell.peak_memory_mb:9.0f}" if cell.peak_memory_mb is not None else f"{'?':>9}"
        lines.append(f"{label}{figures}{len(cell.steady()):>8}{shares}{memory}")
    titles = {name: name.replace("_", " ") for name in COLD_PARTS}
    lines += [
        "",
        f"{'cold start, ms':<{size_width + engine_width + 2}}"
        + "".join(f"{titles[name]:>13}" for name in COLD_PARTS)
        + f"{'total':>9}",
    ]
    for cell in report.cells:
        if cell.error is None:
            cold = cell.cold()
            lines.append(
                f"{cell.size:<{size_width}}  {cell.engine:<{engine_width}}"
                + "".join(f"{cold[name]:13.1f}" for name in COLD_PARTS)
                + f"{cold['total']:9.1f}"
            )
    lines += [
        "",
        f"{report.settings.rounds} rounds; in each, every row ran in a fresh process, one after the"
        " other. Steady frames ran back to back after a warm-up; cold figures are medians.",
    ]
    lines += [f"not measured: {line}" for line in report.left_out]
    return "\n".join(lines)
