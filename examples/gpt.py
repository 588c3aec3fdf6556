"""A GPT in array operations and `flash.attention`: every layer with its gradient written out by hand.

    x = token_embedding[token] + position_embedding[position]
    each block:  x = x + attention(layer_norm(x));   x = x + mlp(layer_norm(x))
    logits = layer_norm(x) @ token_embedding.T                    the head is tied to the embedding
    loss   = mean over positions of -log softmax(logits)[next token]

Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019, without biases in the products.

A layer is a function that returns its result and the function that carries a gradient back through it:

    y, backward = layer(x, w)           forward
    dx, dw = backward(dy)               dy = d loss / d y, and so on

What the backward needs is kept by the inner function itself, and freed with it. The activations are matrices with one
row for each token: x is (B * L, width), B sequences of L tokens. `xp` is the array library, NumPy or CuPy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy

import flash

Array: TypeAlias = Any
Backward: TypeAlias = Callable[..., Any]

ATTENTIONS = "flash", "standard", "block-sparse"


def library_of(x: Array) -> Any:
    """The module that an array comes from: NumPy or CuPy."""
    return numpy if isinstance(x, numpy.ndarray) else sys.modules["cupy"]


def linear(x: Array, w: Array) -> tuple[Array, Backward]:
    """y = x w. x: (rows, n), w: (n, m)."""

    def backward(dy: Array) -> tuple[Array, Array]:
        return dy @ w.T, x.T @ dy

    return x @ w, backward


def layer_norm(x: Array, gain: Array, bias: Array) -> tuple[Array, Backward]:
    """y = gain * n + bias with n = (x - mean) / sqrt(variance + 1e-5), each row by itself. gain, bias: (width,).

    n does not change when a row is shifted or stretched, so dx has no part along the row of ones and none along n:
    both are subtracted.
    """
    xp = library_of(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse_deviation = 1.0 / xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)
    n = centred * inverse_deviation

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dn = dy * gain
        dx = dn - dn.mean(axis=-1, keepdims=True) - n * (dn * n).mean(axis=-1, keepdims=True)
        return dx * inverse_deviation, (dy * n).sum(axis=0), dy.sum(axis=0)

    return n * gain + bias, backward


def gelu(x: Array) -> tuple[Array, Backward]:
    """y = x (1 + t) / 2 with t = tanh(a (x + b x^3)): GPT-2's form of the Gaussian error linear unit."""
    a, b = math.sqrt(2.0 / math.pi), 0.044715
    square = x * x
    t = library_of(x).tanh(a * x * (1.0 + b * square))
    half = 0.5 * (1.0 + t)  # the share of x that passes

    def backward(dy: Array) -> Array:
        # dt/dx = (1 - t^2) a (1 + 3 b x^2)
        return dy * (half + 0.5 * x * (1.0 - t * t) * (a * (1.0 + 3.0 * b * square)))

    return x * half, backward


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Backward]:
    """The mean of -log softmax(logits)[target] over the rows. logits: (rows, vocabulary), targets: (rows,) integers."""
    xp = library_of(logits)
    rows = xp.arange(len(targets))
    shifted = logits - logits.max(axis=-1, keepdims=True)  # exp can't overflow
    e = xp.exp(shifted)
    total = e.sum(axis=-1, keepdims=True)
    loss = float((xp.log(total[:, 0]) - shifted[rows, targets]).mean())

    def backward(dloss: float) -> Array:
        dlogits = e / total
        dlogits[rows, targets] -= 1.0
        return dlogits * (dloss / len(targets))

    return loss, backward


