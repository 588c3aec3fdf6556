"""What the numbers depend on: machine, versions, commit. No names of hosts, people or folders."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flash
from flash.bench.libraries import NumPy, cpu_facts


def machine_facts(libraries: Iterable[NumPy]) -> dict[str, Any]:
    """Of this machine, with these libraries."""
    loaded = list(libraries)
    devices = [name for library in loaded if (name := library.device_name())]
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "gpu": devices[0] if devices else None,
        "threads": cpu_facts()["threads"],
        "flash_path": cpu_facts()["path"],
        "flash": flash.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.system(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {library.name: library.module.__version__ for library in loaded},
    }


def cpu_model() -> str:
    """The CPU as Linux calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The commit that this package's files belong to, with a "+" where something has changed since.

    None for a package that isn't used from its checkout, also where it was installed inside another one.
    """
    file = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--abbrev=8", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
