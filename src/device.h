// Facts about the machine, read once: the CPU's instruction sets and threads, the CUDA devices.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace flash {

// The instruction sets that the CPU backend is built for, slowest first. Names are those of FLASH_CPU.
enum class CpuPath : uint8_t { kPlain, kAvx2, kAvx512, kAvx512Bf16 };
constexpr int kCpuPaths = 4;

const char *name(CpuPath path);
// Whether this machine can run the path and this library holds it.
bool has_cpu_path(CpuPath path);
// The path in use: FLASH_CPU from the environment, else the fastest. Throws Error if FLASH_CPU can't be had.
CpuPath cpu_path();
// Threads that a call may use now: omp_get_max_threads(), or 1 in the child of a fork, where libgomp would hang.
int cpu_threads();

struct CudaDevice {
  std::string name;
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int shared_bytes;  // most shared memory that one block can have
  int64_t memory_bytes;
};

struct CudaFacts {
  bool built;           // the library was built with CUDA
  int runtime_version;  // 13000 = 13.0; 0 if not built
  int driver_version;   // 0 = no driver
  std::string error;    // CUDA's own name for why no device can be used; "" if one can
  std::vector<CudaDevice> devices;
};

const CudaFacts &cuda_facts();
// The device that memory lies on; 0 where that can't be told, as for NULL.
int cuda_device_of(const void *data);

#ifdef FLASH_CUDA
// Throws Error (FLASH_CUDA_ERROR) with CUDA's name and text for a cudaError_t, and what was being done.
[[noreturn]] void fail_cuda(int error, const char *what);

// Makes a device the current one while it lives; then the caller's is again.
class CudaDeviceGuard {
 public:
  explicit CudaDeviceGuard(int device_id);
  ~CudaDeviceGuard();
  CudaDeviceGuard(const CudaDeviceGuard &) = delete;
  CudaDeviceGuard &operator=(const CudaDeviceGuard &) = delete;

 private:
  int previous_;  // -1: nothing to put back
};
#endif

}  // namespace flash
