"""Take engines from a bundle that is there already, instead of building them again.

The bundle itself is the cache: an engine is taken over when its key is the same, its file is the
one that the manifest describes, and it was made for the same network.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import topcoat.runtime
from topcoat.export.engines.builder import BuiltEngine
from topcoat.export.onnx_from_checkpoint import DTYPES, Precision
from topcoat.export.precision import PrecisionPlan
from topcoat.runtime import Manifest
from topcoat.runtime.bundle import ENGINE_KINDS, read_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an earlier bundle at the same place holds."""

    manifest: Manifest
    raw: Mapping[str, Any]
    """manifest.json as it is, with what the runtime does not read."""
    engines: Mapping[str, BuiltEngine] = field(default_factory=dict)
    """Key -> engine."""

    @property
    def models(self) -> Mapping[str, str]:
        """Precision -> SHA-256 of the ONNX models in it."""
        return {v.precision: v.sha256 for v in self.manifest.variants if v.kind == "onnx"}

    def model_of(self, precision: str) -> str | None:
        """SHA-256 of the model of a precision, also of one that only an engine was built from."""
        built_from = {e.precision: e.model_sha256 for e in self.engines.values()}
        return self.models.get(precision, built_from.get(precision))

    def kept(self, precision: str) -> tuple[str, ...]:
        """The layers that stay float32 in its model of a precision."""
        for variant in self.raw["variants"]:
            if (variant["kind"], variant["precision"]) == ("onnx", precision):
                return tuple(variant.get("keep_fp32", ()))
        return ()

    def united(self, plan: PrecisionPlan) -> PrecisionPlan:
        """A plan of what it holds and what is asked for; where they differ, as is asked."""
        held = [cast("Precision", p) for p in self.models if p in DTYPES]
        kept = {precision: self.kept(precision) for precision in held}
        kept.update(dict.fromkeys(plan.precisions, ()))
        kept.update(plan.keep_fp32)
        return replace(
            plan,
            precisions=tuple(dict.fromkeys([*plan.precisions, *held])),
            int8=plan.int8 or "int8" in self.models,
            keep_fp32={precision: names for precision, names in kept.items() if names},
        )

    def others(self, built: Sequence[BuiltEngine], models: Mapping[str, str]) -> list[BuiltEngine]:
        """Its engines that are not among those built now, and whose model is still the same.

        Args:
            built: now.
            models: precision -> SHA-256 of every model that was made now.
        """
        keys = {engine.info.key for engine in built}
        return [
            engine
            for key, engine in self.engines.items()
            if key not in keys
            and models.get(engine.precision, engine.model_sha256) == engine.model_sha256
        ]

    def rows(self, key: str) -> list[dict[str, Any]]:
        """What was measured of an engine, on whatever machine: comparisons hold for its bytes."""
        for variant in self.raw["variants"]:
            if variant.get("engine", {}).get("key") == key:
                return [dict(row) for row in variant["parity"]]
        return []


def earlier_bundle(place: Path) -> Earlier | None:
    """Read the bundle that lies at a place; None if there is none, or it cannot be used whole."""
    try:
        manifest = topcoat.runtime.verify_files(place)
    except topcoat.runtime.BundleError:
        return None
    raw = json.loads((manifest.folder / "manifest.json").read_text(encoding="utf-8"))
    engines = {}
    for variant, entry in zip(manifest.variants, raw["variants"], strict=True):
        if variant.kind not in ENGINE_KINDS or variant.engine is None:
            continue
        engines[variant.engine.key] = BuiltEngine(
            data=read_model(manifest, variant),
            info=variant.engine,
            kind=variant.kind,
            precision=variant.precision,
            model_sha256=str(entry["engine"].get("model_sha256")),
            layers=entry["engine"].get("layers", []),
            reproducible=bool(entry["engine"].get("reproducible", False)),
            seconds=0.0,
            reused=True,
        )
    return Earlier(manifest=manifest, raw=raw, engines=engines)
