"""Folders of photographs -> batches, in parallel, the same ones after every restart.

Sample ``i`` of a run is a pure function of (seed, i): which picture, which crop, mirrored or not.
A resumed run therefore needs no sampler state, and any split over worker processes or devices
yields the same samples.
"""

import contextlib
import functools
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from topcoat.train._errors import ContentError, PictureError
from topcoat.train.pictures import (
    SUFFIXES,
    open_photograph,
    open_rgb,
    resize_shorter_side,
    to_array,
)


def find_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Every jpg, png and webp in a folder tree, sorted by path.

    Raises:
        ContentError: not a folder, or nothing in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        came = "a file" if folder.exists() else "not there"
        raise ContentError(f"content folder {folder} is {came}; give a folder of photographs")
    found = sorted(
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        if Path(root, name).is_file()  # a link may lead nowhere
    )
    if not found:
        raise ContentError(f"no jpg, png or webp below {folder}; give a folder of photographs")
    return found


def fingerprint(pictures: Sequence[Path]) -> str:
    """Hash of the pictures' names and sizes: tells whether a run goes on with the same ones."""
    digest = hashlib.sha256()
    for path in pictures:
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
    return digest.hexdigest()


Fit = Literal["crop", "squash", "native"]
_ZOOM = 1.25
"""Crops are cut from pictures scaled to between 1 and this many times the crop."""


@dataclass(frozen=True)
class Sample:
    """One training picture, or what could be had in its place."""

    pixels: Tensor
    """(crop, crop, C) uint8; empty if no picture of the folder could be used."""
    broken: tuple[str, ...]
    """Files that were asked for first and could not be used: ``path: reason``."""


