// Happens-before: which accesses to memory are ordered, and a report of those that should be and aren't.
//
// Every thread has a clock, which advances when it releases (arrives at a barrier, fences). A thread knows, of every other
// thread of its block, the clock up to which it has seen what that thread did; barriers and bar.warp.sync pass
// this on. An access is ordered after an earlier one of thread t at clock c if the thread knows t up to c. Shuffles, mma and
// ldmatrix order nothing. The result doesn't depend on the schedule: one run of any order sees every race of its path.
//
// Between blocks, and within one through atomics, order comes as in the PTX memory model: a fence (or .release) before
// an atomic or strong store of the same thread publishes what the thread knows at that address; an atomic or strong load
// there, and a fence (or .acquire) of the same thread after it, takes it over. `red`, which returns nothing, doesn't.
//
// fence.sc, which __threadfence() is, orders more, since any two of them are ordered: between fence and atomic, on either
// side, there may be a barrier and then another thread. So __threadfence(), __syncthreads() and one thread's atomic
// publish what all threads wrote; with fence.acq_rel they don't.
//
// With .cta scope, on a fence or on an access, all of this holds within the block only, and two strong accesses of
// different blocks race unless both have .gpu or .sys. What .cta hides stays hidden: a wider atomic of another thread of
// the block doesn't pass it on.
//
// Shadow memory has a cell for 16 bytes, refined to fewer where a narrower access comes. A cell holds the last write and
// the reads that are concurrent to each other.
//
// Whatever works beside the threads is an agent with a number behind theirs, and with clocks that whoever makes it
// counts: an mbarrier for the bulk copies that complete on it (the clock is the phase), a thread's bulk copies to
// global memory (the group), a warpgroup for its wgmma (the group). A thread knows an agent's clock when it has waited
// for it. Such accesses are of the async proxy: what a thread wrote before them, it must have followed by
// fence.proxy.async, and they must be ordered after that fence.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace emulator {

using Clock = uint32_t;
// Clocks by thread or agent; those beyond the end are 0.
using Known = std::shared_ptr<const std::vector<Clock>>;
// What a release published: by block.
using Snapshot = std::map<uint64_t, Known>;
using Published = std::shared_ptr<const Snapshot>;
enum class Fence : uint8_t { kAcquire, kRelease, kBoth, kSc };
// What a fence towards the async proxy is about.
enum class Proxy : uint8_t { kShared, kGlobal, kMbarrierInit };
using Proxies = std::vector<Proxy>;
// What is at an address for those who look there: with a fence or .acquire of their own, or with a fence.sc.
struct Message {
  Published released, fenced;
};
// The same for threads of one block, and what of it reaches further.
struct Messages {
  Message block, device;
};
// What a barrier collects, and then hands to everybody who waits.
struct Knowledge {
  std::vector<Clock> clocks;
  Known merged;             // the last shared vector that was taken in whole: to skip it the next time
  Published fenced, found;  // see Clocks
};
struct Handed {
  Known known;
  Published fenced, found;
  explicit Handed(Knowledge &&all);
};

// The clocks of one block.
class Clocks {
 public:
  Clocks(uint64_t block, int threads);

  uint64_t block() const { return block_; }
  int threads() const { return static_cast<int>(own_.size()); }
  Clock now(int thread) const { return own_[static_cast<size_t>(thread)]; }
  bool ordered(int earlier, Clock clock, int viewer) const {
    if (earlier == viewer) return true;
    const std::vector<Clock> &known = *known_[static_cast<size_t>(viewer)];
    return static_cast<size_t>(earlier) < known.size() && known[static_cast<size_t>(earlier)] >= clock;
  }
  // Those of the lanes, of threads first_thread + lane at one clock, that aren't known to the viewer.
  Mask unknown(int first_thread, Mask lanes, Clock clock, int viewer) const;
  // As ordered(), for an access of another block.
  bool ordered(uint64_t block, int earlier, Clock clock, int viewer) const;
  bool took_over_anything() const { return !taken_.empty(); }

  // Whether threads first_thread + lane of the mask know the same and have the same clock.
  bool alike(int first_thread, Mask lanes) const;

  // Threads first_thread + lane of the mask.
  void release(int first_thread, Mask lanes, Knowledge &into);
  // Of threads that have released into it.
  void acquire(int first_thread, Mask lanes, const Handed &from);
  // Of threads that may know of other things too.
  void see(int first_thread, Mask lanes, const Handed &from);
  // bar.warp.sync: everybody releases, then acquires.
  void join(int first_thread, Mask lanes);

