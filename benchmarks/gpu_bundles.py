"""The bundles that are measured: exported here, and given the engines that a machine can run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpu_floors import FloorError, Work, work_of

if TYPE_CHECKING:
    from topcoat.export.engines import BuiltEngine, EngineRequest
    from topcoat.export.engines._request import EngineName
    from topcoat.runtime import Manifest, Variant
    from topcoat.runtime.backends._cuda import Device

SIZES: Mapping[str, tuple[int, int]] = {
    "1080p": (1080, 1920),
    "720p": (720, 1280),
    "1440p": (1440, 2560),
    "4K": (2160, 3840),
}
"""Name -> (height, width) of the result, most wanted first."""

STYLE = "johnson-32"
"""The network that the promises are about: 32, 64 and 128 channels."""

LIBRARIES: Mapping[str, str] = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""What the exporter calls a library -> the module that builds with it."""

WORK_FILE = "work.json"
BUILDS_FILE = "builds.json"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network that is measured with seeded random weights: they cost the same time as trained."""

    name: str
    network: str
    settings: Mapping[str, Any]
    task: str


SUBJECTS = (
    Subject(name=STYLE, network="johnson", settings={"width": 32}, task="style"),
    Subject(name="sr-x2", network="residual-sr", settings={"scale": 2}, task="super-resolution"),
    Subject(name="sr-x4", network="residual-sr", settings={"scale": 4}, task="super-resolution"),
)


class PrepareError(ValueError):
    """Bundles cannot be made, or are not there."""


def prepare(
    folder: Path, checkpoint: Path | None, progress: Progress, *, names: Sequence[str] | None = None
) -> list[Path]:
    """Export the bundles that are measured into a folder, with engines that need no GPU.

    Args:
        folder: made if it is not there. A bundle of the same network that lies there stays, and
            gets what it lacks.
        checkpoint: a trained network besides :data:`SUBJECTS`; None: the one of topcoat.export.
        progress: is told what is done.
        names: only these.

    Raises:
        PrepareError: an engine differs from its network, or what exports is not installed.
        OSError: the folder cannot be written.
    """
    for module in ("torch", "onnx"):
        if importlib.util.find_spec(module) is None:
            raise PrepareError(
                f"exporting needs {module}, which is not installed; prepare the bundles on a"
                " machine that has it (--prepare DIR), and give them here with --bundles DIR"
            )
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, path in _checkpoints(folder, checkpoint):
        if names is None or name in names:
            bundle, builds = _export(folder, name, path, progress)
            made.append(bundle)
            if builds:
                write_json(folder / BUILDS_FILE, [*builds_of(folder), *builds])
    if not made:
        known = ", ".join(subject.name for subject in SUBJECTS)
        raise PrepareError(
            f"none of the networks is called {', '.join(names or ())}; choose from {known} and the"
            " name of the checkpoint"
        )
    write_work(folder, made)
    return made


def _checkpoints(folder: Path, checkpoint: Path | None) -> Iterator[tuple[str, Path]]:
    """Name and file of every network; random ones are written beside their bundles."""
    import torch

    from topcoat.train import Checkpoint, save_checkpoint
    from topcoat.train.networks import build_network

    for subject in SUBJECTS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_network(subject.network, subject.settings)
            for weight in network.parameters():
                if weight.ndim == 4 and not weight.any():
                    # Some start at zero, where trained ones do not stay.
                    torch.nn.init.normal_(weight, std=0.5 * weight[0].numel() ** -0.5)
        path = folder / f"{subject.name}.pt"
        recipe: dict[str, Any] = {"name": "random"}
        if subject.task == "super-resolution":
            recipe |= {"network": subject.network, "scale": network.scale, "blur": 0.0}
            recipe |= {"loss": "pixel", "pixel_form": "l1"}
        entry = Checkpoint(
            task=subject.task,
            network={"name": subject.network, "settings": dict(subject.settings)},
            weights=network.state_dict(),
            recipe=recipe,
            step=0,
            versions={"torch": str(torch.__version__)},
        )
        if not path.exists():  # the same weights in another file would be another network
            save_checkpoint(entry, path)
        yield subject.name, path
    if checkpoint is not None:
        yield checkpoint.stem, checkpoint
    else:
        import importlib.resources

        data = importlib.resources.files("topcoat.export") / "data"
        with importlib.resources.as_file(data) as packaged:
            for path in sorted(packaged.glob("*.pt")):
                yield path.stem, path


def _export(
    folder: Path, name: str, checkpoint: Path, progress: Progress
) -> tuple[Path, list[dict[str, Any]]]:
    from topcoat.export import export_bundle
    from topcoat.export._errors import EngineLibraryError
    from topcoat.export.engines import find_library
    from topcoat.export.precision import PrecisionPlan
    from topcoat.export.sources import open_source

    source = open_source(checkpoint)
    try:
        find_library("rtx")
        engines = requests("rtx", source.network.scale)
    except EngineLibraryError as error:
        progress(f"{name}: no engine is built: {error}")
        engines = []
    exported = export_bundle(
        source,
        folder / f"{name}.topcoat",
        name=name,
        plan=PrecisionPlan(precisions=("fp32", "fp16")),
        engines=engines,
        progress=lambda what: progress(f"{name}: {what}"),
    )
    if exported.bundle is None:
        raise PrepareError(
            f"{name}: an engine differs from its network; {exported.report_file} says by how much"
        )
    built = [engine for engine in exported.engines if not engine.reused]
    return exported.bundle, [_build_entry(exported.bundle, engine) for engine in built]


def _build_entry(bundle: Path, built: BuiltEngine) -> dict[str, Any]:
    from topcoat.runtime.parity import machine

    return {
        "bundle": bundle.stem,
        "kind": built.kind,
        "precision": built.precision,
        "profile": str(built.info.profiles[0]),
        "targets": list(built.info.targets),
        "version": built.info.version,
        "bytes": len(built.data),
        "seconds": built.seconds,
        "warnings": list(built.warnings),
        "processor": machine()["processor"],
    }


def builds_of(folder: Path) -> list[dict[str, Any]]:
    """Return what was noted when the engines of a folder were built; [] if nothing was."""
    try:
        found = json.loads((folder / BUILDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def requests(
    engine: str, scale: int, targets: tuple[str, ...] | None = None
) -> list[EngineRequest]:
    """Return the engines that are measured: any size in both precisions, and 1080p alone in fp16.

    Args:
        engine: "rtx" or "tensorrt".
        scale: of the network.
        targets: GPU generations of an rtx engine; None: its default.
    """
    from topcoat.export.engines import EngineRequest
    from topcoat.runtime import Profile

    height, width = (side // scale for side in SIZES["1080p"])
    fixed = Profile(min=(height, width), opt=(height, width), max=(height, width))
    asked = cast("EngineName", engine)
    return [
        EngineRequest(engine=asked, precision="fp16", targets=targets),
        EngineRequest(engine=asked, precision="fp16", targets=targets, profiles=(fixed,)),
        EngineRequest(engine=asked, precision="fp32", targets=targets),
    ]


def wanted_names(text: str, *, quick: bool) -> list[str] | None:
    """Return the networks that a user asks for, by the names of their bundles; None: all."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return names or ([STYLE] if quick else None)


