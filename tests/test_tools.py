"""What lies beside attention: attention_vjp, attention_weights, merge, dropout_mask."""

import math

import ml_dtypes
import numpy
import pytest
from numeric import assert_accurate, assert_same_bits, run, run_exact, run_naive
from problems import DTYPES, OPTIONS, Case, Problem, Shape, dtype_of, sum_dtype

import flash

# ---- attention_vjp ---------------------------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
def test_vjp_is_the_backward(dtype):
    problem = Case(Shape(), dtype, ("causal", "bias", "sinks", "dropout")).make()
    o, lse, gradients = run(problem)
    actual_o, vjp = flash.attention_vjp(*problem.qkv, **problem.options)
    assert_same_bits(actual_o, o)
    assert_same_bits(vjp(problem.do, problem.dlse), gradients)
    assert_same_bits(vjp(problem.do, dlse=problem.dlse, deterministic=True), gradients)  # as often as wanted
    some = vjp(problem.do, problem.dlse, wrt=("q", "sinks"))
    assert_same_bits(some, flash.Gradients(dq=gradients.dq, dsinks=gradients.dsinks))
    both, vjp = flash.attention_vjp(*problem.qkv, **problem.options, return_lse=True)
    assert_same_bits(both, (o, lse))
    assert_same_bits(vjp(problem.do, problem.dlse), gradients)
    out = numpy.empty_like(o)
    given, vjp = flash.attention_vjp(*problem.qkv, **problem.options, out=out)
    assert given is out
    assert_same_bits(vjp(problem.do, problem.dlse), gradients)


def test_vjp_without_dlse(kind):
    problem = Case(Shape(Lq=9, Lk=11), "float32").make().map(kind.array)
    o, _, gradients = run(problem, with_dlse=False)
    actual, vjp = flash.attention_vjp(*problem.qkv)
    assert_same_bits(kind.numpy(actual), kind.numpy(o))
    for x, wanted in zip(vjp(problem.do)[:3], gradients[:3], strict=True):
        assert_same_bits(kind.numpy(x), kind.numpy(wanted))


# ---- attention_weights -----------------------------------------------------------------------------------------------


def with_identity(problem):
    """The problem whose output is its probabilities: v is the identity matrix, and nothing is dropped."""
    *N, Lk, Hk, _ = problem.k.shape
    v = numpy.broadcast_to(numpy.eye(Lk)[:, None, :], (*N, Lk, Hk, Lk)).astype(problem.q.dtype)
    options = {name: x for name, x in problem.options.items() if name not in ("dropout", "seed")}
    return Problem(problem.q, problem.k, v, problem.do, problem.dlse, options)


@pytest.mark.parametrize("option", OPTIONS)
def test_weights(kind, option):
    dtype = kind.dtypes[list(OPTIONS).index(option) % len(kind.dtypes)]
    problem = Case(Shape(Lq=19, Lk=33), dtype, (option,)).make()
    shows = with_identity(problem)
    exact = run_exact(shows, with_dlse=False, backward=False)[0].swapaxes(-3, -2)
    naive = run_naive(shows, sum_dtype(problem.q.dtype), with_dlse=False, backward=False)
    ours = problem.map(kind.array)
    weights = kind.numpy(flash.attention_weights(ours.q, ours.k, **ours.options))
    assert weights.dtype == sum_dtype(problem.q.dtype)
    assert_accurate("weights", weights, exact, [x[0].swapaxes(-3, -2) for x in naive])


@pytest.mark.sanitize
def test_weights_of_some_rows():
    problem = Case(Shape((2, 3), 40, 21), "float32", ("causal", "alibi", "sinks", "q_lens")).make()
    everything = flash.attention_weights(problem.q, problem.k, **problem.options)
    for rows in ([], [3], [39, 0, 3, 3], range(5, 9), numpy.array([7, 1]), numpy.arange(40)[::-7]):
        some = flash.attention_weights(problem.q, problem.k, rows=rows, **problem.options)
        assert_same_bits(some, numpy.ascontiguousarray(everything[..., list(rows), :]))
    sums = everything.sum(axis=-1)
    sink = numpy.exp(problem.options["sinks"][:, None] - run(problem)[1])
    seen = numpy.isfinite(run(problem)[1])
    numpy.testing.assert_allclose((sums + sink)[seen], 1.0, atol=1e-6)
    assert not sums[~seen].any()


# ---- merge -----------------------------------------------------------------------------------------------------------


