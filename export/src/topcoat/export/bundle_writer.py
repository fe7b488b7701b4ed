"""Export a checkpoint as a bundle: stage it aside, prove it, and only then put it in place.

Whatever happens on the way (a failed comparison, Ctrl-C, a full disk, a kill), the place asked for
holds either what was there before or the complete, proved bundle.
"""

import contextlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from PIL import Image

import topcoat.runtime
from topcoat.export._errors import (
    BundleNameError,
    OutputError,
    PhotographError,
    WeightsError,
)
from topcoat.export.card import card_markdown, degradation_blur
from topcoat.export.golden import golden, golden_texture
from topcoat.export.halo import prove_halo
from topcoat.export.memory import memory_per_pixel
from topcoat.export.onnx_from_checkpoint import (
    INPUT_NAMES,
    OPSET,
    OUTPUT_NAMES,
    Precision,
)
from topcoat.export.parity import (
    ParityReport,
    ParityRow,
    engines_for,
    measure_parity,
)
from topcoat.export.probes import bundled_photographs, noise_probes, probe_frames
from topcoat.export.sources import Source, source_from_checkpoint
from topcoat.export.tiling import prove_tiling, takes_noise
from topcoat.train import Checkpoint
from topcoat.train.networks import FrameNetwork
from topcoat.train.pictures import file_sha256

FORMAT = "topcoat-bundle"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export left behind. Truthy when there is a bundle."""

    bundle: Path | None
    """None if parity failed: then nothing was written but the report."""
    report_file: Path
    """parity.json inside the bundle, or ``NAME.parity.json`` beside the place it did not get."""
    report: ParityReport
    name: str
    task: str
    scale: int

    def __bool__(self) -> bool:
        return self.bundle is not None


def export_bundle(
    source: Checkpoint | Source,
    output: str | os.PathLike[str],
    *,
    name: str | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    photos: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Turn a checkpoint into a bundle of engines, each compared with the network.

    Args:
        source: a trained network.
        output: the bundle's folder, usually ``NAME.topcoat``.
        name: what the bundle is called; the folder's name without suffix if None.
        precisions: ``fp32``, which every CPU backend needs, and ``fp16`` for GPU backends.
        photos: a folder of photographs to compare on besides the bundled ones; not for a texture.
        force: replace a bundle that lies at ``output``; anything else there is never touched.
        progress: is told, in a few words, what is being done.

    Returns:
        Where the bundle is and what was measured; falsy, and without a bundle, if an engine that
        is required differs from the network by more than its gates allow.

    Raises:
        BundleNameError: the name cannot be a file name.
        OutputError: something is at ``output`` that may not be replaced, or it cannot be written.
        PhotographError: ``photos`` has no readable photograph, or was given for a texture.
        WeightsError: the weights hold NaN or infinity, or the network is not one for the task that
            the checkpoint names.
        GraphError: the graph breaks the frame contract, the network's ``halo`` is too small, or its
            textures show a seam.
        topcoat.train.CheckpointError: the weights do not fit the network.
    """
    if "fp32" not in precisions:
        raise ValueError(f"precisions must contain fp32, got {tuple(precisions)}; CPUs run that")
    place = Path(output).absolute()
    name = checked_name(name if name is not None else place.name.removesuffix(".topcoat"))
    if place.is_symlink():
        place = place.resolve()
    _check_place(place, force=force)
    if isinstance(source, Checkpoint):
        source = source_from_checkpoint(source)
    network = source.network
    _check_weights(network)
    _check_task(source)
    texture = takes_noise(network)
    if texture and photos is not None:
        raise PhotographError(
            f"photographs were given ({photos}), but {name} is a texture, which is made from noise;"
            " leave out --photos"
        )
    frames = (
        noise_probes(network.size_multiple, network.size_min)
        if texture
        else probe_frames(network.size_min, photos, progress, scale=network.scale)
    )

    with _staged(place) as stage:
        if texture:
            progress("seams: does a texture repeat without one?")
            prove_tiling(network)
        elif network.halo is not None:
            progress(f"tiles: does an output pixel look no further than {network.halo} pixels?")
            prove_halo(network)
        files: dict[str, str] = {}
        for precision in precisions:
            files[precision] = f"model.{precision}.onnx"
            progress(f"ONNX, {precision}, opset {OPSET}")
            model = source.to_onnx(precision)
            _write_model(stage / files[precision], model)
            if precision == "fp32":
                memory = memory_per_pixel(model, network.size_multiple, network.size_min)
        draft = _manifest(source, name, memory, stage, files, ())
        _write_json(stage / "manifest.json", draft)  # so that the runtime can open it at all

        report = measure_parity(stage, network, frames, engines_for(files), progress)

        def exported(bundle: Path | None, report_file: Path) -> Exported:
            return Exported(
                bundle=bundle,
                report_file=report_file,
                report=report,
                name=name,
                task=source.task,
                scale=network.scale,
            )

        if not report:
            report_file = place.with_name(f"{place.name.removesuffix('.topcoat')}.parity.json")
            _write_json_atomically(report_file, report.to_json())
            return exported(None, report_file)

        _write_json(stage / "parity.json", report.to_json())
        pictures = _write_pictures(stage, network, source.recipe)
        manifest = _manifest(source, name, memory, stage, files, report.rows)
        card = card_markdown(manifest, report, source)
        (stage / "card.md").write_text(card, encoding="utf-8")
        manifest["files"] = {
            extra: _identity(stage / extra) for extra in ("card.md", *pictures, "parity.json")
        }
        _write_json(stage / "manifest.json", manifest)
        topcoat.runtime.verify_files(stage)
        _put_in_place(stage, place, force=force)
    return exported(place, place / "parity.json")


