// What the drivers of CUTLASS's kernels share: random input, arrays on the emulated device, comparison with float64, and
// running a kernel under every schedule of the emulator.
//
// A driver is ordinary host code of the CUDA runtime. It prints one line for each result and ends with status 1 if one of
// them is wrong or the emulator reported anything.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "cutlass/numeric_types.h"
#include "device.h"

namespace check {

using Half = cutlass::half_t;

// Of the largest value. f16 has 2^-11; p and ds are rounded to it too before their products.
constexpr double kTolerance = 1e-3;

inline int failures = 0;

inline void expect(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Uniform in [-2, 2), rounded to f16.
inline std::vector<Half> random_halves(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<Half> values(count);
  for (Half &x : values) x = Half(static_cast<float>(generator() >> 8) / 0x1p22f - 2.0f);
  return values;
}

template <class T>
class DeviceArray {
 public:
  // Not set: NaN, as the emulator gives it.
  explicit DeviceArray(size_t count) : count_(count) {
    void *address = nullptr;
    expect(cudaMalloc(&address, count * sizeof(T)), "cudaMalloc");
    data_ = static_cast<T *>(address);
  }
  // The same with a name that the emulator's reports show.
  DeviceArray(size_t count, const char *name)
      : count_(count), data_(static_cast<T *>(emulator::Device::get().memory.allocate(count * sizeof(T), name))) {}
  explicit DeviceArray(const std::vector<T> &values) : DeviceArray(values.size()) {
    expect(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  DeviceArray(const DeviceArray &) = delete;
  DeviceArray &operator=(const DeviceArray &) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T *data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> values(count_);
    expect(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }

 private:
  size_t count_;
  T *data_;
};

// The largest error as a share of the largest value.
template <class T>
void compare(const std::string &name, const std::vector<T> &got, const std::vector<double> &wanted) {
  double error = 0, scale = 0;
  for (size_t k = 0; k < wanted.size(); ++k) {
    const double off = std::fabs(static_cast<double>(got[k]) - wanted[k]);
    if (!(off <= error)) error = off;  // also if it is NaN
    scale = std::fmax(scale, std::fabs(wanted[k]));
  }
  const bool right = error <= kTolerance * scale;
  std::printf("%s: error %.1e of %.1e%s\n", name.c_str(), error, scale, right ? "" : ", WRONG");
  if (!right) ++failures;
}

inline bool nothing(const emulator::Report &) { return false; }

// run(what): launches and compares, once in each order of warps and each arrival of copies, or those that are given.
// Reports other than the expected ones are failures.
template <class Run, class Expected>
void under_every_schedule(const std::string &name, emulator::Options options, Run run, Expected expected,
                          std::initializer_list<emulator::Copies> arrivals = {
                              emulator::Copies::kLate, emulator::Copies::kEager, emulator::Copies::kRandom}) {
  const char *const orders[] = {"forward", "reverse", "random"}, *const copies[] = {"late", "eager", "random"};
  emulator::Device &device = emulator::Device::get();
  options.collect = true;
  for (int k = 0; k < 9; ++k) {
    options.order = static_cast<emulator::Order>(k / 3);
    options.copies = static_cast<emulator::Copies>(k % 3);
    if (std::find(arrivals.begin(), arrivals.end(), options.copies) == arrivals.end()) continue;
    options.seed = static_cast<uint64_t>(k);
    device.set_options(options);
    run(name + ", " + orders[k / 3] + " order, " + copies[k % 3] + " copies");
    for (const emulator::LaunchRecord &launch : device.take_records()) {
      for (emulator::Report report : launch.stats.reports) {
        if (expected(report)) continue;
        ++failures;
        report.kernel = "the kernel";  // its own name fills a page
        std::printf("%s\n", report.text().c_str());
      }
    }
  }
}

}  // namespace check
