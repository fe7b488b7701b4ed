"""The driver through ctypes: what it is asked, what its codes become, and that nothing leaks."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import topcoat.runtime as tr
from tests.runtime.fake_cuda import (
    INVALID_VALUE,
    LAUNCH_FAILED,
    NOT_INITIALIZED,
    OUT_OF_MEMORY,
    UNKNOWN,
    FakeCuda,
)
from topcoat.runtime.backends._cuda import (
    Context,
    Device,
    DeviceMemory,
    Driver,
    Event,
    Graph,
    PinnedMemory,
    Stream,
    installed_driver_version,
    probe,
)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    fake = FakeCuda()
    yield fake
    assert fake.faults == []


@pytest.fixture
def driver(cuda: FakeCuda) -> Driver:
    return Driver(cuda, lambda: "580.95.05")


@pytest.fixture
def context(driver: Driver) -> Iterator[Context]:
    device = driver.probe()
    assert isinstance(device, Device)
    made = Context(driver, device)
    yield made
    made.close()


def fill(address: int, values: bytes) -> None:
    ctypes.memmove(address, values, len(values))


# ------------------------------------------------------------------------------------------ probe


def test_the_probe_says_what_gpu_there_is(driver: Driver) -> None:
    assert probe(lambda: driver) == Device(
        ordinal=0,
        name="Fake RTX",
        sm="sm89",
        memory=1 << 30,
        cuda=(13, 0),
        driver="580.95.05",
    )


def test_a_driver_belongs_to_the_family_of_its_major_version(driver: Driver) -> None:
    device = driver.probe()
    assert isinstance(device, Device)
    assert device.driver_family == "580"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"devices": 0}, "sees no GPU; check CUDA_VISIBLE_DEVICES"),
        ({"init": 803}, "did not start (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH); install the driver"),
        ({"init": 999}, "did not start (CUDA_ERROR_UNKNOWN)"),
        ({"init": 12345}, "did not start (error 12345)"),
        ({"version": 12040}, "supports CUDA 12.4, wanted at least 13.0; install a newer driver"),
        ({"lacking": ("cuGraphInstantiateWithFlags",)}, "too old: it has no cuGraphInstantiate"),
    ],
)
def test_a_driver_that_cannot_be_used_is_one_sentence(settings: dict[str, int], said: str) -> None:
    cuda = FakeCuda(**settings)  # type: ignore[arg-type]
    found = probe(lambda: Driver(cuda), least=(13, 0))
    assert isinstance(found, str)
    assert said in found
    assert "\n" not in found


def test_a_gpu_that_does_not_answer_is_one_sentence(cuda: FakeCuda, driver: Driver) -> None:
    cuda.fail("cuDeviceGetName", LAUNCH_FAILED)
    found = probe(lambda: driver)
    assert isinstance(found, str)
    assert "cannot be asked what it is" in found
    assert "CUDA_ERROR_LAUNCH_FAILED" in found


def test_the_driver_is_asked_once(cuda: FakeCuda, driver: Driver) -> None:
    probe(lambda: driver)
    asked = cuda.calls.copy()
    probe(lambda: driver)
    assert cuda.calls == asked


def test_probing_this_machine_never_crashes() -> None:
    found = probe()
    assert isinstance(found, Device | str)
    if isinstance(found, str):
        assert "; " in found  # what is wrong, and what to do


STUB = """
int cuInit(unsigned flags) { return 100; }
int cuGetErrorName(int code, const char **text) { *text = "STUB"; return 0; }
"""


def probe_with_library(folder: Path, source: str) -> str:
    """Return what the probe says in a process whose libcuda.so.1 is compiled from C."""
    (folder / "cuda.c").write_text(source)
    library = str(folder / "libcuda.so.1")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, str(folder / "cuda.c")], check=True)
    code = "from topcoat.runtime.backends._cuda import probe; print(probe())"
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None or sys.platform != "linux",
    reason="compiles a library, which needs gcc on Linux",
)


@needs_compiler
def test_the_systems_loader_finds_the_driver(tmp_path: Path, cuda: FakeCuda) -> None:
    from topcoat.runtime.backends import _cuda

    others = [name for name in _cuda._SIGNATURES if f"int {name}(" not in STUB]
    source = STUB + "".join(f"int {name}(void) {{ return 1; }}\n" for name in others)
    assert "the NVIDIA driver sees no GPU" in probe_with_library(tmp_path, source)


@needs_compiler
def test_a_library_without_the_functions_is_too_old(tmp_path: Path) -> None:
    assert "it has no cuDriverGetVersion" in probe_with_library(tmp_path, STUB)


@needs_compiler
def test_a_library_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"\x7fELF and nothing more")
    code = "from topcoat.runtime.backends._cuda import probe; print(probe())"
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "no NVIDIA driver was found (libcuda.so.1: " in done.stdout
    assert "is missing" not in done.stdout


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 2024\n"
            "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n",
            "535.183.01",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
            "580.95.05",
        ),
    ],
)
def test_the_kernels_driver_is_read_from_linuxs_report(
    tmp_path: Path, text: str, version: str
) -> None:
    (tmp_path / "version").write_text(text)
    assert installed_driver_version(tmp_path / "version") == version


# ---------------------------------------------------------------------------------------- context


def test_the_context_is_current_inside_with_only(cuda: FakeCuda, context: Context) -> None:
    assert cuda.stack == []
    with context:
        assert len(cuda.stack) == 1
        with context:
            assert len(cuda.stack) == 2
        assert len(cuda.stack) == 1
    assert cuda.stack == []


def test_a_host_applications_context_is_current_again_after_an_error(
    cuda: FakeCuda, context: Context
) -> None:
    cuda.stack.append(0xA99)
    with pytest.raises(tr.BackendError), context:
        context.driver.call("cuMemAlloc_v2", ctypes.byref(ctypes.c_uint64()), 0)
    assert cuda.stack == [0xA99]
    cuda.stack.clear()


def test_every_thread_has_its_own_current_context(cuda: FakeCuda, context: Context) -> None:
    seen: list[int] = []

    def work() -> None:
        seen.append(len(cuda.stack))
        with context:
            seen.append(len(cuda.stack))

    with context:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [0, 1]


def test_the_context_says_how_much_memory_is_free(context: Context) -> None:
    with context:
        before, total = context.memory()
        held = DeviceMemory(context.driver, 1000)
        assert context.memory() == (before - 1000, total)
        held.close()
        assert context.memory() == (before, total)


def test_the_context_knows_whose_memory_an_address_is_in(cuda: FakeCuda, context: Context) -> None:
    other = cuda.allocate(16, ordinal=3)
    ordinary = np.zeros(16, np.uint8)
    with context:
        device, pinned = DeviceMemory(context.driver, 16), PinnedMemory(context.driver, 16)
        assert context.pointer_device(device.handle + 8) == 0
        assert context.pointer_device(other) == 3
        assert context.pointer_device(pinned.handle) is None
        assert context.pointer_device(ordinary.ctypes.data) is None
        assert context.is_pinned(pinned.handle)
        assert not context.is_pinned(device.handle)
        assert not context.is_pinned(ordinary.ctypes.data)
        device.close()
        pinned.close()


# ------------------------------------------------------------------------- memory, streams, graphs


def test_bytes_go_to_the_device_and_back_in_order(cuda: FakeCuda, context: Context) -> None:
    driver = context.driver
    with context:
        stream = Stream(driver)
        given, made = PinnedMemory(driver, 4), PinnedMemory(driver, 4)
        first, second = DeviceMemory(driver, 4), DeviceMemory(driver, 4)
        fill(given.handle, b"\x01\x02\x03\x04")
        driver.call("cuMemcpyHtoDAsync_v2", first.handle, given.handle, 4, stream.handle)
        driver.call("cuMemcpyDtoDAsync_v2", second.handle, first.handle, 4, stream.handle)
        driver.call("cuMemcpyDtoHAsync_v2", made.handle, second.handle, 4, stream.handle)
        assert ctypes.string_at(made.handle, 4) != b"\x01\x02\x03\x04"  # only queued so far
        stream.synchronize()
        assert ctypes.string_at(made.handle, 4) == b"\x01\x02\x03\x04"
        for owned in (first, second, given, made, stream):
            owned.close()
            owned.close()
    assert cuda.live() == {"contexts": 1}


def test_a_graph_queues_again_what_was_queued_once(cuda: FakeCuda, context: Context) -> None:
    driver = context.driver
    with context:
        stream = Stream(driver)
        pinned, device = PinnedMemory(driver, 1), DeviceMemory(driver, 1)

        def enqueue() -> None:
            driver.call("cuMemcpyHtoDAsync_v2", device.handle, pinned.handle, 1, stream.handle)

        graph = Graph.capture(stream, enqueue)
        for value in (b"\x05", b"\x09"):
            fill(pinned.handle, value)
            graph.launch(stream.handle)
            stream.synchronize()
            assert cuda.view(device.handle, 1).tobytes() == value
        for owned in (graph, pinned, device, stream):
            owned.close()
    assert cuda.live() == {"contexts": 1}


def test_a_stream_works_again_after_a_capture_that_failed(cuda: FakeCuda, context: Context) -> None:
    with context:
        stream = Stream(context.driver)

        def interrupted() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Graph.capture(stream, interrupted)
        with pytest.raises(tr.BackendError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
            Graph.capture(stream, stream.synchronize)
        stream.synchronize()
        stream.close()
    assert cuda.live() == {"contexts": 1}


def test_a_graph_that_cannot_be_made_leaves_nothing_behind(
    cuda: FakeCuda, context: Context
) -> None:
    with context:
        stream = Stream(context.driver)
        cuda.fail("cuGraphInstantiateWithFlags", OUT_OF_MEMORY)
        with pytest.raises(tr.DeviceMemoryError):
            Graph.capture(stream, lambda: None)
        stream.close()
    assert cuda.live() == {"contexts": 1}


def test_events_time_what_lies_between_them(cuda: FakeCuda, context: Context) -> None:
    driver = context.driver
    with context:
        stream = Stream(driver)
        size = 3_000_000  # 3 ms on the fake's clock
        pinned, device = PinnedMemory(driver, size), DeviceMemory(driver, size)
        before, after = Event(driver, timing=True), Event(driver, timing=True)
        before.record(stream.handle)
        driver.call("cuMemcpyHtoDAsync_v2", device.handle, pinned.handle, size, stream.handle)
        after.record(stream.handle)
        with pytest.raises(tr.BackendError, match="CUDA_ERROR_NOT_READY"):
            after.milliseconds_since(before)
        stream.synchronize()
        assert after.milliseconds_since(before) == pytest.approx(3.0)
        for owned in (pinned, device, before, after, stream):
            owned.close()


def test_a_stream_waits_for_an_event_of_another(cuda: FakeCuda, context: Context) -> None:
    driver = context.driver
    with context:
        first, second, event = Stream(driver), Stream(driver), Event(driver)
        order: list[str] = []
        cuda.enqueue(first.handle, lambda: order.append("first"))
        event.record(first.handle)
        second.wait(event)
        cuda.enqueue(second.handle, lambda: order.append("second"))
        second.synchronize()
        assert order == ["first", "second"]
        for owned in (event, first, second):
            owned.close()


# ----------------------------------------------------------------------------------------- errors


def test_too_little_memory_is_a_memory_error(cuda: FakeCuda, context: Context) -> None:
    with context, pytest.raises(MemoryError) as caught:
        DeviceMemory(context.driver, cuda.memory + 1)
    assert isinstance(caught.value, tr.DeviceMemoryError)
    assert "cuMemAlloc_v2 failed with CUDA_ERROR_OUT_OF_MEMORY" in str(caught.value)


@pytest.mark.parametrize("code", [46, 700, LAUNCH_FAILED, UNKNOWN])
def test_a_lost_device_stays_lost_and_is_closed_in_peace(
    cuda: FakeCuda, driver: Driver, code: int
) -> None:
    device = driver.probe()
    assert isinstance(device, Device)
    context = Context(driver, device)
    with context:
        stream, memory = Stream(driver), DeviceMemory(driver, 16)
        cuda.fail("cuStreamSynchronize", code)
        for _ in range(2):
            with pytest.raises(tr.DeviceLostError, match="the GPU stopped working"):
                stream.synchronize()
        memory.close()
        stream.close()
    context.close()
    assert cuda.stack == []


def test_other_codes_name_the_call_and_the_error(cuda: FakeCuda, context: Context) -> None:
    cuda.fail("cuMemGetInfo_v2", INVALID_VALUE)
    with context, pytest.raises(tr.BackendError) as caught:
        context.memory()
    assert type(caught.value) is tr.BackendError
    assert "cuMemGetInfo_v2 failed with CUDA_ERROR_INVALID_VALUE" in str(caught.value)


def test_a_gpu_that_another_program_holds_is_not_lost(cuda: FakeCuda, driver: Driver) -> None:
    device = driver.probe()
    assert isinstance(device, Device)
    cuda.fail("cuDevicePrimaryCtxRetain", 46)
    with pytest.raises(tr.BackendError, match="another program may hold it for itself") as caught:
        Context(driver, device)
    assert not isinstance(caught.value, tr.DeviceLostError)


def test_a_forked_process_is_told_what_it_may_not_do(cuda: FakeCuda, context: Context) -> None:
    cuda.fail("cuMemGetInfo_v2", NOT_INITIALIZED)
    with context, pytest.raises(tr.BackendError, match="start processes with 'spawn'"):
        context.memory()


def test_a_code_that_the_driver_has_no_name_for_is_shown_as_a_number(driver: Driver) -> None:
    assert driver.describe(4242) == "error 4242"
    assert driver.describe(OUT_OF_MEMORY) == "CUDA_ERROR_OUT_OF_MEMORY"
