"""Turn a checkpoint into a bundle of engines, each proved equal to the network.

::

    from topcoat.export import export_bundle
    from topcoat.train import load_checkpoint

    exported = export_bundle(load_checkpoint("candy.pt"), "candy.topcoat")
    print(exported.bundle if exported else exported.report_file)

Names load when they are first used, so that a command line can answer ``--help`` without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topcoat.export._errors import (
        BundleNameError,
        EngineBuildError,
        EngineLibraryError,
        EngineRequestError,
        GraphError,
        OutputError,
        PhotographError,
        PrecisionError,
        QuantisationError,
        SourceError,
        TopcoatError,
        WeightsError,
    )
    from topcoat.export.bundle_writer import Exported, export_bundle
    from topcoat.export.engines import BuiltEngine, EngineRequest, build_engine, parse_profile
    from topcoat.export.onnx_from_checkpoint import onnx_from_network
    from topcoat.export.parity import (
        GATES,
        Difference,
        Engine,
        Flatness,
        Gate,
        ParityError,
        ParityReport,
        ParityRow,
        difference,
        engines_for,
        measure_parity,
    )
    from topcoat.export.precision import Audit, PrecisionPlan, audit, plan_precisions
    from topcoat.export.probes import ProbeFrame, probe_frames
    from topcoat.export.quantisation import calibration_frames, quantise
    from topcoat.export.sources import Source, open_source, source_from_checkpoint

__all__ = [
    "GATES",
    "Audit",
    "BuiltEngine",
    "BundleNameError",
    "Difference",
    "Engine",
    "EngineBuildError",
    "EngineLibraryError",
    "EngineRequest",
    "EngineRequestError",
    "Exported",
    "Flatness",
    "Gate",
    "GraphError",
    "OutputError",
    "ParityError",
    "ParityReport",
    "ParityRow",
    "PhotographError",
    "PrecisionError",
    "PrecisionPlan",
    "ProbeFrame",
    "QuantisationError",
    "Source",
    "SourceError",
    "TopcoatError",
    "WeightsError",
    "audit",
    "build_engine",
    "calibration_frames",
    "difference",
    "engines_for",
    "export_bundle",
    "measure_parity",
    "onnx_from_network",
    "open_source",
    "parse_profile",
    "plan_precisions",
    "probe_frames",
    "quantise",
    "source_from_checkpoint",
]

_MODULES = {
    "_errors": (
        "BundleNameError",
        "EngineBuildError",
        "EngineLibraryError",
        "EngineRequestError",
        "GraphError",
        "OutputError",
        "PhotographError",
        "PrecisionError",
        "QuantisationError",
        "SourceError",
        "TopcoatError",
        "WeightsError",
    ),
    "bundle_writer": ("Exported", "export_bundle"),
    "engines": ("BuiltEngine", "EngineRequest", "build_engine", "parse_profile"),
    "onnx_from_checkpoint": ("onnx_from_network",),
    "parity": (
        "GATES",
        "Difference",
        "Engine",
        "Flatness",
        "Gate",
        "ParityError",
        "ParityReport",
        "ParityRow",
        "difference",
        "engines_for",
        "measure_parity",
    ),
    "precision": ("Audit", "PrecisionPlan", "audit", "plan_precisions"),
    "probes": ("ProbeFrame", "probe_frames"),
    "quantisation": ("calibration_frames", "quantise"),
    "sources": ("Source", "open_source", "source_from_checkpoint"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
