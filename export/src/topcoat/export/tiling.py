"""Prove that a texture repeats without a seam, before a bundle promises it.

A texture that is made with no edges anywhere (each side is padded with the other one) follows its
noise wherever that goes: noise that is rolled gives the rolled texture, and noise that is laid
beside and below itself gives the texture so laid. The second is the promise that people see. The
first is why it holds: no place in the frame is special, an edge least of all.
"""

import copy

import numpy as np
import torch

from topcoat.export._errors import GraphError
from topcoat.export._threads import half_the_cores
from topcoat.runtime.frames import Frame
from topcoat.runtime.parity import arrangements
from topcoat.train.frames import array_tensor
from topcoat.train.networks import FrameNetwork

LIMIT = 1e-6
"""How far the answers may differ, in units of the range, computed in float64: what rounding leaves
there is a millionth of that, and a seam is a hundred thousand times as much."""
_SIDE = 96
"""Of the noise that is looked at, about."""


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
