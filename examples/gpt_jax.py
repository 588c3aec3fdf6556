"""The GPT of gpt.py as a function for JAX: the same parameters from the same seed, so the same losses to rounding.

JAX differentiates and compiles it. Parameters are a dict of arrays with gpt.py's names and shapes; activations are
(B, L, width). Products are in `compute`, bfloat16 or float32; norms, their sum x and the loss are in float32.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy
from gpt import GPT, Shape, block_mask

import flash
import flash.jax

Array: TypeAlias = Any
Parameters: TypeAlias = dict[str, Array]

ATTENTIONS = "flash", "standard", "sdpa", "block-sparse"
_LARGEST_SEED = 2**31 - 1


def first_parameters(shape: Shape, seed: int) -> Parameters:
    """Those of gpt.py."""
    return {name: jnp.asarray(p) for name, p in GPT(shape, numpy, "float32", seed).p.items()}


class Dropout:
    """Drops a share of what it is given, each time others. Without a key, nothing."""

    def __init__(self, share: float, key: Array | None):
        self.share, self.key = 0.0 if key is None else share, key

    def next_key(self) -> Array:
        self.key, key = jax.random.split(self.key)
        return key

    def __call__(self, x: Array) -> Array:
        if self.share == 0.0:
            return x
        kept = jax.random.bernoulli(self.next_key(), 1.0 - self.share, x.shape)
        return jnp.where(kept, x / (1.0 - self.share), 0.0)


def logits(shape: Shape, p: Parameters, tokens: Array, compute: Any, drop: Dropout) -> Array:
    """The scores of the next token after each, (B, L, vocabulary) in float32."""
    blocks = block_mask(shape, tokens.shape[1]) if shape.attention == "block-sparse" else None

    def linear(x: Array, name: str) -> Array:
        return x.astype(compute) @ p[name].astype(compute)

    x = drop(p["token"][tokens] + p["position"][: tokens.shape[1]])
    for i in range(shape.layers):
        block = f"block{i}."
        qkv = linear(layer_norm(x, p, block + "norm1"), block + "qkv")
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, shape.heads, -1), 2, 0)
        o = attention(shape.attention, q, k, v, blocks, drop)
        x = x + drop(linear(o.reshape(x.shape), block + "attention_out").astype(x.dtype))
        h = jax.nn.gelu(linear(layer_norm(x, p, block + "norm2"), block + "mlp_in"), approximate=True)
        x = x + drop(linear(h, block + "mlp_out").astype(x.dtype))
    n = layer_norm(x, p, "norm").astype(compute)
    return jnp.einsum("bld,vd->blv", n, p["token"].astype(compute), preferred_element_type=x.dtype)


def attention(kind: str, q: Array, k: Array, v: Array, blocks: flash.BlockMask | None, drop: Dropout) -> Array:
    """Causal attention of some kind. q, k, v: (B, L, heads, D)."""
    if kind == "standard":
        s = jnp.einsum("bihd,bjhd->bhij", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
        seen = jnp.tril(jnp.ones(s.shape[-2:], bool))
        p = drop(jax.nn.softmax(jnp.where(seen, s, -jnp.inf)))
        return jnp.einsum("bhij,bjhd->bihd", p.astype(v.dtype), v)
    if kind == "sdpa":  # which has no dropout
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)
    options = {}
    if drop.share:
        options = {"dropout": drop.share, "seed": jax.random.randint(drop.next_key(), (), 0, _LARGEST_SEED)}
    return flash.jax.attention(q, k, v, causal=True, block_mask=blocks, **options)


def layer_norm(x: Array, p: Parameters, name: str) -> Array:
    """Each row by itself, as in gpt.py."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / deviation * p[name + "_gain"] + p[name + "_bias"]


def loss(shape: Shape, p: Parameters, tokens: Array, targets: Array, compute: Any, drop: Dropout) -> Array:
    """The mean cross entropy, in nats, of tokens (B, L) with the targets (B, L) that follow them."""
    scores = logits(shape, p, tokens, compute, drop)
    chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(scores, axis=-1) - chosen).mean()
