"""The engines that can run a bundle's models, and what each must be able to say and do.

A backend is asked three things, cheapest first: can it work here at all (``missing``), which
precisions can it compute a model file at (``computes``), and, only when it was chosen or is to be
timed, to load the model (``load``). A further backend is one module with one such class and one
line in :func:`all_backends`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from topcoat.runtime._errors import BackendError
from topcoat.runtime.bundle import Variant
from topcoat.runtime.frames import Frame


class Session(Protocol):
    """One model loaded by one backend. A session belongs to one thread at a time."""

    def run(self, source: Frame, result: Frame) -> None:
        """Run the model on ``source`` and write every element of ``result``.

        Args:
            source: (N, H, W, C) uint8, C-contiguous; its size follows the bundle's size rule.
            result: (N, H * scale, W * scale, C) uint8, C-contiguous, writeable, other memory.

        Raises:
            FrameOutsideProfileError: the engine was not built for frames of this size.
            DeviceMemoryError: the device has too little free memory for it.
            BackendError: the engine failed; ``result`` then holds nothing useful.
        """

    def close(self) -> None:
        """Free the engine's memory; ``run`` must not be called again."""


@runtime_checkable
class DeviceSession(Session, Protocol):
    """A session that also runs frames which are in its device's memory already."""

    def run_device(
        self,
        source: object,
        result: object,
        stream: int | None = None,
        *,
        padded: tuple[int, int] | None = None,
    ) -> None:
        """Run the model on ``source`` and write ``result``, both in the device's memory.

        Args:
            source: (H, W, C) or (N, H, W, C) uint8, C-contiguous, of any library that speaks DLPack
                or ``__cuda_array_interface__``.
            result: likewise, (H * scale, W * scale, C) or with N in front.
            stream: of the caller, see :meth:`topcoat.runtime.Model.process_device`.
            padded: (height, width) to which the frame is padded, and from which the result is
                cropped; None: it goes in as it is.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A precision at which a backend can run a model file."""

    compute: str
    """"fp32", "fp16" or "bf16": the name that parity rows use."""
    obstacle: str | None = None
    """Why it cannot be used on this machine, or None."""
    on_request: str | None = None
    """Why it is left out although it works, unless the caller names its precision, or None."""
    requested_by: Literal["precision", "backend"] = "precision"
    """... or "backend": naming the backend is enough."""
    rank: int = 0
    """Of what a backend offers for the files of a bundle, lower ranks come first."""
    device: str | None = None
    """The kind of device it runs on, e.g. "sm89", where parity holds for that kind alone."""


class Backend(Protocol):
    """An inference engine on one kind of device."""

    @property
    def name(self) -> str:
        """The name that parity rows, ``open`` and ``--backend`` use, e.g. "onnxruntime-cpu"."""

    def missing(self) -> str | None:
        """Return why the backend cannot work here and what to do about it, or None if it can."""

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        """Return the precisions at which it can run this file, best first; () if it cannot.

        Only asked when ``missing()`` is None.
        """

    def version(self) -> str:
        """Return the engine's version. Only asked when ``missing()`` is None."""

    def start(self) -> None:
        """Import and start the engine, so that ``load`` then only loads a model."""

    def load(self, variant: Variant, model: bytes, *, compute: str, threads: int) -> Session:
        """Load a model from its bytes.

        Raises:
            BackendError: the engine refuses the model, or would run it on another device than this
                backend's name says.
        """


def all_backends() -> tuple[Backend, ...]:
    """Return every backend that this version knows, in order of merit."""
    from topcoat.runtime.backends.onnxruntime import OnnxRuntimeCpu
    from topcoat.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda
    from topcoat.runtime.backends.onnxruntime_webgpu import OnnxRuntimeWebGpu
    from topcoat.runtime.backends.openvino import OpenVino
    from topcoat.runtime.backends.tensorrt import TensorRt

    return (
        TensorRt("tensorrt-rtx"),
        TensorRt("tensorrt"),
        OnnxRuntimeCuda(),
        OpenVino("GPU"),
        OpenVino("CPU"),
        OnnxRuntimeCpu(),
        OnnxRuntimeWebGpu(),
    )


def find_backend(name: str, backends: tuple[Backend, ...] | None = None) -> Backend:
    """Return the backend of this name.

    Raises:
        BackendError: there is none; the text lists the names.
    """
    known = all_backends() if backends is None else backends
    for backend in known:
        if backend.name == name:
            return backend
    raise BackendError(
        f"backend {name!r} is not known, wanted auto or one of"
        f" {', '.join(backend.name for backend in known)}"
    )


def default_threads() -> int:
    """Return how many threads a CPU session gets when the caller does not say.

    One per physical core that this process may use. More only compete for the same arithmetic
    units, and engines that count for themselves ignore affinity masks and container quotas.
    """
    try:
        logical = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        logical = os.cpu_count() or 1
    smt = Path("/sys/devices/system/cpu/smt/active")
    try:
        threads_per_core = 2 if smt.read_text().strip() == "1" else 1
    except OSError:
        threads_per_core = 1
    cores = max(1, logical // threads_per_core)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota ("max")
        pass
    return cores
