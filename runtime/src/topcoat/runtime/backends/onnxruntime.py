"""ONNX Runtime on the CPU: the embedded default, present wherever the runtime is installed.

Its GPU providers are siblings of this module, :mod:`onnxruntime_cuda` and
:mod:`onnxruntime_webgpu`, which share the functions at its end.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError
from topcoat.runtime.backends import Compute
from topcoat.runtime.backends._device_errors import first_line
from topcoat.runtime.bundle import Variant
from topcoat.runtime.frames import Frame


class OnnxRuntimeCpu:
    """ONNX Runtime's CPU execution provider."""

    name = "onnxruntime-cpu"

    def missing(self) -> str | None:
        """Return why it cannot work here, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed; pip install onnxruntime"
        return None

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        """Return the model's own precision: this provider has no other arithmetic to offer."""
        if variant.kind != "onnx":
            return ()
        if variant.precision == "bf16":
            return (
                Compute(
                    compute="bf16",
                    obstacle="ONNX Runtime has no bf16 convolution on the CPU; use openvino-cpu",
                ),
            )
        if variant.precision == "fp16":
            return (
                Compute(
                    compute="fp16",
                    on_request="fp16 is not faster on a CPU (weights are widened to fp32);"
                    " only used when asked for with precision fp16",
                ),
            )
        return (Compute(compute=variant.precision),)

    def version(self) -> str:
        """Return onnxruntime's version."""
        return str(import_onnxruntime().__version__)

    def start(self) -> None:
        """Import onnxruntime."""
        import_onnxruntime()

    def load(
        self, variant: Variant, model: bytes, *, compute: str, threads: int
    ) -> OnnxRuntimeSession:
        """Load the model; see :class:`topcoat.runtime.backends.Backend`."""
        check_compute(self.name, variant, compute)
        return OnnxRuntimeSession(variant, model, threads=threads)


class OnnxRuntimeSession:
    """One InferenceSession with input and output bound to the caller's memory."""

    def __init__(self, variant: Variant, model: bytes, *, threads: int) -> None:
        ort = import_onnxruntime()
        options = session_options(ort)
        options.intra_op_num_threads = threads
        # Spinning workers keep cores busy between frames, which starves the host application.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only: a library does not write to stderr
        try:
            session = ort.InferenceSession(
                model, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base but Exception
            raise BackendError(
                f"onnxruntime-cpu cannot load {variant.file}: {first_line(error)};"
                " export the bundle again or choose another backend"
            ) from error
        check_session(session, "onnxruntime-cpu", "CPUExecutionProvider", variant)
        self._input = variant.input.name
        self._output = variant.output.name
        self._session: Any = session
        self._binding: Any = session.io_binding()
        self._bound: tuple[object, ...] = ()

    def run(self, source: Frame, result: Frame) -> None:
        """Run the model straight from ``source`` into ``result``; no copy is made here."""
        # Binding costs more than comparing: frames usually come in the same buffers.
        bound = (
            source.__array_interface__["data"][0],
            source.shape,
            result.__array_interface__["data"][0],
            result.shape,
        )
        try:
            if bound != self._bound:
                self._bound = ()
                self._binding.bind_input(self._input, "cpu", 0, np.uint8, source.shape, bound[0])
                self._binding.bind_output(self._output, "cpu", 0, np.uint8, result.shape, bound[2])
                self._bound = bound
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its exceptions share no base but Exception
            self._bound = ()
            raise BackendError(
                f"onnxruntime-cpu failed on a frame of shape {source.shape}: {first_line(error)}"
            ) from error

    def close(self) -> None:
        """Free the session."""
        self._binding = self._session = None
        self._bound = ()


def import_onnxruntime() -> Any:  # noqa: ANN401 - the package has no types
    """Import onnxruntime with its telemetry off.

    Wheels from 1.29 on send usage events and keep a database in the user's cache folder; only this
    variable, set before the first import, stops both. A host that wants them sets it to "0" itself.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def session_options(ort: Any) -> Any:  # noqa: ANN401 - the package has no types
    """Return the options that all providers share: every optimisation, one frame at a time."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    return options


def check_compute(backend: str, variant: Variant, compute: str) -> None:
    """Refuse to run a model at another precision than its own, which ONNX Runtime cannot do.

    Raises:
        BackendError: that was asked for.
    """
    if compute != variant.precision:
        raise BackendError(
            f"{backend} runs {variant.file} at {variant.precision}, not at {compute}"
        )


def check_session(session: Any, backend: str, provider: str, variant: Variant) -> None:  # noqa: ANN401
    """Compare what was loaded with what was wanted: ONNX Runtime falls back to the CPU in silence.

    Raises:
        BackendError: it runs on another provider, or its ports are not those of the manifest.
    """
    chosen = session.get_providers()[0]
    if chosen != provider:
        raise BackendError(f"{backend} was asked for, but ONNX Runtime chose {chosen}; report this")
    came = {
        "input": [(p.name, p.type) for p in session.get_inputs()],
        "output": [(p.name, p.type) for p in session.get_outputs()],
    }
    for role, name in (("input", variant.input.name), ("output", variant.output.name)):
        if came[role] != [(name, "tensor(uint8)")]:
            raise BackendError(
                f"{variant.file} has {role} {came[role]}, manifest.json says {name!r} of uint8;"
                " export the bundle again"
            )
