// Sums and maxima over threads, always in the same order.
#pragma once
#include "isa/index.h"
#include "isa/sm80.cuh"

namespace flash {

// Over `kLanes` neighbouring lanes, a power of two; each of them gets the result.
template <int kLanes>
__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
template <int kLanes>
__device__ __forceinline__ float max_of_lanes(float x) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// The sum of one number per thread, for all threads. `scratch`: one number per thread, free before and after.
template <class Number>
__device__ __forceinline__ Number sum_of_block(Number x, Number *scratch) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  __syncthreads();
  scratch[thread] = x;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) scratch[thread] += scratch[thread + half];
  }
  __syncthreads();
  return scratch[0];
}
__device__ __forceinline__ float max_of_block(float x, float *scratch) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  __syncthreads();
  scratch[thread] = x;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) scratch[thread] = fmaxf(scratch[thread], scratch[thread + half]);
  }
  __syncthreads();
  return scratch[0];
}

}  // namespace flash