def checked_name(name: str) -> str:
    """Return a name that can be a file name on every system.

    Raises:
        BundleNameError: it cannot.
    """
    if (
        not name
        or name.strip(". ") != name
        or any(sign in '/\\:*?"<>|' or not sign.isprintable() for sign in name)
        or len(name.encode()) > 100
    ):
        raise BundleNameError(
            f"a bundle cannot be called {name!r}; use letters, digits, '-', '_' and inner dots"
        )
    return name


def _manifest(
    source: Source,
    name: str,
    memory: int,
    stage: Path,
    files: Mapping[str, str],
    rows: Sequence[ParityRow],
) -> dict[str, Any]:
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
        "made_by": {
            "topcoat-export": importlib.metadata.version("topcoat-export"),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
        },
        "checkpoint": source.origin(),
        "variants": [
            {
                "file": file,
                **_identity(stage / file),
                "kind": "onnx",
                "precision": precision,
                "opset": OPSET,
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
                    _parity_entry(row)
                    for row in rows
                    if row.engine.file == file and row.status != "not run"
                ],
                "parity_not_run": [
                    {
                        "backend": row.engine.backend,
                        "compute": row.engine.compute,
                        "reason": row.reason,
                    }
                    for row in rows
                    if row.engine.file == file and row.status == "not run"
                ],
            }
            for precision, file in files.items()
        ],
        "files": {},
    }


def _parity_entry(row: ParityRow) -> dict[str, Any]:
    """What the runtime asks before it uses an engine, and shows; parity.json has the rest."""
    group = "noise" if "noise" in row.groups else "photographs"
    found = row.groups.get(group)
    shown = ("max_steps", "psnr_db", "changed", "within_4_steps")
    return {
        "backend": row.engine.backend,
        "compute": row.engine.compute,
        "passed": bool(row),
        # A PSNR without difference is infinite, which JSON cannot say: the key is left out.
        group: {
            name: value
            for name, value in (found.to_json() if found else {}).items()
            if name in shown and value is not None
        },
    }


def _check_weights(network: FrameNetwork) -> None:
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"the checkpoint's weights hold NaN or infinity (in {name}); "
                "take an earlier checkpoint or train again with a lower learning rate"
            )


