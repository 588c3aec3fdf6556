"""The array libraries: their arrays, their clocks, and attention and its gradients as calls that can be timed.

Attention is given to NumPy and CuPy as a forward and a backward, to PyTorch and JAX as one function of q, k and v that
they differentiate themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import numpy

from flash.arrays import numpy_dtype
from flash.exceptions import FlashTypeError
from flash.explain import show_config

Array: TypeAlias = Any
Call: TypeAlias = Callable[[], Any]

FLUSHED_BYTES = 256 << 20  # more than any L2 cache


class Missing(Exception):
    """Why something is not measured, for the user to read."""


class Plain(NamedTuple):
    """Attention with the signatures of `flash.attention` and `flash.attention_backward`, where nothing differentiates.

    recomputes: the backward computes the forward again, so that it is both.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    recomputes: bool = False


class NumPy:
    """NumPy, and what holds for all: the host's clock."""

    name, title = "numpy", "NumPy"
    devices: tuple[str, ...] = ("cpu",)

    def __init__(self, device: str) -> None:
        if device not in self.devices:
            raise Missing(f"{self.title} has no arrays on {'the CPU' if device == 'cpu' else 'CUDA'}")
        self.device = device
        try:
            self.module: Any = import_module(self.name)
        except ImportError:
            raise Missing(f"{self.title} is not installed") from None
        except Exception as error:  # whatever a broken installation raises
            raise Missing(f"{self.title} can't be imported: {first_line(error)}") from error
        self.prepare()

    def prepare(self) -> None:
        """What has to be done once."""

    def device_name(self) -> str | None:
        """The GPU's name."""
        return None

    def array(self, values: Array, dtype: str) -> Array:
        """Values of NumPy as an array of this library, rounded to dtype."""
        try:
            return values.astype(numpy_dtype(dtype), copy=False)
        except FlashTypeError:
            raise Missing(f"{dtype} in NumPy needs the package ml_dtypes") from None

    def constant(self, values: Array) -> Array:
        """The same with the dtype that the values have."""
        return values

    def to_numpy(self, x: Array) -> Array:
        """As float32."""
        return numpy.asarray(x, dtype=numpy.float32)

    def call_of(self, attention: Any, operation: str, q: Array, k: Array, v: Array, do: Array) -> Call:
        """The operation as a call, which returns (o,) or (dq, dk, dv)."""
        if operation == "forward":
            return lambda: (attention.forward(q, k, v),)
        if attention.recomputes:
            if operation == "backward":
                raise Missing("its backward computes the forward, too: see forward+backward")
            return lambda: attention.backward(do, q, k, v)[:3]
        if operation == "backward":
            saved = attention.forward(q, k, v, return_lse=True)
            return lambda: attention.backward(do, q, k, v, *saved)[:3]
        return lambda: attention.backward(do, q, k, v, *attention.forward(q, k, v, return_lse=True))[:3]

    def product(self, size: int, dtype: str) -> Call:
        """The product of two square matrices."""
        values = numpy.random.default_rng(0).standard_normal((2, size, size), numpy.float32)
        left, right = (self.array(x, dtype) for x in values)
        return lambda: left @ right

    def wait(self, result: Any) -> None:
        """Until a call has come to its end."""

    def start(self, call: Call, count: int = 1) -> Callable[[], float]:
        """Starts some calls; what is returned waits for their end and tells how many seconds one took."""
        begin = time.perf_counter()
        for _ in range(count):
            self.wait(call())
        took = (time.perf_counter() - begin) / count
        return lambda: took


def start_between(
    first: Any, last: Any, milliseconds: Callable[[Any, Any], float], call: Call, count: int
) -> Callable[[], float]:
    """As `NumPy.start`, by the GPU's clock: two events on the current stream, and the time from one to the other."""
    first.record()
    for _ in range(count):
        call()
    last.record()

    def read() -> float:
        last.synchronize()
        return float(milliseconds(first, last)) / 1e3 / count

    return read


class CuPy(NumPy):
    """CuPy, with the clock of the GPU."""

    name, title, devices = "cupy", "CuPy", ("cuda",)

    def prepare(self) -> None:
        try:
            self.flushed = self.module.empty(FLUSHED_BYTES, numpy.uint8)
        except Exception as error:  # no driver, no GPU
            raise Missing(f"CuPy finds no GPU: {first_line(error)}") from error

    def device_name(self) -> str | None:
        return str(self.module.cuda.runtime.getDeviceProperties(self.flushed.device.id)["name"].decode())

    def array(self, values: Array, dtype: str) -> Array:
        return self.module.asarray(super().array(values, dtype))

    def constant(self, values: Array) -> Array:
        return self.module.asarray(values)

    def to_numpy(self, x: Array) -> Array:
        return super().to_numpy(x.get())

    def wait(self, result: Any) -> None:
        self.module.cuda.get_current_stream().synchronize()

    def start(self, call: Call, count: int = 1) -> Callable[[], float]:
        self.flushed.fill(0)
        cuda = self.module.cuda
        return start_between(cuda.Event(), cuda.Event(), cuda.get_elapsed_time, call, count)


