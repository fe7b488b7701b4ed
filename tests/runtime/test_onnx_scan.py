"""A model that keeps its weights in other files never reaches an engine."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import topcoat.runtime as tr
from topcoat.runtime._onnx_scan import external_data_location

Edit = Callable[[Callable[[dict[str, Any]], object]], Path]


def field(number: int, payload: bytes | int) -> bytes:
    """Encode one protobuf field; payloads here are shorter than 128 bytes or numbers below 128."""
    if isinstance(payload, int):
        return bytes([number << 3, payload])
    key = number << 3 | 2
    head = bytes([key]) if key < 128 else bytes([key & 0x7F | 0x80, key >> 7])
    return head + bytes([len(payload)]) + payload


ENTRY = field(13, field(1, b"location") + field(2, b"../../etc/passwd"))
OUTSIDE = field(8, b"w") + ENTRY + field(14, 1)
INSIDE = field(8, b"w") + field(9, b"\0\0\0\0")


@pytest.mark.parametrize(
    "model",
    [
        field(7, field(5, OUTSIDE)),
        field(7, field(1, field(5, field(5, OUTSIDE)))),
        field(7, field(1, field(5, field(10, INSIDE) + field(10, OUTSIDE)))),
        field(7, field(1, field(5, field(6, field(5, OUTSIDE))))),
        field(7, field(15, field(1, OUTSIDE))),
        field(25, field(7, field(5, field(5, OUTSIDE)))),
        field(20, field(1, field(5, OUTSIDE))),
    ],
    ids=["initializer", "constant", "tensors", "subgraph", "sparse", "function", "training"],
)
def test_external_data_is_found_wherever_a_tensor_can_be(model: bytes) -> None:
    assert external_data_location(model) == "../../etc/passwd"


def test_a_tensor_that_only_claims_to_be_outside_is_found_too() -> None:
    assert external_data_location(field(7, field(5, field(14, 1)))) == "unnamed"


def test_a_self_contained_model_is_let_through(blocks: Path, double: Path) -> None:
    for path in (*blocks.glob("*.onnx"), *double.glob("*.onnx")):
        assert external_data_location(path.read_bytes()) is None
    assert external_data_location(field(7, field(5, INSIDE))) is None


def test_a_bundle_with_such_a_model_is_refused_although_its_hash_is_right(
    edit_manifest: Edit, bundle: Path
) -> None:
    model = field(7, field(5, OUTSIDE))
    (bundle / "model.fp32.onnx").write_bytes(model)

    def change(manifest: dict[str, Any]) -> None:
        manifest["variants"][0]["sha256"] = hashlib.sha256(model).hexdigest()
        manifest["variants"][0]["bytes"] = len(model)

    path = edit_manifest(change)
    with pytest.raises(tr.BundleError, match=r"keeps data in another file \('../../etc/passwd'\)"):
        tr.open(path, backend="onnxruntime-cpu")
    with pytest.raises(tr.BundleError, match="keeps data in another file"):
        tr.verify_files(path)


@given(st.binary(max_size=200))
def test_random_bytes_end_in_an_answer_or_in_one_line(data: bytes) -> None:
    try:
        external_data_location(data)
    except tr.BundleError as error:
        if "not an ONNX file" not in str(error):
            raise


def test_onnx_itself_writes_external_data_the_way_that_is_looked_for(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    import numpy as np

    tensor = onnx.numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", 1, [64, 64])], [value("y", 1, [64, 64])], [tensor]
    )
    model = onnx.helper.make_model(graph)
    assert external_data_location(model.SerializeToString()) is None
    onnx.save_model(
        model,
        str(tmp_path / "m.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert external_data_location((tmp_path / "m.onnx").read_bytes()) == "weights.bin"
