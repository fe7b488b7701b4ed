"""How close an enlarged picture is to its original: the measures of the published tables.

Pictures are (H, W, 3) uint8 RGB. The measures themselves are scikit-image's; what is decided here
is what they are given: the Y of YCbCr, without a border, as the super-resolution literature does.
"""

import hashlib
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2ycbcr
from skimage.exposure import match_histograms
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

Picture = NDArray[np.uint8]

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window: what is left within the border must be at least as large."""
LPIPS_MIN = 31
"""The smallest side, within the border, that LPIPS's AlexNet can take."""


def luma(picture: Picture) -> NDArray[np.float64]:
    """Y of YCbCr as ITU-R BT.601 has it for digital pictures, MATLAB's convention.

    Args:
        picture: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) in [16, 235], not rounded.

    >>> luma(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)).round(6).tolist()
    [[16.0, 235.0]]
    """
    y: NDArray[np.float64] = rgb2ycbcr(picture)[..., 0]
    return y


def psnr_y(output: Picture, original: Picture, border: int) -> float:
    """Peak signal-to-noise ratio of the Y channels, in dB, with 255 as the peak.

    Args:
        output: (H, W, 3) uint8 RGB.
        original: the same shape.
        border: pixels that are left out on each side.

    Returns:
        dB; infinity for equal pictures.

    Raises:
        ValueError: the shapes differ, or nothing is left within the border.
    """
    first, second = _inner(output, original, border)
    if np.array_equal(first, second):
        return float("inf")
    return float(peak_signal_noise_ratio(second, first, data_range=255))


def ssim_y(output: Picture, original: Picture, border: int) -> float:
    """Structural similarity of the Y channels, with the Gaussian window of its authors.

    Args:
        output: (H, W, 3) uint8 RGB.
        original: the same shape.
        border: pixels that are left out on each side; at least 11 by 11 must be left.

    Returns:
        At most 1, which only equal pictures reach.

    Raises:
        ValueError: the shapes differ, or too little is left within the border.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility
    to structural similarity": σ 1.5, 11 by 11, covariances over N.
    """
    first, second = _inner(output, original, border)
    if min(first.shape) < SSIM_WINDOW:
        raise ValueError(
            f"{first.shape[1]}x{first.shape[0]} within the border is less than SSIM's window of "
            f"{SSIM_WINDOW}; give larger pictures or a smaller border"
        )
    return float(
        structural_similarity(
            second,
            first,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def match_histogram(picture: Picture, reference: Picture) -> Picture:
    """Give each channel of a picture the histogram of a reference of any size.

    Args:
        picture: (H, W, 3) uint8 RGB: a network's output.
        reference: (h, w, 3) uint8 RGB: the low-resolution input.

    Returns:
        (H, W, 3) uint8, a new picture.

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155), §4.2.
    """
    # On uint8, scikit-image cuts the fractions off, which darkens by half a level.
    matched = match_histograms(
        picture.astype(np.float64), reference.astype(np.float64), channel_axis=-1
    )
    result: Picture = np.rint(matched).astype(np.uint8)
    return result


Distance = Callable[[Picture, Picture, int], float]


def find_lpips() -> tuple[Distance | None, str]:
    """Get LPIPS ready if all that it needs is on this machine; nothing is downloaded.

    Returns:
        A function of (output, original, border), like :func:`psnr_y`, on RGB (0 is equal, higher
        is farther), and what it is made of: ``lpips 0.1.4, AlexNet``; or None and one line about
        what is missing.

    Source: Zhang, Isola, Efros, Shechtman, Wang 2018 (arXiv:1801.03924), the authors' package.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, about themselves
            lpips = import_module("lpips")
            from torchvision.models import AlexNet_Weights
    except ImportError as error:
        return None, (
            f"LPIPS left out: {error.name or error} cannot be imported; "
            "pip install 'topcoat-train[lpips]'"
        )
    except (RuntimeError, OSError, AttributeError) as error:  # torchvision made for another torch
        return None, (
            f"LPIPS left out: it does not load here ({str(error).splitlines()[0]}); install the "
            "torchvision that belongs to this torch"
        )
    name = Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        return None, (
            f"LPIPS left out: its AlexNet weights are not at {path}; put torchvision's {name} there"
        )
    # torchvision's own way would download, and would let the file run code.
    reason = _damage(path)
    if reason:
        return None, f"LPIPS left out: {path} {reason}; get torchvision's {name} again"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(path, map_location="cpu", weights_only=True)
    trunk = network.net.state_dict()  # "slice2.3.weight" is torchvision's "features.3.weight"
    network.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in trunk})
    network.eval()

    def distance(output: Picture, original: Picture, border: int) -> float:
        first, second = (
            torch.from_numpy(np.ascontiguousarray(_cut(picture, border)))
            .permute(2, 0, 1)[None]  # (1, 3, H, W)
            .float()
            / 127.5
            - 1
            for picture in (output, original)
        )
        with torch.inference_mode():
            value: Tensor = network(first, second)
        return float(value)

    return distance, f"lpips {version('lpips')}, AlexNet"


def _damage(path: Path) -> str:
    """Say what keeps a weights file from being used: torchvision's names carry their hash."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = path.stem.rsplit("-", 1)[1]
    return "" if digest.startswith(wanted) else f"is damaged (sha256 {digest[:8]}, not {wanted})"


def _inner(
    output: Picture, original: Picture, border: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if output.shape != original.shape:
        raise ValueError(
            f"output and original must have one shape, got {output.shape} and {original.shape}"
        )
    return luma(_cut(output, border)), luma(_cut(original, border))


def _cut(picture: Picture, border: int) -> Picture:
    height, width = picture.shape[:2]
    if border < 0 or 2 * border >= min(height, width):
        raise ValueError(f"border must be 0 or more and leave pixels of {width}x{height}: {border}")
    return picture[border : height - border, border : width - border]
