"""The pictures of an optimisation: read and checked once, and what they become at each size."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from topcoat.train._errors import PictureError, RecipeError
from topcoat.train.colours import grey, matched_luminance, recoloured, with_colours_of
from topcoat.train.frames import frame_image, frame_tensor
from topcoat.train.losses import LossNetwork, StyleTarget, style_target
from topcoat.train.pictures import file_sha256, open_photograph, resize_longer_side
from topcoat.train.recipes import STARTS, OptimizeRecipe
from topcoat.train.style_pictures import StylePicture, load_style

_LEAST_SIDE = 16
"""Shorter side at the smallest size: VGG halves four times on the way to relu5_1."""
_LEAST_COVER = 16
"""Of 255, what a mask has to cover of some pixel at the smallest size."""
_ASPECT_TOLERANCE = 0.02
"""A mask may be of another size than its picture, not of another shape."""


@dataclass(frozen=True, kw_only=True)
class StyleInput:
    """A style picture and where it is to go."""

    picture: StylePicture
    source: str
    """The path or name that it was read from."""
    weight: float = 1.0
    """Among several styles."""
    where: Path | None = None
    """Mask over the content, white where this style is to go; None: everywhere."""
    part: Path | None = None
    """Mask over the style picture, white where it is the style; None: all of it."""


@dataclass(kw_only=True)
class Scene:
    """The pictures at one size, as tensors."""

    start: Tensor
    content: Tensor | None
    """What the content loss compares with."""
    colours: Tensor | None
    """Where the colours are taken from at the end, if the lightness alone is repainted."""
    targets: list[StyleTarget]


class Sources:
    """The pictures as they were read.

    Args:
        content: the photograph; None for a reconstruction of style alone.
        styles: from :func:`read_style`.
        recipe: says which of them count, and how.

    Raises:
        PictureError: a picture or mask cannot be used.
        RecipeError: what is asked for does not go together.
    """

    inputs: dict[str, Any]
    """Paths and hashes of the files: what resuming checks."""

    def __init__(
        self, content: Path | None, styles: Sequence[StyleInput], recipe: OptimizeRecipe
    ) -> None:
        self.recipe = recipe
        self.styles = list(styles)
        self.content = None if content is None else open_photograph(content)
        styled = recipe.uses_style() or recipe.uses_histogram()
        if recipe.content_weight and self.content is None:
            raise RecipeError("content counts in this recipe; give a photograph")
        if styled and not self.styles:
            raise RecipeError("style counts in this recipe; give a style picture")
        if recipe.colours != "style" and (self.content is None or not styled):
            raise RecipeError(
                f"colours {recipe.colours} needs a photograph and a style; leave --colours out"
            )
        if self.content is None and any(style.where for style in self.styles):
            raise RecipeError("a mask says where on the photograph; give one, or no --mask")
        self.file: Image.Image | None = None
        if recipe.start not in STARTS:
            self.file = _start_picture(recipe.start)
        if recipe.start == "content" and self.content is None:
            raise RecipeError("there is no photograph to start from; --start noise or style")
        if recipe.start == "style" and not self.styles:
            raise RecipeError("there is no style picture to start from; --start noise or content")
        shape = self.content or self.styles[0].picture.image
        self.shape = shape.size
        self.masks = [
            (
                None if style.where is None else read_mask(style.where, self.shape, "photograph"),
                None
                if style.part is None
                else read_mask(style.part, style.picture.image.size, "style picture"),
            )
            for style in self.styles
        ]
        self._check_sides()
        self._check_masks()
        self.inputs = {
            "content": None if content is None else known_file(content),
            "styles": [
                {
                    "source": style.source
                    if not Path(style.source).exists()
                    else os.fspath(Path(style.source).resolve()),
                    "sha256": style.picture.sha256,
                    "weight": style.weight,
                    "where": None if style.where is None else known_file(style.where),
                    "part": None if style.part is None else known_file(style.part),
                }
                for style in self.styles
            ],
            "start": None if self.file is None else known_file(Path(recipe.start)),
        }

    def at(self, size: int, network: LossNetwork, device: torch.device) -> Scene:
        """The pictures with the result's longer side at ``size`` pixels."""
        recipe = self.recipe
        width, height = _scaled(self.shape, size)
        content = None if self.content is None else _tensor(self.content, (width, height), device)
        style_size = round((recipe.style_size or recipe.size) * size / recipe.size)
        pictures = [
            frame_tensor(resize_longer_side(style.picture.image, style_size)).to(device)
            for style in self.styles
        ]
        colours = None
        if recipe.colours == "luminance":
            assert content is not None
            colours = content
            pictures = [matched_luminance(picture, content) for picture in pictures]
            content = grey(content)
        elif recipe.colours == "histogram":
            assert content is not None
            pictures = [recoloured(picture, content) for picture in pictures]
        if self.file is not None:
            start = _tensor(self.file, (width, height), device)
        elif recipe.start == "content":
            assert content is not None
            start = content
        elif recipe.start == "style":
            start = F.interpolate(
                pictures[0], size=(height, width), mode="bicubic", antialias=True
            ).clamp(0, 1)
        else:
            generator = torch.Generator().manual_seed(recipe.seed)
            start = torch.rand((1, 3, height, width), generator=generator).to(device)
        if colours is not None:
            start = grey(start)
        return Scene(
            start=start.contiguous(),
            content=content if recipe.content_weight else None,
            colours=colours,
            targets=self._targets(network, pictures, (width, height), device),
        )

    def finished(self, frame: Tensor, scene: Scene) -> Image.Image:
        """The picture to write: 8 bits, with the colours that it is to have."""
        return frame_image(
            frame if scene.colours is None else with_colours_of(frame, scene.colours)
        )

    def _targets(
        self,
        network: LossNetwork,
        pictures: list[Tensor],
        size: tuple[int, int],
        device: torch.device,
    ) -> list[StyleTarget]:
        if not (self.recipe.uses_style() or self.recipe.uses_histogram()):
            return []
        # Shares are relative: 2,1 and 200,100 are the same picture.
        even = len(self.styles) / sum(style.weight for style in self.styles)
        everywhere = sum(where is None for where, _ in self.masks)
        targets: list[StyleTarget] = []
        for style, picture, (where, part) in zip(self.styles, pictures, self.masks, strict=True):
            over_style = None
            if part is not None:
                over_style = _mask_tensor(part, (picture.shape[3], picture.shape[2]), device)
            target = style_target(network, picture, self.recipe, over_style)
            # Styles that share the picture divide it among them; a region is a style's own.
            if where is None:
                targets.append(replace(target, weight=even * style.weight / everywhere))
            else:
                over_content = _mask_tensor(where, size, device)
                targets.append(replace(target, weight=even * style.weight, mask=over_content))
        return targets

    def _check_masks(self) -> None:
        """A region that vanishes at the smallest size has no statistics: nothing to divide by."""
        smallest = self.recipe.sizes()[0]
        style_size = (self.recipe.style_size or self.recipe.size) * smallest / self.recipe.size
        for style, (where, part) in zip(self.styles, self.masks, strict=True):
            for path, mask, shape, size in (
                (style.where, where, self.shape, smallest),
                (style.part, part, style.picture.image.size, round(style_size)),
            ):
                if mask is None:
                    continue
                width, height = _scaled(shape, size)
                small = mask.resize((width, height), Image.Resampling.BOX)
                if int(np.asarray(small).max()) < _LEAST_COVER:
                    raise PictureError(
                        f"mask {path} has next to nothing left at {width}x{height}, the smallest "
                        "size worked at; paint more of it white, give fewer numbers to --steps, or "
                        "a larger --size"
                    )

    def _check_sides(self) -> None:
        smallest = self.recipe.sizes()[0]
        shapes = [("the result", self.shape, smallest)]
        style_size = (self.recipe.style_size or self.recipe.size) * smallest / self.recipe.size
        shapes += [
            (f"style picture {style.source}", style.picture.image.size, round(style_size))
            for style in self.styles
        ]
        for what, shape, size in shapes:
            width, height = _scaled(shape, size)
            if min(width, height) < _LEAST_SIDE:
                raise PictureError(
                    f"{what} would be {width}x{height} at the smallest size, wanted: at least "
                    f"{_LEAST_SIDE} pixels on the short side; crop it, give fewer numbers to "
                    "--steps, or a larger --size"
                )


