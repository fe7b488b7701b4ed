"""The graph: its contract, what it must not carry, and that it repeats."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.export.conftest import ExportedBundle, tiny_checkpoint
from topcoat.export import onnx_from_network
from topcoat.export.onnx_from_checkpoint import FrameGraph, called_layers, weights_sha256
from topcoat.export.parity import reference_frame
from topcoat.runtime.backends.onnxruntime import import_onnxruntime
from topcoat.train.networks import FrameNetwork

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
BFLOAT16, UINT8 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.UINT8


@pytest.fixture(params=["fp32", "fp16"])
def model(request: pytest.FixtureRequest, exported: ExportedBundle) -> onnx.ModelProto:
    return onnx.load(exported.bundle / f"model.{request.param}.onnx")


@pytest.fixture(scope="module")
def paper() -> onnx.ModelProto:
    return onnx_from_network(tiny_checkpoint(form="paper").build_network())


def sizes(value: onnx.ValueInfoProto) -> list[str | int]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


def session(model: onnx.ModelProto) -> Any:  # noqa: ANN401 - the package has no types
    return import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def test_the_graph_takes_and_gives_uint8_frames_of_any_size(model: onnx.ModelProto) -> None:
    (frame,), (styled,) = model.graph.input, model.graph.output
    assert (frame.name, styled.name) == ("frame", "styled")
    for value in (frame, styled):
        assert value.type.tensor_type.elem_type == UINT8
        assert sizes(value) == ["batch", "height", "width", 3]


def test_the_graph_is_of_opset_20_and_passes_onnx_own_full_check(model: onnx.ModelProto) -> None:
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)


def test_the_frame_feeds_a_cast_and_nothing_else_and_the_output_ends_in_one(
    model: onnx.ModelProto,
) -> None:
    nodes = model.graph.node
    assert [node.op_type for node in nodes if "frame" in node.input] == ["Cast"]
    assert [node.op_type for node in nodes][-2:] == ["Transpose", "Cast"]
    assert nodes[-1].output == ["styled"]


def test_normalisation_and_reflection_stay_single_operators(model: onnx.ModelProto) -> None:
    counted = Counter(node.op_type for node in model.graph.node)
    assert counted["InstanceNormalization"] == 7
    assert counted["Conv"] == 8
    assert {n.op_type for n in model.graph.node} <= {
        *("Cast", "Transpose", "Mul", "Sub", "Add", "Pad", "Conv", "InstanceNormalization"),
        *("Relu", "Resize", "Tanh", "Clip", "Round"),
    }


def test_no_name_of_this_machine_and_no_source_line_is_left(
    exported: ExportedBundle, paper: onnx.ModelProto
) -> None:
    forbidden = [b".py", b"site-packages", b"File ", b"stack_trace", b"pkg.torch", b"forward"]
    forbidden += [os.fsencode(Path.home()) + b"/", os.fsencode(Path.cwd()) + b"/", b"/home/"]
    files = [exported.bundle / "model.fp32.onnx", exported.bundle / "model.fp16.onnx"]
    for data in [*(file.read_bytes() for file in files), paper.SerializeToString()]:
        assert [word for word in forbidden if word in data] == []
    assert not paper.graph.value_info


def test_the_signature_travels_in_the_file_and_survives_onnxruntime(
    exported: ExportedBundle,
) -> None:
    model = onnx.load(exported.bundle / "model.fp16.onnx")
    meta = session(model).get_modelmeta().custom_metadata_map
    network = tiny_checkpoint().build_network()
    assert meta == {
        "topcoat.task": "style",
        "topcoat.precision": "fp16",
        "topcoat.scale": "1",
        "topcoat.halo": "none",
        "topcoat.size_multiple": "4",
        "topcoat.size_min": "8",
        "topcoat.pad": "edge",
        "topcoat.layout": "NHWC",
        "topcoat.colour_order": "RGB",
        "topcoat.range": "0-255",
        "topcoat.weights_sha256": weights_sha256(network),
    }


def test_the_weights_hash_changes_with_a_single_weight() -> None:
    network = tiny_checkpoint().build_network()
    before = weights_sha256(network)
    assert before == weights_sha256(tiny_checkpoint().build_network())
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1
    assert weights_sha256(network) != before


def test_another_process_with_another_hash_seed_exports_the_same_bytes(
    exported: ExportedBundle,
) -> None:
    code = (
        "import hashlib, sys; from topcoat.train import load_checkpoint;"
        "from topcoat.export import onnx_from_network;"
        "model = onnx_from_network(load_checkpoint(sys.argv[1]).build_network());"
        "print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": "1"}
    again = subprocess.run(
        [sys.executable, "-c", code, str(exported.checkpoint_file)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    data = (exported.bundle / "model.fp32.onnx").read_bytes()
    assert again.stdout.strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 64, 40), (3, 20, 132)])
def test_one_graph_runs_every_size_and_batch_like_the_network(
    exported: ExportedBundle, shape: tuple[int, int, int]
) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    engine = session(onnx.load(exported.bundle / "model.fp32.onnx"))
    (styled,) = engine.run(None, {"frame": frame})
    with torch.no_grad():
        wanted = FrameGraph(tiny_checkpoint().build_network())(torch.from_numpy(frame)).numpy()
    assert styled.dtype == np.uint8
    assert np.abs(styled.astype(int) - wanted).max() <= 1


def test_the_form_of_the_paper_exports_with_valid_blocks_and_transposed_convolutions(
    paper: onnx.ModelProto,
) -> None:
    counted = Counter(node.op_type for node in paper.graph.node)
    assert counted["ConvTranspose"] == 2
    assert counted["Pad"] == 1
    assert sizes(paper.graph.output[0]) == ["batch", "height", "width", 3]
    frame = np.random.default_rng(1).integers(0, 256, (2, 40, 68, 3), dtype=np.uint8)
    (styled,) = session(paper).run(None, {"frame": frame})
    wanted = reference_frame(tiny_checkpoint(form="paper").build_network(), frame)
    assert np.abs(styled.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bilinear_upsampling_keeps_its_sizes_dynamic_and_its_values(
    precision: Literal["fp32", "fp16"],
) -> None:
    network = tiny_checkpoint(upsampling="bilinear").build_network()
    model = onnx_from_network(network, precision)
    resizes = [node for node in model.graph.node if node.op_type == "Resize"]
    modes = [next(a.s for a in node.attribute if a.name == "mode") for node in resizes]
    assert modes == [b"linear", b"linear"]
    engine = session(model)
    for shape in ((1, 8, 8, 3), (2, 40, 68, 3)):
        frame = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        (styled,) = engine.run(None, {"frame": frame})
        wanted = reference_frame(network, frame)
        allowed = 1 if precision == "fp32" else 4
        assert np.abs(styled.astype(int) - wanted).max() <= allowed


def test_half_precision_is_strong_every_weight_is_float16(exported: ExportedBundle) -> None:
    model = onnx.load(exported.bundle / "model.fp16.onnx")
    floats = {t.data_type for t in model.graph.initializer} - {onnx.TensorProto.INT64}
    # Resize takes its scales as float32 by ONNX's definition; they are no arithmetic of ours.
    scales = {n.input[2] for n in model.graph.node if n.op_type == "Resize"}
    weights = {t.data_type for t in model.graph.initializer if t.name not in scales}
    assert weights - {onnx.TensorProto.INT64} == {FLOAT16}, floats
    casts = [n for n in model.graph.node if n.op_type == "Cast"]
    assert [n.attribute[0].i for n in casts] == [FLOAT16, UINT8]


def test_exporting_leaves_the_network_as_it_was(paper: onnx.ModelProto) -> None:
    network = tiny_checkpoint(form="paper").build_network().train()
    onnx_from_network(network, "fp16")
    assert network.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in network.parameters())


class Doubling(FrameNetwork):
    """Enlarges twice, with a convolution in between: stands for super-resolution."""

    scale = 2
    size_multiple = 2
    size_min = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, frame: Tensor) -> Tensor:
        return F.interpolate(self.conv(frame), scale_factor=2.0, mode="nearest")


def test_a_network_that_enlarges_has_output_sizes_of_its_own() -> None:
    torch.manual_seed(0)
    network = Doubling().eval()
    model = onnx_from_network(network, task="super-resolution")
    assert sizes(model.graph.input[0]) == ["batch", "height", "width", 3]
    assert sizes(model.graph.output[0]) == ["batch", "height_out", "width_out", 3]
    frame = np.random.default_rng(1).integers(0, 256, (1, 6, 10, 3), dtype=np.uint8)
    (enlarged,) = session(model).run(["enlarged"], {"frame": frame})
    assert enlarged.shape == (1, 12, 20, 3)
    assert np.abs(enlarged.astype(int) - reference_frame(network, frame)).max() <= 1


def test_an_unknown_precision_or_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"texture.*, got 'colour'"):
        onnx_from_network(tiny_checkpoint().build_network(), task="colour")
    with pytest.raises(ValueError, match="fp32, fp16 or bf16, got 'int8'"):
        onnx_from_network(tiny_checkpoint().build_network(), "int8")  # type: ignore[arg-type]


def casts(model: onnx.ModelProto) -> list[int]:
    return [node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"]


@pytest.fixture(scope="module")
def bfloat() -> onnx.ModelProto:
    return onnx_from_network(tiny_checkpoint().build_network(), "bf16", keep_fp32=["body.0.2"])


def test_bfloat16_is_strong_and_of_the_opset_that_has_it(bfloat: onnx.ModelProto) -> None:
    assert [(o.domain, o.version) for o in bfloat.opset_import] == [("", 22)]
    assert {p.key: p.value for p in bfloat.metadata_props}["topcoat.precision"] == "bf16"
    convolutions = [node for node in bfloat.graph.node if node.op_type == "Conv"]
    types = {tensor.name: tensor.data_type for tensor in bfloat.graph.initializer}
    assert {types[node.input[1]] for node in convolutions} == {BFLOAT16}
    assert casts(bfloat) == [BFLOAT16, FLOAT, BFLOAT16, UINT8]


def test_an_engine_library_parses_and_builds_a_bfloat16_graph_with_an_island(
    bfloat: onnx.ModelProto,
) -> None:
    # Nothing here computes it: ONNX Runtime's CPU kernels have no bfloat16 convolution.
    rtx = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT for RTX is not installed, which builds without a GPU"
    )
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse(bfloat.SerializeToString()), [
        str(parser.get_error(i)) for i in range(parser.num_errors)
    ]
    norms = [
        network.get_layer(i).get_output(0).dtype
        for i in range(network.num_layers)
        if network.get_layer(i).type == rtx.LayerType.NORMALIZATION
    ]
    assert sorted(Counter(norms).values()) == [1, 6]
    assert Counter(norms)[rtx.DataType.FLOAT] == 1
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("frame", (1, 32, 32, 3), (1, 64, 64, 3), (1, 64, 128, 3))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


@pytest.fixture(scope="module")
def with_islands() -> onnx.ModelProto:
    """A convolution and the norm that reads it, and the last convolution, in float32."""
    return onnx_from_network(
        tiny_checkpoint().build_network(), "fp16", keep_fp32=["body.0.1", "body.0.2", "body.6.1"]
    )


def test_islands_that_follow_each_other_and_the_last_layer_are_not_cast_back(
    with_islands: onnx.ModelProto,
) -> None:
    assert casts(with_islands) == [FLOAT16, FLOAT, FLOAT16, FLOAT, UINT8]
    # Behind the last one, the tanh and the scaling to 8 bits are float32 too.
    (tanh,) = [node for node in with_islands.graph.node if node.op_type == "Tanh"]
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(with_islands).graph.value_info
    }
    assert types[tanh.output[0]] == FLOAT


def test_an_island_has_weights_that_were_never_rounded(with_islands: onnx.ModelProto) -> None:
    network = tiny_checkpoint().build_network()
    tensors = {tensor.name: tensor for tensor in with_islands.graph.initializer}
    convolutions = [n for n in with_islands.graph.node if n.op_type == "Conv"]
    first = onnx.numpy_helper.to_array(tensors[convolutions[0].input[1]])
    np.testing.assert_array_equal(first, network.get_parameter("body.0.1.weight").detach())
    others = {tensors[node.input[1]].data_type for node in convolutions[1:-1]}
    assert others == {FLOAT16}
    signature = {entry.key: entry.value for entry in with_islands.metadata_props}
    assert signature["topcoat.keep_fp32"] == "body.0.1 body.0.2 body.6.1"


def test_a_graph_with_islands_runs_like_the_network(with_islands: onnx.ModelProto) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    (styled,) = session(with_islands).run(None, {"frame": frame})
    wanted = reference_frame(tiny_checkpoint().build_network(), frame)
    assert np.abs(styled.astype(int) - wanted).max() <= 2


def test_layers_are_listed_with_who_reads_them() -> None:
    layers = called_layers(tiny_checkpoint().build_network())
    assert layers["body.0.1"] == {"body.0.2"}
    assert layers["body.3.body.6"] == set()  # the sum that it goes into reads it
    assert list(layers.values()).count(None) == 1


def test_an_island_that_is_no_layer_is_refused() -> None:
    network = tiny_checkpoint().build_network()
    with pytest.raises(ValueError, match=r"no layer is called body.99; the layers are body.0.0, "):
        onnx_from_network(network, "fp16", keep_fp32=["body.99"])
    with pytest.raises(ValueError, match="in fp32 every layer stays; leave it out"):
        onnx_from_network(network, "fp32", keep_fp32=["body.0.2"])
