from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from topcoat.train.losses import (
    LossNetwork,
    SuperResolutionLoss,
    content_loss,
    gram_matrix,
    pixel_loss,
    style_loss,
    total_variation,
)
from topcoat.train.losses.super_resolution import without_nyquist
from topcoat.train.recipes import SR_RECIPES


def test_gram_matrix_is_the_paper_s_equation_3() -> None:
    features = torch.randn(
        2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    expected = torch.einsum("bchw,bdhw->bcd", features, features) / (3 * 5 * 7)
    torch.testing.assert_close(gram_matrix(features), expected)


def test_gram_matrix_gradient_matches_finite_differences() -> None:
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gram_matrix, features)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gram_matrix_does_not_depend_on_memory_layout(memory_format: torch.memory_format) -> None:
    features = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    laid_out = features.contiguous(memory_format=memory_format)
    torch.testing.assert_close(gram_matrix(laid_out), gram_matrix(features))


def test_gram_matrix_stays_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        gram = gram_matrix(torch.ones(1, 4, 32, 32, dtype=torch.bfloat16))
    assert gram.dtype == torch.float32


def test_gram_matrix_refuses_what_is_not_a_feature_map() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        gram_matrix(torch.zeros(3, 4, 5))


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_relative_style_loss_does_not_change_with_the_strength_of_the_style(scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    output = gram_matrix(torch.randn(2, 6, 8, 8, generator=generator))
    target = gram_matrix(torch.randn(1, 6, 8, 8, generator=generator))
    reference = style_loss(output, target, "relative")
    torch.testing.assert_close(style_loss(output * scale, target * scale, "relative"), reference)


def test_absolute_style_loss_is_the_mean_over_entries() -> None:
    output, target = torch.zeros(3, 4, 4), torch.full((4, 4), 2.0)
    assert style_loss(output, target, "absolute").item() == 4.0


def test_relative_content_loss_is_the_share_of_energy_that_is_wrong() -> None:
    target = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    assert content_loss(target, target, "relative").item() == 0.0
    torch.testing.assert_close(content_loss(target * 1.1, target, "relative"), torch.tensor(0.01))


@pytest.mark.parametrize("scale", ["relative", "absolute"])
def test_content_loss_gradient_matches_finite_differences(scale: str) -> None:
    target = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    features = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: content_loss(x, target, scale), features)  # type: ignore[arg-type]


def test_content_loss_gives_no_gradient_to_the_photograph() -> None:
    target = torch.ones(1, 2, 3, 3, requires_grad=True)
    output = torch.zeros(1, 2, 3, 3, requires_grad=True)
    content_loss(output, target, "absolute").backward()  # type: ignore[no-untyped-call]
    assert target.grad is None
    assert output.grad is not None


def test_paper_total_variation_has_the_gradient_that_its_strength_multiplies() -> None:
    # One bright pixel in the middle of a 3x3 frame: the authors' code adds strength * (sum of its
    # differences), on 0-255, to the gradient.
    frame = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    frame[0, 0, 1, 1] = 1.0
    frame.requires_grad_()
    total_variation(frame, "paper").backward()  # type: ignore[no-untyped-call]
    assert frame.grad is not None
    # The pixel has four differences on the (H-1)(W-1) grid: up, left, and its own two.
    assert frame.grad[0, 0, 1, 1].item() / 255**2 == pytest.approx(4.0)


def test_paper_total_variation_is_a_mean_over_the_batch() -> None:
    frame = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(
        total_variation(frame.repeat(4, 1, 1, 1), "paper"), total_variation(frame, "paper")
    )


@pytest.mark.parametrize("form", ["mean", "paper"])
def test_total_variation_of_one_colour_is_zero_and_of_stripes_is_not(form: str) -> None:
    stripes = torch.zeros(1, 3, 8, 8)
    stripes[..., ::2] = 1
    assert total_variation(torch.full((1, 3, 8, 8), 0.3), form).item() == 0  # type: ignore[arg-type]
    assert total_variation(stripes, form).item() > 0.4  # type: ignore[arg-type]


