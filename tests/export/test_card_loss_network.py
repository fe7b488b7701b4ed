"""The card says whose features a style network was held to."""

from dataclasses import replace
from typing import Any

import pytest

import topcoat.runtime
from topcoat.export.card import card_markdown
from topcoat.export.sources import source_from_checkpoint
from topcoat.runtime.parity import ParityReport, ParityRow, engines_for

from .conftest import ExportedBundle, tiny_checkpoint


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        ({"loss_network": "vgg16"}, "| Loss network | vgg16 |"),
        ({"loss_network": "embedded"}, "| Loss network | embedded, a small student of VGG16 |"),
        ({"loss_network": "vgg16", "supervision": "targets"}, None),
        ({}, None),
    ],
)
def test_the_card_says_whose_features_were_compared(
    exported: ExportedBundle, recipe: dict[str, Any], row: str | None
) -> None:
    engines = engines_for(topcoat.runtime.read_manifest(exported.bundle).variants)
    nothing_compared = ParityReport(rows=[ParityRow(engine=e, status="not run") for e in engines])
    checkpoint = tiny_checkpoint()
    source = source_from_checkpoint(replace(checkpoint, recipe={**checkpoint.recipe, **recipe}))
    card = card_markdown(exported.manifest, nothing_compared, source)
    assert [line for line in card.splitlines() if line.startswith("| Loss network")] == (
        [] if row is None else [row]
    )