class Torch(NumPy):
    """PyTorch."""

    name, title, devices = "torch", "PyTorch", ("cpu", "cuda")

    def prepare(self) -> None:
        self.module.set_num_threads(cpu_facts()["threads"])  # it may have counted other cores than OpenMP
        if self.device == "cuda":
            if not self.module.cuda.is_available():
                raise Missing("PyTorch finds no GPU")
            self.flushed = self.module.empty(FLUSHED_BYTES, dtype=self.module.uint8, device="cuda")

    def device_name(self) -> str | None:
        return str(self.module.cuda.get_device_name()) if self.device == "cuda" else None

    def array(self, values: Array, dtype: str) -> Array:
        return self.constant(values).to(getattr(self.module, dtype))

    def constant(self, values: Array) -> Array:
        return self.module.from_numpy(values).to(self.device)

    def to_numpy(self, x: Array) -> Array:
        return x.detach().float().cpu().numpy()

    def call_of(self, attention: Any, operation: str, q: Array, k: Array, v: Array, do: Array) -> Call:
        if operation == "forward":
            return lambda: (attention(q, k, v),)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        gradients = self.module.autograd.grad
        if operation == "backward":
            o = attention(*leaves)
            return lambda: gradients(o, leaves, do, retain_graph=True)
        return lambda: gradients(attention(*leaves), leaves, do)

    def wait(self, result: Any) -> None:
        if self.device == "cuda":
            self.module.cuda.synchronize()

    def start(self, call: Call, count: int = 1) -> Callable[[], float]:
        if self.device == "cpu":
            return super().start(call, count)
        self.flushed.zero_()
        first, last = (self.module.cuda.Event(enable_timing=True) for _ in range(2))
        return start_between(first, last, lambda first, last: first.elapsed_time(last), call, count)


class Jax(NumPy):
    """JAX, compiled. It has no clock on the GPU: there the host's includes the start of the call."""

    name, title, devices = "jax", "JAX", ("cpu", "cuda")

    def __init__(self, device: str) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other libraries need memory, too
        super().__init__(device)

    def prepare(self) -> None:
        try:
            self.place = self.module.devices(self.device)[0]
        except RuntimeError as error:
            raise Missing(f"JAX finds no {'CPU' if self.device == 'cpu' else 'GPU'}: {first_line(error)}") from error
        # float32 means float32: no shorter numbers inside products.
        self.module.config.update("jax_default_matmul_precision", "highest")
        numpy_of = self.module.numpy
        self.flush = self.module.jit(partial(numpy_of.zeros, FLUSHED_BYTES, numpy_of.uint8, device=self.place))

    def device_name(self) -> str | None:
        return str(self.place.device_kind) if self.device == "cuda" else None

    def array(self, values: Array, dtype: str) -> Array:
        return self.constant(values).astype(dtype)

    def constant(self, values: Array) -> Array:
        return self.module.device_put(values, self.place)

    def to_numpy(self, x: Array) -> Array:
        return numpy.asarray(x.astype("float32"))

    def call_of(self, attention: Any, operation: str, q: Array, k: Array, v: Array, do: Array) -> Call:
        jax = self.module
        if operation == "forward":
            forward = jax.jit(lambda q, k, v: (attention(q, k, v),))
            return lambda: forward(q, k, v)
        if operation == "backward":
            _, pull = jax.vjp(jax.jit(attention), q, k, v)
            backward = jax.jit(lambda pull, do: pull(do))
            return lambda: backward(pull, do)
        both = jax.jit(lambda q, k, v, do: jax.vjp(attention, q, k, v)[1](do))
        return lambda: both(q, k, v, do)

    def wait(self, result: Any) -> None:
        self.module.block_until_ready(result)

    def start(self, call: Call, count: int = 1) -> Callable[[], float]:
        if self.device == "cuda":
            self.wait(self.flush())
        return super().start(call, count)


def cpu_facts() -> dict[str, Any]:
    """What flash says of the CPU: its path and its threads."""
    facts: dict[str, Any] = (show_config(mode="dicts") or {})["cpu"]
    return facts


LIBRARIES: dict[str, type[NumPy]] = {library.name: library for library in (NumPy, CuPy, Torch, Jax)}


def first_line(error: BaseException) -> str:
    """What an exception says, in one line that isn't too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
