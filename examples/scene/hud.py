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
        self._layer = Image.new("RGBA", (width, self.height))

    def draw(self, picture: npt.NDArray[np.uint8], result: Any) -> None:  # noqa: ANN401 - a Result
        """Draw over ``picture``, whose first row is the upper one.

        Args:
            picture: (H, W, 3) or (H, W, 4) uint8, RGB; changed in place.
            result: a ``topcoat.runtime.Result``: what ``present`` returned.
        """
        status = result.status.name
        self._times.append((result.timings.present, status))
        self._layer.paste((12, 14, 20, 176), (0, 0, self.width, self.height))
        pen = ImageDraw.Draw(self._layer)
        pen.rounded_rectangle((6, 5, 108, 21), 4, fill=(*COLOURS[status], 255))
        pen.text((57, 13), status, font=self._font, fill="white", anchor="mm")
        graph = self.width - HISTORY - 8
        line = f"age {result.age_frames}  {result.engine}"
        pen.text((116, 13), self._fitted(line, graph - 122), font=self._font, anchor="lm")
        pen.text((8, 32), self._fitted(self._summary(), graph - 14), font=self._font, anchor="lm")
        self._graph(pen, graph)
        strip = np.asarray(self._layer)
        part = picture[: self.height, : self.width, :3]
        strip = strip[: part.shape[0], : part.shape[1]]
        alpha = strip[..., 3:].astype(np.uint16)
        part[:] = (part * (255 - alpha) + strip[..., :3] * alpha + 127) // 255

    def _summary(self) -> str:
        times = sorted(time for time, _ in self._times)
        p50, p99 = (times[min(int(q * len(times)), len(times) - 1)] for q in (0.5, 0.99))
        return f"present p50 {p50:4.1f}  p99 {p99:4.1f} of {self.budget_ms:.1f} ms"

    def _fitted(self, text: str, room: int) -> str:
        if self._font.getlength(text) <= room:
            return text
        while text and self._font.getlength(text + "…") > room:
            text = text[:-1]
        return text.rstrip() + "…"

    def _graph(self, pen: ImageDraw.ImageDraw, left: int) -> None:
        """Bars of how long ``present`` took; the top of the graph is 1.25 budgets."""
        top, bottom = 4, self.height - 4
        full = 1.25 * self.budget_ms
        pen.rectangle((left - 1, top, left + HISTORY, bottom), fill=(0, 0, 0, 120))
        for x, (time, status) in enumerate(self._times, start=left):
            bar = max(1, round(min(time / full, 1) * (bottom - top)))
            pen.line((x, bottom, x, bottom - bar), fill=(*COLOURS[status], 255))
        line = bottom - round((bottom - top) / 1.25)
        pen.line((left, line, left + HISTORY, line), fill=(255, 255, 255, 150))
