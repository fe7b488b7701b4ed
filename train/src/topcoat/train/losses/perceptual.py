"""The objective of optimisation, style training and texture training, from one loss network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train.losses.content import content_loss
from topcoat.train.losses.features import LossNetwork
from topcoat.train.losses.gram import gram_matrix, style_loss
from topcoat.train.losses.histogram import histogram_loss, sorted_values
from topcoat.train.losses.total_variation import batch_total_variation
from topcoat.train.recipes import PerceptualRecipe


@dataclass(frozen=True, eq=False)
class StyleTarget:
    """What the objective knows of a style: statistics, not the picture."""

    grams: Mapping[str, Tensor] = field(default_factory=dict)
    """{layer: (C, C)}."""
    histograms: Mapping[str, Tensor] = field(default_factory=dict)
    """{layer: (C, K)}, ascending."""
    weight: float = 1.0
    """Multiplies the losses of this style, beside those of other regions."""
    mask: Tensor | None = None
    """(1, 1, H, W) in [0, 1], of the output's size: where the style is to go; None: everywhere."""


def style_target(
    network: LossNetwork,
    picture: Tensor,
    recipe: PerceptualRecipe,
    mask: Tensor | None = None,
) -> StyleTarget:
    """Statistics of a style picture.

    Args:
        network: the loss network, holding the recipe's layers.
        picture: (1, 3, H, W) RGB in [0, 1].
        recipe: names the layers and says what counts.
        mask: (1, 1, H, W) in [0, 1]: the part of the picture that is the style; None: all of it.

    Returns:
        Gram matrices and histograms at the recipe's layers, float32.
    """
    with torch.no_grad():
        features = network(picture)
    grams = recipe.style_layers if recipe.uses_style() else ()
    histograms = recipe.histogram_layers if recipe.uses_histogram() else ()
    return StyleTarget(
        {layer: _masked_gram(features[layer], mask)[0] for layer in grams},
        {layer: _masked_values(features[layer], mask) for layer in histograms},
    )


