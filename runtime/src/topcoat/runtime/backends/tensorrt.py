"""Built engines on NVIDIA GPUs: TensorRT for RTX, which games' cards run, and full TensorRT.

One implementation drives both libraries. Frames pass through pinned memory to buffers on the GPU
and back on one stream; from the second frame of a size on, the engine's work is launched as one
CUDA graph. Frames that are on the GPU already stay there (:meth:`TensorRtSession.run_device`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from topcoat.runtime._errors import BackendError, BackendUnavailableError
from topcoat.runtime.backends import Compute
from topcoat.runtime.backends._cuda import Context, Device, Driver, installed_driver, probe
from topcoat.runtime.backends._trt_engine import EngineSettings
from topcoat.runtime.backends._trt_session import StageTimes, TensorRtSession
from topcoat.runtime.bundle import EngineInfo, Variant, this_platform

__all__ = ["EngineSettings", "Installation", "StageTimes", "TensorRt", "TensorRtSession"]


class Installation(Protocol):
    """An installed TensorRT library, or a stand-in in tests."""

    def present(self) -> bool:
        """Return whether there is such a package, without importing it."""

    def load(self) -> Any:  # noqa: ANN401 - a module without types
        """Import it.

        Raises:
            ImportError, OSError: its shared libraries cannot be loaded.
        """

    def least_cuda(self) -> tuple[int, int]:
        """Return the oldest CUDA version that the driver must support for it."""


class _Installed:
    """The library as pip installed it."""

    def __init__(self, module: str) -> None:
        self._module = module

    def present(self) -> bool:
        return importlib.util.find_spec(self._module) is not None

    def load(self) -> Any:  # noqa: ANN401 - a module without types
        return importlib.import_module(self._module)

    def least_cuda(self) -> tuple[int, int]:
        # Nothing in the module tells; its distribution is named after the CUDA that it brings.
        for major in (13, 12):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                importlib.metadata.version(f"{self._module}_cu{major}")
                return (major, 0)
        return (12, 0)


@dataclass(frozen=True, slots=True)
class _Flavour:
    title: str
    module: str
    extra: str
    option: str
    """What ``export-engine --engine`` calls it."""
    least_version: tuple[int, int]


_FLAVOURS = {
    "tensorrt-rtx": _Flavour("TensorRT-RTX", "tensorrt_rtx", "rtx", "rtx", (1, 7)),
    "tensorrt": _Flavour("TensorRT", "tensorrt", "tensorrt", "tensorrt", (10, 12)),
}


class TensorRt:
    """TensorRT for RTX ("tensorrt-rtx") or full TensorRT ("tensorrt") on the first GPU.

    Args:
        name: which of the two; also the kind of a bundle's variants that it runs.
        settings: how to run engines; None takes the defaults.
        driver: returns NVIDIA's driver; None takes the installed one.
        installation: the library; None takes the installed one.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: EngineSettings | None = None,
        driver: Callable[[], Driver] | None = None,
        installation: Installation | None = None,
    ) -> None:
        self._flavour = _FLAVOURS[name]
        self._name = name
        self._settings = settings or EngineSettings()
        self._driver = driver or installed_driver
        self._installation = installation or _Installed(self._flavour.module)

    @property
    def name(self) -> str:
        """The name that parity rows, ``open`` and ``--backend`` use."""
        return self._name

    def missing(self) -> str | None:
        """Return why it cannot work here, or None.

        The driver is asked before the library is imported: without a driver, parts of TensorRT
        end the process.
        """
        flavour = self._flavour
        if not self._installation.present():
            return f"{flavour.module} is not installed; {self._pip()}"
        found = self._device()
        if isinstance(found, str):
            return found
        try:
            module = self._installation.load()
        except (ImportError, OSError) as error:  # the latter of a library that it loads itself
            return (
                f"{flavour.module} is installed, but its libraries cannot be loaded"
                f" ({_one_line(str(error))}); {self._pip()} on a machine that reaches NVIDIA's own"
                " package index"
            )
        if _numbers(module.__version__) < flavour.least_version:
            least = ".".join(map(str, flavour.least_version))
            return (
                f"{flavour.title} {module.__version__} is too old, wanted at least {least};"
                f" {self._pip()}"
            )
        return None

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        """Return the engine's own precision, with what stands against running it on this GPU."""
        if variant.kind != self._name or variant.engine is None:
            return ()
        device = self._device()
        if isinstance(device, str):  # whoever did not ask missing() first
            return (Compute(compute=variant.precision, obstacle=device),)
        obstacle = self._obstacle(variant, variant.engine, device)
        return (
            Compute(
                compute=variant.precision,
                obstacle=obstacle,
                device=device.sm,
                rank=1 if variant.precision == "fp32" else 0,
            ),
        )

    def version(self) -> str:
        """Return the library's version."""
        return str(self._load().__version__)

    def start(self) -> None:
        """Import the library and start the driver."""
        self._load()

    def load(
        self, variant: Variant, model: bytes, *, compute: str, threads: int
    ) -> TensorRtSession:
        """Load an engine; see :class:`topcoat.runtime.backends.Backend`. Needs no threads."""
        if variant.engine is None:
            raise BackendError(f"{self._name} runs built engines; {variant.file} is none")
        if compute != variant.precision:
            raise BackendError(
                f"{self._name} runs {variant.file} at {variant.precision}, not at {compute}"
            )
        module = self._load()
        device = self._device()
        assert isinstance(device, Device)  # _load() has raised otherwise
        if (obstacle := self._obstacle(variant, variant.engine, device)) is not None:
            raise BackendError(f"{self._name} cannot run {variant.file}: {obstacle}")
        context = Context(self._driver(), device)
        try:
            return TensorRtSession(
                self._name, module, context, variant, variant.engine, model, self._settings
            )
        except BaseException:
            context.close()
            raise

    def _device(self) -> Device | str:
        return probe(self._driver, least=self._installation.least_cuda())

    def _load(self) -> Any:  # noqa: ANN401 - a module without types
        if (reason := self.missing()) is not None:
            raise BackendUnavailableError(f"{self._name} cannot work here: {reason}")
        return self._installation.load()

    def _pip(self) -> str:
        return f"pip install 'topcoat-runtime[{self._flavour.extra}]'"

    def _obstacle(self, variant: Variant, engine: EngineInfo, device: Device) -> str | None:
        """Return why an engine cannot run here, as far as its description tells."""
        flavour = self._flavour
        again = (
            f"build it for this machine with `export-engine CHECKPOINT --engine {flavour.option}`"
        )
        here = self._installation.load().__version__
        if engine.version != here:
            return f"it was built by {flavour.title} {engine.version}, here is {here}; {again}"
        if engine.platform is not None and engine.platform != this_platform():
            return f"it was built for {engine.platform}, here is {this_platform()}; {again}"
        if variant.precision == "bf16" and _numbers(device.sm) < (80,):
            return (
                f"the {device.name} ({device.sm}) has no bf16 arithmetic, which begins with sm80;"
                " use an fp16 engine"
            )
        if device.sm not in engine.targets and not self._may_run_elsewhere(engine, device):
            return (
                f"it was built for {', '.join(engine.targets)}, the {device.name} is {device.sm};"
                f" {again}"
            )
        if self._name == "tensorrt" and engine.driver and device.driver_family:
            built = engine.driver.split(".", 1)[0]
            if built != device.driver_family:
                return (
                    f"it was built with driver {built}, here is {device.driver}; {again}, or"
                    f" install driver {built}"
                )
        return None

    def _may_run_elsewhere(self, engine: EngineInfo, device: Device) -> bool:
        """Return whether the library may accept an engine on a generation that it was not told.

        TensorRT for RTX keeps code that later generations can translate, so that it alone knows;
        it is asked when the engine is loaded. Full TensorRT's engines are bound to their own.
        """
        return self._name == "tensorrt-rtx" and _numbers(device.sm) > min(
            _numbers(target) for target in engine.targets
        )


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version or a generation: "1.7.1" -> (1, 7, 1), "sm89" -> (89,)."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
