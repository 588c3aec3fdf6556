#!/usr/bin/env python
"""flash beside PyTorch's scaled_dot_product_attention on the CPU: `python asv_bench/compare.py`.

Both work on the same tensors in PyTorch's layout (batch, heads, length, dim), which flash gets as transposed views,
and in turn: PyTorch, flash, PyTorch, flash, ... Each pair gives a ratio of times; the median of a case's ratios is its
result, and their quartiles its spread. So a machine that is busy at times, or changes its clock, slows both. A matrix
product by PyTorch in the same dtype is timed all along: rates can be stated as a share of it, and the spread of its own
rates says how quiet the machine was.

    forward            o
    backward           dq, dk, dv, from what the forward saved
    forward+backward   both, as a training step would
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[], Any]
Results: TypeAlias = dict[str, Any]

# For each visible pair and element of a head; of block-sparse attention as if all pairs were listed.
FLOPS = {"forward": 4, "backward": 10, "forward+backward": 14, "block-sparse": 4}
SHORT = 0.005  # seconds; shorter calls are timed several at once
FEWEST_PAIRS = 5
PRODUCT_SIZE = 2048
# The product that rates in a dtype are a share of. CPUs without float16 arithmetic work on it in float32; PyTorch's
# product in float16 is then a plain loop of 1 GFLOP/s.
PRODUCT = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}
# Largest difference allowed between the two results, as a share of the largest value: both must do the same work.
SAME = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}


@dataclass(frozen=True)
class Case:
    """One problem: as many keys as queries."""

    operation: str
    dtype: str
    length: int
    dim: int
    causal: bool
    heads: int  # batch x heads

    @property
    def flops(self) -> int:
        pairs = self.length * (self.length + 1) // 2 if self.causal else self.length**2
        return FLOPS[self.operation] * self.heads * self.dim * pairs

    @property
    def mask(self) -> str:
        return "causal" if self.causal else "full"

    def __str__(self) -> str:
        return f"{self.operation} {self.dtype} L={self.length} D={self.dim} {self.mask} BH={self.heads}"


def calls_of(case: Case, torch: Any, flash: Any) -> tuple[Call, Call]:
    """The two sides of a case. Each returns its results as tensors in PyTorch's layout."""
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(1)
    shape = (1, case.heads, case.length, case.dim)
    q, k, v, do = (torch.randn(shape, generator=generator).to(dtype) for _ in range(4))
    views = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    do_view = do.transpose(1, 2)
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def torch_forward() -> Any:
        with torch.no_grad():
            return (sdpa(q, k, v, is_causal=case.causal),)

    def torch_both() -> Any:
        return torch.autograd.grad(sdpa(*leaves, is_causal=case.causal), leaves, do)

    def flash_forward() -> Any:
        return (flash.attention(*views, causal=case.causal).transpose(1, 2),)

    def flash_gradients(o: Any, lse: Any) -> Any:
        gradients = flash.attention_backward(do_view, *views, o, lse, causal=case.causal)
        return [gradient.transpose(1, 2) for gradient in gradients[:3]]

    def flash_both() -> Any:
        return flash_gradients(*flash.attention(*views, causal=case.causal, return_lse=True))

    if case.operation == "forward":
        return torch_forward, flash_forward
    if case.operation == "forward+backward":
        return torch_both, flash_both

    torch_o = sdpa(*leaves, is_causal=case.causal)
    saved = flash.attention(*views, causal=case.causal, return_lse=True)
    return (
        lambda: torch.autograd.grad(torch_o, leaves, do, retain_graph=True),
        lambda: flash_gradients(*saved),
    )


def check_same(case: Case, wanted: Any, given: Any) -> None:
    """The first calls of both sides are compared: a fast wrong answer is no result."""
    for one, other in zip(wanted, given, strict=True):
        one, other = one.float(), other.float()
        error = float((one - other).abs().max() / one.abs().max())
        if not error <= SAME[case.dtype]:
            sys.exit(f"{case}: flash and PyTorch differ by {error:.1e} of the largest value")


