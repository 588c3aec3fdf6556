// Number formats and roundings of PTX, one value at a time.
//
// Every result in f16, bf16 or f32 is the exact one rounded once: it is first formed in float64 with rounding to odd
// (the last bit is set if anything was cut off), which any later rounding to at most 51 bits sees through.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace emulator {

// To nearest even, towards zero, down, up; nearest with ties away from zero.
enum class Rounding : uint8_t { kNearest, kZero, kDown, kUp, kAway };

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same width");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// An integer-valued double nearest to x in the given direction.
inline double round_to_integer(double x, Rounding rounding) {
  switch (rounding) {
    case Rounding::kZero:
      return std::trunc(x);
    case Rounding::kDown:
      return std::floor(x);
    case Rounding::kUp:
      return std::ceil(x);
    case Rounding::kAway:
      return std::round(x);
    case Rounding::kNearest:
      break;
  }
  return std::nearbyint(x);
}

// A binary format: bits of precision (with the hidden one), exponents of the smallest normal and of the largest value.
struct Format {
  int precision, min_exponent, max_exponent;
};
constexpr Format kF16{11, -14, 15}, kBf16{8, -126, 127}, kTf32{11, -126, 127}, kF32{24, -126, 127};

// x rounded to a value of the format, still as a double.
inline double round_to(Format format, double x, Rounding rounding) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent = std::ilogb(x);
  if (exponent < format.min_exponent) exponent = format.min_exponent;
  const int ulp = exponent - format.precision + 1;
  const double rounded = std::scalbn(round_to_integer(std::scalbn(x, -ulp), rounding), ulp);
  const double largest = std::scalbn(2.0 - std::scalbn(1.0, 1 - format.precision), format.max_exponent);
  if (std::fabs(rounded) <= largest) return rounded == 0 ? std::copysign(0.0, x) : rounded;
  const bool to_largest = rounding == Rounding::kZero || rounding == (x > 0 ? Rounding::kDown : Rounding::kUp);
  return std::copysign(to_largest ? largest : std::numeric_limits<double>::infinity(), x);
}

// Sets the last bit of a truncated or rounded value: `error` is what is missing from it.
inline double made_odd(double value, double error) {
  if (error == 0 || !std::isfinite(value) || !std::isfinite(error)) return value;
  uint64_t bits = bits_as<uint64_t>(value);
  if (bits & 1) return value;
  return bits_as<double>((error > 0) == (value > 0) ? bits + 1 : bits - 1);
}
inline double add_odd(double x, double y) {
  const double sum = x + y, part = sum - x;
  return made_odd(sum, (x - (sum - part)) + (y - part));
}
inline double div_odd(double x, double y) {
  const double quotient = x / y;
  if (!std::isfinite(quotient) || quotient == 0 || !std::isfinite(y)) return quotient;
  const double rest = std::fma(-quotient, y, x);
  return made_odd(quotient, (y > 0) ? rest : -rest);
}
inline double sqrt_odd(double x) {
  const double root = std::sqrt(x);
  return root > 0 ? made_odd(root, std::fma(-root, root, x)) : root;
}

// ---- f16 and bf16, held as their 16 bits

inline double f16_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double x;
  if (exponent == 31) {
    x = fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else {
    x = exponent ? std::scalbn(1024 + fraction, exponent - 25) : std::scalbn(fraction, -24);
  }
  return bits & 0x8000 ? -x : x;
}

inline float f16_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) return bits_as<float>(sign | (magnitude > 0x7c00 ? 0x7fffffffu : 0x7f800000u));
  // Shifting the fields into place leaves the exponent 112 too small; the multiplication is exact, also for subnormals.
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(magnitude << 13) * 0x1p112f));
}

// Of a value that is exact in the format.
inline uint16_t f16_bits(double exact) {
  if (std::isnan(exact)) return 0x7fff;
  const uint16_t sign = std::signbit(exact) ? 0x8000 : 0;
  const double x = std::fabs(exact);
  if (std::isinf(x)) return sign | 0x7c00;
  if (x < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<int>(x * 0x1p24));
  const int exponent = std::ilogb(x);
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + static_cast<int>(std::scalbn(x, 10 - exponent))));
}

// e5m2 is the upper half of an f16; e4m3 has no infinity, and one NaN of each sign.
inline float e4m3_float(uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float x = exponent ? std::ldexp(static_cast<float>(8 + fraction), exponent - 10)
                           : std::ldexp(static_cast<float>(fraction), -9);
  return bits & 0x80 ? -x : x;
}

inline float bf16_float(uint16_t bits) { return bits_as<float>(static_cast<uint32_t>(bits) << 16); }
inline uint16_t bf16_bits(double exact) {
  if (std::isnan(exact)) return 0x7fff;
  return static_cast<uint16_t>(bits_as<uint32_t>(static_cast<float>(exact)) >> 16);
}

// The same rounding of a float, quickly.
inline uint16_t nearest_bf16(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t nearest_f16(float x) {
  const uint32_t bits = bits_as<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and more
  // Subnormal: adding 0.5 leaves the result in the low bits, rounded by the addition.
  if (magnitude < 0x38800000)
    return static_cast<uint16_t>(sign | (bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) & 0x7ff));
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

inline uint16_t to_f16(double x, Rounding rounding = Rounding::kNearest) {
  return f16_bits(round_to(kF16, x, rounding));
}
inline uint16_t to_bf16(double x, Rounding rounding = Rounding::kNearest) {
  return bf16_bits(round_to(kBf16, x, rounding));
}
inline float to_f32(double x, Rounding rounding = Rounding::kNearest) {
  if (rounding == Rounding::kNearest) return static_cast<float>(x);
  return static_cast<float>(round_to(kF32, x, rounding));
}

// PTX's canonical NaN, which every f32 instruction returns.
constexpr uint32_t kNan32 = 0x7fffffff;

// .ftz: a subnormal becomes zero of its sign.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
// .sat: to [0, 1], NaN to 0.
inline double saturated(double x) { return x > 0 ? (x < 1 ? x : 1.0) : 0.0; }

}  // namespace emulator
