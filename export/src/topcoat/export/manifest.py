"""The bundle's manifest: what is in it, where it comes from and what was proved of it."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from topcoat.export.engines import BuiltEngine
from topcoat.export.onnx_from_checkpoint import INPUT_NAMES, OUTPUT_NAMES
from topcoat.export.parity import ParityRow
from topcoat.export.sources import Source
from topcoat.export.tiling import takes_noise
from topcoat.train.pictures import file_sha256

FORMAT = "topcoat-bundle"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a bundle that a backend runs: an ONNX model, or an engine built from one."""

    file: str
    precision: str
    opset: int | None
    """Of a model; None for an engine."""
    keep_fp32: tuple[str, ...] = ()
    """Layers that stay float32 in a half-precision model."""
    engine: BuiltEngine | None = None

    @property
    def kind(self) -> str:
        """What the manifest calls such a file."""
        return "onnx" if self.engine is None else self.engine.kind


def manifest_of(
    source: Source,
    name: str,
    memory: int,
    stage: Path,
    parts: Sequence[Part],
    rows: Sequence[ParityRow],
) -> dict[str, Any]:
    """Describe a bundle.

    Args:
        source: where its network comes from.
        name: of the bundle.
        memory: bytes per input pixel, see ``memory_per_pixel``.
        stage: the folder that holds the parts already.
        parts: models and engines, in the order in which a reader should prefer to see them.
        rows: every comparison; empty in a draft.

    Returns:
        The content of manifest.json, without what ``files`` will hold.
    """
    network = source.network
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "task": source.task,
        "scale": network.scale,
        "channels": 3,
        "size": {
            "multiple": network.size_multiple,
            "min": network.size_min,
            "max": None,
            "pad": "edge",
            # The edges of a texture meet: no part of it can be made by itself.
            "halo": None if takes_noise(network) else network.halo,
        },
        "memory_per_pixel": memory,
        "made_by": made_by(),
        "checkpoint": source.origin(),
        "variants": [
            {
                "file": part.file,
                **identity(stage / part.file),
                "kind": part.kind,
                "precision": part.precision,
                "opset": part.opset,
                "input": {
                    "name": INPUT_NAMES[source.task],
                    "dtype": "uint8",
                    "layout": "NHWC",
                },
                "output": {
                    "name": OUTPUT_NAMES[source.task],
                    "dtype": "uint8",
                    "layout": "NHWC",
                },
                "parity": [
                    row.to_manifest()
                    for row in rows
                    if row.engine.file == part.file and row.status != "not run"
                ],
                "parity_not_run": [
                    row.to_manifest()
                    for row in rows
                    if row.engine.file == part.file and row.status == "not run"
                ],
                **({"keep_fp32": list(part.keep_fp32)} if part.keep_fp32 else {}),
                **({} if part.engine is None else {"engine": _engine_entry(part.engine)}),
            }
            for part in parts
        ],
        "files": {},
    }


def made_by() -> dict[str, str]:
    """Versions of what makes the models: another one may make other bytes of the same weights."""
    return {
        "topcoat-export": importlib.metadata.version("topcoat-export"),
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
    }


def _engine_entry(built: BuiltEngine) -> dict[str, Any]:
    info = built.info
    return {
        "library": info.library,
        "version": info.version,
        "targets": list(info.targets),
        "driver": info.driver,
        "platform": info.platform,
        "profiles": [
            {"min": list(p.min), "opt": list(p.opt), "max": list(p.max)} for p in info.profiles
        ],
        "key": info.key,
        "model_sha256": built.model_sha256,
        **({"keep_fp32": list(built.keep_fp32)} if built.keep_fp32 else {}),
        "reproducible": built.reproducible,
        "layers": [dict(layer) for layer in built.layers],
    }


def identity(path: Path) -> dict[str, Any]:
    """Hash and size of a file, as the manifest lists them."""
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}
