// What lanes of a warp do together: shuffles, votes, matches, reductions.
#include <algorithm>

#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

enum Shuffle : uint8_t { kUp, kDown, kButterfly, kIndex };

// in: value, lane operand, clamp and segment mask. out[1]: whether the source was in range.
void shuffle(Warp &w, const Instruction &i, Mask mask) {
  const uint32_t *value = w.in<uint32_t>(i.in[0]), *b = w.in<uint32_t>(i.in[1]), *c = w.in<uint32_t>(i.in[2]);
  uint32_t result[kLanes];
  Mask in_range = 0;
  each_lane(mask, [&](int lane) {
    const int offset = static_cast<int>(b[lane] & 31), clamp = static_cast<int>(c[lane] & 31);
    const int segment = static_cast<int>(c[lane] >> 8 & 31);
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int from = lane;
    bool ok = false;
    switch (i.mode) {
      case kUp:
        from = lane - offset;
        ok = from >= last;
        break;
      case kDown:
        from = lane + offset;
        ok = from <= last;
        break;
      case kButterfly:
        from = lane ^ offset;
        ok = from <= last;
        break;
      case kIndex:
        from = first | (offset & ~segment);
        ok = from <= last;
        break;
    }
    if (!ok) from = lane;
    in_range |= Mask{ok} << lane;
    // A lane that doesn't take part has no value to give: poison.
    result[lane] = mask >> from & 1 ? value[from] : ~0u;
  });
  uint32_t *out = w.out<uint32_t>(i.out[0]);
  each_lane(mask, [&](int lane) { out[lane] = result[lane]; });
  write_predicate(w, i.out[1], in_range, mask);
}

void members(Builder &b, size_t at) {
  b.result.members = b.source(at, {Type::kUnsigned, 32});
  b.result.control = Control::kTogether;
}

void decode_shuffle(Builder &b) {
  Instruction &r = b.result;
  const int mode = b.take_one({"up", "down", "bfly", "idx"});
  if (mode < 0) b.fail("no mode");
  r.mode = static_cast<uint8_t>(mode);
  const Type type = b.take_type();
  b.expect(5, 5);
  r.out[0] = b.target(0, type);
  bool negated;
  if (!b.arg(0).parts.empty()) r.out[1] = b.predicate(b.arg(0).parts[0], negated);
  for (size_t k = 0; k < 3; ++k) r.in[k] = b.source(k + 1, type);
  members(b, 4);
  r.run = shuffle;
}

enum Vote : uint8_t { kAll, kAny, kUniform, kBallot };

void vote(Warp &w, const Instruction &i, Mask mask) {
  const Mask yes = w.predicate(i.in[0], i.negated[0]) & mask;
  if (i.mode == kBallot) {
    uint32_t *out = w.out<uint32_t>(i.out[0]);
    each_lane(mask, [&](int lane) { out[lane] = yes; });
  } else {
    const bool value = i.mode == kAll ? yes == mask : i.mode == kAny ? yes != 0 : yes == 0 || yes == mask;
    write_predicate(w, i.out[0], value ? kAllLanes : 0, mask);
  }
}
void decode_vote(Builder &b) {
  Instruction &r = b.result;
  const int mode = b.take_one({"all", "any", "uni", "ballot"});
  if (mode < 0) b.fail("no mode");
  r.mode = static_cast<uint8_t>(mode);
  const Type type = b.take_type();
  b.expect(3, 3);
  bool negated;
  r.out[0] = mode == kBallot ? b.target(0, type) : b.predicate(b.arg(0), negated);
  r.in[0] = b.predicate(b.arg(1), r.negated[0]);
  members(b, 2);
  r.run = vote;
}

