"""The host side of CUDA: what is launched, on which stream and device, with whose memory, and how it fails.

On a GPU through CuPy; without one on the emulator, which also knows what was launched and which calls were made.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading

import emulated
import emulated_library
import ml_dtypes
import numpy as np
import pytest
from kinds import CuPy, Emulated
from producers import Producer

import flash
from flash._lib import check, lib
from flash.arrays import tensor_at
from flash.call import Call

# What a call may ask of CUDA: it neither waits nor allocates, and a stream that is being captured allows all of it.
ALLOWED = {"cudaGetDevice", "cudaSetDevice", "cudaFuncSetAttribute", "cudaLaunchKernel"}


@pytest.fixture(params=[CuPy(), Emulated()], ids=lambda kind: kind.name)
def kind(request):
    request.param.require()
    return request.param


@pytest.fixture
def cupy(kind):
    return importlib.import_module("cupy")


@pytest.fixture
def second_device(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one CUDA device")
    return cupy.cuda.Device(1)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def launched(kind):
    """What ran since the last call; nothing is known of a GPU."""
    return emulated.launches() if kind.name == "emulated" else []


def called(kind):
    """The functions of CUDA that were called since the last call."""
    return set(emulated.calls()) if kind.name == "emulated" else set()


# ---- The plan --------------------------------------------------------------------------------------------------------


def by_kernel(launches):
    """Launches as `flash.explain` names and shows them."""
    found = {}
    for launch in launches:
        name, head_dim, has_options = re.match(r"void flash::(\w+)<(\d+), (\w+)>", launch["name"]).groups()
        kernel = f"{name}<{'any' if head_dim == '0' else head_dim}, {'options' if has_options == 'true' else 'plain'}>"
        assert kernel not in found and launch["grid"][1:] == launch["block"][1:] == [1, 1]
        blocks, threads = launch["grid"][0], launch["block"][0]
        found[kernel] = {"blocks": blocks, "threads": threads, "shared_bytes": launch["shared_bytes"]}
    return found


PROBLEMS = {
    "one row": ((1, 1, 1, 8), (1, 1, 1, 8), {}),
    "grouped heads": ((2, 70, 4, 32), (2, 90, 2, 32), {"causal": True}),
    "bias of its own": ((2, 33, 2, 16), (2, 70, 2, 16), {"bias": (2, 2, 33, 70)}),
    "bias of one column": ((2, 70, 4, 40), (2, 70, 2, 40), {"bias": (4, 70, 1)}),
    "bias of one number": ((3, 20, 2, 8), (3, 20, 2, 8), {"bias": (1,), "sinks": (2,)}),
    "head dim 128": ((1, 40, 2, 100), (1, 40, 2, 100), {"sinks": (2,), "softcap": 5.0}),
    "head dim 256": ((1, 40, 1, 200), (1, 70, 1, 200), {"dropout": 0.5, "seed": 3}),
    "head dim 576": ((1, 35, 1, 576), (1, 20, 1, 576), {}),
    "small blocks": ((1, 64, 1, 8), (1, 96, 1, 8), {"block_mask": flash.BlockMask.causal(64, 96, (16, 32))}),
    "no batch": ((0, 3, 2, 8), (0, 3, 2, 8), {"bias": (3, 3), "sinks": (2,)}),
    "no queries": ((2, 0, 2, 8), (2, 3, 2, 8), {"bias": (2, 1, 3), "sinks": (2,)}),
    "no keys": ((2, 3, 2, 8), (2, 0, 2, 8), {"bias": (2, 3, 1), "sinks": (2,)}),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_explain_names_the_launches_that_happen(kind, problem):
    q_shape, k_shape, options = PROBLEMS[problem]
    q, k = kind.array(normal(*q_shape)), kind.array(normal(*k_shape))
    options = {name: kind.array(normal(*x)) if isinstance(x, tuple) else x for name, x in options.items()}
    wants = [("q",), ("k",), ("q", "k", "v"), ("q", "k", "v", "bias", "sinks")]
    wants += [(name,) for name in ("bias", "sinks") if name in options]
    launched(kind)
    o, vjp = flash.attention_vjp(q, k, k, **options)
    told = flash.explain(q, k, k, **options)
    assert told.backend == "cuda" and told.workspace_bytes == flash.workspace_bytes(q, k, k, **options)
    if kind.name == "emulated":
        assert told.launches == by_kernel(launched(kind))
        assert bool(told.launches) == (o.host.size > 0)
    for wrt in wants:
        vjp(o, wrt=wrt)
        told = flash.explain(q, k, k, backward=True, wrt=wrt, **options)
        if kind.name == "emulated":
            assert told.launches == by_kernel(launched(kind)), wrt
    assert flash.explain(*[np.zeros((1, 1, 1), "f4")] * 3).launches == {}


def test_a_kernel_for_every_row_of_the_table(kind):
    """Every kernel that is built can be asked for: none is missing, and none is there for nothing."""
    if kind.name != "emulated":
        pytest.skip("only the emulator tells what was launched")
    launched(kind)
    built = [("f4", head_dim) for head_dim in (64, 128, 256, 576)]
    built += [(dtype, head_dim) for dtype in ("f2", ml_dtypes.bfloat16) for head_dim in (64, 96, 128, 192, 256)]
    for device in range(emulated.lib.emulated_devices()):  # they have kernels of their own
        with emulated.Device(device):
            for dtype, head_dim in built:
                q = kind.array(normal(2, 1, head_dim).astype(dtype))
                for options in ({}, {"softcap": 1.0}):
                    o, vjp = flash.attention_vjp(q, q, q, **options)
                    for deterministic in (False, True):
                        vjp(o, deterministic=deterministic)
    for head_dim in (64, 128, 256):
        q = kind.array(normal(2, 1, head_dim).astype(ml_dtypes.float8_e4m3fn))
        for options in ({}, {"softcap": 1.0}):
            flash.attention(q, q, q, **options)
    for dtype in ("f2", ml_dtypes.bfloat16):
        q, v = kind.array(normal(2, 1, 192).astype(dtype)), kind.array(normal(2, 1, 128).astype(dtype))
        flash.attention(q, q, v)
    q, k = kind.array(normal(2, 1, 8).astype("f2")), kind.array(normal(1600, 1, 8).astype("f2"))
    flash.attention(q, k, k)  # in pieces of the keys
    bias, sinks = kind.array(normal(1)), kind.array(normal(1))
    for dtype in ("f4", "f2", ml_dtypes.bfloat16):
        o, vjp = flash.attention_vjp(*[kind.array(normal(130, 1, 8).astype(dtype))] * 3, bias=bias, sinks=sinks)
        vjp(o)
    q = kind.array(normal(2, 1, 8))
    o, lse = flash.attention(q, q, q, return_lse=True)
    flash.merge(o, lse, o, lse)
    flash.attention_weights(q, q)
    keep = kind.array(np.zeros((1, 1, 2, 2), bool))
    with Call.on(keep, "keep") as call:
        check(lib.flash_dropout_mask(7, 0.5, tensor_at(call.read(keep, "keep")), call.stream_pointer()))
    assert (kind.numpy(keep)[0] == flash.dropout_mask(7, 0.5, (1, 2, 2))).all()
    assert {launch["kernel"] for launch in launched(kind)} == set(json.loads(emulated.lib.emulated_kernels()))


def test_memory_of_the_device_changes_no_bit(kind, second_device):
    """It decides on tiles, or on the kernel of gradients that need not be the same."""
    if kind.name != "emulated":
        pytest.skip("GPUs of one machine are alike")
    shape = 1, 150, 1, 256
    arrays = [normal(*shape, seed=n).astype("f2") for n in range(4)]
    results, chosen = [], []
    for device in (emulated.Device(0), second_device):
        with device:
            q, k, v, do = map(kind.array, arrays)
            o, lse = flash.attention(q, k, v, return_lse=True, causal=True)
            chosen.append(flash.explain(q, k, v, backward=True).kernel)
            gradients = flash.attention_backward(do, q, k, v, o, lse, causal=True, deterministic=True)
            results.append([kind.numpy(x).tobytes() for x in (o, lse, *gradients[:3])])
    assert results[0] == results[1]
    assert chosen == ["backward_wide_sm90", "backward_deterministic_sm80"]


# ---- Memory and calls to CUDA ----------------------------------------------------------------------------------------


def test_what_is_asked_of_cuda(kind):
    q = kind.array(normal(2, 40, 2, 200))  # more than 48 KiB of shared memory
    o, vjp = flash.attention_vjp(q, q, q)
    launched(kind), called(kind)
    flash.attention(q, q, q, causal=True)
    vjp(o)
    flash.attention_weights(q, q)
    flash.merge(o, *[kind.array(normal(2, 2, 40))], o, kind.array(normal(2, 2, 40)))
    if kind.name == "emulated":
        assert "cudaLaunchKernel" in (calls := called(kind)) and calls <= ALLOWED
    flash.workspace_bytes(q, q, q, backward=True)
    flash.explain(q, q, q)
    with pytest.raises(flash.FlashError):
        flash.attention(q, q[:, :, :, 1:], q)
    assert called(kind) == set()


def test_memory_comes_from_the_library_of_q_on_its_device_and_stream(kind, cupy, monkeypatch):
    q = kind.array(normal(1, 70, 2, 16))
    bias = kind.array(normal(70, 1))
    made = []

    def empty(shape, dtype, real=cupy.empty):
        x = real(shape, dtype)
        made.append((tuple(shape), np.dtype(dtype).name, cupy.cuda.get_current_stream().ptr, x))
        return x

    monkeypatch.setattr(cupy, "empty", empty)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        o, lse = flash.attention(q, q, q, bias=bias, return_lse=True)
        flash.attention_backward(o, q, q, q, o, lse, bias=bias)
    bytes_ = flash.workspace_bytes(q, q, q, backward=True, bias=bias)
    assert [x[:2] for x in made] == [
        ((1, 70, 2, 16), "float32"), ((1, 2, 70), "float32"),
        *[((1, 70, 2, 16), "float32")] * 3, ((70, 1), "float32"), ((bytes_,), "uint8"),
    ]  # fmt: skip
    assert {x[2] for x in made} == {stream.ptr}
    stream.synchronize()


@pytest.mark.parametrize("offset", [0, 1, 7, 63])
def test_workspace_of_the_caller(kind, cupy, offset, monkeypatch):
    q, do = kind.array(normal(1, 70, 2, 16)), kind.array(normal(1, 70, 2, 16, seed=1))
    bias = kind.array(normal(70, 1))
    o, lse = flash.attention(q, q, q, bias=bias, return_lse=True)
    wanted = flash.attention_backward(do, q, q, q, o, lse, bias=bias)
    needed = flash.workspace_bytes(q, q, q, backward=True, bias=bias)
    memory = cupy.empty((needed + 64,), np.uint8)
    made = []
    monkeypatch.setattr(cupy, "empty", lambda *x, real=cupy.empty: made.append(x) or real(*x))
    got = flash.attention_backward(do, q, q, q, o, lse, bias=bias, workspace=memory[offset : offset + needed])
    assert len(made) == 4  # the gradients
    for g, other in zip(got[:4], wanted[:4], strict=True):
        assert kind.numpy(g).tobytes() == kind.numpy(other).tobytes()
    launched(kind)
    with pytest.raises(flash.FlashValueError, match=f"workspace: must have {needed} bytes.*got {needed - 1}"):
        flash.attention_backward(do, q, q, q, o, lse, bias=bias, workspace=memory[: needed - 1])
    with pytest.raises(flash.FlashTypeError, match="workspace: must be uint8, got float32"):
        flash.attention(q, q, q, workspace=bias[:, 0])
    with pytest.raises(flash.FlashValueError, match=r"workspace: must have one contiguous axis, got shape \(35,\)"):
        flash.attention(q, q, q, workspace=memory[:70:2])
    with pytest.raises(flash.FlashValueError, match=r"workspace: must be on q's device \(2, 0\).*got one on \(1, 0\)"):
        flash.attention(q, q, q, workspace=np.empty(needed, np.uint8))
    assert launched(kind) == []


# ---- Streams, devices, threads ---------------------------------------------------------------------------------------


def test_launches_go_to_the_current_stream(kind, cupy):
    q, out = kind.array(normal(70, 2, 16)), kind.array(normal(70, 2, 16))
    wanted = flash.attention(*[normal(70, 2, 16)] * 3)
    before, first, second = cupy.cuda.get_current_stream(), cupy.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)
    for stream in (first, second):
        launched(kind)
        with stream:
            o, vjp = flash.attention_vjp(q, q, q, out=out)
            vjp(o)
            flash.attention_weights(q, q)
            with before:
                flash.attention(q, q, q)
        stream.synchronize()
        close(kind.numpy(out), wanted)
        if kind.name == "emulated":
            ran = [launch["stream"] for launch in launched(kind)]
            assert ran == [stream.ptr] * 5 + [before.ptr]


@pytest.mark.emulated
def test_arrays_of_other_libraries_are_waited_for():
    kind = Emulated()
    kind.require()
    cupy = importlib.import_module("cupy")
    q, wanted = kind.array(normal(5, 2, 8)), flash.attention(*[normal(5, 2, 8)] * 3)
    stream, result = cupy.cuda.Stream(), kind.array(normal(5, 2, 8))
    for ptr, dlpack in ((stream.ptr, stream.ptr), (0, 1), (1, 1), (2, 2)):  # 0, 1: the legacy default; 2: per thread
        stream.ptr = ptr
        k, out = Producer(q.host, device=(2, 0), version=(1, 0)), Producer(result.host, device=(2, 0))
        emulated.launches()
        with stream:
            assert flash.attention(q, k, k, out=out) is out
        close(out.x, wanted)
        assert [x["stream"] for x in k.calls + out.calls] == [dlpack] * 3
        assert [launch["stream"] for launch in emulated.launches()] == [ptr]
    # Of an unknown library nobody knows the current stream: it is the legacy default one.
    flash.attention(k, k, k, out=out)
    assert k.calls[-1]["stream"] == 1 and [launch["stream"] for launch in emulated.launches()] == [0]


def test_the_device_of_q_is_used_and_the_current_one_stays(kind, cupy, second_device):
    x = normal(70, 2, 16)
    with second_device:
        q = kind.array(x)
        stream = cupy.cuda.Stream(non_blocking=True)
        stream.__enter__()  # of that device, also while another is current
    try:
        assert cupy.cuda.Device().id == 0
        launched(kind), called(kind)
        o, lse = flash.attention(q, q, q, return_lse=True)
        g = flash.attention_backward(o, q, q, q, o, lse)
        weights = flash.attention_weights(q, q, rows=[0, 3])
        assert cupy.cuda.Device().id == 0
        assert {y.device.id for y in (o, lse, *g[:3], weights)} == {1}
        if kind.name == "emulated":
            assert {(run["device"], run["stream"]) for run in launched(kind)} == {(1, stream.ptr)}
            assert "cudaSetDevice" in (calls := called(kind)) and calls <= ALLOWED
        other = kind.array(x)
        with pytest.raises(flash.FlashValueError, match="k: must be on CUDA device 1 as q is, got CUDA device 0"):
            flash.attention(q, other, other)
        with pytest.raises(flash.FlashValueError, match=r"workspace: must be on q's device \(2, 1\)"):
            flash.attention(q, q, q, workspace=cupy.empty((100,), np.uint8))
        assert cupy.cuda.Device().id == 0
        if kind.name == "emulated":
            with emulated.running(most_instructions=10), pytest.raises(flash.CudaError):
                flash.attention(q, q, q)
            assert cupy.cuda.Device().id == 0
        with second_device:
            flash.attention(other, other, other)
            assert cupy.cuda.Device().id == 1
            stream.synchronize()
            close(kind.numpy(o), flash.attention(x, x, x))
    finally:
        with second_device:
            stream.__exit__()
    lists = flash.BlockMask.causal(70, 70, 16).to(q).lists_for(q, (), 2)
    assert lists.columns.device.id == 1


def test_threads_launch_on_their_own_streams(kind, cupy):
    launched(kind)
    lengths, failures, streams = (3, 20, 40, 70), [], {}

    def work(length):
        try:
            x = normal(length, 1, 16, seed=length)
            wanted = flash.attention(x, x, x, causal=True)
            stream = cupy.cuda.Stream(non_blocking=True)
            streams[length] = stream.ptr
            with stream:
                q = kind.array(x)
                for _ in range(5):
                    o, vjp = flash.attention_vjp(q, q, q, causal=True)
                    vjp(o)
                stream.synchronize()
                close(kind.numpy(o), wanted)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[length]) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    if kind.name == "emulated":
        ran = launched(kind)
        assert len(streams) == len(set(streams.values())) == 4
        for length, stream in streams.items():
            mine = [run["buffers"] for run in ran if run["stream"] == stream]
            assert len(mine) == 5 * 4  # a forward, and three of the backward
            assert all(any(x["bytes"] == length * 64 for x in buffers) for buffers in mine)


def test_graph_capture(kind, cupy):
    if kind.name == "emulated":
        pytest.skip("the emulator captures nothing; test_what_is_asked_of_cuda holds the calls against those allowed")
    q, k, out = (kind.array(normal(70, 2, 16, seed=seed)) for seed in range(3))
    workspace = cupy.empty((max(1, flash.workspace_bytes(q, k, k)),), np.uint8)
    blocks = flash.BlockMask.causal(70, 70, 16).to(q)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        flash.attention(q, k, k, out=out, workspace=workspace, block_mask=blocks)
        stream.begin_capture()
        flash.attention(q, k, k, out=out, workspace=workspace, block_mask=blocks)
        graph = stream.end_capture()
        for seed in (5, 6):
            q[...] = kind.array(normal(70, 2, 16, seed=seed))
            out[...] = 0
            graph.launch(stream)
            stream.synchronize()
            x, y = normal(70, 2, 16, seed=seed), normal(70, 2, 16, seed=1)
            close(kind.numpy(out), flash.attention(x, y, y, block_mask=flash.BlockMask.causal(70, 70, 16)))


# ---- PyTorch and JAX -------------------------------------------------------------------------------------------------


def test_pytorch_on_cuda():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    x, y = normal(70, 2, 16), normal(70, 2, 16, seed=1)
    wanted, vjp = flash.attention_vjp(x, x, x, causal=True)
    wanted_dq = vjp(y).dq
    q, do = torch.from_numpy(x).cuda(), torch.from_numpy(y).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        o, vjp = flash.attention_vjp(q, q, q, causal=True)
        dq = vjp(do).dq
    side.synchronize()
    assert type(o) is torch.Tensor and o.device == q.device
    close(o.cpu().numpy(), wanted)
    close(dq.cpu().numpy(), wanted_dq)

    graph = torch.cuda.CUDAGraph()  # after the calls above, which warmed up
    with torch.cuda.graph(graph):
        o, vjp = flash.attention_vjp(q, q, q, causal=True)
        dq = vjp(do).dq
    q.copy_(torch.from_numpy(y))
    graph.replay()
    wanted, vjp = flash.attention_vjp(y, y, y, causal=True)
    close(o.cpu().numpy(), wanted)
    close(dq.cpu().numpy(), vjp(y).dq)


def test_jax_on_cuda():
    jax = pytest.importorskip("jax")
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError as error:
        pytest.skip(f"JAX has no CUDA device: {error}")
    x = normal(70, 2, 16)
    wanted, vjp = flash.attention_vjp(x, x, x, causal=True)
    q = jax.jit(lambda q: q * 2)(jax.device_put(x / 2, device))  # perhaps not computed yet
    before = np.asarray(q).copy()
    o, vjp_of_jax = flash.attention_vjp(q, q, q, causal=True)
    dq = vjp_of_jax(o).dq
    assert isinstance(o, jax.Array) and o.devices() == q.devices() == {device}
    close(np.asarray(jax.numpy.sin(o)), np.sin(wanted))
    close(np.asarray(dq), vjp(wanted).dq)
    np.testing.assert_array_equal(np.asarray(q), before)


def test_more_sequences_than_a_grid_has_rows(kind):
    """Blocks are counted along x, which has room for 2^31 of them; y and z end at 65,535."""
    x = normal(66_000, 1, 1, 1)
    q = kind.array(x)
    launched(kind)
    if kind.name == "emulated":  # the sweep computes: here the launches are checked, and not run
        with emulated.running(checks=emulated.NOTHING):
            o, vjp = flash.attention_vjp(q, q, q)
            vjp(o)
        assert [run["grid"] for run in launched(kind)] == [[66_000, 1, 1], [8250, 1, 1], *[[66_000, 1, 1]] * 2]
    else:
        np.testing.assert_array_equal(kind.numpy(flash.attention(q, q, q)), x)


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.emulated
def test_a_failed_launch_names_the_error_and_the_library_goes_on():
    kind = Emulated()
    kind.require()
    q, do = kind.array(normal(70, 2, 16)), kind.array(normal(70, 2, 16))
    o, lse = flash.attention(q, q, q, return_lse=True)
    wanted = kind.numpy(o)
    for function, kernel in (
        (lambda: flash.attention(q, q, q), "forward_any"),
        (lambda: flash.attention_backward(do, q, q, q, o, lse), "backward_prepare_any"),
        (lambda: flash.attention_weights(q, q), "weights_any"),
        (lambda: flash.merge(o, lse, o, lse), "merge_any"),
    ):
        with emulated.running(most_instructions=10):
            with pytest.raises(flash.CudaError, match=rf"^cudaErrorLaunchFailure \(.*instructions.*\) in {kernel}$"):
                function()
            with pytest.raises(RuntimeError):  # which it is too
                function()
        assert emulated.lib.emulated_last_error() == 0  # nobody else finds it
        np.testing.assert_array_equal(kind.numpy(flash.attention(q, q, q)), wanted)


# ---- Machines on which it can't run ----------------------------------------------------------------------------------

WITHOUT_GPU = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import flash
from producers import Producer

x = np.ones((3, 1, 4), np.float32)
gpu = Producer(x, device=(2, int(sys.argv[2])))
for function in (lambda: flash.attention(gpu, gpu, gpu, out=gpu), lambda: flash.explain(gpu, gpu, gpu)):
    try:
        function()
    except flash.UnsupportedError as error:
        print(error)
assert (flash.attention(x, x, x) == x).all()
assert flash.explain(x, x, x).backend == "cpu"
cuda = flash.show_config(mode="dicts")["cuda"]
print(cuda["built"], cuda["driver"], cuda["error"])
"""
CPU = "; copy the arrays to the CPU"


