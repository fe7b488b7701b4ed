import pytest
import torch
from torch import Tensor

from topcoat.train import RecipeError
from topcoat.train.networks import FrameNetwork, Ulyanov, UlyanovSettings, build_network


def _network(**settings: object) -> FrameNetwork:
    """A small network in use, whose batch norms have seen something."""
    torch.manual_seed(0)
    network = build_network("ulyanov", {"scales": 3, "width": 3, **settings})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.rand(2, 3, 32, 32))
    return network.eval()


def _noise(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


_FORMS = [
    {"norm": norm, "upsampling": upsampling}
    for norm in ("batch", "instance")
    for upsampling in ("nearest", "bilinear")
]


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("form", _FORMS)
def test_the_output_has_the_input_s_size_down_to_the_smallest(
    content: bool, form: dict[str, str]
) -> None:
    network = _network(content=content, **form)
    low, step = network.size_min, network.size_multiple
    assert (low, step) == (8, 4)
    assert network.takes == ("frame" if content else "noise")
    for height, width in ((low, low), (low, low + step), (low + 3 * step, low)):
        assert network(_noise(height, width)).shape == (1, 3, height, width)


@pytest.mark.parametrize("form", _FORMS)
def test_rolling_the_noise_rolls_the_texture(form: dict[str, str]) -> None:
    network, noise = _network(**form), _noise(24, 32)
    with torch.no_grad():
        texture = network(noise)
        for shift in ((4, 0), (0, 4), (8, -12)):
            rolled = network(noise.roll(shift, (2, 3)))
            torch.testing.assert_close(rolled, texture.roll(shift, (2, 3)), rtol=0, atol=1e-5)
        off_the_grid = network(noise.roll(1, 2))
    assert (off_the_grid - texture.roll(1, 2)).abs().max() > 0.01


@pytest.mark.parametrize("form", _FORMS)
def test_tiled_noise_gives_the_tiled_texture(form: dict[str, str]) -> None:
    network, noise = _network(**form), _noise(16, 24)
    with torch.no_grad():
        small, large = network(noise), network(noise.tile(1, 1, 2, 2))
    torch.testing.assert_close(large, small.tile(1, 1, 2, 2), rtol=0, atol=1e-5)


def test_the_scales_from_the_first_on_share_no_pixel_of_the_noise() -> None:
    network = Ulyanov(UlyanovSettings(scales=5, width=1))
    frame = torch.arange(3 * 32 * 48, dtype=torch.float64).reshape(1, 3, 32, 48)
    views = network._views((frame + 1) / 2)
    assert [tuple(view.shape[2:]) for view in views] == [(32 // 2**k, 48 // 2**k) for k in range(5)]
    torch.testing.assert_close(views[0], frame)
    seen = [int(value) for view in views[1:] for value in view.round().flatten()]
    assert len(seen) == len(set(seen))


def test_the_paper_s_network_has_the_paper_s_layers() -> None:
    network = Ulyanov(UlyanovSettings(scales=6, width=8, content=True))
    shapes = [tuple(p.shape) for n, p in network.named_parameters() if p.dim() == 4]
    assert shapes.count((8, 6, 3, 3)) == shapes.count((8, 8, 3, 3)) == 6
    for channels in (16, 24, 32, 40, 48):
        assert shapes.count((channels, channels, 3, 3)) == 2
        assert shapes.count((channels, channels, 1, 1)) == 1
    assert shapes[-1] == (3, 48, 1, 1)
    kinds = [type(module).__name__ for module in network.modules()]
    # Three for each of 6 scales and 5 joins, and both branches of every join.
    assert kinds.count("BatchNorm2d") == 3 * 11 + 2 * 5
    assert kinds.count("LeakyReLU") == 3 * 11


def test_a_style_network_draws_its_noise_anew_in_training_and_keeps_it_in_use() -> None:
    network = _network(content=True)
    photo = _noise(16, 16)
    with torch.no_grad():
        assert torch.equal(network(photo), network(photo))
        # Photographs of one batch get the same noise as alone.
        both = network(photo.expand(2, -1, -1, -1))
        torch.testing.assert_close(both[1:], network(photo))
        network.train()
        torch.manual_seed(5)
        first, second = network(photo), network(photo)
        torch.manual_seed(5)
        again = network(photo)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_the_fixed_noise_repeats_over_large_frames_and_travels_with_the_weights() -> None:
    network = _network(content=True, norm="batch")
    assert isinstance(network, Ulyanov)
    assert network.state_dict()["tile"].shape == (1, 3, 256, 256)
    for side in (8, 264, 520):
        view = network._views(torch.zeros(2, 3, side, 264))[0][:, 3:]
        assert view.shape == (2, 3, side, 264)
        assert torch.equal(view[..., 256:, :], view[..., : max(0, side - 256), :][..., :264, :])
        assert torch.equal(view[..., 256:], view[..., :8])


def test_without_noise_a_style_network_is_a_function_of_the_photograph_alone() -> None:
    network = _network(content=True, noise=False, norm="instance", padding="replicate").train()
    assert "tile" not in network.state_dict()
    photo = _noise(16, 16)
    with torch.no_grad():
        assert torch.equal(network(photo), network(photo))


def test_every_weight_of_a_texture_network_is_trained() -> None:
    network = _network().train()
    torch.autograd.backward(network(_noise(32, 32, batch=2)).square().mean())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name
        # A bias before another normalisation is taken out again; all the rest moves the picture.
        if parameter.dim() == 4:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"scales": 0}, "scales must be 1 to 7, got 0; try 5"),
        ({"scales": 8}, "scales must be 1 to 7, got 8; try 5"),
        ({"width": 0}, "width must be 1 to 64 channels, got 0; try 8"),
        ({"norm": "none"}, "norm must be batch or instance"),
        ({"activation": "gelu"}, "activation must be leaky or relu"),
        ({"padding": "zero"}, "padding must be circular or replicate"),
        ({"upsampling": "cubic"}, "upsampling must be nearest or bilinear"),
        ({"noise": False}, "noise must be on for a texture"),
        ({"padding": "replicate"}, "padding must be circular for a texture"),
    ],
)
def test_wrong_settings_say_what_is_wanted(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        build_network("ulyanov", settings)
