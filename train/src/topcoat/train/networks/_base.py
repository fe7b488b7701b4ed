"""What every network promises to the trainer, the exporter and the runtime."""

from typing import Literal, Self

from torch import Tensor, nn

from topcoat.train._errors import RecipeError

SCALES = (2, 4, 8)
"""What the super-resolution networks can enlarge by."""


class FrameNetwork(nn.Module):
    """A network that maps frames to frames.

    ``forward`` takes (B, 3, H, W) float RGB in [0, 1] and returns (B, 3, H*scale, W*scale) RGB,
    nominally in [0, 1]: values may leave that range a little and are clipped by whoever makes a
    picture of them, so that training sees a gradient there.
    """

    takes: Literal["frame", "noise"] = "frame"
    """What the input is: a picture, or a *noise frame*, uniform in [0, 1], that the network makes a
    texture of. Noise is never padded, cropped or cut into tiles, which would break the texture's
    seam: whoever runs such a network picks a size that it takes."""
    scale: int = 1
    """Output pixels per input pixel, along each axis."""
    size_multiple: int = 1
    """H and W must be multiples of this."""
    size_min: int = 1
    """H and W must be at least this; itself a multiple of ``size_multiple``."""

    halo: int | None = None
    """An output pixel depends on input pixels at most this many away, in height and in width, so
    that tiles which overlap by it join without a seam; None: on the whole frame."""

    def forward(self, frame: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to (B, 3, H*scale, W*scale)."""
        raise NotImplementedError

    def fold(self) -> Self:
        """Put together, in place, what ``forward`` computes of weights alone; gives itself.

        For a copy that is exported, so that its graph holds constants. It cannot be trained on.
        """
        return self


def check_scale(scale: int) -> None:
    """Refuse a factor that the super-resolution networks do not have.

    Raises:
        RecipeError: it is not 2, 4 or 8.
    """
    if scale not in SCALES:
        raise RecipeError(f"scale must be 2, 4 or 8, got {scale}")
