"""flash.torch.scaled_dot_product_attention and flash.torch.use, beside PyTorch's own function."""

from __future__ import annotations

import inspect
import threading

import ml_dtypes
import numeric
import numpy
import pytest
from problems import Problem

import flash

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch_tensors import assert_equal, calls_of_flash, draw, gradients_of  # noqa: E402

import flash.torch  # noqa: E402

functional = torch.nn.functional
OWN = functional.scaled_dot_product_attention
sdpa = flash.torch.scaled_dot_product_attention

CASES = {
    "plain": ((2, 4, 33, 16), (2, 4, 41, 16), {}),
    "causal": ((2, 4, 33, 16), (2, 4, 41, 16), {"is_causal": True}),
    "causal, fewer keys": ((2, 4, 41, 16), (2, 4, 33, 16), {"is_causal": True}),
    "scale": ((2, 4, 33, 16), (2, 4, 41, 16), {"scale": 0.1}),
    "grouped": ((2, 4, 33, 16), (2, 2, 41, 16), {"enable_gqa": True}),
    "one head of keys": ((2, 4, 33, 16), (2, 1, 41, 16), {}),
    "broadcast queries": ((1, 1, 33, 16), (2, 4, 41, 16), {}),
    "two axes": ((33, 16), (41, 16), {"is_causal": True}),
    "three axes": ((4, 33, 16), (4, 41, 16), {}),
    "five axes": ((2, 3, 2, 9, 16), (2, 3, 2, 7, 16), {}),
    "mask of keys": ((2, 4, 33, 16), (2, 4, 41, 16), {"attn_mask": draw(2, 1, 1, 41) > 0}),
    "mask": ((2, 4, 33, 16), (2, 4, 41, 16), {"attn_mask": draw(33, 41) > 0}),
    "mask of two axes": ((33, 16), (41, 16), {"attn_mask": draw(33, 1) > -1}),
    "bias": ((2, 4, 33, 16), (2, 4, 41, 16), {"attn_mask": draw(2, 4, 33, 41)}),
    "bias of heads": ((2, 4, 33, 16), (2, 4, 41, 16), {"attn_mask": draw(4, 33, 41)}),
    "bias of keys": ((2, 4, 33, 16), (2, 4, 41, 16), {"attn_mask": draw(2, 1, 1, 41)}),
}


