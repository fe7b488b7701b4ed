from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from topcoat.train.losses import (
    GRAM_FORMS,
    LossNetwork,
    PerceptualLoss,
    SuperResolutionLoss,
    content_loss,
    gram_matrix,
    histogram_loss,
    match_histogram,
    pixel_loss,
    sorted_values,
    style_loss,
    style_target,
    total_variation,
)
from topcoat.train.losses.super_resolution import without_nyquist
from topcoat.train.recipes import OPTIMIZE_RECIPES, SR_RECIPES


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


# The papers' formulas, written out

GENERATED = torch.Generator()


@pytest.fixture(autouse=True)
def _same_numbers_for_every_test() -> None:
    GENERATED.manual_seed(11)


def _features(*shape: int, positive: bool = False) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=GENERATED)
    return values.abs() if positive else values


def _raw(features: Tensor) -> Tensor:
    """(1, N, H, W) -> F Fᵀ, (N, N)."""
    flat = features[0].flatten(1)
    return flat @ flat.T


FORMULAS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    # Of raw Gram matrices G and A of pictures with as many positions, N channels, M positions.
    "relative": lambda g, a, n, m: (g - a).square().sum() / a.square().sum(),
    "johnson2016": lambda g, a, n, m: ((g - a) / (n * m)).square().sum(),
    "johnson2016-code": lambda g, a, n, m: ((g - a) / (n * m)).square().mean(),
    "gatys2015": lambda g, a, n, m: (g - a).square().sum() / (4 * n**2 * m**2),
    "gatys-notebook": lambda g, a, n, m: ((g - a) / m).square().mean(),
    "unnormalised": lambda g, a, n, m: (g - a).square().mean(),
}


def test_every_gram_form_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(GRAM_FORMS)


@pytest.mark.parametrize("form", GRAM_FORMS)
def test_a_gram_form_is_its_source_s_formula_on_raw_gram_matrices(form: str) -> None:
    output, style = _features(1, 5, 4, 6), _features(1, 5, 4, 6)
    found = style_loss(gram_matrix(output), gram_matrix(style)[0], form, 24)
    torch.testing.assert_close(found, FORMULAS[form](_raw(output), _raw(style), 5, 24))


@pytest.mark.parametrize("form", GRAM_FORMS)
def test_a_gram_form_s_gradient_matches_finite_differences(form: str) -> None:
    target = gram_matrix(_features(1, 3, 4, 4))[0]
    output = _features(2, 3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: style_loss(gram_matrix(x), target, form, 12), (output,)
    )


def test_the_gram_loss_s_gradient_is_equation_6_of_gatys_et_al() -> None:
    # For F > 0: dE/dF = Fᵀ(G - A) / (N²M²), with F as (N, M) its transpose.
    output, style = _features(1, 4, 3, 5, positive=True), _features(1, 4, 3, 5, positive=True)
    leaf = output.requires_grad_()
    loss = style_loss(gram_matrix(leaf), gram_matrix(style)[0], "gatys2015")
    (gradient,) = torch.autograd.grad(loss, leaf)
    flat, difference = output.detach()[0].flatten(1), _raw(output.detach()) - _raw(style)
    expected = (flat.T @ difference).T / (4**2 * 15**2)
    torch.testing.assert_close(gradient[0].flatten(1), expected)


def test_a_style_of_another_size_counts_as_if_it_had_as_many_positions() -> None:
    output, style = _features(1, 4, 4, 4), _features(1, 4, 2, 4)
    tiled = torch.cat([style, style], 2)  # twice the positions, the same statistics
    for form in GRAM_FORMS:
        torch.testing.assert_close(
            style_loss(gram_matrix(output), gram_matrix(style)[0], form, 16),
            style_loss(gram_matrix(output), gram_matrix(tiled)[0], form, 16),
        )


def test_a_gram_form_that_is_none_is_answered_with_those_there_are() -> None:
    gram = torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match="gatys-notebook"):
        style_loss(gram, gram, "gatys1789")
    with pytest.raises(ValueError, match="positions"):
        style_loss(gram, gram, "unnormalised")


