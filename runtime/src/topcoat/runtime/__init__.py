"""Run a Topcoat bundle on frames.

A frame is uint8, (H, W, 3) or (N, H, W, 3), RGB, C-contiguous::

    import topcoat.runtime as tr

    with tr.open("candy.topcoat") as model:
        styled = model.process(frame)
        print(model.explain())

A bundle is a folder, or the name of one of :func:`builtin_models`, such as "starry-night". A
renderer that needs a picture for every frame, in time, opens a :class:`Pass`.

Importing this package loads numpy and nothing else; engines load with the first ``open``.
"""

import importlib
import typing

from topcoat.runtime._builtin import builtin_models
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
    InvalidResultError,
    MediaError,
    ModelClosedError,
    ParityError,
    PassClosedError,
    PassError,
    PassThreadError,
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

if typing.TYPE_CHECKING:
    from topcoat.runtime.render_pass import (
        Copy,
        Depth,
        Event,
        Layout,
        Level,
        Motion,
        Pass,
        Policy,
        Preparation,
        RenderFrame,
        Requirements,
        Result,
        Status,
        Timings,
        from_buffer,
        from_dlpack,
    )

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "BundleError",
    "BundleIntegrityError",
    "BundleVersionError",
    "BundleWriteError",
    "Candidate",
    "Copy",
    "Depth",
    "DeviceLostError",
    "DeviceMemoryError",
    "EngineInfo",
    "EngineName",
    "Event",
    "Explanation",
    "Fallback",
    "FallbackWarning",
    "FileEntry",
    "Frame",
    "FrameError",
    "FrameMemoryError",
    "FrameOutsideProfileError",
    "InvalidResultError",
    "Layout",
    "Level",
    "Manifest",
    "MediaError",
    "Model",
    "ModelClosedError",
    "Motion",
    "ParityError",
    "ParityRow",
    "Pass",
    "PassClosedError",
    "PassError",
    "PassThreadError",
    "Policy",
    "Port",
    "Preparation",
    "Profile",
    "RenderFrame",
    "Requirements",
    "Result",
    "SizeRule",
    "Status",
    "TextureError",
    "TileError",
    "Timings",
    "TopcoatError",
    "UnverifiedWarning",
    "Variant",
    "builtin_models",
    "from_buffer",
    "from_dlpack",
    "noise_frame",
    "open",
    "read_manifest",
    "verify",
    "verify_files",
]

_OF_RENDER_PASS = frozenset(
    {
        "Copy",
        "Depth",
        "Event",
        "Layout",
        "Level",
        "Motion",
        "Pass",
        "Policy",
        "Preparation",
        "RenderFrame",
        "Requirements",
        "Result",
        "Status",
        "Timings",
        "from_buffer",
        "from_dlpack",
    }
)


def __getattr__(name: str) -> object:
    """Load the render pass when it is first asked for: most programs only open models."""
    if name in _OF_RENDER_PASS:
        return getattr(importlib.import_module("topcoat.runtime.render_pass"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
