"""What every recipe can do: say why each field exists, be stored, be compared, be checked."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Base of all recipes: frozen dataclasses, stored whole beside what they made."""

    title: ClassVar[str] = "recipe"
    """How help calls the fields that a class of recipes adds."""
    without: ClassVar[tuple[str, ...]] = ()
    """Inherited fields that recipes of this kind have no use for, and no options."""

    name: str = setting("modern", "name of the recipe that the run started from")

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
        for name in weights:
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise RecipeError(f"{name} must be 0 or more and finite, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint or JSON."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`.

        Raises:
            RecipeError: a field that this version does not know, or a value out of range.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise RecipeError(f"unknown recipe field {', '.join(unknown)}; update topcoat-train")
        plain: dict[str, Any]
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def idle_fields(self) -> set[str]:
        """Fields that this recipe has no use for: settings of other networks, say."""
        return set(self.without)

    def owners(self, fields: Collection[str]) -> list[str]:
        """What the given fields would belong to, if anything: names of other networks."""
        return []


@dataclass(frozen=True, kw_only=True)
class LossRecipe(Recipe):
    """What every objective has that may look at features of a loss network."""

    title: ClassVar[str] = "objective"

    loss_network: Literal["vgg16", "vgg19", "embedded"] = setting(
        "vgg16",
        "network whose features are compared; embedded: a small student of vgg16 that is installed "
        "with topcoat-train",
    )
    loss_input: Literal["auto", "oxford", "imagenet"] = setting(
        "auto",
        "input that the loss weights want: oxford (0-255, mean subtracted; auto for vgg16 and "
        "embedded) or imagenet (torchvision's own; auto for vgg19)",
    )
    tv_weight: float = setting(0.0, "weight of total variation")
    tv_form: Literal["mean", "paper", "l1"] = setting(
        "mean",
        "how total variation is summed: mean of squared differences; half their sum on 0-255, as "
        "published; l1: mean of absolute differences",
    )

    def check(self, *weights: str) -> None:
        """As :meth:`Recipe.check`, and that the input fits the loss network.

        Raises:
            RecipeError: a field is out of range, or two do not go together.
        """
        super().check(*weights)
        if self.loss_network == "embedded" and self.loss_input == "imagenet":
            raise RecipeError(
                "loss_input must be oxford for the embedded loss network, which learnt from "
                "VGG16's Oxford weights, got imagenet; leave it out"
            )

    def loss_convention(self) -> Literal["oxford", "imagenet"]:
        """``loss_input`` with ``auto`` resolved."""
        if self.loss_input == "auto":
            return "imagenet" if self.loss_network == "vgg19" else "oxford"
        return self.loss_input

    def layers(self) -> tuple[str, ...]:
        """Every layer of the loss network that the objective reads; kinds of recipe add theirs."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(LossRecipe):
    """What every trained network has: its name and settings, and how long it is trained."""

    title: ClassVar[str] = "training"

    network_fields: ClassVar[Mapping[str, Sequence[str]]]
    """Network's name -> the recipe's fields that are settings of it."""

    network: Any

    steps: int = setting(4000, "optimiser steps")
    batch: int = setting(4, "pictures per step, over all processes")
    learning_rate: float = setting(2e-3, "Adam's step size at its highest")
    schedule: Literal["constant", "cosine", "ulyanov2016", "ulyanov2017"] = setting(
        "cosine",
        "cosine: short warm-up, then down to zero by the last step; ulyanov2016: x 0.7 at step "
        "1000 and every 200 after; ulyanov2017: x 0.8 every 2000",
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "auto: bf16 autocast where the processor computes in it, else fp32"
    )
    seed: int = setting(0, "seeds the weights, the order of pictures and their crops")

    def check(self, *weights: str) -> None:
        """As :meth:`Recipe.check`, and the numbers of the training itself.

        Raises:
            RecipeError: a field is out of range.
        """
        super().check(*weights)
        for name in ("steps", "batch"):
            check_count(name, getattr(self, name))
        check_seed(self.seed)
        check_learning_rate(self.learning_rate)

    def network_settings(self) -> dict[str, Any]:
        """The part that :func:`topcoat.train.networks.build_network` takes."""
        return {name: getattr(self, name) for name in self.network_fields[self.network]}

    def idle_fields(self) -> set[str]:
        """Fields that this recipe has no use for: settings of other networks, say."""
        used = set(self.network_fields[self.network])
        return super().idle_fields() | (
            {name for names in self.network_fields.values() for name in names} - used
        )

    def owners(self, fields: Collection[str]) -> list[str]:
        """Names of the networks that have all of the given fields as settings."""
        return [name for name, own in self.network_fields.items() if set(fields) <= set(own)]


def check_count(name: str, value: int) -> None:
    """Refuse a count below 1.

    Raises:
        RecipeError: it is.
    """
    if value < 1:
        raise RecipeError(f"{name} must be at least 1, got {value}")


def check_seed(seed: int) -> None:
    """Refuse a seed that the random generators would not take.

    Raises:
        RecipeError: it is negative or has more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise RecipeError(f"seed must be 0 or more and below 2**63, got {seed}")


def check_learning_rate(rate: float) -> None:
    """Refuse a learning rate that is none.

    Raises:
        RecipeError: it does not lie between 0 and 1.
    """
    if not 0 < rate < 1:
        raise RecipeError(f"learning_rate must lie in (0, 1), got {rate}; try 1e-3")


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
