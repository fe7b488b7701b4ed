"""int8 graphs: quantised as far as the picture bears it, refused beyond, repeatable."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.export.conftest import sr_checkpoint
from topcoat.export._errors import PhotographError
from topcoat.export.onnx_from_checkpoint import onnx_from_network
from topcoat.export.quantisation import (
    MOST_FRAMES,
    QuantisationError,
    Quantised,
    calibration_frames,
    quantise,
)
from topcoat.runtime.backends.onnxruntime import import_onnxruntime
from topcoat.runtime.frames import Frame
from topcoat.runtime.parity import ProbeFrame, difference, flat_colours, synthetic_frames


@dataclass(frozen=True)
class Sizes:
    takes: Literal["frame", "noise"] = "frame"
    scale: int = 1
    size_multiple: int = 1
    size_min: int = 1


def drawn(side: int = 48) -> list[Frame]:
    """Frames with gradients and grain; no photographs, so that a test takes no time."""
    kinds = synthetic_frames(side, side)
    return [
        kinds["gradient"],
        (kinds["gradient"] // 2 + kinds["noise"] // 4).astype(np.uint8),
        (kinds["noise"] // 2 + 64).astype(np.uint8),
    ]


def probes(frames: Sequence[Frame]) -> list[ProbeFrame]:
    return [ProbeFrame(name=str(i), group="photographs", frame=f) for i, f in enumerate(frames)]


def network(*weights: NDArray[np.float32], gains: Sequence[float] = ()) -> onnx.ModelProto:
    """Convolutions in a row behind the frame contract, each followed by a factor of its own."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], name="in", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], name="planes", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "255th"], ["x0"], name="unit"),
    ]
    tensors = [numpy_helper.from_array(np.array(1 / 255, np.float32), "255th")]
    for i, weight in enumerate(weights):
        side = weight.shape[2] // 2
        nodes += [
            helper.make_node(
                "Conv", [f"x{i}", f"conv{i}"], [f"y{i}"], name=f"n{i}", pads=[side] * 4
            ),
            helper.make_node("Mul", [f"y{i}", f"gain{i}"], [f"x{i + 1}"], name=f"g{i}"),
        ]
        gain = gains[i] if gains else 1.0
        tensors += [
            numpy_helper.from_array(weight.astype(np.float32), f"conv{i}"),
            numpy_helper.from_array(np.array(gain, np.float32), f"gain{i}"),
        ]
    nodes += [
        helper.make_node("Mul", [f"x{len(weights)}", "255"], ["large"], name="bytes"),
        helper.make_node("Clip", ["large", "0", "255"], ["clipped"], name="clip"),
        helper.make_node("Round", ["clipped"], ["whole"], name="round"),
        helper.make_node("Transpose", ["whole"], ["last"], name="last", perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["last"], ["styled"], name="out", to=TensorProto.UINT8),
    ]
    tensors += [numpy_helper.from_array(np.array(v, np.float32), str(v)) for v in (0, 255)]
    sizes: list[str | int | None] = ["batch", "height", "width", 3]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, sizes)],
        [helper.make_tensor_value_info("styled", TensorProto.UINT8, sizes)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def identity(channels: int, noise: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    """A 3×3 convolution that keeps the picture, but for a little of its neighbours.

    Its weights are whole 127ths, which int8 holds.
    """
    weight = np.random.default_rng(seed).normal(0, noise, (channels, channels, 3, 3))
    weight = (weight * 127).round() / 127
    weight[range(channels), range(channels), 1, 1] = 1
    return np.asarray(weight, dtype=np.float32)


def run(model: onnx.ModelProto, frame: Frame) -> Frame:
    one: Frame = run_batch(model, frame[None])[0]
    return one


def run_batch(model: onnx.ModelProto, frames: Frame) -> Frame:
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (made,) = session.run(None, {model.graph.input[0].name: frames})
    return np.asarray(made)


def dense() -> onnx.ModelProto:
    return network(identity(3, 0.01), identity(3, 0.01, 1), identity(3, 0.01, 2))


@pytest.fixture(scope="module")
def enlarging() -> tuple[onnx.ModelProto, Any]:
    small = sr_checkpoint("residual-sr", 4).build_network()
    return onnx_from_network(small, task="super-resolution"), small


@pytest.fixture(scope="module")
def enlarged(enlarging: tuple[onnx.ModelProto, Any]) -> Quantised:
    model, sizes = enlarging
    return quantise(model, sizes, drawn(), probes=probes(drawn(64)))


def test_a_network_that_enlarges_keeps_its_picture_in_int8(
    enlarging: tuple[onnx.ModelProto, Any], enlarged: Quantised
) -> None:
    model, _ = enlarging
    assert enlarged.report.share > 0.99
    assert enlarged.report.result["photographs"].psnr_db > 40
    for frame in drawn(37):  # not a size that it was calibrated on
        found = difference(run(model, frame), run(enlarged.model, frame))
        assert 35 < found.psnr_db < 75  # close, and not the same file again


def test_the_frame_contract_and_the_signature_stay(
    enlarging: tuple[onnx.ModelProto, Any], enlarged: Quantised
) -> None:
    model, quantised = enlarging[0], enlarged.model
    assert [(o.domain, o.version) for o in quantised.opset_import] == [("", 20)]
    nodes = quantised.graph.node
    assert [node.op_type for node in nodes if "frame" in node.input] == ["Cast"]
    assert [node.op_type for node in nodes][-2:] == ["Transpose", "Cast"]
    mine, theirs = (
        {entry.key: entry.value for entry in m.metadata_props} for m in (quantised, model)
    )
    assert mine == {**theirs, "topcoat.precision": "int8"}
    assert quantised.graph.input[0] == model.graph.input[0]
    assert quantised.producer_name == model.producer_name


def test_every_weight_has_a_scale_per_output_channel_and_no_bias_is_quantised(
    enlarged: Quantised,
) -> None:
    graph = enlarged.model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "Conv":
            weight = makers[node.input[1]]
            assert weight.op_type == "DequantizeLinear"
            assert tensors[weight.input[0]].data_type == TensorProto.INT8
            assert list(tensors[weight.input[1]].dims) == [tensors[weight.input[0]].dims[0]]
    assert TensorProto.INT32 not in {tensor.data_type for tensor in graph.initializer}


def test_the_same_graph_and_frames_give_the_same_bytes(
    enlarging: tuple[onnx.ModelProto, Any], enlarged: Quantised
) -> None:
    model, sizes = enlarging
    before = model.SerializeToString(deterministic=True)
    again = quantise(model, sizes, drawn(), probes=probes(drawn(64)))
    first = enlarged.model.SerializeToString(deterministic=True)
    assert again.model.SerializeToString(deterministic=True) == first
    assert model.SerializeToString(deterministic=True) == before  # copied, not changed


def test_an_area_of_one_colour_stays_one_because_the_enlargement_stays_float32(
    enlarging: tuple[onnx.ModelProto, Any], enlarged: Quantised
) -> None:
    model, sizes = enlarging
    colours = flat_colours()[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    before = run_batch(model, colours)
    assert (before == before[:, :1, :1]).all()
    # Judged on photographs alone, 8 bits of the bicubic weights print a grid that those hide.
    printed = run_batch(enlarged.model, colours)
    assert not (printed == printed[:, :1, :1]).all()
    flat = ProbeFrame(name="flat", group="flat", frame=colours)
    careful = quantise(model, sizes, drawn(), probes=[*probes(drawn()), flat])
    kept = [conv.name for conv in careful.report.convolutions if not conv.quantised]
    assert kept == ["network.bicubic.weight"]
    even = run_batch(careful.model, colours)
    assert (even == even[:, :1, :1]).all()


def test_openvino_computes_the_same_picture(
    enlarging: tuple[onnx.ModelProto, Any], enlarged: Quantised
) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = openvino.Core()
    graph = core.read_model(enlarged.model.SerializeToString())
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for frame in drawn(37):
        found = difference(run(enlarging[0], frame), compiled(frame[None])[0][0])
        assert found.psnr_db > 35


def test_the_graph_is_built_by_an_engine_library(enlarged: Quantised) -> None:
    rtx = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT for RTX is not installed, which builds without a GPU"
    )
    quantised = enlarged.model
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    parsed = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(parsed, logger)
    assert parser.parse(quantised.SerializeToString()), [
        str(parser.get_error(i)) for i in range(parser.num_errors)
    ]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("frame", (1, 16, 16, 3), (1, 64, 64, 3), (1, 128, 128, 3))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(parsed, config) is not None


@pytest.mark.parametrize(("symmetric", "kind"), [(True, "INT8"), (False, "UINT8")])
def test_what_a_convolution_reads_is_signed_or_has_a_zero_point(symmetric: bool, kind: str) -> None:
    found = quantise(dense(), Sizes(), drawn(), probes=probes(drawn()), symmetric=symmetric)
    tensors = {tensor.name: tensor for tensor in found.model.graph.initializer}
    points = [
        tensors[node.input[2]]
        for node in found.model.graph.node
        if node.op_type == "QuantizeLinear"
    ]
    assert {TensorProto.DataType.Name(point.data_type) for point in points} == {kind}
    if symmetric:
        assert not any(numpy_helper.to_array(point).any() for point in points)


def amplified(gain: float) -> onnx.ModelProto:
    """The picture is made small beside a constant, and large again behind the next convolution.

    Eight bits of the sum hold little of the picture.
    """
    low = np.zeros((3, 3, 3, 3), np.float32)
    low[:, :, 1, 1] = 1.0  # a grey sum, large
    low[range(3), range(3), 1, 1] += 1 / gain
    high = np.zeros((3, 3, 1, 1), np.float32)
    inverse = np.linalg.inv(low[:, :, 1, 1].astype(np.float64))
    high[:, :, 0, 0] = inverse
    return network(low, high)


def test_a_picture_that_does_not_bear_it_is_refused_with_the_numbers() -> None:
    with pytest.raises(QuantisationError) as refused:
        quantise(amplified(1000), Sizes(), drawn(), probes=probes(drawn()))
    assert "int8 does not hold" in str(refused.value)
    assert "photographs: PSNR" in str(refused.value)
    assert "dB, wanted" in str(refused.value)
    assert str(refused.value).endswith("take --precision fp16 or fp32")


def test_the_convolution_that_harms_the_picture_stays_float32() -> None:
    model = amplified(20)
    # Four convolutions that bear it, in front: most of the arithmetic.
    bearing = network(*(identity(3, 0.005, seed) for seed in range(4)))
    joined = network(
        *(
            numpy_helper.to_array(tensor)
            for m in (bearing, model)
            for tensor in m.graph.initializer
            if tensor.name.startswith("conv")
        )
    )
    found = quantise(joined, Sizes(), drawn(), probes=probes(drawn()))
    kept = {conv.name for conv in found.report.convolutions if not conv.quantised}
    assert kept == {"conv5"}
    assert found.report.everything["photographs"].psnr_db < 40
    assert found.report.result["photographs"].psnr_db >= 40
    assert "stays fp32: conv5: alone in int8 the picture has" in str(found.report)
    counted = Counter(node.op_type for node in found.model.graph.node)
    assert counted["QuantizeLinear"] == 5
    weights = {t.name: t.data_type for t in found.model.graph.initializer}
    assert weights["conv5"] == TensorProto.FLOAT


def test_the_method_that_harms_least_is_taken_and_reported() -> None:
    report = quantise(dense(), Sizes(), drawn(), probes=probes(drawn())).report
    assert set(report.methods) == {"MinMax", "Percentile", "Entropy"}
    assert report.methods[report.method] == max(report.methods.values())
    content = report.to_json()
    assert content["format"] == "topcoat-quantisation"
    assert content["share"] == pytest.approx(1)
    assert content["bytes_int8"] == report.bytes_int8
    assert [conv["name"] for conv in content["convolutions"]] == ["conv0", "conv1", "conv2"]


def test_frames_of_several_sizes_are_calibrated_on_together() -> None:
    mixed = [drawn(24)[0], drawn(40)[1][:31], drawn(48)[2][:, :17]]
    found = quantise(dense(), Sizes(size_multiple=8, size_min=16), mixed, probes=probes(drawn()))
    assert found.report.frames == 3
    assert found.report.result["photographs"].psnr_db > 45


def test_nothing_to_calibrate_on_or_to_quantise_is_refused() -> None:
    with pytest.raises(QuantisationError, match="no frames to find scales on"):
        quantise(dense(), Sizes(), [])
    with pytest.raises(QuantisationError, match="no convolution to quantise"):
        quantise(network(), Sizes(), drawn())


def test_frames_to_calibrate_on_are_photographs_and_hard_ones_or_noise(tmp_path: Path) -> None:
    bundled = calibration_frames(Sizes(size_multiple=4, size_min=8))
    assert len(bundled) == 5 + 2
    assert all(side % 4 == 0 and side <= 256 for f in bundled for side in f.shape[:2])
    for i in range(MOST_FRAMES + 3):
        Image.fromarray(drawn(40)[i % 3]).save(tmp_path / f"{i:02}.png")
    own = calibration_frames(Sizes(), tmp_path)
    assert len(own) == MOST_FRAMES + 2
    noise = calibration_frames(Sizes(takes="noise", size_multiple=8, size_min=16))
    assert all(frame.shape[0] % 8 == 0 for frame in noise)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotographError, match="holds no readable photograph"):
        calibration_frames(Sizes(), tmp_path / "empty")
