"""flash.torch with CUDA's kernels, as far as it goes without a GPU: tensors in memory of the emulated device.

PyTorch takes them for tensors on the CPU. Here flash is told that what is on the CPU is on CUDA, and where PyTorch
would take memory from its CUDA allocator it gets the emulated device's. All else is as on a GPU, from the arguments of
`flash.torch.attention` to the kernels and back through autograd.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from unittest import mock

import emulated
import pytest

import flash
from flash import arrays

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch_tensors import draw, gradients_of, qkv  # noqa: E402

import flash.torch  # noqa: E402

pytestmark = pytest.mark.emulated
attention = flash.torch.attention
STREAM = 0x5EED
over_memory = torch.from_numpy


class EmulatedTorch:
    """What flash takes from the module torch, with memory of the emulated device; kept as long as this."""

    def __init__(self):
        self.memory = []
        self.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=STREAM))
        self.float32 = torch.float32

    def place(self, x):
        """A copy of a tensor with the same strides, or of a broadcast one with whole axes."""
        like = torch.empty_like(x, memory_format=torch.preserve_format)
        found = self.empty((like.untyped_storage().nbytes(),), torch.uint8, x.device).view(x.dtype)
        found = found.as_strided(like.shape, like.stride())
        return found.copy_(x.detach()).requires_grad_(x.requires_grad)

    def empty(self, shape, dtype, device):
        like = torch.empty(shape, dtype=dtype, device="meta")
        block = emulated.empty((like.numel() * like.itemsize,), "uint8")
        self.memory.append(block)
        return over_memory(block.host).view(dtype).reshape(shape)

    def empty_like(self, x):
        return self.empty(x.shape, x.dtype, x.device)

    def full(self, shape, value, dtype, device):
        return self.empty(shape, dtype, device).fill_(value)

    def from_numpy(self, x):
        return self.place(over_memory(x))


def capsule(x):
    """A DLPack capsule that says CUDA."""
    found = torch.utils.dlpack.to_dlpack(x)
    arrays.tensor_at(arrays._pointer_of(found, b"dltensor")).device.device_type = arrays.CUDA
    return found


@contextmanager
def on_the_emulated_device():
    kind = arrays.kind_of(torch.empty(0), "q")
    module = EmulatedTorch()
    on_cuda = mock.patch.dict(kind._devices, {torch.device("cpu"): (arrays.CUDA, 0)})
    of_masks = mock.patch.object(torch, "from_numpy", module.from_numpy)  # what the lists of block masks come by
    with on_cuda, of_masks, mock.patch.multiple(kind, _torch=module, _capsule=capsule):
        yield module


def inputs_of(dtype, L=33):
    return *qkv(L=L, dtype=dtype, grad=True), draw(4, L, L, dtype=dtype, grad=True), draw(4, dtype=dtype, grad=True)


def function_of(options, place=lambda x: x):
    def made(x):
        return place(x) if isinstance(x, torch.Tensor) else x() if callable(x) else x

    options = {name: made(x) for name, x in options.items()}
    return lambda q, k, v, bias, sinks: attention(q, k, v, bias=bias, sinks=sinks, return_lse=True, **options)


OPTIONS = {
    "causal": {"causal": True},
    "dropout": {"dropout": 0.3, "seed": torch.tensor([2**40 + 7])},
    "block mask": {"block_mask": partial(flash.BlockMask.causal, 33, 33, 16)},  # which keeps its lists by device
    "lengths": {"q_lens": torch.tensor([20, 33]), "kv_lens": torch.tensor([33, 7])},
    "softcap": {"softcap": 2.0, "alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.0]), "window": (9, 3)},
    "mask": {"mask": torch.arange(33 * 33).reshape(33, 33) % 3 > 0},
}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_results_and_gradients_are_those_of_the_cpu(dtype, options):
    inputs = inputs_of(dtype)
    wanted = gradients_of(function_of(options), inputs)
    with on_the_emulated_device() as device:
        emulated.launches()
        placed = [device.place(x) for x in inputs]
        results = function_of(options, device.place)(*placed)
        weights = [device.place(draw(*x.shape, dtype=x.dtype)) for x in results]
        actual = *results, *torch.autograd.grad(results, placed, weights)
        launches = emulated.launches()
    assert {launch["stream"] for launch in launches} == {STREAM}
    assert any("forward" in launch["kernel"] for launch in launches)
    assert any("backward" in launch["kernel"] for launch in launches)
    for a, w in zip(actual, wanted, strict=True):
        assert a.dtype == w.dtype
        error = (a.detach().float() - w.detach().float()).nan_to_num(posinf=0, neginf=0).abs().max()
        assert error <= TOLERANCES[dtype] * w.detach().float().nan_to_num(neginf=0).abs().max().clamp(min=1.0)
        assert torch.equal(a.isinf(), w.isinf())


def test_views_and_layouts_reach_the_kernels_without_a_copy():
    """(batch, heads, length, dim) as PyTorch has it: all that is allocated are results and workspace."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(D=16, dtype=torch.float16))
    wanted = attention(q, k, v, causal=True)
    with on_the_emulated_device() as device:
        q, k, v = map(device.place, (q, k, v))
        assert not q.is_contiguous()
        before = len(device.memory)
        o = attention(q, k, v, causal=True)
        sizes = [block.shape[0] for block in device.memory[before:]]
    assert (o.float() - wanted.float()).abs().max() <= 2e-3
    assert o.numel() * 2 in sizes
    workspace = flash.workspace_bytes(q, k, v, causal=True)
    assert all(size in (o.numel() * 2, o.numel() // 16 * 4, workspace) for size in sizes)


def test_the_operators_compute_there_too():
    """What a compiled program, a transform or a profiler calls."""
    inputs = inputs_of(torch.float32)
    wanted = gradients_of(function_of({"causal": True}), inputs)
    with on_the_emulated_device() as device, mock.patch("flash.torch.operators._is_watched", lambda tensors: True):
        placed = [device.place(x) for x in inputs]
        results = function_of({"causal": True})(*placed)
        weights = [device.place(draw(*x.shape, dtype=x.dtype)) for x in results]
        actual = *results, *torch.autograd.grad(results, placed, weights)
    for a, w in zip(actual, wanted, strict=True):
        assert (a - w).abs().max() <= 1e-5 * w.abs().max().clamp(min=1.0)


def test_a_function_in_place_of_pytorchs_own():
    q, k, v = (x.transpose(1, 2) for x in qkv(Hk=4, D=16))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    with on_the_emulated_device() as device, flash.torch.use(strict=True):
        emulated.launches()
        placed = map(device.place, (q, k, v))
        o = torch.nn.functional.scaled_dot_product_attention(*placed, is_causal=True)
        assert len(emulated.launches()) == 1
    assert (o - wanted).abs().max() <= 1e-5
