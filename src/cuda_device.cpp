// The CUDA devices and the runtime's errors, and the only host file that includes CUDA's headers. FLASH_CUDA is defined
// where the library is built with CUDA.
#include "device.h"
#include "error.h"

#ifdef FLASH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace flash {

#ifdef FLASH_CUDA

namespace {

std::string error_text(cudaError_t error) {
  return text(cudaGetErrorName(error), " (", cudaGetErrorString(error), ")");
}

// A failed query leaves its error behind for whoever asks next; it is ours, so take it away.
bool succeeded(cudaError_t error, CudaFacts &facts) {
  if (error == cudaSuccess) return true;
  facts.error = error_text(error);
  (void)cudaGetLastError();
  return false;
}

CudaFacts read_facts() {
  CudaFacts facts{true, 0, 0, "", {}};
  // Some of these leave their result as it was when they fail.
  if (!succeeded(cudaRuntimeGetVersion(&facts.runtime_version), facts)) return facts;
  if (!succeeded(cudaDriverGetVersion(&facts.driver_version), facts)) return facts;
  int count = 0;
  if (!succeeded(cudaGetDeviceCount(&count), facts)) return facts;
  for (int id = 0; id < count; ++id) {
    cudaDeviceProp properties{};
    if (!succeeded(cudaGetDeviceProperties(&properties, id), facts)) {
      facts.devices.clear();  // an index into the list is a device's id, so it can't have gaps
      return facts;
    }
    facts.devices.push_back({properties.name, 10 * properties.major + properties.minor, properties.multiProcessorCount,
                             static_cast<int>(properties.sharedMemPerBlockOptin),
                             static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return facts;
}

}  // namespace

void fail_cuda(int error, const char *what) {
  (void)cudaGetLastError();
  fail(FLASH_CUDA_ERROR, error_text(static_cast<cudaError_t>(error)), " in ", what);
}

CudaDeviceGuard::CudaDeviceGuard(int device_id) : previous_(-1) {
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess && current != device_id) {
    error = cudaSetDevice(device_id);
    if (error == cudaSuccess) previous_ = current;
  }
  if (error != cudaSuccess) fail_cuda(error, "choosing the device of q");
}
CudaDeviceGuard::~CudaDeviceGuard() {
  if (previous_ >= 0) (void)cudaSetDevice(previous_);
}

const CudaFacts &cuda_facts() {
  static const CudaFacts facts = read_facts();
  return facts;
}

int cuda_device_of(const void *data) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, data) != cudaSuccess) (void)cudaGetLastError();
  return attributes.type == cudaMemoryTypeUnregistered ? 0 : attributes.device;
}

#else

const CudaFacts &cuda_facts() {
  static const CudaFacts facts{false, 0, 0, "", {}};
  return facts;
}

int cuda_device_of(const void *) { return 0; }

#endif

}  // namespace flash
