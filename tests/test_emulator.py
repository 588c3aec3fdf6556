"""The PTX emulator's own tests: a C++ program that checks instructions, memory, races and whole kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "emulator"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_the_emulators_own_tests_pass(tmp_path: Path) -> None:
    subprocess.run(["cmake", "-S", SOURCE, "-B", tmp_path], check=True, capture_output=True)
    build = ["cmake", "--build", tmp_path, "--parallel", str(os.cpu_count())]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    run = subprocess.run([tmp_path / "emulator_tests"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    passed, failed = (int(word) for word in run.stdout.splitlines()[-1].split() if word.isdigit())
    assert passed > 0 and failed == 0
