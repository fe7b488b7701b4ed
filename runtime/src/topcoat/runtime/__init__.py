"""Run a Topcoat bundle on frames.

A frame is uint8, (H, W, 3) or (N, H, W, 3), RGB, C-contiguous::

    import topcoat.runtime as tr

    with tr.open("candy.topcoat") as model:
        styled = model.process(frame)
        print(model.explain())

Importing this package loads numpy and nothing else; engines load with the first ``open``.
"""

from topcoat.runtime._errors import (
    BackendError,
    BackendUnavailableError,
    BundleError,
    BundleIntegrityError,
    BundleVersionError,
    BundleWriteError,
    DeviceLostError,
    DeviceMemoryError,
    FallbackWarning,
    FrameError,
    FrameMemoryError,
    FrameOutsideProfileError,
    MediaError,
    ModelClosedError,
    ParityError,
    TextureError,
    TileError,
    TopcoatError,
    UnverifiedWarning,
)
from topcoat.runtime._explanation import Candidate, EngineName, Explanation, Fallback
from topcoat.runtime._textures import noise_frame
from topcoat.runtime._verification import verify
from topcoat.runtime.bundle import (
    EngineInfo,
    FileEntry,
    Manifest,
    ParityRow,
    Port,
    Profile,
    SizeRule,
    Variant,
    read_manifest,
    verify_files,
)
from topcoat.runtime.frames import Frame
from topcoat.runtime.model import Model
from topcoat.runtime.model import open_model as open

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "BundleError",
    "BundleIntegrityError",
    "BundleVersionError",
    "BundleWriteError",
    "Candidate",
    "DeviceLostError",
    "DeviceMemoryError",
    "EngineInfo",
    "EngineName",
    "Explanation",
    "Fallback",
    "FallbackWarning",
    "FileEntry",
    "Frame",
    "FrameError",
    "FrameMemoryError",
    "FrameOutsideProfileError",
    "Manifest",
    "MediaError",
    "Model",
    "ModelClosedError",
    "ParityError",
    "ParityRow",
    "Port",
    "Profile",
    "SizeRule",
    "TextureError",
    "TileError",
    "TopcoatError",
    "UnverifiedWarning",
    "Variant",
    "noise_frame",
    "open",
    "read_manifest",
    "verify",
    "verify_files",
]
