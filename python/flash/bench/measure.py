"""Measuring one case: every side is checked, then all are timed in turn.

A round times flash and then each peer, so that a machine that is busy at times, or changes its clock, slows all of
them; each round gives a ratio of times, and their median and quartiles are the result. A product of two large matrices
is timed in the same rounds: rates are stated as a share of it.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy

from flash._measure import Progress, free_bytes, seconds, size
from flash.bench.case import Case
from flash.bench.libraries import LIBRARIES, Array, Call, Missing, NumPy, first_line
from flash.bench.peers import FLASH, PEERS, Peer

Results: TypeAlias = dict[str, Any]

# Largest difference from flash's result, as a share of its largest value: both must do the same work.
SAME = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}
# On the CPU a sample is as many calls as take this long, and as long passes before it: by then the threads of the side
# before, which wait busily for some milliseconds, have come to rest.
SHORT = 0.005
FEWEST = {"cpu": 3, "cuda": 10}  # samples of a side
MATRICES = 5.1  # of scores that standard attention holds at its peak


@dataclass
class Side:
    """A call that is timed."""

    library: NumPy
    call: Call
    once: float = 0.0  # seconds of a call, roughly
    samples: list[float] = field(default_factory=list)
    spent: float = 0.0

    @classmethod
    def of(cls, library: NumPy, call: Call) -> Side:
        """Knows how long the call takes; it has run before."""
        side = cls(library, call, library.start(call)())
        if side.once < SHORT:
            side.once = min(library.start(call)() for _ in range(3))
        return side

    def start(self) -> Callable[[], None]:
        """Starts a sample; what is returned takes it down."""
        begin = time.perf_counter()
        count = 1
        if self.library.device == "cpu":
            count = max(1, math.ceil(SHORT / max(self.once, 1e-7)))
            self.settle()
        reading = self.library.start(self.call, count)
        self.spent += time.perf_counter() - begin

        def read() -> None:
            begin = time.perf_counter()
            self.samples.append(reading())
            self.spent += time.perf_counter() - begin

        return read

    def settle(self) -> None:
        """Lets SHORT seconds pass: with calls that don't count where they are that short."""
        end = time.perf_counter() + SHORT
        if self.once >= SHORT:
            time.sleep(SHORT)
        while time.perf_counter() < end:
            self.library.wait(self.call())


