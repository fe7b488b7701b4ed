"""Backends for GPUs on a machine without one: the real packages' refusals, and stand-ins for them.

The stand-ins are the few functions of onnxruntime and openvino that the backends call; what they
run, they run with the real library on the CPU, so that pictures come out that can be compared.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import topcoat.runtime as tr
from topcoat.runtime._choice import choose
from topcoat.runtime.backends import Backend, Session
from topcoat.runtime.backends._cuda import Device
from topcoat.runtime.backends._device_errors import device_error
from topcoat.runtime.backends.onnxruntime import OnnxRuntimeCpu, import_onnxruntime
from topcoat.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda
from topcoat.runtime.backends.onnxruntime_webgpu import OnnxRuntimeWebGpu
from topcoat.runtime.backends.openvino import OpenVino
from topcoat.runtime.bundle import Variant, read_model
from topcoat.runtime.frames import Frame

GPU = Device(ordinal=0, name="GPU", sm="sm89", memory=1 << 33, cuda=(13, 0), driver="580.95.05")
CUDA, WEBGPU = "CUDAExecutionProvider", "WebGpuExecutionProvider"


class FakeTensor:
    """An OrtValue on the device: only ``update_inplace`` writes it."""

    def __init__(self, ort: "FakeOrt", shape: list[int], device: str, ordinal: int) -> None:
        assert (device, ordinal) == ("cuda", GPU.ordinal)
        ort.check_memory(int(np.prod(shape)))
        self.real = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(shape, np.uint8)

    def shape(self) -> list[int]:
        return list(self.real.shape())

    def update_inplace(self, array: Frame) -> None:
        self.real.update_inplace(array)


class FakeBinding:
    """Copies what is bound from host memory when it is bound, as a device's binding does."""

    def __init__(self, session: "FakeInferenceSession") -> None:
        self.real = session.real.io_binding()
        self.copies: list[Any] = []

    def clear_binding_inputs(self) -> None:
        self.real.clear_binding_inputs()

    def bind_ortvalue_input(self, name: str, value: FakeTensor) -> None:
        self.real.bind_ortvalue_input(name, value.real)

    def bind_input(self, name: str, *where: Any) -> None:  # noqa: ANN401 - as onnxruntime
        _, _, dtype, shape, address = where
        interface = {"version": 3, "typestr": "|u1", "shape": shape, "data": (address, False)}
        copy = np.array(SimpleNamespace(__array_interface__=interface), dtype)
        self.copies = [copy]  # alive as long as it is bound
        self.real.bind_input(name, "cpu", 0, dtype, shape, copy.ctypes.data)

    def bind_output(self, name: str, *where: Any) -> None:  # noqa: ANN401 - as onnxruntime
        assert where[0] == "cpu"
        self.real.bind_output(name, *where)


class FakeInferenceSession:
    def __init__(
        self,
        ort: "FakeOrt",
        model: bytes,
        sess_options: "FakeOptions",
        providers: list[tuple[str, dict[str, str]]] | None = None,
        enable_fallback: bool = True,
    ) -> None:
        assert not enable_fallback, "onnxruntime would print and try the CPU"
        self.ort = ort
        self.options = sess_options
        self.providers = providers
        ort.sessions.append(self)
        if ort.load_error:
            raise RuntimeError(ort.load_error)
        self.real = import_onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [self.ort.provider, "CPUExecutionProvider"]

    def get_inputs(self) -> Any:  # noqa: ANN401 - as onnxruntime
        return self.real.get_inputs()

    def get_outputs(self) -> Any:  # noqa: ANN401 - as onnxruntime
        return self.real.get_outputs()

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def nodes(*kinds: str) -> Callable[[], list[Any]]:
            return lambda: [SimpleNamespace(op_type=kind) for kind in kinds]

        return [
            SimpleNamespace(ep_name=WEBGPU, get_nodes=nodes("Conv", "Mul")),
            SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=nodes(*self.ort.on_the_cpu)),
        ]

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        if self.ort.run_errors:
            raise RuntimeError(self.ort.run_errors.pop(0))
        self.real.run_with_iobinding(binding.real)


