"""Random problems: every option of `flash.attention` by name, so that a test can ask for any combination of them.

A `Case` is what a test is parametrised with: shape, dtype, names of options, seed. `Case.make()` gives the arrays; the
same case gives the same arrays everywhere. What lies past the lengths is NaN, in every case that has lengths.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import ml_dtypes
import numpy
from hypothesis import strategies as st

import flash

DTYPES = "float16", "bfloat16", "float32", "float64"
LENGTHS = 0, 1, 2, 3, 5, 17, 63, 64, 65, 127, 128, 129, 255, 257, 1023, 1025
# Each length as Lq and as Lk, beside itself and beside another one.
LENGTH_PAIRS = [*zip(LENGTHS, LENGTHS, strict=True), *zip(LENGTHS, LENGTHS[5:] + LENGTHS[:5], strict=True)]
DIMS = 1, 8, 21, 32, 40, 64, 72, 80, 96, 128, 160, 192, 256, 576
VALUE_DIMS = (1, 256), (576, 512), (192, 128), (64, 65), (40, 8), (21, 1), (256, 21)  # D and Dv
GROUPS = (1, 1), (3, 3), (4, 1), (6, 2), (6, 3), (12, 4)  # Hq and Hk
LEADING_AXES = (), (1,), (2,), (2, 3), (2, 1, 2), (0,), (2, 0)
# Options that each sequence may have its own of.
OF_SEQUENCES = "q_lens", "kv_lens", "q_offset_array", "bias", "alibi_of_batch", "block_mask_of_batch", "dropout"

WRT = "q", "k", "v", "bias", "sinks"


def dtype_of(name: str) -> numpy.dtype:
    return numpy.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def sum_dtype(dtype: numpy.dtype) -> numpy.dtype:
    """Of lse, and what bias and sinks may have instead of q's dtype."""
    return numpy.dtype("f8" if dtype == "f8" else "f4")


class Shape(NamedTuple):
    N: tuple[int, ...] = (2,)
    Lq: int = 37
    Lk: int = 69
    Hq: int = 4
    Hk: int = 2
    D: int = 16
    Dv: int = 24

    @property
    def scores(self) -> tuple[int, ...]:
        return *self.N, self.Hq, self.Lq, self.Lk


@dataclass
class Problem:
    """The arrays of one case; `options` are keyword arguments of every function that takes a problem."""

    q: Any
    k: Any
    v: Any
    do: Any
    dlse: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def qkv(self) -> tuple[Any, Any, Any]:
        return self.q, self.k, self.v

    def map(self, function) -> Problem:
        """The same problem with each array replaced by what `function` makes of it."""

        def convert(x):
            return function(x) if isinstance(x, numpy.ndarray) else x

        options = {name: convert(x) for name, x in self.options.items()}
        return Problem(*map(convert, (self.q, self.k, self.v, self.do, self.dlse)), options)


# ---- Options by name -------------------------------------------------------------------------------------------------


