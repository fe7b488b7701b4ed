"""Frames in a GPU's memory through a render pass, over a driver and a library without a GPU."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import topcoat.runtime as tr
from tests.runtime.allocations import peak_growth
from tests.runtime.fake_cuda import INVALID_HANDLE, INVALID_VALUE, LAUNCH_FAILED
from tests.runtime.fake_pass import FakeClock, Script
from tests.runtime.fake_tensorrt import Rig, make_engine_bundle
from tests.runtime.test_device_frames import CudaArray, DlpackArray, put, user_stream, write
from topcoat.runtime import Event, Level, Pass, Policy, Result, Status
from topcoat.runtime.backends import DeviceSession, all_backends
from topcoat.runtime.backends.onnxruntime import OnnxRuntimeSession
from topcoat.runtime.backends.tensorrt import TensorRt, TensorRtSession
from topcoat.runtime.bundle import SizeRule
from topcoat.runtime.render_pass._engines import DEVICE_BACKENDS, Seat, _ModelRunner

Frame = npt.NDArray[np.uint8]
SHAPE = (16, 24, 3)
BYTES = 16 * 24 * 3
SIZE = (16, 24)
UNTOUCHED = 0xCD
"""What memory of the fake GPU holds before anything is written there."""
_PATIENCE = 20.0


class RigSource:
    """A bundle's engine on the fakes, then seats for whatever else a test wants."""

    def __init__(
        self, rig: Rig, bundle: Path, *others: Seat, before: tuple[Seat, ...] = ()
    ) -> None:
        manifest = tr.read_manifest(bundle)
        self.rig, self.bundle, self.before, self.others = rig, bundle, before, others
        self.name, self.scale, self.size = bundle.stem, manifest.scale, manifest.size
        self.memory_per_pixel: int | None = None
        self.opened = 0
        self.load: Callable[[], None] = lambda: None
        """Called before each loading of the engine."""

    def open(self) -> list[Seat]:
        seats = self.seats()
        seats[0].runner = seats[0].open()
        return seats

    def seats(self) -> list[Seat]:
        own = Seat("tensorrt-rtx fp32", self._open, takes_device=True)
        return [*self.before, own, *self.others]

    def _open(self) -> _ModelRunner:
        self.load()
        self.opened += 1
        return _ModelRunner(self.rig.open(self.bundle, backend="tensorrt-rtx"))

    def explain(self) -> str:
        return ""


class Still:
    """An engine that does nothing to frames on the GPU: what is seen is the pass's own work."""

    runs = 0

    def run(self, source: Frame, result: Frame) -> object:
        result[...] = source
        return result

    def run_device(self, source: object, result: object, stream: int | None) -> None:
        self.runs += 1

    def close(self) -> None: ...


@dataclass
class Setting:
    """A pass on the fakes, with a frame and a place for its result on the GPU."""

    rig: Rig
    clock: FakeClock
    blocks: Path
    folder: Path
    events: list[Event] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)

    def source(self, *others: Seat, **how: Any) -> RigSource:  # noqa: ANN401 - RigSource's
        bundle = self.folder / self.blocks.name
        if not bundle.exists():
            make_engine_bundle(self.blocks, self.folder)
        return RigSource(self.rig, bundle, *others, **how)

    def make(
        self,
        source: object = None,
        *,
        ready: bool = True,
        **options: Any,  # noqa: ANN401 - Pass's
    ) -> Pass:
        subject = Pass(
            source or self.source(),  # type: ignore[arg-type]
            clock=self.clock,
            driver=lambda: self.rig.driver,
            on_event=self.events.append,
            **options,
        )
        self.clock.watch(subject)
        self.passes.append(subject)
        if ready:
            subject.prepare(SIZE).wait()
        return subject

    def pair(self, frame: Frame, scale: int = 1) -> tuple[CudaArray, CudaArray]:
        height, width, _ = frame.shape
        shape = (height * scale, width * scale, 3)
        out = self.rig.cuda.allocate(height * width * 3 * scale * scale)
        return CudaArray(put(self.rig.cuda, frame), frame.shape), CudaArray(out, shape)

    def read(self, array: CudaArray) -> Frame:
        size = int(np.prod(array.shape))
        return self.rig.cuda.view(array.pointer, size).reshape(array.shape).copy()

    def styled(self, frame: Frame) -> Frame:
        with tr.open(self.blocks, "onnxruntime-cpu", "fp32", threads=1) as model:
            return model.process(frame)

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]


