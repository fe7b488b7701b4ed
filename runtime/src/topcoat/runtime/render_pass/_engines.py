"""The engines that may run a pass's frames: which one does, and when it is tried again."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from topcoat.runtime._choice import list_candidates
from topcoat.runtime._errors import (
    BackendError,
    FrameOutsideProfileError,
    InvalidResultError,
    PassError,
    TopcoatError,
)
from topcoat.runtime.backends import all_backends, find_backend
from topcoat.runtime.bundle import TEXTURE, Manifest, SizeRule, read_manifest
from topcoat.runtime.frames import Frame, fit_size
from topcoat.runtime.model import Model, open_model
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._types import EventKind

DEVICE_BACKENDS = ("tensorrt-rtx", "tensorrt")
"""Those whose sessions are a :class:`topcoat.runtime.backends.DeviceSession`."""

_CALM_FRAMES = 300
"""After so many good frames in a row a failed engine's rest is half as long again."""

_log = logging.getLogger("topcoat.runtime")


class Runner(Protocol):
    """One loaded engine."""

    def run(self, source: Frame, result: Frame) -> object:
        """Run a frame and return ``result``; what else is returned is looked at and refused.

        Args:
            source: (H, W, 3) uint8, RGB, C-contiguous.
            result: (H * scale, W * scale, 3) likewise.
        """

    def close(self) -> None:
        """Free it."""


class DeviceRunner(Runner, Protocol):
    """A loaded engine that also runs frames which are in its GPU's memory."""

    def run_device(self, source: object, result: object, stream: int | None) -> None:
        """Run a frame; see :meth:`topcoat.runtime.Model.process_device`."""


@dataclass(eq=False)
class Seat:
    """One engine of a bundle, loaded or not, in its place in the order of merit."""

    name: str
    """e.g. "openvino-cpu bf16"."""
    open: Callable[[], Runner]
    runner: Runner | None = None
    sizes: set[tuple[int, int]] = field(default_factory=set)
    """Frame sizes that it has run: for the first of each it may take longer."""
    unfit: set[tuple[int, int]] = field(default_factory=set)
    """Frame sizes that it was not built for."""
    demoted: bool = False
    """Whether it failed and has not worked since."""
    wait_s: float = 0.0
    """How long it rests after its last failure. Only good frames make it less, so that an engine
    that fails time and again is tried ever more rarely."""
    retry_at: float = 0.0
    """When it may be tried again, in s of the clock."""
    calm: int = 0
    """Good frames since its last failure, or since its rest was last made less."""
    busy: threading.Event | None = None
    """Set when the thread that it hangs in has come back; None: it does not hang."""
    trying: bool = False
    """Another thread than the worker finds out whether it works again."""
    warming: bool = False
    """Another thread than the worker runs frames of a new size on it, for which frames wait."""
    loading: threading.Lock = field(default_factory=threading.Lock)
    takes_device: bool = False
    """Its runner is a :class:`DeviceRunner`."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _holders: int = 0
    _unwanted: bool = False
    _successor: tuple[Runner, set[tuple[int, int]]] | None = None

    @property
    def hangs(self) -> bool:
        """Whether a thread that was given up is still inside it."""
        return self.busy is not None and not self.busy.is_set()

    def state(self, now: float) -> str:
        """Return how it does, in words."""
        if self.hangs:
            return "hangs; it is tried again when it has come back"
        if self.trying:
            return "failed; it is being tried again"
        if self.demoted:
            return f"failed; it is tried again in {max(0.0, self.retry_at - now):.0f} s"
        return "loaded" if self.runner is not None else "loaded when it is needed"

    def begin_trial(self) -> bool:
        """Keep other threads away while this one tries the engine; False: another one does."""
        with self._lock:
            if self.trying or self.hangs:
                return False
            self.trying = True
            self._holders += 1
            return True

    def end_trial(self) -> None:
        """Let others use it, or free it if that was wanted meanwhile."""
        self._let_go(trying=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody free the engine while this thread, which is not the worker, is inside it.

        Whoever wants it freed meanwhile goes on at once, and this thread frees it at the end.
        """
        with self._lock:
            self._holders += 1
        try:
            yield
        finally:
            self._let_go()

    def _let_go(self, *, trying: bool = False) -> None:
        with self._lock:
            self._holders -= 1
            free = self._unwanted and self._holders == 0
            runners = self._take_out() if free else ()
            if trying:
                self.trying = False
        _close(runners)

    def close(self) -> None:
        """Free the engine, unless a thread is inside it, which then does so when it leaves."""
        with self._lock:
            self._unwanted = self._holders > 0
            if self._unwanted or self.hangs:
                return
            runners = self._take_out()
        _close(runners)

    def free(self) -> None:
        """Free the engine, on the thread that it hung in or when no thread does."""
        with self._lock:
            runners = self._take_out()
        _close(runners)

    def offer(self, runner: Runner, sizes: set[tuple[int, int]]) -> None:
        """Let a second session of this engine take the first one's place before the next frame.

        Args:
            runner: that one, which is freed if the first one is gone.
            sizes: that it has run.
        """
        with self._lock:
            former, self._successor = self._successor, (runner, sizes)
            wanted = self.runner is not None and not self.demoted and not self._unwanted
            if not wanted:
                self._successor = None
        if former is not None:
            _close((former[0],))
        if not wanted:
            _close((runner,))

    def known_sizes(self) -> set[tuple[int, int]]:
        """Return the frame sizes that it has run, or the session that is to take its place."""
        with self._lock:
            return set(self.sizes if self._successor is None else self._successor[1])

    def change_over(self) -> None:
        """Use the session that :meth:`offer` has brought; for the thread that runs frames."""
        if self._successor is None:
            return
        with self._lock:
            if self._successor is None:
                return
            old = self.runner
            (self.runner, sizes), self._successor = self._successor, None
            self.sizes = sizes
        if old is not None:
            start(lambda: _close((old,)), "closing")

    def _take_out(self) -> tuple[Runner, ...]:
        """Return what is to be freed; for those who hold the lock."""
        self._unwanted = False
        self.sizes = set()
        found = [self.runner, None if self._successor is None else self._successor[0]]
        self.runner = self._successor = None
        return tuple(runner for runner in found if runner is not None)


