"""The function that a program calls to verify a bundle; what it does loads when it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topcoat.runtime.backends import Backend
from topcoat.runtime.bundle import verify_files

if TYPE_CHECKING:
    from topcoat.runtime.parity import Verification


def verify(
    bundle: str | Path,
    photos: str | Path | None = None,
    record: bool = True,
    *,
    everything: bool = False,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
    backends: Sequence[Backend] | None = None,
) -> Verification:
    """Compare what this machine can run with the network, and record it in the bundle.

    An engine for a GPU is built on machines that cannot run it. Here, where it can run, it is
    compared without PyTorch: with PyTorch's own answer to the bundle's golden picture, and with
    its fp32 model on ONNX Runtime's CPU, which must itself have passed, and must give that answer
    here. ONNX Runtime's CPU itself is compared with the golden picture alone. The gates are those
    of the export.

    Args:
        bundle: the folder NAME.topcoat, or the name of a built-in model.
        photos: a folder of photographs to compare on as well, at most 16; needs Pillow. Not for a
            texture.
        record: whether to write what was measured into manifest.json, row by row. A failed row is
            recorded, too: the runtime then does not use that engine on this kind of device. Of a
            built-in model they are written into the user's cache folder, and read from there.
        everything: measure also what has passed for this device before.
        threads: CPU threads; None takes the runtime's default.
        progress: is told what is being done.
        backends: those to look at; all that this version knows if None.

    Returns:
        A row per engine; falsy if one failed, or one that this machine can run was left undecided
        because memory was short or the device could not be used.

    Raises:
        BundleError: the bundle is damaged, or has no golden pictures to compare with.
        BundleWriteError: the record cannot be written; nothing was measured.
        ParityError: the golden pictures are not what the fp32 model gives here, so that neither can
            be a reference.
        MediaError: ``photos`` holds no readable photograph.
        TextureError: photographs were given for a texture.
        BackendError: the reference itself could not be run.
    """
    from topcoat.runtime.parity._verify import Verifier

    manifest = verify_files(bundle)
    verifier = Verifier(manifest, backends, record=record, threads=threads, progress=progress)
    return verifier.run(photos, everything=everything)
