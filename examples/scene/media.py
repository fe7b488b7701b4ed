"""Write pictures and videos, whole or not at all."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scene.options import ExampleError

Picture = npt.NDArray[np.uint8]
ENCODERS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
ANIMATION = ".webp"
"""What pages and documents show like a picture."""
VIDEOS = (*ENCODERS, ANIMATION)


def check_target(path: Path, endings: Iterable[str]) -> None:
    """Refuse what could not be written, before minutes are spent on making it.

    Raises:
        ExampleError: the ending is another, or the folder is missing or closed to us.
    """
    if path.suffix.lower() not in endings:
        raise ExampleError(f"{path} ends in {path.suffix!r}, wanted {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise ExampleError(f"the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ExampleError(f"{path} cannot be written; give another name")


def to_rgb(image: Picture, out: Picture, columns: int | None = None) -> None:
    """Copy (H, W, 4) pixels whose first row is the bottom one to (H, W, 3) with the top one first.

    Args:
        image: RGBA as OpenGL has it.
        out: where to.
        columns: copy only so many from the left, and draw a line where they end; None: all.
    """
    for channel in range(3):  # several times faster than all at once
        out[:, :columns, channel] = image[::-1, :columns, channel]
    if columns is not None:
        out[:, columns - 1 : columns + 1] = 255


def write_png(path: Path, picture: Picture) -> None:
    """Write an (H, W, 3) uint8 RGB picture."""
    from PIL import Image

    with _whole(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")


def write_video(path: Path, frames: Iterable[Picture], fps: int) -> None:
    """Write (H, W, 3) uint8 RGB frames of one size, H and W even, as H.264, VP9 or a WebP loop.

    Raises:
        ExampleError: the encoder refuses them.
    """
    if path.suffix.lower() == ANIMATION:
        from PIL import Image

        first, *others = (Image.fromarray(frame) for frame in frames)
        with _whole(path) as partial:
            first.save(
                partial, format="WebP", save_all=True, append_images=others, quality=60,
                duration=[round(1000 * (n + 1) / fps) - round(1000 * n / fps)
                          for n in range(len(others) + 1)], loop=0,
            )  # fmt: skip
        return
    import av

    with _whole(path) as partial:
        try:
            with av.open(str(partial), "w") as container:
                stream: Any = None
                for frame in frames:
                    if stream is None:
                        stream = container.add_stream(ENCODERS[path.suffix.lower()], rate=fps)
                        stream.height, stream.width = frame.shape[:2]
                        stream.pix_fmt = "yuv420p"
                        stream.options = {"crf": "20"}
                        stream.codec_context.time_base = Fraction(1, fps)
                    for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                        container.mux(packet)
                for packet in stream.encode(None) if stream is not None else ():
                    container.mux(packet)
        except av.FFmpegError as error:
            raise ExampleError(f"{path} could not be written ({error}); try .mkv") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    with _whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
