"""A checkpoint becomes one of the bundles of this folder.

    train-style --recipe realtime --style poster --content photos/
    python examples/models/make.py poster.pt --name poster

This is export-engine, but that a bundle takes little room in a repository and holds nobody's
photograph: the golden pair is small, and of a picture that the project draws itself, and there is
no white space in parity.json.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topcoat.train import Checkpoint

SIZE = (80, 60)
"""Width and height of the golden pair in pixels: multiples of 4, which every network here takes."""
DRAWN = "poster"
"""The built-in style that it is cut from: flat areas and edges of all directions."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="what train-style wrote")
    parser.add_argument("--name", help="of the bundle (default: the checkpoint's)")
    parser.add_argument(
        "--folder", type=Path, default=Path(__file__).parent, help="where it goes (default: here)"
    )
    arguments = parser.parse_args(argv)
    name = arguments.name or arguments.checkpoint.stem

    import topcoat.export
    import topcoat.train

    place = arguments.folder / f"{name}.topcoat"
    if place.exists() and not (place / "manifest.json").is_file():
        print(f"make: {place} is no bundle and is left alone; give another --name", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / place.name
        try:
            checkpoint = topcoat.train.load_checkpoint(arguments.checkpoint)
            exported = topcoat.export.export_bundle(checkpoint, made, progress=print)
        except (topcoat.train.TopcoatError, topcoat.export.TopcoatError) as error:
            print(f"make: {error}", file=sys.stderr)
            return 2
        if not exported:
            print(f"make: an engine differs from the network:\n{exported.report}", file=sys.stderr)
            return 1
        make_small(checkpoint, made)
        if place.exists():
            shutil.rmtree(place)
        shutil.copytree(made, place)
    total = sum(file.stat().st_size for file in place.iterdir())
    print(f"{place}: {total / 1e3:.0f} kB")
    return 0


def make_small(checkpoint: "Checkpoint", bundle: Path) -> None:
    """Draw a golden pair, a picture and PyTorch's answer to it, and tighten the report."""
    import numpy as np
    from PIL import Image

    import topcoat.runtime
    from topcoat.export.manifest import identity
    from topcoat.export.parity import reference_frame
    from topcoat.train.styles import draw_style

    width, height = SIZE
    drawn = draw_style(DRAWN)
    box = (0, 0, drawn.width, drawn.width * height // width)
    frame = np.asarray(drawn.resize(SIZE, Image.Resampling.LANCZOS, box=box))
    network = checkpoint.build_network().eval()
    pictures = {"golden_in.png": frame, "golden_out.png": reference_frame(network, frame)}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(bundle / name, optimize=True)
    report = bundle / "parity.json"
    content = json.loads(report.read_text(encoding="utf-8"))
    tight = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    report.write_text(tight + "\n", encoding="utf-8")
    listing = bundle / "manifest.json"
    manifest = json.loads(listing.read_text(encoding="utf-8"))
    manifest["files"] |= {name: identity(bundle / name) for name in (*pictures, report.name)}
    listing.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    topcoat.runtime.verify_files(bundle)


if __name__ == "__main__":
    sys.exit(main())
