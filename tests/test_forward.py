"""The forward against standard attention in float64: every option, dtype, length and head dim, and random mixtures."""

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from numeric import answers, assert_same_bits, check
from problems import DIMS, DTYPES, LENGTHS, MAIN, OPTIONS, Case, Shape, dtype_of, random_cases

import flash


def forward(case, kind=None):
    check(case, kind, backward=False)


# ---- Each value of each axis -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_option(backend, option, dtype):
    if dtype in backend.dtypes:
        forward(Case(Shape(Lq=70, Lk=150, D=24, Dv=32), dtype, (option,)), backend)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_with_every_kind_of_array(kind, option):
    dtype = kind.dtypes[list(OPTIONS).index(option) % len(kind.dtypes)]
    forward(Case(Shape(Lq=19, Lk=33), dtype, (option,)), kind)


# Each length as Lq and as Lk, beside itself and beside another one, with and without a triangle.
LENGTH_PAIRS = [*zip(LENGTHS, LENGTHS, strict=True), *zip(LENGTHS, LENGTHS[5:] + LENGTHS[:5], strict=True)]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("Lq, Lk", LENGTH_PAIRS)
def test_length(backend, Lq, Lk, causal):
    if max(Lq, Lk) > backend.longest:
        pytest.skip(f"lengths above {backend.longest} take too long here")
    for n, dtype in enumerate(backend.dtypes):
        # Long double is slow, and long sequences in one dtype are enough.
        if max(Lq, Lk) < 300 or n == (Lq + Lk + causal) % 3:
            shape = Shape((), Lq, Lk, Hq=2, Hk=1, D=16, Dv=16)
            forward(Case(shape, dtype, ("causal",) if causal else ()), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", DIMS)
def test_head_dim(backend, D, dtype):
    if dtype in backend.dtypes:
        forward(Case(Shape((), 33, 70, 2, 1, D, D), dtype), backend)


@pytest.mark.parametrize("D, Dv", [(1, 256), (576, 512), (192, 128), (64, 65), (40, 8), (21, 1), (256, 21)])
def test_value_dim_of_its_own(backend, D, Dv):
    for dtype in backend.dtypes:
        forward(Case(Shape((1,), 35, 67, 2, 2, D, Dv), dtype, ("causal",)), backend)


@pytest.mark.parametrize("Hq, Hk", [(1, 1), (3, 3), (4, 1), (6, 2), (6, 3), (12, 4)])
def test_grouped_heads(backend, Hq, Hk):
    for dtype in backend.dtypes:
        forward(Case(Shape((2,), 20, 34, Hq, Hk, 8, 8), dtype, ("bias_wide",)), backend)


@pytest.mark.parametrize("N", [(), (1,), (2,), (2, 3), (2, 1, 2), (0,), (2, 0)])
def test_leading_axes(backend, N):
    options = ["q_lens", "kv_lens", "q_offset_array", "bias", "alibi_of_batch", "block_mask_of_batch", "dropout"]
    for option in options:
        forward(Case(Shape(N, 18, 35, 2, 1, 8, 8), "float32", ("mask_of_keys", option)), backend)


# ---- Random mixtures -------------------------------------------------------------------------------------------------


@settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=random_cases())
def test_random(case):
    forward(case)


# ---- Values that matter ----------------------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dropout", [0.0, 1e-3, 0.5, 0.999, 1.0])
def test_dropout_share(backend, dropout):
    case = Case(Shape(Lq=40, Lk=70), "float32", ("dropout",))
    problem = case.make()
    problem.options |= {"dropout": dropout}
    problem = problem.map(backend.array)
    o, lse = (backend.numpy(x) for x in flash.attention(*problem.qkv, **problem.options, return_lse=True))
    wanted = flash.reference.attention(*case.make().qkv, dropout=dropout, seed=problem.options["seed"], dtype="f8")
    numpy.testing.assert_allclose(o, wanted, atol=1e-6 * abs(wanted).max(), rtol=0)
    plain = flash.attention(*problem.qkv, return_lse=True)
    numpy.testing.assert_array_equal(lse, backend.numpy(plain[1]))  # lse is that before dropout
    assert o.any() == (dropout < 1)
    if dropout == 0:
        assert_same_bits(o, backend.numpy(plain[0]))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**40 + 7, 2**63, 2**64 - 1])
def test_seed(backend, seed):
    """A seed as a number and as an array of any shape with one element, where it fits one."""
    problem = Case(Shape(N=(2, 2), Lq=33, Lk=35), "float32", ("dropout",)).make()
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 0, 1e-3, 1.0, 30.0, 1e6])
def test_softcap(backend, softcap, dtype):
    if dtype in backend.dtypes:
        case = Case(Shape(Lq=20, Lk=70), dtype, factor=20.0, seed=1)
        known = type(answers(case))(case.make())
        known.problem.options["softcap"] = softcap
        problem = known.problem.map(backend.array)
        o, lse = flash.attention(*problem.qkv, **problem.options, return_lse=True)
        known.check_forward(backend.numpy(o), backend.numpy(lse))


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
