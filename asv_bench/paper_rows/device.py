"""Where rows are measured with PyTorch: the CPU or a GPU, its clock and its memory."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flash.bench.facts import cpu_model
from flash.bench.libraries import Torch, cpu_facts

Call = Callable[[], Any]


class Device:
    """The device of PyTorch's tensors; float32 on the CPU, whose vectors have no faster product, bfloat16 on a GPU."""

    def __init__(self, kind: str, budget: float) -> None:
        import flash.torch

        self.library = Torch(kind)
        self.kind, self.flash, self.torch, self.budget = kind, flash, self.library.module, budget
        self.dtype = self.torch.float32 if kind == "cpu" else self.torch.bfloat16
        self.generator = self.torch.Generator(kind).manual_seed(2205_14135)

    @property
    def about(self) -> str:
        if self.kind == "cuda":
            return f"{self.library.device_name()}, PyTorch {self.torch.__version__}"
        cpu = cpu_facts()
        return f"{cpu_model()}, {cpu['threads']} threads, path {cpu['path']}, PyTorch {self.torch.__version__}"

    def normal(self, *shape: int, dtype: Any = None) -> Any:
        return self.torch.randn(shape, generator=self.generator, device=self.kind, dtype=dtype or self.dtype)

    def seconds(self, call: Call) -> float:
        """The median of at least three calls, for as long as the budget, after one that doesn't count; the time of that
        one if it takes longer."""
        first = self.library.start(call)()
        if first > self.budget:
            return first
        times: list[float] = []
        end = time.perf_counter() + self.budget
        while len(times) < 3 or time.perf_counter() < end:
            times.append(self.library.start(call)())
        return statistics.median(times)

    def peak_bytes(self, call: Call) -> int:
        """How much more memory is in use during a call than before it: of a GPU by PyTorch, else of this process."""
        gc.collect()
        if self.kind == "cuda":
            before = self.torch.cuda.memory_allocated()
            self.torch.cuda.reset_peak_memory_stats()
            call()
            return int(self.torch.cuda.max_memory_allocated() - before)
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed goes back to Linux
        Path("/proc/self/clear_refs").write_text("5")  # and the peak starts anew
        before = _in_use("VmRSS")
        call()
        return max(0, _in_use("VmHWM") - before)

    def free_bytes(self) -> int:
        if self.kind == "cuda":
            return int(self.torch.cuda.mem_get_info()[0])
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _in_use(field: str) -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)]
    return 1024 * int(line.split()[1])
