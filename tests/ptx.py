"""The PTX of the kernels, as nvcc has left it in a library: plain text (--no-compress) that ends with a NUL."""

from __future__ import annotations

import re
from pathlib import Path


def loaded_library() -> Path:
    """The one that the package has opened."""
    return Path(re.findall(r"/.*/libflash\w*\.so", Path("/proc/self/maps").read_text())[0])


def kernels(library: bytes) -> dict[str, str]:
    """By symbol, without what only debuggers read: line numbers, which need paths, and names of inlined functions."""
    found = {}
    for unit in re.finditer(rb"\.version \d[^\0]*", library):
        code = re.split(r"(?m)^[ \t]*\.file\b", unit[0].decode())[0]
        head, *entries = re.split(r"(?m)^(?=\.visible \.entry )", re.sub(r"(?m)^[ \t]*\.loc\b.*\n", "", code))
        found |= {re.findall(r"\w+", entry)[2]: head + entry for entry in entries}
    return found


def canonical(kernel: str) -> str:
    """One text for all that nvcc 13.0 makes of one source: whether it merges two loads may differ from run to run.

    Where it doesn't, the first half of a vector comes by a load of the whole one, whose other half nobody uses, and the
    second half by a load and in registers of its own. Here the first load gives both, and registers count from 0.
    """
    registers = r"(%f\d+, %f\d+)"
    address = r"\[(%r\d+)(?:\+(\d+))?\]"
    halves = (
        r'\.pragma "used_bytes_mask 255";\s*'
        rf"(ld\.shared\.v4\.f32\s*){{{registers}, {registers}}}, {address};\s*"
        rf"ld\.shared\.v2\.f32\s*{{{registers}}}, {address};"
    )

    def whole(match: re.Match[str]) -> str:
        load, first, _, base, offset, second, other_base, other_offset = match.groups(default="0")
        if base != other_base or int(offset) + 8 != int(other_offset):
            return match[0]
        return f"{load}{{{first}, {second}}}, [{base}{f'+{offset}' if offset != '0' else ''}];"

    kernel = re.sub(r"(?m)^[ \t]*\.reg .*<\d+>;\n", "", re.sub(halves, whole, kernel))
    names: dict[str, str] = {}
    return re.sub(r"%[a-z]+\d+", lambda name: names.setdefault(name[0], f"%{len(names)}"), kernel)
