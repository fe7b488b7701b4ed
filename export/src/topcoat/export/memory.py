"""Estimate how much memory an engine needs, so that a runtime knows when to cut a frame into tiles.

The graph says which values must exist at the same time. Engines need more than that, or less: they
compute in place and merge layers, but they also round requests up, keep what they freed, and
unfold inputs into matrices. How the estimate compares with what was measured stands in
docs/export.md; it is meant to be too large rather than too small.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

SIDE = 512
"""Of the frame that is reckoned with: large enough that padding around it hardly counts."""
RESERVE = 4
"""What ONNX Runtime takes over what must exist. Its allocator doubles its holdings whenever they do
not suffice; then, having seen one frame, it plans a single block for all values and asks for that
besides. How that adds up changes from size to size; 3.1 times was the most that was measured."""

BLOCK = 16
"""Engines keep the channels of a convolution's output in blocks of this many, or of 8, and round
up: four channels take as much as sixteen."""
_KEEP_BLOCKS = {"Add", "AveragePool", "Clip", "MaxPool", "Mul", "Relu", "Resize", "Sub", "Tanh"}
"""Operators that work on such blocks as they are."""


def memory_per_pixel(model: onnx.ModelProto, multiple: int = 1, least: int = 1) -> int:
    """Estimate the peak working memory of an engine, in bytes per input pixel.

    Args:
        model: a graph from :func:`~topcoat.export.onnx_from_checkpoint.onnx_from_network`; fp32
            for the figure of the manifest.
        multiple: sides of the input must be multiples of this.
        least: ... and at least this; a multiple of ``multiple``.

    Returns:
        :data:`RESERVE` times the largest sum of values that exist at the same time, in the order
        of the graph, among them the frames themselves. The weights are not counted.
    """
    side = max(least, multiple * math.ceil(SIDE / multiple))
    model = _sized(model, side)
    bytes_of, shape_of = _values(model)
    nodes = model.graph.node
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    last_use = {name: number for number, node in enumerate(nodes) for name in node.input}
    last_use |= {value.name: len(nodes) for value in model.graph.output}
    alive = {value.name for value in model.graph.input}
    peak = 0
    for number, node in enumerate(nodes):
        alive |= set(node.output)
        needed = sum(bytes_of[name] for name in alive)
        if node.op_type == "ConvTranspose":
            # A matrix product makes every product of the kernel, which are then added up.
            _, *kernel = weights[node.input[1]]  # (in, out, height, width)
            height, width = shape_of[node.input[0]][2:]
            needed += 4 * math.prod(kernel) * height * width
        peak = max(peak, needed)
        alive = {name for name in alive if last_use.get(name, -1) > number}
    return math.ceil(RESERVE * peak / side**2)


def _sized(model: onnx.ModelProto, side: int) -> onnx.ModelProto:
    """Return the graph for one frame of ``side`` × ``side``, with nothing left that counts sizes.

    What a network lays out over the frame by its size (noise that is repeated, say) has a shape
    that inference cannot find, for it depends on values; so those few numbers are computed here.
    """
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        for dim, length in zip(value.type.tensor_type.shape.dim, (1, side, side, 3), strict=True):
            dim.dim_value = length
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    if not any(node.op_type == "Shape" for node in sized.graph.node):
        return sized
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    dims_of = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info)
    }
    known: dict[str, NDArray[np.int64]] = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in sized.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    computed, left = [], []
    for node in sized.graph.node:
        if node.op_type == "Shape" and all(dims_of.get(node.input[0], [0])):
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            found = np.array(dims_of[node.input[0]])[ends.get("start", 0) : ends.get("end")]
        elif node.input and all(name in known for name in node.input if name):
            feeds = {name: known[name] for name in node.input if name}
            (found,) = ReferenceEvaluator(node).run(None, feeds)  # type: ignore[assignment]
        else:
            left.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        known[node.output[0]] = found
        computed.append(onnx.numpy_helper.from_array(found, node.output[0]))
    del sized.graph.node[:]
    sized.graph.node.extend(left)
    sized.graph.initializer.extend(computed)
    return sized


def _values(model: onnx.ModelProto) -> tuple[Mapping[str, int], Mapping[str, list[int]]]:
    """Find bytes and shapes of every value but the weights, in a graph for one size of frame."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    bytes_of: dict[str, int] = {}
    shape_of: dict[str, list[int]] = {}
    blocked: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" or (node.op_type in _KEEP_BLOCKS and blocked & set(node.input)):
            blocked |= set(node.output)
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        shape_of[value.name] = [dim.dim_value for dim in tensor.shape.dim]
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
        sides = list(shape_of[value.name])
        if value.name in blocked:
            sides[1] = BLOCK * math.ceil(sides[1] / BLOCK)
        bytes_of[value.name] = item * math.prod(sides)
    return bytes_of, shape_of
