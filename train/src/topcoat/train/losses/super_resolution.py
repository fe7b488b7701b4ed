"""The objective of super-resolution: pixels, features of a loss network, total variation."""

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
            target = self.network.target(original, layer)
            parts["feature"] = content_loss(self.network(output)[layer], target, recipe.loss_scale)
            total = total + recipe.feature_weight * parts["feature"]
        if recipe.tv_weight:
            parts["tv"] = batch_total_variation(output, recipe.tv_form, recipe.batch)
            total = total + recipe.tv_weight * parts["tv"]
        return {"total": total, **parts}
