"""python -m flash demo: attention at work at growing lengths, checked, beside standard attention.

At each length three operations run on random arrays, on a GPU where flash can use one, else on the CPU:

    forward        o = attention(q, k, v)
    gradients      forward and backward: o, dq, dk, dv
    block-sparse   o with a sliding window and some global blocks

flash.reference does the same beside it, by standard attention in the same dtype. A row passes when its largest error
against float64 is at most twice that of standard attention on the same inputs, plus 2 ulp of the largest value.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy

import flash
from flash import reference
from flash._measure import Progress, free_bytes, limited, peak, seconds, size, time_of
from flash._options import whole
from flash.arrays import numpy_dtype

Array: TypeAlias = Any
OPERATIONS = ("forward", "gradients", "block-sparse")

_LENGTHS, _QUICK_LENGTHS = (512, 1024, 2048, 4096, 8192), (128, 256, 512)
_LEAST_LENGTH = 64  # fewer numbers are too few to compare the largest of two roundings
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}
_BLOCK_SIZE, _WINDOW, _GLOBAL_BLOCKS = 64, 128, 1
_SAMPLED_ROWS = 64  # queries whose results are checked
_CHECK_ROWS = 256  # queries that a check of all gradients works on at once
_CHECK_LENGTH = 8192  # up to here dk and dv are checked; they need all queries, in time quadratic in the length
_BUDGET, _QUICK_BUDGET = 45.0, 12.0  # seconds that a run plans with
_STANDARD_SHARE = 5.0  # seconds that one run of standard attention may take
_REPEAT = 0.1  # seconds in which a run that is shorter is repeated
# Before anything is measured: seconds a score takes in standard attention, in flash and in the checks (2 cores, plain
# loops), and score matrices that standard attention holds at its peak.
_SLOW = {"standard": 6e-8, "flash": 3e-8, "check": 6e-8}
_MATRICES = {"forward": 4.1, "gradients": 5.1, "block-sparse": 4.2}


@dataclass
class Row:
    """What was found at one length for one operation. Times in seconds, memory in bytes beside the inputs."""

    length: int
    operation: str
    time: float | str = "-"
    memory: int | None = None
    standard_time: float | str = "-"  # or why there is none
    standard_memory: int | None = None
    errors: list[tuple[float, float, bool]] = field(default_factory=list)  # of arrays: flash's, standard's, passed

    @property
    def passed(self) -> bool | None:
        """Whether every check passed; None where nothing was checked."""
        return all(passed for _, _, passed in self.errors) if self.errors else None

    def __str__(self) -> str:
        ours, standard = (
            f"{numpy.max([errors[n] for errors in self.errors]):.1e}" if self.errors else "-" for n in (0, 1)
        )
        check = {True: "PASS", False: "FAIL", None: "-"}[self.passed]
        return (
            f"{self.length:>7}  {self.operation:<12}  {seconds(self.time):>13}  {seconds(self.standard_time):>13}  "
            f"{size(self.memory):>9}  {size(self.standard_memory):>9}  {ours:>7}  {standard:>8}  {check}"
        )


_TITLE = (
    f"{'time':>36}{'memory':>26}{'error':>20}\n"
    f"{'length':>7}  {'operation':<12}  {'flash':>13}  {'standard':>13}  {'flash':>9}  {'standard':>9}  {'flash':>7}  "
    f"{'standard':>8}  check"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demonstration and leave Python: 0 if every check passed, 1 if not, 130 after Ctrl-C."""
    options = _parse(arguments)
    progress = Progress(3 * len(options.lengths) * len(OPERATIONS))
    try:
        sys.exit(run(options, progress))
    except KeyboardInterrupt:
        progress.clear()
        print("flash demo: interrupted", file=sys.stderr)
        sys.exit(130)


