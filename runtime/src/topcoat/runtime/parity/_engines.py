"""Every way to run a bundle that has to be compared: the rows of the parity matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from topcoat.runtime.backends import Backend, Compute, all_backends, find_backend
from topcoat.runtime.bundle import ENGINE_KINDS, Variant

OFFERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "onnxruntime-cpu": {"fp32": ("fp32",), "fp16": ("fp16",), "int8": ("int8",)},
    "openvino-cpu": {
        "fp32": ("fp32", "bf16"),
        "fp16": ("fp16",),
        "bf16": ("bf16",),
        "int8": ("int8",),
    },
    "onnxruntime-cuda": {"fp32": ("fp32",), "fp16": ("fp16",)},
    "onnxruntime-webgpu": {"fp32": ("fp32",), "fp16": ("fp16",)},
    "openvino-gpu": {"fp32": ("fp32", "fp16"), "fp16": ("fp16",)},
}
"""Backend -> precision of an ONNX file -> the precisions that it may compute that file at.

A backend is asked itself where it can work. This says what it could do elsewhere: a machine without
the device cannot ask. Engines (``Variant.kind`` of :data:`ENGINE_KINDS`) are run by the backend of
that name, at the precision that was built in.
"""

_REQUIRED = "onnxruntime-cpu"
"""Present wherever the runtime is installed, so what it computes must be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One way to run one model file: a row of the report."""

    file: str
    precision: str
    """Of the file."""
    backend: str
    compute: str
    """Precision in which the backend computes; bf16 is made from the fp32 file."""
    required: bool
    """A bundle is written only if this row passes."""

    def __str__(self) -> str:
        return f"{self.backend} {self.compute} ({self.file})"


def engines_for(
    variants: Iterable[Variant], backends: Iterable[Backend] | None = None
) -> list[Engine]:
    """List every engine that the runtime may choose for these files, here or elsewhere.

    Args:
        variants: of a manifest.
        backends: those to ask; all that this version knows if None.

    Returns:
        Of every file those that are required first. ONNX Runtime on the CPU is, for models in fp32,
        fp16 and int8.
    """
    known = tuple(all_backends() if backends is None else backends)
    found = []
    for variant in variants:
        rows = [
            Engine(
                file=variant.file,
                precision=variant.precision,
                backend=backend.name,
                compute=compute,
                required=backend.name == _REQUIRED
                and variant.precision in ("fp32", "fp16", "int8")
                and variant.kind == "onnx",
            )
            for backend in known
            for compute in _computes(backend, variant)
        ]
        found += sorted(rows, key=lambda row: not row.required)
    return found


def engine_here(
    engine: Engine, variant: Variant, backends: Iterable[Backend] | None = None
) -> Compute | str:
    """Say whether this machine can run an engine.

    Returns:
        What the backend offers, with the kind of its device; or the reason why it cannot run here.
    """
    backend = find_backend(engine.backend, None if backends is None else tuple(backends))
    built = "built, not run here: " if variant.kind in ENGINE_KINDS else ""
    if (missing := backend.missing()) is not None:
        return built + missing
    for offer in backend.computes(variant):
        if offer.compute == engine.compute:
            return offer if offer.obstacle is None else built + offer.obstacle
    return f"{built}{backend.name} does not compute {variant.file} in {engine.compute} here"


def _computes(backend: Backend, variant: Variant) -> tuple[str, ...]:
    if variant.kind in ENGINE_KINDS:
        return (variant.precision,) if backend.name == variant.kind else ()
    if variant.kind != "onnx":
        return ()
    elsewhere = OFFERS.get(backend.name, {}).get(variant.precision, ())
    here = () if backend.missing() else tuple(offer.compute for offer in backend.computes(variant))
    return tuple(dict.fromkeys((*elsewhere, *here)))
