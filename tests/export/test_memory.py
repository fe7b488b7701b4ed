"""The estimate of what an engine works with, against reckoning by hand and against engines."""

import importlib.util
import sys

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.export.conftest import ExportedBundle, sr_checkpoint
from tests.export.engine_memory import working_memory
from topcoat.export import onnx_from_network
from topcoat.export.memory import RESERVE, memory_per_pixel
from topcoat.train.networks import FrameNetwork


class Convolutions(FrameNetwork):
    """Three channels to 20, to 20 with a skip, and back to three at twice the size."""

    scale = 2

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1)
        self.three = (
            nn.ConvTranspose2d(20, 3, 6, stride=2, padding=2)
            if transposed
            else nn.Conv2d(20, 12, 3, padding=1)
        )

    def forward(self, frame: Tensor) -> Tensor:
        wide = self.one(frame)
        last: Tensor = self.three(wide + self.two(wide))
        return last if last.shape[1] == 3 else F.pixel_shuffle(last, 2)


def test_what_must_exist_at_once_is_added_up() -> None:
    model = onnx_from_network(Convolutions(transposed=False).eval(), task="super-resolution")
    # Where the skip is added, three values of 20 channels of float32 exist.
    # Twenty channels lie in two blocks of sixteen.
    assert memory_per_pixel(model) == RESERVE * 3 * 32 * 4


def test_a_transposed_convolution_unfolds_its_kernel() -> None:
    model = onnx_from_network(Convolutions(transposed=True).eval(), task="super-resolution")
    given, made, unfolded = 32, 4 * 3, 6 * 6 * 3
    assert memory_per_pixel(model) == RESERVE * 4 * (given + made + unfolded)


def test_half_precision_takes_half() -> None:
    network = Convolutions(transposed=False).eval()
    model = onnx_from_network(network, "fp16", task="super-resolution")
    assert memory_per_pixel(model) == RESERVE * 3 * 32 * 2


def test_the_size_rule_is_kept_and_the_model_left_as_it_was(exported: ExportedBundle) -> None:
    model = onnx.load(exported.bundle / "model.fp32.onnx")
    before = model.SerializeToString()
    # 512 is no multiple of 60: the side becomes 540, which hardly changes the figure.
    assert memory_per_pixel(model, 4, 8) == exported.manifest["memory_per_pixel"]
    assert memory_per_pixel(model, 60, 60) == pytest.approx(memory_per_pixel(model, 4), rel=0.02)
    assert model.SerializeToString() == before


def test_a_network_that_enlarges_more_takes_more() -> None:
    torch.manual_seed(0)
    models = [
        onnx_from_network(sr_checkpoint("srcnn", scale).build_network(), task="super-resolution")
        for scale in (2, 8)
    ]
    small, large = (memory_per_pixel(model) for model in models)
    assert 14 < large / small < 16.5  # 16 times the pixels; the frame itself is the same


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino-cpu"])
@pytest.mark.parametrize(
    ("bundle", "height", "width"),
    [("exported", 1000, 1504), ("enlarging", 360, 480), ("published", 120, 200)],
    ids=["johnson", "residual-sr x4", "johnson-sr x8"],
)
def test_the_estimate_covers_what_an_engine_takes(
    bundle: str, height: int, width: int, engine: str, request: pytest.FixtureRequest
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("a process's peak memory is read from Linux's /proc")
    if engine == "openvino-cpu" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    made: ExportedBundle = request.getfixturevalue(bundle)
    estimate = made.manifest["memory_per_pixel"]
    taken = working_memory(made.bundle, engine, height, width, threads=1)
    # Below a twentieth, nothing was measured or the estimate is of no use.
    assert 0.05 * estimate < taken / (height * width) < estimate
