"""When an engine fails on a frame: which one takes over, for which frames, and who is told.

What was chosen at ``open`` can fail later, on one frame: a built engine does not take its size, the
device has too little memory for it or stops working. :class:`Engines` holds every usable engine of
a bundle in order of merit, loads another one when it is needed, and remembers for each frame size
which one runs it. Nothing happens in silence: each change is a FallbackWarning, a line in the log
``topcoat.runtime`` and an entry of ``Model.explain()``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from topcoat.runtime._errors import (
    BackendError,
    BundleError,
    DeviceLostError,
    DeviceMemoryError,
    FallbackWarning,
    FrameOutsideProfileError,
)
from topcoat.runtime._explanation import Candidate, EngineName, Explanation, Fallback
from topcoat.runtime.backends import Session
from topcoat.runtime.bundle import Profile

FrameSize = tuple[int, int, int]
"""(batch, height, width) of what ``process`` was given."""

_Change = tuple[FrameSize, EngineName, EngineName, int]
"""What failed on which frames, what runs them now and in how many tiles."""

SIZES_KEPT = 1024
"""Frame sizes of which it is remembered what runs them; older ones are found out again."""

_log = logging.getLogger("topcoat.runtime")


@dataclass(slots=True, eq=False)
class Way:
    """One usable engine and how to load it."""

    candidate: Candidate
    load: Callable[[], Session]
    """Reads the model, compares its hash and loads it."""
    profiles: tuple[Profile, ...] = ()
    """The frame sizes that it was built for; empty if it takes any."""
    session: Session | None = None
    """None until it is needed, and after it is closed."""

    @property
    def engine(self) -> EngineName:
        return self.candidate.engine


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why an engine cannot run something.

    Not the exception itself: one that is kept keeps the frames of its traceback, and with them the
    caller's pictures.
    """

    way: Way
    kind: type[BackendError]
    text: str

    @classmethod
    def of(cls, way: Way, error: BackendError | BundleError) -> _Failure:
        kind = type(error) if isinstance(error, BackendError) else BackendError
        return cls(way, kind, str(error))

    def __str__(self) -> str:
        return f"{self.way.engine}: {self.text}"


@dataclass(slots=True)
class _Size:
    """What is known about frames of one size."""

    way: Way | None = None
    """What runs them; None while that is being found out."""
    tried: list[_Failure] = field(default_factory=list)
    """What cannot run them."""


