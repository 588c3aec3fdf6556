"""make_abi.py flash.h _abi.py: writes the module that declares flash.h to cffi (ABI mode, no parser at run time)."""

import re
import sys
from pathlib import Path

import cffi


def main(header: Path, module: Path) -> None:
    cdefs = re.findall(r"/\* cdef: begin \*/(.*?)/\* cdef: end \*/", header.read_text(encoding="utf-8"), re.DOTALL)
    if not cdefs:
        sys.exit(f"{header}: no text between cdef markers")
    ffi = cffi.FFI()
    ffi.cdef("".join(cdefs))
    ffi.set_source("flash._abi", None)
    ffi.emit_python_code(str(module))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
