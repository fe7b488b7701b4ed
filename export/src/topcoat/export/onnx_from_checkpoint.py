"""A trained network becomes an ONNX graph that takes a frame and gives a frame.

The graph holds the whole contract: colour scaling, transposes, clipping and rounding are inside, so
every engine is handed the same bytes and gives back the same bytes. What is not inside is padding
to the network's size multiple: engines with dynamic sizes cannot all express it, so the runtime
pads and crops.
"""

import contextlib
import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator
from typing import Literal, TypeAlias

import onnx
import torch
from torch import Tensor, nn

from topcoat.export._errors import GraphError
from topcoat.train.networks import FrameNetwork

Precision: TypeAlias = Literal["fp32", "fp16"]

OPSET = 20
"""The exporter's own; a lower number is silently ignored by it, a higher one buys nothing here."""

OUTPUT_NAMES = {
    "style": "styled",
    "super-resolution": "enlarged",
    "texture": "texture",
    "restoration": "restored",
    "image-to-image": "output",
}
"""Task -> name of the graph's output."""

INPUT_NAMES = {
    "style": "frame",
    "super-resolution": "frame",
    "texture": "noise",
    "restoration": "frame",
    "image-to-image": "frame",
}
"""Task -> name of the graph's input."""

_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


class FrameGraph(nn.Module):
    """A network behind the frame contract: uint8 (B, H, W, 3) RGB in and out.

    H and W must obey the network's ``size_multiple`` and ``size_min``. Values are clipped to
    [0, 255] and rounded half to even, in the network's own precision.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, frame: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, H*scale, W*scale, 3) uint8."""
        # TensorRT parses a uint8 input only where it feeds a Cast, so the Cast comes first and,
        # by the same rule at the other end, last.
        planes = frame.to(self.dtype).permute(0, 3, 1, 2)  # (B, 3, H, W)
        styled: Tensor = self.network(planes * (1 / 255)) * 255
        return styled.clamp(0, 255).round().permute(0, 2, 3, 1).to(torch.uint8)


def onnx_from_network(
    network: FrameNetwork, precision: Precision = "fp32", *, task: str = "style"
) -> onnx.ModelProto:
    """Export a network as a graph from uint8 frames to uint8 frames.

    Args:
        network: float32, any device; it is copied, not changed.
        precision: ``fp32``, or ``fp16`` for a strongly typed half-precision graph: weights and
            every operation between the two casts at the ends are float16.
        task: what the network does, ``style``, ``super-resolution`` or ``texture``: names input and
            output, and stands in the graph's metadata.

    Returns:
        A model of opset 20 with input ``frame`` or ``noise`` (batch, height, width, 3) and output
        ``styled``, ``enlarged`` or ``texture``, uint8, all three sizes dynamic. It passes onnx's
        full check, and holds no local path, source line or stack trace. The same weights give the
        same bytes every time.

    Raises:
        ValueError: another precision or task.
        GraphError: the exporter made something that breaks the contract above.
    """
    if precision not in _DTYPES:
        raise ValueError(f"precision must be fp32 or fp16, got {precision!r}")
    if task not in OUTPUT_NAMES:
        raise ValueError(f"task must be {' or '.join(OUTPUT_NAMES)}, got {task!r}")
    dtype = _DTYPES[precision]
    # Half precision is made here, in torch: converters that rewrite a finished graph produce
    # invalid models from what this exporter writes.
    half = copy.deepcopy(network).cpu().requires_grad_(False).to(dtype)
    graph = FrameGraph(half, dtype).eval()

    # Two different sizes, both above the minimum and a batch above one, so that nothing is
    # mistaken for a constant.
    multiple, least = network.size_multiple, network.size_min
    height = -(-max(least + multiple, 64) // multiple) * multiple
    width = height + 2 * multiple
    example = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    auto = torch.export.Dim.AUTO
    # Sides that are said to be multiples keep every inner size a plain product. Left to find that
    # out by itself, the exporter compares formulas of nested divisions, for a network of five
    # scales without an end.
    down, right = (
        multiple * torch.export.Dim(side, min=least // multiple) if multiple > 1 else auto
        for side in ("rows", "columns")
    )
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAMES[task]],
            output_names=[OUTPUT_NAMES[task]],
            dynamic_shapes=({0: auto, 1: down, 2: right},),
            verbose=False,
        )
    if program is None:  # what torch returns when asked for a file instead
        raise GraphError("the exporter returned no program; use a torch version that was tested")
    model: onnx.ModelProto = program.model_proto

    _cast_first(model)
    _name_sizes(model, network.scale)
    _strip(model)
    _sign(model, network, precision, task)
    _check(model)
    return model


