"""What every network promises to the trainer, the exporter and the runtime."""

from torch import Tensor, nn


class FrameNetwork(nn.Module):
    """A network that maps frames to frames.

    ``forward`` takes (B, 3, H, W) float RGB in [0, 1] and returns (B, 3, H*scale, W*scale) RGB,
    nominally in [0, 1]: values may leave that range a little and are clipped by whoever makes a
    picture of them, so that training sees a gradient there.
    """

    scale: int = 1
    """Output pixels per input pixel, along each axis."""
    size_multiple: int = 1
    """H and W must be multiples of this."""
    size_min: int = 1
    """H and W must be at least this; itself a multiple of ``size_multiple``."""

    def forward(self, frame: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to (B, 3, H*scale, W*scale)."""
        raise NotImplementedError
