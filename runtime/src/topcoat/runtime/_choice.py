"""Choose the backend and precision that run a bundle here, and keep the reasons."""

from __future__ import annotations

import dataclasses
import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topcoat.runtime._errors import (
    BackendError,
    BackendUnavailableError,
    FrameMemoryError,
    UnverifiedWarning,
)
from topcoat.runtime._explanation import Candidate, Explanation
from topcoat.runtime._fallback import Engines, Way
from topcoat.runtime.backends import Backend, Compute, Session, find_backend
from topcoat.runtime.bundle import PRECISIONS, Manifest, Profile, Variant, read_model
from topcoat.runtime.frames import Frame, allocate, fit_size

PROBE_SIDE = 256
PROBE_RUNS = 5
PROBE_SECONDS = 1.0
"""The race stops starting further rounds after this, for networks that take long."""

_log = logging.getLogger("topcoat.runtime")


def choose(
    manifest: Manifest,
    backends: Sequence[Backend],
    *,
    backend: str,
    precision: str | None,
    threads: int,
    allow_unverified: bool,
    variant: str | None = None,
    fallback: bool | None = None,
) -> tuple[Explanation, Engines]:
    """Find every usable candidate, race them if the caller left the choice open, load the winner.

    Args:
        manifest: the bundle.
        backends: those that may be looked at, in order of merit.
        backend: "auto" or the name of one of them.
        precision: allow only this compute precision.
        threads: for engines on the CPU.
        allow_unverified: whether candidates without a passed parity check are usable.
        variant: allow only this model file.
        fallback: whether another usable candidate takes over when the chosen one fails on a frame;
            None is True for "auto" and False for a named backend.

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
    files = [entry.file for entry in manifest.variants]
    if variant is not None and variant not in files:
        raise BackendError(
            f"{manifest.name} holds no model file {variant!r}, wanted one of {', '.join(files)}"
        )
    if fallback is None:
        fallback = backend == "auto"
    wish = _Wish(backend, precision, variant, allow_unverified, others=fallback)
    found = [entry for engine in backends for entry in _candidates(manifest, engine, wish)]
    if backend == "auto":
        _tell_unproved(manifest, found)
    explain = _Explainer(manifest, backend, precision, threads)
    usable = [entry for entry in found if entry.candidate.usable]
    asked = [entry for entry in usable if backend in {"auto", entry.engine.name}]
    if not asked:
        raise explain.failure(found)

    def load(entry: _Entry) -> Session:
        source, compute = entry.load_arguments()
        model = read_model(manifest, source)
        return entry.engine.load(source, model, compute=compute, threads=threads)

    if backend != "auto" or len(usable) == 1:
        winner = asked[0]
        why = (
            "chosen: the only usable one"
            if len(asked) == 1
            else f"chosen: first in order of merit of those that {backend} offers"
        )
        session: Session | None = load(winner)
        winner.change(reason=why + winner.note())
        for entry in usable:
            if entry in asked[1:]:
                entry.change(reason="usable, not raced because the backend was given")
            elif entry is not winner:
                entry.change(reason=f"usable, only if {backend} fails on a frame")
            if entry is not winner:
                entry.change(reason=entry.candidate.reason + entry.note())
        order = asked + [entry for entry in usable if entry not in asked]
    else:
        order, session = _race(manifest, usable, load)
        if not order:
            raise explain.failure(found)
        winner = order[0]
    if not winner.candidate.verified:
        warnings.warn(
            f"{manifest.name} runs on {winner.candidate.backend} {winner.candidate.compute} without"
            " a passed parity check: its pictures may differ from the trained network's",
            UnverifiedWarning,
            stacklevel=3,  # the caller of topcoat.runtime.open
        )
    if not fallback:  # another file of the same backend may still hold other frame sizes
        order = [entry for entry in order if entry.engine is winner.engine]
    ways = [
        Way(
            candidate=entry.candidate,
            load=functools.partial(load, entry),
            profiles=entry.profiles,
            session=session if entry is winner else None,
        )
        for entry in order
    ]
    explanation = explain.result(found, winner)
    return explanation, Engines(explanation, ways, fallback=fallback)


def list_candidates(
    manifest: Manifest,
    backends: Sequence[Backend],
    *,
    backend: str = "auto",
    precision: str | None = None,
    allow_unverified: bool = False,
) -> list[Candidate]:
    """Return every way to run a bundle here with its verdict, without loading or timing any."""
    wish = _Wish(backend, precision, None, allow_unverified, others=False)
    found = [entry for engine in backends for entry in _candidates(manifest, engine, wish)]
    if backend == "auto":
        _tell_unproved(manifest, found)
    return [entry.candidate for entry in found]


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the caller asked for."""

    backend: str
    precision: str | None
    variant: str | None
    allow_unverified: bool
    others: bool
    """Whether backends other than the named one are looked at, to take over from it."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A candidate while it is still being judged."""

    candidate: Candidate
    engine: Backend
    source: Variant | None = None
    unproved_on: str | None = None
    """The device on which nothing but a missing parity check stands against it."""

    @property
    def profiles(self) -> tuple[Profile, ...]:
        built = None if self.source is None else self.source.engine
        return () if built is None else built.profiles

    def change(self, **values: Any) -> None:  # noqa: ANN401 - as dataclasses.replace
        self.candidate = dataclasses.replace(self.candidate, **values)

    def load_arguments(self) -> tuple[Variant, str]:
        assert self.source is not None
        assert self.candidate.compute is not None
        return self.source, self.candidate.compute

    def note(self) -> str:
        return "" if self.candidate.verified else "; NOT VERIFIED against the network"


