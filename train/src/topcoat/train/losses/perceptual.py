"""The objective of style training: content + style + total variation, from one loss network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from topcoat.train.losses.content import content_loss
from topcoat.train.losses.features import LossNetwork
from topcoat.train.losses.gram import gram_matrix, style_loss
from topcoat.train.losses.total_variation import batch_total_variation
from topcoat.train.recipes import StyleRecipe


class PerceptualLoss(nn.Module):
    """Weighs what an output keeps of its photograph against what it takes from the style.

    Args:
        network: the loss network, holding the recipe's layers.
        style_grams: {layer: (C, C)}, from :meth:`style_targets`.
        recipe: the weights and conventions.

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155), eq. 5.
    """

    def __init__(
        self, network: LossNetwork, style_grams: Mapping[str, Tensor], recipe: StyleRecipe
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        for layer in recipe.style_layers:
            self.register_buffer(f"gram_{layer}", style_grams[layer], persistent=False)

    @staticmethod
    def style_targets(
        network: LossNetwork, style: Tensor, recipe: StyleRecipe
    ) -> dict[str, Tensor]:
        """Gram matrices of the style picture.

        Args:
            network: the loss network.
            style: (1, 3, H, W) RGB in [0, 1].
            recipe: names the layers.

        Returns:
            {layer: (C, C)} float32.
        """
        with torch.no_grad():
            features = network(style)
            return {layer: gram_matrix(features[layer])[0] for layer in recipe.style_layers}

    def forward(self, output: Tensor, photograph: Tensor) -> dict[str, Tensor]:
        """Score a batch.

        Args:
            output: (B, 3, H, W), the transform network's, nominally in [0, 1].
            photograph: (B, 3, H, W) RGB in [0, 1], what it was made from.

        Returns:
            ``content``, ``style``, ``tv`` (unweighted) and ``total`` (weighted): scalars.
        """
        recipe = self.recipe
        target = self.network.target(photograph, recipe.content_layer)
        features = self.network(output)
        content = content_loss(features[recipe.content_layer], target, recipe.loss_scale)
        per_layer = [
            style_loss(
                gram_matrix(features[layer]), getattr(self, f"gram_{layer}"), recipe.loss_scale
            )
            for layer in recipe.style_layers
        ]
        style = torch.stack(per_layer).sum()
        if recipe.loss_scale == "relative":
            style = style / len(per_layer)
        tv = batch_total_variation(output, recipe.tv_form, recipe.batch)
        total = (
            recipe.content_weight * content
            + recipe.style_weight * recipe.strength * style
            + recipe.tv_weight * tv
        )
        return {"total": total, "content": content, "style": style, "tv": tv}
