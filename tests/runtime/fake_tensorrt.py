"""TensorRT without a GPU: the part of its Python API that the runtime uses, over a fake driver.

An engine is an ONNX model with a header. Its execution contexts queue work on the fake driver's
streams; the work reads and writes the addresses that it was given, through ONNX Runtime, so that
what comes out is the model's real picture. What the real library refuses or crashes on (an address
that is not aligned, a frame outside the profile, no working memory, a runtime made without a
driver) is refused here, or is a fault of the driver's.
"""

from __future__ import annotations

import enum
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import topcoat.runtime as tr
from tests.runtime.fake_cuda import FakeCuda, MisuseError
from topcoat.runtime._choice import choose
from topcoat.runtime.backends import Backend
from topcoat.runtime.backends._cuda import Driver
from topcoat.runtime.backends.onnxruntime import import_onnxruntime
from topcoat.runtime.backends.tensorrt import EngineSettings, TensorRt, TensorRtSession

VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "11.4.0.106"}
_MAGIC = b"FAKE ENGINE\n"
Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Smallest, best and largest (height, width)."""

ANY: Sizes = ((8, 8), (64, 64), (512, 512))


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None: ...

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


Logger = ILogger
"""The name for annotations inside the class that has an attribute of that name."""


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5


class TensorFormat(enum.Enum):
    LINEAR = 0
    HWC8 = 3


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.Enum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class FakeTensorRt:
    """The module. Pass it to :class:`TensorRt` inside a :class:`FakeInstallation`.

    Args:
        cuda: the driver that its engines run on.
        name: "tensorrt-rtx" or "tensorrt", which can do less.
        version: ``__version__``; None takes a usual one.
        capturable: what contexts say about being captured.
        capture_fails: a context refuses to be captured although it said that it may be.
        bytes_per_pixel: working memory of a context.
        milliseconds: what one frame takes on the device's clock.
    """

    ILogger = ILogger
    TensorIOMode = TensorIOMode
    DataType = DataType
    TensorFormat = TensorFormat
    EngineValidity = EngineValidity
    EngineInvalidityDiagnostics = EngineInvalidityDiagnostics
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    CudaGraphStrategy = CudaGraphStrategy

    def __init__(
        self,
        cuda: FakeCuda,
        *,
        name: str = "tensorrt-rtx",
        version: str | None = None,
        capturable: bool = True,
        capture_fails: bool = False,
        bytes_per_pixel: int = 64,
        milliseconds: float = 2.5,
    ) -> None:
        self.__name__ = "fake_tensorrt"
        self.__version__ = version or VERSIONS[name]
        self.is_rtx = name == "tensorrt-rtx"
        self.cuda = cuda
        self.capturable = capturable
        self.capture_fails = capture_fails
        self.bytes_per_pixel = bytes_per_pixel
        self.milliseconds = milliseconds
        self.executions: list[tuple[int, ...]] = []
        """Shapes that were queued kernel by kernel."""
        self.computed: list[tuple[int, ...]] = []
        """Shapes that were computed, however they were queued."""
        self.configs: list[FakeRuntimeConfig] = []
        self.compiled: list[tuple[int, ...]] = []
        """Shapes whose kernels were compiled, not found in a runtime cache."""
        self.profiles_used: list[int] = []
        """The profile of each execution context, in order."""
        self.contexts = 0
        """Execution contexts that are alive."""
        self.refusals: dict[str, str] = {}
        """What a method logs when it refuses once: "runtime", "deserialize",
        "create_runtime_config", "create_context", "set_input_shape", "device_memory_size",
        "set_device_memory" or "execute_async_v3"."""
        self.raised: dict[str, Exception] = {}
        """What a method raises once instead; the same names."""

    def Runtime(self, logger: Logger) -> FakeRuntime:  # noqa: N802 - the library's name
        if not self.cuda.stack:
            raise MisuseError("a Runtime was made without a driver")
        if self.refuses("runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return FakeRtxRuntime(self, logger) if self.is_rtx else FakeRuntime(self, logger)

    def refuses(self, what: str, logger: Logger) -> bool:
        if what in self.raised:
            raise self.raised.pop(what)
        if what not in self.refusals:
            return False
        logger.log(Severity.ERROR, self.refusals.pop(what))
        return True


@dataclass
class FakeRuntime:
    trt: FakeTensorRt
    logger: Logger

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        header = _header(data)
        if header is None:
            self.logger.log(Severity.ERROR, "Serialization (assertion header.size == blobSize)")
            return None
        if self.trt.refuses("deserialize", self.logger):
            return None
        return FakeEngine(self.trt, self.logger, header, data[-header["bytes"] :])


class FakeRtxRuntime(FakeRuntime):
    def get_engine_validity(self, data: bytes) -> tuple[EngineValidity, int]:
        header = _header(data)
        if header is None:
            return EngineValidity.INVALID, 32
        here = "sm{}{}".format(*self.trt.cuda.capability)
        bits = 0
        if header["version"] != self.trt.__version__:
            bits |= 1
        # As the real one: what was built for a generation also runs on later ones from sm120 on.
        later = int(here[2:]) >= 120 and "sm120" in header["targets"]
        if here not in header["targets"] and not later:
            bits |= 2
        if bits:
            return EngineValidity.INVALID, bits
        return (EngineValidity.VALID if here in header["targets"] else EngineValidity.SUBOPTIMAL), 0


class FakeEngine:
    def __init__(
        self, trt: FakeTensorRt, logger: Logger, header: dict[str, Any], model: bytes
    ) -> None:
        self.trt = trt
        self.logger = logger
        self.header = header
        self.num_io_tensors = 2
        self.num_optimization_profiles = len(header["profiles"])
        self.model = _session(model)

    def __del__(self) -> None:
        if not self.trt.cuda.stack:
            self.trt.cuda.faults.append("an engine was destroyed without a current context")

    def get_tensor_name(self, number: int) -> str:
        return str((self.header["input"], self.header["output"])[number])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self.header["input"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.header["dtype"]]

    def get_tensor_format(self, name: str) -> TensorFormat:
        return TensorFormat.LINEAR

    def get_tensor_profile_shape(self, name: str, number: int) -> list[tuple[int, ...]]:
        return [(1, *size, 3) for size in self.header["profiles"][number]]

    def create_runtime_config(self) -> FakeRuntimeConfig | None:
        if not self.trt.is_rtx:
            raise MisuseError("full TensorRT has no such settings")
        if self.trt.refuses("create_runtime_config", self.logger):
            return None
        config = FakeRuntimeConfig(self.trt)
        self.trt.configs.append(config)
        return config

    def create_execution_context(
        self, how: FakeRuntimeConfig | ExecutionContextAllocationStrategy
    ) -> FakeContext | None:
        if self.trt.refuses("create_context", self.logger):
            return None
        strategy = how.strategy if isinstance(how, FakeRuntimeConfig) else how
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED:
            raise MisuseError("the tests know contexts with memory of the caller's only")
        cache = how.cache if isinstance(how, FakeRuntimeConfig) else None
        return FakeContext(self, cache)


class FakeRuntimeConfig:
    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache: FakeRuntimeCache | None = None

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self.trt)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


@dataclass
class FakeRuntimeCache:
    trt: FakeTensorRt
    shapes: set[tuple[int, ...]] = field(default_factory=set)

    def serialize(self) -> bytes:
        stamp = f"{self.trt.__version__} {self.trt.cuda.capability}"
        return json.dumps([stamp, sorted(self.shapes)]).encode()

    def deserialize(self, data: bytes) -> bool:
        stamp, shapes = json.loads(data)  # damaged bytes raise, as pybind may
        if stamp != f"{self.trt.__version__} {self.trt.cuda.capability}":
            return False
        self.shapes = {tuple(shape) for shape in shapes}
        return True


class FakeContext:
    def __init__(self, engine: FakeEngine, cache: FakeRuntimeCache | None) -> None:
        self.engine = engine
        self.trt = engine.trt
        self.cuda = engine.trt.cuda
        self._cache = cache
        self._profile = 0
        self._shape: tuple[int, ...] | None = None
        self._scratch = (0, 0)
        self._addresses: dict[str, int] = {}
        self._warm = False
        self.trt.contexts += 1

    def __del__(self) -> None:
        self.trt.contexts -= 1
        if not self.cuda.stack:
            self.cuda.faults.append("an execution context was destroyed without a current context")

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self._profile = number
        self._shape = None
        self.trt.profiles_used.append(number)
        return 0 <= number < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.trt.refuses("set_input_shape", self.engine.logger):
            return False
        least, _, most = self.engine.header["profiles"][self._profile]
        size = shape[1:3]
        fits = all(low <= side <= high for low, side, high in zip(least, size, most, strict=True))
        if name != self.engine.header["input"] or shape[0] != 1 or shape[3] != 3 or not fits:
            self.engine.logger.log(Severity.ERROR, f"setInputShape: {shape} is not in the profile")
            return False
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._shape is None:
            return (-1, -1, -1, 3)
        scale = 1 if name == self.engine.header["input"] else self.engine.header["scale"]
        return (1, self._shape[1] * scale, self._shape[2] * scale, 3)

    def update_device_memory_size_for_shapes(self) -> int:
        if self._shape is None or self.trt.refuses("device_memory_size", self.engine.logger):
            return 0
        return self._needs()

    def _needs(self) -> int:
        assert self._shape is not None
        return self._shape[1] * self._shape[2] * self.trt.bytes_per_pixel

    def set_device_memory(self, address: int, size: int) -> None:
        if self.trt.refuses("set_device_memory", self.engine.logger):
            return
        if size < self._needs() or address % 256:
            raise MisuseError("the working memory is too small or not aligned")
        self._scratch = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.trt.capturable and self._warm

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            self.engine.logger.log(Severity.ERROR, "setTensorAddress: not aligned")
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        logger, header, shape = self.engine.logger, self.engine.header, self._shape
        if self.trt.refuses("execute_async_v3", logger):
            return False
        if shape is None or len(self._addresses) < 2 or not self._scratch[0] or stream < 3:
            raise MisuseError("a context was run before it was set up, or on a default stream")
        capturing = self.cuda.streams[stream].recording is not None
        if capturing and (self.trt.capture_fails or not self._warm):
            self.cuda.streams[stream].invalidated = True
            logger.log(Severity.ERROR, "operation not permitted when stream is capturing")
            return False
        if not capturing:
            self.trt.executions.append(shape)
            self._compile(shape)
        self._warm = True
        given, made = self._addresses[header["input"]], self._addresses[header["output"]]
        result_shape, scratch = self.get_tensor_shape(header["output"]), self._scratch
        model, trt = self.engine.model, self.trt

        def work() -> None:
            trt.cuda.view(*scratch)
            source = trt.cuda.view(given, int(np.prod(shape))).reshape(shape)
            result = model.run([header["output"]], {header["input"]: source})[0]
            target = trt.cuda.view(made, int(np.prod(result_shape)))
            np.copyto(target, result.reshape(-1))
            trt.cuda.clock += trt.milliseconds
            trt.computed.append(shape)

        self.cuda.enqueue(stream, work)
        return True

    def _compile(self, shape: tuple[int, ...]) -> None:
        if self._cache is not None and shape not in self._cache.shapes:
            self._cache.shapes.add(shape)
            self.trt.compiled.append(shape)


@dataclass
class FakeInstallation:
    """An installed library; see :class:`topcoat.runtime.backends.tensorrt.Installation`."""

    module: Any = None
    error: ImportError | OSError | None = None
    cuda: tuple[int, int] = (13, 0)
    loads: int = 0

    def present(self) -> bool:
        return self.module is not None or self.error is not None

    def load(self) -> Any:  # noqa: ANN401 - as the protocol
        self.loads += 1
        if self.error is not None:
            raise self.error
        return self.module

    def least_cuda(self) -> tuple[int, int]:
        return self.cuda


class Rig:
    """A fake driver, a fake library on it, and the backend that runs them."""

    def __init__(
        self,
        name: str = "tensorrt-rtx",
        *,
        cuda: FakeCuda | None = None,
        settings: EngineSettings | None = None,
        driver_version: str | None = "580.95.05",
        **library: Any,  # noqa: ANN401 - FakeTensorRt's
    ) -> None:
        self.cuda = cuda or FakeCuda()
        self.trt = FakeTensorRt(self.cuda, name=name, **library)
        self.installation = FakeInstallation(self.trt)
        self.driver = Driver(self.cuda, lambda: driver_version)
        self.backend = TensorRt(
            name,
            settings=settings or EngineSettings(cache_folder=None),
            driver=lambda: self.driver,
            installation=self.installation,
        )

    def session(self, bundle: Path) -> TensorRtSession:
        """Load the bundle's engine."""
        manifest = tr.read_manifest(bundle)
        variant = next(v for v in manifest.variants if v.kind == self.backend.name)
        data = (bundle / variant.file).read_bytes()
        return self.backend.load(variant, data, compute=variant.precision, threads=1)

    def open(
        self,
        bundle: Path,
        others: tuple[Backend, ...] = (),
        **how: Any,  # noqa: ANN401 - as topcoat.runtime.open
    ) -> tr.Model:
        """Open a bundle as ``topcoat.runtime.open`` does, on the fakes."""
        manifest = tr.read_manifest(bundle)
        wishes = {"backend", "precision", "allow_unverified", "variant", "fallback"}
        wish = {"backend": "auto", "precision": None, "allow_unverified": False}
        wish |= {key: how.pop(key) for key in wishes & set(how)}
        explanation, engines = choose(manifest, (self.backend, *others), threads=1, **wish)  # type: ignore[arg-type]
        return tr.Model(manifest, explanation, engines, **how)

    def check(self) -> None:
        """Raise what a real driver would have crashed on."""
        assert self.cuda.faults == []


