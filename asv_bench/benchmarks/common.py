"""What the suites share: the arrays, the calls, a clock, and how a case that can't run here is left out.

A case is left out by a NotImplementedError in `setup`, which asv records as "n/a". That is what happens where an array
library is missing, and where an older version of flash lacks a function or an option: nothing here may fail at import.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
import tracemalloc
from abc import ABC, abstractmethod
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


def torch_for(device: str) -> Any:
    """PyTorch, if it can use this device: "cpu" or "cuda"."""
    torch = module("torch")
    if device == "cuda" and not torch.cuda.is_available():
        raise NotImplementedError("PyTorch has no GPU")
    return torch


def visible_pairs(length: int, causal: bool) -> int:
    """Pairs of query and key that see each other, of one head with as many queries as keys."""
    return length * (length + 1) // 2 if causal else length * length


def process_peak_bytes(call: Callable[[], object]) -> int:
    """How much more memory this process uses during a call than before it."""
    gc.collect()
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
    """Random arrays of one array library: "numpy", "cupy", or "torch" (on the CPU, unless told otherwise)."""

    def __init__(self, library: str, dtype: str, device: str = "cpu") -> None:
        self.torch = torch_for(device) if library == "torch" else None
        self.xp = numpy if self.torch else module(library)
        self.random = self.xp.random.default_rng(2205_14135)
        self.device = device
        if self.torch:
            self.dtype = getattr(self.torch, dtype)
        else:
            self.dtype = numpy.dtype(module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)

    def normal(self, *shape: int) -> Any:
        return self.of(self.random.standard_normal(shape, numpy.float32))

    def of(self, values: Any, keep_dtype: bool = False) -> Any:
        """Values of NumPy or CuPy as an array of this library, of this dtype unless the values' own is to be kept."""
        if self.torch:
            return self.torch.from_numpy(values).to(self.device, None if keep_dtype else self.dtype)
        if keep_dtype:
            return values
        if self.dtype.name == "bfloat16" and self.xp is not numpy:  # not every CuPy can convert to it
            return ((values.view(numpy.uint32) + 0x8000) >> 16).astype(numpy.uint16).view(self.dtype)
        return values.astype(self.dtype, copy=False)


class Benchmark(ABC):
    """The base of every suite: `make` prepares one case, and the calls below are what is measured.

    What it is measured with, and on how large a problem, is the device's: `Cpu`, and `_Gpu` in cuda.py. A class without
    a device is abstract, which is no suite to asv. asv calls `setup` before each sample, too; a case is made once.
    """

    timeout = 60
    rounds = 1
    # A sample is one call. At least 3; more until 0.3 s have passed.
    repeat: tuple[int, int, float] = (3, 200, 0.3)
    warmup_time = 0.03
    number = 1

    library: str
    torch_device: str
    q: Any
    k: Any
    v: Any
    do: Any
    o: Any
    lse: Any
    options: dict[str, Any]
    made_for: tuple[Any, ...] | None = None

    @abstractmethod
    def seconds(self, call: Callable[[], object]) -> float:
        """The time of a call: a median."""

    @abstractmethod
    def peak_bytes(self, call: Callable[[], object]) -> int:
        """How many bytes of arrays there are at once during a call, more than before it."""

    @abstractmethod
    def sizes(self, length: int, dim: int) -> tuple[tuple[int, ...], int]:
        """The leading shape, and how many heads: what keeps the device busy."""

    @abstractmethod
    def wait(self) -> None:
        """Waits until the device has done everything."""

    @abstractmethod
    def make(self, *params: Any) -> None:
        """Prepares the case: `make_arrays`, and `options` where there are any."""

    def setup(self, *params: Any) -> None:
        need("attention")
        if self.made_for != params:
            self.made_for = None
            self.options = {}
            self.make(*params)
            self.made_for = params

    def make_arrays(
        self, dtype: str, length: int, dim: int, groups: int = 1, library: str | None = None, like_torch: bool = False
    ) -> Arrays:
        """q, k, v and do, as many keys as queries; what made them. groups: how many heads share keys.

        like_torch: in PyTorch's layout (batch, heads, length, dim), passed as transposed views.
        """
        arrays = Arrays(library or self.library, dtype, self.torch_device)
        leading, heads = self.sizes(length, dim)

        def normal(heads: int) -> Any:
            if like_torch:
                return arrays.normal(math.prod(leading), heads, length, dim).swapaxes(1, 2)
            return arrays.normal(*leading, length, heads, dim)

        self.q, self.do = normal(heads), normal(heads)
        self.k, self.v = normal(heads // groups), normal(heads // groups)
        return arrays

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


class Cpu(Benchmark):
    """NumPy arrays, 8 heads of one sequence: whether heads or sequences are many makes no difference to the kernels."""

    library, torch_device = "numpy", "cpu"
    heads = 8
    budget = 0.4

    def sizes(self, length: int, dim: int) -> tuple[tuple[int, ...], int]:
        return (), self.heads

    def wait(self) -> None:
        """Every call has waited."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Over at least three calls, after one that doesn't count. For calls of a millisecond or more."""
        call()
        times: list[float] = []
        while len(times) < 3 or sum(times) < self.budget:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """With the scratch memory that flash keeps for later calls, if this is the first."""
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
