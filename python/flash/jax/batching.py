"""What vmap does: a new leading axis of the problem, where that means the same as a loop, and otherwise a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from flash.jax.kernel import Array, Kernel
from flash.jax.sharding import partitioned

_LISTS = "row_start", "columns", "column_start", "rows"
_SCALES = "q_scale", "k_scale", "v_scale"


def batched(kernel: Kernel) -> Callable[..., tuple[Array, ...]]:
    """A kernel that knows what vmap does to it."""
    call: Any = custom_vmap(partitioned(kernel))

    def rule(size: int, is_batched: Sequence[bool], *operands: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        has_axis = kernel.named(tuple(is_batched))
        if _is_one_problem(kernel, has_axis):
            results = _as_one_problem(kernel, size, has_axis, kernel.named(operands))
        else:
            results = _as_loop(kernel, is_batched, operands)
        return results, (True,) * len(results)

    call.def_vmap(rule)
    result: Callable[..., tuple[Array, ...]] = call
    return result


def _is_one_problem(kernel: Kernel, has_axis: dict[str, bool]) -> bool:
    """Whether another leading axis of the problem gives what a loop gives.

    Not with dropout, which would draw other positions for all sequences but the first. Sinks and their gradient have no
    leading axes, nor has the seed.
    """
    own = [name for name in ("sinks", "seed", *_LISTS) if has_axis.get(name)]
    return kernel.dropout == 0.0 and not own and "dsinks" not in kernel.results


def _as_loop(kernel: Kernel, is_batched: Sequence[bool], operands: tuple[Array, ...]) -> tuple[Array, ...]:
    def step(parts: tuple[Array, ...]) -> tuple[Array, ...]:
        left = iter(parts)
        return batched(kernel)(*(next(left) if own else x for own, x in zip(is_batched, operands, strict=True)))

    own = tuple(x for own, x in zip(is_batched, operands, strict=True) if own)
    results: tuple[Array, ...] = jax.lax.map(step, own)
    return results


def _as_one_problem(kernel: Kernel, size: int, has_axis: dict[str, bool], given: dict[str, Array]) -> tuple[Array, ...]:
    axes = given["q"].ndim + (not has_axis["q"])  # of q as one problem
    N = given["q"].shape[1:-3] if has_axis["q"] else given["q"].shape[:-3]
    heads = {"alibi_slopes": given["q"].shape[-2]} | dict.fromkeys(_SCALES, given["k"].shape[-2])

    def of_problem(name: str, x: Array) -> Array:
        own = has_axis[name]
        if name in ("mask", "bias"):
            if own:  # by NumPy's rules its axes would be taken for the last ones
                return x.reshape((size,) + (1,) * (axes - x.ndim) + x.shape[1:])
            return x if f"d{name}" not in kernel.results else _expanded(x[(None,) * (axes - x.ndim)], size)
        if name in _LISTS:
            one_for_all = name in ("columns", "rows") or x.shape[0] == 1
            return x if one_for_all else jnp.tile(x, (size, 1, 1))  # they index into the same columns or rows
        if name in heads:
            without = x.ndim - own < len(N) + 1  # () or (heads,): for all sequences
            if without and own:
                return jnp.broadcast_to(x.reshape((size,) + (1,) * len(N) + (-1,)), (size, *N, heads[name]))
            if without:
                return x
        if name in ("sinks", "seed"):
            return x
        return x if own else _expanded(x[None], size)

    operands = tuple(of_problem(name, x) for name, x in given.items())
    results = batched(kernel)(*operands)
    if "dbias" in kernel.results:
        at, bias = kernel.results.index("dbias"), given["bias"]
        shape = (size, *(bias.shape[1:] if has_axis["bias"] else bias.shape))
        results = (*results[:at], results[at].reshape(shape), *results[at + 1 :])
    return results


def _expanded(x: Any, size: int) -> Array:
    """With as many copies along its first axis."""
    return jnp.broadcast_to(x, (size, *x.shape[1:]))
