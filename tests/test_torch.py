"""flash.torch.attention: its numbers and gradients, layouts, and messages."""

from __future__ import annotations

import inspect
import subprocess
import sys
from functools import partial

import hypothesis
import numeric
import numpy
import pytest
from kinds import PyTorch
from problems import DTYPES, OPTIONS, Case, Shape, random_cases

import flash

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch_tensors import assert_equal, draw, gradients_of, qkv  # noqa: E402

import flash.torch  # noqa: E402

attention = flash.torch.attention
KIND = PyTorch()
SMALL = Shape((2,), 37, 41, 4, 2, 16, 24)
GIVEN = "q", "k", "v", "bias", "sinks"

# ---- Numbers ---------------------------------------------------------------------------------------------------------


def check(case):
    """A case under the numeric rule, its gradients by PyTorch's autograd."""
    known = numeric.answers(case)
    problem = known.problem.map(KIND.array)
    inputs = {"q": problem.q, "k": problem.k, "v": problem.v} | {
        name: problem.options[name] for name in GIVEN[3:] if name in problem.options
    }
    for x in inputs.values():
        x.requires_grad_()
    o, lse = attention(*problem.qkv, **problem.options, return_lse=True)
    found = torch.autograd.grad((o, lse), list(inputs.values()), (problem.do, problem.dlse), allow_unused=True)
    gradients = {f"d{name}": x for name, x in zip(inputs, found, strict=True)}
    o, lse, gradients = numeric.to_numpy(KIND, (o.detach(), lse.detach(), flash.Gradients(**gradients)))
    known.check_forward(o, lse, backward=True)
    known.check_backward(gradients)


@pytest.mark.parametrize("number, option", list(enumerate(OPTIONS)), ids=list(OPTIONS))
def test_every_option(number, option):
    check(Case(SMALL, DTYPES[number % 4], (option,)))


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None)
@hypothesis.given(random_cases(longest=130, most_scores=20_000))
def test_random_problems(case):
    check(case)


def test_bits_are_those_of_flash_attention():
    q, k, v = qkv()
    do, dlse = draw(2, 33, 4, 8, seed=3), draw(2, 4, 33, seed=4)
    o, lse = flash.attention(q, k, v, causal=True, return_lse=True)
    wanted = flash.attention_backward(do, q, k, v, o, lse, dlse=dlse, causal=True)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    results = attention(*leaves, causal=True, return_lse=True)
    assert_equal(results, (o, lse))
    assert_equal(torch.autograd.grad(results, leaves, (do, dlse)), wanted[:3])


@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 2.0}, {"dropout": 0.4, "seed": 3}], ids=str)
def test_gradcheck(options):
    inputs = (
        *qkv(5, D=3, dtype=torch.float64, grad=True),
        *(draw(*s, dtype=torch.float64, grad=True) for s in ((4, 5, 5), (4,))),
    )

    def function(q, k, v, bias, sinks):
        return attention(q, k, v, bias=bias, sinks=sinks, return_lse=True, **options)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_gradient_through_lse_alone_and_through_nothing():
    q, k, v = qkv(grad=True)
    o, lse = attention(q, k, v, return_lse=True)
    dq, dk, dv = torch.autograd.grad(lse.sum(), (q, k, v), retain_graph=True, allow_unused=True)
    wanted = torch.autograd.grad(torch.logsumexp(scores(q, k), -1).sum(), (q, k))
    torch.testing.assert_close((dq, dk), wanted)
    assert dv is None or not dv.any()
    (only,) = torch.autograd.grad(o.sum(), (v,))
    torch.testing.assert_close(only.sum(), torch.tensor(float(o.numel())), rtol=1e-5, atol=0)


