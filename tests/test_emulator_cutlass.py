"""The emulator on kernels that this project did not write: CUTLASS's, from the wheel nvidia-cutlass.

Their results must be right and the emulator must report nothing, in whatever order warps run and copies arrive: so it
reads PTX as a GPU does, and what it reports of this project's kernels is worth looking at. The programs are CUTLASS's
own host code, linked with the emulated CUDA runtime: tests/emulator/cutlass.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import emulated_library
import pytest


@pytest.fixture(scope="module")
def programs() -> Path:
    if emulated_library.cutlass() is None:
        pytest.skip("CUTLASS is not installed: pip install --no-deps nvidia-cutlass")
    return emulated_library.built("emulator_cutlass")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "device"),
    [
        ("attention_forward", "80"),
        ("attention_backward", "80"),
        ("gemm", "80"),
        ("attention_hopper", "90"),
        ("attention_hopper_backward", "90"),
    ],
)
def test_cutlass(programs: Path, program: str, device: str) -> None:
    run = subprocess.run(
        [programs / f"cutlass_{program}"],
        env={**os.environ, "EMULATOR_DEVICES": device},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " order, " in run.stdout
