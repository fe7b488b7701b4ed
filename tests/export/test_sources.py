"""Weights of other projects: which are recognised, what becomes of them, what is refused."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.export.conftest import export_engine_main
from topcoat.export.sources import SourceError, open_source
from topcoat.export.sources.fast_neural_style import FastNeuralStyle


def style_weights(widths: tuple[int, int, int] = (4, 6, 8), blocks: int = 2) -> dict[str, Tensor]:
    """What fast_neural_style's training saves, of a narrow network with seeded random weights."""
    random = torch.Generator().manual_seed(0)
    a, b, c = widths
    convolutions = {
        **{"conv1": (a, 3, 9), "conv2": (b, a, 3), "conv3": (c, b, 3)},
        **{f"res{i}.conv{j}": (c, c, 3) for i in range(1, blocks + 1) for j in (1, 2)},
        **{"deconv1": (b, c, 3), "deconv2": (a, b, 3), "deconv3": (3, a, 9)},
    }
    norms = {
        **{"in1": a, "in2": b, "in3": c, "in4": b, "in5": a},
        **{f"res{i}.in{j}": c for i in range(1, blocks + 1) for j in (1, 2)},
    }
    weights = {}
    for name, (outputs, inputs, side) in convolutions.items():
        shape = (outputs, inputs, side, side)
        weights[f"{name}.conv2d.weight"] = torch.randn(shape, generator=random) / side / inputs**0.5
        weights[f"{name}.conv2d.bias"] = torch.randn(outputs, generator=random)
    for name, channels in norms.items():
        weights[f"{name}.weight"] = 1 + torch.randn(channels, generator=random) / 4
        weights[f"{name}.bias"] = torch.randn(channels, generator=random) / 4
    weights["deconv3.conv2d.weight"] *= 60
    weights["deconv3.conv2d.bias"] += 127
    return weights


