import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from topcoat.train import RecipeError
from topcoat.train.degradation import imresize
from topcoat.train.frames import frame_tensor
from topcoat.train.networks import (
    SRCNN,
    FrameNetwork,
    JohnsonSR,
    JohnsonSRSettings,
    ResidualSR,
    ResidualSRSettings,
    SRCNNSettings,
    build_network,
)
from topcoat.train.networks._bicubic import BicubicUpsampling
from topcoat.train.pictures import open_rgb, sample_photographs

SMALL: dict[str, dict[str, Any]] = {
    "johnson-sr": {"width": 4, "blocks": 1},
    "residual-sr": {"width": 4, "blocks": 1},
    "srcnn": {"width": 4},
}


def _photograph(side: int) -> Tensor:
    return frame_tensor(open_rgb(sample_photographs()[0]).crop((100, 50, 100 + side, 50 + side)))


def _lively(name: str, **settings: object) -> FrameNetwork:
    """A network with weights that let every input through, as training would leave it."""
    torch.manual_seed(0)
    network = build_network(name, settings).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=1 / math.sqrt(fan_in))
    return network


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_bicubic_as_a_convolution_is_imresize(scale: int) -> None:
    frame = torch.rand(1, 3, 12, 10, generator=torch.manual_seed(0))
    difference = BicubicUpsampling(scale)(frame) - imresize(frame, enlarge=scale)
    inner = difference[..., 2 * scale : -2 * scale, 2 * scale : -2 * scale]
    # The network's weights are whole 256ths.
    assert inner.abs().max() < 0.02
    assert inner.abs().mean() < 0.003
    # At the border one repeats the edge pixel and the other mirrors: small, not nothing.
    assert 0 < difference.abs().max() < 0.3


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_weights_of_bicubic_are_exact_in_bfloat16_and_keep_flat_areas_flat(scale: int) -> None:
    bicubic = BicubicUpsampling(scale)
    assert torch.equal(bicubic.weight, bicubic.weight.bfloat16().float())
    assert torch.equal(bicubic.weight.sum((1, 2, 3)), torch.ones(3 * scale**2))
    for value in (1 / 255, 0.3, 140 / 255, 1.0):
        flat = torch.full((1, 3, 5, 5), value).bfloat16().float()
        assert torch.equal(bicubic(flat), flat[..., :1, :1].expand(1, 3, 5 * scale, 5 * scale))


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("name", SMALL)
def test_the_output_is_the_input_times_the_scale_at_any_size(name: str, scale: int) -> None:
    network = build_network(name, {**SMALL[name], "scale": scale}).eval()
    assert network.scale == scale
    for height, width in ((1, 1), (5, 9), (16, 3)):
        output = network(torch.rand(1, 3, height, width))
        assert output.shape == (1, 3, height * scale, width * scale)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("name", SMALL)
def test_an_output_pixel_depends_on_nothing_beyond_the_halo(name: str, scale: int) -> None:
    network = _lively(name, **{**SMALL[name], "scale": scale})
    assert network.halo is not None
    middle = network.halo + 3
    frame = torch.rand(1, 3, 2 * middle + 1, 2 * middle + 1).requires_grad_()
    output = network(frame)
    seen = 0
    for phase in range(scale):  # every position within an input pixel
        at = middle * scale + phase
        (gradient,) = torch.autograd.grad(output[0, :, at, at].sum(), frame, retain_graph=True)
        reached = (gradient.abs().sum((0, 1)) > 0).nonzero() - middle
        seen = max(seen, int(reached.abs().max()))
    assert network.halo - 1 <= seen <= network.halo


def test_the_paper_s_network_has_the_paper_s_layers() -> None:
    network = JohnsonSR(JohnsonSRSettings(scale=4))
    sizes = []
    for module in network.body:
        module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    network.eval()(torch.rand(1, 3, 72, 72))
    assert sizes == [*((64, 72, 72),) * 5, (64, 144, 144), (64, 288, 288), (3, 288, 288)]
    kinds = [type(module).__name__ for module in network.modules()]
    assert kinds.count("BatchNorm2d") == 1 + 8 + 2
    assert len(JohnsonSR(JohnsonSRSettings(scale=8)).body) == len(network.body) + 1


