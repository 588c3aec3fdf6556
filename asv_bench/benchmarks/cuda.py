"""Time, rate, memory and host cost of attention on a GPU, by CuPy arrays: `record.py --device cuda`.

16384 tokens or one sequence, whichever is more, and heads that make 2048 together, as in the FlashAttention papers.

How long a round takes, by arithmetic: 152 cases, each in a process of its own. 3 s for a case (to import, to make a
context and random arrays, and 0.3 s of calls; only those at 65536 tokens take a second or two of calls), and 3 s more
for each of the 30 that import PyTorch: 546 s, nine minutes. Who adds a case takes another out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from . import cases, gpt2_block
from .common import Benchmark, module


class _Gpu(Benchmark):
    """CuPy's current stream and device."""

    library, torch_device = "cupy", "cuda"
    unit = "seconds"
    tokens, hidden = 16384, 2048
    flushed_bytes = 256 << 20  # more than any L2 cache
    fewest_calls, most_calls, budget = 10, 100, 0.2
    cupy: Any

    def setup(self, *params: Any) -> None:
        self.cupy = module("cupy")
        if not self.cupy.cuda.is_available():
            raise NotImplementedError("there is no GPU")
        super().setup(*params)

    def sizes(self, length: int, dim: int) -> tuple[tuple[int, ...], int]:
        return (max(1, self.tokens // length),), max(1, self.hidden // dim)

    def prepare_backward(self) -> None:
        super().prepare_backward()
        self.backward()  # what this flash can't do on a GPU is left out now

    def wait(self) -> None:
        self.cupy.cuda.Device().synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Between two events around each of at least ten calls, after two that don't count, out of an empty L2 cache.

        While the cache is overwritten the host prepares the call: 50 us or more of its own time aren't measured.
        """
        flushed = self.cupy.empty(self.flushed_bytes, "uint8")

        def start() -> tuple[Any, Any]:
            first, last = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            flushed.fill(0)
            first.record()
            call()
            last.record()
            return first, last

        for _ in range(2):
            start()
        times: list[float] = []
        while len(times) < self.fewest_calls or (sum(times) < self.budget and len(times) < self.most_calls):
            events = [start() for _ in range(self.fewest_calls)]
            self.wait()
            times += [self.cupy.cuda.get_elapsed_time(*pair) / 1e3 for pair in events]
        return statistics.median(times)

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """By what CuPy's pool has to take from the device."""
        pool = self.cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        call()
        return int(pool.total_bytes() - before)


class _Timed(_Gpu):
    """Forward and backward."""

    def track_forward(self, *params: Any) -> float:
        return self.seconds(self.forward)

    def track_backward(self, *params: Any) -> float:
        return self.seconds(self.backward)


class Attention(cases.Attention, _Timed):  # 40 cases
    """Dense attention at growing lengths."""

    params = (["bfloat16"], [128, 512, 2048, 8192, 65536], [64, 128], [False, True])


class HeadDims(cases.Attention, _Timed):  # 12
    """The other head dims: narrow, between the tiles, and wide."""

    params = (["bfloat16"], [4096], [32, 40, 80, 96, 192, 256], [True])


class Dtypes(cases.Attention, _Timed):  # 4
    """The other dtypes. float32 means its own accuracy, so no tensor cores."""

    params = (["float16", "float32"], [2048], [128], [True])


class Float8(_Gpu):  # 2
    """float8, which Hopper has, in PyTorch tensors: CuPy has no such dtype."""

    param_names = ("length",)
    params = ([2048, 8192],)

    def make(self, length: int) -> None:
        self.make_arrays("float8_e4m3fn", length, 128, library="torch")
        self.forward()

    def track_forward(self, *params: Any) -> float:
        return self.seconds(self.forward)


class Training(cases.Attention, _Gpu):  # 4
    """Forward and backward in turn, as in training."""

    params = (["bfloat16"], [2048, 8192], [64, 128], [True])

    def track_forward_backward(self, *params: Any) -> float:
        return self.seconds(self.forward_backward)


class Rate(cases.Rate, _Gpu):  # 12
    """Beside `Product`."""

    params = (["bfloat16"], [8192], [64, 128, 256], [False, True])


class Product(cases.Product, _Gpu):  # 4
    """By cuBLAS, through CuPy and through PyTorch."""

    params = (["cupy", "torch"], ["float16", "bfloat16"])
    size = 8192


class Torch(cases.Torch, _Gpu):  # 12
    """flash beside two backends of PyTorch's attention: FlashAttention-2 and cuDNN."""

    params = (["flash", "FLASH_ATTENTION", "CUDNN_ATTENTION"], ["bfloat16"], [1024, 8192])

    def track_forward(self, *params: Any) -> float:
        return self.seconds(self.calls[0])

    def track_backward(self, *params: Any) -> float:
        return self.seconds(self.calls[1])


class BlockSparse(cases.BlockSparse, _Timed):  # 12
    """Time against the share of blocks that are listed."""

    dtype, length, dim, block_size = "bfloat16", 16384, 128, 128


class BlockPattern(cases.BlockPattern, _Timed):  # 10
    """Time of each pattern."""

    dtype, length, dim, block_size = "bfloat16", 16384, 128, 128


class Options(cases.Options, _Timed):  # 20
    """What each option costs beside "none"."""

    params = (["bfloat16"], list(cases.OPTIONS))
    length, dim = 2048, 128


class Memory(cases.Memory, _Gpu):  # 4
    """Linear in the length."""

    params = (["bfloat16"], [1024, 16384])
    dim = 128


class HostCost(cases.HostCost, _Gpu):  # 4
    """A call without work, launched and not waited for."""

    params = (["cupy", "torch"],)
    dtype = "bfloat16"


class Gpt2Block(gpt2_block.Step, _Gpu):  # 12
    """A training step of a block of GPT-2 small in PyTorch."""

    params = (["flash", "sdpa", "standard"], [1024, 8192])

    def track_step(self, *params: Any) -> float:
        return self.seconds(self.step)

    def track_peak_memory(self, *params: Any) -> int:
        """By PyTorch's own account, which CuPy's pool has no part in."""
        cuda = self.torch.cuda
        before = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        self.step()
        return int(cuda.max_memory_allocated() - before)

    track_peak_memory.unit = "bytes"  # type: ignore[attr-defined]
