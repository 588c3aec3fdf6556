"""Small problems that between them run every line of every kernel, for faults.py.

Each launches one kernel that is looked at, beside those that prepare for it, and says of a result whether the numeric
rule (numeric.py) allows it. Lengths lie off every tile, with at least three tiles of keys; which kernels a problem
launches is found by asking the library, so a kernel that comes later is met by these problems or fails test_faults.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import emulated
import numpy
from kinds import Emulated
from numeric import GRADIENTS, answers, assert_accurate, assert_accurate_lse, run_exact, run_naive
from problems import Case, Problem, Shape, dtype_of, poison_past_lengths, sum_dtype

import flash
import flash.dropout
from flash._lib import check, lib
from flash.arrays import tensor_at
from flash.block_lists import BlockLists, place_of
from flash.call import Call

KIND = Emulated()
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

    @property
    def cost(self) -> float:
        return super().cost / 100 if self.wrt == ("sinks",) else 2 * super().cost

    @cached_property
    def saved(self) -> tuple[Any, Any]:
        o, lse, _ = on_cpu(self.case)
        return emulated.asarray(o), emulated.asarray(lse)

    def run(self) -> Outputs:
        p = self.device
        gradients = flash.attention_backward(
            p.do, *p.qkv, *self.saved, **p.options, dlse=KIND.array(answers(self.case).problem.dlse), wrt=self.wrt
        )
        return {f"d{name}": emulated.asnumpy(getattr(gradients, f"d{name}")) for name in self.wrt}

    def judge(self, outputs: Outputs) -> None:
        twin = on_cpu(self.case)[2]
        answers(self.case).check_backward(flash.Gradients(*(outputs.get(x, getattr(twin, x)) for x in GRADIENTS)))


@dataclass(frozen=True)
class OnSmallDevice:
    """A problem on the device whose blocks of threads have less shared memory."""

    problem: Any

    @property
    def cost(self) -> float:
        return float(self.problem.cost)

    def run(self) -> Outputs:
        with emulated.Device(1):
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


# ---- Cases with something more than options of problems.py -----------------------------------------------------------


class OtherIntegers(Case):
    """With int32 for int64 in lengths, offsets and seeds, and the other way round."""

    def make(self) -> Problem:
        problem = super().make()
        for name, x in problem.options.items():
            if isinstance(x, numpy.ndarray) and x.dtype.kind == "i":
                problem.options[name] = x.astype("i8" if x.dtype == "i4" else "i4")
        return problem


class SmallBlocks(Case):
    """With a block mask of the smallest blocks, whose lists on the device hold indices out of range: to be skipped.

    So are lengths, which are to be clamped.
    """

    def make(self) -> Problem:
        problem = super().make()
        rng = numpy.random.default_rng(self.seed)
        blocks = rng.random((self.shape.Hq, -(-self.shape.Lq // 16), -(-self.shape.Lk // 16))) < 0.5
        mask = flash.BlockMask.from_dense(blocks, (16, 16), Lq=self.shape.Lq, Lk=self.shape.Lk)
        problem.options["block_mask"] = mask
        return problem

    def on_device(self, problem: Problem) -> Problem:
        mask = problem.options["block_mask"]
        rows, columns = mask.shape[-2:]
        start, listed, column_start, column_listed = mask.lists_for(problem.q, self.shape.N, self.shape.Hq)
        by_row, by_column = _with_strays(start, listed, columns), _with_strays(column_start, column_listed, rows)
        most = max(by_row[1].size, by_column[1].size)  # both lists must have one length
        for x in by_row[1], by_column[1]:
            x.resize(most, refcheck=False)
        wrong = BlockLists(*by_row, *by_column)
        problem = problem.map(KIND.array)
        object.__setattr__(mask, "_copies", {place_of(problem.q)[0]: BlockLists(*map(emulated.asarray, wrong))})
        for name, length in (("q_lens", self.shape.Lq), ("kv_lens", self.shape.Lk)):
            if name in problem.options:
                host = problem.options[name].host
                host[host == length] += 1000
                host[host == 0] -= 1000
        return problem


def _with_strays(start: Any, listed: Any, count: int) -> tuple[Any, Any]:
    """Lists with -9 before and behind what they list `count` and a number whose position wraps around to 0."""
    lists = [listed[a:b] for a, b in zip(start[..., :-1].ravel(), start[..., 1:].ravel(), strict=True)]
    longer = [numpy.concatenate([[-9], x, [count, 1 << 28]]) for x in lists]
    extra = 3 * numpy.arange(len(longer)).reshape(start[..., :-1].shape)
    ends = numpy.concatenate([extra, extra[..., -1:] + 3], axis=-1)
    return (start + ends).astype("i4"), numpy.concatenate(longer).astype("i4")


class LargeBlocks(Case):
    """With a block mask whose blocks are larger than every tile."""

    def make(self) -> Problem:
        problem = super().make()
        rng, (Lq, Lk) = numpy.random.default_rng(self.seed), self.shape.scores[-2:]
        blocks = rng.random((self.shape.Hq, -(-Lq // 256), -(-Lk // 128))) < 0.7
        blocks[0] = True
        problem.options["block_mask"] = flash.BlockMask.from_dense(blocks, (256, 128), Lq=Lq, Lk=Lk)
        return problem


class Edges(Case):
    """With sequences in which a tile is exactly inside of the band or the length, or one position outside."""

    def make(self) -> Problem:
        problem = super().make()
        offset, q_len, kv_len = [68, 60, 67, 61, 0], [144, 144, 143, 144, 127], [144, 144, 144, 127, 143]
        problem.options |= {"window": (130, 66), "q_offset": numpy.array(offset, "i8")}
        problem.options |= {"q_lens": numpy.array(q_len, "i4"), "kv_lens": numpy.array(kv_len, "i4")}
        poison_past_lengths(problem)
        return problem


class NarrowBand(Case):
    """With a band of a few keys, on both edges of which lie pairs of every parity: one pair more or less shows."""

    def make(self) -> Problem:
        problem = super().make()
        problem.options |= {"window": (2, 1), "q_offset": numpy.array([0, 1], "i8")}
        return problem


class LowScores(Case):
    """With scores so low that 2^-lse is infinite: that of a key that isn't there shows, even times 0.

    With 16 sequences the first key that isn't there lies in each column that a thread may own.
    """

    def make(self) -> Problem:
        problem = super().make()
        # Around -100, of few bits, so that no score is rounded.
        for name, add in (("q", 4), ("k", -math.ceil(8 * 98 / self.shape.D) / 8)):
            x = getattr(problem, name)
            setattr(problem, name, (numpy.round(x.astype("f4")) / 8 + add).astype(x.dtype))
        kv_lens = [66 + 8 * n + odd for n in range(8) for odd in (0, 1)][: self.shape.N[0]]
        problem.options |= {"scale": 0.25, "kv_lens": numpy.array(kv_lens, "i4")}
        poison_past_lengths(problem)
        return problem


class UnseenKeys(Case):
    """With tiles of keys that no query sees."""

    def make(self) -> Problem:
        problem = super().make()
        problem.options |= {"window": (0, 0), "q_offset": 0}
        return problem


class UnseeingQueries(Case):
    """With tiles of queries that see no key."""

    def make(self) -> Problem:
        problem = super().make()
        problem.options |= {"window": (None, 0), "q_offset": 9 - self.shape.Lq}
        return problem


class ZeroSlope(Case):
    """With ALiBi's slopes, of which the last is 0."""

    def make(self) -> Problem:
        problem = super().make()
        problem.options["alibi_slopes"][..., -1] = 0
        return problem


