#include "access.h"

#include <algorithm>
#include <cstring>

#include "lanes.h"

namespace emulator {

namespace {

std::string verb(const Access &a) {
  return std::to_string(a.bytes) + "-byte " +
         (a.use == Use::kAtomic  ? "atomic"
          : a.use == Use::kWrite ? "write"
                                 : "read");
}

Strength strength(const Instruction &i, const Access &a) {
  if (!i.strong && a.use != Use::kAtomic) return Strength::kWeak;
  return i.scope == Scope::kBlock ? Strength::kBlock : Strength::kDevice;
}

bool fits(uint64_t offset, uint64_t bytes, uint64_t size) { return offset <= size && bytes <= size - offset; }

bool aligned(const Access &a, int lane) { return a.address[lane] % static_cast<uint64_t>(a.bytes) == 0; }

bool all_written(const std::byte *written, int bytes) {
  const auto all = [written](auto wanted) {  // without a call, for speed
    return std::memcmp(written, &wanted, sizeof wanted) == 0;
  };
  switch (bytes) {
    case 4:
      return all(uint32_t{0x01010101});
    case 8:
      return all(uint64_t{0x0101010101010101});
    case 16:
      return all_written(written, 8) && all_written(written + 8, 8);
    default:
      return std::memchr(written, 0, static_cast<size_t>(bytes)) == nullptr;
  }
}

void report_misaligned(Warp &w, const Access &a, int lane, const std::string &what) {
  w.run->report(w, Kind::kMisaligned, lane, verb(a) + " at " + what + ", not a multiple of its size");
}

// Lanes of one instruction that write equal bytes to the same place: harmless, whichever comes last.
bool same_bytes(const Warp &w, const Access &a, int lane, const Conflict &c) {
  if (a.data == nullptr || c.with != Conflict::With::kWrite || c.pc != w.pc) return false;
  if (c.block != w.block->number || c.thread / kLanes != w.index) return false;
  const auto at = [&](int l) { return a.data + static_cast<size_t>(l) * a.data_stride; };
  const int other = c.thread % kLanes;
  return a.address[lane] == a.address[other] && std::memcmp(at(lane), at(other), static_cast<size_t>(a.bytes)) == 0;
}

// Calls check(lanes, accessor) once for lanes that do the same and are alike: most often they read one place.
template <class Check>
void each_accessor(const Warp &w, const Instruction &i, const Access &a, Mask lanes, Check check) {
  const bool together = a.use == Use::kRead && lanes != 0 && w.block->clocks->alike(w.thread(0), lanes);
  const auto same_address = [&](int lane) {
    return lanes_where([&a, address = a.address[lane]](int other) { return a.address[other] == address; });
  };
  for (Mask rest = lanes; rest != 0;) {
    const int lane = __builtin_ctz(rest);
    const Mask one = Mask{1} << lane, same = together ? same_address(lane) & rest : one;
    check(same, Accessor{w.thread(lane), w.pc, strength(i, a), -1, 0, same == one ? 0 : same});
    rest &= ~same;
  }
}

// The lane that can speak of a conflict with a thread that may be one of the lanes itself.
int lane_against(const Warp &w, Mask lanes, const Conflict &c) {
  const int first = __builtin_ctz(lanes);
  const Mask others = lanes & (lanes - 1);
  return c.thread == w.thread(first) && others != 0 ? __builtin_ctz(others) : first;
}

Mask shared(Warp &w, const Instruction &i, Access &a, Mask lanes) {
  Block &block = *w.block;
  Run &run = *w.run;
  const auto bytes = static_cast<uint64_t>(a.bytes);
  Mask good = 0;
  uint64_t offsets[kLanes], first = ~uint64_t{0}, end = 0;
  each_lane(lanes, [&](int lane) {
    first = std::min(first, a.address[lane] - kSharedStart);
    end = std::max(end, a.address[lane] - kSharedStart + bytes);
  });
  const bool meets_mbarrier = end > run.shared_bytes || block.mbarrier_in(first, end - first) != nullptr;
  each_lane(lanes, [&](int lane) {
    const uint64_t offset = offsets[lane] = a.address[lane] - kSharedStart;
    const auto where = [&] { return "shared memory + " + std::to_string(offset); };
    if (a.address[lane] < kSharedStart || !fits(offset, bytes, run.shared_bytes)) {
      run.report(
          w, Kind::kOutOfBounds, lane,
          verb(a) + " at shared memory " +
              (a.address[lane] < kSharedStart ? "- " + std::to_string(0 - offset) : "+ " + std::to_string(offset)) +
              ", which has " + std::to_string(run.shared_bytes) + " bytes");
      return;
    }
    if (!aligned(a, lane)) return report_misaligned(w, a, lane, where());
    if (meets_mbarrier && block.mbarrier_in(offset, bytes) != nullptr) {
      run.report(w, Kind::kMbarrier, lane, verb(a) + " of " + where() + ", where an mbarrier is");
      return;
    }
    a.place[lane] = block.shared.data() + offset;
    good |= Mask{1} << lane;
    if (run.options.uninitialised) {
      std::byte *written = block.initialised.data() + offset;
      if (a.use == Use::kWrite) {
        std::memset(written, 1, bytes);
      } else if (!all_written(written, a.bytes)) {
        run.report(w, Kind::kUninitialised, lane, verb(a) + " of " + where() + ", which nothing has written yet");
        std::memset(written, 1, bytes);
      }
    }
  });
  if (block.shadow != nullptr) {
    each_accessor(w, i, a, good, [&](Mask same, const Accessor &who) {
      const uint64_t offset = offsets[__builtin_ctz(same)];
      const Conflict c = a.copy                ? block.shadow->begin_copy(*block.clocks, who, offset, a.bytes)
                         : a.use == Use::kRead ? block.shadow->read(*block.clocks, who, offset, a.bytes)
                                               : block.shadow->write(*block.clocks, who, offset, a.bytes);
      const int lane = lane_against(w, same, c);
      if (c && !same_bytes(w, a, lane, c))
        report_conflict(w, lane, verb(a), "shared memory + " + std::to_string(offset), c);
    });
  }
  // The bytes of cp.async arrive some time, not as one access of the warp.
  if (run.options.traffic && !a.copy) run.counters.count_shared(offsets, good, a.bytes);
  if (a.use != Use::kRead) ++run.changes;
  return good;
}

void count_traffic(TrackedBuffer &buffer, const Access &a, Mask lanes, bool in_row) {
  Traffic &t = buffer.traffic;
  const auto bytes = static_cast<uint64_t>(a.bytes);
  const uint64_t requested = bytes * static_cast<uint64_t>(__builtin_popcount(lanes));
  const uint64_t base = buffer.buffer.address;
  const auto add = [&](ByteSet &set) {
    if (in_row) return set.add(a.address[0] - base, a.address[0] - base + requested);
    uint64_t added = 0;
    each_lane(lanes, [&](int lane) { added += set.add(a.address[lane] - base, a.address[lane] - base + bytes); });
    return added;
  };
  if (a.use == Use::kRead) {
    t.read_bytes += requested;
    t.read_sectors += count_sectors(a.address, lanes);
    t.read_unique_bytes += add(buffer.read);
  } else if (a.use == Use::kAtomic) {
    t.atomic_bytes += requested;
  } else {
    t.written_bytes += requested;
    t.written_sectors += count_sectors(a.address, lanes);
    const uint64_t added = add(buffer.written);
    t.written_unique_bytes += added;
    if (added != requested) t.written_twice_bytes += requested - added;
  }
}

Mask global(Warp &w, const Instruction &i, Access &a, Mask lanes) {
  Run &run = *w.run;
  const auto bytes = static_cast<uint64_t>(a.bytes);
  Mask good = 0, shadowed = 0;
  TrackedBuffer *buffer = nullptr;
  bool one_buffer = true, in_row = lanes == kAllLanes;
  each_lane(lanes, [&](int lane) {
    const uint64_t address = a.address[lane];
    if (address != a.address[0] + static_cast<uint64_t>(lane) * bytes) in_row = false;
    TrackedBuffer *found = run.buffers.find(address, bytes);
    if (found == nullptr) {
      run.report(w, Kind::kOutOfBounds, lane, verb(a) + " at " + run.buffers.describe(address));
      return;
    }
    if (found != buffer && buffer != nullptr) one_buffer = false;
    buffer = found;
    if (!aligned(a, lane)) return report_misaligned(w, a, lane, run.buffers.describe(address));
    if (found->constant && a.use != Use::kRead) {
      run.report(w, Kind::kReadOnly, lane, verb(a) + " of the constant " + found->buffer.name);
      return;
    }
    a.place[lane] = reinterpret_cast<std::byte *>(address);
    good |= Mask{1} << lane;
    if (!found->constant) shadowed |= Mask{1} << lane;
  });
  if (run.global_shadow != nullptr && shadowed != 0) {
    each_accessor(w, i, a, shadowed, [&](Mask same, const Accessor &who) {
      const uint64_t address = a.address[__builtin_ctz(same)];
      const Clocks &clocks = *w.block->clocks;
      const Conflict c = a.use == Use::kRead ? run.global_shadow->read(clocks, w.block->number, who, address, a.bytes)
                                             : run.global_shadow->write(clocks, w.block->number, who, address, a.bytes);
      const int lane = lane_against(w, same, c);
      if (c && !same_bytes(w, a, lane, c)) report_conflict(w, lane, verb(a), run.buffers.describe(address), c);
    });
  }
  if (a.use == Use::kWrite) ++run.changes;
  if (!run.options.traffic || buffer == nullptr) return good;
  if (one_buffer) {
    if (!buffer->constant) count_traffic(*buffer, a, good, in_row && good == kAllLanes);
  } else {
    for (Mask rest = good; rest != 0;) {
      TrackedBuffer *first = run.buffers.find(a.address[__builtin_ctz(rest)], bytes);
      Mask same = 0;
      each_lane(rest, [&](int lane) { same |= Mask{run.buffers.find(a.address[lane], bytes) == first} << lane; });
      if (!first->constant) count_traffic(*first, a, same, false);
      rest &= ~same;
    }
  }
  return good;
}

Mask local(Warp &w, Access &a, Mask lanes) {
  Mask good = 0;
  each_lane(lanes, [&](int lane) {
    if (!fits(a.address[lane], static_cast<uint64_t>(a.bytes), w.local_bytes)) {
      w.run->report(w, Kind::kOutOfBounds, lane,
                    verb(a) + " at local memory + " + std::to_string(a.address[lane]) + ", which has " +
                        std::to_string(w.local_bytes) + " bytes");
      return;
    }
    if (!aligned(a, lane)) {
      return report_misaligned(w, a, lane, "local memory + " + std::to_string(a.address[lane]));
    }
    a.place[lane] = w.local + static_cast<size_t>(lane) * w.local_bytes + a.address[lane];
    good |= Mask{1} << lane;
  });
  return good;
}

Mask parameters(Warp &w, Access &a, Mask lanes) {
  Run &run = *w.run;
  Mask good = 0;
  each_lane(lanes, [&](int lane) {
    if (a.use != Use::kRead) {
      run.report(w, Kind::kReadOnly, lane, verb(a) + " of a kernel parameter");
    } else if (!fits(a.address[lane], static_cast<uint64_t>(a.bytes), run.kernel.parameter_bytes)) {
      run.report(w, Kind::kOutOfBounds, lane, verb(a) + " beyond the kernel's parameters");
    } else {
      a.place[lane] = run.parameters.data() + a.address[lane];
      good |= Mask{1} << lane;
    }
  });
  return good;
}

Mask in_space(Warp &w, const Instruction &i, Access &a, Mask lanes) {
  switch (a.space) {
    case Space::kShared:
      return shared(w, i, a, lanes);
    case Space::kLocal:
      return local(w, a, lanes);
    case Space::kParam:
      return parameters(w, a, lanes);
    default:
      return global(w, i, a, lanes);
  }
}

}  // namespace

void lane_addresses(const Warp &w, const Operand &base, int64_t offset, uint64_t *address) {
  if (base.bytes == 8) {
    const uint64_t *in = w.in<uint64_t>(base);
    for (int lane = 0; lane < kLanes; ++lane) address[lane] = in[lane] + static_cast<uint64_t>(offset);
  } else {
    const uint32_t *in = w.in<uint32_t>(base);
    for (int lane = 0; lane < kLanes; ++lane)
      address[lane] = static_cast<uint32_t>(in[lane] + static_cast<uint32_t>(offset));
  }
}

std::optional<uint32_t> shared_offset(Warp &w, const AddressOperand &a, int lane, uint64_t bytes, uint64_t align,
                                      const char *what) {
  uint64_t addresses[kLanes];
  lane_addresses(w, a.base, a.offset, addresses);
  uint64_t address = addresses[lane];
  if ((address & kWindowMask) == kSharedWindow) address &= ~kWindowMask;
  const uint64_t offset = address - kSharedStart;
  if (address < kSharedStart || !fits(offset, bytes, w.run->shared_bytes)) {
    w.run->report(w, Kind::kOutOfBounds, lane,
                  std::string(what) + " of " + std::to_string(bytes) + " bytes at address " + std::to_string(address) +
                      ", not in shared memory, which has " + std::to_string(w.run->shared_bytes) + " bytes from " +
                      std::to_string(kSharedStart));
    return std::nullopt;
  }
  if (address % align != 0) {
    w.run->report(w, Kind::kMisaligned, lane,
                  std::string(what) + " at shared memory + " + std::to_string(offset) + ", not a multiple of " +
                      std::to_string(align));
    return std::nullopt;
  }
  return static_cast<uint32_t>(offset);
}

void report_conflict(Warp &w, int lane, const std::string &access, const std::string &where, const Conflict &c) {
  // An agent of another block isn't known any more.
  const bool here = c.block == w.block->number;
  const int threads = static_cast<int>(w.block->warps.size()) * kLanes;
  const int thread = here ? w.block->clocks->owner(c.thread) : c.thread < threads ? c.thread : 0;
  const Run::Earlier earlier{c.pc, c.block, thread};
  switch (c.with) {
    case Conflict::With::kCopyInFlight:
      return w.run->report(w, Kind::kInFlight, lane,
                           access + " of " + where + " while a cp.async to it hasn't been waited for", earlier);
    case Conflict::With::kUnfenced:
      return w.run->report(w, Kind::kFence, lane,
                           access + " of " + where +
                               ", which a thread wrote without a fence.proxy.async between that and what orders this",
                           earlier);
    default:
      w.run->report(w, Kind::kRace, lane,
                    access + " of " + where + " isn't ordered after an earlier " +
                        (c.with == Conflict::With::kWrite ? "write" : "read"),
                    earlier);
  }
}

Mask checked(Warp &w, const Instruction &i, Access &a, Mask lanes) {
  if (a.space != Space::kGeneric) return in_space(w, i, a, lanes);
  // Almost always all lanes are in one space.
  Mask good = 0;
  while (lanes != 0) {
    const uint64_t window = a.address[__builtin_ctz(lanes)] & kWindowMask;
    Mask same = 0;
    each_lane(lanes, [&](int lane) { same |= Mask{(a.address[lane] & kWindowMask) == window} << lane; });
    lanes &= ~same;
    a.space = window == kSharedWindow  ? Space::kShared
              : window == kLocalWindow ? Space::kLocal
              : window == kParamWindow ? Space::kParam
                                       : Space::kGlobal;
    if (a.space != Space::kGlobal) each_lane(same, [&](int lane) { a.address[lane] &= ~kWindowMask; });
    good |= in_space(w, i, a, same);
  }
  return good;
}

namespace {
// Atomics order by the address of their place; shared memory of different blocks has different ones.
uint64_t key(const Access &a, int lane) { return reinterpret_cast<uint64_t>(a.place[lane]); }
}  // namespace

void order_before(Warp &w, const Instruction &i, const Access &a, Mask lanes) {
  w.watched = true;
  GlobalShadow *shadow = w.run->global_shadow.get();
  if (shadow == nullptr || !shadow->has_published()) return;
  uint64_t last = 0;
  Messages found;
  each_lane(lanes, [&](int lane) {
    if (key(a, lane) != last) found = shadow->published(key(a, lane), w.block->number);
    last = key(a, lane);
    w.block->clocks->find(w.thread(lane), found, i.acquire, i.scope);
  });
}

void order_after(Warp &w, const Instruction &i, const Access &a, Mask lanes) {
  GlobalShadow *shadow = w.run->global_shadow.get();
  if (shadow == nullptr) return;
  each_lane(lanes, [&](int lane) {
    const Messages sent = w.block->clocks->message(w.thread(lane), i.release, i.scope);
    shadow->publish(key(a, lane), w.block->number, sent);
  });
}

std::string text_at(Warp &w, uint64_t address) {
  std::string text;
  for (; text.size() < 200; ++address) {
    if (w.run->buffers.find(address, 1) == nullptr) break;
    const char c = *reinterpret_cast<const char *>(address);
    if (c == 0) break;
    text += c;
  }
  return text;
}

}  // namespace emulator