def weights_sha256(network: nn.Module) -> str:
    """Hash a network's weights: names, types, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _name_sizes(model: onnx.ModelProto, scale: int) -> None:
    """Name the dynamic sizes; the exporter's own names are formulas such as ``4*((s38 + 15)//4)``.

    An output as large as its input shares the input's names, which states the size rule: a frame
    that breaks the multiple is refused by the engine and not silently answered in another size.
    """
    suffix = "" if scale == 1 else "_out"
    for value, names in (
        (model.graph.input[0], ("batch", "height", "width")),
        (model.graph.output[0], ("batch", f"height{suffix}", f"width{suffix}")),
    ):
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(list(dims)[:3], names, strict=True):
            if dim.WhichOneof("value") != "dim_param":
                raise GraphError(
                    f"the exporter fixed the {name} of {value.name} to {dim.dim_value}; every size "
                    "must stay dynamic, so look for a Python number made from a shape"
                )
            dim.dim_param = name


def _cast_first(model: onnx.ModelProto) -> None:
    """Let whoever asks for the frame's sizes ask the cast frame for them: it has the same.

    Only the Cast may read the bytes themselves, and engines that insist take a Shape for another
    reader. The sizes are asked for by networks that lay out something of their own over the frame.
    """
    graph = model.graph
    frame = graph.input[0].name
    casts = [node for node in graph.node if node.op_type == "Cast" and frame in node.input]
    if len(casts) != 1:
        return  # which the check below says
    (cast,) = casts
    others = [node for node in graph.node if node is not cast]
    for node in others:
        if node.op_type == "Shape" and node.input[0] == frame:
            node.input[0] = cast.output[0]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (cast, *others)]
    del graph.node[:]
    graph.node.extend(nodes)


def _strip(model: onnx.ModelProto) -> None:
    """Take out what belongs to the machine that exported: paths, source lines, stack traces.

    Shapes of inner values go too: their names are formulas, and every engine infers them anyway.
    """
    graph = model.graph
    del graph.value_info[:]
    model.doc_string = graph.doc_string = ""
    for holder in (
        model,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.input,
        *graph.output,
        *model.functions,
    ):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")


def _sign(model: onnx.ModelProto, network: FrameNetwork, precision: str, task: str) -> None:
    model.producer_name = "topcoat-export"
    model.producer_version = ""  # versions stand in the manifest; here they would change the bytes
    model.graph.name = f"topcoat-{task}"
    onnx.helper.set_model_props(
        model,
        {
            "topcoat.task": task,
            "topcoat.precision": precision,
            "topcoat.scale": str(network.scale),
            "topcoat.halo": "none" if network.halo is None else str(network.halo),
            "topcoat.size_multiple": str(network.size_multiple),
            "topcoat.size_min": str(network.size_min),
            "topcoat.pad": "none" if task == "texture" else "edge",
            "topcoat.layout": "NHWC",
            "topcoat.colour_order": "RGB",
            "topcoat.range": "0-255",
            "topcoat.weights_sha256": weights_sha256(network),
        },
    )


def _check(model: onnx.ModelProto) -> None:
    """Hold the graph against the frame contract, before anybody else has to."""
    onnx.checker.check_model(model, full_check=True)
    nodes, uint8 = model.graph.node, onnx.TensorProto.UINT8
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    readers = [node.op_type for node in nodes if model.graph.input[0].name in node.input]
    maker = {name: node for node in nodes for name in node.output}
    last = maker[model.graph.output[0].name]
    ends = [last.op_type, maker[last.input[0]].op_type]
    wrong = []
    if opsets.get("") != OPSET:
        wrong.append(f"opset {opsets.get('')} instead of {OPSET}")
    if readers != ["Cast"]:
        wrong.append(f"the frame feeds {readers} instead of one Cast")
    if ends != ["Cast", "Transpose"]:
        wrong.append(f"the output ends {ends[::-1]} instead of Transpose, Cast")
    for value in (model.graph.input[0], model.graph.output[0]):
        if value.type.tensor_type.elem_type != uint8:
            wrong.append(f"{value.name} is not uint8")
    if wrong:
        raise GraphError(
            f"the exported graph breaks the frame contract: {'; '.join(wrong)}; "
            f"torch {torch.__version__} may have changed its exporter"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's advice to its own developers (absent torchvision, deprecations)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
