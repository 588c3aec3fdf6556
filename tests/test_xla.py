"""The handlers of src/xla.cpp with call frames made here instead of by XLA: without JAX, and for CUDA without a GPU."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p, cast, pointer
from typing import Any

import numpy
import pytest
from numeric import assert_same_bits
from problems import Case, Shape

import flash
from flash import _lib

OPERANDS = (
    "q", "k", "v", "mask", "bias", "alibi_slopes", "sinks", "q_lens", "kv_lens", "q_offset", "q_scale", "k_scale",
    "v_scale", "seed", "row_start", "columns", "column_start", "rows", "do", "o", "lse", "dlse",
)  # fmt: skip
CODES = {"bool": 1, "int32": 4, "int64": 5, "uint64": 9, "float16": 10, "float32": 11, "float64": 12, "bfloat16": 16}
EXECUTE, METADATA, SCALAR, BUFFER = 3, 1, 3, 1


def struct(name: str, *fields: tuple[str, Any]) -> type[Structure]:
    """A struct that starts with its size and its extensions."""
    return type(name, (Structure,), {"_fields_": [("size", c_size_t), ("extensions", c_void_p), *fields]})


Buffer = struct("Buffer", ("dtype", c_int), ("data", c_void_p), ("rank", c_int64), ("dims", POINTER(c_int64)))
Buffers = struct("Buffers", ("count", c_int64), ("types", POINTER(c_int)), ("buffers", POINTER(c_void_p)))
Attributes = struct(
    "Attributes", ("count", c_int64), ("types", POINTER(c_int)), ("names", POINTER(c_void_p)),
    ("values", POINTER(c_void_p)),
)  # fmt: skip
Version = struct("Version", ("major", c_int), ("minor", c_int))
Error = struct("Error", ("message", c_char_p), ("code", c_int))
Stream = struct("Stream", ("context", c_void_p), ("stream", c_void_p))
Allocate = struct("Allocate", ("context", c_void_p), ("bytes", c_size_t), ("alignment", c_size_t), ("data", c_void_p))
Free = struct("Free", ("context", c_void_p), ("bytes", c_size_t), ("data", c_void_p))
Function = ctypes.CFUNCTYPE(c_void_p, c_void_p)
Api = struct("Api", ("version", Version), ("internal", c_void_p), ("functions", Function * 11))
Frame = struct(
    "Frame", ("api", POINTER(Api)), ("context", c_void_p), ("stage", c_int), ("operands", Buffers),
    ("results", Buffers), ("attributes", Attributes),
)  # fmt: skip


class Name(Structure):
    _fields_ = [("text", c_char_p), ("length", c_size_t)]


class Scalar(Structure):
    _fields_ = [("dtype", c_int), ("value", c_void_p)]


class Metadata(Structure):
    _fields_ = [("size", c_size_t), ("version", Version), ("traits", c_uint32), ("later", c_int64)]


class MetadataExtension(Structure):
    _fields_ = [("size", c_size_t), ("type", c_int), ("next", c_void_p), ("metadata", POINTER(Metadata))]


class Xla:
    """What stands for XLA: makes frames, lends memory, and keeps the message of an error."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.lent, self.message, self.code = kind, {}, "", 0
        self.stream = 0 if kind.name == "numpy" else None
        api = Api(ctypes.sizeof(Api), None, Version(ctypes.sizeof(Version), None, 0, 3))
        functions = {0: self.error_create, 4: self.stream_get, 9: self.allocate, 10: self.free}
        self.keep = [Function(functions.get(n, self.not_asked_for)) for n in range(11)]
        api.functions = (Function * 11)(*self.keep)
        self.api = api

    def not_asked_for(self, _: int) -> int:
        raise AssertionError("a function that the handlers do without")

    def error_create(self, address: int) -> int:
        error = cast(address, POINTER(Error)).contents
        self.message, self.code = error.message.decode(), error.code
        return 0xE  # a pointer that isn't NULL

    def stream_get(self, address: int) -> int:
        request = cast(address, POINTER(Stream)).contents
        assert request.context == 0xC
        request.stream = None
        self.stream = 0
        return 0

    def allocate(self, address: int) -> int:
        request = cast(address, POINTER(Allocate)).contents
        assert request.context == 0xC and request.alignment in (1, 2, 4, 8, 16)  # as XLA checks it
        memory = self.kind.array(numpy.full(request.bytes, 0xFF, "u1"))
        request.data = address_of(memory)
        self.lent[request.data] = memory, request.bytes
        return 0

    def free(self, address: int) -> int:
        request = cast(address, POINTER(Free)).contents
        assert self.lent.pop(request.data)[1] == request.bytes
        return 0

    def buffers(self, arrays: list[Any]) -> Any:
        made = [
            Buffer(
                ctypes.sizeof(Buffer), None, CODES[x.dtype.name], address_of(x), x.ndim, (c_int64 * x.ndim)(*x.shape)
            )
            for x in arrays
        ]
        self.keep += made
        pointers = (c_void_p * len(made))(*(ctypes.addressof(x) for x in made))
        return Buffers(ctypes.sizeof(Buffers), None, len(made), (c_int * len(made))(*[BUFFER] * len(made)), pointers)

    def attributes(self, given: dict[str, Any]) -> Any:
        names, values = [], []
        for name, value in sorted(given.items()):
            memory = numpy.array(value)
            self.keep += [memory]
            names.append(Name(name.encode(), len(name)))
            values.append(Scalar(CODES[memory.dtype.name], memory.ctypes.data))
        self.keep += names + values
        count, size = len(names), ctypes.sizeof(Attributes)
        pointers = [(c_void_p * count)(*map(ctypes.addressof, things)) for things in (names, values)]
        return Attributes(size, None, count, (c_int * count)(*[SCALAR] * count), *pointers)

    def call(self, direction: str, operands: dict[str, Any], results: list[Any], **attributes: Any) -> bool:
        """Whether a handler of this kind's backend says that all is well."""
        ordered = {name: operands[name] for name in OPERANDS if name in operands}
        attributes["given"] = numpy.uint64(sum(1 << OPERANDS.index(name) for name in ordered))
        frame = Frame(ctypes.sizeof(Frame), None, pointer(self.api), 0xC, EXECUTE)
        frame.operands, frame.results = self.buffers([*ordered.values()]), self.buffers(results)
        frame.attributes = self.attributes(SCALARS | attributes)
        ok = not handler(self.kind, direction)(ctypes.byref(frame))
        assert not self.lent
        return ok


