#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "lanes.h"

namespace emulator {

namespace {

// Warp instructions in a turn. Long, so that a warp stays in the cache; a spinning one gives up after one turn.
constexpr uint64_t kTurn = 4096;
// In random order, up to this many, to mix warps finely.
constexpr uint64_t kRandomTurn = 200;
// Turns of a block that waits for another one and meanwhile changes something, as with a barrier in the loop.
constexpr uint64_t kTurnsOfWaiting = 256;
// Rounds of a loop with strong loads or atomics while other lanes of the warp wait behind it, before those get a turn.
constexpr uint32_t kPatience = 64;

uint64_t threads_of(Dim3 d) { return uint64_t{d.x} * d.y * d.z; }

std::byte *aligned(std::vector<std::byte> &storage, size_t bytes) {
  constexpr size_t kAlign = 64;
  storage.resize(bytes + kAlign);
  const auto at = reinterpret_cast<uintptr_t>(storage.data());
  return storage.data() + (kAlign - at % kAlign) % kAlign;
}

}  // namespace

Scheduler::Scheduler(Run &run) : run_(run) {}

// ---- Blocks

std::unique_ptr<Block> Scheduler::start(uint64_t number) {
  std::unique_ptr<Block> block;
  if (spare_.empty()) {
    block = std::make_unique<Block>();
  } else {
    block = std::move(spare_.back());
    spare_.pop_back();
  }
  const Kernel &kernel = run_.kernel;
  const auto threads = static_cast<size_t>(threads_of(run_.block));
  const size_t warps = (threads + kLanes - 1) / kLanes;
  block->run = &run_;
  block->number = number;
  block->index = run_.block_index(number);
  block->ended = 0;
  block->shared.assign(run_.shared_bytes, std::byte{0xff});
  block->initialised.assign(run_.shared_bytes, std::byte{0});
  for (Barrier &barrier : block->barriers) barrier = {};
  block->mbarriers.clear();
  block->bulk.clear();
  block->bulk_groups.clear();
  block->warpgroups.assign((warps + 3) / 4, {});
  if (run_.options.races) {
    block->clocks = std::make_unique<Clocks>(number, static_cast<int>(warps * kLanes));
    if (block->shadow == nullptr) block->shadow = std::make_unique<SharedShadow>();
    block->shadow->reset(run_.shared_bytes);
  }
  std::byte *registers = aligned(block->registers, warps * kernel.register_bytes);
  std::memset(registers, 0xff, warps * kernel.register_bytes);
  const size_t local_bytes = warps * kLanes * kernel.local_bytes;
  std::byte *local = aligned(block->local, local_bytes);
  std::memset(local, 0xff, local_bytes);

  block->warps.assign(warps, {});
  for (size_t k = 0; k < warps; ++k) {
    Warp &warp = block->warps[k];
    warp.bank[0] = registers + k * kernel.register_bytes;
    warp.local = local + k * kLanes * kernel.local_bytes;
    start_warp(*block, static_cast<int>(k));
  }
  return block;
}

void Scheduler::start_warp(Block &block, int index) {
  Warp &w = block.warps[static_cast<size_t>(index)];
  const auto threads = static_cast<int>(threads_of(run_.block));
  w.bank[1] = run_.literals.data();
  w.block = &block;
  w.run = &run_;
  w.index = index;
  w.local_bytes = run_.kernel.local_bytes;
  const int lanes = std::min(threads - index * kLanes, kLanes);
  w.live = lanes == kLanes ? kAllLanes : (Mask{1} << lanes) - 1;
  w.groups.push_back({0, w.live, false});

  const auto fill = [&](Special special, auto value) {
    auto *out = reinterpret_cast<decltype(value(0)) *>(w.bank[0] + special_offset(special));
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = value(lane);
  };
  const auto all = [&](Special special, uint32_t value) { fill(special, [&](int) { return value; }); };
  fill(kTidX, [&](int lane) { return run_.thread_index(w.thread(lane)).x; });
  fill(kTidY, [&](int lane) { return run_.thread_index(w.thread(lane)).y; });
  fill(kTidZ, [&](int lane) { return run_.thread_index(w.thread(lane)).z; });
  all(kNtidX, run_.block.x);
  all(kNtidY, run_.block.y);
  all(kNtidZ, run_.block.z);
  all(kCtaidX, block.index.x);
  all(kCtaidY, block.index.y);
  all(kCtaidZ, block.index.z);
  all(kNctaidX, run_.grid.x);
  all(kNctaidY, run_.grid.y);
  all(kNctaidZ, run_.grid.z);
  all(kWarpId, static_cast<uint32_t>(index));
  all(kNwarpId, static_cast<uint32_t>(block.warps.size()));
  all(kSmId, 0);
  all(kNsmId, 1);
  all(kZero, 0);
  all(kOne, 1);
  all(kClock, 0);
  all(kDynamicSharedBytes, static_cast<uint32_t>(run_.shared_bytes - run_.kernel.static_shared_bytes));
  all(kTotalSharedBytes, static_cast<uint32_t>(run_.shared_bytes));
  fill(kLaneId, [](int lane) { return static_cast<uint32_t>(lane); });
  fill(kMaskEq, [](int lane) { return Mask{1} << lane; });
  fill(kMaskLt, [](int lane) { return (Mask{1} << lane) - 1; });
  fill(kMaskLe, [](int lane) { return ((Mask{1} << lane) - 1) | Mask{1} << lane; });
  fill(kMaskGe, [](int lane) { return ~((Mask{1} << lane) - 1); });
  fill(kMaskGt, [](int lane) { return ~(((Mask{1} << lane) - 1) | Mask{1} << lane); });
  fill(kGridId, [](int) { return uint64_t{0}; });
  fill(kClock64, [](int) { return uint64_t{0}; });
}

void Scheduler::run() {
  const uint64_t total = threads_of(run_.grid);
  std::vector<uint64_t> order(total);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (run_.options.order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (run_.options.order == Order::kRandom) {
    for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[run_.random() % k]);
  }
  size_t next = 0;
  int rounds_without_change = 0;
  while (next < order.size() || !resident_.empty()) {
    if (resident_.empty()) resident_.push_back(start(order[next++]));
    const uint64_t before = run_.changes;
    for (size_t k = 0; k < resident_.size();) {
      if (visit(*resident_[k])) {
        ++run_.changes;
        spare_.push_back(std::move(resident_[k]));
        resident_.erase(resident_.begin() + static_cast<ptrdiff_t>(k));
      } else {
        ++k;
      }
    }
    if (resident_.empty()) continue;
    // All of them wait for somebody: another block, if there is one.
    rounds_without_change = run_.changes == before ? rounds_without_change + 1 : 0;
    if (next < order.size() && resident_.size() < run_.options.max_resident_blocks) {
      resident_.push_back(start(order[next++]));
    } else if (rounds_without_change > 2) {
      deadlock(*resident_.front());
    }
  }
}

Warp *Scheduler::choose(Block &block, const Warp *last) {
  const size_t count = block.warps.size();
  const bool reverse = run_.options.order == Order::kReverse;
  size_t first = last == nullptr ? (reverse ? count - 1 : 0)
                                 : (static_cast<size_t>(last->index) + (reverse ? count - 1 : 1)) % count;
  if (run_.options.order == Order::kRandom) first = run_.random() % count;
  for (size_t k = 0; k < count; ++k) {
    Warp &warp = block.warps[(first + (reverse ? count - k : k)) % count];
    if (warp.state == State::kReady) return &warp;
  }
  return nullptr;
}

bool Scheduler::visit(Block &block) {
  size_t idle = 0;  // turns in a row that changed nothing and looked at something that others may change
  uint64_t turns = 0;
  Warp *warp = nullptr;
  while (block.ended < block.warps.size()) {
    warp = choose(block, warp);
    if (warp == nullptr) deadlock(block);
    const uint64_t before = run_.changes;
    warp->watched = warp->failed = false;
    turn(*warp, run_.options.order == Order::kRandom ? 1 + run_.random() % kRandomTurn : kTurn);
    ++turns;
    const bool changed = run_.changes != before || run_.changes != warp->changes_at_failure;
    if (!warp->failed || changed)
      warp->failures = 0;
    else if (warp->pc <= warp->failed_pc)  // otherwise it has gone on, without a loop
      ++warp->failures;
    warp->failed_pc = warp->pc;
    warp->changes_at_failure = run_.changes;
    if (warp->failures != 0 && stuck(block)) {
      // Bulk copies that are under way arrive when nothing else goes on; or there is nothing that could.
      if (!land_one(block)) deadlock(block);
    } else if (run_.options.copies == Copies::kRandom && !block.bulk.empty() && run_.random() % 16 == 0) {
      land_one(block);
    }
    idle = warp->watched && run_.changes == before ? idle + 1 : 0;
    if (idle > 4 * block.warps.size()) return false;
    // Whoever changes something while waiting is given time, but not for ever.
    if (warp->watched && turns % kTurnsOfWaiting == 0) return false;
  }
  return true;
}

// Whether all that could run waits for mbarriers or wgmma of the block itself, and nothing has changed since it looked.
bool Scheduler::stuck(const Block &block) const {
  return std::all_of(block.warps.begin(), block.warps.end(), [&](const Warp &w) {
    if (w.state != State::kReady) return true;
    const auto groups = static_cast<uint32_t>(
        std::count_if(w.groups.begin(), w.groups.end(), [](const Group &group) { return !group.parked; }));
    // Groups of lanes take turns at waiting, and so may the waits of one loop.
    constexpr uint32_t kRounds = 4;
    return !w.watched && w.changes_at_failure == run_.changes && w.failures >= kRounds * groups;
  });
}

bool Scheduler::land_one(Block &block) {
  for (size_t k = 0; k < block.bulk.size(); ++k) {
    const size_t at = run_.options.copies == Copies::kRandom ? run_.random() % block.bulk.size() : k;
    if (block.bulk[at].shape->direction != BulkShape::kLoad) continue;  // those end at their waits
    land_bulk_copy(block, at);
    return true;
  }
  return false;
}

// ---- Groups of lanes

// By descending pc, merged where equal. A merged group tries again what it was parked for.
void Scheduler::arrange(Warp &w) {
  auto &groups = w.groups;
  std::sort(groups.begin(), groups.end(), [](const Group &a, const Group &b) { return a.pc > b.pc; });
  size_t kept = 0;
  for (size_t k = 0; k < groups.size(); ++k) {
    if (groups[k].lanes == 0) continue;
    if (kept > 0 && groups[kept - 1].pc == groups[k].pc) {
      groups[kept - 1].lanes |= groups[k].lanes;
      groups[kept - 1].parked = false;
    } else {
      groups[kept++] = groups[k];
    }
  }
  groups.resize(kept);
}

void Scheduler::turn(Warp &w, uint64_t instructions) {
  uint64_t budget = instructions;
  while (w.state == State::kReady && budget > 0) {
    size_t at = w.groups.size();
    while (at > 0 && w.groups[at - 1].parked) --at;
    if (at == 0) never_together(w);
    --at;
    if (w.rounds > kPatience && at > 0) {
      // Maybe the lanes of the loop wait for those behind it.
      w.rounds = 0;
      for (size_t k = at; k-- > 0;) {
        if (!w.groups[k].parked) {
          at = k;
          break;
        }
      }
    }
    if (!run_group(w, at, budget)) break;
  }
  run_.instructions += instructions - budget;
  if (run_.options.max_instructions != 0 && run_.instructions > run_.options.max_instructions) {
    run_.stop(w, Kind::kTimeout, __builtin_ctz(w.live | Mask{1} << 31),
              "more than " + std::to_string(run_.options.max_instructions) + " instructions");
  }
}

bool Scheduler::run_group(Warp &w, size_t at, uint64_t &budget) {
  const Instruction *code = run_.kernel.code.data();
  uint64_t *executed = run_.counters.executed.data();
  const uint32_t meeting = at > 0 ? w.groups[at - 1].pc : ~0u;
  const Mask lanes = w.groups[at].lanes;
  uint32_t pc = w.groups[at].pc;
  const auto leave = [&] {
    w.groups[at].pc = pc;
    arrange(w);
    return true;
  };
  for (;;) {
    const Instruction &i = code[pc];
    Mask active = lanes;
    if (i.guard.given()) active &= w.predicate(i.guard, i.guard_negated);
    if (active != 0 || i.control == Control::kBranch) {
      ++executed[pc];
      run_.counters.lanes += static_cast<uint64_t>(__builtin_popcount(lanes));
    }
    w.pc = pc;
    --budget;
    if (i.touches_matrix_register && active != 0 && run_.options.races) touch_matrix_registers(w, i, active);
    switch (i.control) {
      case Control::kNone:
        if (active != 0) i.run(w, i, active);
        ++pc;
        break;
      case Control::kBranch: {
        if (active == 0) {
          ++pc;
          break;
        }
        const bool backward = i.target <= pc;
        if (active != lanes) {
          w.groups.push_back({i.target, active, false});
          w.groups[at].lanes &= ~active;
          ++pc;
          return leave();
        }
        pc = i.target;
        if (w.groups.size() > 1) {
          if (backward && w.watched) ++w.rounds;
          if (w.rounds > kPatience || !backward || at + 1 < w.groups.size()) return leave();
        }
        break;
      }
      case Control::kTable:
        if (active == 0) {
          ++pc;
          break;
        }
        return branch_table(w, at, i, active);
      case Control::kExit:
        if (active == 0) {
          ++pc;
          break;
        }
        w.groups[at].pc = pc + 1;
        end_lanes(w, at, active);
        return w.state == State::kReady;
      case Control::kTogether: {
        const Mask waiting = active == 0 ? 0 : run_together(w, i, active);
        if (waiting != 0) {
          w.groups.push_back({pc, waiting, true});
          w.groups[at].lanes &= ~waiting;
          ++pc;
          return leave();
        }
        ++pc;
        break;
      }
      case Control::kBarrier:
        if (active == 0) {
          ++pc;
          break;
        }
        if (active != w.live) {
          w.groups.push_back({pc, active, true});
          w.groups[at].lanes &= ~active;
          ++pc;
          return leave();
        }
        w.groups[at].pc = pc + 1;
        arrive(w, i, active);
        if (w.state != State::kReady) return false;
        ++pc;
        break;
      case Control::kPoll:
        if (active != 0) i.run(w, i, active);
        ++pc;
        if (active != 0 && w.failed) {
          w.rounds = w.groups.size() > 1 ? kPatience + 1 : 0;
          leave();
          return false;
        }
        break;
      case Control::kAwait:
        if (active == 0) {
          ++pc;
          break;
        }
        if ((w.live & ~active) != 0) {
          w.groups.push_back({pc, active, true});
          w.groups[at].lanes &= ~active;
          ++pc;
          return leave();
        }
        i.run(w, i, active);
        if (w.failed) {
          --executed[pc];  // it counts when it returns
          leave();
          return false;
        }
        ++pc;
        break;
      case Control::kYield:
        w.watched = true;
        ++pc;
        leave();
        return false;
    }
    if (pc == meeting) return leave();
    if (budget == 0) {
      leave();
      return false;
    }
  }
}

bool Scheduler::branch_table(Warp &w, size_t at, const Instruction &i, Mask lanes) {
  const std::vector<uint32_t> &table = run_.kernel.tables[i.target];
  const uint32_t *index = w.in<uint32_t>(i.in[0]);
  const uint32_t pc = w.pc;
  each_lane(lanes, [&](int lane) {
    if (index[lane] >= table.size()) run_.stop(w, Kind::kOutOfBounds, lane, "brx.idx beyond its table");
    w.groups.push_back({table[index[lane]], Mask{1} << lane, false});
  });
  w.groups[at].lanes &= ~lanes;
  w.groups[at].pc = pc + 1;
  arrange(w);
  return true;
}

void Scheduler::end_lanes(Warp &w, size_t at, Mask ending) {
  w.groups[at].lanes &= ~ending;
  each_lane(ending, [&](int lane) { end_of_thread(w, lane); });
  if (!w.matrix_in_flight.empty() && (w.live & ~ending) == 0) {
    run_.report(w, Kind::kInFlight, __builtin_ctz(ending), "the warp ends, and nothing has waited for its wgmma",
                {w.matrix_in_flight.front().second, w.block->number, w.thread(__builtin_ctz(ending))});
  }
  w.live &= ~ending;
  land_copies(w, ending, Landing::kAll, 0);
  for (Group &group : w.groups) group.parked = false;  // perhaps they waited for these
  arrange(w);
  if (w.live != 0) return;
  w.state = State::kEnded;
  ++w.block->ended;
  ++run_.changes;
  if (w.block->ended == w.block->warps.size()) end_of_block(w);
  for (Barrier &barrier : w.block->barriers) {
    if (barrier.in_use && barrier.expected == 0) complete_if_full(*w.block, barrier);
  }
}

Mask Scheduler::run_together(Warp &w, const Instruction &i, Mask lanes) {
  if (!i.members.given()) {
    if ((w.live & ~lanes) != 0) return lanes;
    i.run(w, i, lanes);
    return 0;
  }
  const Mask *members = w.in<Mask>(i.members);
  Mask waiting = 0;
  for (Mask rest = lanes; rest != 0;) {
    // Lanes that name the same members, which may be a part of those here.
    const int first = __builtin_ctz(rest);
    const Mask named = members[first];
    Mask same = 0;
    each_lane(rest, [&](int lane) { same |= Mask{members[lane] == named} << lane; });
    rest &= ~same;
    if ((same & ~named) != 0) {
      run_.stop(w, Kind::kBarrier, __builtin_ctz(same & ~named), "a lane isn't in its own member mask");
    }
    if ((named & w.live & ~same) != 0)
      waiting |= same;
    else
      i.run(w, i, same);
  }
  return waiting;
}

// ---- Barriers

void Scheduler::arrive(Warp &w, const Instruction &i, Mask lanes) {
  Block &block = *w.block;
  const int first = __builtin_ctz(lanes);
  const uint32_t number = w.in<uint32_t>(i.in[0])[first];
  const uint32_t threads = i.in[1].given() ? w.in<uint32_t>(i.in[1])[first] : 0;
  if (number >= block.barriers.size())
    run_.stop(w, Kind::kBarrier, first, "there are 16 barriers, not number " + std::to_string(number));
  if (threads % kLanes != 0)
    run_.stop(w, Kind::kBarrier, first, "a barrier counts whole warps, not " + std::to_string(threads) + " threads");
  Barrier &barrier = block.barriers[number];
  if (barrier.in_use && barrier.expected != threads) {
    run_.stop(w, Kind::kBarrier, first,
              "barrier " + std::to_string(number) + " waits for " + std::to_string(barrier.expected) +
                  " threads already, not for " + std::to_string(threads));
  }
  barrier.in_use = true;
  barrier.expected = threads;
  barrier.arrived += kLanes;
  if (block.clocks != nullptr) block.clocks->release(w.thread(0), lanes, barrier.pending);
  const auto mode = static_cast<BarrierMode>(i.mode);
  if (mode >= BarrierMode::kPopc) {
    barrier.lanes += static_cast<uint32_t>(__builtin_popcount(lanes));
    barrier.true_lanes += static_cast<uint32_t>(__builtin_popcount(w.predicate(i.in[2], i.negated[2]) & lanes));
  }
  if (mode != BarrierMode::kArrive) {
    barrier.waiting.push_back(&w);
    w.state = State::kAtBarrier;
  }
  complete_if_full(block, barrier);
}

void Scheduler::complete_if_full(Block &block, Barrier &barrier) {
  const auto warps = static_cast<uint32_t>(block.warps.size() - block.ended);
  const uint32_t needed = barrier.expected != 0 ? barrier.expected : warps * kLanes;
  if (barrier.arrived < needed) return;
  const Handed handed(std::move(barrier.pending));
  for (Warp *w : barrier.waiting) {
    if (block.clocks != nullptr) block.clocks->acquire(w->thread(0), w->live, handed);
    const Instruction &i = run_.kernel.code[w->pc];
    switch (static_cast<BarrierMode>(i.mode)) {
      case BarrierMode::kPopc:
        each_lane(w->live, [&](int lane) { w->out<uint32_t>(i.out[0])[lane] = barrier.true_lanes; });
        break;
      case BarrierMode::kAnd:
        write_predicate(*w, i.out[0], barrier.true_lanes == barrier.lanes ? kAllLanes : 0, w->live);
        break;
      case BarrierMode::kOr:
        write_predicate(*w, i.out[0], barrier.true_lanes != 0 ? kAllLanes : 0, w->live);
        break;
      default:
        break;
    }
    w->state = State::kReady;
  }
  barrier = {};
  ++run_.counters.barriers;
  ++run_.changes;
}

// ---- Failures

void Scheduler::never_together(Warp &w) {
  std::string where;
  for (const Group &group : w.groups) {
    char lanes[16];
    std::snprintf(lanes, sizeof lanes, "0x%08x", group.lanes);
    where += std::string(where.empty() ? "" : ", ") + "lanes " + lanes + " at " + run_.line(group.pc).text();
  }
  w.pc = w.groups.back().pc;
  run_.stop(w, Kind::kBarrier, __builtin_ctz(w.groups.back().lanes), "not all lanes that it needs come here: " + where);
}

void Scheduler::deadlock(const Block &block) {
  std::string where;
  const Warp *first = nullptr;
  for (const Warp &w : block.warps) {
    if (w.state == State::kEnded) continue;
    if (first == nullptr) first = &w;
    where += "; warp " + std::to_string(w.index) + (w.state == State::kAtBarrier ? " waits at " : " spins at ") +
             run_.line(w.pc).text() + " " + run_.kernel.texts[w.pc];
  }
  for (const auto &[offset, m] : block.mbarriers) {
    where += "; mbarrier at shared memory + " + std::to_string(offset) + " (init at " + run_.line(m.pc).text() +
             ") in phase " + std::to_string(m.phase) + " waits for " + std::to_string(m.pending) + " of " +
             std::to_string(m.expected) + " arrivals and " + std::to_string(m.bytes) + " bytes";
  }
  run_.stop(*first, Kind::kDeadlock, __builtin_ctz(first->live), "no warp of the block can go on" + where);
}

void run_blocks(Run &run) { Scheduler(run).run(); }

}  // namespace emulator
