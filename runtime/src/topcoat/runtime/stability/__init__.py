"""How steady a stylised sequence is: measures, and a scene whose motion is known exactly.

::

    from topcoat.runtime.stability import Scene, warp_error

    views = [Scene().render(t, 320, 180) for t in range(20)]
    styled = [model.process(view.colour) for view in views]
    print(warp_error(styled, views))

Numpy only.
"""

from topcoat.runtime.stability._metrics import (
    StabilityError,
    WarpError,
    flicker_gain,
    frozen_variance,
    lag_frames,
    return_drift,
    warp_error,
)
from topcoat.runtime.stability._scene import CAMERAS, Scene, View, halton_jitter, sensor_noise

__all__ = [
    "CAMERAS",
    "Scene",
    "StabilityError",
    "View",
    "WarpError",
    "flicker_gain",
    "frozen_variance",
    "halton_jitter",
    "lag_frames",
    "return_drift",
    "sensor_noise",
    "warp_error",
]
