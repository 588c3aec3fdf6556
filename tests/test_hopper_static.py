"""What can be known of Hopper's kernels without running them: their matrix products are asynchronous, what copies for
them is TMA, and the exponentials of the forward run beside products.

Read from the library that the package has loaded (disassembly.py), and from what ptxas says of its PTX.
"""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from disassembly import (
    FROM_90A,
    Instruction,
    Kernel,
    count,
    disassembly,
    find_tool,
    kernel_of,
    launch_bounds,
    loops_of,
    needs_cuobjdump,
    resources,
)
from hopper_tiles import BACKWARD, BACKWARD_WIDE, DEPTH, DEPTH_FP8, FORWARD, FORWARD_FP8, FORWARD_NARROW, PANEL, Tile
from ptx import kernels, loaded_library

import flash

REGISTERS = 65536  # of a multiprocessor
WARPGROUP = 128
TYPES = {
    "forward_sm90": ("float16", "bfloat16"),
    "forward_narrow_sm90": ("float16", "bfloat16"),
    "backward_sm90": ("float16", "bfloat16"),
    "backward_wide_sm90": ("float16", "bfloat16"),
    "forward_fp8_sm90": ("float8",),
}
TILES = {
    "forward_sm90": FORWARD,
    "forward_narrow_sm90": FORWARD_NARROW,
    "backward_sm90": BACKWARD,
    "backward_wide_sm90": BACKWARD_WIDE,
    "forward_fp8_sm90": FORWARD_FP8,
}
FORWARDS = "forward_sm90", "forward_narrow_sm90", "forward_fp8_sm90"
HOPPER = [
    Kernel(operation, head_dim, has_options, type_, "hopper")
    for operation, tiles in TILES.items()
    for head_dim, has_options in tiles
    for type_ in TYPES[operation]
]
# How often each kernel waits for products: a kernel whose products ptxas has put one after the other waits for each.
BACKWARDS = "backward_sm90", "backward_wide_sm90"
WAITS = {(operation, has_options): 4 if has_options else 5 for operation in BACKWARDS for has_options in (False, True)}
WAITS |= {(operation, has_options): 4 for operation in FORWARDS for has_options in (False, True)}
WAIT = r"WARPGROUP\.DEPBAR\.LE"
PRODUCT = r"[HQ]GMMA\.64.*"

if not (flash.show_config("dicts") or {})["cuda"]["built"]:
    pytest.skip("the library was built without CUDA", allow_module_level=True)


@cache
def machine_code() -> dict[tuple[str, Kernel], list[Instruction]]:
    return disassembly(HOPPER)


def code_of(kernel: Kernel) -> list[Instruction]:
    (arch,) = FROM_90A
    return machine_code()[arch, kernel]


def tile_of(kernel: Kernel) -> Tile:
    return TILES[kernel.operation][kernel.head_dim, kernel.has_options]


def scores_and_weights(kernel: Kernel) -> tuple[int, int]:
    """Products of a tile of queries and keys over the head dim, and of weights over the tile's columns."""
    depth = DEPTH_FP8 if kernel.type == "float8" else DEPTH
    return kernel.head_dim // depth, tile_of(kernel).columns // depth


def name_of(kernel: Kernel) -> str:
    return f"{kernel.operation}-{kernel.head_dim}-{'options' if kernel.has_options else 'plain'}-{kernel.type}"


each_kernel = pytest.mark.parametrize("kernel", HOPPER, ids=name_of)


@needs_cuobjdump
def test_these_are_all() -> None:
    assert {kernel_of(symbol) for _, symbol in resources() if kernel_of(symbol).memory == "hopper"} == set(HOPPER)


