// CUTLASS's attention for Hopper (example 88), backward in f16 for D = 64: five products by wgmma, tiles by TMA, dq summed
// in float32 by TMA. Several tiles of keys and queries; without a mask, lengths off the tiles.
//
// Its warps give two buffers back while they may still be read, and rely on being slower: the stage of q with the wgmma of
// dk in flight (a wait leaves one group), and that of dq with its copy in flight (the same). The emulator reports both,
// and where copies land late the results are wrong; they are compared where copies land at once.
#include "attention.h"
#include "collective/fmha_fusion.hpp"
#include "cutlass/kernel_hardware_info.h"
#include "device/device_universal.hpp"
#include "device/fmha_device_bwd.hpp"

namespace {

using namespace check;
using cutlass::fmha::collective::CausalFusion;
using cutlass::fmha::collective::ResidualFusion;

template <class Fusion>
void run(const Attention &x, const std::string &what) {
  using Tile = cute::Shape<cute::_64, cute::_128, cute::_64>;
  using Operation = cutlass::fmha::device::FmhaBwd<cutlass::half_t, float, Tile, Fusion>;
  const check::Shape &s = x.shape;
  const DeviceArray<Half> q(x.q), k(x.k), v(x.v), do_(x.do_), o(rounded<Half>(x.o));
  const DeviceArray<Half> dq(x.dq.size()), dk(x.dk.size()), dv(x.dv.size());
  const DeviceArray<float> lse(rounded<float>(x.lse));
  const auto rows = [&](int L) { return cute::make_stride(L * s.H * s.D, s.D, s.H * s.D, cute::_1{}); };
  typename Operation::Arguments arguments{{s.B, s.H, s.Lq, s.Lk, s.D},
                                          q.data(),
                                          rows(s.Lq),
                                          k.data(),
                                          rows(s.Lk),
                                          v.data(),
                                          rows(s.Lk),
                                          o.data(),
                                          rows(s.Lq),
                                          lse.data(),
                                          cute::make_stride(s.H * s.lse_stride(), s.lse_stride(), cute::_1{}),
                                          do_.data(),
                                          rows(s.Lq),
                                          dq.data(),
                                          rows(s.Lq),
                                          dk.data(),
                                          rows(s.Lk),
                                          dv.data(),
                                          rows(s.Lk),
                                          {}};
  const DeviceArray<char> workspace(Operation::get_workspace_size(arguments));
  Operation operation;
  const bool fine = Operation::can_implement(arguments) == cutlass::Status::kSuccess &&
                    operation.initialize(arguments, workspace.data()) == cutlass::Status::kSuccess &&
                    operation.run() == cutlass::Status::kSuccess;
  if (!fine) {
    std::printf("%s: refused, %s\n", what.c_str(), cudaGetErrorString(cudaGetLastError()));
    std::exit(1);
  }
  compare(what + ": dq", dq.host(), x.dq);
  compare(what + ": dk", dk.host(), x.dk);
  compare(what + ": dv", dv.host(), x.dv);
}

bool of_early_release(const emulator::Report &report) {
  if (report.kind != emulator::Kind::kRace || !report.other) return false;
  const auto reads = [&](const char *what) { return report.other->ptx.find(what) != std::string::npos; };
  const bool loads_q = report.detail.find("bulk copy's write") == 0 && reads("wgmma.mma_async");
  return loads_q || (report.line.ptx.find("st.") == 0 && reads("cp.reduce.async.bulk.tensor"));
}

}  // namespace

int main() {
  const Attention full = attention_of({1, 2, 152, 304, 64, false}), causal = attention_of({1, 2, 256, 256, 64, true});
  const auto both = [&](const std::string &what) {
    run<ResidualFusion>(full, what + ", full");
    run<CausalFusion>(causal, what + ", causal");
  };
  under_every_schedule("gradients", {}, both, of_early_release, {emulator::Copies::kEager});
  return failures != 0;
}