def test_the_content_loss_and_its_gradient_are_equations_1_and_2_of_gatys_et_al() -> None:
    features, target = _features(1, 3, 4, 4).requires_grad_(), _features(1, 3, 4, 4)
    loss = content_loss(features, target, "gatys2015")
    torch.testing.assert_close(loss, 0.5 * (features - target).square().sum())
    (gradient,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(gradient, (features - target).detach())
    assert torch.autograd.gradcheck(lambda x: content_loss(x, target, "gatys2015"), (features,))


# Histograms


def test_a_matched_histogram_of_as_many_values_is_the_target_s_in_the_output_s_order() -> None:
    output, style = _features(2, 3, 4, 5), _features(1, 3, 4, 5)
    target = sorted_values(style)
    matched = match_histogram(output, target)
    for picture in range(2):
        for channel in range(3):
            ranks = output[picture, channel].flatten().argsort().argsort()
            expected = style[0, channel].flatten().sort().values[ranks]
            assert torch.equal(matched[picture, channel].flatten(), expected)


def test_a_picture_s_own_histogram_is_matched_already() -> None:
    output = _features(1, 3, 4, 5)
    assert torch.equal(match_histogram(output, sorted_values(output)), output)
    assert histogram_loss(output, sorted_values(output)).item() == 0


HistogramScale = Literal["relative", "absolute", "gatys2015"]
HISTOGRAM_SCALES: list[HistogramScale] = ["relative", "absolute", "gatys2015"]


@pytest.mark.parametrize("scale", HISTOGRAM_SCALES)
@pytest.mark.parametrize("side", [4, 7])
def test_the_histogram_loss_is_the_squared_distance_to_the_match(
    scale: HistogramScale, side: int
) -> None:
    output, target = _features(2, 3, 4, 4), sorted_values(_features(1, 3, side, side))
    away = (output - match_histogram(output, target)).square()
    wanted = match_histogram(output, target).square().sum() / 2
    expected = {
        "relative": away.sum() / 2 / wanted,
        "absolute": away.mean(),
        "gatys2015": away.sum() / 2,
    }
    torch.testing.assert_close(histogram_loss(output, target, scale), expected[scale])


def test_the_histogram_loss_s_gradient_is_twice_the_distance_to_the_match() -> None:
    output, target = _features(1, 3, 4, 5).requires_grad_(), sorted_values(_features(1, 3, 6, 5))
    (gradient,) = torch.autograd.grad(histogram_loss(output, target, "gatys2015"), output)
    with torch.no_grad():
        torch.testing.assert_close(gradient, 2 * (output - match_histogram(output, target)))


@pytest.mark.parametrize("scale", HISTOGRAM_SCALES)
def test_the_histogram_loss_s_gradient_matches_finite_differences(scale: HistogramScale) -> None:
    target = sorted_values(_features(1, 2, 5, 5))
    output = _features(2, 2, 3, 4).requires_grad_()
    some = torch.rand(3, 4, generator=GENERATED) > 0.4
    for options in ({}, {"samples": 5}, {"where": some}):
        assert torch.autograd.gradcheck(
            lambda x, o=options: histogram_loss(
                x, target, scale, generator=torch.Generator().manual_seed(3), **o
            ),
            (output,),
        )


def test_equal_values_are_ranked_at_random_but_alike_for_a_seed() -> None:
    flat = torch.zeros(1, 1, 16, 16)
    target = torch.linspace(0, 1, 256)[None]
    one, again, other = (
        match_histogram(flat, target, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    rows = one[0, 0].mean(1)  # by position, as a stable sort would: from 0.03 to 0.97
    assert rows.max() - rows.min() < 0.6
    leaf = flat.clone().requires_grad_()
    loss = histogram_loss(leaf, target, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(gradient[0, 0].flatten().argsort(), one[0, 0].flatten().argsort().flip(0))


def test_samples_are_positions_that_all_channels_share_and_a_seed_decides() -> None:
    output, target = _features(1, 4, 8, 8).requires_grad_(), sorted_values(_features(1, 4, 8, 8))
    touched = []
    for seed in (1, 1, 2):
        loss = histogram_loss(
            output, target, samples=9, generator=torch.Generator().manual_seed(seed)
        )
        (gradient,) = torch.autograd.grad(loss, output)
        touched.append(gradient[0] != 0)
    assert touched[0].sum() == 4 * 9
    assert torch.equal(touched[0], touched[0][:1].expand(4, 8, 8))
    assert torch.equal(touched[0], touched[1])
    assert not torch.equal(touched[0], touched[2])


def test_a_published_sum_over_samples_estimates_that_over_all_positions() -> None:
    output, target = torch.zeros(1, 2, 8, 8), torch.full((2, 64), 3.0)
    for samples in (0, 7, 64):
        loss = histogram_loss(output, target, "gatys2015", samples=samples)
        assert loss.item() == pytest.approx(2 * 64 * 9.0)


def test_positions_outside_a_region_have_no_histogram_and_no_gradient() -> None:
    output, target = _features(1, 2, 4, 4).requires_grad_(), sorted_values(_features(1, 2, 2, 4))
    where = torch.zeros(4, 4, dtype=torch.bool)
    where[:2] = True
    loss = histogram_loss(output, target, where=where)
    torch.testing.assert_close(loss, histogram_loss(output[:, :, :2], target))
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient[:, :, 2:].abs().max() == 0
    assert (gradient[:, :, :2] != 0).all()
    empty = histogram_loss(output, target, where=torch.zeros(4, 4, dtype=torch.bool))
    assert empty.item() == 0
    assert torch.autograd.grad(empty, output)[0].abs().max() == 0


def test_a_long_histogram_is_kept_as_order_statistics_from_end_to_end() -> None:
    values = torch.rand(1, 2, 40, 50, generator=torch.Generator().manual_seed(1))
    kept = sorted_values(values, 101)
    assert kept.shape == (2, 101)
    assert torch.equal(kept[:, 0], values[0].flatten(1).amin(1))
    assert torch.equal(kept[:, -1], values[0].flatten(1).amax(1))
    expected = torch.quantile(values[0].flatten(1), torch.linspace(0, 1, 101), dim=1).T
    torch.testing.assert_close(kept, expected)


def test_histograms_of_what_is_not_one_picture_or_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, C, H, W\)"):
        sorted_values(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="channels"):
        histogram_loss(torch.zeros(1, 3, 4, 4), torch.zeros(2, 16))


# Total variation, pixels

TvForm = Literal["mean", "paper", "l1"]
TV_FORMS: list[TvForm] = ["mean", "paper", "l1"]


@pytest.mark.parametrize("form", TV_FORMS)
def test_total_variation_is_its_sum_written_out_and_its_gradient_its_differences(
    form: TvForm,
) -> None:
    frame = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=GENERATED).requires_grad_()
    with torch.no_grad():
        total = torch.zeros((), dtype=torch.float64)
        rows, columns = (3, 4) if form == "paper" else (4, 5)
        for y in range(rows):
            for x in range(columns):
                for dy, dx in ((1, 0), (0, 1)):
                    if y + dy < 4 and x + dx < 5:
                        step = frame[:, :, y + dy, x + dx] - frame[:, :, y, x]
                        total += step.abs().sum() if form == "l1" else step.square().sum()
        pairs = 2 * 3 * (3 * 5 + 4 * 4)
        expected = 0.5 * 255**2 * total / 2 if form == "paper" else total / pairs
    torch.testing.assert_close(total_variation(frame, form), expected)
    assert torch.autograd.gradcheck(lambda x: total_variation(x, form), (frame,))


@pytest.mark.parametrize("form", ["l1", "l2"])
def test_a_pixel_loss_s_gradient_matches_finite_differences(form: Literal["l1", "l2"]) -> None:
    output, target = _features(2, 3, 3, 4).requires_grad_(), _features(2, 3, 3, 4)
    assert pixel_loss(output, target, form).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: pixel_loss(x, target, form), (output,))


# The objective of optimisation and of training

BOTH = replace(
    OPTIMIZE_RECIPES["modern"],
    content_layer="relu2_2",
    style_layers=("relu1_2", "relu2_1"),
    histogram_layers=("relu1_1", "relu2_1"),
    histogram_weight=3.0,
    strength=0.5,
)
SCALES: list[tuple[Literal["relative", "absolute", "gatys2015"], str]] = [
    ("relative", "relative"),
    ("absolute", "johnson2016-code"),
    ("gatys2015", "gatys2015"),
    ("absolute", "unnormalised"),
    ("relative", "gatys-notebook"),
]


@pytest.fixture(scope="module")
def network() -> LossNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LossNetwork("vgg16", BOTH.layers()).double()


def _picture(seed: int, height: int = 12, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, height, width, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("scale", "form"), SCALES)
def test_the_objective_is_the_weighted_sum_of_its_losses(
    network: LossNetwork, scale: Literal["relative", "absolute", "gatys2015"], form: str
) -> None:
    recipe = replace(BOTH, loss_scale=scale, gram_form=form)  # type: ignore[arg-type]
    output, photograph, style = _picture(1), _picture(2), _picture(3)
    seen, there = network(output), network(style)
    target = style_target(network, style, recipe)
    losses = PerceptualLoss(network, [target], recipe, seed=0)(output, photograph)
    mean = 0.5 if scale == "relative" else 1.0  # of two layers
    expected = {
        "content": content_loss(seen["relu2_2"], network(photograph)["relu2_2"], scale),
        "style": mean
        * sum(
            style_loss(
                gram_matrix(seen[layer]),
                gram_matrix(there[layer])[0],
                form,
                seen[layer][0, 0].numel(),
            )
            for layer in recipe.style_layers
        ),
        "histogram": mean
        * sum(
            histogram_loss(seen[layer], sorted_values(there[layer]), scale)
            for layer in recipe.histogram_layers
        ),
        "tv": total_variation(output),
    }
    assert set(losses) == {"total", *expected}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    weights = {"content": 1.0, "style": 10 * 0.5, "histogram": 3 * 0.5, "tv": 25.0}
    total = sum(weights[name] * value for name, value in expected.items())
    torch.testing.assert_close(losses["total"], total)


def test_the_objective_s_gradient_matches_finite_differences(network: LossNetwork) -> None:
    target = style_target(network, _picture(3), BOTH)
    objective = PerceptualLoss(network, [target], BOTH, seed=0)
    frame = _picture(1, 4, 4).requires_grad_()
    content = objective.content_target(_picture(2, 4, 4))
    assert torch.autograd.gradcheck(
        lambda x: objective(x, content=content)["total"], (frame,), eps=1e-7, fast_mode=True
    )


def test_layer_weights_count_as_they_are_given(network: LossNetwork) -> None:
    style, output = _picture(3), _picture(1)
    recipe = replace(BOTH, content_weight=0.0, histogram_weight=0.0, tv_weight=0.0)
    found = []
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.3, 2.0)):
        weighed = replace(recipe, style_layer_weights=weights)
        target = style_target(network, style, weighed)
        found.append(PerceptualLoss(network, [target], weighed)(output)["style"])
    torch.testing.assert_close(found[2], 0.3 * found[0] + 2 * found[1])