@pytest.fixture
def at(tmp_path: Path, blocks: Path) -> Iterator[Setting]:
    setting = Setting(Rig(), FakeClock(), blocks, tmp_path)
    yield setting
    for subject in setting.passes:
        subject.close()
    wait_until(lambda: not any(engines_at_work(subject) for subject in setting.passes))
    cuda = setting.rig.cuda
    if cuda.lost is not None:
        return  # of a lost device, things are destroyed as they can be
    # What a swap replaces is freed on a thread of its own. What memory is left is the tests'.
    wait_until(lambda: set(cuda.live()) <= {"memory"})
    wait_until(lambda: cuda.calls["cuMemAlloc_v2"] == cuda.calls["cuMemFree_v2"])
    setting.rig.check()


def engines_at_work(subject: Pass) -> bool:
    device = subject._device
    return device is not None and bool(device._jobs)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(1e-3)


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def shown(result: Result) -> object:
    """Return the picture, which here is no numpy array."""
    return result.image


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---------------------------------------------------------------------------------------- pictures


def test_a_frame_on_the_gpu_is_styled_there_and_is_of_this_call(at: Setting) -> None:
    subject = at.make()
    before = at.rig.cuda.calls.copy()
    for seed in range(4):
        frame = noise(seed)
        color, out = at.pair(frame)
        result = subject.present_device(color, out)
        assert (result.status, result.age_frames, result.index) == (Status.FRESH, 0, seed)
        assert (result.engine, result.reason) == ("tensorrt-rtx fp32", "")
        assert shown(result) is out
        np.testing.assert_array_equal(at.read(out), at.styled(frame))
    for copy in ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2"):
        assert at.rig.cuda.calls[copy] == before[copy]
    assert subject.stats().statuses[Status.FRESH] == 4
    assert subject.stats().copied_bytes == 0


def test_frames_that_the_network_does_not_take_are_padded_on_the_gpu(at: Setting) -> None:
    frame = noise(1, (17, 23, 3))
    subject = at.make(ready=False)
    subject.prepare((17, 23)).wait()
    color, out = at.pair(frame)
    assert subject.present_device(color, out).status is Status.FRESH
    np.testing.assert_array_equal(at.read(out), at.styled(frame))
    padded = 20 * 24 * 3
    assert subject.stats().copied_bytes == padded + frame.nbytes
    lines = subject.explain()
    assert "copies per frame on the GPU of 23x17 by tensorrt-rtx fp32" in lines
    assert "the network takes frames of 24x20" in lines
    assert "no frame has come yet" not in lines


def test_explain_says_that_nothing_is_copied_or_why_it_is(at: Setting) -> None:
    subject = at.make()
    color, out = at.pair(noise())
    subject.present_device(color, out)
    assert "by tensorrt-rtx fp32, 0.00 MB:\n  none" in subject.explain()
    room = at.rig.cuda.allocate(2 * BYTES)
    write(at.rig.cuda, room + 3, noise(1))
    assert subject.present_device(CudaArray(room + 3), out).status is Status.FRESH
    np.testing.assert_array_equal(at.read(out), at.styled(noise(1)))
    assert "an address is no multiple of 256 bytes" in subject.explain()
    assert subject.stats(1).copied_bytes == 2 * BYTES


def test_with_a_stream_the_call_only_queues_and_keeps_the_order(at: Setting) -> None:
    cuda, stream = at.rig.cuda, user_stream(at.rig)
    subject = at.make()
    source, out, copy = (cuda.allocate(BYTES) for _ in range(3))
    given, made = DlpackArray(source), DlpackArray(out)
    for seed, strength in enumerate((1.0, 0.0, 1.0, 0.0)):
        subject.set(strength=strength)
        frame = noise(seed)
        # The frame is made late, and its result is taken away right behind the work.
        cuda.enqueue(stream, functools.partial(write, cuda, source, frame))
        result = subject.present_device(given, made, stream)
        cuda.enqueue(stream, lambda: write(cuda, copy, cuda.view(out, BYTES)))
        assert len(cuda.streams[stream].queue) > 0
        cuda.synchronize(stream)
        wanted = at.styled(frame) if strength else frame
        assert result.status is (Status.FRESH if strength else Status.PASSTHROUGH)
        np.testing.assert_array_equal(cuda.view(copy, BYTES).reshape(SHAPE), wanted)
    assert set(given.streams) == {-1}  # the caller's stream says it all
    del cuda.streams[stream]


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_without_a_stream_the_arrays_say_what_to_wait_for(at: Setting, strength: float) -> None:
    cuda, stream = at.rig.cuda, user_stream(at.rig)
    subject = at.make()
    subject.set(strength=strength)
    frame = noise()
    color, out = at.pair(np.zeros_like(frame))
    color.stream = stream
    cuda.enqueue(stream, lambda: write(cuda, color.pointer, frame))
    subject.present_device(color, out)
    np.testing.assert_array_equal(at.read(out), at.styled(frame) if strength else frame)
    assert color.pointer
    del cuda.streams[stream]


