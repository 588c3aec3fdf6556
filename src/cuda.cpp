// The CUDA backend's calls: from a checked problem to kernels on the caller's stream. FLASH_CUDA is defined where the
// library is built with CUDA.
#include "cuda.h"

#include "cuda_fill.h"
#include "device.h"
#include "error.h"
#include "random.h"

namespace flash {

#ifdef FLASH_CUDA

// ---- The table of kernels -------------------------------------------------------------------------------------------

#define FLASH_KERNEL(header, operation, head_dim, options) \
  int launch_##operation##_##head_dim##_##options(const void *params, const Launch &launch);
#include "../cuda/instances.def"
#undef FLASH_KERNEL

namespace {

enum class Operation {
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

constexpr bool plain = false, options = true;

struct Kernel {
  Operation operation;
  int head_dim;
  bool has_options;
  int (*launch)(const void *params, const Launch &launch);
  const char *name;
};
constexpr Kernel kKernels[] = {
#define FLASH_KERNEL(header, operation, head_dim, with) \
  {Operation::operation, head_dim, with, launch_##operation##_##head_dim##_##with, #operation},
#include "../cuda/instances.def"
#undef FLASH_KERNEL
};

// Starts a kernel; head_dim and has_options choose it among those of the operation.
template <class Params>
void start(Operation operation, int head_dim, bool has_options, const Params &params, const Launch &launch) {
  if (launch.tasks == 0) return;
  for (const Kernel &kernel : kKernels) {
    if (kernel.operation != operation || kernel.head_dim != head_dim || kernel.has_options != has_options) continue;
    const int error = kernel.launch(&params, launch);
    if (error != 0) fail_cuda(error, kernel.name);
    return;
  }
  fail(FLASH_INTERNAL_ERROR, "no CUDA kernel for a head dimension of ", head_dim);
}

int64_t rows_of(const Problem &problem) { return problem.B * problem.Hq * problem.Lq; }
int64_t warps_to_blocks(int64_t warps) { return ceil_div(warps, kPlainThreads / 32); }
int64_t threads_to_blocks(int64_t threads) { return ceil_div(threads, kPlainThreads); }

}  // namespace

// ---- Calls ----------------------------------------------------------------------------------------------------------

void cuda_forward(const Problem &problem, RowsView o, LseView lse, void *stream) {
  const CudaDeviceGuard guard(problem.device_id);
  const int head_dim = built_head_dim(problem.D, problem.Dv);
  const TileShape tile = forward_tile(head_dim);
  ForwardParams params{};
  params.attention = cuda_attention(problem);
  params.tiles = cuda_tiles(problem.B, problem.Hq, problem.Lq, tile.rows, problem.blocks.block_q);
  params.o = cuda_rows(o, problem.dtype, problem.Dv);
  params.lse = lse;
  start(Operation::forward_any, head_dim, has_score_options(problem), params,
        {params.tiles.tasks, tile.threads(), forward_shared_bytes(head_dim), stream});
}

void cuda_backward(const Problem &problem, const BackwardArguments &x, void *workspace, void *stream) {
  const CudaDeviceGuard guard(problem.device_id);
  const uintptr_t address = reinterpret_cast<uintptr_t>(workspace);
  const uintptr_t aligned = (address + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
  const CudaBackwardMemory memory = place_cuda_backward(reinterpret_cast<char *>(aligned), problem, wanted_of(x));
  const QueryFacts facts = {memory.delta, memory.lse2, memory.lse2_low};
  const Attention attention = cuda_attention(problem);
  const DType dtype = problem.dtype;
  const Rows dout = cuda_rows(x.dout, dtype, problem.Dv);
  const int head_dim = built_head_dim(problem.D, problem.Dv);
  const TileShape tile = backward_tile(head_dim);
  const bool has_options = has_score_options(problem);

  PrepareParams prepare{};
  prepare.attention = attention;
  prepare.dout = dout, prepare.o = cuda_rows(x.o, dtype, problem.Dv);
  prepare.lse = x.lse, prepare.dlse = x.dlse;
  prepare.facts = facts;
  prepare.tasks = rows_of(problem);
  start(Operation::backward_prepare_any, 0, plain, prepare, {warps_to_blocks(prepare.tasks), kPlainThreads, 0, stream});

  GradientParams gradients{};
  gradients.attention = attention;
  gradients.dout = dout;
  gradients.facts = facts;
  gradients.dq = cuda_rows(x.dq, dtype, problem.D);
  gradients.dk = cuda_rows(x.dk, dtype, problem.D);
  gradients.dv = cuda_rows(x.dv, dtype, problem.Dv);
  if (x.dk.data != nullptr || x.dv.data != nullptr) {
    gradients.tiles = cuda_tiles(problem.B, problem.Hk, problem.Lk, tile.rows, problem.blocks.block_k);
    start(Operation::backward_keys_any, head_dim, has_options, gradients,
          {gradients.tiles.tasks, tile.threads(), backward_shared_bytes(head_dim), stream});
  }
  if (x.dq.data != nullptr) {
    gradients.tiles = cuda_tiles(problem.B, problem.Hq, problem.Lq, tile.rows, problem.blocks.block_q);
    start(Operation::backward_queries_any, head_dim, has_options, gradients,
          {gradients.tiles.tasks, tile.threads(), backward_shared_bytes(head_dim), stream});
  }
  if (x.dbias.data != nullptr) {
    BiasParams bias{};
    bias.attention = attention;
    bias.dout = dout;
    bias.facts = facts;
    bias.dbias = x.dbias;
    bias.pieces = cuda_bias_pieces(problem, x.dbias, memory.bias_partial_count);
    bias.tasks = bias.pieces.own.product() * bias.pieces.splits;
    if (bias.pieces.splits > 1) bias.partial = memory.bias_partial;
    start(Operation::backward_bias_any, 0, options, bias,
          {bias.tasks, bias_tile_shape().threads(), bias_shared_bytes(), stream});
    if (bias.pieces.splits > 1) {
      const int64_t elements = bias_partial_count(bias.pieces, x.dbias) / bias.pieces.splits;
      start(Operation::backward_bias_sum_any, 0, plain, bias, {threads_to_blocks(elements), kPlainThreads, 0, stream});
    }
  }
  if (x.dsinks.data != nullptr) {
    const SinkParams sinks = {attention, facts, x.dsinks};
    start(Operation::backward_sinks_any, 0, plain, sinks,
          {problem.Hq, kPlainThreads, kPlainThreads * static_cast<int>(sizeof(double)), stream});
  }
}

void cuda_weights(const Problem &problem, const int64_t *rows, int64_t rows_stride, int64_t count, WeightsView weights,
                  void *stream) {
  const CudaDeviceGuard guard(problem.device_id);
  WeightsParams params{};
  params.attention = cuda_attention(problem);
  params.rows = rows, params.rows_stride = rows_stride, params.count = count;
  params.weights = static_cast<float *>(weights.data);
  params.batch = weights.batch, params.head = weights.head, params.row = weights.row, params.column = weights.column;
  params.tasks = problem.Lk == 0 ? 0 : problem.B * problem.Hq * count;
  start(Operation::weights_any, 0, options, params,
        {params.tasks, kWeightsThreads, kWeightsThreads * static_cast<int>(sizeof(float)), stream});
}

void cuda_dropout_mask(int device_id, uint64_t seed, double dropout, bool *keep, const int64_t extent[4],
                       const int64_t stride[4], void *stream) {
  const CudaDeviceGuard guard(device_id);
  DropoutMaskParams params{};
  params.seed = seed, params.keep_threshold = dropout_threshold(dropout);
  params.keep = keep;
  params.tasks = 1;
  for (int axis = 0; axis < 4; ++axis) {
    params.extent[axis] = extent[axis], params.stride[axis] = stride[axis];
    params.tasks *= extent[axis];
  }
  start(Operation::dropout_mask_any, 0, plain, params, {threads_to_blocks(params.tasks), kPlainThreads, 0, stream});
}

void cuda_merge(int device_id, DType dtype, int64_t B, int64_t Lq, int64_t Hq, int64_t Dv, MergePart first,
                MergePart second, MergePart merged, void *stream) {
  const CudaDeviceGuard guard(device_id);
  MergeParams params{};
  params.o1 = cuda_rows(first.o, dtype, Dv), params.o2 = cuda_rows(second.o, dtype, Dv);
  params.o = cuda_rows(merged.o, dtype, Dv);
  params.lse1 = first.lse, params.lse2 = second.lse, params.lse = merged.lse;
  params.Lq = Lq, params.Hq = Hq, params.Dv = Dv;
  params.tasks = B * Hq * Lq;
  start(Operation::merge_any, 0, plain, params, {warps_to_blocks(params.tasks), kPlainThreads, 0, stream});
}

#else

// check_backend has refused CUDA arrays before any of these is called.
namespace {
[[noreturn]] void not_built() { fail(FLASH_INTERNAL_ERROR, "this library was built without CUDA"); }
}  // namespace
void cuda_forward(const Problem &, RowsView, LseView, void *) { not_built(); }
void cuda_backward(const Problem &, const BackwardArguments &, void *, void *) { not_built(); }
void cuda_weights(const Problem &, const int64_t *, int64_t, int64_t, WeightsView, void *) { not_built(); }
void cuda_dropout_mask(int, uint64_t, double, bool *, const int64_t *, const int64_t *, void *) { not_built(); }
void cuda_merge(int, DType, int64_t, int64_t, int64_t, int64_t, MergePart, MergePart, MergePart, void *) {
  not_built();
}

#endif

}  // namespace flash