def _check_task(source: Source) -> None:
    """What a checkpoint says of itself decides the card, the golden pair and what people expect."""
    task, name, network = source.task, source.name, source.network
    if task not in OUTPUT_NAMES:
        raise WeightsError(
            f"the checkpoint is for the task {task!r}, this version exports "
            f"{', '.join(OUTPUT_NAMES)}; update topcoat-export"
        )
    if (task == "texture") != takes_noise(network):
        does = "noise" if takes_noise(network) else "pictures"
        raise WeightsError(
            f"the checkpoint is for the task {task!r}, but its network {name!r} takes {does}; "
            "the file was changed: use an earlier copy or train again"
        )
    if (task == "super-resolution") != (network.scale > 1):
        does = f"enlarges by {network.scale}" if network.scale > 1 else "keeps the size"
        raise WeightsError(
            f"the checkpoint is for the task {task!r}, but its network {name!r} {does}; "
            "the file was changed: use an earlier copy or train again"
        )


def _check_place(place: Path, *, force: bool) -> None:
    """Refuse early, before minutes of work, what would be refused at the end."""
    if not place.exists():
        return
    if not place.is_dir():
        raise OutputError(f"{place} is a file; give a folder name such as {place.stem}.topcoat")
    present = {path.name for path in place.iterdir()}
    if not present:
        return
    own = _files_of_bundle(place)
    if own is None:
        raise OutputError(
            f"{place} exists and is not a bundle, so it is left alone; "
            f"give another name, such as {place / 'NAME.topcoat'}"
        )
    if foreign := sorted(present - own):
        raise OutputError(
            f"{place} holds {', '.join(foreign[:3])}, which no export wrote, so it is left alone; "
            "move that away or give another name"
        )
    if not force:
        raise OutputError(f"{place} is there already; replace it with --force, or give -o")


def _files_of_bundle(folder: Path) -> set[str] | None:
    """Names that a bundle's manifest lists, or None if the folder is no bundle."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        models = {variant["file"] for variant in manifest["variants"]}
        return {"manifest.json", *models, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _staged(place: Path) -> Iterator[Path]:
    """A folder beside ``place``, on the same file system, that disappears if it is not used."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
    except OSError as error:
        raise OutputError(
            f"cannot write to {place.parent}: {error.strerror}; give another place with -o"
        ) from None
    try:
        yield stage
    except OSError as error:
        # A broken pipe comes from whoever is told of the progress, not from the disk.
        if isinstance(error, OutputError | BrokenPipeError) or error.errno is None:
            raise
        raise OutputError(
            f"cannot write {place}: {error.strerror}; make room or give another place with -o"
        ) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _put_in_place(stage: Path, place: Path, *, force: bool) -> None:
    for path in stage.iterdir():
        path.chmod(0o644)
        _sync(path)
    stage.chmod(0o755)  # mkdtemp's folders are private
    _sync(stage)
    _check_place(place, force=force)  # minutes have passed
    if not place.exists() or not any(place.iterdir()):
        stage.replace(place)
    else:
        # No system renames over a folder that holds something. Killed between the two renames,
        # the old bundle is whole under its hidden name.
        old = stage.with_suffix(".old")
        place.replace(old)
        try:
            stage.replace(place)
        except BaseException:
            old.replace(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(place.parent)


def _sync(path: Path) -> None:
    # Some file systems cannot flush a folder; the files themselves are safe then all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_model(path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))


def _write_pictures(stage: Path, network: FrameNetwork, recipe: Mapping[str, Any]) -> list[str]:
    """A frame and PyTorch's answer to it: what an embedder tests their own code with."""
    if takes_noise(network):
        made = golden_texture(network)
    else:
        blur = degradation_blur(recipe)
        made = golden(network, bundled_photographs(), 0.0 if blur is None else blur)
    pictures = {"golden_in.png": made.frame, "golden_out.png": made.answer}
    if made.comparison is not None:
        pictures["comparison.png"] = made.comparison
    if made.tiled is not None:
        pictures["tiled.png"] = made.tiled
    for name, picture in pictures.items():
        Image.fromarray(picture).save(stage / name, optimize=True)
    return list(pictures)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: Mapping[str, Any]) -> str:
    """JSON as this project writes it: indented, strict (no NaN), ending in a newline."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write_json_atomically(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(json_text(content), encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _identity(path: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}
