"""Which blocks of the score matrix exist: `BlockMask` and its patterns."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, partial
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy

from flash import block_patterns as patterns
from flash.block_lists import BlockLists, compress, expand, place_of
from flash.block_patterns import (
    BlockSize,
    Pattern,
    Window,
    ceil_div,
    check_block_size,
    check_integer,
    check_window,
)
from flash.exceptions import FlashTypeError, FlashValueError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array: TypeAlias = Any
# Blocks that a pattern is evaluated for at once: its integer temporaries stay around 8 MB each, whatever the grid.
_CHUNK = 1 << 20


@dataclass(eq=False, repr=False)
class BlockMask:
    """The blocks of the score matrix that attention computes; all others are neither read nor computed.

    Block (r, c) covers queries from ``r * block_q`` and keys from ``c * block_k``, by index; the last ones may be
    partial. Made by `from_dense`, `from_function` or a pattern: `causal`, `sliding_window`, `local_global`, `strided`,
    `fixed`, `butterfly`, `random`. A pattern lists a block when any of its elements is visible under the pattern;
    inside a listed block only the other options of `flash.attention` (causal, window, mask, ...) hide elements.

    Immutable. Two masks are equal when they list the same blocks of the same size.

    Attributes
    ----------
    block_q, block_k : int
        Powers of two from 16 to 256.
    Lq, Lk : int
        How many queries and keys the mask was made for. It fits every problem with the same grid.
    row_start : int32 array, leading shape + (rows + 1,)
        Where each row's list starts and ends in `columns`; read-only.
    columns : int32 array, (nnz,)
        The block columns of all rows, ascending within a row; read-only.

    Notes
    -----
    Dao et al., "FlashAttention", arXiv:2205.14135, section 3.3 (block-sparse FlashAttention).

    Examples
    --------
    >>> import flash
    >>> mask = flash.BlockMask.causal(256, 256, 64) & flash.BlockMask.sliding_window(256, 256, 64, window=(64, 0))
    >>> mask
    BlockMask(Lq=256, Lk=256, block_size=(64, 64), shape=(4, 4), nnz=7, density=0.438)
    >>> mask.to_dense().astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 1, 1]])
    """

    block_q: int
    block_k: int
    Lq: int
    Lk: int
    row_start: Array
    columns: Array
    lists_by_place: dict[Hashable, BlockLists] = field(default_factory=dict, init=False)  # where `to` has brought them
    _expansions: dict[tuple[int, ...], BlockMask] = field(default_factory=dict, init=False)

    def __setattr__(self, name: str, value: Any) -> None:
        # Not by `frozen=True`: PyTorch 2.7 compiles no function with such an argument.
        if name in self.__dict__:
            raise AttributeError(f"{name}: a BlockMask can't be changed")
        super().__setattr__(name, value)

    def __post_init__(self) -> None:
        self.row_start.flags.writeable = False
        self.columns.flags.writeable = False

    @classmethod
    def from_dense(
        cls, blocks: Array, block_size: BlockSize, *, Lq: int | None = None, Lk: int | None = None
    ) -> BlockMask:
        """The blocks where `blocks` is True.

        Parameters
        ----------
        blocks : bool array, (rows, cols), (Hq, rows, cols) or N + (Hq, rows, cols)
            Leading axes of size 1 broadcast. Anything that `numpy.asarray` takes.
        block_size : int or pair of int
            (block_q, block_k), powers of two from 16 to 256.
        Lq, Lk : int, optional
            Default: all blocks are whole.

        Raises
        ------
        FlashTypeError
            `blocks` isn't boolean, or a size not an integer.
        FlashValueError
            A size is out of range, `blocks` has fewer than two axes or not the grid of Lq and Lk.

        Examples
        --------
        >>> import numpy, flash
        >>> flash.BlockMask.from_dense(numpy.eye(3, dtype=bool), 32).nnz
        3
        """
        block_q, block_k = check_block_size(block_size)
        blocks = numpy.asarray(blocks)
        if blocks.dtype != bool:
            raise FlashTypeError(f"blocks: dtype must be bool, got {blocks.dtype}")
        if blocks.ndim < 2:
            raise FlashValueError(f"blocks: must have at least the axes (rows, cols), got shape {blocks.shape}")
        Lq = _length("Lq", Lq, blocks.shape[-2], block_q)
        Lk = _length("Lk", Lk, blocks.shape[-1], block_k)
        return cls(block_q, block_k, Lq, Lk, *compress(blocks))

    @classmethod
    def from_function(cls, fn: Callable[[Array, Array], Array], Lq: int, Lk: int, block_size: BlockSize) -> BlockMask:
        """The blocks for which a function says so.

        Parameters
        ----------
        fn : callable
            ``fn(row_block, col_block)`` takes integer arrays that broadcast to a part of the grid and returns bool. It
            is called for some rows at a time.
        Lq, Lk : int
        block_size : int or pair of int

        Raises
        ------
        FlashTypeError
            `fn` isn't callable or doesn't return bool, or a size isn't an integer.
        FlashValueError
            A size is out of range, or what `fn` returns doesn't broadcast to the part of the grid.

        Examples
        --------
        >>> import flash
        >>> mask = flash.BlockMask.from_function(lambda r, c: (r + c) % 2 == 0, 64, 64, 32)
        >>> mask.columns
        array([0, 1], dtype=int32)
        """
        Lq, Lk, (block_q, block_k) = check_integer("Lq", Lq), check_integer("Lk", Lk), check_block_size(block_size)
        if not callable(fn):
            raise FlashTypeError(f"fn: must be callable, got {fn!r}")
        rows, cols = ceil_div(Lq, block_q), ceil_div(Lk, block_k)
        blocks = numpy.empty((rows, cols), bool)
        step = max(1, _CHUNK // max(1, cols))
        for begin in range(0, rows, step):
            part = blocks[begin : begin + step]
            listed = numpy.asarray(fn(numpy.arange(begin, begin + len(part))[:, None], numpy.arange(cols)[None, :]))
            if listed.dtype != bool:
                raise FlashTypeError(f"fn: must return bool, got {listed.dtype}")
            try:
                part[...] = listed
            except ValueError:
                message = f"fn: must return what broadcasts to {part.shape}, got shape {listed.shape}"
                raise FlashValueError(message) from None
        return cls.from_dense(blocks, (block_q, block_k), Lq=Lq, Lk=Lk)

    @classmethod
    def causal(cls, Lq: int, Lk: int, block_size: BlockSize, *, q_offset: int | None = None) -> BlockMask:
        """Keys up to the query's position: j <= i + q_offset.

        Parameters
        ----------
        Lq, Lk : int
        block_size : int or pair of int
        q_offset : int, optional
            Position of query 0 in key coordinates. Default: Lk - Lq, the last query meets the last key.

        Examples
        --------
        >>> import flash
        >>> flash.BlockMask.causal(64, 128, 32).to_dense().astype(int)
        array([[1, 1, 1, 0],
               [1, 1, 1, 1]])
        """
        return cls.sliding_window(Lq, Lk, block_size, (None, 0), q_offset=q_offset)

    @classmethod
    def sliding_window(
        cls,
        Lq: int,
        Lk: int,
        block_size: BlockSize,
        window: Window,
        *,
        q_offset: int | None = None,
    ) -> BlockMask:
        """Keys near the query's position: i + q_offset - left <= j <= i + q_offset + right.

        Parameters
        ----------
        Lq, Lk : int
        block_size : int or pair of int
        window : (left, right)
            Each None (open) or at least 0, both ends included, as in `flash.attention`.
        q_offset : int, optional
            As in `causal`.

        Examples
        --------
        >>> import flash
        >>> flash.BlockMask.sliding_window(128, 128, 32, window=(32, 0)).nnz
        7
        """
        return cls._from_pattern(Lq, Lk, block_size, q_offset, partial(patterns.sliding_window, *check_window(window)))

    @classmethod
    def local_global(
        cls,
        Lq: int,
        Lk: int,
        block_size: BlockSize,
        window: Window,
        global_blocks: int,
        *,
        q_offset: int | None = None,
    ) -> BlockMask:
        """A sliding window, and some global positions that see all keys and are seen by all queries.

        Global are the positions of the first `global_blocks` blocks of keys: those keys, and the queries that stand at
        these positions, i + q_offset.

        Parameters
        ----------
        Lq, Lk : int
        block_size : int or pair of int
        window : (left, right)
            As in `sliding_window`.
        global_blocks : int
            At least 0.
        q_offset : int, optional
            As in `causal`.

        Notes
        -----
        Beltagy et al., "Longformer", arXiv:2004.05150, section 3.1; Zaheer et al., "Big Bird", arXiv:2007.14062,
        section 2 (whose third part is `random`: combine them with ``|``).

        Examples
        --------
        >>> import flash
        >>> flash.BlockMask.local_global(128, 128, 32, window=(0, 0), global_blocks=1).to_dense().astype(int)
        array([[1, 1, 1, 1],
               [1, 1, 0, 0],
               [1, 0, 1, 0],
               [1, 0, 0, 1]])
        """
        end = check_integer("global_blocks", global_blocks) * check_block_size(block_size)[1]
        pattern = partial(patterns.local_global, *check_window(window), end)
        return cls._from_pattern(Lq, Lk, block_size, q_offset, pattern)

    @classmethod
    def strided(cls, Lq: int, Lk: int, block_size: BlockSize, stride: int, *, q_offset: int | None = None) -> BlockMask:
        """The last `stride` keys and every `stride`-th key before the query; causal.

        With d = i + q_offset - j: d >= 0, and d <= stride or d a multiple of stride.

        Parameters
        ----------
        Lq, Lk : int
        block_size : int or pair of int
        stride : int
            At least 1.
        q_offset : int, optional
            As in `causal`.

        Notes
        -----
        Child et al., "Sparse Transformers", arXiv:1904.10509, section 4.3: strided attention, the union of its two
        heads ("merged head").

        Examples
        --------
        >>> import flash
        >>> flash.BlockMask.strided(128, 128, 16, stride=32).to_dense()[7].astype(int)
        array([0, 1, 0, 1, 0, 1, 1, 1])
        """
        pattern = partial(patterns.strided, check_integer("stride", stride, 1))
        return cls._from_pattern(Lq, Lk, block_size, q_offset, pattern)

    @classmethod
    def fixed(
        cls,
        Lq: int,
        Lk: int,
        block_size: BlockSize,
        stride: int,
        summary: int,
        *,
        q_offset: int | None = None,
    ) -> BlockMask:
        """The keys of the query's own stretch of `stride`, and the last `summary` keys of every stretch; causal.

        With p = i + q_offset: j <= p, and p // stride == j // stride or j % stride >= stride - summary.

        Parameters
        ----------
        Lq, Lk : int
        block_size : int or pair of int
        stride : int
            At least 1.
        summary : int
            From 1 to stride.
        q_offset : int, optional
            As in `causal`.

        Notes
        -----
        Child et al., "Sparse Transformers", arXiv:1904.10509, section 4.3: fixed attention, the union of its two heads
        ("merged head").

        Examples
        --------
        >>> import flash
        >>> flash.BlockMask.fixed(128, 128, 16, stride=64, summary=16).to_dense()[5].astype(int)
        array([0, 0, 0, 1, 1, 1, 0, 0])
        """
        stride, summary = check_integer("stride", stride, 1), check_integer("summary", summary, 1)
        if summary > stride:
            raise FlashValueError(f"summary: must be at most stride, {stride}, got {summary}")
        return cls._from_pattern(Lq, Lk, block_size, q_offset, partial(patterns.fixed, stride, summary))

    @classmethod
    def butterfly(cls, Lq: int, Lk: int, block_size: BlockSize) -> BlockMask:
        """The fixed butterfly: block (r, c) where r = c or r and c differ in one binary digit.

        Where the grid isn't square, the index along its longer side is scaled down to the shorter one, which stretches
        the pattern.

        Parameters
        ----------
        Lq, Lk : int
        block_size : int or pair of int

        Notes
        -----
        Dao et al., "FlashAttention", arXiv:2205.14135, section 3.3; Chen et al., "Pixelated Butterfly",
        arXiv:2112.00029, section 3.2 (flat block butterfly).

        Examples
        --------
        >>> import flash
        >>> flash.BlockMask.butterfly(128, 128, 32).to_dense().astype(int)
        array([[1, 1, 1, 0],
               [1, 1, 0, 1],
               [1, 0, 1, 1],
               [0, 1, 1, 1]])
        """
        Lq, Lk, (block_q, block_k) = check_integer("Lq", Lq), check_integer("Lk", Lk), check_block_size(block_size)
        pattern = partial(patterns.butterfly, ceil_div(Lq, block_q), ceil_div(Lk, block_k))
        return cls.from_function(pattern, Lq, Lk, (block_q, block_k))

    @classmethod
    def random(cls, Lq: int, Lk: int, block_size: BlockSize, density: float, seed: int) -> BlockMask:
        """Exactly ``round(density * rows * cols)`` blocks, drawn uniformly without replacement from the whole grid.

        A row of the grid may stay empty. The same arguments give the same mask with one version of NumPy.

        Parameters
        ----------
        Lq, Lk : int
        block_size : int or pair of int
        density : float
            From 0 to 1.
        seed : int
            At least 0.

        Examples
        --------
        >>> import flash
        >>> flash.BlockMask.random(1024, 1024, 64, density=0.25, seed=0).nnz
        64
        """
        block_q, block_k = check_block_size(block_size)
        rows, cols = ceil_div(check_integer("Lq", Lq), block_q), ceil_div(check_integer("Lk", Lk), block_k)
        if not isinstance(density, Real):
            raise FlashTypeError(f"density: must be a number, got {density!r}")
        if not 0.0 <= density <= 1.0:
            raise FlashValueError(f"density: must be from 0 to 1, got {density}")
        generator = numpy.random.default_rng(check_integer("seed", seed))
        blocks = numpy.zeros(rows * cols, bool)
        blocks[generator.choice(blocks.size, round(density * blocks.size), replace=False, shuffle=False)] = True
        return cls.from_dense(blocks.reshape(rows, cols), (block_q, block_k), Lq=Lq, Lk=Lk)

    @classmethod
    def _from_pattern(
        cls, Lq: int, Lk: int, block_size: BlockSize, q_offset: int | None, pattern: Pattern
    ) -> BlockMask:
        Lq, Lk, (block_q, block_k) = check_integer("Lq", Lq), check_integer("Lk", Lk), check_block_size(block_size)
        offset = Lk - Lq if q_offset is None else check_integer("q_offset", q_offset, None)

        def of_blocks(row: Array, column: Array) -> Array:
            first_q, first_k = row * block_q, column * block_k
            last_q, last_k = numpy.minimum(first_q + block_q, Lq) - 1, numpy.minimum(first_k + block_k, Lk) - 1
            return pattern(first_q + offset, last_q + offset, first_k, last_k)

        return cls.from_function(of_blocks, Lq, Lk, (block_q, block_k))

    @property
    def block_size(self) -> tuple[int, int]:
        """The pair (block_q, block_k)."""
        return self.block_q, self.block_k

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading shape + (rows, cols)."""
        *leading, starts = self.row_start.shape
        return (*leading, starts - 1, ceil_div(self.Lk, self.block_k))

    @property
    def nnz(self) -> int:
        """How many blocks are listed, over all leading axes."""
        return int(self.columns.size)

    @property
    def density(self) -> float:
        """The share of blocks that is listed; 0 for an empty grid."""
        return self.nnz / max(1, math.prod(self.shape))

    @cached_property
    def T(self) -> BlockMask:
        """The transposed mask: queries and keys change places."""
        transposed = numpy.swapaxes(self.to_dense(), -1, -2)
        return BlockMask(self.block_k, self.block_q, self.Lk, self.Lq, *compress(transposed))

    @property
    def column_start(self) -> Array:
        """The int32 array, leading shape + (cols + 1,), of where each column's list starts and ends in `rows`."""
        return self.T.row_start

    @property
    def rows(self) -> Array:
        """The int32 array (nnz,) of the block rows of all columns, ascending within a column."""
        return self.T.columns

    def to_dense(self) -> Array:
        """The grid as a bool array of `shape`, True where a block is listed.

        Examples
        --------
        >>> import flash
        >>> flash.BlockMask.causal(64, 64, 32).to_dense()
        array([[ True, False],
               [ True,  True]])
        """
        return expand(self.row_start, self.columns, self.shape)

    def to(self, array: Array) -> BlockMask:
        """Bring the lists to where an array lives, once, and return this mask.

        Every call of `flash.attention` does it at need; do it yourself before a CUDA graph is captured. The mask keeps
        its copies, one a device.

        Parameters
        ----------
        array : NumPy, CuPy, PyTorch or JAX array
            A traced JAX array leaves the lists with NumPy, whose arrays are constants of the traced function.

        Examples
        --------
        >>> import numpy, flash
        >>> mask = flash.BlockMask.causal(64, 64, 32)
        >>> mask.to(numpy.zeros(3)) is mask
        True
        """
        self._lists_at(array)
        return self

    def lists_for(self, array: Array, N: tuple[int, ...], Hq: int) -> BlockLists:
        """The lists for a problem with leading shape N and Hq query heads, where `array` lives, as flash.h takes them.

        Parameters
        ----------
        array : NumPy, CuPy, PyTorch or JAX array
            As in `to`.
        N : tuple of int
        Hq : int

        Raises
        ------
        FlashValueError
            The mask's leading shape doesn't broadcast to N + (Hq,).

        Examples
        --------
        >>> import numpy, flash
        >>> flash.BlockMask.causal(64, 64, 32).lists_for(numpy.zeros(3), (5,), 8).row_start
        array([[[0, 1, 3]]], dtype=int32)
        """
        leading, wanted = self.shape[:-2], (*N, Hq)
        if _broadcast(leading, wanted) != wanted:
            raise FlashValueError(f"block_mask: leading shape must broadcast to {wanted}, got {leading}")
        *batch, heads = (1,) * (len(wanted) - len(leading)) + leading
        one_for_all = math.prod(batch) == 1
        if not one_for_all and tuple(batch) != N:
            return self._expanded((*N, heads)).lists_for(array, N, Hq)
        lists, B = self._lists_at(array), 1 if one_for_all else math.prod(N)
        return lists._replace(
            row_start=lists.row_start.reshape((B, heads, self.shape[-2] + 1)),
            column_start=lists.column_start.reshape((B, heads, self.shape[-1] + 1)),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the grid: listed blocks dark, and with leading axes the darker the more of them list a block.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Default: the current one.

        Returns
        -------
        matplotlib.axes.Axes
        """
        import matplotlib.pyplot

        ax = matplotlib.pyplot.gca() if ax is None else ax
        *leading, rows, cols = self.shape
        if rows and cols and math.prod(leading):
            share = self.to_dense().reshape(-1, rows, cols).mean(axis=0)
            extent = 0, cols * self.block_k, rows * self.block_q, 0
            ax.imshow(share, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
        ax.set(xlabel="key", ylabel="query", title=f"{self.density:.1%} of {self.block_q} x {self.block_k} blocks")
        return ax

    def __and__(self, other: BlockMask) -> BlockMask:
        return self._combined(other, numpy.logical_and)

    def __or__(self, other: BlockMask) -> BlockMask:
        return self._combined(other, numpy.logical_or)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockMask):
            return NotImplemented
        return (
            (self.block_size, self.shape) == (other.block_size, other.shape)
            and numpy.array_equal(self.row_start, other.row_start)
            and numpy.array_equal(self.columns, other.columns)
        )

    def __hash__(self) -> int:
        return hash((self.block_size, self.shape, self.nnz))

    def __repr__(self) -> str:
        return (
            f"BlockMask(Lq={self.Lq}, Lk={self.Lk}, block_size={self.block_size}, shape={self.shape}, nnz={self.nnz}, "
            f"density={self.density:.3f})"
        )

    def _combined(self, other: BlockMask, operation: Callable[[Array, Array], Array]) -> BlockMask:
        if not isinstance(other, BlockMask):
            return NotImplemented
        if other.block_size != self.block_size:
            raise FlashValueError(f"block_mask: block size must be {self.block_size} too, got {other.block_size}")
        if other.shape[-2:] != self.shape[-2:] or _broadcast(self.shape, other.shape) is None:
            raise FlashValueError(f"block_mask: shapes must broadcast, got {self.shape} and {other.shape}")
        # A mask made without lengths has whole blocks, so the smaller length is the one that somebody gave.
        Lq, Lk = min(self.Lq, other.Lq), min(self.Lk, other.Lk)
        return BlockMask.from_dense(operation(self.to_dense(), other.to_dense()), self.block_size, Lq=Lq, Lk=Lk)

    def _lists_at(self, array: Array) -> BlockLists:
        """The lists where an array lives, with this mask's leading shape."""
        place, put = place_of(array)
        if place not in self.lists_by_place:
            lists = self.row_start, self.columns, self.column_start, self.rows
            self.lists_by_place[place] = BlockLists(*(put(x) for x in lists))
        return self.lists_by_place[place]

    def _expanded(self, leading: tuple[int, ...]) -> BlockMask:
        """The mask with its leading shape broadcast, for when only some axes of N have size 1."""
        if leading not in self._expansions:
            blocks = numpy.broadcast_to(self.to_dense(), leading + self.shape[-2:])
            self._expansions[leading] = BlockMask.from_dense(blocks, self.block_size, Lq=self.Lq, Lk=self.Lk)
        return self._expansions[leading]


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return numpy.broadcast_shapes(a, b)
    except ValueError:
        return None


def _length(name: str, given: int | None, blocks: int, size: int) -> int:
    length = blocks * size if given is None else check_integer(name, given)
    if ceil_div(length, size) != blocks:
        raise FlashValueError(f"{name}: must make {blocks} blocks of {size}, as blocks has, got {length}")
    return length
