"""Device memory traffic of the CUDA kernels as the emulator counts it, byte for byte, against closed formulas.

A formula here knows the tiles, who may see whom and which blocks are listed; it is written apart from the planner and
the kernels. Bytes are those that lanes ask for: 32 lanes that read one number count 32 times. The rest of the file
holds the counts that speed hangs on: whole sectors, shared memory without bank conflicts, the share of multiplications.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import emulated
import numpy
import pytest

import flash

pytestmark = pytest.mark.emulated


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
        options: dict[str, Any] = {"causal": self.causal}
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

    def steps(self, columns: int) -> int:
        return -(-self.granules * GRANULE // columns)


def met_by(case: Case, begin: int, end: int, axis: int) -> Met:
    """By the tile [begin, end) of queries (axis 0) or keys (axis 1)."""
    first, last = case.span(begin, end, axis)
    length = (case.Lk, case.Lq)[axis]
    if first >= last:
        return Met(0, 0, 0)
    if not case.has_blocks:
        starts = list(range(down_to(first, STEP), last, GRANULE))
        return Met(len(starts), min(length, up_to(last, GRANULE)) - starts[0], 0)
    own, other = case.block_size[axis], case.block_size[1 - axis]
    line = numpy.flatnonzero((case.dense if axis == 0 else case.dense.T)[begin // own])
    first = down_to(first, GRANULE)
    low, high, searched = 0, len(line), 0  # for the first block that ends behind `first`
    while low < high:
        middle = (low + high) // 2
        searched += 1
        if (line[middle] + 1) * other <= first:
            low = middle + 1
        else:
            high = middle
    starts = [at for n in line[low:] for at in range(max(n * other, first), min((n + 1) * other, last), GRANULE)]
    rows = sum(min(GRANULE, length - at) for at in starts)
    return Met(len(starts), rows, 2 + searched + len(line) - low)


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
            n["workspace"] += heads * (end - begin) * FACTS * BIAS.across
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
            name = names.get(buffer["address"]) or kinds[buffer["name"].split()[-1]]
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


CASES = [
    Case("dense"),
    Case("one_row", Lq=1, Lk=1),
    Case("whole_tiles", Lq=128, Lk=192, Hq=1),
    Case("heads_and_batches", B=2, Lq=70, Lk=130, Hq=4, Hk=2),
    Case("causal", causal=True),
    Case("causal_more_queries", Lq=200, Lk=130, causal=True),
    Case("window", Lq=300, Lk=300, Hq=1, window=(70, 20)),
    Case("small_blocks", block_size=(16, 32)),
    Case("large_blocks", Lq=300, Lk=400, Hq=1, block_size=(128, 64)),
    Case("causal_blocks", Lq=200, Lk=200, block_size=(32, 16), causal=True),
    Case("float16", dtype="float16"),
    Case("float16_one_row", dtype="float16", Lq=1, Lk=1),
    Case("float16_heads_and_batches", dtype="float16", B=2, Lq=70, Lk=130, Hq=4, Hk=2),
    Case("float16_causal", dtype="float16", Lq=300, Lk=330, Hq=1, causal=True),
    Case("float16_window", dtype="float16", Lq=300, Lk=300, Hq=1, window=(70, 20)),
    Case("float16_small_blocks", dtype="float16", block_size=(16, 32)),
    Case("float16_large_blocks", dtype="float16", Lq=300, Lk=400, Hq=1, block_size=(128, 64)),
    Case("float16_dim_128", dtype="float16", D=128, Dv=96, causal=True),
    Case("float16_dim_192", dtype="float16", D=192, Dv=128),
    Case("float16_dim_256", dtype="float16", D=256, Dv=256, Hq=1),
    Case("float16_dim_64_small", dtype="float16", causal=True, device=emulated.SMALL),
    Case("float16_dim_256_small", dtype="float16", D=256, Dv=192, Hq=1, device=emulated.SMALL),
    Case("float16_rows_of_10_bytes", dtype="float16", D=5, Dv=5, is_aligned=False),
    Case("float16_dim_320", dtype="float16", Lq=70, Lk=100, D=320, Dv=64),
    Case("narrow_rows", D=40, Dv=24),
    Case("rows_of_20_bytes", D=5, Dv=5, is_aligned=False),
    Case("dim_128", D=128, Dv=128, causal=True),
    Case("dim_128_blocks", D=128, Dv=128, block_size=(64, 64)),
    Case("dim_256", D=256, Dv=256, Hq=1),
    Case("dim_200_96", D=200, Dv=96, causal=True),
    Case("dim_576_512", Lq=70, Lk=100, D=576, Dv=512, Hq=2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bytes(case: Case) -> None:
    calls = Calls(case, deterministic=True)
    assert calls.bytes(case.kernel("forward")) == +forward_bytes(case)
    assert calls.bytes("backward_prepare_any") == +prepare_bytes(case)
    keys, queries = (tensor_keys_bytes, tensor_queries_bytes) if case.is_tensor else (keys_bytes, queries_bytes)
    assert calls.bytes(case.kernel("backward_keys")) == +keys(case)
    assert calls.bytes(case.kernel("backward_queries")) == +queries(case)
    whole_sectors(case, calls)


@pytest.mark.parametrize("case", [case for case in CASES if case.is_tensor], ids=lambda case: case.name)
def test_bytes_of_one_pass(case: Case) -> None:
    calls = Calls(case)
    has_one = case.device != emulated.SMALL or case.head_dim == 64
    assert ("backward_sm80" in calls.launches) == has_one
    if has_one:
        assert calls.bytes("backward_prepare_any") == +prepare_bytes(case, one_pass=True)
        assert calls.bytes("backward_sm80") == +one_pass_bytes(case)
        assert calls.bytes("backward_dq_sm80") == +dq_bytes(case)
        whole_sectors(case, calls)
        if case.is_aligned and case.Lq > 1:  # whole sectors of the sums, too
            read = calls.traffic("backward_dq_sm80")["workspace"]
            assert read["read_sectors"] * 32 == read["read_bytes"]


def test_bytes_fall_as_tiles_grow() -> None:
    """The law of the paper, N^2 d^2 / M: a tile of queries takes memory M in proportion to its rows, and k and v are
    read once for each tile. Blocks of a mask that lists all of them make tiles of as many rows."""
    L, D, read = 512, 64, {}
    for rows in (16, 32, 64, 128):
        case = Case("", Lq=L, Lk=L, Hq=1, Hk=1, D=D, Dv=D, dtype="float16", block_size=(rows, 64), density=1.0)
        counted = Calls(case).bytes("forward_sm80")
        read[rows] = counted["k"] + counted["v"]
        assert read[rows] == L // rows * L * (D + D) * 2
    page = (Path(__file__).parent.parent / "docs/forward_sm80.md").read_text()
    listed = re.findall(r"^\| (\d+) \| (\d+) KiB \| 1 / (\d+) \|$", page, re.MULTILINE)
    assert {int(rows): int(kib) * 1024 for rows, kib, _ in listed} == read
    assert {int(rows): read[16] // read[int(rows)] for rows, _, _ in listed} == {int(r): int(n) for r, _, n in listed}


def whole_sectors(case: Case, calls: Calls) -> None:
    """Rows go to and fro in sectors of which every byte is used."""
    if not case.is_aligned:
        return
    for kernel in calls.launches:
        for name, buffer in calls.traffic(kernel).items():
            if name in ("q", "k", "v", "do", "o", "dq", "dk", "dv"):
                assert buffer["read_sectors"] * 32 == buffer["read_bytes"], (kernel, name)
                assert buffer["written_sectors"] * 32 == buffer["written_bytes"], (kernel, name)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in ("dense", "causal", "heads_and_batches")],
    ids=lambda case: case.name,
)
def test_bytes_of_bias_and_sinks(case: Case) -> None:
    calls = Calls(case, with_bias=True, with_sinks=True)
    pieces, total = bias_bytes(case)
    pairs = case.B * case.Hq * int(case.visible().sum()) * 4
    tile = FORWARD[case.head_dim]
    tasks = case.B * case.Hq * -(-case.Lq // tile.rows)
    more = Bytes({"bias": pairs, "sinks": tasks * tile.threads * 4})
    assert calls.bytes("forward_any") == +(forward_bytes(case) + more)
    assert calls.bytes("backward_keys_any") == +(keys_bytes(case) + Bytes({"bias": pairs}))
    assert calls.bytes("backward_queries_any") == +(queries_bytes(case) + Bytes({"bias": pairs}))
    assert calls.bytes("backward_bias_any") == +pieces
    assert calls.bytes("backward_bias_sum_any") == +total
    assert calls.bytes("backward_sinks_any") == +sinks_bytes(case)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if not case.has_blocks and case.name != "causal_more_queries"],
    ids=lambda case: case.name,
)
def test_explain_predicts_what_must_move(case: Case) -> None:
    """explain counts every element once, as if what is read again came from a cache: the different bytes touched.

    Block lists on the device aren't read by it, and queries that see nothing are fetched all the same.
    """
    calls = Calls(case)
    for explained, kernels in zip(calls.explained, ([case.kernel("forward")], [*calls.launches][1:]), strict=True):
        read, written = Counter[str](), Counter[str]()
        for kernel in kernels:
            for name, buffer in calls.traffic(kernel).items():
                if name not in ("workspace", "lists"):
                    read[name] = max(read[name], buffer["read_unique_bytes"])
                    written[name] = max(written[name], buffer["written_unique_bytes"])
        assert (explained.bytes_read, explained.bytes_written) == (read.total(), written.total())


# ---- What speed hangs on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [64, 128])
def test_multiplications_and_bank_conflicts(dim: int) -> None:
    """Over whole launches, so that the loop over tiles has a larger share still."""
    calls = Calls(Case("", Lq=512, Lk=512, Hq=1, D=dim, Dv=dim))
    for kernel in ("forward_any", "backward_keys_any", "backward_queries_any"):
        launch = calls.launches[kernel]
        assert launch["opcodes"]["fma"] > 0.65 * launch["warp_instructions"], kernel
        assert launch["bank_conflicts"] == 0, kernel


@pytest.mark.parametrize("dim", [64, 128, 192, 256])
def test_tensor_cores_and_bank_conflicts(dim: int) -> None:
    """Each product once for each tile of scores, and operands from shared memory without conflicts."""
    case = Case("", Lq=256, Lk=256, Hq=1, Hk=1, D=dim, Dv=dim, dtype="float16")
    products = 256 * 256 * dim // (16 * 8 * 16)
    keys = 4 if dim <= 128 else 6  # s and dp once more where dk and dv are summed apart
    for deterministic, counts in (
        (False, {"forward_sm80": 2, "backward_sm80": 5}),
        (True, {"forward_sm80": 2, "backward_keys_sm80": keys, "backward_queries_sm80": 3}),
    ):
        calls = Calls(case, deterministic=deterministic)
        for kernel, number in counts.items():
            launch = calls.launches[kernel]
            assert launch["mma"] == number * products
            assert launch["bank_conflicts"] == 0, kernel


@pytest.mark.parametrize("dim", [64, 128])
def test_rules_cost_at_the_edge_only(dim: int) -> None:
    """A causal problem pays for its mask where the mask cuts a tile: a step there is dearer than one without."""

    def steps(**options: Any) -> dict[str, float]:
        """Instructions of a tile of 64 x 64 scores."""
        calls = Calls(Case("", Lq=512, Lk=512, Hq=1, Hk=1, D=dim, Dv=dim, dtype="float16", **options))
        tiles = 8 * 8 if not options else 8 * 9 / 2
        return {name: calls.launches[name]["warp_instructions"] / tiles for name in ("forward_sm80", "backward_sm80")}

    full, causal = steps(), steps(causal=True)
    for name, instructions in full.items():
        # 8 of 36 tiles are cut, and a tile of 128 rows meets some that lie beyond the diagonal.
        assert instructions < causal[name] < 1.6 * instructions, (name, full, causal)


@pytest.mark.parametrize("dim", [64, 128])
def test_short_rows_of_blocks_leave_warps_idle(dim: int) -> None:
    """Blocks of 32 queries in tiles of 128: the other warps do nothing but the copies."""

    def instructions(block: int) -> float:
        shape = Case("", Lq=256, Lk=256, Hq=1, Hk=1, D=dim, Dv=dim, dtype="float16", block_size=(block, 64))
        calls = Calls(shape)
        listed = int(shape.dense.sum()) * block * 64
        return float(calls.launches["forward_sm80"]["warp_instructions"] / listed)

    assert instructions(32) < 3 * instructions(128)
