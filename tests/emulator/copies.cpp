// cp.async: bytes from global to shared memory that arrive some time between the instruction and its wait.
//
// The source is read when the copy is issued. Until it lands the target holds poison, so that whoever looks too early sees
// NaN even without race detection.
#include <algorithm>
#include <cstring>

#include "access.h"
#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

void land(Warp &w, const Copy &copy) {
  std::memcpy(w.block->shared.data() + copy.offset, copy.data.data(), copy.bytes);
}

// in[0]: source, in[1]: target, in[2]: bytes to read, or a predicate that says to read none; width: bytes to write.
void copy_async(Warp &w, const Instruction &i, Mask mask) {
  const Options &options = w.run->options;
  Access to;
  to.space = Space::kShared;
  to.use = Use::kWrite;
  to.bytes = i.width;
  to.copy = true;
  lane_addresses(w, i.in[1], static_cast<int64_t>(i.target), to.address);
  mask = checked(w, i, to, mask);

  // Lanes that read nothing may have any source address.
  uint32_t sizes[kLanes];
  Mask reads = 0;
  each_lane(mask, [&](int lane) {
    sizes[lane] = i.width;
    if (i.in[2].bytes == 4) sizes[lane] = std::min<uint32_t>(w.in<uint32_t>(i.in[2])[lane], i.width);
    if (i.in[2].bytes == 1 && (w.predicate(i.in[2], i.negated[2]) >> lane & 1)) sizes[lane] = 0;
    reads |= Mask{sizes[lane] != 0} << lane;
  });
  Access from;
  from.space = Space::kGlobal;
  from.use = Use::kRead;
  from.bytes = i.width;
  lane_addresses(w, i.in[0], i.offset, from.address);
  // A shortened copy may end at the end of its buffer, but its address is aligned for the whole one.
  Mask whole = 0;
  each_lane(reads, [&](int lane) { whole |= Mask{sizes[lane] == i.width} << lane; });
  Mask read = whole == 0 ? 0 : checked(w, i, from, whole);
  each_lane(reads & ~whole, [&](int lane) {
    for (uint32_t at = 0; at < sizes[lane];) {
      const uint32_t step = sizes[lane] - at >= 4 ? 4 : sizes[lane] - at >= 2 ? 2 : 1;
      Access part = from;
      part.bytes = static_cast<int>(step);
      part.address[lane] += at;
      if (checked(w, i, part, Mask{1} << lane) == 0) return;
      at += step;
    }
    from.place[lane] = reinterpret_cast<std::byte *>(from.address[lane]);
    read |= Mask{1} << lane;
  });

  each_lane(mask, [&](int lane) {
    Copy copy{};
    copy.lane = static_cast<uint8_t>(lane);
    copy.bytes = i.width;
    copy.group = w.commits[static_cast<size_t>(lane)];
    copy.offset = static_cast<uint32_t>(to.address[lane] - kSharedStart);
    if (read >> lane & 1) std::memcpy(copy.data.data(), from.place[lane], sizes[lane]);
    const bool now =
        options.copies == Copies::kEager || (options.copies == Copies::kRandom && w.run->random() % 4 == 0);
    if (now)
      land(w, copy);
    else
      std::memset(to.place[lane], 0xff, i.width);
    w.copies.push_back(copy);
  });
}

void commit(Warp &w, const Instruction &, Mask mask) {
  each_lane(mask, [&](int lane) { ++w.commits[static_cast<size_t>(lane)]; });
}
void wait_group(Warp &w, const Instruction &i, Mask mask) { land_copies(w, mask, Landing::kGroups, i.target); }
void wait_all(Warp &w, const Instruction &, Mask mask) { land_copies(w, mask, Landing::kAll, 0); }

void decode_copy(Builder &b) {
  Instruction &r = b.result;
  if (!b.take("shared") && !b.take("shared::cta")) b.fail("the target must be .shared");
  if (!b.take("global")) b.fail("the source must be .global");
  b.take_cache_hints();
  b.expect(3, 5);
  const Arg &bytes = b.arg(2);
  if (bytes.kind != Arg::kInteger || (bytes.value != 4 && bytes.value != 8 && bytes.value != 16)) {
    b.fail("4, 8 or 16 bytes are wanted");
  }
  r.width = static_cast<uint8_t>(bytes.value);
  b.address(0);
  r.in[1] = r.in[0];
  r.target = static_cast<uint32_t>(r.offset);
  r.offset = 0;
  b.address(1);
  if (b.args.size() > 3) {
    if (b.arg(3).kind == Arg::kPredicate)
      r.in[2] = b.predicate(b.arg(3), r.negated[2]);
    else if (!(b.arg(3).kind == Arg::kRegister && b.arg(3).reg.bytes == 8))
      r.in[2] = b.source(3, {Type::kUnsigned, 32});
  }
  r.run = copy_async;
}

}  // namespace

void land_copies(Warp &w, Mask lanes, Landing landing, uint32_t pending_groups) {
  const auto done = [&](const Copy &copy) {
    if (!(lanes >> copy.lane & 1)) return false;
    return landing == Landing::kAll || copy.group + pending_groups < w.commits[copy.lane];
  };
  for (const Copy &copy : w.copies) {
    if (!done(copy)) continue;
    // Landed twice where it came early: harmless, as nobody may have written there since.
    land(w, copy);
    if (w.block->shadow != nullptr)
      w.block->shadow->end_copy(*w.block->clocks, w.thread(copy.lane), copy.offset, copy.bytes);
  }
  w.copies.erase(std::remove_if(w.copies.begin(), w.copies.end(), done), w.copies.end());
}

std::vector<Opcode> copy_opcodes() {
  return {
      {"cp.async.ca", decode_copy},
      {"cp.async.cg", decode_copy},
      {"cp.async.commit_group",
       [](Builder &b) {
         b.expect(0, 0);
         b.result.run = commit;
       }},
      {"cp.async.wait_all",
       [](Builder &b) {
         b.expect(0, 0);
         b.result.run = wait_all;
       }},
      {"cp.async.wait_group",
       [](Builder &b) {
         b.expect(1, 1);
         if (b.arg(0).kind != Arg::kInteger) b.fail("a literal is wanted");
         b.result.target = static_cast<uint32_t>(b.arg(0).value);
         b.result.run = wait_group;
       }},
  };
}

}  // namespace emulator