def test_a_tensor_is_asked_once_for_each_frame_and_given_back(at: Setting) -> None:
    subject = at.make()
    color, out = at.pair(noise())
    given, made = DlpackArray(color.pointer), DlpackArray(out.pointer)
    subject.present_device(given, made)  # the first also finds out whether there is a GPU
    asked = len(given.streams)
    for _ in range(3):
        assert subject.present_device(given, made).status is Status.FRESH
    assert len(given.streams) == asked + 3
    assert given.freed == len(given.streams)
    assert made.freed == len(made.streams)
    assert given.streams[-1] in at.rig.cuda.streams  # has the producer order its work before ours


def test_strength_0_is_the_frame_bit_for_bit_and_runs_nothing(at: Setting) -> None:
    source = at.source()
    subject = at.make(source, ready=False)
    subject.set(strength=0)
    frame = noise()
    color, out = at.pair(frame)
    result = subject.present_device(color, out)
    assert (result.status, result.reason) == (Status.PASSTHROUGH, "the strength is 0")
    assert shown(result) is out
    np.testing.assert_array_equal(at.read(out), frame)
    assert (source.opened, at.rig.trt.computed) == (0, [])
    assert subject.stats().copied_bytes == BYTES


def test_frames_pass_through_until_the_engine_is_ready(at: Setting) -> None:
    source, loaded = at.source(), threading.Event()
    source.load = lambda: at.clock.hang(loaded)
    subject = at.make(source, ready=False)
    frame = noise()
    color, out = at.pair(frame)
    for _ in range(3):
        result = subject.present_device(color, out)
        assert result.status is Status.PASSTHROUGH
        assert "is being prepared" in result.reason
        np.testing.assert_array_equal(at.read(out), frame)
    loaded.set()
    wait_until(lambda: subject._loader.in_use is not None)
    assert subject.present_device(color, out).status is Status.FRESH
    np.testing.assert_array_equal(at.read(out), at.styled(frame))


def test_a_new_size_passes_through_until_the_engine_has_run_it_aside(at: Setting) -> None:
    subject = at.make()
    color, out = at.pair(noise(0, (32, 40, 3)))
    result = subject.present_device(color, out)
    assert result.status is Status.PASSTHROUGH
    assert result.reason == "tensorrt-rtx fp32 is being made ready"
    np.testing.assert_array_equal(at.read(out), noise(0, (32, 40, 3)))
    wait_until(lambda: not engines_at_work(subject))
    assert (1, 32, 40, 3) in at.rig.trt.executions
    assert subject.present_device(color, out).status is Status.FRESH
    np.testing.assert_array_equal(at.read(out), at.styled(noise(0, (32, 40, 3))))


@pytest.mark.parametrize("options", [{"mode": "file"}, {"mode": "sync"}])
def test_where_frames_are_waited_for_every_one_is_styled(
    at: Setting, options: dict[str, Any]
) -> None:
    subject = at.make(ready=False, **options)
    for seed, shape in enumerate([SHAPE, (32, 40, 3), SHAPE, (8, 8, 3)]):
        color, out = at.pair(noise(seed, shape))
        assert subject.present_device(color, out).status is Status.FRESH
        np.testing.assert_array_equal(at.read(out), at.styled(noise(seed, shape)))


def test_a_larger_result_is_written_by_the_network_alone(
    at: Setting, double: Path, tmp_path: Path
) -> None:
    bundle = make_engine_bundle(double, tmp_path)
    subject = at.make(RigSource(at.rig, bundle))
    frame = noise()
    color, out = at.pair(frame, scale=2)
    assert shown(subject.present_device(color, out)) is out
    np.testing.assert_array_equal(at.read(out), (255 - frame).repeat(2, 0).repeat(2, 1))
    subject.set(strength=0)
    color, out = at.pair(frame, scale=2)
    for _ in range(3):
        result = subject.present_device(color, out)
        assert result.status is Status.PASSTHROUGH
        assert shown(result) is color
    np.testing.assert_array_equal(at.read(color), frame)
    assert (at.read(out) == UNTOUCHED).all()
    assert len([text for text in at.told("input") if "Result.image is the frame" in text]) == 1
    assert subject.stats(3).copied_bytes == 0