class Engines:
    """The usable engines of an open bundle, best first. Belongs to one thread at a time.

    Args:
        explanation: what was chosen.
        ways: the engines in the order in which they take over; the first one is loaded.
        fallback: whether the next one takes over whatever happens. If not, it does so only for
            frame sizes that an engine was not built for, and any other error is raised.
    """

    def __init__(self, explanation: Explanation, ways: Sequence[Way], *, fallback: bool) -> None:
        self._explanation = explanation
        self._ways = list(ways)
        self._order = tuple(ways)
        self._fallback = fallback
        self._sizes: OrderedDict[FrameSize, _Size] = OrderedDict()
        self._records: OrderedDict[FrameSize, Fallback] = OrderedDict()
        self._told: OrderedDict[_Change, None] = OrderedDict()
        self._gone: list[_Failure] = []

    @classmethod
    def only(cls, explanation: Explanation, session: Session) -> Engines:
        """Return the engines of a bundle of which one session is all there is."""
        assert explanation.chosen is not None

        def load() -> Session:
            raise BackendError("the engine was given loaded and cannot be loaded again")

        way = Way(candidate=explanation.chosen, load=load, session=session)
        return cls(explanation, [way], fallback=False)

    @property
    def explanation(self) -> Explanation:
        """What was chosen and what has taken its place; a new object after every change."""
        return self._explanation

    @property
    def fallback(self) -> bool:
        """Whether another engine takes over whatever happens."""
        return self._fallback

    def loaded(self, size: FrameSize) -> Session | None:
        """Return the engine that runs frames of this size; None if it is to be found by ``load``.

        Args:
            size: of the frames, as ``process`` was given them.
        """
        known = self._sizes.get(size)
        way = known.way if known is not None else self._ways[0] if self._ways else None
        return None if way is None else way.session

    def load(self, size: FrameSize, given: tuple[int, int]) -> Session:
        """Find and load the engine that runs frames of this size.

        Args:
            size: of the frames, as ``process`` was given them.
            given: (height, width) that the engine is given: padded, or of a tile.

        Raises:
            BackendError: none is left that can.
        """
        way = self._find(size, given)
        if self._sizes[size].tried:
            self._record(size, way, 1)
        assert way.session is not None
        return way.session

    def failed(self, size: FrameSize, given: tuple[int, int], error: BackendError) -> None:
        """Let the next engine run frames of this size, because the present one raised ``error``.

        Raises:
            BackendError: no other one may or can run them: ``error`` itself where there was one
                only, else one that says why each cannot.
        """
        may = self._fallback or isinstance(error, FrameOutsideProfileError)
        if not may or len(self._order) == 1:
            raise error
        known = self._sizes.get(size)
        way = self._ways[0] if known is None or known.way is None else known.way
        failure = _Failure.of(way, error)
        if isinstance(error, DeviceLostError):
            self._remove(failure)
        if known is None:
            known = self._remember(size)
        known.way = None
        known.tried.append(failure)
        self._record(size, self._find(size, given), 1)

    def cut(self, size: FrameSize, tiles: int, error: DeviceMemoryError) -> None:
        """Note that frames of this size are run in smaller parts, because memory ran short."""
        known = self._sizes.get(size)
        way = self._ways[0] if known is None or known.way is None else known.way
        self._record(size, way, tiles, error)

    def close(self) -> None:
        """Free every engine that is loaded; none can be used again."""
        for way in self._ways:
            if way.session is not None:
                way.session.close()
                way.session = None
        self._ways = []
        self._order = ()
        self._sizes.clear()

    def _find(self, size: FrameSize, given: tuple[int, int]) -> Way:
        """Find and load the best engine that has not failed on this size, and remember it."""
        known = self._sizes.get(size) or self._remember(size)
        for way in list(self._ways):
            if any(failure.way is way for failure in known.tried):
                continue
            if way.profiles and not any(profile.holds(*given) for profile in way.profiles):
                sizes = ", ".join(str(profile) for profile in way.profiles)
                text = f"it was built for frames of {sizes}"
                known.tried.append(_Failure(way, FrameOutsideProfileError, text))
                continue
            if way.session is None:
                try:
                    way.session = way.load()
                except (BackendError, BundleError) as error:
                    known.tried.append(_Failure.of(way, error))
                    if not isinstance(error, DeviceMemoryError):  # that may pass
                        self._remove(known.tried[-1])
                    continue
            known.way = way
            return way
        # The next frame of this size finds out anew: what failed may work again.
        del self._sizes[size]
        self._forget_record(size)
        failures = known.tried + [gone for gone in self._gone if gone not in known.tried]
        kinds = {failure.kind for failure in failures}
        kind = kinds.pop() if len(kinds) == 1 else BackendError
        reasons = "; ".join(map(str, failures))
        raise kind(f"no engine is left for frames of {size[2]}x{size[1]}: {reasons}")

    def _remember(self, size: FrameSize) -> _Size:
        while len(self._sizes) >= SIZES_KEPT:
            oldest, _ = self._sizes.popitem(last=False)
            self._forget_record(oldest)
        self._sizes[size] = _Size()
        return self._sizes[size]

    def _forget_record(self, size: FrameSize) -> None:
        if self._records.pop(size, None) is not None:
            self._explain()

    def _remove(self, failure: _Failure) -> None:
        """Take an engine out for good."""
        way = failure.way
        self._ways = [other for other in self._ways if other is not way]
        self._gone.append(failure)
        for known in self._sizes.values():
            if known.way is way:
                known.way = None
        if way.session is not None:
            with contextlib.suppress(BackendError):  # it is lost, whatever it says to that
                way.session.close()
            way.session = None
        out = dataclasses.replace(way.candidate, usable=False, reason=f"out: {failure.text}")
        old = self._explanation
        self._explanation = dataclasses.replace(
            old,
            candidates=tuple(out if c == way.candidate else c for c in old.candidates),
            chosen=self._ways[0].candidate if self._ways else None,
        )

    def _record(
        self, size: FrameSize, used: Way, tiles: int, short: DeviceMemoryError | None = None
    ) -> None:
        """Note what runs frames of this size now, and say so if that is news."""
        known = self._sizes.get(size)
        reasons = [] if known is None else list(known.tried)
        place = self._order.index(used)
        reasons += [
            gone
            for gone in self._gone
            if gone not in reasons and self._order.index(gone.way) < place
        ]
        if short is not None:
            reasons.append(_Failure.of(used, short))
        failed = reasons[0].way.engine
        why = [reasons[0].text, *map(str, reasons[1:])]
        batch, height, width = size
        fallback = Fallback(
            height=height,
            width=width,
            batch=batch,
            failed=failed,
            used=used.engine,
            tiles=tiles,
            reason="; ".join(why),
        )
        while len(self._records) >= SIZES_KEPT:
            self._records.popitem(last=False)
        self._records[size] = fallback
        self._explain()
        change = (size, failed, used.engine, tiles)
        if change in self._told:
            return
        while len(self._told) >= SIZES_KEPT:
            self._told.popitem(last=False)
        self._told[change] = None
        text = f"{self._explanation.bundle}: {fallback}"
        if not used.candidate.verified:
            text += "; NOT VERIFIED against the network"
        _log.warning("%s", text)
        # Last: a program may have made warnings into exceptions.
        warnings.warn(text, FallbackWarning, stacklevel=_callers_level())

    def _explain(self) -> None:
        self._explanation = dataclasses.replace(
            self._explanation, fallbacks=tuple(self._records.values())
        )


def _callers_level() -> int:
    """Return the ``stacklevel`` at which a warning names the line that called the runtime."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("topcoat.runtime."):
        level, frame = level + 1, frame.f_back
    return level
