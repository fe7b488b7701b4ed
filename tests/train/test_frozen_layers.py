"""The written-out passes of the loss network against the plain layers that they stand for."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train import optimize
from topcoat.train.losses import LossNetwork, _frozen, _winograd, gram_matrix
from topcoat.train.recipes import OPTIMIZE_RECIPES

_LAYERS = ("relu1_2", "relu2_2", "relu3_3")


@pytest.fixture(scope="module")
def network() -> LossNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LossNetwork("vgg16", _LAYERS)


def _frame(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def _plainly(network: LossNetwork, frame: Tensor) -> dict[str, Tensor]:
    x, found = (frame - network.mean) / network.std, {}
    for index, module in enumerate(network.features):
        x = F.relu(x) if isinstance(module, nn.ReLU) else module(x)
        if index in network.taps:
            found[network.taps[index]] = x
    return found


def _relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_features_grams_and_their_gradients_are_those_of_the_plain_layers(
    pooling: str, checkpointing: bool
) -> None:
    torch.manual_seed(0)
    network = LossNetwork("vgg16", _LAYERS, pooling=pooling, widths=(6,) * 7)  # type: ignore[arg-type]
    network = network.double()
    network.checkpointing = checkpointing
    gradients = []
    for way in ("plain", "ours"):
        frame = _frame(2, 3, 22, 30, dtype=torch.float64).requires_grad_(True)
        if way == "plain":
            features = _plainly(network, frame)
            grams = {layer: gram_matrix(features[layer]) for layer in _LAYERS}
        else:
            features, grams = network.statistics(frame, ["relu3_3", "relu2_2"], _LAYERS)
        losses = [features[layer].sin().sum() for layer in ("relu2_2", "relu3_3")]
        losses += [gram.square().sum() for gram in grams.values()]
        torch.autograd.backward(torch.stack(losses).sum())
        assert frame.grad is not None
        gradients.append(frame.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_what_nothing_is_asked_of_gets_no_gradient(network: LossNetwork) -> None:
    frame = _frame(1, 3, 32, 32).requires_grad_(True)
    features, grams = network.statistics(frame, ["relu3_3"], ["relu1_2"])
    assert set(features) == {"relu3_3"}
    assert set(grams) == {"relu1_2"}
    torch.autograd.backward(grams["relu1_2"].square().sum())  # nothing comes from behind relu1_2
    plain = _frame(1, 3, 32, 32).requires_grad_(True)
    torch.autograd.backward(gram_matrix(_plainly(network, plain)["relu1_2"]).square().sum())
    assert frame.grad is not None
    assert plain.grad is not None
    assert _relative(frame.grad, plain.grad) < 1e-4


def test_gradients_that_are_handed_in_are_not_written_over(network: LossNetwork) -> None:
    frame = _frame(1, 3, 32, 32).requires_grad_(True)
    features, _ = network.statistics(frame, ["relu1_2", "relu2_2"], [])
    given = [torch.randn_like(tap) for tap in features.values()]
    kept = [gradient.clone() for gradient in given]
    torch.autograd.backward([*features.values()], given)
    assert all(torch.equal(*pair) for pair in zip(given, kept, strict=True))


def test_under_autocast_every_convolution_computes_in_bfloat16_and_the_gram_matrices_do_not(
    network: LossNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    apply, back = _frozen._Constants.apply, _frozen._Constants.back

    def noted(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(self: _frozen._Constants, x: Tensor) -> Tensor:
            result = method(self, x)
            seen.extend((x.dtype, self.weight.dtype, self.mirrored.dtype, result.dtype))
            return result

        return run

    monkeypatch.setattr(_frozen._Constants, "apply", noted(apply))
    monkeypatch.setattr(_frozen._Constants, "back", noted(back))
    frame = _frame(1, 3, 16, 16).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        features, grams = network.statistics(frame, ["relu3_3"], _LAYERS)
        loss = sum(gram.square().sum() for gram in grams.values()) + features["relu3_3"].sum()
    assert isinstance(loss, Tensor)
    torch.autograd.backward(loss)
    assert len(seen) == 2 * 7 * 4
    assert set(seen) == {torch.bfloat16}
    assert {gram.dtype for gram in grams.values()} == {torch.float32}
    assert features["relu3_3"].dtype == torch.bfloat16
    assert frame.grad is not None
    assert frame.grad.dtype == torch.float32
    exact = copy.deepcopy(network).double()
    truth = gram_matrix(_plainly(exact, frame.detach().double())["relu3_3"])
    assert _relative(grams["relu3_3"], truth) < 0.02  # bfloat16 has 8 bits


@pytest.mark.parametrize("without", ["bf16", "onednn"])
def test_where_onednn_cannot_or_may_not_compute_the_fused_operator_is_not_called(
    network: LossNetwork, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    frame = _frame(1, 3, 24, 24)
    exact = _plainly(copy.deepcopy(network).double(), frame.double())["relu3_3"]
    called: list[torch.dtype] = []
    fused = _frozen._FUSED

    def noted(x: Tensor, *rest: object) -> object:
        called.append(x.dtype)
        assert fused is not None
        return fused(x, *rest)

    monkeypatch.setattr(_frozen, "_FUSED", noted)
    if without == "bf16":
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    enabled = torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(enabled and without != "onednn")
        for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                found = network(frame)["relu3_3"]
            assert found.dtype == dtype
            assert _relative(found, exact) < error
    finally:
        torch._C._set_mkldnn_enabled(enabled)
    assert set(called) <= ({torch.float32} if without == "bf16" else set())


def test_weights_are_converted_once_and_again_when_they_change(network: LossNetwork) -> None:
    network = copy.deepcopy(network)
    conv = network.features[0]
    assert isinstance(conv, nn.Conv2d)
    first = _frozen._constants(conv, torch.bfloat16)
    before = first.weight
    assert _frozen._constants(conv, torch.bfloat16) is first
    with torch.no_grad():
        conv.weight.mul_(2)
    again = _frozen._constants(conv, torch.bfloat16)
    torch.testing.assert_close(again.weight, 2 * before)
    frame = _frame(1, 3, 16, 16)
    assert _relative(network(frame)["relu3_3"], _plainly(network, frame)["relu3_3"]) < 1e-5


def test_weights_that_learn_take_the_plain_way(network: LossNetwork) -> None:
    learning = copy.deepcopy(network).requires_grad_(True)
    learning(_frame(1, 3, 16, 16))["relu3_3"].sum().backward()
    first = learning.features[0]
    assert isinstance(first, nn.Conv2d)
    assert first.weight.grad is not None


@pytest.mark.parametrize("size", [(16, 16), (17, 50), (35, 24), (64, 21)])
@pytest.mark.parametrize("relu", [False, True])
def test_a_minimal_filtering_convolution_is_the_convolution(
    size: tuple[int, int], relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_winograd, "_CHUNK", 36 * 13 * 128 * 2)  # strips of a few rows of tiles
    torch.manual_seed(0)
    x = torch.randn(2, 64, *size).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(128, 64, 3, 3) / 24, torch.randn(128)
    truth = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    kernel = _winograd.kernel(weight)
    assert kernel is not None
    found = kernel(x, bias, relu=relu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    error = (found - (truth.relu() if relu else truth)).abs().max()
    assert 0 < float(error / truth.abs().max()) < 1e-5


def test_narrow_layers_and_small_maps_are_convolved_directly() -> None:
    assert _winograd.kernel(torch.randn(64, 3, 3, 3)) is None
    assert _winograd.kernel(torch.randn(64, 64, 3, 3)) is None
    kernel = _winograd.kernel(torch.randn(128, 64, 3, 3))
    assert kernel is not None
    assert not kernel.pays(torch.empty(1, 64, 12, 12))
    assert not kernel.pays(torch.empty(1, 64, 64, 64, dtype=torch.bfloat16))
    assert kernel.pays(torch.empty(1, 64, 64, 64))


@pytest.mark.parametrize("size", [(96, 96), (131, 77)])
def test_vgg16_s_own_widths_give_the_exact_gradient_by_minimal_filtering(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu3_3")
    torch.manual_seed(0)
    network = LossNetwork("vgg16", layers, pooling="average")
    for conv in network.features:
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight)  # else little gets through, but for the biases
    ways: list[tuple[int, bool]] = []
    run = _winograd.Kernel.__call__

    def noted(self: _winograd.Kernel, x: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        ways.append((x.shape[1], relu))
        return run(self, x, bias, relu=relu)

    def gradient(frame: Tensor, features: dict[str, Tensor], gram: Tensor) -> Tensor:
        losses = [features[layer].square().mean() for layer in ("relu2_2", "relu3_3")]
        torch.autograd.backward(losses[0] + losses[1] + gram.square().sum())
        assert frame.grad is not None
        return frame.grad

    monkeypatch.setattr(_winograd.Kernel, "__call__", noted)
    frame = _frame(1, 3, *size).requires_grad_(True)
    features, grams = network.statistics(frame, layers, ["relu3_3"])
    found = gradient(frame, features, grams["relu3_3"])
    # A few values so near zero that rounding decides their sign would hide all other errors.
    open_to = {layer: tap.detach() > 0 for layer, tap in features.items()}
    exact = copy.deepcopy(network).double()
    frame = frame.detach().double().requires_grad_(True)
    x, truth = (frame - exact.mean) / exact.std, {}
    for index, module in enumerate(exact.features):
        if isinstance(module, nn.ReLU):
            truth[exact.taps[index]] = x = x * open_to[exact.taps[index]]
        else:
            x = module(x)
    wanted = gradient(frame, truth, gram_matrix(truth["relu3_3"]))
    # Behind relu3_3 to relu2_1; the layer of 64 x 64 channels is too narrow, and the first one.
    assert [channels for channels, relu in ways if not relu] == [256, 256, 256, 128, 128]
    assert [channels for channels, relu in ways if relu] == [64, 128, 128, 256, 256]
    assert _relative(found, wanted) < 5e-6


def _planes(network: LossNetwork) -> list[Tensor]:
    """The transformed weights that are held."""
    kernels = [
        kernel
        for layer in network.features
        if isinstance(layer, nn.Conv2d)
        for constants in _frozen._CACHE.get(layer, {}).values()
        for kernel in (constants.fast, constants.fast_back)
    ]
    return [kernel.planes for kernel in kernels if kernel and "planes" in vars(kernel)]


def test_transformed_weights_are_held_only_once_and_where_they_are_used(
    network: LossNetwork,
) -> None:
    small, network = copy.deepcopy(network), copy.deepcopy(network)
    small(_frame(1, 3, 12, 12))
    assert _planes(small) == []
    network(_frame(1, 3, 80, 80))
    forward = sum(planes.nbytes for planes in _planes(network))
    frame = _frame(1, 3, 80, 80).requires_grad_(True)
    quick = network(frame)["relu3_3"]
    quick.square().mean().backward()
    assert sum(planes.nbytes for planes in _planes(network)) == 2 * forward
    assert 2 * forward == network.prepared_bytes() > 0
    convs = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    widest = _frozen._constants(convs[-1], torch.float32)
    assert not {"weight", "mirrored"} & set(vars(widest))  # a copy that nothing has asked for
    network.checkpointing = True
    again = _frame(1, 3, 80, 80).requires_grad_(True)
    found = network(again)["relu3_3"]
    found.square().mean().backward()
    assert _planes(network) == []  # what was held is let go, too
    assert _relative(found, quick) < 1e-5
    assert frame.grad is not None
    assert again.grad is not None
    assert _relative(again.grad, frame.grad) < 1e-2  # a sign may turn in a ReLU


def test_transformed_weights_count_when_memory_is_scarce(
    network: LossNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, start = OPTIMIZE_RECIPES["modern"], torch.empty(1, 3, 64, 64)
    held = network.prepared_bytes()
    # Enough for the picture, but not for the transformed weights beside it.
    monkeypatch.setattr(optimize, "available_memory", lambda: 5 * held)
    assert not optimize._recompute("auto", recipe, start, network)
    monkeypatch.setattr(optimize, "available_memory", lambda: 1.7 * held)
    assert optimize._recompute("auto", recipe, start, network)
    narrow = LossNetwork("vgg16", _LAYERS, widths=(6,) * 7)
    assert narrow.prepared_bytes() == 0
    assert not optimize._recompute("auto", recipe, start, narrow)
