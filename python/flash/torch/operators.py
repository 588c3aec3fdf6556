"""The operators `flash::attention` and `flash::attention_backward`: what PyTorch sees of flash.

    flash::attention(q, k, v, <settings>) -> o, lse
    flash::attention_backward(do, dlse, q, k, v, o, lse, <settings>, wanted) -> some of dq, dk, dv, dbias, dsinks

PyTorch asks an operator for four things beside its result: the shapes of the results without computing them (compile,
export), the gradient, what it does with one more axis of all its arguments (vmap), and a schema. That is this file. An
argument of an operator is a tensor or a number, so the options of `flash.attention` that may be either, or are objects,
are taken apart into `Settings`; `flash.torch.attention` does it. Where nothing but autograd would look at the operator,
`forward` and `backward` compute without it, which halves what a call costs the host (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple, TypeAlias

import torch
from torch._C import DispatchKey, DispatchKeySet, _dispatch_keys, _dispatch_tls_local_include_set

from flash.attention import attention, attention_backward
from flash.block_lists import BlockLists
from flash.block_mask import BlockMask
from flash.exceptions import FlashValueError, UnsupportedError

Tensor: TypeAlias = Any  # of PyTorch

_SETTINGS = (
    "Tensor? bias, Tensor? sinks, Tensor? mask, Tensor? alibi_slopes, Tensor? q_offsets, Tensor? q_lens, "
    "Tensor? kv_lens, Tensor? seeds, Tensor? q_scale, Tensor? k_scale, Tensor? v_scale, Tensor? row_start, "
    "Tensor? columns, Tensor? column_start, Tensor? rows, float? scale, bool causal, SymInt? window_left, "
    "SymInt? window_right, SymInt? q_offset, float? softcap, float dropout, SymInt seed, SymInt block_q, SymInt block_k"
)
_TENSOR_OPTIONS = (  # of `flash.attention`: what the first settings are
    "bias", "sinks", "mask", "alibi_slopes", "q_offset", "q_lens", "kv_lens", "seed", "q_scale", "k_scale", "v_scale"
)  # fmt: skip
_WANTED = "q", "k", "v", "bias", "sinks"  # the first arguments of flash::attention


class Settings(NamedTuple):
    """The arguments of the operators after q, k and v, in the order of `_SETTINGS`: tensors, then numbers."""

    bias: Tensor = None
    sinks: Tensor = None
    mask: Tensor = None
    alibi_slopes: Tensor = None
    q_offsets: Tensor = None  # in place of q_offset
    q_lens: Tensor = None
    kv_lens: Tensor = None
    seeds: Tensor = None  # in place of seed
    q_scale: Tensor = None
    k_scale: Tensor = None
    v_scale: Tensor = None
    # The lists of a block mask, with its own leading shape; no lists, no mask.
    row_start: Tensor = None
    columns: Tensor = None
    column_start: Tensor = None
    rows: Tensor = None
    scale: float | None = None
    causal: bool = False
    window_left: int | None = None
    window_right: int | None = None
    q_offset: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    seed: int = 0  # as a signed number of 64 bits
    block_q: int = 0  # of a block mask
    block_k: int = 0

    def options(self, q: Tensor) -> dict[str, Any]:
        """The options of `flash.attention`."""
        options: dict[str, Any] = {
            "scale": self.scale,
            "causal": self.causal,
            "window": (self.window_left, self.window_right),
            "q_offset": self.q_offset,
            "softcap": self.softcap,
            "dropout": self.dropout,
            "seed": self.seed % 2**64,
        }
        for name, x in zip(_TENSOR_OPTIONS, self, strict=False):
            if x is not None:
                options[name] = x if name in ("bias", "mask") else x.contiguous()
        if self.row_start is not None:
            options["block_mask"] = _ListedBlocks(self, q)
        return options


class _ListedBlocks(BlockMask):
    """The block mask of a call, made of lists that lie where q does."""

    def __init__(self, settings: Settings, q: Tensor):
        lists = settings.row_start, settings.columns, settings.column_start, settings.rows
        self.block_q, self.block_k = settings.block_q, settings.block_k
        self.lists = BlockLists(*lists)

    def lists_for(self, array: Tensor, N: tuple[int, ...], Hq: int) -> BlockLists:
        row_start, columns, column_start, rows = self.lists
        return BlockLists(_for_problem(row_start, N, Hq), columns, _for_problem(column_start, N, Hq), rows)


def _for_problem(start: Tensor, N: tuple[int, ...], Hq: int) -> Tensor:
    """Starts of lists, leading shape + (rows + 1,), as flash.h takes them: (B|1, Hq|1, rows + 1).

    They are places in one list of all, so that a leading axis is broadcast by repeating the starts alone.
    """
    *leading, last = start.shape
    *batch, heads = [1] * (len(N) + 1 - len(leading)) + leading
    fits = len(batch) == len(N) and all(a in (1, b) for a, b in zip((*batch, heads), (*N, Hq), strict=True))
    if not fits:
        raise FlashValueError(f"block_mask: leading shape must broadcast to {(*N, Hq)}, got {tuple(leading)}")
    start = start.reshape((*batch, heads, last))
    if all(extent == 1 for extent in batch):
        return start.reshape((1, heads, last))
    return start.expand((*N, heads, last)).reshape((-1, heads, last))


# ---- Results ---------------------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> Tensor:
    """x, or a copy where its layout is none that flash reads: a strided last axis, leading axes that don't merge."""
    if x.ndim == 0 or not (x.stride(-1) == 1 or x.shape[-1] <= 1):
        return x.contiguous()
    if x.ndim > 4:
        try:
            x.view((-1, *x.shape[-3:]) if x.numel() else x.shape)
        except RuntimeError:
            return x.contiguous()
    return x