SCALARS = dict.fromkeys(("scale", "softcap", "dropout"), numpy.float64(0))
SCALARS |= dict.fromkeys(("q_offset", "window_left", "window_right", "block_q", "block_k"), numpy.int64(0))
SCALARS |= dict.fromkeys(("seed", "flags"), numpy.uint64(0))


def handler(kind: Any, direction: str) -> Any:
    middle = "" if kind.backend == "cpu" else "cuda_"
    function = getattr(_lib.lib, f"flash_xla_{middle}{direction}")
    return ctypes.CFUNCTYPE(c_void_p, c_void_p)(int(_lib.ffi.cast("uintptr_t", function)))


def address_of(x: Any) -> int:
    return x.ctypes.data if isinstance(x, numpy.ndarray) else x.data.ptr


@pytest.mark.sanitize
def test_results_are_those_of_flash_attention(backend):
    """With operands of every group, on the CPU and on CUDA, with the stream and the memory that XLA lends."""
    names = ("bias", "sinks", "kv_lens", "block_mask")
    problem = Case(Shape((2,), 33, 49, 4, 2, 16, 8), "float32", names).make()
    problem.options["kv_lens"] = problem.options["kv_lens"].astype("i4")
    o, vjp = flash.attention_vjp(*problem.qkv, **problem.options, dropout=0.2, seed=9, causal=True, return_lse=True)
    mask = problem.options.pop("block_mask")
    given = dict(zip("qkv", problem.qkv, strict=True)) | problem.options | {"seed": numpy.array(9, "i4")}
    given |= mask.lists_for(problem.q, (2,), 4)._asdict()
    operands = {name: backend.array(x) for name, x in given.items()}
    scalars = {"dropout": numpy.float64(0.2), "flags": numpy.uint64(_lib.lib.FLASH_CAUSAL)}
    scalars |= {"block_q": numpy.int64(mask.block_q), "block_k": numpy.int64(mask.block_k)}

    xla = Xla(backend)
    results = [backend.array(numpy.full_like(x, numpy.nan)) for x in o]
    assert xla.call("forward", operands, results, **scalars), xla.message
    assert xla.stream is not None
    assert xla.call("forward", operands, results[:1], **scalars), xla.message
    made = tuple(map(backend.numpy, results))
    on_backend = flash.attention(
        *(operands[x] for x in "qkv"), bias=operands["bias"], sinks=operands["sinks"], kv_lens=operands["kv_lens"],
        block_mask=mask, dropout=0.2, seed=9, causal=True, return_lse=True,
    )  # fmt: skip
    assert_same_bits(made, tuple(map(backend.numpy, on_backend)))

    operands |= {
        "do": backend.array(problem.do),
        "dlse": backend.array(problem.dlse),
        "o": results[0],
        "lse": results[1],
    }
    wanted = vjp(problem.do, problem.dlse)
    outputs = [backend.array(numpy.full_like(x, numpy.nan)) for x in wanted]
    assert xla.call("backward", operands, outputs, wanted=numpy.uint64(31), **scalars), xla.message
    for actual, expected in zip(map(backend.numpy, outputs), wanted, strict=True):
        numpy.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    alone = backend.array(numpy.full_like(wanted.dbias, numpy.nan))
    assert xla.call("backward", operands, [alone], wanted=numpy.uint64(8), **scalars), xla.message
    numpy.testing.assert_allclose(backend.numpy(alone), wanted.dbias, rtol=0, atol=1e-5)


