"""Time, rate, memory and fixed costs of attention on the CPU, on as many threads as OpenMP says.

Unless a class says otherwise: NumPy arrays, 8 heads of one sequence, as many keys as queries.
"""

from __future__ import annotations

import os
import statistics
import timeit
import tracemalloc
from pathlib import Path
from typing import Any

import numpy

from .common import (
    BACKWARD_FLOPS,
    FORWARD_FLOPS,
    Arrays,
    Benchmark,
    flash,
    module,
    need,
    seconds_per_call,
    visible_pairs,
)

HEADS = 8


class Attention(Benchmark):
    """Dense attention at growing lengths."""

    param_names = ("dtype", "length", "dim", "causal")
    params = (["float32", "bfloat16", "float16"], [128, 512, 1024, 4096], [64, 128], [False, True])

    def make(self, dtype: str, length: int, dim: int, causal: bool) -> None:
        self.make_arrays(Arrays("numpy", dtype), HEADS, length, dim)
        self.options = {"causal": causal}
        self.prepare_backward()

    def time_forward(self, *params: Any) -> None:
        self.forward()

    def time_backward(self, *params: Any) -> None:
        self.backward()


class Training(Benchmark):
    """Forward and backward in turn, as in training."""

    param_names = ("dtype", "length", "dim")
    params = (["float32", "bfloat16"], [128, 1024, 4096], [64, 128])

    def make(self, dtype: str, length: int, dim: int) -> None:
        self.make_arrays(Arrays("numpy", dtype), HEADS, length, dim)
        self.options = {"causal": True}
        self.prepare_backward()

    def time_forward_backward(self, *params: Any) -> None:
        self.forward_backward()


class Rate(Benchmark):
    """Floating-point operations in a second, to be held against `Product`, the machine's own matrix product."""

    param_names = ("dtype", "dim", "causal")
    params = (["float32", "bfloat16", "float16"], [64, 128], [False, True])
    unit = "GFLOP/s"
    length = 2048

    def make(self, dtype: str, dim: int, causal: bool) -> None:
        self.make_arrays(Arrays("numpy", dtype), HEADS, self.length, dim)
        self.options = {"causal": causal}
        self.prepare_backward()

    def track_forward(self, dtype: str, dim: int, causal: bool) -> float:
        work = FORWARD_FLOPS * HEADS * dim * visible_pairs(self.length, causal)
        return round(work / seconds_per_call(self.forward) / 1e9, 1)

    def track_backward(self, dtype: str, dim: int, causal: bool) -> float:
        work = BACKWARD_FLOPS * HEADS * dim * visible_pairs(self.length, causal)
        return round(work / seconds_per_call(self.backward) / 1e9, 1)


class Product(Benchmark):
    """A large matrix product, by NumPy's BLAS (float32) and by PyTorch: what `Rate` is a share of."""

    param_names = ("library", "dtype")
    params = (["numpy", "torch"], ["float32", "bfloat16"])
    unit = "GFLOP/s"
    size = 2048

    def make(self, library: str, dtype: str) -> None:
        if (library, dtype) == ("numpy", "bfloat16"):
            raise NotImplementedError("NumPy has no fast product in bfloat16")
        arrays = Arrays(library, dtype)
        self.q, self.k = arrays.normal(self.size, self.size), arrays.normal(self.size, self.size)

    def track_rate(self, *params: Any) -> float:
        return round(2 * self.size**3 / seconds_per_call(lambda: self.q @ self.k) / 1e9, 1)


class OneHead(Benchmark):
    """One head: the threads share the work inside it."""

    param_names = ("dtype", "length")
    params = (["float32", "bfloat16"], [512, 4096])

    def make(self, dtype: str, length: int) -> None:
        self.make_arrays(Arrays("numpy", dtype), 1, length, 128)
        self.prepare_backward()

    def time_forward(self, *params: Any) -> None:
        self.forward()

    def time_backward(self, *params: Any) -> None:
        self.backward()


class Torch(Benchmark):
    """PyTorch tensors in the layout (batch, heads, length, dim), passed as transposed views."""

    param_names = ("dtype", "length")
    params = (["float32", "bfloat16"], [128, 1024])

    def make(self, dtype: str, length: int) -> None:
        arrays = Arrays("torch", dtype)
        self.q, self.k, self.v, self.do = (arrays.normal(1, HEADS, length, 64).transpose(1, 2) for _ in range(4))
        self.options = {"causal": True}
        self.prepare_backward()

    def time_forward(self, *params: Any) -> None:
        self.forward()

    def time_backward(self, *params: Any) -> None:
        self.backward()


class Jax(Benchmark):
    """Compiled JAX programs: by flash, and by JAX's own attention."""

    param_names = ("implementation", "dtype", "length")
    params = (["flash", "xla"], ["float32", "bfloat16"], [128, 1024])

    def make(self, implementation: str, dtype: str, length: int) -> None:
        jax, attention = module("jax"), module("flash.jax").dot_product_attention
        self.arguments = [*jax.random.normal(jax.random.key(0), (3, 1, length, HEADS, 64), dtype)]

        def forward(q: Any, k: Any, v: Any) -> Any:
            return attention(q, k, v, is_causal=True, implementation=implementation)

        gradients = jax.grad(lambda q, k, v: forward(q, k, v).astype("float32").sum(), (0, 1, 2))
        self.compiled = [jax.jit(function) for function in (forward, gradients)]
        self.wait = jax.block_until_ready
        for function in self.compiled:
            self.wait(function(*self.arguments))

    def time_forward(self, *params: Any) -> None:
        self.wait(self.compiled[0](*self.arguments))

    def time_forward_backward(self, *params: Any) -> None:
        self.wait(self.compiled[1](*self.arguments))