  void fence(int thread, Fence kind, Scope scope);
  // What an atomic or strong store of this thread publishes, from its last fence or, if `now`, as it is a release.
  Messages message(int thread, bool now, Scope scope);
  // An atomic or strong load found this; it counts from the next fence on or, if `now`, as the load is an acquire.
  void find(int thread, const Messages &messages, bool now, Scope scope);

  // ---- Agents
  // A new one; reports name `owner`, the thread that set it to work last.
  int add_agent(int owner);
  void set_owner(int agent, int thread) { owners_[static_cast<size_t>(agent) - own_.size()] = thread; }
  int owner(int agent) const { return agent < threads() ? agent : owners_[static_cast<size_t>(agent) - own_.size()]; }
  // The threads have waited for what an agent did up to this clock.
  void learn(int first_thread, Mask lanes, int agent, Clock clock);
  // A viewer that knows what these threads know and did, until the next call: for what a warpgroup does as one.
  int together(int first_thread, int threads);

  // fence.proxy.async of one or both kinds of memory, fence.mbarrier_init.
  void fence_proxy(int thread, const Proxies &of);
  // Whether a fence of the writer lies between its write and what the viewer does now.
  bool fenced(Proxy of, int writer, Clock clock, int viewer) const;

 private:
  Published publish_now(int thread);
  void take_over(int thread, const Published &what);

  uint64_t block_;
  std::vector<Clock> own_;
  std::vector<Known> known_;                              // the last one is of together(), whose number no agent has
  std::vector<int> owners_;                               // of agents, the first is together()
  std::vector<std::array<std::vector<Clock>, 3>> proxy_;  // by thread and Proxy: when it fenced, ascending
  // By thread: what its last fence published, and what it found since then. Of each, what reaches other blocks.
  std::vector<Published> published_, found_, published_far_, found_far_;
  // The same across fence.sc (of the device) and barriers: what is behind a fence.sc that the thread knows of, and what somebody found
  // that a fence.sc of this thread takes over.
  std::vector<Published> fenced_, found_fenced_;
  // What came from other blocks, and the clock at which each thread took it over; 0: it didn't.
  struct Taken {
    Published what;
    std::vector<Clock> by;
  };
  bool knows(const Taken &taken, int viewer) const;

  std::vector<Taken> taken_;

  // The last question of unknown() about each warp and its answer: one question comes up many times in a row.
  struct Asked {
    Known known;  // by whom
    Clock clock = 0;
    Mask late = 0;
  };
  mutable std::vector<Asked> asked_;
};

// What an access races with.
struct Conflict {
  // kUnfenced: a write of a thread that is ordered, but without a fence towards the async proxy.
  enum class With : uint8_t { kNothing, kWrite, kRead, kCopyInFlight, kUnfenced } with = With::kNothing;
  uint64_t block = 0;
  int thread = 0;
  uint32_t pc = 0;
  explicit operator bool() const { return with != With::kNothing; }
};

// Strong accesses are atomic, volatile or have a memory order; and a scope.
enum class Strength : uint8_t { kWeak, kBlock, kDevice };
// Who accesses.
struct Accessor {
  int thread;  // in its block; of an agent, the one that sets it to work
  uint32_t pc;
  Strength strength;
  int agent = -1;     // -1: the thread itself
  Clock clock = 0;    // of the agent
  Mask together = 0;  // lanes of several threads that do the same and are alike, `thread` being one; 0: it is alone
  int who() const { return agent < 0 ? thread : agent; }
  int warp() const { return who() / kLanes; }
  Mask lanes() const { return together != 0 ? together : Mask{1} << who() % kLanes; }
  Clock when(const Clocks &clocks) const { return agent < 0 ? clocks.now(thread) : clock; }
};

// Some bytes of memory, as cells of one width.
template <class Cell>
struct ShadowPage {
  static constexpr int kWidest = 16;  // as an access of a lane
  int cell_bytes = kWidest;
  std::vector<Cell> cells;

  void reset(size_t bytes) {
    cell_bytes = kWidest;
    cells.assign(bytes / kWidest, {});
  }
  // Calls visit(cell) for those of an aligned access; copy(cell) makes the further parts of one that was wider.
  template <class Copy, class Visit>
  void each(uint64_t begin, int bytes, Copy copy, Visit visit) {
    if (bytes < cell_bytes) refine(bytes, copy);
    const auto width = static_cast<uint64_t>(cell_bytes);
    for (uint64_t i = begin / width; i < (begin + static_cast<uint64_t>(bytes)) / width; ++i) visit(cells[i]);
  }

