"""The transform networks, and the registry that builds one from its name and settings."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from topcoat.train._errors import RecipeError
from topcoat.train.networks._base import FrameNetwork
from topcoat.train.networks.johnson import Johnson, JohnsonSettings
from topcoat.train.networks.johnson_sr import JohnsonSR, JohnsonSRSettings
from topcoat.train.networks.realtime import Realtime, RealtimeSettings
from topcoat.train.networks.residual_sr import ResidualSR, ResidualSRSettings
from topcoat.train.networks.srcnn import SRCNN, SRCNNSettings
from topcoat.train.networks.ulyanov import Ulyanov, UlyanovSettings

__all__ = [
    "NETWORKS",
    "SRCNN",
    "FrameNetwork",
    "Johnson",
    "JohnsonSR",
    "JohnsonSRSettings",
    "JohnsonSettings",
    "Realtime",
    "RealtimeSettings",
    "ResidualSR",
    "ResidualSRSettings",
    "SRCNNSettings",
    "Ulyanov",
    "UlyanovSettings",
    "build_network",
]

NETWORKS: dict[str, tuple[type[Any], type[FrameNetwork]]] = {
    "johnson": (JohnsonSettings, Johnson),
    "johnson-sr": (JohnsonSRSettings, JohnsonSR),
    "realtime": (RealtimeSettings, Realtime),
    "residual-sr": (ResidualSRSettings, ResidualSR),
    "srcnn": (SRCNNSettings, SRCNN),
    "ulyanov": (UlyanovSettings, Ulyanov),
}
"""Name -> (settings dataclass, network class). A new network is one file and one line here."""


def build_network(name: str, settings: Mapping[str, Any]) -> FrameNetwork:
    """Build a network with fresh weights.

    Args:
        name: a key of :data:`NETWORKS`.
        settings: fields of that network's settings; a field left out takes its default.

    Raises:
        RecipeError: the name or a field is unknown, or a value is out of range.

    >>> network = build_network("johnson", {"width": 8, "blocks": 1})
    >>> network(torch.zeros(1, 3, 32, 48)).shape
    torch.Size([1, 3, 32, 48])
    """
    if name not in NETWORKS:
        raise RecipeError(f"unknown network {name!r}; choose one of {', '.join(sorted(NETWORKS))}")
    settings_class, network_class = NETWORKS[name]
    known = {field.name for field in fields(settings_class)}
    if unknown := sorted(set(settings) - known):
        raise RecipeError(
            f"network {name!r} has no setting {', '.join(unknown)}; "
            f"its settings are {', '.join(sorted(known))}"
        )
    return network_class(settings_class(**settings))
