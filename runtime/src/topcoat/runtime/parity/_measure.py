"""Run the same frames through a reference and through every engine, and compare."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._choice import choose
from topcoat.runtime._errors import (
    BackendError,
    BackendUnavailableError,
    DeviceLostError,
    DeviceMemoryError,
    FrameMemoryError,
    FrameOutsideProfileError,
    ParityError,
    UnverifiedWarning,
)
from topcoat.runtime._textures import nearest_texture_size
from topcoat.runtime.backends import Backend, all_backends, default_threads, find_backend
from topcoat.runtime.bundle import TEXTURE, Manifest, Profile, SizeRule, read_manifest
from topcoat.runtime.frames import Frame, fit_size
from topcoat.runtime.model import Model
from topcoat.runtime.parity._difference import Difference, difference
from topcoat.runtime.parity._engines import Engine, engine_here
from topcoat.runtime.parity._flat import areas_to_judge, flatness
from topcoat.runtime.parity._layouts import arrangements
from topcoat.runtime.parity._probes import ProbeFrame, profile_probes
from topcoat.runtime.parity._report import (
    COMPARED,
    ParityReport,
    ParityRow,
    machine,
    missed_gates,
)

PRIMARY = ("photographs", "noise")
"""Groups of what networks are made for; an engine that met none of them has proved nothing."""

_LARGEST = 1920 * 1088
"""Input pixels of the largest frame of an engine's sizes that a reference is asked for where the
bundle does not say how much memory it takes, or the system not how much there is."""


_TO_COME = "not reached"
"""What is said of a size until a frame of it was compared."""


class Reference(Protocol):
    """The network itself: what every engine is compared with."""

    @property
    def name(self) -> str:
        """For people, e.g. "PyTorch fp32"."""

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along each axis."""

    @property
    def size_multiple(self) -> int:
        """Height and width that the network itself takes are multiples of this."""

    @property
    def size_min(self) -> int:
        """... and at least this."""

    def answer(self, frame: Frame) -> NDArray[np.float32]:
        """Answer a frame of any size; padding and cropping are the reference's own.

        Args:
            frame: (H, W, 3) or (N, H, W, 3), uint8; of a texture, a size that it makes.

        Returns:
            (N, H * scale, W * scale, 3), 0 to 255, not rounded, finite; N is 1 for one frame.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What the reference makes of a probe."""

    frame: Frame | None
    """None for a probe of the group ``tiling``, which is compared with itself."""
    flat: NDArray[np.bool_] | None = None
    """Which frames of a batch of flat ones it leaves flat; None for any other probe."""


def measure_parity(
    bundle: str | Path,
    reference: Reference,
    frames: Sequence[ProbeFrame],
    engines: Sequence[Engine],
    progress: Callable[[str], None] = lambda _: None,
) -> ParityReport:
    """Compare every engine of a bundle with its network, on every frame.

    Args:
        bundle: a folder that the runtime can open; its parity rows may still be missing.
        reference: the network.
        frames: must hold photographs, or noise for a texture; an engine that meets none of what it
            is made for has proved nothing. One of the group ``tiling`` is compared with the
            engine's own answer: once it is laid out otherwise, the answer must be, too. A built
            engine is compared on those that it takes, and on frames of its own sizes.
        engines: from :func:`engines_for`.
        progress: is told what is being done.

    Returns:
        A report with a row per engine. An engine that cannot run on this machine has a row that
        says so; it did not pass.

    Raises:
        ParityError: there are no engines, no photographs, or a frame without pixels.
        BundleError: the bundle cannot be read.
    """
    if not engines:
        raise ParityError("no engines to compare; give at least one")
    if not any(probe.group in PRIMARY for probe in frames):
        raise ParityError("no photographs and no noise to compare on; give at least one")
    manifest = read_manifest(bundle)
    progress(f"{reference.name} on {len(frames)} frames")
    answers = Answers(lambda probe: answer_of(reference, probe))
    for probe in frames:
        answers(probe)
    rows = []
    for engine in engines:
        rows.append(
            measure_engine(
                manifest, engine, frames, answers, reference=reference.name, progress=progress
            )
        )
    return ParityReport(rows=rows, machine=machine(), flat_judged=answers.flat_judged())


