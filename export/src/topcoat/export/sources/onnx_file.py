"""ONNX files of other projects: anything that takes one picture and gives one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from topcoat.export.onnx_from_checkpoint import INPUT_NAMES, OPSET, OUTPUT_NAMES, Precision
from topcoat.export.probes import bundled_photographs
from topcoat.export.sources._onnx_graph import (
    LEAST_OPSET,
    ChannelOrder,
    Ends,
    Layout,
    ValueRange,
    element_type,
    framed,
    freed,
    graphs,
    has_half,
    inputs_of,
    widened,
)
from topcoat.export.sources._sides import size_rule
from topcoat.export.sources._source import Source, SourceError
from topcoat.runtime.backends.onnxruntime import import_onnxruntime
from topcoat.train.networks import FrameNetwork

KIND = "onnx"

_TYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.UINT8: np.uint8,
}
_LARGEST_FILE = 2**31 - 1
"""Bytes; protobuf's own limit, and a bundle's model is one file."""
_PICTURE_SIDE = 128
"""Of the piece of a photograph from which ranges are found."""
_BEYOND_ONE = 8.0
"""Answers of this size are no colours between 0 and 1, however far they overshoot."""
_AS_PLANES = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2)}


class OnnxNetwork(FrameNetwork):
    """An ONNX file run as it is, in float32, by ONNX Runtime without its optimisations.

    ``forward``: (B, 3, H, W) RGB in [0, 1] -> (B, 3, H*scale, W*scale), clipped by the caller.
    """

    answered_by = "ONNX Runtime fp32 (the file as it came)"

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = max(1, torch.get_num_threads() // 2)
        options.log_severity_level = 4  # what it refuses, it says in an exception as well
        self._session: Any = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name
        (frame,) = inputs_of(model)
        self._dtype = _TYPES[element_type(frame)]
        self.ends = Ends(
            layout="NCHW", layout_out="NCHW", value_range=1, range_out=1, channel_order="rgb"
        )

    def run(self, frame: NDArray[Any]) -> NDArray[Any]:
        """Hand the file an array in its own layout and range, cast to its type."""
        if self._dtype is np.uint8:
            frame = frame.round().clip(0, 255)
        result: NDArray[Any] = self._session.run(None, {self._name: frame.astype(self._dtype)})[0]
        return result

    def forward(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H*scale, W*scale)."""
        ends = self.ends
        planes = frame.numpy() * np.float32(ends.value_range)
        answer = as_planes(self.run(as_laid_out(planes, ends)), ends)
        return torch.from_numpy(np.ascontiguousarray(answer / np.float32(ends.range_out)))


def as_laid_out(planes: NDArray[Any], ends: Ends) -> NDArray[Any]:
    """(B, 3, H, W) RGB -> what the file takes; values are left as they are."""
    ordered = planes[:, ::-1] if ends.channel_order == "bgr" else planes
    return np.ascontiguousarray(ordered if ends.layout == "NCHW" else ordered.transpose(0, 2, 3, 1))


def as_planes(answer: NDArray[Any], ends: Ends) -> NDArray[np.float32]:
    """What the file gives -> (B, 3, H, W) RGB, float32; values are left as they are."""
    planes = answer.transpose(_AS_PLANES[ends.layout_out])
    ordered = planes[:, ::-1] if ends.channel_order == "bgr" else planes
    return ordered.astype(np.float32)


