"""Arrays of any library as `flash_tensor` structs: the single place that knows NumPy, CuPy, PyTorch and JAX apart.

Of these only NumPy is imported: the library of an array is there already, in `sys.modules`. No array is copied.

Arrays are read through the DLPack capsule that they give out. The library reads the struct inside it; the capsule is
borrowed for the call, never consumed, so its owner frees it. Two libraries have a quicker way: PyTorch's own function
makes a capsule twenty times faster than a tensor's `__dlpack__`, and CuPy arrays are read through their attributes.
Both skip the order of streams, so on CUDA an array of another library than q's takes `__dlpack__`, which makes q's
stream wait for the array's.
"""

from __future__ import annotations

import ctypes
import reprlib
import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flash._lib import ffi
from flash.exceptions import FlashTypeError, FlashValueError

if TYPE_CHECKING:
    from flash.call import Call

Array: TypeAlias = Any

CPU, CUDA, PINNED = 1, 2, 3
CPU_DEVICES = CPU, PINNED
MAX_AXES = 64

# DLPack's code and bits of a dtype, by the name that all four libraries give it.
CODES = {f"{name}{bits}": (code, bits) for name, code in (("int", 0), ("uint", 1)) for bits in (8, 16, 32, 64)}
CODES |= {"float16": (2, 16), "float32": (2, 32), "float64": (2, 64), "complex64": (5, 64), "complex128": (5, 128)}
CODES |= {"bool": (6, 8), "bfloat16": (4, 16), "float8_e4m3fn": (10, 8)}
_NAMES = {code: name for name, code in CODES.items()}
# The dtypes of ml_dtypes, which NumPy can't export: they go out as integers, and the code is put right afterwards.
_VIEWS: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(np.uint16), "float8_e4m3fn": np.dtype(np.uint8)}

_view = np.ndarray.view  # not that of a subclass

_VERSIONED = struct.Struct("=IIQQQ")  # DLManagedTensorVersioned up to its tensor: major, minor, context, deleter, flags
_READ_ONLY = 1  # in the flags
_TENSOR_POINTER = ffi.typeof("flash_tensor *")

_pointer_of: Callable[[object, bytes], int] = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def tensor_at(address: int) -> Any:
    """The `flash_tensor *` of an address."""
    return ffi.cast(_TENSOR_POINTER, address)


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The shape of a `flash_tensor *`."""
    return tuple(ffi.unpack(tensor.shape, tensor.ndim)) if tensor.ndim else ()


def dtype_of(tensor: Any) -> str:
    """The name of the dtype of a `flash_tensor *`; "" where none of the four libraries has it."""
    dtype = tensor.dtype
    return _NAMES.get((dtype.code, dtype.bits), "")


# ---- Kinds of arrays -------------------------------------------------------------------------------------------------


class Kind:
    """What differs between array libraries. This one serves unknown arrays: they can be read, but not made."""

    name = "unknown"

    def device(self, x: Array) -> tuple[int, int]:
        """DLPack's device type and number."""
        device_type, number = _ask(x, "q", x.__dlpack_device__)
        return int(device_type), int(number)

    def stream(self, x: Array) -> int:
        """The stream that x's library works on now, on x's (CUDA) device. Unknown ones: the legacy default stream."""
        return 0

    def read(self, x: Array, argument: str, call: Call) -> int:
        """The address of x's `flash_tensor`, valid during the call."""
        address = borrow(x, argument, call)
        major, _ = _header(call.keep[-1])
        if major > 1:
            raise FlashTypeError(f"{argument}: must give a DLPack capsule of version 1 or older, got version {major}")
        return address

    def is_writable(self, x: Array, call: Call) -> bool:
        """Whether x, the array read last, may be written to. Before versions, DLPack could not say no."""
        return not _header(call.keep[-1])[1] & _READ_ONLY

    def empty(self, like: Array, shape: tuple[int, ...], dtype: str | None) -> Array:
        """An array to compute into, on like's device."""
        raise FlashTypeError(
            f"q: flash can't make arrays of type {_type_name(like)}; pass a CuPy, NumPy, PyTorch or JAX array, "
            "or out= where that is the only result"
        )

    def finish(self, buffer: Array, like: Array) -> Array:
        """The result that the caller gets, for what `empty` gave."""
        return buffer

    def settle(self, like: Array) -> None:
        """After a call on CUDA that gives no result of `finish`: before its arguments are let go."""

    def scalar(self, like: Array, value: float) -> Array:
        """A float32 array of shape () on like's (CUDA) device."""
        return self.put(np.array(value, np.float32), like)

    def put(self, x: np.ndarray[Any, Any], like: Array) -> Array:
        """A copy of a NumPy array on like's (CUDA) device."""
        raise FlashTypeError(f"q: flash can't make arrays of type {_type_name(like)}; pass every argument as an array")