class FakeOptions(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(entries={}, devices=[])

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
        self.devices = devices


@dataclass
class FakeOrt:
    """The module onnxruntime of a machine with a GPU."""

    provider: str = CUDA
    printed: tuple[str, ...] = ()
    """What ``preload_dlls`` prints."""
    load_error: str = ""
    run_errors: list[str] = field(default_factory=list)
    memory: int = 1 << 40
    on_the_cpu: tuple[str, ...] = ()
    adapters: tuple[tuple[int, int], ...] = ((0x8086, 0x56A0),)
    """Vendor and device of the GPUs that WebGPU finds once its plug-in is registered."""
    registered: list[str] = field(default_factory=list)
    sessions: list[FakeInferenceSession] = field(default_factory=list)

    __version__ = "1.31.1"
    cuda_version = "13.0"
    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL="all")
    ExecutionMode = SimpleNamespace(ORT_SEQUENTIAL="sequential")
    SessionOptions = FakeOptions

    @property
    def InferenceSession(self) -> Any:  # noqa: N802, ANN401 - as onnxruntime
        fake = self

        class Bound(FakeInferenceSession):
            def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
                super().__init__(fake, *arguments, **options)

        return Bound

    @property
    def OrtValue(self) -> Any:  # noqa: N802, ANN401 - as onnxruntime
        def make(shape: list[int], dtype: type, device: str, ordinal: int) -> FakeTensor:
            assert dtype is np.uint8
            return FakeTensor(self, shape, device, ordinal)

        return SimpleNamespace(ortvalue_from_shape_and_type=make)

    def get_available_providers(self) -> list[str]:
        return [self.provider, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        for line in self.printed:
            print(line)

    def check_memory(self, size: int) -> None:
        if size > self.memory:
            raise RuntimeError(f"Failed to allocate memory for requested buffer of size {size}")

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append(path)

    def get_ep_devices(self) -> list[Any]:
        devices = [SimpleNamespace(ep_name="CPUExecutionProvider")]
        for vendor, device in self.adapters if self.registered else ():
            identity = SimpleNamespace(
                type=SimpleNamespace(name="GPU"), vendor_id=vendor, device_id=device
            )
            devices.append(SimpleNamespace(ep_name=WEBGPU, device=identity))
        return devices


def cuda(ort: FakeOrt) -> OnnxRuntimeCuda:
    return OnnxRuntimeCuda(ort=lambda: ort, device=lambda: GPU)


def webgpu(ort: FakeOrt) -> OnnxRuntimeWebGpu:
    return OnnxRuntimeWebGpu(ort=lambda: ort, library=lambda: "/plugin.so")


def load(backend: Backend, bundle: Path, precision: str = "fp32") -> Session:
    manifest = tr.read_manifest(bundle)
    (variant,) = (v for v in manifest.variants if v.precision == precision)
    return backend.load(variant, read_model(manifest, variant), compute=precision, threads=1)


def run(session: Session, frame: Frame) -> Frame:
    result = np.zeros((1, *frame.shape), np.uint8)
    session.run(frame[None], result)
    first: Frame = result[0]
    return first


@pytest.fixture
def frame(photograph: Frame) -> Frame:
    return np.ascontiguousarray(photograph[:64, :88])


@pytest.fixture
def wanted(blocks: Path, frame: Frame) -> Frame:
    return run(load(OnnxRuntimeCpu(), blocks), frame)


# ------------------------------------------------------------------- what the real packages say


def test_the_real_onnxruntime_without_cuda_says_how_to_get_it() -> None:
    if CUDA in (offered := import_onnxruntime().get_available_providers()):
        pytest.skip("the onnxruntime here has CUDA")
    assert OnnxRuntimeCuda(device=lambda: GPU).missing() == (
        f"the onnxruntime that is installed cannot use CUDA (it has {', '.join(offered)});"
        " pip install 'topcoat-runtime[cuda]', then pip install --force-reinstall --no-deps"
        " onnxruntime-gpu (it shares its folder with onnxruntime, and the one installed last"
        " counts)"
    )


def test_the_real_onnxruntime_without_cuda_loads_nothing_on_the_cpu_instead(blocks: Path) -> None:
    if CUDA in import_onnxruntime().get_available_providers():
        pytest.skip("the onnxruntime here has CUDA")
    with pytest.raises(tr.BackendUnavailableError, match="cannot use CUDA"):
        load(OnnxRuntimeCuda(device=lambda: GPU), blocks)


def test_without_a_driver_cuda_is_not_looked_for_any_further() -> None:
    def ort() -> Any:  # noqa: ANN401 - as onnxruntime
        raise AssertionError("onnxruntime was imported for nothing")

    backend = OnnxRuntimeCuda(ort=ort, device=lambda: "no NVIDIA driver was found")
    assert backend.missing() == "no NVIDIA driver was found"


def test_the_real_webgpu_plug_in_without_a_gpu_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("onnxruntime_ep_webgpu") is None:
        pytest.skip("onnxruntime-ep-webgpu is not installed")
    backend = OnnxRuntimeWebGpu()
    if (missing := backend.missing()) is None:
        pytest.skip("this machine has a GPU for WebGPU")
    assert missing.startswith("the WebGPU plug-in finds no GPU; on Linux it needs libvulkan.so.1")
    assert OnnxRuntimeWebGpu().missing() == missing, "registering twice gives another answer"
    assert capfd.readouterr() == ("", "")


def test_without_its_package_webgpu_names_the_extra() -> None:
    backend = OnnxRuntimeWebGpu(library=lambda: None)
    missing = backend.missing()
    assert missing is not None
    assert "pip install 'topcoat-runtime[webgpu]'" in missing


def test_the_real_openvino_without_a_gpu_says_what_it_has() -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    found = openvino.Core().available_devices
    if any(name.startswith("GPU") for name in found):
        pytest.skip("this machine has an Intel GPU")
    missing = OpenVino("GPU").missing()
    assert missing is not None
    assert missing.startswith(f"OpenVINO finds no Intel GPU (it has {', '.join(found)})")


# ---------------------------------------------------------------------------------------- CUDA


def test_cuda_gives_the_picture_of_the_cpu_for_frames_of_any_size(
    blocks: Path, frame: Frame, wanted: Frame
) -> None:
    session = load(cuda(FakeOrt()), blocks)
    np.testing.assert_array_equal(run(session, frame), wanted)
    small = np.ascontiguousarray(frame[:40, :40])
    np.testing.assert_array_equal(run(session, small), run(load(OnnxRuntimeCpu(), blocks), small))
    np.testing.assert_array_equal(run(session, frame), wanted)
    session.close()


def test_cuda_sees_what_changed_in_the_same_buffers(
    blocks: Path, frame: Frame, wanted: Frame
) -> None:
    session = load(cuda(FakeOrt()), blocks)
    source, result = 255 - frame[None], np.zeros((1, *frame.shape), np.uint8)
    session.run(source, result)
    source[...] = frame
    session.run(source, result)
    np.testing.assert_array_equal(result[0], wanted)


def test_cuda_asks_for_its_provider_alone_and_for_fp32_that_is_fp32(blocks: Path) -> None:
    ort = FakeOrt()
    load(cuda(ort), blocks)
    (session,) = ort.sessions
    assert session.options.entries["session.disable_cpu_ep_fallback"] == "1"
    assert session.providers is not None
    ((provider, settings),) = session.providers
    assert provider == CUDA
    assert settings["use_tf32"] == "0"
    assert settings["cudnn_conv_algo_search"] == "HEURISTIC"
    assert settings["device_id"] == "0"


def test_a_session_that_fell_back_to_the_cpu_is_refused(blocks: Path) -> None:
    ort = FakeOrt()
    ort.get_available_providers = lambda: [CUDA]  # type: ignore[method-assign]
    ort.provider = "CPUExecutionProvider"
    with pytest.raises(tr.BackendError, match="but ONNX Runtime chose CPUExecutionProvider"):
        load(cuda(ort), blocks)


def test_a_library_of_cuda_that_cannot_be_loaded_is_named_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = (
        "Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file",
        "Please follow the instructions to install CUDA.",
    )
    assert cuda(FakeOrt(printed=lines)).missing() == (
        "ONNX Runtime needs CUDA 13 and cuDNN 9, and libcublasLt.so.13 cannot be loaded;"
        " pip install 'topcoat-runtime[cuda]' brings them"
    )
    assert capfd.readouterr() == ("", "")


def test_a_driver_that_is_too_old_for_the_installed_onnxruntime_is_named() -> None:
    old = dataclasses.replace(GPU, cuda=(12, 4))
    assert OnnxRuntimeCuda(ort=FakeOrt, device=lambda: old).missing() == (
        "the NVIDIA driver is too old: it supports CUDA 12.4, and the onnxruntime-gpu that is"
        " installed needs 13.0; install a newer driver"
    )


def test_cuda_offers_fp16_first_and_for_this_generation_of_gpus(blocks: Path) -> None:
    manifest = tr.read_manifest(blocks)
    offers = {v.precision: cuda(FakeOrt()).computes(v)[0] for v in manifest.variants}
    assert offers["fp16"].rank < offers["fp32"].rank
    assert {offer.device for offer in offers.values()} == {"sm89"}
    fp32 = manifest.variants[0]
    for precision in ("bf16", "int8"):
        (offer,) = cuda(FakeOrt()).computes(dataclasses.replace(fp32, precision=precision))
        assert offer.obstacle is not None
    assert cuda(FakeOrt()).computes(dataclasses.replace(fp32, kind="tensorrt")) == ()


def measured(variant: Variant, backend: str, device: str | None) -> Variant:
    row = tr.ParityRow(
        backend=backend, compute=variant.precision, passed=True, photographs={}, device=device
    )
    return dataclasses.replace(variant, parity=(*variant.parity, row))


def explain(bundle: Path, backend: Backend, device: str | None, name: str) -> tr.Explanation:
    """Choose among this backend and the CPU, where it was measured on ``device``."""
    manifest = tr.read_manifest(bundle)
    if device is not None:
        variants = tuple(measured(v, backend.name, device) for v in manifest.variants)
        manifest = dataclasses.replace(manifest, variants=variants)
    explanation, engines = choose(
        manifest,
        (backend, OnnxRuntimeCpu()),
        backend=name,
        precision=None,
        threads=1,
        allow_unverified=False,
    )
    engines.close()
    return explanation


def test_parity_on_another_generation_of_gpus_does_not_count(blocks: Path) -> None:
    explanation = explain(blocks, cuda(FakeOrt()), "sm120", "auto")
    assert explanation.chosen is not None
    assert explanation.chosen.backend == "onnxruntime-cpu"
    assert (
        "holds no parity check for it on sm89; run `topcoat verify` on this machine"
        in explanation.candidates[0].reason
    )
    explanation = explain(blocks, cuda(FakeOrt()), "sm89", "onnxruntime-cuda")
    assert explanation.chosen is not None
    assert (explanation.chosen.backend, explanation.chosen.compute) == ("onnxruntime-cuda", "fp16")


OUT_OF_MEMORY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv"
    " node. Name:'c' Status Message: BFCArena::AllocateRawInternal Failed to allocate memory for"
    " requested buffer of size 8388608000"
)


