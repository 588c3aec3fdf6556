"""libflash_emulated.so, the library whose CUDA kernels run on the CPU, and programs beside it, the emulator's own tests
among them: built when a test first asks for them.

It is built in a folder of its own, which is kept: a later session compiles what has changed. Its kernels are compiled
there too, since pip's build folder needn't be there and may be old; who knows better names that one, or another build
folder, in `FLASH_CUDA_KERNELS`, and saves minutes. A test that needs the library in its own process carries the mark
`emulated`, and test_emulated.py runs it; others start processes with `environment()`.

As a program it sees to the kernels and prints their build folder, or nothing where there can be none.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "emulated"
KERNELS = Path(os.environ.get("FLASH_CUDA_KERNELS") or FOLDER)


def path() -> Path:
    """The library, up to date. Skips the test where it can't be built for want of cmake or nvcc."""
    return built("flash_emulated") / "libflash_emulated.so"


@cache
def built(target: str, has_kernels: bool = True) -> Path:
    """The folder in which a target of tests/emulator is then up to date; has_kernels: it takes nvcc."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed, so there is no emulator")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:  # held by one process of pytest-xdist at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _configure() and has_kernels:
            pytest.skip("there is no nvcc, so no CUDA kernels to emulate")
        done = _cmake("--build", FOLDER, "--target", target, "--parallel", str(os.cpu_count()))
        assert done.returncode == 0, _end(done)
    return FOLDER / "tests" / "emulator"


def environment(**more: str) -> dict[str, str]:
    """Of a process that computes with it, on one thread, since such processes share the cores. Devices: emulated.py."""
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, "FLASH_LIBRARY": str(path()), "EMULATOR_DEVICES": "90,86,80", **one_thread, **more}


def cutlass() -> Path | None:
    """The folder of CUTLASS's include/ and examples/ in the wheel nvidia-cutlass; None without it."""
    spec = importlib.util.find_spec("cutlass_library")
    return Path(spec.submodule_search_locations[0]) / "source" if spec and spec.submodule_search_locations else None


def _configure() -> bool:
    """Whether there is an nvcc; else only what takes none can be built."""
    # PTX is all that the emulator reads, and machine code takes longer to make; test_emulated.py compares the PTX.
    configure = [
        "-S",
        ROOT,
        "-B",
        FOLDER,
        "-DFLASH_EMULATOR=ON",
        "-DFLASH_CUDA_CODE=compute_80",
        "-DFLASH_CUDA_CODE_90A=compute_90a",
        f"-DFLASH_CUDA_KERNELS={KERNELS if KERNELS != FOLDER else ''}",
        f"-DEMULATOR_CUTLASS={cutlass() or ''}",
    ]
    if shutil.which("ninja") is not None and not (FOLDER / "Makefile").exists():
        configure += ["-G", "Ninja"]
    done = _cmake(*configure, "-DFLASH_CUDA=ON")
    if done.returncode != 0:  # what an earlier session found may be gone
        done = _cmake("--fresh", *configure, "-DFLASH_CUDA=ON")
    has_nvcc = "but there is no nvcc" not in " ".join(done.stderr.split())
    if not has_nvcc:
        done = _cmake(*configure, "-DFLASH_CUDA=OFF")
    assert done.returncode == 0, _end(done)
    return has_nvcc


def _cmake(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["cmake", *map(str, arguments)], capture_output=True, text=True)


def _end(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr)[-4000:]


if __name__ == "__main__":
    try:
        if KERNELS == FOLDER:
            built("flash_cuda_kernels")
        else:
            _configure()
        print(KERNELS)
    except pytest.skip.Exception as reason:
        print(reason, file=sys.stderr)