def bundles_in(folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Return the bundles of a folder, or those of some names; that of the promises first.

    Raises:
        PrepareError: there is none, or none of a name.
    """
    found = sorted(path.parent for path in folder.glob("*.topcoat/manifest.json"))
    if not found:
        raise PrepareError(
            f"{folder} holds no bundles (NAME.topcoat); make them with"
            f" `python benchmarks/gpu.py --prepare {folder}` on a machine with torch and onnx"
        )
    if unknown := set(names or ()) - {path.stem for path in found}:
        raise PrepareError(
            f"{folder} holds no bundle of {', '.join(sorted(unknown))}, only"
            f" {', '.join(path.stem for path in found)}; choose with --networks"
        )
    wanted = [path for path in found if names is None or path.stem in names]
    return sorted(wanted, key=lambda path: path.stem != STYLE)


def input_size(manifest: Manifest, size: str) -> tuple[int, int] | None:
    """Return (height, width) of the frame whose result has a size; None: the network has no such.

    A frame of another size would be padded, and then another amount of work was measured.
    """
    height, width = SIZES[size]
    rule, scale = manifest.size, manifest.scale
    if height % (scale * rule.multiple) or width % (scale * rule.multiple):
        return None
    return height // scale, width // scale


# ------------------------------------------------------------------------------------------- work


def write_work(folder: Path, bundles: Sequence[Path]) -> None:
    """Count every network's work at every size, for machines without onnx."""
    content = {bundle.stem: count_work(bundle) for bundle in bundles}
    place = folder / WORK_FILE
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(place.read_text(encoding="utf-8")) | content
    write_json(place, content)


def count_work(bundle: Path) -> dict[str, dict[str, Any]]:
    """Return the work of a bundle's ONNX models: precision -> size -> what :class:`Work` writes."""
    from topcoat.runtime import read_manifest
    from topcoat.runtime.bundle import read_model

    manifest = read_manifest(bundle)
    found: dict[str, dict[str, Any]] = {}
    for variant in manifest.variants:
        if variant.kind != "onnx":
            continue
        model = read_model(manifest, variant)
        sizes = {name: input_size(manifest, name) for name in SIZES}
        found[variant.precision] = {
            name: work_of(model, *size).to_json() for name, size in sizes.items() if size
        }
    return found


def work_for(bundle: Path, prepared: Path | None) -> dict[str, dict[str, Work]]:
    """Return a bundle's work by precision and size: counted here, or as it was when prepared.

    Raises:
        FloorError: onnx is not installed, and nothing was counted before.
    """
    content = None
    if importlib.util.find_spec("onnx") is not None:
        content = count_work(bundle)
    elif prepared is not None and (prepared / WORK_FILE).is_file():
        content = json.loads((prepared / WORK_FILE).read_text(encoding="utf-8")).get(bundle.stem)
    if content is None:
        raise FloorError(
            f"the work of {bundle.name} cannot be counted without onnx; install it, or take the"
            f" folder as --prepare made it, with {WORK_FILE}"
        )
    return {
        precision: {size: Work.from_json(entry) for size, entry in sizes.items()}
        for precision, sizes in content.items()
    }


# ---------------------------------------------------------------------------------------- engines


def add_engines(
    bundle: Path, engine: str, device: Device, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Build the engines that a bundle lacks for this machine; yield what each took.

    Args:
        bundle: is changed: engines are added to it, not verified yet.
        engine: "rtx" or "tensorrt".
        device: the GPU.
        progress: is told what is done.

    Raises:
        topcoat.export._errors.TopcoatError: the library cannot be used here, or refuses a model.
    """
    from gpu_torch import network_of

    from topcoat.export.engines import RTX_TARGETS, build_engine, find_library, key_of
    from topcoat.runtime import read_manifest
    from topcoat.runtime.bundle import read_model

    manifest = read_manifest(bundle)
    library = find_library(engine)
    # One generation's engine is smaller and builds faster; for others the default may still do.
    targets = (device.sm,) if engine == "rtx" and device.sm in RTX_TARGETS else None
    network = network_of(manifest.checkpoint)
    for request in requests(engine, manifest.scale, targets):
        settled = request.settled(network)  # type: ignore[arg-type]
        model = next(
            v for v in manifest.variants if v.kind == "onnx" and v.precision == request.precision
        )
        key = key_of(settled, model.sha256, library)
        if any(
            _does(variant, settled, key, library.version, device) for variant in manifest.variants
        ):
            continue
        progress(f"{bundle.stem}: {engine} {request.precision}, {settled.profiles[0]}")
        path = bundle / "manifest.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        first = next(v for v in content["variants"] if v["file"] == model.file)
        kept = first.get("keep_fp32", [])
        built = build_engine(
            read_model(manifest, model), settled, library, keep_fp32=kept, progress=progress
        )
        file = f"{built.kind}.{built.precision}.{built.info.key[:8]}.engine"
        (bundle / file).write_bytes(built.data)
        content["variants"].append(
            {
                "file": file,
                "sha256": hashlib.sha256(built.data).hexdigest(),
                "bytes": len(built.data),
                "kind": built.kind,
                "precision": built.precision,
                "opset": None,
                "input": first["input"],
                "output": first["output"],
                "parity": [],
                "engine": {
                    **dataclasses.asdict(built.info),
                    "model_sha256": built.model_sha256,
                    **({"keep_fp32": kept} if kept else {}),
                    "reproducible": built.reproducible,
                    "layers": [dict(layer) for layer in built.layers],
                },
            }
        )
        write_json(path, content)
        yield _build_entry(bundle, built)


def _does(variant: Variant, request: EngineRequest, key: str, version: str, device: Device) -> bool:
    """Return whether an engine that is there does what is asked for on this GPU."""
    info = variant.engine
    if info is None:
        return False
    same = (info.library, info.version, info.profiles, variant.precision) == (
        LIBRARIES[request.engine],
        version,
        request.profiles,
        request.precision,
    )
    return info.key == key or (same and device.sm in info.targets)


def write_json(place: Path, content: object) -> None:
    """Write a file whole or not at all."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        temporary.write_text(
            json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
