"""What was measured of a bundle, row by row."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from topcoat.runtime._errors import ParityError
from topcoat.runtime._machine import processor
from topcoat.runtime.parity._difference import Difference, Summary, summary
from topcoat.runtime.parity._engines import Engine
from topcoat.runtime.parity._gates import GATES, Gate
from topcoat.runtime.parity._probes import ProbeFrame

Status: TypeAlias = Literal["passed", "failed", "not run"]

COMPARED = "compared"
"""What :attr:`ParityRow.sizes` says of a size at which an engine was compared."""

_SHOWN = ("max_steps", "psnr_db", "changed", "within_4_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """One engine, all frames. Truthy when it passed.

    :class:`topcoat.runtime.ParityRow` is what a manifest keeps of it.
    """

    engine: Engine
    status: Status
    reason: str = ""
    """Why it was not run or what broke; empty otherwise."""
    frames: Sequence[tuple[ProbeFrame, Difference]] = ()
    reference: str = ""
    """What it was compared with; empty if nothing was."""
    device: str | None = None
    """The kind of device that it was measured on and holds for, e.g. "sm89"; None: any."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Name, driver and library of that device; empty for a processor."""
    sizes: Mapping[str, str] = field(default_factory=dict)
    """The sizes that a built engine was made for, e.g. "1920x1080" (width x height), each with
    :data:`COMPARED` or why it was not; empty for other engines."""
    undecided: bool = False
    """Whether this machine can run it, and it was not run to the end all the same."""

    def __bool__(self) -> bool:
        return self.status == "passed"

    @property
    def groups(self) -> dict[str, Summary]:
        """What was measured, by group of frames."""
        return group_summaries(self.frames)

    @property
    def omitted(self) -> dict[str, str]:
        """The sizes that the engine was made for and not compared at, each with the reason."""
        return {size: why for size, why in self.sizes.items() if why != COMPARED}

    @property
    def failures(self) -> list[str]:
        """Every missed gate, in words."""
        broke = [self.reason] if self.status == "failed" and self.reason else []
        return broke + missed_gates(self.engine.compute, self.frames)

    def to_json(self) -> dict[str, Any]:
        """Every number of the row; see docs/export.md."""
        engine = self.engine
        return {
            "file": engine.file,
            "backend": engine.backend,
            "compute": engine.compute,
            **({} if self.device is None else {"device": self.device}),
            **({} if not self.where else {"where": dict(self.where)}),
            "required": engine.required,
            "status": self.status,
            "reason": self.reason or None,
            "reference": self.reference or None,
            **({} if not self.sizes else {"sizes": dict(self.sizes)}),
            **({} if not self.undecided else {"undecided": True}),
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

    def to_manifest(self) -> dict[str, Any]:
        """Return what a manifest's ``parity`` or ``parity_not_run`` holds of it: docs/bundle.md."""
        row = {"backend": self.engine.backend, "compute": self.engine.compute}
        if self.status == "not run":
            return {**row, "reason": self.reason}
        groups = self.groups
        group = "noise" if "noise" in groups else "photographs"
        found = groups[group].to_json() if group in groups else {}
        return {
            **row,
            **({} if self.device is None else {"device": self.device}),
            "passed": bool(self),
            # A PSNR without difference is infinite, which JSON cannot say: the key is left out.
            group: {key: found[key] for key in _SHOWN if found.get(key) is not None},
            **({} if not self.where else {"where": dict(self.where)}),
            **({} if not self.reference else {"reference": self.reference}),
            **({} if not self.sizes else {"sizes": dict(self.sizes)}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """All engines of a bundle. Truthy when every required one passed."""

    rows: Sequence[ParityRow]
    machine: Mapping[str, str] = field(default_factory=dict)
    reference: str = "PyTorch, fp32, rounded to 8 bits"
    flat_judged: Sequence[str] = ()
    """Colours, as ``#rrggbb``, of the flat frames that engines are held to leave flat."""

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
            "reference": self.reference,
            "machine": dict(self.machine),
            "gates": gates_json(),
            "flat_judged": list(self.flat_judged),
            "rows": [row.to_json() for row in self.rows],
        }


def group_summaries(frames: Iterable[tuple[ProbeFrame, Difference]]) -> dict[str, Summary]:
    """Summarise what was measured, group by group."""
    by_group: dict[str, list[Difference]] = {}
    for probe, measured in frames:
        by_group.setdefault(probe.group, []).append(measured)
    return {group: summary(found) for group, found in by_group.items()}


def missed_gates(compute: str, frames: Iterable[tuple[ProbeFrame, Difference]]) -> list[str]:
    """Say in words which gates of a compute precision are missed; empty if none is."""
    return gate_failures(group_summaries(frames), GATES[compute].__getitem__)


def gate_failures(found: Mapping[str, Summary], gate_of: Callable[[str], Gate]) -> list[str]:
    """Say in words which gates are missed; empty if none is.

    Args:
        found: group of frames -> what was measured.
        gate_of: group -> what it must reach.
    """
    return [
        f"{group}: {missed}"
        for group, measured in found.items()
        for missed in gate_of(group).failures(measured)
    ]


def gates_json() -> dict[str, dict[str, dict[str, float]]]:
    """Return :data:`GATES` as plain values."""
    return {
        compute: {group: gate.to_json() for group, gate in groups.items()}
        for compute, groups in GATES.items()
    }


def machine() -> dict[str, str]:
    """Say on what machine a comparison is made."""
    return {
        "processor": processor(),
        "system": platform.system(),
        "numpy": np.__version__,
    }
