"""Networks that enlarge: their graphs, parity of every network at every scale, and the bundle."""

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import topcoat.export
import topcoat.runtime
from tests.export.conftest import (
    ExportedBundle,
    export_engine_main,
    sr_checkpoint,
    tiny_checkpoint,
)
from topcoat.export import ParityReport, ParityRow, engines_for, onnx_from_network
from topcoat.export.card import card_markdown, degradation_blur
from topcoat.export.golden import golden
from topcoat.export.onnx_from_checkpoint import OUTPUT_NAMES, Precision
from topcoat.export.parity import difference, reference_frame
from topcoat.export.probes import Frame, ProbeFrame, bundled_photographs
from topcoat.export.sources import source_from_checkpoint
from topcoat.runtime.backends.onnxruntime import import_onnxruntime
from topcoat.runtime.backends.openvino import import_openvino
from topcoat.train import Checkpoint, save_checkpoint

SR = [(name, scale) for name in ("johnson-sr", "residual-sr", "srcnn") for scale in (2, 4, 8)]
PORTABLE = {
    *("Cast", "Transpose", "Mul", "Sub", "Add", "Conv", "Relu", "Clip", "Round"),  # all of them
    *("ConvTranspose", "Tanh"),  # johnson-sr
    *("Pad", "DepthToSpace", "AveragePool", "Split"),  # the other two
}


def small_photograph() -> Frame:
    """A piece of a photograph at a quarter of its size."""
    photograph = Image.fromarray(bundled_photographs()[0].frame)
    return np.array(photograph.resize((128, 128), Image.Resampling.BICUBIC))[20:65, 30:81]


def sizes(value: onnx.ValueInfoProto) -> list[str | int]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


def from_onnxruntime(model: onnx.ModelProto, frames: list[Frame]) -> list[Frame]:
    engine = import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [engine.run(["enlarged"], {"frame": frame})[0] for frame in frames]


def from_openvino(model: onnx.ModelProto, frames: list[Frame]) -> list[Frame]:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    core = import_openvino().Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString(), b""),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    return [np.array(compiled([frame])[0]) for frame in frames]


@pytest.mark.parametrize(("name", "scale"), SR)
def test_every_network_at_every_scale_is_a_portable_graph_that_both_engines_match(
    name: str, scale: int
) -> None:
    network = sr_checkpoint(name, scale).build_network()
    model = onnx_from_network(network, task="super-resolution")

    assert sizes(model.graph.input[0]) == ["batch", "height", "width", 3]
    assert sizes(model.graph.output[0]) == ["batch", "height_out", "width_out", 3]
    meta = {entry.key: entry.value for entry in model.metadata_props}
    assert meta["topcoat.task"] == "super-resolution"
    assert (meta["topcoat.scale"], meta["topcoat.halo"]) == (str(scale), str(network.halo))
    counted = Counter(node.op_type for node in model.graph.node)
    assert set(counted) <= PORTABLE
    assert counted["Cast"] == 2
    assert counted["ConvTranspose" if name == "johnson-sr" else "DepthToSpace"] >= 1

    photograph = small_photograph()
    batch = np.stack([photograph[:19, :26], photograph[-19:, -26:]])
    frames = [photograph[None], batch, photograph[None, :1, :1], photograph[None, :2, :5]]
    wanted = [reference_frame(network, frame) for frame in frames]
    assert wanted[0].shape == (1, 45 * scale, 51 * scale, 3)
    for engine in (from_onnxruntime, from_openvino):
        for reference, enlarged in zip(wanted, engine(model, frames), strict=True):
            found = difference(reference, enlarged)
            assert (found.max_steps <= 1, found.psnr_db > 75) == (True, True), (engine, found)


@pytest.mark.parametrize("name", ["johnson-sr", "residual-sr", "srcnn"])
def test_half_precision_holds_its_gate(name: str) -> None:
    network = sr_checkpoint(name, 4).build_network()
    precision: Precision = "fp16"
    model = onnx_from_network(network, precision, task="super-resolution")
    weights = {tensor.data_type for tensor in model.graph.initializer}
    assert weights - {onnx.TensorProto.INT64} == {onnx.TensorProto.FLOAT16}
    photograph = small_photograph()[None]
    (enlarged,) = from_onnxruntime(model, [photograph])
    found = difference(reference_frame(network, photograph), enlarged)
    assert found.max_steps <= 4
    assert found.psnr_db > 50


def test_the_manifest_says_what_the_runtime_needs_to_cut_tiles(enlarging: ExportedBundle) -> None:
    manifest = enlarging.manifest
    assert (manifest["task"], manifest["scale"]) == ("super-resolution", 4)
    halo = sr_checkpoint("residual-sr", 4).build_network().halo
    assert manifest["size"] == {"multiple": 1, "min": 1, "max": None, "pad": "edge", "halo": halo}
    assert manifest["memory_per_pixel"] > 16 * 3 * 4  # at least the output in float32
    (variant,) = manifest["variants"]
    assert variant["output"]["name"] == "enlarged"
    passed = {row["backend"]: row["passed"] for row in variant["parity"]}
    assert passed["onnxruntime-cpu"] is True
    assert "photographs" in enlarging.parity["rows"][0]["groups"]