def test_parts_of_no_weight_are_not_looked_for(network: LossNetwork) -> None:
    output = _picture(1)
    alone = replace(BOTH, style_weight=0.0, histogram_weight=0.0, tv_weight=0.0)
    losses = PerceptualLoss(network, [], alone)(output, _picture(2))
    assert set(losses) == {"total", "content"}
    assert losses["total"] == losses["content"]
    alone = replace(BOTH, content_weight=0.0, histogram_weight=0.0, tv_weight=0.0)
    target = style_target(network, _picture(3), alone)
    assert target.histograms == {}
    assert set(PerceptualLoss(network, [target], alone)(output)) == {"total", "style"}
    with pytest.raises(ValueError, match="give the photograph"):
        PerceptualLoss(network, [style_target(network, output, BOTH)], BOTH)(output)


def _gradient(objective: PerceptualLoss, output: Tensor, photograph: Tensor) -> Tensor:
    leaf = output.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf, photograph)["total"], leaf)[0]


def test_several_styles_have_the_gradient_of_the_weighted_sum_of_their_losses(
    network: LossNetwork,
) -> None:
    output, photograph = _picture(1), _picture(2)
    apart = [style_target(network, picture, BOTH) for picture in (_picture(3), _picture(4, 16, 12))]
    shares = (0.75, 0.25)
    mixed = [replace(target, weight=share) for target, share in zip(apart, shares, strict=True)]
    alone = [
        _gradient(PerceptualLoss(network, [target], BOTH, seed=0), output, photograph)
        for target in apart
    ]
    torch.testing.assert_close(
        _gradient(PerceptualLoss(network, mixed, BOTH, seed=0), output, photograph),
        shares[0] * alone[0] + shares[1] * alone[1],
    )


