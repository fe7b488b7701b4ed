"""One engine of a TensorRT library, loaded and compared with its manifest."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from topcoat.runtime._errors import (
    BackendError,
    DeviceLostError,
    DeviceMemoryError,
    FrameOutsideProfileError,
    TopcoatError,
)
from topcoat.runtime.backends._cuda import Context, Device, Stream
from topcoat.runtime.backends._kernel_cache import KernelCache, default_cache_folder
from topcoat.runtime.bundle import EngineInfo, Profile, Variant

Specialisation = Literal["eager", "lazy", "none"]

_MESSAGES_KEPT = 8
"""Errors of the library that one exception quotes: every layer reports the same cause."""

_log = logging.getLogger("topcoat.runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How engines are run; none of it changes what they compute."""

    use_graph: bool = True
    """Launch a frame's kernels in one call instead of one by one, which costs the host time."""
    specialisation: Specialisation = "eager"
    """When TensorRT for RTX compiles kernels for a new frame size: before its first frame
    ("eager"), beside its first frames, which run on slower ones ("lazy"), or never ("none")."""
    cache_folder: Path | None = field(default_factory=default_cache_folder)
    """Where TensorRT for RTX keeps compiled kernels between runs; None: nowhere."""
    shapes_kept: int = 4
    """Frame sizes whose buffers and working memory stay on the GPU, at least 1."""

    def __post_init__(self) -> None:
        if self.specialisation not in {"eager", "lazy", "none"}:
            raise BackendError(
                f"specialisation is {self.specialisation!r}, wanted eager, lazy or none"
            )
        if self.shapes_kept < 1:
            raise BackendError(f"shapes_kept is {self.shapes_kept}, wanted at least 1")


