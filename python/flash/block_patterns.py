"""What each pattern of `BlockMask` lists, and the checks of its arguments.

A pattern is defined on elements, query position p = i + q_offset against key j, and asked about blocks: it lists the
blocks with at least one visible element, in a few operations on the positions of the blocks' first and last elements.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy

from flash.exceptions import FlashTypeError, FlashValueError

Array: TypeAlias = Any
BlockSize: TypeAlias = int | tuple[int, int]
Window: TypeAlias = tuple[int | None, int | None]
# From the positions of the blocks' first and last query, (R, 1), and first and last key, (1, C), both ends included.
Pattern: TypeAlias = Callable[[Array, Array, Array, Array], Array]


def sliding_window(
    left: int | None, right: int | None, first_q: Array, last_q: Array, first_k: Array, last_k: Array
) -> Array:
    """Visible where p - left <= j <= p + right."""
    # The windows of neighbouring queries touch: those of a block are one interval of keys.
    after_left = True if left is None else last_k >= first_q - left
    before_right = True if right is None else first_k <= last_q + right
    return numpy.logical_and(after_left, before_right)


def local_global(
    left: int | None, right: int | None, end: int, first_q: Array, last_q: Array, first_k: Array, last_k: Array
) -> Array:
    """Visible in the sliding window, and where j < end or 0 <= p < end."""
    near = sliding_window(left, right, first_q, last_q, first_k, last_k)
    return near | (first_k < end) | ((first_q < end) & (last_q >= 0))


def strided(stride: int, first_q: Array, last_q: Array, first_k: Array, last_k: Array) -> Array:
    """Visible where d = p - j >= 0, and d <= stride or d % stride == 0."""
    # The distances in a block are all integers of an interval.
    nearest, farthest = numpy.maximum(first_q - last_k, 0), last_q - first_k
    return (nearest <= farthest) & ((nearest <= stride) | (farthest // stride * stride >= nearest))


def fixed(stride: int, summary: int, first_q: Array, last_q: Array, first_k: Array, last_k: Array) -> Array:
    """Visible where j <= p, and p // stride == j // stride or j % stride >= stride - summary."""
    # Of the keys that some query of the block may see, the last one decides: its stretch reaches furthest, and the
    # last summary key is it or ends the stretch before.
    key = numpy.minimum(last_k, last_q)
    stretch = key // stride * stride
    same_stretch = first_q < stretch + stride
    in_summary = (key - stretch >= stride - summary) | (stretch - 1 >= first_k)
    return (key >= first_k) & (same_stretch | in_summary)


def butterfly(rows: int, cols: int, row: Array, column: Array) -> Array:
    """Blocks (not elements) of a rows x cols grid whose indices differ in at most one binary digit."""
    side = min(rows, cols)
    differing = (row * side // max(1, rows)) ^ (column * side // max(1, cols))
    return differing & (differing - 1) == 0


def ceil_div(a: int, b: int) -> int:
    """Quotient, rounded up."""
    return -(-a // b)


def check_integer(name: str, value: Any, lowest: int | None = 0) -> int:
    """The argument as an int, or an error."""
    try:
        number = operator.index(value)
    except TypeError:
        raise FlashTypeError(f"{name}: must be an integer, got {value!r}") from None
    if lowest is not None and number < lowest:
        raise FlashValueError(f"{name}: must be at least {lowest}, got {number}")
    return number


def check_block_size(value: BlockSize) -> tuple[int, int]:
    """The pair (block_q, block_k), or an error."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise FlashValueError(f"block_size: must be an integer or a pair of integers, got {value!r}")
    block_q, block_k = (check_integer("block_size", size, None) for size in pair)
    for size in (block_q, block_k):
        if size not in (16, 32, 64, 128, 256):
            raise FlashValueError(f"block_size: must be a power of two from 16 to 256, got {size}")
    return block_q, block_k


def check_window(value: Window) -> Window:
    """The pair (left, right), or an error."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise FlashValueError(f"window: must be a pair (left, right), got {value!r}")
    left, right = (None if side is None else check_integer("window", side) for side in value)
    return left, right
