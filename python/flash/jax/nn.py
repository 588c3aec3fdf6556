"""`flash.jax.dot_product_attention`: the signature of `jax.nn.dot_product_attention`, computed by flash."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flash.exceptions import FlashError, FlashValueError
from flash.jax.api import attention, check_array
from flash.jax.kernel import Array

# What the arguments are called here, for messages.
_NAMES = {"q": "query", "k": "key", "v": "value", "q_lens": "query_seq_lengths", "kv_lens": "key_value_seq_lengths"}
_NAMES |= dict.fromkeys(("window", "window_left", "window_right"), "local_window_size") | {"causal": "is_causal"}


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Array | None = None,
    key_value_seq_lengths: Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Any:
    """`jax.nn.dot_product_attention` by flash: one name to change in a program that calls it.

    Parameters
    ----------
    query : array, (B, T, N, H) or (T, N, H)
    key, value : arrays, (B, S, K, H) or (S, K, H)
        K divides N. value may have another H.
    bias, mask : arrays, up to four axes, broadcast to (B, N, T, S), optional
        Added to the scores; True where a query may attend to a key.
    scale : float, optional
        Default: ``1 / sqrt(H)``.
    is_causal : bool
        Query t sees the keys s <= t, whatever the lengths.
    query_seq_lengths, key_value_seq_lengths : int32 arrays, (B,), optional
    local_window_size : int or (left, right), optional
        Query t sees the keys t - left <= s <= t + right; an int is both.
    implementation : str, optional
        None or "flash" is flash; "xla" and "cudnn" call `jax.nn.dot_product_attention` itself.
    return_residual : bool
        Whether the log-sum-exp is returned too, (B, T, N) or (T, N) in key's dtype, without a gradient.

    Returns
    -------
    array, (B, T, N, H) or (T, N, H), or the pair (array, residual)

    Raises
    ------
    FlashValueError, FlashTypeError, UnsupportedError
        As in `flash.jax.attention`, with the names that arguments have here.

    Notes
    -----
    A query that sees no key gives 0 and the residual -inf. `jax.nn.dot_product_attention` gives such a query the mean
    of all values, because it masks with a finite number.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, flash.jax
    >>> x = jnp.eye(4).reshape(1, 4, 1, 4)
    >>> o = flash.jax.dot_product_attention(x, x, x, is_causal=True)
    >>> bool(jnp.allclose(o, jax.nn.dot_product_attention(x, x, x, is_causal=True)))
    True
    """
    if implementation in ("xla", "cudnn"):
        more = {"return_residual": True} if return_residual else {}  # which older versions don't have
        return jax.nn.dot_product_attention(
            query, key, value, bias, mask, scale=scale, is_causal=is_causal, query_seq_lengths=query_seq_lengths,
            key_value_seq_lengths=key_value_seq_lengths, local_window_size=local_window_size,
            implementation=implementation, **more,
        )  # fmt: skip
    if implementation not in (None, "flash"):
        raise FlashValueError(f"implementation: must be None, 'flash', 'xla' or 'cudnn', got {implementation!r}")
    given = {"query": query, "key": key, "value": value, "bias": bias, "mask": mask}
    q, k, v = (_with_batch(given[name], name) for name in ("query", "key", "value"))
    bias, mask = (None if given[name] is None else _with_batch(given[name], name) for name in ("bias", "mask"))
    if bias is not None and bias.dtype != q.dtype:
        bias = bias.astype("float64" if q.dtype.name == "float64" else "float32")
    if isinstance(scale, (jax.Array, np.ndarray)) and not isinstance(scale, jax.core.Tracer):
        scale = float(scale)
    if isinstance(local_window_size, int):
        local_window_size = local_window_size, local_window_size
    try:
        o, lse = attention(
            q, k, v, scale=scale, causal=is_causal, window=local_window_size, q_offset=0, q_lens=query_seq_lengths,
            kv_lens=key_value_seq_lengths, mask=mask, bias=bias, return_lse=True,
        )  # fmt: skip
    except FlashError as error:
        name, colon, rest = str(error).partition(":")
        raise type(error)(_NAMES.get(name, name) + colon + rest) from None
    shape = jnp.shape(query)
    o = o.reshape((*shape[:-1], o.shape[-1]))
    if not return_residual:
        return o
    return o, jax.lax.stop_gradient(jnp.swapaxes(lse, -1, -2).astype(k.dtype)).reshape(shape[:-1])


def _with_batch(x: Any, name: str) -> Array:
    """X with four axes."""
    x = check_array(x, name)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)
