"""The PTX emulator's own tests: a C++ program that checks instructions, memory, races and whole kernels."""

from __future__ import annotations

import subprocess

import emulated_library
import pytest


@pytest.mark.slow
def test_the_emulators_own_tests_pass() -> None:
    program = emulated_library.built("emulator_tests", has_kernels=False) / "emulator_tests"
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    passed, failed = (int(word) for word in run.stdout.splitlines()[-1].split() if word.isdigit())
    assert passed > 0 and failed == 0
