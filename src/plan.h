// Which kernel runs, with which tiles and how much scratch memory: plain arithmetic on a problem and the device's facts.
//
// The workspace query, the launch and flash_explain all ask the same function, so they can't disagree.
#pragma once
#include <cstddef>
#include <cstdint>

#include "device.h"
#include "problem.h"

namespace flash {

// Scratch memory starts at the first multiple of this in the caller's workspace; the size asked for includes the slack.
constexpr size_t kWorkspaceAlignment = 64;

// The operations of cuda/instances.def, in no order that matters.
enum class Operation : uint8_t {
  forward_fp8_sm90,
  forward_sm90,
  forward_narrow_sm90,
  forward_pieces_sm90,
  forward_sm80,
  backward_sm90,
  backward_wide_sm90,
  backward_sm80,
  backward_dq_sm80,
  backward_keys_sm80,
  backward_queries_sm80,
  backward_bias_sm80,
  forward_any,
  backward_keys_any,
  backward_queries_any,
  backward_bias_any,
  backward_prepare_any,
  backward_bias_sum_any,
  backward_sinks_any,
  weights_any,
  merge_any,
  dropout_mask_any
};
// "forward_any", ...
const char *name(Operation operation);

// In cuda/instances.def: the kernel takes any type that there is on CUDA.
constexpr DType kAnyType = DType::kFloat32;

enum class Memory : uint8_t;  // cuda/configs.h

// A start of a CUDA kernel: which row of cuda/instances.def, and with what.
struct KernelLaunch {
  Operation operation;
  DType dtype;       // kAnyType: read at run time
  int head_dim;      // 0: any
  bool has_options;  // of scores
  Memory memory;
  int64_t tasks, blocks;      // of threads: where there are fewer of them they stride over the tasks
  int threads, shared_bytes;  // of a block
  int tile_rows;              // 0 where tasks are no tiles
};
// Those of one call, in the order in which they start. None is there that has nothing to do.
struct KernelLaunches {
  static constexpr int kMost = 6;
  int count;
  KernelLaunch list[kMost];
  const KernelLaunch *begin() const { return list; }
  const KernelLaunch *end() const { return list + count; }
};

struct Plan {
  const char *kernel;        // "forward_cpu", "backward_cpu", on CUDA "forward_sm80", "forward_any", ...
  const char *path;          // instruction set: "avx512bf16", "avx512", "avx2", "plain"; on CUDA the arithmetic
  const char *limit;         // why not a faster one; NULL if this is the fastest
  int64_t block_q, block_k;  // tile of the score matrix that one step works on
  int64_t tasks;             // pieces of work that threads (on CUDA: blocks of threads) take one at a time
  int workers;               // most threads that can be of use; on CUDA the multiprocessors
  size_t shared_bytes;       // scratch that all workers share
  size_t worker_bytes;       // scratch of each worker
  KernelLaunches launches;   // on CUDA
};

// The bytes to ask the caller for, slack for any alignment included.
inline size_t workspace_bytes(const Plan &plan) {
  const size_t used = plan.shared_bytes + static_cast<size_t>(plan.workers) * plan.worker_bytes;
  return used == 0 ? 0 : used + kWorkspaceAlignment;
}

// The least that a call can run with: one worker.
inline size_t least_workspace_bytes(const Plan &plan) {
  const size_t used = plan.shared_bytes + (plan.workers > 0 ? plan.worker_bytes : 0);
  return used == 0 ? 0 : used + kWorkspaceAlignment;
}

// Throws Error (FLASH_UNSUPPORTED) where no kernel of this library can run; `name` is the argument that says so.
void check_backend(const char *name, Backend backend, int device_id);

// wanted: 0 for the forward, else FLASH_DQ | ... for the backward. Throws Error (FLASH_UNSUPPORTED) if nothing can run it.
Plan make_plan(const Problem &problem, uint32_t wanted);

}  // namespace flash
