"""The page of an evaluation: the same crop of every picture, side by side, in one HTML file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from topcoat.train._evaluation_models import Model
from topcoat.train.evaluation import BICUBIC, Evaluation, PictureScores, PictureSet, Scores
from topcoat.train.metrics import Picture, luma
from topcoat.train.pictures import resize_longer_side

_TILE = 240
"""Width of an enlarged crop on the page, roughly: a whole multiple of the crop, in CSS pixels."""
_OVERVIEW = 340
"""Longer side of the picture that shows where the crop is."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of the original; every side is a multiple of the scale."""

    top: int
    left: int
    height: int
    width: int

    def of(self, picture: Picture, shrink: int = 1) -> Picture:
        """Cut it out; ``shrink`` for a picture that is so many times smaller."""
        top, left = self.top // shrink, self.left // shrink
        return picture[top : top + self.height // shrink, left : left + self.width // shrink]


def choose_crop(pictures: PictureSet, scale: int, side: int) -> Crop:
    """Find the square, of about ``side`` pixels, in which there is most to see.

    That is where bicubic loses most of the original, and where the methods depart most from
    bicubic, both measured on Y and counted the same; the first such place from the top left.
    Places are whole low-resolution pixels apart.
    """
    bicubic = luma(pictures.outputs[BICUBIC])
    others = [luma(p) for name, p in pictures.outputs.items() if name != BICUBIC]
    interest = np.zeros_like(bicubic)
    for group in ([luma(pictures.original)], others):
        departure = np.sum([np.abs(other - bicubic) for other in group], axis=0)
        if np.any(departure):  # each counts the same, however far a method's colours are off
            interest += departure / departure.mean()
    height, width = bicubic.shape[0] // scale, bicubic.shape[1] // scale
    cells = interest.reshape(height, scale, width, scale).sum(axis=(1, 3))  # (H/scale, W/scale)
    count = max(1, side // scale)
    tall, wide = min(count, height), min(count, width)
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
    windows: NDArray[np.float64] = (
        sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    )
    top, left = divmod(int(windows.argmax()), windows.shape[1])
    return Crop(top * scale, left * scale, tall * scale, wide * scale)


@dataclass
class Page:
    """Gathers crops while the evaluation runs, so that whole pictures need not be kept."""

    scale: int
    crop_size: int
    _shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: PictureScores, pictures: PictureSet) -> None:
        """Take what the page shows of one picture."""
        crop = choose_crop(pictures, self.scale, self.crop_size)
        height, width = pictures.original.shape[:2]
        zoom = max(1, round(_TILE / max(crop.width, crop.height)))
        small = pictures.low_resolution.shape
        tiles: list[dict[str, Any]] = [
            {
                "title": "low resolution",
                "image": _png(crop.of(pictures.low_resolution, self.scale)),
                "note": f"{small[1]}×{small[0]}, pixels as they are",
            }
        ]
        best = _best({name: row.scores[name] for name in pictures.outputs})
        for name, output in pictures.outputs.items():
            scores = row.scores[name]
            tiles.append(
                {
                    "title": name,
                    "image": _png(crop.of(output)),
                    "psnr": _decibel(scores.psnr_y),
                    "ssim": f"{scores.ssim_y:.4f}",
                    "lpips": "" if scores.lpips is None else f"{scores.lpips:.4f}",
                    "best": name in best["psnr_y"],
                }
            )
        tiles.append(
            {
                "title": "original",
                "image": _png(crop.of(pictures.original)),
                "note": f"{width}×{height}",
            }
        )
        self._shown.append(
            {
                "name": row.name,
                "overview": _jpeg(pictures.original),
                "cut": "" if row.file_size == row.size else "{}×{}".format(*row.file_size),
                "size": f"{width}×{height}",
                "crop": f"{crop.width}×{crop.height} at ({crop.left}, {crop.top})",
                "rectangle": {
                    "left": 100 * crop.left / width,
                    "top": 100 * crop.top / height,
                    "width": 100 * crop.width / width,
                    "height": 100 * crop.height / height,
                },
                "tile": (crop.width * zoom, crop.height * zoom),
                "zoom": zoom,
                "tiles": tiles,
            }
        )

    def render(self, title: str, evaluation: Evaluation, models: Sequence[Model]) -> str:
        """Return the page. Every text that comes from a file is escaped; nothing in it is run."""
        means = {name: evaluation.mean(name) for name in evaluation.methods}
        best = _best(means)
        described = {model.name: model for model in models}
        rows = []
        for name, mean in means.items():
            model = described.get(name)
            rows.append(
                {
                    "name": name,
                    "model": model,
                    "psnr": _decibel(mean.psnr_y),
                    "gain": "" if name == BICUBIC else _gain(mean, means[BICUBIC]),
                    "ssim": f"{mean.ssim_y:.4f}",
                    "lpips": "" if mean.lpips is None else f"{mean.lpips:.4f}",
                    "best": {measure for measure, names in best.items() if name in names},
                }
            )
        template = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        ).from_string(
            files("topcoat.train").joinpath("_evaluation_page.html").read_text(encoding="utf-8")
        )
        protocol = evaluation.protocol
        return template.render(
            title=title,
            protocol=protocol,
            rows=rows,
            warnings=[line for model in models for line in model.warnings(protocol.blur)],
            skipped=evaluation.skipped,
            versions=evaluation.versions,
            models=models,
            pictures=self._shown,
        )


def _best(scores: Mapping[str, Scores]) -> dict[str, set[str]]:
    """Names that lead in each measure."""
    best = {}
    for measure, sign in (("psnr_y", 1), ("ssim_y", 1), ("lpips", -1)):
        values = {name: getattr(row, measure) for name, row in scores.items()}
        known = [sign * value for value in values.values() if value is not None]
        best[measure] = {
            name
            for name, value in values.items()
            if value is not None and sign * value == max(known)
        }
    return best


def _decibel(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "∞"


def _gain(mean: Scores, bicubic: Scores) -> str:
    if not np.isfinite([mean.psnr_y, bicubic.psnr_y]).all():
        return ""
    gain = round(mean.psnr_y - bicubic.psnr_y, 2)
    return f"{gain:+.2f}".replace("-", "−") if gain else "0.00"


def _png(picture: Picture) -> str:
    return _data_uri(Image.fromarray(picture), "png", optimize=True)


def _jpeg(picture: Picture) -> str:
    """Only shows where the crop is: a tenth of a PNG's size."""
    image = Image.fromarray(picture)
    if max(image.size) > 2 * _OVERVIEW:
        image = resize_longer_side(image, 2 * _OVERVIEW)
    return _data_uri(image, "jpeg", quality=82, optimize=True)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:  # noqa: ANN401 - Pillow's
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