def engine_bytes(
    model: bytes,
    *,
    version: str = VERSIONS["tensorrt-rtx"],
    targets: tuple[str, ...] = ("sm89",),
    profiles: tuple[Sizes, ...] = (ANY,),
    scale: int = 1,
    ports: tuple[str, str] = ("frame", "styled"),
    dtype: str = "UINT8",
) -> bytes:
    """Return an engine that the fake library runs: a header, and the ONNX model."""
    header = {
        "version": version,
        "targets": targets,
        "profiles": profiles,
        "scale": scale,
        "input": ports[0],
        "output": ports[1],
        "dtype": dtype,
        "bytes": len(model),
    }
    return _MAGIC + json.dumps(header).encode() + b"\n" + model


def make_engine_bundle(
    source: Path,
    folder: Path,
    *,
    kind: str = "tensorrt-rtx",
    precision: str = "fp32",
    version: str | None = None,
    targets: tuple[str, ...] = ("sm89",),
    driver: str | None = None,
    platform: str | None = None,
    profiles: tuple[Sizes, ...] = (ANY,),
    verified_on: str | None = "sm89",
    engine: Callable[[bytes], bytes] = lambda data: data,
    built: dict[str, Any] | None = None,
    only_engine: bool = False,
) -> Path:
    """Copy a test bundle and add an engine, made of its fp32 model, as a further variant.

    Args:
        source: a bundle of tests/runtime/data.
        folder: where the copy goes; its name stays.
        kind: "tensorrt-rtx" or "tensorrt".
        precision: what the manifest says; the fake computes in fp32 anyway.
        version: of the library that built it; None takes the one that the fake has.
        targets: GPU generations that it was built for.
        driver: major version of the driver that it was built with.
        platform: the system that it is for; None for any.
        profiles: the frame sizes that it takes.
        verified_on: the device of a passed parity row, or None for no row.
        engine: changes the engine's bytes before they are written, e.g. to damage them.
        built: what the engine itself says differently from the manifest; see engine_bytes().
        only_engine: leave the ONNX models out.

    Returns:
        The new bundle.
    """
    bundle = Path(shutil.copytree(source, folder / source.name))
    manifest = json.loads((bundle / "manifest.json").read_text())
    first = manifest["variants"][0]
    ports = (first["input"]["name"], first["output"]["name"])
    version = version or VERSIONS[kind]
    described: dict[str, Any] = {
        "version": version,
        "targets": targets,
        "profiles": profiles,
        "scale": manifest["scale"],
        "ports": ports,
    }
    data = engine(
        engine_bytes((bundle / first["file"]).read_bytes(), **(described | (built or {})))
    )
    name = f"{kind}.{precision}.engine"
    (bundle / name).write_bytes(data)
    row = {"backend": kind, "compute": precision, "passed": True, "device": verified_on}
    variant = {
        "file": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "kind": kind,
        "precision": precision,
        "opset": None,
        "input": first["input"],
        "output": first["output"],
        "parity": [row] if verified_on else [],
        "engine": {
            "library": kind.replace("-", "_"),
            "version": version,
            "targets": list(targets),
            "driver": driver,
            **({} if platform is None else {"platform": platform}),
            "profiles": [
                dict(zip(("min", "opt", "max"), sizes, strict=True)) for sizes in profiles
            ],
            "key": hashlib.sha256(b"key of " + data).hexdigest(),
        },
    }
    manifest["variants"] = [variant] if only_engine else [*manifest["variants"], variant]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def _header(data: bytes) -> dict[str, Any] | None:
    if not data.startswith(_MAGIC):
        return None
    line, _, model = data[len(_MAGIC) :].partition(b"\n")
    if not line.endswith(b"}"):
        return None
    header: dict[str, Any] = json.loads(line)
    return header if len(model) == header["bytes"] else None


def _session(model: bytes) -> Any:  # noqa: ANN401 - an InferenceSession
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