def test_out_of_memory_starts_over_with_an_empty_arena_and_tries_again(
    blocks: Path, frame: Frame, wanted: Frame
) -> None:
    ort = FakeOrt(run_errors=[OUT_OF_MEMORY])
    session = load(cuda(ort), blocks)
    np.testing.assert_array_equal(run(session, frame), wanted)
    assert len(ort.sessions) == 2


def test_out_of_memory_twice_is_an_error_and_a_smaller_frame_still_runs(
    blocks: Path, frame: Frame
) -> None:
    ort = FakeOrt(memory=40 * 40 * 3)
    session = load(cuda(ort), blocks)
    with pytest.raises(tr.DeviceMemoryError, match="Failed to allocate memory") as caught:
        run(session, frame)
    assert "ONNXRuntimeError" not in str(caught.value)
    small = np.ascontiguousarray(frame[:40, :40])
    np.testing.assert_array_equal(run(session, small), run(load(OnnxRuntimeCpu(), blocks), small))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (OUT_OF_MEMORY, tr.DeviceMemoryError),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=f", tr.DeviceMemoryError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", tr.DeviceMemoryError),
        ("[GPU] clEnqueueNDRangeKernel, CL_MEM_OBJECT_ALLOCATION_FAILURE", tr.DeviceMemoryError),
        ("vkAllocateMemory failed with VK_ERROR_OUT_OF_DEVICE_MEMORY", tr.DeviceMemoryError),
        ("CUDA failure 700: an illegal memory access was encountered", tr.DeviceLostError),
        ("CUDA failure 719: unspecified launch failure", tr.DeviceLostError),
        ("A valid external Instance reference: Device was lost.", tr.DeviceLostError),
        ("CUDA failure 1: invalid argument ; GPU=0", tr.BackendError),
        ("CUDA failure 7000: no such code", tr.BackendError),
        ("Non-zero status code returned while running Add node", tr.BackendError),
    ],
)
def test_the_text_of_an_engine_says_what_became_of_the_device(
    text: str, kind: type[tr.BackendError]
) -> None:
    error = device_error("it failed", RuntimeError(text))
    assert type(error) is kind
    assert "hostname" not in str(error)
    assert "\n" not in str(error)


