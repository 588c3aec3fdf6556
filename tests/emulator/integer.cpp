// Integer arithmetic, logic and shifts.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

template <class T>
using Signed = std::make_signed_t<T>;
template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
using Wider =
    std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                       std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                          std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;
template <class T>
constexpr int kBits = 8 * sizeof(T);

// Without the undefined overflow of signed types; 16-bit values would be promoted to int.
template <class T>
T add(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
template <class T>
T sub(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
}
template <class T>
T mul(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <class T>
T mad(T a, T b, T c) {
  return add<T>(mul<T>(a, b), c);
}
template <class T>
T mul_high(T a, T b) {
  return static_cast<T>((static_cast<Wider<T>>(a) * b) >> kBits<T>);
}
template <class T>
T mad_high(T a, T b, T c) {
  return add<T>(mul_high<T>(a, b), c);
}
int32_t mad_high_saturating(int32_t a, int32_t b, int32_t c) {
  return static_cast<int32_t>(std::clamp<int64_t>(int64_t{mul_high<int32_t>(a, b)} + c, INT32_MIN, INT32_MAX));
}
template <class T>
Wider<T> mul_wide(T a, T b) {
  return static_cast<Wider<T>>(static_cast<Wider<T>>(a) * b);
}
template <class T>
Wider<T> mad_wide(T a, T b, Wider<T> c) {
  return add<Wider<T>>(mul_wide<T>(a, b), c);
}

// By 0: unspecified in PTX; all ones here, as GPUs give.
template <class T>
T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return sub<T>(0, a);
  return static_cast<T>(a / b);
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}
template <class T>
T minimum(T a, T b) {
  return a < b ? a : b;
}
template <class T>
T maximum(T a, T b) {
  return a < b ? b : a;
}
template <class T>
T absolute(T a) {
  return a < 0 ? sub<T>(0, a) : a;
}
template <class T>
T negative(T a) {
  return sub<T>(0, a);
}
template <class T>
T sad(T a, T b, T c) {
  return add<T>(c, a < b ? sub<T>(b, a) : sub<T>(a, b));
}
int32_t add_saturating(int32_t a, int32_t b) {
  return static_cast<int32_t>(std::clamp<int64_t>(int64_t{a} + b, INT32_MIN, INT32_MAX));
}
int32_t sub_saturating(int32_t a, int32_t b) {
  return static_cast<int32_t>(std::clamp<int64_t>(int64_t{a} - b, INT32_MIN, INT32_MAX));
}

template <class T>
T bit_and(T a, T b) {
  return a & b;
}
template <class T>
T bit_or(T a, T b) {
  return a | b;
}
template <class T>
T bit_xor(T a, T b) {
  return a ^ b;
}
template <class T>
T bit_not(T a) {
  return static_cast<T>(~a);
}
template <class T>
T is_zero(T a) {
  return a == 0;
}
template <class T>
T shift_left(T a, uint32_t n) {
  return n >= kBits<T> ? T{0} : static_cast<T>(a << n);
}
template <class T>
T shift_right(T a, uint32_t n) {
  if (n >= kBits<T>) return a < 0 ? static_cast<T>(-1) : T{0};
  return static_cast<T>(a >> n);
}
// shf: the high (left) or low (right) half of the 64 bits {b, a} shifted.
uint32_t funnel_left(uint32_t a, uint32_t b, uint32_t n) {
  return static_cast<uint32_t>(((uint64_t{b} << 32 | a) << n) >> 32);
}
uint32_t funnel_right(uint32_t a, uint32_t b, uint32_t n) {
  return static_cast<uint32_t>((uint64_t{b} << 32 | a) >> n);
}
uint32_t funnel_left_wrap(uint32_t a, uint32_t b, uint32_t n) { return funnel_left(a, b, n & 31); }
uint32_t funnel_right_wrap(uint32_t a, uint32_t b, uint32_t n) { return funnel_right(a, b, n & 31); }
uint32_t funnel_left_clamp(uint32_t a, uint32_t b, uint32_t n) { return funnel_left(a, b, std::min(n, 32u)); }
uint32_t funnel_right_clamp(uint32_t a, uint32_t b, uint32_t n) { return funnel_right(a, b, std::min(n, 32u)); }

template <class T>
T bit_reverse(T a) {
  T r = 0;
  for (int bit = 0; bit < kBits<T>; ++bit) r = static_cast<T>(r << 1 | (a >> bit & 1));
  return r;
}
uint32_t popcount32(uint32_t a) { return static_cast<uint32_t>(__builtin_popcount(a)); }
uint32_t popcount64(uint64_t a) { return static_cast<uint32_t>(__builtin_popcountll(a)); }
uint32_t zeros32(uint32_t a) { return a == 0 ? 32 : static_cast<uint32_t>(__builtin_clz(a)); }
uint32_t zeros64(uint64_t a) { return a == 0 ? 64 : static_cast<uint32_t>(__builtin_clzll(a)); }
// The highest bit that differs from the sign, or all ones if there is none.
template <class T>
uint32_t find_bit(T a) {
  const auto bits = static_cast<Unsigned<T>>(a < 0 ? ~a : a);
  return bits == 0 ? ~0u : 63 - zeros64(bits);
}
template <class T>
uint32_t find_bit_shift(T a) {
  const uint32_t bit = find_bit<T>(a);
  return bit == ~0u ? bit : static_cast<uint32_t>(kBits<T>) - 1 - bit;
}

// bfe: `length` bits from `position` on; beyond the top the sign bit (of the field, if that ends below the top).
template <class T>
T extract(T a, uint32_t position, uint32_t length) {
  constexpr uint32_t top = kBits<T> - 1;
  position &= 255;
  length &= 255;
  const auto bit = [&](uint32_t at) { return static_cast<Unsigned<T>>(a) >> at & 1; };
  const Unsigned<T> sign = std::is_signed_v<T> && length != 0 ? bit(std::min(position + length - 1, top)) : 0;
  Unsigned<T> field = 0;
  for (uint32_t k = 0; k <= top; ++k) {
    field |= static_cast<Unsigned<T>>((k < length && position + k <= top ? bit(position + k) : sign) << k);
  }
  return static_cast<T>(field);
}
// bfi: a's low `length` bits into b at `position`.
template <class T>
T insert(T a, T b, uint32_t position, uint32_t length) {
  position &= 255;
  length &= 255;
  if (position >= kBits<T> || length == 0) return b;
  const T field = length >= kBits<T> ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
  return static_cast<T>((b & ~static_cast<T>(field << position)) | static_cast<T>((a & field) << position));
}
uint32_t logic3(const Instruction &i, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int k = 0; k < 8; ++k) {
    if (i.mode >> k & 1) r |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  }
  return r;
}
template <class A, class B>
int32_t dot4(int32_t a, int32_t b, int32_t c) {
  for (int k = 0; k < 32; k += 8) c = add<int32_t>(c, static_cast<A>(a >> k) * static_cast<B>(b >> k));
  return c;
}
// mode: 0 with the low half of b, 16 with the high one.
template <class A, class B>
int32_t dot2(const Instruction &i, int32_t a, int32_t b, int32_t c) {
  for (int k = 0; k < 2; ++k) c = add<int32_t>(c, static_cast<A>(a >> 16 * k) * static_cast<B>(b >> (i.mode + 8 * k)));
  return c;
}
// fns: the offset-th set bit of the mask from `base` on, downwards if it is negative; for 0 that at the base itself.
uint32_t find_set(uint32_t mask, uint32_t base, int32_t offset) {
  const int step = offset < 0 ? -1 : 1;
  int64_t missing = std::max<int64_t>(std::abs(int64_t{offset}), 1);
  for (int64_t bit = base; bit >= 0 && bit < 32; bit += step) {
    if (mask >> bit & 1 && --missing == 0) return static_cast<uint32_t>(bit);
    if (offset == 0) break;
  }
  return ~0u;
}

