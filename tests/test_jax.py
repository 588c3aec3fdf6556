"""flash.jax under JAX's transformations, and its messages. That it computes attention: test_jax_numeric.py."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import test_xla
from numeric import assert_same_bits

import flash

jax = pytest.importorskip("jax")
flash_jax = pytest.importorskip("flash.jax")
jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes the time here
jnp = jax.numpy


@pytest.fixture
def arrays():
    """arrays(shape...): random float32 JAX arrays."""
    rng = numpy.random.default_rng(3)
    return lambda *shape: jnp.asarray(rng.normal(size=shape), "float32")


@pytest.fixture
def qkv(arrays):
    return arrays(2, 19, 4, 16), arrays(2, 35, 2, 16), arrays(2, 35, 2, 8)


def squares(q, k, v, **options):
    """A loss that is differentiable in everything."""
    o, lse = flash_jax.attention(q, k, v, return_lse=True, **options)
    return (o * o).sum() + jnp.where(jnp.isfinite(lse), lse, 0.0).sum()


def trees_close(a, b, steps=8):
    """Equal but for a few roundings."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        numpy.testing.assert_allclose(x, y, rtol=0, atol=steps * 2.0**-23 * max(1.0, float(jnp.abs(y).max(initial=0))))


# ---- Transformations -------------------------------------------------------------------------------------------------


def test_jit_and_eager_give_the_same_bits(qkv):
    eager = jax.value_and_grad(squares, (0, 1, 2))(*qkv)
    jitted = jax.jit(jax.value_and_grad(squares, (0, 1, 2)))(*qkv)
    assert_same_bits(jax.tree.map(numpy.asarray, jitted[1]), jax.tree.map(numpy.asarray, eager[1]))


def test_second_use_in_one_graph(qkv):
    """Each use has its own residuals, and gradients add up."""
    q, k, v = qkv

    def twice(q, k, v):
        return squares(q, k, v, causal=True) + squares(0.5 * q, k, v, window=(3, 3))

    parts = jax.grad(squares, (1, 2))(q, k, v, causal=True), jax.grad(squares, (1, 2))(0.5 * q, k, v, window=(3, 3))
    trees_close(jax.jit(jax.grad(twice, (1, 2)))(q, k, v), jax.tree.map(jnp.add, *parts))


@pytest.mark.parametrize("policy", ["nothing_saveable", "dots_saveable"])
def test_checkpoint_and_scan(qkv, policy):
    q = qkv[0]

    def layers(wrap, x):
        def layer(x, factor):
            return wrap(lambda x: flash_jax.attention(x, x, factor * x, causal=True))(x), None

        return (jax.lax.scan(layer, x, jnp.arange(1.0, 4.0))[0] ** 2).sum()

    policy = getattr(jax.checkpoint_policies, policy)
    kept = jax.jit(jax.grad(lambda x: layers(lambda f: f, x)))(q)
    again = jax.jit(jax.grad(lambda x: layers(lambda f: jax.checkpoint(f, policy=policy), x)))(q)
    trees_close(again, kept)


MAPPED = {
    "q": (0, {}),
    "k": (0, {}),
    "bias": ((4, 1, 35), {}),
    "bias_of_batch": ((2, 4, 19, 35), {}),
    "mask": ((19, 35), {}),
    "kv_lens": ((2,), {}),
    "q_offset": ((2,), {"causal": True}),
    "alibi_slopes": ((4,), {}),
    "alibi_slopes_of_batch": ((2, 4), {}),
    "sinks": ((4,), {}),
    "seed": ((), {"dropout": 0.4}),
    "q with dropout": (0, {"dropout": 0.4, "seed": 5}),
    "q with sinks": (0, {"sinks": numpy.arange(4, dtype="f")}),
    "q with bias": (0, {"bias": numpy.ones((4, 1, 35), "f")}),
    "q with block_mask": (0, {"block_mask": (2, 4)}),
}


