"""Prove that an engine equals its network: the same frames through both, compared in 8-bit steps.

The reference is the trained network in PyTorch, float32, with padding and cropping written here a
second time. What is compared with it runs through ``topcoat.runtime``, as it will run later, so the
runtime's padding, layouts and choice of a model file are covered too. Frames, measures and limits
are those of :mod:`topcoat.runtime.parity`, which compares where there is no PyTorch.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import topcoat.runtime.parity
from topcoat.export._threads import half_the_cores
from topcoat.runtime.frames import Frame
from topcoat.runtime.parity import (
    GATES,
    Difference,
    Engine,
    Flatness,
    Gate,
    ParityError,
    ParityReport,
    ParityRow,
    ProbeFrame,
    Reference,
    Summary,
    Tile,
    difference,
    engines_for,
    summary,
)
from topcoat.train.networks import FrameNetwork

__all__ = [
    "GATES",
    "Difference",
    "Engine",
    "Flatness",
    "Gate",
    "ParityError",
    "ParityReport",
    "ParityRow",
    "Reference",
    "Summary",
    "Tile",
    "TorchReference",
    "difference",
    "engines_for",
    "frames_of_planes",
    "measure_parity",
    "planes_of_frames",
    "reference_frame",
    "summary",
]


@dataclasses.dataclass(frozen=True, slots=True)
class TorchReference:
    """A network in PyTorch as the :class:`topcoat.runtime.parity.Reference` of a comparison."""

    network: FrameNetwork
    """Float32, evaluation mode, on the CPU."""

    @property
    def name(self) -> str:
        """What rows and progress call it."""
        return str(getattr(self.network, "answered_by", "PyTorch fp32"))

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along each axis."""
        return self.network.scale

    @property
    def size_multiple(self) -> int:
        """Height and width that the network takes are multiples of this."""
        return self.network.size_multiple

    @property
    def size_min(self) -> int:
        """... and at least this."""
        return self.network.size_min

    def answer(self, frame: Frame) -> NDArray[np.float32]:
        """Answer a frame of any size; see :class:`topcoat.runtime.parity.Reference`."""
        with half_the_cores():
            return _answer(self.network, frame).contiguous().numpy()


def measure_parity(
    bundle: Path,
    network: FrameNetwork | Reference,
    frames: Sequence[ProbeFrame],
    engines: Sequence[Engine],
    progress: Callable[[str], None] = lambda _: None,
) -> ParityReport:
    """Compare every engine of a bundle with the network, on every frame.

    Args:
        bundle: a folder that the runtime can open; its parity rows may still be missing.
        network: the reference; float32, evaluation mode. Or anything else that answers frames.
        frames: must hold photographs, or noise for a texture; an engine that meets none of what it
            is made for has proved nothing. One of the group ``tiling`` is compared with the
            engine's own answer: once it is laid out otherwise, the answer must be, too.
        engines: from :func:`topcoat.runtime.parity.engines_for`.
        progress: is told what is being done.

    Returns:
        A report with a row per engine. An engine that cannot run on this machine has a row that
        says so; it did not pass.

    Raises:
        ParityError: there are no engines, no photographs, or a frame without pixels.
    """
    reference = TorchReference(network) if isinstance(network, FrameNetwork) else network
    report = topcoat.runtime.parity.measure_parity(bundle, reference, frames, engines, progress)
    machine = {**report.machine, "torch": str(torch.__version__)}
    return dataclasses.replace(
        report, machine=machine, reference=f"{reference.name}, rounded to 8 bits"
    )


def reference_frame(network: FrameNetwork, frame: Frame) -> Frame:
    """Run the network itself on a frame: what every engine is compared with.

    Args:
        network: float32, evaluation mode.
        frame: (H, W, 3) or (N, H, W, 3), uint8, of any size.

    Returns:
        (H*scale, W*scale, 3), or a batch of them: uint8, rounded half to even.
    """
    answer = _answer(network, frame)
    result: Frame = answer.round().to(torch.uint8).contiguous().numpy()
    return result if frame.ndim == 4 else result[0]


def planes_of_frames(frame: Frame, network: FrameNetwork) -> Tensor:
    """Lay a frame out as a network reads it, made up at the bottom and right to a size it takes.

    Args:
        frame: (H, W, 3) or (N, H, W, 3), uint8, of any size.
        network: whose ``size_multiple`` and ``size_min`` count.

    Returns:
        (N, 3, H', W'), float32, 0 to 255. What is added repeats the frame's last row and column.
    """
    batch = torch.tensor(frame, dtype=torch.float32)
    planes = (batch if frame.ndim == 4 else batch[None]).permute(0, 3, 1, 2)  # (N, 3, H, W)
    multiple, least = network.size_multiple, network.size_min
    down, right = (
        max(least, math.ceil(side / multiple) * multiple) - side for side in planes.shape[2:]
    )
    return F.pad(planes, (0, right, 0, down), mode="replicate")


def frames_of_planes(planes: Tensor, frame: Frame, scale: int) -> Tensor:
    """Lay out what a network made of :func:`planes_of_frames`, without what that had added.

    Args:
        planes: (N, 3, H'*scale, W'*scale), of any range.
        frame: what went in, (H, W, 3) or (N, H, W, 3).
        scale: output pixels per input pixel, along each axis.

    Returns:
        (N, H*scale, W*scale, 3), a view of ``planes``.
    """
    height, width = (side * scale for side in frame.shape[-3:-1])
    return planes[:, :, :height, :width].permute(0, 2, 3, 1)


def _answer(network: FrameNetwork, frame: Frame) -> Tensor:
    """(H, W, 3) or (N, H, W, 3), uint8 -> (N, H*scale, W*scale, 3), 0 to 255, not rounded."""
    with torch.inference_mode():
        planes = network(planes_of_frames(frame, network) / 255)
        return frames_of_planes(planes, frame, network.scale).clamp(0, 1) * 255
