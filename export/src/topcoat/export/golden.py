"""The pictures of a bundle: the golden pair, and what shows best what its network is for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from topcoat.export._errors import PhotographError
from topcoat.export.parity import reference_frame
from topcoat.export.probes import Frame, ProbeFrame
from topcoat.runtime import noise_frame
from topcoat.train.degradation import degrade, imresize
from topcoat.train.frames import array_tensor, tensor_array
from topcoat.train.networks import FrameNetwork

SIZE = (192, 256)
"""Height and width of the golden pair of a network that keeps the size: small."""
SIZE_ENLARGED = (384, 512)
"""Height and width of what a network that enlarges is to give back, at most."""
SIDE_TEXTURE = 256
"""Height and width of the golden pair of a texture, about."""
SEED = 0
"""Of its noise."""
TIMES = 3
"""How often it is laid beside and below itself: the middle one has neighbours on every side."""
_CROP = (192, 256)
"""Height and width of each picture of the comparison."""
_CROP_FROM = (16, 112)
"""Its top and left: the astronaut's face."""
_GAP = 8
"""White pixels between the pictures."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """A frame, PyTorch's answer to it, and what there is to show besides."""

    frame: Frame
    answer: Frame
    comparison: Frame | None
    """Bicubic enlargement, answer and original beside each other; None if nothing is enlarged."""
    tiled: Frame | None = None
    """A texture :data:`TIMES` times beside and below itself; None of any other network."""


def golden(network: FrameNetwork, photographs: Sequence[ProbeFrame], blur: float = 0.0) -> Golden:
    """Make the pictures from the first photograph (the astronaut, in the public domain).

    Args:
        network: float32, evaluation mode.
        photographs: at least one.
        blur: for a network that enlarges: σ of the Gaussian with which its training pictures were
            blurred before they were shrunk, so that it is shown what it was made for.

    Raises:
        PhotographError: the photograph is too small to be shrunk by the network's scale.
    """
    photograph = photographs[0].frame
    if network.scale == 1:
        frame = _whole(photograph)
        return Golden(frame=frame, answer=reference_frame(network, frame), comparison=None)
    scale = network.scale
    height, width = (
        min(limit, side) // scale * scale
        for limit, side in zip(SIZE_ENLARGED, photograph.shape[:2], strict=True)
    )
    if not (height and width):
        raise PhotographError(
            f"{photographs[0].name} is smaller than {scale} pixels; install scikit-image again"
        )
    original = photograph[:height, :width]
    small = degrade(array_tensor(original), scale, blur)
    frame = tensor_array(small)
    answer = reference_frame(network, frame)
    bicubic = tensor_array(imresize(small, enlarge=scale))
    pictures = [_crop(picture) for picture in (bicubic, answer, original)]
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    comparison = np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1)
    return Golden(frame=frame, answer=answer, comparison=comparison)


def golden_texture(network: FrameNetwork) -> Golden:
    """Make the pictures of a texture: noise of seed 0, what becomes of it, and that repeated.

    Args:
        network: makes textures of noise; float32, evaluation mode.
    """
    multiple = network.size_multiple
    side = max(network.size_min, SIDE_TEXTURE // multiple * multiple)
    noise = noise_frame(side, side, SEED)
    answer = reference_frame(network, noise)
    return Golden(
        frame=noise, answer=answer, comparison=None, tiled=np.tile(answer, (TIMES, TIMES, 1))
    )


def _whole(photograph: Frame) -> Frame:
    height, width = SIZE
    whole = Image.fromarray(photograph)
    share = min(whole.width / width, whole.height / height)
    box = (0, 0, round(width * share), round(height * share))
    resized = whole.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized, dtype=np.uint8)


def _crop(picture: Frame) -> Frame:
    """Cut out the face; of a smaller picture, what there is at the top left."""
    (height, width), (top, left) = _CROP, _CROP_FROM
    if picture.shape[0] < top + height or picture.shape[1] < left + width:
        top = left = 0
    return picture[top : top + height, left : left + width]
