"""The numeric rule, and what it compares with.

exact    the mathematics in float64 on the already rounded inputs (for float64 inputs: in long double)
naive    the same mathematics, standard attention, done in the inputs' own dtype: `flash.reference`. In float32 and
         float64 the worst of three runs, with products summed up by the BLAS, term by term, and backwards: one run's
         largest error in a small tensor is luck, and a BLAS has its own ways to split a sum.

- o and every gradient: the largest error is at most 2 times naive's + 2 ulp of the tensor's largest value;
- the RMS error is at most 1.25 times naive's;
- lse: the largest error is at most 2 times that of naive float32 (float64) + 2 ulp of its largest magnitude.

Added so that correct code can meet it, each thing as small as what it is there for:

- A backward is given o and lse, both rounded, and takes delta = rowsum(do o) from them. Naive's delta is a sum of its
  own p dp, whose errors cancel in dp - delta. What that alone does to the gradients of exact mathematics (`stored`) is
  added to naive's error, in float32 and float64, and for dsinks. Naive's own roundings to 16 bits are far above it.
- RMS: for at least 256 elements; naive's error counts as at least that of rounding each element once, and 2 ulp /
  sqrt(size) is allowed: what one element off by 2 ulp contributes. That vanishes for large tensors.
- The largest value of a gradient that vanishes because the softmax has a single column (ds = p (dp - delta) = 0 is a
  difference of two sums) is that of its summands. dsinks, and dbias where bias is broadcast, sum up terms that mostly
  cancel: their largest value is that of the sum of the terms' magnitudes.
- The magnitude of lse is at least 1: it is the logarithm of a sum, whose relative error is absolute in lse.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any
from unittest import mock

import ml_dtypes
import numpy
from kinds import NumPy
from problems import Case, Problem, sum_dtype

import flash
from flash import reference

STATISTICS = 256  # elements, from which on an RMS is not luck
GRADIENTS = "dq", "dk", "dv", "dbias", "dsinks"


def ulp(value: float, dtype: numpy.dtype) -> float:
    """The distance between the numbers of a dtype around a value."""
    facts = ml_dtypes.finfo(dtype)
    smallest = float(facts.smallest_subnormal)
    return smallest if value == 0 else max(smallest, float(facts.eps) * 2.0 ** math.floor(math.log2(value)))


def wide(x: Any) -> Any:
    return x if x.dtype == numpy.longdouble else x.astype("f8")


def assert_accurate(
    what: str, result: Any, exact: Any, naive: list[Any], stored: Any = None, largest: float = 0.0
) -> None:
    """The rule for o and for gradients.

    naive: one or several; stored: errors that rounded o and lse bring in; largest: what counts as the tensor's largest
    value, where that is more.
    """
    dtype = result.dtype
    errors, naive_errors = _errors(what, result, exact), [_errors(what, x, exact) for x in naive]
    if not errors.size:
        return
    size = numpy.abs(wide(exact))
    largest = max(largest, float(size.max()))
    allowed = 2 * ulp(largest, dtype)
    naive_max, naive_rms = max(float(x.max()) for x in naive_errors), max(map(_rms, naive_errors))
    if stored is not None:
        naive_max += 2 * float(numpy.abs(stored).max())  # it is one draw of what rounding does
        naive_rms += _rms(stored)
    naive_rms = max(naive_rms, _rms(_rounding(size, dtype)))
    limit = 2 * naive_max + allowed
    assert errors.max() <= limit, (
        f"{what} {dtype}: largest error {errors.max():.4g} at {_where(errors)}, limit {limit:.4g}, "
        f"naive {naive_max:.4g}, largest value {largest:.4g}"
    )
    if errors.size < STATISTICS:
        return
    limit = 1.25 * naive_rms + allowed / math.sqrt(errors.size)
    rms = _rms(errors)
    assert rms <= limit, f"{what} {dtype}: RMS error {rms:.4g}, limit {limit:.4g}, naive {naive_rms:.4g}"


def _rounding(size: Any, dtype: numpy.dtype) -> Any:
    """The RMS error of rounding each element to a dtype: an ulp / sqrt(12)."""
    exponents = numpy.frexp(size.astype("f8"))[1] - 1.0
    return numpy.where(size == 0.0, 0.0, numpy.exp2(exponents) * float(ml_dtypes.finfo(dtype).eps) / math.sqrt(12.0))


def assert_accurate_lse(result: Any, exact: Any, naive: list[Any]) -> None:
    """The rule for lse. naive: one or several, in float32 (float64)."""
    assert result.dtype == sum_dtype(result.dtype)
    errors, naive_errors = _errors("lse", result, exact), [_errors("lse", x, exact) for x in naive]
    if not errors.size:
        return
    largest = float(numpy.abs(exact[numpy.isfinite(exact)]).max(initial=1.0))
    limit = 2 * max(float(x.max()) for x in naive_errors) + 2 * ulp(largest, result.dtype)
    assert errors.max() <= limit, f"lse: largest error {errors.max():.4g} at {_where(errors)}, limit {limit:.4g}"


def _errors(what: str, result: Any, exact: Any) -> Any:
    """Distances from the exact values; an infinite one must be met."""
    assert result.shape == exact.shape, f"{what}: shape {result.shape}, wanted {exact.shape}"
    result, exact = wide(result), wide(exact)
    assert not numpy.isnan(exact).any(), f"{what}: the reference holds NaN, so the test is wrong"
    assert not numpy.isnan(result).any(), f"{what}: NaN at {_where(numpy.isnan(result))}"
    with numpy.errstate(invalid="ignore"):
        return numpy.abs(numpy.where(result == exact, 0.0, result - exact))


def _where(x: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in numpy.unravel_index(numpy.argmax(x), x.shape))


def _rms(errors: Any) -> float:
    return float(numpy.sqrt(numpy.mean(numpy.square(errors))))


# ---- References ------------------------------------------------------------------------------------------------------


def run_reference(problem: Problem, dtype: Any, with_dlse: bool, backward: bool = True) -> tuple[Any, Any, Any]:
    """o, lse and Gradients of the reference, with the mathematics in `dtype`."""
    o, lse = reference.attention(*problem.qkv, **problem.options, return_lse=True, dtype=dtype)
    if not backward:
        return o, lse, None
    dlse = problem.dlse if with_dlse else None
    return o, lse, reference.attention_backward(problem.do, *problem.qkv, **problem.options, dlse=dlse, dtype=dtype)


def run_exact(problem: Problem, with_dlse: bool, backward: bool = True) -> tuple[Any, Any, Any]:
    if problem.q.dtype != "f8":
        return run_reference(problem, "f8", with_dlse, backward)
    numbers = reference._Numbers(numpy, numpy.dtype(numpy.longdouble), numpy.dtype(numpy.longdouble))
    with mock.patch.object(reference._Numbers, "of", lambda *_: numbers):  # it knows no long double
        return run_reference(problem, numpy.longdouble, with_dlse, backward)


def run_naive(problem: Problem, dtype: numpy.dtype, with_dlse: bool, backward: bool = True) -> list[Any]:
    """What `run_reference` gives, once for each way to sum up."""
    results = [run_reference(problem, dtype, with_dlse, backward)]
    for order in (1, -1) if dtype.itemsize >= 4 else ():
        with mock.patch.object(reference, "_product", partial(_product_in_order, order)):
            results.append(run_reference(problem, dtype, with_dlse, backward))
    return results


def _product_in_order(order: int, xp: Any, a: Any, b: Any, listed: Any) -> Any:
    """Product a @ b, for finite b."""
    b = numpy.nan_to_num(b)
    product = numpy.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)
    for n in range(a.shape[-1])[::order]:
        product += a[..., n, None] * b[..., n, None, :]
    return product


class Answers:
    """Exact and naive results of a problem, computed when first asked for."""

    def __init__(self, problem: Problem, with_dlse: bool = True) -> None:
        self.problem, self.with_dlse = problem, with_dlse
        self.dtype = problem.q.dtype
        self._known: dict[Any, Any] = {}

    def _exact(self, backward: bool) -> tuple[Any, Any, Any]:
        return self._once("exact", backward, lambda: run_exact(self.problem, self.with_dlse, backward))

    def _naive(self, dtype: numpy.dtype, backward: bool) -> list[Any]:
        return self._once(dtype, backward, lambda: run_naive(self.problem, dtype, self.with_dlse, backward))

    def _once(self, name: Any, backward: bool, function: Any) -> Any:
        known = self._known.get((name, True)) or self._known.get((name, backward))
        if known is None:
            known = self._known[name, backward] = function()
        return known

    def check_forward(self, o: Any, lse: Any, backward: bool = False) -> None:
        exact_o, exact_lse, _ = self._exact(backward)
        assert o.dtype == self.dtype
        assert_accurate("o", o, exact_o, [x[0] for x in self._naive(self.dtype, backward)])
        wide_dtype = sum_dtype(self.dtype)
        naive = self._naive(wide_dtype, backward and wide_dtype == self.dtype)
        assert_accurate_lse(lse, exact_lse, [x[1] for x in naive])

    def check(self, kind: Any) -> tuple[Any, Any, flash.Gradients]:
        """Runs the problem with a kind of arrays, and checks and returns its results."""
        o, lse, gradients = run_on(kind, self.problem, self.with_dlse)
        self.check_forward(o, lse, backward=True)
        self.check_backward(gradients)
        if kind.backend == "cuda" and self.dtype.itemsize == 2:  # by other kernels
            self.check_backward(run_on(kind, self.problem, self.with_dlse, deterministic=False)[2])
        return o, lse, gradients

    def check_backward(self, gradients: flash.Gradients) -> None:
        exact, naive = self._exact(backward=True)[2], self._naive(self.dtype, backward=True)
        stored, largest = self._stored(), self._largest_values(exact)
        for name in GRADIENTS:
            actual, wanted = getattr(gradients, name), getattr(exact, name)
            assert (actual is None) == (wanted is None), name
            if actual is not None:
                given = self.problem.options.get(name[1:], getattr(self.problem, name[1:], None))
                assert (actual.dtype, actual.shape) == (given.dtype, given.shape), name
                own = [getattr(x[2], name).astype(given.dtype) for x in naive]
                of_stored = getattr(stored, name) if given.dtype.itemsize >= 4 or given.size < STATISTICS else None
                assert_accurate(name, actual, wanted, own, of_stored, largest.get(name, 0.0))

    def _stored(self) -> flash.Gradients:
        """Errors of exact mathematics with a rounded lse, and a delta summed up from a rounded o.

        Gradients are linear in do and dlse. Rounding lse by d multiplies all p of a row, so do and dlse of that row,
        with e^-d. An error of delta acts like one of -dlse. A sum of n products, in whatever order, is taken to err by
        eps sqrt(n / 12) times the root of their squares' sum, up or down; that of dp is part of it.
        """
        if "stored" not in self._known:
            p = self.problem
            o, lse, _ = self._exact(backward=True)
            do, dlse = (
                wide(numpy.nan_to_num(x)) for x in (p.do, p.dlse if self.with_dlse else numpy.zeros_like(p.dlse))
            )
            with numpy.errstate(invalid="ignore"):
                growth = numpy.expm1(numpy.where(lse == -math.inf, 0.0, lse - lse.astype(sum_dtype(self.dtype))))
            eps = float(ml_dtypes.finfo(sum_dtype(self.dtype)).eps) * math.sqrt(p.do.shape[-1] / 12.0)
            noise = eps * numpy.sqrt(numpy.square(do * o).sum(axis=-1))
            noise *= numpy.random.default_rng(0).choice((-1.0, 1.0), noise.shape)
            delta_error = (do * (o.astype(self.dtype) - o)).sum(axis=-1) + noise
            dlse = growth * dlse - (1.0 + growth) * delta_error.swapaxes(-1, -2)
            changed = Problem(*p.qkv, do * growth.swapaxes(-1, -2)[..., None], dlse, p.options)
            self._known["stored"] = run_exact(changed, with_dlse=True)[2]
        return self._known["stored"]

    def _largest_values(self, exact: flash.Gradients) -> dict[str, float]:
        """Of gradients in which more cancels than stays."""
        p, bias, sinks = self.problem, self.problem.options.get("bias"), self.problem.options.get("sinks")
        q, k, v, do = _largest(p)
        dp = v * do * p.v.shape[-1]
        largest = {"dq": _scale(p) * dp * k, "dk": _scale(p) * dp * q, "dbias": dp}
        for name in [name for name in largest if getattr(exact, name) is not None]:
            if numpy.abs(getattr(exact, name)).max(initial=0.0) > 2.0**-30 * largest[name]:
                del largest[name]  # it doesn't vanish

        o, lse, _ = self._exact(backward=True)
        full = (*lse.shape, p.k.shape[-3])
        if bias is not None and bias.shape != full:
            whole = Problem(*p.qkv, p.do, p.dlse, p.options | {"bias": numpy.broadcast_to(bias, full)})
            terms = numpy.abs(run_exact(whole, self.with_dlse)[2].dbias)
            largest["dbias"] = float(reference._sum_to(terms, bias.shape).max(initial=0.0))
        if sinks is not None:
            delta = (numpy.nan_to_num(wide(p.do)) * o).sum(axis=-1).swapaxes(-1, -2)
            dlse = numpy.nan_to_num(p.dlse) if self.with_dlse else 0.0
            with numpy.errstate(invalid="ignore"):
                p_sink = numpy.where(lse == -math.inf, 0.0, numpy.exp(wide(sinks)[:, None] - lse))
            terms = numpy.abs(p_sink * (dlse - delta))
            largest["dsinks"] = float(terms.sum(axis=(*range(terms.ndim - 2), -1)).max(initial=0.0))
        return largest


def _largest(problem: Problem) -> list[float]:
    """Magnitudes of q, k, v, do."""
    return [float(numpy.abs(numpy.nan_to_num(wide(x))).max(initial=0.0)) for x in (*problem.qkv, problem.do)]


def _scale(problem: Problem) -> float:
    return abs(problem.options.get("scale", 1.0 / math.sqrt(problem.q.shape[-1])))


@lru_cache(maxsize=32)
def answers(case: Case, with_dlse: bool = True) -> Answers:
    """One for each case, so that forward and backward tests share references."""
    return Answers(case.make(), with_dlse)


# ---- Runs ------------------------------------------------------------------------------------------------------------


def junk(problem: Problem, **more: Any) -> dict[str, Any]:
    """Scratch memory full of NaN, for arrays that can be written to: what a kernel leaves unset must not count."""
    bytes_needed = flash.workspace_bytes(*problem.qkv, **problem.options, **more)
    memory = numpy.full(bytes_needed, 0xFF, numpy.uint8)
    if isinstance(problem.q, numpy.ndarray):
        return {"workspace": memory}
    module = type(problem.q).__module__
    if module == "torch":
        import torch

        return {"workspace": torch.from_numpy(memory)}
    return {"workspace": sys.modules["cupy"].asarray(memory)} if module in ("cupy", "emulated") else {}


def run(problem: Problem, with_dlse: bool = True, **more: Any) -> tuple[Any, Any, flash.Gradients]:
    """o, lse and all gradients, with the same bits in each run. more: wrt, deterministic."""
    more.setdefault("deterministic", True)
    o, lse = flash.attention(*problem.qkv, **problem.options, return_lse=True, **junk(problem))
    more |= {"dlse": problem.dlse if with_dlse else None} | junk(problem, backward=True, **more)
    return o, lse, flash.attention_backward(problem.do, *problem.qkv, o, lse, **problem.options, **more)


def run_on(kind: Any, problem: Problem, with_dlse: bool = True, **more: Any) -> tuple[Any, Any, flash.Gradients]:
    """`run` with a kind of arrays (kinds.py). The problem and the results are in NumPy's."""
    return to_numpy(kind, run(problem.map(kind.array), with_dlse, **more))


