"""Turn a checkpoint into a bundle of engines, each proved equal to the network.

>>> from topcoat.export import export_bundle                              # doctest: +SKIP
>>> from topcoat.train import load_checkpoint                             # doctest: +SKIP
>>> export_bundle(load_checkpoint("candy.pt"), "candy.topcoat").report    # doctest: +SKIP
"""

from topcoat.export._errors import (
    BundleNameError,
    GraphError,
    OutputError,
    ParityError,
    PhotographError,
    TopcoatError,
    WeightsError,
)
from topcoat.export.bundle_writer import Exported, export_bundle
from topcoat.export.onnx_from_checkpoint import onnx_from_checkpoint, onnx_from_network
from topcoat.export.parity import (
    GATES,
    Difference,
    Engine,
    Gate,
    ParityReport,
    ParityRow,
    difference,
    engines_for,
    measure_parity,
)
from topcoat.export.probe_frames import ProbeFrame, probe_frames

__all__ = [
    "GATES",
    "BundleNameError",
    "Difference",
    "Engine",
    "Exported",
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
    "onnx_from_checkpoint",
    "onnx_from_network",
    "probe_frames",
]