def test_a_lost_gpu_is_told_also_where_nothing_would_be_copied(
    at: Setting, double: Path, tmp_path: Path
) -> None:
    subject = at.make(RigSource(at.rig, make_engine_bundle(double, tmp_path)))
    color, out = at.pair(noise(), scale=2)
    subject.present_device(color, out)
    at.rig.trt.raised["execute_async_v3"] = RuntimeError("CUDA failure 719: launch failed")
    at.rig.cuda.fail("cuEventQuery", LAUNCH_FAILED)
    with pytest.raises(tr.DeviceLostError, match="cuEventQuery failed"):
        subject.present_device(*at.pair(noise(1), scale=2))
    assert len(at.told("demoted")) == 1


# ------------------------------------------------------------------------------- beside host frames


def test_frames_of_the_host_and_of_the_gpu_take_turns(at: Setting) -> None:
    subject = at.make()
    host = [noise(seed) for seed in range(4)]
    seen = []
    for number, frame in enumerate(host):
        shown = subject.present(frame)
        seen.append((shown.status, shown.index, shown.age_frames))
        if shown.status is Status.FRESH:
            np.testing.assert_array_equal(shown.image, at.styled(host[number - 1]))
        at.clock.advance(0.01)
        color, out = at.pair(noise(100 + number))
        result = subject.present_device(color, out)
        assert (result.status, result.index) == (Status.FRESH, 2 * number + 1)
        np.testing.assert_array_equal(at.read(out), at.styled(noise(100 + number)))
        at.clock.advance(0.01)
    # A result of the host is of the frame before the one on the GPU, thus two frames old.
    assert seen == [(Status.PASSTHROUGH, 0, 0)] + [(Status.FRESH, 2 * n, 2) for n in range(3)]
    lines = subject.explain()
    assert "copies per frame of 24x16" in lines
    assert "copies per frame on the GPU of 24x16" in lines


def test_while_a_frame_of_the_host_is_run_one_on_the_gpu_does_not_wait_for_it(at: Setting) -> None:
    script = Script(at.clock, [5.0])
    slow = Seat("slow", script.open)
    subject = at.make(at.source(before=(slow,)), ready=False, policy=Policy(hang_ms=60_000))
    subject.prepare()
    wait_until(lambda: subject._loader.in_use is not None)
    script.then(5.0)
    subject.present(noise())
    color, out = at.pair(noise(1))
    result = subject.present_device(color, out)
    assert result.status is Status.PASSTHROUGH
    assert result.reason == "the network is still at work on a frame of the host"
    np.testing.assert_array_equal(at.read(out), noise(1))
    at.clock.advance(10.0)
    subject.present_device(color, out)
    wait_until(lambda: not engines_at_work(subject))
    assert subject.present_device(color, out).status is Status.FRESH


