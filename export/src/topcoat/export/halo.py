"""Prove how far an output pixel looks, before anybody cuts frames into tiles by it."""

import math

import torch
from torch import Tensor

from topcoat.export._errors import GraphError
from topcoat.export._threads import half_the_cores
from topcoat.train.networks import FrameNetwork

_MARGIN = 3
"""Pixels beyond the halo that are looked at on every side, at least."""
_PUSH = 100.0
"""How far the changed pixel moves, in units of the range: what is far away arrives weakly."""
_PIXEL_LIMIT = 1e-6
"""A larger change beyond the halo is an answer to the changed pixel. Rounding stays below: nearly
always it is nothing at all, for the same sums are computed again; a convolution that works on
blocks of pixels (Winograd) may round another way."""
_WINDOW_LIMIT = 0.01 / 255
"""A hundredth of an 8-bit step, where a window's pixels may differ from the frame's."""


def prove_halo(network: FrameNetwork) -> None:
    """Check a network's ``halo`` on a frame of noise.

    Twice, because tiles need both. One pixel is changed, in the middle and in a corner: nothing may
    change beyond ``halo`` of it. And a window is cut from the frame: away from the cut by
    ``halo``, its output must be the frame's. The second finds what the first cannot: padding that
    reaches inwards from the cut, or an output that depends on its place in the frame.

    The claim is checked for these weights, not for the architecture: a dependence too weak to
    show here shifts no pixel by a hundredth of an 8-bit step either.

    Args:
        network: float32, evaluation mode. One with ``halo`` None claims nothing and passes.

    Raises:
        GraphError: the claim is too small, or is no whole number from 0 up, or the network gives
            NaN or infinity, which proves nothing.
    """
    halo, name = network.halo, type(network).__name__
    if halo is None:
        return
    if not isinstance(halo, int) or isinstance(halo, bool) or halo < 0:
        raise GraphError(f"the halo of {name} is {halo!r}; it must be 0 or more pixels, or None")
    multiple = network.size_multiple
    margin = multiple * math.ceil(_MARGIN / multiple)
    side = max(2 * (halo + margin) + 1, network.size_min + margin)
    height = multiple * math.ceil(side / multiple)
    frame = torch.rand(
        (1, 3, height, height + multiple), generator=torch.Generator().manual_seed(0)
    )
    with half_the_cores(), torch.inference_mode():
        whole = _answer(network, frame, name)
        _change_pixels(network, frame, whole, name)
        _cut_windows(network, frame, whole, margin, name)


def _change_pixels(network: FrameNetwork, frame: Tensor, whole: Tensor, name: str) -> None:
    halo = network.halo or 0
    height, width = frame.shape[2:]
    # Where sizes have a multiple, the places within one are not alike.
    places = [(height // 2 + i, width // 2 + i) for i in range(network.size_multiple)]
    for row, column in (*places, (0, 0)):
        moved = frame.clone()
        moved[..., row, column] += _PUSH
        change = (
            (_answer(network, moved, name) - whole).abs().amax(dim=(0, 1))
        )  # (H*scale, W*scale)
        far = torch.maximum(
            _distances(height, row, network.scale)[:, None],
            _distances(width, column, network.scale)[None],
        )
        wrong = change > _PIXEL_LIMIT
        reach = int(far[wrong].max()) if bool(wrong.any()) else 0
        if reach > halo:
            raise GraphError(
                f"{name} says that an output pixel depends on input pixels at most {halo} away, "
                f"but a change {reach} away reaches it; tiles would show seams: correct its halo, "
                "or make it None if it looks at the whole frame"
            )


def _cut_windows(
    network: FrameNetwork, frame: Tensor, whole: Tensor, margin: int, name: str
) -> None:
    halo, scale = network.halo or 0, network.scale
    away = (margin + halo) * scale  # what remains after the cut and the pixels near it
    ends = _answer(network, frame[..., margin:, margin:].contiguous(), name)
    ends = ends[..., halo * scale :, halo * scale :]
    starts = _answer(network, frame[..., :-margin, :-margin].contiguous(), name)
    starts = starts[..., : whole.shape[2] - away, : whole.shape[3] - away]
    worst = max(
        float((ends - whole[..., away:, away:]).abs().max()),
        float((starts - whole[..., : starts.shape[2], : starts.shape[3]]).abs().max()),
    )
    if worst > _WINDOW_LIMIT:
        raise GraphError(
            f"{name} says that an output pixel depends on input pixels at most {halo} away, but "
            f"beyond that a window of the frame gives other pixels than the frame, by {worst:.2g} "
            "of the range; tiles would show seams: correct its halo, or make it None if the place "
            "in the frame matters"
        )


def _answer(network: FrameNetwork, frame: Tensor, name: str) -> Tensor:
    answer: Tensor = network(frame)
    if not bool(torch.isfinite(answer).all()):  # NaN passes every comparison below unnoticed
        raise GraphError(
            f"{name} gives NaN or infinity on a frame of noise, so how far its pixels look cannot "
            "be proved; take an earlier checkpoint or train again with a lower learning rate"
        )
    return answer


def _distances(side: int, position: int, scale: int) -> Tensor:
    """Distance in input pixels of every output row, or column, from one input row."""
    return (torch.arange(side * scale) // scale - position).abs()
