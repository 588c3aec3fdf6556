"""PyTorch's `scaled_dot_product_attention` computed by flash, and how a model that knows nothing of flash gets it.

What flash doesn't compute goes to PyTorch's own function, which also says what is wrong with wrong arguments.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from flash.exceptions import UnsupportedError
from flash.explain import show_config
from flash.torch.functional import attention, dtype_under_autocast
from flash.torch.operators import Tensor

_MOST_DIMS = 576  # of a head
_pytorch = torch.nn.functional.scaled_dot_product_attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, computed by flash.

    Parameters
    ----------
    query : tensor, (..., Hq, L, E)
    key, value : tensors, (..., H, S, E) and (..., H, S, Ev)
        Leading axes are broadcast. With `enable_gqa` query head h reads key head ``h // (Hq // H)``.
    attn_mask : tensor that broadcasts to (..., Hq, L, S), optional
        bool, True = may attend; or float, which is added to the scores and is differentiable.
    dropout_p : float
        Share of the probabilities that is dropped, drawn by PyTorch's generator of query's device. As PyTorch's, it
        knows no training mode.
    is_causal : bool
        Query i sees the keys j <= i (top-left, whatever L and S). Beside `attn_mask`, where PyTorch's backends differ,
        it sees what both allow.
    scale : float, optional
        Default: ``1 / sqrt(E)``.
    enable_gqa : bool
        Whether key and value may have fewer heads.

    Returns
    -------
    tensor, (..., Hq, L, Ev)
        In memory it lies as (..., L, Hq, Ev). A query that sees no key gives 0.

    Raises
    ------
    RuntimeError, ...
        For wrong arguments, PyTorch's own. A second derivative: `flash.UnsupportedError`.

    Notes
    -----
    Where flash can't compute a call, PyTorch's own function does: other devices than the CPU and CUDA GPUs of compute
    capability 8.0 or later, a flash that was built without CUDA, float64 on CUDA, other dtypes, head dims above 576,
    nested tensors and other subclasses. `use` with ``strict=True`` makes an error of it.

    Examples
    --------
    >>> import torch, flash.torch
    >>> q, k, v = torch.randn(3, 2, 8, 100, 64)
    >>> o = flash.torch.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> torch.allclose(o, wanted, atol=1e-5)
    True
    """
    return _compute(False, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


@contextmanager
def use(*, strict: bool = False) -> Iterator[None]:
    """Make `torch.nn.functional.scaled_dot_product_attention` call flash, for models that call it.

    Parameters
    ----------
    strict : bool
        Raise `flash.UnsupportedError`, with the reason, for a call that flash can't compute. Default: PyTorch's own
        function computes it.

    Notes
    -----
    A ``with`` block, or a decorator. Inside, `torch.nn.MultiheadAttention` with ``need_weights=False``,
    `torch.nn.TransformerEncoder`, and models of `transformers` with ``attn_implementation="sdpa"`` run on flash as they
    are. PyTorch's fast path for evaluating encoder layers, which calls no attention function, is off meanwhile
    (`torch.backends.mha`).

    It holds for the whole process, as the flags of `torch.backends` do: autograd's threads compute checkpointed layers
    again. Blocks may be nested, and entered and left by several threads in any order; the last one that is left, also
    by an exception, restores what was there. Have the backward of a checkpointed model inside, and enter the block
    outside of compiled functions, which are compiled again when it matters. Code that has taken the function itself
    before (``from torch.nn.functional import scaled_dot_product_attention``) isn't reached.

    Examples
    --------
    >>> import torch, flash.torch
    >>> layer = torch.nn.TransformerEncoderLayer(d_model=64, nhead=4, batch_first=True).eval()
    >>> x = torch.randn(2, 100, 64)
    >>> with flash.torch.use():
    ...     y = layer(x)
    >>> torch.allclose(y, layer(x), atol=1e-5)
    True
    """
    block = _Block(strict)
    _enter(block)
    try:
        yield
    finally:
        _leave(block)


# ---- The blocks that are entered -------------------------------------------------------------------------------------


class _Block:
    def __init__(self, strict: bool):
        self.strict = strict


_lock = threading.Lock()
_blocks: list[_Block] = []
_before: list[Any] = [_pytorch, True]  # the function and the fast path's flag outside of all blocks


def _enter(block: _Block) -> None:
    with _lock:
        if not _blocks:
            _before[:] = torch.nn.functional.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
            torch.nn.functional.scaled_dot_product_attention = _in_place
            torch.backends.mha.set_fastpath_enabled(False)
        _blocks.append(block)


def _leave(block: _Block) -> None:
    with _lock:
        _blocks.remove(block)
        if not _blocks:
            if torch.nn.functional.scaled_dot_product_attention is _in_place:  # else somebody else's stays in its place
                torch.nn.functional.scaled_dot_product_attention = _before[0]
            torch.backends.mha.set_fastpath_enabled(_before[1])


def _in_place(*arguments: Any, **options: Any) -> Tensor:
    """What stands in the place of PyTorch's function."""
    if not _blocks:  # somebody has kept it
        return _pytorch(*arguments, **options)
    return _compute(_blocks[-1].strict, *arguments, **options)


# ---- One call --------------------------------------------------------------------------------------------------------


def _compute(
    strict: bool, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """By flash or else, unless `strict`, by PyTorch's function, whose arguments the others are."""
    reason = _why_not(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    if reason:
        if strict:
            raise UnsupportedError(f"scaled_dot_product_attention: flash can't compute it: {reason}")
        return _pytorch(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    without_heads = query.ndim == 2
    if without_heads:
        query, key, value = query[None], key[None], value[None]
    if not enable_gqa:
        query, key, value = _broadcast(query, key, value)
    is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
    o = attention(
        query.transpose(-3, -2), key.transpose(-3, -2), value.transpose(-3, -2),
        scale=scale, causal=is_causal, q_offset=0 if is_causal else None, dropout=dropout_p,
        mask=attn_mask if is_bool else None, bias=None if is_bool else attn_mask,
    ).transpose(-3, -2)  # fmt: skip
    return o[0] if without_heads else o


def _broadcast(*tensors: Tensor) -> list[Tensor]:
    """All with the same leading axes; one head of keys for all queries stays one."""
    query, key, value = tensors
    if query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:  # as mostly; PyTorch takes 40 us to find that out
        return list(tensors)
    batch = torch.broadcast_shapes(*(x.shape[:-3] for x in tensors))
    heads = torch.broadcast_shapes(key.shape[-3:-2], value.shape[-3:-2])
    query_heads = torch.broadcast_shapes(query.shape[-3:-2], heads)
    wanted = query_heads, heads, heads
    return [x.expand((*batch, *head, *x.shape[-2:])) for x, head in zip(tensors, wanted, strict=True)]


def _why_not(
    query: Any, key: Any, value: Any, attn_mask: Any, dropout_p: Any, is_causal: Any, enable_gqa: Any
) -> str | None:
    """Why PyTorch's function has to compute this, or to say what is wrong with it; None where flash can."""
    tensors = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
    if not all(map(_is_plain, tensors)):
        return "query, key, value and attn_mask must be plain tensors, got others, such as nested ones"
    device, (dtype, *dtypes) = query.device, [dtype_under_autocast(x) for x in (query, key, value)]
    if any(x.device != device for x in tensors):
        return "all tensors must be on one device"
    if not _runs_on(device.type, device.index or 0):
        return f"this flash doesn't run on {device}"
    if dtypes != [dtype, dtype]:
        return f"query, key and value must have one dtype, got {query.dtype}, {key.dtype} and {value.dtype}"
    known = [torch.float16, torch.bfloat16, torch.float32, *([torch.float64] if device.type == "cpu" else [])]
    if dtype not in known:
        return f"it has no kernel for {dtype} on {device.type}"

    axes = query.ndim
    if axes < 2 or key.ndim != axes or value.ndim != axes:
        return f"query, key and value must have as many axes, at least 2, got {axes}, {key.ndim} and {value.ndim}"
    if not (1 <= query.shape[-1] <= _MOST_DIMS and 1 <= value.shape[-1] <= _MOST_DIMS):
        return f"a head must have 1 to {_MOST_DIMS} dims, got {query.shape[-1]} and {value.shape[-1]}"
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return "query and key must have the same last axis, key and value the same length"
    if axes > 2 and not _heads_fit(query.shape[:-2], key.shape[:-2], value.shape[:-2], enable_gqa):
        return "the leading axes of query, key and value don't fit each other"
    if attn_mask is not None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if attn_mask.dtype not in (torch.bool, dtype, query.dtype, wide):
            return f"attn_mask must be bool or {dtype}, got {attn_mask.dtype}"
        batch = torch.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
        scores = (*batch, *query.shape[-3:-1], key.shape[-2])
        if not _broadcasts(attn_mask.shape, scores):
            return f"attn_mask must broadcast to {tuple(scores)}, got {tuple(attn_mask.shape)}"
    if not 0.0 <= dropout_p <= 1.0:
        return f"dropout_p must be 0 to 1, got {dropout_p}"
    return None


def _is_plain(x: Any) -> bool:
    # torch.export and parts of torch.compile call this with tensors of a kind of their own, which the operator knows.
    plain = type(x) in (torch.Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)
    return plain and x.layout == torch.strided and not x.is_nested


def _heads_fit(query: Any, key: Any, value: Any, enable_gqa: bool) -> bool:
    """Whether leading axes, heads among them, can be computed as they are or after broadcasting."""
    heads = query[-1], key[-1], value[-1]
    if min(heads) < 1:
        return False
    if enable_gqa:
        return bool(query[:-1] == key[:-1] == value[:-1] and heads[1] == heads[2] and heads[0] % heads[1] == 0)
    axes = zip(query, key, value, strict=True)
    return all(len({int(extent) for extent in extents if extent != 1}) <= 1 for extents in axes)


def _broadcasts(shape: Any, wanted: Any) -> bool:
    behind = wanted[len(wanted) - len(shape) :]
    return len(shape) <= len(wanted) and all(a == 1 or a == b for a, b in zip(shape, behind, strict=True))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _runs_on(device_type: str, number: int) -> bool:
    if device_type != "cuda":
        return device_type in ("cpu", "meta")
    return _has_cuda() and torch.cuda.get_device_capability(number) >= (8, 0)


@lru_cache(maxsize=1)
def _has_cuda() -> bool:
    facts: Any = show_config(mode="dicts")
    return bool(facts["cuda"]["built"])
