"""The C side of the installed package: header, library, stored ABI, find_package, pkg-config and the example programs.

``python tests/test_c_api.py > tests/abi.txt`` writes the stored text anew; review what changed before committing it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flash
from flash._abi import ffi

ROOT = Path(__file__).resolve().parents[1]
STRICT = ["-Wall", "-Wextra", "-pedantic", "-Werror"]


def installed(name: str) -> Path:
    """A file of the package; an editable install has two directories."""
    return next(Path(path, name) for path in flash.__path__ if Path(path, name).exists())


def tool(name: str) -> str:
    """The path of a program; its environment variable (CC, CXX) wins."""
    variable = {"cc": "CC", "c++": "CXX"}.get(name, "")
    path = shutil.which(os.environ.get(variable) or name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


# ---- The stored ABI ----


def exported_functions() -> list[str]:
    lines = run(tool("nm"), "-D", "--defined-only", installed("libflash.so")).splitlines()
    assert all(line.split()[1] == "T" for line in lines), lines  # no weak or data symbol
    return sorted(line.split()[2] for line in lines)


def abi_text() -> str:
    """Constants, structs (name, bytes; each field with its offset) and exported functions."""
    library = ffi.dlopen(str(installed("libflash.so")))
    lines = [f"{name} = {getattr(library, name)}" for name in sorted(dir(library)) if name.startswith("FLASH_")]
    for struct in ffi.list_types()[0]:
        if ffi.typeof(struct).kind == "struct":
            lines += ["", f"{struct}: {ffi.sizeof(struct)} bytes"]
            lines += [f"  {field.offset:3} {name}" for name, field in ffi.typeof(struct).fields]
    lines += ["", *(f"{name} {ffi.typeof(getattr(library, name)).cname}" for name in exported_functions())]
    return "\n".join(lines) + "\n"


def test_abi_is_the_stored_one():
    assert abi_text() == (ROOT / "tests" / "abi.txt").read_text()


def test_structs_have_no_padding():
    for struct in ffi.list_types()[0]:
        if ffi.typeof(struct).kind == "struct":
            fields = [field for _, field in ffi.typeof(struct).fields]
            assert sum(ffi.sizeof(field.type) for field in fields) == ffi.sizeof(struct), struct


# ---- The header ----


@pytest.mark.parametrize(
    ("compiler", "language", "standard"), [("cc", "c", "c99"), ("c++", "c++", "c++11"), ("c++", "c++", "c++20")]
)
def test_header_compiles_alone(tmp_path, compiler, language, standard):
    source = tmp_path / "alone.c"
    source.write_text("#include <flash.h>\n#include <flash.h>\nint main(void) { return FLASH_OK; }\n")
    flags = [*STRICT, f"-std={standard}", "-I", flash.get_include(), "-fsyntax-only"]
    run(tool(compiler), "-x", language, *flags, source)


def test_compiler_and_cffi_agree_on_the_layout(tmp_path):
    """Offsets, sizes and constants, as a C++ compiler sees them."""
    lines = ["#include <cstddef>", "#include <flash.h>"]
    for line in (ROOT / "tests" / "abi.txt").read_text().splitlines():
        if constant := re.fullmatch(r"(FLASH_\w+) = (\d+)", line):
            lines.append(f'static_assert({constant[1]} == {constant[2]}, "");')
        elif struct := re.fullmatch(r"(\w+): (\d+) bytes", line):
            name = struct[1]
            lines.append(f'static_assert(sizeof({name}) == {struct[2]}, "");')
        elif field := re.fullmatch(r" +(\d+) (\w+)", line):
            lines.append(f'static_assert(offsetof({name}, {field[2]}) == {field[1]}, "");')
    assert len(lines) > 60
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join(lines) + "\n")
    run(tool("c++"), "-std=c++11", "-I", flash.get_include(), "-fsyntax-only", source)


@pytest.fixture
def dlpack() -> Path:
    """The directory of a real dlpack.h: PyTorch's."""
    torch = importlib.util.find_spec("torch")
    header = Path(torch.origin).parent / "include" / "ATen" / "dlpack.h" if torch and torch.origin else None
    if header is None or not header.exists():
        pytest.skip("no dlpack.h: PyTorch is not installed")
    return header.parent


