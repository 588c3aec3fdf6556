// cvt: every pair of types. A value goes through int64/uint64 or double, which hold each of them exactly.
#include <algorithm>
#include <cmath>
#include <limits>

#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

// Instruction::from and ::to
enum Number : uint8_t { kU8, kS8, kU16, kS16, kU32, kS32, kU64, kS64, kHalf, kBfloat, kSingle, kDouble, kTensorFloat };

bool is_float(uint8_t n) { return n >= kHalf; }
bool is_signed(uint8_t n) { return !is_float(n) && (n & 1); }
int bits_of(uint8_t n) { return 8 << (n / 2); }  // of an integer

uint64_t read_bits(const Warp &w, const Operand &o, int lane) {
  return o.bytes == 2 ? w.in<uint16_t>(o)[lane] : o.bytes == 4 ? w.in<uint32_t>(o)[lane] : w.in<uint64_t>(o)[lane];
}
void write_bits(Warp &w, const Operand &o, int lane, uint64_t bits) {
  if (o.bytes == 2)
    w.out<uint16_t>(o)[lane] = static_cast<uint16_t>(bits);
  else if (o.bytes == 4)
    w.out<uint32_t>(o)[lane] = static_cast<uint32_t>(bits);
  else
    w.out<uint64_t>(o)[lane] = bits;
}

// Sign- or zero-extended to 64 bits.
uint64_t extended(uint64_t bits, uint8_t n) {
  const int shift = 64 - bits_of(n);
  if (shift == 0) return bits;
  return is_signed(n) ? static_cast<uint64_t>(static_cast<int64_t>(bits << shift) >> shift) : bits << shift >> shift;
}

double float_of(uint64_t bits, uint8_t n) {
  switch (n) {
    case kHalf:
      return f16_float(static_cast<uint16_t>(bits));
    case kBfloat:
      return bf16_float(static_cast<uint16_t>(bits));
    case kSingle:
      return bits_as<float>(static_cast<uint32_t>(bits));
    default:
      return bits_as<double>(bits);
  }
}
uint64_t bits_of_float(double x, uint8_t n, Rounding rounding) {
  switch (n) {
    case kHalf:
      return to_f16(x, rounding);
    case kBfloat:
      return to_bf16(x, rounding);
    case kSingle:
      return std::isnan(x) ? kNan32 : bits_as<uint32_t>(to_f32(x, rounding));
    case kTensorFloat:
      return std::isnan(x) ? kNan32 : bits_as<uint32_t>(static_cast<float>(round_to(kTf32, x, rounding)));
    default:
      return bits_as<uint64_t>(x);
  }
}

uint64_t integer_to_integer(uint64_t value, const Instruction &i) {
  if (!i.sat) return value;
  // .sat: to the range of the target.
  const int bits = bits_of(i.to);
  const bool negative = is_signed(i.from) && static_cast<int64_t>(value) < 0;
  if (is_signed(i.to)) {
    const auto low = std::numeric_limits<int64_t>::min() >> (64 - bits), high = ~low;
    if (negative) return static_cast<uint64_t>(std::max(static_cast<int64_t>(value), low));
    return std::min(value, static_cast<uint64_t>(high));
  }
  const uint64_t high = ~uint64_t{0} >> (64 - bits);
  return negative ? 0 : std::min(value, high);
}

uint64_t float_to_integer(double x, const Instruction &i) {
  // Always saturates; NaN becomes 0 (f32 to 64 bits on real GPUs: the top bit alone).
  const int bits = bits_of(i.to);
  if (std::isnan(x)) return bits == 64 ? uint64_t{1} << 63 : 0;
  x = round_to_integer(x, i.rounding);
  if (is_signed(i.to)) {
    const double limit = std::scalbn(1.0, bits - 1);
    if (x >= limit) return (uint64_t{1} << (bits - 1)) - 1;
    if (x < -limit) return ~uint64_t{0} << (bits - 1);
    return static_cast<uint64_t>(static_cast<int64_t>(x));
  }
  if (x <= 0) return 0;
  return x >= std::scalbn(1.0, bits) ? ~uint64_t{0} >> (64 - bits) : static_cast<uint64_t>(x);
}

