#!/usr/bin/env bash
# Builds the library with the address and undefined-behaviour sanitizers and runs the C++ tests and the Python tests
# marked `sanitize` against it.
#
#   tests/sanitize.sh [pytest arguments]      PYTHON=<interpreter that has flash and its test extra installed>
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
compiler=${CXX:-g++}
build=build/sanitize
mkdir -p "$build"

cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER="$compiler" -DFLASH_CUDA=OFF \
  -DFLASH_TESTS=ON -DFLASH_SANITIZE=address,undefined > "$build/configure.log" || { cat "$build/configure.log"; exit 1; }
cmake --build "$build" --parallel "$(nproc)"

export ASAN_OPTIONS=detect_leaks=1:protect_shadow_gap=0:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
"$build/flash_host_tests"
"$build/flash_cuda_host_tests"

# Python itself never frees everything, so no leaks are looked for here. The runtimes must come before any other library.
export ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0
FLASH_LIBRARY="$PWD/$build/libflash.so" \
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)" \
  "$python" -m pytest -m sanitize "$@"
