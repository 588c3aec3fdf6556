"""Who sees the operators of flash.torch: all that looks at operators, and nobody else has to pay for them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import ClassVar

import pytest

import flash

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch_tensors import assert_equal, draw, gradients_of, qkv  # noqa: E402

import flash.torch  # noqa: E402
from flash.torch import operators  # noqa: E402

attention = flash.torch.attention
FORWARD, BACKWARD = torch.ops.flash.attention.default, torch.ops.flash.attention_backward.default


OLD = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # used inside of PyTorch


class DispatchMode(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    __torch_function__ = DispatchMode.__torch_dispatch__


class Subclass(torch.Tensor):
    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs)


# ---- Those that see them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DispatchMode, FunctionMode])
def test_modes(kind):
    wanted = gradients_of(attention, qkv(grad=True))
    with kind() as mode:
        assert_equal(gradients_of(attention, qkv(grad=True)), wanted)
        assert FORWARD in mode.seen and (BACKWARD in mode.seen or kind is FunctionMode)
        mode.seen.clear()
        with torch.no_grad():
            attention(*qkv())
        assert FORWARD in mode.seen


def test_a_mode_that_is_entered_for_the_backward():
    q, k, v = qkv(grad=True)
    o = attention(q, k, v)
    with DispatchMode() as mode:
        torch.autograd.grad(o.sum(), (q, k, v))
    assert BACKWARD in mode.seen


@pytest.mark.parametrize("name", ["k", "mask"])
def test_subclasses(name):
    q, k, v = qkv()
    arguments = {"q": q, "k": k, "v": v, "mask": draw(33, 33) > 0}
    wanted = attention(**arguments)
    Subclass.seen.clear()
    o = attention(**arguments | {name: arguments[name].as_subclass(Subclass)})
    assert isinstance(o, Subclass) and FORWARD in Subclass.seen
    assert_equal([o.as_subclass(torch.Tensor)], [wanted])


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_fake_tensors(grad, inside):
    mode = FakeTensorMode()
    inputs = [mode.from_tensor(x) for x in qkv(grad=grad)]
    with mode if inside else nullcontext():
        o = attention(*inputs)
        gradients = torch.autograd.grad(o.sum(), inputs) if grad else ()
    assert all(isinstance(x, FakeTensor) for x in (o, *gradients))
    assert [x.shape for x in (o, *gradients)] == [x.shape for x in (o, *inputs[: len(gradients)])]


@OLD
def test_tracers():
    q, k, v = qkv()
    assert FORWARD in [node.target for node in make_fx(lambda *x: attention(*x))(q, k, v).graph.nodes]
    with torch.no_grad():
        traced = torch.jit.trace(attention, (q, k, v))
    assert "flash::attention" in str(traced.graph)
    assert_equal([traced(2 * q, k, v)], [attention(2 * q, k, v)])


def test_the_profiler():
    with torch.autograd.profiler.profile() as profile:
        gradients_of(attention, qkv(grad=True))
    assert {"flash::attention", "flash::attention_backward"} <= {event.name for event in profile.function_events}


@OLD
def test_forward_mode_derivatives_are_an_error():
    q, k, v = qkv()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        attention(torch.autograd.forward_ad.make_dual(q, torch.ones_like(q)), k, v)


def test_a_view_that_stands_for_the_negative_of_its_memory():
    q, k, v = qkv()
    assert_equal([attention(torch._neg_view(-q), k, v)], [attention(q, k, v)])


# ---- Those that don't ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context",
    [nullcontext, torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", dtype=torch.bfloat16)],
    ids=["nothing", "no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("option", ["none", "bias", "q_offset"])
def test_plain_calls_do_without(monkeypatch, context, option):
    inputs = [torch.nn.Parameter(x) for x in qkv()]
    options = {"none": {}, "bias": {"bias": draw(33, 33, grad=True)}, "q_offset": {"q_offset": torch.tensor([1, 2])}}

    def results():
        with context():
            o = attention(*inputs, **options[option])
        return [o, *(torch.autograd.grad(o.sum(), inputs) if o.requires_grad else ())]

    with DispatchMode():
        wanted = results()
    for name in ("operator", "backward_operator"):
        monkeypatch.setattr(operators, name, None)
    assert_equal(results(), wanted)
