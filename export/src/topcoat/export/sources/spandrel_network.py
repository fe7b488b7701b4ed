"""Networks that the package ``spandrel`` knows by their weights: super-resolution and restoration.

Only its architectures are used. Files are read by :mod:`topcoat.export.sources.weights_file`, and
what spandrel is handed are tensors.
"""

import contextlib
import importlib
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topcoat.export.onnx_from_checkpoint import Precision
from topcoat.export.sources._sides import LARGEST, size_rule, smallest_side
from topcoat.export.sources._source import Source, SourceError, ToOnnx, to_onnx_of
from topcoat.train.networks import FrameNetwork

KIND = "spandrel"
EXTRA = 'pip install "topcoat-export[spandrel]"'

_MOST_MULTIPLE = 256
_FEWEST_KEYS = 3
"""Keys that must be there before weights are said to look like an architecture's."""


class SpandrelNetwork(FrameNetwork):
    """A network of spandrel's behind the contract of frames.

    ``forward``: (B, 3, H, W) RGB in [0, 1] -> (B, 3, H*scale, W*scale), clipped by the caller.
    Sizes are not padded here, unless the architecture does it by itself.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Callable[[nn.Module, Tensor], Tensor],
        *,
        scale: int,
        size_multiple: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.scale = scale
        self.size_multiple = size_multiple
        self.size_min = size_multiple

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H*scale, W*scale)."""
        return self.call(self.model, frame)


def nearest(weights: Mapping[str, Tensor]) -> str | None:
    """Describe the architecture that weights come close to without being recognised.

    Returns:
        Words such as ``SPAN, but 4 of the 12 keys by which it is known are missing (…)``; None if
        spandrel cannot be asked, or fewer than half of such keys are there.
    """
    if obstacle() is not None:
        return None
    found: list[tuple[float, str, list[str], int]] = []
    for support in _import().MAIN_REGISTRY.architectures("detection"):
        asked = _Asked(weights)
        with contextlib.suppress(Exception):  # some look at shapes too, of tensors that are absent
            support.detect(asked)
        missing = [key for key in asked.keys_asked if key not in weights]
        count = len(asked.keys_asked)
        present = count - len(missing)
        if missing and present >= max(_FEWEST_KEYS, count / 2):
            found.append((present / count, str(support.architecture.name), missing, count))
    if not found:
        return None
    _, name, missing, count = max(found)
    some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
    return (
        f"{name}, but {len(missing)} of the {count} keys by which it is known are missing ({some})"
    )


