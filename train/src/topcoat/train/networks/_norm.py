"""Instance normalisation whose gradient is right for a batch of one."""

from typing import Any

import torch
from torch import Tensor, nn


class InstanceNorm2d(nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` with a detour around a fault in its backward pass.

    On a CPU PyTorch 2.13 computes a wrong gradient, silently, when the batch is 1 and the incoming
    gradient is laid out channels-last (errors as large as the gradient; a test shows it). Handing
    it a contiguous gradient avoids that. Batches of one are not exotic: they are what each process
    gets when a batch is split over as many devices as it has pictures.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, each channel of each picture with mean 0 and variance 1."""
        y = super().forward(x)
        if y.requires_grad and y.shape[0] == 1 and not torch.compiler.is_compiling():
            return _contiguous_gradient(y)
        return y


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - autograd's own type
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        return grad.contiguous()


def _contiguous_gradient(x: Tensor) -> Tensor:
    result: Tensor = _ContiguousGradient.apply(x)  # type: ignore[no-untyped-call]
    return result
