"""OpenVINO on the CPU and on Intel's GPUs: an extra.

On the CPU it is the faster one where the processor has bf16 arithmetic.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError, DeviceMemoryError
from topcoat.runtime.backends import Compute
from topcoat.runtime.backends._device_errors import device_error
from topcoat.runtime.bundle import Variant
from topcoat.runtime.frames import Frame

_PRECISION_HINTS = {
    "CPU": {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "f32"},
    "GPU": {"fp32": "f32", "fp16": "f16"},
}
"""Device -> compute -> OpenVINO's INFERENCE_PRECISION_HINT. On the CPU an fp16 file is widened:
arithmetic in f16 takes twice as long as in f32 on CPUs that lack it, and 'auto' precision would
pick bf16 unasked. What is quantised in an int8 file is computed in int8 whatever the hint says."""

_UNBOUND: tuple[int, tuple[int, ...]] = (0, ())

_SHAPES_KEPT = 4
"""Compiled frame shapes that a session keeps; each holds the weights and its activations."""


class OpenVino:
    """One of OpenVINO's device plugins.

    Args:
        device: "CPU" or "GPU", the first of Intel's GPUs.
        core: returns the ``openvino.Core``.
    """

    def __init__(self, device: str, core: Callable[[], Any] | None = None) -> None:
        self.name = f"openvino-{device.lower()}"
        self._device = device
        self._core = _core if core is None else core

    def missing(self) -> str | None:
        """Return why it cannot work here, or None."""
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed; pip install 'topcoat-runtime[openvino]'"
        if self._device == "CPU":
            return None
        found = self._core().available_devices
        if not any(name.split(".")[0] == self._device for name in found):
            return (
                f"OpenVINO finds no Intel GPU (it has {', '.join(found)}); where there is one,"
                " install its compute driver (on Linux intel-opencl-icd)"
            )
        return None

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        """Return the lower precision first: of two that work, less arithmetic is faster."""
        if variant.kind != "onnx":
            return ()
        return self._on_cpu(variant) if self._device == "CPU" else self._on_gpu(variant)

    def _on_cpu(self, variant: Variant) -> tuple[Compute, ...]:
        obstacle: str | None = None
        if "BF16" not in self._capabilities():
            obstacle = "this processor has no bf16 arithmetic (avx512_bf16 or amx_bf16)"
        bf16 = Compute(compute="bf16", obstacle=obstacle)
        if variant.precision == "bf16":
            return (bf16,)
        if variant.precision == "fp16":
            return (
                Compute(
                    compute="fp16",
                    on_request="fp16 is not faster on a CPU (weights are widened to fp32);"
                    " only used when asked for with precision fp16",
                ),
            )
        if variant.precision == "int8":
            return (Compute(compute="int8"),)
        return (bf16, Compute(compute="fp32"))

    def _on_gpu(self, variant: Variant) -> tuple[Compute, ...]:
        device = str(self._core().get_property(self._device, "DEVICE_ARCHITECTURE"))
        if variant.precision not in {"fp16", "fp32"}:
            why = f"{variant.precision} files are not run on Intel's GPUs"
            return (Compute(compute=variant.precision, obstacle=why, device=device),)
        obstacle = None
        if "FP16" not in self._capabilities():
            obstacle = "this GPU has no fp16 arithmetic"
        fp16 = Compute(compute="fp16", obstacle=obstacle, device=device)
        if variant.precision == "fp16":
            return (fp16,)
        return (fp16, Compute(compute="fp32", device=device, rank=1))

    def version(self) -> str:
        """Return openvino's version."""
        return importlib.metadata.version("openvino")

    def start(self) -> None:
        """Import openvino and start its plugin."""
        self._capabilities()

    def load(
        self, variant: Variant, model: bytes, *, compute: str, threads: int
    ) -> OpenVinoSession:
        """Load the model; see :class:`topcoat.runtime.backends.Backend`."""
        return OpenVinoSession(
            variant,
            model,
            core=self._core(),
            device=self._device,
            backend=self.name,
            compute=compute,
            threads=threads,
        )

    def _capabilities(self) -> tuple[str, ...]:
        return tuple(self._core().get_property(self._device, "OPTIMIZATION_CAPABILITIES"))