class _Asked(dict[str, Tensor]):
    """Weights that claim to hold every key, and remember which ones they were asked for."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.keys_asked: dict[str, None] = {}

    def __contains__(self, key: object) -> bool:
        self.keys_asked[str(key)] = None
        return True


def obstacle() -> str | None:
    """Say why spandrel cannot be asked, and what to do; None if it can."""
    try:
        _import()
    except ModuleNotFoundError as error:
        if error.name == "spandrel":
            return f"more architectures are known after {EXTRA}"
        return f"spandrel, which knows more, lacks {error.name}: {EXTRA}"
    except Exception as error:  # a torchvision of another torch fails in ways of its own
        return (
            f"spandrel, which knows more, cannot be imported ({_first_line(error)}); it needs a "
            f"torchvision that fits torch {torch.__version__}: {EXTRA}, in a new environment"
        )
    return None


def recognise(path: Path, weights: Mapping[str, Tensor], sha256: str) -> Source | None:
    """Take the weights of an architecture that spandrel knows and that maps a frame to a frame.

    Args:
        path: where they come from, for messages.
        weights: key -> tensor.
        sha256: of the file.

    Returns:
        None if spandrel cannot be asked, or knows no architecture with such keys.

    Raises:
        SourceError: keys are missing, or the network takes or gives something else than an RGB
            frame.
    """
    if obstacle() is not None:
        return None
    spandrel = _import()
    architecture = next(
        (
            support.architecture
            for support in spandrel.MAIN_REGISTRY.architectures("detection")
            if support.detect(weights)
        ),
        None,
    )
    if architecture is None:
        return None
    name = str(architecture.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch tells the architectures' authors
            descriptor = architecture.load(dict(weights))
    except Exception as error:  # spandrel deduces settings from keys and shapes, and may stumble
        raise SourceError(
            f"{path} looks like a {name} network, but {_why_not_loaded(error, weights)}"
        ) from None
    _check_kind(path, name, descriptor, spandrel)
    requirements = descriptor.size_requirements
    network = SpandrelNetwork(
        descriptor.model.float(),
        # The public call pads and clips, and its inference mode cannot be exported; for some
        # architectures this one takes the picture out of several results.
        descriptor._call_fn,
        scale=descriptor.scale,
        size_multiple=requirements.multiple_of,
    )
    network = network.eval().requires_grad_(False)
    _merge_branches(network)
    _find_sizes(path, name, network, max(requirements.minimum, 1))
    version = importlib.metadata.version("spandrel")
    task = "super-resolution" if descriptor.scale > 1 else "restoration"
    return Source(
        network=network,
        task=task,
        name=name,
        settings={"tags": list(descriptor.tags)} if descriptor.tags else {},
        parameters=sum(value.numel() for value in network.parameters()),
        to_onnx=_with_reason(path, name, to_onnx_of(network, task)),
        sha256=sha256,
        kind=KIND,
        notes=(f"weights of the architecture {name}, which spandrel {version} rebuilt",),
    )


def _merge_branches(network: nn.Module) -> None:
    """Have weights that are sums of others (SPAN's) computed once and not on every frame.

    Assigning weights while a frame is answered also takes torch's exporter down with it.
    """
    for module in network.modules():
        merge = getattr(module, "update_params", None)
        if callable(merge):
            merge()
            object.__setattr__(module, "update_params", _nothing)


def _nothing() -> None:
    """Stand in for a step that is done: by name, so that the network can be copied."""


def _import() -> Any:  # noqa: ANN401 - a module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("spandrel")


def _check_kind(path: Path, name: str, descriptor: Any, spandrel: Any) -> None:  # noqa: ANN401
    wanted = "wanted is a network that turns one RGB frame of any size into one"
    wrong = ""
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        wrong = "takes a mask besides the picture"
    elif descriptor.purpose not in ("SR", "Restoration"):
        wrong = f"is made for {descriptor.purpose}"
    elif (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        wrong = f"takes {descriptor.input_channels} and gives {descriptor.output_channels} channels"
    elif descriptor.size_requirements.square:
        wrong = "takes square frames only"
    elif descriptor.size_requirements.multiple_of > _MOST_MULTIPLE:
        wrong = f"takes multiples of {descriptor.size_requirements.multiple_of} pixels only"
    if wrong:
        raise SourceError(f"{path} is a {name} network, which {wrong}; {wanted}")


def _why_not_loaded(error: Exception, weights: Mapping[str, Tensor]) -> str:
    text = str(error)
    missing = _quoted(text, "Missing key")
    unexpected = _quoted(text, "Unexpected key")
    if missing:
        whole = len(weights) - len(unexpected) + len(missing)
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        return f"{len(missing)} of its {whole} keys are missing ({some}); get the whole file"
    if isinstance(error, KeyError):
        return f"its key {error} is missing, from which settings are read; get the whole file"
    first = " ".join(text.split())[:200] or type(error).__name__
    return (
        f"it cannot be rebuilt from them ({first}); get the whole file, or export it to ONNX with "
        "the code that it was trained with"
    )


def _quoted(text: str, title: str) -> list[str]:
    for line in text.splitlines():
        if line.strip().startswith(title):
            return re.findall(r'"([^"]+)"', line)
    return []


def _find_sizes(path: Path, name: str, network: SpandrelNetwork, least: int) -> None:
    """Set the size rule of a network, by running it.

    Some architectures fill frames up to whole windows themselves. Sizes that need no filling are
    asked for instead: a graph for them is several times smaller, and engines that cannot pad by
    what they compute take it.
    """
    reasons: list[str] = []

    def answers(height: int, width: int, *, filled: bool = True) -> bool:
        frame = torch.full((1, 3, height, width), 0.5)
        fills = _Fills()
        try:
            with torch.inference_mode(), warnings.catch_warnings(), fills:
                warnings.simplefilter("ignore")
                answer = network(frame)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            reasons.append(_first_line(error))
            return False
        wanted = (1, 3, height * network.scale, width * network.scale)
        if tuple(answer.shape) != wanted:
            reasons.append(f"it answers {tuple(frame.shape)} with {tuple(answer.shape)}")
            return False
        return filled or not fills.found

    rule = size_rule(lambda height, width: answers(height, width, filled=False))
    if rule is not None and rule[0] % network.size_multiple == 0:
        network.size_multiple, smallest = rule
        network.size_min = max(smallest, -(-least // rule[0]) * rule[0])
        return
    side = smallest_side(answers, network.size_multiple, least)
    if side is None:
        raise SourceError(
            f"{path} is a {name} network, but takes no frame of up to {LARGEST} pixels a side "
            f"({reasons[-1]}); get the file again, or try another version of spandrel"
        )
    network.size_min = side


class _Fills(TorchFunctionMode):
    """Notices padding on the right or at the bottom alone: what fills a frame up."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - as torch defines it
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is F.pad:
            pads = list(args[1] if len(args) > 1 else kwargs["pad"])
            self.found |= any(
                before == 0 and after > 0
                for before, after in zip(pads[::2], pads[1::2], strict=True)
            )
        return func(*args, **kwargs)


def _with_reason(path: Path, name: str, export: ToOnnx) -> ToOnnx:
    """Name the architecture, in one sentence, where torch's exporter would fill a screen."""

    def to_onnx(precision: Precision = "fp32", *, keep_fp32: Sequence[str] = ()) -> onnx.ModelProto:
        try:
            return export(precision, keep_fp32=keep_fp32)
        except Exception as error:  # the exporter's errors have no common base
            raise SourceError(
                f"{path} is a {name} network, which torch {torch.__version__} cannot export for "
                f"frames of any size ({_first_line(_root(error))}); take another architecture"
            ) from error

    return to_onnx


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
