"""What keeps the step from waiting: feeding, memory, compiling."""

import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from topcoat.train import _allocator, data, loop
from topcoat.train._allocator import PageFaults
from topcoat.train.data import Feed, Photographs, Sample, find_pictures
from topcoat.train.losses import LossNetwork, PerceptualLoss, style_target
from topcoat.train.networks import FrameNetwork, build_network
from topcoat.train.networks._layers import LastConv2d
from topcoat.train.recipes import STYLE_RECIPES


class _Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.started: list[int] = []
        monkeypatch.setattr("topcoat.train.data.time.perf_counter", lambda: self.now)

    def batches(
        self, seconds: float, steps: range, batch: int, workers: int
    ) -> Generator[tuple[Tensor, list[str]]]:
        """Numbers of samples, brought in time that is shared by processes."""
        self.started.append(workers)
        for step in steps:
            self.now += seconds / max(1, workers)
            yield torch.arange(step * batch, (step + 1) * batch), []


def _feed(
    monkeypatch: pytest.MonkeyPatch, seconds: float, work: float, workers: int | None, cores: int
) -> tuple[Feed, _Clock, list[int]]:
    """A run of 200 steps of two samples on a clock of its own, and the samples that came."""
    clock = _Clock(monkeypatch)
    monkeypatch.setattr(data, "_cores", lambda: cores)
    monkeypatch.setattr(
        data,
        "batches",
        lambda _dataset, steps, batch, *, workers, rank, processes: clock.batches(
            seconds, steps, batch, workers
        ),
    )
    feed, found = Feed(NOTHING, range(3, 203), 2, workers=workers), []
    for pixels, _ in feed:
        found += pixels.tolist()
        clock.now += work
    return feed, clock, found


NOTHING: torch.utils.data.Dataset[Sample] = torch.utils.data.Dataset()


def test_a_training_that_waits_gets_more_processes_and_the_same_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed, clock, found = _feed(monkeypatch, seconds=1.0, work=0.1, workers=None, cores=6)
    assert found == list(range(6, 406))
    assert clock.started == [1, 2, 4, 6]  # twice as many each time, up to one per core
    assert feed.workers == 6
    assert 0.5 < feed.share_waited < 1


def test_no_more_processes_are_started_than_end_the_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, clock, found = _feed(monkeypatch, seconds=0.4, work=1.0, workers=None, cores=64)
    assert found == list(range(6, 406))
    assert clock.started == [1, 2, 4]  # 0.4 and 0.2 s of 1.4 and 1.2 are more than a tenth