def attention(q: Array, k: Array, v: Array, *, kind: str, block_mask: flash.BlockMask | None) -> tuple[Array, Backward]:
    """Causal attention. q, k, v: (B, L, heads, D), any strides but that of the last axis.

    kind "standard" builds the L x L matrix of probabilities, twice: forward and backward. The others keep one number a
    row, lse, from which the backward computes the probabilities again.
    """
    library: Any = flash.reference if kind == "standard" else flash
    o, lse = library.attention(q, k, v, causal=True, block_mask=block_mask, return_lse=True)

    def backward(do: Array) -> tuple[Array, Array, Array]:
        # The same bits on every run, on a GPU too, so that a resumed training repeats what it would have done.
        repeatable = {} if kind == "standard" else {"deterministic": True}
        g = library.attention_backward(do, q, k, v, o, lse, causal=True, block_mask=block_mask, **repeatable)
        return g.dq, g.dk, g.dv

    return o, backward


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and which attention it computes."""

    vocabulary: int
    context: int  # the longest sequence
    layers: int
    heads: int
    d_model: int
    attention: str = "flash"
    block_size: int = 32  # these two of the block-sparse pattern
    window: int = 64


def block_mask(shape: Shape, L: int) -> flash.BlockMask:
    """Longformer's pattern: the last `window` keys, and the first block of keys for everybody."""
    near = flash.BlockMask.local_global(L, L, shape.block_size, window=(shape.window - 1, 0), global_blocks=1)
    return near & flash.BlockMask.causal(L, L, shape.block_size)