def answer_of(reference: Reference, probe: ProbeFrame) -> Answer:
    """Ask a reference for its answer to a probe, rounded half to even."""
    if probe.group == "tiling":
        return Answer(frame=None)
    exact = reference.answer(probe.frame)
    wanted = exact.round().clip(0, 255).astype(np.uint8)
    return Answer(
        frame=wanted if probe.frame.ndim == 4 else wanted[0],
        flat=areas_to_judge(exact) if probe.group == "flat" else None,
    )


class Answers:
    """A reference's answers, each asked for once."""

    def __init__(self, ask: Callable[[ProbeFrame], Answer]) -> None:
        self._ask = ask
        self._known: dict[tuple[object, ...], tuple[ProbeFrame, Answer]] = {}

    def __call__(self, probe: ProbeFrame) -> Answer:
        """Return the answer to a probe."""
        # Engines of the same sizes have frames of their own that are equal.
        key = (probe.group, probe.frame.shape, hashlib.sha256(probe.frame.tobytes()).digest())
        if key not in self._known:
            self._known[key] = (probe, self._ask(probe))
        return self._known[key][1]

    def flat_judged(self) -> tuple[str, ...]:
        """Return the colours of the flat frames that the reference leaves flat, ``#rrggbb``."""
        colours = {
            f"#{bytes(colour).hex()}": None
            for probe, answer in self._known.values()
            if answer.flat is not None
            for colour in probe.frame[answer.flat][:, 0, 0]
        }
        return tuple(colours)


def measure_engine(
    manifest: Manifest,
    engine: Engine,
    frames: Sequence[ProbeFrame],
    answers: Callable[[ProbeFrame], Answer | None],
    *,
    reference: str = "",
    progress: Callable[[str], None] = lambda _: None,
    backends: Sequence[Backend] | None = None,
    threads: int | None = None,
) -> ParityRow:
    """Compare one engine on every frame that it takes.

    A built engine must be compared at the size that it was tuned for. Where memory is short for
    larger frames than that alone, the rest decides, and the row names the sizes that are missing.

    Args:
        manifest: of the bundle.
        engine: one of its engines.
        frames: at least one of what the network is made for.
        answers: gives the reference's answer to a probe; None where there is no reference for it.
        reference: its name, for the row.
        progress: is told which engine is run, if it can be.
        backends: those to look for the engine's in; all that this version knows if None.
        threads: of a CPU session; None takes the runtime's default.

    Returns:
        A row that passed, failed, or was not run: because this machine cannot (the backend or the
        device is missing, the engine is for another one), or, marked as undecided, because it could
        not be run to the end. An engine on whose frames the device stops working has failed.
    """
    known = all_backends() if backends is None else tuple(backends)
    variant = next(v for v in manifest.variants if v.file == engine.file)
    offer = engine_here(engine, variant, known)
    if isinstance(offer, str):
        return ParityRow(engine=engine, status="not run", reason=offer)
    progress(str(engine))
    backend = find_backend(engine.backend, known)

    built = _BuiltSizes(manifest, () if variant.engine is None else variant.engine.profiles)

    def not_run(reason: object) -> ParityRow:
        return ParityRow(engine=engine, status="not run", reason=str(reason), undecided=True)

    def failed(reason: object) -> ParityRow:
        return ParityRow(
            engine=engine,
            status="failed",
            reason=str(reason),
            device=offer.device,
            where=where,
            sizes=built.found(),
        )

    where = _where(backend, offer.device)
    taken = built.taken(frames)
    if (reason := built.untuned(over=False)) is not None:
        return not_run(reason)
    if not any(probe.group in PRIMARY for probe in taken):
        return not_run("it takes no frame for which a reference can be had in this memory")
    measured: list[tuple[ProbeFrame, Difference]] = []
    try:
        model = open_engine(manifest, engine, known, threads)
    except BackendUnavailableError as error:
        return ParityRow(engine=engine, status="not run", reason=str(error))
    except (DeviceMemoryError, DeviceLostError) as error:
        # Lost before it ran a frame: another program's or engine's doing.
        return not_run(error)
    except BackendError as error:
        # It is here and does not load: that is a result, not an accident.
        return failed(error)
    with model:
        for probe in taken:
            answer = answers(probe)
            if answer is None:
                built.left_out(probe, "nothing here can be its reference")
                continue
            try:
                compared = list(compare(model, probe, answer))
            except FrameOutsideProfileError:
                continue
            except (DeviceMemoryError, FrameMemoryError) as error:
                if not built.may_leave_out(probe):
                    return not_run(error)
                built.left_out(probe, f"out of memory: {error}")
                continue
            except (BackendError, ParityError) as error:
                # A lost device too: whoever ran this engine would lose it likewise.
                return failed(error)
            if fallbacks := model.explain().fallbacks:
                return not_run(fallbacks[-1])  # what was compared is not the engine as it is
            measured += compared
            built.compared(probe)
    if (reason := built.untuned(over=True)) is not None:
        return not_run(reason)
    if not any(probe.group in PRIMARY for probe, _ in measured):
        return not_run("it was built for none of the frames that it was to be compared on")
    missed = missed_gates(engine.compute, measured)
    return ParityRow(
        engine=engine,
        status="failed" if missed else "passed",
        frames=measured,
        reference=reference,
        device=offer.device,
        where=where,
        sizes=built.found(),
    )


