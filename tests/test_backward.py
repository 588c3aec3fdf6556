"""Gradients against those of standard attention in float64, and against finite differences of the forward."""

import math
from itertools import product

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from numeric import Answers, assert_same_bits, check, finite_differences, junk, run, run_on
from problems import (
    DIMS,
    DTYPES,
    GROUPS,
    LEADING_AXES,
    LENGTH_PAIRS,
    MAIN,
    OF_SEQUENCES,
    OPTIONS,
    PAIRS,
    VALUE_DIMS,
    WRT,
    Case,
    Shape,
    of_lengths,
)

import flash

# ---- Each value of each axis -----------------------------------------------------------------------------------------


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_option(backend, option, dtype):
    check(Case(backend.smaller(Shape(Lq=70, Lk=150, D=24, Dv=32), Hq=2, Hk=1), dtype, (option,)), backend)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_with_every_kind_of_array(kind, option):
    dtype = kind.dtypes[list(OPTIONS).index(option) % len(kind.dtypes)]
    check(Case(Shape(Lq=19, Lk=33), dtype, (option,)), kind)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_pair_of_options(backend, pair):
    dtype = backend.dtypes[PAIRS.index(pair) % len(backend.dtypes)]
    check(Case(backend.smaller(Shape(Lq=45, Lk=69), Hq=2, Hk=1), dtype, pair), backend)


class FarScores(Case):
    """With scores around 100, of few bits."""

    def make(self):
        problem = super().make()
        for name, add in (("q", 4), ("k", math.ceil(8 * 98 / self.shape.D) / 8)):
            x = getattr(problem, name)
            setattr(problem, name, (numpy.round(x.astype("f4")) / 8 + add).astype(x.dtype))
        problem.options["scale"] = 0.25
        return problem


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("D, Dv", [(40, 56), (120, 96)])
def test_scores_far_from_0(backend, D, Dv, seed):
    """What rounding takes from the factor of all scores must not show in p = 2^(factor s - lse)."""
    for dtype in {"float32", "float64"} & set(backend.dtypes):
        check(FarScores(Shape((1,), 64, 136, 1, 1, D, Dv), dtype, seed=seed), backend)


LONG = 200  # where one dtype is enough: long double is slow


@pytest.mark.in_turn("dtype", "causal")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("Lq, Lk", [pair for pair in LENGTH_PAIRS if max(pair) < LONG])
def test_length(backend, Lq, Lk, causal, dtype):
    check(of_lengths(Lq, Lk, causal, dtype), backend)


@pytest.mark.in_turn("causal")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("Lq, Lk", [pair for pair in LENGTH_PAIRS if max(pair) >= LONG])
def test_long(backend, Lq, Lk, causal):
    if Lq * Lk > backend.most_scores:
        pytest.skip(f"more than {backend.most_scores:,} scores take too long here")
    check(of_lengths(Lq, Lk, causal, DTYPES[(Lq + Lk + causal) % 3]), backend)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", DIMS)
def test_head_dim(backend, D, dtype):
    check(Case(backend.smaller(Shape((), 33, 70, 2, 1, D, D), Hq=1), dtype), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [(), ("causal", "bias", "softcap", "dropout", "sinks")], ids=["plain", "options"])
@pytest.mark.parametrize("D", [64, 128, 192, 256, 576])
def test_kernels(backend, D, options, dtype):
    """Each dtype at each head dim that kernels are built for, with and without options of scores."""
    check(Case(backend.smaller(Shape((), 70, 150, 2, 1, D, D), Hq=1), dtype, options), backend)


OF_SCORES = "scale_negative", "softcap", "alibi", "bias", "bias_wide", "bias_of_keys", "mask", "mask_of_keys", "dropout"


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("option", OF_SCORES)
def test_whole_tiles(backend, option, dtype):
    """Tensor cores' kernels go another way where all see all, and a bias or mask lies in aligned pairs."""
    for device in backend.devices():
        with device:
            check(Case(backend.smaller(Shape((), 192, 192, 2, 1, 40, 24), Hq=1), dtype, (option,)), backend)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D, Dv", VALUE_DIMS)
def test_value_dim_of_its_own(backend, D, Dv, dtype):
    check(Case(backend.smaller(Shape((1,), 35, 67, 2, 2, D, Dv), Hq=1, Hk=1), dtype, ("causal",)), backend)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("Hq, Hk", GROUPS)
def test_grouped_heads(backend, Hq, Hk, dtype):
    check(Case(Shape((2,), 20, 34, Hq, Hk, 8, 8), dtype, ("bias_wide",)), backend)


@pytest.mark.in_turn("option")
@pytest.mark.parametrize("option", OF_SEQUENCES)
@pytest.mark.parametrize("N", LEADING_AXES)
def test_leading_axes(backend, N, option):
    check(Case(Shape(N, 18, 35, 2, 1, 8, 8), "float32", ("mask_of_keys", option)), backend)


def test_random(backend):
    @settings(
        max_examples=backend.share(120),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=backend.random_cases())
    def examine(case):
        check(case, backend, with_dlse=case.seed % 2 == 0)

    examine()


