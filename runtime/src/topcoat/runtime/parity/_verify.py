"""Complete the parity matrix of a bundle on the machine that is to run it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from topcoat.runtime._errors import BundleError, MediaError, ParityError, TextureError
from topcoat.runtime.backends import Backend, all_backends
from topcoat.runtime.bundle import TEXTURE, Manifest, read_file
from topcoat.runtime.frames import Frame
from topcoat.runtime.model import Model
from topcoat.runtime.parity._difference import difference, summary
from topcoat.runtime.parity._engines import Engine, engine_here, engines_for
from topcoat.runtime.parity._gates import GATES
from topcoat.runtime.parity._measure import Answer, Answers, measure_engine, open_engine
from topcoat.runtime.parity._png import frame_from_png
from topcoat.runtime.parity._probes import (
    LONGEST_SIDE,
    MOST_PHOTOGRAPHS,
    Group,
    ProbeFrame,
    flat_probes,
    noise_probes,
    picture_probes,
    size_probes,
    synthetic_probes,
)
from topcoat.runtime.parity._record import check_recordable, record_path, record_row
from topcoat.runtime.parity._report import ParityRow, gates_json, machine

GOLDEN = "golden pair"
"""What rows call PyTorch's own answer: golden_out.png, for golden_in.png."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What :func:`topcoat.runtime.verify` found.

    Truthy when no engine failed, and none that this machine can run was left undecided.
    """

    bundle: str
    rows: Sequence[ParityRow]
    """Every engine that was measured, or cannot run on this machine."""
    earlier: Sequence[Engine] = ()
    """Those that had passed for this device before, and were not measured again."""
    machine: dict[str, str] = field(default_factory=dict)
    recorded: bool
    """Whether the rows were written."""
    record: Path | None = None
    """Where they are: manifest.json, or a file of the user's for a built-in model; None if they
    were not written."""

    @property
    def measured(self) -> list[ParityRow]:
        """The rows of engines that were run."""
        return [row for row in self.rows if row.status != "not run"]

    @property
    def undecided(self) -> list[ParityRow]:
        """The rows of engines that this machine can run and of which nothing is proved yet."""
        return [row for row in self.rows if row.undecided]

    def __bool__(self) -> bool:
        return all(self.measured) and not self.undecided

    def to_json(self) -> dict[str, Any]:
        """Every number, as ``topcoat verify --json`` prints it."""
        return {
            "format": "topcoat-verification",
            "format_version": 1,
            "bundle": self.bundle,
            "passed": bool(self),
            "recorded": self.recorded,
            "record": None if self.record is None else str(self.record),
            "machine": dict(self.machine),
            "gates": gates_json(),
            "earlier": [
                {"file": engine.file, "backend": engine.backend, "compute": engine.compute}
                for engine in self.earlier
            ],
            "rows": [row.to_json() for row in self.rows],
        }


class Verifier:
    """One run of :func:`topcoat.runtime.verify`; its arguments and errors are that function's."""

    def __init__(
        self,
        manifest: Manifest,
        backends: Sequence[Backend] | None,
        *,
        record: bool,
        threads: int | None,
        progress: Callable[[str], None],
    ) -> None:
        if record:
            check_recordable(manifest)
        self._manifest = manifest
        self._backends = all_backends() if backends is None else tuple(backends)
        self._record = record
        self._threads = threads
        self._progress = progress
        self._texture = manifest.task == TEXTURE
        self._golden = _golden(manifest)
        self._rows: list[ParityRow] = []

    def run(self, photos: str | Path | None, *, everything: bool) -> Verification:
        """Measure what is to be measured."""
        own = _own_photographs(self._manifest, photos, self._progress)
        todo, earlier = self._plan(everything=everything)
        if todo:
            self._run(todo, own)
        return Verification(
            bundle=self._manifest.name,
            rows=self._rows,
            earlier=earlier,
            machine=machine(),
            recorded=self._record,
            record=record_path(self._manifest) if self._record else None,
        )

    def _plan(self, *, everything: bool) -> tuple[list[Engine], list[Engine]]:
        todo: list[Engine] = []
        earlier: list[Engine] = []
        files = {variant.file: variant for variant in self._manifest.variants}
        for engine in engines_for(self._manifest.variants, self._backends):
            variant = files[engine.file]
            offer = engine_here(engine, variant, self._backends)
            if isinstance(offer, str):
                self._rows.append(ParityRow(engine=engine, status="not run", reason=offer))
                continue
            row = variant.parity_row(engine.backend, engine.compute, offer.device)
            passed = row is not None and row.passed
            (earlier if passed and not everything else todo).append(engine)
        return todo, earlier

    def _run(self, todo: list[Engine], own: Sequence[ProbeFrame]) -> None:
        probe, _ = self._golden
        reference = self._reference_engine()
        if reference is None:
            for engine in todo:
                self._measure(engine, [probe], self._exact)
            return
        if reference in todo:
            todo = [engine for engine in todo if engine != reference]
            tiling = [p for p in self._frames() if p.group == "tiling"]
            row = self._measure(reference, [probe, *tiling], self._exact)
            if not row:
                reason = f"there is nothing to compare it with: {reference} failed here"
                self._rows += [
                    ParityRow(engine=e, status="not run", reason=reason, undecided=True)
                    for e in todo
                ]
                return
        if not todo:
            return
        with open_engine(self._manifest, reference, self._backends, self._threads) as model:
            self._check_reference(model, reference)
            answers = Answers(_Asked(self._golden, model, _judged_colours(self._manifest)))
            frames = [probe, *self._frames(), *own]
            for engine in todo:
                self._measure(engine, frames, answers)

    def _reference_engine(self) -> Engine | None:
        """The fp32 model on ONNX Runtime's CPU, if it can run here."""
        for engine in engines_for(self._manifest.variants, self._backends):
            if (engine.backend, engine.compute) == ("onnxruntime-cpu", "fp32"):
                variant = next(v for v in self._manifest.variants if v.file == engine.file)
                if not isinstance(engine_here(engine, variant, self._backends), str):
                    return engine
        return None

    def _check_reference(self, model: Model, reference: Engine) -> None:
        probe, wanted = self._golden
        found = summary([difference(wanted, model.process(probe.frame))])
        if missed := GATES["fp32"][probe.group].failures(found):
            raise ParityError(
                f"golden_out.png is not what {reference} gives for golden_in.png here"
                f" ({'; '.join(missed)}), so nothing can be compared with either; copy the bundle"
                " again or export it again"
            )

    def _exact(self, probe: ProbeFrame) -> Answer | None:
        golden, wanted = self._golden
        if probe.group == "tiling":
            return Answer(frame=None)
        return Answer(frame=wanted) if probe is golden else None

    def _frames(self) -> list[ProbeFrame]:
        """What is compared besides the golden picture, made of it or of noise."""
        rule, scale = self._manifest.size, self._manifest.scale
        if self._texture:
            return noise_probes(rule.multiple, rule.min)
        probe, _ = self._golden
        pictures = picture_probes(probe.name, probe.frame)
        return [
            *pictures,
            *size_probes([probe, *pictures], rule.min, scale),
            *synthetic_probes(rule.min, scale),
            *(flat_probes(scale) if scale > 1 else ()),
        ]

    def _measure(
        self,
        engine: Engine,
        frames: Sequence[ProbeFrame],
        answers: Callable[[ProbeFrame], Answer | None],
    ) -> ParityRow:
        row = measure_engine(
            self._manifest,
            engine,
            frames,
            answers,
            progress=self._progress,
            backends=self._backends,
            threads=self._threads,
        )
        row = dataclasses.replace(row, reference=self._compared_with(row))
        if self._record:
            record_row(self._manifest, row)
        self._rows.append(row)
        return row

    def _compared_with(self, row: ParityRow) -> str:
        golden, _ = self._golden
        exact = any(probe is golden for probe, _ in row.frames)
        model = any(probe is not golden and probe.group != "tiling" for probe, _ in row.frames)
        return ", ".join([GOLDEN] * exact + ["onnxruntime-cpu fp32"] * model)


