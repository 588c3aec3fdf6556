// CUTLASS's fused attention (example 41), backward in f16 for D = 64: dq, dk and dv in one kernel. With its keys split
// among several blocks these add up dq in turn, under locks in global memory.
#include <cmath>

#include "attention.h"
#include "kernel_backward.h"

namespace {

using namespace check;

using Kernel = AttentionBackwardKernel<cutlass::arch::Sm80, Half, /*kIsAligned=*/true, /*kApplyDropout=*/false,
                                       /*kPreload=*/true, /*kBlockSizeI=*/64, /*kBlockSizeJ=*/64, /*kMaxK=*/64,
                                       /*kKeysQueriesAlignedToBlockSize=*/false, /*kEnableSplitKeys=*/true>;

Kernel::Params parameters(const Shape &s, int splits) {
  Kernel::Params p;
  p.scale = s.scale();
  p.num_batches = s.B, p.num_heads = s.H, p.num_queries = s.Lq, p.num_keys = s.Lk;
  p.head_dim = p.head_dim_value = s.D;
  p.custom_mask_type = s.causal ? Kernel::CausalFromBottomRight : Kernel::NoCustomMask;
  p.num_splits_key = static_cast<int16_t>(splits);
  const int row = s.H * s.D;
  p.q_strideM = p.k_strideM = p.v_strideM = p.gO_strideM = row;
  p.q_strideH = p.k_strideH = p.v_strideH = s.D;
  p.o_strideH = p.gO_strideH = p.gQ_strideH = p.gK_strideH = p.gV_strideH = s.D;
  p.q_strideB = p.o_strideB = p.gO_strideB = p.gQ_strideB = int64_t{s.Lq} * row;
  p.k_strideB = p.v_strideB = p.gK_strideB = p.gV_strideB = int64_t{s.Lk} * row;
  p.lse_strideH = p.delta_strideH = s.lse_stride();
  p.lse_strideB = p.delta_strideB = int64_t{s.H} * s.lse_stride();
  return p;
}

void run(const Attention &x, int splits, const std::string &what) {
  const DeviceArray<Half> q(x.q), k(x.k), v(x.v), do_(x.do_), o(rounded<Half>(x.o));
  const DeviceArray<Half> dq(x.dq.size()), dk(x.dk.size()), dv(x.dv.size());
  const DeviceArray<float> lse(rounded<float>(x.lse)), delta(x.lse.size(), "delta");
  Kernel::Params p = parameters(x.shape, splits);
  p.query_ptr = q.data(), p.key_ptr = k.data(), p.value_ptr = v.data();
  p.output_ptr = o.data(), p.grad_output_ptr = do_.data(), p.logsumexp_ptr = lse.data(), p.delta_ptr = delta.data();
  p.grad_query_ptr = dq.data(), p.grad_key_ptr = dk.data(), p.grad_value_ptr = dv.data();
  const auto workspace_bytes = static_cast<size_t>(p.workspace_size());
  const DeviceArray<char> workspace(workspace_bytes);
  p.workspace = reinterpret_cast<float *>(workspace.data());
  if (p.should_zero_workspace()) expect(cudaMemset(p.workspace, 0, workspace_bytes), "cudaMemset");
  if (!Kernel::check_supported(p)) std::exit(1);
  constexpr auto kernel = attention_kernel_backward_batched_impl<Kernel>;
  constexpr int shared_bytes = sizeof(Kernel::SharedStorage);
  expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  kernel<<<p.getBlocksGrid(), p.getThreadsGrid(), shared_bytes>>>(p);
  expect(cudaGetLastError(), what.c_str());
  compare(what + ": dq", dq.host(), x.dq);
  compare(what + ": dk", dk.host(), x.dk);
  compare(what + ": dv", dv.host(), x.dv);
}

// Each of the blocks that share a head computes all of delta, and they store equal values to the same places in no order.
// To PTX that is a data race, if one whose result is defined.
bool of_delta(const emulator::Report &report) {
  return report.kind == emulator::Kind::kRace && report.detail.find("write of delta + ") != std::string::npos;
}

}  // namespace

int main() {
  for (const bool causal : {false, true}) {
    const Attention x = attention_of({1, 2, causal ? 150 : 100, 200, 64, causal});
    for (const int splits : {1, 3}) {
      under_every_schedule((causal ? "causal, " : "full, ") + std::to_string(splits) + " splits", {},
                           [&](const std::string &what) { run(x, splits, what); }, splits == 1 ? nothing : of_delta);
    }
  }
  return failures != 0;
}
