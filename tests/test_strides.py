"""Arrays as they lie in memory: any strides that the contract allows give the bits that compact arrays give.

But for Hopper, whose kernels don't take all: there it is the bits that another kernel gives for any layout it takes.
"""

import math

import numpy
import pytest
from numeric import assert_same_bits, junk, run, run_on, to_numpy
from problems import DTYPES, Case, Problem, Shape

import flash
from flash.dropout import philox4x32

EVERYTHING = "causal", "q_lens", "kv_lens", "mask", "bias", "alibi_of_batch", "sinks", "dropout"


def heads_before_rows(x):
    """A view of memory in the order batch, heads, rows, dims."""
    return numpy.ascontiguousarray(x.swapaxes(-3, -2)).swapaxes(-3, -2)


def rows_before_batch(x):
    return numpy.moveaxis(numpy.ascontiguousarray(numpy.moveaxis(x, -3, 0)), 0, -3)


def backwards(*axes):
    """A view with negative strides along some axes."""

    def view(x):
        index = tuple(slice(None, None, -1 if axis - x.ndim in axes else 1) for axis in range(x.ndim))
        return numpy.ascontiguousarray(x[index])[index]

    return view


def padded(x):
    """A view into wider memory, which starts at an odd element and is full of NaN elsewhere."""
    memory = numpy.full((*x.shape[:-3], x.shape[-3] * 2, x.shape[-2] + 1, x.shape[-1] + 3), math.nan, x.dtype)
    view = memory[..., ::2, 1:, 1 : 1 + x.shape[-1]]
    view[...] = x
    return view


LAYOUTS = {
    "heads_before_rows": heads_before_rows,
    "rows_before_batch": rows_before_batch,
    "backwards_rows": backwards(-3),
    "backwards_heads": backwards(-2),
    "backwards_batch": backwards(-4),
    "backwards_all": backwards(-4, -3, -2),
    "padded": padded,
}


def laid_out(problem, layout):
    return Problem(*(layout(x) for x in (*problem.qkv, problem.do)), problem.dlse, problem.options)


def assert_same_results(backend, problem, changed, wanted):
    """Of a problem and of one whose arrays only lie differently. Returns the latter's results."""
    results = run_on(backend, changed)
    mapped = [x.map(backend.array) for x in (problem, changed)]
    kernel, other = (flash.explain(*x.qkv, **x.options).kernel for x in mapped)
    if kernel != other:
        wanted = run_on(backend, laid_out(problem, padded))  # which no kernel takes that asks for aligned rows
    assert_same_bits(results, wanted)
    return results


@pytest.mark.sanitize
@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(backend, layout, dtype):
    shape = backend.smaller(Shape((3,), 37, 70, 4, 2, 16, 24), N=(2,))
    problem = Case(shape, dtype, EVERYTHING).make()
    wanted = run_on(backend, problem)
    changed = laid_out(problem, LAYOUTS[layout])
    assert changed.q.strides != problem.q.strides
    o, lse, gradients = assert_same_results(backend, problem, changed, wanted)

    # The saved o and lse, and out, in the same order.
    ours = changed.map(backend.array)
    assert ours.q.strides == changed.q.strides
    out = backend.array(LAYOUTS[layout](numpy.zeros_like(o)))
    assert flash.attention(*ours.qkv, **ours.options, out=out) is out
    assert_same_bits(numpy.ascontiguousarray(backend.numpy(out)), o)
    saved = LAYOUTS[layout](o), numpy.ascontiguousarray(lse.swapaxes(-1, -2)).swapaxes(-1, -2)[..., ::-1][..., ::-1]
    dlse = numpy.repeat(changed.dlse, 2, axis=-1)[..., ::2]
    *saved, dlse = (backend.array(x) for x in (*saved, dlse))
    actual = flash.attention_backward(ours.do, *ours.qkv, *saved, **ours.options, dlse=dlse, deterministic=True)
    assert_same_bits(to_numpy(backend, actual), gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed(backend, dtype):
    """q, k and v as views of one array."""
    problem = Case(Shape((2,), 40, 40, 3, 3, 16, 16), dtype, ("causal",)).make()
    together = numpy.stack(problem.qkv, axis=-3)  # (2, 40, 3 = q k v, 3, 16)
    separate = run_on(backend, problem)
    packed = Problem(*(together[..., n, :, :] for n in range(3)), problem.do, problem.dlse, problem.options)
    assert_same_bits(run_on(backend, packed), separate)
    interleaved = numpy.stack(problem.qkv, axis=-2)  # heads outside, then q k v
    packed = Problem(*(interleaved[..., n, :] for n in range(3)), problem.do, problem.dlse, problem.options)
    assert_same_bits(run_on(backend, packed), separate)


@pytest.mark.sanitize
@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [-4, -3, -2], ids=["batch", "rows", "heads"])
def test_zero_strides(backend, axis, dtype):
    """Broadcast k and v, q and do: the gradients have the view's shape."""
    problem = Case(Shape((3,), 37, 70, 4, 2, 16, 24), dtype, ("causal", "sinks")).make()
    views = []
    for x in (*problem.qkv, problem.do):
        views.append(numpy.broadcast_to(x.take([0], axis), x.shape))
        assert views[-1].strides[axis] == 0
    copies = [numpy.ascontiguousarray(x) for x in views]
    compact, repeated = (Problem(*x, problem.dlse, problem.options) for x in (copies, views))
    assert_same_results(backend, compact, repeated, run_on(backend, compact))


