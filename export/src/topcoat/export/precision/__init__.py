"""Find out by measurement which precision a network bears, and which few layers must stay float32.

Half precision takes two things away: range (float16 ends at 65504 and has nothing below 6e-8) and
digits (11 bits in float16, 8 in bfloat16). Whether a network minds is decided by what it computes,
so representative frames go through it in PyTorch: once in float32, where every layer's values are
looked at, and then with rounding, all layers together and each by itself, where the picture that
comes out is compared with the float32 one.
"""

from topcoat.export._errors import PrecisionError
from topcoat.export.precision._audit import audit, audit_frames
from topcoat.export.precision._findings import (
    FP16_MAX,
    FP16_NORMAL,
    FP16_SMALLEST,
    HEADROOM,
    Audit,
    Effect,
    Half,
    HalfAudit,
    LayerAudit,
    NormAudit,
)
from topcoat.export.precision._islands import MOST_ISLANDS
from topcoat.export.precision._plan import Asked, PrecisionPlan, plan_precisions

__all__ = [
    "FP16_MAX",
    "FP16_NORMAL",
    "FP16_SMALLEST",
    "HEADROOM",
    "MOST_ISLANDS",
    "Asked",
    "Audit",
    "Effect",
    "Half",
    "HalfAudit",
    "LayerAudit",
    "NormAudit",
    "PrecisionError",
    "PrecisionPlan",
    "audit",
    "audit_frames",
    "plan_precisions",
]
