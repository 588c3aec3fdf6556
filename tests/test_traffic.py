"""Device memory traffic of the CUDA kernels as the emulator counts it, byte for byte, against formulas (traffic.py).

The rest of the file holds the counts that speed hangs on: shared memory without bank conflicts, the share of
multiplications, instructions that rules and short rows of blocks cost.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import emulated
import numpy
import pytest
from traffic import (
    FORWARD,
    Bytes,
    Calls,
    Case,
    bias_bytes,
    dq_bytes,
    forward_bytes,
    keys_bytes,
    one_pass_bytes,
    prepare_bytes,
    queries_bytes,
    sinks_bytes,
    tensor_keys_bytes,
    tensor_queries_bytes,
    whole_sectors,
)

import flash

pytestmark = pytest.mark.emulated

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
    [case for case in CASES if case.itemsize == 2 and not case.has_blocks and case.Lq > 1],
    ids=lambda case: case.name,
)
def test_bytes_of_bias_on_tensor_cores(case: Case) -> None:
    """Also where head dims are too large for the kernels of the other gradients."""
    calls = Calls(case, with_bias=True)
    pieces, total = bias_bytes(case)
    assert calls.bytes("backward_bias_sm80") == +pieces
    assert ("backward_bias_sum_any" in calls.launches) == bool(total)
    if total:
        assert calls.bytes("backward_bias_sum_any") == +total


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
        assert (explained.bytes_read, explained.bytes_written) == calls.different_bytes(kernels)


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
    launch = Calls(case, with_bias=True).launches["backward_bias_sm80"]
    assert launch["mma"] == 2 * products
    assert launch["bank_conflicts"] == 0


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


# Instructions of a lane for each score, on top of what kernels with options do without any of them: at most, with and
# without tensor cores.
COST_OF_OPTIONS: dict[str, tuple[float, float, dict[str, Any]]] = {
    "bias": (10, 8, {"bias": numpy.zeros((256, 256))}),
    "bias_of_keys": (10, 8, {"bias": numpy.zeros(256)}),
    "mask": (9, 9, {"mask": numpy.ones((256, 256), bool)}),
    "alibi": (13, 11, {"alibi_slopes": numpy.ones(1, "f4")}),
    "softcap": (30, 34, {"softcap": 20.0}),
    "dropout": (56, 57, {"dropout": 0.1, "seed": 1}),
}


@pytest.mark.parametrize(
    ("device", "dtype", "kernels"),
    [
        (emulated.HOPPER, "f2", ["forward_sm90", "backward_sm90"]),
        (emulated.AMPERE, "f2", ["forward_sm80", "backward_sm80"]),
        (emulated.AMPERE, "f4", ["forward_any", "backward_keys_any", "backward_queries_any"]),
    ],
    ids=["hopper", "ampere", "float32"],
)
def test_options_cost_what_they_do(device: int, dtype: str, kernels: list[str]) -> None:
    """And no more: an option that isn't used is not asked about at each score."""

    def array(x: Any) -> Any:
        return emulated.asarray(x.astype(dtype) if x.dtype == numpy.float64 else x)

    def per_score(**options: Any) -> list[float]:
        with emulated.Device(device), emulated.running(checks=emulated.TRAFFIC):
            x = array(numpy.random.default_rng(0).normal(size=(1, 256, 1, 64)))
            arrays = {k: array(v) if isinstance(v, numpy.ndarray) else v for k, v in options.items()}
            emulated.launches()
            o, lse = flash.attention(x, x, x, return_lse=True, **arrays)
            flash.attention_backward(o, x, x, x, o, lse, wrt=("q", "k", "v"), **arrays)
        launches = {re.findall(r"(\w+)<", launch["name"])[0]: launch for launch in emulated.launches()}
        return [launches[kernel]["lane_instructions"] / 256**2 for kernel in kernels]

    none = per_score(scale=-0.125)  # a negative scale is one of the options, too
    for name, (on_tensor_cores, without, options) in COST_OF_OPTIONS.items():
        most = on_tensor_cores if dtype == "f2" else without
        more = [after - before for before, after in zip(none, per_score(**options), strict=True)]
        assert all(1 < x < most for x in more), (name, more)


@pytest.mark.parametrize("dim", [64, 128])
def test_short_rows_of_blocks_leave_warps_idle(dim: int) -> None:
    """Blocks of 32 queries in tiles of 128: the other warps do nothing but the copies."""

    def instructions(block: int) -> float:
        shape = Case("", Lq=256, Lk=256, Hq=1, Hk=1, D=dim, Dv=dim, dtype="float16", block_size=(block, 64))
        calls = Calls(shape)
        listed = int(shape.dense.sum()) * block * 64
        return float(calls.launches["forward_sm80"]["warp_instructions"] / listed)

    assert instructions(32) < 3 * instructions(128)
