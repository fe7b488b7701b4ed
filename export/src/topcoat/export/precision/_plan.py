"""From what an audit found to what is exported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from topcoat.export._errors import PrecisionError
from topcoat.export.onnx_from_checkpoint import Precision
from topcoat.export.precision._findings import Audit, Half, HalfAudit
from topcoat.export.precision._report import conclusions

Asked: TypeAlias = Literal["auto", "fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """What to export."""

    precisions: tuple[Precision, ...]
    """Graphs to make of the network; float32 is always the first."""
    int8: bool = False
    """Whether the float32 graph is to be quantised besides; see
    :func:`topcoat.export.quantisation.quantise`."""
    keep_fp32: Mapping[Precision, tuple[str, ...]] = field(default_factory=dict)
    """Precision -> layers that stay float32, for :func:`onnx_from_network`."""
    reasons: tuple[str, ...] = ()
    """Sentences that say why, to be printed."""


def plan_precisions(asked: Asked, found: Audit) -> PrecisionPlan:
    """Decide what to export, from what was asked for and what was measured.

    Args:
        asked: ``auto``: float32, and float16 if the network bears it, else bfloat16 if it bears
            that; or ``fp32``, ``fp16``, ``bf16`` or ``int8``, each beside float32.
        found: of the same network.

    Raises:
        PrecisionError: ``fp16`` or ``bf16`` was asked for and does not hold even with a third of
            the layers in float32; the text has the numbers.
        ValueError: another word.
    """
    if asked not in ("auto", "fp32", "fp16", "bf16", "int8"):
        raise ValueError(f"precision must be auto, fp32, fp16, bf16 or int8, got {asked!r}")
    if asked == "fp32":
        return PrecisionPlan(precisions=("fp32",))
    if asked == "int8":
        return PrecisionPlan(precisions=("fp32",), int8=True)
    if asked == "auto":
        reasons: list[str] = []
        for half in ("fp16", "bf16"):
            result = found.halves[half]
            reasons += conclusions([result])
            if result:
                return _plan(result, tuple(reasons))
        return PrecisionPlan(precisions=("fp32",), reasons=tuple(reasons))
    result = found.halves[asked]
    if not result:
        other: Half = "bf16" if asked == "fp16" else "fp16"
        instead = other if found.halves[other] else "fp32"
        tried = f", even with {len(result.keep_fp32)} layers in fp32" if result.keep_fp32 else ""
        raise PrecisionError(
            f"{asked} does not hold{tried}: {'; '.join(result.failures)}; "
            f"take --precision {instead}"
        )
    return _plan(result, tuple(conclusions([result])))


def _plan(result: HalfAudit, reasons: tuple[str, ...]) -> PrecisionPlan:
    return PrecisionPlan(
        precisions=("fp32", result.precision),
        keep_fp32={result.precision: result.keep_fp32} if result.keep_fp32 else {},
        reasons=reasons,
    )
