"""Many callers at once, any number of threads inside a call, and processes that fork."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import flash


def problem(seed: int, Lq: int = 70, Lk: int = 130, dtype: str = "float32") -> tuple[list[np.ndarray], dict]:
    """q, k, v and do, and options that make every kind of work."""
    random = np.random.default_rng(seed)
    arrays = [
        random.standard_normal(shape).astype(dtype)
        for shape in ((2, Lq, 4, 24), (2, Lk, 2, 24), (2, Lk, 2, 16), (2, Lq, 4, 16))
    ]
    options = {
        "causal": True,
        "dropout": 0.25,
        "seed": seed,
        "bias": random.standard_normal((4, 1, Lk)).astype(dtype),
        "sinks": random.standard_normal(4).astype(dtype),
        "kv_lens": np.array([Lk, Lk // 2]),
    }
    return arrays, options


def run(seed: int, **sizes: object) -> list[bytes]:
    """The bits of a forward and a backward."""
    (q, k, v, do), options = problem(seed, **sizes)
    (o, lse), vjp = flash.attention_vjp(q, k, v, return_lse=True, **options)
    return [x.tobytes() for x in (o, lse, *vjp(do, dlse=np.ones_like(lse)))]


def test_many_python_threads_at_once():
    expected = [run(seed) for seed in range(8)]
    barrier = threading.Barrier(8)

    def work(seed: int) -> bool:
        barrier.wait()
        return all(run(seed) == expected[seed] for _ in range(10))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_each_thread_gets_its_own_message():
    (q, k, v, _), _ = problem(0)
    barrier = threading.Barrier(6)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(200):
            with pytest.raises(flash.FlashValueError, match=f"dropout: must be 0 to 1, got {number}$"):
                flash.attention(q, k, v, dropout=number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(2, 8)))


def test_one_block_mask_in_many_threads():
    (q, k, v, _), _ = problem(0)
    mask = flash.BlockMask.causal(70, 130, 16)
    expected = flash.attention(q, k, v, block_mask=flash.BlockMask.causal(70, 130, 16)).tobytes()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: flash.attention(q, k, v, block_mask=mask).tobytes(), range(32))) == {expected}


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_the_same_bits_whatever_the_number_of_threads(dtype):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    results = []
    for threads in (1, 2, 3, 5):
        with threadpoolctl.threadpool_limits(threads, user_api="openmp"):
            assert flash.show_config(mode="dicts")["cpu"]["threads"] == threads
            results.append(run(3, Lq=300, Lk=270, dtype=dtype))
    assert all(result == results[0] for result in results[1:])


def test_a_row_does_not_depend_on_the_batch():
    (q, k, v, _), _ = problem(1)
    both = flash.attention(q, k, v, causal=True)
    for n in range(2):
        assert flash.attention(q[n], k[n], v[n], causal=True).tobytes() == both[n].tobytes()


FORK = """
import os, signal, sys
import numpy as np
import flash

q = np.random.default_rng(0).standard_normal((2, 300, 4, 32)).astype(np.float32)
before = flash.attention(q, q, q, causal=True)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that hangs is ended
    o, vjp = flash.attention_vjp(q, q, q, causal=True)
    os._exit(0 if o.tobytes() == before.tobytes() and vjp(q).dq.shape == q.shape else 1)
status = os.waitpid(child, 0)[1]
after = flash.attention(q, q, q, causal=True)
sys.exit(status or after.tobytes() != before.tobytes())
"""

POOL = """
import multiprocessing
import numpy as np
import flash

def work(seed):
    q = np.random.default_rng(seed).standard_normal((100, 4, 32)).astype(np.float32)
    return flash.attention(q, q, q).tobytes()

if __name__ == "__main__":
    expected = [work(seed) for seed in range(6)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(work, range(6)) == expected
"""


@pytest.mark.parametrize("code", [FORK, POOL], ids=["fork", "pool"])
def test_fork_after_use(code):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_library_is_never_unloaded():
    """Its threads may still run its code, and OpenMP's, while the interpreter ends and cffi closes what it opened."""
    code = """
import numpy, flash
from flash._lib import ffi, lib
q = numpy.ones((200, 4, 16), numpy.float32)
flash.attention(q, q, q)
ffi.dlclose(lib)
print("libflash" in open("/proc/self/maps").read())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
