"""Networks that spandrel rebuilds; what needs spandrel itself is skipped where it is not."""

import copy
import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto
from torch import Tensor, nn

from topcoat.export.onnx_from_checkpoint import Precision
from topcoat.export.sources import SourceError, open_source, spandrel_network
from topcoat.export.sources._source import ToOnnx
from topcoat.export.sources.spandrel_network import SpandrelNetwork


@pytest.fixture(scope="module")
def spandrel() -> ModuleType:
    """The package with its architectures."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spandrel = importlib.import_module("spandrel")
    except ImportError as error:
        pytest.skip(f"spandrel is not here ({error}); the extra topcoat-export[spandrel] brings it")
    return spandrel


def seeded(named: str, **settings: Any) -> nn.Module:  # noqa: ANN401 - of many types
    module, _, name = named.rpartition(".")
    make = getattr(importlib.import_module(f"spandrel.architectures.{module}"), name)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network: nn.Module = make(**settings)
    return network.eval()


def saved(network: nn.Module, path: Path) -> Path:
    torch.save({"params_ema": network.state_dict()}, path)
    return path


def compact(**settings: Any) -> nn.Module:  # noqa: ANN401
    return seeded(
        "Compact.__arch.SRVGG.SRVGGNetCompact",
        **{"num_feat": 8, "num_conv": 2, "upscale": 2, **settings},
    )


@pytest.mark.usefixtures("spandrel")
def test_super_resolution_is_recognised_and_answers_as_the_architecture_does(
    tmp_path: Path,
) -> None:
    network = compact()
    source = open_source(saved(network, tmp_path / "sharp.pth"))
    assert (source.task, source.kind, source.network.scale) == ("super-resolution", "spandrel", 2)
    assert (source.network.size_multiple, source.network.size_min) == (1, 1)
    assert "Compact" in source.name
    assert source.parameters == sum(weight.numel() for weight in network.parameters())
    frame = torch.rand(2, 3, 9, 14)
    with torch.inference_mode():
        assert torch.equal(source.network(frame), network(frame))


@pytest.mark.usefixtures("spandrel")
def test_a_network_that_keeps_the_size_is_a_restoration(tmp_path: Path) -> None:
    network = seeded("DnCNN.DnCNN", in_nc=3, out_nc=3, nc=4, nb=17, act_mode="R")
    source = open_source(saved(network, tmp_path / "clean.pth"))
    assert (source.task, source.network.scale, source.name) == ("restoration", 1, "DnCNN")


@pytest.mark.usefixtures("spandrel")
def test_windows_that_a_network_fills_up_are_its_multiple(tmp_path: Path) -> None:
    network = seeded(
        "SwinIR.SwinIR", img_size=64, embed_dim=8, depths=[1], num_heads=[1], window_size=8,
        mlp_ratio=1, upscale=2, upsampler="pixelshuffledirect",
    )  # fmt: skip
    source = open_source(saved(network, tmp_path / "swin.pth"))
    assert source.network.size_multiple == 8


@pytest.mark.usefixtures("spandrel")
def test_merged_branches_are_computed_once_and_answer_alike(tmp_path: Path) -> None:
    network = seeded("SPAN.SPAN", num_in_ch=3, num_out_ch=3, feature_channels=4, upscale=2)
    source = open_source(saved(network, tmp_path / "span.pth"))
    frame = torch.rand(1, 3, 12, 16)
    with torch.inference_mode():
        assert torch.allclose(source.network(frame), network(frame), atol=1e-4)
    copied = copy.deepcopy(source.network)
    assert source.to_onnx("fp32").graph.output[0].name == "enlarged"
    with torch.inference_mode():
        assert torch.equal(copied(frame), source.network(frame))


@pytest.mark.usefixtures("spandrel")
def test_half_the_keys_of_an_architecture_are_counted_and_named(tmp_path: Path) -> None:
    weights = compact().state_dict()
    del weights["body.2.weight"], weights["body.2.bias"]
    torch.save(weights, tmp_path / "half.pth")
    with pytest.raises(SourceError, match=r"looks like .*Compact.* keys .*missing \(body\.2\.w"):
        open_source(tmp_path / "half.pth")


@pytest.mark.usefixtures("spandrel")
def test_grey_networks_are_refused(tmp_path: Path) -> None:
    path = saved(compact(num_in_ch=1, num_out_ch=1), tmp_path / "grey.pth")
    with pytest.raises(SourceError, match="takes 1 and gives 1 channels; wanted is"):
        open_source(path)


class Windows(nn.Module):
    """Fills frames up to multiples of six, as networks with windows do."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        filled = F.pad(x, (0, -width % 6, 0, -height % 6), mode="reflect")
        return filled[:, :, :height, :width]


