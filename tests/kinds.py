"""Array libraries as tests see them: from a NumPy array to theirs and back. Importing this imports none of them.

A backend is where the mathematics runs, and the numeric sweep goes through each backend once: NumPy stands for the CPU.
CUDA kernels run on a GPU through CuPy, or without one on the emulator.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import emulated
import numpy
import pytest
from problems import DTYPES, Shape, random_cases


class NumPy:
    """NumPy arrays, and the base class of the others."""

    name = "numpy"
    backend = "cpu"
    dtypes: ClassVar[tuple[str, ...]] = DTYPES

    # What the sweep may take. The emulator is slow: there cases are smaller, one of several values is taken in turn
    # (mark `in_turn`), and lengths above 257 meet short ones only.
    most_scores = 1 << 60

    def random_cases(self) -> Any:
        """A strategy of hypothesis."""
        return random_cases(self.dtypes)

    def share(self, count: int) -> int:
        """How many of so many random cases."""
        return count

    def smaller(self, shape: Shape, **sizes: Any) -> Shape:
        """The shape, and where there is little time these sizes in it."""
        return shape

    def unwatched(self) -> Any:
        """A context for what would take too long with races looked for."""
        return nullcontext()

    def devices(self) -> list[Any]:
        """Contexts, one for each device that there is."""
        return [nullcontext()]

    def orders(self) -> list[Any]:
        """Contexts in which results must be the same, if they are the same on every run."""
        return [nullcontext(), nullcontext()]

    def require(self) -> None:
        """Skips the test where the library or the device isn't there."""

    def array(self, x: numpy.ndarray) -> Any:
        """A NumPy array as this library's."""
        return x

    def numpy(self, x: Any) -> numpy.ndarray:
        """This library's array as NumPy's."""
        return x

    def vast(self, bytes_: int, path: Path) -> Any:
        """More memory than there may be, of which little is touched. path: of a file to keep it in."""
        with open(path, "wb") as file:
            file.truncate(bytes_)
        return numpy.asarray(numpy.memmap(path, numpy.uint8, "r+"))

    def within(self, memory: Any, x: numpy.ndarray, strides: list[int]) -> Any:
        """A copy of x in the beginning of an array of bytes, with these strides in bytes."""
        view = numpy.lib.stride_tricks.as_strided(memory.view(x.dtype), x.shape, strides)
        view[...] = x
        return view


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
        if emulated.lib is not None:
            pytest.skip("the emulator stands in for CuPy here")
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
        """With x's strides and alignment, and all that lies between its elements."""
        cupy = importlib.import_module("cupy")
        if x.flags.c_contiguous and x.ctypes.data % 16 == 0:
            return cupy.asarray(x)
        low, high = numpy.lib.array_utils.byte_bounds(x)
        shift = low % 16  # as far from where a vector load may begin
        memory = cupy.empty((shift + high - low,), "u1")
        memory[shift:] = cupy.asarray(numpy.ndarray(high - low, "u1", (ctypes.c_char * (high - low)).from_address(low)))
        return cupy.ndarray(x.shape, x.dtype, memory.data + (shift + x.ctypes.data - low), x.strides)

    def numpy(self, x: Any) -> numpy.ndarray:
        cupy = importlib.import_module("cupy")
        assert isinstance(x, cupy.ndarray)
        return cupy.asnumpy(x)

    def devices(self) -> list[Any]:
        cuda = importlib.import_module("cupy").cuda
        return [cuda.Device(number) for number in range(cuda.runtime.getDeviceCount())]

    def vast(self, bytes_: int, path: Path) -> Any:
        return importlib.import_module("cupy").empty((bytes_,), "u1")

    def within(self, memory: Any, x: numpy.ndarray, strides: list[int]) -> Any:
        cupy = importlib.import_module("cupy")
        view = cupy.ndarray(x.shape, x.dtype, memory.data, strides)
        view[...] = cupy.asarray(x)
        return view


class Emulated(CuPy):
    """CUDA without a GPU: see emulated.py."""

    name = "emulated"
    most_scores = 140_000

    def random_cases(self) -> Any:
        return random_cases(self.dtypes, longest=129, most_scores=20_000)

    def share(self, count: int) -> int:
        return count // 4

    def smaller(self, shape: Shape, **sizes: Any) -> Shape:
        return shape._replace(**sizes)

    def unwatched(self) -> Any:
        return emulated.running(checks=0)

    def orders(self) -> list[Any]:
        return [
            emulated.running(emulated.REVERSE, emulated.EAGER),
            emulated.running(emulated.RANDOM, emulated.RANDOM, seed=1),
        ]

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
