"""The loss network: VGG's convolutions, with the weights that the papers used.

The layers are built here rather than taken from torchvision: they are one line of channel counts,
and torchvision's wheel loads only beside the exact build of torch that it was compiled with, which
on a machine without a GPU is several gigabytes of CUDA. The parameter names are torchvision's, so
its weight files load, and a test compares the two where torchvision is installed.
"""

import hashlib
import itertools
import os
import pickle
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from topcoat.train._errors import LossWeightsError, RecipeError
from topcoat.train.recipes import PerceptualRecipe

_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)

_HUB = "https://download.pytorch.org/models/"
_HUB_FILE = {
    # torch.hub checks the file against the start of its SHA-256, the last part of its name.
    "vgg16": "vgg16_features-amdegroot-88682ab5.pth",  # the original Oxford weights
    "vgg19": "vgg19-dcbb9e9d.pth",  # trained by torchvision; no Oxford file is published there
}
_DOWNLOAD_MIB = {"vgg16": 528, "vgg19": 548}
_ENVIRONMENT = {"vgg16": "TOPCOAT_VGG16_WEIGHTS", "vgg19": "TOPCOAT_VGG19_WEIGHTS"}

_OXFORD_VGG16 = "ae2da5ecbf928578"
"""Start of the SHA-256 of ``features.0.weight``: tells the Oxford weights from all others."""

