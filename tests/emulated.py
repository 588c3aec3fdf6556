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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy

FORWARD, REVERSE, RANDOM = range(3)  # which warp and block runs next
LATE, EAGER = range(2)  # when asynchronous copies arrive; RANDOM too
RACES, UNINITIALISED, TRAFFIC, LINES, NOTHING = 1, 2, 4, 8, 16  # LINES: those that ran; NOTHING: only records
CHECKS = RACES | UNINITIALISED | TRAFFIC
HOPPER, SMALL, AMPERE = range(3)  # the devices that emulated_library.py asks for: 9.0, 8.6 with 99 KiB a block, 8.0


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
    for name in ("launches", "calls", "kernels", "ptx", "plant", "faults", "seed"):
        getattr(lib, f"emulated_{name}").restype = ctypes.c_char_p
    return lib


lib = _open()
_options = (FORWARD, LATE, 0, 0, CHECKS)  # of launches now

# ---- The device ------------------------------------------------------------------------------------------------------


def calls() -> dict[str, int]:
    """How often each function of the CUDA runtime was called since the last call."""
    return json.loads(lib.emulated_calls())


def launches() -> list[dict[str, Any]]:
    """What ran since the last call: see emulated.cpp for the fields."""
    return json.loads(lib.emulated_launches())


@contextmanager
def running(
    order: int = FORWARD, copies: int = LATE, seed: int = 0, most_instructions: int = 0, checks: int = CHECKS
) -> Iterator[None]:
    """Launches inside run like this, and those after it as before."""
    global _options
    before, _options = _options, (order, copies, seed, most_instructions, checks)
    lib.emulated_set_options(*_options)
    try:
        yield
    finally:
        _options = before
        lib.emulated_set_options(*_options)


# ---- Arrays ----------------------------------------------------------------------------------------------------------


class Memory:
    """A piece of device memory, NaN at first (zero from 1 GiB on). Its address is valid on the host too."""

    def __init__(self, bytes_: int, name: str) -> None:
        self.bytes, self.device = bytes_, Device().id
        self.address = lib.emulated_allocate(bytes_, name.encode())
        if self.address is None:
            raise MemoryError(f"{bytes_} bytes on the emulated device")

    def __del__(self) -> None:
        assert lib.emulated_free(self.address)


class Device:
    """The emulated device of a number, or the current one; `with` makes it the calling thread's current one."""

    def __init__(self, number: int | None = None) -> None:
        self.id = lib.emulated_current_device() if number is None else number

    def use(self) -> None:
        assert lib.emulated_set_device(self.id)

    def __enter__(self) -> Device:
        self._before = Device()
        self.use()
        return self

    def __exit__(self, *_: object) -> None:
        self._before.use()


class Stream:
    """A stream of the current device; `with` makes it the device's current one, for the calling thread."""

    _numbers = count(0x5EED)
    _current = threading.local()  # its attributes are streams by device

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr, self._before = 0 if null else next(self._numbers), []

    def __enter__(self) -> Stream:
        device = Device().id
        self._before.append((device, get_current_stream(device)))
        vars(self._current)[device] = self
        return self

    def __exit__(self, *_: object) -> None:
        device, stream = self._before.pop()
        vars(self._current)[device] = stream

    def synchronize(self) -> None:
        """Nothing: launches run at once."""


def get_current_stream(device_id: int = -1) -> Any:
    return Stream._current.__dict__.get(Device().id if device_id == -1 else device_id, _legacy_stream)


_legacy_stream = Stream(null=True)


class Pointer:
    """An address in a piece of memory, which it keeps."""

    def __init__(self, memory: Memory, ptr: int) -> None:
        self.memory, self.ptr, self.device_id = memory, ptr, memory.device

    def __add__(self, bytes_: int) -> Pointer:
        return Pointer(self.memory, self.ptr + bytes_)


class ndarray:
    """What flash and its tests use of `cupy.ndarray`. `host` is a NumPy array over the same memory."""

    def __init__(self, shape: Any, dtype: Any, memptr: Pointer, strides: Any = None) -> None:
        memory = memptr.memory
        block = (ctypes.c_char * memory.bytes).from_address(memory.address)
        self.host = numpy.ndarray(shape, dtype, block, memptr.ptr - memory.address, strides)
        self.data, self.device = memptr, Device(memory.device)
        self.shape, self.strides, self.dtype = self.host.shape, self.host.strides, self.host.dtype
        self.ndim = self.host.ndim

    def view_by(self, function: Any) -> ndarray:
        """The view of this array that `function` makes of a NumPy array: a transpose, a slice, a broadcast."""
        host = function(self.host)
        assert host.size == 0 or numpy.may_share_memory(host, self.host)
        at = host.__array_interface__["data"][0] if host.size else self.data.ptr
        return ndarray(host.shape, host.dtype, Pointer(self.data.memory, at), host.strides)

    def __getitem__(self, index: Any) -> ndarray:
        return self.view_by(lambda host: host[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.host[index] = value.host if isinstance(value, ndarray) else value

    def reshape(self, shape: tuple[int, ...]) -> ndarray:
        return self.view_by(lambda host: host.reshape(shape))

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("CuPy arrays are read through their attributes")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id


def empty(shape: Any, dtype: Any = float) -> ndarray:
    dtype = numpy.dtype(dtype)
    shape = tuple(shape)
    elements = int(numpy.prod(shape, dtype=numpy.int64))
    memory = Memory(elements * dtype.itemsize, f"{'x'.join(map(str, shape)) or 'scalar'} {dtype.name}")
    return ndarray(shape, dtype, Pointer(memory, memory.address))


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


def install() -> None:
    """Makes this module the `cupy` that flash finds."""
    module = ModuleType("cupy")
    for thing in (ndarray, empty, full, asarray, asnumpy):
        setattr(module, thing.__name__, thing)
    runtime = SimpleNamespace(getDeviceCount=lambda: lib.emulated_devices())
    module.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device, Stream=Stream, get_current_stream=get_current_stream, runtime=runtime
    )
    sys.modules["cupy"] = module
