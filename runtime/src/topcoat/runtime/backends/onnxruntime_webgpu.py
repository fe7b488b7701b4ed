"""ONNX Runtime on any vendor's GPU, through the WebGPU plug-in (Vulkan, Direct3D 12 or Metal).

It is young, so "auto" leaves it out until its pictures were compared with the network's on the very
GPU: see ``topcoat verify``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError, BackendUnavailableError
from topcoat.runtime.backends import Compute
from topcoat.runtime.backends._device_errors import device_error, first_line
from topcoat.runtime.backends.onnxruntime import (
    check_compute,
    check_session,
    import_onnxruntime,
    session_options,
)
from topcoat.runtime.bundle import Variant
from topcoat.runtime.frames import Frame

_PROVIDER = "WebGpuExecutionProvider"
_NAME = "onnxruntime-webgpu"
_PACKAGE = "onnxruntime_ep_webgpu"
_REGISTRATION = "topcoat.webgpu"

_ON_THE_CPU = frozenset({"Cast", "Clip", "Round", "Transpose"})
"""Operators that may run on the CPU: the conversion from and to bytes at both ends. Version 0.4 of
the plug-in has no kernel for Round, and earlier ones none for uint8."""


def plugin_library() -> str | None:
    """Return the path of the plug-in's library, or None if its package is not installed."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return None
    return str(importlib.import_module(_PACKAGE).get_library_path())


class OnnxRuntimeWebGpu:
    """ONNX Runtime's WebGPU plug-in execution provider.

    Args:
        ort: returns the module ``onnxruntime``.
        library: returns the path of the plug-in's library, or None if it is not installed.
    """

    name = _NAME

    def __init__(
        self,
        ort: Callable[[], Any] = import_onnxruntime,
        library: Callable[[], str | None] = plugin_library,
    ) -> None:
        self._ort = ort
        self._library = library
        self._devices: list[Any] = []

    def missing(self) -> str | None:
        """Return why it cannot work here, or None."""
        try:
            library = self._library()
        except Exception as error:  # the package is there, its library is not
            return f"the WebGPU plug-in is damaged: {first_line(error)}; install it again"
        if library is None:
            return "onnxruntime-ep-webgpu is not installed; pip install 'topcoat-runtime[webgpu]'"
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed; pip install onnxruntime"
        ort = self._ort()
        if not hasattr(ort, "get_ep_devices"):
            return (
                f"onnxruntime {ort.__version__} takes no plug-ins; pip install"
                " 'onnxruntime>=1.24.4'"
            )
        self._devices = _devices(ort)
        if not self._devices:
            try:
                ort.register_execution_provider_library(_REGISTRATION, library)
            except Exception as error:  # its exceptions share no base but Exception
                if "already registered" not in str(error):
                    return f"the WebGPU plug-in cannot be loaded: {first_line(error)}"
            self._devices = _devices(ort)
        if not self._devices:
            return (
                "the WebGPU plug-in finds no GPU; on Linux it needs libvulkan.so.1 and a Vulkan"
                " driver, on Windows a current graphics driver"
            )
        return None

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        """Return the model's own precision; fp16 comes before fp32."""
        if variant.kind != "onnx":
            return ()
        obstacle = None
        if variant.precision not in {"fp16", "fp32"}:
            obstacle = f"WebGPU has no {variant.precision} arithmetic"
        adapter = self._adapter()
        row = variant.parity_row(self.name, variant.precision, adapter)
        proved = row is not None and row.passed and row.device == adapter
        return (
            Compute(
                compute=variant.precision,
                obstacle=obstacle,
                on_request=None
                if proved
                else f"only used when named, until `topcoat verify` has passed on this GPU"
                f" ({adapter})",
                requested_by="backend",
                device=adapter,
                rank=0 if variant.precision == "fp16" else 1,
            ),
        )

    def version(self) -> str:
        """Return the plug-in's version and onnxruntime's, which it runs in."""
        import importlib.metadata

        plugin = importlib.metadata.version("onnxruntime-ep-webgpu")
        return f"{plugin} (onnxruntime {self._ort().__version__})"

    def start(self) -> None:
        """Import onnxruntime and register the plug-in."""
        if (missing := self.missing()) is not None:
            raise BackendUnavailableError(f"{self.name} cannot start: {missing}")

    def load(
        self, variant: Variant, model: bytes, *, compute: str, threads: int
    ) -> OnnxRuntimeWebGpuSession:
        """Load the model; see :class:`topcoat.runtime.backends.Backend`."""
        check_compute(self.name, variant, compute)
        if not self._devices:
            self.start()
        return OnnxRuntimeWebGpuSession(self._ort(), self._devices[:1], variant, model)

    def _adapter(self) -> str:
        """Return which GPUs there are, as PCI vendor and device.

        All of them, for the plug-in is handed one device and chooses the GPU by itself.
        """
        found = [entry.device for entry in self._devices]
        ids = {f"{d.type.name.lower()}-{d.vendor_id:04x}:{d.device_id:04x}" for d in found}
        return "+".join(sorted(ids))


class OnnxRuntimeWebGpuSession:
    """One InferenceSession; its input is copied to the GPU frame by frame."""

    def __init__(self, ort: Any, devices: list[Any], variant: Variant, model: bytes) -> None:  # noqa: ANN401
        options = session_options(ort)
        options.log_severity_level = 4  # what fails is raised, a library does not write to stderr
        options.add_provider_for_devices(devices, {})
        tells = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
        if tells:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            # With its fallback it would print what failed and try the CPU.
            session = ort.InferenceSession(model, sess_options=options, enable_fallback=False)
        except Exception as error:  # its exceptions share no base but Exception
            raise device_error(f"{_NAME} cannot load {variant.file}", error) from error
        check_session(session, _NAME, _PROVIDER, variant)
        if tells:
            _check_assignment(session, variant)
        self._input = variant.input.name
        self._output = variant.output.name
        self._session: Any = session
        self._binding: Any = session.io_binding()

    def run(self, source: Frame, result: Frame) -> None:
        """Copy ``source`` to the GPU, run the model, copy what it made into ``result``."""
        read = source.__array_interface__["data"][0]
        write = result.__array_interface__["data"][0]
        try:
            # Every time, also for the same buffer: binding is what copies it to the GPU.
            self._binding.bind_input(self._input, "cpu", 0, np.uint8, source.shape, read)
            self._binding.bind_output(self._output, "cpu", 0, np.uint8, result.shape, write)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its exceptions share no base but Exception
            raise device_error(
                f"{_NAME} failed on a frame of shape {source.shape}", error
            ) from error

    def close(self) -> None:
        """Free the session and its device memory."""
        self._binding = self._session = None


def _devices(ort: Any) -> list[Any]:  # noqa: ANN401 - the package has no types
    return [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]


def _check_assignment(session: Any, variant: Variant) -> None:  # noqa: ANN401
    """Refuse a session of which more than the conversion of bytes would run on the CPU.

    Raises:
        BackendError: it would; the text names the operators.
    """
    astray = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != _PROVIDER
        for node in part.get_nodes()
    }
    if astray := astray - _ON_THE_CPU:
        raise BackendError(
            f"{_NAME} would run {', '.join(sorted(astray))} of {variant.file} on the CPU; install a"
            " newer onnxruntime-ep-webgpu or choose another backend"
        )
