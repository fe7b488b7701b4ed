"""A lighthouse by the sea, drawn with OpenGL: the renderer that the examples style.

It hands over what a game's renderer has: colour, depth, and motion vectors to the previous frame.
"""

from scene.bundles import all_bundles, default_bundle
from scene.hud import Hud
from scene.renderer import GBuffer, SceneRenderer, create_context

__all__ = [
    "GBuffer",
    "Hud",
    "SceneRenderer",
    "all_bundles",
    "create_context",
    "default_bundle",
]
