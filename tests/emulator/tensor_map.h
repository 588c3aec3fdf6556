// Tensor maps (CUtensorMap) as this emulator writes and reads them: the driver's own format is its secret, so here the
// 128 bytes are a record. Host code gets one from cuTensorMapEncodeTiled, kernels name it in bulk copies.
#pragma once
#include <cstdint>
#include <string>

namespace emulator {

enum class Swizzle : uint8_t { kNone, k32, k64, k128 };

// The address with 16-byte chunks exchanged, as TMA writes and wgmma reads: within each 256, 512 or 1024 bytes, the
// number of the chunk in its row (of 32, 64 or 128 bytes) XOR the number of the 128-byte line. `origin`: where lines
// are counted from.
constexpr uint32_t swizzled(uint32_t address, Swizzle swizzle, uint32_t origin = 0) {
  const uint32_t bits = swizzle == Swizzle::k128 ? 7 : swizzle == Swizzle::k64 ? 3 : swizzle == Swizzle::k32 ? 1 : 0;
  return address ^ ((((address - origin) >> 7) & bits) << 4);
}
constexpr uint32_t swizzle_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 16 : 16u << static_cast<int>(swizzle);
}

// Dimension 0 is the innermost, whose elements lie next to each other.
struct TensorMap {
  static constexpr uint64_t kMagic = 0x70616d20726f736e;
  static constexpr int kMostDimensions = 5;

  uint64_t magic = kMagic;
  uint64_t address = 0;
  uint64_t strides[kMostDimensions] = {};  // in bytes; [0]: of an element
  uint32_t last[kMostDimensions] = {};     // sizes - 1, since they may be 2^32
  uint16_t box[kMostDimensions] = {};
  uint8_t steps[kMostDimensions] = {};  // element strides
  uint8_t rank = 0, type = 0;           // type: CUtensorMapDataType
  Swizzle swizzle = Swizzle::kNone;
  bool fills_nan = false;  // where the box sticks out, else zero

  uint32_t element_bytes() const { return static_cast<uint32_t>(strides[0]); }
  // Elements that a copy has along a dimension.
  uint32_t extent(int d) const { return (box[d] + steps[d] - 1u) / steps[d]; }
  // Bytes of shared memory that a copy has, also where the box sticks out.
  uint32_t copy_bytes() const {
    uint32_t bytes = element_bytes();
    for (int d = 0; d < rank; ++d) bytes *= extent(d);
    return bytes;
  }
};
static_assert(sizeof(TensorMap) <= 128, "the size of CUtensorMap");

// The rules of cuTensorMapEncodeTiled; "" if the map is right, else what it breaks.
std::string problem_of(const TensorMap &map);

}  // namespace emulator
