"""Build engines from ONNX models: TensorRT for data-centre GPUs, TensorRT for RTX for games' cards.

Engines are built here and run by ``topcoat.runtime``. An ``rtx`` engine is built without a GPU, for
several generations at once; a ``tensorrt`` engine on the GPU that is to run it.
"""

from topcoat.export.engines._request import (
    RTX_DEFAULT_TARGETS,
    RTX_TARGETS,
    EngineRequest,
    parse_profile,
)
from topcoat.export.engines.builder import (
    BuiltEngine,
    Library,
    build_engine,
    find_library,
    key_of,
)

__all__ = [
    "RTX_DEFAULT_TARGETS",
    "RTX_TARGETS",
    "BuiltEngine",
    "EngineRequest",
    "Library",
    "build_engine",
    "find_library",
    "key_of",
    "parse_profile",
]
