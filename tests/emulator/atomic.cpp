// atom and red, in global and shared memory. Lanes of one instruction go in order of their number.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "access.h"
#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

enum Operation : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExchange, kCompareSwap, kIncrement, kDecrement };

// Pairs and single 16-bit floats, as types of their own.
template <int lanes, bool bf16>
struct Halves {
  uint16_t part[lanes];
};

template <int lanes, bool bf16>
Halves<lanes, bf16> added(Halves<lanes, bf16> a, Halves<lanes, bf16> b) {
  for (int k = 0; k < lanes; ++k) {
    a.part[k] = bf16 ? to_bf16(add_odd(bf16_float(a.part[k]), bf16_float(b.part[k])))
                     : to_f16(add_odd(f16_float(a.part[k]), f16_float(b.part[k])));
  }
  return a;
}
template <class T>
T added(T a, T b) {
  return static_cast<T>(a + b);
}

template <class T>
T result_of(uint8_t operation, T old, T b, T c) {
  if (operation == kAdd) return added(old, b);
  if (operation == kExchange) return b;
  if constexpr (std::is_unsigned_v<T>) {
    switch (operation) {
      case kAnd:
        return old & b;
      case kOr:
        return old | b;
      case kXor:
        return old ^ b;
      case kCompareSwap:
        return old == b ? c : old;
      case kIncrement:
        return old >= b ? 0 : old + 1;
      case kDecrement:
        return old == 0 || old > b ? b : old - 1;
      default:
        break;
    }
  }
  if constexpr (std::is_arithmetic_v<T>) return operation == kMin ? std::min(old, b) : std::max(old, b);
  return old;
}

// Lanes whose address is in global memory, where sums of f32 know no subnormals; elsewhere they do.
Mask lanes_in_global_memory(const Instruction &i, const Access &a) {
  if (i.space != Space::kGeneric) return i.space == Space::kGlobal ? kAllLanes : 0;
  Mask lanes = 0;
  for (int lane = 0; lane < kLanes; ++lane) lanes |= Mask{(a.address[lane] & kWindowMask) != kSharedWindow} << lane;
  return lanes;
}

// in[0]: address, in[1]: b, in[2]: c of cas; out[0]: the old value, if wanted. Of a vector: b and old value of each element.
template <class T>
void atomic(Warp &w, const Instruction &i, Mask mask) {
  Access a;
  a.space = i.space;
  a.use = Use::kAtomic;
  a.bytes = static_cast<int>(sizeof(T)) * i.vector;
  lane_addresses(w, i.in[0], i.offset, a.address);
  const Mask flushes = std::is_same_v<T, float> && i.mode == kAdd ? lanes_in_global_memory(i, a) : 0;
  const Mask good = checked(w, i, a, mask);
  if (i.out[0].given()) order_before(w, i, a, good);
  const T *c = w.in<T>(i.in[i.mode == kCompareSwap ? 2 : 1]);
  each_lane(good, [&](int lane) {
    for (int k = 0; k < i.vector; ++k) {
      const T *b = w.in<T>(i.in[1 + k]);
      std::byte *const place = a.place[lane] + static_cast<size_t>(k) * sizeof(T);
      T old;
      std::memcpy(&old, place, sizeof old);
      T next = result_of<T>(i.mode, old, b[lane], c[lane]);
      if constexpr (std::is_same_v<T, float>) {
        if (flushes >> lane & 1) next = flushed(flushed(old) + flushed(b[lane]));
      }
      if (std::memcmp(&old, &next, sizeof old) != 0) ++w.run->changes;
      std::memcpy(place, &next, sizeof next);
      if (i.out[k].given()) w.out<T>(i.out[k])[lane] = old;
    }
  });
  order_after(w, i, a, good);
}

Handler pick(Builder &b, Type t) {
  const bool logic = b.result.mode >= kAnd && b.result.mode != kExchange;
  if (t.is_float() && b.result.mode != kAdd && b.result.mode != kExchange) b.fail("no such operation on floats");
  switch (t.kind) {
    case Type::kF16:
      return t.lanes == 2 ? atomic<Halves<2, false>> : atomic<Halves<1, false>>;
    case Type::kBf16:
      return t.lanes == 2 ? atomic<Halves<2, true>> : atomic<Halves<1, true>>;
    case Type::kFloat:
      return t.bits == 32 ? atomic<float> : atomic<double>;
    default:
      break;
  }
  if (t.bits == 16 && b.result.mode == kCompareSwap) return atomic<uint16_t>;
  if (t.bits != 32 && t.bits != 64) b.fail("no such type");
  if (t.is_signed() && !logic) return t.bits == 32 ? atomic<int32_t> : atomic<int64_t>;
  return t.bits == 32 ? atomic<uint32_t> : atomic<uint64_t>;
}

void decode(Builder &b, bool returns) {
  Instruction &r = b.result;
  b.take_memory_order();
  r.space = b.take("global")                                                         ? Space::kGlobal
            : b.take("shared") || b.take("shared::cta") || b.take("shared::cluster") ? Space::kShared
                                                                                     : Space::kGeneric;
  const int operation = b.take_one({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"});
  if (operation < 0) b.fail("no operation");
  r.mode = static_cast<uint8_t>(operation);
  b.take("noftz");
  b.take_cache_hints();
  const int vector = b.take_one({"v2", "v4", "v8"});
  r.vector = static_cast<uint8_t>(vector < 0 ? 1 : 2 << vector);
  const Type type = b.take_type();
  if (vector >= 0 &&
      (!type.is_float() || operation > kMax || type.bytes() * r.vector > 16 || (returns && r.vector > 4)))
    b.fail("no such vector");
  const size_t first = returns ? 1 : 0, inputs = operation == kCompareSwap ? 3 : 2;
  b.expect(first + inputs, first + inputs + 1);  // and a cache policy
  const auto parts = [&](size_t k) {
    const Arg &arg = b.arg(k);
    std::vector<Arg> list = arg.kind == Arg::kVector ? arg.parts : std::vector<Arg>{arg};
    if (list.size() != r.vector) b.fail("wrong number of elements");
    return list;
  };
  if (returns)
    for (size_t k = 0; k < r.vector; ++k) r.out[k] = b.target(parts(0)[k], type.bytes());
  b.address(first);
  for (size_t k = 0; k < r.vector; ++k) r.in[1 + k] = b.source(parts(first + 1)[k], type);
  if (operation == kCompareSwap) r.in[2] = b.source(first + 2, type);
  r.run = pick(b, type);
}

}  // namespace

std::vector<Opcode> atomic_opcodes() {
  return {
      {"atom", [](Builder &b) { decode(b, true); }},
      {"red", [](Builder &b) { decode(b, false); }},
  };
}

}  // namespace emulator
