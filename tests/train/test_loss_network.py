import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from topcoat.train import LossWeightsError, RecipeError
from topcoat.train.losses import (
    LossNetwork,
    PerceptualLoss,
    find_loss_weights,
    load_loss_network,
    style_target,
)
from topcoat.train.losses.features import (
    layer_index,
    layer_names,
    perceptual_network,
    scale_to_unit_mean,
)
from topcoat.train.recipes import OPTIMIZE_RECIPES, STYLE_RECIPES


@pytest.mark.parametrize(
    ("network", "layer", "index"),
    [
        *(("vgg16", "relu1_2", 3), ("vgg16", "relu2_2", 8), ("vgg16", "relu3_3", 15)),
        *(("vgg16", "relu4_3", 22), ("vgg19", "relu4_2", 22), ("vgg19", "relu5_1", 29)),
    ],
)
def test_layers_sit_where_the_published_code_finds_them(
    network: str, layer: str, index: int
) -> None:
    assert layer_index(network, layer) == index


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_features_equal_torchvision_s(network: str) -> None:
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    torch.manual_seed(0)
    theirs = getattr(models, network)(weights=None).features.eval()
    ours = LossNetwork(network, ["relu2_2", "relu4_1"], "imagenet")
    prefix = {f"features.{k}": v for k, v in theirs.state_dict().items()}
    ours.load_state_dict({k: v for k, v in prefix.items() if k in ours.state_dict()})
    frame = torch.rand(1, 3, 32, 32)
    expected = theirs[: layer_index(network, "relu4_1") + 1]((frame - ours.mean) / ours.std)
    torch.testing.assert_close(ours(frame)["relu4_1"], expected)


def test_stopping_early_gives_the_same_features() -> None:
    network = LossNetwork("vgg16", ["relu1_2", "relu2_2", "relu3_1"])
    frame = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(
        network(frame, until="relu2_2")["relu2_2"], network(frame)["relu2_2"]
    )
    assert list(network(frame, until="relu2_2")) == ["relu2_2"]


def test_a_file_that_ends_early_serves_the_layers_it_holds(loss_weights: Path) -> None:
    network = load_loss_network("vgg16", ["relu1_2", "relu3_3"], loss_weights)
    assert network(torch.rand(1, 3, 16, 16))["relu3_3"].shape == (1, 256, 4, 4)


def test_a_file_that_ends_too_early_names_the_missing_layers_and_the_field(
    loss_weights: Path,
) -> None:
    with pytest.raises(LossWeightsError) as caught:
        load_loss_network("vgg16", ["relu1_2", "relu4_3"], loss_weights)
    message = str(caught.value)
    assert "relu4_1, relu4_2, relu4_3" in message
    assert "ends at relu3_3" in message
    assert "--style-layers" in message


def test_an_unknown_layer_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"relu9_9.*relu1_1, relu1_2"):
        LossNetwork("vgg16", ["relu9_9"])
    assert len(layer_names("vgg19")) == 16


def test_a_convolution_s_name_is_answered_with_that_of_its_relu() -> None:
    with pytest.raises(RecipeError, match=r"'conv4_2' \(relu4_2 is what comes out of it\); choose"):
        LossNetwork("vgg16", ["conv4_2"])


@pytest.mark.parametrize(
    ("asked", "held", "layers"),
    [("vgg19", "vgg16", ["relu4_1", "relu5_1"]), ("vgg16", "vgg19", ["relu4_1"])],
)
def test_a_file_for_the_other_network_is_called_so(
    tmp_path: Path, asked: str, held: str, layers: list[str]
) -> None:
    state = {  # of names alone: shapes are looked at later
        f"features.{index - 1}.weight": torch.zeros(1) for index in layer_names(held).values()
    }
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(LossWeightsError, match=f"holds {held.upper()}, not {asked}; set --loss-n"):
        load_loss_network(asked, layers, tmp_path / "other.pth")


def test_the_layers_that_a_file_lacks_are_blamed_on_the_fields_that_count(
    loss_weights: Path,
) -> None:
    recipe = replace(
        OPTIMIZE_RECIPES["modern"],
        style_weight=0.0,
        histogram_weight=1.0,
        histogram_layers=("relu1_1", "relu4_1"),
    )
    with pytest.raises(LossWeightsError) as caught:
        perceptual_network(recipe, loss_weights)
    assert "lacks the vgg16 layers relu4_1, which relu4_1 needs" in str(caught.value)
    assert "with --histogram-layers or --content-layer" in str(caught.value)


