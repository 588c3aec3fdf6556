"""What is measured on every device: cpu.py and cuda.py give these classes their sizes and a clock."""

from __future__ import annotations

import math
import statistics
import timeit
from collections.abc import Callable
from typing import Any

from .common import BACKWARD_FLOPS, FORWARD_FLOPS, Arrays, Benchmark, flash, need, torch_for, visible_pairs

WINDOW = (256, 0)
# Block-sparse patterns from the literature, by the constructor of flash.BlockMask.
PATTERNS: dict[str, dict[str, Any]] = {
    "sliding_window": {"window": WINDOW},
    "local_global": {"window": (128, 128), "global_blocks": 1},
    "strided": {"stride": 512},
    "fixed": {"stride": 512, "summary": 64},
    "butterfly": {},
}
# Options of a call, made for so many heads and a length.
OPTIONS: dict[str, Callable[[Arrays, int, int], dict[str, Any]]] = {
    "none": lambda arrays, heads, length: {},
    "causal": lambda arrays, heads, length: {"causal": True},
    "mask": lambda arrays, heads, length: {
        "mask": arrays.of(arrays.random.random((length, length)) < 0.9, keep_dtype=True)
    },
    "bias": lambda arrays, heads, length: {"bias": arrays.normal(heads, length, length)},
    "dropout": lambda arrays, heads, length: {"dropout": 0.1, "seed": 1},
    "window": lambda arrays, heads, length: {"window": WINDOW},
    "softcap": lambda arrays, heads, length: {"softcap": 20.0},
    "alibi": lambda arrays, heads, length: {
        "alibi_slopes": arrays.of(0.5 ** arrays.xp.arange(1, heads + 1, dtype="float32"), keep_dtype=True)
    },
    "sinks": lambda arrays, heads, length: {"sinks": arrays.normal(heads)},
    "grouped": lambda arrays, heads, length: {},  # four heads share keys
}


class Attention(Benchmark):
    """Dense attention."""

    param_names: tuple[str, ...] = ("dtype", "length", "dim", "causal")

    def make(self, dtype: str, length: int, dim: int, causal: bool) -> None:
        self.make_arrays(dtype, length, dim)
        self.options = {"causal": causal}
        self.prepare_backward()


class Rate(Attention):
    """Floating-point operations in a second, to be held against `Product`, the machine's own matrix product.

    A causal problem counts the visible pairs only.
    """

    unit = "GFLOP/s"

    def track_forward(self, *params: Any) -> float:
        return self.rate(FORWARD_FLOPS, self.forward, *params)

    def track_backward(self, *params: Any) -> float:
        return self.rate(BACKWARD_FLOPS, self.backward, *params)

    def rate(self, flops: int, call: Callable[[], object], dtype: str, length: int, dim: int, causal: bool) -> float:
        leading, heads = self.sizes(length, dim)
        work = flops * math.prod(leading) * heads * dim * visible_pairs(length, causal)
        return round(work / self.seconds(call) / 1e9, 1)


class Product(Benchmark):
    """A large matrix product: what `Rate` is a share of."""

    param_names = ("library", "dtype")
    unit = "GFLOP/s"
    size: int

    def make(self, library: str, dtype: str) -> None:
        if library != "torch" and dtype == "bfloat16":
            raise NotImplementedError("NumPy has no fast product in bfloat16, and not every CuPy has one")
        arrays = Arrays(library, dtype, self.torch_device)
        self.q, self.k = arrays.normal(self.size, self.size), arrays.normal(self.size, self.size)

    def track_rate(self, *params: Any) -> float:
        return round(2 * self.size**3 / self.seconds(lambda: self.q @ self.k) / 1e9, 1)


