"""The machine code of the kernels in the library that the package has loaded: resources, instructions, loops.

By cuobjdump from PyPI's nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

import ptx
import pytest

TYPES = {None: "any", "Half": "float16", "Bfloat": "bfloat16", "Float8": "float8"}
MEMORIES = "small", "large", "hopper"  # that a kernel asks for
FROM_80, FROM_90A = ("sm_80", "sm_90"), ("sm_90a",)  # what kernels are translated to from each kind of PTX


class Kernel(NamedTuple):
    operation: str
    head_dim: int
    has_options: bool
    type: str = "any"
    memory: str = "small"

    @property
    def architectures(self) -> tuple[str, ...]:
        return FROM_90A if self.operation.endswith("_sm90") else FROM_80


class Use(NamedTuple):
    """What one kernel takes on one architecture; numbers of registers, bytes otherwise."""

    registers: int
    stack: int
    local: int


class Instruction(NamedTuple):
    address: int
    name: str  # with its modifiers, such as LDS.128
    text: str


def find_tool(name: str) -> str | None:
    """A program of NVIDIA's, from PyPI or the system."""
    packages = Path(sysconfig.get_path("platlib"))
    folders = [str(folder) for folder in sorted(packages.glob("nvidia/cu*/bin"))]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


needs_cuobjdump = pytest.mark.skipif(
    find_tool("cuobjdump") is None, reason="no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
)


def cuobjdump(*options: str) -> str:
    command = [str(find_tool("cuobjdump")), *options, str(ptx.loaded_library())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kernel_of(symbol: str) -> Kernel:
    name = re.fullmatch(r"_ZN5flash\d+(\w+?)I(?:NS_\d(\w+?)E)?Li(\d+)ELb([01])E(?:LNS_6MemoryE([012])E)?EEv\w+", symbol)
    assert name is not None, f"not a kernel of instances.def: {symbol}"
    return Kernel(name[1], int(name[3]), name[4] == "1", TYPES[name[2]], MEMORIES[int(name[5] or 0)])


@cache
def resources() -> dict[tuple[str, str], Use]:
    """By architecture and symbol."""
    found = {}
    arch = symbol = ""
    for line in cuobjdump("-res-usage").splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\w+):", line):
            symbol = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            found[arch, symbol] = Use(*map(int, match.groups()))
    return found


@cache
def launch_bounds() -> dict[str, tuple[int, int]]:
    """Threads of a block and blocks of a multiprocessor that each symbol is compiled for: the PTX says so."""
    text = ptx.loaded_library().read_bytes().decode("latin-1")
    pattern = r"\.visible \.entry (\w+)\([^{]*?\.maxntid (\d+), 1, 1\s+\.minnctapersm (\d+)"
    return {name: (int(threads), int(blocks)) for name, threads, blocks in re.findall(pattern, text)}


def disassembly(kernels: Collection[Kernel]) -> dict[tuple[str, Kernel], list[Instruction]]:
    """The instructions of some kernels, by architecture and kernel."""
    wanted = {symbol for _, symbol in resources() if kernel_of(symbol) in kernels}
    assert len(wanted) == len(kernels)
    code: dict[tuple[str, Kernel], list[Instruction]] = {}
    arch = ""
    for line in cuobjdump("-sass", "-fun", ",".join(sorted(wanted))).splitlines():
        if match := re.search(r"code for (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\w+)", line):
            code[arch, kernel_of(match[1])] = instructions = []
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ +)?(([\w.]+).*?) ;", line):
            instructions.append(Instruction(int(match[1], 16), match[3], match[2]))
    return code


# ---- Instructions and loops ------------------------------------------------------------------------------------------


def count(code: list[Instruction], pattern: str) -> int:
    return sum(re.fullmatch(pattern, at.name) is not None for at in code)


def target(instruction: Instruction) -> int | None:
    """Where a branch or call goes."""
    match = re.match(r"(?:BRA|CALL)\S* .*?(0x[0-9a-f]+)$", instruction.text)
    return None if match is None else int(match[1], 16)


def loops_of(code: list[Instruction]) -> list[list[Instruction]]:
    """The stretches from the target of a backward branch to the branch, shortest first."""
    ends = {(to, at.address) for at in code if (to := target(at)) is not None and to < at.address}
    loops = [[at for at in code if begin <= at.address <= end] for begin, end in ends]
    return sorted(loops, key=len)


def is_within(inner: list[Instruction], outer: list[Instruction]) -> bool:
    return outer[0].address <= inner[0].address and inner[-1].address <= outer[-1].address