@pytest.mark.parametrize(
    ("kernels", "weights"), [("9-1-5", 8_032), ("9-3-5", 24_416), ("9-5-5", 57_184)]
)
def test_srcnn_has_the_published_number_of_weights(kernels: Any, weights: int) -> None:  # noqa: ANN401
    network = SRCNN(SRCNNSettings(kernels=kernels))
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1) == weights


def test_srcnn_changes_brightness_and_leaves_colour_as_bicubic_made_it() -> None:
    network = _lively("srcnn", scale=2)
    frame = _photograph(24)
    change = network(frame) - BicubicUpsampling(2)(frame)
    assert change.abs().max() > 0.05
    assert (change - change.mean(1, keepdim=True)).abs().max() < 1e-5


def _products(network: FrameNetwork) -> int:
    """Multiplications per input pixel of the learnt convolutions, counted while it runs."""
    total = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        kernel = module.weight[0, 0].numel()
        stride = module.stride[0] if isinstance(module, nn.ConvTranspose2d) else 1
        channels = module.in_channels * module.out_channels
        total += channels * kernel * output[0, 0].numel() // stride**2

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    network.eval()(torch.rand(1, 3, 16, 16))
    return total // 16**2


def test_the_modern_network_needs_a_third_of_the_paper_s_products() -> None:
    paper = _products(JohnsonSR(JohnsonSRSettings(scale=4)))
    modern = _products(ResidualSR(ResidualSRSettings(scale=4)))
    assert paper == 743_616
    assert modern / paper < 1 / 3


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_modern_network_prints_no_grid_on_flat_and_shaded_areas(scale: int) -> None:
    network = _lively("residual-sr", width=8, blocks=2, scale=scale)
    rows = torch.linspace(0, 0.4, 48).reshape(1, 1, 48, 1)
    columns = torch.linspace(0, 0.5, 48).reshape(1, 1, 1, 48)
    shaded = (0.05 + rows + columns) * torch.tensor([1.0, 0.7, 0.3]).reshape(1, 3, 1, 1)
    edge = (network.halo or 0) * scale
    for frame in (torch.full((1, 3, 48, 48), 0.6), shaded):
        added = network(frame) - BicubicUpsampling(scale)(frame)
        assert added[..., edge:-edge, edge:-edge].abs().max() < 1e-5
    # The same weights do add detail where there is any.
    frame = _photograph(48)
    assert (network(frame) - BicubicUpsampling(scale)(frame)).abs().max() > 0.02


def test_the_detail_scales_with_the_contrast() -> None:
    network = _lively("residual-sr", width=8, blocks=2, scale=2)
    frame, bicubic = _photograph(32), BicubicUpsampling(2)
    full = network(frame) - bicubic(frame)
    half = network(frame / 2 + 0.25) - bicubic(frame / 2 + 0.25)
    assert torch.allclose(half, full / 2, atol=1e-5)


def test_the_modern_network_starts_close_to_bicubic() -> None:
    torch.manual_seed(0)
    network = ResidualSR(ResidualSRSettings(scale=4))
    frame = _photograph(48)
    assert (network(frame) - BicubicUpsampling(4)(frame)).abs().max() < 0.02


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("johnson-sr", {"scale": 3}, "scale must be 2, 4 or 8, got 3"),
        ("residual-sr", {"scale": 16}, "scale must be 2, 4 or 8, got 16"),
        ("srcnn", {"scale": 1}, "scale must be 2, 4 or 8, got 1"),
        ("johnson-sr", {"norm": "instance"}, "norm must be batch or none"),
        ("residual-sr", {"width": 0}, "width must be 1 to 512"),
        ("residual-sr", {"blocks": 65}, "blocks must be 0 to 64"),
        ("srcnn", {"kernels": "9-9-9"}, "kernels must be 9-1-5, 9-3-5 or 9-5-5"),
        ("srcnn", {"width": 5}, "width must be an even number"),
    ],
)
def test_settings_out_of_range_say_what_is_wanted(
    name: str, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        build_network(name, settings)
