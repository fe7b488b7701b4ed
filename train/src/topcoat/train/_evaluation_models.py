"""The networks under evaluation: read, checked and described."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from topcoat.train._errors import CheckpointError, RecipeError
from topcoat.train.checkpoint import load_checkpoint
from topcoat.train.evaluation import BICUBIC
from topcoat.train.networks import FrameNetwork
from topcoat.train.pictures import file_sha256

RESERVED = (BICUBIC, "original", "low-resolution")
"""Names of what every evaluation shows: a model cannot have one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What tells one trained network from another."""

    name: str
    file: str
    sha256: str
    network: str
    """Name in the registry of networks."""
    recipe: str
    loss: str
    blur: float | None
    """σ of the Gaussian before shrinking in training; None if the checkpoint does not say."""
    steps: int
    """Training steps done."""
    steps_planned: int | None
    """Steps of the recipe; None if the checkpoint does not say."""
    scale: int

    def warnings(self, blur: float) -> list[str]:
        """What a reader of the figures must know; ``blur`` is that of the evaluation."""
        lines = []
        if self.blur is not None and self.blur != blur:
            lines.append(
                f"{self.name} was trained with sigma {self.blur:g}, tested with sigma {blur:g}"
            )
        if self.steps_planned is not None and self.steps < self.steps_planned:
            lines.append(f"{self.name} stands at step {self.steps} of {self.steps_planned}")
        return lines


def parse_model(text: str) -> tuple[str, Path]:
    """Read ``FILE`` or ``NAME=FILE``; a file whose name holds a ``=`` is taken as it is.

    Raises:
        RecipeError: the name cannot be that of a column and a folder.
    """
    name, equals, file = text.partition("=")
    if not equals or Path(text).exists():
        name, file = Path(text).stem, text
    elif not name.strip() or not file:
        raise RecipeError(f"--model {text!r} is half a model; give FILE or NAME=FILE")
    path = Path(file)
    if name in RESERVED:
        raise RecipeError(
            f"a model cannot be called {name!r}, which is shown anyway; give --model NAME={path}"
        )
    if not name or len(name) > 60 or name[0] == "." or not set(name).isdisjoint('/\\:*?"<>|'):
        raise RecipeError(
            f"a model cannot be called {name!r}: a folder of its pictures may bear that name; give "
            f"--model NAME={path} with at most 60 plain characters"
        )
    return name, path


def load_models(given: Sequence[tuple[str, Path]]) -> list[tuple[Model, FrameNetwork]]:
    """Read the checkpoints of super-resolution networks.

    Raises:
        CheckpointError: a file is missing, no checkpoint, or not of super-resolution.
        RecipeError: two models have one name, or they enlarge by different factors.
    """
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(
                f"{names.count(name)} models are called {name!r}; tell them apart with "
                "--model NAME=FILE"
            )
    loaded = [_load(name, path) for name, path in given]
    scales = {model.scale for model, _ in loaded}
    if len(scales) > 1:
        each = ", ".join(f"{model.name} by {model.scale}" for model, _ in loaded)
        raise RecipeError(
            f"the models enlarge by different factors ({each}); evaluate each scale by itself"
        )
    return loaded


def _load(name: str, path: Path) -> tuple[Model, FrameNetwork]:
    if path.is_dir():
        what = "an exported bundle" if (path / "manifest.json").exists() else "a folder"
        raise CheckpointError(
            f"{path} is {what}, not a checkpoint; give the .pt file that train-sr wrote"
        )
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; give a .pt file that train-sr wrote")
    checkpoint = load_checkpoint(path)
    network = checkpoint.build_network()
    if network.scale == 1:
        raise CheckpointError(
            f"{path} was trained for {checkpoint.task!r} and does not enlarge; give a .pt file "
            "that train-sr wrote"
        )
    recipe = checkpoint.recipe
    blur, steps = recipe.get("blur"), recipe.get("steps")
    model = Model(
        name=name,
        file=path.name,
        sha256=file_sha256(path),
        network=str(checkpoint.network["name"]),
        recipe=str(recipe.get("name", "unknown")),
        loss=str(recipe.get("loss", "unknown")),
        blur=float(blur) if isinstance(blur, int | float) else None,
        steps=checkpoint.step,
        steps_planned=steps if isinstance(steps, int) else None,
        scale=network.scale,
    )
    return model, network