def test_a_lost_device_is_not_tried_again(blocks: Path, frame: Frame) -> None:
    ort = FakeOrt(run_errors=["CUDA failure 700: an illegal memory access was encountered"])
    session = load(cuda(ort), blocks)
    with pytest.raises(tr.DeviceLostError, match="onnxruntime-cuda failed on a frame of shape"):
        run(session, frame)
    assert len(ort.sessions) == 1


def test_a_network_that_cuda_cannot_run_whole_is_refused(blocks: Path) -> None:
    ort = FakeOrt(
        load_error="This session contains graph nodes that are assigned to the default CPU EP, but"
        " fallback to CPU EP has been explicitly disabled by the user."
    )
    with pytest.raises(tr.BackendError, match="CUDA has no kernel for a part of it"):
        load(cuda(ort), blocks)
    ort.memory = 0  # no device memory can be had: it is the provider that does not start
    with pytest.raises(tr.DeviceMemoryError, match="its provider does not start: Failed to all"):
        load(cuda(ort), blocks)


def test_what_an_engine_says_of_its_own_source_is_left_out() -> None:
    text = (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running"
        " Conv node. Name:'c' Status Message: /src/core/framework/bfc_arena.cc:376 void*"
        " onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for"
        " requested buffer of size 838860800\nat a line of C++"
    )
    assert str(device_error("it failed", RuntimeError(text))) == (
        "it failed: Non-zero status code returned while running Conv node. Name:'c' Status"
        " Message: Failed to allocate memory for requested buffer of size 838860800"
    )