def scores(q, k):
    k = k.repeat_interleave(q.shape[-2] // k.shape[-2], -2)
    return torch.einsum("...ihd,...jhd->...hij", q, k) / q.shape[-1] ** 0.5


def test_second_use_in_one_graph():
    q, k, v = qkv(H=2, dtype=torch.float64, grad=True)

    def twice(call, q, k, v):
        return call(call(q, k, v), k, call(v, k, q))

    def standard(q, k, v):
        return torch.einsum("...hij,...jhd->...ihd", scores(q, k).softmax(-1), v)

    torch.testing.assert_close(
        gradients_of(partial(twice, attention), (q, k, v)), gradients_of(partial(twice, standard), (q, k, v))
    )


@pytest.mark.parametrize("N, Lq, Lk", [((0,), 3, 3), ((2,), 0, 3), ((2,), 3, 0), ((), 0, 0), ((2, 0), 3, 3)])
def test_nothing_to_compute(N, Lq, Lk):
    q, k, v = draw(*N, Lq, 4, 8, grad=True), draw(*N, Lk, 2, 8, grad=True), draw(*N, Lk, 2, 5, grad=True)
    o, lse, *gradients = gradients_of(partial(attention, return_lse=True), (q, k, v))
    assert o.shape == (*N, Lq, 4, 5) and lse.shape == (*N, 4, Lq)
    assert not o.any() and all(not x.any() and x.shape == y.shape for x, y in zip(gradients, (q, k, v), strict=True))


@pytest.mark.parametrize("layout", ["transposed", "strided last axis", "broadcast", "several leading axes"])
def test_any_layout(layout):
    q, k, v = qkv(N=(2, 3), grad=True)
    wanted = gradients_of(lambda *x: attention(*(y[0] if layout == "broadcast" else y for y in x)), (q, k, v))

    def laid_out(x):
        if layout == "transposed":
            return x.transpose(-3, -2).contiguous().transpose(-3, -2)
        if layout == "strided last axis":
            return torch.stack([x, x], -1).flatten(-2)[..., ::2]
        if layout == "broadcast":
            return x[0, :1].expand(3, -1, -1, -1)
        return x.transpose(0, 1).contiguous().transpose(0, 1)  # which don't merge

    def function(*x):
        o = attention(*map(laid_out, x))
        return o

    if layout == "broadcast":
        wanted = gradients_of(lambda *x: attention(*(torch.cat([y[0, :1]] * 3) for y in x)), (q, k, v))
    for actual, w in zip(gradients_of(function, (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(actual, w)


def test_broadcast_gradient_of_the_output():
    """`o.sum()` gives a do without strides."""
    q, k, v = qkv(grad=True)
    do = torch.ones(2, 33, 4, 8)
    wanted = torch.autograd.grad(attention(q, k, v), (q, k, v), do)
    assert_equal(torch.autograd.grad(attention(q, k, v).sum(), (q, k, v)), wanted)


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, error, message",
    [
        ({"q": [[1.0]]}, flash.FlashTypeError, "q: must be a PyTorch tensor, got list"),
        ({"mask": numpy.ones((33, 33), bool)}, flash.FlashTypeError, "mask: must be a PyTorch tensor, got ndarray"),
        ({"k": draw(2, 33, 2, 5)}, flash.FlashValueError, "k: last axis must be 8 as in q, got 5"),
        (
            {"v": draw(2, 33, 2, 8, dtype=torch.float16)},
            flash.FlashTypeError,
            "v: dtype must be float32 as in q, got float16",
        ),
        ({"q": draw(3, 8)}, flash.FlashValueError, "q: "),
        ({"q_lens": torch.tensor([3])}, flash.FlashValueError, r"q_lens: shape must be N = \(2,\), got \(1,\)"),
        ({"kv_lens": torch.tensor([3, 34])}, flash.FlashValueError, "kv_lens: must be 0 to 33, got 34 for sequence 1"),
        ({"bias": draw(3, 3)}, flash.FlashValueError, r"bias: shape must broadcast to .* got \(3, 3\)"),
        ({"window": 3}, flash.FlashValueError, r"window: must be None or a pair \(left, right\), got 3"),
        ({"window": (-1, 2)}, flash.FlashValueError, "window_left: "),
        ({"causal": 1}, flash.FlashTypeError, r"causal: must be a bool, got 1 \(int\)"),
        ({"scale": "1"}, flash.FlashTypeError, "scale: must be a real number, got '1'"),
        ({"dropout": 1.5}, flash.FlashValueError, "dropout: must be 0 to 1, got 1.5"),
        ({"seed": -1}, flash.FlashValueError, "seed: must be 0 to 18446744073709551615, got -1"),
        ({"seed": torch.ones(2), "dropout": 0.1}, flash.FlashError, "seed: "),
        ({"softcap": -1.0}, flash.FlashValueError, "softcap: "),
        ({"block_mask": torch.ones(3, 3)}, flash.FlashTypeError, "block_mask: must be a flash.BlockMask, got Tensor"),
        ({"block_mask": flash.BlockMask.causal(64, 64, 16)}, flash.FlashValueError, "block_mask"),
        ({"alibi_slopes": draw(4, grad=True)}, flash.UnsupportedError, "alibi_slopes: has no gradient here"),
        ({"q_scale": 2.0}, flash.FlashError, "q_scale: "),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_errors_name_the_argument(argument, error, message):
    q, k, v = qkv()
    with pytest.raises(error, match=message):
        attention(**({"q": q, "k": k, "v": v} | argument))


def test_an_old_pytorch_is_named():
    code = "import torch; del torch.utils._pytree.register_constant; import flash.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"ImportError: flash.torch: needs PyTorch 2.7 or later, this is {torch.__version__}" in done.stderr


def test_options_are_those_of_flash_attention():
    """But for those that have no place in a graph."""
    here, there = (list(inspect.signature(function).parameters) for function in (attention, flash.attention))
    assert here == [name for name in there if name not in ("out", "workspace")]
