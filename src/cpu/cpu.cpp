// The CPU backend's plan and its calls: which path, how many tasks and workers, where their scratch memory lies.
#include "cpu.h"

#include <sched.h>

#include <cmath>
#include <limits>

#include "kernels.h"
#include "layout.h"
#include "number.h"
#include "parallel.h"

namespace flash {
namespace {

// Below this many floating-point operations per worker, waking a thread costs more than it saves.
constexpr double kWorkerFlops = 400e3;
// Tasks per worker below which the forward takes smaller tiles of queries.
constexpr int64_t kTasksPerWorker = 8;

const CpuKernels &kernels(CpuPath path) {
  switch (path) {
#if defined(FLASH_HAS_AVX512BF16)
    case CpuPath::kAvx512Bf16:
      return kernels_avx512bf16;
#endif
#if defined(FLASH_HAS_AVX512)
    case CpuPath::kAvx512:
      return kernels_avx512;
#endif
#if defined(FLASH_HAS_AVX2)
    case CpuPath::kAvx2:
      return kernels_avx2;
#endif
    default:
      return kernels_plain;
  }
}

int index_of(DType dtype) { return static_cast<int>(dtype); }
static_assert(static_cast<int>(DType::kFloat64) == kCpuDTypes - 1, "CpuKernels is indexed by the first DTypes");

double flops(const Problem &x, uint32_t wanted) {
  const double pairs =
      static_cast<double>(x.B) * static_cast<double>(x.Hq) * static_cast<double>(x.Lq) * static_cast<double>(x.Lk);
  return 2 * pairs * static_cast<double>(wanted == 0 ? x.D + x.Dv : 3 * x.D + 2 * x.Dv);
}

int64_t backward_tasks(const Problem &x) { return x.B * x.Hk * ceil_div(x.Lk, backward_tile_keys(x)); }
int64_t strip_tasks(const Problem &x) { return x.B * x.Hq * ceil_div(x.Lq, kBackwardStrip); }

// Places the backward's shared memory; with base NULL it only adds up.
BackwardCall place_backward(Arena *arena, const Problem &x, bool wants_dq) {
  const int64_t sum_bytes = size_bytes(sum_dtype(x.dtype)), rows = strip_tasks(x) * kBackwardStrip;
  BackwardCall call = {};
  call.problem = &x;
  call.delta = take(arena, rows, sum_bytes);
  call.lse2 = take(arena, rows, sum_bytes);
  call.lse2_low = take(arena, rows, sum_bytes);
  if (wants_dq) {
    call.dq = take(arena, rows * round_up(x.D, kMostLanes), sum_bytes);
    call.progress = static_cast<int64_t *>(take(arena, backward_tasks(x), sizeof(int64_t)));
  }
  return call;
}

// The caller's workspace, aligned, and how many workers it has room for; at least one, api.cpp has checked.
struct Workspace {
  char *shared, *workers;
  int count;
  void *of(int worker, const Plan &plan) const { return workers + static_cast<size_t>(worker) * plan.worker_bytes; }
};
Workspace divide(const Plan &plan, void *given, size_t bytes) {
  if (plan.tasks == 0) return {nullptr, nullptr, 1};
  const size_t slack =
      (kWorkspaceAlignment - reinterpret_cast<uintptr_t>(given) % kWorkspaceAlignment) % kWorkspaceAlignment;
  const size_t room = (bytes - slack - plan.shared_bytes) / plan.worker_bytes;
  char *shared = static_cast<char *>(given) + slack;
  return {shared, shared + plan.shared_bytes, static_cast<int>(smaller(plan.workers, static_cast<int64_t>(room)))};
}

// dsinks[h] = sum over b, i of p_sink (dlse - rowsum(do * o)), p_sink = e^(sink - lse).
template <class S>
void sink_gradient(const Problem &x, const BackwardCall &call, int64_t h) {
  const int64_t rows = ceil_div(x.Lq, kBackwardStrip) * kBackwardStrip;
  const BatchView &sinks = x.sinks, &dsinks = call.arguments.dsinks;
  const LseView &lses = call.arguments.lse;
  double sink = 0, sum = 0;
  const auto at = [&](const BatchView &view, auto visit) {
    switch (view.dtype) {
      case DType::kFloat16:
        return visit(static_cast<Half *>(view.data)[h * view.head]);
      case DType::kBfloat16:
        return visit(static_cast<Bfloat *>(view.data)[h * view.head]);
      case DType::kFloat64:
        return visit(static_cast<double *>(view.data)[h * view.head]);
      default:
        return visit(static_cast<float *>(view.data)[h * view.head]);
    }
  };
  at(sinks, [&](auto &value) { sink = to_float(value); });
  for (int64_t b = 0; b < x.B; ++b)
    for (int64_t i = 0; i < x.Lq; ++i) {
      const int64_t row = (b * x.Hq + h) * rows + i;
      if (static_cast<S *>(call.lse2)[row] == std::numeric_limits<S>::infinity()) continue;
      const S lse = static_cast<const S *>(lses.data)[b * lses.batch + h * lses.head + i * lses.row];
      sum -= std::exp(sink - static_cast<double>(lse)) * static_cast<double>(static_cast<S *>(call.delta)[row]);
    }
  at(dsinks, [&](auto &value) {
    if constexpr (sizeof(value) == 8)
      value = sum;
    else
      from_float(static_cast<float>(sum), &value);
  });
}

}  // namespace

void give_way() { sched_yield(); }

Plan plan_cpu(const Problem &x, uint32_t wanted) {
  const CpuPath path = cpu_path();
  Plan plan = {};
  plan.kernel = wanted == 0 ? "forward_cpu" : "backward_cpu";
  plan.path = name(path);
  plan.limit = path == CpuPath::kAvx512Bf16 || (path == CpuPath::kAvx512 && x.dtype != DType::kBfloat16)
                   ? nullptr
                   : "FLASH_CPU or this CPU's instruction sets";
  const int64_t threads = cpu_threads();
  const double worth = 1 + flops(x, wanted) / kWorkerFlops;
  Arena shared = {nullptr, 0}, worker = {nullptr, 0};
  if (wanted == 0) {
    plan.block_k = tile_keys(x.D, x.Dv);
    plan.block_q = kForwardStrips * kForwardStrip;
    while (plan.block_q > kForwardStrip && x.B * x.Hq * ceil_div(x.Lq, plan.block_q) < kTasksPerWorker * threads)
      plan.block_q /= 2;
    plan.tasks = x.B * x.Hq * ceil_div(x.Lq, plan.block_q);
    forward_scratch(&worker, x, plan.block_q);
  } else {
    plan.block_k = backward_tile_keys(x);
    plan.block_q = strip_queries(x, kBackwardStrip);
    plan.tasks = larger(larger(backward_tasks(x), strip_tasks(x)), wanted & (FLASH_DBIAS | FLASH_DSINKS) ? 1 : 0);
    place_backward(&shared, x, (wanted & FLASH_DQ) != 0);
    backward_scratch(&worker, x);
  }
  plan.workers = static_cast<int>(
      smaller(worth < static_cast<double>(threads) ? static_cast<int64_t>(worth) : threads, plan.tasks));
  plan.shared_bytes = shared.used;
  plan.worker_bytes = worker.used;
  return plan;
}

void cpu_forward(const Problem &x, const Plan &plan, RowsView o, LseView lse, void *workspace, size_t bytes) {
  const Workspace scratch = divide(plan, workspace, bytes);
  const ForwardCall call = {&x, plan.block_q, o, lse};
  const auto task = kernels(cpu_path()).forward[index_of(x.dtype)];
  parallel(scratch.count, plan.tasks, [&](int worker, int64_t index) { task(call, index, scratch.of(worker, plan)); });
}

void cpu_backward(const Problem &x, const Plan &plan, const BackwardArguments &arguments, void *workspace,
                  size_t bytes) {
  const Workspace scratch = divide(plan, workspace, bytes);
  const CpuKernels &table = kernels(cpu_path());
  const int dtype = index_of(x.dtype);
  Arena arena = {scratch.shared, 0};
  BackwardCall call = place_backward(&arena, x, arguments.dq.data != nullptr);
  call.arguments = arguments;
  const int64_t tasks = backward_tasks(x);
  const auto run = [&](Task<BackwardCall> task, int64_t count) {
    parallel(scratch.count, count, [&](int worker, int64_t index) { task(call, index, scratch.of(worker, plan)); });
  };
  if (call.progress != nullptr)
    for (int64_t index = 0; index < tasks; ++index) call.progress[index] = 0;
  run(table.prepare[dtype], strip_tasks(x));
  if (arguments.dq.data != nullptr || arguments.dk.data != nullptr || arguments.dv.data != nullptr)
    run(table.keys[dtype], tasks);
  if (arguments.dq.data != nullptr) run(table.finish_dq[dtype], strip_tasks(x));
  if (arguments.dbias.data != nullptr) {
    const BiasPieces pieces = bias_pieces(x, arguments.dbias);
    run(table.bias[dtype], pieces.batches * pieces.heads * pieces.strips * pieces.tiles);
  }
  if (arguments.dsinks.data != nullptr)
    parallel(scratch.count, x.Hq, [&](int, int64_t h) {
      if (x.dtype == DType::kFloat64)
        sink_gradient<double>(x, call, h);
      else
        sink_gradient<float>(x, call, h);
    });
}

}  // namespace flash