@pytest.mark.sanitize
def test_errors_have_a_code_and_a_message(backend):
    x = backend.array(numpy.ones((3, 1, 8), "f4"))
    wide, ints = backend.array(numpy.ones((3, 1, 9), "f4")), backend.array(numpy.ones((3, 1, 8), "i4"))
    xla = Xla(backend)
    cases = [
        ({"q": x, "k": wide, "v": x}, [x], {}, 3, "k: last axis must be 8 as in q, got 9"),
        ({"q": ints, "k": x, "v": x}, [x], {}, 3, "q: dtype must be "),
        ({"q": x, "k": x, "v": x}, [], {}, 3, "o: is NULL"),
        ({"q": x, "k": x, "v": x}, [x], {"softcap": numpy.float64(-1)}, 3, "softcap: "),
        ({"q": x, "k": x, "v": x}, [x], {"scale": numpy.int64(1)}, 3, "of different versions"),
        ({"q": x, "k": x, "v": x}, [x] * 6, {}, 3, "of different versions"),
        ({}, [x], {}, 3, "of different versions"),
    ]
    for operands, results, attributes, code, message in cases:
        assert not xla.call("forward", operands, results, **attributes)
        assert xla.code == code and message in xla.message
    double = backend.array(numpy.ones((3, 1, 8), "f8"))
    other = backend.array(numpy.ones((3, 1, 8), "f8"))
    ok = xla.call("forward", {"q": double, "k": double, "v": double}, [other])
    assert ok == (backend.backend == "cpu") and (ok or (xla.code, xla.message[:10]) == (12, "q: float64"))


@pytest.mark.parametrize(("minor", "answer"), [(0, 0), (1, 1), (3, 3), (5, 5), (6, 5)])
def test_a_handler_is_of_the_version_that_asks(minor, answer):
    """Up to the newest one that it has run with; what later versions added to the answer stays theirs."""
    version = Version(ctypes.sizeof(Version), None, -1, -1)
    metadata = Metadata(ctypes.sizeof(Metadata), version, 7, 0x5EED)
    extension = MetadataExtension(ctypes.sizeof(MetadataExtension), METADATA, None, pointer(metadata))
    api = Api(ctypes.sizeof(Api), None, Version(ctypes.sizeof(Version), None, 0, minor))
    frame = Frame(ctypes.sizeof(Frame), ctypes.addressof(extension), pointer(api))
    for direction in ("forward", "backward", "cuda_forward", "cuda_backward"):
        function = int(_lib.ffi.cast("uintptr_t", getattr(_lib.lib, f"flash_xla_{direction}")))
        assert not ctypes.CFUNCTYPE(c_void_p, c_void_p)(function)(ctypes.byref(frame))
        assert (metadata.version.major, metadata.version.minor) == (0, answer)
        assert (metadata.traits, metadata.later) == (0, 0x5EED)
