"""The cases of fault_problems.py: options that come together, lengths on every edge of a tile, odd addresses and lists.

Lengths lie off every tile, with at least three tiles of keys; for Hopper, of queries too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import emulated
import numpy
from kinds import Emulated
from problems import Case, Problem, Shape, poison_past_lengths

import flash
import flash.dropout
from flash.block_lists import BlockLists, place_of

KIND = Emulated()


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

    block_size = 16, 16

    def make(self) -> Problem:
        problem = super().make()
        rng = numpy.random.default_rng(self.seed)
        rows, columns = (-(-n // size) for n, size in zip(self.shape.scores[-2:], self.block_size, strict=True))
        blocks = rng.random((self.shape.Hq, rows, columns)) < 0.5
        mask = flash.BlockMask.from_dense(blocks, self.block_size, Lq=self.shape.Lq, Lk=self.shape.Lk)
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


class HopperBlocks(SmallBlocks):
    """The same of the smallest blocks that Hopper's kernels take."""

    block_size = 64, 64


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


class WideEdges(Case):
    """The same for tiles of 80 and of 96 keys by 64 queries, at the band's other edge."""

    def make(self) -> Problem:
        problem = super().make()
        problem.options |= {"window": (130, 66), "q_offset": numpy.array([13, 12, 29, 28], "i8")}
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


