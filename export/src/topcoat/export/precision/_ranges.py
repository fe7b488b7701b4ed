"""What the values of every layer reach, where nothing is rounded."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from topcoat.export.onnx_from_checkpoint import DTYPES
from topcoat.export.precision._findings import (
    FP16_NORMAL,
    FP16_SMALLEST,
    Half,
    LayerAudit,
    NormAudit,
)
from topcoat.export.precision._rounding import answer, as_frame, takes_statistics
from topcoat.export.probes import Frame, ProbeFrame
from topcoat.train.networks import FrameNetwork

_SAMPLE = 2**16
"""Values of one output that are looked at one by one; its range is that of all."""


class _Range:
    """Collects what one layer's values are, over all frames."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.kind = type(module).__name__
        self.module = module
        self.low, self.high, self.largest_input = math.inf, -math.inf, 0.0
        self.values = self.subnormal = self.lost = 0
        self.energy = 0.0
        self.noise: dict[Half, float] = {"fp16": 0.0, "bf16": 0.0}
        self.norm: NormAudit | None = None

    def __call__(self, _: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        read = [value for value in arguments if isinstance(value, Tensor)]
        for value in read:
            low, high = torch.aminmax(value)
            self.largest_input = max(self.largest_input, -float(low), float(high))
        if not isinstance(output, Tensor):
            return
        low, high = torch.aminmax(output)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        flat = output.flatten()
        sample = flat[:: 1 + flat.numel() // _SAMPLE].contiguous()
        size = sample.abs()
        zeros = int((size == 0).sum())
        self.values += int((size > 0).sum())
        self.subnormal += int((size < FP16_NORMAL).sum()) - zeros
        self.lost += int((size < FP16_SMALLEST).sum()) - zeros
        self.energy += float(sample.double().square().sum())
        for half in self.noise:
            self.noise[half] += _rounding_noise(sample, half)
        if read and takes_statistics(self.module):
            self._statistics(read[0])

    def _statistics(self, x: Tensor) -> None:
        if isinstance(self.module, nn.GroupNorm):
            values = x.reshape(x.shape[0], self.module.num_groups, -1)
        elif isinstance(self.module, nn.LayerNorm):
            values = x.flatten(-len(self.module.normalized_shape))
        else:
            values = x.flatten(2)
        # In plain steps: var_mean and aminmax along an axis take five times as long.
        mean = values.mean(-1)
        deviation = (values - mean[..., None]).abs_()
        square = deviation.amax(-1).square()
        variance = deviation.square_().mean(-1)
        tells = variance > float(self.module.eps)  # type: ignore[arg-type]
        offset = (mean.square() / variance)[tells]
        total = (variance + mean.square()) * values.shape[-1]
        before = self.norm or NormAudit(variance=0, square=0, offset=0, sum_of_squares=0)
        self.norm = NormAudit(
            variance=max(before.variance, float(variance.max())),
            square=max(before.square, float(square.max())),
            offset=max(before.offset, float(offset.max()) if offset.numel() else 0.0),
            sum_of_squares=max(before.sum_of_squares, float(total.max())),
        )

    def finished(self) -> LayerAudit:
        """What was found; single layers' effects are filled in elsewhere."""
        weights = [
            tensor.detach().flatten()
            for tensor in (*self.module.parameters(), *self.module.buffers())
            if tensor.is_floating_point()
        ]
        together = torch.cat(weights) if weights else torch.zeros(1)
        size = together.abs()
        nonzero = size > 0
        energy = float(together.double().square().sum())
        return LayerAudit(
            name=self.name,
            kind=self.kind,
            low=self.low,
            high=self.high,
            largest_input=self.largest_input,
            subnormal=self.subnormal / max(self.values, 1),
            lost=self.lost / max(self.values, 1),
            largest_weight=float(size.max()),
            lost_weights=float((nonzero & (size < FP16_SMALLEST)).sum())
            / max(int(nonzero.sum()), 1),
            norm=self.norm,
            output_error={
                half: _relative(noise, self.energy) for half, noise in self.noise.items()
            },
            weights_error={
                half: _relative(_rounding_noise(together, half), energy) for half in self.noise
            },
            alone={},
            others={},
        )


def audit_layers(
    network: FrameNetwork, known: Iterable[str], probes: Sequence[ProbeFrame]
) -> tuple[dict[str, LayerAudit], list[Frame]]:
    """Look at every layer's values, and keep the pictures that come out."""
    modules = dict(network.named_modules())
    ranges = {name: _Range(name, modules[name]) for name in known}
    hooks = [modules[name].register_forward_hook(found) for name, found in ranges.items()]
    try:
        references = [as_frame(answer(network, probe.frame)) for probe in probes]
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found.finished() for name, found in ranges.items()}, references


def _rounding_noise(values: Tensor, half: Half) -> float:
    """Sum of squared rounding errors; what overflows counts as lost whole."""
    rounded = values.to(DTYPES[half]).double()
    exact = values.double()
    return float((torch.where(rounded.isfinite(), rounded, 0) - exact).square().sum())


def _relative(noise: float, energy: float) -> float:
    return math.sqrt(noise / energy) if energy else 0.0
