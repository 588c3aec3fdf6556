#!/usr/bin/env python
"""flash beside PyTorch's attention on a GPU: `python asv_bench/compare_cuda.py --output results.json`.

Each case is timed in rounds, all sides in turn, so that a clock that changes slows all of them: flash, PyTorch's
backends FlashAttention-2 and cuDNN, FlexAttention, and a bfloat16 matrix product, of which rates are stated as a share.
Inputs are random. Before each call memory larger than the L2 cache is written; a call's time is that between two CUDA
events around it, a result the median over the rounds. There are as many tokens, and the model is as wide, for each
length and head dim, as in the FlashAttention papers. A side that can't do a case is left out of it, with the reason.

    forward        o
    backward       dq, dk, dv, from what the forward saved
    block-sparse   forward through a block mask of 128 x 128, beside flash without one: at 10 % density, and listing all

`--device cpu` runs the same program where there is no GPU, to try it on tiny cases.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from compare import FLOPS, Case, commit, quartiles, table_row

Call = Callable[[], Any]
SAME = 3e-2  # largest difference allowed to flash's result, as a share of the largest value: bfloat16
FLUSHED_BYTES = 256 << 20  # more than any L2 cache
BACKENDS = {"FlashAttention-2": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}
DENSITIES = {"block-sparse 10 %": 0.1, "block-sparse 100 %": 1.0}


class Sides:
    """The calls of one case, by name; each returns its results in the layout (batch, length, heads, dim)."""

    def __init__(self, case: Case, options: argparse.Namespace) -> None:
        import torch

        import flash
        import flash.torch

        self.torch, self.flash, self.case, self.options = torch, flash, case, options
        self.left_out: dict[str, str] = {}
        heads, batch = options.hidden // case.dim, max(1, options.tokens // case.length)
        generator = torch.Generator(options.device).manual_seed(1)
        kind = {"generator": generator, "device": options.device, "dtype": torch.bfloat16}
        shape = (batch, case.length, heads, case.dim)
        self.q, self.k, self.v, self.do = (torch.randn(shape, **kind) for _ in range(4))

    def __iter__(self) -> Iterator[tuple[str, Call]]:
        if self.case.operation == "block-sparse":
            yield "flash", self.of_flash()
            for name, density in DENSITIES.items():
                yield name, self.of_flash(self.block_mask(density))
            return
        backward = self.case.operation == "backward"
        yield "flash", self.flash_backward() if backward else self.of_flash()
        for name, function in self.peers():
            try:
                call = self.gradients(function) if backward else partial(function, self.q, self.k, self.v)
                call()
            except Exception as error:  # whatever a peer raises where it can't
                self.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            yield name, call

    def of_flash(self, block_mask: Any = None) -> Call:
        return lambda: self.flash.attention(self.q, self.k, self.v, causal=self.case.causal, block_mask=block_mask)

    def flash_backward(self) -> Call:
        arrays = self.q, self.k, self.v
        saved = self.flash.attention(*arrays, causal=self.case.causal, return_lse=True)
        return lambda: self.flash.attention_backward(
            self.do, *arrays, *saved, causal=self.case.causal, wrt=("q", "k", "v")
        )[:3]

    def block_mask(self, density: float) -> Any:
        length = self.case.length
        return self.flash.BlockMask.random(length, length, min(128, length), density=density, seed=1).to(self.q)

    def peers(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        attention = self.torch.nn.attention
        for name, backend in BACKENDS.items():
            yield name, lambda q, k, v, backend=backend: self.sdpa(q, k, v, getattr(attention.SDPBackend, backend))
        if self.options.device == "cuda":
            yield "FlexAttention", self.flex()

    def sdpa(self, q: Any, k: Any, v: Any, backend: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with self.torch.nn.attention.sdpa_kernel(backend):
            o = self.torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.case.causal)
        return o.transpose(1, 2)

    def flex(self) -> Callable[..., Any]:
        module = self.torch.nn.attention.flex_attention
        function, L = self.torch.compile(module.flex_attention), self.case.length
        rule = module.create_block_mask(lambda b, h, i, j: i >= j, None, None, L, L) if self.case.causal else None
        return lambda q, k, v: function(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=rule).transpose(1, 2)

    def gradients(self, function: Callable[..., Any]) -> Call:
        leaves = [x.detach().requires_grad_() for x in (self.q, self.k, self.v)]
        o = function(*leaves)
        return lambda: self.torch.autograd.grad(o, leaves, self.do, retain_graph=True)


def milliseconds(torch: Any, call: Call, flushed: Any) -> Callable[[], float]:
    """Starts a call; what is returned waits for it and tells its time."""
    flushed.zero_()
    if flushed.device.type == "cpu":
        start = time.perf_counter()
        call()
        took = 1e3 * (time.perf_counter() - start)
        return lambda: took
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()

    def read() -> float:
        last.synchronize()
        return float(first.elapsed_time(last))

    return read


def check_same(case: Case, results: dict[str, Any]) -> None:
    """A fast wrong answer is no result."""
    as_tuple = {name: x if isinstance(x, tuple) else (x,) for name, x in results.items()}
    for name, given in as_tuple.items():
        for one, other in zip(as_tuple["flash"], given, strict=True):
            error = float((one.float() - other.float()).abs().max() / one.float().abs().max())
            if not error <= SAME:
                sys.exit(f"{case}: flash and {name} differ by {error:.1e} of the largest value")


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    sides = Sides(case, options)
    calls = dict(sides)
    results = {name: call() for name, call in calls.items() if case.operation != "block-sparse" or "10 %" not in name}
    check_same(case, results)
    del results
    a, b = (torch.randn(2 * (options.product_size,), device=options.device, dtype=torch.bfloat16) for _ in range(2))
    calls["product"] = lambda: a @ b
    flushed = torch.empty(FLUSHED_BYTES if options.device == "cuda" else 1, dtype=torch.uint8, device=options.device)
    for call in calls.values():  # warm
        milliseconds(torch, call, flushed)()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + options.seconds
    while len(times["flash"]) < options.fewest or (time.perf_counter() < end and len(times["flash"]) < options.most):
        started = {name: milliseconds(torch, call, flushed) for name, call in calls.items()}
        for name, read in started.items():
            times[name].append(read())
    heads, batch = options.hidden // case.dim, max(1, options.tokens // case.length)
    flops = Case(case.operation, case.dtype, case.length, case.dim, case.causal, heads * batch).flops
    rates = {"product": 2 * options.product_size**3}
    rows = {}
    for name, values in times.items():
        low, middle, high = quartiles(values)
        rate = rates.get(name, flops) / middle / 1e9
        rows[name] = {"ms": middle, "low": low, "high": high, "tflops": rate, "rounds": len(values)}
        if name not in ("flash", "product"):
            pairs = [other / own for other, own in zip(values, times["flash"], strict=True)]
            rows[name]["of_flash"] = statistics.median(pairs)  # its time over flash's
    return {**vars(case), "batch": batch, "heads": heads, "sides": rows, "left_out": sides.left_out}


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for operation, dim, length, mask in itertools.product(
        options.operations, options.dims, options.lengths, options.masks
    ):
        if operation != "block-sparse" or (length == max(options.lengths) and mask == "full"):
            yield Case(operation, "bfloat16", length, dim, mask == "causal", 0)


def markdown(results: dict[str, Any]) -> str:
    """Rates in TFLOP/s, in brackets the share of the product's; geometric means of the peers' times over flash's."""
    facts = results["machine"]
    lines = [f"{facts['device']}, {facts['date']}, commit {facts['commit']}, PyTorch {facts['torch']}", ""]
    names = list(dict.fromkeys(name for row in results["rows"] for name in row["sides"] if name != "product"))
    lines += [table_row(["case", *names, "product"]), table_row(["---"] * (len(names) + 2))]
    for row in results["rows"]:
        sides, product = row["sides"], row["sides"]["product"]["tflops"]
        cells = []
        for name in names:
            rate = sides[name]["tflops"] if name in sides else None
            cells.append("" if rate is None else f"{rate:.3g} ({rate / product:.0%})")
        case = f"{row['operation']} D {row['dim']} L {row['length']} {'causal' if row['causal'] else 'full'}"
        lines.append(table_row([case, *cells, f"{product:.3g}"]))
    lines += ["", table_row(["operation", *names[1:]]), table_row(["---"] * len(names))]
    for operation in dict.fromkeys(row["operation"] for row in results["rows"]):
        cells = []
        for name in names[1:]:
            rows = [
                row["sides"][name] for row in results["rows"] if row["operation"] == operation and name in row["sides"]
            ]
            mean = math.exp(statistics.fmean(math.log(row["of_flash"]) for row in rows)) if rows else None
            cells.append("" if mean is None else f"{mean:.3g}")
        lines.append(table_row([operation, *cells]))
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time flash beside PyTorch's attention on a GPU, in turn.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--operations", nargs="+", default=["forward", "backward", "block-sparse"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--masks", nargs="+", default=["full", "causal"], choices=["full", "causal"])
    parser.add_argument("--tokens", type=int, default=16384, help="batch x length")
    parser.add_argument("--hidden", type=int, default=2048, help="heads x dim")
    parser.add_argument("--product-size", type=int, default=8192, help="rows and columns of the matrix product")
    parser.add_argument("--fewest", type=int, default=10, help="rounds of a case")
    parser.add_argument("--most", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for a case with more than the fewest rounds")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables for the documents")
    options = parser.parse_args()
    unknown = set(options.operations) - set(FLOPS) - {"block-sparse"}
    if unknown or "forward+backward" in options.operations:
        parser.error("--operations: forward, backward and block-sparse")
    return options


def main() -> None:
    options = parse()
    import torch

    import flash

    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    results: dict[str, Any] = {
        "machine": {
            "device": device,
            "flash": flash.__version__,
            "commit": commit(),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        },
        "rows": [],
    }
    for case in cases(options):
        results["rows"].append(measure(case, options))
        row = results["rows"][-1]
        rates = ", ".join(f"{name} {side['tflops']:.3g}" for name, side in row["sides"].items())
        print(f"{case.operation} D={case.dim} L={case.length} {case.mask}: {rates} TFLOP/s", flush=True)
        if options.output:  # what is there so far, should the time end
            options.output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(markdown(results))
    if options.markdown:
        options.markdown.write_text(markdown(results))


if __name__ == "__main__":
    main()
