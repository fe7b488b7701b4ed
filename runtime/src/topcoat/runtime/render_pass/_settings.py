"""How results are laid over frames: checked when it is set, not for every frame."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from topcoat.runtime._errors import PassError
from topcoat.runtime.render_pass._composite import BLENDS, Blend
from topcoat.runtime.render_pass._types import is_number
from topcoat.runtime.render_pass._worker import Settings


def changed(
    settings: Settings,
    *,
    strength: float | None,
    stabilise: float | None,
    blend: Blend | None,
    mask: NDArray[np.uint8] | Literal["none"] | None,
) -> Settings:
    """Return settings with some of them changed; see :meth:`Pass.set`.

    Raises:
        PassError: a value is outside its range.
    """
    changes: dict[str, Any] = {}
    for name, value in (("strength", strength), ("stabilise", stabilise)):
        if value is not None:
            changes[name] = _share(name, value)
    if blend is not None:
        if blend not in BLENDS:
            raise PassError(f"blend is {blend!r}, wanted one of {', '.join(BLENDS)}")
        changes["blend"] = blend
    if isinstance(mask, str):
        if mask != "none":
            raise PassError(f"mask is {mask!r}, wanted an array of uint8, (H, W), or 'none'")
        changes["mask"] = None
    elif mask is not None:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2:
            came = (
                f"{mask.dtype} of shape {mask.shape}"
                if isinstance(mask, np.ndarray)
                else type(mask).__name__
            )
            raise PassError(f"mask is {came}, wanted uint8 of shape (H, W), 0 to 255")
        changes["mask"] = mask.copy()
    return dataclasses.replace(settings, **changes)


def _share(name: str, value: float) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise PassError(f"{name} is {value!r}, wanted a number from 0 to 1")
    return float(value)