def test_the_runtime_enlarges_with_it(enlarging: ExportedBundle) -> None:
    assert topcoat.runtime.verify_files(enlarging.bundle).scale == 4
    frame = small_photograph()
    with topcoat.runtime.open(enlarging.bundle, backend="onnxruntime-cpu") as model:
        enlarged = model.process(np.ascontiguousarray(frame))
    wanted = reference_frame(sr_checkpoint("residual-sr", 4).build_network(), frame)
    assert np.abs(enlarged.astype(int) - wanted).max() <= 1


def test_a_frame_in_tiles_is_the_frame_in_one_piece(enlarging: ExportedBundle) -> None:
    frame = np.ascontiguousarray(bundled_photographs()[2].frame[:121, :150])
    enlarged = []
    for tile in (None, 48):
        with topcoat.runtime.open(enlarging.bundle, backend="onnxruntime-cpu", tile=tile) as model:
            enlarged.append(model.process(frame))
    assert difference(*enlarged).max_steps <= 1


def test_the_golden_pair_is_a_small_photograph_and_the_networks_answer(
    enlarging: ExportedBundle,
) -> None:
    pictures = {}
    for name in ("golden_in", "golden_out", "comparison"):
        with Image.open(enlarging.bundle / f"{name}.png") as picture:
            pictures[name] = np.array(picture.convert("RGB"))
        assert f"{name}.png" in enlarging.manifest["files"]
    assert pictures["golden_in"].shape == (96, 128, 3)
    assert pictures["golden_out"].shape == (384, 512, 3)
    network = sr_checkpoint("residual-sr", 4).build_network()
    np.testing.assert_array_equal(
        reference_frame(network, pictures["golden_in"]), pictures["golden_out"]
    )
    original = bundled_photographs()[0].frame[:384, :512]
    small = Image.fromarray(original).resize((128, 96), Image.Resampling.BOX)
    np.testing.assert_allclose(pictures["golden_in"].mean(), np.array(small).mean(), atol=1)

    bicubic, answer, whole = np.split(pictures["comparison"], [260, 524], axis=1)
    np.testing.assert_array_equal(whole[:, -256:], original[16:208, 112:368])
    np.testing.assert_array_equal(answer[:, 4:260], pictures["golden_out"][16:208, 112:368])
    assert np.abs(bicubic[:, :256].astype(int) - whole[:, -256:]).mean() < 12


