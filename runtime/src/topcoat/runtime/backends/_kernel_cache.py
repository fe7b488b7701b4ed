"""Kernels that TensorRT for RTX compiled for this GPU, kept between runs of a program.

The library compiles an engine's kernels when it first runs, which takes far longer than a frame.
Its runtime cache makes that once per machine: a file per engine, GPU generation, driver and version
of the library. A file that is damaged or not accepted is ignored and written again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from topcoat.runtime._files import cache_folder
from topcoat.runtime.backends._cuda import Device

_DIGEST = hashlib.sha256().digest_size

_log = logging.getLogger("topcoat.runtime")


def default_cache_folder() -> Path | None:
    """Return where compiled kernels are kept: the user's cache folder, or None if there is none."""
    return cache_folder("tensorrt-rtx")


class KernelCache:
    """A runtime cache of the library, and the file that it lives in.

    Args:
        cache: an ``IRuntimeCache`` of the library; empty.
        folder: where the file is; made when something is saved.
        key: the engine's key.
        device: the GPU and its driver.
        version: the library's version.
    """

    def __init__(self, cache: Any, folder: Path, key: str, device: Device, version: str) -> None:  # noqa: ANN401 - no types
        self.cache = cache
        self._folder = folder
        self._prefix = f"{key[:16]}-{device.sm}-"
        self.file = folder / (
            f"{self._prefix}{_plain(device.driver or 'unknown')}-{_plain(version)}.cache"
        )
        self._saved = b""
        self._writable = True

    def read(self) -> bool:
        """Take over the kernels of an earlier run; return whether there were any to use."""
        try:
            data = self.file.read_bytes()
        except OSError:  # none yet, or not readable
            return False
        digest, kernels = data[:_DIGEST], data[_DIGEST:]
        # The library checks for whom the kernels are; a damaged file must not get that far.
        if hashlib.sha256(kernels).digest() == digest and self._accepts(kernels):
            self._saved = digest
            return True
        _log.info("%s cannot be used and will be written again", self.file)
        return False

    def save(self) -> None:
        """Write what was compiled since; not being able to write it is no error."""
        if not self._writable:
            return
        try:
            kernels = bytes(self.cache.serialize() or b"")
        except Exception as error:  # as in _accepts()
            _log.info("the compiled kernels cannot be kept: %s", " ".join(str(error).split()))
            self._writable = False
            return
        digest = hashlib.sha256(kernels).digest()
        if not kernels or digest == self._saved:
            return
        try:
            self._write(digest + kernels)
        except OSError as error:
            _log.info("%s cannot be written: %s", self.file, error)
            self._writable = False
            return
        self._saved = digest

    def _accepts(self, kernels: bytes) -> bool:
        try:
            return bool(self.cache.deserialize(kernels))
        except Exception as error:  # pybind turns its exceptions into several built-ins
            _log.debug("%s: %s", self.file, error)
            return False

    def _write(self, data: bytes) -> None:
        # Others must not be able to slip code for the GPU into it.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).replace(self.file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        # Those of an earlier driver or library would lie there for ever.
        for stale in self._folder.glob(f"{self._prefix}*.cache"):
            if stale != self.file:
                stale.unlink(missing_ok=True)


def _plain(text: str) -> str:
    """Return a text as it may stand in a file name."""
    return re.sub(r"[^0-9A-Za-z.]", "_", text)
