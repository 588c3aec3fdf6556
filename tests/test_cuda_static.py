"""What can be known of the CUDA kernels without running them, read from the very library that the package has loaded.

Resources, architectures and instructions (disassembly.py); those of Hopper's kernels are in test_hopper_static.py.
Skipped where the library has no CUDA part or cuobjdump is not found.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from disassembly import (
    FROM_80,
    FROM_90A,
    Instruction,
    Kernel,
    count,
    cuobjdump,
    disassembly,
    is_within,
    kernel_of,
    launch_bounds,
    loops_of,
    needs_cuobjdump,
    resources,
    target,
)
from ptx import loaded_library

import flash

REGISTERS = 65536  # of a multiprocessor
MOST_REGISTERS = 255  # of a thread
# Kernels that keep something in local memory, with the reason: operation, head dim, options.
LOCAL_MEMORY: dict[Kernel, str] = {}
# Kernels of the plain products whose instructions are looked at.
PRODUCTS = ("forward_any", "backward_keys_any", "backward_queries_any")
# Those on tensor cores, and how many products they have.
TENSOR_PRODUCTS = {"forward_sm80": 2, "backward_keys_sm80": 4, "backward_queries_sm80": 3}
# backward_sm80 by head dim: s and dp are 16 keys to each of 8 warps, of 64 queries or, in two rounds, of 32; dv, dk and
# dq are what five products of 128 x 64 scores have in all, but for those two.
ONE_PASS_MMAS = {64: 2 * 32 + 3 * 32, 128: 2 * 32 + 3 * 64}
# Rows and columns of the scores of a warp, by head dim. As in cuda/configs.h.
TENSOR_TILES = {("forward_sm80", 64): (32, 64), ("forward_sm80", 128): (32, 64)}
TENSOR_TILES |= {(f"backward_{side}_sm80", 64): (16, 64) for side in ("keys", "queries")}
TENSOR_TILES |= {(f"backward_{side}_sm80", 128): (16, 32) for side in ("keys", "queries")}
# Any head dim, in two loops over chunks of 64 columns, with 16 x 64 scores of a warp in each.
BIAS, BIAS_MMAS = Kernel("backward_bias_sm80", 0, True, "bfloat16"), 2 * 16 * 64 * 64 // (16 * 8 * 16)
MEMORY = {64: "small", 128: "large"}  # that backward_sm80 asks for

# Scores of a thread, and the rows that they are of: of the forward or not, and by head dim. As in cuda/configs.h.
SCORES = {(True, 64): (64, 8), (True, 128): (32, 8), (False, 64): (32, 4), (False, 128): (16, 4)}


if not (flash.show_config("dicts") or {})["cuda"]["built"]:
    pytest.skip("the library was built without CUDA", allow_module_level=True)


@cache
def machine_code() -> dict[tuple[str, Kernel], list[Instruction]]:
    return disassembly([*looked_at(), *tensor_kernels(), BIAS])


def looked_at() -> list[Kernel]:
    return [Kernel(operation, head_dim, False) for operation in PRODUCTS for head_dim in (64, 128)]


def tensor_kernels() -> list[Kernel]:
    kernels = [Kernel(name, head_dim, False, "bfloat16") for name in TENSOR_PRODUCTS for head_dim in (64, 128)]
    return [*kernels, *(Kernel("backward_sm80", dim, False, "bfloat16", MEMORY[dim]) for dim in ONE_PASS_MMAS)]


def product_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The innermost loops that multiply and add."""
    loops = loops_of(code)
    innermost = [x for x in loops if not any(is_within(y, x) for y in loops if y is not x)]
    return [loop for loop in innermost if count(loop, "FFMA.*") > 0]


def main_loop(code: list[Instruction]) -> list[Instruction]:
    """One step along the other side: the least loop with all products in it."""
    products = product_loops(code)
    return next(loop for loop in loops_of(code) if all(is_within(product, loop) for product in products))


# ---- Any kernel


def test_size() -> None:
    """The wheel, which is little more than the library and compressed as here, stays below 30 MB."""
    assert len(zlib.compress(loaded_library().read_bytes())) < 29e6


