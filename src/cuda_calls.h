// The CUDA backend: what the rest of the library calls. All arguments are validated. A call enqueues kernels on the
// caller's stream and returns; it leaves the caller's current device as it was.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../cuda/params.h"
#include "cpu/cpu.h"  // WeightsView, MergePart
#include "plan.h"
#include "problem.h"

namespace flash {

// Plain arithmetic, no CUDA call: cuda_plan.cpp.
Plan plan_cuda(const Problem &problem, uint32_t wanted, const CudaDevice &device);

// Where the backward's workspace lies; with base NULL, place_cuda_backward only adds up.
struct CudaBackwardMemory {
  float *delta, *lse2, *lse2_low;  // (B, Hq, Lq) each
  DqSums dq_sums;                  // absent where dq is not summed in memory
  DqTurns dq_turns;                // absent where that needs no order
  float *bias_partial;             // NULL if dbias needs none
  int64_t bias_partial_count;      // floats
  size_t bytes;
};
CudaBackwardMemory place_cuda_backward(char *base, const Problem &problem, uint32_t wanted, const CudaDevice &device);

// Where the forward's workspace lies; with base NULL, place_cuda_forward only adds up.
struct CudaForwardMemory {
  KeyPieces pieces;  // o and lse absent where there is one
  size_t bytes;
};
CudaForwardMemory place_cuda_forward(char *base, const Problem &problem, const CudaDevice &device);

void cuda_forward(const Problem &problem, const Plan &plan, RowsView o, DType o_dtype, LseView lse, void *workspace,
                  void *stream);
void cuda_backward(const Problem &problem, const BackwardArguments &arguments, void *workspace, void *stream);
void cuda_weights(const Problem &problem, const int64_t *rows, int64_t rows_stride, int64_t count, WeightsView weights,
                  void *stream);
void cuda_dropout_mask(int device_id, uint64_t seed, double dropout, bool *keep, const int64_t extent[4],
                       const int64_t stride[4], void *stream);
void cuda_merge(int device_id, DType dtype, int64_t B, int64_t Lq, int64_t Hq, int64_t Dv, MergePart first,
                MergePart second, MergePart merged, void *stream);

}  // namespace flash
