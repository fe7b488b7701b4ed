"""Whether pictures can be evaluated: found out before the work on the first one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from topcoat.train import _memory, metrics
from topcoat.train._errors import PictureError
from topcoat.train.metrics import Picture
from topcoat.train.networks import FrameNetwork
from topcoat.train.pictures import open_rgb, to_array


def open_cut(path: Path, scale: int) -> tuple[tuple[int, int], Picture]:
    """Width and height of the file, and its pixels (H, W, 3) cut to multiples of the scale.

    Raises:
        PictureError: as :func:`~topcoat.train.pictures.open_rgb`, or not enough memory.
    """
    image: Image.Image = open_rgb(path)
    width, height = (side // scale * scale for side in image.size)
    with _memory.memory_for(f"to read {path} of {image.width}x{image.height}"):
        cut = to_array(image)[:height, :width]
        return image.size, np.array(cut, order="C")  # a copy: PIL's own is read-only


def least_side(
    networks: Mapping[str, FrameNetwork], scale: int, border: int, *, lpips: bool
) -> tuple[int, str]:
    """The smallest side of an original, and who wants it."""
    measure = max(metrics.SSIM_WINDOW, metrics.LPIPS_MIN if lpips else 0)
    wanted = [
        (scale, f"one pixel at 1/{scale} of the size"),
        (
            measure + 2 * border,
            f"the {measure} pixels of {'LPIPS' if lpips else 'SSIM'} within the border of {border}",
        ),
        *(
            (network.size_min * scale, f"the network's {network.size_min} pixels x {scale}")
            for network in networks.values()
        ),
    ]
    side, reason = max(wanted, key=lambda entry: entry[0])
    return -(-side // scale) * scale, reason


def check_pictures(
    pictures: Sequence[Path],
    scale: int,
    least: tuple[int, str],
    networks: Mapping[str, FrameNetwork],
    quiet: bool,
) -> tuple[list[Path], list[str]]:
    """Decode everything once: the usable files, and what is wrong with the others."""
    usable, problems = [], []
    # A system that hands out more memory than it has answers the lack of it by killing the process.
    available = _memory.available_memory()
    needs = {
        name: _memory.least_memory_per_pixel(network) or 0
        for name, network in networks.items()
        if all(p.device.type == "cpu" for p in network.parameters())
    }
    hungriest, per_pixel = max(needs.items(), key=lambda entry: entry[1], default=("", 0))
    for path in tqdm(pictures, unit="picture", desc="checking", leave=False, disable=quiet or None):
        try:
            size, original = open_cut(path, scale)
        except PictureError as error:
            problems.append(str(error))
            continue
        height, width = original.shape[:2]
        if min(height, width) < least[0]:
            problems.append(
                f"{path} is {size[0]}x{size[1]}; wanted: at least {least[0]} pixels a side, for "
                f"{least[1]}"
            )
            continue
        need = per_pixel * (height // scale) * (width // scale)
        if available is not None and need > available:
            problems.append(
                f"{path} is {size[0]}x{size[1]}, and {hungriest} needs {need / 2**30:.1f} GiB of "
                f"memory for that at the very least; {available / 2**30:.1f} GiB are free"
            )
            continue
        usable.append(path)
    return usable, problems


def complaint(problems: Sequence[str], count: int, skip_broken: bool) -> str:
    """What to say of ``count`` pictures with problems among them."""
    if len(problems) == count:
        return _joined(f"none of {count} pictures can be used", problems)
    advice = "mend or remove them, or average over the others with --skip-broken"
    return _joined(f"{len(problems)} of {count} pictures cannot be used; {advice}", problems)


def _joined(head: str, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"{head}: {problems[0]}"
    more = [f"  and {len(problems) - 20} more"] if len(problems) > 20 else []
    return "\n".join([f"{head}:", *(f"  {line}" for line in problems[:20]), *more])