class HangsOnHost(Still):
    """Does nothing to frames on the GPU, and hangs on those of the host."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def run(self, source: Frame, result: Frame) -> object:
        self.script.clock.hang(self.script.released)
        return result


def test_an_engine_that_hangs_on_a_frame_of_the_host_is_not_given_one_on_the_gpu(
    at: Setting,
) -> None:
    script = Script(at.clock)
    hanging = HangsOnHost(script)
    seat = Seat("tensorrt fp16", lambda: hanging, takes_device=True)
    subject = at.make(at.source(before=(seat,)), ready=False, policy=Policy(hang_ms=500))
    subject.prepare()
    wait_until(lambda: subject._loader.in_use is not None)
    seat.sizes.add(SIZE)
    subject.present(noise())
    color, out = at.pair(noise(1))
    reasons = []
    for _ in range(10):
        at.clock.advance(0.1)
        result = subject.present_device(color, out)
        reasons.append(result.reason)
        wait_until(lambda: not engines_at_work(subject))
    assert hanging.runs == 0
    assert reasons[:4] == ["the network is still at work on a frame of the host"] * 4
    assert (result.status, result.engine) == (Status.FRESH, "tensorrt-rtx fp32")
    np.testing.assert_array_equal(at.read(out), at.styled(noise(1)))
    script.release()


def test_the_index_counts_on_and_a_jump_back_is_told(at: Setting) -> None:
    subject = at.make()
    color, out = at.pair(noise())
    assert subject.present_device(color, out, index=7).index == 7
    assert subject.present_device(color, out).index == 8
    subject.present_device(color, out, index=3)
    assert len([text for text in at.told("input") if "went from 8 to 3" in text]) == 1


def test_frames_that_are_not_collected_come_first(at: Setting) -> None:
    subject = at.make(mode="file")
    assert subject.submit(noise())
    color, out = at.pair(noise())
    with pytest.raises(tr.PassError, match=r"1 submitted frames are not collected; .*_device"):
        subject.present_device(color, out)
    assert subject.collect() is not None
    assert subject.present_device(color, out).status is Status.FRESH


def test_what_needs_the_host_is_told_once_and_left_out(at: Setting) -> None:
    subject = at.make(budget_ms=16.0, policy=Policy(ladder=(Level(), Level(scale=0.5))))
    color, out = at.pair(noise())
    mask = np.zeros(SIZE, np.uint8)
    for strength in (0.5, 0.4, 0.3):
        subject.set(strength=strength, stabilise=0.5, blend="luminance", mask=mask)
        for _ in range(2):
            assert subject.present_device(color, out).status is Status.FRESH
    np.testing.assert_array_equal(at.read(out), at.styled(noise()))
    told = at.told("input")
    assert len(told) == 5
    for text in (
        "strength 0.5 is taken as 1",
        "the mask is left out",
        "blend luminance is taken as normal",
        "stabilise 0.5 is taken as 0",
        "the budget of 16 ms changes no level",
    ):
        assert sum(text in line for line in told) == 1


def test_a_pass_that_uses_nothing_of_the_host_is_told_nothing(at: Setting) -> None:
    subject = at.make()
    color, out = at.pair(noise())
    subject.present_device(color, out)
    assert at.told("input") == []


# -------------------------------------------------------------------------------- which engine runs


def host_seat(clock: FakeClock, name: str = "openvino-cpu bf16") -> Seat:
    return Seat(name, Script(clock).open)


class HostOnly(RigSource):
    """A bundle whose engines take frames of the host alone."""

    def seats(self) -> list[Seat]:
        return list(self.before)


def test_engines_of_the_host_let_frames_pass_and_say_which_would_do(
    at: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    source = HostOnly(at.rig, at.blocks, before=(host_seat(at.clock),))
    subject = at.make(source)
    frame = noise()
    color, out = at.pair(frame)
    with caplog.at_level(logging.WARNING, "topcoat.runtime"):
        for _ in range(5):
            result = subject.present_device(color, out)
            assert result.status is Status.PASSTHROUGH
            np.testing.assert_array_equal(at.read(out), frame)
    assert "openvino-cpu bf16 runs frames of the host's memory alone" in result.reason
    assert "backend tensorrt-rtx or tensorrt" in result.reason
    assert "on the GPU: no frame there was styled yet" in subject.explain()
    assert len(caplog.records) == 1
    assert subject.stats().failures == 0


def test_a_faster_engine_of_the_host_is_left_out(at: Setting) -> None:
    subject = at.make(at.source(before=(host_seat(at.clock),)))
    color, out = at.pair(noise())
    subject.present_device(color, out)
    wait_until(lambda: not engines_at_work(subject))
    result = subject.present_device(color, out)
    assert (result.status, result.engine) == (Status.FRESH, "tensorrt-rtx fp32")
    np.testing.assert_array_equal(at.read(out), at.styled(noise()))


def test_the_backends_that_take_frames_on_the_gpu_are_those_whose_sessions_do() -> None:
    assert issubclass(TensorRtSession, DeviceSession)
    assert not issubclass(OnnxRuntimeSession, DeviceSession)
    found = {backend.name for backend in all_backends() if isinstance(backend, TensorRt)}
    assert set(DEVICE_BACKENDS) == found


# ----------------------------------------------------------------------------------------- failures


def test_an_engine_that_fails_rests_and_works_again_with_one_line_each(
    at: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    subject = at.make(policy=Policy(retry_s=5.0))
    frame = noise()
    color, out = at.pair(frame)
    statuses = []
    with caplog.at_level(logging.INFO, "topcoat.runtime"):
        subject.present_device(color, out)
        at.rig.trt.raised["execute_async_v3"] = RuntimeError("an engine's own words")
        other = at.pair(frame)[1]
        for _ in range(8):
            result = subject.present_device(color, other)
            statuses.append(result.status)
            wanted = at.styled(frame) if result.status is Status.FRESH else frame
            np.testing.assert_array_equal(at.read(other), wanted)
            at.clock.advance(1.0)
            wait_until(lambda: not engines_at_work(subject))
    assert statuses == [Status.PASSTHROUGH] * 6 + [Status.FRESH] * 2
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "failed and is tried again in 5 s" in line]) == 1
    assert len([line for line in lines if "tensorrt-rtx fp32 works again" in line]) == 1
    assert any("an engine's own words" in line for line in lines)
    assert (subject.stats().failures, subject.stats().demotions) == (1, 1)


def test_an_engine_that_fails_again_rests_longer_and_is_not_told_again(at: Setting) -> None:
    source = at.source()
    subject = at.make(source, policy=Policy(retry_s=1.0))

    def broken() -> None:
        raise tr.BackendError("it cannot be loaded any more")

    source.load = broken
    color, out = at.pair(noise())
    at.rig.trt.raised["execute_async_v3"] = RuntimeError("once")
    for _ in range(100):
        result = subject.present_device(color, out)
        assert result.status is Status.PASSTHROUGH
        wait_until(lambda: not engines_at_work(subject))
        at.clock.advance(0.1)
    assert len(at.told("demoted")) == 1
    assert subject.stats().failures == 1
    assert "tensorrt-rtx fp32 is tried again in" in result.reason


def test_the_next_engine_that_takes_the_gpus_frames_stands_in(at: Setting) -> None:
    stand_in = Seat("tensorrt fp16", Still, takes_device=True)
    subject = at.make(at.source(host_seat(at.clock), stand_in))
    color, out = at.pair(noise())
    subject.present_device(color, out)
    at.rig.trt.raised["execute_async_v3"] = RuntimeError("once")
    color, out = at.pair(noise(1))
    assert subject.present_device(color, out).status is Status.PASSTHROUGH
    subject.present_device(color, out)
    wait_until(lambda: not engines_at_work(subject))
    assert subject.present_device(color, out).engine == "tensorrt fp16"


def test_a_size_that_the_engine_was_not_built_for_is_told_and_passes_through(at: Setting) -> None:
    subject = at.make()
    frame = noise(0, (600, 8, 3))
    color, out = at.pair(frame)
    for _ in range(3):
        result = subject.present_device(color, out)
        wait_until(lambda: not engines_at_work(subject))
        assert result.status is Status.PASSTHROUGH
        np.testing.assert_array_equal(at.read(out), frame)
    assert "no engine takes frames of this size" in result.reason
    assert len(at.told("demoted")) == 1
    color, out = at.pair(noise())
    assert subject.present_device(color, out).status is Status.FRESH  # other sizes go on


def test_an_engine_whose_loading_hangs_makes_room(at: Setting) -> None:
    script = Script(at.clock)
    hanging = Seat("tensorrt fp16", lambda: at.clock.hang(script.released), takes_device=True)  # type: ignore[arg-type, return-value]
    subject = at.make(
        at.source(before=(host_seat(at.clock), hanging)), policy=Policy(start_ms=1000, retry_s=60)
    )
    color, out = at.pair(noise())
    assert subject.present_device(color, out).status is Status.PASSTHROUGH
    wait_until(lambda: bool(at.clock._sleepers))
    for _ in range(5):
        assert subject.present_device(color, out).status is Status.PASSTHROUGH
        at.clock.advance(0.3)
    subject.present_device(color, out)
    wait_until(lambda: len(subject._device._jobs) == 1)  # type: ignore[union-attr]
    assert subject.present_device(color, out).engine == "tensorrt-rtx fp32"
    assert [text for text in at.told("demoted") if "has not been ready for 1 s" in text]
    script.release()


class LibraryPanic(BaseException):
    """What bindings of other languages raise, past every ``except Exception``."""


def test_a_panic_of_a_library_that_is_loaded_aside_ends_nothing(at: Setting) -> None:
    def panic() -> Still:
        raise LibraryPanic("index out of bounds")

    panicking = Seat("tensorrt fp16", panic, takes_device=True)
    subject = at.make(at.source(before=(host_seat(at.clock), panicking)))
    color, out = at.pair(noise())
    assert subject.present_device(color, out).status is Status.PASSTHROUGH
    wait_until(lambda: not engines_at_work(subject))
    subject.present_device(color, out)
    wait_until(lambda: not engines_at_work(subject))
    assert subject.present_device(color, out).engine == "tensorrt-rtx fp32"
    assert "index out of bounds" in at.told("demoted")[0]


def test_errors_are_raised_where_the_policy_wants_them(at: Setting) -> None:
    subject = at.make(policy=Policy(on_error="raise"))
    color, out = at.pair(noise())
    at.rig.trt.raised["execute_async_v3"] = RuntimeError("an engine's own words")
    with pytest.raises(tr.BackendError, match="an engine's own words"):
        subject.present_device(color, out)
    # It rests, which is no error of this frame.
    assert subject.present_device(color, out).status is Status.PASSTHROUGH


def test_an_engine_that_says_that_the_device_is_lost_is_demoted(at: Setting) -> None:
    """The driver still works: another library's text was read as a loss."""
    subject = at.make()
    color, out = at.pair(noise())
    at.rig.trt.raised["execute_async_v3"] = RuntimeError("CUDA failure 719: launch failed")
    result = subject.present_device(color, out)
    assert result.status is Status.PASSTHROUGH
    np.testing.assert_array_equal(at.read(out), noise())
    assert len(at.told("demoted")) == 1