def without_gpu(environment, device=0):
    """What a process says to CUDA arrays, after it has computed on the CPU; and what it knows of CUDA."""
    command = [sys.executable, "-c", WITHOUT_GPU, str(emulated_library.ROOT / "tests"), str(device)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *messages, facts = done.stdout.splitlines()
    assert len(set(messages)) <= 1
    return (messages[0] if messages else None), facts


@pytest.mark.skipif(emulated.lib is not None, reason="the other session runs this")
@pytest.mark.parametrize(
    ("machine", "message", "facts"),
    [
        (
            {"EMULATOR_DRIVER": "0"},
            "q: CUDA arrays need a CUDA device, none can be used here (there is no NVIDIA driver: "
            "cudaErrorInsufficientDriver (cudaErrorInsufficientDriver))" + CPU,
            "True None cudaErrorInsufficientDriver (cudaErrorInsufficientDriver)",
        ),
        (
            {"EMULATOR_DRIVER": "12090"},
            "q: CUDA arrays need a CUDA device, none can be used here (the NVIDIA driver is for CUDA 12.9, this "
            "library needs one for 13.0, which is driver 580 or later: cudaErrorInsufficientDriver "
            "(cudaErrorInsufficientDriver))" + CPU,
            "True 12.9 cudaErrorInsufficientDriver (cudaErrorInsufficientDriver)",
        ),
        (
            {"EMULATOR_DEVICES": ""},
            "q: CUDA arrays need a CUDA device, none can be used here (cudaErrorNoDevice (cudaErrorNoDevice))" + CPU,
            "True 13.0 cudaErrorNoDevice (cudaErrorNoDevice)",
        ),
        (
            {"EMULATOR_DEVICES": "75"},
            "q: CUDA arrays need a device of compute capability 8.0 or later, device 0 (emulated) has 7.5" + CPU,
            "True 13.0 None",
        ),
        (
            {"EMULATOR_DEVICES": "90,75", "device": "1"},
            "q: CUDA arrays need a device of compute capability 8.0 or later, device 1 (emulated) has 7.5" + CPU,
            "True 13.0 None",
        ),
    ],
    ids=["no driver", "old driver", "no device", "old device", "old second device"],
)
def test_machines_that_can_not_run_it(machine, message, facts):
    environment = emulated_library.environment(**machine)
    assert without_gpu(environment, machine.get("device", 0)) == (message, facts)


def test_this_machine_without_a_gpu():
    """The installed library, with CUDA's own runtime."""
    cuda = flash.show_config(mode="dicts")["cuda"]
    if cuda["devices"]:
        pytest.skip("there is a CUDA device")
    message, facts = without_gpu(dict(os.environ))
    assert facts == f"{cuda['built']} {cuda['driver']} {cuda['error']}"
    if not cuda["built"]:
        reason = "q: CUDA arrays need a build with CUDA, this library was built without"
    elif cuda["driver"] is None:
        reason = (
            "q: CUDA arrays need a CUDA device, none can be used here (there is no NVIDIA driver: "
            "cudaErrorInsufficientDriver (CUDA driver version is insufficient for CUDA runtime version))"
        )
    else:
        reason = f"q: CUDA arrays need a CUDA device, none can be used here ({cuda['error']})"
    assert message == reason + CPU
