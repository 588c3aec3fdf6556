// The CUDA backend's calls: from a checked problem to kernels on the caller's stream. FLASH_CUDA is defined where the
// library is built with CUDA.
#include "cuda_calls.h"

#include "../cuda/isa/index.h"
#include "cuda_fill.h"
#include "cuda_maps.h"
#include "device.h"
#include "error.h"
#include "random.h"

namespace flash {

#ifdef FLASH_CUDA

// ---- The table of kernels -------------------------------------------------------------------------------------------

#define FLASH_KERNEL(header, operation, type, head_dim, options, memory) \
  int launch_##operation##_##type##_##head_dim##_##options##_##memory(const void *params, const Launch &launch);
#include "../cuda/instances.def"
#undef FLASH_KERNEL

namespace {

// What instances.def calls them.
constexpr bool plain = false, options = true;
constexpr DType any = kAnyType, float16 = DType::kFloat16, bfloat16 = DType::kBfloat16, float8 = DType::kFloat8;
constexpr Memory small = Memory::kSmall, large = Memory::kLarge, hopper = Memory::kHopper;

struct Kernel {
  Operation operation;
  DType dtype;
  int head_dim;
  bool has_options;
  Memory memory;
  int (*launch)(const void *params, const Launch &launch);
};
constexpr Kernel kKernels[] = {
#define FLASH_KERNEL(header, operation, type, head_dim, with, memory) \
  {Operation::operation, type, head_dim, with, memory, launch_##operation##_##type##_##head_dim##_##with##_##memory},
#include "../cuda/instances.def"
#undef FLASH_KERNEL
};

template <class Params>
void start(const KernelLaunch &x, const Params &params, void *stream) {
  if (x.tasks == 0) return;
  for (const Kernel &kernel : kKernels) {
    if (kernel.operation != x.operation || kernel.dtype != x.dtype || kernel.head_dim != x.head_dim ||
        kernel.has_options != x.has_options || kernel.memory != x.memory) {
      continue;
    }
    const int error = kernel.launch(&params, {x.blocks, x.threads, x.shared_bytes, stream});
    if (error != 0) fail_cuda(error, name(x.operation));
    return;
  }
  fail(FLASH_INTERNAL_ERROR, "no CUDA kernel ", name(x.operation), " for a head dimension of ", x.head_dim);
}

}  // namespace

namespace {

// The first place in the caller's scratch memory that the library uses.
char *aligned(void *workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  return reinterpret_cast<char *>((address + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment);
}

// All but the map of o.
ForwardSm90Params forward_sm90_params(const KernelLaunch &launch, const Problem &x, const ForwardParams &forward,
                                      const KeyPieces &pieces) {
  ForwardSm90Params params{};
  params.forward = forward;
  params.forward.tiles = cuda_tiles_of_heads(x, launch.tile_rows);
  params.pieces = pieces;
  params.log2_heads = cuda_log2_heads(x, launch.tile_rows);
  params.heads_together = cuda_heads_together(x, params.log2_heads);
  params.box_keys = cuda_box_keys(x, launch.has_options, launch.head_dim);
  fill_map_of_heads(&params.q, x.q, x.dtype, {x.D, x.Lq, x.Hq, x.B}, launch.tile_rows, params.log2_heads);
  if (x.Lk == 0) {  // no key is copied, but maps are prefetched
    params.k = params.v = params.q;
    return params;
  }
  fill_map(&params.k, x.k, x.dtype, {x.D, x.Lk, x.Hk, x.B}, params.box_keys);
  fill_map(&params.v, x.v, x.dtype, {x.Dv, x.Lk, x.Hk, x.B}, params.box_keys);
  return params;
}

void start_forward_sm90(const KernelLaunch &launch, const Problem &x, const ForwardParams &forward,
                        const KeyPieces &pieces, RowsView o, void *stream) {
  ForwardSm90Params params = forward_sm90_params(launch, x, forward, pieces);
  const TensorShape of_o = {x.Dv, x.Lq, x.Hq, x.B};
  params.has_o_map = takes_map(o, x.dtype, of_o);
  if (params.has_o_map) fill_map_of_heads(&params.o, o, x.dtype, of_o, kWarpgroupRows, params.log2_heads);
  start(launch, params, stream);
}

void start_forward_fp8_sm90(const KernelLaunch &launch, const Problem &x, const ForwardParams &forward,
                            const KeyPieces &pieces, void *stream) {
  const ForwardFp8Sm90Params params = {forward_sm90_params(launch, x, forward, pieces), x.q_scale, x.k_scale,
                                       x.v_scale};
  start(launch, params, stream);
}

void start_backward_sm90(const KernelLaunch &launch, const Problem &x, const GradientParams &gradient,
                         const DqTurns &dq_turns, const BackwardArguments &arguments, void *stream) {
  GradientSm90Params params{};
  params.gradient = gradient;
  params.dq_turns = dq_turns;
  params.box_queries = cuda_box_queries(x, launch.has_options, launch.head_dim);
  const TensorShape of_q = {x.D, x.Lq, x.Hq, x.B}, of_dout = {x.Dv, x.Lq, x.Hq, x.B}, of_k = {x.D, x.Lk, x.Hk, x.B},
                    of_v = {x.Dv, x.Lk, x.Hk, x.B};
  fill_map(&params.q, x.q, x.dtype, of_q, params.box_queries);
  fill_map(&params.dout, arguments.dout, x.dtype, of_dout, params.box_queries);
  fill_map(&params.k, x.k, x.dtype, of_k, launch.tile_rows);
  fill_map(&params.v, x.v, x.dtype, of_v, launch.tile_rows);
  params.has_dk_map = gradient.dk.view.data != nullptr && takes_map(arguments.dk, x.dtype, of_k);
  params.has_dv_map = gradient.dv.view.data != nullptr && takes_map(arguments.dv, x.dtype, of_v);
  const int box_keys = launch.operation == Operation::backward_sm90 ? kWarpgroupRows : gradient.tiles.step;
  if (params.has_dk_map) fill_map(&params.dk, arguments.dk, x.dtype, of_k, box_keys);
  if (params.has_dv_map) fill_map(&params.dv, arguments.dv, x.dtype, of_v, box_keys);
  start(launch, params, stream);
}

}  // namespace

// ---- Calls ----------------------------------------------------------------------------------------------------------

void cuda_forward(const Problem &problem, const Plan &plan, RowsView o, DType o_dtype, LseView lse, void *workspace,
                  void *stream) {
  const CudaDeviceGuard guard(problem.device_id);
  const CudaDevice &device = cuda_facts().devices[static_cast<size_t>(problem.device_id)];
  const KeyPieces pieces = place_cuda_forward(aligned(workspace), problem, device).pieces;
  ForwardParams params{};
  params.attention = cuda_attention(problem);
  params.o = cuda_rows(o, o_dtype, problem.Dv);
  params.lse = lse;
  for (const KernelLaunch &launch : plan.launches) {
    params.tiles = cuda_query_tiles(problem, launch.tile_rows == 0 ? 1 : launch.tile_rows);
    if (launch.operation == Operation::forward_sm90 || launch.operation == Operation::forward_narrow_sm90)
      start_forward_sm90(launch, problem, params, pieces, o, stream);
    else if (launch.operation == Operation::forward_fp8_sm90)
      start_forward_fp8_sm90(launch, problem, params, pieces, stream);
    else if (launch.operation == Operation::forward_pieces_sm90)
      start(launch, PiecesParams{params.attention, pieces, params.o, lse, problem.B * problem.Hq * problem.Lq}, stream);
    else
      start(launch, params, stream);
  }
}

void cuda_backward(const Problem &problem, const BackwardArguments &x, void *workspace, void *stream) {
  const CudaDeviceGuard guard(problem.device_id);
  const uint32_t wanted = wanted_of(x);
  const CudaDevice &device = cuda_facts().devices[static_cast<size_t>(problem.device_id)];
  const CudaBackwardMemory memory = place_cuda_backward(aligned(workspace), problem, wanted, device);
  const QueryFacts facts = {memory.delta, memory.lse2, memory.lse2_low};
  const Attention attention = cuda_attention(problem);
  const DType dtype = problem.dtype;
  const Rows dout = cuda_rows(x.dout, dtype, problem.Dv);

  PrepareParams prepare{};
  prepare.attention = attention;
  prepare.dout = dout, prepare.o = cuda_rows(x.o, dtype, problem.Dv);
  prepare.lse = x.lse, prepare.dlse = x.dlse;
  prepare.facts = facts;
  prepare.dq_sums = memory.dq_sums;
  prepare.dq_turns = memory.dq_turns;
  prepare.tasks = problem.B * problem.Hq * problem.Lq;

  GradientParams gradients{};
  gradients.attention = attention;
  gradients.dout = dout;
  gradients.facts = facts;
  gradients.dq_sums = memory.dq_sums;
  gradients.dq = cuda_rows(x.dq, dtype, problem.D);
  gradients.dk = cuda_rows(x.dk, dtype, problem.D);
  gradients.dv = cuda_rows(x.dv, dtype, problem.Dv);

  BiasParams bias{};
  bias.attention = attention;
  bias.dout = dout;
  bias.facts = facts;
  bias.dbias = x.dbias;
  if (wanted & FLASH_DBIAS) bias.pieces = cuda_bias_pieces(problem, x.dbias, memory.bias_partial_count);
  bias.tasks = bias.pieces.own.product() * bias.pieces.splits;
  if (bias.pieces.splits > 1) bias.partial = memory.bias_partial;

  // Those of the plan, but for a bias that is a broadcast view: its gradient has elements of its own where it has none.
  const bool takes_dout = takes_map(x.dout, dtype, {problem.Dv, problem.Lq, problem.Hq, problem.B});
  for (const KernelLaunch &launch :
       cuda_launches(problem, wanted, device, x.dbias, memory.bias_partial_count, takes_dout)) {
    switch (launch.operation) {
      case Operation::backward_prepare_any:
        start(launch, prepare, stream);
        break;
      case Operation::backward_sm90:
      case Operation::backward_wide_sm90:
        gradients.tiles = cuda_key_tiles(problem, launch.tile_rows);
        start_backward_sm90(launch, problem, gradients, memory.dq_turns, x, stream);
        break;
      case Operation::backward_keys_any:
      case Operation::backward_keys_sm80:
      case Operation::backward_sm80:
        gradients.tiles = cuda_key_tiles(problem, launch.tile_rows);
        start(launch, gradients, stream);
        break;
      case Operation::backward_queries_any:
      case Operation::backward_queries_sm80:
        gradients.tiles = cuda_query_tiles(problem, launch.tile_rows);
        start(launch, gradients, stream);
        break;
      case Operation::backward_dq_sm80:
        start(launch, DqParams{attention, memory.dq_sums, gradients.dq, cuda_dq_pieces(problem)}, stream);
        break;
      case Operation::backward_bias_sm80:
      case Operation::backward_bias_any:
      case Operation::backward_bias_sum_any:
        start(launch, bias, stream);
        break;
      case Operation::backward_sinks_any:
        start(launch, SinkParams{attention, facts, x.dsinks}, stream);
        break;
      default:
        fail(FLASH_INTERNAL_ERROR, name(launch.operation), " is no part of the backward");
    }
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
  KernelLaunch launch =
      plain_launch(Operation::weights_any, params.tasks, kWeightsThreads * static_cast<int>(sizeof(float)));
  launch.has_options = true, launch.threads = kWeightsThreads;
  start(launch, params, stream);
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
  start(plain_launch(Operation::dropout_mask_any, ceil_div(params.tasks, kPlainThreads), 0), params, stream);
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
  start(plain_launch(Operation::merge_any, ceil_div(params.tasks, kPlainThreads / 32), 0), params, stream);
}

#else

// check_backend has refused CUDA arrays before any of these is called.
namespace {
[[noreturn]] void not_built() { fail(FLASH_INTERNAL_ERROR, "this library was built without CUDA"); }
}  // namespace
void cuda_forward(const Problem &, const Plan &, RowsView, DType, LseView, void *, void *) { not_built(); }
void cuda_backward(const Problem &, const BackwardArguments &, void *, void *) { not_built(); }
void cuda_weights(const Problem &, const int64_t *, int64_t, int64_t, WeightsView, void *) { not_built(); }
void cuda_dropout_mask(int, uint64_t, double, bool *, const int64_t *, const int64_t *, void *) { not_built(); }
void cuda_merge(int, DType, int64_t, int64_t, int64_t, int64_t, MergePart, MergePart, MergePart, void *) {
  not_built();
}

#endif

}  // namespace flash