// 64-bit integers don't fit into a double: the low bits that are cut off go into the last one.
double integer_to_float(uint64_t value, const Instruction &i) {
  const bool negative = is_signed(i.from) && static_cast<int64_t>(value) < 0;
  const uint64_t magnitude = negative ? 0 - value : value;
  double x;
  if (magnitude >> 53 == 0) {
    x = static_cast<double>(magnitude);
  } else if (i.to == kDouble) {
    const int shift = 11 - __builtin_clzll(magnitude);
    uint64_t kept = magnitude >> shift;
    const uint64_t rest = magnitude & ((uint64_t{1} << shift) - 1), half = uint64_t{1} << (shift - 1);
    const bool up = i.rounding == Rounding::kNearest
                        ? rest > half || (rest == half && (kept & 1))
                        : rest != 0 && i.rounding == (negative ? Rounding::kDown : Rounding::kUp);
    kept += up;
    x = std::scalbn(static_cast<double>(kept), shift);
  } else {
    x = static_cast<double>((magnitude >> 11 << 11) | (uint64_t{(magnitude & 2047) != 0} << 11));
  }
  return negative ? -x : x;
}

double float_to_float(double x, const Instruction &i) {
  if (i.mode & 1) x = round_to_integer(x, i.rounding);  // .rni and its like
  if ((i.mode & 2) && x < 0) x = 0;                     // .relu
  return i.sat ? saturated(x) : x;
}

double flush_single(double x, uint8_t n, bool ftz) { return ftz && n == kSingle ? flushed(static_cast<float>(x)) : x; }

uint64_t converted(const Instruction &i, uint64_t bits) {
  if (!is_float(i.from)) {
    const uint64_t value = extended(bits, i.from);
    if (!is_float(i.to)) return integer_to_integer(value, i);
    double x = integer_to_float(value, i);
    if (i.sat) x = saturated(x);
    return bits_of_float(x, i.to, i.rounding);
  }
  const double x = flush_single(float_of(bits, i.from), i.from, i.ftz);
  if (!is_float(i.to)) return float_to_integer(x, i);
  const double y = float_to_float(x, i);
  // The directed rounding of .rmi is done; what remains is exact.
  const uint64_t r = bits_of_float(y, i.to, i.mode & 1 ? Rounding::kNearest : i.rounding);
  if (i.ftz && i.to == kSingle) return bits_as<uint32_t>(flushed(bits_as<float>(static_cast<uint32_t>(r))));
  return r;
}

void convert(Warp &w, const Instruction &i, Mask mask) {
  each_lane(mask, [&](int lane) {
    const uint64_t r = converted(i, read_bits(w, i.in[0], lane));
    // A target wider than its type is filled by the sign of a signed type.
    write_bits(w, i.out[0], lane, is_float(i.to) ? r : extended(r, i.to));
  });
}

// cvt.f16x2.f32 d, a, b: a goes to the upper half.
void convert_pair(Warp &w, const Instruction &i, Mask mask) {
  each_lane(mask, [&](int lane) {
    const uint64_t high = converted(i, read_bits(w, i.in[0], lane)), low = converted(i, read_bits(w, i.in[1], lane));
    w.out<uint32_t>(i.out[0])[lane] = static_cast<uint32_t>(high << 16 | low);
  });
}