def open_engine(
    manifest: Manifest,
    engine: Engine,
    backends: Sequence[Backend] | None = None,
    threads: int | None = None,
) -> Model:
    """Open one engine and no other, verified or not.

    Raises:
        BackendError: it does not load.
        ParityError: the runtime opened another one.
    """
    # A bundle may hold several files for one backend and precision: only this one is offered.
    only = tuple(variant for variant in manifest.variants if variant.file == engine.file)
    offered = dataclasses.replace(manifest, variants=only)
    with warnings.catch_warnings():
        # The runtime warns that this engine was not verified: that is what happens here.
        warnings.simplefilter("ignore", UnverifiedWarning)
        explanation, session = choose(
            offered,
            all_backends() if backends is None else tuple(backends),
            backend=engine.backend,
            precision=engine.compute,
            threads=default_threads() if threads is None else threads,
            allow_unverified=True,
            variant=engine.file,
            fallback=False,
        )
    model = Model(offered, explanation, session)
    chosen = explanation.chosen
    came = chosen and (chosen.backend, chosen.compute, chosen.variant)
    if came != (engine.backend, engine.compute, engine.file):
        model.close()
        raise ParityError(f"asked for {engine}, the runtime opened {came}")
    return model


def compare(
    model: Model, probe: ProbeFrame, answer: Answer
) -> Iterator[tuple[ProbeFrame, Difference]]:
    """Compare a model with the reference's answer; of the group ``tiling``, with itself."""
    candidate = model.process(probe.frame)
    if answer.frame is None:
        for layout in arrangements(model.manifest.size.multiple):
            noise = np.ascontiguousarray(layout.arrange(probe.frame))
            wanted = layout.arrange(candidate)
            named = dataclasses.replace(probe, name=f"{probe.name}, {layout.name}", frame=noise)
            yield named, difference(wanted, model.process(noise))
        return
    found = difference(answer.frame, candidate)
    if answer.flat is not None:
        found = dataclasses.replace(found, flat=flatness(probe.frame, candidate, answer.flat))
    yield probe, found