def test_a_mask_of_ones_is_no_mask(network: LossNetwork) -> None:
    output, photograph, style = _picture(1), _picture(2), _picture(3)
    everywhere = torch.ones(1, 1, 12, 16, dtype=torch.float64)
    plain = style_target(network, style, BOTH)
    masked = style_target(network, style, BOTH, everywhere)
    for layer, gram in plain.grams.items():
        torch.testing.assert_close(masked.grams[layer], gram)
    for layer, values in plain.histograms.items():
        torch.testing.assert_close(masked.histograms[layer], values)
    torch.testing.assert_close(
        _gradient(
            PerceptualLoss(network, [replace(plain, mask=everywhere)], BOTH, seed=0),
            output,
            photograph,
        ),
        _gradient(PerceptualLoss(network, [plain], BOTH, seed=0), output, photograph),
    )


def test_a_region_s_style_does_not_reach_beyond_its_edge(network: LossNetwork) -> None:
    recipe = replace(BOTH, content_weight=0.0, tv_weight=0.0)
    output = _picture(1, 32, 64)
    left = torch.zeros(1, 1, 32, 64, dtype=torch.float64)
    left[..., :32] = 1
    first, second = (style_target(network, _picture(seed), recipe) for seed in (3, 4))
    alone = _gradient(PerceptualLoss(network, [replace(first, mask=left)], recipe), output, output)
    reach = 6  # pixels that a position of relu2_1 sees to each side
    assert alone[..., 32 + reach :].abs().max() == 0
    assert alone[..., : 32 - reach].abs().min() > 0
    both = [replace(first, mask=left), replace(second, mask=1 - left)]
    together = _gradient(PerceptualLoss(network, both, recipe, seed=0), output, output)
    again = _gradient(PerceptualLoss(network, both[:1], recipe, seed=0), output, output)
    torch.testing.assert_close(together[..., : 32 - reach], again[..., : 32 - reach])


