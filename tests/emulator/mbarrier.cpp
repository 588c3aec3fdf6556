// mbarrier: arrivals, expected bytes, phases and waits. The object's 8 bytes are opaque; what they stand for is Mbarrier.
//
// A phase hands to those who wait for its end what the threads knew that arrived in it, and the bulk copies that
// completed in it. A waiter who asks for a parity gets the phase under way or the one before: the phase number, counted
// from 0, is all that matters.
#include <algorithm>
#include <cstdlib>

#include "access.h"
#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

constexpr int64_t kMostBytes = (1 << 20) - 1;  // of the tx-count
constexpr uint32_t kMostArrivals = (1 << 20) - 1;

std::string where(uint32_t offset) { return "the mbarrier at shared memory + " + std::to_string(offset); }

std::optional<uint32_t> place(Warp &w, const Instruction &i, int lane) {
  return shared_offset(w, {i.in[0], i.offset}, lane, kMbarrierBytes, kMbarrierBytes, "an mbarrier");
}

void end_phase_if_complete(Block &block, Mbarrier &m) {
  if (m.pending != 0 || m.bytes != 0) return;
  ++m.phase;
  m.pending = m.expected;
  ++block.run->changes;
  if (block.clocks == nullptr) return;
  std::vector<Clock> &clocks = m.arriving.clocks;
  clocks.resize(std::max(clocks.size(), static_cast<size_t>(m.agent) + 1), 0);
  clocks[static_cast<size_t>(m.agent)] = m.agent_clock++;
  m.passed.emplace(std::move(m.arriving));
  m.arriving = {};
}

void expect_bytes(Warp &w, int lane, uint32_t offset, Mbarrier &m, uint32_t bytes) {
  m.bytes += bytes;
  ++w.run->changes;
  if (m.bytes > kMostBytes) {
    w.run->report(
        w, Kind::kMbarrier, lane,
        where(offset) + " expects " + std::to_string(m.bytes) + " bytes, more than " + std::to_string(kMostBytes));
  }
}

void arrive_one(Warp &w, const Instruction &i, int lane, uint32_t offset, Mbarrier &m, uint32_t count) {
  if (count == 0 || count > m.pending) {
    w.run->report(w, Kind::kMbarrier, lane,
                  "arrival of " + std::to_string(count) + " at " + where(offset) + ", which waits for " +
                      std::to_string(m.pending) + " of " + std::to_string(m.expected));
    return;
  }
  if (i.release && w.block->clocks != nullptr) w.block->clocks->release(w.thread(0), Mask{1} << lane, m.arriving);
  m.pending -= count;
  ++w.run->changes;
  end_phase_if_complete(*w.block, m);
}

// in[0]: address, in[1]: arrivals.
void init(Warp &w, const Instruction &i, Mask mask) {
  Block &block = *w.block;
  each_lane(mask, [&](int lane) {
    const std::optional<uint32_t> offset = place(w, i, lane);
    if (!offset) return;
    const uint32_t count = w.in<uint32_t>(i.in[1])[lane];
    if (count == 0 || count > kMostArrivals)
      w.run->report(w, Kind::kMbarrier, lane, "an mbarrier for " + std::to_string(count) + " arrivals");
    if (block.mbarrier_in(*offset, kMbarrierBytes) != nullptr)
      w.run->report(w, Kind::kMbarrier, lane, "init of " + where(*offset) + ", which is one already");
    Mbarrier &m = block.mbarriers[*offset];
    m = {};
    m.expected = m.pending = count;
    m.thread = w.thread(lane);
    m.pc = w.pc;
    ++w.run->changes;
    if (w.run->options.uninitialised) std::fill_n(block.initialised.begin() + *offset, kMbarrierBytes, std::byte{1});
    if (block.clocks == nullptr) return;
    m.agent = block.clocks->add_agent(m.thread);
    m.clock = block.clocks->now(m.thread);
    m.agent_clock = 1;
    if (const Conflict c =
            block.shadow->write(*block.clocks, {m.thread, w.pc, Strength::kWeak}, *offset, kMbarrierBytes))
      report_conflict(w, lane, "init", where(*offset), c);
  });
}

