"""What lies beside attention: attention_vjp, attention_weights, merge, dropout_mask."""

import math

import ml_dtypes
import numpy
import pytest
from numeric import assert_accurate, assert_same_bits, run, run_exact, run_naive, to_numpy
from problems import DTYPES, OPTIONS, Case, Problem, Shape, dtype_of, sum_dtype

import flash
from flash._lib import check as c_check
from flash._lib import lib
from flash.arrays import tensor_at
from flash.call import Call

# ---- attention_vjp ---------------------------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
def test_vjp_is_the_backward(backend, dtype):
    shape = backend.smaller(Shape(), N=(), Hq=2, Hk=1)
    problem = Case(shape, dtype, ("causal", "bias", "sinks", "dropout")).make().map(backend.array)
    o, lse, gradients = to_numpy(backend, run(problem))

    def assert_same(results, wanted):
        assert_same_bits(to_numpy(backend, results), wanted)

    actual_o, vjp = flash.attention_vjp(*problem.qkv, **problem.options)
    assert_same(actual_o, o)
    assert_same(vjp(problem.do, problem.dlse), gradients)
    assert_same(vjp(problem.do, dlse=problem.dlse, deterministic=True), gradients)  # as often as wanted
    some = vjp(problem.do, problem.dlse, wrt=("q", "sinks"))
    assert_same(some, flash.Gradients(dq=gradients.dq, dsinks=gradients.dsinks))
    both, vjp = flash.attention_vjp(*problem.qkv, **problem.options, return_lse=True)
    assert_same(both, (o, lse))
    assert_same(vjp(problem.do, problem.dlse), gradients)
    out = backend.array(numpy.zeros_like(o))
    given, vjp = flash.attention_vjp(*problem.qkv, **problem.options, out=out)
    assert given is out
    assert_same(vjp(problem.do, problem.dlse), gradients)


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
def test_weights_of_some_rows(backend):
    problem = Case(Shape((2, 3), 40, 21), "float32", ("causal", "alibi", "sinks", "q_lens")).make()
    ours = problem.map(backend.array)
    everything = backend.numpy(flash.attention_weights(ours.q, ours.k, **ours.options))
    for rows in ([], [3], [39, 0, 3, 3], range(5, 9), numpy.array([7, 1]), numpy.arange(40)[::-7]):
        given = backend.array(rows) if isinstance(rows, numpy.ndarray) else rows
        some = backend.numpy(flash.attention_weights(ours.q, ours.k, rows=given, **ours.options))
        assert_same_bits(some, numpy.ascontiguousarray(everything[..., list(rows), :]))
    sums = everything.sum(axis=-1)
    lse = backend.numpy(flash.attention(*ours.qkv, **ours.options, return_lse=True)[1])
    sink = numpy.exp(problem.options["sinks"][:, None] - lse)
    seen = numpy.isfinite(lse)
    numpy.testing.assert_allclose((sums + sink)[seen], 1.0, atol=1e-6)
    assert not sums[~seen].any()


# ---- merge -----------------------------------------------------------------------------------------------------------


def parts(backend, problem, cut, **options):
    """Attention over the keys before and from `cut`."""
    offset = problem.k.shape[-3] - problem.q.shape[-3]
    q = backend.array(problem.q)
    for keys, q_offset in ((slice(cut), offset), (slice(cut, None), offset - cut)):
        k, v = (backend.array(x[..., keys, :, :]) for x in (problem.k, problem.v))
        yield flash.attention(q, k, v, return_lse=True, q_offset=q_offset, **options)


@pytest.mark.sanitize
@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [0, 1, 30, 68, 69])
def test_merge_is_attention_over_all_keys(backend, dtype, cut):
    """Also where one part is empty, as a whole (cut 0 and 69) or for the rows that the triangle hides it from."""
    problem = Case(Shape((2, 2), 37, 69), dtype).make()
    first, rest = parts(backend, problem, cut, causal=True)
    eps = float(ml_dtypes.finfo(dtype_of(dtype)).eps)
    exact_o, exact_lse = flash.reference.attention(*problem.qkv, causal=True, return_lse=True, dtype="f8")
    for a, b in ((first, rest), (rest, first)):
        o, lse = flash.merge(*a, *b)
        assert (o.dtype, lse.dtype) == (a[0].dtype, a[1].dtype)
        o, lse = to_numpy(backend, (o, lse))
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