def to_numpy(kind: Any, x: Any) -> Any:
    """Results of one kind of arrays, None among them, as NumPy's."""
    if isinstance(x, flash.Gradients):
        return flash.Gradients(*(to_numpy(kind, y) for y in x))
    if isinstance(x, tuple):
        return tuple(to_numpy(kind, y) for y in x)
    return None if x is None else kind.numpy(x)


def check(case: Case, kind: Any = None, with_dlse: bool = True, backward: bool = True) -> None:
    """A case against its references. kind: of arrays (kinds.py), NumPy's where it is None."""
    known = answers(case, with_dlse)
    kind = kind or NumPy()
    if not backward:
        problem = known.problem.map(kind.array)
        results = flash.attention(*problem.qkv, **problem.options, return_lse=True, **junk(problem))
        return known.check_forward(*to_numpy(kind, results))
    known.check(kind)


def bits(x: Any) -> Any:
    """An array as integers, for comparisons bit for bit."""
    return None if x is None else numpy.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def assert_same_bits(actual: Any, wanted: Any, what: str = "") -> None:
    """Two arrays, or nested tuples of them."""
    if isinstance(wanted, tuple):
        assert len(actual) == len(wanted)
        for n, (a, w) in enumerate(zip(actual, wanted, strict=True)):
            assert_same_bits(a, w, f"{what}[{n}]")
    elif wanted is None:
        assert actual is None, what
    else:
        assert actual.dtype == wanted.dtype
        numpy.testing.assert_array_equal(bits(actual), bits(wanted), what)


def finite_differences(loss: Callable[[], float], x: numpy.ndarray, step: float = 1e-5) -> numpy.ndarray:
    """The derivative of `loss`, which reads x, by each of x's elements; 0 where that is not finite."""
    found = numpy.zeros_like(x)
    for index in numpy.ndindex(x.shape):
        value = x[index]
        if math.isfinite(value):
            x[index] = value + step
            above = loss()
            x[index] = value - step
            found[index] = (above - loss()) / (2 * step)
            x[index] = value
    return found
