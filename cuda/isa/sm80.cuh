// Instructions of compute capability 8.0, one function each: the only home of inline PTX. A host compiler that checks
// the kernels sees declarations only.
#pragma once
#include <cstdint>

#include "cpu/number.h"
#include "portable.h"

namespace flash {

#if defined(__CUDACC__)
#define FLASH_INSTRUCTION __device__ __forceinline__

// 2^x with an error of 2 ulp, 0 below the smallest normal number, and 2^-inf = 0.
FLASH_INSTRUCTION float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The same for smaller results, too, which takes three more instructions.
FLASH_INSTRUCTION float exp2_approximate_subnormal(float x) {
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
FLASH_INSTRUCTION uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
FLASH_INSTRUCTION uint64_t shuffle_xor(uint64_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// ---- Tensor cores: 16-bit operands, float32 results; index.h has the layout of fragments ----------------------------

// Two numbers rounded to T (to nearest, ties to even), the first in the lower half.
template <class T>
FLASH_INSTRUCTION uint32_t pack(float low, float high);
template <>
FLASH_INSTRUCTION uint32_t pack<Half>(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <>
FLASH_INSTRUCTION uint32_t pack<Bfloat>(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// c += a b, of 16 x 16 and 16 x 8 numbers of type T.
template <class T>
FLASH_INSTRUCTION void mma(float &c0, float &c1, float &c2, float &c3, const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1);
template <>
FLASH_INSTRUCTION void mma<Half>(float &c0, float &c1, float &c2, float &c3, const uint32_t (&a)[4], uint32_t b0,
                                 uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
FLASH_INSTRUCTION void mma<Bfloat>(float &c0, float &c1, float &c2, float &c3, const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices from shared memory; each lane gives the address of one row.
FLASH_INSTRUCTION void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same, each of them transposed.
FLASH_INSTRUCTION void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// x, which the compiler takes for a new number each time: what follows from it is computed where it is needed.
// Otherwise all that a loop needs of it, every address for instance, would be computed before the loop and kept in
// registers.
FLASH_INSTRUCTION int here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
FLASH_INSTRUCTION int64_t here(int64_t x) {
  asm volatile("" : "+l"(x));
  return x;
}

// ---- Asynchronous copies to shared memory ---------------------------------------------------------------------------

FLASH_INSTRUCTION uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// 16 bytes, past L1; zeros where !is_there, and then `from` is not read.
FLASH_INSTRUCTION void copy_16_bytes(uint32_t to, const void *from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}
// 4 bytes, through L1.
FLASH_INSTRUCTION void copy_4_bytes(uint32_t to, const void *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
FLASH_INSTRUCTION void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last kPending groups of this thread's copies have landed.
template <int kPending>
FLASH_INSTRUCTION void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
FLASH_INSTRUCTION void store_16_bytes(uint32_t to, uint4 x) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
FLASH_INSTRUCTION void store_4_bytes(uint32_t to, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}
FLASH_INSTRUCTION uint4 load_16_bytes(uint32_t from) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from)
               : "memory");
  return x;
}
FLASH_INSTRUCTION uint32_t load_4_bytes(uint32_t from) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
  return x;
}
FLASH_INSTRUCTION void store_8_bytes(uint32_t to, float2 x) {
  asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(to), "f"(x.x), "f"(x.y) : "memory");
}
FLASH_INSTRUCTION float2 load_8_bytes(uint32_t from) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
  return x;
}

// *to += x, in one go for whoever else adds to it; nobody waits.
FLASH_INSTRUCTION void add_in_memory(float *to, float x) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "f"(x) : "memory");
}

#undef FLASH_INSTRUCTION
#else
float exp2_approximate(float x);
float exp2_approximate_subnormal(float x);
float float_from_half(uint16_t x);
uint16_t half_from_float(float x);
uint16_t bfloat_from_float(float x);
float shuffle_xor(float x, int mask);
uint32_t shuffle_xor(uint32_t x, int mask);
uint64_t shuffle_xor(uint64_t x, int mask);
template <class T>
uint32_t pack(float low, float high);
template <class T>
void mma(float &c0, float &c1, float &c2, float &c3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void load_matrices(uint32_t (&r)[4], uint32_t address);
void load_matrices_transposed(uint32_t (&r)[4], uint32_t address);
uint32_t shared_address(const void *pointer);
void copy_16_bytes(uint32_t to, const void *from, bool is_there);
void copy_4_bytes(uint32_t to, const void *from);
void store_8_bytes(uint32_t to, float2 x);
void commit_copies();
template <int kPending>
void wait_for_copies();
int here(int x);
int64_t here(int64_t x);
void store_16_bytes(uint32_t to, uint4 x);
void store_4_bytes(uint32_t to, uint32_t x);
uint4 load_16_bytes(uint32_t from);
uint32_t load_4_bytes(uint32_t from);
void add_in_memory(float *to, float x);
float2 load_8_bytes(uint32_t from);
#endif

}  // namespace flash
