"""Device memory traffic of the CUDA kernels: closed formulas, and what the emulator counts to hold against them.

A formula here knows the tiles, who may see whom and which blocks are listed; it is written apart from the planner and
the kernels. Bytes are those that lanes ask for: 32 lanes that read one number count 32 times. test_traffic.py holds
the two together; the formulas of Hopper's kernels are in test_hopper_traffic.py.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import emulated
import numpy

import flash

# ---- The formulas ----------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """As in cuda/configs.h. Rows lie along the kernel's own side; `chunk` numbers of a row come in at a time."""

    rows: int
    columns: int
    down: int
    across: int
    chunk: int

    @property
    def threads(self) -> int:
        return self.down * self.across


FORWARD = {
    64: Tile(64, 64, 8, 8, 64),
    128: Tile(64, 64, 8, 16, 128),
    256: Tile(32, 64, 16, 8, 64),
    576: Tile(32, 64, 16, 16, 64),
}
BACKWARD = {
    64: Tile(64, 64, 16, 8, 64),
    128: Tile(64, 32, 16, 8, 128),
    256: Tile(32, 64, 16, 16, 64),
    576: Tile(32, 32, 16, 16, 64),
}
BIAS = Tile(64, 64, 16, 8, 64)


class TensorTile(NamedTuple):
    """The same on tensor cores: rows shared out among warps, whole rows at a time."""

    rows: int
    warps: int

    @property
    def threads(self) -> int:
        return WARP * self.warps


TENSOR_FORWARD = {64: TensorTile(128, 4), 128: TensorTile(128, 4), 192: TensorTile(128, 8), 256: TensorTile(128, 8)}
SMALL_TENSOR_FORWARD = TENSOR_FORWARD | {256: TensorTile(64, 4)}  # where a block has 99 KiB of shared memory
ONE_PASS = {64: TensorTile(128, 8), 128: TensorTile(128, 8), 192: TensorTile(64, 8), 256: TensorTile(64, 8)}
TENSOR_BACKWARD = {64: TensorTile(128, 8), 128: TensorTile(128, 8), 192: TensorTile(64, 4), 256: TensorTile(64, 4)}
FACTS_USED = 8  # of a query's facts those kernels read delta and lse2 without its second part
GRANULE, STEP = 16, 64  # rows are fetched by 16, from a multiple of 64 on
FACTS = 12  # bytes that the backward keeps of a query: delta, and lse2 in two parts
WARP, PLAIN_THREADS, BIAS_BLOCKS = 32, 256, 512


def down_to(x: int, n: int) -> int:
    return x // n * n


