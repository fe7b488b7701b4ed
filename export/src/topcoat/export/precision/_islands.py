"""Which few layers stay float32, so that the picture passes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from topcoat.export.precision._findings import Effect, Half, HalfAudit, LayerAudit
from topcoat.export.precision._report import effect_words
from topcoat.export.precision._rounding import RoundedNetwork, as_frame, is_exact
from topcoat.export.probes import Frame, ProbeFrame
from topcoat.runtime.parity import (
    GATES,
    Difference,
    Gate,
    Summary,
    difference,
    gate_failures,
    summary,
)
from topcoat.train.networks import FrameNetwork

MOST_ISLANDS = 1 / 3
"""Share of the layers that compute, which may stay float32: with more, half precision is not worth
its casts."""
_WITHIN = 0.999
"""Share of values that must be within 4 steps where parity allows none beyond some number."""


def _gate(half: Half, group: str) -> Gate:
    """What the rounded network must reach: parity's gate, but a share of values for their maximum.

    Rounding in single operations is noisier than an engine that stores fewer of them, and the worst
    of millions of values is the noisiest measure there is. Engines are held to it; see parity.
    """
    gate = GATES[half][group]
    if gate.max_steps is None:
        return gate
    return dataclasses.replace(gate, max_steps=None, within_4_steps=_WITHIN)


def choose_islands(
    half: Half,
    network: FrameNetwork,
    known: Mapping[str, set[str] | None],
    layers: Mapping[str, LayerAudit],
    probes: Sequence[ProbeFrame],
    references: Sequence[Frame],
    effect_alone: Callable[[Half, str], Effect],
) -> HalfAudit:
    """Keep as few layers in float32 as make the picture pass, and say why each.

    Args:
        half: the precision of all the others.
        network: float32, evaluation mode.
        known: of :func:`~topcoat.export.onnx_from_checkpoint.called_layers`.
        layers: name -> what its values are on ``probes``.
        probes: what is looked at.
        references: what ``network`` makes of each of them.
        effect_alone: measures what one layer in this precision does to the picture.
    """

    def measure(islands: Iterable[str], which: Sequence[int]) -> dict[str, Summary]:
        rounded = RoundedNetwork(network, half, known, islands=tuple(islands))
        by_group: dict[str, list[Difference]] = {}
        for index in which:
            candidate = as_frame(rounded(probes[index].frame))
            found = difference(references[index], candidate)
            by_group.setdefault(probes[index].group, []).append(found)
        return {group: summary(found) for group, found in by_group.items()}

    def failures(found: Mapping[str, Summary]) -> list[str]:
        return gate_failures(found, functools.partial(_gate, half))

    every = range(len(probes))
    before = after = measure((), every)
    chosen: dict[str, str] = {}
    if half == "fp16":
        for name, layer in layers.items():
            if (why := layer.beyond_fp16()) is not None:
                chosen[name] = why
        if chosen:
            after = measure(chosen, every)
    if missed := failures(after):
        modules = dict(network.named_modules())
        computing = [name for name in known if not is_exact(modules[name])]
        most = math.ceil(MOST_ISLANDS * len(computing))
        ranked = sorted(
            (name for name in computing if name not in chosen),
            key=lambda name: effect_alone(half, name).psnr_db,
        )
        # Frames that fail decide; the others are looked at again at the end.
        failing = [i for i in every if failures(measure(chosen, [i]))] or list(every)
        added: list[str] = []
        for name in ranked:
            if len(chosen) + len(added) >= most:
                break
            added.append(name)
            if not failures(measure([*chosen, *added], failing)):
                break
        if not failures(measure([*chosen, *added], failing)):
            for name in list(added):
                fewer = [kept for kept in added if kept != name]
                if not failures(measure([*chosen, *fewer], failing)):
                    added = fewer
        for name in added:
            effect = effect_alone(half, name)
            chosen[name] = f"alone in {half} it moves the picture by {effect_words(effect)}"
        after = measure(chosen, every)
        missed = failures(after)
    order = [name for name in known if name in chosen]
    return HalfAudit(
        precision=half,
        keep_fp32=tuple(order),
        reasons=tuple(f"{name} {layers[name].kind}: {chosen[name]}" for name in order),
        failures=tuple(missed),
        before=before,
        after=after,
    )