def test_pixel_loss_is_the_mean_of_the_differences_and_leaves_the_original_alone() -> None:
    output = torch.tensor([[[[0.5, 0.0]]]]).requires_grad_()
    original = torch.tensor([[[[0.0, 0.0]]]]).requires_grad_()
    assert pixel_loss(output, original, "l1").item() == pytest.approx(0.25)
    loss = pixel_loss(output, original, "l2")
    assert loss.item() == pytest.approx(0.125)
    torch.autograd.backward(loss)
    assert original.grad is None
    with pytest.raises(ValueError, match="differ"):
        pixel_loss(output, original[..., :1], "l1")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"loss": "pixel"}, {"pixel": 1.0}),
        ({"loss": "feature", "feature_weight": 3.0}, {"feature": 3.0}),
        (
            {"loss": "mix", "pixel_weight": 2.0, "feature_weight": 0.5, "tv_weight": 7.0},
            {"pixel": 2.0, "feature": 0.5, "tv": 7.0},
        ),
    ],
)
def test_the_super_resolution_objective_weighs_the_parts_it_is_asked_for(
    changes: dict[str, Any], parts: dict[str, float]
) -> None:
    torch.manual_seed(0)
    objective = SuperResolutionLoss(
        LossNetwork("vgg16", ["relu2_2"]), replace(SR_RECIPES["modern"], **changes)
    )
    original, output = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16).requires_grad_()
    losses = objective(output, original)
    assert set(losses) == {"total", *parts}
    weighed = sum(weight * losses[name].item() for name, weight in parts.items())
    assert losses["total"].item() == pytest.approx(weighed, rel=1e-5)
    losses["total"].backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0
    # Of the original itself nothing is wrong but its total variation.
    perfect = objective(original, original)
    assert all(perfect[name].item() == 0 for name in parts if name != "tv")


def test_published_pixel_losses_count_in_steps_of_255() -> None:
    original, output = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 2 / 255)
    forms: list[tuple[Literal["l1", "l2"], float]] = [("l1", 2.0), ("l2", 4.0)]
    for form, wanted in forms:
        recipe = replace(SR_RECIPES["modern"], loss="pixel", loss_scale="absolute", pixel_form=form)
        losses = SuperResolutionLoss(None, recipe)(output, original)
        assert losses["pixel"].item() == pytest.approx(wanted, rel=1e-5)


def test_a_feature_loss_without_a_loss_network_is_refused() -> None:
    with pytest.raises(ValueError, match="give the loss network"):
        SuperResolutionLoss(None, SR_RECIPES["modern"])


def test_the_binomial_filter_takes_out_what_max_pooling_takes_for_texture() -> None:
    rows = torch.tensor([1.0, -1.0]).repeat(8)
    checkerboard = (rows[:, None] * rows[None]).expand(1, 3, 16, 16)
    stripes = rows.expand(1, 3, 16, 16)
    coarse = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4).expand(1, 3, 16, 16)
    inner = (..., slice(2, -2), slice(2, -2))
    for grid in (checkerboard, stripes):
        assert without_nyquist(grid)[inner].abs().max() == 0
    assert without_nyquist(coarse)[inner].abs().mean() > 0.4
    flat = torch.full((1, 3, 5, 5), 0.5)
    assert torch.equal(without_nyquist(flat), flat)

    # Why: a fine checkerboard lies far from a flat picture in VGG's features, and looks flat here.
    recipe = replace(SR_RECIPES["modern"], loss="feature", feature_filter="none")
    torch.manual_seed(0)
    network = LossNetwork("vgg16", ["relu2_2"])
    grey, printed = torch.full((1, 3, 16, 16), 0.5), 0.5 + 0.1 * checkerboard
    seen = SuperResolutionLoss(network, recipe)(printed, grey)["feature"]
    recipe = replace(recipe, feature_filter="binomial")
    hidden = SuperResolutionLoss(network, recipe)(printed, grey)["feature"]
    assert hidden < seen / 20