def up_to(x: int, n: int) -> int:
    return -(-x // n) * n


@dataclass(frozen=True)
class Case:
    name: str
    B: int = 1
    Lq: int = 150
    Lk: int = 200
    Hq: int = 2
    Hk: int = 1
    D: int = 64
    Dv: int = 64
    dtype: str = "float32"
    causal: bool = False
    window: tuple[int, int] | None = None
    block_size: tuple[int, int] = (0, 0)  # of a block mask at random, the same for all heads; 0: there is none
    density: float = 0.5  # of the blocks listed
    is_aligned: bool = True  # rows are whole sectors
    softcap: float = 0.0  # any changes how scores are made
    device: int = emulated.AMPERE

    @property
    def itemsize(self) -> int:
        return numpy.dtype(self.dtype).itemsize

    @property
    def is_tensor(self) -> bool:
        """Whether its kernels are those on tensor cores."""
        return self.itemsize == 2 and max(self.D, self.Dv) <= 256

    @property
    def head_dim(self) -> int:
        return next(n for n in (TENSOR_FORWARD if self.is_tensor else FORWARD) if max(self.D, self.Dv) <= n)

    def kernel(self, operation: str) -> str:
        return operation + ("_sm80" if self.is_tensor else "_any")

    @property
    def has_blocks(self) -> bool:
        return self.block_size != (0, 0)

    @property
    def dense(self) -> numpy.ndarray:
        """The listed blocks."""
        grid = [-(-n // block) for n, block in zip((self.Lq, self.Lk), self.block_size, strict=True)]
        listed = numpy.random.default_rng(7).random(grid) < self.density
        listed[:, 0] = True  # every query sees a key
        return listed

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"causal": self.causal, "softcap": self.softcap}
        if self.window is not None:
            options["window"] = self.window
        if self.has_blocks:
            options["block_mask"] = flash.BlockMask.from_dense(self.dense, self.block_size, Lq=self.Lq, Lk=self.Lk)
        return options

    # ---- Who may see whom

    def visible(self) -> numpy.ndarray:
        i, j = numpy.arange(self.Lq)[:, None] + self.Lk - self.Lq, numpy.arange(self.Lk)
        seen = numpy.ones((self.Lq, self.Lk), bool)
        if self.window is not None:
            seen &= (j >= i - self.window[0]) & (j <= i + self.window[1])
        if self.causal:
            seen &= j <= i
        if self.has_blocks:
            bq, bk = self.block_size
            seen &= numpy.kron(self.dense, numpy.ones((bq, bk), bool))[: self.Lq, : self.Lk]
        return seen

    def span(self, begin: int, end: int, axis: int) -> tuple[int, int]:
        """From the first to the last of the other side that [begin, end) of an axis may see, block mask aside."""
        without = Case("", Lq=self.Lq, Lk=self.Lk, causal=self.causal, window=self.window).visible()
        seen = numpy.flatnonzero((without if axis == 0 else without.T)[begin:end].any(axis=0))
        return (int(seen[0]), int(seen[-1]) + 1) if seen.size else (0, 0)

    def step(self, rows: int, axis: int) -> int:
        """Rows of a tile, which never cross a line of blocks and never are more than there are, by granules."""
        step = min(rows, up_to((self.Lq, self.Lk)[axis], GRANULE))
        return min(step, self.block_size[axis]) if self.has_blocks else step


class Met(NamedTuple):
    """What one tile meets on its way along the other side."""

    granules: int
    rows: int  # that are there
    list_reads: int  # by each thread: of starts and of indices
    first_reads: int  # of these, up to the first block

    def steps(self, columns: int) -> int:
        return -(-self.granules * GRANULE // columns)


def met_by(case: Case, begin: int, end: int, axis: int, step: int = STEP, box: int = GRANULE) -> Met:
    """By the tile [begin, end) of queries (axis 0) or keys (axis 1): rows in boxes, from a multiple of `step` on."""
    first, last = case.span(begin, end, axis)
    length = (case.Lk, case.Lq)[axis]
    if first >= last:
        return Met(0, 0, 0, 0)
    if not case.has_blocks:
        starts, list_reads, first_reads = list(range(down_to(first, step), last, box)), 0, 0
    else:
        own, other = case.block_size[axis], case.block_size[1 - axis]
        line = numpy.flatnonzero((case.dense if axis == 0 else case.dense.T)[begin // own])
        first = down_to(first, box)
        low, high, searched = 0, len(line), 0  # for the first block that ends behind `first`
        while low < high:
            middle = (low + high) // 2
            searched += 1
            if (line[middle] + 1) * other <= first:
                low = middle + 1
            else:
                high = middle
        starts = [at for n in line[low:] for at in range(max(n * other, first), min((n + 1) * other, last), box)]
        list_reads, first_reads = 2 + searched + len(line) - low, 2 + searched + min(1, len(line) - low)
    rows = [min(box, length - at) for at in starts]
    return Met(sum(up_to(n, GRANULE) for n in rows) // GRANULE, sum(rows), list_reads, first_reads)


def tiles_of(case: Case, rows: int, axis: int) -> Iterator[tuple[int, int, Met]]:
    length, step = (case.Lq, case.Lk)[axis], case.step(rows, axis)
    for begin in range(0, length, step):
        end = min(begin + step, length)
        yield begin, end, met_by(case, begin, end, axis)


def but_last_chunk(columns: int, chunk: int) -> int:
    """Numbers of a row without those of its last chunk, which is still there from the product before."""
    return down_to(columns - 1, chunk)


Bytes = Counter[str]  # by array, read ("q"), written ("o!") and added to ("workspace+")


def forward_bytes(case: Case) -> Bytes:
    """q once, k and v once for each tile of queries that meets them; o and lse once."""
    tensor = SMALL_TENSOR_FORWARD if case.device == emulated.SMALL else TENSOR_FORWARD
    tile, size = (tensor if case.is_tensor else FORWARD)[case.head_dim], case.itemsize
    heads, n = case.B * case.Hq, Bytes()
    for begin, end, met in tiles_of(case, tile.rows, 0):
        n["q"] += heads * (end - begin) * case.D * size
        n["k"] += heads * met.rows * case.D * size
        n["v"] += heads * met.rows * case.Dv * size
        n["lists"] += heads * met.list_reads * tile.threads * 4
    n["o!"] = heads * case.Lq * case.Dv * size
    n["lse!"] = heads * case.Lq * 4
    return n


def prepare_bytes(case: Case, one_pass: bool = False) -> Bytes:
    """do and o once where something is seen; all lanes of a warp read a row's lse. Sums of dq become 0."""
    rows, seeing = (case.B * case.Hq * n for n in (case.Lq, int(case.visible().any(axis=1).sum())))
    sums = case.B * case.Hq * up_to(case.Lq, GRANULE) * case.head_dim * 4 if one_pass else 0
    n = Bytes({"lse": rows * 4 * WARP, "workspace!": rows * FACTS + sums})
    n["o"] = n["do"] = seeing * case.Dv * case.itemsize
    return n


def keys_bytes(case: Case) -> Bytes:
    """k and v once where a chunk holds a row, q and do twice: for the scores, and for dk and dv."""
    tile, size = BACKWARD[case.head_dim], case.itemsize
    keeps, passes = tile.chunk >= case.head_dim, 1 if case.head_dim <= 256 else 2
    heads, group, n = case.B * case.Hk, case.Hq // case.Hk, Bytes()
    for begin, end, met in tiles_of(case, tile.rows, 1):
        loads = 1 if keeps else passes * group * met.steps(tile.columns)
        n["k"] += heads * (end - begin) * case.D * size * loads
        n["v"] += heads * (end - begin) * case.Dv * size * loads
        rows = heads * group * met.rows
        n["q"] += rows * size * (passes + 1) * case.D
        n["do"] += rows * size * (passes * case.Dv + but_last_chunk(case.Dv, tile.chunk))
        n["workspace"] += rows * FACTS * tile.down * passes
        n["lists"] += heads * group * met.list_reads * tile.threads * 4 * passes
    n["dk!"] = heads * case.Lk * case.D * size
    n["dv!"] = heads * case.Lk * case.Dv * size
    return n


def queries_bytes(case: Case) -> Bytes:
    """q and do once where a chunk holds a row, v for dp, k for s and, but for its last chunk, for dq."""
    tile, size = BACKWARD[case.head_dim], case.itemsize
    keeps, heads, n = tile.chunk >= case.head_dim, case.B * case.Hq, Bytes()
    for begin, end, met in tiles_of(case, tile.rows, 0):
        steps = met.steps(tile.columns)
        n["q"] += heads * (end - begin) * case.D * size * (1 if keeps else steps)
        n["do"] += heads * (end - begin) * case.Dv * size * (1 if keeps else steps)
        n["k"] += heads * met.rows * size * (case.D + but_last_chunk(case.D, tile.chunk))
        n["v"] += heads * met.rows * size * case.Dv
        n["workspace"] += heads * (end - begin) * steps * FACTS * tile.across
        n["lists"] += heads * met.list_reads * tile.threads * 4
    n["dq!"] = heads * case.Lq * case.D * size
    return n


def tensor_keys_bytes(case: Case) -> Bytes:
    """k and v once, q and do once for each tile of keys that meets them; twice where dk and dv are summed apart."""
    tile, size, passes = TENSOR_BACKWARD[case.head_dim], case.itemsize, 1 if case.head_dim <= 128 else 2
    heads, group, n = case.B * case.Hk, case.Hq // case.Hk, Bytes()
    for begin, end, met in tiles_of(case, tile.rows, 1):
        rows = heads * group * met.rows * passes
        n["k"] += heads * (end - begin) * case.D * size * passes
        n["v"] += heads * (end - begin) * case.Dv * size * passes
        n["q"] += rows * case.D * size
        n["do"] += rows * case.Dv * size
        n["workspace"] += rows * FACTS_USED
        n["lists"] += heads * group * met.list_reads * tile.threads * 4 * passes
    n["dk!"] = heads * case.Lk * case.D * size
    n["dv!"] = heads * case.Lk * case.Dv * size
    return n


def tensor_queries_bytes(case: Case) -> Bytes:
    """q and do once, k and v once for each tile of queries that meets them; four lanes share a query."""
    tile, size = TENSOR_BACKWARD[case.head_dim], case.itemsize
    heads, n = case.B * case.Hq, Bytes()
    for begin, end, met in tiles_of(case, tile.rows, 0):
        n["q"] += heads * (end - begin) * case.D * size
        n["do"] += heads * (end - begin) * case.Dv * size
        n["k"] += heads * met.rows * case.D * size
        n["v"] += heads * met.rows * case.Dv * size
        n["workspace"] += heads * (end - begin) * FACTS_USED * 4
        n["lists"] += heads * met.list_reads * tile.threads * 4
    n["dq!"] = heads * case.Lq * case.D * size
    return n


def one_pass_bytes(case: Case) -> Bytes:
    """k and v once, q and do once for each tile of keys that meets them, and then dq is added to in memory."""
    tile, size = ONE_PASS[case.head_dim], case.itemsize
    heads, group, n = case.B * case.Hk, case.Hq // case.Hk, Bytes()
    for begin, end, met in tiles_of(case, tile.rows, 1):
        n["k"] += heads * (end - begin) * case.D * size
        n["v"] += heads * (end - begin) * case.Dv * size
        n["q"] += heads * group * met.rows * case.D * size
        n["do"] += heads * group * met.rows * case.Dv * size
        n["workspace"] += heads * group * met.rows * FACTS_USED
        n["workspace+"] += heads * group * met.granules * GRANULE * up_to(case.D, 8) * 4
        n["lists"] += heads * group * met.list_reads * tile.threads * 4
    n["dk!"] = heads * case.Lk * case.D * size
    n["dv!"] = heads * case.Lk * case.Dv * size
    return n


def dq_bytes(case: Case) -> Bytes:
    rows = case.B * case.Hq * case.Lq
    return Bytes({"workspace": rows * up_to(case.D, 8) * 4, "dq!": rows * case.D * case.itemsize})


def bias_bytes(case: Case) -> tuple[Bytes, Bytes]:
    """Of a float32 bias of shape (Lq, Lk): the kernel of its pieces, and the one that adds their splits."""
    size, heads, n = case.itemsize, case.B * case.Hq, Bytes()
    for begin in range(0, case.Lq, BIAS.rows):
        end = min(begin + BIAS.rows, case.Lq)
        low, high = case.span(begin, end, 0)
        for first in range(0, case.Lk, BIAS.columns):
            last = min(high, first + BIAS.columns, case.Lk)
            if max(low, first) >= last:
                continue
            keys = min(case.Lk, up_to(last, GRANULE)) - first
            n["q"] += heads * (end - begin) * case.D * size
            n["do"] += heads * (end - begin) * case.Dv * size
            n["k"] += heads * keys * case.D * size
            n["v"] += heads * keys * case.Dv * size
            facts = FACTS_USED * 4 if size == 2 else FACTS * BIAS.across  # for each lane that has scores of a query
            n["workspace"] += heads * (end - begin) * facts
    n["bias"] = heads * int(case.visible().sum()) * 4
    pieces = -(-case.Lq // BIAS.rows) * -(-case.Lk // BIAS.columns)
    splits = min(heads, -(-BIAS_BLOCKS // pieces))
    if splits == 1:
        n["dbias!"] = case.Lq * case.Lk * 4
        return n, Bytes()
    n["workspace!"] = splits * pieces * BIAS.rows * BIAS.columns * 4
    return n, Bytes({"workspace": splits * case.Lq * case.Lk * 4, "dbias!": case.Lq * case.Lk * 4})


def sinks_bytes(case: Case) -> Bytes:
    """What is kept of each query once; all threads of a head read its sink."""
    rows = case.B * case.Hq * case.Lq
    return Bytes({"workspace": rows * FACTS, "sinks": case.Hq * PLAIN_THREADS * 4, "dsinks!": case.Hq * 4})


# ---- The counts ------------------------------------------------------------------------------------------------------


class Calls:
    """A forward and a backward on emulated arrays of a case, and what was counted."""

    def __init__(
        self, case: Case, with_bias: bool = False, with_sinks: bool = False, deterministic: bool = False
    ) -> None:
        with emulated.Device(case.device):
            self.run(case, with_bias, with_sinks, deterministic)

    def run(self, case: Case, with_bias: bool, with_sinks: bool, deterministic: bool) -> None:
        rng = numpy.random.default_rng(3)

        def array(*shape: int, dtype: str = case.dtype) -> emulated.ndarray:
            return emulated.asarray(rng.normal(size=shape).astype(dtype))

        if "cupy" not in sys.modules:
            emulated.install()
        q, do = (array(case.B, case.Lq, case.Hq, n) for n in (case.D, case.Dv))
        k, v = (array(case.B, case.Lk, case.Hk, n) for n in (case.D, case.Dv))
        options = case.options()
        self.arrays = {"q": q, "k": k, "v": v, "do": do}
        if with_bias:
            options["bias"] = self.arrays["bias"] = array(case.Lq, case.Lk, dtype="float32")
        if with_sinks:
            options["sinks"] = self.arrays["sinks"] = array(case.Hq, dtype="float32")
        self.explained = [
            flash.explain(q, k, v, backward=backward, deterministic=deterministic, **options)
            for backward in (False, True)
        ]
        emulated.launches()
        with emulated.running(checks=emulated.TRAFFIC):
            o, lse = flash.attention(q, k, v, return_lse=True, **options)
            gradients = flash.attention_backward(do, q, k, v, o, lse, deterministic=deterministic, **options)
        self.arrays |= {"o": o, "lse": lse}
        for name in ("dq", "dk", "dv", "dbias", "dsinks"):
            if (gradient := getattr(gradients, name)) is not None:
                self.arrays[name] = gradient
        self.launches = {re.findall(r"(\w+)<", launch["name"])[0]: launch for launch in emulated.launches()}

    def traffic(self, kernel: str) -> dict[str, dict[str, Any]]:
        """By array; `workspace` and `lists` are what the library allocates itself."""
        names = {array.host.__array_interface__["data"][0]: name for name, array in self.arrays.items()}
        kinds = {"uint8": "workspace", "int32": "lists"}
        found: dict[str, dict[str, Any]] = {}
        for buffer in self.launches[kernel]["buffers"]:
            # Memory of the library's own was freed, so that an array may lie there since.
            name = kinds.get(buffer["name"].split()[-1]) or names[buffer["address"]]
            before = found.setdefault(name, Counter())
            before.update({key: value for key, value in buffer.items() if isinstance(value, int)})
        return found

    def bytes(self, kernel: str) -> Bytes:
        counted = Bytes()
        for name, buffer in self.traffic(kernel).items():
            counted[name] = buffer["read_bytes"]
            counted[name + "!"] = buffer["written_bytes"]
            counted[name + "+"] = buffer["atomic_bytes"]
            # Every byte of a result is written, and once.
            assert buffer["written_twice_bytes"] == 0
            assert buffer["written_unique_bytes"] == buffer["written_bytes"]
            if name in ("o", "lse", "dq", "dk", "dv", "dbias", "dsinks") and buffer["written_bytes"]:
                assert buffer["written_bytes"] == self.arrays[name].host.nbytes
        return +counted

    def requested_bytes(self, kernels: list[str]) -> tuple[int, int]:
        """Read and written by kernels but for block lists, in sectors of 32 bytes of each warp's access."""
        buffers = [x for kernel in kernels for name, x in self.traffic(kernel).items() if name != "lists"]
        read, written, added = (
            sum(x[key] for x in buffers) for key in ("read_sectors", "written_sectors", "atomic_bytes")
        )
        return 32 * read, 32 * written + added

    def different_bytes(self, kernels: list[str]) -> tuple[int, int]:
        """Of the caller's arrays, that kernels have read and written: each once, as if all came from a cache again."""
        read, written = Counter[str](), Counter[str]()
        for kernel in kernels:
            for name, buffer in self.traffic(kernel).items():
                if name not in ("workspace", "lists"):
                    read[name] = max(read[name], buffer["read_unique_bytes"])
                    written[name] = max(written[name], buffer["written_unique_bytes"])
        return read.total(), written.total()


def whole_sectors(case: Case, calls: Calls) -> None:
    """Rows go to and fro in sectors of which every byte is used."""
    if not case.is_aligned:
        return
    for kernel in calls.launches:
        for name, buffer in calls.traffic(kernel).items():
            if name in ("q", "k", "v", "do", "o", "dq", "dk", "dv"):
                assert buffer["read_sectors"] * 32 == buffer["read_bytes"], (kernel, name)
                assert buffer["written_sectors"] * 32 == buffer["written_bytes"], (kernel, name)
