"""Losses: plain functions on tensors, and the loss network that supplies the features."""

from topcoat.train.losses._loss_weights import find_loss_weights
from topcoat.train.losses.content import content_loss
from topcoat.train.losses.conversion import relative_style_weight
from topcoat.train.losses.diversity import diversity
from topcoat.train.losses.features import (
    LossNetwork,
    load_loss_network,
    perceptual_network,
)
from topcoat.train.losses.gram import GRAM_FORMS, gram_matrix, style_loss
from topcoat.train.losses.histogram import histogram_loss, match_histogram, sorted_values
from topcoat.train.losses.perceptual import PerceptualLoss, StyleTarget, style_target
from topcoat.train.losses.pixel import pixel_loss
from topcoat.train.losses.stability import stability_loss
from topcoat.train.losses.super_resolution import SuperResolutionLoss
from topcoat.train.losses.total_variation import total_variation

__all__ = [
    "GRAM_FORMS",
    "LossNetwork",
    "PerceptualLoss",
    "StyleTarget",
    "SuperResolutionLoss",
    "content_loss",
    "diversity",
    "find_loss_weights",
    "gram_matrix",
    "histogram_loss",
    "load_loss_network",
    "match_histogram",
    "perceptual_network",
    "pixel_loss",
    "relative_style_weight",
    "sorted_values",
    "stability_loss",
    "style_loss",
    "style_target",
    "total_variation",
]
