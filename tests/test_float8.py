"""float8 (e4m3fn): the forward on Hopper, and what is said where there is none.

exact    the mathematics in float64 on the stored numbers times their factors
naive    the same, but for weights rounded to e4m3 as multiples of 2^-8 of the row's largest, and a rounded result
"""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from pathlib import Path

import emulated
import numpy
import pytest
from float8_errors import BFLOAT16, FLOAT8, errors
from hopper_tiles import DEPTH_FP8, FORWARD_FP8
from kinds import Emulated
from numeric import assert_accurate, assert_accurate_lse, assert_same_bits, run_reference
from problems import Case, Problem, Shape

import flash
from flash import reference

SHAPE = Shape((2,), 70, 150, 4, 2, 64, 64)
FACTORS = {
    "q_scale": numpy.float32([[0.5, 2.0], [0.25, 3.0]]),
    "k_scale": 0.7,
    "v_scale": numpy.float32([[4, -1], [2, 0.1]]),
}


@pytest.fixture(autouse=True)
def hopper(request):
    """On the emulator the device with these kernels; elsewhere a skip where the GPU is another."""
    if "backend" not in request.fixturenames:
        yield
        return
    backend = request.getfixturevalue("backend")
    if backend.backend != "cuda":
        pytest.skip("the CPU has no float8")
    with emulated.Device(emulated.HOPPER) if backend.name == "emulated" else nullcontext():
        if (flash.show_config("dicts") or {})["cuda"]["devices"][0]["compute_capability"] != "9.0":
            pytest.skip("float8 runs on Hopper only")
        yield


def stored(problem: Problem) -> Problem:
    """With q, k and v in float8. What is NaN stays so."""
    return Problem(*(x.astype(FLOAT8) for x in problem.qkv), problem.do, problem.dlse, problem.options)


def problem_of(shape: Shape = SHAPE, options: tuple[str, ...] = (), **more) -> Problem:
    problem = stored(Case(shape, "float32", options).make())
    problem.options |= more
    return problem


@reference._quiet
def rounded_weights(problem: Problem) -> numpy.ndarray:
    """o in float64 with the weights that the kernel's products take."""
    numbers = reference._Numbers.of(problem.q, "f8")
    f = reference._forward(numbers, *problem.qkv, **problem.options)
    most = f.p.max(axis=-1, keepdims=True, initial=0.0)
    weights = (256.0 * f.p / numpy.where(most == 0.0, 1.0, most)).astype(FLOAT8).astype("f8") / 256.0 * most
    return numpy.moveaxis(
        reference._query_product(numbers, reference._drop(numbers, f, weights), f.v, f.listed), -3, -2
    )


def run(backend, problem: Problem, **more) -> tuple[numpy.ndarray, numpy.ndarray]:
    on_device = problem.map(backend.array)
    o, lse = flash.attention(*on_device.qkv, **on_device.options, return_lse=True, **more)
    return backend.numpy(o), backend.numpy(lse)


def check_results(problem: Problem, o: numpy.ndarray, lse: numpy.ndarray) -> None:
    exact, exact_lse, _ = run_reference(problem, "f8", with_dlse=False, backward=False)
    assert lse.dtype == "f4"
    assert_accurate("o", o, exact, [rounded_weights(problem).astype(o.dtype)])
    assert_accurate_lse(lse, exact_lse, [run_reference(problem, "f4", with_dlse=False, backward=False)[1]])


def check(backend, problem: Problem, dtype: numpy.dtype = BFLOAT16, **more) -> tuple[numpy.ndarray, numpy.ndarray]:
    o, lse = run(backend, problem, **more)
    assert o.dtype == dtype
    check_results(problem, o, lse)
    return o, lse


# ---- Results ---------------------------------------------------------------------------------------------------------

DIMS = [(64, 64), (128, 128), (256, 256), (16, 16), (80, 112), (32, 208), (256, 16)]


