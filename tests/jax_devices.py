"""Run by test_jax.py: attention on four devices that XLA makes of one CPU, and in float64. Prints what has passed."""
# ruff: noqa: E402

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import flash
import flash.jax

rng = numpy.random.default_rng(0)
MESH = Mesh(numpy.array(jax.devices()).reshape(2, 2), ("data", "heads"))
SPECS = {
    "q": ("data", None, "heads"), "k": ("data", None, "heads"), "v": ("data", None, "heads"), "bias": ("heads",),
    "sinks": ("heads",), "kv_lens": ("data",), "alibi_slopes": ("heads",),
}  # fmt: skip
REAL = "q", "k", "v", "bias", "sinks"
BLOCKS = flash.BlockMask.from_dense(rng.random((4, 3, 4)) < 0.8, 16, Lq=37, Lk=53)


def random(*shape):
    return jnp.asarray(rng.normal(size=shape), "float32")


GIVEN = {
    "q": random(4, 37, 4, 16), "k": random(4, 53, 2, 16), "v": random(4, 53, 2, 24), "bias": random(4, 1, 53),
    "sinks": random(4), "kv_lens": jnp.asarray([53, 20, 1, 40]), "alibi_slopes": abs(random(4)),
}  # fmt: skip
SHARDED = {name: jax.device_put(x, NamedSharding(MESH, PartitionSpec(*SPECS[name]))) for name, x in GIVEN.items()}


def results_and_gradients(call, given):
    """Of a call that gives o and lse."""

    def loss(real):
        o, lse = call(given | real)
        return (o * o).sum() + jnp.where(jnp.isfinite(lse), lse, 0.0).sum(), (o, lse)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))({name: given[name] for name in REAL})


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        numpy.testing.assert_allclose(x, y, rtol=0, atol=32 * 2.0**-23 * max(1.0, float(abs(y).max())))


def attention(given):
    return flash.jax.attention(**given, causal=True, block_mask=BLOCKS, return_lse=True)


def attention_of_shards(given):
    return flash.jax.attention(**given, causal=True, return_lse=True)


def test_sharded():
    """Nothing is gathered, results lie where the operands lie, and sums over devices are made."""
    wanted, got = results_and_gradients(attention, GIVEN), results_and_gradients(attention, SHARDED)
    assert_close(got, wanted)
    (_, (o, lse)), gradients = got
    assert o.sharding.spec[:3] == ("data", None, "heads") and lse.sharding.spec[:2] == ("data", "heads")
    assert gradients["k"].sharding.spec[:3] == ("data", None, "heads")
    text = jax.jit(attention).lower(SHARDED).compile().as_text()
    assert "all-gather" not in text and "f32[2,37,2,24]" in text


def test_shard_map():
    """With the checks of what varies over which axis; the bias is the same for all data."""
    shard_map = getattr(jax, "shard_map", None)
    if shard_map is None:  # versions in which it has no rule for foreign calls
        return
    specs = {name: PartitionSpec(*spec) for name, spec in SPECS.items()}
    out = PartitionSpec("data", None, "heads"), PartitionSpec("data", "heads")
    mapped = shard_map(attention_of_shards, mesh=MESH, in_specs=(specs,), out_specs=out)
    assert_close(results_and_gradients(mapped, SHARDED), results_and_gradients(attention_of_shards, GIVEN))


def test_explicit():
    """A mesh whose axes are part of an array's type: results are gathered, gradients are typed as their arguments."""
    kind = getattr(getattr(jax.sharding, "AxisType", None), "Explicit", None)
    if kind is None or not hasattr(jax, "set_mesh"):
        return
    mesh = jax.make_mesh((2, 2), ("data", "heads"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        q = jax.device_put(GIVEN["q"], NamedSharding(mesh, PartitionSpec("data", None, "heads")))
        gradient = jax.jit(jax.grad(lambda q: flash.jax.attention(q, q, q).sum()))(q)
        assert gradient.sharding.spec[:3] == ("data", None, "heads")
    assert_close(gradient, jax.grad(lambda q: flash.jax.attention(q, q, q).sum())(GIVEN["q"]))


def test_dropout():
    """It depends on the position in the whole array, wherever a part of it lies."""

    def call(given):
        return flash.jax.attention(given["q"], given["k"], given["v"], dropout=0.3, seed=3)

    assert_close(jax.jit(call)(SHARDED), call(GIVEN))


def test_float64():
    q, k, v = (GIVEN[name].astype("float64") for name in "qkv")
    o, lse = flash.jax.attention(q, k, v, return_lse=True, seed=2**40, dropout=0.1)
    wanted = flash.attention(*map(numpy.asarray, (q, k, v)), return_lse=True, seed=2**40, dropout=0.1)
    assert o.dtype == lse.dtype == "float64"
    assert all(numpy.array_equal(a, b) for a, b in zip((o, lse), wanted, strict=True))
    gradient = jax.grad(lambda q: flash.jax.attention(q, k, v).sum())(q)
    step = 1e-6 * jnp.asarray(rng.normal(size=q.shape))
    difference = flash.jax.attention(q + step, k, v).sum() - flash.jax.attention(q - step, k, v).sum()
    assert abs(float(difference / 2 - (gradient * step).sum())) < 1e-13


for test in (test_sharded, test_shard_map, test_explicit, test_dropout, test_float64):
    test()
    print(test.__name__.removeprefix("test_"))
