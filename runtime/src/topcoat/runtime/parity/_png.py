"""Read the pictures of a bundle without Pillow: 8-bit RGB in PNG, as the exporter writes them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from topcoat.runtime.frames import Frame

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS = 1 << 26
"""A picture beside a bundle is small; a file that claims more is not unpacked."""


def frame_from_png(data: bytes) -> Frame:
    """Decode a PNG file.

    Args:
        data: a PNG of 8 bits per channel, RGB, not interlaced.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        ValueError: it is damaged, no PNG, or of another kind; the text says which.

    Source: W3C, Portable Network Graphics (PNG) Specification.
    """
    header, body = b"", []
    for kind, content in _chunks(data):
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            body.append(content)
    if len(header) != 13:
        raise ValueError("has no header")
    width, height, *form = struct.unpack(">IIBBBBB", header)
    if form != [8, 2, 0, 0, 0]:
        raise ValueError("is not RGB of 8 bits, not interlaced")
    if not 0 < width * height <= _MOST_PIXELS:
        raise ValueError(f"claims to have {width}x{height} pixels")
    line = 1 + 3 * width
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(b"".join(body), height * line + 1)
    except zlib.error as error:
        raise ValueError(f"cannot be unpacked ({error})") from error
    if len(raw) != height * line:
        raise ValueError("holds more or fewer pixels than it says")
    lines = np.frombuffer(raw, np.uint8).reshape(height, line)
    frame = np.empty((height, width, 3), np.uint8)
    above = np.zeros((width, 3), np.uint8)
    for row, filtered in zip(frame, lines, strict=True):
        row[:] = _unfiltered(int(filtered[0]), filtered[1:].reshape(width, 3), above)
        above = row
    return frame


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(_SIGNATURE):
        raise ValueError("is no PNG")
    at = len(_SIGNATURE)
    while True:
        if at + 12 > len(data):
            raise ValueError("is cut off")
        length, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError("is cut off")
        (checksum,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(content, zlib.crc32(kind)) != checksum:
            raise ValueError("is damaged")
        if kind == b"IEND":
            return
        yield kind, content
        at = end + 4


def _unfiltered(kind: int, line: Frame, above: Frame) -> Frame:
    """Undo one line's filter; (W, 3) each. Sums wrap around at 256, as the format means it."""
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, axis=0, dtype=np.uint8)
    if kind == 2:
        return line + above
    if kind == 3:
        return _averaged(line, above)
    if kind == 4:
        return _paeth(line, above)
    raise ValueError("has a line of an unknown filter")


def _averaged(line: Frame, above: Frame) -> Frame:
    given, over = line.ravel().tolist(), above.ravel().tolist()
    found = [0, 0, 0]
    for i, value in enumerate(given):
        found.append(value + (found[i] + over[i]) // 2 & 255)
    return np.array(found[3:], np.uint8).reshape(line.shape)


def _paeth(line: Frame, above: Frame) -> Frame:
    given, over = line.ravel().tolist(), [0, 0, 0, *above.ravel().tolist()]
    found = [0, 0, 0]
    for i, value in enumerate(given):
        left, up, corner = found[i], over[i + 3], over[i]
        # Distances of left + up - corner to each of the three.
        to_left, to_up = abs(up - corner), abs(left - corner)
        to_corner = abs(left + up - 2 * corner)
        if to_left <= to_up and to_left <= to_corner:
            nearest = left
        else:
            nearest = up if to_up <= to_corner else corner
        found.append(value + nearest & 255)
    return np.array(found[3:], np.uint8).reshape(line.shape)