def _forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    options = Settings(*settings).options(q)
    o, lse = attention(_rows(q), _rows(k), _rows(v), **options, return_lse=True)
    return o, lse


def _backward(
    do: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *settings: Any
) -> list[Tensor]:
    *fields, wanted = settings
    gradients = attention_backward(
        _rows(do), _rows(q), _rows(k), _rows(v), _rows(o), lse.contiguous(),
        dlse=None if dlse is None else dlse.contiguous(),
        wrt=[name for name, is_wanted in zip(_WANTED, wanted, strict=True) if is_wanted],
        deterministic=torch.are_deterministic_algorithms_enabled(),
        **Settings(*fields).options(q),
    )  # fmt: skip
    return [x for x in gradients if x is not None]


def _shapes(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim < 3:
            raise FlashValueError(f"{name}: shape must have at least 3 axes (length, heads, dim), got {tuple(x.shape)}")
    *N, Lq, Hq, _ = q.shape
    o = q.new_empty((*N, Lq, Hq, v.shape[-1]), dtype=torch.bfloat16 if q.dtype.itemsize == 1 else q.dtype)
    lse = q.new_empty((*N, Hq, Lq), dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
    return o, lse


def _gradient_shapes(
    do: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *settings: Any
) -> list[Tensor]:
    *fields, wanted = settings
    s = Settings(*fields)
    arguments = zip((q, k, v, s.bias, s.sinks), wanted, strict=True)
    return [x.new_empty(x.shape) for x, is_wanted in arguments if is_wanted]


NAMES = "q", "k", "v", *Settings._fields  # of the arguments of flash::attention
_TENSORS = NAMES.index("scale")  # how many of them are tensors
operator: Callable[..., tuple[Tensor, Tensor]] = torch.library.custom_op(
    "flash::attention",
    _forward,
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_SETTINGS}) -> (Tensor, Tensor)",
)
backward_operator: Callable[..., list[Tensor]] = torch.library.custom_op(
    "flash::attention_backward",
    _backward,
    mutates_args=(),
    schema=(
        "(Tensor do, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, "
        f"{_SETTINGS}, bool[] wanted) -> Tensor[]"
    ),
)
torch.library.register_fake("flash::attention", _shapes)
torch.library.register_fake("flash::attention_backward", _gradient_shapes)