// ---- Decoding

#define BY_TYPE(f)                        \
  [](Builder &b, Type t) -> Handler {     \
    switch (t.bits * 2 + t.is_signed()) { \
      case 32:                            \
        return lanes<f<uint16_t>>;        \
      case 33:                            \
        return lanes<f<int16_t>>;         \
      case 64:                            \
        return lanes<f<uint32_t>>;        \
      case 65:                            \
        return lanes<f<int32_t>>;         \
      case 128:                           \
        return lanes<f<uint64_t>>;        \
      case 129:                           \
        return lanes<f<int64_t>>;         \
      default:                            \
        b.fail("no such type");           \
    }                                     \
  }
#define BY_NARROW_TYPE(f)                 \
  [](Builder &b, Type t) -> Handler {     \
    switch (t.bits * 2 + t.is_signed()) { \
      case 32:                            \
        return lanes<f<uint16_t>>;        \
      case 33:                            \
        return lanes<f<int16_t>>;         \
      case 64:                            \
        return lanes<f<uint32_t>>;        \
      case 65:                            \
        return lanes<f<int32_t>>;         \
      default:                            \
        b.fail("no such type");           \
    }                                     \
  }
#define BY_WIDTH(f)                   \
  [](Builder &b, Type t) -> Handler { \
    switch (t.bits) {                 \
      case 16:                        \
        return lanes<f<uint16_t>>;    \
      case 32:                        \
        return lanes<f<uint32_t>>;    \
      case 64:                        \
        return lanes<f<uint64_t>>;    \
      default:                        \
        b.fail("no such type");       \
    }                                 \
  }