def test_a_region_of_a_style_picture_has_the_statistics_of_the_picture_cut_there(
    network: LossNetwork,
) -> None:
    # Of the first layer's positions within: convolutions look over the edge.
    recipe = replace(BOTH, style_layers=("relu1_2",), histogram_layers=("relu1_1",))
    picture = torch.cat([_picture(3, 32, 32), torch.ones(1, 3, 32, 32).double()], 3)
    left = torch.zeros(1, 1, 32, 64, dtype=torch.float64)
    left[..., :32] = 1
    cut = style_target(network, picture[..., :32], recipe)
    masked = style_target(network, picture, recipe, left)
    whole = style_target(network, picture, recipe)
    gram = cut.grams["relu1_2"]
    near = (masked.grams["relu1_2"] - gram).norm() / gram.norm()
    far = (whole.grams["relu1_2"] - gram).norm() / gram.norm()
    assert near < 0.1 < 0.3 < far
    assert masked.histograms["relu1_1"].shape == cut.histograms["relu1_1"].shape


def test_a_region_thinner_than_a_layer_s_positions_stays_finite(network: LossNetwork) -> None:
    thin = torch.zeros(1, 1, 12, 16, dtype=torch.float64)
    thin[..., 7] = 1
    target = style_target(network, _picture(3), BOTH, thin)
    objective = PerceptualLoss(network, [replace(target, mask=thin)], BOTH, seed=0)
    assert torch.isfinite(_gradient(objective, _picture(1), _picture(2))).all()


def test_one_colour_has_finite_losses_and_gradients(network: LossNetwork) -> None:
    flat, black = torch.full((1, 3, 16, 16), 0.5).double(), torch.zeros(1, 3, 16, 16).double()
    for output in (flat, black):
        for style in (flat, black):
            target = style_target(network, style, BOTH)
            gradient = _gradient(PerceptualLoss(network, [target], BOTH, seed=0), output, black)
            assert torch.isfinite(gradient).all()


def test_a_seeded_objective_is_the_same_function_at_every_call(network: LossNetwork) -> None:
    recipe = replace(BOTH, histogram_samples=20)
    target = style_target(network, _picture(3), recipe)
    output, photograph = _picture(1), _picture(2)
    objective = PerceptualLoss(network, [target], recipe, seed=5)
    assert objective(output, photograph)["total"] == objective(output, photograph)["total"]
    drawn = PerceptualLoss(network, [target], recipe)
    assert drawn(output, photograph)["total"] != drawn(output, photograph)["total"]
