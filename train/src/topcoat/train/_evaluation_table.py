"""The table of an evaluation for the screen."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topcoat.train._evaluation_models import Model
    from topcoat.train.evaluation import Evaluation, Scores

_CELL = 6
"""Characters of a figure."""
_NAME_MAX = 40
"""Characters of a picture's name; of a longer one the end is shown."""
_GAP = "   "
"""Between groups of columns."""

_Measure = tuple[str, Callable[["Scores"], str]]


def table(title: str, evaluation: "Evaluation", models: Sequence["Model"], columns: int) -> str:
    """Show every figure where the screen is wide enough, else the means and each picture's PSNR.

    Args:
        title: of the set.
        evaluation: what came out.
        models: for the warnings about them.
        columns: of the screen.

    Returns:
        A head, the table or tables, and what to know about them. Lines can be longer than
        ``columns`` where there are more methods than fit in a row.
    """
    protocol = evaluation.protocol
    shrunk = f"blurred with sigma {protocol.blur:g}, " if protocol.blur else ""
    count = len(evaluation.pictures)
    head = (
        f"{title}, {count} picture{'s' * (count != 1)}, ×{protocol.scale}: {shrunk}shrunk by "
        f"bicubic; Y, border {protocol.border}"
    )
    measures: list[_Measure] = [
        ("PSNR", lambda row: f"{row.psnr_y:{_CELL}.2f}"),
        ("SSIM", lambda row: f"{row.ssim_y:{_CELL}.4f}"),
    ]
    if protocol.lpips:
        measures.append(("LPIPS", lambda row: f"{row.lpips:{_CELL}.4f}"))
    rows = {picture.name: picture.scores for picture in evaluation.pictures}
    mean = {name: evaluation.mean(name) for name in evaluation.methods}
    lines = _grouped(rows, mean, measures)
    if max(map(len, lines)) > columns:
        lines = [*_means(mean, measures), "", *_per_picture(rows, mean, measures[0])]
    return "\n".join([head, "", *lines, "", *_notes(evaluation, models)])


def _grouped(
    rows: Mapping[str, Mapping[str, "Scores"]],
    mean: Mapping[str, "Scores"],
    measures: Sequence[_Measure],
) -> list[str]:
    """A row per picture and one for the mean, a group of columns per method."""
    heads = "  ".join(f"{title:>{_CELL}}" for title, _ in measures)
    width = {name: max(len(name), len(heads)) for name in mean}
    first = max(len(_short(name)) for name in (*rows, "mean"))

    def line(name: str, cells: Mapping[str, str]) -> str:
        return f"{name:{first}}" + "".join(f"{_GAP}{c:>{width[m]}}" for m, c in cells.items())

    def figures(row: Mapping[str, "Scores"]) -> dict[str, str]:
        return {m: "  ".join(show(row[m]) for _, show in measures) for m in mean}

    lines = [line("", {m: m for m in mean}), line("", dict.fromkeys(mean, heads))]
    lines += [line(_short(name), figures(row)) for name, row in rows.items()]
    return [*lines, "-" * len(lines[0]), line("mean", figures(mean))]


def _means(mean: Mapping[str, "Scores"], measures: Sequence[_Measure]) -> list[str]:
    """A numbered row per method."""
    first = max(len(name) for name in (*mean, "mean of"))
    digits = len(str(len(mean)))
    titles = (f"{title:>{_CELL}}" for title, _ in measures)
    lines = ["  ".join([" " * digits, f"{'mean of':{first}}", *titles])]
    for number, (name, row) in enumerate(mean.items(), 1):
        cells = (show(row) for _, show in measures)
        lines.append("  ".join([f"{number:{digits}}", f"{name:{first}}", *cells]))
    return lines


def _per_picture(
    rows: Mapping[str, Mapping[str, "Scores"]], mean: Mapping[str, "Scores"], measure: _Measure
) -> list[str]:
    """One measure: a row per picture, a column per method's number."""
    title, show = measure
    head = f"{title} by picture"
    first = max(len(_short(name)) for name in (*rows, head))
    lines = ["  ".join([f"{head:{first}}", *(f"{n:{_CELL}}" for n in range(1, len(mean) + 1))])]
    for name, row in rows.items():
        lines.append("  ".join([f"{_short(name):{first}}", *(show(row[m]) for m in mean)]))
    return [*lines, "(every figure: --json, --page)"]


def _notes(evaluation: "Evaluation", models: Sequence["Model"]) -> list[str]:
    protocol, count = evaluation.protocol, len(evaluation.pictures)
    notes = [f"warning: {line}" for model in models for line in model.warnings(protocol.blur)]
    cut = sum(picture.file_size != picture.size for picture in evaluation.pictures)
    if cut:
        notes.append(
            f"{cut} of {count} were cut at the right or bottom to multiples of {protocol.scale}"
        )
    if evaluation.skipped:
        left_out = len(evaluation.skipped)
        notes.append(f"warning: {left_out} of {count + left_out} pictures are not in the mean")
    if protocol.match_histogram:
        notes.append("outputs of models have the histogram of the small picture")
    notes.append(f"LPIPS: {protocol.lpips}" if protocol.lpips else protocol.lpips_missing)
    return notes


def _short(name: str) -> str:
    return name if len(name) <= _NAME_MAX else f"…{name[1 - _NAME_MAX :]}"