def published(weights: Mapping[str, Tensor], frame: Tensor) -> Tensor:
    """The network as it was published, 0 to 255 in and out, written with functions alone."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.conv2d.weight"]
        padded = F.pad(x, [kernel.shape[-1] // 2] * 4, mode="reflect")
        return F.conv2d(padded, kernel, weights[f"{name}.conv2d.bias"], stride)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=weights[f"{name}.weight"], bias=weights[f"{name}.bias"])

    x = F.relu(norm("in1", conv("conv1", frame)))
    x = F.relu(norm("in2", conv("conv2", x, 2)))
    x = F.relu(norm("in3", conv("conv3", x, 2)))
    number = 1
    while f"res{number}.in1.weight" in weights:
        name = f"res{number}"
        inner = F.relu(norm(f"{name}.in1", conv(f"{name}.conv1", x)))
        x = x + norm(f"{name}.in2", conv(f"{name}.conv2", inner))
        number += 1
    x = F.relu(norm("in4", conv("deconv1", F.interpolate(x, scale_factor=2, mode="nearest"))))
    x = F.relu(norm("in5", conv("deconv2", F.interpolate(x, scale_factor=2, mode="nearest"))))
    return conv("deconv3", x)


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert str(path) in text
    return text


@pytest.mark.parametrize(("widths", "blocks"), [((4, 6, 8), 2), ((3, 5, 2), 5)])
def test_a_fast_neural_style_network_is_rebuilt_as_published(
    widths: tuple[int, int, int], blocks: int, tmp_path: Path
) -> None:
    weights = style_weights(widths, blocks)
    source = open_source(saved(weights, tmp_path / "candy.pth"))
    assert (source.task, source.kind) == ("style", "fast-neural-style")
    assert source.settings == {"widths": list(widths), "blocks": blocks}
    assert source.parameters == sum(value.numel() for value in weights.values())
    frame = torch.rand(2, 3, 32, 44, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        answer = source.network(frame) * 255
        wanted = published(weights, frame * 255)
    assert float((answer - wanted).abs().max()) < 1e-3
    assert float(wanted.std()) > 5


def wrapped(kind: str, weights: dict[str, Tensor]) -> object:
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    statistics = {
        **{f"in{i}.running_mean": torch.zeros(4) for i in range(1, 6)},
        **{"res1.in1.running_var": torch.ones(8), "in1.num_batches_tracked": torch.tensor(3)},
    }
    return {
        "as it is": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights, "optimizer": {"state": {}}},
        "of several GPUs": prefixed,
        "of several GPUs, held": {"model_state_dict": prefixed},
        "compiled": {f"_orig_mod.{key}": value for key, value in weights.items()},
        "of an old torch": {**weights, **statistics},
        "of doubles": {key: value.double() for key, value in weights.items()},
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("as it is", "state_dict", "model", "of several GPUs", "of several GPUs, held"),
        *("compiled", "of an old torch", "of doubles"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_in_the_wrappings_that_trainers_use(
    kind: str, zipped: bool, tmp_path: Path
) -> None:
    weights = style_weights()
    path = tmp_path / "candy.model"
    torch.save(wrapped(kind, weights), path, _use_new_zipfile_serialization=zipped)
    network = open_source(path).network
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key])


def test_sizes_are_those_that_the_network_keeps() -> None:
    shapes = {key: tuple(value.shape) for key, value in style_weights().items()}
    network = FastNeuralStyle(shapes)
    assert (network.size_multiple, network.size_min) == (4, 8)
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 8, 12)).shape == (1, 3, 8, 12)
        assert network(torch.zeros(1, 3, 10, 12)).shape != (1, 3, 10, 12)
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 3, 4, 4))


def test_half_the_keys_are_counted_and_named(tmp_path: Path) -> None:
    weights = style_weights()
    half = {key: value for key, value in weights.items() if not key.startswith("res")}
    text = refusal(
        saved({**half, "res2.in2.bias": weights["res2.in2.bias"]}, tmp_path / "half.pth")
    )
    assert "15 of its 38 keys are missing (res1.conv1.conv2d.weight, " in text
    odd = {key: value for number, (key, value) in enumerate(weights.items()) if number % 2}
    assert "19 of its 38 keys are missing" in refusal(saved(odd, tmp_path / "odd.pth"))


def test_variants_of_the_architecture_are_not_taken_for_it(tmp_path: Path) -> None:
    weights = style_weights()
    more = refusal(saved({**weights, "attention.weight": torch.zeros(3)}, tmp_path / "more.pth"))
    assert "1 others (attention.weight)" in more
    grey = {**weights, "conv1.conv2d.weight": torch.zeros(4, 1, 9, 9)}
    assert "takes (1,) and gives (3,) channels" in refusal(saved(grey, tmp_path / "grey.pth"))
    wide = {**weights, "conv2.conv2d.weight": torch.zeros(6, 5, 3, 3)}
    assert "not its shapes" in refusal(saved(wide, tmp_path / "wide.pth"))
    even = {**weights, "conv2.conv2d.weight": torch.zeros(6, 4, 4, 4)}
    assert "side odd" in refusal(saved(even, tmp_path / "even.pth"))
    flat = {**weights, "conv2.conv2d.weight": torch.zeros(6)}
    assert "side odd" in refusal(saved(flat, tmp_path / "flat.pth"))


class Burglar:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, ("burgled", "w"))


def script_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", "raise SystemExit('run')")


def safetensors(header: Mapping[str, object], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_entry(start: int, *shape: int) -> dict[str, object]:
    count = 4 * int(torch.Size(shape).numel())
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + count]}


LORA = {f"lora_unet_{i}.lora_{way}.weight": tensor_entry(0) for i in "ab" for way in ("up", "down")}
ONE = {"conv.weight": tensor_entry(0, 2, 2)}
UNET = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}
JUDGE = {"netD.0.weight": torch.zeros(2), "netG.0.weight": torch.zeros(2)}
ZIP_START = b"PK\x03\x04" + bytes(400)

REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("a.pth", lambda p: p.write_bytes(b""), "is empty"),
    "noise": ("a.pth", lambda p: p.write_bytes(bytes(range(90, 200)) * 9), "not a file of weights"),
    "a web page": ("a.pth", lambda p: p.write_text("<!doctype html><p>404"), "such as a web page"),
    "a pointer": (
        "a.pth",
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "a pointer to another file",
    ),
    "half a zip": ("a.pth", lambda p: p.write_bytes(ZIP_START), "cut short"),
    "a pickle with code": ("a.pth", lambda p: p.write_bytes(pickle.dumps(Burglar())), "give a"),
    "code in a torch file": ("a.pth", lambda p: torch.save(Burglar(), p), "nothing was run"),
    "a program": ("a.pt", script_archive, "save its state_dict() with torch.save"),
    "numbers": ("a.pth", lambda p: torch.save({"step": 3, "lr": 0.1}, p), "no weights of one"),
    "one tensor": ("a.pth", lambda p: torch.save(torch.zeros(3), p), "no weights of one network"),
    "nothing": ("a.pth", lambda p: torch.save({}, p), "no weights of one network"),
    "a diffusion model": ("a.ckpt", lambda p: torch.save({"state_dict": UNET}, p), "diffusion"),
    "a discriminator": ("a.pth", lambda p: torch.save(JUDGE, p), "judges pictures"),
    "a LoRA": ("a.safetensors", lambda p: p.write_bytes(safetensors(LORA, bytes(4))), "a LoRA"),
    "half a safetensors": (
        "a.safetensors",
        lambda p: p.write_bytes(safetensors(ONE, bytes(12))),
        "was cut short",
    ),
    "no safetensors": ("a.safetensors", lambda p: p.write_bytes(b"\xff" * 40), "no safetensors"),
    "a damaged header": (
        "a.safetensors",
        lambda p: p.write_bytes(safetensors({"x": {"shape": 3}}, b"")),
        "damaged safetensors header",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_network_for_frames_is_refused_with_the_reason(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, make, words = REFUSED[kind]
    make(tmp_path / name)
    text = refusal(tmp_path / name)
    assert words in text
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing was burgled


def test_safetensors_ask_for_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors(ONE, bytes(16)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "takes a package" in refusal(tmp_path / "a.safetensors")


def test_safetensors_hold_the_same_network(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch", reason="comes with the extra spandrel")
    weights = style_weights()
    files.save_file(weights, tmp_path / "candy.safetensors")
    network = open_source(tmp_path / "candy.safetensors").network
    assert torch.equal(network.state_dict()["in3.bias"], weights["in3.bias"])


def test_a_range_is_for_onnx_files_alone(tmp_path: Path) -> None:
    path = saved(style_weights(), tmp_path / "candy.pth")
    with pytest.raises(SourceError, match="leave out --range"):
        open_source(path, value_range=255)
    with pytest.raises(SourceError, match="leave out --range"):
        open_source(path, channel_order="bgr")


def test_a_style_from_elsewhere_becomes_a_bundle_that_says_so(tmp_path: Path) -> None:
    path = saved({"state_dict": style_weights((2, 3, 4), 1)}, tmp_path / "candy.pth")
    outcome = export_engine_main(path)
    assert outcome.code == 0, outcome.stderr
    bundle = tmp_path / "candy.topcoat"
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["checkpoint"]["kind"] == "fast-neural-style"
    assert manifest["checkpoint"]["network"]["settings"] == {"widths": [2, 3, 4], "blocks": 1}
    assert "recipe" not in manifest["checkpoint"]
    card = (bundle / "card.md").read_text(encoding="utf-8")
    assert "pytorch/examples" in card
    for word in ("Recipe", "| Style |", "Losses", "default settings", "not recorded"):
        assert word not in card
