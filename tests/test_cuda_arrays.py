"""CUDA arrays, CuPy's among them, as far as they come without a GPU: played by objects that claim to be on one.

How far that is is seen by the error of the library itself.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from producers import Producer, bits, normal

import flash
from flash import arrays
from flash.call import Call

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
UNSUPPORTED = "q: CUDA arrays (need|aren't)"


def needs_no_gpu():
    if flash.show_config(mode="dicts")["cuda"]["devices"]:
        pytest.skip("a real GPU would run these on host memory")


@pytest.mark.parametrize("device_type", [2, 13])
def test_unknown_cuda_producer(device_type):
    needs_no_gpu()
    x = Producer(normal(5, 2, 8), device=(device_type, 0), version=(1, 0))
    x.__cuda_array_interface__ = {"shape": (5, 2, 8), "typestr": "<f4", "data": (0, False), "version": 3}
    with pytest.raises(flash.UnsupportedError, match=UNSUPPORTED):
        flash.attention(x, x, x, out=x)
    # Managed memory has no stream to wait for; the legacy default stream is 1 in DLPack.
    expected = {"max_version": (1, 0), "stream": 1} if device_type == 2 else {"max_version": (1, 0)}
    assert x.calls == [expected] * 3
    assert x.freed == [b"dltensor_versioned"] * 3


def test_pinned_memory_is_on_the_cpu():
    x = normal(5, 2, 8)
    pinned = Producer(x.copy(), device=(3, 0))
    out = np.empty_like(x)
    flash.attention(pinned, x, pinned, out=out)
    assert bits(out) == bits(flash.attention(x, x, x))
    assert bits(flash.attention(x, pinned, pinned)) == bits(out)


def test_arrays_on_two_devices():
    x = normal(5, 2, 8)
    gpu = Producer(x, device=(2, 0))
    with pytest.raises(flash.FlashValueError, match=r"k: must be on the CPU as q is, got .*CUDA"):
        flash.attention(x, gpu, x)
    with pytest.raises(flash.FlashValueError, match=r"k: must be on CUDA device 0 as q is, got .*1"):
        flash.attention(gpu, Producer(x, device=(2, 1)), gpu, out=gpu)
    for q, workspace in ((x, Producer(np.empty(1 << 20, np.uint8), device=(2, 0))),):
        with pytest.raises(
            flash.FlashValueError, match=r"workspace: must be on q's device \(1, 0\).*got one on \(2, 0\)"
        ):
            flash.attention(q, q, q, workspace=workspace)
    other = Producer(x, device=(7, 0))
    with pytest.raises(flash.FlashValueError, match=r"q: must be on the CPU .* or on CUDA .*, got device type 7"):
        flash.attention(other, other, other, out=x)
    assert all("stream" not in options for options in other.calls)


class FakeCupyArray:
    """CuPy's attributes over host memory. flash finds the class in `sys.modules`, as the real one."""

    def __init__(self, x, device):
        self.x, self.device = x, device
        self.data = SimpleNamespace(ptr=x.__array_interface__["data"][0], device_id=device.id)
        self.shape, self.strides, self.dtype, self.ndim = x.shape, x.strides, x.dtype, x.ndim

    def __dlpack__(self, **options):
        raise AssertionError("CuPy arrays are read through their attributes")

    def __dlpack_device__(self):
        return 2, self.device.id


class FakeDevice:
    def __init__(self, number):
        self.id, self.entered = number, 0

    def __enter__(self):
        self.entered += 1

    def __exit__(self, *_):
        self.entered -= 1


@pytest.fixture
def cupy(monkeypatch):
    if "cupy" in sys.modules:
        pytest.skip("the real CuPy is there")
    device = FakeDevice(1)
    module = ModuleType("cupy")
    module.ndarray = FakeCupyArray
    module.device = device
    module.cuda = SimpleNamespace(get_current_stream=lambda number: SimpleNamespace(ptr=100 + number))

    def empty(shape, dtype):
        assert device.entered == 1
        return FakeCupyArray(np.empty(shape, dtype), device)

    module.empty = empty
    module.full = lambda shape, value, dtype: FakeCupyArray(np.full(shape, value, dtype), device)
    monkeypatch.setitem(sys.modules, "cupy", module)
    yield module
    arrays._kinds.pop(FakeCupyArray, None)
    arrays._libraries.pop("cupy", None)


def test_cupy_arrays_are_read_through_their_attributes(cupy):
    x = normal(2, 3, 5, 2, 8, dtype=BFLOAT16)[:, :, ::-1, ::2]
    q = FakeCupyArray(x, cupy.device)
    with Call.on(q) as call:
        assert (call.device, call.stream) == ((2, 1), 101)
        tensor = arrays.tensor_at(call.read(q, "q"))
        assert int(arrays.ffi.cast("uintptr_t", tensor.data)) + tensor.byte_offset == q.data.ptr
        assert (tensor.device.device_type, tensor.device.device_id) == (2, 1)
        assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (4, 16, 1)
        assert arrays.ffi.unpack(tensor.shape, tensor.ndim) == list(x.shape)
        assert arrays.ffi.unpack(tensor.strides, tensor.ndim) == [stride // 2 for stride in x.strides]
        assert call.empty((3,), "float32").x.dtype == np.float32
        assert call.empty((3,)).x.dtype == BFLOAT16
        assert call.scalar(0.5).x == np.float32(0.5)
        pointer, size = call.workspace(None, 1000)
        assert size == 1000 and pointer != arrays.ffi.NULL
        assert int(arrays.ffi.cast("uintptr_t", call.stream_pointer())) == 101


def test_cupy_and_another_library_order_their_streams(cupy):
    needs_no_gpu()
    x = normal(5, 2, 8)
    q, k = FakeCupyArray(x, cupy.device), Producer(x, device=(2, 1))
    with pytest.raises(flash.UnsupportedError, match=UNSUPPORTED):
        flash.attention(q, k, q, mask=FakeCupyArray(x[:, 0, :5] > 0, cupy.device))
    assert k.calls == [{"max_version": (1, 0), "stream": 101}]
    with pytest.raises(flash.FlashValueError, match=r"v: must be on CUDA device 1 as q is, got .*CPU"):
        flash.attention(q, q, x)


def test_cupy_arrays_for_another_library_are_exported_on_their_own_device(cupy, monkeypatch):
    """CuPy lets the streams of the current device wait for each other."""
    needs_no_gpu()
    x = normal(5, 2, 8)
    producer, asked = Producer(x, device=(2, 1)), []

    def export(self, **options):
        asked.append((self.device.entered, options["stream"]))
        return producer.__dlpack__(**options)

    monkeypatch.setattr(FakeCupyArray, "__dlpack__", export)
    k = FakeCupyArray(x, cupy.device)
    with pytest.raises(flash.UnsupportedError, match=UNSUPPORTED):
        flash.attention(producer, k, k, out=producer)
    assert asked == [(1, 1)] * 2 and cupy.device.entered == 0
