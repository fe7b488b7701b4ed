"""One picture of many optimisations: rows and columns of recipe fields, as the papers print them.

Figures 4, 5 and 6 of Gatys, Ecker, Bethge 2016 (CVPR) are such sheets: the ratio of content to
style, the content layer, the picture to start from.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from PIL import Image, ImageDraw, ImageFont

from topcoat.train._errors import OutputError, RecipeError
from topcoat.train._files import written_whole
from topcoat.train._optimize_sources import Sources, known_file
from topcoat.train.losses import perceptual_network
from topcoat.train.optimize import OptimizeOutcome, OptimizeRun, optimize_image, write_picture
from topcoat.train.recipes import OptimizeRecipe

MOST_CELLS = 64
_THUMBNAIL = 320
_MARGIN, _GAP, _LINE = 10, 8, 22


@dataclass(frozen=True)
class Axis:
    """A recipe's field and the values that it takes."""

    field: str
    values: tuple[Any, ...]


def axis(text: str) -> Axis:
    """Read ``FIELD=A,B,…``; of a field that is a list itself, values are parted by ``/``.

    Raises:
        RecipeError: no such field, fewer than two values, or one that is not of its type.

    >>> axis("strength=0.1,1")
    Axis(field='strength', values=(0.1, 1.0))
    >>> axis("style_layers=relu1_1/relu1_1,relu2_1").values
    (('relu1_1',), ('relu1_1', 'relu2_1'))
    """
    name, _, given = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    known = [entry.name for entry in dataclasses.fields(OptimizeRecipe) if entry.name != "name"]
    if name not in known:
        raise RecipeError(f"--sweep {text}: no field {name!r}; choose among {', '.join(known)}")
    hint = get_type_hints(OptimizeRecipe)[name]
    is_list = getattr(hint, "__origin__", None) is tuple
    parts = [part.strip() for part in given.split("/" if is_list else ",") if part.strip()]
    if len(parts) < 2:
        apart = "/" if is_list else ","
        raise RecipeError(f"--sweep {text}: give two values or more, {name}=A{apart}B")
    try:
        values: tuple[Any, ...]
        if is_list:
            item = get_args(hint)[0]
            values = tuple(tuple(item(v) for v in part.split(",")) for part in parts)
        else:
            kind = hint if hint in (int, float) else str
            values = tuple(kind(part) for part in parts)
    except ValueError:
        raise RecipeError(f"--sweep {text}: the values of {name} are numbers") from None
    return Axis(name, values)


def cells(recipe: OptimizeRecipe, axes: Sequence[Axis]) -> list[list[OptimizeRecipe]]:
    """The recipe of every cell, row by row: the first axis runs across, the second down.

    Raises:
        RecipeError: a value is out of range or would change nothing, or there are too many cells.
    """
    if len(axes) > 2:
        raise RecipeError(f"--sweep was given {len(axes)} times; a sheet has two axes at most")
    across = axes[0]
    down = axes[1] if len(axes) > 1 else Axis("", ("",))
    if across.field == down.field:
        raise RecipeError(f"--sweep names {across.field} twice; give two different fields")
    count = len(across.values) * len(down.values)
    if count > MOST_CELLS:
        raise RecipeError(f"{count} cells are more than {MOST_CELLS}; give fewer values")
    rows = []
    idle = {across.field, down.field} - {""}
    for low in down.values:
        row = []
        for value in across.values:
            changes = {across.field: value} | ({down.field: low} if down.field else {})
            row.append(dataclasses.replace(recipe, **changes))
            idle &= row[-1].idle_fields()
        rows.append(row)
    if idle:  # in every cell: where one axis turns a loss off, the other rests there
        raise RecipeError(
            f"--sweep of {', '.join(sorted(idle))} would change nothing in this recipe; "
            "see --show-recipe"
        )
    return rows


def sweep(
    run: OptimizeRun,
    axes: Sequence[Axis],
    on_cell: Callable[[str, OptimizeOutcome | None], None] = lambda *_: None,
) -> list[list[OptimizeOutcome]]:
    """Optimise every cell, then write the sheet and, beside it, a JSON file of the losses.

    The cells' own pictures lie in ``OUTPUT.sweep/``; one that is there with the same recipe is
    kept if it was made from the same files, so that an interrupted sweep goes on where it was.

    Args:
        run: as for one picture; its output is the sheet.
        axes: one or two.
        on_cell: is told what is about to be done, and then what came out of it.

    Raises:
        TopcoatError: see :func:`optimize_image`.
        KeyboardInterrupt: it was interrupted; finished cells are kept.
    """
    rows = cells(run.recipe, axes)
    weights: dict[tuple[object, ...], dict[str, str]] = {}
    inputs = [[_checked(run, recipe, weights) for recipe in row] for row in rows]
    output = run.settings.output
    folder = output.with_suffix(".sweep")
    found: list[list[OptimizeOutcome]] = []
    for number, row in enumerate(rows):
        found.append([])
        for column, recipe in enumerate(row):
            picture = folder / f"row{number + 1}_column{column + 1}.png"
            label = _label(axes, number, column)
            known = _known_cell(picture, recipe, inputs[number][column])
            if known is None:
                on_cell(label, None)
                settings = dataclasses.replace(
                    run.settings, output=picture, preview_every=0, prefix=f"{label} "
                )
                known = optimize_image(
                    dataclasses.replace(run, recipe=recipe, settings=settings, resume=None)
                )
                if not known.finished:
                    if known.state is not None:
                        known.state.unlink()  # a cell is short: it begins again
                    raise KeyboardInterrupt
                values = _cell_json(known, recipe) | {"inputs": inputs[number][column]}
                _write_json(picture.with_suffix(".json"), values)
            found[-1].append(known)
            on_cell(label, known)
    sheet = draw_sheet(
        [[Image.open(cell.output).convert("RGB") for cell in row] for row in found], axes
    )
    write_picture(sheet, output)
    listing = [
        {
            **{axes[0].field: axes[0].values[column]},
            **({axes[1].field: axes[1].values[number]} if len(axes) > 1 else {}),
            **_cell_json(cell, rows[number][column]),
        }
        for number, row in enumerate(found)
        for column, cell in enumerate(row)
    ]
    base = run.recipe.to_dict()
    _write_json(output.with_suffix(".json"), {"recipe": base, "cells": listing})
    return found


