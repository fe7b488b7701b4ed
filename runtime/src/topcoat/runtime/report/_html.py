"""A latency report as one HTML file that requests nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from topcoat.runtime.bundle import TEXTURE
from topcoat.runtime.report import _plots
from topcoat.runtime.report._measure import BUDGETS_MS, COLD_PARTS, Cell, Report, percent

_STYLE = """
:root { --ink: #26303a; --soft: #66707a; --line: #e2e6ea; --paper: #ffffff; --wash: #f6f8f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 12px; }
p { margin: 0 0 10px; max-width: 78ch; }
.kicker { color: var(--soft); margin: 0 0 22px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  padding: 20px 22px; margin: 0 0 18px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px;
  margin: 0 0 18px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 18px; }
.card .size { color: var(--soft); font-size: 13px; }
.card .figure { font-size: 30px; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.card .figure small { font-size: 15px; font-weight: 500; color: var(--soft); }
.card .note { font-size: 13px; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--line); }
td.name, th.name, td.size { text-align: left; }
tr td.size { vertical-align: top; font-weight: 600; }
td.size small { color: var(--soft); font-weight: 400; font-size: 13px; }
tr.first td { border-top: 1px solid var(--line); }
tr.best td { font-weight: 600; }
td.error { text-align: left; color: #a33a2a; white-space: normal; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 8px; }
.good { color: #1a7f4b; } .some { color: #9a6700; } .none { color: var(--soft); }
figure { margin: 0 0 6px; }
figure + figure { border-top: 1px solid var(--line); padding-top: 16px; }
svg { display: block; width: 100%; height: auto; }
svg text {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif !important; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 20px; margin: 0;
  align-content: start;
  font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 24px; }
ul { margin: 0; padding-left: 20px; }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""


def render(report: Report) -> str:
    """Return the page. Every text that comes from a file is escaped; nothing in it is run."""
    measured = [cell for cell in report.cells if cell.error is None]
    colours = _plots.engine_colours(report.cells)
    sizes = list(dict.fromkeys(cell.size for cell in measured))
    by_size = {size: [cell for cell in measured if cell.size == size] for size in sizes}
    shown = {cell.engine: colours[cell.engine] for cell in measured}
    plots = [_plots.overview(measured, shown)]
    plots += [
        _plots.steady(cells, colours, f"steady{i}") for i, cells in enumerate(by_size.values())
    ]
    name = escape(report.manifest.name)
    machine = report.machine
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: latency</title>
<style>{_STYLE}</style>
</head>
<body><main>
<h1>{name}: latency per frame</h1>
<p class="kicker">{escape(machine["processor"])}, {report.settings.threads} threads
 · {escape(report.began)}</p>
<div class="cards">{"".join(_card(cells) for cells in by_size.values())}</div>
<section><h2>Steady state</h2>
<div class="scroll">{_steady_table(report.cells, colours)}</div></section>
<section><h2>Plots</h2>{"".join(f"<figure>{plot}</figure>" for plot in plots)}</section>
<section><h2>Cold start</h2>
<p>A fresh Python process each time: starting the interpreter, importing the runtime, importing the
engine, loading the model, and the first frame. Files were in the system's cache.</p>
<div class="scroll">{_cold_table(measured, colours)}</div>
<figure style="margin-top:16px">{_plots.cold(measured)}</figure></section>
<section><h2>What was measured, and how</h2>
<div class="columns">{_facts(machine | report.versions)}{_facts(_settings(report))}</div>
<p style="margin-top:14px">Each of {report.settings.rounds} rounds ran every row of the table once,
in a fresh process, one after the other. After the first frame and a warm-up, frames ran back to
back, into one output buffer, four different synthetic pictures in turn. A frame is uint8 RGB in
main memory before and after; a latency is one call of <code>process()</code>.
{_about_sizes(report)}Percentiles are by
nearest rank: with fewer than 100 frames, p99 is the slowest one. Memory is the most that the
process had resident.</p>{_left_out(report)}</section>
</main></body></html>
"""


def _card(cells: list[Cell]) -> str:
    best = min(cells, key=lambda cell: cell.percentile(50))
    median = best.percentile(50)
    shares = ", ".join(
        f"{percent(best.share_within(ms))} within {name}" for name, ms in BUDGETS_MS.items()
    )
    return (
        f'<div class="card"><div class="size">{best.size}</div>'
        f'<div class="figure">{_ms(median)} <small>ms · {1000 / median:.1f} frames/s</small></div>'
        f'<div class="note">{escape(best.engine)}, median; p99 {_ms(best.percentile(99))} ms<br>'
        f"{shares}</div></div>"
    )


def _steady_table(cells: Iterable[Cell], colours: dict[str, str]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("p50", "p95", "p99", "max", "frames"))
    head += "".join(f"<th>within {name}<br>({ms:.2f} ms)</th>" for name, ms in BUDGETS_MS.items())
    rows = []
    cells = list(cells)
    for cell in cells:
        rivals = [c for c in cells if c.size == cell.size and c.error is None]
        best = rivals and cell is min(rivals, key=lambda c: c.percentile(50))
        size = _size_cell(cell, cells)
        kind = " ".join(word for word, on in (("first", size), ("best", best)) if on)
        label = size + _name(cell, colours)
        if cell.error is not None:
            rows.append(
                f'<tr class="{kind}">{label}<td class="error" colspan="8">not measured:'
                f" {escape(cell.error)}</td></tr>"
            )
            continue
        figures = "".join(f"<td>{_ms(cell.percentile(p))}</td>" for p in (50, 95, 99, 100))
        shares = "".join(_share(cell.share_within(ms)) for ms in BUDGETS_MS.values())
        memory = "?" if cell.peak_memory_mb is None else f"{cell.peak_memory_mb:.0f}"
        rows.append(
            f'<tr class="{kind}">{label}{figures}<td>{len(cell.steady())}</td>{shares}'
            f"<td>{memory}</td></tr>"
        )
    return (
        '<table><thead><tr><th class="name">frame</th><th class="name">engine</th>'
        f"{head}<th>peak memory<br>(MB)</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _cold_table(cells: Iterable[Cell], colours: dict[str, str]) -> str:
    head = "".join(f"<th>{part.replace('_', ' ')}</th>" for part in (*COLD_PARTS, "total"))
    cells = list(cells)
    rows = []
    for cell in cells:
        cold = cell.cold()
        size = _size_cell(cell, cells)
        figures = "".join(f"<td>{cold[part]:.0f}</td>" for part in (*COLD_PARTS, "total"))
        kind = "first" if size else ""
        rows.append(f'<tr class="{kind}">{size}{_name(cell, colours)}{figures}</tr>')
    return (
        '<table><thead><tr><th class="name">frame</th><th class="name">engine, ms</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _size_cell(cell: Cell, cells: Sequence[Cell]) -> str:
    """Return the table cell that names the size beside all its rows, "" but for the first."""
    same = [other for other in cells if other.size == cell.size]
    if cell is not same[0]:
        return ""
    frame, _, result = cell.size.partition(" to ")
    # The result's size below the frame's: side by side they push the last column out of sight.
    below = f"<br><small>to {result}</small>" if result else ""
    return f'<td class="size" rowspan="{len(same)}">{frame}{below}</td>'


def _name(cell: Cell, colours: dict[str, str]) -> str:
    key = f'<span class="key" style="background:{colours[cell.engine]}"></span>'
    return f'<td class="name">{key}{escape(cell.engine)}</td>'


def _share(share: float) -> str:
    kind = "good" if share >= 0.99 else "some" if share > 0 else "none"
    return f'<td class="{kind}">{percent(share)}</td>'


def _settings(report: Report) -> dict[str, str]:
    manifest = report.manifest
    facts = {
        "bundle": f"{manifest.name}, {manifest.task}, "
        + ("made from noise" if manifest.task == TEXTURE else f"output {manifest.scale}x"),
        "threads": str(report.settings.threads),
        "per cell": f"{report.settings.seconds:g} s in {report.settings.rounds} rounds",
    }
    for variant in manifest.variants:
        facts[variant.file] = (
            f"{variant.precision}, {variant.bytes / 1e6:.2f} MB, sha256 {variant.sha256[:16]}…"
        )
    for key in ("recipe", "step"):
        if key in manifest.checkpoint:
            facts[f"training {key}"] = str(manifest.checkpoint[key])
    return facts


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{rows}</dl>"


def _about_sizes(report: Report) -> str:
    if report.manifest.scale == 1:
        return ""
    return f"The network enlarges {report.manifest.scale} times: sizes are frame and result. "


def _left_out(report: Report) -> str:
    if not report.left_out:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in report.left_out)
    return f"<p>Not measured:</p><ul>{items}</ul>"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