def run(options: argparse.Namespace, progress: Progress) -> int:
    """The whole demonstration; the exit status."""
    xp, about = best_device()
    print(about)
    print(
        f"flash {flash.__version__}, {options.dtype}, {options.heads} heads of {options.dim}; gradients take forward "
        "and backward. Standard attention is\nflash.reference in the same dtype. Memory is what the inputs don't hold: "
        "flash's results and workspace, standard\n"
        f"attention's peak as {'CuPy' if xp is not numpy else 'tracemalloc'} measures it. Errors are the largest "
        f"against float64.\n\n{_TITLE}",
        flush=True,
    )
    demo = Demo(options, xp, progress)
    rows = []
    for length in options.lengths:
        for row in demo.rows_at(length):
            progress.clear()
            print(row, flush=True)
            rows.append(row)
    progress.clear()
    print()
    if any(row.length > _CHECK_LENGTH and row.passed is not None for row in rows):
        print(f"Above length {_CHECK_LENGTH} only dq is checked of the gradients.")
    if options.output is not None:
        print(save_picture(rows, options.output))
    print(summary(rows))
    return 0 if any(row.passed for row in rows) and not any(row.passed is False for row in rows) else 1


def best_device() -> tuple[Any, str]:
    """CuPy or NumPy, whichever is the fastest that flash can use here, and a sentence about it."""
    why = "no GPU is used: CuPy is not installed"
    try:
        import cupy

        x = cupy.ones((1, 1, 16), numpy.float32)
        flash.attention(x, x, x)
        name = cupy.cuda.runtime.getDeviceProperties(x.device.id)["name"].decode()
        return cupy, f"Running on {name}."
    except ImportError:
        pass
    except flash.UnsupportedError as error:
        why = f"no GPU is used: {error}"
    except Exception as error:  # whatever a broken driver makes CuPy raise
        why = f"no GPU is used: CuPy fails with {type(error).__name__}"
    cpu = (flash.show_config(mode="dicts") or {})["cpu"]
    return numpy, f"Running on the CPU ({cpu['path']}, {cpu['threads']} threads); {why}."


