"""Small tools beside attention: the probabilities, what dropout keeps, and the union of two results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flash._lib import check, ffi, lib
from flash.arrays import Array, dtype_of, is_array, shape_of, shown, tensor_at
from flash.call import Call
from flash.exceptions import FlashTypeError, FlashValueError
from flash.problem import NO_V, check_names, integer, number, write_problem

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flash.problem import Options


def attention_weights(
    q: Array, k: Array, *, rows: Array | Iterable[int] | None = None, **options: Unpack[Options]
) -> Array:
    """The probabilities that attention gives to the keys, for the queries asked for.

    Parameters
    ----------
    q, k : arrays, N + (Lq, Hq, D) and N + (Lk, Hk, D)
        As in `flash.attention`.
    rows : ints in [0, Lq), or an int64 array (R,) on q's device, optional
        Which queries. Default: all of them, which takes memory for N * Hq * Lq * Lk numbers.
    **options
        As in `flash.attention`. Probabilities are those before dropout.

    Returns
    -------
    array, N + (Hq, R, Lk), float32 (float64 for float64)
        Of q's kind. A row adds up to 1, to less where there is a sink, to 0 where no key is visible.

    Examples
    --------
    >>> import numpy, flash
    >>> q = k = numpy.eye(4, dtype=numpy.float32).reshape(4, 1, 4)
    >>> flash.attention_weights(q, k, rows=[1], causal=True).round(3)
    array([[[0.378, 0.622, 0.   , 0.   ]]], dtype=float32)
    """
    check_names("attention_weights", options)
    with Call.on(q) as call:
        problem = write_problem(call, q, k, NO_V, **options)
        rows_pointer = ffi.NULL
        if rows is not None:
            rows_pointer = tensor_at(call.read(rows if is_array(rows) else call.put(_row_numbers(rows)), "rows"))
        sum_dtype = "float64" if dtype_of(problem.q) == "float64" else "float32"
        weights = call.empty(_weights_shape(shape_of(problem.q), shape_of(problem.k), rows_pointer), sum_dtype)
        pointer = tensor_at(call.read(weights, "weights"))
        check(lib.flash_weights(problem, rows_pointer, pointer, call.stream_pointer()))
        return call.finish(weights)


def dropout_mask(seed: int, dropout: float, shape: Sequence[int]) -> Any:
    """Which positions of the score matrix dropout keeps: a pure function, the same on every backend and device.

    Parameters
    ----------
    seed : int in [0, 2^64)
    dropout : float in [0, 1]
        The share that is dropped.
    shape : sequence of int
        N + (Hq, Lq, Lk) of the call.

    Returns
    -------
    bool NumPy array of `shape`, True = kept

    Notes
    -----
    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key (seed low, seed high)
    and counter (j >> 1, i >> 1, h, b); position (i, j) takes word ``2 * (i & 1) + (j & 1)`` and is kept where that is
    at least ``round(dropout * 2^32)``. b is the index in the merged leading axes.

    Examples
    --------
    >>> import flash
    >>> int(flash.dropout_mask(seed=7, dropout=0.25, shape=(1, 100, 100)).sum())
    7468
    """
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Iterable):
        raise FlashTypeError(f"shape: must be a sequence of int, got {shown(shape)}")
    sizes = tuple(integer(n, "shape", 0, (1 << 63) - 1) for n in shape)
    if len(sizes) < 3:
        raise FlashValueError(f"shape: must be N + (Hq, Lq, Lk), at least 3 axes, got {sizes}")
    seed = integer(seed, "seed", 0, (1 << 64) - 1)
    dropout = number(dropout, "dropout")
    keep = np.empty((math.prod(sizes[:-3]), *sizes[-3:]), bool)
    with Call.on(keep) as call:
        check(lib.flash_dropout_mask(seed, dropout, tensor_at(call.read(keep, "keep")), call.stream_pointer()))
    return keep.reshape(sizes)


def merge(o1: Array, lse1: Array, o2: Array, lse2: Array) -> tuple[Array, Array]:
    """The attention over the union of two disjoint key sets, from the attention over each.

        lse = log(exp(lse1) + exp(lse2)),   o = exp(lse1 - lse) * o1 + exp(lse2 - lse) * o2

    Parameters
    ----------
    o1, o2 : arrays, N + (Lq, Hq, Dv)
        Of one dtype.
    lse1, lse2 : arrays, N + (Hq, Lq)
        float32 (float64 for float64).

    Returns
    -------
    o, lse : arrays of o1's kind, with the shapes and dtypes of `o1` and `lse1`

    Notes
    -----
    Dao et al., "FlashAttention", arXiv:2205.14135, section 3.1: how softmax is put together from blocks. A sink must be
    given to one of the two calls only.

    Examples
    --------
    >>> import numpy, flash
    >>> q = k = v = numpy.eye(4, dtype=numpy.float32).reshape(4, 1, 4)
    >>> first = flash.attention(q, k[:2], v[:2], return_lse=True)
    >>> second = flash.attention(q, k[2:], v[2:], return_lse=True)
    >>> o, lse = flash.merge(*first, *second)
    >>> bool(numpy.allclose(o, flash.attention(q, k, v)))
    True
    """
    with Call.on(o1, "o1") as call:
        inputs = [tensor_at(call.read(x, name)) for x, name in ((o1, "o1"), (lse1, "lse1"), (o2, "o2"), (lse2, "lse2"))]
        o, lse = call.empty_like(inputs[0]), call.empty_like(inputs[1])
        outputs = [tensor_at(call.read(x, name)) for x, name in ((o, "o"), (lse, "lse"))]
        check(lib.flash_merge(*inputs, *outputs, call.stream_pointer()))
        return call.finish(o), call.finish(lse)


def _weights_shape(q: tuple[int, ...], k: tuple[int, ...], rows: Any) -> tuple[int, ...]:
    """N + (Hq, R, Lk)."""
    if min(len(q), len(k)) < 3 or (rows != ffi.NULL and rows.ndim != 1):
        return (0,)  # the library says what is wrong with q, k or rows, before it looks at the result
    *N, Lq, Hq, _ = q
    return (*N, Hq, Lq if rows == ffi.NULL else rows.shape[0], k[-3])


def _row_numbers(rows: Any) -> np.ndarray[Any, Any]:
    try:
        return np.array([integer(row, "rows", 0, (1 << 63) - 1) for row in rows], np.int64)
    except TypeError as error:
        if isinstance(error, FlashTypeError):
            raise
        raise FlashTypeError(f"rows: must be an int64 array or a sequence of int, got {shown(rows)}") from None
