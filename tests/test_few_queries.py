"""Few queries and many keys, as when a model writes: kernels may split keys into pieces and pack heads into tiles."""

from __future__ import annotations

import numpy
import pytest
from numeric import assert_same_bits, check, run_on
from problems import DTYPES, Case, Problem, Shape

# Query heads over key heads: alone, three to one, eight to one.
HEADS = [(2, 2), (3, 1), (8, 1)]
OPTIONS = [
    (),
    ("causal",),
    ("kv_lens", "sinks"),
    ("window", "q_lens"),
    ("softcap", "dropout", "bias_of_keys"),
    ("block_mask",),
]


@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: f"{heads[0]}-{heads[1]}")
@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
@pytest.mark.in_turn("dtype", "Lq")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("Lq", [1, 3, 17, 64])
def test_pieces(backend, options, heads, dtype, Lq):
    """Of 1536 keys, where there are any: one piece, two, and a short third one."""
    for Lk in (1500, 1600, 3100):
        if Lq * Lk * heads[0] < 1.2e6:
            check(Case(Shape((1,), Lq, Lk, *heads, 16, 24), dtype, options), backend, backward=False)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_batch(backend, dtype):
    """Neither on how many sequences there are, nor on the keys of the others."""
    problem = Case(Shape((3,), 2, 3100, 4, 1, 16, 16), dtype, ("kv_lens", "sinks")).make()
    problem.options["kv_lens"] = numpy.array([3100, 100, 2000])
    o, lse, _ = run_on(backend, problem)
    for b in range(3):
        options = {**problem.options, "kv_lens": problem.options["kv_lens"][b : b + 1]}
        q, k, v, do, dlse = (x[b : b + 1] for x in (*problem.qkv, problem.do, problem.dlse))
        alone = run_on(backend, Problem(q, k, v, do, dlse, options))
        assert_same_bits(alone[:2], (o[b : b + 1], lse[b : b + 1]))