// out[0] and all inputs of one type.
template <class Pick>
Type plain(Builder &b, size_t inputs, Pick pick) {
  const Type type = b.take_type();
  if (type.lanes != 1) b.fail("packed integers aren't supported");
  b.expect(inputs + 1, inputs + 1);
  b.result.out[0] = b.target(0, type);
  for (size_t k = 0; k < inputs; ++k) b.result.in[k] = b.source(k + 1, type);
  b.result.run = pick(b, type);
  return type;
}

enum class Carry { kAdd, kSub };
// add.cc, addc, sub.cc, subc: mode bit 0: takes the carry, bit 1: sets it.
template <class T, Carry what>
void with_carry(Warp &w, const Instruction &i, Mask mask) {
  T *out = w.out<T>(i.out[0]);
  const T *a = w.in<T>(i.in[0]), *b = w.in<T>(i.in[1]);
  each_lane(mask, [&](int lane) {
    const T in = i.mode & 1 ? w.carry >> lane & 1 : 0;
    const Wider<T> wide = what == Carry::kAdd ? static_cast<Wider<T>>(a[lane]) + b[lane] + in
                                              : static_cast<Wider<T>>(a[lane]) - b[lane] - in;
    const bool carry = (wide >> kBits<T> & 1) != 0;
    out[lane] = static_cast<T>(wide);
    if (i.mode & 2) w.carry = (w.carry & ~(Mask{1} << lane)) | (Mask{carry} << lane);
  });
}
template <Carry what>
void decode_carry(Builder &b, bool takes) {
  const bool sets = b.take("cc");
  const Type type = plain(b, 2, [](Builder &, Type t) -> Handler {
    return t.bits == 32 ? with_carry<uint32_t, what> : with_carry<uint64_t, what>;
  });
  if (type.bits == 16) b.fail("no such type");
  b.result.mode = static_cast<uint8_t>((takes ? 1 : 0) | (sets ? 2 : 0));
}