def test_a_lost_gpu_is_the_one_failure_that_no_picture_is_left_of(at: Setting) -> None:
    subject = at.make(policy=Policy(retry_s=1.0))
    color, out = at.pair(noise())
    assert subject.present_device(color, out).status is Status.FRESH
    at.rig.cuda.fail("cuGraphLaunch", LAUNCH_FAILED)
    at.rig.cuda.fail("cuStreamWaitEvent", LAUNCH_FAILED)
    for _ in range(20):
        with pytest.raises(tr.DeviceLostError) as caught:
            subject.present_device(color, out)
        assert "CUDA_ERROR_LAUNCH_FAILED" in one_line(caught.value)
        at.clock.advance(0.5)
        wait_until(lambda: not engines_at_work(subject))
    assert len(at.told("demoted")) == 1
    # Frames of the host still come through.
    host = noise(5)
    assert np.array_equal(subject.present(host).image, host)


def test_a_copy_that_the_driver_refuses_is_an_error_and_no_wrong_picture(at: Setting) -> None:
    subject = at.make()
    subject.set(strength=0)
    color, out = at.pair(noise())
    at.rig.cuda.fail("cuMemcpyDtoDAsync_v2", INVALID_VALUE)
    with pytest.raises(tr.BackendError, match="refused a call"):
        subject.present_device(color, out)
    assert subject.present_device(color, out).status is Status.PASSTHROUGH


