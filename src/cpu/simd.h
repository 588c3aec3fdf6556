// Vectors for the generic CPU kernels: GCC's and Clang's vector types, as wide as the instruction set that this
// translation unit is compiled for. Everything has internal linkage: a function of this file compiled for AVX-512 must
// never be the copy that the linker hands to the plain path.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../portable.h"
#include "number.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace flash {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int kBytes = kVectorBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// As many T as a vector of S has lanes.
template <class T, class S>
using Beside = typename VectorOf<T, kLanes<S> *static_cast<int>(sizeof(T))>::type;

template <class S>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <class S>
using Integer = typename IntegerOf<S>::type;

template <class V>
FLASH_INLINE V load(const void *from) {
  V x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
template <class V>
FLASH_INLINE void store(void *to, V x) {
  __builtin_memcpy(to, &x, sizeof x);
}
template <class V, class T>
FLASH_INLINE V broadcast(T x) {
  return x - V{};
}
template <class V>
FLASH_INLINE V maximum(V a, V b) {
  return a > b ? a : b;
}

// ---- Conversion: one vector of S (float or double) from and to memory in a storage type --------------------------------

template <class S>
FLASH_INLINE Vector<S> load_as(const S *from) {
  return load<Vector<S>>(from);
}
template <class S>
FLASH_INLINE Vector<S> load_as(const Bfloat *from) {
  using Wide = Vector<uint32_t>;
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(load<Beside<uint16_t, float>>(from), Wide) << 16);
}
template <class S>
FLASH_INLINE Vector<S> load_as(const Half *from) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector<float>>(_mm512_cvtph_ps(load<__m256i>(from)));
#elif defined(__F16C__)
  return reinterpret_cast<Vector<float>>(_mm256_cvtph_ps(load<__m128i>(from)));
#else
  Vector<float> x;
  for (int lane = 0; lane < kLanes<float>; ++lane) x[lane] = to_float(from[lane]);
  return x;
#endif
}

