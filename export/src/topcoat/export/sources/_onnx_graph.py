"""Rewrite a graph from elsewhere: free its sizes, widen it to float32, put frames at both ends."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Layout: TypeAlias = Literal["NCHW", "NHWC"]
ValueRange: TypeAlias = Literal[1, 255]
ChannelOrder: TypeAlias = Literal["rgb", "bgr"]

LEAST_OPSET = 11
"""The first in which Round exists and Clip takes its limits as inputs."""

_FLOAT, _HALF, _BYTE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
_PREFIX = "network/"
_TO_PLANES, _FROM_PLANES = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How a graph wants its frames, and how it gives them back."""

    layout: Layout
    layout_out: Layout
    value_range: ValueRange
    """What white is at the input."""
    range_out: ValueRange
    """... and at the output."""
    channel_order: ChannelOrder


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and those inside its operators, such as the branches of an If."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """List the inputs; old files list the weights among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def element_type(value: onnx.ValueInfoProto) -> int:
    """Return the ``TensorProto`` number of a tensor's type; 0 if it is no tensor."""
    return int(value.type.tensor_type.elem_type)


def freed(model: onnx.ModelProto, layout: Layout) -> onnx.ModelProto:
    """Return a copy whose declared batch, height and width are free, whether or not it minds.

    Shapes inside follow from the input's and are dropped, as is what only people read.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    names = ("batch", 3, "height", "width") if layout == "NCHW" else ("batch", "height", "width", 3)
    (frame,) = inputs_of(made)
    (answer,) = made.graph.output
    weights = list(made.graph.initializer)
    # With IR 4 and later a weight need not be an input, and one that is cannot be folded.
    made.ir_version = max(made.ir_version, 4)
    frame.CopyFrom(helper.make_tensor_value_info(frame.name, element_type(frame), names))
    kept = onnx.ValueInfoProto.FromString(frame.SerializeToString())
    del made.graph.input[:]
    made.graph.input.append(kept)
    assert len(made.graph.initializer) == len(weights)
    answer.CopyFrom(
        helper.make_tensor_value_info(answer.name, element_type(answer), [None, None, None, None])
    )
    made.doc_string = ""
    del made.metadata_props[:]
    for graph in graphs(made):
        del graph.value_info[:]
        del graph.quantization_annotation[:]
        for holder in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
            holder.ClearField("doc_string")
            del holder.metadata_props[:]
    return made


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which every float16 is a float32; each value stays exactly what it was."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for graph in graphs(made):
        for tensor in graph.initializer:
            _widen(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if element_type(value) == _HALF:
                value.type.tensor_type.elem_type = _FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _widen(attribute.t)
                # Cast calls it "to"; what makes tensors of its own (EyeLike, Random...), "dtype".
                if attribute.name in ("to", "dtype") and attribute.i == _HALF:
                    attribute.i = _FLOAT
    return made


def has_half(model: onnx.ModelProto) -> bool:
    """Say whether anything in the graph is float16."""
    return any(
        tensor.data_type == _HALF for graph in graphs(model) for tensor in graph.initializer
    ) or any(element_type(value) == _HALF for value in (*model.graph.input, *model.graph.output))


def framed(
    model: onnx.ModelProto, ends: Ends, *, scale: int, names: tuple[str, str], title: str
) -> onnx.ModelProto:
    """Put the frame contract around a graph: uint8 (batch, height, width, 3) RGB in and out.

    Args:
        model: freed; takes and gives what ``ends`` say, as float32, float16 or uint8.
        ends: layouts, ranges and order of the colours.
        scale: output pixels per input pixel, along each axis.
        names: of the input and the output.
        title: of the graph.

    Returns:
        A model whose frame feeds a Cast and whose answer comes from one.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    _prefix(graph)
    (old_in,), (old_out,) = list(graph.input), list(graph.output)
    kind = element_type(old_in)
    before = _Chain("before", names[0])
    readers = [node for node in graph.node if old_in.name in node.input]
    as_it_is = kind == _BYTE and ends.layout == "NHWC" and ends.channel_order == "rgb"
    if as_it_is and {node.op_type for node in readers} == {"Cast"}:
        for node in readers:
            node.input[0] = names[0]
    else:
        # A graph that takes bytes is given the same values as numbers: engines take bytes in a
        # Cast only, and what a graph does with them first (Transpose, Cast) does not mind.
        number = _FLOAT if kind == _BYTE else kind
        before.add("Cast", to=number)
        if ends.layout == "NCHW":
            before.add("Transpose", perm=_TO_PLANES)
        if ends.channel_order == "bgr":
            before.gather_reversed(axis=1 if ends.layout == "NCHW" else 3)
        if ends.value_range == 1:
            before.add("Mul", before.scalar(1 / 255, number))
        before.end(old_in.name)

    after = _Chain("after", old_out.name)
    last = _maker(graph, old_out.name)
    kind = element_type(old_out)
    number = kind
    if kind == _BYTE:
        number = _FLOAT
        if last is not None and last.op_type == "Cast" and _readers(graph, old_out.name) == 0:
            # Its own last Cast is done again at the very end, behind what is put in between.
            after.name = last.input[0]
            graph.node.remove(last)
        else:
            after.add("Cast", to=number)
    if ends.channel_order == "bgr":
        after.gather_reversed(axis=1 if ends.layout_out == "NCHW" else 3)
    if kind != _BYTE:
        if ends.range_out == 1:
            after.add("Mul", after.scalar(255, number))
        after.add("Clip", after.scalar(0, number), after.scalar(255, number))
        after.add("Round")
    if ends.layout_out == "NCHW":
        after.add("Transpose", perm=_FROM_PLANES)
    after.add("Cast", to=_BYTE)
    after.end(names[1])

    nodes = [*before.nodes, *graph.node, *after.nodes]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.extend([*before.weights, *after.weights])
    suffix = "" if scale == 1 else "_out"
    del graph.input[:], graph.output[:]
    graph.input.append(
        helper.make_tensor_value_info(names[0], _BYTE, ["batch", "height", "width", 3])
    )
    graph.output.append(
        helper.make_tensor_value_info(
            names[1], _BYTE, ["batch", f"height{suffix}", f"width{suffix}", 3]
        )
    )
    graph.name = title
    made.producer_name, made.producer_version = "topcoat-export", ""
    made.domain, made.model_version = "", 0
    return made