_INPUT = {
    # mean and standard deviation of RGB in [0, 1]
    "oxford": ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def layer_index(network: str, layer: str) -> int:
    """Position of a named ReLU in torchvision's ``features``.

    >>> layer_index("vgg16", "relu3_3")
    15

    Raises:
        RecipeError: no such network or layer; the message lists the valid ones.
    """
    names = layer_names(network)
    if layer not in names:
        relu = layer.replace("conv", "relu")
        meant = f" ({relu} is what comes out of it)" if relu in names else ""
        raise RecipeError(
            f"{network} has no layer {layer!r}{meant}; choose among {', '.join(names)}"
        )
    return names[layer]


def layer_names(network: str) -> dict[str, int]:
    """Every ReLU of a loss network by the papers' name, with its index in ``features``."""
    if network not in _BLOCKS:
        raise RecipeError(f"no loss network {network!r}; choose among {', '.join(_BLOCKS)}")
    names, index = {}, 0
    for block, depth in enumerate(_BLOCKS[network], start=1):
        for conv in range(1, depth + 1):
            names[f"relu{block}_{conv}"] = index + 1
            index += 2
        index += 1  # the pooling
    return names


class LossNetwork(nn.Module):
    """VGG up to the deepest layer asked for; frozen.

    Args:
        network: ``vgg16`` or ``vgg19``.
        layers: names such as ``relu3_3``, in any order.
        network_input: how the weights want their input: ``oxford`` (RGB, mean subtracted, 0-255)
            or ``imagenet`` (torchvision's own training).
        pooling: between the blocks, ``max`` as trained, or ``average``, which Gatys et al. found
            to give smoother pictures.

    ``checkpointing`` may be set: activations of a block are then computed again in the backward
    pass instead of kept, which takes a third more time and saves most of the memory.

    Source: Simonyan, Zisserman 2014 (arXiv:1409.1556), configurations D and E.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: str,
        layers: Iterable[str],
        network_input: Literal["oxford", "imagenet"] = "oxford",
        pooling: Literal["max", "average"] = "max",
    ) -> None:
        super().__init__()
        self.network = network
        self.checkpointing = False
        self.taps = {layer_index(network, layer): layer for layer in layers}
        if not self.taps:
            raise RecipeError("a loss network needs at least one layer; name one such as relu3_3")
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in _INPUT[network_input])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        modules: list[nn.Module] = []
        inputs = 3
        for channels, depth in zip(_CHANNELS, _BLOCKS[network], strict=True):
            if len(modules) > max(self.taps):
                break  # filling deeper blocks at random, to cut them off, takes half a second
            for _ in range(depth):
                # In place: nothing needs what the convolution gave, and at 2048² it is a gigabyte.
                modules += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = channels
            modules.append(nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2))
        self._pooling = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
        self.features = nn.Sequential(*modules[: max(self.taps) + 1])
        self.requires_grad_(False)
        self.eval()

    def sha256(self) -> str:
        """Hash of the weights in use: tells whether a resumed run has the same objective."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def forward(self, frame: Tensor, until: str | None = None) -> dict[str, Tensor]:
        """(B, 3, H, W) RGB in [0, 1] -> {layer: (B, C, H', W')}, after the ReLU.

        With ``until``, stops at that layer and returns it alone.
        """
        last = len(self.features) - 1 if until is None else layer_index(self.network, until)
        wanted = {i: n for i, n in self.taps.items() if until in (None, n)}
        # Channels last whatever came: a third less time on a CPU, and Gram matrices without a copy.
        x = ((frame - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found: dict[str, Tensor] = {}
        if not self.checkpointing or not x.requires_grad:
            for index in range(last + 1):
                x = self.features[index](x)
                if index in wanted:
                    found[wanted[index]] = x
            return found
        pools = [i for i in range(1, last + 1) if isinstance(self.features[i], self._pooling)]
        starts = [0, *pools, last + 1]
        for first, end in itertools.pairwise(starts):
            x, taps = checkpoint(self._block, x, first, end, use_reentrant=False)
            found |= {wanted[index]: tap for index, tap in taps.items() if index in wanted}
        return found

    def _block(self, x: Tensor, first: int, end: int) -> tuple[Tensor, dict[int, Tensor]]:
        taps = {}
        for index in range(first, end):
            x = self.features[index](x)
            if index in self.taps:
                taps[index] = x
        return x, taps

    def target(self, frame: Tensor, layer: str) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> (B, C, H', W'): features to compare with, no gradient."""
        with torch.no_grad():
            return self(frame, until=layer)[layer]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WeightsFile:
    """Where the loss network's weights were found."""

    path: Path
    origin: str
    """``--loss-weights``, the name of the environment variable, ``hub cache`` or ``download``."""


def find_loss_weights(network: str, given: str | os.PathLike[str] | None = None) -> WeightsFile:
    """Find the weight file of a loss network, downloading it as the last resort.

    Looked up in this order: ``given``; ``TOPCOAT_VGG16_WEIGHTS`` (or ``…VGG19…``); the cache of
    ``torch.hub``; a download into that cache, announced on standard error with its size, checked
    against its SHA-256. A place that is named but holds no file is an error, not a reason to look
    at the next.

    Raises:
        LossWeightsError: a named file does not exist, or the download failed.
    """
    layer_names(network)
    variable = _ENVIRONMENT[network]
    for origin, value in (("--loss-weights", given), (variable, os.environ.get(variable))):
        if value:
            path = Path(value)
            if not path.is_file():
                raise LossWeightsError(
                    f"{origin} names {path}, which is not a file; give {network}'s weights as a "
                    ".pth file with torchvision's parameter names"
                )
            return WeightsFile(path, origin)
    name = _HUB_FILE[network]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.is_file():
        return WeightsFile(cached, "hub cache")
    print(
        f"downloading the {network} weights, {_DOWNLOAD_MIB[network]} MiB, to {cached} "
        f"(set {variable} to a file you have to avoid this)",
        file=sys.stderr,
    )
    prefix = Path(name).stem.rsplit("-", 1)[1]
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_HUB + name, str(cached), hash_prefix=prefix)
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise LossWeightsError(
            f"no {network} weights: none given, {variable} is not set, none in {cached.parent}, "
            f"and the download failed ({reason}); get {name} elsewhere and pass --loss-weights FILE"
        ) from None
    return WeightsFile(cached, "download")


def load_loss_network(
    network: str,
    layers: Sequence[str],
    weights: str | os.PathLike[str],
    network_input: Literal["oxford", "imagenet"] = "oxford",
    recipe_fields: str = "--style-layers or --content-layer",
    pooling: Literal["max", "average"] = "max",
) -> LossNetwork:
    """Build the loss network and fill it from a weight file that may end early.

    Args:
        network: ``vgg16`` or ``vgg19``.
        layers: the layers that the losses ask for; the file must reach the deepest of them.
        weights: a .pth state dict with torchvision's names (``features.0.weight``, …).
        network_input: see :class:`LossNetwork`.
        recipe_fields: which settings choose the layers; named in the error.
        pooling: see :class:`LossNetwork`.

    Raises:
        LossWeightsError: not a weight file, layers missing or misshapen, or the original Oxford
            weights combined with another input convention.
    """
    built = LossNetwork(network, layers, network_input, pooling)
    path = Path(weights)
    state = _read_state(path)
    if held := _other_network(state, network):
        raise LossWeightsError(
            f"{path} holds {held.upper()}, not {network}; set --loss-network {held}, or give "
            f"{network}'s weights"
        )
    wanted = built.state_dict()
    missing = sorted({int(name.split(".")[1]) for name in wanted if name not in state})
    if missing:
        convs = {index - 1: name for name, index in layer_names(network).items()}
        first = missing[0]
        absent = [convs[index] for index in missing]
        lost = [tap for index, tap in sorted(built.taps.items()) if index > first]
        reaches = [name for index, name in convs.items() if index < first]
        hint = (
            f"it ends at {reaches[-1]}: choose layers up to there with {recipe_fields}, "
            "or give a longer file"
            if reaches
            else f"give {network}'s weights with torchvision's parameter names"
        )
        raise LossWeightsError(
            f"{path} lacks the {network} layers {', '.join(absent)}, which {', '.join(lost)} "
            f"needs; {hint}"
        )
    for name, value in wanted.items():
        if not isinstance(state[name], Tensor) or state[name].shape != value.shape:
            came = tuple(getattr(state[name], "shape", ()))
            raise LossWeightsError(
                f"{path} has {name} of shape {came}, {network} wants {tuple(value.shape)}; "
                "give the weights of the network that the recipe names"
            )
    if network_input != "oxford" and _is_oxford(state):
        raise LossWeightsError(
            f"{path} holds the original Oxford weights, whose input is not {network_input!r}; "
            "set --loss-input oxford"
        )
    if path.name == _HUB_FILE["vgg19"] and network_input != "imagenet":
        raise LossWeightsError(
            f"{path} was trained by torchvision, its input is not {network_input!r}; "
            "set --loss-input imagenet"
        )
    built.load_state_dict({name: state[name] for name in wanted})
    if not all(torch.isfinite(value).all() for value in built.state_dict().values()):
        raise LossWeightsError(f"{path} holds NaN or infinity in the layers needed; get it again")
    return built


def perceptual_network(
    recipe: PerceptualRecipe,
    given: str | os.PathLike[str] | None = None,
) -> tuple[LossNetwork, Path]:
    """The loss network that a recipe's objective reads, found, filled and prepared.

    Args:
        recipe: its network, layers, pooling and scaling of activations.
        given: the weight file, see :func:`find_loss_weights`.

    Returns:
        The network, and the file that its weights came from.

    Raises:
        LossWeightsError: as :func:`find_loss_weights` and :func:`load_loss_network`.
        RecipeError: a layer that the network does not have; the message lists those it has.
    """
    for layer in recipe.layers():
        layer_index(recipe.loss_network, layer)  # before anything is downloaded for it
    found = find_loss_weights(recipe.loss_network, given)
    fields = ["--style-layers"] * recipe.uses_style()
    fields += ["--histogram-layers"] * recipe.uses_histogram()
    fields += ["--content-layer"] * bool(recipe.content_weight)
    network = load_loss_network(
        recipe.loss_network,
        recipe.layers(),
        found.path,
        recipe.loss_convention(),
        " or ".join(fields),
        recipe.loss_pooling,
    )
    if recipe.loss_activations == "unit-mean":
        from topcoat.train.frames import frame_tensor
        from topcoat.train.pictures import open_rgb, resize_shorter_side, sample_photographs

        photographs = (
            frame_tensor(resize_shorter_side(open_rgb(path), 256)) for path in sample_photographs()
        )
        scale_to_unit_mean(network, photographs)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, found.path


_QUIET = 0.3
"""Filters below this share of their layer's mean activation are scaled as if they were at it."""


def scale_to_unit_mean(network: LossNetwork, pictures: Iterable[Tensor]) -> None:
    """Scale every filter so that its mean activation over pictures and positions is 1, in place.

    ReLU and pooling pass positive factors, so what a filter gains the next layer's weights lose,
    and what the network computes stays the same but for the scale of each channel. Filters far
    quieter than their layer on the pictures are scaled less, and stay below 1.

    Args:
        network: changed in place.
        pictures: (1, 3, H, W) RGB in [0, 1], of any sizes.

    Source: Gatys, Ecker, Bethge 2016 (CVPR), §2.
    """
    convs = {i: conv for i, conv in enumerate(network.features) if isinstance(conv, nn.Conv2d)}
    sums = {index: torch.zeros(conv.out_channels) for index, conv in convs.items()}
    pixels = dict.fromkeys(convs, 0)
    with torch.no_grad():
        for picture in pictures:
            x = (picture - network.mean) / network.std
            for index, module in enumerate(network.features):
                x = module(x)
                if index - 1 in sums:  # behind the ReLU
                    sums[index - 1] += x.sum((0, 2, 3)).cpu()
                    pixels[index - 1] += x.numel() // x.shape[1]
        before = torch.ones(3)
        for index, conv in convs.items():
            assert conv.bias is not None
            mean = sums[index] / max(1, pixels[index])
            # A filter that hardly ever answers would drown all others once it does.
            mean = mean.clamp_min(_QUIET * float(mean.mean())) if bool(mean.any()) else mean + 1
            conv.weight.mul_(before[None, :, None, None] / mean[:, None, None, None])
            conv.bias.div_(mean)
            before = mean


def _is_oxford(state: Mapping[str, Tensor]) -> bool:
    first = state.get("features.0.weight")
    if not isinstance(first, Tensor):
        return False
    digest = hashlib.sha256(first.contiguous().float().numpy().tobytes()).hexdigest()
    return digest.startswith(_OXFORD_VGG16)


def _other_network(state: Mapping[str, Tensor], network: str) -> str | None:
    """The network that a file is for, if it is certainly not the one that was asked for."""
    if network != "vgg16" and _is_oxford(state):
        return "vgg16"
    convs = {
        int(parts[1])
        for parts in (str(name).split(".") for name in state)
        if len(parts) == 3 and parts[0] == "features" and parts[1].isdecimal()
    }

    def fits(name: str) -> bool:
        return convs <= {index - 1 for index in layer_names(name).values()}

    others = [name for name in _BLOCKS if name != network and fits(name)]
    return others[0] if others and not fits(network) else None


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ):
        raise LossWeightsError(
            f"{path} is not a readable weight file (or was cut short, or holds code); "
            "give a .pth state dict with torchvision's parameter names"
        ) from None
    if not isinstance(state, dict):
        raise LossWeightsError(
            f"{path} holds a {type(state).__name__}, not a state dict; "
            "give a .pth state dict with torchvision's parameter names"
        )
    return state
