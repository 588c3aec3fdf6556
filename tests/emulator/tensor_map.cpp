#include "tensor_map.h"

namespace emulator {

std::string problem_of(const TensorMap &m) {
  if (m.rank < 1 || m.rank > TensorMap::kMostDimensions) return "1 to 5 dimensions";
  if (m.address % 16 != 0) return "an address that is a multiple of 16";
  for (int d = 1; d < m.rank; ++d) {
    if (m.strides[d] % 16 != 0 || m.strides[d] >= uint64_t{1} << 40)
      return "strides that are multiples of 16 below 2^40";
  }
  for (int d = 0; d < m.rank; ++d) {
    if (m.box[d] < 1 || m.box[d] > 256) return "boxes of 1 to 256 elements";
    if (m.steps[d] < 1 || m.steps[d] > 8) return "element strides of 1 to 8";
  }
  const uint32_t inner = m.box[0] * m.element_bytes();
  if (inner % 16 != 0) return "an innermost box of a multiple of 16 bytes";
  if (m.swizzle != Swizzle::kNone && inner > swizzle_bytes(m.swizzle)) return "an innermost box as wide as the swizzle";
  return "";
}

}  // namespace emulator
