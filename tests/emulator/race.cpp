#include "race.h"

#include <algorithm>
#include <utility>

namespace emulator {

namespace {

size_t at(int thread) { return static_cast<size_t>(thread); }

void raise(std::vector<Clock> &to, const std::vector<Clock> &from) {
  if (to.size() < from.size()) to.resize(from.size(), 0);
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

// Adds what others published, without changing it for those who have it already.
void add(Published &to, const Published &from) {
  if (from == nullptr || from == to) return;
  if (to == nullptr) {
    to = from;
    return;
  }
  auto sum = std::make_shared<Snapshot>(*to);
  for (const auto &[block, known] : *from) {
    Known &entry = (*sum)[block];
    if (entry == nullptr) {
      entry = known;
    } else if (entry != known) {
      auto clocks = *entry;
      raise(clocks, *known);
      entry = std::make_shared<const std::vector<Clock>>(std::move(clocks));
    }
  }
  to = std::move(sum);
}

// Whether two accesses are strong enough for each other, so that they don't race.
bool both(Strength a, Strength b, Strength enough) { return a >= enough && b >= enough; }
Strength between(uint64_t block, uint64_t other) { return block == other ? Strength::kBlock : Strength::kDevice; }

template <class Visit>
void each_lane(Mask lanes, Visit visit) {
  for (; lanes != 0; lanes &= lanes - 1) visit(__builtin_ctz(lanes));
}

}  // namespace

// ---- Clocks

Handed::Handed(Knowledge &&all)
    : known(std::make_shared<const std::vector<Clock>>(std::move(all.clocks))),
      fenced(std::move(all.fenced)),
      found(std::move(all.found)) {}

Clocks::Clocks(uint64_t block, int threads)
    : block_(block),
      own_(at(threads), 1),
      known_(at(threads) + 1, std::make_shared<const std::vector<Clock>>(at(threads), 0)),
      owners_(1, 0),
      proxy_(at(threads)),
      published_(at(threads)),
      found_(at(threads)),
      published_far_(at(threads)),
      found_far_(at(threads)),
      fenced_(at(threads)),
      found_fenced_(at(threads)) {}

bool Clocks::ordered(uint64_t block, int earlier, Clock clock, int viewer) const {
  if (block == block_) return ordered(earlier, clock, viewer);
  for (const Taken &taken : taken_) {
    const auto found = taken.what->find(block);
    if (found == taken.what->end() || at(earlier) >= found->second->size() || (*found->second)[at(earlier)] < clock) {
      continue;
    }
    if (knows(taken, viewer)) return true;
  }
  return false;
}

bool Clocks::knows(const Taken &taken, int viewer) const {
  if (taken.by[at(viewer)] != 0) return true;
  const std::vector<Clock> &known = *known_[at(viewer)];
  for (size_t t = 0; t < taken.by.size(); ++t)
    if (taken.by[t] != 0 && known[t] >= taken.by[t]) return true;
  return false;
}

void Clocks::release(int first_thread, Mask lanes, Knowledge &into) {
  into.clocks.resize(std::max(into.clocks.size(), own_.size()), 0);
  each_lane(lanes, [&](int lane) {
    const size_t t = at(first_thread + lane);
    if (known_[t] != into.merged) {
      raise(into.clocks, *known_[t]);
      into.merged = known_[t];
    }
  });
  each_lane(lanes, [&](int lane) {
    const size_t t = at(first_thread + lane);
    into.clocks[t] = std::max(into.clocks[t], own_[t]++);
    add(into.fenced, fenced_[t]);
    add(into.found, found_fenced_[t]);
  });
}

void Clocks::acquire(int first_thread, Mask lanes, const Handed &from) {
  // Whoever released into `from` knows nothing beyond it; others keep what they knew.
  const void *same = nullptr;
  Known raised;
  each_lane(lanes, [&](int lane) {
    const size_t t = at(first_thread + lane);
    Known &known = known_[t];
    if (known.get() != same) {
      same = known.get();
      auto sum = *known;
      raise(sum, *from.known);
      raised = sum == *from.known ? from.known : std::make_shared<const std::vector<Clock>>(std::move(sum));
    }
    known = raised;
    if (fenced_[t] != from.fenced) fenced_[t] = from.fenced;
    if (found_fenced_[t] != from.found) found_fenced_[t] = from.found;
  });
}

void Clocks::see(int first_thread, Mask lanes, const Handed &from) {
  const void *same = nullptr;
  Known raised;
  each_lane(lanes, [&](int lane) {
    const size_t t = at(first_thread + lane);
    Known &known = known_[t];
    if (known == from.known) return;
    if (known.get() != same) {
      same = known.get();
      auto sum = *known;
      raise(sum, *from.known);
      raised = sum == *known ? known : std::make_shared<const std::vector<Clock>>(std::move(sum));
    }
    known = raised;
    add(fenced_[t], from.fenced);
    add(found_fenced_[t], from.found);
  });
}

void Clocks::join(int first_thread, Mask lanes) {
  Knowledge all;
  release(first_thread, lanes, all);
  const Handed handed(std::move(all));
  each_lane(lanes, [&](int lane) {
    const size_t t = at(first_thread + lane);
    known_[t] = handed.known, fenced_[t] = handed.fenced, found_fenced_[t] = handed.found;
  });
}

Published Clocks::publish_now(int thread) {
  auto snapshot = std::make_shared<Snapshot>();
  auto &mine = (*snapshot)[block_];
  auto clocks = *known_[at(thread)];
  clocks[at(thread)] = own_[at(thread)]++;
  mine = std::make_shared<const std::vector<Clock>>(std::move(clocks));
  Published all = snapshot;
  for (const Taken &taken : taken_)  // what came from other blocks goes on to further ones
    if (knows(taken, thread)) add(all, taken.what);
  return all;
}

void Clocks::fence(int thread, Fence kind, Scope scope) {
  const size_t t = at(thread);
  const bool far = scope == Scope::kDevice, sc = kind == Fence::kSc && far;
  if (kind != Fence::kRelease) {
    take_over(thread, std::exchange(found_[t], nullptr));
    if (far) take_over(thread, std::exchange(found_far_[t], nullptr));
    if (sc) take_over(thread, std::exchange(found_fenced_[t], nullptr));
  }
  if (kind == Fence::kAcquire) return;
  published_[t] = publish_now(thread);
  if (far) published_far_[t] = published_[t];
  if (sc) fenced_[t] = published_[t];
}

Messages Clocks::message(int thread, bool now, Scope scope) {
  const size_t t = at(thread);
  Messages all;
  all.block = {now ? publish_now(thread) : published_[t], fenced_[t]};
  if (scope == Scope::kDevice) all.device = {now ? all.block.released : published_far_[t], fenced_[t]};
  return all;
}

void Clocks::find(int thread, const Messages &messages, bool now, Scope scope) {
  const size_t t = at(thread);
  const auto one = [&](const Message &message, Published &found) {
    if (now)
      take_over(thread, message.released);
    else
      add(found, message.released);
    add(found_fenced_[t], message.fenced);
  };
  one(messages.block, found_[t]);
  if (scope == Scope::kDevice) one(messages.device, found_far_[t]);
}

void Clocks::take_over(int thread, const Published &what) {
  if (what == nullptr) return;
  const auto mine = what->find(block_);
  if (mine != what->end()) {
    auto sum = *known_[at(thread)];
    raise(sum, *mine->second);
    known_[at(thread)] = std::make_shared<const std::vector<Clock>>(std::move(sum));
  }
  if (what->size() == (mine != what->end() ? 1u : 0u)) return;
  const auto same =
      std::find_if(taken_.rbegin(), taken_.rend(), [&](const Taken &taken) { return taken.what == what; });
  Taken &taken = same != taken_.rend() ? *same : taken_.emplace_back(Taken{what, std::vector<Clock>(own_.size(), 0)});
  if (Clock &clock = taken.by[at(thread)]; clock == 0) clock = own_[at(thread)];
}

// ---- Agents

int Clocks::add_agent(int owner) {
  owners_.push_back(owner);
  return static_cast<int>(own_.size() + owners_.size()) - 1;
}

void Clocks::learn(int first_thread, Mask lanes, int agent, Clock clock) {
  const void *same = nullptr;
  Known raised;
  each_lane(lanes, [&](int lane) {
    Known &known = known_[at(first_thread + lane)];
    if (known.get() != same) {
      same = known.get();
      raised = known;
      if (at(agent) >= known->size() || (*known)[at(agent)] < clock) {
        auto more = *known;
        if (more.size() <= at(agent)) more.resize(at(agent) + 1, 0);
        more[at(agent)] = clock;
        raised = std::make_shared<const std::vector<Clock>>(std::move(more));
      }
    }
    known = raised;
  });
}

int Clocks::together(int first_thread, int threads) {
  std::vector<Clock> sum(own_.size(), 0);
  const void *same = nullptr;
  for (size_t t = at(first_thread); t < at(first_thread + threads); ++t) {
    if (known_[t].get() != same) raise(sum, *known_[t]);
    same = known_[t].get();
  }
  std::copy_n(own_.begin() + first_thread, threads, sum.begin() + first_thread);
  known_.back() = std::make_shared<const std::vector<Clock>>(std::move(sum));
  return this->threads();
}

void Clocks::fence_proxy(int thread, const Proxies &of) {
  for (const Proxy proxy : of) proxy_[at(thread)][static_cast<size_t>(proxy)].push_back(own_[at(thread)]);
  ++own_[at(thread)];  // so that what is ordered after the fence differs from what is ordered before it
}

bool Clocks::fenced(Proxy of, int writer, Clock clock, int viewer) const {
  const std::vector<Clock> &fences = proxy_[at(writer)][static_cast<size_t>(of)];
  const auto next = std::lower_bound(fences.begin(), fences.end(), clock);
  return next != fences.end() && ordered(writer, *next + 1, viewer);
}

// ---- Shared memory

// Whether nothing speaks against an access by the last write: the usual case, quickly.
inline bool SharedShadow::after_write(const Cell &cell, const Clocks &clocks, Accessor who) {
  if (who.agent >= 0 && cell.write_clock != 0 && cell.writer < clocks.threads()) return false;
  return !cell.in_flight && (cell.write_clock == 0 || clocks.ordered(cell.writer, cell.write_clock, who.thread) ||
                             both(cell.strength, who.strength, Strength::kBlock));
}

Conflict SharedShadow::against_write(const Cell &cell, const Clocks &clocks, Accessor who) {
  if (cell.in_flight) return {Conflict::With::kCopyInFlight, clocks.block(), cell.writer, cell.write_pc};
  if (cell.write_clock != 0 && !both(cell.strength, who.strength, Strength::kBlock) &&
      !clocks.ordered(cell.writer, cell.write_clock, who.thread)) {
    return {Conflict::With::kWrite, clocks.block(), cell.writer, cell.write_pc};
  }
  if (who.agent >= 0 && cell.write_clock != 0 && cell.writer < clocks.threads() &&
      !clocks.fenced(Proxy::kShared, cell.writer, cell.write_clock, who.thread)) {
    return {Conflict::With::kUnfenced, clocks.block(), cell.writer, cell.write_pc};
  }
  return {};
}

bool SharedShadow::before(const Reader &reader, const Clocks &clocks, int viewer, int *thread) {
  for (Mask rest = reader.lanes; rest != 0; rest &= rest - 1) {
    const int t = reader.warp * kLanes + __builtin_ctz(rest);
    if (clocks.ordered(t, reader.clock, viewer)) continue;
    if (thread != nullptr) *thread = t;
    return false;
  }
  return true;
}

void SharedShadow::add_reader(Cell &cell, const Clocks &clocks, Accessor who) {
  const auto warp = static_cast<uint16_t>(who.who() / kLanes);
  const Clock now = who.when(clocks);
  const Mask lane = Mask{1} << who.who() % kLanes;
  const auto same = [&](const Reader &r) { return r.warp == warp && r.clock == now && r.strength == who.strength; };
  Reader &last = cell.reader;
  if (last.lanes != 0 && (cell.more != 0 || !before(last, clocks, who.thread))) {
    if (cell.more == 0) {
      more_.emplace_back();
      cell.more = static_cast<uint32_t>(more_.size());
    }
    std::vector<Reader> &more = more_[cell.more - 1];
    for (Reader &reader : more) {
      if (!same(reader)) continue;
      reader.lanes |= lane;
      reader.pc = who.pc;
      return;
    }
    more.erase(std::remove_if(more.begin(), more.end(), [&](const Reader &r) { return before(r, clocks, who.thread); }),
               more.end());
    if (!before(last, clocks, who.thread)) more.push_back(last);
  }
  last = {lane, now, who.pc, warp, who.strength};
}

void SharedShadow::refine(int bytes) {
  const int parts = cell_bytes_ / bytes;
  std::vector<Cell> finer(cells_.size() * static_cast<size_t>(parts));
  for (size_t i = 0; i < finer.size(); ++i) {
    Cell &cell = finer[i] = cells_[i / static_cast<size_t>(parts)];
    if (cell.more == 0 || i % static_cast<size_t>(parts) == 0) continue;
    more_.push_back(more_[cell.more - 1]);
    cell.more = static_cast<uint32_t>(more_.size());
  }
  cells_ = std::move(finer);
  cell_bytes_ = bytes;
}

Conflict SharedShadow::read(const Clocks &clocks, Accessor who, uint64_t offset, int bytes) {
  if (bytes < cell_bytes_) refine(bytes);
  Conflict conflict;
  const auto width = static_cast<uint64_t>(cell_bytes_);
  const int warp = who.who() / kLanes;
  const Mask lane = Mask{1} << who.who() % kLanes;
  const Clock now = who.when(clocks);
  for (uint64_t i = offset / width; i < (offset + static_cast<uint64_t>(bytes)) / width; ++i) {
    Cell &cell = cells_[i];
    if (!after_write(cell, clocks, who) && !conflict) conflict = against_write(cell, clocks, who);
    Reader &last = cell.reader;
    if (last.lanes != 0 && last.warp == warp && last.clock == now && last.strength == who.strength) {
      last.lanes |= lane;
      last.pc = who.pc;
    } else {
      add_reader(cell, clocks, who);
    }
  }
  return conflict;
}

Conflict SharedShadow::write(const Clocks &clocks, Accessor who, uint64_t offset, int bytes) {
  if (bytes < cell_bytes_) refine(bytes);
  Conflict conflict;
  const auto width = static_cast<uint64_t>(cell_bytes_);
  for (uint64_t i = offset / width; i < (offset + static_cast<uint64_t>(bytes)) / width; ++i) {
    Cell &cell = cells_[i];
    if (!after_write(cell, clocks, who) && !conflict) conflict = against_write(cell, clocks, who);
    const auto check = [&](const Reader &reader) {
      int thread = 0;
      if (reader.lanes == 0 || conflict || both(reader.strength, who.strength, Strength::kBlock) ||
          before(reader, clocks, who.thread, &thread))
        return;
      conflict = {Conflict::With::kRead, clocks.block(), thread, reader.pc};
    };
    check(cell.reader);
    if (cell.more != 0) {
      for (const Reader &reader : more_[cell.more - 1]) check(reader);
      more_[cell.more - 1].clear();
    }
    cell.reader = {};
    cell.write_clock = who.when(clocks);
    cell.write_pc = who.pc;
    cell.writer = static_cast<uint16_t>(who.who());
    cell.strength = who.strength;
  }
  return conflict;
}

Conflict SharedShadow::begin_copy(const Clocks &clocks, Accessor who, uint64_t offset, int bytes) {
  const Conflict conflict = write(clocks, who, offset, bytes);
  const auto width = static_cast<uint64_t>(cell_bytes_);
  for (uint64_t i = offset / width; i < (offset + static_cast<uint64_t>(bytes)) / width; ++i) {
    cells_[i].in_flight = true;
  }
  return conflict;
}

void SharedShadow::end_copy(const Clocks &clocks, int thread, uint64_t offset, int bytes) {
  const auto width = static_cast<uint64_t>(cell_bytes_);
  for (uint64_t i = offset / width; i < (offset + static_cast<uint64_t>(bytes)) / width; ++i) {
    cells_[i].in_flight = false;
    cells_[i].writer = static_cast<uint16_t>(thread);
    cells_[i].write_clock = clocks.now(thread);
  }
}

// ---- Global memory

template <class Visit>
void GlobalShadow::visit(uint64_t address, int bytes, Visit visit) {
  const uint64_t number = address >> kPageLog2;  // an access is aligned, so it never crosses a page
  if (number != last_number_) {
    last_page_ = &pages_[number];
    last_number_ = number;
    if (last_page_->cells.empty()) last_page_->cells.resize(size_t{1} << kPageLog2 >> 2);
  }
  Page &page = *last_page_;
  if (bytes < page.cell_bytes) {
    const auto parts = static_cast<size_t>(page.cell_bytes / bytes);
    std::vector<Cell> finer(page.cells.size() * parts);
    for (size_t i = 0; i < finer.size(); ++i) finer[i] = page.cells[i / parts];
    page.cells = std::move(finer);
    page.cell_bytes = bytes;
  }
  const auto width = static_cast<uint64_t>(page.cell_bytes);
  const uint64_t begin = address % (uint64_t{1} << kPageLog2);
  for (uint64_t i = begin / width; i < (begin + static_cast<uint64_t>(bytes)) / width; ++i) visit(page.cells[i]);
}

Conflict GlobalShadow::against_write(const Cell &cell, const Clocks &clocks, uint64_t block, Accessor who) {
  if (cell.write_block == 0) return {};
  const uint64_t other = cell.write_block - 1;
  if (both(cell.write_strength, who.strength, between(other, block))) return {};
  if (other == block ? clocks.ordered(cell.writer, cell.write_clock, who.thread)
                     : clocks.ordered(other, cell.writer, cell.write_clock, who.thread)) {
    // Of another block the fences aren't known.
    if (who.agent >= 0 && other == block && cell.writer < clocks.threads() &&
        !clocks.fenced(Proxy::kGlobal, cell.writer, cell.write_clock, who.thread)) {
      return {Conflict::With::kUnfenced, other, cell.writer, cell.write_pc};
    }
    return {};
  }
  return {Conflict::With::kWrite, other, cell.writer, cell.write_pc};
}

Conflict GlobalShadow::read(const Clocks &clocks, uint64_t block, Accessor who, uint64_t address, int bytes) {
  Conflict conflict;
  visit(address, bytes, [&](Cell &cell) {
    if (!conflict) conflict = against_write(cell, clocks, block, who);
    const auto warp = static_cast<uint16_t>(who.who() / kLanes);
    const Clock now = who.when(clocks);
    const auto reader = static_cast<uint32_t>(block + 1);
    if (cell.read_block != 0 && cell.read_block != reader) cell.several_blocks_read = true;
    if (cell.read_block != reader || cell.read_warp != warp || cell.read_clock != now) cell.readers = 0;
    cell.readers |= Mask{1} << who.who() % kLanes;
    cell.read_block = reader;
    cell.read_warp = warp;
    cell.read_clock = now;
    cell.read_pc = who.pc;
    cell.read_strength = who.strength;
  });
  return conflict;
}

Conflict GlobalShadow::write(const Clocks &clocks, uint64_t block, Accessor who, uint64_t address, int bytes) {
  Conflict conflict;
  visit(address, bytes, [&](Cell &cell) {
    if (!conflict) conflict = against_write(cell, clocks, block, who);
    const uint64_t other = uint64_t{cell.read_block} - 1;
    if (!conflict && cell.read_block != 0 && !both(cell.read_strength, who.strength, between(other, block))) {
      for (Mask rest = cell.readers; rest != 0 && !conflict; rest &= rest - 1) {
        const int reader = cell.read_warp * kLanes + __builtin_ctz(rest);
        if (!clocks.ordered(other, reader, cell.read_clock, who.thread)) {
          conflict = {Conflict::With::kRead, other, reader, cell.read_pc};
        }
      }
      if (!conflict && cell.several_blocks_read && !clocks.took_over_anything()) {
        conflict = {Conflict::With::kRead, other, cell.read_warp * kLanes, cell.read_pc};
      }
    }
    cell.readers = 0;
    cell.read_block = 0;
    cell.several_blocks_read = false;
    cell.write_block = static_cast<uint32_t>(block + 1);
    cell.write_clock = who.when(clocks);
    cell.write_pc = who.pc;
    cell.writer = static_cast<uint16_t>(who.who());
    cell.write_strength = who.strength;
  });
  return conflict;
}

void GlobalShadow::publish(uint64_t address, uint64_t block, const Messages &what) {
  if (what.block.released == nullptr && what.block.fenced == nullptr) return;  // then further blocks get nothing either
  Place &place = published_[address];
  const auto leave = [](Message &there, const Message &message) {
    add(there.released, message.released);
    add(there.fenced, message.fenced);
  };
  leave(place.blocks[block], what.block);
  leave(place.device, what.device);
}

Messages GlobalShadow::published(uint64_t address, uint64_t block) const {
  const auto place = published_.find(address);
  if (place == published_.end()) return {};
  const auto mine = place->second.blocks.find(block);
  return {mine == place->second.blocks.end() ? Message{} : mine->second, place->second.device};
}

}  // namespace emulator
