"""Attention and its gradients on arrays of NumPy, CuPy, PyTorch, JAX and others: what `flash` is for.

    s[i,j] = softcap(scale * q[i].k[j]) - slope[h] * |i + off - j| + bias[i,j]    off = q_offset, default kv_len - q_len
    p      = softmax of s over the visible keys (and the sink),   lse = natural log of its denominator
    o[i]   = sum_j keep[i,j] * p[i,j] / (1 - dropout) * v[j]

Each function reads its arrays, asks the library for the size of the workspace (which checks the problem), makes the
results, and runs. In shapes, N stands for any number of leading axes, also none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from flash._lib import check, ffi, lib
from flash.arrays import Array, dtype_of, shape_of, tensor_at
from flash.call import Call
from flash.gradients import Gradients
from flash.problem import ALL, Window, check_names, layout, wanted_gradients, write_problem

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flash.block_mask import BlockMask
    from flash.problem import Options

_SAVED = layout("flash_saved")
_GRADIENTS = layout("flash_gradients")
_SAVED_POINTER = ffi.typeof("flash_saved *")
_GRADIENTS_POINTER = ffi.typeof("flash_gradients *")


class Vjp(Protocol):
    """What `attention_vjp` returns beside the output: the backward of that call."""

    def __call__(
        self, do: Array, dlse: Array | None = None, wrt: Iterable[str] = ALL, deterministic: bool = False
    ) -> Gradients:
        """The gradients, as `attention_backward` gives them."""


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
    out: Array | None = None,
    workspace: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """Exact attention, without the matrix of scores.

    Parameters
    ----------
    q : array, N + (Lq, Hq, D)
        Queries: float16, bfloat16, float32, float64 (CPU) or float8_e4m3fn (Hopper). The last axis must be contiguous
        and the leading axes must merge into one; other strides are free. Never copied.
    k, v : arrays, N + (Lk, Hk, D) and N + (Lk, Hk, Dv)
        Keys and values, in q's dtype, on q's device. Query head h reads key head ``h // (Hq // Hk)``.
    scale : float, optional
        Factor of the scores, any finite number. Default: ``1 / sqrt(D)``.
    causal : bool
        Query i sees the keys j <= i + q_offset.
    window : (left, right), optional
        Query i sees i + q_offset - left <= j <= i + q_offset + right. Each side is None (open) or at least 0.
    q_offset : int or int32/int64 array of shape N, optional
        Position of query 0 in key coordinates. Default: kv_len - q_len, the last query meets the last key.
    q_lens, kv_lens : int32 or int64 arrays of shape N, optional
        How many queries and keys of each sequence are real. What lies past them is never used.
    mask : bool array, broadcasts to N + (Hq, Lq, Lk), optional
        True where a query may attend to a key.
    bias : array, broadcasts to N + (Hq, Lq, Lk), optional
        Added to the scores; q's dtype or float32 (float64 for float64). -inf masks.
    alibi_slopes : float32 array, (Hq,) or N + (Hq,), optional
        ``slope * |i + q_offset - j|`` is subtracted from the scores.
    softcap : float, optional
        c > 0 replaces the scaled products s by ``c * tanh(s / c)``. None or 0 is off.
    sinks : array, (Hq,), optional
        The score of one more column without a value; q's dtype or float32 (float64 for float64).
    block_mask : flash.BlockMask, optional
        Blocks that it doesn't list are neither read nor computed.
    dropout : float
        Share of the probabilities that is set to zero, in [0, 1]; the others are divided by ``1 - dropout``.
    seed : int in [0, 2^64), or a one-element int32/int64 array on q's device
        What is dropped depends only on the seed and the position: see `dropout_mask`.
    q_scale, k_scale, v_scale : float, or float32 array of shape () or N + (Hk,), optional
        float8 only: the factor that turns the stored number into the real one.
    out : array, N + (Lq, Hq, Dv), optional
        Where the result goes, in q's dtype (bfloat16, float16 or float32 for float8). It may not overlap the inputs. On
        CUDA an array of another library than q's is ready when q's library's stream has come so far.
    workspace : uint8 array, optional
        Scratch memory of `workspace_bytes` bytes. Default: memory of q's library.
    return_lse : bool
        Whether lse is returned too.

    Returns
    -------
    o : array, N + (Lq, Hq, Dv)
        `out`, or a new array of q's kind and dtype on q's device (bfloat16 for float8).
    lse : array, N + (Hq, Lq), float32 (float64 for float64)
        Only with `return_lse`: the natural logarithm of the softmax's denominator.

    Raises
    ------
    FlashValueError
        A shape, stride, device or number that can't be right.
    FlashTypeError
        A kind of object or dtype that an argument doesn't take; a PyTorch tensor that requires grad while grad mode is
        on (use `flash.torch.attention`) or a traced JAX array (use `flash.jax.attention`).
    UnsupportedError
        Meaningful, but not available here.
    CudaError
        A call to CUDA failed.

    Notes
    -----
    Dao et al., "FlashAttention", arXiv:2205.14135, Algorithm 1, in the loop order of Dao, "FlashAttention-2",
    arXiv:2307.08691, Algorithm 1. On the CPU it runs on as many OpenMP threads as ``omp_get_max_threads()`` says and
    gives the same bits whatever that number. On CUDA the work is enqueued on q's library's current stream, which waits
    for what other libraries have enqueued to make their arrays; the call itself waits for nothing, except with JAX
    arrays for its results.

    A row that sees no key gives o = 0 and lse = -inf (the sink, where there is one).

    Examples
    --------
    >>> import numpy, flash
    >>> q = k = v = numpy.eye(4, dtype=numpy.float32).reshape(4, 1, 4)
    >>> flash.attention(q, k, v, causal=True)[1, 0].round(3)
    array([0.378, 0.622, 0.   , 0.   ], dtype=float32)
    """
    with Call.on(q) as call:
        problem = write_problem(
            call, q, k, v, False, scale, causal, window, q_offset, q_lens, kv_lens, mask, bias, alibi_slopes, softcap,
            sinks, block_mask, dropout, seed, q_scale, k_scale, v_scale,
        )  # fmt: skip
        makes_arrays = out is None or return_lse
        if makes_arrays or workspace is None:  # else `_forward` checks in time
            check(_forward_workspace(problem, call.size))
        if makes_arrays:
            *N, Lq, Hq, _ = shape_of(problem.q)
            dtype = dtype_of(problem.q)
        if out is None:
            o = call.empty((*N, Lq, Hq, _last_extent(problem.v)), "bfloat16" if dtype == "float8_e4m3fn" else None)
            o_pointer = tensor_at(call.read(o, "o"))
        else:
            o_pointer = tensor_at(call.read_output(out, "out"))
        lse_pointer = ffi.NULL
        if return_lse:
            lse = call.empty((*N, Hq, Lq), "float64" if dtype == "float64" else "float32")
            lse_pointer = tensor_at(call.read(lse, "lse"))

        scratch = call.workspace(workspace, call.size[0])
        check(_forward(problem, o_pointer, lse_pointer, *scratch, call.stream_pointer()), ("o", "out"))
        if out is None:
            out = call.finish(o)
        elif not return_lse:
            call.settle()
        return (out, call.finish(lse)) if return_lse else out


def attention_backward(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    *,
    dlse: Array | None = None,
    wrt: Iterable[str] = ALL,
    deterministic: bool = False,
    workspace: Array | None = None,
    **options: Unpack[Options],
) -> Gradients:
    """The gradients of `attention`. The scores are computed again; nothing of size Lq x Lk is stored.

    Parameters
    ----------
    do : array, N + (Lq, Hq, Dv)
        Gradient of the loss with respect to o, in q's dtype.
    q, k, v : arrays
        As in `attention`.
    o, lse : arrays, N + (Lq, Hq, Dv) and N + (Hq, Lq)
        What `attention` returned with ``return_lse=True`` and the same options.
    dlse : array, N + (Hq, Lq), optional
        Gradient of the loss with respect to lse, in lse's dtype. Ignored where lse is -inf.
    wrt : collection of str
        The arguments whose gradients are wanted: some of "q", "k", "v", "bias", "sinks".
    deterministic : bool
        The same bits on every run. On the CPU they always are; on CUDA without this, the last bits of dq may differ for
        16-bit types, which are then summed in one pass.
    workspace : uint8 array, optional
        Scratch memory of ``workspace_bytes(..., backward=True)`` bytes.
    **options
        scale, causal, window, ... as in `attention`, the same as in the forward.

    Returns
    -------
    Gradients
        The named tuple (dq, dk, dv, dbias, dsinks). Each is a new array of q's kind, of its argument's dtype and shape;
        None where the argument was not given or is not in `wrt`.

    Raises
    ------
    FlashValueError, FlashTypeError, UnsupportedError, CudaError
        As in `attention`.

    Notes
    -----
    Dao, "FlashAttention-2", arXiv:2307.08691, Algorithm 2; the derivation is in Dao et al., "FlashAttention",
    arXiv:2205.14135, appendix B.2.

    Examples
    --------
    >>> import numpy, flash
    >>> q = k = v = numpy.eye(4, dtype=numpy.float32).reshape(4, 1, 4)
    >>> o, lse = flash.attention(q, k, v, return_lse=True)
    >>> g = flash.attention_backward(numpy.ones_like(o), q, k, v, o, lse, wrt=("v",))
    >>> g.dv[:, 0, 0].round(3), g.dq
    (array([1., 1., 1., 1.], dtype=float32), None)
    """
    check_names("attention_backward", options)
    wanted = wanted_gradients(wrt, options)
    with Call.on(q) as call:
        problem = write_problem(call, q, k, v, deterministic, **options)
        if not wanted:
            check(_forward_workspace(problem, call.size))
            return Gradients()
        check(lib.flash_backward_workspace(problem, sum(wanted.values()), call.size))

        read = call.read
        saved = call.write(
            _SAVED, _SAVED.size, read(do, "do"), read(o, "o"), read(lse, "lse"),
            0 if dlse is None else read(dlse, "dlse"),
        )  # fmt: skip
        made = {name: call.empty_like(getattr(problem, name)) for name in wanted}
        gradients = call.write(
            _GRADIENTS, _GRADIENTS.size, *[read(made[name], f"d{name}") if name in made else 0 for name in ALL]
        )
        check(
            lib.flash_backward(
                problem, ffi.cast(_SAVED_POINTER, saved), ffi.cast(_GRADIENTS_POINTER, gradients),
                *call.workspace(workspace, call.size[0]), call.stream_pointer(),
            )
        )  # fmt: skip
        return Gradients(*[call.finish(made[name]) if name in made else None for name in ALL])


def attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    *,
    out: Array | None = None,
    workspace: Array | None = None,
    return_lse: bool = False,
    **options: Unpack[Options],
) -> tuple[Any, Vjp]:
    """Attention, and the function that gives its gradients.

    Parameters
    ----------
    q, k, v : arrays
        As in `attention`. They must not change before the gradients are computed.
    out, workspace, return_lse, **options
        As in `attention`.

    Returns
    -------
    o : array, or (o, lse) with `return_lse`
    vjp : callable
        ``vjp(do, dlse=None, wrt=("q", "k", "v", "bias", "sinks"), deterministic=False)`` gives what
        `attention_backward` gives. It may be called any number of times, and keeps q, k, v, o and lse alive.

    Examples
    --------
    >>> import numpy, flash
    >>> q = k = v = numpy.eye(4, dtype=numpy.float32).reshape(4, 1, 4)
    >>> o, vjp = flash.attention_vjp(q, k, v, causal=True)
    >>> vjp(numpy.ones_like(o)).dv[:, 0, 0].round(3)
    array([1.867, 1.112, 0.667, 0.355], dtype=float32)
    """
    check_names("attention_vjp", options)
    o, lse = attention(q, k, v, out=out, workspace=workspace, return_lse=True, **options)

    def vjp(do: Array, dlse: Array | None = None, wrt: Iterable[str] = ALL, deterministic: bool = False) -> Gradients:
        """The gradients of this call of attention: see `flash.attention_backward`."""
        return attention_backward(
            do, q, k, v, o, lse, dlse=dlse, wrt=wrt, deterministic=deterministic, **options
        )  # fmt: skip

    return ((o, lse) if return_lse else o), vjp


def workspace_bytes(
    q: Array,
    k: Array,
    v: Array,
    *,
    backward: bool = False,
    wrt: Iterable[str] = ALL,
    deterministic: bool = False,
    **options: Unpack[Options],
) -> int:
    """How many bytes of scratch memory `attention` or `attention_backward` needs for a problem, at any alignment.

    Parameters
    ----------
    q, k, v : arrays
        As in `attention`. Only shapes, strides, dtypes and devices count: no value is read.
    backward : bool
        Whether `attention_backward` is meant, with this `wrt` and `deterministic`.
    wrt, deterministic, **options
        As in `attention_backward`.

    Returns
    -------
    int

    Examples
    --------
    >>> import numpy, flash
    >>> q = numpy.zeros((128, 4, 64), numpy.float32)
    >>> workspace = numpy.empty(flash.workspace_bytes(q, q, q), numpy.uint8)
    >>> flash.attention(q, q, q, workspace=workspace).shape
    (128, 4, 64)
    """
    check_names("workspace_bytes", options)
    wanted = sum(wanted_gradients(wrt, options).values()) if backward else 0
    with Call.on(q) as call:
        problem = write_problem(call, q, k, v, deterministic, **options)
        if wanted:
            check(lib.flash_backward_workspace(problem, wanted, call.size))
        else:
            check(_forward_workspace(problem, call.size))
        return 0 if backward and not wanted else int(call.size[0])


_forward = lib.flash_forward
_forward_workspace = lib.flash_forward_workspace


def _last_extent(tensor: Any) -> int:
    return int(tensor.shape[tensor.ndim - 1])