def open_onnx(
    path: Path,
    sha256: str,
    *,
    value_range: ValueRange | None = None,
    channel_order: ChannelOrder | None = None,
) -> Source:
    """Take an ONNX file that maps one RGB picture to one.

    What the file does not say is found by running it: scale, sizes, and, where that is beyond
    doubt, the range of its values.

    Args:
        path: of the file.
        sha256: of the file.
        value_range: what white is at its input, 1 or 255; None: as its metadata says, or as it is
            found. That at its output is always found.
        channel_order: of its colours; None: as its metadata says, otherwise RGB.

    Raises:
        SourceError: it is damaged; takes or gives something else than a picture; uses operators
            of others than ONNX; keeps weights outside its folder; has fixed sizes; or nothing
            tells the range of its values.
    """
    model = _read(path)
    told = {prop.key: prop.value for prop in model.metadata_props}
    if told.get("topcoat.task") == "texture":
        raise SourceError(
            f"{path} makes textures of noise, and no frame of a frame; give its checkpoint"
        )
    layout = _signature(path, model)
    model = _modern(path, model)
    free = freed(model, layout)
    network = _session(path, widened(free))
    _find_sizes(path, network, layout)
    order, order_how = _order(told, channel_order)
    _find_range(path, network, told, value_range, order)
    ends = network.ends
    _check_batch(path, network)
    task = told.get("topcoat.task", "")
    if task not in OUTPUT_NAMES or (task == "super-resolution") != (network.scale > 1):
        task = "super-resolution" if network.scale > 1 else "image-to-image"
    weights = [tensor for graph in graphs(model) for tensor in graph.initializer]
    half = has_half(model)
    producer = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    notes = (
        f"an ONNX file{f' made by {producer}' if producer else ''}, "
        f"{'float16' if half else 'float32'}",
        f"takes {ends.layout}, {ends.channel_order.upper()} ({order_how}), white is "
        f"{ends.value_range}; gives {ends.layout_out}, white is {ends.range_out}",
    )

    def to_onnx(precision: Precision = "fp32", *, keep_fp32: Sequence[str] = ()) -> onnx.ModelProto:
        if keep_fp32 or (precision != "fp32" and not (precision == "fp16" and half)):
            raise SourceError(
                f"{path} is an ONNX file of {'float16' if half else 'float32'}, of which no "
                f"{precision} model is made: rewriting the types of a finished graph is not sound; "
                "leave the option out, or give the file that its own exporter writes in float16"
            )
        body = widened(free) if precision == "fp32" else free
        return _framed(path, body, network, precision, task, sha256)

    return Source(
        network=network,
        task=task,
        name="ONNX graph",
        settings={"name": model.graph.name} if model.graph.name else {},
        parameters=sum(math.prod(tensor.dims) for tensor in weights),
        to_onnx=to_onnx,
        sha256=sha256,
        kind=KIND,
        notes=notes,
    )


def _read(path: Path) -> onnx.ModelProto:
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise SourceError(f"{path} has {size} bytes, wanted are at most {_LARGEST_FILE}")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}; check the file") from None
    except Exception:  # protobuf's DecodeError, whose package has no types
        raise SourceError(f"{path} is not an ONNX file, or was cut short; get it again") from None
    if not model.graph.node or not model.opset_import:
        raise SourceError(f"{path} holds no ONNX graph, or was cut short; get it again")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _refuse_operators(path, model)
    _take_in_weights(path, model)
    _check_finite(path, model)
    return model


def _refuse_operators(path: Path, model: onnx.ModelProto) -> None:
    foreign: dict[str, set[str]] = {}
    for graph in graphs(model):
        for node in graph.node:
            if node.domain not in ("", "ai.onnx"):
                foreign.setdefault(node.domain, set()).add(node.op_type)
    if foreign:
        named = "; ".join(
            f"{', '.join(sorted(ops))} of {domain}" for domain, ops in sorted(foreign.items())
        )
        raise SourceError(
            f"{path} uses operators that are not ONNX's own ({named}), which engines do not share; "
            "export it again without them, for torch.onnx.export that is the default"
        )


def _take_in_weights(path: Path, model: onnx.ModelProto) -> None:
    """Read weights that lie in other files of the same folder; nothing outside it is opened."""
    folder = path.absolute().parent.resolve()
    outside = [
        tensor for tensor in _tensors(model) if onnx.external_data_helper.uses_external_data(tensor)
    ]
    total = path.stat().st_size
    for tensor in outside:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = folder / location
        if not location or Path(location).name != location or file.resolve().parent != folder:
            raise SourceError(
                f"{path} keeps weights in {location!r}, outside its own folder, which is not "
                "opened; put that file beside it and export again, or save it as one file"
            )
        if not file.is_file():
            raise SourceError(f"{path} keeps weights in {location}, which is not beside it")
        try:
            offset, whole = int(entries.get("offset", 0)), file.stat().st_size
            length = int(entries.get("length", whole - offset))
        except ValueError:
            offset, length, whole = -1, -1, 0
        total += length
        if offset < 0 or length < 0 or offset + length > whole or total > _LARGEST_FILE:
            raise SourceError(
                f"{path} wants bytes of {location} that it does not have, or more than "
                f"{_LARGEST_FILE} altogether; get both files again"
            )
        with file.open("rb") as opened:
            opened.seek(offset)
            tensor.raw_data = opened.read(length)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    found = []
    for graph in graphs(model):
        found += list(graph.initializer)
        for sparse in graph.sparse_initializer:
            found += [sparse.values, sparse.indices]
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.t] if attribute.HasField("t") else []
                found += list(attribute.tensors)
    return found


