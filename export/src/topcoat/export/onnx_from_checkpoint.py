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
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import onnx
import torch
from torch import Tensor, nn

from topcoat.export._errors import GraphError
from topcoat.train.networks import FrameNetwork

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]

OPSET = 20
"""The exporter's own; a lower number is silently ignored by it, a higher one buys nothing in fp32
and fp16."""
OPSETS: dict[str, int] = {"fp32": OPSET, "fp16": OPSET, "bf16": 22}
"""Precision -> opset of its graph: ONNX has a Conv of bfloat16 from 22 on only."""

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

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""Precision -> type of its weights and values."""


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
    network: FrameNetwork,
    precision: Precision = "fp32",
    *,
    task: str = "style",
    keep_fp32: Sequence[str] = (),
) -> onnx.ModelProto:
    """Export a network as a graph from uint8 frames to uint8 frames.

    Args:
        network: float32, any device; it is copied, not changed.
        precision: ``fp32``; ``fp16`` or ``bf16`` for a strongly typed half-precision graph: weights
            and every operation between the two casts at the ends are float16 or bfloat16. ONNX
            Runtime's CPU kernels have no bfloat16 convolution: a bf16 graph is for engines that do.
        task: what the network does, ``style``, ``super-resolution`` or ``texture``: names input and
            output, and stands in the graph's metadata.
        keep_fp32: layers that stay float32 in a half-precision graph, by their names in
            ``network.named_modules()``; see :func:`with_fp32_islands`. Not for ``fp32``.

    Returns:
        A model of opset 20 (bf16: 22) with input ``frame`` or ``noise`` (batch, height, width, 3)
        and output ``styled``, ``enlarged`` or ``texture``, uint8, all three sizes dynamic. It
        passes onnx's full check, and holds no local path, source line or stack trace. The same
        weights give the same bytes every time.

    Raises:
        ValueError: another precision or task, or ``keep_fp32`` names what is no layer.
        GraphError: the exporter made something that breaks the contract above.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be fp32, fp16 or bf16, got {precision!r}")
    if task not in OUTPUT_NAMES:
        raise ValueError(f"task must be {' or '.join(OUTPUT_NAMES)}, got {task!r}")
    if keep_fp32 and precision == "fp32":
        raise ValueError(
            f"keep_fp32 names {', '.join(keep_fp32)}, but in fp32 every layer stays; leave it out"
        )
    dtype = DTYPES[precision]
    # Half precision is made here, in torch: converters that rewrite a finished graph produce
    # invalid models from what this exporter writes.
    plain = copy.deepcopy(network).cpu().float().requires_grad_(False).eval().fold()
    typed = with_fp32_islands(plain, keep_fp32, dtype) if keep_fp32 else plain.to(dtype)
    graph = FrameGraph(typed, dtype).eval()

    # Two different sizes and a batch above one, so that nothing is mistaken for a constant.
    multiple, least = network.size_multiple, network.size_min
    height, width = example_size(network)
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
            opset_version=OPSETS[precision],
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
    _sign(model, network, precision, task, keep_fp32)
    _check(model, OPSETS[precision])
    return model