class _NumPy(Kind):
    """NumPy arrays, with the dtypes of ml_dtypes."""

    name = "NumPy"

    def __init__(self) -> None:
        self._names: dict[Any, str] = {}

    def device(self, x: Array) -> tuple[int, int]:
        return CPU, 0

    def read(self, x: Array, argument: str, call: Call) -> int:
        name = self._names.get(x.dtype) or self._name(x.dtype)
        view = _VIEWS.get(name)
        if view is not None:
            x = _view(x, view)
        try:
            capsule = x.__dlpack__(max_version=(1, 0))
            call.keep.append(capsule)
            address = _pointer_of(capsule, b"dltensor_versioned") + _VERSIONED.size
        except (BufferError, TypeError):
            address = borrow(x, argument, call)  # which knows old versions of NumPy, and the message
        if view is not None:
            _set_code(address, name)
        return address

    def _name(self, dtype: np.dtype[Any]) -> str:
        name = self._names[dtype] = dtype.name
        return name

    def is_writable(self, x: Array, call: Call) -> bool:
        return bool(x.flags.writeable)

    def empty(self, like: Array, shape: tuple[int, ...], dtype: str | None) -> Array:
        return np.empty(shape, like.dtype if dtype is None else numpy_dtype(dtype))


@lru_cache(maxsize=1024)  # arrays of a program have few layouts, and counting takes half a microsecond
def _in_elements(strides: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """Strides in elements, from those in bytes; None where one leaves a remainder."""
    return None if any(stride % size for stride in strides) else tuple(stride // size for stride in strides)


class _CuPy(Kind):
    """CuPy arrays."""

    name = "CuPy"

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._current_stream = cupy.cuda.get_current_stream
        self._codes: dict[Any, tuple[int, int] | None] = {}  # by dtype, whose name takes a microsecond

    def device(self, x: Array) -> tuple[int, int]:
        return CUDA, x.data.device_id

    def stream(self, x: Array) -> int:
        return int(self._current_stream(x.data.device_id).ptr)

    def read(self, x: Array, argument: str, call: Call) -> int:
        if call.kind is not self:
            with x.device:  # CuPy orders the current device's streams
                return borrow(x, argument, call)
        dtype, data, shape, strides = x.dtype, x.data, x.shape, x.strides
        code = self._codes.get(dtype) or self._code(dtype)
        if code is not None and len(shape) <= MAX_AXES:
            steps = _in_elements(strides, code[1] >> 3)
            if steps is not None:
                return call.write_tensor(data.ptr, (CUDA, data.device_id), code, shape, steps)
        return borrow(x, argument, call)  # whose message says what is wrong

    def _code(self, dtype: np.dtype[Any]) -> tuple[int, int] | None:
        code = self._codes[dtype] = CODES.get(dtype.name)
        return code

    def is_writable(self, x: Array, call: Call) -> bool:
        return True

    def empty(self, like: Array, shape: tuple[int, ...], dtype: str | None) -> Array:
        with like.device:
            return self._cupy.empty(shape, like.dtype if dtype is None else numpy_dtype(dtype))

    def scalar(self, like: Array, value: float) -> Array:
        with like.device:
            return self._cupy.full((), value, np.float32)

    def put(self, x: np.ndarray[Any, Any], like: Array) -> Array:
        with like.device:
            return self._cupy.asarray(x)


class _PyTorch(Kind):
    """PyTorch tensors on the CPU and on CUDA."""

    name = "PyTorch"

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._capsule = torch.utils.dlpack.to_dlpack
        self._grad_is_on = torch.is_grad_enabled
        self._devices: dict[Any, tuple[int, int]] = {torch.device("cpu"): (CPU, 0)}
        self._dtypes = {name: getattr(torch, name) for name in CODES if hasattr(torch, name)}

    def device(self, x: Array) -> tuple[int, int]:
        device = x.device
        found = self._devices.get(device)
        if found is None:
            if device.type != "cuda":
                raise FlashValueError(f"q: must be on the CPU or on CUDA, got a PyTorch tensor on {device}")
            found = self._devices[device] = CUDA, device.index
        return found

    def stream(self, x: Array) -> int:
        return int(self._torch.cuda.current_stream(x.device).cuda_stream)

    def read(self, x: Array, argument: str, call: Call) -> int:
        if x.requires_grad and self._grad_is_on():
            raise FlashTypeError(
                f"{argument}: is a PyTorch tensor that requires grad while grad mode is on, and flash records no graph "
                "here; use flash.torch.attention, detach it, or call under torch.no_grad()"
            )
        if x.is_neg():
            raise FlashTypeError(
                f"{argument}: is a PyTorch view that stands for the negative of its memory; use .resolve_neg()"
            )
        if call.stream is not None and call.kind is not self and x.is_cuda:
            with self._torch.cuda.device(x.device):  # PyTorch orders the current device's streams, and refuses others
                return borrow(x, argument, call)
        try:
            capsule = self._capsule(x)
        except Exception as error:
            # Sparse, quantized, nested and meta tensors, and those inside torch.func transforms: no strided memory.
            raise FlashTypeError(
                f"{argument}: must be a strided PyTorch tensor with memory, got layout {x.layout}, dtype {x.dtype}, "
                f"device {x.device} ({error})"
            ) from error
        call.keep.append(capsule)
        return _pointer_of(capsule, b"dltensor")

    def is_writable(self, x: Array, call: Call) -> bool:
        return True

    def empty(self, like: Array, shape: tuple[int, ...], dtype: str | None) -> Array:
        torch = self._torch
        wanted = like.dtype if dtype is None else self._dtypes[dtype]
        if wanted is like.dtype and shape == like.shape and like.is_contiguous():
            return torch.empty_like(like)  # half the time
        return torch.empty(shape, dtype=wanted, device=like.device)

    def scalar(self, like: Array, value: float) -> Array:
        return self._torch.full((), value, dtype=self._torch.float32, device=like.device)

    def put(self, x: np.ndarray[Any, Any], like: Array) -> Array:
        return self._torch.from_numpy(x).to(like.device)


class _Jax(Kind):
    """JAX arrays. They are immutable, so results are computed into memory that becomes an array afterwards.

    On the CPU that is NumPy memory, aligned as JAX wants it to import it without a copy. On CUDA it is a fresh array
    that nobody else has seen, imported once more after the kernel, which makes it depend on the kernel's stream. JAX
    itself works on another one, where it might hand out the memory of arguments and workspace again while the kernel
    still uses it: so the call waits.
    """

    name = "JAX"

    def __init__(self, jax: Any) -> None:
        self._jax = jax

    def device(self, x: Array) -> tuple[int, int]:
        devices = _ask(x, "q", x.devices)
        if len(devices) != 1:
            raise FlashValueError(f"q: must be on one device, got a JAX array sharded over {len(devices)}")
        return super().device(x)

    def stream(self, x: Array) -> int:
        (device,) = x.devices()
        return int(device.get_stream_for_external_ready_events())

    def is_writable(self, x: Array, call: Call) -> bool:
        return False

    def empty(self, like: Array, shape: tuple[int, ...], dtype: str | None) -> Array:
        wanted = like.dtype if dtype is None else numpy_dtype(dtype)
        if self.device(like)[0] in CPU_DEVICES:
            return _aligned_empty(shape, np.dtype(wanted))
        (device,) = like.devices()
        return self._jax.numpy.empty(shape, wanted, device=device).block_until_ready()

    def finish(self, buffer: Array, like: Array) -> Array:
        result = self._jax.dlpack.from_dlpack(_Export(buffer))
        if not isinstance(buffer, np.ndarray):
            result.block_until_ready()
        # DLPack can't tell apart the devices that XLA makes of one CPU.
        return result if result.devices() == like.devices() else self._jax.device_put(result, like.sharding)

    def settle(self, like: Array) -> None:
        self.finish(self.empty(like, (), "float32"), like)

    def put(self, x: np.ndarray[Any, Any], like: Array) -> Array:
        return self._jax.device_put(x, like.sharding).block_until_ready()


class _Export:
    """An array as `from_dlpack` of another library wants it, also of a dtype that NumPy doesn't export."""

    def __init__(self, x: Array) -> None:
        self._x = x

    def __dlpack_device__(self) -> Any:
        return self._x.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        if not isinstance(self._x, np.ndarray) or self._x.dtype.name not in _VIEWS:
            return self._x.__dlpack__(**options)
        name = self._x.dtype.name
        capsule = _view(self._x, _VIEWS[name]).__dlpack__()
        _set_code(_pointer_of(capsule, b"dltensor"), name)
        return capsule


class Shaped:
    """A shape and the name of a dtype: an array for questions that no values are read for. It is on the CPU."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype


class _Shaped(Kind):
    """What stands for arrays that have no memory yet. No kernel may run on them."""

    name = "shaped"
    _nowhere = 1 << 12  # aligned, and not NULL

    def device(self, x: Array) -> tuple[int, int]:
        return CPU, 0

    def read(self, x: Array, argument: str, call: Call) -> int:
        code = CODES.get(x.dtype)
        if code is None:
            raise FlashTypeError(f"{argument}: must be of a dtype that DLPack knows, got {x.dtype}")
        strides = [1]
        for extent in x.shape[:0:-1]:
            strides.append(strides[-1] * max(extent, 1))
        return call.write_tensor(self._nowhere, (CPU, 0), code, x.shape, tuple(strides[::-1][: len(x.shape)]))


# ---- Recognising them ------------------------------------------------------------------------------------------------

_unknown = Kind()
_numpy = _NumPy()
_libraries: dict[str, Kind] = {}
_kinds: dict[type, Kind] = {np.ndarray: _numpy, Shaped: _Shaped()}


def kind_of(x: Any, argument: str) -> Kind:
    """What to do with an array, by its type."""
    kind = _kinds.get(type(x))
    if kind is None:
        kind = _kinds[type(x)] = _recognise(x, argument)
    return kind


def _recognise(x: Any, argument: str) -> Kind:
    if isinstance(x, np.ma.MaskedArray):
        raise FlashTypeError(f"{argument}: must be an array without a mask of its own, got a NumPy masked array")
    if isinstance(x, np.ndarray):
        return _numpy
    if _is_instance(x, "torch", "Tensor"):
        return _library("torch", _PyTorch)
    if _is_instance(x, "cupy", "ndarray"):
        return _library("cupy", _CuPy)
    if _is_instance(x, "jax", "core.Tracer"):
        raise FlashTypeError(f"{argument}: is traced by JAX and has no values yet; use flash.jax.attention")
    if _is_instance(x, "jax", "Array"):
        return _library("jax", _Jax)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return _unknown
    raise FlashTypeError(
        f"{argument}: must be an array (CuPy, NumPy, PyTorch, JAX, or any other with __dlpack__), got {_type_name(x)}"
    )


def _is_instance(x: Any, library: str, path: str) -> bool:
    """Whether x is of a class of a library, without importing the library."""
    found: Any = sys.modules.get(library)
    for name in path.split("."):
        found = getattr(found, name, None)
    return isinstance(found, type) and isinstance(x, found)


def _library(name: str, kind: Callable[[Any], Kind]) -> Kind:
    if name not in _libraries:
        _libraries[name] = kind(sys.modules[name])
    return _libraries[name]


def is_array(x: Any) -> bool:
    """Whether x is to be read as an array, not as a number."""
    return type(x) in _kinds or hasattr(x, "__dlpack__")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name; those of ml_dtypes import it."""
    if name not in _VIEWS:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise FlashTypeError(f"q: a {name} result needs the package ml_dtypes; install it, or pass out=") from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any], alignment: int = 64) -> np.ndarray[Any, Any]:
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    memory = np.empty(size + alignment, np.uint8)
    start = -int(ffi.cast("uintptr_t", ffi.from_buffer(memory))) % alignment
    part: np.ndarray[Any, Any] = memory[start : start + size]
    return part.view(dtype).reshape(shape)


