"""What an audit finds: of the network, of each precision, and of each layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from topcoat.export.precision._report import conclusions, finite, number, table
from topcoat.runtime.parity import Summary

Half: TypeAlias = Literal["fp16", "bf16"]

FP16_MAX = 65504.0
"""The largest float16."""
FP16_NORMAL = 2.0**-14
"""The smallest float16 with all its digits, 6.1e-5."""
FP16_SMALLEST = 2.0**-24
"""The smallest float16 at all, 6e-8."""
HEADROOM = 2.0
"""How many times as large values may get on frames that were not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What rounding does to the picture: compared before it is rounded to 8 bits."""

    max_steps: float
    """Largest difference, in 8-bit steps; infinite if the picture has a value that is no number."""
    psnr_db: float
    """Infinite for equal pictures; 0 if it has a value that is no number."""

    def to_json(self) -> dict[str, float | None]:
        """Plain values; null where there is no finite one."""
        return {"max_steps": finite(self.max_steps), "psnr_db": finite(self.psnr_db)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NormAudit:
    """What a normalisation layer's statistics reach, of any channel of any frame."""

    variance: float
    """Largest variance."""
    square: float
    """Largest squared deviation from the mean: an engine may store those."""
    offset: float
    """Largest mean² / variance of channels whose variance is above the layer's epsilon. The mean is
    subtracted from values whose rounding it has determined: a share of offset / 2**22 of the
    variance is noise in float16, offset / 2**16 in bfloat16."""
    sum_of_squares: float
    """Largest sum of squared values over one channel of one frame. Nearly every network's exceeds
    65504 at some size; an engine that accumulates in float16 cannot run any of them."""

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {
            "variance": self.variance,
            "square": self.square,
            "offset": self.offset,
            "sum_of_squares": self.sum_of_squares,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAudit:
    """One layer: what its values are on all frames in float32, and what rounding it does."""

    name: str
    """As in ``network.named_modules()``."""
    kind: str
    """Class of the module, e.g. ``Conv2d``."""
    low: float
    """Smallest value of its output."""
    high: float
    """Largest value of its output."""
    largest_input: float
    """Largest absolute value of what it reads, which may be a sum that is no layer's output."""
    subnormal: float
    """Share of its output's non-zero values that are below 6.1e-5, where float16 loses digits."""
    lost: float
    """... and below 6e-8, where float16 has nothing; 0 to 1."""
    largest_weight: float
    """Largest absolute value of its weights and buffers; 0 without any."""
    lost_weights: float
    """Share of its non-zero weights below 6e-8; 0 to 1."""
    norm: NormAudit | None
    """None for a layer that takes no statistics."""
    output_error: Mapping[Half, float]
    """Precision -> error of rounding its output, relative to the output (root mean squares)."""
    weights_error: Mapping[Half, float]
    """Precision -> error of rounding its weights, relative to them; 0 without any."""
    alone: Mapping[Half, Effect]
    """Precision -> effect on the picture if this layer alone is computed in it. Empty for a layer
    that loses nothing by itself (ReLU, padding), or if single layers were not measured."""
    others: Mapping[Half, Effect]
    """... and if every layer but this one is."""

    @property
    def largest(self) -> float:
        """Largest absolute value of its output."""
        return max(abs(self.low), abs(self.high))

    def beyond_fp16(self) -> str | None:
        """Say what float16 cannot hold, or holds with less than :data:`HEADROOM` to spare."""
        norm = self.norm
        reached = [("a weight is", self.largest_weight, 1.0)]
        if norm is not None:
            reached.append(("variance reaches", norm.variance, HEADROOM**2))
            reached.append(("squared deviations reach", norm.square, HEADROOM**2))
        reached.append(("output reaches", self.largest, HEADROOM))
        reached.append(("input reaches", self.largest_input, HEADROOM))
        for what, value, headroom in reached:
            if value * headroom > FP16_MAX:
                near = "" if value > FP16_MAX else ", too near for other frames"
                return f"{what} {number(value)}, fp16 ends at {FP16_MAX:.0f}{near}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "name": self.name,
            "kind": self.kind,
            "low": finite(self.low),
            "high": finite(self.high),
            "largest_input": finite(self.largest_input),
            "subnormal": self.subnormal,
            "lost": self.lost,
            "largest_weight": self.largest_weight,
            "lost_weights": self.lost_weights,
            "norm": None if self.norm is None else self.norm.to_json(),
            "output_error": dict(self.output_error),
            "weights_error": dict(self.weights_error),
            "alone": {half: effect.to_json() for half, effect in self.alone.items()},
            "others": {half: effect.to_json() for half, effect in self.others.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfAudit:
    """Whether the network bears one half precision. Truthy if it does."""

    precision: Half
    keep_fp32: tuple[str, ...]
    """The layers that stay float32; empty if none needs to. Where the network does not bear the
    precision: the ones that were tried."""
    reasons: tuple[str, ...]
    """One line for each of ``keep_fp32``."""
    failures: tuple[str, ...]
    """Gates that are missed even so, as parity words them; empty if it holds."""
    before: Mapping[str, Summary]
    """Group of frames -> how far the picture is from float32's without islands."""
    after: Mapping[str, Summary]
    """... and with them; the same without any."""

    def __bool__(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "precision": self.precision,
            "holds": bool(self),
            "keep_fp32": list(self.keep_fp32),
            "reasons": list(self.reasons),
            "failures": list(self.failures),
            "before": {group: found.to_json() for group, found in self.before.items()},
            "after": {group: found.to_json() for group, found in self.after.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found; ``str()`` of it is a table."""

    layers: tuple[LayerAudit, ...]
    """In the order in which the network runs them."""
    halves: Mapping[Half, HalfAudit]
    frames: int
    """How many frames, or batches of frames, were looked at."""

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "format": "topcoat-precision",
            "format_version": 1,
            "frames": self.frames,
            "limits": {"fp16": {"max": FP16_MAX, "normal": FP16_NORMAL, "least": FP16_SMALLEST}},
            "layers": [layer.to_json() for layer in self.layers],
            "halves": {half: found.to_json() for half, found in self.halves.items()},
        }

    def __str__(self) -> str:
        return "\n".join([*table(self.layers), "", *conclusions(self.halves.values())])