@pytest.mark.sanitize
@pytest.mark.parametrize("options", [(), ("softcap",)], ids=["plain", "options"])
@pytest.mark.parametrize("D, Dv", DIMS)
def test_head_dims(backend, D, Dv, options):
    check(
        backend, problem_of(Shape((), 67, 251, 2, 1, D, Dv), options, **{**FACTORS, "q_scale": 1.25, "v_scale": None})
    )


@pytest.mark.parametrize("D, Lq, Lk", [
    (64, 1, 1), (64, 193, 160), (64, 64, 161), (64, 2, 321), (128, 129, 224), (128, 65, 225), (128, 5, 449),
    (256, 128, 96), (256, 3, 97), (64, 3, 0), (64, 0, 3),
])  # fmt: skip
def test_lengths(backend, D, Lq, Lk):
    check(backend, problem_of(Shape((1,), Lq, Lk, 1, 1, D, D)))


OPTIONS = [
    ("causal",), ("causal_top_left",), ("window", "sinks"), ("window_zero",), ("q_offset_array", "window_left"),
    ("q_lens", "kv_lens"), ("kv_lens", "causal", "sinks"), ("scale_negative",), ("scale_zero",), ("scale", "causal"),
    ("mask", "q_lens"), ("bias_wide", "kv_lens"), ("bias_of_keys",), ("alibi_of_batch", "causal"),
    ("softcap", "sinks_wide"), ("dropout", "causal"), ("dropout_seed_array", "kv_lens"),
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_options(backend, options):
    check(backend, problem_of(SHAPE, options, **FACTORS))


@pytest.mark.sanitize
@pytest.mark.parametrize("blocks", [(64, 64), (128, 256)], ids=str)
@pytest.mark.parametrize("D", [64, 128])
def test_block_masks(backend, blocks, D):
    """Unlisted blocks are neither read nor computed: NaN there reaches nothing."""
    problem = problem_of(SHAPE._replace(N=(), Lq=130, Lk=500, D=D, Dv=D), ("causal",), k_scale=0.5)
    rows, columns = -(-130 // blocks[0]), -(-500 // blocks[1])
    dense = numpy.random.default_rng(1).random((4, rows, columns)) < 0.6
    dense[..., 1] = False
    problem.options["block_mask"] = flash.BlockMask.from_dense(dense, blocks, Lq=130, Lk=500)
    for x in (problem.k, problem.v):
        x[blocks[1] : 2 * blocks[1]] = math.nan
    check(backend, problem)


@pytest.mark.sanitize
@pytest.mark.parametrize("D", [64, 128, 256])
def test_nan_past_the_lengths(backend, D):
    problem = problem_of(Shape((3,), 70, 230, 1, 1, D, D), ("sinks",))
    problem.options |= {"kv_lens": numpy.array([0, 100, 229]), "q_lens": numpy.array([70, 0, 69])}
    for x, lengths in ((problem.q, "q_lens"), (problem.k, "kv_lens"), (problem.v, "kv_lens")):
        for n, length in enumerate(problem.options[lengths]):
            x[n, length:] = math.nan
    o, lse = check(backend, problem)
    assert not o[0].any() and not o[1].any() and not o[2, 69:].any()
    assert (lse[1] == -math.inf).all() and (lse[2, :, 69:] == -math.inf).all()
    numpy.testing.assert_allclose(lse[0], numpy.broadcast_to(problem.options["sinks"][:, None], (1, 70)), 1e-6)


FACTOR_CASES = {
    "numbers": {"q_scale": 2.0, "k_scale": 0.125, "v_scale": 3},
    "negative": {
        "q_scale": numpy.float32([[-1.0, 1.0], [-0.5, -2.0]]),
        "k_scale": numpy.float32([[1.0, -1.0], [-1, 3]]),
    },
    "zero": {"q_scale": numpy.float32([[0.0, 1.0], [1.0, 1.0]]), "v_scale": numpy.float32([[1.0, 0.0], [2.0, 1.0]])},
    "small": {"q_scale": 2.0**-70, "k_scale": 2.0**-70, "v_scale": 2.0**-20},
}


@pytest.mark.parametrize("options", [(), ("bias_wide",)], ids=["plain", "options"])
@pytest.mark.parametrize("factors", FACTOR_CASES)
def test_factors(backend, factors, options):
    check(backend, problem_of(SHAPE, (*options, "causal"), **FACTOR_CASES[factors]))


def test_large_scores(backend):
    """lse beyond the range of float32's exp, and rows whose largest weight comes last."""
    problem = problem_of(Shape((), 40, 400, 1, 1, 64, 64), scale=1.0, q_scale=8.0)
    problem.k[...] = numpy.sort(problem.k.astype("f4"), axis=0).astype(FLOAT8)
    _, lse = check(backend, problem)
    assert lse.max() > 89.0


FEW = [(), ("causal", "kv_lens"), ("sinks", "q_lens"), ("window_left",), ("softcap", "dropout")]


@pytest.mark.parametrize("options", FEW, ids="-".join)
@pytest.mark.parametrize(
    "D, Lq, Lk, Hq", [(64, 1, 2600, 16), (128, 17, 1800, 3), (256, 2, 1600, 8), (64, 64, 1281, 2), (128, 5, 300, 4)]
)
def test_few_queries(backend, D, Lq, Lk, Hq, options):
    """Heads that share keys share a tile, and keys come in pieces of 1280, 1792 or 1536."""
    check(backend, problem_of(Shape((1,), Lq, Lk, Hq, 1, D, D), options, q_scale=1.5, v_scale=numpy.float32([[-2.0]])))


def test_few_queries_with_blocks_and_strange_rows(backend):
    problem = problem_of(Shape((2,), 60, 2000, 2, 2, 64, 64), ("kv_lens",), **FACTORS)
    dense = numpy.random.default_rng(3).random((2, 1, 8)) < 0.6
    problem.options["block_mask"] = flash.BlockMask.from_dense(dense, (64, 256), Lq=60, Lk=2000)
    check(backend, problem)
    problem = problem_of(Shape((2,), 3, 1500, 6, 1, 64, 64), k_scale=0.5)
    problem.v = problem.v[..., :21]
    out = backend.array(numpy.zeros((2, 6, 3, 21), "f4").swapaxes(1, 2))
    check(backend, problem, numpy.dtype("f4"), out=out)


def test_few_queries_depend_on_no_other(backend):
    problem = problem_of(Shape((3,), 2, 2700, 4, 1, 64, 64), ("sinks",), kv_lens=numpy.array([2700, 100, 2000]))
    o, lse = run(backend, problem)
    for b in range(3):
        options = {**problem.options, "kv_lens": problem.options["kv_lens"][b : b + 1]}
        alone = Problem(*(x[b : b + 1] for x in problem.qkv), None, None, options)
        assert_same_bits(run(backend, alone), (o[b : b + 1], lse[b : b + 1]))


def test_a_row_depends_on_no_other(backend):
    problem = problem_of(SHAPE._replace(Lq=200, Lk=400), ("causal",), q_offset=150, **FACTORS)
    o, lse = run(backend, problem)
    q = numpy.ascontiguousarray(problem.q[1:, 130:150, 2:])
    one = Problem(q, *(numpy.ascontiguousarray(x[1:, :, 1:]) for x in (problem.k, problem.v)), None, None)
    one.options = {"causal": True, "q_offset": 280, "k_scale": 0.7, "q_scale": 3.0, "v_scale": numpy.float32([[0.1]])}
    assert_same_bits(run(backend, one), (o[1:, 130:150, 2:], lse[1:, 2:, 130:150]))
    for order in backend.orders():
        with order:
            assert_same_bits(run(backend, problem), (o, lse))


# ---- How arrays lie --------------------------------------------------------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("Dv", [64, 40, 21])
def test_out(backend, dtype, Dv):
    """In the type and with the strides that the caller chose."""
    dtype = BFLOAT16 if dtype == "bfloat16" else numpy.dtype(dtype)
    problem = problem_of(Shape((2,), 70, 90, 2, 2, 64, 64))
    problem.v = problem.v[..., :Dv]
    for memory, transpose in (
        (numpy.zeros((2, 2, 70, Dv), dtype), True),
        (numpy.zeros((2, 70, 2, Dv + 3), dtype), False),
    ):
        view = memory.swapaxes(1, 2) if transpose else memory[..., 1 : Dv + 1]
        check(backend, problem, dtype, out=backend.array(view))


def test_strides(backend):
    """Heads before rows, a part of a longer array, and rows with a gap."""
    wide = problem_of(Shape((2,), 90, 130, 2, 2, 64, 64))
    wanted = run(backend, wide)
    for place in (
        lambda x: numpy.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
        lambda x: numpy.concatenate([x, x], axis=1)[:, : x.shape[1]],
        lambda x: numpy.concatenate([x, x[..., :16]], axis=-1)[..., :64],
    ):
        problem = Problem(*map(place, wide.qkv), None, None, {})
        assert_same_bits(run(backend, problem), wanted)
    odd = Problem(*(numpy.concatenate([x[..., :21], x[..., :11]], axis=-1)[..., :21] for x in wide.qkv), None, None, {})
    check(backend, odd)  # 21 numbers in rows of 32


# ---- What it doesn't take --------------------------------------------------------------------------------------------


def zeros(*shape, dtype=FLOAT8):
    return numpy.zeros(shape, dtype)


NARROW, UNSUPPORTED, VALUE, TYPE = (2, 3, 2, 16), flash.UnsupportedError, flash.FlashValueError, flash.FlashTypeError
WRONG = {
    "head dim": ((1, 3, 1, 8), {}, UNSUPPORTED, "q: rows of float8_e4m3fn must start at multiples of 16 bytes"),
    "large head dim": (
        (1, 3, 1, 272), {}, UNSUPPORTED,
        "[qv]: head dimensions of float8_e4m3fn must be at most 256, got 272; convert to float16",
    ),
    "blocks": (
        (1, 64, 1, 64), {"block_mask": flash.BlockMask.causal(64, 64, 32)}, UNSUPPORTED,
        "block_mask: blocks must be at least 64 x 64 with float8_e4m3fn, got 32 x 32; convert to float16",
    ),
    "out": (
        NARROW, {"out": zeros(*NARROW)}, TYPE, "out: dtype must be float16 or bfloat16 or float32, got float8_e4m3fn",
    ),
    "factor shape": (NARROW, {"q_scale": numpy.ones(2, "f4")}, VALUE, r"q_scale: shape must be .*N \+ \(Hk,\)"),
    "factor dtype": (NARROW, {"v_scale": numpy.ones((2, 2))}, TYPE, "v_scale: dtype must be float32, got float64"),
    "factor kind": (NARROW, {"k_scale": "2"}, TYPE, "k_scale: must be a real number, got '2'"),
    "bias": (NARROW, {"bias": zeros(3, 3)}, TYPE, "bias: dtype must be float32, got float8_e4m3fn"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(backend, case):
    shape, options, error, message = WRONG[case]
    x = backend.array(zeros(*shape))
    options = {name: backend.array(y) if isinstance(y, numpy.ndarray) else y for name, y in options.items()}
    with pytest.raises(error, match=message):
        flash.attention(x, x, x, **options)


def test_what_only_other_types_have(backend):
    x, y = backend.array(zeros(1, 3, 2, 16)), backend.array(zeros(1, 3, 2, 16, dtype="f4"))
    with pytest.raises(flash.FlashTypeError, match="k: dtype must be float8_e4m3fn as in q, got float32"):
        flash.attention(x, y, y)
    with pytest.raises(flash.UnsupportedError, match="q: float8_e4m3fn has no backward; convert to"):
        flash.attention_backward(y, x, x, x, y, backend.array(zeros(1, 2, 3, dtype="f4")))
    with pytest.raises(flash.UnsupportedError, match="q: probabilities of float8_e4m3fn aren't computed; convert to"):
        flash.attention_weights(x, x)
    with pytest.raises(flash.FlashTypeError, match="q_scale: is for float8_e4m3fn only, q is float32"):
        flash.attention(y, y, y, q_scale=2.0)


@pytest.mark.emulated
def test_other_gpus():
    Emulated().require()
    for number, capability in ((emulated.SMALL, "8.6"), (emulated.AMPERE, "8.0")):
        with emulated.Device(number):
            x = Emulated().array(zeros(1, 3, 2, 16))
            message = rf"q: float8_e4m3fn needs a Hopper GPU \(.*9.0\), this one has {capability}; convert to float16"
            for call in (flash.attention, flash.explain, flash.workspace_bytes):
                with pytest.raises(flash.UnsupportedError, match=message):
                    call(x, x, x)


def test_explain(backend):
    x = backend.array(zeros(2, 300, 4, 128))
    told = flash.explain(x, x, x, causal=True)
    assert told.kernel == "forward_fp8_sm90" and told.limit is None and told.dtype == "float8_e4m3fn"
    assert (told.tiles["block_q"], told.tiles["block_k"], told.workspace_bytes) == (128, 224, 0)
    size = 2 * 300 * 4 * 128
    assert told.bytes_read == 3 * size and told.bytes_written == 2 * size + 4 * 2 * 4 * 300


# ---- What it counts, on the emulator ---------------------------------------------------------------------------------


@pytest.mark.emulated
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}], ids=["plain", "options"])
@pytest.mark.parametrize("D", [64, 128, 256])
def test_counts(D, options):
    """Products as many as tiles have, each number of v transposed once a tile, no bank conflict, bytes by formula."""
    kind, Lq, Lk = Emulated(), 192, 448
    kind.require()
    tile = FORWARD_FP8[D, bool(options)]
    tiles, steps = -(-Lq // tile.rows), -(-Lk // tile.columns)
    q, k, v = (kind.array(zeros(length, 1, D)) for length in (Lq, Lk, Lk))
    emulated.launches()
    flash.attention(q, k, v, **options)
    (launch,) = emulated.launches()
    products = D // DEPTH_FP8 + tile.columns // DEPTH_FP8
    assert launch["wgmma"] == 4 * tile.warpgroups * products * tiles * steps  # each of a warpgroup's warps counts
    pieces = tile.columns // 32 * D // 16 * tiles * steps
    counted = {name: launch["opcodes"][name] for name in ("ldmatrix.shared", "stmatrix.shared", "prmt")}
    assert counted == {"ldmatrix.shared": pieces, "stmatrix.shared": pieces, "prmt": 4 * pieces}
    assert launch["bank_conflicts"] == 0 and launch["block"][0] == tile.threads
    buffers = {x["address"]: x for x in launch["buffers"]}
    read = [buffers[x.data.ptr]["read_bytes"] for x in (q, k, v)]
    assert read == [Lq * D, tiles * Lk * D, tiles * Lk * D]
    (written,) = (x for x in launch["buffers"] if x["written_bytes"] and x["name"].endswith("bfloat16"))
    assert written["written_bytes"] == 2 * Lq * D == 32 * written["written_sectors"]


# ---- What it costs in accuracy ---------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs/forward_fp8_sm90.md"


# What the rows of the page say instead of "flash".
NAMES = {
    "float16, flash": "float16, `forward_sm90`",
    "bfloat16, flash": "bfloat16, `forward_sm90`",
    "float8, flash": "float8, `forward_fp8_sm90`",
    "float8, flash, q and k rotated": "float8, `forward_fp8_sm90`, q and k rotated",
    "float8, flash, against float64 on the stored numbers": "the same against float64 on the stored numbers",
}


def test_errors_are_those_of_the_page(backend):
    def attention(q, k, v, **options):
        return run(backend, Problem(q, k, v, None, None, options))[0]

    plain, outliers = (
        {NAMES.get(name, name): error for name, error in errors(attention, x).items()} for x in (False, True)
    )
    rows = re.findall(r"^\| (b?float.*?|the same.*?) \| ([\d.e-]+) \| ([\d.e-]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert {row[0] for row in rows} == plain.keys(), [(x, f"{plain[x]:.2g}", f"{outliers[x]:.2g}") for x in plain]
    for name, *stated in rows:
        for text, found in zip(stated, (plain[name], outliers[name]), strict=True):
            assert found == pytest.approx(float(text), rel=0.06), (name, found)
