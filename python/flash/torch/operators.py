"""The operators `flash::attention` and `flash::attention_backward`: what PyTorch sees of flash.

    flash::attention(q, k, v, <settings>) -> o, lse
    flash::attention_backward(do, dlse, q, k, v, o, lse, <settings>, wanted) -> some of dq, dk, dv, dbias, dsinks

PyTorch asks an operator for four things beside its result: the shapes of the results without computing them (compile,
export), the gradient, what it does with one more axis of all its arguments (vmap), and a schema. That is this file. An
argument of an operator is a tensor or a number, so the options of `flash.attention` that may be either, or are objects,
are taken apart into `Settings`; `flash.torch.attention` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from flash.attention import attention, attention_backward
from flash.block_lists import BlockLists
from flash.block_mask import BlockMask
from flash.exceptions import FlashValueError, UnsupportedError

Tensor: TypeAlias = Any  # of PyTorch

_SETTINGS = (
    "float? scale, bool causal, SymInt? window_left, SymInt? window_right, SymInt? q_offset, Tensor? q_offsets, "
    "Tensor? q_lens, Tensor? kv_lens, Tensor? mask, Tensor? bias, Tensor? alibi_slopes, float? softcap, Tensor? sinks, "
    "SymInt block_q, SymInt block_k, Tensor? row_start, Tensor? columns, Tensor? column_start, Tensor? rows, "
    "float dropout, SymInt seed, Tensor? seeds, Tensor? q_scale, Tensor? k_scale, Tensor? v_scale"
)
_WANTED = "q", "k", "v", "bias", "sinks"


class Settings(NamedTuple):
    """The arguments of the operators after q, k and v, in the order of `_SETTINGS`."""

    scale: float | None = None
    causal: bool = False
    window_left: int | None = None
    window_right: int | None = None
    q_offset: int | None = None
    q_offsets: Tensor = None  # in place of q_offset
    q_lens: Tensor = None
    kv_lens: Tensor = None
    mask: Tensor = None
    bias: Tensor = None
    alibi_slopes: Tensor = None
    softcap: float | None = None
    sinks: Tensor = None
    # A block mask: its block size and its lists with its own leading shape; no lists, no mask.
    block_q: int = 0
    block_k: int = 0
    row_start: Tensor = None
    columns: Tensor = None
    column_start: Tensor = None
    rows: Tensor = None
    dropout: float = 0.0
    seed: int = 0  # as a signed number of 64 bits
    seeds: Tensor = None  # in place of seed
    q_scale: Tensor = None
    k_scale: Tensor = None
    v_scale: Tensor = None

    def options(self, q: Tensor) -> dict[str, Any]:
        """The options of `flash.attention`."""
        options: dict[str, Any] = {
            "scale": self.scale,
            "causal": self.causal,
            "window": (self.window_left, self.window_right),
            "q_offset": self.q_offset if self.q_offsets is None else self.q_offsets.contiguous(),
            "softcap": self.softcap,
            "dropout": self.dropout,
            "seed": self.seed % 2**64 if self.seeds is None else self.seeds,
            "mask": self.mask,
            "bias": self.bias,
        }
        for name in ("q_lens", "kv_lens", "alibi_slopes", "sinks", "q_scale", "k_scale", "v_scale"):
            x = getattr(self, name)
            options[name] = None if x is None else x.contiguous()
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
    is_tensor = [isinstance(x, torch.Tensor) for x in inputs]
    ctx.numbers = [None if tensor else x for tensor, x in zip(is_tensor, inputs, strict=True)]
    ctx.save_for_backward(*output, *(x if tensor else None for tensor, x in zip(is_tensor, inputs, strict=True)))
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor, ...]:
    o, lse, *tensors = ctx.saved_tensors
    inputs = [x if x is not None else number for x, number in zip(tensors, ctx.numbers, strict=True)]
    if do is None and dlse is None:
        return (None,) * len(inputs)
    needed = dict(zip(NAMES, ctx.needs_input_grad, strict=True))
    wanted = [bool(needed[name]) for name in _WANTED]
    do = torch.zeros_like(o) if do is None else do
    found = backward(do, dlse, *inputs[:3], o, lse, *inputs[3:], wanted)
    gradients = dict(zip([name for name in _WANTED if needed[name]], found, strict=True))
    return tuple(gradients.get(name) for name in NAMES)


def _differentiate_twice(ctx: Any, *_: Any) -> None:
    raise UnsupportedError(
        "flash.torch.attention: has no second derivative; where one is needed, compute attention with plain PyTorch "
        "operations (scaled_dot_product_attention under sdpa_kernel(SDPBackend.MATH))"
    )


# The same as `Function`s. Transforms of `torch.func` take no other, and a call takes 0.3 ms less than by what
# `register_autograd` makes. The compiler takes the operators.
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


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`flash::attention`, differentiable wherever it is called."""
    plain = torch.compiler.is_compiling() or not torch.is_grad_enabled()
    return operator(*arguments) if plain else _Forward.apply(*arguments)


def backward(*arguments: Any) -> Sequence[Tensor]:
    """`flash::attention_backward`, with a clear error where it is to be differentiated."""
    plain = torch.compiler.is_compiling() or not torch.is_grad_enabled()
    return backward_operator(*arguments) if plain else _Backward.apply(*arguments)


torch.library.register_autograd("flash::attention", _differentiate, setup_context=_save)
torch.library.register_autograd("flash::attention_backward", _differentiate_twice)
