"""The benchmarks: that they run at all, and that what is stored of them is strict JSON without paths."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import flash

BENCH = Path(__file__).resolve().parent.parent / "asv_bench"
CONFIG = str(BENCH / "asv.conf.json")

needs_asv = pytest.mark.skipif(importlib.util.find_spec("asv") is None, reason="asv is not installed")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
needs_git = pytest.mark.skipif(not (BENCH.parent / ".git").exists(), reason="not in a git checkout")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For processes that find this flash, and whose asv keeps what it knows of machines in a temporary folder."""
    folders = os.pathsep.join(dict.fromkeys(str(Path(folder).parent) for folder in flash.__path__))
    home = {"HOME": str(tmp_path), "PYTHONUSERBASE": site.getuserbase()}
    return {**os.environ, **home, "ASV_PYTHONPATH": folders, "PYTHONPATH": folders}


def run(arguments: Iterable[object], environment: dict[str, str]) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def load(name: str) -> ModuleType:
    """A script of asv_bench as a module."""
    spec = importlib.util.spec_from_file_location(f"asv_bench_{name}", BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_suite_imports_where_nothing_is_installed_and_skips(environment):
    """Without flash, PyTorch and ml_dtypes every case is left out by a NotImplementedError in setup."""
    code = """
import inspect, sys
for name in ("flash", "torch", "ml_dtypes"):
    sys.modules[name] = None
from benchmarks import common, cpu, cuda, gpt2_block
skipped = 0
for suite in [suite for module in (cpu, cuda, gpt2_block) for suite in vars(module).values()]:
    if isinstance(suite, type) and issubclass(suite, common.Benchmark) and not inspect.isabstract(suite):
        try:
            suite().setup(*[values[0] for values in getattr(suite, "params", ())])
            raise AssertionError(suite)
        except NotImplementedError:
            skipped += 1
for call in (lambda: common.module("torch"), lambda: common.Arrays("numpy", "bfloat16")):
    try:
        call()
    except NotImplementedError:
        skipped += 1
print(skipped)
"""
    assert int(run(["-c", code], {**environment, "PYTHONPATH": str(BENCH)})) > 25


@needs_asv
def test_asv_finds_no_problem(environment):
    assert "No problems found" in run(["-m", "asv", "check", "--config", CONFIG, "-E", "existing:same"], environment)


@needs_asv
@needs_git
def test_record_stores_results_that_can_be_published(environment, tmp_path):
    """From the run of one case to a stored file that asv reads again."""
    results = tmp_path / "results"
    case = r"(Attention.time_forward\('float32', 128, 64, False\)|track_library_size)"
    command = [BENCH / "record.py", "--machine", "sample", "--commit", "HEAD", "--results", results, "--bench", case]
    run(command, environment)
    (file,) = (results / "sample").glob("*-existing-py3.json")
    stored = strict(file.read_text())
    assert {"cpu.Attention.time_forward", "cpu.Package.track_library_size"} == set(stored["results"])
    times = [time for time in stored["results"]["cpu.Attention.time_forward"][0] if time is not None]
    assert len(times) == 1 and times[0] > 0
    for folder in (str(tmp_path), sys.executable, sys.prefix, str(BENCH)):
        assert all(folder not in other.read_text() for other in results.rglob("*.json"))

    config = {**load("record").read_config(), "results_dir": str(results), "html_dir": str(tmp_path / "html")}
    config_file = tmp_path / "asv.conf.json"
    config_file.write_text(json.dumps({**config, "repo": str(BENCH.parent), "branches": ["HEAD"]}))
    run(["-m", "asv", "publish", "--config", config_file], environment)
    assert "cpu.Attention.time_forward" in (tmp_path / "html" / "index.json").read_text()


# Counts, when the graph has been drawn, the pixels in it that are neither black, nor white, nor grey, as its lines are.
COUNT = """<script>setTimeout(function () {
  var canvas = document.querySelector("#main-graph canvas.flot-base"), coloured = 0;
  if (canvas) {
    var data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    for (var i = 0; i < data.length; i += 4) {
      var pixel = [data[i], data[i + 1], data[i + 2]];
      if (data[i + 3] > 128 && Math.max(...pixel) - Math.min(...pixel) > 60) coloured += 1;
    }
  }
  document.body.setAttribute("data-coloured", coloured);
}, 3000)</script></body>"""


def coloured_pixels(page: Path, text: str, benchmark: str, environment: dict[str, str]) -> int:
    """In the graph of a benchmark, as Chromium draws this text without network."""
    page.write_text(text.replace("</body>", COUNT))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += ["--virtual-time-budget=10000", "--window-size=1200,800", f"--user-data-dir={page.parent / 'profile'}"]
    command = [str(CHROMIUM), *options, "--dump-dom", f"{page.as_uri()}#{benchmark}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    (count,) = re.findall(r'data-coloured="(\d+)"', done.stdout)
    return int(count)


@needs_asv
@needs_git
@needs_npm
@needs_chromium
def test_published_page_shows_a_graph_without_network(environment, tmp_path):
    """The history, with one commit more: the last one, which every checkout has."""
    results, html = tmp_path / "results", tmp_path / "html"
    shutil.copytree(BENCH / "results", results)
    case = "cpu.HostCost.track_forward"
    command = [BENCH / "record.py", "--machine", "sample", "--commit", "HEAD", "--results", results, "--bench", case]
    run(command, environment)
    run([BENCH / "publish.py", "--branch", "HEAD", "--results", results, "--html", html], environment)
    text, page = (html / "index.html").read_text(), tmp_path / "page.html"
    assert not re.search(r"""(src|href)=["']?(https?:)?//(?!github)""", text)
    assert coloured_pixels(page, text, case, environment) > 50
    assert coloured_pixels(page, text.replace(f"{case}.json", "elsewhere.json"), case, environment) == 0


@needs_torch
def test_blocks_of_a_model_compute_the_same_with_each_attention(environment):
    code = """
from benchmarks import gpt2_block
gpt2_block.Block.width, gpt2_block.Block.heads = 32, 2
gradients, peaks = {}, {}
for attention in ("flash", "sdpa", "standard"):
    suite = gpt2_block.Block()
    for length in (512, 64):
        suite.setup(attention, length)
        suite.time_step()
        peaks[attention, length] = suite.track_peak_memory()
    gradients[attention] = suite.step()
for others in (gradients["sdpa"], gradients["standard"]):
    for a, b in zip(gradients["flash"], others, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max(), (a, b)
assert peaks["standard", 512] > peaks["flash", 512] + 2 * 512**2 * 4, peaks  # the scores of two heads
gpt2_block.Block.matrices = 10**6  # as if they were much longer
suite.setup("flash", 64)
try:
    suite.setup("standard", 512)
except NotImplementedError as error:
    print(error)
"""
    assert "more than half of the memory" in run(
        ["-c", code], {**environment, "PYTHONPATH": f"{BENCH}:{environment['PYTHONPATH']}"}
    )


def test_record_rewrites_paths_and_nan(tmp_path):
    record = load("record")
    python = "/somewhere/bin/python3"
    result = {
        "commit_hash": "0123456789abcdef",
        "env_name": "existing-py_somewhere_bin_python3",
        "date": 1,
        "params": {"machine": "sample", "python": python},
        "python": python,
        "result_columns": ["result", "params", "stats_ci_99_a"],
        "results": {"a.time_b": [[1.23456789, math.nan, None], [["'x'", "'y'", "'z'"]], [-math.inf, None, None]]},
    }
    file = record.store(record.portable(result), tmp_path / "sample")
    assert file.name == "01234567-existing-py3.json"
    stored = strict(file.read_text())
    assert (stored["env_name"], stored["python"], stored["params"]["python"]) == ("existing-py3", "py3", "py3")
    assert stored["results"]["a.time_b"] == [[1.23457, None, None], [["'x'", "'y'", "'z'"]], [None, None, None]]
    assert "somewhere" not in file.read_text()

    again = {**result, "results": {"a.time_c": [[2.0], []]}}
    record.store(record.portable(again), tmp_path / "sample")
    assert set(strict(file.read_text())["results"]) == {"a.time_b", "a.time_c"}

    with pytest.raises(ValueError, match="still in the results"):
        record.portable({**result, "requirements": {"x": python}})


def test_the_history_is_strict_json_without_paths():
    files = sorted((BENCH / "results").glob("*/*-existing-py3.json"))
    assert files
    for file in files:
        text = file.read_text()
        assert strict(text)["commit_hash"].startswith(file.name.split("-")[0])
        assert not re.search(r'["\'](/|[A-Z]:\\)|/\w+/', text), file