class PerceptualLoss(nn.Module):
    """Weighs what an output keeps of its photograph against what it takes from the style.

    Args:
        network: the loss network, holding the recipe's layers.
        targets: from :func:`style_target`; of several, everywhere or in regions of their own, the
            losses are added, each with its weight.
        recipe: the weights and conventions.
        batch: pictures per step over all processes; see :func:`batch_total_variation`.
        seed: of the ties and samples of the histogram loss: with it, the objective is the same
            function at every call, as line searches want; None: drawn anew from torch's generator.

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155), eq. 5; Gatys, Ecker, Bethge 2015
    (arXiv:1508.06576), eq. 7; regions: Gatys et al. 2017 (arXiv:1611.07865), eq. 5.
    """

    def __init__(
        self,
        network: LossNetwork,
        targets: Sequence[StyleTarget],
        recipe: PerceptualRecipe,
        *,
        batch: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.batch, self.seed = batch, seed
        self.weights = [target.weight for target in targets]
        self.masked = [target.mask is not None for target in targets]
        # Buffers, so that they move to the device with the module.
        for number, target in enumerate(targets):
            tensors = {
                **{f"gram_{layer}": gram for layer, gram in target.grams.items()},
                **{f"histogram_{layer}": values for layer, values in target.histograms.items()},
                **({} if target.mask is None else {"mask": target.mask}),
            }
            for name, tensor in tensors.items():
                self.register_buffer(f"target{number}_{name}", tensor, persistent=False)

    def content_target(self, photograph: Tensor) -> Tensor | None:
        """(B, 3, H, W) in [0, 1] -> its features at the content layer, if content counts."""
        if not self.recipe.content_weight:
            return None
        return self.network.target(photograph, self.recipe.content_layer)

    def forward(
        self,
        output: Tensor,
        photograph: Tensor | None = None,
        *,
        content: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Score a batch.

        Args:
            output: (B, 3, H, W), nominally in [0, 1].
            photograph: (B, 3, H, W) RGB in [0, 1], what it was made from; needed if content counts.
            content: instead of it, what :meth:`content_target` makes of it, for many calls.

        Returns:
            ``total`` (weighted), and unweighted what the recipe asks for among ``content``,
            ``style``, ``histogram``, ``tv``: scalars.

        Raises:
            ValueError: content counts and there is neither photograph nor its features.
        """
        recipe = self.recipe
        parts: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        if recipe.content_weight and content is None:
            if photograph is None:
                raise ValueError("content counts in this objective; give the photograph")
            content = self.content_target(photograph)
        features, grams = self._statistics(output)
        if recipe.content_weight:
            assert content is not None
            seen = features[recipe.content_layer]
            parts["content"] = content_loss(seen, content, recipe.loss_scale)
            weights["content"] = recipe.content_weight
        if recipe.uses_style():
            form, shares = recipe.resolved_gram_form(), recipe.layer_weights()

            def gram(layer: str, mask: Tensor | None) -> Tensor:
                return grams[layer] if mask is None else _masked_gram(features[layer], mask)

            parts["style"] = self._over_regions(
                lambda number, layer, mask: (
                    shares[layer]
                    * style_loss(
                        gram(layer, mask),
                        getattr(self, f"target{number}_gram_{layer}"),
                        form,
                        _positions(layer, output),
                    )
                ),
                recipe.style_layers,
            )
            weights["style"] = recipe.style_weight * recipe.strength
        if recipe.uses_histogram():
            layers = recipe.histogram_layers
            share = 1 / len(layers) if recipe.loss_scale == "relative" else 1.0
            parts["histogram"] = self._over_regions(
                lambda number, layer, mask: (
                    share
                    * histogram_loss(
                        features[layer],
                        getattr(self, f"target{number}_histogram_{layer}"),
                        recipe.loss_scale,
                        samples=recipe.histogram_samples,
                        generator=self._generator(),
                        where=None if mask is None else _inside(mask, features[layer]),
                    )
                ),
                layers,
            )
            weights["histogram"] = recipe.histogram_weight * recipe.strength
        if recipe.tv_weight:
            parts["tv"] = batch_total_variation(output, recipe.tv_form, self.batch)
            weights["tv"] = recipe.tv_weight
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return {"total": total, **parts}

    def _statistics(self, output: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the output, the features by layer that losses look at, and the Gram matrices.

        Of several styles everywhere, one Gram matrix serves all.
        """
        recipe = self.recipe
        features: dict[str, None] = {}
        grams: tuple[str, ...] = ()
        if recipe.content_weight:
            features[recipe.content_layer] = None
        if recipe.uses_style():
            grams = () if all(self.masked) else recipe.style_layers
            features |= dict.fromkeys(recipe.style_layers if any(self.masked) else ())
        if recipe.uses_histogram():
            features |= dict.fromkeys(recipe.histogram_layers)
        return self.network.statistics(output, features, grams) if features or grams else ({}, {})

    def _over_regions(
        self, loss: Callable[[int, str, Tensor | None], Tensor], layers: Sequence[str]
    ) -> Tensor:
        """Sum over regions, each with its weight, and over layers."""
        terms = []
        for number, weight in enumerate(self.weights):
            mask = getattr(self, f"target{number}_mask") if self.masked[number] else None
            terms += [weight * loss(number, layer, mask) for layer in layers]
        return torch.stack(terms).sum()

    def _generator(self) -> torch.Generator | None:
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)


def _positions(layer: str, frame: Tensor) -> int:
    """H'*W' of a layer's features: every block of VGG has half the sides of the one before."""
    halvings = int(layer.removeprefix("relu").partition("_")[0]) - 1
    return (frame.shape[2] >> halvings) * (frame.shape[3] >> halvings)


def _shrunk(mask: Tensor, features: Tensor) -> Tensor:
    """A mask at the size of a feature map: the mean over the pixels of each position."""
    return F.adaptive_avg_pool2d(mask, (features.shape[2], features.shape[3]))


def _masked_gram(features: Tensor, mask: Tensor | None) -> Tensor:
    """Gram matrix of a region, normalised by its area as :func:`gram_matrix` is by the frame's."""
    if mask is None:
        return gram_matrix(features)
    guide = _shrunk(mask, features)
    # The guidance channel normalised to Σ T² = 1; gram_matrix itself divides by C*H*W.
    area = guide.square().mean().clamp_min(1e-12)
    return gram_matrix(features * guide.to(features.dtype)) / area


def _inside(mask: Tensor, features: Tensor) -> Tensor:
    """(H', W') bool: the positions of a feature map that lie in a region.

    Of a region thinner than the layer's positions, those that it covers most.
    """
    guide = _shrunk(mask, features)[0, 0]
    return guide >= guide.max().clamp_max(0.5).clamp_min(1e-6)


def _masked_values(features: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return sorted_values(features)
    return sorted_values(features[:, :, _inside(mask, features)][..., None])
