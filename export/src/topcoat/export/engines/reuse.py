"""Add to a bundle that is there already: what it holds stays, and nothing is made twice.

The bundle itself is the cache. Its models and engines are taken over as the bytes that they are,
with every row that was measured of them, on whatever machine: a comparison holds for the bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import topcoat.runtime
from topcoat.export.engines.builder import BuiltEngine
from topcoat.export.onnx_from_checkpoint import DTYPES, Precision
from topcoat.export.precision import PrecisionPlan
from topcoat.runtime import Manifest
from topcoat.runtime.bundle import ENGINE_KINDS, read_file, read_model
from topcoat.runtime.parity import ParityReport

NOTES = ("precision.json", "quantisation.json")
"""Files of a bundle that say how its models were made, and stay as long as those do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an earlier bundle at the same place holds."""

    manifest: Manifest
    raw: Mapping[str, Any]
    """manifest.json as it is, with what the runtime does not read."""
    digest: str
    """SHA-256 of manifest.json when it was read."""
    models: Mapping[str, bytes] = field(default_factory=dict)
    """Precision -> ONNX model."""
    engines: Mapping[str, BuiltEngine] = field(default_factory=dict)
    """Key -> engine."""

    def kept(self, precision: str) -> tuple[str, ...]:
        """The layers that stay float32 in its model of a precision."""
        for variant in self.raw["variants"]:
            if (variant["kind"], variant["precision"]) == ("onnx", precision):
                return tuple(variant.get("keep_fp32", ()))
        return ()

    def model_sha256(self, precision: str, keep_fp32: tuple[str, ...]) -> str | None:
        """Hash of the model of a precision, also of one that only an engine was built from."""
        if precision in self.models:
            return hashlib.sha256(self.models[precision]).hexdigest()
        for engine in self.engines.values():
            if (engine.precision, engine.keep_fp32) == (precision, keep_fp32):
                return engine.model_sha256
        return None

    def united(self, plan: PrecisionPlan, *, measured: bool) -> PrecisionPlan:
        """A plan of what it holds and what is asked for.

        Args:
            plan: what is asked for.
            measured: whether an audit chose its float32 layers. If not, those stay that an earlier
                one chose.
        """
        held = [cast("Precision", precision) for precision in self.models if precision in DTYPES]
        kept = {precision: self.kept(precision) for precision in held}
        if measured:
            kept |= dict.fromkeys(plan.precisions, ()) | dict(plan.keep_fp32)
        return replace(
            plan,
            precisions=tuple(dict.fromkeys([*plan.precisions, *held])),
            int8=plan.int8 or "int8" in self.models,
            keep_fp32={precision: names for precision, names in kept.items() if names},
        )

    def model(self, precision: str, keep_fp32: tuple[str, ...]) -> bytes | None:
        """The model of a precision, if the one that it holds keeps the same layers."""
        return self.models.get(precision) if self.kept(precision) == keep_fp32 else None

    def others(
        self, built: Iterable[BuiltEngine], models: Mapping[str, str]
    ) -> tuple[list[BuiltEngine], list[BuiltEngine]]:
        """Its engines that are not among those built now: those to keep, and those outdated.

        Args:
            built: now.
            models: precision -> SHA-256 of every model of the new bundle.
        """
        keys = {engine.info.key for engine in built}
        rest = [engine for key, engine in self.engines.items() if key not in keys]
        keep = [e for e in rest if models.get(e.precision, e.model_sha256) == e.model_sha256]
        return keep, [engine for engine in rest if engine not in keep]

    def without_known(
        self, report: ParityReport, variants: Iterable[Mapping[str, Any]]
    ) -> ParityReport:
        """A report without rows that say "not run" of what it has a verdict on.

        Args:
            report: what was compared now.
            variants: of the new manifest.
        """
        hashes = {variant["file"]: variant["sha256"] for variant in variants}
        known = {
            (hashes.get(file), row["backend"], row["compute"])
            for file, sha256 in hashes.items()
            for row in self._rows(sha256)
        }
        rows = [
            row
            for row in report.rows
            if row.status != "not run"
            or (hashes.get(row.engine.file), row.engine.backend, row.engine.compute) not in known
        ]
        return replace(report, rows=rows)

    def keep_rows(self, variants: Iterable[MutableMapping[str, Any]]) -> None:
        """Add to every file that is still the same what was measured of it elsewhere."""
        for variant in variants:
            now = {_measured(row) for row in variant["parity"]}
            variant["parity"] = [
                *variant["parity"],
                *(row for row in self._rows(variant["sha256"]) if _measured(row) not in now),
            ]

    def _rows(self, sha256: str) -> list[Mapping[str, Any]]:
        return [
            row
            for variant in self.raw["variants"]
            if variant["sha256"] == sha256
            for row in variant["parity"]
        ]

    def notes(self) -> dict[str, bytes]:
        """Name -> content of the files that say how its models were made."""
        return {
            name: read_file(self.manifest, name) for name in NOTES if name in self.manifest.files
        }

    def check_unchanged(self) -> bool:
        """Whether the bundle is still as it was read."""
        return _digest(self.manifest.folder) == self.digest


def earlier_bundle(place: Path) -> Earlier | None:
    """Read the bundle that lies at a place; None if there is none, or it cannot be used whole."""
    try:
        digest = _digest(place)
        manifest = topcoat.runtime.verify_files(place)
        raw = json.loads((manifest.folder / "manifest.json").read_text(encoding="utf-8"))
    except (topcoat.runtime.BundleError, OSError):
        return None
    models, engines = {}, {}
    for variant, entry in zip(manifest.variants, raw["variants"], strict=True):
        data = read_model(manifest, variant)
        if variant.kind == "onnx":
            models[variant.precision] = data
        elif variant.kind in ENGINE_KINDS and variant.engine is not None:
            engines[variant.engine.key] = BuiltEngine(
                data=data,
                info=variant.engine,
                kind=variant.kind,
                precision=variant.precision,
                model_sha256=str(entry["engine"].get("model_sha256")),
                keep_fp32=tuple(entry["engine"].get("keep_fp32", ())),
                layers=entry["engine"].get("layers", []),
                reproducible=bool(entry["engine"].get("reproducible", False)),
                seconds=0.0,
                reused=True,
            )
    return Earlier(manifest=manifest, raw=raw, digest=digest, models=models, engines=engines)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def _measured(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    return row["backend"], row["compute"], row.get("device")