def with_fp32_islands(network: nn.Module, names: Sequence[str], dtype: torch.dtype) -> nn.Module:
    """Copy a network to half precision, all but a few layers.

    The input of such an *island* is cast to float32, it computes with float32 weights, and its
    output is cast back. Two casts are left out, because they would undo what the island is for:
    between an island and the island that reads it, where a value may lie beyond float16, and behind
    the last layer of the network, if that is one: then what follows it (a tanh, the scaling to
    8 bits) is float32 as well.

    Args:
        network: float32, on the CPU; it is copied, not changed. An :class:`~topcoat.train.networks.
            FrameNetwork`, or a module with the same ``forward``.
        names: the islands, as ``network.named_modules()`` calls them; each without children.
        dtype: of everything else: ``torch.float16`` or ``torch.bfloat16``.

    Raises:
        ValueError: a name is not one of a layer.
    """
    layers = called_layers(network)
    if unknown := sorted(set(names) - set(layers)):
        raise ValueError(
            f"no layer is called {', '.join(unknown)}; the layers are {', '.join(layers)}"
        )
    left_open = {
        name
        for name in names
        if (readers := layers[name]) is None or (readers and readers <= set(names))
    }
    typed = copy.deepcopy(network).to(dtype)
    originals, modules = dict(network.named_modules()), dict(typed.named_modules())
    for name in layers:
        layer = modules[name]
        if name not in names:
            layer.register_forward_pre_hook(_Cast(dtype).before)
            continue
        layer.to(torch.float32)
        with torch.no_grad():  # what rounding to half precision took away is fetched again
            for mine, original in zip(_tensors(layer), _tensors(originals[name]), strict=True):
                mine.copy_(original)
        layer.register_forward_pre_hook(_Cast(torch.float32).before)
        if name not in left_open:
            layer.register_forward_hook(_Cast(dtype).after)
    return typed


def called_layers(network: nn.Module) -> dict[str, set[str] | None]:
    """Find the layers without layers of their own that a network runs, in the order it does.

    Args:
        network: takes (1, 3, H, W) float32 on the CPU; it is run on a small black frame.

    Returns:
        Name, as in ``network.named_modules()`` -> names of the layers that read its output as it
        is; None for the last one, behind which no layer comes. A sum of two outputs, say, is
        nobody's output. Layers that are built but not called are left out.
    """
    leaves = {
        name: module
        for name, module in network.named_modules()
        if name and next(module.children(), None) is None
    }
    readers: dict[str, set[str] | None] = {}
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no two have one address
    last = ""

    def before(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def note(_: nn.Module, arguments: tuple[object, ...]) -> None:
            nonlocal last
            last = name
            readers.setdefault(name, set())
            for argument in arguments:
                if (maker := made.get(id(argument))) is not None:
                    known = readers[maker]
                    assert known is not None
                    known.add(name)

        return note

    def after(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def note(_: nn.Module, __: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor):
                made[id(output)] = name
                kept.append(output)

        return note

    hooks = [
        hook
        for name, module in leaves.items()
        for hook in (
            module.register_forward_pre_hook(before(name)),
            module.register_forward_hook(after(name)),
        )
    ]
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, *example_size(network)))
    finally:
        for hook in hooks:
            hook.remove()
    if last and not readers[last]:
        readers[last] = None
    return readers


def _tensors(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def example_size(network: nn.Module) -> tuple[int, int]:
    """Choose a small height and width that a network takes: different, and above its minimum."""
    multiple = int(getattr(network, "size_multiple", 1))
    least = int(getattr(network, "size_min", 1))
    height = -(-max(least + multiple, 64) // multiple) * multiple
    return height, height + 2 * multiple


class _Cast:
    """Casts what goes into a layer, or what comes out of it; as hooks, so that names stay."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def before(self, _: nn.Module, arguments: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(
            value.to(self.dtype)
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for value in arguments
        )

    def after(self, _: nn.Module, __: object, output: Tensor) -> Tensor:
        return output.to(self.dtype)


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


def _sign(
    model: onnx.ModelProto,
    network: FrameNetwork,
    precision: str,
    task: str,
    keep_fp32: Sequence[str],
) -> None:
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
            **({"topcoat.keep_fp32": " ".join(sorted(keep_fp32))} if keep_fp32 else {}),
        },
    )


def _check(model: onnx.ModelProto, opset: int) -> None:
    """Hold the graph against the frame contract, before anybody else has to."""
    onnx.checker.check_model(model, full_check=True)
    nodes, uint8 = model.graph.node, onnx.TensorProto.UINT8
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    readers = [node.op_type for node in nodes if model.graph.input[0].name in node.input]
    maker = {name: node for node in nodes for name in node.output}
    last = maker[model.graph.output[0].name]
    ends = [last.op_type, maker[last.input[0]].op_type]
    wrong = []
    if opsets.get("") != opset:
        wrong.append(f"opset {opsets.get('')} instead of {opset}")
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
