"""Errors of attention in 16 and 8 bits, with FlashAttention-3's inputs: for the tests, and for docs/paper.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import ml_dtypes
import numpy

from flash import reference

FLOAT8, BFLOAT16 = numpy.dtype(ml_dtypes.float8_e4m3fn), numpy.dtype(ml_dtypes.bfloat16)


@cache
def inputs(outliers: bool) -> tuple[numpy.ndarray, ...]:
    """Those of section 4.3, in float64: N(0, 1), and N(0, 100) added to one number in a thousand."""
    rng = numpy.random.default_rng(20)
    arrays = []
    for _ in range(3):
        x = rng.normal(size=(1, 1024, 2, 128))
        noise = 10.0 * rng.normal(size=x.shape) * (rng.random(x.shape) < 0.001)
        arrays.append(x + noise if outliers else x)
    return (arrays[0][:, :128], *arrays[1:])


def quantized(x: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """With a factor for each head, whose largest number becomes 448."""
    factor = (numpy.abs(x).max(axis=(1, 3)) / 448.0).astype("f4")
    return (x / factor[:, None, :, None]).astype(FLOAT8), factor


def rotation(d: int) -> numpy.ndarray:
    """Random signs, then a Hadamard matrix: it spreads an outlier over all of its row."""
    matrix = numpy.ones((1, 1))
    while len(matrix) < d:
        matrix = numpy.block([[matrix, matrix], [matrix, -matrix]])
    return numpy.random.default_rng(21).choice((-1.0, 1.0), d)[:, None] * matrix / math.sqrt(d)


def rmse(o: numpy.ndarray, exact: numpy.ndarray) -> float:
    return float(numpy.sqrt(numpy.mean(numpy.square(o.astype("f8") - exact))))


def errors(attention: Callable[..., numpy.ndarray], outliers: bool, with_float8: bool = True) -> dict[str, float]:
    """Of o = attention(q, k, v, **options) on NumPy's arrays, "flash", beside standard attention in the same dtype."""
    q, k, v = inputs(outliers)
    exact = reference.attention(q, k, v, dtype="f8")
    found = {}
    for dtype in (numpy.dtype("float16"), BFLOAT16):
        rounded = [x.astype(dtype) for x in (q, k, v)]
        found[f"{dtype.name}, standard attention"] = rmse(reference.attention(*rounded), exact)
        found[f"{dtype.name}, flash"] = rmse(attention(*rounded), exact)
    matrix = rotation(q.shape[-1])
    for name, arrays in {"": (q, k, v), ", q and k rotated": (q @ matrix, k @ matrix, v)}.items():
        if not with_float8:
            break
        (q8, q_scale), (k8, k_scale), (v8, v_scale) = map(quantized, arrays)
        factors = {"q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale}
        o = attention(q8, k8, v8, **factors)
        found[f"float8, flash{name}"] = rmse(o, exact)
        if not name:
            in_float64 = reference.attention(q8, k8, v8, **factors, dtype="f8")
            found["float8, mathematics in float64"] = rmse(in_float64, exact)
            found["float8, flash, against float64 on the stored numbers"] = rmse(o, in_float64)
    return found
