"""The attentions that the paper compares, as plain operations on PyTorch's tensors (batch, length, heads, dim).

    standard    softmax(q k^T / sqrt d) v, with its matrices of length x length
    low_rank    Linformer (Wang et al., arXiv:2006.04768, equation 7): standard attention to E k and F v, in which E and
                F (rank, length) mix the keys' rows; not the same function
    local       standard attention in a window: query i sees key j where |i - j| <= window, by chunks of `window`

Both approximations are what a framework runs without a kernel of its own. Differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Tensor = Any
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def standard(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) @ v).transpose(1, 2)


def low_rank(mix_k: Tensor, mix_v: Tensor) -> Function:
    def mixed(mix: Tensor, x: Tensor) -> Tensor:
        return (mix @ x.flatten(2)).unflatten(2, x.shape[2:])

    return lambda q, k, v: standard(q, mixed(mix_k, k), mixed(mix_v, v))


def local(window: int) -> Function:
    import torch

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, dim = q.shape[1], q.shape[3]
        chunks = -(-length // window)

        def chunked(x: Tensor) -> Tensor:
            """(batch, heads, chunks, window, dim), with zeros behind the end."""
            padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, chunks * window - length))
            return padded.unflatten(1, (chunks, window)).permute(0, 3, 1, 2, 4)

        def with_neighbours(x: Tensor) -> Tensor:
            """Each chunk with the one before and the one behind it: (batch, heads, chunks, 3 window, dim)."""
            around = torch.nn.functional.pad(chunked(x), (0, 0, 0, 0, 1, 1))
            return torch.cat([around[:, :, n : n + chunks] for n in range(3)], dim=3)

        i = torch.arange(chunks * window, device=q.device).view(chunks, window, 1)
        j = torch.arange(chunks, device=q.device).view(chunks, 1, 1) * window
        j = j + torch.arange(-window, 2 * window, device=q.device)
        is_hidden = ((i - j).abs() > window) | (j < 0) | (j >= length)
        is_hidden = is_hidden & (i < length)  # rows behind the end see anything rather than nothing
        scores = chunked(q) @ with_neighbours(k).transpose(-1, -2) / math.sqrt(dim)
        weights = scores.masked_fill(is_hidden, -math.inf).softmax(-1)
        o = (weights @ with_neighbours(v)).permute(0, 2, 3, 1, 4).flatten(1, 2)
        return o[:, :length]

    return attention


def training_step(function: Function, q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Callable[[], Any]:
    """A call of forward and backward: the gradients of q, k and v."""
    import torch

    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return lambda: torch.autograd.grad(function(*leaves), leaves, do)
