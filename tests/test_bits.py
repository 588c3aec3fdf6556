"""Bit for bit: repeats, numbers of threads, and what else is in the batch change nothing."""

import numpy
import pytest
import threadpoolctl
from numeric import assert_same_bits, run, run_on, to_numpy
from problems import DTYPES, OPTIONS, Case, Problem, Shape

import flash

LARGE = Shape((2,), 150, 300, 4, 2, 32, 32)  # several tasks of each phase, and work for several threads


def at(problem, index):
    """The problem of some sequences of the batch."""
    options = {}
    for name, x in problem.options.items():
        batched = isinstance(x, numpy.ndarray) and x.shape[:1] == problem.q.shape[:1] and name not in ("sinks", "seed")
        options[name] = x[index] if batched else x
    return Problem(*(x[index] for x in (*problem.qkv, problem.do, problem.dlse)), options)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats(backend, dtype):
    shape = backend.smaller(LARGE, N=(), Lq=100, Lk=150, Hq=2, Hk=1)
    problem = Case(shape, dtype, ("causal", "bias", "sinks", "dropout")).make()
    wanted = run_on(backend, problem, deterministic=True)
    for order in backend.orders():
        with order:
            assert_same_bits(run_on(backend, problem, deterministic=True), wanted)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("options", [(), ("causal",), ("window", "kv_lens")], ids="-".join)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_over_many_tiles(backend, dtype, options):
    """Three tiles of keys add to the same dq at the least: of two, the order makes no difference."""
    problem = Case(Shape((), 20, 420, 1, 1, 16, 16), dtype, options).make()
    for device in backend.devices():
        with device:
            wanted = run_on(backend, problem, deterministic=True)
            for order in backend.orders():
                with order:
                    assert_same_bits(run_on(backend, problem, deterministic=True), wanted)


@pytest.mark.parametrize("options", [(), ("bias", "sinks"), ("block_mask_of_heads", "causal", "bias_of_keys")], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads(dtype, options):
    """One thread or more than there are cores, one head or several, forward and backward."""
    for shape in (LARGE, Shape((), 300, 530, 1, 1, 32, 32)):
        problem = Case(shape, dtype, options).make()
        results = []
        for count in (1, 2, 3, 5):
            with threadpoolctl.threadpool_limits(count, "openmp"):
                assert flash.show_config("dicts")["cpu"]["threads"] == count
                results.append(run(problem))
        for other in results[1:]:
            assert_same_bits(other, results[0], f"{shape}")


# Its lists of blocks are those of all sequences.
BY_SEQUENCE = [option for option in OPTIONS if option != "block_mask_of_batch"]


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", BY_SEQUENCE)
def test_a_sequence_does_not_depend_on_the_batch(backend, option, dtype):
    """Alone or among five: the same bits. (dropout depends on the place in the batch; the first one's is its own.)"""
    shape = backend.smaller(Shape((5,), 70, 140, 4, 2, 16, 16), N=(3,), Lq=33, Lk=70, Hq=2, Hk=1)
    problem = Case(shape, dtype, (option,)).make()
    o, lse, g = run_on(backend, problem, deterministic=True)
    for n in range(1 if option.startswith("dropout") else shape.N[0]):
        one = slice(n, n + 1)
        alone_o, alone_lse, alone = run_on(backend, at(problem, one), deterministic=True)
        assert_same_bits((alone_o, alone_lse), (o[one], lse[one]))
        assert_same_bits(tuple(alone[:3]), tuple(x[one] for x in g[:3]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_does_not_depend_on_the_others(backend, dtype):
    shape = backend.smaller(Shape((2,), 150, 300, 6, 2, 16, 16), N=(1,), Lq=70, Lk=90)
    problem = Case(shape, dtype, ("causal", "bias", "alibi", "sinks")).make()
    o, lse, g = run_on(backend, problem, deterministic=True)
    for kv_head in range(2):
        heads, kv = slice(3 * kv_head, 3 * kv_head + 3), slice(kv_head, kv_head + 1)
        part = Problem(
            problem.q[..., heads, :], problem.k[..., kv, :], problem.v[..., kv, :], problem.do[..., heads, :],
            problem.dlse[:, heads], {**problem.options, "bias": problem.options["bias"][:, heads]},
        )  # fmt: skip
        part.options |= {name: problem.options[name][heads] for name in ("alibi_slopes", "sinks")}
        part_o, part_lse, part_g = run_on(backend, part, deterministic=True)
        assert_same_bits((part_o, part_lse), (o[..., heads, :], lse[:, heads]))
        assert_same_bits((part_g.dq, part_g.dbias), (g.dq[..., heads, :], g.dbias[:, heads]))
        assert_same_bits((part_g.dk, part_g.dv), (g.dk[..., kv, :], g.dv[..., kv, :]))
        assert_same_bits(part_g.dsinks, g.dsinks[heads])


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("options", [(), ("causal",), ("window",), ("bias", "softcap"), ("kv_lens", "alibi")], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(backend, dtype, options):
    """o and lse of a few queries alone are those of all queries."""
    shape = backend.smaller(Shape((2,), 300, 530, 2, 1, 16, 16), Lq=140, Lk=200)
    problem = Case(shape, dtype, options).make()

    def forward(q, **given):
        ours = Problem(q, problem.k, problem.v, problem.do, problem.dlse, given).map(backend.array)
        return to_numpy(backend, flash.attention(*ours.qkv, **ours.options, return_lse=True))

    o, lse = forward(problem.q, **problem.options)
    for first, last in ((0, 1), (shape.Lq - 1, shape.Lq), (31, 33), (64, 129), (7, shape.Lq - 50)):
        given = dict(problem.options)
        kv_lens = given.get("kv_lens", numpy.full(2, shape.Lk))
        given["q_offset"] = kv_lens - shape.Lq + first
        if "bias" in given:
            given["bias"] = given["bias"][..., first:last, :]
        part = forward(problem.q[:, first:last], **given)
        assert_same_bits(part, (o[:, first:last], lse[..., first:last]), f"{first}:{last}")
