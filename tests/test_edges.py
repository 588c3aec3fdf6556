"""The edges of the definition: rows and keys that don't exist, what must not be read, and large scores."""

import math

import ml_dtypes
import numpy
import pytest
from numeric import Answers, assert_same_bits, check, run_exact, run_on, to_numpy, ulp
from problems import DTYPES, Case, Problem, Shape, dtype_of, poison_past_lengths, sum_dtype

import flash

SHAPE = Shape((2,), 37, 70, 4, 2, 16, 24)
BLOCK_SIZES = 16, 32, 64, 128, 256


# ---- Rows that don't exist, rows without keys ------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_past_q_len(backend, dtype):
    """o = 0, lse = -inf even with sinks, every gradient 0, for lengths 0, some and all."""
    problem = Case(SHAPE._replace(N=(3,)), dtype, ("sinks", "bias")).make()
    q_lens = problem.options["q_lens"] = numpy.array([0, 5, 37])
    poison_past_lengths(problem)
    known = Answers(problem)
    o, lse, g = known.check(backend)
    for n, q_len in enumerate(q_lens):
        assert not o[n, q_len:].any() and (lse[n, :, q_len:] == -math.inf).all()
        assert numpy.isfinite(lse[n, :, :q_len]).all()
        assert not g.dq[n, q_len:].any() and not g.dbias[n, :, q_len:].any()
    assert not g.dk[0].any() and not g.dv[0].any()


NO_KEYS = {
    "kv_lens": {"kv_lens": numpy.zeros(2, "i4")},
    "offset": {"causal": True, "q_offset": -100},
    "offset_array": {"causal": True, "q_offset": numpy.full(2, -38)},
    "window": {"window": (None, 0), "q_offset": -2000},
    "window_behind": {"window": (3, None), "q_offset": 74},
    "mask": {"mask": numpy.zeros((1, 1), bool)},
    "bias": {"bias": numpy.full((37, 1), -math.inf, "f4")},
    "block_mask": {"block_mask": flash.BlockMask.from_dense(numpy.zeros((2, 2), bool), (32, 64), Lq=37, Lk=70)},
}


@pytest.mark.sanitize
@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("hide", [*NO_KEYS, "Lk"])
def test_rows_without_keys(backend, hide, sinks, dtype):
    """o = 0, lse = the sink or -inf; dq, dk, dv = 0; dsinks still gets dlse."""
    problem = Case(SHAPE if hide != "Lk" else SHAPE._replace(Lk=0), dtype).make()
    problem.options |= NO_KEYS.get(hide, {})
    if "bias" in problem.options:
        problem.options["bias"] = problem.options["bias"].astype(sum_dtype(problem.q.dtype))
    if sinks:
        problem.options["sinks"] = numpy.array([0.5, -1.0, -math.inf, 100.0]).astype(dtype_of(dtype))
    problem.dlse[:, 2] = math.nan if sinks else problem.dlse[:, 2]  # where lse = -inf, it is ignored
    o, lse, g = run_on(backend, problem)
    wanted = problem.options["sinks"].astype(lse.dtype)[:, None] if sinks else -math.inf
    eps = float(numpy.finfo(lse.dtype).eps)
    numpy.testing.assert_allclose(lse, numpy.broadcast_to(wanted, lse.shape), rtol=eps)
    assert not o.any() and not g.dq.any() and not g.dk.any() and not g.dv.any()
    if sinks:
        sums = numpy.where(numpy.isfinite(lse), problem.dlse.astype("f8"), 0.0).sum(axis=(0, 2))
        rounding = max(eps, float(ml_dtypes.finfo(g.dsinks.dtype).eps))
        numpy.testing.assert_allclose(g.dsinks.astype("f8"), sums, rtol=rounding, atol=100 * eps)
    if "bias" in problem.options:
        assert not g.dbias.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_rows_without_keys(backend, dtype):
    """Beside others in the same strip: more queries than keys, and a mask of whole rows."""
    shape = backend.smaller(SHAPE, Hq=2, Hk=1)
    check(Case(shape._replace(Lq=70, Lk=37), dtype, ("causal", "sinks")), backend)
    check(Case(shape, dtype, ("window", "q_offset")), backend)
    problem = Case(shape, dtype, ("sinks", "bias")).make()
    problem.options["mask"] = numpy.arange(37)[:, None] % 3 > 0
    o, _, g = Answers(problem).check(backend)
    assert not o[:, ::3].any() and not g.dq[:, ::3].any() and not g.dbias[:, :, ::3].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlse_is_ignored_where_lse_is_infinite(backend, dtype):
    shape = backend.smaller(SHAPE, N=(1,), Hq=2, Hk=1)._replace(Lq=70, Lk=37)
    problem = Case(shape, dtype, ("causal", "sinks", "bias")).make()
    problem.options["sinks"][1] = -math.inf
    o, lse, wanted = run_on(backend, problem)
    nothing = lse == -math.inf
    assert nothing.any()
    problem.dlse[nothing] = math.nan
    assert_same_bits(run_on(backend, problem), (o, lse, wanted))


