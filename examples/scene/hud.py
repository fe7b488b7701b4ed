"""What the pass did to this frame and how long frames take, drawn over the styled picture."""

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "FRESH": (60, 190, 90),
    "REUSED": (70, 140, 235),
    "WARPED": (40, 190, 200),
    "DEGRADED": (240, 165, 35),
    "PASSTHROUGH": (225, 70, 60),
}
HISTORY = 120
"""Frames in the graph."""
UPDATE = 15
"""The figures are worked out every so many frames: nobody reads faster."""


class Hud:
    """A strip along the upper edge of (H, W, 3) or (H, W, 4) uint8 pictures, first row on top.

    Args:
        width: of the pictures, in pixels.
        budget_ms: what ``present`` may take: the line in the graph.
    """

    def __init__(self, width: int, budget_ms: float) -> None:
        self.height = 44
        self.width = width
        self.budget_ms = budget_ms
        self._times: deque[tuple[float, str]] = deque(maxlen=HISTORY)
        self._font = ImageFont.load_default(13)
        self._layer = Image.new("RGB", (width, self.height))
        self._alpha = Image.new("L", (width, self.height), 176)
        self._words: dict[str, Image.Image] = {}
        self._summary = ""
        self._frames = 0

    def draw(self, picture: npt.NDArray[np.uint8], result: Any) -> None:  # noqa: ANN401 - a Result
        """Draw over ``picture``, whose first row is the upper one.

        Args:
            picture: (H, W, 3) or (H, W, 4) uint8, RGB; changed in place.
            result: a ``topcoat.runtime.Result``: what ``present`` returned.
        """
        status = result.status.name
        self._times.append((result.timings.present, status))
        if self._frames % UPDATE == 0:
            times = sorted(time for time, _ in self._times)
            p50, p99 = (times[min(int(q * len(times)), len(times) - 1)] for q in (0.5, 0.99))
            self._summary = f"present p50 {p50:4.1f}  p99 {p99:4.1f} of {self.budget_ms:.1f} ms"
        self._frames += 1
        self._layer.paste((12, 14, 20), (0, 0, self.width, self.height))
        self._alpha.paste(176, (0, 0, self.width, self.height))
        colours, opaque = ImageDraw.Draw(self._layer), ImageDraw.Draw(self._alpha)
        for pen, paint in ((colours, COLOURS[status]), (opaque, 255)):
            pen.rounded_rectangle((6, 5, 108, 21), 4, fill=paint)
        graph = self.width - HISTORY - 8
        self._write(status, 57 - round(self._font.getlength(status) / 2), 5, 100)
        self._write(f"age {result.age_frames}  {result.engine}", 116, 5, graph - 122)
        self._write(self._summary, 8, 24, graph - 14)
        self._graph(colours, opaque, graph)
        part = picture[: self.height, : self.width, :3]
        below = Image.fromarray(np.ascontiguousarray(part))
        below.paste(self._layer, (0, 0), self._alpha)
        part[:] = np.asarray(below)

    def _write(self, text: str, left: int, top: int, room: int) -> None:
        """Put a line of white text, as much of it as there is room for, in pixels."""
        if room < 1:
            return
        word = self._words.get(text)
        if word is None:
            if len(self._words) > 64:
                self._words.clear()
            word = Image.new("L", (max(1, round(self._font.getlength(text))), 18))
            ImageDraw.Draw(word).text((0, 9), text, font=self._font, fill=255, anchor="lm")
            self._words[text] = word
        box = (left, top, left + min(word.width, room), top + word.height)
        shown = word.crop((0, 0, box[2] - box[0], word.height))
        self._layer.paste((255, 255, 255), box, shown)
        self._alpha.paste(255, box, shown)

    def _graph(self, colours: ImageDraw.ImageDraw, opaque: ImageDraw.ImageDraw, left: int) -> None:
        """Bars of how long ``present`` took; the top of the graph is 1.25 budgets."""
        top, bottom = 4, self.height - 4
        full = 1.25 * self.budget_ms
        line = bottom - round((bottom - top) / 1.25)
        colours.rectangle((left - 1, top, left + HISTORY, bottom), fill=(4, 5, 8))
        for x, (time, status) in enumerate(self._times, start=left):
            bar = max(1, round(min(time / full, 1) * (bottom - top)))
            colours.line((x, bottom, x, bottom - bar), fill=COLOURS[status])
            opaque.line((x, bottom, x, bottom - bar), fill=255)
        colours.line((left, line, left + HISTORY, line), fill=(230, 230, 230))
        opaque.line((left, line, left + HISTORY, line), fill=220)