class Torch(Benchmark):
    """PyTorch tensors: flash, PyTorch's own choice of a backend ("sdpa"), or a backend by its name in PyTorch."""

    param_names = ("attention", "dtype", "length")

    def make(self, attention: str, dtype: str, length: int) -> None:
        self.torch = torch_for(self.torch_device)
        self.make_arrays(dtype, length, 64, library="torch", like_torch=True)
        self.options = {"causal": True}
        self.calls = self.forward, self.backward
        if attention == "flash":
            self.prepare_backward()
            return
        self.backends = [] if attention == "sdpa" else [getattr(self.torch.nn.attention.SDPBackend, attention)]
        inputs = [x.transpose(1, 2) for x in (self.q, self.k, self.v)]
        leaves = [x.detach().requires_grad_() for x in inputs]
        do = self.do.transpose(1, 2)
        try:
            o = self.sdpa(*leaves)
        except RuntimeError as error:
            raise NotImplementedError(f"PyTorch's {attention} can't do this: {error}") from None
        gradients = self.torch.autograd.grad
        self.calls = (lambda: self.sdpa(*inputs)), (lambda: gradients(o, leaves, do, retain_graph=True))

    def sdpa(self, q: Any, k: Any, v: Any) -> Any:
        call = self.torch.nn.functional.scaled_dot_product_attention
        if not self.backends:
            return call(q, k, v, is_causal=True)
        with self.torch.nn.attention.sdpa_kernel(self.backends):
            return call(q, k, v, is_causal=True)


class BlockSparse(Benchmark):
    """Time against the share of blocks that are listed. "none": without a block mask."""

    param_names = ("density",)
    params: Any = (["none", 1.0, 0.5, 0.25, 0.125, 0.0625],)
    dtype: str
    length: int
    dim = 64
    block_size: int

    def make(self, density: Any) -> None:
        self.make_arrays(self.dtype, self.length, self.dim)
        if not isinstance(density, str):
            need("BlockMask.random")
            mask = flash.BlockMask.random(self.length, self.length, self.block_size, density=density, seed=1)
            self.options = {"block_mask": mask}
        self.prepare_backward()


class BlockPattern(BlockSparse):
    """Block-sparse patterns from the literature."""

    param_names = ("pattern",)
    params = (list(PATTERNS),)

    def make(self, pattern: Any) -> None:
        need(f"BlockMask.{pattern}")
        self.make_arrays(self.dtype, self.length, self.dim)
        make_mask = getattr(flash.BlockMask, pattern)
        self.options = {"block_mask": make_mask(self.length, self.length, self.block_size, **PATTERNS[pattern])}
        self.prepare_backward()


class Options(Benchmark):
    """What each option costs beside "none"."""

    param_names = ("dtype", "option")
    length: int
    dim = 64

    def make(self, dtype: str, option: str) -> None:
        arrays = self.make_arrays(dtype, self.length, self.dim, groups=4 if option == "grouped" else 1)
        heads = self.q.shape[-2]
        self.options = OPTIONS[option](arrays, heads, self.length)
        self.prepare_backward()


class Memory(Benchmark):
    """Bytes of arrays that exist at once during a call, beside its inputs and its results.

    That includes scratch memory which flash keeps for later calls.
    """

    param_names = ("dtype", "length")
    unit = "bytes"
    dim = 64

    def make(self, dtype: str, length: int) -> None:
        self.make_arrays(dtype, 1, self.dim)
        self.forward_backward()  # what is imported or made at first use
        self.make_arrays(dtype, length, self.dim)

    def track_forward(self, *params: Any) -> int:
        return self.extra_bytes(lambda: [self.forward()])

    def track_backward(self, *params: Any) -> int:
        def call() -> list[Any]:
            self.prepare_backward()
            return [self.o, self.lse, *self.backward()]

        return self.extra_bytes(call)

    def extra_bytes(self, call: Callable[[], list[Any]]) -> int:
        results: list[Any] = []
        peak = self.peak_bytes(lambda: results.extend(call()))
        return peak - sum(int(array.nbytes) for array in results if array is not None)


class HostCost(Benchmark):
    """What a call costs besides arithmetic: one query, one key. On a GPU without waiting for it."""

    param_names = ("library",)
    unit = "seconds"
    dtype: str
    calls = 500  # a GPU takes 1024 before it lets the host wait

    def make(self, library: str) -> None:
        self.make_arrays(self.dtype, 1, 64, library=library)
        self.prepare_backward()

    def sizes(self, length: int, dim: int) -> tuple[tuple[int, ...], int]:
        return (), 1

    def track_forward(self, *params: Any) -> float:
        return self.host_seconds(self.forward)

    def track_backward(self, *params: Any) -> float:
        return self.host_seconds(self.backward)

    def host_seconds(self, call: Callable[[], object]) -> float:
        times = []
        for _ in range(20):
            self.wait()
            times.append(timeit.timeit(call, number=self.calls) / self.calls)
        return statistics.median(times)
