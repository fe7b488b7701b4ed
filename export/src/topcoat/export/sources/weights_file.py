"""Read the weights in a file of another project, without running anything in it."""

import errno
import importlib.util
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topcoat.export.sources._source import SourceError

WANTED = (
    "give a checkpoint of train-style, train-sr or train-texture, an ONNX file, or the weights of "
    "a network that docs/models.md lists"
)
"""The end of every refusal that leaves open what the file was meant to be."""

_HOLDERS = (
    *("model_state_dict", "state_dict", "params_ema", "params-ema", "params"),
    *("model", "net", "generator", "network", "weights"),
)
"""Keys under which trainers keep the weights; averaged ones first where a file has both."""
_PREFIXES = ("module.", "_orig_mod.", "netG.")
"""What DataParallel, torch.compile and trainers of two networks put before every key."""
_HEADER_LIMIT = 100_000_000
"""Bytes of a safetensors header, at most; its own readers have the same limit."""
_LORA = ("lora_", ".lora.", "lora.", ".hada_w", ".lokr_")
_DIFFUSION = (
    "model.diffusion_model.",
    "first_stage_model.",
    "time_embedding.",
    "cond_stage_model.",
)


def read_weights_file(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read what ``torch.save`` or safetensors wrote: plain values and tensors, on the CPU.

    Args:
        path: of a file that exists.

    Raises:
        SourceError: it is something else, holds code, or was cut short; the text says which.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}; check the file") from None
    if not head:
        raise SourceError(f"{path} is empty; {WANTED}")
    if path.suffix.lower() == ".safetensors" or head[8:10] in (b'{"', b"{ "):
        return _read_safetensors(path, head)
    if _is_torchscript(path):
        raise SourceError(
            f"{path} is a TorchScript archive, a program and not only weights; nothing was run: "
            "save its state_dict() with torch.save, or export it to ONNX, and give that"
        )
    return _read_torch(path, head)


def state_dict_of(content: object) -> dict[str, Tensor] | None:
    """Find the weights in what a file holds.

    Args:
        content: from :func:`read_weights_file`.

    Returns:
        Key -> tensor, without the prefixes that trainers put before all keys; None if there are
        none, or others beside them.
    """
    for _ in range(3):  # a holder may be in a holder
        if not isinstance(content, Mapping) or not content:
            return None
        if all(isinstance(value, Tensor) for value in content.values()):
            break
        held = [content[key] for key in _HOLDERS if isinstance(content.get(key), Mapping)]
        if not held:
            # Batch norms of old versions of torch left whole numbers beside the tensors.
            if any(isinstance(value, Tensor) for value in content.values()) and all(
                isinstance(value, Tensor | int | float) for value in content.values()
            ):
                content = {key: torch.as_tensor(value) for key, value in content.items()}
                break
            return None
        content = held[0]
    else:
        return None
    found = {str(key): value for key, value in content.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def refuse_unsuitable(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of networks that take no frame, or give none, whoever trained them.

    Raises:
        SourceError: they are of a LoRA, a diffusion model or a discriminator.
    """
    keys = list(weights)
    _refuse_adapters(path, keys)
    if any(key.startswith(("netD.", "discriminator.", "net_d.")) for key in keys):
        raise SourceError(
            f"{path} holds a discriminator, which judges pictures and makes none; give the "
            "generator's file, often called net_g or netG"
        )


def _refuse_adapters(path: Path, keys: list[str]) -> None:
    if sum(any(mark in key for mark in _LORA) for key in keys) * 2 > len(keys):
        raise SourceError(
            f"{path} is a LoRA, {len(keys)} additions to the weights of a diffusion model, and no "
            f"network by itself; {WANTED}"
        )
    if any(key.startswith(mark) or f".{mark}" in key for key in keys for mark in _DIFFUSION):
        raise SourceError(
            f"{path} is a diffusion model, which makes a picture in many steps from a text; "
            f"wanted is a network that turns one frame into one frame: {WANTED}"
        )


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return any(name.endswith("constants.pkl") for name in names)


def _read_torch(path: Path, head: bytes) -> Any:  # noqa: ANN401
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to programmers about foreign files
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "Unsupported global" in text or "GLOBAL" in text or "class" in text:
            named = text.partition("GLOBAL ")[2].split(" ", 1)[0].strip("`'\"")
            what = f" ({named})" if named else ""
            raise SourceError(
                f"{path} holds Python objects{what} that would run code when loaded; nothing was "
                f"run: {WANTED}, of which torch.save wrote the state_dict() alone"
            ) from None
        raise SourceError(_no_weights(path, head)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        # What torch raises for a truncated zip, for text, for noise: many types, one meaning.
        raise SourceError(_no_weights(path, head)) from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to before the start: the end of the zip is gone
            raise SourceError(f"{path} was cut short; get the whole file again") from None
        raise SourceError(f"cannot read {path}: {error.strerror}; check the file") from None


def _no_weights(path: Path, head: bytes) -> str:
    if head.startswith(b"PK"):
        return f"{path} was cut short, or is a zip that torch.save did not write; {WANTED}"
    if head.lstrip()[:1] in (b"<", b"{") or head.startswith(b"version https://"):
        return f"{path} is text, such as a web page or a pointer to another file; {WANTED}"
    return f"{path} is not a file of weights, or was cut short; {WANTED}"


def _read_safetensors(path: Path, head: bytes) -> dict[str, Tensor]:
    (length,) = struct.unpack("<Q", head[:8].ljust(8, b"\0"))
    size = path.stat().st_size
    if length > min(size - 8, _HEADER_LIMIT):
        raise SourceError(f"{path} is no safetensors file, or was cut short; get it again")
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        keys = [key for key in header if key != "__metadata__"]
        end = max((header[key]["data_offsets"][1] for key in keys), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise SourceError(f"{path} has a damaged safetensors header; get the file again") from None
    if 8 + length + end != size:
        raise SourceError(
            f"{path} has {size} bytes, its header promises {8 + length + end}; it was cut short: "
            "get it again"
        )
    _refuse_adapters(path, keys)
    if importlib.util.find_spec("safetensors") is None:
        raise SourceError(
            f'{path} is a safetensors file, which takes a package: pip install "'
            'topcoat-export[spandrel]", or give the same weights as torch.save writes them'
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded: dict[str, Tensor] = load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is damaged ({error}); get the file again") from None
    return loaded