def test_one_key_head_broadcast_over_the_query_heads(backend):
    problem = Case(Shape((2,), 33, 65, 4, 4, 16, 16)).make()
    problem.k, problem.v = (numpy.broadcast_to(x[..., :1, :], x.shape) for x in (problem.k, problem.v))
    grouped = Problem(problem.q, problem.k[..., :1, :], problem.v[..., :1, :], problem.do, problem.dlse)
    (o, lse, g), (grouped_o, grouped_lse, grouped_g) = run_on(backend, problem), run_on(backend, grouped)
    assert_same_bits((o, lse, g.dq), (grouped_o, grouped_lse, grouped_g.dq))
    numpy.testing.assert_allclose(g.dk.sum(axis=-2, keepdims=True), grouped_g.dk, atol=1e-5)


def strided_last(x):
    return numpy.repeat(x, 3, axis=-1)[..., ::3]


SCORE_LAYOUTS = {
    "transposed": lambda x: numpy.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "every_third": strided_last,
    "backwards": lambda x: numpy.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
    "heads_last": lambda x: numpy.moveaxis(numpy.ascontiguousarray(numpy.moveaxis(x, -3, -1)), -1, -3),
    "batch_last": lambda x: numpy.moveaxis(numpy.ascontiguousarray(numpy.moveaxis(x, 0, -1)), -1, 0),
}


@pytest.mark.sanitize
@pytest.mark.in_turn("dtype", "bias")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", ["bias", "bias_wide"])
@pytest.mark.parametrize("layout", SCORE_LAYOUTS)
def test_mask_and_bias_may_have_any_strides(backend, layout, bias, dtype):
    problem = Case(Shape((2,), 37, 70, 4, 2, 16, 24), dtype, ("mask", bias)).make()
    wanted = run_on(backend, problem)
    for name in ("mask", "bias"):
        x = problem.options[name]
        problem.options[name] = SCORE_LAYOUTS[layout](x)
        numpy.testing.assert_array_equal(problem.options[name], x)
    assert_same_bits(run_on(backend, problem), wanted)


def test_leading_axes_of_small_arguments_needn_t_merge(backend):
    """mask, bias, slopes, lengths, offsets and block masks are broadcast over some leading axes only."""
    shape = Shape((2, 3), 33, 35, 2, 1, 8, 8)
    problem = Case(shape, "float32", ("q_lens", "kv_lens", "q_offset_array", "alibi_of_batch", "mask", "bias")).make()
    options = problem.options
    for axis in (0, 1):
        for name, x in options.items():
            options[name] = numpy.broadcast_to(x.take([0], axis), x.shape)
        blocks = numpy.random.default_rng(axis).random((1, 3, 1, 3, 2) if axis == 0 else (2, 1, 2, 3, 2)) < 0.6
        whole = options | {"block_mask": flash.BlockMask.from_dense(blocks, (16, 32), Lq=33, Lk=35)}
        copies = {name: x if name == "block_mask" else x.copy() for name, x in whole.items()}
        full = numpy.broadcast_to(blocks, (2, 3, 2, 3, 2))
        copies["block_mask"] = flash.BlockMask.from_dense(full, (16, 32), Lq=33, Lk=35)
        views, wanted = (
            run_on(backend, Problem(*problem.qkv, problem.do, problem.dlse, given)) for given in (whole, copies)
        )
        assert_same_bits(views, wanted)


def test_small_arguments_may_have_any_strides(backend):
    problem = Case(Shape((4,), 33, 35, 4, 2, 8, 8), "float32", (*EVERYTHING, "q_offset_array")).make()
    wanted = run_on(backend, problem)
    for name in ("q_lens", "kv_lens", "alibi_slopes", "sinks", "q_offset"):
        x = problem.options[name]
        problem.options[name] = strided_last(x[..., ::-1])[..., ::-1]
        assert problem.options[name].strides[-1] < 0
    assert_same_bits(run_on(backend, problem), wanted)


def test_read_only_inputs():
    problem = Case(Shape((2,), 9, 17), "bfloat16", EVERYTHING).make()
    wanted = run(problem)

    def frozen(x):
        x = x.copy()
        x.flags.writeable = False
        return x

    assert_same_bits(run(problem.map(frozen)), wanted)


# ---- More than 2^31 elements -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vast(tmp_path_factory):
    """By the name of a backend: 2^32 + 2^20 bytes, which take no space where nothing is written."""
    path = tmp_path_factory.mktemp("vast") / "memory"
    memories = {}

    def of(backend):
        if backend.name not in memories:
            memories[backend.name] = backend.vast((1 << 32) + (1 << 20), path)
        return memories[backend.name]

    yield of
    path.unlink(missing_ok=True)


