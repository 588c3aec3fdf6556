// Moving, selecting and comparing values; state space conversions.
#include <cmath>

#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

template <class T>
T copy(T a) {
  return a;
}

// A register of `width` bytes from or to the parts that Instruction::vector counts.
template <class Part>
void pack(Warp &w, const Instruction &i, Mask mask) {
  Part *out = w.out<Part>(i.out[0]);
  for (int k = 0; k < i.vector; ++k) {
    const Part *in = w.in<Part>(i.in[k]);
    each_lane(mask, [&](int lane) { out[lane * i.vector + k] = in[lane]; });
  }
}
template <class Part>
void unpack(Warp &w, const Instruction &i, Mask mask) {
  const Part *in = w.in<Part>(i.in[0]);
  for (int k = 0; k < i.vector; ++k) {
    Part *out = w.out<Part>(i.out[k]);
    each_lane(mask, [&](int lane) { out[lane] = in[lane * i.vector + k]; });
  }
}

void move_predicate(Warp &w, const Instruction &i, Mask mask) {
  write_predicate(w, i.out[0], w.predicate(i.in[0], i.negated[0]), mask);
}

Handler copy_of(Builder &b, int bytes) {
  switch (bytes) {
    case 2:
      return lanes<copy<uint16_t>>;
    case 4:
      return lanes<copy<uint32_t>>;
    case 8:
      return lanes<copy<uint64_t>>;
    default:
      b.fail("no such width");
  }
}

void decode_move(Builder &b) {
  Instruction &r = b.result;
  const Type type = b.take_type();
  b.expect(2, 2);
  const Arg &out = b.arg(0), &in = b.arg(1);
  r.is_move = true;
  if (type.kind == Type::kPredicate) {
    bool negated;
    r.out[0] = b.predicate(out, negated);
    r.in[0] = b.predicate(in, r.negated[0]);
    r.run = move_predicate;
    return;
  }
  if (out.kind != Arg::kVector && in.kind != Arg::kVector) {
    r.out[0] = b.target(0, type);
    r.in[0] = b.source(1, type);
    r.run = copy_of(b, type.bytes());
    return;
  }
  const bool packs = in.kind == Arg::kVector;
  const std::vector<Arg> &parts = packs ? in.parts : out.parts;
  if (parts.size() != 2 && parts.size() != 4) b.fail("2 or 4 parts are wanted");
  const int part_bytes = type.bytes() / static_cast<int>(parts.size());
  if (part_bytes < 2) b.fail("parts of less than 2 bytes aren't supported");
  Type part = type;
  part.kind = Type::kBits;
  part.lanes = 1;
  part.bits = static_cast<uint8_t>(8 * part_bytes);
  r.vector = static_cast<uint8_t>(parts.size());
  for (size_t k = 0; k < parts.size(); ++k) {
    if (packs)
      r.in[k] = b.source(parts[k], part);
    else
      r.out[k] = b.target(parts[k], part_bytes);
  }
  if (packs)
    r.out[0] = b.target(0, type);
  else
    r.in[0] = b.source(1, type);
  r.run = packs ? (part_bytes == 2 ? pack<uint16_t> : pack<uint32_t>)
                : (part_bytes == 2 ? unpack<uint16_t> : unpack<uint32_t>);
}

// ---- Comparisons

template <class T, class F>
Mask mask_of(const T *a, const T *b, F f) {
  Mask mask = 0;
  for (int lane = 0; lane < kLanes; ++lane) mask |= Mask{f(a[lane], b[lane])} << lane;
  return mask;
}

template <class T>
Mask compared(const Instruction &i, const T *a, const T *b) {
  Mask mask = 0;
  switch (i.compare) {
    case Compare::kEq:
      mask = mask_of(a, b, [](T x, T y) { return x == y; });
      break;
    case Compare::kNe:
      mask = mask_of(a, b, [](T x, T y) { return x < y || x > y; });
      break;  // false for NaN
    case Compare::kLt:
      mask = mask_of(a, b, [](T x, T y) { return x < y; });
      break;
    case Compare::kLe:
      mask = mask_of(a, b, [](T x, T y) { return x <= y; });
      break;
    case Compare::kGt:
      mask = mask_of(a, b, [](T x, T y) { return x > y; });
      break;
    case Compare::kGe:
      mask = mask_of(a, b, [](T x, T y) { return x >= y; });
      break;
    case Compare::kNum:
      mask = mask_of(a, b, [](T x, T y) { return x == x && y == y; });
      break;
    case Compare::kNan:
      mask = mask_of(a, b, [](T x, T y) { return x != x || y != y; });
      break;
  }
  if (i.or_unordered) mask |= mask_of(a, b, [](T x, T y) { return x != x || y != y; });
  return mask;
}

