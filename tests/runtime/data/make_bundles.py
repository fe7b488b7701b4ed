"""Write the bundles that the runtime's tests use, a few KB each: python make_bundles.py [NAME ...].

The models are simple enough that numpy says what they must return (``blocks``, ``double`` and
``local`` below), so a test needs no framework to know the right answer. Needs onnx and numpy; the
parity rows are measured here, by the runtime itself, on every backend that is installed.

blocks.topcoat   scale 1, multiple 4, min 8: the mean of a frame and of its 4x4 blocks. The model
                 really needs its multiple: other sizes make its last addition fail.
double.topcoat   scale 2, multiple 1, min 1, max 512: the negative, every pixel four times.
local2.topcoat   scale 2, multiple 2: three convolutions with random weights at half the input's
                 resolution, the first padded with zeros, the second with its mirror image: what a
                 super-resolution network is made of. Halo 5; says nothing about memory.
local4.topcoat   scale 4, multiple 1, halo 2, with an estimate of its memory.
local8.topcoat   the same at scale 8, at most 300 pixels on each side.
woven.topcoat    a texture, multiple 4, min 8: every fourth pixel of the noise widened to 4x4, mixed
                 with the noise and its neighbours above and to the left, around the edges. Like
                 blocks, the model really needs its multiple.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).parent
Frame = npt.NDArray[np.uint8]


def blocks(frame: Frame) -> Frame:
    """Return what blocks.topcoat makes of (N, H, W, 3), H and W multiples of 4."""
    n, h, w, c = frame.shape
    mean = frame.reshape(n, h // 4, 4, w // 4, 4, c).astype(np.float64).mean(axis=(2, 4))
    mixed = (mean.repeat(4, axis=1).repeat(4, axis=2) + frame) / 2
    styled: Frame = mixed.round().astype(np.uint8)
    return styled


def double(frame: Frame) -> Frame:
    """Return what double.topcoat makes of (N, H, W, 3)."""
    return (255 - frame).repeat(2, axis=1).repeat(2, axis=2)


def woven(frame: Frame) -> Frame:
    """Return what woven.topcoat makes of noise (N, H, W, 3), H and W multiples of 4."""
    wide = frame[:, 2::4, 2::4].repeat(4, axis=1).repeat(4, axis=2).astype(np.float64)
    mixed = (wide + frame + np.roll(frame, 1, axis=1) + np.roll(frame, 1, axis=2)) / 4
    texture: Frame = mixed.round().astype(np.uint8)
    return texture


LOCAL = {"local2": (2, 2), "local4": (4, 1), "local8": (8, 1)}
"""name -> (scale, side of the blocks that become channels first)."""
_CHANNELS = 6


def local(name: str, frame: Frame) -> Frame:
    """Return what local2, local4 and local8 make of (N, H, W, 3) of any size >= 2 blocks.

    H and W are multiples of the blocks' side.
    """
    scale, block = LOCAL[name]
    weights = _local_weights(name)
    n, h, w, _ = frame.shape
    x = frame.astype(np.float64).transpose(0, 3, 1, 2) / 255  # (N, 3, H, W)
    y = x.reshape(n, 3, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    y = y.reshape(n, 3 * block**2, h // block, w // block)
    y = np.maximum(_convolve(y, weights["first"], "constant"), 0)
    y = np.maximum(_convolve(y, weights["second"], "reflect"), 0)
    y = np.einsum("oi,nihw->nohw", weights["last"][..., 0, 0].astype(np.float64), y)
    side = scale * block
    y = y.reshape(n, side, side, 3, h // block, w // block).transpose(0, 3, 4, 1, 5, 2)
    y = y.reshape(n, 3, h * scale, w * scale) + x.repeat(scale, axis=2).repeat(scale, axis=3)
    larger: Frame = (y * 255).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(larger)


def _convolve(
    x: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float32],
    mode: Literal["constant", "reflect"],
) -> npt.NDArray[np.float64]:
    """Convolve (N, C, H, W) with (O, C, 3, 3), padded by 1 to the same size."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode=mode)
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    result: npt.NDArray[np.float64] = np.einsum("nchwij,ocij->nohw", views, weight)
    return result


