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
        GraphError,
        OutputError,
        PhotographError,
        TopcoatError,
        WeightsError,
    )
    from topcoat.export.bundle_writer import Exported, export_bundle
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
    from topcoat.export.probes import ProbeFrame, probe_frames

__all__ = [
    "GATES",
    "BundleNameError",
    "Difference",
    "Engine",
    "Exported",
    "Flatness",
    "Gate",
    "GraphError",
    "OutputError",
    "ParityError",
    "ParityReport",
    "ParityRow",
    "PhotographError",
    "ProbeFrame",
    "TopcoatError",
    "WeightsError",
    "difference",
    "engines_for",
    "export_bundle",
    "measure_parity",
    "onnx_from_network",
    "probe_frames",
]

_MODULES = {
    "_errors": (
        "BundleNameError",
        "GraphError",
        "OutputError",
        "PhotographError",
        "TopcoatError",
        "WeightsError",
    ),
    "bundle_writer": ("Exported", "export_bundle"),
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
    "probes": ("ProbeFrame", "probe_frames"),
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
