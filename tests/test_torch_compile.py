"""The operators of flash.torch: what PyTorch's compiler, exporter, checkpoints and autocast do with them."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from functools import partial

import numpy
import pytest

import flash

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch_tensors import assert_equal, draw, gradients_of, qkv  # noqa: E402

import flash.torch  # noqa: E402
from flash.torch.operators import Settings  # noqa: E402

attention = flash.torch.attention


def settings():
    mask = flash.BlockMask.causal(33, 33, 16).to(torch.empty(0))
    lists = mask.lists_by_place["torch", "cpu"]
    return Settings(
        causal=True, window_left=20, bias=draw(4, 33, 33, grad=True), sinks=draw(4, grad=True), q_offset=1,
        q_lens=torch.tensor([30, 33], dtype=torch.int32), mask=draw(33, 33) > -1, alibi_slopes=torch.rand(4),
        dropout=0.1, seeds=torch.tensor([5]), block_q=16, block_k=16, **lists._asdict(),
    )  # fmt: skip


@pytest.mark.parametrize("chosen", [Settings(), settings()], ids=["plain", "options"])
def test_opcheck(chosen):
    inputs = *qkv(grad=True), *chosen
    torch.library.opcheck(torch.ops.flash.attention.default, inputs)
    q, k, v, *rest = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
    o, lse = torch.ops.flash.attention(q, k, v, *rest)
    wanted = [True, False, True, chosen.bias is not None, chosen.sinks is not None]
    backward = torch.ops.flash.attention_backward.default
    torch.library.opcheck(backward, (torch.ones_like(o), None, q, k, v, o, lse, *rest, wanted))


def test_meta_tensors_have_shapes():
    q, k, v = (x.to("meta") for x in qkv(dtype=torch.bfloat16))
    o, lse = attention(q, k, v, return_lse=True)
    assert (o.shape, o.dtype, o.device.type) == (q.shape, torch.bfloat16, "meta")
    assert (lse.shape, lse.dtype) == ((2, 4, 33), torch.float32)


def block_masks():
    causal = flash.BlockMask.causal(33, 33, 16)
    heads = flash.BlockMask.from_dense(numpy.arange(36).reshape(4, 3, 3) % 4 < 3, 16, Lq=33, Lk=33)
    return {"block_mask": causal}, {"block_mask": heads}


@pytest.mark.parametrize(
    "options",
    [{"causal": True, "window": (9, 2), "softcap": 3.0}, {"dropout": 0.2, "seed": torch.tensor([8])}, *block_masks()],
    ids=["numbers", "traced seed", "block mask", "block mask of heads"],
)
def test_compile_without_graph_breaks(options):
    def function(q, k, v):
        return attention(q, k, v, return_lse=True, **options)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_equal(gradients_of(compiled, qkv(grad=True)), gradients_of(function, qkv(grad=True)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own
def test_compile_with_the_default_compiler():
    def function(q, k, v):
        return (2 * attention(q, k, v, causal=True)).sin()

    compiled = torch.compile(function, fullgraph=True)
    for actual, wanted in zip(
        gradients_of(compiled, qkv(grad=True)), gradients_of(function, qkv(grad=True)), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


def test_compile_knows_which_block_mask():
    """Two in one function, another in a later call, one that is made in between; and any length with one graph."""

    def function(q, k, v, first, second):
        return attention(attention(q, k, v, block_mask=first), k, v, block_mask=second)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    a, b, c = (flash.BlockMask.sliding_window(33, 33, 16, (n, 0)) for n in (0, 5, 20))
    for masks in ((a, b), (b, c), (a, a)):
        assert_equal([compiled(*qkv(), *masks)], [function(*qkv(), *masks)])


def test_compile_with_dynamic_shapes_and_seeds():
    def function(q, k, v, seed):
        return attention(q, k, v, causal=True, q_offset=q.shape[1] - 30, dropout=0.2, seed=seed)

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for L, seed in ((33, 5), (40, 6), (57, 7)):
        assert_equal([compiled(*qkv(L), seed)], [function(*qkv(L), seed)])
    assert len(graphs) == 1
    assert_equal([compiled(*qkv(8), 2**64 - 1)], [function(*qkv(8), 2**64 - 1)])


@pytest.mark.parametrize("masked", [False, True])
def test_export_and_a_saved_program(masked):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = flash.BlockMask.causal(33, 33, 32) if masked else None

        def forward(self, q, k, v):
            return attention(q, k, v, causal=True, block_mask=self.mask)

    stored = io.BytesIO()
    torch.export.save(torch.export.export(Model(), qkv()), stored)
    stored.seek(0)
    assert_equal([torch.export.load(stored).module()(*qkv())], [Model()(*qkv())])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_draws_the_same_dropout_again(use_reentrant):
    function = partial(attention, dropout=0.3, causal=True)
    checkpointed = partial(torch.utils.checkpoint.checkpoint, function, use_reentrant=use_reentrant)
    found = []
    for call in (function, checkpointed):
        torch.manual_seed(3)
        inputs = qkv(grad=True)
        call(*inputs).square().sum().backward()
        found.append([x.grad for x in inputs])
    assert_equal(*found)


def test_drawn_seeds_follow_the_generator():
    q, k, v = qkv()
    torch.manual_seed(1)
    first, second = attention(q, k, v, dropout=0.3), attention(q, k, v, dropout=0.3)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert_equal([attention(q, k, v, dropout=0.3)], [first])
    assert_equal([attention(q, k, v, dropout=0.3, seed=7)], [flash.attention(q, k, v, dropout=0.3, seed=7)])


def test_a_seed_that_changes_before_the_backward_is_noticed():
    q, k, v = qkv(grad=True)
    seed = torch.tensor([3])
    o = attention(q, k, v, dropout=0.3, seed=seed)
    seed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


def test_autocast():
    q, k, v = qkv(grad=True)
    bias = draw(4, 33, 33, grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = attention(q, k, v, bias=bias)
        wide = attention(*qkv(dtype=torch.float64))
    assert o.dtype == torch.bfloat16 and wide.dtype == torch.float64
    half = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(attention(*half, bias=bias).sum(), (*half, bias))
    assert_equal(torch.autograd.grad(o.sum(), (q, k, v, bias)), [x.float() for x in wanted])


def test_first_use_of_a_block_mask_in_inference_mode():
    mask = flash.BlockMask.causal(33, 33, 16)
    with torch.inference_mode():
        attention(*qkv(), block_mask=mask)
    q, k, v = qkv(grad=True)
    attention(q, k, v, block_mask=mask).sum().backward()


def test_nothing_is_kept_after_the_backward():
    q, k, v = qkv(grad=True)
    o = attention(q, k, v)
    kept = weakref.ref(o)
    o.sum().backward()
    del o
    gc.collect()
    assert kept() is None


def test_threads():
    results, wanted = {}, gradients_of(attention, qkv(grad=True))

    def work(n):
        results[n] = [gradients_of(attention, qkv(grad=True)) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for found in results.values():
        for result in found:
            assert_equal(result, wanted)
    assert len(results) == 4
