"""Choose the backend and precision that run a bundle here, and keep the reasons."""

from __future__ import annotations

import dataclasses
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError, BackendUnavailableError, UnverifiedWarning
from topcoat.runtime.backends import Backend, Session, find_backend
from topcoat.runtime.bundle import PRECISIONS, Manifest, Variant, read_model
from topcoat.runtime.frames import fit_size

PROBE_SIDE = 256
PROBE_RUNS = 5
PROBE_SECONDS = 1.0
"""The race stops starting further rounds after this, for networks that take long."""

_log = logging.getLogger("topcoat.runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a bundle: a backend, a model file and the precision it is computed at."""

    backend: str
    compute: str | None
    """None if the backend was ruled out before precisions were looked at."""
    variant: str | None
    """The model's file name; None like ``compute``."""
    usable: bool
    reason: str
    probe_ms: float | None = None
    """Median time of one 256x256 frame in the race, or None if there was no race."""
    verified: bool = False
    """Whether the bundle holds a passed parity check for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Which way was chosen to run a bundle, and why not the others; ``str()`` is for people."""

    bundle: str
    asked_backend: str
    asked_precision: str | None
    threads: int
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain dicts and lists, as ``topcoat explain --json`` prints it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        asked = f"backend {self.asked_backend}, precision {self.asked_precision or 'any'}"
        lines = [f"{self.bundle} (asked for: {asked}; {_plural(self.threads, 'CPU thread')})"]
        if self.chosen is None:
            lines.append("  nothing can run it here")
        for candidate in self.candidates:
            mark = "->" if candidate == self.chosen else "ok" if candidate.usable else "--"
            what = " ".join(p for p in (candidate.backend, candidate.compute) if p)
            file = f" [{candidate.variant}]" if candidate.variant else ""
            lines.append(f"  {mark} {what:<22}{file} {candidate.reason}")
        return "\n".join(lines)


def choose(
    manifest: Manifest,
    backends: Sequence[Backend],
    *,
    backend: str,
    precision: str | None,
    threads: int,
    allow_unverified: bool,
) -> tuple[Explanation, Session]:
    """Find every usable candidate, race them if the caller left the choice open, load the winner.

    Raises:
        BackendError: nothing usable; its ``explanation`` attribute holds the candidates.
        BackendUnavailableError: the backend that was asked for is not installed.
    """
    if backend != "auto":
        find_backend(backend, tuple(backends))
    if precision is not None and precision not in PRECISIONS:
        raise BackendError(
            f"precision {precision!r} is not known, wanted one of {', '.join(PRECISIONS)}"
        )
    found = [
        entry
        for engine in backends
        for entry in _candidates(manifest, engine, backend, precision, allow_unverified)
    ]
    explain = _Explainer(manifest, backend, precision, threads)
    usable = [entry for entry in found if entry.candidate.usable]
    if not usable:
        raise explain.failure(found)

    models: dict[str, bytes] = {}

    def load(entry: _Entry) -> Session:
        variant, compute = entry.load_arguments()
        if variant.file not in models:
            models[variant.file] = read_model(manifest, variant)
        return entry.engine.load(variant, models[variant.file], compute=compute, threads=threads)

    if backend != "auto" or len(usable) == 1:
        winner = usable[0]
        why = (
            "chosen: the only usable one"
            if len(usable) == 1
            else f"chosen: first in order of merit of those that {backend} offers"
        )
        session = load(winner)
        winner.change(reason=why + winner.note())
        for entry in usable[1:]:
            entry.change(reason="usable, not raced because the backend was given" + entry.note())
    else:
        winner, session = _race(manifest, usable, load)
        if not winner.candidate.usable:
            raise explain.failure(found)
    if not winner.candidate.verified:
        warnings.warn(
            f"{manifest.name} runs on {winner.candidate.backend} {winner.candidate.compute} without"
            " a passed parity check: its pictures may differ from the trained network's",
            UnverifiedWarning,
            stacklevel=3,  # the caller of topcoat.runtime.open
        )
    return explain.result(found, winner), session


def list_candidates(
    manifest: Manifest,
    backends: Sequence[Backend],
    *,
    precision: str | None = None,
    allow_unverified: bool = False,
) -> list[Candidate]:
    """Return every way to run a bundle here with its verdict, without loading or timing any."""
    return [
        entry.candidate
        for engine in backends
        for entry in _candidates(manifest, engine, "auto", precision, allow_unverified)
    ]


@dataclass(slots=True)
class _Entry:
    """A candidate while it is still being judged."""

    candidate: Candidate
    engine: Backend
    source: Variant | None = None

    def change(self, **values: Any) -> None:  # noqa: ANN401 - as dataclasses.replace
        self.candidate = dataclasses.replace(self.candidate, **values)

    def load_arguments(self) -> tuple[Variant, str]:
        assert self.source is not None
        assert self.candidate.compute is not None
        return self.source, self.candidate.compute

    def note(self) -> str:
        return "" if self.candidate.verified else "; NOT VERIFIED against the network"


def _candidates(
    manifest: Manifest,
    engine: Backend,
    asked: str,
    precision: str | None,
    allow_unverified: bool,
) -> list[_Entry]:
    def ruled_out(reason: str) -> list[_Entry]:
        candidate = Candidate(
            backend=engine.name, compute=None, variant=None, usable=False, reason=reason
        )
        return [_Entry(candidate, engine)]

    if asked not in {"auto", engine.name}:
        return ruled_out(f"not asked for: the backend was given as {asked}")
    if (missing := engine.missing()) is not None:
        return ruled_out(missing)
    entries = []
    for variant in manifest.variants:
        for offer in engine.computes(variant):
            row = variant.parity_row(engine.name, offer.compute, offer.device)
            verified = row is not None and row.passed
            reason = None
            if precision not in {None, offer.compute}:
                reason = f"not asked for: the precision was given as {precision}"
            elif offer.obstacle is not None:
                reason = offer.obstacle
            elif offer.on_request is not None and precision is None:
                reason = offer.on_request
            elif not verified and not allow_unverified:
                reason = (
                    "the bundle holds no parity check for it; export it again where"
                    f" {engine.name} is installed, or pass allow_unverified"
                    if row is None
                    else "its parity check failed at export"
                )
            candidate = Candidate(
                backend=engine.name,
                compute=offer.compute,
                variant=variant.file,
                usable=reason is None,
                reason=reason or "usable",
                verified=verified,
            )
            entries.append(_Entry(candidate, engine, variant))
    return entries or ruled_out("the bundle holds no model that it can run")


def _race(
    manifest: Manifest, usable: Sequence[_Entry], load: Callable[[_Entry], Session]
) -> tuple[_Entry, Session]:
    """Time every usable candidate on one small frame; return the fastest, loaded.

    Candidates take turns, so that a busy moment of the machine falls on all of them. One that fails
    to load or run is marked unusable and says why. If all fail, the returned entry is unusable and
    the session must not be used.
    """
    side = PROBE_SIDE if manifest.size.max is None else min(PROBE_SIDE, manifest.size.max)
    if side < PROBE_SIDE:  # the largest multiple that the rule allows
        side = max(manifest.size.min, side // manifest.size.multiple * manifest.size.multiple)
    height, width = fit_size(side, side, manifest.size)
    # Every value occurs, neighbours differ: neither flat nor denormal after normalisation.
    frame = (np.arange(height * width * 3, dtype=np.uint32) * 7919 >> 5).astype(np.uint8)
    source = frame.reshape(1, height, width, 3)
    result = np.empty((1, height * manifest.scale, width * manifest.scale, 3), np.uint8)
    running: list[tuple[_Entry, Session, list[float]]] = []

    def attempt(entry: _Entry, action: Callable[[], object]) -> bool:
        try:
            action()
        except BackendError as error:
            entry.change(usable=False, reason=f"failed in the race: {error}")
            _log.warning("%s: %s", manifest.name, entry.candidate.reason)
            return False
        return True

    for entry in usable:

        def start(entry: _Entry = entry) -> None:
            session = load(entry)
            running.append((entry, session, []))
            session.run(source, result)  # the first run compiles kernels and allocates

        attempt(entry, start)
    running = [lane for lane in running if lane[0].candidate.usable]
    began = time.perf_counter()
    for turn in range(PROBE_RUNS):
        if turn and time.perf_counter() - began > PROBE_SECONDS:
            break
        for entry, session, times in list(running):
            start_ns = time.perf_counter_ns()
            if attempt(entry, lambda session=session: session.run(source, result)):  # type: ignore[misc]
                times.append((time.perf_counter_ns() - start_ns) / 1e6)
    for entry, session, times in running:
        if entry.candidate.usable:
            entry.change(probe_ms=round(statistics.median(times), 3))
        else:
            session.close()
    running = [lane for lane in running if lane[0].candidate.usable]
    if not running:
        return usable[0], None  # type: ignore[return-value]  # the caller looks at usable first
    best = min(running, key=lambda lane: statistics.median(lane[2]))
    for entry, session, _ in running:
        where = f"{entry.candidate.probe_ms:.1f} ms on a {width}x{height} frame"
        if entry is best[0]:
            entry.change(reason=f"chosen: fastest, {where}{entry.note()}")
        else:
            entry.change(reason=f"usable, slower: {where}{entry.note()}")
            session.close()
    return best[0], best[1]


@dataclass(frozen=True, slots=True)
class _Explainer:
    manifest: Manifest
    backend: str
    precision: str | None
    threads: int

    def result(self, found: Sequence[_Entry], winner: _Entry | None) -> Explanation:
        return Explanation(
            bundle=self.manifest.name,
            asked_backend=self.backend,
            asked_precision=self.precision,
            threads=self.threads,
            chosen=None if winner is None else winner.candidate,
            candidates=tuple(entry.candidate for entry in found),
        )

    def failure(self, found: Sequence[_Entry]) -> BackendError:
        """Return the one-line error that says why each candidate that was meant cannot run."""
        meant = [e for e in found if not e.candidate.reason.startswith("not asked for")] or found
        if self.backend != "auto":
            meant = [e for e in meant if e.candidate.backend == self.backend]
        reasons = "; ".join(
            " ".join(p for p in (e.candidate.backend, e.candidate.compute) if p)
            + f": {e.candidate.reason}"
            for e in meant
        )
        advice = ""
        if self.precision and all(e.candidate.reason.startswith("not asked for") for e in meant):
            offered = sorted({e.candidate.compute for e in meant if e.candidate.compute})
            reasons = f"it can be computed at {', '.join(offered) or 'no precision'} here"
            advice = f"; leave out precision, or export a {self.precision} variant"
        asked = f"backend {self.backend}" + (
            f" at precision {self.precision}" if self.precision else ""
        )
        unavailable = self.backend != "auto" and all(e.source is None for e in meant)
        kind = BackendUnavailableError if unavailable else BackendError
        error = kind(f"{asked} cannot run {self.manifest.name}: {reasons}{advice}")
        error.explanation = self.result(found, None)
        return error


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
