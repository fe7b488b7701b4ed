"""What every recipe can do: say why each field exists, be stored, be compared, be checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_type_hints

from topcoat.train._errors import RecipeError


def setting(default: Any, reason: str) -> Any:  # noqa: ANN401 - a dataclass field of any type
    """A field with the reason for its existence, which --help and the docs print."""
    return field(default=default, metadata={"reason": reason})


def choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """Fields whose value is one of a few, read off their Literal type."""
    return {
        name: get_args(hint)
        for name, hint in get_type_hints(cls).items()
        if getattr(hint, "__origin__", None) is Literal
    }


class Recipe:
    """Base of the recipes: frozen dataclasses, stored whole in the checkpoint."""

    __slots__ = ()

    network_fields: ClassVar[Mapping[str, Sequence[str]]]
    """Network's name -> the recipe's fields that are settings of it."""

    name: str
    network: str
    loss_network: Literal["vgg16", "vgg19"]
    loss_input: Literal["auto", "oxford", "imagenet"]
    steps: int
    batch: int
    learning_rate: float
    schedule: Literal["constant", "cosine"]
    precision: Literal["auto", "fp32", "bf16"]
    seed: int

    def check(self, *weights: str) -> None:
        """Check what all recipes have, and that the named weights are weights.

        Raises:
            RecipeError: a field is out of range.
        """
        for name, allowed in choices(type(self)).items():
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"{name} must be one of {', '.join(map(str, allowed))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise RecipeError(f"seed must be 0 or more and below 2**63, got {self.seed}")
        if not 0 < self.learning_rate < 1:
            raise RecipeError(
                f"learning_rate must lie in (0, 1), got {self.learning_rate}; try 1e-3"
            )
        for name in weights:
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise RecipeError(f"{name} must be 0 or more and finite, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint or JSON."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload] # subclasses are dataclasses
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`.

        Raises:
            RecipeError: a field that this version does not know, or a value out of range.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise RecipeError(f"unknown recipe field {', '.join(unknown)}; update topcoat-train")
        plain: dict[str, Any]
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def network_settings(self) -> dict[str, Any]:
        """The part that :func:`topcoat.train.networks.build_network` takes."""
        return {name: getattr(self, name) for name in self.network_fields[self.network]}

    def idle_fields(self) -> set[str]:
        """Fields that this recipe has no use for: settings of other networks, say."""
        used = set(self.network_fields[self.network])
        return {name for names in self.network_fields.values() for name in names} - used

    def loss_convention(self) -> Literal["oxford", "imagenet"]:
        """``loss_input`` with ``auto`` resolved."""
        if self.loss_input == "auto":
            return "oxford" if self.loss_network == "vgg16" else "imagenet"
        return self.loss_input


R = TypeVar("R", bound=Recipe)


def recipe(name: str, among: Mapping[str, R]) -> R:
    """Look a recipe up.

    Raises:
        RecipeError: no recipe of that name; the message lists them.
    """
    if name not in among:
        raise RecipeError(f"no recipe {name!r}; choose among {', '.join(among)}")
    return among[name]


def difference(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Fields in which two recipes of a kind differ, with both values, ``name`` aside.

    >>> from dataclasses import replace
    >>> from topcoat.train.recipes import STYLE_RECIPES
    >>> difference(STYLE_RECIPES["modern"], replace(STYLE_RECIPES["modern"], width=16))
    {'width': (32, 16)}
    """
    first, second = a.to_dict(), b.to_dict()
    return {
        name: (first[name], second[name])
        for name in first
        if name != "name" and first[name] != second[name]
    }
