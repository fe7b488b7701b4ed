"""Prove that a texture repeats without a seam, before a bundle promises it.

A texture that is made with no edges anywhere (each side is padded with the other one) follows its
noise wherever that goes: noise that is rolled gives the rolled texture, and noise that is laid
beside and below itself gives the texture so laid. The second is the promise that people see. The
first is why it holds: no place in the frame is special, an edge least of all.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from topcoat.export._errors import GraphError
from topcoat.export._threads import half_the_cores
from topcoat.export.probes import Frame
from topcoat.train.frames import array_tensor
from topcoat.train.networks import FrameNetwork

LIMIT = 1e-6
"""How far the answers may differ, in units of the range, computed in float64: what rounding leaves
there is a millionth of that, and a seam is a hundred thousand times as much."""
_SIDE = 96
"""Of the noise that is looked at, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """A way to lay out a frame, and its texture likewise."""

    name: str
    arrange: Callable[[Frame], Frame]
    """(H, W, 3) or (N, H, W, 3) -> the same, rolled, or larger."""


def arrangements(multiple: int) -> tuple[Arrangement, ...]:
    """List the layouts that noise and texture must have in common.

    Args:
        multiple: the network's ``size_multiple``; its coarsest noise moves by whole values only
            when the frame moves by a multiple of this.
    """

    def rolled(down: int, right: int) -> Callable[[Frame], Frame]:
        return lambda frame: np.roll(frame, (down * multiple, right * multiple), axis=(-3, -2))

    def repeated(frame: Frame) -> Frame:
        return np.tile(frame, (2, 2, 1))

    return (
        Arrangement(name=f"rolled {multiple} down", arrange=rolled(1, 0)),
        Arrangement(name=f"rolled {2 * multiple} left", arrange=rolled(0, -2)),
        Arrangement(name="2x2", arrange=repeated),
    )


def takes_noise(network: FrameNetwork) -> bool:
    """Say whether a network makes textures of noise, and not pictures of pictures."""
    return network.takes == "noise"


def prove_tiling(network: FrameNetwork) -> None:
    """Check on one frame of noise, in float64, that a network's textures repeat without a seam.

    Args:
        network: evaluation mode, makes textures of noise; it is copied, not changed.

    Raises:
        GraphError: it does not, or gives NaN or infinity, which proves nothing.
    """
    name, multiple = type(network).__name__, network.size_multiple
    side = max(network.size_min, multiple * -(-_SIDE // multiple))
    noise = np.random.default_rng(0).integers(0, 256, (side, side + multiple, 3), dtype=np.uint8)
    exact = copy.deepcopy(network).cpu().double().eval()

    def answer(frame: Frame) -> np.ndarray:
        found = exact(array_tensor(frame).double())[0]  # (3, H, W)
        if not bool(torch.isfinite(found).all()):  # NaN passes every comparison below unnoticed
            raise GraphError(
                f"{name} gives NaN or infinity on a frame of noise, so nothing can be proved of its"
                " textures; take an earlier checkpoint or train again with a lower learning rate"
            )
        return np.moveaxis(found.numpy(), 0, -1)

    with half_the_cores(), torch.inference_mode():
        texture = answer(noise)
        for layout in arrangements(multiple):
            wanted, came = layout.arrange(texture), answer(layout.arrange(noise))
            if (worst := float(np.abs(wanted - came).max())) > LIMIT:
                raise GraphError(
                    f"{name} makes textures that show a seam: noise {layout.name} does not give the"
                    f" texture {layout.name}, it is off by {255 * worst:.2g} steps of 255; train it"
                    " again with circular padding"
                )
