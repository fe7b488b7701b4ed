import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from topcoat.train import RecipeError
from topcoat.train.degradation import degrade, gaussian_blur, imresize
from topcoat.train.frames import frame_tensor
from topcoat.train.pictures import open_rgb, sample_photographs


def _matrix(length: int, factor: float) -> NDArray[np.float64]:
    """MATLAB's imresize along one axis, as a matrix, written from its documentation."""
    out = round(length * factor)
    stretch = max(1.0, 1 / factor)
    matrix = np.zeros((out, length))
    for i in range(out):
        centre = (i + 0.5) / factor - 0.5
        first = int(np.floor(centre - 2 * stretch)) - 1
        positions = np.arange(first, first + int(4 * stretch) + 4)
        x = np.abs((centre - positions) / stretch)
        weights = np.where(
            x <= 1,
            1.5 * x**3 - 2.5 * x**2 + 1,
            np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0),
        )
        weights /= weights.sum()
        mirrored = [*range(length), *range(length - 1, -1, -1)]
        for position, weight in zip(positions, weights, strict=True):
            matrix[i, mirrored[position % (2 * length)]] += weight
    return matrix


@pytest.mark.parametrize("factor", [1 / 2, 1 / 4, 1 / 8, 2, 4, 8])
def test_imresize_is_matlab_s_up_to_the_borders(factor: float) -> None:
    frame = torch.rand(1, 2, 40, 56, dtype=torch.float64, generator=torch.manual_seed(0))
    wanted = _matrix(40, factor) @ frame.numpy() @ _matrix(56, factor).T
    way = {"shrink": round(1 / factor)} if factor < 1 else {"enlarge": round(factor)}
    assert np.abs(imresize(frame, **way).numpy() - wanted).max() < 1e-12


def test_halving_uses_the_well_known_eight_weights() -> None:
    impulses = torch.eye(32, dtype=torch.float64)[:, None, None].expand(32, 1, 32, 32)
    halved = imresize(impulses, shrink=2)  # picture i is white at column i and black elsewhere
    weights = halved[:, 0, 8, 8] * 256
    assert weights[13:21].round(decimals=6).tolist() == [-3, -9, 29, 111, 111, 29, -9, -3]
    assert weights[:13].abs().sum() + weights[21:].abs().sum() < 1e-9


def test_a_flat_picture_stays_flat_to_the_last_pixel() -> None:
    flat = torch.full((1, 3, 16, 24), 0.3, dtype=torch.float64)
    for changed in (imresize(flat, shrink=8), imresize(flat, enlarge=4), gaussian_blur(flat, 1.0)):
        assert (changed - 0.3).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("frame", "factors", "complaint"),
    [
        (torch.zeros(1, 1, 9, 8), {"shrink": 2}, "8x9 is not a multiple of 2"),
        (torch.zeros(1, 1, 8, 8), {"shrink": 2, "enlarge": 2}, "one of shrink and enlarge"),
        (torch.zeros(1, 1, 8, 8), {"shrink": 0}, "one of shrink and enlarge"),
    ],
)
def test_sizes_and_factors_that_cannot_be_are_refused(
    frame: Tensor, factors: dict[str, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        imresize(frame, **factors)


def test_the_blur_has_the_standard_deviation_asked_for() -> None:
    impulse = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    impulse[..., 15, 15] = 1
    blurred = gaussian_blur(impulse, 1.0)[0, 0]
    offsets = torch.arange(31, dtype=torch.float64) - 15
    assert float(blurred.sum()) == pytest.approx(1)
    assert float((blurred.sum(0) * offsets**2).sum()) == pytest.approx(1.0, abs=0.02)  # cut at 3 σ
    assert int((blurred[15] > 0).sum()) == 7
    assert torch.equal(gaussian_blur(impulse, 0.0), impulse)


def test_a_degraded_picture_is_smaller_rounded_and_without_gradient() -> None:
    original = frame_tensor(open_rgb(sample_photographs()[0]).crop((0, 0, 64, 48)))
    small = degrade(original.requires_grad_(), 4)
    assert small.shape == (1, 3, 12, 16)
    assert not small.requires_grad
    assert (small * 255 - (small * 255).round()).abs().max() < 1e-4
    assert 0 <= small.min() < small.max() <= 1


def test_blur_before_shrinking_takes_away_contrast() -> None:
    original = frame_tensor(open_rgb(sample_photographs()[0]).crop((0, 0, 256, 256)))
    plain, blurred = degrade(original, 2), degrade(original, 2, blur=1.0)
    assert blurred.std() < plain.std()
    assert (plain.mean() - blurred.mean()).abs() < 1e-3


def test_a_blur_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"blur must be 0 or from 0\.1 to 16 pixels, got -1"):
        degrade(torch.zeros(1, 3, 8, 8), 2, blur=-1)
