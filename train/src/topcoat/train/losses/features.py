"""The loss network: VGG's convolutions, with the weights that the papers used.

The layers are built here rather than taken from torchvision: they are one line of channel counts,
and torchvision's wheel loads only beside the exact build of torch that it was compiled with, which
on a machine without a GPU is several gigabytes of CUDA. The parameter names are torchvision's, so
its weight files load, and a test compares the two where torchvision is installed.
"""

import hashlib
import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from topcoat.train._errors import LossWeightsError, RecipeError
from topcoat.train.losses import _frozen
from topcoat.train.losses._loss_weights import (
    EMBEDDED,
    HUB_FILE,
    check_network,
    embedded_layers,
    embedded_state,
    find_loss_weights,
    read_state,
)
from topcoat.train.losses.gram import gram_matrix
from topcoat.train.recipes import PerceptualRecipe

_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4), EMBEDDED: (2, 2, 3, 3, 3)}
_CHANNELS = (64, 128, 256, 512, 512)

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
        others = network == EMBEDDED and relu in _relus("vgg16")
        elsewhere = "; --loss-network vgg16 has the others" if others else ""
        raise RecipeError(
            f"{network} has no layer {layer!r}{meant}; choose among {', '.join(names)}{elsewhere}"
        )
    return names[layer]


def layer_names(network: str) -> dict[str, int]:
    """What a loss network can compare, by the papers' names, with the index in ``features``.

    Of VGG every ReLU; of the embedded network those whose features stand for VGG16's.
    """
    check_network(network)
    names = _relus(network)
    return {name: names[name] for name in embedded_layers()} if network == EMBEDDED else names


def _relus(network: str) -> dict[str, int]:
    names, index = {}, 0
    for block, depth in enumerate(_BLOCKS[network], start=1):
        for conv in range(1, depth + 1):
            names[f"relu{block}_{conv}"] = index + 1
            index += 2
        index += 1  # the pooling
    return names


