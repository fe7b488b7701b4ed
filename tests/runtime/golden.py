"""Golden pairs for the fixture bundles, and PNG files without Pillow."""

import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


def png(frame: Frame, filters: Iterable[int] = (0,)) -> bytes:
    """Encode (H, W, 3); every line by the next of ``filters``, again from the first at the end."""
    kinds = tuple(filters)
    height, width, _ = frame.shape
    values = np.zeros((height + 1, width + 1, 3), int)  # a line above, a pixel to the left
    values[1:, 1:] = frame
    here, left = values[1:, 1:], values[1:, :-1]
    up, corner = values[:-1, 1:], values[:-1, :-1]
    distances = np.abs(np.stack([up - corner, left - corner, left + up - 2 * corner]))
    paeth = np.choose(distances.argmin(axis=0), [left, up, corner])
    nothing = np.zeros_like(here)
    guesses = [nothing, left, up, (left + up) // 2, paeth]
    lines = b""
    for y in range(height):
        kind = kinds[y % len(kinds)]
        lines += bytes([kind]) + ((here - guesses[kind])[y] % 256).astype(np.uint8).tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(content, zlib.crc32(kind))
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle's manifest by a function of the parsed JSON."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def identity(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def put_file(bundle: Path, name: str, data: bytes) -> None:
    """Write a file that is no model and list it."""
    (bundle / name).write_bytes(data)
    edit(bundle, lambda manifest: manifest["files"].update({name: identity(data)}))


def put_golden(bundle: Path, frame: Frame, answer: Frame) -> None:
    put_file(bundle, "golden_in.png", png(frame, range(5)))
    put_file(bundle, "golden_out.png", png(answer, range(5)))


def golden_bundle(source: Path, to: Path, answer: Callable[[Frame], Frame], frame: Frame) -> Path:
    """Copy a fixture bundle without its parity rows and add a golden pair.

    Args:
        source: the fixture bundle.
        to: where the copy goes.
        answer: what the network makes of (N, H, W, 3).
        frame: (H, W, 3).
    """
    shutil.copytree(source, to)
    put_golden(to, frame, answer(frame[None])[0])
    edit(to, lambda manifest: [v.update(parity=[]) for v in manifest["variants"]])
    return to
