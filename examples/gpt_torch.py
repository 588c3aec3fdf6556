"""The GPT of gpt.py as a PyTorch module: the same parameters from the same seed, so the same losses to rounding.

PyTorch differentiates it, and may compile it; which attention it computes is the one choice it has more.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy
import torch
from gpt import GPT, Shape, block_mask
from torch import nn
from torch.nn import functional

import flash.torch

Tensor: TypeAlias = Any

ATTENTIONS = "flash", "standard", "sdpa", "block-sparse"


def standard_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Causal attention with the L x L matrix of probabilities. q, k, v: (B, L, heads, D)."""
    length, D = q.shape[1], q.shape[-1]
    s = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(D)
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    p = functional.dropout(s.masked_fill(hidden, -math.inf).softmax(dim=-1), dropout)
    return torch.einsum("bhij,bjhd->bihd", p, v)


class Attention(nn.Module):  # type: ignore[misc]
    """Causal attention of some kind, of (B, L, heads, D) tensors."""

    def __init__(self, shape: Shape, dropout: float):
        super().__init__()
        self.shape, self.kind, self.dropout = shape, shape.attention, dropout
        self.block_masks: dict[int, flash.BlockMask] = {}
        if self.kind == "block-sparse":  # a compiled function can use a mask, but not make one
            self.block_masks[shape.context] = block_mask(shape, shape.context)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if self.kind == "standard":
            return standard_attention(q, k, v, dropout)
        if self.kind == "sdpa":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            o = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
            return o.transpose(1, 2)
        if self.kind == "block-sparse" and q.shape[1] not in self.block_masks:
            self.block_masks[q.shape[1]] = block_mask(self.shape, q.shape[1])
        blocks = self.block_masks.get(q.shape[1])
        return flash.torch.attention(q, k, v, causal=True, dropout=dropout, block_mask=blocks)


class Block(nn.Module):  # type: ignore[misc]
    """x + attention(norm(x)), then x + mlp(norm(x)). (B, L, width) to the same."""

    def __init__(self, shape: Shape, dropout: float):
        super().__init__()
        width = shape.d_model
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention = Attention(shape, dropout)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        x = x + self.drop(self.attention_out(self.attention(q, k, v).flatten(-2)))
        h = functional.gelu(self.mlp_in(self.norm2(x)), approximate="tanh")
        return x + self.drop(self.mlp_out(h))


class TorchGPT(nn.Module):  # type: ignore[misc]
    """The model. Tokens (B, L) to scores of the next token (B, L, vocabulary)."""

    def __init__(self, shape: Shape, dropout: float = 0.0, seed: int = 0):
        super().__init__()
        self.shape = shape
        self.token = nn.Embedding(shape.vocabulary, shape.d_model)
        self.position = nn.Embedding(shape.context, shape.d_model)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.d_model)
        self.take_over(GPT(shape, numpy, "float32", seed))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def take_over(self, model: GPT) -> None:
        """The first parameters of the model in gpt.py, whose products are x w and not x w^T. Gains are 1, biases 0."""
        for name in ("token", "position"):
            self.get_submodule(name).weight.copy_(torch.from_numpy(model.p[name]))
        for i, block in enumerate(self.blocks):
            for name in ("qkv", "attention_out", "mlp_in", "mlp_out"):
                block.get_submodule(name).weight.copy_(torch.from_numpy(model.p[f"block{i}.{name}"].T))

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.token(tokens) + self.position(positions))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.token.weight)  # the head is tied to the embedding