# ---- DLPack capsules -------------------------------------------------------------------------------------------------


def borrow(x: Any, argument: str, call: Call) -> int:
    """The address of the tensor in x's capsule. The capsule stays with the call and is freed by its own destructor."""
    options: dict[str, int] = {}
    if call.stream is not None and _ask(x, argument, x.__dlpack_device__)[0] == CUDA:
        options["stream"] = call.stream or 1  # DLPack's name for the legacy default stream
    try:
        capsule = x.__dlpack__(max_version=(1, 0), **options)
    except TypeError:  # a producer of the time before versions
        capsule = _ask(x, argument, x.__dlpack__, **options)
    except Exception as error:
        raise _refusal(x, argument, error) from error
    call.keep.append(capsule)
    try:
        return _pointer_of(capsule, b"dltensor_versioned") + _VERSIONED.size
    except ValueError:
        pass
    try:
        return _pointer_of(capsule, b"dltensor")
    except ValueError as error:
        raise _refusal(x, argument, error) from error


def _set_code(address: int, name: str) -> None:
    """Makes integers in a capsule what they stand for; the bits are right already."""
    tensor_at(address).dtype.code = CODES[name][0]


def _header(capsule: Any) -> tuple[int, int]:
    """The major version and the flags of a capsule, (0, 0) before versions."""
    try:
        address = _pointer_of(capsule, b"dltensor_versioned")
    except ValueError:
        return 0, 0
    major, _, _, _, flags = _VERSIONED.unpack(ffi.buffer(ffi.cast("char *", address), _VERSIONED.size))
    return major, flags


def _ask(x: Any, argument: str, function: Callable[..., Any], **options: Any) -> Any:
    try:
        return function(**options)
    except Exception as error:
        raise _refusal(x, argument, error) from error


def shown(x: Any) -> str:
    """How a message shows what was given: a value and its type, without the contents of arrays."""
    return _type_name(x) if is_array(x) else f"{reprlib.repr(x)} ({_type_name(x)})"


def _refusal(x: Any, argument: str, error: Exception) -> FlashTypeError:
    dtype = getattr(x, "dtype", None)
    given = _type_name(x) if dtype is None else f"{_type_name(x)} of dtype {dtype}"
    return FlashTypeError(f"{argument}: must be an array that DLPack can describe, got {given} ({error})")


def _type_name(x: Any) -> str:
    kind = type(x)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
