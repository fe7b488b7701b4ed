"""Recipes: named, frozen sets of every number that decides what a training run produces."""

from topcoat.train.recipes._base import (
    LossRecipe,
    Recipe,
    TrainingRecipe,
    difference,
    recipe,
)
from topcoat.train.recipes.perceptual import PerceptualRecipe
from topcoat.train.recipes.style import STYLE_RECIPES, StyleRecipe
from topcoat.train.recipes.super_resolution import (
    SR_RECIPES,
    SuperResolutionRecipe,
    check_blur,
)

__all__ = [
    "SR_RECIPES",
    "STYLE_RECIPES",
    "LossRecipe",
    "PerceptualRecipe",
    "Recipe",
    "StyleRecipe",
    "SuperResolutionRecipe",
    "TrainingRecipe",
    "check_blur",
    "difference",
    "recipe",
]
