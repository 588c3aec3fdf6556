"""What the suites share: the arrays, the calls, a clock, and how a case that can't run here is left out.

A case is left out by a NotImplementedError in `setup`, which asv records as "n/a". That is what happens where an array
library is missing, and where an older version of flash lacks a function or an option: nothing here may fail at import.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy

flash: Any
try:
    flash = import_module("flash")
except ImportError:
    flash = None

# Floating-point operations for each visible pair and element of a head, 2 to a multiply-add: QK^T, PV; QK^T again, dP,
# dV, dQ, dK.
FORWARD_FLOPS, BACKWARD_FLOPS = 4, 10


def need(*names: str) -> None:
    """Leaves the case out unless flash has all of these, such as "BlockMask.random"."""
    for name in names:
        try:
            attrgetter(name)(flash)
        except AttributeError:
            raise NotImplementedError(f"flash.{name} is not there") from None


def module(name: str) -> Any:
    """An optional module; without it the case is left out."""
    try:
        return import_module(name)
    except ImportError:
        raise NotImplementedError(f"{name} is not installed") from None


def visible_pairs(length: int, causal: bool) -> int:
    """Pairs of query and key that see each other, of one head with as many queries as keys."""
    return length * (length + 1) // 2 if causal else length * length


def seconds_per_call(call: Callable[[], object], budget: float = 0.4) -> float:
    """Median over at least three calls, after one that doesn't count. For calls of a millisecond or more."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes(call: Callable[[], object], torch: Any = None) -> int:
    """How much more memory is in use during a call than before it: a GPU's by torch, else that of this process."""
    gc.collect()
    if torch is not None:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed goes back to Linux
        Path("/proc/self/clear_refs").write_text("5")  # and the peak starts anew
    except (AttributeError, OSError):
        raise NotImplementedError("the C library or Linux can't say the peak of a call here") from None
    before = memory_in_use("VmRSS")
    call()
    return memory_in_use("VmHWM") - before


def memory_in_use(field: str) -> int:
    """Bytes, by the kernel's account of this process."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)]
    return 1024 * int(line.split()[1])


class Arrays:
    """Random arrays of one array library: "numpy" or "torch" (on the CPU)."""

    def __init__(self, library: str, dtype: str) -> None:
        self.random = numpy.random.default_rng(2205_14135)
        if library == "torch":
            self.torch = module("torch")
            self.dtype = getattr(self.torch, dtype)
        else:
            self.torch = None
            self.dtype = numpy.dtype(module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)

    def normal(self, *shape: int) -> Any:
        return self.of(self.random.standard_normal(shape, numpy.float32))

    def of(self, values: Any, keep_dtype: bool = False) -> Any:
        """Values of NumPy as an array of this library, and of this dtype unless the values' own is to be kept."""
        if self.torch is None:
            return values if keep_dtype else values.astype(self.dtype, copy=False)
        tensor = self.torch.from_numpy(values)
        return tensor if keep_dtype else tensor.to(self.dtype)


class Benchmark:
    """The base of every suite: `make` prepares one case, and the calls below are what is measured.

    asv calls `setup` before each sample, too. The arrays are made once for a case.
    """

    timeout = 60
    rounds = 1
    # A sample is one call. At least 3; more until 0.3 s have passed.
    repeat = (3, 200, 0.3)
    warmup_time = 0.03
    number = 1

    q: Any
    k: Any
    v: Any
    do: Any
    o: Any
    lse: Any
    options: dict[str, Any]
    made_for: tuple[Any, ...] | None = None

    def setup(self, *params: Any) -> None:
        need("attention")
        if self.made_for != params:
            self.made_for = None
            self.options = {}
            self.make(*params)
            self.made_for = params

    def make(self, *params: Any) -> None:
        """Prepare the case: `make_arrays`, and `options` where there are any."""

    def make_arrays(self, arrays: Arrays, heads: int, length: int, dim: int, kv_heads: int | None = None) -> None:
        """q, k, v and do of one sequence. Whether heads or sequences are many makes no difference to the kernels."""
        self.q, self.do = arrays.normal(length, heads, dim), arrays.normal(length, heads, dim)
        self.k, self.v = (arrays.normal(length, kv_heads or heads, dim) for _ in "kv")

    def prepare_backward(self) -> None:
        need("attention_backward")
        self.o, self.lse = self.forward_with_lse()

    def forward(self) -> Any:
        return flash.attention(self.q, self.k, self.v, **self.options)

    def forward_with_lse(self) -> Any:
        return flash.attention(self.q, self.k, self.v, return_lse=True, **self.options)

    def backward(self) -> Any:
        return flash.attention_backward(self.do, self.q, self.k, self.v, self.o, self.lse, **self.options)

    def forward_backward(self) -> Any:
        o, lse = self.forward_with_lse()
        return flash.attention_backward(self.do, self.q, self.k, self.v, o, lse, **self.options)
