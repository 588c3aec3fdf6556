"""Array libraries as tests see them: from a NumPy array to theirs and back. Importing this imports none of them.

A backend is where the mathematics runs, and the numeric sweep goes through each backend once: NumPy stands for the CPU.
CUDA kernels run on a GPU through CuPy, or without one on the emulator.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any, ClassVar

import emulated
import numpy
import pytest
from problems import DTYPES


class NumPy:
    """NumPy arrays, and the base class of the others."""

    name = "numpy"
    backend = "cpu"
    dtypes: ClassVar[tuple[str, ...]] = DTYPES
    longest = 1 << 30  # the largest length that the sweep may ask for

    def require(self) -> None:
        """Skips the test where the library or the device isn't there."""

    def array(self, x: numpy.ndarray) -> Any:
        """A NumPy array as this library's."""
        return x

    def numpy(self, x: Any) -> numpy.ndarray:
        """This library's array as NumPy's."""
        return x


class PyTorch(NumPy):
    name = "torch"

    def require(self) -> None:
        if importlib.util.find_spec("torch") is None:
            pytest.skip("PyTorch is not installed")

    def array(self, x: numpy.ndarray) -> Any:
        import torch

        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(numpy.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(x.copy())

    def numpy(self, x: Any) -> numpy.ndarray:
        import ml_dtypes
        import torch

        assert type(x) is torch.Tensor and x.device.type == "cpu"
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype is torch.bfloat16 else x.numpy()


class Jax(NumPy):
    name = "jax"
    dtypes = DTYPES[:3]  # float64 only where the whole process uses it

    def require(self) -> None:
        if importlib.util.find_spec("jax") is None:
            pytest.skip("JAX is not installed")

    def array(self, x: numpy.ndarray) -> Any:
        import jax

        return jax.device_put(x.astype("i4") if x.dtype == "i8" else x, jax.devices("cpu")[0])

    def numpy(self, x: Any) -> numpy.ndarray:
        import jax

        assert isinstance(x, jax.Array) and {device.platform for device in x.devices()} == {"cpu"}
        return numpy.asarray(x)


class CuPy(NumPy):
    name = "cupy"
    backend = "cuda"
    dtypes = DTYPES[:3]

    def require(self) -> None:
        if importlib.util.find_spec("cupy") is None:
            pytest.skip("CuPy is not installed")
        import flash

        cupy = importlib.import_module("cupy")
        try:
            x = cupy.zeros((1, 1, 8), "f4")
        except Exception as error:
            pytest.skip(f"CuPy has no CUDA device: {error}")
        try:
            flash.attention(x, x, x)
        except flash.UnsupportedError as error:
            pytest.skip(f"no CUDA kernel here: {error}")

    def array(self, x: numpy.ndarray) -> Any:
        return importlib.import_module("cupy").asarray(x)

    def numpy(self, x: Any) -> numpy.ndarray:
        cupy = importlib.import_module("cupy")
        assert isinstance(x, cupy.ndarray)
        return cupy.asnumpy(x)


class Emulated(CuPy):
    """CUDA without a GPU: see emulated.py."""

    name = "emulated"
    longest = 257

    def require(self) -> None:
        if emulated.lib is None:
            pytest.skip("FLASH_LIBRARY is not an emulated library; test_emulated.py runs these tests with one")
        if "cupy" not in sys.modules:
            emulated.install()


def runs(kind: NumPy) -> bool:
    try:
        kind.require()
    except pytest.skip.Exception:
        return False
    return True


KINDS = [NumPy(), PyTorch(), Jax(), CuPy(), Emulated()]
# Only what runs: `test_option_with_every_kind_of_array` says what doesn't, and why.
BACKENDS = [kind for kind in KINDS if kind.name in ("numpy", "cupy", "emulated") and runs(kind)]