class PaddedRows(Case):
    """With rows of q, k, v and do of any size at multiples of 16 bytes, which boxes can be copied from, NaN between."""

    def on_device(self, problem: Problem) -> Problem:
        def part(x: Any) -> Any:
            unit = 16 // x.dtype.itemsize
            wide = numpy.full((*x.shape[:-1], (x.shape[-1] + 2 * unit - 1) // unit * unit), numpy.nan, x.dtype)
            wide[..., : x.shape[-1]] = x
            return KIND.array(wide).view_by(lambda host: host[..., : x.shape[-1]])

        rest = problem.map(KIND.array)
        return Problem(*map(part, (*problem.qkv, problem.do)), rest.dlse, rest.options)


class FarKeys(Case):
    """With a window so narrow that most pieces of the keys, where they come in pieces, have nothing to see."""

    def make(self) -> Problem:
        problem = super().make()
        problem.options |= {"window": (30, 0), "q_offset": numpy.array([1590, 20][: self.shape.N[0]], "i8")}
        return problem


class LastKeys(Case):
    """With the last keys alone in sight, and scores that only a maximum keeps within float32's exponentials."""

    def make(self) -> Problem:
        problem = super().make()
        problem.q[...], problem.k[...] = 4, numpy.round(problem.k) / 8 + 4
        problem.options |= {"scale": 1.0, "window": (5, 0)}
        return problem


class TinyNumbers(Case):
    """With numbers of q and k so small that scores stay within float32's range with a factor whose product leaves it.

    In units of log2 scale is a power of two: of scores as large as these no bit may be rounded.
    """

    def make(self) -> Problem:
        problem = super().make()
        problem.q, problem.k = (numpy.sign(x) / 64 for x in (problem.q, problem.k))
        problem.options["scale"] = 8 * math.log(2)
        return problem


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


@dataclass(frozen=True)
class BiasOfSmallBlocks(SmallBlocks):
    """With a bias for all sequences."""

    def make(self) -> Problem:
        problem = super().make()
        problem.options["bias"] = numpy.nan_to_num(problem.options["bias"].take([-1], 0))  # NaN past a length
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
NARROW = 0  # no head dim: keys longer than values
DIMS = {
    64: ((64, 64), (40, 56), (60, 36), (39, 23), (57, 41)),
    96: ((96, 96), (80, 72), (92, 76), (83, 71), (73, 89)),
    128: ((128, 128), (120, 96), (100, 68), (103, 67), (97, 113)),
    192: ((192, 192), (168, 184), (140, 188), (163, 131), (185, 161)),
    NARROW: ((192, 128), (168, 88), (140, 100), (163, 67), (185, 113)),
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
    yield Case(Shape((2,), 5, 9, 1, 1, 64, 32), "float16", ())  # the same, and cheap
    for axis in range(5):
        yield BroadcastBias(Shape((2, 3), 70, 150, 2, 1, 24, 16), "float32", ("bias",), axis=axis)
        for dtype in ("float16", "bfloat16"):  # in chunks of 64 columns
            yield BroadcastBias(Shape((2, 2), 70, 100, 2, 1, 160, 72), dtype, ("bias",), axis=axis)
            yield BroadcastBias(Shape((3, 2), 20, 37, 2, 1, 39, 23), dtype, ("bias", "causal"), axis=axis)
    for dtype in DTYPES:
        for names in (("block_mask_of_batch", "alibi"), ("window", "mask"), ("softcap", "dropout")):
            yield BroadcastBias(Shape((3,), 70, 150, 2, 1, 72, 40), dtype, ("bias", *names))
    yield Case(Shape((5,), 21, 33, 2, 1, 24, 16), "float32", ("bias_wide",))  # in five splits
    for dtype in DTYPES:
        yield SmallBlocks(Shape((1,), 40, 200, 1, 1, 24, 16), dtype, ("bias",))
        # More than there are splits, so that some of them have two tiles.
        yield BroadcastBias(Shape((260, 2), 16, 16, 1, 1, 8, 8), dtype, ("bias",), axis=0)
        yield BroadcastBias(Shape((), 16, 16, 520, 1, 8, 8), dtype, ("bias",), axis=0)
        yield BiasOfSmallBlocks(Shape((540,), 16, 80, 1, 1, 8, 8), dtype, ("bias", "q_lens", "mask"))
        yield BiasOfSmallBlocks(Shape((540,), 16, 80, 1, 1, 72, 8), dtype, ("bias", "window"))


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
    # Whole tiles in which all see all, with mask and bias in aligned pairs.
    length, heads = (128, 1) if "float32" in dtypes else (192, 2)
    for names in (("softcap", "alibi", "bias", "mask"), ("bias_wide", "mask_of_keys", "dropout", "sinks")):
        yield Case(shape(UNITS, (1,), length, length, heads, 1), last, names)
    for corner in range(4):
        yield AtThreshold(shape(UNITS, (1,), 16, 16, 1, 1), last, (), corner=corner)


# ---- Hopper ----------------------------------------------------------------------------------------------------------

# Its tiles have up to 192 queries and 128 keys, or 128 keys and 128 queries in the backward, and stages come in twos.
HOPPER_HEAD_DIMS = 64, 96, 128, 192, 256
MOST_DETERMINISTIC_HOPPER_DIM = 128
LONG = Shape((1,), 290, 300, 2, 1), Shape((2,), 200, 270, 2, 2), Shape((2,), 140, 420, 1, 1)
PACKED = Shape((2,), 37, 200, 4, 1)  # heads that share keys share a tile
PIECES = Shape((2,), 20, 1600, 2, 1)  # keys come in pieces
HOPPER_PLAIN: tuple[tuple[type[Case], int, Shape, tuple[str, ...]], ...] = (
    (Case, FULL, LONG[0], ()),
    (Case, UNITS, LONG[1], ("causal", "sinks")),
    (Case, UNITS, LONG[2], ("window", "kv_lens", "q_lens", "sinks_wide")),
    (PaddedRows, SINGLES, LONG[1], ("kv_lens", "q_offset_array")),
    (HopperBlocks, UNITS, LONG[1], ("kv_lens", "q_lens", "sinks")),
    (HopperBlocks, UNITS, LONG[2], ("window",)),
    (LargeBlocks, UNITS, LONG[2], ("window_left", "q_lens", "sinks")),
    (PaddedRows, ONE_OVER, PACKED, ("causal", "q_lens", "sinks")),
    (Case, UNITS, PACKED, ("window_left", "kv_lens")),
    (Case, UNITS, PIECES, ("kv_lens", "sinks", "q_lens")),
    (PaddedRows, SINGLES, PIECES, ("causal", "sinks")),
    (OtherIntegers, UNITS, PIECES, ("kv_lens", "q_lens")),
    (FarKeys, FULL, PIECES, ()),
    (NarrowBand, UNITS, LONG[1], ()),
)
HOPPER_SCORES: tuple[tuple[type[Case], int, Shape, tuple[str, ...]], ...] = (
    (ZeroSlope, FULL, LONG[1], ("mask", "alibi", "dropout")),
    (PaddedRows, SINGLES, LONG[1], ("bias", "softcap", "causal", "sinks")),
    (Case, UNITS, LONG[2], ("bias_wide", "dropout_seed_array", "kv_lens", "q_lens", "window")),
    (HopperBlocks, UNITS, LONG[1], ("softcap", "mask_of_keys", "alibi_of_batch", "q_lens", "sinks_wide")),
    (HopperBlocks, UNITS, LONG[2], ("window", "softcap")),
    (LargeBlocks, UNITS, LONG[2], ("scale_negative", "q_offset_array", "bias_of_keys", "sinks")),
    (PaddedRows, ONE_OVER, PACKED, ("bias", "alibi", "mask", "q_offset", "window", "dropout", "softcap", "sinks")),
    (Case, UNITS, PIECES, ("softcap", "mask_of_keys", "kv_lens", "sinks")),
    (PaddedRows, SINGLES, PIECES, ("dropout", "q_lens")),
    (NarrowBand, UNITS, LONG[1], ("mask_of_keys",)),
)


def hopper_cases() -> Iterator[Case]:
    """Of every kernel for Hopper, whose rows boxes can be copied from, and whose blocks are not small."""
    for head_dim in (*HOPPER_HEAD_DIMS, NARROW):
        for dtype in ("float16", "bfloat16"):
            for table in (HOPPER_PLAIN, HOPPER_SCORES) if head_dim != NARROW else (HOPPER_PLAIN,):
                for make, kind, shape, names in table:
                    yield make(
                        shape._replace(**dict(zip(("D", "Dv"), DIMS[head_dim][kind], strict=True))), dtype, names
                    )
            if head_dim > MOST_DETERMINISTIC_HOPPER_DIM:
                for names in ((), ("mask_of_keys",)):
                    yield WideEdges(Shape((4,), 128, 160, 1, 1, *DIMS[head_dim][UNITS]), dtype, names)
            for case in of_kernels(head_dim, (dtype,), TENSOR_SHAPES):
                rows_fit = case.shape.D % 8 == case.shape.Dv % 8 == 0
                has_small_blocks = isinstance(case, SmallBlocks) or any("block_mask" in name for name in case.options)
                if rows_fit and not has_small_blocks and not isinstance(case, OddRows):
                    yield case


def piece_cases() -> Iterator[Case]:
    """Of two pieces of keys and more, cheap: the shortest rows, the longest and those that end between the last columns
    that threads compare, and pieces for each lane of a warp."""
    keys = 1536
    for dtype in ("float16", "bfloat16"):
        for head_dim in HOPPER_HEAD_DIMS:
            for names in ((), ("mask_of_keys",)):
                yield PaddedRows(Shape((1,), 11, keys + 4, 1, 1, head_dim, 1), dtype, names)
                yield Case(Shape((1,), 11, keys + 4, 1, 1, head_dim, head_dim - 16), dtype, names)
        yield Case(Shape((1,), 11, keys + 4, 1, 1, 16, 256), dtype, ("q_lens", "sinks"))
    for count in (33, 65, 129, 161):
        yield LastKeys(Shape((1,), 1, (count - 1) * keys + 9, 1, 1, 8, 8), "float16")


FLOAT8: tuple[tuple[type[Case], tuple[str, ...]], ...] = (
    (Case, ()),
    (Case, ("causal", "sinks")),
    (Case, ("window", "kv_lens", "q_lens")),
    (Case, ("q_offset_array", "window_left")),
    (HopperBlocks, ("window", "kv_lens")),
    (Case, ("softcap", "mask", "kv_lens", "sinks")),
    (ZeroSlope, ("bias_wide", "alibi", "dropout")),
    (Case, ("dropout_seed_array", "bias_of_keys", "causal", "sinks_wide", "q_lens")),
    (HopperBlocks, ("alibi_of_batch", "window", "q_lens")),
)


FLOAT8_HEAD_DIMS = 64, 128, 256
# Rows, keys, all in one tile or in two pieces, and options.
FLOAT8_PADDED: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (ONE_OVER, 45, ("kv_lens", "q_lens")),
    (ONE_OVER, 45, ("softcap", "mask", "sinks")),
    (ONE_OVER, 45, ("bias_wide", "alibi", "dropout", "kv_lens")),
    (ONE_OVER, 1800, ("kv_lens", "sinks")),
    (ONE_OVER, 1800, ("mask_of_keys", "window_left")),
    (FOURS, 1800, ("window_left", "q_lens")),
    (FOURS, 1800, ("softcap", "kv_lens")),
)


def float8_cases() -> Iterator[Case]:
    for D, Dv in ((64, 64), (48, 32), (128, 128), (112, 80), (256, 256), (208, 144)):
        for make, options in FLOAT8:
            yield make(Shape((2,), 200, 520, 4, 2, D, Dv), "float32", options)


def small_float8_cases() -> Iterator[Case]:
    """In rows that boxes are copied from, but not written to; the last half of them with keys in pieces."""
    for head_dim in FLOAT8_HEAD_DIMS:
        for kind, Lk, options in FLOAT8_PADDED:
            D, Dv = DIMS[head_dim][kind]
            yield PaddedRows(Shape((2,), 37 if Lk < 64 else 11, Lk, 4, 2, D, Dv), "float32", options)


def float8_widths(head_dim: int, left: int, options: tuple[str, ...]) -> Iterator[Case]:
    """With rows that end in each sixteen columns, with `left` numbers there: threads compare all columns to the end."""
    for Dv in range(left, head_dim, 16):
        yield PaddedRows(Shape((2,), 11, 17, 2, 2, head_dim, Dv), "float32", options)
