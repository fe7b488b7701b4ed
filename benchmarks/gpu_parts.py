"""The parts of a run, each in a process of its own: what crashes takes only itself along."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_report import ENGINES

if TYPE_CHECKING:
    from topcoat.runtime import Manifest
    from topcoat.runtime.backends._cuda import Device


_OURS = frozenset({"topcoat", "gpu_bundles", "gpu_floors"})


def run_part(name: str, job: Mapping[str, Any]) -> int:
    """Do one part in this process, writing every result as it comes."""
    with Path(job["out"]).open("a", encoding="utf-8") as out:

        def put(kind: str, entry: Mapping[str, Any]) -> None:
            out.write(json.dumps([kind, _finite(entry)]) + "\n")
            out.flush()

        try:
            PARTS[name](job, put)
        except Exception as error:
            said = " ".join(str(error).split())[:400]
            if type(error).__module__.split(".")[0] in _OURS:  # a reason for people, in one line
                raise SystemExit(said) from None
            traceback.print_exc()
            raise SystemExit(f"{type(error).__name__}: {said}") from None
    return 0


Put = Callable[[str, Mapping[str, Any]], None]


def _part_peaks(job: Mapping[str, Any], put: Put) -> None:
    from gpu_torch import measure_peaks

    if (missing := _torch_missing()) is not None:
        raise SystemExit(missing)
    put("peaks", measure_peaks().to_json())


def _part_prepare(job: Mapping[str, Any], put: Put) -> None:
    from gpu_bundles import prepare

    checkpoint = None if job["checkpoint"] is None else Path(job["checkpoint"])
    prepare(Path(job["folder"]), checkpoint, print, names=job["names"])


def _part_build(job: Mapping[str, Any], put: Put) -> None:
    from gpu_bundles import add_engines

    for made in add_engines(Path(job["bundle"]), job["engine"], _device(), print):
        put("engines", made)


def _part_verify(job: Mapping[str, Any], put: Put) -> None:
    _torch_first()
    from topcoat.runtime import verify
    from topcoat.runtime.backends import all_backends

    known = all_backends()
    # In two goes, each with its reference: the first one's rows are safe if the second is stopped.
    for names in ({*ENGINES}, {"onnxruntime-cuda", "onnxruntime-webgpu"}):
        chosen = [b for b in known if b.name in names or b.name == "onnxruntime-cpu"]
        for row in verify(job["bundle"], backends=chosen).rows:
            if row.engine.backend in names:
                entry = row.to_json()
                del entry["frames"]
                put("parity", {"bundle": Path(job["bundle"]).stem, **entry})


def _part_run(job: Mapping[str, Any], put: Put) -> None:
    """Measure the engines of one TensorRT library."""
    from gpu_bundles import input_size
    from gpu_measure import measure_engine

    from topcoat.runtime import TopcoatError, read_manifest
    from topcoat.runtime.backends import find_backend
    from topcoat.runtime.backends._cuda import installed_driver

    backend = find_backend(job["backend"])
    if (missing := backend.missing()) is not None:
        raise SystemExit(f"{job['backend']}: {missing}")
    manifest, device = read_manifest(job["bundle"]), _device()
    variants = [v for v in manifest.variants if v.kind == job["backend"]]
    if not variants:
        raise SystemExit(f"{manifest.name} holds no engine of {job['backend']}")
    version = backend.version()
    for size_name in job["sizes"]:
        size = input_size(manifest, size_name)
        for variant in variants:
            assert variant.engine is not None
            profile = variant.engine.profiles[0]
            if size is None or not profile.holds(*size):
                continue
            row = {
                **_row(manifest, job["backend"], variant.precision, size_name, size),
                "version": version,
                "file": variant.file,
                "profile": str(profile),
                "targets": list(variant.engine.targets),
            }
            cache = Path(tempfile.mkdtemp(dir=job["work"]))
            try:
                row |= measure_engine(
                    job["backend"],
                    manifest,
                    variant,
                    size,
                    driver=installed_driver(),
                    device=device,
                    cache=cache,
                    seconds=job["seconds"],
                )
            except TopcoatError as error:
                row["failed"] = " ".join(str(error).split())
            put("measurements", row)


def _part_onnxruntime(job: Mapping[str, Any], put: Put) -> None:
    _torch_first()
    from gpu_bundles import input_size
    from gpu_measure import measure_onnxruntime

    from topcoat.runtime import TopcoatError, read_manifest
    from topcoat.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda

    if (missing := OnnxRuntimeCuda().missing()) is not None:
        raise SystemExit(f"onnxruntime-cuda: {missing}")
    manifest = read_manifest(job["bundle"])
    for size_name in job["sizes"]:
        size = input_size(manifest, size_name)
        for variant in manifest.variants:
            if variant.kind != "onnx" or size is None:
                continue
            row = {
                **_row(manifest, "onnxruntime-cuda", variant.precision, size_name, size),
                "version": OnnxRuntimeCuda().version(),
                "file": variant.file,
            }
            try:
                row |= measure_onnxruntime(manifest, variant, size, seconds=job["seconds"])
            except TopcoatError as error:
                row["failed"] = " ".join(str(error).split())
            put("measurements", row)


def _part_eager(job: Mapping[str, Any], put: Put) -> None:
    if (missing := _torch_missing()) is not None:
        raise SystemExit(missing)
    import torch
    from gpu_bundles import input_size
    from gpu_torch import measure_eager

    from topcoat.runtime import read_manifest

    manifest = read_manifest(job["bundle"])
    for size_name in job["sizes"]:
        size = input_size(manifest, size_name)
        if size is None:
            continue
        for name, found in measure_eager(manifest.checkpoint, size, seconds=job["seconds"]):
            precision = name.split()[1]
            row = _row(manifest, f"torch {name}", precision, size_name, size)
            put("measurements", {**row, "version": str(torch.__version__), **found})


def _part_compile(job: Mapping[str, Any], put: Put) -> None:
    if (missing := _torch_missing()) is not None:
        raise SystemExit(missing)
    import torch
    from gpu_bundles import input_size
    from gpu_torch import COMPILED, measure_compiled

    from topcoat.runtime import read_manifest

    manifest = read_manifest(job["bundle"])
    for size_name in job["sizes"]:
        size = input_size(manifest, size_name)
        if size is None:
            continue
        row = _row(manifest, f"torch {COMPILED}", "fp16", size_name, size)
        found = measure_compiled(manifest.checkpoint, size, seconds=job["seconds"])
        put("measurements", {**row, "version": str(torch.__version__), **found})


PARTS: Mapping[str, Callable[[Mapping[str, Any], Put], None]] = {
    "peaks": _part_peaks,
    "prepare": _part_prepare,
    "build": _part_build,
    "verify": _part_verify,
    "run": _part_run,
    "onnxruntime": _part_onnxruntime,
    "eager": _part_eager,
    "compile": _part_compile,
}


def _row(
    manifest: Manifest,
    backend: str,
    precision: str,
    size_name: str,
    size: tuple[int, int],
) -> dict[str, Any]:
    scale = manifest.scale
    return {
        "bundle": manifest.folder.stem,
        "backend": backend,
        "precision": precision,
        "size": size_name,
        "input": list(size),
        "output": [size[0] * scale, size[1] * scale],
    }


def _device() -> Device:
    from topcoat.runtime.backends._cuda import Device, probe

    device = probe()
    if not isinstance(device, Device):
        raise SystemExit(device)
    return device


def _torch_missing() -> str | None:
    """Return why torch cannot be measured on this GPU, or None."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({' '.join(str(error).split())}); install it to compare"
    if not torch.cuda.is_available():
        return f"the torch that is installed ({torch.__version__}) cannot use the GPU"
    return None


def _torch_first() -> None:
    """Import torch where it is: ONNX Runtime then finds the cuBLAS and cuDNN that it loaded."""
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Replace what JSON cannot say, such as the PSNR of equal pictures."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
