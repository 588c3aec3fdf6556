// The CPU's facts, and the user's say in them (FLASH_CPU, OMP_NUM_THREADS). Called by the planner and the CPU backend.
#include "device.h"

#include <pthread.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace flash {
namespace {

constexpr const char *kPathNames[kCpuPaths] = {"plain", "avx2", "avx512", "avx512bf16"};

// What the build put into the library: a compiler may know fewer instruction sets than the CPU.
bool is_built(CpuPath path) {
  switch (path) {
    case CpuPath::kPlain:
      return true;
#ifdef FLASH_HAS_AVX2
    case CpuPath::kAvx2:
      return true;
#endif
#ifdef FLASH_HAS_AVX512
    case CpuPath::kAvx512:
      return true;
#endif
#ifdef FLASH_HAS_AVX512BF16
    case CpuPath::kAvx512Bf16:
      return true;
#endif
    default:
      return false;
  }
}

// __builtin_cpu_supports also asks whether the operating system saves the registers.
bool is_supported(CpuPath path) {
#ifdef FLASH_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (path) {
    case CpuPath::kPlain:
      return true;
    case CpuPath::kAvx2:
      return avx2;
    case CpuPath::kAvx512:
      return avx512;
    case CpuPath::kAvx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return path == CpuPath::kPlain;
#endif
}

CpuPath choose_path() {
  CpuPath fastest = CpuPath::kPlain;
  std::string available;
  for (int n = 0; n < kCpuPaths; ++n) {
    const auto path = static_cast<CpuPath>(n);
    if (!has_cpu_path(path)) continue;
    fastest = path;
    available += (available.empty() ? "" : ", ") + std::string(name(path));
  }
  const char *asked = std::getenv("FLASH_CPU");
  if (asked == nullptr || *asked == '\0') return fastest;
  for (int n = 0; n < kCpuPaths; ++n) {
    const auto path = static_cast<CpuPath>(n);
    if (std::strcmp(asked, name(path)) != 0) continue;
    if (has_cpu_path(path)) return path;
    fail(FLASH_UNSUPPORTED, "FLASH_CPU: ", asked, is_built(path) ? " can't run on this CPU" : " is not in this build",
         "; available are ", available);
  }
  fail(FLASH_INVALID_VALUE, "FLASH_CPU: must be one of ", available, ", got ", asked);
}

// libgomp's threads don't survive a fork, but the child's copy of its records says that they do: the first parallel
// region in the child would wait for them forever.
std::atomic<bool> is_forked_child{false};

}  // namespace

const char *name(CpuPath path) { return kPathNames[static_cast<int>(path)]; }

bool has_cpu_path(CpuPath path) { return is_built(path) && is_supported(path); }

CpuPath cpu_path() {
  static const CpuPath path = choose_path();  // if it throws, the next call tries again
  return path;
}

int cpu_threads() {
  static const int installed = pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });
  if (installed != 0 || is_forked_child) return 1;
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

}  // namespace flash