class LossNetwork(nn.Module):
    """VGG up to the deepest layer asked for, or a narrow student of it; frozen.

    Args:
        network: ``vgg16``, ``vgg19`` or ``embedded``: VGG16's layout with fewer channels between
            the layers that are compared, which have VGG16's channels and scale.
        layers: names such as ``relu3_3``, in any order.
        network_input: how the weights want their input: ``oxford`` (RGB, mean subtracted, 0-255)
            or ``imagenet`` (torchvision's own training).
        pooling: between the blocks, ``max`` as trained, or ``average``, which Gatys et al. found
            to give smoother pictures.
        widths: channels of every convolution, the first one first, at least up to the deepest
            layer; None: the network's own.

    ``checkpointing`` may be set: activations of a block are then computed again in the backward
    pass instead of kept, which takes a third more time and saves most of the memory; on a CPU also
    without the transformed weights that make wide layers faster.

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
        widths: Sequence[int] | None = None,
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
        if widths is None:
            widths = _widths(network, embedded_state() if network == EMBEDDED else {})
        convs = sum(index <= max(self.taps) for index in _relus(network).values())
        if len(widths) < convs:
            raise RecipeError(
                f"widths must have a number for each of the {convs} convolutions up to "
                f"{self.taps[max(self.taps)]}, got {len(widths)}"
            )
        widths = widths[:convs]  # filling layers at random, to cut them off, takes half a second
        modules: list[nn.Module] = []
        inputs, first = 3, 0
        for depth in _BLOCKS[network]:
            for channels in widths[first : first + depth]:
                # In place: nothing needs what the convolution gave, and at 2048² it is a gigabyte.
                modules += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = channels
            first += depth
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

        With ``until``, one of the layers, stops at that layer and returns it alone.
        """
        indices = {layer: index for index, layer in self.taps.items()}
        last = len(self.features) - 1 if until is None else indices[until]
        wanted = {i: n for i, n in self.taps.items() if until in (None, n)}
        # Channels last whatever came: a third less time on a CPU, and Gram matrices without a copy.
        x = ((frame - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found: dict[str, Tensor] = {}
        if not self.checkpointing or not x.requires_grad:
            if _frozen.applies(self.features, x):
                taps, _ = _frozen.describe([*self.features], x, wanted, lean=self.checkpointing)
                return {wanted[index]: tap for index, tap in taps.items()}
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
        if _frozen.applies(self.features, x):
            inside = {index for index in self.taps if first <= index < end}
            found, _ = _frozen.describe(
                [*self.features][first:end],
                x,
                [i - first for i in inside | {end - 1}],
                lean=True,
            )
            x = found[end - 1 - first]
            return x, {index: found[index - first] for index in inside}
        for index in range(first, end):
            x = self.features[index](x)
            if index in self.taps:
                taps[index] = x
        return x, taps

    def statistics(
        self, frame: Tensor, features: Collection[str], grams: Collection[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What an objective reads of a frame.

        Args:
            frame: (B, 3, H, W) RGB in [0, 1].
            features: layers whose features are wanted.
            grams: layers whose Gram matrices are wanted.

        Returns:
            {layer: (B, C, H', W')}, after the ReLU, and {layer: (B, C, C)}, as
            :func:`~topcoat.train.losses.gram.gram_matrix` gives them.
        """
        x = (frame - self.mean) / self.std
        if self.checkpointing or not _frozen.applies(self.features, x):
            found = self(frame)
            return (
                {layer: found[layer] for layer in features},
                {layer: gram_matrix(found[layer]) for layer in grams},
            )
        indices = {layer: index for index, layer in self.taps.items()}
        taps, products = _frozen.describe(
            [*self.features],
            x,
            [indices[layer] for layer in features],
            [indices[layer] for layer in grams],
        )
        return (
            {layer: taps[indices[layer]] for layer in features},
            {layer: products[indices[layer]] for layer in grams},
        )

    def prepared_bytes(self) -> int:
        """What the weights take once more on a CPU, transformed, unless ``checkpointing``."""
        return _frozen.prepared_bytes(self.features)

    def target(self, frame: Tensor, layer: str) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> (B, C, H', W'): features to compare with, no gradient."""
        with torch.no_grad():
            return self(frame, until=layer)[layer]  # type: ignore[no-any-return]


def _widths(network: str, state: Mapping[str, Tensor]) -> list[int]:
    """Channels of every convolution: those of the weights, VGG's where they end."""
    blocks = zip(_CHANNELS, _BLOCKS[network], strict=True)
    widths = [width for width, depth in blocks for _ in range(depth)]
    for number, index in enumerate(_relus(network).values()):
        weight = state.get(f"features.{index - 1}.weight")
        if isinstance(weight, Tensor) and weight.ndim == 4:
            widths[number] = weight.shape[0]
    return widths


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
        network: ``vgg16``, ``vgg19`` or ``embedded``, whose widths are those of the file.
        layers: the layers that the losses ask for; the file must reach the deepest of them.
        weights: a state dict with torchvision's names (``features.0.weight``, …), .pth or
            .safetensors.
        network_input: see :class:`LossNetwork`.
        recipe_fields: which settings choose the layers; named in the error.
        pooling: see :class:`LossNetwork`.

    Raises:
        LossWeightsError: not a weight file, layers missing or misshapen, or the original Oxford
            weights combined with another input convention.
    """
    path = Path(weights)
    for layer in layers:
        layer_index(network, layer)  # before a file is read for it
    state = read_state(path)
    if held := _other_network(state, network):
        raise LossWeightsError(
            f"{path} holds {held.upper()}, not {network}; set --loss-network {held}, or give "
            f"{network}'s weights"
        )
    if network == EMBEDDED and network_input != "oxford":
        raise LossWeightsError(
            f"{path} wants the input that VGG16's Oxford weights want, not {network_input!r}; "
            "leave --loss-input out"
        )
    widths = _widths(network, state if network == EMBEDDED else {})
    built = LossNetwork(network, layers, network_input, pooling, widths)
    wanted = built.state_dict()
    missing = sorted({int(name.split(".")[1]) for name in wanted if name not in state})
    if missing:
        convs = {index - 1: name for name, index in _relus(network).items()}
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
    if path.name == HUB_FILE["vgg19"] and network_input != "imagenet":
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
        return convs <= {index - 1 for index in _relus(name).values()}

    others = [name for name in _BLOCKS if name != network and fits(name)]
    return others[0] if others and not fits(network) else None
