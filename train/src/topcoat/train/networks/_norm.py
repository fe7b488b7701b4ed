"""Instance normalisation that trains fast, and right, in channels-last layout on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNorm2d(nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d``, trained on a CPU as batch norm of one picture after the other.

    The two are the same sum. PyTorch 2.13's own instance norm leaves the channels-last layout, so
    that every layer behind it converts back: a seventh of a training step (docs/training.md). For
    a batch of one with a channels-last gradient its backward pass is also wrong, silently, by as
    much as the gradient itself; a test here compares with the formula. In inference and export
    this is the plain operator.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, each channel of each picture with mean 0 and variance 1."""
        if x.requires_grad and x.device.type == "cpu" and not torch.compiler.is_compiling():
            pictures = (
                F.batch_norm(picture, None, None, self.weight, self.bias, True, 0.0, self.eps)
                for picture in torch.split(x, 1)
            )
            return torch.cat(list(pictures))
        return super().forward(x)
