"""The plots of a latency report, as SVG texts for one HTML page. Needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from topcoat.runtime.report._measure import BUDGETS_MS, COLD_PARTS, Cell

# Distinguishable for colour-blind readers (Okabe and Ito 2008), darkened for white paper.
_ENGINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#555555")
_PART_COLOURS = ("#9aa5b1", "#c3a46a", "#6ba292", "#4878a8", "#b8565a")
_POINTS = 1200
"""Points per engine in one plot."""
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_INK = "#3c4650"
_GRID = "#e4e8ec"
_BUDGET = "#8a94a0"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the page's font
    "svg.hashsalt": "topcoat",  # the same report gives the same bytes
    "font.size": 10,
    "axes.edgecolor": "#b8c0c8",
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
}


def engine_colours(cells: Iterable[Cell]) -> dict[str, str]:
    """Return a colour per engine, the same in every plot and table."""
    engines = dict.fromkeys(cell.engine for cell in cells)
    return {engine: _ENGINE_COLOURS[i % len(_ENGINE_COLOURS)] for i, engine in enumerate(engines)}


def overview(cells: Sequence[Cell], colours: dict[str, str]) -> str:
    """Draw the median of every cell as a bar, and a whisker to its 99th percentile."""
    with matplotlib.rc_context(_STYLE):
        sizes = list(dict.fromkeys(cell.size for cell in cells))
        figure, (axes,) = _figure(10, 3.9, 1)
        width = 0.8 / len(colours)
        top = max(cell.percentile(99) for cell in cells)
        low = min(cell.percentile(50) for cell in cells)
        log = top / low > 15
        for i, (engine, colour) in enumerate(colours.items()):
            mine = [cell for cell in cells if cell.engine == engine]
            at = np.array([sizes.index(cell.size) for cell in mine])
            at = at + (i - (len(colours) - 1) / 2) * width
            medians = np.array([cell.percentile(50) for cell in mine])
            tails = np.array([cell.percentile(99) for cell in mine])
            axes.bar(at, medians, width * 0.88, color=colour, label=engine)
            axes.vlines(at, medians, tails, color=_INK, linewidth=1.2)
            axes.plot(at, tails, "_", color=_INK, markersize=8)
            for x, median, tail in zip(at, medians, tails, strict=True):
                axes.annotate(
                    _milliseconds(median),
                    (x, tail),
                    xytext=(0, 4),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
        if log:
            axes.set_yscale("log")
            axes.set_ylim(min(low, min(BUDGETS_MS.values())) / 1.8, top * 1.7)
            _plain_log_ticks(axes.yaxis)
        else:
            axes.set_ylim(0, max(top, *BUDGETS_MS.values()) * 1.15)
        axes.set_xlim(-0.55, len(sizes) - 0.45 + 0.12)
        labels = {budget: name for name, budget in BUDGETS_MS.items()}
        if not log and np.ptp(list(labels)) < 0.05 * axes.get_ylim()[1]:
            # Lines too close for a label each: the upper one speaks for all.
            together = ", ".join(labels[budget] for budget in sorted(labels))
            labels = dict.fromkeys(labels, "") | {max(labels): together}
        for budget, name in labels.items():
            axes.axhline(budget, color=_BUDGET, linestyle=(0, (5, 3)), linewidth=1, zorder=0.9)
            axes.annotate(
                name,
                (1, budget),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=9,
                color="#66707a",
            )
        axes.set_xticks(range(len(sizes)), sizes)
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("ms per frame" + (", logarithmic" if log else ""))
        axes.set_title("Median, with a whisker to the 99th percentile")
        figure.legend(loc="outside lower center", ncols=len(colours))
        return _svg(figure, "overview")


def steady(cells: Sequence[Cell], colours: dict[str, str], name: str) -> str:
    """Draw one frame size: every latency in order, and how many frames stay within how much."""
    with matplotlib.rc_context(_STYLE):
        figure, (left, right) = _figure(10, 3.6, 2)
        values = np.concatenate([cell.steady() for cell in cells])
        log = values.max() / values.min() > 15
        for cell in cells:
            latencies = cell.steady()
            colour = colours[cell.engine]
            # Engines run different numbers of frames in the same time, so the axis is time.
            clock = np.cumsum(latencies) / 1000
            shown_at, shown_ms = _thinned(clock, latencies)
            left.plot(
                shown_at,
                shown_ms,
                ".",
                color=colour,
                markersize=max(1.5, min(5.0, 60 / len(latencies) ** 0.5)),
                alpha=0.75,
                markeredgewidth=0,
            )
            ends = np.cumsum([sum(part) for part in cell.latencies_ms])[:-1] / 1000
            left.vlines(
                ends, 0, 0.03, transform=left.get_xaxis_transform(), color=colour, linewidth=1.5
            )
            ordered = np.sort(latencies)
            share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
            if len(ordered) > _POINTS:  # steps closer than a pixel
                kept = np.unique(np.linspace(0, len(ordered) - 1, _POINTS).round().astype(int))
                ordered, share = ordered[kept], share[kept]
            right.step(
                np.concatenate([ordered[:1], ordered]),
                np.concatenate([[0], share]),
                where="post",
                color=colour,
                linewidth=1.8,
                label=cell.engine,
            )
        high = max(values.max(), 1e-3)
        low = values.min()
        budgets = [ms for ms in BUDGETS_MS.values() if low / 3 <= ms <= high * 3]
        if log:
            left.set_yscale("log")
            right.set_xscale("log")
            span = (min([low, *budgets]) / 1.25, max([high, *budgets]) * 1.25)
            _plain_log_ticks(left.yaxis)
            _plain_log_ticks(right.xaxis)
        else:
            span = (0.0, max([high, *budgets]) * 1.06)
        left.set_ylim(*span)
        right.set_xlim(*span)
        for label, budget in BUDGETS_MS.items():
            if not span[0] < budget < span[1]:
                continue
            left.axhline(budget, color=_BUDGET, linestyle=(0, (5, 3)), linewidth=1)
            right.axvline(budget, color=_BUDGET, linestyle=(0, (5, 3)), linewidth=1)
            # Upright, the tighter budget's on the left of its line: the two lines may be close.
            tight = budget == min(BUDGETS_MS.values())
            right.annotate(
                label,
                (budget, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(-2 if tight else 2, 0),
                textcoords="offset points",
                ha="right" if tight else "left",
                va="bottom",
                rotation=90,
                fontsize=8,
                color="#66707a",
            )
        left.set_xlim(left=0)
        left.set_xlabel("seconds of measured time (ticks: a fresh process begins)")
        left.set_ylabel("ms per frame")
        thinned = any(len(cell.steady()) > _POINTS for cell in cells)
        what = "slowest and fastest of each stretch" if thinned else "every frame, in order"
        left.set_title(f"{cells[0].size}: {what}")
        right.set_ylim(0, 102)
        right.set_xlabel("ms per frame")
        right.set_ylabel("% of frames at most this slow")
        right.set_title("Distribution")
        figure.legend(loc="outside lower center", ncols=len(cells))
        return _svg(figure, name)


def cold(cells: Sequence[Cell]) -> str:
    """Draw the parts of every cell's cold start, one after the other."""
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _figure(10, 1.5 + 0.3 * len(cells), 1)
        starts = np.zeros(len(cells))
        rows = np.arange(len(cells))
        for part, colour in zip(COLD_PARTS, _PART_COLOURS, strict=True):
            lengths = np.array([cell.cold()[part] for cell in cells])
            axes.barh(rows, lengths, 0.66, left=starts, color=colour, label=part.replace("_", " "))
            starts += lengths
        for row, end, cell in zip(rows, starts, cells, strict=True):
            axes.annotate(
                f"{cell.cold()['total']:.0f} ms",
                (end, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(rows, [f"{cell.size}  {cell.engine}" for cell in cells])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, starts.max() * 1.1)
        axes.set_xlabel("ms from starting Python to the first finished frame (medians over rounds)")
        figure.legend(loc="outside lower center", ncols=len(COLD_PARTS))
        return _svg(figure, "cold")


def _thinned(at: _Floats, values: _Floats) -> tuple[_Floats, _Floats]:
    """Return at most about ``_POINTS`` points: of each stretch its fastest and slowest.

    A page with tens of thousands of points opens slowly, and one looks for the extremes.
    """
    if len(values) <= _POINTS:
        return at, values
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(values)), _POINTS // 2):
        kept |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    order = sorted(kept)
    return at[order], values[order]


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    # No pyplot: it would change the state of a host application's own plots.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _plain_log_ticks(axis: Any) -> None:  # noqa: ANN401 - XAxis or YAxis
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an <svg> element whose ids no other figure of the page has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    # The width and height in points would keep the drawing from following the page.
    return re.sub(
        r'^<svg([^>]*?) width="[^"]*"',
        r"<svg\1",
        re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1),
        count=1,
    )
