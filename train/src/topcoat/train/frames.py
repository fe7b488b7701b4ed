"""Pictures as the tensors that networks take and give."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from topcoat.train.networks import FrameNetwork
from topcoat.train.pictures import to_array


def array_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 RGB as (1, 3, H, W) float32 in [0, 1]."""
    # A copy: PyTorch warns of arrays that it may not write to, and PIL's are such.
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def tensor_array(frame: Tensor) -> NDArray[np.uint8]:
    """(1, 3, H, W) nominally in [0, 1] -> (H, W, 3) uint8, clipped and rounded."""
    pixels = (frame[0].detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return np.ascontiguousarray(pixels.cpu().numpy())


def frame_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (1, 3, H, W) float32 in [0, 1]."""
    return array_tensor(to_array(image))


def frame_image(frame: Tensor) -> Image.Image:
    """(1, 3, H, W) nominally in [0, 1] -> a picture, clipped and rounded to 8 bits."""
    return Image.fromarray(tensor_array(frame), "RGB")


def run_network(network: FrameNetwork | nn.Module, image: Image.Image) -> Image.Image:
    """Run a network on a picture cropped to its multiple: for previews and evaluation."""
    multiple = int(getattr(network, "size_multiple", 1))
    width, height = (side // multiple * multiple for side in image.size)
    frame = frame_tensor(image.crop((0, 0, width, height)))
    device = next(network.parameters()).device
    with torch.no_grad():
        return frame_image(network(frame.to(device)))
