from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from topcoat.train import RecipeError
from topcoat.train.recipes import (
    SR_RECIPES,
    STYLE_RECIPES,
    Recipe,
    StyleRecipe,
    difference,
    recipe,
)


def test_johnson2016_holds_the_paper_s_numbers() -> None:
    paper = STYLE_RECIPES["johnson2016"]
    assert paper.content_layer == "relu3_3"
    assert paper.style_layers == ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    assert (paper.learning_rate, paper.batch, paper.crop, paper.steps) == (1e-3, 4, 256, 40_000)
    assert (paper.form, paper.norm, paper.tv_form, paper.schedule) == (
        "paper",
        "batch",
        "paper",
        "constant",
    )


@pytest.mark.parametrize("among", [STYLE_RECIPES, SR_RECIPES], ids=["style", "sr"])
def test_every_recipe_survives_a_checkpoint(among: Mapping[str, Recipe]) -> None:
    for name, entry in among.items():
        assert type(entry).from_dict(entry.to_dict()) == entry
        assert entry.name == name


def test_fields_of_other_networks_and_losses_are_idle() -> None:
    assert {"kernels", "norm", "tv_form"} == SR_RECIPES["modern"].idle_fields()
    assert {"blocks", "norm", "feature_layer"} <= SR_RECIPES["srcnn"].idle_fields()
    assert "pixel_form" in SR_RECIPES["johnson2016-sr"].idle_fields()
    modern = STYLE_RECIPES["modern"]
    assert {"histogram_layers", "histogram_samples", "scales"} <= modern.idle_fields()
    assert not {"blocks", "norm", "style_layers"} & modern.idle_fields()
    pyramid = replace(modern, network="ulyanov")
    assert {"blocks", "form", "width"} <= pyramid.idle_fields()
    assert not {"scales", "norm", "upsampling"} & pyramid.idle_fields()


def test_the_difference_of_two_recipes_lists_exactly_what_differs() -> None:
    changed = replace(STYLE_RECIPES["modern"], width=16, style_weight=3.0)
    assert difference(STYLE_RECIPES["modern"], changed) == {
        "width": (32, 16),
        "style_weight": (10.0, 3.0),
    }


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("crop", 255, "multiple of 4.*got 255; try 252"),
        ("steps", 0, "steps must be at least 1"),
        ("style_weight", float("nan"), "style_weight must be 0 or more"),
        ("learning_rate", 0.0, "learning_rate must lie in"),
        ("form", "baroque", "form must be one of modern, paper"),
        ("style_layers", (), "at least one layer"),
        ("style_layers", ("relu1_2", "relu1_2"), "twice"),
        ("style_size", 8, "64 to 4096 pixels"),
        ("style_size", 200_000, "64 to 4096 pixels"),
        ("seed", -1, "seed must be 0 or more"),
    ],
)
def test_a_field_out_of_range_says_what_is_wanted(
    field: str, value: object, complaint: str
) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(RecipeError, match=complaint):
        replace(STYLE_RECIPES["modern"], **changes)


def test_the_pyramid_s_crop_is_a_multiple_of_its_coarsest_pixel() -> None:
    with pytest.raises(RecipeError, match=r"multiple of 32 of at least 64 for 6 scales.*try 224"):
        replace(STYLE_RECIPES["modern"], network="ulyanov", crop=252)
    # Of the paper's form, whose crop must exceed its padding, only the network of that form is.
    pyramid = replace(STYLE_RECIPES["johnson2016"], network="ulyanov", scales=4, crop=32)
    assert pyramid.network_settings() == {
        **{"scales": 4, "width": 8, "norm": "batch", "activation": "relu", "noise": False},
        **{"upsampling": "bilinear", "padding": "replicate", "content": True},
    }


def test_the_paper_s_form_needs_a_crop_larger_than_its_padding() -> None:
    with pytest.raises(RecipeError, match="got 32 for 5 blocks; try 64"):
        replace(STYLE_RECIPES["johnson2016"], crop=32)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="modern, johnson2016"):
        recipe("ancient", STYLE_RECIPES)
    with pytest.raises(RecipeError, match="unknown recipe field sparkle"):
        StyleRecipe.from_dict({"sparkle": 1})
