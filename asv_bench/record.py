#!/usr/bin/env python
"""Measures the flash that is installed and stores the results as those of a commit: `python asv_bench/record.py`.

asv runs in this environment and writes into a temporary folder. What is kept, in results/<machine>/, is one file for
each commit, `<hash>-existing-py3.json`, strict JSON without any path of this machine: asv names an existing
environment by the path of its interpreter, and writes NaN where a benchmark doesn't apply.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# The folders and files that decide how fast flash is.
SOURCES = ("src", "cuda", "python", "cmake", "CMakeLists.txt", "pyproject.toml")
# What a round measures, and how its processes start: CUDA doesn't survive a fork.
ROUNDS = {"cpu": (r"^(?!cuda\.)", "forkserver"), "cuda": (r"^cuda\.|^cpu\.Package\.", "spawn")}


def portable(result: dict[str, Any]) -> dict[str, Any]:
    """One result file of asv, with the environment called "existing-py3", numbers to 6 digits, and null for NaN."""
    path = result["python"]
    text = {"env_name": "existing-py3", "python": "py3", "params": {**result["params"], "python": "py3"}}
    made: dict[str, Any] = short({**result, **text})
    if os.path.isabs(path) and path in json.dumps(made):
        raise ValueError(f"{path} is still in the results of {made['commit_hash']}")
    return made


def short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: short(item) for name, item in value.items()}
    if isinstance(value, list):
        return [short(item) for item in value]
    return value


def store(result: dict[str, Any], folder: Path) -> Path:
    """Writes a portable result. Benchmarks that only the file has stay in it; one measured again is replaced whole."""
    file = folder / f"{result['commit_hash'][:8]}-existing-py3.json"
    if file.exists():
        old = json.loads(file.read_text())
        if old["result_columns"] == result["result_columns"]:
            result = {**result, "results": {**old["results"], **result["results"]}}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(as_lines(result))
    return file


def as_lines(value: dict[str, Any]) -> str:
    """Strict JSON with a line for each field, and for each benchmark in "results"."""

    def write(value: Any) -> str:
        return json.dumps(value, allow_nan=False)

    lines = []
    for name, item in value.items():
        if name == "results":
            inner = ",\n".join(f"  {write(benchmark)}: {write(row)}" for benchmark, row in sorted(item.items()))
            lines.append(f' "results": {{\n{inner}\n }}')
        else:
            lines.append(f" {write(name)}: {write(item)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def is_empty(result: dict[str, Any]) -> bool:
    """Whether no benchmark gave a number."""
    values = [row[0] for row in result["results"].values() if row]
    return all(value is None or all(one is None for one in value) for value in values)


def introduce(machine: str) -> None:
    """Tells asv what this machine is, unless it knows one of that name. It keeps them in ~/.asv-machine.json."""
    from asv.machine import Machine, MachineCollection

    try:
        MachineCollection.load(machine)
    except Exception:
        facts = {**Machine.get_defaults(), "machine": machine, "os": platform.system()}
        MachineCollection.save(machine, facts)


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run_asv(commit: str, machine: str, options: list[str], temporary: Path) -> int:
    """One run of asv, whose results go to a temporary folder. Returns asv's exit status."""
    folders = {"repo": str(ROOT), "benchmark_dir": str(HERE / "benchmarks"), "results_dir": str(temporary)}
    config_file = temporary / "asv.conf.json"
    config_file.write_text(json.dumps({**read_config(), **folders}))
    # asv gives its processes this instead of PYTHONPATH.
    environment = {"ASV_PYTHONPATH": os.environ.get("PYTHONPATH", ""), **os.environ}
    command = [sys.executable, "-m", "asv", "run", "--config", str(config_file), "-E", "existing:same"]
    command += ["--set-commit-hash", commit, "--machine", machine, *options]
    return subprocess.run(command, env=environment, check=False).returncode


def read_config() -> dict[str, Any]:
    """asv.conf.json, which is JSON with lines of comment."""
    lines = (HERE / "asv.conf.json").read_text().splitlines()
    config: dict[str, Any] = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the installed flash and store the results as a commit's.")
    parser.add_argument("--machine", required=True, help="a name for this machine, the same every time")
    parser.add_argument("--commit", help="the commit that is installed (default: the one checked out)")
    parser.add_argument("--device", choices=tuple(ROUNDS), default="cpu", help="what to measure (default: cpu)")
    parser.add_argument("--bench", action="append", default=[], metavar="REGEXP", help="only these benchmarks")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the history is")
    arguments = parser.parse_args()

    if arguments.commit is None and git("status", "--porcelain", "--", *SOURCES):
        sys.exit("There are changes that no commit has. Commit them, or name with --commit what is installed.")
    commit = git("rev-parse", "--verify", f"{arguments.commit or 'HEAD'}^{{commit}}")
    everything, launch_method = ROUNDS[arguments.device]
    options = ["--launch-method", launch_method]
    options += [word for expression in arguments.bench or [everything] for word in ("--bench", expression)]

    introduce(arguments.machine)
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        status = run_asv(commit, arguments.machine, options, temporary)
        folder = arguments.results / arguments.machine
        files = [file for file in (temporary / arguments.machine).glob("*.json") if file.name != "machine.json"]
        results = [portable(json.loads(file.read_text())) for file in files]
        if not results or all(is_empty(result) for result in results):
            sys.exit("No benchmark gave a result: can this environment import flash?")
        for result in results:
            print(store(result, folder))
        for source, target in (
            (temporary / arguments.machine / "machine.json", folder),
            (temporary / "benchmarks.json", arguments.results),
        ):
            (target / source.name).write_text(source.read_text().rstrip() + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
