"""The loss network on a CPU: its forward and backward pass written out, for it never learns.

Autograd has to suppose that anybody may look at anything. Here the weights are constants, so they
are converted, mirrored and transformed once; a convolution and its ReLU are one operator; the
gradients of a Gram matrix and of what comes behind its layer are added inside a matrix product;
and all of that happens in place. The numbers are those of the plain layers but for rounding.
"""

import functools
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from topcoat.train.losses import _winograd
from topcoat.train.losses.gram import gram_backward, gram_forward

_CHANNELS_LAST = torch.channels_last


def applies(layers: nn.Module, frame: Tensor) -> bool:
    """Whether this way of computing is for these layers and this frame: frozen, on a CPU, eager."""
    return (
        frame.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not any(value.requires_grad for value in layers.parameters())
    )


def describe(
    layers: Sequence[nn.Module],
    frame: Tensor,
    features: Collection[int],
    grams: Collection[int] = (),
    *,
    lean: bool = False,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Run a frame through the layers.

    Args:
        layers: 3×3 convolutions with stride 1 and padding 1, each followed by a ReLU, and poolings
            of 2×2 before or between them; none of the weights wants a gradient.
        frame: (B, 3, H, W), as the first layer wants it.
        features: indices of ReLUs whose output is wanted.
        grams: indices of ReLUs the Gram matrix of whose output is wanted.
        lean: without the transformed weights of minimal filtering, eight times the layers' own, for
            more time.

    Returns:
        {index: (B, C, H', W')}, channels-last in memory, in autocast's type where that is on, and
        {index: (B, C, C)}, as :func:`~topcoat.train.losses.gram.gram_matrix` gives them.
    """
    dtype = frame.dtype
    if torch.is_autocast_enabled("cpu") and dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
    wanted, counted = sorted(set(features)), sorted(set(grams))
    with torch.autocast("cpu", enabled=False):
        x = frame.to(dtype).contiguous(memory_format=_CHANNELS_LAST)
        found: tuple[Tensor, ...] = _Describe.apply(  # type: ignore[no-untyped-call]
            x, layers, wanted, counted, lean
        )
    count = len(wanted)
    return dict(zip(wanted, found[:count], strict=True)), dict(
        zip(counted, found[count:], strict=True)
    )


class _Describe(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's own type
        x: Tensor,
        layers: Sequence[nn.Module],
        features: Sequence[int],
        grams: Sequence[int],
        lean: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        found: dict[int, Tensor] = {}
        counted: dict[int, Tensor] = {}
        kept: dict[int, Tensor] = {}
        needed = ctx.needs_input_grad[0]
        if needed and not isinstance(layers[0], nn.Conv2d):
            kept[-1] = x  # a pooling wants to see again what it was given
        last = max([*features, *grams])
        index = 0
        while index <= last:
            module = layers[index]
            if isinstance(module, nn.Conv2d):
                x = _constants(module, x.dtype, lean=lean).apply(x)
                index += 1  # the ReLU is in it
                if index in features:
                    found[index] = x
                if index in grams:
                    counted[index] = gram_forward(x)
                if needed:
                    kept[index] = x
            elif isinstance(module, nn.MaxPool2d):
                x, places = F.max_pool2d(x, 2, return_indices=True)
                if needed:
                    kept[index] = places
            else:
                x = F.avg_pool2d(x, 2)
            index += 1
        ctx.layers, ctx.features, ctx.grams, ctx.lean = layers, features, grams, lean
        ctx.kept = list(kept)
        ctx.save_for_backward(*kept.values())
        return tuple(found[i] for i in features) + tuple(counted[i] for i in grams)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        *grads: Tensor | None,
    ) -> tuple[Tensor | None, None, None, None, None]:
        layers: Sequence[nn.Module] = ctx.layers
        kept = dict(zip(ctx.kept, ctx.saved_tensors, strict=True))
        outer = dict(zip([*ctx.features, *((i, "gram") for i in ctx.grams)], grads, strict=True))
        g: Tensor | None = None
        index = max([*ctx.features, *ctx.grams])
        with torch.autocast("cpu", enabled=False):
            while index >= 0:
                module = layers[index]
                if isinstance(module, nn.ReLU):
                    x = kept[index]
                    # What comes from behind was made here and may be written over, also when the
                    # layer's own gradient is added; what autograd hands in may not.
                    mine = g is not None
                    if (gram := outer.get((index, "gram"))) is not None:
                        g, mine = gram_backward(x, gram, onto=g), True
                    if (more := outer.get(index)) is not None:
                        g = more if g is None else g.add_(more)
                    if g is not None:
                        g = _masked(g, x, in_place=mine)
                        conv = layers[index - 1]
                        assert isinstance(conv, nn.Conv2d)
                        g = _constants(conv, g.dtype, lean=ctx.lean).back(g)
                    index -= 1  # the convolution is done with it
                elif g is not None:
                    before = kept[index - 1]
                    if isinstance(module, nn.MaxPool2d):
                        g = torch.ops.aten.max_pool2d_with_indices_backward(
                            g, before, [2, 2], [2, 2], [0, 0], [1, 1], False, kept[index]
                        )
                    else:
                        g = torch.ops.aten.avg_pool2d_backward(
                            g, before, [2, 2], [2, 2], [0, 0], False, True, None
                        )
                index -= 1
        return g, None, None, None, None


def _masked(g: Tensor, x: Tensor, *, in_place: bool) -> Tensor:
    """The gradient before a ReLU that gave ``x``."""
    if in_place:
        torch.ops.aten.threshold_backward.grad_input(g, x, 0, grad_input=g)
        return g
    g = g.contiguous(memory_format=_CHANNELS_LAST)
    return torch.ops.aten.threshold_backward(g, x, 0)  # type: ignore[no-any-return]


class _Constants:
    """What a frozen convolution is in one type: its weights as the operators like them best.

    Each form is made when it is first asked for: which ones are depends on the frames.
    """

    def __init__(
        self, conv: nn.Conv2d, dtype: torch.dtype, version: tuple[int, ...], *, lean: bool
    ) -> None:
        self._given, self._dtype = conv.weight.detach(), dtype
        self.version, self.lean = version, lean
        """Of the parameters when this was made, which are changed only before a run; and whether
        minimal filtering is done without."""
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        fast = dtype == torch.float32 and not lean
        self.fast = _winograd.kernel(self._given) if fast else None
        self.fast_back = _winograd.kernel(self._given, mirrored=True) if fast else None

    @functools.cached_property
    def weight(self) -> Tensor:
        """(O, C, 3, 3), channels-last."""
        return self._given.to(self._dtype).contiguous(memory_format=_CHANNELS_LAST)

    @functools.cached_property
    def mirrored(self) -> Tensor:
        """(C, O, 3, 3), channels-last: the convolution that carries the gradient back."""
        mirrored = self._given.flip(2, 3).transpose(0, 1)
        return mirrored.to(self._dtype).contiguous(memory_format=_CHANNELS_LAST)

    def apply(self, x: Tensor) -> Tensor:
        """(B, C, H, W) channels-last -> ReLU of the convolution, (B, O, H, W) channels-last."""
        if self.fast is not None and self.fast.pays(x):
            return self.fast(x, self.bias, relu=True)
        if _FUSED is not None and _fuses(x.dtype):
            fused: Tensor = _FUSED(
                x, self.weight, self.bias, [1, 1], [1, 1], [1, 1], 1, "relu", [], ""
            )
            return fused
        return torch.relu_(F.conv2d(x, self.weight, self.bias, padding=1))

    def back(self, g: Tensor) -> Tensor:
        """(B, O, H, W), gradient of the convolution's output -> (B, C, H, W), of its input."""
        if self.fast_back is not None and self.fast_back.pays(g):
            return self.fast_back(g, None, relu=False)
        return F.conv2d(g, self.mirrored, padding=1)


_FUSED = (
    getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    if torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    else None
)
"""Convolution and ReLU in one pass over memory, where PyTorch was built with oneDNN."""


def _fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in a type here and may: the fused operator itself does not ask.

    It fails in bfloat16 on processors without AVX-512, where ``conv2d`` takes another way.
    """
    if not torch._C._get_mkldnn_enabled():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


_CACHE: "weakref.WeakKeyDictionary[nn.Conv2d, dict[torch.dtype, _Constants]]" = (
    weakref.WeakKeyDictionary()
)


def _constants(conv: nn.Conv2d, dtype: torch.dtype, *, lean: bool = False) -> _Constants:
    version = tuple(
        number
        for value in (conv.weight, conv.bias)
        if value is not None
        for number in (value.data_ptr(), value._version)
    )
    known = _CACHE.setdefault(conv, {})
    found = known.get(dtype)
    if found is None or (found.version, found.lean) != (version, lean):
        found = known[dtype] = _Constants(conv, dtype, version, lean=lean)
    return found


def prepared_bytes(layers: nn.Module) -> int:
    """What the convolutions' weights take once more, beside themselves, in float32."""
    convs = [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d)]
    return sum(2 * _winograd.planes_bytes(conv.weight) for conv in convs)
