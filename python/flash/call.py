"""One call into the library: its structs, and all that must live as long as it does."""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import numpy as np

from flash._lib import ffi
from flash.arrays import CODES, CPU_DEVICES, MAX_AXES, Array, Kind, dtype_of, kind_of, shape_of, tensor_at
from flash.exceptions import FlashTypeError, FlashValueError

_MEMORY_BYTES = 32 * (48 + 16 * MAX_AXES) + 2048  # more tensors than any call has, and all structs of flash.h
_TENSORS = [struct.Struct(f"=QiiiBBHQQQ{2 * axes}q") for axes in range(MAX_AXES + 1)]
_TENSOR_BYTES = _TENSORS[0].size
_UINT8 = (*CODES["uint8"], 1)
_VOID_POINTER = ffi.typeof("void *")

# Small scratch memory on the CPU stays with the `Call`, so that its pages are touched once. Larger scratch memory comes
# from NumPy and goes back after the call.
KEPT_SCRATCH_BYTES = 16 << 20


class Call:
    """Reads arrays, makes results and lends scratch memory for one call: `with Call.on(q) as call:`.

    Afterwards it is kept for a later call, of any thread. As many exist as there were calls at the same time.
    """

    __slots__ = ("_base", "_memory", "_scratch", "_used", "device", "keep", "kind", "q", "size", "stream")
    _free: ClassVar[list[Call]] = []  # append and pop are atomic

    kind: Kind
    q: Array
    device: tuple[int, int]
    stream: int | None  # None on the CPU

    def __init__(self) -> None:
        self._memory = bytearray(_MEMORY_BYTES)
        self._base = int(ffi.cast("uintptr_t", ffi.from_buffer(self._memory)))
        self._used = 0
        self._scratch: tuple[Any, int] = (ffi.NULL, 0)  # pointer, which keeps the memory alive, and size
        self.size = ffi.new("size_t *")  # for the library's answers
        self.keep: list[Any] = []

    @classmethod
    def on(cls, q: Array, argument: str = "q") -> Call:
        """A call whose results are arrays of q's kind on q's device."""
        kind = kind_of(q, argument)
        try:
            call = cls._free.pop()
        except IndexError:
            call = cls()
        call.kind = kind
        call.q = q
        call.device = device = kind.device(q)
        call.stream = None if device[0] in CPU_DEVICES else kind.stream(q)
        return call

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self._used = 0
        self.keep.clear()
        self.q = None
        self._free.append(self)

    def read(self, x: Array, argument: str) -> int:
        """The address of x's `flash_tensor`, valid during the call."""
        return kind_of(x, argument).read(x, argument, self)

    def read_output(self, x: Array, argument: str) -> int:
        """The same for an array of the user that is written to."""
        kind = kind_of(x, argument)
        address = kind.read(x, argument, self)
        if not kind.is_writable(x, self):
            raise FlashValueError(f"{argument}: must be writable, got a read-only {kind.name} array")
        return address

    def empty(self, shape: tuple[int, ...], dtype: str | None = None) -> Array:
        """An array to compute into; `finish` makes a result of it. dtype None is that of q."""
        return self.kind.empty(self.q, shape, dtype)

    def finish(self, buffer: Array) -> Array:
        """The result that the caller gets, for what `empty` gave."""
        return self.kind.finish(buffer, self.q)

    def settle(self) -> None:
        """In place of `finish`, where the only result is an array of the user."""
        if self.stream is not None:
            self.kind.settle(self.q)

    def scalar(self, value: float) -> Array:
        """A float32 array of shape () on q's device, which lives as long as the call."""
        x = np.array(value, np.float32) if self.stream is None else self.kind.scalar(self.q, value)
        self.keep.append(x)
        return x

    def put(self, x: np.ndarray[Any, Any]) -> Array:
        """A NumPy array as an array on q's device, which lives as long as the call: itself on the CPU, else a copy."""
        if self.stream is not None:
            x = self.kind.put(x, self.q)
        self.keep.append(x)
        return x

    def empty_like(self, tensor: Any) -> Array:
        """The same as `empty`, with the shape and dtype of an argument, given as `flash_tensor *`."""
        return self.kind.empty(self.q, shape_of(tensor), dtype_of(tensor))

    def workspace(self, given: Array | None, needed: int) -> tuple[Any, int]:
        """Pointer and size of scratch memory: what the caller gave, else of at least the bytes needed."""
        if given is not None:
            return self._given_workspace(given)
        if needed == 0:
            return ffi.NULL, 0
        if self.stream is not None:
            buffer = self.kind.empty(self.q, (needed,), "uint8")
            self.keep.append(buffer)
            return tensor_at(self.kind.read(buffer, "workspace", self)).data, needed
        if self._scratch[1] >= needed:
            return self._scratch[0], needed
        scratch = ffi.from_buffer(np.empty(needed, np.uint8)), needed
        if needed <= KEPT_SCRATCH_BYTES:
            self._scratch = scratch
        return scratch

    def stream_pointer(self) -> Any:
        """The stream as C takes it."""
        return ffi.NULL if self.stream is None else ffi.cast(_VOID_POINTER, self.stream)

    def _given_workspace(self, given: Array) -> tuple[Any, int]:
        tensor = tensor_at(self.read_output(given, "workspace"))
        # All at once: each field that is asked for by name takes a tenth of a microsecond.
        fields = ffi.buffer(tensor, _TENSOR_BYTES)
        data, device_type, number, axes, code, bits, lanes, _, strides, offset = _TENSORS[0].unpack(fields)
        if (code, bits, lanes) != _UINT8:
            raise FlashTypeError(f"workspace: must be uint8, got {getattr(given, 'dtype', 'another dtype')}")
        size = tensor.shape[0] if axes == 1 else 0
        if axes != 1 or (size > 1 and strides and tensor.strides[0] != 1):
            raise FlashValueError(f"workspace: must have one contiguous axis, got shape {shape_of(tensor)}")
        device = device_type, number
        if device != self.device and not (self.stream is None and device[0] in CPU_DEVICES):
            raise FlashValueError(
                f"workspace: must be on q's device {self.device} (DLPack type, number), got one on {device}"
            )
        return ffi.cast(_VOID_POINTER, data + offset), size

    def place(self, size: int) -> tuple[bytearray, int, int]:
        """Room for a struct in this call's memory: the memory, the offset in it, and the address."""
        offset = self._used
        self._used = offset + size
        return self._memory, offset, self._base + offset

    def write(self, layout: struct.Struct, *fields: Any) -> int:
        """Writes a struct into this call's memory and returns its address."""
        memory, offset, address = self.place(layout.size)
        layout.pack_into(memory, offset, *fields)
        return address

    def write_tensor(
        self,
        data: int,
        device: tuple[int, int],
        code: tuple[int, int],
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> int:
        """Writes a `flash_tensor` into this call's memory and returns its address. Strides count elements."""
        axes = len(shape)
        layout = _TENSORS[axes]
        offset = self._used  # as `place` does; calling it takes a tenth of a microsecond
        self._used = offset + layout.size
        address = self._base + offset
        sizes = address + _TENSOR_BYTES
        layout.pack_into(
            self._memory, offset, data, *device, axes, *code, 1, sizes, sizes + 8 * axes, 0, *shape, *strides
        )  # fmt: skip
        return address
