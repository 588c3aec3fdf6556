// Starting a kernel: what instances.def's rows become. A launcher returns CUDA's status as a number, waits for nothing
// and keeps nothing.
#pragma once
#include <cuda_runtime_api.h>

#include "configs.h"
#include "params.h"

namespace flash {

// Beyond this a kernel must be told that it may have more shared memory.
constexpr int kSharedBytesForAll = 48 * 1024;
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

template <class Params>
cudaError_t launch_kernel(void (*kernel)(Params), const void *params, const Launch &launch) {
  const void *function = reinterpret_cast<const void *>(kernel);
  if (launch.shared_bytes > kSharedBytesForAll) {
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_bytes);
    if (error != cudaSuccess) return error;
  }
  void *arguments[] = {const_cast<void *>(params)};
  return cudaLaunchKernel(function, dim3(static_cast<unsigned>(smaller(launch.blocks, kMostBlocks))),
                          dim3(static_cast<unsigned>(launch.threads)), arguments,
                          static_cast<size_t>(launch.shared_bytes), static_cast<cudaStream_t>(launch.stream));
}

}  // namespace flash

#define FLASH_OPTIONS_plain false
#define FLASH_OPTIONS_options true
#define FLASH_MEMORY_small Memory::kSmall
#define FLASH_MEMORY_large Memory::kLarge
#define FLASH_MEMORY_hopper Memory::kHopper
#define FLASH_INSTANCE_any(operation, head_dim, options, memory) operation<head_dim, FLASH_OPTIONS_##options>
#define FLASH_INSTANCE_float16(operation, head_dim, options, memory) \
  operation<Half, head_dim, FLASH_OPTIONS_##options, FLASH_MEMORY_##memory>
#define FLASH_INSTANCE_bfloat16(operation, head_dim, options, memory) \
  operation<Bfloat, head_dim, FLASH_OPTIONS_##options, FLASH_MEMORY_##memory>

#define FLASH_INSTANCE_float8(operation, head_dim, options, memory) \
  operation<Float8, head_dim, FLASH_OPTIONS_##options, FLASH_MEMORY_##memory>

#define FLASH_KERNEL(header, operation, type, head_dim, options, memory)                                          \
  namespace flash {                                                                                               \
  int launch_##operation##_##type##_##head_dim##_##options##_##memory(const void *params, const Launch &launch) { \
    return launch_kernel(FLASH_INSTANCE_##type(operation, head_dim, options, memory), params, launch);            \
  }                                                                                                               \
  }
