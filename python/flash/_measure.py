"""What demonstration and benchmark measure with: time, memory of arrays, limits of memory, and how far it is."""

from __future__ import annotations

import resource
import shutil
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy


def time_of(xp: Any, call: Callable[[], None]) -> float:
    """The seconds that a call takes, on a GPU up to its end."""
    begin = time.perf_counter()
    call()
    if xp is not numpy:
        xp.cuda.get_current_stream().synchronize()
    return time.perf_counter() - begin


@contextmanager
def peak(xp: Any) -> Iterator[list[int]]:
    """Gives a list that holds, at the end, how many bytes of arrays there were at once more than before."""
    peak: list[int] = []
    if xp is not numpy:
        pool = xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        yield peak
        peak.append(pool.total_bytes() - before)
        return
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@contextmanager
def limited(xp: Any, limit: int | None) -> Iterator[None]:
    """Lets no more than so many bytes be allocated beside what there is; more raises MemoryError."""
    if limit is None:
        yield
    elif xp is not numpy:
        pool = xp.get_default_memory_pool()
        pool.free_all_blocks()
        pool.set_limit(size=pool.total_bytes() + limit)
        try:
            yield
        finally:
            pool.set_limit(size=0)
    else:
        warm = numpy.ones((256, 256), numpy.float32)
        warm @ warm  # BLAS takes its buffers now: it may not survive being refused them
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def free_bytes(xp: Any) -> int:
    """Memory that can be had. Linux would kill the process rather than refuse more."""
    if xp is not numpy:
        return int(xp.cuda.runtime.memGetInfo()[0])
    free = [1 << 62]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return min(free)


def seconds(value: float | str) -> str:
    """A time for people; text stays as it is."""
    if isinstance(value, str):
        return value
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e6 * value:.0f} us"


def size(value: int | None) -> str:
    """A size for people."""
    if value is None:
        return "-"
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


class Progress:
    """A bar on a terminal's standard error; elsewhere a line for each step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.begun = steps, 0
        self.what = ""
        self.is_terminal = sys.stderr.isatty()

    def step(self, what: str) -> None:
        """Say what begins now."""
        self.begun += 1
        self.what = what
        if self.is_terminal:
            self._show(what)
        else:
            print(f"[{self.begun}/{self.steps}] {what}", file=sys.stderr, flush=True)

    def tell(self, part: str) -> None:
        """Say what part of the step begins now: on a terminal only."""
        if self.is_terminal:
            self._show(f"{self.what}: {part}")

    def _show(self, text: str) -> None:
        filled = 24 * (self.begun - 1) // self.steps
        bar = f"[{'#' * filled}{'.' * (24 - filled)}] {text}"
        width = shutil.get_terminal_size().columns - 1  # a longer line would not be cleared
        print(f"\r\x1b[K{bar[:width]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for other output."""
        if self.is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
