"""Small ONNX files as other projects write them, made without an exporter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, BYTE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


def weight(name: str, *shape: int, share: float = 1.0) -> NDArray[np.float32]:
    """Seeded random values that keep the size of what they are multiplied with."""
    random = np.random.default_rng(sum(name.encode()))
    values = random.standard_normal(shape) * share / np.sqrt(np.prod(shape[1:], dtype=int) or 1)
    made: NDArray[np.float32] = values.astype(np.float32)
    return made


class GraphMaker:
    """Adds nodes one behind the other."""

    def __init__(self, start: str = "picture") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.name = start

    def value(self, values: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op: str, *more: str, first: str | None = None, **attributes: Any) -> str:  # noqa: ANN401
        output = f"v{len(self.nodes)}"
        inputs = [self.name if first is None else first, *more]
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        self.name = output
        return output

    def conv(self, inputs: int, outputs: int, side: int = 3, *, stride: int = 1) -> None:
        border = side // 2
        pads = self.value(np.array([0, 0, border, border, 0, 0, border, border], np.int64))
        self.add("Pad", pads, mode="reflect")
        kernel = self.value(
            weight(f"{inputs}{outputs}{len(self.weights)}", outputs, inputs, side, side)
        )
        self.add("Conv", kernel, kernel_shape=[side, side], strides=[stride, stride])

    def enlarge(self, times: int) -> None:
        scales = self.value(np.array([1, 1, times, times], np.float32))
        self.add("Resize", "", scales, mode="nearest", nearest_mode="floor",
                 coordinate_transformation_mode="asymmetric")  # fmt: skip

    def model(
        self,
        shape: Sequence[str | int] | None,
        shape_out: Sequence[str | int | None] | None,
        *,
        kind: int = FLOAT,
        kind_out: int | None = None,
        opset: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "answer"
        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [helper.make_tensor_value_info("picture", kind, shape)],
            [helper.make_tensor_value_info("answer", kind_out or kind, shape_out)],
            self.weights,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        made.ir_version = 8
        onnx.helper.set_model_props(made, dict(metadata or {}))
        return made


NCHW = ("n", 3, "h", "w")
FREE = (None, None, None, None)


def enlarging(*, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Twice the size: the picture repeated and a little of a convolution of it, white is 1."""
    made = GraphMaker()
    made.enlarge(2)
    large = made.name
    made.conv(3, 3)
    made.add("Mul", made.value(np.array(0.1, np.float32)))
    made.add("Add", large)
    return made.model(NCHW, FREE, metadata=metadata)


def painting(*, shape: Sequence[str | int] = NCHW, normal: bool = True) -> onnx.ModelProto:
    """Down by four and up again, normalised, around a middle grey of 127: white is 255."""
    made = GraphMaker()
    made.conv(3, 8, 9)
    scale, bias = (made.value(np.full(8, fill, np.float32)) for fill in (1, 0))
    made.add("InstanceNormalization" if normal else "Relu", *((scale, bias) if normal else ()))
    made.conv(8, 8, stride=2)
    made.add("Relu")
    made.conv(8, 8, stride=2)
    made.enlarge(4)
    made.conv(8, 3)
    made.add("Mul", made.value(np.array(40, np.float32)))
    made.add("Add", made.value(np.array(127, np.float32)))
    return made.model(shape, FREE)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph as a float16 export has it: but for the scales of a Resize, all of it."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    scales = {node.input[2] for node in made.graph.node if node.op_type == "Resize"}
    for tensor in made.graph.initializer:
        if tensor.data_type == FLOAT and tensor.name not in scales:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value_info in (*made.graph.input, *made.graph.output):
        value_info.type.tensor_type.elem_type = HALF
    return made


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path