def call(model: nn.Module, frame: Tensor) -> Tensor:
    answer: Tensor = model(frame)
    return answer


def test_a_frame_that_is_filled_up_inside_is_filled_up_by_the_runtime_instead() -> None:
    network = SpandrelNetwork(Windows(), call, scale=1, size_multiple=1)
    spandrel_network._find_sizes(Path("w.pth"), "Windows", network, least=13)
    assert (network.size_multiple, network.size_min) == (6, 18)


def test_padding_on_all_sides_is_not_filling_up() -> None:
    network = SpandrelNetwork(nn.ReflectionPad2d((2, 2, 2, 2)), call, scale=1, size_multiple=1)
    network.call = lambda model, frame: model(frame)[:, :, 2:-2, 2:-2]
    spandrel_network._find_sizes(Path("r.pth"), "Reflect", network, least=1)
    assert (network.size_multiple, network.size_min) == (1, 3)


def test_a_network_that_takes_no_frame_says_why() -> None:
    network = SpandrelNetwork(nn.Conv2d(4, 3, 1), call, scale=1, size_multiple=4)
    with pytest.raises(SourceError, match=r"takes no frame of up to 512 .*4 channels"):
        spandrel_network._find_sizes(Path("c.pth"), "Conv", network, least=1)


def stand_in(**described: Any) -> SimpleNamespace:  # noqa: ANN401
    """What a registry of one architecture would be, and what it says of its network."""

    class ImageModelDescriptor:
        model = nn.Conv2d(3, 3, 1)
        purpose, scale, tags = "SR", 1, ()
        input_channels = output_channels = 3
        size_requirements = SimpleNamespace(minimum=0, multiple_of=1, square=False)
        _call_fn = staticmethod(call)

    descriptor = ImageModelDescriptor()
    for name, value in described.items():
        setattr(descriptor, name, value)
    architecture = SimpleNamespace(name="Acme", load=lambda weights: descriptor)
    support = SimpleNamespace(detect=lambda weights: True, architecture=architecture)
    return SimpleNamespace(
        ImageModelDescriptor=ImageModelDescriptor,
        MAIN_REGISTRY=SimpleNamespace(architectures=lambda order: [support]),
    )


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"purpose": "FaceSR"}, "is made for FaceSR"),
        ({"input_channels": 4}, "takes 4 and gives 3 channels"),
        (
            {"size_requirements": SimpleNamespace(minimum=0, multiple_of=1, square=True)},
            "takes square frames only",
        ),
        (
            {"size_requirements": SimpleNamespace(minimum=0, multiple_of=512, square=False)},
            "takes multiples of 512 pixels only",
        ),
    ],
)
def test_networks_that_take_something_else_than_a_frame_are_refused(
    described: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spandrel_network, "_import", lambda: stand_in(**described))
    with pytest.raises(SourceError, match=f"is a Acme network, which {words}; wanted is"):
        open_source(saved(nn.Conv2d(3, 3, 1), tmp_path / "acme.pth"))


def test_an_architecture_that_cannot_be_exported_is_named_with_the_first_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exporting(network: nn.Module, task: str) -> ToOnnx:
        def fails(precision: Precision = "fp32", *, keep_fp32: Sequence[str] = ()) -> ModelProto:
            try:
                raise ValueError("Could not guard on data-dependent expression\n\nand a screenful")
            except ValueError as error:
                raise RuntimeError("Failed to export the model\nwith advice") from error

        return fails

    monkeypatch.setattr(spandrel_network, "_import", stand_in)
    monkeypatch.setattr(spandrel_network, "to_onnx_of", exporting)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.4.2")
    source = open_source(saved(nn.Conv2d(3, 3, 1), tmp_path / "acme.pth"))
    with pytest.raises(SourceError) as caught:
        source.to_onnx("fp32")
    text = str(caught.value)
    assert "is a Acme network, which torch" in text
    assert "(Could not guard on data-dependent expression); take another" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'spandrel'", name="spandrel"), "are known after"),
        (ModuleNotFoundError("No module named 'x'", name="torchvision"), "lacks torchvision"),
        (RuntimeError("operator nms does not exist\nand more"), "operator nms does not exist)"),
    ],
)
def test_unknown_weights_are_described_and_more_architectures_offered(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(SourceError) as caught:
        open_source(saved(nn.Conv2d(3, 3, 1), tmp_path / "acme.pth"))
    text = str(caught.value)
    assert "holds another project's weights (2 keys: weight, bias" in text
    assert words in text
    assert 'pip install "topcoat-export[spandrel]"' in text
    assert len(text.splitlines()) == 1
