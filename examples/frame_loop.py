"""Style every frame of a loop: the smallest program around a bundle.

    python examples/frame_loop.py candy.topcoat --frames 60 --size 640x360 --save last.png

A moving test picture stands in for a renderer. Two buffers are made once and used for every
frame, which is all that a real program needs to do as well.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import topcoat.runtime as tr


def render(number: int, out: tr.Frame) -> None:
    """Draw frame ``number``: a disc that moves over a gradient. ``out`` is (H, W, 3) uint8."""
    height, width, _ = out.shape
    y, x = np.ogrid[:height, :width]
    out[..., 0] = 255 * x // width
    out[..., 1] = 255 * y // height
    out[..., 2] = 128
    centre = width * (0.5 + 0.3 * np.sin(number / 20))
    out[(x - centre) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2] = (250, 210, 60)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--size", default="640x360", help="WIDTHxHEIGHT (default: 640x360)")
    parser.add_argument("--save", type=Path, help="write the last frame (needs Pillow)")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    try:
        model = tr.open(args.bundle)
    except tr.TopcoatError as error:
        print(f"frame_loop: {error}", file=sys.stderr)
        return 2
    with model:
        print(model.explain())
        frame = np.empty((height, width, 3), np.uint8)
        styled = np.empty(
            (height * model.manifest.scale, width * model.manifest.scale, 3), np.uint8
        )
        times = []
        for number in range(args.frames):
            render(number, frame)
            start = time.perf_counter()
            model.process(frame, out=styled)
            times.append((time.perf_counter() - start) * 1e3)
    print(f"{args.frames} frames of {width}x{height}: median {np.median(times):.1f} ms a frame")
    if args.save:
        from PIL import Image

        Image.fromarray(styled).save(args.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