// mad.cc and madc: the low or high half (mode bit 2) of the product, plus c and the carry.
template <class T>
void product_with_carry(Warp &w, const Instruction &i, Mask mask) {
  T *out = w.out<T>(i.out[0]);
  const T *a = w.in<T>(i.in[0]), *b = w.in<T>(i.in[1]), *c = w.in<T>(i.in[2]);
  using U = Unsigned<T>;
  each_lane(mask, [&](int lane) {
    const T product = i.mode & 4 ? mul_high<T>(a[lane], b[lane]) : mul<T>(a[lane], b[lane]);
    const Wider<U> wide = static_cast<Wider<U>>(static_cast<U>(product)) + static_cast<U>(c[lane]) +
                          static_cast<U>(i.mode & 1 ? w.carry >> lane & 1 : 0);
    const bool carry = (wide >> kBits<T> & 1) != 0;
    out[lane] = static_cast<T>(wide);
    if (i.mode & 2) w.carry = (w.carry & ~(Mask{1} << lane)) | (Mask{carry} << lane);
  });
}
void decode_product_carry(Builder &b, bool takes) {
  const bool sets = b.take("cc"), high = b.take("hi");
  if (!high && !b.take("lo")) b.fail("needs .lo or .hi");
  plain(b, 3, [](Builder &builder, Type t) -> Handler {
    if (t.bits == 16) builder.fail("no such type");
    return t.bits == 32 ? (t.is_signed() ? product_with_carry<int32_t> : product_with_carry<uint32_t>)
                        : (t.is_signed() ? product_with_carry<int64_t> : product_with_carry<uint64_t>);
  });
  b.result.mode = static_cast<uint8_t>((takes ? 1 : 0) | (sets ? 2 : 0) | (high ? 4 : 0));
}

void saturating(Builder &b, size_t inputs, Handler handler) {
  const Type type = plain(b, inputs, [&](Builder &, Type) { return handler; });
  if (!type.is_signed() || type.bits != 32) b.fail(".sat is for s32 only");
}

void decode_add(Builder &b) {
  if (b.take("sat")) {
    saturating(b, 2, lanes<add_saturating>);
  } else if (b.has("cc")) {
    decode_carry<Carry::kAdd>(b, false);
  } else {
    plain(b, 2, BY_TYPE(add));
  }
}
void decode_sub(Builder &b) {
  if (b.take("sat")) {
    saturating(b, 2, lanes<sub_saturating>);
  } else if (b.has("cc")) {
    decode_carry<Carry::kSub>(b, false);
  } else {
    plain(b, 2, BY_TYPE(sub));
  }
}

void decode_product(Builder &b, bool adds) {
  const size_t inputs = adds ? 3 : 2;
  if (b.has("cc")) return decode_product_carry(b, false);
  if (b.take("wide")) {
    const Type type = b.take_type();
    Type wide = type;
    wide.bits = static_cast<uint8_t>(2 * type.bits);
    b.expect(inputs + 1, inputs + 1);
    b.result.out[0] = b.target(0, wide);
    b.result.in[0] = b.source(1, type);
    b.result.in[1] = b.source(2, type);
    if (adds) b.result.in[2] = b.source(3, wide);
    b.result.run = adds ? BY_NARROW_TYPE(mad_wide)(b, type) : BY_NARROW_TYPE(mul_wide)(b, type);
  } else if (b.take("hi")) {
    if (adds && b.take("sat"))
      saturating(b, 3, lanes<mad_high_saturating>);
    else if (adds)
      plain(b, 3, BY_TYPE(mad_high));
    else
      plain(b, 2, BY_TYPE(mul_high));
  } else {
    b.take("lo");
    if (adds)
      plain(b, 3, BY_TYPE(mad));
    else
      plain(b, 2, BY_TYPE(mul));
  }
}

template <Bool what>
void predicates(Warp &w, const Instruction &i, Mask mask) {
  const Mask a = w.predicate(i.in[0], i.negated[0]);
  const Mask b = what == Bool::kNone ? 0 : w.predicate(i.in[1], i.negated[1]);
  const Mask value = what == Bool::kAnd ? a & b : what == Bool::kOr ? a | b : what == Bool::kXor ? a ^ b : ~a;
  write_predicate(w, i.out[0], value, mask);
}
template <Bool what, class Pick>
void decode_logic(Builder &b, size_t inputs, Pick pick) {
  if (!b.take("pred")) {
    plain(b, inputs, pick);
    return;
  }
  b.expect(inputs + 1, inputs + 1);
  bool none;
  b.result.out[0] = b.predicate(b.arg(0), none);
  for (size_t k = 0; k < inputs; ++k) b.result.in[k] = b.predicate(b.arg(k + 1), b.result.negated[k]);
  b.result.run = predicates<what>;
}

