"""How much a network's output changes when its input does not, to the eye."""

from collections.abc import Callable

import torch
from torch import Tensor

_MOST = 4
"""Moves by less than this many pixels along each axis: all places on a grid of quarter size."""
_GRAIN = 4 / 255
"""Standard deviation of the grain: that of a camera in a lit room."""
_RIM = 12
"""Pixels at the border that do not count, where the two see different padding."""


def stability_loss(network: Callable[[Tensor], Tensor], frames: Tensor, output: Tensor) -> Tensor:
    """Compare the output with that for the same frames, moved by whole pixels and with grain.

    A move by whole pixels needs no interpolation, so that a network which moves its output along
    with its input has a loss of exactly zero. By less than four of them, because a network that
    works at quarter size does so anyway for whole multiples of four.

    Args:
        network: (B, 3, H, W) in [0, 1] -> the same size.
        frames: (B, 3, H, W) RGB in [0, 1]; H and W multiples of 4, more than 28.
        output: (B, 3, H, W): what the network made of them.

    Returns:
        Mean square difference, a scalar. The move and the grain are drawn from torch's global
        generator.

    Raises:
        ValueError: the frames are too small.

    Source: moved frames as an exact optical flow: Ruder, Dosovitskiy, Brox 2018 (arXiv:1708.04538);
    grain: Zheng, Song, Leung, Goodfellow 2016 (arXiv:1604.04326).
    """
    height, width = (side - _MOST for side in frames.shape[2:])
    if min(height, width) <= 2 * _RIM:
        raise ValueError(
            f"frames must be larger than {2 * _RIM + _MOST} pixels a side for this loss, "
            f"got {tuple(frames.shape)}"
        )
    move = int(torch.randint(1, _MOST**2, ()))  # not 0, which is no move
    top, left = divmod(move, _MOST)
    moved = frames[:, :, top : top + height, left : left + width]
    again = network((moved + _GRAIN * torch.randn_like(moved)).clamp(0, 1))
    expected = output[:, :, top : top + height, left : left + width]
    rim = slice(_RIM, -_RIM)
    return (again.float() - expected.float())[:, :, rim, rim].square().mean()