// match.any: the lanes with the same value; match.all: all of them if there is but one value, else 0.
template <class T>
void match(Warp &w, const Instruction &i, Mask mask) {
  const T *value = w.in<T>(i.in[0]);
  uint32_t result[kLanes];
  bool all = true;
  each_lane(mask, [&](int lane) {
    Mask same = 0;
    each_lane(mask, [&](int other) { same |= Mask{value[other] == value[lane]} << other; });
    result[lane] = same;
    all = all && same == mask;
  });
  uint32_t *out = w.out<uint32_t>(i.out[0]);
  each_lane(mask, [&](int lane) { out[lane] = i.mode == 0 ? result[lane] : all ? mask : 0; });
  write_predicate(w, i.out[1], all ? kAllLanes : 0, mask);
}
void decode_match(Builder &b) {
  Instruction &r = b.result;
  const int mode = b.take_one({"any", "all"});
  b.take("sync");
  if (mode < 0) b.fail("no mode");
  r.mode = static_cast<uint8_t>(mode);
  const Type type = b.take_type();
  b.expect(3, 3);
  r.out[0] = b.target(b.arg(0), 4);
  bool negated;
  if (!b.arg(0).parts.empty()) r.out[1] = b.predicate(b.arg(0).parts[0], negated);
  r.in[0] = b.source(1, type);
  members(b, 2);
  r.run = type.bits == 32 ? match<uint32_t> : match<uint64_t>;
}

template <class T>
void reduce(Warp &w, const Instruction &i, Mask mask) {
  const T *value = w.in<T>(i.in[0]);
  T sum = value[__builtin_ctz(mask)];
  each_lane(mask & (mask - 1), [&](int lane) {
    const T x = value[lane];
    switch (i.mode) {
      case 0:
        sum = static_cast<T>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(x));
        break;
      case 1:
        sum = std::min(sum, x);
        break;
      case 2:
        sum = std::max(sum, x);
        break;
      case 3:
        sum &= x;
        break;
      case 4:
        sum |= x;
        break;
      default:
        sum ^= x;
    }
  });
  T *out = w.out<T>(i.out[0]);
  each_lane(mask, [&](int lane) { out[lane] = sum; });
}
void decode_reduce(Builder &b) {
  Instruction &r = b.result;
  b.take("sync");
  const int mode = b.take_one({"add", "min", "max", "and", "or", "xor"});
  if (mode < 0) b.fail("no operation");
  r.mode = static_cast<uint8_t>(mode);
  const Type type = b.take_type();
  b.expect(3, 3);
  r.out[0] = b.target(0, type);
  r.in[0] = b.source(1, type);
  members(b, 2);
  r.run = type.is_signed() ? reduce<int32_t> : reduce<uint32_t>;
}

void active_mask(Warp &w, const Instruction &i, Mask mask) {
  uint32_t *out = w.out<uint32_t>(i.out[0]);
  each_lane(mask, [&](int lane) { out[lane] = mask; });
}
void decode_active_mask(Builder &b) {
  const Type type = b.take_type();
  b.expect(1, 1);
  b.result.out[0] = b.target(0, type);
  b.result.run = active_mask;
}

// elect: the lowest member leads.
void elect(Warp &w, const Instruction &i, Mask mask) {
  const int leader = __builtin_ctz(mask);
  uint32_t *out = w.out<uint32_t>(i.out[0]);
  each_lane(mask, [&](int lane) { out[lane] = static_cast<uint32_t>(leader); });
  write_predicate(w, i.out[1], Mask{1} << leader, mask);
}
void decode_elect(Builder &b) {
  b.take("sync");
  b.expect(2, 2);
  b.result.out[0] = b.target(b.arg(0), 4);
  bool negated;
  if (b.arg(0).parts.empty()) b.fail("elect has no predicate");
  b.result.out[1] = b.predicate(b.arg(0).parts[0], negated);
  members(b, 1);
  b.result.run = elect;
}

void warp_sync(Warp &w, const Instruction &, Mask mask) {
  if (w.block->clocks != nullptr) w.block->clocks->join(w.thread(0), mask);
}

}  // namespace

std::vector<Opcode> warp_opcodes() {
  return {
      {"shfl.sync", decode_shuffle},
      {"vote.sync", decode_vote},
      {"match", decode_match},
      {"redux", decode_reduce},
      {"activemask", decode_active_mask},
      {"elect", decode_elect},
      {"bar.warp.sync",
       [](Builder &b) {
         b.expect(1, 1);
         members(b, 0);
         b.result.run = warp_sync;
       }},
  };
}

}  // namespace emulator
