"""What flash is compared with. Each peer makes its attention for a case, or says why it can't.

Each gets the layout that it prefers, contiguous: (batch, length, heads, dim), or heads before the length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

import flash
from flash.bench.case import Case
from flash.bench.libraries import Array, Missing, NumPy, Plain

# From a case, a library and the dropout to what the library's `call_of` takes.
Make: TypeAlias = Callable[[Case, NumPy, float], Any]


@dataclass(frozen=True)
class Peer:
    """One side of a comparison."""

    title: str
    library: str | None  # None: that of flash
    make: Make
    device: str | None = None  # the only one that it runs on
    heads_first: bool = False
    has_scores: bool = False  # the matrix of scores is in memory
    is_dense: bool = False  # leaves out the block mask: another result


def by_flash(case: Case, library: NumPy, dropout: float, blocks: bool = True) -> Any:
    """Flash itself, in the way that a user of the array library calls it."""
    options = case.options(dropout, blocks)
    if library.name in ("torch", "jax"):
        try:
            return partial(import_module(f"flash.{library.name}").attention, **options)
        except ImportError as error:  # an older version of the library
            raise Missing(str(error)) from error
    gradients = partial(flash.attention_backward, **options)
    return Plain(partial(flash.attention, **options), gradients)


def flash_dense(case: Case, library: NumPy, dropout: float) -> Any:
    """Flash without the block mask: what leaving out blocks is good for."""
    return by_flash(case, library, dropout, blocks=False)


def standard_arrays(case: Case, library: NumPy, dropout: float) -> Plain:
    """Standard attention in NumPy or CuPy."""
    options = case.options(dropout)
    reference = flash.reference
    return Plain(partial(reference.attention, **options), partial(reference.attention_backward, **options), True)


def standard_torch(case: Case, library: NumPy, dropout: float) -> Any:
    """Standard attention in PyTorch: softmax(scale q k^T) v."""
    torch, scale, groups = library.module, 1.0 / math.sqrt(case.head_dim), case.heads // case.kv_heads
    seen = _seen(case, library)
    if seen is None and case.causal:
        seen = torch.ones((case.length, case.length), dtype=torch.bool, device=library.device).tril()
    hidden = None if seen is None else ~seen

    def attention(q: Array, k: Array, v: Array) -> Array:
        if groups > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        s = q @ k.transpose(-1, -2) * scale
        if hidden is not None:
            s = s.masked_fill(hidden, -math.inf)
        p = torch.softmax(s, dim=-1)
        if dropout:
            p = torch.nn.functional.dropout(p, dropout)
        return p @ v

    return attention


def sdpa(backend: str, case: Case, library: NumPy, dropout: float) -> Any:
    """PyTorch's scaled_dot_product_attention with one of its backends."""
    torch, module = library.module, import_module("torch.nn.attention")
    chosen = getattr(module.SDPBackend, backend, None)
    if chosen is None:
        raise Missing(f"PyTorch {torch.__version__} doesn't have it")
    mask = _seen(case, library)
    options = {"attn_mask": mask, "dropout_p": dropout, "is_causal": mask is None and case.causal}
    if case.heads != case.kv_heads:
        options["enable_gqa"] = True

    def attention(q: Array, k: Array, v: Array) -> Array:
        with module.sdpa_kernel(chosen):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    return attention


def flex(case: Case, library: NumPy, dropout: float) -> Any:
    """PyTorch's FlexAttention, compiled for this case alone."""
    if dropout:
        raise Missing("has no dropout")
    if library.device == "cpu" and case.operation != "forward":
        raise Missing("has no backward on the CPU")
    try:
        module = import_module("torch.nn.attention.flex_attention")
    except ImportError:
        raise Missing(f"PyTorch {library.module.__version__} doesn't have it") from None
    library.module.compiler.reset()  # it would give up compiling after some shapes
    compiled = library.module.compile(module.flex_attention, dynamic=False)
    options = {"block_mask": _flex_mask(case, library, module), "enable_gqa": case.heads != case.kv_heads}
    return lambda q, k, v: compiled(q, k, v, **options)


def _flex_mask(case: Case, library: NumPy, module: Any) -> Any:
    if not case.causal and case.seen is None:
        return None
    pair, size = case.window_pair, case.block_size
    listed = None if case.blocks is None else library.constant(case.blocks.to_dense())

    def rule(b: Array, h: Array, i: Array, j: Array) -> Array:
        seen = i >= j if case.causal else i == i
        if pair is not None:
            seen = seen & (i - j <= pair[0]) & (j - i <= pair[1])
        return seen if listed is None else seen & listed[i // size, j // size]

    return module.create_block_mask(rule, None, None, case.length, case.length, device=library.device)


def jax_nn(implementation: str, case: Case, library: NumPy, dropout: float) -> Any:
    """`jax.nn.dot_product_attention` with one of its implementations."""
    if dropout:
        raise Missing("has no dropout")
    function = getattr(library.module.nn, "dot_product_attention", None)
    if function is None:
        raise Missing(f"JAX {library.module.__version__} doesn't have it")
    options: dict[str, Any] = {"is_causal": case.causal, "implementation": implementation}
    if case.density is not None:
        options["mask"] = _seen(case, library)[None, None]
    elif case.window_pair is not None:
        options["local_window_size"] = case.window_pair
    return partial(function, **options)


def _seen(case: Case, library: NumPy) -> Array:
    return None if case.seen is None else library.constant(case.seen)


FLASH = Peer("flash", None, by_flash)
PEERS = {
    "numpy": Peer("standard attention in NumPy", "numpy", standard_arrays, device="cpu", has_scores=True),
    "cupy": Peer("standard attention in CuPy", "cupy", standard_arrays, device="cuda", has_scores=True),
    "torch": Peer("standard attention in PyTorch", "torch", standard_torch, heads_first=True, has_scores=True),
    "sdpa-flash": Peer("PyTorch's SDPA, its FlashAttention", "torch", partial(sdpa, "FLASH_ATTENTION"), None, True),
    "sdpa-efficient": Peer(
        "PyTorch's SDPA, memory-efficient", "torch", partial(sdpa, "EFFICIENT_ATTENTION"), "cuda", True
    ),
    "sdpa-cudnn": Peer("PyTorch's SDPA, cuDNN", "torch", partial(sdpa, "CUDNN_ATTENTION"), "cuda", True),
    "sdpa-math": Peer("PyTorch's SDPA, plain operations", "torch", partial(sdpa, "MATH"), None, True, True),
    "flex": Peer("PyTorch's FlexAttention, compiled", "torch", flex, None, True),
    "jax-nn": Peer("jax.nn.dot_product_attention by XLA", "jax", partial(jax_nn, "xla"), has_scores=True),
    "jax-nn-cudnn": Peer("jax.nn.dot_product_attention by cuDNN", "jax", partial(jax_nn, "cudnn"), device="cuda"),
    "flash-dense": Peer("flash without the block mask", None, flash_dense, is_dense=True),
}