class GPT:
    """Parameters, their gradients, and the forward and backward of the whole model.

    All parameters lie in one vector and so do all gradients, in the same order: an optimizer or a checkpoint sees two
    vectors, and the layers see `p[name]` and `g[name]`, views with a shape.
    """

    def __init__(self, shape: Shape, xp: Any, dtype: Any, seed: int):
        self.shape, self.xp = shape, xp
        shapes = self.parameter_shapes()
        ends = numpy.cumsum([math.prod(s) for s in shapes.values()]).tolist()
        self.parameters, self.gradients = xp.zeros(ends[-1], dtype), xp.zeros(ends[-1], dtype)
        places = [(name, end - math.prod(s), end, s) for (name, s), end in zip(shapes.items(), ends, strict=True)]
        self.p, self.g = (
            {name: vector[begin:end].reshape(s) for name, begin, end, s in places}
            for vector in (self.parameters, self.gradients)
        )
        self._block_masks: dict[int, flash.BlockMask] = {}

        # Drawn by NumPy, so that every array library starts from the same numbers.
        generator = numpy.random.default_rng(seed)
        for name, p in self.p.items():
            if p.ndim == 2:
                # 2 * layers products are added to x, one after another: GPT-2 keeps their sum's variance.
                added = name.endswith(("attention_out", "mlp_out"))
                deviation = 0.02 / math.sqrt(2 * shape.layers) if added else 0.02
                p[...] = xp.asarray(generator.normal(0.0, deviation, p.shape))
            elif name.endswith("gain"):
                p[...] = 1.0

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters by name, in the order of the vector."""
        s, width = self.shape, self.shape.d_model
        shapes: dict[str, tuple[int, ...]] = {"token": (s.vocabulary, width), "position": (s.context, width)}
        for i in range(s.layers):
            shapes |= {
                f"block{i}.norm1_gain": (width,),
                f"block{i}.norm1_bias": (width,),
                f"block{i}.qkv": (width, 3 * width),
                f"block{i}.attention_out": (width, width),
                f"block{i}.norm2_gain": (width,),
                f"block{i}.norm2_bias": (width,),
                f"block{i}.mlp_in": (width, 4 * width),
                f"block{i}.mlp_out": (4 * width, width),
            }
        return shapes | {"norm_gain": (width,), "norm_bias": (width,)}

    def loss(self, tokens: Array, targets: Array) -> tuple[float, Backward]:
        """The mean cross entropy, in nats, of integer tokens (B, L) with the targets (B, L) that follow them.

        ``backward(dloss)`` adds to the gradients; several calls in a row accumulate.
        """
        logits, logits_backward = self.logits(tokens)
        loss, loss_backward = cross_entropy(logits, targets.reshape(-1))
        return loss, lambda dloss=1.0: logits_backward(loss_backward(dloss))

    def logits(self, tokens: Array) -> tuple[Array, Backward]:
        """The scores of the next token after each, (B * L, vocabulary)."""
        p, g, (B, L) = self.p, self.g, tokens.shape
        flat = tokens.reshape(-1)
        x = (p["token"][flat].reshape(B, L, -1) + p["position"][:L]).reshape(B * L, -1)
        backwards = []
        for i in range(self.shape.layers):
            x, backward = self._attention(f"block{i}.", x, B, L)
            backwards.append(backward)
            x, backward = self._mlp(f"block{i}.", x)
            backwards.append(backward)
        x, norm_backward = layer_norm(x, p["norm_gain"], p["norm_bias"])
        logits, head_backward = linear(x, p["token"].T)

        def backward_all(dlogits: Array) -> None:
            dx, dhead = head_backward(dlogits)
            dx, dgain, dbias = norm_backward(dx)
            g["norm_gain"] += dgain
            g["norm_bias"] += dbias
            while backwards:  # popped: the activations of a block are freed as soon as it is done
                dx = backwards.pop()(dx)
            g["position"][:L] += dx.reshape(B, L, -1).sum(axis=0)
            # The embedding is both ends of the model. A token's rows are summed by a product with one-hot rows, which
            # array libraries do faster than scattered additions, and in a fixed order.
            one_hot = (flat[:, None] == self.xp.arange(self.shape.vocabulary)).astype(dx.dtype)
            g["token"] += dhead.T + one_hot.T @ dx

        return logits, backward_all

    def _attention(self, block: str, x: Array, B: int, L: int) -> tuple[Array, Backward]:
        """x + attention(layer_norm(x)): (B * L, width) to the same."""
        p, g, shape = self.p, self.g, self.shape
        n, norm_backward = layer_norm(x, p[block + "norm1_gain"], p[block + "norm1_bias"])
        qkv, qkv_backward = linear(n, p[block + "qkv"])
        # q, k and v are views into one product: flash takes their strides as they are.
        q, k, v = (qkv.reshape(B, L, 3, shape.heads, -1)[:, :, i] for i in range(3))
        o, attention_backward = attention(q, k, v, kind=shape.attention, block_mask=self._block_mask(L))
        y, out_backward = linear(o.reshape(B * L, -1), p[block + "attention_out"])

        def backward(dy: Array) -> Array:
            do, dw = out_backward(dy)
            g[block + "attention_out"] += dw
            dqkv = self.xp.stack(attention_backward(do.reshape(o.shape)), axis=2)
            dn, dw = qkv_backward(dqkv.reshape(B * L, -1))
            g[block + "qkv"] += dw
            dx, dgain, dbias = norm_backward(dn)
            g[block + "norm1_gain"] += dgain
            g[block + "norm1_bias"] += dbias
            return dy + dx

        return x + y, backward

    def _mlp(self, block: str, x: Array) -> tuple[Array, Backward]:
        """x + gelu(layer_norm(x) w) w': (B * L, width) to the same."""
        p, g = self.p, self.g
        n, norm_backward = layer_norm(x, p[block + "norm2_gain"], p[block + "norm2_bias"])
        h, in_backward = linear(n, p[block + "mlp_in"])
        a, gelu_backward = gelu(h)
        y, out_backward = linear(a, p[block + "mlp_out"])

        def backward(dy: Array) -> Array:
            da, dw = out_backward(dy)
            g[block + "mlp_out"] += dw
            dn, dw = in_backward(gelu_backward(da))
            g[block + "mlp_in"] += dw
            dx, dgain, dbias = norm_backward(dn)
            g[block + "norm2_gain"] += dgain
            g[block + "norm2_bias"] += dbias
            return dy + dx

        return x + y, backward

    def _block_mask(self, L: int) -> flash.BlockMask | None:
        """Which blocks of an L x L attention are computed; None for all that causality leaves."""
        s = self.shape
        if s.attention != "block-sparse":
            return None
        if L not in self._block_masks:
            self._block_masks[L] = block_mask(s, L)
        return self._block_masks[L]


def generate(
    scores: Callable[[list[int]], list[float]],
    context: int,
    tokens: list[int],
    count: int,
    temperature: float,
    generator: numpy.random.Generator,
) -> list[int]:
    """The tokens and `count` more. scores: what a model gives each token after a list of at most `context`."""
    tokens = list(tokens)
    for _ in range(count):
        last = numpy.asarray(scores(tokens[-context:]))
        # Drawn on the host, in float64. The largest of logits + Gumbel noise is a draw from their softmax.
        tokens.append(int((last + temperature * generator.gumbel(size=last.size)).argmax()))
    return tokens