@pytest.mark.sanitize
@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N, Lq, Lk", [((0,), 3, 3), ((2,), 0, 3), ((2,), 3, 0), ((2, 0), 0, 0), ((), 0, 0)])
def test_empty(backend, N, Lq, Lk, dtype):
    options = "causal", "mask", "bias_of_keys", "sinks", "dropout", "alibi", "softcap", "q_lens", "kv_lens"
    for given in ((), options, ("block_mask",)):
        check(Case(Shape(N, Lq, Lk, 2, 1, 8, 4), dtype, given), backend)


@pytest.mark.parametrize("options", [("causal",), ("bias", "softcap", "dropout")], ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_device(backend, options, dtype):
    """One with less shared memory takes other tiles."""
    shape = backend.smaller(SHAPE, N=(1,), Lq=70, Lk=130, Hq=2, Hk=1)._replace(D=256, Dv=200)
    for device in backend.devices():
        with device:
            check(Case(shape, dtype, options), backend)


@pytest.mark.parametrize("options", [(), ("causal", "softcap")], ids="-".join)
@pytest.mark.parametrize("D, Dv", [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_device_and_head_dim(backend, options, D, Dv, dtype):
    """Each device has kernels of its own for each of them, with and without options."""
    shape = backend.smaller(SHAPE, N=(1,), Lq=40, Lk=110, Hq=1, Hk=1)._replace(D=D, Dv=Dv)
    for device in backend.devices():
        with device:
            check(Case(shape, dtype, options), backend)


# ---- What must not be read -------------------------------------------------------------------------------------------


POISONED = [(), ("causal",), ("bias", "mask"), ("bias_of_keys",), ("softcap", "alibi", "sinks", "dropout")]


@pytest.mark.sanitize
@pytest.mark.in_turn("dtype", "value")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("options", POISONED, ids="-".join)
def test_nothing_past_the_lengths_is_used(backend, options, dtype, value):
    """q, k, v, do, dlse and bias hold NaN there: the same bits as with zeros."""
    results = []
    for poison in (0.0, value):
        problem = Case(SHAPE._replace(N=(5,)), dtype, options).make()
        problem.options |= {"q_lens": numpy.array([37, 0, 1, 20, 33]), "kv_lens": numpy.array([1, 70, 0, 65, 48])}
        poison_past_lengths(problem, poison)
        if "bias_of_keys" in options:
            for n, kv_len in enumerate(problem.options["kv_lens"]):
                problem.options["bias"][n, ..., kv_len:] = poison
        results.append(run_on(backend, problem))
    assert_same_bits(results[1], results[0])
    assert all(numpy.isfinite(x.astype("f8")).all() for x in results[0][2] if x is not None)


def blocks_for_poison(dense, size, Lq, Lk):
    return flash.BlockMask.from_dense(numpy.array(dense, bool), size, Lq=Lq, Lk=Lk)


@pytest.mark.sanitize
@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("block_size", [(16, 16), (32, 16), (16, 64), (64, 64)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_unlisted_blocks_are_not_used(backend, dtype, block_size):
    """NaN in a block of keys reaches the rows that list it and no other; NaN in queries and do likewise."""
    block_q, block_k = block_size
    shape = backend.smaller(SHAPE, N=(1,), Hq=2, Hk=1)._replace(Lq=3 * block_q - 3, Lk=4 * block_k - 5)
    options = ("alibi", "sinks", "dropout", "bias") if block_q < 64 else ("softcap", "sinks")
    problem = Case(shape, dtype, options).make()
    # The last row of blocks lists nothing, the last column is listed by nobody.
    dense = [[True, False, True, False], [True, True, False, False], [False, False, False, False]]
    problem.options["block_mask"] = blocks_for_poison(dense, block_size, shape.Lq, shape.Lk)
    o, lse, g = run_on(backend, problem)
    rows, columns = numpy.arange(shape.Lq) // block_q, numpy.arange(shape.Lk) // block_k

    def poisoned(names, axis, where):
        arrays = {name: getattr(problem, name).copy() for name in ("q", "k", "v", "do")}
        for name in names:
            arrays[name][:, axis == where] = math.nan
        return run_on(backend, Problem(**arrays, dlse=problem.dlse, options=problem.options))

    # Nobody lists the last block of keys, and the last block of queries lists nothing.
    assert_same_bits(poisoned(("k", "v"), columns, 3), (o, lse, g))
    assert_same_bits(poisoned(("q", "do"), rows, 2), (o, lse, g))
    # Block 2 of keys is listed by the first rows only.
    other_o, other_lse, other = poisoned(("k", "v"), columns, 2)
    for mine, theirs in ((other_o, o), (other.dq, g.dq)):
        assert_same_bits(mine[:, rows > 0], theirs[:, rows > 0])
        assert numpy.isnan(mine[:, rows == 0].astype("f8")).any()
    assert_same_bits(other_lse[..., rows > 0], lse[..., rows > 0])
    for mine, theirs in ((other.dk, g.dk), (other.dv, g.dv)):  # key block 1 is listed by the second rows only
        assert_same_bits(mine[:, columns == 1], theirs[:, columns == 1])
    # Queries of the first block: keys of block 1 don't meet them.
    other_o, other_lse, other = poisoned(("q", "do"), rows, 0)
    for mine, theirs in ((other_o, o), (other.dq, g.dq)):
        assert_same_bits(mine[:, rows > 0], theirs[:, rows > 0])
    for mine, theirs in ((other.dk, g.dk), (other.dv, g.dv)):
        assert_same_bits(mine[:, columns == 1], theirs[:, columns == 1])
        assert numpy.isnan(mine[:, columns == 2].astype("f8")).any()


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("hide", ["causal", "window", "mask", "bias", "kv_lens", "block_mask"])
@pytest.mark.parametrize("size", [1e4, "largest"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hidden_key_changes_nothing(backend, dtype, size, hide):
    """Whatever finite numbers it holds: the same bits in the rows that don't see it, and in all other keys."""
    if size == "largest" and hide == "bias":
        pytest.skip("bias is added to the score, which such a key makes infinite")
    options = {
        "causal": {"causal": True, "q_offset": 0},
        "window": {"window": (30, 20), "q_offset": -3},
        "mask": {"mask": numpy.arange(70) != 55},
        "bias": {"bias": numpy.where(numpy.arange(70) == 55, -math.inf, 0.25).astype(sum_dtype(dtype_of(dtype)))},
        "kv_lens": {"kv_lens": numpy.array([55, 40])},
        "block_mask": {"block_mask": blocks_for_poison([[1, 1, 1, 0, 1]] * 3, (16, 16), 37, 70)},
    }[hide]
    problem = Case(SHAPE, dtype).make()
    problem.options = options | ({"sinks": numpy.zeros(4, dtype_of(dtype))} if size == 1e4 else {"softcap": 20.0})
    if hide != "bias":
        assert not flash.reference.visible(problem.q, problem.k, **options)[..., 55].any()
    wanted = run_on(backend, problem)
    largest = float(numpy.finfo("f8").max) if dtype == "float64" else {"float16": 65504.0}.get(dtype, 3.3e38)
    signs = numpy.where(numpy.arange(16) % 3 == 0, -1.0, 1.0)
    problem.k[:, 55] = (signs * (largest if size == "largest" else size)).astype(problem.k.dtype)
    problem.v[:, 55] = numpy.asarray(-largest if size == "largest" else -size).astype(problem.v.dtype)
    assert_same_bits(run_on(backend, problem), wanted)


# ---- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.in_turn("dtype", "options")
@pytest.mark.parametrize("options", [(), ("causal",), ("window_left",), ("kv_lens",)], ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top", [100.0, -100.0, 1e4, -1e4])
def test_large_scores(backend, dtype, top, options):
    """All scores of a row lie around +-100 or +-1e4: far beyond what e^x of float32 can hold."""
    known = Answers(Case(Shape((2,), 37, 300, 2, 1, 16, 16), dtype, options).make())
    known.problem.options["scale"] = 1.0
    known.problem.q[...], known.problem.k[..., 0] = 0.5 * known.problem.q, 10.0
    known.problem.q[..., 0] = top / 10
    _, lse, _ = known.check(backend)
    finite = lse[numpy.isfinite(lse)]
    assert (abs(finite) > 60).all() and (numpy.sign(finite) == math.copysign(1, top)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_far_apart(backend, dtype):
    """Scores of +-10^4 whose largest takes all: few rows have a second key that counts, which is too few for the rule.

    The limit is what rounding scores does: p is off by at most eps times the largest score.
    """
    for seed in range(4):
        problem = Case(Shape((), 37, 70, 2, 2, 8, 8), dtype, (), seed, factor=100.0).make()
        problem.options |= {"scale": 3.0, "sinks": numpy.array([500.0, -500.0]).astype(dtype_of(dtype))}
        o, lse, g = run_on(backend, problem)
        exact_o, exact_lse, exact = run_exact(problem, with_dlse=True)
        q, k, v, do = (float(abs(x.astype("f8")).max()) for x in (*problem.qkv, problem.do))
        top = float(abs(exact_lse).max())
        assert top > 2000
        of_p = 2 * float(numpy.finfo(lse.dtype).eps) * top
        numpy.testing.assert_allclose(lse, exact_lse, rtol=0, atol=of_p)
        dp = 8 * v * do
        sizes = {"dq": 3 * dp * k, "dk": 3 * dp * q, "dv": do}
        for name, x in {"o": o, "dq": g.dq, "dk": g.dk, "dv": g.dv}.items():
            wanted = exact_o if name == "o" else getattr(exact, name)
            limit = of_p * sizes.get(name, v) + 2 * ulp(float(abs(wanted).max()), x.dtype)
            assert abs(x.astype("f8") - wanted).max() <= limit, name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_a_single_column_has_probability_one(backend, dtype, size):
    """p = e^(s - lse) is 1 to rounding where s = lse, however large it is: dv = do.

    The error of p is that of log2(e) s - log2(e) lse. A product rounded once is off by up to half an ulp: of 1e4 in
    float32, 5e-4. The limit is a quarter of that ulp, and what 2^x and dv may add.
    """
    shape = backend.smaller(Shape((), 1, 1, 200, 200, 8, 8), Hq=40, Hk=40)
    problem = Case(shape, dtype).make()
    s = numpy.random.default_rng(0).uniform(-size, size, shape.Hq).astype(dtype)
    problem.q[...], problem.k[...] = 0, 1
    problem.q[0, :, 0] = s
    o, lse = numpy.ascontiguousarray(problem.v), s[:, None]
    ours, saved = problem.map(backend.array), (backend.array(o), backend.array(lse))
    given = to_numpy(backend, flash.attention(*ours.qkv, scale=1.0, return_lse=True))
    eps = float(numpy.finfo(dtype).eps)
    numpy.testing.assert_allclose(given[0], o, rtol=2 * eps)
    numpy.testing.assert_allclose(given[1], lse, rtol=eps, atol=eps)
    g = to_numpy(backend, flash.attention_backward(ours.do, *ours.qkv, *saved, scale=1.0))
    p = g.dv.astype(numpy.longdouble) / problem.do
    limit = eps * (4 + 0.25 * abs(s[:, None].astype("f8")))
    assert (abs(p - 1) <= limit).all(), float((abs(p - 1) / limit).max())


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, 1e-30, -1e-3, 1.0, 7.0])
def test_scale(backend, scale, dtype):
    known = Answers(Case(SHAPE, dtype, ("causal",)).make())
    known.problem.options["scale"] = scale
    gradients = known.check(backend)[2]
    if scale == 0:
        assert not gradients.dq.any() and not gradients.dk.any()


@pytest.mark.in_turn("as_array")
@pytest.mark.parametrize("as_array", [False, True], ids=["number", "array"])
@pytest.mark.parametrize("q_offset", [-(1 << 30) + 1, -70, -36, -1, 0, 1, 33, 69, 106, (1 << 30) - 1])
def test_q_offset(backend, q_offset, as_array):
    known = Answers(Case(SHAPE, "float32", ("causal", "sinks")).make())
    known.problem.options["q_offset"] = numpy.array([q_offset, 3]) if as_array else q_offset
    known.check(backend)


WINDOWS = [
    (None, None), (0, 0), (0, None), (None, 0), (1, 0), (0, 1), (3, 64), (64, 3), (15, 15), (16, 16), (31, 32),
    (200, 0), (0, 400), (300, 300), ((1 << 30) - 1, (1 << 30) - 1),
]  # fmt: skip


@pytest.mark.in_turn("causal", "Lq", "Lk")
@pytest.mark.parametrize("Lq, Lk", [(140, 300), (300, 140)])
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_window(backend, window, causal, Lq, Lk):
    shape = backend.smaller(Shape((), Lq, Lk, 2, 1, 8, 8), Hq=1)
    known = Answers(Case(shape, "bfloat16", ("sinks",)).make())
    known.problem.options |= {"window": window, "causal": causal}
    known.check(backend)


BESIDE_BLOCKS = [(), ("causal", "dropout"), ("bias_of_keys", "window")]


@pytest.mark.in_turn("options")
@pytest.mark.parametrize("options", BESIDE_BLOCKS, ids="-".join)
@pytest.mark.parametrize("block_q", BLOCK_SIZES)
@pytest.mark.parametrize("block_k", BLOCK_SIZES)
def test_block_size(backend, block_q, block_k, options):
    """Every pair of block sizes; the last blocks are partial, and a triangle cuts through the others."""
    # Where it must be small: beside large blocks one more, partial, beside small ones several.
    fewer = {"Lq": max(block_q, 80) + 20, "Lk": max(block_k, 150) + 30, "Hq": 1}
    shape = backend.smaller(Shape((1,), 300, 530, 2, 1, 8, 8), **fewer)
    n = BESIDE_BLOCKS.index(options)
    dtype = backend.dtypes[(BLOCK_SIZES.index(block_q) + n) % 3]
    known = Answers(Case(shape, dtype, options, n).make())
    known.problem.options["block_mask"] = flash.BlockMask.random(shape.Lq, shape.Lk, (block_q, block_k), 0.5, n)
    known.check(backend)


def test_more_sequences_than_a_grid_has_rows(backend):
    """More than 65,535 of batch times heads; all but a few have no keys, which takes little time."""
    problem = Case(Shape((66_000,), 1, 2, 1, 1, 8, 8), "float32").make()
    some = problem.options["kv_lens"] = numpy.zeros(66_000, "i4")
    some[[0, 65_534, 65_535, 65_536, 65_999]] = 2
    poison_past_lengths(problem)
    ours = problem.map(backend.array)
    with backend.unwatched():
        results = flash.attention(*ours.qkv, **ours.options, return_lse=True)
    Answers(problem).check_forward(*to_numpy(backend, results))
