"""Prove that an engine equals its network: the same frames through both, compared in 8-bit steps.

The reference is the trained network in PyTorch, float32, with padding and cropping written here a
second time. What is compared with it runs through ``topcoat.runtime``, as it will run later, so the
runtime's padding, layouts and choice of a model file are covered too.
"""

import math
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import topcoat.runtime
from topcoat.export._errors import ParityError
from topcoat.export._threads import half_the_cores
from topcoat.export.flat import Flatness, areas_to_judge, flatness, together
from topcoat.export.probes import Frame, ProbeFrame
from topcoat.export.tiling import arrangements
from topcoat.train.networks import FrameNetwork

TILE = 32
"""Side of the tiles among which the worst one is looked for: an error that hides in one corner."""

Steps: TypeAlias = NDArray[np.int16]
Status: TypeAlias = Literal["passed", "failed", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a comparison must reach on a group of frames; None: not asked for."""

    max_steps: int | None = None
    """Largest difference of one value, in 8-bit steps."""
    psnr_db: float | None = None
    """Peak signal-to-noise ratio of all frames taken together, at least."""
    worst_psnr_db: float | None = None
    """... and of the worst frame alone, at least."""
    within_4_steps: float | None = None
    """Share of values that differ by 4 steps or fewer, in the worst frame, at least."""
    tone_steps: float | None = None
    """Largest difference between the mean colours of a tile, in 8-bit steps.

    In a smooth region a trained network draws strokes of its own, and the last bit decides where:
    an engine of lower precision draws equally good ones elsewhere. What must not change is the
    colour they add up to.
    """
    flat_steps: int | None = None
    """Largest difference between two pixels of an area that the network itself leaves flat."""

    def failures(self, found: "Summary") -> list[str]:
        """Say in words what is missed; empty if nothing is."""
        missed = []
        if self.max_steps is not None and found.max_steps > self.max_steps:
            missed.append(f"off by {found.max_steps} steps, allowed {self.max_steps}")
        if self.psnr_db is not None and found.psnr_db < self.psnr_db:
            missed.append(f"PSNR {found.psnr_db:.1f} dB, wanted {self.psnr_db:g}")
        if self.worst_psnr_db is not None and found.worst_psnr_db < self.worst_psnr_db:
            missed.append(
                f"PSNR {found.worst_psnr_db:.1f} dB in one frame, wanted {self.worst_psnr_db:g}"
            )
        if self.within_4_steps is not None and found.within_4_steps < self.within_4_steps:
            missed.append(
                f"{found.within_4_steps:.2%} of values within 4 steps, "
                f"wanted {self.within_4_steps:.0%}"
            )
        if self.tone_steps is not None and found.tone_steps > self.tone_steps:
            missed.append(
                f"a tile's mean colour off by {found.tone_steps:.1f} steps, "
                f"allowed {self.tone_steps:g}"
            )
        flat = found.flat
        if self.flat_steps is not None and flat is not None and flat.max_steps > self.flat_steps:
            missed.append(
                f"{len(flat.uneven)} of {flat.judged} flat areas uneven, by up to "
                f"{flat.max_steps} step{'s' * (flat.max_steps > 1)}, allowed {self.flat_steps}"
            )
        return missed

    def to_json(self) -> dict[str, float]:
        """Only what is asked for."""
        asked = {
            "max_steps": self.max_steps,
            "psnr_db": self.psnr_db,
            "worst_psnr_db": self.worst_psnr_db,
            "within_4_steps": self.within_4_steps,
            "tone_steps": self.tone_steps,
            "flat_steps": self.flat_steps,
        }
        return {name: value for name, value in asked.items() if value is not None}


GATES: Mapping[str, Mapping[str, Gate]] = {
    "fp32": {
        "photographs": Gate(max_steps=1, psnr_db=75, worst_psnr_db=65),
        "sizes": Gate(max_steps=1),
        "tiny": Gate(max_steps=1),
        "synthetic": Gate(max_steps=2),
        "flat": Gate(max_steps=1, flat_steps=0),
        "noise": Gate(max_steps=1, psnr_db=75, worst_psnr_db=65),
        "tiling": Gate(max_steps=1),
    },
    "fp16": {
        "photographs": Gate(max_steps=4, psnr_db=50, worst_psnr_db=45),
        "sizes": Gate(max_steps=4),
        "tiny": Gate(max_steps=16, worst_psnr_db=40, tone_steps=2),
        "synthetic": Gate(worst_psnr_db=35, tone_steps=2),
        "flat": Gate(max_steps=4, flat_steps=0),
        "noise": Gate(psnr_db=50, worst_psnr_db=45, within_4_steps=0.99),
        "tiling": Gate(max_steps=4),
    },
    "bf16": {
        "photographs": Gate(psnr_db=45, worst_psnr_db=40, within_4_steps=0.99),
        "sizes": Gate(worst_psnr_db=40, within_4_steps=0.97),
        "tiny": Gate(worst_psnr_db=12, tone_steps=24),
        "synthetic": Gate(worst_psnr_db=12, tone_steps=16),
        "flat": Gate(worst_psnr_db=40, within_4_steps=0.97, flat_steps=1),
        "noise": Gate(psnr_db=45, worst_psnr_db=40, within_4_steps=0.99),
        "tiling": Gate(worst_psnr_db=40, within_4_steps=0.97),
    },
}
"""Compute precision -> group of frames -> gate. docs/export.md says where the numbers come from."""


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


def engines_for(files: Mapping[str, str]) -> list[Engine]:
    """List every engine that the runtime may choose.

    Args:
        files: precision -> file name, e.g. ``{"fp32": "model.fp32.onnx"}``.
    """
    rows = (
        ("fp32", "onnxruntime-cpu", "fp32", True),
        ("fp32", "openvino-cpu", "fp32", False),
        ("fp32", "openvino-cpu", "bf16", False),
        ("fp16", "onnxruntime-cpu", "fp16", True),
        ("fp16", "openvino-cpu", "fp16", False),
    )
    return [
        Engine(
            file=files[precision],
            precision=precision,
            backend=backend,
            compute=compute,
            required=required,
        )
        for precision, backend, compute, required in rows
        if precision in files
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The 32×32 tile with the largest mean difference."""

    frame: int
    """Index in the batch; 0 for a single frame."""
    top: int
    left: int
    mean_steps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far one frame, or batch, is from its reference, in 8-bit steps."""

    values: int
    """How many values were compared."""
    max_steps: int
    mean_steps: float
    mean_squared: float
    """In squared steps; what the PSNR is made of."""
    changed: float
    """Share of values that differ at all, 0 to 1."""
    within_4_steps: float
    """Share of values that differ by at most 4 steps, 0 to 1."""
    tone_steps: float
    """Largest difference between the mean colours (R, G or B) of a 32×32 tile."""
    worst_tile: Tile
    flat: Flatness | None = None
    """How flat it is; only of a batch of frames of one colour each."""

    @property
    def psnr_db(self) -> float:
        """Infinite for equal frames; null in JSON."""
        return _psnr_db(self.mean_squared)

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        tile = self.worst_tile
        return {
            "values": self.values,
            "max_steps": self.max_steps,
            "mean_steps": self.mean_steps,
            "changed": self.changed,
            "within_4_steps": self.within_4_steps,
            "psnr_db": _finite(self.psnr_db),
            "tone_steps": self.tone_steps,
            "worst_tile": {
                "frame": tile.frame,
                "top": tile.top,
                "left": tile.left,
                "mean_steps": tile.mean_steps,
            },
            **_flat_json(self.flat),
        }


def difference(reference: Frame, candidate: Frame) -> Difference:
    """Measure how far a frame is from its reference.

    Args:
        reference: (H, W, 3) or (N, H, W, 3), uint8.
        candidate: of the same shape, uint8.

    Raises:
        ParityError: shapes or types differ, or there is nothing to compare.

    >>> flat = np.zeros((8, 8, 3), np.uint8)
    >>> difference(flat, flat + np.uint8(2)).max_steps
    2
    """
    if reference.dtype != np.uint8 or candidate.dtype != np.uint8:
        raise ParityError(
            f"frames must be uint8, got {reference.dtype} and {candidate.dtype}; round both first"
        )
    if reference.shape != candidate.shape:
        raise ParityError(
            f"frames of {reference.shape} and {candidate.shape} cannot be compared; "
            "they must have one shape"
        )
    if reference.ndim not in (3, 4) or reference.size == 0:
        raise ParityError(
            f"a frame of shape {reference.shape} compares nothing; give (H, W, 3) or (N, H, W, 3)"
        )
    signed = reference.astype(np.int16) - candidate
    steps = np.abs(signed)  # at most 255
    return Difference(
        values=steps.size,
        max_steps=int(steps.max()),
        mean_steps=float(steps.mean(dtype=np.float64)),
        mean_squared=float(np.mean(np.square(steps, dtype=np.int32), dtype=np.float64)),
        changed=float(np.mean(steps > 0)),
        within_4_steps=float(np.mean(steps <= 4)),
        tone_steps=float(np.abs(_tile_means(signed)).max()),
        worst_tile=_worst_tile(steps),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A group of frames: the worst of each measure, and the PSNR of all together."""

    frames: int
    max_steps: int
    changed: float
    within_4_steps: float
    psnr_db: float
    """Of all frames taken together, each value counting once."""
    worst_psnr_db: float
    """Of the worst frame."""
    tone_steps: float
    flat: Flatness | None = None
    """Of all its flat areas; None if it has none."""

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "frames": self.frames,
            "max_steps": self.max_steps,
            "changed": self.changed,
            "within_4_steps": self.within_4_steps,
            "psnr_db": _finite(self.psnr_db),
            "worst_psnr_db": _finite(self.worst_psnr_db),
            "tone_steps": self.tone_steps,
            **_flat_json(self.flat),
        }


