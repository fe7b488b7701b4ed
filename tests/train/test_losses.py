import pytest
import torch

from topcoat.train.losses import content_loss, gram_matrix, style_loss, total_variation


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
