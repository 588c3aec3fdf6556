// float16, bfloat16 and e4m3 as bit patterns: conversion of 16-bit ones to and from float, one number at a time, rounding
// to nearest even.
#pragma once
#include <cstdint>

#include "../portable.h"

namespace flash {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};
struct Float8 {  // e4m3fn
  uint8_t bits;
};

FLASH_INLINE uint32_t float_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
FLASH_INLINE float float_from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

FLASH_INLINE float to_float(Bfloat x) { return float_from_bits(uint32_t{x.bits} << 16); }
FLASH_INLINE float to_float(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = (x.bits & 0x7fffu) << 13;
  // Exponent 31 is inf or NaN; below it, a product with 2^112 moves the exponent and makes subnormals right.
  const uint32_t bits =
      magnitude >= (0x7c00u << 13) ? magnitude | 0x7f800000u : float_bits(float_from_bits(magnitude) * 0x1p112f);
  return float_from_bits(bits | sign);
}
FLASH_INLINE float to_float(float x) { return x; }
FLASH_INLINE double to_float(double x) { return x; }
FLASH_INLINE float to_float(bool x) { return x; }

FLASH_INLINE void from_float(float x, Bfloat *out) {
  const uint32_t bits = float_bits(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
FLASH_INLINE void from_float(float x, Half *out) {
  const uint32_t sign = float_bits(x) >> 16 & 0x8000u, magnitude = float_bits(x) & 0x7fffffffu;
  uint32_t bits;
  if (magnitude > 0x7f800000u) {
    bits = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more rounds to inf
    bits = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal, the addition of 0.5 does the rounding
    bits = float_bits(float_from_bits(magnitude) + 0.5f) - float_bits(0.5f);
  } else {
    bits = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(bits | sign);
}
FLASH_INLINE void from_float(float x, float *out) { *out = x; }
FLASH_INLINE void from_float(double x, double *out) { *out = x; }

}  // namespace flash