def _candidates(manifest: Manifest, engine: Backend, wish: _Wish) -> list[_Entry]:
    def ruled_out(reason: str) -> list[_Entry]:
        candidate = Candidate(
            backend=engine.name, compute=None, variant=None, usable=False, reason=reason
        )
        return [_Entry(candidate, engine)]

    if wish.backend not in {"auto", engine.name} and not wish.others:
        return ruled_out(f"not asked for: the backend was given as {wish.backend}")
    if (missing := engine.missing()) is not None:
        return ruled_out(missing)
    offers = [
        (offer, variant) for variant in manifest.variants for offer in engine.computes(variant)
    ]
    # Stable: files of one rank stay in the manifest's order.
    offers.sort(key=lambda pair: pair[0].rank)
    entries = []
    for offer, variant in offers:
        row = variant.parity_row(engine.name, offer.compute, offer.device)
        verified = row is not None and row.passed
        reason = _objection(manifest, engine, wish, offer, variant)
        candidate = Candidate(
            backend=engine.name,
            compute=offer.compute,
            variant=variant.file,
            usable=reason is None,
            reason=reason or "usable",
            verified=verified,
        )
        unproved = row is None and reason == _no_check(offer)
        entries.append(_Entry(candidate, engine, variant, offer.device if unproved else None))
    return entries or ruled_out("the bundle holds no model that it can run")


def _objection(
    manifest: Manifest, engine: Backend, wish: _Wish, offer: Compute, variant: Variant
) -> str | None:
    """Return why an offer cannot be used, or None if it can."""
    if wish.variant not in {None, variant.file}:
        return f"not asked for: the model file was given as {wish.variant}"
    if wish.precision not in {None, offer.compute}:
        return f"not asked for: the precision was given as {wish.precision}"
    if offer.obstacle is not None:
        return offer.obstacle
    if offer.on_request is not None:
        named = wish.precision is not None or (
            offer.requested_by == "backend" and wish.backend == engine.name
        )
        if not named:
            return offer.on_request
    row = variant.parity_row(engine.name, offer.compute, offer.device)
    if (row is not None and row.passed) or wish.allow_unverified:
        return None
    if row is not None:
        return "its parity check failed"
    return _no_check(offer)


def _no_check(offer: Compute) -> str:
    on = f" on {offer.device}" if offer.device else ""
    return (
        f"the bundle holds no parity check for it{on}; run `topcoat verify` on this machine, or"
        " pass allow_unverified"
    )


def _tell_unproved(manifest: Manifest, found: Sequence[_Entry]) -> None:
    """Log which engines a GPU of this machine could run, had they been verified on it.

    A log and no warning: what runs instead has passed, so there is no reason to stop a program.
    """
    unproved = [entry for entry in found if entry.unproved_on is not None]
    if unproved:
        _log.warning(
            "%s: not used, for it was never compared with the network on this machine's %s: %s;"
            " run `topcoat verify %s` here once",
            manifest.name,
            ", ".join(dict.fromkeys(str(entry.unproved_on) for entry in unproved)),
            ", ".join(str(entry.candidate.engine) for entry in unproved),
            manifest.folder,
        )


