"""Make an int8 graph of a float32 one, as far as the picture bears it.

Post-training quantisation by ``onnxruntime.quantization``: weights become int8, one scale for each
output channel, and what a convolution reads is rounded to 8 bits by a scale that is found on
calibration frames. Its sums, its bias and all other operators stay float32: normalisation takes
statistics of a convolution's output, and 8 bits of it are too few for those.

Which convolutions bear that is measured: each is quantised by itself, and those that move the
picture most stay float32, as few as make the rest pass parity's gate for int8. What cannot pass
with most of its arithmetic in int8 is refused.
"""

import contextlib
import dataclasses
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import onnx

from topcoat.export._errors import QuantisationError
from topcoat.export._threads import half_the_cores
from topcoat.export.probes import (
    Frame,
    ProbeFrame,
    noise_probes,
    probe_frames,
    user_photographs,
)
from topcoat.runtime.backends.onnxruntime import import_onnxruntime
from topcoat.runtime.parity import (
    GATES,
    LONGEST_SIDE,
    Difference,
    Summary,
    difference,
    flatness,
    gate_failures,
    summary,
    synthetic_frames,
)

__all__ = [
    "LEAST_SHARE",
    "METHODS",
    "MOST_FRAMES",
    "Convolution",
    "Method",
    "QuantisationError",
    "QuantisationReport",
    "Quantised",
    "Sizes",
    "calibration_frames",
    "quantise",
]

Method: TypeAlias = Literal["MinMax", "Percentile", "Entropy"]
"""How a scale is found, in the words of ``onnxruntime.quantization.CalibrationMethod``."""

METHODS: tuple[Method, ...] = ("MinMax", "Percentile", "Entropy")
LEAST_SHARE = 0.5
"""Of the arithmetic that must be int8: with less, too little time is saved for a file more."""
MOST_FRAMES = 8
"""That a scale is found on. The histograms hold every convolution's input for all of them."""
_SIDE = 256
"""Largest side of a calibration frame, in output pixels."""
_PIECE = 160
"""Side of the pieces on which single convolutions are measured, in output pixels."""
_CONVOLUTIONS = ("Conv", "ConvTranspose")


