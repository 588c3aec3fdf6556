// cvt from and to pairs of 8-bit floats, e4m3 and e5m2: always .satfinite, so what is too large becomes the largest number.
//
// e5m2 is the upper half of an f16. e4m3 has no infinity, numbers to 448 and one NaN of each sign.
#include "builder.h"
#include "lanes.h"
#include "number.h"

namespace emulator {

namespace {

constexpr uint8_t kNan = 0x7f;  // of both

template <bool e4m3>
uint8_t narrow(double x, bool relu) {
  constexpr Format kFormat = e4m3 ? Format{4, -6, 8} : Format{3, -14, 15};
  constexpr double kLargest = e4m3 ? 448 : 57344;
  if (std::isnan(x)) return kNan;
  if (relu && x < 0) x = 0;
  const uint8_t sign = std::signbit(x) && !relu ? 0x80 : 0;
  x = std::fmin(round_to(kFormat, std::fmin(std::fabs(x), 2 * kLargest), Rounding::kNearest), kLargest);
  if constexpr (!e4m3) return static_cast<uint8_t>(sign | f16_bits(x) >> 8);
  if (x < 0x1p-6) return static_cast<uint8_t>(sign | static_cast<int>(x * 0x1p9));
  const int exponent = std::ilogb(x);
  return static_cast<uint8_t>(sign | (((exponent + 6) << 3) + static_cast<int>(std::scalbn(x, 3 - exponent))));
}

template <bool e4m3>
float widened(uint8_t bits) {
  return e4m3 ? e4m3_float(bits) : f16_float(static_cast<uint16_t>(bits << 8));
}

uint16_t pair(uint8_t high, uint8_t low) { return static_cast<uint16_t>(high << 8 | low); }

// mode: relu.
template <bool e4m3>
uint16_t of_floats(const Instruction &i, float high, float low) {
  return pair(narrow<e4m3>(static_cast<double>(high), i.mode != 0),
              narrow<e4m3>(static_cast<double>(low), i.mode != 0));
}
template <bool e4m3>
uint16_t of_halves(const Instruction &i, uint32_t x) {
  return pair(narrow<e4m3>(f16_value(static_cast<uint16_t>(x >> 16)), i.mode != 0),
              narrow<e4m3>(f16_value(static_cast<uint16_t>(x)), i.mode != 0));
}
template <bool e4m3>
uint32_t to_halves(const Instruction &i, uint16_t x) {
  const auto half = [&](int bits) {
    const float value = widened<e4m3>(static_cast<uint8_t>(bits));
    return static_cast<uint32_t>(nearest_f16(i.mode != 0 && value < 0 ? 0.0f : value));
  };
  return half(x >> 8) << 16 | half(x);
}

}  // namespace

void decode_convert_8bit(Builder &b) {
  Instruction &r = b.result;
  const int to = b.take_next({"e4m3x2", "e5m2x2", "f16x2"});
  const int from = b.take_next({"e4m3x2", "e5m2x2", "f16x2", "f32"});
  const bool saturates = b.take("satfinite");
  if (b.take_rounding() != Rounding::kNearest || to < 0 || from < 0 || (to < 2) != saturates || (to < 2) == (from < 2))
    b.fail("such a conversion isn't supported");
  r.mode = b.take("relu");
  const Type pair_of_bytes{Type::kBits, 16}, halves{Type::kBits, 32}, single{Type::kFloat, 32};
  b.expect(from == 3 ? 3 : 2, from == 3 ? 3 : 2);
  r.out[0] = b.target(0, to < 2 ? pair_of_bytes : halves);
  r.in[0] = b.source(1, from == 3 ? single : from == 2 ? halves : pair_of_bytes);
  if (from == 3) r.in[1] = b.source(2, single);
  r.run = to == 2     ? (from == 0 ? lanes_with<to_halves<true>> : lanes_with<to_halves<false>>)
          : from == 3 ? (to == 0 ? lanes_with<of_floats<true>> : lanes_with<of_floats<false>>)
                      : (to == 0 ? lanes_with<of_halves<true>> : lanes_with<of_halves<false>>);
}

}  // namespace emulator