@needs_cuobjdump
def test_architectures() -> None:
    """Machine code for each architecture that is meant, and beside it the PTX that it is made from."""
    files = cuobjdump("--list-elf", "--list-ptx")
    units: dict[str, set[str]] = {}
    for unit, arch in re.findall(r": (\w+)\.(\w+)\.(?:cubin|ptx)", files):
        units.setdefault(arch, set()).add(unit)
    assert units.keys() == {*FROM_80, *FROM_90A}
    ptx = {arch: set(re.findall(rf": (\w+)\.{arch}\.ptx", files)) for arch in units}
    assert ptx == {"sm_80": units["sm_80"], "sm_90": set(), "sm_90a": units["sm_90a"]}
    cubins = {arch: set(re.findall(rf": (\w+)\.{arch}\.cubin", files)) for arch in units}
    assert cubins == units and units["sm_80"] == units["sm_90"]
    assert units["sm_90a"] and not units["sm_80"] & units["sm_90a"]


@needs_cuobjdump
def test_every_kernel_is_there_with_its_ptx_uncompressed() -> None:
    """The emulator, and whoever looks, reads PTX as it lies in the file."""
    found: dict[str, set[str]] = {}
    for arch, symbol in resources():
        found.setdefault(symbol, set()).add(arch)
    assert found == {symbol: set(kernel_of(symbol).architectures) for symbol in launch_bounds()}
    instances = Path(__file__).parent.parent / "cuda/instances.def"
    if instances.exists():
        rows = re.findall(r"^FLASH_KERNEL\((\w+), (\w+), (\w+), (\d+), (\w+), (\w+)\)$", instances.read_text(), re.M)
        listed = {
            Kernel(name, int(dim), options == "options", type_, memory) for _, name, type_, dim, options, memory in rows
        }
        assert {kernel_of(symbol) for symbol in found} == listed
        assert all(header.endswith("_sm90") == name.endswith("_sm90") for header, name, *_ in rows)