# ----------------------------------------------------------------------------------------- changing


def test_a_swap_changes_the_engine_between_two_frames_and_frees_the_old_one(
    at: Setting, tmp_path: Path
) -> None:
    subject = at.make()
    color, out = at.pair(noise())
    subject.present_device(color, out)
    subject.present(noise())  # there is a worker now, which gets no frame after this
    at.clock.advance(0.1)
    old = subject._loader.in_use
    assert old is not None
    (tmp_path / "other").mkdir()
    bundle = make_engine_bundle(at.blocks, tmp_path / "other")
    subject.swap_source(RigSource(at.rig, bundle), sizes=(SIZE,)).wait()
    assert subject.present_device(color, out).status is Status.FRESH
    assert subject._loader.in_use is not old
    wait_until(lambda: old[None].seats[0].runner is None)
    wait_until(lambda: at.rig.trt.contexts == 1)
    assert at.told("swapped") == ["blocks has taken over from blocks"]


def test_an_engine_that_is_made_ready_for_a_bundle_that_is_left_is_freed(
    at: Setting, tmp_path: Path
) -> None:
    source = at.source()
    subject = at.make(source)
    color, out = at.pair(noise())
    at.rig.trt.raised["execute_async_v3"] = RuntimeError("once")
    subject.present_device(color, out)
    old = subject._loader.in_use
    assert old is not None
    script = Script(at.clock)
    released = script.released
    source.load = lambda: at.clock.hang(released)
    at.clock.advance(6.0)
    subject.present_device(color, out)  # begins to load it again
    wait_until(lambda: bool(at.clock._sleepers))
    (tmp_path / "other").mkdir()
    bundle = make_engine_bundle(at.blocks, tmp_path / "other")
    subject.swap_source(RigSource(at.rig, bundle), sizes=(SIZE,)).wait()
    assert subject.present_device(color, out).status is Status.FRESH
    released.set()
    wait_until(lambda: not engines_at_work(subject))
    wait_until(lambda: old[None].seats[0].runner is None)
    wait_until(lambda: at.rig.trt.contexts == 1)


def test_closing_gives_everything_on_the_gpu_back(at: Setting) -> None:
    subject = at.make()
    color, out = at.pair(noise())
    subject.present_device(color, out)
    subject.close()
    subject.close()
    assert at.rig.cuda.live() == {"memory": 2}  # the application's own
    with pytest.raises(tr.PassClosedError):
        subject.present_device(color, out)