def _check_finite(path: Path, model: onnx.ModelProto) -> None:
    for graph in graphs(model):
        for tensor in graph.initializer:
            try:
                value = onnx.numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                raise SourceError(f"{path} is damaged: {tensor.name}: {error}") from None
            # A weight may be infinite on purpose (the limit of a Clip), never NaN.
            if value.dtype.kind == "f" and bool(np.isnan(value).any()):
                raise SourceError(f"{path} has NaN in its weights ({tensor.name}); get another")


def _signature(path: Path, model: onnx.ModelProto) -> Layout:
    inputs, outputs = inputs_of(model), list(model.graph.output)
    wanted = "wanted is one picture in and one out"
    for values, what in ((inputs, "input"), (outputs, "output")):
        if len(values) != 1:
            names = ", ".join(value.name for value in values)
            raise SourceError(f"{path} has {len(values)} {what}s ({names}); {wanted}")
        kind = element_type(values[0])
        if kind not in _TYPES:
            named = TensorProto.DataType.Name(kind).lower()
            raise SourceError(
                f"{path} has an {what} of {named}; {wanted}, of float, float16 or uint8"
            )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    shown = "×".join("?" if dim is None else str(dim) for dim in dims)
    if not tensor.HasField("shape") or len(dims) != 4:
        raise SourceError(
            f"{path} takes {f'an array of {shown}' if dims else 'an array of unknown shape'}; "
            f"{wanted}, (batch, 3, height, width) or (batch, height, width, 3)"
        )
    layouts: list[Layout] = []
    if dims[1] == 3:
        layouts.append("NCHW")
    if dims[3] == 3:
        layouts.append("NHWC")
    if len(layouts) != 1:
        raise SourceError(
            f"{path} takes an array of {shown}; {wanted}, with 3 channels where its shape says so: "
            "(batch, 3, height, width) or (batch, height, width, 3)"
        )
    return layouts[0]