def _frame(seed: int = 0, side: int = 32) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_average_pooling_takes_the_mean_where_max_takes_the_greatest(loss_weights: Path) -> None:
    layers = ["relu1_2", "relu2_1"]
    most = load_loss_network("vgg16", layers, loss_weights)(_frame())
    mean = load_loss_network("vgg16", layers, loss_weights, pooling="average")
    found = mean(_frame())
    assert torch.equal(found["relu1_2"], most["relu1_2"])
    pooled = torch.nn.functional.avg_pool2d(found["relu1_2"], 2)
    by_hand = mean.features[5](pooled).relu()
    torch.testing.assert_close(found["relu2_1"], by_hand, rtol=0, atol=1e-5 * float(by_hand.max()))


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_unit_mean_activations_are_the_same_features_but_for_their_scale(
    loss_weights: Path, pooling: Literal["max", "average"]
) -> None:
    layers = ["relu1_1", "relu1_2", "relu2_2", "relu3_3"]
    before, after = (
        load_loss_network("vgg16", layers, loss_weights, pooling=pooling) for _ in range(2)
    )
    pictures = [_frame(1), _frame(2, 48)]
    scale_to_unit_mean(after, pictures)
    for layer in layers:
        sums = sum(after(picture)[layer].sum((0, 2, 3)) for picture in pictures)
        count = sum(after(picture)[layer][0, 0].numel() for picture in pictures)
        mean = sum(before(picture)[layer].sum((0, 2, 3)) for picture in pictures) / count
        # 1, but for filters below 0.3 of their layer's mean, which are not blown up as far.
        expected = mean / mean.clamp_min(0.3 * mean.mean())
        assert (expected == 1).sum() > len(expected) / 3
        torch.testing.assert_close(sums / count, expected, rtol=1e-3, atol=1e-6)
        old, new = before(_frame(3))[layer], after(_frame(3))[layer]
        factor = new.sum((0, 2, 3)) / old.sum((0, 2, 3)).clamp_min(1e-12)
        torch.testing.assert_close(new, old * factor[None, :, None, None], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_activations_computed_again_give_the_same_losses_and_gradients(
    loss_weights: Path, pooling: Literal["max", "average"]
) -> None:
    recipe = replace(
        OPTIMIZE_RECIPES["modern"],
        histogram_weight=1.0,
        histogram_layers=("relu1_1", "relu2_1"),
        loss_pooling=pooling,
    )
    network, _ = perceptual_network(recipe, loss_weights)
    objective = PerceptualLoss(network, [style_target(network, _frame(5), recipe)], recipe, seed=0)
    found = []
    for network.checkpointing in (False, True):
        frame = _frame(6).requires_grad_()
        losses = objective(frame, _frame(7))
        (gradient,) = torch.autograd.grad(losses["total"], frame)
        found.append((losses, gradient))
    for name, value in found[0][0].items():  # without Winograd's products, so to rounding
        torch.testing.assert_close(found[1][0][name], value)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_weight_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(LossWeightsError, match=r"weights\.pth is not a readable weight file"):
        load_loss_network("vgg16", ["relu1_2"], path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    state = LossNetwork("vgg16", ["relu1_2"]).state_dict()
    state["features.2.weight"] = torch.zeros(8, 8, 3, 3)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(LossWeightsError, match=r"features\.2\.weight of shape \(8, 8, 3, 3\)"):
        load_loss_network("vgg16", ["relu1_2"], tmp_path / "other.pth")


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    state = LossNetwork("vgg16", ["relu1_2"]).state_dict()
    state["features.2.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(LossWeightsError, match="NaN"):
        load_loss_network("vgg16", ["relu1_2"], tmp_path / "nan.pth")


def test_the_file_given_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, loss_weights: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(loss_weights.read_bytes())
    monkeypatch.setenv("TOPCOAT_VGG16_WEIGHTS", str(loss_weights))
    assert find_loss_weights("vgg16", other).origin == "--loss-weights"
    assert find_loss_weights("vgg16").path == loss_weights


def test_a_named_file_that_is_missing_is_an_error_and_not_a_reason_to_look_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOPCOAT_VGG16_WEIGHTS", str(tmp_path / "gone.pth"))
    with pytest.raises(LossWeightsError, match=r"TOPCOAT_VGG16_WEIGHTS names .*gone\.pth"):
        find_loss_weights("vgg16")


def test_the_hub_cache_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOPCOAT_VGG16_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "vgg16_features-amdegroot-88682ab5.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert find_loss_weights("vgg16").origin == "hub cache"


def test_vgg19_s_published_weights_are_taken_with_their_own_input_only(tmp_path: Path) -> None:
    path = tmp_path / "vgg19-dcbb9e9d.pth"
    torch.save(LossNetwork("vgg19", ["relu1_2"]).state_dict(), path)
    with pytest.raises(LossWeightsError, match="--loss-input imagenet"):
        load_loss_network("vgg19", ["relu1_2"], path, "oxford")
    load_loss_network("vgg19", ["relu1_2"], path, "imagenet")
    vgg19 = replace(STYLE_RECIPES["modern"], loss_network="vgg19")
    assert vgg19.loss_convention() == "imagenet"
    assert STYLE_RECIPES["modern"].loss_convention() == "oxford"


def test_the_real_weights_are_recognised_and_told_apart_from_other_conventions() -> None:
    path = os.environ.get("TOPCOAT_VGG16_WEIGHTS")
    if not path:
        pytest.skip("TOPCOAT_VGG16_WEIGHTS is not set: the Oxford weights are not checked")
    network = load_loss_network("vgg16", ["relu1_2", "relu3_3"], path)
    assert network(torch.rand(1, 3, 32, 32))["relu3_3"].max() > 10  # 0-255 input: large activations
    with pytest.raises(LossWeightsError, match="--loss-input oxford"):
        load_loss_network("vgg16", ["relu1_2"], path, "imagenet")
    with pytest.raises(LossWeightsError, match="holds VGG16, not vgg19"):
        load_loss_network("vgg19", ["relu1_2"], path, "oxford")
