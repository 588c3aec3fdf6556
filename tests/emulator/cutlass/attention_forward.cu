// CUTLASS's fused attention (example 41), forward in f16 for D = 64: its own host code for the launch, tiles of 64 x 64,
// output in registers; lengths off the tiles, and several tiles of keys.
#include <cmath>

#include "attention.h"
#include "kernel_forward.h"

namespace {

using namespace check;

using Kernel = AttentionKernel<Half, cutlass::arch::Sm80, /*isAligned=*/true, /*kQueriesPerBlock=*/64,
                               /*kKeysPerBlock=*/64, /*kMaxK=*/64, /*kSupportsDropout=*/false, /*kSupportsBias=*/false>;

Kernel::Params parameters(const Shape &s) {
  Kernel::Params p;
  p.scale = s.scale();
  p.num_batches = s.B, p.num_heads = s.H, p.num_queries = s.Lq, p.num_keys = s.Lk;
  p.head_dim = p.head_dim_value = s.D;
  p.custom_mask_type = s.causal ? Kernel::CausalFromBottomRight : Kernel::NoCustomMask;
  p.q_strideH = p.k_strideH = p.v_strideH = s.D;
  p.q_strideM = p.k_strideM = p.v_strideM = p.o_strideM = s.H * s.D;
  p.q_strideB = int64_t{s.Lq} * s.H * s.D;
  p.k_strideB = p.v_strideB = int64_t{s.Lk} * s.H * s.D;
  return p;
}

void run(const Attention &x, const std::string &what) {
  const DeviceArray<Half> q(x.q), k(x.k), v(x.v), o(x.o.size());
  const DeviceArray<float> lse(x.lse.size());
  Kernel::Params p = parameters(x.shape);
  p.query_ptr = q.data(), p.key_ptr = k.data(), p.value_ptr = v.data();
  p.output_ptr = o.data(), p.logsumexp_ptr = lse.data();
  if (!Kernel::check_supported(p)) std::exit(1);
  constexpr auto kernel = attention_kernel_batched_impl<Kernel>;
  constexpr int shared_bytes = sizeof(Kernel::SharedStorage);
  expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  kernel<<<p.getBlocksGrid(), p.getThreadsGrid(), shared_bytes>>>(p);
  expect(cudaGetLastError(), what.c_str());
  compare(what + ": o", o.host(), x.o);
  std::vector<float> got = lse.host();
  for (size_t r = 0; r < got.size(); ++r)
    if (static_cast<int>(r % static_cast<size_t>(x.shape.lse_stride())) >= x.shape.Lq) got[r] = 0;
  compare(what + ": lse", got, x.lse);
}

}  // namespace

int main() {
  for (const bool causal : {false, true}) {
    const Attention x = attention_of({1, 2, causal ? 150 : 100, 200, 64, causal});
    under_every_schedule(causal ? "causal" : "full", {}, [&](const std::string &what) { run(x, what); }, nothing);
  }
  return failures != 0;
}
