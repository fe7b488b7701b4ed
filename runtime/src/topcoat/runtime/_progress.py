"""One line on a terminal that says how far a long job is, how fast and how long still."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """A progress line on stderr, rewritten at most ten times a second; silent off a terminal."""

    def __init__(
        self, total: int | None, unit: str, *, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self.total = total
        self.unit = unit
        self.count = 0
        self._stream = sys.stderr if stream is None else stream
        self._on = not quiet and self._stream.isatty()
        self._began = time.monotonic()
        self._shown = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return self.count / max(self.seconds, 1e-9)

    def step(self) -> None:
        """Count one unit."""
        self.count += 1
        now = time.monotonic()
        if self._on and now - self._shown >= 0.1:
            self._shown = now
            self._stream.write(f"\r{self.line()}\x1b[K")
            self._stream.flush()

    def line(self) -> str:
        """Return the text of the line."""
        if not self.total:
            return f"{self.count} {self.unit}  {self.rate:.1f} {self.unit}/s"
        share = min(1.0, self.count / self.total)
        bar = ("#" * round(24 * share)).ljust(24, ".")
        left = (self.total - self.count) / self.rate if self.count else 0.0
        return (
            f"[{bar}] {self.count}/{self.total} {self.unit}  {self.rate:.1f} {self.unit}/s"
            f"  {clock(max(left, 0.0))} left"
        )

    def clear(self) -> None:
        """Remove the line, before a message or at the end."""
        if self._on and self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def clock(seconds: float) -> str:
    """Return a duration as people write it.

    >>> clock(75.2)
    '1:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
