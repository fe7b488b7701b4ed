"""ONNX files of other projects: what is found by running them, made of them, refused of them."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import topcoat.runtime
from tests.export.onnx_graphs import (
    BYTE,
    FLOAT,
    FREE,
    HALF,
    NCHW,
    GraphMaker,
    enlarging,
    halved,
    painting,
    save,
)
from topcoat.export.bundle_writer import export_bundle
from topcoat.export.onnx_from_checkpoint import Precision
from topcoat.export.probes import bundled_photographs
from topcoat.export.sources import Source, SourceError, open_source
from topcoat.export.sources._onnx_graph import ChannelOrder, ValueRange
from topcoat.export.sources._sides import size_rule, smallest_side

PHOTOGRAPH = np.ascontiguousarray(bundled_photographs()[0].frame[20:116, 100:228])  # (96, 128, 3)


def ran(model: onnx.ModelProto, frame: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {session.get_inputs()[0].name: frame})
    return np.asarray(result)


def in_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return values.astype(np.float32).round().clip(0, 255).astype(np.uint8)


def off_by(one: NDArray[Any], other: NDArray[Any]) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def refusal(path: Path, value_range: ValueRange | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(path, value_range=value_range)
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert len(text.splitlines()) == 1
    return text


def picture_graph(layout: str, order: str, white: int, kind: int, kind_out: int) -> onnx.ModelProto:
    """A network whose result shows every mistake in layout, order of colours or range."""
    made = GraphMaker()
    if kind != FLOAT:
        made.add("Cast", to=FLOAT)
    if layout == "NHWC":
        made.add("Transpose", perm=[0, 3, 1, 2])
    made.conv(3, 3)
    # Each channel goes its own way, and what is added is a fifth of white.
    channel = np.array([0.9, 0.6, -0.7] if order == "rgb" else [-0.7, 0.6, 0.9], np.float32)
    made.add("Mul", made.value(channel[None, :, None, None]))
    made.add("Add", made.value(np.array(0.2 * white, np.float32)))
    if layout == "NHWC":
        made.add("Transpose", perm=[0, 2, 3, 1])
    if kind_out != FLOAT:
        limits = [made.value(np.array(limit, np.float32)) for limit in (0, 255)]
        made.add("Clip", *limits)
        made.add("Cast", to=kind_out)
    shape = NCHW if layout == "NCHW" else ("n", "h", "w", 3)
    return made.model(shape, FREE, kind=kind, kind_out=kind_out)


@pytest.mark.parametrize(
    ("layout", "order", "white", "kind", "kind_out"),
    [
        *itertools.product(("NCHW", "NHWC"), ("rgb", "bgr"), (1, 255), (FLOAT,), (FLOAT,)),
        ("NHWC", "rgb", 255, BYTE, BYTE),
        ("NHWC", "bgr", 255, BYTE, BYTE),
        ("NCHW", "rgb", 255, BYTE, BYTE),
        ("NCHW", "rgb", 255, BYTE, FLOAT),
        ("NCHW", "bgr", 255, FLOAT, BYTE),
    ],
)
def test_a_frame_is_answered_as_the_file_itself_answers_the_picture(
    layout: str,
    order: ChannelOrder,
    white: ValueRange,
    kind: int,
    kind_out: int,
    tmp_path: Path,
) -> None:
    model = picture_graph(layout, order, white, kind, kind_out)
    path = save(model, tmp_path / "other.onnx")
    picture = PHOTOGRAPH[None] if order == "rgb" else PHOTOGRAPH[None, ..., ::-1]
    picture = picture if layout == "NHWC" else picture.transpose(0, 3, 1, 2)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    answer = ran(model, np.ascontiguousarray(picture * np.float32(white / 255)).astype(dtype))
    answer = answer if layout == "NHWC" else answer.transpose(0, 2, 3, 1)
    answer = answer if order == "rgb" else answer[..., ::-1]
    wanted = in_bytes(answer * np.float32(255 / white))

    given = None if kind == BYTE else white
    source = open_source(path, value_range=given, channel_order=order)
    made = source.to_onnx("fp32")
    assert off_by(ran(made, PHOTOGRAPH[None]), wanted) <= (1 if kind_out == FLOAT else 0)
    assert wanted.std() > 10
    readers = [n.op_type for n in made.graph.node if made.graph.input[0].name in n.input]
    assert set(readers) == {"Cast"}
    assert made.graph.node[-1].op_type == "Cast"
    for value in (made.graph.input[0], made.graph.output[0]):
        assert value.type.tensor_type.elem_type == BYTE


def test_scale_and_sizes_are_found_by_running_the_file(tmp_path: Path) -> None:
    large = open_source(save(enlarging(), tmp_path / "sr.onnx"), value_range=1)
    assert (large.network.scale, large.network.size_multiple) == (2, 1)
    assert large.task == "super-resolution"
    # The reflection at the second stride is one pixel wide, so two must be there; at the start, 5.
    painted = open_source(save(painting(), tmp_path / "style.onnx"))
    assert (painted.network.scale, painted.network.size_multiple) == (1, 4)
    assert painted.network.size_min == 8
    assert painted.task == "image-to-image"


def test_sizes_that_a_file_only_declares_are_freed(tmp_path: Path) -> None:
    fixed = open_source(save(painting(shape=(1, 3, 64, 64)), tmp_path / "fixed.onnx"))
    free = open_source(save(painting(), tmp_path / "free.onnx"))
    batch = np.stack([PHOTOGRAPH, PHOTOGRAPH[::-1]])
    assert off_by(ran(fixed.to_onnx("fp32"), batch), ran(free.to_onnx("fp32"), batch)) == 0


def test_sizes_that_are_fixed_inside_are_refused(tmp_path: Path) -> None:
    made = GraphMaker()
    made.conv(3, 3)
    made.add("Reshape", made.value(np.array([1, 3, 64, 64], np.int64)))
    path = save(made.model((1, 3, 64, 64), (1, 3, 64, 64)), tmp_path / "fixed.onnx")
    assert "dynamic" in refusal(path, value_range=1)


def test_a_batch_that_is_fixed_inside_is_refused(tmp_path: Path) -> None:
    made = GraphMaker()
    made.conv(3, 3)
    start = made.name
    shape = made.add("Shape", first=start, start=2)
    whole = made.add("Concat", shape, first=made.value(np.array([1, 3], np.int64)), axis=0)
    made.add("Reshape", whole, first=start)
    path = save(made.model(NCHW, FREE), tmp_path / "single.onnx")
    assert "one picture at a time" in refusal(path, value_range=1)


def test_the_range_is_found_where_only_one_makes_sense(tmp_path: Path) -> None:
    source = open_source(save(painting(), tmp_path / "style.onnx"))
    assert "white is 255; gives NCHW, white is 255" in source.notes[1]


def test_the_range_is_asked_for_where_both_make_sense(tmp_path: Path) -> None:
    text = refusal(save(enlarging(), tmp_path / "sr.onnx"))
    assert "--range 1 or --range 255" in text


def test_metadata_say_range_and_order_of_colours(tmp_path: Path) -> None:
    told = {"Image.NominalPixelRange": "Normalized_0_1", "Image.BitmapPixelFormat": "Bgr8"}
    source = open_source(save(enlarging(metadata=told), tmp_path / "sr.onnx"))
    assert "BGR (as its metadata says), white is 1" in source.notes[1]


def test_bytes_have_no_other_range_than_theirs(tmp_path: Path) -> None:
    path = save(picture_graph("NHWC", "rgb", 255, BYTE, BYTE), tmp_path / "bytes.onnx")
    assert "leave out --range" in refusal(path, value_range=1)


def test_a_graph_of_the_frame_contract_comes_through_unchanged(tmp_path: Path) -> None:
    first = open_source(save(painting(), tmp_path / "style.onnx")).to_onnx("fp32")
    again = open_source(save(first, tmp_path / "again.onnx")).to_onnx("fp32")
    assert off_by(ran(first, PHOTOGRAPH[None]), ran(again, PHOTOGRAPH[None])) == 0
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in first.graph.node]


def test_the_same_file_gives_the_same_bytes_without_what_only_people_read(tmp_path: Path) -> None:
    model = painting()
    model.doc_string = model.graph.node[0].doc_string = "/home/somebody/train.py"
    path = save(model, tmp_path / "style.onnx")
    once, twice = (
        open_source(path).to_onnx("fp32").SerializeToString(deterministic=True) for _ in range(2)
    )
    assert once == twice
    assert b"somebody" not in once


def test_a_float16_file_is_widened_exactly_and_kept_for_fp16(tmp_path: Path) -> None:
    model = halved(enlarging())
    source = open_source(save(model, tmp_path / "half.onnx"), value_range=1)
    wide, half = source.to_onnx("fp32"), source.to_onnx("fp16")
    kinds = [
        {t.data_type for t in made.graph.initializer} - {TensorProto.INT64} for made in (wide, half)
    ]
    assert kinds[0] == {FLOAT}
    assert HALF in kinds[1]
    kernels = [
        next(numpy_helper.to_array(t) for t in made.graph.initializer if len(t.dims) == 4)
        for made in (wide, half)
    ]
    assert (kernels[0] == kernels[1].astype(np.float32)).all()
    assert off_by(ran(wide, PHOTOGRAPH[None]), ran(half, PHOTOGRAPH[None])) <= 1


def test_half_precision_is_not_made_of_a_finished_float32_graph(tmp_path: Path) -> None:
    source = open_source(save(painting(), tmp_path / "style.onnx"))
    precisions: tuple[Precision, ...] = ("fp16", "bf16")
    for precision in precisions:
        with pytest.raises(SourceError, match=f"no {precision} model"):
            source.to_onnx(precision)


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    made = GraphMaker()
    kernel = made.value(np.full((3, 3, 1, 1), 0.3, np.float32))
    made.add("Conv", kernel, kernel_shape=[1, 1])
    made.add("Clip", min=0.0, max=255.0)  # limits were attributes before opset 11
    old = made.model(NCHW, FREE, opset=9)
    source = open_source(save(old, tmp_path / "old.onnx"), value_range=255)
    wanted = in_bytes(PHOTOGRAPH.astype(np.float32).sum(axis=2, keepdims=True) * 0.3)
    got = ran(source.to_onnx("fp32"), PHOTOGRAPH[None])[0]
    assert off_by(got, np.repeat(wanted, 3, axis=2)) <= 1


def outside(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """The same file with its largest weight said to lie elsewhere."""
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    for key, value in (("location", location), ("offset", "0")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return model


def test_weights_beside_the_file_are_taken_in(tmp_path: Path) -> None:
    model = painting()
    data = max((t.raw_data for t in model.graph.initializer), key=len)
    (tmp_path / "style.data").write_bytes(data)
    inside = open_source(save(model, tmp_path / "whole.onnx")).to_onnx("fp32")
    path = save(outside(painting(), "style.data"), tmp_path / "style.onnx")
    taken = open_source(path).to_onnx("fp32")
    assert off_by(ran(inside, PHOTOGRAPH[None]), ran(taken, PHOTOGRAPH[None])) == 0
    (tmp_path / "style.data").write_bytes(data[:-1])
    assert "does not have" in refusal(path) or "damaged" in refusal(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "inner/file", "..", "", "link"])
def test_no_path_leads_out_of_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for place in (tmp_path / "secret", folder / "inner" / "file"):
        place.write_bytes(bytes(100_000))
    (folder / "link").symlink_to(tmp_path / "secret")
    path = save(outside(painting(), location), folder / "style.onnx")
    assert "outside its own folder" in refusal(path)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    path = save(outside(painting(), "style.data"), tmp_path / "style.onnx")
    assert "style.data, which is not beside it" in refusal(path)


def with_operator_of(domain: str) -> onnx.ModelProto:
    model = painting()
    model.graph.node[2].domain = domain
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def two_pictures_in() -> onnx.ModelProto:
    made = GraphMaker()
    made.add("Add", "mask")
    model = made.model(NCHW, FREE)
    model.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, NCHW))
    return model


def two_pictures_out() -> onnx.ModelProto:
    model = enlarging()
    model.graph.output.append(helper.make_tensor_value_info("v0", FLOAT, FREE))
    return model


def declared(shape: Sequence[str | int] | None, kind: int = FLOAT) -> onnx.ModelProto:
    made = GraphMaker()
    made.add("Identity")
    return made.model(shape, shape, kind=kind)


def shrinking() -> onnx.ModelProto:
    made = GraphMaker()
    made.add("Conv", made.value(np.ones((3, 3, 3, 3), np.float32)), kernel_shape=[3, 3])
    return made.model(NCHW, FREE)


def of_one_channel() -> onnx.ModelProto:
    made = GraphMaker()
    made.conv(3, 1)
    return made.model(NCHW, FREE)


def not_a_number() -> onnx.ModelProto:
    made = GraphMaker()
    made.add("Mul", made.value(np.array(np.nan, np.float32)))
    return made.model(NCHW, FREE)


def texture() -> onnx.ModelProto:
    return enlarging(metadata={"topcoat.task": "texture"})


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "an operator of another domain": (lambda: with_operator_of("com.acme"), "of com.acme"),
    "two inputs": (two_pictures_in, "2 inputs (picture, mask)"),
    "two outputs": (two_pictures_out, "2 outputs (answer, v0)"),
    "one channel in": (lambda: declared(("n", 1, "h", "w")), "?×1×?×?"),
    "three axes": (lambda: declared((3, "h", "w")), "3×?×?"),
    "no shape": (lambda: declared(None), "unknown shape"),
    "whole numbers": (lambda: declared(NCHW, TensorProto.INT64), "int64"),
    "a smaller answer": (shrinking, "answers a frame of 64x128 with one of 62x126"),
    "one channel out": (of_one_channel, "1×1×64×128"),
    "NaN": (not_a_number, "NaN in its weights"),
    "a texture": (texture, "makes textures of noise"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_picture_in_and_picture_out_is_refused_with_the_reason(
    kind: str, tmp_path: Path
) -> None:
    make, words = REFUSED[kind]
    assert words in refusal(save(make(), tmp_path / "other.onnx"), value_range=255)


@pytest.mark.parametrize("content", [b"", b"not protobuf at all", None])
def test_a_damaged_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    whole = painting().SerializeToString()
    path = tmp_path / "damaged.onnx"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert "cut short" in refusal(path)


def test_functions_of_a_file_s_own_are_taken_in(tmp_path: Path) -> None:
    made = GraphMaker()
    made.add("Half", domain="own")
    model = made.model(NCHW, FREE)
    model.functions.append(
        helper.make_function(
            "own",
            "Half",
            ["x"],
            ["y"],
            [
                helper.make_node("Constant", [], ["c"], value_float=0.5),
                helper.make_node("Mul", ["x", "c"], ["y"]),
            ],
            [helper.make_opsetid("", 20)],
        )
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    source = open_source(save(model, tmp_path / "own.onnx"), value_range=255)
    got = ran(source.to_onnx("fp32"), PHOTOGRAPH[None])[0]
    assert off_by(got, in_bytes(PHOTOGRAPH / np.float32(2))) == 0


def test_a_bundle_of_an_onnx_file_is_proved_and_says_where_it_comes_from(tmp_path: Path) -> None:
    source: Source = open_source(save(enlarging(), tmp_path / "sr.onnx"), value_range=1)
    exported = export_bundle(source, tmp_path / "sr.topcoat")
    assert exported
    assert exported.report is not None
    assert "ONNX Runtime" in exported.report.to_json()["reference"]
    bundle = tmp_path / "sr.topcoat"
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["task"] == "super-resolution"
    assert manifest["checkpoint"]["kind"] == "onnx"
    assert manifest["checkpoint"]["sha256"] == source.sha256
    card = (bundle / "card.md").read_text(encoding="utf-8")
    assert "The same frames through ONNX Runtime" in card
    for word in ("PyTorch", "Recipe", "Trained", "as in training", "Losses"):
        assert word not in card
    with topcoat.runtime.open(bundle) as model:
        answer = model.process(PHOTOGRAPH)
    picture = PHOTOGRAPH[None].transpose(0, 3, 1, 2).astype(np.float32)
    wanted = ran(enlarging(), picture / np.float32(255))[0].transpose(1, 2, 0)
    assert off_by(answer, in_bytes(wanted * np.float32(255))) <= 1


def test_sides_follow_the_rule_that_explains_what_works() -> None:
    assert size_rule(lambda h, w: h % 12 == w % 12 == 0 and min(h, w) >= 24) == (12, 24)
    assert size_rule(lambda h, w: True) == (1, 1)
    assert size_rule(lambda h, w: False) is None
    assert size_rule(lambda h, w: h == w) is None  # square frames only
    assert size_rule(lambda h, w: h % 7 == 3 and w % 7 == 3) is None  # no multiple of anything
    assert smallest_side(lambda h, w: h + w > 5000, 1) is None
