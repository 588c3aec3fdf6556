"""Small problems that between them run every line of every kernel, for faults.py.

Each launches one kernel that is looked at, beside those that prepare for it, and says of a result whether the numeric
rule (numeric.py) allows it. Their cases are in fault_cases.py; which kernels a problem launches is found by asking the
library, so a kernel that comes later is met by these problems or fails test_faults.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import emulated
import numpy
from fault_cases import (
    DTYPES,
    FLOAT8_HEAD_DIMS,
    KIND,
    MOST_DETERMINISTIC_HOPPER_DIM,
    MOST_TENSOR_DIM,
    SEED,
    SHAPES,
    OtherIntegers,
    TinyNumbers,
    cases,
    float8_cases,
    float8_widths,
    hopper_cases,
    piece_cases,
    small_float8_cases,
    words,
)
from numeric import GRADIENTS, answers, assert_accurate, assert_accurate_lse, run_exact, run_naive
from problems import Case, Problem, Shape, dtype_of, sum_dtype
from test_float8 import FACTORS, check_results, stored

import flash
from flash._lib import check, lib
from flash.arrays import tensor_at
from flash.call import Call

Outputs = dict[str, numpy.ndarray]


@dataclass(frozen=True)
class OfCase:
    """What computes on the arrays of a case."""

    case: Case

    @property
    def cost(self) -> float:
        """Of a run, roughly: what problems are tried in the order of."""
        N, Lq, Lk, Hq, _, D, Dv = self.case.shape
        return math.prod(N) * Hq * Lq * Lk * (D + Dv)

    @cached_property
    def device(self) -> Problem:
        problem = answers(self.case).problem
        return getattr(self.case, "on_device", lambda problem: problem.map(KIND.array))(problem)


@dataclass(frozen=True)
class Forward(OfCase):
    """o and lse, or o alone."""

    with_lse: bool = True

    def run(self) -> Outputs:
        p = self.device
        if not self.with_lse:
            return {"o": emulated.asnumpy(flash.attention(*p.qkv, **p.options))}
        o, lse = flash.attention(*p.qkv, **p.options, return_lse=True)
        return {"o": emulated.asnumpy(o), "lse": emulated.asnumpy(lse)}

    def judge(self, outputs: Outputs) -> None:
        lse = outputs["lse"] if self.with_lse else on_cpu(self.case)[1]
        answers(self.case).check_forward(outputs["o"], lse, backward=True)


@dataclass(frozen=True)
class ForwardInto(Forward):
    """The same into rows of a longer array, from the last to the first: no map can be made of them."""

    def run(self) -> Outputs:
        p, Dv = self.device, self.case.shape.Dv
        wide = KIND.array(numpy.full((*p.q.shape[:-1], Dv + 8), numpy.nan, p.q.dtype))
        out = wide.view_by(lambda host: host[..., ::-1, :, :Dv])
        _, lse = flash.attention(*p.qkv, **p.options, return_lse=True, out=out)
        return {"o": emulated.asnumpy(out), "lse": emulated.asnumpy(lse)}


FACTORS_BY_NAME = {
    "": FACTORS,
    "negative": FACTORS | {"k_scale": -0.7},
    "zero": FACTORS | {"q_scale": numpy.float32([[0, 1], [-1, 0]])},
    "large": {"q_scale": 2.0**126},
    "none": {},
}


@dataclass(frozen=True)
class Float8(OfCase):
    """o and lse of q, k and v in float8, with a factor for each head that has keys; o of a type, in rows with a gap."""

    out: str = ""
    gap: int = 1
    factors: str = ""

    @cached_property
    def problem(self) -> Problem:
        problem = stored(self.case.make())
        problem.options |= FACTORS_BY_NAME[self.factors]
        return problem

    @cached_property
    def device(self) -> Problem:
        return getattr(self.case, "on_device", lambda problem: problem.map(KIND.array))(self.problem)

    def run(self) -> Outputs:
        p, out, Dv = self.device, None, self.case.shape.Dv
        if self.out:
            wide = KIND.array(numpy.full((*p.q.shape[:-1], Dv + self.gap), numpy.nan, dtype_of(self.out)))
            out = wide.view_by(lambda host: host[..., :Dv])
        o, lse = flash.attention(*p.qkv, **p.options, return_lse=True, out=out)
        return {"o": emulated.asnumpy(o), "lse": emulated.asnumpy(lse)}

    def judge(self, outputs: Outputs) -> None:
        check_results(self.problem, outputs["o"], outputs["lse"])


@dataclass(frozen=True)
class Together:
    """Problems one after the other, as one: there are too many of them for each to be tried by itself."""

    problems: tuple[Any, ...]

    @property
    def cost(self) -> float:
        return sum(problem.cost for problem in self.problems)

    def run(self) -> Outputs:
        return {f"{name} {n}": x for n, problem in enumerate(self.problems) for name, x in problem.run().items()}

    def judge(self, outputs: Outputs) -> None:
        for n, problem in enumerate(self.problems):
            problem.judge({name: outputs[f"{name} {n}"] for name in ("o", "lse")})


@lru_cache(maxsize=64)
def on_cpu(case: Case) -> tuple[Any, Any, flash.Gradients]:
    """o, lse and gradients of the CPU backend."""
    p = answers(case).problem
    o, lse = flash.attention(*p.qkv, **p.options, return_lse=True)
    return o, lse, flash.attention_backward(p.do, *p.qkv, o, lse, **p.options, dlse=p.dlse)


@dataclass(frozen=True)
class Backward(OfCase):
    """Some gradients, from what the CPU backend found in the forward."""

    wrt: tuple[str, ...]
    deterministic: bool = False

    @property
    def cost(self) -> float:
        return super().cost / 100 if self.wrt == ("sinks",) else 2 * super().cost

    @cached_property
    def saved(self) -> tuple[Any, Any]:
        o, lse, _ = on_cpu(self.case)
        return emulated.asarray(o), emulated.asarray(lse)

    def run(self) -> Outputs:
        p = self.device
        dlse = KIND.array(answers(self.case).problem.dlse)
        gradients = flash.attention_backward(
            p.do, *p.qkv, *self.saved, **p.options, dlse=dlse, wrt=self.wrt, deterministic=self.deterministic
        )
        return {f"d{name}": emulated.asnumpy(getattr(gradients, f"d{name}")) for name in self.wrt}

    def judge(self, outputs: Outputs) -> None:
        twin = on_cpu(self.case)[2]
        answers(self.case).check_backward(flash.Gradients(*(outputs.get(x, getattr(twin, x)) for x in GRADIENTS)))


@dataclass(frozen=True)
class OnDevice:
    """A problem on another device than the first."""

    problem: Any
    number: int

    @property
    def cost(self) -> float:
        return float(self.problem.cost)

    def run(self) -> Outputs:
        with emulated.Device(self.number):
            return self.problem.run()

    def judge(self, outputs: Outputs) -> None:
        self.problem.judge(outputs)


@dataclass(frozen=True)
class Weights(OfCase):
    """The probabilities of some rows, or of all."""

    rows: tuple[int, ...] | None = None

    @cached_property
    def wanted(self) -> tuple[Any, Any]:
        p = answers(self.case).problem
        *N, Lk, Hk, _ = p.k.shape
        v = numpy.broadcast_to(numpy.eye(Lk)[:, None, :], (*N, Lk, Hk, Lk)).astype(p.q.dtype)
        options = {name: x for name, x in p.options.items() if name not in ("dropout", "seed")}
        shows = Problem(p.q, p.k, v, p.do, p.dlse, options)  # its output is its probabilities
        pick = slice(None) if self.rows is None else list(self.rows)
        exact = run_exact(shows, with_dlse=False, backward=False)[0].swapaxes(-3, -2)
        naive = run_naive(shows, sum_dtype(p.q.dtype), with_dlse=False, backward=False)
        return exact[..., pick, :], [x[0].swapaxes(-3, -2)[..., pick, :] for x in naive]

    def run(self) -> Outputs:
        p, rows = self.device, None if self.rows is None else emulated.asarray(numpy.array(self.rows, "i8"))
        return {"weights": emulated.asnumpy(flash.attention_weights(p.q, p.k, rows=rows, **p.options))}

    def judge(self, outputs: Outputs) -> None:
        assert_accurate("weights", outputs["weights"], *self.wanted)


@dataclass(frozen=True)
class Merge:
    """The union of two parts, some of whose rows see nothing."""

    dtype: str
    Dv: int
    cost = 0

    @cached_property
    def parts(self) -> tuple[Any, ...]:
        rng = numpy.random.default_rng(self.Dv)
        shape = 2, 35, 3
        o1, o2 = (numpy.asarray(rng.normal(size=(*shape, self.Dv)), dtype_of(self.dtype)) for _ in range(2))
        lse1, lse2 = (rng.normal(size=(2, 3, 35)).astype("f4") for _ in range(2))
        for n, (o, lse) in enumerate(((o1, lse1), (o2, lse2))):
            lse[:, :, 5 : 8 + n] = -math.inf
            lse[:, :, 9 + n] = 1e4  # far from the other part
            o.swapaxes(1, 2)[lse == -math.inf] = 0
        return o1, lse1, o2, lse2

    @cached_property
    def device(self) -> tuple[Any, ...]:
        return tuple(map(emulated.asarray, self.parts))

    def run(self) -> Outputs:
        return dict(zip(("o", "lse"), map(emulated.asnumpy, flash.merge(*self.device)), strict=True))

    def in_dtype(self, dtype: Any) -> tuple[Any, Any]:
        o1, lse1, o2, lse2 = (x.astype(dtype) for x in self.parts)
        with numpy.errstate(invalid="ignore"):
            lse = numpy.logaddexp(lse1, lse2)
            w1, w2 = (numpy.where(lse == -math.inf, 0, numpy.exp(x - lse)) for x in (lse1, lse2))
        return w1.swapaxes(1, 2)[..., None] * o1 + w2.swapaxes(1, 2)[..., None] * o2, lse

    def judge(self, outputs: Outputs) -> None:
        (exact_o, exact_lse), (naive_o, naive_lse) = self.in_dtype("f8"), self.in_dtype("f4")
        assert_accurate("o", outputs["o"], exact_o, [naive_o.astype(dtype_of(self.dtype))])
        assert_accurate_lse(outputs["lse"], exact_lse, [naive_lse])


@dataclass(frozen=True)
class MergeInPlace(Merge):
    """The same, written over the first part."""

    def run(self) -> Outputs:
        o1, lse1, o2, lse2 = map(emulated.asarray, self.parts)
        with Call.on(o1) as call:
            tensors = [tensor_at(call.read(x, "o1")) for x in (o1, lse1, o2, lse2, o1, lse1)]
            check(lib.flash_merge(*tensors, call.stream_pointer()))
        return {"o": emulated.asnumpy(o1), "lse": emulated.asnumpy(lse1)}


@dataclass(frozen=True)
class DropoutMask:
    """What dropout keeps, exactly."""

    shape: tuple[int, ...]
    seed: int
    dropout: float = 0.3
    cost = 0

    def run(self) -> Outputs:
        keep = emulated.empty(self.shape, bool)
        with Call.on(keep) as call:
            check(
                lib.flash_dropout_mask(
                    self.seed, self.dropout, tensor_at(call.read(keep, "keep")), call.stream_pointer()
                )
            )
        return {"keep": emulated.asnumpy(keep)}

    def judge(self, outputs: Outputs) -> None:
        numpy.testing.assert_array_equal(outputs["keep"], flash.dropout_mask(self.seed, self.dropout, self.shape))


@dataclass(frozen=True)
class FewBlocks:
    """A problem in fewer blocks of threads than it has tasks, so that each block has several, one after the other."""

    problem: Any
    blocks: int

    @property
    def cost(self) -> float:
        return float(self.problem.cost)

    def run(self) -> Outputs:
        emulated.lib.emulated_set_most_blocks(self.blocks)
        try:
            return self.problem.run()
        finally:
            emulated.lib.emulated_set_most_blocks(0)

    def judge(self, outputs: Outputs) -> None:
        self.problem.judge(outputs)


# ---- The table -------------------------------------------------------------------------------------------------------


def of_case(case: Case) -> Iterator[Any]:
    yield Forward(case)
    yield Backward(case, ("k", "v"))
    yield Backward(case, ("q",))
    if isinstance(case, OtherIntegers):
        yield Forward(case, with_lse=False)
        yield Backward(case, ("k",))
        yield Backward(case, ("v",))
    most = max(case.shape.D, case.shape.Dv)
    is_tensor = case.dtype != "float32" and most <= MOST_TENSOR_DIM
    if is_tensor:
        yield Backward(case, ("q", "k", "v"))  # in one pass
        if isinstance(case, OtherIntegers):
            yield Backward(case, ("q", "k"))
            yield Backward(case, ("q", "v"))
        if most > 192:
            yield OnDevice(Forward(case), emulated.SMALL)
    given = answers(case).problem.options
    if "bias" in given:
        yield Backward(case, ("bias",))
    if is_tensor and most > 64:
        return  # the other kernels have no head dim, and meet these types in other cases
    if "sinks" in given:
        yield Backward(case, ("sinks",))
    if most <= 64:
        yield Weights(case)


def of_hopper_case(case: Case) -> Iterator[Any]:
    yield Forward(case)
    if type(case) is Case and "kv_lens" in case.options:
        yield ForwardInto(case)
    yield Backward(case, ("q", "k", "v"))
    if type(case) is Case and max(case.shape.D, case.shape.Dv) <= MOST_DETERMINISTIC_HOPPER_DIM:
        yield Backward(case, ("q", "k", "v"), deterministic=True)
    if isinstance(case, OtherIntegers):
        yield Forward(case, with_lse=False)
        yield Backward(case, ("q", "k"))
        yield Backward(case, ("q", "v"))


def float8_problems() -> Iterator[Any]:
    """Small ones: in every type of o, in rows of single numbers and of fours, and with factors of every kind."""
    for case in small_float8_cases():
        yield Float8(case)
        if case.shape.Lk > 1000:
            yield Float8(case, "float32")
    yield Float8(Case(Shape((1,), 11, 1800, 1, 1, 16, 256), "float32"), "float32", factors="none")
    for head_dim in FLOAT8_HEAD_DIMS:
        for options in ((), ("mask_of_keys",)):
            shape = Shape((2,), 11, 17, 2, 2, head_dim, head_dim)
            for out in DTYPES:
                for left in range(1, 5):
                    yield Together(tuple(Float8(case, out) for case in float8_widths(head_dim, left, options)))
                yield Float8(Case(shape, "float32", options), out, gap=0)
            for factors in ("negative", "zero"):
                yield Float8(Case(shape, "float32", options), factors=factors)
        yield Float8(TinyNumbers(shape, "float32"), factors="large")


def problems() -> Iterator[Any]:
    for case in cases():
        several = case.shape.N != (1,)
        for problem in of_case(case):
            blocks = 1 if isinstance(problem, Backward) and problem.wrt == ("sinks",) else 3
            if case.dtype != "float32" and not isinstance(problem, OnDevice):  # else tensor cores would be Hopper's
                problem = OnDevice(problem, emulated.AMPERE)
            yield FewBlocks(problem, blocks) if several else problem
    for case in hopper_cases():
        for problem in of_hopper_case(case):
            # Its blocks of threads take one tile after the other.
            stays = isinstance(problem, Forward)
            yield FewBlocks(problem, 3) if stays and case.shape.N != (1,) else problem
    for case in float8_cases():
        yield FewBlocks(Float8(case), 3)
        if "sinks" in case.options:
            for out in DTYPES:
                yield Float8(case, out)
    yield from float8_problems()
    for case in piece_cases():
        yield Forward(case)
    long = Case(Shape((2,), 777, 5, 3, 1, 8, 16), "float16", ("sinks", "q_lens"))
    yield FewBlocks(Backward(long, ("sinks",)), 2)
    yield Weights(Case(SHAPES[0]._replace(D=64, Dv=64), "float32", ("causal",)), (69, 0, 3, 3))
    for dtype in DTYPES:
        for Dv in (8, 37, 96, 128, 300):
            yield FewBlocks(Merge(dtype, Dv), 2)
        yield MergeInPlace(dtype, 40)
    yield DropoutMask((2, 3, 7, 9), 7)
    yield FewBlocks(DropoutMask((1, 2, 33, 40), SEED), 2)
    for corner in range(4):
        shape = 1, 1, 16, 16
        yield DropoutMask(shape, SEED, words(shape, corner)[1] / 2**32)
