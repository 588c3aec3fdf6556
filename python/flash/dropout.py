"""Dropout as a pure function of (seed, batch, head, query, key), in plain array operations.

Philox4x32-10 with key (seed low, seed high) and counter (j >> 1, i >> 1, h, b) gives four words for a 2 x 2 square of
score positions; position (i, j) takes word 2 * (i & 1) + (j & 1) and is kept when word >= round(dropout * 2^32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def philox4x32(counter: Sequence[Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Four random 32-bit words for each counter: Philox4x32-10.

    Parameters
    ----------
    counter : four uint64 arrays
        The words of the counter, each below 2^32. They broadcast against each other.
    key : two integers
        Each below 2^32.

    Returns
    -------
    four uint64 arrays, each value below 2^32

    Notes
    -----
    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3. The key is a Python
    integer and the words are 64 bits wide so that one array product holds both halves of a 32 x 32 bit product.

    Examples
    --------
    >>> import numpy
    >>> from flash.dropout import philox4x32
    >>> [hex(word) for word in philox4x32([numpy.uint64(0)] * 4, (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    multiplier0, multiplier1, low, half = (numpy.uint64(x) for x in (*_MULTIPLIERS, _LOW, 32))
    for n in range(_ROUNDS):
        key0, key1 = (numpy.uint64((word + n * weyl) & _LOW) for word, weyl in zip(key, _WEYL, strict=True))
        product0, product1 = c0 * multiplier0, c2 * multiplier1
        c0, c1, c2, c3 = (product1 >> half) ^ c1 ^ key0, product1 & low, (product0 >> half) ^ c3 ^ key1, product0 & low
    return c0, c1, c2, c3


def dropout_words(seed: Any, shape: Sequence[int], xp: Any = numpy) -> Any:
    """The random 32-bit word that decides each position, as uint64.

    Parameters
    ----------
    seed : int in [0, 2^64) or a one-element integer array
    shape : sequence of int
        (..., H, Lq, Lk); the leading axes, merged, are the batch that the counter counts.
    xp : module
        `numpy` or `cupy`: where the array is made.
    """
    *batch, H, Lq, Lk = shape
    B = math.prod(batch)
    seed = int(seed.item() if hasattr(seed, "item") else seed)
    b, h, i, j = (xp.arange(n, dtype=xp.uint64) for n in (B, H, (Lq + 1) // 2, (Lk + 1) // 2))
    counter = j, i[:, None], h[:, None, None], b[:, None, None, None]
    words = philox4x32(counter, (seed & _LOW, seed >> 32 & _LOW))
    squares = xp.stack(words, axis=-1).reshape(B, H, len(i), len(j), 2, 2)
    grid = xp.moveaxis(squares, 4, 3).reshape(B, H, 2 * len(i), 2 * len(j))
    return grid[:, :, :Lq, :Lk].reshape(tuple(shape))


def dropout_mask(seed: Any, dropout: float, shape: Sequence[int], xp: Any = numpy) -> Any:
    """Which positions of the score matrix dropout keeps.

    Parameters
    ----------
    seed : int in [0, 2^64) or a one-element integer array
    dropout : float in [0, 1]
        The share that is dropped: 0 keeps every position, 1 none.
    shape : sequence of int
        (..., H, Lq, Lk); the leading axes, merged, are the batch.
    xp : module
        `numpy` or `cupy`: where the array is made.

    Returns
    -------
    bool array of `shape`, True = kept

    Examples
    --------
    >>> from flash.dropout import dropout_mask
    >>> int(dropout_mask(seed=7, dropout=0.25, shape=(1, 100, 100)).sum())
    7468
    """
    threshold = int(dropout * 2.0**32 + 0.5)
    return dropout_words(seed, shape, xp) >= numpy.uint64(threshold)
