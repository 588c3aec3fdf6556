"""The CUDA kernels before a host compiler, with warnings as errors and against declarations only (tests/lint).

nvcc says nothing where a loop runs past a register array: it drops the iteration. g++ sees it once it has inlined and
unrolled everything, so kernels are compiled with optimization, then thrown away. No nvcc is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "cuda").is_dir():
    pytest.skip("no source tree here", allow_module_level=True)

ROWS = re.findall(r"^FLASH_KERNEL.*$", (ROOT / "cuda/instances.def").read_text(), re.MULTILINE)
HEADERS = sorted({row.partition("(")[2].partition(",")[0] for row in ROWS})
# Device code has no exceptions: with them each call might leave its loop, and g++ would say less about the loop.
# Tensor maps among the arguments lie at multiples of 64 bytes, of which g++ notes that it once passed them otherwise.
FLAGS = ["-std=c++17", "-fno-exceptions", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]
COMPILERS = [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed"))
    for name in ("g++", "clang++")
]


def compile_rows(compiler: str, header: str, rows: str, *options: str, cuda: Path = ROOT / "cuda") -> str:
    """Compiles rows of instances.def as nvcc gets them, and returns what the compiler says."""
    unit = f'#include "cuda_runtime_api.h"\n#include "{header}.cuh"\n#include "launch.cuh"\n{rows}\n'
    folders = [f"-I{folder}" for folder in (ROOT / "tests/lint", cuda, ROOT / "src")]
    command = [compiler, *FLAGS, *options, *folders, "-x", "c++", "-", "-c", "-o", os.devnull]
    done = subprocess.run(command, input=unit, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == ("error:" in done.stderr), done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_kernel_draws_a_warning(compiler: str) -> None:
    def units(chosen: list[str], option: str) -> Iterator[tuple[str, str, str]]:
        for start, rows in groupby(sorted(chosen), key=lambda row: row.split(",")[:2]):
            yield start[0].partition("(")[2], "\n".join(rows), option

    # -O3 sees more, at twice the time: it unrolls nested loops too, as nvcc does. Other head dims share that code.
    smallest = [row for row in ROWS if re.search(r", any, 64, plain, small|, float\d+, 64, plain, (small|hopper)", row)]
    jobs = [*units(ROWS, "-O2"), *units(smallest, "-O3")]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        said = pool.map(lambda job: compile_rows(compiler, *job), jobs)
    assert len(jobs) > len(HEADERS)
    assert [text for text in said if text] == []


@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_header_is_compiled(compiler: str) -> None:
    said = [compile_rows(compiler, header, "", "-H") for header in HEADERS]
    used = {Path(path).resolve() for path in re.findall(r"^\.+ (.+)$", "\n".join(said), re.MULTILINE)}
    headers = {file.resolve() for file in (ROOT / "cuda").rglob("*") if file.suffix in (".h", ".cuh")}
    assert headers - used == set()


# One index too many, in each part of a kernel that keeps arrays in registers: header of the kernel, file, correct line,
# line at fault.
ANY = "forward_any"
FAULTS = {
    "products": (ANY, "tile.cuh", "for (int b = 0; b < kColumns; ++b) {", "for (int b = 0; b <= kColumns; ++b) {"),
    "rows_read": (ANY, "tile.cuh", "for (int a = 0; a < kRows; ++a) x[a]", "for (int a = 0; a <= kRows; ++a) x[a]"),
    "loads_in_flight": (ANY, "tile.cuh", "raw[u] = {};", "raw[u + 1] = {};"),
    "granules": (ANY, "work.cuh", "g < granules.kNumber;", "g <= granules.kNumber;"),
    "maxima": (ANY, "softmax.cuh", "for (int b = 1; b < kColumns; ++b)", "for (int b = 1; b <= kColumns; ++b)"),
    "sums": (ANY, "forward_any.cuh", "for (int a = 0; a < kRows; ++a) {", "for (int a = 0; a <= kRows; ++a) {"),
    "sums_of_wgmma": (
        "forward_sm90",
        "forward_compute.cuh",
        "for (int c = 0; c < kValues; ++c) o",
        "for (int c = 0; c <= kValues; ++c) o",
    ),
    "scores_of_wgmma": (
        "backward_sm90",
        "gradient.cuh",
        "b < P::kColumns; b += 2) {\n    float2 delta",
        "b <= P::kColumns; b += 2) {\n    float2 delta",
    ),
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("fault", FAULTS)
def test_an_index_past_a_register_array_is_found(fault: str, tmp_path: Path) -> None:
    header, name, right, wrong = FAULTS[fault]
    cuda = tmp_path / "cuda"
    shutil.copytree(ROOT / "cuda", cuda)
    text = (cuda / name).read_text()
    assert right in text, "the kernels have changed: choose the fault anew"
    (cuda / name).write_text(text.replace(right, wrong, 1))
    rows = [row for row in ROWS if re.match(rf"FLASH_KERNEL\({header}, {header}, (any|float16), 64, plain,", row)]
    assert len(rows) == 1
    said = compile_rows("g++", header, rows[0], "-O3", cuda=cuda)
    assert re.search("-Werror=(aggressive-loop-optimizations|array-bounds)", said), said