# ---- Gradients of their own ------------------------------------------------------------------------------------------


def bias_shapes(N=(2, 3), Hq=2, Lq=19, Lk=37):
    """Each axis whole or broadcast, and fewer axes."""
    full = (*N, Hq, Lq, Lk)
    kept = product([True, False], repeat=len(full))
    shapes = [tuple(size if k else 1 for size, k in zip(full, keep, strict=True)) for keep in kept]
    return [*shapes, *(full[count:] for count in range(1, len(full) + 1)), (Lq, 1)]


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", bias_shapes(), ids=lambda shape: "x".join(map(str, shape)) or "scalar")
def test_dbias_has_the_shape_of_bias(backend, shape, dtype):
    """Summed over what is broadcast. Its dtype is q's or float32."""
    known = Answers(Case(Shape((2, 3), 19, 37, 2, 1, 8, 8), dtype, ("causal",)).make())
    bias = numpy.random.default_rng(DTYPES.index(dtype)).normal(size=shape)
    known.problem.options["bias"] = numpy.asarray(bias, "f4" if dtype == "bfloat16" else known.dtype)
    known.check(backend)


@pytest.mark.parametrize("axes", [("Lq", 1), (1, "Lk"), (2, 1, 1), (1, 1), ("Lq", "Lk"), ()], ids=str)
def test_dbias_over_many_tiles(backend, axes):
    """Lengths of several strips and tiles, so that what is summed meets across tasks."""
    shape = backend.smaller(Shape((), 300, 600, 2, 1, 8, 8), Lq=150, Lk=300)
    known = Answers(Case(shape, "float32", ("window",)).make())
    sizes = [getattr(shape, axis) if isinstance(axis, str) else axis for axis in axes]
    known.problem.options["bias"] = numpy.asarray(numpy.random.default_rng(0).normal(size=sizes), "f4")
    known.check_backward(run_on(backend, known.problem)[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_dlse(backend, dtype):
    check(Case(dtype=dtype, options=("causal", "sinks")), backend, with_dlse=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_gradient_alone_has_the_same_bits(backend, dtype):
    """What isn't asked for is None, whatever else is asked for."""
    shape = backend.smaller(Shape(Lq=70, Lk=200), N=(), Hq=2, Hk=1, Lk=150)
    problem = Case(shape, dtype, ("bias", "sinks", "causal")).make().map(backend.array)
    o, lse, everything = run(problem)
    for wanted in ([name] for name in WRT):
        more = {"dlse": problem.dlse, "wrt": wanted, **junk(problem, backward=True, wrt=wanted)}
        g = flash.attention_backward(problem.do, *problem.qkv, o, lse, **problem.options, **more)
        for name, x, all_x in zip(WRT, g, everything, strict=True):
            if name in wanted:
                assert_same_bits(backend.numpy(x), backend.numpy(all_x), name)
            else:
                assert x is None
    assert flash.attention_backward(problem.do, *problem.qkv, o, lse, **problem.options, wrt=()) == (None,) * 5


# ---- Finite differences ----------------------------------------------------------------------------------------------


FINITE_DIFFERENCES = [(option,) for option in OPTIONS] + [
    ("bias", "sinks", "softcap", "alibi", "causal", "dropout", "q_lens", "kv_lens"),
    ("bias_of_keys", "sinks_wide", "window", "scale_negative", "mask", "q_offset_array", "dropout"),
]


@pytest.mark.sanitize
@pytest.mark.parametrize("options", FINITE_DIFFERENCES, ids="-".join)
def test_finite_differences(options):
    """float64: every gradient, through o and lse, of every element."""
    case = Case(Shape((2,), 4, 5, 2, 1, 3, 2), "float64", options)
    if any(option.startswith("block_mask") for option in options):
        case = case.with_shape(N=(2,), Lq=18, Lk=35, Hq=2, D=2, Dv=1)
    problem = case.make()
    arguments = {"q": problem.q, "k": problem.k, "v": problem.v}
    arguments |= {name: problem.options[name] for name in ("bias", "sinks") if name in problem.options}
    do, dlse = numpy.nan_to_num(problem.do), numpy.nan_to_num(problem.dlse)

    def loss():
        o, lse = flash.attention(*problem.qkv, **problem.options, return_lse=True)
        return (o * do).sum() + (numpy.where(lse == -math.inf, 0.0, lse) * dlse).sum()

    gradients = run(problem)[2]
    for name, x in arguments.items():
        wanted = finite_differences(loss, x)
        numpy.testing.assert_allclose(getattr(gradients, f"d{name}"), wanted, rtol=1e-7, atol=1e-8, err_msg=name)


# ---- A small subset for the sanitizers -------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_options_in_small(dtype):
    for n, option in enumerate(OPTIONS):
        if n % len(DTYPES) == DTYPES.index(dtype) or option in MAIN:
            check(Case(Shape((2,), 17 + n, 35 - n % 3, 2, 1, 9 + n % 8, 7 + n % 10), dtype, (option,)))
    for D in (1, 8, 21, 64, 576):
        check(Case(Shape((), 5, 19, 1, 1, D, D), dtype))
