"""flash.torch on a GPU: numbers as on the CPU, streams, memory, graphs, the compiler. Needs a GPU of capability 8.0."""

from __future__ import annotations

from functools import partial

import pytest

import flash

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch_tensors import assert_equal, draw, qkv  # noqa: E402

import flash.torch  # noqa: E402


def why_not():
    """Why these tests can't run here."""
    if not torch.cuda.is_available():
        return "PyTorch has no GPU"
    if not flash.show_config(mode="dicts")["cuda"]["built"]:
        return "flash was built without CUDA"
    return "" if torch.cuda.get_device_capability() >= (8, 0) else "the GPU is older than compute capability 8.0"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")
attention = flash.torch.attention


def on_gpu(tensors):
    return [x.detach().cuda().requires_grad_(x.requires_grad) for x in tensors]


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str
)
@pytest.mark.parametrize(
    "options",
    [{"causal": True}, {"dropout": 0.3, "seed": 5}, {"block_mask": flash.BlockMask.causal(33, 33, 16)}],
    ids=["causal", "dropout", "block mask"],
)
def test_numbers_are_those_of_the_cpu(dtype, tolerance, options):
    inputs = *qkv(dtype=dtype, grad=True), draw(4, 33, 33, dtype=dtype, grad=True), draw(4, dtype=dtype, grad=True)

    def function(q, k, v, bias, sinks):
        return attention(q, k, v, bias=bias, sinks=sinks, return_lse=True, **options)

    def gradients(inputs):
        results = function(*inputs)
        weights = [draw(*x.shape, dtype=x.dtype).to(x.device) for x in results]
        return *results, *torch.autograd.grad(results, inputs, weights)

    for actual, wanted in zip(gradients(on_gpu(inputs)), gradients(inputs), strict=True):
        assert actual.is_cuda and actual.dtype == wanted.dtype
        error = (actual.detach().cpu().float() - wanted.detach().float()).abs().max()
        assert error <= tolerance * wanted.detach().float().abs().max().clamp(min=1.0)


def test_work_goes_to_the_current_stream():
    """Inputs that a busy stream is still to write are right when the operator runs there, and the backward too."""
    q, k, v = on_gpu(qkv(L=512, D=64))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(attention(*leaves).sum(), leaves)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = [torch.full_like(x, torch.nan) for x in (q, k, v)]
        torch.cuda._sleep(50_000_000)
        for x, value in zip(late, (q, k, v), strict=True):
            x.copy_(value).requires_grad_()
        found = torch.autograd.grad(attention(*late).sum(), late)
    stream.synchronize()
    for actual, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, w, rtol=1e-4, atol=1e-4)


def test_memory_comes_from_pytorchs_allocator_and_grows_with_the_length_only():
    peaks = []
    for L in (1024, 2048, 4096):
        leaves = [x.requires_grad_() for x in on_gpu(qkv(L=L, N=(1,), D=64, dtype=torch.bfloat16))]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attention(*leaves, causal=True).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del leaves
    assert 0 < peaks[0] and peaks[2] < 2.2 * peaks[1] < 2.2 * 2.2 * peaks[0]


def test_a_captured_graph_can_be_replayed():
    q, k, v = (x.requires_grad_() for x in on_gpu(qkv(L=128, D=64, dtype=torch.bfloat16)))
    mask = flash.BlockMask.causal(128, 128, 32).to(q)
    seed = torch.tensor([7], device="cuda")

    def step():
        return torch.autograd.grad(attention(q, k, v, block_mask=mask, dropout=0.1, seed=seed).float().sum(), (q, k, v))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()  # loads the kernels
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        q.mul_(0.5)
    seed += 1
    graph.replay()
    torch.cuda.synchronize()
    for actual, wanted in zip(captured, step(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=2e-2, atol=2e-2)


def test_compile_and_dropout_from_the_gpus_generator():
    leaves = [x.requires_grad_() for x in on_gpu(qkv(D=64, dtype=torch.bfloat16))]
    function = partial(attention, causal=True)
    compiled = torch.compile(function, fullgraph=True)
    assert_equal([compiled(*leaves)], [function(*leaves)])
    torch.cuda.manual_seed(3)
    first = attention(*leaves, dropout=0.3)
    torch.cuda.manual_seed(3)
    assert_equal([attention(*leaves, dropout=0.3)], [first])


def test_gradients_have_the_same_bits_where_algorithms_must_be_deterministic():
    inputs = on_gpu(qkv(L=600, D=64, dtype=torch.bfloat16, grad=True))
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(attention(*inputs).float().square().sum(), inputs) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])


def test_the_place_of_pytorchs_function():
    q, k, v = (x.transpose(1, 2) for x in on_gpu(qkv(Hk=4, D=64, dtype=torch.bfloat16)))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    with flash.torch.use(strict=True):
        actual = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        wide = q.double()
        with pytest.raises(flash.UnsupportedError, match=r"it has no kernel for torch.float64 on cuda"):
            torch.nn.functional.scaled_dot_product_attention(wide, wide, wide)
    torch.testing.assert_close(actual, wanted, rtol=2e-2, atol=2e-2)


def test_devices_that_differ_are_named():
    q, k, v = qkv()
    with pytest.raises(flash.FlashError, match=r"^k: "):
        attention(q.cuda(), k, v)
