"""What a pass tells: to its log and to the application's listener, and nothing twice."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from topcoat.runtime.render_pass._types import Event, EventKind

AT_MOST = 256
"""Different lines that are told once each; a program that causes more is told no more of them."""

_LOUD = ("demoted", "failed", "input", "closed")
_log = logging.getLogger("topcoat.runtime")


class Teller:
    """Logs lines and gives them to a listener. May be called from any thread.

    Args:
        name: returns the name of the bundle.
        index: returns the present frame's number.
        on_event: the application's listener; what it raises is logged and goes no further.
    """

    def __init__(
        self,
        name: Callable[[], str],
        index: Callable[[], int],
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self._name = name
        self._index = index
        self._on_event = on_event
        self._told: dict[str, str] = {}

    @property
    def told(self) -> tuple[str, ...]:
        """The lines that were told once and will not be told again."""
        return tuple(self._told.values())

    def __call__(
        self, kind: EventKind, text: str, *, once: bool = False, key: str | None = None
    ) -> None:
        """Tell a line.

        Args:
            kind: of the event.
            text: the line.
            once: not if it was told before, with other numbers in it or the same.
            key: not if something of the same key was told before.
        """
        if once and key is None:
            key = re.sub(r"[\d.]+", "#", text)
        if key is not None:
            if key in self._told or len(self._told) > AT_MOST:
                return
            if len(self._told) == AT_MOST:
                text = "there is more to complain about than can be told; correct what was told"
            self._told[key] = text
        _log.log(logging.WARNING if kind in _LOUD else logging.INFO, "%s: %s", self._name(), text)
        if self._on_event is None:
            return
        try:
            self._on_event(Event(kind, text, self._index()))
        except Exception:
            _log.exception("on_event raised")