def _close(runners: tuple[Runner, ...]) -> None:
    for runner in runners:
        with contextlib.suppress(Exception):  # it may be broken, which is why it is closed
            runner.close()


class EnginesRestError(BackendError):
    """No engine may be tried on this frame: each failed on an earlier one, and rests."""


class Source(Protocol):
    """Where engines come from: a bundle, or a script in tests."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def scale(self) -> int:
        """Pixels of the result for each pixel of the frame, on each side."""

    @property
    def size(self) -> SizeRule:
        """Which frame sizes the network takes as they are."""

    @property
    def memory_per_pixel(self) -> int | None:
        """Bytes of working memory for each pixel of the frame; None: not known."""

    def open(self) -> list[Seat]:
        """Return the engines, best first, of which the first is loaded.

        Raises:
            TopcoatError: there is none.
        """

    def seats(self) -> list[Seat]:
        """Return the same, in the order in which they are to be tried, and load none.

        For when ``open`` hangs, which does not say in which of them.

        Raises:
            TopcoatError: there is none.
        """

    def explain(self) -> str:
        """Return which engines there are and why not others, in lines; "" before ``open``."""


class _ModelRunner:
    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, source: Frame, result: Frame) -> object:
        return self.model.process(source, result)

    def run_device(self, source: object, result: object, stream: int | None) -> None:
        self.model.process_device(source, result, stream)

    def close(self) -> None:
        self.model.close()


class BundleSource:
    """The engines of a bundle.

    Args:
        bundle: the folder.
        options: of :func:`topcoat.runtime.open`: backend, precision, threads, allow_unverified,
            variant.

    Raises:
        BundleError: it cannot be read.
        PassError: it makes textures, which need no frames.
        BackendError: an option is none that any engine could be loaded with.
    """

    def __init__(self, bundle: str | Path, **options: Any) -> None:  # noqa: ANN401
        self.manifest: Manifest = read_manifest(bundle)
        self.path = self.manifest.folder
        if self.manifest.task == TEXTURE:
            raise PassError(
                f"{self.manifest.name} makes textures out of noise, wanted a bundle that repaints"
                " or enlarges frames; use topcoat texture for it"
            )
        backend, threads = options.get("backend", "auto"), options.get("threads")
        if backend != "auto":
            find_backend(backend)
        if threads is not None and threads < 1:
            raise BackendError(f"threads is {threads}, wanted at least 1 (or None for the default)")
        self._options = options
        self._explanation = ""

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.manifest.name

    @property
    def scale(self) -> int:
        """Of the manifest."""
        return self.manifest.scale

    @property
    def size(self) -> SizeRule:
        """Of the manifest."""
        return self.manifest.size

    @property
    def memory_per_pixel(self) -> int | None:
        """Of the manifest."""
        return self.manifest.memory_per_pixel

    def explain(self) -> str:
        """Return what ``topcoat explain`` says."""
        return self._explanation

    def open(self) -> list[Seat]:
        """Load the best engine and list the others that may take its place."""
        options = {"fallback": False, **self._options}
        model = open_model(self.path, **options)
        explanation = model.explain()
        self._explanation = str(explanation)
        chosen = explanation.chosen
        assert chosen is not None
        seats = [self._seat(chosen, _ModelRunner(model))]
        if self._options.get("backend", "auto") == "auto":
            # Without a passed check an engine takes no one's place unasked.
            seats += [
                self._seat(other)
                for other in explanation.candidates
                if other.usable and other.verified and other != chosen
            ]
        return seats

    def seats(self) -> list[Seat]:
        """List the engines that may be loaded, in order of merit; they are not raced."""
        options = self._options
        found = list_candidates(
            self.manifest,
            all_backends(),
            backend=options.get("backend", "auto"),
            precision=options.get("precision"),
            allow_unverified=options.get("allow_unverified", False),
        )
        wanted = options.get("variant")
        seats = [self._seat(one) for one in found if one.usable and wanted in (None, one.variant)]
        if not seats:
            raise BackendError(f"no engine that is here can run {self.name}")
        return seats

    def _seat(self, candidate: Any, runner: Runner | None = None) -> Seat:  # noqa: ANN401
        options = {
            **self._options,
            "backend": candidate.backend,
            "precision": candidate.compute,
            "variant": candidate.variant,
            "fallback": False,
        }

        def load() -> Runner:
            return _ModelRunner(open_model(self.path, **options))

        name = f"{candidate.backend} {candidate.compute}"
        return Seat(name, load, runner, takes_device=candidate.backend in DEVICE_BACKENDS)


class Roster:
    """The seats of one bundle. Methods may be called from any thread.

    Args:
        source: where they come from.
        seats: best first.
        retry_s: a failed engine rests so long, twice as long after each further failure,
        retry_max_s: and so long at most.
    """

    def __init__(
        self, source: Source, seats: list[Seat], *, retry_s: float, retry_max_s: float
    ) -> None:
        self.source = source
        self._seats = seats
        self._retry_s = retry_s
        self._retry_max_s = retry_max_s
        self._lock = threading.Lock()
        self._news: list[tuple[EventKind, str]] = []

    @property
    def seats(self) -> tuple[Seat, ...]:
        """All of them, best first."""
        return tuple(self._seats)

    def candidates(self, size: tuple[int, int], now: float, *, device: bool = False) -> list[Seat]:
        """Return what may run a frame of this (height, width) now, best first.

        Only a failed engine whose rest is over is followed by others: it may fail again.

        Args:
            size: of the frame.
            now: s of the clock.
            device: the frame is in the GPU's memory.
        """
        found = []
        with self._lock:
            for seat in self._seats:
                if device and not seat.takes_device:
                    continue
                if size in seat.unfit or seat.trying or seat.hangs:
                    continue
                if seat.demoted and now < seat.retry_at:
                    continue
                found.append(seat)
                if not seat.demoted:
                    break
        return found

    def outlook(self, now: float, *, device: bool = False) -> str:
        """Return when an engine will be tried, for a frame that none can run."""
        with self._lock:
            seats = [seat for seat in self._seats if seat.takes_device or not device]
            resting = [seat for seat in seats if seat.demoted]
            if not resting:
                return "no engine takes frames of this size"
            if any(seat.trying for seat in resting):
                return " and ".join(
                    f"{seat.name} is being tried again" for seat in resting if seat.trying
                )
            if all(seat.hangs for seat in resting):
                return " and ".join(f"{seat.name} hangs" for seat in resting)
            nearest = min(resting, key=lambda seat: seat.retry_at)
            return f"{nearest.name} is tried again in {max(0.0, nearest.retry_at - now):.1f} s"

    def failed(
        self, seat: Seat, error: BaseException, size: tuple[int, int], now: float
    ) -> str | None:
        """Demote an engine, and return the line that says so; None if it was demoted already.

        It is freed, to be loaded anew when it is tried again, unless only its result was wrong or
        the frame's size is none of its. The error lets go of its stack.
        """
        _log.debug("%s failed", seat.name, exc_info=error)
        without_frames(error)
        with self._lock:
            if isinstance(error, FrameOutsideProfileError):
                seat.unfit.add(size)
                return f"{seat.name} does not take frames of {size[1]}x{size[0]}: {error}"
            first, seat.demoted = not seat.demoted, True
            seat.wait_s = min(self._retry_max_s, max(self._retry_s, 2 * seat.wait_s))
            seat.retry_at = now + seat.wait_s
            seat.calm = 0
        if not isinstance(error, InvalidResultError):
            seat.close()
        if not first:
            return None
        return (
            f"{seat.name} failed and is tried again in {seat.wait_s:g} s"
            f" ({type(error).__name__}: {one_line(error)})"
        )

    def worked(self, seat: Seat, size: tuple[int, int]) -> str | None:
        """Note that an engine ran a frame; return a line if it had been demoted."""
        if size not in seat.sizes:
            seat.sizes.add(size)
        if not seat.wait_s:
            return None
        with self._lock:
            seat.calm += 1
            if seat.calm >= _CALM_FRAMES:
                seat.calm = 0
                seat.wait_s = seat.wait_s / 2 if seat.wait_s > self._retry_s else 0.0
            again, seat.demoted = seat.demoted, False
            seat.busy = None
        return f"{seat.name} works again" if again else None

    def add_news(self, kind: EventKind, line: str | None) -> None:
        """Keep a line for whoever runs the next frame; None is none."""
        if line is not None:
            with self._lock:
                self._news.append((kind, line))

    def take_news(self) -> list[tuple[EventKind, str]]:
        """Return the lines that nobody has told yet."""
        if not self._news:
            return []
        with self._lock:
            news, self._news = self._news, []
            return news

    def close(self) -> None:
        """Free every engine that does not hang."""
        for seat in self._seats:
            seat.close()


Rosters = dict[str | None, Roster]
"""Of the ladder's bundles, by their path; None is the bundle of the pass."""