def inputs_of(name, dtype):
    query, key, options = CASES[name]
    inputs = [draw(*query, dtype=dtype), draw(*key, dtype=dtype, seed=1), draw(*key, dtype=dtype, seed=2)]
    bias = options.get("attn_mask")
    if bias is not None and bias.is_floating_point():
        inputs.append(bias.to(dtype))
        options = {}
    return [x.requires_grad_() for x in inputs], options


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_numbers_are_as_good_as_pytorchs(name, dtype):
    """The numeric rule, with PyTorch's function in float64 for exact, and what it chooses itself and its plain
    mathematics, both in the dtype, for naive.
    """
    inputs, options = inputs_of(name, dtype)

    def run(function, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        o = function(*leaves, **options)
        do = draw(*o.shape, dtype=inputs[0].dtype, seed=4).to(dtype)
        return [to_numpy(x) for x in (o.detach(), *torch.autograd.grad(o, leaves, do))]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact, plain = run(OWN, torch.float64), run(OWN, dtype)
    actual, chosen = run(sdpa, dtype), run(OWN, dtype)
    stored = errors_of_stored_numbers(inputs, options)
    for what, a, e, *naive in zip(("o", "dq", "dk", "dv", "dbias"), actual, exact, plain, chosen, strict=False):
        if dtype == torch.float64:
            numpy.testing.assert_allclose(a, e, rtol=0, atol=1e-14 * max(1.0, numpy.abs(e).max()))
        else:
            numeric.assert_accurate(what, a, e, naive, stored.get(what))


def errors_of_stored_numbers(inputs, options):
    """What a backward from a rounded o and lse adds (numeric.py), and PyTorch's plain mathematics has nothing of."""
    query, key, value, *bias = inputs
    if query.dtype.itemsize != 4:
        return {}
    if query.shape[:-3] != key.shape[:-3]:
        query = query.expand(*key.shape[:-2], -1, -1)

    def as_flash_has_it(x):
        return to_numpy(x.detach().reshape((-1, *x.shape[-3:]) if x.ndim > 2 else (1, 1, *x.shape)).transpose(1, 2))

    do = draw(*query.shape, dtype=query.dtype, seed=4)
    given = {"scale": options["scale"]} if "scale" in options else {}
    given |= {"causal": True, "q_offset": 0} if options.get("is_causal") else {}
    given |= {"mask": to_numpy(options["attn_mask"])} if "attn_mask" in options else {}
    given |= {"bias": to_numpy(bias[0].detach())} if bias else {}
    q, k, v, do = map(as_flash_has_it, (query, key, value, do))
    problem = Problem(q, k, v, do, numpy.zeros((len(q), q.shape[2], q.shape[1]), "f4"), given)
    stored = numeric.Answers(problem, with_dlse=False)._stored()
    found = zip(("dq", "dk", "dv"), inputs, stored, strict=False)
    errors = {name: x.swapaxes(1, 2).reshape(like.shape) for name, like, x in found if x.size == like.numel()}
    return errors | {"dbias": stored.dbias}


def to_numpy(x):
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


@pytest.mark.parametrize("seed", range(8))
def test_random_problems(seed):
    """Any combination of what the function takes, in float64."""
    rng = numpy.random.default_rng(seed)
    B, H, group, L, S, E, Ev = (int(rng.integers(1, n)) for n in (4, 3, 4, 70, 70, 40, 40))
    shapes = (B, H * group, L, E), (B, H, S, E), (B, H, S, Ev)
    inputs = [draw(*shape, dtype=torch.float64, seed=n).requires_grad_() for n, shape in enumerate(shapes)]
    options = {"scale": float(rng.random()), "enable_gqa": True, "is_causal": bool(rng.integers(2))}
    if not options["is_causal"] and rng.integers(2):
        options["attn_mask"] = draw(*(1 if rng.integers(2) else n for n in (B, H * group, L)), S) > 0
    # PyTorch's choice for a query that sees no key isn't the same in all of its backends: 0, as flash has it, or NaN.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = gradients_of(lambda *x: OWN(*x, **options), inputs)
    torch.testing.assert_close(gradients_of(lambda *x: sdpa(*x, **options), inputs), wanted, rtol=0, atol=1e-13)


def test_signature_and_layout_are_pytorchs():
    assert list(inspect.signature(sdpa).parameters) == (
        "query key value attn_mask dropout_p is_causal scale enable_gqa".split()
    )
    query, key, _ = CASES["causal"]
    assert sdpa(draw(*query), draw(*key), draw(*key)[..., :5], None, 0.0, True).shape == (*query[:-1], 5)


def test_mask_and_causal_rule_together():
    """As PyTorch's backend on the CPU has it; the others refuse."""
    q, mask = draw(1, 2, 33, 16), draw(33, 33) > 0
    both = sdpa(q, q, q, mask, is_causal=True)
    assert_equal([both], [sdpa(q, q, q, mask & torch.ones(33, 33, dtype=torch.bool).tril())])


def test_a_mask_without_axes():
    q = draw(1, 2, 33, 16)
    torch.testing.assert_close(sdpa(q, q, q, torch.tensor(3.0)), sdpa(q, q, q))
    assert not sdpa(q, q, q, torch.tensor(False)).any()


def test_queries_that_see_nothing_give_zero():
    q, mask = draw(1, 2, 5, 8).requires_grad_(), torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    for m in (mask, torch.zeros(5, 5).masked_fill(~mask, -torch.inf)):
        o, dq = gradients_of(lambda q, m=m: sdpa(q, q.detach(), q.detach(), m), (q,))
        assert not o[:, :, 2].any() and not dq[:, :, 2].any() and o[:, :, 3].all()


def test_dropout_follows_the_generator_and_keeps_the_mean():
    q, k, v = draw(1, 1, 64, 8), draw(1, 1, 64, 8, seed=1), torch.ones(1, 1, 64, 8)
    torch.manual_seed(0)
    o = sdpa(q, k, v, dropout_p=0.25)
    assert not torch.equal(o, sdpa(q, k, v, dropout_p=0.25))
    torch.manual_seed(0)
    assert_equal([sdpa(q, k, v, dropout_p=0.25)], [o])
    assert 0.9 < float(o.mean()) < 1.1 and float(o.std()) > 0.01
    assert not sdpa(q, k, v, dropout_p=1.0).any()


# ---- What flash can't compute ----------------------------------------------------------------------------------------

UNSUPPORTED = {
    "dims": ((1, 1, 3, 600), {}, "a head must have 1 to 576 dims, got 600 and 600"),
    "dtype": ((1, 1, 3, 8), {"dtype": torch.complex64}, "it has no kernel for torch.complex64 on cpu"),
    "no dims": ((1, 1, 3, 0), {}, "a head must have 1 to 576 dims, got 0 and 0"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_flash_lacks_is_computed_by_pytorch_or_named(name):
    shape, more, reason = UNSUPPORTED[name]
    q = draw(*shape, **more)
    try:
        wanted = OWN(q, q, q)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as raised:
            sdpa(q, q, q)
        assert str(raised.value) == str(error)
    else:
        assert_equal([sdpa(q, q, q)], [wanted])
    with flash.torch.use(strict=True), pytest.raises(flash.UnsupportedError, match=f"flash can't compute it: {reason}"):
        functional.scaled_dot_product_attention(q, q, q)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_go_to_pytorch():
    parts = [draw(n, 4, 8, seed=n) for n in (3, 7)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    for part, o in zip(parts, sdpa(nested, nested, nested).transpose(1, 2).unbind(), strict=True):
        x = part.transpose(0, 1)
        torch.testing.assert_close(o.transpose(0, 1), sdpa(x, x, x))


@pytest.mark.parametrize(
    "key, value, more",
    [
        ((2, 3, 5, 8), (2, 3, 5, 8), {}),
        ((2, 4, 5, 7), (2, 4, 5, 8), {}),
        ((2, 4, 5, 8), (2, 4, 5, 8), {"attn_mask": torch.ones(3, 5)}),
        ((2, 4, 5, 8), (2, 4, 5, 8), {"attn_mask": torch.ones(5, 5, dtype=torch.int32)}),
        ((2, 4, 5, 8), (2, 4, 5, 8), {"dropout_p": 1.5}),
    ],
)
def test_wrong_arguments_get_pytorchs_message(key, value, more):
    arguments = draw(2, 4, 5, 8), draw(*key), draw(*value)
    with pytest.raises((RuntimeError, ValueError)) as wanted:
        OWN(*arguments, **more)
    with pytest.raises(type(wanted.value)) as raised:
        sdpa(*arguments, **more)
    assert str(raised.value) == str(wanted.value)


# ---- In the place of PyTorch's function ------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    return calls_of_flash(monkeypatch)


def encoder(dropout=0.0):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


PADDING = torch.arange(12) >= torch.tensor([[12], [7], [3]])


@pytest.mark.parametrize("training", [True, False])
def test_an_unmodified_encoder_runs_on_flash(calls, training):
    model, x = encoder().train(training), draw(3, 12, 32).requires_grad_()

    def run(x):
        return model(x, src_key_padding_mask=PADDING)[~PADDING]

    wanted = gradients_of(run, (x,))
    assert not calls
    with flash.torch.use(strict=True):
        actual = gradients_of(run, (x,))
    assert len(calls) == 2
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, w)


def test_the_fast_path_of_evaluation_is_off(calls):
    model, x = encoder().eval(), draw(3, 12, 32)
    with torch.inference_mode():
        wanted = model(x)
        with flash.torch.use(strict=True):
            torch.testing.assert_close(model(x), wanted)
    assert len(calls) == 2 and torch.backends.mha.get_fastpath_enabled()


def test_causal_masks_of_modules(calls):
    model, x = encoder().eval(), draw(3, 12, 32)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(12)
    wanted = model(x, mask=mask)
    with flash.torch.use(strict=True):
        torch.testing.assert_close(model(x, mask=mask, is_causal=True), wanted)
    assert [call["causal"] for call in calls] == [True, True]


def test_a_compiled_model_is_compiled_for_each():
    from torch._dynamo.backends.common import aot_autograd

    model, x = encoder(), draw(3, 12, 32)
    graphs = []

    def compiler(graph, inputs):
        graphs.append(any("flash.attention" in str(node.target) for node in graph.graph.nodes))
        return graph

    backend = aot_autograd(fw_compiler=compiler)
    compiled, wanted = torch.compile(model, fullgraph=True, backend=backend), model(x)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), wanted)
        with flash.torch.use(strict=True):
            torch.testing.assert_close(compiled(x), wanted)
    assert graphs == [False, True]


def test_a_compiled_model_takes_any_length():
    model = encoder()
    with flash.torch.use(strict=True):
        compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
        for L in (5, 9, 12):
            x = draw(2, L, 32)
            torch.testing.assert_close(compiled(x), model(x))


def test_an_exported_model_holds_the_operator():
    model, x = encoder().eval(), draw(3, 12, 32)
    with flash.torch.use(strict=True):
        program = torch.export.export(model, (x,), {"src_key_padding_mask": PADDING})
    assert sum("flash.attention" in str(node.target) for node in program.graph.nodes) == 2
    found = program.module()(x, src_key_padding_mask=PADDING)[~PADDING]
    torch.testing.assert_close(found, model(x, src_key_padding_mask=PADDING)[~PADDING])


def test_autocast(calls):
    model, x = encoder(), draw(3, 12, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = model(x)
        with flash.torch.use(strict=True):
            torch.testing.assert_close(model(x), wanted, rtol=0.02, atol=0.02)
    assert len(calls) == 2


def is_restored():
    return functional.scaled_dot_product_attention is OWN and torch.backends.mha.get_fastpath_enabled()


def test_blocks_nest_and_are_left_by_exceptions():
    q = draw(1, 1, 3, 600)
    with pytest.raises(ZeroDivisionError), flash.torch.use():
        with flash.torch.use(strict=True), pytest.raises(flash.UnsupportedError):
            functional.scaled_dot_product_attention(q, q, q)
        assert not is_restored()
        functional.scaled_dot_product_attention(q, q, q)
        raise ZeroDivisionError
    assert is_restored()

    @flash.torch.use(strict=True)
    def decorated():
        return functional.scaled_dot_product_attention is OWN

    assert not decorated() and not decorated() and is_restored()


def test_what_was_off_stays_off():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with flash.torch.use():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_threads_may_leave_in_any_order():
    entered, leave = threading.Barrier(3), [threading.Event() for _ in range(2)]

    def work(n):
        with flash.torch.use():
            entered.wait(10)
            leave[n].wait(10)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    for n, thread in enumerate(threads):  # the one that came first, or second, leaves first: both happen
        assert not is_restored()
        leave[n].set()
        thread.join(10)
    assert is_restored()


def test_a_patch_of_somebody_else_survives(monkeypatch):
    """One made inside a block stays, and what it has kept is PyTorch's function again after the block."""
    q = draw(1, 1, 3, 8)
    with flash.torch.use():
        kept = functional.scaled_dot_product_attention
        monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *x, **more: kept(*x, **more))
    assert functional.scaled_dot_product_attention is not OWN
    assert_equal([functional.scaled_dot_product_attention(q, q, q)], [OWN(q, q, q)])
    with flash.torch.use():
        wide = draw(1, 1, 3, 600)
        assert_equal([functional.scaled_dot_product_attention(wide, wide, wide)], [OWN(wide, wide, wide)])
    monkeypatch.undo()
    assert functional.scaled_dot_product_attention is kept
    functional.scaled_dot_product_attention = OWN
