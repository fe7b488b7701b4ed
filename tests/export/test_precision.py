"""The audit finds what half precision would break, and keeps as little in float32 as mends it."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.export.conftest import sr_checkpoint, tiny_checkpoint
from topcoat.export.onnx_from_checkpoint import FrameGraph, with_fp32_islands
from topcoat.export.precision import (
    FP16_MAX,
    Audit,
    PrecisionError,
    audit,
    audit_frames,
    plan_precisions,
)
from topcoat.runtime.frames import Frame
from topcoat.runtime.parity import ParityError, ProbeFrame, difference, synthetic_frames
from topcoat.train.networks import FrameNetwork


def frames(side: int = 48) -> list[ProbeFrame]:
    """Something smooth and something rough, as if they were photographs."""
    drawn = synthetic_frames(side, side)
    mixed = (drawn["gradient"] // 2 + drawn["noise"] // 4).astype(np.uint8)
    return [
        ProbeFrame(name="mixed", group="photographs", frame=mixed),
        ProbeFrame(name="noise", group="photographs", frame=drawn["noise"]),
    ]


class Loud(FrameNetwork):
    """A convolution whose output has a standard deviation of hundreds, then instance norm."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.InstanceNorm2d(4, affine=True)
            self.act = nn.ReLU()
            self.last = nn.Conv2d(4, 3, 3, padding=1)
        with torch.no_grad():
            self.first.weight *= gain

    def forward(self, frame: Tensor) -> Tensor:
        out: Tensor = 0.5 + 0.2 * torch.tanh(self.last(self.act(self.norm(self.first(frame)))))
        return out