class Sizes(Protocol):
    """What a network says of its sizes; every ``FrameNetwork`` does."""

    @property
    def takes(self) -> Literal["frame", "noise"]:
        """A picture, or noise."""

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along each axis."""

    @property
    def size_multiple(self) -> int:
        """Height and width are multiples of this."""

    @property
    def size_min(self) -> int:
        """... and at least this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One convolution of the graph."""

    name: str
    """Of its weight, which is the network's name for it."""
    share: float
    """Of the graph's multiplications, 0 to 1."""
    psnr_db: float
    """Of the picture if this one alone is quantised; infinite if that changes nothing."""
    quantised: bool
    """Whether it is int8 in the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationReport:
    """How a graph was quantised, and what it is worth in image terms."""

    method: Method
    methods: Mapping[str, float]
    """Calibration method -> PSNR in dB with every convolution quantised; the best was taken."""
    symmetric: bool
    frames: int
    """That the scales were found on."""
    convolutions: tuple[Convolution, ...]
    """In the order of the graph."""
    everything: Mapping[str, Summary]
    """Group of frames -> difference from float32 if every convolution is quantised."""
    result: Mapping[str, Summary]
    """... and as the graph is now."""
    bytes_fp32: int
    bytes_int8: int

    @property
    def share(self) -> float:
        """Of the multiplications that are int8, 0 to 1."""
        return sum(conv.share for conv in self.convolutions if conv.quantised)

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON reader takes."""
        return {
            "format": "topcoat-quantisation",
            "format_version": 1,
            "method": self.method,
            "methods": dict(self.methods),
            "symmetric": self.symmetric,
            "frames": self.frames,
            "share": self.share,
            "bytes_fp32": self.bytes_fp32,
            "bytes_int8": self.bytes_int8,
            "convolutions": [
                {
                    "name": conv.name,
                    "share": conv.share,
                    "psnr_db": conv.psnr_db if math.isfinite(conv.psnr_db) else None,
                    "quantised": conv.quantised,
                }
                for conv in self.convolutions
            ],
            "everything": {group: found.to_json() for group, found in self.everything.items()},
            "result": {group: found.to_json() for group, found in self.result.items()},
        }

    def __str__(self) -> str:
        kept = [conv for conv in self.convolutions if not conv.quantised]
        lines = [
            f"int8: {len(self.convolutions) - len(kept)} of {len(self.convolutions)} convolutions, "
            f"{self.share:.0%} of the arithmetic; {_words(self.result)}; "
            f"{self.bytes_int8 / self.bytes_fp32:.0%} of the bytes"
        ]
        if kept:
            lines.append(f"  with all of them: {_words(self.everything)}")
        lines += [
            f"  stays fp32: {conv.name}: alone in int8 the picture has {conv.psnr_db:.1f} dB"
            for conv in kept
        ]
        found = ", ".join(f"{name} {psnr:.1f} dB" for name, psnr in self.methods.items())
        lines.append(f"  scales from {self.frames} frames by {self.method} ({found})")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A graph whose convolutions are int8 where the picture bears it."""

    model: onnx.ModelProto
    """Opset and frame contract of the float32 graph; ``topcoat.precision`` is ``int8``."""
    report: QuantisationReport


def calibration_frames(
    network: Sizes,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Frame]:
    """Choose the frames that scales are found on: small photographs and hard frames, or noise.

    The hard ones, a checker of single pixels and noise, have more contrast than any photograph.
    Without them a text on a screen would be cut off by scales that suit photographs.

    Args:
        network: the sizes that it takes, and its scale.
        folder: of photographs like those that the network will see. If None, the photographs that
            scikit-image carries; for a texture always noise.
        progress: is told of every photograph that cannot be read and is skipped.

    Returns:
        At most :data:`MOST_FRAMES` photographs or frames of noise, of at most 256 output pixels.

    Raises:
        PhotographError: ``folder`` holds no readable photograph, or was given and is not wanted.
    """
    if network.takes == "noise":
        noise = noise_probes(network.size_multiple, network.size_min)
        frames = [probe.frame for probe in noise if probe.group == "noise"]
    elif folder is None:
        small = probe_frames(network.size_min, scale=network.scale)
        frames = [probe.frame for probe in small if probe.group == "photographs"]
    else:
        longest = LONGEST_SIDE // network.scale
        frames = [probe.frame for probe in user_photographs(folder, progress, longest=longest)]
    frames = [frame for frame in frames if frame.ndim == 3]
    spaced = np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).astype(int)
    found = [_piece(frames[i], network, _SIDE) for i in spaced]
    if network.takes == "frame":
        side = found[0].shape[0]
        drawn = synthetic_frames(side, side)
        found += [drawn["checker"], drawn["noise"]]
    return found


def quantise(
    model: onnx.ModelProto,
    network: Sizes,
    calibration: Sequence[Frame] | None = None,
    *,
    probes: Sequence[ProbeFrame] | None = None,
    symmetric: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Quantised:
    """Quantise the convolutions of a float32 graph, as many as the picture bears.

    Args:
        model: a graph of the frame contract, float32; it is copied, not changed.
        network: the sizes that it takes, and its scale.
        calibration: what the scales are found on, (H, W, 3) each; :func:`calibration_frames` if
            None.
        probes: what the picture is judged on, against the float32 graph; if None the
            photographs, synthetic frames and flat areas that parity compares, or its noise.
        symmetric: what a convolution reads is int8 around zero. TensorRT takes nothing else. If
            not, it is uint8 with a zero point, which has a bit more behind a ReLU; OpenVINO 2026.4
            computes a frame of one pixel wrongly then, where a sum follows the convolution.
        progress: is told what is being done.

    Returns:
        The graph and a report. The same graph and frames give the same bytes.

    Raises:
        QuantisationError: the gate of int8 is missed with half the arithmetic in float32; the text
            has the numbers. Or there is no convolution.
    """
    frames = list(calibration_frames(network) if calibration is None else calibration)
    if not frames:
        raise QuantisationError("no frames to find scales on; give at least one photograph")
    judged = list(_judged(network) if probes is None else probes)
    plain = _parsed(model.SerializeToString())
    shares = _shares(plain, frames[0], network)
    if not shares:
        raise QuantisationError("the graph has no convolution to quantise; export it in fp32")
    pieces = [_piece(frame, network, _PIECE) for frame in frames]
    exact = _Engine(plain, network)
    wanted = [exact(piece) for piece in pieces]

    def loss(candidate: onnx.ModelProto) -> Summary:
        engine = _Engine(candidate, network)
        pairs = zip(wanted, pieces, strict=True)
        return summary(difference(reference, engine(piece)) for reference, piece in pairs)

    with half_the_cores():
        whole: dict[Method, onnx.ModelProto] = {}
        methods: dict[str, float] = {}
        for method in METHODS:
            progress(f"int8: scales from {len(frames)} frames by {method}")
            whole[method] = _quantised(plain, frames, network, method, symmetric)
            methods[method] = loss(whole[method]).psnr_db
        method = max(METHODS, key=lambda name: methods[name])
        full = whole[method]
        names = list(shares)
        progress(f"int8: each of {len(names)} convolutions by itself")
        alone = {name: loss(_only(full, plain, {name})).psnr_db for name in names}
        references = [exact(probe.frame) for probe in judged]

        def judge(candidate: onnx.ModelProto) -> dict[str, Summary]:
            engine = _Engine(candidate, network)
            by_group: dict[str, list[Difference]] = {}
            for probe, reference in zip(judged, references, strict=True):
                answer = engine(probe.frame)
                found = difference(reference, answer)
                if probe.group == "flat":
                    even = (reference == reference[:, :1, :1]).all(axis=(1, 2, 3))
                    found = dataclasses.replace(found, flat=flatness(probe.frame, answer, even))
                by_group.setdefault(probe.group, []).append(found)
            return {group: summary(found) for group, found in by_group.items()}

        progress(f"int8: the picture on {len(judged)} frames")
        everything = result = judge(full)
        candidate, kept = full, set(names)
        # The worst ones first.
        for name in sorted(names, key=lambda name: alone[name]):
            if not (missed := _failures(result)):
                break
            if sum(shares[other] for other in kept - {name}) < LEAST_SHARE:
                raise QuantisationError(
                    f"int8 does not hold, even with {len(names) - len(kept)} of {len(names)} "
                    f"convolutions in fp32: {'; '.join(missed)}; take --precision fp16 or fp32"
                )
            kept.discard(name)
            candidate = _only(full, plain, kept)
            result = judge(candidate)
        if missed := _failures(result):
            raise QuantisationError(
                f"int8 does not hold: {'; '.join(missed)}; take --precision fp16 or fp32"
            )
        # Those that were left out before the one that mattered come back.
        for name in sorted(set(names) - kept, key=names.index):
            more = _only(full, plain, kept | {name})
            if not _failures(found := judge(more)):
                candidate, kept, result = more, kept | {name}, found
    _sign(candidate, plain)
    onnx.checker.check_model(candidate, full_check=True)
    return Quantised(
        model=candidate,
        report=QuantisationReport(
            method=method,
            methods=methods,
            symmetric=symmetric,
            frames=len(frames),
            convolutions=tuple(
                Convolution(
                    name=name, share=shares[name], psnr_db=alone[name], quantised=name in kept
                )
                for name in names
            ),
            everything=everything,
            result=result,
            bytes_fp32=plain.ByteSize(),
            bytes_int8=candidate.ByteSize(),
        ),
    )


def _judged(network: Sizes) -> list[ProbeFrame]:
    if network.takes == "noise":
        probes = noise_probes(network.size_multiple, network.size_min)
        return [probe for probe in probes if probe.group == "noise"]
    probes = probe_frames(network.size_min, scale=network.scale)
    return [probe for probe in probes if probe.group in ("photographs", "synthetic", "flat")]


def _failures(found: Mapping[str, Summary]) -> list[str]:
    return gate_failures(found, GATES["int8"].__getitem__)


# The library's part


class _Reader:
    """Hands the frames to the library's calibration, one after the other."""

    def __init__(self, name: str, frames: Iterable[Frame]) -> None:
        self.frames = iter([{name: frame[None]} for frame in frames])

    def get_next(self) -> dict[str, Frame] | None:
        return next(self.frames, None)


