"""Standard attention in plain array operations: the whole score matrix is built, and every option is spelled out.

    S = scale Q K^T,   P = softmax(S),   O = P V                                     FlashAttention, Algorithm 0
    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - rowsum(P * dP)),   dQ = scale dS K,   dK = scale dS^T Q

It is the definition that the library is tested against (in float64), and the baseline that it is compared with (in the
caller's dtype). Works on NumPy and CuPy arrays.

Inside, heads come before rows: q is N + (Hq, Lq, D), k is N + (Hk, Lk, D), a score matrix is N + (Hq, Lq, Lk).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy

from flash.dropout import dropout_mask
from flash.gradients import Gradients

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flash.block_mask import BlockMask
    from flash.block_patterns import Window
    from flash.problem import Options

Array: TypeAlias = Any

# NaN and inf of the inputs pass through, and what log(0) and x / 0 give is selected away: neither deserves a warning.
_quiet = numpy.errstate(divide="ignore", invalid="ignore", over="ignore")


@_quiet
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    return_lse: bool = False,
    dtype: Any = None,
    **options: Unpack[Options],
) -> Any:
    """Standard attention, with the options of `flash.attention`.

    Parameters
    ----------
    q, k, v : arrays, N + (Lq, Hq, D), N + (Lk, Hk, D), N + (Lk, Hk, Dv)
        NumPy or CuPy arrays of one floating dtype.
    return_lse : bool
        Whether lse is returned too.
    dtype : dtype, optional
        In which the mathematics is done: float16, bfloat16, float32 or float64. Default: that of q (bfloat16 where q is
        float8). In 16 bits every operation's result is rounded, while the sums inside a matrix product or a softmax
        are float32, as in array libraries.
    **options
        As in `flash.attention`: all but `out` and `workspace`.

    Returns
    -------
    o : array, N + (Lq, Hq, Dv), of `dtype`
    lse : array, N + (Hq, Lq), float32 (float64 where `dtype` is)
        Only with `return_lse`.

    Notes
    -----
    Dao et al., "FlashAttention", arXiv:2205.14135, Algorithm 0. Needs memory for several matrices of Lq x Lk. Arguments
    are not checked.

    Examples
    --------
    >>> import numpy, flash
    >>> q = k = v = numpy.eye(4, dtype=numpy.float32).reshape(4, 1, 4)
    >>> flash.reference.attention(q, k, v, causal=True, dtype=numpy.float64)[1, 0].round(3)
    array([0.378, 0.622, 0.   , 0.   ])
    """
    numbers = _Numbers.of(q, dtype)
    f = _forward(numbers, q, k, v, **options)
    o = _heads_last(numbers.xp, _query_product(numbers, _drop(numbers, f, f.p), f.v, f.listed)).astype(numbers.dtype)
    return (o, f.lse) if return_lse else o


@_quiet
def attention_backward(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array | None = None,
    lse: Array | None = None,
    *,
    dlse: Array | None = None,
    wrt: Collection[str] = ("q", "k", "v", "bias", "sinks"),
    dtype: Any = None,
    **options: Unpack[Options],
) -> Gradients:
    """Gradients of standard attention, with the options of `flash.attention_backward`.

    Parameters
    ----------
    do : array, N + (Lq, Hq, Dv)
        Gradient of the loss with respect to o.
    q, k, v : arrays, N + (Lq, Hq, D), N + (Lk, Hk, D), N + (Lk, Hk, Dv)
        NumPy or CuPy arrays of one floating dtype.
    o, lse : arrays, optional
        Not used: everything is computed again. They are here so that a call reads like one of
        `flash.attention_backward`.
    dlse : array, N + (Hq, Lq), optional
        Gradient of the loss with respect to lse.
    wrt : collection of str
        The arguments whose gradients are wanted.
    dtype : dtype, optional
        In which the mathematics is done, as in `attention`.
    **options
        As in `attention`.

    Returns
    -------
    Gradients
        Each of its argument's shape, and of `dtype` or, where that is None, of its argument's dtype.

    Notes
    -----
    Dao et al., "FlashAttention", arXiv:2205.14135, appendix B.2 (the gradients of standard attention). Arguments are
    not checked.

    Examples
    --------
    >>> import numpy, flash
    >>> q = k = v = numpy.eye(4).reshape(4, 1, 4)
    >>> g = flash.reference.attention_backward(numpy.ones((4, 1, 4)), q, k, v, wrt=("v",))
    >>> g.dv[:, 0, 0].round(3), g.dq
    (array([1., 1., 1., 1.]), None)
    """
    numbers = _Numbers.of(q, dtype)
    xp = numbers.xp
    given = {"q": q, "k": k, "v": v, "bias": options.get("bias"), "sinks": options.get("sinks")}
    wanted = {name: x for name, x in given.items() if x is not None and name in wrt}
    f = _forward(numbers, q, k, v, **options)

    do = _real_rows(xp, _heads_first(xp, numbers.read(do)), options.get("q_lens"))
    # A row without any column has no lse to differentiate.
    dlse = 0.0 if dlse is None else xp.where(f.lse == -math.inf, 0.0, dlse.astype(numbers.wide))[..., None]
    dp = xp.where(f.seen, _query_product(numbers, do, xp.swapaxes(f.v, -1, -2)), 0.0)
    dp = _drop(numbers, f, dp)
    delta = (f.p * dp).sum(axis=-1, keepdims=True)
    ds = numbers.round(xp.where(f.seen, f.p * (dp - delta + dlse), 0.0))
    dx = numbers.round(numbers.round(ds * f.softcap_slope) * f.scale)

    gradients = {}
    if "q" in wanted:
        gradients["q"] = _heads_last(xp, _query_product(numbers, dx, f.k, f.listed))
    if "k" in wanted:
        gradients["k"] = _heads_last(xp, _key_product(numbers, dx, f.q, f.k.shape[-3], f.listed))
    if "v" in wanted:
        gradients["v"] = _heads_last(xp, _key_product(numbers, _drop(numbers, f, f.p), do, f.v.shape[-3], f.listed))
    if "bias" in wanted:
        gradients["bias"] = _sum_to(ds, wanted["bias"].shape)
    if "sinks" in wanted:
        gradients["sinks"] = _sum_to(f.p_sink * (dlse - delta), (ds.shape[-3], 1, 1))[:, 0, 0]
    dtypes = {name: x.dtype if dtype is None else dtype for name, x in wanted.items()}
    return Gradients(**{f"d{name}": gradient.astype(dtypes[name]) for name, gradient in gradients.items()})


def visible(
    q: Array,
    k: Array,
    *,
    causal: bool = False,
    window: Window | None = None,
    q_offset: Any = None,
    q_lens: Array | None = None,
    kv_lens: Array | None = None,
    mask: Array | None = None,
    block_mask: BlockMask | None = None,
) -> Array:
    """Which query sees which key.

    Query i sees key j when i < q_len, j < kv_len, j <= i + off (if causal), i + off - left <= j <= i + off + right,
    mask[i, j], and the block of (i, j) is listed. off is `q_offset`, by default kv_len - q_len.

    Parameters
    ----------
    q, k : arrays, N + (Lq, Hq, D), N + (Lk, Hk, D)
        Only their shapes and their kind (NumPy or CuPy) count.
    causal, window, q_offset, q_lens, kv_lens, mask, block_mask
        As in `flash.attention`.

    Returns
    -------
    bool array, N + (Hq, Lq, Lk), read-only

    Examples
    --------
    >>> import numpy, flash
    >>> q, k = numpy.zeros((2, 1, 8)), numpy.zeros((3, 1, 8))
    >>> flash.reference.visible(q, k, causal=True)
    array([[[ True,  True, False],
            [ True,  True,  True]]])
    """
    xp = _namespace(q)
    *N, Lq, Hq, _ = q.shape
    Lk = k.shape[-3]
    i, j = xp.arange(Lq)[:, None], xp.arange(Lk)
    distance = _distance(xp, Lq, Lk, q_offset, q_lens, kv_lens)
    left, right = window or (None, None)
    seen = (i < _per_sequence(xp, q_lens, Lq)) & (j < _per_sequence(xp, kv_lens, Lk))
    if causal:
        seen = seen & (distance >= 0)
    if left is not None:
        seen = seen & (distance <= left)
    if right is not None:
        seen = seen & (distance >= -right)
    if mask is not None:
        seen = seen & mask
    if block_mask is not None:
        seen = seen & _listed(xp, block_mask, Lq, Lk)
    return xp.broadcast_to(seen, (*N, Hq, Lq, Lk))


class _Numbers(NamedTuple):
    """In which numbers to compute: values lie in `wide` arrays, rounded to `dtype`."""

    xp: Any
    dtype: Any
    wide: Any

    @classmethod
    def of(cls, q: Array, dtype: Any) -> _Numbers:
        if dtype is None and q.dtype.itemsize == 1:
            from ml_dtypes import bfloat16

            dtype = bfloat16
        dtype = numpy.dtype(q.dtype if dtype is None else dtype)
        return cls(_namespace(q), dtype, numpy.dtype("f8" if dtype == "f8" else "f4"))

    def round(self, x: Array) -> Array:
        return x if self.dtype == self.wide else x.astype(self.dtype).astype(self.wide)

    def read(self, x: Array, factor: Any = None) -> Array:
        """An argument in these numbers. factor: None, a scalar or N + (Hk,), for x of N + (L, a multiple of Hk, D)."""
        x = x.astype(self.dtype).astype(self.wide)
        if factor is None:
            return x
        factor = self.xp.asarray(factor, dtype=self.wide)
        if factor.ndim:
            factor = self.xp.repeat(factor, x.shape[-2] // factor.shape[-1], axis=-1)[..., None, :, None]
        return self.round(x * factor)


class _Forward(NamedTuple):
    """What the output and the gradients are made from."""

    q: Array  # heads first; zero past the lengths, as k and v
    k: Array
    v: Array
    scale: float
    seen: Array
    listed: Array | None  # N + (Hq, Lq, Lk); None without a block mask
    softcap_slope: Any  # derivative of the softcap
    p: Array  # before dropout
    p_sink: Array
    lse: Array
    dropout: float
    keep: Array | None


def _forward(
    numbers: _Numbers,
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    bias: Array | None = None,
    alibi_slopes: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout: float = 0.0,
    seed: Any = 0,
    q_scale: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
    **sight: Any,
) -> _Forward:
    """The forward up to the product with v. sight: the options of `visible`."""
    xp = numbers.xp
    q_lens, kv_lens, block_mask = (sight.get(name) for name in ("q_lens", "kv_lens", "block_mask"))
    seen = visible(q, k, **sight)
    Lq, Lk = seen.shape[-2:]
    q, k, v = numbers.read(q, q_scale), numbers.read(k, k_scale), numbers.read(v, v_scale)
    # Beside the scores: in a product, 0 times a NaN past the lengths would still be NaN.
    q, k, v = (_real_rows(xp, _heads_first(xp, x), lens) for x, lens in ((q, q_lens), (k, kv_lens), (v, kv_lens)))

    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    s = numbers.round(_query_product(numbers, q, xp.swapaxes(k, -1, -2)) * scale)
    softcap_slope: Any = 1.0
    if softcap:
        tanh = numbers.round(xp.tanh(numbers.round(s / float(softcap))))
        softcap_slope = xp.where(seen, 1.0 - tanh * tanh, 0.0)
        s = numbers.round(tanh * float(softcap))
    if alibi_slopes is not None:
        distance = xp.abs(_distance(xp, Lq, Lk, sight.get("q_offset"), q_lens, kv_lens))
        slopes = alibi_slopes.astype(numbers.wide)[..., None, None]
        s = numbers.round(s - numbers.round(slopes * distance.astype(numbers.wide)))
    if bias is not None:
        s = numbers.round(s + bias.astype(numbers.wide))
    s = xp.where(seen, s, -math.inf)

    sink = xp.full((1, 1, 1), -math.inf, numbers.wide) if sinks is None else sinks.astype(numbers.wide)[:, None, None]
    sink = _real_rows(xp, xp.broadcast_to(sink, (*seen.shape[:-1], 1)), q_lens, -math.inf)
    m = xp.maximum(s.max(axis=-1, keepdims=True), sink) if s.size else sink
    m = xp.where(m == -math.inf, 0.0, m)
    e, e_sink = xp.exp(s - m), xp.exp(sink - m)
    total = e.sum(axis=-1, keepdims=True) + e_sink
    divisor = xp.where(total == 0.0, 1.0, total)

    return _Forward(
        q=q,
        k=k,
        v=v,
        scale=scale,
        seen=seen,
        listed=None if block_mask is None else xp.broadcast_to(_listed(xp, block_mask, Lq, Lk), seen.shape),
        softcap_slope=softcap_slope,
        # Selected: in a row whose own scores are NaN, the keys that it doesn't see stay out of it.
        p=numbers.round(xp.where(seen, e / divisor, 0.0)),
        p_sink=e_sink / divisor,
        lse=(m + xp.log(total))[..., 0],
        dropout=dropout,
        keep=dropout_mask(seed, dropout, seen.shape, xp) if dropout else None,
    )


def _namespace(array: Array) -> Any:
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else numpy


def _per_sequence(xp: Any, numbers: Any, default: int = 0) -> Any:
    """Lengths or offsets, one for all or one a sequence, so that they broadcast against N + (Hq, Lq, Lk)."""
    return default if numbers is None else xp.asarray(numbers, dtype=xp.int64)[..., None, None, None]


def _distance(xp: Any, Lq: int, Lk: int, q_offset: Any, q_lens: Array | None, kv_lens: Array | None) -> Array:
    """How far query i stands after key j: i + off - j."""
    bottom_right = _per_sequence(xp, kv_lens, Lk) - _per_sequence(xp, q_lens, Lq)
    offset = bottom_right if q_offset is None else _per_sequence(xp, q_offset)
    return xp.arange(Lq)[:, None] + offset - xp.arange(Lk)


def _listed(xp: Any, block_mask: BlockMask, Lq: int, Lk: int) -> Array:
    """Which (i, j) lie in a listed block: the block mask's leading shape + (Lq, Lk)."""
    blocks = xp.asarray(block_mask.to_dense())
    return blocks[..., xp.arange(Lq)[:, None] // block_mask.block_q, xp.arange(Lk) // block_mask.block_k]


def _heads_first(xp: Any, x: Array) -> Array:
    return xp.moveaxis(x, -2, -3)


def _heads_last(xp: Any, x: Array) -> Array:
    return xp.moveaxis(x, -3, -2)


def _real_rows(xp: Any, x: Array, lengths: Array | None, hidden: float = 0.0) -> Array:
    """Rows past the lengths replaced. x: N + (H, L, anything)."""
    if lengths is None:
        return x
    return xp.where(xp.arange(x.shape[-2])[:, None] < _per_sequence(xp, lengths), x, hidden)


def _drop(numbers: _Numbers, f: _Forward, x: Array) -> Array:
    if f.keep is None:
        return x
    # As an array's number, so that dropout = 1 divides by zero where nothing is kept instead of raising.
    return numbers.round(numbers.xp.where(f.keep, x / numbers.wide.type(1.0 - f.dropout), 0.0))


def _sum_to(x: Array, shape: Sequence[int]) -> Array:
    """The transpose of broadcasting from `shape` to that of x."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(axis for axis, size in enumerate(shape) if size == 1), keepdims=True)


def _grouped(x: Array, Hk: int) -> Array:
    """The rows of the query heads that share a key head as one matrix: N + (Hk, Hq / Hk * Lq, ...)."""
    *N, Hq, Lq, width = x.shape
    return x.reshape((*N, Hk, Hq // Hk * Lq, width))


def _query_product(numbers: _Numbers, a: Array, b: Array, listed: Array | None = None) -> Array:
    """Product a @ b of each query head: N + (Hq, Lq, n) by N + (Hk, n, width)."""
    Hk = b.shape[-3]
    product = _product(numbers.xp, _grouped(a, Hk), b, None if listed is None else _grouped(listed, Hk))
    return numbers.round(product.reshape((*a.shape[:-1], b.shape[-1])))


def _key_product(numbers: _Numbers, a: Array, b: Array, Hk: int, listed: Array | None) -> Array:
    """The transpose of a, times b, summed over the query heads of a key head: N + (Hk, Lk, width)."""
    a, b = numbers.xp.swapaxes(_grouped(a, Hk), -1, -2), _grouped(b, Hk)
    listed = None if listed is None else numbers.xp.swapaxes(_grouped(listed, Hk), -1, -2)
    return numbers.round(_product(numbers.xp, a, b, listed))


def _product(xp: Any, a: Array, b: Array, listed: Array | None) -> Array:
    """Product a @ b without the terms that are not listed: a is 0 there, so they only matter where b is NaN or inf."""
    if listed is None:
        return a @ b
    finite = xp.isfinite(b)
    product = a @ xp.where(finite, b, 0.0)
    for n in xp.nonzero(~finite.all(axis=(*range(b.ndim - 2), -1)))[0].tolist():
        term = a[..., n, None] * xp.where(finite[..., n, None, :], 0.0, b[..., n, None, :])
        product += xp.where(listed[..., n, None], term, 0.0)
    return product
