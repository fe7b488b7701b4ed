"""Export a checkpoint as a bundle: stage it aside, prove it, and only then put it in place.

Whatever happens on the way (a failed comparison, Ctrl-C, a full disk, a kill), the place asked for
holds either what was there before or the complete, proved bundle.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from PIL import Image

import topcoat.runtime
from topcoat.export._errors import BundleNameError, OutputError, PhotographError, WeightsError
from topcoat.export._staging import (
    check_place,
    json_text,
    put_in_place,
    staged,
    write_json,
    write_json_atomically,
)
from topcoat.export.card import card_markdown, degradation_blur
from topcoat.export.engines import (
    BuiltEngine,
    EngineRequest,
    Library,
    build_engine,
    find_library,
    key_of,
)
from topcoat.export.engines.reuse import Earlier, earlier_bundle
from topcoat.export.golden import golden, golden_texture
from topcoat.export.halo import prove_halo
from topcoat.export.manifest import Part, identity, manifest_of
from topcoat.export.memory import memory_per_pixel
from topcoat.export.onnx_from_checkpoint import DTYPES, OPSET, OPSETS, OUTPUT_NAMES, Precision
from topcoat.export.parity import ParityReport, measure_parity
from topcoat.export.precision import Audit, PrecisionPlan
from topcoat.export.probes import Frame, bundled_photographs, noise_probes, probe_frames
from topcoat.export.quantisation import Quantised, calibration_frames, quantise
from topcoat.export.sources import Source, source_from_checkpoint
from topcoat.export.tiling import prove_tiling, takes_noise
from topcoat.runtime.parity import engines_for
from topcoat.train import Checkpoint
from topcoat.train.networks import FrameNetwork

FP32 = PrecisionPlan(precisions=("fp32",))
"""The plan that every bundle contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export left behind. Truthy when there is a bundle."""

    bundle: Path | None
    """None if parity failed: then nothing was written but the report."""
    report_file: Path
    """parity.json inside the bundle, or ``NAME.parity.json`` beside the place it did not get."""
    report: ParityReport | None
    """None if nothing was done, because the bundle that was there held all of it."""
    engines: Sequence[BuiltEngine] = ()
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
    plan: PrecisionPlan = FP32,
    audit: Audit | None = None,
    calibration: str | os.PathLike[str] | None = None,
    engines: Sequence[EngineRequest] = (),
    timing_cache: str | os.PathLike[str] | None = None,
    photos: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Turn a checkpoint into a bundle of engines, each compared with the network.

    Where a bundle of the same checkpoint lies at ``output``, what is asked for is added to it: its
    models and engines stay as they are, with what was measured of them, an engine whose key is the
    same is not built again, and if nothing is missing, nothing is done.

    Args:
        source: a trained network.
        output: the bundle's folder, usually ``NAME.topcoat``.
        name: what the bundle is called; the folder's name without suffix if None.
        plan: which models to make: float32, which every CPU backend needs, and others; what
            :func:`topcoat.export.precision.plan_precisions` made of an audit, or
            ``PrecisionPlan(precisions=("fp32", "fp16"))`` without one.
        audit: what the plan was made of; its numbers go into the bundle as ``precision.json``.
        calibration: a folder of photographs on which the scales of int8 are found; the bundled ones
            if None.
        engines: TensorRT engines to build from these models. One that this machine cannot run is
            compared where it runs, by ``topcoat verify``.
        timing_cache: for ``tensorrt`` engines, see :func:`topcoat.export.engines.build_engine`.
        photos: a folder of photographs to compare on besides the bundled ones; not for a texture.
        force: make everything anew and replace whatever bundle lies at ``output``; anything else
            there is never touched.
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
        EngineRequestError: an engine's sizes do not fit the network.
        EngineLibraryError: the library that builds an engine cannot be used here.
        EngineBuildError: it refuses the model.
        QuantisationError: the picture does not bear int8.
        topcoat.train.CheckpointError: the weights do not fit the network.
    """
    if "fp32" not in plan.precisions:
        raise ValueError(f"the plan must contain fp32, got {plan.precisions}; CPUs run that")
    place = Path(output).absolute()
    name = checked_name(name if name is not None else place.name.removesuffix(".topcoat"))
    if place.is_symlink():
        place = place.resolve()
    if isinstance(source, Checkpoint):
        source = source_from_checkpoint(source)
    earlier = None if force else _earlier(place, source, name)
    check_place(place, force=force or earlier is not None)
    network = source.network
    _check_weights(network)
    _check_task(source)
    requests = [request.settled(network) for request in engines]
    libraries = {name: find_library(name) for name in {str(r.engine) for r in requests}}
    if earlier is not None:
        plan = earlier.united(plan, measured=audit is not None)
        anew = (photos, calibration) != (None, None) or (
            audit is not None and "precision.json" not in earlier.manifest.files
        )
        if not anew and _holds(earlier, plan, requests, libraries):
            progress("nothing to do: the bundle there holds all of it")
            return _as_it_is(place, earlier, source)
        progress(f"adding to the bundle of the same network at {place.name}")
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

    made = _Models(source, plan, calibration, earlier, progress)
    with staged(place) as stage:
        if texture:
            progress("seams: does a texture repeat without one?")
            prove_tiling(network)
        elif network.halo is not None:
            progress(f"tiles: does an output pixel look no further than {network.halo} pixels?")
            prove_halo(network)
        parts = []
        for precision in made.wanted:
            part = Part(
                file=f"model.{precision}.onnx",
                precision=precision,
                opset=OPSETS.get(precision, OPSET),
                keep_fp32=made.kept(precision),
            )
            (stage / part.file).write_bytes(made.bytes_of(precision))
            parts.append(part)
        memory = memory_per_pixel(made.fp32(), network.size_multiple, network.size_min)
        built = [
            _engine(
                request,
                made,
                libraries[request.engine],
                earlier,
                timing_cache,
                progress,
            )
            for request in requests
        ]
        if earlier is not None:
            kept, outdated = earlier.others(built, made.hashes())
            built += kept
            for engine in outdated:
                progress(
                    f"engine, {engine.kind} {engine.precision}: left out, for its model changed; "
                    "ask for it again"
                )
        for engine in built:
            part = Part(
                file=_engine_file(engine), precision=engine.precision, opset=None, engine=engine
            )
            (stage / part.file).write_bytes(engine.data)
            parts.append(part)
        draft = manifest_of(source, name, memory, stage, parts, ())
        write_json(stage / "manifest.json", draft)  # so that the runtime can open it at all

        compared = engines_for(topcoat.runtime.read_manifest(stage).variants)
        report = measure_parity(stage, network, frames, compared, progress)
        if earlier is not None:
            report = earlier.without_known(report, draft["variants"])

        def exported(bundle: Path | None, report_file: Path) -> Exported:
            return Exported(
                bundle=bundle,
                report_file=report_file,
                report=report,
                engines=tuple(built),
                name=name,
                task=source.task,
                scale=network.scale,
            )

        if not report:
            report_file = place.with_name(f"{place.name.removesuffix('.topcoat')}.parity.json")
            write_json_atomically(report_file, report.to_json())
            return exported(None, report_file)

        write_json(stage / "parity.json", report.to_json())
        notes = {} if earlier is None else earlier.notes()
        if audit is not None:
            notes["precision.json"] = json_text(audit.to_json()).encode()
        if made.quantised is not None:
            notes["quantisation.json"] = json_text(made.quantised.report.to_json()).encode()
        for extra, content in notes.items():
            (stage / extra).write_bytes(content)
        pictures = _write_pictures(stage, network, source.recipe)
        manifest = manifest_of(source, name, memory, stage, parts, report.rows)
        if earlier is not None:
            earlier.keep_rows(manifest["variants"])
        card = card_markdown(manifest, report, source)
        (stage / "card.md").write_text(card, encoding="utf-8")
        manifest["files"] = {
            extra: identity(stage / extra)
            for extra in sorted(["card.md", "parity.json", *notes, *pictures])
        }
        write_json(stage / "manifest.json", manifest)
        topcoat.runtime.verify_files(stage)
        if earlier is not None and not earlier.check_unchanged():
            raise OutputError(
                f"{place} was changed by another program while this export added to it, so it is "
                "left as it is; run the command again"
            )
        put_in_place(stage, place, force=force or earlier is not None)
    return exported(place, place / "parity.json")