class Session:
    """What cases have in common: the options, the libraries, and what was found too slow."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self.options, self.progress = options, progress
        self.libraries: dict[str, NumPy | str] = {}  # or why there is none
        self.too_slow: dict[tuple[str, str, str], int] = {}  # from which work on, by (peer, operation, dtype)
        self.arrays: dict[tuple[str, bool], list[Array]] = {}  # of the case at hand
        self.interrupted = False

    def library(self, name: str) -> NumPy:
        """An array library on the device; raises Missing."""
        if name not in self.libraries:
            try:
                self.libraries[name] = LIBRARIES[name](self.options.device)
            except Missing as missing:
                self.libraries[name] = str(missing)
        found = self.libraries[name]
        if isinstance(found, str):
            raise Missing(found)
        return found

    def load(self) -> list[NumPy]:
        """The libraries that the sides need and that are there."""
        needed = [self.options.array, "numpy", *(PEERS[name].library or "numpy" for name in self.options.peers)]
        for name in dict.fromkeys(needed):
            try:
                self.library(name)
            except Missing:
                pass
        return [library for library in self.libraries.values() if isinstance(library, NumPy)]

    def measure(self, case: Case) -> Results | None:
        """The row of a case. None where Ctrl-C came before the first sample."""
        left_out: dict[str, str] = {}
        different: list[str] = []
        sides: dict[str, Side] = {}
        product: tuple[str, Side] | None = None
        try:
            wanted = self.add("flash", FLASH, case, sides, left_out)
            if wanted is not None:
                for name in self.options.peers:
                    peer = PEERS[name]
                    if peer.is_dense and case.density is None:
                        continue
                    given = self.add(name, peer, case, sides, left_out)
                    if given and not peer.is_dense and (why := difference(wanted, given, SAME[case.dtype])):
                        del sides[name]
                        left_out[name] = why
                        different.append(name)
                with reason("product", left_out):
                    product = self.product(case.dtype)
                self.progress.tell(f"{len(sides)} sides in turn")
                self.rounds({**sides, **({"product": product[1]} if product else {})}, left_out)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.arrays.clear()
        ours = sides["flash"].samples if sides else []
        if self.interrupted and not ours:
            return None
        listed = case.blocks.density if sides and case.blocks is not None else None
        row: Results = {**asdict(case), "listed": listed, "sides": {}}
        for name, side in sides.items():
            if side.samples:
                flops = case.flops(blocks=name != "flash-dense")
                row["sides"][name] = statistics_of(side.samples, flops, None if name == "flash" else ours)
            elif name not in left_out:
                left_out[name] = "interrupted"
        row["product"] = None
        if product and product[1].samples:
            dtype, side = product
            cubed = 2 * self.options.product_size**3
            row["product"] = {"dtype": dtype, **statistics_of(side.samples, cubed, None)}
            for found in row["sides"].values():
                found["share_of_product"] = round(found["gflops"] / row["product"]["gflops"], 4)
        return {**row, "left_out": left_out, "different": different}

    def add(
        self, name: str, peer: Peer, case: Case, sides: dict[str, Side], left_out: dict[str, str]
    ) -> list[Array] | None:
        """Makes a side ready. Returns its results in float32 and flash's layout; None where it is left out."""
        self.progress.tell(name)
        with reason(name, left_out):
            if peer.device not in (None, self.options.device):
                raise Missing(f"only on {'CUDA' if peer.device == 'cuda' else 'the CPU'}")
            library = self.library(peer.library or self.options.array)
            key, work = (name, case.operation, case.dtype), case.scores * case.head_dim
            if work >= self.too_slow.get(key, work + 1):
                raise Missing("too slow, as a smaller case has shown")
            self.check_memory(peer, case)
            arrays = self.arrays_of(case, library, peer.heads_first)

            call = library.call_of(peer.make(case, library, 0.0), case.operation, *arrays)
            results = [library.to_numpy(x) for x in call()]
            if case.dropout:  # each library drops others: only without it results are the same
                call = library.call_of(peer.make(case, library, case.dropout), case.operation, *arrays)
                library.wait(call())
            side = Side.of(library, call)
            if name != "flash" and side.once > self.options.limit:
                self.too_slow[key] = work
                raise Missing(f"too slow: {seconds(side.once)} a call")
            sides[name] = side
            return [x.swapaxes(1, 2) for x in results] if peer.heads_first else results
        return None

    def check_memory(self, peer: Peer, case: Case) -> None:
        """Linux would kill the process rather than refuse memory on the CPU."""
        if self.options.device == "cpu":
            needed = 2 * case.input_bytes + (int(MATRICES * 4 * case.scores) if peer.has_scores else 0)
            if needed > (free := free_bytes(numpy)):
                raise Missing(f"out of memory: needs about {size(needed)} of {size(free)}")

    def arrays_of(self, case: Case, library: NumPy, heads_first: bool) -> list[Array]:
        """q, k, v and do in a library's arrays, made once for a case."""
        key = library.name, heads_first
        if key not in self.arrays:
            values = case.inputs()
            if heads_first:
                values = [numpy.ascontiguousarray(x.swapaxes(1, 2)) for x in values]
            self.arrays[key] = [library.array(x, case.dtype) for x in values]
        return self.arrays[key]

    def product(self, dtype: str) -> tuple[str, Side]:
        """The matrix product that rates in a dtype are a share of, and its own dtype.

        PyTorch's on the CPU where it is installed: NumPy has none in 16 bits. CPUs work on float16 in float32.
        """
        library = self.library(self.options.array)
        if self.options.device == "cpu":
            try:
                library = self.library("torch")
            except Missing:
                pass
            if dtype == "float16" or library.name == "numpy":
                dtype = "float32"
        call = library.product(self.options.product_size, dtype)
        library.wait(call())
        return dtype, Side.of(library, call)

    def rounds(self, sides: dict[str, Side], left_out: dict[str, str]) -> None:
        """Times all sides in turn. One leaves when its time is spent; flash is there in every round."""
        gc.disable()
        try:
            for done in range(self.options.rounds):
                active = [
                    name
                    for name, side in sides.items()
                    if name not in left_out
                    and (
                        len(side.samples) == done
                        and (done < FEWEST[self.options.device] or side.spent + side.once < self.options.seconds)
                    )
                ]
                if not active or "flash" in left_out:
                    break
                reads = {}
                for name in dict.fromkeys(["flash", *active]):
                    with reason(name, left_out):
                        reads[name] = sides[name].start()
                for name, read in reads.items():
                    with reason(name, left_out):
                        read()
        finally:
            gc.enable()


@contextmanager
def reason(name: str, left_out: dict[str, str]) -> Iterator[None]:
    """Takes down why a side can't go on, whatever it raises."""
    has_failed = False
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            yield
    except Missing as missing:
        left_out[name] = str(missing)
    except MemoryError:
        left_out[name] = "out of memory"
        has_failed = True
    except Exception as error:
        text = f"{type(error).__name__}: {first_line(error)}"
        if heard and "No available kernel" in text:  # PyTorch says in warnings why
            text = str(heard[-1].message).split(" (Triggered internally")[0]
        left_out[name] = text
        has_failed = True
    if has_failed:
        gc.collect()  # what the exception's frames held


def difference(wanted: list[Array], given: list[Array], same: float) -> str | None:
    """Why results are not the same, or None. Gradients have one scale: that of a single key's scores is 0."""
    largest = max(float(abs(x).max()) for x in wanted)
    for one, other in zip(wanted, given, strict=True):
        if one.shape != other.shape:
            return f"differs: shape {other.shape}, flash's is {one.shape}"
        error = float(abs(one - other).max())
        if not error <= same * largest:
            return f"differs from flash by {error / largest:.1e} of the largest value"
    return None


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower one, the median, the upper one."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def statistics_of(samples: list[float], flops: int, ours: list[float] | None) -> Results:
    """What is stored of a side; ours: flash's samples of the same rounds, which come first."""
    low, middle, high = quartiles(samples)
    found: Results = {
        "seconds": short(middle),
        "quartiles": [short(low), short(high)],
        "gflops": round(flops / middle / 1e9, 3),
    }
    if ours is not None:
        low, middle, high = quartiles([one / other for one, other in zip(samples, ours, strict=False)])
        found |= {"ratio": round(middle, 4), "ratio_quartiles": [round(low, 4), round(high, 4)]}
    return {**found, "samples": [short(x) for x in samples]}


def short(value: float) -> float:
    """To five digits."""
    return float(f"{value:.5g}")