class Builder(NamedTuple):
    """What the options are made from."""

    rng: numpy.random.Generator
    shape: Shape
    dtype: numpy.dtype

    def lengths(self, L: int, dtype: str):
        """Of each sequence; one of them whole where there are several."""
        lengths = self.rng.integers(min(1, L), L + 1, self.shape.N, dtype)
        if lengths.size > 1:
            lengths.flat[-1] = L
        return lengths

    def numbers(self, shape, dtype=None, hidden=0.0):
        x = self.rng.normal(size=shape)
        if hidden:
            x = numpy.where(self.rng.random(shape) < hidden, -math.inf, x)
        return numpy.asarray(x, dtype=dtype or self.dtype)

    def blocks(self, leading, block_size):
        _, Lq, Lk, *_ = self.shape
        (rows, columns), density = (-(-L // size) for L, size in zip((Lq, Lk), block_size, strict=True)), 0.6
        dense = self.rng.random((*leading, rows, columns)) < density
        return flash.BlockMask.from_dense(dense, block_size, Lq=Lq, Lk=Lk)


OPTIONS = {
    "scale": lambda b: {"scale": 0.37},
    "scale_negative": lambda b: {"scale": -0.2},
    "scale_zero": lambda b: {"scale": 0.0},
    "causal": lambda b: {"causal": True},
    "causal_top_left": lambda b: {"causal": True, "q_offset": 0},
    "window": lambda b: {"window": (17, 5)},
    "window_left": lambda b: {"window": (20, None)},
    "window_right": lambda b: {"window": (None, 3)},
    "window_zero": lambda b: {"window": (0, 0)},
    "q_offset": lambda b: {"q_offset": -7},
    "q_offset_array": lambda b: {"q_offset": b.rng.integers(-9, 40, b.shape.N, "i8")},
    "q_lens": lambda b: {"q_lens": b.lengths(b.shape.Lq, "i4")},
    "kv_lens": lambda b: {"kv_lens": b.lengths(b.shape.Lk, "i8")},
    "mask": lambda b: {"mask": b.rng.random(b.shape.scores) < 0.7},
    "mask_of_keys": lambda b: {"mask": b.rng.random((*b.shape.N, 1, 1, b.shape.Lk)) < 0.7},
    "bias": lambda b: {"bias": b.numbers(b.shape.scores)},
    "bias_wide": lambda b: {"bias": b.numbers((b.shape.Hq, b.shape.Lq, b.shape.Lk), sum_dtype(b.dtype), hidden=0.2)},
    "bias_of_keys": lambda b: {"bias": b.numbers((*b.shape.N, 1, 1, b.shape.Lk), hidden=0.2)},
    "alibi": lambda b: {"alibi_slopes": b.rng.random(b.shape.Hq).astype("f4")},
    "alibi_of_batch": lambda b: {"alibi_slopes": (0.1 * b.rng.normal(size=(*b.shape.N, b.shape.Hq))).astype("f4")},
    "softcap": lambda b: {"softcap": 1.5},
    "sinks": lambda b: {"sinks": b.numbers(b.shape.Hq)},
    "sinks_wide": lambda b: {"sinks": b.numbers(b.shape.Hq, sum_dtype(b.dtype), hidden=0.2)},
    "block_mask": lambda b: {"block_mask": b.blocks((), (16, 32))},
    "block_mask_of_heads": lambda b: {"block_mask": b.blocks((b.shape.Hq,), (64, 16))},
    "block_mask_of_batch": lambda b: {"block_mask": b.blocks((*b.shape.N, 1), (32, 32))},
    "dropout": lambda b: {"dropout": 0.3, "seed": 2**40 + 7},
    "dropout_seed_array": lambda b: {"dropout": 0.1, "seed": numpy.array([12345], "i4")},
}
# One of each kind, for pairs and random combinations; the others are variants of these.
MAIN = (
    "scale_negative", "causal", "window", "q_offset", "q_lens", "kv_lens", "mask", "bias", "bias_of_keys", "alibi",
    "softcap", "sinks", "block_mask", "block_mask_of_heads", "dropout",
)  # fmt: skip


def arguments_of(option: str) -> set[str]:
    """The keyword arguments that an option sets."""
    return set(OPTIONS[option](Builder(numpy.random.default_rng(0), Shape(), dtype_of("float32"))))


def compatible(options) -> bool:
    """Whether no two options set the same argument."""
    sets = [arguments_of(option) for option in options]
    return sum(map(len, sets)) == len(set().union(*sets))


PAIRS = [pair for pair in combinations(MAIN, 2) if compatible(pair)]


# ---- Cases -----------------------------------------------------------------------------------------------------------


DEFAULT_SHAPE = Shape()


@dataclass(frozen=True)
class Case:
    shape: Shape = DEFAULT_SHAPE
    dtype: str = "float32"
    options: tuple[str, ...] = ()
    seed: int = 0
    factor: float = 1.0  # of q: the larger, the sharper the softmax

    def __str__(self) -> str:
        N, Lq, Lk, Hq, Hk, D, Dv = self.shape
        sizes = f"{'x'.join(map(str, N)) or 'none'}-{Lq}-{Lk}-{Hq}-{Hk}-{D}-{Dv}"
        return "-".join((self.dtype, *self.options, sizes))

    def with_shape(self, **sizes) -> Case:
        return replace(self, shape=self.shape._replace(**sizes))

    def make(self) -> Problem:
        N, Lq, Lk, Hq, Hk, D, Dv = self.shape
        dtype = dtype_of(self.dtype)
        rng = numpy.random.default_rng([zlib.crc32(repr(self).encode()), self.seed])
        shapes = (Lq, Hq, D), (Lk, Hk, D), (Lk, Hk, Dv), (Lq, Hq, Dv)
        q, k, v, do = (rng.normal(size=(*N, *shape)) for shape in shapes)
        dlse = rng.normal(size=(*N, Hq, Lq))
        arrays = [numpy.asarray(x, dtype) for x in (self.factor * q, k, v, do)]
        problem = Problem(*arrays, numpy.asarray(dlse, sum_dtype(dtype)))
        for option in self.options:
            problem.options |= OPTIONS[option](Builder(rng, self.shape, dtype))
        poison_past_lengths(problem)
        return problem


def of_lengths(Lq: int, Lk: int, causal: bool, dtype: str) -> Case:
    return Case(Shape((), Lq, Lk, Hq=2, Hk=1, D=16, Dv=16), dtype, ("causal",) if causal else ())


def poison_past_lengths(problem: Problem, value: float = math.nan) -> None:
    """Overwrites what must never be read: queries and do past q_lens, keys and values past kv_lens, dlse, and bias."""
    options = problem.options
    q_lens, kv_lens, bias = (options.get(name) for name in ("q_lens", "kv_lens", "bias"))
    full = bias is not None and bias.shape == (*problem.q.shape[:-3], problem.q.shape[-2], *_lengths(problem))
    for n in numpy.ndindex(problem.q.shape[:-3]):
        if q_lens is not None:
            for x in (problem.q, problem.do, *([bias.swapaxes(-3, -2)] if full else [])):
                x[n][q_lens[n] :] = value
            problem.dlse[n][:, q_lens[n] :] = value
        if kv_lens is not None:
            for x in (problem.k, problem.v, *([numpy.moveaxis(bias, -1, -3)] if full else [])):
                x[n][kv_lens[n] :] = value


def _lengths(problem: Problem) -> tuple[int, int]:
    return problem.q.shape[-3], problem.k.shape[-3]


@st.composite
def random_cases(draw, dtypes: tuple[str, ...] = DTYPES, longest: int = 300, most_scores: float = math.inf) -> Case:
    """Any case, for hypothesis."""
    lengths = st.sampled_from([n for n in LENGTHS if n <= longest]) | st.integers(0, min(longest, 200))
    dims = st.sampled_from([1, 3, 8, 16, 21, 40, 64, 80, 128])
    dtype = draw(st.sampled_from(dtypes))
    options = draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=5, unique=True).filter(compatible))
    N, Hk, group = (draw(st.sampled_from(x)) for x in ([(), (1,), (2,), (3,), (2, 2)], [1, 1, 2, 3], [1, 1, 2, 4]))
    shape = Shape(N, draw(lengths), draw(lengths), Hk * group, Hk, draw(dims), draw(dims))
    # Long double takes 100 times as long.
    if math.prod(shape.scores) > (min(most_scores, 200_000) if dtype == "float64" else most_scores):
        shape = shape._replace(N=(), Hq=group, Hk=1)
    return Case(shape, dtype, tuple(options), draw(st.integers(0, 1 << 30)))
