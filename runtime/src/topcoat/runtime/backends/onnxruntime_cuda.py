"""ONNX Runtime on an NVIDIA GPU: runs any ONNX model of a bundle without building an engine.

TensorRT is faster where it is installed and the bundle holds an engine for the GPU, and it is the
one that replays CUDA graphs; this backend launches its kernels one by one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from topcoat.runtime._errors import BackendError, BackendUnavailableError, DeviceMemoryError
from topcoat.runtime.backends import Compute
from topcoat.runtime.backends._cuda import Device, probe
from topcoat.runtime.backends._device_errors import device_error
from topcoat.runtime.backends.onnxruntime import (
    check_compute,
    check_session,
    import_onnxruntime,
    session_options,
)
from topcoat.runtime.bundle import Variant
from topcoat.runtime.frames import Frame

_PROVIDER = "CUDAExecutionProvider"
_NAME = "onnxruntime-cuda"

_INSTALL = (
    "pip install 'topcoat-runtime[cuda]', then pip install --force-reinstall --no-deps"
    " onnxruntime-gpu (it shares its folder with onnxruntime, and the one installed last counts)"
)


class OnnxRuntimeCuda:
    """ONNX Runtime's CUDA execution provider.

    Args:
        ort: returns the module ``onnxruntime``.
        device: looks for a GPU: what it is, or why there is none.
    """

    name = _NAME

    def __init__(
        self,
        ort: Callable[[], Any] = import_onnxruntime,
        device: Callable[[], Device | str] = probe,
    ) -> None:
        self._ort = ort
        self._device = device
        self._started = False

    def missing(self) -> str | None:
        """Return why it cannot work here, or None."""
        device = self._device()  # first: costs least where there is no GPU
        if isinstance(device, str):
            return device
        if importlib.util.find_spec("onnxruntime") is None:
            return f"onnxruntime is not installed; {_INSTALL}"
        ort = self._ort()
        offered = ort.get_available_providers()
        if _PROVIDER not in offered:
            return (
                "the onnxruntime that is installed cannot use CUDA (it has"
                f" {', '.join(offered)}); {_INSTALL}"
            )
        major = _cuda_major(ort)
        if major is not None and device.cuda < (major, 0):
            return (
                f"the NVIDIA driver is too old: it supports CUDA {'.'.join(map(str, device.cuda))},"
                f" and the onnxruntime-gpu that is installed needs {major}.0; install a newer"
                " driver"
            )
        return _preload(ort)

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        """Return the model's own precision; fp16 comes before fp32."""
        if variant.kind != "onnx":
            return ()
        device = self._found()
        obstacle = None
        if variant.precision == "bf16":
            obstacle = "ONNX Runtime's bf16 operators on CUDA do not cover a network; use TensorRT"
        elif variant.precision == "int8":
            obstacle = "ONNX Runtime has no int8 convolution on CUDA; use onnxruntime-cpu"
        return (
            Compute(
                compute=variant.precision,
                obstacle=obstacle,
                device=device.sm,
                rank=0 if variant.precision == "fp16" else 1,
            ),
        )

    def version(self) -> str:
        """Return onnxruntime's version."""
        return str(self._ort().__version__)

    def start(self) -> None:
        """Import onnxruntime and load the libraries of CUDA."""
        if not self._started and (missing := self.missing()) is not None:
            raise BackendUnavailableError(f"{self.name} cannot start: {missing}")
        self._started = True

    def load(
        self, variant: Variant, model: bytes, *, compute: str, threads: int
    ) -> OnnxRuntimeCudaSession:
        """Load the model; see :class:`topcoat.runtime.backends.Backend`."""
        check_compute(self.name, variant, compute)
        self.start()
        return OnnxRuntimeCudaSession(self._ort(), self._found(), variant, model)

    def _found(self) -> Device:
        device = self._device()
        if isinstance(device, str):
            raise BackendUnavailableError(f"{self.name} cannot start: {device}")
        return device


