// How a TMA copy finds boxes in a tensor and lays them out in shared memory: CUDA's CUtensorMap, for files that do without
// its headers. Filled by the driver (src/cuda_maps.cpp).
#pragma once
#include <cstdint>

namespace flash {

struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

}  // namespace flash
