// What the tests of the CUDA side's plain arithmetic have in common: random numbers, problems and devices.
#pragma once
#include <random>

#include "checks.h"
#include "device.h"
#include "problem.h"

namespace flash {

inline std::mt19937 random_bits(11);
inline int64_t draw(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random_bits() % static_cast<uint32_t>(high - low + 1));
}

// Without arrays: strides are 0, so no kernel takes them that copies boxes.
inline Problem problem_of(int64_t B, int64_t Lq, int64_t Lk, int64_t Hq, int64_t Hk, int64_t D) {
  Problem problem{};
  problem.backend = Backend::kCuda;
  problem.dtype = DType::kFloat32;
  problem.B = B, problem.Lq = Lq, problem.Lk = Lk, problem.Hq = Hq, problem.Hk = Hk, problem.D = D, problem.Dv = D;
  problem.scale = 0.125;
  problem.window = {kOpen, kOpen};
  return problem;
}

inline const CudaDevice kSmall{"small", 80, 1, 99 * 1024, 1 << 30},
    kLarge{"large", 90, 132, 227 * 1024, int64_t{80} << 30};

}  // namespace flash
