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

from .common import Benchmark, Cpu, flash, need, process_peak_bytes, torch_for


class Step(Benchmark):
    """A step of one block."""

    param_names = ("attention", "length")
    timeout = 300
    warmup_time = 0  # `make` does the first step
    repeat = (2, 200, 0.3)
    width, heads = 768, 12
    tokens_on_gpu = 8192
    matrices = 5  # of scores that standard attention holds at once

    def make(self, attention: str, length: int) -> None:
        device = self.torch_device
        self.torch = torch = torch_for(device)
        need("torch.attention")
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
        return self.torch.autograd.grad(y, (self.x, *w.values()), self.do)


class Block(Step, Cpu):
    """On the CPU, whose memory is that of the process: PyTorch tells nobody what it allocates there."""

    params = (["flash", "sdpa", "standard"], [512, 2048, 8192])

    def time_step(self, *params: Any) -> None:
        self.step()

    def track_peak_memory(self, *params: Any) -> int:
        return process_peak_bytes(self.step)

    track_peak_memory.unit = "bytes"  # type: ignore[attr-defined]