@needs_cuobjdump
def test_registers_suffice() -> None:
    """No kernel spills or has arrays in local memory, and as many blocks fit as its launch bounds promise."""
    assert set(LOCAL_MEMORY) <= {kernel_of(symbol) for _, symbol in resources()}
    faults = []
    for (arch, symbol), use in resources().items():
        threads, blocks = launch_bounds()[symbol]
        rounded = -(-use.registers // 8) * 8  # they are handed out in groups of 8
        if (use.stack or use.local) and kernel_of(symbol) not in LOCAL_MEMORY:
            faults.append(f"{kernel_of(symbol)} on {arch}: {use.stack} bytes of stack, {use.local} of local memory")
        if use.registers > MOST_REGISTERS or rounded * threads * blocks > REGISTERS:
            faults.append(f"{kernel_of(symbol)} on {arch}: {use.registers} registers in {blocks} x {threads} threads")
    assert faults == []


# ---- The kernels of products, without options


def each_kernel() -> pytest.MarkDecorator:
    cases = [(arch, kernel) for arch in FROM_80 for kernel in looked_at()]
    names = [f"{arch}-{kernel.operation}-{kernel.head_dim}" for arch, kernel in cases]
    return pytest.mark.parametrize(("arch", "kernel"), cases, ids=names)


@needs_cuobjdump
@each_kernel()
def test_instructions(arch: str, kernel: Kernel) -> None:
    code = machine_code()[arch, kernel]
    assert count(code, "(LDL|STL).*") == 0
    # Rows that are vectors come in by 16 bytes (float32) or 8 (16-bit types), and go through shared memory by 16.
    assert count(code, r"LDG\.E\.128.*") > 0 and count(code, r"LDG\.E\.64.*") > 0 and count(code, r"STS\.128") > 0


@needs_cuobjdump
@each_kernel()
def test_product_loops(arch: str, kernel: Kernel) -> None:
    """At least 80 % are multiplications, and numbers come from shared memory by 16 bytes, some weights by 8."""
    loops = product_loops(machine_code()[arch, kernel])
    # s and p v; or s, dp and a product for each gradient.
    assert len(loops) >= {"forward_any": 2, "backward_keys_any": 4, "backward_queries_any": 3}[kernel.operation]
    for loop in loops:
        assert count(loop, "FFMA.*") >= 0.8 * len(loop), Counter(at.name for at in loop)
        assert count(loop, r"LDS.*") == count(loop, r"LDS\.(64|128)") >= count(loop, r"LDS\.128") > 0
        assert count(loop, "(LDG|LDL|STL|STS|STG|BAR|MUFU).*") == 0  # calls: see test_main_loop


@needs_cuobjdump
@each_kernel()
def test_main_loop(arch: str, kernel: Kernel) -> None:
    """In a step: no double precision, division or function call; 2^x once per score and, forward, per row at most."""
    loop = main_loop(machine_code()[arch, kernel])
    assert count(loop, "(DFMA|DMUL|DADD|F2F.*F64).*") == 0
    assert count(loop, r"(MUFU\.(RCP|RSQ|SQRT|LG2)|I2F|F2I).*") == 0
    scores, rows = SCORES[kernel.operation == "forward_any", kernel.head_dim]
    assert count(loop, r"MUFU\.EX2.*") <= scores + (rows if kernel.operation == "forward_any" else 0)
    # A call to just behind the next instruction is how ptxas leaves some loops; a function lies outside.
    first, last = loop[0].address, loop[-1].address
    calls = [at for at in loop if at.name.startswith("CALL")]
    assert [at.text for at in calls if not first <= (target(at) or 0) <= last + 16] == []


# ---- The kernels on tensor cores, without options


@needs_cuobjdump
@pytest.mark.parametrize("arch", FROM_80)
@pytest.mark.parametrize("kernel", tensor_kernels(), ids=lambda kernel: f"{kernel.operation}-{kernel.head_dim}")
def test_tensor_cores(arch: str, kernel: Kernel) -> None:
    """All products are there, unrolled; operands come by ldmatrix, rows by asynchronous copies, 2^x by its own unit."""
    code = machine_code()[arch, kernel]
    assert count(code, "(LDL|STL).*") == 0
    products = count(code, r"HMMA\.16816\.F32\.BF16")
    if kernel.operation == "backward_sm80":
        wanted = ONE_PASS_MMAS[kernel.head_dim]
        assert count(code, r"REDG?\.E\.ADD\.F32.*") > 0
    else:
        rows, columns = TENSOR_TILES[kernel.operation, kernel.head_dim]  # of a warp's scores
        wanted = TENSOR_PRODUCTS[kernel.operation] * rows * columns * kernel.head_dim // (16 * 8 * 16)
    assert products == count(code, "HMMA.*") == wanted
    assert count(code, r"LDSM\.16\.M88\.4") > 0 and count(code, r"LDSM\.16\.MT88\.4") > 0
    assert count(code, r"LDSM.*") == count(code, r"LDSM\.16\.MT?88\.4") <= products
    assert count(code, r"LDGSTS\.E\.BYPASS\.128.*") > 0
    assert count(code, "(DFMA|DMUL|DADD).*") == 0
    main = next(loop for loop in loops_of(code) if count(loop, "HMMA.*") == products)
    assert count(main, "(LDL|STL).*") == 0 and count(main, r"MUFU\.(RCP|RSQ|SQRT|LG2)") == 0


@needs_cuobjdump
@pytest.mark.parametrize("arch", FROM_80)
def test_tensor_cores_of_bias(arch: str) -> None:
    """Both products, each in the loop over its chunks; rows by asynchronous copies, operands by ldmatrix."""
    code = machine_code()[arch, BIAS]
    assert count(code, r"HMMA\.16816\.F32\.BF16") == count(code, "HMMA.*") == BIAS_MMAS
    chunks = [loop for loop in loops_of(code) if count(loop, "HMMA.*") == BIAS_MMAS // 2]
    assert len(chunks) == 2 and not is_within(*chunks)
    for loop in chunks:
        assert count(loop, r"LDSM\.16\.M88\.4") == count(loop, "LDSM.*") <= BIAS_MMAS // 2
        assert count(loop, r"LDGSTS\.E\.BYPASS\.128.*") > 0
    assert count(code, "(LDL|STL|DFMA|DMUL|DADD).*") == 0
