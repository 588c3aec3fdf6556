#include "race.h"

#include <algorithm>
#include <utility>

#include "lanes.h"

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

Mask Clocks::unknown(int first_thread, Mask lanes, Clock clock, int viewer) const {
  const size_t warp = at(first_thread / kLanes);
  if (warp >= asked_.size()) asked_.resize(warp + 1);
  Asked &asked = asked_[warp];
  if (const Known &known = known_[at(viewer)]; asked.known != known || asked.clock != clock) {
    const size_t first = at(first_thread), size = known->size();
    const Clock *const clocks = known->data() + first;
    asked = {known, clock, 0};
    if (first + kLanes <= size)
      asked.late = lanes_where([=](int lane) { return clocks[lane] < clock; });
    else  // agents, some of which the viewer may never have heard of
      asked.late = lanes_where([=](int lane) { return first + at(lane) >= size || clocks[lane] < clock; });
  }
  return asked.late & lanes;
}

bool Clocks::alike(int first_thread, Mask lanes) const {
  const size_t first = at(first_thread + __builtin_ctz(lanes));
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const size_t t = at(first_thread + __builtin_ctz(rest));
    if (known_[t] != known_[first] || own_[t] != own_[first]) return false;
  }
  return true;
}

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
    if (sum != *known_[at(thread)]) known_[at(thread)] = std::make_shared<const std::vector<Clock>>(std::move(sum));
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

// Whether everybody of who accesses comes after this.
inline bool ordered(const Clocks &clocks, int earlier, Clock clock, const Accessor &who) {
  if (who.together == 0) return clocks.ordered(earlier, clock, who.thread);
  return clocks.unknown(earlier / kLanes * kLanes, Mask{1} << earlier % kLanes, clock, who.thread) == 0;
}

// ---- Shared memory

// Whether nothing speaks against an access by the last write: the usual case, quickly.
inline bool SharedShadow::after_write(const Cell &cell, const Clocks &clocks, Accessor who) {
  if (who.agent >= 0 && cell.write_clock != 0 && cell.writer < clocks.threads()) return false;
  return !cell.in_flight && (cell.write_clock == 0 || ordered(clocks, cell.writer, cell.write_clock, who) ||
                             both(cell.strength, who.strength, Strength::kBlock));
}

Conflict SharedShadow::against_write(const Cell &cell, const Clocks &clocks, Accessor who) {
  if (cell.in_flight) return {Conflict::With::kCopyInFlight, clocks.block(), cell.writer, cell.write_pc};
  if (cell.write_clock != 0 && !both(cell.strength, who.strength, Strength::kBlock) &&
      !ordered(clocks, cell.writer, cell.write_clock, who)) {
    return {Conflict::With::kWrite, clocks.block(), cell.writer, cell.write_pc};
  }
  if (who.agent >= 0 && cell.write_clock != 0 && cell.writer < clocks.threads() &&
      !clocks.fenced(Proxy::kShared, cell.writer, cell.write_clock, who.thread)) {
    return {Conflict::With::kUnfenced, clocks.block(), cell.writer, cell.write_pc};
  }
  return {};
}

inline bool SharedShadow::before(const Reader &reader, const Clocks &clocks, Accessor who, int *thread) {
  Mask late = clocks.unknown(reader.warp * kLanes, reader.lanes, reader.clock, who.thread);
  // Whoever accesses comes after itself; an agent after the thread that set it to work.
  if (who.agent < 0 ? reader.warp == who.warp() : reader.warp == who.thread / kLanes)
    late &= ~(who.agent < 0 ? who.lanes() : Mask{1} << who.thread % kLanes);
  if (late != 0 && thread != nullptr) *thread = reader.warp * kLanes + __builtin_ctz(late);
  return late == 0;
}

void SharedShadow::reset(size_t bytes) {
  pages_.resize((bytes + kPageBytes - 1) / kPageBytes);
  for (auto &page : pages_) page.reset(kPageBytes);
  more_.clear();
  unused_ = 0;
}

template <class Visit>
void SharedShadow::visit(uint64_t offset, int bytes, Visit visit) {
  const auto copy = [&](Cell cell) {
    uint32_t list = 0;
    for (uint32_t place = cell.more; place != 0; place = more_[place - 1].next)
      list = added(Reader(more_[place - 1].reader), list);
    cell.more = list;
    return cell;
  };
  pages_[offset / kPageBytes].each(offset % kPageBytes, bytes, copy, visit);
}

