"""How a `BlockMask` stores its blocks, and how the lists come to the arrays of a call.

Row r of the grid lists the block columns columns[row_start[r]] up to columns[row_start[r + 1] - 1], ascending; the
backward reads the transpose, column_start and rows. It is what `flash_block_mask` of flash.h takes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

import numpy

from flash.exceptions import FlashValueError

Array: TypeAlias = Any

_INT32_MAX = 2**31 - 1


class BlockLists(NamedTuple):
    """The lists of a block mask, all int32. B and Hq are 1 where all sequences or heads share a list."""

    row_start: Array  # (B|1, Hq|1, rows + 1)
    columns: Array  # (nnz,)
    column_start: Array  # (B|1, Hq|1, cols + 1)
    rows: Array  # (nnz,)


def compress(blocks: Array) -> tuple[Array, Array]:
    """Where the list of each row starts and ends, leading shape + (rows + 1,), and the columns of all rows, (nnz,)."""
    *leading, rows, cols = blocks.shape
    counts = numpy.count_nonzero(blocks, axis=-1).ravel()
    ends = numpy.concatenate([[0], numpy.cumsum(counts)])
    if ends[-1] > _INT32_MAX:
        raise FlashValueError(f"blocks: must list at most {_INT32_MAX} blocks, got {ends[-1]}")
    first_row = numpy.arange(math.prod(leading))[:, None] * rows
    start = ends[first_row + numpy.arange(rows + 1)].reshape((*leading, rows + 1))
    columns = numpy.nonzero(blocks.reshape(counts.size, cols))[1]
    return start.astype(numpy.int32), columns.astype(numpy.int32)


def expand(start: Array, columns: Array, shape: tuple[int, ...]) -> Array:
    """The bool array of `shape`, leading shape + (rows, cols), from what `compress` returns."""
    blocks = numpy.zeros(shape, bool)
    row = numpy.repeat(numpy.arange(math.prod(shape[:-1])), numpy.diff(start).ravel())
    blocks.reshape(-1)[row * shape[-1] + columns] = True
    return blocks


def place_of(array: Array) -> tuple[Hashable, Callable[[Array], Array]]:
    """A name for where an array lives (its kind and device), and a function that brings a NumPy array there."""
    torch, cupy, jax = (sys.modules.get(name) for name in ("torch", "cupy", "jax"))
    if torch is not None and isinstance(array, torch.Tensor):
        device = array.device
        # A thread of its own has none of the caller's modes: what a mask keeps must be a plain tensor also where the
        # first call is one under inference mode, or one that torch.export traces.
        return ("torch", str(device)), lambda x: _apart(lambda: torch.from_numpy(x.copy()).to(device))
    if cupy is not None and isinstance(array, cupy.ndarray):

        def put(x: Array) -> Array:
            with array.device:
                copy = cupy.asarray(x)
                cupy.cuda.get_current_stream().synchronize()  # the mask keeps it, for calls on other streams too
            return copy

        return ("cupy", array.device.id), put
    if jax is not None and isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
        (device,) = array.devices()
        return ("jax", device), lambda x: jax.device_put(x, device)
    return ("numpy",), lambda x: x


def _apart(function: Callable[[], Array]) -> Array:
    """What a function returns, called in a thread of its own."""
    from concurrent.futures import ThreadPoolExecutor  # 15 ms, which `import flash` does without

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(function).result()