def close_all(rosters: Mapping[str | None, Roster]) -> None:
    """Free the engines of several bundles."""
    for roster in rosters.values():
        roster.close()


def engine_size(source: Source, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) that the network is given for a frame of this size."""
    return fit_size(height, width, source.size)


def load_seat(seat: Seat) -> Runner:
    """Return a seat's engine, loading it if need be.

    Raises:
        BackendError: it cannot be loaded.
    """
    with seat.loading:
        runner = seat.runner
        if runner is None:
            runner = seat.runner = open_seat(seat)
        return runner


def open_seat(seat: Seat) -> Runner:
    """Return another session of a seat's engine.

    Raises:
        BackendError: it cannot be loaded.
    """
    try:
        return seat.open()
    except TopcoatError:
        raise
    except BaseException as error:  # an engine of somebody else
        raise BackendError(f"{seat.name} cannot be loaded: {one_line(error)}") from error


def failed_because(error: BaseException) -> str:
    """Return why a frame has no result, for :class:`Result`."""
    if isinstance(error, EnginesRestError):
        return f"every engine that there is has failed: {one_line(error)}"
    return f"the engine failed: {one_line(error)}"


def without_frames(error: BaseException) -> BaseException:
    """Make an error that is kept let go of the stack that it came from, pictures and all.

    What is on that stack often refers to the error in turn, and such rings wait for Python's cycle
    collector, which counts objects and not bytes. The log has the stack at the level DEBUG.
    """
    at: BaseException | None = error
    while at is not None:
        at.__traceback__ = None
        at = at.__cause__ or at.__context__
    return error


def one_line(error: BaseException) -> str:
    """Return an error's text as one line of reasonable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
