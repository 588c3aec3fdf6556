// Instructions of compute capability 8.0, one function each: the only home of inline PTX. A host compiler that checks
// the kernels sees declarations only.
#pragma once
#include <cstdint>

#include "portable.h"

namespace flash {

#if defined(__CUDACC__)
#define FLASH_INSTRUCTION __device__ __forceinline__

// 2^x with an error of 2 ulp; also for results below the smallest normal number. 2^-inf = 0.
FLASH_INSTRUCTION float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

FLASH_INSTRUCTION float float_from_half(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
// To nearest, ties to even.
FLASH_INSTRUCTION uint16_t half_from_float(float x) {
  uint16_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
FLASH_INSTRUCTION uint16_t bfloat_from_float(float x) {
  uint16_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

// The value of the lane whose number differs in the bits of `mask`. All lanes of the warp take part.
FLASH_INSTRUCTION float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

#undef FLASH_INSTRUCTION
#else
float exp2_approximate(float x);
float float_from_half(uint16_t x);
uint16_t half_from_float(float x);
uint16_t bfloat_from_float(float x);
float shuffle_xor(float x, int mask);
#endif

}  // namespace flash