@pytest.mark.parametrize("mapped", MAPPED)
def test_vmap_is_a_loop(qkv, arrays, mapped):
    """Over one argument at a time: values and gradients, with the axis in another place for q."""
    shape, options = MAPPED[mapped]
    name = mapped.removesuffix("_of_batch").partition(" ")[0]
    if "block_mask" in options:
        blocks = numpy.random.default_rng(1).random((*options["block_mask"], 2, 3)) < 0.7
        options = {"block_mask": flash.BlockMask.from_dense(blocks, 16, Lq=19, Lk=35)}
    given = dict(zip("qkv", qkv, strict=True)) | {
        k: jnp.asarray(x) for k, x in options.items() if k in ("sinks", "bias")
    }
    rest = {name: x for name, x in options.items() if name not in given}
    axis = 1 if mapped == "q" else 0
    if shape == 0:
        many = jnp.stack([given[name], 0.5 * given[name], -given[name]], axis)
    elif name in ("kv_lens", "q_offset", "seed"):
        many = jnp.asarray(numpy.random.default_rng(0).integers(1, 20, (3, *shape)), "int32")
    else:
        many = arrays(3, *shape) > -0.5 if name == "mask" else arrays(3, *shape)
    wrt = [key for key in (*given, name) if key in ("q", "k", "v", "bias", "sinks")]

    def call(x):
        whole = given | {name: x}

        def loss(real):
            return squares(**whole | real, **rest)

        return jax.value_and_grad(loss)({key: whole[key] for key in wrt})

    looped = [call(jnp.take(many, n, axis)) for n in range(3)]
    trees_close(jax.vmap(call, in_axes=axis)(many), jax.tree.map(lambda *x: jnp.stack(x), *looped), steps=32)


def test_vmap_twice_and_over_an_unmapped_bias(qkv, arrays):
    q, k, v = qkv
    bias, many = arrays(4, 19, 35), jnp.stack([q, 2 * q, -q])

    def total(bias):
        return jax.vmap(jax.vmap(lambda q, k, v: squares(q, k, v, bias=bias), (0, 0, 0)), (0, None, None))(many, k, v)

    wanted = sum(
        jax.grad(lambda bias, n=n, b=b: squares(many[n, b], k[b], v[b], bias=bias))(bias)
        for n in range(3)
        for b in range(2)
    )
    trees_close(jax.grad(lambda bias: total(bias).sum())(bias), wanted, steps=32)


def test_inputs_that_are_views(qkv):
    """Broadcast, transposed and sliced inside a program: XLA hands over their values."""
    q, k, v = qkv

    def of_views(q, k, v):
        wide = jnp.broadcast_to(k[:, :, :1], (2, 35, 2, 16))
        return squares(q[:, ::-1], wide, jnp.swapaxes(jnp.swapaxes(v, 1, 2)[..., ::2], 1, 2))

    got = jax.jit(jax.grad(of_views, (0, 1, 2)))(q, k, v)
    copies = jnp.array(q[:, ::-1]), jnp.array(jnp.repeat(k[:, :, :1], 2, 2)), jnp.array(v[..., ::2])
    dq, dk, dv = jax.grad(squares, (0, 1, 2))(*copies)
    trees_close(got[0], dq[:, ::-1])
    trees_close(got[1], jnp.zeros_like(k).at[:, :, :1].set(dk.sum(2, keepdims=True)))
    trees_close(got[2], jnp.zeros_like(v).at[..., ::2].set(dv))


def test_one_function_differentiated_in_several_ways(qkv, arrays):
    """What is compiled for one way is not taken for another."""
    given = (*qkv, arrays(4, 19, 35))
    _, vjp = flash.attention_vjp(*qkv, bias=given[3])

    def total(q, k, v, bias):
        return flash_jax.attention(q, k, v, bias=bias).sum()

    whole = vjp(jnp.ones((2, 19, 4, 8)))
    jitted = jax.jit(total)
    for wrt in ((0,), (3,), (1, 2), (0, 1, 2, 3), (2,)):
        for function in (total, jitted):
            trees_close(jax.grad(function, wrt)(*given), tuple(whole[n] for n in wrt))


