"""Every benchmark runs, at small sizes, and says what it leaves out: a smoke round of all suites in this process.

CUDA's suites compute with NumPy here, through a stand-in for CuPy, so that their text is tried without a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest

BENCH = Path(__file__).resolve().parent.parent / "asv_bench"
# Reasons to leave a case out that are none of the suite's: a library that isn't here, what a library can't do.
KNOWN = (r"is not installed", "no fast product in bfloat16", "PyTorch's CUDNN_ATTENTION can't", "float8")


@pytest.fixture
def suites(monkeypatch) -> SimpleNamespace:
    """The modules of the benchmarks, at small sizes."""
    monkeypatch.syspath_prepend(BENCH)
    names = ("common", "cases", "cpu", "cuda", "gpt2_block")
    modules = SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in names})
    gpu = modules.cuda._Gpu
    small = {
        modules.common.Cpu: {"budget": 0, "heads": 4},
        gpu: {"tokens": 256, "hidden": 512, "flushed_bytes": 1, "fewest_calls": 2, "budget": 0, "torch_device": "cpu"},
        modules.cases.HostCost: {"calls": 2},
        modules.gpt2_block.Step: {"width": 32, "heads": 2, "tokens_on_gpu": 256},
        **{module.Product: {"size": 64} for module in (modules.cpu, modules.cuda)},
        **{
            getattr(module, name): {"length": 1024}
            for module in (modules.cpu, modules.cuda)
            for name in ("BlockSparse", "BlockPattern", "Options")
        },
    }
    for owner, values in small.items():
        for name, value in values.items():
            monkeypatch.setattr(owner, name, value)
    yield modules
    for name in ("", *(f".{name}" for name in names)):
        sys.modules.pop(f"benchmarks{name}", None)


@pytest.fixture
def cupy(monkeypatch) -> ModuleType:
    """NumPy under CuPy's name, with events that tell the time and a pool that grows."""

    class Event:
        def record(self) -> None:
            self.time = time.perf_counter()

    stand_in = ModuleType("cupy")
    bytes_ = itertools.count(0, 10**9)
    functions = {name: getattr(numpy, name) for name in ("random", "arange", "empty")}
    cuda = SimpleNamespace(
        is_available=lambda: True,
        Device=lambda: SimpleNamespace(synchronize=lambda: None),
        Event=Event,
        get_elapsed_time=lambda first, last: 1e3 * (last.time - first.time),
    )
    pool = SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: next(bytes_))
    vars(stand_in).update(functions, cuda=cuda, get_default_memory_pool=lambda: pool, ndarray=type("ndarray", (), {}))
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    if importlib.util.find_spec("torch"):
        monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: None)
    return stand_in


def classes(module: ModuleType) -> Iterator[type]:
    """What asv finds in a module."""
    for name, suite in vars(module).items():
        if inspect.isclass(suite) and not name.startswith("_") and not inspect.isabstract(suite) and methods(suite):
            yield suite


def methods(suite: type) -> list[str]:
    return [name for name in dir(suite) if name.startswith(("time_", "track_", "timeraw_"))]


def params(suite: Any) -> list[tuple[Any, ...]]:
    """Each value of each axis at least once; lengths are 128."""
    axes = getattr(suite, "params", ())
    if not axes:
        return [()]
    short = [[128] if name == "length" else axis for name, axis in zip(suite.param_names, axes, strict=True)]
    return [tuple(axis[i % len(axis)] for axis in short) for i in range(max(map(len, short)))]


def run(module: ModuleType) -> tuple[dict[str, int], list[str]]:
    """How many cases of each class ran, and why the others didn't."""
    ran, left_out = {}, []
    for suite in classes(module):
        ran[suite.__name__] = 0
        for method, values in itertools.product(methods(suite), params(suite)):
            benchmark = suite()
            try:
                benchmark.setup(*values)
            except NotImplementedError as error:
                left_out.append(f"{suite.__name__}{values}: {error}")
                continue
            result = getattr(benchmark, method)(*values)
            if method.startswith("track_"):
                assert isinstance(result, int | float) and math.isfinite(result), (suite, method, values)
            elif method.startswith("timeraw_"):
                code, before = result
                exec(before + "\n" + code)
            ran[suite.__name__] += 1
    return ran, left_out


@pytest.mark.parametrize("name", ["cpu", "gpt2_block", "cuda"])
def test_every_benchmark_runs(suites, cupy, name):
    ran, left_out = run(getattr(suites, name))
    print(left_out)
    unknown = [reason for reason in left_out if not any(known in reason for known in KNOWN)]
    assert not unknown
    needs_more = {"Float8", *(reason.split("(")[0] for reason in left_out if "is not installed" in reason)}
    assert all(count for name, count in ran.items() if name not in needs_more), ran


@pytest.mark.parametrize("missing", ["CuPy", "GPU"])
def test_cuda_is_left_out(suites, cupy, monkeypatch, missing):
    if missing == "CuPy":
        monkeypatch.setitem(sys.modules, "cupy", None)
    else:
        monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
    ran, left_out = run(suites.cuda)
    assert sum(ran.values()) == 0
    assert all(reason.endswith(("cupy is not installed", "there is no GPU")) for reason in left_out)


def test_a_round_on_a_gpu_has_as_many_cases_as_it_has_time_for(suites):
    """By the arithmetic that cuda.py states."""
    counts = {suite.__name__: len(methods(suite)) * math.prod(map(len, suite.params)) for suite in classes(suites.cuda)}
    assert f"{sum(counts.values())} cases" in suites.cuda.__doc__
    with_torch = counts["Torch"] + counts["Float8"] + counts["Gpt2Block"]
    with_torch += counts["Product"] // 2 + counts["HostCost"] // 2
    assert f"each of the {with_torch} that import PyTorch" in " ".join(suites.cuda.__doc__.split())
    assert 3 * (sum(counts.values()) + with_torch) < 600
