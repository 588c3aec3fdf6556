"""The build backend: scikit-build-core, which also asks PyPI for nvcc where the machine has none.

nvcc is needed while building only. Nothing is asked for where FLASH_CUDA=OFF is, in any of the ways that
scikit-build-core takes CMake definitions: ``-C cmake.define.FLASH_CUDA=OFF``, SKBUILD_CMAKE_DEFINE, CMAKE_ARGS.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403

Settings = Mapping[str, "str | list[str]"]

# The meta-package pins the parts of one toolkit to each other; nvidia-cuda-nvcc alone leaves nvvm and crt open.
_NVCC = ["cuda-toolkit[nvcc,cudart,cccl]==13.0.*"]
_OFF = {"OFF", "0", "NO", "N", "FALSE"}


def _cuda_is_off(settings: Settings) -> bool:
    given = [str(value) for key, value in settings.items() if key.endswith("cmake.define.FLASH_CUDA")]
    for variable in ("SKBUILD_CMAKE_DEFINE", "CMAKE_ARGS", "SKBUILD_CMAKE_ARGS"):
        given += re.findall(r"FLASH_CUDA(?::\w+)?=(\w+)", os.environ.get(variable, ""))
    given += re.findall(r"FLASH_CUDA(?::\w+)?=(\w+)", str(settings.get("cmake.args", "")))
    return any(value.upper() in _OFF for value in given)


def _has_nvcc() -> bool:
    """Whether FlashNvcc.cmake, which looks in the same places, will find one."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    paths = [None, *(os.path.join(home, "bin") for home in homes if home)]
    return bool(os.environ.get("CUDACXX") or any(shutil.which("nvcc", path=path) for path in paths))


def _nvcc(settings: Settings | None) -> list[str]:
    wanted = sys.platform == "linux" and not _has_nvcc() and not _cuda_is_off(settings or {})
    return _NVCC if wanted else []


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    return [*_build.get_requires_for_build_wheel(config_settings), *_nvcc(config_settings)]


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    return [*_build.get_requires_for_build_editable(config_settings), *_nvcc(config_settings)]
