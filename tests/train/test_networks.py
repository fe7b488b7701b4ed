import pytest
import torch

from topcoat.train import RecipeError
from topcoat.train.networks import Johnson, JohnsonSettings, build_network
from topcoat.train.networks._norm import InstanceNorm2d


@pytest.mark.parametrize("form", ["modern", "paper"])
@pytest.mark.parametrize("blocks", [1, 5])
def test_the_output_has_the_input_s_size_down_to_the_smallest(form: str, blocks: int) -> None:
    network = build_network("johnson", {"form": form, "width": 4, "blocks": blocks}).eval()
    low = network.size_min
    assert low % network.size_multiple == 0
    for height, width in ((low, low), (low, low + 4), (low + 12, low)):
        assert network(torch.rand(1, 3, height, width)).shape == (1, 3, height, width)


def test_the_paper_s_network_has_the_paper_s_layers() -> None:
    network = Johnson(JohnsonSettings(form="paper", norm="batch"))
    kinds = [type(module).__name__ for module in network.modules()]
    assert kinds.count("ConvTranspose2d") == 2
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == 3 + 10 + 1
    assert kinds.count("BatchNorm2d") == 3 + 10 + 2
    assert network.body[0].padding == (40,) * 4
    sizes = []
    for module in network.body:
        module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    network.eval()(torch.rand(1, 3, 256, 256))
    assert sizes == [
        *((3, 336, 336), (32, 336, 336), (64, 168, 168), (128, 84, 84)),
        *((128, side, side) for side in (80, 76, 72, 68, 64)),
        *((64, 128, 128), (32, 256, 256), (3, 256, 256)),
    ]


def test_the_modern_form_has_the_published_number_of_parameters() -> None:
    # pytorch/examples' TransformerNet, the same layers, has 1,679,235 parameters.
    network = Johnson(JohnsonSettings())
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_679_235


def test_the_output_stays_within_the_scaled_tanh() -> None:
    network = Johnson(JohnsonSettings(width=4, blocks=1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(50)
        output = network(torch.rand(1, 3, 32, 32))
    assert output.min() >= 0.5 - 150 / 255 - 1e-6
    assert output.max() <= 0.5 + 150 / 255 + 1e-6
    assert output.max() > 0.9


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"width": 0}, "width must be 1 to 512"),
        ({"form": "cubist"}, "form must be modern or paper"),
        ({"norm": "layer"}, "norm must be instance or batch"),
        ({"upsampling": "cubic"}, "upsampling must be nearest or bilinear"),
        ({"depth": 3}, "no setting depth; its settings are blocks, form, norm, upsampling, width"),
    ],
)
def test_wrong_settings_say_what_is_wanted(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        build_network("johnson", settings)


def test_an_unknown_network_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="choose one of johnson"):
        build_network("unet", {})


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_has_the_right_gradient_whatever_the_layout_and_the_batch(
    batch: int, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(batch, 8, 6, 5, dtype=torch.float64, generator=generator)
    arriving = torch.randn(batch, 8, 6, 5, dtype=torch.float64, generator=generator)
    norm = InstanceNorm2d(8, affine=True).double()
    ours = source.contiguous(memory_format=layout).requires_grad_()
    (gradient,) = torch.autograd.grad(norm(ours), ours, arriving.contiguous(memory_format=layout))
    theirs = source.clone().requires_grad_()
    mean = theirs.mean((2, 3), keepdim=True)
    variance = (theirs - mean).square().mean((2, 3), keepdim=True)
    by_hand = (theirs - mean) / (variance + norm.eps).sqrt()
    (expected,) = torch.autograd.grad(by_hand, theirs, arriving)
    torch.testing.assert_close(gradient, expected)


def test_the_gradient_of_a_batch_is_the_mean_of_its_pictures_gradients() -> None:
    torch.manual_seed(0)
    network = Johnson(JohnsonSettings(width=4, blocks=1)).double()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frames = torch.rand(2, 16, 16, 3, dtype=torch.float64).permute(0, 3, 1, 2)

    def gradients(*batches: torch.Tensor) -> list[torch.Tensor]:
        network.zero_grad()
        for part in batches:
            torch.autograd.backward(network(part).square().mean() / len(batches))
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    for whole, split in zip(gradients(frames), gradients(frames[:1], frames[1:]), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-9, atol=1e-11)