@dataclass
class Demo:
    """Runs the operations one after the other, and remembers how long each took to predict the next ones."""

    options: argparse.Namespace
    xp: Any
    progress: Progress
    start: float = field(default_factory=time.perf_counter)
    rates: dict[tuple[str, str], float] = field(default_factory=dict)  # seconds a score, by (who, operation)

    def rows_at(self, length: int) -> Iterator[Row]:
        """The rows of one length, each when it is finished."""
        options, xp = self.options, self.xp
        random = numpy.random.default_rng([options.seed, length])
        dtype = numpy_dtype(options.dtype)
        shape = (length, options.heads, options.dim)
        q, k, v, do = (xp.asarray(random.standard_normal(shape, numpy.float32).astype(dtype)) for _ in range(4))
        blocks = flash.BlockMask.local_global(length, length, _BLOCK_SIZE, (_WINDOW, _WINDOW), _GLOBAL_BLOCKS)
        yield self.row("forward", length, (q, k, v), None)
        yield self.row("gradients", length, (q, k, v), do)
        yield self.row("block-sparse", length, (q, k, v), None, blocks)

    def row(
        self,
        operation: str,
        length: int,
        qkv: tuple[Array, ...],
        do: Array | None,
        blocks: flash.BlockMask | None = None,
    ) -> Row:
        """One operation: flash, standard attention, and the check."""
        row = Row(length, operation)
        options: dict[str, Any] = {} if blocks is None else {"block_mask": blocks}
        results: list[Array] = []

        def by_flash() -> None:
            results[:] = []
            if do is None:
                results[:] = [flash.attention(*qkv, **options)]
            else:
                o, vjp = flash.attention_vjp(*qkv, **options)
                results[:] = [o, *vjp(do)[:3]]

        def by_standard() -> None:
            if do is None:
                reference.attention(*qkv, **options)
            else:  # computes the forward, too
                reference.attention_backward(do, *qkv, **options)

        left = (self.options.seconds - (time.perf_counter() - self.start)) / 2
        self.progress.step(f"{length} {operation}: flash")
        row.time, _ = self.timed("flash", row, by_flash, left)
        if not isinstance(row.time, str):
            workspace = flash.workspace_bytes(*qkv, **options)
            if do is not None:
                workspace = max(workspace, flash.workspace_bytes(*qkv, backward=True, **options))
            lse_bytes = 0 if do is None else 4 * self.options.heads * length
            row.memory = workspace + lse_bytes + sum(x.nbytes for x in results)

        self.progress.step(f"{length} {operation}: standard attention")
        row.standard_time, row.standard_memory = self.timed("standard", row, by_standard, min(left, _STANDARD_SHARE))

        self.progress.step(f"{length} {operation}: check")
        if results:
            begin = time.perf_counter()
            if do is None:
                self.check_rows(row, qkv, results[0], blocks)
            elif self.predict("check", row) < left and length <= _CHECK_LENGTH:
                self.check_gradients(row, qkv, do, results[1:])
                self.rates["check", operation] = (time.perf_counter() - begin) / (length * length)
            else:
                self.check_dq(row, qkv, do, results[1])
        return row

    def timed(self, who: str, row: Row, call: Callable[[], None], most: float) -> tuple[float | str, int | None]:
        """The best time of some runs and the first one's peak memory, or why there is none."""
        if self.predict(who, row) > most:
            return "too slow", None
        limit = self.options.memory_limit
        if who == "standard" and limit is None:
            matrices = _MATRICES[row.operation] * self.options.heads * row.length**2 * 4
            if matrices > free_bytes(self.xp):
                return "out of memory", None
        try:
            with limited(self.xp, limit if who == "standard" else None):
                with peak(self.xp) as most_bytes:
                    best = total = time_of(self.xp, call)
                while total < _REPEAT:
                    again = time_of(self.xp, call)
                    best, total = min(best, again), total + again
        except MemoryError:
            gc.collect()
            return "out of memory", None
        self.rates[who, row.operation] = best / (row.length * row.length)
        return best, most_bytes[0]

    def predict(self, who: str, row: Row) -> float:
        """Seconds, from the last length: all that is slow grows with its square."""
        rate: float = self.rates.get((who, row.operation), _SLOW[who] * self.options.heads)
        return rate * row.length * row.length

    def check_rows(self, row: Row, qkv: tuple[Array, ...], o: Array, blocks: flash.BlockMask | None) -> None:
        """Some rows of o, all heads."""
        q, k, v = qkv
        rows = _sample(row.length)
        seen = None
        if blocks is not None:
            seen = self.xp.asarray(blocks.to_dense()[rows // _BLOCK_SIZE][:, numpy.arange(row.length) // _BLOCK_SIZE])
        rows = self.xp.asarray(rows)
        want, standard = (
            reference.attention(q[rows], k, v, mask=seen, dtype=dtype) for dtype in (numpy.float64, q.dtype)
        )
        self.judge(row, o[rows], want, standard)

    def check_gradients(self, row: Row, qkv: tuple[Array, ...], do: Array, gradients: list[Array]) -> None:
        """dq, dk and dv of the last head, in full. Standard attention gets some rows at a time: dk and dv are sums."""
        head = [x[:, -1:] for x in (do, *qkv)]

        def gradients_in(dtype: Any) -> list[Array]:
            dq, dk, dv = [], 0.0, 0.0
            for begin in range(0, row.length, _CHECK_ROWS):
                some = slice(begin, begin + _CHECK_ROWS)
                part = reference.attention_backward(head[0][some], head[1][some], *head[2:], dtype=dtype)
                dq.append(_wide(part.dq))
                dk, dv = dk + _wide(part.dk), dv + _wide(part.dv)
            return [self.xp.concatenate(dq), dk, dv]

        for got, want, standard in zip(
            gradients, gradients_in(numpy.float64), gradients_in(head[0].dtype), strict=True
        ):
            self.judge(row, got[:, -1:], want, standard)

    def check_dq(self, row: Row, qkv: tuple[Array, ...], do: Array, dq: Array) -> None:
        """Some rows of dq, all heads."""
        q, k, v = qkv
        rows = self.xp.asarray(_sample(row.length))
        want, standard = (
            reference.attention_backward(do[rows], q[rows], k, v, wrt=("q",), dtype=dtype).dq
            for dtype in (numpy.float64, q.dtype)
        )
        self.judge(row, dq[rows], want, standard)

    def judge(self, row: Row, got: Array, want: Array, standard: Array) -> None:
        """Adds one array to what the row says about errors."""
        error, standard_error = (float(abs(_wide(x) - want).max()) for x in (got, standard))
        ulp = _EPSILON[self.options.dtype] * 2.0 ** math.floor(math.log2(float(abs(want).max())))
        row.errors.append((error, standard_error, error <= 2 * standard_error + 2 * ulp))  # False for NaN


def save_picture(rows: Sequence[Row], path: Path) -> str:
    """Time and memory against length, where matplotlib is there; says what became of it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "No picture: matplotlib is not installed."
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    for axes, name, unit in zip(figure.subplots(1, 2), ("time", "memory"), ("seconds", "MiB"), strict=True):
        for number, operation in enumerate(OPERATIONS):
            for who, style in (("", "o-"), ("standard_", "s--")):
                points = [
                    (row.length, value / (1 if name == "time" else 2**20))
                    for row in rows
                    if row.operation == operation and isinstance(value := getattr(row, who + name), (int, float))
                ]
                label = f"{'standard' if who else 'flash'}, {operation}"
                axes.loglog(*zip(*points, strict=True), style, color=f"C{number}", label=label) if points else None
        axes.set(xlabel="length", ylabel=unit, title=f"{name} beside the inputs" if name == "memory" else name)
        lengths = sorted({row.length for row in rows})
        axes.set_xticks(lengths, [str(length) for length in lengths], rotation=45)
        axes.set_xticks([], minor=True)
        axes.grid(True, which="both", alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        return f"No picture: {path} can't be written ({error})."
    return f"Picture: {path}"


def summary(rows: Sequence[Row]) -> str:
    """The last line: how many checks passed, and the comparison at the greatest length that both ran."""
    checked = [row for row in rows if row.passed is not None]
    text = f"flash demo: {sum(row.passed is True for row in checked)} of {len(checked)} checks passed"
    both = [row for row in rows if row.operation == "forward" and isinstance(row.standard_time, float)]
    if both and isinstance(both[-1].time, float) and both[-1].memory and both[-1].standard_memory:
        last = both[-1]
        text += (
            f"; at length {last.length} the forward took {seconds(last.time)} where standard attention took "
            f"{seconds(last.standard_time)}, and {size(last.memory)} where it took {size(last.standard_memory)}"
        )
    return text + "."


def _sample(length: int) -> Array:
    """Some rows from the first to the last."""
    return numpy.unique(numpy.linspace(0, length - 1, _SAMPLED_ROWS).astype(int))


def _wide(x: Array) -> Array:
    return x.astype(numpy.float64)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flash demo", description="Attention at work at growing lengths, beside standard attention."
    )
    add = parser.add_argument
    lengths = f"at least {_LEAST_LENGTH}, default: {' '.join(map(str, _LENGTHS))}"
    add("--lengths", type=whole(_LEAST_LENGTH), nargs="+", metavar="N", help=lengths)
    add("--heads", type=whole(1), default=4, metavar="N", help="default: %(default)s")
    add("--dim", type=whole(1), default=64, metavar="N", help="size of a head, default: %(default)s")
    add("--dtype", choices=list(_EPSILON), default="float32", help="default: %(default)s")
    add("--seed", type=whole(0), default=0, help="of the random inputs, default: %(default)s")
    add("--output", type=Path, default=Path("flash-demo.png"), metavar="FILE", help="picture, default: %(default)s")
    add("--no-picture", dest="output", action="store_const", const=None, help="draw none")
    add("--memory-limit", type=whole(1), metavar="MIB", help="memory that standard attention may take; default: all")
    add("--quick", action="store_true", help=f"a few seconds: lengths {' '.join(map(str, _QUICK_LENGTHS))}")
    options = parser.parse_args(arguments)
    options.lengths = sorted(set(options.lengths or (_QUICK_LENGTHS if options.quick else _LENGTHS)))
    options.seconds = _QUICK_BUDGET if options.quick else _BUDGET
    if options.memory_limit is not None:
        options.memory_limit <<= 20
    try:
        numpy_dtype(options.dtype)
    except flash.FlashTypeError:
        parser.error(f"argument --dtype: {options.dtype} needs the package ml_dtypes")
    return options