def _earlier(place: Path, source: Source, name: str) -> Earlier | None:
    """The bundle that is at the place already, if it is one of the same network by that name."""
    if source.sha256 is None or not place.is_dir():
        return None
    found = earlier_bundle(place)
    if found is None or found.manifest.name != name:
        return None
    # Not the hash alone: the same ONNX file may be read with another range or order of colours.
    origin = json.loads(json.dumps(source.origin()))
    return found if dict(found.manifest.checkpoint) == origin else None


def _holds(
    earlier: Earlier,
    plan: PrecisionPlan,
    requests: Sequence[EngineRequest],
    libraries: Mapping[str, Library],
) -> bool:
    """Whether a bundle has everything already; the plan is united with what it holds."""
    for precision in _files(plan):
        if earlier.model(precision, _kept(plan, precision)) is None:
            return False
    for request in requests:
        model = earlier.model_sha256(request.precision, _kept(plan, request.precision))
        if model is None:
            return False
        if key_of(request, model, libraries[request.engine]) not in earlier.engines:
            return False
    return True


def _as_it_is(place: Path, earlier: Earlier, source: Source) -> Exported:
    return Exported(
        bundle=place,
        report_file=place / "parity.json",
        report=None,
        engines=tuple(earlier.engines.values()),
        name=earlier.manifest.name,
        task=source.task,
        scale=source.network.scale,
    )


