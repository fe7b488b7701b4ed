"""Tell from an engine's text whether a device ran out of memory or was lost.

Inference libraries raise exceptions that carry nothing but text, which is kept to its first line
that says something: what follows names hosts, source files and stack frames.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from topcoat.runtime._errors import BackendError, DeviceLostError, DeviceMemoryError

# Its error code, and the line and signature of the C++ function that raised it.
_ONNXRUNTIME_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "
    r"|\S+\.(?:cc|cu|h):\d+ [^()]*\([^)]*\)(?:::<lambda\(\)>)? "
)
_OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _](?:device[ _]|host[ _])?memory|failed to allocate memory|ALLOC_FAILED"
    r"|MEM_OBJECT_ALLOCATION_FAILURE|exceeded max size of memory object",
    re.IGNORECASE,
)
# The numbers are the CUDA errors after which a process cannot use the device any more.
_LOST = re.compile(
    r"CUDA failure (?:46|214|220|700|702|709|71[0-9]|721|999)\b|device (?:was |is |has been )?lost"
    r"|DEVICE_LOST|DEVICE_REMOVED|illegal memory access|unspecified launch failure",
    re.IGNORECASE,
)


def first_line(error: BaseException) -> str:
    r"""Return the first line of an exception's text, without code, host and source file around it.

    >>> first_line(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no such node\nat line 2"))
    'no such node'
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return _ONNXRUNTIME_NOISE.sub("", lines[0]).split(" ; GPU=")[0]


def device_error(
    what: str, error: BaseException, line: Callable[[BaseException], str] = first_line
) -> BackendError:
    """Return the error of ours that an engine's exception is.

    Args:
        what: what failed, as the text begins: "onnxruntime-cuda failed on a frame of shape ...".
        error: the engine's exception.
        line: takes the line that says something from its text.

    >>> device_error("it failed", RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname="))
    DeviceMemoryError('it failed: CUDA failure 2: out of memory')
    """
    text = str(error)
    if _OUT_OF_MEMORY.search(text):
        kind: type[BackendError] = DeviceMemoryError
    elif _LOST.search(text):
        kind = DeviceLostError
    else:
        kind = BackendError
    return kind(f"{what}: {line(error)}")
