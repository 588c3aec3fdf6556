"""Time and memory of one training step, forward and backward, of a block of GPT-2 small in PyTorch.

    x + attention(norm(x)), then x + mlp(norm(x))          width 768, 12 heads of 64, causal, no dropout

beside PyTorch's own attention ("sdpa", whatever backend it chooses) and standard attention ("standard": PyTorch's
plain mathematics, which stores the matrix of scores). float32 on the CPU, one sequence; bfloat16 on a GPU, 8192 tokens.
The paper's figures for GPT-2 are those of the whole model: Dao et al., arXiv:2205.14135, tables 2 and 4.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from .common import Benchmark, flash, module, need, peak_bytes


class Block(Benchmark):
    """A step of one block."""

    param_names = ("device", "attention", "length")
    params = (["cpu", "cuda"], ["flash", "sdpa", "standard"], [512, 1024, 2048, 4096, 8192])
    timeout = 300
    width, heads = 768, 12
    tokens_on_gpu = 8192
    matrices = 5  # of scores that standard attention holds at once

    def make(self, device: str, attention: str, length: int) -> None:
        self.torch = torch = module("torch")
        need("torch.attention")
        if device == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError("PyTorch has no GPU")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if (device, attention) == ("cpu", "standard") and self.matrices * 4 * self.heads * length**2 > memory / 2:
            raise NotImplementedError("standard attention's matrices take more than half of the memory")
        torch.manual_seed(0)
        kind = {"device": device, "dtype": torch.float32 if device == "cpu" else torch.bfloat16}
        n, batch = self.width, 1 if device == "cpu" else self.tokens_on_gpu // length
        shapes = {"qkv": (3 * n, n), "out": (n, n), "mlp_in": (4 * n, n), "mlp_out": (n, 4 * n)}
        self.weights = {name: (0.02 * torch.randn(s, **kind)).requires_grad_() for name, s in shapes.items()}
        self.x = torch.randn(batch, length, n, **kind).requires_grad_()
        self.do = torch.randn(batch, length, n, **kind)
        self.attention = getattr(self, f"attention_{attention}")
        self.step()

    def attention_flash(self, q: Any, k: Any, v: Any) -> Any:
        return flash.torch.attention(q, k, v, causal=True)

    def attention_sdpa(self, q: Any, k: Any, v: Any, context: Callable[[], Any] = nullcontext) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with context():
            return self.torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def attention_standard(self, q: Any, k: Any, v: Any) -> Any:
        backends = self.torch.nn.attention
        return self.attention_sdpa(q, k, v, lambda: backends.sdpa_kernel(backends.SDPBackend.MATH))

    def step(self) -> Any:
        """The gradients of x and of the weights."""
        functional, w = self.torch.nn.functional, self.weights
        n = functional.layer_norm(self.x, (self.width,))
        q, k, v = functional.linear(n, w["qkv"]).unflatten(-1, (3, self.heads, -1)).unbind(2)
        x = self.x + functional.linear(self.attention(q, k, v).flatten(-2), w["out"])
        h = functional.linear(functional.layer_norm(x, (self.width,)), w["mlp_in"])
        y = x + functional.linear(functional.gelu(h, approximate="tanh"), w["mlp_out"])
        gradients = self.torch.autograd.grad(y, (self.x, *w.values()), self.do)
        if self.x.is_cuda:
            self.torch.cuda.synchronize()
        return gradients

    def time_step(self, *params: Any) -> None:
        self.step()

    def track_peak_memory(self, *params: Any) -> int:
        return peak_bytes(self.step, self.torch if self.x.is_cuda else None)

    track_peak_memory.unit = "bytes"  # type: ignore[attr-defined]