// What is compared: Instruction::from.
enum Compared : uint8_t { kU16, kS16, kU32, kS32, kU64, kS64, kF32, kF64, kF16, kBf16 };

Mask compare_lanes(Warp &w, const Instruction &i, int element = 0) {
  const Operand &x = i.in[0], &y = i.in[1];
  switch (i.from) {
    case kU16:
      return compared(i, w.in<uint16_t>(x), w.in<uint16_t>(y));
    case kS16:
      return compared(i, w.in<int16_t>(x), w.in<int16_t>(y));
    case kU32:
      return compared(i, w.in<uint32_t>(x), w.in<uint32_t>(y));
    case kS32:
      return compared(i, w.in<int32_t>(x), w.in<int32_t>(y));
    case kU64:
      return compared(i, w.in<uint64_t>(x), w.in<uint64_t>(y));
    case kS64:
      return compared(i, w.in<int64_t>(x), w.in<int64_t>(y));
    case kF64:
      return compared(i, w.in<double>(x), w.in<double>(y));
    default:
      break;
  }
  if (i.from == kF32 && !i.ftz) return compared(i, w.in<float>(x), w.in<float>(y));
  float a[kLanes], b[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int at = lane * i.vector + element;
    if (i.from == kF32) {
      a[lane] = flushed(w.in<float>(x)[lane]);
      b[lane] = flushed(w.in<float>(y)[lane]);
    } else {
      const uint16_t p = w.in<uint16_t>(x)[at], q = w.in<uint16_t>(y)[at];
      a[lane] = i.from == kF16 ? f16_float(p) : bf16_float(p);
      b[lane] = i.from == kF16 ? f16_float(q) : bf16_float(q);
    }
  }
  return compared(i, a, b);
}

Mask combined(const Warp &w, const Instruction &i, Mask value) {
  if (i.combine == Bool::kNone) return value;
  const Mask other = w.predicate(i.in[2], i.negated[2]);
  return i.combine == Bool::kAnd ? value & other : i.combine == Bool::kOr ? value | other : value ^ other;
}

// out[0] | out[1] = the comparison and its opposite; of pairs: the two elements.
void set_predicate(Warp &w, const Instruction &i, Mask mask) {
  const Mask value = compare_lanes(w, i);
  const Mask second = i.vector == 2 ? compare_lanes(w, i, 1) : ~value;
  write_predicate(w, i.out[0], combined(w, i, value), mask);
  write_predicate(w, i.out[1], combined(w, i, second), mask);
}

// set: all ones or 0 for integers, 1.0 or 0 for floats. Instruction::offset holds "true" of one element.
void set_value(Warp &w, const Instruction &i, Mask mask) {
  for (int e = 0; e < i.vector; ++e) {
    const Mask value = combined(w, i, compare_lanes(w, i, e));
    each_lane(mask, [&](int lane) {
      const auto bits = value >> lane & 1 ? static_cast<uint64_t>(i.offset) : 0;
      if (i.out[0].bytes == 2 || i.vector == 2)
        w.out<uint16_t>(i.out[0])[lane * i.vector + e] = static_cast<uint16_t>(bits);
      else
        w.out<uint32_t>(i.out[0])[lane] = static_cast<uint32_t>(bits);
    });
  }
}

void take_comparison(Builder &b) {
  Instruction &r = b.result;
  const int at = b.take_one({"eq", "ne", "lt", "le", "gt", "ge", "num", "nan", "equ", "neu", "ltu", "leu", "gtu", "geu",
                             "lo", "ls", "hi", "hs"});
  if (at < 0) b.fail("no comparison");
  if (at >= 14) {
    constexpr Compare kUnsigned[] = {Compare::kLt, Compare::kLe, Compare::kGt, Compare::kGe};
    r.compare = kUnsigned[at - 14];
  } else {
    r.or_unordered = at >= 8;
    r.compare = static_cast<Compare>(at >= 8 ? at - 8 : at);
  }
  const int combine = b.take_one({"and", "or", "xor"});
  r.combine = static_cast<Bool>(combine + 1);
  r.ftz = b.take("ftz");
}

