// The state of a launch: blocks, their warps, and what instructions may do to them.
//
// A warp is 32 lanes that share a register file. Lanes that took different ways are different groups; the scheduler runs
// the group with the lowest instruction and merges groups that meet.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "asynchronous.h"
#include "counters.h"
#include "emulator.h"
#include "memory.h"
#include "program.h"
#include "race.h"

namespace emulator {

struct Run;
struct Block;

// Lanes at the same instruction.
struct Group {
  uint32_t pc;
  Mask lanes;
  bool parked;  // waits for other lanes of the warp
};

// Bytes of one lane's cp.async on their way to shared memory.
struct Copy {
  uint8_t lane, bytes;
  uint32_t group;   // of the lane, counted by commits
  uint32_t offset;  // in the block's shared memory
  std::array<std::byte, 16> data;
};

enum class State : uint8_t { kReady, kAtBarrier, kEnded };

struct Warp {
  std::byte *bank[2] = {};
  Block *block = nullptr;
  Run *run = nullptr;
  int index = 0;  // in the block
  Mask live = 0;  // lanes that haven't ended
  State state = State::kReady;
  uint32_t pc = 0;             // of the instruction that is running, or that the warp waits at
  std::vector<Group> groups;   // by descending pc: the next to run is the last
  std::byte *local = nullptr;  // of lane 0; the lanes' parts follow each other
  size_t local_bytes = 0;      // of a lane
  std::vector<Copy> copies;    // of cp.async, not yet landed
  std::array<uint32_t, kLanes> commits{};
  Mask carry = 0;        // the flag of add.cc and its like
  bool watched = false;  // a strong load or an atomic since the last turn: it may be waiting for another warp
  uint32_t rounds = 0;   // of a loop that may be such a wait, while other lanes stand behind it
  bool failed = false;   // the wait that has just run, for something of this block alone
  // Rounds of a loop around such waits in which nothing changed, where the last one stands, and Run::changes then.
  uint32_t failures = 0, failed_pc = 0;
  uint64_t changes_at_failure = 0;
  // wgmma: what is known of registers, the number of fences so far (from 1), and what isn't waited for: group and pc.
  std::vector<MatrixRegister> matrix_registers;
  uint32_t matrix_fences = 1;
  std::deque<std::pair<uint32_t, uint32_t>> matrix_in_flight;

  int thread(int lane) const { return index * kLanes + lane; }  // in the block
  template <class T>
  const T *in(const Operand &operand) const {
    return reinterpret_cast<const T *>(bank[operand.bank] + operand.offset);
  }
  template <class T>
  T *out(const Operand &operand) {
    return reinterpret_cast<T *>(bank[0] + operand.offset);
  }
  Mask predicate(const Operand &operand, bool negated) const {
    const Mask value = *in<Mask>(operand);
    return negated ? ~value : value;
  }
};

// A barrier of bar.sync. Warps arrive as a whole, as PTX has it: each counts for 32 threads.
struct Barrier {
  uint32_t arrived = 0, expected = 0;  // threads; expected 0: all warps that haven't ended
  bool in_use = false;
  std::vector<Warp *> waiting;
  uint32_t true_lanes = 0, lanes = 0;  // of bar.red
  Knowledge pending;                   // what the arrived threads know
};

struct Block {
  Run *run = nullptr;
  Dim3 index;
  uint64_t number = 0;  // x first
  std::vector<Warp> warps;
  std::vector<std::byte> registers, local, shared, initialised;  // initialised: 1 for each byte of shared
  std::array<Barrier, 16> barriers;
  std::unique_ptr<Clocks> clocks;          // NULL without race detection
  std::unique_ptr<SharedShadow> shadow;    // the same
  size_t ended = 0;                        // warps
  std::map<uint32_t, Mbarrier> mbarriers;  // by offset in shared memory
  std::deque<BulkCopy> bulk;               // not yet ended, by age
  std::map<int, BulkGroups> bulk_groups;   // by thread
  std::vector<Warpgroup> warpgroups;
  // The mbarrier that has some of these bytes, NULL if none has.
  const Mbarrier *mbarrier_in(uint64_t offset, uint64_t bytes) const {
    if (mbarriers.empty()) return nullptr;
    const auto after = mbarriers.lower_bound(static_cast<uint32_t>(offset + bytes));
    if (after == mbarriers.begin()) return nullptr;
    const auto &[at, mbarrier] = *std::prev(after);
    return at + kMbarrierBytes > offset ? &mbarrier : nullptr;
  }
  Dim3 thread_index(int thread) const;
};

// One launch.
struct Run {
  const Kernel &kernel;
  const Options &options;
  Dim3 grid, block;
  size_t shared_bytes;  // static and dynamic
  std::vector<std::byte> parameters;
  BufferTable buffers;
  std::unique_ptr<GlobalShadow> global_shadow;  // NULL without race detection
  std::vector<std::byte> literals;              // bank 1
  Counters counters;
  std::mt19937_64 random;
  std::vector<Report> reports;
  uint64_t changes = 0;  // stores, barriers and ends so far: nothing changes in a deadlock
  uint64_t instructions = 0;

  Run(const Kernel &kernel, const Options &options, Dim3 grid, Dim3 block, size_t shared_bytes, BufferTable buffers);

  // Collects the report or throws it; `lane` is the one that noticed.
  void report(const Warp &warp, Kind kind, int lane, std::string detail);
  struct Earlier {
    uint32_t pc;
    uint64_t block;
    int thread;
  };
  void report(const Warp &warp, Kind kind, int lane, std::string detail, const Earlier &earlier);
  // Ends the launch, also when collecting.
  [[noreturn]] void stop(const Warp &warp, Kind kind, int lane, std::string detail);

  Dim3 block_index(uint64_t number) const;
  Dim3 thread_index(int thread) const;
  Line line(uint32_t pc) const;

 private:
  Report make(const Warp &warp, Kind kind, int lane, std::string detail) const;
  void add(Report report);
};

// Thrown inside a launch by stop(); carries nothing, the report is in Run::reports.
struct Stopped {};

// Moves the copies that `arrived` says into shared memory.
enum class Landing { kGroups, kAll };
void land_copies(Warp &warp, Mask lanes, Landing landing, uint32_t pending_groups);

// Runs all blocks of the launch.
void run_blocks(Run &run);

}  // namespace emulator
