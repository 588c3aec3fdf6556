"""`flash.jax.attention`: from its arguments to operands and a `Kernel`, with every check that needs no values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flash._lib import check, lib
from flash.arrays import Shaped, is_array, shape_of, shown
from flash.block_mask import BlockMask
from flash.call import Call
from flash.exceptions import FlashTypeError
from flash.jax.gradients import constant, differentiable
from flash.jax.kernel import OPERANDS, Array, Kernel, varying_axes
from flash.problem import ALL, Window, write_problem

# Real arrays without a gradient here. Integers have none.
_CONSTANT = "alibi_slopes", "q_scale", "k_scale", "v_scale"
_HIGHEST_INT32 = (1 << 31) - 1
_SCALARS = "scale", "softcap", "dropout", "q_offset", "window_left", "window_right", "seed", "flags"


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Window | None = None,
    q_offset: int | Array | None = None,
    q_lens: Array | None = None,
    kv_lens: Array | None = None,
    mask: Array | None = None,
    bias: Array | None = None,
    alibi_slopes: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    block_mask: BlockMask | None = None,
    dropout: float = 0.0,
    seed: int | Array = 0,
    q_scale: float | Array | None = None,
    k_scale: float | Array | None = None,
    v_scale: float | Array | None = None,
    return_lse: bool = False,
    deterministic: bool = False,
) -> Any:
    """`flash.attention` in JAX programs: every array may be traced, and jit, grad, vmap, checkpoint and scan work.

    Differentiable (once, in reverse) in q, k, v, bias and sinks, through o and through lse.

    Parameters
    ----------
    q, k, v : JAX or NumPy arrays, N + (Lq, Hq, D), N + (Lk, Hk, D), N + (Lk, Hk, Dv)
        float16, bfloat16, float32 or, on the CPU, float64.
    scale, causal, window, softcap, dropout : float, bool, pair
        As in `flash.attention`: Python numbers, fixed when the program is traced.
    q_offset, q_lens, kv_lens, mask, bias, alibi_slopes, sinks, q_scale, k_scale, v_scale
        As in `flash.attention`: arrays, for q_offset and the scales also Python numbers.
    block_mask : flash.BlockMask, optional
        A constant of the program.
    seed : int in [0, 2^64), or a one-element int32 array
        Of dropout. An array is read when the program runs: ``jax.random.randint(key, (), 0, 2**31 - 1)``.
    return_lse : bool
        Whether lse is returned too.
    deterministic : bool
        Gradients with the same bits on every run, also on CUDA; on the CPU they always are.

    Returns
    -------
    o : jax.Array, N + (Lq, Hq, Dv)
        In q's dtype (bfloat16 for float8).
    lse : jax.Array, N + (Hq, Lq), float32 (float64 for float64)
        Only with `return_lse`.

    Raises
    ------
    FlashValueError, FlashTypeError, UnsupportedError
        As `flash.attention` does, when the program is traced. What is wrong with values inside arrays, on the CPU, is
        raised by JAX when it runs.

    Notes
    -----
    The algorithm is that of `flash.attention`; the backward is Dao, "FlashAttention-2", arXiv:2307.08691, Algorithm 2.

    Under vmap the new axis becomes a leading axis of one call; with dropout or over sinks it is a loop, so that each
    element gets what a call of its own gives. Arrays that are sharded over sequences or heads are computed where they
    lie, within ``shard_map`` and without; with dropout and no ``shard_map`` they are gathered, since the positions that
    it drops depend on a sequence's and a head's number in the whole array.

    XLA hands over compact arrays only, and copies others first.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy, flash.jax
    >>> q = k = v = jnp.eye(4).reshape(4, 1, 4)
    >>> numpy.round(flash.jax.attention(q, k, v, causal=True)[1, 0].tolist(), 3)
    array([0.378, 0.622, 0.   , 0.   ])
    >>> dv = jax.jit(jax.grad(lambda v: flash.jax.attention(q, k, v, causal=True).sum()))(v)
    >>> numpy.round(dv[:, 0, 0].tolist(), 3)
    array([1.867, 1.112, 0.667, 0.355])
    """
    if isinstance(seed, (np.ndarray, np.generic)) and np.size(seed) == 1:
        seed = np.asarray(seed).item()  # JAX would keep 32 bits of it
    given = {"q": q, "k": k, "v": v, "mask": mask, "bias": bias, "alibi_slopes": alibi_slopes, "sinks": sinks}
    given |= {"q_lens": q_lens, "kv_lens": kv_lens}
    numbers = {"q_offset": q_offset, "seed": seed, "q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale}
    operands = {name: check_array(x, name) for name, x in given.items() if x is not None}
    operands |= {name: check_array(x, name) for name, x in numbers.items() if _is_array(x)}
    shaped = {name: Shaped(x.shape, x.dtype.name) for name, x in operands.items()}
    options = numbers | dict.fromkeys(given) | shaped
    options |= {"scale": scale, "causal": causal, "window": window, "softcap": softcap, "dropout": dropout}
    kernel, more = _describe(options, block_mask, deterministic)
    if kernel.dropout == 0.0:
        operands.pop("seed", None)
    # Values that JAX doesn't trace are not differentiated.
    traced = {name for name, x in operands.items() if isinstance(x, jax.core.Tracer)}
    operands |= {name: constant(name, operands[name]) for name in _CONSTANT if name in traced} | more
    axes = varying_axes(*operands.values())
    operands = {name: _varying(operands[name], axes) for name in OPERANDS if name in operands}
    kernel = kernel.with_operands(operands).with_results(*(("o", "lse") if return_lse else ("o",)))
    results = _compiled(kernel, tuple(name for name in ALL if name in traced), tuple(operands.values()))
    return results if return_lse else results[0]


# Outside of another jit, what was compiled is kept.
_compiled: Any = jax.jit(differentiable, static_argnums=(0, 1), inline=True)


def _describe(options: dict[str, Any], block_mask: Any, deterministic: bool) -> tuple[Kernel, dict[str, Array]]:
    """The problem in the library's numbers, checked by the library, and operands that are no arrays of the caller."""
    q, k, v = (options.pop(name) for name in "qkv")
    with Call.on(q) as call:
        problem = write_problem(call, q, k, v, deterministic, **options, block_mask=block_mask)
        check(lib.flash_forward_workspace(problem, call.size))
        scalars = {name: getattr(problem, name) for name in _SCALARS}
        more: dict[str, Array] = {}
        if block_mask is not None:
            shape = shape_of(problem.q)
            more |= block_mask.lists_for(q, shape[:-3], shape[-2])._asdict()
            scalars |= {"block_q": block_mask.block_q, "block_k": block_mask.block_k}
        for name in ("q_scale", "k_scale", "v_scale"):
            if options[name] is not None and not _is_array(options[name]):
                more[name] = np.float32(options[name])
    if scalars["dropout"] == 0.0:
        scalars["seed"] = 0
    elif scalars["seed"] <= _HIGHEST_INT32 and not _is_array(options["seed"]):
        more["seed"], scalars["seed"] = np.int32(scalars["seed"]), 0  # an attribute would be compiled for each seed
    return Kernel((), tuple(sorted(scalars.items())), ()), {name: jnp.asarray(x) for name, x in more.items()}


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array) or (x is not None and is_array(x))  # JAX's keys have no __dlpack__


def check_array(x: Any, name: str) -> Array:
    """A JAX array for x, which must be one, or NumPy's."""
    if not isinstance(x, (jax.Array, np.ndarray, np.generic)):
        raise FlashTypeError(f"{name}: must be a JAX or NumPy array, got {shown(x)}")
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        made = "jax.random.randint(key, (), 0, 2**31 - 1)" if name == "seed" else "an array of numbers"
        raise FlashTypeError(f"{name}: must not be a PRNG key, got one of {x.dtype}; pass {made}")
    return jnp.asarray(x)


def _varying(x: Array, axes: frozenset[str]) -> Array:
    """An array that varies over these axes of a shard_map. Its gradient is summed over those that are new to x."""
    missing = tuple(axes - varying_axes(x))
    if not missing:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, missing, to="varying")
    return jax.lax.pvary(x, missing)