// A shift's amount is 32 bits wide whatever the type.
template <class Pick>
void decode_shift(Builder &b, Pick pick) {
  const Type type = b.take_type();
  b.expect(3, 3);
  b.result.out[0] = b.target(0, type);
  b.result.in[0] = b.source(1, type);
  b.result.in[1] = b.source(2, {Type::kUnsigned, 32});
  b.result.run = pick(b, type);
}

void decode_funnel(Builder &b) {
  const bool left = b.take("l");
  if (!left && !b.take("r")) b.fail("shf needs .l or .r");
  const bool wrap = b.take("wrap");
  if (!wrap && !b.take("clamp")) b.fail("shf needs .wrap or .clamp");
  plain(b, 3, [&](Builder &, Type) -> Handler {
    return left ? (wrap ? lanes<funnel_left_wrap> : lanes<funnel_left_clamp>)
                : (wrap ? lanes<funnel_right_wrap> : lanes<funnel_right_clamp>);
  });
}

// Inputs of one type, a 32-bit count as result.
template <class Pick>
void decode_count(Builder &b, Pick pick) {
  const Type type = b.take_type();
  b.expect(2, 2);
  b.result.out[0] = b.target(b.arg(0), 4);
  b.result.in[0] = b.source(1, type);
  b.result.run = pick(b, type);
}

void decode_extract(Builder &b) {
  const Type type = b.take_type(), u32{Type::kUnsigned, 32};
  b.expect(4, 4);
  b.result.out[0] = b.target(0, type);
  b.result.in[0] = b.source(1, type);
  b.result.in[1] = b.source(2, u32);
  b.result.in[2] = b.source(3, u32);
  b.result.run = type.bits == 32 ? (type.is_signed() ? lanes<extract<int32_t>> : lanes<extract<uint32_t>>)
                                 : (type.is_signed() ? lanes<extract<int64_t>> : lanes<extract<uint64_t>>);
}
void decode_insert(Builder &b) {
  const Type type = b.take_type(), u32{Type::kUnsigned, 32};
  b.expect(5, 5);
  b.result.out[0] = b.target(0, type);
  b.result.in[0] = b.source(1, type);
  b.result.in[1] = b.source(2, type);
  b.result.in[2] = b.source(3, u32);
  b.result.in[3] = b.source(4, u32);
  b.result.run = type.bits == 32 ? lanes<insert<uint32_t>> : lanes<insert<uint64_t>>;
}
void decode_logic3(Builder &b) {
  const Type type = b.take_type();
  b.expect(5, 5);
  b.result.out[0] = b.target(0, type);
  for (size_t k = 0; k < 3; ++k) b.result.in[k] = b.source(k + 1, type);
  if (b.arg(4).kind != Arg::kInteger) b.fail("lop3 needs a literal table");
  b.result.mode = static_cast<uint8_t>(b.arg(4).value);
  b.result.run = lanes_with<logic3>;
}
void decode_dot4(Builder &b) {
  const Type a = b.take_type(), c = b.take_type(), word{Type::kBits, 32};
  b.expect(4, 4);
  b.result.out[0] = b.target(0, word);
  for (size_t k = 0; k < 3; ++k) b.result.in[k] = b.source(k + 1, word);
  b.result.run = a.is_signed() ? (c.is_signed() ? lanes<dot4<int8_t, int8_t>> : lanes<dot4<int8_t, uint8_t>>)
                               : (c.is_signed() ? lanes<dot4<uint8_t, int8_t>> : lanes<dot4<uint8_t, uint8_t>>);
}
void decode_dot2(Builder &b) {
  const int half = b.take_one({"lo", "hi"});
  if (half < 0) b.fail("dp2a needs .lo or .hi");
  const Type a = b.take_type(), c = b.take_type(), word{Type::kBits, 32};
  b.expect(4, 4);
  b.result.mode = static_cast<uint8_t>(16 * half);
  b.result.out[0] = b.target(0, word);
  for (size_t k = 0; k < 3; ++k) b.result.in[k] = b.source(k + 1, word);
  b.result.run = a.is_signed()
                     ? (c.is_signed() ? lanes_with<dot2<int16_t, int8_t>> : lanes_with<dot2<int16_t, uint8_t>>)
                     : (c.is_signed() ? lanes_with<dot2<uint16_t, int8_t>> : lanes_with<dot2<uint16_t, uint8_t>>);
}

}  // namespace

