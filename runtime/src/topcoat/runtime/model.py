"""Open a bundle and run frames through it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import numpy as np

from topcoat.runtime._choice import Explanation, choose
from topcoat.runtime._errors import BackendError, ModelClosedError
from topcoat.runtime.backends import Session, all_backends, default_threads
from topcoat.runtime.bundle import Manifest, read_manifest
from topcoat.runtime.frames import Frame, PadBuffers, check_frame, check_out, fit_size


class Model:
    """A bundle that is loaded and ready for frames; made by :func:`topcoat.runtime.open`.

    Threads: every method may be called from any thread. ``process`` calls on one model run one
    after the other, because the engine's buffers belong to the model; open the bundle once per
    thread to run frames side by side. The engine releases the GIL while it computes, so other
    Python threads go on.
    """

    def __init__(self, manifest: Manifest, explanation: Explanation, session: Session) -> None:
        self._manifest = manifest
        self._explanation = explanation
        self._session: Session | None = session
        self._lock = threading.Lock()
        self._pad: PadBuffers | None = None

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._manifest

    def explain(self) -> Explanation:
        """Return which backend and precision run, and why not the others; readable after close."""
        return self._explanation

    def process(self, frame: Frame, out: Frame | None = None) -> Frame:
        """Run one frame, or a batch of frames, through the network.

        A frame whose size follows the bundle's size rule is read by the engine where it lies, and
        the result is written where it is wanted: nothing is copied here. Other sizes pass through
        two buffers that are kept for the next frame of that size.

        Args:
            frame: uint8, (H, W, 3) or (N, H, W, 3), RGB, C-contiguous, any H and W of at least 1.
                It may be read-only.
            out: where to write the result: uint8, (H * scale, W * scale, 3) or with N in front
                like the frame, C-contiguous, writeable, not overlapping the frame. Giving the
                same one for every frame saves an allocation per frame.

        Returns:
            ``out`` if it was given, else a new array.

        Raises:
            FrameError: the frame or ``out`` is not as described; nothing was written.
            BackendError: the engine failed; ``out`` then holds nothing useful.
            ModelClosedError: the model was closed.
        """
        with self._lock:
            session = self._session
            if session is None:
                raise ModelClosedError(
                    f"this model of {self._manifest.name} was closed; open the bundle again"
                )
            scale = self._manifest.scale
            source = check_frame(frame, self._manifest.channels)
            batch, height, width, channels = source.shape
            fitted = fit_size(height, width, self._manifest.size)
            shape = (*frame.shape[:-3], height * scale, width * scale, channels)
            if out is None:
                out = np.empty(shape, np.uint8)
                result = out if out.ndim == 4 else out[None]
            else:
                result = check_out(out, shape, frame)
            if fitted == (height, width):
                session.run(source, result)
                return out
            pad = self._pad
            if pad is None or pad.source.shape != (batch, *fitted, channels):
                self._pad = None  # the old pair is freed before the new one is made
                pad = self._pad = PadBuffers.allocate(batch, fitted, channels, scale)
            pad.fill(source)
            session.run(pad.source, pad.result)
            pad.crop_into(result)
            return out

    def close(self) -> None:
        """Free the engine and the buffers. Closing twice is fine."""
        with self._lock:
            if self._session is not None:
                self._session.close()
            self._session = None
            self._pad = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        chosen = self._explanation.chosen
        how = f"{chosen.backend} {chosen.compute}" if chosen else "nothing"
        state = " (closed)" if self._session is None else ""
        return f"<topcoat.runtime.Model {self._manifest.name} on {how}{state}>"


def open_model(
    bundle: str | Path,
    backend: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
) -> Model:
    """Open a bundle on the backend that runs it fastest here, or on the one that is named.

    With ``backend="auto"``, every backend and precision that is installed, that the processor
    offers and whose parity check passed at export is timed on one 256x256 frame, and the fastest
    stays loaded. There is no silent fallback: :meth:`Model.explain` says what was chosen and why
    not the others, and a named backend that cannot run the bundle is an error.

    Args:
        bundle: the folder NAME.topcoat.
        backend: "auto", "onnxruntime-cpu" or "openvino-cpu".
        precision: "fp32", "bf16" or "fp16" to allow only this compute precision; None allows fp32
            and bf16. fp16 is not faster on a CPU and only used when named.
        threads: how many CPU threads the engine uses; None takes one per physical core that this
            process may use. A renderer beside it is better off with fewer.
        allow_unverified: also accept a backend and precision without a passed parity check; an
            UnverifiedWarning then says so.

    Returns:
        The loaded model; close it, or use it as a context manager.

    Raises:
        BundleError: the bundle cannot be read, is damaged or of another format version.
        BackendError: no backend can run it, with every reason in the text; its ``explanation``
            attribute holds them one by one.
        BackendUnavailableError: the named backend is not installed.
    """
    manifest = read_manifest(bundle)
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}, wanted at least 1 (or None for the default)")
    explanation, session = choose(
        manifest,
        all_backends(),
        backend=backend,
        precision=precision,
        threads=default_threads() if threads is None else threads,
        allow_unverified=allow_unverified,
    )
    return Model(manifest, explanation, session)