@pytest.mark.parametrize("scale", [2, 8])
def test_the_golden_pair_is_blurred_as_the_training_pictures_were(scale: int) -> None:
    network = sr_checkpoint("srcnn", scale).build_network()
    sharp, blurred = (golden(network, bundled_photographs(), blur) for blur in (0.0, 2.0))
    assert sharp.frame.shape == blurred.frame.shape == (384 // scale, 512 // scale, 3)
    rough = [np.abs(np.diff(made.frame.astype(int), axis=1)).mean() for made in (sharp, blurred)]
    assert rough[1] < rough[0]


def test_pictures_become_tensors_where_training_makes_them_so() -> None:
    folder = Path(topcoat.export.__file__).parent
    turns_axes = {
        path.name for path in folder.rglob("*.py") if ".permute(" in path.read_text("utf-8")
    }
    # The reference, on purpose written a second time and for batches, and the graph itself.
    assert turns_axes == {"parity.py", "onnx_from_checkpoint.py"}


def test_a_small_photograph_is_shown_as_far_as_it_goes() -> None:
    photograph = ProbeFrame(
        name="small", group="photographs", frame=bundled_photographs()[0].frame[:70, :90]
    )
    made = golden(sr_checkpoint("srcnn", 4).build_network(), [photograph])
    assert made.frame.shape == (17, 22, 3)
    assert made.comparison is not None
    assert made.comparison.shape == (68, 3 * 88 + 2 * 8, 3)


def test_the_card_says_what_it_enlarges_what_it_was_trained_on_and_shows_it(
    enlarging: ExportedBundle,
) -> None:
    card = (enlarging.bundle / "card.md").read_text(encoding="utf-8")
    for words in (
        *("# sharp", "x4 super-resolution", "![", "(comparison.png)", "modern, 9 steps"),
        "shrunk 4 times with antialiased bicubic, after a Gaussian blur of σ 1 px",
        "pixel loss (l1) and feature loss at relu2_2 of vgg16",
        "| Losses at the end | total 0.25, pixel 0.125 |",
        "the output is 4 times as high and as wide",
        "can be computed in tiles",
        "topcoat run small.png large.png --model sharp.topcoat",
        "onnxruntime-cpu fp32",
    ):
        assert words in card
    assert "tyle" not in card


def test_the_card_of_another_recipe_says_so(enlarging: ExportedBundle) -> None:
    checkpoint = sr_checkpoint("residual-sr", 4)
    engines = engines_for(topcoat.runtime.read_manifest(enlarging.bundle).variants)
    nothing_compared = ParityReport(rows=[ParityRow(engine=e, status="not run") for e in engines])

    def card(**recipe: Any) -> str:  # noqa: ANN401 - recipe fields are of many types
        changed = replace(checkpoint, recipe={**checkpoint.recipe, **recipe})
        return card_markdown(enlarging.manifest, nothing_compared, source_from_checkpoint(changed))

    assert "not blurred before" in card(blur=0)
    assert "| Trained on | not recorded |" in card(blur=None)
    assert "| Trained on | not recorded |" in card(blur="much")
    assert "| Trained for | pixel loss (l2): closest to the original, soft |" in card(
        loss="pixel", pixel_form="l2"
    )
    assert "| Trained for | feature loss at relu3_3 of vgg16: sharp" in card(
        loss="feature", feature_layer="relu3_3"
    )
    assert "| Trained for | not recorded |" in card(loss="secret")


def test_the_blur_of_a_recipe_is_taken_only_if_it_is_one() -> None:
    assert degradation_blur({"blur": 1}) == 1.0
    for blur in (None, -1, 17, True, float("nan"), "1"):
        assert degradation_blur({"blur": blur}) is None


def test_the_command_says_what_was_made_and_what_to_run(enlarging: ExportedBundle) -> None:
    said = enlarging.outcome.stdout
    place = enlarging.bundle
    assert f"bundle: {place} (x4 super-resolution)" in said
    assert f"topcoat run small.png large.png --model {place}" in said
    halo = enlarging.manifest["size"]["halo"]
    assert f"look no further than {halo} pixels?" in said


def test_a_published_network_at_another_scale_exports_with_json_alone_on_standard_output(
    published: ExportedBundle,
) -> None:
    said = published.outcome.json
    assert said["passed"] is True
    assert (said["task"], said["scale"]) == ("super-resolution", 8)
    statuses = {row["status"] for row in said["rows"] if row["compute"] == "fp32"}
    assert statuses <= {"passed", "not run"}
    assert topcoat.runtime.verify_files(published.bundle).scale == 8


def relabelled(checkpoint: Checkpoint, **changes: object) -> Checkpoint:
    for key, value in changes.items():
        if key == "network_name":
            checkpoint.network["name"] = value
        else:
            setattr(checkpoint, key, value)
    return checkpoint


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (
            relabelled(tiny_checkpoint(), task="super-resolution"),
            "is for the task 'super-resolution', but its network 'johnson' keeps the size",
        ),
        (
            relabelled(sr_checkpoint("srcnn", 2), task="style"),
            "is for the task 'style', but its network 'srcnn' enlarges by 2",
        ),
        (
            relabelled(sr_checkpoint("srcnn", 2), task="colouring"),
            f"this version exports {', '.join(OUTPUT_NAMES)}; update topcoat-export",
        ),
        (relabelled(tiny_checkpoint(), network_name="johnson-sr"), "do not fit its network"),
        (relabelled(sr_checkpoint("residual-sr", 2), network_name="espcn"), "update topcoat-train"),
        (
            relabelled(sr_checkpoint("residual-sr", 2), network_name="srcnn"),
            "network 'srcnn' has no setting blocks",
        ),
    ],
)
def test_a_checkpoint_that_is_not_what_it_says_is_one_line_and_nothing_written(
    checkpoint: Checkpoint, message: str, tmp_path: Path
) -> None:
    save_checkpoint(checkpoint, tmp_path / "odd.pt")
    outcome = export_engine_main(tmp_path / "odd.pt")
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("export-engine: ")
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pt"]


def test_a_scale_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    checkpoint = sr_checkpoint("residual-sr", 2)
    checkpoint.network["settings"]["scale"] = 3
    save_checkpoint(checkpoint, tmp_path / "odd.pt")
    outcome = export_engine_main(tmp_path / "odd.pt")
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert "scale must be 2, 4 or 8, got 3" in line


def test_a_halo_that_is_too_small_stops_the_export_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = sr_checkpoint("residual-sr", 2)
    network = checkpoint.build_network()
    network.halo = 1
    monkeypatch.setattr(Checkpoint, "build_network", lambda _: network)
    save_checkpoint(checkpoint, tmp_path / "lying.pt")
    outcome = export_engine_main(tmp_path / "lying.pt")
    assert outcome.code == 1
    (line,) = outcome.stderr.splitlines()
    assert "ResidualSR says that an output pixel depends on input pixels at most 1 away" in line
    assert [path.name for path in tmp_path.iterdir()] == ["lying.pt"]
