"""CUDA arrays on a machine without a GPU: CuPy's interface over memory of the emulated device.

`libflash_emulated.so` (tests/emulator) holds the library's own objects, linked with a CUDA runtime that runs the PTX of
the kernels on the CPU. A process that was started with `FLASH_LIBRARY` set to it can compute on the arrays of this
module, which flash takes for CuPy's: it reads them through the same attributes. What a GPU would do silently (a race,
an access out of bounds, shared memory read before it was written) is a `flash.CudaError` with the emulator's report.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy

FORWARD, REVERSE, RANDOM = range(3)  # which warp and block runs next
LATE, EAGER = range(2)  # when asynchronous copies arrive; RANDOM too
RACES, UNINITIALISED, TRAFFIC, LINES, NOTHING = 1, 2, 4, 8, 16  # LINES: those that ran; NOTHING: only records
CHECKS = RACES | UNINITIALISED | TRAFFIC


def _open() -> Any:
    """The emulated library's functions for tests, None where the process uses another library."""
    path = os.environ.get("FLASH_LIBRARY")
    lib = None if path is None else ctypes.CDLL(path)
    if not hasattr(lib, "emulated_allocate"):
        return None
    lib.emulated_allocate.restype = ctypes.c_void_p
    lib.emulated_allocate.argtypes = [ctypes.c_size_t, ctypes.c_char_p]
    lib.emulated_free.argtypes = [ctypes.c_void_p]
    lib.emulated_set_options.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint]
    lib.emulated_plant.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p]
    lib.emulated_seed.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    for name in ("launches", "kernels", "ptx", "plant", "faults", "seed"):
        getattr(lib, f"emulated_{name}").restype = ctypes.c_char_p
    return lib


lib = _open()


# ---- The device ------------------------------------------------------------------------------------------------------


def launches() -> list[dict[str, Any]]:
    """What ran since the last call: see emulated.cpp for the fields."""
    return json.loads(lib.emulated_launches())


@contextmanager
def running(
    order: int = FORWARD, copies: int = LATE, seed: int = 0, most_instructions: int = 0, checks: int = CHECKS
) -> Iterator[None]:
    """Launches inside run like this."""
    lib.emulated_set_options(order, copies, seed, most_instructions, checks)
    try:
        yield
    finally:
        lib.emulated_set_options(FORWARD, LATE, 0, 0, CHECKS)


# ---- Arrays ----------------------------------------------------------------------------------------------------------


class Memory:
    """A piece of device memory, NaN at first. Its address is valid on the host too."""

    def __init__(self, bytes_: int, name: str) -> None:
        self.address = lib.emulated_allocate(bytes_, name.encode())
        if self.address is None:
            raise MemoryError(f"{bytes_} bytes on the emulated device")

    def __del__(self) -> None:
        assert lib.emulated_free(self.address)


class Device:
    """The emulated device of a number; `with` makes it the current one of this module."""

    current = 0

    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> Device:
        self._before, Device.current = Device.current, self.id
        return self

    def __exit__(self, *_: object) -> None:
        Device.current = self._before


class ndarray:
    """What flash uses of `cupy.ndarray`. `host` is a NumPy array over the same memory."""

    def __init__(self, host: numpy.ndarray, memory: Memory, device: int) -> None:
        self.host, self._memory, self.device = host, memory, Device(device)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.host.__array_interface__["data"][0])

    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)

    def view_by(self, function: Any) -> ndarray:
        """The view of this array that `function` makes of a NumPy array: a transpose, a slice, a broadcast."""
        host = function(self.host)
        assert host.size == 0 or numpy.may_share_memory(host, self.host)
        return ndarray(host, self._memory, self.device.id)

    def __getitem__(self, index: Any) -> ndarray:
        return self.view_by(lambda host: host[index])

    def reshape(self, shape: tuple[int, ...]) -> ndarray:
        return self.view_by(lambda host: host.reshape(shape))

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("CuPy arrays are read through their attributes")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id


def empty(shape: Any, dtype: Any = float) -> ndarray:
    dtype = numpy.dtype(dtype)
    shape = tuple(shape)
    count = int(numpy.prod(shape, dtype=numpy.int64))
    memory = Memory(count * dtype.itemsize, f"{'x'.join(map(str, shape)) or 'scalar'} {dtype.name}")
    block = (ctypes.c_char * (count * dtype.itemsize)).from_address(memory.address)
    host = numpy.ndarray(shape, dtype, block)
    return ndarray(host, memory, Device.current)


def full(shape: Any, value: Any, dtype: Any) -> ndarray:
    x = empty(shape, dtype)
    x.host[...] = value
    return x


def asarray(x: Any) -> ndarray:
    if isinstance(x, ndarray):
        return x
    x = numpy.asarray(x)
    copy = empty(x.shape, x.dtype)
    copy.host[...] = x
    return copy


def asnumpy(x: ndarray) -> numpy.ndarray:
    return x.host.copy()


STREAM = 0x5EED  # that of every call


def install() -> None:
    """Makes this module the `cupy` that flash finds."""
    module = ModuleType("cupy")
    for thing in (ndarray, empty, full, asarray, asnumpy):
        setattr(module, thing.__name__, thing)
    module.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device, get_current_stream=lambda device=None: SimpleNamespace(ptr=STREAM)
    )
    sys.modules["cupy"] = module
