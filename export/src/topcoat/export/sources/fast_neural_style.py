"""Style networks of PyTorch's example ``fast_neural_style``, known by their weights' names.

Source: the ``TransformerNet`` of pytorch/examples, after Johnson, Alahi and Fei-Fei 2016
(arXiv:1603.08155) with instance normalisation (Ulyanov, Vedaldi and Lempitsky 2016) and upsampling
by nearest neighbour and convolution (Odena et al. 2016). Written here from that description.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topcoat.export.sources._source import Source, SourceError, to_onnx_of
from topcoat.train.networks import FrameNetwork

KIND = "fast-neural-style"

_OUTER = ("conv1", "conv2", "conv3", "deconv1", "deconv2", "deconv3")
_NORMS = ("in1", "in2", "in3", "in4", "in5")
_BLOCK = re.compile(r"res(\d+)\.")
# Files of torch before 0.4 keep statistics that instance normalisation gathered and never used.
_UNUSED = re.compile(r"(^|\.)in\d+\.(running_mean|running_var|num_batches_tracked)$")
_DEFAULT_BLOCKS = 5


class FastNeuralStyle(FrameNetwork):
    """Down by four, residual blocks, up by four; reflection padding, no bound on the output.

    ``forward``: (B, 3, H, W) RGB in [0, 1] -> (B, 3, H, W) RGB, nominally in [0, 1] and clipped by
    the caller; H and W are multiples of 4 and at least ``size_min``. The published network takes
    and gives 0 to 255, which happens inside.
    """

    size_multiple = 4

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        convolutions = {name: _Conv(shapes[f"{name}.conv2d.weight"]) for name in _OUTER}
        for name, made in convolutions.items():
            self.add_module(name, made)
        for name, after in zip(_NORMS, _OUTER, strict=False):
            self.add_module(name, _norm(shapes[f"{after}.conv2d.weight"][0]))
        self.blocks = _blocks(shapes)
        for block in self.blocks:
            self.add_module(
                block,
                _Residual(
                    shapes[f"{block}.conv1.conv2d.weight"], shapes[f"{block}.conv2.conv2d.weight"]
                ),
            )
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.relu = nn.ReLU()
        # A reflection reaches as far as the layer's own side allows, at each of three sizes.
        pads = {
            4: [made.border for b in self.blocks for made in self.get_submodule(b).children()
                if isinstance(made, _Conv)],
            2: [convolutions["conv3"].border, convolutions["deconv1"].border],
            1: [convolutions[name].border for name in ("conv1", "conv2", "deconv2", "deconv3")],
        }  # fmt: skip
        least = max(share * (border + 1) for share, borders in pads.items() for border in borders)
        self.size_min = -(-least // 4) * 4

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W), clipped by the caller."""
        part, relu = self.get_submodule, self.relu
        x = frame * 255
        for conv, norm in (("conv1", "in1"), ("conv2", "in2"), ("conv3", "in3")):
            stride = 1 if conv == "conv1" else 2
            x = relu(part(norm)(part(conv)(x, stride)))
        for block in self.blocks:
            x = part(block)(x)
        for conv, norm in (("deconv1", "in4"), ("deconv2", "in5")):
            x = relu(part(norm)(part(conv)(self.upsample(x))))
        answer: Tensor = part("deconv3")(x) / 255
        return answer


