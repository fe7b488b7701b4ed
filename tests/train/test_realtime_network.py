"""The real-time style network: what it promises of flat areas, edges, tiles and movement."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.train import RecipeError, load_checkpoint
from topcoat.train.cli.train_style import main
from topcoat.train.frames import frame_tensor
from topcoat.train.losses import stability_loss
from topcoat.train.networks import NETWORKS, Realtime, RealtimeSettings, build_network
from topcoat.train.networks.realtime import Enlarge, LocalContrast, PhaseConv2d
from topcoat.train.pictures import open_rgb, sample_photographs
from topcoat.train.recipes import STYLE_RECIPES, StyleRecipe, difference

REALTIME = [name for name, recipe in STYLE_RECIPES.items() if recipe.network == "realtime"]


def _photograph(height: int, width: int) -> Tensor:
    picture = open_rgb(sample_photographs()[0])
    return frame_tensor(picture.crop((200, 100, 200 + width, 100 + height)))


def _lively(norm: str = "batch", **settings: int) -> Realtime:
    """As training would leave it: large weights everywhere, statistics of a photograph."""
    torch.manual_seed(0)
    network = build_network("realtime", {"width": 12, "blocks": 2, "norm": norm, **settings})
    assert isinstance(network, Realtime)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        if isinstance(module, PhaseConv2d):
            nn.init.normal_(module.detail, std=0.2)
            nn.init.normal_(module.colour, std=0.2)
        if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(20):
            network.train()(_photograph(64, 64))
    return network.eval()


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_flat_area_stays_flat_up_to_the_border_of_the_frame(norm: str, dilation: int) -> None:
    network = _lively(norm, dilation=dilation)
    photograph = _photograph(48, 48)
    for colour in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.5, 0.9), (0.73, 0.41, 0.08)):
        flat = torch.tensor(colour).reshape(1, 3, 1, 1).expand(1, 3, 48, 68)
        answer = network(torch.cat([photograph, flat], 3))
        painted, area = answer[..., :48], answer[..., -36:]  # 32 pixels away from the photograph
        assert (area - area[..., :1, :1]).abs().max() < 1e-4
        # That is not because there was nothing to see.
        assert (painted - F.avg_pool2d(painted, 5, 1, 2)).abs().mean() > 0.02
        assert area.abs().mean() > 0.02


@pytest.mark.parametrize("step", [2, 3, 4])
def test_on_a_gradient_of_its_input_the_last_layer_has_no_period(step: int) -> None:
    torch.manual_seed(1)
    layer = PhaseConv2d(6, 3, step)
    nn.init.normal_(layer.detail)
    slopes = torch.randn(2, 6)
    rows, columns = torch.arange(9.0), torch.arange(11.0)
    ramp = slopes[0][:, None, None] * rows[:, None] + slopes[1][:, None, None] * columns
    enlarged = F.pixel_shuffle(layer(ramp[None]), step)[0]  # padding is left to the caller
    down, right = enlarged.diff(dim=1), enlarged.diff(dim=2)
    assert enlarged.shape == (3, 7 * step, 9 * step)
    for change, slope in ((down, slopes[0]), (right, slopes[1])):
        expected = (layer.colour @ slope / step)[:, None, None].expand_as(change)
        torch.testing.assert_close(change, expected, atol=2e-4, rtol=1e-3)
    # An ordinary layer of the same size prints its period: what is proved above is a property.
    plain = nn.Conv2d(6, 3 * step**2, 3)
    printed = F.pixel_shuffle(plain(ramp[None]), step)[0].diff(dim=1)
    assert (printed - printed.mean((1, 2), keepdim=True)).abs().max() > 0.05


def test_local_contrast_is_every_pixel_less_the_mean_of_its_neighbours() -> None:
    frame = _photograph(40, 52)
    brightness = torch.einsum("bchw,c->bhw", frame, torch.tensor([0.299, 0.587, 0.114]))[:, None]
    padded = F.pad(frame, (2,) * 4, mode="replicate")
    contrast = F.pixel_shuffle(LocalContrast()(padded), 4)
    around = F.avg_pool2d(F.pad(brightness, (2,) * 4, mode="replicate"), 5, 1)
    torch.testing.assert_close(contrast, brightness - around, atol=1e-5, rtol=1e-4)
    assert contrast.abs().max() > 0.1


def test_coefficients_are_enlarged_bilinearly() -> None:
    planes = torch.rand(2, 3, 7, 5, generator=torch.manual_seed(0))
    enlarged = F.pixel_shuffle(Enlarge(3, 4)(F.pad(planes, (1,) * 4, mode="replicate")), 4)
    expected = F.interpolate(planes, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(enlarged, expected)


def test_an_edge_is_drawn_where_the_frame_has_it_not_where_the_features_do() -> None:
    network = _lively()
    assert isinstance(network.tail, PhaseConv2d)
    with torch.no_grad():  # what is left is the contrast alone
        network.tail.detail.zero_()
        network.tail.colour.zero_()
        network.gain.weight.zero_()
        assert network.gain.bias is not None
        network.gain.bias.fill_(1.0)
    for edge in (20, 21, 22, 23):
        frame = torch.zeros(1, 3, 32, 44)
        frame[..., edge:] = 1
        answer = network(frame)[0, :, 16]
        assert answer.diff(dim=1).argmax(1).tolist() == [edge - 1] * 3


def test_the_first_layer_is_a_pixel_unshuffle_and_a_convolution() -> None:
    network = _lively()
    head = network.head[0]
    assert isinstance(head, nn.Conv2d)
    frame = torch.rand(2, 3, 24, 32)
    padded = F.pad(frame, (4,) * 4)
    # The 8×8 kernel lies in the middle of the 12×12 pixels that 3×3 unshuffled positions cover.
    kernel = F.pad(head.weight, (2,) * 4)  # (C, 3, 12, 12)
    unshuffled = F.pixel_unshuffle(kernel, 4)  # (C, 48, 3, 3)
    expected = F.conv2d(F.pixel_unshuffle(padded, 4), unshuffled)
    answer = F.conv2d(F.pad(frame, (2,) * 4), head.weight, stride=4)
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_an_output_pixel_depends_on_nothing_beyond_the_halo(dilation: int) -> None:
    network = _lively(dilation=dilation)
    assert network.halo is not None
    middle = (network.halo // 4 + 2) * 4
    frame = torch.rand(1, 3, 2 * middle, 2 * middle).requires_grad_()
    answer = network(frame)
    seen = 0
    for phase in range(4):  # every position within a step
        at = middle + phase
        (gradient,) = torch.autograd.grad(answer[0, :, at, at].sum(), frame, retain_graph=True)
        seen = max(seen, int(((gradient.abs().sum((0, 1)) > 0).nonzero() - at).abs().max()))
    assert network.halo - 1 <= seen <= network.halo


def test_with_instance_norm_a_pixel_depends_on_the_whole_frame_and_no_halo_is_claimed() -> None:
    network = _lively("instance")
    assert network.halo is None
    frame = torch.rand(1, 3, 96, 96)
    changed = frame.clone()
    changed[..., :8, :8] = 0
    assert (network(frame) - network(changed))[..., 80:, 80:].abs().max() > 1e-5


def test_a_frame_moved_by_four_pixels_gives_the_picture_moved_by_four_pixels() -> None:
    network = _lively()
    assert network.halo is not None
    frame = _photograph(96, 96)
    here, moved = network(frame)[..., 4:, 8:], network(frame[..., 4:, 8:].contiguous())
    inner = slice(network.halo, -network.halo)
    torch.testing.assert_close(moved[..., inner, inner], here[..., inner, inner])


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_every_multiple_of_four_from_the_smallest_on_is_taken(norm: str) -> None:
    network = _lively(norm, dilation=8)  # which reaches further than the smallest frame is wide
    for height, width in ((network.size_min,) * 2, (network.size_min, 36), (20, 64)):
        answer = network(torch.rand(2, 3, height, width))
        assert answer.shape == (2, 3, height, width)
        assert bool(answer.isfinite().all())


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_folding_changes_no_pixel_and_leaves_plain_convolutions(norm: str) -> None:
    network = _lively(norm)
    frame = _photograph(48, 64)
    before = network(frame)
    assert network.fold() is network
    computed = (PhaseConv2d, LocalContrast, Enlarge)
    assert not any(isinstance(module, computed) for module in network.modules())
    torch.testing.assert_close(network(frame), before, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(network.fold()(frame), before, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_exported_graph_holds_nothing_but_the_layers_that_run(precision: str) -> None:
    export = pytest.importorskip("topcoat.export")
    model = export.onnx_from_network(_lively(), precision)
    kinds = [node.op_type for node in model.graph.node]
    # The head, two blocks, tail, contrast, gain and its enlargement; batch norm is in them.
    assert kinds.count("Conv") == 7
    assert {"MatMul", "Einsum", "BatchNormalization", "Shape", "Reshape"}.isdisjoint(kinds)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    assert all(node.input[1] in weights for node in model.graph.node if node.op_type == "Conv")


def test_gradients_reach_every_weight() -> None:
    network = build_network("realtime", {"width": 8, "blocks": 2}).train()
    network(_photograph(32, 32)).square().mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"width": 0}, "width must be 1 to 512 channels, got 0; try 32"),
        ({"blocks": -1}, "blocks must be 0 to 64, got -1; try 4"),
        ({"dilation": 0}, "dilation must be 1 to 8, got 0; try 2"),
        ({"norm": "layer"}, "norm must be instance or batch, got 'layer'"),
        ({"form": "paper"}, "has no setting form; its settings are blocks, dilation, norm, width"),
    ],
)
def test_a_setting_out_of_range_says_what_is_wanted(
    settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        build_network("realtime", settings)


@pytest.mark.parametrize("name", REALTIME)
def test_the_recipes_ask_for_this_network_and_for_stability(name: str) -> None:
    recipe = STYLE_RECIPES[name]
    assert NETWORKS[recipe.network] == (RealtimeSettings, Realtime)
    network = build_network(recipe.network, recipe.network_settings())
    assert isinstance(network, Realtime)
    assert network.settings == RealtimeSettings(
        width=recipe.width, blocks=recipe.blocks, dilation=recipe.dilation
    )
    assert recipe.stability_weight > 0
    assert {"form", "upsampling", "scales"} <= recipe.idle_fields()
    with pytest.raises(RecipeError, match="stability_weight must be 0 or more"):
        replace(recipe, stability_weight=-1.0)
    # Checkpoints of versions without the field were trained without it.
    stored = recipe.to_dict()
    del stored["stability_weight"], stored["dilation"]
    assert StyleRecipe.from_dict(stored).stability_weight == 0
    assert StyleRecipe.from_dict(stored).dilation == 1


def test_the_recipes_differ_in_size_alone_and_each_is_larger_than_the_one_before() -> None:
    recipes = [STYLE_RECIPES[name] for name in ("realtime-small", "realtime", "realtime-large")]
    assert {recipe.name for recipe in recipes} == set(REALTIME)
    for recipe in recipes:
        assert set(difference(STYLE_RECIPES["realtime"], recipe)) <= {"width", "blocks", "dilation"}
    sizes = [
        sum(weight.numel() for weight in build_network("realtime", settings).parameters())
        for settings in (recipe.network_settings() for recipe in recipes)
    ]
    assert all(small < large for small, large in itertools.pairwise(sizes))


def test_what_moves_along_with_its_input_is_stable_and_a_grid_is_not() -> None:
    frames = _photograph(64, 80)
    rows, columns = (torch.arange(side) for side in frames.shape[2:])

    def still(x: Tensor) -> Tensor:
        return x * 0 + 0.3

    def grid(x: Tensor) -> Tensor:
        lines = (rows[: x.shape[2], None] % 4 == 0) | (columns[: x.shape[3]] % 4 == 0)
        return still(x) + 0.2 * lines

    def copy(x: Tensor) -> Tensor:
        return x

    torch.manual_seed(0)
    assert stability_loss(still, frames, still(frames)) == 0
    # A copy passes its grain on, and nothing but its grain: (4/255)² less what was clipped.
    assert 0.5 < stability_loss(copy, frames, frames) / (4 / 255) ** 2 < 1.05
    assert stability_loss(grid, frames, grid(frames)) > 0.2**2 / 4
    with pytest.raises(ValueError, match="larger than 28 pixels a side"):
        stability_loss(still, frames[..., :28, :], frames[..., :28, :])


def test_training_with_the_recipe_writes_a_checkpoint_and_logs_the_stability(
    tmp_path: Path,
    photographs: Path,
    loss_weights: Path,
    tiny: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")
    output = tmp_path / "poster.pt"
    command = ["--recipe", "realtime", "--style", "poster", "--content", str(photographs)]
    command += ["--loss-weights", str(loss_weights), "--output", str(output), *tiny]
    assert main([*command, "--steps", "3", "--log-every", "1", "--quiet"]) == 0
    checkpoint = load_checkpoint(output)
    assert checkpoint.network["name"] == "realtime"
    assert len(checkpoint.history) == 3
    assert all(entry["stability"] > 0 for entry in checkpoint.history)
    frame = torch.full((1, 3, 32, 32), 0.4)
    answer = checkpoint.build_network().eval()(frame)
    assert (answer - answer[..., :1, :1]).abs().max() < 1e-4
