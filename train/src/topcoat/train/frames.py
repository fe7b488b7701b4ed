"""Pictures as the tensors that networks take and give."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from topcoat.train.networks import FrameNetwork
from topcoat.train.pictures import to_array


def frame_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(to_array(image).copy()).permute(2, 0, 1)[None].float() / 255


def frame_image(frame: Tensor) -> Image.Image:
    """(1, 3, H, W) nominally in [0, 1] -> a picture, clipped and rounded to 8 bits."""
    pixels = (frame[0].detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy()), "RGB")


def run_network(network: FrameNetwork | nn.Module, image: Image.Image) -> Image.Image:
    """Run a network on a picture cropped to its multiple: for previews and evaluation."""
    multiple = int(getattr(network, "size_multiple", 1))
    width, height = (side // multiple * multiple for side in image.size)
    frame = frame_tensor(image.crop((0, 0, width, height)))
    device = next(network.parameters()).device
    with torch.no_grad():
        return frame_image(network(frame.to(device)))
