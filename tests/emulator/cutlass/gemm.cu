// CUTLASS's device::Gemm for sm80, f16 x f16 -> f32 with f32 sums (mma m16n8k16): c = a b. Its host code chooses the grid,
// asks for shared memory and a workspace, and launches. With k in several slices, blocks add to c in turn, each
// waiting for a semaphore of the one before.
#include "check.h"
#include "cutlass/gemm/device/gemm.h"

namespace {

using namespace check;
using cutlass::gemm::GemmShape;

constexpr int kAlignment = 8;
using Gemm = cutlass::gemm::device::Gemm<
    Half, cutlass::layout::RowMajor, Half, cutlass::layout::RowMajor, float, cutlass::layout::RowMajor, float,
    cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, GemmShape<64, 64, 32>, GemmShape<32, 32, 32>,
    GemmShape<16, 8, 16>, cutlass::epilogue::thread::LinearCombination<float, 4, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, /*Stages=*/3, kAlignment, kAlignment,
    /*SplitKSerial=*/true>;

constexpr int kM = 100, kN = 136, kK = 200;

std::vector<double> product(const std::vector<Half> &a, const std::vector<Half> &b) {
  std::vector<double> c(size_t{kM} * kN);
  for (int i = 0; i < kM; ++i)
    for (int l = 0; l < kK; ++l)
      for (int j = 0; j < kN; ++j)
        c[i * kN + j] += static_cast<double>(a[i * kK + l]) * static_cast<double>(b[l * kN + j]);
  return c;
}

void run(const std::vector<Half> &a, const std::vector<Half> &b, const std::vector<double> &wanted, int slices,
         const std::string &what) {
  const DeviceArray<Half> device_a(a), device_b(b);
  const DeviceArray<float> c(wanted.size());
  const Gemm::Arguments arguments({kM, kN, kK}, {device_a.data(), kK}, {device_b.data(), kN}, {c.data(), kN},
                                  {c.data(), kN}, {1.0f, 0.0f}, slices);
  const DeviceArray<char> workspace(Gemm::get_workspace_size(arguments));
  Gemm gemm;
  const cutlass::Status status = gemm(arguments, workspace.data());
  if (status != cutlass::Status::kSuccess) {
    std::printf("%s: %s: %s\n", what.c_str(), cutlassGetStatusString(status), cudaGetErrorString(cudaGetLastError()));
    std::exit(1);
  }
  compare(what, c.host(), wanted);
}

}  // namespace

int main() {
  const std::vector<Half> a = random_halves(size_t{kM} * kK, 1), b = random_halves(size_t{kK} * kN, 2);
  const std::vector<double> c = product(a, b);
  // Rows and columns past the matrices are not copied to shared memory; what is made of them isn't stored.
  emulator::Options options;
  options.uninitialised = false;
  for (const int slices : {1, 3}) {
    under_every_schedule(
        "product in " + std::to_string(slices) + " slices", options,
        [&](const std::string &what) { run(a, b, c, slices, what); }, nothing);
  }
  return failures != 0;
}
