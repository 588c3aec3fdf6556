"""The package as a whole: what importing costs and pulls in, where its files are, that every docstring example runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import flash

FILES = sorted(file.relative_to(path) for path in flash.__path__ for file in Path(path).rglob("*.py"))
MODULES = [".".join(("flash", *file.with_suffix("").parts)).removesuffix(".__init__") for file in FILES]
FRAMEWORKS = {"cupy", "jax", "matplotlib", "ml_dtypes", "torch"}


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_quick():
    """At most 100 ms beyond NumPy's own import."""
    code = "import numpy, time; start = time.perf_counter(); import flash; print(time.perf_counter() - start)"
    assert min(float(python(code)) for _ in range(5)) < 0.1


def test_import_brings_no_framework():
    assert set(python("import flash, sys; print(*sys.modules)").split()) & FRAMEWORKS == set()


def test_a_call_brings_no_framework():
    code = "import flash, numpy, sys; x = numpy.ones((2, 1, 4), 'f'); flash.attention(x, x, x); print(*sys.modules)"
    assert set(python(code).split()) & FRAMEWORKS == set()


def test_files_for_other_languages_are_there():
    assert (Path(flash.get_include()) / "flash.h").is_file()
    command = [sys.executable, "-m", "flash", "--cmakedir"]
    cmakedir = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert (cmakedir / "flashConfig.cmake").is_file()
    assert any((Path(path) / "py.typed").is_file() for path in flash.__path__)


def test_public_names_exist_and_are_documented():
    assert sorted(flash.__all__) == sorted(set(flash.__all__))
    public = {name: getattr(flash, name) for name in flash.__all__ if not name.startswith("_")}
    for name, value in list(public.items()):
        if inspect.isclass(value):
            public |= {f"{name}.{method}": body for method, body in vars(value).items() if not method.startswith("_")}
    assert [name for name, value in public.items() if not inspect.getdoc(value)] == []


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in FRAMEWORKS:
            raise
        pytest.skip(f"{error.name} is not installed")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=options).failed == 0
