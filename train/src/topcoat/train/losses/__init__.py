"""Losses: plain functions on tensors, and the loss network that supplies the features."""

from topcoat.train.losses.content import content_loss
from topcoat.train.losses.conversion import relative_style_weight
from topcoat.train.losses.features import (
    LossNetwork,
    find_loss_weights,
    load_loss_network,
)
from topcoat.train.losses.gram import gram_matrix, style_loss
from topcoat.train.losses.perceptual import PerceptualLoss
from topcoat.train.losses.pixel import pixel_loss
from topcoat.train.losses.super_resolution import SuperResolutionLoss
from topcoat.train.losses.total_variation import total_variation

__all__ = [
    "LossNetwork",
    "PerceptualLoss",
    "SuperResolutionLoss",
    "content_loss",
    "find_loss_weights",
    "gram_matrix",
    "load_loss_network",
    "pixel_loss",
    "relative_style_weight",
    "style_loss",
    "total_variation",
]