def test_tensor_has_the_layout_of_dlpack(tmp_path, dlpack):
    source = tmp_path / "layout.cpp"
    fields = ["data", "device", "ndim", "dtype", "shape", "strides", "byte_offset"]
    nested = ["device.device_type", "device.device_id", "dtype.code", "dtype.bits", "dtype.lanes"]
    asserts = [
        f'static_assert(offsetof(flash_tensor, {field}) == offsetof(DLTensor, {field}), "{field}");\n'
        f'static_assert(sizeof(flash_tensor{{}}.{field}) == sizeof(DLTensor{{}}.{field}), "{field}");'
        for field in fields + nested
    ]
    asserts.append('static_assert(sizeof(flash_tensor) == sizeof(DLTensor), "");')
    codes = {"kDLFloat": 2, "kDLBfloat": 4, "kDLFloat8_e4m3fn": 10, "kDLBool": 6, "kDLInt": 0}
    devices = {"kDLCPU": 1, "kDLCUDAHost": 3, "kDLCUDA": 2, "kDLCUDAManaged": 13}
    asserts += [f'static_assert({name} == {value}, "");' for name, value in {**codes, **devices}.items()]
    source.write_text("\n".join(["#include <cstddef>", "#include <flash.h>", "#include <dlpack.h>", *asserts]) + "\n")
    run(tool("c++"), "-std=c++17", "-I", flash.get_include(), "-I", dlpack, "-fsyntax-only", source)


@pytest.mark.parametrize(("compiler", "language", "standard"), [("cc", "c", "c99"), ("c++", "c++", "c++17")])
def test_tensor_is_dlpacks_where_that_came_first(tmp_path, dlpack, compiler, language, standard):
    source = tmp_path / "first.c"
    source.write_text(
        "#include <dlpack.h>\n#include <flash.h>\n"
        "flash_status call(const flash_problem *problem, const DLTensor *o) {\n"
        "  return flash_forward(problem, o, 0, 0, 0, 0);\n}\n"
    )
    flags = [f"-std={standard}", "-Wall", "-Werror", "-I", flash.get_include(), "-isystem", dlpack, "-fsyntax-only"]
    run(tool(compiler), "-x", language, *flags, source)


# ---- The library ----


def test_library_needs_no_cuda_library():
    dynamic = run(tool("readelf"), "-d", installed("libflash.so"))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert any(name.startswith("libc.so") for name in needed)
    assert not [name for name in needed if name.startswith(("libcuda", "libnv", "libpython"))], needed
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_library_loads_without_a_driver():
    """Loading it and asking for the version opens no driver, whether or not there is one."""
    code = (
        "import ctypes, sys\n"
        "print(ctypes.CDLL(sys.argv[1]).flash_version())\n"
        "print('libcuda' in open('/proc/self/maps').read())\n"
    )
    version, has_cuda = run(sys.executable, "-c", code, installed("libflash.so")).split()
    assert has_cuda == "False"
    assert int(version) > 0


def test_versions_agree():
    header = (Path(flash.get_include()) / "flash.h").read_text()
    numbers = [int(number) for number in re.findall(r"#define FLASH_VERSION_\w+ (\d+)", header)]
    assert ".".join(map(str, numbers)) == importlib.metadata.version("flash-array") == flash.__version__
    library = ctypes.CDLL(str(installed("libflash.so")))
    assert library.flash_version() == 10000 * numbers[0] + 100 * numbers[1] + numbers[2]


def test_one_wheel_serves_every_python():
    wheel = importlib.metadata.distribution("flash-array").read_text("WHEEL")
    assert re.findall(r"^Tag: (.*)$", wheel, re.MULTILINE)
    assert all(re.match(r"py3-none-(many)?linux", tag) for tag in re.findall(r"^Tag: (.*)$", wheel, re.MULTILINE))


# ---- Programs built against the package ----


@pytest.mark.slow
def test_examples_build_with_find_package(tmp_path):
    cmakedir = run(sys.executable, "-m", "flash", "--cmakedir").strip()
    # make and ninja both do; CMAKE_GENERATOR in the environment chooses.
    cmake = tool("cmake")
    run(cmake, "-S", ROOT / "examples", "-B", tmp_path, f"-Dflash_DIR={cmakedir}", cwd=tmp_path)
    run(cmake, "--build", tmp_path)
    assert "ok" in run(tmp_path / "attention_c")
    assert "differ by at most" in run(tmp_path / "attention_cpp")


@pytest.mark.parametrize(
    ("compiler", "standard", "source"), [("cc", "c99", "attention.c"), ("c++", "c++17", "attention.cpp")]
)
def test_examples_build_with_pkg_config(tmp_path, compiler, standard, source):
    where = {**os.environ, "PKG_CONFIG_PATH": str(installed("pkgconfig"))}
    flags = run(tool("pkg-config"), "--cflags", "--libs", "flash", env=where).split()
    program = tmp_path / "program"
    run(tool(compiler), *STRICT, f"-std={standard}", ROOT / "examples" / source, "-o", program, *flags, "-lm")
    run(program)


if __name__ == "__main__":
    print(abi_text(), end="")
