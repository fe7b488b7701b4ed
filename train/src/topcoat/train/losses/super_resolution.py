"""The objective of super-resolution: pixels, features of a loss network, total variation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train.losses.content import content_loss
from topcoat.train.losses.features import LossNetwork
from topcoat.train.losses.pixel import pixel_loss
from topcoat.train.losses.total_variation import batch_total_variation
from topcoat.train.recipes import SuperResolutionRecipe


class SuperResolutionLoss(nn.Module):
    """Weighs how close an enlarged picture is to its original.

    Args:
        network: the loss network, holding the recipe's feature layer; None for a pixel loss.
        recipe: the weights and conventions.

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155) §3.2, §4.2.
    """

    def __init__(self, network: LossNetwork | None, recipe: SuperResolutionRecipe) -> None:
        super().__init__()
        if network is None and recipe.layers():
            raise ValueError(f"loss {recipe.loss} compares features; give the loss network")
        self.network = network
        self.recipe = recipe

    def forward(self, output: Tensor, original: Tensor) -> dict[str, Tensor]:
        """Score a batch.

        Args:
            output: (B, 3, H, W), the network's, nominally in [0, 1].
            original: (B, 3, H, W) RGB in [0, 1].

        Returns:
            ``total`` (weighted) and the parts that the recipe asks for among ``pixel``,
            ``feature`` and ``tv`` (unweighted): scalars.
        """
        recipe = self.recipe
        parts: dict[str, Tensor] = {}
        total = output.new_zeros((), dtype=output.float().dtype)
        if recipe.loss != "feature":
            published = 255.0 if recipe.loss_scale == "absolute" else 1.0
            units = published if recipe.pixel_form == "l1" else published**2
            parts["pixel"] = units * pixel_loss(output, original, recipe.pixel_form)
            total = total + recipe.pixel_weight * parts["pixel"]
        if recipe.loss != "pixel":
            assert self.network is not None
            layer = recipe.feature_layer
            seen, wanted = output, original
            if recipe.feature_filter == "binomial":
                seen, wanted = without_nyquist(output), without_nyquist(original)
            target = self.network.target(wanted, layer)
            parts["feature"] = content_loss(self.network(seen)[layer], target, recipe.loss_scale)
            total = total + recipe.feature_weight * parts["feature"]
        if recipe.tv_weight:
            parts["tv"] = batch_total_variation(output, recipe.tv_form, recipe.batch)
            total = total + recipe.tv_weight * parts["tv"]
        return {"total": total, **parts}


def without_nyquist(frame: Tensor) -> Tensor:
    """Take out the highest frequency: the binomial filter 1 2 1 along both axes, edges repeated.

    VGG's first max pooling takes the largest of every 2×2 pixels. An alternation from pixel to
    pixel, a checkerboard or fine stripes, raises that maximum at every place and so looks to the
    features like texture: networks learn to print it. The filter is exactly zero there and passes
    coarser detail, so nothing is gained by the grid and the pixel loss removes it.

    Args:
        frame: (B, C, H, W) floating point.

    Returns:
        (B, C, H, W) float32.
    """
    with torch.autocast(frame.device.type, enabled=False):
        taps = torch.tensor([0.25, 0.5, 0.25], device=frame.device)
        kernel = torch.outer(taps, taps).expand(frame.shape[1], 1, 3, 3)
        padded = F.pad(frame.float(), (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, kernel, groups=frame.shape[1])
