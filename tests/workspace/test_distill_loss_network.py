"""The script that makes the embedded loss network: what it leaves on the disk."""

import argparse
import copy
import hashlib
import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from topcoat.train.losses import LossNetwork
from topcoat.train.pictures import sample_photographs

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (4, 8)


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    pytest.importorskip("scipy", reason="the script solves with SciPy")
    path = ROOT / "benchmarks" / "distill_loss_network.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def given(maker: ModuleType, tmp_path: Path) -> dict[str, Any]:
    """What ``save`` takes: narrow random networks, one picture, a folder to write into."""
    torch.manual_seed(0)
    teacher, student = (LossNetwork("vgg16", ["relu1_2"], widths=WIDTHS) for _ in range(2))
    picture = Image.effect_mandelbrot((128, 128), (-2, -1, 1, 1), 50).convert("RGB")
    pictures: Any = SimpleNamespace(
        held=["photo"],
        styles=[picture],
        described={"photographs": 1, "styles": ["fractal"]},
        photo=lambda _: picture,
        crop=lambda picture, rng: maker.Pictures.crop(pictures, picture, rng),
    )
    weights = tmp_path / "vgg16.pth"
    weights.write_bytes(b"the teacher's weights")
    arguments = argparse.Namespace(output=tmp_path / "out", steps=3, learning_rate=1e-4, seed=0)
    return {
        "student": student,
        "teacher": teacher,
        "weights": weights,
        "pictures": pictures,
        "arguments": arguments,
    }


def test_weights_and_their_description_belong_together(
    maker: ModuleType, given: dict[str, Any], tmp_path: Path
) -> None:
    maker.save(**given)
    weights, described = maker.outputs(tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == sorted((weights, described))
    content = weights.read_bytes()
    found = json.loads(described.read_text())
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["widths"] == list(WIDTHS)
    frame = torch.rand(1, 3, 32, 32)
    shipped = maker.load_student(content, given["teacher"])(frame)["relu1_2"]
    torch.testing.assert_close(shipped, given["student"](frame)["relu1_2"], rtol=0.01, atol=0.5)


def test_a_description_that_cannot_be_written_leaves_both_files_as_they_were(
    maker: ModuleType, given: dict[str, Any], tmp_path: Path
) -> None:
    maker.save(**given)
    before = [path.read_bytes() for path in maker.outputs(tmp_path / "out")]
    with torch.no_grad():
        given["student"].features[0].weight.mul_(2)
    given["pictures"].described = {"photographs": object()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        maker.save(**given)
    assert [path.read_bytes() for path in maker.outputs(tmp_path / "out")] == before
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_checkpoint_holds_the_state_of_the_generator(
    maker: ModuleType, given: dict[str, Any], tmp_path: Path
) -> None:
    student = given["student"]
    adam = torch.optim.Adam(student.parameters())
    maker._checkpoint(student, adam, 7, tmp_path / "distill.pt")
    drawn = torch.rand(5)
    state = torch.load(tmp_path / "distill.pt", weights_only=True)
    assert (state["step"], state["widths"]) == (7, list(WIDTHS))
    torch.set_rng_state(state["generator"])
    assert torch.equal(torch.rand(5), drawn)


def test_runs_that_go_on_from_one_checkpoint_are_the_same(
    maker: ModuleType, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    taps = ["relu1_2", "relu2_2", "relu3_3"]
    teacher, student = (LossNetwork("vgg16", taps, widths=(4,) * 7) for _ in range(2))
    pictures = object.__new__(maker.Pictures)
    pictures.files, pictures.rng = sample_photographs()[:2], random.Random(0)
    pictures.styles = [Image.effect_mandelbrot((192, 192), (-2, -1, 1, 1), 50).convert("RGB")]
    file = tmp_path / "distill.pt"
    arguments = argparse.Namespace(
        steps=1, seed=0, learning_rate=1e-3, checkpoint_every=1, checkpoint=file
    )
    first = student.state_dict()["features.0.weight"].clone()
    maker.distill(student, teacher, pictures, arguments, None)
    assert not torch.equal(student.state_dict()["features.0.weight"], first)
    state = torch.load(file, weights_only=True)
    arguments.steps, arguments.checkpoint_every = 2, 9
    found = []
    for _ in range(2):
        torch.rand(3)  # whatever went before
        student.load_state_dict(state["student"])
        maker.distill(student, teacher, pictures, arguments, copy.deepcopy(state))
        found.append({name: value.clone() for name, value in student.state_dict().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found[0]["features.0.weight"], state["student"]["features.0.weight"])


@pytest.mark.parametrize("option", ["--output", "--checkpoint"])
def test_a_place_that_cannot_be_written_to_is_one_line_before_any_work(
    maker: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    monkeypatch.setattr(maker, "keep_freed_memory", lambda: None)  # starts the process anew
    (tmp_path / "file").write_text("a file")
    options = ["--content", "gone", "--loss-weights", "gone", "--output", str(tmp_path)]
    assert maker.main([*options, option, str(tmp_path / "file" / "x")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("distill_loss_network: cannot write ")
    assert line.endswith(f"give another place with {option}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