class Echo(FrameNetwork):
    """Scales the frame up and down again by single factors, so that only its middle is extreme."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 3, 1, bias=False)
        self.down = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(gain * torch.eye(3)[:, :, None, None])
            self.down.weight.copy_(torch.eye(3)[:, :, None, None] / gain)

    def forward(self, frame: Tensor) -> Tensor:
        result: Tensor = self.down(self.up(frame))
        return result


class NormInHalf(nn.Module):
    """Instance norm as an engine without a better kernel computes it: everything in float16."""

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        off = x - x.mean((2, 3), keepdim=True)
        variance = (off * off).mean((2, 3), keepdim=True)
        scaled = off / (variance + self.norm.eps).sqrt()
        return scaled * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


def picture(network: nn.Module, dtype: torch.dtype, frame: Frame) -> Frame:
    with torch.no_grad():
        answer = FrameGraph(network, dtype)(torch.from_numpy(frame)[None])[0]
    return np.asarray(answer.numpy())


@pytest.fixture(scope="module")
def loud() -> tuple[Loud, Audit]:
    network = Loud(3000.0).eval()
    return network, audit(network, frames())


def test_a_norm_whose_variance_overflows_float16_is_found_with_its_number(
    loud: tuple[Loud, Audit],
) -> None:
    _, found = loud
    norm = next(layer for layer in found.layers if layer.name == "norm")
    assert norm.norm is not None
    assert norm.norm.variance > FP16_MAX
    assert norm.largest < 100  # what it gives is harmless: no range of outputs shows it
    half = found.halves["fp16"]
    assert half.keep_fp32 == ("norm",)
    assert half.reasons == (
        f"norm InstanceNorm2d: variance reaches {norm.norm.variance:.3g}, fp16 ends at 65504",
    )
    assert half


def test_the_island_mends_a_real_float16_network_that_is_broken_without(
    loud: tuple[Loud, Audit],
) -> None:
    network, found = loud
    frame = frames()[0].frame
    wanted = picture(network, torch.float32, frame)
    keep = found.halves["fp16"].keep_fp32

    broken = copy.deepcopy(network).half()
    broken.norm = NormInHalf(broken.norm)  # type: ignore[assignment]
    before = difference(wanted, picture(broken, torch.float16, frame))
    mended = with_fp32_islands(network, keep, torch.float16)
    after = difference(wanted, picture(mended, torch.float16, frame))
    assert before.max_steps > 10
    assert before.psnr_db < 35
    assert after.max_steps <= 1
    # The audit says the same of it, without computing in float16.
    said = found.halves["fp16"]
    assert said.before["photographs"].worst_psnr_db < 35
    assert said.after["photographs"].max_steps <= 1


def test_a_network_without_trouble_gets_no_islands() -> None:
    found = audit(tiny_checkpoint().build_network(), frames(), each_layer=False)
    for half in found.halves.values():
        assert half
        assert half.keep_fp32 == ()
    assert plan_precisions("auto", found).precisions == ("fp32", "fp16")
    assert plan_precisions("auto", found).keep_fp32 == {}


def test_a_layer_whose_values_float16_cannot_tell_from_zero_is_found() -> None:
    found = audit(Echo(2.0**-22).eval(), frames())
    up = next(layer for layer in found.layers if layer.name == "up")
    assert up.subnormal == 1
    assert 0.1 < up.lost < 0.9  # the darker part of a frame
    assert up.alone["fp16"].psnr_db < 40
    assert up.alone["bf16"].psnr_db > 50
    assert up.output_error["fp16"] > 0.05 > 0.005 > up.output_error["bf16"]
    # Both layers, with float32 between them: one island's output would be rounded again.
    assert not found.halves["fp16"]  # two of two layers are more than a third
    assert found.halves["bf16"]


def test_what_float16_cannot_hold_becomes_bfloat16_or_is_refused_with_numbers() -> None:
    found = audit(Echo(2.0**-22).eval(), frames(), each_layer=False)
    plan = plan_precisions("auto", found)
    assert plan.precisions == ("fp32", "bf16")
    assert "fp16 does not hold: photographs: PSNR" in plan.reasons[0]
    with pytest.raises(PrecisionError, match=r"fp16 does not hold.*PSNR .* dB, wanted 50.*bf16$"):
        plan_precisions("fp16", found)


def test_a_value_beyond_float16_passes_from_island_to_island() -> None:
    network = Echo(2.0**20).eval()
    found = audit(network, frames(), each_layer=False)
    half = found.halves["fp16"]
    assert half.keep_fp32 == ("up", "down")
    assert half
    frame = frames()[1].frame
    wanted = picture(network, torch.float32, frame)
    typed = with_fp32_islands(network, half.keep_fp32, torch.float16)
    assert difference(wanted, picture(typed, torch.float16, frame)).max_steps <= 1
    alone = with_fp32_islands(network, ["up"], torch.float16)
    assert difference(wanted, picture(alone, torch.float16, frame)).max_steps > 50


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_rounding_is_what_torch_itself_computes_in_half_precision(half: str) -> None:
    network = sr_checkpoint("residual-sr", 2).build_network().eval()
    probe = frames(24)[0]
    found = audit(network, [probe], each_layer=False)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[half]
    wanted = picture(network, torch.float32, probe.frame)
    real = difference(wanted, picture(copy.deepcopy(network).to(dtype), dtype, probe.frame))
    said = found.halves[half].before["photographs"]  # type: ignore[index]
    assert said.psnr_db == pytest.approx(real.psnr_db, abs=1.5)
    assert abs(said.max_steps - real.max_steps) <= 1


def test_every_layer_has_its_own_effect_and_what_loses_nothing_has_none(
    loud: tuple[Loud, Audit],
) -> None:
    _, found = loud
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers) == ["first", "norm", "act", "last"]
    assert layers["act"].alone == {}
    # All the harm is the norm's: without it there is little, and it alone does as much as all.
    assert layers["norm"].alone["fp16"].psnr_db < 35
    assert layers["norm"].others["fp16"].psnr_db > 50
    assert layers["last"].alone["fp16"].psnr_db > 60
    assert layers["last"].others["fp16"].psnr_db < 35
    assert layers["norm"].alone["bf16"].psnr_db > 45


def test_an_audit_is_a_table_and_json(loud: tuple[Loud, Audit]) -> None:
    _, found = loud
    table = str(found)
    assert "norm   InstanceNorm2d" in table
    assert "fp16 holds with 1 layer in fp32: photographs within" in table
    assert "stays fp32: norm InstanceNorm2d: variance reaches" in table
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["format"] == "topcoat-precision"
    assert [layer["name"] for layer in content["layers"]] == ["first", "norm", "act", "last"]
    assert content["halves"]["fp16"]["keep_fp32"] == ["norm"]


def test_an_audit_leaves_the_network_as_it_was_and_repeats() -> None:
    network = Loud(10.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = audit(network, frames(), each_layer=False)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert audit(network, frames(), each_layer=False) == first


def test_the_frames_are_photographs_and_hard_ones_or_noise() -> None:
    chosen = audit_frames(tiny_checkpoint().build_network())
    assert {probe.group for probe in chosen} == {"photographs", "synthetic"}
    assert {"black", "gradient"} <= {probe.name.split()[0] for probe in chosen}

    class Texture(Loud):
        takes = "noise"

    assert {probe.group for probe in audit_frames(Texture(1.0))} == {"noise"}


def test_no_frames_or_frames_that_say_nothing_are_refused() -> None:
    network = Loud(1.0)
    with pytest.raises(ParityError, match="no frames to look at"):
        audit(network, [])
    with pytest.raises(ParityError, match="tiling"):
        audit(network, [ProbeFrame(name="x", group="tiling", frame=frames()[0].frame)])


def test_plans_for_every_word(loud: tuple[Loud, Audit]) -> None:
    _, found = loud
    assert plan_precisions("fp32", found).precisions == ("fp32",)
    assert plan_precisions("fp16", found).keep_fp32 == {"fp16": ("norm",)}
    assert plan_precisions("bf16", found).precisions == ("fp32", "bf16")
    assert plan_precisions("int8", found).int8
    with pytest.raises(ValueError, match="int8, got 'fp8'"):
        plan_precisions("fp8", found)  # type: ignore[arg-type]


def test_a_sum_that_is_no_layers_output_is_seen_where_it_is_read() -> None:
    class Sums(Echo):
        def forward(self, frame: Tensor) -> Tensor:
            large = F.interpolate(frame * 80000.0, scale_factor=1.0)
            result: Tensor = self.up(large) / 80000.0
            return result

    found = audit(Sums(1.0).eval(), frames(), each_layer=False)
    (up,) = found.layers
    assert up.largest_input > FP16_MAX
    assert not found.halves["fp16"]  # the product itself is beyond it, in front of every layer
    assert any("photographs" in missed for missed in found.halves["fp16"].failures)
