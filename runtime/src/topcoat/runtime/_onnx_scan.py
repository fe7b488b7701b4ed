"""Find out whether an ONNX file keeps tensors in other files, without the onnx package.

ONNX lets a model name other files for its weights, by a path that an engine then opens. A bundle's
hashes do not cover such files and the path may lead anywhere, so the runtime looks before it hands
the bytes to an engine. Only the protobuf framing is read (protobuf.dev, "Encoding").
"""

from __future__ import annotations

from collections.abc import Iterator

from topcoat.runtime._errors import BundleError

# Message type -> {field number -> message type of that field}: every way from a model to a tensor
# (onnx.proto3). TensorProto: 13 external_data, 14 data_location (1 = EXTERNAL).
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "Sparse",
        23: "Sparse",
    },
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_DEPTH_LIMIT = 64


def external_data_location(model: bytes) -> str | None:
    """Return where the first tensor outside the file lies, or None if the model is self-contained.

    Args:
        model: the bytes of a serialised ONNX ModelProto.

    Raises:
        BundleError: the bytes are not protobuf.
    """
    try:
        return _search(memoryview(model), "Model", 0)
    except (IndexError, ValueError) as error:
        raise BundleError(
            f"the model is not an ONNX file ({error}); export the bundle again"
        ) from error


def _search(view: memoryview, kind: str, depth: int) -> str | None:
    if depth > _DEPTH_LIMIT:
        raise ValueError(f"more than {_DEPTH_LIMIT} nested messages")
    inner = _FIELDS[kind]
    location = ""
    external = False
    for number, value in _fields(view):
        if kind == "Tensor":
            if number == 14 and value == 1:
                external = True
            elif number == 13 and isinstance(value, memoryview):
                external = True
                location = location or _entry_value(value)
        elif number in inner and isinstance(value, memoryview):
            found = _search(value, inner[number], depth + 1)
            if found is not None:
                return found
    return (location or "unnamed") if external else None


def _entry_value(view: memoryview) -> str:
    """Return the value of a StringStringEntryProto whose key is "location", else ""."""
    entry = {n: bytes(v) for n, v in _fields(view) if isinstance(v, memoryview)}
    if entry.get(1) != b"location":
        return ""
    return entry.get(2, b"").decode("utf-8", "replace")


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield number, value
        elif wire in {1, 5}:
            at += 8 if wire == 1 else 4
            if at > len(view):
                raise ValueError("it ends in the middle of a field")
        elif wire == 2:
            length, at = _varint(view, at)
            if at + length > len(view):
                raise ValueError("it ends in the middle of a field")
            yield number, view[at : at + length]
            at += length
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise ValueError("it ends in the middle of a number")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
