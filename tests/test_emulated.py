"""The CUDA kernels without a GPU: every test marked `emulated`, in a session of pytest that computes on the emulator.

A process opens one library, and this one has opened the library without the emulator, so they run in another. The same
by hand: FLASH_LIBRARY=build/emulated/tests/emulator/libflash_emulated.so pytest -m emulated -n auto
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import emulated
import emulated_library
import pytest

MOST_SHOWN = 20_000  # characters of a failed session


@pytest.mark.slow
@pytest.mark.skipif(emulated.lib is not None, reason="this session computes on the emulator already")
def test_kernels_on_the_emulator(tmp_path: Path) -> None:
    environment = emulated_library.environment(PYTEST_ADDOPTS="", FLASH_EMULATED_KERNELS=str(tmp_path))
    for name in [name for name in environment if name.startswith("PYTEST_XDIST")]:
        del environment[name]  # of the session that this one runs in
    workers = str(len(os.sched_getaffinity(0)))
    session = ["-m", "emulated", "-n", workers, "--dist", "worksteal", "-p", "no:cacheprovider"]
    shown = ["-q", "-rfE", "--no-header", "--tb=short", "--durations=5"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *session, *shown],
        cwd=emulated_library.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    output = run.stdout + run.stderr
    if run.returncode != 0:
        pytest.fail(f"on the emulated device:\n{output[-MOST_SHOWN:]}", pytrace=False)
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None and int(passed[1]) >= 650, output[-MOST_SHOWN:]
    workers_kernels = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    known, ran = ({kernel for kernels in workers_kernels for kernel in kernels[key]} for key in ("all", "ran"))
    assert known and known == ran