def read_style(
    source: str | os.PathLike[str],
    weight: float = 1.0,
    where: Path | None = None,
    part: Path | None = None,
) -> StyleInput:
    """Read a style picture by path or built-in name.

    Raises:
        PictureError: see :func:`load_style`.
        RecipeError: the weight is not positive.
    """
    if not 0 < weight < math.inf:
        raise RecipeError(f"a style's share must be positive and finite, got {weight}")
    return StyleInput(
        picture=load_style(source), source=os.fspath(source), weight=weight, where=where, part=part
    )


def read_mask(path: Path, size: tuple[int, int], of: str) -> Image.Image:
    """Read a mask: white counts, black does not, grey counts in part.

    Args:
        path: a picture file; colour is made grey.
        size: width and height of the picture that it lies over.
        of: what that picture is; named in the error.

    Raises:
        PictureError: it cannot be read, has another shape than its picture, or is black.
    """
    mask = open_photograph(path).convert("L")
    ratio = (mask.width / mask.height) / (size[0] / size[1])
    if abs(ratio - 1) > _ASPECT_TOLERANCE and (
        abs(mask.width * size[1] / size[0] - mask.height) > 1
    ):
        raise PictureError(
            f"mask {path} is {mask.width}x{mask.height}, its {of} {size[0]}x{size[1]}: they differ "
            "in shape; make the mask over that picture"
        )
    if int(np.asarray(mask).max()) < 128:
        raise PictureError(
            f"mask {path} is empty: nothing in it is brighter than half; paint white where the "
            f"{of} counts"
        )
    return mask


def _start_picture(start: str) -> Image.Image:
    path = Path(start)
    if not path.exists() and not path.suffix:
        raise RecipeError(
            f"start must be {', '.join(STARTS)} or a picture file, got {start!r}; no such file"
        )
    return open_photograph(path)


def known_file(path: Path) -> dict[str, str]:
    """What resuming knows a file by: ``path`` and ``sha256``."""
    return {"path": os.fspath(path.resolve()), "sha256": file_sha256(path)}


def _scaled(shape: tuple[int, int], size: int) -> tuple[int, int]:
    factor = size / max(shape)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _tensor(image: Image.Image, size: tuple[int, int], device: torch.device) -> Tensor:
    return frame_tensor(image.resize(size, Image.Resampling.LANCZOS)).to(device)


def _mask_tensor(mask: Image.Image, size: tuple[int, int], device: torch.device) -> Tensor:
    values = np.asarray(mask.resize(size, Image.Resampling.BOX), np.float32) / 255
    return torch.from_numpy(values)[None, None].to(device)