def summary(differences: Iterable[Difference]) -> Summary:
    """Summarise frames by their worst values, and by the PSNR of all of them together.

    Raises:
        ParityError: there are none; nothing compared is nothing proved.
    """
    found = list(differences)
    if not found:
        raise ParityError("no frames were compared; give at least one")
    return Summary(
        frames=len(found),
        max_steps=max(d.max_steps for d in found),
        changed=max(d.changed for d in found),
        within_4_steps=min(d.within_4_steps for d in found),
        psnr_db=_psnr_db(
            sum(d.mean_squared * d.values for d in found) / sum(d.values for d in found)
        ),
        worst_psnr_db=min(d.psnr_db for d in found),
        tone_steps=max(d.tone_steps for d in found),
        flat=together(d.flat for d in found if d.flat is not None),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """One engine, all frames. Truthy when it passed."""

    engine: Engine
    status: Status
    reason: str = ""
    """Why it was not run or what broke; empty otherwise."""
    frames: Sequence[tuple[ProbeFrame, Difference]] = ()

    def __bool__(self) -> bool:
        return self.status == "passed"

    @property
    def groups(self) -> dict[str, Summary]:
        """What was measured, by group of frames."""
        return _groups(self.frames)

    @property
    def failures(self) -> list[str]:
        """Every missed gate, in words."""
        return ([self.reason] if self.status == "failed" and self.reason else []) + _failures(
            self.engine.compute, self.frames
        )

    def to_json(self) -> dict[str, Any]:
        """Every number of the row; see docs/export.md."""
        engine = self.engine
        return {
            "file": engine.file,
            "backend": engine.backend,
            "compute": engine.compute,
            "required": engine.required,
            "status": self.status,
            "reason": self.reason or None,
            "failures": self.failures,
            "groups": {name: found.to_json() for name, found in self.groups.items()},
            "frames": [
                {
                    "name": probe.name,
                    "group": probe.group,
                    "shape": list(probe.frame.shape),
                    **measured.to_json(),
                }
                for probe, measured in self.frames
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """All engines of a bundle. Truthy when every required one passed."""

    rows: Sequence[ParityRow]
    machine: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(row.engine.required for row in self.rows):
            raise ParityError("no required engine was compared; compare at least one")

    def __bool__(self) -> bool:
        return all(row for row in self.rows if row.engine.required)

    def to_json(self) -> dict[str, Any]:
        """The content of parity.json; see docs/export.md."""
        return {
            "format": "topcoat-parity",
            "format_version": 1,
            "passed": bool(self),
            "reference": "PyTorch, fp32, rounded to 8 bits",
            "machine": dict(self.machine),
            "gates": {
                compute: {group: gate.to_json() for group, gate in groups.items()}
                for compute, groups in GATES.items()
            },
            "rows": [row.to_json() for row in self.rows],
        }


def measure_parity(
    bundle: Path,
    network: FrameNetwork,
    frames: Sequence[ProbeFrame],
    engines: Sequence[Engine],
    progress: Callable[[str], None] = lambda _: None,
) -> ParityReport:
    """Compare every engine of a bundle with the network, on every frame.

    Args:
        bundle: a folder that the runtime can open; its parity rows may still be missing.
        network: the reference; float32, evaluation mode.
        frames: must hold photographs, or noise for a texture; an engine that meets none of what it
            is made for has proved nothing. One of the group ``tiling`` is compared with the
            engine's own answer: once it is laid out otherwise, the answer must be, too.
        engines: from :func:`engines_for`.
        progress: is told what is being done.

    Returns:
        A report with a row per engine. An engine that cannot run on this machine has a row that
        says so; it did not pass.

    Raises:
        ParityError: there are no engines, no photographs, or a frame without pixels.
    """
    if not engines:
        raise ParityError("no engines to compare; give at least one")
    if not any(probe.group in ("photographs", "noise") for probe in frames):
        raise ParityError("no photographs and no noise to compare on; give at least one")
    progress(f"PyTorch fp32 on {len(frames)} frames")
    with half_the_cores():
        references = [_reference(network, probe) for probe in frames]
    rows = []
    for engine in engines:
        progress(str(engine))
        rows.append(_measure(bundle, engine, frames, references, network.size_multiple))
    return ParityReport(rows=rows, machine=_machine())


def reference_frame(network: FrameNetwork, frame: Frame) -> Frame:
    """Run the network itself on a frame: what every engine is compared with.

    Args:
        network: float32, evaluation mode.
        frame: (H, W, 3) or (N, H, W, 3), uint8, of any size.

    Returns:
        (H*scale, W*scale, 3), or a batch of them: uint8, rounded half to even.
    """
    result = _rounded(_answer(network, frame))
    return result if frame.ndim == 4 else result[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reference:
    """What the network itself makes of a probe."""

    frame: Frame | None
    """None for a probe of the group ``tiling``."""
    flat: NDArray[np.bool_] | None
    """Which frames of a batch of flat ones it leaves flat; None for any other probe."""


def _reference(network: FrameNetwork, probe: ProbeFrame) -> _Reference:
    if probe.group == "tiling":
        return _Reference(frame=None, flat=None)
    if probe.group != "flat":
        return _Reference(frame=reference_frame(network, probe.frame), flat=None)
    answer = _answer(network, probe.frame)
    return _Reference(frame=_rounded(answer), flat=areas_to_judge(answer.numpy()))


def _answer(network: FrameNetwork, frame: Frame) -> Tensor:
    """(H, W, 3) or (N, H, W, 3), uint8 -> (N, H*scale, W*scale, 3), 0 to 255, not rounded."""
    batch = torch.tensor(frame, dtype=torch.float32) / 255
    planes = (batch if frame.ndim == 4 else batch[None]).permute(0, 3, 1, 2)  # (N, 3, H, W)
    height, width = planes.shape[2:]
    multiple, least, scale = network.size_multiple, network.size_min, network.scale
    down, right = (
        max(least, math.ceil(side / multiple) * multiple) - side for side in (height, width)
    )
    with torch.inference_mode():
        styled = network(F.pad(planes, (0, right, 0, down), mode="replicate"))
    styled = styled[:, :, : height * scale, : width * scale]
    answer: Tensor = (styled.clamp(0, 1) * 255).permute(0, 2, 3, 1)
    return answer


def _rounded(answer: Tensor) -> Frame:
    frame: Frame = answer.round().to(torch.uint8).contiguous().numpy()
    return frame


def _measure(
    bundle: Path,
    engine: Engine,
    frames: Sequence[ProbeFrame],
    references: Sequence[_Reference],
    multiple: int,
) -> ParityRow:
    try:
        with _opened(bundle, engine) as model:
            measured = [
                compared
                for probe, reference in zip(frames, references, strict=True)
                for compared in _compared(model, probe, reference, multiple)
            ]
    except (topcoat.runtime.BackendError, ParityError) as error:
        absent = _why_absent(error, engine)
        if absent is not None:
            return ParityRow(engine=engine, status="not run", reason=absent)
        # It is here but fails, or answers in another size: that is a result, not an accident.
        return ParityRow(engine=engine, status="failed", reason=str(error))
    failed = _failures(engine.compute, measured)
    return ParityRow(engine=engine, status="failed" if failed else "passed", frames=measured)


def _compared(
    model: topcoat.runtime.Model, probe: ProbeFrame, reference: _Reference, multiple: int
) -> Iterator[tuple[ProbeFrame, Difference]]:
    candidate = model.process(probe.frame)
    if reference.frame is None:
        for layout in arrangements(multiple):
            noise = np.ascontiguousarray(layout.arrange(probe.frame))
            wanted = layout.arrange(candidate)
            named = replace(probe, name=f"{probe.name}, {layout.name}", frame=noise)
            yield named, difference(wanted, model.process(noise))
        return
    found = difference(reference.frame, candidate)
    if reference.flat is not None:
        found = replace(found, flat=flatness(probe.frame, candidate, reference.flat))
    yield probe, found


def _why_absent(error: Exception, engine: Engine) -> str | None:
    """The runtime's reason why this machine lacks the engine; None if the engine is here."""
    explanation = getattr(error, "explanation", None)  # only where nothing could be chosen
    if explanation is None:
        return None
    for candidate in explanation.candidates:
        # compute is None where the backend was ruled out before precisions were looked at.
        if candidate.backend == engine.backend and candidate.compute in (None, engine.compute):
            return str(candidate.reason)
    return str(error)


class _opened:  # noqa: N801 - a context manager, used like a function
    """Open one engine, and make sure that it is the one that was asked for."""

    def __init__(self, bundle: Path, engine: Engine) -> None:
        with warnings.catch_warnings():
            # The runtime warns that this engine was not verified: that is what happens here.
            warnings.simplefilter("ignore", topcoat.runtime.UnverifiedWarning)
            self.model = topcoat.runtime.open(
                bundle, backend=engine.backend, precision=engine.compute, allow_unverified=True
            )
        chosen = self.model.explain().chosen
        came = chosen and (chosen.backend, chosen.compute, chosen.variant)
        if came != (engine.backend, engine.compute, engine.file):
            self.model.close()
            raise ParityError(f"asked for {engine}, the runtime opened {came}")

    def __enter__(self) -> topcoat.runtime.Model:
        return self.model

    def __exit__(self, *_: object) -> None:
        self.model.close()


def _groups(frames: Iterable[tuple[ProbeFrame, Difference]]) -> dict[str, Summary]:
    by_group: dict[str, list[Difference]] = {}
    for probe, measured in frames:
        by_group.setdefault(probe.group, []).append(measured)
    return {group: summary(found) for group, found in by_group.items()}


def _failures(compute: str, frames: Iterable[tuple[ProbeFrame, Difference]]) -> list[str]:
    return [
        f"{group}: {missed}"
        for group, found in _groups(frames).items()
        for missed in GATES[compute][group].failures(found)
    ]


def _tile_means(values: Steps) -> NDArray[np.float64]:
    """(H, W, 3) or (N, H, W, 3) -> (N, tiles down, tiles across, 3); border tiles are smaller."""
    batch = values if values.ndim == 4 else values[None]
    rows, columns = (np.arange(0, side, TILE) for side in batch.shape[1:3])
    sums = np.add.reduceat(batch, rows, axis=1, dtype=np.int64)
    sums = np.add.reduceat(sums, columns, axis=2)
    heights = np.diff(rows, append=batch.shape[1])
    widths = np.diff(columns, append=batch.shape[2])
    means: NDArray[np.float64] = sums / (heights[:, None] * widths)[..., None]
    return means


def _worst_tile(steps: Steps) -> Tile:
    means = _tile_means(steps).mean(axis=3)
    frame, row, column = np.unravel_index(int(means.argmax()), means.shape)
    return Tile(
        frame=int(frame),
        top=TILE * int(row),
        left=TILE * int(column),
        mean_steps=float(means[frame, row, column]),
    )


def _psnr_db(mean_squared: float) -> float:
    return 10 * math.log10(255**2 / mean_squared) if mean_squared else math.inf


def _flat_json(flat: Flatness | None) -> dict[str, Any]:
    return {} if flat is None else {"flat": flat.to_json()}


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None


def _machine() -> dict[str, str]:
    return {"processor": _processor(), "system": platform.system(), "torch": torch.__version__}


def _processor() -> str:
    def lines() -> Iterator[str]:
        try:
            yield from Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            return

    for line in lines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
