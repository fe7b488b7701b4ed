"""Noise frames: what texture networks make their textures of."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from topcoat.train.data import Sample


def noise_frame(height: int, width: int, seed: int | tuple[int, ...]) -> NDArray[np.uint8]:
    """The noise frame of a seed: (height, width, 3) uint8, uniform from 0 to 255.

    The same everywhere: samples of a training run, previews, golden pairs and the runtime's
    ``seed`` are all this function of NumPy's default generator (docs/bundle.md).

    >>> noise_frame(1, 2, seed=0).tolist()
    [[[95, 130, 194], [217, 207, 235]]]
    """
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


class NoiseFrames(Dataset[Sample]):
    """Square noise frames, addressed by their number within the run, as photographs are.

    Args:
        side: of the squares in pixels.
        seed: of the run.
    """

    def __init__(self, side: int, seed: int) -> None:
        self.side, self.seed = side, seed

    def __getitem__(self, index: int) -> Sample:
        """Sample number ``index`` of the run: a function of the seed and the number alone."""
        return Sample(
            torch.from_numpy(noise_frame(self.side, self.side, (self.seed, 1, index))), ()
        )