class _Chain:
    """Nodes one after the other, each reading the one before."""

    def __init__(self, title: str, start: str) -> None:
        self.title = title
        self.name = start
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, *more: str, **attributes: Any) -> None:  # noqa: ANN401
        output = f"{self.title}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.name, *more], [output], output, **attributes))
        self.name = output

    def scalar(self, value: float, kind: int) -> str:
        name = f"{self.title}/value{len(self.weights)}"
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        self.weights.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def gather_reversed(self, axis: int) -> None:
        name = f"{self.title}/value{len(self.weights)}"
        order = np.array([2, 1, 0], dtype=np.int64)
        self.weights.append(numpy_helper.from_array(order, name))
        self.add("Gather", name, axis=axis)

    def end(self, name: str) -> None:
        self.nodes[-1].output[0] = name
        self.name = name


def _prefix(graph: onnx.GraphProto) -> None:
    """Give every value and node a name that what is put around it cannot have."""

    def rename(inner: onnx.GraphProto, known: Mapping[str, str]) -> None:
        own = [value.name for value in inner.input]
        own += [tensor.name for tensor in inner.initializer]
        own += [tensor.values.name for tensor in inner.sparse_initializer]
        own += [name for node in inner.node for name in node.output if name]
        names = {**known, **{name: _PREFIX + name for name in own}}
        for value in (*inner.input, *inner.output, *inner.value_info):
            value.name = names.get(value.name, value.name)
        for tensor in inner.initializer:
            tensor.name = names[tensor.name]
        for sparse in inner.sparse_initializer:
            sparse.values.name = names[sparse.values.name]
        for number, node in enumerate(inner.node):
            node.name = f"{_PREFIX}{node.name or f'{node.op_type}_{number}'}"
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    rename(attribute.g, names)
                for branch in attribute.graphs:
                    rename(branch, names)

    rename(graph, {})


def _maker(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    return next((node for node in graph.node if name in node.output), None)


def _readers(graph: onnx.GraphProto, name: str) -> int:
    return sum(name in node.input for node in graph.node)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _HALF:
        value = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
