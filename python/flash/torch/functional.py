"""`flash.torch.attention`: the function over the operators."""

from __future__ import annotations

from typing import Any

import torch

from flash.block_lists import BlockLists
from flash.block_mask import BlockMask
from flash.exceptions import FlashTypeError, FlashValueError, UnsupportedError
from flash.problem import Window, integer, number
from flash.torch.operators import Settings, Tensor, forward

_INT64 = -(1 << 63), (1 << 63) - 1

# A traced function takes a block mask as a constant: its lists become constants of the graph, and a call with another
# mask traces again.
torch.utils._pytree.register_constant(BlockMask)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Window | None = None,
    q_offset: int | Tensor | None = None,
    q_lens: Tensor | None = None,
    kv_lens: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    block_mask: BlockMask | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    q_scale: float | Tensor | None = None,
    k_scale: float | Tensor | None = None,
    v_scale: float | Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Exact attention on PyTorch tensors, differentiable, without the matrix of scores.

    Parameters
    ----------
    q : tensor, N + (Lq, Hq, D)
        Queries, on the CPU or on CUDA: float16, bfloat16, float32 or float64 (CPU). N is any number of axes.
    k, v : tensors, N + (Lk, Hk, D) and N + (Lk, Hk, Dv)
        Keys and values, in q's dtype, on q's device. Query head h reads key head ``h // (Hq // Hk)``.
    scale, causal, window, q_offset, q_lens, kv_lens, mask, bias, alibi_slopes, softcap, sinks, block_mask
        As in `flash.attention`; arrays are tensors on q's device.
    dropout : float
        Share of the probabilities that is set to zero, in [0, 1]; the others are divided by ``1 - dropout``. 0 when a
        model is evaluated: there is no training mode here.
    seed : int in [0, 2^64), or a one-element int32/int64 tensor on q's device, optional
        What is dropped depends only on the seed and the position. Default: drawn from PyTorch's generator of q's
        device, so that `torch.manual_seed` governs it and activation checkpointing repeats it.
    q_scale, k_scale, v_scale
        As in `flash.attention`.
    return_lse : bool
        Whether lse is returned too.

    Returns
    -------
    o : tensor, N + (Lq, Hq, Dv), of q's dtype
    lse : tensor, N + (Hq, Lq), float32 (float64 for float64)
        Only with `return_lse`: the natural logarithm of the softmax's denominator.

    Raises
    ------
    FlashValueError
        A shape, device or number that can't be right.
    FlashTypeError
        A kind of object or dtype that an argument doesn't take.
    UnsupportedError
        Meaningful, but not available here: a second derivative, dropout under `torch.func.vmap`, float64 on CUDA.
    CudaError
        A call to CUDA failed.

    Notes
    -----
    Dao et al., "FlashAttention", arXiv:2205.14135, Algorithm 1, and Dao, "FlashAttention-2", arXiv:2307.08691,
    Algorithm 2.

    Gradients reach q, k, v, bias and sinks, from o and from lse. The scores are computed again for them; what is kept
    is q, k, v, o and lse. They have the same bits on every run on the CPU, and on CUDA under
    `torch.use_deterministic_algorithms`.

    q, k and v are read as they lie; one whose last axis has a stride, or whose leading axes don't merge into one, is
    copied. Under autocast q, k and v are computed in its dtype, unless they are float64.

    It is the operator ``torch.ops.flash.attention``: `torch.compile`, `torch.export`, activation checkpointing and
    `torch.func` take it as one of PyTorch's own. A `flash.BlockMask` is a constant of a compiled function.

    Examples
    --------
    >>> import torch, flash.torch
    >>> q = k = v = torch.eye(4).reshape(4, 1, 4).requires_grad_()
    >>> o = flash.torch.attention(q, k, v, causal=True)
    >>> o.sum().backward()
    >>> o[1, 0].detach(), q.grad.shape
    (tensor([0.3775, 0.6225, 0.0000, 0.0000]), torch.Size([4, 1, 4]))
    """
    given = ("q_lens", q_lens), ("kv_lens", kv_lens), ("mask", mask), ("bias", bias), ("alibi_slopes", alibi_slopes)
    for name, x in (("q", q), ("k", k), ("v", v), *given, ("sinks", sinks)):
        if not isinstance(x, torch.Tensor) and (x is not None or name in "qkv"):
            raise FlashTypeError(f"{name}: must be a PyTorch tensor, got {type(x).__qualname__}")
    if alibi_slopes is not None and alibi_slopes.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError("alibi_slopes: has no gradient here; detach it, or pass the whole term as bias")
    if not isinstance(causal, bool):
        raise FlashTypeError(f"causal: must be a bool, got {causal!r} ({type(causal).__qualname__})")
    left, right = (None, None) if window is None else _window(window)
    q_offset, q_offsets = _number_or_tensor(q_offset, "q_offset", *_INT64)
    dropout = _real(dropout, "dropout") or 0.0
    if seed is None:
        seed = 0 if dropout == 0.0 else torch.randint(1 << 62, (1,), device=q.device)
    seed, seeds = _number_or_tensor(seed, "seed", 0, (1 << 64) - 1)
    if seed is None:
        seed = 0
    elif seed >= 1 << 63:
        seed -= 1 << 64

    if _is_autocast(q):
        q, k, v = (x.to(dtype_under_autocast(x)) for x in (q, k, v))
        # These may be float32 beside q of 16 bits.
        bias, sinks = (
            x if x is None or x.dtype == torch.float32 else x.to(dtype_under_autocast(x)) for x in (bias, sinks)
        )

    block_q = block_k = 0
    lists = BlockLists(None, None, None, None)
    if block_mask is not None:
        lists = _lists_of(block_mask, q)
        block_q, block_k = block_mask.block_q, block_mask.block_k

    settings = Settings(
        bias, sinks, mask, alibi_slopes, q_offsets, q_lens, kv_lens, seeds,
        _scale(q_scale, "q_scale", q), _scale(k_scale, "k_scale", q), _scale(v_scale, "v_scale", q), *lists,
        _real(scale, "scale"), causal, left, right, q_offset, _real(softcap, "softcap"), dropout, seed,
        block_q, block_k,
    )  # fmt: skip
    o, lse = forward(q, k, v, *settings)
    return (o, lse) if return_lse else o


def dtype_under_autocast(x: Tensor) -> Any:
    """What autocast, where it is on, makes of a tensor's dtype."""
    changes = _is_autocast(x) and x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if changes else x.dtype


