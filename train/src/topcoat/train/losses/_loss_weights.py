"""Weight files of the loss network: where they are found, and how they are read.

VGG's are large and come from elsewhere; those of the embedded network, a small student of VGG16,
lie beside this file. embedded.md says how they were made.
"""

import functools
import hashlib
import json
import os
import pickle
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from topcoat.train._errors import LossWeightsError, MissingLossWeightsError, RecipeError
from topcoat.train.losses._download import DownloadError, download
from topcoat.train.recipes import LossRecipe
from topcoat.train.recipes._base import choices

EMBEDDED = "embedded"

_HUB = "https://download.pytorch.org/models/"
HUB_FILE = {
    # The last part of a name is the start of the file's SHA-256.
    "vgg16": "vgg16_features-amdegroot-88682ab5.pth",  # the original Oxford weights
    "vgg19": "vgg19-dcbb9e9d.pth",  # trained by torchvision; no Oxford file is published there
}
_DOWNLOAD_MIB = {"vgg16": 528, "vgg19": 548}
_ENVIRONMENT = {"vgg16": "TOPCOAT_VGG16_WEIGHTS", "vgg19": "TOPCOAT_VGG19_WEIGHTS"}

_EMBEDDED_FILE = Path(__file__).with_name("embedded.safetensors")


@dataclass(frozen=True)
class WeightsFile:
    """Where the loss network's weights were found."""

    path: Path
    origin: str
    """``--loss-weights``, the name of the environment variable, ``hub cache``, ``download`` or
    ``topcoat-train``, which carries the embedded ones."""


def check_network(network: str) -> None:
    """Refuse a name that no loss network has.

    Raises:
        RecipeError: it is none; the message lists them.
    """
    names = choices(LossRecipe)["loss_network"]
    if network not in names:
        raise RecipeError(f"no loss network {network!r}; choose among {', '.join(names)}")


def find_loss_weights(network: str, given: str | os.PathLike[str] | None = None) -> WeightsFile:
    """Find the weight file of a loss network, downloading it as the last resort.

    Looked up in this order: ``given``; ``TOPCOAT_VGG16_WEIGHTS`` (or ``…VGG19…``); the cache of
    ``torch.hub``; a download into that cache, announced on standard error with its size, checked
    against its SHA-256. A place that is named but holds no file is an error, not a reason to look
    at the next. The embedded network has one file, which comes with topcoat-train.

    Raises:
        MissingLossWeightsError: none of the places has them, and the download failed.
        LossWeightsError: a named file does not exist, or the embedded one is not as shipped.
        RecipeError: no such network, or a file is given for the embedded one.
    """
    check_network(network)
    if network == EMBEDDED:
        if given:
            raise RecipeError(
                "--loss-weights would change nothing: the embedded loss network brings its own; "
                "leave it out, or pass --loss-network vgg16"
            )
        embedded_state()
        return WeightsFile(_EMBEDDED_FILE, "topcoat-train")
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
    name = HUB_FILE[network]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.is_file():
        return WeightsFile(cached, "hub cache")

    def announce() -> None:
        print(
            f"downloading the {network} weights, {_DOWNLOAD_MIB[network]} MiB, to {cached} "
            f"(set {variable} to a file you have to avoid this)",
            file=sys.stderr,
        )

    try:
        download(_HUB + name, cached, Path(name).stem.rsplit("-", 1)[1], announce)
    except DownloadError as error:
        raise MissingLossWeightsError(
            f"no {network} weights: none given, {variable} is not set, none in {cached.parent}, "
            f"and the download failed ({error}); get {name} elsewhere and pass --loss-weights FILE",
            reason=str(error),
        ) from None
    return WeightsFile(cached, "download")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pth or .safetensors file, floats as float32.

    Raises:
        LossWeightsError: it cannot be read, or holds something else.
    """
    wanted = "give a .pth state dict with torchvision's parameter names"
    try:
        if path.suffix == ".safetensors":
            return _floats(safetensors.torch.load(path.read_bytes()))
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
        SafetensorError,
        pickle.UnpicklingError,
    ):
        raise LossWeightsError(
            f"{path} is not a readable weight file (or was cut short, or holds code); {wanted}"
        ) from None
    if not isinstance(state, dict):
        raise LossWeightsError(f"{path} holds a {type(state).__name__}, not a state dict; {wanted}")
    return state


def embedded_layers() -> tuple[str, ...]:
    """The layers of the embedded network whose features stand for VGG16's.

    Raises:
        LossWeightsError: its description is missing or damaged.
    """
    return _described(_EMBEDDED_FILE)[1]


def embedded_state() -> dict[str, Tensor]:
    """The embedded network's weights, float32.

    Raises:
        LossWeightsError: their file is missing, or is not the one that its description tells of.
    """
    sha256, _ = _described(_EMBEDDED_FILE)
    try:
        content = _EMBEDDED_FILE.read_bytes()
    except OSError as error:
        raise _not_as_shipped(_EMBEDDED_FILE, error.strerror or str(error)) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _not_as_shipped(_EMBEDDED_FILE, "its SHA-256 is another")
    return _floats(safetensors.torch.load(content))


@functools.cache
def _described(weights: Path) -> tuple[str, tuple[str, ...]]:
    """SHA-256 of the embedded network's weights, and its layers."""
    path = weights.with_suffix(".json")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        sha256, layers = described["sha256"], described["layers"]
        if not isinstance(sha256, str) or not isinstance(layers, list):
            raise TypeError
        return sha256, tuple(map(str, layers))
    except OSError as error:
        raise _not_as_shipped(path, error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError):
        raise _not_as_shipped(path, "it cannot be read") from None


def _not_as_shipped(path: Path, why: str) -> LossWeightsError:
    return LossWeightsError(
        f"{path} is missing or damaged ({why}), and the embedded loss network with it; "
        "install topcoat-train again"
    )


def _floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in state.items()}
