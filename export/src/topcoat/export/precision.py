"""Find out by measurement which precision a network bears, and which few layers must stay float32.

Half precision takes two things away: range (float16 ends at 65504 and has nothing below 6e-8) and
digits (11 bits in float16, 8 in bfloat16). Whether a network minds is decided by what it computes,
so representative frames go through it in PyTorch: once in float32, where every layer's values are
looked at, and then with rounding, all layers together and each by itself, where the picture that
comes out is compared with the float32 one.

*Rounding* is what an engine with half-precision storage and float32 accumulators does, which is
what GPUs' matrix units are: every weight is rounded once, and the result of every operation as it
is stored. PyTorch's own float16 convolutions on a CPU do the same, sixty times as slowly. Only the
statistics of normalisation layers are taken at their worst: mean, deviations, squares and variance
are each stored in half precision, as in an engine that has no better kernel for them. That is what
makes engines fail that are given such layers in float16.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topcoat.export._errors import TopcoatError
from topcoat.export._threads import half_the_cores
from topcoat.export.onnx_from_checkpoint import DTYPES, Precision, called_layers
from topcoat.export.probes import Frame, ProbeFrame, noise_probes, probe_frames
from topcoat.runtime.parity import GATES, Gate, ParityError, Summary, difference, summary
from topcoat.train.networks import FrameNetwork

Half: TypeAlias = Literal["fp16", "bf16"]
Asked: TypeAlias = Literal["auto", "fp32", "fp16", "bf16", "int8"]

FP16_MAX = 65504.0
"""The largest float16."""
FP16_NORMAL = 2.0**-14
"""The smallest float16 with all its digits, 6.1e-5."""
FP16_SMALLEST = 2.0**-24
"""The smallest float16 at all, 6e-8."""
HEADROOM = 2.0
"""How many times as large values may get on frames that were not looked at."""
MOST_ISLANDS = 1 / 3
"""Share of the layers that compute, which may stay float32: with more, half precision is not worth
its casts."""
_PIECE = 128
"""Side of the pieces of frames on which single layers are measured, in output pixels or nearly so:
two runs for each layer and precision."""
_PIECES = 3
_SAMPLE = 2**16
"""Values of one output that are looked at one by one; its range is that of all."""
_WITHIN = 0.999
"""Share of values that must be within 4 steps where parity allows none beyond some number."""
_NORMS = (nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)
"""Layers that take statistics of what they are given. Batch normalisation has its own with it."""
_EXACT = (
    nn.ReLU,
    nn.ReLU6,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.MaxPool2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.ZeroPad2d,
)
"""Layers that give rounded values for rounded ones: they lose nothing by themselves."""


class PrecisionError(TopcoatError, ValueError):
    """A precision was asked for that the network does not bear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What rounding does to the picture: compared before it is rounded to 8 bits."""

    max_steps: float
    """Largest difference, in 8-bit steps; infinite if the picture has a value that is no number."""
    psnr_db: float
    """Infinite for equal pictures; 0 if it has a value that is no number."""

    def to_json(self) -> dict[str, float | None]:
        """Plain values; null where there is no finite one."""
        return {"max_steps": _finite(self.max_steps), "psnr_db": _finite(self.psnr_db)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NormAudit:
    """What a normalisation layer's statistics reach, of any channel of any frame."""

    variance: float
    """Largest variance."""
    square: float
    """Largest squared deviation from the mean: an engine may store those."""
    offset: float
    """Largest mean² / variance of channels whose variance is above the layer's epsilon. The mean is
    subtracted from values whose rounding it has determined: a share of offset / 2**22 of the
    variance is noise in float16, offset / 2**16 in bfloat16."""
    sum_of_squares: float
    """Largest sum of squared values over one channel of one frame. Nearly every network's exceeds
    65504 at some size; an engine that accumulates in float16 cannot run any of them."""

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {
            "variance": self.variance,
            "square": self.square,
            "offset": self.offset,
            "sum_of_squares": self.sum_of_squares,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAudit:
    """One layer: what its values are on all frames in float32, and what rounding it does."""

    name: str
    """As in ``network.named_modules()``."""
    kind: str
    """Class of the module, e.g. ``Conv2d``."""
    low: float
    """Smallest value of its output."""
    high: float
    """Largest value of its output."""
    largest_input: float
    """Largest absolute value of what it reads, which may be a sum that is no layer's output."""
    subnormal: float
    """Share of its output's non-zero values that are below 6.1e-5, where float16 loses digits."""
    lost: float
    """... and below 6e-8, where float16 has nothing; 0 to 1."""
    largest_weight: float
    """Largest absolute value of its weights and buffers; 0 without any."""
    lost_weights: float
    """Share of its non-zero weights below 6e-8; 0 to 1."""
    norm: NormAudit | None
    """None for a layer that takes no statistics."""
    output_error: Mapping[Half, float]
    """Precision -> error of rounding its output, relative to the output (root mean squares)."""
    weights_error: Mapping[Half, float]
    """Precision -> error of rounding its weights, relative to them; 0 without any."""
    alone: Mapping[Half, Effect]
    """Precision -> effect on the picture if this layer alone is computed in it. Empty for a layer
    that loses nothing by itself (ReLU, padding), or if single layers were not measured."""
    others: Mapping[Half, Effect]
    """... and if every layer but this one is."""

    @property
    def largest(self) -> float:
        """Largest absolute value of its output."""
        return max(abs(self.low), abs(self.high))

    def beyond_fp16(self) -> str | None:
        """Say what float16 cannot hold, or holds with less than :data:`HEADROOM` to spare."""
        norm = self.norm
        reached = [("a weight is", self.largest_weight, 1.0)]
        if norm is not None:
            reached.append(("variance reaches", norm.variance, HEADROOM**2))
            reached.append(("squared deviations reach", norm.square, HEADROOM**2))
        reached.append(("output reaches", self.largest, HEADROOM))
        reached.append(("input reaches", self.largest_input, HEADROOM))
        for what, value, headroom in reached:
            if value * headroom > FP16_MAX:
                near = "" if value > FP16_MAX else ", too near for other frames"
                return f"{what} {_number(value)}, fp16 ends at {FP16_MAX:.0f}{near}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "name": self.name,
            "kind": self.kind,
            "low": _finite(self.low),
            "high": _finite(self.high),
            "largest_input": _finite(self.largest_input),
            "subnormal": self.subnormal,
            "lost": self.lost,
            "largest_weight": self.largest_weight,
            "lost_weights": self.lost_weights,
            "norm": None if self.norm is None else self.norm.to_json(),
            "output_error": dict(self.output_error),
            "weights_error": dict(self.weights_error),
            "alone": {half: effect.to_json() for half, effect in self.alone.items()},
            "others": {half: effect.to_json() for half, effect in self.others.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfAudit:
    """Whether the network bears one half precision. Truthy if it does."""

    precision: Half
    keep_fp32: tuple[str, ...]
    """The layers that stay float32; empty if none needs to. Where the network does not bear the
    precision: the ones that were tried."""
    reasons: tuple[str, ...]
    """One line for each of ``keep_fp32``."""
    failures: tuple[str, ...]
    """Gates that are missed even so, as parity words them; empty if it holds."""
    before: Mapping[str, Summary]
    """Group of frames -> how far the picture is from float32's without islands."""
    after: Mapping[str, Summary]
    """... and with them; the same without any."""

    def __bool__(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "precision": self.precision,
            "holds": bool(self),
            "keep_fp32": list(self.keep_fp32),
            "reasons": list(self.reasons),
            "failures": list(self.failures),
            "before": {group: found.to_json() for group, found in self.before.items()},
            "after": {group: found.to_json() for group, found in self.after.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found; ``str()`` of it is a table."""

    layers: tuple[LayerAudit, ...]
    """In the order in which the network runs them."""
    halves: Mapping[Half, HalfAudit]
    frames: int
    """How many frames, or batches of frames, were looked at."""

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "format": "topcoat-precision",
            "format_version": 1,
            "frames": self.frames,
            "limits": {"fp16": {"max": FP16_MAX, "normal": FP16_NORMAL, "least": FP16_SMALLEST}},
            "layers": [layer.to_json() for layer in self.layers],
            "halves": {half: found.to_json() for half, found in self.halves.items()},
        }

    def __str__(self) -> str:
        return "\n".join([*_table(self.layers), "", *_conclusions(self.halves.values())])


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """What to export."""

    precisions: tuple[Precision, ...]
    """Graphs to make of the network; float32 is always the first."""
    int8: bool = False
    """Whether the float32 graph is to be quantised besides; see
    :func:`topcoat.export.quantisation.quantise`."""
    keep_fp32: Mapping[Precision, tuple[str, ...]] = field(default_factory=dict)
    """Precision -> layers that stay float32, for :func:`onnx_from_network`."""
    reasons: tuple[str, ...] = ()
    """Sentences that say why, to be printed."""


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
    :data:`HEADROOM` of its end. If the picture still misses what parity will ask of the engine,
    those that move it most stay too, as few as make it pass. None does where nothing shows a need.

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
        ranges, references = _ranges(plain, known, probes)
        pieces = _pieces(probes, network)
        wanted = [_answer(plain, piece) for piece in pieces]
        alone: dict[Half, dict[str, Effect]] = {"fp16": {}, "bf16": {}}
        others: dict[Half, dict[str, Effect]] = {"fp16": {}, "bf16": {}}
        modules = dict(plain.named_modules())
        computing = [name for name in known if not _is_exact(modules[name])]

        def effect_alone(half: Half, name: str) -> Effect:
            if name not in alone[half]:
                rounded = _Rounded(plain, half, known, only=name)
                alone[half][name] = _effect(map(rounded, pieces), wanted)
            return alone[half][name]

        halves: dict[Half, HalfAudit] = {}
        for half in ("fp16", "bf16"):
            progress(f"the whole network in {half}")
            halves[half] = _decide(half, plain, known, ranges, probes, references, effect_alone)
        if each_layer:
            for half in halves:
                progress(f"every layer by itself in {half}: {len(computing)} of {len(known)}")
                for name in computing:
                    effect_alone(half, name)
                    rounded = _Rounded(plain, half, known, islands=(name,))
                    others[half][name] = _effect(map(rounded, pieces), wanted)
    layers = tuple(_with_effects(ranges[name].finished(), name, alone, others) for name in ranges)
    return Audit(layers=layers, halves=halves, frames=len(probes))


def plan_precisions(asked: Asked, found: Audit) -> PrecisionPlan:
    """Decide what to export, from what was asked for and what was measured.

    Args:
        asked: ``auto``: float32, and float16 if the network bears it, else bfloat16 if it bears
            that; or ``fp32``, ``fp16``, ``bf16`` or ``int8``, each beside float32.
        found: of the same network.

    Raises:
        PrecisionError: ``fp16`` or ``bf16`` was asked for and does not hold even with a third of
            the layers in float32; the text has the numbers.
        ValueError: another word.
    """
    if asked not in ("auto", "fp32", "fp16", "bf16", "int8"):
        raise ValueError(f"precision must be auto, fp32, fp16, bf16 or int8, got {asked!r}")
    if asked == "fp32":
        return PrecisionPlan(precisions=("fp32",))
    if asked == "int8":
        return PrecisionPlan(precisions=("fp32",), int8=True)
    if asked == "auto":
        reasons: list[str] = []
        for half in ("fp16", "bf16"):
            result = found.halves[half]
            reasons += _conclusions([result])
            if result:
                return _plan(result, tuple(reasons))
        return PrecisionPlan(precisions=("fp32",), reasons=tuple(reasons))
    result = found.halves[asked]
    if not result:
        other: Half = "bf16" if asked == "fp16" else "fp16"
        instead = other if found.halves[other] else "fp32"
        tried = f", even with {len(result.keep_fp32)} layers in fp32" if result.keep_fp32 else ""
        raise PrecisionError(
            f"{asked} does not hold{tried}: {'; '.join(result.failures)}; "
            f"take --precision {instead}"
        )
    return _plan(result, tuple(_conclusions([result])))


def _plan(result: HalfAudit, reasons: tuple[str, ...]) -> PrecisionPlan:
    return PrecisionPlan(
        precisions=("fp32", result.precision),
        keep_fp32={result.precision: result.keep_fp32} if result.keep_fp32 else {},
        reasons=reasons,
    )


# Deciding


def _gate(half: Half, group: str) -> Gate:
    """What the rounded network must reach: parity's gate, but a share of values for their maximum.

    Rounding in single operations is noisier than an engine that stores fewer of them, and the worst
    of millions of values is the noisiest measure there is. Engines are held to it; see parity.
    """
    gate = GATES[half][group]
    if gate.max_steps is None:
        return gate
    return dataclasses.replace(gate, max_steps=None, within_4_steps=_WITHIN)


def _decide(
    half: Half,
    network: FrameNetwork,
    known: Mapping[str, set[str] | None],
    ranges: Mapping[str, "_Range"],
    probes: Sequence[ProbeFrame],
    references: Sequence[Frame],
    effect_alone: Callable[[Half, str], Effect],
) -> HalfAudit:
    def measure(islands: Iterable[str], which: Sequence[int]) -> dict[str, Summary]:
        rounded = _Rounded(network, half, known, islands=tuple(islands))
        by_group: dict[str, list[Any]] = {}
        for index in which:
            candidate = _as_frame(rounded(probes[index].frame))
            found = difference(references[index], candidate)
            by_group.setdefault(probes[index].group, []).append(found)
        return {group: summary(found) for group, found in by_group.items()}

    def failures(found: Mapping[str, Summary]) -> list[str]:
        return [
            f"{group}: {missed}"
            for group, measured in found.items()
            for missed in _gate(half, group).failures(measured)
        ]

    every = range(len(probes))
    before = after = measure((), every)
    chosen: dict[str, str] = {}
    if half == "fp16":
        for name, found in ranges.items():
            if (why := found.finished().beyond_fp16()) is not None:
                chosen[name] = why
        if chosen:
            after = measure(chosen, every)
    if missed := failures(after):
        modules = dict(network.named_modules())
        computing = [name for name in known if not _is_exact(modules[name])]
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
            chosen[name] = f"alone in {half} it moves the picture by {_effect_words(effect)}"
        after = measure(chosen, every)
        missed = failures(after)
    order = [name for name in known if name in chosen]
    return HalfAudit(
        precision=half,
        keep_fp32=tuple(order),
        reasons=tuple(f"{name} {ranges[name].kind}: {chosen[name]}" for name in order),
        failures=tuple(missed),
        before=before,
        after=after,
    )


# Running the network, with rounding or without


def _answer(network: Callable[[Tensor], Tensor], frame: Frame) -> Tensor:
    """(H, W, 3) or (N, H, W, 3), uint8 -> (N, H*scale, W*scale, 3), 0 to 255, not rounded.

    The arithmetic of :class:`~topcoat.export.onnx_from_checkpoint.FrameGraph`, up to its rounding
    to 8 bits; sizes are made up to what the network takes, as everywhere.
    """
    batch = torch.tensor(frame, dtype=torch.float32)
    planes = (batch if frame.ndim == 4 else batch[None]).permute(0, 3, 1, 2)  # (N, 3, H, W)
    height, width = planes.shape[2:]
    multiple = int(getattr(network, "size_multiple", 1))
    least, scale = int(getattr(network, "size_min", 1)), int(getattr(network, "scale", 1))
    down, right = (
        max(least, math.ceil(side / multiple) * multiple) - side for side in (height, width)
    )
    planes = F.pad(planes, (0, right, 0, down), mode="replicate")
    made = network(planes * (1 / 255)) * 255
    return made[:, :, : height * scale, : width * scale].clamp(0, 255).permute(0, 2, 3, 1)


def _as_frame(answer: Tensor) -> Frame:
    """Round to a batch of frames; what is no number becomes black, as in most engines."""
    frame: Frame = answer.nan_to_num(0.0).round().to(torch.uint8).contiguous().numpy()
    return frame


class _Rounded:
    """A network that computes in half precision: rounds every value that it stores.

    Args:
        network: float32; it is copied.
        half: what to round to.
        known: of :func:`called_layers`.
        islands: layers that stay float32, as
            :func:`~topcoat.export.onnx_from_checkpoint.with_fp32_islands` makes them.
        only: round within this layer alone, and nothing else.
    """

    def __init__(
        self,
        network: FrameNetwork,
        half: Half,
        known: Mapping[str, set[str] | None],
        *,
        islands: Sequence[str] = (),
        only: str | None = None,
    ) -> None:
        self.dtype = DTYPES[half]
        self.mode = _RoundingMode(self.dtype)
        self.only = only
        self.network = copy.deepcopy(network)
        modules = dict(self.network.named_modules())
        names = set(islands)
        full = {
            id(tensor)
            for name in (known if only is not None else names)
            if name != only
            for tensor in (*modules[name].parameters(), *modules[name].buffers())
        }
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            # Values that belong to no layer are rounded with the rest, and not with a single one.
            alone = only is not None and not _belongs(tensor, modules[only])
            if tensor.is_floating_point() and id(tensor) not in full and not alone:
                tensor.copy_(tensor.to(self.dtype))
        for name, readers in known.items():
            module = modules[name]
            in_half = name == only if only is not None else name not in names
            if in_half and _takes_statistics(module):
                module.forward = functools.partial(_normalised_in_steps, module)
            stays_open = readers is None or bool(readers and readers <= names)
            module.register_forward_pre_hook(functools.partial(self._enter, in_half))
            module.register_forward_hook(functools.partial(self._leave, in_half, stays_open))

    def __call__(self, frame: Frame) -> Tensor:
        """Run it on a frame, or a batch, as :func:`_answer` does."""
        self.mode.rounds = self.only is None
        with self.mode:
            return _answer(self.network, frame)

    def _enter(self, in_half: bool, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        self.mode.rounds = in_half
        if not in_half:
            return arguments
        return tuple(
            self.mode.rounded(value) if isinstance(value, Tensor) else value for value in arguments
        )

    def _leave(
        self, in_half: bool, stays_open: bool, _: nn.Module, __: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        if self.only is not None:
            self.mode.rounds = False
            return output
        if in_half:
            return output
        # Behind an island that nothing but islands read, float32 goes on.
        self.mode.rounds = not stays_open
        return output if stays_open else self.mode.rounded(output)


class _RoundingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the result of every operation to half precision, and keeps it as float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.rounds = True

    def rounded(self, value: Tensor) -> Tensor:
        return value.to(self.dtype).to(value.dtype) if value.is_floating_point() else value

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator of torch, which has no public type
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it returns
        result = func(*args, **(kwargs or {}))
        if not self.rounds or func.is_view:
            return result
        if func._schema.is_mutable:  # writes into what it was given
            if isinstance(result, Tensor) and result.is_floating_point():
                result.copy_(self.rounded(result))
            return result
        if isinstance(result, Tensor):
            return self.rounded(result)
        if isinstance(result, tuple | list):
            return type(result)(
                self.rounded(value) if isinstance(value, Tensor) else value for value in result
            )
        return result


def _takes_statistics(module: nn.Module) -> bool:
    own = getattr(module, "track_running_stats", False)
    return isinstance(module, _NORMS) and not own


def _normalised_in_steps(module: nn.Module, x: Tensor) -> Tensor:
    """Normalise by single operations, so that every intermediate is rounded."""
    weight: Tensor | None = module.weight  # type: ignore[assignment]
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    eps = float(module.eps)  # type: ignore[arg-type]
    if isinstance(module, nn.LayerNorm):
        dims = tuple(range(-len(module.normalized_shape), 0))
        values = x
    elif isinstance(module, nn.GroupNorm):
        values = x.reshape(x.shape[0], module.num_groups, -1)
        dims = (-1,)
    else:
        values = x
        dims = (-2, -1)
    deviation = values - values.mean(dims, keepdim=True)
    variance = (deviation * deviation).mean(dims, keepdim=True)
    normal = (deviation * torch.rsqrt(variance + eps)).reshape(x.shape)
    if not isinstance(module, nn.LayerNorm):  # one weight for each channel
        shape = (1, -1, *(1,) * (x.ndim - 2))
        weight = None if weight is None else weight.reshape(shape)
        bias = None if bias is None else bias.reshape(shape)
    if weight is not None:
        normal = normal * weight
    return normal if bias is None else normal + bias


def _belongs(tensor: Tensor, module: nn.Module) -> bool:
    return any(tensor is own for own in (*module.parameters(), *module.buffers()))


def _is_exact(module: nn.Module) -> bool:
    return isinstance(module, _EXACT) or (
        isinstance(module, nn.Upsample) and module.mode == "nearest"
    )


# Looking at a layer's values


class _Range:
    """Collects what one layer's values are, over all frames."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.kind = type(module).__name__
        self.module = module
        self.low, self.high, self.largest_input = math.inf, -math.inf, 0.0
        self.values = self.subnormal = self.lost = 0
        self.energy = 0.0
        self.noise: dict[Half, float] = {"fp16": 0.0, "bf16": 0.0}
        self.norm: NormAudit | None = None

    def __call__(self, _: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        read = [value for value in arguments if isinstance(value, Tensor)]
        for value in read:
            low, high = torch.aminmax(value)
            self.largest_input = max(self.largest_input, -float(low), float(high))
        if not isinstance(output, Tensor):
            return
        low, high = torch.aminmax(output)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        flat = output.flatten()
        sample = flat[:: 1 + flat.numel() // _SAMPLE]
        size = sample.abs()
        self.values += int((size > 0).sum())
        self.subnormal += int(((size > 0) & (size < FP16_NORMAL)).sum())
        self.lost += int(((size > 0) & (size < FP16_SMALLEST)).sum())
        self.energy += float(sample.double().square().sum())
        for half in self.noise:
            self.noise[half] += _rounding_noise(sample, half)
        if read and _takes_statistics(self.module):
            self._statistics(read[0])

    def _statistics(self, x: Tensor) -> None:
        if isinstance(self.module, nn.GroupNorm):
            values = x.reshape(x.shape[0], self.module.num_groups, -1)
        elif isinstance(self.module, nn.LayerNorm):
            values = x.flatten(-len(self.module.normalized_shape))
        else:
            values = x.flatten(2)
        variance, mean = torch.var_mean(values, -1, correction=0)
        low, high = torch.aminmax(values, dim=-1)
        square = torch.maximum(high - mean, mean - low).square()
        tells = variance > float(self.module.eps)  # type: ignore[arg-type]
        offset = (mean.square() / variance)[tells]
        total = (variance + mean.square()) * values.shape[-1]
        before = self.norm or NormAudit(variance=0, square=0, offset=0, sum_of_squares=0)
        self.norm = NormAudit(
            variance=max(before.variance, float(variance.max())),
            square=max(before.square, float(square.max())),
            offset=max(before.offset, float(offset.max()) if offset.numel() else 0.0),
            sum_of_squares=max(before.sum_of_squares, float(total.max())),
        )

    def finished(self) -> LayerAudit:
        """What was found; single layers' effects are filled in elsewhere."""
        weights = [
            tensor.detach().flatten()
            for tensor in (*self.module.parameters(), *self.module.buffers())
            if tensor.is_floating_point()
        ]
        together = torch.cat(weights) if weights else torch.zeros(1)
        size = together.abs()
        nonzero = size > 0
        energy = float(together.double().square().sum())
        return LayerAudit(
            name=self.name,
            kind=self.kind,
            low=self.low,
            high=self.high,
            largest_input=self.largest_input,
            subnormal=self.subnormal / max(self.values, 1),
            lost=self.lost / max(self.values, 1),
            largest_weight=float(size.max()),
            lost_weights=float((nonzero & (size < FP16_SMALLEST)).sum())
            / max(int(nonzero.sum()), 1),
            norm=self.norm,
            output_error={
                half: _relative(noise, self.energy) for half, noise in self.noise.items()
            },
            weights_error={
                half: _relative(_rounding_noise(together, half), energy) for half in self.noise
            },
            alone={},
            others={},
        )


def _ranges(
    network: FrameNetwork, known: Iterable[str], probes: Sequence[ProbeFrame]
) -> tuple[dict[str, _Range], list[Frame]]:
    """Look at every layer's values, and keep the pictures that come out."""
    modules = dict(network.named_modules())
    ranges = {name: _Range(name, modules[name]) for name in known}
    hooks = [modules[name].register_forward_hook(found) for name, found in ranges.items()]
    try:
        references = [_as_frame(_answer(network, probe.frame)) for probe in probes]
    finally:
        for hook in hooks:
            hook.remove()
    return ranges, references


def _rounding_noise(values: Tensor, half: Half) -> float:
    """Sum of squared rounding errors; what overflows counts as lost whole."""
    rounded = values.to(DTYPES[half]).double()
    exact = values.double()
    return float((torch.where(rounded.isfinite(), rounded, 0) - exact).square().sum())


def _relative(noise: float, energy: float) -> float:
    return math.sqrt(noise / energy) if energy else 0.0


def _pieces(probes: Sequence[ProbeFrame], network: FrameNetwork) -> list[Frame]:
    """Cut the middle out of the first frames: small ones, for what is run once for each layer."""
    multiple, least = network.size_multiple, network.size_min
    side = max(least, math.ceil(_PIECE / network.scale / multiple) * multiple)
    pieces = []
    for probe in probes[:_PIECES]:
        frame: NDArray[np.uint8] = probe.frame if probe.frame.ndim == 3 else probe.frame[0]
        top, left = (max(0, (length - side) // 2) for length in frame.shape[:2])
        pieces.append(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    return pieces


def _effect(answers: Iterable[Tensor], wanted: Iterable[Tensor]) -> Effect:
    worst, squared, values = 0.0, 0.0, 0
    for answer, reference in zip(answers, wanted, strict=True):
        off = (answer - reference).double()
        if not bool(off.isfinite().all()):
            return Effect(max_steps=math.inf, psnr_db=0.0)
        worst = max(worst, float(off.abs().max()))
        squared += float(off.square().sum())
        values += off.numel()
    psnr = 10 * math.log10(255**2 * values / squared) if squared else math.inf
    return Effect(max_steps=worst, psnr_db=psnr)


def _with_effects(
    layer: LayerAudit,
    name: str,
    alone: Mapping[Half, Mapping[str, Effect]],
    others: Mapping[Half, Mapping[str, Effect]],
) -> LayerAudit:
    return dataclasses.replace(
        layer,
        alone={half: found[name] for half, found in alone.items() if name in found},
        others={half: found[name] for half, found in others.items() if name in found},
    )


# Words


_HEADINGS = (
    "layer",
    "kind",
    "output",
    "below fp16",
    "variance",
    "mean²/var",
    "alone fp16",
    "alone bf16",
    "others fp16",
    "others bf16",
)


def _table(layers: Sequence[LayerAudit]) -> list[str]:
    """Lay out the layers that compute or are in danger, a line each."""
    rows = [list(_HEADINGS)]
    for layer in layers:
        if not layer.alone and layer.norm is None and layer.beyond_fp16() is None:
            continue
        norm = layer.norm
        rows.append(
            [
                layer.name,
                layer.kind,
                f"{_number(layer.low)} to {_number(layer.high)}",
                f"{layer.subnormal:.2%}" if layer.subnormal else "",
                "" if norm is None else _number(norm.variance),
                "" if norm is None else _number(norm.offset),
                *(
                    _effect_words(effects[half]) if half in effects else ""
                    for effects in (layer.alone, layer.others)
                    for half in ("fp16", "bf16")
                ),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _conclusions(found: Iterable[HalfAudit]) -> list[str]:
    lines = []
    for half in found:
        if half and not half.keep_fp32:
            lines.append(f"{half.precision} holds as it is: {_summary_words(half.after)}")
        elif half:
            lines.append(
                f"{half.precision} holds with {len(half.keep_fp32)} "
                f"layer{'s' * (len(half.keep_fp32) > 1)} in fp32: {_summary_words(half.after)}; "
                f"without: {_summary_words(half.before)}"
            )
        else:
            lines.append(f"{half.precision} does not hold: {'; '.join(half.failures)}")
        lines += [f"  {'stays' if half else 'tried in'} fp32: {why}" for why in half.reasons]
    return lines


def _summary_words(found: Mapping[str, Summary]) -> str:
    group = next((name for name in ("photographs", "noise") if name in found), next(iter(found)))
    measured = found[group]
    if math.isinf(measured.psnr_db):
        return f"{group} equal"
    return (
        f"{group} within {measured.max_steps} step{'s' * (measured.max_steps != 1)}, "
        f"{measured.psnr_db:.1f} dB"
    )


def _effect_words(effect: Effect) -> str:
    if math.isinf(effect.max_steps):
        return "no number"
    if math.isinf(effect.psnr_db):
        return "0"
    return f"{effect.max_steps:.2g} steps, {effect.psnr_db:.0f} dB"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
