"""Run a network as it is, or as an engine that stores half precision.

*Rounding* is what an engine with half-precision storage and float32 accumulators does, which is
what GPUs' matrix units are: every weight is rounded once, and the result of every operation as it
is stored. PyTorch's own float16 convolutions on a CPU do the same, sixty times as slowly. Only the
statistics of normalisation layers are taken at their worst: mean, deviations, squares and variance
are each stored in half precision, as in an engine that has no better kernel for them. That is what
makes engines fail that are given such layers in float16.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topcoat.export.onnx_from_checkpoint import DTYPES
from topcoat.export.parity import frames_of_planes, planes_of_frames
from topcoat.export.precision._findings import Half
from topcoat.export.probes import Frame
from topcoat.train.networks import FrameNetwork

_AT_ONCE = 2**17
"""Values that are rounded together: as many as a processor's cache holds, in both precisions."""
_NORMS = (nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)
"""Layers that take statistics of what they are given. Batch normalisation has its own with it."""
_EXACT = (
    nn.ReLU,
    nn.ReLU6,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.MaxPool2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.ZeroPad2d,
)
"""Layers that give rounded values for rounded ones: they lose nothing by themselves."""


def answer(network: FrameNetwork, frame: Frame) -> Tensor:
    """(H, W, 3) or (N, H, W, 3), uint8 -> (N, H*scale, W*scale, 3), 0 to 255, not rounded.

    The arithmetic of :class:`~topcoat.export.onnx_from_checkpoint.FrameGraph`, up to its rounding
    to 8 bits: in half precision it matters where the factors are.
    """
    made = network(planes_of_frames(frame, network) * (1 / 255)) * 255
    return frames_of_planes(made, frame, network.scale).clamp(0, 255)


def as_frame(answer: Tensor) -> Frame:
    """Round to a batch of frames; what is no number becomes black, as in most engines."""
    frame: Frame = answer.nan_to_num(0.0).round().to(torch.uint8).contiguous().numpy()
    return frame


class RoundedNetwork:
    """A network that computes in half precision: rounds every value that it stores.

    Args:
        network: float32; it is copied.
        half: what to round to.
        known: of :func:`called_layers`.
        islands: layers that stay float32, as
            :func:`~topcoat.export.onnx_from_checkpoint.with_fp32_islands` makes them.
        only: round within this layer alone, and nothing else.
    """

    def __init__(
        self,
        network: FrameNetwork,
        half: Half,
        known: Mapping[str, set[str] | None],
        *,
        islands: Sequence[str] = (),
        only: str | None = None,
    ) -> None:
        self.dtype = DTYPES[half]
        self.mode = _RoundingMode(self.dtype)
        self.only = only
        self.all_rounded = only is None and not islands
        self.network = copy.deepcopy(network)
        modules = dict(self.network.named_modules())
        names = set(islands)
        full = {
            id(tensor)
            for name in (known if only is not None else names)
            if name != only
            for tensor in (*modules[name].parameters(), *modules[name].buffers())
        }
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            # Values that belong to no layer are rounded with the rest, and not with a single one.
            alone = only is not None and not _belongs(tensor, modules[only])
            if tensor.is_floating_point() and id(tensor) not in full and not alone:
                tensor.copy_(tensor.to(self.dtype))
        for name, readers in known.items():
            module = modules[name]
            in_half = name == only if only is not None else name not in names
            if in_half and takes_statistics(module):
                module.forward = functools.partial(_normalised_in_steps, module)
            stays_open = readers is None or bool(readers and readers <= names)
            module.register_forward_pre_hook(functools.partial(self._enter, in_half))
            module.register_forward_hook(functools.partial(self._leave, in_half, stays_open))

    def __call__(self, frame: Frame) -> Tensor:
        """Run it on a frame, or a batch, as :func:`answer` does."""
        self.mode.rounds = self.only is None
        with self.mode:
            return answer(self.network, frame)

    def _enter(self, in_half: bool, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        self.mode.rounds = in_half
        if not in_half or self.all_rounded:
            return arguments
        return tuple(
            self.mode.rounded(value) if isinstance(value, Tensor) else value for value in arguments
        )

    def _leave(
        self, in_half: bool, stays_open: bool, _: nn.Module, __: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        if self.only is not None:
            self.mode.rounds = False
            return output
        if in_half:
            return output
        # Behind an island that nothing but islands read, float32 goes on.
        self.mode.rounds = not stays_open
        return output if stays_open else self.mode.rounded(output)


class _RoundingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the result of every operation to half precision, and keeps it as float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.rounds = True

    def rounded(self, value: Tensor) -> Tensor:
        """Round a copy, for the value may be read elsewhere."""
        return self._round(value.clone()) if value.is_floating_point() else value

    def _round(self, value: Tensor) -> Tensor:
        """Round in place, which on large frames takes a third of the time of a copy."""
        if value.is_floating_point():
            pieces = torch.split(value.view(-1), _AT_ONCE) if value.is_contiguous() else (value,)
            for piece in pieces:
                piece.copy_(piece.to(self.dtype))
        return value

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator of torch, which has no public type
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it returns
        result = func(*args, **(kwargs or {}))
        if not self.rounds or func.is_view:
            return result
        # No view, so it is new, or what the operation wrote into.
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._round(value)
        return result


def takes_statistics(module: nn.Module) -> bool:
    """Whether a layer normalises by statistics of what it is given."""
    own = getattr(module, "track_running_stats", False)
    return isinstance(module, _NORMS) and not own


def _normalised_in_steps(module: nn.Module, x: Tensor) -> Tensor:
    """Normalise by single operations, so that every intermediate is rounded."""
    weight: Tensor | None = module.weight  # type: ignore[assignment]
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    eps = float(module.eps)  # type: ignore[arg-type]
    if isinstance(module, nn.LayerNorm):
        dims = tuple(range(-len(module.normalized_shape), 0))
        values = x
    elif isinstance(module, nn.GroupNorm):
        values = x.reshape(x.shape[0], module.num_groups, -1)
        dims = (-1,)
    else:
        values = x
        dims = (-2, -1)
    deviation = values - values.mean(dims, keepdim=True)
    variance = (deviation * deviation).mean(dims, keepdim=True)
    # In place where nothing else reads it: the results are the same, and memory is what takes time.
    normal = deviation.mul_(torch.rsqrt(variance + eps)).reshape(x.shape)
    if not isinstance(module, nn.LayerNorm):  # one weight for each channel
        shape = (1, -1, *(1,) * (x.ndim - 2))
        weight = None if weight is None else weight.reshape(shape)
        bias = None if bias is None else bias.reshape(shape)
    if weight is not None:
        normal.mul_(weight)
    return normal if bias is None else normal.add_(bias)


def _belongs(tensor: Tensor, module: nn.Module) -> bool:
    return any(tensor is own for own in (*module.parameters(), *module.buffers()))


def is_exact(module: nn.Module) -> bool:
    """Whether a layer gives rounded values for rounded ones."""
    return isinstance(module, _EXACT) or (
        isinstance(module, nn.Upsample) and module.mode == "nearest"
    )
