"""Textures: their probes, the proof that they repeat without a seam, their bundle and its card."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor

import topcoat.export
import topcoat.runtime
from tests.export.conftest import ExportedBundle, export_engine_main, tiny_checkpoint
from topcoat.export import GATES, GraphError, engines_for, measure_parity, onnx_from_network
from topcoat.export.memory import memory_per_pixel
from topcoat.export.parity import reference_frame
from topcoat.export.probes import noise_probes
from topcoat.export.tiling import prove_tiling
from topcoat.runtime.backends.onnxruntime import import_onnxruntime
from topcoat.runtime.parity import arrangements
from topcoat.train import Checkpoint, save_checkpoint
from topcoat.train.networks import FrameNetwork, build_network


def texture_checkpoint(**settings: Any) -> Checkpoint:  # noqa: ANN401 - settings are of many types
    """A checkpoint as train-texture leaves it, of a small network with seeded random weights."""
    settings = {"scales": 2, "width": 4, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("ulyanov", settings)
        network.train()
        for _ in range(5):  # batch norm learns what its layers give
            network(torch.rand(2, 3, 64, 64))
    return Checkpoint(
        task="style" if settings.get("content") else "texture",
        network={"name": "ulyanov", "settings": settings},
        weights=network.state_dict(),
        recipe={"name": "modern"},
        step=5,
        history=[{"step": 5, "total": 1.5}],
        style={"name": "swirls", "sha256": "ab" * 32, "size": [64, 64]},
        versions={"torch": str(torch.__version__)},
    )


@pytest.fixture(scope="module")
def texture(tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    """A texture through the command line. Read it, copy it, never change it."""
    folder = tmp_path_factory.mktemp("texture")
    save_checkpoint(texture_checkpoint(), folder / "mosaic.pt")
    outcome = export_engine_main(folder / "mosaic.pt")
    assert outcome.code == 0, outcome.stderr
    return ExportedBundle(outcome, folder / "mosaic.topcoat", folder / "mosaic.pt")


class Cornered(FrameNetwork):
    """Pads with the edge itself: what it makes of noise does not go on over the edge."""

    takes = "noise"

    def forward(self, frame: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(frame, (1, 0, 0, 0), mode="replicate")
        return 0.618 * padded[..., 1:] + 0.382 * padded[..., :-1]


# ------------------------------------------------------------------------------------- the proof


@pytest.mark.parametrize(
    "settings",
    [
        {"scales": 3},
        {"scales": 3, "norm": "instance", "activation": "relu"},
        {"scales": 3, "upsampling": "bilinear"},
    ],
)
def test_a_circular_network_is_proved_to_repeat(settings: dict[str, Any]) -> None:
    prove_tiling(texture_checkpoint(**settings).build_network())


def test_a_network_that_sees_its_edges_is_refused() -> None:
    with pytest.raises(GraphError, match=r"Cornered makes textures that show a seam: noise rolled"):
        prove_tiling(Cornered())


def test_a_network_that_follows_only_some_moves_is_refused() -> None:
    class Coarse(FrameNetwork):
        """Needs multiples of 2, and says of 1."""

        takes = "noise"

        def forward(self, frame: Tensor) -> Tensor:
            return frame[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)

    with pytest.raises(GraphError, match="rolled 1 down"):
        prove_tiling(Coarse())


def test_a_network_that_diverged_proves_nothing() -> None:
    network = Cornered()
    network.forward = lambda frame: frame * float("nan")  # type: ignore[method-assign]
    with pytest.raises(GraphError, match="NaN or infinity"):
        prove_tiling(network)


def test_the_layouts_are_what_their_names_say() -> None:
    frame = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    down, left, twice = (layout.arrange(frame) for layout in arrangements(2))
    np.testing.assert_array_equal(down[2:], frame[:2])
    np.testing.assert_array_equal(left[:, :2], frame[:, 4:])
    assert twice.shape == (8, 12, 3)
    batch = np.stack([frame, frame[::-1]])
    for layout in arrangements(2):
        np.testing.assert_array_equal(layout.arrange(batch)[1], layout.arrange(frame[::-1]))


# ------------------------------------------------------------------------------- probes and parity


@pytest.mark.parametrize(("multiple", "least"), [(1, 2), (2, 4), (16, 32), (32, 64), (64, 128)])
def test_every_question_is_asked_of_a_texture_at_sizes_that_it_takes(
    multiple: int, least: int
) -> None:
    probes = noise_probes(multiple, least)
    assert {probe.group for probe in probes} == {"noise", "tiny", "tiling"}
    for probe in probes:
        height, width = probe.frame.shape[-3:-1]
        assert height % multiple == width % multiple == 0
        assert min(height, width) >= least
        assert probe.frame.flags.c_contiguous
    shapes = [probe.frame.shape for probe in probes]
    assert (least, least, 3) in shapes
    assert {shape[0] for shape in shapes if len(shape) == 4} == {2, 3}
    names = [(probe.group, probe.name) for probe in probes]
    assert len(set(names)) == len(names)


def test_every_gate_of_a_texture_is_there_for_every_precision() -> None:
    for groups in GATES.values():
        assert {"noise", "tiny", "tiling"} <= set(groups)


def test_an_engine_whose_textures_show_a_seam_fails(tmp_path: Path) -> None:
    """The engine equals the network here, which nobody has proved to repeat."""
    network = Cornered().eval()
    bundle = tmp_path / "seam.topcoat"
    shutil.copytree(Path(__file__).parents[1] / "runtime" / "data" / "woven.topcoat", bundle)
    import hashlib
    import json

    model = onnx_from_network(network, task="texture").SerializeToString()
    (bundle / "model.fp32.onnx").write_bytes(model)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["size"] = {"multiple": 1, "min": 1, "max": None, "pad": "edge"}
    manifest["variants"][0] |= {
        "sha256": hashlib.sha256(model).hexdigest(),
        "bytes": len(model),
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (engine, *_) = engines_for(topcoat.runtime.read_manifest(bundle).variants)
    report = measure_parity(bundle, network, noise_probes(1, 1), [engine])
    assert not report
    (row,) = report.rows
    assert [line.partition(":")[0] for line in row.failures] == ["tiling"]
    assert row.groups["noise"].max_steps <= 1


# -------------------------------------------------------------------------------------- the bundle


def test_the_manifest_says_that_it_is_a_texture(texture: ExportedBundle) -> None:
    manifest = texture.manifest
    assert (manifest["task"], manifest["scale"]) == ("texture", 1)
    assert manifest["size"] == {"multiple": 2, "min": 4, "max": None, "pad": "edge", "halo": None}
    (variant,) = manifest["variants"]
    assert (variant["input"]["name"], variant["output"]["name"]) == ("noise", "texture")
    for row in variant["parity"]:
        assert "photographs" not in row
        assert row["noise"]["max_steps"] <= 1
        assert row["passed"]
    groups = texture.parity["rows"][0]["groups"]
    assert set(groups) == {"noise", "tiny", "tiling"}
    names = [frame["name"] for frame in texture.parity["rows"][0]["frames"]]
    assert any(name.endswith(", 2x2") for name in names)


def test_the_graph_reads_the_noise_with_one_cast(texture: ExportedBundle) -> None:
    model = onnx.load(texture.bundle / "model.fp32.onnx")
    assert [node.op_type for node in model.graph.node if "noise" in node.input] == ["Cast"]
    meta = {entry.key: entry.value for entry in model.metadata_props}
    assert (meta["topcoat.task"], meta["topcoat.pad"]) == ("texture", "none")
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Shape", "Reshape", "Pad"}


def test_the_runtime_makes_textures_with_it_that_repeat(texture: ExportedBundle) -> None:
    network = texture_checkpoint().build_network()
    with topcoat.runtime.open(texture.bundle, backend="onnxruntime-cpu") as model:
        made = model.sample(48, 32, seed=4)
        noise = topcoat.runtime.noise_frame(48, 32, 4)
        assert np.abs(made.astype(int) - reference_frame(network, noise)).max() <= 1
        twice = model.process(np.tile(noise, (2, 2, 1)))
        assert np.abs(twice.astype(int) - np.tile(made, (2, 2, 1))).max() <= 1
        with pytest.raises(topcoat.runtime.FrameError, match="nearest size is 32x48"):
            model.sample(47, 31)


def test_the_golden_pair_is_noise_of_seed_0_and_its_texture(texture: ExportedBundle) -> None:
    pictures = {
        name: np.asarray(Image.open(texture.bundle / f"{name}.png"))
        for name in ("golden_in", "golden_out", "tiled")
    }
    np.testing.assert_array_equal(pictures["golden_in"], topcoat.runtime.noise_frame(256, 256, 0))
    network = texture_checkpoint().build_network()
    np.testing.assert_array_equal(
        pictures["golden_out"], reference_frame(network, pictures["golden_in"])
    )
    np.testing.assert_array_equal(pictures["tiled"], np.tile(pictures["golden_out"], (3, 3, 1)))
    assert {"golden_in.png", "golden_out.png", "tiled.png"} < set(texture.manifest["files"])


def test_the_card_and_the_command_speak_of_a_texture(texture: ExportedBundle) -> None:
    card = (texture.bundle / "card.md").read_text(encoding="utf-8")
    for part in (
        "![the texture, three times beside and below itself](tiled.png)",
        "| Texture | swirls",
        "multiples of 2, at least 4; others are refused",
        "topcoat texture mosaic.topcoat texture.png --size 512x512 --seed 1",
        "texture = model.sample(512, 512, seed=1)",
        "| Noise ",
        "| Repeated |",
    ):
        assert part in card
    assert "photo" not in card
    assert "seams: does a texture repeat without one?" in texture.outcome.stdout
    assert "mosaic.topcoat texture.png" in texture.outcome.stdout


def test_photographs_are_refused_for_a_texture(texture: ExportedBundle, tmp_path: Path) -> None:
    out = tmp_path / "new.topcoat"
    outcome = export_engine_main(texture.checkpoint_file, "-o", out, "--photos", tmp_path)
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert "new is a texture, which is made from noise; leave out --photos" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made_of", ["noise", "pictures"])
def test_a_task_that_does_not_fit_what_the_network_takes_is_refused(
    made_of: str, tmp_path: Path
) -> None:
    checkpoint = texture_checkpoint() if made_of == "noise" else tiny_checkpoint()
    checkpoint.task = "style" if made_of == "noise" else "texture"
    save_checkpoint(checkpoint, tmp_path / "odd.pt")
    outcome = export_engine_main(tmp_path / "odd.pt")
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert f"takes {made_of}; the file was changed" in line


def test_a_seam_stops_the_export_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(texture_checkpoint(), tmp_path / "odd.pt")
    monkeypatch.setattr(Checkpoint, "build_network", lambda _: Cornered().eval())
    outcome = export_engine_main(tmp_path / "odd.pt")
    assert outcome.code == 1
    (line,) = outcome.stderr.splitlines()
    assert "makes textures that show a seam" in line
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pt"]


def test_trainer_and_runtime_make_the_same_noise_of_a_seed() -> None:
    train = pytest.importorskip("topcoat.train.noise")
    np.testing.assert_array_equal(
        train.noise_frame(12, 20, 7), topcoat.runtime.noise_frame(12, 20, 7)
    )


# ------------------------------------------------------------------- the same network for styles


def test_noise_that_is_laid_over_a_photograph_follows_its_size() -> None:
    network = texture_checkpoint(content=True).build_network()
    model = onnx_from_network(network)
    assert [node.op_type for node in model.graph.node if "frame" in node.input] == ["Cast"]
    assert memory_per_pixel(model, network.size_multiple, network.size_min) > 100
    engine = import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    for shape in ((1, 4, 6, 3), (2, 20, 36, 3), (1, 270, 300, 3)):  # the noise repeats after 256
        frame = rng.integers(0, 256, shape, dtype=np.uint8)
        (styled,) = engine.run(["styled"], {"frame": frame})
        assert np.abs(styled.astype(int) - reference_frame(network, frame)).max() <= 1