# ---- Gradients -------------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:_TENSORS])
    ctx.numbers = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor, ...]:
    if do is None and dlse is None:
        return (None,) * len(NAMES)
    o, lse, *tensors = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[: len(_WANTED)])
    do = torch.zeros_like(o) if do is None else do
    found = iter(backward(do, dlse, *tensors[:3], o, lse, *tensors[3:], *ctx.numbers, wanted))
    gradients = [next(found) if is_wanted else None for is_wanted in wanted]
    return (*gradients, *[None] * (len(NAMES) - len(_WANTED)))


def _differentiate_twice(ctx: Any, *_: Any) -> None:
    raise UnsupportedError(
        "flash.torch.attention: has no second derivative; where one is needed, compute attention with plain PyTorch "
        "operations (scaled_dot_product_attention under sdpa_kernel(SDPBackend.MATH))"
    )


# The same as `Function`s, since transforms of `torch.func` take no other. The compiler takes the operators.
class _Forward(torch.autograd.Function):  # type: ignore[misc]
    generate_vmap_rule = True
    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return operator(*arguments)


class _Backward(torch.autograd.Function):  # type: ignore[misc]
    generate_vmap_rule = True
    backward = staticmethod(_differentiate_twice)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(backward_operator(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class _Unwatched(torch.autograd.Function):  # type: ignore[misc]
    """`_Forward` without the operator. `setup_context` would take 10 us, and each argument more a fifth of one."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *differentiable, others = arguments
        inputs = *differentiable, *others
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor, ...]:
        return *_differentiate(ctx, do, dlse)[: len(_WANTED)], None


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`flash::attention`, differentiable wherever it is called."""
    if torch.compiler.is_compiling():
        return operator(*arguments)
    tensors = [x for x in arguments[:_TENSORS] if x is not None]
    has_gradient = torch.is_grad_enabled()
    results: tuple[Tensor, Tensor]
    if _is_watched(tensors):
        results = _Forward.apply(*arguments) if has_gradient else operator(*arguments)
    elif has_gradient and any(x.requires_grad for x in tensors):
        results = _Unwatched.apply(*arguments[: len(_WANTED)], arguments[len(_WANTED) :])
    else:
        results = _forward(*arguments)
    return results


def backward(*arguments: Any) -> Sequence[Tensor]:
    """`flash::attention_backward`, with a clear error where it is to be differentiated."""
    if torch.compiler.is_compiling():
        return backward_operator(*arguments)
    if torch.is_grad_enabled():
        return tuple(_Backward.apply(*arguments))
    tensors = [x for x in arguments[: _TENSORS + 4] if x is not None]  # do, dlse, o and lse are four more
    return backward_operator(*arguments) if _is_watched(tensors) else _backward(*arguments)


torch.library.register_autograd("flash::attention", _differentiate, setup_context=_save)
torch.library.register_autograd("flash::attention_backward", _differentiate_twice)


# ---- Who looks at an operator ----------------------------------------------------------------------------------------

# What PyTorch's dispatcher has to do for ordinary tensors: autograd, autocast (done before) and the computation.
# Subclasses, fake and meta tensors, those of a transform and negative views have other keys, and a thread inside a
# dispatch mode, a transform or a tracer adds some.
_ORDINARY = (
    "CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA", "ADInplaceOrView", "BackendSelect"
)  # fmt: skip
_ORDINARY_KEYS = reduce(or_, (DispatchKeySet(getattr(DispatchKey, name)).raw_repr() for name in _ORDINARY))


def _is_watched(tensors: list[Tensor]) -> bool:
    """Whether anything beside reverse-mode autograd has to see the operator that is called with these tensors."""
    keys = _dispatch_tls_local_include_set().raw_repr()
    for x in tensors:
        keys |= _dispatch_keys(x).raw_repr()
    return bool(
        keys & ~_ORDINARY_KEYS
        or torch.overrides.has_torch_function(tensors)
        or torch.autograd._profiler_enabled()
        or torch.autograd.forward_ad._current_level >= 0
    )