# -------------------------------------------------------------------------------------- WebGPU


def started(ort: FakeOrt) -> OnnxRuntimeWebGpu:
    backend = webgpu(ort)
    assert backend.missing() is None
    return backend


def test_webgpu_gives_the_picture_of_the_cpu_also_from_the_same_buffers(
    blocks: Path, frame: Frame, wanted: Frame
) -> None:
    session = load(started(FakeOrt(provider=WEBGPU)), blocks)
    source, result = 255 - frame[None], np.zeros((1, *frame.shape), np.uint8)
    session.run(source, result)
    source[...] = frame
    session.run(source, result)
    np.testing.assert_array_equal(result[0], wanted)
    session.close()


def test_webgpu_registers_its_plug_in_once(blocks: Path) -> None:
    ort = FakeOrt(provider=WEBGPU)
    for _ in range(2):
        load(started(ort), blocks)
    assert ort.registered == ["/plugin.so"]
    assert len(ort.sessions[0].options.devices) == 1


def test_webgpu_is_left_out_until_parity_was_measured_on_this_very_gpu(blocks: Path) -> None:
    here = "gpu-8086:56a0"
    for device in (None, "gpu-10de:2684"):
        explanation = explain(blocks, started(FakeOrt(provider=WEBGPU)), device, "auto")
        assert explanation.chosen is not None
        assert explanation.chosen.backend == "onnxruntime-cpu"
        reason = explanation.candidates[0].reason
        assert reason == (
            f"only used when named, until `topcoat verify` has passed on this GPU ({here})"
        )
    explanation = explain(blocks, started(FakeOrt(provider=WEBGPU)), here, "auto")
    assert [c.usable for c in explanation.candidates[:2]] == [True, True]


