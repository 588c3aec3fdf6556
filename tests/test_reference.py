"""The reference against an independent scalar implementation, finite differences and other libraries."""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import numpy
import pytest
from numeric import finite_differences

from flash import reference
from flash.block_mask import BlockMask
from flash.dropout import dropout_mask, dropout_words, philox4x32

# ---- The definition, one score at a time -----------------------------------------------------------------------------


def philox(counter, key):
    """Four words, in Python's integers."""
    c, k, low = list(counter), list(key), 0xFFFFFFFF
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & low, (a >> 32) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


def keeps(seed, dropout, b, h, i, j):
    word = philox((j >> 1, i >> 1, h, b), (seed & 0xFFFFFFFF, seed >> 32))[2 * (i & 1) + (j & 1)]
    return word >= round(dropout * 2**32)


def attend(
    q,
    k,
    v,
    *,
    scale=None,
    causal=False,
    window=None,
    q_offset=None,
    q_lens=None,
    kv_lens=None,
    mask=None,
    bias=None,
    alibi_slopes=None,
    softcap=None,
    sinks=None,
    block_mask=None,
    dropout=0.0,
    seed=0,
):
    """The formula of the documentation in float64, as scalar loops. Returns o and lse."""
    *N, Lq, Hq, D = q.shape
    N, (Lk, Hk, Dv) = tuple(N), v.shape[-3:]
    full = (*N, Hq, Lq, Lk)
    bias = None if bias is None else numpy.broadcast_to(bias, full)
    mask = None if mask is None else numpy.broadcast_to(mask, full)
    slopes = None if alibi_slopes is None else numpy.broadcast_to(alibi_slopes, (*N, Hq))
    blocks = None
    if block_mask is not None:
        blocks = numpy.broadcast_to(block_mask.to_dense(), (*N, Hq, *block_mask.shape[-2:]))
    left, right = window or (None, None)
    o, lse = numpy.zeros((*N, Lq, Hq, Dv)), numpy.full((*N, Hq, Lq), -math.inf)
    for b, n in enumerate(numpy.ndindex(N)):
        q_len, kv_len = (L if lens is None else lens[n] for L, lens in ((Lq, q_lens), (Lk, kv_lens)))
        off = kv_len - q_len if q_offset is None else numpy.broadcast_to(q_offset, N)[n]
        for h, i in numpy.ndindex(Hq, Lq):
            if i >= q_len:
                continue
            scores = {}
            for j in range(int(kv_len)):
                hidden = (causal and j > i + off) or (mask is not None and not mask[(*n, h, i, j)])
                hidden = hidden or (left is not None and j < i + off - left)
                hidden = hidden or (right is not None and j > i + off + right)
                if blocks is not None:
                    hidden = hidden or not blocks[(*n, h, i // block_mask.block_q, j // block_mask.block_k)]
                if hidden:
                    continue
                s = sum(float(x) * float(y) for x, y in zip(q[n][i, h], k[n][j, h // (Hq // Hk)], strict=True))
                s *= 1 / math.sqrt(D) if scale is None else scale
                s = softcap * math.tanh(s / softcap) if softcap else s
                s -= 0.0 if slopes is None else slopes[(*n, h)] * abs(i + off - j)
                s += 0.0 if bias is None else bias[(*n, h, i, j)]
                scores[j] = s
            columns = [*scores.values(), *([] if sinks is None else [sinks[h]])]
            top = max(columns, default=-math.inf)
            if top == -math.inf:
                continue
            lse[(*n, h, i)] = top + math.log(sum(math.exp(s - top) for s in columns))
            for j, s in scores.items():
                if not dropout or keeps(seed, dropout, b, h, i, j):
                    p = math.exp(s - lse[(*n, h, i)])
                    o[n][i, h] += p / (1 - dropout) * v[n][j, h // (Hq // Hk)]
    return o, lse


# ---- Random problems -------------------------------------------------------------------------------------------------

Options = dict[str, Any]


@dataclass
class Problem:
    q: Any
    k: Any
    v: Any
    options: Options = field(default_factory=dict)

    @property
    def arrays(self):
        return self.q, self.k, self.v


def plain(rng, N=(2,), Lq=5, Lk=6, Hq=4, Hk=2, D=3, Dv=2, **options):
    q, k, v = (rng.normal(size=(*N, *shape)) for shape in ((Lq, Hq, D), (Lk, Hk, D), (Lk, Hk, Dv)))
    return Problem(q, k, v, options)


def random_problem(seed, blocks=True):
    """Every option with probability 1/2, NaN past the lengths."""
    rng = numpy.random.default_rng(seed)
    N = ((), (2,), (2, 2), (1, 2))[rng.integers(4)]
    Lq, Lk, Hk = (int(x) for x in rng.integers(1, (6, 7, 3)))
    Hq = Hk * int(rng.integers(1, 3))
    if blocks and seed % 4 == 0:
        Lq, Lk = Lq + 15, Lk + 30
    problem = plain(rng, N, Lq, Lk, Hq, Hk, Dv=int(rng.integers(1, 4)))
    full = (*N, Hq, Lq, Lk)
    shape = tuple(1 if rng.random() < 0.4 else size for size in full)[int(rng.integers(len(full))) :]
    choices = {
        "scale": lambda: float(rng.normal()),
        "causal": lambda: True,
        "window": lambda: tuple(None if rng.random() < 0.3 else int(rng.integers(0, 4)) for _ in range(2)),
        "q_offset": lambda: int(rng.integers(-3, 4)) if rng.random() < 0.5 else rng.integers(-3, 4, size=N),
        "q_lens": lambda: rng.integers(0, Lq + 1, size=N),
        "kv_lens": lambda: rng.integers(0, Lk + 1, size=N),
        "mask": lambda: rng.random(shape) < 0.7,
        "bias": lambda: numpy.where(rng.random(shape) < 0.2, -math.inf, rng.normal(size=shape)),
        "alibi_slopes": lambda: rng.random((*N, Hq) if rng.random() < 0.5 else Hq),
        "softcap": lambda: 1.5,
        "sinks": lambda: numpy.where(rng.random(Hq) < 0.2, -math.inf, rng.normal(size=Hq)),
        "dropout": lambda: 0.4,
        "seed": lambda: int(rng.integers(2**63)),
    }
    problem.options = {name: make() for name, make in choices.items() if rng.random() < 0.5}
    if blocks and seed % 2 == 0:
        leading = ((), (Hq,), (*N, 1))[rng.integers(3)]
        dense = rng.random((*leading, -(-Lq // 16), -(-Lk // 32))) < 0.6
        problem.options["block_mask"] = BlockMask.from_dense(dense, (16, 32), Lq=Lq, Lk=Lk)
    for n in numpy.ndindex(N):
        if "q_lens" in problem.options:
            problem.q[n][problem.options["q_lens"][n] :] = math.nan
        if "kv_lens" in problem.options:
            problem.k[n][problem.options["kv_lens"][n] :] = math.nan
            problem.v[n][problem.options["kv_lens"][n] :] = math.nan
    return problem


def close(actual, wanted, tolerance=1e-12):
    numpy.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", range(60))
def test_forward_is_the_definition(seed):
    problem = random_problem(seed)
    o, lse = reference.attention(*problem.arrays, **problem.options, return_lse=True)
    wanted_o, wanted_lse = attend(*problem.arrays, **problem.options)
    close(o, wanted_o)
    close(lse, wanted_lse)


def test_every_option_is_covered():
    """The scalar implementation takes what the reference does, but the factors of float8."""
    taken = {*inspect.signature(reference._forward).parameters, *inspect.signature(reference.visible).parameters}
    assert taken - {"numbers", "sight"} == {*inspect.signature(attend).parameters, "q_scale", "k_scale", "v_scale"}


@pytest.mark.parametrize("seed", range(40))
def test_gradients_are_finite_differences(seed):
    problem = random_problem(seed, blocks=False)
    options, rng = problem.options, numpy.random.default_rng(seed)
    o, lse = reference.attention(*problem.arrays, **options, return_lse=True)
    do, dlse = rng.normal(size=o.shape), rng.normal(size=lse.shape)
    given = {"q": problem.q, "k": problem.k, "v": problem.v}
    given |= {name: options[name] for name in ("bias", "sinks") if name in options}

    def loss():
        o, lse = reference.attention(*problem.arrays, **options, return_lse=True)
        return (o * do).sum() + (numpy.where(lse == -math.inf, 0.0, lse) * dlse).sum()

    gradients = reference.attention_backward(do, *problem.arrays, **options, dlse=dlse)
    for name, array in given.items():
        close(getattr(gradients, f"d{name}"), finite_differences(loss, array), 1e-7)
    assert [name for name in ("dbias", "dsinks") if getattr(gradients, name) is None] == [
        f"d{name}" for name in ("bias", "sinks") if name not in given
    ]


def test_visible_is_where_a_weight_can_be():
    problem = random_problem(12)
    seen = reference.visible(
        problem.q, problem.k, causal=True, window=(3, None), q_offset=2, block_mask=problem.options["block_mask"]
    )
    i, j = numpy.ogrid[: seen.shape[-2], : seen.shape[-1]]
    blocks = problem.options["block_mask"].to_dense()[..., i // 16, j // 32]
    assert (seen == ((j <= i + 2) & (j >= i - 1) & blocks)).all()


# ---- Edges -----------------------------------------------------------------------------------------------------------


def gradients_of(problem, do=None, **more):
    o = reference.attention(*problem.arrays, **problem.options)
    do = numpy.ones_like(o) if do is None else do
    return reference.attention_backward(do, *problem.arrays, **problem.options, **more)


def test_rows_past_q_len_are_empty_even_with_sinks():
    rng = numpy.random.default_rng(0)
    problem = plain(rng, q_lens=numpy.array([0, 3]), sinks=rng.normal(size=4), bias=rng.normal(size=(2, 4, 5, 6)))
    problem.q[1, 3:] = math.nan
    o, lse = reference.attention(*problem.arrays, **problem.options, return_lse=True)
    assert not o[0].any() and not o[1, 3:].any()
    assert (lse[0] == -math.inf).all() and (lse[1, :, 3:] == -math.inf).all() and numpy.isfinite(lse[1, :, :3]).all()
    do, dlse = rng.normal(size=o.shape), numpy.where(lse == -math.inf, math.nan, 1.0)
    do[0], do[1, 3:] = math.nan, math.nan
    g = gradients_of(problem, do, dlse=dlse)
    assert all(numpy.isfinite(x).all() for x in g)
    assert not g.dq[1, 3:].any() and not g.dk[0].any() and not g.dbias[0].any() and not g.dbias[1, :, 3:].any()


@pytest.mark.parametrize("hide", ["offset", "mask", "bias", "kv_lens", "Lk", "block_mask"])
def test_a_row_without_keys_is_zero_and_its_lse_the_sink(hide):
    rng = numpy.random.default_rng(1)
    problem = plain(rng, Lk=0 if hide == "Lk" else 6, sinks=numpy.array([0.5, -1.0, -math.inf, 100.0]))
    nothing = BlockMask.from_dense(numpy.zeros((1, 1), bool), 16)
    problem.options |= {
        "offset": {"causal": True, "q_offset": -7},
        "mask": {"mask": numpy.zeros(1, bool)},
        "bias": {"bias": numpy.full((5, 1), -math.inf)},
        "kv_lens": {"kv_lens": numpy.zeros(2, int)},
        "Lk": {},
        "block_mask": {"block_mask": nothing},
    }[hide]
    o, lse = reference.attention(*problem.arrays, **problem.options, return_lse=True)
    assert o.shape == (2, 5, 4, 2) and not o.any()
    close(lse, numpy.broadcast_to(problem.options["sinks"][:, None], lse.shape))
    g = gradients_of(problem, dlse=numpy.where(lse == -math.inf, math.nan, 2.0))
    assert not g.dq.any() and not g.dk.any() and not g.dv.any()
    close(g.dsinks, [20.0, 20.0, 0.0, 20.0])


def test_unlisted_blocks_may_hold_nan():
    """Also where other rows list the same keys: these rows get NaN, the others don't notice."""
    rng = numpy.random.default_rng(2)
    dense = numpy.array([[True, False, True], [True, True, False]])
    block_mask = BlockMask.from_dense(dense, 16)
    problem = plain(rng, (2,), 32, 48, block_mask=block_mask, softcap=2.0)
    o, lse = reference.attention(*problem.arrays, **problem.options, return_lse=True)
    do = rng.normal(size=o.shape)
    g = gradients_of(problem, do)
    problem.k[:, 40, 0], problem.v[0, 33, 1] = math.nan, math.inf
    poisoned, poisoned_lse = reference.attention(*problem.arrays, **problem.options, return_lse=True)
    close(poisoned[:, 16:], o[:, 16:])
    close(poisoned_lse[..., 16:], lse[..., 16:])
    assert numpy.isnan(poisoned[:, :16, :2]).all() and (poisoned[0, :16, 2:] == math.inf).all()
    poisoned_g = gradients_of(problem, do)
    close(poisoned_g.dq[:, 16:], g.dq[:, 16:])
    close(poisoned_g.dk[:, 16:32], g.dk[:, 16:32])
    close(poisoned_g.dv[:, 16:32], g.dv[:, 16:32])
    problem.k[:, 40, 0], problem.v[0, 33, 1] = 1.0, 1.0  # from here NaN in queries
    problem.q[:, 3], do[:, 4] = math.nan, math.nan
    poisoned_g = gradients_of(problem, do)
    close(poisoned_g.dk[:, 16:32], g.dk[:, 16:32])
    close(poisoned_g.dv[:, 16:32], g.dv[:, 16:32])


@pytest.mark.parametrize("N, Lq, Lk", [((0,), 3, 3), ((2,), 0, 3), ((2,), 3, 0), ((2, 0), 0, 0)])
def test_empty(N, Lq, Lk):
    rng = numpy.random.default_rng(3)
    problem = plain(rng, N, Lq, Lk, bias=numpy.zeros((1, Lk)), sinks=numpy.zeros(4), dropout=0.5)
    o, lse = reference.attention(*problem.arrays, **problem.options, return_lse=True)
    assert o.shape == (*N, Lq, 4, 2) and lse.shape == (*N, 4, Lq) and not o.any()
    g = gradients_of(problem)
    assert [x.shape for x in g] == [x.shape for x in (*problem.arrays, *map(problem.options.get, ("bias", "sinks")))]
    assert not any(x.any() for x in g)


def test_dropout_of_everything_is_zero():
    problem = plain(numpy.random.default_rng(4), dropout=1.0)
    assert not reference.attention(*problem.arrays, **problem.options).any()
    assert not any(x.any() for x in gradients_of(problem) if x is not None)


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_and_naive_errors(name):
    """In 16 bits the result is that of rounding each step, so the error is a few roundings and not zero."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = numpy.dtype(getattr(ml_dtypes, name, name))
    rng = numpy.random.default_rng(5)
    exact = plain(rng, Lq=33, Lk=65, D=16, Dv=16)
    rounded = Problem(*(x.astype(dtype) for x in exact.arrays), {"bias": rng.normal(size=(33, 65)).astype("f4")})
    o, lse = reference.attention(*rounded.arrays, **rounded.options, return_lse=True)
    wanted, wanted_lse = reference.attention(*rounded.arrays, **rounded.options, return_lse=True, dtype="f8")
    assert (o.dtype, wanted.dtype, wanted_lse.dtype) == (dtype, "f8", "f8")
    assert lse.dtype == ("f8" if name == "float64" else "f4")
    eps = float(ml_dtypes.finfo(dtype).eps)
    for actual, exact in ((o, wanted), (lse, wanted_lse)):
        error = abs(actual.astype("f8") - exact).max() / abs(exact).max()
        assert error == 0 if name == "float64" else eps / 64 < error < 8 * eps, error / eps
    g = gradients_of(rounded)
    assert [x.dtype for x in g[:4]] == [dtype, dtype, dtype, "f4"] and g.dbias.shape == (33, 65)
    assert all(x.dtype == "f8" for x in gradients_of(rounded, dtype="f8", wrt=("q", "bias")) if x is not None)


def test_float8_factors():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    problem = plain(numpy.random.default_rng(6))
    stored = [x.astype(ml_dtypes.float8_e4m3fn) for x in problem.arrays]
    factors = numpy.float32([[0.5, 2.0], [4.0, 0.25]])
    o = reference.attention(*stored, q_scale=factors, k_scale=2.0, v_scale=factors)
    assert o.dtype == ml_dtypes.bfloat16
    q, k, v = (x.astype("f8") for x in stored)
    wanted = reference.attention(q * factors.repeat(2, 1)[:, None, :, None], 2 * k, v * factors[:, None, :, None])
    close(reference.attention(*stored, q_scale=factors, k_scale=2.0, v_scale=factors, dtype="f8"), wanted)


# ---- Dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    """From Random123's kat_vectors."""
    assert philox4x32([numpy.uint64(word) for word in counter], key) == words
    assert tuple(philox(counter, key)) == words


def test_dropout_positions():
    assert dropout_words(2**40 + 7, (2, 3, 5, 7))[1, 2, 3, 4] == 0xE3009CF9
    seed, shape = 2**64 - 3, (2, 2, 2, 3, 5)
    wanted = [keeps(seed, 0.3, 2 * b0 + b1, h, i, j) for b0, b1, h, i, j in numpy.ndindex(shape)]
    assert (dropout_mask(seed, 0.3, shape).ravel() == wanted).all()
    assert (dropout_mask(numpy.array([seed], "u8"), 0.3, shape).ravel() == wanted).all()
    assert dropout_mask(1, 0.0, (1, 8, 8)).all() and not dropout_mask(1, 1.0, (1, 8, 8)).any()


# ---- Other libraries -------------------------------------------------------------------------------------------------


def test_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    rng = numpy.random.default_rng(7)
    problem = plain(rng, (3,), 9, 17, D=8, Dv=4, bias=rng.normal(size=(3, 1, 9, 17)), scale=0.3)
    tensors = [torch.tensor(x.swapaxes(1, 2), requires_grad=True) for x in problem.arrays]
    bias = torch.tensor(problem.options["bias"], requires_grad=True)
    o = torch.nn.functional.scaled_dot_product_attention(*tensors, bias, scale=0.3, enable_gqa=True)
    close(reference.attention(*problem.arrays, **problem.options), o.detach().numpy().swapaxes(1, 2))
    do = rng.normal(size=o.shape)
    o.backward(torch.tensor(do))
    g = gradients_of(problem, do.swapaxes(1, 2))
    for actual, tensor in zip(g, tensors, strict=False):
        close(actual, tensor.grad.numpy().swapaxes(1, 2))
    close(g.dbias, bias.grad.numpy())
    top_left = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
    actual = reference.attention(*problem.arrays, causal=True, q_offset=0)
    close(actual, top_left.detach().numpy().swapaxes(1, 2))


def test_agrees_with_jax():
    jax = pytest.importorskip("jax")
    rng = numpy.random.default_rng(8)
    problem = plain(rng, (2,), 16, 16, D=8, Dv=8, q_offset=0)
    problem.options |= {"q_lens": numpy.array([16, 9]), "kv_lens": numpy.array([7, 16]), "window": (5, 2)}
    q, k, v = (x.astype("f4") for x in problem.arrays)
    lengths = {"query_seq_lengths": problem.options["q_lens"], "key_value_seq_lengths": problem.options["kv_lens"]}
    wanted = jax.nn.dot_product_attention(q, k, v, local_window_size=(5, 2), **lengths)
    o, lse = reference.attention(q, k, v, **problem.options, return_lse=True)
    real = numpy.swapaxes(lse, 1, 2) > -math.inf  # where JAX's rows without a key are an average
    close(o[real], numpy.asarray(wanted)[real], 2e-6)