// The frequent ones, without the detours.
template <class To, class From>
To cast(From a) {
  return static_cast<To>(a);
}
float from_f16(uint16_t a) { return f16_float(a); }
float from_bf16(uint16_t a) { return bf16_float(a); }
uint32_t pair_f16(float high, float low) { return static_cast<uint32_t>(nearest_f16(high)) << 16 | nearest_f16(low); }
uint32_t pair_bf16(float high, float low) {
  return static_cast<uint32_t>(nearest_bf16(high)) << 16 | nearest_bf16(low);
}
Handler quick(const Instruction &i, bool pair) {
  if (i.sat || i.ftz || i.mode != 0) return nullptr;
  if (pair) {
    if (i.from != kSingle || i.rounding != Rounding::kNearest) return nullptr;
    return i.to == kHalf ? lanes<pair_f16> : lanes<pair_bf16>;
  }
  struct {
    uint8_t from, to;
    uint8_t from_bytes, to_bytes;
    Handler run;
  } const list[] = {
      {kU32, kU64, 4, 8, lanes<cast<uint64_t, uint32_t>>},
      {kS32, kS64, 4, 8, lanes<cast<int64_t, int32_t>>},
      {kU64, kU32, 8, 4, lanes<cast<uint32_t, uint64_t>>},
      {kS64, kS32, 8, 4, lanes<cast<uint32_t, uint64_t>>},
      {kU32, kU16, 4, 2, lanes<cast<uint16_t, uint32_t>>},
      {kU16, kU32, 2, 4, lanes<cast<uint32_t, uint16_t>>},
      {kS64, kU32, 8, 4, lanes<cast<uint32_t, uint64_t>>},
      {kU64, kS32, 8, 4, lanes<cast<uint32_t, uint64_t>>},
      {kHalf, kSingle, 2, 4, lanes<from_f16>},
      {kBfloat, kSingle, 2, 4, lanes<from_bf16>},
      {kS32, kSingle, 4, 4, lanes<cast<float, int32_t>>},
      {kU32, kSingle, 4, 4, lanes<cast<float, uint32_t>>},
      {kSingle, kDouble, 4, 8, lanes<cast<double, float>>},
      {kDouble, kSingle, 8, 4, lanes<cast<float, double>>},
      {kSingle, kBfloat, 4, 2, lanes<nearest_bf16>},
      {kSingle, kHalf, 4, 2, lanes<nearest_f16>},
  };
  for (const auto &q : list) {
    const bool same = q.from == i.from && q.to == i.to && q.from_bytes == i.in[0].bytes && q.to_bytes == i.out[0].bytes;
    if (same && i.rounding == Rounding::kNearest) return q.run;
  }
  return nullptr;
}

uint8_t number_of(Builder &b, Type type) {
  switch (type.kind) {
    case Type::kF16:
      return kHalf;
    case Type::kBf16:
      return kBfloat;
    case Type::kTf32:
      return kTensorFloat;
    case Type::kFloat:
      return type.bits == 32 ? kSingle : kDouble;
    case Type::kUnsigned:
    case Type::kSigned: {
      const int log2 = type.bits == 8 ? 0 : type.bits == 16 ? 1 : type.bits == 32 ? 2 : 3;
      return static_cast<uint8_t>(2 * log2 + type.is_signed());
    }
    default:
      b.fail("cvt of such a type");
  }
}

void decode(Builder &b) {
  for (const char *type : {"e4m3x2", "e5m2x2"})
    if (b.has(type)) return decode_convert_8bit(b);
  Instruction &r = b.result;
  const int integer = b.take_one({"rni", "rzi", "rmi", "rpi"});
  if (integer >= 0) {
    constexpr Rounding kRoundings[] = {Rounding::kNearest, Rounding::kZero, Rounding::kDown, Rounding::kUp};
    r.rounding = kRoundings[integer];
    r.mode |= 1;
  } else {
    r.rounding = b.take_rounding();
  }
  r.ftz = b.take("ftz");
  r.sat = b.take("sat") || b.take("satfinite");
  if (b.take("relu")) r.mode |= 2;
  const Type to = b.take_type(), from = b.take_type();
  r.to = number_of(b, to);
  r.from = number_of(b, from);
  if (!is_float(r.from) || !is_float(r.to)) r.mode &= static_cast<uint8_t>(~1);
  const bool pair = to.lanes == 2;
  b.expect(pair ? 3 : 2, pair ? 3 : 2);
  // Registers may be wider than the types.
  const Arg &out = b.arg(0);
  if (out.kind == Arg::kRegister && out.reg.bytes * 8 < to.bits) b.fail("the register is too narrow");
  r.out[0] = b.target(out, out.kind == Arg::kRegister ? out.reg.bytes : std::max(to.bytes(), 2));
  r.in[0] = b.any_width(b.arg(1), from);
  if (pair) r.in[1] = b.any_width(b.arg(2), from);
  if (!pair && is_float(r.to) && r.out[0].bytes * 8 != to.bits) b.fail("a result whose width isn't that of the type");
  if (r.in[0].bytes * 8 < from.bits) b.fail("the operand is too narrow");
  const Handler fast = quick(r, pair);
  r.run = fast != nullptr ? fast : pair ? convert_pair : convert;
}

}  // namespace

std::vector<Opcode> convert_opcodes() { return {{"cvt", decode}}; }

}  // namespace emulator
