"""The CPU paths: each that this machine can run is forced in a process of its own and goes through a short sweep."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from numeric import check
from problems import DTYPES, OPTIONS, Case, Shape

import flash

PATHS = "plain", "avx2", "avx512", "avx512bf16"
CPU = flash.show_config("dicts")["cpu"]


def sweep():
    """Every option, dtype and head dim of a kind, a length of several tiles: what a path can get wrong."""
    for n, option in enumerate(OPTIONS):
        for dtype in (DTYPES[n % 4], DTYPES[(n + 1) % 4]):
            check(Case(Shape((2,), 37, 69, 4, 2, 16, 24), dtype, (option,)))
    for dtype in DTYPES:
        for D in (1, 5, 8, 21, 64, 72, 128, 192, 576):
            check(Case(Shape((), 37, 70, 2, 1, D, D), dtype, ("causal",)))
        for L in (1, 2, 63, 65, 129, 257):
            check(Case(Shape((), L, L, 2, 1, 16, 16), dtype, ("causal",)))
        check(Case(Shape((), 65, 600, 1, 1, 16, 16), dtype, ("bias_wide", "sinks")))


def python(code, path):
    environment = dict(os.environ) | {"FLASH_CPU": path, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("path", PATHS)
def test_path(path):
    if path not in CPU["available"]:
        pytest.skip(f"this machine runs {', '.join(CPU['available'])}")
    done = python("import test_paths; test_paths.sweep(); test_paths.print_path()", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [path, path, path]


def print_path():
    x = numpy.zeros((3, 1, 8), "f4")
    print(flash.explain(x, x, x).path, flash.explain(x, x, x, backward=True).path)
    print(flash.show_config("dicts")["cpu"]["path"])


def test_this_process_runs_the_fastest_path_or_the_forced_one():
    x = numpy.zeros((3, 1, 8), "f4")
    assert CPU["path"] == flash.explain(x, x, x).path == (os.environ.get("FLASH_CPU") or CPU["available"][-1])
    assert set(CPU["available"]) <= set(PATHS) and "plain" in CPU["available"]


CALL = "import flash, numpy; x = numpy.zeros((3, 1, 8), 'f4'); flash.attention(x, x, x)"


@pytest.mark.parametrize("path", ["avx1024", "AVX2", " plain"])
def test_unknown_path(path):
    """An error that says what there is, at the first call and not at import."""
    done = python(CALL, path)
    wanted = f"flash.exceptions.FlashValueError: FLASH_CPU: must be one of {', '.join(CPU['available'])}, got {path}"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == wanted
    again = python(f"import flash\ntry:\n    {CALL}\nexcept flash.FlashError: pass\n{CALL}", path)
    assert again.stderr.splitlines()[-1] == wanted
    shown = python("import flash; print(flash.show_config('dicts')['cpu']['error'])", path)
    assert (shown.returncode, shown.stdout.strip()) == (0, wanted.partition(": ")[2])


def test_empty_path_is_the_default():
    done = python("import test_paths; test_paths.print_path()", "")
    assert done.stdout.split() == [CPU["available"][-1]] * 3, done.stderr


def test_path_that_is_not_here():
    missing = [path for path in PATHS if path not in CPU["available"]]
    if not missing:
        pytest.skip("this machine runs every path")
    done = python(CALL, missing[-1])
    assert done.returncode == 1 and "UnsupportedError: FLASH_CPU: " in done.stderr