class Photographs(Dataset[Sample]):
    """Square training pictures, addressed by their number within the run.

    Args:
        pictures: the files.
        crop: side of the square in pixels.
        fit: ``crop``: shorter side scaled to between 1 and 1.25 times ``crop``, random place,
            mirrored half of the time; ``squash``: cut to multiples of 16 from the top left, then
            scaled to the square without regard to aspect, as Johnson's data was made; ``native``:
            cut at a random place, never scaled, mirrored and turned in all eight ways, for
            super-resolution: scaling would invent or lose the detail that is to be learnt.
        seed: of the run.
    """

    def __init__(self, pictures: Sequence[Path], crop: int, fit: Fit, seed: int) -> None:
        self.pictures = list(pictures)
        self.crop, self.fit, self.seed = crop, fit, seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        """Sample number ``index`` of the run, counted over all epochs."""
        count = len(self.pictures)
        epoch, position = divmod(index, count)
        if epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, 0, epoch)).permutation(count)
            self._epoch = epoch
        rng = np.random.default_rng((self.seed, 1, index))
        broken = []
        for offset in range(count):
            path = self.pictures[self._order[(position + offset) % count]]
            try:
                pixels = self._pixels(path, rng)
            except PictureError as error:
                broken.append(str(error))
                continue
            return Sample(torch.from_numpy(pixels.copy()), tuple(broken))
        # Not raised here: out of a worker process an error comes as a traceback in a string.
        return Sample(torch.empty(0), tuple(broken))

    def _pixels(self, path: Path, rng: np.random.Generator) -> NDArray[np.uint8]:
        """One sample of a file, (crop, crop, C): what other kinds of samples replace."""
        return to_array(self._cut(path, rng))

    def _cut(self, path: Path, rng: np.random.Generator) -> Image.Image:
        side = self.crop
        if self.fit == "native":
            patch = _random_square(open_patchable(path, side), side, rng)
            turned = patch.rotate(90 * int(rng.integers(4)))  # exact for multiples of 90 degrees
            return turned.transpose(Image.Transpose.TRANSPOSE) if rng.random() < 0.5 else turned
        image = open_photograph(path, round(_ZOOM * side))
        if self.fit == "squash":
            width, height = (max(16, length // 16 * 16) for length in image.size)
            return image.crop((0, 0, width, height)).resize((side, side), Image.Resampling.BICUBIC)
        scaled = resize_shorter_side(image, round(side * rng.uniform(1.0, _ZOOM)))
        cut = _random_square(scaled, side, rng)
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def open_patchable(path: Path, side: int) -> Image.Image:
    """Read a photograph to cut patches from as it is.

    Raises:
        PictureError: as :func:`~topcoat.train.pictures.open_rgb`, or smaller than the patch.
    """
    image = open_rgb(path)
    if min(image.size) < side:
        raise PictureError(
            f"{path} is {image.width}x{image.height}, smaller than a patch of {side}x{side}"
        )
    return image


def _random_square(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    left = int(rng.integers(0, image.width - side + 1))
    top = int(rng.integers(0, image.height - side + 1))
    return image.crop((left, top, left + side, top + side))


def require_patchable(pictures: Sequence[Path], side: int) -> None:
    """Check that there is a picture to cut patches from; of one, any number can be cut.

    Raises:
        ContentError: none is usable and large enough.
    """
    first = ""
    for path in pictures:
        try:
            open_patchable(path, side)
        except PictureError as error:
            first = first or str(error)
        else:
            return
    raise ContentError(
        f"none of {len(pictures)} pictures can be used for patches of {side}x{side} (first "
        f"problem: {first}); give larger pictures, or a smaller --patch"
    )


def require_usable(pictures: Sequence[Path], batch: int) -> None:
    """Check that a batch can be filled, looking at no more files than that takes.

    Raises:
        ContentError: fewer usable pictures than a batch needs.
    """
    usable, reasons = 0, []
    for path in pictures:
        try:
            open_photograph(path, at_least=16)
        except PictureError as error:
            reasons.append(str(error))
        else:
            usable += 1
            if usable >= batch:
                return
    first = f" (first problem: {reasons[0]})" if reasons else ""
    raise ContentError(
        f"{usable} usable of {len(pictures)} pictures, a batch needs {batch}{first}; "
        f"add photographs or pass --batch {max(1, usable)}"
    )


def batches(
    dataset: Dataset[Sample],
    steps: range,
    batch: int,
    *,
    workers: int,
    rank: int = 0,
    processes: int = 1,
) -> Generator[tuple[Tensor, list[str]]]:
    """Yield this process's share of every step's batch; processes start working at the call.

    Args:
        dataset: the photographs, or noise frames; asked for samples by number.
        steps: numbers of the steps to run; step ``s`` takes samples ``s*batch … s*batch+batch-1``.
        batch: pictures per step over all processes; a multiple of ``processes``.
        workers: decoding processes; 0 decodes in this one.
        rank: number of this process.
        processes: how many share the work.

    Yields:
        (batch/processes, C, crop, crop) uint8, channels-last in memory, and messages about files
        that could not be used.

    Raises:
        ContentError: no picture of the folder can be used any more, or a worker process died.
    """
    share = batch // processes
    numbers = [[step * batch + rank * share + i for i in range(share)] for step in steps]
    loader = DataLoader(
        dataset,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=_forkserver() if workers and os.name == "posix" else None,
        # Of its own: the loader draws from it at every start, also when a run is resumed.
        generator=torch.Generator(),
    )
    with _interrupts_blocked():
        return _received(iter(loader))


def _forkserver() -> Any:  # noqa: ANN401 - the context of a method that not all systems have
    """Processes that begin with this module imported: the first one waits for that, no other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _received(
    source: Iterator[tuple[Tensor, list[str]]],
) -> Generator[tuple[Tensor, list[str]]]:
    while True:
        try:
            pixels, broken = next(source)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ContentError(
                f"a process that decodes pictures died ({reason}); resume, with --workers 0 if it "
                "happens again"
            ) from error
        if not len(pixels):
            raise ContentError(f"no picture can be used any more; the last: {broken[-1]}")
        yield pixels, broken


class Feed:
    """The batches of a run, by as many processes as keep the training from waiting for pictures.

    Sample ``i`` is the same whoever decodes it, so processes can be added in the middle of a run
    without changing what it learns.

    Args:
        dataset: as :func:`batches`, and so are ``steps``, ``batch``, ``rank`` and ``processes``.
        steps: numbers of the steps to run.
        batch: pictures per step over all processes.
        workers: decoding processes; None: one, or one per four cores beside a GPU, and twice as
            many again whenever the training is found waiting, up to one per core.
        rank: number of this process.
        processes: how many share the work.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        steps: range,
        batch: int,
        *,
        workers: int | None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._batches = functools.partial(batches, dataset, rank=rank, processes=processes)
        self._steps, self._batch = steps, batch
        self._most = max(1, _cores() // processes) if workers is None else workers
        first = -(-self._most // 4) if torch.cuda.is_available() else 1
        self.workers = first if workers is None else workers
        """Decoding processes now."""
        self.waited = 0.0
        """Seconds spent waiting for pictures, those for the first batch left out."""
        self.worked = 0.0
        """Seconds between a batch and the next request."""

    @property
    def share_waited(self) -> float:
        """Of the time so far, the part spent waiting for pictures, from 0 to 1."""
        return self.waited / max(1e-9, self.waited + self.worked)

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        """As :func:`batches`."""
        done, counted, until = 0, 0, len(self._steps)
        source = self._batches(self._steps, self._batch, workers=self.workers)
        following: Generator[tuple[Tensor, list[str]]] | None = None
        window = (0.0, 0.0)
        while done < len(self._steps):
            if done == until and following is not None:
                source.close()
                source, following, until = following, None, len(self._steps)
                counted, window = 0, (self.waited, self.worked)
            asked = time.perf_counter()
            got = next(source)
            given = time.perf_counter()
            if counted:  # the first batch also waits for processes to start
                self.waited += given - asked
            done, counted = done + 1, counted + 1
            yield got
            self.worked += time.perf_counter() - given
            if counted % _WINDOW or following is not None or self.workers in (0, self._most):
                continue
            waited, worked = self.waited - window[0], self.worked - window[1]
            window = (self.waited, self.worked)
            ahead = done + _HANDOVER
            if waited > _STARVED * (waited + worked) and ahead + _WINDOW < len(self._steps):
                self.workers = min(self._most, 2 * self.workers)
                following = self._batches(self._steps[ahead:], self._batch, workers=self.workers)
                until = ahead


_WINDOW = 16
"""Batches after which it is asked whether the training waited."""
_STARVED = 0.1
"""Share of the time, spent waiting for pictures, from which more processes are started."""
_HANDOVER = 8
"""Batches that the processes at work still bring while more are being started."""


def _cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes that never see Ctrl-C, which reaches the whole process group.

    A worker that died of it would fail the step that is to be saved. Signals that are blocked here
    stay blocked in the processes that are started meanwhile; this one gets them afterwards.
    """
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock what is blocked here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collate(samples: list[Sample]) -> tuple[Tensor, list[str]]:
    broken = [message for sample in samples for message in sample.broken]
    if not all(len(sample.pixels) for sample in samples):
        return torch.empty(0), broken
    pixels = torch.stack([sample.pixels for sample in samples])  # (B, H, W, 3)
    return pixels.permute(0, 3, 1, 2), broken
