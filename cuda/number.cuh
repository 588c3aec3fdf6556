// Numbers as they lie in memory: float16, bfloat16 and float32; arithmetic is float32 for all of them.
#pragma once
#include "cpu/number.h"
#include "isa/sm80.cuh"
#include "tensor.h"

namespace flash {

__device__ __forceinline__ float widen(Half x) { return float_from_half(x.bits); }
__device__ __forceinline__ float widen(Bfloat x) { return to_float(x); }
__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ void narrow(float x, Half *to) { to->bits = half_from_float(x); }
__device__ __forceinline__ void narrow(float x, Bfloat *to) { to->bits = bfloat_from_float(x); }
__device__ __forceinline__ void narrow(float x, float *to) { *to = x; }

// Where the type is known only at run time: bias, sinks, and their gradients.
__device__ __forceinline__ float read_number(const void *data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return widen(static_cast<const Half *>(data)[index]);
    case DType::kBfloat16:
      return widen(static_cast<const Bfloat *>(data)[index]);
    default:
      return static_cast<const float *>(data)[index];
  }
}
__device__ __forceinline__ void write_number(float x, void *data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return narrow(x, static_cast<Half *>(data) + index);
    case DType::kBfloat16:
      return narrow(x, static_cast<Bfloat *>(data) + index);
    default:
      return narrow(x, static_cast<float *>(data) + index);
  }
}

// Two neighbours, from a multiple of their size.
__device__ __forceinline__ float2 load_pair(const float *from) { return *reinterpret_cast<const float2 *>(from); }
template <class T>
__device__ __forceinline__ float2 load_pair(const T *from) {
  static_assert(sizeof(T) == 2);
  const uint32_t both = *reinterpret_cast<const uint32_t *>(from);
  return {widen(T{static_cast<uint16_t>(both)}), widen(T{static_cast<uint16_t>(both >> 16)})};
}
// Not zero where a number of a mask is not.
__device__ __forceinline__ uint2 load_pair(const uint8_t *from) {
  const uint32_t both = *reinterpret_cast<const uint16_t *>(from);
  return {both & 0xff, both >> 8};
}
__device__ __forceinline__ uint32_t widen(uint8_t x) { return x; }

// Four neighbours as they lie in memory; 16-bit types fill two words.
struct RawFour {
  uint32_t word[4];
};
// `from` is a multiple of their size.
__device__ __forceinline__ RawFour load_raw(const char *from, bool is_wide) {
  if (is_wide) {
    const uint4 x = *reinterpret_cast<const uint4 *>(from);
    return {{x.x, x.y, x.z, x.w}};
  }
  const uint2 x = *reinterpret_cast<const uint2 *>(from);
  return {{x.x, x.y, 0, 0}};
}
template <class T>
__device__ __forceinline__ float4 widen_raw(const RawFour &raw) {
  const uint32_t *word = raw.word;
  if constexpr (sizeof(T) == 4)
    return {float_from_bits(word[0]), float_from_bits(word[1]), float_from_bits(word[2]), float_from_bits(word[3])};
  else
    return {widen(T{static_cast<uint16_t>(word[0])}), widen(T{static_cast<uint16_t>(word[0] >> 16)}),
            widen(T{static_cast<uint16_t>(word[1])}), widen(T{static_cast<uint16_t>(word[1] >> 16)})};
}
template <class T>
__device__ __forceinline__ void store_narrow(float4 x, void *to) {
  if constexpr (sizeof(T) == 4) {
    *static_cast<float4 *>(to) = x;
  } else {
    T y[4];
    narrow(x.x, y + 0), narrow(x.y, y + 1), narrow(x.z, y + 2), narrow(x.w, y + 3);
    *static_cast<uint2 *>(to) = {y[0].bits | uint32_t{y[1].bits} << 16, y[2].bits | uint32_t{y[3].bits} << 16};
  }
}

}  // namespace flash