def test_webgpu_runs_when_it_is_named_and_was_measured_anywhere_or_is_allowed_unverified(
    blocks: Path,
) -> None:
    with pytest.raises(tr.BackendError, match="holds no parity check for it on gpu-8086:56a0"):
        explain(blocks, started(FakeOrt(provider=WEBGPU)), None, "onnxruntime-webgpu")
    backend = started(FakeOrt(provider=WEBGPU))
    with pytest.warns(tr.UnverifiedWarning):
        explanation, _ = choose(
            tr.read_manifest(blocks),
            (backend,),
            backend="onnxruntime-webgpu",
            precision=None,
            threads=1,
            allow_unverified=True,
        )
    assert explanation.chosen is not None
    assert explanation.chosen.compute == "fp16"


def test_with_two_gpus_parity_holds_for_the_pair_because_the_plug_in_chooses() -> None:
    ort = FakeOrt(provider=WEBGPU, adapters=((0x10DE, 0x2684), (0x8086, 0x56A0)))
    variant = tr.read_manifest(Path(__file__).parent / "data" / "blocks.topcoat").variants[0]
    assert started(ort).computes(variant)[0].device == "gpu-10de:2684+gpu-8086:56a0"


def test_webgpu_may_leave_the_conversion_of_bytes_to_the_cpu_and_nothing_else(
    blocks: Path,
) -> None:
    load(started(FakeOrt(provider=WEBGPU, on_the_cpu=("Cast", "Round"))), blocks)
    ort = FakeOrt(provider=WEBGPU, on_the_cpu=("Cast", "Resize", "Conv"))
    with pytest.raises(tr.BackendError, match=r"would run Conv, Resize of model\.fp32\.onnx on"):
        load(started(ort), blocks)


def test_a_plug_in_that_cannot_be_loaded_is_one_sentence() -> None:
    class Broken(FakeOrt):
        def register_execution_provider_library(self, name: str, path: str) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : libvulkan.so.1 is missing\nat ...")

    assert webgpu(Broken(provider=WEBGPU)).missing() == (
        "the WebGPU plug-in cannot be loaded: libvulkan.so.1 is missing"
    )


ON_ANY_ADAPTER = """
import sys
import numpy as np, topcoat.runtime as tr
from topcoat.runtime.backends import find_backend
from topcoat.runtime.bundle import read_model

manifest = tr.read_manifest(sys.argv[1])
variant = manifest.variants[0]
def load(name):
    model = read_model(manifest, variant)
    return find_backend(name).load(variant, model, compute="fp32", threads=1)
try:
    webgpu, cpu = load("onnxruntime-webgpu"), load("onnxruntime-cpu")
except tr.BackendError as error:
    sys.exit(f"no adapter: {error}")
random = np.random.default_rng(0)
worst = 0
for size in ((64, 88), (40, 40), (64, 88)):
    source = random.integers(0, 256, (1, *size, 3), np.uint8)
    result, wanted = np.zeros_like(source), np.zeros_like(source)
    for _ in range(2):
        webgpu.run(source, result)
        cpu.run(source, wanted)
        worst = max(worst, int(np.abs(result.astype(int) - wanted).max()))
        source[...] = 255 - source
print("off by at most", worst)
"""