@dataclass(slots=True)
class _Lane:
    """A loaded candidate in the race."""

    entry: _Entry
    session: Session
    size: tuple[int, int]
    """(height, width) of its frame."""
    times: list[float] = dataclasses.field(default_factory=list)
    """In ms."""

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def per_pixel(self) -> float:
        """Nanoseconds per input pixel."""
        return self.median * 1e6 / (self.size[0] * self.size[1])


def _race(
    manifest: Manifest, usable: Sequence[_Entry], load: Callable[[_Entry], Session]
) -> tuple[list[_Entry], Session | None]:
    """Time every usable candidate on one frame; return them fastest first, the first one loaded.

    Candidates take turns, so that a busy moment of the machine falls on all of them. The frame is
    small; a built engine that takes none so small runs one of the size that it was tuned for, and
    what counts is the time per pixel. One that fails to load or run is marked unusable and says
    why. If all fail, the list is empty.
    """
    lanes: list[_Lane] = []
    frames: dict[tuple[int, int], tuple[Frame, Frame]] = {}

    def attempt(entry: _Entry, action: Callable[[], object]) -> bool:
        try:
            action()
        except (BackendError, FrameMemoryError) as error:
            entry.change(usable=False, reason=f"failed in the race: {error}")
            _log.warning("%s: %s", manifest.name, entry.candidate.reason)
            return False
        return True

    for entry in usable:

        def start(entry: _Entry = entry) -> None:
            size = _probe_size(manifest, entry.profiles)
            if size not in frames:
                frames[size] = _probe_frame(manifest, size)
            lane = _Lane(entry, load(entry), size)
            lanes.append(lane)
            lane.session.run(*frames[size])  # the first run compiles kernels and allocates

        attempt(entry, start)

    def running() -> list[_Lane]:
        return [lane for lane in lanes if lane.entry.candidate.usable]

    began = time.perf_counter()
    for turn in range(PROBE_RUNS):
        if turn and time.perf_counter() - began > PROBE_SECONDS:
            break
        for lane in running():
            start_ns = time.perf_counter_ns()
            if attempt(lane.entry, functools.partial(lane.session.run, *frames[lane.size])):
                lane.times.append((time.perf_counter_ns() - start_ns) / 1e6)
    ranking = sorted(running(), key=lambda lane: lane.per_pixel)
    several = len({lane.size for lane in ranking}) > 1
    for place, lane in enumerate(ranking):
        height, width = lane.size
        where = f"{lane.median:.1f} ms on a {width}x{height} frame"
        if several:
            where += f", {lane.per_pixel:.1f} ns per pixel"
        verdict = "usable, slower: " if place else "chosen: fastest, "
        lane.entry.change(
            probe_ms=round(lane.median, 3),
            probe_size=lane.size,
            reason=verdict + where + lane.entry.note(),
        )
    for lane in lanes:
        if not ranking or lane is not ranking[0]:
            lane.session.close()
    return [lane.entry for lane in ranking], ranking[0].session if ranking else None


def _probe_size(manifest: Manifest, profiles: Sequence[Profile]) -> tuple[int, int]:
    """Return (height, width) of the frame that an engine built for these sizes runs in the race."""
    rule = manifest.size
    side = PROBE_SIDE if rule.max is None else min(PROBE_SIDE, rule.max)
    if side < PROBE_SIDE:  # the largest multiple that the rule allows
        side = max(rule.min, side // rule.multiple * rule.multiple)
    size = fit_size(side, side, rule)
    if not profiles or any(profile.holds(*size) for profile in profiles):
        return size
    return min((profile.opt for profile in profiles), key=lambda opt: opt[0] * opt[1])


def _probe_frame(manifest: Manifest, size: tuple[int, int]) -> tuple[Frame, Frame]:
    """Return a frame and room for its result, each a batch of one."""
    height, width = size
    # Every value occurs, neighbours differ: neither flat nor denormal after normalisation.
    values = (np.arange(height * width * 3, dtype=np.uint32) * 7919 >> 5).astype(np.uint8)
    shape = (1, height * manifest.scale, width * manifest.scale, 3)
    return values.reshape(1, height, width, 3), allocate(shape, "the result")


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
