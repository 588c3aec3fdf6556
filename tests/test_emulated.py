"""The CUDA kernels without a GPU: every test marked `emulated`, in a session of pytest that computes on the emulator.

A process opens one library, and this one has opened the library without the emulator, so they run in another. The same
by hand: FLASH_LIBRARY=build/emulated/tests/emulator/libflash_emulated.so pytest -m emulated -n auto
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import emulated
import emulated_library
import ptx
import pytest

import flash

MOST_SHOWN = 20_000  # characters of a failed session


in_this_session = pytest.mark.skipif(emulated.lib is not None, reason="this session computes on the emulator already")


@pytest.mark.slow
@in_this_session
def test_kernels_on_the_emulator(tmp_path: Path) -> None:
    environment = emulated_library.environment(PYTEST_ADDOPTS="", FLASH_EMULATED_KERNELS=str(tmp_path))
    for name in [name for name in environment if name.startswith("PYTEST_XDIST")]:
        del environment[name]  # of the session that this one runs in
    workers = str(len(os.sched_getaffinity(0)))
    session = ["-m", "emulated", "-n", workers, "--dist", "worksteal", "-p", "no:cacheprovider"]
    shown = ["-q", "-rfE", "--no-header", "--tb=short", "--durations=5"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *session, *shown],
        cwd=emulated_library.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    output = run.stdout + run.stderr
    if run.returncode != 0:
        pytest.fail(f"on the emulated device:\n{output[-MOST_SHOWN:]}", pytrace=False)
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None and int(passed[1]) >= 650, output[-MOST_SHOWN:]
    workers_kernels = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    known, ran = ({kernel for kernels in workers_kernels for kernel in kernels[key]} for key in ("all", "ran"))
    assert known and known == ran


# ---- What is emulated is what ships ----------------------------------------------------------------------------------


@pytest.mark.slow
@in_this_session
def test_ptx_is_that_of_the_installed_library() -> None:
    """They are built apart, with other options, and the installed one may be older than the sources."""
    if not (flash.show_config("dicts") or {})["cuda"]["built"]:
        pytest.skip("the installed library has no CUDA part")
    emulated_ones = ptx.kernels(emulated_library.path().read_bytes())
    rows = re.findall("^FLASH_KERNEL", (emulated_library.ROOT / "cuda/instances.def").read_text(), re.MULTILINE)
    assert len(emulated_ones) == len(rows) > 0
    installed = ptx.kernels(ptx.loaded_library().read_bytes())
    assert installed.keys() == emulated_ones.keys(), "install again"
    unlike = [name for name, text in installed.items() if text != emulated_ones[name]]
    unlike = [name for name in unlike if ptx.canonical(installed[name]) != ptx.canonical(emulated_ones[name])]
    assert unlike == [], "of other sources (install again) or of another nvcc"


LOOP = """{
.reg .f32 %f<9>;
.reg .b32 %r<3>;
ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r1];
fma.rn.f32 %f5, %f1, %f2, %f3;
fma.rn.f32 %f6, %f4, %f5, %f5;
ret;
}
"""
IN_HALVES = """{
.reg .f32 %f<11>;
.reg .b32 %r<3>;
.pragma "used_bytes_mask 255";
ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r1];
ld.shared.v2.f32 {%f5, %f6}, [%r1+8];
fma.rn.f32 %f7, %f1, %f2, %f5;
fma.rn.f32 %f8, %f6, %f7, %f7;
ret;
}
"""


def test_other_ptx_is_noticed() -> None:
    assert LOOP != IN_HALVES and ptx.canonical(LOOP) == ptx.canonical(IN_HALVES)
    for old, new in [
        ("+8", "+16"),
        ("[%r1+8", "[%r2+8"),
        ("%f5, %f6}", "%f6, %f5}"),
        ("255", "65280"),
        ("%f7, %f7;", "%f7, %f1;"),
        ("fma.rn", "fma.rz"),
        ("ret;", "bar.sync 0;\nret;"),
    ]:
        other = IN_HALVES.replace(old, new)
        assert other != IN_HALVES and ptx.canonical(other) != ptx.canonical(LOOP), (old, new)


def test_ptx_is_found_in_a_library() -> None:
    def unit(path: str, line: int, *bodies: str) -> bytes:
        entries = (f".visible .entry k{body[:1]}(\n)\n{{\n.loc\t1 {line} 0\n{body};\n}}\n" for body in bodies)
        debug = f'.file\t1 "{path}"\n.section\t.debug_str\n{{\n.b8 {line}\n}}\n'
        return f".version 9.0\n.target sm_80\n{''.join(entries)}{debug}".encode() + b"\0\0\x7fELF"

    library = b"\x7fELF\0" + unit("/a/x.cuh", 3, "add", "sub") + unit("/a/y.cuh", 5, "mul")
    found = ptx.kernels(library)
    assert found == ptx.kernels(unit("/b/c/x.cuh", 4, "add", "sub") + unit("/b/y.cuh", 9, "mul"))
    head = ".version 9.0\n.target sm_80\n"
    bodies = {"ka": "add", "ks": "sub", "km": "mul"}
    assert found == {name: f"{head}.visible .entry {name}(\n)\n{{\n{body};\n}}\n" for name, body in bodies.items()}
    assert ptx.kernels(library.replace(b"mul;", b"mad;"))["km"] != found["km"]