std::vector<Opcode> integer_opcodes() {
  constexpr auto kI = Opcode::kIntegers;
  return {
      {"add", decode_add, kI},
      {"sub", decode_sub, kI},
      {"addc", [](Builder &b) { decode_carry<Carry::kAdd>(b, true); }, kI},
      {"subc", [](Builder &b) { decode_carry<Carry::kSub>(b, true); }, kI},
      {"mul", [](Builder &b) { decode_product(b, false); }, kI},
      {"mad", [](Builder &b) { decode_product(b, true); }, kI},
      {"madc", [](Builder &b) { decode_product_carry(b, true); }, kI},
      {"div", [](Builder &b) { plain(b, 2, BY_TYPE(divide)); }, kI},
      {"rem", [](Builder &b) { plain(b, 2, BY_TYPE(remainder)); }, kI},
      {"min", [](Builder &b) { plain(b, 2, BY_TYPE(minimum)); }, kI},
      {"max", [](Builder &b) { plain(b, 2, BY_TYPE(maximum)); }, kI},
      {"abs", [](Builder &b) { plain(b, 1, BY_TYPE(absolute)); }, kI},
      {"neg", [](Builder &b) { plain(b, 1, BY_TYPE(negative)); }, kI},
      {"sad", [](Builder &b) { plain(b, 3, BY_TYPE(sad)); }, kI},
      {"and", [](Builder &b) { decode_logic<Bool::kAnd>(b, 2, BY_WIDTH(bit_and)); }},
      {"or", [](Builder &b) { decode_logic<Bool::kOr>(b, 2, BY_WIDTH(bit_or)); }},
      {"xor", [](Builder &b) { decode_logic<Bool::kXor>(b, 2, BY_WIDTH(bit_xor)); }},
      {"not", [](Builder &b) { decode_logic<Bool::kNone>(b, 1, BY_WIDTH(bit_not)); }},
      {"cnot", [](Builder &b) { plain(b, 1, BY_WIDTH(is_zero)); }},
      {"shl", [](Builder &b) { decode_shift(b, BY_WIDTH(shift_left)); }},
      {"shr", [](Builder &b) { decode_shift(b, BY_TYPE(shift_right)); }},
      {"shf", decode_funnel},
      {"lop3", decode_logic3},
      {"bfe", decode_extract},
      {"bfi", decode_insert},
      {"brev", [](Builder &b) { plain(b, 1, BY_WIDTH(bit_reverse)); }},
      {"popc",
       [](Builder &b) {
         decode_count(
             b, [](Builder &, Type t) -> Handler { return t.bits == 32 ? lanes<popcount32> : lanes<popcount64>; });
       }},
      {"clz",
       [](Builder &b) {
         decode_count(b, [](Builder &, Type t) -> Handler { return t.bits == 32 ? lanes<zeros32> : lanes<zeros64>; });
       }},
      {"bfind",
       [](Builder &b) {
         if (b.take("shiftamt"))
           decode_count(b, BY_TYPE(find_bit_shift));
         else
           decode_count(b, BY_TYPE(find_bit));
       }},
      {"dp4a", decode_dot4},
      {"dp2a", decode_dot2},
      {"fns", [](Builder &b) { plain(b, 3, [](Builder &, Type) -> Handler { return lanes<find_set>; }); }},
  };
}

}  // namespace emulator
