"""A fixed sample of seeded faults, of every kernel some: at least 95 % are caught, and each survivor has its reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import emulated
import emulated_library
import pytest


@pytest.mark.slow
@pytest.mark.skipif(emulated.lib is not None, reason="runs in the session that has no emulator of its own")
def test_seeded_faults_are_caught() -> None:
    program = Path(__file__).with_name("faults.py")
    run = subprocess.run([sys.executable, program], env=emulated_library.environment(), capture_output=True, text=True)
    if run.returncode != 0:
        pytest.fail(f"python tests/faults.py:\n{(run.stdout + run.stderr)[-20_000:]}", pytrace=False)
    assert "survivors without a reason" in run.stdout