def recognise(path: Path, weights: Mapping[str, Tensor], sha256: str) -> Source | None:
    """Take the weights of a ``TransformerNet``, of any width and number of blocks.

    Args:
        path: where they come from, for messages.
        weights: key -> tensor, from any of the wrappings that such files come in.
        sha256: of the file.

    Returns:
        None if no key is one of its keys.

    Raises:
        SourceError: some keys are, but others are missing, unknown or of shapes that do not fit.
    """
    known = {key: value for key, value in weights.items() if not _UNUSED.search(key)}
    expected = _expected_keys(known)
    marks = [key for key in expected if ".conv2d." in key]
    if not any(key in known for key in marks):
        return None
    missing = [key for key in expected if key not in known]
    if missing:
        raise SourceError(
            f"{path} looks like a fast_neural_style network, but {len(missing)} of its "
            f"{len(expected)} keys are missing ({_some(missing)}); get the whole file"
        )
    unknown = [key for key in known if key not in expected]
    if unknown:
        raise SourceError(
            f"{path} has all keys of a fast_neural_style network and {len(unknown)} others "
            f"({_some(unknown)}), so it is a variant that is not known; export it to ONNX with the "
            "code that it was trained with, and give that"
        )
    shapes = {key: tuple(value.shape) for key, value in known.items()}
    _check_shapes(path, shapes)
    network = FastNeuralStyle(shapes)
    try:
        network.load_state_dict({key: value.float() for key, value in known.items()})
        network = network.eval().requires_grad_(False)
        # Shapes of neighbouring layers meet only where a frame passes through them.
        network(torch.zeros(1, 3, network.size_min, network.size_min))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(
            f"{path} has the keys of a fast_neural_style network, but not its shapes ({reason}); "
            "export it to ONNX with the code that it was trained with, and give that"
        ) from None
    widths = [shapes[f"{name}.conv2d.weight"][0] for name in ("conv1", "conv2", "conv3")]
    settings: dict[str, Any] = {"widths": widths, "blocks": len(network.blocks)}
    return Source(
        network=network,
        task="style",
        name="fast-neural-style",
        settings=settings,
        parameters=sum(value.numel() for value in known.values()),
        to_onnx=to_onnx_of(network, "style"),
        sha256=sha256,
        kind=KIND,
        notes=("weights of the TransformerNet of pytorch/examples (fast_neural_style)",),
    )


class _Conv(nn.Module):
    """Reflection padding and a convolution, under the name that the files give it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        outputs, inputs, side, _ = shape
        self.border = side // 2
        self.reflection_pad = nn.ReflectionPad2d(self.border)
        self.conv2d = nn.Conv2d(inputs, outputs, side)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """(B, C, H, W) -> (B, D, H/stride, W/stride), rounded up."""
        padded = self.reflection_pad(x)
        return nn.functional.conv2d(padded, self.conv2d.weight, self.conv2d.bias, stride)


class _Residual(nn.Module):
    def __init__(self, first: tuple[int, ...], second: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.in1 = _Conv(first), _norm(first[0])
        self.conv2, self.in2 = _Conv(second), _norm(second[0])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; no ReLU after the sum."""
        residual: Tensor = self.in2(self.conv2(self.relu(self.in1(self.conv1(x)))))
        return residual + x


def _norm(channels: int) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=True)


def _blocks(keys: Mapping[str, object]) -> list[str]:
    numbers = {int(found[1]) for key in keys if (found := _BLOCK.match(key))}
    return [f"res{number}" for number in range(1, max(numbers, default=0) + 1)]


def _expected_keys(weights: Mapping[str, object]) -> list[str]:
    blocks = _blocks(weights)
    if not blocks:
        blocks = [f"res{number}" for number in range(1, _DEFAULT_BLOCKS + 1)]
    convolutions = [*_OUTER, *(f"{block}.conv{i}" for block in blocks for i in (1, 2))]
    norms = [*_NORMS, *(f"{block}.in{i}" for block in blocks for i in (1, 2))]
    names = [*(f"{name}.conv2d" for name in convolutions), *norms]
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def _check_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = ""
    for key, shape in shapes.items():
        if key.endswith(".conv2d.weight") and (
            len(shape) != 4 or shape[2] != shape[3] or not shape[2] % 2 or not all(shape)
        ):
            wrong = f"{key} has the shape {shape}, wanted (outputs, inputs, side, side), side odd"
    takes, gives = shapes["conv1.conv2d.weight"][1:2], shapes["deconv3.conv2d.weight"][:1]
    if (takes, gives) != ((3,), (3,)):
        wrong = f"it takes {takes} and gives {gives} channels, wanted are 3 and 3"
    if wrong:
        raise SourceError(
            f"{path} has the keys of a fast_neural_style network, but {wrong}; export it to ONNX "
            "with the code that it was trained with, and give that"
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
