"""OpenGL textures in, OpenGL textures out: :class:`GLTarget` between moderngl and a pass or model.

Needs the extra ``gl``. Nothing of OpenGL is loaded before a :class:`GLTarget` is made.
"""

from topcoat.runtime.gl._target import GLTarget, Presents, PresentsDevice, Transport

__all__ = ["GLTarget", "Presents", "PresentsDevice", "Transport"]