void take_compared(Builder &b, Type type) {
  Instruction &r = b.result;
  r.vector = type.lanes;
  switch (type.kind) {
    case Type::kF16:
      r.from = kF16;
      break;
    case Type::kBf16:
      r.from = kBf16;
      break;
    case Type::kFloat:
      r.from = type.bits == 32 ? kF32 : kF64;
      break;
    default:
      r.from = static_cast<uint8_t>((type.bits == 16 ? 0 : type.bits == 32 ? 2 : 4) + type.is_signed());
  }
  r.in[0] = b.source(1, type);
  r.in[1] = b.source(2, type);
  if (r.combine != Bool::kNone) r.in[2] = b.predicate(b.arg(3), r.negated[2]);
}

void decode_set_predicate(Builder &b) {
  take_comparison(b);
  const Type type = b.take_type();
  const size_t count = b.result.combine == Bool::kNone ? 3 : 4;
  b.expect(count, count);
  const Arg &out = b.arg(0);
  bool negated;
  if (out.kind != Arg::kSink) b.result.out[0] = b.predicate(out, negated);
  if (!out.parts.empty() && out.parts[0].kind != Arg::kSink) b.result.out[1] = b.predicate(out.parts[0], negated);
  take_compared(b, type);
  b.result.run = set_predicate;
}

void decode_set(Builder &b) {
  take_comparison(b);
  const Type to = b.take_type(), from = b.take_type();
  const size_t count = b.result.combine == Bool::kNone ? 3 : 4;
  b.expect(count, count);
  Type out = to;
  if (from.lanes == 2 && to.lanes == 1 && to.bits == 32) out.lanes = 1;  // set.u32.f16x2: 0xffff for each element
  b.result.out[0] = b.target(b.arg(0), out.bytes());
  take_compared(b, from);
  const uint64_t one = to.kind == Type::kFloat  ? 0x3f800000u
                       : to.kind == Type::kF16  ? 0x3c00u
                       : to.kind == Type::kBf16 ? 0x3f80u
                                                : 0xffffffffu;
  b.result.offset = static_cast<int64_t>(one);
  b.result.run = set_value;
}

template <class T>
void select(Warp &w, const Instruction &i, Mask mask) {
  T *out = w.out<T>(i.out[0]);
  const T *a = w.in<T>(i.in[0]), *b = w.in<T>(i.in[1]);
  const Mask p = w.predicate(i.in[2], i.negated[2]);
  if (mask == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = p >> lane & 1 ? a[lane] : b[lane];
  } else {
    each_lane(mask, [&](int lane) { out[lane] = p >> lane & 1 ? a[lane] : b[lane]; });
  }
}
void decode_select(Builder &b) {
  const Type type = b.take_type();
  b.expect(4, 4);
  b.result.out[0] = b.target(0, type);
  b.result.in[0] = b.source(1, type);
  b.result.in[1] = b.source(2, type);
  b.result.in[2] = b.predicate(b.arg(3), b.result.negated[2]);
  b.result.run = type.bits == 16 ? select<uint16_t> : type.bits == 32 ? select<uint32_t> : select<uint64_t>;
}

// slct: by the sign of the third operand; NaN and -0 as the comparison with 0 has it.
template <class T, class S>
T select_sign(T a, T b, S c) {
  return c >= 0 ? a : b;
}
void decode_select_sign(Builder &b) {
  b.take("ftz");
  const Type type = b.take_type(), sign = b.take_type();
  b.expect(4, 4);
  b.result.out[0] = b.target(0, type);
  b.result.in[0] = b.source(1, type);
  b.result.in[1] = b.source(2, type);
  b.result.in[2] = b.source(3, sign);
  const bool is_float = sign.is_float();
  switch (type.bits) {
    case 16:
      b.result.run = is_float ? lanes<select_sign<uint16_t, float>> : lanes<select_sign<uint16_t, int32_t>>;
      break;
    case 32:
      b.result.run = is_float ? lanes<select_sign<uint32_t, float>> : lanes<select_sign<uint32_t, int32_t>>;
      break;
    default:
      b.result.run = is_float ? lanes<select_sign<uint64_t, float>> : lanes<select_sign<uint64_t, int32_t>>;
  }
}