// Calls action(lane, offset, mbarrier) for lanes whose address is that of an mbarrier.
template <class Action>
void each_mbarrier(Warp &w, const Instruction &i, Mask mask, Action action) {
  each_lane(mask, [&](int lane) {
    const std::optional<uint32_t> offset = place(w, i, lane);
    if (!offset) return;
    if (Mbarrier *m = find_mbarrier(w, lane, *offset)) action(lane, *offset, *m);
  });
}

void invalidate(Warp &w, const Instruction &i, Mask mask) {
  each_mbarrier(w, i, mask, [&](int, uint32_t offset, Mbarrier &) { w.block->mbarriers.erase(offset); });
}

enum Arrival : uint8_t { kPlain = 0, kExpect = 1, kDrop = 2 };

// A state: the number of the phase, and what was pending in it before the arrival.
uint64_t state_of(const Mbarrier &m) { return m.phase << 20 | m.pending; }

// in[1]: arrivals, or bytes to expect; out[0]: the state, if wanted.
void arrive(Warp &w, const Instruction &i, Mask mask) {
  each_mbarrier(w, i, mask, [&](int lane, uint32_t offset, Mbarrier &m) {
    const uint32_t value = i.in[1].given() ? w.in<uint32_t>(i.in[1])[lane] : 1;
    if (i.out[0].given()) w.out<uint64_t>(i.out[0])[lane] = state_of(m);
    if (i.mode & kExpect) expect_bytes(w, lane, offset, m, value);
    const uint32_t count = i.mode & kExpect ? 1 : value;
    if (i.mode & kDrop) m.expected -= std::min(count, m.expected);
    arrive_one(w, i, lane, offset, m, count);
  });
}

uint32_t pending_count(uint64_t state) { return static_cast<uint32_t>(state & kMostArrivals); }

void expect(Warp &w, const Instruction &i, Mask mask) {
  each_mbarrier(w, i, mask, [&](int lane, uint32_t offset, Mbarrier &m) {
    expect_bytes(w, lane, offset, m, w.in<uint32_t>(i.in[1])[lane]);
    end_phase_if_complete(*w.block, m);
  });
}

void complete(Warp &w, const Instruction &i, Mask mask) {
  each_mbarrier(w, i, mask,
                [&](int lane, uint32_t, Mbarrier &m) { complete_bytes(*w.block, m, w.in<uint32_t>(i.in[1])[lane]); });
}

// in[1]: parity (mode 1), or a state that arrive() gave; out[0]: whether that phase has ended.
void wait(Warp &w, const Instruction &i, Mask mask) {
  Mask ended = 0;
  each_mbarrier(w, i, mask, [&](int lane, uint32_t offset, Mbarrier &m) {
    bool done;
    if (i.mode != 0) {
      const uint32_t parity = w.in<uint32_t>(i.in[1])[lane];
      if (parity > 1)
        w.run->report(w, Kind::kMbarrier, lane, "parity " + std::to_string(parity) + " of " + where(offset));
      done = (m.phase & 1) != (parity & 1);
    } else {
      done = m.phase > w.in<uint64_t>(i.in[1])[lane] >> 20;
    }
    if (!done) return;
    ended |= Mask{1} << lane;
    m.waited = m.phase;
    if (i.acquire && w.block->clocks != nullptr && m.passed) {
      w.block->clocks->see(w.thread(0), Mask{1} << lane, *m.passed);
    }
  });
  write_predicate(w, i.out[0], ended, mask);
  w.failed = (mask & ~ended) != 0;
}

// All earlier cp.async of the lane have landed when it arrives. mode 1: .noinc; else pending arrivals stay as they were.
void arrive_after_copies(Warp &w, const Instruction &i, Mask mask) {
  land_copies(w, mask, Landing::kAll, 0);
  each_mbarrier(w, i, mask, [&](int lane, uint32_t offset, Mbarrier &m) {
    if (i.mode == 0) ++m.pending;
    arrive_one(w, i, lane, offset, m, 1);
  });
}

