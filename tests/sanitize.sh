#!/usr/bin/env bash
# Builds everything in C++ with the address and undefined-behaviour sanitizers, the emulator among it, and runs the C++
# tests and the Python tests marked `sanitize`. Where there is an nvcc, those compute on the emulated device too.
#
#   tests/sanitize.sh [pytest arguments]      PYTHON=<interpreter that has flash and its test extra installed>
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
compiler=${CXX:-g++}
build=build/sanitize
mkdir -p "$build"

kernels=$("$python" tests/emulated_library.py) # compiled once for this and for pytest: nothing in them is sanitized
if [ -n "$kernels" ]; then
  cuda=(-DFLASH_CUDA=ON "-DFLASH_CUDA_KERNELS=$kernels")
  target=flash_emulated library=tests/emulator/libflash_emulated.so
else
  cuda=(-DFLASH_CUDA=OFF)
  target=flash library=libflash.so
fi
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER="$compiler" "${cuda[@]}" \
  -DFLASH_EMULATOR=ON -DFLASH_TESTS=ON -DFLASH_SANITIZE=address,undefined > "$build/configure.log" ||
  { cat "$build/configure.log"; exit 1; }
cmake --build "$build" --parallel "$(nproc)" \
  --target "$target" --target flash_host_tests --target flash_cuda_host_tests --target flash_hopper_host_tests \
  --target emulator_tests

export ASAN_OPTIONS=detect_leaks=1:protect_shadow_gap=0:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
"$build/flash_host_tests"
"$build/flash_cuda_host_tests"
"$build/flash_hopper_host_tests"
"$build/tests/emulator/emulator_tests"

# Python itself never frees everything, so no leaks are looked for here. The runtimes must come before any other library.
export ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0
EMULATOR_DEVICES=90,80 FLASH_LIBRARY="$PWD/$build/$library" \
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)" \
  "$python" -m pytest -m sanitize "$@"