class OnnxRuntimeCudaSession:
    """One InferenceSession whose input lives on the GPU; the result is copied where it is wanted.

    The device buffer of the last frame size is kept.
    """

    def __init__(self, ort: Any, device: Device, variant: Variant, model: bytes) -> None:  # noqa: ANN401
        self._ort = ort
        self._device = device
        self._variant = variant
        self._model = model  # to start over from, with nothing allocated
        self._session: Any = None
        self._binding: Any = None
        self._buffer: Any = None
        self._bound: tuple[object, ...] = ()
        self._open()

    def run(self, source: Frame, result: Frame) -> None:
        """Copy ``source`` to the GPU, run the model, copy what it made into ``result``."""
        what = f"{_NAME} failed on a frame of shape {source.shape}"
        try:
            self._run(source, result)
        except Exception as error:  # its exceptions share no base but Exception
            problem = device_error(what, error)
            self._bound = ()
            if not isinstance(problem, DeviceMemoryError):
                raise problem from error
        else:
            return
        # The arena keeps what earlier frames needed; only a new session gives it back.
        self.close()
        try:
            self._run(source, result)
        except Exception as error:
            self.close()  # the memory is for what runs instead; another frame opens it again
            raise error if isinstance(error, BackendError) else device_error(what, error) from error

    def close(self) -> None:
        """Free the session and its device memory."""
        self._binding = self._buffer = self._session = None
        self._bound = ()

    def _open(self) -> None:
        options = session_options(self._ort)
        options.log_severity_level = 4  # what fails is raised, a library does not write to stderr
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {
            "device_id": str(self._device.ordinal),
            # The default searches exhaustively, for every new frame size again.
            "cudnn_conv_algo_search": "HEURISTIC",
            # TF32 keeps 10 bits of mantissa: not the fp32 that was compared with the network.
            "use_tf32": "0",
            # Doubling, the default, takes memory from the application beside it.
            "arena_extend_strategy": "kSameAsRequested",
        }
        try:
            session = self._ort.InferenceSession(
                self._model,
                sess_options=options,
                providers=[(_PROVIDER, settings)],
                # Else it prints what failed and tries the CPU.
                enable_fallback=False,
            )
        except Exception as error:  # its exceptions share no base but Exception
            what = f"{_NAME} cannot load {self._variant.file}"
            if "assigned to the default CPU EP" in str(error):
                self._check_provider(what)
                raise BackendError(
                    f"{what}: CUDA has no kernel for a part of it, which would run on the CPU"
                ) from error
            raise device_error(what, error) from error
        check_session(session, _NAME, _PROVIDER, self._variant)
        self._session = session
        self._binding = session.io_binding()

    def _check_provider(self, what: str) -> None:
        """Raise if the provider itself does not start: all of a model is then left to the CPU."""
        try:
            self._ort.OrtValue.ortvalue_from_shape_and_type(
                [1], np.uint8, "cuda", self._device.ordinal
            )
        except Exception as error:  # its exceptions share no base but Exception
            raise device_error(f"{what}, its provider does not start", error) from error

    def _run(self, source: Frame, result: Frame) -> None:
        if self._session is None:
            self._open()
        if self._buffer is None or tuple(self._buffer.shape()) != source.shape:
            self._bound = ()
            self._binding.clear_binding_inputs()
            self._buffer = None  # freed before the next one is made
            self._buffer = self._ort.OrtValue.ortvalue_from_shape_and_type(
                list(source.shape), np.uint8, "cuda", self._device.ordinal
            )
        bound = (source.shape, result.__array_interface__["data"][0], result.shape)
        if bound != self._bound:
            self._binding.bind_ortvalue_input(self._variant.input.name, self._buffer)
            # Bound to host memory, the result is copied there by the run itself, which waits for
            # it; the Python call that reads a device value would allocate an array per frame.
            self._binding.bind_output(
                self._variant.output.name, "cpu", 0, np.uint8, result.shape, bound[1]
            )
            self._bound = bound
        self._buffer.update_inplace(source)
        self._session.run_with_iobinding(self._binding)


def _cuda_major(ort: Any) -> int | None:  # noqa: ANN401 - the package has no types
    """Return the major version of CUDA that onnxruntime was built with; None if it does not say."""
    major = str(getattr(ort, "cuda_version", "") or "").split(".")[0]
    return int(major) if major.isdecimal() else None


def _preload(ort: Any) -> str | None:  # noqa: ANN401 - the package has no types
    """Load the libraries of CUDA that the provider is linked to; return what is missing, or None.

    Those of the pip packages are found only this way. It prints what it cannot load, which is the
    one place that says which library it is.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ort.preload_dlls()
    except Exception as error:
        return f"the libraries of CUDA cannot be loaded ({error}); {_INSTALL}"
    for line in printed.getvalue().splitlines():
        if line.startswith("Failed to load "):
            library = line.removeprefix("Failed to load ").split(":")[0].replace("\\", "/")
            major = _cuda_major(ort)
            return (
                f"ONNX Runtime needs CUDA{'' if major is None else f' {major}'} and cuDNN 9, and"
                f" {library.rsplit('/', 1)[-1]} cannot be loaded;"
                " pip install 'topcoat-runtime[cuda]' brings them"
            )
    return None