class OddRows(Case):
    """With rows of q, k, v and do as parts of longer ones, at odd addresses and an odd distance, NaN between them."""

    def on_device(self, problem: Problem) -> Problem:
        def part(x: Any) -> Any:
            size = x.shape[-1]
            wide = numpy.full((*x.shape[:-1], size + 8 + (size + 1) % 2), numpy.nan, x.dtype)
            wide[..., 1 : size + 1] = x
            return KIND.array(wide).view_by(lambda host: host[..., 1 : size + 1])

        rest = problem.map(KIND.array)
        return Problem(*map(part, (*problem.qkv, problem.do)), rest.dlse, rest.options)


class Transposed(Case):
    """With every option's array transposed in memory: no two axes can be taken for one."""

    def on_device(self, problem: Problem) -> Problem:
        options = {
            name: KIND.array(numpy.ascontiguousarray(x.T)).view_by(lambda host: host.T)
            if isinstance(x, numpy.ndarray)
            else x
            for name, x in problem.options.items()
        }
        return Problem(*map(KIND.array, (*problem.qkv, problem.do, problem.dlse)), options)


@dataclass(frozen=True)
class BroadcastBias(Case):
    """With a bias that is broadcast along one axis."""

    axis: int = 0

    def make(self) -> Problem:
        problem = super().make()
        problem.options["bias"] = problem.options["bias"].take([0], self.axis)
        return problem


