"""How attention is differentiated: forward keeps o and lse, backward computes the probabilities again.

What is differentiated is not known here. Under jit, XLA drops the calls whose results nobody uses, so each gradient
that costs a pass of its own is a call of its own. (JAX would say which arguments are perturbed, by `symbolic_zeros`;
but when one jitted function is differentiated in two ways, both backwards can get what the first forward saved.)
"""

from __future__ import annotations

import functools
from typing import Any

import jax

from flash.exceptions import UnsupportedError
from flash.jax.batching import batched
from flash.jax.kernel import Array, Kernel
from flash.jax.sharding import as_typed

_CALLS = ("dq", "dk", "dv"), ("dbias",), ("dsinks",)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _once(kernel: Kernel, operands: tuple[Array, ...]) -> tuple[Array, ...]:
    """The results of a kernel, with a message for who would differentiate them."""
    return batched(kernel)(*operands)


@_once.defjvp  # type: ignore[untyped-decorator]
def _twice(kernel: Kernel, primals: Any, tangents: Any) -> Any:
    raise UnsupportedError("flash.jax.attention: has first derivatives only, in reverse mode")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def constant(name: str, x: Array) -> Array:
    """x, an argument that attention has no gradient of."""
    return x


@constant.defjvp  # type: ignore[untyped-decorator]
def _of_constant(name: str, primals: Any, tangents: Any) -> Any:
    raise UnsupportedError(f"{name}: has no gradient in flash; pass jax.lax.stop_gradient({name})")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(kernel: Kernel, wrt: tuple[str, ...], operands: tuple[Array, ...]) -> tuple[Array, ...]:
    """The results of a forward kernel. wrt: the operands that may be differentiated."""
    results: tuple[Array, ...] = _once(kernel, operands)
    return results


def _forward(kernel: Kernel, wrt: tuple[str, ...], operands: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
    o, lse = _once(kernel.with_results("o", "lse"), operands)
    return (o, lse)[: len(kernel.results)], (operands, o, lse)


def _backward(
    kernel: Kernel, wrt: tuple[str, ...], saved: Any, cotangents: tuple[Array, ...]
) -> tuple[tuple[Array | None, ...]]:
    operands, o, lse = saved
    given = kernel.named(operands) | {"o": o, "lse": lse}
    given |= zip(("do", "dlse"), cotangents, strict=False)
    made: dict[str, Array] = {}
    for results in _CALLS:
        wanted = tuple(name for name in results if name[1:] in wrt)
        if wanted:
            backward = kernel.with_operands(given).with_results(*wanted)
            made |= zip(wanted, _once(backward, tuple(given[name] for name in backward.names)), strict=True)
    names = zip(kernel.names, operands, strict=True)
    return (tuple(as_typed(made[f"d{name}"], x) if f"d{name}" in made else None for name, x in names),)


differentiable.defvjp(_forward, _backward)
