// What one CPU path offers: plain functions that each do one task in one worker's scratch memory. kernels.cpp defines one
// such table per instruction set; cpu.cpp picks a table and hands out the tasks.
#pragma once
#include <cstdint>

#include "../plan.h"
#include "../problem.h"

namespace flash {

struct ForwardCall {
  const Problem *problem;
  int64_t block_q;  // queries of one task, a multiple of kForwardStrip
  RowsView o;
  LseView lse;
};

// Shared memory of the backward, in the sum dtype, filled by `prepare` and read by the later phases.
struct BackwardCall {
  const Problem *problem;
  BackwardArguments arguments;
  void *delta;        // (B, Hq, rows): rowsum(do * o) - dlse; rows = Lq rounded up to kBackwardStrip
  void *lse2;         // (B, Hq, rows): log2(e) * lse; +inf where the row sees nothing, so that p = 0 there
  void *lse2_low;     // (B, Hq, rows): what rounding took from lse2
  void *dq;           // (B, Hq, strips, D, kBackwardStrip), D rounded up to 4: transposed sums of dq
  int64_t *progress;  // per task of `keys`: how many queries of dq are finished
};

template <class Call>
using Task = void (*)(const Call &call, int64_t task, void *scratch);

// Indexed by DType: float16, bfloat16, float32, float64.
constexpr int kCpuDTypes = 4;

struct CpuKernels {
  Task<ForwardCall> forward[kCpuDTypes];     // task: (query tile, batch, head)
  Task<BackwardCall> prepare[kCpuDTypes];    // task: (batch, head, strip): delta, lse2, dq = 0
  Task<BackwardCall> keys[kCpuDTypes];       // task: (key tile, batch, key head): dk, dv and a share of dq
  Task<BackwardCall> finish_dq[kCpuDTypes];  // task: (batch, head, strip): dq in its own dtype
  Task<BackwardCall> bias[kCpuDTypes];       // task: a piece of dbias that no other task touches
};

extern const CpuKernels kernels_plain, kernels_avx2, kernels_avx512, kernels_avx512bf16;

// Lets another thread run, for a task that waits for one.
void give_way();

}  // namespace flash