class _BuiltSizes:
    """The frame sizes that an engine was built for, and at which of them it was compared.

    Args:
        manifest: of the bundle.
        profiles: of the engine; none for a model, which takes any size.
    """

    def __init__(self, manifest: Manifest, profiles: Sequence[Profile]) -> None:
        self._manifest = manifest
        self._profiles = profiles
        self._best = {profile.opt for profile in profiles}
        self._why: dict[tuple[int, int], str] = {}

    def taken(self, frames: Sequence[ProbeFrame]) -> Sequence[ProbeFrame]:
        """Leave out what the engine was not built for, and add what it was built for."""
        inside = [probe for probe in frames if _fits(probe, self._manifest.size)]
        if not self._profiles:
            return inside
        photographs = [p for p in frames if p.group == "photographs" and p.frame.ndim == 3]
        own = profile_probes(self._profiles, photographs, self._possible)
        return [*(probe for probe in inside if self._holds(probe)), *own]

    def compared(self, probe: ProbeFrame) -> None:
        """Note that a frame was compared; one of several of its size will do."""
        size = self._given(probe)
        if size in self._why and probe.group in PRIMARY:
            self._why[size] = COMPARED

    def left_out(self, probe: ProbeFrame, why: str) -> None:
        """Note that a frame was not compared."""
        size = self._given(probe)
        if size in self._why and self._why[size] != COMPARED:
            self._why[size] = why

    def may_leave_out(self, probe: ProbeFrame) -> bool:
        """Say whether the rest may decide without a frame for which memory is short."""
        height, width = self._given(probe)
        tuned = max((best[0] * best[1] for best in self._best), default=None)
        return tuned is not None and height * width > tuned

    def untuned(self, *, over: bool) -> str | None:
        """Return why the engine cannot have passed: a size that it was tuned for is missing.

        Args:
            over: whether all frames were run, so that none is still to come.
        """
        for size in sorted(self._best):
            why = self._why.get(size, COMPARED)
            if why != COMPARED and (over or why != _TO_COME):
                return f"not compared at {_words(size)}, which it was tuned for: {why}"
        return None

    def found(self) -> dict[str, str]:
        """Return what :attr:`ParityRow.sizes` says."""
        return {_words(size): why for size, why in self._why.items()}

    def _given(self, probe: ProbeFrame) -> tuple[int, int]:
        height, width = probe.frame.shape[-3:-1]
        return fit_size(height, width, self._manifest.size)

    def _holds(self, probe: ProbeFrame) -> bool:
        size = self._given(probe)
        return any(profile.holds(*size) for profile in self._profiles)

    def _possible(self, height: int, width: int) -> bool:
        """Say whether the network takes frames of this size and the reference can be had."""
        rule = self._manifest.size
        if self._manifest.task == TEXTURE:
            takes = (height, width) == nearest_texture_size(height, width, rule)
        else:
            takes = rule.max is None or max(height, width) <= rule.max
        enough = affordable(self._manifest, height, width)
        # Frames of other sizes are padded before the engine is given them.
        padded = height % rule.multiple or width % rule.multiple or min(height, width) < rule.min
        if takes and not padded:
            self._why[height, width] = _TO_COME if enough else "too little memory for the reference"
        return takes and enough


def _fits(probe: ProbeFrame, rule: SizeRule) -> bool:
    return rule.max is None or max(probe.frame.shape[-3:-1]) <= rule.max


def affordable(manifest: Manifest, height: int, width: int) -> bool:
    """Say whether half of the available memory holds a network's work on a frame of this size."""
    from topcoat.runtime._memory import available_memory

    free, needed = available_memory(), manifest.memory_per_pixel
    if free is None or needed is None:
        return height * width <= _LARGEST
    return height * width * needed <= free // 2


def _words(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _where(backend: Backend, device: str | None) -> dict[str, str]:
    """Name the device that a backend runs on, for the record; {} for a processor."""
    if device is None:
        return {}
    facts = {"library": f"{backend.name} {backend.version()}"}
    if device.startswith("sm"):
        from topcoat.runtime.backends import _cuda

        gpu = _cuda.probe()
        if not isinstance(gpu, str):
            facts |= {"gpu": gpu.name, "driver": gpu.driver or "unknown"}
    return facts