def _modern(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    if opset >= LEAST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # it raises RuntimeError and its own, which share no base
        raise SourceError(
            f"{path} is of opset {opset}, and converting it to {OPSET} fails ({_first(error)}); "
            f"export it again with opset {LEAST_OPSET} or later"
        ) from None


def _session(path: Path, model: onnx.ModelProto) -> OnnxNetwork:
    try:
        return OnnxNetwork(model)
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise SourceError(
            f"ONNX Runtime cannot load {path} for frames of any size ({_first(error)}); export it "
            "again with dynamic batch, height and width"
        ) from None


def _find_sizes(path: Path, network: OnnxNetwork, layout: Layout) -> None:
    """Set the layouts, the scale and the size rule of a network, by running it."""
    random = np.random.default_rng(0)
    reason = ""

    def shape(height: int, width: int) -> tuple[int, ...] | None:
        nonlocal reason
        frame = random.random((1, 3, height, width), dtype=np.float32)
        if layout == "NHWC":
            frame = np.ascontiguousarray(frame.transpose(0, 2, 3, 1))
        try:
            return network.run(frame).shape
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            reason = _first(error)
            return None

    for side in (64, 128, 96, 256, 72, 80, 112, 224):
        found = shape(side, 2 * side)
        if found is not None:
            break
    else:
        raise SourceError(
            f"{path} takes no frame of a size of our choice ({reason}); export it again with "
            "dynamic batch, height and width"
        )
    if len(found) != 4 or 3 not in (found[1], found[3]):
        shown = "×".join(str(length) for length in found)
        raise SourceError(
            f"{path} answers a picture with {shown}, wanted is a picture of 3 channels"
        )
    layout_out: Layout = "NCHW" if found[1] == 3 else "NHWC"
    height, width = (found[i] for i in ((2, 3) if layout_out == "NCHW" else (1, 2)))
    scale = round(height / side)
    if (height, width) != (scale * side, 2 * scale * side) or scale < 1:
        raise SourceError(
            f"{path} answers a frame of {side}x{2 * side} with one of {height}x{width}; wanted is "
            "the same size or a whole multiple, at every size: export it again with dynamic height "
            "and width"
        )
    network.scale = scale
    network.ends = Ends(
        layout=layout, layout_out=layout_out, value_range=1, range_out=1, channel_order="rgb"
    )

    def answers(height: int, width: int) -> bool:
        sides = (height * scale, width * scale)
        wanted = (1, 3, *sides) if layout_out == "NCHW" else (1, *sides, 3)
        return shape(height, width) == wanted

    rule = size_rule(answers)
    if rule is None:
        raise SourceError(
            f"{path} answers some sizes of frames and not others, by no rule that holds for a "
            f"multiple of up to 64 pixels{f' ({reason})' if reason else ''}; export it again with "
            "dynamic height and width"
        )
    network.size_multiple, network.size_min = rule


def _order(told: Mapping[str, str], given: ChannelOrder | None) -> tuple[ChannelOrder, str]:
    if given is not None:
        return given, "as you said"
    # "Image.…" is what ONNX's own MetadataProps.md defines.
    said = (told.get("topcoat.colour_order") or told.get("Image.BitmapPixelFormat") or "").lower()
    if said.startswith(("rgb", "bgr")):
        return ("bgr" if said.startswith("bgr") else "rgb"), "as its metadata says"
    return "rgb", "assumed: the file does not say"


def _find_range(
    path: Path,
    network: OnnxNetwork,
    told: Mapping[str, str],
    given: ValueRange | None,
    order: ChannelOrder,
) -> None:
    ends = network.ends
    layout, layout_out = ends.layout, ends.layout_out
    side = max(_PICTURE_SIDE // network.size_multiple * network.size_multiple, network.size_min)
    photograph = bundled_photographs()[0].frame[:side, :side]
    planes = photograph.transpose(2, 0, 1)[None].astype(np.float32)

    def at(value_range: ValueRange) -> Ends:
        taking = Ends(
            layout=layout,
            layout_out=layout_out,
            value_range=value_range,
            range_out=1,
            channel_order=order,
        )
        answer = network.run(as_laid_out(planes / 255 * value_range, taking))
        if answer.dtype == np.uint8:
            white: ValueRange = 255
        else:
            spread = np.percentile(np.abs(answer.astype(np.float64)), 99)
            if not np.isfinite(spread):
                raise SourceError(
                    f"{path} answers a photograph of white {value_range} with NaN or infinity; "
                    "give the range that it was trained on with --range, or another file"
                )
            white = 255 if spread > _BEYOND_ONE else 1
        return Ends(
            layout=layout,
            layout_out=layout_out,
            value_range=value_range,
            range_out=white,
            channel_order=order,
        )

    if network._dtype is np.uint8:
        if given == 1:
            raise SourceError(f"{path} takes bytes, whose white is 255; leave out --range")
        network.ends = at(255)
        return
    said = {"NominalRange_0_255": 255, "Normalized_0_1": 1}.get(
        told.get("Image.NominalPixelRange", "")
    )
    if given is not None or said is not None:
        network.ends = at(255 if (given or said) == 255 else 1)
        return
    # A network that gives back what it was given, in range, is used as it was meant to be.
    alike = [ends for ends in (at(1), at(255)) if ends.value_range == ends.range_out]
    if len(alike) != 1:
        raise SourceError(
            f"{path} does not say whether white is 1 or 255, and its answers to a photograph fit "
            f"{'both' if alike else 'neither'}; say it: --range 1 or --range 255"
        )
    network.ends = alike[0]


def _check_batch(path: Path, network: OnnxNetwork) -> None:
    side = max(network.size_min, network.size_multiple)
    random = np.random.default_rng(1)
    frames = torch.from_numpy(random.random((2, 3, side, 2 * side), dtype=np.float32))
    singly = torch.cat([network(frame[None]) for frame in frames])
    try:
        together = network(frames)
        same = together.shape == singly.shape and torch.allclose(together, singly, atol=1e-3)
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise SourceError(
            f"{path} takes one picture at a time and no batch ({_first(error)}); export it again "
            "with a dynamic batch"
        ) from None
    if not same:
        raise SourceError(
            f"{path} answers two pictures together otherwise than one by one; export it again "
            "with a dynamic batch"
        )


def _framed(
    path: Path,
    body: onnx.ModelProto,
    network: OnnxNetwork,
    precision: Precision,
    task: str,
    sha256: str,
) -> onnx.ModelProto:
    names = (INPUT_NAMES[task], OUTPUT_NAMES[task])
    model = framed(body, network.ends, scale=network.scale, names=names, title=f"topcoat-{task}")
    onnx.helper.set_model_props(
        model,
        {
            "topcoat.task": task,
            "topcoat.precision": precision,
            "topcoat.scale": str(network.scale),
            "topcoat.halo": "none",
            "topcoat.size_multiple": str(network.size_multiple),
            "topcoat.size_min": str(network.size_min),
            "topcoat.pad": "edge",
            "topcoat.layout": "NHWC",
            "topcoat.colour_order": "RGB",
            "topcoat.range": "0-255",
            "topcoat.file_sha256": sha256,
        },
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors share no base but Exception
        raise SourceError(
            f"{path} cannot be given frames of bytes: {_first(error)}; export it again"
        ) from None
    return model


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