def parts(problem, cut, **options):
    """Attention over the keys before and from `cut`."""
    offset = problem.k.shape[-3] - problem.q.shape[-3]
    first = flash.attention(
        problem.q, problem.k[..., :cut, :, :], problem.v[..., :cut, :, :], return_lse=True, q_offset=offset, **options
    )
    rest = flash.attention(
        problem.q,
        problem.k[..., cut:, :, :],
        problem.v[..., cut:, :, :],
        return_lse=True,
        q_offset=offset - cut,
        **options,
    )
    return first, rest


@pytest.mark.sanitize
@pytest.mark.parametrize("cut", [0, 1, 30, 68, 69])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_is_attention_over_all_keys(dtype, cut):
    """Also where one part is empty, as a whole (cut 0 and 69) or for the rows that the triangle hides it from."""
    problem = Case(Shape((2, 2), 37, 69), dtype).make()
    first, rest = parts(problem, cut, causal=True)
    eps = float(ml_dtypes.finfo(dtype_of(dtype)).eps)
    exact_o, exact_lse = flash.reference.attention(*problem.qkv, causal=True, return_lse=True, dtype="f8")
    for a, b in ((first, rest), (rest, first)):
        o, lse = flash.merge(*a, *b)
        assert (o.dtype, lse.dtype) == (a[0].dtype, a[1].dtype)
        numpy.testing.assert_allclose(o.astype("f8"), exact_o, atol=8 * eps, rtol=0)
        numpy.testing.assert_allclose(lse, exact_lse, rtol=0, atol=32 * float(numpy.finfo(lse.dtype).eps))


def test_merge_of_empty_parts(kind):
    problem = Case(Shape((2,), 5, 0), "float32").make()
    empty = flash.attention(*problem.qkv, return_lse=True)
    whole = flash.attention(*Case(Shape((2,), 5, 9), "float32").make().qkv, return_lse=True)
    empty, whole = (tuple(map(kind.array, x)) for x in (empty, whole))
    for a, b, wanted in ((empty, whole, whole), (whole, empty, whole), (empty, empty, empty)):
        merged = flash.merge(*a, *b)
        assert_same_bits(tuple(map(kind.numpy, merged)), tuple(map(kind.numpy, wanted)))


def test_merge_of_far_apart_parts():
    """lse of +-1e4: the smaller part vanishes, and nothing overflows."""
    o1, o2 = numpy.ones((1, 1, 4), "f4"), numpy.full((1, 1, 4), 3.0, "f4")
    for low, high in ((-1e4, 1e4), (-1e4, -9e3), (9e3, 1e4), (-math.inf, -1e4)):
        lse1, lse2 = numpy.full((1, 1), low, "f4"), numpy.full((1, 1), high, "f4")
        o, lse = flash.merge(o1, lse1, o2, lse2)
        assert (o == 3.0).all() and (lse == numpy.float32(high)).all()
    o, lse = flash.merge(o1, numpy.full((1, 1), 1e4, "f4"), o2, numpy.full((1, 1), 1e4, "f4"))
    assert (o == 2.0).all()
    numpy.testing.assert_allclose(lse, 1e4 + math.log(2.0), rtol=1e-7)


# ---- dropout_mask ----------------------------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.97, 1.0])
def test_dropout_mask_is_what_the_kernel_keeps(backend, dropout):
    """With q = 0 all p are equal and with v = identity o shows which of them were kept."""
    N, L, H = (2, 3), 71, 3
    q = numpy.zeros((*N, L, H, 8), "f4")
    v = numpy.broadcast_to(numpy.eye(L, dtype="f4")[:, None, :], (*N, L, H, L)).copy()
    for seed in (0, 2**40 + 7, 2**64 - 1):
        o = flash.attention(*map(backend.array, (q, q, v)), dropout=dropout, seed=seed)
        keep = flash.dropout_mask(seed, dropout, (*N, H, L, L))
        assert_same_bits(backend.numpy(o).swapaxes(-3, -2) != 0.0, keep)
        assert abs(keep.mean() - (1.0 - dropout)) < 0.01
        numpy.testing.assert_array_equal(keep, flash.reference.dropout_mask(seed, dropout, keep.shape))


def test_dropout_is_the_same_in_the_backward(backend):
    """dv of do = 1 is the column sums of what the forward kept."""
    L, dropout, seed = 150, 0.4, 99
    q, do = numpy.zeros((L, 2, 8), "f4"), numpy.ones((L, 2, 8), "f4")
    o, vjp = flash.attention_vjp(*map(backend.array, (q, q, q)), dropout=dropout, seed=seed)
    dv = backend.numpy(vjp(backend.array(do), wrt=("v",)).dv)[..., 0]
    keep = flash.dropout_mask(seed, dropout, (2, L, L))
    numpy.testing.assert_allclose(dv.T, keep.sum(axis=-2) / (L * (1 - dropout)), rtol=1e-5)
    assert not backend.numpy(o).any()
