#!/usr/bin/env python
"""Memory traffic of a call on a GPU, as Nsight Compute reads it, beside what `flash.explain` predicts.

    ncu --csv --print-units base --log-file traffic.csv --kernel-name regex:flash --metrics METRICS \
        python asv_bench/traffic_cuda.py --length 4096
    python asv_bench/traffic_cuda.py --length 4096 --read traffic.csv

The first command makes one forward and one backward under the profiler, the second reads what it wrote; METRICS is what
`--metrics` prints. docs/gpu.md says what the numbers mean. `--device cpu` runs the same call where there is no GPU.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

# What Nsight Compute counts: bytes of device memory, and sectors of 32 bytes of the L2 cache.
DRAM = {"dram__bytes_read.sum": "read", "dram__bytes_write.sum": "written"}
L2 = {
    "lts__t_sectors_op_read.sum": "read",
    "lts__t_sectors_op_write.sum": "written",
    "lts__t_sectors_op_red.sum": "written",  # sums of dq
    "lts__t_sectors_op_atom.sum": "written",
}
SECTOR = 32


class Call:
    """The inputs of a problem, run or explained."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        import flash

        self.flash, generator = flash, torch.Generator(options.device).manual_seed(1)
        kind = {"generator": generator, "device": options.device, "dtype": getattr(torch, options.dtype)}
        shape = options.batch, options.length, options.heads, options.dim
        self.q, self.k, self.v, self.do = (torch.randn(shape, **kind) for _ in range(4))
        self.options: dict[str, Any] = {"causal": options.causal}
        if options.density < 1:
            mask = flash.BlockMask.random(options.length, options.length, 128, density=options.density, seed=1)
            self.options["block_mask"] = mask.to(self.q)

    def run(self) -> None:
        arrays = self.q, self.k, self.v
        o, lse = self.flash.attention(*arrays, return_lse=True, **self.options)
        self.flash.attention_backward(self.do, *arrays, o, lse, **self.options)

    def explained(self, operation: str) -> Any:
        return self.flash.explain(self.q, self.k, self.v, backward=operation == "backward", **self.options)


def read(text: str) -> dict[str, Counter[str]]:
    """Bytes by operation and what they are ("dram read"), from ncu's output, whose first lines are messages."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError("there is no table in it: was it written by ncu --csv --log-file?")
    found = {"forward": Counter[str](), "backward": Counter[str]()}
    for row in csv.DictReader(lines[start:]):
        metric, kernel = row["Metric Name"], row["Kernel Name"]
        operation = "forward" if "forward_" in kernel else "backward"
        value = float(row["Metric Value"].replace(",", ""))
        if metric in DRAM:
            found[operation]["dram " + DRAM[metric]] += round(value)
        elif metric in L2:
            found[operation]["L2 " + L2[metric]] += round(value) * SECTOR
    return found


def table(call: Call, counted: dict[str, Counter[str]]) -> str:
    lines = ["| | memory read | written | L2 read | written |", "| --- | --- | --- | --- | --- |"]
    names = [f"{where} {what}" for where in ("dram", "L2") for what in ("read", "written")]
    for operation, bytes_ in counted.items():
        told = call.explained(operation)
        predicted = told.bytes_read, told.bytes_written, told.requested_bytes_read, told.requested_bytes_written
        rows = {"counted": [bytes_[name] for name in names], "predicted": predicted}
        for name, values in rows.items():
            cells = ["-" if value is None else f"{value / 2**20:.1f} MiB" for value in values]
            lines.append(f"| {operation}, {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory traffic on a GPU beside what flash.explain predicts.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--density", type=float, default=1.0, help="below 1: of a random block mask, blocks of 128")
    parser.add_argument("--read", type=Path, metavar="FILE", help="run nothing: read what ncu wrote")
    parser.add_argument("--metrics", action="store_true", help="print what to ask ncu for")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.metrics:
        print(",".join([*DRAM, *L2]))
        return
    call = Call(options)
    if options.read is None:
        call.run()
        return
    try:
        print(table(call, read(options.read.read_text())))
    except (OSError, ValueError) as error:
        sys.exit(f"--read: {error}")


if __name__ == "__main__":
    main()