def seconds(call: Call, count: int = 1) -> float:
    """Time of a call: the mean of `count`, which are preceded by one that isn't timed where they are many."""
    if count > 1:
        call()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def measure(case: Case, sides: tuple[Call, Call], repeat: int, budget: float) -> Results:
    """Alternates the two sides until the budget (seconds) is spent: FEWEST_PAIRS to `repeat` pairs."""
    rough = []
    results = []
    for call in sides:
        start = time.perf_counter()
        results.append(call())
        first = time.perf_counter() - start
        rough.append(first if first > 10 * SHORT else min(seconds(call) for _ in range(3)))
    check_same(case, *results)
    del results
    counts = [max(1, math.ceil(SHORT / max(once, 1e-7))) for once in rough]
    pair_time = sum(once * (count + (count > 1)) for once, count in zip(rough, counts, strict=True))
    pairs = min(repeat, max(FEWEST_PAIRS, int(budget / pair_time)))
    gc.collect()
    gc.disable()
    try:
        times = [[seconds(call, count) for call, count in zip(sides, counts, strict=True)] for _ in range(pairs)]
    finally:
        gc.enable()
    torch_time, flash_time = (statistics.median(side) for side in zip(*times, strict=True))
    low, ratio, high = quartiles([one / other for one, other in times])
    return {
        **asdict(case),
        "pairs": pairs,
        "ratio": round(ratio, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "torch_seconds": float(f"{torch_time:.5g}"),
        "flash_seconds": float(f"{flash_time:.5g}"),
        "torch_gflops": round(case.flops / torch_time / 1e9, 1),
        "flash_gflops": round(case.flops / flash_time / 1e9, 1),
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class Product:
    """A square matrix product by PyTorch in one dtype."""

    def __init__(self, torch: Any, dtype: str, size: int) -> None:
        left, right = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
        self.call: Call = lambda: left @ right
        self.flops = 2 * size**3
        self.rates: list[float] = []
        self.call()

    def sample(self) -> None:
        self.rates.append(self.flops / seconds(self.call) / 1e9)

    def facts(self) -> Results:
        low, rate, high = quartiles(self.rates)
        return {
            "gflops": round(rate, 1),
            "gflops_quartiles": [round(low, 1), round(high, 1)],
            "samples": len(self.rates),
        }


def machine_facts(torch: Any, flash: Any) -> Results:
    """What the numbers depend on. No names of hosts, people or folders."""
    import numpy

    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "flash_path": flash.show_config(mode="dicts")["cpu"]["path"],
        "flash": flash.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The commit that this file belongs to, with a "+" where something has changed since. None outside git."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--abbrev=8", "--dirty=+"]
    command += ["--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cases(options: argparse.Namespace) -> Iterator[Case]:
    product = itertools.product(
        options.dtypes, options.operations, options.heads, options.lengths, options.dims, options.masks
    )
    for dtype, operation, heads, length, dim, mask in product:
        yield Case(operation, dtype, length, dim, mask == "causal", heads)


def run(options: argparse.Namespace) -> Results:
    """Measures every case and prints a line for each."""
    # OpenMP reads this when it is loaded. PyTorch is first: both then use the OpenMP that it brings, and its threads.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    import flash

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config: Any = flash.show_config(mode="dicts")
    if config["cpu"]["threads"] != options.threads:
        sys.exit(f"flash would use {config['cpu']['threads']} threads, not {options.threads}")

    wanted = dict.fromkeys(PRODUCT[dtype] for dtype in options.dtypes)
    products = {dtype: Product(torch, dtype, options.product_size) for dtype in wanted}
    rows: list[Results] = []
    print(f"{'':>58}  {'ratio':>6}  {'quartiles':<13} {'torch':>9} {'flash':>9}  GFLOP/s  pairs")
    previous = None
    for case in cases(options):
        if (case.dtype, case.operation, case.length) != previous:
            previous = (case.dtype, case.operation, case.length)
            products[PRODUCT[case.dtype]].sample()
        row = measure(case, calls_of(case, torch, flash), options.repeat, options.seconds)
        rows.append(row)
        low, high = row["ratio_quartiles"]
        times = f"{1e3 * row['torch_seconds']:6.4g} ms {1e3 * row['flash_seconds']:6.4g} ms"
        rate = f"{row['flash_gflops']:7.0f}  {row['pairs']:5d}"
        print(f"{case!s:>58}  {row['ratio']:5.2f}x  {f'{low:.2f}-{high:.2f}':<13} {times}  {rate}", flush=True)

    found = {dtype: product.facts() for dtype, product in products.items()}
    for row in rows:
        row["share_of_product"] = round(row["flash_gflops"] / found[PRODUCT[row["dtype"]]]["gflops"], 3)
    settings = {name: getattr(options, name) for name in ("threads", "repeat", "seconds", "product_size")}
    return {
        "machine": machine_facts(torch, flash),
        "settings": settings,
        "product": found,
        "summary": summary(rows),
        "cases": rows,
    }


def summary(rows: list[Results]) -> list[Results]:
    """For each operation, dtype and batch x heads: the geometric mean of the ratios, and the lowest one."""

    def key(row: Results) -> tuple[Any, ...]:
        return row["dtype"], row["operation"], row["heads"]

    groups: dict[tuple[Any, ...], list[Results]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    found = []
    for (dtype, operation, heads), group in groups.items():
        lowest = min(group, key=lambda row: row["ratio"])
        found.append(
            {
                "operation": operation,
                "dtype": dtype,
                "heads": heads,
                "cases": len(group),
                "geometric_mean": round(statistics.geometric_mean(row["ratio"] for row in group), 3),
                "lowest": lowest["ratio"],
                "lowest_case": {name: lowest[name] for name in ("length", "dim", "causal")},
                "highest_share_of_product": max(row["share_of_product"] for row in group),
            }
        )
    return found


def name_of(case: Results) -> str:
    return f"L={case['length']} D={case['dim']} {'causal' if case['causal'] else 'full'}"


def print_summary(results: Results) -> None:
    print()
    for dtype, product in results["product"].items():
        low, high = product["gflops_quartiles"]
        size = results["settings"]["product_size"]
        print(f"product of {size} x {size} matrices, {dtype}: {product['gflops']:.0f} GFLOP/s ({low:.0f}-{high:.0f})")
    for row in results["summary"]:
        name = f"{row['operation']} {row['dtype']} BH={row['heads']}"
        mean = f"geometric mean {row['geometric_mean']:.2f}x of {row['cases']}"
        print(f"{name}: {mean}, lowest {row['lowest']:.2f}x ({name_of(row['lowest_case'])})")


def markdown(results: Results) -> str:
    """The results as text for the documents: facts, summary, and a table for each operation and dtype."""
    machine, threads = results["machine"], results["settings"]["threads"]
    lines = [
        f"{machine['cpu']}, {threads} threads, flash {machine['flash']} (commit {machine['commit']}, path "
        f"`{machine['flash_path']}`), PyTorch {machine['torch']}, {machine['date']}. Each figure is PyTorch's time "
        "over flash's, the median of pairs measured in turn; in brackets, flash's rate in GFLOP/s.",
        "",
        "| operation | dtype | batch x heads | geometric mean | lowest | highest share of the matrix product's rate |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["summary"]:
        product = results["product"][PRODUCT[row["dtype"]]]["gflops"]
        lowest = f"{row['lowest']:.2f} ({name_of(row['lowest_case'])})"
        share = f"{row['highest_share_of_product']:.0%} of {product:.0f} GFLOP/s"
        cells = [row["operation"], row["dtype"], row["heads"], f"{row['geometric_mean']:.2f}", lowest, share]
        lines.append(table_row(cells))
    for group in results["summary"]:
        chosen = [
            row for row in results["cases"] if all(row[key] == group[key] for key in ("operation", "dtype", "heads"))
        ]
        columns = list(dict.fromkeys((row["dim"], row["causal"]) for row in chosen))
        titles = [f"D {dim}, {'causal' if causal else 'full'}" for dim, causal in columns]
        lines += ["", f"{group['operation']}, {group['dtype']}, batch x heads {group['heads']}:", ""]
        lines += [table_row(["length", *titles]), table_row(["---"] * (1 + len(titles)))]
        found = {
            (row["length"], row["dim"], row["causal"]): f"{row['ratio']:.2f} ({row['flash_gflops']:.0f})"
            for row in chosen
        }
        for length in dict.fromkeys(row["length"] for row in chosen):
            lines.append(table_row([length, *(found[length, dim, causal] for dim, causal in columns)]))
    return "\n".join(lines) + "\n"


def table_row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time flash beside PyTorch's scaled_dot_product_attention on the CPU, in turn."
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=sorted(SAME))
    parser.add_argument("--operations", nargs="+", default=["forward", "forward+backward"], choices=list(FLOPS)[:3])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--masks", nargs="+", default=["full", "causal"], choices=["full", "causal"])
    parser.add_argument("--heads", nargs="+", type=int, default=[8], help="batch x heads")
    parser.add_argument("--repeat", type=int, default=31, help="pairs for a case, at most")
    parser.add_argument(
        "--seconds", type=float, default=0.8, help=f"time for a case with more than {FEWEST_PAIRS} pairs"
    )
    parser.add_argument("--product-size", type=int, default=PRODUCT_SIZE, help="rows and columns of the matrix product")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables for the documents")
    parser.add_argument("--input", type=Path, metavar="FILE", help="measure nothing: read what --output wrote")
    return parser.parse_args()


def main() -> None:
    options = parse()
    results = json.loads(options.input.read_text()) if options.input else run(options)
    print_summary(results)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(results))


if __name__ == "__main__":
    main()
