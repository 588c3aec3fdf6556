"""One call of the library from XLA: operands, attributes and results, as src/xla.cpp reads them."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from flash._lib import ffi, lib

Array: TypeAlias = Any

# In the order of src/xla.cpp.
OPERANDS = (
    "q", "k", "v", "mask", "bias", "alibi_slopes", "sinks", "q_lens", "kv_lens", "q_offset", "q_scale", "k_scale",
    "v_scale", "seed", "row_start", "columns", "column_start", "rows", "do", "o", "lse", "dlse",
)  # fmt: skip
GRADIENTS = "dq", "dk", "dv", "dbias", "dsinks"
_TYPES: dict[str, Any] = {"scale": np.float64, "softcap": np.float64, "dropout": np.float64}
_TYPES |= dict.fromkeys(("q_offset", "window_left", "window_right", "block_q", "block_k"), np.int64)
_TYPES |= dict.fromkeys(("seed", "flags"), np.uint64)

# `jax.ffi.pycapsule` does the same, and changes the argument types of ctypes.pythonapi.PyCapsule_New for everybody.
_capsule_of: Any = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


@dataclass(frozen=True)
class Kernel:
    """What is known of a call while it is traced, apart from shapes: hashable, so that JAX can keep what it compiled.

    names: of the operands that are given, in the order of OPERANDS. scalars: the fields of `flash_problem`, sorted.
    results: "o", "lse", or some of GRADIENTS.
    """

    names: tuple[str, ...]
    scalars: tuple[tuple[str, float | int], ...]
    results: tuple[str, ...]

    @property
    def is_backward(self) -> bool:
        """Whether the results are gradients."""
        return self.results[0] in GRADIENTS

    @property
    def dropout(self) -> float:
        """Whose positions are counted from the first sequence and head of a call."""
        return dict(self.scalars)["dropout"]

    def with_results(self, *results: str) -> Kernel:
        """The same problem with other results."""
        return replace(self, results=results)

    def with_operands(self, operands: dict[str, Array]) -> Kernel:
        """The same problem with other operands."""
        return replace(self, names=tuple(name for name in OPERANDS if name in operands))

    def named(self, operands: tuple[Array, ...]) -> dict[str, Array]:
        """Operands by their names."""
        return dict(zip(self.names, operands, strict=True))

    def shapes(self, operands: tuple[Array, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape and dtype of each result, which varies within a shard_map as the operands do."""
        given = self.named(operands)
        q, v = given["q"], given["v"]
        *N, Lq, Hq, _ = q.shape
        more = _varying_as(q) if varying_axes(q) else {}
        made: dict[str, tuple[tuple[int, ...], Any]] = {
            "o": ((*N, Lq, Hq, v.shape[-1]), "bfloat16" if q.dtype.name == "float8_e4m3fn" else q.dtype),
            "lse": ((*N, Hq, Lq), "float64" if q.dtype.name == "float64" else "float32"),
        }
        made |= {f"d{name}": (x.shape, x.dtype) for name, x in given.items() if f"d{name}" in GRADIENTS}
        return tuple(jax.ShapeDtypeStruct(*made[name], **more) for name in self.results)

    def __call__(self, *operands: Array) -> tuple[Array, ...]:
        """The results, for operands on one device."""
        register()
        given = {"given": np.uint64(sum(1 << OPERANDS.index(name) for name in self.names))}
        if self.is_backward:
            given["wanted"] = np.uint64(sum(1 << GRADIENTS.index(name) for name in self.results))
        scalars = {name: _TYPES[name](value) for name, value in self.scalars}
        call = jax.ffi.ffi_call(target(self.is_backward), self.shapes(operands))
        return tuple(call(*operands, **given, **scalars))


def target(is_backward: bool) -> str:
    """The name under which XLA knows a handler."""
    return f"flash_attention_{'backward' if is_backward else 'forward'}"


@functools.lru_cache(maxsize=1)
def register() -> None:
    """Register the handlers. At the first call: XLA looks at what is registered when its backends start."""
    for platform, prefix in (("cpu", "flash_xla"), ("CUDA", "flash_xla_cuda")):
        for is_backward, direction in ((False, "forward"), (True, "backward")):
            handler = getattr(lib, f"{prefix}_{direction}")
            capsule = _capsule_of(int(ffi.cast("uintptr_t", handler)), None, None)
            jax.ffi.register_ffi_target(target(is_backward), capsule, platform=platform)


def varying_axes(*arrays: Array) -> frozenset[str]:
    """The axes of a shard_map that any of the arrays varies over."""
    axes: frozenset[str] = frozenset()
    for x in arrays:
        aval = jax.typeof(x) if hasattr(jax, "typeof") else None  # versions without it don't look
        kind = getattr(aval, "manual_axis_type", None)  # versions before that say "vma"
        axes |= getattr(aval, "vma", frozenset()) if kind is None else kind.varying
    return axes


def _varying_as(x: Array) -> dict[str, Any]:
    """The arguments of ShapeDtypeStruct for what varies within a shard_map as x does."""
    aval = jax.typeof(x)
    if not hasattr(aval, "manual_axis_type"):
        return {"vma": aval.vma}
    return {"manual_axis_type": aval.manual_axis_type, "sharding": NamedSharding(aval.sharding.mesh, PartitionSpec())}