// ---- Text

void take_common(Builder &b) {
  const bool relaxed = b.take("relaxed");
  b.result.release = b.result.acquire = !relaxed;
  b.take("release");
  b.take("acquire");
  b.take_scope();
  b.take_one({"shared", "shared::cta", "shared::cluster"});
  b.take("b64");
}

constexpr Type kWord{Type::kUnsigned, 32}, kState{Type::kBits, 64};

void decode_with_value(Builder &b, Handler run) {
  take_common(b);
  b.expect(2, 2);
  b.address(0);
  b.result.in[1] = b.source(1, kWord);
  b.result.run = run;
}

void decode_arrive(Builder &b, uint8_t mode) {
  Instruction &r = b.result;
  if (b.take("expect_tx")) mode |= kExpect;
  b.take("noComplete");
  take_common(b);
  r.mode = mode;
  b.expect(1, 3);
  size_t at = 0;
  if (b.arg(0).kind != Arg::kAddress) {
    if (b.arg(0).kind != Arg::kSink) r.out[0] = b.target(0, kState);
    at = 1;
  }
  b.address(at);
  if (b.args.size() > at + 1) r.in[1] = b.source(at + 1, kWord);
  if (mode & kExpect && !r.in[1].given()) b.fail("no number of bytes");
  r.run = arrive;
}

// Both may fail; try_wait only gives the hardware leave to wait a while first.
void decode_wait(Builder &b) {
  Instruction &r = b.result;
  const bool parity = b.take("parity");
  take_common(b);
  b.expect(3, 4);
  bool negated;
  r.out[0] = b.predicate(b.arg(0), negated);
  b.address(1);
  r.in[1] = b.source(2, parity ? kWord : kState);
  r.mode = parity;
  r.control = Control::kPoll;
  r.run = wait;
}

}  // namespace

void complete_bytes(Block &block, Mbarrier &m, int64_t bytes) {
  m.bytes -= bytes;
  ++block.run->changes;
  end_phase_if_complete(block, m);
}

Mbarrier *find_mbarrier(Warp &w, int lane, uint32_t offset) {
  Block &block = *w.block;
  const auto found = block.mbarriers.find(offset);
  if (found == block.mbarriers.end()) {
    w.run->report(w, Kind::kMbarrier, lane, where(offset) + " is none: nothing has initialised it");
    return nullptr;
  }
  Mbarrier &m = found->second;
  if (block.clocks != nullptr && !block.clocks->ordered(m.thread, m.clock, w.thread(lane))) {
    w.run->report(w, Kind::kRace, lane, "use of " + where(offset) + " isn't ordered after its init",
                  {m.pc, block.number, m.thread});
  }
  return &m;
}

std::vector<Opcode> mbarrier_opcodes() {
  return {
      {"mbarrier.init", [](Builder &b) { decode_with_value(b, init); }},
      {"mbarrier.inval",
       [](Builder &b) {
         take_common(b);
         b.expect(1, 1);
         b.address(0);
         b.result.run = invalidate;
       }},
      {"mbarrier.arrive", [](Builder &b) { decode_arrive(b, kPlain); }},
      {"mbarrier.arrive_drop", [](Builder &b) { decode_arrive(b, kDrop); }},
      {"mbarrier.expect_tx", [](Builder &b) { decode_with_value(b, expect); }},
      {"mbarrier.complete_tx", [](Builder &b) { decode_with_value(b, complete); }},
      {"mbarrier.pending_count",
       [](Builder &b) {
         b.take("b64");
         b.expect(2, 2);
         b.result.out[0] = b.target(0, kWord);
         b.result.in[0] = b.source(1, kState);
         b.result.run = lanes<pending_count>;
       }},
      {"mbarrier.test_wait", decode_wait},
      {"mbarrier.try_wait", decode_wait},
      {"cp.async.mbarrier.arrive",
       [](Builder &b) {
         b.result.mode = b.take("noinc");
         take_common(b);
         b.expect(1, 1);
         b.address(0);
         b.result.run = arrive_after_copies;
       }},
  };
}

}  // namespace emulator