class BlockSparse(Benchmark):
    """Time against the share of blocks that are listed. "none": without a block mask."""

    param_names = ("density",)
    params = (["none", 1.0, 0.5, 0.25, 0.125, 0.0625],)
    length, block_size = 4096, 64

    def make(self, density: float | str) -> None:
        self.make_arrays(Arrays("numpy", "float32"), HEADS, self.length, 64)
        if not isinstance(density, str):
            need("BlockMask.random")
            mask = flash.BlockMask.random(self.length, self.length, self.block_size, density=density, seed=1)
            self.options = {"block_mask": mask}
        self.prepare_backward()

    def time_forward(self, *params: Any) -> None:
        self.forward()

    def time_backward(self, *params: Any) -> None:
        self.backward()


class BlockPattern(Benchmark):
    """Block-sparse patterns from the literature."""

    param_names = ("pattern",)
    params = (["sliding_window", "local_global", "strided", "fixed", "butterfly"],)
    length, block_size = 4096, 64

    def make(self, pattern: str) -> None:
        need(f"BlockMask.{pattern}")
        arguments: dict[str, Any] = {
            "sliding_window": {"window": (256, 0)},
            "local_global": {"window": (128, 128), "global_blocks": 1},
            "strided": {"stride": 512},
            "fixed": {"stride": 512, "summary": 64},
            "butterfly": {},
        }
        self.make_arrays(Arrays("numpy", "float32"), HEADS, self.length, 64)
        make_mask = getattr(flash.BlockMask, pattern)
        self.options = {"block_mask": make_mask(self.length, self.length, self.block_size, **arguments[pattern])}

    def time_forward(self, *params: Any) -> None:
        self.forward()


class Options(Benchmark):
    """What each option costs beside "none"."""

    param_names = ("dtype", "option")
    params = (
        ["float32", "bfloat16"],
        ["none", "causal", "mask", "bias", "dropout", "window", "softcap", "alibi", "sinks", "grouped"],
    )
    length = 1024

    def make(self, dtype: str, option: str) -> None:
        arrays = Arrays("numpy", dtype)
        self.make_arrays(arrays, HEADS, self.length, 64, kv_heads=2 if option == "grouped" else None)
        self.options = self.options_of(arrays, option)
        self.prepare_backward()

    def options_of(self, arrays: Arrays, option: str) -> dict[str, Any]:
        square = (self.length, self.length)
        if option == "mask":
            return {"mask": arrays.of(arrays.random.random(square) < 0.9, keep_dtype=True)}
        if option == "bias":
            return {"bias": arrays.normal(HEADS, *square)}
        if option == "alibi":
            return {"alibi_slopes": arrays.of(0.5 ** numpy.arange(1, HEADS + 1, dtype="float32"), keep_dtype=True)}
        if option == "sinks":
            return {"sinks": arrays.normal(HEADS)}
        simple: dict[str, dict[str, Any]] = {
            "causal": {"causal": True},
            "dropout": {"dropout": 0.1, "seed": 1},
            "window": {"window": (256, 0)},
            "softcap": {"softcap": 20.0},
        }
        return simple.get(option, {})

    def time_forward(self, *params: Any) -> None:
        self.forward()

    def time_backward(self, *params: Any) -> None:
        self.backward()


class Memory(Benchmark):
    """Bytes of arrays that exist at once during a call, beside its inputs and its results.

    That includes scratch memory which flash keeps for later calls: what is traced starts before the first call.
    """

    param_names = ("dtype", "length")
    params = (["float32", "bfloat16"], [1024, 4096])
    unit = "bytes"

    def make(self, dtype: str, length: int) -> None:
        arrays = Arrays("numpy", dtype)
        self.make_arrays(arrays, 1, 1, 64)
        self.forward_backward()  # what is imported or made at first use
        self.make_arrays(arrays, HEADS, length, 64)

    def track_forward(self, *params: Any) -> int:
        return self.extra_bytes(lambda: [self.forward()])

    def track_backward(self, *params: Any) -> int:
        return self.extra_bytes(self.backward, before=self.prepare_backward)

    def extra_bytes(self, call: Any, before: Any = None) -> int:
        tracemalloc.start()
        try:
            if before:
                before()
            tracemalloc.reset_peak()
            results = [array for array in call() if array is not None]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        if before:
            results += [self.o, self.lse]
        return peak - sum(int(array.nbytes) for array in results)


class HostCost(Benchmark):
    """What a call costs besides arithmetic: one query, one key."""

    param_names = ("library",)
    params = (["numpy", "torch"],)
    unit = "seconds"

    def make(self, library: str) -> None:
        self.make_arrays(Arrays(library, "float32"), 1, 1, 64)
        self.prepare_backward()

    def track_forward(self, library: str) -> float:
        return self.seconds(self.forward)

    def track_backward(self, library: str) -> float:
        return self.seconds(self.backward)

    @staticmethod
    def seconds(call: Any) -> float:
        calls = 2000
        timeit.timeit(call, number=calls)
        return statistics.median(timeit.repeat(call, number=calls, repeat=9)) / calls


class Package(Benchmark):
    """What the package itself costs, and the threads that the other results were measured with."""

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
