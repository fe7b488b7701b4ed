"""A network as the last pass of a renderer: :class:`Pass`."""

from topcoat.runtime.render_pass._buffers import from_buffer, from_dlpack
from topcoat.runtime.render_pass._frame import Depth, Motion, RenderFrame
from topcoat.runtime.render_pass._layout import Layout
from topcoat.runtime.render_pass._pass import Pass
from topcoat.runtime.render_pass._pixels import Copy
from topcoat.runtime.render_pass._preparation import Preparation
from topcoat.runtime.render_pass._types import (
    Event,
    Level,
    Policy,
    Requirements,
    Result,
    Status,
    Timings,
)

__all__ = [
    "Copy",
    "Depth",
    "Event",
    "Layout",
    "Level",
    "Motion",
    "Pass",
    "Policy",
    "Preparation",
    "RenderFrame",
    "Requirements",
    "Result",
    "Status",
    "Timings",
    "from_buffer",
    "from_dlpack",
]