def test_merge_of_far_apart_parts(backend):
    """lse of +-1e4: the smaller part vanishes, and nothing overflows."""
    o1, o2 = numpy.ones((1, 1, 4), "f4"), numpy.full((1, 1, 4), 3.0, "f4")

    def merge(low, high):
        lse1, lse2 = (numpy.full((1, 1), lse, "f4") for lse in (low, high))
        return to_numpy(backend, flash.merge(*map(backend.array, (o1, lse1, o2, lse2))))

    for low, high in ((-1e4, 1e4), (-1e4, -9e3), (9e3, 1e4), (-math.inf, -1e4)):
        o, lse = merge(low, high)
        assert (o == 3.0).all() and (lse == numpy.float32(high)).all()
    o, lse = merge(1e4, 1e4)
    assert (o == 2.0).all()
    numpy.testing.assert_allclose(lse, 1e4 + math.log(2.0), rtol=1e-7)


# ---- dropout_mask ----------------------------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.97, 1.0])
def test_dropout_mask_is_what_the_kernel_keeps(backend, dropout):
    """With q = 0 all p are equal and with v = identity o shows which of them were kept."""
    shape = backend.smaller(Shape((2, 3), 71, 71, 3, 3), N=(1, 2), Hq=2)
    N, L, H = shape.N, shape.Lq, shape.Hq
    q = numpy.zeros((*N, L, H, 8), "f4")
    v = numpy.broadcast_to(numpy.eye(L, dtype="f4")[:, None, :], (*N, L, H, L)).copy()
    for seed in (0, 2**40 + 7, 2**64 - 1):
        o = flash.attention(*map(backend.array, (q, q, v)), dropout=dropout, seed=seed)
        keep = flash.dropout_mask(seed, dropout, (*N, H, L, L))
        assert_same_bits(backend.numpy(o).swapaxes(-3, -2) != 0.0, keep)
        assert abs(keep.mean() - (1.0 - dropout)) < 2.0 / math.sqrt(keep.size)
        numpy.testing.assert_array_equal(keep, flash.reference.dropout_mask(seed, dropout, keep.shape))


@pytest.mark.parametrize("seed", [7, 2**63 + 5])
def test_dropout_mask_into_any_array(backend, seed):
    """The C function, which makes it where the array is, with the array's strides."""
    wanted = flash.reference.dropout_mask(seed, 0.3, (2, 3, 65, 70))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):  # axes as they lie in memory
        memory = numpy.zeros([wanted.shape[axis] for axis in order], bool)
        keep = backend.array(memory.transpose(numpy.argsort(order)))
        with Call.on(keep, "keep") as call:
            c_check(lib.flash_dropout_mask(seed, 0.3, tensor_at(call.read(keep, "keep")), call.stream_pointer()))
        numpy.testing.assert_array_equal(backend.numpy(keep), wanted)


def test_dropout_is_the_same_in_the_backward(backend):
    """dv of do = 1 is the column sums of what the forward kept."""
    L, dropout, seed = 150, 0.4, 99
    q, do = numpy.zeros((L, 2, 8), "f4"), numpy.ones((L, 2, 8), "f4")
    o, vjp = flash.attention_vjp(*map(backend.array, (q, q, q)), dropout=dropout, seed=seed)
    dv = backend.numpy(vjp(backend.array(do), wrt=("v",)).dv)[..., 0]
    keep = flash.dropout_mask(seed, dropout, (2, L, L))
    numpy.testing.assert_allclose(dv.T, keep.sum(axis=-2) / (L * (1 - dropout)), rtol=1e-5)
    assert not backend.numpy(o).any()