# -------------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("color", "out", "said"),
    [
        (
            noise(),
            CudaArray(0),
            "color is in host memory, wanted an array on an NVIDIA GPU; use pr",
        ),
        (CudaArray(4096), noise(), "out is in host memory"),
        (CudaArray(4096), None, "out is a builtins.NoneType, wanted an array on a GPU"),
        (CudaArray(4096, typestr="<f4"), CudaArray(8192), "color has elements of type <f4"),
        (CudaArray(4096, (16, 24, 4)), CudaArray(8192), "color has shape (16, 24, 4), wanted (H,"),
        (CudaArray(4096, (1, *SHAPE)), CudaArray(8192), "color has shape (1, 16, 24, 3)"),
        (CudaArray(4096, (0, 24, 3)), CudaArray(8192), "color has shape (0, 24, 3)"),
        (CudaArray(4096), CudaArray(8192, (24, 16, 3)), "out has shape (24, 16, 3), wanted (16, "),
        (CudaArray(4096), CudaArray(8192, read_only=True), "out is read-only"),
        (CudaArray(4096), CudaArray(4099), "out overlaps the frame"),
        (CudaArray(4096), CudaArray(4096), "out overlaps the frame"),
        (CudaArray(4096, strides=(144, 3, 1)), CudaArray(8192), "color of shape (16, 24, 3) is no"),
        (CudaArray(64), CudaArray(8192), "color is not in a GPU's memory, wanted that of GPU 0"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_line(
    color: object, out: object, said: str, at: Setting
) -> None:
    subject = at.make()
    with pytest.raises(tr.FrameError) as caught:
        subject.present_device(color, out)
    assert said in one_line(caught.value)
    assert subject.stats().frames == 0
    assert at.told("demoted") == []


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_two_gpus_are_not_mixed(at: Setting, strength: float) -> None:
    subject = at.make()
    subject.set(strength=strength)
    color, _ = at.pair(noise())
    elsewhere = CudaArray(at.rig.cuda.allocate(BYTES, ordinal=1))
    with pytest.raises(tr.FrameError, match="out is in the memory of GPU 1, wanted that of GPU 0"):
        subject.present_device(color, elsewhere)
    with pytest.raises(tr.FrameError, match="color is in the memory of GPU 1"):
        subject.present_device(elsewhere, color)


@pytest.mark.parametrize("stream", [0, -1, 1.0, True, "1"])
def test_a_stream_that_is_none_is_refused(stream: object, at: Setting) -> None:
    subject = at.make()
    color, out = at.pair(noise())
    with pytest.raises(tr.FrameError, match="wanted the handle of a CUDA stream"):
        subject.present_device(color, out, stream)  # type: ignore[arg-type]


def test_a_stream_that_does_not_exist_is_not_laid_to_the_engine(at: Setting) -> None:
    subject = at.make()
    color, out = at.pair(noise())
    with pytest.raises(tr.FrameError, match="does not know as a stream of this GPU") as caught:
        subject.present_device(color, out, 0xDEAD)
    assert at.rig.driver.describe(INVALID_HANDLE) in one_line(caught.value)
    assert at.told("demoted") == []
    assert subject.present_device(color, out, 1).status is Status.FRESH


def test_a_frame_that_is_too_large_for_the_network_is_refused(
    at: Setting, double: Path, tmp_path: Path
) -> None:
    subject = at.make(RigSource(at.rig, make_engine_bundle(double, tmp_path)))
    color, out = at.pair(np.zeros((8, 520, 3), np.uint8), scale=2)
    with pytest.raises(tr.FrameError, match="512"):
        subject.present_device(color, out)


def test_without_a_driver_there_is_one_line(at: Setting) -> None:
    def nothing() -> Any:  # noqa: ANN401 - never
        raise tr.BackendUnavailableError("no NVIDIA driver was found")

    subject = Pass(at.source(), driver=nothing)
    with pytest.raises(tr.BackendUnavailableError, match="no NVIDIA driver was found"):
        subject.present_device(CudaArray(4096), CudaArray(8192))
    with pytest.raises(tr.FrameError, match="color is in host memory"):
        subject.present_device(noise(), CudaArray(8192))
    subject.close()


# --------------------------------------------------------------------------------------------- cost


class StillSource:
    name, scale, memory_per_pixel = "still", 1, None
    size = SizeRule(multiple=1, min=1, max=None, pad="edge")

    def open(self) -> list[Seat]:
        return [Seat("still", Still, Still(), takes_device=True)]

    def seats(self) -> list[Seat]:
        return [Seat("still", Still, takes_device=True)]

    def explain(self) -> str:
        return ""


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_no_memory_is_taken_per_frame(at: Setting, strength: float) -> None:
    subject = at.make(StillSource())
    subject.set(strength=strength)
    frame = noise(0, (256, 256, 3))
    color, out = at.pair(frame)
    subject.prepare((256, 256)).wait()
    expected = Status.FRESH if strength else Status.PASSTHROUGH
    assert subject.present_device(color, out).status is expected

    def once() -> None:
        subject.present_device(color, out)

    assert peak_growth(once) < 16 * 1024


def test_a_pass_loads_nothing_of_the_gpus_before_the_first_frame_there(
    run_python: Callable[..., Any],
) -> None:
    code = (
        "import sys, topcoat.runtime.render_pass as p;"
        "print('present_device' in dir(p.Pass), sorted(n for n in sys.modules if '_cuda' in n"
        " or '_device_' in n))"
    )
    assert run_python("-c", code).stdout.strip() == "True []"