def _checked(
    run: OptimizeRun, recipe: OptimizeRecipe, weights: dict[tuple[object, ...], dict[str, str]]
) -> dict[str, Any]:
    """What a cell is made from; finds out before the first one whether all of them can be done.

    ``weights`` remembers the loss networks that were tried.
    """
    inputs = Sources(run.content, run.styles, recipe).inputs
    network = (recipe.loss_network, recipe.loss_convention(), recipe.layers())
    if network not in weights:
        plain = dataclasses.replace(recipe, loss_activations="plain")
        weights[network] = known_file(perceptual_network(plain, run.loss_weights)[1])
    return {**inputs, "loss_weights": weights[network]}


def draw_sheet(rows: Sequence[Sequence[Image.Image]], axes: Sequence[Axis]) -> Image.Image:
    """Lay pictures out with the axes' names and values beside them.

    Args:
        rows: pictures, one list for each value of the second axis (or one list).
        axes: the first runs across, the second down.
    """
    font = ImageFont.load_default(size=15)
    small = [[_thumbnail(picture) for picture in row] for row in rows]
    wide = max(picture.width for row in small for picture in row)
    high = max(picture.height for row in small for picture in row)
    left = _MARGIN
    if len(axes) > 1:
        texts = [_shown(axes[1].field), *map(_shown, axes[1].values)]
        left += round(max(font.getlength(text) for text in texts)) + _GAP
    top = _MARGIN + 2 * _LINE
    columns = len(axes[0].values)
    sheet = Image.new(
        "RGB",
        (left + columns * (wide + _GAP) - _GAP + _MARGIN, top + len(small) * (high + _GAP) + 2),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    middle = left + (columns * (wide + _GAP) - _GAP) / 2
    draw.text((middle, _MARGIN), _shown(axes[0].field), "black", font, anchor="ma")
    if len(axes) > 1:
        draw.text((_MARGIN, _MARGIN + _LINE), _shown(axes[1].field), "black", font)
    for column, value in enumerate(axes[0].values):
        centre = left + column * (wide + _GAP) + wide / 2
        draw.text((centre, _MARGIN + _LINE), _shown(value), "black", font, anchor="ma")
    for number, row in enumerate(small):
        y = top + number * (high + _GAP)
        if len(axes) > 1:
            value = _shown(axes[1].values[number])
            draw.text((_MARGIN, y + high / 2), value, "black", font, anchor="lm")
        for column, picture in enumerate(row):
            sheet.paste(picture, (left + column * (wide + _GAP), y))
    return sheet


def _thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return small


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("_", " ") if not str(value).startswith("relu") else str(value)


def _label(axes: Sequence[Axis], row: int, column: int) -> str:
    parts = [f"{axes[0].field}={_shown(axes[0].values[column])}"]
    if len(axes) > 1:
        parts.append(f"{axes[1].field}={_shown(axes[1].values[row])}")
    return " ".join(parts)


def _cell_json(outcome: OptimizeOutcome, recipe: OptimizeRecipe) -> dict[str, Any]:
    return {
        "losses": outcome.losses,
        "steps": outcome.steps,
        "stalled": outcome.stalled,
        "seconds": round(outcome.seconds, 1),
        "size": list(outcome.size),
        "cell_recipe": recipe.to_dict(),
    }


def _known_cell(
    picture: Path, recipe: OptimizeRecipe, inputs: dict[str, Any]
) -> OptimizeOutcome | None:
    """A cell of an earlier, interrupted sweep; None if it has to be done."""
    try:
        values = json.loads(picture.with_suffix(".json").read_text())
        same = values["cell_recipe"] == recipe.to_dict() and values["inputs"] == inputs
        if not same or not picture.is_file():
            return None
        return OptimizeOutcome(
            output=picture,
            size=(values["size"][0], values["size"][1]),
            finished=True,
            steps=values["steps"],
            losses=values["losses"],
            history=[],
            seconds=values["seconds"],
            stalled=values["stalled"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    try:
        with written_whole(path) as file:
            file.write((json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; give another place with --output"
        ) from None