// prmt: four bytes of the eight of {b, a}, chosen by the nibbles of c; a nibble's top bit replicates the byte's sign.
uint32_t permute(const Instruction &i, uint32_t a, uint32_t b, uint32_t c) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  const auto byte = [&](uint32_t k) { return static_cast<uint32_t>(bytes >> 8 * (k & 7) & 255); };
  uint32_t r = 0;
  for (uint32_t k = 0; k < 4; ++k) {
    uint32_t value = 0;
    const uint32_t n = c & 3;
    switch (i.mode) {
      case 0: {
        const uint32_t nibble = c >> 4 * k & 15;
        value = byte(nibble);
        if (nibble & 8) value = value & 128 ? 255 : 0;
        break;
      }
      case 1:
        value = byte(n + k);
        break;  // f4e: forward from n
      case 2:
        value = byte(n + 8 - k);
        break;  // b4e: backward from n
      case 3:
        value = byte(n);
        break;  // rc8: replicated
      case 4:
        value = byte(k < n ? n : k);
        break;  // ecl: clamped from the left
      case 5:
        value = byte(k > n ? n : k);
        break;  // ecr: from the right
      case 6:
        value = byte((n & 1) * 2 + (k & 1));
        break;  // rc16
    }
    r |= value << 8 * k;
  }
  return r;
}
void decode_permute(Builder &b) {
  const int mode = b.take_one({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
  const Type type = b.take_type();
  b.expect(4, 4);
  b.result.mode = static_cast<uint8_t>(mode + 1);
  b.result.out[0] = b.target(0, type);
  for (size_t k = 0; k < 3; ++k) b.result.in[k] = b.source(k + 1, type);
  b.result.run = lanes_with<permute>;
}

// ---- State spaces

uint64_t window_of(Space space) {
  return space == Space::kShared  ? kSharedWindow
         : space == Space::kLocal ? kLocalWindow
         : space == Space::kParam ? kParamWindow
                                  : 0;
}
Space take_space(Builder &b) {
  if (b.take("shared::cta") || b.take("shared::cluster") || b.take("shared")) return Space::kShared;
  if (b.take("local")) return Space::kLocal;
  if (b.take("param::entry") || b.take("param")) return Space::kParam;
  if (b.take("const")) return Space::kConst;
  if (b.take("global")) return Space::kGlobal;
  b.fail("no state space");
}

uint64_t shifted(const Instruction &i, uint64_t a) { return a + static_cast<uint64_t>(i.offset); }
uint64_t shifted32(const Instruction &i, uint32_t a) { return a + static_cast<uint64_t>(i.offset); }
void decode_convert_address(Builder &b) {
  const bool to = b.take("to");
  const uint64_t window = window_of(take_space(b));
  const Type type = b.take_type();
  if (type.bits != 64) b.fail("addresses have 64 bits");
  b.expect(2, 2);
  b.result.out[0] = b.target(0, type);
  b.result.in[0] = b.any_width(b.arg(1), type);
  b.result.offset = static_cast<int64_t>(to ? 0 - window : window);
  b.result.run = b.result.in[0].bytes == 4 ? lanes_with<shifted32> : lanes_with<shifted>;
}

// The address of a shared variable in another block of the cluster: here there is but one.
void map_rank(Warp &w, const Instruction &i, Mask mask) {
  const uint32_t *rank = w.in<uint32_t>(i.in[1]);
  each_lane(mask, [&](int lane) {
    if (rank[lane] != 0) w.run->stop(w, Kind::kLaunch, lane, "clusters of several blocks aren't supported");
    if (i.out[0].bytes == 4)
      w.out<uint32_t>(i.out[0])[lane] = w.in<uint32_t>(i.in[0])[lane];
    else
      w.out<uint64_t>(i.out[0])[lane] = w.in<uint64_t>(i.in[0])[lane];
  });
}
void decode_map_rank(Builder &b) {
  b.take("shared::cluster");
  const Type type = b.take_type();
  b.expect(3, 3);
  b.result.out[0] = b.target(0, type);
  b.result.in[0] = b.source(1, type);
  b.result.in[1] = b.source(2, {Type::kUnsigned, 32});
  b.result.run = map_rank;
}

void is_in_space(Warp &w, const Instruction &i, Mask mask) {
  const uint64_t *address = w.in<uint64_t>(i.in[0]);
  Mask value = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    value |= Mask{(address[lane] & kWindowMask) == window_of(i.space)} << lane;
  }
  write_predicate(w, i.out[0], value, mask);
}
void decode_is_in_space(Builder &b) {
  b.result.space = take_space(b);
  if (b.result.space == Space::kConst) b.fail("constants aren't told from global memory here");
  b.expect(2, 2);
  bool negated;
  b.result.out[0] = b.predicate(b.arg(0), negated);
  b.result.in[0] = b.source(1, {Type::kUnsigned, 64});
  b.result.run = is_in_space;
}

}  // namespace

std::vector<Opcode> data_opcodes() {
  return {
      {"mov", decode_move},
      {"setp", decode_set_predicate},
      {"set", decode_set},
      {"selp", decode_select},
      {"slct", decode_select_sign},
      {"prmt", decode_permute},
      {"cvta", decode_convert_address},
      {"isspacep", decode_is_in_space},
      {"mapa", decode_map_rank},
  };
}

}  // namespace emulator