def _local_weights(name: str) -> dict[str, npt.NDArray[np.float32]]:
    scale, block = LOCAL[name]
    rng = np.random.default_rng(scale)

    def draw(*shape: int) -> npt.NDArray[np.float32]:
        spread = 1.4 / np.sqrt(np.prod(shape[1:]))
        return rng.normal(0, spread, shape).astype(np.float32)

    return {
        "first": draw(_CHANNELS, 3 * block**2, 3, 3),
        "second": draw(_CHANNELS, _CHANNELS, 3, 3),
        "last": draw(3 * (scale * block) ** 2, _CHANNELS, 1, 1) * np.float32(0.5),
    }


def _local_nodes(name: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the nodes from "x" to "y", both (N, 3, H, W) in 0..1, and their tensors."""
    from onnx import helper

    scale, block = LOCAL[name]
    tensors: dict[str, Any] = {
        **_local_weights(name),
        "zoom": np.array([1, 1, scale, scale], np.float32),
        "around": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    }
    nearest = {"mode": "nearest", "nearest_mode": "floor"}
    nearest["coordinate_transformation_mode"] = "asymmetric"
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["blocks"], blocksize=block),
        helper.make_node("Conv", ["blocks", "first"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Pad", ["r1", "around"], ["mirrored"], mode="reflect"),
        helper.make_node("Conv", ["mirrored", "second"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "last"], ["c3"]),
        helper.make_node("DepthToSpace", ["c3"], ["detail"], blocksize=scale * block, mode="DCR"),
        helper.make_node("Resize", ["x", "", "zoom"], ["wide"], **nearest),
        helper.make_node("Add", ["detail", "wide"], ["y"]),
    ]
    return nodes, tensors


def _woven_nodes() -> tuple[list[Any], dict[str, Any]]:
    """Return the nodes from "x" to "y", both (N, 3, H, W) in 0..1, and their tensors."""
    from onnx import helper

    whole = np.iinfo(np.int64).max
    tensors: dict[str, Any] = {
        "zoom": np.array([1, 1, 4, 4], np.float32),
        "quarter": np.array(0.25, np.float32),
        "first": np.array([2, 2], np.int64),
        "end": np.array([whole, whole], np.int64),
        "sides": np.array([2, 3], np.int64),
        "step": np.array([4, 4], np.int64),
        "zero": np.array([0], np.int64),
        "last": np.array([-1], np.int64),
        "ever": np.array([whole], np.int64),
        "axis2": np.array([2], np.int64),
        "axis3": np.array([3], np.int64),
    }
    resize = {"mode": "nearest", "nearest_mode": "floor"}
    resize["coordinate_transformation_mode"] = "asymmetric"
    nodes = [
        helper.make_node("Slice", ["x", "first", "end", "sides", "step"], ["coarse"]),
        helper.make_node("Resize", ["coarse", "", "zoom"], ["wide"], **resize),
        helper.make_node("Add", ["wide", "x"], ["sum1"]),
    ]
    for axis, before, after in (("axis2", "sum1", "sum2"), ("axis3", "sum2", "sum3")):
        moved = f"moved_{axis}"
        nodes += [
            helper.make_node("Slice", ["x", "last", "ever", axis], [f"{moved}_last"]),
            helper.make_node("Slice", ["x", "zero", "last", axis], [f"{moved}_rest"]),
            helper.make_node(
                "Concat", [f"{moved}_last", f"{moved}_rest"], [moved], axis=int(axis[-1])
            ),
            helper.make_node("Add", [before, moved], [after]),
        ]
    return [*nodes, helper.make_node("Mul", ["sum3", "quarter"], ["y"])], tensors


def _ports(name: str) -> tuple[str, str]:
    """Return the names of a model's input and output."""
    return ("noise", "texture") if name == "woven" else ("frame", "styled")


def _model(name: str, precision: str, scale: int) -> bytes:
    """Return the serialised model; precision is that of all arithmetic."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dtype = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    real: Any = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    zoom = 4 if name == "blocks" else 2
    tensors = {
        "to_unit": np.array(1 / 255, real),
        "to_byte": np.array(255, real),
        "low": np.array(0, real),
        "high": np.array(255, real),
        "zoom": np.array([1, 1, zoom, zoom], np.float32),
    }
    if name in LOCAL:
        del tensors["zoom"]
    source, result = _ports(name)
    nodes = [
        helper.make_node("Cast", [source], ["cast"], to=dtype),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "to_unit"], ["x"]),
    ]
    resize = {"mode": "nearest", "nearest_mode": "floor"}
    resize["coordinate_transformation_mode"] = "asymmetric"
    if name == "blocks":
        tensors["mean"] = np.full((3, 1, 4, 4), 1 / 16, real)
        tensors["half"] = np.array(0.5, real)
        nodes += [
            helper.make_node("Conv", ["x", "mean"], ["means"], group=3, strides=[4, 4]),
            helper.make_node("Resize", ["means", "", "zoom"], ["wide"], **resize),
            helper.make_node("Add", ["wide", "x"], ["sum"]),
            helper.make_node("Mul", ["sum", "half"], ["y"]),
        ]
    elif name in LOCAL or name == "woven":
        inner, more = _woven_nodes() if name == "woven" else _local_nodes(name)
        nodes += inner
        tensors |= more
    else:
        tensors["one"] = np.array(1, real)
        nodes += [
            helper.make_node("Sub", ["one", "x"], ["negative"]),
            helper.make_node("Resize", ["negative", "", "zoom"], ["y"], **resize),
        ]
    nodes += [
        helper.make_node("Mul", ["y", "to_byte"], ["bytes"]),
        helper.make_node("Round", ["bytes"], ["whole"]),
        helper.make_node("Clip", ["whole", "low", "high"], ["clipped"]),
        helper.make_node("Transpose", ["clipped"], ["pixels"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["pixels"], [result], to=TensorProto.UINT8),
    ]
    times = "" if scale == 1 else f"{scale}*"
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(source, TensorProto.UINT8, ["batch", "height", "width", 3])],
        [
            helper.make_tensor_value_info(
                result, TensorProto.UINT8, ["batch", f"{times}height", f"{times}width", 3]
            )
        ],
        [numpy_helper.from_array(value, key) for key, value in tensors.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="topcoat"
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def write_bundle(name: str, folder: Path) -> None:
    """Write NAME.topcoat into ``folder`` and measure its parity rows."""
    any_size = {"multiple": 1, "min": 2, "max": None, "pad": "edge"}
    scale, size, precisions = {
        "blocks": (1, {"multiple": 4, "min": 8, "max": None, "pad": "edge"}, ("fp32", "fp16")),
        "double": (2, {"multiple": 1, "min": 1, "max": 512, "pad": "edge"}, ("fp32",)),
        # Two blocks to each side, from the far end of a block of two: 2 * 2 + 1.
        "local2": (2, {**any_size, "multiple": 2, "min": 4, "halo": 5}, ("fp32",)),
        "local4": (4, {**any_size, "halo": 2}, ("fp32",)),
        "local8": (8, {**any_size, "max": 300, "halo": 2}, ("fp32",)),
        "woven": (1, {"multiple": 4, "min": 8, "max": None, "pad": "edge"}, ("fp32",)),
    }[name]
    bundle = folder / f"{name}.topcoat"
    bundle.mkdir(exist_ok=True)
    card = f"# {name}\n\nA model for the runtime's tests; see make_bundles.py.\n".encode()
    (bundle / "card.md").write_bytes(card)
    variants = []
    for precision in precisions:
        data = _model(name, precision, scale)
        (bundle / f"model.{precision}.onnx").write_bytes(data)
        variants.append(
            {
                "file": f"model.{precision}.onnx",
                **_entry(data),
                "kind": "onnx",
                "precision": precision,
                "opset": 20,
                "input": {"name": _ports(name)[0], "dtype": "uint8", "layout": "NHWC"},
                "output": {"name": _ports(name)[1], "dtype": "uint8", "layout": "NHWC"},
                "parity": [],
            }
        )
    manifest: dict[str, Any] = {
        "format": "topcoat-bundle",
        "format_version": 1,
        "name": name,
        "task": _task(name, scale),
        "scale": scale,
        "channels": 3,
        "size": size,
        "made_by": {"onnx": importlib.metadata.version("onnx")},
        "checkpoint": {"recipe": "made by hand", "network": {"name": name, "settings": {}}},
        "variants": variants,
        "files": {"card.md": _entry(card)},
    }
    if name in {"local4", "local8"}:
        # In fp32, at the addition: the detail, the widened frame and their sum, all 3 channels.
        manifest["memory_per_pixel"] = 3 * 3 * scale**2 * 4
    _write_manifest(bundle, manifest)
    for variant in variants:
        variant["parity"] = _measure(bundle, name, variant["file"])
    _write_manifest(bundle, manifest)


def _task(name: str, scale: int) -> str:
    if name == "woven":
        return "texture"
    return "style" if scale == 1 else "super-resolution"


def _write_manifest(bundle: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=2) + "\n"
    (bundle / "manifest.json").write_text(text, encoding="utf-8")


def _measure(bundle: Path, name: str, file: str) -> list[dict[str, Any]]:
    from topcoat.runtime import read_manifest
    from topcoat.runtime.backends import all_backends
    from topcoat.runtime.bundle import read_model

    manifest = read_manifest(bundle)
    variant = next(v for v in manifest.variants if v.file == file)
    frame = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    if name != "woven":  # smooth, like a photograph: neighbours differ by little
        frame = np.sort(np.sort(frame, axis=1), axis=2)
    by_hand = {"blocks": blocks, "double": double, "woven": woven}
    wanted = local(name, frame) if name in LOCAL else by_hand[name](frame)
    rows = []
    for backend in all_backends():
        if backend.missing():
            continue
        for offer in backend.computes(variant):
            if offer.obstacle:
                continue
            session = backend.load(
                variant, read_model(manifest, variant), compute=offer.compute, threads=1
            )
            styled = np.empty_like(wanted)
            session.run(frame, styled)
            session.close()
            steps = np.abs(styled.astype(int) - wanted)
            noise = float(np.mean(np.square(steps, dtype=float)))
            limit = 1 if offer.compute == "fp32" else 4
            rows.append(
                {
                    "backend": backend.name,
                    "compute": offer.compute,
                    "passed": bool(steps.max() <= limit),
                    "noise" if name == "woven" else "photographs": {
                        "max_steps": int(steps.max()),
                        # 99 stands for "no difference": JSON has no infinity.
                        "psnr_db": round(10 * np.log10(255**2 / noise), 2) if noise else 99.0,
                        "changed": round(float(np.mean(steps > 0)), 6),
                        "within_4_steps": float(np.mean(steps <= 4)),
                    },
                }
            )
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for bundle_name in sys.argv[1:] or ("blocks", "double", *LOCAL, "woven"):
            write_bundle(bundle_name, Path(scratch))
            target = HERE / f"{bundle_name}.topcoat"
            target.mkdir(exist_ok=True)
            for path in (Path(scratch) / target.name).iterdir():
                path.replace(target / path.name)
            print(f"wrote {target}")
