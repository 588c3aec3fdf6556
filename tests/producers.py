"""Arrays for the tests of flash.arrays: random ones, and those of an array library that flash has never heard of."""

from __future__ import annotations

import ctypes
import sys

import numpy as np

from flash import arrays


def normal(*shape: int, dtype: object = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def bits(x: object) -> bytes:
    """The bytes of an array of any library."""
    if type(x).__module__.startswith("torch"):
        x = x.view(getattr(sys.modules["torch"], f"uint{8 * x.element_size()}"))
    return np.ascontiguousarray(np.asarray(x)).tobytes()


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class Managed(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", DLTensor),
    ]  # fmt: skip


Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, Destructor]
capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_GetName", ctypes.pythonapi))


class Producer:
    """An array of a library that flash has never heard of, over the memory of a NumPy array."""

    def __init__(self, x, device=(1, 0), version=None, flags=0, name=None, byte_offset=0, has_strides=True):
        self.x, self.device, self.version, self.flags, self.byte_offset = x, device, version, flags, byte_offset
        self.name = name or (b"dltensor" if version is None else b"dltensor_versioned")
        self.has_strides = has_strides
        self.calls: list[dict] = []
        self.freed: list[bytes] = []  # the name of each capsule when it was freed
        self.alive: list[object] = []
        self.destructor = Destructor(lambda capsule: self.freed.append(capsule_name(capsule)))

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        self.calls.append(options)
        x, axes = self.x, self.x.ndim
        shape = (ctypes.c_int64 * axes)(*x.shape)
        strides = (ctypes.c_int64 * axes)(*(stride // x.itemsize for stride in x.strides))
        tensor = DLTensor(
            x.__array_interface__["data"][0] - self.byte_offset, *self.device, axes, *arrays.CODES[x.dtype.name], 1,
            shape, strides if self.has_strides else None, self.byte_offset,
        )  # fmt: skip
        managed = Managed(tensor) if self.version is None else Versioned(*self.version, None, None, self.flags, tensor)
        self.alive += [managed, shape, strides]
        return new_capsule(ctypes.addressof(managed), self.name, self.destructor)


class Old(Producer):
    """One of the time before `max_version`."""

    def __dlpack__(self, stream=None):
        return super().__dlpack__(**({} if stream is None else {"stream": stream}))
