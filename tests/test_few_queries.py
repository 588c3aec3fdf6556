"""Few queries and many keys, as when a model writes: kernels may split keys into pieces and pack heads into tiles."""

from __future__ import annotations

import numpy
import pytest
from numeric import assert_same_bits, check, to_numpy
from problems import DTYPES, Case, Shape

import flash

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
    kv_lens = problem.options["kv_lens"] = numpy.array([3100, 100, 2000])

    def attention(of):
        q, k, v = (backend.array(x[of]) for x in problem.qkv)
        options = {"kv_lens": backend.array(kv_lens[of]), "sinks": backend.array(problem.options["sinks"])}
        return to_numpy(backend, flash.attention(q, k, v, **options, return_lse=True))

    o, lse = attention(slice(None))
    for b in range(3):
        assert_same_bits(attention(slice(b, b + 1)), (o[b : b + 1], lse[b : b + 1]))