def test_gradients_that_nobody_wants_are_not_computed(qkv, arrays):
    q, k, v = qkv
    bias = arrays(4, 19, 35)

    def backwards(function, *arguments):
        text = jax.jit(function).lower(*arguments).compile().as_text()
        return sorted(int(n) for n in re.findall(r"flash_attention_backward.*wanted = (\d+)", text))

    traced = lambda q, k, v, bias: squares(q, k, v, bias=bias)  # noqa: E731
    assert backwards(jax.grad(traced, (0, 1, 2)), q, k, v, bias) == [7]
    assert backwards(jax.grad(traced, 3), q, k, v, bias) == [8]
    assert backwards(jax.grad(traced, (1, 3)), q, k, v, bias) == [7, 8]
    assert backwards(jax.grad(lambda v: squares(q, k, v, bias=bias)), v) == [4]


def test_gradient_through_either_result_alone(qkv):
    q, k, v = qkv
    for part in (0, 1):
        both = jax.grad(lambda q, part=part: flash_jax.attention(q, k, v, return_lse=True)[part].sum())(q)
        o, vjp = flash.attention_vjp(q, k, v)
        do, dlse = jnp.zeros_like(o) + (part == 0), jnp.zeros((2, 4, 19)) + part
        trees_close(both, vjp(do, dlse).dq)


def test_traced_seed_draws_what_its_number_draws(qkv):
    draw = jax.jit(lambda seed: flash_jax.attention(*qkv, dropout=0.3, seed=seed))
    for seed in (0, 7, 2**31 - 1):
        assert_same_bits(
            numpy.asarray(draw(jnp.int32(seed))), numpy.asarray(flash.attention(*qkv, dropout=0.3, seed=seed))
        )
    for seed, number in ((7, 7), (2**40 + 7, 2**40 + 7), (numpy.array([2**40 + 7]), 2**40 + 7)):
        ours = flash_jax.attention(*qkv, dropout=0.3, seed=seed)
        assert_same_bits(numpy.asarray(ours), numpy.asarray(flash.attention(*qkv, dropout=0.3, seed=number)))


def test_a_new_seed_is_not_a_new_program(qkv):
    from flash.jax import api

    flash_jax.attention(*qkv, dropout=0.3, seed=1)
    before = api._compiled._cache_size()
    flash_jax.attention(*qkv, dropout=0.3, seed=2)
    assert api._compiled._cache_size() == before


def test_numpy_arrays_are_taken(qkv):
    q, k, v = map(numpy.asarray, qkv)
    o = flash_jax.attention(q, k, v, kv_lens=numpy.array([3, 35]), causal=True)
    assert isinstance(o, jax.Array)
    assert_same_bits(numpy.asarray(o), flash.attention(q, k, v, kv_lens=numpy.array([3, 35]), causal=True))


def test_sharding_and_float64():
    """In a process of its own, which has four devices and 64-bit numbers."""
    script = Path(__file__).with_name("jax_devices.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["sharded", "shard_map", "explicit", "dropout", "float64"]


def test_options_are_those_of_flash_attention():
    """All but where the result goes, which XLA decides."""
    ours, theirs = (inspect.signature(x).parameters for x in (flash_jax.attention, flash.attention))
    assert set(theirs) - set(ours) == {"out", "workspace"} and set(ours) - set(theirs) == {"deterministic"}
    assert all(ours[name].default == theirs[name].default for name in set(ours) & set(theirs))
    ours, theirs = (
        inspect.signature(x).parameters for x in (flash_jax.dot_product_attention, jax.nn.dot_product_attention)
    )
    assert [(x.name, x.default, x.kind) for x in ours.values()][: len(theirs)] == [
        (x.name, x.default, x.kind) for x in theirs.values()
    ]


def test_operands_are_in_the_order_of_the_handlers():
    from flash.jax import kernel

    assert kernel.OPERANDS == test_xla.OPERANDS


def test_python_in_the_docs_runs(capsys):
    page = Path(__file__).resolve().parents[1] / "docs" / "jax.md"
    (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/jax.md", "exec"), {})
    assert float(capsys.readouterr().out) < 1e-5


# ---- Wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": "short"}, flash.FlashValueError, "k: last axis must be 16 as in q, got 3"),
        ({"q": [1.0]}, flash.FlashTypeError, "q: must be a JAX or NumPy array, got [1.0] (list)"),
        ({"mask": numpy.ones((19, 35), "f")}, flash.FlashTypeError, "mask: dtype must be bool, got float32"),
        ({"kv_lens": numpy.ones(3, "i4")}, flash.FlashValueError, "kv_lens: shape must be N = (2,), got (3,)"),
        ({"dropout": 1.5}, flash.FlashValueError, "dropout: must be 0 to 1, got 1.5"),
        ({"scale": "1"}, flash.FlashTypeError, "scale: must be a real number, got '1' (str)"),
        ({"softcap": -1.0}, flash.FlashValueError, "softcap: must be finite and at least 0 (0 is off), got -1"),
        ({"window": (-1, 0)}, flash.FlashValueError, "window_left: must be "),
        ({"block_mask": 3}, flash.FlashTypeError, "block_mask: must be a flash.BlockMask, got 3 (int)"),
        ({"bias": numpy.ones((5, 5), "f")}, flash.FlashValueError, "bias: shape must broadcast to "),
        ({"seed": 1.5}, flash.FlashTypeError, "seed: must be an int, got 1.5 (float)"),
        ({"seed": jax.random.key(0)}, flash.FlashTypeError, "seed: must not be a PRNG key, got one of key<fry>; pass "),
        ({"q": jnp.ones((2, 19, 4, 16), "int8")}, flash.FlashTypeError, "q: dtype must be float16 or "),
        ({"out": 1}, TypeError, "out"),
    ],
)
def test_wrong_arguments_are_named_when_the_program_is_traced(qkv, change, error, message):
    q, k, v = qkv
    given = {"q": q, "k": k, "v": v} | change
    if change == {"k": "short"}:
        given["k"] = k[..., :3]
    with pytest.raises(error) as raised:
        jax.make_jaxpr(lambda: flash_jax.attention(**given))()
    assert message in str(raised.value)


