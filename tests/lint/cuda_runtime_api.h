// What CUDA's language and runtime give the kernels and their launches, in as few words as a host compiler needs to
// check them: declarations where nothing runs, definitions where tests call device functions on the host.
//
// Stands in for the file of the same name. Used by test_cuda_lint.py and test_cuda_host.cpp, which include it before all
// else, as nvcc does with its own.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

struct dim3 {
  unsigned x, y, z;
  explicit constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern const dim3 threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads();
void __syncwarp();

// Aligned as in CUDA: the sanitizers then see what a vector load asks for.
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct float3 {
  float x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

using cudaStream_t = struct CudaStream *;
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value);
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                             cudaStream_t stream);
