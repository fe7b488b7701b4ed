"""The frames that go through a network, and what is measured on them."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from topcoat.export._threads import half_the_cores
from topcoat.export.onnx_from_checkpoint import called_layers
from topcoat.export.precision._findings import Audit, Effect, Half, HalfAudit, LayerAudit
from topcoat.export.precision._islands import choose_islands
from topcoat.export.precision._ranges import audit_layers
from topcoat.export.precision._rounding import RoundedNetwork, answer, is_exact
from topcoat.export.probes import Frame, ProbeFrame, noise_probes, probe_frames
from topcoat.runtime.parity import ParityError
from topcoat.train.networks import FrameNetwork

_PIECE = 128
"""Side of the pieces of frames on which single layers are measured, in output pixels or nearly so:
two runs for each layer and precision."""
_PIECES = 3


def audit_frames(network: FrameNetwork) -> list[ProbeFrame]:
    """Choose the frames for an audit: the bundled photographs and hard synthetic ones, or noise.

    Raises:
        PhotographError: the installed scikit-image carries no photographs.
    """
    if network.takes == "noise":
        probes = noise_probes(network.size_multiple, network.size_min)
        return [probe for probe in probes if probe.group == "noise"][:3]
    probes = probe_frames(network.size_min, scale=network.scale)
    hard = [probe for probe in probes if probe.group == "synthetic" and probe.frame.ndim == 3]
    sides = max(probe.frame.shape[0] for probe in hard)
    return [
        *(probe for probe in probes if probe.group == "photographs"),
        *(probe for probe in hard if probe.frame.shape[0] == sides),
    ]


def audit(
    network: FrameNetwork,
    frames: Sequence[ProbeFrame] | None = None,
    *,
    each_layer: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Measure what half precision does to a network, and choose the layers that stay float32.

    A layer stays float32 if what it computes lies beyond float16 or within a factor of
    :data:`~topcoat.export.precision.HEADROOM` of its end. If the picture still misses what parity
    will ask of the engine, those that move it most stay too, as few as make it pass. None does
    where nothing shows a need.

    Args:
        network: float32, on the CPU; it is copied, not changed.
        frames: what to look at; :func:`audit_frames` if None. Of the groups ``photographs``,
            ``sizes``, ``tiny``, ``synthetic`` and ``noise``.
        each_layer: measure every layer by itself, which takes four runs over three small pieces
            for each. If not, only what the decision needs is measured.
        progress: is told what is being done.

    Raises:
        ParityError: there are no frames, or they are of another group.
    """
    probes = list(audit_frames(network) if frames is None else frames)
    if not probes:
        raise ParityError("no frames to look at; give at least one photograph, or noise")
    if wrong := {probe.group for probe in probes} & {"flat", "tiling"}:
        raise ParityError(
            f"frames of the group {', '.join(sorted(wrong))} say nothing of a layer's values; "
            "give photographs, synthetic frames or noise"
        )
    with half_the_cores(), torch.no_grad():
        progress(f"the values of every layer, on {len(probes)} frames")
        plain = copy.deepcopy(network).float().eval()
        known = called_layers(plain)
        layers, references = audit_layers(plain, known, probes)
        pieces = _pieces(probes, network)
        wanted = [answer(plain, piece) for piece in pieces]
        alone: dict[Half, dict[str, Effect]] = {"fp16": {}, "bf16": {}}
        others: dict[Half, dict[str, Effect]] = {"fp16": {}, "bf16": {}}
        modules = dict(plain.named_modules())
        computing = [name for name in known if not is_exact(modules[name])]

        def effect_alone(half: Half, name: str) -> Effect:
            if name not in alone[half]:
                rounded = RoundedNetwork(plain, half, known, only=name)
                alone[half][name] = _effect(map(rounded, pieces), wanted)
            return alone[half][name]

        halves: dict[Half, HalfAudit] = {}
        for half in ("fp16", "bf16"):
            progress(f"the whole network in {half}")
            halves[half] = choose_islands(
                half, plain, known, layers, probes, references, effect_alone
            )
        if each_layer:
            for half in halves:
                progress(f"every layer by itself in {half}: {len(computing)} of {len(known)}")
                for name in computing:
                    effect_alone(half, name)
                    rounded = RoundedNetwork(plain, half, known, islands=(name,))
                    others[half][name] = _effect(map(rounded, pieces), wanted)
    return Audit(
        layers=tuple(_with_effects(layer, alone, others) for layer in layers.values()),
        halves=halves,
        frames=len(probes),
    )


def _pieces(probes: Sequence[ProbeFrame], network: FrameNetwork) -> list[Frame]:
    """Cut the middle out of the first frames: small ones, for what is run once for each layer."""
    multiple, least = network.size_multiple, network.size_min
    side = max(least, math.ceil(_PIECE / network.scale / multiple) * multiple)
    pieces = []
    for probe in probes[:_PIECES]:
        frame: Frame = probe.frame if probe.frame.ndim == 3 else probe.frame[0]
        top, left = (max(0, (length - side) // 2) for length in frame.shape[:2])
        pieces.append(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    return pieces


def _effect(answers: Iterable[Tensor], wanted: Iterable[Tensor]) -> Effect:
    worst, squared, values = 0.0, 0.0, 0
    for picture, reference in zip(answers, wanted, strict=True):
        off = (picture - reference).double()
        if not bool(off.isfinite().all()):
            return Effect(max_steps=math.inf, psnr_db=0.0)
        worst = max(worst, float(off.abs().max()))
        squared += float(off.square().sum())
        values += off.numel()
    psnr = 10 * math.log10(255**2 * values / squared) if squared else math.inf
    return Effect(max_steps=worst, psnr_db=psnr)


def _with_effects(
    layer: LayerAudit,
    alone: Mapping[Half, Mapping[str, Effect]],
    others: Mapping[Half, Mapping[str, Effect]],
) -> LayerAudit:
    return dataclasses.replace(
        layer,
        alone={half: found[layer.name] for half, found in alone.items() if layer.name in found},
        others={half: found[layer.name] for half, found in others.items() if layer.name in found},
    )