def _quantised(
    model: onnx.ModelProto,
    frames: Sequence[Frame],
    network: Sizes,
    method: Method,
    symmetric: bool,
) -> onnx.ModelProto:
    """Quantise every convolution: Q and DQ in front of it, its weight as int8 and DQ."""
    import_onnxruntime()  # first: it switches telemetry off
    from onnxruntime import quantization

    padded = _alike(frames, network)
    copied = _parsed(model.SerializeToString())  # the library changes its input
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            copied,
            file,
            _Reader(model.graph.input[0].name, padded),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_CONVOLUTIONS),
            per_channel=True,
            activation_type=(
                quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8
            ),
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
            calibration_providers=["CPUExecutionProvider"],
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": list(_CONVOLUTIONS),
                # TensorRT has no DequantizeLinear of int32, which a bias would take.
                "QuantizeBias": False,
            },
        )
        return _parsed(file.read_bytes())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the library's advice to preprocess the graph, which is optimised already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(None):  # the histograms announce themselves
                yield
    finally:
        logging.disable(before)


# The graph


def _only(full: onnx.ModelProto, plain: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Leave only some convolutions quantised: the others read what they read before."""
    model = _parsed(full.SerializeToString())
    graph, names = model.graph, set(names)
    original = {node.name: node for node in plain.graph.node}
    for node in graph.node:
        if node.op_type in _CONVOLUTIONS and original[node.name].input[1] not in names:
            node.input[:2] = original[node.name].input[:2]
    while True:
        used = {name for node in graph.node for name in node.input}
        used |= {value.name for value in graph.output}
        needed = [node for node in graph.node if used & set(node.output)]
        if len(needed) == len(graph.node):
            break
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in needed]
        del graph.node[:]
        graph.node.extend(nodes)
    known = {tensor.name: tensor for tensor in plain.graph.initializer}
    known |= {tensor.name: tensor for tensor in graph.initializer}
    tensors = [
        onnx.TensorProto.FromString(known[name].SerializeToString())
        for name in sorted(used & set(known))
    ]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    del graph.value_info[:]
    return model


def _shares(model: onnx.ModelProto, frame: Frame, network: Sizes) -> dict[str, float]:
    """Weight of every convolution -> its share of all their multiplications, in graph order."""
    sized = _parsed(model.SerializeToString())
    shape = _padded(frame, network)[0].shape
    dims = sized.graph.input[0].type.tensor_type.shape.dim
    for dim, length in zip(dims, (1, *shape), strict=True):
        dim.dim_value = length
    for dim in sized.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    area = {
        value.name: math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim[2:])
        for value in (*inferred.value_info, *inferred.output)
    }
    weights = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    products: dict[str, float] = {}
    for node in model.graph.node:
        if node.op_type in _CONVOLUTIONS and node.input[1] in weights:
            # A transposed convolution multiplies every input pixel with every weight.
            place = node.output[0] if node.op_type == "Conv" else node.input[0]
            products[node.input[1]] = weights[node.input[1]] * area.get(place, 0)
    total = sum(products.values())
    return {name: value / total for name, value in products.items()} if total else {}


def _parsed(content: bytes) -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    return model


def _sign(model: onnx.ModelProto, plain: onnx.ModelProto) -> None:
    """Take the library's marks off, and say that it is int8."""
    model.producer_name, model.producer_version = plain.producer_name, plain.producer_version
    model.ir_version = plain.ir_version
    model.graph.name = plain.graph.name
    del model.opset_import[:]
    model.opset_import.extend(plain.opset_import)
    props = {entry.key: entry.value for entry in plain.metadata_props}
    onnx.helper.set_model_props(model, {**props, "topcoat.precision": "int8"})


# Frames


class _Engine:
    """Runs a graph on frames of any size, as the runtime does."""

    def __init__(self, model: onnx.ModelProto, network: Sizes) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.name = model.graph.input[0].name
        self.network = network

    def __call__(self, frame: Frame) -> Frame:
        padded, (height, width) = _padded(frame, self.network)
        batch = padded if padded.ndim == 4 else padded[None]
        (made,) = self.session.run(None, {self.name: batch})
        scale = self.network.scale
        cut: Frame = np.ascontiguousarray(made[:, : height * scale, : width * scale])
        return cut if frame.ndim == 4 else cut[0]


def _padded(frame: Frame, network: Sizes) -> tuple[Frame, tuple[int, int]]:
    """Repeat the last row and column up to a size that the network takes."""
    height, width = frame.shape[-3:-1]
    down, right = (
        max(network.size_min, math.ceil(side / network.size_multiple) * network.size_multiple)
        - side
        for side in (height, width)
    )
    edges = [(0, 0)] * (frame.ndim - 3) + [(0, down), (0, right), (0, 0)]
    return np.pad(frame, edges, mode="edge"), (height, width)


def _alike(frames: Sequence[Frame], network: Sizes) -> list[Frame]:
    """Bring frames to one size that the network takes: the library's histograms want that.

    Photographs repeat their last row and column; noise repeats itself, as its textures do.
    """
    padded = [_padded(frame, network)[0] for frame in frames]
    height, width = (max(frame.shape[axis] for frame in padded) for axis in (0, 1))
    return [
        np.pad(
            frame,
            [(0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)],
            mode="wrap" if network.takes == "noise" else "edge",
        )
        for frame in padded
    ]


def _piece(frame: Frame, network: Sizes, side: int) -> Frame:
    """Cut the middle out of a frame; a multiple of what the network takes."""
    multiple = network.size_multiple
    side = max(network.size_min, side // network.scale // multiple * multiple)
    top, left = (max(0, (length - side) // 2) for length in frame.shape[:2])
    return np.ascontiguousarray(frame[top : top + side, left : left + side])


def _words(found: Mapping[str, Summary]) -> str:
    group = next((name for name in ("photographs", "noise") if name in found), next(iter(found)))
    measured = found[group]
    return (
        f"{group} {measured.psnr_db:.1f} dB, worst {measured.worst_psnr_db:.1f} dB, "
        f"tone within {measured.tone_steps:.1f} steps"
    )
