"""Every error that the runtime raises on purpose; each leaf is also the built-in it is like."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topcoat.runtime._explanation import Explanation


class TopcoatError(Exception):
    """Base of every error that topcoat.runtime raises on purpose; its text is one line."""


class BundleError(TopcoatError, ValueError):
    """A bundle cannot be used: not one, bad manifest, a file missing or outside the folder."""


class BundleVersionError(BundleError):
    """A bundle's format version is one that this version of topcoat-runtime cannot read."""


class BundleIntegrityError(BundleError):
    """A file of a bundle is not the file that its manifest describes."""


class FrameError(TopcoatError, ValueError):
    """A frame or an output buffer has a wrong type, shape, layout or size."""


class FrameMemoryError(FrameError, MemoryError):
    """A frame is so large that the memory for its result cannot be had."""


class TileError(TopcoatError, ValueError):
    """A bundle cannot be run in tiles, or not in tiles as small as those that were asked for."""


class TextureError(TopcoatError, ValueError):
    """A bundle makes no textures, or only textures; or a seed is no whole number from 0 up."""


class BackendError(TopcoatError, RuntimeError):
    """A backend cannot be chosen, cannot load a model or failed on a frame."""

    explanation: Explanation | None = None
    """When nothing could be chosen: every candidate with its reason."""


class BackendUnavailableError(BackendError):
    """The backend that was asked for is not installed, or cannot work on this machine."""


class FrameOutsideProfileError(BackendError):
    """A built engine does not take frames of this size; another way to run the bundle may."""


class DeviceMemoryError(BackendError, MemoryError):
    """The device (a GPU) has too little free memory for a frame of this size."""


class DeviceLostError(BackendError):
    """The device stopped working: its driver was reset, or it was taken away."""


class ModelClosedError(TopcoatError, RuntimeError):
    """A model was used after ``close()``."""


class PassError(TopcoatError, ValueError):
    """A render pass is asked for something that it cannot do, or in an order that it cannot."""


class PassClosedError(TopcoatError, RuntimeError):
    """A render pass was used after ``close()``."""


class PassThreadError(TopcoatError, RuntimeError):
    """Two threads are inside one render pass at the same time."""


class InvalidResultError(BackendError):
    """An engine gave back something that is no picture of the frame."""


class MediaError(TopcoatError, ValueError):
    """A picture, folder or video cannot be read or written."""


class ParityError(TopcoatError, ValueError):
    """A comparison was asked for that compares nothing, or things that cannot be compared."""


class BundleWriteError(TopcoatError, OSError):
    """What was measured cannot be written into a bundle's manifest; it is as it was."""


class UnverifiedWarning(UserWarning):
    """A model runs on a backend and precision for which its bundle holds no passed check."""


class FallbackWarning(UserWarning):
    """Frames of one size are run otherwise than it was chosen, because the chosen way failed."""
