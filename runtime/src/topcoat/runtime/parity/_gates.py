"""What every engine must reach, group by group of frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from topcoat.runtime.parity._difference import Summary


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

    def failures(self, found: Summary) -> list[str]:
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
    "int8": {
        "photographs": Gate(psnr_db=40, worst_psnr_db=35, tone_steps=2),
        "sizes": Gate(worst_psnr_db=35, tone_steps=4),
        "tiny": Gate(worst_psnr_db=12, tone_steps=24),
        "synthetic": Gate(worst_psnr_db=12, tone_steps=16),
        "flat": Gate(worst_psnr_db=35, tone_steps=4, flat_steps=1),
        "noise": Gate(psnr_db=40, worst_psnr_db=35, tone_steps=2),
        "tiling": Gate(worst_psnr_db=35, tone_steps=2),
    },
}
"""Compute precision -> group of frames -> gate. docs/export.md says where the numbers come from."""