template <class S>
FLASH_INLINE void store_as(S *to, Vector<S> x) {
  store(to, x);
}
FLASH_INLINE void store_as(Bfloat *to, Vector<float> x) {
#if defined(__AVX512BF16__)
  store(to, _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const auto bits = reinterpret_cast<Vector<uint32_t>>(x);
  const auto rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const auto chosen = x != x ? (bits >> 16) | 0x40u : rounded;
  store(to, __builtin_convertvector(chosen, Beside<uint16_t, float>));
#endif
}
FLASH_INLINE void store_as(Half *to, Vector<float> x) {
#if defined(__AVX512F__)
  store(to, _mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  store(to, _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) from_float(x[lane], to + lane);
#endif
}

// ---- Transposition ---------------------------------------------------------------------------------------------------

// (a0 b0 a1 b1 ...) from the low (kHigh = 0) or the high (1) halves of a and b.
template <class T, int kHigh, class I, I... lane>
FLASH_INLINE Vector<T> interleave(Vector<T> a, Vector<T> b, std::integer_sequence<I, lane...>) {
  constexpr I n = sizeof...(lane), first = kHigh * n / 2;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (first + lane / 2 + lane % 2 * n)...);
#else
  return __builtin_shuffle(a, b, Vector<I>{(first + lane / 2 + lane % 2 * n)...});
#endif
}
template <class T, int kHigh>
FLASH_INLINE Vector<T> interleave(Vector<T> a, Vector<T> b) {
  using I = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  return interleave<T, kHigh>(a, b, std::make_integer_sequence<I, kLanes<T>>{});
}

// A square of lanes x lanes numbers, in place: log2(lanes) perfect shuffles of the whole.
template <class T>
FLASH_INLINE void transpose_square(Vector<T> (&x)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  for (int stage = 1; stage < n; stage *= 2) {
    Vector<T> y[n];
    for (int i = 0; i < n / 2; ++i) {
      y[2 * i] = interleave<T, 0>(x[i], x[i + n / 2]);
      y[2 * i + 1] = interleave<T, 1>(x[i], x[i + n / 2]);
    }
    for (int i = 0; i < n; ++i) x[i] = y[i];
  }
}

// to[c][r] = from[r][c] for r < rows, c < columns, both multiples of the lanes.
template <class T>
void transpose(const T *from, int64_t from_row, int64_t rows, int64_t columns, T *to, int64_t to_row) {
  constexpr int n = kLanes<T>;
  for (int64_t r = 0; r < rows; r += n)
    for (int64_t c = 0; c < columns; c += n) {
      Vector<T> x[n];
      for (int i = 0; i < n; ++i) x[i] = load<Vector<T>>(from + (r + i) * from_row + c);
      transpose_square<T>(x);
      for (int i = 0; i < n; ++i) store(to + (c + i) * to_row + r, x[i]);
    }
}

// ---- Functions -------------------------------------------------------------------------------------------------------

// 2^r for r in [-1/2, 1/2]: minimax polynomials; evaluated in float, the relative error stays below 2^-25.8 (degree 6)
// or 2^-22.5 (degree 5), their coefficients being floats too.
template <int kDegree>
FLASH_INLINE Vector<float> exp2_fraction(Vector<float> r) {
  static_assert(kDegree == 5 || kDegree == 6, "there are coefficients for these degrees");
  if constexpr (kDegree == 6) {
    Vector<float> p = r * 0x1.41d334p-13f + 0x1.5f456ap-10f;
    p = p * r + 0x1.3b2dbcp-7f;
    p = p * r + 0x1.c6aed4p-5f;
    p = p * r + 0x1.ebfbdap-3f;
    p = p * r + 0x1.62e430p-1f;
    return p * r + 1.0f;
  } else {
    Vector<float> p = r * 0x1.5c08e6p-10f + 0x1.3d0c52p-7f;
    p = p * r + 0x1.c6b6e4p-5f;
    p = p * r + 0x1.ebf918p-3f;
    p = p * r + 0x1.62e428p-1f;
    return p * r + 0x1.000002p+0f;
  }
}
// The Taylor series of degree 13, relative error below 2^-54.
template <int kDegree>
FLASH_INLINE Vector<double> exp2_fraction(Vector<double> r) {
  const Vector<double> x = r * 0.693147180559945309417;
  Vector<double> p = x * (1.0 / 6227020800) + 1.0 / 479001600;
  p = p * x + 1.0 / 39916800;
  p = p * x + 1.0 / 3628800;
  p = p * x + 1.0 / 362880;
  p = p * x + 1.0 / 40320;
  p = p * x + 1.0 / 5040;
  p = p * x + 1.0 / 720;
  p = p * x + 1.0 / 120;
  p = p * x + 1.0 / 24;
  p = p * x + 1.0 / 6;
  p = p * x + 0.5;
  p = p * x + 1.0;
  return p * x + 1.0;
}

// 2^x for x below the type's largest exponent: 0 far below its smallest normal number (-inf too), NaN for NaN.
// x = n + r with n an integer and r in [-1/2, 1/2].
#if defined(__AVX512F__)
// 2^r is scaled by n in one instruction, which makes 0 of n = -inf even where r is NaN.
template <int kDegree = 6>
FLASH_INLINE Vector<float> exp2(Vector<float> x) {
  const __m512 n = _mm512_roundscale_ps(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector<float> y = exp2_fraction<kDegree>(x - reinterpret_cast<Vector<float>>(n));
  return reinterpret_cast<Vector<float>>(_mm512_scalef_ps(reinterpret_cast<__m512>(y), n));
}
template <int kDegree = 6>
FLASH_INLINE Vector<double> exp2(Vector<double> x) {
  const __m512d n = _mm512_roundscale_pd(reinterpret_cast<__m512d>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector<double> y = exp2_fraction<kDegree>(x - reinterpret_cast<Vector<double>>(n));
  return reinterpret_cast<Vector<double>>(_mm512_scalef_pd(reinterpret_cast<__m512d>(y), n));
}
#else
// Adding 1.5 * 2^(mantissa bits) rounds x to n, which then stands in the sum's low bits.
template <int kDegree = 6>
FLASH_INLINE Vector<float> exp2(Vector<float> x) {
  const Vector<float> shifted = x + 0x1.8p23f;
  const auto power = reinterpret_cast<Vector<float>>((reinterpret_cast<Vector<int32_t>>(shifted) << 23) + 0x3f800000);
  const Vector<float> y = exp2_fraction<kDegree>(x - (shifted - 0x1.8p23f)) * power;
  return x < -126.0f ? Vector<float>{} : y;
}
template <int kDegree = 6>
FLASH_INLINE Vector<double> exp2(Vector<double> x) {
  const Vector<double> shifted = x + 0x1.8p52;
  const auto power =
      reinterpret_cast<Vector<double>>((reinterpret_cast<Vector<int64_t>>(shifted) << 52) + 0x3ff0000000000000);
  const Vector<double> y = exp2_fraction<kDegree>(x - (shifted - 0x1.8p52)) * power;
  return x < -1022.0 ? Vector<double>{} : y;
}
#endif

// tanh: an odd polynomial or rational near 0, where 1 - 2 / (e^2x + 1) would cancel (Cephes' split at 0.625).
FLASH_INLINE Vector<float> tanh_near_zero(Vector<float> x) {
  const Vector<float> z = x * x;
  Vector<float> p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z + -5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z + -3.33332819422e-1f;
  return p * z * x + x;
}
FLASH_INLINE Vector<double> tanh_near_zero(Vector<double> x) {
  const Vector<double> z = x * x;
  const Vector<double> p = (z * -9.64399179425052238628e-1 - 9.92877231001918586564e1) * z - 1.61468768441708447952e3;
  const Vector<double> q =
      ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3;
  return x * z * (p / q) + x;
}
template <class S>
FLASH_INLINE Vector<S> tanh(Vector<S> x) {
  const Vector<S> magnitude = x < 0 ? -x : x;
  const S log2_e_twice = S(2.88539008177792681472);
  const Vector<S> small = magnitude * log2_e_twice;
  const Vector<S> y = 1 - 2 / (exp2(small < 100 ? small : Vector<S>{} + 100) + 1);
  return magnitude < S(0.625) ? tanh_near_zero(x) : x != x ? x : x < 0 ? -y : y;
}

}  // namespace
}  // namespace flash
