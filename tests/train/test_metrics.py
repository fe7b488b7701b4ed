"""The measures against numbers that can be had another way."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from topcoat.train import metrics
from topcoat.train.metrics import find_lpips, luma, match_histogram, psnr_y, ssim_y
from topcoat.train.pictures import open_rgb, sample_photographs, to_array


@pytest.fixture
def noise() -> metrics.Picture:
    return np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def _flat(value: int) -> metrics.Picture:
    return np.full((32, 32, 3), value, np.uint8)


def test_luma_is_the_weighted_sum_of_bt_601(noise: metrics.Picture) -> None:
    by_hand = 16 + noise.astype(np.float64) @ [65.481, 128.553, 24.966] / 255
    np.testing.assert_allclose(luma(noise), by_hand, atol=1e-9)


def test_psnr_of_a_constant_difference_follows_from_its_definition() -> None:
    # Ten grey levels are 10 * 219/255 levels of Y.
    expected = 20 * math.log10(255 / (10 * 219 / 255))
    assert psnr_y(_flat(110), _flat(100), border=4) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_two_flat_pictures_is_its_luminance_term() -> None:
    first, second = (16 + value * 219 / 255 for value in (60, 180))
    c1 = (0.01 * 255) ** 2
    expected = (2 * first * second + c1) / (first**2 + second**2 + c1)
    assert ssim_y(_flat(60), _flat(180), border=0) == pytest.approx(expected, abs=1e-6)


def test_ssim_is_the_gaussian_windowed_average_of_its_definition() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 256, (2, 11, 11, 3), dtype=np.uint8)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(window, window) / window.sum() ** 2
    x, y = luma(first), luma(second)
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x, var_y = (weights * x**2).sum() - mean_x**2, (weights * y**2).sum() - mean_y**2
    covariance = (weights * x * y).sum() - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    assert ssim_y(first, second, border=0) == pytest.approx(expected, abs=1e-9)


def test_equal_pictures_are_infinitely_and_wholly_alike(noise: metrics.Picture) -> None:
    assert psnr_y(noise, noise.copy(), border=4) == math.inf
    assert ssim_y(noise, noise.copy(), border=4) == pytest.approx(1)


def test_the_border_does_not_count(noise: metrics.Picture) -> None:
    other = noise.copy()
    other[:4], other[-4:], other[:, :4], other[:, -4:] = 0, 0, 0, 0
    assert psnr_y(other, noise, border=4) == math.inf
    assert ssim_y(other, noise, border=4) == pytest.approx(1)
    assert psnr_y(other, noise, border=3) < 30


@pytest.mark.parametrize("measure", [psnr_y, ssim_y])
def test_what_cannot_be_compared_is_refused(measure: metrics.Distance) -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(32, 32, 3\) and \(16, 32, 3\)"):
        measure(_flat(1), _flat(1)[:16], 0)
    with pytest.raises(ValueError, match="border"):
        measure(_flat(1), _flat(1), 16)


def test_ssim_refuses_less_than_its_window() -> None:
    with pytest.raises(ValueError, match="10x10 within the border is less than SSIM's window"):
        ssim_y(_flat(1), _flat(1), border=11)


def test_matching_the_histogram_takes_a_colour_cast_off() -> None:
    original = to_array(open_rgb(sample_photographs()[1]))[:240, :320]
    low = original[::4, ::4]
    cast = np.clip(original * np.array([0.8, 1.0, 0.9]) + [30, 0, -10], 0, 255).astype(np.uint8)
    matched = match_histogram(cast, low)
    before = np.abs(cast.mean((0, 1)) - low.mean((0, 1))).max()
    after = np.abs(matched.mean((0, 1)) - low.mean((0, 1))).max()
    assert before > 5
    assert after < 0.25
    assert psnr_y(matched, original, 4) > psnr_y(cast, original, 4) + 6


def test_matching_a_picture_with_itself_changes_nothing(noise: metrics.Picture) -> None:
    np.testing.assert_array_equal(match_histogram(noise, noise), noise)


class _FakeLPIPS(nn.Module):
    """Stands for the package: the mean difference, and it shows what it was given."""

    def __init__(self, net: str, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, pnet_rand, verbose) == ("alex", True, False)  # anything else would download
        self.net = nn.Module()
        self.net.slice1 = nn.Module()
        self.net.slice1.add_module("0", nn.Conv2d(1, 1, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        assert -1 <= first.min() <= first.max() <= 1
        weight: Tensor = self.net.get_parameter("slice1.0.weight")
        return (first - second).abs().mean() * weight.sum()


@pytest.fixture
def lpips_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the optional packages; returns where the weights belong."""
    package = ModuleType("lpips")
    package.LPIPS = _FakeLPIPS  # type: ignore[attr-defined]
    models = ModuleType("torchvision.models")
    url = "https://example.org/alexnet-owt-7be5be79.pth"
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=url))
    models.AlexNet_Weights = weights  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr(metrics, "version", lambda name: f"0 of {name}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"


def test_without_its_package_lpips_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    distance, reason = find_lpips()
    assert distance is None
    assert "pip install 'topcoat-train[lpips]'" in reason


def test_without_its_weights_lpips_says_where_they_belong(lpips_package: Path) -> None:
    distance, reason = find_lpips()
    assert distance is None
    assert str(lpips_package) in reason


def test_damaged_lpips_weights_are_not_used(lpips_package: Path) -> None:
    lpips_package.write_bytes(b"not the weights")
    distance, reason = find_lpips()
    assert distance is None
    assert "is damaged" in reason


def test_a_torchvision_of_another_torch_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, lpips_package: Path
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "torchvision.models", Broken("torchvision.models"))
    distance, reason = find_lpips()
    assert distance is None
    assert "nms does not exist" in reason


def test_with_everything_there_lpips_measures_within_the_border(
    lpips_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"features.0.weight": torch.full((1, 1, 1, 1), 2.0), "features.0.bias": torch.zeros(1)}
    torch.save(state, lpips_package)
    monkeypatch.setattr(metrics, "_damage", lambda path: "")  # a hash cannot be made to order
    distance, described = find_lpips()
    assert described == "lpips 0 of lpips, AlexNet"
    assert distance is not None
    other = _flat(0)
    other[:2] = 255
    assert distance(_flat(0), other, 2) == 0
    assert distance(_flat(0), _flat(255), 2) == pytest.approx(4)
