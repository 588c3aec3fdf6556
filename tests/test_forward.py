"""The forward against standard attention in float64: every option, dtype, length and head dim, and random mixtures."""

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from numeric import Answers, assert_same_bits, check, to_numpy
from problems import (
    DIMS,
    DTYPES,
    GROUPS,
    LEADING_AXES,
    LENGTH_PAIRS,
    MAIN,
    OF_SEQUENCES,
    OPTIONS,
    VALUE_DIMS,
    Case,
    Shape,
    dtype_of,
    of_lengths,
)

import flash


def forward(case, kind=None):
    check(case, kind, backward=False)


# ---- Each value of each axis -----------------------------------------------------------------------------------------


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_option(backend, option, dtype):
    forward(Case(backend.smaller(Shape(Lq=70, Lk=150, D=24, Dv=32), Hq=2, Hk=1), dtype, (option,)), backend)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_with_every_kind_of_array(kind, option):
    dtype = kind.dtypes[list(OPTIONS).index(option) % len(kind.dtypes)]
    forward(Case(Shape(Lq=19, Lk=33), dtype, (option,)), kind)


LONG = 300  # where one dtype is enough: long double is slow


@pytest.mark.in_turn("dtype", "causal")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("Lq, Lk", [pair for pair in LENGTH_PAIRS if max(pair) < LONG])
def test_length(backend, Lq, Lk, causal, dtype):
    forward(of_lengths(Lq, Lk, causal, dtype), backend)


@pytest.mark.in_turn("causal")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("Lq, Lk", [pair for pair in LENGTH_PAIRS if max(pair) >= LONG])
def test_long(backend, Lq, Lk, causal):
    if Lq * Lk > backend.most_scores:
        pytest.skip(f"more than {backend.most_scores:,} scores take too long here")
    forward(of_lengths(Lq, Lk, causal, DTYPES[(Lq + Lk + causal) % 3]), backend)


@pytest.mark.parametrize(
    "dtype, options, seed", [("float32", (), 531), ("float64", (), 650), ("float64", ("block_mask_of_batch",), 655)]
)
def test_largest_error(dtype, options, seed):
    """Three of a thousand problems in which sums over a whole tile of keys round more than the rule allows."""
    forward(Case(Shape((2,), 199, 199, 1, 1, 3, 3), dtype, options, seed=seed))


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", DIMS)
def test_head_dim(backend, D, dtype):
    forward(Case(backend.smaller(Shape((), 33, 70, 2, 1, D, D), Hq=1), dtype), backend)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D, Dv", VALUE_DIMS)
def test_value_dim_of_its_own(backend, D, Dv, dtype):
    forward(Case(backend.smaller(Shape((1,), 35, 67, 2, 2, D, Dv), Hq=1, Hk=1), dtype, ("causal",)), backend)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("Hq, Hk", GROUPS)
def test_grouped_heads(backend, Hq, Hk, dtype):
    forward(Case(Shape((2,), 20, 34, Hq, Hk, 8, 8), dtype, ("bias_wide",)), backend)


@pytest.mark.in_turn("option")
@pytest.mark.parametrize("option", OF_SEQUENCES)
@pytest.mark.parametrize("N", LEADING_AXES)
def test_leading_axes(backend, N, option):
    forward(Case(Shape(N, 18, 35, 2, 1, 8, 8), "float32", ("mask_of_keys", option)), backend)


# ---- Random mixtures -------------------------------------------------------------------------------------------------


def test_random(backend):
    @settings(
        max_examples=backend.share(150),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=backend.random_cases())
    def examine(case):
        forward(case, backend)

    examine()


# ---- Values that matter ----------------------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dropout", [0.0, 1e-3, 0.5, 0.999, 1.0])
def test_dropout_share(backend, dropout):
    problem = Case(Shape(Lq=40, Lk=70), "float32", ("dropout",)).make()
    problem.options |= {"dropout": dropout}
    wanted = flash.reference.attention(*problem.qkv, **problem.options, dtype="f8")
    ours = problem.map(backend.array)
    o, lse = to_numpy(backend, flash.attention(*ours.qkv, **ours.options, return_lse=True))
    numpy.testing.assert_allclose(o, wanted, atol=1e-6 * abs(wanted).max(), rtol=0)
    plain = to_numpy(backend, flash.attention(*ours.qkv, return_lse=True))
    numpy.testing.assert_array_equal(lse, plain[1])  # lse is that before dropout
    assert o.any() == (dropout < 1)
    if dropout == 0:
        assert_same_bits(o, plain[0])


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**40 + 7, 2**63, 2**64 - 1])
def test_seed(backend, seed):
    """A seed as a number and as an array of any shape with one element, where it fits one."""
    problem = Case(backend.smaller(Shape(N=(2, 2), Lq=33, Lk=35), Hq=1, Hk=1), "float32", ("dropout",)).make()
    problem.options["seed"] = seed
    wanted = flash.reference.attention(*problem.qkv, **problem.options, dtype="f8")
    given = [seed]
    for dtype in ("i4", "i8"):
        if seed <= numpy.iinfo(dtype).max:
            given += [numpy.full(shape, seed, dtype) for shape in ((), (1,), (1, 1))]
    for x in given:
        problem.options["seed"] = x
        ours = problem.map(backend.array)
        o = backend.numpy(flash.attention(*ours.qkv, **ours.options))
        numpy.testing.assert_allclose(o, wanted, atol=3e-6, rtol=0)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 0, 1e-3, 1.0, 30.0, 1e6])
def test_softcap(backend, softcap, dtype):
    known = Answers(Case(Shape(Lq=20, Lk=70), dtype, factor=20.0, seed=1).make())
    known.problem.options["softcap"] = softcap
    ours = known.problem.map(backend.array)
    known.check_forward(*to_numpy(backend, flash.attention(*ours.qkv, **ours.options, return_lse=True)))


# ---- A small subset for the sanitizers -------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_options_in_small(dtype):
    for n, option in enumerate(OPTIONS):
        if n % len(DTYPES) == DTYPES.index(dtype) or option in MAIN:
            forward(Case(Shape((2,), 17 + n, 35 - n % 3, 2, 1, 9 + n % 8, 7 + n % 10), dtype, (option,)))
    for D in (1, 8, 21, 64, 576):
        forward(Case(Shape((), 5, 19, 1, 1, D, D), dtype))
    assert dtype_of(dtype).name == dtype
