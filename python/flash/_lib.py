"""The shared library: where it lies, how it is opened, and its statuses as exceptions.

Everything in the package that calls C takes `ffi` and `lib` from here.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from flash.exceptions import CudaError, FlashError, FlashTypeError, FlashValueError, UnsupportedError


def _installed(name: str) -> str | None:
    """The path of an installed file or folder. An editable install spreads the package over several folders."""
    for folder in sys.modules["flash"].__path__:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    return None


def _open() -> Any:
    path = os.environ.get("FLASH_LIBRARY") or _installed("libflash.so")
    if path is None:
        raise ImportError("flash: libflash.so is not beside the package; install it, or set FLASH_LIBRARY to its path")
    try:
        # Never unloaded: at exit cffi would close it, and take OpenMP's code away from threads that still run it.
        return ffi.dlopen(path, ffi.RTLD_NOW | ffi.RTLD_NODELETE)
    except OSError as error:
        raise ImportError(f"flash: {path} can't be opened: {error}") from error


# A generated module: the declarations of flash.h.
ffi: Any = import_module("flash._abi").ffi
lib: Any = _open()

_EXCEPTIONS: dict[int, type[FlashError]] = {
    lib.FLASH_INVALID_VALUE: FlashValueError,
    lib.FLASH_INVALID_TYPE: FlashTypeError,
    lib.FLASH_UNSUPPORTED: UnsupportedError,
    lib.FLASH_CUDA_ERROR: CudaError,
}


def check(status: int, renamed: tuple[str, str] | None = None) -> None:
    """Raises what a status of the library stands for, with the library's message.

    renamed: an argument as C names it, and as the caller knows it.
    """
    if status:
        message = ffi.string(lib.flash_error_message()).decode(errors="replace")
        if renamed is not None and message.startswith(f"{renamed[0]}:"):
            message = renamed[1] + message[len(renamed[0]) :]
        raise _EXCEPTIONS.get(status, FlashError)(message)


def version() -> str:
    """The version of the library that is loaded, such as "0.1.0"."""
    number = lib.flash_version()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def text(function: Any, *arguments: Any) -> str:
    """The text of a function that ends in (char *, size_t capacity, size_t *needed)."""
    needed = ffi.new("size_t *")
    check(function(*arguments, ffi.NULL, 0, needed))
    buffer = ffi.new("char[]", needed[0])
    check(function(*arguments, buffer, needed[0], needed))
    return str(ffi.string(buffer).decode())


def get_include() -> str:
    """The folder that holds `flash.h`, for compiling C and C++ programs.

    Examples
    --------
    >>> import os, flash
    >>> os.path.exists(os.path.join(flash.get_include(), "flash.h"))
    True
    """
    return _folder("include")


def get_cmake_dir() -> str:
    """The folder for CMake's `flash_DIR`, so that `find_package(flash)` finds the installed package."""
    return _folder("cmake")


def _folder(name: str) -> str:
    path = _installed(name)
    if path is None:
        raise FileNotFoundError(f"flash: this installation has no {name} folder; install the package")
    return path
