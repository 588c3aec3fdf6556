"""flash.jax on a GPU: numbers as on the CPU, work in XLA's order, memory that grows with the length only."""

from __future__ import annotations

import os

import numpy
import pytest
from problems import Case, Shape

import flash

# Other libraries' tests, in this process and beside it, need memory of the GPU too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
jax = pytest.importorskip("jax", reason="JAX is not installed")
flash_jax = pytest.importorskip("flash.jax")
jnp = jax.numpy


def why_not():
    """Why these tests can't run here."""
    try:
        (device, *_) = jax.devices("cuda")
    except RuntimeError:
        return "JAX has no GPU"
    if not flash.show_config(mode="dicts")["cuda"]["built"]:
        return "flash was built without CUDA"
    return "" if float(device.compute_capability) >= 8.0 else "the GPU is older than compute capability 8.0"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")


def results_and_gradients(case: Case, platform: str):
    """In NumPy's arrays."""
    problem = case.make()
    device = jax.devices(platform)[0]
    given = problem.map(lambda x: jax.device_put(x.astype("i4") if x.dtype == "i8" else x, device))
    options = dict(given.options)
    real = {"q": given.q, "k": given.k, "v": given.v}
    real |= {name: options.pop(name) for name in ("bias", "sinks") if name in options}

    @jax.jit
    def run(real, do, dlse):
        results, vjp = jax.vjp(lambda real: flash_jax.attention(**real, **options, return_lse=True), real)
        return results, vjp((do, dlse))

    made = run(real, given.do, given.dlse)
    assert all(x.devices() == {device} for x in jax.tree.leaves(made))
    return jax.tree.map(lambda x: numpy.asarray(x, "f4"), made)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 2e-3)])
@pytest.mark.parametrize(
    "options",
    [(), ("causal", "bias", "sinks"), ("dropout", "alibi"), ("block_mask", "kv_lens"), ("dropout_seed_array", "mask")],
    ids="-".join,
)
def test_numbers_are_those_of_the_cpu(dtype, tolerance, options):
    case = Case(Shape((2,), 65, 129, 4, 2, 64, 64), dtype, options)
    found, wanted = (results_and_gradients(case, platform) for platform in ("cuda", "cpu"))
    for actual, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        finite = numpy.isfinite(expected)
        assert numpy.array_equal(finite, numpy.isfinite(actual))
        error = numpy.abs(actual[finite] - expected[finite]).max(initial=0.0)
        assert error <= tolerance * max(1.0, numpy.abs(expected[finite]).max(initial=0.0))


def test_a_chain_of_calls_is_in_order():
    """Each call reads what the one before has written on XLA's stream, and its scratch memory is used again."""
    q = jax.device_put(numpy.random.default_rng(0).normal(size=(2, 512, 4, 64)).astype("f4"), jax.devices("cuda")[0])

    @jax.jit
    def chain(x):
        return jax.lax.fori_loop(0, 20, lambda _, x: flash_jax.attention(x, x, x, causal=True) + x, x)

    x = q
    for _ in range(20):
        x = jax.block_until_ready(flash_jax.attention(x, x, x, causal=True) + x)
    assert float(jnp.abs(chain(q) - x).max()) <= 1e-4 * float(jnp.abs(x).max())


def test_memory_grows_with_the_length_only():
    peaks = []
    for L in (1024, 2048, 4096):
        q = jax.device_put(jnp.zeros((1, L, 8, 64), "bfloat16"), jax.devices("cuda")[0])
        compiled = jax.jit(jax.grad(lambda q: flash_jax.attention(q, q, q).astype("float32").sum())).lower(q).compile()
        before = jax.devices("cuda")[0].memory_stats()["bytes_in_use"]
        jax.block_until_ready(compiled(q))
        peaks.append(jax.devices("cuda")[0].memory_stats()["peak_bytes_in_use"] - before)
    assert peaks[2] < 2.5 * peaks[1] < 6.25 * peaks[0]


def test_float64_is_refused_with_a_message():
    """float64 is checked as on the CPU when the program is traced; the GPU's refusal comes when it runs."""
    with jax.experimental.enable_x64():
        q = jax.device_put(jnp.zeros((1, 3, 1, 8), "float64"), jax.devices("cuda")[0])
        with pytest.raises(Exception, match="q: float64 runs on the CPU only"):
            jax.block_until_ready(flash_jax.attention(q, q, q))