def test_the_real_webgpu_plug_in_gives_the_picture_where_it_finds_any_adapter(
    run_python: Callable[..., Any], blocks: Path
) -> None:
    # A software implementation of Vulkan will do, such as the one that VK_DRIVER_FILES names.
    done = run_python("-c", ON_ANY_ADAPTER, str(blocks), ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER="1")
    if done.returncode and "no adapter: " in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout.strip() in {"off by at most 0", "off by at most 1"}, done.stderr


# -------------------------------------------------------------------------------- OpenVINO's GPU


class FakeCore:
    """An openvino.Core with an Intel GPU, whose models the real one compiles for the CPU."""

    def __init__(self, *, memory_shapes: int = 99) -> None:
        self.real = pytest.importorskip("openvino", reason="openvino is not installed").Core()
        self.available_devices = ["CPU", "GPU.0", "GPU.1"]
        self.settings: list[dict[str, Any]] = []
        self.compiled = 0
        self.memory_shapes = memory_shapes

    def get_property(self, device: str, name: str) -> Any:  # noqa: ANN401 - as openvino
        assert device == "GPU"
        return {
            "OPTIMIZATION_CAPABILITIES": ["FP32", "FP16"],
            "DEVICE_ARCHITECTURE": "GPU: vendor=0x8086 arch=v12.55.8",
        }[name]

    def read_model(self, model: bytes, weights: bytes) -> Any:  # noqa: ANN401 - as openvino
        return self.real.read_model(model, weights)

    def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:  # noqa: ANN401
        assert device == "GPU"
        self.settings.append(settings)
        self.compiled += 1
        if self.compiled > self.memory_shapes:
            self.compiled = 0
            raise RuntimeError("Exception from src:1:\n[GPU] out of memory")
        compiled = self.real.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        hint = SimpleNamespace(get_type_name=lambda: settings["INFERENCE_PRECISION_HINT"])
        return SimpleNamespace(
            get_property=lambda name: hint, create_infer_request=compiled.create_infer_request
        )


def test_openvino_offers_fp16_first_on_an_intel_gpu(blocks: Path) -> None:
    core = FakeCore()
    backend = OpenVino("GPU", lambda: core)
    assert backend.name == "openvino-gpu"
    assert backend.missing() is None
    fp32, fp16 = tr.read_manifest(blocks).variants
    assert [(o.compute, o.device) for o in backend.computes(fp32)] == [
        ("fp16", "GPU: vendor=0x8086 arch=v12.55.8"),
        ("fp32", "GPU: vendor=0x8086 arch=v12.55.8"),
    ]
    assert [o.compute for o in backend.computes(fp16)] == ["fp16"]
    (offer,) = backend.computes(dataclasses.replace(fp32, precision="int8"))
    assert offer.obstacle is not None


def test_openvino_on_a_gpu_gives_the_picture_with_the_hint_of_its_precision(
    blocks: Path, frame: Frame, wanted: Frame
) -> None:
    core = FakeCore()
    manifest = tr.read_manifest(blocks)
    variant = manifest.variants[0]
    for compute, hint in (("fp32", "f32"), ("fp16", "f16")):
        session = OpenVino("GPU", lambda: core).load(
            variant, read_model(manifest, variant), compute=compute, threads=1
        )
        assert int(np.abs(run(session, frame).astype(int) - wanted).max()) <= 1
        assert core.settings[-1]["INFERENCE_PRECISION_HINT"] == hint
        assert "INFERENCE_NUM_THREADS" not in core.settings[-1]
        session.close()


def test_openvino_on_a_gpu_frees_other_sizes_before_it_gives_up(
    blocks: Path, frame: Frame, wanted: Frame
) -> None:
    core = FakeCore(memory_shapes=1)
    session = load(OpenVino("GPU", lambda: core), blocks)
    run(session, np.ascontiguousarray(frame[:40, :40]))
    assert int(np.abs(run(session, frame).astype(int) - wanted).max()) <= 1
    core.memory_shapes = 0
    with pytest.raises(tr.DeviceMemoryError, match=r"openvino-gpu failed .*out of memory"):
        run(session, np.ascontiguousarray(frame[:48, :48]))