class Engine:
    """An engine, its stream, and what its library says when something fails.

    The context must be current whenever a method is called, and when the engine is made.

    Args:
        name: the backend's name, for errors.
        module: ``tensorrt`` or ``tensorrt_rtx``.
        context: of the GPU that it shall run on.
        variant: what the manifest says about it.
        info: likewise.
        model: the built engine.
        settings: how it is run.

    Raises:
        BackendError: the library refuses it, or it is not what the manifest says.
        DeviceMemoryError: the GPU has too little free memory for it.
    """

    def __init__(
        self,
        name: str,
        module: Any,  # noqa: ANN401 - a module without types
        context: Context,
        variant: Variant,
        info: EngineInfo,
        model: bytes,
        settings: EngineSettings,
    ) -> None:
        self.name = name
        self.variant = variant
        self.context = context
        self._trt = module
        self._profiles = info.profiles
        self._messages = _new_logger(module)
        self._kernels: KernelCache | None = None
        self._runtime: Any = None
        self._config: Any = None
        self._engine: Any = None
        self.stream = Stream(context.driver)
        try:
            with self.library("did not start"):
                self._runtime = module.Runtime(self._messages)
            with self.library(f"cannot load {variant.file}"):
                self._engine = self._deserialize(model)
            with self.library(f"cannot be asked about {variant.file}"):
                self._check_tensors()
            if name == "tensorrt-rtx":
                with self.library(f"does not take its settings for {variant.file}"):
                    self._configure(info, settings)
        except BaseException:
            self.close()
            raise
        self.captures_itself = name == "tensorrt-rtx" and settings.specialisation == "lazy"
        """Whether graphs are left to the library: with "lazy", one of ours would keep the slow
        kernels of the first frames for ever."""

    def profile_for(self, height: int, width: int) -> int:
        """Return the number of the smallest profile that holds frames of this size.

        Raises:
            FrameOutsideProfileError: none does; the text names them.
        """
        holding = [
            (profile.max[0] * profile.max[1], number)
            for number, profile in enumerate(self._profiles)
            if profile.holds(height, width)
        ]
        if not holding:
            raise FrameOutsideProfileError(
                f"{self.variant.file} was built for frames of"
                f" {', '.join(map(str, self._profiles))} (width x height), not of {width}x{height};"
                " build an engine with a profile that holds it, or use another backend"
            )
        return min(holding)[1]

    def new_execution(self, profile: int, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
        """Return an execution context for frames of one shape, and the shape of their results.

        It has no working memory yet.

        Args:
            profile: the number of the profile.
            shape: (1, H, W, C).
        """
        how = self._config
        if how is None:
            how = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self.library("made no execution context"):
            execution = self._engine.create_execution_context(how)
        if execution is None:
            raise self.failure("made no execution context")
        try:
            with self.library(f"refused profile {self._profiles[profile]}"):
                if not execution.set_optimization_profile_async(profile, self.stream.handle):
                    raise self.failure(f"refused profile {self._profiles[profile]}")
            self.stream.synchronize()
            with self.library(f"refused frames of shape {shape}"):
                if not execution.set_input_shape(self.variant.input.name, shape):
                    raise self.failure(f"refused frames of shape {shape}")
                made = tuple(execution.get_tensor_shape(self.variant.output.name))
            if len(made) != 4 or made[0] != 1 or min(made) < 1:
                raise self.failure(f"makes {made} of a frame of shape {shape}")
        except BaseException:
            # The exception keeps this frame: its context would outlive the engine.
            execution = None
            raise
        return execution, made

    def library(self, what: str, *, silent: bool = False) -> AbstractContextManager[None]:
        """Make whatever the library raises in the block an error of ours.

        Its bindings raise several built-ins, and a ``TypeError`` where something could not be made.

        Args:
            what: what it then failed at, as the error's text goes on after its name.
            silent: whether the block calls what tells of a failure by its log alone, so that an
                error in there is one.

        Raises:
            BackendError: it failed. A DeviceMemoryError or DeviceLostError where that is why.
        """
        if silent:
            self._messages.drain()  # what was said of earlier matters
        return _Guard(self, what, self._messages.errors if silent else ())

    def failure(self, what: str, error: Exception | None = None) -> BackendError:
        """Return the error for something that the library refused, with what it logged.

        Args:
            what: what that was.
            error: what it raised, if it did.
        """
        raised = "" if error is None else _one_line(str(error)) or type(error).__name__
        said = "; ".join(filter(None, (self._messages.drain(), raised)))
        text = f"{self.name} {what}{': ' + said if said else ''}"
        # The library reports the driver's errors as text; the driver still knows which it was.
        driver = self.context.driver
        code = driver.attempt("cuStreamSynchronize", self.stream.handle)
        if code and isinstance(lost := driver.error(code, "a frame"), DeviceLostError):
            return DeviceLostError(f"{lost}; {said}" if said else str(lost))
        if isinstance(error, MemoryError) or _means_out_of_memory(said):
            return DeviceMemoryError(f"{text}; close other programs that use the GPU")
        return BackendError(f"{text}; export the bundle again or choose another backend")

    def save_kernels(self) -> None:
        """Keep what was compiled on this GPU for the next run of a program."""
        if self._kernels is not None:
            self._kernels.save()

    def close(self) -> None:
        """Free it, in the order in which it hangs together. Execution contexts must be gone."""
        self._kernels = None
        self._config = None
        self._engine = None
        self._runtime = None
        self.stream.close()

    def _deserialize(self, model: bytes) -> Any:  # noqa: ANN401 - an ICudaEngine
        trt, device = self._trt, self.context.device
        refused = f"{self.name} cannot load {self.variant.file}"
        advice = "export the bundle again on this machine, or choose another backend"
        if self.name == "tensorrt-rtx":
            validity, bits = self._runtime.get_engine_validity(model)
            if validity == trt.EngineValidity.INVALID:
                reasons = _reasons(trt, int(bits), device) or self._messages.drain()
                raise BackendError(f"{refused}: {reasons or 'it gives no reason'}; {advice}")
            if validity == trt.EngineValidity.SUBOPTIMAL:
                _log.warning(
                    "%s: %s was not built for the %s and may be slow on it",
                    self.name,
                    self.variant.file,
                    device.name,
                )
        engine = self._runtime.deserialize_cuda_engine(model)
        if engine is None:
            said = self._messages.drain() or "it gives no reason"
            if _means_out_of_memory(said):
                raise DeviceMemoryError(f"{refused}: {said}; close other programs that use the GPU")
            raise BackendError(f"{refused}: {said}; {advice}")
        return engine

    def _check_tensors(self) -> None:
        """Compare the engine's input, output and profiles with the manifest."""
        # No local name for the engine: an exception would keep it beyond close().
        reads, variant = self._trt.TensorIOMode.INPUT, self.variant
        found = []
        for number in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(number)
            role = "input" if self._engine.get_tensor_mode(name) == reads else "output"
            kind = self._engine.get_tensor_dtype(name)
            layout = self._engine.get_tensor_format(name)
            found.append((role, name, kind.name, layout.name))
        wanted = [("input", variant.input.name), ("output", variant.output.name)]
        if sorted(found) != [(*port, "UINT8", "LINEAR") for port in wanted]:
            came = ", ".join(f"{role} {name!r} of {kind} {how}" for role, name, kind, how in found)
            raise BackendError(
                f"{variant.file} has {came}; manifest.json says {variant.input.name!r} and"
                f" {variant.output.name!r} of uint8; export the bundle again"
            )
        built = []
        for number in range(self._engine.num_optimization_profiles):
            shapes = self._engine.get_tensor_profile_shape(variant.input.name, number)
            least, best, most = ((int(shape[1]), int(shape[2])) for shape in shapes)
            built.append(Profile(min=least, opt=best, max=most))
        if tuple(built) != self._profiles:
            said = ", ".join(map(str, self._profiles))
            raise BackendError(
                f"{variant.file} was built for frames of {', '.join(map(str, built))},"
                f" manifest.json says {said}; export the bundle again"
            )

    def _configure(self, info: EngineInfo, settings: EngineSettings) -> None:
        """Set how TensorRT for RTX is to run the engine."""
        trt = self._trt
        # No local name for it: an exception would keep it beyond close().
        self._config = self._engine.create_runtime_config()
        if self._config is None:
            raise self.failure("made no runtime configuration")
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._config.dynamic_shapes_kernel_specialization_strategy = getattr(
            trt.DynamicShapesKernelSpecializationStrategy, settings.specialisation.upper()
        )
        lazy = settings.specialisation == "lazy"
        self._config.cuda_graph_strategy = (
            trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if lazy and settings.use_graph
            else trt.CudaGraphStrategy.DISABLED
        )
        kernels = None if settings.cache_folder is None else self._config.create_runtime_cache()
        if settings.cache_folder is not None and kernels is not None:  # slower without, no worse
            self._kernels = KernelCache(
                kernels,
                settings.cache_folder,
                info.key,
                self.context.device,
                str(trt.__version__),
            )
            if not self._kernels.read():
                self._messages.drain()  # what is compiled anew is no error
            self._config.set_runtime_cache(self._kernels.cache)


class _Guard(AbstractContextManager[None]):
    """See :meth:`Engine.library`.

    Args:
        engine: whose library may fail.
        what: see there.
        errors: what is logged in the block and counts as a failure.
    """

    def __init__(self, engine: Engine, what: str, errors: Sequence[str]) -> None:
        self._engine = engine
        self._what = what
        self._errors = errors

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The frames of the traceback would keep the library's objects beyond close().
        del trace
        if isinstance(error, Exception) and not isinstance(error, TopcoatError):
            raise self._engine.failure(self._what, error) from error.with_traceback(None)
        if error is None and self._errors:
            raise self._engine.failure(self._what)


def _new_logger(module: Any) -> Any:  # noqa: ANN401 - a class made from a module without types
    """Return a logger that keeps errors for the text of the exception that follows."""

    class Messages(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - an enumeration
            if severity in {module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR}:
                if len(self.errors) < _MESSAGES_KEPT:
                    self.errors.append(_one_line(message))
            elif severity == module.ILogger.WARNING:
                _log.debug("%s: %s", module.__name__, message)

        def drain(self) -> str:
            """Return the errors since the last call, in one line."""
            errors, self.errors = self.errors, []
            return "; ".join(dict.fromkeys(errors))

    return Messages()


def _reasons(module: Any, bits: int, device: Device) -> str:  # noqa: ANN401 - no types
    """Return what TensorRT for RTX holds against an engine, in words."""
    words = {
        "VERSION_MISMATCH": "another version of TensorRT-RTX built it",
        "UNSUPPORTED_CC": f"it was not built for the {device.name} ({device.sm})",
        "OLD_CUDA_DRIVER": f"the driver ({device.driver or 'unknown version'}) is too old for it",
        "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
        "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
        "MALFORMED_ENGINE": "it is damaged, or no engine of this library",
        "CUDA_ERROR": "the driver could not be asked",
    }
    members = module.EngineInvalidityDiagnostics.__members__
    found = [name for name, member in members.items() if bits & int(member.value)]
    return ", and ".join(words.get(name, name) for name in found)


def _means_out_of_memory(said: str) -> bool:
    return re.search(r"out ?of ?memory|MemoryAllocation", said, re.IGNORECASE) is not None


def _one_line(text: str) -> str:
    return " ".join(text.split())
