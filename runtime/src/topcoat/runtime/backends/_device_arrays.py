"""Arrays that lie on a GPU, whichever library made them: where they are, and what they look like.

Two protocols are read, without importing the libraries: DLPack (``__dlpack__``), which is preferred
because it synchronises the producer's stream, and ``__cuda_array_interface__`` version 2 or 3.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass, field
from typing import Any

from topcoat.runtime._errors import FrameError
from topcoat.runtime.backends._cuda import LEGACY_STREAM, Context

_CUDA, _CUDA_HOST, _CUDA_MANAGED = 2, 3, 13  # DLDeviceType
_UNSIGNED = 1  # DLDataTypeCode
_READ_ONLY = 1  # a flag of a versioned tensor
_NO_SYNCHRONISATION = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceArray:
    """An array of uint8 on a GPU, C-contiguous."""

    pointer: int
    shape: tuple[int, ...]
    read_only: bool
    device: int | None
    """The device's number as the array's library says it; None: it does not say."""
    stream: int | None
    """The stream that must be waited for before the array is used; None: none."""
    owner: object = field(repr=False)
    """Keeps the memory alive as long as this object lives."""

    @property
    def nbytes(self) -> int:
        """How many bytes the array takes."""
        size = 1
        for side in self.shape:
            size *= side
        return size


def device_array(
    array: object, stream: int | None = None, what: str = "frame", *, host: str = "process()"
) -> DeviceArray:
    """Find out where on a GPU an array lies.

    Args:
        array: has ``__dlpack__`` and ``__dlpack_device__``, or ``__cuda_array_interface__``; its
            elements are uint8, C-contiguous.
        stream: the stream that will use the array: a producer that speaks DLPack has it wait for
            what it still has to do. None: the caller has synchronised, nothing is waited for.
        what: what the array is, for errors.
        host: what takes arrays on the host, for errors.

    Returns:
        The array's description. It keeps the memory from being freed, so keep it while it is used.

    Raises:
        FrameError: the array is not on a GPU, is of another type or layout, or its library refuses
            to hand it over.

    Source: DLPack 1.1 (C and Python specification), CUDA Array Interface version 3.
    """
    try:
        if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
            return _from_dlpack(array, stream, what, host)
        interface = getattr(array, "__cuda_array_interface__", None)
    except FrameError:
        raise
    except Exception as error:  # it is another library's code
        raise FrameError(
            f"{what} cannot be taken over from {_kind(array)}: {' '.join(str(error).split())}"
        ) from error
    if interface is None:
        raise FrameError(
            f"{what} is a {_kind(array)}, wanted an array on a GPU, with __dlpack__ or"
            f" __cuda_array_interface__; use {host} for arrays on the host"
        )
    return _from_interface(array, interface, stream, what)


def check_stream(stream: object) -> None:
    """Refuse what is neither a stream's handle nor None.

    Raises:
        FrameError: with the reason.
    """
    if stream is not None and (type(stream) is not int or stream < 1):
        raise FrameError(
            f"stream is {stream!r}, wanted the handle of a CUDA stream, 1 for the legacy default"
            " stream, 2 for the per-thread one, or None; 0 could mean either of them"
        )


def check_apart(source: DeviceArray, result: DeviceArray) -> None:
    """Refuse a result that cannot be written, or not without changing its frame.

    Raises:
        FrameError: with the reason.
    """
    if result.read_only:
        raise FrameError("out is read-only, wanted a writeable array; pass a copy")
    if (
        source.pointer < result.pointer + result.nbytes
        and result.pointer < source.pointer + source.nbytes
    ):
        raise FrameError("out overlaps the frame in memory; pass a separate array")


def check_device(context: Context, array: DeviceArray, what: str) -> None:
    """Refuse an array that is not in the memory of the context's GPU; the context is current.

    Raises:
        FrameError: with the reason.
        DeviceLostError: the GPU stopped working.
    """
    ordinal = context.device.ordinal
    where = context.pointer_device(array.pointer)
    if where != ordinal:
        came = "not in a GPU's memory" if where is None else f"in the memory of GPU {where}"
        raise FrameError(
            f"{what} is {came}, wanted that of GPU {ordinal}, where the engine is; copy it there"
        )


# -------------------------------------------------------------------------- cuda array interface


def _from_interface(
    array: object,
    interface: Any,  # noqa: ANN401 - another library's dict
    stream: int | None,
    what: str,
) -> DeviceArray:
    try:
        version = int(interface["version"])
        shape = tuple(int(side) for side in interface["shape"])
        typestr = str(interface["typestr"])
        pointer, read_only = interface["data"]
        strides = interface.get("strides")
        masked = interface.get("mask") is not None
        ready = interface.get("stream")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FrameError(
            f"{what} has a __cuda_array_interface__ that is not as specified ({error!r}); report"
            f" this to the makers of {_kind(array)}"
        ) from error
    if version < 2:
        raise FrameError(
            f"{what} has __cuda_array_interface__ version {version}, wanted 2 or 3; update the"
            f" library of {_kind(array)}"
        )
    if typestr[1:] != "u1":
        raise _wrong_type(what, typestr)
    if masked:
        raise FrameError(f"{what} is masked, wanted a plain array; fill in the masked values")
    if ready == 0:
        raise FrameError(
            f"{what} has stream 0 in its __cuda_array_interface__, which is forbidden; report"
            f" this to the makers of {_kind(array)}"
        )
    _check_contiguous(what, shape, None if strides is None else tuple(int(s) for s in strides))
    return DeviceArray(
        pointer=int(pointer or 0),
        shape=shape,
        read_only=bool(read_only),
        device=None,
        # Version 2 knew no streams; its arrays are ready for the legacy stream alone.
        stream=None if stream is None else (LEGACY_STREAM if version < 3 else ready),
        owner=array,
    )


# ----------------------------------------------------------------------------------------- dlpack


class _DLTensor(Structure):
    _fields_ = (
        ("data", c_uint64),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(Structure):
    """What a capsule named "dltensor" points to; only its beginning matters here."""

    _fields_ = (("tensor", _DLTensor),)


class _ManagedVersioned(Structure):
    """What a capsule named "dltensor_versioned" points to."""

    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager", c_uint64),
        ("deleter", c_uint64),
        ("flags", c_uint64),
        ("tensor", _DLTensor),
    )


_capsule_is = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is.argtypes, _capsule_is.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_capsule_pointer.restype = ctypes.c_void_p


def _from_dlpack(
    array: Any,  # noqa: ANN401 - another library's array
    stream: int | None,
    what: str,
    host: str,
) -> DeviceArray:
    kind, number = (int(value) for value in array.__dlpack_device__())
    if kind not in {_CUDA, _CUDA_MANAGED}:
        where = "in host memory" if kind in {1, _CUDA_HOST} else f"on a device of type {kind}"
        raise FrameError(
            f"{what} is {where}, wanted an array on an NVIDIA GPU; use {host} for arrays on the"
            " host"
        )
    wanted = _NO_SYNCHRONISATION if stream is None else stream
    try:
        capsule = array.__dlpack__(stream=wanted, max_version=(1, 1))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = array.__dlpack__(stream=wanted)
    read_only = False
    # The capsule is never renamed to "used_…": so it stays the owner, and frees the tensor itself.
    if _capsule_is(capsule, b"dltensor_versioned"):
        address = _capsule_pointer(capsule, b"dltensor_versioned")
        versioned = _ManagedVersioned.from_address(address)
        if versioned.major != 1:
            raise FrameError(
                f"{what} speaks DLPack {versioned.major}.{versioned.minor}, wanted 1.x or older;"
                " update topcoat-runtime"
            )
        read_only = bool(versioned.flags & _READ_ONLY)
        tensor = versioned.tensor
    elif _capsule_is(capsule, b"dltensor"):
        tensor = _Managed.from_address(_capsule_pointer(capsule, b"dltensor")).tensor
    else:
        raise FrameError(
            f"{what}: __dlpack__ of {_kind(array)} returned no DLPack capsule; report this to its"
            " makers"
        )
    if (tensor.code, tensor.bits, tensor.lanes) != (_UNSIGNED, 8, 1):
        names = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
        raise _wrong_type(what, f"{names.get(tensor.code, 'type ')}{tensor.bits}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    _check_contiguous(what, shape, strides)
    return DeviceArray(
        pointer=int(tensor.data) + int(tensor.byte_offset),
        shape=shape,
        read_only=read_only,
        device=number,
        stream=None,  # the producer has already made it wait
        owner=(array, capsule),
    )


def _check_contiguous(what: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    if strides is None or 0 in shape:
        return
    expected = 1
    for side, stride in zip(reversed(shape), reversed(strides), strict=True):
        if side != 1 and stride != expected:  # the stride of an axis of length 1 says nothing
            raise FrameError(
                f"{what} of shape {shape} is not C-contiguous (strides {strides}); pass a"
                " contiguous copy"
            )
        expected *= side


def _wrong_type(what: str, came: str) -> FrameError:
    return FrameError(
        f"{what} has elements of type {came}, wanted uint8 (0..255); convert it on the GPU"
    )


def _kind(array: object) -> str:
    return f"{type(array).__module__}.{type(array).__name__}"
