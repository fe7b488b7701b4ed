"""What was chosen to run a bundle, why not the others, and what has taken its place since."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineName:
    """One way to run a bundle; ``str()`` names it for people."""

    backend: str
    """e.g. "tensorrt-rtx"."""
    compute: str
    """The precision that it computes at, e.g. "fp16"."""
    variant: str
    """The model file that it runs."""

    def __str__(self) -> str:
        return f"{self.backend} {self.compute} [{self.variant}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a bundle, with the verdict on it."""

    backend: str
    compute: str | None
    """None if the backend was ruled out before precisions were looked at."""
    variant: str | None
    """The model's file name; None like ``compute``."""
    usable: bool
    reason: str
    probe_ms: float | None = None
    """Median time of one frame in the race, or None if there was no race."""
    probe_size: tuple[int, int] | None = None
    """(height, width) of that frame: 256x256, or what an engine that does not take it was tuned
    for; None like ``probe_ms``."""
    verified: bool = False
    """Whether the bundle holds a passed parity check for it."""

    @property
    def engine(self) -> EngineName:
        """The engine that this is a verdict on; only of candidates with a model file."""
        assert self.compute is not None
        assert self.variant is not None
        return EngineName(backend=self.backend, compute=self.compute, variant=self.variant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """Frames of one size that are not run as it was chosen when the bundle was opened."""

    height: int
    width: int
    """Of the frames, as they were given to ``process``."""
    batch: int
    """How many of them were given at once."""
    failed: EngineName
    """What would run them, had it not failed."""
    used: EngineName
    """What runs frames of this size now; the same as ``failed`` where they are only cut up."""
    tiles: int
    """How many tiles a frame is run in now; 1 is as a whole. 1 with ``failed`` == ``used``: the
    frames of a batch are run one by one."""
    reason: str
    """Why ``failed`` does not run them as it should; then, with its name, why each engine that
    comes between it and ``used`` does not."""

    @property
    def size(self) -> str:
        """The size for people, e.g. "1920x1080" or "4 of 1920x1080"."""
        several = f"{self.batch} of " if self.batch > 1 else ""
        return f"{several}{self.width}x{self.height}"

    def __str__(self) -> str:
        how = f"in {self.tiles} tiles on" if self.tiles > 1 else "on"
        if self.failed != self.used:
            change = f"{how} {self.used} instead of {self.failed}"
        else:
            change = f"{how if self.tiles > 1 else 'one by one on'} {self.used}"
        return f"frames of {self.size} run {change}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Which way was chosen to run a bundle, and why not the others; ``str()`` is for people."""

    bundle: str
    asked_backend: str
    asked_precision: str | None
    threads: int
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    fallbacks: tuple[Fallback, ...] = ()
    """The frame sizes that run otherwise than chosen, so far: one entry each, the latest last."""

    def candidate_for(self, height: int, width: int, batch: int = 1) -> Candidate | None:
        """Return what runs frames of this size now; None if nothing can run the bundle."""
        for fallback in self.fallbacks:
            if (fallback.batch, fallback.height, fallback.width) == (batch, height, width):
                for candidate in self.candidates:
                    if candidate.variant is not None and candidate.engine == fallback.used:
                        return candidate
        return self.chosen

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain dicts and lists, as ``topcoat explain --json`` prints it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        asked = f"backend {self.asked_backend}, precision {self.asked_precision or 'any'}"
        threads = f"{self.threads} CPU thread" + ("" if self.threads == 1 else "s")
        lines = [f"{self.bundle} (asked for: {asked}; {threads})"]
        if self.chosen is None:
            lines.append("  nothing can run it here")
        for candidate in self.candidates:
            mark = "->" if candidate == self.chosen else "ok" if candidate.usable else "--"
            what = " ".join(p for p in (candidate.backend, candidate.compute) if p)
            file = f" [{candidate.variant}]" if candidate.variant else ""
            lines.append(f"  {mark} {what:<22}{file} {candidate.reason}")
        lines += [f"  !! {fallback}" for fallback in self.fallbacks]
        return "\n".join(lines)