def test_a_training_that_does_not_wait_keeps_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    feed, clock, _ = _feed(monkeypatch, seconds=0.01, work=1.0, workers=None, cores=6)
    assert clock.started == [1]
    assert feed.share_waited == pytest.approx(0.01 / 1.01, rel=0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_number_of_processes_that_was_asked_for_stays(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, clock, found = _feed(monkeypatch, seconds=1.0, work=0.1, workers=workers, cores=6)
    assert clock.started == [workers]
    assert found == list(range(6, 406))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes want two cores")
def test_pictures_do_not_depend_on_when_processes_were_added(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Photographs(find_pictures(photographs), 32, "crop", 0)
    alone = [pixels for pixels, _ in Feed(samples, range(24), 2, workers=0)]
    monkeypatch.setattr(data, "_cores", lambda: 2)
    monkeypatch.setattr(data, "_WINDOW", 4)
    monkeypatch.setattr(data, "_STARVED", -1.0)  # at the first look, however fast they come
    feed = Feed(samples, range(24), 2, workers=None)
    together = [pixels for pixels, _ in feed]
    assert feed.workers == 2
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("faults", "system", "kept", "said"),
    [
        (50_000, 0.5, "", "33 % of the processor time goes into mapping memory, 50000 page faults"),
        (50_000, 0.5, "1", "unset TOPCOAT_KEEP_MALLOC"),
        (50_000, 0.01, "", None),
        (100, 0.5, "", None),
    ],
)
def test_page_faults_are_remarked_on_once_where_they_cost(
    faults: int, system: float, kept: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = iter([(0, 0.0, 0.0), (8 * faults, 8 * system, 8 * 1.0)])
    monkeypatch.setattr(_allocator, "_usage", lambda: next(usage))
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", kept)
    watch = PageFaults()
    remarks = [remark for _ in range(40) if (remark := watch.after_step())]
    assert len(remarks) == (said is not None)
    assert said is None or said in remarks[0]


@pytest.mark.parametrize(
    ("device", "main", "quiet", "watched"),
    [
        ("cpu", True, False, True),
        ("cpu", True, True, False),
        ("cpu", False, False, False),
        ("cuda", True, False, False),
    ],
)
def test_one_process_alone_remarks_on_page_faults(
    device: str, main: bool, quiet: bool, watched: bool
) -> None:
    accelerator: Any = SimpleNamespace(device=torch.device(device), is_main_process=main)
    settings: Any = SimpleNamespace(quiet=quiet)
    assert (loop._watch(accelerator, settings) is not None) == watched


def test_on_a_gpu_convolutions_are_chosen_by_trial_and_products_stay_exact() -> None:
    assert not torch.backends.cudnn.benchmark
    with loop._arithmetic(torch.device("cuda")):
        assert torch.backends.cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark
    with loop._arithmetic(torch.device("cpu")):
        assert not torch.backends.cudnn.benchmark


# Of dynamo itself, about autograd functions.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_objective_is_one_graph_for_a_compiler() -> None:
    recipe = replace(STYLE_RECIPES["modern"], width=4, blocks=1, crop=32, batch=2)
    torch.manual_seed(0)
    network = LossNetwork("vgg16", recipe.layers(), widths=(8,) * 7)
    target = style_target(network, torch.rand(1, 3, 32, 32), recipe)
    objective = PerceptualLoss(network, [target], recipe, batch=2)
    trained = build_network(recipe.network, recipe.network_settings())
    frames = torch.rand(2, 3, 32, 32)

    def loss(trained: FrameNetwork, frames: Tensor) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = objective(trained(frames), frames)
        return parts

    def gradients(total: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(total, list(trained.parameters())))

    eager = loss(trained, frames)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(trained, frames)
    assert list(compiled) == list(eager)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6)
    pairs = zip(gradients(compiled["total"]), gradients(eager["total"]), strict=True)
    norms = [(float((a - b).norm()), float(b.norm())) for a, b in pairs]
    assert sum(a for a, _ in norms) < 1e-3 * sum(b for _, b in norms)


def test_in_bfloat16_no_layer_of_the_network_widens_its_frames() -> None:
    recipe = replace(STYLE_RECIPES["modern"], width=4, blocks=1)
    torch.manual_seed(0)
    network = build_network(recipe.network, recipe.network_settings()).train()
    seen: dict[str, torch.dtype] = {}

    def note(module: torch.nn.Module, _: object, output: Tensor) -> None:
        seen.setdefault(f"{type(module).__name__} {len(seen)}", output.dtype)

    for module in network.modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(note)
    frames = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = network(frames)
    wide = [name for name, dtype in seen.items() if dtype != torch.bfloat16]
    assert wide == ["ReflectionPad2d 0"]  # of the photograph itself, which comes in float32
    assert sum(name.startswith(("ReflectionPad2d", "Upsample")) for name in seen) == 10
    assert float((narrow.float() - network(frames)).detach().abs().mean()) < 0.01


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("size", [(24, 30), (23, 30)])
def test_the_last_convolution_trains_as_any_other(padding: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = LastConv2d(5, 3, 9, padding=padding).double()
    x = torch.randn(2, 5, *size, dtype=torch.float64).requires_grad_(True)
    wanted = F.conv2d(x, conv.weight, conv.bias, padding=padding)
    found = conv(x)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    inputs = (x, *conv.parameters())
    for ours, plain in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(wanted, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)
    with torch.no_grad():
        assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=padding))
