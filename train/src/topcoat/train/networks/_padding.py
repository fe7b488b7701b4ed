"""Reflection padding whose backward pass keeps the channels-last layout."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReflectionPad2d(nn.Module):
    """Pad all four sides by reflection; the same values as ``torch.nn.ReflectionPad2d``.

    On a CPU PyTorch's own backward pass returns a gradient in another memory layout than the
    features, and every later addition then walks two layouts at once. In training this module
    folds the borders back itself (a tenth of a step's time saved; see
    ``benchmarks/train_throughput.py``); in export and inference it is the plain operator.
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + 2p, W + 2p); H and W must exceed p."""
        if x.requires_grad and x.device.type == "cpu" and not torch.compiler.is_compiling():
            result: Tensor = _FoldedReflection.apply(x, self.padding)  # type: ignore[no-untyped-call]
            return result
        return F.pad(x, (self.padding,) * 4, mode="reflect")

    def extra_repr(self) -> str:
        return str(self.padding)


class _FoldedReflection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: int) -> Tensor:  # noqa: ANN401 - autograd's own type
        ctx.p = p
        return F.pad(x, (p, p, p, p), mode="reflect")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        p = ctx.p
        # What was padded is the mirror image of rows 1..p and -p-1..-2: add it back to them.
        rows = grad[:, :, p:-p].clone(memory_format=torch.channels_last)
        rows[:, :, 1 : p + 1] += grad[:, :, :p].flip(2)
        rows[:, :, -p - 1 : -1] += grad[:, :, -p:].flip(2)
        both = rows[:, :, :, p:-p].clone(memory_format=torch.channels_last)
        both[..., 1 : p + 1] += rows[..., :p].flip(3)
        both[..., -p - 1 : -1] += rows[..., -p:].flip(3)
        return both, None