SEED = 2**40 + 7


def words(shape: tuple[int, ...], n: int) -> tuple[int, int]:
    """Where in the first head a dropout word lies that decides the n-th position of a square, and the word."""
    all_words = flash.dropout.dropout_words(SEED, shape)
    first = all_words[(0,) * (len(shape) - 2)][n // 2 :: 2, n % 2 :: 2]
    middle = numpy.argwhere((first > 1 << 30) & (first < 3 << 30))[0]
    return tuple(middle), int(first[tuple(middle)])


@dataclass(frozen=True)
class AtThreshold(Case):
    """With dropout whose threshold is the very word of one position, which is kept."""

    corner: int = 0  # of the square of four positions that share a draw

    def make(self) -> Problem:
        problem = super().make()
        problem.options |= {"dropout": words(self.shape.scores, self.corner)[1] / 2**32, "seed": SEED}
        return problem


# ---- The table -------------------------------------------------------------------------------------------------------

DTYPES = "float16", "bfloat16", "float32"
# Of each head dim that kernels are built for D and Dv of rows that fill it, that are made of units of eight numbers, of
# fours, and of neither, with three over or seven, and one.
FULL, UNITS, FOURS, SINGLES, ONE_OVER = range(5)
DIMS = {
    64: ((64, 64), (40, 56), (60, 36), (39, 23), (57, 41)),
    128: ((128, 128), (120, 96), (100, 68), (103, 67), (97, 113)),
    192: ((192, 192), (168, 184), (140, 188), (163, 131), (185, 161)),
    256: ((256, 256), (200, 248), (204, 196), (251, 131), (249, 193)),
    576: ((576, 288), (304, 576), (300, 292), (575, 303), (297, 305)),
}
# Which rows come with which options and, where a kernel takes all types, of which. What changes how scores are made
# decides between two kernels.
PLAIN: tuple[tuple[type[Case], int, str, tuple[str, ...]], ...] = (
    (Case, FULL, "float16", ()),
    (Case, SINGLES, "float32", ("causal", "sinks")),
    (Case, FOURS, "bfloat16", ("window", "kv_lens", "q_lens", "sinks_wide")),
    (Case, UNITS, "float32", ("block_mask_of_heads", "kv_lens", "q_offset_array")),
    (LargeBlocks, SINGLES, "bfloat16", ("window_left", "q_lens", "sinks")),
    (OddRows, ONE_OVER, "float16", ("block_mask", "q_offset", "sinks")),
)
SCORES: tuple[tuple[type[Case], int, str, tuple[str, ...]], ...] = (
    (ZeroSlope, FULL, "float16", ("mask", "alibi", "dropout")),
    (Case, SINGLES, "float32", ("bias", "softcap", "causal", "sinks")),
    (Case, FOURS, "bfloat16", ("bias_wide", "dropout_seed_array", "kv_lens", "q_lens", "window")),
    (
        ZeroSlope,
        UNITS,
        "float32",
        ("softcap", "mask_of_keys", "alibi_of_batch", "block_mask_of_batch", "q_lens", "sinks_wide"),
    ),
    (LargeBlocks, SINGLES, "bfloat16", ("scale_negative", "q_offset_array", "bias_of_keys", "sinks")),
    (OddRows, ONE_OVER, "float16", ("bias", "alibi", "mask", "q_offset", "window", "dropout", "softcap", "sinks")),
)
# Of a row of these tables. Tiles have up to 64 rows and columns; the tensor cores' up to 128 rows and 64 columns.
SHAPES = Shape((1,), 70, 150, 2, 1), Shape((2,), 67, 133, 2, 2), Shape((2,), 37, 197, 3, 1)
TENSOR_SHAPES = Shape((1,), 150, 197, 2, 1), Shape((2,), 133, 150, 2, 2), Shape((2,), 197, 133, 2, 1)
SHAPE_OF_ROW = 0, 0, 1, 2, 1, 1


def cases() -> Iterator[Case]:
    """Of every kernel with tiles of scores: the plain ones, then the tensor cores'."""
    for head_dim in (64, 128, 256, 576):
        yield from of_kernels(head_dim, DTYPES if head_dim > MOST_TENSOR_DIM else ("float32",), SHAPES)
    for head_dim in (64, 128, 192, 256):
        for dtype in ("float16", "bfloat16"):
            yield from of_kernels(head_dim, (dtype,), TENSOR_SHAPES)
    # Several leading axes, along some of which the bias is broadcast; all of it in one tile.
    for dtype, name in (("float32", "bias"), ("float16", "bias_of_keys"), ("bfloat16", "bias_wide")):
        yield Case(Shape((2, 3), 21, 33, 2, 1, 24, 16), dtype, (name, "block_mask"))
    yield Case(Shape((2,), 21, 33, 2, 1, 64, 32), "float16", ("q_lens",))  # rows of whole pieces
    for axis in range(5):
        yield BroadcastBias(Shape((2, 3), 70, 150, 2, 1, 24, 16), "float32", ("bias",), axis=axis)
    yield Case(Shape((5,), 21, 33, 2, 1, 24, 16), "float32", ("bias_wide",))  # in five splits
    yield SmallBlocks(Shape((1,), 40, 200, 1, 1, 24, 16), "float16", ("bias",))


MOST_TENSOR_DIM = 256


def of_kernels(head_dim: int, dtypes: tuple[str, ...], shapes: tuple[Shape, ...]) -> Iterator[Case]:
    """Of the kernels for a head dim, with options and without."""

    def shape(kind: int, N: tuple[int, ...], Lq: int, Lk: int, Hq: int, Hk: int) -> Shape:
        return Shape(N, Lq, Lk, Hq, Hk, *DIMS[head_dim][kind])

    last = dtypes[-1]
    for table, more, integers, arrays in (
        (PLAIN, (), (), ()),
        (SCORES, ("mask_of_keys",), ("bias", "dropout_seed_array"), ("mask", "alibi_of_batch", "bias")),
    ):
        for (make, kind, dtype, names), n in zip(table, SHAPE_OF_ROW, strict=True):
            yield make(shape(kind, *shapes[n][:5]), dtype if dtype in dtypes else last, names)
        lengths = "q_lens", "kv_lens", "q_offset_array", "sinks"
        yield OtherIntegers(shape(UNITS, (2,), 37, 69, 1, 1), last, (*lengths, *integers))
        yield SmallBlocks(shape(ONE_OVER, (2,), 200, 140, 2, 1), last, ("q_lens", "kv_lens", "sinks", *more))
        yield SmallBlocks(shape(UNITS, (1,), 200, 140, 1, 1), last, ("window", *more))
        yield Transposed(shape(FOURS, (2, 3), 17, 21, 2, 2), last, (*lengths, *arrays))
        yield Case(shape(UNITS, (), 17, 21, 2, 1), last, (*lengths, *arrays))
        yield Case(shape(UNITS, (1,), 144, 144, 1, 1), last, more)  # off every tile by a multiple of 16
        yield Edges(shape(UNITS, (5,), 144, 144, 1, 1), last, more)
        yield NarrowBand(shape(UNITS, (2,), 150, 150, 1, 1), last, more)
        yield LowScores(shape(UNITS, (16,), 8, 136, 1, 1), last, more)
        yield LowScores(shape(UNITS, (1,), 64, 136, 1, 1), last, more)  # in whole tiles of queries
        yield UnseenKeys(shape(UNITS, (1,), 4, 200, 2, 1), last, more)
        yield UnseeingQueries(shape(SINGLES, (1,), 200, 5, 2, 1), last, more)
    for corner in range(4):
        yield AtThreshold(shape(UNITS, (1,), 16, 16, 1, 1), last, (), corner=corner)


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
            yield OnSmallDevice(Forward(case))
    if is_tensor and most > 64:
        return  # the other kernels have no head dim, and meet these types in other cases
    given = answers(case).problem.options
    for name in ("bias", "sinks"):
        if name in given:
            yield Backward(case, (name,))
    if most <= 64:
        yield Weights(case)


def problems() -> Iterator[Any]:
    for case in cases():
        several = case.shape.N != (1,)
        for problem in of_case(case):
            blocks = 1 if isinstance(problem, Backward) and problem.wrt == ("sinks",) else 3
            yield FewBlocks(problem, blocks) if several else problem
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
