"""Recipes: named, frozen sets of every number that decides what a training run produces."""

from topcoat.train.recipes._base import (
    LossRecipe,
    Recipe,
    TrainingRecipe,
    difference,
    recipe,
)
from topcoat.train.recipes.optimize import OPTIMIZE_RECIPES, STARTS, OptimizeRecipe
from topcoat.train.recipes.perceptual import PerceptualRecipe
from topcoat.train.recipes.style import STYLE_RECIPES, StyleRecipe, check_supervision
from topcoat.train.recipes.super_resolution import (
    SR_RECIPES,
    SuperResolutionRecipe,
    check_blur,
)
from topcoat.train.recipes.texture import TEXTURE_RECIPES, TextureRecipe

__all__ = [
    "OPTIMIZE_RECIPES",
    "SR_RECIPES",
    "STARTS",
    "STYLE_RECIPES",
    "TEXTURE_RECIPES",
    "LossRecipe",
    "OptimizeRecipe",
    "PerceptualRecipe",
    "Recipe",
    "StyleRecipe",
    "SuperResolutionRecipe",
    "TextureRecipe",
    "TrainingRecipe",
    "check_blur",
    "check_supervision",
    "difference",
    "recipe",
]