def test_wrong_values_are_named_when_the_program_runs(qkv):
    with pytest.raises(Exception, match=r"kv_lens: must be 0 to 35, got 36 for sequence 1") as raised:
        jax.block_until_ready(flash_jax.attention(*qkv, kv_lens=jnp.asarray([0, 36])))
    assert "INVALID_ARGUMENT" in str(raised.value)


def test_what_has_no_derivative_says_so(qkv):
    q, k, v = qkv
    slopes = jnp.ones(4)
    with pytest.raises(flash.UnsupportedError, match=r"alibi_slopes: has no gradient .*stop_gradient\(alibi_slopes\)"):
        jax.grad(lambda slopes: squares(q, k, v, alibi_slopes=slopes))(slopes)
    jax.grad(lambda q: squares(q, k, v, alibi_slopes=slopes))(q)
    with pytest.raises(flash.UnsupportedError, match="first derivatives only, in reverse mode"):
        jax.grad(lambda q: jax.grad(squares)(q, k, v).sum())(q)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: squares(q, k, v), (q,), (q,))


def test_dot_product_attention_names_its_own_arguments(qkv):
    q, k, v = qkv
    call = flash_jax.dot_product_attention
    with pytest.raises(flash.FlashValueError, match=r"^key: last axis must be 16"):
        call(q, k[..., :3], v)
    with pytest.raises(flash.FlashTypeError, match=r"^value: must be a JAX or NumPy array, got None"):
        call(q, k, None)
    with pytest.raises(flash.FlashValueError, match=r"^key_value_seq_lengths: shape must be"):
        call(q, k, v, key_value_seq_lengths=jnp.ones(3, "int32"))
    with pytest.raises(flash.FlashValueError, match=r"^implementation: must be None, .*, got 'x'"):
        call(q, k, v, implementation="x")
    with pytest.raises(flash.FlashValueError, match=r"^local_window_size: must be"):
        call(q, k, v, local_window_size=-1)
    theirs = call(q, k, k, implementation="xla")
    trees_close(call(q, k, k), theirs)


def test_traced_arrays_are_led_here(qkv):
    with pytest.raises(flash.FlashTypeError, match=r"q: is traced by JAX .* use flash\.jax\.attention"):
        jax.jit(flash.attention)(*qkv)


def test_an_old_jax_is_named():
    code = (
        "import sys, types\nold = types.ModuleType('jax')\nold.__version__ = '0.4.30'\nsys.modules['jax'] = old\n"
        "try:\n    import flash.jax\nexcept ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "flash.jax: needs JAX 0.5 or later, which has jax.ffi, got 0.4.30"
