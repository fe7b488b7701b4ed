"""Style weights of other projects, in the relative normalisation of this one."""

from collections.abc import Mapping

from torch import Tensor


def relative_style_weight(
    style_weight: float,
    content_weight: float,
    style_grams: Mapping[str, Tensor],
    content_features: Tensor,
) -> float:
    """Express a pair of absolute weights as one relative style weight.

    An absolute objective is

        content_weight * mean((φ - φ̂)²) + style_weight * Σ_l mean((G_l - Ĝ_l)²),

    means over entries: pytorch/examples with 1e5 and 1e10, the code of Johnson et al. with 1 and 5.
    The relative one is ``E_content + w * mean_l E_l`` with every E a share of its target's energy.
    The two weigh alike an output that is equally far off, relatively, in every layer, at

        w = style_weight * Σ_l mean(G_l²) / (content_weight * mean(φ²)).

    For the weights of eq. 4 in the paper, which sums over the C_l² entries instead of averaging,
    multiply each layer's term by C_l² first.

    Args:
        style_weight: factor of the summed Gram losses.
        content_weight: factor of the content loss.
        style_grams: {layer: (C, C)} of the style picture, Gram/(C*H*W), in the features of the
            loss network that the absolute weights were chosen for: networks differ in scale.
        content_features: (B, C, H, W) of typical photographs at the content layer.

    Returns:
        The ``style_weight`` to give to a recipe with ``loss_scale`` relative.

    Raises:
        ValueError: a weight is not positive.

    >>> grams = {"relu1_2": torch.full((2, 2), 3.0)}
    >>> relative_style_weight(10.0, 1.0, grams, torch.full((1, 2, 4, 4), 3.0))
    10.0
    """
    if style_weight <= 0 or content_weight <= 0:
        raise ValueError(f"weights must be positive, got {style_weight} and {content_weight}")
    style_energy = sum(float(gram.square().mean()) for gram in style_grams.values())
    return style_weight * style_energy / (content_weight * float(content_features.square().mean()))