 private:
  template <class Copy>
  void refine(int bytes, Copy copy) {
    const auto parts = static_cast<size_t>(cell_bytes / bytes);
    std::vector<Cell> finer(cells.size() * parts);
    for (size_t i = 0; i < finer.size(); ++i) finer[i] = i % parts == 0 ? cells[i / parts] : copy(cells[i / parts]);
    cells = std::move(finer);
    cell_bytes = bytes;
  }
};

// Of the shared memory of one block.
class SharedShadow {
 public:
  // As before any access, of a block that has so many bytes.
  void reset(size_t bytes);
  Conflict read(const Clocks &clocks, Accessor who, uint64_t offset, int bytes);
  Conflict write(const Clocks &clocks, Accessor who, uint64_t offset, int bytes);
  // cp.async: a write now, and nobody may touch the bytes until it has landed.
  Conflict begin_copy(const Clocks &clocks, Accessor who, uint64_t offset, int bytes);
  void end_copy(const Clocks &clocks, int thread, uint64_t offset, int bytes);

 private:
  struct Reader {
    Mask lanes = 0;
    Clock clock = 0;
    uint32_t pc = 0;
    uint16_t warp = 0;
    Strength strength = Strength::kWeak;
    // Takes another one in, if it differs in lanes and instruction only.
    bool add(const Reader &other) {
      if (lanes == 0 || warp != other.warp || clock != other.clock || strength != other.strength) return false;
      lanes |= other.lanes;
      pc = other.pc;
      return true;
    }
  };
  struct Cell {
    Clock write_clock = 0;  // 0: never written
    uint32_t write_pc = 0;
    uint16_t writer = 0;
    bool in_flight = false;
    Strength strength = Strength::kWeak;
    uint32_t more = 0;  // 1 + index of the first of further readers; 0: none
    Reader reader;
  };
  struct FurtherReader {
    Reader reader;
    uint32_t next;  // as Cell::more
  };
  static bool after_write(const Cell &cell, const Clocks &clocks, Accessor who);
  static Conflict against_write(const Cell &cell, const Clocks &clocks, Accessor who);
  static bool before(const Reader &reader, const Clocks &clocks, Accessor who, int *thread = nullptr);
  // A reader that isn't the cell's last one already.
  void add_reader(Cell &cell, const Clocks &clocks, Accessor who);
  // A list with one more in front.
  uint32_t added(const Reader &reader, uint32_t list);
  // Takes the first one out of a list.
  void drop(uint32_t &list);
  template <class Visit>
  void visit(uint64_t offset, int bytes, Visit visit);

  static constexpr uint64_t kPageBytes = 1024;
  std::vector<ShadowPage<Cell>> pages_;
  std::vector<FurtherReader> more_;
  uint32_t unused_ = 0;  // a list of those of more_ that are in no cell's
};

// Of all global memory during one launch. Keeps, of the readers of a cell, the last one and whether several blocks read it.
class GlobalShadow {
 public:
  Conflict read(const Clocks &clocks, uint64_t block, Accessor who, uint64_t address, int bytes);
  Conflict write(const Clocks &clocks, uint64_t block, Accessor who, uint64_t address, int bytes);
  // The order that atomics and strong accesses of an address make.
  void publish(uint64_t address, uint64_t block, const Messages &what);
  Messages published(uint64_t address, uint64_t block) const;
  bool has_published() const { return !published_.empty(); }

 private:
  static constexpr uint64_t kPageBytes = 4096;
  struct Cell {
    uint32_t write_block = 0, read_block = 0;  // 1 + number; 0: none
    Clock write_clock = 0, read_clock = 0;
    uint32_t write_pc = 0, read_pc = 0;
    Mask readers = 0;
    uint16_t writer = 0, read_warp = 0;
    Strength write_strength = Strength::kWeak, read_strength = Strength::kWeak;
    bool several_blocks_read = false;
  };
  using Page = ShadowPage<Cell>;
  template <class Visit>
  void visit(uint64_t address, int bytes, Visit visit);
  static Conflict against_write(const Cell &cell, const Clocks &clocks, uint64_t block, Accessor who);

  std::unordered_map<uint64_t, Page> pages_;
  struct Place {
    Message device;
    std::map<uint64_t, Message> blocks;
  };
  std::unordered_map<uint64_t, Place> published_;
  Page *last_page_ = nullptr;
  uint64_t last_number_ = ~uint64_t{0};
};

}  // namespace emulator
