// CUTLASS's attention for Hopper (example 88), forward in f16 for D = 64: TMA and wgmma, its own host code for tensor maps
// and the launch. Its three kernels: one that loads for itself, one with a warpgroup that loads, a persistent one whose
// two warpgroups take turns. Lengths off the tiles, and several tiles of keys.
#include "attention.h"
#include "collective/fmha_fusion.hpp"
#include "cutlass/kernel_hardware_info.h"
#include "device/device_universal.hpp"
#include "kernel/fmha_kernel_builder.hpp"

namespace {

using namespace check;
using namespace cute;
using cutlass::fmha::collective::CausalFusion;
using cutlass::fmha::collective::ResidualFusion;

using Rows = tuple<int, _1, tuple<int, int>>;  // strides of L, D, (B, H)

template <class Tile, class Schedule, class Fusion>
struct Forward {
  using Kernel = typename cutlass::fmha::kernel::FmhaBuilder<cutlass::half_t, float, float, Tile, Rows, Rows, Rows,
                                                             Fusion, Schedule>::Kernel;
  using Operation = cutlass::device::Universal<Kernel>;

  static void run(const Attention &x, const std::string &what) {
    const check::Shape &s = x.shape;
    const DeviceArray<Half> q(x.q), k(x.k), v(x.v), o(x.o.size());
    const DeviceArray<float> lse(x.lse.size());
    const auto rows = [&](int L) { return make_stride(s.H * s.D, _1{}, make_stride(L * s.H * s.D, s.D)); };
    const auto lse_strides = make_stride(_1{}, make_stride(s.H * s.lse_stride(), s.lse_stride()));
    cutlass::KernelHardwareInfo hardware;
    hardware.sm_count = 4;  // fewer blocks than tiles: a persistent kernel has several
    typename Operation::Arguments arguments{{s.B, s.H, s.Lq, s.Lk, s.D},
                                            {q.data(), rows(s.Lq), k.data(), rows(s.Lk), v.data(), rows(s.Lk)},
                                            {o.data(), rows(s.Lq), lse.data(), lse_strides},
                                            hardware};
    Operation operation;
    const bool fine = Operation::can_implement(arguments) == cutlass::Status::kSuccess &&
                      operation.initialize(arguments) == cutlass::Status::kSuccess &&
                      operation.run() == cutlass::Status::kSuccess;
    if (!fine) {
      std::printf("%s: refused, %s\n", what.c_str(), cudaGetErrorString(cudaGetLastError()));
      std::exit(1);
    }
    compare(what + ": o", o.host(), x.o);
    std::vector<float> got = lse.host();
    for (size_t r = 0; r < got.size(); ++r)
      if (static_cast<int>(r % static_cast<size_t>(s.lse_stride())) >= s.Lq) got[r] = 0;
    compare(what + ": lse", got, x.lse);
  }
};

}  // namespace

int main() {
  using namespace cutlass::gemm;
  using Wide = cute::Shape<_64, _128, _64>;
  using Tall = cute::Shape<_128, _64, _64>;
  // The kernels want multiples of 8 queries.
  const Attention full = attention_of({1, 2, 152, 300, 64, false}), causal = attention_of({1, 2, 200, 200, 64, true});
  const auto all = [&](const std::string &what) {
    Forward<Wide, KernelTma, ResidualFusion>::run(full, what + ", plain, full");
    Forward<Tall, KernelTmaWarpSpecializedCooperative, CausalFusion>::run(causal, what + ", cooperative, causal");
    Forward<Tall, KernelTmaWarpSpecializedPingpong, ResidualFusion>::run(full, what + ", ping-pong, full");
    Forward<Tall, KernelTmaWarpSpecializedPingpong, CausalFusion>::run(causal, what + ", ping-pong, causal");
  };
  under_every_schedule("attention", {}, all, nothing);
  return failures != 0;
}
