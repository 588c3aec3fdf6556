"""Time, rate, memory and fixed costs of attention on the CPU, on as many threads as OpenMP says.

Unless a class says otherwise: NumPy arrays, 8 heads of one sequence, as many keys as queries.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import cases
from .common import Cpu, flash, module, need

FLOATS = ["float32", "bfloat16"]


class _Timed(Cpu):
    """Forward and backward."""

    def time_forward(self, *params: Any) -> None:
        self.forward()

    def time_backward(self, *params: Any) -> None:
        self.backward()


class Attention(cases.Attention, _Timed):
    """Dense attention at growing lengths."""

    params = (FLOATS, [128, 512, 1024, 4096], [64, 128], [False, True])


class HeadDims(cases.Attention, _Timed):
    """The other head dims: narrow, between the tiles, and wide."""

    params = (FLOATS, [1024], [32, 40, 80, 96, 192, 256], [True])


class OneHead(cases.Attention, _Timed):
    """One head: the threads share the work inside it."""

    params = (FLOATS, [512, 4096], [128], [False])
    heads = 1


class Training(cases.Attention, Cpu):
    """Forward and backward in turn, as in training."""

    params = (FLOATS, [128, 1024, 4096], [64, 128], [True])

    def time_forward_backward(self, *params: Any) -> None:
        self.forward_backward()


class LongSequence(_Timed):
    """One head of one long sequence: where time grows with its square, and where it doesn't."""

    param_names = ("attention", "length")
    params = (["causal", "window", "local_global"], [8192, 16384, 32768, 65536])
    heads = 1
    repeat = (2, 200, 0.3)

    def make(self, attention: str, length: int) -> None:
        self.make_arrays("bfloat16", length, 64)
        if attention == "local_global":
            need("BlockMask.local_global")
            mask = flash.BlockMask.local_global(length, length, 64, **cases.PATTERNS["local_global"])
            self.options = {"block_mask": mask}
        else:
            self.options = {"causal": True} if attention == "causal" else {"window": cases.WINDOW}
        self.prepare_backward()


class Rate(cases.Rate, Cpu):
    """Beside `Product`, for every dtype. float16 has float32's rate: it is computed in float32."""

    params = ([*FLOATS, "float16", "float64"], [2048], [64, 128], [False, True])


class Product(cases.Product, Cpu):
    """By NumPy's BLAS and by PyTorch."""

    params = (["numpy", "torch"], FLOATS)
    size = 2048


class Torch(cases.Torch, Cpu):
    """flash beside PyTorch's own attention."""

    params = (["flash", "sdpa"], FLOATS, [128, 1024])

    def time_forward(self, *params: Any) -> None:
        self.calls[0]()

    def time_backward(self, *params: Any) -> None:
        self.calls[1]()


class Jax(Cpu):
    """Compiled JAX programs: by flash, and by JAX's own attention."""

    param_names = ("implementation", "dtype", "length")
    params = (["flash", "xla"], ["float32", "bfloat16"], [128, 1024])

    def make(self, implementation: str, dtype: str, length: int) -> None:
        jax, attention = module("jax"), module("flash.jax").dot_product_attention
        self.arguments = [*jax.random.normal(jax.random.key(0), (3, 1, length, self.heads, 64), dtype)]

        def forward(q: Any, k: Any, v: Any) -> Any:
            return attention(q, k, v, is_causal=True, implementation=implementation)

        gradients = jax.grad(lambda q, k, v: forward(q, k, v).astype("float32").sum(), (0, 1, 2))
        self.compiled = [jax.jit(function) for function in (forward, gradients)]
        self.ready = jax.block_until_ready
        for function in self.compiled:
            self.ready(function(*self.arguments))

    def time_forward(self, *params: Any) -> None:
        self.ready(self.compiled[0](*self.arguments))

    def time_forward_backward(self, *params: Any) -> None:
        self.ready(self.compiled[1](*self.arguments))


class BlockSparse(cases.BlockSparse, _Timed):
    """Time against the share of blocks that are listed."""

    dtype, length, block_size = "float32", 4096, 64


class BlockPattern(cases.BlockPattern, _Timed):
    """Time of each pattern."""

    dtype, length, block_size = "float32", 4096, 64


class Options(cases.Options, _Timed):
    """What each option costs beside "none"."""

    params = (FLOATS, list(cases.OPTIONS))
    length = 1024


class Memory(cases.Memory, Cpu):
    """Linear in the length."""

    params = (FLOATS, [1024, 4096])


class HostCost(cases.HostCost, Cpu):
    """A call without work."""

    params = (["numpy", "torch"],)
    dtype = "float32"


class Package(Cpu):
    """What the package itself costs, and the threads that the other results were measured with."""

    def make(self) -> None:
        """There is nothing to prepare."""

    def timeraw_import(self) -> tuple[str, str]:
        """Beyond NumPy's own import."""
        folder = str(Path(flash.__path__[0]).parent)  # asv empties PYTHONPATH
        return "import flash", f"import numpy, sys; sys.path.append({folder!r})"

    timeraw_import.number = 1  # type: ignore[attr-defined]
    timeraw_import.repeat = (5, 10, 1.0)  # type: ignore[attr-defined]

    def track_library_size(self) -> int:
        folders = [Path(folder) / "libflash.so" for folder in flash.__path__]
        files = [Path(os.environ.get("FLASH_LIBRARY", "")), *folders]
        sizes = [file.stat().st_size for file in files if file.is_file()]
        if not sizes:
            raise NotImplementedError("libflash.so is not beside the package")
        return sizes[0]

    track_library_size.unit = "bytes"  # type: ignore[attr-defined]

    def track_threads(self) -> int:
        need("show_config")
        return int(flash.show_config(mode="dicts")["cpu"]["threads"])

    track_threads.unit = "threads"  # type: ignore[attr-defined]