class _Asked:
    """The golden answer for the golden picture, the fp32 model's for any other."""

    def __init__(
        self, golden: tuple[ProbeFrame, Frame], model: Model, judged: frozenset[str]
    ) -> None:
        self._golden = golden
        self._model = model
        self._judged = judged

    def __call__(self, probe: ProbeFrame) -> Answer:
        golden, wanted = self._golden
        if probe is golden:
            return Answer(frame=wanted)
        if probe.group == "tiling":
            return Answer(frame=None)
        flat = None
        if probe.group == "flat":
            # An answer in 8 bits does not say how near to a rounding edge it was: the export does.
            colours = (f"#{bytes(colour).hex()}" for colour in probe.frame[:, 0, 0])
            flat = np.array([colour in self._judged for colour in colours])
        return Answer(frame=self._model.process(probe.frame), flat=flat)


def _golden(manifest: Manifest) -> tuple[ProbeFrame, Frame]:
    """Read the golden pair: a frame, and PyTorch's answer to it."""
    pictures = []
    for name in ("golden_in.png", "golden_out.png"):
        try:
            pictures.append(frame_from_png(read_file(manifest, name)))
        except ValueError as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(
                f"{manifest.folder / name} {error}; export the bundle again"
            ) from error
    frame, answer = pictures
    height, width = (side * manifest.scale for side in frame.shape[:2])
    if answer.shape[:2] != (height, width):
        raise BundleError(
            f"{manifest.folder / 'golden_out.png'} has {answer.shape[1]}x{answer.shape[0]} pixels,"
            f" wanted {width}x{height} for golden_in.png; export the bundle again"
        )
    group: Group = "noise" if manifest.task == TEXTURE else "photographs"
    return ProbeFrame(name="golden_in.png", group=group, frame=frame), answer