FAR = (1 << 31) + 64  # elements


def far_apart(backend, vast, x, axis, near):
    """A copy of x, in which only `axis` is longer than 1 (but the last), with FAR elements from one to the next."""
    strides = [near * x.itemsize] * (x.ndim - 1) + [x.itemsize]
    strides[axis] = FAR * x.itemsize
    return backend.within(vast(backend), x, strides)


@pytest.mark.parametrize("axis", [-4, -3, -2], ids=["batch", "rows", "heads"])
@pytest.mark.parametrize("name", ["q", "k", "v", "do"])
def test_strides_past_2_to_31_elements(backend, vast, name, axis):
    sizes = {-4: {"N": (2,)}, -3: {"Lq": 2, "Lk": 2}, -2: {"Hq": 2, "Hk": 2}}[axis]
    shape = Shape((1,), 1, 1, 1, 1, 16, 16)._replace(**sizes)
    problem = Case(shape, "float16").make()
    wanted = run_on(backend, problem)
    ours = problem.map(backend.array)
    setattr(ours, name, far_apart(backend, vast, getattr(problem, name), axis, near=16))
    assert_same_bits(to_numpy(backend, run(ours)), wanted)


@pytest.mark.parametrize("axis", [-4, -3, -2, -1], ids=["batch", "heads", "rows", "columns"])
@pytest.mark.parametrize("name", ["mask", "bias"])
def test_strides_of_scores_past_2_to_31_elements(backend, vast, name, axis):
    sizes = {-4: {"N": (2,)}, -3: {"Hq": 2}, -2: {"Lq": 2}, -1: {"Lk": 2}}[axis]
    problem = Case(Shape((1,), 1, 1, 1, 1, 16, 16)._replace(**sizes), "float16", (name,)).make()
    wanted = run_on(backend, problem)
    ours = problem.map(backend.array)
    ours.options[name] = far_apart(backend, vast, problem.options[name], axis, near=1)
    assert_same_bits(to_numpy(backend, run(ours)), wanted)


def test_result_past_2_to_31_elements(backend, vast):
    problem = Case(Shape((2,), 3, 5, 2, 1, 16, 16), "float16").make().map(backend.array)
    wanted = backend.numpy(flash.attention(*problem.qkv))
    out = backend.within(vast(backend), numpy.zeros_like(wanted), [2 * FAR, 2 * 32, 2 * 16, 2])
    assert_same_bits(backend.numpy(flash.attention(*problem.qkv, out=out, **junk(problem))).copy(), wanted)


L, LAST = 100_000, 128 + 100_000 % 128  # 10^10 scores, of which the rules below leave few


def long_problem():
    problem = Case(Shape((), L, L, 1, 1, 8, 8), "float32").make()
    end = Problem(*(x[-LAST:] for x in (*problem.qkv, problem.do)), problem.dlse[:, -LAST:])
    return problem, end


def test_block_mask_past_2_to_31_scores():
    """The last rows are a small problem: they see none but the last keys."""
    problem, end = long_problem()
    problem.options = {"block_mask": flash.BlockMask.sliding_window(L, L, 128, (0, 0)), "window": (100, 3)}
    end.options = {"block_mask": flash.BlockMask.sliding_window(LAST, LAST, 128, (0, 0)), "window": (100, 3)}
    (o, lse, gradients), (end_o, end_lse, end_gradients) = run(problem), run(end)
    numpy.testing.assert_allclose(o[-LAST:], end_o, atol=1e-6)
    numpy.testing.assert_allclose(lse[:, -LAST:], end_lse, atol=1e-6)
    for x, wanted in zip(gradients[:3], end_gradients[:3], strict=True):
        numpy.testing.assert_allclose(x[-LAST:], wanted, atol=1e-5)


def test_dropout_past_2_to_31_scores():
    problem, end = long_problem()
    problem.options = {"window": (70, 3), "dropout": 0.25, "seed": 5}
    o = flash.attention(*problem.qkv, **problem.options)
    rows, columns = numpy.meshgrid(numpy.arange(L - 20, L), numpy.arange(L - LAST, L), indexing="ij")
    p = flash.attention_weights(problem.q, problem.k, rows=rows[:, 0], **problem.options)[0, :, -LAST:]
    kept = numpy.where(kept_far_out(5, 0.25, rows, columns), p, 0.0) / 0.75
    numpy.testing.assert_allclose(o[-20:, 0], kept @ end.v[:, 0], atol=1e-5)


def kept_far_out(seed, dropout, i, j):
    """What dropout keeps at (i, j) of batch 0, head 0, without the matrix up to there."""
    i, j = i.astype("u8"), j.astype("u8")
    words = numpy.stack(philox4x32([j >> 1, i >> 1, i * 0, i * 0], (seed, 0)))
    word = numpy.take_along_axis(words, (2 * (i & 1) + (j & 1)).astype("i8")[None], axis=0)[0]
    return word >= round(dropout * 2**32)