class OpenVinoSession:
    """One model, compiled once per frame shape; requests read and write the caller's memory.

    A model compiled for one shape runs 4 to 28 % faster than one compiled for any (measured on two
    networks at 360p and 720p), for about 50 ms at the first frame of a shape. A shape always runs
    the same way, so that what parity checks measured is what runs. The last few shapes are kept.
    """

    def __init__(
        self,
        variant: Variant,
        model: bytes,
        *,
        core: Any,  # noqa: ANN401 - an openvino.Core
        device: str,
        backend: str,
        compute: str,
        threads: int,
    ) -> None:
        ov = import_openvino()
        self._core = core
        self._device = device
        self._backend = backend
        if compute not in _PRECISION_HINTS[device]:
            raise BackendError(f"{backend} cannot compute {variant.file} at {compute}")
        self._hint = _PRECISION_HINTS[device][compute]
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._hint,
            "NUM_STREAMS": "1",
        }
        if device == "CPU":
            # Pinned threads fight with the host application's for the same cores.
            self._settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        try:
            self._model: Any = core.read_model(model, b"")
        except Exception as error:  # pybind turns its exceptions into several built-ins
            raise BackendError(
                f"{backend} cannot load {variant.file}: {_last_line(error)};"
                " export the bundle again or choose another backend"
            ) from error
        for role, ports, wanted in (
            ("input", self._model.inputs, variant.input.name),
            ("output", self._model.outputs, variant.output.name),
        ):
            came = [(p.get_names(), p.get_element_type().get_type_name()) for p in ports]
            if len(came) != 1 or wanted not in came[0][0] or came[0][1] != "u8":
                raise BackendError(
                    f"{variant.file} has {role} {came}, manifest.json says {wanted!r} of uint8;"
                    " export the bundle again"
                )
        self._tensor: Any = ov.Tensor
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._request: Any = None
        self._read: tuple[int, tuple[int, ...]] = _UNBOUND
        self._write: tuple[int, tuple[int, ...]] = _UNBOUND

    def run(self, source: Frame, result: Frame) -> None:
        """Run the model straight from ``source`` into ``result``; no copy is made here."""
        # Binding costs more than comparing: frames usually come in the same buffers.
        read = (source.__array_interface__["data"][0], source.shape)
        write = (result.__array_interface__["data"][0], result.shape)
        try:
            if (read, write) != (self._read, self._write):
                if read[1] != self._read[1]:
                    self._forget()
                    self._request = self._request_for(source.shape)
                if read != self._read:
                    self._request.set_input_tensor(self._alias(source))
                if write != self._write:
                    self._request.set_output_tensor(self._alias(result))
                self._read, self._write = read, write
            self._request.infer()
        except BackendError:
            self._forget()
            raise
        except Exception as error:  # pybind turns its exceptions into several built-ins
            self._forget()
            what = f"{self._backend} failed on a frame of shape {source.shape}"
            if self._device == "CPU":
                raise BackendError(f"{what}: {_last_line(error)}") from error
            problem = device_error(what, error, _last_line)
            if isinstance(problem, DeviceMemoryError):
                others = self._requests.keys() - {source.shape}
                self._request = None
                self._requests.clear()
                if others:  # they held memory, too: once more without them
                    self.run(source, result)
                    return
            raise problem from error

    def close(self) -> None:
        """Free the requests and the model."""
        self._model = self._request = None
        self._requests.clear()
        self._forget()

    def _forget(self) -> None:
        """Bind both arrays anew at the next frame."""
        self._read = self._write = _UNBOUND

    def _request_for(self, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - an openvino object
        if shape in self._requests:
            self._requests.move_to_end(shape)
            return self._requests[shape]
        while len(self._requests) >= _SHAPES_KEPT:
            self._requests.popitem(last=False)
        model = self._model.clone()
        model.reshape(list(shape))
        compiled = self._core.compile_model(model, self._device, self._settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != self._hint:
            raise BackendError(
                f"{self._backend} was asked to compute in {self._hint}, but it chose {used};"
                " report this"
            )
        self._requests[shape] = compiled.create_infer_request()
        return self._requests[shape]

    def _alias(self, array: Frame) -> Any:  # noqa: ANN401 - an openvino.Tensor
        # Tensor() refuses read-only memory, which a frame may be; it is only read. The alias also
        # keeps the caller's array from being held until the next frame.
        return self._tensor(np.asarray(_Memory(array)), shared_memory=True)


class _Memory:
    """Stand-in for an array's memory that numpy takes for writeable."""

    def __init__(self, array: Frame) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": array.shape,
            "data": (array.__array_interface__["data"][0], False),
        }


def import_openvino() -> Any:  # noqa: ANN401 - the package has no complete types
    """Import openvino with its telemetry off.

    ``import openvino`` loads its conversion tool, which writes a client id under ~/intel and sends
    an event to Google Analytics unless a file there says no (seen with strace, 2026.4). Where
    openvino_telemetry cannot be imported it uses an empty stand-in of its own, so that package is
    hidden while openvino is imported. A host application that imported openvino earlier has made
    its own choice.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # import then raises ModuleNotFoundError
    try:
        import openvino
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
    return openvino


@functools.cache
def _core() -> Any:  # noqa: ANN401 - an openvino.Core
    return import_openvino().Core()


def _last_line(error: BaseException) -> str:
    """Return the line that says something: OpenVINO's texts begin with its own source lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
