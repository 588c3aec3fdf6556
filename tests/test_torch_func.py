"""flash.torch.attention under the transforms of torch.func."""

from __future__ import annotations

from functools import partial

import pytest

import flash

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch_tensors import assert_equal, draw, qkv  # noqa: E402

import flash.torch  # noqa: E402
from flash.torch.operators import Settings  # noqa: E402

attention = flash.torch.attention

BATCHED = {
    "q_lens": torch.tensor([[3, 5], [7, 2], [9, 9]]),
    "q_offset": torch.tensor([[3, -5], [0, 2], [9, 1]]),
    "mask": draw(3, 2, 1, 9, 9) > 0,
    "bias": draw(3, 4, 9, 9),
    "bias of keys": draw(9, 3),
    "alibi_slopes": draw(3, 4).abs(),
    "alibi_slopes of sequences": draw(3, 2, 4).abs(),
    "sinks": draw(3, 4),
    "seed": torch.tensor([[3], [4], [5]]),
}


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, None, 2), (None, 0, None), (0, None, None)], ids=str)
def test_vmap_is_a_batch(dims):
    inputs = [x if dim is None else torch.stack([x, 2 * x, -x], dim) for x, dim in zip(qkv(9), dims, strict=True)]
    function = partial(attention, causal=True, return_lse=True, kv_lens=torch.tensor([5, 9]))
    actual = torch.func.vmap(function, dims)(*inputs)
    parts = [
        function(*(x if dim is None else x.select(dim, n) for x, dim in zip(inputs, dims, strict=True)))
        for n in range(3)
    ]
    assert_equal(actual, [torch.stack(x) for x in zip(*parts, strict=True)])


@pytest.mark.parametrize("option", [name for name in BATCHED if name != "seed"])
def test_vmap_over_an_option(option):
    x, name, dim = BATCHED[option], option.split()[0], 1 if option == "bias of keys" else 0
    q, k, v = qkv(9)

    def loss(q, x):
        return attention(q, k, v, **{name: x}).square().sum()

    differentiable = (0, 1) if name in ("bias", "sinks") else (0,)
    function = torch.func.grad(loss, differentiable)
    actual = torch.func.vmap(function, (None, dim))(q, x)
    parts = [function(q, x.select(dim, n)) for n in range(3)]
    for a, w in zip(actual, [torch.stack(x) for x in zip(*parts, strict=True)], strict=True):
        torch.testing.assert_close(a, w)


def test_gradients_of_each_sample():
    """vmap(grad) with arguments that the samples share, and grad(vmap)."""
    q, k, v = (torch.stack([x, 2 * x, -x]) for x in qkv(9))
    bias, sinks = draw(4, 9, 9), draw(4)

    def loss(q, k, v, bias, sinks):
        return attention(q, k, v, bias=bias, sinks=sinks, block_mask=flash.BlockMask.causal(9, 9, 16)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss, (0, 1, 2, 3, 4)), (0, 0, 0, None, None))(q, k, v, bias, sinks)
    parts = [torch.func.grad(loss, (0, 1, 2, 3, 4))(q[n], k[n], v[n], bias, sinks) for n in range(3)]
    torch.testing.assert_close(each, tuple(map(torch.stack, zip(*parts, strict=True))))

    whole = torch.func.grad(lambda b: torch.func.vmap(loss, (0, 0, 0, None, None))(q, k, v, b, sinks).sum())(bias)
    torch.testing.assert_close(whole, each[3].sum(0))


def test_vmap_inside_a_compiled_function():
    q, k, v = (torch.stack([x, 2 * x]) for x in qkv(9))
    function = torch.func.vmap(attention)
    compiled = torch.compile(lambda *x: function(*x), fullgraph=True, backend="aot_eager")
    assert_equal([compiled(q, k, v)], [function(q, k, v)])


def test_dropout_under_vmap_is_an_error():
    q, k, v = (torch.stack([x, 2 * x]) for x in qkv(9))
    with pytest.raises(flash.UnsupportedError, match=r"dropout: can't be used under torch.func.vmap.*got dropout 0.1"):
        torch.func.vmap(partial(attention, dropout=0.1, seed=1))(q, k, v)
    with pytest.raises(RuntimeError, match="random operation"):
        torch.func.vmap(partial(attention, dropout=0.1))(q, k, v)


@pytest.mark.parametrize("how", ["function", "operator", "torch.func"])
def test_second_derivative_is_an_error(how):
    q, k, v = qkv(grad=True)
    with pytest.raises(flash.UnsupportedError, match=r"flash.torch.attention: has no second derivative"):
        if how == "torch.func":
            gradient = torch.func.grad(lambda q: attention(q, k.detach(), v.detach()).square().sum())
            torch.func.grad(lambda q: gradient(q).sum())(q.detach())
        o = attention(q, k, v) if how == "function" else torch.ops.flash.attention(q, k, v, *Settings())[0]
        (dq,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
        dq.square().sum().backward()
