"""ONNX Runtime on the CPU: the embedded default, present wherever the runtime is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError
from topcoat.runtime.backends import Compute
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
        return (Compute(compute="fp32"),)

    def version(self) -> str:
        """Return onnxruntime's version."""
        return importlib.metadata.version("onnxruntime")

    def start(self) -> None:
        """Import onnxruntime."""
        import_onnxruntime()

    def load(
        self, variant: Variant, model: bytes, *, compute: str, threads: int
    ) -> OnnxRuntimeSession:
        """Load the model; see :class:`topcoat.runtime.backends.Backend`."""
        if compute != variant.precision:
            raise BackendError(
                f"{self.name} runs {variant.file} at {variant.precision}, not at {compute}"
            )
        return OnnxRuntimeSession(variant, model, threads=threads)


class OnnxRuntimeSession:
    """One InferenceSession with input and output bound to the caller's memory."""

    def __init__(self, variant: Variant, model: bytes, *, threads: int) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning workers keep cores busy between frames, which starves the host application.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only: a library does not write to stderr
        try:
            session = ort.InferenceSession(
                model, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base but Exception
            raise BackendError(
                f"onnxruntime-cpu cannot load {variant.file}: {_first_line(error)};"
                " export the bundle again or choose another backend"
            ) from error
        provider = session.get_providers()[0]
        if provider != "CPUExecutionProvider":
            raise BackendError(
                f"onnxruntime-cpu was asked for, but ONNX Runtime chose {provider}; report this"
            )
        self._input = variant.input.name
        self._output = variant.output.name
        came = {
            "input": [(p.name, p.type) for p in session.get_inputs()],
            "output": [(p.name, p.type) for p in session.get_outputs()],
        }
        for role, name in (("input", self._input), ("output", self._output)):
            if came[role] != [(name, "tensor(uint8)")]:
                raise BackendError(
                    f"{variant.file} has {role} {came[role]}, manifest.json says {name!r} of uint8;"
                    " export the bundle again"
                )
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
                f"onnxruntime-cpu failed on a frame of shape {source.shape}: {_first_line(error)}"
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
