"""A lighthouse by the sea, drawn with OpenGL, and what the examples around it share.

``renderer`` hands over what a game's renderer has: colour, depth, and motion vectors to the
previous frame. ``camera``, ``meshes`` and ``shaders`` are what it draws; ``hud`` and ``media`` show
and write the result; ``options`` is about command lines.
"""
