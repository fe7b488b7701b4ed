"""What engine is wanted: library, sizes, targets, limits; and the key that names the result."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from topcoat.export._errors import EngineRequestError
from topcoat.runtime import Profile
from topcoat.train.networks import FrameNetwork

EngineName: TypeAlias = Literal["rtx", "tensorrt"]

LIBRARIES: Mapping[str, str] = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""What ``--engine`` calls it -> the Python module that builds it."""

KINDS: Mapping[str, str] = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
"""... -> the variant's kind in the manifest, which is also the backend's name."""

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""What TensorRT for RTX 1.7 can build for: RTX 20, A100, RTX 30, RTX 40, RTX 50 and GB10."""

RTX_DEFAULT_TARGETS = ("sm80", "sm86", "sm89", "sm120")
"""What it builds for if nothing is said; Turing is left out, for which it must be asked alone."""

ENGINE_PRECISIONS = ("fp32", "fp16", "bf16", "int8")

_BUILD_RULES = 3
"""Raised when the builder below builds something else from the same request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One engine to build from each model of some precision."""

    engine: EngineName
    precision: str = "fp16"
    """Of the model that it is built from: ``fp32``, ``fp16``, ``bf16`` or ``int8``."""
    profiles: tuple[Profile, ...] = ()
    """Frame sizes that it takes; empty: from the network's smallest to 4K, tuned for 1080p."""
    targets: tuple[str, ...] | None = None
    """GPU generations, for RTX; None: its default. A ``tensorrt`` engine is for the GPU at hand."""
    workspace: int | None = None
    """Most bytes of device memory that one layer may use for scratch; None: all there is."""

    def __post_init__(self) -> None:
        if self.engine not in LIBRARIES:
            raise EngineRequestError(
                f"engine {self.engine!r} is not known; choose one of {', '.join(LIBRARIES)}"
            )
        if self.precision not in ENGINE_PRECISIONS:
            raise EngineRequestError(
                f"an engine cannot compute in {self.precision!r}; choose one of "
                f"{', '.join(ENGINE_PRECISIONS)}"
            )
        if self.workspace is not None and self.workspace < 1 << 20:
            raise EngineRequestError(
                f"the workspace is {self.workspace >> 20} MiB; give at least 1, or none"
            )
        if self.targets is None:
            return
        if self.engine != "rtx":
            raise EngineRequestError(
                "targets were given, but a tensorrt engine is built for the GPU of this machine; "
                "leave out --target, or build with --engine rtx"
            )
        if unknown := [target for target in self.targets if target not in RTX_TARGETS]:
            raise EngineRequestError(
                f"TensorRT for RTX does not build for {', '.join(unknown)}; choose from "
                f"{', '.join(RTX_TARGETS)} (RTX 20: sm75, RTX 30: sm86, RTX 40: sm89, RTX 50: "
                "sm120), or build with --engine tensorrt on that GPU"
            )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise EngineRequestError(
                f"the targets are {list(self.targets)}; name each at least and at most once"
            )
        if "sm75" in self.targets and len(self.targets) > 1:
            # One engine for Turing and later GPUs gave null contexts and zeros for others.
            raise EngineRequestError(
                "an engine for sm75 (RTX 20) can only be built alone; give --target sm75 and build "
                "another engine for the rest"
            )

    def settled(self, network: FrameNetwork) -> "EngineRequest":
        """Return the request with profiles and targets filled in, and held against the network.

        Raises:
            EngineRequestError: a profile's size breaks the network's rule of size.
        """
        profiles = self.profiles or (_default_profile(network),)
        for profile in profiles:
            for height, width in (profile.min, profile.opt, profile.max):
                _check_size(network, height, width)
        targets = self.targets
        if targets is None and self.engine == "rtx":
            targets = RTX_DEFAULT_TARGETS
        return replace(self, profiles=tuple(profiles), targets=targets)


def parse_profile(text: str) -> Profile:
    """Read ``WxH`` (one fixed size) or ``MIN:OPT:MAX`` (each ``WxH``).

    Raises:
        EngineRequestError: it is neither, or the sizes do not grow from MIN to MAX.

    >>> str(parse_profile("64x64:1920x1080:3840x2160"))
    '64x64:1920x1080:3840x2160'
    >>> parse_profile("1280x720").opt
    (720, 1280)
    """
    parts = text.split(":")
    try:
        if len(parts) not in (1, 3):
            raise ValueError
        sizes = []
        for part in parts:
            width, height = (int(side) for side in part.lower().split("x"))
            sizes.append((height, width))
        if min(side for size in sizes for side in size) < 1:
            raise ValueError
    except ValueError:
        raise EngineRequestError(
            f"the profile is {text!r}; write WxH for one size, or MIN:OPT:MAX for a range, e.g. "
            "1920x1080 or 256x256:1920x1080:3840x2160"
        ) from None
    least, best, most = sizes if len(sizes) == 3 else sizes * 3
    if not all(low <= mid <= high for low, mid, high in zip(least, best, most, strict=True)):
        raise EngineRequestError(
            f"the profile is {text!r}; neither side may shrink from MIN to OPT to MAX"
        )
    return Profile(min=least, opt=best, max=most)


def engine_key(
    request: EngineRequest,
    model_sha256: str,
    version: str,
    targets: Sequence[str],
    driver: str | None,
    platform: str | None,
) -> str:
    """Hash everything that an engine is made from: equal keys are equal engines.

    Args:
        request: settled.
        model_sha256: of the ONNX file.
        version: of the library.
        targets: GPU generations, e.g. ``("sm89",)``.
        driver: major version of the driver that takes part in the build, or None.
        platform: the operating system and processor that it is for; None: any.
    """
    content = {
        "rules": _BUILD_RULES,
        "library": LIBRARIES[request.engine],
        "version": version,
        "targets": list(targets),
        "driver": driver,
        "platform": platform,
        "precision": request.precision,
        "profiles": [[p.min, p.opt, p.max] for p in request.profiles],
        "workspace": request.workspace,
        "model": model_sha256,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _default_profile(network: FrameNetwork) -> Profile:
    """From the smallest frame to a 4K output, tuned for a 1080p output; a texture's is square."""
    multiple, least = network.size_multiple, network.size_min

    def fitted(side: int) -> int:
        return max(least, -(-side // network.scale // multiple) * multiple)

    if network.takes == "noise":
        return Profile(
            min=(least, least), opt=(fitted(512), fitted(512)), max=(fitted(2048), fitted(2048))
        )
    return Profile(
        min=(least, least),
        opt=(fitted(1080), fitted(1920)),
        max=(fitted(2160), fitted(3840)),
    )


def _check_size(network: FrameNetwork, height: int, width: int) -> None:
    multiple, least = network.size_multiple, network.size_min
    fitted = tuple(max(least, -(-side // multiple) * multiple) for side in (height, width))
    if fitted != (height, width):
        raise EngineRequestError(
            f"a profile names {width}x{height}, but frames reach the engine in multiples of "
            f"{multiple}, at least {least}; write {fitted[1]}x{fitted[0]}, which it is padded to"
        )
