"""The least time that a network can take on a GPU: by its arithmetic, and by its memory traffic.

Counted over the ONNX graph itself, at one frame size, with the shapes that onnx infers:

arithmetic  the multiply-accumulates of every Conv, ConvTranspose, MatMul and Gemm, two operations
            each, computed directly (no Winograd, no folding of an enlargement into the convolution
            behind it), divided by the peak of the type they are computed in. Everything else counts
            as free.
memory      the bytes that must be read from and written to device memory, divided by bandwidth. One
            kernel per convolution is assumed, and that everything between two convolutions is part
            of one of them: padding, resizing, activations, affine colour changes, sums, and even
            normalisation, as if its statistics were known before. A kernel reads each tensor that
            it needs once, at the smallest it is on its way, and writes what later kernels need.
unfused     the same with one kernel per node of the graph, which is what a framework does that
            fuses nothing.

Tensors are counted whether or not they would fit into the device's cache, so the memory floor of a
network whose tensors all fit is no true bound there; the arithmetic floor always is, for direct
convolution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MATRIX_OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_VIEWS = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")

_TYPES = {1: "fp32", 10: "fp16", 16: "bf16", 3: "int8", 2: "uint8"}
"""ONNX element type -> what peaks call it."""

KNOWN_GPUS: Mapping[str, tuple[float, float, float]] = {
    "H200": (67, 989, 4800),
    "H100 80GB HBM3": (67, 989, 3350),
    "A100 SXM4 80GB": (19.5, 312, 2039),
    "L40S": (91.6, 362, 864),
    "L4": (30.3, 121, 300),
    "T4": (8.1, 65, 320),
    "RTX 5090": (104.8, 209.5, 1792),
    "RTX 5080": (56.3, 112.6, 960),
    "RTX 4090": (82.6, 165.2, 1008),
    "RTX 4080": (48.7, 97.5, 717),
    "RTX 3090": (35.6, 71, 936),
    "RTX 3080": (29.8, 59.5, 760),
}
"""TFLOP/s in fp32 outside the tensor cores, TFLOP/s in fp16 with fp32 sums, and GB/s, from NVIDIA's
data sheets and architecture papers: dense, at boost clock. Used where nothing could be measured."""


_OTHER_CARDS = frozenset({"ti", "super", "laptop", "max", "d", "pcie", "nvl", "mig"})


class FloorError(ValueError):
    """A graph's work cannot be counted, or a GPU's peak is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What a GPU does at best."""

    flops: Mapping[str, float]
    """Precision ("fp32", "fp16", ...) -> floating point operations per second."""
    bandwidth: float
    """Bytes per second, read and written together."""
    source: str
    """Where the figures come from."""

    def flops_of(self, precision: str) -> float:
        """Return the peak of a precision; bf16 runs at fp16's.

        Raises:
            FloorError: it is not known.
        """
        for name in (precision, "fp16" if precision == "bf16" else precision):
            if name in self.flops:
                return self.flops[name]
        raise FloorError(
            f"no peak is known for {precision}, only for {', '.join(self.flops)}; measure it with"
            " torch on the GPU, or give --tflops"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures in TFLOP/s and GB/s."""
        return {
            "tflops": {name: value / 1e12 for name, value in self.flops.items()},
            "gigabytes_per_second": self.bandwidth / 1e9,
            "source": self.source,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Peaks:
        """Read what :meth:`to_json` wrote."""
        return cls(
            flops={name: value * 1e12 for name, value in content["tflops"].items()},
            bandwidth=content["gigabytes_per_second"] * 1e9,
            source=content["source"],
        )


def known_peaks(name: str) -> Peaks:
    """Return the peaks of a GPU by its name, as its driver gives it, from its data sheet.

    Raises:
        FloorError: it is not in the table.
    """
    words = set(name.lower().replace("-", " ").split())
    for known in KNOWN_GPUS:
        wanted = set(known.lower().split())
        # An RTX 4080 Laptop or SUPER is another card than the RTX 4080.
        if wanted <= words and not (words - wanted) & _OTHER_CARDS:
            fp32, fp16, bandwidth = KNOWN_GPUS[known]
            return Peaks(
                flops={"fp32": fp32 * 1e12, "fp16": fp16 * 1e12},
                bandwidth=bandwidth * 1e9,
                source=f"data sheet of the {known}",
            )
    raise FloorError(
        f"the peaks of {name!r} are not in the table ({', '.join(KNOWN_GPUS)}); measure them"
        " with torch on the machine that has it, or give --floors with --tflops and --bandwidth"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution or matrix product, for the list that a person reads."""

    name: str
    operator: str
    macs: int
    precision: str
    shape: tuple[int, ...]
    """Of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a network has to do for one frame."""

    macs: Mapping[str, int]
    """Multiply-accumulates by the precision that they are computed in."""
    fused_bytes: int
    unfused_bytes: int
    weight_bytes: int
    """Part of both."""
    layers: Sequence[Layer] = field(default=(), repr=False)

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates in every precision."""
        return sum(self.macs.values())

    def to_json(self) -> dict[str, Any]:
        """The sums."""
        return {
            "macs": dict(self.macs),
            "fused_bytes": self.fused_bytes,
            "unfused_bytes": self.unfused_bytes,
            "weight_bytes": self.weight_bytes,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Work:
        """Read what :meth:`to_json` wrote."""
        return cls(
            macs=dict(content["macs"]),
            fused_bytes=content["fused_bytes"],
            unfused_bytes=content["unfused_bytes"],
            weight_bytes=content["weight_bytes"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least time for one frame, in milliseconds."""

    arithmetic_ms: float
    memory_ms: float
    unfused_memory_ms: float

    @property
    def larger_ms(self) -> float:
        """What no kernel of this kind can beat: the larger of arithmetic and fused memory."""
        return max(self.arithmetic_ms, self.memory_ms)

    @property
    def bound(self) -> str:
        """Which of the two it is."""
        return "arithmetic" if self.arithmetic_ms >= self.memory_ms else "memory"

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "arithmetic_ms": self.arithmetic_ms,
            "memory_ms": self.memory_ms,
            "unfused_memory_ms": self.unfused_memory_ms,
            "larger_ms": self.larger_ms,
            "bound": self.bound,
        }


def floor_of(work: Work, peaks: Peaks) -> Floor:
    """Divide a network's work by what a GPU does at best.

    Raises:
        FloorError: the peak of a precision that it computes in is not known.
    """
    seconds = sum(2 * macs / peaks.flops_of(name) for name, macs in work.macs.items())
    return Floor(
        arithmetic_ms=seconds * 1e3,
        memory_ms=work.fused_bytes / peaks.bandwidth * 1e3,
        unfused_memory_ms=work.unfused_bytes / peaks.bandwidth * 1e3,
    )


def work_of(model: bytes, height: int, width: int) -> Work:
    """Count what one frame of a size costs.

    Args:
        model: serialised ONNX, one input (N, H, W, C).
        height: of the input.
        width: likewise.

    Raises:
        FloorError: it is no such model, or the shape of a tensor in it cannot be inferred.
    """
    graph, types = _inferred(model, height, width)
    return _Counted(graph, types).work()


# ----------------------------------------------------------------------------------------- graph


@dataclass(frozen=True, slots=True)
class _Type:
    shape: tuple[int, ...]
    element: int
    size: int
    """Bytes of one element."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.size


def _inferred(model: bytes, height: int, width: int) -> tuple[Any, dict[str, _Type]]:
    """Return the graph and the types of its tensors, for one frame of a size."""
    import onnx

    try:
        loaded = onnx.load_from_string(model)
    except Exception as error:  # protobuf's own, which share no base with anything
        raise FloorError(
            f"the model is not ONNX ({' '.join(str(error).split())}); give a model.*.onnx of a"
            " bundle"
        ) from error
    graph = loaded.graph
    initial = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initial]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise FloorError("the model has not one input of 4 dimensions; give a model of a bundle")
    frame = inputs[0].type.tensor_type.shape.dim
    for dim, value in zip(frame[:3], (1, height, width), strict=True):
        dim.Clear()
        dim.dim_value = value
    # What was stored for sizes with names would be merged with what is inferred now.
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        loaded = onnx.shape_inference.infer_shapes(loaded, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise FloorError(
            f"the model does not take frames of {width}x{height}"
            f" ({' '.join(str(error).split())[:200]}); give a size that its size rule allows"
        ) from error
    graph = loaded.graph
    types = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = [dim.dim_value for dim in tensor.shape.dim]
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            types[value.name] = _typed(tuple(dims), tensor.elem_type)
    for stored in graph.initializer:
        types[stored.name] = _typed(tuple(stored.dims), stored.data_type)
    return graph, types


def _typed(shape: tuple[int, ...], element: int) -> _Type:
    import onnx

    return _Type(shape, element, int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize))


class _Counted:
    """A walk over a graph in the order in which it is computed.

    ``origins`` says for every tensor what it is made of without another convolution: numbers of
    *vertices* (a convolution, or a sum of what convolutions made; -1 is the frame), and the fewest
    bytes that it had since. A kernel that needs the tensor reads those.
    """

    def __init__(self, graph: Any, types: Mapping[str, _Type]) -> None:  # noqa: ANN401 - a GraphProto
        self._graph = graph
        self._types = types
        self._initial = {tensor.name for tensor in graph.initializer}
        self._constant = set(self._initial) | {""}
        self._origins: dict[str, dict[int, int]] = {}
        self._kernel = {-1: -1}
        """Vertex -> number of the kernel that makes it."""
        self._reads: list[dict[int, int]] = []
        """Of every kernel: vertex -> bytes."""
        self._written: dict[int, int] = {}
        self._macs: Counter[str] = Counter()
        self._layers: list[Layer] = []
        self._unfused = 0
        self._weights: dict[str, int] = {}
        self._quantised: set[str] = set()

    def work(self) -> Work:
        for value in self._graph.input:
            if value.name not in self._initial:
                self._origins[value.name] = {-1: self._bytes(value.name)}
        for node in self._graph.node:
            self._count(node)
        output = self._graph.output[0].name
        if output not in self._origins:
            raise FloorError("the model's output does not depend on its input; export it again")
        for vertex in self._origins[output]:
            size = self._bytes(output)
            self._written[vertex] = max(self._written.get(vertex, 0), size)
        self._written.pop(-1, None)  # the frame is there
        weights = sum(self._weights.values())
        fused = weights + sum(self._written.values())
        fused += sum(sum(reads.values()) for reads in self._reads)
        return Work(
            macs=dict(self._macs),
            fused_bytes=fused,
            unfused_bytes=weights + self._unfused,
            weight_bytes=weights,
            layers=tuple(self._layers),
        )

    def _count(self, node: Any) -> None:  # noqa: ANN401 - a NodeProto
        inputs = [name for name in dict.fromkeys(node.input) if name not in self._constant]
        if node.op_type in ("Constant", "Shape", "ConstantOfShape") or not inputs:
            self._constant.update(node.output)
            self._note_weights(node)
            return
        self._note_weights(node)
        if node.op_type == "DequantizeLinear":
            self._quantised.update(node.output)
        elif node.op_type in _VIEWS:
            self._quantised.update(o for o in node.output if node.input[0] in self._quantised)
        if node.op_type not in _VIEWS:
            self._unfused += sum(self._bytes(name) for name in inputs)
            self._unfused += sum(self._bytes(name) for name in node.output if name)
        sources = [self._origins[name] for name in inputs]
        if node.op_type in MATRIX_OPERATORS:
            found = self._convolution(node, sources)
        elif len(inputs) > 1:
            found = self._joined(node, sources)
        else:
            found = sources[0]
        for name in node.output:
            if name:
                size = self._bytes(name)
                self._origins[name] = {v: min(least, size) for v, least in found.items()}

    def _convolution(self, node: Any, sources: Sequence[Mapping[int, int]]) -> dict[int, int]:  # noqa: ANN401
        macs = self._macs_of(node)
        precision = self._precision(node)
        self._macs[precision] += macs
        self._layers.append(
            Layer(
                name=node.name,
                operator=node.op_type,
                macs=macs,
                precision=precision,
                shape=self._type(node.output[0]).shape,
            )
        )
        self._reads.append({})
        return self._vertex(node, len(self._reads) - 1, sources)

    def _joined(self, node: Any, sources: Sequence[Mapping[int, int]]) -> dict[int, int]:  # noqa: ANN401
        """Two tensors become one: in the kernel of the convolution that ends last."""
        kernel = max(self._kernel[vertex] for source in sources for vertex in source)
        if kernel == -1:  # made of the frame alone: whoever needs it makes it again
            return {-1: max(source[-1] for source in sources)}
        return self._vertex(node, kernel, sources)

    def _vertex(
        self,
        node: Any,  # noqa: ANN401
        kernel: int,
        sources: Sequence[Mapping[int, int]],
    ) -> dict[int, int]:
        for source in sources:
            for vertex, size in source.items():
                if self._kernel[vertex] != kernel:
                    reads = self._reads[kernel]
                    reads[vertex] = max(reads.get(vertex, 0), size)
                    self._written[vertex] = max(self._written.get(vertex, 0), size)
        number = len(self._kernel) - 1
        self._kernel[number] = kernel
        return {number: self._bytes(node.output[0])}

    def _macs_of(self, node: Any) -> int:  # noqa: ANN401 - a NodeProto
        first, second = (self._type(name).shape for name in node.input[:2])
        made = self._type(node.output[0]).shape
        if node.op_type == "Conv":  # second: (out, in / groups, ...)
            return made[0] * math.prod(made[2:]) * math.prod(second)
        if node.op_type == "ConvTranspose":  # second: (in, out / groups, ...)
            return first[0] * math.prod(first[2:]) * math.prod(second)
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        depth = first[0] if node.op_type == "Gemm" and transposed else first[-1]
        return math.prod(made) * depth

    def _precision(self, node: Any) -> str:  # noqa: ANN401 - a NodeProto
        if self._quantised >= set(node.input[:2]):
            return "int8"
        element = self._type(node.input[0]).element
        if element not in _TYPES:
            raise FloorError(f"{node.name} computes in ONNX type {element}; export it again")
        return _TYPES[element]

    def _note_weights(self, node: Any) -> None:  # noqa: ANN401 - a NodeProto
        """Stored values are read once, as small as they are stored."""
        for name in node.input:
            if name in self._initial:
                self._weights[name] = self._types[name].bytes
        if node.op_type == "DequantizeLinear" and node.input[0] in self._constant:
            self._quantised.update(node.output)

    def _bytes(self, name: str) -> int:
        return self._type(name).bytes

    def _type(self, name: str) -> _Type:
        if name not in self._types:
            raise FloorError(
                f"the shape of {name!r} cannot be inferred; export the model again, or simplify it"
            )
        return self._types[name]
