"""How far an output pixel looks is proved, not believed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.export.conftest import sr_checkpoint, tiny_checkpoint
from topcoat.export import GraphError
from topcoat.export.halo import prove_halo
from topcoat.train.networks import FrameNetwork

SR = [(name, scale) for name in ("johnson-sr", "residual-sr", "srcnn") for scale in (2, 4, 8)]


@pytest.mark.parametrize(("name", "scale"), SR)
def test_the_networks_look_as_far_as_they_say_and_one_that_says_less_is_refused(
    name: str, scale: int
) -> None:
    network = sr_checkpoint(name, scale).build_network()
    assert network.halo is not None
    prove_halo(network)
    network.halo -= 2  # johnson-sr looks up to a pixel less far than it says: it rounds up
    with pytest.raises(GraphError, match=f"at most {network.halo} away, but a change"):
        prove_halo(network)


class Taps(FrameNetwork):
    """Doubles the size, and adds a little of the pixel ``reach`` to the left."""

    scale = 2

    def __init__(self, reach: int, halo: int | None, strength: float = 0.01) -> None:
        super().__init__()
        self.halo = halo
        kernel = torch.zeros(1, 1, 1, 2 * reach + 1)
        kernel[..., 0], kernel[..., reach] = strength, 1
        self.register_buffer("kernel", kernel)

    def forward(self, frame: Tensor) -> Tensor:
        (kernel,) = self.buffers()
        wide = F.pad(frame, (kernel.shape[3] // 2,) * 2 + (0, 0), mode="replicate")
        tapped = F.conv2d(wide, kernel.expand(3, 1, 1, -1), groups=3)
        return F.interpolate(tapped, scale_factor=2.0, mode="nearest")


@pytest.mark.parametrize(("reach", "halo"), [(1, 0), (5, 4), (9, 2)])
def test_the_message_says_how_far_a_change_reaches(reach: int, halo: int) -> None:
    prove_halo(Taps(reach, halo=reach))
    prove_halo(Taps(reach, halo=None))
    with pytest.raises(GraphError, match=f"at most {halo} away, but a change {reach} away"):
        prove_halo(Taps(reach, halo))


def test_what_is_too_weak_to_be_seen_is_let_pass() -> None:
    prove_halo(Taps(5, halo=4, strength=1e-9))


def test_a_network_that_normalises_over_the_frame_cannot_claim_a_halo() -> None:
    network = tiny_checkpoint().build_network()
    prove_halo(network)  # it claims nothing
    network.halo = 40
    with pytest.raises(GraphError, match="or make it None if it looks at the whole frame"):
        prove_halo(network)


class Ramp(FrameNetwork):
    """Brightens towards the right: no pixel depends on another, and tiles would not join."""

    halo = 0

    def forward(self, frame: Tensor) -> Tensor:
        return frame + torch.linspace(0, 0.1, frame.shape[3])


class ZerosFromTheBorder(FrameNetwork):
    """No pixel depends on any pixel, but on how near the border, or the cut, is."""

    halo = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, frame: Tensor) -> Tensor:
        from_the_border: Tensor = self.conv(torch.ones_like(frame))
        return from_the_border


@pytest.mark.parametrize("network", [Ramp(), ZerosFromTheBorder()])
def test_a_network_whose_output_depends_on_the_place_is_refused(network: FrameNetwork) -> None:
    with pytest.raises(GraphError, match="a window of the frame gives other pixels"):
        prove_halo(network.eval())


class Blocks(FrameNetwork):
    """Every pixel of a 4×4 block becomes the block's mean: reaches 3, from most places less."""

    size_multiple = size_min = 4

    def __init__(self, halo: int) -> None:
        super().__init__()
        self.halo = halo

    def forward(self, frame: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(frame, 4), scale_factor=4.0, mode="nearest")


def test_every_place_within_a_block_is_tried() -> None:
    prove_halo(Blocks(3))
    with pytest.raises(GraphError, match="at most 2 away, but a change 3 away"):
        prove_halo(Blocks(2))


@pytest.mark.parametrize("halo", [-1, 1.5, True, "8"])
def test_a_halo_that_is_no_number_of_pixels_is_refused(halo: object) -> None:
    with pytest.raises(GraphError, match="must be 0 or more pixels, or None"):
        prove_halo(Taps(1, halo))  # type: ignore[arg-type]


class NotANumber(FrameNetwork):
    """Gives the frame back, but one NaN in the far corner as soon as ``when`` says so."""

    halo = 0

    def __init__(self, when: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.when = when

    def forward(self, frame: Tensor) -> Tensor:
        answer = frame.clone()
        if self.when(frame):
            answer[..., -1, 0] = torch.nan
        return answer


def the_first_window() -> Callable[[Tensor], bool]:
    """Tell a window that begins where the first frame that is seen does."""
    seen: list[Tensor] = []

    def when(frame: Tensor) -> bool:
        seen.append(frame)
        return frame.shape != seen[0].shape and torch.equal(frame[..., 0, 0], seen[0][..., 0, 0])

    return when


@pytest.mark.parametrize(
    "when",
    [lambda _: True, lambda frame: bool(frame.max() > 50), the_first_window()],
    ids=["always", "when a pixel is changed", "in the first window"],
)
def test_a_network_that_gives_nan_proves_nothing(when: Callable[[Tensor], bool]) -> None:
    prove_halo(NotANumber(lambda _: False))
    with pytest.raises(GraphError, match="NotANumber gives NaN or infinity on a frame of noise"):
        prove_halo(NotANumber(when))