def test_registers_change_hands() -> None:
    """What warpgroups that load give back is what those that compute take; all of a multiprocessor's, and no more."""
    texts = {kernel_of(symbol): (symbol, text) for symbol, text in kernels(loaded_library().read_bytes()).items()}
    for kernel in HOPPER:
        symbol, text = texts[kernel]
        threads, blocks = launch_bounds()[symbol]
        assert (threads, blocks) == (tile_of(kernel).threads, 1)
        given, taken = (re.findall(rf"setmaxnreg\.{what}\.sync\.aligned\.u32 (\d+);", text) for what in ("dec", "inc"))
        assert len(given) == len(taken) == 1
        at_first = REGISTERS // threads // 8 * 8
        assert int(given[0]) <= at_first <= int(taken[0])
        assert WARPGROUP * (int(given[0]) + tile_of(kernel).warpgroups * int(taken[0])) <= at_first * threads


@needs_cuobjdump
@each_kernel
def test_instructions(kernel: Kernel) -> None:
    code = code_of(kernel)
    assert count(code, "(LDL|STL|HMMA|LDGSTS|DFMA|DMUL|DADD).*") == 0
    assert count(code, r"USETMAXREG\.DEALLOC.*") == count(code, r"USETMAXREG\.TRY_ALLOC.*") == 1
    assert count(code, r"UTMALDG\.[45]D.*") > 0
    assert (count(code, r"UTMASTG\.[45]D.*") > 0) == (kernel.type != "float8")  # which goes out from registers
    is_transposed = kernel.type == "float8"
    assert (count(code, r"LDSM\.16\.MT88\.4") > 0) == (count(code, r"STSM\.16\.M88\.4") > 0) == is_transposed
    assert count(code, r"SYNCS\.PHASECHK\.TRANS64\.TRYWAIT") > 0 and count(code, r"SYNCS\.ARRIVE\.TRANS64.*") > 0
    assert (count(code, "UBLKRED.*") > 0) == (kernel.operation == "backward_sm90")
    # dq of 64 queries, half the head dim for each warpgroup, goes to memory from registers.
    assert count(code, r"REDG\..*") == (kernel.head_dim // 4 if kernel.operation == "backward_wide_sm90" else 0)
    if not kernel.has_options:  # whose rules have exponentials of their own; these are one instruction each
        assert not [at.text for at in code if at.name.startswith("FSETP") and "-126" in at.text]


@needs_cuobjdump
@each_kernel
def test_products(kernel: Kernel) -> None:
    """Each is written out once, and in the type of the arrays, but for those of the forward's first and last tile."""
    code = code_of(kernel)
    scores, weights = scores_and_weights(kernel)
    if kernel.operation in FORWARDS:
        wanted = 2 * scores + 2 * weights
    elif kernel.operation == "backward_wide_sm90":  # s, dp; dv or dk; dq in two parts, summed over the keys
        wanted = 2 * scores + kernel.head_dim // PANEL * weights + 2 * tile_of(kernel).rows // DEPTH
    else:  # s, dp; dv, dk; dq, summed over the keys
        wanted = 2 * scores + 2 * weights + tile_of(kernel).rows // DEPTH
    assert count(code, PRODUCT) == wanted
    products = [at.text for at in code if re.fullmatch(PRODUCT, at.name)]
    assert all(("BF16" in text) == (kernel.type == "bfloat16") and ".F32" in text for text in products)
    assert all(at.startswith("Q") == ("E4M3" in at) == (kernel.type == "float8") for at in products)
    assert count(code, WAIT) == WAITS[kernel.operation, kernel.has_options]


@needs_cuobjdump
@pytest.mark.parametrize("kernel", [x for x in HOPPER if x.operation in FORWARDS], ids=name_of)
def test_forward_loop(kernel: Kernel) -> None:
    """A step starts both products, and its exponentials run while the second one does."""
    scores, weights = scores_and_weights(kernel)
    loop = next(loop for loop in loops_of(code_of(kernel)) if count(loop, PRODUCT) >= scores + weights)
    assert count(loop, PRODUCT) == scores + weights
    waits = [at for at in loop if re.fullmatch(WAIT, at.name)]
    assert [re.search(r"gsb0, (0x\d)", at.text)[1] for at in waits] == ["0x1", "0x0"]  # type: ignore[index]
    last_product = max(at.address for at in loop if re.fullmatch(PRODUCT, at.name))
    assert last_product < waits[0].address
    if not kernel.has_options:  # whose rules have exponentials of their own, or few registers
        between = [at for at in loop if waits[0].address < at.address < waits[1].address]
        per_thread = 2 * (tile_of(kernel).columns // 4)  # two rows of the tile of scores
        assert count(between, r"MUFU\.EX2.*") == count(loop, r"MUFU\.EX2.*") == per_thread + 2
    assert count(loop, r"MUFU\.(RCP|RSQ|SQRT|LG2)") == 0 or kernel.has_options


@needs_cuobjdump
@pytest.mark.parametrize("kernel", [x for x in HOPPER if x.operation in BACKWARDS], ids=name_of)
def test_backward_loop(kernel: Kernel) -> None:
    """Exponentials run while dp's product does, and a warp's own additions to dq while those of dk and dv do."""
    code, is_wide = code_of(kernel), kernel.operation == "backward_wide_sm90"
    loop = next(loop for loop in loops_of(code) if count(loop, PRODUCT) == count(code, PRODUCT))
    waits = [at for at in loop if re.fullmatch(WAIT, at.name)]
    pending = [re.search(r"gsb0, (0x\d)", at.text)[1] for at in waits]  # type: ignore[index]
    assert pending == [*([] if kernel.has_options else ["0x1"]), "0x0", "0x1", "0x1", "0x0"]

    def between(first: Instruction, last: Instruction, name: str) -> int:
        return count([at for at in loop if first.address < at.address < last.address], name)

    if not kernel.has_options:  # whose rules have exponentials of their own
        tile = tile_of(kernel)
        scores = tile.rows // 4 if is_wide else tile.columns // 2  # of a thread
        assert between(waits[0], waits[1], r"MUFU\.EX2.*") == count(loop, r"MUFU\.EX2.*") == scores
    assert between(waits[-3], waits[-1], r"REDG\..*") == count(loop, r"REDG\..*")
    assert (count(loop, r"REDG\..*") > 0) == is_wide


# ---- What ptxas says -------------------------------------------------------------------------------------------------


def said_by_ptxas(symbol: str, text: str, folder: Path) -> str:
    source = folder / f"{symbol}.ptx"
    source.write_text(text)
    (arch,) = FROM_90A
    command = [str(find_tool("ptxas")), "-v", f"-arch={arch}", source, "-o", source.with_suffix(".cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def complaints(said: str) -> list[str]:
    """Products put one after the other, waits that nobody wrote (messages C75xx), registers in memory."""
    spills = re.findall(r"[1-9]\d* bytes (?:stack frame|spill stores|spill loads)", said)
    return spills + re.findall(r".*\(C75\d\d\).*", said)


needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas, which comes with nvcc")


@pytest.mark.slow
@needs_ptxas
def test_ptxas_has_no_complaint(tmp_path: Path) -> None:
    texts = {symbol: text for symbol, text in kernels(loaded_library().read_bytes()).items() if "wgmma" in text}
    assert {kernel_of(symbol) for symbol in texts} == set(HOPPER)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        said = dict(zip(texts, pool.map(lambda x: said_by_ptxas(*x, tmp_path), texts.items()), strict=True))
    assert all("spill stores" in text for text in said.values())
    assert {symbol: found for symbol, text in said.items() if (found := complaints(text))} == {}


@needs_ptxas
def test_a_missing_wait_draws_a_complaint(tmp_path: Path) -> None:
    (symbol, right), *_ = (x for x in kernels(loaded_library().read_bytes()).items() if "wgmma" in x[1])
    wrong = re.sub(r"wgmma\.wait_group\.sync\.aligned 0;", "", right, count=1)
    assert wrong != right and complaints(said_by_ptxas(symbol, wrong, tmp_path)) != []
    assert complaints("ptxas info : 8 bytes stack frame, 0 bytes spill stores, 12 bytes spill loads") != []