def _files(plan: PrecisionPlan) -> tuple[str, ...]:
    """The precisions whose models go into the bundle: no backend runs bf16, it makes engines."""
    return (*(p for p in plan.precisions if p != "bf16"), *(("int8",) if plan.int8 else ()))


def _kept(plan: PrecisionPlan, precision: str) -> tuple[str, ...]:
    """The layers that stay float32 in the model of a precision."""
    if precision in DTYPES:
        return tuple(plan.keep_fp32.get(cast("Precision", precision), ()))
    return ()


class _Models:
    """The ONNX models of an export, each made, or taken from an earlier bundle, when asked for."""

    def __init__(
        self,
        source: Source,
        plan: PrecisionPlan,
        calibration: str | os.PathLike[str] | None,
        earlier: Earlier | None,
        progress: Callable[[str], None],
    ) -> None:
        self._source = source
        self._plan = plan
        self._earlier = earlier
        self._again = calibration is not None
        self._calibration: Sequence[Frame] = ()
        if plan.int8 and (self._again or earlier is None or "int8" not in earlier.models):
            # Now: a folder without photographs is to be said before minutes of work.
            self._calibration = calibration_frames(source.network, calibration, progress)
        self._progress = progress
        self._models: dict[str, bytes] = {}
        self.wanted = _files(plan)
        self.quantised: Quantised | None = None

    def kept(self, precision: str) -> tuple[str, ...]:
        """The layers that stay float32 in it."""
        return _kept(self._plan, precision)

    def bytes_of(self, precision: str) -> bytes:
        """The model as it is written."""
        if precision not in self._models:
            self._models[precision] = self._taken(precision) or self._made(precision)
        return self._models[precision]

    def fp32(self) -> onnx.ModelProto:
        """The float32 model."""
        return onnx.load_from_string(self.bytes_of("fp32"))

    def hashes(self) -> dict[str, str]:
        """Precision -> SHA-256 of every model that was asked for."""
        return {p: hashlib.sha256(data).hexdigest() for p, data in self._models.items()}

    def _taken(self, precision: str) -> bytes | None:
        if self._earlier is None or (precision == "int8" and self._again):
            return None
        return self._earlier.model(precision, self.kept(precision))

    def _made(self, precision: str) -> bytes:
        self._progress(f"ONNX, {precision}")
        if precision == "int8":
            self.quantised = quantise(
                self.fp32(), self._source.network, self._calibration, progress=self._progress
            )
            for line in str(self.quantised.report).splitlines():
                self._progress(line)
            model = self.quantised.model
        else:
            kept = self.kept(precision)
            model = self._source.to_onnx(cast("Precision", precision), keep_fp32=kept)
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def _engine(
    request: EngineRequest,
    models: _Models,
    library: Library,
    earlier: Earlier | None,
    timing_cache: str | os.PathLike[str] | None,
    progress: Callable[[str], None],
) -> BuiltEngine:
    model = models.bytes_of(request.precision)
    where = ", ".join(library.targets(request))
    what = f"engine, {request.engine} {request.precision}, {request.profiles[0]}"
    if more := len(request.profiles) - 1:
        what += f" and {more} more profile{'s' * (more > 1)}"
    key = key_of(request, hashlib.sha256(model).hexdigest(), library)
    if earlier is not None and key in earlier.engines:
        progress(f"{what}: taken from the bundle that is there")
        return earlier.engines[key]
    progress(f"{what}, for {where}")
    built = build_engine(
        model,
        request,
        library,
        keep_fp32=models.kept(request.precision),
        timing_cache=timing_cache,
        progress=progress,
    )
    progress(f"{what}: {len(built.data) / 1e6:.1f} MB in {built.seconds:.1f} s")
    for warning in built.warnings:
        progress(f"  {request.engine} warns: {' '.join(warning.split())}")
    return built


def _engine_file(engine: BuiltEngine) -> str:
    return f"{engine.kind}.{engine.precision}.{engine.info.key[:8]}.engine"


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