def _is_autocast(x: Tensor) -> bool:
    kind = x.device.type
    return kind != "meta" and bool(torch.is_autocast_enabled(kind))


def _window(window: Any) -> tuple[int | None, int | None]:
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise FlashValueError(f"window: must be None or a pair (left, right), got {window!r}")
    left, right = (None if x is None else _integer(x, "window", *_INT64) for x in window)
    return left, right


def _number_or_tensor(x: Any, name: str, lowest: int, highest: int) -> tuple[Any, Tensor | None]:
    """The argument as a number, or as a tensor."""
    if isinstance(x, torch.Tensor):
        return None, x
    return None if x is None else _integer(x, name, lowest, highest), None


def _integer(x: Any, name: str, lowest: int, highest: int) -> Any:
    # A compiled function knows some integers as symbols only: such a one is passed on as it is.
    if isinstance(x, torch.SymInt) or (type(x) is int and lowest <= x <= highest):
        return x
    return integer(x, name, lowest, highest)


def _real(x: Any, name: str) -> Any:
    if isinstance(x, torch.SymFloat):  # what a traced module may make of its float attributes
        return float(x)
    return None if x is None else number(x, name)


def _scale(x: Any, name: str, q: Tensor) -> Tensor | None:
    if x is None or isinstance(x, torch.Tensor):
        return x
    return torch.full((), number(x, name), dtype=torch.float32, device=q.device)


def _lists_of(block_mask: Any, q: Tensor) -> BlockLists:
    if not isinstance(block_mask, BlockMask):
        raise FlashTypeError(f"block_mask: must be a flash.BlockMask, got {type(block_mask).__qualname__}")
    device = str(q.device)
    if torch.compiler.is_compiling():
        _bring(block_mask, device)
    else:
        block_mask.to(q)
    return block_mask.lists_by_place["torch", device]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _bring(block_mask: BlockMask, device: str) -> int:
    """Bring the lists of a block mask to a device while a function is traced, where they then are found."""
    block_mask.to(torch.empty(0, device=device))
    return 0
