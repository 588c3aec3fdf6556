"""flash.jax against standard attention in float64, by the numeric rule, and against JAX's own attention."""

from __future__ import annotations

import itertools
from typing import Any

import numpy
import pytest
from kinds import Jax
from numeric import Answers, answers, assert_same_bits, run
from problems import MAIN, OPTIONS, WRT, Case, Problem, Shape

import flash

jax = pytest.importorskip("jax")
flash_jax = pytest.importorskip("flash.jax")
jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes the time here

KIND = Jax()
SMALL = Shape((2,), 19, 35, 4, 2, 16, 8)


def run_jax(problem: Problem, **more: Any) -> tuple[Any, Any, flash.Gradients]:
    """o, lse and all gradients of a problem, in NumPy's arrays."""
    given = problem.map(KIND.array)
    options = given.options | more
    real = {name: x for name, x in {"q": given.q, "k": given.k, "v": given.v, **options}.items() if name in WRT}
    rest = {name: x for name, x in options.items() if name not in WRT}

    def function(real: dict[str, Any]) -> Any:
        return flash_jax.attention(**real, **rest, return_lse=True)

    (o, lse), vjp = jax.vjp(function, real)
    (made,) = vjp((given.do, given.dlse))
    gradients = flash.Gradients(**{f"d{name}": numpy.asarray(x) for name, x in made.items()})
    return numpy.asarray(o), numpy.asarray(lse), gradients


def check(case: Case) -> None:
    known: Answers = answers(case)
    o, lse, gradients = run_jax(known.problem)
    known.check_forward(o, lse, backward=True)
    known.check_backward(gradients)


@pytest.mark.parametrize("option", [*OPTIONS])
def test_every_option(option):
    """As flash.attention computes it on NumPy arrays, which the numeric rule holds elsewhere: to the bit."""
    problem = Case(SMALL, "float32", (option,)).make()
    assert_same_bits(run_jax(problem), run(problem))


@pytest.mark.parametrize("dtype", KIND.dtypes)
@pytest.mark.parametrize("options", [(), ("causal", "bias", "sinks"), ("kv_lens", "softcap", "block_mask", "dropout")])
def test_numeric_rule(dtype, options):
    check(Case(SMALL._replace(Lq=65, Lk=129), dtype, options))


@pytest.mark.parametrize("seed", range(5))
def test_random_problems(seed):
    rng = numpy.random.default_rng([5, seed])
    names, taken = [], set()
    for option in rng.permutation(MAIN)[:4]:
        arguments = set(Case(SMALL, options=(str(option),)).make().options)
        if not arguments & taken:
            names.append(str(option))
            taken |= arguments
    N = [(), (1,), (3,), (2, 2)][rng.integers(4)]
    Lq, Lk, D, Dv = (int(n) for n in rng.choice([1, 2, 5, 17, 40, 64, 77], 4))
    Hk, group = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    check(Case(Shape(N, Lq, Lk, Hk * group, Hk, D, Dv), KIND.dtypes[seed % 3], tuple(names), seed))


@pytest.mark.parametrize(
    "sizes",
    [{"Lq": 0}, {"Lk": 0}, {"N": (0,)}, {"N": ()}, {"N": (2, 3), "Lq": 1, "Lk": 1, "Hq": 2, "Hk": 1, "D": 1}],
    ids=str,
)
def test_empty_and_smallest(sizes):
    problem = Case(SMALL._replace(**sizes), "float32", ("bias", "sinks", "kv_lens")).make()
    assert_same_bits(run_jax(problem), run(problem))


# ---- jax.nn.dot_product_attention ------------------------------------------------------------------------------------

B, T, S, N, H = 3, 17, 29, 4, 16
CALLS = {
    "K": (1, 2, 4),
    "axes": (4, 3),
    "bias": (None, (1, 1, 1, S), (N, T, S), (B, N, T, S)),
    "mask": (None, (1, 1, 1, S), (1, N, T, 1), (B, N, T, S)),
    "is_causal": (False, True),
    "query_seq_lengths": (False, True),
    "key_value_seq_lengths": (False, True),
    "local_window_size": (None, 9, (5, 2)),
    "scale": (None, 0.3),
    "dtype": ("float32", "bfloat16"),
}


def calls(count: int) -> list[dict[str, Any]]:
    """Of all combinations so many, with each pair of values at about the same frequency."""
    everything = list(itertools.product(*CALLS.values()))
    chosen = numpy.random.default_rng(7).choice(len(everything), count, replace=False)
    return [dict(zip(CALLS, everything[n], strict=True)) for n in chosen]


@pytest.mark.parametrize("call", calls(9), ids=lambda call: "-".join(f"{x}" for x in call.values()))
def test_dot_product_attention_as_jax_computes_it(call):
    """Outputs, residuals and gradients. Rows that see no key are apart: there JAX takes the mean of all values."""
    rng = numpy.random.default_rng(0)
    batch = B if call["axes"] == 4 else 1

    def array(*shape):
        return jax.numpy.asarray(rng.normal(size=shape), call["dtype"])

    leading = (batch,) if call["axes"] == 4 else ()
    q, k, v = array(*leading, T, N, H), array(*leading, S, call["K"], H), array(*leading, S, call["K"], H)
    options = {name: call[name] for name in ("is_causal", "local_window_size", "scale")}
    if call["bias"]:
        options["bias"] = array(*(batch if n == B else n for n in call["bias"]))
    if call["mask"]:
        options["mask"] = jax.numpy.asarray(rng.random([batch if n == B else n for n in call["mask"]]) < 0.8)
    for name, most in (("query_seq_lengths", T), ("key_value_seq_lengths", S)):
        if call[name]:
            options[name] = jax.numpy.asarray(rng.integers(1, most + 1, batch), "int32")

    lse = flash_jax.dot_product_attention(q, k, v, **options, return_residual=True)[1]
    seen = jax.numpy.isfinite(lse)[..., None]
    weights = jax.numpy.where(seen, array(*q.shape), 0)
    both = []
    for function in (flash_jax.dot_product_attention, jax.nn.dot_product_attention):

        def loss(q, k, v, function=function):
            o, residual = function(q, k, v, **options, return_residual=True)
            return (o * weights).astype("float32").sum(), (o, residual)

        (_, (o, residual)), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        where = jax.numpy.where
        both.append((where(seen, o, 0), where(seen[..., 0], residual, 0), *gradients))
    eps = float(jax.numpy.finfo(call["dtype"]).eps)
    for ours, theirs in zip(*both, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        a, b = (numpy.asarray(x, "f8") for x in (ours, theirs))
        # Two orders of summation of rounded numbers: a few roundings of the largest value apart.
        assert numpy.abs(a - b).max() <= 8 * eps * max(1.0, numpy.abs(b).max())
