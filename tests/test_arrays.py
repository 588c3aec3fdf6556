"""Arrays of every kind reach the library as they are: no copy, no import, nothing consumed, nothing left behind.

Each trap that DLPack and the array libraries set has a test here, those of CUDA arrays in test_cuda_arrays.py.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from producers import Old, Producer, bits, normal

import flash
from flash import arrays
from flash.call import Call

BFLOAT16, FLOAT8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def jnp():
    return pytest.importorskip("jax.numpy")


# ---- Kinds and dtypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_library_gives_the_same_bits(dtype, torch, jnp):
    q, k, v = (normal(2, 9, 4, 16, dtype=arrays.numpy_dtype(dtype), seed=seed) for seed in range(3))
    o, lse = flash.attention(q, k, v, causal=True, return_lse=True)
    assert (o.dtype, lse.dtype) == (q.dtype, np.float64 if dtype == "float64" else np.float32)

    def tensor(x):
        return torch.from_numpy(x.view(f"u{x.itemsize}")).view(getattr(torch, dtype))

    o_torch, lse_torch = flash.attention(tensor(q), tensor(k), tensor(v), causal=True, return_lse=True)
    assert isinstance(o_torch, torch.Tensor) and o_torch.dtype == getattr(torch, dtype)
    assert (bits(o_torch), bits(lse_torch)) == (bits(o), bits(lse))
    if dtype == "float64":
        return  # JAX makes float32 of it, unless told otherwise for the whole process
    o_jax, lse_jax = flash.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), causal=True, return_lse=True)
    assert isinstance(o_jax, jnp.ndarray) and o_jax.dtype == q.dtype
    assert (bits(o_jax), bits(lse_jax)) == (bits(o), bits(lse))


def test_gradients_are_of_the_kind_of_q(torch, jnp):
    x, bias, sinks = normal(9, 2, 16, dtype=BFLOAT16), normal(1, 9, 1), normal(2, dtype=BFLOAT16)
    wanted = flash.attention_vjp(x, x, x, bias=bias, sinks=sinks)[1](x)
    assert [g.dtype.name for g in wanted] == ["bfloat16", "bfloat16", "bfloat16", "float32", "bfloat16"]
    for array in (jnp.asarray, lambda x: torch.from_numpy(x.view("u2")).view(torch.bfloat16)):
        y = array(x)
        o, vjp = flash.attention_vjp(y, y, y, bias=bias, sinks=sinks)
        assert type(o) is type(y)
        for g, expected in zip(vjp(y), wanted, strict=True):
            assert type(g) is type(y)
            assert tuple(g.shape) == expected.shape
            assert bits(g) == bits(expected)


def test_kinds_mix_on_one_device_and_the_result_is_like_q(torch, jnp):
    x = normal(5, 2, 8)
    expected = flash.attention(x, x, x)
    for q, k, v in ((x, torch.from_numpy(x), jnp.asarray(x)), (torch.from_numpy(x), jnp.asarray(x), x)):
        o = flash.attention(q, k, v)
        assert type(o) is type(q)
        assert bits(o) == bits(expected)
    out = torch.empty(5, 2, 8)
    assert flash.attention(x, x, x, out=out) is out
    assert bits(out) == bits(expected)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT8])
def test_dtypes_that_numpy_does_not_export_are_not_changed_by_reading_them(dtype):
    x = normal(3, 4, 2, 8, dtype=dtype)[:, ::-1, ::2].transpose(0, 2, 1, 3)
    with Call.on(x) as call:
        tensor = arrays.tensor_at(call.read(x, "q"))
        assert (tensor.dtype.code, tensor.dtype.bits) == arrays.CODES[dtype.name]
        assert arrays.shape_of(tensor) == x.shape
    assert x.dtype == dtype and np.asarray(x).dtype == dtype


def test_float8_needs_a_gpu(torch, jnp):
    x = normal(3, 1, 16)
    for y in (x.astype(FLOAT8), torch.from_numpy(x).to(torch.float8_e4m3fn), jnp.asarray(x).astype(jnp.float8_e4m3fn)):
        with pytest.raises(flash.UnsupportedError, match="float8_e4m3fn needs a Hopper GPU"):
            flash.attention(y, y, y, q_scale=2, k_scale=np.ones(1, np.float32), v_scale=0.5)


def test_numpy_double_does_not_become_single(jnp):
    x = normal(3, 1, 8, dtype=np.float64)
    assert flash.attention(x, x, x).dtype == np.float64
    with pytest.raises(flash.FlashTypeError, match="k: dtype must be float32 as in q, got float64"):
        flash.attention(jnp.asarray(x, np.float32), x, x)


# ---- Strides and views -----------------------------------------------------------------------------------------------


def test_negative_strides():
    """`torch.from_dlpack` of such an array ends the process, and NumPy exports it all the same."""
    x, mask, bias = normal(2, 7, 4, 8), normal(7, 7) > 0, normal(4, 7, 7)
    turned = (slice(None, None, -1), slice(None, None, -1), slice(None, None, -1))
    expected = flash.attention_vjp(*(x[turned].copy(),) * 3, mask=mask[::-1, ::-1].copy(), bias=bias[:, ::-1].copy())
    got = flash.attention_vjp(*(x[turned],) * 3, mask=mask[::-1, ::-1], bias=bias[:, ::-1])
    assert bits(got[0]) == bits(expected[0])
    do = normal(2, 7, 4, 8, seed=1)[::-1]
    for g, wanted in zip(got[1](do)[:4], expected[1](do.copy())[:4], strict=True):
        assert bits(g) == bits(wanted)
    out = np.empty((2, 7, 4, 8), np.float32)[turned]
    flash.attention(x, x, x, out=out)
    assert bits(out) == bits(flash.attention(x, x, x))


def test_transposed_sliced_and_broadcast_views(torch, jnp):
    x = normal(2, 4, 14, 8)
    expected = flash.attention(*(x.transpose(0, 2, 1, 3)[:, ::2].copy(),) * 3)
    for y in (x, torch.from_numpy(x)):
        view = y.swapaxes(1, 2)[:, ::2]
        assert bits(flash.attention(view, view, view)) == bits(expected)
    same = np.broadcast_to(x[:1, :1].transpose(0, 2, 1, 3), (3, 14, 2, 8))  # zero strides, read-only
    shared = torch.from_numpy(x)[:1, :1].swapaxes(1, 2).expand(3, 14, 2, 8)
    assert bits(flash.attention(shared, shared, shared)) == bits(flash.attention(same, same, same))
    assert flash.attention_vjp(same, same, same)[1](same).dk.shape == (3, 14, 2, 8)


def test_strides_that_are_no_whole_elements():
    odd = np.zeros((5, 1, 8), [("a", "i1"), ("b", "f4")])["b"]
    with pytest.raises(flash.FlashTypeError, match=r"k: must be an array that DLPack can describe, got numpy.ndarray"):
        flash.attention(normal(5, 1, 8), odd, odd)


def test_scalars_and_arrays_without_axes(torch):
    x, batch = normal(6, 2, 8), normal(2, 6, 2, 8)
    options = {"dropout": 0.5, "causal": True}
    expected = flash.attention(x, x, x, seed=7, q_offset=-1, **options)
    for seed in (np.int64(7), np.array(7), np.array([[7]], np.int32), torch.tensor(7), torch.tensor([7])):
        assert bits(flash.attention(x, x, x, seed=seed, q_offset=np.int32(-1), **options)) == bits(expected)
        assert bits(flash.attention(x, x, x, seed=seed, q_offset=np.array(-1), **options)) == bits(expected)
    with pytest.raises(flash.FlashValueError, match=r"q_offset: shape must be .*\(2,\), got \(\)"):
        flash.attention(batch, batch, batch, q_offset=np.array(-1))
    with pytest.raises(flash.FlashValueError, match=r"q: shape must be .* at least 3 axes, got \(\)"):
        flash.attention(np.float32([1])[0:1].reshape(()), x, x)
    for number in (0.5, np.float16(0.5), np.float64(0.5)):
        assert bits(flash.attention(x, x, x, scale=number)) == bits(flash.attention(x, x, x, scale=0.5))


@pytest.mark.parametrize("shape", [(0, 3, 1, 4), (2, 0, 1, 4)])
def test_arrays_without_elements(shape, torch, jnp):
    x = np.zeros(shape, np.float32)
    for y in (x, torch.from_numpy(x), jnp.asarray(x)):
        o, lse = flash.attention(y, y, y, return_lse=True)
        assert tuple(o.shape) == shape and tuple(lse.shape) == (shape[0], 1, shape[1])
        assert type(o) is type(y)


# ---- Who may write where ---------------------------------------------------------------------------------------------


def test_read_only_inputs_are_fine_and_outputs_are_not():
    x, out = normal(5, 1, 8), np.empty((5, 1, 8), np.float32)
    expected = flash.attention(x, x, x)
    for y in (x, out):
        y.flags.writeable = False
    assert bits(flash.attention(x, x, x)) == bits(expected)
    with pytest.raises(flash.FlashValueError, match="out: must be writable, got a read-only NumPy array"):
        flash.attention(x, x, x, out=out)
    with pytest.raises(flash.FlashValueError, match="workspace: must be writable"):
        flash.attention(x, x, x, workspace=np.frombuffer(bytes(1 << 20), np.uint8))


def test_read_only_flag_of_a_capsule():
    x = normal(5, 1, 8)
    read_only = Producer(x.copy(), version=(1, 0), flags=1)
    assert bits(flash.attention(x, read_only, read_only)) == bits(flash.attention(x, x, x))
    with pytest.raises(flash.FlashValueError, match="out: must be writable"):
        flash.attention(x, x, x, out=read_only)
    writable = Producer(np.empty_like(x), version=(1, 0), flags=2)
    assert flash.attention(x, x, x, out=writable) is writable
    assert bits(writable.x) == bits(flash.attention(x, x, x))


def test_jax_arrays_are_never_written_to(jnp):
    x = jnp.asarray(normal(5, 1, 8))
    before = bits(x)
    with pytest.raises(flash.FlashValueError, match="out: must be writable, got a read-only JAX array"):
        flash.attention(x, x, x, out=x)
    with pytest.raises(flash.FlashValueError, match="workspace: must be writable"):
        flash.attention(x, x, x, workspace=jnp.zeros(1 << 20, jnp.uint8))
    assert bits(x) == before


def test_outputs_without_own_elements():
    x = normal(5, 2, 8)
    with pytest.raises(flash.FlashValueError, match="out: elements of an output must not overlap"):
        flash.attention(x, x, x, out=np.lib.stride_tricks.as_strided(x.copy(), x.shape, (32, 0, 4)))
    with pytest.raises(flash.FlashValueError, match="out: must not share memory with q"):
        flash.attention(x, x.copy(), x.copy(), out=x)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def test_tensors_that_require_grad(torch):
    x = torch.from_numpy(normal(5, 1, 8))
    grad = x.clone().requires_grad_()
    message = "k: is a PyTorch tensor that requires grad while grad mode is on.*flash.torch.attention"
    with pytest.raises(flash.FlashTypeError, match=message):
        flash.attention(x, grad, x)
    with pytest.raises(flash.FlashTypeError, match=r"q: .*flash.torch.attention"):
        flash.attention(torch.nn.Parameter(x), x, x)
    with pytest.raises(flash.FlashTypeError, match=r"bias: .*flash.torch.attention"):
        flash.attention(x, x, x, bias=torch.zeros(5, 5, requires_grad=True))
    with torch.no_grad():
        o = flash.attention(torch.nn.Parameter(x), grad, x)
    assert bits(o) == bits(flash.attention(x, x, x))
    assert type(o) is torch.Tensor and not o.requires_grad
    with torch.inference_mode():
        assert bits(flash.attention(x, x, x)) == bits(o)


def test_tensors_that_are_not_plain_memory(torch):
    x = torch.from_numpy(normal(5, 1, 8))
    with pytest.raises(flash.FlashTypeError, match=r"q: .*negative of its memory; use .resolve_neg"):
        flash.attention(x._neg_view(), x, x)
    with pytest.raises(flash.FlashTypeError, match="v: dtype must be float32 as in q, got complex64"):
        flash.attention(x, x, torch.ones(5, 1, 8, dtype=torch.complex64).conj())
    for odd, text in (
        (x.to_sparse(), "torch.sparse_coo"),
        (torch.zeros(5, 1, 8, device="meta"), "device meta"),
        (torch.ones(5).to_mkldnn(), "torch._mkldnn"),
    ):
        with pytest.raises(flash.FlashTypeError, match=f"k: must be a strided PyTorch tensor with memory.*{text}"):
            flash.attention(x, odd, x)
    with pytest.raises(flash.FlashValueError, match="q: must be on the CPU or on CUDA, got a PyTorch tensor on meta"):
        flash.attention(torch.zeros(5, 1, 8, device="meta"), x, x)
    with pytest.raises(flash.FlashTypeError, match="q: must be a strided PyTorch tensor with memory"):
        torch.vmap(lambda y: flash.attention(y, y, y))(x[None])


def test_subclasses(torch):
    class Mine(torch.Tensor):
        pass

    x = normal(5, 1, 8)
    mine = torch.from_numpy(x).as_subclass(Mine)
    assert bits(torch.Tensor(flash.attention(mine, mine, mine))) == bits(flash.attention(x, x, x))
    recorded = x.view(np.recarray)
    assert type(flash.attention(recorded, recorded, recorded)) is np.ndarray
    with pytest.raises(flash.FlashTypeError, match="k: must be an array without a mask of its own"):
        flash.attention(x, np.ma.array(x), x)


# ---- JAX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax_takes_the_result_without_a_copy(dtype, jnp, monkeypatch):
    made = []
    real = arrays._aligned_empty
    monkeypatch.setattr(arrays, "_aligned_empty", lambda *a: made.append(real(*a)) or made[-1])
    x = jnp.asarray(normal(5, 1, 8)).astype(dtype)
    o, lse = flash.attention(x, x, x, return_lse=True)
    for result, memory in zip((o, lse), made, strict=True):
        address = memory.__array_interface__["data"][0]
        assert address % 64 == 0 and result.unsafe_buffer_pointer() == address
    expected = bits(o)
    made.clear()
    gc.collect()
    assert bits(o) == expected  # the memory lives as long as the result


def test_traced_jax_arrays(jnp):
    import jax

    x = jnp.asarray(normal(5, 1, 8))
    for transform in (jax.jit, jax.grad, jax.vmap):
        with pytest.raises(flash.FlashTypeError, match=r"q: is traced by JAX.*flash.jax.attention"):
            transform(lambda y: flash.attention(y, y, y).sum())(x)
    with pytest.raises(flash.FlashTypeError, match=r"bias: is traced by JAX.*flash.jax.attention"):
        jax.jit(lambda bias: flash.attention(x, x, x, bias=bias))(jnp.zeros((5, 5)))


def test_jax_arrays_that_are_not_ready_yet(jnp):
    import jax

    x = jax.random.normal(jax.random.key(0), (800, 800))
    late = jax.jit(lambda x: x @ x @ x @ x / 800)(x).reshape(800, 25, 32)
    o = flash.attention(late[:8], late[:8], late[:8])  # dispatched, perhaps not computed
    assert bits(o) == bits(flash.attention(*(np.asarray(late)[:8],) * 3))


def test_jax_results_on_cuda_are_written_in_place(jnp, monkeypatch):
    """As far as it goes on the CPU: a fresh array of JAX, which becomes the result without a copy."""
    like = jnp.asarray(normal(5, 1, 8))
    kind = arrays.kind_of(like, "q")
    monkeypatch.setattr(type(kind), "device", lambda self, x: (arrays.CUDA, 0))
    buffer = kind.empty(like, (3, 2), None)
    assert type(buffer) is type(like) and buffer.dtype == like.dtype
    address = buffer.unsafe_buffer_pointer()
    np.ctypeslib.as_array((ctypes.c_float * 6).from_address(address))[:] = range(6)  # the kernel
    result = kind.finish(buffer, like)
    assert result.unsafe_buffer_pointer() == address and result.devices() == like.devices()
    assert np.asarray(result).ravel().tolist() == list(range(6))
    kind.settle(like)


def test_deleted_jax_arrays(jnp):
    x, y = jnp.asarray(normal(5, 1, 8)), jnp.asarray(normal(5, 1, 8))
    y.delete()
    for q, k in ((x, y), (y, x)):
        with pytest.raises(flash.FlashTypeError, match=r"must be an array that DLPack can describe.*deleted"):
            flash.attention(q, k, x)


def test_several_jax_devices(jnp):
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import flash, jax, jax.numpy as jnp
x = jax.device_put(jnp.ones((4, 2, 8)), jax.devices()[1])
assert flash.attention(x, x, x).devices() == {jax.devices()[1]}
mesh = jax.sharding.Mesh(jax.devices(), "d")
sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
for q, k in ((sharded, x), (x, sharded)):
    try:
        flash.attention(q, k, x)
    except flash.FlashError as error:
        assert str(error).startswith("q: must be on one device" if q is sharded else "k: must be an array"), error
    else:
        raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


# ---- Capsules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, (1, 0), (1, 3)])
def test_unknown_producers(version):
    x = normal(5, 2, 8)
    q, k = (Producer(x.copy(), version=version) for _ in range(2))
    v = Old(x.copy(), byte_offset=64, has_strides=False)
    out = Producer(np.empty_like(x), version=version)
    assert flash.attention(q, k, v, out=out) is out
    assert bits(out.x) == bits(flash.attention(x, x, x))
    for producer in (q, k, v, out):
        assert producer.freed == [producer.name]  # once, and under its own name: borrowed, not consumed
        assert all("stream" not in options for options in producer.calls)
    assert q.calls == [{"max_version": (1, 0)}]
    assert v.calls == [{}]  # it doesn't know max_version


def test_results_of_unknown_producers():
    x = Producer(normal(5, 2, 8))
    with pytest.raises(flash.FlashTypeError, match=r"q: flash can't make arrays of type .*Producer; pass .*out="):
        flash.attention(x, x, x)
    with pytest.raises(flash.FlashTypeError, match="q: flash can't make arrays"):
        flash.attention(x, x, x, out=np.empty((5, 2, 8), np.float32), return_lse=True)


def test_capsules_that_can_not_be_read():
    x = normal(5, 1, 8)
    cases = [
        (Producer(x, version=(2, 0)), "k: must give a DLPack capsule of version 1 or older, got version 2"),
        (Producer(x, name=b"used_dltensor"), "k: must be an array that DLPack can describe"),
        (Producer(x, name=b"something else"), "k: must be an array that DLPack can describe"),
        (
            SimpleNamespace(__dlpack__=lambda **_: 3, __dlpack_device__=lambda: (1, 0)),
            "k: must be an array that DLPack",
        ),
        (SimpleNamespace(__dlpack__=lambda **_: 1 / 0, __dlpack_device__=lambda: (1, 0)), "division by zero"),
    ]
    for odd, message in cases:
        with pytest.raises(flash.FlashTypeError, match=message):
            flash.attention(x, odd, x)
    for odd in ([[[1.0]]], 3.0, None, object(), np.float32(1), "q", memoryview(x)):
        with pytest.raises(flash.FlashTypeError, match=r"k: must be an array .CuPy, NumPy, PyTorch, JAX"):
            flash.attention(x, odd, x)


def test_nothing_is_copied_and_nothing_is_left(torch):
    x = normal(64, 1 << 12, 1, 64)  # 64 MiB
    out, lens = np.empty_like(x), np.zeros(64, np.int32)
    flash.attention(x, x, x, out=out, q_lens=lens, kv_lens=lens)
    tracemalloc.start()
    flash.attention(x, x, x, out=out, q_lens=lens, kv_lens=lens)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24  # scratch memory, not arrays
    tracemalloc.stop()

    y, t = normal(3, 1, 8), torch.from_numpy(normal(3, 1, 8))
    before = sys.getrefcount(y), sys.getrefcount(t)
    for _ in range(100):
        flash.attention(y, y, y)
        flash.attention(t, t, t)
        with pytest.raises(flash.FlashError):
            flash.attention(y, t, x)
    assert (sys.getrefcount(y), sys.getrefcount(t)) == before