def _judged_colours(manifest: Manifest) -> frozenset[str]:
    """Return the colours that the network leaves flat, as the export found them."""
    if "parity.json" not in manifest.files:
        return frozenset()
    try:
        judged = json.loads(read_file(manifest, "parity.json")).get("flat_judged", [])
    except (ValueError, AttributeError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(
            f"{manifest.folder / 'parity.json'} is not the JSON of an export; export the bundle"
            " again"
        ) from error
    return frozenset(colour for colour in judged if isinstance(colour, str))


def _own_photographs(
    manifest: Manifest, photos: str | Path | None, progress: Callable[[str], None]
) -> list[ProbeFrame]:
    """Read a user's photographs as ``topcoat run`` does, reduced to what is quickly compared."""
    if photos is None:
        return []
    if manifest.task == TEXTURE:
        raise TextureError(
            f"photographs were given ({photos}), but {manifest.name} is a texture, which is made"
            " from noise; leave them out"
        )
    from topcoat.runtime import _pictures

    folder = Path(photos)
    _pictures.require_pillow()
    from PIL import Image

    if not folder.is_dir():
        raise MediaError(f"{folder} is not a folder; give a folder of photographs")
    paths = sorted(_pictures.find_pictures(folder))
    if len(paths) > MOST_PHOTOGRAPHS:
        spaced = np.linspace(0, len(paths) - 1, MOST_PHOTOGRAPHS).astype(int)
        paths = [paths[i] for i in spaced]
    longest = max(1, LONGEST_SIDE // manifest.scale)
    found = []
    for path in paths:
        try:
            picture = Image.fromarray(_pictures.read_picture(path).frame)
        except MediaError as error:
            progress(f"skipped: {error}")
            continue
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        name = path.relative_to(folder).as_posix()
        frame = np.array(picture, dtype=np.uint8)
        found.append(ProbeFrame(name=name, group="photographs", frame=frame))
    if not found:
        raise MediaError(f"{folder} holds no readable photograph; give another folder")
    return found
