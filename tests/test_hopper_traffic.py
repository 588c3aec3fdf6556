"""Device memory traffic of Hopper's kernels as the emulator counts it, byte for byte, against closed formulas.

Rows come by boxes, of which the bytes inside of the tensor count, whether anyone asks for the row or not; one thread
reads the lists of blocks. Below: what explain says, matrix instructions, shared memory without bank conflicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import emulated
import hopper_tiles
import pytest
from hopper_tiles import DEPTH, PANEL, WARPGROUP_ROWS, Tile
from traffic import GRANULE, Bytes, Calls, Case, Met, dq_bytes, met_by, prepare_bytes, up_to, whole_sectors

pytestmark = pytest.mark.emulated

FACTS_USED = 8  # bytes of a query: lse2 and delta
PIECE = 1536  # keys that go together where queries are few
WARP, WARPS = 32, 4  # lanes; warps of a warpgroup
Tiles = dict[tuple[int, bool], Tile]


class Built(NamedTuple):
    """The kernel of a case, the head dim that it is built for, and its tile."""

    kernel: str
    head_dim: int
    tile: Tile


def built(kernel: str, case: Case, tiles: Tiles) -> Built:
    head_dim = next(n for n, _ in tiles if max(case.D, case.Dv) <= n)
    return Built(kernel, head_dim, tiles[head_dim, case.softcap != 0])


def built_forward(case: Case) -> Built:
    """Keys longer than values have one of their own."""
    found = built("forward_sm90", case, hopper_tiles.FORWARD)
    if found.head_dim == 192 and case.Dv <= 128 and case.softcap == 0:
        return built("forward_narrow_sm90", case, hopper_tiles.FORWARD_NARROW)
    return found


def built_backward(case: Case) -> Built:
    found = built("backward_sm90", case, BACKWARD)
    return found if found.head_dim <= 128 else found._replace(kernel="backward_wide_sm90")


def tiles_of(case: Case, tile: Tile, axis: int, heads: int = 1) -> Iterator[tuple[int, int, Met]]:
    """First and last row of each tile of queries (axis 0) or keys (axis 1), and what it meets; a block of the mask is
    halved until it is a tile. Rows are `heads` heads of a query in turn."""
    length, step = (case.Lq, case.Lk)[axis] * heads, case.block_size[axis] or tile.rows
    while step > tile.rows:
        step //= 2
    step = min(step, up_to(length, GRANULE))
    box = math.gcd(tile.columns, case.block_size[1 - axis])
    for begin in range(0, length, step):
        first, last = begin // heads, (min(begin + step, length) - 1) // heads
        yield begin, length, met_by(case, first, last + 1, axis, tile.columns, box)


def heads_in_a_tile(case: Case, tile: Tile) -> int:
    """Those that share keys, a power of two of them, where a tile has more rows than there are queries."""
    heads, group = 1, case.Hq // case.Hk
    if case.Lq < tile.rows and not case.has_blocks and case.softcap == 0:
        while group % (2 * heads) == 0 and 2 * heads <= WARPGROUP_ROWS:
            heads *= 2
    return heads


def forward_bytes(case: Case) -> Bytes:
    """A box of q for each tile of queries, boxes of k and v for what it meets; o and lse once."""
    tile = built_forward(case).tile
    together = heads_in_a_tile(case, tile)
    size, heads, n = case.itemsize, case.B * case.Hq // together, Bytes()
    for begin, length, met in tiles_of(case, tile, 0, together):
        n["q"] += heads * min(tile.rows, length - begin) * case.D * size
        n["k"] += heads * met.rows * case.D * size
        n["v"] += heads * met.rows * case.Dv * size
        n["lists"] += heads * met.list_reads * 4
    n["o!"] = case.B * case.Hq * case.Lq * case.Dv * size
    n["lse!"] = case.B * case.Hq * case.Lq * 4
    return n


def pieces_bytes(case: Case) -> tuple[Bytes, Bytes]:
    """Where keys come in pieces, all seen: the results of each, in float32, instead of o and lse; and their merging, in
    which all lanes of a warp read each lse, after one of them that looks for the largest."""
    pieces, rows = -(-case.Lk // PIECE), case.B * case.Hq * case.Lq
    whole = forward_bytes(case)
    n = Bytes({"k": whole["k"], "v": whole["v"], "q": whole["q"] * pieces})
    n["workspace!"] = pieces * rows * (case.Dv + 1) * 4
    merged = Bytes({"workspace": pieces * rows * (case.Dv + 1 + WARP) * 4, "o!": whole["o!"], "lse!": whole["lse!"]})
    return n, merged


BACKWARD = hopper_tiles.BACKWARD | hopper_tiles.BACKWARD_WIDE


def backward_bytes(case: Case) -> Bytes:
    """A box of k and of v for each tile of keys; q, do and their facts for what it meets, and dq is added to in memory,
    16 rows at a time, of which the kernel for wide rows adds the columns that there are. Lists are read by the thread
    that fetches rows and by who fetches facts, at first a warp."""
    _, head_dim, tile = built_backward(case)
    dq_columns = head_dim if head_dim <= 128 else up_to(case.D, 8)
    size, heads, group, n = case.itemsize, case.B * case.Hk, case.Hq // case.Hk, Bytes()
    for begin, length, met in tiles_of(case, tile, 1):
        n["k"] += heads * min(tile.rows, length - begin) * case.D * size
        n["v"] += heads * min(tile.rows, length - begin) * case.Dv * size
        n["q"] += heads * group * met.rows * case.D * size
        n["do"] += heads * group * met.rows * case.Dv * size
        n["workspace"] += heads * group * met.rows * FACTS_USED
        n["workspace+"] += heads * group * met.granules * GRANULE * dq_columns * 4
        n["lists"] += heads * group * (2 * met.list_reads + (WARP - 1) * met.first_reads) * 4
    n["dk!"] = heads * case.Lk * case.D * size
    n["dv!"] = heads * case.Lk * case.Dv * size
    return n


def hopper(name: str, **of_case: object) -> Case:
    return Case(name, **{"dtype": "float16", "device": emulated.HOPPER, **of_case})  # type: ignore[arg-type]


CASES = [
    hopper("one_row", Lq=1, Lk=1),
    hopper("off_the_tiles", Lq=330, Lk=300),
    hopper("whole_tiles", Lq=384, Lk=256, Hq=1),
    hopper("heads_and_batches", B=2, Lq=70, Lk=130, Hq=4, Hk=2),
    hopper("causal", Lq=300, Lk=330, Hq=1, causal=True),
    hopper("causal_more_queries", Lq=400, Lk=130, causal=True),
    hopper("window", Lq=450, Lk=450, Hq=1, window=(70, 20)),
    hopper("options", Lq=200, Lk=210, causal=True, softcap=2.0),
    hopper("blocks_of_64", Lq=300, Lk=400, block_size=(64, 64)),
    hopper("large_blocks", Lq=520, Lk=400, Hq=1, block_size=(256, 128)),
    hopper("causal_blocks", Lq=300, Lk=300, Hq=1, block_size=(64, 128), causal=True),
    hopper("blocks_with_options", Lq=300, Lk=300, Hq=1, block_size=(128, 64), softcap=2.0),
    hopper("narrow_rows", D=48, Dv=32),
    hopper("few_queries", B=2, Lq=3, Lk=700, Hq=12, Hk=1, causal=True),
    hopper("few_queries_in_tiles", Lq=170, Lk=200, Hq=8, Hk=1, D=128, Dv=128, causal=True),
    hopper("dim_96", D=96, Dv=80, Lq=200, Lk=300, causal=True),
    hopper("dim_128", D=128, Dv=96, Lq=200, Lk=300, causal=True),
    hopper("dim_128_options", D=128, Dv=128, Lq=140, softcap=2.0),
    hopper("dim_192", D=192, Dv=192),
    hopper("dim_192_narrow", D=192, Dv=128, Lq=300, Lk=330, causal=True),
    hopper("dim_160_narrow", D=160, Dv=96, B=2, Lq=5, Lk=300, Hq=4, causal=True),
    hopper("dim_192_narrow_options", D=192, Dv=128, softcap=2.0),
    hopper("dim_192_heads", B=2, D=144, Dv=192, Hq=4, Hk=2, Lq=70, Lk=290, causal=True),
    hopper("dim_192_blocks", D=192, Dv=160, Lq=300, Lk=400, block_size=(64, 128)),
    hopper("dim_256", D=256, Dv=256, Hq=1),
    hopper("dim_256_blocks", D=208, Dv=256, Hq=1, Lq=200, Lk=200, block_size=(128, 64), causal=True),
    hopper("dim_256_options", D=256, Dv=200, Hq=1, Lk=100, softcap=2.0, is_aligned=False),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_bytes(case: Case) -> None:
    calls = Calls(case)
    forward, backward = built_forward(case).kernel, built_backward(case).kernel
    assert calls.bytes(forward) == +forward_bytes(case)
    assert calls.bytes("backward_prepare_any") == +prepare_bytes(case, one_pass=True)
    assert calls.bytes(backward) == +backward_bytes(case)
    assert calls.bytes("backward_dq_sm80") == +dq_bytes(case)
    kernels = ["backward_prepare_any", backward, "backward_dq_sm80"]
    assert [*calls.launches] == [forward, *kernels]
    whole_sectors(case, calls)


@pytest.mark.parametrize("Lk", [1600, 3072, 3100])
@pytest.mark.parametrize("dim", [64, 128])
def test_bytes_of_pieces(dim: int, Lk: int) -> None:
    case = hopper("", B=2, Lq=5, Lk=Lk, Hq=4, Hk=1, D=dim, Dv=dim, causal=True)
    calls = Calls(case)
    for_pieces, for_all = pieces_bytes(case)
    assert calls.bytes("forward_sm90") == for_pieces
    assert calls.bytes("forward_pieces_sm90") == for_all
    explained = calls.explained[0]
    kernels = ["forward_sm90", "forward_pieces_sm90"]
    assert (explained.bytes_read, explained.bytes_written) == calls.different_bytes(kernels)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if not case.has_blocks and case.name != "causal_more_queries"],
    ids=lambda case: case.name,
)
def test_explain_predicts_what_must_move(case: Case) -> None:
    """The different bytes touched; explain reads no lists, and queries that see nothing are fetched all the same."""
    calls = Calls(case)
    forward, backward = calls.explained
    kernels = [*calls.launches]
    assert (forward.bytes_read, forward.bytes_written) == calls.different_bytes(kernels[:1])
    assert (backward.bytes_read, backward.bytes_written) == calls.different_bytes(kernels[1:])


@pytest.mark.parametrize("softcap", [0.0, 2.0], ids=["plain", "options"])
@pytest.mark.parametrize("dims", [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)])
def test_matrix_instructions_and_bank_conflicts(dims: tuple[int, int], softcap: float) -> None:
    """Each product once for each tile of scores; registers go to and from shared memory without conflicts."""
    L = 384  # whole tiles of every kernel, but for keys at 256 in the backward
    case = hopper("", Lq=L, Lk=L, Hq=1, Hk=1, D=dims[0], Dv=dims[1], softcap=softcap)
    calls = Calls(case)
    for kernel, head_dim, tile in (built_forward(case), built_backward(case)):
        along_rows, along_columns = head_dim // DEPTH, tile.columns // DEPTH
        if kernel.startswith("forward"):  # s, and p v
            products = along_rows + along_columns
        elif kernel == "backward_sm90":
            # s and dp, dv and dk; dq over the keys of both warpgroups, half of the queries or of the head dim each
            products = 2 * along_rows + 2 * along_columns + tile.rows // DEPTH
        else:  # s and dp of half the keys; dv or dk, 64 numbers of the head dim at a time; dq, half of it in two parts
            products = 2 * along_rows + head_dim // PANEL * along_columns + 2 * tile.rows // DEPTH
        launch = calls.launches[kernel]
        steps = -(-L // tile.rows) * (L // tile.columns)
        assert launch["wgmma"] == WARPS * tile.warpgroups * steps * products
        assert launch["mma"] == 0 and launch["bank_conflicts"] == 0, kernel


@pytest.mark.parametrize("dim", [64, 128, 192])
def test_rules_cost_at_the_edge_only(dim: int) -> None:
    """A causal problem pays for its mask where the mask cuts a tile: a step there is dearer than one without."""

    def steps(causal: bool) -> dict[str, float]:
        """Instructions of a tile of 64 x 64 scores."""
        case = hopper("", Lq=768, Lk=768, Hq=1, Hk=1, D=dim, Dv=dim, causal=causal)
        calls = Calls(case)
        tiles = 12 * 13 / 2 if causal else 12 * 12
        kernels = built_forward(case).kernel, built_backward(case).kernel
        return {name: calls.launches[name]["warp_instructions"] / tiles for name in kernels}

    full, causal = steps(False), steps(True)
    for name, instructions in full.items():
        assert instructions < causal[name] < 2 * instructions, (name, full, causal)