uint32_t SharedShadow::added(const Reader &reader, uint32_t list) {
  uint32_t place = unused_;
  if (place != 0) {
    unused_ = more_[place - 1].next;
  } else {
    more_.emplace_back();
    place = static_cast<uint32_t>(more_.size());
  }
  more_[place - 1] = {reader, list};
  return place;
}

void SharedShadow::drop(uint32_t &list) {
  const uint32_t place = list;
  list = more_[place - 1].next;
  more_[place - 1].next = unused_;
  unused_ = place;
}

void SharedShadow::add_reader(Cell &cell, const Clocks &clocks, Accessor who) {
  const Reader reader{who.lanes(), who.when(clocks), who.pc, static_cast<uint16_t>(who.warp()), who.strength};
  Reader &last = cell.reader;
  if (last.lanes != 0 && (cell.more != 0 || !before(last, clocks, who))) {
    for (uint32_t place = cell.more; place != 0; place = more_[place - 1].next)
      if (more_[place - 1].reader.add(reader)) return;
    for (uint32_t *list = &cell.more; *list != 0;) {
      if (before(more_[*list - 1].reader, clocks, who))
        drop(*list);
      else
        list = &more_[*list - 1].next;
    }
    if (!before(last, clocks, who)) cell.more = added(last, cell.more);
  }
  last = reader;
}

Conflict SharedShadow::read(const Clocks &clocks, Accessor who, uint64_t offset, int bytes) {
  Conflict conflict;
  const Reader reader{who.lanes(), who.when(clocks), who.pc, static_cast<uint16_t>(who.warp()), who.strength};
  visit(offset, bytes, [&](Cell &cell) {
    if (!after_write(cell, clocks, who) && !conflict) conflict = against_write(cell, clocks, who);
    if (!cell.reader.add(reader)) add_reader(cell, clocks, who);
  });
  return conflict;
}

Conflict SharedShadow::write(const Clocks &clocks, Accessor who, uint64_t offset, int bytes) {
  Conflict conflict;
  visit(offset, bytes, [&](Cell &cell) {
    if (!after_write(cell, clocks, who) && !conflict) conflict = against_write(cell, clocks, who);
    const auto check = [&](const Reader &reader) {
      int thread = 0;
      if (reader.lanes == 0 || conflict || both(reader.strength, who.strength, Strength::kBlock) ||
          before(reader, clocks, who, &thread))
        return;
      conflict = {Conflict::With::kRead, clocks.block(), thread, reader.pc};
    };
    check(cell.reader);
    for (; cell.more != 0; drop(cell.more)) check(more_[cell.more - 1].reader);
    cell.reader = {};
    cell.write_clock = who.when(clocks);
    cell.write_pc = who.pc;
    cell.writer = static_cast<uint16_t>(who.who());
    cell.strength = who.strength;
  });
  return conflict;
}

Conflict SharedShadow::begin_copy(const Clocks &clocks, Accessor who, uint64_t offset, int bytes) {
  const Conflict conflict = write(clocks, who, offset, bytes);
  visit(offset, bytes, [](Cell &cell) { cell.in_flight = true; });
  return conflict;
}

void SharedShadow::end_copy(const Clocks &clocks, int thread, uint64_t offset, int bytes) {
  visit(offset, bytes, [&](Cell &cell) {
    cell.in_flight = false;
    cell.writer = static_cast<uint16_t>(thread);
    cell.write_clock = clocks.now(thread);
  });
}

// ---- Global memory

template <class Visit>
void GlobalShadow::visit(uint64_t address, int bytes, Visit visit) {
  const uint64_t number = address / kPageBytes;  // an access is aligned, so it never crosses a page
  if (number != last_number_) {
    last_page_ = &pages_[number];
    last_number_ = number;
    if (last_page_->cells.empty()) last_page_->reset(kPageBytes);
  }
  last_page_->each(address % kPageBytes, bytes, [](const Cell &cell) { return cell; }, visit);
}

Conflict GlobalShadow::against_write(const Cell &cell, const Clocks &clocks, uint64_t block, Accessor who) {
  if (cell.write_block == 0) return {};
  const uint64_t other = cell.write_block - 1;
  if (both(cell.write_strength, who.strength, between(other, block))) return {};
  if (other == block ? ordered(clocks, cell.writer, cell.write_clock, who)
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
    const auto warp = static_cast<uint16_t>(who.warp());
    const Clock now = who.when(clocks);
    const auto reader = static_cast<uint32_t>(block + 1);
    if (cell.read_block != 0 && cell.read_block != reader) cell.several_blocks_read = true;
    if (cell.read_block != reader || cell.read_warp != warp || cell.read_clock != now) cell.readers = 0;
    cell.readers |= who.lanes();
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
